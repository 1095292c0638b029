//! Port sharing: old and new listen on one port, and one small program per group of sockets says who
//! gets new connections. The new side steers ([`Sharing`]), the old side drains ([`crate::drain`]).

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::members::Members;
use crate::place::{Families, Place};
use crate::procfs::{self, Held, Holders};
use crate::sys::net::{self, Diag, Ends, Listeners, TcpSocket};
use crate::sys::steer::{OwnProgram, Probe, Program, Range, Socket};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Whose socket a member of a group is.
#[derive(Debug)]
enum Side {
    /// The old server's. `serves`: it gets connections until the switch. Without a handle we have let go of it, and
    /// it stays a member until the kernel closes it.
    Old { handle: Option<Handle>, serves: bool },
    /// The new server's. We keep no handle on it: what its server closes is closed.
    New(Proof),
}

/// A listener of an old server that we keep open, so that the order of its group stays.
#[derive(Debug)]
struct Handle {
    socket: Socket,
    /// Where it was last seen to be open.
    seen: Option<Held>,
    /// Since when nobody but us has it.
    closed: Option<Instant>,
}

#[derive(Debug)]
struct Member {
    inode: u32,
    side: Side,
}

impl Member {
    fn is_new(&self) -> bool {
        matches!(self.side, Side::New(_))
    }

    fn proof(&mut self) -> Option<&mut Proof> {
        if let Side::New(proof) = &mut self.side { Some(proof) } else { None }
    }
}

/// How far a listener of the new server is on its way to be proven.
#[derive(Debug)]
enum Proof {
    /// Not yet.
    None,
    /// A probe is to be sent as soon as the port is steered for it.
    Begun(Probe),
    /// A probe is on its way since then.
    Probing(Probe, Instant),
    /// The probe has connected and was closed: a socket with TCP_DEFER_ACCEPT shows an open one in no queue.
    Queued(Ends, Instant),
    /// The new server has accepted it, then.
    Accepted(Instant),
    /// And it has not closed its sockets since: the primary of a cluster accepts for workers that crash.
    Proven,
}

impl Proof {
    /// It will be due soon, or go on.
    fn is_under_way(&self) -> bool {
        matches!(self, Proof::Begun(_) | Proof::Probing(..) | Proof::Queued(..) | Proof::Accepted(_)) && !self.is_due()
    }

    /// Whether somebody should look if the server still has its sockets.
    fn is_due(&self) -> bool {
        match self {
            // The server may have closed the socket in whose queue the probe is.
            Proof::Probing(_, since) | Proof::Queued(_, since) => since.elapsed() > PROBE_PATIENCE,
            Proof::Accepted(since) => since.elapsed() > STEADY,
            Proof::None | Proof::Begun(_) | Proof::Proven => false,
        }
    }

    /// The members have changed: what was under way may have gone to another.
    fn begin_anew(&mut self) {
        if let Proof::Begun(_) | Proof::Probing(..) | Proof::Queued(..) | Proof::Accepted(_) = self {
            *self = Proof::None;
        }
    }
}

/// Who gets the connections of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The old sockets.
    Before,
    /// The new ones.
    Switched,
}

/// The sockets of one place.
#[derive(Debug)]
struct Group {
    /// The number of the old server; `None` where only the new one is: nothing is steered there, but the new
    /// one has to prove itself all the same.
    old: Option<u64>,
    place: Place,
    members: Members<Member>,
    stage: Stage,
    /// The new server has listened here, be it that it has closed its sockets since.
    joined: bool,
    /// All members have joined by our hand: their order is known.
    in_order: bool,
    /// A program of ours is on the group.
    steered: bool,
    /// What the new server steers it by, once it is its own.
    own: Option<OwnProgram>,
    /// Why probes do not get to a new server that may well accept: nothing that it has done.
    unreachable: Option<String>,
    /// Clients are kept away from the new sockets until they are proven: an old server has what they would take from
    /// it at once, at another place of the same port.
    guarded: bool,
}

/// How to get hold of listeners of the new server by their inodes.
pub type Fetch<'a> = &'a dyn Fn(&BTreeSet<u32>) -> Vec<Socket>;

/// Finds a connection by its ends.
type Find<'a> = &'a dyn Fn(Ends) -> io::Result<Option<TcpSocket>>;

impl Group {
    fn new(old: Option<u64>, place: Place) -> Group {
        Group {
            old,
            place,
            members: Members::default(),
            stage: Stage::Before,
            joined: false,
            in_order: true,
            steered: false,
            own: None,
            unreachable: None,
            guarded: false,
        }
    }

    fn add(&mut self, socket: Socket, serves: bool) -> io::Result<()> {
        let inode = socket.inode()?;
        let side = Side::Old { handle: Some(Handle { socket, seen: None, closed: None }), serves };
        self.members.join(Member { inode, side });
        Ok(())
    }

    fn handles(&self) -> impl Iterator<Item = &Socket> {
        self.members.iter().filter_map(|m| match &m.side {
            Side::Old { handle: Some(handle), .. } => Some(&handle.socket),
            Side::Old { handle: None, .. } | Side::New(_) => None,
        })
    }

