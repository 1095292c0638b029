//! What the new server has to pass when it accepts everywhere: checks before it gets anything of the old one, then its share
//! of the new connections (canary), then all of them while the old one is kept (hold).

use super::{Cause, Claim, Demand, Due, Reach, Trial};
use crate::swap::ours::Ours;
use crate::swap::slots::{Kind, Slot};
use crate::swap::words::{Checked, Effect, OldId, Timer};
use std::time::Duration;

impl Claim {
    /// Whether its checks have succeeded; if they have not begun, they do.
    pub(super) fn has_passed_checks(&mut self, ours: &mut Ours) -> bool {
        if self.trial == Trial::Ahead {
            self.trial = match ours.settings.checked {
                Checked::No => Trial::Checked,
                Checked::Yes => {
                    ours.effects.push(Effect::Check);
                    Trial::Checking(None)
                }
            };
        }
        !matches!(self.trial, Trial::Ahead | Trial::Checking(_))
    }

    /// Whether its canary is over; if it has not begun, it does.
    pub(super) fn has_passed_canary(&mut self, ours: &mut Ours) -> bool {
        if self.trial == Trial::Checked {
            self.begin_step(ours, 0);
        }
        !matches!(self.trial, Trial::Canary(..))
    }

    /// Begins a step of the canary; after the last one nothing is left but the switch.
    fn begin_step(&mut self, ours: &mut Ours, nth: usize) {
        let Some(step) = ours.settings.canary.get(nth).copied() else {
            self.trial = Trial::Tried;
            return;
        };
        self.commit(ours, Reach::Committed);
        self.trial = Trial::Canary(nth, Due::Later);
        ours.effects.push(Effect::Portion(step.share));
        self.begin_trial(ours, step.time);
    }

    /// The server is up and has all new connections: if that is wanted, the old ones are kept for a while.
    pub(super) fn begin_hold(&mut self, ours: &mut Ours) {
        if self.trial != Trial::Tried || !self.is_switched() {
            return;
        }
        if self.olds.values().any(|old| matches!(old.demand, Demand::Held(_))) {
            self.trial = Trial::Held(Due::Later);
            ours.effects.push(Effect::Held);
            self.begin_trial(ours, ours.settings.hold);
        } else {
            self.trial = Trial::Passed;
        }
    }

    fn begin_trial(&mut self, ours: &mut Ours, time: Duration) {
        ours.arm(Timer::Trial, time);
        if ours.settings.checked == Checked::Yes {
            ours.effects.push(Effect::Check);
        }
    }

    /// The time of a step is up.
    pub fn trial_time_is_up(&mut self) {
        if let Trial::Canary(_, due) | Trial::Held(due) = &mut self.trial {
            *due = Due::Now;
        }
    }

    /// Goes on where the time of a step is up. Where checks are made, they have to succeed once more.
    pub(super) fn follow_due(&mut self, ours: &mut Ours) {
        if ours.settings.checked == Checked::No {
            self.go_on(ours);
        }
    }

    /// The checks have all succeeded, or why one of them has not.
    pub fn checked(&mut self, ours: &mut Ours, result: Result<(), String>) {
        if let Trial::Checking(_) = self.trial {
            self.trial = result.map_or_else(|why| Trial::Checking(Some(why)), |()| Trial::Checked);
            return;
        }
        self.go_on(ours);
        // The switch may have to wait for another address.
        ours.effects.extend(self.is_on_trial().then_some(Effect::Check));
    }

    /// An old server whose supervisor is not heard cannot be told anything: its caretaker is waited for.
    fn go_on(&mut self, ours: &mut Ours) {
        match self.trial {
            Trial::Canary(nth, Due::Now) if self.has_locks() => self.begin_step(ours, nth + 1),
            Trial::Held(Due::Now) => self.confirm(ours),
            _ => {}
        }
    }

