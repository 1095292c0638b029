//! The state machine of one generation of a server: how it takes addresses over from an older one,
//! serves, and gives them away to a newer one.
//!
//! Pure: [`Generation::step`] turns an event into effects. It knows no file, clock, process or log.
//! The same machine stands on both sides of a swap. A supervisor that swaps within itself (a reload,
//! an orphan taken over) runs two of them and hands the effects of one to the other as events; two
//! supervisors do the same through the peer protocol.
//!
//! A swap has four steps: the new server prepares, new connections are switched to it, the old one drains,
//! and is taken down. In plain order the switch and the drain are instant, and the new server is told to bind
//! only after the takedown has released the address.

#![forbid(unsafe_code)]

mod slots;
#[cfg(test)]
mod tests;
mod warrant;
mod words;

pub use warrant::Warrant;
pub use words::{
    ADDRESSES_MAX, ARRIVALS, ClaimerId, Effect, Event, Level, Meets, OldId, Order, QUIET, READY_TIMEOUT, Settings,
    SpeakerId, Timer,
};

use crate::address::Address;
use crate::error::status;
use crate::protocol::{ServerWord, SupervisorWord};
use slots::{Kind, Slot, Slots};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use warrant::{Lock, Proof, Ready, Wanted};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Old {
    contact: Contact,
    shares: bool,
    /// Why its ports cannot be shared, once that is known.
    unshared: Option<String>,
    demand: Demand,
}

/// How far we are with the supervisor of an old server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Contact {
    Silent,
    /// It is alive and has our claim.
    Attended,
    /// We have its lock.
    Locked(Lock),
}

/// What an old server was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Demand {
    Nothing,
    /// Some of its addresses.
    Addresses(Warrant),
    /// To drain, or to stop.
    Everything,
}

impl Old {
    fn lock(&self) -> Option<&Lock> {
        match &self.contact {
            Contact::Locked(lock) => Some(lock),
            Contact::Silent | Contact::Attended => None,
        }
    }