    fn kept(&self) -> Vec<u32> {
        self.members.iter().filter(|member| !member.is_new()).map(|member| member.inode).collect()
    }

    fn news(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.is_new())
    }

    fn has_news(&self) -> bool {
        self.news().next().is_some()
    }

    fn has_olds(&self) -> bool {
        self.handles().next().is_some()
    }

    fn inodes_of_news(&self) -> BTreeSet<u32> {
        self.news().map(|member| member.inode).collect()
    }

    /// Who gets the connections: one rule for every moment of a swap. Where nobody is left to whom they belong, those
    /// who are there.
    fn receives(&self) -> Vec<Range> {
        let is_old = |m: &Member| matches!(m.side, Side::Old { .. });
        let serves = |m: &Member| matches!(m.side, Side::Old { serves: true, .. });
        let olds =
            || Some(self.members.ranges(serves)).filter(|r| !r.is_empty()).unwrap_or(self.members.ranges(is_old));
        let (first, second) = match self.stage {
            Stage::Before => (olds(), self.members.ranges(Member::is_new)),
            Stage::Switched => (self.members.ranges(Member::is_new), olds()),
        };
        if first.is_empty() { second } else { first }
    }

    /// The program that the group needs now.
    fn program(&self) -> Program {
        let mut probes = Vec::new();
        for (index, member) in (0u32..).zip(self.members.iter()) {
            if let Side::New(Proof::Begun(probe) | Proof::Probing(probe, _)) = &member.side {
                probes.push((probe, index));
            }
        }
        Program::new(&self.receives(), &probes)
    }

    /// Puts the program on the group: through a socket of the old server, or of the new one.
    fn steer(&mut self, fetch: Fetch<'_>) -> io::Result<()> {
        let program = self.program();
        if let Some(handle) = self.handles().find(|handle| handle.listens()) {
            handle.steer(&program)?;
        } else {
            // A single socket needs no steering, and an unknown order allows none.
            if !self.in_order || self.members.len() < 2 && !self.steered || !self.has_news() {
                return Ok(());
            }
            match fetch(&self.inodes_of_news()).first() {
                Some(own) => own.steer(&program)?,
                // It has become a process at which we may not look.
                None => Socket::visit(&self.place, |visitor| visitor.steer(&program))?,
            }
        }
        self.steered = true;
        Ok(())
    }

    /// Every member is one that we know: an index means what we think it does.
    fn is_known(&self, listeners: &Listeners) -> bool {
        self.strangers(listeners) == 0
    }

    /// How many members there are that we do not know.
    fn strangers(&self, listeners: &Listeners) -> usize {
        let known = |inode: u32| self.members.iter().any(|member| member.inode == inode);
        listeners.at_place(&self.place).filter(|s| !known(s.inode)).count()
    }

    /// Goes on with those new sockets that are left: of a worker that died, or that were closed.
    fn follow(&mut self, is_left: impl Fn(u32) -> bool, fetch: Fetch<'_>) {
        if self.leave(|member| !member.is_new() || is_left(member.inode)) {
            let _ = self.steer(fetch);
        }
    }

    /// Before another one joins: what is closed has left.
    fn catch_up(&mut self, listeners: &Listeners, fetch: Fetch<'_>) {
        let place = self.place;
        self.reap(Some(listeners), fetch);
        self.follow(|inode| listeners.at_place(&place).any(|s| s.inode == inode), fetch);
    }

    /// Members that are closed leave; `true` if any was.
    fn leave(&mut self, is_left: impl Fn(&Member) -> bool) -> bool {
        let left = self.members.leave_all(is_left);
        if left > 0 {
            self.members.iter_mut().filter_map(Member::proof).for_each(Proof::begin_anew);
        }
        left > 0
    }

    /// Lets go of what the old server has closed. The last one of a place stays for a moment, as long as the new server has
    /// not proven itself: a server that replaces its listener closes one and opens another right away.
    fn drop_closed(&mut self, fetch: Fetch<'_>) {
        let is_open = |m: &Member| matches!(&m.side, Side::Old { handle: Some(h), .. } if h.closed.is_none());
        let spared = match self.stage == Stage::Switched || self.members.iter().any(is_open) {
            true => Duration::ZERO,
            false => REOPENS_WITHIN,
        };
        let is_over = |m: &Member| match &m.side {
            Side::Old { handle: Some(h), .. } => h.closed.is_some_and(|since| since.elapsed() >= spared),
            Side::Old { handle: None, .. } | Side::New(_) => false,
        };
        let closed: Vec<u32> = self.members.iter().filter(|m| is_over(m)).map(|m| m.inode).collect();
        if !closed.is_empty() {
            self.drop_all(closed, fetch);
            self.reap(self.listeners().as_ref(), fetch);
        }
    }

    /// Lets go of these sockets of old servers. Whoever calls looks then if the kernel has closed the last of them.
    fn drop_all(&mut self, inodes: Vec<u32>, fetch: Fetch<'_>) {
        for (nth, inode) in inodes.into_iter().enumerate() {
            // Where the next one is depends on whether the one before has left.
            if nth > 0 {
                self.reap(self.listeners().as_ref(), fetch);
            }
            self.drop_old(inode);
        }
    }

    fn listeners(&self) -> Option<Listeners> {
        net::listeners_at(self.place.address.port()).ok()
    }

    /// The old server has closed a socket that we keep open: nobody is sent to it any more, and it goes.
    fn drop_old(&mut self, inode: u32) {
        let Some(index) = self.members.iter().position(|m| m.inode == inode) else { return };
        let Some(Side::Old { handle, serves }) = self.members.iter_mut().nth(index).map(|m| &mut m.side) else {
            return;
        };
        *serves = false;
        let Some(Handle { socket, .. }) = handle.take() else { return };
        let _ = socket.steer(&self.program());
        // The last member takes its index. Where that leads elsewhere, what is right then is there a moment before.
        if let Some(ranges) = self.members.ranges_after(index, &self.receives()) {
            let _ = socket.steer(&Program::new(&ranges, &[]));
        }
    }

    /// What the kernel has closed of that which we have let go of is no member any more. It does so a moment after the
    /// last process has let go, later where that is ending.
    fn reap(&mut self, listeners: Option<&Listeners>, fetch: Fetch<'_>) {
        let Some(listeners) = listeners else { return };
        let place = self.place;
        let is_there = |inode: u32| listeners.at_place(&place).any(|s| s.inode == inode);
        if self.leave(|m: &Member| !matches!(m.side, Side::Old { handle: None, .. }) || is_there(m.inode)) {
            // Where all that are left get connections it does not matter which of them.
            if self.receives().iter().map(|range| range.count).sum::<u32>() < self.members.len() as u32 {
                let _ = self.steer(fetch);
            }
        }
    }

    fn switch(&mut self, fetch: Fetch<'_>) -> io::Result<()> {
        // Of a server that is about to end nothing may be left.
        if !self.has_news() {
            return Ok(());
        }
        self.unguard(fetch)?;
        self.stage = Stage::Switched;
        self.steer(fetch)
    }

    /// Lets clients through to the new sockets. An error where these cannot be had.
    fn unguard(&mut self, fetch: Fetch<'_>) -> io::Result<()> {
        if self.guarded {
            let own = fetch(&self.inodes_of_news());
            own.iter().try_for_each(Socket::accept_newcomers)?;
            if own.len() < self.inodes_of_news().len() {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.guarded = false;
        }
        Ok(())
    }

    /// Lets the old sockets go, and the group be as if there had never been any. When a member leaves,
    /// the last one takes its index, and an index past the end falls back to the whole group.
    /// `false` if that cannot be done now, and clients are kept away from the new sockets.
    fn leave_to_new(&mut self, own: &BTreeMap<u32, Socket>) -> bool {
        let restore = |socket: &Socket| self.own.as_ref().map_or_else(|| socket.release(), |own| socket.steer_by(own));
        let member = self.news().find_map(|member| own.get(&member.inode));
        let restored = match member {
            Some(socket) => restore(socket),
            // It has become a process at which we may not look.
            None if self.steered && self.has_news() => Socket::visit(&self.place, restore),
            None => Ok(()),
        };
        self.steered &= restored.is_err();
        let _ = self.unguard(&|inodes| inodes.iter().filter_map(|inode| own.get(inode)?.try_clone().ok()).collect());
        !(self.guarded || self.steered)
    }

    /// The old server serves as it did before.
    fn leave_to_old(mut self, listeners: Option<&Listeners>) {
        self.stage = Stage::Before;
        // Those that are not closed yet get nothing.
        let known = |group: &Group| listeners.is_some_and(|listeners| group.is_known(listeners));
        let is_left = |inode: u32| listeners.is_none_or(|l| l.at_place(&self.place).any(|s| s.inode == inode));
        self.members.leave_all(|member| !member.is_new() || is_left(member.inode));
        if let Some(old) = self.handles().next() {
            let _ = old.steer(&self.program());
        }
        self.handles().for_each(|socket| drop(socket.accept_newcomers()));
        let serve = |m: &Member| matches!(m.side, Side::Old { serves: true, .. });
        if let Some(old) = self.handles().next()
            && self.members.iter().all(serve)
            && known(&self)
        {
            let _ = old.release();
        }
    }

    /// Moves the probes of the new sockets on, as far as they get now: one of this machine connects at once.
    fn step(&mut self, find: Find<'_>, listeners: &Listeners, fetch: Fetch<'_>) -> io::Result<()> {
        let is_connected = |m: &Member| match &m.side {
            Side::New(Proof::Probing(probe, _)) => probe.connected().is_ok_and(|connected| connected),
            Side::New(_) | Side::Old { .. } => false,
        };
        self.step_once(find, listeners, fetch)?;
        if self.members.iter().any(is_connected) {
            self.step_once(find, listeners, fetch)?;
        }
        Ok(())
    }

    fn step_once(&mut self, find: Find<'_>, listeners: &Listeners, fetch: Fetch<'_>) -> io::Result<()> {
        // Where nobody knows which socket a probe would go to, one has to do.
        let most = if self.in_order { usize::MAX } else { 1 };
        // A probe could get to an old server.
        if self.members.mixes(Member::is_new) {
            self.unreachable = Some("sockets come and go too fast to be followed".into());
            return Ok(());
        }
        let mut steer = false;
        let place = self.place;
        let is_full = listeners.at_place(&place).any(|s| s.is_full());
        for proof in self.members.iter_mut().filter_map(Member::proof).take(most) {
            match proof {
                Proof::None if place.device > LOOPBACK && is_reached_by_loopback(place.address.ip()) => {
                    self.unreachable = Some("no probe of this machine gets to the interface it is bound to".into());
                }
                Proof::None => match Probe::new(place.address, place.families == Families::Both) {
                    Ok(probe) => *proof = Proof::Begun(probe),
                    Err(e) => self.unreachable = Some(unreachable(&e)),
                },
                Proof::Probing(probe, since) => match probe.connected() {
                    Ok(false) => {
                        if since.elapsed() > PROBE_ARRIVES {
                            self.unreachable = (!is_full).then(|| "a probe gets no answer".into());
                        }
                    }
                    Ok(true) => {
                        let ends = Ends { interface: place.device, ..probe.ends() };
                        *proof = Proof::Queued(ends, Instant::now());
                        (steer, self.unreachable) = (true, None);
                    }
                    Err(e) => {
                        (steer, self.unreachable) = (true, Some(unreachable(&e)));
                        *proof = Proof::None;
                    }
                },
                Proof::Queued(ends, _) => {
                    // What cannot be asked now is asked at the next look.
                    if find(*ends).is_ok_and(|found| !found.is_some_and(|socket| socket.is_unaccepted())) {
                        *proof = Proof::Accepted(Instant::now());
                    }
                }
                Proof::Begun(_) | Proof::Accepted(_) | Proof::Proven => {}
            }
        }
        let begun = self.news().any(|new| matches!(new.side, Side::New(Proof::Begun(_))));
        if (steer || begun)
            && let Err(e) = self.steer(fetch)
        {
            self.unreachable = Some(unreachable(&e));
            return Err(e);
        }
        let own = if begun && self.guarded { fetch(&self.inodes_of_news()) } else { Vec::new() };
        for member in self.members.iter_mut() {
            let Side::New(proof) = &mut member.side else { continue };
            let guard = own.iter().find(|socket| socket.inode().is_ok_and(|inode| inode == member.inode));
            *proof = match std::mem::replace(proof, Proof::None) {
                // It could not get there; at the next look perhaps.
                Proof::Begun(probe) if self.guarded && guard.is_none() => Proof::Begun(probe),
                Proof::Begun(probe) => {
                    let guard = guard.map_or(Ok(true), |guard| guard.refuse_newcomers(Some(&probe)));
                    match guard.and_then(|_| probe.connect()) {
                        Ok(()) => Proof::Probing(probe, Instant::now()),
                        Err(e) => {
                            self.unreachable = Some(unreachable(&e));
                            Proof::None
                        }
                    }
                }
                other => other,
            };
        }
        Ok(())
    }

    /// Begins anew with those new sockets that the server still holds; where it holds all, and all have accepted, they are
    /// proven.
    fn check(&mut self, held: &BTreeSet<u32>, fetch: Fetch<'_>) {
        if self.news().any(|new| !held.contains(&new.inode)) {
            return self.follow(|inode| held.contains(&inode), fetch);
        }
        let most = if self.in_order { usize::MAX } else { 1 };
        let proofs = || self.news().filter_map(|m| if let Side::New(proof) = &m.side { Some(proof) } else { None });
        let is_steady =
            |proof: &Proof| matches!(proof, Proof::Proven) || matches!(proof, Proof::Accepted(_)) && proof.is_due();
        if proofs().take(most).all(is_steady) {
            self.members.iter_mut().filter_map(Member::proof).for_each(|proof| *proof = Proof::Proven);
        }
    }

    fn is_proven(&self) -> bool {
        self.news().all(|new| matches!(new.side, Side::New(Proof::Proven)))
    }
}

