//! The shared port in the hands of a supervisor: answering the `listen` calls of its server, steering
//! while a swap runs, and draining when a newer server has taken over.

#![forbid(unsafe_code)]

use super::effects::Adopted;
use super::processes::UNCLEAR_FOR;
use super::threads::{self, GenId, Id};
use super::watching::{Steering, Waiting};
use super::{Left, Linger, Live, Old, OldTo, Supervisor, Wait};
use crate::address::Address;
use crate::drain::{Drain, Drained};
use crate::finder::Holder;
use crate::place::Place;
use crate::procfs::{self, Snapshot};
use crate::protocol::{HolderWord, PeerWord};
use crate::server::{Server, Watch};
use crate::share::{self, Block};
use crate::swap::{self, ClaimerId, Level, OldId};
use crate::sys::net::{self, Listeners, TcpSocket};
use crate::sys::process::Pid;
use crate::sys::socket::FILES_MAX;
use crate::sys::steer::{OwnProgram, Socket};
use nix::errno::Errno;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a socket has to listen that was not there when its server came up, before it is one of its addresses.
const YOUNG_FOR: Duration = Duration::from_secs(30);

/// How often somebody who holds a listener of an old server that has ended is looked for.
pub(super) const LINGERS: Duration = Duration::from_millis(200);

/// How long the supervisor of a new server may take to let a listener of the old one join.
const JOINS_WITHIN: Duration = Duration::from_secs(1);

/// A listener that its server opened when it was up already.
pub(super) struct Young {
    inode: u32,
    address: Address,
    until: Instant,
}

/// A `listen` of a server that is being replaced, which the supervisor of the new one carries out: whoever steers has to
/// know the order of all members.
pub(super) struct Lent {
    /// `None` once it was let listen without waiting any longer: the answer is still to come.
    waiting: Option<Waiting>,
    until: Instant,
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

