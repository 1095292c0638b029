//! What is to hold for whatever bytes come: the bodies of the fuzz targets. `make fuzz` runs them on bytes
//! that libFuzzer makes up, `cargo test` on those of `tests/fuzz/corpus`.

use crate::address::Address;
use crate::cli::{self, Request};
use crate::notify::{self, Notice};
use crate::protocol::{CopyWord, FrontWord, HolderWord, PeerWord, ServerWord, Splitter, SupervisorWord, Word, line_of};
use crate::record::{self, Record};
use std::ffi::OsString;
use std::fmt::{Debug, Display};
use std::os::unix::ffi::OsStringExt;

/// The longest line of the control channel, with its end (serverswap(7)).
const LINE_MAX: usize = 1024;

/// A target: its name, which is that of its corpus too, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Target; 4] = [("lines", lines), ("words", words), ("records", records), ("arguments", arguments)];

/// The line parser: the same lines however the bytes are cut, and none that is more than a line.
pub fn lines(data: &[u8]) {
    let whole = Splitter::default().push(data);
    // The first byte says into which pieces.
    let size = data.first().map_or(1, |&b| usize::from(b) + 1);
    let mut splitter = Splitter::default();
    let pieces: Vec<_> = data.chunks(size).flat_map(|piece| splitter.push(piece)).collect();
    assert_eq!(whole, pieces);
    let ends = data.iter().filter(|&&b| b == b'\n').count();
    // A line that is too long is answered before its end comes.
    assert!(whole.len() == ends || whole.len() == ends + 1);
    for line in whole.into_iter().flatten() {
        assert!(!line.is_empty() && line.len() < LINE_MAX && !line.contains(char::is_control));
        // What stands in a line comes out as the same line.
        assert_eq!(line_of(&line), format!("{line}\n").into_bytes());
    }
}

/// The words of both sides of both protocols: what is understood is written as it was meant.
pub fn words(data: &[u8]) {
    for line in Splitter::default().push(data).into_iter().flatten() {
        read_back::<ServerWord>(&line);
        read_back::<PeerWord>(&line);
        read_back::<HolderWord>(&line);
        read_back::<CopyWord>(&line);
        read_back::<FrontWord>(&line);
        let answer = line_of(&SupervisorWord::Error(line));
        assert!(answer.len() <= LINE_MAX && answer.iter().filter(|&&b| b == b'\n').count() == 1);
    }
    for notice in notify::parse(data) {
        if let Notice::Status(text) = notice {
            assert!(text.chars().count() <= 200 && !text.contains(char::is_control));
        }
    }
}

fn read_back<W: Word + Display + Debug + PartialEq>(line: &str) {
    match W::parse(line) {
        Ok(word) => {
            let written = line_of(&word);
            assert!(written.len() <= LINE_MAX);
            // An address may be a little longer in the way we write it, and so may not fit any more.
            if word.to_string().len() < LINE_MAX {
                let [Ok(again)] = &Splitter::default().push(&written)[..] else { panic!("{word:?} is no line") };
                assert_eq!(W::parse(again), Ok(word));
            }
        }
        Err(why) => assert!(!why.is_empty() && why.len() < 100 && !why.contains(char::is_control)),
    }
}

/// The pidfile and the record: a pid is a process of its own, a name stays in the run directory, and what
/// is written is read back.
pub fn records(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(pid) = record::parse_pid(text) {
        assert!(pid.raw() > 0 && text.trim_start_matches('0') == format!("{pid}\n"));
    }
    if let Some(address) = Address::from_stem(text) {
        assert_eq!(address.stem(), text);
        assert!(!text.contains('/') && !text.starts_with('.') && text.len() <= 200);
    }
    if let Some(read) = Record::parse(text) {
        assert!(read.pid.raw() > 0 && read.supervisor.raw() > 0 && read.generation < u64::MAX);
        assert!(
            !read.socket_name.contains('/')
                && !read.socket_name.contains(char::is_control)
                && !read.socket_name.is_empty()
        );
        let written = read.to_string();
        let again = Record::parse(&written).expect("a record");
        let command = record::one_line(&read.command);
        assert_eq!(again, Record { command, ..read });
    }
}

/// The command line, its words divided by NUL: a request that can be carried out, or one line that says
/// why not.
pub fn arguments(data: &[u8]) {
    let words: Vec<OsString> = data.split(|&b| b == 0).map(|word| OsString::from_vec(word.to_vec())).collect();
    match cli::parse(words.clone()) {
        Ok(cli) => match cli.request {
            Request::Run(run) => {
                assert!(!run.command[0].is_empty());
                // What follows the options is the server's, to the last word.
                let own = run.command.strip_prefix(&[OsString::from("node")]).unwrap_or(&run.command);
                assert!(words.ends_with(&run.command) || words.ends_with(own));
                for time in [run.drain, run.kill_after].into_iter().chain(run.ready_timeout) {
                    assert!(time.as_secs() <= 31_536_000);
                }
            }
            Request::Reload(targets, _) | Request::Takedown(targets) | Request::Decide(targets, _) => {
                assert!(!targets.is_empty())
            }
            Request::Status(targets, _) => {
                for target in targets {
                    if let cli::Target::At(address) = target {
                        assert_eq!(Address::parse(&address.to_string()), Ok(address));
                    }
                }
            }
            Request::Client(name) => assert_eq!(name, "node"),
            Request::Help | Request::Version => {}
        },
        Err(error) => {
            assert_eq!(error.status, 125);
            assert!(error.text.contains("nothing was done"), "{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    /// Every input that is kept: what libFuzzer once found interesting, or broken.
    fn corpus(target: &str) -> Vec<PathBuf> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn every_kept_input_holds_what_its_target_asks() {
        for (name, target) in ALL {
            let files = corpus(name);
            assert!(files.len() >= 10, "{name}: {} inputs", files.len());
            for file in files {
                eprintln!("{}", file.display());
                target(&std::fs::read(file).unwrap());
            }
        }
    }

    /// And each of them with every byte changed or left out, cut off anywhere, and twice.
    #[test]
    fn every_neighbour_of_a_kept_input_holds_it_too() {
        for (name, target) in ALL {
            for file in corpus(name) {
                let input = std::fs::read(&file).unwrap();
                for at in 0..input.len().min(400) {
                    let (before, after) = (&input[..at], &input[at + 1..]);
                    target(before);
                    target(&[before, after].concat());
                    for byte in [0, b'\n', b'\r', b' ', b':', b'0', b'9', 0x7f, 0xff, input[at] ^ 0x20] {
                        target(&[before, &[byte], after].concat());
                    }
                }
                target(&[&input[..], &input].concat());
            }
        }
    }

    /// The list above is that of the fuzz targets.
    #[test]
    fn every_target_has_its_program() {
        for (name, _) in ALL {
            let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fuzz/fuzz_targets/{name}.rs"));
            assert!(std::fs::read_to_string(program).unwrap().contains(&format!("targets::{name}(data)")));
        }
    }
}
