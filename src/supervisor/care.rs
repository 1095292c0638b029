//! A caretaker finds out how far the swap of a dead supervisor was, and supervises its server from then on. Also here:
//! starting caretakers for orphans that this supervisor meets.

use super::live::{Life, Live, Names, Standing};
use super::sockets::Sockets;
use super::state::{Sources, Supervisor};
use super::threads;
use crate::address::Address;
use crate::error::{Error, Result, reason, status};
use crate::finder::{Beside, CARES_WITHIN, Holder, Registration, STARTS_WITHIN};
use crate::procfs;
use crate::recovery::{self, Recovered, Scene};
use crate::server::Server;
use crate::share::{self, Joined};
use crate::swap::{Checked, ClaimerId, Effect, Event, Generation, Level, Order, Orphan, Settings};
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

/// New connections go to those beside an orphan where it did not get to its switch.
pub(super) fn steer_away(scene: &Scene, orphan: &Server, found: &Recovered) {
    let at: Vec<Address> = found.unswitched.iter().cloned().collect();
    if at.is_empty() {
        return;
    }
    let joined = if scene.is_youngest() { Joined::Last } else { Joined::Somewhen };
    if let (Ok(sockets), Ok(listeners)) = (orphan.listeners(&at), net::listeners()) {
        let _ = share::steer_away(sockets, &listeners, joined);
    }
}

impl Supervisor {
    /// Takes charge of a server that has no supervisor any more, unless somebody else does.
    pub(super) fn take_care(&mut self, pid: Pid, sources: Sources) -> Result<()> {
        let failed = |what: &str, e: io::Error| Error::unable(format!("{what} {pid}"), e, "it serves on without");
        self.hear(sources).map_err(|e| failed("start a thread for server", e))?;
        let Some((holder, lock)) = self.lock_orphan(pid) else {
            self.caller.status = status::DONE;
            return Ok(());
        };
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let server = Server::adopt(&holder).ok_or_else(gone).map_err(|e| failed("look at server", e))?;
        let listeners = net::listeners().map_err(|e| failed("see where others listen beside server", e))?;
        let its = server.holds_of(listeners.all()).map_err(|e| failed("look at server", e))?;
        let named = self.dir.names().map_err(|e| failed("read the pidfiles of server", e))?;
        let is_fixed = procfs::fixed();
        let counts = |s: &&TcpSocket| {
            let is_named = named.iter().any(|(named, at)| *named == pid && at.collides(&s.local));
            is_named || is_fixed(&s.local)
        };
        let own = holder.party(its.iter().filter(counts).map(TcpSocket::place).collect());
        let (scene, beside) = self.scene(own, &its).map_err(|e| failed("see who listens beside server", e))?;
        let found = scene.recover(self.shares(&server, &its).as_deref());
        if !scene.is_behind_another() {
            steer_away(&scene, &server, &found);
        }
        let orphan = found.orphan;
        self.adopt(holder, lock, server, found)?;
        self.end_swap_of_orphan(orphan, &beside);
        self.drain_behind(&scene);
        let orphans = beside.iter().filter(|other| other.holder.is_orphan);
        orphans.for_each(|other| self.care(&other.holder, TAKEN_OVER));
        self.poll_soon();
        Ok(())
    }

    /// A server, those beside it, and whom the pidfiles name. `its`: its listeners.
    pub(super) fn scene(&self, own: recovery::Server, its: &[TcpSocket]) -> io::Result<(Scene, Vec<Beside>)> {
        let sockets: BTreeSet<u32> = its.iter().map(|s| s.inode).collect();
        let beside = self.dir.beside(&sockets, own.pid)?;
        let parties = beside.iter().map(|other| other.party.clone()).collect();
        Ok((Scene { own, beside: parties, names: self.dir.names()? }, beside))
    }

    /// The addresses of an orphan's listeners that have SO_REUSEPORT; `None` with `--plain`, or if they cannot be seen.
    fn shares(&self, server: &Server, its: &[TcpSocket]) -> Option<Vec<Address>> {
        if self.run.plain {
            return None;
        }
        let handles = server.sockets(its.iter().map(|s| s.inode).collect()).ok()?;
        Some(handles.iter().filter(|s| s.shares()).flat_map(|s| s.address().map(Into::into)).collect())
    }

    /// Locks the record of an orphan; `None` if the server has a supervisor, or is gone.
    fn lock_orphan(&self, pid: Pid) -> Option<(Holder, Registration)> {
        let until = Instant::now() + LOCKS_WITHIN;
        loop {
            match self.dir.take_over(pid).ok()? {
                (holder, Some(lock)) => return Some((holder, lock)),
                (holder, None) if !holder.has_lost_its_supervisor() || Instant::now() > until => return None,
                // Somebody looks at its record, or is its supervisor by now and has not written that yet.
                (_, None) => std::thread::sleep(LOCKS_EVERY),
            }
        }
    }

    /// Makes the server ours. The control and notify socket keep their names, which processes of the server know.
    fn adopt(
        &mut self,
        holder: Holder,
        lock: Registration,
        server: Server,
        Recovered { orphan, addresses, held, misnamed, heir, .. }: Recovered,
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
            // It may not be looked at (because of Yama, say), or cannot be (Linux before 5.6).
            Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => false,
            Err(e) => return Err(failed(e)),
        };
        let unshared = self.run.plain || !shares;
        let settings = self.settings_of_adopted(if unshared { Order::Plain } else { Order::Shared });
        let (machine, effects) = Generation::adopted(settings, addresses, orphan);
        let names_of = Names {
            number: holder.generation,
            registration: Some(lock),
            replaced: holder.olds.replaced.clone(),
            kept: holder.olds.kept.clone(),
            name: machine.name(),
            held: held.clone(),
            datagrams: holder.datagrams.clone(),
            ..Names::default()
        };
        let mut live = Live::new(machine, server, names_of, sockets);
        // Its supervisor may have died when the server was to live on, and was not up.
        live.server.goes_first_no_more();
        live.joining.unshared = unshared;
        live.life = Life { end: Some(end), was_up: true, ..Life::default() };
        self.agenda.pending.extend(heir.map(|_| Event::HeirAwaited));
        let heir = heir.map(|heir| (heir, Instant::now() + CARES_WITHIN));
        live.standing = Standing { succeeded: true, heir, ..Standing::default() };
        self.live = Some(live);
        if self.register_again().is_none() {
            self.live = None;
            return Err(failed(io::Error::other("its record cannot be written")));
        }
        for effect in effects {
            self.carry_out(effect);
        }
        let unnamed = listening.into_iter().filter(|address| orphan != Orphan::Superseded && !held.contains(address));
        let named_anew = unnamed.map(Effect::Hold).chain(misnamed.into_iter().map(Effect::Unhold));
        named_anew.for_each(|effect| self.carry_out(effect));
        Ok(())
    }

    fn settings_of_adopted(&self, order: Order) -> Settings {
        Settings {
            order,
            awaited: false,
            checked: Checked::No,
            canary: Vec::new(),
            hold: Duration::ZERO,
            ready_timeout: None,
            kill_after: self.run.kill_after,
            drain: self.run.drain,
        }
    }

    /// Somebody wants to replace our server.
    pub(super) fn claims(&mut self, claimer: ClaimerId) {
        let peer = self.peers.conns.get(&claimer.0).and_then(|conn| conn.out.peer());
        let heir = self.live.as_mut().and_then(|live| live.standing.heir.take_if(|(heir, _)| Some(*heir) == peer));
        self.feed(if heir.is_some() { Event::HeirClaims(claimer) } else { Event::Claim(claimer) });
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
