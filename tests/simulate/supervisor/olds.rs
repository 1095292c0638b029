//! `src/supervisor/olds.rs`: older servers that ours wants to replace.

use super::{POLL_SWAP, Supervisor};
use crate::address::Address;
use crate::protocol::{PEER_VERSION, PeerWord};
use crate::swap::{Event, OldId};
use crate::sys::clock::Instant;
use crate::sys::steer::Socket;
use crate::world::dir::Holder;
use crate::world::land::Land;
use std::time::Duration;

/// The product's `CARES_WITHIN` and `HANGS_UP`.
pub const CARES_WITHIN: Duration = Duration::from_secs(10);
pub const HANGS_UP: Duration = Duration::from_secs(2);

pub struct Old {
    pub holder: Holder,
    /// The connection to its supervisor.
    pub stream: Option<u64>,
    pub holds: Vec<Address>,
    pub sockets: Vec<Socket>,
    pub promised: usize,
    pub order: String,
    pub locked: bool,
    pub asked: Vec<PeerWord>,
    pub told: bool,
    pub lingers: Option<Linger>,
}

/// It has ended, and somebody holds a listener of its.
pub struct Linger;

/// A thread that waits for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Thread {
    /// It connects to the supervisor of an old server.
    Connect(u64),
    /// Nobody was there: it waits for the lock of the record.
    Unreached(u64),
    /// The connection has ended: it waits for the lock, for a while or for ever.
    Release(u64, Option<u64>),
}

impl Supervisor {
    pub(super) fn old(&mut self, land: &mut Land, holder: Holder) -> u64 {
        let known = self.peers.olds.iter().find(|(_, old)| old.holder.pid == holder.pid);
        if let Some((&id, _)) = known {
            return id;
        }
        if let Some(live) = self.live.as_mut()
            && live.names.number <= holder.generation
        {
            live.names.number = holder.generation + 1;
            land.dir.records.get_mut(&self.server.0).into_iter().for_each(|r| r.generation = holder.generation + 1);
        }
        let id = land.next_id();
        let old = Old {
            holder,
            stream: None,
            holds: Vec::new(),
            sockets: Vec::new(),
            promised: 0,
            order: String::new(),
            locked: false,
            asked: Vec::new(),
            told: false,
            lingers: None,
        };
        self.peers.olds.insert(id, old);
        id
    }

    pub(super) fn lock(&mut self, id: OldId) {
        if self.peers.olds.contains_key(&id.0) {
            self.peers.threads.push(Thread::Connect(id.0));
        }
    }

    pub(super) fn unlock(&mut self, land: &mut Land, id: OldId) {
        let Some(old) = self.peers.olds.remove(&id.0) else { return };
        self.share_no_more(id.0);
        if let Some(stream) = old.stream {
            land.close(stream, self.pid);
        }
    }

    pub(super) fn ask(&mut self, land: &mut Land, id: OldId, word: PeerWord) {
        self.tell_old(land, id.0, &word);
        if let Some(old) = self.peers.olds.get_mut(&id.0) {
            old.asked.push(word);
            old.told = true;
        }
    }

    pub(super) fn tell_old(&mut self, land: &mut Land, id: u64, word: &PeerWord) {
        if let Some(stream) = self.peers.olds.get(&id).and_then(|old| old.stream) {
            land.write(stream, self.pid, word, Vec::new());
        }
    }

    /// Whether a thread has something to say by now.
    pub fn is_ready(&self, land: &Land, thread: &Thread) -> bool {
        let is_released = |id: &u64| self.peers.olds.get(id).is_none_or(|old| land.is_released(old.holder.pid.raw()));
        match thread {
            Thread::Connect(_) => true,
            Thread::Unreached(id) => is_released(id),
            Thread::Release(id, until) => is_released(id) || until.is_some_and(|until| Instant(until) < Instant::now()),
        }
    }

    /// It says so.
    pub fn wake(&mut self, land: &mut Land, at: usize) {
        match self.peers.threads.remove(at) {
            Thread::Connect(id) => {
                let Some(old) = self.peers.olds.get(&id) else { return };
                match land.connect(self.pid, id, old.holder.pid.raw()) {
                    Some(stream) => {
                        self.peers.olds.get_mut(&id).into_iter().for_each(|old| old.stream = Some(stream));
                        land.write(stream, self.pid, &PeerWord::Peer(PEER_VERSION), Vec::new());
                        land.write(stream, self.pid, &PeerWord::Claim, Vec::new());
                    }
                    None => self.peers.threads.push(Thread::Unreached(id)),
                }
            }
            Thread::Unreached(id) => self.old_closed(id),
            Thread::Release(id, _) => {
                let Some(old) = self.peers.olds.get(&id) else { return };
                if land.is_released(old.holder.pid.raw()) { self.orphaned(land, id) } else { self.hung_up(land, id) }
            }
        }
        self.settle(land);
    }

    /// The connection to the supervisor of an old server has ended, or never came to be.
    pub(super) fn old_closed(&mut self, id: u64) {
        if self.peers.olds.get(&id).is_none_or(|old| old.lingers.is_some()) {
            return;
        }
        self.peers.olds.get_mut(&id).into_iter().for_each(|old| old.stream = None);
        self.lose_lock(id);
        let until = Instant::now() + HANGS_UP;
        self.peers.threads.push(Thread::Release(id, Some(until.0)));
        self.feed(Event::OldSilent(OldId(id)));
    }

    fn lose_lock(&mut self, id: u64) {
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

    fn hung_up(&mut self, land: &mut Land, id: u64) {
        let Some(old) = self.peers.olds.get(&id) else { return };
        let now = land.dir.holder(old.holder.pid.raw());
        if now.is_some_and(|now| now.supervisor != old.holder.supervisor) {
            return self.orphaned(land, id);
        }
        if old.told {
            return self.peers.threads.push(Thread::Release(id, None));
        }
        self.peers.olds.remove(&id);
        self.feed(Event::OldLost(OldId(id)));
    }

    fn orphaned(&mut self, land: &mut Land, id: u64) {
        let Some(old) = self.peers.olds.get(&id) else { return };
        if !old.locked {
            self.peers.olds.remove(&id);
            return self.feed(Event::OldLost(OldId(id)));
        }
        if old.lingers.is_some() {
            return;
        }
        self.agenda.orphaned.insert(id, Instant::now());
        self.go_on_with_orphans(land);
    }

    pub(super) fn go_on_with_orphans(&mut self, land: &mut Land) {
        for (id, since) in std::mem::take(&mut self.agenda.orphaned) {
            let Some(old) = self.peers.olds.get_mut(&id) else { continue };
            let event = match land.dir.holder(old.holder.pid.raw()) {
                None => Event::OldGone(OldId(id)),
                Some(holder) if !holder.has_lost_its_supervisor() => {
                    (old.holder, old.holds) = (holder, Vec::new());
                    self.peers.threads.push(Thread::Connect(id));
                    continue;
                }
                _ if since.elapsed() > CARES_WITHIN => Event::OldLost(OldId(id)),
                Some(holder) => {
                    if holder.is_orphan {
                        self.care(land, &holder);
                    }
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

impl Thread {
    pub fn until(&self) -> Option<u64> {
        if let Thread::Release(_, until) = self { *until } else { None }
    }
}
