//! What the files of the run directory say: the pid in a pidfile, the record of a server. Pure. Nothing in a file is
//! believed here; the caller compares it with the system.

#![forbid(unsafe_code)]

use crate::sys::namespace::Namespaces;
use crate::sys::pid::Pid;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;

/// First line of a record. A record with another first line, of a later version, is left alone: see [`Record::parse`].
pub const VERSION: &str = "serverswap 1";
/// Longest command line for people in a record.
const COMMAND_MAX: usize = 4096;
/// Longest command line of a supervisor in a record, as it stands there.
const ARGS_MAX: usize = 512 * 1024;
/// Most pids of replaced servers in a record, and most inodes.
const LIST_MAX: usize = 500;
/// Every server is its predecessor's number plus one: there is always one more.
const GENERATION_MAX: u64 = u64::MAX / 2;

/// The record of a server: a line for its version, then a key and a value in each line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Main process of the server.
    pub pid: Pid,
    /// Start time of the main process.
    pub start: u64,
    /// The session of the main process, if its supervisor is not in it.
    pub session: Option<i32>,
    /// The boot that the start time counts from.
    pub boot: String,
    /// Its supervisor, alive or not.
    pub supervisor: Pid,
    /// The namespaces of the supervisor.
    pub namespaces: Namespaces,
    /// Its generation.
    pub generation: u64,
    /// Name of its control socket in the run directory.
    pub socket_name: String,
    /// Command line for people.
    pub command: String,
    /// How its supervisor was started; `None` if that was too long.
    pub call: Option<Call>,
    /// Whose new connections of shared ports it got in its last switch.
    pub olds: Olds,
    /// Inodes of the UDP sockets at fixed ports that the server had when it came up.
    pub datagrams: Vec<u32>,
}

/// Older servers, by their main processes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Olds {
    /// Those that it replaced.
    pub replaced: Vec<Pid>,
    /// Those beside which it is on trial: they are to have their connections again (`--canary`, `--hold`).
    pub kept: Vec<Pid>,
}

/// How a supervisor was started: a caretaker in its place is started in the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its arguments, without the name of the program.
    pub args: Vec<OsString>,
    /// Its working directory: by its logical path, so that a link that points elsewhere by then is followed again.
    pub dir: PathBuf,
}

impl Call {
    /// How this process was started: its directory may be gone later.
    pub fn own() -> Option<Call> {
        static OWN: OnceLock<Option<Call>> = OnceLock::new();
        let own = || {
            let dir = std::env::current_dir().ok()?;
            let dir = logical(dir, std::env::var_os("PWD"));
            Some(Call { args: std::env::args_os().skip(1).collect(), dir })
        };
        OWN.get_or_init(own).clone()
    }

    fn parse(args: &str, dir: &str) -> Option<Call> {
        let args = args.split(' ').filter(|word| !word.is_empty()).map(unescape).collect::<Option<_>>()?;
        Some(Call { args, dir: unescape(dir)?.into() })
    }
}

/// The logical path of a directory, if `$PWD` holds it, as a shell sets it (pwd(1)).
pub fn logical(dir: PathBuf, pwd: Option<OsString>) -> PathBuf {
    let id = |path: &PathBuf| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let is_it = |pwd: &PathBuf| pwd.is_absolute() && id(pwd).is_some_and(|it| Some(it) == id(&dir));
    pwd.map(PathBuf::from).filter(is_it).unwrap_or(dir)
}

/// A word without a space or a control character: other bytes stand as `%` and two digits, and nothing at all as `%00`.
fn escape(word: &OsStr) -> String {
    let byte = |b: &u8| match b {
        b'%' => "%25".to_owned(),
        b if b.is_ascii_graphic() => char::from(*b).to_string(),
        b => format!("%{b:02x}"),
    };
    let text: String = word.as_bytes().iter().map(byte).collect();
    if text.is_empty() { "%00".into() } else { text }
}

fn unescape(text: &str) -> Option<OsString> {
    let mut parts = text.as_bytes().split(|byte| *byte == b'%');
    let mut bytes = parts.next()?.to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        let byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        bytes.extend(Some(byte).filter(|byte| *byte != 0));
        bytes.extend(rest);
    }
    Some(OsString::from_vec(bytes))
}

impl Record {
    /// A record of which nothing is known but the main process of the server.
    pub fn of(pid: Pid, start: u64) -> Record {
        Record {
            pid,
            start,
            session: None,
            boot: String::new(),
            supervisor: Pid::own(),
            namespaces: Namespaces::default(),
            generation: 0,
            socket_name: String::new(),
            command: String::new(),
            call: None,
            olds: Olds::default(),
            datagrams: Vec::new(),
        }
    }

