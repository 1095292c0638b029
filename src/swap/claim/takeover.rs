//! The steps of the new side: it acquires addresses, switches, stops the old servers, and is up.

use super::{Claim, Contact, Demand, Reach, Reported, Trial};
use crate::address::Address;
use crate::error::status;
use crate::swap::ours::{Gait, Ours, Stage};
use crate::swap::slots::{Kind, Slot, list};
use crate::swap::warrant::{Lock, Wanted, Warrant};
use crate::swap::words::{Effect, Level, OldId, Order, QUIET, READY_TIMEOUT, Timer};
use std::collections::{BTreeMap, BTreeSet};

impl Claim {
    /// Everything on the new side that follows from what is known, in the order in which it must happen.
    pub fn settle(&mut self, ours: &mut Ours) {
        if !ours.slots.any([Kind::Looking]) {
            self.unlock_idle(ours);
        }
        if self.turned_back().is_some() {
            return;
        }
        self.follow_due(ours);
        self.acquire(ours);
        self.switch(ours);
        self.stop_olds(ours);
        self.become_up(ours);
    }

    /// Goes on with every address whose old servers are all locked, or have all let go of it.
    fn acquire(&mut self, ours: &mut Ours) {
        if !ours.slots.any([Kind::Waiting, Kind::Releasing]) {
            return;
        }
        let may = |slot: &Slot| match slot {
            Slot::Waiting(_, olds) => olds.iter().all(|id| self.olds[id].lock().is_some()),
            Slot::Releasing(_, pending) => pending.is_empty(),
            _ => false,
        };
        for address in ours.slots.those(may) {
            if let Some(Slot::Waiting(wanted, olds)) = ours.slots.get(&address) {
                let (wanted, olds) = (wanted.clone(), olds.clone());
                let shared = ours.settings.order == Order::Shared && address.is_port() && !olds.is_empty();
                if !(shared && olds.iter().all(|id| self.olds[id].shares())) {
                    self.ask_takedown(ours, &address, wanted, olds);
                } else {
                    // On a shared port the server may listen beside the old ones.
                    self.say_go(ours, &address);
                    let joins = self.admit(ours, &address, Effect::Join);
                    let slot = if joins { Slot::Joined(wanted, olds) } else { Slot::Invited(wanted, olds) };
                    ours.slots.set(address.clone(), slot);
                }
            }
            if matches!(ours.slots.get(&address), Some(Slot::Releasing(_, pending)) if pending.is_empty()) {
                self.go(ours, &address);
            }
        }
    }

    /// In plain order the old servers have to let go of the address first.
    fn ask_takedown(&mut self, ours: &mut Ours, address: &Address, wanted: Wanted, olds: BTreeSet<OldId>) {
        // Where it listens beside one of them already, it has to prove itself first.
        let unproven = |slot: &Slot| matches!(slot, Slot::Joined(_, beside) if !beside.is_disjoint(&olds));
        if ours.slots.any([Kind::Joined]) && ours.slots.values().any(unproven) {
            return;
        }
        let why = olds.iter().find_map(|id| self.olds[id].sharing.clone()?.err());
        let Wanted::Said(said) = &wanted else {
            let why = why.unwrap_or_else(|| "the new server cannot be watched".into());
            return self.refuse_silent(ours, address, &why);
        };
        if let Some(trial) = ours.settings.trial().filter(|_| self.trial != Trial::Passed) {
            let is_plain =
                if address.is_port() { "this swap runs in plain order" } else { "only a port can be shared" };
            let why = why.unwrap_or_else(|| is_plain.into());
            let why = format!("the new server cannot be {trial} while the old one has the address: {why}");
            return self.fail_address(ours, address.clone(), status::NOT_UP, &why);
        }
        let Some(warrant) = Warrant::new(said, olds.iter().map(|id| self.olds[id].lock())) else { return };
        if let Some(why) = why {
            let why = format!("the port cannot be shared: {why} (this swap runs in plain order)");
            ours.report(Level::Warning, Some(address.clone()), why);
        }
        self.harmed.insert(address.clone());
        ours.effects.push(Effect::Take(warrant, address.clone()));
        for &id in &olds {
            let old = self.olds.get_mut(&id).expect("a slot waits for olds that exist");
            if !old.is_stopped() {
                old.demand = Demand::Addresses(warrant);
            }
            ours.effects.push(Effect::AskTakedown(warrant, id, address.clone()));
        }
        ours.slots.set(address.clone(), Slot::Releasing(wanted, olds));
    }

