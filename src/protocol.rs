//! The words of the control channel and of the peer protocol: lines to words, words to lines. Pure; it decides nothing.
//! serverswap(7) is the reference.

#![forbid(unsafe_code)]

mod lines;

#[cfg(test)]
pub use lines::LINE_MAX;
pub use lines::{Splitter, line_of};

use crate::address::Address;
use std::fmt;

/// Version of the peer protocol. A peer of another version is talked to all the same, and the later one
/// speaks as the earlier one does: words keep their meanings and arguments, what follows the version is
/// ignored, and unknown words change nothing: a supervisor answers them with ERROR, its peer ignores them.
/// What every version says is kept in `tests/peers`.
pub const PEER_VERSION: u32 = 1;

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

/// With which environment, and in which working directory, a reload starts the new server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surroundings {
    /// With those of its supervisor.
    Own,
    /// `--fresh`: with those of the caller of `--reload`.
    Callers,
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
    Reload(Surroundings),
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
    /// How many of the listeners, from the first one on, are of servers that it replaced itself and that still drain.
    Draining(usize),
    /// The claim waits, and for what.
    Waits(String),
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
    /// What was said of the new server of a reload, which failed.
    Said(String),
    /// The reload failed: exit status of the new server, reason.
    Failed(u8, String),
    /// A field of the status: key, value.
    Field(String, String),
    /// End of the status.
    End,
    /// A line was not understood.
    Error(String),
}

/// What a copy that was started for a reload says to its front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyWord {
    /// Its swap is done.
    Done,
    /// The copy is asked for a reload: its number for the peer that waits for it, or 0 if none does; and the pid of the
    /// process whose environment the new server is to have, or 0 if it is that of the front.
    Reload(u64, u32),
    /// For the service manager (sd_notify(3)).
    Notify(String),
    /// Its server: pid, and when that started (proc_pid_stat(5)).
    Server(u32, u64),
    /// Its server is on its way out, and is reloaded no more.
    Leaves,
    /// What is said of its server, which failed.
    Said(String),
}

/// What a front says to a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrontWord {
    /// The reload is done: the number that the copy gave in RELOAD.
    Reloaded(u64),
    /// What was said of the new server, which failed: that number, the text.
    Said(u64, String),
    /// The reload failed: that number, exit status of the new server, reason.
    Failed(u64, u8, String),
    /// Another copy serves in its place.
    Superseded,
    /// How often the front was told to stop; `true`: the last time by the terminal, which signals the server too.
    Stop(u32, bool),
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

