//! The simulated kernel: processes, listening sockets in their reuseport groups, accept queues, handshakes and
//! connections. What it does is measured in the product's own tests against the real one.

mod bpf;
mod connections;
mod groups;

pub use bpf::Packet;
pub use connections::{Arrival, Connection, State};
pub use groups::{Filter, Socket};

use crate::place::{Families, Place};
use nix::libc::sock_filter;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Microseconds at the begin of a run: the product subtracts from it.
const BEGIN: u64 = 1_000_000_000;
/// Whoever holds a file that is on its way in a message.
pub const NOBODY: i32 = 0;

/// What makes sockets one group. Not the product's `Place`: that one is under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub address: SocketAddr,
    pub both: bool,
    pub device: u32,
    pub uid: u32,
}

impl Key {
    pub fn place(&self) -> Place {
        let families = if self.both { Families::Both } else { Families::Own };
        Place { address: self.address, families, device: self.device, uid: self.uid }
    }

    /// Whether packets of an address family come here.
    fn takes(&self, v4: bool) -> bool {
        self.address.is_ipv4() == v4 || v4 && self.both
    }
}

/// A reuseport group.
#[derive(Debug, Default, Hash)]
pub struct Group {
    /// In the order that a program sees.
    pub order: Vec<u32>,
    /// It outlives whoever has put it there.
    pub program: Option<Program>,
    /// A member has left since the program was put there.
    pub is_stale: bool,
}

#[derive(Debug)]
pub struct Program(pub Vec<sock_filter>);

impl std::hash::Hash for Program {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.iter().for_each(|i| (i.code, i.jt, i.jf, i.k).hash(state));
    }
}

/// A process.
#[derive(Debug, Clone, Copy, Hash)]
pub struct Process {
    /// A supervisor, which is no holder of a server's sockets.
    pub is_serverswap: bool,
    pub ended: bool,
}

pub struct Kernel {
    /// Microseconds.
    pub now: u64,
    /// Who runs.
    pub me: i32,
    pub processes: BTreeMap<i32, Process>,
    pub sockets: BTreeMap<u32, Socket>,
    pub groups: BTreeMap<Key, Group>,
    pub connections: BTreeMap<u32, Connection>,
    next_inode: u32,
    next_port: u16,
    /// For the programs that choose at random.
    pub random: u64,
}

impl Kernel {
    fn new() -> Kernel {
        Kernel {
            now: BEGIN,
            me: NOBODY,
            processes: BTreeMap::new(),
            sockets: BTreeMap::new(),
            groups: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_inode: 100,
            next_port: 30_000,
            random: 1,
        }
    }

    pub fn inode(&mut self) -> u32 {
        self.next_inode += 1;
        self.next_inode
    }

    pub fn port(&mut self) -> u16 {
        self.next_port = if self.next_port > 60_000 { 30_000 } else { self.next_port + 1 };
        self.next_port
    }

    pub fn draw(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as u32
    }

    pub fn has_ended(&self, pid: i32) -> bool {
        self.processes.get(&pid).is_none_or(|process| process.ended)
    }

    /// A process ends: its files are closed, and it is seen no more.
    pub fn end(&mut self, pid: i32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.ended = true;
        }
        self.close_connections_of(pid);
        let held: Vec<u32> = self.sockets.iter().filter(|(_, s)| s.count(pid) > 0).map(|(inode, _)| *inode).collect();
        for inode in held {
            self.drop_all(inode, pid);
        }
    }
}

thread_local! {
    static KERNEL: RefCell<Kernel> = RefCell::new(Kernel::new());
}

/// Everything begins anew.
pub fn reset(seed: u64) {
    with(|k| *k = Kernel { random: seed | 1, ..Kernel::new() });
}

pub fn with<T>(act: impl FnOnce(&mut Kernel) -> T) -> T {
    KERNEL.with_borrow_mut(act)
}

/// Like [`with`], but not while the thread ends.
pub fn try_with(act: impl FnOnce(&mut Kernel)) {
    let _ = KERNEL.try_with(|kernel| {
        if let Ok(mut kernel) = kernel.try_borrow_mut() {
            act(&mut kernel);
        }
    });
}

/// Does something as this process.
pub fn run_as<T>(pid: i32, act: impl FnOnce() -> T) -> T {
    let before = with(|k| std::mem::replace(&mut k.me, pid));
    let result = act();
    with(|k| k.me = before);
    result
}
