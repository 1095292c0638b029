//! The words of the control channel and of the peer protocol: bytes to lines, lines to words, words
//! to lines. Pure; it decides nothing.
//!
//! A line is an upper-case word, a space, an argument, LF (a CR before it is dropped), at most
//! [`LINE_MAX`] bytes. serverswap(7) is the reference.

#![forbid(unsafe_code)]

use crate::address::Address;
use std::fmt;

/// Longest line in bytes, LF included.
pub const LINE_MAX: usize = 1024;

/// Version of the peer protocol. A peer of another version is talked to all the same, and the later one
/// speaks as the earlier one does: words keep their meanings and arguments, what follows the version is
/// ignored, and unknown words are answered with ERROR by a supervisor, ignored by who asked it, and change
/// nothing. What every version says is kept in `tests/peers`.
pub const PEER_VERSION: u32 = 1;

/// Cuts a byte stream into lines, in constant memory whatever arrives.
#[derive(Default)]
pub struct Splitter {
    partial: Vec<u8>,
    skipping: bool,
}

impl Splitter {
    /// Takes the bytes that were read and returns the lines that they complete. An `Err` is the text of the ERROR line that
    /// answers a malformed line. What follows the last LF waits for the next call.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Result<String, &'static str>> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            let complete = piece.ends_with(b"\n");
            if !self.skipping {
                self.partial.extend_from_slice(piece);
                // Without its LF a line may be one byte short of the limit and no longer.
                if self.partial.len() > LINE_MAX || (!complete && self.partial.len() == LINE_MAX) {
                    lines.push(Err("line too long"));
                    self.skipping = true;
                }
            }
            if complete {
                if !self.skipping {
                    lines.push(text_of(&self.partial));
                }
                self.partial.clear();
                self.skipping = false;
            } else if self.skipping {
                self.partial.clear();
            }
        }
        lines
    }
}

fn text_of(line: &[u8]) -> Result<String, &'static str> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match std::str::from_utf8(line) {
        Err(_) => Err("not UTF-8"),
        Ok("") => Err("empty line"),
        Ok(text) if text.chars().any(char::is_control) => Err("control character in line"),
        Ok(text) => Ok(text.to_owned()),
    }
}

/// What a server says to its supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerWord {
    /// Everything is initialised; all that is left is to bind the address.
    Ready(Address),
    /// I take the address down myself: tell me instead of signalling me.
    Takedown(Address),
    /// I no longer listen on the address.
    Released(Address),
    /// I serve: do not wait for quiet.
    Up,
    /// I will not make it; the reason may be empty.
    Fail(String),
}

/// What a supervisor says to its server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SupervisorWord {
    /// Bind the address now.
    Go(Address),
    /// Stop listening on the address, finish what you have, exit when done.
    Takedown(Address),
    /// A line was not understood; it changed nothing.
    Error(String),
}

/// What another serverswap (a new supervisor, or the command line) says to a supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerWord {
    /// First line of every peer: the version it speaks.
    Peer(u32),
    /// A new server wants what yours serves: queue me for its lock.
    Claim,
    /// With the lock: take this address down.
    Takedown(Address),
    /// With the lock, after the switch of a shared port: let the server finish what it has, then stop it.
    Drain,
    /// The switch is turned back: drain no more.
    Stay,
    /// With the lock: stop the server, even if it still has addresses.
    Stop,
    /// The result of the oldest unanswered `Joins`: 0, or an errno.
    Joined(i32),
    /// `--takedown`: one of the addresses to take down.
    Down(Address),
    /// `--takedown`: that was all of them, do it.
    Commit,
    /// `--reload`.
    Reload,
    /// `--status`.
    Status,
}

