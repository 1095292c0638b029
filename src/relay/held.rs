//! Connections that are held while their server ends.

#![forbid(unsafe_code)]

use super::grip::{Grip, Handle};
use super::parking;
use super::waiting::{Kept, Patience};
use crate::drain;
use crate::sys::clock::Instant;
use std::collections::BTreeSet;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How long a server that was told to stop may take to let go of a connection that is parked. One that waits for its clients
/// to end answers them itself.
const LETS_GO_WITHIN: Duration = Duration::from_millis(500);
/// Shortest time that a request is given to be answered.
const EXCHANGE_MIN: Duration = Duration::from_secs(10);

/// Connections between two requests, of a server that was told to stop. Their filters are on.
#[derive(Debug)]
pub struct Held {
    grip: Grip,
    /// How much the server had sent on each.
    sent: Vec<u64>,
    told: Instant,
    drain: Duration,
}

impl Held {
    /// Holds what may be held, and lets go of all else; `None` if that is all. `drain`: the server's `--drain`.
    pub(super) fn of(mut grip: Grip, drain: Duration) -> Option<Held> {
        let (now, mut sent) = (Instant::now(), Vec::new());
        grip.handles.retain_mut(|handle| match handle.look(now) {
            Some(look) if handle.parking.may_be_held(&look) => {
                sent.push(look.sent_first);
                true
            }
            Some(_) | None => false,
        });
        grip.guard_anew();
        (!grip.handles.is_empty()).then_some(Held { grip, sent, told: now, drain })
    }

    /// Whether all have been let go.
    pub fn is_over(&self) -> bool {
        self.grip.handles.is_empty()
    }

    /// How long those have that [`Held::look`] gives.
    pub fn patience(&self) -> Patience {
        Patience { silent: drain::rest(self.drain), exchange: self.drain.max(EXCHANGE_MIN) }
    }

    /// Gives the connections that their server does not hold any more, without their filters. `holds`: the sockets that the
    /// server has, all its processes; `None` if that cannot be seen.
    pub fn look(&mut self, holds: impl FnOnce() -> Option<BTreeSet<u32>>) -> Vec<Kept> {
        let is_late = self.told.elapsed() > LETS_GO_WITHIN;
        let is_gone = |handle: &Handle| !handle.is_servers();
        if !is_late && !self.grip.handles.iter().any(is_gone) {
            return Vec::new();
        }
        // Another process of the server's may have it.
        let holds = holds();
        let mut free = Vec::new();
        let handles = std::mem::take(&mut self.grip.handles).into_iter().zip(std::mem::take(&mut self.sent));
        for (handle, sent) in handles {
            match &holds {
                Some(holds) if !holds.contains(&handle.connection.inode) => free.extend(relayed(handle, sent)),
                // From here on it is as if we had never had it.
                Some(_) | None if is_late => drop(handle),
                Some(_) | None => {
                    self.grip.handles.push(handle);
                    self.sent.push(sent);
                }
            }
        }
        if self.is_over() {
            self.grip.guard = None;
        }
        free
    }
}

/// A connection whose server is gone, ready to be relayed. It is closed at once if the server has said more, or may have
/// read something that it has not answered.
fn relayed(handle: Handle, sent: u64) -> Option<Kept> {
    let is_between = handle.socket.look().is_ok_and(|look| parking::is_at_rest(&look) && look.sent_first == sent);
    let route = handle.route;
    // This lifts the filter.
    let socket = handle.socket.try_clone();
    drop(handle);
    let stream = TcpStream::from(OwnedFd::from(socket.ok()?));
    if !is_between {
        // The guard may have it for a moment longer.
        let _ = stream.shutdown(Shutdown::Both);
        return None;
    }
    Some(Kept { stream, route })
}
