//! `src/supervisor/{switching,sharing}.rs`: the shared port in the hands of a supervisor.

use super::olds::Linger;
use super::{Joining, Lent, Live, Supervisor, Waiting};
use crate::address::Address;
use crate::drain::Drain;
use crate::protocol::HolderWord;
use crate::server::Server;
use crate::share::Sharing;
use crate::swap::{Event, OldId};
use crate::sys::clock::Instant;
use crate::sys::net::{self, Listeners};
use crate::world::dir::Holder;
use crate::world::land::Land;
use std::collections::VecDeque;
use std::time::Duration;

/// The product's `LINGERS` and `JOINS_WITHIN`.
pub const LINGERS: Duration = Duration::from_millis(200);
const JOINS_WITHIN: Duration = Duration::from_secs(1);

pub fn start_drain(live: &mut Live, server: Server) {
    let time = live.machine.drain_time();
    live.standing.drain = Drain::start(live.listeners(server), time).ok();
}

impl Live {
    fn take_calls(&mut self, address: &Address) -> Vec<Waiting> {
        self.opening.calls.extract_if(.., |w| Address::from(w.call.place.address) == *address).collect()
    }

    pub(super) fn follow_closed(
        &mut self,
        server: Server,
        port: Option<u16>,
        listeners: &Listeners,
        pending: &mut VecDeque<Event>,
    ) {
        self.joining.sharing.follow_news(port, listeners, &server);
        let closed = Address::all(&self.joining.sharing.closed(port));
        if closed.is_empty() {
            return;
        }
        for address in self.machine.claims() {
            if address.among(&closed).next().is_some() && self.joining.sharing.is_closed(&address) {
                self.joining.sharing.forget(&address);
                self.joining.proving.retain(|proving| !proving.collides(&address));
                pending.push_back(Event::Closed(address));
            }
        }
    }
}

impl Supervisor {
    /// Its server wants to listen.
    pub fn called(&mut self, land: &mut Land) {
        let Some(call) = land.call(self.server.0) else { return };
        let Some(live) = self.live.as_mut() else { return };
        live.joining.settled = false;
        let (place, meets) = (call.place, call.meets);
        let port = place.address.port();
        if live.joining.sharing.has_joined_at(port)
            && let Ok(listeners) = net::listeners_at(port)
        {
            live.follow_closed(self.server, Some(port), &listeners, &mut self.agenda.pending);
        }
        let socket = crate::sys::steer::Socket::open(call.inode);
        live.opening.calls.push(Waiting { call, socket });
        self.handle(land, Event::Calls(Address::from(place.address), meets));
    }

    pub(super) fn admit(&mut self, land: &mut Land, address: &Address) {
        let Some(live) = self.live.as_mut() else { return };
        let mut listens = false;
        for waiting in live.take_calls(address) {
            let claimer = live.machine.claimer().filter(|_| live.is_shared() && live.standing.handed_over);
            if let Some(claimer) = claimer.filter(|claimer| land.streams.contains_key(&claimer.0)) {
                land.write(claimer.0, self.pid, &HolderWord::Joins(16), vec![waiting.socket.send()]);
                live.opening.lent.push_back(Lent { waiting: Some(waiting), until: Instant::now() + JOINS_WITHIN });
                continue;
            }
            listens |= listen_alone(land, self.server, waiting);
        }
        if let Some(until) = live.lent_until() {
            self.poll_by(until);
        }
        if listens {
            self.feed(Event::Listens(address.clone()));
        }
    }

    pub(super) fn pass(&mut self, land: &mut Land, address: &Address) {
        let Some(live) = self.live.as_mut() else { return };
        for waiting in live.take_calls(address) {
            drop(waiting.socket);
            land.proceed(self.server.0);
        }
    }

    pub(super) fn join(&mut self, land: &mut Land, address: &Address) {
        let server = self.server;
        let Some(live) = self.live.as_mut() else { return };
        let calls = live.take_calls(address);
        if calls.is_empty() {
            for socket in server.listeners(std::slice::from_ref(address)) {
                let _ = socket.share();
            }
        }
        for Waiting { socket, .. } in calls {
            let result = live.joining.sharing.join(&socket, 16, &server);
            drop(socket);
            land.conclude(server.0, result.is_ok());
        }
        if !live.life.was_up || !live.joining.sharing.is_empty() {
            live.joining.proving.insert(address.clone());
        }
        self.poll_soon();
    }

