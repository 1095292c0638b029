//! The sockets of one place: whose they are, who gets the connections, and the program that tells the kernel.

use super::member::{Handle, Member, Proof, Side};
use crate::members::Members;
use crate::place::Place;
use crate::sys::net::Listeners;
use crate::sys::steer::{OwnProgram, Probe, Program, Range, Socket};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// Where the listeners of the new server are to be had.
pub(super) type Fetch<'a> = &'a dyn Handles;

/// A server, or somebody who has its listeners.
pub trait Handles {
    /// Handles on those of these sockets that can be had.
    fn handles(&self, inodes: &BTreeSet<u32>) -> Vec<Socket>;
}

impl Handles for BTreeMap<u32, Socket> {
    fn handles(&self, inodes: &BTreeSet<u32>) -> Vec<Socket> {
        inodes.iter().filter_map(|inode| self.get(inode)?.try_clone().ok()).collect()
    }
}

/// Where there is no new server.
pub(super) const NOBODY: BTreeMap<u32, Socket> = BTreeMap::new();

/// Who gets the connections of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The old sockets.
    Before,
    /// The old ones, and the new ones so many of 1,000.
    Portion(u16),
    /// The new ones.
    Switched,
}

/// The sockets of one place.
#[derive(Debug)]
pub(super) struct Group {
    /// The number of the old server; `None` where only the new one is: nothing is steered there, but the new one has to
    /// prove itself all the same.
    pub old: Option<u64>,
    pub place: Place,
    pub members: Members<Member>,
    pub stage: Stage,
    /// The new server has listened here, even if it has closed its sockets since.
    pub joined: bool,
    /// All members have joined by our hand: their order is known.
    pub in_order: bool,
    /// A program of ours is on the group.
    pub steered: bool,
    /// The new server's own program for the place, to be put on when ours is taken off.
    pub own: Option<OwnProgram>,
    /// Why probes do not get to a new server that may well accept: nothing that it has done.
    pub unreachable: Option<String>,
    /// Clients are kept away from the new sockets until the switch: without that, these would at once take connections
    /// from an old server at another place of the same port.
    pub guarded: bool,
    /// How many connections of a preview there were.
    pub previewed: usize,
}

