//! A conversation with a supervisor.

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::finder::Holder;
use crate::protocol::{HolderWord, PEER_VERSION, PeerWord, Splitter, Word, line_of};
use crate::swap::ADDRESSES_MAX;
use crate::sys::socket;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a supervisor may take to accept a word, and to say its whole status.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// Most fields of a status that are kept: a later version may send more than this one knows.
const FIELDS_MAX: usize = 64;

/// A conversation with a supervisor.
pub struct Conversation {
    stream: UnixStream,
    splitter: Splitter,
    words: VecDeque<HolderWord>,
    /// When the conversation ends, whatever the supervisor still says.
    until: Option<Instant>,
}

impl Conversation {
    /// Begins a conversation with the supervisor of a server.
    pub fn with(holder: &Holder) -> io::Result<Conversation> {
        let stream = socket::connect_to(&holder.socket, holder.owner, Some(STATUS_PATIENCE))?;
        let supervisor = Conversation { stream, splitter: Splitter::default(), words: VecDeque::new(), until: None };
        supervisor.say(&PeerWord::Peer(PEER_VERSION))?;
        Ok(supervisor)
    }

    /// Nothing is waited for any longer than this.
    pub fn ends_after(&mut self, time: Duration) {
        self.until = Some(Instant::now() + time);
    }

    /// Says a word.
    pub fn say(&self, word: &PeerWord) -> io::Result<()> {
        (&self.stream).write_all(&line_of(word))
    }

    /// The next word, as [`Conversation::hear`] gives it; `meanwhile` is called every second.
    pub fn hear_while(&mut self, meanwhile: impl Fn()) -> io::Result<Option<HolderWord>> {
        loop {
            self.until = Some(Instant::now() + Duration::from_secs(1));
            match self.hear() {
                Err(e) if matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => meanwhile(),
                heard => return heard,
            }
        }
    }

    /// The next word; `None` when the supervisor has closed the connection.
    pub fn hear(&mut self) -> io::Result<Option<HolderWord>> {
        let mut buffer = [0; 1024];
        loop {
            if let Some(word) = self.words.pop_front() {
                return Ok(Some(word));
            }
            if let Some(until) = self.until {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                self.stream.set_read_timeout(Some(left))?;
            }
            let len = match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(len) => len,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            let lines = self.splitter.push(&buffer[..len]).into_iter().flatten();
            self.words.extend(lines.filter_map(|line| HolderWord::parse(&line).ok()));
        }
    }
}

/// What its supervisor says of a server: the fields of its status, and the addresses that it has.
pub fn ask_status(holder: &Holder) -> (BTreeMap<String, String>, Vec<Address>) {
    let (mut fields, mut holds) = (BTreeMap::new(), Vec::new());
    let mut ask = || -> io::Result<()> {
        let mut supervisor = Conversation::with(holder)?;
        supervisor.until = Some(Instant::now() + STATUS_PATIENCE);
        supervisor.say(&PeerWord::Status)?;
        while let Some(word) = supervisor.hear()? {
            match word {
                HolderWord::Field(key, value) if fields.len() < FIELDS_MAX => drop(fields.insert(key, value)),
                HolderWord::End => break,
                HolderWord::Holds(address) if holds.len() < ADDRESSES_MAX => holds.push(address),
                HolderWord::Peer(_)
                | HolderWord::Field(..)
                | HolderWord::Holds(_)
                | HolderWord::Sockets(_)
                | HolderWord::Order(_)
                | HolderWord::Locked
                | HolderWord::Joins(_)
                | HolderWord::Released(_)
                | HolderWord::Refused(_)
                | HolderWord::Gone
                | HolderWord::Done
                | HolderWord::Reloaded
                | HolderWord::Said(_)
                | HolderWord::Waits(_)
                | HolderWord::Failed(..)
                | HolderWord::Error(_) => {}
            }
        }
        Ok(())
    };
    if !holder.is_orphan {
        // A supervisor that does not answer shows in the table.
        let _ = ask();
    }
    (fields, holds)
}
