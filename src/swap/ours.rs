//! What both sides of a generation know of its own server: how far it is, its addresses and its clocks.

use super::slots::Slots;
use super::words::{Effect, Level, Settings, SpeakerId, Timer};
use crate::address::Address;
use crate::protocol::SupervisorWord;
use std::collections::BTreeMap;
use std::time::Duration;

/// Our own server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Ours {
    pub(super) settings: Settings,
    pub(super) stage: Stage,
    pub(super) slots: Slots,
    /// The clocks that were armed and have not rung.
    pub(super) clocks: BTreeMap<Timer, Gait>,
    /// What follows from the event that is being taken in.
    pub(super) effects: Vec<Effect>,
}

/// Whether an armed clock goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Gait {
    Runs,
    Stands,
}

/// How far a server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// Not up yet.
    Starting,
    /// Assumed to be a worker after silence: as good as up. It may only be slow: its first word undoes that.
    Presumed,
    /// Serves.
    Up,
    /// Was told to stop.
    Leaving(Leaving),
    /// Is gone.
    Ended,
}

/// A server that was told to stop.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Leaving {
    pub(super) why: Why,
    /// The supervisor was told to stop it: once more, and it is killed.
    pub(super) stop_said: bool,
    /// The stop signal waits for what TAKEDOWN began.
    pub(super) signal_due: bool,
    /// The switch was turned back, and the addresses are those of the old servers again.
    pub(super) gave_back: bool,
    /// The addresses that the claimer has for good.
    pub(super) given: Vec<Address>,
}

/// Why a server was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Why {
    /// Replaced, or taken down on request: the supervisor ends with 0.
    Requested,
    /// The supervisor was told to stop: it ends with the server's status.
    Told {
        /// The server has had the signal too.
        signalled: bool,
    },
    /// The new server failed: the supervisor ends with this status.
    Failed(u8),
}

impl Ours {
    pub(super) fn is_starting(&self) -> bool {
        self.stage == Stage::Starting
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Presumed | Stage::Up)
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Leaving(_))
    }

    pub(super) fn report(&mut self, level: Level, address: Option<Address>, text: impl Into<String>) {
        self.effects.push(Effect::Report(level, address, text.into()));
    }

    pub(super) fn refuse(&mut self, speaker: SpeakerId, why: impl Into<String>) {
        self.effects.push(Effect::Say(speaker, SupervisorWord::Error(why.into())));
    }

    /// Takes back READY for addresses that nobody was asked for yet.
    pub(super) fn withdraw(&mut self, of: impl Fn(&Address) -> bool) {
        self.slots.retain(|own, slot| {
            let gone = slot.is_wish() && of(own);
            if gone {
                self.effects.push(Effect::Unhold(own.clone()));
            }
            !gone
        });
    }

    pub(super) fn arm(&mut self, timer: Timer, time: Duration) {
        self.clocks.insert(timer, Gait::Runs);
        self.effects.push(Effect::Arm(timer, time));
    }

    pub(super) fn disarm(&mut self, timer: Timer) {
        if self.clocks.remove(&timer).is_some() {
            self.effects.push(Effect::Disarm(timer));
        }
    }

    pub(super) fn disarm_all(&mut self) {
        self.effects.extend(std::mem::take(&mut self.clocks).into_keys().map(Effect::Disarm));
    }

    /// Stops an armed clock for a while, or lets it run on.
    pub(super) fn set_gait(&mut self, timer: Timer, to: Gait) {
        if let Some(gait) = self.clocks.get_mut(&timer)
            && *gait != to
        {
            *gait = to;
            self.effects.push(if to == Gait::Runs { Effect::Resume(timer) } else { Effect::Pause(timer) });
        }
    }

    /// A clock rang; tells whether that counts. It does not if it was stopped meanwhile, or for a while.
    pub(super) fn rings(&mut self, timer: Timer) -> bool {
        self.clocks.extract_if(timer..=timer, |_, gait| *gait == Gait::Runs).next().is_some()
    }
}
