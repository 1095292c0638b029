//! The steps of a swap, which of them take time, and the proof without which no old server can be
//! harmed.

#![forbid(unsafe_code)]

use crate::address::Address;

/// Where the swap of an old server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The new server gets ready; the old one is untouched.
    Prepare,
    /// New connections go to the new server.
    Switch,
    /// The old server finishes what it has.
    Drain,
    /// The old server is told to go.
    Takedown,
}

/// The order in which a swap runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// Close, then bind: no two servers on one port.
    Plain,
    /// Old and new share the port.
    Shared,
}

impl Order {
    /// Whether the step takes no time of its own: in plain order there is nothing to switch and no
    /// way to drain before the takedown.
    pub fn is_instant(self, step: Step) -> bool {
        match (self, step) {
            (Order::Plain, Step::Switch | Step::Drain) => true,
            (Order::Plain, Step::Prepare | Step::Takedown) => false,
            (Order::Shared, Step::Switch) => true,
            (Order::Shared, Step::Prepare | Step::Drain | Step::Takedown) => false,
        }
    }

    /// The first step from `step` on that takes time.
    pub fn next_that_takes_time(self, step: Step) -> Step {
        [Step::Prepare, Step::Switch, Step::Drain, Step::Takedown]
            .into_iter()
            .find(|&s| s >= step && !self.is_instant(s))
            .unwrap_or(Step::Takedown)
    }
}

/// The new server said READY for an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Ready(());

impl Ready {
    pub(super) fn said() -> Ready {
        Ready(())
    }
}

/// The new server accepts connections beside the old one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Proof(Ready);

impl Proof {
    pub(super) fn accepts(ready: &Ready) -> Proof {
        Proof(ready.clone())
    }

    /// One more socket is to be proven.
    pub(super) fn undone(&self) -> Ready {
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
