//! The shared port in the hands of a supervisor: answering the `listen` calls of its server, steering
//! while a swap runs, and draining when a newer server has taken over.

#![forbid(unsafe_code)]

use super::held::Steering;
use super::held::Waiting;
use super::lent::JOINS_WITHIN;
use super::lent::Lent;
use super::threads::GenId;
use super::{Live, Supervisor};
use crate::address::Address;
use crate::place::Place;
use crate::protocol::HolderWord;
use crate::server::{Server, Watch};
use crate::swap::{self, Level};
use crate::sys::net::{self, Listeners};
use crate::sys::steer::{OwnProgram, Socket};
use nix::errno::Errno;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a socket has to listen that was not there when its server came up, before it is one of its addresses.
const YOUNG_FOR: Duration = Duration::from_secs(30);

/// A listener that its server opened when it was up already.
pub(super) struct Young {
    pub(super) inode: u32,
    pub(super) address: Address,
    pub(super) until: Instant,
}

impl Live {
    pub(super) fn watch(&self) -> Option<&Arc<Watch>> {
        self.server.watch.as_ref()?.as_ref().ok()
    }

    /// Whether its ports can be shared with a newer server.
    pub(super) fn is_shared(&self) -> bool {
        self.watch().is_some() && !self.unshared && self.steers_itself().is_none()
    }

    /// When a listener that it opened becomes an address.
    pub(super) fn young_until(&self) -> Option<Instant> {
        self.young.iter().map(|young| young.until).min()
    }

    /// An address of its that it steers by a program of its own.
    fn steers_itself(&self) -> Option<&Place> {
        if self.programs.is_empty() {
            return None;
        }
        let own = Address::all(&self.machine.addresses());
        self.programs.iter().find(|place| Address::from(place.address).among(&own).next().is_some())
    }

    /// The listeners that it has at its addresses.
    pub(super) fn listeners(&self) -> std::io::Result<Vec<Socket>> {
        self.server.listeners(&self.machine.addresses())
    }

    fn take_calls(&mut self, address: &Address) -> Vec<Waiting> {
        self.calls.extract_if(.., |call| Address::from(call.place.address) == *address).collect()
    }

    /// What the server has closed before it was up is none of its addresses. `port`: only there, where these are the
    /// listeners of one port.
    pub(super) fn follow_closed(
        &mut self,
        generation: GenId,
        port: Option<u16>,
        listeners: &Listeners,
        pending: &mut VecDeque<(GenId, swap::Event)>,
    ) {
        let server = &self.server;
        self.sharing.follow_news(port, listeners, &|inodes| sockets(server, inodes));
        let closed = Address::all(&self.sharing.closed(port));
        if closed.is_empty() {
            return;
        }
        for address in self.machine.claims() {
            if address.among(&closed).next().is_some() && self.sharing.is_closed(&address) {
                self.sharing.forget(&address);
                self.proving.retain(|proving| !proving.collides(&address));
                pending.push_back((generation, swap::Event::Closed(address)));
            }
        }
    }
}

/// Those of these sockets that the server lets us have.
pub(super) fn sockets(server: &Server, inodes: &BTreeSet<u32>) -> Vec<Socket> {
    server.sockets(inodes.clone()).unwrap_or_default()
}