    fn is_stopped(&self) -> bool {
        self.demand == Demand::Everything
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Wish {
    Replace,
    Down(Vec<Address>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Why {
    /// Replaced, or taken down on request: the supervisor ends with 0.
    Requested,
    /// The supervisor was told to stop: it ends with the server's status.
    Told,
    /// The new server did not make it: it ends with this status.
    Failed(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stage {
    /// Not up yet.
    Starting,
    /// Assumed to be a worker after silence: as good as up. It may only be slow: its first word undoes that.
    Presumed,
    /// Serves.
    Up,
    /// Was told to stop.
    Leaving(Leaving),
    /// Is gone.
    Ended,
}

/// A server that was told to stop.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Leaving {
    why: Why,
    /// The supervisor was told to stop it: once more, and it is killed.
    stop_said: bool,
    /// The stop signal waits for what TAKEDOWN began.
    signal_due: bool,
    /// The switch was turned back, and the addresses are those of the old servers again.
    gave_back: bool,
    /// The addresses that the claimer has for good.
    given: Vec<Address>,
}

impl Stage {
    fn is_up(&self) -> bool {
        matches!(self, Stage::Presumed | Stage::Up)
    }

    /// Whether the server was not told to stop.
    fn lasts(&self) -> bool {
        matches!(self, Stage::Starting | Stage::Presumed | Stage::Up)
    }
}

/// Who has the lock of this server, and how far its drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Lease {
    Free,
    Lent(ClaimerId),
    /// New connections of its shared port go elsewhere. Nobody has the lock any more where the claimer has gone away
    /// and its server serves.
    Draining(Option<ClaimerId>, Drainage),
}

/// How far the drain of this server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Drainage {
    /// Something may be on its way to the server.
    Arriving,
    /// It is, and the time for the drain is up.
    Overdue,
    /// Nothing is any more.
    Quiesced,
}

impl Lease {
    fn claimer(self) -> Option<ClaimerId> {
        match self {
            Lease::Free => None,
            Lease::Lent(claimer) => Some(claimer),
            Lease::Draining(claimer, _) => claimer,
        }
    }

    /// Gives the lock to somebody, or takes it back.
    fn lend(&mut self, to: Option<ClaimerId>) {
        *self = match (*self, to) {
            (Lease::Draining(_, how), to) => Lease::Draining(to, how),
            (_, Some(claimer)) => Lease::Lent(claimer),
            (_, None) => Lease::Free,
        };
    }

    /// The server drains no more; tells whether it did.
    fn stay(&mut self) -> bool {
        let Lease::Draining(claimer, _) = *self else { return false };
        *self = claimer.map_or(Lease::Free, Lease::Lent);
        true
    }
}

/// A clock that was started and has not rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Clock {
    Runs,
    /// A ring that was on its way when it was stopped counts for nothing.
    Paused,
}

/// How much of a swap cannot be undone by the end of the new server's supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Reach {
    Prepared,
    /// The server lives on without its supervisor.
    Committed,
    /// New connections of a shared port come here.
    Switched,
}

/// One generation of a server. See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Generation {
    settings: Settings,
    stage: Stage,
    slots: Slots,
    /// READY that was not answered with GO yet.
    unanswered: Vec<(SpeakerId, Address)>,
    /// Who took TAKEDOWN for which address; `true`: and was told so.
    takers: BTreeMap<(Address, SpeakerId), bool>,
    /// UP was said, or nothing for a while, and no READY since: it wants no more addresses.
    said_up: bool,
    quiet: bool,
    clocks: BTreeMap<Timer, Clock>,
    reach: Reach,
    /// What old servers were asked to let go of, as long as the swap is not done.
    harmed: BTreeSet<Address>,
    /// Where the server waits in `listen`.
    called: BTreeSet<Address>,
    /// Where the server listens already, although it is not its turn.
    listening: BTreeSet<Address>,
    /// It has closed what it listened on before it was up: it is no worker.
    closed: bool,
    /// What keeps it from being proven where it listens.
    hindrances: BTreeMap<Address, String>,
    settled: bool,
    lease: Lease,
    done: bool,
    olds: BTreeMap<OldId, Old>,
    queue: VecDeque<(ClaimerId, Wish)>,
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
            Some(time) => new.arm(Timer::Ready, time, &mut effects),
            None if new.settings.awaited => new.arm(Timer::Ready, READY_TIMEOUT, &mut effects),
            None => {}
        }
        new.settle(&mut effects);
        (new, effects)
    }

    /// A server that is up already and has these addresses: an orphan.
    pub fn serving(settings: Settings, addresses: impl IntoIterator<Item = Address>) -> Generation {
        let mut orphan = Generation::with(settings, Stage::Up);
        orphan.slots = addresses.into_iter().map(|a| (a, Slot::Held)).collect();
        (orphan.reach, orphan.done) = (Reach::Committed, true);
        orphan
    }

    fn with(settings: Settings, stage: Stage) -> Generation {
        Generation {
            settings,
            stage,
            slots: Slots::default(),
            unanswered: Vec::new(),
            takers: BTreeMap::new(),
            said_up: false,
            quiet: false,
            clocks: BTreeMap::new(),
            reach: Reach::Prepared,
            harmed: BTreeSet::new(),
            called: BTreeSet::new(),
            listening: BTreeSet::new(),
            closed: false,
            hindrances: BTreeMap::new(),
            settled: false,
            lease: Lease::Free,
            done: false,
            olds: BTreeMap::new(),
            queue: VecDeque::new(),
            asked: BTreeSet::new(),
        }
    }

    /// The addresses that the server has or is about to bind.
    pub fn addresses(&self) -> Vec<Address> {
        self.active().cloned().collect()
    }

    /// Where the server listens, or may.
    pub fn claims(&self) -> Vec<Address> {
        self.slots.keys().cloned().collect()
    }

    /// `--drain`: how long it may take when a newer server has taken over.
    pub fn drain_time(&self) -> Duration {
        self.settings.drain
    }

    /// `starting`, `serving` or `draining`, as `--status` says it.
    pub fn state(&self) -> &'static str {
        match self.stage {
            Stage::Starting => "starting",
            Stage::Presumed | Stage::Up if self.is_draining() => "draining",
            Stage::Presumed | Stage::Up => "serving",
            Stage::Leaving(_) | Stage::Ended => "draining",
        }
    }

    /// Whether the server is up and nobody has its lock.
    pub fn is_free(&self) -> bool {
        self.stage.is_up() && self.olds.is_empty() && self.lease == Lease::Free
    }

    /// Whether the server is on its way out of the service, and can be replaced by a claimer's meanwhile.
    pub fn is_giving_way(&self) -> bool {
        self.is_draining() || self.is_leaving()
    }

    /// Whether this claimer has the server's lock.
    pub fn is_locked_by(&self, claimer: ClaimerId) -> bool {
        self.claimer() == Some(claimer)
    }

    /// Whether the server is not up, or was only taken for it.
    pub fn is_starting(&self) -> bool {
        self.stage == Stage::Starting
    }

    /// Who has the server's lock.
    pub fn claimer(&self) -> Option<ClaimerId> {
        self.lease.claimer()
    }

    fn is_draining(&self) -> bool {
        matches!(self.lease, Lease::Draining(..))
    }

    /// Whether the server was told to stop.
    pub fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Leaving(_))
    }

    /// Whether the swap can be called off without a loss: no old server was asked to go.
    pub fn may_be_cancelled(&self) -> bool {
        self.stage == Stage::Starting && self.harmed.is_empty() && !self.is_switched()
    }

    /// Whether the server was up and not yet told to stop.
    pub fn is_up(&self) -> bool {
        self.stage.is_up()
    }

    /// Whether the holder of the lock waits to bind what collides with this address.
    pub fn is_asked_for(&self, address: &Address) -> bool {
        self.asked.iter().any(|asked| asked.collides(address))
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
                // Nobody is left to hear GO: that READY harms no old server any more.
                let heard = self.unanswered.iter().map(|(_, a)| a.clone());
                // What it does says as much as a word.
                let acts = self.called.iter().chain(&self.listening).cloned();
                let joined = self.slots.iter().filter(|(_, s)| matches!(s, Slot::Joined(..) | Slot::Proven(..)));
                let kept: BTreeSet<Address> = heard.chain(acts).chain(joined.map(|(a, _)| a.clone())).collect();
                self.withdraw(|own| !kept.iter().any(|a| a.collides(own)), effects);
                let taken: Vec<Address> =
                    self.takers.keys().filter(|(_, s)| *s == speaker).map(|(a, _)| a.clone()).collect();
                for address in taken {
                    self.let_go(speaker, &address, effects);
                }
            }
            Event::Listens(address) => self.listens(address, effects),
            Event::Calls(address, meets) => self.calls(address, meets, effects),
            Event::Closed(address) => self.closed(&address, effects),
            Event::Foreign(address) => {
                if let Some(Slot::Looking(_)) = self.slots.get(&address) {
                    self.refuse_ready(&address, "it is held by a server of another user", effects);
                    self.admit(&address, Effect::Pass, effects);
                    self.slots.remove(&address);
                    self.listening.remove(&address);
                }
            }
            Event::Hindered(address, why) => drop(self.hindrances.insert(address, why)),
            Event::Bound => {
                self.quiet = false;
                self.disarm(Timer::Quiet, effects);
            }
            Event::Accepts(address) => {
                for own in self.colliding(&address) {
                    self.hindrances.remove(&own);
                    self.slots.change(&own, |slot| match slot {
                        Slot::Joined(wanted, olds) => {
                            *slot = Slot::Proven(Proof::accepts(wanted), std::mem::take(olds));
                        }
                        Slot::Proving => *slot = Slot::Held,
                        _ => {}
                    });
                }
            }
            Event::Shares(id) => {
                if let Some(old) = self.olds.get_mut(&id) {
                    old.shares = true;
                }
            }
            Event::Unshared(id, why) => {
                if let Some(old) = self.olds.get_mut(&id) {
                    old.unshared = Some(why);
                }
            }
            Event::AskedDrain(claimer) => {
                if self.lease == Lease::Lent(claimer) && self.stage.is_up() {
                    self.lease = Lease::Draining(Some(claimer), Drainage::Arriving);
                    effects.push(Effect::Drain);
                    self.arm(Timer::Drain, self.settings.drain, effects);
                }
            }
            Event::AskedStay(claimer) => {
                if self.is_locked_by(claimer) && self.stage.is_up() {
                    self.drain_no_more(effects);
                }
            }
            Event::Succeeded(claimer) => {
                if self.is_locked_by(claimer) && self.is_giving_way() {
                    self.lease.lend(None);
                } else {
                    self.claimer_gone(claimer, effects);
                }
            }
            Event::Alone => {
                if let Lease::Draining(None, _) = self.lease {
                    self.resume(effects);
                }
            }
            Event::Quiesced => self.quiesced(effects),
            Event::Drained => {
                if self.is_draining() && self.stage.is_up() {
                    self.leave(Why::Requested, false, effects);
                }
            }
            Event::Free(address) => {
                if let Some(Slot::Asked { .. }) = self.slots.get(&address) {
                    self.release(&address, effects);
                }
            }
            Event::Exited(status) => self.exited(status, effects),
            Event::Vacant(address) => match self.slots.get(&address) {
                Some(Slot::Looking(_)) => self.go(&address, effects),
                Some(_) => {}
                // The READY was taken back meanwhile.
                None => effects.push(Effect::Unhold(address)),
            },
            Event::Taken(address, olds) => self.taken(address, olds, effects),
            Event::Blocked(address, why) => {
                if let Some(Slot::Looking(_)) = self.slots.get(&address) {
                    self.fail_address(address, status::FAILED, why, effects);
                }
            }
            Event::Attended(old) => {
                if let Some(old) = self.olds.get_mut(&old)
                    && old.contact == Contact::Silent
                {
                    old.contact = Contact::Attended;
                }
            }
            Event::Locked(id, holds) => self.locked(id, holds, effects),
            Event::OldReleased(id, address) => match (self.slots.get(&address), self.olds.get(&id)) {
                (Some(Slot::Releasing(..)), _) => self.slots.change(&address, |slot| {
                    if let Slot::Releasing(_, pending) = slot {
                        pending.remove(&id);
                    }
                }),
                // The switch cannot be turned back any more.
                (_, Some(old)) if self.is_switched() && old.is_stopped() => drop(self.harmed.insert(address)),
                _ => {}
            },
            Event::OldRefused(old, why) => self.refused(old, why, effects),
            Event::OldSilent(id) => {
                if let Some(old) = self.olds.get_mut(&id).filter(|old| old.demand == Demand::Nothing) {
                    old.contact = Contact::Silent;
                }
            }
            Event::OldGone(old) => self.old_ended(old, true, effects),
            Event::OldLost(old) => self.old_ended(old, false, effects),
            Event::Claim(claimer) => self.enqueue(claimer, Wish::Replace),
            Event::AskedTakedown(claimer, address) => {
                if self.is_locked_by(claimer) {
                    // Told for an earlier claimer: this one does not wait for ever either.
                    if self.stage.is_up() && self.is_told(&address) {
                        self.arm(Timer::Partial, self.settings.kill_after, effects);
                    }
                    self.asked.insert(address);
                }
            }
            Event::AskedStop(claimer) => {
                if self.is_locked_by(claimer) && self.stage.is_up() {
                    self.leave(Why::Requested, false, effects);
                }
            }
            Event::Down(claimer, addresses) => {
                let named = Address::all(&addresses);
                let all = self.slots.keys().all(|own| own.among(&named).next().is_some());
                if self.stage == Stage::Starting && self.olds.is_empty() && !self.slots.is_empty() && all {
                    self.queue.retain(|(c, _)| *c != claimer);
                    self.lease.lend(Some(claimer));
                    self.leave(Why::Requested, false, effects);
                } else {
                    self.enqueue(claimer, Wish::Down(addresses));
                }
            }
            Event::ClaimerGone(claimer) => self.claimer_gone(claimer, effects),
            Event::Stop { signalled } => match &mut self.stage {
                Stage::Leaving(leaving) if leaving.stop_said => effects.push(Effect::Kill),
                // It was told to stop already, by a claimer.
                Stage::Leaving(leaving) => leaving.stop_said = true,
                Stage::Starting | Stage::Presumed | Stage::Up => self.leave(Why::Told, signalled, effects),
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
                Some(
                    Slot::Invited(..) | Slot::Joined(..) | Slot::Proven(..) | Slot::Going | Slot::Proving | Slot::Held,
                ) => effects.push(Effect::Say(speaker, SupervisorWord::Go(address))),
                Some(Slot::Asked { .. }) => refuse(format!("{address} is being taken down")),
                Some(Slot::Looking(_) | Slot::Waiting(..) | Slot::Releasing(..)) => {
                    self.slots.change(&address, |slot| match slot {
                        Slot::Looking(wanted) | Slot::Waiting(wanted, _) => *wanted = Wanted::Said(Ready::said()),
                        _ => {}
                    });
                    let asked = (speaker, address);
                    if self.unanswered.len() >= ADDRESSES_MAX {
                        refuse("too many addresses".into());
                    } else if !self.unanswered.contains(&asked) {
                        self.unanswered.push(asked);
                    }
                }
                None if self.slots.len() >= ADDRESSES_MAX => refuse("too many addresses".into()),
                None => {
                    (self.quiet, self.said_up) = (false, false);
                    self.disarm(Timer::Quiet, effects);
                    self.presume_no_more();
                    self.slots.set(address.clone(), Slot::Looking(Wanted::Said(Ready::said())));
                    self.unanswered.push((speaker, address.clone()));
                    effects.push(Effect::LookUp(address));
                }
            },
            ServerWord::Takedown(address) => {
                if self.takers.len() >= ADDRESSES_MAX {
                    refuse("too many addresses".into());
                } else {
                    self.takers.entry((address.clone(), speaker)).or_insert(false);
                    if self.is_told(&address) {
                        tell(&mut self.takers, |a| *a == address, effects);
                    }
                }
            }
            ServerWord::Released(address) => self.let_go(speaker, &address, effects),
            ServerWord::Up => {
                self.said_up = true;
                if self.stage == Stage::Presumed {
                    self.stage = Stage::Up;
                }
            }
            ServerWord::Fail(text) => {
                self.presume_no_more();
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
        if self.is_taken(address) {
            return;
        }
        let told = address.among(&self.slots).filter(|(_, slot)| matches!(slot, Slot::Asked { told: true }));
        let released: Vec<Address> = told.map(|(own, _)| own.clone()).collect();
        for own in released {
            self.release(&own, effects);
        }
    }

    fn release(&mut self, own: &Address, effects: &mut Vec<Effect>) {
        self.slots.remove(own);
        let slots = &self.slots;
        self.takers.retain(|(a, _), _| !a.collides(own) || a.among(slots).next().is_some());
        // Whoever has the lock has registered it, as a rule, and waits.
        if self.stage.is_up() || self.claimer().is_none() {
            effects.push(Effect::Unhold(own.clone()));
        }
    }

    fn listens(&mut self, address: Address, effects: &mut Vec<Effect>) {
        let mut known = false;
        for own in self.colliding(&address) {
            known = true;
            match self.slots.get(&own) {
                Some(Slot::Going) => self.prove(own, effects),
                Some(Slot::Looking(_) | Slot::Waiting(..) | Slot::Releasing(..)) => drop(self.listening.insert(own)),
                _ => {}
            }
        }
        let room = self.slots.len() < ADDRESSES_MAX;
        // Found listening without a word. It may share the port with an old server by an option of its own.
        if !known && room && self.stage.lasts() {
            self.presume_no_more();
            self.quiet = false;
            self.disarm(Timer::Quiet, effects);
            self.listening.insert(address.clone());
            self.slots.set(address.clone(), Slot::Looking(Wanted::Listens));
            effects.push(Effect::LookUp(address));
        }
    }

    fn taken(&mut self, address: Address, olds: Vec<OldId>, effects: &mut Vec<Effect>) {
        let Some(Slot::Looking(ready) | Slot::Releasing(ready, _)) = self.slots.get(&address) else {
            // The READY was taken back meanwhile, or was looked up twice.
            let unknown = olds.into_iter().filter(|id| !self.olds.contains_key(id));
            return effects.extend(unknown.map(Effect::Unlock));
        };
        let ready = ready.clone();
        let time = self.settings.ready_timeout.unwrap_or(READY_TIMEOUT);
        if !time.is_zero() && !self.clocks.contains_key(&Timer::Ready) {
            self.arm(Timer::Ready, time, effects);
        }
        for &old in &olds {
            self.olds.entry(old).or_insert_with(|| {
                effects.push(Effect::Lock(old));
                Old { contact: Contact::Silent, shares: false, unshared: None, demand: Demand::Nothing }
            });
        }
        self.slots.set(address, Slot::Waiting(ready, olds.into_iter().collect()));
    }

    fn locked(&mut self, id: OldId, holds: Vec<Address>, effects: &mut Vec<Effect>) {
        let Some(old) = self.olds.get_mut(&id) else { return effects.push(Effect::Unlock(id)) };
        let held = Address::all(&holds);
        self.slots.change_all(|own, slot| {
            // It has let go of the address since the look, or never got it.
            if let Slot::Waiting(ready, olds) = slot
                && olds.contains(&id)
                && own.among(&held).next().is_none()
            {
                *slot = Slot::Looking(ready.clone());
                effects.push(Effect::LookUp(own.clone()));
            }
        });
        old.contact = Contact::Locked(Lock::granted(holds));
    }

    /// An old server is gone, or only its supervisor is.
    fn old_ended(&mut self, id: OldId, gone: bool, effects: &mut Vec<Effect>) {
        let Some(old) = self.olds.remove(&id) else { return };
        if let Stage::Leaving(_) = self.stage {
            return;
        }
        let joined = |slot: &Slot| matches!(slot, Slot::Joined(..) | Slot::Proven(..)) && slot.wants(id);
        let lost = self.slots.iter().filter(|(_, slot)| !gone && joined(slot));
        let lost: Vec<Address> = lost.map(|(address, _)| address.clone()).collect();
        for address in lost {
            let why = "the old server is not ours to replace any more".to_owned();
            self.fail_address(address, status::NOT_UP, why, effects);
            if let Stage::Leaving(_) = self.stage {
                return;
            }
        }
        let mut wanted = false;
        let starting = self.stage == Stage::Starting;
        self.slots.change_all(|address, slot| {
            // It listens already, and is alone now.
            if let Slot::Joined(_, olds) | Slot::Proven(_, olds) = slot
                && olds.remove(&id)
                && olds.is_empty()
            {
                let proven = !starting || matches!(slot, Slot::Proven(..));
                *slot = if proven { Slot::Held } else { Slot::Proving };
                effects.push(Effect::Hold(address.clone()));
            }
            // It ended before it could say that it had let go: somebody else may have replaced it, or an
            // orphan is left.
            if let (Slot::Waiting(ready, _) | Slot::Invited(ready, _) | Slot::Releasing(ready, _), true) =
                (&*slot, slot.wants(id))
            {
                wanted = true;
                *slot = Slot::Looking(ready.clone());
                effects.push(Effect::LookUp(address.clone()));
            }
        });
        if !gone && !wanted && old.demand != Demand::Nothing {
            let text = "the supervisor of the old server is gone (the old server may live on)";
            effects.push(Effect::Report(Level::Warning, self.name(), text.into()));
        }
    }

    /// The old server stays, and so do its addresses.
    fn refused(&mut self, id: OldId, why: String, effects: &mut Vec<Effect>) {
        if !self.olds.contains_key(&id) || !self.stage.lasts() {
            return;
        }
        let wanted: Vec<Address> =
            self.slots.iter().filter(|(_, slot)| slot.wants(id)).map(|(a, _)| a.clone()).collect();
        if wanted.is_empty() {
            return effects.push(Effect::Report(Level::Warning, self.name(), why));
        }
        if self.stage == Stage::Starting {
            return self.fail(status::NOT_UP, wanted.first().cloned(), why, effects);
        }
        for address in wanted {
            self.fail_address(address, status::NOT_UP, why.clone(), effects);
        }
        self.olds.remove(&id);
        effects.push(Effect::Unlock(id));
    }

    /// Queues a claimer, once.
    fn enqueue(&mut self, claimer: ClaimerId, wish: Wish) {
        if !self.is_locked_by(claimer) && self.queue.iter().all(|(c, _)| *c != claimer) {
            self.queue.push_back((claimer, wish));
        }
    }

    fn claimer_gone(&mut self, claimer: ClaimerId, effects: &mut Vec<Effect>) {
        self.queue.retain(|(c, _)| *c != claimer);
        if !self.is_locked_by(claimer) {
            return;
        }
        self.lease.lend(None);
        self.asked.clear();
        if let Stage::Leaving(Leaving { given, .. }) = &self.stage
            && !given.is_empty()
        {
            let list = given.iter().map(Address::to_string).collect::<Vec<_>>().join(", ");
            let why = "the new server has ended, and the old one was already told to go";
            effects.push(Effect::Report(Level::Error, None, format!("nothing serves {list} ({why})")));
        }
        self.resume(effects);
    }

    /// Serves on: nobody wants anything of it any more.
    fn resume(&mut self, effects: &mut Vec<Effect>) {
        if self.stage.is_up() {
            self.drain_no_more(effects);
            self.disarm(Timer::Partial, effects);
            self.slots.change_all(|address, slot| {
                if *slot == (Slot::Asked { told: false }) {
                    *slot = Slot::Held;
                }
                if matches!(slot, Slot::Held | Slot::Asked { .. }) {
                    effects.push(Effect::Hold(address.clone()));
                }
            });
        }
    }

    fn drain_no_more(&mut self, effects: &mut Vec<Effect>) {
        if self.lease.stay() {
            self.disarm(Timer::Drain, effects);
            effects.push(Effect::StopDrain);
        }
    }

    fn timer(&mut self, timer: Timer, effects: &mut Vec<Effect>) {
        if self.clocks.get(&timer) != Some(&Clock::Runs) {
            return;
        }
        self.clocks.remove(&timer);
        match timer {
            Timer::Ready if self.stage == Stage::Starting => {
                let stuck = self.slots.iter().find(|(own, slot)| {
                    matches!(slot, Slot::Joined(..) | Slot::Proving) && self.hindrances.contains_key(own)
                });
                let why = stuck.map_or(String::new(), |(own, _)| format!(": {}", self.hindrances[own]));
                let address = stuck.map(|(own, _)| own.clone()).or(self.name());
                self.fail(status::NOT_UP, address, format!("the new server was not up in time{why}"), effects);
            }
            // One that is up waited for another, which perhaps waits for it; or it has the lock of another, and
            // does not bind what it wanted that for.
            Timer::Ready => {
                let why = |slot: &Slot| match slot {
                    Slot::Waiting(..) => Some("it was not free in time"),
                    Slot::Invited(..) => Some("the server did not listen on it in time"),
                    Slot::Joined(..) => Some("the server did not accept on it in time"),
                    _ => None,
                };
                let late: Vec<(Address, &str)> =
                    self.slots.iter().filter_map(|(address, slot)| Some((address.clone(), why(slot)?))).collect();
                for (address, why) in late {
                    self.fail_address(address, status::NOT_UP, why.into(), effects);
                }
            }
            // However short the drain is to be: what is on its way to the server is not lost.
            Timer::Drain => match self.lease {
                Lease::Draining(claimer, Drainage::Arriving) => {
                    self.lease = Lease::Draining(claimer, Drainage::Overdue);
                    self.arm(Timer::Drain, ARRIVALS, effects);
                }
                Lease::Draining(..) | Lease::Free | Lease::Lent(_) => {
                    effects.push(Effect::CutOff);
                    self.leave(Why::Requested, false, effects);
                }
            },
            Timer::Quiet => self.quiet = true,
            Timer::Kill => {
                effects.push(Effect::Report(
                    Level::Warning,
                    self.name(),
                    "the server did not stop in time (it is killed)".into(),
                ));
                effects.push(Effect::Kill);
            }
            // The drain has an end of its own.
            Timer::Partial if self.is_draining() => {}
            Timer::Partial => {
                let late = self.slots.iter().find(|(_, slot)| matches!(slot, Slot::Asked { told: true }));
                if let (Some((address, _)), Some(claimer)) = (late, self.claimer()) {
                    effects.push(Effect::Refuse(claimer, format!("{address} was not released in time")));
                }
            }
        }
    }

    fn exited(&mut self, own: u8, effects: &mut Vec<Effect>) {
        let stage = std::mem::replace(&mut self.stage, Stage::Ended);
        let status = match stage {
            Stage::Leaving(Leaving { why: Why::Requested, .. }) => status::DONE,
            Stage::Leaving(Leaving { why: Why::Failed(status), .. }) => status,
            Stage::Leaving(Leaving { why: Why::Told, .. })
            | Stage::Starting
            | Stage::Presumed
            | Stage::Up
            | Stage::Ended => own,
        };
        // Whoever waits for the swap must not take this for a success.
        let status =
            if status == status::DONE && self.settings.awaited && !self.done { status::NOT_UP } else { status };
        if stage == Stage::Starting {
            let untouched = self.harmed.is_empty() && !self.olds.is_empty();
            let consequence = if untouched { " (the old one still serves)" } else { "" };
            let text = format!("the new server ended with status {own} before it was up{consequence}");
            effects.push(Effect::Report(Level::Error, self.name(), text));
        }
        self.report_harmed(effects);
        // Before the locks: whoever goes on registers its addresses again.
        if !self.olds.is_empty() {
            effects.extend(self.slots.keys().cloned().map(Effect::Unhold));
        }
        effects.extend(self.olds.keys().copied().map(Effect::Unlock));
        if let Some(claimer) = self.claimer() {
            effects.extend(std::mem::take(&mut self.asked).into_iter().map(|a| Effect::TellReleased(claimer, a)));
        }
        for claimer in self.claimer().into_iter().chain(self.queue.iter().map(|(c, _)| *c)) {
            effects.push(Effect::TellGone(claimer));
        }
        self.disarm_all(effects);
        effects.push(Effect::End(status));
    }

    /// What nothing serves any more because the swap did not get to its end.
    fn report_harmed(&self, effects: &mut Vec<Effect>) {
        // An old server that has other addresses and does not take TAKEDOWN was not told yet.
        let untold: BTreeSet<OldId> = self.uncovered().map(|(id, _)| id).collect();
        let (doubtful, sure): (Vec<&Address>, Vec<&Address>) =
            self.harmed.iter().partition(|address| match self.slots.get(address) {
                // Or it goes on where the switch is turned back.
                Some(Slot::Releasing(_, pending)) => pending.iter().any(|id| {
                    untold.contains(id) || self.is_switched() && self.olds.get(id).is_some_and(|old| old.shares)
                }),
                Some(Slot::Looking(_) | Slot::Waiting(..)) => true,
                Some(
                    Slot::Invited(..)
                    | Slot::Joined(..)
                    | Slot::Proven(..)
                    | Slot::Going
                    | Slot::Proving
                    | Slot::Held
                    | Slot::Asked { .. },
                )
                | None => false,
            });
        let list =
            |addresses: Vec<&Address>| addresses.into_iter().map(Address::to_string).collect::<Vec<_>>().join(", ");
        if !sure.is_empty() {
            effects.push(Effect::Report(Level::Error, None, format!("nothing serves {}", list(sure))));
        }
        if !doubtful.is_empty() {
            let text = format!("it may be that nothing serves {}", list(doubtful));
            effects.push(Effect::Report(Level::Error, None, format!("{text} (the old server was asked to let go)")));
        }
    }

    /// Everything that follows from what is known, in the order in which it must happen.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        if self.stage.lasts() {
            if !self.slots.any([Kind::Looking]) {
                self.unlock_idle(effects);
            }
            self.acquire(effects);
            self.switch(effects);
            self.stop_olds(effects);
            self.become_up(effects);
            self.give(effects);
        }
        self.report_released(effects);
        if self.stage.lasts() {
            self.set_clocks(effects);
        }
        // The signal would cut short what TAKEDOWN began.
        let takes = |(own, slot): (&Address, &Slot)| matches!(slot, Slot::Asked { .. }) && self.is_taken(own);
        let takes = self.slots.iter().any(takes);
        if let Stage::Leaving(Leaving { signal_due, .. }) = &mut self.stage
            && !takes
            && std::mem::take(signal_due)
        {
            effects.push(Effect::Signal);
        }
    }

    /// Switches every address whose server is ready and whose old servers are all locked, and says
    /// GO for every one that was released.
    fn acquire(&mut self, effects: &mut Vec<Effect>) {
        if !self.slots.any([Kind::Waiting, Kind::Releasing]) {
            return;
        }
        let may = |slot: &Slot| match slot {
            Slot::Waiting(_, olds) => olds.iter().all(|id| self.olds[id].lock().is_some()),
            Slot::Releasing(_, pending) => pending.is_empty(),
            Slot::Looking(_)
            | Slot::Invited(..)
            | Slot::Joined(..)
            | Slot::Proven(..)
            | Slot::Going
            | Slot::Proving
            | Slot::Held
            | Slot::Asked { .. } => false,
        };
        let addresses: Vec<Address> =
            self.slots.iter().filter(|(_, slot)| may(slot)).map(|(own, _)| own.clone()).collect();
        for address in addresses {
            if let Some(Slot::Waiting(ready, olds)) = self.slots.get(&address)
                && self.settings.order == Order::Shared
                && address.is_port()
                && !olds.is_empty()
                && olds.iter().all(|id| self.olds[id].lock().is_some() && self.olds[id].shares)
            {
                let (ready, olds) = (ready.clone(), olds.clone());
                self.say_go(&address, effects);
                let joins = self.admit(&address, Effect::Join, effects);
                let slot = if joins { Slot::Joined(ready, olds) } else { Slot::Invited(ready, olds) };
                self.slots.set(address.clone(), slot);
            }
            if let Some(Slot::Waiting(ready, olds)) = self.slots.get(&address) {
                // Where it listens beside one of them already, it has to prove itself first.
                let unproven = |slot: &Slot| matches!(slot, Slot::Joined(_, beside) if !beside.is_disjoint(olds));
                if self.slots.any([Kind::Joined]) && self.slots.values().any(unproven) {
                    continue;
                }
                let why = olds.iter().find_map(|id| self.olds[id].unshared.clone());
                let Wanted::Said(said) = ready else {
                    let why = why.unwrap_or_else(|| "the new server cannot be watched".into());
                    self.refuse_silent(&address, &why, effects);
                    continue;
                };
                let Some(warrant) = Warrant::new(said, olds.iter().map(|id| self.olds[id].lock())) else {
                    continue;
                };
                let (ready, olds) = (ready.clone(), olds.clone());
                if let Some(why) = why {
                    let text = format!("the port cannot be shared: {why} (this swap runs in plain order)");
                    effects.push(Effect::Report(Level::Warning, Some(address.clone()), text));
                }
                self.harmed.insert(address.clone());
                effects.push(Effect::Take(warrant, address.clone()));
                for &id in &olds {
                    let old = self.olds.get_mut(&id).expect("a slot waits for olds that exist");
                    if !old.is_stopped() {
                        old.demand = Demand::Addresses(warrant);
                    }
                    effects.push(Effect::AskTakedown(warrant, id, address.clone()));
                }
                self.slots.set(address.clone(), Slot::Releasing(ready, olds));
            }
            if matches!(self.slots.get(&address), Some(Slot::Releasing(_, pending)) if pending.is_empty()) {
                self.go(&address, effects);
            }
        }
    }

    /// The switch of the shared ports, all in one moment: when every address that the old servers have
    /// is proven, or the new server wants no more than it has.
    fn switch(&mut self, effects: &mut Vec<Effect>) {
        let joined = self.slots.any([Kind::Joined]);
        let content = self.said_up || self.quiet;
        if joined && content && !self.settled {
            self.settled = true;
            effects.push(Effect::Settle);
        }
        let wants = self.slots.any([Kind::Looking, Kind::Waiting, Kind::Invited]);
        if joined || wants || self.slots.any([Kind::Proving]) || !self.slots.any([Kind::Proven]) {
            return;
        }
        let (mut proof, mut locks) = (None, Vec::new());
        for slot in self.slots.values() {
            if let Slot::Proven(own, olds) = slot {
                proof = Some(own);
                locks.extend(olds.iter().map(|id| self.olds[id].lock()));
            }
        }
        let Some(warrant) = proof.and_then(|proof| Warrant::proven(proof, locks)) else { return };
        // A name was asked for already.
        let covers = |slot: &Slot| matches!(slot, Slot::Proven(..)) || !slot.is_wish();
        let covered = |held: &Address| held.among(&self.slots).any(|(_, slot)| covers(slot));
        let mut abandoned = Vec::new();
        for old in self.olds.values().filter(|old| old.shares && !old.is_stopped()) {
            let holds = old.lock().into_iter().flat_map(Lock::holds);
            abandoned.extend(holds.filter(|held| !covered(held)).cloned());
        }
        if !(abandoned.is_empty() || content) {
            return;
        }
        self.commit(Reach::Switched, effects);
        effects.push(Effect::Switch(warrant));
        self.slots.change_all(|address, slot| {
            if let Slot::Proven(..) = slot {
                *slot = Slot::Held;
                effects.push(Effect::Take(warrant, address.clone()));
            }
        });
        for address in abandoned {
            let text = "the new server does not take this address over (it is abandoned)";
            effects.push(Effect::Report(Level::Warning, Some(address), text.into()));
        }
        for (&id, old) in
            self.olds.iter_mut().filter(|(_, old)| old.shares && old.lock().is_some() && !old.is_stopped())
        {
            old.demand = Demand::Everything;
            effects.push(Effect::AskDrain(warrant, id));
        }
    }

    /// A server that has said nothing replaces nobody in plain order: it gets EADDRINUSE, as it would by itself, and
    /// where it listens already it shares the port by an option of its own.
    fn refuse_silent(&mut self, address: &Address, why: &str, effects: &mut Vec<Effect>) {
        let listens = self.listening.remove(address);
        let why = format!("the port cannot be shared, and the new server did not say READY: {why}");
        if listens && self.stage == Stage::Starting {
            return self.fail(status::NOT_UP, Some(address.clone()), why, effects);
        }
        let consequence = if listens { "both serve" } else { "the new one gets EADDRINUSE; the old one still serves" };
        effects.push(Effect::Report(Level::Error, Some(address.clone()), format!("{why} ({consequence})")));
        self.admit(address, Effect::Deny, effects);
        self.slots.remove(address);
        if !self.slots.any([Kind::Looking]) {
            self.unlock_idle(effects);
        }
    }

    /// The server listens and nobody else has the address: all that is left is to prove it, until it was up once.
    fn prove(&mut self, address: Address, effects: &mut Vec<Effect>) {
        let slot = if self.stage == Stage::Starting { Slot::Proving } else { Slot::Held };
        self.slots.set(address.clone(), slot);
        effects.push(Effect::Join(address));
    }

    /// The server has closed all that it had at the address. Before it is up that was none of its addresses.
    fn closed(&mut self, own: &Address, effects: &mut Vec<Effect>) {
        let closed = match self.slots.get(own) {
            // It has only tried whether it can have it.
            Some(Slot::Joined(..) | Slot::Proven(..)) => true,
            Some(Slot::Proving | Slot::Held) => self.stage == Stage::Starting,
            _ => false,
        };
        if self.stage.lasts() && closed {
            self.slots.remove(own);
            self.hindrances.remove(own);
            self.closed |= self.stage == Stage::Starting;
            effects.push(Effect::Unhold(own.clone()));
        }
    }

    /// The server waits in `listen`: before it is up, and where it meets an older server, it wants the address. What it
    /// opens later may be closed again soon.
    fn calls(&mut self, address: Address, meets: Meets, effects: &mut Vec<Effect>) {
        if let Stage::Leaving(Leaving { gave_back, .. }) = self.stage {
            let may = |slot: &Slot| matches!(slot, Slot::Going | Slot::Proving | Slot::Held | Slot::Asked { .. });
            let has = !gave_back && self.own(&address).is_some_and(|own| may(&self.slots[&own]));
            // Beside an old server, with nobody to steer, it would get connections that end with it.
            return effects.push(if has { Effect::Admit(address) } else { Effect::Deny(address) });
        }
        (self.quiet, self.settled) = (false, false);
        self.disarm(Timer::Quiet, effects);
        let full = self.slots.len() >= ADDRESSES_MAX;
        let own = self.own(&address);
        match own.as_ref().map(|own| (own, &self.slots[own])) {
            None if full => effects.push(Effect::Pass(address)),
            None if self.stage == Stage::Up && meets == Meets::Nobody => {
                effects.push(Effect::Pass(address));
            }
            None => {
                self.presume_no_more();
                self.slots.set(address.clone(), Slot::Looking(Wanted::Listens));
                self.called.insert(address.clone());
                effects.push(Effect::LookUp(address));
            }
            Some((_, Slot::Looking(_) | Slot::Waiting(..) | Slot::Releasing(..))) => drop(self.called.insert(address)),
            Some((own, Slot::Invited(..) | Slot::Joined(..) | Slot::Proven(..))) => {
                self.slots.change(own, |slot| match slot {
                    Slot::Invited(ready, olds) => *slot = Slot::Joined(ready.clone(), std::mem::take(olds)),
                    Slot::Proven(proof, olds) => *slot = Slot::Joined(proof.undone(), std::mem::take(olds)),
                    _ => {}
                });
                effects.push(Effect::Join(address));
            }
            Some((_, Slot::Held)) if self.is_switched() && !self.olds.is_empty() => effects.push(Effect::Join(address)),
            Some((own, Slot::Going | Slot::Proving | Slot::Held)) if self.stage == Stage::Starting => {
                self.slots.set(own.clone(), Slot::Proving);
                effects.push(Effect::Join(address));
            }
            Some((own, Slot::Going)) => {
                self.slots.set(own.clone(), Slot::Held);
                effects.push(Effect::Join(address));
            }
            Some((_, Slot::Proving | Slot::Held | Slot::Asked { .. })) => effects.push(Effect::Admit(address)),
        }
    }

    /// Lets the server out of the `listen` calls that belong to an address; `false` if it is in none.
    fn admit(&mut self, own: &Address, how: fn(Address) -> Effect, effects: &mut Vec<Effect>) -> bool {
        let slots = &self.slots;
        let called: Vec<Address> =
            self.called.extract_if(.., |a| a == own || a.collides(own) && !slots.contains_key(a)).collect();
        let any = !called.is_empty();
        effects.extend(called.into_iter().map(how));
        any
    }

    /// Closing the listeners loses nothing now: a server that takes TAKEDOWN for all it has drains itself.
    /// One that would close only some could not go on with all if the switch is turned back.
    fn quiesced(&mut self, effects: &mut Vec<Effect>) {
        let Lease::Draining(claimer, how) = self.lease else { return };
        if !self.stage.is_up() {
            return;
        }
        self.lease = Lease::Draining(claimer, Drainage::Quiesced);
        if how == Drainage::Overdue {
            effects.push(Effect::CutOff);
            self.leave(Why::Requested, false, effects);
        } else if !self.takers.is_empty() && self.slots.keys().all(|own| self.is_taken(own)) {
            self.leave(Why::Requested, false, effects);
            // It has the time for its drain too.
            self.arm(Timer::Kill, self.settings.drain + self.settings.kill_after, effects);
        }
    }

    /// Stops the old servers that were asked for all they have, and those with addresses that the new
    /// one does not want, once it is plain that it does not.
    fn stop_olds(&mut self, effects: &mut Vec<Effect>) {
        if !self.olds.values().any(|old| matches!(old.demand, Demand::Addresses(_))) {
            return;
        }
        let content = (self.said_up || self.quiet) && !self.wants_more();
        let mut uncovered: BTreeMap<OldId, Vec<Address>> = self.uncovered().collect();
        for (&id, old) in &mut self.olds {
            let Demand::Addresses(warrant) = old.demand else { continue };
            let abandoned = uncovered.remove(&id).unwrap_or_default();
            if !(abandoned.is_empty() || content) {
                continue;
            }
            old.demand = Demand::Everything;
            for address in abandoned {
                self.harmed.insert(address.clone());
                effects.push(Effect::Report(
                    Level::Warning,
                    Some(address),
                    "the new server does not take this address over (it is abandoned)".into(),
                ));
            }
            effects.push(Effect::AskStop(warrant, id));
        }
    }

    fn become_up(&mut self, effects: &mut Vec<Effect>) {
        let acquiring = self.acquires() || self.slots.any([Kind::Going, Kind::Proving]);
        if self.stage == Stage::Starting {
            let worker =
                self.slots.is_empty() && !self.closed && (self.said_up || (self.quiet && !self.settings.awaited));
            let serves = self.slots.any([Kind::Held]);
            if acquiring || !(worker || serves) || self.uncovered().next().is_some() {
                return;
            }
            self.stage = if self.slots.is_empty() && !self.said_up { Stage::Presumed } else { Stage::Up };
            self.commit(Reach::Committed, effects);
            effects.push(Effect::Up);
        }
        if self.stage.is_up() && self.olds.is_empty() && !acquiring {
            self.harmed.clear();
        }
        if self.stage.is_up() && !self.done && self.olds.is_empty() {
            self.done = true;
            effects.push(Effect::Done);
        }
    }

    /// A server that only seemed to be a worker is not up: it was slow.
    fn presume_no_more(&mut self) {
        if self.stage == Stage::Presumed {
            (self.stage, self.done) =
                if self.claimer().is_none() { (Stage::Starting, false) } else { (Stage::Up, self.done) };
        }
    }

    /// The old side: grants the lock, and does what its holder asked for.
    fn give(&mut self, effects: &mut Vec<Effect>) {
        while self.is_free() && !self.acquires() {
            match self.queue.pop_front() {
                None => break,
                Some((claimer, Wish::Replace)) => {
                    self.lease.lend(Some(claimer));
                    effects.push(Effect::Grant(claimer, self.addresses()));
                }
                Some((claimer, Wish::Down(addresses))) => self.down(claimer, addresses, effects),
            }
        }
        if !self.stage.is_up() || self.claimer().is_none() {
            return;
        }
        let held = |asked: &Address| -> Vec<Address> {
            asked.among(&self.slots).filter(|(_, slot)| **slot == Slot::Held).map(|(own, _)| own.clone()).collect()
        };
        for own in self.asked.iter().flat_map(held).collect::<Vec<_>>() {
            self.slots.set(own, Slot::Asked { told: false });
        }
        let asked = self.slots.any([Kind::Asked]);
        if asked && !self.slots.any([Kind::Releasing, Kind::Going, Kind::Held]) {
            self.leave(Why::Requested, false, effects);
        } else if asked {
            let untold = self.slots.iter().filter(|(_, slot)| **slot == (Slot::Asked { told: false }));
            let taken: Vec<Address> = untold.map(|(own, _)| own.clone()).filter(|own| self.is_taken(own)).collect();
            for own in &taken {
                self.slots.set(own.clone(), Slot::Asked { told: true });
                tell(&mut self.takers, |a| a.collides(own), effects);
                watch_release(own, effects);
            }
            if !taken.is_empty() {
                self.arm(Timer::Partial, self.settings.kill_after, effects);
            }
        }
    }

    fn down(&mut self, claimer: ClaimerId, wanted: Vec<Address>, effects: &mut Vec<Effect>) {
        let all = Address::all(&wanted);
        let (named, others): (Vec<Address>, Vec<Address>) =
            self.active().cloned().partition(|own| own.among(&all).next().is_some());
        if named.is_empty() {
            effects.push(Effect::Refuse(claimer, "the server has let go of it".into()));
        } else if others.is_empty() {
            self.lease.lend(Some(claimer));
            self.leave(Why::Requested, false, effects);
        } else if named.iter().all(|own| self.is_taken(own)) {
            self.lease.lend(Some(claimer));
            self.asked.extend(wanted);
        } else {
            let others: Vec<String> = others.iter().map(Address::to_string).collect();
            let why = format!("the same server also has {} and does not take TAKEDOWN", others.join(", "));
            effects.push(Effect::Refuse(claimer, why));
        }
    }

    fn report_released(&mut self, effects: &mut Vec<Effect>) {
        let Some(claimer) = self.claimer() else { return };
        let slots = &self.slots;
        self.asked.retain(|asked| {
            let held = asked.among(slots).any(|(_, slot)| !slot.is_wish());
            if !held {
                effects.push(Effect::TellReleased(claimer, asked.clone()));
            }
            held
        });
    }

    /// The ready clock stands still while the server waits for an old one and nobody for it; the
    /// quiet clock runs while nothing else can happen.
    fn set_clocks(&mut self, effects: &mut Vec<Effect>) {
        let waits = self.slots.any([Kind::Waiting, Kind::Releasing]);
        let invited = self.slots.any([Kind::Invited]);
        let joined = self.slots.any([Kind::Joined]);
        if self.stage.is_up() && !waits && !invited && !joined {
            self.disarm(Timer::Ready, effects);
        }
        if let Some(&clock) = self.clocks.get(&Timer::Ready) {
            let goes = [Kind::Going, Kind::Proving, Kind::Looking, Kind::Invited, Kind::Joined, Kind::Proven];
            let goes = self.slots.any(goes);
            let attended = self.olds.values().all(|old| old.contact != Contact::Silent);
            // Who waits and is waited for lets its clock run: that bounds a deadlock.
            let blocks = self.olds.values().any(|old| old.lock().is_none())
                && (self.olds.values().any(|old| old.lock().is_some()) || !self.queue.is_empty());
            let to = if waits && !goes && attended && !blocks { Clock::Paused } else { Clock::Runs };
            if to != clock {
                self.clocks.insert(Timer::Ready, to);
                effects.push(match to {
                    Clock::Paused => Effect::Pause(Timer::Ready),
                    Clock::Runs => Effect::Resume(Timer::Ready),
                });
            }
        }
        // A first server may take its time, but not if somebody waits who could serve in its place.
        let blocks = self.stage == Stage::Starting && self.slots.any([Kind::Proving]) && !self.queue.is_empty();
        if blocks && self.settings.ready_timeout.is_none() && !self.clocks.contains_key(&Timer::Ready) {
            self.arm(Timer::Ready, READY_TIMEOUT, effects);
        }
        let worker = self.stage == Stage::Starting && self.slots.is_empty() && !self.closed && !self.settings.awaited;
        // One that has all locks is held back only until the others are proven.
        let unlocked = |slot: &Slot| matches!(slot, Slot::Waiting(_, olds) if olds.iter().any(|id| self.olds[id].lock().is_none()));
        let joined = self.slots.any([Kind::Joined, Kind::Proven])
            && !self.slots.any([Kind::Looking])
            && !(self.slots.any([Kind::Waiting]) && self.slots.values().any(unlocked));
        let waits = joined || !self.wants_more() && self.uncovered().next().is_some();
        if !(worker || waits) {
            self.disarm(Timer::Quiet, effects);
        } else if !self.quiet && !self.clocks.contains_key(&Timer::Quiet) {
            self.arm(Timer::Quiet, QUIET, effects);
        }
    }

    fn go(&mut self, address: &Address, effects: &mut Vec<Effect>) {
        self.commit(Reach::Committed, effects);
        self.say_go(address, effects);
        let calls = self.admit(address, Effect::Join, effects);
        match address {
            Address::Tcp(..) if self.listening.remove(address) => self.prove(address.clone(), effects),
            Address::Tcp(..) if calls => {
                let slot = if self.stage == Stage::Starting { Slot::Proving } else { Slot::Held };
                self.slots.set(address.clone(), slot);
            }
            Address::Tcp(..) => {
                effects.push(Effect::Watch(address.clone()));
                self.slots.set(address.clone(), Slot::Going);
            }
            // Nothing in the kernel tells of a name: GO is all there is to it.
            Address::Name(_) => self.slots.set(address.clone(), Slot::Held),
        }
    }

    fn say_go(&mut self, address: &Address, effects: &mut Vec<Effect>) {
        let (now, rest): (Vec<_>, Vec<_>) = self.unanswered.drain(..).partition(|(_, a)| a == address);
        self.unanswered = rest;
        for (speaker, _) in now {
            effects.push(Effect::Say(speaker, SupervisorWord::Go(address.clone())));
        }
    }

    fn commit(&mut self, reach: Reach, effects: &mut Vec<Effect>) {
        if self.reach == Reach::Prepared {
            effects.push(Effect::Commit);
        }
        self.reach = self.reach.max(reach);
    }

    fn is_switched(&self) -> bool {
        self.reach == Reach::Switched
    }

    /// Tells the server to stop, by TAKEDOWN where it took it, else by signal.
    fn leave(&mut self, why: Why, signalled: bool, effects: &mut Vec<Effect>) {
        let drained = self.lease.stay();
        if drained {
            effects.push(Effect::StopDrain);
        }
        let gave_back = self.give_up(effects);
        let starting = self.stage == Stage::Starting;
        self.disarm_all(effects);
        self.arm(Timer::Kill, self.settings.kill_after, effects);
        self.slots.change_all(|own, slot| {
            if matches!(slot, Slot::Proving | Slot::Held | Slot::Asked { .. }) {
                *slot = Slot::Asked { told: true };
                watch_release(own, effects);
            }
        });
        // From here on nobody can go back to it. A name is free when the server says so, or ends.
        let mut given = Vec::new();
        if let (true, Some(claimer)) = (drained, self.claimer()) {
            given = self.addresses().into_iter().filter(Address::is_port).collect();
            effects.extend(given.iter().cloned().map(|own| Effect::TellReleased(claimer, own)));
        }
        tell(&mut self.takers, |_| true, effects);
        let untaken = self.slots.is_empty() || self.slots.keys().any(|own| !self.is_taken(own));
        let signal_due = !signalled && (starting || untaken);
        self.stage = Stage::Leaving(Leaving { why, stop_said: why == Why::Told, signal_due, gave_back, given });
    }

    /// The new server does not make it: it is killed, and whoever was not asked to go stays.
    fn fail(&mut self, status: u8, address: Option<Address>, why: String, effects: &mut Vec<Effect>) {
        let consequence = if self.is_told_for_good() {
            "it is killed; the old one was already told to go"
        } else if self.olds.is_empty() {
            "it is killed"
        } else {
            "it is killed; the old one still serves"
        };
        effects.push(Effect::Report(Level::Error, address, format!("{why} ({consequence})")));
        let gave_back = self.give_up(effects);
        self.disarm_all(effects);
        let why = Why::Failed(status);
        self.stage = Stage::Leaving(Leaving { why, stop_said: false, signal_due: false, gave_back, given: Vec::new() });
        effects.push(Effect::Kill);
    }

    /// One address cannot be had. A server that is up already lives on without it.
    fn fail_address(&mut self, address: Address, status: u8, why: String, effects: &mut Vec<Effect>) {
        if self.stage == Stage::Starting {
            return self.fail(status, Some(address), why, effects);
        }
        self.refuse_ready(&address, &why, effects);
        self.admit(&address, Effect::Deny, effects);
        self.slots.remove(&address);
        self.harmed.remove(&address);
        effects.push(Effect::Unhold(address.clone()));
        effects.push(Effect::Report(Level::Error, Some(address), format!("{why} (the server goes on without it)")));
    }

    /// Answers the READY that wait for an address which cannot be had.
    fn refuse_ready(&mut self, address: &Address, why: &str, effects: &mut Vec<Effect>) {
        let (refused, rest): (Vec<_>, Vec<_>) = self.unanswered.drain(..).partition(|(_, a)| a == address);
        self.unanswered = rest;
        for (speaker, _) in refused {
            effects.push(Effect::Say(speaker, SupervisorWord::Error(format!("{address}: {why}"))));
        }
    }

    /// Wants nothing of the old servers any more; tells whether the switch was turned back.
    fn give_up(&mut self, effects: &mut Vec<Effect>) -> bool {
        effects.extend(std::mem::take(&mut self.called).into_iter().map(Effect::Deny));
        // Until the takedown the switch can be turned back: what comes while this server ends is not its.
        let drained = self.olds.iter().filter(|(_, old)| old.shares && old.is_stopped());
        let drained: Vec<OldId> = drained.map(|(id, _)| *id).collect();
        let gives_back = self.is_switched() && !self.is_told_for_good() && !drained.is_empty();
        if gives_back {
            effects.push(Effect::SwitchBack);
            // Before the word: whoever stays registers its addresses again.
            effects.extend(self.slots.keys().cloned().map(Effect::Unhold));
            effects.extend(drained.into_iter().map(Effect::AskStay));
        }
        let listens = self.slots.any([Kind::Joined, Kind::Proven]);
        self.withdraw(|_| true, effects);
        // On a shared port it listens until it is gone, and the locks come back then.
        if !listens {
            self.unlock_idle(effects);
        }
        gives_back
    }

    /// Whether an old server was told to go: one that shares its port lives on without a name.
    fn is_told_for_good(&self) -> bool {
        let shares = self.olds.values().any(|old| old.shares);
        self.harmed.iter().any(|address| address.is_port() || !shares)
    }

    /// Takes back READY for addresses that nobody was asked for yet.
    fn withdraw(&mut self, of: impl Fn(&Address) -> bool, effects: &mut Vec<Effect>) {
        self.slots.retain(|own, slot| {
            let gone = slot.is_wish() && of(own);
            if gone {
                effects.push(Effect::Unhold(own.clone()));
            }
            !gone
        });
    }

    /// Gives back the locks of the old servers from which nothing is wanted and nothing was taken.
    fn unlock_idle(&mut self, effects: &mut Vec<Effect>) {
        let slots = &self.slots;
        self.olds.retain(|&id, old| {
            let keep = old.demand != Demand::Nothing || slots.values().any(|slot| slot.wants(id));
            if !keep {
                effects.push(Effect::Unlock(id));
            }
            keep
        });
    }

    fn arm(&mut self, timer: Timer, time: Duration, effects: &mut Vec<Effect>) {
        self.clocks.insert(timer, Clock::Runs);
        effects.push(Effect::Arm(timer, time));
    }

    fn disarm(&mut self, timer: Timer, effects: &mut Vec<Effect>) {
        if self.clocks.remove(&timer).is_some() {
            effects.push(Effect::Disarm(timer));
        }
    }

    fn disarm_all(&mut self, effects: &mut Vec<Effect>) {
        effects.extend(std::mem::take(&mut self.clocks).into_keys().map(Effect::Disarm));
    }

    /// Whether the server was told to take it down and has not done so.
    fn is_told(&self, address: &Address) -> bool {
        address.among(&self.slots).any(|(_, slot)| *slot == (Slot::Asked { told: true }))
    }

    fn is_taken(&self, own: &Address) -> bool {
        let (first, last) = (SpeakerId(0), SpeakerId(u64::MAX));
        let mut near = own.neighbours().flat_map(|(from, to)| self.takers.range((from, first)..=(to, last)));
        near.any(|((address, _), _)| address.collides(own))
    }

    /// READY was said and not yet followed by what the server itself has to do, or a lookup runs.
    fn wants_more(&self) -> bool {
        self.slots.any([Kind::Looking, Kind::Waiting, Kind::Invited, Kind::Joined, Kind::Going])
    }

    /// Whether it is about to get an address. A bind that the server owes does not count: it may never come.
    fn acquires(&self) -> bool {
        use Kind::*;
        self.slots.any([Looking, Waiting, Invited, Joined, Proven, Releasing])
    }

    /// What we call an address that the server names: itself, or what it collides with.
    fn own(&self, address: &Address) -> Option<Address> {
        address.among(&self.slots).next().map(|(own, _)| own.clone())
    }

    /// All that we have of what the server names.
    fn colliding(&self, address: &Address) -> Vec<Address> {
        address.among(&self.slots).map(|(own, _)| own.clone()).collect()
    }

    fn active(&self) -> impl Iterator<Item = &Address> {
        self.slots.iter().filter(|(_, slot)| !slot.is_wish()).map(|(a, _)| a)
    }

    /// Locked old servers that were not asked for all they have, and are not told to stop.
    fn uncovered(&self) -> impl Iterator<Item = (OldId, Vec<Address>)> + '_ {
        self.olds.iter().filter(|(_, old)| !old.is_stopped()).filter_map(|(id, old)| {
            let holds = old.lock()?.holds();
            let active = |held: &Address| held.among(&self.slots).any(|(_, slot)| !slot.is_wish());
            let left: Vec<Address> = holds.iter().filter(|held| !active(held)).cloned().collect();
            (!left.is_empty()).then_some((*id, left))
        })
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
