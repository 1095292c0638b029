//! Keeping requests from a server that drains, until it is told to go.

#![forbid(unsafe_code)]

use super::attempts::{Attempts, PARKS_BRIEFLY, PARKS_WITHIN, Step};
use super::detecting::{DETECTS_FOR, Detecting};
use super::grip::{Grip, Listing, Wanted};
use super::held::Held;
use super::parking::{FAST, Speaks, Stands};
use super::route::{Reach, Route};
use crate::drain::{self, Connection, Drain, Drained};
use crate::server::Server;
use crate::swap::Parting;
use crate::sys::clock::Instant;
use crate::sys::interfaces;
use crate::sys::net::TcpSocket;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

/// How far the keeping of requests from a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It goes on, or has not begun.
    Open,
    /// Each connection is idle or parked: the server may be told.
    Closed,
    /// The last attempt is over: the server is to be told.
    Over,
}

/// The connections of a server that drains, and what is known of them.
#[derive(Debug)]
pub struct Keeping {
    reach: Reach,
    /// The addresses of this machine.
    own: BTreeSet<IpAddr>,
    /// The server's `--drain`.
    drain: Duration,
    attempts: Attempts,
    stage: Stage,
    /// Those of which something is known, by their inodes.
    speaks: BTreeMap<u32, Speaks>,
    /// Those of the server, a restless one first; none before the first look.
    listed: Option<Vec<Connection>>,
    grip: Grip,
    detecting: Detecting,
    /// When the time for the drain is up.
    ends: Instant,
}

/// Whether the server is told after the attempt that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Early,
    Last,
}

impl Keeping {
    /// Begins with the drain of a server. `drain`: its `--drain`.
    pub fn new(reach: Reach, drain: Duration) -> io::Result<Keeping> {
        let own = interfaces::addresses()?;
        Ok(Keeping {
            reach,
            own,
            drain,
            attempts: Attempts::default(),
            stage: Stage::Early,
            speaks: BTreeMap::new(),
            listed: None,
            grip: Grip::default(),
            detecting: Detecting::default(),
            ends: Instant::now() + drain,
        })
    }

    /// Whether filters are on: looks have to follow soon.
    pub fn is_under_way(&self) -> bool {
        self.attempts.is_under_way() || self.detecting.is_under_way()
    }

    /// The last attempt begins. A server that finishes what it has is not kept waiting for long.
    /// `Over` if there is nothing to wait for.
    pub fn last(&mut self, drain: &Drain, server: &Server, parting: Parting) -> Progress {
        self.stage = Stage::Last;
        let has_none = !self.attempts.is_under_way() && drain.has_none();
        if !self.attempts.is_under_way() && !has_none {
            self.begin(drain, server);
        }
        let within = match parting {
            Parting::IsCutOff => PARKS_WITHIN,
            Parting::DrainsItself => PARKS_BRIEFLY,
        };
        self.attempts.last(Instant::now(), within);
        // What could not be listed is looked for again.
        let waits = !has_none && (self.grip.listing == Listing::Unseen || !self.grip.handles.is_empty());
        if waits { Progress::Open } else { Progress::Over }
    }

    /// Moves on. Nothing is on its way to the server any more; `drained` is how far its drain is by itself.
    pub fn look(&mut self, drain: &Drain, server: &Server, drained: Drained) -> Progress {
        let now = Instant::now();
        let rest = drain::rest(self.drain);
        if drained == Drained::Idle && drain.has_none() && !self.attempts.is_under_way() {
            return Progress::Closed;
        }
        let (mut worst, mut at_rest) = match drained {
            _ if self.attempts.is_under_way() => {
                if self.grip.listing == Listing::Unseen {
                    self.begin(drain, server);
                }
                self.grip.look(drain, now, rest)
            }
            Drained::Idle => (Stands::Idle, 0),
            Drained::Arriving | Drained::Quiesced => (self.worst(drain, server, rest), 0),
        };
        let mut step = self.attempts.next(worst, at_rest, now);
        if step == Step::Begin {
            self.begin(drain, server);
            (worst, at_rest) = self.grip.look(drain, now, rest);
            step = self.attempts.next(worst, at_rest, now);
        }
        match step {
            Step::Wait | Step::Begin => {
                self.detect(drain, server, rest);
                Progress::Open
            }
            Step::GiveUp => {
                self.note();
                self.grip = Grip::default();
                Progress::Open
            }
            Step::Close if self.stage == Stage::Last => Progress::Over,
            // One that had left the queue of a listener, but was no file of the server's yet, is one by now.
            Step::Close if drained != Drained::Idle && self.finds_more(drain, server) => Progress::Open,
            Step::Close => Progress::Closed,
        }
    }

    /// The server is told to go, or is gone: what is parked is held, and all else let go.
    pub fn hold(self) -> Option<Held> {
        Held::of(self.grip, self.drain)
    }