    /// When a listener that waits for the supervisor of a new server is let listen all the same.
    pub(super) fn lent_until(&self) -> Option<Instant> {
        self.lent.iter().find(|lent| lent.waiting.is_some()).map(|lent| lent.until)
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
    fn listeners(&self) -> std::io::Result<Vec<Socket>> {
        self.server.listeners(&self.machine.addresses())
    }

    /// The server keeps its new connections, or is gone.
    pub(super) fn stop_drain(&mut self) {
        (self.drains, self.drain) = (false, None);
    }

    fn take_calls(&mut self, address: &Address) -> Vec<Waiting> {
        self.calls.extract_if(.., |call| Address::from(call.place.address) == *address).collect()
    }

    /// What the server has closed before it was up is none of its addresses. `port`: only there, where these are the
    /// listeners of one port.
    fn follow_closed(
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
fn sockets(server: &Server, inodes: &BTreeSet<u32>) -> Vec<Socket> {
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

    /// A listener of an old server joins.
    fn join_old(&mut self, of: GenId, id: Id, socket: &Socket, backlog: i32) -> std::io::Result<()> {
        let live = self.live.get_mut(&of).ok_or(Errno::ESRCH)?;
        let server = &live.server;
        live.sharing.join_old(id, socket.try_clone()?, backlog, &|inodes| sockets(server, inodes))
    }

    /// The supervisor of an old server asks us to let a listener of that join.
    pub(super) fn joins(&mut self, id: Id, backlog: i32) {
        let Some(old) = self.olds.get_mut(&id) else { return };
        let (of, socket) = (old.of, old.sockets.pop().map(Socket::new));
        let result = match socket {
            Some(socket) if socket.is_tcp() => self.join_old(of, id, &socket, backlog),
            _ => Err(Errno::EBADF.into()),
        };
        let errno = result.err().map_or(0, |e| e.raw_os_error().unwrap_or(nix::libc::EADDRINUSE));
        if let Some(conn) = self.conns.get(&id) {
            conn.out.send(&PeerWord::Joined(errno));
        }
    }

    /// The supervisor of the new server has let the oldest listener that we sent it join.
    pub(super) fn joined(&mut self, generation: GenId, claimer: ClaimerId, errno: i32) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        if live.machine.is_locked_by(claimer)
            && let Some(lent) = live.lent.pop_front()
        {
            let Some(Waiting { call, socket, .. }) = lent.waiting else { return };
            drop(socket);
            call.conclude(if errno == 0 { Ok(()) } else { Err(Errno::from_raw(errno).into()) });
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

    /// Listeners of an old server came from its supervisor.
    pub(super) fn handed_over(&mut self, id: Id, files: Vec<OwnedFd>) {
        if let Some(old) = self.olds.get_mut(&id)
            && old.sockets.len() + files.len() <= swap::ADDRESSES_MAX
        {
            old.sockets.extend(files);
        }
    }

    /// The lock of an old server is ours: gets hold of its listeners, so that the port can be shared.
    pub(super) fn locked(&mut self, of: GenId, id: Id, holds: Vec<Address>) {
        let Some(old) = self.olds.get_mut(&id) else { return };
        let sockets = std::mem::take(&mut old.sockets);
        if std::mem::replace(&mut old.locked, true) {
            // It has lost its supervisor meanwhile, and here is the new one.
            if let OldTo::Local(generation) = old.to {
                let waits = |event: &swap::Event| matches!(event, swap::Event::AskedTakedown(..));
                if holds.is_empty() && !old.asked.is_empty() && !old.asked.iter().any(waits) {
                    // It has let go of all: it was told, and a signal would cut short what that began.
                    self.feed(generation, swap::Event::Stop { signalled: true });
                } else {
                    self.pending.extend(old.asked.iter().cloned().map(|event| (generation, event)));
                }
            }
            return self.feed(of, swap::Event::Locked(OldId(id), holds));
        }
        if holds.iter().any(Address::is_port) && self.live.get(&of).is_some_and(Live::is_shared) {
            match self.share(of, id, &holds, sockets) {
                Ok(()) => self.feed(of, swap::Event::Shares(OldId(id))),
                Err(why) => self.feed(of, swap::Event::Unshared(OldId(id), why)),
            }
        }
        self.feed(of, swap::Event::Locked(OldId(id), holds));
    }

    /// Sends a claimer the listeners of our server. We do it because a security module may let nobody else
    /// have them (Yama lets a supervisor reach its descendants only).
    pub(super) fn hand_over(&mut self, generation: GenId, claimer: ClaimerId, holds: &[Address]) {
        let (Some(live), Some(conn)) = (self.live.get_mut(&generation), self.conns.get(&claimer.0)) else { return };
        live.handed_over = live.is_shared();
        if !live.handed_over {
            return;
        }
        // Without them the claimer says that it swaps in plain order.
        let listeners = live.server.listeners(holds).unwrap_or_default();
        // How many they are: some may get lost.
        conn.out.send(&HolderWord::Sockets(listeners.len()));
        for some in listeners.chunks(FILES_MAX) {
            let files: Vec<RawFd> = some.iter().map(|socket| socket.fd().as_fd().as_raw_fd()).collect();
            conn.out.send_files(&HolderWord::Sockets(files.len()), &files);
        }
    }

    fn share(&mut self, of: GenId, id: Id, holds: &[Address], sockets: Vec<OwnedFd>) -> Result<(), String> {
        let old = self.olds.get(&id).ok_or("it is gone")?;
        let (held, mut since) = (Address::all(holds), old.server.1);
        let wanted = |a: &Address| a.among(&held).next().is_some();
        let failed = |e: std::io::Error| format!("its listeners cannot be had: {}", crate::error::reason(&e));
        let blocks = match &old.to {
            OldTo::Local(generation) => {
                let live = self.live.get(generation).ok_or("it is gone")?;
                let own = live.server.listeners(holds).map_err(failed)?;
                let orphans = if live.is_orphan() { self.orphans_beside(of, live) } else { Vec::new() };
                if orphans.len() < 2 {
                    vec![Block { sockets: own, serves: true }]
                } else if self.live.get(&of).is_some_and(|l| l.sharing.has(&own)) {
                    return Ok(());
                } else {
                    since = orphans.iter().map(|orphan| orphan.server.start).fold(since, u64::min);
                    beside_each_other(&orphans).map_err(failed)?
                }
            }
            OldTo::Remote(_) => {
                // What comes with a word of a later version may be one of them once more, which counts once.
                let mut inodes = BTreeSet::new();
                let mut sockets: Vec<Socket> = sockets.into_iter().map(Socket::new).collect();
                sockets.retain(|socket| socket.inode().is_ok_and(|inode| inodes.insert(inode)));
                if sockets.len() < old.promised {
                    // Where nobody steers, the new server would get connections before its time.
                    return Err(format!("only {} of its {} listeners can be had", sockets.len(), old.promised));
                }
                let fits = |s: &Socket| s.listens() && s.is_tcp() && s.address().is_ok_and(|at| wanted(&at.into()));
                vec![Block { sockets: sockets.into_iter().filter(fits).collect(), serves: true }]
            }
        };
        if let OldTo::Local(generation) = old.to
            && let Some(live) = self.live.get_mut(&generation)
        {
            live.handed_over = true;
        }
        let live = self.live.get_mut(&of).ok_or("it is gone")?;
        live.sharing.add_old(id, since, blocks)
    }

    /// The orphans that a generation wants to replace and that share a port with one of them, or with one that does, the
    /// oldest first: a supervisor that died in a swap of its own has left two.
    fn orphans_beside<'a>(&'a self, of: GenId, one: &'a Live) -> Vec<&'a Live> {
        let local =
            |old: &'a Old| if let OldTo::Local(generation) = old.to { self.live.get(&generation) } else { None };
        let olds = self.olds.values().filter(|old| old.of == of);
        let mut others: Vec<&Live> = olds.filter_map(local).filter(|live| live.is_orphan()).collect();
        others.retain(|other| other.server.pid != one.server.pid);
        let mut beside = vec![one];
        let mut next = 0;
        while let Some(known) = beside.get(next) {
            let places = Address::all(&known.machine.addresses());
            let shares = |other: &mut &Live| {
                other.machine.addresses().iter().any(|at| at.is_port() && at.among(&places).next().is_some())
            };
            beside.extend(others.extract_if(.., shares));
            next += 1;
        }
        beside.sort_by_key(|live| (live.number, live.server.start));
        beside
    }

    pub(super) fn switch(&mut self, generation: GenId) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        let server = &live.server;
        let (mut abandoned, result) = live.sharing.switch(&|inodes| sockets(server, inodes));
        // Of an address that it has nothing of the machine says so.
        let claims = Address::all(&live.machine.claims());
        abandoned.retain(|place| Address::from(*place).among(&claims).next().is_some());
        for place in abandoned {
            let text = format!("the new server does not listen on {place} (it is abandoned)");
            self.log.say(Level::Warning, Some(&place.into()), &text);
        }
        if let Err(e) = result {
            let text = format!("unable to steer the port: {} (the swap goes on)", crate::error::reason(&e));
            self.log.say(Level::Warning, None, &text);
        }
        let replaced = self.olds.values().filter(|old| old.of == generation && old.locked);
        self.write_replaced(generation, replaced.map(|old| old.server.0).collect());
    }

    pub(super) fn switch_back(&mut self, generation: GenId) {
        if let Some(live) = self.live.get_mut(&generation) {
            let server = &live.server;
            live.sharing.switch_back(&|inodes| sockets(server, inodes));
        }
        self.write_replaced(generation, Vec::new());
    }

    /// Whoever finds the servers of a dead supervisor reads in the record whether the swap was made.
    fn write_replaced(&mut self, generation: GenId, replaced: Vec<Pid>) {
        if let Some(live) = self.live.get_mut(&generation)
            && live.replaced != replaced
        {
            live.replaced = replaced;
            self.register_again(generation);
        }
    }

    /// An old server stays.
    pub(super) fn share_no_more(&mut self, generation: GenId, old: Id) {
        if let Some(live) = self.live.get_mut(&generation) {
            live.sharing.let_go(old);
        }
    }

    /// Lets go of the ports whose old servers are all gone, once the new one has proven itself.
    pub(super) fn finish_sharing(&mut self) {
        let mut finished = Vec::new();
        for (generation, live) in &mut self.live {
            if live.sharing.is_empty() || self.olds.values().any(|old| old.of == *generation) {
                continue;
            }
            let server = &live.server;
            let fetch = |inodes: &BTreeSet<u32>| sockets(server, inodes);
            if !(live.was_up || live.machine.is_leaving()) {
                live.sharing.forget_olds(&fetch);
                continue;
            }
            live.proving.clear();
            // What cannot be taken off now is taken off at a later look.
            if live.sharing.finish(&fetch) {
                finished.push(*generation);
            }
        }
        for generation in finished {
            self.write_replaced(generation, Vec::new());
        }
    }

    /// An old server is gone, as its supervisor says. As long as somebody holds a listener of its, connections could go
    /// there: what steers stays, and so does the claim.
    pub(super) fn old_gone(&mut self, id: Id) {
        let Some(old) = self.olds.get_mut(&id) else { return };
        let of = old.of;
        if let Some(holder) = self.live.get(&of).and_then(|live| live.sharing.holder_of(id)) {
            let linger = *old.lingers.get_or_insert(Linger::Since(Instant::now()));
            if matches!(linger, Linger::Since(since) if since.elapsed() > LINGERS) {
                old.lingers = Some(Linger::Named);
                let (pid, command) = (holder.pid, procfs::command_line(holder.pid));
                let text = format!(
                    "the old server has ended, but pid {pid} ({command}) holds its listener (it is waited for)"
                );
                let name = self.live.get(&of).and_then(|live| live.name.clone());
                self.log.say(Level::Warning, name.as_ref(), &text);
            }
            return self.poll_by(Instant::now() + LINGERS);
        }
        if let Some(live) = self.live.get_mut(&of) {
            let server = &live.server;
            if !live.sharing.drop_olds(id, &|inodes| sockets(server, inodes)) {
                // It is a stranger to whoever comes next, until the kernel has closed it.
                old.lingers.get_or_insert(Linger::Since(Instant::now()));
                return self.poll_soon();
            }
        }
        self.olds.remove(&id);
        self.feed(of, swap::Event::OldGone(OldId(id)));
    }

    /// Looks again for who holds what an old server has left.
    pub(super) fn look_at_lingering(&mut self) {
        let lingering: Vec<Id> = self.olds.iter().filter(|(_, old)| old.lingers.is_some()).map(|(id, _)| *id).collect();
        lingering.into_iter().for_each(|id| self.old_gone(id));
    }

    /// The server of a generation is gone: nobody may wait for it, and no handle of ours may hold a
    /// queue open that nobody reads.
    pub(super) fn server_is_gone(&mut self, generation: GenId) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        live.stop_drain();
        live.calls.clear();
        live.lent.clear();
        live.proving.clear();
        std::mem::take(&mut live.sharing).turn_back();
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

    pub(super) fn drain(&mut self, generation: GenId) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        (live.drains, live.quiesced) = (true, false);
        if let Err(e) = start_drain(live) {
            let text = format!("unable to watch its connections: {} (it is tried again)", crate::error::reason(&e));
            self.log.say(Level::Warning, live.name.as_ref(), &text);
        }
        self.poll_soon();
    }

    pub(super) fn cut_off(&mut self, generation: GenId) {
        let Some(live) = self.live.get(&generation) else { return };
        if !live.drains {
            return;
        }
        let text = match live.drain.as_ref().map(|drain| drain.busy(&live.server)) {
            Some(Ok(0)) => return,
            Some(Ok(busy)) => format!("the time to drain is up with {busy} busy connections (they are cut)"),
            Some(Err(_)) | None => {
                "the time to drain is up, and its connections could not be watched (any are cut)".into()
            }
        };
        self.log.say(Level::Warning, live.name.as_ref(), &text);
    }

    /// A claimer has gone away: if its server serves in our place, ours still has to go.
    pub(super) fn claimer_closed(&mut self, generation: GenId, claimer: ClaimerId, supervisor: Option<Pid>) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        if !live.machine.is_locked_by(claimer) {
            // Whoever only looked or waited has left nothing on its sockets.
            return self.feed(generation, swap::Event::ClaimerGone(claimer));
        }
        for lent in std::mem::take(&mut live.lent) {
            lent.waiting.into_iter().for_each(|waiting| _ = listen_alone(waiting, true));
        }
        live.left_by = Some(Left { claimer, supervisor, wait: Wait::Until(Instant::now() + UNCLEAR_FOR) });
        if let Ok(listeners) = net::listeners() {
            left_alone(generation, live, &listeners, &mut self.pending);
        }
        self.poll_soon();
    }

    /// The claimer died after it had let its server live without it, and before it asked for the drain. Where the record
    /// of that server says that it gets our connections the swap is made, and is done to its end here; else it is not,
    /// and the new server goes, unless it serves elsewhere.
    pub(super) fn decide_swap_of_dead(&mut self, generation: GenId, listeners: &Listeners) {
        let Some(live) = self.live.get(&generation) else { return };
        let Some(&Left { claimer, supervisor: Some(dead), wait }) = live.left_by.as_ref() else { return };
        if live.machine.is_giving_way() {
            return;
        }
        if let Wait::EndOf(ends) = wait {
            if !self.live.contains_key(&ends) {
                self.wait_for_left(generation, Wait::Until(Instant::now() + UNCLEAR_FOR));
            }
            return;
        }
        let ours = live.machine.addresses();
        let our = Address::all(&ours);
        let is_ours = |at: &&Address| at.among(&our).next().is_some();
        // Where it listens beside somebody. What cannot be looked at now is looked at again.
        let beside = |new: &Holder| {
            let held = new.sockets(&Snapshot::take()).ok()?;
            let own = listeners.all().filter(|s| held.contains(&s.inode)).map(|s| &s.local);
            let is_shared = |at: &&Address| listeners.at(at).any(|s| !held.contains(&s.inode));
            let beside: BTreeSet<Address> = own.filter(is_shared).cloned().collect();
            beside.iter().any(|at| is_ours(&at)).then(|| beside.into_iter().collect::<Vec<Address>>())
        };
        // A look holds a lock that nobody may meet for long.
        let unlocked = |mut new: Holder| (new.orphan.take().is_some(), new);
        let (Ok(servers), Ok(addresses)) = (self.dir.servers(), self.dir.addresses()) else { return };
        let left = servers.into_iter().filter(|h| h.supervisor == dead && h.has_lost_its_supervisor());
        let left: Vec<(bool, Holder)> = left.map(unlocked).collect();
        let found = left.into_iter().find_map(|(is_free, new)| beside(&new).map(|at| (is_free, new, at)));
        let Some((is_free, new, beside)) = found else { return };
        let our_places: Vec<Address> = beside.iter().filter(is_ours).cloned().collect();
        let is_its = |a: &Address| self.dir.serving(a, &mut Vec::new()).is_some_and(|h| h.pid == new.pid);
        let its: Vec<Address> = addresses.into_iter().filter(is_its).collect();
        let its = Address::all(&its);
        // A pidfile of a shared port is written after the switch; that of a name may be so before.
        let has_pidfile_here = ours.iter().any(|own| own.is_port() && own.among(&its).next().is_some());
        if new.replaced.contains(&live.server.pid) || has_pidfile_here {
            // Another old supervisor may decide at the same moment: then it is this one's turn at the next look.
            if !self.dir.hold() {
                return;
            }
            for address in our_places.iter().filter(|address| address.among(&its).next().is_none()) {
                // What is not registered is found where it listens.
                let _ = self.dir.take(address, new.pid, &[live.server.pid], &live.beside);
            }
            self.dir.release();
            let text = format!("server {} has lost its supervisor in its switch (the swap goes on)", new.pid);
            self.log.say(Level::Notice, ours.first(), &text);
            return self.feed(generation, swap::Event::AskedDrain(claimer));
        }
        live.listeners().unwrap_or_default().iter().for_each(|own| drop(own.accept_newcomers()));
        if its.is_empty() && new.replaced.is_empty() {
            match self.end_unswitched(&new, &beside, listeners) {
                Some(ends) => self.wait_for_left(generation, Wait::EndOf(ends)),
                // Somebody else ends it, whom it was to replace too.
                None if !is_free => {
                    self.wait_for_left(generation, Wait::Until(Instant::now() + UNCLEAR_FOR));
                }
                None => {}
            }
        } else if steer_away(&new, &our_places, listeners).is_some() {
            let text = format!("server {} has lost its supervisor before its switch (it serves elsewhere)", new.pid);
            self.log.say(Level::Warning, ours.first(), &text);
            if let Some(left) = self.live.get_mut(&generation).and_then(|live| live.left_by.as_mut()) {
                left.supervisor = None;
            }
        }
    }

    /// Ends a new server that has lost its supervisor, like an old one: it may have got connections.
    fn end_unswitched(&mut self, new: &Holder, beside: &[Address], listeners: &Listeners) -> Option<GenId> {
        let lock = self.dir.find(new.pid)?.orphan?;
        steer_away(new, beside, listeners)?;
        let ends = self.adopt(new, lock, beside, Adopted::ToBeEnded)?;
        let claimer = ClaimerId(threads::next_id());
        self.feed(ends, swap::Event::Claim(claimer));
        self.feed(ends, swap::Event::AskedDrain(claimer));
        Some(ends)
    }

    fn wait_for_left(&mut self, generation: GenId, wait: Wait) {
        if let Some(left) = self.live.get_mut(&generation).and_then(|live| live.left_by.as_mut()) {
            left.wait = wait;
        }
    }

    /// The supervisor of an old server does not speak to us any more. What counts is when the lock of
    /// the server's record is free. `false` if there is no such server.
    pub(super) fn follow_orphan(&mut self, id: Id) -> bool {
        let Some(old) = self.olds.get(&id) else { return false };
        let pid = old.server.0;
        self.dir.try_clone().and_then(|dir| threads::release(self.events.clone(), id, pid, dir)).is_ok()
    }

    /// An old server has a supervisor that does not speak to us. One of which nothing was asked is looked for
    /// again; the other does what it was asked for, and is waited for. Whoever took an orphan over is not.
    pub(super) fn hung_up(&mut self, id: Id) {
        let Some(old) = self.olds.get(&id) else { return };
        let (of, pid) = (old.of, old.server.0);
        let waited_for = old.told && !old.orphaned;
        let waits = |dir| threads::release_for_sure(self.events.clone(), id, pid, dir);
        if !(waited_for && self.dir.try_clone().and_then(waits).is_ok()) {
            self.olds.remove(&id);
            self.feed(of, swap::Event::OldLost(OldId(id)));
        }
    }

    pub(super) fn orphaned(&mut self, id: Id) {
        let Some(old) = self.olds.get(&id) else { return };
        let (of, pid) = (old.of, old.server.0);
        if !old.locked {
            self.olds.remove(&id);
            return self.feed(of, swap::Event::OldLost(OldId(id)));
        }
        // Its end is known.
        if old.lingers.is_some() {
            return;
        }
        // The lock is ours: the swap goes on with its server.
        let found = self.dir.find(pid);
        // Somebody only looks at it, or has taken it over: time will tell.
        if found.as_ref().is_some_and(|holder| holder.orphan.is_none()) && self.follow_orphan(id) {
            if let Some(old) = self.olds.get_mut(&id) {
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
        match (adopted, self.olds.get_mut(&id)) {
            (Some(generation), Some(old)) => {
                old.to = OldTo::Local(generation);
                self.feed(generation, swap::Event::Claim(ClaimerId(id)));
            }
            _ => {
                self.olds.remove(&id);
                let event = if lives { swap::Event::OldLost(OldId(id)) } else { swap::Event::OldGone(OldId(id)) };
                self.feed(of, event);
            }
        }
    }
}

/// Steers away from a server that nobody here has taken over, at these addresses of its.
fn steer_away(new: &Holder, addresses: &[Address], listeners: &Listeners) -> Option<()> {
    let sockets = Server::adopt(new)?.listeners(addresses).ok()?;
    share::steer_away(sockets, listeners).ok()
}

/// The listeners of orphans, the oldest first, at the addresses of all of them. Those of the last one that was switched to
/// get the connections, and until there was a switch those of the first.
fn beside_each_other(orphans: &[&Live]) -> std::io::Result<Vec<Block>> {
    let addresses: Vec<Address> = orphans.iter().flat_map(|orphan| orphan.machine.addresses()).collect();
    let took = |new: &Live, old: &Live| {
        let olds = Address::all(&old.machine.addresses());
        // An older serverswap writes its pidfiles only.
        new.replaced.contains(&old.server.pid)
            || new.held.iter().any(|own| own.is_port() && own.among(&olds).next().is_some())
    };
    let switched = |at: &usize| orphans[..*at].iter().any(|old| took(orphans[*at], old));
    let serving = (0..orphans.len()).rev().find(switched).unwrap_or(0);
    let block = |(at, orphan): (usize, &&Live)| {
        Ok(Block { sockets: orphan.server.listeners(&addresses)?, serves: at == serving })
    };
    orphans.iter().enumerate().map(block).collect()
}

/// Whether nobody else listens at the addresses of a server.
fn is_alone(live: &Live, listeners: &Listeners) -> bool {
    let here = listeners.at_any(&live.machine.addresses());
    live.server.socket_inodes().is_some_and(|inodes| here.iter().all(|s| inodes.contains(&s.inode)))
}

/// A server whose claimer has gone away serves as if alone when nobody is left beside it; `true` if that
/// is still to come.
pub(super) fn left_alone(
    generation: GenId,
    live: &mut Live,
    listeners: &Listeners,
    pending: &mut VecDeque<(GenId, swap::Event)>,
) -> bool {
    if live.left_by.is_none() && !live.succeeded {
        return false;
    }
    let alone = is_alone(live, listeners);
    if let Some(left) = &live.left_by {
        let claimer = left.claimer;
        // What cannot be taken off now is taken off at a later look.
        let served = alone && serve_alone(live);
        // Whoever gets the lock next would take what is left of the other server for a stranger's.
        let waits = alone || !live.machine.is_giving_way() && live.is_shared();
        if !served && waits && !left.is_over(Instant::now()) {
            return true;
        }
        live.left_by = None;
        live.succeeded = !served && live.is_shared();
        if served {
            pending.push_back((generation, swap::Event::ClaimerGone(claimer)));
        } else {
            // What is steered stays so: a server that has not proven itself gets nothing until it is gone.
            pending.push_back((generation, swap::Event::Succeeded(claimer)));
        }
    }
    // Or the server goes.
    live.succeeded &= live.machine.is_up();
    // What a new claimer has put on the sockets is not ours to take off.
    let may = live.machine.is_free() || live.machine.is_giving_way();
    if alone && may && live.succeeded && serve_alone(live) {
        live.succeeded = false;
        pending.push_back((generation, swap::Event::Alone));
    }
    live.succeeded
}

/// Takes off what a claimer has left on the sockets of a server; `false` if that has to wait.
fn serve_alone(live: &Live) -> bool {
    !live.is_shared() || live.listeners().and_then(share::serve_alone).unwrap_or(false)
}

/// listen(2) for a server that is alone. A successor finds the port sharable; a server that cannot be watched shares none.
fn listen_alone(waiting: Waiting, may_share: bool) -> bool {
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

fn start_drain(live: &mut Live) -> std::io::Result<()> {
    let time = live.machine.drain_time();
    live.drain = Some(live.listeners().and_then(|listeners| Drain::start(listeners, time))?);
    Ok(())
}

/// Moves probes and drains a step on; `true` if there is more to come.
pub(super) fn look_at_shared(
    generation: GenId,
    live: &mut Live,
    listeners: &Listeners,
    pending: &mut VecDeque<(GenId, swap::Event)>,
    prove: bool,
) -> bool {
    live.follow_closed(generation, None, listeners, pending);
    let server = &live.server;
    let fetch = |inodes: &BTreeSet<u32>| sockets(server, inodes);
    let unseen: Vec<&Address> = live.proving.iter().filter(|address| !live.sharing.has_joined(address)).collect();
    for address in unseen {
        // Nobody saw it listen.
        if let Ok(held) = server.holds_of(&listeners.at_any([address])) {
            live.sharing.found(&held);
        }
    }
    let held = || {
        let all: Vec<TcpSocket> = listeners.all().cloned().collect();
        Some(server.holds_of(&all).ok()?.into_iter().map(|socket| socket.inode).collect())
    };
    live.sharing.look(listeners, prove, held, &fetch);
    let complete = !live.settled;
    for address in live.proving.extract_if(.., |a| live.sharing.is_proven(a, complete)) {
        pending.push_back((generation, swap::Event::Accepts(address)));
    }
    for address in &live.proving {
        let why = live.sharing.hindrance(address);
        if why.is_some() && live.hindrances.get(address) != why.as_ref() {
            pending.extend(why.clone().map(|why| (generation, swap::Event::Hindered(address.clone(), why))));
            live.hindrances.extend(why.map(|why| (address.clone(), why)));
        }
    }
    let now = Instant::now();
    for young in live.young.extract_if(.., |young| young.until <= now) {
        if listeners.at(&young.address).any(|s| s.inode == young.inode) {
            pending.push_back((generation, swap::Event::Listens(young.address)));
        }
    }
    for lent in live.lent.iter_mut().filter(|lent| lent.until <= now) {
        // Whoever steers does not answer: our server must not wait for that.
        lent.waiting.take().into_iter().for_each(|waiting| _ = listen_alone(waiting, true));
    }
    if live.drains && live.drain.is_none() {
        // Said once. Until it can be watched it may be busy.
        let _ = start_drain(live);
    }
    if let Some(drain) = &mut live.drain {
        match drain.look(&live.server) {
            Drained::Arriving => {}
            Drained::Quiesced if !live.quiesced => {
                live.quiesced = true;
                pending.push_back((generation, swap::Event::Quiesced));
            }
            Drained::Quiesced => {}
            Drained::Idle => pending.push_back((generation, swap::Event::Drained)),
        }
    }
    !live.proving.is_empty() || live.drains || !live.sharing.is_empty()
}
