//! What is heard of the old servers: who has an address, whose lock is ours, who let go and who is gone.

use super::{Claim, Contact, Demand, Old};
use crate::address::Address;
use crate::error::status;
use crate::swap::ours::Ours;
use crate::swap::slots::Slot;
use crate::swap::warrant::Lock;
use crate::swap::words::{Effect, Level, OldId, READY_TIMEOUT, Timer};

impl Claim {
    /// These have the address.
    pub fn taken(&mut self, ours: &mut Ours, address: Address, olds: Vec<OldId>) {
        let wanted = match ours.slots.get(&address) {
            Some(Slot::Looking(wanted) | Slot::Releasing(wanted, _)) if !ours.is_leaving() => wanted.clone(),
            // The READY was taken back meanwhile, or was looked up twice, or the server is on its way out.
            _ => {
                let unknown = olds.into_iter().filter(|id| !self.olds.contains_key(id));
                return ours.effects.extend(unknown.map(Effect::Unlock));
            }
        };
        let time = ours.settings.ready_timeout.unwrap_or(READY_TIMEOUT);
        if !time.is_zero() && !ours.clocks.contains_key(&Timer::Ready) {
            ours.arm(Timer::Ready, time);
        }
        for &old in &olds {
            self.olds.entry(old).or_insert_with(|| {
                ours.effects.push(Effect::Lock(old));
                Old { contact: Contact::Silent, sharing: None, demand: Demand::Nothing }
            });
        }
        ours.slots.set(address, Slot::Waiting(wanted, olds.into_iter().collect()));
    }

    /// Notes something of an old server, if it is one of ours.
    pub fn note(&mut self, id: OldId, note: impl FnOnce(&mut Old)) {
        if let Some(old) = self.olds.get_mut(&id) {
            note(old);
        }
    }

    pub fn locked(&mut self, ours: &mut Ours, id: OldId, holds: Vec<Address>) {
        let Some(old) = self.olds.get_mut(&id) else { return ours.effects.push(Effect::Unlock(id)) };
        let held = Address::all(&holds);
        ours.slots.change_all(|own, slot| {
            // It has let go of the address since the look, or never got it.
            if let Slot::Waiting(wanted, olds) = slot
                && olds.contains(&id)
                && own.among(&held).next().is_none()
            {
                *slot = Slot::Looking(wanted.clone());
                ours.effects.push(Effect::LookUp(own.clone()));
            }
        });
        old.contact = Contact::Locked(Lock::granted(holds));
    }

    pub fn old_released(&mut self, ours: &mut Ours, id: OldId, address: Address) {
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

    /// The supervisor of an old server is not heard any more, and its lock may be another's before it is ours again: what
    /// does not listen beside that server yet waits for the lock anew.
    pub fn old_silent(&mut self, ours: &mut Ours, id: OldId) {
        self.note(id, Old::silent);
        if self.olds.get(&id).is_none_or(|old| old.lock().is_some()) {
            return;
        }
        ours.slots.change_all(|_, slot| {
            if let Slot::Invited(wanted, olds) = slot
                && olds.contains(&id)
            {
                *slot = Slot::Waiting(wanted.clone(), std::mem::take(olds));
            }
        });
    }

    pub fn old_gone(&mut self, ours: &mut Ours, id: OldId) {
        if self.olds.remove(&id).is_some() && !ours.is_leaving() {
            succeed(ours, id);
        }
    }

    /// The supervisor of an old server is gone; the server may live.
    pub fn old_lost(&mut self, ours: &mut Ours, id: OldId) {
        let Some(old) = self.olds.remove(&id) else { return };
        if self.turned_back().is_some() {
            return;
        }
        let joined = |slot: &Slot| matches!(slot, Slot::Joined(..) | Slot::Proven(..)) && slot.wants(id);
        if !ours.is_leaving() {
            self.fail_all(ours, ours.slots.those(joined), "the old server is not ours to replace any more");
        }
        if !ours.is_leaving() && !succeed(ours, id) && old.demand != Demand::Nothing {
            let text = "the supervisor of the old server is gone (the old server may live on)";
            ours.report(Level::Warning, ours.slots.name(), text);
        }
    }

    /// None of these can be had: a server that is not up fails at the first.
    fn fail_all(&mut self, ours: &mut Ours, those: Vec<Address>, why: &str) {
        let starting = ours.is_starting();
        for address in those.into_iter().take(if starting { 1 } else { usize::MAX }) {
            self.fail_address(ours, address, status::NOT_UP, why);
        }
    }

    /// The old server stays, and so do its addresses.
    pub fn old_refused(&mut self, ours: &mut Ours, id: OldId, why: String) {
        if !self.olds.contains_key(&id) || ours.is_leaving() {
            return;
        }
        let wanted = ours.slots.those(|slot| slot.wants(id));
        if wanted.is_empty() {
            return ours.report(Level::Warning, ours.slots.name(), why);
        }
        self.fail_all(ours, wanted, &why);
        if !ours.is_leaving() {
            self.olds.remove(&id);
            ours.effects.push(Effect::Unlock(id));
        }
    }
}

/// Goes on without an old server; tells whether it had something that ours waits for.
fn succeed(ours: &mut Ours, id: OldId) -> bool {
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
            ours.effects.push(Effect::Hold(address.clone()));
        }
        // It ended before it could say that it had let go: somebody else may have replaced it, or an
        // orphan is left.
        if let (Slot::Waiting(wanted, _) | Slot::Invited(wanted, _) | Slot::Releasing(wanted, _), true) =
            (&*slot, slot.wants(id))
        {
            waited = true;
            *slot = Slot::Looking(wanted.clone());
            ours.effects.push(Effect::LookUp(address.clone()));
        }
    });
    waited
}
