//! A caretaker: it finds out how far the swap of a server was whose supervisor has died, and is that server's supervisor
//! from then on. And the start of caretakers for the servers that this one meets.

#![forbid(unsafe_code)]

use super::live::{Life, Names, Standing};
use super::sockets::Sockets;
use super::threads;
use super::{Live, Supervisor};
use crate::address::Address;
use crate::error::{Error, Result, reason, status};
use crate::finder::{Holder, Registration, STARTS_WITHIN};
use crate::place::Place;
use crate::procfs::{self, Snapshot};
use crate::server::Server;
use crate::share;
use crate::swap::{ClaimerId, Effect, Event, Generation, Level, Order, Orphan, Settings};
use crate::sys::net::{self, TcpSocket};
use crate::sys::process::Pid;
use crate::sys::steer::Socket;
use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

/// How long somebody may look at a record before its lock can be had.
const LOCKS_WITHIN: Duration = Duration::from_secs(5);
const LOCKS_EVERY: Duration = Duration::from_millis(2);

/// What becomes of an orphan as a rule.
pub(super) const TAKEN_OVER: &str = "and is taken over";

/// Where a server listens that has lost its supervisor.
struct Places {
    /// Addresses of its own: their pidfiles name it, or one that it has replaced, or there are none.
    own: BTreeSet<Address>,
    /// Those that have pidfiles now.
    held: BTreeSet<Address>,
    /// Addresses that are another server's.
    others: BTreeSet<Address>,
    /// Inodes of all its listeners.
    sockets: BTreeSet<u32>,
    /// There is a server that has replaced it.
    is_superseded: bool,
}

impl Supervisor {
    /// Takes charge of a server that has no supervisor any more, unless somebody else does.
    pub(super) fn take_care(&mut self, pid: Pid) -> Result<()> {
        let failed = |what: &str, e: io::Error| Error::unable(format!("{what} {pid}"), e, "it serves on without");
        let Some((holder, lock)) = self.lock_orphan(pid) else {
            self.caller.status = status::DONE;
            return Ok(());
        };
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let server = Server::adopt(&holder).ok_or_else(gone).map_err(|e| failed("look at server", e))?;
        let places = self.places(&holder, &server).map_err(|e| failed("see where others listen beside server", e))?;
        let Places { own, held, others, sockets, is_superseded } = places;
        let beside = self.dir.beside(&sockets, pid).map_err(|e| failed("see who listens beside server", e))?;
        if !is_superseded && !others.is_empty() {
            // It did not get to its switch there.
            let listeners = net::listeners().map_err(|e| failed("see who listens beside server", e))?;
            let at: Vec<Address> = others.iter().cloned().collect();
            let _ = server.listeners(&at).and_then(|sockets| share::steer_away(sockets, &listeners));
        }
        let drains = |old: &Holder| holder.replaced.contains(&old.pid) && !self.has_name(old.pid, &own);
        let (addresses, found) = match () {
            () if own.is_empty() => (&others, Orphan::Superseded),
            () if beside.iter().any(drains) => (&own, Orphan::Follows),
            () => (&own, Orphan::Alone),
        };
        self.adopt(holder, lock, server, (addresses.clone(), held.clone(), found))?;
        if sockets.is_empty() && held.is_empty() {
            // It has let go of all: it was told, and a signal would cut short what that began.
            self.feed(Event::Stop { signalled: true });
        }
        // Only who has the lock lets its server join.
        let joins = |new: &&Holder| !new.ever_lost_its_supervisor() && !self.has_name(new.pid, &BTreeSet::new());
        let heir = beside.iter().find(joins).map(|new| new.supervisor);
        if let Some(live) = self.live.as_mut() {
            live.standing.heir = heir.filter(|_| found != Orphan::Superseded);
        }
        beside.iter().filter(|other| other.is_orphan).for_each(|other| self.care(other, TAKEN_OVER));
        self.poll_soon();
        Ok(())
    }

