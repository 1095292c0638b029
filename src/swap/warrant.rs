//! The proof without which no old server can be harmed.

use crate::address::Address;

/// The new server said READY for an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Ready(());

impl Ready {
    pub(super) fn said() -> Ready {
        Ready(())
    }
}

/// How the new server has let us know that it wants an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    /// By a word: all that is left is to bind.
    Said(Ready),
    /// It listens, or is about to: nothing is known of what else it has to do.
    Listens,
}

/// The new server accepts connections beside the old one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Proof(Wanted);

impl Proof {
    pub(super) fn accepts(wanted: &Wanted) -> Proof {
        Proof(wanted.clone())
    }

    /// One more socket is to be proven.
    pub(super) fn undone(&self) -> Wanted {
        self.0.clone()
    }
}

/// An old server's lock was granted to us.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lock(Vec<Address>);

impl Lock {
    pub(super) fn granted(holds: Vec<Address>) -> Lock {
        Lock(holds)
    }

    pub(super) fn holds(&self) -> &[Address] {
        &self.0
    }
}

/// The proof that a new server is ready, on a shared port that it accepts, and that the lock of every old
/// server is held: the effects that harm an old server carry it, and there is no other way to make one
/// (promises 1 and 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Warrant(());

impl Warrant {
    /// In plain order.
    pub(super) fn new<'a>(_: &Ready, locks: impl IntoIterator<Item = Option<&'a Lock>>) -> Option<Warrant> {
        locks.into_iter().all(|lock| lock.is_some()).then_some(Warrant(()))
    }

    /// On a shared port.
    pub(super) fn proven<'a>(_: &Proof, locks: impl IntoIterator<Item = Option<&'a Lock>>) -> Option<Warrant> {
        locks.into_iter().all(|lock| lock.is_some()).then_some(Warrant(()))
    }
}
