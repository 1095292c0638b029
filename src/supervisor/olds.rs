//! Older servers that ours wants to replace, and what is said to whoever supervises them.

#![forbid(unsafe_code)]

use super::Supervisor;
use super::looks::POLL_SWAP;
use super::orphans::Adopted;
use super::threads::{self, GenId, Id};
use crate::address::Address;
use crate::finder::Holder;
use crate::protocol::{HolderWord, PeerWord};
use crate::swap::{self, ClaimerId, Event, OldId};
use crate::sys::pid::Pid;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// An older server that one of our generations wants to replace.
pub(super) struct Old {
    pub(super) of: GenId,
    pub(super) server: (Pid, u64),
    pub(super) to: OldTo,
    pub(super) holds: Vec<Address>,
    /// Its listeners, as its supervisor handed them over.
    pub(super) sockets: Vec<OwnedFd>,
    /// How many they are.
    pub(super) promised: usize,
    pub(super) locked: bool,
    /// What it was asked for and has not released: its server does that, whatever becomes of its supervisor.
    pub(super) asked: Vec<swap::Event>,
    /// It was asked for something.
    pub(super) told: bool,
    /// Its supervisor is gone.
    pub(super) orphaned: bool,
    /// It has ended, and since then somebody else holds a listener of its.
    pub(super) lingers: Option<Linger>,
}

/// What is known of somebody who holds a listener of an old server that has ended.
#[derive(Clone, Copy)]
pub(super) enum Linger {
    /// Seen first then: it may be ending too.
    Since(Instant),
    /// And it was named.
    Named,
}

pub(super) enum OldTo {
    /// It runs under this supervisor too: an orphan.
    Local(GenId),
    /// It runs under another one.
    Remote(Box<Holder>),
}

impl Supervisor {
    /// The number under which a generation knows an old server: one for all of its addresses.
    pub(super) fn old(&mut self, of: GenId, mut holder: Holder, wanted: &[Address]) -> Id {
        let server = (holder.pid, holder.start);
        let known = self.peers.olds.iter().find(|(_, old)| old.of == of && old.server == server);
        if let Some((&id, _)) = known {
            return id;
        }
        if let Some(live) = self.live.get_mut(&of) {
            let guess = std::mem::take(&mut live.names.number_is_guess);
            if live.names.number <= holder.generation || (guess && live.names.number != holder.generation + 1) {
                live.names.number = holder.generation + 1;
                self.register_again(of);
            }
        }
        let local = self.live.iter().find(|(_, live)| (live.server.pid, live.server.start) == server);
        let local = local.map(|(&id, _)| id);
        let to = match local {
            Some(generation) => OldTo::Local(generation),
            None => {
                match holder.orphan.take().and_then(|lock| self.adopt(&holder, lock, wanted, Adopted::ToBeReplaced)) {
                    Some(orphan) => OldTo::Local(orphan),
                    None => OldTo::Remote(Box::new(holder)),
                }
            }
        };
        let id = threads::next_id();
        self.peers.olds.insert(
            id,
            Old {
                of,
                server,
                to,
                holds: Vec::new(),
                sockets: Vec::new(),
                promised: 0,
                locked: false,
                asked: Vec::new(),
                told: false,
                orphaned: false,
                lingers: None,
            },
        );
        id
    }

    pub(super) fn lock(&mut self, of: GenId, id: OldId) {
        let Some(old) = self.peers.olds.get(&id.0) else { return };
        match &old.to {
            OldTo::Local(generation) => {
                let generation = *generation;
                self.feed(generation, Event::Claim(ClaimerId(id.0)));
                self.feed(of, Event::Attended(id));
            }
            OldTo::Remote(holder) => {
                let started = self.dir.try_clone().and_then(|dir| {
                    threads::connect(self.events.clone(), id.0, holder.socket.clone(), holder.pid, dir)
                });
                if started.is_err() {
                    // Not at once: it would be looked for again and again, and nothing else done.
                    self.clock.unreached.push((of, id));
                    self.poll_by(Instant::now() + POLL_SWAP);
                }
            }
        }
    }

    pub(super) fn unlock(&mut self, id: OldId) {
        let Some(old) = self.peers.olds.remove(&id.0) else { return };
        self.share_no_more(old.of, id.0);
        match old.to {
            OldTo::Local(generation) => {
                self.feed(generation, Event::ClaimerGone(ClaimerId(id.0)));
                // An orphan that nobody here wants any more is left as it was found.
                let unwanted = self.live.get(&generation).is_some_and(|l| l.is_orphan() && l.machine.is_up());
                if unwanted {
                    self.live.remove(&generation);
                    self.agenda.timers.forget(generation);
                    self.clear_desk(generation);
                }
            }
            OldTo::Remote(_) => {
                if let Some(conn) = self.peers.conns.remove(&id.0) {
                    conn.out.close();
                }
            }
        }
    }

    pub(super) fn ask(&mut self, id: OldId, local: Event, remote: PeerWord) {
        if let Some(old) = self.peers.olds.get_mut(&id.0) {
            old.asked.push(local.clone());
            old.told = true;
        }
        match self.peers.olds.get(&id.0).map(|old| &old.to) {
            Some(OldTo::Local(generation)) => {
                let generation = *generation;
                self.feed(generation, local);
            }
            Some(OldTo::Remote(_)) => {
                self.tell(id.0, &remote);
            }
            None => {}
        }
    }

    /// A generation that is no more was meant.
    pub(super) fn unheard(&mut self, event: Event) {
        if let Event::Claim(claimer) = event
            && let Some(of) = self.local_claimer(claimer)
        {
            self.peers.olds.remove(&claimer.0);
            self.feed(of, Event::OldGone(OldId(claimer.0)));
        }
    }

    /// The generation here that claims under this number.
    pub(super) fn local_claimer(&self, claimer: ClaimerId) -> Option<GenId> {
        self.peers.olds.get(&claimer.0).filter(|old| matches!(old.to, OldTo::Local(_))).map(|old| old.of)
    }

    pub(super) fn tell_peer(&self, claimer: ClaimerId, words: impl IntoIterator<Item = HolderWord>) {
        if let Some(conn) = self.peers.conns.get(&claimer.0) {
            conn.out.send_all(words);
        }
    }
}