/// A status and a reason.
fn failed(argument: Option<&str>) -> Result<(u8, String), String> {
    let (status, reason) = split(argument.unwrap_or(""));
    let status = status.parse().map_err(|_| "bad status".to_owned())?;
    Ok((status, reason.unwrap_or("").to_owned()))
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
            "RELOAD" if argument == Some("FRESH") => Ok(PeerWord::Reload(Surroundings::Callers)),
            "RELOAD" => nothing(argument, PeerWord::Reload(Surroundings::Own)),
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
            "DRAINING" => number(argument).map(HolderWord::Draining),
            "WAITS" => Ok(HolderWord::Waits(text())),
            "LOCKED" => nothing(argument, HolderWord::Locked),
            "JOINS" => number(argument).map(HolderWord::Joins),
            "RELEASED" => address(argument).map(HolderWord::Released),
            "REFUSED" => Ok(HolderWord::Refused(text())),
            "GONE" => nothing(argument, HolderWord::Gone),
            "RELOADED" => nothing(argument, HolderWord::Reloaded),
            "SAID" => Ok(HolderWord::Said(text())),
            "FAILED" => failed(argument).map(|(status, why)| HolderWord::Failed(status, why)),
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

impl Word for CopyWord {
    fn parse(line: &str) -> Result<CopyWord, String> {
        let (word, argument) = split(line);
        match word {
            "DONE" => nothing(argument, CopyWord::Done),
            "RELOAD" => {
                let (peer, caller) = split(argument.unwrap_or(""));
                Ok(CopyWord::Reload(number(Some(peer))?, number(caller)?))
            }
            "NOTIFY" => Ok(CopyWord::Notify(argument.unwrap_or("").to_owned())),
            "SERVER" => {
                let (pid, start) = split(argument.unwrap_or(""));
                Ok(CopyWord::Server(number(Some(pid))?, number(start)?))
            }
            "LEAVES" => nothing(argument, CopyWord::Leaves),
            "SAID" => Ok(CopyWord::Said(argument.unwrap_or("").to_owned())),
            _ => unknown(),
        }
    }
}

impl Word for FrontWord {
    fn parse(line: &str) -> Result<FrontWord, String> {
        let (word, argument) = split(line);
        match word {
            "RELOADED" => number(argument).map(FrontWord::Reloaded),
            "FAILED" => {
                let (peer, rest) = split(argument.unwrap_or(""));
                let (status, why) = failed(rest)?;
                Ok(FrontWord::Failed(number(Some(peer))?, status, why))
            }
            "SAID" => {
                let (peer, text) = split(argument.unwrap_or(""));
                Ok(FrontWord::Said(number(Some(peer))?, text.unwrap_or("").to_owned()))
            }
            "SUPERSEDED" => nothing(argument, FrontWord::Superseded),
            "STOP" => {
                let (times, from_terminal) = split(argument.unwrap_or(""));
                Ok(FrontWord::Stop(number(Some(times))?, number::<u8>(from_terminal)? == 1))
            }
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
            PeerWord::Reload(Surroundings::Own) => f.write_str("RELOAD"),
            PeerWord::Reload(Surroundings::Callers) => f.write_str("RELOAD FRESH"),
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
            HolderWord::Draining(count) => write!(f, "DRAINING {count}"),
            HolderWord::Waits(text) => write!(f, "WAITS {text}"),
            HolderWord::Locked => f.write_str("LOCKED"),
            HolderWord::Joins(backlog) => write!(f, "JOINS {backlog}"),
            HolderWord::Released(a) => write!(f, "RELEASED {a}"),
            HolderWord::Refused(text) => write!(f, "REFUSED {text}"),
            HolderWord::Gone => f.write_str("GONE"),
            HolderWord::Reloaded => f.write_str("RELOADED"),
            HolderWord::Said(text) => write!(f, "SAID {text}"),
            HolderWord::Failed(status, text) => write!(f, "FAILED {status} {text}"),
            HolderWord::Field(key, value) => write!(f, "FIELD {key} {value}"),
            HolderWord::End => f.write_str("END"),
            HolderWord::Error(text) => write!(f, "ERROR {text}"),
        }
    }
}

impl fmt::Display for CopyWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyWord::Done => f.write_str("DONE"),
            CopyWord::Reload(peer, caller) => write!(f, "RELOAD {peer} {caller}"),
            CopyWord::Notify(text) => write!(f, "NOTIFY {text}"),
            CopyWord::Server(pid, start) => write!(f, "SERVER {pid} {start}"),
            CopyWord::Leaves => f.write_str("LEAVES"),
            CopyWord::Said(text) => write!(f, "SAID {text}"),
        }
    }
}

impl fmt::Display for FrontWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrontWord::Reloaded(peer) => write!(f, "RELOADED {peer}"),
            FrontWord::Said(peer, text) => write!(f, "SAID {peer} {text}"),
            FrontWord::Failed(peer, status, text) => write!(f, "FAILED {peer} {status} {text}"),
            FrontWord::Superseded => f.write_str("SUPERSEDED"),
            FrontWord::Stop(times, from_terminal) => write!(f, "STOP {times} {}", u8::from(*from_terminal)),
        }
    }
}

#[cfg(test)]
mod tests;
