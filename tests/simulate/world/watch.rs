//! The observer: it stands outside, knows who may answer at which moment, and sees who does.

use crate::address::Address;
use crate::kernel::{self, Connection, Key, State};
use crate::swap::{Level, Orphan};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// How a server stands to the clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Standing {
    /// It was up, or new connections were switched to it.
    pub serves: bool,
    /// It ever did.
    pub served: bool,
    /// Something has happened to it that is no part of a swap.
    pub accident: bool,
    /// The time for its drain was over: what it still has may be cut.
    pub is_cut: bool,
    pub is_done: bool,
    /// Whoever had replaced it has died, and it does not serve again yet.
    pub is_widowed: bool,
    /// Its script does not serve all addresses.
    pub is_partial: bool,
    /// It was replaced by such a one.
    pub is_abandoned: bool,
}

#[derive(Debug, Default)]
pub struct Watch {
    pub standings: BTreeMap<i32, Standing>,
    /// Who has taken the place of whom.
    pub superseded: BTreeMap<i32, i32>,
    /// To whom a listener belonged.
    pub owners: BTreeMap<u32, i32>,
    /// Listeners that nobody saw open: where they share by an option of their own, nobody steers.
    pub wild: BTreeSet<u32>,
    /// Servers that served at one address when their supervisors died, and at another listened beside the one that did.
    pub strays: BTreeSet<i32>,
    /// Listeners that their own server has closed while it served.
    pub own_closes: BTreeSet<u32>,
    /// Connections that got to an old server because the new one has closed a listener: it may be gone at once.
    pub strayed: BTreeSet<u32>,
    /// What was promised and not kept.
    pub broken: Option<String>,
    /// New servers whose ready clock has rung.
    pub late: Vec<i32>,
    /// What supervisors said.
    pub said: Vec<String>,
    pub count: Count,
    pub is_verbose: bool,
}

/// What has happened in all.
#[derive(Debug, Default, Clone, Copy)]
pub struct Count {
    pub steps: u64,
    pub swaps: u64,
    pub deaths: u64,
    pub caretakers: u64,
    pub answers: u64,
    pub plain: u64,
    pub unsharable: u64,
}

impl Watch {
    fn at(&mut self, server: i32) -> &mut Standing {
        self.standings.entry(server).or_default()
    }

    pub fn of(&self, server: i32) -> Standing {
        self.standings.get(&server).copied().unwrap_or_default()
    }

