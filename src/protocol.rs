//! The words of the control channel and of the peer protocol: lines to words, words to lines. Pure; it decides nothing.
//! serverswap(7) is the reference.

#![forbid(unsafe_code)]

mod lines;

#[cfg(test)]
pub use lines::LINE_MAX;
pub use lines::{Splitter, line_of};

use crate::address::Address;
use std::fmt;
use std::str::FromStr;

/// Version of the peer protocol. A peer of another version is talked to all the same, and the later one
/// speaks as the earlier one does: words keep their meanings and arguments, what follows the version is
/// ignored, and unknown words change nothing: a supervisor answers them with ERROR, its peer ignores them.
/// What every version says is kept in `tests/peers`.
pub const PEER_VERSION: Version = Version(1);

/// A version of the peer protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// With which environment, and in which working directory, a reload starts the new server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Surroundings {
    /// With those of its supervisor.
    Own,
    /// `--fresh`: with those of the caller of `--reload`.
    Callers,
}

impl fmt::Display for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Surroundings::Callers { "FRESH" } else { "" })
    }
}

/// A word that can be read from a line. The error is the text for an ERROR line.
pub trait Word: Sized {
    /// Reads one line (without its LF).
    fn parse(line: &str) -> Result<Self, String>;
}

/// What stands behind a word. Of several such parts each ends at a space, and the last one is all that is left.
trait Part: Sized + fmt::Display {
    /// `None`: it is missing. The error is the text for an ERROR line.
    fn read(text: Option<&str>) -> Result<Self, String>;

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " {self}")
    }
}

impl Part for Address {
    fn read(text: Option<&str>) -> Result<Address, String> {
        Address::parse(text.ok_or("an address is missing")?).map_err(|why| format!("bad address: {why}"))
    }
}

impl Part for String {
    fn read(text: Option<&str>) -> Result<String, String> {
        Ok(text.unwrap_or("").to_owned())
    }
}

impl Part for bool {
    fn read(text: Option<&str>) -> Result<bool, String> {
        number::<u8>(text, "bad number").map(|number| number == 1)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " {}", u8::from(*self))
    }
}

impl Part for Surroundings {
    fn read(text: Option<&str>) -> Result<Surroundings, String> {
        match text {
            None => Ok(Surroundings::Own),
            Some("FRESH") => Ok(Surroundings::Callers),
            Some(_) => Err("bad argument".into()),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Surroundings::Callers { write!(f, " {self}") } else { Ok(()) }
    }
}

impl Part for Version {
    /// A later one may have more to say of itself behind it.
    fn read(text: Option<&str>) -> Result<Version, String> {
        number(text.and_then(|text| text.split(' ').next()), "bad version").map(Version)
    }
}

fn number<T: FromStr>(text: Option<&str>, bad: &str) -> Result<T, String> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| bad.to_owned())
}

/// Parts that are numbers, and what is said of one that is none.
macro_rules! numbers {
    ($($number:ident: $bad:literal,)+) => {
        $(
            impl Part for $number {
                fn read(text: Option<&str>) -> Result<$number, String> {
                    number(text, $bad)
                }
            }
        )+
    };
}

numbers! { u8: "bad status", u32: "bad number", u64: "bad number", i32: "bad number", usize: "bad number", }

