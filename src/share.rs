//! Port sharing: old and new listen on one port, and one small program per group of sockets says who
//! gets new connections. The new side steers ([`Sharing`]), the old side drains ([`Drain`]).

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::server::Server;
use crate::sys::net::{self, Diag, Ends};
use crate::sys::steer::{Probe, Range, Socket};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What makes sockets one group: equal address and port, and whether a v6 one takes v4 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    address: SocketAddr,
    dual: bool,
}

impl Place {
    fn of(socket: &Socket) -> io::Result<Place> {
        Ok(Place { address: socket.address()?, dual: socket.is_dual() })
    }
}

/// How far a group is.
#[derive(Debug)]
enum Phase {
    /// All to the old sockets.
    Steered,
    /// All to the old sockets, but for a probe to the first new one.
    Probing(Option<Probe>),
    /// The new server has accepted the probe.
    Proven,
    /// All to the new sockets.
    Switched,
}

/// Sockets of one place, in the order of their joining: the index by which the program names them. Our
/// handles on the old ones freeze that order, whatever their server closes.
#[derive(Debug)]
struct Group {
    /// The number of the old server.
    old: u64,
    place: Place,
    olds: Vec<Socket>,
    /// Held until the switch only: from then on nothing but their server keeps them open, so that its death
    /// at once gives the port back.
    news: Vec<Socket>,
    /// How many new ones there are.
    joined: u32,
    phase: Phase,
}

impl Group {
    fn olds(&self) -> Range {
        Range { first: 0, count: self.olds.len() as u32 }
    }

    fn news(&self) -> Range {
        Range { first: self.olds.len() as u32, count: self.joined }
    }

    fn steer(&self) -> io::Result<()> {
        match (&self.phase, self.olds.first()) {
            (_, None) => Ok(()),
            (Phase::Probing(Some(probe)), Some(old)) => old.steer_with_probe(self.olds(), probe, self.news().first),
            (Phase::Steered | Phase::Probing(None) | Phase::Proven, Some(old)) => old.steer(self.olds()),
            (Phase::Switched, Some(old)) => old.steer(self.news()),
        }
    }

    /// Every member is one that we know: an index means what we think it does.
    fn is_known(&self) -> io::Result<bool> {
        let mut inodes = Vec::new();
        for socket in self.olds.iter().chain(&self.news) {
            inodes.push(socket.inode()?);
        }
        let members = net::listeners()?;
        Ok(members.iter().filter(|s| s.ends.local == self.place.address).all(|s| inodes.contains(&s.inode)))
    }

    /// Lets the old sockets go, and the group be as if there had never been any. When a member leaves,
    /// the last one takes its index, and an index past the end falls back to the whole group: with as
    /// many new sockets as old ones the first new index names a new one, or nobody, all the while.
    fn leave_to_new(self, listeners: &[Socket]) {
        let here = |socket: &&Socket| Place::of(socket).is_ok_and(|place| place == self.place);
        let Some(target) = listeners.iter().find(here) else { return };
        if self.news().count < self.olds().count {
            // For a moment the index may name an old socket: whoever meets it tries again.
            for old in &self.olds {
                let _ = old.refuse_newcomers();
            }
        }
        let _ = target.steer(Range { first: self.news().first, count: 1 });
        drop(self.olds);
        let _ = target.release();
    }

    /// Lets the new sockets go: the old server serves alone.
    fn leave_to_old(mut self) {
        if let Some(old) = self.olds.first() {
            let _ = old.steer(Range { first: 0, count: self.olds.len() as u32 });
            for socket in &self.olds {
                let _ = socket.accept_newcomers();
            }
        }
        // New ones are last: nothing moves when they go from the end.
        while self.news.pop().is_some() {}
        if let Some(old) = self.olds.first() {
            let _ = old.release();
        }
    }
}

/// A swap on shared ports, as the new side sees it.
#[derive(Debug, Default)]
pub struct Sharing {
    groups: Vec<Group>,
}

impl Sharing {
    /// Adds the sockets of an old server, under its number. The error says why they cannot be shared.
    pub fn add_old(&mut self, old: u64, sockets: Vec<Socket>) -> Result<(), String> {
        let failed = |e: io::Error| crate::error::reason(&e);
        if sockets.is_empty() {
            return Err("its listeners cannot be had".into());
        }
        if !sockets.iter().all(Socket::shares) {
            return Err("the old server does not share its port".into());
        }
        let mut places = Vec::new();
        for socket in sockets {
            let place = Place::of(&socket).map_err(failed)?;
            places.push(place);
            match self.groups.iter_mut().find(|g| g.place == place) {
                Some(group) => group.olds.push(socket),
                None => {
                    let (olds, news) = (vec![socket], Vec::new());
                    self.groups.push(Group { old, place, olds, news, joined: 0, phase: Phase::Steered });
                }
            }
        }
        for group in self.groups.iter().filter(|g| places.contains(&g.place)) {
            if !group.is_known().map_err(failed)? {
                return Err("a stranger listens on the same port".into());
            }
            // A program of the server's own could not be put back.
            group.steer().map_err(failed)?;
        }
        Ok(())
    }

    /// listen(2) for the new server, while all connections stay where they are.
    pub fn join(&mut self, socket: Socket, backlog: i32) -> io::Result<()> {
        let place = Place::of(&socket)?;
        let Some(group) = self.groups.iter_mut().find(|g| g.place == place) else {
            return socket.listen(backlog);
        };
        group.steer()?;
        socket.listen(backlog)?;
        group.joined += 1;
        if !matches!(group.phase, Phase::Switched) {
            group.news.push(socket);
        }
        group.steer()
    }

