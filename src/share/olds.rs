//! The listeners of old servers, which we keep open: how they are taken over, and when we let go of them.

use super::group::{Fetch, Group, NOBODY};
use super::handed::Order;
use super::member::{Member, Proof, REOPENS_WITHIN, Side};
use super::{Handed, Sharing, Whose};
use crate::place::Place;
use crate::procfs::{self, Held, Holders};
use crate::sys::clock::Instant;
use crate::sys::net::{self, Listeners, TcpSocket};
use crate::sys::steer::Socket;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

/// How long to wait, after a look that could not see all processes, before the next look at all of them.
const BLIND_FOR: Duration = Duration::from_millis(500);

impl Sharing {
    /// Adds the listeners of an old server, and those of older ones that drain behind it, under its number. The error says
    /// why the ports cannot be shared; no listener is kept then. `since`: when the oldest of these servers started.
    pub fn add_old(&mut self, old: u64, since: u64, sockets: Vec<Handed>) -> Result<(), String> {
        let failed = |e: io::Error| crate::error::reason(&e);
        if sockets.is_empty() || !sockets.iter().all(|handed| handed.socket.shares()) {
            return Err("the old server does not share its port".into());
        }
        let mut added = Sharing::of(Some(old), sockets).map_err(failed)?;
        let is_taken = |group: &Group| self.groups_at(group.place.address.port()).any(|g| g.place == group.place);
        if !added.is_known().map_err(failed)? || added.groups().any(is_taken) {
            return Err("a stranger listens on the same port".into());
        }
        added.groups_mut().try_for_each(|group| group.steer(&NOBODY)).map_err(failed)?;
        self.since = if self.has_olds() { self.since.min(since) } else { since };
        added.groups.into_iter().for_each(|(port, groups)| self.at_port(port).extend(groups));
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
        group.add_old(socket, true)?;
        // What cannot be steered now is steered at the next look.
        let _ = group.steer(fetch);
        // As a rule it replaces a listener that was closed.
        self.follow_olds(&listeners, fetch);
        Ok(())
    }

    /// The last look before somebody else steers: what was closed until now leaves, and the program follows.
    pub fn look_once_more(&mut self, fetch: Fetch<'_>) {
        if let Ok(listeners) = net::listeners() {
            self.follow_olds(&listeners, fetch);
            self.groups_mut().for_each(|group| group.catch_up(&listeners, fetch));
        }
    }

    /// All listeners in their order, for whoever steers next. `own`: those of the new server.
    pub fn hand_over(&self, own: Vec<Socket>) -> Vec<Handed> {
        let mut own: BTreeMap<u32, Socket> =
            own.into_iter().filter_map(|socket| Some((socket.inode().ok()?, socket))).collect();
        let mut all = Vec::new();
        for group in self.groups() {
            let is_closing = group.members.iter().any(|member| matches!(member.side, Side::Dropped));
            for (index, member) in group.members.iter().enumerate() {
                let (socket, whose) = match &member.side {
                    Side::Old(handle) => (handle.socket.try_clone().ok(), Whose::Draining),
                    Side::New(_) => (own.remove(&member.inode), Whose::Serving),
                    Side::Dropped => (None, Whose::Draining),
                };
                let is_known = group.in_order && !is_closing && group.members.is_known(index);
                let order = if is_known { Order::Known } else { Order::Unknown };
                all.extend(socket.map(|socket| Handed { socket, whose, order }));
            }
        }
        all.extend(own.into_values().map(|socket| Handed::unknown(socket, Whose::Serving)));
        all
    }

    /// Whether the new server has listened where this old one does.
    pub fn is_beside(&self, old: u64) -> bool {
        let its: Vec<Place> = self.groups().filter(|group| group.old == Some(old)).map(|group| group.place).collect();
        let is_beside = |group: &Group| its.iter().any(|place| group.place.conflicts(place));
        self.groups().any(|group| (group.joined || group.has_news()) && is_beside(group))
    }

    /// Lets go of the listeners of an old server, while somebody else steers.
    pub fn forget_handles(&mut self, old: u64) {
        for group in self.groups_mut().filter(|group| group.old == Some(old)) {
            group.members.leave_all(Member::is_new);
            group.members.doubt(|_| true);
        }
    }

    /// Steers again what somebody else has steered meanwhile. `own`: the listeners of the new server.
    pub fn resume(&mut self, own: &[TcpSocket], listeners: &Listeners, fetch: Fetch<'_>) {
        for group in self.groups_mut() {
            let listening = group.listening(listeners);
            let left = group.members.leave_all(|member| listening.contains(&member.inode));
            let place = group.place;
            let here = own.iter().filter(|socket| socket.place() == place);
            let joined = here.fold(0, |joined, own| joined + usize::from(group.add_new(own.inode, Proof::Proven)));
            if left + joined > 0 {
                group.members.doubt(|_| true);
            }
            let _ = group.steer(fetch);
        }
    }