/// Defines what can be said in one direction: each word with its parts, and how it is written.
macro_rules! words {
    ($(
        $(#[$about:meta])*
        pub enum $name:ident {
            $($(#[$meaning:meta])* $word:ident$(($($part:ident: $type:ty),+))? = $text:literal,)+
        }
    )+) => {
        $(
            $(#[$about])*
            #[derive(Debug, Clone, PartialEq, Eq, Hash)]
            pub enum $name {
                $($(#[$meaning])* $word$(($($type),+))?,)+
            }

            impl Word for $name {
                fn parse(line: &str) -> Result<$name, String> {
                    let (word, rest) = line.split_once(' ').map_or((line, None), |(word, rest)| (word, Some(rest)));
                    match word {
                        $($text => {
                            let count = <[&str]>::len(&[$($(stringify!($part)),+)?]).max(1);
                            let mut parts = rest.into_iter().flat_map(|rest| rest.splitn(count, ' '));
                            let said = $name::$word$(($(<$type>::read(parts.next())?),+))?;
                            // Only a word without parts has any left.
                            if parts.next().is_none() { Ok(said) } else { Err("this word takes no argument".into()) }
                        })+
                        _ => Err("unknown word".into()),
                    }
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    match self {
                        $($name::$word$(($($part),+))? => {
                            f.write_str($text)?;
                            $($($part.write(f)?;)+)?
                        })+
                    }
                    Ok(())
                }
            }
        )+
    };
}

words! {
    /// What a server says to its supervisor.
    pub enum ServerWord {
        /// Everything is initialised; all that is left is to bind the address.
        Ready(address: Address) = "READY",
        /// I take the address down myself: tell me instead of signalling me.
        Takedown(address: Address) = "TAKEDOWN",
        /// I no longer listen on the address.
        Released(address: Address) = "RELEASED",
        /// I serve: do not wait for quiet.
        Up = "UP",
        /// I will not make it; the reason may be empty.
        Fail(text: String) = "FAIL",
    }

    /// What a supervisor says to its server.
    pub enum SupervisorWord {
        /// Bind the address now.
        Go(address: Address) = "GO",
        /// Stop listening on the address, finish what you have, exit when done.
        Takedown(address: Address) = "TAKEDOWN",
        /// A line was not understood; it changed nothing.
        Error(text: String) = "ERROR",
    }

    /// What another serverswap (a new supervisor, or the command line) says to a supervisor.
    pub enum PeerWord {
        /// First line of every peer: the version it speaks.
        Peer(version: Version) = "PEER",
        /// A new server wants what yours serves: queue me for its lock.
        Claim = "CLAIM",
        /// With the lock: take this address down.
        Takedown(address: Address) = "TAKEDOWN",
        /// With the lock, after the switch of a shared port: let the server finish what it has, then stop it.
        Drain = "DRAIN",
        /// The switch is turned back: drain no more.
        Stay = "STAY",
        /// With the lock: the new connections of your server go to mine, and yours is kept. Who waits is to look again.
        Held = "HELD",
        /// With the lock: stop the server, even if it still has addresses.
        Stop = "STOP",
        /// A newer server has the connections of yours, whoever has claimed yours; `true`: the time for its drain is up.
        Superseded(hurry: bool) = "SUPERSEDED",
        /// The result of the oldest unanswered `Joins`: 0, or an errno.
        Joined(number: i32) = "JOINED",
        /// `--takedown`: one of the addresses to take down.
        Down(address: Address) = "DOWN",
        /// `--takedown`: that was all of them, do it.
        Commit = "COMMIT",
        /// `--undo`: the old server is to have all connections again.
        Undo = "UNDO",
        /// `--commit`: nobody goes back to the old server.
        Confirm = "CONFIRM",
        /// `--reload`.
        Reload(surroundings: Surroundings) = "RELOAD",
        /// `--status`.
        Status = "STATUS",
    }

    /// What a supervisor says to another serverswap.
    pub enum HolderWord {
        /// First line of the answer: the version it speaks.
        Peer(version: Version) = "PEER",
        /// An address that the server has; all of them come before `Locked`.
        Holds(address: Address) = "HOLDS",
        /// In the first such line, the number of listeners that the server has. In each later line, the number of listeners that
        /// come with it as files. All of them come before `Locked`.
        Sockets(count: usize) = "SOCKETS",
        /// For each of the listeners that come next a letter: `s`, it is the server's; `d`, it is that of an older one, which
        /// drains behind the server. A capital: those of one place come in the order in which they have joined.
        Order(letters: String) = "ORDER",
        /// The claim waits, and for what.
        Waits(why: String) = "WAITS",
        /// The server is yours to replace, and nobody else's until you are done.
        Locked = "LOCKED",
        /// The server opens a listener, which comes as a file: call listen(2) on it with this backlog, and say
        /// `Joined`. The side that steers the port has to know the order in which its sockets have joined.
        Joins(number: i32) = "JOINS",
        /// The server has let go of the address.
        Released(address: Address) = "RELEASED",
        /// What was asked for is not done, for this reason. Nothing has changed.
        Refused(text: String) = "REFUSED",
        /// What was asked for is done.
        Done = "DONE",
        /// The server is gone, or a newer one has its place: look again who has the address.
        Gone = "GONE",
        /// The reload is done.
        Reloaded = "RELOADED",
        /// What was said of the new server of a reload, which failed.
        Said(text: String) = "SAID",
        /// The reload failed: exit status of the new server, reason.
        Failed(status: u8, why: String) = "FAILED",
        /// A field of the status: key, value.
        Field(key: String, value: String) = "FIELD",
        /// End of the status.
        End = "END",
        /// A line was not understood.
        Error(text: String) = "ERROR",
    }

    /// What a copy that was started for a reload says to its front.
    pub enum CopyWord {
        /// Its swap is done.
        Done = "DONE",
        /// Its server has all new connections, and the old one is kept.
        Held = "HELD",
        /// Its server is replaced before those that it has replaced itself are gone.
        Passed = "PASSED",
        /// The copy is asked for a reload: its number for the peer that waits for it, or 0 if none does; and the pid of the
        /// process whose environment the new server is to have, or 0 if it is that of the front.
        Reload(peer: u64, caller: u32) = "RELOAD",
        /// For the service manager (sd_notify(3)).
        Notify(text: String) = "NOTIFY",
        /// Its server: pid, and when that started (proc_pid_stat(5)).
        Server(pid: u32, start: u64) = "SERVER",
        /// Its server is on its way out, and is reloaded no more.
        Leaves = "LEAVES",
        /// What is said of its server, which failed.
        Said(text: String) = "SAID",
    }

    /// What a front says to a copy.
    pub enum FrontWord {
        /// The reload is done: the number that the copy gave in RELOAD.
        Reloaded(peer: u64) = "RELOADED",
        /// What was said of the new server, which failed: that number, the text.
        Said(peer: u64, text: String) = "SAID",
        /// The reload failed: that number, exit status of the new server, reason.
        Failed(peer: u64, status: u8, why: String) = "FAILED",
        /// Another copy serves in its place.
        Superseded = "SUPERSEDED",
        /// How often the front was told to stop; `true`: the last time by the terminal, which signals the server too.
        Stop(times: u32, from_terminal: bool) = "STOP",
    }
}

#[cfg(test)]
mod tests;
