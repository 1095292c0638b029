//! `src/supervisor/{handover,lent}.rs`: the listeners of an old server come to the supervisor of the new one.

use super::switching::listen_alone;
use super::{Supervisor, Waiting};
use crate::address::Address;
use crate::protocol::{HolderWord, PeerWord};
use crate::server::Server;
use crate::share::{Handed, Whose};
use crate::swap::{ClaimerId, Event, OldId};
use crate::sys::steer::Socket;
use crate::world::dir::Holder;
use crate::world::land::Land;
use std::collections::BTreeSet;
use std::net::SocketAddr;

impl Supervisor {
    pub(super) fn locked(&mut self, land: &mut Land, id: u64, holds: Vec<Address>) {
        let Some(old) = self.peers.olds.get_mut(&id) else { return };
        let sockets = std::mem::take(&mut old.sockets);
        if std::mem::replace(&mut old.locked, true) {
            for word in old.asked.clone() {
                self.tell_old(land, id, &word);
            }
            return self.feed(Event::Locked(OldId(id), holds));
        }
        if holds.iter().any(Address::is_port) && self.live.as_ref().is_some_and(|live| live.is_shared()) {
            let shared = self.share(id, &holds, sockets);
            if let Err(why) = &shared {
                let old = self.peers.olds.get(&id).map_or(0, |old| old.holder.pid.raw());
                land.watch.unshared(self.server.0, old, why);
            }
            self.feed(Event::Shares(OldId(id), shared));
        }
        self.feed(Event::Locked(OldId(id), holds));
    }

    pub(super) fn hand_over(&mut self, land: &mut Land, claimer: ClaimerId, holds: &[Address]) {
        let Some(live) = self.live.as_mut() else { return };
        live.standing.handed_over = live.is_shared();
        if !live.standing.handed_over {
            return;
        }
        let own = self.server.listeners(holds);
        let listeners: Vec<Handed> = match live.joining.lend(self.server) {
            Some(lent) => lent.hand_over(own),
            None => {
                let replaced = &live.names.replaced;
                let mut olds: Vec<_> = replaced.iter().filter_map(|pid| land.dir.holder(pid.raw())).collect();
                olds.sort_by_key(|old| (old.generation, old.pid));
                let (older, younger): (Vec<_>, Vec<_>) =
                    olds.into_iter().partition(|old| old.pid.raw() <= self.server.0);
                let listeners = |old: Holder| Server(old.pid.raw()).listeners(holds);
                let draining = |socket| Handed::unknown(socket, Whose::Draining);
                let own = own.into_iter().map(|socket| Handed::unknown(socket, Whose::Serving));
                let older = older.into_iter().flat_map(listeners).map(draining);
                older.chain(own).chain(younger.into_iter().flat_map(listeners).map(draining)).collect()
            }
        };
        self.tell(land, claimer, &HolderWord::Sockets(listeners.len()));
        self.tell(land, claimer, &HolderWord::Order(listeners.iter().map(Handed::letter).collect()));
        let files: Vec<Socket> = listeners.iter().map(|it| it.socket.send()).collect();
        land.write(claimer.0, self.pid, &HolderWord::Sockets(files.len()), files);
    }

    fn share(&mut self, id: u64, holds: &[Address], sockets: Vec<Socket>) -> Result<(), String> {
        let old = self.peers.olds.get(&id).ok_or("it is gone")?;
        let mut inodes = BTreeSet::new();
        let letters = old.order.chars().chain(std::iter::repeat('s'));
        let mut listeners: Vec<Handed> =
            sockets.into_iter().zip(letters).map(|(s, letter)| Handed::new(s, letter)).collect();
        listeners.retain(|it| it.socket.inode().is_ok_and(|inode| inodes.insert(inode)));
        if listeners.len() < old.promised {
            return Err(format!("only {} of its {} listeners can be had", listeners.len(), old.promised));
        }
        let held = Address::all(holds);
        let is_held = |at: SocketAddr| Address::from(at).among(&held).next().is_some();
        let fits = |socket: &Socket| socket.listens() && socket.is_tcp() && socket.address().is_ok_and(is_held);
        listeners.retain(|it| fits(&it.socket));
        let live = self.live.as_mut().ok_or("it is gone")?;
        live.joining.sharing.add_old(id, 0, listeners)
    }

    /// The supervisor of an old server asks us to let a listener of that join.
    pub(super) fn joins(&mut self, land: &mut Land, id: u64, backlog: i32) {
        let server = self.server;
        let Some(old) = self.peers.olds.get_mut(&id) else { return };
        let socket = old.sockets.pop();
        let result = match (socket, self.live.as_mut()) {
            // Somebody else steers, and does not know of it.
            (_, Some(live)) if live.joining.lent.is_some() => Err(nix::errno::Errno::EADDRINUSE.into()),
            (Some(socket), Some(live)) => live.joining.sharing.join_old(id, socket, backlog, &server),
            _ => Err(nix::errno::Errno::EBADF.into()),
        };
        let errno = result.err().map_or(0, |e| e.raw_os_error().unwrap_or(98));
        self.tell_old(land, id, &PeerWord::Joined(errno));
    }

    pub(super) fn joined(&mut self, land: &mut Land, claimer: ClaimerId, errno: i32) {
        let Some(live) = self.live.as_mut() else { return };
        if live.machine.is_locked_by(claimer)
            && let Some(lent) = live.opening.lent.pop_front()
        {
            let Some(Waiting { socket, .. }) = lent.waiting else { return };
            drop(socket);
            land.conclude(self.server.0, errno == 0);
        }
    }

    /// Whoever steers does not answer, or is gone: our server must not wait for that.
    pub(super) fn lend_no_more(&mut self, land: &mut Land, is_late: impl Fn(&super::Lent) -> bool) {
        let server = self.server;
        let Some(live) = self.live.as_mut() else { return };
        for lent in live.opening.lent.iter_mut().filter(|lent| is_late(lent)) {
            lent.waiting.take().into_iter().for_each(|waiting| _ = listen_alone(land, server, waiting));
        }
    }
}
