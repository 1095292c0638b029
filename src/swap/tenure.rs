//! The old side of a generation: who wants to replace its server or to take it down, and what becomes of that.
//!
//! It knows nothing of what the server itself wants of older ones: that is the claim.

#![forbid(unsafe_code)]

use super::lease::{Drainage, Lease};
use super::ours::{Leaving, Ours, Stage};
use super::slots::{Kind, Slot, list};
use super::words::{ADDRESSES_MAX, ARRIVALS, ClaimerId, Effect, Level, SpeakerId, Timer};
use crate::address::Address;
use crate::protocol::SupervisorWord;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the old side knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Tenure {
    pub(super) lease: Lease,
    pub(super) queue: VecDeque<(ClaimerId, Wish)>,
    /// What the holder of the lock asked for and does not have yet, in its words.
    asked: BTreeSet<Address>,
    /// Who took TAKEDOWN for which address.
    takers: BTreeMap<(Address, SpeakerId), Taker>,
}

/// What somebody in the queue wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Wish {
    Replace,
    Down(Vec<Address>),
}

/// A speaker that took TAKEDOWN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Taker {
    Untold,
    Told,
}

/// Whether the server is to stop now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Next {
    Stays,
    Leaves,
    /// It leaves, although something of its drain is still open.
    IsCutOff,
    /// It leaves, and has the time for its drain too.
    DrainsItself,
}

impl Tenure {
    pub(super) fn is_locked_by(&self, claimer: ClaimerId) -> bool {
        self.lease.claimer() == Some(claimer)
    }

    pub(super) fn is_asked_for(&self, address: &Address) -> bool {
        self.asked.iter().any(|asked| asked.collides(address))
    }

    /// The server takes TAKEDOWN for the address.
    pub(super) fn takes(&mut self, ours: &Ours, speaker: SpeakerId, address: Address, effects: &mut Vec<Effect>) {
        if self.takers.len() >= ADDRESSES_MAX {
            return effects.push(Effect::Say(speaker, SupervisorWord::Error("too many addresses".into())));
        }
        self.takers.entry((address.clone(), speaker)).or_insert(Taker::Untold);
        if is_told(ours, &address) {
            self.tell(|a| *a == address, effects);
        }
    }

    /// RELEASED by one speaker: counts when all that took TAKEDOWN for the address said it or ended.
    pub(super) fn let_go(&mut self, ours: &mut Ours, speaker: SpeakerId, address: &Address, effects: &mut Vec<Effect>) {
        self.takers.remove(&(address.clone(), speaker));
        if self.is_taken(address) {
            return;
        }
        let told = address.among(&ours.slots).filter(|(_, slot)| **slot == Slot::Told);
        for own in told.map(|(own, _)| own.clone()).collect::<Vec<_>>() {
            self.release(ours, &own, effects);
        }
    }

    pub(super) fn speaker_gone(&mut self, ours: &mut Ours, speaker: SpeakerId, effects: &mut Vec<Effect>) {
        let taken = self.takers.keys().filter(|(_, s)| *s == speaker).map(|(a, _)| a.clone());
        for address in taken.collect::<Vec<_>>() {
            self.let_go(ours, speaker, &address, effects);
        }
    }

    /// Nobody listens on the address any more.
    pub(super) fn freed(&mut self, ours: &mut Ours, address: &Address, effects: &mut Vec<Effect>) {
        if let Some(Slot::Asked | Slot::Told) = ours.slots.get(address) {
            self.release(ours, address, effects);
        }
    }

    fn release(&mut self, ours: &mut Ours, own: &Address, effects: &mut Vec<Effect>) {
        ours.slots.remove(own);
        let slots = &ours.slots;
        self.takers.retain(|(a, _), _| !a.collides(own) || a.among(slots).next().is_some());
        // Whoever has the lock has registered it, as a rule, and waits.
        if ours.is_up() || self.lease.claimer().is_none() {
            effects.push(Effect::Unhold(own.clone()));
        }
    }

    /// Queues a claimer, once.
    pub(super) fn enqueue(&mut self, claimer: ClaimerId, wish: Wish) {
        if !self.is_locked_by(claimer) && self.queue.iter().all(|(c, _)| *c != claimer) {
            self.queue.push_back((claimer, wish));
        }
    }

    /// Gives the lock to the next in the queue.
    pub(super) fn lend(&mut self, ours: &Ours, effects: &mut Vec<Effect>) -> Next {
        let mut next = Next::Stays;
        while self.lease == Lease::Free
            && let Some((claimer, wish)) = self.queue.pop_front()
        {
            match wish {
                Wish::Replace => {
                    self.lease.lend(Some(claimer));
                    effects.push(Effect::Grant(claimer, ours.slots.active().cloned().collect()));
                }
                Wish::Down(addresses) => next = self.take_down(ours, claimer, addresses, effects),
            }
        }
        next
    }

