//! What the new server says and does about addresses: READY, `bind`, `listen`, and what of that is not answered yet.

use super::{Claim, Reach};
use crate::address::Address;
use crate::protocol::SupervisorWord;
use crate::swap::lease::Lease;
use crate::swap::ours::{Leaving, Ours, Stage};
use crate::swap::slots::Slot;
use crate::swap::warrant::{Proof, Ready, Wanted};
use crate::swap::words::{ADDRESSES_MAX, Effect, Meets, Order, SpeakerId, Timer};
use std::collections::BTreeSet;

impl Claim {
    pub fn said_ready(&mut self, ours: &mut Ours, speaker: SpeakerId, address: Address) {
        match ours.slots.get(&address) {
            Some(
                Slot::Invited(..) | Slot::Joined(..) | Slot::Proven(..) | Slot::Going | Slot::Proving | Slot::Held,
            ) => ours.effects.push(Effect::Say(speaker, SupervisorWord::Go(address))),
            Some(Slot::Asked | Slot::Told) => ours.refuse(speaker, format!("{address} is being taken down")),
            Some(Slot::Looking(_) | Slot::Waiting(..) | Slot::Releasing(..)) => {
                ours.slots.change(&address, |slot| match slot {
                    Slot::Looking(wanted) | Slot::Waiting(wanted, _) => *wanted = Wanted::Said(Ready::said()),
                    _ => {}
                });
                let asked = (speaker, address);
                if self.wants.unanswered.len() >= ADDRESSES_MAX {
                    ours.refuse(speaker, "too many addresses");
                } else if !self.wants.unanswered.contains(&asked) {
                    self.wants.unanswered.push(asked);
                }
            }
            None if ours.slots.len() >= ADDRESSES_MAX => ours.refuse(speaker, "too many addresses"),
            None => {
                self.wants.said_up = false;
                self.stirs(ours);
                ours.slots.set(address.clone(), Slot::Looking(Wanted::Said(Ready::said())));
                self.wants.unanswered.push((speaker, address.clone()));
                ours.effects.push(Effect::LookUp(address));
            }
        }
    }

    /// The server is not quiet.
    pub fn stirs(&mut self, ours: &mut Ours) {
        self.wants.is_quiet = false;
        ours.disarm(Timer::Quiet);
    }

    /// Nobody is left to hear GO: the READY of this speaker harms no old server any more.
    pub fn speaker_gone(&mut self, ours: &mut Ours, speaker: SpeakerId) {
        let wants = &mut self.wants;
        wants.unanswered.retain(|(s, _)| *s != speaker);
        let heard = wants.unanswered.iter().map(|(_, a)| a.clone());
        // A `listen` of the server says as much as a READY.
        let acts = wants.called.iter().chain(&wants.listening).cloned();
        let joined = ours.slots.those(|slot| matches!(slot, Slot::Joined(..) | Slot::Proven(..)));
        let kept: BTreeSet<Address> = heard.chain(acts).chain(joined).collect();
        ours.withdraw(|own| !kept.iter().any(|a| a.collides(own)));
    }

    pub fn listens(&mut self, ours: &mut Ours, address: Address) {
        let known = ours.slots.near(&address, |_| true);
        // Found listening without a word. It may share the port with an old server by an option of its own.
        if known.is_empty() && ours.slots.len() < ADDRESSES_MAX && !ours.is_leaving() {
            self.stirs(ours);
            self.wants.listening.insert(address.clone());
            ours.slots.set(address.clone(), Slot::Looking(Wanted::Listens));
            return ours.effects.push(Effect::LookUp(address));
        }
        for own in known {
            match ours.slots.get(&own) {
                Some(Slot::Going) => prove(ours, own),
                Some(Slot::Looking(_) | Slot::Waiting(..) | Slot::Releasing(..)) => {
                    self.wants.listening.insert(own);
                }
                _ => {}
            }
        }
    }

