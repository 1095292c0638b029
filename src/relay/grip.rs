//! Handles of ours on the connections of a server, with the filters on them.

#![forbid(unsafe_code)]

use super::parking::{Parking, Speaks, Stands};
use super::route::Route;
use crate::drain::{Connection, Drain};
use crate::procfs;
use crate::server::{Found, Server};
use crate::sys::clock::Instant;
use crate::sys::guard::Guard;
use crate::sys::process::open_files_max;
use crate::sys::steer::{Look, Socket};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

/// Most connections on which handles are held at a time, if as many open files are allowed twice.
const HANDLES_MAX: usize = 16_384;

/// A handle on a connection that may be parked. The filter goes with it.
#[derive(Debug)]
pub struct Handle {
    pub(super) socket: Socket,
    pub(super) connection: Connection,
    /// Where the server has it.
    pub(super) at: procfs::Held,
    pub(super) route: Route,
    pub(super) parking: Parking,
}

impl Handle {
    /// Puts the filter on. `false` if it cannot be put there, or must not.
    fn park(&mut self) -> bool {
        let parked = || -> io::Result<(Look, Look)> {
            let before = self.socket.look()?;
            if !self.socket.park()? {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            Ok((before, self.socket.look()?))
        };
        match parked() {
            Ok((before, after)) => self.parking.put_on(before, after),
            Err(_) => return false,
        }
        true
    }

    /// Whether the server has it where it was found. Another process of the server's may have it too.
    pub(super) fn is_servers(&self) -> bool {
        self.at.is_still(self.connection.inode)
    }

    /// Looks at it; `None` if it cannot be seen.
    pub(super) fn look(&mut self, now: Instant) -> Option<Look> {
        let look = self.socket.look().ok()?;
        self.parking.sees(&look, now);
        Some(look)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.socket.unpark();
    }
}

/// Handles on all connections that can be parked, and who lifts the filters if we die. Dropping it lifts them.
#[derive(Debug, Default)]
pub struct Grip {
    // Dropped in this order: the filters are off before the guard is gone.
    pub(super) handles: Vec<Handle>,
    pub(super) guard: Option<Guard>,
    /// Connections that are not to be parked, or cannot be.
    pub(super) others: Vec<Connection>,
    /// Inodes of those on which no filter is to be put again, and why.
    pub(super) barred: Vec<(u32, Speaks)>,
    /// Whether these are all connections.
    pub(super) listing: Listing,
}

/// Whether the connections of a server could be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Listing {
    /// They could not, or were not yet: any may be busy.
    #[default]
    Unseen,
    Seen,
}

/// A connection that may be parked.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The connection.
    pub connection: Connection,
    /// How its request is relayed.
    pub route: Route,
    /// What is known of it.
    pub speaks: Speaks,
}

impl Grip {
    /// Takes hold of connections of a server and puts the filters on. `wanted`: those that may be parked, those first that
    /// matter most; `all`: these and the others.
    pub fn extend(&mut self, server: &Server, all: &[Connection], wanted: Vec<Wanted>) {
        self.add(server, wanted);
        self.others.extend(self.unknown(all.to_vec()));
    }

    /// Those of these connections that it neither holds nor counts among the others.
    pub fn unknown(&self, mut connections: Vec<Connection>) -> Vec<Connection> {
        let held = self.handles.iter().map(|handle| handle.connection.inode);
        let known: BTreeSet<u32> = held.chain(self.others.iter().map(|c| c.inode)).collect();
        connections.retain(|c| !known.contains(&c.inode));
        connections
    }

    /// Takes hold of more.
    pub fn add(&mut self, server: &Server, wanted: Vec<Wanted>) {
        let room = HANDLES_MAX.min(open_files_max() / 2).saturating_sub(self.handles.len());
        let wanted: BTreeMap<u32, Wanted> = wanted.into_iter().take(room).map(|w| (w.connection.inode, w)).collect();
        let handle = |Found { socket, inode, at }: Found| {
            let Wanted { connection, route, speaks } = *wanted.get(&inode)?;
            Some(Handle { socket, connection, at, route, parking: Parking::new(speaks) })
        };
        let before = self.handles.len();
        self.handles.extend(server.connections(wanted.keys().copied().collect()).into_iter().filter_map(handle));
        if self.handles.len() == before {
            return;
        }
        // Before the filters go on.
        self.guard_anew();
        let (mut at, guarded) = (0, self.handles.len());
        let barred = &mut self.barred;
        self.handles.retain_mut(|handle| {
            at += 1;
            let is_kept = at <= before || handle.park();
            barred.extend((!is_kept).then_some((handle.connection.inode, Speaks::Unparkable)));
            is_kept
        });
        if self.handles.len() != guarded {
            self.guard_anew();
        }
    }

    /// Lets go of those that are not to be kept.
    pub fn keep(&mut self, is_kept: impl FnMut(&Handle) -> bool) {
        let before = self.handles.len();
        self.handles.retain(is_kept);
        if self.handles.len() != before {
            self.guard_anew();
        }
    }

    /// How the most restless connection stands, and how many are idle or parked. Those that their server has closed, or
    /// whose client asks ahead, are let go.
    pub fn look(&mut self, drain: &Drain, now: Instant, rest: Duration) -> (Stands, usize) {
        let mut worst = match self.listing {
            Listing::Seen => Stands::Idle,
            Listing::Unseen => Stands::Slow,
        };
        let mut at_rest = 0;
        let mut stands = |stands: Stands| {
            worst = worst.max(stands);
            at_rest += usize::from(stands <= Stands::Parked);
        };
        let before = self.handles.len();
        let (others, barred) = (&mut self.others, &mut self.barred);
        self.handles.retain_mut(|handle| {
            let look = if handle.is_servers() { handle.look(now) } else { None };
            let speaks = handle.parking.speaks();
            barred.extend((!speaks.may_be_parked()).then_some((handle.connection.inode, speaks)));
            let Some(look) = look.filter(|_| speaks.may_be_parked()) else {
                // If it is closed, that shows once we have let go of it.
                others.push(handle.connection);
                return false;
            };
            stands(handle.parking.stands(&look, now, rest));
            true
        });
        if self.handles.len() != before {
            self.guard_anew();
        }
        for connection in &self.others {
            stands(match drain.find(connection) {
                Ok(None) => Stands::Idle,
                Ok(Some(socket)) if !socket.is_busy(rest) => Stands::Idle,
                // It cannot be parked, and neither can one that cannot be asked.
                Ok(Some(_)) | Err(_) => Stands::Slow,
            });
        }
        (worst, at_rest)
    }

    /// The guard is to hold what we hold: its hold too keeps a connection open. Without one the filters come off, and the
    /// connections count as those that cannot be parked.
    pub(super) fn guard_anew(&mut self) {
        let guard =
            if self.handles.is_empty() { None } else { Guard::start(self.handles.iter().map(|h| &h.socket)).ok() };
        if guard.is_none() {
            self.others.extend(self.handles.drain(..).map(|handle| handle.connection));
        }
        self.guard = guard;
    }
}
