//! The thread that sees a server's `bind` and `listen`. A `bind` is let through at once, its port made sharable where it
//! meets an address of a server that is to be replaced; a `listen` waits for the main thread to answer it.

use super::held::{Held, Steering, Waiting};
use super::threads::{Event, Events};
use crate::address::Address;
use crate::finder::May;
use crate::place::Place;
use crate::procfs::{self, MARK};
use crate::rundir::RunDir;
use crate::server::Watch;
use crate::swap::Meets;
use crate::sys::net::{self, TcpSocket};
use crate::sys::process::Pid;
use crate::sys::seccomp::{Call, Last, Notification};
use crate::sys::steer::{OwnProgram, Socket};
use crate::sys::thread::start;
use nix::libc;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

impl Watch {
    /// The next call of the server, in the ledger already: if we die from here on, the keeper answers. `None` when nobody
    /// is left. If a call cannot be taken from the kernel, `failed` hears why, and that is tried again.
    fn next(&self, failed: impl Fn(String)) -> Option<Notification> {
        loop {
            match self.notifier.next(&self.ledger) {
                Ok(call) => return call,
                Err(e) => failed(format!("its calls cannot be seen: {}", crate::error::reason(&e))),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Sees the calls of a server until nobody of it is left.
pub fn watch(events: Events, watch: Arc<Watch>, mark: String, dir: RunDir) -> io::Result<()> {
    start("watch", move || {
        let mut watcher = Watcher::new(watch.clone(), mark, dir);
        let unshared = |why: String| drop(events.send(Event::Unshared(why)));
        while let Some(call) = watch.next(unshared) {
            let held = Held::new(watch.clone(), call.id);
            // Only the main process is sure to serve: that the sockets of another one cannot be had means nothing yet.
            let is_main = || call.caller().map(|caller| caller.process) == watch.facts.read().0;
            let denied = |e: &io::Error| {
                if is_denied(e) && (e.raw_os_error() == Some(libc::ENOSYS) || is_main()) {
                    let why = crate::error::reason(e);
                    unshared(format!("its sockets cannot be had: {why}; a container needs the capability SYS_PTRACE"));
                }
            };
            match call.call {
                Call::Bind => {
                    match watcher.bind(&call) {
                        Ok(Meets::Server) => drop(events.send(Event::Bound)),
                        Ok(Meets::Nobody) => {}
                        // What could not be found out runs as if nobody had looked.
                        Err(e) => denied(&e),
                    }
                    held.proceed();
                }
                Call::Steer => match watcher.steer(&call) {
                    Ok(Some((socket, program))) => {
                        let steering = Steering { call: held, socket, program };
                        if events.send(Event::Steers(steering)).is_err() {
                            return;
                        }
                    }
                    Ok(None) => held.proceed(),
                    Err(_) => {
                        unshared("the server steers it by a program of its own, which cannot be read".into());
                        held.proceed();
                    }
                },
                Call::Listen(backlog) => match watcher.listen(&call) {
                    Ok(Some((socket, place, meets, may))) => {
                        // By this listener its holders are known as the server's, whatever their environment is.
                        let _ = socket.inode().map(|inode| watch.seen.listener(inode));
                        let waiting = Waiting { call: held, socket, place, backlog, meets, may };
                        if events.send(Event::Called(waiting)).is_err() {
                            return;
                        }
                    }
                    Ok(None) => held.proceed(),
                    Err(e) => {
                        denied(&e);
                        held.proceed();
                    }
                },
            }
        }
    })
}

/// What is known of the sockets of a server.
struct Watcher {
    watch: Arc<Watch>,
    mark: String,
    named: Named,
    /// The network namespace of this supervisor; `None` where the kernel does not name it.
    namespace: Option<u64>,
    /// Sockets that were made sharable, or listen.
    own: Vec<Own>,
    /// How many of them there may be before those that are closed are forgotten.
    own_look: usize,
    last: Last,
}

const OWN_LOOK: usize = 256;

struct Own {
    inode: u32,
    place: Place,
    held: procfs::Held,
    /// What it met when it was bound or first listened.
    met: Meets,
}

impl Watcher {
    fn new(watch: Arc<Watch>, mark: String, dir: RunDir) -> Watcher {
        Watcher {
            watch,
            mark,
            named: Named { dir, ports: BTreeSet::new(), unnamed: false, at: None },
            namespace: net::namespace().ok(),
            own: Vec::new(),
            own_look: OWN_LOOK,
            last: Last::default(),
        }
    }

    /// A `bind` goes on untouched unless it meets an address of another server: then the port is made sharable, so
    /// that the new server can bind while the old one serves. Port 0 never: the kernel could then pick a port that is
    /// in use.
    fn bind(&mut self, call: &Notification) -> io::Result<Meets> {
        let Some(address) = call.address()?.filter(|a| a.port() != 0) else { return Ok(Meets::Nobody) };
        let socket = Socket::new(call.socket(&mut self.last)?);
        match socket.protocol()? {
            libc::IPPROTO_TCP => {}
            libc::IPPROTO_UDP => return self.bind_datagram(call, address, &socket).map(|()| Meets::Nobody),
            _ => return Ok(Meets::Nobody),
        }
        // Noted now: when the socket listens, its process may have changed its user and be out of reach.
        self.watch.seen.bound(socket.inode()?, address);
        if !self.meets(call, address, &socket)? {
            return Ok(Meets::Nobody);
        }
        // What was read belongs to this call only if it still waits.
        if self.watch.notifier.waits(call.id) {
            self.remember(call, &socket, Place { address, ..socket.place()? }, Meets::Server)?;
            socket.share()?;
        }
        Ok(Meets::Server)
    }

    /// Whether a server that may be replaced listens where this socket is to be bound.
    fn meets(&mut self, call: &Notification, address: SocketAddr, socket: &Socket) -> io::Result<bool> {
        let (main, lent) = self.watch.facts.read();
        if !self.named.may_have(address.port(), main)? || !self.is_here(call, socket) {
            return Ok(false);
        }
        let mut named = self.named.dir.named(&address.into())?;
        if named.is_empty() && net::listens_at(address)? {
            named = self.named.dir.unnamed_at(&address.into())?;
        }
        // A bind at an address of this server alone counts only while another server shares its ports in a swap.
        let others = named.iter().any(|pid| Some(*pid) != main);
        if !(others || lent && !named.is_empty()) || others && self.is_foreign(call) {
            return Ok(false);
        }
        let place = Place { address, ..socket.place()? };
        if lent && named.iter().all(|pid| Some(*pid) == main) {
            // It replaces a listener of its own beside another server: nobody may be kept waiting.
            return Ok(!self.has(&place) || socket.shares());
        }
        let listeners = net::listeners_at(address.port())?;
        let in_the_way: Vec<&TcpSocket> = listeners.all().filter(|s| s.place().conflicts(&place)).collect();
        // The kernel lets nobody share with sockets of another user, and neither do we.
        let is_ours = |uid: u32| in_the_way.iter().all(|s| s.uid == uid);
        // A second socket of this server at the same place gets EADDRINUSE, as ever: only what the server
        // itself made sharable shares with itself.
        let twice = !socket.shares() && self.has(&place);
        Ok(!in_the_way.is_empty() && is_ours(place.uid) && call.caller().is_some_and(|c| is_ours(c.uid)) && !twice)
    }

    /// Whether an open socket of this server is in the way of a place.
    fn has(&mut self, place: &Place) -> bool {
        self.own.retain(|own| !own.place.conflicts(place) || own.held.is_still(own.inode));
        self.own.iter().any(|own| own.place.conflicts(place))
    }

    fn remember(&mut self, call: &Notification, socket: &Socket, place: Place, met: Meets) -> io::Result<()> {
        let inode = socket.inode()?;
        if self.own.len() >= self.own_look {
            self.own.retain(|own| own.held.is_still(own.inode));
            self.own_look = OWN_LOOK.max(2 * self.own.len());
        }
        if let Some(caller) = call.caller()
            && self.own.iter().all(|own| own.inode != inode)
        {
            self.own.push(Own { inode, place, met, held: procfs::Held::at(caller.process, call.number()) });
        }
        Ok(())
    }

    /// Two servers can have one UDP port only if both sockets are made sharable before their `bind`. We do that if the
    /// port is free, and if each socket there belonged to another server when that came up. So a server that tries
    /// port after port still finds a free one.
    fn bind_datagram(&mut self, call: &Notification, address: SocketAddr, socket: &Socket) -> io::Result<()> {
        if socket.shares() || !self.is_here(call, socket) {
            return Ok(());
        }
        let there = net::datagrams_at(address, socket.takes_both_families())?;
        let may = there.is_empty() || {
            let uid = socket.uid()?;
            let inherited = self.named.dir.datagrams(self.watch.facts.read().0)?;
            !self.is_foreign(call) && there.iter().all(|(inode, owner)| inherited.contains(inode) && *owner == uid)
        };
        if may && self.watch.notifier.waits(call.id) {
            socket.share()?;
            self.watch.facts.note_datagram(socket.inode()?);
        }
        Ok(())
    }

    /// The socket and its place, if it is one of a fixed port that does not listen yet.
    fn listen(&mut self, call: &Notification) -> io::Result<Option<(Socket, Place, Meets, May)>> {
        let socket = Socket::new(call.socket(&mut self.last)?);
        let (inode, place) = (socket.inode()?, socket.place()?);
        // The bind that was seen may have failed, and another one, to any port, have come after it.
        let fixed = self.watch.seen.asked(inode) == Some(place.address.port());
        if !fixed || socket.listens() || !self.is_here(call, &socket) || self.is_foreign(call) {
            return Ok(None);
        }
        let Some(caller) = call.caller() else { return Ok(None) };
        // A process that has changed its user since it opened the socket claims nothing by this `listen`, unless the
        // `bind` has claimed the address already.
        let (meets, may) = match () {
            () if self.own.iter().any(|own| own.inode == inode && own.met == Meets::Server) => {
                (Meets::Server, May::Replace)
            }
            () if caller.uid != place.uid => (Meets::Nobody, May::Nothing),
            () if self.meets(call, place.address, &socket)? => (Meets::Server, May::Replace),
            () => (Meets::Nobody, May::Replace),
        };
        self.remember(call, &socket, place, meets)?;
        Ok(Some((socket, place, meets, may)))
    }

    /// The socket and the program of a call that puts a program on a port; `None` if the call is to run untouched.
    fn steer(&mut self, call: &Notification) -> io::Result<Option<(Socket, OwnProgram)>> {
        let Ok(socket) = call.socket(&mut self.last).map(Socket::new) else { return Ok(None) };
        if !socket.is_tcp() || !self.is_here(call, &socket) || self.is_foreign(call) {
            return Ok(None);
        }
        let program = call.program();
        // What was read belongs to this call only if it still waits.
        if !self.watch.notifier.waits(call.id) {
            return Ok(None);
        }
        match program {
            Ok(program) => Ok(Some((socket, program))),
            Err(e) if is_denied(&e) => Err(e),
            // The kernel finds it as wrong as we do.
            Err(_) => Ok(None),
        }
    }

    /// Whether a socket is of this network namespace: no other one has addresses here.
    fn is_here(&self, call: &Notification, socket: &Socket) -> bool {
        match (self.namespace, socket.namespace()) {
            (Some(own), Ok(its)) => own == its,
            (Some(_), Err(_)) => false,
            (None, _) => call.caller().is_some_and(|caller| procfs::shares_network(caller.process)),
        }
    }

    /// The filter also sees what runs under another serverswap inside this server.
    fn is_foreign(&self, call: &Notification) -> bool {
        let process = call.caller().map(|caller| caller.process);
        process.is_some_and(|pid| {
            procfs::environment(pid, MARK).is_some_and(|m| m != self.mark) || procfs::serverswaps()(pid)
        })
    }
}

/// The ports that have a pidfile, read again when the run directory has changed.
struct Named {
    dir: RunDir,
    ports: BTreeSet<u16>,
    /// There are servers that no pidfile names: it was removed, or they have no address, or none yet.
    unnamed: bool,
    /// When the directory was last changed before it was read.
    at: Option<SystemTime>,
}

/// The timestamp of a directory advances at least this often: two changes within one tick may look like one.
const TICK: Duration = Duration::from_millis(50);

impl Named {
    /// Whether a server may have this port. While the directory changes each may: a server may open a thousand
    /// addresses in a row, and to read all names anew for each takes longer than to look for the one.
    fn may_have(&mut self, port: u16, me: Option<Pid>) -> io::Result<bool> {
        let changed = self.dir.changed();
        if !changed.is_some_and(|then| then.elapsed().is_ok_and(|age| age > TICK)) {
            return Ok(true);
        }
        if self.at != changed {
            let port_of = |address| if let Address::Tcp(_, port) = address { Some(port) } else { None };
            self.ports = self.dir.addresses()?.into_iter().filter_map(port_of).collect();
            self.unnamed = !self.dir.unnamed(me)?.is_empty();
            self.at = changed;
        }
        Ok(self.ports.contains(&port) || self.unnamed)
    }
}

/// A container profile may have no pidfd_getfd(2), and a process that is not dumpable lets nobody look.
fn is_denied(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
}
