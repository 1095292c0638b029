//! Older servers that ours wants to replace, and what is said to whoever supervises them.

use super::care::TAKEN_OVER;
use super::looks::POLL_SWAP;
use super::state::{Old, Supervisor};
use super::threads::{self, Id};
use crate::finder::{CARES_WITHIN, Holder, Missing};
use crate::protocol::PeerWord;
use crate::swap::{self, OldId};
use std::time::{Duration, Instant};

impl Supervisor {
    /// The number under which an old server is known: one for all of its addresses.
    pub(super) fn old(&mut self, holder: Holder) -> Id {
        let is_it = |old: &Old| (old.holder.pid, old.holder.start) == (holder.pid, holder.start);
        if let Some((&id, _)) = self.peers.olds.iter().find(|(_, old)| is_it(old)) {
            return id;
        }
        if let Some(live) = self.live.as_mut() {
            let guess = std::mem::take(&mut live.names.number_is_guess);
            if live.names.number <= holder.generation || (guess && live.names.number != holder.generation + 1) {
                live.names.number = holder.generation + 1;
                self.register_again();
            }
        }
        let id = threads::next_id();
        self.peers.olds.insert(
            id,
            Old {
                holder,
                holds: Vec::new(),
                sockets: Vec::new(),
                promised: 0,
                order: String::new(),
                locked: false,
                asked: Vec::new(),
                told: false,
                lingers: None,
            },
        );
        id
    }

    pub(super) fn lock(&mut self, id: OldId) {
        if !self.connect(id.0) && self.peers.olds.contains_key(&id.0) {
            // It is looked up anew, but a moment later: at once, that could go on for ever and nothing else be done.
            self.clock.unreached.push(id);
            self.poll_by(Instant::now() + POLL_SWAP);
        }
    }

    /// Lets others claim servers that were orphans, unless ours has one of them.
    pub(super) fn claims_no_orphans(&self) {
        if !self.peers.olds.values().any(|old| old.holder.ever_lost_its_supervisor()) {
            self.dir.claims_no_orphans();
        }
    }

    /// Goes to the supervisor of an old server; `false` if no thread could.
    fn connect(&self, id: Id) -> bool {
        let Some(Old { holder, .. }) = self.peers.olds.get(&id) else { return false };
        let connect = |dir| threads::connect(self.events.clone(), id, holder.socket.clone(), holder.pid, dir);
        self.dir.try_clone().and_then(connect).is_ok()
    }

    pub(super) fn unlock(&mut self, id: OldId) {
        if self.peers.olds.remove(&id.0).is_none() {
            return;
        }
        self.live.iter_mut().for_each(|live| live.joining.sharing.let_go(id.0));
        if let Some(conn) = self.peers.conns.remove(&id.0) {
            conn.out.close();
        }
        self.claims_no_orphans();
    }

    pub(super) fn ask(&mut self, id: OldId, word: PeerWord) {
        self.tell(id.0, &word);
        if let Some(old) = self.peers.olds.get_mut(&id.0) {
            old.asked.push(word);
            old.told = true;
        }
    }

    /// The supervisor of an old server does not speak to us any more: waits until the lock of the server's record is
    /// free. `false` if there is no such server, or no thread could wait.
    pub(super) fn follow_orphan(&self, id: Id, within: Option<Duration>) -> bool {
        let Some(old) = self.peers.olds.get(&id) else { return false };
        let waits = |dir| threads::release(self.events.clone(), id, old.holder.pid, dir, within);
        self.dir.try_clone().and_then(waits).is_ok()
    }

    /// The supervisor of an old server is gone, and its caretaker may give the lock to somebody else first, unless our
    /// server listens beside that one: it is claimed anew, and nobody may wait for handles of ours.
    pub(super) fn lose_lock(&mut self, id: Id) {
        let Some(live) = self.live.as_mut() else { return };
        if let Some(old) = self.peers.olds.get_mut(&id).filter(|old| !old.told)
            && live.joining.sharing.lose(id)
        {
            (old.locked, old.promised) = (false, 0);
            old.order.clear();
            old.sockets.clear();
            old.holds.clear();
        }
    }

    /// The supervisor of an old server has closed its connection and lives on. If the server was asked for anything, it
    /// does that, and we wait until the lock of its record is free. If not, our claim is lost.
    pub(super) fn hung_up(&mut self, id: Id) {
        let Some(old) = self.peers.olds.get(&id) else { return };
        if self.dir.holder(old.holder.pid).is_ok_and(|now| now.supervisor != old.holder.supervisor) {
            // The one that lives is a caretaker, which does not know what the server was asked for.
            return self.orphaned(id);
        }
        let waited_for = old.told;
        if !(waited_for && self.follow_orphan(id, None)) {
            self.peers.olds.remove(&id);
            self.feed(swap::Event::OldLost(OldId(id)));
        }
    }

    /// An old server has lost its supervisor.
    pub(super) fn orphaned(&mut self, id: Id) {
        let Some(old) = self.peers.olds.get_mut(&id) else { return };
        if !old.locked {
            self.peers.olds.remove(&id);
            return self.feed(swap::Event::OldLost(OldId(id)));
        }
        // The server has ended already; only a holder of its listener is waited for.
        if old.lingers.is_some() {
            return;
        }
        self.agenda.orphaned.insert(id, Instant::now());
        self.go_on_with_orphans();
    }

    /// Goes on with the caretakers of old servers whose locks were ours when their supervisors died.
    pub(super) fn go_on_with_orphans(&mut self) {
        for (id, since) in std::mem::take(&mut self.agenda.orphaned) {
            let Some(old) = self.peers.olds.get_mut(&id) else { continue };
            let event = match self.dir.holder(old.holder.pid) {
                Ok(holder) if holder.start != old.holder.start => swap::Event::OldGone(OldId(id)),
                Err(Missing::Gone) => swap::Event::OldGone(OldId(id)),
                Ok(holder) if !holder.has_lost_its_supervisor() => {
                    (old.holder, old.holds) = (holder, Vec::new());
                    if self.connect(id) {
                        continue;
                    }
                    swap::Event::OldLost(OldId(id))
                }
                _ if since.elapsed() > CARES_WITHIN => swap::Event::OldLost(OldId(id)),
                found => {
                    found.iter().filter(|holder| holder.is_orphan).for_each(|orphan| self.care(orphan, TAKEN_OVER));
                    self.agenda.orphaned.insert(id, since);
                    self.poll_by(Instant::now() + POLL_SWAP);
                    continue;
                }
            };
            self.peers.olds.remove(&id);
            self.feed(event);
        }
    }
}