impl Supervisor {
    pub(super) fn unshared(&mut self, generation: GenId, why: &str) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        if !std::mem::replace(&mut live.unshared, true) {
            let text = format!("the port cannot be shared: {why} (swaps run in plain order)");
            self.log.say(Level::Warning, live.machine.name().as_ref(), &text);
        }
    }

    pub(super) fn called(&mut self, generation: GenId, waiting: Waiting) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        // It is seen: nobody has to look for its listeners.
        live.discover_until = None;
        // And what it has so far is not all.
        live.settled = false;
        let (place, port) = (waiting.place, waiting.place.address.port());
        let is_programmed = waiting.socket.inode().is_ok_and(|inode| live.programmed.remove(&inode));
        if live.sharing.has_joined_at(port)
            && let Ok(listeners) = net::listeners_at(port)
        {
            live.follow_closed(generation, Some(port), &listeners, &mut self.pending);
        }
        let (address, meets) = (Address::from(waiting.place.address), waiting.meets);
        live.calls.push(waiting);
        if is_programmed {
            self.has_program(generation, place);
        }
        self.feed(generation, swap::Event::Calls(address, meets));
    }

    /// The server puts a program on a port, or takes it off: what comes of that is known only if we do it. While the port
    /// is steered by ours, that of the server waits for its turn.
    pub(super) fn steers(&mut self, generation: GenId, steering: Steering) {
        let Steering { call, socket, program } = steering;
        let Some(live) = self.live.get_mut(&generation) else { return };
        let Ok(place) = socket.place() else { return call.proceed() };
        let is_off = matches!(program, OwnProgram::None);
        let result = live.sharing.steer_by(&place, &socket, program);
        if result.is_ok() && place.address.port() == 0 {
            // The program goes with it wherever it is bound.
            let _ = socket.inode().map(|inode| live.programmed.insert(inode));
        } else if result.is_ok() && is_off {
            live.programs.remove(&place);
        } else if result.is_ok() {
            self.has_program(generation, place);
        }
        drop(socket);
        call.conclude(result);
    }

    /// The server steers a place by a program of its own.
    fn has_program(&mut self, generation: GenId, place: Place) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        if live.programs.insert(place) && live.steers_itself().is_some() {
            let text =
                "the port cannot be shared: the server steers it by a program of its own (swaps run in plain order)";
            self.log.say(Level::Warning, Some(&place.address.into()), text);
        }
    }

    /// Lets the server listen as if alone. We make the call ourselves, to know when it is done; beside a new server, whose
    /// supervisor steers, that one does.
    pub(super) fn admit(&mut self, generation: GenId, address: &Address) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        let mut listens = false;
        for waiting in live.take_calls(address) {
            let claimer = live.machine.claimer().filter(|_| live.is_shared() && live.handed_over);
            if let Some(conn) = claimer.and_then(|claimer| self.conns.get(&claimer.0)) {
                let fd = waiting.socket.fd().as_fd().as_raw_fd();
                conn.out.send_files(&HolderWord::Joins(waiting.backlog), &[fd]);
                live.lent.push_back(Lent { waiting: Some(waiting), until: Instant::now() + JOINS_WITHIN });
                continue;
            }
            listens |= listen_alone(waiting, live.watch().is_some());
        }
        if let Some(until) = live.lent_until() {
            self.poll_by(until);
        }
        if listens {
            self.feed(generation, swap::Event::Listens(address.clone()));
        }
    }

    /// Lets a call run as if nobody had seen it. What listens for long enough is an address all the same.
    pub(super) fn pass(&mut self, generation: GenId, address: &Address) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        for waiting in live.take_calls(address) {
            let until = Instant::now() + YOUNG_FOR;
            if let Ok(inode) = waiting.socket.inode() {
                live.young.push(Young { inode, address: address.clone(), until });
            }
            drop(waiting.socket);
            waiting.call.proceed();
        }
        self.poll_by(Instant::now() + YOUNG_FOR);
    }

    /// Lets the server listen, beside the old one if there is one, which keeps all connections.
    pub(super) fn join(&mut self, generation: GenId, address: &Address) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        let calls = live.take_calls(address);
        let (server, may_share) = (&live.server, live.server.watch.as_ref().is_some_and(|watch| watch.is_ok()));
        let fetch = |inodes: &BTreeSet<u32>| sockets(server, inodes);
        if calls.is_empty() && may_share {
            // Nobody saw it listen, or it has for long: a successor is to find the port sharable.
            for socket in server.listeners(std::slice::from_ref(address)).unwrap_or_default() {
                let _ = socket.share();
            }
        }
        for Waiting { call, socket, backlog, .. } in calls {
            let result = live.sharing.join(&socket, backlog, &fetch);
            // What the server closes from here on is closed.
            drop(socket);
            call.conclude(result);
        }
        if !live.was_up || !live.sharing.is_empty() {
            live.proving.insert(address.clone());
        }
        self.poll_soon();
    }

    /// Ends the calls at an address: a server that was told to stop does not wait for anything, and the
    /// signal would wait for the call.
    pub(super) fn deny(&mut self, generation: GenId, address: &Address) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        let errno = if live.machine.is_leaving() { Errno::EINTR } else { Errno::EADDRINUSE };
        for waiting in live.take_calls(address) {
            waiting.call.conclude(Err(errno.into()));
        }
    }
}

/// listen(2) for a server that is alone. A successor finds the port sharable; a server that cannot be watched shares none.
pub(super) fn listen_alone(waiting: Waiting, may_share: bool) -> bool {
    let Waiting { call, socket, backlog, .. } = waiting;
    if may_share {
        let _ = socket.share();
    }
    let result = socket.listen(backlog);
    let listens = result.is_ok();
    // What the server closes from here on is closed.
    drop(socket);
    call.conclude(result);
    listens
}
