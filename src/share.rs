//! Port sharing: old and new listen on one port, and one small program per group of sockets says who
//! gets new connections. The new side steers ([`Sharing`]), the old side drains ([`crate::drain`]).

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::sys::net::{self, Listeners};
use crate::sys::steer::{Probe, Range, Socket};
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};
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

    /// Whether a socket here gets the connections to the other place when nobody is there.
    fn covers(&self, other: &Place) -> bool {
        let takes = self.address.is_ipv4() == other.address.is_ipv4() || self.dual && other.address.is_ipv4();
        takes && self.address.ip().is_unspecified() && self.address.port() == other.address.port()
    }
}

/// How far a group is.
#[derive(Debug)]
enum Phase {
    /// All to the old sockets.
    Steered,
    /// All to the old sockets, but for a probe to the first new one, begun then.
    Probing(Option<Probe>, Instant),
    /// The new server has accepted the probe, then.
    Accepted(Instant),
    /// And it has not closed its sockets since: the primary of a cluster accepts for workers that crash.
    Proven,
    /// All to the new sockets.
    Switched,
}

/// Sockets of one place, in the order of their joining: the index by which the program names them. Our
/// handles on the old ones freeze that order, whatever their server closes.
#[derive(Debug)]
struct Group {
    /// The number of the old server; `None` where only the new one is: nothing is steered there, but the new
    /// one has to prove itself all the same.
    old: Option<u64>,
    place: Place,
    olds: Vec<Socket>,
    /// Those of them that get the connections until the switch.
    serving: Range,
    news: Vec<Newcomer>,
    /// The new server has listened here, be it that it has closed its sockets since.
    joined: bool,
    phase: Phase,
}

/// A listener of the new server.
#[derive(Debug)]
struct Newcomer {
    inode: u32,
    /// Until the switch only: from then on nothing but its server keeps it open, so that the death of that
    /// gives the port back at once.
    socket: Option<Socket>,
}

impl Group {
    fn add(&mut self, old: Socket, serves: bool) {
        if serves && self.serving.count == 0 {
            self.serving.first = self.olds.len() as u32;
        }
        self.serving.count += u32::from(serves);
        self.olds.push(old);
    }

    fn news(&self) -> Range {
        Range { first: self.olds.len() as u32, count: self.news.len() as u32 }
    }

    fn steer(&self) -> io::Result<()> {
        match (&self.phase, self.olds.first()) {
            (_, None) => Ok(()),
            (Phase::Probing(Some(probe), _), Some(old)) => old.steer_with_probe(self.serving, probe, self.news().first),
            (Phase::Steered | Phase::Probing(None, _) | Phase::Accepted(_) | Phase::Proven, Some(old)) => {
                old.steer(self.serving)
            }
            (Phase::Switched, Some(old)) => old.steer(self.news()),
        }
    }

    fn new(old: Option<u64>, place: Place) -> Group {
        let serving = Range { first: 0, count: 0 };
        Group { old, place, olds: Vec::new(), serving, news: Vec::new(), joined: false, phase: Phase::Steered }
    }

    /// Whether nobody waits in the queue of the socket that the probe goes to.
    fn has_accepted(&self) -> bool {
        let first = self.news.first().and_then(|new| new.socket.as_ref());
        first.is_some_and(|new| new.queue().is_ok_and(|len| len == 0))
    }

    /// Every member is one that we know: an index means what we think it does.
    fn is_known(&self, listeners: &Listeners) -> io::Result<bool> {
        self.strangers(listeners).map(|strangers| strangers == 0)
    }

    /// How many members there are that we do not know.
    fn strangers(&self, listeners: &Listeners) -> io::Result<usize> {
        let mut inodes: Vec<u32> = self.news.iter().map(|new| new.inode).collect();
        for socket in &self.olds {
            inodes.push(socket.inode()?);
        }
        let here = Address::from(self.place.address);
        let members = listeners.at(&here).filter(|s| s.ends.local == self.place.address);
        Ok(members.filter(|s| !inodes.contains(&s.inode)).count())
    }

    /// Goes on with those new sockets that are left, if any: of a worker that died, or that were closed. The
    /// last member took the index of each, which is a new one too.
    fn keep(&mut self, is_left: impl Fn(u32) -> bool) -> io::Result<()> {
        let before = self.news.len();
        self.news.retain(|new| is_left(new.inode));
        if self.news.is_empty() || self.news.len() == before { Ok(()) } else { self.steer() }
    }