    /// Reads a record. Unknown keys, of a later version, are ignored.
    pub fn parse(text: &str) -> Option<Record> {
        let field = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
        let list = |key: &str| field(key).unwrap_or("").split(' ');
        if text.lines().next() != Some(VERSION) {
            return None;
        }
        Some(Record {
            pid: parse_number(field("pid")?)?,
            start: field("start")?.parse().ok()?,
            session: field("session").and_then(parse_number).map(Pid::raw),
            boot: field("boot").filter(|id| !id.contains(char::is_control))?.to_owned(),
            supervisor: parse_number(field("supervisor")?)?,
            namespaces: Namespaces {
                pid: field("pidns").and_then(|id| id.parse().ok()),
                net: field("netns").and_then(|id| id.parse().ok()),
            },
            generation: field("generation")?.parse().ok().filter(|&number| number <= GENERATION_MAX)?,
            // A name in the run directory, and nothing else.
            socket_name: field("socket").filter(|name| !name.is_empty() && !name.contains(is_no_name))?.to_owned(),
            command: field("command").unwrap_or("").to_owned(),
            call: field("dir").and_then(|dir| Call::parse(field("args").unwrap_or(""), dir)),
            olds: Olds {
                replaced: list("replaced").filter_map(parse_number).take(LIST_MAX).collect(),
                kept: list("kept").filter_map(parse_number).take(LIST_MAX).collect(),
            },
            datagrams: list("datagrams").filter_map(|inode| inode.parse().ok()).take(LIST_MAX).collect(),
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { pid, start, boot, supervisor, generation, socket_name, olds, datagrams, .. } = self;
        writeln!(f, "{VERSION}\npid {pid}\nstart {start}\nboot {boot}\nsupervisor {supervisor}")?;
        writeln!(f, "generation {generation}\nsocket {socket_name}\ncommand {}", one_line(&self.command))?;
        if let Some(Call { args, dir }) = &self.call {
            let words: Vec<String> = args.iter().map(|word| escape(word)).collect();
            let args = words.join(" ");
            if args.len() <= ARGS_MAX {
                writeln!(f, "args {args}\ndir {}", escape(dir.as_os_str()))?;
            }
        }
        let Namespaces { pid, net } = self.namespaces;
        let more = [
            ("pidns", list(pid)),
            ("netns", list(net)),
            ("session", list(self.session)),
            ("replaced", list(&olds.replaced)),
            ("kept", list(&olds.kept)),
            ("datagrams", list(datagrams)),
        ];
        for (key, values) in more.into_iter().filter(|(_, values)| !values.is_empty()) {
            writeln!(f, "{key} {values}")?;
        }
        Ok(())
    }
}

/// Values as they stand in one line; none at all for a line that is left out.
fn list(values: impl IntoIterator<Item: fmt::Display>) -> String {
    let values: Vec<String> = values.into_iter().take(LIST_MAX).map(|value| value.to_string()).collect();
    values.join(" ")
}

fn is_no_name(c: char) -> bool {
    c == '/' || c.is_control()
}

/// The pid in a pidfile.
pub fn parse_pid(text: &str) -> Option<Pid> {
    parse_number(text.strip_suffix('\n')?)
}

/// A pid in digits and nothing else.
pub fn parse_number(text: &str) -> Option<Pid> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    Pid::new(text.parse().ok().filter(|_| digits)?)
}

/// A command line as it stands in a record.
pub fn one_line(command: &str) -> String {
    let mut line: String = command.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    while line.len() > COMMAND_MAX {
        line.pop();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_argument_and_any_folder_come_back_as_they_were() {
        let bytes = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let all: Vec<u8> = (1..=255).collect();
        let args = vec![bytes(b"-d"), bytes(b""), bytes(b"a b"), bytes(b"100%"), bytes(b"%00\nx 1"), bytes(&all)];
        for call in [Call { args, dir: "/a b/\n".into() }, Call { args: Vec::new(), dir: "/".into() }] {
            let words: Vec<String> = call.args.iter().map(|word| escape(word)).collect();
            let line = words.join(" ");
            assert!(line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{line}");
            assert_eq!(Call::parse(&line, &escape(call.dir.as_os_str())), Some(call));
        }
        for torn in ["%", "a%1", "%zz"] {
            assert_eq!(Call::parse(torn, "/"), None);
        }
    }
}