/// Whether what this machine sends there comes in by lo. What goes to another address of ours does so in IPv4 alone.
fn is_reached_by_loopback(ip: IpAddr) -> bool {
    ip.is_ipv4() || ip.is_unspecified() || ip.is_loopback()
}

/// Why a probe did not get to a server that listens: nothing that the server has done.
fn unreachable(e: &io::Error) -> String {
    format!("a probe cannot get there: {}", crate::error::reason(e))
}

/// The sockets of a server, and whether connections that come to a place of theirs are its own.
#[derive(Debug)]
pub struct Block {
    /// Its listeners.
    pub sockets: Vec<Socket>,
    /// Where no block of a place does, all of them do.
    pub serves: bool,
}

/// The listeners of a new server, and those of old ones beside them, as the new side sees them.
#[derive(Debug, Default)]
pub struct Sharing {
    /// By their ports.
    groups: BTreeMap<u16, Vec<Group>>,
    diag: Option<Diag>,
    /// When the oldest of the old servers started (proc_pid_stat(5)).
    since: u64,
    /// It could not be seen who holds the sockets of old servers: not before then is it tried again.
    blind_until: Option<Instant>,
    /// When it was last looked which sockets the new server still has.
    checked: Option<Instant>,
}

impl Sharing {
    fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values().flatten()
    }

    fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.values_mut().flatten()
    }

    /// Forgets the other groups.
    fn keep(&mut self, mut is_kept: impl FnMut(&mut Group) -> bool) {
        self.groups.values_mut().for_each(|groups| groups.retain_mut(&mut is_kept));
        self.groups.retain(|_, groups| !groups.is_empty());
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
                sharing.at(socket.place()?, old).add(socket, serves)?;
            }
        }
        Ok(sharing)
    }

    fn alone(sockets: Vec<Socket>) -> io::Result<Sharing> {
        Sharing::of(None, vec![Block { sockets, serves: true }])
    }

    /// Whether no socket that we do not know is in any of the groups.
    fn is_known(&self) -> io::Result<bool> {
        let listeners = net::listeners()?;
        Ok(self.groups().all(|group| group.is_known(&listeners)))
    }

    /// Whether there is nothing to be proven or steered.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether the new server has listened on a port, as far as we know.
    pub fn has_joined_at(&self, port: u16) -> bool {
        self.groups.get(&port).is_some_and(|groups| groups.iter().any(|group| group.joined))
    }

    /// Whether these are among the sockets of old servers already.
    pub fn has(&self, sockets: &[Socket]) -> bool {
        let kept: BTreeSet<u32> = self.kept().collect();
        !sockets.is_empty() && sockets.iter().all(|socket| socket.inode().is_ok_and(|inode| kept.contains(&inode)))
    }

    /// Adds the sockets of an old server, under its number; with those of another, older ones first, where a dead
    /// supervisor has left two that share their ports. The error says why they cannot be shared; nothing is held then.
    /// `since`: when the older of them started.
    pub fn add_old(&mut self, old: u64, since: u64, blocks: Vec<Block>) -> Result<(), String> {
        let failed = |e: io::Error| crate::error::reason(&e);
        let sockets = || blocks.iter().flat_map(|block| &block.sockets);
        if sockets().next().is_none() || !sockets().all(Socket::shares) {
            return Err("the old server does not share its port".into());
        }
        let mut added = Sharing::of(Some(old), blocks).map_err(failed)?;
        let known = added.is_known().map_err(failed)?;
        let is_taken = |group: &Group| {
            self.groups.get(&group.place.address.port()).into_iter().flatten().any(|g| g.place == group.place)
        };
        if !known || added.groups().any(is_taken) {
            return Err("a stranger listens on the same port".into());
        }
        for group in added.groups_mut() {
            group.steer(&|_| Vec::new()).map_err(failed)?;
        }
        self.since = if self.has_olds() { self.since.min(since) } else { since };
        for (port, groups) in added.groups {
            self.at_port(port).extend(groups);
        }
        Ok(())
    }

    /// A listener that the old server opens while it is being replaced joins by our hand: its index is known.
    pub fn join_old(&mut self, old: u64, socket: Socket, backlog: i32, fetch: Fetch<'_>) -> io::Result<()> {
        let place = socket.place()?;
        let listeners = net::listeners_at(place.address.port())?;
        let group = self.at(place, Some(old));
        group.catch_up(&listeners, fetch);
        socket.share()?;
        let _ = group.steer(fetch);
        if let Err(e) = socket.listen(backlog) {
            self.keep(|group| !group.members.is_empty() || group.joined);
            return Err(e);
        }
        group.old.get_or_insert(old);
        group.add(socket, true)?;
        group.members.iter_mut().filter_map(Member::proof).for_each(Proof::begin_anew);
        // What cannot be steered now is steered at the next look.
        let _ = group.steer(fetch);
        // As a rule it is in the place of one that was closed.
        self.follow_olds(&listeners, fetch);
        Ok(())
    }

    /// listen(2) for the new server, while all connections stay where they are.
    pub fn join(&mut self, socket: &Socket, backlog: i32, fetch: Fetch<'_>) -> io::Result<()> {
        let place = socket.place()?;
        let is_beside = |group: &Group| group.has_olds() && group.place != place && group.place.conflicts(&place);
        let guarded = self.at_port(place.address.port()).iter().any(is_beside);
        let group = self.at(place, None);
        group.joined = true;
        // Who came since the lock took the index that this one would have.
        if !group.members.is_empty() || group.old.is_some() {
            let listeners = net::listeners_at(place.address.port())?;
            group.catch_up(&listeners, fetch);
            if group.old.is_some() && !group.is_known(&listeners) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
        }
        socket.share()?;
        let steered = group.steer(fetch);
        if group.old.is_some() {
            steered?;
        }
        if guarded && group.stage == Stage::Before {
            group.guarded |= socket.refuse_newcomers(None)?;
        }
        socket.listen(backlog)?;
        let inode = socket.inode()?;
        // Several processes may listen on one socket: it joins once.
        if group.members.iter().all(|member| member.inode != inode) {
            let proof = if group.stage == Stage::Switched { Proof::Proven } else { Proof::None };
            group.members.join(Member { inode, side: Side::New(proof) });
        }
        // What cannot be steered now goes to the old server as before, and is steered when it is probed.
        let _ = group.steer(fetch);
        Ok(())
    }

    /// Listeners of the new server that nobody saw it open.
    pub fn found<'a>(&mut self, listeners: impl IntoIterator<Item = &'a TcpSocket>) {
        for listener in listeners {
            let group = self.at(listener.place(), None);
            if group.members.iter().all(|member| member.inode != listener.inode) {
                (group.joined, group.in_order) = (true, false);
                group.members.join(Member { inode: listener.inode, side: Side::New(Proof::None) });
            }
        }
    }

    /// Whether the new server has listened at this address, as far as we know.
    pub fn has_joined(&self, address: &Address) -> bool {
        self.near(address).any(|group| group.joined)
    }

    /// Whether listeners of old servers are kept open.
    pub fn has_olds(&self) -> bool {
        self.groups().any(Group::has_olds)
    }

    /// The old servers have ended before the new one has proven itself, which is alone now.
    pub fn forget_olds(&mut self, fetch: Fetch<'_>) {
        for group in self.groups_mut().filter(|group| group.old.is_some()) {
            group.drop_all(group.kept(), fetch);
            group.reap(group.listeners().as_ref(), fetch);
            group.old = None;
        }
    }

    /// The new server puts a program of its own on a port. Where ours is on it that has to wait.
    pub fn steer_by(&mut self, place: &Place, socket: &Socket, program: OwnProgram) -> io::Result<()> {
        let group = self.at_port(place.address.port()).iter_mut().find(|group| group.place == *place);
        match group {
            Some(group) if group.has_olds() => {
                Socket::scratch(place)?.steer_by(&program)?;
                group.own = Some(program);
                Ok(())
            }
            group => {
                socket.steer_by(&program)?;
                if let Some(group) = group {
                    (group.steered, group.in_order) = (false, false);
                }
                Ok(())
            }
        }
    }

    /// Follows what the new server has closed.
    pub fn follow_news(&mut self, port: Option<u16>, listeners: &Listeners, fetch: Fetch<'_>) {
        let ports = port.map_or(0..=u16::MAX, |port| port..=port);
        for group in self.groups.range_mut(ports).flat_map(|(_, groups)| groups).filter(|group| group.has_news()) {
            let place = group.place;
            group.follow(|inode| listeners.at_place(&place).any(|s| s.inode == inode), fetch);
        }
    }

    /// Follows what the new server has closed, and the old one; moves every probe a step on. `held` gives the
    /// sockets that the new server holds.
    pub fn look(
        &mut self,
        listeners: &Listeners,
        prove: bool,
        held: impl FnOnce() -> Option<BTreeSet<u32>>,
        fetch: Fetch<'_>,
    ) {
        self.groups_mut().for_each(|group| group.reap(Some(listeners), fetch));
        self.follow_olds(listeners, fetch);
        self.follow_news(None, listeners, fetch);
        if self.is_check_due()
            && let Some(held) = held()
        {
            self.checked = Some(Instant::now());
            self.groups_mut().for_each(|group| group.check(&held, fetch));
        }
        if self.diag.is_none() {
            self.diag = Diag::open().ok();
        }
        let find = |ends: Ends| match &self.diag {
            Some(diag) => diag.find(ends),
            None => net::find_in_table(ends),
        };
        for group in self.groups.values_mut().flatten().filter(|group| group.stage == Stage::Before) {
            if prove {
                let _ = group.step(&find, listeners, fetch);
            } else {
                group.members.iter_mut().filter_map(Member::proof).for_each(|proof| *proof = Proof::Proven);
            }
        }
        for group in self.groups_mut().filter(|group| group.stage == Stage::Switched) {
            let _ = group.unguard(fetch);
        }
    }

    /// Whether somebody should look which sockets the server still has: once for as many proofs as possible, since a
    /// server may open a thousand one after the other.
    fn is_check_due(&self) -> bool {
        let any = |is: fn(&Proof) -> bool| {
            let is = |m: &Member| matches!(&m.side, Side::New(proof) if is(proof));
            self.groups().any(|group| group.members.iter().any(is))
        };
        let is_late = || self.checked.is_none_or(|at| at.elapsed() > STEADY);
        any(Proof::is_due) && (is_late() || !any(Proof::is_under_way))
    }

    /// Lets go of what old servers have closed: nobody may be sent to a socket that only we hold.
    fn follow_olds(&mut self, listeners: &Listeners, fetch: Fetch<'_>) {
        let (mut suspects, mut shut) = (BTreeSet::new(), false);
        let listening: BTreeSet<u32> = listeners.all().map(|s| s.inode).collect();
        for member in self.groups_mut().flat_map(|group| group.members.iter_mut()) {
            if let Side::Old { handle: Some(handle), .. } = &mut member.side
                && !listening.contains(&member.inode)
                && !handle.socket.listens()
            {
                // By shutdown(2): it is open, and no member any more.
                handle.closed = Some(Instant::now() - REOPENS_WITHIN);
                handle.seen = None;
                shut = true;
            } else if let Side::Old { handle: Some(handle), .. } = &member.side
                && !handle.seen.as_ref().is_some_and(|held| held.is_still(member.inode))
            {
                suspects.insert(member.inode);
            }
        }
        if shut {
            self.groups_mut().for_each(|group| group.drop_closed(fetch));
        }
        if suspects.is_empty() || self.blind_until.is_some_and(|until| until > Instant::now()) {
            return;
        }
        let Ok(Holders { held, may_be_more }) = procfs::holders(&suspects, self.since) else { return };
        // What cannot be seen may be open.
        if may_be_more && held.len() < suspects.len() {
            self.blind_until = Some(Instant::now() + BLIND_FOR);
        }
        for group in self.groups_mut() {
            for member in group.members.iter_mut().filter(|member| suspects.contains(&member.inode)) {
                let Side::Old { handle: Some(handle), .. } = &mut member.side else { continue };
                match (held.get(&member.inode), &handle.seen) {
                    (Some(held), _) => (handle.seen, handle.closed) = (Some(*held), None),
                    // Its files are closed after it has shown the last of them.
                    (None, Some(seen)) if procfs::is_ending(seen.pid) => {}
                    (None, _) if may_be_more => {}
                    (None, _) => {
                        handle.closed.get_or_insert_with(Instant::now);
                    }
                }
            }
            group.drop_closed(fetch);
        }
    }

    /// Whether all places of the address at which the new server has listened are proven. `complete`: only if it has all
    /// places that the old one has.
    pub fn is_proven(&self, address: &Address, complete: bool) -> bool {
        let (mut all, mut any) = (true, false);
        for group in self.near(address) {
            if group.has_news() {
                any = true;
                all &= group.is_proven();
            } else {
                // Where it has closed what it had, it is on its way out, or not done.
                all &= !complete && !group.joined;
            }
        }
        any && all
    }

    /// Where the new server has closed all that it had, of one port or of all.
    pub fn closed(&self, port: Option<u16>) -> Vec<Address> {
        let groups = self.groups.iter().filter(|(own, _)| port.is_none_or(|port| **own == port));
        let closed = groups.flat_map(|(_, groups)| groups).filter(|group| group.joined && !group.has_news());
        closed.map(|group| group.place.address.into()).collect()
    }

    /// Whether the new server has closed all that it had at this address.
    pub fn is_closed(&self, address: &Address) -> bool {
        let mut joined = self.near(address).filter(|group| group.joined).peekable();
        joined.peek().is_some() && joined.all(|group| !group.has_news())
    }

    /// What keeps the new server from being proven at this address, if it listens there.
    pub fn hindrance(&self, address: &Address) -> Option<String> {
        let unproven = || self.near(address).filter(|group| group.has_news() && !group.is_proven());
        unproven().next()?;
        let unreachable = unproven().find_map(|group| group.unreachable.clone());
        Some(match unreachable {
            Some(why) => format!("it listens, but {why}; --no-probe does without"),
            None => "it listens but accepts nothing".into(),
        })
    }

    fn near(&self, address: &Address) -> impl Iterator<Item = &Group> {
        let port = if let Address::Tcp(_, port) = *address { port } else { 0 };
        let here = |group: &&Group| address.collides(&group.place.address.into());
        self.groups.get(&port).into_iter().flatten().filter(here)
    }

    /// Forgets what the new server had at this address, where no old one is.
    pub fn forget(&mut self, address: &Address) {
        let Address::Tcp(_, port) = *address else { return };
        self.at_port(port).retain(|g| g.old.is_some() || g.has_news() || !address.collides(&g.place.address.into()));
        for group in self.at_port(port) {
            group.joined &= group.has_news();
        }
        self.groups.retain(|_, groups| !groups.is_empty());
    }

    /// From here new connections go to the new server. Returns the places that it does not take over, which
    /// the old one has to its end, and the first failure: of one group, the others are switched all the same.
    pub fn switch(&mut self, fetch: Fetch<'_>) -> (Vec<SocketAddr>, io::Result<()>) {
        let (mut abandoned, mut result) = (Vec::new(), Ok(()));
        // Where the kernel cannot be asked all are there that were.
        if let Ok(listeners) = net::listeners() {
            self.follow_news(None, &listeners, fetch);
        }
        let taken: Vec<Place> = self.groups().filter(|g| g.has_news()).map(|g| g.place).collect();
        for group in self.groups_mut() {
            let done = if group.has_news() {
                group.switch(fetch)
            } else if taken.iter().any(|new| new.covers(&group.place)) {
                // The new server is at another place of the same port: whoever still comes here tries
                // again, and meets the new one once this socket is closed.
                group.handles().map(|old| old.refuse_newcomers(None).map(drop)).fold(Ok(()), io::Result::and)
            } else {
                if group.has_olds() {
                    abandoned.push(group.place.address);
                }
                Ok(())
            };
            result = result.and(done);
        }
        (abandoned, result)
    }

    /// From here new connections go to the old servers again. What went to the new one stays there.
    pub fn switch_back(&mut self, fetch: Fetch<'_>) {
        for group in self.groups_mut() {
            group.stage = Stage::Before;
            let _ = group.steer(fetch);
            for old in group.handles() {
                let _ = old.accept_newcomers();
            }
        }
    }

    /// Inodes of the listeners of old servers that we keep open.
    pub fn kept(&self) -> impl Iterator<Item = u32> {
        self.groups().flat_map(|g| g.members.iter()).filter(|m| !m.is_new()).map(|m| m.inode)
    }

    /// Who holds a listener of this old server besides us; `None` if nobody does, as far as can be seen.
    pub fn holder_of(&self, old: u64) -> Option<Held> {
        let inodes: BTreeSet<u32> = self.groups().filter(|g| g.old == Some(old)).flat_map(Group::kept).collect();
        if inodes.is_empty() {
            return None;
        }
        // What cannot be seen is closed with our own handles, as a rule.
        procfs::holders(&inodes, self.since).ok()?.held.into_values().next()
    }

    /// This old server is gone, and nobody holds its listeners: lets go of them. Whether the kernel has closed them.
    pub fn drop_olds(&mut self, old: u64, fetch: Fetch<'_>) -> bool {
        for group in self.groups_mut().filter(|group| group.old == Some(old)) {
            if group.news().count() < group.handles().count() {
                // For a moment the index may name an old socket: whoever meets it tries again.
                group.handles().for_each(|old| drop(old.refuse_newcomers(None)));
            }
            group.drop_all(group.kept(), fetch);
        }
        // One look for all: a server may have a thousand.
        let listeners = net::listeners().ok();
        self.groups_mut().filter(|group| group.old == Some(old)).fold(true, |closed, group| {
            group.reap(listeners.as_ref(), fetch);
            closed && group.kept().is_empty()
        })
    }

    /// This old server stays: nothing is wanted of it any more.
    pub fn let_go(&mut self, old: u64) {
        let listeners = net::listeners().ok();
        for groups in self.groups.values_mut() {
            groups.extract_if(.., |g| g.old == Some(old)).for_each(|group| group.leave_to_old(listeners.as_ref()));
        }
        self.groups.retain(|_, groups| !groups.is_empty());
    }

    /// The old servers are gone, and the new one has proven itself.
    /// `false` where something is left to be taken off.
    pub fn finish(&mut self, fetch: Fetch<'_>) -> bool {
        let is_touched = |group: &&Group| group.steered || group.guarded;
        let touched: BTreeSet<u32> = self.groups().filter(is_touched).flat_map(Group::inodes_of_news).collect();
        // In one look: a server may have a thousand.
        let own = if touched.is_empty() { Vec::new() } else { fetch(&touched) };
        let own = own.into_iter().filter_map(|socket| Some((socket.inode().ok()?, socket))).collect();
        self.keep(|group| !group.leave_to_new(&own));
        self.groups.is_empty()
    }

    /// The new server is gone, or gives up.
    pub fn turn_back(self) {
        let listeners = net::listeners().ok();
        self.groups.into_values().flatten().for_each(|group| group.leave_to_old(listeners.as_ref()));
    }
}