    /// Its trial ends well: it gets all connections, and nobody goes back to the old servers.
    pub fn confirm(&mut self, ours: &mut Ours) {
        if !self.is_on_trial() || !self.has_locks() {
            return;
        }
        // Where it is not switched to yet, that may have to wait for another address.
        self.trial = if self.is_switched() { Trial::Passed } else { Trial::Tried };
        ours.settings.hold = Duration::ZERO;
        ours.disarm(Timer::Trial);
        for (&id, old) in &mut self.olds {
            if let Demand::Held(warrant) = old.demand {
                old.demand = Demand::Everything;
                ours.effects.push(Effect::AskDrain(warrant, id));
            }
        }
    }

    /// Its trial ends badly: the old servers get all connections again.
    pub fn turn_back(&mut self, ours: &mut Ours, cause: Cause) {
        ours.effects.extend(std::mem::take(&mut self.wants.called).into_iter().map(Effect::Deny));
        ours.disarm_all();
        ours.effects.push(Effect::SwitchBack);
        if self.is_switched() {
            self.gives_nothing_back();
            // Before STAY is said: an old server that stays registers its addresses again.
            ours.effects.extend(ours.slots.keys().cloned().map(Effect::Unhold));
            let held = |(id, old): (&OldId, &super::Old)| {
                matches!(old.demand, Demand::Held(_)).then_some(Effect::AskStay(*id))
            };
            ours.effects.extend(self.olds.iter().filter_map(held));
        }
        ours.slots.change_all(|_, slot| {
            if matches!(slot.kind(), Kind::Joined | Kind::Proven) {
                *slot = Slot::Held;
            }
        });
        ours.withdraw(|_| true);
        self.trial = Trial::TurnedBack(cause);
    }

    /// Its trial is over where nobody is left to go back to.
    pub(super) fn is_alone(&mut self, ours: &mut Ours) {
        if !matches!(self.trial, Trial::TurnedBack(_)) {
            self.trial = Trial::Passed;
            ours.disarm(Timer::Trial);
        }
    }

    /// It was turned back, and nobody else is left.
    pub fn serves_again(&mut self) {
        self.trial = Trial::Passed;
    }

    /// It was up, as it seemed, and is not: what it has passed says nothing.
    pub fn begin_anew(&mut self) {
        self.trial = Trial::Ahead;
    }

    /// What its checks lack, while it waits for them.
    pub(super) fn unchecked(&self) -> Option<String> {
        let Trial::Checking(failed) = &self.trial else { return None };
        Some(failed.clone().unwrap_or_else(|| "its check has not ended yet".into()))
    }

    /// Whether it waits for its checks.
    pub fn is_checking(&self) -> bool {
        matches!(self.trial, Trial::Checking(_))
    }

    /// Whether it has connections that may go back to the old servers.
    pub fn is_on_trial(&self) -> bool {
        matches!(self.trial, Trial::Canary(..) | Trial::Held(_)) || self.waits_for_switch()
    }

    /// Whether an old server is kept, or is to be: it has lost no more than new connections.
    pub fn keeps_olds(&self) -> bool {
        self.is_on_trial() || self.olds.values().any(|old| matches!(old.demand, Demand::Held(_)))
    }

    /// Whether its canary is over, and it is not switched to yet.
    pub fn waits_for_switch(&self) -> bool {
        self.trial == Trial::Tried && !self.is_switched()
    }

    /// Whether the locks of all old servers are ours.
    pub fn has_locks(&self) -> bool {
        self.olds.values().all(|old| old.lock().is_some())
    }

    /// The step of its canary; the last one goes on until the switch.
    pub fn step(&self) -> Option<usize> {
        match self.trial {
            Trial::Canary(step, _) => Some(step),
            _ => self.waits_for_switch().then_some(usize::MAX),
        }
    }

    /// Why its trial has ended badly, if it has.
    pub fn turned_back(&self) -> Option<Cause> {
        if let Trial::TurnedBack(cause) = self.trial { Some(cause) } else { None }
    }
}