    /// The server waits in `listen`: before it is up, and where it meets an older server, it wants the address. What it
    /// opens later may be closed again soon.
    pub fn calls(&mut self, ours: &mut Ours, address: Address, meets: Meets, lease: Lease) {
        let own = ours.slots.own(&address);
        if let Stage::Leaving(Leaving { gave_back, .. }) = ours.stage {
            let may = |slot: &Slot| matches!(slot, Slot::Going | Slot::Proving | Slot::Held | Slot::Asked | Slot::Told);
            let has = !gave_back && own.is_some_and(|own| may(&ours.slots[&own]));
            // Beside an old server, with nobody to steer, a listener would get connections that end with this server.
            return ours.effects.push(if has { Effect::Admit(address) } else { Effect::Deny(address) });
        }
        if ours.settings.order == Order::Shared && matches!(lease, Lease::Draining(None, _)) {
            // Whoever steers does not know of it.
            self.wants.called.remove(&address);
            return ours.effects.push(Effect::Deny(address));
        }
        self.wants.is_settled = false;
        self.stirs(ours);
        let full = ours.slots.len() >= ADDRESSES_MAX;
        let starting = ours.is_starting();
        match own.as_ref().map(|own| (own, &ours.slots[own])) {
            None if full || ours.stage == Stage::Up && meets == Meets::Nobody => {
                ours.effects.push(Effect::Pass(address))
            }
            None => {
                ours.slots.set(address.clone(), Slot::Looking(Wanted::Listens));
                self.wants.called.insert(address.clone());
                ours.effects.push(Effect::LookUp(address));
            }
            Some((_, Slot::Looking(_) | Slot::Waiting(..) | Slot::Releasing(..))) => {
                self.wants.called.insert(address);
            }
            // It is up, and gets connections there already.
            Some((_, Slot::Proven(..))) if self.is_on_trial() => ours.effects.push(Effect::Join(address)),
            Some((own, Slot::Invited(..) | Slot::Joined(..) | Slot::Proven(..))) => {
                ours.slots.change(own, |slot| match slot {
                    Slot::Invited(ready, olds) => *slot = Slot::Joined(ready.clone(), std::mem::take(olds)),
                    Slot::Proven(proof, olds) => *slot = Slot::Joined(proof.undone(), std::mem::take(olds)),
                    _ => {}
                });
                ours.effects.push(Effect::Join(address));
            }
            // Whoever has the lock steers.
            Some((_, Slot::Held)) if self.is_switched() && !self.olds.is_empty() && lease == Lease::Free => {
                ours.effects.push(Effect::Join(address))
            }
            Some((own, Slot::Going | Slot::Proving | Slot::Held)) if starting => {
                ours.slots.set(own.clone(), Slot::Proving);
                ours.effects.push(Effect::Join(address));
            }
            Some((own, Slot::Going)) => {
                ours.slots.set(own.clone(), Slot::Held);
                ours.effects.push(Effect::Join(address));
            }
            Some((_, Slot::Proving | Slot::Held | Slot::Asked | Slot::Told)) => {
                ours.effects.push(Effect::Admit(address))
            }
        }
    }

    /// The server has closed all that it had at the address. Before it is up that was none of its addresses.
    pub fn closed(&mut self, ours: &mut Ours, own: &Address) {
        self.wants.listening.remove(own);
        let closed = match ours.slots.get(own) {
            // The server has only tried whether it can have the address.
            Some(Slot::Joined(..) | Slot::Proven(..)) => true,
            Some(Slot::Proving | Slot::Held) => ours.is_starting(),
            _ => false,
        };
        if closed && !ours.is_leaving() {
            ours.slots.remove(own);
            self.wants.hindrances.remove(own);
            self.wants.has_closed |= ours.is_starting();
            ours.effects.push(Effect::Unhold(own.clone()));
        }
    }

    /// The kernel decides whether the server can listen beside whoever has the address.
    pub fn foreign(&mut self, ours: &mut Ours, address: &Address) {
        self.refuse_ready(ours, address, "it is held by a server of another user");
        self.admit(ours, address, Effect::Pass);
        ours.slots.remove(address);
        self.wants.listening.remove(address);
    }

    pub fn accepts(&mut self, ours: &mut Ours, address: &Address) {
        for own in ours.slots.near(address, |_| true) {
            self.wants.hindrances.remove(&own);
            ours.slots.change(&own, |slot| match slot {
                Slot::Joined(wanted, olds) => *slot = Slot::Proven(Proof::accepts(wanted), std::mem::take(olds)),
                Slot::Proving => *slot = Slot::Held,
                _ => {}
            });
        }
    }

    /// Nobody else has the address any more.
    pub fn go(&mut self, ours: &mut Ours, address: &Address) {
        self.commit(ours, Reach::Committed);
        self.say_go(ours, address);
        let calls = self.admit(ours, address, Effect::Join);
        match address {
            Address::Tcp(..) if self.wants.listening.remove(address) => prove(ours, address.clone()),
            Address::Tcp(..) if calls => ours.slots.set(address.clone(), unproven(ours)),
            Address::Tcp(..) => {
                ours.effects.push(Effect::Watch(address.clone()));
                ours.slots.set(address.clone(), Slot::Going);
            }
            // Nothing in the kernel tells of a name: GO is all there is to it.
            Address::Name(_) => ours.slots.set(address.clone(), Slot::Held),
        }
    }

    pub fn say_go(&mut self, ours: &mut Ours, address: &Address) {
        self.answer(ours, address, || SupervisorWord::Go(address.clone()));
    }

    /// Answers the READY that wait for an address which cannot be had.
    pub fn refuse_ready(&mut self, ours: &mut Ours, address: &Address, why: &str) {
        self.answer(ours, address, || SupervisorWord::Error(format!("{address}: {why}")));
    }

    fn answer(&mut self, ours: &mut Ours, address: &Address, word: impl Fn() -> SupervisorWord) {
        let answered = self.wants.unanswered.extract_if(.., |(_, a)| a == address);
        ours.effects.extend(answered.map(|(speaker, _)| Effect::Say(speaker, word())));
    }

    /// Lets the server out of the `listen` calls that belong to an address; `false` if it is in none.
    pub fn admit(&mut self, ours: &mut Ours, own: &Address, how: fn(Address) -> Effect) -> bool {
        let before = ours.effects.len();
        let belongs = |a: &Address| a == own || a.collides(own) && !ours.slots.contains_key(a);
        ours.effects.extend(self.wants.called.extract_if(.., |a| belongs(a)).map(how));
        ours.effects.len() > before
    }
}

/// The server listens and nobody else has the address: all that is left is to prove it, until it was up once.
fn prove(ours: &mut Ours, address: Address) {
    ours.slots.set(address.clone(), unproven(ours));
    ours.effects.push(Effect::Join(address));
}

fn unproven(ours: &Ours) -> Slot {
    if ours.is_starting() { Slot::Proving } else { Slot::Held }
}