    /// A server that has said nothing replaces nobody in plain order: it gets EADDRINUSE, as it would by itself, and
    /// where it listens already it shares the port by an option of its own.
    fn refuse_silent(&mut self, ours: &mut Ours, address: &Address, why: &str) {
        let listens = self.wants.listening.remove(address);
        let why = format!("the port cannot be shared, and the new server did not say READY: {why}");
        if listens && ours.is_starting() {
            return self.fail(ours, status::NOT_UP, Some(address.clone()), &why);
        }
        let consequence = if listens { "both serve" } else { "the new one gets EADDRINUSE; the old one still serves" };
        ours.report(Level::Error, Some(address.clone()), format!("{why} ({consequence})"));
        self.admit(ours, address, Effect::Deny);
        ours.slots.remove(address);
        if !ours.slots.any([Kind::Looking]) {
            self.unlock_idle(ours);
        }
    }

    /// The switch of the shared ports, all in one moment: when every address that the old servers have
    /// is proven, or the new server wants no more than it has.
    fn switch(&mut self, ours: &mut Ours) {
        let slots = &ours.slots;
        let joined = slots.any([Kind::Joined]);
        if joined && self.wants.are_met() && !self.wants.is_settled {
            self.wants.is_settled = true;
            ours.effects.push(Effect::Settle);
        }
        let wants = slots.any([Kind::Looking, Kind::Waiting, Kind::Invited, Kind::Joined, Kind::Proving]);
        if wants || !slots.any([Kind::Proven]) {
            return;
        }
        let (mut proof, mut locks) = (None, Vec::new());
        for slot in slots.values() {
            if let Slot::Proven(own, olds) = slot {
                proof = Some(own);
                locks.extend(olds.iter().map(|id| self.olds[id].lock()));
            }
        }
        let Some(warrant) = proof.and_then(|proof| Warrant::proven(proof, locks)) else { return };
        // A name was asked for already.
        let covers = |slot: &Slot| matches!(slot, Slot::Proven(..)) || !slot.is_wish();
        let covered = |held: &Address| held.among(slots).any(|(_, slot)| covers(slot));
        let shared = self.olds.values().filter(|old| old.shares() && !old.is_replaced());
        let holds = shared.filter_map(|old| old.lock()).flat_map(Lock::holds);
        let abandoned: Vec<Address> = holds.filter(|held| !covered(held)).cloned().collect();
        if !(abandoned.is_empty() || self.wants.are_met()) {
            return;
        }
        if !self.has_passed_checks(ours) || !self.has_passed_canary(ours) {
            return;
        }
        self.commit(ours, Reach::Switched);
        ours.effects.push(Effect::Switch(warrant));
        ours.slots.change_all(|address, slot| {
            if let Slot::Proven(..) = slot {
                *slot = Slot::Held;
                ours.effects.push(Effect::Take(warrant, address.clone()));
            }
        });
        ours.effects.extend(abandoned.into_iter().map(report_abandoned));
        // One that comes to it later in the hold is kept too.
        let may_hold = matches!(self.trial, Trial::Tried | Trial::Held(_));
        let is_held = may_hold && !ours.settings.hold.is_zero();
        for (&id, old) in &mut self.olds {
            if old.shares() && old.lock().is_some() && !old.is_stopped() {
                if is_held {
                    old.demand = Demand::Held(warrant);
                    continue;
                }
                old.demand = Demand::Everything;
                ours.effects.push(Effect::AskDrain(warrant, id));
            }
        }
    }

