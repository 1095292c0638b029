//! The shared port in the hands of a supervisor: answering the `listen` calls of its server, steering
//! while a swap runs, and draining when a newer server has taken over.

use super::held::{Steering, Waiting};
use super::live::{JOINS_WITHIN, Lent, Live, Young};
use super::state::Supervisor;
use crate::address::Address;
use crate::place::Place;
use crate::protocol::HolderWord;
use crate::server::Server;
use crate::share::Handles;
use crate::swap::{self, Level};
use crate::sys::net::{self, Listeners};
use crate::sys::steer::{OwnProgram, Socket};
use nix::errno::Errno;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// How long a listener that a server opens after it was up has to stay open before it counts as an address.
const YOUNG_FOR: Duration = Duration::from_secs(30);

impl Live {
    fn take_calls(&mut self, address: &Address) -> Vec<Waiting> {
        self.opening.calls.extract_if(.., |call| Address::from(call.place.address) == *address).collect()
    }

    /// Tells the machine at which addresses the server has closed all that it had. `port`: only at this port, if
    /// `listeners` are those of one port.
    pub(super) fn follow_closed(
        &mut self,
        port: Option<u16>,
        listeners: &Listeners,
        pending: &mut VecDeque<swap::Event>,
    ) {
        self.joining.sharing.follow_news(port, listeners, &self.server);
        let closed = Address::all(&self.joining.sharing.closed(port));
        if closed.is_empty() {
            return;
        }
        for address in self.machine.claims() {
            if address.among(&closed).next().is_some() && self.joining.sharing.is_closed(&address) {
                self.joining.sharing.forget(&address);
                self.joining.proving.retain(|proving| !proving.collides(&address));
                pending.push_back(swap::Event::Closed(address));
            }
        }
    }
}

impl Handles for Server {
    fn handles(&self, inodes: &BTreeSet<u32>) -> Vec<Socket> {
        self.sockets(inodes.clone()).unwrap_or_default()
    }
}

impl Supervisor {
    pub(super) fn unshared(&mut self, why: &str) {
        let Some(live) = self.live.as_mut() else { return };
        if !std::mem::replace(&mut live.joining.unshared, true) {
            let text = format!("the port cannot be shared: {why} (swaps run in plain order)");
            self.log.say(Level::Warning, live.machine.name().as_ref(), &text);
        }
    }

    pub(super) fn called(&mut self, waiting: Waiting) {
        let Some(live) = self.live.as_mut() else { return };
        // Its calls are seen: its listeners need not be searched for.
        live.looks.discover_until = None;
        // It wants one more socket than it has so far.
        live.joining.settled = false;
        let (place, port) = (waiting.place, waiting.place.address.port());
        let is_programmed = waiting.socket.inode().is_ok_and(|inode| live.opening.programmed.remove(&inode));
        if live.joining.sharing.has_joined_at(port)
            && let Ok(listeners) = net::listeners_at(port)
        {
            live.follow_closed(Some(port), &listeners, &mut self.agenda.pending);
        }
        let (address, meets) = (Address::from(waiting.place.address), waiting.meets);
        live.opening.calls.push(waiting);
        if is_programmed {
            self.has_program(place);
        }
        self.feed(swap::Event::Calls(address, meets));
    }

    /// The server attaches a program of its own to a port, or detaches it. We make the call ourselves, to know whether
    /// it succeeded. While our program steers the port, the server's is kept for later.
    pub(super) fn steers(&mut self, steering: Steering) {
        let Steering { call, socket, program } = steering;
        let Some(live) = self.live.as_mut() else { return };
        let Ok(place) = socket.place() else { return call.proceed() };
        let is_off = matches!(program, OwnProgram::None);
        let result = live.joining.sharing.steer_by(&place, &socket, program);
        if result.is_ok() && place.address.port() == 0 {
            // The socket is not bound yet: the program will go with it to its place.
            let _ = socket.inode().map(|inode| live.opening.programmed.insert(inode));
        } else if result.is_ok() && is_off {
            live.opening.programs.remove(&place);
        } else if result.is_ok() {
            self.has_program(place);
        }
        drop(socket);
        call.conclude(result);
    }

