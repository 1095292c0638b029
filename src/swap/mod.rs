//! The state machine of one generation of a server: how it takes addresses over from an older one,
//! serves, and gives them away to a newer one.
//!
//! Pure: [`Generation::step`] turns an event into effects. It knows no file, clock, process or log.
//! The same machine stands on both sides of a swap. Two supervisors hand the effects of one to the other as events,
//! through the peer protocol.
//!
//! A swap has four steps: the new server prepares, new connections are switched to it, the old one drains,
//! and is taken down. In plain order the switch and the drain are instant, and the new server is told to bind
//! only after the takedown has released the address.

#![forbid(unsafe_code)]

mod claim;
mod drain;
mod hears;
mod lease;
mod ours;
mod said;
mod slots;
mod steps;
mod tenure;
#[cfg(test)]
mod tests;
mod trial;
mod warrant;
mod words;

pub use steps::{Share, Step};
pub use words::{
    ADDRESSES_MAX, Checked, ClaimerId, Effect, Event, Level, Meets, OldId, Order, Orphan, Parting, QUIET, Settings,
    SpeakerId, Timer,
};

use crate::address::Address;
use crate::error::status;
use claim::{Cause, Claim, Old, Reach, Reported};
use lease::Lease;
use ours::{Leaving, Ours, Stage, Why};
use slots::{Kind, Slot, Slots};
use std::collections::BTreeMap;
use tenure::{Next, Older, Tenure, Wish};

/// One generation of a server. See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Generation {
    /// What both sides know of the server.
    ours: Ours,
    /// The new side.
    claim: Claim,
    /// The old side.
    tenure: Tenure,
}

impl Generation {
    /// A generation that is about to start, and the effects of that.
    pub fn new(settings: Settings) -> (Generation, Vec<Effect>) {
        let mut new = Generation::with(settings, Stage::Starting);
        let time = new.ours.settings.ready_time();
        time.into_iter().for_each(|time| new.ours.arm(Timer::Ready, time));
        new.settle();
        let effects = std::mem::take(&mut new.ours.effects);
        (new, effects)
    }

    /// A server that is up already, has these addresses and had another supervisor, and the effects of what was found.
    pub fn adopted(
        settings: Settings,
        addresses: impl IntoIterator<Item = Address>,
        found: Orphan,
    ) -> (Generation, Vec<Effect>) {
        let mut adopted = Generation::with(settings, Stage::Up);
        let Generation { ours, tenure, .. } = &mut adopted;
        addresses.into_iter().for_each(|own| ours.slots.set(own, Slot::Held));
        match found {
            Orphan::Alone => {}
            Orphan::Follows => tenure.older = Older::Drain,
            Orphan::Superseded => tenure.superseded(ours),
            Orphan::Told => {
                let (why, given) = (Why::Requested, Vec::new());
                ours.stage =
                    Stage::Leaving(Leaving { why, stop_said: false, signal_due: false, gave_back: false, given });
                ours.arm(Timer::Kill, ours.settings.drain + ours.settings.kill_after);
            }
        }
        let effects = std::mem::take(&mut ours.effects);
        (adopted, effects)
    }

    fn with(settings: Settings, stage: Stage) -> Generation {
        let reach = if stage == Stage::Starting { Reach::Prepared } else { Reach::Committed };
        let ours = Ours { settings, stage, slots: Slots::default(), clocks: BTreeMap::new(), effects: Vec::new() };
        Generation { ours, claim: Claim::new(reach), tenure: Tenure::default() }
    }

    /// Whether the server is up and nobody has its lock. Older servers may drain behind it.
    pub fn is_free(&self) -> bool {
        self.is_up() && self.claim.has_replaced_all() && self.tenure.lease == Lease::Free
    }

    /// Whether the server drains or was told to stop.
    pub fn is_giving_way(&self) -> bool {
        self.tenure.lease.is_draining() || self.is_leaving()
    }

    /// Whether the server is not up yet. One that was only presumed up can go back to this.
    pub fn is_starting(&self) -> bool {
        self.ours.is_starting()
    }

    /// Whether the swap can be called off without a loss: no old server was asked to go.
    pub fn may_be_cancelled(&self) -> bool {
        self.is_on_trial() || self.is_starting() && self.claim.harmed.is_empty() && !self.claim.is_switched()
    }