    /// Stops the old servers that were asked for all they have, and those with addresses that the new
    /// one does not want, once it is plain that it does not.
    fn stop_olds(&mut self, ours: &mut Ours) {
        if !self.olds.values().any(|old| matches!(old.demand, Demand::Addresses(_))) {
            return;
        }
        let content = self.wants.are_met() && !ours.slots.wants_more();
        let mut uncovered: BTreeMap<OldId, Vec<Address>> = self.uncovered(&ours.slots).collect();
        for (&id, old) in &mut self.olds {
            let Demand::Addresses(warrant) = old.demand else { continue };
            let abandoned = uncovered.remove(&id).unwrap_or_default();
            if !(abandoned.is_empty() || content) {
                continue;
            }
            old.demand = Demand::Everything;
            self.harmed.extend(abandoned.iter().cloned());
            ours.effects.extend(abandoned.into_iter().map(report_abandoned));
            ours.effects.push(Effect::AskStop(warrant, id));
        }
    }

    fn become_up(&mut self, ours: &mut Ours) {
        let acquiring = ours.slots.is_acquiring() || ours.slots.any([Kind::Going, Kind::Proving]);
        if ours.is_starting() {
            let quiet = self.wants.is_quiet && !ours.settings.awaited;
            let worker = ours.slots.is_empty() && !self.wants.has_closed && (self.wants.said_up || quiet);
            let serves = ours.slots.any([Kind::Held]);
            let acquires = acquiring || !(worker || serves) || self.uncovered(&ours.slots).next().is_some();
            if acquires && !self.is_on_trial() || !self.has_passed_checks(ours) {
                return;
            }
            let presumed = ours.slots.is_empty() && !self.wants.said_up;
            ours.stage = if presumed { Stage::Presumed } else { Stage::Up };
            self.commit(ours, Reach::Committed);
            ours.effects.push(Effect::Up);
        }
        if ours.is_up() && self.olds.is_empty() && !acquiring {
            self.harmed.clear();
            self.is_alone(ours);
        }
        self.begin_hold(ours);
        let end = match () {
            () if ours.is_up() && self.olds.is_empty() => Reported::Done,
            () if ours.is_up() && !acquiring && self.has_replaced_all() => Reported::Sure,
            () => Reported::Nothing,
        };
        if end > self.reported {
            self.reported = end;
            ours.effects.push(if end == Reported::Done { Effect::Done } else { Effect::Sure });
        }
    }

    /// The ready clock stands still while the server waits for an old one, unless others wait for this server.
    pub fn set_ready_clock(&self, ours: &mut Ours, claimers: usize) {
        use Kind::*;
        let waits = ours.slots.any([Waiting, Releasing]);
        if ours.is_up() && !waits && !ours.slots.any([Invited, Joined]) {
            ours.disarm(Timer::Ready);
        }
        let goes = ours.slots.any([Going, Proving, Looking, Invited, Joined, Proven]);
        let attended = self.olds.values().all(|old| old.contact != Contact::Silent);
        // A server that waits, and that others may wait for, lets its clock run: that bounds a deadlock.
        let blocks = self.olds.values().any(|old| old.lock().is_none())
            && (self.olds.values().any(|old| old.lock().is_some()) || claimers > 0);
        let gait = if waits && !goes && attended && !blocks { Gait::Stands } else { Gait::Runs };
        ours.set_gait(Timer::Ready, gait);
        // A first server may take its time, but not if somebody waits who could serve in its place.
        let blocks = ours.is_starting() && ours.slots.any([Proving]) && claimers > 0;
        if blocks && ours.settings.ready_timeout.is_none() && !ours.clocks.contains_key(&Timer::Ready) {
            ours.arm(Timer::Ready, READY_TIMEOUT);
        }
    }