/// What a supervisor says to another serverswap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HolderWord {
    /// First line of the answer: the version it speaks.
    Peer(u32),
    /// An address that the server has; all of them come before `Locked`.
    Holds(Address),
    /// In the first such line, the number of listeners that the server has. In each later line, the number of listeners that
    /// come with it as files. All of them come before `Locked`.
    Sockets(usize),
    /// The server is yours to replace, and nobody else's until you are done.
    Locked,
    /// The server opens a listener, which comes as a file: call listen(2) on it with this backlog, and say
    /// `Joined`. The side that steers the port has to know the order in which its sockets have joined.
    Joins(i32),
    /// The server has let go of the address.
    Released(Address),
    /// What was asked for is not done, for this reason. Nothing has changed.
    Refused(String),
    /// The server is gone.
    Gone,
    /// The reload is done.
    Reloaded,
    /// The reload failed: exit status of the new server, reason.
    Failed(u8, String),
    /// A field of the status: key, value.
    Field(String, String),
    /// End of the status.
    End,
    /// A line was not understood.
    Error(String),
}

/// A word that can be read from a line. The error is the text for an ERROR line.
pub trait Word: Sized {
    /// Reads one line (without its LF).
    fn parse(line: &str) -> Result<Self, String>;
}

fn split(line: &str) -> (&str, Option<&str>) {
    match line.split_once(' ') {
        Some((word, argument)) => (word, Some(argument)),
        None => (line, None),
    }
}

fn address(argument: Option<&str>) -> Result<Address, String> {
    let text = argument.ok_or("an address is missing")?;
    Address::parse(text).map_err(|why| format!("bad address: {why}"))
}

/// The version; a later one may have more to say of itself behind it.
fn version(argument: Option<&str>) -> Result<u32, String> {
    let number = argument.and_then(|text| split(text).0.parse().ok());
    number.ok_or("bad version".into())
}

fn number<T: std::str::FromStr>(argument: Option<&str>) -> Result<T, String> {
    argument.and_then(|text| text.parse().ok()).ok_or("bad number".into())
}

fn nothing<T>(argument: Option<&str>, word: T) -> Result<T, String> {
    match argument {
        None => Ok(word),
        Some(_) => Err("this word takes no argument".into()),
    }
}

fn unknown<T>() -> Result<T, String> {
    Err("unknown word".into())
}

impl Word for ServerWord {
    fn parse(line: &str) -> Result<ServerWord, String> {
        let (word, argument) = split(line);
        match word {
            "READY" => address(argument).map(ServerWord::Ready),
            "TAKEDOWN" => address(argument).map(ServerWord::Takedown),
            "RELEASED" => address(argument).map(ServerWord::Released),
            "UP" => nothing(argument, ServerWord::Up),
            "FAIL" => Ok(ServerWord::Fail(argument.unwrap_or("").to_owned())),
            _ => unknown(),
        }
    }
}

impl Word for PeerWord {
    fn parse(line: &str) -> Result<PeerWord, String> {
        let (word, argument) = split(line);
        match word {
            "PEER" => version(argument).map(PeerWord::Peer),
            "CLAIM" => nothing(argument, PeerWord::Claim),
            "TAKEDOWN" => address(argument).map(PeerWord::Takedown),
            "DRAIN" => nothing(argument, PeerWord::Drain),
            "STAY" => nothing(argument, PeerWord::Stay),
            "STOP" => nothing(argument, PeerWord::Stop),
            "JOINED" => number(argument).map(PeerWord::Joined),
            "DOWN" => address(argument).map(PeerWord::Down),
            "COMMIT" => nothing(argument, PeerWord::Commit),
            "RELOAD" => nothing(argument, PeerWord::Reload),
            "STATUS" => nothing(argument, PeerWord::Status),
            _ => unknown(),
        }
    }
}