    /// Whether the server was up and not yet told to stop.
    pub fn is_up(&self) -> bool {
        self.ours.is_up()
    }

    /// Whether the holder of the lock waits to bind what collides with this address.
    pub fn is_asked_for(&self, address: &Address) -> bool {
        self.tenure.is_asked_for(address)
    }

    /// What follows from an event.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        let claimer = if let Event::Claim(claimer) = event { Some(claimer) } else { None };
        let asked = self.verdict(&event);
        if self.ours.stage != Stage::Ended {
            self.take_in(event);
        }
        if self.ours.stage != Stage::Ended {
            self.settle();
        }
        if let Some(claimer) = claimer.filter(|claimer| self.ours.stage != Stage::Ended && self.tenure.waits(*claimer))
        {
            let why = self.waits_for().to_owned();
            self.ours.effects.push(Effect::TellWaits(claimer, why));
        }
        self.tell_deciders(asked);
        std::mem::take(&mut self.ours.effects)
    }

    /// Notes what happened. What follows from the whole of it is for [`Generation::settle`].
    fn take_in(&mut self, event: Event) {
        let Generation { ours, claim, tenure } = self;
        let (up, lease) = (ours.is_up(), tenure.lease);
        match event {
            Event::Said(speaker, word) => self.said(speaker, word),
            Event::SpeakerGone(speaker) => self.speaker_gone(speaker),
            Event::Listens(address) => claim.listens(ours, address),
            Event::Calls(address, meets) => claim.calls(ours, address, meets, tenure.lease),
            Event::Closed(address) => self.closed(&address),
            Event::Foreign(own) if ours.slots.kind(&own) == Some(Kind::Looking) => claim.foreign(ours, &own),
            Event::Hindered(address, why) => drop(claim.wants.hindrances.insert(address, why)),
            Event::Bound => claim.stirs(ours),
            Event::Accepts(address) => claim.accepts(ours, &address),
            Event::Vacant(own) if ours.slots.kind(&own) == Some(Kind::Looking) => claim.go(ours, &own),
            // The READY was taken back meanwhile.
            Event::Vacant(own) if !ours.slots.contains_key(&own) => ours.effects.push(Effect::Unhold(own)),
            Event::Taken(address, olds) => claim.taken(ours, address, olds),
            Event::Blocked(own, why) if ours.slots.kind(&own) == Some(Kind::Looking) => {
                claim.fail_address(ours, own, status::FAILED, &why);
            }
            Event::Shares(id, can) => claim.note(id, |old| old.can_be_shared(can)),
            Event::Attended(id) => claim.note(id, Old::attended),
            Event::Locked(id, holds) => claim.locked(ours, id, holds),
            Event::OldReleased(id, address) => claim.old_released(ours, id, address),
            Event::OldRefused(id, why) => claim.old_refused(ours, id, why),
            Event::OldSilent(id) => claim.old_silent(ours, id),
            Event::OldGone(id) => self.old_gone(id),
            Event::OldLost(id) => self.old_lost(id),
            Event::Claim(claimer) => self.claimed(claimer),
            Event::HeirClaims(claimer) => tenure.enqueue_heir(claimer),
            Event::HeirAwaited => tenure.awaits_heir = true,
            Event::HeirGone => tenure.awaits_heir = false,
            Event::ClaimerGone(claimer) => tenure.claimer_gone(ours, claimer),
            Event::Succeeded(claimer) => tenure.succeeded(ours, claimer),
            Event::Alone => tenure.is_alone(ours),
            Event::Superseded => tenure.superseded(ours),
            Event::TimeIsUp if up && lease.may_be_hastened() => self.follow(Tenure::drain_time_is_up),
            Event::Free(own) => tenure.release(ours, &own),
            Event::Quiesced => self.follow(Tenure::quiesced),
            Event::Parked => self.follow(Tenure::parked),
            Event::Drained if up && lease.is_draining() => self.leave(Why::Requested),
            Event::AskedDrain(_)
            | Event::AskedStay(_)
            | Event::AskedTakedown(..)
            | Event::AskedStop(_)
            | Event::OldHeld(_) => self.asked(event),
            Event::Vacant(_) | Event::Foreign(_) | Event::Blocked(..) | Event::Drained | Event::TimeIsUp => {}
            Event::Down(claimer, addresses) => self.down(claimer, addresses),
            Event::Checked(result) => self.checked(result),
            Event::Undo(_) => self.undo(),
            Event::Confirm(_) => claim.confirm(ours),
            Event::Stop { signalled } => self.stop(signalled),
            Event::Exited(status) => self.exited(status),
            Event::Timer(timer) => self.rang(timer),
        }
        // A server that only seemed to be a worker wants something.
        if !self.ours.slots.is_empty() {
            self.presume_no_more();
        }
    }

    /// Somebody with the lock asks for something.
    fn asked(&mut self, event: Event) {
        let Generation { ours, claim, tenure } = self;
        let up = ours.is_up();
        match event {
            Event::AskedDrain(claimer) => tenure.asked_drain(ours, claimer),
            Event::OldHeld(by) if tenure.is_locked_by(by) => tenure.send_on(ours),
            Event::AskedStay(by) if up && tenure.is_drained_for(by) => tenure.stays(ours),
            Event::AskedTakedown(claimer, address) => {
                // Nobody can bind while one that drains listens there.
                ours.effects.extend(claim.is_followed().then_some(Effect::Hasten));
                tenure.asked_takedown(ours, claimer, address);
            }
            Event::AskedStop(by) if up && tenure.is_locked_by(by) && claim.is_followed() => tenure.asked_all(ours),
            Event::AskedStop(by) if up && tenure.is_locked_by(by) => self.leave(Why::Requested),
            _ => {}
        }
    }

    fn down(&mut self, claimer: ClaimerId, addresses: Vec<Address>) {
        if self.is_on_trial()
            && let Some(why) = self.tenure.refusal(&self.ours, &addresses)
        {
            return self.ours.effects.push(Effect::Refuse(claimer, why));
        }
        self.hold_no_more();
        let Generation { ours, claim, tenure } = self;
        let named = Address::all(&addresses);
        let all = ours.slots.keys().all(|own| own.among(&named).next().is_some());
        if ours.is_starting() && claim.olds.is_empty() && !ours.slots.is_empty() && all {
            tenure.queue.retain(|(c, _)| *c != claimer);
            tenure.lease.lend(Some(claimer));
            self.leave(Why::Requested);
        } else {
            tenure.enqueue(claimer, Wish::Down(addresses));
            // What drains behind the server would serve in its place.
            if all && self.older() == Older::Drain {
                self.ours.effects.push(Effect::Hasten);
            }
        }
    }

    /// Whether servers that this one has replaced still drain, or are about to go.
    fn older(&self) -> Older {
        if self.claim.olds.is_empty() { self.tenure.older } else { Older::Drain }
    }

    fn stop(&mut self, signalled: bool) {
        match &mut self.ours.stage {
            Stage::Leaving(leaving) if leaving.stop_said => self.ours.effects.push(Effect::Kill),
            // It was told to stop already, by a claimer.
            Stage::Leaving(leaving) => leaving.stop_said = true,
            Stage::Up if self.claim.is_on_trial() => self.turn_back(Cause::Told, "it was told to stop"),
            Stage::Starting | Stage::Presumed | Stage::Up => self.leave(Why::Told { signalled }),
            Stage::Ended => {}
        }
    }

    fn rang(&mut self, timer: Timer) {
        let Generation { ours, claim, tenure } = self;
        if !ours.rings(timer) {
            return;
        }
        match timer {
            Timer::Ready => claim.ready_time_is_up(ours),
            Timer::Quiet => claim.wants.is_quiet = true,
            Timer::Partial => tenure.partial_time_is_up(ours),
            Timer::Drain => self.follow(Tenure::drain_time_is_up),
            Timer::Trial => claim.trial_time_is_up(),
            Timer::Kill => {
                ours.report(Level::Warning, ours.slots.name(), "the server did not stop in time (it is killed)");
                ours.effects.push(Effect::Kill);
            }
        }
    }

    fn exited(&mut self, own: u8) {
        let Generation { ours, claim, tenure } = self;
        let stage = std::mem::replace(&mut ours.stage, Stage::Ended);
        let status = match &stage {
            Stage::Leaving(Leaving { why: Why::Requested, .. }) => status::DONE,
            Stage::Leaving(Leaving { why: Why::Failed(status), .. }) => *status,
            Stage::Leaving(Leaving { why: Why::Told { .. }, .. })
            | Stage::Starting
            | Stage::Presumed
            | Stage::Up
            | Stage::Ended => own,
        };
        if claim.is_on_trial() {
            let text = format!("the new server ended with status {own} (all connections go to the old one again)");
            ours.report(Level::Error, ours.slots.name(), text);
        }
        let failed = claim.is_on_trial() || claim.turned_back().is_some();
        let status = if failed { status::NOT_UP } else { status };
        // Whoever waits for the swap must not take this for a success.
        let undone = status == status::DONE && ours.settings.awaited && claim.reported < Reported::Passed;
        let status = if undone { status::NOT_UP } else { status };
        if stage == Stage::Starting {
            let untouched = claim.harmed.is_empty() && !claim.olds.is_empty();
            let consequence = if untouched { " (the old one still serves)" } else { "" };
            let text = format!("the new server ended with status {own} before it was up{consequence}");
            ours.report(Level::Error, ours.slots.name(), text);
        }
        if claim.is_followed() {
            tenure.older = Older::Drain;
        }
        // Whoever asked this server to go knows what serves its addresses, or that nothing is to.
        if !matches!(stage, Stage::Leaving(Leaving { why: Why::Requested, .. })) {
            claim.report_harmed(ours);
        }
        claim.end(ours);
        tenure.end(ours);
        ours.disarm_all();
        ours.effects.push(Effect::End(status));
    }

    /// Everything that follows from what is known, in the order in which it must happen.
    fn settle(&mut self) {
        if !self.is_leaving() {
            self.claim.settle(&mut self.ours);
            self.wants_are_heard();
            if self.is_free() && !self.ours.slots.is_acquiring() {
                let older = self.older();
                self.follow(|tenure, ours| tenure.lend(ours, older));
            }
            // In plain order nobody can bind while a server that drains listens there.
            if self.is_up() && !self.claim.is_followed() {
                self.follow(Tenure::hand_over);
            }
        }
        let Generation { ours, claim, tenure } = self;
        tenure.report_released(ours);
        if let Stage::Leaving(Leaving { signal_due, .. }) = &mut ours.stage {
            // The signal would cut short what TAKEDOWN began.
            let takes = |(own, slot): (_, &Slot)| *slot == Slot::Told && tenure.is_taken(own);
            if *signal_due && !ours.slots.iter().any(takes) {
                *signal_due = false;
                ours.effects.push(Effect::Signal);
            }
        } else {
            claim.set_ready_clock(ours, tenure.queue.len());
            claim.set_quiet_clock(ours);
        }
    }

    /// Lets the old side do something, and does what follows for the server.
    fn follow(&mut self, act: impl FnOnce(&mut Tenure, &mut Ours) -> Next) {
        match act(&mut self.tenure, &mut self.ours) {
            Next::Stays => {}
            Next::Leaves => self.leave(Why::Requested),
            Next::IsCutOff => {
                self.ours.effects.push(Effect::CutOff);
                self.leave(Why::Requested);
            }
            Next::DrainsItself => {
                self.leave(Why::Requested);
                let Settings { drain, kill_after, .. } = self.ours.settings;
                self.ours.arm(Timer::Kill, drain + kill_after);
            }
        }
    }

    /// Tells the server to stop, by TAKEDOWN where it took it, else by signal.
    fn leave(&mut self, why: Why) {
        let Generation { ours, claim, tenure } = self;
        tenure.send_on(ours);
        let before = tenure.end_drain(ours);
        match before {
            Lease::Free => {}
            Lease::Lent(_) => claim.gives_nothing_back(),
            Lease::Draining(..) => claim.pass_on(ours),
        }
        let gave_back = claim.give_up(ours);
        ours.disarm_all();
        ours.arm(Timer::Kill, ours.settings.kill_after);
        let given = tenure.tell_all(ours, before);
        let untaken = ours.slots.is_empty() || ours.slots.keys().any(|own| !tenure.is_taken(own));
        let signal_due = why != Why::Told { signalled: true } && (ours.is_starting() || untaken);
        let stop_said = matches!(why, Why::Told { .. });
        ours.stage = Stage::Leaving(Leaving { why, stop_said, signal_due, gave_back, given });
    }
}