/// New connections go to whoever listens beside these sockets, which joined last and are all that a server has there.
pub fn steer_away(sockets: Vec<Socket>, listeners: &Listeners) -> io::Result<()> {
    for group in Sharing::alone(sockets)?.groups() {
        let others = group.strangers(listeners) as u32;
        if let (1.., Some(socket)) = (others, group.handles().next()) {
            socket.steer(&Program::new(&[Range { first: 0, count: others }], &[]))?;
        }
    }
    Ok(())
}

/// Takes off what steers and filters these sockets, all that a server has at their places. `false`, and all stays
/// steered, if somebody else listens there too: their claimer has gone away, and its server may come only now.
pub fn serve_alone(sockets: Vec<Socket>) -> io::Result<bool> {
    let mut sharing = Sharing::alone(sockets)?;
    if !sharing.is_known()? {
        return Ok(false);
    }
    for socket in sharing.groups().flat_map(Group::handles) {
        let _ = socket.accept_newcomers();
        let _ = socket.release();
    }
    // Who came at this very moment has joined behind them, and not proven itself.
    let alone = sharing.is_known();
    if !matches!(alone, Ok(true)) {
        sharing.groups_mut().for_each(|group| drop(group.steer(&|_| Vec::new())));
    }
    alone
}

/// The number of lo in every network namespace (LOOPBACK_IFINDEX of the kernel).
const LOOPBACK: u32 = 1;

/// How long a probe may take before somebody looks whether its socket is still the server's.
const PROBE_PATIENCE: Duration = Duration::from_millis(250);

/// How long a probe takes to connect on this machine at most, unless something keeps it away.
const PROBE_ARRIVES: Duration = Duration::from_millis(500);

/// How long an old server that has closed its last listener may take to open another one.
const REOPENS_WITHIN: Duration = Duration::from_millis(250);

/// How long after a look at all processes in vain the next one is taken.
const BLIND_FOR: Duration = Duration::from_millis(500);

/// How long a server that has accepted is watched: one that crashes at its start does so right away.
const STEADY: Duration = Duration::from_millis(100);
