//! What both sides of a generation know of its own server: how far it is, its addresses and its clocks.

#![forbid(unsafe_code)]

use super::clocks::Clocks;
use super::slots::Slots;
use super::words::Settings;
use crate::address::Address;

/// Our own server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Ours {
    pub(super) settings: Settings,
    pub(super) stage: Stage,
    pub(super) slots: Slots,
    pub(super) clocks: Clocks,
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
    /// The new server did not make it: it ends with this status.
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
}
