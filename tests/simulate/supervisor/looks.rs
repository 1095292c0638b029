//! `src/supervisor/looks.rs`: looking at what the kernel tells nobody by itself.

use super::left::left_alone;
use super::switching::{LINGERS, start_drain};
use super::{POLL_FIRST, POLL_STEERS, POLL_SWAP, Supervisor};
use crate::address::Address;
use crate::drain::Drained;
use crate::swap::{self, Event};
use crate::sys::clock::Instant;
use crate::sys::net::{self, Listeners, TcpSocket};
use crate::world::land::Land;
use std::time::Duration;

impl Supervisor {
    pub(super) fn poll_soon(&mut self) {
        self.clock.poll_every = POLL_FIRST;
        self.clock.poll_since = Some(Instant::now());
        self.poll_by(Instant::now() + POLL_FIRST);
    }

    pub(super) fn poll_by(&mut self, at: Instant) {
        self.clock.poll_at = Some(self.clock.poll_at.map_or(at, |earlier| earlier.min(at)));
    }

    pub(super) fn tidy_later(&mut self) {
        let at = Instant::now() + swap::QUIET;
        self.clock.tidy_at = Some(at);
        self.poll_by(at);
    }

    pub fn poll(&mut self, land: &mut Land) {
        let now = Instant::now();
        self.clock.poll_at = None;
        self.go_on_with_orphans(land);
        self.look_at_lingering(land);
        if self.clock.tidy_at.take_if(|at| *at <= now).is_some() {
            land.dir.claims_no_orphans(self.pid);
            land.dir.sweep();
        }
        let Ok(sockets) = net::listeners() else { return };
        let mut swapping = self.look_at(land, &sockets);
        swapping |= self.regain(land, now);
        let since = self.clock.poll_since.map_or(Duration::ZERO, |since| since.elapsed());
        let steers = self.live.iter().any(|live| live.joining.sharing.has_olds());
        let slowest = if steers { POLL_SWAP.max(since / 100).min(POLL_STEERS) } else { POLL_SWAP.max(since / 100) };
        self.clock.poll_every = (self.clock.poll_every * 3 / 2).min(slowest);
        swapping |= !self.agenda.orphaned.is_empty();
        self.clock.poll_at = swapping.then(|| Instant::now() + self.clock.poll_every);
        let lingers = self.peers.olds.values().any(|old| old.lingers.is_some()).then(|| Instant::now() + LINGERS);
        let lent = self.live.iter().flat_map(|live| live.lent_until()).min();
        [lingers, lent, self.clock.tidy_at].into_iter().flatten().for_each(|at| self.poll_by(at));
        self.settle(land);
    }

    fn look_at(&mut self, land: &mut Land, sockets: &Listeners) -> bool {
        let server = self.server;
        let Some(live) = self.live.as_mut() else { return false };
        for own in server.holds_of(&sockets.at_any(&live.looks.watching)) {
            for address in live.looks.watching.extract_if(.., |a| a.collides(&own.local)) {
                self.agenda.pending.push_back(Event::Listens(address));
            }
        }
        for address in live.looks.releasing.extract_if(.., |a| sockets.at(a).next().is_none()) {
            self.agenda.pending.push_back(Event::Free(address));
        }
        let Some(live) = self.live.as_mut() else { return false };
        let ended = |(heir, until): &mut (_, Instant)| crate::procfs::has_ended(*heir) || *until < Instant::now();
        let heir = live.standing.heir.take_if(ended);
        self.agenda.pending.extend(heir.map(|_| Event::HeirGone));
        let (followed, left) = (live.standing.succeeded, left_alone(live, server, sockets, &mut self.agenda.pending));
        if left {
            self.decide_swap_of_dead(land);
        } else if followed && land.is_adopted(server.0) {
            self.write_olds(land, Vec::new(), Vec::new());
        }
        let sharing = left | self.look_at_shared(land, sockets);
        let Some(live) = self.live.as_mut() else { return false };
        let looks = !live.looks.watching.is_empty() || !live.looks.releasing.is_empty() || live.standing.heir.is_some();
        let has_ended = live.life.ended;
        if has_ended {
            self.look_for_rest();
        }
        sharing || looks || has_ended
    }

    fn look_at_shared(&mut self, land: &mut Land, listeners: &Listeners) -> bool {
        let server = self.server;
        let Some(live) = self.live.as_mut() else { return false };
        live.follow_closed(server, None, listeners, &mut self.agenda.pending);
        let unseen: Vec<&Address> =
            live.joining.proving.iter().filter(|address| !live.joining.sharing.has_joined(address)).collect();
        for address in unseen {
            live.joining.sharing.found(&server.holds_of(&listeners.at_any([address])));
        }
        let held = || {
            let all: Vec<TcpSocket> = listeners.all().cloned().collect();
            Some(server.holds_of(&all).into_iter().map(|socket| socket.inode).collect())
        };
        live.joining.sharing.look(listeners, live.joining.prove, held, &server);
        let complete = !live.joining.settled;
        for address in live.joining.proving.extract_if(.., |a| live.joining.sharing.is_proven(a, complete)) {
            self.agenda.pending.push_back(Event::Accepts(address));
        }
        let now = Instant::now();
        self.lend_no_more(land, |lent| lent.until <= now);
        let Some(live) = self.live.as_mut() else { return false };
        if live.standing.drains && live.standing.drain.is_none() {
            start_drain(live, server);
        }
        if let Some(drain) = &mut live.standing.drain {
            match drain.look(&server) {
                Drained::Arriving => {}
                Drained::Quiesced if !live.standing.quiesced => {
                    live.standing.quiesced = true;
                    self.agenda.pending.push_back(Event::Quiesced);
                }
                Drained::Quiesced => {}
                Drained::Idle => self.agenda.pending.push_back(Event::Drained),
            }
        }
        !live.joining.proving.is_empty() || live.standing.drains || !live.joining.sharing.is_empty()
    }

    fn regain(&mut self, land: &mut Land, now: Instant) -> bool {
        let Some(live) = self.live.as_ref().filter(|live| !live.names.regaining.is_empty()) else { return false };
        let (wanted, replaced) = (live.names.regaining.clone(), live.names.replaced.clone());
        let mut waits = false;
        for (address, until) in wanted {
            let done = self.register(land, &address, &replaced) || until <= now;
            waits |= !done;
            if let (true, Some(live)) = (done, self.live.as_mut()) {
                live.names.regaining.remove(&address);
            }
        }
        waits
    }
}