    /// Whether listeners of old servers are kept open.
    pub fn has_olds(&self) -> bool {
        self.groups().any(Group::has_olds)
    }

    /// Inodes of the listeners of old servers that we keep open.
    pub fn kept(&self) -> impl Iterator<Item = u32> {
        self.groups().flat_map(Group::kept)
    }

    /// Lets go of what old servers have closed: nobody may be sent to a socket that only we hold.
    pub(super) fn follow_olds(&mut self, listeners: &Listeners, fetch: Fetch<'_>) {
        let (mut suspects, mut shut) = (BTreeSet::new(), false);
        let listening: BTreeSet<u32> = listeners.all().map(|s| s.inode).collect();
        for Member { inode, side } in self.groups_mut().flat_map(|group| group.members.iter_mut()) {
            let Side::Old(handle) = side else { continue };
            if !listening.contains(inode) && !handle.socket.listens() {
                // By shutdown(2): it is open, and no member any more.
                (handle.seen, handle.closed) = (None, Some(Instant::now() - REOPENS_WITHIN));
                shut = true;
            } else if !handle.seen.as_ref().is_some_and(|held| held.is_still(*inode)) {
                suspects.insert(*inode);
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
            for Member { inode, side } in group.members.iter_mut().filter(|member| suspects.contains(&member.inode)) {
                let Side::Old(handle) = side else { continue };
                match (held.get(inode), &handle.seen) {
                    (Some(held), _) => (handle.seen, handle.closed) = (Some(*held), None),
                    // Its files are closed after it has shown the last of them.
                    (None, Some(seen)) if procfs::is_ending(seen.pid) => {}
                    (None, _) if may_be_more => {}
                    (None, _) => _ = handle.closed.get_or_insert_with(Instant::now),
                }
            }
            group.drop_closed(fetch);
        }
    }

    /// Who holds a listener of this old server besides us; `None` if nobody does, as far as can be seen.
    pub fn holder_of(&self, old: u64) -> Option<Held> {
        let its = || self.groups().filter(|g| g.old == Some(old));
        let inodes: BTreeSet<u32> = its().flat_map(Group::kept).collect();
        inodes.first()?;
        // To look at all processes takes long, and a server may drain for hours.
        let mut members = its().flat_map(|group| group.members.iter());
        let is_still = |member: &Member| Some(member.handle()?.seen?).filter(|seen| seen.is_still(member.inode));
        if let Some(seen) = members.find_map(is_still) {
            return Some(seen);
        }
        // Holders that cannot be seen count as none: as a rule the listeners close with our own handles.
        procfs::holders(&inodes, self.since).ok()?.held.into_values().next()
    }

    /// This old server is gone, and nobody holds its listeners: lets go of them. Whether the kernel has closed them.
    pub fn drop_olds(&mut self, old: u64, fetch: Fetch<'_>) -> bool {
        for group in self.groups_mut().filter(|group| group.old == Some(old)) {
            group.drop_all(group.kept(), fetch);
        }
        // One look for all: a server may have a thousand.
        let listeners = net::listeners().ok();
        self.groups_mut().filter(|group| group.old == Some(old)).fold(true, |closed, group| {
            listeners.iter().for_each(|listeners| group.reap(listeners, fetch));
            closed && group.kept().is_empty()
        })
    }

    /// The old servers have ended before the new one has proven itself, which is alone now.
    pub fn forget_olds(&mut self, fetch: Fetch<'_>) {
        let olds: BTreeSet<u64> = self.groups().filter_map(|group| group.old).collect();
        olds.into_iter().for_each(|old| _ = self.drop_olds(old, fetch));
        self.groups_mut().for_each(|group| group.old = None);
    }

    /// The lock of this old server may be somebody else's by now: lets go of its listeners, and of the port as it is
    /// steered. `false`, and all stays, if the new server listens beside them.
    pub fn lose(&mut self, old: u64) -> bool {
        if self.is_beside(old) {
            return false;
        }
        self.keep(|group| group.old != Some(old));
        true
    }

    /// This old server stays: nothing is wanted of it any more.
    pub fn let_go(&mut self, old: u64) {
        let listeners = net::listeners().ok();
        for groups in self.groups.values_mut() {
            groups.extract_if(.., |g| g.old == Some(old)).for_each(|group| group.leave_to_old(listeners.as_ref()));
        }
        self.groups.retain(|_, groups| !groups.is_empty());
    }
}
