//! What a server asks about an address, and the answers.

use super::Holder;
use crate::place::Place;
use crate::sys::net::TcpSocket;
use crate::sys::pid::Pid;

/// The server that looks an address up.
pub struct Asker<'a> {
    /// Its main process.
    pub me: Pid,
    /// Whether a process is part of it; an error if that cannot be seen.
    pub owns: &'a dyn Fn(Pid) -> std::io::Result<bool>,
    /// Whether it holds one of these sockets; an error if that cannot be seen.
    pub holds: &'a dyn Fn(&[TcpSocket]) -> std::io::Result<bool>,
    /// The places of its sockets that wait to listen, and what it may do to the servers that they meet there. If there are
    /// no places, the name of the address counts.
    pub places: &'a [(Place, May)],
}

/// What the caller of `listen` may do to a server that it meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    /// Replace it: the caller's user owns the socket.
    Replace,
    /// Nothing: the caller has changed its user since it opened the socket.
    Nothing,
}

/// What [`RunDir::look_up`] found.
#[derive(Debug)]
pub enum Found {
    /// Nobody had the address; now it is registered. These servers have an address of the same name, and the kernel lets
    /// ours listen beside them.
    Vacant(Vec<Pid>),
    /// A server has it that the caller of `listen` may not replace.
    Foreign,
    /// These servers have it.
    Taken(Vec<Holder>),
    /// Servers have it that need a caretaker first.
    Orphans(Vec<Holder>),
    /// The server that has it once lost its supervisor, and another process is claiming such servers at the moment.
    Busy,
    /// It cannot be had, for this reason.
    Blocked(String),
    /// It seems that it cannot be had, but another look may show more: there are sockets, and nobody seems to hold them.
    Unclear(String),
}
