//! The addresses of a generation, and how far each of them is.

use super::warrant::{Proof, Wanted};
use super::words::OldId;
use crate::address::Address;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

/// How far an address is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    /// The server wants it; who has the address is being looked up.
    Looking(Wanted),
    /// These have it, and not all of their locks are ours.
    Waiting(Wanted, BTreeSet<OldId>),
    /// These were asked to let go of it and have not done so.
    Releasing(Wanted, BTreeSet<OldId>),
    /// Shared: the locks are ours, and the server may bind and listen while they still serve.
    Invited(Wanted, BTreeSet<OldId>),
    /// Shared: the server listens, and has not proven that it accepts.
    Joined(Wanted, BTreeSet<OldId>),
    /// Shared: the server accepts; all that is left is the switch.
    Proven(Proof, BTreeSet<OldId>),
    /// GO was said; the server does not listen yet.
    Going,
    /// The server listens, alone, and has not proven that it accepts.
    Proving,
    /// The server has the address.
    Held,
    /// A claimer asked for the address.
    Asked,
    /// The server was told to take the address down.
    Told,
}

/// A [`Slot`] without what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Looking,
    Waiting,
    Releasing,
    Invited,
    Joined,
    Proven,
    Going,
    Proving,
    Held,
    Asked,
    Told,
}

impl Kind {
    const COUNT: usize = Kind::Told as usize + 1;
}

impl Slot {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Slot::Looking(_) => Kind::Looking,
            Slot::Waiting(..) => Kind::Waiting,
            Slot::Releasing(..) => Kind::Releasing,
            Slot::Invited(..) => Kind::Invited,
            Slot::Joined(..) => Kind::Joined,
            Slot::Proven(..) => Kind::Proven,
            Slot::Going => Kind::Going,
            Slot::Proving => Kind::Proving,
            Slot::Held => Kind::Held,
            Slot::Asked => Kind::Asked,
            Slot::Told => Kind::Told,
        }
    }

    pub(super) fn wants(&self, old: OldId) -> bool {
        match self {
            Slot::Waiting(_, olds)
            | Slot::Invited(_, olds)
            | Slot::Joined(_, olds)
            | Slot::Proven(_, olds)
            | Slot::Releasing(_, olds) => olds.contains(&old),
            Slot::Looking(_) | Slot::Going | Slot::Proving | Slot::Held | Slot::Asked | Slot::Told => false,
        }
    }

    /// The server wants it, and nobody was asked for anything yet.
    pub(super) fn is_wish(&self) -> bool {
        matches!(self, Slot::Looking(_) | Slot::Waiting(..) | Slot::Invited(..) | Slot::Joined(..) | Slot::Proven(..))
    }
}

/// All slots of a generation. It counts them by kind: a server may have a thousand, and what follows from one
/// event must not cost a look at each.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Slots {
    slots: BTreeMap<Address, Slot>,
    counts: [usize; Kind::COUNT],
}

impl Deref for Slots {
    type Target = BTreeMap<Address, Slot>;

    fn deref(&self) -> &BTreeMap<Address, Slot> {
        &self.slots
    }
}

impl Slots {
    /// The addresses whose slot is one that `of` picks.
    pub(super) fn those(&self, of: impl Fn(&Slot) -> bool) -> Vec<Address> {
        self.slots.iter().filter(|(_, slot)| of(slot)).map(|(own, _)| own.clone()).collect()
    }

    /// The addresses that collide with this one and whose slot is one that `of` picks.
    pub(super) fn near(&self, address: &Address, of: impl Fn(&Slot) -> bool) -> Vec<Address> {
        address.among(self).filter(|(_, slot)| of(slot)).map(|(own, _)| own.clone()).collect()
    }

    /// The addresses that the server has or is about to bind.
    pub(super) fn active(&self) -> impl Iterator<Item = &Address> {
        self.slots.iter().filter(|(_, slot)| !slot.is_wish()).map(|(own, _)| own)
    }

    pub(super) fn kind(&self, own: &Address) -> Option<Kind> {
        self.slots.get(own).map(Slot::kind)
    }