    fn take_down(&mut self, ours: &Ours, claimer: ClaimerId, wanted: Vec<Address>, effects: &mut Vec<Effect>) -> Next {
        let all = Address::all(&wanted);
        let (named, others): (Vec<&Address>, Vec<&Address>) =
            ours.slots.active().partition(|own| own.among(&all).next().is_some());
        if named.is_empty() {
            effects.push(Effect::Refuse(claimer, "the server has let go of it".into()));
        } else if others.is_empty() {
            self.lease.lend(Some(claimer));
            return Next::Leaves;
        } else if named.into_iter().all(|own| self.is_taken(own)) {
            self.lease.lend(Some(claimer));
            self.asked.extend(wanted);
        } else {
            let why = format!("the same server also has {} and does not take TAKEDOWN", list(others));
            effects.push(Effect::Refuse(claimer, why));
        }
        Next::Stays
    }

    pub(super) fn asked_takedown(
        &mut self,
        ours: &mut Ours,
        claimer: ClaimerId,
        address: Address,
        effects: &mut Vec<Effect>,
    ) {
        if self.is_locked_by(claimer) {
            // Told for an earlier claimer: this one does not wait for ever either.
            if ours.is_up() && is_told(ours, &address) {
                ours.clocks.arm(Timer::Partial, ours.settings.kill_after, effects);
            }
            self.asked.insert(address);
        }
    }

    /// Does what the holder of the lock asked for.
    pub(super) fn hand_over(&mut self, ours: &mut Ours, effects: &mut Vec<Effect>) -> Next {
        if self.lease.claimer().is_none() {
            return Next::Stays;
        }
        let held = self.asked.iter().flat_map(|asked| asked.among(&ours.slots));
        let held = held.filter(|(_, slot)| **slot == Slot::Held).map(|(own, _)| own.clone());
        for own in held.collect::<Vec<_>>() {
            ours.slots.set(own, Slot::Asked);
        }
        if !ours.slots.any([Kind::Asked]) {
            return Next::Stays;
        }
        if !ours.slots.any([Kind::Releasing, Kind::Going, Kind::Held]) {
            return Next::Leaves;
        }
        let asked = ours.slots.iter().filter(|(own, slot)| **slot == Slot::Asked && self.is_taken(own));
        let taken: Vec<Address> = asked.map(|(own, _)| own.clone()).collect();
        for own in &taken {
            ours.slots.set(own.clone(), Slot::Told);
            self.tell(|a| a.collides(own), effects);
            watch_release(own, effects);
        }
        if !taken.is_empty() {
            ours.clocks.arm(Timer::Partial, ours.settings.kill_after, effects);
        }
        Next::Stays
    }

    pub(super) fn partial_time_is_up(&self, ours: &Ours, effects: &mut Vec<Effect>) {
        let late = ours.slots.iter().find(|(_, slot)| **slot == Slot::Told);
        // The drain has an end of its own.
        if let (Some((address, _)), Lease::Lent(claimer)) = (late, self.lease) {
            effects.push(Effect::Refuse(claimer, format!("{address} was not released in time")));
        }
    }

    pub(super) fn report_released(&mut self, ours: &Ours, effects: &mut Vec<Effect>) {
        let Some(claimer) = self.lease.claimer() else { return };
        let held = |asked: &Address| asked.among(&ours.slots).any(|(_, slot)| !slot.is_wish());
        let released = self.asked.extract_if(.., |asked| !held(asked));
        effects.extend(released.map(|asked| Effect::TellReleased(claimer, asked)));
    }

    pub(super) fn asked_drain(&mut self, ours: &mut Ours, claimer: ClaimerId, effects: &mut Vec<Effect>) {
        if self.lease == Lease::Lent(claimer) && ours.is_up() {
            self.lease = Lease::Draining(Some(claimer), Drainage::Arriving);
            effects.push(Effect::Drain);
            ours.clocks.arm(Timer::Drain, ours.settings.drain, effects);
        }
    }

    pub(super) fn asked_stay(&mut self, ours: &mut Ours, claimer: ClaimerId, effects: &mut Vec<Effect>) {
        if self.is_locked_by(claimer) && ours.is_up() {
            self.drain_no_more(ours, effects);
        }
    }

    fn drain_no_more(&mut self, ours: &mut Ours, effects: &mut Vec<Effect>) {
        if self.lease.stay().is_draining() {
            ours.clocks.disarm(Timer::Drain, effects);
            effects.push(Effect::StopDrain);
        }
    }

    /// Closing the listeners loses nothing now: a server that takes TAKEDOWN for all it has drains itself.
    /// One that would close only some could not go on with all if the switch is turned back.
    pub(super) fn quiesced(&mut self, ours: &Ours) -> Next {
        match self.lease {
            Lease::Draining(claimer, how) if ours.is_up() => {
                self.lease = Lease::Draining(claimer, Drainage::Quiesced);
                if how == Drainage::Overdue {
                    Next::IsCutOff
                } else if !self.takers.is_empty() && ours.slots.keys().all(|own| self.is_taken(own)) {
                    Next::DrainsItself
                } else {
                    Next::Stays
                }
            }
            Lease::Draining(..) | Lease::Free | Lease::Lent(_) => Next::Stays,
        }
    }

