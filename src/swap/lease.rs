//! Who has the lock of a server, and how far its drain is.

use super::words::{ClaimerId, Parting};

/// Who has the lock of the server, and how far its drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum Lease {
    #[default]
    Free,
    Lent(ClaimerId),
    /// New connections of its shared port go elsewhere. `None`: nobody has the lock, since the claimer has gone away
    /// and a newer server serves.
    Draining(Option<ClaimerId>, Drainage),
}

/// How far the drain of the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Drainage {
    /// Something may be on its way to the server.
    Arriving,
    /// Something may be, and the time for the drain is up.
    Overdue,
    /// Nothing is any more.
    Quiesced,
    /// Requests are kept from the server for a moment, before it leaves.
    Parking(Parting),
}

impl Lease {
    pub fn claimer(self) -> Option<ClaimerId> {
        match self {
            Lease::Free => None,
            Lease::Lent(claimer) => Some(claimer),
            Lease::Draining(claimer, _) => claimer,
        }
    }

    /// Gives the lock to somebody, or takes it back.
    pub fn lend(&mut self, to: Option<ClaimerId>) {
        *self = match (*self, to) {
            (Lease::Draining(_, how), to) => Lease::Draining(to, how),
            (_, Some(claimer)) => Lease::Lent(claimer),
            (_, None) => Lease::Free,
        };
    }

    pub fn is_draining(self) -> bool {
        matches!(self, Lease::Draining(..))
    }

    /// Whether the server drains, and nothing ends that yet.
    pub fn may_be_hastened(self) -> bool {
        matches!(self, Lease::Draining(_, Drainage::Arriving | Drainage::Quiesced))
    }

    /// The server drains no more; what it was before.
    pub fn stay(&mut self) -> Lease {
        let before = *self;
        if let Lease::Draining(claimer, _) = before {
            *self = claimer.map_or(Lease::Free, Lease::Lent);
        }
        before
    }
}
