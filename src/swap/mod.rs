//! The state machine of one generation of a server: how it takes addresses over from an older one,
//! serves, and gives them away to a newer one.
//!
//! Pure: [`Generation::step`] turns an event into effects. It knows no file, clock, process or log.
//! The same machine stands on both sides of a swap. A supervisor that swaps within itself (a reload,
//! an orphan taken over) runs two of them and hands the effects of one to the other as events; two
//! supervisors do the same through the peer protocol.
//!
//! A swap has four steps, [`Step`]. In plain order the switch and the drain are instant, and the new
//! server is told to bind only after the takedown has released the address.

#![forbid(unsafe_code)]

mod order;
#[cfg(test)]
mod tests;

pub use order::{Order, Step, Warrant};

use crate::address::Address;
use crate::error::status;
use crate::protocol::{ServerWord, SupervisorWord};
use order::{Lock, Ready};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A connection on which the server speaks: its control fd, or one to its control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpeakerId(pub u64);

/// An older generation that has what this one wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OldId(pub u64);

/// Somebody who wants to replace this generation or to take it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimerId(pub u64);

/// The clocks of a generation. The owner of the machine keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// The new server must be up.
    Ready,
    /// The new server has been quiet: it wants no more addresses.
    Quiet,
    /// The server was told to stop: SIGKILL.
    Kill,
    /// The server was told to let go of some of its addresses.
    Partial,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The server said a word.
    Said(SpeakerId, ServerWord),
    /// A connection of the server's ended.
    SpeakerGone(SpeakerId),
    /// The server listens on the address (asked for by [`Effect::Watch`], or found).
    Listens(Address),
    /// Nobody listens on the address any more (asked for by [`Effect::WatchRelease`]).
    Free(Address),
    /// The server is gone, with this status.
    Exited(u8),
    /// Answer to [`Effect::LookUp`]: nobody had the address, now it is registered as ours.
    Vacant(Address),
    /// Answer to [`Effect::LookUp`]: these have it.
    Taken(Address, Vec<OldId>),
    /// Answer to [`Effect::LookUp`]: it cannot be had, and why.
    Blocked(Address, String),
    /// The old server's supervisor is alive and has our claim.
    Attended(OldId),
    /// The old server is ours to replace; it has these addresses.
    Locked(OldId, Vec<Address>),
    /// The old server has let go of an address that was asked for.
    OldReleased(OldId, Address),
    /// The old server's supervisor refuses, and why.
    OldRefused(OldId, String),
    /// The old server is gone.
    OldGone(OldId),
    /// The old server's supervisor is gone; the server may live.
    OldLost(OldId),
    /// Somebody wants to replace this server.
    Claim(ClaimerId),
    /// The holder of the lock asks for an address.
    AskedTakedown(ClaimerId, Address),
    /// The holder of the lock asks for the end of the server.
    AskedStop(ClaimerId),
    /// `--takedown` of these addresses.
    Down(ClaimerId, Vec<Address>),
    /// A claimer has gone away.
    ClaimerGone(ClaimerId),
    /// The supervisor is told to stop its server. `signalled`: the terminal told the server already.
    Stop {
        /// The server has had the signal too.
        signalled: bool,
    },
    /// A clock ran out.
    Timer(Timer),
}

/// How much a report matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is not as asked.
    Warning,
    /// An event that matters.
    Notice,
    /// For those who want to watch.
    Detail,
}

/// What is to be done. Nothing here can harm an old server but the two that carry a [`Warrant`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send the server a word.
    Say(SpeakerId, SupervisorWord),
    /// Find out who has the address, and register it as ours if nobody has.
    LookUp(Address),
    /// Queue for the lock of an old server.
    Lock(OldId),
    /// Give up the lock, or the place in the queue.
    Unlock(OldId),
    /// Register the address as ours, whoever had it: the switch in the run directory.
    Take(Warrant, Address),
    /// Ask the old server to let go of the address.
    AskTakedown(Warrant, OldId, Address),
    /// Ask for the end of the old server.
    AskStop(Warrant, OldId),
    /// Register the address as ours again, if nobody else has it.
    Hold(Address),
    /// Remove our registration of the address.
    Unhold(Address),
    /// From here on the new server must not end with its supervisor.
    Commit,
    /// Tell when the server listens on the address.
    Watch(Address),
    /// Tell when nobody listens on the address.
    WatchRelease(Address),
    /// Send the server its stop signal.
    Signal,
    /// SIGKILL to all of the server.
    Kill,
    /// The claimer has the lock; these are the addresses.
    Grant(ClaimerId, Vec<Address>),
    /// The claimer's address is free.
    TellReleased(ClaimerId, Address),
    /// The claimer does not get what it asked for.
    Refuse(ClaimerId, String),
    /// The server is gone.
    TellGone(ClaimerId),
    /// Start a clock anew.
    Arm(Timer, Duration),
    /// Stop a clock for good.
    Disarm(Timer),
    /// Stop a clock for a while: what is left stays.
    Pause(Timer),
    /// Let a paused clock run on.
    Resume(Timer),
    /// Tell the user.
    Report(Level, Option<Address>, String),
    /// The server is up.
    Up,
    /// The swap is done: the server is up and whom it replaced is gone.
    Done,
    /// The generation has ended; the status for its supervisor to end with.
    End(u8),
}

