//! What the new server says and does about addresses: READY, `bind`, `listen`, and what of that is not answered yet.

#![forbid(unsafe_code)]

use super::{Claim, Reach};
use crate::address::Address;
use crate::protocol::SupervisorWord;
use crate::swap::ours::{Leaving, Ours, Stage};
use crate::swap::slots::Slot;
use crate::swap::warrant::{Proof, Ready, Wanted};
use crate::swap::words::{ADDRESSES_MAX, Effect, Meets, SpeakerId, Timer};
use std::collections::BTreeSet;

impl Claim {
    pub(in crate::swap) fn said_ready(
        &mut self,
        ours: &mut Ours,
        speaker: SpeakerId,
        address: Address,
        effects: &mut Vec<Effect>,
    ) {
        let mut refuse = |why: String| effects.push(Effect::Say(speaker, SupervisorWord::Error(why)));
        match ours.slots.get(&address) {
            Some(
                Slot::Invited(..) | Slot::Joined(..) | Slot::Proven(..) | Slot::Going | Slot::Proving | Slot::Held,
            ) => effects.push(Effect::Say(speaker, SupervisorWord::Go(address))),
            Some(Slot::Asked | Slot::Told) => refuse(format!("{address} is being taken down")),
            Some(Slot::Looking(_) | Slot::Waiting(..) | Slot::Releasing(..)) => {
                ours.slots.change(&address, |slot| match slot {
                    Slot::Looking(wanted) | Slot::Waiting(wanted, _) => *wanted = Wanted::Said(Ready::said()),
                    _ => {}
                });
                let asked = (speaker, address);
                if self.wants.unanswered.len() >= ADDRESSES_MAX {
                    refuse("too many addresses".into());
                } else if !self.wants.unanswered.contains(&asked) {
                    self.wants.unanswered.push(asked);
                }
            }
            None if ours.slots.len() >= ADDRESSES_MAX => refuse("too many addresses".into()),
            None => {
                self.wants.said_up = false;
                self.stirs(ours, effects);
                ours.slots.set(address.clone(), Slot::Looking(Wanted::Said(Ready::said())));
                self.wants.unanswered.push((speaker, address.clone()));
                effects.push(Effect::LookUp(address));
            }
        }
    }

    /// The server is not quiet.
    pub(in crate::swap) fn stirs(&mut self, ours: &mut Ours, effects: &mut Vec<Effect>) {
        self.wants.is_quiet = false;
        ours.clocks.disarm(Timer::Quiet, effects);
    }

    /// Nobody is left to hear GO: the READY of this speaker harms no old server any more.
    pub(in crate::swap) fn speaker_gone(&mut self, ours: &mut Ours, speaker: SpeakerId, effects: &mut Vec<Effect>) {
        let wants = &mut self.wants;
        wants.unanswered.retain(|(s, _)| *s != speaker);
        let heard = wants.unanswered.iter().map(|(_, a)| a.clone());
        // What it does says as much as a word.
        let acts = wants.called.iter().chain(&wants.listening).cloned();
        let joined = ours.slots.iter().filter(|(_, s)| matches!(s, Slot::Joined(..) | Slot::Proven(..)));
        let kept: BTreeSet<Address> = heard.chain(acts).chain(joined.map(|(a, _)| a.clone())).collect();
        ours.slots.withdraw(|own| !kept.iter().any(|a| a.collides(own)), effects);
    }

    pub(in crate::swap) fn listens(&mut self, ours: &mut Ours, address: Address, effects: &mut Vec<Effect>) {
        let known = ours.slots.colliding(&address);
        // Found listening without a word. It may share the port with an old server by an option of its own.
        if known.is_empty() && ours.slots.len() < ADDRESSES_MAX && !ours.is_leaving() {
            self.stirs(ours, effects);
            self.wants.listening.insert(address.clone());
            ours.slots.set(address.clone(), Slot::Looking(Wanted::Listens));
            return effects.push(Effect::LookUp(address));
        }
        for own in known {
            match ours.slots.get(&own) {
                Some(Slot::Going) => prove(ours, own, effects),
                Some(Slot::Looking(_) | Slot::Waiting(..) | Slot::Releasing(..)) => {
                    self.wants.listening.insert(own);
                }
                _ => {}
            }
        }
    }