impl Word for HolderWord {
    fn parse(line: &str) -> Result<HolderWord, String> {
        let (word, argument) = split(line);
        let text = || argument.unwrap_or("").to_owned();
        match word {
            "PEER" => version(argument).map(HolderWord::Peer),
            "HOLDS" => address(argument).map(HolderWord::Holds),
            "SOCKETS" => number(argument).map(HolderWord::Sockets),
            "LOCKED" => nothing(argument, HolderWord::Locked),
            "JOINS" => number(argument).map(HolderWord::Joins),
            "RELEASED" => address(argument).map(HolderWord::Released),
            "REFUSED" => Ok(HolderWord::Refused(text())),
            "GONE" => nothing(argument, HolderWord::Gone),
            "RELOADED" => nothing(argument, HolderWord::Reloaded),
            "FAILED" => {
                let (status, reason) = split(argument.unwrap_or(""));
                let status = status.parse().map_err(|_| "bad status".to_owned())?;
                Ok(HolderWord::Failed(status, reason.unwrap_or("").to_owned()))
            }
            "FIELD" => {
                let (key, value) = split(argument.unwrap_or(""));
                Ok(HolderWord::Field(key.to_owned(), value.unwrap_or("").to_owned()))
            }
            "END" => nothing(argument, HolderWord::End),
            "ERROR" => Ok(HolderWord::Error(text())),
            _ => unknown(),
        }
    }
}

impl fmt::Display for ServerWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerWord::Ready(a) => write!(f, "READY {a}"),
            ServerWord::Takedown(a) => write!(f, "TAKEDOWN {a}"),
            ServerWord::Released(a) => write!(f, "RELEASED {a}"),
            ServerWord::Up => f.write_str("UP"),
            ServerWord::Fail(text) => write!(f, "FAIL {text}"),
        }
    }
}

impl fmt::Display for SupervisorWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SupervisorWord::Go(a) => write!(f, "GO {a}"),
            SupervisorWord::Takedown(a) => write!(f, "TAKEDOWN {a}"),
            SupervisorWord::Error(text) => write!(f, "ERROR {text}"),
        }
    }
}

impl fmt::Display for PeerWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerWord::Peer(version) => write!(f, "PEER {version}"),
            PeerWord::Claim => f.write_str("CLAIM"),
            PeerWord::Takedown(a) => write!(f, "TAKEDOWN {a}"),
            PeerWord::Drain => f.write_str("DRAIN"),
            PeerWord::Stay => f.write_str("STAY"),
            PeerWord::Stop => f.write_str("STOP"),
            PeerWord::Joined(errno) => write!(f, "JOINED {errno}"),
            PeerWord::Down(a) => write!(f, "DOWN {a}"),
            PeerWord::Commit => f.write_str("COMMIT"),
            PeerWord::Reload => f.write_str("RELOAD"),
            PeerWord::Status => f.write_str("STATUS"),
        }
    }
}

impl fmt::Display for HolderWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HolderWord::Peer(version) => write!(f, "PEER {version}"),
            HolderWord::Holds(a) => write!(f, "HOLDS {a}"),
            HolderWord::Sockets(count) => write!(f, "SOCKETS {count}"),
            HolderWord::Locked => f.write_str("LOCKED"),
            HolderWord::Joins(backlog) => write!(f, "JOINS {backlog}"),
            HolderWord::Released(a) => write!(f, "RELEASED {a}"),
            HolderWord::Refused(text) => write!(f, "REFUSED {text}"),
            HolderWord::Gone => f.write_str("GONE"),
            HolderWord::Reloaded => f.write_str("RELOADED"),
            HolderWord::Failed(status, text) => write!(f, "FAILED {status} {text}"),
            HolderWord::Field(key, value) => write!(f, "FIELD {key} {value}"),
            HolderWord::End => f.write_str("END"),
            HolderWord::Error(text) => write!(f, "ERROR {text}"),
        }
    }
}