impl Group {
    pub(super) fn new(old: Option<u64>, place: Place) -> Group {
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
            previewed: 0,
        }
    }

    /// A socket of the old server has joined. `serves`: it gets connections until the switch.
    pub(super) fn add_old(&mut self, socket: Socket, serves: bool) -> io::Result<()> {
        let inode = socket.inode()?;
        self.members.join(Member { inode, side: Side::Old(Handle { socket, serves, seen: None, closed: None }) });
        self.members.iter_mut().filter_map(Member::proof_mut).for_each(Proof::begin_anew);
        Ok(())
    }

    /// A socket of the new server has joined; `false` if it had before. Several processes may listen on one socket.
    pub(super) fn add_new(&mut self, inode: u32, proof: Proof) -> bool {
        let joins = self.members.iter().all(|member| member.inode != inode);
        if joins {
            self.members.join(Member { inode, side: Side::New(proof) });
        }
        joins
    }

    /// The sockets of the old server that we keep open.
    pub(super) fn olds(&self) -> impl Iterator<Item = &Socket> {
        self.members.iter().filter_map(Member::handle).map(|handle| &handle.socket)
    }

    /// Inodes of the old sockets, of those as well that the kernel is about to close.
    pub(super) fn kept(&self) -> Vec<u32> {
        self.members.iter().filter(|member| !member.is_new()).map(|member| member.inode).collect()
    }

    pub(super) fn inodes_of_news(&self) -> BTreeSet<u32> {
        self.members.iter().filter(|member| member.is_new()).map(|member| member.inode).collect()
    }

    pub(super) fn proofs(&self) -> impl Iterator<Item = &Proof> {
        self.members.iter().filter_map(Member::proof)
    }

    pub(super) fn has_news(&self) -> bool {
        self.proofs().next().is_some()
    }

    pub(super) fn has_olds(&self) -> bool {
        self.olds().next().is_some()
    }

    /// Which members get the new connections at this stage of a swap. If none of those is left, whichever there are.
    pub(super) fn receives(&self) -> Vec<Range> {
        self.members.ranges(self.receivers())
    }

    /// What tells these members from the others.
    pub(super) fn receivers(&self) -> fn(&Member) -> bool {
        let order: [fn(&Member) -> bool; 3] = match self.stage {
            Stage::Before | Stage::Portion(_) => [Member::serves, |member| !member.is_new(), Member::is_new],
            Stage::Switched => [Member::is_new, Member::serves, |member| !member.is_new()],
        };
        let is_there = |of: &fn(&Member) -> bool| self.members.iter().any(of);
        order.into_iter().find(is_there).unwrap_or(Member::is_new)
    }

    /// Lets clients through to the sockets that the old server still has.
    pub(super) fn accept_at_olds(&self) {
        let open = self.members.iter().filter_map(Member::handle).filter(|handle| handle.closed.is_none());
        open.for_each(|handle| drop(handle.socket.accept_newcomers()));
    }

    /// The program that the group needs now.
    pub(super) fn program(&self) -> Program {
        self.program_with(None)
    }

    /// The same with one more private connection, to the member at this index.
    pub(super) fn program_with(&self, preview: Option<(&Probe, u32)>) -> Program {
        match self.stage {
            Stage::Portion(permille) if self.may_be_portioned() => {
                let news = self.members.ranges(Member::is_new);
                Program::mixed(&self.receives(), &news, permille, &self.probes(preview))
            }
            Stage::Before | Stage::Portion(_) | Stage::Switched => self.whole(preview),
        }
    }

    /// The same, but no connection is shared out.
    pub(super) fn whole(&self, preview: Option<(&Probe, u32)>) -> Program {
        Program::new(&self.receives(), &self.probes(preview))
    }

    /// The private connections, each with the index of its member.
    fn probes<'a>(&'a self, preview: Option<(&'a Probe, u32)>) -> Vec<(&'a Probe, u32)> {
        let probe = |(index, member): (u32, &'a Member)| match member.proof() {
            Some(Proof::Begun(probe) | Proof::Probing(probe, _)) => Some((probe, index)),
            _ => None,
        };
        preview.into_iter().chain((0u32..).zip(self.members.iter()).filter_map(probe)).collect()
    }

    /// Whether both sides are here, and each index is known to be that of one of them.
    pub(super) fn may_be_portioned(&self) -> bool {
        self.has_news() && self.has_olds() && self.in_order && !self.guarded && !self.members.mixes(Member::is_new)
    }

    /// Puts the program on the group: through a socket of the old server, or of the new one.
    pub(super) fn steer(&mut self, fetch: Fetch<'_>) -> io::Result<()> {
        let program = self.program();
        self.put(&program, fetch)
    }

    pub(super) fn put(&mut self, program: &Program, fetch: Fetch<'_>) -> io::Result<()> {
        if let Some(old) = self.olds().find(|old| old.listens()) {
            old.steer(program)?;
        } else {
            // A single socket needs no steering, and an unknown order allows none.
            if !self.in_order || self.members.len() < 2 && !self.steered || !self.has_news() {
                return Ok(());
            }
            match fetch.handles(&self.inodes_of_news()).first() {
                Some(own) => own.steer(program)?,
                // The sockets cannot be had: the server has become a process that we may not look at.
                None => Socket::visit(&self.place, |visitor| visitor.steer(program))?,
            }
        }
        self.steered = true;
        Ok(())
    }

    /// Inodes of all that listens at the place.
    pub(super) fn listening(&self, listeners: &Listeners) -> BTreeSet<u32> {
        listeners.at_place(&self.place).map(|s| s.inode).collect()
    }

    /// How many sockets in the group are none of our members: while there are any, an index may mean another one.
    pub(super) fn strangers(&self, listeners: &Listeners) -> usize {
        let is_known = |inode: u32| self.members.iter().any(|member| member.inode == inode);
        listeners.at_place(&self.place).filter(|s| !is_known(s.inode)).count()
    }

    /// From here new connections go to the new server.
    pub(super) fn switch(&mut self, fetch: Fetch<'_>) -> io::Result<()> {
        self.unguard(fetch)?;
        self.stage = Stage::Switched;
        self.steer(fetch)
    }

    /// Lets clients through to the new sockets. An error where these cannot be had.
    pub(super) fn unguard(&mut self, fetch: Fetch<'_>) -> io::Result<()> {
        if self.guarded {
            let own = fetch.handles(&self.inodes_of_news());
            own.iter().try_for_each(Socket::accept_newcomers)?;
            if own.len() < self.inodes_of_news().len() {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.guarded = false;
        }
        Ok(())
    }

    /// Leaves the group as if there had never been old sockets: takes our program off, or puts the server's own on, and
    /// lets clients through to the new sockets. `own`: the new sockets, as far as they can be had. `false` if something
    /// of that cannot be done now.
    pub(super) fn leave_to_new(&mut self, own: &BTreeMap<u32, Socket>) -> bool {
        let restore = |socket: &Socket| self.own.as_ref().map_or_else(|| socket.release(), |own| socket.steer_by(own));
        let restored = match self.inodes_of_news().iter().find_map(|inode| own.get(inode)) {
            Some(socket) => restore(socket),
            // The sockets cannot be had: the server has become a process that we may not look at.
            None if self.steered && self.has_news() => Socket::visit(&self.place, restore),
            None => Ok(()),
        };
        self.steered &= restored.is_err();
        let _ = self.unguard(own);
        !(self.guarded || self.steered)
    }

    /// The old server serves as it did before.
    pub(super) fn leave_to_old(mut self, listeners: Option<&Listeners>) {
        self.stage = Stage::Before;
        // New sockets that are not closed yet stay members, and get nothing.
        let listening = listeners.map(|listeners| self.listening(listeners));
        let is_left = |inode: u32| listening.as_ref().is_none_or(|listening| listening.contains(&inode));
        self.members.leave_all(|member| !member.is_new() || is_left(member.inode));
        if !self.has_news() {
            // What the old server has closed stayed for the sake of their order.
            let is_closed = |m: &&Member| m.handle().is_some_and(|handle| handle.closed.is_some());
            let closed = self.members.iter().filter(is_closed).map(|m| m.inode).collect();
            self.drop_all(closed, &NOBODY);
            self.members.leave_all(|member| !matches!(member.side, Side::Dropped));
        }
        let Some(old) = self.olds().next() else { return };
        let _ = old.steer(&self.program());
        self.accept_at_olds();
        if self.members.iter().all(Member::serves) && listeners.is_some_and(|all| self.strangers(all) == 0) {
            let _ = old.release();
        }
    }
}
