//! Looking at what the kernel tells nobody by itself: who listens, who has ended, how far probes and drains are. Soon after
//! something has happened, and then ever more rarely.

use super::kept::look_at_kept;
use super::left::left_alone;
use super::live::{Live, UNCLEAR_FOR};
use super::sharing::listen_alone;
use super::state::Supervisor;
use super::switching::{LINGERS, start_drain};
use super::threads::Id;
use crate::address::Address;
use crate::cli::Run;
use crate::drain::Drained;
use crate::procfs;
use crate::protocol::ServerWord;
use crate::record::Olds;
use crate::relay::Reach;
use crate::rundir::LOCK_PATIENCE;
use crate::swap::{self, SpeakerId};
use crate::sys::net::{self, Listeners};
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// The first pause between two looks at what the kernel does not report by itself.
pub(super) const POLL_FIRST: Duration = Duration::from_millis(1);
/// The pause grows to this in a swap, or to a hundredth of the time since something last happened if that is longer.
pub(super) const POLL_SWAP: Duration = Duration::from_millis(20);
/// But to no more than this while listeners of old servers are kept open.
const POLL_STEERS: Duration = Duration::from_millis(100);
/// And it grows to this if listeners of the server are searched for, and nothing else is waited for.
const POLL_DISCOVER: Duration = Duration::from_millis(500);

/// When the run directory is tidied again after somebody had its lock.
const TIDY_AGAIN: Duration = Duration::from_millis(200);

impl Supervisor {
    /// Asks the kernel soon, and then ever more rarely, until there is nothing to ask for.
    pub(super) fn poll_soon(&mut self) {
        self.clock.poll_every = POLL_FIRST;
        self.clock.poll_since = Instant::now();
        self.poll_by(Instant::now() + self.poll_pause());
    }

