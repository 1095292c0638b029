//! The servers of a supervisor as processes: starting one, noticing its end, and looking at what
//! listens while a swap runs.

#![forbid(unsafe_code)]

use super::peers::Role;
use super::sharing::{LINGERS, left_alone, look_at_shared};
use super::threads::{self, GenId, Id, Link, NotifySocket};
use super::watching;
use super::{Conn, Ended, Leftover, Live, OWN, Sockets, Supervisor};
use crate::address::Address;
use crate::error::{Error, Result, status};
use crate::family::Jobs;
use crate::finder::{Entry, Registration};
use crate::protocol::ServerWord;
use crate::rundir::LOCK_PATIENCE;
use crate::server::{Rest, Server, Surroundings};
use crate::share::Sharing;
use crate::swap::{self, Level, Order, Settings, SpeakerId};
use crate::sys::net::{self, Listeners, TcpSocket};
use crate::sys::process::{self, Pid};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the kernel is asked at first while something is waited for that it does not tell.
const POLL_FIRST: Duration = Duration::from_millis(1);
/// And at last: in a swap (or one hundredth of how long it has lasted already), and while a first server looks for its port.
pub(super) const POLL_SWAP: Duration = Duration::from_millis(20);
const POLL_STEERS: Duration = Duration::from_millis(100);
const POLL_DISCOVER: Duration = Duration::from_millis(500);
/// When the run directory is tidied again after somebody had its lock.
const TIDY_AGAIN: Duration = Duration::from_millis(200);
/// How long a socket that nobody seems to hold may take to close.
pub(super) const UNCLEAR_FOR: Duration = Duration::from_secs(2);
/// For how long what is left of a server is killed again and again.
const KILLED_FOR: Duration = Duration::from_secs(10);
/// Who forks while it is looked for is not seen every time: so many looks have to see nobody.
const UNSEEN_LOOKS: u32 = 3;
/// How long the listeners of a server that says nothing are looked for.
const DISCOVER_FOR: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Starts the server. `awaited`: somebody waits for the swap.
    pub(super) fn start_server(&mut self, awaited: bool) -> Result<()> {
        let id = OWN;
        let command = self.run.command.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let number = self.dir.next_generation(&command);
        let failed = |e: io::Error| Error::unable("open the control channel", e, "nothing was started");
        let names = ["sock", "notify"].map(|kind| format!("{}-{id}.{kind}", Pid::own()));
        let [socket, notify] = names.clone().map(|name| self.dir.path().join(name));
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let (listener, datagrams) = open_sockets(&socket, &notify).map_err(failed)?;
        let around = Surroundings {
            control: theirs,
            socket: &socket,
            notify: &notify,
            household: &self.household,
            generation: number,
            on_terminal: self.on_terminal,
            hup_ignored: self.hup_ignored,
            detached: self.run.detach,
            watched: !self.run.plain,
        };
        let server = Server::spawn(&self.run, around).inspect_err(|_| {
            for path in [&socket, &notify] {
                let _ = std::fs::remove_file(path);
            }
        })?;
        let mark = socket.to_string_lossy().into_owned();
        let (pid, start) = (server.pid, server.start);
        let entry = Entry {
            pid,
            start,
            generation: number,
            socket: &names[0],
            command: &command,
            replaced: &[],
            datagrams: &[],
        };
        let registration = self.dir.register(&entry).map_err(|why| {
            server.signal_all(Signal::SIGKILL, Jobs::Ended);
            for path in [&socket, &notify] {
                let _ = std::fs::remove_file(path);
            }
            Error::unable("write its record", why, "the new server is killed; the old one, if any, still serves")
        })?;
        let watch = match &server.watch {
            Some(Ok(watch)) => Some(watch.clone()),
            Some(Err(why)) => {
                let text = format!("the port cannot be shared: {why} (swaps run in plain order)");
                self.log.say(Level::Warning, None, &text);
                None
            }
            None => None,
        };
        let settings = Settings {
            order: if watch.is_some() { Order::Shared } else { Order::Plain },
            drain: self.run.drain,
            awaited,
            ready_timeout: self.run.ready_timeout,
            kill_after: self.run.kill_after,
        };
        let (machine, effects) = swap::Generation::new(settings);
        let (listener, control, ours) = (Arc::new(listener), threads::next_id(), Link::new(ours));
        let notify = Arc::new(NotifySocket { socket: datagrams, closed: AtomicBool::new(false) });
        self.conns.insert(control, Conn::ours(ours.clone(), Role::Server(id)));
        let started = threads::lines(self.events.clone(), control, ours)
            .and_then(|()| threads::accept(self.events.clone(), id, listener.clone()))
            .and_then(|()| threads::notifications(self.events.clone(), id, notify.clone()))
            .and_then(|()| {
                let Some(watch) = watch else { return Ok(()) };
                watch.facts.tell(pid, false);
                watching::watch(self.events.clone(), id, watch, mark, self.dir.try_clone()?)
            });
        self.log.say(Level::Detail, None, &format!("server {} started (generation {number})", server.pid));
        self.live.insert(
            id,
            Live {
                machine,
                server,
                end: None,
                number,
                number_is_guess: true,
                registration: Some(registration),
                replaced: Vec::new(),
                sockets: Some(Sockets { control, listener, notify, names }),
                held: BTreeSet::new(),
                regaining: BTreeMap::new(),
                watching: BTreeSet::new(),
                releasing: BTreeSet::new(),
                discover_until: Some(Instant::now() + DISCOVER_FOR),
                seen: BTreeSet::new(),
                calls: Vec::new(),
                lent: VecDeque::new(),
                handed_over: false,
                young: Vec::new(),
                programs: BTreeSet::new(),
                programmed: BTreeSet::new(),
                hindrances: BTreeMap::new(),
                datagrams: Vec::new(),
                beside: Vec::new(),
                sharing: Sharing::default(),
                left_by: None,
                succeeded: false,
                unshared: false,
                proving: BTreeSet::new(),
                settled: false,
                killed: false,
                claimed: None,
                gave_way: false,
                drains: false,
                drain: None,
                quiesced: false,
                was_up: false,
                ended: None,
                name: None,
                status_text: String::new(),
            },
        );
        if let Err(e) = started {
            // Without its threads the server cannot be heard: it goes the way of one that failed.
            self.log.say(Level::Error, None, &format!("unable to start a thread: {e} (the new server is killed)"));
            self.live[&id].server.signal_all(Signal::SIGKILL, Jobs::Ended);
        }
        for effect in effects {
            self.carry_out(id, effect);
        }
        if self.live.get(&id).is_some_and(|live| live.watch().is_some()) {
            // Its calls tell when it listens: only what it was handed has to be looked for.
            self.poll_every = POLL_SWAP;
            self.poll_by(Instant::now() + POLL_SWAP);
        } else {
            self.poll_soon();
        }
        Ok(())
    }

    /// Reaps every child that has ended: the servers', and as a subreaper all that they left behind.
    pub(super) fn reap(&mut self) {
        while let Some((pid, end)) = process::reap() {
            let main = self.live.iter().find(|(_, live)| live.server.pid == pid).map(|(id, _)| *id);
            if self.copy_ended(pid, end) {
                continue;
            }
            if let Some(generation) = main {
                self.main_ended(generation, end.status(), &end.to_string());
            }
        }
        if !self.leftovers.is_empty() || self.live.values().any(|live| live.ended.is_some()) {
            self.poll_soon();
        }
    }

    /// The main process of a generation has ended.
    pub(super) fn main_ended(&mut self, generation: GenId, own: u8, how: &str) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        if live.ended.is_none() {
            let name = live.machine.name().or_else(|| live.name.clone());
            // Of one that was never up the machine says why, in one line, unless we were told to stop it.
            let failed = !live.was_up && !self.stopping;
            let unwanted = own != status::DONE && !self.stopping && !live.machine.is_leaving();
            let level = match () {
                () if failed => Level::Detail,
                () if unwanted => Level::Error,
                () => Level::Notice,
            };
            self.log.say(level, name.as_ref(), &format!("server {} {how}", live.server.pid));
            live.ended = Some(Ended { status: own, seen: Instant::now(), rest_told: false, unseen: 0 });
            self.settle();
            match net::listeners() {
                Ok(sockets) => self.look_for_rest(generation, &sockets),
                Err(_) => self.poll_soon(),
            }
        }
    }

    /// A server whose main process has ended is gone when nothing of it listens. What listens in its
    /// place becomes the main process, or is told to stop if the server was.
    pub(super) fn look_for_rest(&mut self, generation: GenId, sockets: &Listeners) {
        // In a reload those of the old server are open as long as we want them to be.
        let kept: BTreeSet<u32> = self.live.values().flat_map(|live| live.sharing.kept()).collect();
        let Some(live) = self.live.get_mut(&generation) else { return };
        let Some(ended) = live.ended else { return };
        let ephemeral = ephemeral_ports();
        let mut at_own = sockets.at_any(&live.machine.claims());
        let fixed = sockets.all().filter(|s| is_fixed(&s.local, &ephemeral));
        let candidates: Vec<TcpSocket> = fixed.chain(&at_own).cloned().collect();
        let mut wait = true;
        at_own.retain(|s| !kept.contains(&s.inode));
        match live.server.rest(&candidates, &at_own) {
            Rest::Holder(holder) if !live.machine.is_leaving() => {
                let before = live.server.pid;
                if live.server.promote(holder) {
                    return self.promoted(generation, before);
                }
            }
            Rest::Holder(_) => {
                live.ended = Some(Ended { seen: Instant::now(), rest_told: true, ..ended });
                match () {
                    // Who forked in the moment of the kill was not seen.
                    () if live.killed => drop(live.server.signal_rest(Signal::SIGKILL, live.jobs())),
                    () if ended.rest_told => {}
                    () => drop(live.server.signal_rest(self.run.stop_signal, live.jobs())),
                }
            }
            Rest::Unclear => wait = ended.seen.elapsed() < UNCLEAR_FOR,
            // A daemon whose starter is done before it listens; slow as it is it may have been taken for a worker.
            Rest::Nobody if ended.status == 0 && !live.has_served() && !live.machine.is_leaving() => {
                let unseen = if live.server.has_rest(Jobs::Ended) { 0 } else { ended.unseen + 1 };
                live.ended = Some(Ended { unseen, ..ended });
                wait = unseen < UNSEEN_LOOKS;
            }
            Rest::Nobody => wait = false,
        }
        match wait {
            true => self.poll_soon(),
            false => {
                self.server_is_gone(generation);
                self.feed(generation, swap::Event::Exited(ended.status));
            }
        }
    }

    /// It was `main` before.
    fn promoted(&mut self, generation: GenId, main: Pid) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        live.ended = None;
        let pid = live.server.pid;
        self.log.say(Level::Notice, live.machine.name().as_ref(), &format!("process {pid} goes on as the server"));
        // The new record first, then the pidfiles, then the old record goes: whoever looks meanwhile finds
        // the server.
        let before = self.write_record(generation);
        let Some(live) = self.live.get_mut(&generation) else { return };
        if self.dir.hold() {
            for address in &live.held {
                // What another server has by now, or has beside this one, stays that one's.
                if let Err(why) = self.dir.take(address, pid, &[main], &live.beside) {
                    self.log.say(Level::Warning, Some(address), &format!("unable to write its pidfile: {why}"));
                }
            }
            self.dir.release();
        } else {
            let until = Instant::now() + LOCK_PATIENCE;
            live.regaining.extend(live.held.iter().map(|address| (address.clone(), until)));
            self.poll_at = Some(Instant::now() + POLL_FIRST);
        }
        if let Some(before) = before {
            self.dir.forget(before, pid);
        }
        if let Ok(pidfd) = live.server.watch() {
            live.end = threads::end_of(self.events.clone(), generation, pid, pidfd).ok();
        }
    }

    /// Writes the record of a generation anew: its number has changed.
    pub(super) fn register_again(&mut self, generation: GenId) {
        let before = self.write_record(generation);
        if let (Some(before), Some(live)) = (before, self.live.get(&generation)) {
            self.dir.forget(before, live.server.pid);
        }
    }

    /// Writes the record of a generation, and gives what it had before.
    fn write_record(&mut self, generation: GenId) -> Option<Registration> {
        let live = self.live.get_mut(&generation)?;
        let sockets = live.sockets.as_ref()?;
        let command = self.run.command.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let entry = Entry {
            pid: live.server.pid,
            start: live.server.start,
            generation: live.number,
            socket: &sockets.names[0],
            command: &command,
            replaced: &live.replaced,
            datagrams: &live.datagrams,
        };
        match self.dir.register(&entry) {
            Ok(new) => live.registration.replace(new),
            Err(why) => {
                self.log.say(Level::Warning, None, &format!("unable to write its record: {why}"));
                None
            }
        }
    }

    /// Asks the kernel soon, and then ever more rarely, until there is nothing to ask for.
    pub(super) fn poll_soon(&mut self) {
        self.poll_every = POLL_FIRST;
        self.poll_since = Instant::now();
        self.poll_by(Instant::now() + self.poll_pause());
    }

    pub(super) fn poll_by(&mut self, at: Instant) {
        self.poll_at = Some(self.poll_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Until then a server has the orphans that it wants: it may listen here and there one after the other. What it does not
    /// want is not kept from others.
    pub(super) fn tidy_later(&mut self) {
        let at = Instant::now() + swap::QUIET;
        self.tidy_at = Some(at);
        self.poll_by(at);
    }

    fn poll_pause(&self) -> Duration {
        // With a thousand addresses a look takes its time, and what its server does meanwhile waits for it.
        self.poll_every.max(self.poll_took).max(POLL_SWAP.min(self.poll_took * 3))
    }

    /// Looks at who listens, for all that waits for that.
    pub(super) fn poll(&mut self) {
        let (now, started) = (Instant::now(), cpu_time());
        self.poll_at = None;
        for (generation, speaker) in std::mem::take(&mut self.ups) {
            self.said_up(generation, speaker);
        }
        for (of, id) in std::mem::take(&mut self.unreached) {
            self.olds.remove(&id.0);
            self.feed(of, swap::Event::OldLost(id));
        }
        self.look_at_lingering();
        self.leftovers.retain_mut(|left| left.look(now));
        if self.tidy_at.take_if(|at| *at <= now).is_some() {
            self.dir.release_orphans();
            // A server that was ending when this one looked for others has left its record: nobody else removes it.
            if !self.dir.tidy() {
                self.tidy_at = Some(now + TIDY_AGAIN);
            }
        }
        // What could not be asked says nothing: not that nobody listens.
        let Ok(sockets) = net::listeners() else {
            self.poll_at = Some(now + POLL_SWAP);
            // But whoever waits for the end of a server whose main process is gone does not wait for that.
            let late = |live: &Live| live.ended.filter(|ended| ended.seen.elapsed() > UNCLEAR_FOR);
            let gone: Vec<(GenId, u8)> =
                self.live.iter().filter_map(|(id, live)| Some((*id, late(live)?.status))).collect();
            for (generation, status) in gone {
                self.server_is_gone(generation);
                self.feed(generation, swap::Event::Exited(status));
            }
            for (&generation, live) in &mut self.live {
                if let Some(left) = live.left_by.take_if(|left| left.is_over(now)) {
                    self.pending.push_back((generation, swap::Event::ClaimerGone(left.claimer)));
                }
            }
            return;
        };
        let (mut swapping, mut discovering) = (false, false);
        let generations: Vec<GenId> = self.live.keys().copied().collect();
        for generation in generations {
            let Some(live) = self.live.get_mut(&generation) else { continue };
            for own in &live.server.holds(&sockets.at_any(&live.watching)).unwrap_or_default() {
                for address in live.watching.extract_if(.., |a| a.collides(own)) {
                    self.pending.push_back((generation, swap::Event::Listens(address)));
                }
            }
            for address in live.releasing.extract_if(.., |a| sockets.at(a).next().is_none()) {
                self.pending.push_back((generation, swap::Event::Free(address)));
            }
            if live.discover_until.is_some_and(|until| until > now) {
                discovering = true;
                let _ = self.discover(generation, &sockets);
            } else {
                live.discover_until = None;
            }
            let Some(live) = self.live.get_mut(&generation) else { continue };
            let left = left_alone(generation, live, &sockets, &mut self.pending);
            if left {
                self.decide_swap_of_dead(generation, &sockets);
            }
            let Some(live) = self.live.get_mut(&generation) else { continue };
            let sharing = left | look_at_shared(generation, live, &sockets, &mut self.pending, self.run.probe);
            swapping |= sharing || !live.watching.is_empty() || !live.releasing.is_empty() || live.ended.is_some();
            if live.ended.is_some() {
                self.look_for_rest(generation, &sockets);
            }
        }
        swapping |= self.regain(now);
        swapping |= !self.leftovers.is_empty();
        let since = now.saturating_duration_since(self.poll_since);
        // What an old server closes meanwhile has to be seen soon.
        let steers = self.live.values().any(|live| live.sharing.has_olds());
        let slowest = match () {
            () if steers => POLL_SWAP.max(since / 100).min(POLL_STEERS),
            () if swapping => POLL_SWAP.max(since / 100),
            () => POLL_DISCOVER,
        };
        self.poll_every = (self.poll_every * 3 / 2).min(slowest);
        self.poll_took = cpu_time().saturating_sub(started);
        swapping |= !self.ups.is_empty();
        self.poll_at = (swapping || discovering).then(|| Instant::now() + self.poll_pause());
        let young = self.live.values().flat_map(|live| live.young_until()).min();
        let lingers = self.olds.values().any(|old| old.lingers.is_some()).then(|| Instant::now() + LINGERS);
        let lent = self.live.values().flat_map(|live| live.lent_until()).min();
        [young, lingers, lent, self.tidy_at].into_iter().flatten().for_each(|at| self.poll_by(at));
    }

    /// Finds the listeners of a server that says nothing of them; `false` if they could not be looked at.
    fn discover(&mut self, generation: GenId, sockets: &Listeners) -> bool {
        let Some(live) = self.live.get_mut(&generation) else { return true };
        let ephemeral = ephemeral_ports();
        let fixed: Vec<TcpSocket> = sockets.all().filter(|s| is_fixed(&s.local, &ephemeral)).cloned().collect();
        let inodes: BTreeSet<u32> = fixed.iter().map(|s| s.inode).collect();
        if !inodes.is_subset(&live.seen) {
            // One that cannot be looked at now is looked at again.
            let Ok(found) = live.server.holds(&fixed) else { return false };
            self.pending.extend(found.into_iter().map(|address| (generation, swap::Event::Listens(address))));
        }
        live.seen = inodes;
        true
    }

    /// The server says that it is up: what it listens on by now comes first.
    pub(super) fn said_up(&mut self, generation: GenId, speaker: SpeakerId) {
        let discovers = self.live.get(&generation).is_some_and(|live| live.discover_until.is_some());
        if discovers && !net::listeners().is_ok_and(|sockets| self.discover(generation, &sockets)) {
            // Else it would be up without an address.
            self.ups.push((generation, speaker));
            return self.poll_by(Instant::now() + POLL_SWAP);
        }
        self.feed(generation, swap::Event::Said(speaker, ServerWord::Up));
    }

    /// The server says that it has let go of an address. Where somebody waits to bind that the kernel has to
    /// agree, now or at a later look.
    pub(super) fn said_released(&mut self, generation: GenId, speaker: SpeakerId, address: Address) {
        let is_asked_for = self.live.get(&generation).is_some_and(|live| live.machine.is_asked_for(&address));
        let listens = |port| !net::listeners_at(port).is_ok_and(|sockets| sockets.at(&address).next().is_none());
        match address {
            Address::Tcp(_, port) if is_asked_for && listens(port) => self.poll_soon(),
            _ => self.feed(generation, swap::Event::Said(speaker, ServerWord::Released(address))),
        }
    }

    /// Registers again what a claimer had that is gone; `true` if one of them is still there.
    fn regain(&mut self, now: Instant) -> bool {
        let wanted: Vec<(GenId, Address, Instant)> = self
            .live
            .iter()
            .flat_map(|(id, live)| live.regaining.iter().map(|(address, until)| (*id, address.clone(), *until)))
            .collect();
        if wanted.is_empty() {
            return false;
        }
        // Somebody has the directory at this moment, as a rule not for long.
        if !self.dir.hold() && wanted.iter().any(|(_, _, until)| *until + LOCK_PATIENCE > now) {
            return true;
        }
        let mut waits = false;
        for (generation, address, until) in wanted {
            let done = self.register(generation, &address, &[]) || until <= now;
            waits |= !done;
            if let (true, Some(live)) = (done, self.live.get_mut(&generation)) {
                live.regaining.remove(&address);
            }
        }
        self.dir.release();
        waits
    }

    /// Everything of an ended generation in the run directory.
    pub(super) fn retire(&mut self, generation: GenId) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        for address in std::mem::take(&mut live.held) {
            self.dir.unhold(&address, live.server.pid);
        }
        if let Some(registration) = live.registration.take() {
            self.dir.deregister(registration, live.sockets.as_ref().map_or(&[][..], |s| &s.names));
        }
    }

    /// Everything of an ended generation in the run directory and among the threads.
    pub(super) fn clear_away(&mut self, generation: GenId) -> Option<Live> {
        self.retire(generation);
        let live = self.live.remove(&generation)?;
        self.timers.forget(generation);
        self.clear_desk(generation);
        if let Some(sockets) = &live.sockets {
            // Wakes the threads that block on them.
            let _ = nix::sys::socket::shutdown(
                std::os::fd::AsRawFd::as_raw_fd(&*sockets.listener),
                nix::sys::socket::Shutdown::Both,
            );
            sockets.notify.closed.store(true, Ordering::Release);
            let _ = sockets.notify.socket.shutdown(std::net::Shutdown::Both);
        }
        // Who asked for a reload asked the old server's supervisor, and hears of it after that server is gone.
        let stay = self.waiting_peers();
        self.conns.retain(|id, conn| {
            let ends = conn.role.generation() == Some(generation) && !stay.contains(id);
            if ends {
                conn.out.close();
            }
            !ends
        });
        // Found after it had ended: an orphan among them is left as it was found.
        let olds: Vec<Id> = self.olds.iter().filter(|(_, old)| old.of == generation).map(|(&id, _)| id).collect();
        olds.into_iter().for_each(|id| self.unlock(swap::OldId(id)));
        Some(live)
    }
}

