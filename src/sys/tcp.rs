//! A TCP socket as the kernel describes it, and what follows from that. Pure.

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::place::{Families, Place};
use nix::sys::socket::SockaddrStorage;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::time::Duration;

/// States of linux/tcp_states.h.
pub(super) const TCP_ESTABLISHED: u8 = 1;
pub(super) const TCP_SYN_RECV: u8 = 3;
pub(super) const TCP_CLOSE_WAIT: u8 = 8;
pub(super) const TCP_LISTEN: u8 = 10;
const TCP_NEW_SYN_RECV: u8 = 12;

/// A TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its local address, as people name it.
    pub local: Address,
    /// Its local address and port, and its peer's, as the kernel has them.
    pub ends: Ends,
    /// Its inode, by which `/proc/PID/fd` names it; 0 while it waits in an accept queue.
    pub inode: u32,
    /// The user who made it.
    pub uid: u32,
    /// Its state (linux/tcp_states.h).
    pub state: u8,
    /// Bytes that its process has not read yet (of a listener: connections to accept).
    pub unread: u32,
    /// Bytes that its peer has not acknowledged yet (of a listener: how many connections may wait).
    pub unacknowledged: u32,
    /// Whether a v6 listener takes v4 packets too.
    pub families: Families,
    /// What moved on it; `None` if the kernel does not tell.
    pub moved: Option<Moved>,
}

/// The two ends of a connection: what an exact query asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Number of the interface that the socket is bound to (SO_BINDTODEVICE), or 0.
    pub interface: u32,
}

/// What moved on a connection, and how long ago (TCP_INFO).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Milliseconds since this end last sent data; since the connection was made, if it never did.
    pub sent: u32,
    /// Milliseconds since it last received some, in the same way.
    pub received: u32,
    /// Bytes that it has sent.
    pub bytes_sent: u64,
    /// Bytes that it has received.
    pub bytes_received: u64,
}

impl Moved {
    /// Whether the last byte was certainly the peer's. The clock of these times ticks every few milliseconds. In a tie the
    /// answer may have come before or after the question, and counts as the last, unless the peer was never sent
    /// anything.
    pub fn is_peers_last(&self) -> bool {
        self.bytes_received > 0 && (self.bytes_sent == 0 || self.received < self.sent)
    }

    /// Whether the end that this describes may owe the other one something. See [`TcpSocket::is_busy`]. Who has sent nothing
    /// but the end of what it sends, which counts as a byte, and was sent nothing, is owed nothing: a probe, for example.
    pub fn is_busy(&self, state: u8, unread: u32, unacknowledged: u32, rest: Duration) -> bool {
        let has_left = state == TCP_CLOSE_WAIT && self.bytes_received <= 1 && self.bytes_sent == 0;
        unread > 0 || unacknowledged > 0 || !has_left && (self.is_peers_last() || self.rested() < rest)
    }

    /// How long nothing has moved.
    pub(super) fn rested(&self) -> Duration {
        Duration::from_millis(self.sent.min(self.received).into())
    }
}

impl TcpSocket {
    /// The place of a listener.
    pub fn place(&self) -> Place {
        Place { address: self.ends.local, families: self.families, device: self.ends.interface, uid: self.uid }
    }

    /// Whether the server may owe this connection something: data is under way, or the last byte was the client's, or
    /// something has moved within the time `rest`. What was sent last may be no answer (a TLS ticket, a frame of another
    /// HTTP/2 stream), and a streamed answer pauses. In doubt the connection is busy. It is idle once the server has closed
    /// it.
    pub fn is_busy(&self, rest: Duration) -> bool {
        if !self.is_open() {
            return false;
        }
        let Some(moved) = self.moved else { return true };
        // The end of what the client sends counts as a byte.
        let end = u32::from(self.state == TCP_CLOSE_WAIT);
        moved.is_busy(self.state, self.unread.saturating_sub(end), self.unacknowledged, rest)
    }

    /// Whether the server has not closed it.
    pub fn is_open(&self) -> bool {
        matches!(self.state, TCP_ESTABLISHED | TCP_CLOSE_WAIT)
    }

    /// Whether the client has closed it, for its direction at least.
    pub fn is_closed_by_peer(&self) -> bool {
        self.state == TCP_CLOSE_WAIT
    }

    /// Whether its server has not accepted the connection yet: it belongs to no file.
    pub fn is_unaccepted(&self) -> bool {
        let waits = matches!(self.state, TCP_ESTABLISHED | TCP_CLOSE_WAIT) && self.inode == 0;
        waits || self.is_handshake()
    }

    /// Whether the accept queue of a listener is full (`sk_acceptq_is_full` of the kernel).
    pub fn is_full(&self) -> bool {
        self.unread > self.unacknowledged
    }

    /// Whether its handshake is not finished.
    pub fn is_handshake(&self) -> bool {
        matches!(self.state, TCP_SYN_RECV | TCP_NEW_SYN_RECV)
    }
}

/// The address that nix has read.
pub(super) fn socket_address(address: &SockaddrStorage) -> io::Result<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    let v6 = address.as_sockaddr_in6().map(|a| SocketAddrV6::new(a.ip(), a.port(), 0, a.scope_id()).into());
    v4.or(v6).ok_or_else(|| io::Error::from_raw_os_error(nix::libc::EAFNOSUPPORT))
}

#[cfg(test)]
mod tests;