    /// The first address: the one that messages about the whole server name.
    pub(super) fn name(&self) -> Option<Address> {
        self.slots.keys().next().cloned()
    }

    /// The address of ours that collides with one that the server names; the first of several.
    pub(super) fn own(&self, address: &Address) -> Option<Address> {
        address.among(self).next().map(|(own, _)| own.clone())
    }

    /// Whether any address is still looked up or waited for, or the server has yet to bind, listen or accept at one.
    pub(super) fn wants_more(&self) -> bool {
        self.any([Kind::Looking, Kind::Waiting, Kind::Invited, Kind::Joined, Kind::Going])
    }

    /// Whether it is about to get an address. A bind that the server owes does not count: it may never come.
    pub(super) fn is_acquiring(&self) -> bool {
        use Kind::*;
        self.any([Looking, Waiting, Invited, Joined, Proven, Releasing])
    }

    /// Whether any slot is of one of these kinds.
    pub(super) fn any<const N: usize>(&self, kinds: [Kind; N]) -> bool {
        kinds.iter().any(|&kind| self.counts[kind as usize] > 0)
    }

    pub(super) fn set(&mut self, address: Address, slot: Slot) {
        self.counts[slot.kind() as usize] += 1;
        if let Some(old) = self.slots.insert(address, slot) {
            self.counts[old.kind() as usize] -= 1;
        }
    }

    pub(super) fn remove(&mut self, address: &Address) {
        if let Some(old) = self.slots.remove(address) {
            self.counts[old.kind() as usize] -= 1;
        }
    }

    /// Changes the slot of an address, if there is one.
    pub(super) fn change(&mut self, address: &Address, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.slots.get_mut(address) {
            self.counts[slot.kind() as usize] -= 1;
            change(slot);
            self.counts[slot.kind() as usize] += 1;
        }
    }

    /// Changes each slot as it needs to be.
    pub(super) fn change_all(&mut self, mut change: impl FnMut(&Address, &mut Slot)) {
        self.retain(|address, slot| {
            change(address, slot);
            true
        });
    }

    /// Removes the slots for which `keep` is false; it may change the others.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Address, &mut Slot) -> bool) {
        let counts = &mut self.counts;
        *counts = [0; Kind::COUNT];
        self.slots.retain(|address, slot| {
            let kept = keep(address, slot);
            counts[slot.kind() as usize] += usize::from(kept);
            kept
        });
    }
}

/// Addresses for a message.
pub(super) fn list<'a>(addresses: impl IntoIterator<Item = &'a Address>) -> String {
    addresses.into_iter().map(Address::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLOTS: [fn() -> Slot; Kind::COUNT] = [
        || Slot::Looking(Wanted::Listens),
        || Slot::Waiting(Wanted::Listens, BTreeSet::new()),
        || Slot::Releasing(Wanted::Listens, BTreeSet::new()),
        || Slot::Invited(Wanted::Listens, BTreeSet::new()),
        || Slot::Joined(Wanted::Listens, BTreeSet::new()),
        || Slot::Proven(Proof::accepts(&Wanted::Listens), BTreeSet::new()),
        || Slot::Going,
        || Slot::Proving,
        || Slot::Held,
        || Slot::Asked,
        || Slot::Told,
    ];

    proptest! {
        #[test]
        fn the_counts_are_those_of_the_slots(ops in prop::collection::vec((0..5, 0..4u16, 0..Kind::COUNT), 0..40)) {
            let mut slots = Slots::default();
            for (op, port, kind) in ops {
                let address = Address::Tcp(None, port);
                match op {
                    0 | 1 => slots.set(address, SLOTS[kind]()),
                    2 => slots.remove(&address),
                    3 => slots.change(&address, |slot| *slot = SLOTS[kind]()),
                    _ => slots.retain(|other, slot| {
                        *slot = SLOTS[kind]();
                        *other != address
                    }),
                }
                let mut counted = [0; Kind::COUNT];
                slots.values().for_each(|slot| counted[slot.kind() as usize] += 1);
                prop_assert_eq!(slots.counts, counted);
            }
        }
    }
}