    /// Inodes of the connections that would be held now.
    pub fn held(&mut self) -> BTreeSet<u32> {
        let now = Instant::now();
        let handles = self.grip.handles.iter_mut();
        let may =
            handles.filter_map(|h| h.look(now).filter(|look| h.parking.is_between(look)).map(|_| h.connection.inode));
        may.collect()
    }

    /// Finds out who speaks HTTP/1 of those that are slow.
    fn detect(&mut self, drain: &Drain, server: &Server, rest: Duration) {
        let now = Instant::now();
        if self.attempts.is_under_way() || now + DETECTS_FOR < self.ends {
            return;
        }
        self.speaks.extend(self.detecting.look(drain, now, rest));
        if self.detecting.scans(now) {
            let is_slow = |c: &&Connection| {
                let socket = drain.find(c).ok().flatten();
                socket.is_some_and(|socket| stands(&socket, rest, self.route(c)) == Stands::Slow)
            };
            let slow = self.listed.iter().flatten().filter(is_slow).filter_map(|c| self.wanted(c)).collect();
            self.detecting.add(server, slow, now);
        }
    }

    /// Whether the server has connections that nobody has seen yet. The filters go on these too.
    fn finds_more(&mut self, drain: &Drain, server: &Server) -> bool {
        // What cannot be looked at may be there.
        let Ok(all) = drain.connections(server) else { return true };
        let new = self.grip.unknown(all);
        let wanted = new.iter().filter_map(|c| self.wanted(c)).collect();
        self.grip.extend(server, &new, wanted);
        !new.is_empty()
    }

    fn begin(&mut self, drain: &Drain, server: &Server) {
        self.detecting = Detecting::default();
        let mut all = match drain.connections(server) {
            Ok(all) => all,
            // Nobody knows what is busy.
            Err(_) => return self.grip = Grip::default(),
        };
        let rest = drain::rest(self.drain);
        // There may be more than we can have handles on.
        all.sort_by_cached_key(|c| drain.find(c).is_ok_and(|socket| socket.is_none_or(|s| !s.is_busy(rest))));
        let wanted = all.iter().filter_map(|c| self.wanted(c)).collect();
        self.grip = Grip { listing: Listing::Seen, ..Grip::default() };
        self.grip.extend(server, &all, wanted);
        self.listed = Some(all);
    }

    /// Remembers what the attempt has taught.
    fn note(&mut self) {
        for handle in &self.grip.handles {
            self.speaks.insert(handle.connection.inode, handle.parking.speaks());
        }
        self.speaks.extend(self.grip.barred.iter().copied());
    }

    fn speaks(&self, inode: u32) -> Speaks {
        self.speaks.get(&inode).copied().unwrap_or_default()
    }

    /// A connection that may be parked.
    fn wanted(&self, connection: &Connection) -> Option<Wanted> {
        let (route, speaks) = (self.route(connection)?, self.speaks(connection.inode));
        Some(Wanted { connection: *connection, route, speaks })
    }

    /// How a request on it is relayed; `None` if it is not.
    fn route(&self, connection: &Connection) -> Option<Route> {
        let ends = connection.ends;
        // A socket of ours would not be bound to the same interface.
        let may = ends.interface == 0 && self.speaks(connection.inode).may_be_parked();
        may.then(|| Route::of(ends.local, ends.peer, &self.own, self.reach)).flatten()
    }

    /// How the most restless connection stands, without filters. A slow one that is found is looked at first the next
    /// time: as long as it is slow the others need no look.
    fn worst(&mut self, drain: &Drain, server: &Server, rest: Duration) -> Stands {
        if self.listed.is_none() {
            self.listed = drain.connections(server).ok();
        }
        let Some(mut listed) = self.listed.take() else { return Stands::Slow };
        let (mut worst, mut at) = (Stands::Idle, 0);
        while let Some(connection) = listed.get(at) {
            let stands = match drain.find(connection) {
                Ok(None) => {
                    listed.swap_remove(at);
                    continue;
                }
                Ok(Some(socket)) => stands(&socket, rest, self.route(connection)),
                Err(_) => Stands::Slow,
            };
            worst = worst.max(stands);
            if stands == Stands::Slow {
                listed.swap(0, at);
                break;
            }
            at += 1;
        }
        self.listed = Some(listed);
        worst
    }
}

/// How a connection without a filter stands. One that cannot be parked has to become idle.
fn stands(socket: &TcpSocket, rest: Duration, route: Option<Route>) -> Stands {
    let is_fast = || socket.moved.is_some_and(|moved| Duration::from_millis(moved.received.into()) < FAST);
    match route {
        _ if !socket.is_busy(rest) => Stands::Idle,
        Some(_) if is_fast() => Stands::Fast,
        Some(_) | None => Stands::Slow,
    }
}