impl Leftover {
    pub(super) fn new(server: Server, jobs: Jobs, until: Instant) -> Leftover {
        Leftover { server, jobs, until, unseen: 0 }
    }

    /// `false` if nothing is left of it, or nothing can be done about it.
    fn look(&mut self, now: Instant) -> bool {
        let is_late = self.until <= now;
        let seen = match is_late {
            true => self.server.signal_rest(Signal::SIGKILL, self.jobs),
            false => self.server.has_rest(self.jobs),
        };
        self.unseen = if seen { 0 } else { self.unseen + 1 };
        self.unseen < UNSEEN_LOOKS && self.until + KILLED_FOR > now
    }
}

/// What the main thread has computed so far: unlike the time that has passed, it does not count how busy the machine is.
fn cpu_time() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    now.map_or(Duration::ZERO, Duration::from)
}

/// Sockets that only this user can connect to, from the moment they are there.
fn open_sockets(control: &Path, notify: &Path) -> io::Result<(UnixListener, UnixDatagram)> {
    let before = umask(Mode::from_bits_truncate(0o177));
    let opened = bind(control, UnixListener::bind).and_then(|listener| {
        let datagrams = bind(notify, UnixDatagram::bind).inspect_err(|_| drop(std::fs::remove_file(control)))?;
        Ok((listener, datagrams))
    });
    umask(before);
    opened
}

/// Binds one, in the place of that of a dead supervisor with our pid: process 1 of a container always has it.
fn bind<'a, S>(path: &'a Path, bind: impl Fn(&'a Path) -> io::Result<S>) -> io::Result<S> {
    match bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && is_left_behind(path) => {
            std::fs::remove_file(path)?;
            bind(path)
        }
        bound => bound,
    }
}

/// Whether it is a socket that nobody has. To connect to it by datagrams never waits, whatever its kind.
fn is_left_behind(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let connected = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    is_socket && connected.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

/// Ports that the kernel gives to who asks for any (ip(7)): listeners there do not count unless the
/// server said READY for them.
fn ephemeral_ports() -> std::ops::RangeInclusive<u16> {
    // Where it cannot be read at the moment: as it was.
    static LAST: Mutex<(u16, u16)> = Mutex::new((32768, 60999));
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().filter_map(|n| n.parse().ok());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(first), Some(end)) = (bounds.next(), bounds.next()) {
        *last = (first, end);
    }
    last.0..=last.1
}

fn is_fixed(address: &Address, ephemeral: &std::ops::RangeInclusive<u16>) -> bool {
    matches!(address, Address::Tcp(_, port) if !ephemeral.contains(port))
}
