//! The members of a reuseport group as the kernel orders them. Pure.

#![forbid(unsafe_code)]

use crate::sys::steer::Range;
use std::collections::BTreeSet;
use std::ops::Deref;

/// Members in the kernel's order: a program names one by its index. Whoever joins is the last; when one leaves, the
/// last takes its index (reuseport_add_sock and reuseport_detach_sock of the kernel).
#[derive(Debug)]
pub struct Members<M> {
    order: Vec<M>,
    /// Indexes of members that may have changed places among themselves: several have left, and nobody knows which of
    /// them first, or they were there before anybody saw them join.
    unsure: BTreeSet<usize>,
}

impl<M> Default for Members<M> {
    fn default() -> Members<M> {
        Members { order: Vec::new(), unsure: BTreeSet::new() }
    }
}

impl<M> Deref for Members<M> {
    type Target = [M];

    fn deref(&self) -> &[M] {
        &self.order
    }
}

impl<M> Members<M> {
    /// A socket listens.
    pub fn join(&mut self, member: M) {
        self.order.push(member);
    }

    /// Nobody has seen those join that `of` picks: which of them has which of their indexes is not known.
    pub fn doubt(&mut self, of: impl Fn(&M) -> bool) {
        self.unsure.extend((0..self.order.len()).filter(|at| of(&self.order[*at])));
        if self.unsure.len() < 2 {
            self.unsure.clear();
        }
    }

    /// Whether the member at this index is known to be there.
    pub fn is_known(&self, index: usize) -> bool {
        !self.unsure.contains(&index)
    }

    /// Whether nobody knows which index the last member takes when this one leaves.
    pub fn is_lost_with(&self, index: usize) -> bool {
        self.unsure.contains(&index) && !self.unsure.contains(&(self.order.len() - 1))
    }

    /// The member at this index is closed.
    pub fn leave(&mut self, index: usize) -> M {
        if self.unsure.remove(&(self.order.len() - 1)) && index + 1 < self.order.len() {
            self.unsure.insert(index);
        }
        self.order.swap_remove(index)
    }

    /// Removes the members that are closed, for which `is_left` is false. Returns how many.
    pub fn leave_all(&mut self, is_left: impl Fn(&M) -> bool) -> usize {
        let closed: Vec<usize> = (0..self.order.len()).filter(|at| !is_left(&self.order[*at])).collect();
        let left = self.order.len() - closed.len();
        // Only members from index `left` on move, to the indexes of closed ones: a single one is known.
        let taken: BTreeSet<usize> = closed.iter().copied().filter(|at| *at < left).collect();
        for index in closed.iter().rev() {
            self.leave(*index);
        }
        // One by itself has left the index that it had, be that known or not.
        if taken.len() > 1 || closed.len() > 1 && !self.unsure.is_empty() {
            self.unsure.extend(taken);
        }
        if self.unsure.len() < 2 {
            self.unsure.clear();
        }
        closed.len()
    }

    /// Whether at some index it is not known if the member there is one that `of` picks.
    pub fn mixes(&self, of: impl Fn(&M) -> bool) -> bool {
        differ(self.unsure.iter().map(|index| of(&self.order[*index])))
    }