    /// The server steers a place by a program of its own.
    fn has_program(&mut self, place: Place) {
        let Some(live) = self.live.as_mut() else { return };
        if live.opening.programs.insert(place) && live.steers_itself().is_some() {
            let text =
                "the port cannot be shared: the server steers it by a program of its own (swaps run in plain order)";
            self.log.say(Level::Warning, Some(&place.address.into()), text);
        }
    }

    /// Lets the server listen as if alone. We make the call ourselves, to know when it is done. While the supervisor of
    /// a newer server steers the port, that supervisor makes it.
    pub(super) fn admit(&mut self, address: &Address) {
        let Some(live) = self.live.as_mut() else { return };
        let mut listens = false;
        for waiting in live.take_calls(address) {
            let claimer = live.machine.claimer().filter(|_| live.is_shared() && live.standing.handed_over);
            if let Some(conn) = claimer.and_then(|claimer| self.peers.conns.get(&claimer.0)) {
                let fd = waiting.socket.fd().as_fd().as_raw_fd();
                conn.out.send_files(&HolderWord::Joins(waiting.backlog), &[fd]);
                live.opening.lent.push_back(Lent { waiting: Some(waiting), until: Instant::now() + JOINS_WITHIN });
                continue;
            }
            listens |= listen_alone(waiting, live.watch().is_some());
        }
        if let Some(until) = live.lent_until() {
            self.poll_by(until);
        }
        if listens {
            self.feed(swap::Event::Listens(address.clone()));
        }
    }

    /// Lets a call run as if nobody had seen it. What listens for long enough is an address all the same.
    pub(super) fn pass(&mut self, address: &Address) {
        let Some(live) = self.live.as_mut() else { return };
        for waiting in live.take_calls(address) {
            let until = Instant::now() + YOUNG_FOR;
            if let Ok(inode) = waiting.socket.inode() {
                live.opening.young.push(Young { inode, address: address.clone(), until });
            }
            drop(waiting.socket);
            waiting.call.proceed();
        }
        self.poll_by(Instant::now() + YOUNG_FOR);
    }

    /// Lets the server listen, beside the old one if there is one, which keeps all connections.
    pub(super) fn join(&mut self, address: &Address) {
        let Some(live) = self.live.as_mut() else { return };
        let calls = live.take_calls(address);
        let (server, may_share) = (&live.server, live.server.watch.as_ref().is_some_and(|watch| watch.is_ok()));
        if calls.is_empty() && may_share {
            // Its `listen` was not seen, or was long ago: a successor is to find the port sharable.
            for socket in server.listeners(std::slice::from_ref(address)).unwrap_or_default() {
                let _ = socket.share();
            }
        }
        // Nobody would answer some clients as long as the new server is kept from them.
        let may_try = self.run.trial.is_empty() || live.life.was_up && !live.machine.is_on_trial();
        for Waiting { call, socket, backlog, place, .. } in calls {
            if let Some(old) = live.joining.sharing.elsewhere(&place).filter(|_| !may_try) {
                let text = format!(
                    "the new server cannot be tried: the old one listens at {old}, another place of the port (it gets EADDRINUSE)"
                );
                self.log.say(Level::Error, Some(address), &text);
                call.conclude(Err(Errno::EADDRINUSE.into()));
                continue;
            }
            let result = live.joining.sharing.join(&socket, backlog, server);
            // No handle of ours may keep open what the server closes from here on.
            drop(socket);
            call.conclude(result);
        }
        if !live.life.was_up || !live.joining.sharing.is_empty() {
            live.joining.proving.insert(address.clone());
        }
        self.poll_soon();
    }

    /// Ends the calls at an address: a server that was told to stop does not wait for anything, and the
    /// signal would wait for the call.
    pub(super) fn deny(&mut self, address: &Address) {
        let Some(live) = self.live.as_mut() else { return };
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
    // No handle of ours may keep open what the server closes from here on.
    drop(socket);
    call.conclude(result);
    listens
}