    fn switch(&mut self, listeners: Option<&Listeners>) -> io::Result<()> {
        self.news.iter_mut().for_each(|new| new.socket = None);
        if let Some(listeners) = listeners {
            self.follow(listeners);
        }
        // Of a server that is about to end nothing may be left.
        if self.news.is_empty() {
            return Ok(());
        }
        self.phase = Phase::Switched;
        self.steer()
    }

    /// Lets the old sockets go, and the group be as if there had never been any. When a member leaves,
    /// the last one takes its index, and an index past the end falls back to the whole group: with as
    /// many new sockets as old ones the first new index names a new one, or nobody, all the while.
    fn leave_to_new(self, target: &Socket) {
        if self.news.len() < self.olds.len() {
            // For a moment the index may name an old socket: whoever meets it tries again.
            for old in &self.olds {
                let _ = old.refuse_newcomers();
            }
        }
        let _ = target.steer(Range { first: self.news().first, count: 1 });
        drop(self.olds);
        let _ = target.release();
    }

    /// Goes on with those new sockets that listen.
    fn follow(&mut self, listeners: &Listeners) {
        let here = self.place.address.into();
        let _ = self.keep(|inode| listeners.at(&here).any(|s| s.inode == inode));
    }

    /// Lets the new sockets go: the old server serves as it did before.
    fn leave_to_old(mut self) {
        if let Some(old) = self.olds.first() {
            let _ = old.steer(self.serving);
            for socket in &self.olds {
                let _ = socket.accept_newcomers();
            }
        }
        // New ones are last: nothing moves when they go from the end.
        while self.news.pop().is_some() {}
        if let Some(old) = self.olds.first()
            && self.serving.count as usize == self.olds.len()
        {
            let _ = old.release();
        }
    }
}

/// The sockets of a server, and whether connections that come to a place of theirs are its own.
#[derive(Debug)]
pub struct Block {
    /// Its listeners.
    pub sockets: Vec<Socket>,
    /// Where no block of a place does, all of them do.
    pub serves: bool,
}

/// A swap on shared ports, as the new side sees it.
#[derive(Debug, Default)]
pub struct Sharing {
    /// By their ports.
    groups: BTreeMap<u16, Vec<Group>>,
}

