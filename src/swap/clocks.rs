//! The clocks of a generation: which are armed. Their owner keeps the time.

#![forbid(unsafe_code)]

use super::words::{Effect, Timer};
use std::collections::BTreeMap;
use std::time::Duration;

/// The clocks that were armed and have not rung.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Clocks(BTreeMap<Timer, Gait>);

/// Whether an armed clock goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Gait {
    Runs,
    /// It stands still for a while. A ring that was on its way when it was stopped counts for nothing.
    Stands,
}

impl Clocks {
    pub(super) fn arm(&mut self, timer: Timer, time: Duration, effects: &mut Vec<Effect>) {
        self.0.insert(timer, Gait::Runs);
        effects.push(Effect::Arm(timer, time));
    }

    pub(super) fn disarm(&mut self, timer: Timer, effects: &mut Vec<Effect>) {
        if self.0.remove(&timer).is_some() {
            effects.push(Effect::Disarm(timer));
        }
    }

    pub(super) fn disarm_all(&mut self, effects: &mut Vec<Effect>) {
        effects.extend(std::mem::take(&mut self.0).into_keys().map(Effect::Disarm));
    }

    /// Stops an armed clock for a while, or lets it run on.
    pub(super) fn set(&mut self, timer: Timer, to: Gait, effects: &mut Vec<Effect>) {
        if let Some(gait) = self.0.get_mut(&timer)
            && *gait != to
        {
            *gait = to;
            effects.push(match to {
                Gait::Runs => Effect::Resume(timer),
                Gait::Stands => Effect::Pause(timer),
            });
        }
    }

    /// A clock rang; tells whether that counts.
    pub(super) fn rings(&mut self, timer: Timer) -> bool {
        let counts = self.0.get(&timer) == Some(&Gait::Runs);
        if counts {
            self.0.remove(&timer);
        }
        counts
    }

    pub(super) fn is_armed(&self, timer: Timer) -> bool {
        self.0.contains_key(&timer)
    }

    #[cfg(test)]
    pub(super) fn armed(&self) -> impl Iterator<Item = &Timer> {
        self.0.keys()
    }

    #[cfg(test)]
    pub(super) fn stands(&self, timer: Timer) -> bool {
        self.0.get(&timer) == Some(&Gait::Stands)
    }
}