    pub(super) fn poll_by(&mut self, at: Instant) {
        self.clock.poll_at = Some(self.clock.poll_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Tidies the run directory a while later (`swap::QUIET`): as a rule this server has what it wants by then.
    pub(super) fn tidy_later(&mut self) {
        let at = Instant::now() + swap::QUIET;
        self.clock.tidy_at = Some(at);
        self.poll_by(at);
    }

    fn poll_pause(&self) -> Duration {
        // With a thousand addresses a look takes its time, and what its server does meanwhile waits for it.
        self.clock.poll_every.max(self.clock.poll_took).max(POLL_SWAP.min(self.clock.poll_took * 3))
    }

    /// Looks at who listens, for all that waits for that.
    pub(super) fn poll(&mut self) {
        let (now, started) = (Instant::now(), cpu_time());
        self.clock.poll_at = None;
        self.try_again(now);
        // What could not be asked says nothing: not that nobody listens.
        let Ok(sockets) = net::listeners() else { return self.cannot_look(now) };
        let mut swapping = self.look_at(now, &sockets) | self.look_at_passed();
        let discovering = self.live.as_ref().is_some_and(|live| live.looks.discover_until.is_some());
        swapping |= self.look_at_held() | self.regain(now) | !self.kin.leftovers.is_empty();
        let since = now.saturating_duration_since(self.clock.poll_since);
        // What an old server closes meanwhile has to be seen soon.
        let steers = self.live.iter().any(|live| live.joining.sharing.has_olds());
        let slowest = match () {
            () if self.keeps() => POLL_SWAP,
            () if steers => POLL_SWAP.max(since / 100).min(POLL_STEERS),
            () if swapping => POLL_SWAP.max(since / 100),
            () => POLL_DISCOVER,
        };
        self.clock.poll_every = (self.clock.poll_every * 3 / 2).min(slowest);
        self.clock.poll_took = cpu_time().saturating_sub(started);
        swapping |= !self.clock.ups.is_empty() || !self.agenda.orphaned.is_empty();
        self.clock.poll_at = (swapping || discovering).then(|| Instant::now() + self.poll_pause());
        let young = self.live.iter().flat_map(|live| live.young_until()).min();
        let lingers = self.peers.olds.values().any(|old| old.lingers.is_some()).then(|| Instant::now() + LINGERS);
        let lent = self.live.iter().flat_map(|live| live.lent_until()).min();
        [young, lingers, lent, self.clock.tidy_at].into_iter().flatten().for_each(|at| self.poll_by(at));
    }

    /// Tries again what could not be done before.
    fn try_again(&mut self, now: Instant) {
        for speaker in std::mem::take(&mut self.clock.ups) {
            self.said_up(speaker);
        }
        for id in std::mem::take(&mut self.clock.unreached) {
            self.peers.olds.remove(&id.0);
            self.feed(swap::Event::OldLost(id));
        }
        self.go_on_with_orphans();
        let lingering = self.peers.olds.iter().filter(|(_, old)| old.lingers.is_some()).map(|(id, _)| *id);
        lingering.collect::<Vec<Id>>().into_iter().for_each(|id| self.old_gone(id));
        self.kin.leftovers.retain_mut(|left| left.look(now));
        if self.clock.tidy_at.take_if(|at| *at <= now).is_some() {
            self.dir.claims_no_orphans();
            // What could not be looked at when it came up may have the value of a new server.
            if let Some(live) = self.live.as_mut().filter(|live| live.life.was_up) {
                live.server.goes_first_no_more();
            }
            // A server that was ending when this one looked for others has left its record: nobody else removes it.
            if !(self.agenda.course.write(&self.dir, self.log) && self.dir.tidy()) {
                self.clock.tidy_at = Some(now + TIDY_AGAIN);
            }
        }
    }

    /// The kernel could not be asked. What waits for its answer is decided without it when its time is up: a claimer
    /// that has gone away, and a server whose main process has ended.
    fn cannot_look(&mut self, now: Instant) {
        self.clock.poll_at = Some(now + POLL_SWAP);
        let Some(live) = self.live.as_mut() else { return };
        if let Some(left) = live.standing.left_by.take_if(|left| left.until <= now) {
            self.agenda.pending.push_back(swap::Event::ClaimerGone(left.claimer));
        }
        if let Some(ended) = live.life.ended.filter(|ended| ended.seen.elapsed() > UNCLEAR_FOR) {
            self.server_is_gone();
            self.feed(swap::Event::Exited(ended.status));
        }
    }

    /// Looks at one server; `true` if a swap of it is under way.
    fn look_at(&mut self, now: Instant, sockets: &Listeners) -> bool {
        let Some(live) = self.live.as_mut() else { return false };
        for own in live.server.holds_of(&sockets.at_any(&live.looks.watching)).unwrap_or_default() {
            for address in live.looks.watching.extract_if(.., |a| a.collides(&own.local)) {
                self.agenda.pending.push_back(swap::Event::Listens(address));
            }
        }
        for address in live.looks.releasing.extract_if(.., |a| sockets.at(a).next().is_none()) {
            self.agenda.pending.push_back(swap::Event::Free(address));
        }
        live.looks.discover_until.take_if(|until| *until <= now);
        if live.looks.discover_until.is_some() {
            let _ = self.discover(sockets);
        }
        let Some(live) = self.live.as_mut() else { return false };
        let heir = live.standing.heir.take_if(|(heir, until)| procfs::has_ended(*heir) || *until < now);
        self.agenda.pending.extend(heir.map(|_| swap::Event::HeirGone));
        let (followed, left) = (live.standing.succeeded, left_alone(live, sockets, &mut self.agenda.pending));
        if left {
            self.decide_swap_of_dead();
        } else if followed && live.joining.sharing.is_empty() && live.joining.lent.is_none() {
            self.write_olds(Olds::default());
        }
        let Some(live) = self.live.as_mut() else { return false };
        let sharing = left | look_at_shared(live, sockets, &mut self.agenda.pending, &self.run);
        let looks = !live.looks.watching.is_empty() || !live.looks.releasing.is_empty() || live.standing.heir.is_some();
        let has_ended = live.life.ended.is_some();
        if has_ended {
            self.look_for_rest(sockets);
        }
        sharing || looks || has_ended
    }

    /// Finds the listeners of a server that says nothing of them; `false` if they could not be looked at.
    fn discover(&mut self, sockets: &Listeners) -> bool {
        let Some(live) = self.live.as_mut() else { return true };
        let is_fixed = procfs::fixed();
        let fixed = || sockets.all().filter(|s| is_fixed(&s.local));
        let inodes: BTreeSet<u32> = fixed().map(|s| s.inode).collect();
        if !inodes.is_subset(&live.looks.seen) {
            // One that cannot be looked at now is looked at again.
            let Ok(found) = live.server.holds_of(fixed()) else { return false };
            let found: BTreeSet<Address> = found.into_iter().map(|socket| socket.local).collect();
            self.agenda.pending.extend(found.into_iter().map(swap::Event::Listens));
        }
        live.looks.seen = inodes;
        true
    }

    /// The server says that it is up: what it listens on by now comes first.
    pub(super) fn said_up(&mut self, speaker: SpeakerId) {
        let discovers = self.live.as_ref().is_some_and(|live| live.looks.discover_until.is_some());
        if discovers && !net::listeners().is_ok_and(|sockets| self.discover(&sockets)) {
            // Else it would be up without an address.
            self.clock.ups.push(speaker);
            return self.poll_by(Instant::now() + POLL_SWAP);
        }
        self.feed(swap::Event::Said(speaker, ServerWord::Up));
    }

    /// The server says RELEASED. If the holder of the lock waits to bind the address, that counts only once the kernel
    /// shows no listener there, now or at a later look.
    pub(super) fn said_released(&mut self, speaker: SpeakerId, address: Address) {
        let is_asked_for = self.live.as_ref().is_some_and(|live| live.machine.is_asked_for(&address));
        let listens = |port| !net::listeners_at(port).is_ok_and(|sockets| sockets.at(&address).next().is_none());
        match address {
            Address::Tcp(_, port) if is_asked_for && listens(port) => self.poll_soon(),
            _ => self.feed(swap::Event::Said(speaker, ServerWord::Released(address))),
        }
    }

    /// Registers addresses again that a claimer had and gave up; `true` if some could not be registered yet.
    fn regain(&mut self, now: Instant) -> bool {
        let Some(live) = self.live.as_ref().filter(|live| !live.names.regaining.is_empty()) else { return false };
        let (wanted, olds) = (live.names.regaining.clone(), live.names.olds());
        // Somebody has the directory at this moment, as a rule not for long.
        if !self.dir.hold() && wanted.values().any(|until| *until + LOCK_PATIENCE > now) {
            return true;
        }
        let mut waits = false;
        for (address, until) in wanted {
            let done = self.register(&address, &olds) || until <= now;
            waits |= !done;
            if let (true, Some(live)) = (done, self.live.as_mut()) {
                live.names.regaining.remove(&address);
            }
        }
        self.dir.release();
        waits
    }
}

/// Moves probes and drains a step on; `true` if there is more to come.
pub(super) fn look_at_shared(
    live: &mut Live,
    listeners: &Listeners,
    pending: &mut VecDeque<swap::Event>,
    run: &Run,
) -> bool {
    live.follow_closed(None, listeners, pending);
    let server = &live.server;
    let unseen: Vec<&Address> =
        live.joining.proving.iter().filter(|address| !live.joining.sharing.has_joined(address)).collect();
    for address in unseen {
        // Nobody saw it listen.
        if let Ok(held) = server.holds_of(&listeners.at_any([address])) {
            live.joining.sharing.found(&held);
        }
    }
    let held = || Some(server.holds_of(listeners.all()).ok()?.into_iter().map(|socket| socket.inode).collect());
    live.joining.sharing.look(listeners, run.trial.probe, held, server);
    let complete = !live.joining.settled;
    for address in live.joining.proving.extract_if(.., |a| live.joining.sharing.is_proven(a, complete)) {
        pending.push_back(swap::Event::Accepts(address));
    }
    for address in &live.joining.proving {
        let why = live.joining.sharing.hindrance(address);
        if why.is_some() && live.joining.hindrances.get(address) != why.as_ref() {
            pending.extend(why.clone().map(|why| swap::Event::Hindered(address.clone(), why)));
            live.joining.hindrances.extend(why.map(|why| (address.clone(), why)));
        }
    }
    let now = Instant::now();
    for young in live.opening.young.extract_if(.., |young| young.until <= now) {
        if listeners.at(&young.address).any(|s| s.inode == young.inode) {
            pending.push_back(swap::Event::Listens(young.address));
        }
    }
    for lent in live.opening.lent.iter_mut().filter(|lent| lent.until <= now) {
        // Whoever steers does not answer: our server must not wait for that.
        lent.waiting.take().into_iter().for_each(|waiting| _ = listen_alone(waiting, true));
    }
    look_at_drain(live, run.relay, pending);
    !live.joining.proving.is_empty() || live.standing.drains || !live.joining.sharing.is_empty()
}

/// Moves the drain of a server on.
fn look_at_drain(live: &mut Live, relay: Reach, pending: &mut VecDeque<swap::Event>) {
    if live.standing.drains && live.standing.drain.is_none() {
        // The failure was reported at the first attempt. Until the drain can be watched, the server may be busy.
        let _ = start_drain(live, relay);
    }
    if let Some(drain) = &mut live.standing.drain {
        let drained = drain.look(&live.server);
        match drained {
            Drained::Arriving => {}
            Drained::Quiesced if !live.standing.quiesced => {
                live.standing.quiesced = true;
                pending.push_back(swap::Event::Quiesced);
            }
            Drained::Quiesced | Drained::Idle => {
                pending.extend(look_at_kept(&mut live.standing, &live.server, drained))
            }
        }
    }
}

/// The CPU time of the main thread so far: unlike wall-clock time it does not grow while other processes run.
fn cpu_time() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    now.map_or(Duration::ZERO, Duration::from)
}
