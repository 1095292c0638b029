//! The members of a reuseport group as the kernel orders them. Pure.

#![forbid(unsafe_code)]

use crate::sys::steer::Range;
use std::ops::Deref;

/// Members in the kernel's order: a program names one by its index. Whoever joins is the last; when one leaves, the
/// last takes its index (reuseport_add_sock and reuseport_detach_sock of the kernel).
#[derive(Debug)]
pub struct Members<M>(Vec<M>);

impl<M> Default for Members<M> {
    fn default() -> Members<M> {
        Members(Vec::new())
    }
}

impl<M> Deref for Members<M> {
    type Target = [M];

    fn deref(&self) -> &[M] {
        &self.0
    }
}

impl<M> Members<M> {
    /// A socket listens.
    pub fn join(&mut self, member: M) {
        self.0.push(member);
    }

    /// The member at this index is closed.
    pub fn leave(&mut self, index: usize) -> M {
        self.0.swap_remove(index)
    }

    /// The first member that is closed leaves, if one is: `is_left` tells which are there.
    pub fn leave_first(&mut self, is_left: impl Fn(&M) -> bool) -> Option<M> {
        // The last ones first: nothing moves then.
        let index = self.0.iter().rposition(|member| !is_left(member))?;
        Some(self.leave(index))
    }

    /// What there is to know of each member; the order is the kernel's alone.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut M> {
        self.0.iter_mut()
    }

    /// What is to be named when the member at `index`, which is in none of these ranges, is about to leave: `None` if they
    /// go on naming the same members; else those of them that are named rightly both before and after, or, where there
    /// are none, what is right after. An index past the end stands for all members.
    pub fn ranges_after(&self, index: usize, ranges: &[Range]) -> Option<Vec<Range>> {
        let is_meant = |member: usize| ranges.iter().any(|r| (r.first..r.first + r.count).contains(&(member as u32)));
        let last = self.0.len() - 1;
        // By their indexes from then on.
        let meant: Vec<bool> = (0..last).map(|at| is_meant(if at == index { last } else { at })).collect();
        let is_right = |at: u32| meant.get(at as usize).copied().unwrap_or(meant.iter().all(|meant| *meant));
        if ranges.iter().flat_map(|r| r.first..r.first + r.count).all(is_right) {
            return None;
        }
        let steady = ranges_of((0..last).map(|at| is_meant(at) && meant[at]));
        Some(if steady.is_empty() { ranges_of(meant.into_iter()) } else { steady })
    }

    /// The indexes of some members, as few ranges as there can be.
    pub fn ranges(&self, of: impl Fn(&M) -> bool) -> Vec<Range> {
        ranges_of(self.0.iter().map(of))
    }
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
    fn what_is_right_after_a_member_has_left_is_known_before() {
        let after = |sides: &str, index: usize| {
            let mut members = Members::default();
            sides.chars().for_each(|side| members.join(side));
            let ranges = members.ranges(|side| *side == 'x');
            let after = members.ranges_after(index, &ranges);
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