impl Sharing {
    fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values().flatten()
    }

    fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.values_mut().flatten()
    }

    fn at_port(&mut self, port: u16) -> &mut Vec<Group> {
        self.groups.entry(port).or_default()
    }

    /// The group of a place; if there is none yet, one with such an old server.
    fn at(&mut self, place: Place, old: Option<u64>) -> &mut Group {
        let groups = self.at_port(place.address.port());
        let at = groups.iter().position(|g| g.place == place).unwrap_or_else(|| {
            groups.push(Group::new(old, place));
            groups.len() - 1
        });
        &mut groups[at]
    }

    /// Of the sockets of one server, or of several in the order in which they have joined, by their places.
    fn of(old: Option<u64>, blocks: Vec<Block>) -> io::Result<Sharing> {
        let mut sharing = Sharing::default();
        for Block { sockets, serves } in blocks {
            for socket in sockets {
                sharing.at(Place::of(&socket)?, old).add(socket, serves);
            }
        }
        for group in sharing.groups_mut().filter(|group| group.serving.count == 0) {
            group.serving = Range { first: 0, count: group.olds.len() as u32 };
        }
        Ok(sharing)
    }

    fn alone(sockets: Vec<Socket>) -> io::Result<Sharing> {
        Sharing::of(None, vec![Block { sockets, serves: true }])
    }

    /// Whether no socket that we do not know is in any of the groups.
    fn is_known(&self) -> io::Result<bool> {
        let listeners = net::listeners()?;
        for group in self.groups() {
            if !group.is_known(&listeners)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether these are among the sockets of old servers already.
    pub fn has(&self, sockets: &[Socket]) -> bool {
        let kept: BTreeSet<u32> = self.kept().collect();
        !sockets.is_empty() && sockets.iter().all(|socket| socket.inode().is_ok_and(|inode| kept.contains(&inode)))
    }

    /// Adds the sockets of an old server, under its number; with those of another, older ones first, where a dead
    /// supervisor has left two that share their ports. The error says why they cannot be shared; nothing is held then.
    pub fn add_old(&mut self, old: u64, blocks: Vec<Block>) -> Result<(), String> {
        let failed = |e: io::Error| crate::error::reason(&e);
        let sockets = || blocks.iter().flat_map(|block| &block.sockets);
        if sockets().next().is_none() || !sockets().all(Socket::shares) {
            return Err("the old server does not share its port".into());
        }
        let added = Sharing::of(Some(old), blocks).map_err(failed)?;
        let known = added.is_known().map_err(failed)?;
        let is_taken = |group: &Group| {
            self.groups.get(&group.place.address.port()).into_iter().flatten().any(|g| g.place == group.place)
        };
        if !known || added.groups().any(is_taken) {
            return Err("a stranger listens on the same port".into());
        }
        for group in added.groups() {
            group.steer().map_err(failed)?;
        }
        for (port, groups) in added.groups {
            self.at_port(port).extend(groups);
        }
        Ok(())
    }

    /// listen(2) for the new server, while all connections stay where they are.
    pub fn join(&mut self, socket: Socket, backlog: i32) -> io::Result<()> {
        let place = Place::of(&socket)?;
        let group = self.at(place, None);
        group.joined = true;
        // Who came since the lock took the index that this one would have.
        if group.old.is_some() && !group.is_known(&net::listeners_at(place.address.port())?)? {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        group.steer()?;
        socket.listen(backlog)?;
        let inode = socket.inode()?;
        // Several processes may listen on one socket: it joins once.
        if group.news.iter().all(|new| new.inode != inode) {
            let socket = (!matches!(group.phase, Phase::Switched)).then_some(socket);
            group.news.push(Newcomer { inode, socket });
        }
        group.steer()
    }

    /// Moves every probe a step on; `true` when all places of the address at which the new server has
    /// listened are proven. `prove`: with a probe, or take listening for it. `complete`: only if the new
    /// server has all places that the old one has.
    pub fn is_proven(&mut self, address: &Address, prove: bool, complete: bool) -> bool {
        let (mut all, mut any) = (true, false);
        let Address::Tcp(_, port) = *address else { return false };
        for group in self.at_port(port).iter_mut().filter(|g| address.collides(&g.place.address.into())) {
            if group.news.is_empty() {
                // Where it has closed what it had, it is on its way out, or not done.
                all &= !complete && !group.joined;
                continue;
            }
            if !prove && matches!(group.phase, Phase::Steered) {
                group.phase = Phase::Proven;
            }
            any = true;
            all &= step_probe(group).unwrap_or(false);
        }
        any && all
    }

    /// Whether [`Sharing::check`] has something to look at.
    pub fn is_due(&self) -> bool {
        self.groups().any(|group| match group.phase {
            // The server may have closed the socket in whose queue the probe is.
            Phase::Probing(_, since) => since.elapsed() > PROBE_PATIENCE,
            Phase::Accepted(since) => since.elapsed() > STEADY,
            Phase::Steered | Phase::Proven | Phase::Switched => false,
        })
    }

    /// Begins anew with those new sockets that the server still holds; where it holds all, and has accepted,
    /// it is proven.
    pub fn check(&mut self, held: &BTreeSet<u32>) {
        for group in self.groups_mut() {
            let (Phase::Probing(_, since) | Phase::Accepted(since)) = &mut group.phase else { continue };
            let since = std::mem::replace(since, Instant::now());
            if group.news.iter().any(|new| !held.contains(&new.inode)) {
                group.phase = Phase::Steered;
                let _ = group.keep(|inode| held.contains(&inode));
            } else if matches!(group.phase, Phase::Accepted(_)) {
                group.phase = match since.elapsed() > STEADY {
                    true if group.has_accepted() => Phase::Proven,
                    // The probe's last packet came after the look at the queue.
                    true => Phase::Probing(None, Instant::now()),
                    false => Phase::Accepted(since),
                };
            }
        }
    }

    /// After the switch: goes on with what is left of the new sockets.
    pub fn follow(&mut self, listeners: &Listeners) {
        self.groups_mut().filter(|g| matches!(g.phase, Phase::Switched)).for_each(|group| group.follow(listeners));
    }

    /// From here new connections go to the new server. Returns the places that it does not take over, which
    /// the old one has to its end, and the first failure: of one group, the others are switched all the same.
    pub fn switch(&mut self) -> (Vec<SocketAddr>, io::Result<()>) {
        let (mut abandoned, mut result) = (Vec::new(), Ok(()));
        // Where the kernel cannot be asked all are there that were.
        let listeners = net::listeners().ok();
        let taken: Vec<Place> = self.groups().filter(|g| !g.news.is_empty()).map(|g| g.place).collect();
        for group in self.groups_mut() {
            let done = if !group.news.is_empty() {
                group.switch(listeners.as_ref())
            } else if taken.iter().any(|new| new.covers(&group.place)) {
                // The new server is at another place of the same port: whoever still comes here tries
                // again, and meets the new one once this socket is closed.
                group.olds.iter().map(Socket::refuse_newcomers).fold(Ok(()), io::Result::and)
            } else {
                abandoned.push(group.place.address);
                Ok(())
            };
            result = result.and(done);
        }
        (abandoned, result)
    }

    /// From here new connections go to the old servers again. What went to the new one stays there.
    pub fn switch_back(&mut self) {
        for group in self.groups_mut() {
            group.phase = Phase::Steered;
            let _ = group.steer();
            for old in &group.olds {
                let _ = old.accept_newcomers();
            }
        }
    }

    /// Inodes of the listeners of old servers that we keep open.
    pub fn kept(&self) -> impl Iterator<Item = u32> {
        self.groups().flat_map(|g| &g.olds).filter_map(|old| old.inode().ok())
    }

    /// This old server stays: nothing is wanted of it any more.
    pub fn let_go(&mut self, old: u64) {
        for groups in self.groups.values_mut() {
            groups.extract_if(.., |g| g.old == Some(old)).for_each(Group::leave_to_old);
        }
    }

    /// The old server is gone, and these are the listeners of the new one.
    pub fn finish(mut self, listeners: &[Socket]) {
        for target in listeners {
            let Ok(place) = Place::of(target) else { continue };
            let here = |group: &mut Group| group.place == place && !group.olds.is_empty();
            self.at_port(place.address.port()).extract_if(.., here).for_each(|group| group.leave_to_new(target));
        }
    }

    /// The new server is gone, or gives up.
    pub fn turn_back(self) {
        self.groups.into_values().flatten().for_each(Group::leave_to_old);
    }
}

/// New connections go to whoever listens beside these sockets, which joined last and are all that a server has there.
pub fn steer_away(sockets: Vec<Socket>, listeners: &Listeners) -> io::Result<()> {
    for group in Sharing::alone(sockets)?.groups() {
        let others = group.strangers(listeners)? as u32;
        if let (1.., Some(socket)) = (others, group.olds.first()) {
            socket.steer(Range { first: 0, count: others })?;
        }
    }
    Ok(())
}

/// Takes off what steers and filters these sockets, all that a server has at their places. `false`, and all stays
/// steered, if somebody else listens there too: their claimer has gone away, and its server may come only now.
pub fn serve_alone(sockets: Vec<Socket>) -> io::Result<bool> {
    let sharing = Sharing::alone(sockets)?;
    if !sharing.is_known()? {
        return Ok(false);
    }
    for socket in sharing.groups().flat_map(|group| &group.olds) {
        let _ = socket.accept_newcomers();
        let _ = socket.release();
    }
    // Who came at this very moment has joined behind them, and not proven itself.
    let alone = sharing.is_known();
    if !matches!(alone, Ok(true)) {
        sharing.groups().for_each(|group| drop(group.steer()));
    }
    alone
}

/// Close first, then look: a socket with TCP_DEFER_ACCEPT shows an open probe in no queue.
fn step_probe(group: &mut Group) -> io::Result<bool> {
    match &group.phase {
        Phase::Proven | Phase::Switched => return Ok(true),
        Phase::Steered => {
            let probe = match Probe::new(group.place.address, group.place.dual) {
                // A family without an address: nobody can reach the place.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)) => {
                    group.phase = Phase::Proven;
                    return Ok(true);
                }
                probe => probe?,
            };
            group.phase = Phase::Probing(Some(probe), Instant::now());
            group.steer()?;
            if let Phase::Probing(Some(probe), _) = &group.phase
                && let Err(e) = probe.connect()
            {
                group.phase = Phase::Steered;
                return Err(e);
            }
        }
        Phase::Probing(Some(probe), since) => match probe.connected() {
            Ok(false) => {}
            Ok(true) => {
                group.phase = Phase::Probing(None, *since);
                group.steer()?;
            }
            // Refused or reset: the next look begins anew.
            Err(_) => group.phase = Phase::Steered,
        },
        Phase::Probing(None, _) => {
            if group.has_accepted() {
                group.phase = Phase::Accepted(Instant::now());
            }
        }
        Phase::Accepted(_) => {}
    }
    Ok(false)
}

/// How long a probe may take before somebody looks whether its socket is still the server's.
const PROBE_PATIENCE: Duration = Duration::from_millis(250);

/// How long a server that has accepted is watched: one that crashes at its start does so right away.
const STEADY: Duration = Duration::from_millis(100);
