//! Whose socket a member of a group is, whether the old server still has it, and how far the new one is proven by it.

use crate::procfs::Held;
use crate::sys::clock::Instant;
use crate::sys::net::Ends;
use crate::sys::steer::{Probe, Socket};
use std::time::Duration;

/// How long a probe may take before somebody looks whether its socket is still the server's.
const PROBE_PATIENCE: Duration = Duration::from_millis(250);
/// How long a server that has accepted is watched: one that crashes at its start does so right away.
pub(super) const STEADY: Duration = Duration::from_millis(100);
/// How long an old server that has closed its last listener may take to open another one.
pub(super) const REOPENS_WITHIN: Duration = Duration::from_millis(250);

/// One socket of a group.
#[derive(Debug)]
pub(super) struct Member {
    pub inode: u32,
    pub side: Side,
}

/// Whose socket a member is.
#[derive(Debug)]
pub(super) enum Side {
    /// The old server's.
    Old(Handle),
    /// The old server's, and we have let go of it: it stays a member until the kernel closes it.
    Dropped,
    /// The new server's. We keep no handle on it: what its server closes is closed.
    New(Proof),
}

/// A listener of an old server that we keep open, so that the order of its group stays.
#[derive(Debug)]
pub(super) struct Handle {
    pub socket: Socket,
    /// It gets connections until the switch.
    pub serves: bool,
    /// Where it was last seen to be open.
    pub seen: Option<Held>,
    /// Since when nobody but us seems to have it open; `None` while somebody does.
    pub closed: Option<Instant>,
}

impl Member {
    pub(super) fn is_new(&self) -> bool {
        self.proof().is_some()
    }

    pub(super) fn serves(&self) -> bool {
        self.handle().is_some_and(|handle| handle.serves)
    }

    pub(super) fn handle(&self) -> Option<&Handle> {
        if let Side::Old(handle) = &self.side { Some(handle) } else { None }
    }

    pub(super) fn proof(&self) -> Option<&Proof> {
        if let Side::New(proof) = &self.side { Some(proof) } else { None }
    }

    pub(super) fn proof_mut(&mut self) -> Option<&mut Proof> {
        if let Side::New(proof) = &mut self.side { Some(proof) } else { None }
    }
}

/// How far a listener of the new server is on its way to be proven.
#[derive(Debug)]
pub(super) enum Proof {
    /// Not yet.
    None,
    /// A probe is to be sent as soon as the port is steered for it.
    Begun(Probe),
    /// A probe is on its way since then.
    Probing(Probe, Instant),
    /// The probe has connected, and we have closed it: with TCP_DEFER_ACCEPT an open one would show in no queue.
    Queued(Ends, Instant),
    /// The new server has accepted the probe; seen then for the first time.
    Accepted(Instant),
    /// The server still had its sockets a moment later (the primary of a cluster accepts for workers that crash).
    Proven,
}

impl Proof {
    /// Whether it is neither finished nor due for a look at the server's sockets.
    pub(super) fn is_under_way(&self) -> bool {
        !matches!(self, Proof::None | Proof::Proven) && !self.is_due()
    }

    /// Whether somebody should look if the server still has its sockets.
    pub(super) fn is_due(&self) -> bool {
        match self {
            // The server may have closed the socket in whose queue the probe is.
            Proof::Probing(_, since) | Proof::Queued(_, since) => since.elapsed() > PROBE_PATIENCE,
            Proof::Accepted(since) => since.elapsed() > STEADY,
            Proof::None | Proof::Begun(_) | Proof::Proven => false,
        }
    }

    /// The members have changed: what was under way may have gone to another.
    pub(super) fn begin_anew(&mut self) {
        if !matches!(self, Proof::Proven) {
            *self = Proof::None;
        }
    }
}
