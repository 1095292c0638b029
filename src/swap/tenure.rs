//! The old side of a generation: who wants to replace its server or to take it down, and what becomes of that.
//!
//! It knows nothing of what the server itself wants of older ones: that is the claim.

use super::lease::Lease;
use super::ours::{Leaving, Ours, Stage};
use super::slots::{Kind, Slot, list};
use super::words::{ADDRESSES_MAX, ClaimerId, Effect, Level, SpeakerId, Timer};
use crate::address::Address;
use crate::protocol::SupervisorWord;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the old side knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Tenure {
    pub(super) lease: Lease,
    pub(super) queue: VecDeque<(ClaimerId, Wish)>,
    /// The heir has not claimed the server yet: see [`super::Event::HeirAwaited`].
    pub(super) awaits_heir: bool,
    /// The addresses that the holder of the lock asked for and does not have yet, as it wrote them.
    asked: BTreeSet<Address>,
    /// Who took TAKEDOWN for which address.
    takers: BTreeMap<(Address, SpeakerId), Taker>,
    pub(super) older: Older,
}

/// Servers that this one had replaced when its first supervisor died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum Older {
    #[default]
    Gone,
    /// Without this server they would serve again.
    Drain,
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
    /// Whether this claimer waits for the lock.
    pub fn waits(&self, claimer: ClaimerId) -> bool {
        self.queue.iter().any(|(waiting, _)| *waiting == claimer)
    }

    pub fn is_locked_by(&self, claimer: ClaimerId) -> bool {
        self.lease.claimer() == Some(claimer)
    }

    /// Whether the server drains for this one: it has the lock, or waits for it since the supervisor has changed.
    pub fn is_drained_for(&self, claimer: ClaimerId) -> bool {
        self.is_locked_by(claimer) || self.waits(claimer) && self.lease.is_draining() && self.lease.claimer().is_none()
    }

    pub fn is_asked_for(&self, address: &Address) -> bool {
        self.asked.iter().any(|asked| asked.collides(address))
    }

    /// The server takes TAKEDOWN for the address.
    pub fn takes(&mut self, ours: &mut Ours, speaker: SpeakerId, address: Address) {
        if self.takers.len() >= ADDRESSES_MAX {
            return ours.refuse(speaker, "too many addresses");
        }
        self.takers.entry((address.clone(), speaker)).or_insert(Taker::Untold);
        if is_told(ours, &address) {
            self.tell(ours, |a| *a == address);
        }
    }

    /// RELEASED by one speaker: counts when all that took TAKEDOWN for the address said it or ended.
    pub fn let_go(&mut self, ours: &mut Ours, speaker: SpeakerId, address: &Address) {
        self.takers.remove(&(address.clone(), speaker));
        if self.is_taken(address) {
            return;
        }
        for own in ours.slots.near(address, |slot| *slot == Slot::Told) {
            self.release(ours, &own);
        }
    }

    pub fn speaker_gone(&mut self, ours: &mut Ours, speaker: SpeakerId) {
        let taken = self.takers.keys().filter(|(_, s)| *s == speaker).map(|(a, _)| a.clone());
        for address in taken.collect::<Vec<_>>() {
            self.let_go(ours, speaker, &address);
        }
    }

    /// The server has let go of an address that a claimer asked for.
    pub fn release(&mut self, ours: &mut Ours, own: &Address) {
        let Some(Slot::Asked | Slot::Told) = ours.slots.get(own) else { return };
        ours.slots.remove(own);
        let slots = &ours.slots;
        self.takers.retain(|(a, _), _| !a.collides(own) || a.among(slots).next().is_some());
        // Whoever has the lock has registered it, as a rule, and waits.
        if ours.is_up() || self.lease.claimer().is_none() {
            ours.effects.push(Effect::Unhold(own.clone()));
        }
    }

    /// Queues a claimer, once.
    pub fn enqueue(&mut self, claimer: ClaimerId, wish: Wish) {
        if !self.is_locked_by(claimer) && self.queue.iter().all(|(c, _)| *c != claimer) {
            self.queue.push_back((claimer, wish));
        }
    }

    /// Queues the heir in front of all others.
    pub fn enqueue_heir(&mut self, claimer: ClaimerId) {
        self.awaits_heir = false;
        self.queue.retain(|(c, _)| *c != claimer);
        if !self.is_locked_by(claimer) {
            self.queue.push_front((claimer, Wish::Replace));
        }
    }

    /// Whoever replaces the server has its place: those that wait are not to wait for its end. After a takedown they find
    /// the same server again, and its end.
    pub fn send_on(&mut self, ours: &mut Ours) {
        if self.lease.claimer().is_some() {
            ours.effects.extend(self.queue.drain(..).map(|(claimer, _)| Effect::SendOn(claimer)));
        }
    }

    /// Gives the lock to the next in the queue. `older`: whether servers that ours has replaced still drain.
    pub fn lend(&mut self, ours: &mut Ours, older: Older) -> Next {
        let mut next = Next::Stays;
        let awaits_heir = self.awaits_heir;
        let may = |(_, wish): &(ClaimerId, Wish)| !(awaits_heir && *wish == Wish::Replace);
        while self.lease == Lease::Free
            && let Some(at) = self.queue.iter().position(may)
            && let Some((claimer, wish)) = self.queue.remove(at)
        {
            match wish {
                Wish::Down(_) if older == Older::Drain => {
                    self.queue.insert(at, (claimer, wish));
                    break;
                }
                Wish::Replace => {
                    self.lease.lend(Some(claimer));
                    ours.effects.push(Effect::Grant(claimer, ours.slots.active().cloned().collect()));
                }
                Wish::Down(addresses) => next = self.take_down(ours, claimer, addresses),
            }
        }
        next
    }

    fn take_down(&mut self, ours: &mut Ours, claimer: ClaimerId, wanted: Vec<Address>) -> Next {
        if let Some(why) = self.refusal(ours, &wanted) {
            ours.effects.push(Effect::Refuse(claimer, why));
            return Next::Stays;
        }
        self.lease.lend(Some(claimer));
        let all = Address::all(&wanted);
        if ours.slots.active().all(|own| own.among(&all).next().is_some()) {
            return Next::Leaves;
        }
        self.asked.extend(wanted);
        Next::Stays
    }

    /// Why these addresses cannot be taken down, if they cannot.
    pub fn refusal(&self, ours: &Ours, wanted: &[Address]) -> Option<String> {
        let all = Address::all(wanted);
        let (named, others): (Vec<&Address>, Vec<&Address>) =
            ours.slots.active().partition(|own| own.among(&all).next().is_some());
        match () {
            () if named.is_empty() => Some("the server has let go of it".into()),
            () if others.is_empty() || named.into_iter().all(|own| self.is_taken(own)) => None,
            () => Some(format!("the same server also has {} and does not take TAKEDOWN", list(others))),
        }
    }

    pub fn asked_takedown(&mut self, ours: &mut Ours, claimer: ClaimerId, address: Address) {
        if self.is_locked_by(claimer) {
            // The server was told already, for an earlier claimer: this claimer is not to wait for ever either.
            if ours.is_up() && is_told(ours, &address) {
                ours.arm(Timer::Partial, ours.settings.kill_after);
            }
            self.asked.insert(address);
        }
    }

    /// The holder of the lock asks for all, and gets it when nobody drains behind the server any more.
    pub fn asked_all(&mut self, ours: &Ours) {
        self.asked.extend(ours.slots.active().cloned());
    }

    /// Does what the holder of the lock asked for.
    pub fn hand_over(&mut self, ours: &mut Ours) -> Next {
        if self.lease.claimer().is_none() {
            return Next::Stays;
        }
        let held = self.asked.iter().flat_map(|asked| ours.slots.near(asked, |slot| *slot == Slot::Held));
        held.collect::<Vec<_>>().into_iter().for_each(|own| ours.slots.set(own, Slot::Asked));
        if !ours.slots.any([Kind::Asked]) {
            return Next::Stays;
        }
        if !ours.slots.any([Kind::Releasing, Kind::Going, Kind::Held]) {
            return Next::Leaves;
        }
        let mut taken = ours.slots.those(|slot| *slot == Slot::Asked);
        taken.retain(|own| self.is_taken(own));
        for own in &taken {
            ours.slots.set(own.clone(), Slot::Told);
            self.tell(ours, |a| a.collides(own));
            watch_release(own, &mut ours.effects);
        }
        if !taken.is_empty() {
            ours.arm(Timer::Partial, ours.settings.kill_after);
        }
        Next::Stays
    }

    pub fn partial_time_is_up(&self, ours: &mut Ours) {
        let late = ours.slots.iter().find(|(_, slot)| **slot == Slot::Told);
        // The drain has an end of its own.
        if let (Some((address, _)), Lease::Lent(claimer)) = (late, self.lease) {
            ours.effects.push(Effect::Refuse(claimer, format!("{address} was not released in time")));
        }
    }

    pub fn report_released(&mut self, ours: &mut Ours) {
        let Some(claimer) = self.lease.claimer() else { return };
        let held = |asked: &Address| asked.among(&ours.slots).any(|(_, slot)| !slot.is_wish());
        let released = self.asked.extract_if(.., |asked| !held(asked));
        ours.effects.extend(released.map(|asked| Effect::TellReleased(claimer, asked)));
    }

    /// The claimer has gone away, and its server serves in our place.
    pub fn succeeded(&mut self, ours: &mut Ours, claimer: ClaimerId) {
        if self.is_locked_by(claimer) && (self.lease.is_draining() || ours.is_leaving()) {
            self.lease.lend(None);
            self.asked.clear();
        } else {
            self.claimer_gone(ours, claimer);
        }
    }

    pub fn claimer_gone(&mut self, ours: &mut Ours, claimer: ClaimerId) {
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
            ours.report(Level::Error, None, format!("nothing serves {} ({why})", list(given)));
        }
        self.resume(ours);
    }

    /// The holder of the lock has turned its switch back, and may still have connections.
    pub fn stays(&mut self, ours: &mut Ours) {
        self.drain_no_more(ours);
        let held = ours.slots.those(|slot| *slot == Slot::Held);
        ours.effects.extend(held.into_iter().map(Effect::Hold));
    }

    /// Serves on: nobody wants anything of it any more.
    pub fn resume(&mut self, ours: &mut Ours) {
        if !ours.is_up() {
            return;
        }
        self.drain_no_more(ours);
        ours.disarm(Timer::Partial);
        ours.slots.change_all(|address, slot| {
            if *slot == Slot::Asked {
                *slot = Slot::Held;
            }
            if matches!(slot, Slot::Held | Slot::Told) {
                ours.effects.push(Effect::Hold(address.clone()));
            }
        });
    }

    /// Tells the server to take down all that it has. Returns the addresses that its claimer has for good from here on.
    pub fn tell_all(&mut self, ours: &mut Ours, before: Lease) -> Vec<Address> {
        ours.slots.change_all(|own, slot| {
            if matches!(slot, Slot::Proving | Slot::Held | Slot::Asked | Slot::Told) {
                *slot = Slot::Told;
                watch_release(own, &mut ours.effects);
            }
        });
        let mut given = Vec::new();
        // From here on nobody can go back to it. A name is free when the server says so, or ends.
        if let Lease::Draining(Some(claimer), _) = before {
            given = ours.slots.active().filter(|own| own.is_port()).cloned().collect();
            ours.effects.extend(given.iter().cloned().map(|own| Effect::TellReleased(claimer, own)));
        }
        self.tell(ours, |_| true);
        given
    }

    /// The server is gone.
    pub fn end(&mut self, ours: &mut Ours) {
        // If older servers may still listen, no address is released: whoever waits looks it up again.
        if let (Some(claimer), Older::Gone) = (self.lease.claimer(), self.older) {
            ours.effects.extend(std::mem::take(&mut self.asked).into_iter().map(|a| Effect::TellReleased(claimer, a)));
        }
        let claimers = self.lease.claimer().into_iter().chain(self.queue.iter().map(|(c, _)| *c));
        ours.effects.extend(claimers.map(Effect::TellGone));
    }

    /// Whether the server takes TAKEDOWN for all that it has.
    pub fn takes_all(&self, ours: &Ours) -> bool {
        !self.takers.is_empty() && ours.slots.keys().all(|own| self.is_taken(own))
    }

    pub fn is_taken(&self, own: &Address) -> bool {
        let (first, last) = (SpeakerId(0), SpeakerId(u64::MAX));
        let mut near = own.neighbours().flat_map(|(from, to)| self.takers.range((from, first)..=(to, last)));
        near.any(|((address, _), _)| address.collides(own))
    }

    /// TAKEDOWN to everybody who took it for an address that `of` picks and does not know yet.
    fn tell(&mut self, ours: &mut Ours, of: impl Fn(&Address) -> bool) {
        for ((address, speaker), taker) in &mut self.takers {
            if of(address) && std::mem::replace(taker, Taker::Told) == Taker::Untold {
                ours.effects.push(Effect::Say(*speaker, SupervisorWord::Takedown(address.clone())));
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