    /// The members, so that what is known of each can be changed; their order is the kernel's and cannot be.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut M> {
        self.order.iter_mut()
    }

    /// The member at `index`, which is in none of these ranges, is about to leave, and the last one takes its index.
    /// `None` if the ranges of those that `of` picks stay right. Else the ranges to use: the indexes that are right before and after, or if
    /// there are none, those that are right after. For an index past the end the kernel chooses among all members.
    pub fn ranges_after(&self, index: usize, ranges: &[Range], of: impl Fn(&M) -> bool) -> Option<Vec<Range>> {
        let is_named = |member: usize| ranges.iter().any(|r| (r.first..r.first + r.count).contains(&(member as u32)));
        let last = self.order.len() - 1;
        // Indexed as they are after the member has left.
        let picked = |at: usize| of(&self.order[if at == index { last } else { at }]);
        let mixes = differ(self.unsure.iter().filter(|at| **at < last).map(|at| picked(*at)));
        let meant: Vec<bool> = (0..last).map(|at| picked(at) && !(mixes && self.unsure.contains(&at))).collect();
        let is_right = |at: u32| meant.get(at as usize).copied().unwrap_or_else(|| (0..last).all(picked));
        if ranges.iter().flat_map(|r| r.first..r.first + r.count).all(is_right) {
            return None;
        }
        let steady = ranges_of((0..last).map(|at| is_named(at) && meant[at]));
        let [steady, meant, picked] = [steady, ranges_of(meant.into_iter()), ranges_of((0..last).map(picked))];
        [steady, meant].into_iter().find(|ranges| !ranges.is_empty()).or(Some(picked))
    }

    /// The indexes of the members that `of` picks, in as few ranges as possible. An index that may stand for a member
    /// that `of` does not pick is left out, unless there is no other.
    pub fn ranges(&self, of: impl Fn(&M) -> bool) -> Vec<Range> {
        let mixes = self.mixes(&of);
        let is_sure = |(at, member): (usize, &M)| of(member) && !(mixes && self.unsure.contains(&at));
        let sure = ranges_of(self.order.iter().enumerate().map(is_sure));
        if sure.is_empty() { ranges_of(self.order.iter().map(of)) } else { sure }
    }
}

fn differ(mut all: impl Iterator<Item = bool>) -> bool {
    all.next().is_some_and(|first| all.any(|other| other != first))
}

