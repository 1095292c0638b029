//! A server: a program that is started by a supervisor and knows nothing of it.

use crate::address::Address;
use crate::kernel::{self, Key, State};
use crate::place::Place;
use crate::protocol::{ServerWord, SupervisorWord};
use crate::share::Handles;
use crate::swap::Meets;
use crate::sys::net::TcpSocket;
use crate::sys::steer::Socket;
use std::collections::{BTreeSet, VecDeque};

/// How a supervisor gets at a server: by its pid.
#[derive(Debug, Clone, Copy)]
pub struct Server(pub i32);

impl Server {
    /// What the product's drain asks for: listeners and connections.
    pub fn socket_inodes(&self) -> Option<BTreeSet<u32>> {
        Some(kernel::with(|k| {
            let is_its = |s: &&u32| k.sockets[s].count(self.0) > 0;
            let listeners = k.sockets.keys().filter(is_its).copied();
            let accepted = k.connections.values().filter(|c| c.server == self.0 && c.state == State::Accepted);
            listeners.chain(accepted.map(|c| c.inode)).collect()
        }))
    }

    pub fn has(&self, inode: u32) -> bool {
        kernel::with(|k| k.sockets.get(&inode).is_some_and(|s| s.count(self.0) > 0))
    }

    pub fn holds_of(&self, sockets: &[TcpSocket]) -> Vec<TcpSocket> {
        sockets.iter().filter(|s| self.has(s.inode)).cloned().collect()
    }

    /// Handles on its listeners at these addresses.
    pub fn listeners(&self, at: &[Address]) -> Vec<Socket> {
        let its = |(inode, s): (&u32, &kernel::Socket)| {
            let address = Address::from(s.key.address);
            let is_meant = s.listens && s.count(self.0) > 0 && at.iter().any(|at| at.collides(&address));
            is_meant.then_some(*inode)
        };
        let inodes: Vec<u32> = kernel::with(|k| k.sockets.iter().filter_map(its).collect());
        inodes.into_iter().map(Socket::open).collect()
    }
}

impl Handles for Server {
    fn handles(&self, inodes: &BTreeSet<u32>) -> Vec<Socket> {
        inodes.iter().filter(|inode| self.has(**inode)).map(|inode| Socket::open(*inode)).collect()
    }
}

/// What a server does by itself, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Bind {
        key: Key,
        /// It sets SO_REUSEPORT itself: it has several sockets there.
        shares: bool,
    },
    /// On what it has bound last.
    Listen,
    /// One of its sockets, and opens it anew: a worker is replaced.
    Reopen(usize),
    Close(usize),
    Say(ServerWord),
    AwaitGo(Address),
    Accept,
}

/// It waits in `listen`.
#[derive(Debug, Clone)]
pub struct Call {
    pub inode: u32,
    pub place: Place,
    pub meets: Meets,
    /// Its supervisor has it.
    pub is_seen: bool,
}

/// The process of a server.
#[derive(Debug)]
pub struct Process {
    pub pid: i32,
    pub supervisor: i32,
    pub steps: VecDeque<Step>,
    pub sockets: Vec<Socket>,
    pub call: Option<Call>,
    pub met: Vec<u32>,
    pub says: VecDeque<ServerWord>,
    pub reads: VecDeque<SupervisorWord>,
    pub gone_ahead: BTreeSet<Address>,
    pub stage: Life,
    pub will: Will,
}

/// How it takes what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Will {
    pub accepts: bool,
    /// Ignores TAKEDOWN and its stop signal.
    pub stubborn: bool,
    /// It outlives its supervisor.
    pub outlives: bool,
    /// A process of its ended with it.
    pub exits_with: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Life {
    Runs,
    /// It was told to take itself down: it finishes what it has.
    Finishes,
    /// It has its stop signal.
    Signalled,
    Ended(u8),
    /// And its supervisor knows.
    Reaped,
}

impl Process {
    pub fn is_alive(&self) -> bool {
        !matches!(self.stage, Life::Ended(_) | Life::Reaped)
    }

    /// Whether it does something by itself next.
    pub fn steps(&self) -> bool {
        match self.steps.front() {
            _ if self.call.is_some() || self.stage != Life::Runs => false,
            Some(Step::AwaitGo(address)) => self.gone_ahead.contains(address),
            Some(_) => true,
            None => false,
        }
    }

    /// What it can accept from.
    pub fn ready(&self) -> Option<u32> {
        if !self.will.accepts || self.call.is_some() || !self.is_alive() {
            return None;
        }
        let inodes = self.sockets.iter().filter_map(|s| s.inode().ok());
        kernel::with(|k| inodes.into_iter().find(|inode| k.sockets.get(inode).is_some_and(|s| !s.queue.is_empty())))
    }

    /// Whether it is about to end.
    pub fn finishes(&self) -> bool {
        match self.stage {
            _ if self.call.is_some() || self.will.stubborn => false,
            Life::Signalled => true,
            Life::Finishes => {
                kernel::with(|k| k.connections.values().all(|c| c.server != self.pid || c.state != State::Accepted))
            }
            Life::Runs | Life::Ended(_) | Life::Reaped => false,
        }
    }
}