    /// The quiet clock runs while nothing else can happen.
    pub fn set_quiet_clock(&self, ours: &mut Ours) {
        let slots = &ours.slots;
        let worker = ours.is_starting() && slots.is_empty() && !self.wants.has_closed && !ours.settings.awaited;
        // An address whose locks are all ours is held back only until other addresses are proven.
        let locked = |id: &OldId| self.olds[id].lock().is_some();
        let unlocked = |slot: &Slot| matches!(slot, Slot::Waiting(_, olds) if !olds.iter().all(locked));
        let joined = slots.any([Kind::Joined, Kind::Proven])
            && !slots.any([Kind::Looking])
            && !(slots.any([Kind::Waiting]) && slots.values().any(unlocked));
        let waits = joined || !slots.wants_more() && self.uncovered(slots).next().is_some();
        if !(worker || waits) {
            ours.disarm(Timer::Quiet);
        } else if !self.wants.is_quiet && !ours.clocks.contains_key(&Timer::Quiet) {
            ours.arm(Timer::Quiet, QUIET);
        }
    }

    /// What a server that is not up has not done, and at which address.
    pub fn missing(&self, ours: &Ours) -> (Option<Address>, String) {
        let hindrance = |own: &Address| self.wants.hindrances.get(own).cloned();
        let missing = |(own, slot): (&Address, &Slot)| {
            let why = match slot {
                Slot::Joined(..) | Slot::Proving => {
                    hindrance(own).unwrap_or_else(|| format!("it listens on {own} and was not proven to accept yet"))
                }
                Slot::Invited(..) | Slot::Going => format!("it does not listen on {own} yet"),
                Slot::Looking(_) => format!("it could not be found out who has {own}"),
                Slot::Waiting(..) => format!("the server that has {own} is not free"),
                Slot::Releasing(..) => format!("the old server has not let go of {own}"),
                Slot::Proven(..) | Slot::Held | Slot::Asked | Slot::Told => return None,
            };
            Some((Some(own.clone()), why))
        };
        let hindered = ours.slots.iter().filter(|(own, _)| self.wants.hindrances.contains_key(own)).find_map(missing);
        let other = || match self.uncovered(&ours.slots).next() {
            Some((_, left)) => format!("it does not listen on {}, which the old server has", list(&left)),
            None if self.wants.said_up => "it has said UP, and listens on nothing any more".to_owned(),
            None => "it listens on nothing yet, and has said neither UP nor READY=1".to_owned(),
        };
        if let Some(why) = self.unchecked() {
            return (ours.slots.name(), why);
        }
        hindered.or_else(|| ours.slots.iter().find_map(missing)).unwrap_or_else(|| (ours.slots.name(), other()))
    }

    /// The time for the server to be up is over.
    pub fn ready_time_is_up(&mut self, ours: &mut Ours) {
        if ours.is_starting() {
            let (address, why) = self.missing(ours);
            return self.fail(ours, status::NOT_UP, address, &format!("the new server was not up in time: {why}"));
        }
        // A server that is up waited for an old server, which perhaps waits for it; or it has all locks for an address,
        // and does not listen or accept there.
        let why = |slot: &Slot| match slot {
            Slot::Waiting(..) => Some("it was not free in time"),
            Slot::Invited(..) => Some("the server did not listen on it in time"),
            Slot::Joined(..) => Some("the server did not accept on it in time"),
            _ => None,
        };
        let late = ours.slots.iter().filter_map(|(address, slot)| Some((address.clone(), why(slot)?)));
        for (address, why) in late.collect::<Vec<(Address, &str)>>() {
            self.fail_address(ours, address, status::NOT_UP, why);
        }
    }
}

fn report_abandoned(address: Address) -> Effect {
    let text = "the new server does not take this address over (it is abandoned)";
    Effect::Report(Level::Warning, Some(address), text.into())
}