    /// Moves every probe a step on; `true` when all places of the address that both servers have are
    /// proven. `prove`: with a probe, or take listening for it. `complete`: only if the new server
    /// has all places that the old one has.
    pub fn is_proven(&mut self, address: &Address, prove: bool, complete: bool) -> bool {
        let mut all = true;
        for group in self.groups.iter_mut().filter(|g| address.collides(&g.place.address.into())) {
            if group.joined == 0 {
                all &= !complete;
                continue;
            }
            if !prove && matches!(group.phase, Phase::Steered) {
                group.phase = Phase::Proven;
            }
            all &= step_probe(group).unwrap_or(false);
        }
        all
    }

    /// From here new connections go to the new server.
    pub fn switch(&mut self) -> io::Result<()> {
        for group in &mut self.groups {
            if group.joined > 0 {
                group.phase = Phase::Switched;
                group.steer()?;
                group.news.clear();
            } else {
                // The new server is at another place of the same port: whoever still comes here tries
                // again, and meets the new one once this socket is closed.
                for old in &group.olds {
                    old.refuse_newcomers()?;
                }
            }
        }
        Ok(())
    }

    /// From here new connections go to the old servers again. What went to the new one stays there.
    pub fn switch_back(&mut self) {
        for group in &mut self.groups {
            group.phase = Phase::Steered;
            let _ = group.steer();
            for old in &group.olds {
                let _ = old.accept_newcomers();
            }
        }
    }

    /// This old server stays: nothing is wanted of it any more.
    pub fn let_go(&mut self, old: u64) {
        for group in self.groups.extract_if(.., |g| g.old == old) {
            group.leave_to_old();
        }
    }

    /// The old server is gone, and these are the listeners of the new one.
    pub fn finish(self, listeners: &[Socket]) {
        for group in self.groups {
            group.leave_to_new(listeners);
        }
    }

    /// The new server is gone, or gives up.
    pub fn turn_back(self) {
        for group in self.groups {
            group.leave_to_old();
        }
    }
}

/// Close first, then look: a socket with TCP_DEFER_ACCEPT shows an open probe in no queue.
fn step_probe(group: &mut Group) -> io::Result<bool> {
    match &group.phase {
        Phase::Proven | Phase::Switched => return Ok(true),
        Phase::Steered => {
            let probe = Probe::new(group.place.address)?;
            group.phase = Phase::Probing(Some(probe));
            group.steer()?;
            if let Phase::Probing(Some(probe)) = &group.phase {
                probe.connect()?;
            }
        }
        Phase::Probing(Some(probe)) => match probe.connected() {
            Ok(false) => {}
            Ok(true) => {
                group.phase = Phase::Probing(None);
                group.steer()?;
            }
            // Refused or reset: the next look begins anew.
            Err(_) => group.phase = Phase::Steered,
        },
        Phase::Probing(None) => {
            if group.news.first().is_some_and(|new| new.queue().is_ok_and(|len| len == 0)) {
                group.phase = Phase::Proven;
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Connections are still on their way to the server.
    Arriving,
    /// Nothing can be lost any more by closing the listeners.
    Quiesced,
    /// No connection is busy.
    Idle,
}

/// Longest time for handshakes that were under way: whoever needs longer has lost packets.
const HANDSHAKES_MAX: Duration = Duration::from_secs(3);

/// The drain of a server that gets no new connections any more.
pub struct Drain {
    diag: Diag,
    listeners: Vec<Socket>,
    handshakes: Vec<Ends>,
    until: Instant,
    connections: Option<Vec<Ends>>,
    busy: usize,
    idle_looks: u32,
}

impl Drain {
    /// Begins right after the switch: what is under way now is the old server's.
    pub fn start(listeners: Vec<Socket>) -> io::Result<Drain> {
        let places: Vec<SocketAddr> = listeners.iter().filter_map(|s| s.address().ok()).collect();
        let ours = |ends: &Ends| places.iter().any(|p| p.port() == ends.local.port());
        let handshakes = net::handshakes()?.into_iter().map(|s| s.ends).filter(ours).collect();
        Ok(Drain {
            diag: Diag::open()?,
            listeners,
            handshakes,
            until: Instant::now() + HANDSHAKES_MAX,
            connections: None,
            busy: 0,
            idle_looks: 0,
        })
    }

    /// Looks again.
    pub fn look(&mut self, server: &Server) -> Drained {
        let diag = &self.diag;
        if self.connections.is_none() {
            self.handshakes.retain(|ends| diag.find(*ends).is_ok_and(|s| s.is_some_and(|s| s.is_handshake())));
            let queued = self.listeners.iter().any(|l| l.queue().is_ok_and(|len| len > 0));
            if (queued || !self.handshakes.is_empty()) && Instant::now() < self.until {
                return Drained::Arriving;
            }
        }
        // The list is made anew for the look that confirms: a connection that had left the queue at the
        // first, but was not yet a file of the server's, is one by now.
        if self.connections.is_none() || self.idle_looks == 1 {
            let inodes = server.socket_inodes();
            let connections = net::connections().unwrap_or_default();
            self.connections = Some(connections.iter().filter(|s| inodes.contains(&s.inode)).map(|s| s.ends).collect());
        }
        let mut busy = 0;
        if let Some(connections) = &mut self.connections {
            connections.retain(|ends| match diag.find(*ends) {
                Ok(Some(socket)) => {
                    busy += usize::from(socket.is_busy());
                    true
                }
                Ok(None) => false,
                Err(_) => true,
            });
        }
        self.busy = busy;
        self.idle_looks = if busy == 0 { self.idle_looks + 1 } else { 0 };
        // One look could fall between an answer and the next question.
        if self.idle_looks > 1 { Drained::Idle } else { Drained::Quiesced }
    }

    /// Connections that were busy at the last look.
    pub fn busy(&self) -> usize {
        self.busy
    }
}