fn ranges_of(meant: impl Iterator<Item = bool>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for (index, _) in (0u32..).zip(meant).filter(|(_, meant)| *meant) {
        match ranges.last_mut() {
            Some(range) if range.first + range.count == index => range.count += 1,
            _ => ranges.push(Range { first: index, count: 1 }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::steer::{Program, Socket};
    use proptest::prelude::*;
    use std::net::{SocketAddr, TcpStream};

    #[test]
    fn indexes_become_as_few_ranges_as_there_can_be() {
        let mut members = Members::default();
        "oonnoon".chars().for_each(|side| members.join(side));
        let ranges = |side| members.ranges(|member| *member == side).iter().map(|r| (r.first, r.count)).collect();
        let (olds, news): (Vec<_>, Vec<_>) = (ranges('o'), ranges('n'));
        assert_eq!((olds, news), (vec![(0, 2), (4, 2)], vec![(2, 2), (6, 1)]));
    }

    #[test]
    fn whose_order_is_not_known_may_take_any_of_their_indexes() {
        let mut members = Members::default();
        "oo".chars().for_each(|side| members.join(side));
        members.doubt(|_| true);
        assert!(!members.is_lost_with(0), "whichever it is, the other one is left");
        "nn".chars().for_each(|side| members.join(side));
        assert!(!members.mixes(|side| *side == 'n') && members.is_lost_with(0) && !members.is_lost_with(2));
        members.leave(0);
        assert!(members.mixes(|side| *side == 'n'));
        let sure: Vec<_> = members.ranges(|side| *side == 'n').iter().map(|r| (r.first, r.count)).collect();
        assert_eq!(sure, [(2, 1)]);
        // When the last old one leaves, all are right: what is past the end stands for any of them.
        let is_new = |side: &char| *side == 'n';
        assert!(members.ranges_after(1, &members.ranges(is_new), is_new).is_none());
    }

    #[test]
    fn what_is_right_after_a_member_has_left_is_known_before() {
        let after = |sides: &str, index: usize| {
            let mut members = Members::default();
            sides.chars().for_each(|side| members.join(side));
            let ranges = members.ranges(|side| *side == 'x');
            let after = members.ranges_after(index, &ranges, |side| *side == 'x');
            after.map(|ranges| ranges.iter().map(|r| (r.first, r.count)).collect::<Vec<_>>())
        };
        // An index past the end stands for the only one that is left.
        assert_eq!(after("ox", 0), None);
        // It would stand for the other one too.
        assert_eq!(after("oox", 0), Some(vec![(0, 1)]));
        assert_eq!(after("onx", 0), Some(vec![(0, 1)]));
        assert_eq!(after("oxn", 0), None);
        assert_eq!(after("ooxx", 0), Some(vec![(2, 1)]));
        assert_eq!(after("oxx", 0), None);
        assert_eq!(after("xxo", 2), None);
    }

    /// Which of the sockets the kernel gives a connection to that a program sends to this index.
    fn at(index: u32, sockets: &Members<Socket>, address: SocketAddr) -> usize {
        sockets[0].steer(&Program::new(&[Range { first: index, count: 1 }], &[])).unwrap();
        let client = TcpStream::connect(address).unwrap();
        let queues: Vec<u32> = sockets.iter().map(|socket| socket.queue().unwrap()).collect();
        let chosen = queues.iter().position(|len| *len == 1).unwrap();
        drop(std::net::TcpListener::from(std::os::fd::OwnedFd::from(sockets[chosen].try_clone().unwrap())).accept());
        drop(client);
        chosen
    }

    #[test]
    fn who_moves_when_several_leave_at_once_is_known_as_far_as_can_be() {
        let after = |sides: &str, closed: &[usize]| {
            let mut members = Members::default();
            sides.chars().enumerate().for_each(|member| members.join(member));
            members.leave_all(|(at, _)| !closed.contains(at));
            let ranges = members.ranges(|(_, side)| *side == 'o');
            (members.mixes(|(_, side)| *side == 'o'), ranges.iter().map(|r| (r.first, r.count)).collect::<Vec<_>>())
        };
        // Whichever of the new ones moves where: the old one stays.
        assert_eq!(after("onnnnn", &[1, 2]), (false, vec![(0, 1)]));
        // An old one moves, and may have moved to either index.
        assert_eq!(after("onnon", &[1, 2]), (true, vec![(0, 1)]));
        assert_eq!(after("nnnno", &[0, 1]), (true, vec![(1, 1)]));
        // To the one that there is.
        assert_eq!(after("nno", &[0, 1]), (false, vec![(0, 1)]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_member_is_where_we_are_sure_that_it_is(
            found in 0usize..4, turned in 0usize..4,
            steps in prop::collection::vec(any::<Vec<prop::sample::Index>>(), 1..12),
        ) {
            // What the kernel does: one leaves after the other.
            let (mut kernel, mut members) = ((1000..1000 + found).collect::<Vec<usize>>(), Members::default());
            kernel.iter().for_each(|member| members.join(*member));
            members.doubt(|_| true);
            if found > 0 {
                kernel.rotate_left(turned % found);
            }
            for (step, closed) in steps.into_iter().enumerate() {
                for member in [3 * step, 3 * step + 1, 3 * step + 2] {
                    kernel.push(member);
                    members.join(member);
                }
                for index in closed {
                    if kernel.len() > 1 {
                        let index = index.index(kernel.len());
                        kernel.swap_remove(index);
                    }
                }
                members.leave_all(|member| kernel.contains(member));
                for (at, member) in members.iter().enumerate() {
                    prop_assert!(members.unsure.contains(&at) || kernel[at] == *member);
                }
                for of in 2..5 {
                    let is_meant = |member: &usize| member.is_multiple_of(of);
                    let ranges = members.ranges(is_meant);
                    let named = ranges.iter().flat_map(|r| r.first..r.first + r.count);
                    let right = named.map(|at| is_meant(&kernel[at as usize])).collect::<Vec<bool>>();
                    prop_assert!(members.mixes(is_meant) || right.iter().all(|right| *right));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_kernel_orders_its_members_as_we_do(steps in prop::collection::vec(any::<Option<prop::sample::Index>>(), 1..12)) {
            let first = Socket::member("127.0.0.1:0".parse().unwrap());
            let address = first.address().unwrap();
            let mut members = Members::default();
            members.join(first);
            for step in steps {
                match step {
                    Some(index) if members.len() > 1 => drop(members.leave(index.index(members.len()))),
                    _ => members.join(Socket::member(address)),
                }
                for index in 0..members.len() {
                    prop_assert_eq!(at(index as u32, &members, address), index);
                }
            }
        }
    }
}