/// A word as the bytes of its line: one line whatever its text holds, cut to [`LINE_MAX`].
pub fn line_of(word: &impl fmt::Display) -> Vec<u8> {
    let mut line: String = word.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let mut end = line.len().min(LINE_MAX - 1);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line.push('\n');
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(chunks: &[&[u8]]) -> Vec<Result<String, &'static str>> {
        let mut splitter = Splitter::default();
        chunks.iter().flat_map(|c| splitter.push(c)).collect()
    }

    #[test]
    fn every_word_is_accepted_and_read_back() {
        let a = || Address::parse("127.0.0.1:8080").unwrap();
        for word in [
            ServerWord::Ready(a()),
            ServerWord::Takedown(a()),
            ServerWord::Released(a()),
            ServerWord::Up,
            ServerWord::Fail("no database".into()),
        ] {
            assert_eq!(ServerWord::parse(&word.to_string()), Ok(word));
        }
        for word in [
            PeerWord::Peer(1),
            PeerWord::Claim,
            PeerWord::Takedown(a()),
            PeerWord::Drain,
            PeerWord::Stay,
            PeerWord::Stop,
            PeerWord::Down(a()),
            PeerWord::Commit,
            PeerWord::Reload,
            PeerWord::Status,
        ] {
            assert_eq!(PeerWord::parse(&word.to_string()), Ok(word));
        }
        for word in [
            HolderWord::Peer(1),
            HolderWord::Holds(a()),
            HolderWord::Sockets(2),
            HolderWord::Locked,
            HolderWord::Released(a()),
            HolderWord::Refused("no".into()),
            HolderWord::Gone,
            HolderWord::Reloaded,
            HolderWord::Failed(124, "late".into()),
            HolderWord::Field("state".into(), "serving".into()),
            HolderWord::End,
            HolderWord::Error("unknown word".into()),
        ] {
            assert_eq!(HolderWord::parse(&word.to_string()), Ok(word));
        }
        assert_eq!(ServerWord::parse("FAIL"), Ok(ServerWord::Fail(String::new())));
    }

    #[test]
    fn what_is_no_line_is_answered_and_the_next_line_counts() {
        let long = [b"READY ".as_slice(), &[b'x'; 2000], b"\nUP\n"].concat();
        assert_eq!(lines(&[&long]), [Err("line too long"), Ok("UP".into())]);
        assert_eq!(lines(&[b"\n\r\nUP\r\n"]), [Err("empty line"), Err("empty line"), Ok("UP".into())]);
        assert_eq!(lines(&[b"\xff\nUP\n"]), [Err("not UTF-8"), Ok("UP".into())]);
        assert_eq!(lines(&[b"U\0P\n"]), [Err("control character in line")]);
        assert_eq!(lines(&[b"half"]), []);
    }

    #[test]
    fn the_limit_is_exact() {
        let fits = [vec![b'x'; LINE_MAX - 1], vec![b'\n']].concat();
        assert!(lines(&[&fits])[0].is_ok());
        let over = [vec![b'x'; LINE_MAX], vec![b'\n']].concat();
        assert_eq!(lines(&[&over]), [Err("line too long")]);
    }

    /// Every sequence up to length 5 over a small vocabulary of words, arguments and separators.
    #[test]
    fn all_short_sequences_parse_without_harm() {
        let vocabulary =
            ["READY", "TAKEDOWN", "RELEASED", "UP", "FAIL", "GO", " ", "\n", "\r", ":8080", "x", "0", "\0"];
        let mut sequences = vec![String::new()];
        for _ in 0..5 {
            let mut longer = Vec::with_capacity(sequences.len() * vocabulary.len());
            for s in &sequences {
                for v in vocabulary {
                    longer.push(format!("{s}{v}"));
                }
            }
            for text in &longer {
                let whole = lines(&[format!("{text}\n").as_bytes()]);
                assert_eq!(whole.len(), text.matches('\n').count() + 1);
                for line in whole.into_iter().flatten() {
                    let accepted = match ServerWord::parse(&line) {
                        Ok(word) => line.starts_with(word.to_string().split(' ').next().unwrap()),
                        Err(why) => !why.is_empty(),
                    };
                    assert!(accepted, "{line:?}");
                }
            }
            sequences = longer;
        }
    }

    proptest! {
        #[test]
        fn splitting_the_bytes_anywhere_changes_nothing(bytes in prop::collection::vec(any::<u8>(), 0..3000), cuts in prop::collection::vec(0usize..3000, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.push(0);
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(lines(&chunks), lines(&[&bytes]));
        }

        #[test]
        fn a_written_line_is_one_line(text in ".{0,2000}") {
            let line = line_of(&SupervisorWord::Error(text));
            prop_assert!(line.len() <= LINE_MAX && line.iter().filter(|&&b| b == b'\n').count() == 1);
        }
    }
}