/// Settings of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Plain order, or the shared port.
    pub order: Order,
    /// Somebody waits for the swap (`--detach`, `--reload`): the server has to be up to count.
    pub awaited: bool,
    /// `--ready-timeout`; zero: for ever; `None`: the default of the situation.
    pub ready_timeout: Option<Duration>,
    /// `--kill-after`.
    pub kill_after: Duration,
}

/// Default of `--ready-timeout`.
pub const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// No READY and no bind for this long: the server wants no more addresses.
pub const QUIET: Duration = Duration::from_secs(3);
/// Most addresses of one server: a server that asks for more babbles.
pub const ADDRESSES_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Slot {
    /// READY was said; who has the address is being looked up.
    Looking(Ready),
    /// These have it, and not all of their locks are ours.
    Waiting(Ready, BTreeSet<OldId>),
    /// These were asked to let go of it.
    Releasing(BTreeSet<OldId>),
    /// GO was said; the server does not listen yet.
    Going,
    /// The server has the address.
    Held,
    /// A claimer asked for the address. `told`: the server knows.
    Asked { told: bool },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Old {
    attended: bool,
    lock: Option<Lock>,
    step: Step,
    warrant: Option<Warrant>,
    stopped: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    Replace,
    Down(Vec<Address>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Replaced, or taken down on request: the supervisor ends with 0.
    Requested,
    /// The supervisor was told to stop: it ends with the server's status.
    Told,
    /// The new server did not make it: it ends with this status.
    Failed(u8),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// Not up yet.
    Starting,
    /// Serves.
    Up,
    /// Was told to stop.
    Leaving(Why),
    /// Is gone.
    Ended,
}

/// One generation of a server. See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    settings: Settings,
    stage: Stage,
    slots: BTreeMap<Address, Slot>,
    /// READY that was not answered with GO yet.
    unanswered: Vec<(SpeakerId, Address)>,
    /// Who took TAKEDOWN for which address; `true`: and was told so.
    takers: BTreeMap<(Address, SpeakerId), bool>,
    said_up: bool,
    quiet: bool,
    ready_armed: bool,
    ready_paused: bool,
    quiet_armed: bool,
    signal_due: bool,
    committed: bool,
    /// An old server was asked to go.
    harmed: bool,
    done: bool,
    olds: BTreeMap<OldId, Old>,
    queue: VecDeque<(ClaimerId, Wish)>,
    lock: Option<ClaimerId>,
    /// What the holder of the lock asked for and does not have yet, in its words.
    asked: BTreeSet<Address>,
}

impl Generation {
    /// A generation that is about to start, and the effects of that.
    pub fn new(settings: Settings) -> (Generation, Vec<Effect>) {
        let mut new = Generation::with(settings, Stage::Starting);
        let mut effects = Vec::new();
        match new.settings.ready_timeout {
            Some(Duration::ZERO) => {}
            Some(time) => new.arm_ready(time, &mut effects),
            None if new.settings.awaited => new.arm_ready(READY_TIMEOUT, &mut effects),
            None => {}
        }
        new.settle(&mut effects);
        (new, effects)
    }

    /// A server that is up already and has these addresses: an orphan.
    pub fn serving(settings: Settings, addresses: impl IntoIterator<Item = Address>) -> Generation {
        let mut orphan = Generation::with(settings, Stage::Up);
        orphan.slots = addresses.into_iter().map(|a| (a, Slot::Held)).collect();
        (orphan.committed, orphan.done) = (true, true);
        orphan
    }

    fn with(settings: Settings, stage: Stage) -> Generation {
        Generation {
            settings,
            stage,
            slots: BTreeMap::new(),
            unanswered: Vec::new(),
            takers: BTreeMap::new(),
            said_up: false,
            quiet: false,
            ready_armed: false,
            ready_paused: false,
            quiet_armed: false,
            signal_due: false,
            committed: false,
            harmed: false,
            done: false,
            olds: BTreeMap::new(),
            queue: VecDeque::new(),
            lock: None,
            asked: BTreeSet::new(),
        }
    }

    /// The addresses that the server has or is about to bind.
    pub fn addresses(&self) -> Vec<Address> {
        self.active().cloned().collect()
    }

    /// `starting`, `serving` or `draining`, as `--status` says it.
    pub fn state(&self) -> &'static str {
        match self.stage {
            Stage::Starting => "starting",
            Stage::Up => "serving",
            Stage::Leaving(_) | Stage::Ended => "draining",
        }
    }

    /// Whether the server is up and nobody has its lock.
    pub fn is_free(&self) -> bool {
        self.stage == Stage::Up && self.olds.is_empty() && self.lock.is_none()
    }

    /// Whether the server was told to stop.
    pub fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Leaving(_))
    }

    /// Whether the swap can be called off without a loss: no old server was asked to go.
    pub fn may_be_cancelled(&self) -> bool {
        self.stage == Stage::Starting && !self.harmed
    }

    /// Whether the server was up and not yet told to stop.
    pub fn is_up(&self) -> bool {
        self.stage == Stage::Up
    }

    /// The first address: the one that messages about the whole server name.
    pub fn name(&self) -> Option<Address> {
        self.slots.keys().next().cloned()
    }

    /// What follows from an event.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.stage == Stage::Ended {
            return effects;
        }
        self.take_in(event, &mut effects);
        if self.stage != Stage::Ended {
            self.settle(&mut effects);
        }
        effects
    }

    /// Notes what happened. What follows from the whole of it is for [`Generation::settle`].
    fn take_in(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Said(speaker, word) => self.said(speaker, word, effects),
            Event::SpeakerGone(speaker) => {
                self.unanswered.retain(|(s, _)| *s != speaker);
                let taken: Vec<Address> =
                    self.takers.keys().filter(|(_, s)| *s == speaker).map(|(a, _)| a.clone()).collect();
                for address in taken {
                    self.let_go(speaker, &address, effects);
                }
            }
            Event::Listens(address) => self.listens(address, effects),
            Event::Free(address) => {
                if let Some(Slot::Asked { .. }) = self.slots.get(&address) {
                    self.release(&address, effects);
                }
            }
            Event::Exited(status) => self.exited(status, effects),
            Event::Vacant(address) => {
                if let Some(Slot::Looking(_)) = self.slots.get(&address) {
                    self.go(&address, effects);
                }
            }
            Event::Taken(address, olds) => self.taken(address, olds, effects),
            Event::Blocked(address, why) => {
                if let Some(Slot::Looking(_)) = self.slots.get(&address) {
                    self.slots.remove(&address);
                    self.fail_address(address, status::FAILED, why, effects);
                }
            }
            Event::Attended(old) => {
                if let Some(old) = self.olds.get_mut(&old) {
                    old.attended = true;
                }
            }
            Event::Locked(old, holds) => match self.olds.get_mut(&old) {
                Some(old) => {
                    old.attended = true;
                    old.lock = Some(Lock::granted(holds));
                }
                None => effects.push(Effect::Unlock(old)),
            },
            Event::OldReleased(old, address) => {
                if let Some(Slot::Releasing(pending)) = self.slots.get_mut(&address) {
                    pending.remove(&old);
                }
            }
            Event::OldRefused(old, why) => {
                if self.olds.contains_key(&old) {
                    let address = self.slots.iter().find(|(_, slot)| slot.wants(old)).map(|(a, _)| a.clone());
                    match address {
                        Some(address) => self.fail_address(address, status::NOT_UP, why, effects),
                        None => effects.push(Effect::Report(Level::Warning, self.name(), why)),
                    }
                }
            }
            Event::OldGone(old) => self.old_ended(old, true, effects),
            Event::OldLost(old) => self.old_ended(old, false, effects),
            Event::Claim(claimer) => self.queue.push_back((claimer, Wish::Replace)),
            Event::AskedTakedown(claimer, address) => {
                if self.lock == Some(claimer) {
                    for (_, slot) in self.slots.iter_mut().filter(|(own, _)| own.collides(&address)) {
                        if *slot == Slot::Held {
                            *slot = Slot::Asked { told: false };
                        }
                    }
                    self.asked.insert(address);
                }
            }
            Event::AskedStop(claimer) => {
                if self.lock == Some(claimer) && self.stage == Stage::Up {
                    self.leave(Why::Requested, false, effects);
                }
            }
            Event::Down(claimer, addresses) => {
                if self.stage == Stage::Starting && self.olds.is_empty() {
                    self.lock = Some(claimer);
                    self.leave(Why::Requested, false, effects);
                } else {
                    self.queue.push_back((claimer, Wish::Down(addresses)));
                }
            }
            Event::ClaimerGone(claimer) => self.claimer_gone(claimer, effects),
            Event::Stop { signalled } => match self.stage {
                Stage::Leaving(_) => effects.push(Effect::Kill),
                Stage::Starting | Stage::Up => {
                    self.unlock_unharmed(effects);
                    self.leave(Why::Told, signalled, effects);
                }
                Stage::Ended => {}
            },
            Event::Timer(timer) => self.timer(timer, effects),
        }
    }

    fn said(&mut self, speaker: SpeakerId, word: ServerWord, effects: &mut Vec<Effect>) {
        let mut refuse = |why: String| effects.push(Effect::Say(speaker, SupervisorWord::Error(why)));
        if let Stage::Leaving(_) = self.stage {
            match word {
                ServerWord::Released(address) => self.let_go(speaker, &address, effects),
                ServerWord::Ready(_) | ServerWord::Takedown(_) | ServerWord::Up | ServerWord::Fail(_) => {
                    refuse("this server was told to stop".into());
                }
            }
            return;
        }
        match word {
            ServerWord::Ready(address) => match self.slots.get(&address) {
                Some(Slot::Going | Slot::Held) => effects.push(Effect::Say(speaker, SupervisorWord::Go(address))),
                Some(Slot::Asked { .. }) => refuse(format!("{address} is being taken down")),
                Some(Slot::Looking(_) | Slot::Waiting(..) | Slot::Releasing(_)) => {
                    if !self.unanswered.contains(&(speaker, address.clone())) {
                        self.unanswered.push((speaker, address));
                    }
                }
                None if self.slots.len() >= ADDRESSES_MAX => refuse("too many addresses".into()),
                None => {
                    self.quiet = false;
                    self.stop_quiet(effects);
                    self.slots.insert(address.clone(), Slot::Looking(Ready::said()));
                    self.unanswered.push((speaker, address.clone()));
                    effects.push(Effect::LookUp(address));
                }
            },
            ServerWord::Takedown(address) => {
                if self.takers.len() >= ADDRESSES_MAX {
                    refuse("too many addresses".into());
                } else {
                    self.takers.entry((address, speaker)).or_insert(false);
                }
            }
            ServerWord::Released(address) => self.let_go(speaker, &address, effects),
            ServerWord::Up => self.said_up = true,
            ServerWord::Fail(text) => {
                if self.stage == Stage::Starting {
                    self.fail(
                        status::NOT_UP,
                        self.name(),
                        format!("the new server gave up: {}", quote(&text)),
                        effects,
                    );
                } else {
                    refuse("this server is up; it can only exit".into());
                }
            }
        }
    }

    /// RELEASED by one speaker: counts when all that took TAKEDOWN for the address said it or ended.
    fn let_go(&mut self, speaker: SpeakerId, address: &Address, effects: &mut Vec<Effect>) {
        self.takers.remove(&(address.clone(), speaker));
        if self.takers.keys().any(|(a, _)| a.collides(address)) {
            return;
        }
        let released: Vec<Address> = self
            .slots
            .iter()
            .filter(|(own, slot)| own.collides(address) && matches!(slot, Slot::Asked { told: true }))
            .map(|(own, _)| own.clone())
            .collect();
        for own in released {
            self.release(&own, effects);
        }
    }

    fn release(&mut self, own: &Address, effects: &mut Vec<Effect>) {
        self.slots.remove(own);
        // A server that goes on without the address: a newer one has registered it, or nobody should.
        if self.stage == Stage::Up {
            effects.push(Effect::Unhold(own.clone()));
        }
    }

    fn listens(&mut self, address: Address, effects: &mut Vec<Effect>) {
        let room = self.slots.len() < ADDRESSES_MAX;
        match self.slots.get_mut(&address) {
            Some(slot @ Slot::Going) => *slot = Slot::Held,
            Some(_) => {}
            // Found listening without a word.
            None if matches!(self.stage, Stage::Starting | Stage::Up) && room => {
                self.commit(effects);
                effects.push(Effect::Hold(address.clone()));
                self.slots.insert(address, Slot::Held);
            }
            None => {}
        }
    }

    fn taken(&mut self, address: Address, olds: Vec<OldId>, effects: &mut Vec<Effect>) {
        let Some(Slot::Looking(ready)) = self.slots.get(&address) else { return };
        let ready = ready.clone();
        if self.stage == Stage::Starting && !self.ready_armed && self.settings.ready_timeout.is_none() {
            self.arm_ready(READY_TIMEOUT, effects);
        }
        for &old in &olds {
            self.olds.entry(old).or_insert_with(|| {
                effects.push(Effect::Lock(old));
                Old { attended: false, lock: None, step: Step::Prepare, warrant: None, stopped: false }
            });
        }
        self.slots.insert(address, Slot::Waiting(ready, olds.into_iter().collect()));
    }

    /// An old server is gone, or only its supervisor is.
    fn old_ended(&mut self, id: OldId, gone: bool, effects: &mut Vec<Effect>) {
        if self.olds.remove(&id).is_none() {
            return;
        }
        for (address, slot) in &mut self.slots {
            match slot {
                // Somebody else may have replaced it meanwhile: look again.
                Slot::Waiting(ready, olds) if olds.contains(&id) => {
                    *slot = Slot::Looking(ready.clone());
                    effects.push(Effect::LookUp(address.clone()));
                }
                Slot::Releasing(pending) if pending.contains(&id) => {
                    if gone {
                        pending.remove(&id);
                    } else {
                        *slot = Slot::Looking(Ready::said());
                        effects.push(Effect::LookUp(address.clone()));
                    }
                }
                _ => {}
            }
        }
    }

    fn claimer_gone(&mut self, claimer: ClaimerId, effects: &mut Vec<Effect>) {
        self.queue.retain(|(c, _)| *c != claimer);
        if self.lock != Some(claimer) {
            return;
        }
        self.lock = None;
        self.asked.clear();
        if self.stage == Stage::Up {
            effects.push(Effect::Disarm(Timer::Partial));
            for (address, slot) in &mut self.slots {
                if let Slot::Asked { told } = slot {
                    if !*told {
                        *slot = Slot::Held;
                    }
                    effects.push(Effect::Hold(address.clone()));
                }
            }
        }
    }

    fn timer(&mut self, timer: Timer, effects: &mut Vec<Effect>) {
        match timer {
            Timer::Ready if self.stage == Stage::Starting => {
                self.fail(status::NOT_UP, self.name(), "the new server was not up in time".into(), effects);
            }
            Timer::Quiet => (self.quiet, self.quiet_armed) = (true, false),
            Timer::Kill if matches!(self.stage, Stage::Leaving(_)) => {
                effects.push(Effect::Report(
                    Level::Warning,
                    self.name(),
                    "the server did not stop in time (it is killed)".into(),
                ));
                effects.push(Effect::Kill);
            }
            Timer::Partial => {
                let late = self.slots.iter().find(|(_, slot)| matches!(slot, Slot::Asked { told: true }));
                if let (Some((address, _)), Some(claimer)) = (late, self.lock) {
                    effects.push(Effect::Refuse(claimer, format!("{address} was not released in time")));
                }
            }
            Timer::Ready | Timer::Kill => {}
        }
    }

    fn exited(&mut self, own: u8, effects: &mut Vec<Effect>) {
        let stage = std::mem::replace(&mut self.stage, Stage::Ended);
        let lost: Vec<String> = self
            .slots
            .iter()
            .filter(|(_, slot)| matches!(slot, Slot::Releasing(_) | Slot::Going))
            .map(|(address, _)| address.to_string())
            .collect();
        let status = match stage {
            Stage::Leaving(Why::Requested) => status::DONE,
            Stage::Leaving(Why::Failed(status)) => status,
            // Whoever waits for the swap must not take this for a success.
            Stage::Starting if self.settings.awaited && own == 0 => status::NOT_UP,
            _ => own,
        };
        if stage == Stage::Starting {
            effects.push(Effect::Report(
                Level::Error,
                self.name(),
                format!("the new server ended with status {own} before it was up"),
            ));
        }
        let failed = matches!(stage, Stage::Starting | Stage::Leaving(Why::Failed(_) | Why::Told));
        if self.harmed && failed && !lost.is_empty() {
            effects.push(Effect::Report(Level::Error, None, format!("nothing serves {}", lost.join(", "))));
        }
        for &old in self.olds.keys() {
            effects.push(Effect::Unlock(old));
        }
        for claimer in self.lock.into_iter().chain(self.queue.iter().map(|(c, _)| *c)) {
            effects.push(Effect::TellGone(claimer));
        }
        effects.push(Effect::End(status));
    }

    /// Everything that follows from what is known, in the order in which it must happen.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        match self.stage {
            Stage::Starting | Stage::Up => {
                self.acquire(effects);
                self.abandon(effects);
                self.become_up(effects);
                self.give(effects);
                self.clocks(effects);
            }
            Stage::Leaving(_) | Stage::Ended => {}
        }
        if let Stage::Leaving(_) = self.stage {
            self.report_released(effects);
            if self.signal_due && self.takers.is_empty() {
                self.signal_due = false;
                effects.push(Effect::Signal);
            }
        }
    }

    /// Switches every address whose server is ready and whose old servers are all locked, and says
    /// GO for every one that was released.
    fn acquire(&mut self, effects: &mut Vec<Effect>) {
        let addresses: Vec<Address> = self.slots.keys().cloned().collect();
        for address in addresses {
            if let Some(Slot::Waiting(ready, olds)) = self.slots.get(&address) {
                let Some(warrant) = Warrant::new(ready, olds.iter().map(|id| self.olds[id].lock.as_ref())) else {
                    continue;
                };
                let olds = olds.clone();
                self.harmed = true;
                effects.push(Effect::Take(warrant, address.clone()));
                for &id in &olds {
                    let old = self.olds.get_mut(&id).expect("a slot waits for olds that exist");
                    old.warrant = Some(warrant);
                    old.step = self.settings.order.next_that_takes_time(Step::Switch);
                    effects.push(Effect::AskTakedown(warrant, id, address.clone()));
                }
                self.slots.insert(address.clone(), Slot::Releasing(olds));
            }
            if self.slots.get(&address) == Some(&Slot::Releasing(BTreeSet::new())) {
                self.go(&address, effects);
            }
        }
    }

    /// Stops the old servers that have addresses which the new one does not want, once it is plain
    /// that it does not.
    fn abandon(&mut self, effects: &mut Vec<Effect>) {
        if !(self.said_up || self.quiet) || self.wants_more() {
            return;
        }
        let uncovered: Vec<(OldId, Vec<Address>)> = self.uncovered().collect();
        for (id, addresses) in uncovered {
            let old = self.olds.get_mut(&id).expect("uncovered olds exist");
            if let (Some(warrant), false) = (old.warrant, old.stopped) {
                old.stopped = true;
                for address in addresses {
                    effects.push(Effect::Report(
                        Level::Warning,
                        Some(address),
                        "the new server does not take this address over (it is abandoned)".into(),
                    ));
                }
                effects.push(Effect::AskStop(warrant, id));
            }
        }
    }

    fn become_up(&mut self, effects: &mut Vec<Effect>) {
        if self.stage == Stage::Starting {
            let pending = self.wants_more() || self.slots.values().any(|slot| matches!(slot, Slot::Releasing(_)));
            let worker = self.slots.is_empty() && (self.said_up || (self.quiet && !self.settings.awaited));
            let serves = self.slots.values().any(|slot| *slot == Slot::Held);
            if pending || !(worker || serves) || self.uncovered().any(|(id, _)| !self.olds[&id].stopped) {
                return;
            }
            self.stage = Stage::Up;
            self.commit(effects);
            if std::mem::take(&mut self.ready_armed) {
                effects.push(Effect::Disarm(Timer::Ready));
            }
            self.stop_quiet(effects);
            effects.push(Effect::Up);
        }
        if self.stage == Stage::Up && !self.done && self.olds.is_empty() {
            self.done = true;
            effects.push(Effect::Done);
        }
    }

    /// The old side: grants the lock, and does what its holder asked for.
    fn give(&mut self, effects: &mut Vec<Effect>) {
        while self.is_free() && !self.acquiring() {
            match self.queue.pop_front() {
                None => break,
                Some((claimer, Wish::Replace)) => {
                    self.lock = Some(claimer);
                    effects.push(Effect::Grant(claimer, self.addresses()));
                }
                Some((claimer, Wish::Down(addresses))) => self.down(claimer, addresses, effects),
            }
        }
        if self.stage != Stage::Up || self.lock.is_none() {
            return;
        }
        let asked = self.slots.values().any(|slot| matches!(slot, Slot::Asked { told: false }));
        if asked && self.slots.values().all(|slot| matches!(slot, Slot::Asked { .. })) {
            self.leave(Why::Requested, false, effects);
        } else if asked {
            let mut told = false;
            for (own, slot) in &mut self.slots {
                let taken = self.takers.keys().any(|(a, _)| a.collides(own));
                if *slot == (Slot::Asked { told: false }) && taken {
                    *slot = Slot::Asked { told: true };
                    told = true;
                    tell(&mut self.takers, |a| a.collides(own), effects);
                    watch_release(own, effects);
                }
            }
            if told {
                effects.push(Effect::Arm(Timer::Partial, self.settings.kill_after));
            }
        }
        self.report_released(effects);
    }

    fn down(&mut self, claimer: ClaimerId, wanted: Vec<Address>, effects: &mut Vec<Effect>) {
        let (named, others): (Vec<Address>, Vec<Address>) =
            self.active().cloned().partition(|own| wanted.iter().any(|w| w.collides(own)));
        let taken = |own: &Address| self.takers.keys().any(|(a, _)| a.collides(own));
        if named.is_empty() {
            effects.push(Effect::Refuse(claimer, "the server has let go of it".into()));
        } else if others.is_empty() {
            self.lock = Some(claimer);
            self.leave(Why::Requested, false, effects);
        } else if named.iter().all(taken) {
            self.lock = Some(claimer);
            for own in named {
                self.slots.insert(own, Slot::Asked { told: false });
            }
            self.asked.extend(wanted);
        } else {
            let others: Vec<String> = others.iter().map(Address::to_string).collect();
            let why = format!("the same server also has {} and does not take TAKEDOWN", others.join(", "));
            effects.push(Effect::Refuse(claimer, why));
        }
    }

    fn report_released(&mut self, effects: &mut Vec<Effect>) {
        let Some(claimer) = self.lock else { return };
        let slots = &self.slots;
        self.asked.retain(|asked| {
            let held = slots.keys().any(|own| own.collides(asked));
            if !held {
                effects.push(Effect::TellReleased(claimer, asked.clone()));
            }
            held
        });
    }

    /// The ready clock stands still while the server waits for its first old one; the quiet clock
    /// runs while nothing else can happen.
    fn clocks(&mut self, effects: &mut Vec<Effect>) {
        if self.ready_armed {
            let waits = self.slots.values().any(|slot| matches!(slot, Slot::Waiting(..) | Slot::Releasing(_)));
            let goes = self.slots.values().any(|slot| matches!(slot, Slot::Going | Slot::Looking(_)));
            let attended = self.olds.values().all(|old| old.attended);
            let second =
                self.olds.values().any(|old| old.lock.is_some()) && self.olds.values().any(|old| old.lock.is_none());
            let pause = waits && !goes && attended && !second;
            if pause != self.ready_paused {
                self.ready_paused = pause;
                effects.push(if pause { Effect::Pause(Timer::Ready) } else { Effect::Resume(Timer::Ready) });
            }
        }
        let worker = self.stage == Stage::Starting && self.slots.is_empty() && !self.settings.awaited;
        let waits = !self.wants_more() && self.uncovered().any(|(id, _)| !self.olds[&id].stopped);
        if (worker || waits) && !self.quiet && !self.quiet_armed {
            self.quiet_armed = true;
            effects.push(Effect::Arm(Timer::Quiet, QUIET));
        } else if !(worker || waits) {
            self.stop_quiet(effects);
        }
    }

    fn go(&mut self, address: &Address, effects: &mut Vec<Effect>) {
        self.commit(effects);
        let (now, rest): (Vec<_>, Vec<_>) = self.unanswered.drain(..).partition(|(_, a)| a == address);
        self.unanswered = rest;
        for (speaker, _) in now {
            effects.push(Effect::Say(speaker, SupervisorWord::Go(address.clone())));
        }
        let slot = match address {
            Address::Tcp(..) => {
                effects.push(Effect::Watch(address.clone()));
                Slot::Going
            }
            // Nothing in the kernel tells of a name: GO is all there is to it.
            Address::Name(_) => Slot::Held,
        };
        self.slots.insert(address.clone(), slot);
    }

    fn commit(&mut self, effects: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.committed, true) {
            effects.push(Effect::Commit);
        }
    }

    /// Tells the server to stop, by TAKEDOWN where it took it, else by signal.
    fn leave(&mut self, why: Why, signalled: bool, effects: &mut Vec<Effect>) {
        self.stage = Stage::Leaving(why);
        self.stop_clocks(effects);
        effects.push(Effect::Arm(Timer::Kill, self.settings.kill_after));
        for (own, slot) in &mut self.slots {
            if matches!(slot, Slot::Held | Slot::Asked { .. }) {
                *slot = Slot::Asked { told: true };
                watch_release(own, effects);
            }
        }
        tell(&mut self.takers, |_| true, effects);
        let takers = &self.takers;
        let untaken = |own: &Address| !takers.keys().any(|(a, _)| a.collides(own));
        if self.takers.is_empty() || self.slots.keys().any(untaken) {
            self.signal_due = !signalled;
        }
    }

    /// The new server does not make it: it is killed, and whoever was not asked to go stays.
    fn fail(&mut self, status: u8, address: Option<Address>, why: String, effects: &mut Vec<Effect>) {
        let consequence = if self.harmed {
            "it is killed; the old one was already told to go"
        } else if self.olds.is_empty() {
            "it is killed"
        } else {
            "it is killed; the old one still serves"
        };
        effects.push(Effect::Report(Level::Error, address, format!("{why} ({consequence})")));
        self.unlock_unharmed(effects);
        self.stop_clocks(effects);
        self.stage = Stage::Leaving(Why::Failed(status));
        effects.push(Effect::Kill);
    }

    /// One address cannot be had. A server that is up already lives on without it.
    fn fail_address(&mut self, address: Address, status: u8, why: String, effects: &mut Vec<Effect>) {
        if self.stage == Stage::Starting {
            return self.fail(status, Some(address), why, effects);
        }
        let (refused, rest): (Vec<_>, Vec<_>) = self.unanswered.drain(..).partition(|(_, a)| *a == address);
        self.unanswered = rest;
        for (speaker, _) in refused {
            effects.push(Effect::Say(speaker, SupervisorWord::Error(format!("{address}: {why}"))));
        }
        self.slots.remove(&address);
        effects.push(Effect::Report(Level::Error, Some(address), format!("{why} (the server goes on without it)")));
    }

    fn unlock_unharmed(&mut self, effects: &mut Vec<Effect>) {
        self.olds.retain(|&id, old| {
            if old.warrant.is_none() {
                effects.push(Effect::Unlock(id));
            }
            old.warrant.is_some()
        });
        let olds = &self.olds;
        self.slots.retain(|_, slot| match slot {
            Slot::Looking(_) => false,
            Slot::Waiting(_, wanted) => wanted.iter().all(|id| olds.contains_key(id)),
            Slot::Releasing(_) | Slot::Going | Slot::Held | Slot::Asked { .. } => true,
        });
    }

    fn arm_ready(&mut self, time: Duration, effects: &mut Vec<Effect>) {
        self.ready_armed = true;
        effects.push(Effect::Arm(Timer::Ready, time));
    }

    fn stop_quiet(&mut self, effects: &mut Vec<Effect>) {
        if std::mem::take(&mut self.quiet_armed) {
            effects.push(Effect::Disarm(Timer::Quiet));
        }
    }

    fn stop_clocks(&mut self, effects: &mut Vec<Effect>) {
        self.stop_quiet(effects);
        if std::mem::take(&mut self.ready_armed) {
            effects.push(Effect::Disarm(Timer::Ready));
        }
        effects.push(Effect::Disarm(Timer::Partial));
    }

    /// READY was said and not yet followed by what the server itself has to do, or a lookup runs.
    fn wants_more(&self) -> bool {
        self.slots.values().any(|slot| matches!(slot, Slot::Looking(_) | Slot::Waiting(..) | Slot::Going))
    }

    fn acquiring(&self) -> bool {
        self.wants_more() || self.slots.values().any(|slot| matches!(slot, Slot::Releasing(_)))
    }

    fn active(&self) -> impl Iterator<Item = &Address> {
        self.slots.iter().filter(|(_, slot)| !matches!(slot, Slot::Looking(_) | Slot::Waiting(..))).map(|(a, _)| a)
    }

    /// Locked old servers with addresses that no READY named.
    fn uncovered(&self) -> impl Iterator<Item = (OldId, Vec<Address>)> + '_ {
        self.olds.iter().filter_map(|(id, old)| {
            let holds = old.lock.as_ref()?.holds();
            let left: Vec<Address> =
                holds.iter().filter(|held| !self.slots.keys().any(|own| own.collides(held))).cloned().collect();
            (!left.is_empty()).then_some((*id, left))
        })
    }
}

impl Slot {
    fn wants(&self, old: OldId) -> bool {
        match self {
            Slot::Waiting(_, olds) | Slot::Releasing(olds) => olds.contains(&old),
            Slot::Looking(_) | Slot::Going | Slot::Held | Slot::Asked { .. } => false,
        }
    }
}

/// TAKEDOWN to everybody who took it for an address that `of` picks and does not know yet.
fn tell(takers: &mut BTreeMap<(Address, SpeakerId), bool>, of: impl Fn(&Address) -> bool, effects: &mut Vec<Effect>) {
    for ((address, speaker), told) in takers.iter_mut() {
        if of(address) && !std::mem::replace(told, true) {
            effects.push(Effect::Say(*speaker, SupervisorWord::Takedown(address.clone())));
        }
    }
}

fn watch_release(address: &Address, effects: &mut Vec<Effect>) {
    if let Address::Tcp(..) = address {
        effects.push(Effect::WatchRelease(address.clone()));
    }
}

/// Server-supplied text for a message: quoted, control characters escaped.
pub fn quote(text: &str) -> String {
    format!("{text:?}")
}
