//! Finding out which clients speak HTTP/1, near the end of a drain. A filter on a connection of which nobody knows it comes
//! off with the first request that it drops, which is late by that once.

#![forbid(unsafe_code)]

use super::grip::{Grip, Wanted};
use super::parking::Speaks;
use crate::drain::Drain;
use crate::server::Server;
use crate::sys::clock::Instant;
use std::collections::BTreeSet;
use std::time::Duration;

/// For how long before the time of the drain is up: what the server closes meanwhile closes a look later.
pub const DETECTS_FOR: Duration = Duration::from_secs(10);
/// How often all connections are looked at for it, at most, and at most this part of the time.
const SCANS_EVERY: Duration = Duration::from_millis(500);
const SCANS_PART: u32 = 20;
/// Most filters at a time.
const DETECTS_MAX: usize = 1024;

/// Filters on slow connections.
#[derive(Debug, Default)]
pub struct Detecting {
    grip: Grip,
    /// When all are looked at again.
    scans_at: Option<Instant>,
}

impl Detecting {
    /// Whether filters are on.
    pub fn is_under_way(&self) -> bool {
        !self.grip.handles.is_empty()
    }

    /// Whether the connections are to be looked at for new ones.
    pub fn scans(&self, now: Instant) -> bool {
        self.scans_at.is_none_or(|at| at <= now)
    }

    /// Puts filters on connections that have none yet. `since`: when the look at all connections began.
    pub fn add(&mut self, server: &Server, mut wanted: Vec<Wanted>, since: Instant) {
        let has: BTreeSet<u32> = self.grip.handles.iter().map(|handle| handle.connection.inode).collect();
        wanted.retain(|w| w.speaks == Speaks::Unknown && !has.contains(&w.connection.inode));
        wanted.truncate(DETECTS_MAX.saturating_sub(has.len()));
        self.scans_at = Some(Instant::now() + SCANS_EVERY.max(since.elapsed() * SCANS_PART));
        if !wanted.is_empty() {
            self.grip.add(server, wanted);
        }
    }

    /// Gives what was found out, by the inodes, and lets go of those whose client has sent a request.
    pub fn look(&mut self, drain: &Drain, now: Instant, rest: Duration) -> Vec<(u32, Speaks)> {
        self.grip.look(drain, now, rest);
        self.grip.others.clear();
        let found = self.grip.handles.iter().map(|h| (h.connection.inode, h.parking.speaks()));
        let mut known: Vec<(u32, Speaks)> = found.filter(|(_, speaks)| *speaks == Speaks::Http).collect();
        known.append(&mut self.grip.barred);
        self.grip.keep(|handle| handle.parking.speaks() != Speaks::Http);
        known
    }
}
