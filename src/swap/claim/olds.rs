//! What is heard of the old servers: who has an address, whose lock is ours, who let go and who is gone.

#![forbid(unsafe_code)]

use super::{Claim, Contact, Demand, Old};
use crate::address::Address;
use crate::error::status;
use crate::swap::ours::Ours;
use crate::swap::slots::Slot;
use crate::swap::warrant::Lock;
use crate::swap::words::{Effect, Level, OldId, READY_TIMEOUT, Timer};

impl Claim {
    /// These have the address.
    pub(in crate::swap) fn taken(
        &mut self,
        ours: &mut Ours,
        address: Address,
        olds: Vec<OldId>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(Slot::Looking(wanted) | Slot::Releasing(wanted, _)) = ours.slots.get(&address) else {
            // The READY was taken back meanwhile, or was looked up twice.
            let unknown = olds.into_iter().filter(|id| !self.olds.contains_key(id));
            return effects.extend(unknown.map(Effect::Unlock));
        };
        let wanted = wanted.clone();
        let time = ours.settings.ready_timeout.unwrap_or(READY_TIMEOUT);
        if !time.is_zero() && !ours.clocks.is_armed(Timer::Ready) {
            ours.clocks.arm(Timer::Ready, time, effects);
        }
        for &old in &olds {
            self.olds.entry(old).or_insert_with(|| {
                effects.push(Effect::Lock(old));
                Old { contact: Contact::Silent, shares: false, unshared: None, demand: Demand::Nothing }
            });
        }
        ours.slots.set(address, Slot::Waiting(wanted, olds.into_iter().collect()));
    }

    pub(in crate::swap) fn blocked(
        &mut self,
        ours: &mut Ours,
        address: Address,
        why: String,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(Slot::Looking(_)) = ours.slots.get(&address) {
            self.fail_address(ours, address, status::FAILED, why, effects);
        }
    }

    /// Notes something of an old server, if it is one of ours.
    pub(in crate::swap) fn note(&mut self, id: OldId, note: impl FnOnce(&mut Old)) {
        if let Some(old) = self.olds.get_mut(&id) {
            note(old);
        }
    }

    pub(in crate::swap) fn locked(
        &mut self,
        ours: &mut Ours,
        id: OldId,
        holds: Vec<Address>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(old) = self.olds.get_mut(&id) else { return effects.push(Effect::Unlock(id)) };
        let held = Address::all(&holds);
        ours.slots.change_all(|own, slot| {
            // It has let go of the address since the look, or never got it.
            if let Slot::Waiting(wanted, olds) = slot
                && olds.contains(&id)
                && own.among(&held).next().is_none()
            {
                *slot = Slot::Looking(wanted.clone());
                effects.push(Effect::LookUp(own.clone()));
            }
        });
        old.contact = Contact::Locked(Lock::granted(holds));
    }

    pub(in crate::swap) fn old_released(&mut self, ours: &mut Ours, id: OldId, address: Address) {
        match (ours.slots.get(&address), self.olds.get(&id)) {
            (Some(Slot::Releasing(..)), _) => ours.slots.change(&address, |slot| {
                if let Slot::Releasing(_, pending) = slot {
                    pending.remove(&id);
                }
            }),
            // The switch cannot be turned back any more.
            (_, Some(old)) if self.is_switched() && old.is_stopped() => drop(self.harmed.insert(address)),
            _ => {}
        }
    }

    pub(in crate::swap) fn old_gone(&mut self, ours: &mut Ours, id: OldId, effects: &mut Vec<Effect>) {
        if self.olds.remove(&id).is_some() && !ours.is_leaving() {
            succeed(ours, id, effects);
        }
    }

    /// The supervisor of an old server is gone; the server may live.
    pub(in crate::swap) fn old_lost(&mut self, ours: &mut Ours, id: OldId, effects: &mut Vec<Effect>) {
        let Some(old) = self.olds.remove(&id) else { return };
        let joined = |slot: &Slot| matches!(slot, Slot::Joined(..) | Slot::Proven(..)) && slot.wants(id);
        let joined = ours.slots.iter().filter(|(_, slot)| joined(slot));
        for address in joined.map(|(address, _)| address.clone()).collect::<Vec<_>>() {
            if !ours.is_leaving() {
                let why = "the old server is not ours to replace any more".to_owned();
                self.fail_address(ours, address, status::NOT_UP, why, effects);
            }
        }
        if !ours.is_leaving() && !succeed(ours, id, effects) && old.demand != Demand::Nothing {
            let text = "the supervisor of the old server is gone (the old server may live on)";
            effects.push(Effect::Report(Level::Warning, ours.slots.name(), text.into()));
        }
    }

    /// The old server stays, and so do its addresses.
    pub(in crate::swap) fn old_refused(&mut self, ours: &mut Ours, id: OldId, why: String, effects: &mut Vec<Effect>) {
        if !self.olds.contains_key(&id) || ours.is_leaving() {
            return;
        }
        let wanted = ours.slots.iter().filter(|(_, slot)| slot.wants(id)).map(|(own, _)| own.clone());
        let wanted: Vec<Address> = wanted.collect();
        if wanted.is_empty() {
            return effects.push(Effect::Report(Level::Warning, ours.slots.name(), why));
        }
        if ours.is_starting() {
            return self.fail(ours, status::NOT_UP, wanted.first().cloned(), why, effects);
        }
        for address in wanted {
            self.fail_address(ours, address, status::NOT_UP, why.clone(), effects);
        }
        self.olds.remove(&id);
        effects.push(Effect::Unlock(id));
    }
}

/// Goes on without an old server; tells whether it had something that ours waits for.
fn succeed(ours: &mut Ours, id: OldId, effects: &mut Vec<Effect>) -> bool {
    let mut waited = false;
    let starting = ours.is_starting();
    ours.slots.change_all(|address, slot| {
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
        if let (Slot::Waiting(wanted, _) | Slot::Invited(wanted, _) | Slot::Releasing(wanted, _), true) =
            (&*slot, slot.wants(id))
        {
            waited = true;
            *slot = Slot::Looking(wanted.clone());
            effects.push(Effect::LookUp(address.clone()));
        }
    });
    waited
}