    /// `None` if it has a supervisor, or is gone.
    fn lock_orphan(&self, pid: Pid) -> Option<(Holder, Registration)> {
        let until = Instant::now() + LOCKS_WITHIN;
        loop {
            match self.dir.take_over(pid).ok()? {
                (holder, Some(lock)) => return Some((holder, lock)),
                (holder, None) if !holder.has_lost_its_supervisor() || Instant::now() > until => return None,
                // Somebody looks at its record, or has it and has not written that yet.
                (_, None) => std::thread::sleep(LOCKS_EVERY),
            }
        }
    }

    fn places(&self, holder: &Holder, server: &Server) -> io::Result<Places> {
        let serving = |address: Address| Some((self.dir.serving(&address, &mut Vec::new())?.pid, address));
        let named: Vec<(Pid, Address)> = self.dir.addresses()?.into_iter().filter_map(serving).collect();
        let listeners: Vec<TcpSocket> = net::listeners()?.all().cloned().collect();
        let its = server.holds_of(&listeners)?;
        let sockets: BTreeSet<u32> = its.iter().map(|s| s.inode).collect();
        let snapshot = Snapshot::take();
        let mut met = Vec::new();
        for other in self.dir.beside(&sockets, holder.pid)? {
            let held = other.sockets(&snapshot)?;
            let places = listeners.iter().filter(|s| held.contains(&s.inode)).map(TcpSocket::place);
            met.push((places.collect::<Vec<Place>>(), other));
        }
        let meets = |own: &TcpSocket, what: &dyn Fn(&Holder) -> bool| {
            met.iter().any(|(at, other)| at.iter().any(|at| at.conflicts(&own.place())) && what(other))
        };
        // Who has replaced it was started later.
        let is_heir = |other: &Holder| other.replaced.contains(&holder.pid) && other.start >= holder.start;
        let (mut own, mut others, mut unnamed) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for socket in &its {
            let address = socket.local.clone();
            let has_name = |pid: Pid| named.iter().any(|(named, at)| *named == pid && at.collides(&address));
            let is_older = |other: &Holder| !holder.replaced.contains(&other.pid) && other.start < holder.start;
            match () {
                () if meets(socket, &is_heir) => _ = others.insert(address),
                () if has_name(holder.pid) => {}
                () if holder.replaced.iter().any(|old| has_name(*old)) => _ = own.insert(address),
                () if meets(socket, &|other| has_name(other.pid) || is_older(other)) => _ = others.insert(address),
                () => unnamed.push(address),
            }
        }
        let is_its = |(pid, at): &&(Pid, Address)| *pid == holder.pid && !others.iter().any(|other| other.collides(at));
        let held: BTreeSet<Address> = named.iter().filter(is_its).map(|(_, address)| address.clone()).collect();
        own.retain(|own| !held.iter().any(|held| held.collides(own)));
        own.extend(held.iter().cloned());
        // What it opened without a supervisor is no address, since nobody made it sharable, unless it has no other one.
        let has_none = own.is_empty() && others.is_empty();
        if let (Ok(handles), false) = (server.listeners(&unnamed), self.run.plain || has_none) {
            let at: Vec<Address> =
                handles.iter().filter(|s| s.shares()).flat_map(|s| s.address().map(Into::into)).collect();
            unnamed.retain(|address| at.iter().any(|at| at.collides(address)));
        }
        own.extend(unnamed);
        let is_superseded = met.iter().any(|(_, other)| is_heir(other));
        Ok(Places { own, held, others, sockets, is_superseded })
    }

    /// Whether a pidfile names the server, but at these addresses.
    pub(super) fn has_name(&self, pid: Pid, but: &BTreeSet<Address>) -> bool {
        let is_its = |address: &Address| self.dir.serving(address, &mut Vec::new()).is_some_and(|h| h.pid == pid);
        let counts = |address: &Address| but.iter().all(|but| !but.collides(address)) && is_its(address);
        self.dir.addresses().is_ok_and(|addresses| addresses.iter().any(counts))
    }