    /// The server waits in `listen`: before it is up, and where it meets an older server, it wants the address. What it
    /// opens later may be closed again soon.
    pub(in crate::swap) fn calls(
        &mut self,
        ours: &mut Ours,
        address: Address,
        meets: Meets,
        effects: &mut Vec<Effect>,
    ) {
        let own = ours.slots.own(&address);
        if let Stage::Leaving(Leaving { gave_back, .. }) = ours.stage {
            let may = |slot: &Slot| matches!(slot, Slot::Going | Slot::Proving | Slot::Held | Slot::Asked | Slot::Told);
            let has = !gave_back && own.is_some_and(|own| may(&ours.slots[&own]));
            // Beside an old server, with nobody to steer, it would get connections that end with it.
            return effects.push(if has { Effect::Admit(address) } else { Effect::Deny(address) });
        }
        self.wants.is_settled = false;
        self.stirs(ours, effects);
        let full = ours.slots.len() >= ADDRESSES_MAX;
        let starting = ours.is_starting();
        match own.as_ref().map(|own| (own, &ours.slots[own])) {
            None if full || ours.stage == Stage::Up && meets == Meets::Nobody => effects.push(Effect::Pass(address)),
            None => {
                ours.slots.set(address.clone(), Slot::Looking(Wanted::Listens));
                self.wants.called.insert(address.clone());
                effects.push(Effect::LookUp(address));
            }
            Some((_, Slot::Looking(_) | Slot::Waiting(..) | Slot::Releasing(..))) => {
                self.wants.called.insert(address);
            }
            Some((own, Slot::Invited(..) | Slot::Joined(..) | Slot::Proven(..))) => {
                ours.slots.change(own, |slot| match slot {
                    Slot::Invited(ready, olds) => *slot = Slot::Joined(ready.clone(), std::mem::take(olds)),
                    Slot::Proven(proof, olds) => *slot = Slot::Joined(proof.undone(), std::mem::take(olds)),
                    _ => {}
                });
                effects.push(Effect::Join(address));
            }
            Some((_, Slot::Held)) if self.is_switched() && !self.olds.is_empty() => effects.push(Effect::Join(address)),
            Some((own, Slot::Going | Slot::Proving | Slot::Held)) if starting => {
                ours.slots.set(own.clone(), Slot::Proving);
                effects.push(Effect::Join(address));
            }
            Some((own, Slot::Going)) => {
                ours.slots.set(own.clone(), Slot::Held);
                effects.push(Effect::Join(address));
            }
            Some((_, Slot::Proving | Slot::Held | Slot::Asked | Slot::Told)) => effects.push(Effect::Admit(address)),
        }
    }

    /// The server has closed all that it had at the address. Before it is up that was none of its addresses.
    pub(in crate::swap) fn closed(&mut self, ours: &mut Ours, own: &Address, effects: &mut Vec<Effect>) {
        let closed = match ours.slots.get(own) {
            // It has only tried whether it can have it.
            Some(Slot::Joined(..) | Slot::Proven(..)) => true,
            Some(Slot::Proving | Slot::Held) => ours.is_starting(),
            _ => false,
        };
        if closed && !ours.is_leaving() {
            ours.slots.remove(own);
            self.wants.hindrances.remove(own);
            self.wants.has_closed |= ours.is_starting();
            effects.push(Effect::Unhold(own.clone()));
        }
    }