    /// However short the drain is to be: what is on its way to the server is not lost.
    pub(super) fn drain_time_is_up(&mut self, ours: &mut Ours, effects: &mut Vec<Effect>) -> Next {
        let Lease::Draining(claimer, Drainage::Arriving) = self.lease else { return Next::IsCutOff };
        self.lease = Lease::Draining(claimer, Drainage::Overdue);
        ours.clocks.arm(Timer::Drain, ARRIVALS, effects);
        Next::Stays
    }

    /// The claimer has gone away, and its server serves in our place.
    pub(super) fn succeeded(&mut self, ours: &mut Ours, claimer: ClaimerId, effects: &mut Vec<Effect>) {
        if self.is_locked_by(claimer) && (self.lease.is_draining() || ours.is_leaving()) {
            self.lease.lend(None);
        } else {
            self.claimer_gone(ours, claimer, effects);
        }
    }

    /// Whoever served in our place is gone too.
    pub(super) fn alone(&mut self, ours: &mut Ours, effects: &mut Vec<Effect>) {
        if let Lease::Draining(None, _) = self.lease {
            self.resume(ours, effects);
        }
    }

    pub(super) fn claimer_gone(&mut self, ours: &mut Ours, claimer: ClaimerId, effects: &mut Vec<Effect>) {
        self.queue.retain(|(c, _)| *c != claimer);
        if !self.is_locked_by(claimer) {
            return;
        }
        self.lease.lend(None);
        self.asked.clear();
        if let Stage::Leaving(Leaving { given, .. }) = &ours.stage
            && !given.is_empty()
        {
            let why = "the new server has ended, and the old one was already told to go";
            let text = format!("nothing serves {} ({why})", list(given));
            effects.push(Effect::Report(Level::Error, None, text));
        }
        self.resume(ours, effects);
    }

    /// Serves on: nobody wants anything of it any more.
    fn resume(&mut self, ours: &mut Ours, effects: &mut Vec<Effect>) {
        if ours.is_up() {
            self.drain_no_more(ours, effects);
            ours.clocks.disarm(Timer::Partial, effects);
            ours.slots.change_all(|address, slot| {
                if *slot == Slot::Asked {
                    *slot = Slot::Held;
                }
                if matches!(slot, Slot::Held | Slot::Told) {
                    effects.push(Effect::Hold(address.clone()));
                }
            });
        }
    }

    /// The server leaves: its drain is over. What the lock was before.
    pub(super) fn end_drain(&mut self, effects: &mut Vec<Effect>) -> Lease {
        let before = self.lease.stay();
        if before.is_draining() {
            effects.push(Effect::StopDrain);
        }
        before
    }

    /// Tells the server to take down all that it has; what its claimer has for good from here on.
    pub(super) fn tell_all(&mut self, ours: &mut Ours, before: Lease, effects: &mut Vec<Effect>) -> Vec<Address> {
        ours.slots.change_all(|own, slot| {
            if matches!(slot, Slot::Proving | Slot::Held | Slot::Asked | Slot::Told) {
                *slot = Slot::Told;
                watch_release(own, effects);
            }
        });
        let mut given = Vec::new();
        // From here on nobody can go back to it. A name is free when the server says so, or ends.
        if let Lease::Draining(Some(claimer), _) = before {
            given = ours.slots.active().filter(|own| own.is_port()).cloned().collect();
            effects.extend(given.iter().cloned().map(|own| Effect::TellReleased(claimer, own)));
        }
        self.tell(|_| true, effects);
        given
    }

    /// The server is gone.
    pub(super) fn end(&mut self, effects: &mut Vec<Effect>) {
        if let Some(claimer) = self.lease.claimer() {
            effects.extend(std::mem::take(&mut self.asked).into_iter().map(|a| Effect::TellReleased(claimer, a)));
        }
        let claimers = self.lease.claimer().into_iter().chain(self.queue.iter().map(|(c, _)| *c));
        effects.extend(claimers.map(Effect::TellGone));
    }

    pub(super) fn is_taken(&self, own: &Address) -> bool {
        let (first, last) = (SpeakerId(0), SpeakerId(u64::MAX));
        let mut near = own.neighbours().flat_map(|(from, to)| self.takers.range((from, first)..=(to, last)));
        near.any(|((address, _), _)| address.collides(own))
    }

    /// TAKEDOWN to everybody who took it for an address that `of` picks and does not know yet.
    fn tell(&mut self, of: impl Fn(&Address) -> bool, effects: &mut Vec<Effect>) {
        for ((address, speaker), taker) in &mut self.takers {
            if of(address) && std::mem::replace(taker, Taker::Told) == Taker::Untold {
                effects.push(Effect::Say(*speaker, SupervisorWord::Takedown(address.clone())));
            }
        }
    }
}

/// Whether the server was told to take it down and has not done so.
fn is_told(ours: &Ours, address: &Address) -> bool {
    address.among(&ours.slots).any(|(_, slot)| *slot == Slot::Told)
}

fn watch_release(address: &Address, effects: &mut Vec<Effect>) {
    if let Address::Tcp(..) = address {
        effects.push(Effect::WatchRelease(address.clone()));
    }
}
