//! The course of a swap, of both sides, until it is told in the histories of the addresses.

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::history::{Entry, Who};
use crate::message::Log;
use crate::rundir::{Denied, RunDir};
use crate::swap::{ADDRESSES_MAX, Level};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

/// What one supervisor knows of the swaps that its server takes part in.
pub(super) struct Course {
    pub(super) started: Instant,
    pub(super) up: Option<Instant>,
    pub(super) switched: Option<Instant>,
    /// The addresses that our server wanted: the machine forgets them when it gives up.
    pub(super) wanted: BTreeSet<Address>,
    /// Those that an older server had, and which one.
    pub(super) from: BTreeMap<Address, Who>,
    /// The first thing that went wrong, since it was up if it was.
    pub(super) failure: Option<String>,
    /// The addresses for which a newer server has the lock.
    pub(super) granted: Vec<Address>,
    /// When our server was told to go, or began to drain.
    pub(super) leaves: Option<Instant>,
    /// How many busy connections were cut then; `None` if nobody knows.
    pub(super) cut: Option<usize>,
    /// Our server was replaced and is gone: how it went, until it is known what became of its kept connections.
    pub(super) gone: Option<Gone>,
    /// Requests on kept connections of our server that the new one answered, and that nobody did.
    pub(super) kept: (usize, usize),
    /// Lines that are to be written.
    pub(super) lines: VecDeque<(Address, Entry)>,
}

/// How a server went that was replaced.
pub(super) struct Gone {
    pub(super) who: Who,
    pub(super) took: Option<std::time::Duration>,
    pub(super) cut: Option<usize>,
}

impl Default for Course {
    fn default() -> Course {
        Course {
            started: Instant::now(),
            up: None,
            switched: None,
            wanted: BTreeSet::new(),
            from: BTreeMap::new(),
            failure: None,
            granted: Vec::new(),
            leaves: None,
            cut: Some(0),
            gone: None,
            kept: (0, 0),
            lines: VecDeque::new(),
        }
    }
}

impl Course {
    /// Our server wants an address.
    pub(super) fn want(&mut self, address: &Address) {
        // One that babbles may want other ones for ever.
        if self.wanted.len() < ADDRESSES_MAX {
            self.wanted.insert(address.clone());
        }
    }

    /// An older server has been met that has these addresses; none, if that is not known yet.
    pub(super) fn meet(&mut self, holds: &[Address], who: Who) {
        let all = Address::all(holds);
        for address in self.wanted.iter().filter(|own| holds.is_empty() || own.among(&all).next().is_some()) {
            let known = self.from.entry(address.clone()).or_insert(who);
            *known = if known.generation < who.generation { who } else { *known };
        }
    }

    /// A newer server has the lock.
    pub(super) fn grant(&mut self, holds: &[Address]) {
        (self.granted, self.leaves, self.cut) = (holds.to_vec(), None, Some(0));
    }

    /// The swap of our server has ended.
    pub(super) fn end(&mut self, to: Who, end: &str) {
        self.wanted.clear();
        let now = Instant::now();
        let since = |from: Option<Instant>, to: Option<Instant>| Some(to?.saturating_duration_since(from?));
        // Nobody is gone in a swap that was turned back.
        let gone = (end == DONE).then_some(now);
        let steps = [since(Some(self.started), self.up), since(self.up, self.switched), since(self.switched, gone)];
        for (address, from) in std::mem::take(&mut self.from) {
            self.lines.push_back((address, Entry::swap(from, to, steps, end)));
        }
    }

    /// Writes the lines, so far as nobody has the run directory; `false` if some are left. That one cannot be written
    /// is no reason to fail.
    pub(super) fn write(&mut self, dir: &RunDir, log: Log) -> bool {
        while let Some((address, entry)) = self.lines.front() {
            match dir.add_to_history(address, entry) {
                Err(Denied::Busy) => return false,
                Err(Denied::Because(why)) => {
                    let text = format!("unable to write its history: {why} (nothing else depends on it)");
                    log.say(Level::Detail, Some(address), &text);
                }
                Ok(()) => {}
            }
            self.lines.pop_front();
        }
        true
    }
}

/// How a swap ends that ends well.
pub(super) const DONE: &str = "done";