    pub fn breaks(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub fn is_widowed(&mut self, server: i32, is: bool) {
        self.at(server).is_widowed = is;
    }

    pub fn is_partial(&mut self, server: i32) {
        self.at(server).is_partial = true;
    }

    /// A server is up.
    pub fn entitle(&mut self, server: i32) {
        let standing = self.at(server);
        (standing.serves, standing.served) = (true, true);
    }

    /// New connections go to this server.
    pub fn switched(&mut self, server: i32, result: &io::Result<()>) {
        self.entitle(server);
        if let Err(e) = result {
            self.said.push(format!("the switch of {server} failed: {e}"));
        }
        let keys = keys_of(server);
        let others: Vec<i32> = self.standings.keys().copied().filter(|other| *other != server).collect();
        for other in others {
            if !keys_of(other).is_disjoint(&keys) {
                self.superseded.insert(other, server);
                self.at(other).is_abandoned |= self.of(server).is_partial;
            }
        }
    }

    pub fn unswitched(&mut self, server: i32) {
        self.at(server).serves = false;
        self.superseded.retain(|_, new| *new != server);
    }

    pub fn cut_off(&mut self, server: i32) {
        self.at(server).is_cut = true;
    }

    pub fn accident(&mut self, server: i32) {
        self.at(server).accident = true;
        // Whoever drains for it may be told to go in the same moment.
        let olds = self.superseded.iter().filter(|(_, new)| **new == server).map(|(old, _)| *old);
        olds.collect::<Vec<i32>>().into_iter().for_each(|old| self.is_widowed(old, true));
    }

    /// Whose place it had.
    pub fn ended(&mut self, server: i32) -> Vec<i32> {
        self.superseded.extract_if(.., |_, new| *new == server).map(|(old, _)| old).collect()
    }

    pub fn done(&mut self, server: i32) {
        if !std::mem::replace(&mut self.at(server).is_done, true) {
            self.count.swaps += 1;
        }
    }

    pub fn recovered(&mut self, server: i32, orphan: Orphan) {
        if orphan != Orphan::Superseded {
            self.entitle(server);
        }
    }

    /// In plain order there is a gap, and what waits at the old server is lost.
    pub fn unshared(&mut self, server: i32, old: i32, why: &str) {
        self.count.plain += 1;
        self.accident(old);
        self.said.push(format!("{server}: plain order: {why}"));
    }

    pub fn late(&mut self, supervisor: i32) {
        self.late.push(supervisor);
    }

    pub fn hear(&mut self, supervisor: i32, level: Level, address: Option<Address>, text: String) {
        if self.is_verbose {
            let address = address.map(|address| format!("{address}: ")).unwrap_or_default();
            self.said.push(format!("{supervisor}: {level:?}: {address}{text}"));
        }
    }

    /// Whether new connections may go to this server.
    fn may_answer(&self, server: i32) -> bool {
        self.of(server).serves && !self.superseded.contains_key(&server)
    }

    /// The kernel has chosen a listener for a client.
    pub fn chosen(&mut self, listener: u32, connection: u32) {
        let Some(&server) = self.owners.get(&listener) else { return };
        if self.is_verbose {
            let key = kernel::with(|k| k.sockets.get(&listener).map(|s| s.key));
            let group = kernel::with(|k| format!("{:?}", key.and_then(|key| k.groups.get(&key))));
            self.said.push(format!("it gets to {listener}: {group}"));
        }
        if self.superseded.contains_key(&server) && !self.own_closes.is_empty() {
            // The new server has closed a listener, and the program is that of a moment before.
            self.strayed.insert(connection);
        }
        // A listener was closed by its own server, and the program is that of a moment before.
        let key = kernel::with(|k| k.sockets.get(&listener).map(|s| s.key));
        if key.is_some_and(|key| kernel::with(|k| k.groups.get(&key).is_some_and(|group| group.is_stale))) {
            return;
        }
        // One that was replaced may answer as long as it is there: the new one has just closed a listener, say.
        if self.of(server).serves {
            return;
        }
        let key = kernel::with(|k| k.sockets.get(&listener).map(|s| s.key));
        if self.wild.iter().any(|wild| kernel::with(|k| k.sockets.get(wild).map(|s| s.key) == key)) {
            return;
        }
        let others: Vec<i32> = self.standings.keys().copied().filter(|other| self.may_answer(*other)).collect();
        if let Some(other) = others.into_iter().find(|other| key.is_some_and(|key| keys_of(*other).contains(&key))) {
            let standing = self.of(server);
            let groups = kernel::with(|k| format!("{:?}", k.groups));
            self.said.push(format!("{listener} of {:?}: {groups}", self.owners));
            self.breaks(format!("a client gets to server {server} ({standing:?}), where server {other} serves"));
        }
    }

    /// Nobody listens where a client wants to connect.
    pub fn refused(&mut self, target: &str, serving: Option<i32>) {
        let excused = |standing: Standing| {
            let is_undone = !standing.serves;
            standing.accident || standing.is_widowed || standing.is_abandoned || standing.is_partial || is_undone
        };
        if let Some(server) = serving.filter(|server| !excused(self.of(*server))) {
            self.breaks(format!("a client of {target} is refused, which server {server} serves"));
        }
    }

    /// A connection of a client's was reset.
    pub fn reset(&mut self, id: u32, connection: &Connection, was: State) {
        let Some(&server) = self.owners.get(&connection.listener) else { return };
        let Standing { served, accident, is_cut, is_abandoned, is_widowed, .. } = self.of(server);
        let excused = accident
            || is_widowed
            || is_abandoned
            || self.strayed.contains(&id)
            || !served
            || self.own_closes.contains(&connection.listener);
        if !(excused || is_cut && was == State::Accepted) {
            self.breaks(format!("a connection to server {server} is reset ({was:?} at {})", connection.listener));
        }
    }
}

/// Where a server listens.
pub fn keys_of(server: i32) -> BTreeSet<Key> {
    kernel::with(|k| k.sockets.values().filter(|s| s.listens && s.count(server) > 0).map(|s| s.key).collect())
}
