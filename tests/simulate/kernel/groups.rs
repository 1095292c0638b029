//! Listening sockets, and the groups that they join.

use super::bpf::{self, Packet};
use super::connections::State;
use super::{Group, Kernel, Key, Program};
use nix::errno::Errno;
use nix::libc::sock_filter;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// A bound or listening socket.
#[derive(Debug, Hash)]
pub struct Socket {
    pub key: Key,
    pub shares: bool,
    pub listens: bool,
    pub filter: Option<Filter>,
    /// Connections to accept.
    pub queue: VecDeque<u32>,
    holders: Vec<(i32, u32)>,
}

/// The filter that keeps newcomers away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Filter {
    pub except: Option<SocketAddr>,
}

impl Socket {
    /// How many handles a process has.
    pub fn count(&self, pid: i32) -> u32 {
        self.holders.iter().find(|(holder, _)| *holder == pid).map_or(0, |(_, count)| *count)
    }

    pub fn holders(&self) -> impl Iterator<Item = i32> {
        self.holders.iter().map(|(pid, _)| *pid)
    }
}

impl Kernel {
    pub fn bind(&mut self, key: Key, shares: bool) -> Result<u32, Errno> {
        if self.is_in_the_way(&key, shares, None) {
            return Err(Errno::EADDRINUSE);
        }
        let inode = self.inode();
        let (queue, holders) = (VecDeque::new(), vec![(self.me, 1)]);
        self.sockets.insert(inode, Socket { key, shares, listens: false, filter: None, queue, holders });
        Ok(inode)
    }

    fn is_in_the_way(&self, key: &Key, shares: bool, me: Option<u32>) -> bool {
        let mut others = self.sockets.iter().filter(|(inode, _)| Some(**inode) != me);
        others.any(|(_, s)| s.key.place().conflicts(&key.place()) && !(shares && s.shares && s.key.uid == key.uid))
    }

    pub fn listen(&mut self, inode: u32) -> Result<(), Errno> {
        let socket = self.sockets.get(&inode).ok_or(Errno::EBADF)?;
        let (key, shares) = (socket.key, socket.shares);
        if socket.listens {
            return Ok(());
        }
        if self.is_in_the_way(&key, shares, Some(inode)) {
            return Err(Errno::EADDRINUSE);
        }
        if shares {
            let group = self.groups.entry(key).or_default();
            // One that was made sharable while it listened is found by the first that joins.
            let late = |(other, s): (&u32, &Socket)| {
                (s.key == key && s.listens && s.shares && !group.order.contains(other)).then_some(*other)
            };
            let late: Vec<u32> = self.sockets.iter().filter_map(late).collect();
            group.order.extend(late);
            group.order.push(inode);
        }
        self.sockets.get_mut(&inode).ok_or(Errno::EBADF)?.listens = true;
        Ok(())
    }

    pub fn attach(&mut self, inode: u32, program: Option<&[sock_filter]>) -> Result<(), Errno> {
        let socket = self.sockets.get(&inode).ok_or(Errno::EBADF)?;
        match self.groups.get_mut(&socket.key).filter(|group| group.order.contains(&inode)) {
            Some(group) => {
                if program.is_none() && group.program.is_none() {
                    return Err(Errno::ENOENT);
                }
                group.is_stale = false;
                group.program = program.map(|program| Program(program.to_vec()));
                Ok(())
            }
            None if program.is_none() => Err(Errno::ENOENT),
            None => Err(Errno::EINVAL),
        }
    }

    pub fn take(&mut self, inode: u32, pid: i32) {
        let Some(socket) = self.sockets.get_mut(&inode) else { return };
        match socket.holders.iter_mut().find(|(holder, _)| *holder == pid) {
            Some((_, count)) => *count += 1,
            None => socket.holders.push((pid, 1)),
        }
    }

    /// A process closes one of its handles.
    pub fn close(&mut self, inode: u32, pid: i32) {
        let Some(socket) = self.sockets.get_mut(&inode) else { return };
        if let Some((_, count)) = socket.holders.iter_mut().find(|(holder, _)| *holder == pid) {
            *count -= 1;
            if *count == 0 {
                self.drop_all(inode, pid);
            }
        }
    }

    /// It closes all of them. With the last one goes what waits in the queue, and the last member takes the place.
    pub fn drop_all(&mut self, inode: u32, pid: i32) {
        let Some(socket) = self.sockets.get_mut(&inode) else { return };
        socket.holders.retain(|(holder, _)| *holder != pid);
        if !socket.holders.is_empty() {
            return;
        }
        let Some(socket) = self.sockets.remove(&inode) else { return };
        if let Some(group) = self.groups.get_mut(&socket.key) {
            if let Some(index) = group.order.iter().position(|member| *member == inode) {
                group.order.swap_remove(index);
                group.is_stale = true;
            }
            if group.order.is_empty() {
                self.groups.remove(&socket.key);
            }
        }
        for id in socket.queue {
            match self.connections.get_mut(&id) {
                Some(connection) if connection.state != State::Left => connection.state = State::Reset,
                _ => drop(self.connections.remove(&id)),
            }
        }
    }

    /// The listener that gets a connection, as the kernel chooses it.
    pub fn select(&mut self, packet: &Packet) -> Option<u32> {
        let to = packet.target;
        let fits = |s: &Socket| {
            let ip = s.key.address.ip();
            s.listens
                && s.key.address.port() == to.port()
                && (ip == to.ip() || ip.is_unspecified())
                && s.key.takes(to.is_ipv4())
                && (s.key.device == 0 || s.key.device == packet.device)
        };
        let score = |s: &Socket| {
            let exact = !s.key.address.ip().is_unspecified();
            4 * u32::from(exact) + 2 * u32::from(s.key.device != 0) + u32::from(s.key.address.is_ipv4() == to.is_ipv4())
        };
        let found =
            self.sockets.iter().filter(|(_, s)| fits(s)).max_by_key(|(inode, s)| (score(s), u32::MAX - **inode));
        let (inode, key) = found.map(|(inode, s)| (*inode, s.key))?;
        let random = self.draw();
        let Some(Group { order, program, .. }) = self.groups.get(&key) else { return Some(inode) };
        if !order.contains(&inode) {
            return Some(inode);
        }
        let index = program.as_ref().map(|program| bpf::run(&program.0, packet, random) as usize);
        let by_hash = || order[random as usize % order.len()];
        Some(index.and_then(|index| order.get(index).copied()).unwrap_or_else(by_hash))
    }
}