    /// Makes the server ours. It keeps the names of its sockets: processes of its know them.
    fn adopt(
        &mut self,
        holder: Holder,
        lock: Registration,
        server: Server,
        (addresses, held, found): (BTreeSet<Address>, BTreeSet<Address>, Orphan),
    ) -> Result<()> {
        let failed = |e: io::Error| Error::unable("take care of it", e, "the server serves on without");
        let stem = holder.socket.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let sockets = Sockets::open(self.dir.path(), &stem).map_err(failed)?;
        sockets.hear(&self.events).map_err(failed)?;
        let pidfd = server.watch().map_err(failed)?;
        let end = threads::end_of(self.events.clone(), holder.pid, pidfd).map_err(failed)?;
        let listening: Vec<Address> = addresses.iter().cloned().collect();
        let shares = match server.listeners(&listening) {
            Ok(sockets) => sockets.iter().all(Socket::shares),
            // Nobody may look at it (Yama, say).
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => false,
            Err(e) => return Err(failed(e)),
        };
        let unshared = self.run.plain || !shares;
        let settings = Settings {
            order: if unshared { Order::Plain } else { Order::Shared },
            awaited: false,
            ready_timeout: None,
            kill_after: self.run.kill_after,
            drain: self.run.drain,
        };
        let (machine, effects) = Generation::adopted(settings, addresses, found);
        let names_of = Names {
            number: holder.generation,
            registration: Some(lock),
            replaced: holder.replaced,
            name: machine.name(),
            held: held.clone(),
            datagrams: holder.datagrams,
            ..Names::default()
        };
        let mut live = Live::new(machine, server, names_of, sockets);
        live.joining.unshared = unshared;
        live.life = Life { end: Some(end), was_up: true, ..Life::default() };
        live.standing = Standing { succeeded: true, ..Standing::default() };
        self.live = Some(live);
        if !self.register_again() {
            self.live = None;
            return Err(failed(io::Error::other("its record cannot be written")));
        }
        for effect in effects {
            self.carry_out(effect);
        }
        let unnamed = listening.into_iter().filter(|address| found != Orphan::Superseded && !held.contains(address));
        unnamed.for_each(|address| self.carry_out(Effect::Hold(address)));
        Ok(())
    }

    /// Somebody wants to replace our server. Whoever had its lock before a caretaker came goes first: its server has joined
    /// ours.
    pub(super) fn claims(&mut self, claimer: ClaimerId) {
        let peer = self.peers.conns.get(&claimer.0).and_then(|conn| conn.out.peer());
        let Some(live) = self.live.as_mut() else { return };
        if live.standing.heir.take_if(|heir| Some(*heir) == peer).is_none() && live.standing.heir.is_some() {
            return live.standing.behind.push(claimer);
        }
        self.feed(Event::Claim(claimer));
        self.let_the_others_claim();
    }

    /// If nobody is waited for any more.
    pub(super) fn let_the_others_claim(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        live.standing.heir.take_if(|heir| procfs::has_ended(*heir));
        if live.standing.heir.is_none() {
            let behind = std::mem::take(&mut live.standing.behind);
            self.agenda.pending.extend(behind.into_iter().map(Event::Claim));
        }
    }

    /// Starts a caretaker of a server, unless one has just been started, and says what becomes of the server.
    pub(super) fn care(&mut self, orphan: &Holder, becomes: &str) {
        let (pid, now) = (orphan.pid, Instant::now());
        self.kin.cared_for.retain(|_, since| since.elapsed() < STARTS_WITHIN);
        if self.kin.cared_for.contains_key(&pid) {
            return;
        }
        self.kin.cared_for.insert(pid, now);
        match self.dir.start_caretaker(orphan) {
            Ok(_) => self.log.say(Level::Notice, None, &format!("server {pid} has lost its supervisor {becomes}")),
            Err(e) => {
                let text = format!("unable to start a caretaker of server {pid}: {} (it is tried again)", reason(&e));
                self.log.say(Level::Warning, None, &text);
            }
        }
    }
}
