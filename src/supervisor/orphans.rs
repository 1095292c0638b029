//! Servers that have lost their supervisor: they are taken over, and replaced by the same machine as any other.

#![forbid(unsafe_code)]

use super::live::{Life, Names};
use super::threads::{self, GenId, Id};
use super::{Live, OldTo, Supervisor};
use crate::address::Address;
use crate::finder::{Holder, Registration};
use crate::server::Server;
use crate::swap::{self, ClaimerId, Level, OldId, Order, Settings};
use crate::sys::net;
use std::collections::BTreeSet;
use std::time::Duration;

/// Why an orphan is taken over.
pub(super) enum Adopted {
    /// A newer server is to replace it.
    ToBeReplaced,
    /// Its own swap was not made.
    ToBeEnded,
}

impl Supervisor {
    /// Takes an orphan over: it is replaced by the same machine as any other, under this supervisor. It
    /// has what its pidfiles say, and those of the wanted addresses where it listens.
    pub(super) fn adopt(
        &mut self,
        holder: &Holder,
        lock: Registration,
        wanted: &[Address],
        why: Adopted,
    ) -> Option<GenId> {
        let server = Server::adopt(holder)?;
        // What cannot be looked at now may be its: it is found again.
        let mut named = self.dir.addresses().ok()?;
        let is_its = |a: &&Address| self.dir.serving(a, &mut Vec::new()).is_some_and(|h| h.pid == holder.pid);
        let held: BTreeSet<Address> = named.iter().filter(is_its).cloned().collect();
        // Its successor may have taken its pidfiles already: of these too.
        named.extend_from_slice(wanted);
        let listeners = net::listeners().ok()?.at_any(&named);
        let mut addresses = server.holds(&listeners).ok()?;
        addresses.retain(|a| !held.iter().any(|held| held.collides(a)));
        addresses.extend(held.iter().cloned());
        let id = self.kin.next_generation;
        let pidfd = server.watch().ok()?;
        let end = threads::end_of(self.events.clone(), id, holder.pid, pidfd).ok()?;
        self.kin.next_generation += 1;
        let text = match why {
            Adopted::ToBeReplaced => format!("server {} has lost its supervisor and is taken over", holder.pid),
            Adopted::ToBeEnded => {
                format!("server {} has lost its supervisor and is ended: it did not get to its switch", holder.pid)
            }
        };
        self.log.say(Level::Notice, addresses.first(), &text);
        let settings = Settings {
            order: Order::Shared,
            awaited: false,
            ready_timeout: None,
            kill_after: self.run.kill_after,
            drain: self.run.drain,
        };
        let names = Names {
            number: holder.generation,
            registration: Some(lock),
            replaced: holder.replaced.clone(),
            held,
            datagrams: holder.datagrams.clone(),
            ..Names::default()
        };
        let mut live = Live::new(swap::Generation::serving(settings, addresses), server, names);
        live.life = Life { end: Some(end), was_up: true, ..Life::default() };
        self.live.insert(id, live);
        Some(id)
    }

    /// The supervisor of an old server does not speak to us any more. What counts is when the lock of
    /// the server's record is free. `false` if there is no such server.
    pub(super) fn follow_orphan(&self, id: Id, within: Option<Duration>) -> bool {
        let Some(old) = self.peers.olds.get(&id) else { return false };
        let waits = |dir| threads::release(self.events.clone(), id, old.server.0, dir, within);
        self.dir.try_clone().and_then(waits).is_ok()
    }

    /// An old server has a supervisor that does not speak to us. One of which nothing was asked is looked for
    /// again; the other does what it was asked for, and is waited for. Whoever took an orphan over is not.
    pub(super) fn hung_up(&mut self, id: Id) {
        let Some(old) = self.peers.olds.get(&id) else { return };
        let (of, waited_for) = (old.of, old.told && !old.orphaned);
        if !(waited_for && self.follow_orphan(id, None)) {
            self.peers.olds.remove(&id);
            self.feed(of, swap::Event::OldLost(OldId(id)));
        }
    }

    pub(super) fn orphaned(&mut self, id: Id) {
        let Some(old) = self.peers.olds.get(&id) else { return };
        let (of, pid) = (old.of, old.server.0);
        if !old.locked {
            self.peers.olds.remove(&id);
            return self.feed(of, swap::Event::OldLost(OldId(id)));
        }
        // Its end is known.
        if old.lingers.is_some() {
            return;
        }
        // The lock is ours: the swap goes on with its server.
        let found = self.dir.find(pid);
        // Somebody only looks at it, or has taken it over: time will tell.
        let is_anothers = found.as_ref().is_some_and(|holder| holder.orphan.is_none());
        if is_anothers && self.follow_orphan(id, Some(threads::HANGS_UP)) {
            if let Some(old) = self.peers.olds.get_mut(&id) {
                old.orphaned = true;
            }
            return;
        }
        // Taken over by somebody else, its end is theirs.
        let lives = found.is_some();
        let adopted = found.and_then(|mut holder| {
            let lock = holder.orphan.take()?;
            let taken = self.live.get(&of)?.machine.addresses();
            self.adopt(&holder, lock, &taken, Adopted::ToBeReplaced)
        });
        match (adopted, self.peers.olds.get_mut(&id)) {
            (Some(generation), Some(old)) => {
                old.to = OldTo::Local(generation);
                self.feed(generation, swap::Event::Claim(ClaimerId(id)));
            }
            _ => {
                self.peers.olds.remove(&id);
                let event = if lives { swap::Event::OldLost(OldId(id)) } else { swap::Event::OldGone(OldId(id)) };
                self.feed(of, event);
            }
        }
    }
}
