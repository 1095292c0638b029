//! Which members of a group are left: what their servers have closed leaves, and the program follows.

use super::group::{Fetch, Group, Stage};
use super::member::{Member, Proof, REOPENS_WITHIN, Side};
use crate::sys::net::{self, Listeners};
use crate::sys::steer::Program;
use std::collections::BTreeSet;
use std::time::Duration;

impl Group {
    /// Removes new sockets that are not among `left`: they were closed, perhaps by the death of a worker.
    pub(super) fn follow(&mut self, left: &BTreeSet<u32>, fetch: Fetch<'_>) {
        if self.leave(|member| !member.is_new() || left.contains(&member.inode)) {
            let _ = self.steer(fetch);
        }
    }

    /// Removes the members that are closed, before another one joins.
    pub(super) fn catch_up(&mut self, listeners: &Listeners, fetch: Fetch<'_>) {
        self.reap(listeners, fetch);
        self.follow(&self.listening(listeners), fetch);
    }

    /// Members that are closed leave; `true` if any was.
    fn leave(&mut self, is_left: impl Fn(&Member) -> bool) -> bool {
        let left = self.members.leave_all(is_left);
        if left > 0 {
            self.members.iter_mut().filter_map(Member::proof_mut).for_each(Proof::begin_anew);
        }
        left > 0
    }

    /// Lets go of what the old server has closed. The last one of a place stays for a moment, as long as the new server has
    /// not proven itself: a server that replaces its listener closes one and opens another right away.
    pub(super) fn drop_closed(&mut self, fetch: Fetch<'_>) {
        let is_open = |m: &Member| m.handle().is_some_and(|handle| handle.closed.is_none());
        let spared = match self.stage == Stage::Switched || self.members.iter().any(is_open) {
            true => Duration::ZERO,
            false => REOPENS_WITHIN,
        };
        let is_over = |m: &&Member| m.handle().and_then(|h| h.closed).is_some_and(|since| since.elapsed() >= spared);
        let mut closed: Vec<u32> = self.members.iter().filter(is_over).map(|m| m.inode).collect();
        if closed.len() < self.olds().count() && self.is_lost_with_any(closed.len()) {
            self.shun(&std::mem::take(&mut closed), fetch);
        }
        if !closed.is_empty() {
            self.drop_all(closed, fetch);
            self.reap_now(fetch);
        }
    }

    /// Whether nobody knows which index a new socket takes, as one of the last members, when so many of the old server leave.
    fn is_lost_with_any(&self, leaving: usize) -> bool {
        let mut members = self.members.iter().enumerate();
        self.members.iter().rev().take(leaving).any(Member::is_new)
            && members.any(|(index, member)| member.handle().is_some() && self.members.is_lost_with(index))
    }

    /// These sockets, which the old server has closed, stay all the same: to let go of them would move a new one nobody
    /// knows where. Whoever gets there tries again a second later, and gets another.
    fn shun(&mut self, closed: &[u32], fetch: Fetch<'_>) {
        let mut is_new = false;
        for Member { side, .. } in self.members.iter_mut().filter(|member| closed.contains(&member.inode)) {
            if let Side::Old(handle) = side {
                is_new |= std::mem::replace(&mut handle.serves, false);
                let _ = handle.socket.refuse_newcomers(None);
            }
        }
        if is_new {
            let _ = self.steer(fetch);
        }
    }

    /// Lets go of these sockets of old servers. The caller then looks whether the kernel has closed the last of them.
    pub(super) fn drop_all(&mut self, inodes: Vec<u32>, fetch: Fetch<'_>) {
        // For a moment our program may name any of them, and somebody else may hold one for longer, where its index means
        // the member that comes there. Nobody accepts from it: whoever meets it tries again.
        let leaving = self.members.iter().filter(|member| inodes.contains(&member.inode)).filter_map(Member::handle);
        leaving.for_each(|handle| drop(handle.socket.refuse_newcomers(None)));
        for (nth, inode) in inodes.into_iter().enumerate() {
            // Where the next one is depends on whether the one before has left.
            if nth > 0 {
                self.reap_now(fetch);
            }
            let is_it = |m: &Member| m.inode == inode && m.handle().is_some();
            let Some(index) = self.members.iter().position(is_it) else { continue };
            let side = self.members.iter_mut().nth(index).map(|m| std::mem::replace(&mut m.side, Side::Dropped));
            let Some(Side::Old(handle)) = side else { continue };
            let _ = handle.socket.steer(&self.whole(None));
            // The last member takes its index. If our program would then be wrong, one that will be right replaces it.
            if let Some(ranges) = self.members.ranges_after(index, &self.receives(), self.receivers()) {
                let _ = handle.socket.steer(&Program::new(&ranges, &[]));
            }
        }
    }

    /// Removes dropped sockets that the kernel has closed by now. It closes a socket a moment after the last process
    /// has let go of it, or later if that process is ending.
    pub(super) fn reap(&mut self, listeners: &Listeners, fetch: Fetch<'_>) {
        let place = self.place;
        let is_open = |inode: u32| listeners.at_place(&place).any(|s| s.inode == inode);
        if self.leave(|m| !matches!(m.side, Side::Dropped) || is_open(m.inode))
            // Where all that are left get connections it does not matter which of them.
            && self.receives().iter().map(|range| range.count).sum::<u32>() < self.members.len() as u32
        {
            let _ = self.steer(fetch);
        }
    }

    /// Like [`Group::reap`], by a look of its own.
    pub(super) fn reap_now(&mut self, fetch: Fetch<'_>) {
        if let Ok(listeners) = net::listeners_at(self.place.address.port()) {
            self.reap(&listeners, fetch);
        }
    }
}