    /// The kernel decides whether the server can listen beside whoever has the address.
    pub(in crate::swap) fn foreign(&mut self, ours: &mut Ours, address: &Address, effects: &mut Vec<Effect>) {
        if let Some(Slot::Looking(_)) = ours.slots.get(address) {
            self.refuse_ready(address, "it is held by a server of another user", effects);
            self.admit(ours, address, Effect::Pass, effects);
            ours.slots.remove(address);
            self.wants.listening.remove(address);
        }
    }

    /// Something keeps a server that listens on the address from being proven.
    pub(in crate::swap) fn hindered(&mut self, address: Address, why: String) {
        self.wants.hindrances.insert(address, why);
    }

    pub(in crate::swap) fn accepts(&mut self, ours: &mut Ours, address: &Address) {
        for own in ours.slots.colliding(address) {
            self.wants.hindrances.remove(&own);
            ours.slots.change(&own, |slot| match slot {
                Slot::Joined(wanted, olds) => *slot = Slot::Proven(Proof::accepts(wanted), std::mem::take(olds)),
                Slot::Proving => *slot = Slot::Held,
                _ => {}
            });
        }
    }

    /// Nobody had the address, and now it is registered as ours.
    pub(in crate::swap) fn vacant(&mut self, ours: &mut Ours, address: Address, effects: &mut Vec<Effect>) {
        match ours.slots.get(&address) {
            Some(Slot::Looking(_)) => self.go(ours, &address, effects),
            Some(_) => {}
            // The READY was taken back meanwhile.
            None => effects.push(Effect::Unhold(address)),
        }
    }

    /// Nobody else has the address any more.
    pub(super) fn go(&mut self, ours: &mut Ours, address: &Address, effects: &mut Vec<Effect>) {
        self.commit(Reach::Committed, effects);
        self.say_go(address, effects);
        let calls = self.admit(ours, address, Effect::Join, effects);
        match address {
            Address::Tcp(..) if self.wants.listening.remove(address) => prove(ours, address.clone(), effects),
            Address::Tcp(..) if calls => ours.slots.set(address.clone(), unproven(ours)),
            Address::Tcp(..) => {
                effects.push(Effect::Watch(address.clone()));
                ours.slots.set(address.clone(), Slot::Going);
            }
            // Nothing in the kernel tells of a name: GO is all there is to it.
            Address::Name(_) => ours.slots.set(address.clone(), Slot::Held),
        }
    }

    pub(super) fn say_go(&mut self, address: &Address, effects: &mut Vec<Effect>) {
        self.answer(address, || SupervisorWord::Go(address.clone()), effects);
    }

    /// Answers the READY that wait for an address which cannot be had.
    pub(super) fn refuse_ready(&mut self, address: &Address, why: &str, effects: &mut Vec<Effect>) {
        self.answer(address, || SupervisorWord::Error(format!("{address}: {why}")), effects);
    }

    fn answer(&mut self, address: &Address, word: impl Fn() -> SupervisorWord, effects: &mut Vec<Effect>) {
        let answered = self.wants.unanswered.extract_if(.., |(_, a)| a == address);
        effects.extend(answered.map(|(speaker, _)| Effect::Say(speaker, word())));
    }

    /// Lets the server out of the `listen` calls that belong to an address; `false` if it is in none.
    pub(super) fn admit(
        &mut self,
        ours: &Ours,
        own: &Address,
        how: fn(Address) -> Effect,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let before = effects.len();
        let belongs = |a: &Address| a == own || a.collides(own) && !ours.slots.contains_key(a);
        effects.extend(self.wants.called.extract_if(.., |a| belongs(a)).map(how));
        effects.len() > before
    }
}

/// The server listens and nobody else has the address: all that is left is to prove it, until it was up once.
fn prove(ours: &mut Ours, address: Address, effects: &mut Vec<Effect>) {
    ours.slots.set(address.clone(), unproven(ours));
    effects.push(Effect::Join(address));
}

fn unproven(ours: &Ours) -> Slot {
    if ours.is_starting() { Slot::Proving } else { Slot::Held }
}