    pub(super) fn deny(&mut self, land: &mut Land, address: &Address) {
        let Some(live) = self.live.as_mut() else { return };
        for waiting in live.take_calls(address) {
            drop(waiting);
            land.conclude(self.server.0, false);
        }
    }

    pub(super) fn share_no_more(&mut self, old: u64) {
        if let Some(live) = self.live.as_mut() {
            live.joining.sharing.let_go(old);
        }
    }

    pub(super) fn finish_sharing(&mut self, land: &mut Land) {
        let Some(live) = self.live.as_mut().filter(|live| !live.joining.sharing.is_empty()) else { return };
        if !self.peers.olds.is_empty() {
            return;
        }
        let server = self.server;
        if !(live.life.was_up || live.machine.is_leaving()) {
            return live.joining.sharing.forget_olds(&server);
        }
        live.joining.proving.clear();
        if live.joining.sharing.finish(&server) {
            self.write_olds(land, Vec::new(), Vec::new());
        }
    }

    pub(super) fn old_gone(&mut self, land: &mut Land, id: u64) {
        if !self.peers.olds.contains_key(&id) {
            return;
        }
        let known = self.live.as_ref().map(|live| live.joining.known());
        if let Some(held) = known.and_then(|known| known.holder_of(id)) {
            let server = land.dir.holder(held.pid.raw());
            if server.is_none() || known.is_some_and(|known| known.is_beside(id)) {
                return self.linger(land, id, server);
            }
        }
        let Some(old) = self.peers.olds.get_mut(&id) else { return };
        if let Some(live) = self.live.as_mut() {
            let server = self.server;
            if !live.joining.drop_olds(id, server) {
                old.lingers.get_or_insert(Linger);
                return self.poll_soon();
            }
        }
        self.peers.olds.remove(&id);
        self.feed(Event::OldGone(OldId(id)));
    }

    fn linger(&mut self, land: &mut Land, id: u64, server: Option<Holder>) {
        self.peers.olds.get_mut(&id).into_iter().for_each(|old| _ = old.lingers.get_or_insert(Linger));
        let behind = self.live.as_ref().map_or(Vec::new(), |live| live.names.replaced.clone());
        let behind: Vec<Holder> = behind.iter().filter_map(|pid| land.dir.holder(pid.raw())).chain(server).collect();
        behind.iter().filter(|old| old.is_orphan).for_each(|orphan| self.care(land, orphan));
        self.poll_by(Instant::now() + LINGERS);
    }

    pub(super) fn look_at_lingering(&mut self, land: &mut Land) {
        let lingering = self.peers.olds.iter().filter(|(_, old)| old.lingers.is_some()).map(|(id, _)| *id);
        lingering.collect::<Vec<u64>>().into_iter().for_each(|id| self.old_gone(land, id));
    }

    pub(super) fn server_is_gone(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        live.stop_drain();
        live.opening.calls.clear();
        live.opening.lent.clear();
        live.joining.proving.clear();
        live.joining.lent = None;
        std::mem::take(&mut live.joining.sharing).turn_back();
    }
}

impl Joining {
    pub(super) fn lend(&mut self, server: Server) -> Option<&Sharing> {
        if self.lent.is_none() && !self.sharing.is_empty() {
            self.sharing.look_once_more(&server);
            if self.sharing.has_olds() || !self.sharing.finish(&server) {
                self.lent = Some(std::mem::take(&mut self.sharing));
            }
        }
        self.lent.as_ref()
    }

    fn known(&self) -> &Sharing {
        self.lent.as_ref().unwrap_or(&self.sharing)
    }

    fn drop_olds(&mut self, old: u64, server: Server) -> bool {
        match &mut self.lent {
            Some(lent) => {
                lent.forget_handles(old);
                true
            }
            None => self.sharing.drop_olds(old, &server),
        }
    }
}

impl Live {
    pub(super) fn is_shared(&self) -> bool {
        !self.joining.unshared
    }

    pub(super) fn lent_until(&self) -> Option<Instant> {
        self.opening.lent.iter().find(|lent| lent.waiting.is_some()).map(|lent| lent.until)
    }
}

/// listen(2) for a server that is alone.
pub fn listen_alone(land: &mut Land, server: Server, Waiting { socket, .. }: Waiting) -> bool {
    let _ = socket.share();
    let listens = socket.listen(16).is_ok();
    drop(socket);
    land.conclude(server.0, listens);
    listens
}
