//! Connections that are held while their server ends.

#![forbid(unsafe_code)]

use super::grip::{Grip, Handle};
use super::parking;
use super::waiting::{Kept, Patience, Tally};
use crate::drain;
use crate::sys::clock::Instant;
use crate::sys::steer::Exchanged;
use std::collections::BTreeSet;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How long after a server was told to stop requests are kept from it. One that still has its connections then may wait for
/// its clients to end: it may read them.
const KEPT_FOR: Duration = Duration::from_millis(500);
/// Shortest time that a request is given to be answered.
const EXCHANGE_MIN: Duration = Duration::from_secs(10);

/// Shortest and longest wait for a request: one that was kept back comes again after 1.6 s, and later if it was kept back
/// before.
const SILENT_MIN: Duration = Duration::from_secs(4);
const SILENT_MAX: Duration = Duration::from_secs(15);

/// Connections between two requests, of a server that was told to stop.
#[derive(Debug)]
pub struct Held {
    grip: Grip,
    /// How each was when the server was told.
    before: Vec<Exchanged>,
    told: Instant,
    drain: Duration,
}

/// What is left of the connections of a server that was told to stop.
#[derive(Debug, Default)]
pub struct Remains {
    /// Those that it may still have.
    pub held: Option<Held>,
    /// How many threads wait for requests on others.
    pub waiting: usize,
    /// What became of the requests so far.
    pub tally: Tally,
}

impl Remains {
    /// Whether nothing waits any more.
    pub fn is_over(&self) -> bool {
        self.held.is_none() && self.waiting == 0
    }
}

impl Held {
    /// Holds what may be held, and lets go of all else; `None` if that is all. `drain`: the server's `--drain`.
    pub(super) fn of(mut grip: Grip, drain: Duration) -> Option<Held> {
        let (now, mut before) = (Instant::now(), Vec::new());
        grip.handles.retain_mut(|handle| match handle.look(now) {
            Some(look) if handle.parking.may_be_held(&look) => {
                before.push(look.exchanged());
                true
            }
            Some(_) | None => false,
        });
        grip.guard_anew();
        (!grip.handles.is_empty()).then_some(Held { grip, before, told: now, drain })
    }

    /// Whether all have been let go.
    pub fn is_over(&self) -> bool {
        self.grip.handles.is_empty()
    }

    /// Whether requests are still kept from the server.
    pub fn keeps(&self) -> bool {
        self.grip.guard.is_some()
    }

    /// How long those have that [`Held::look`] gives.
    pub fn patience(&self) -> Patience {
        let silent = drain::rest(self.drain).clamp(SILENT_MIN, SILENT_MAX);
        Patience { silent, exchange: self.drain.max(EXCHANGE_MIN) }
    }

    /// Gives the connections that their server does not hold any more, without their filters. `holds`: the sockets that the
    /// server has, all its processes; `None` if that cannot be seen.
    pub fn look(&mut self, holds: impl FnOnce() -> Option<BTreeSet<u32>>) -> Vec<Kept> {
        if self.told.elapsed() > KEPT_FOR && self.grip.guard.is_some() {
            self.grip.handles.iter().for_each(|handle| _ = handle.socket.unpark());
            self.grip.guard = None;
        }
        // Another process of the server's may have it.
        let is_gone = |handle: &Handle| !handle.is_servers();
        let holds = if self.grip.handles.iter().any(is_gone) { holds() } else { None };
        let mut free = Vec::new();
        let handles = std::mem::take(&mut self.grip.handles).into_iter().zip(std::mem::take(&mut self.before));
        for (handle, before) in handles {
            match &holds {
                Some(holds) if !holds.contains(&handle.connection.inode) => {
                    free.extend(relayed(handle, before, self.drain))
                }
                // The server has read of it, or said something: from here on it is as if we had never had it.
                Some(_) | None if self.grip.guard.is_none() && !is_unchanged(&handle, before) => drop(handle),
                Some(_) | None => {
                    self.grip.handles.push(handle);
                    self.before.push(before);
                }
            }
        }
        if self.is_over() {
            self.grip.guard = None;
        }
        free
    }
}

fn is_unchanged(handle: &Handle, before: Exchanged) -> bool {
    handle.socket.look().is_ok_and(|look| look.exchanged() == before)
}

/// A connection whose server is gone, ready to be relayed. It is closed at once if the server has said more, or may have
/// read something that it has not answered, or if no request is to be waited for.
fn relayed(mut handle: Handle, before: Exchanged, drain: Duration) -> Option<Kept> {
    let now = Instant::now();
    let look = handle.look(now).filter(|look| parking::is_untouched(look, before));
    let is_between = look.is_some_and(|look| handle.parking.may_be_relayed(&look, now, drain::rest(drain)));
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
