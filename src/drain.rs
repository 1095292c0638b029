//! The drain of an old server on a shared port: what is on its way to it arrives, then what it has finishes.

#![forbid(unsafe_code)]

use crate::server::Server;
use crate::sys::clock::Instant;
use crate::sys::net::{self, Diag, Ends, TcpSocket};
use crate::sys::steer::Socket;
use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Connections are still on their way to the server.
    Arriving,
    /// Nothing can be lost any more by closing the listeners.
    Quiesced,
    /// No connection is busy.
    Idle,
}

/// Longest time for handshakes that were under way: whoever needs longer has lost packets.
const HANDSHAKES_MAX: Duration = Duration::from_secs(3);

/// Handshakes that are under way at these ports.
fn handshakes(ports: &BTreeSet<u16>) -> io::Result<Vec<Ends>> {
    let all = net::handshakes()?.into_iter().map(|s| s.ends);
    Ok(all.filter(|ends| ports.contains(&ends.local.port())).collect())
}

/// How long nothing may have moved on a connection before it counts as idle, by `--drain`: half of that leaves the other
/// half to what still comes. Below a second an answer that is streamed would look finished between two parts.
pub fn rest(drain: Duration) -> Duration {
    (drain / 2).max(Duration::from_secs(1))
}

/// A connection of the server's: its ends may soon be those of another.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    /// Its ends.
    pub ends: Ends,
    /// Its inode.
    pub inode: u32,
}

impl Connection {
    /// What the kernel says of it; `None`: the server has closed it.
    fn find(&self, diag: &Diag) -> io::Result<Option<TcpSocket>> {
        Ok(diag.find(self.ends)?.filter(|socket| socket.inode == self.inode && socket.is_open()))
    }
}

/// The drain of a server that gets no new connections any more.
#[derive(Debug)]
pub struct Drain {
    diag: Diag,
    listeners: Vec<Socket>,
    ports: BTreeSet<u16>,
    rest: Duration,
    handshakes: Vec<Ends>,
    confirmed: bool,
    until: Instant,
    connections: Option<Vec<Connection>>,
    idle_looks: u32,
}

impl Drain {
    /// Begins right after the switch: what is under way now is the old server's. `drain` is its `--drain`.
    pub fn start(listeners: Vec<Socket>, drain: Duration) -> io::Result<Drain> {
        let ports: BTreeSet<u16> = listeners.iter().filter_map(|s| Some(s.address().ok()?.port())).collect();
        Ok(Drain {
            diag: Diag::open()?,
            handshakes: handshakes(&ports)?,
            listeners,
            ports,
            rest: rest(drain),
            confirmed: false,
            until: Instant::now() + HANDSHAKES_MAX,
            connections: None,
            idle_looks: 0,
        })
    }

    /// Looks how far the drain is now.
    pub fn look(&mut self, server: &Server) -> Drained {
        let diag = &self.diag;
        if self.connections.is_none() {
            self.handshakes.retain(|ends| diag.find(*ends).map_or(true, |s| s.is_some_and(|s| s.is_handshake())));
            let queued = self.listeners.iter().any(|l| l.queue().is_ok_and(|len| len > 0));
            if queued || (!self.handshakes.is_empty() && Instant::now() < self.until) {
                return Drained::Arriving;
            }
            // A handshake whose listener was chosen before the switch may have become visible after the first list.
            if !self.confirmed {
                if let Ok(all) = handshakes(&self.ports) {
                    (self.handshakes, self.confirmed) = (all, true);
                }
                return Drained::Arriving;
            }
        }
        // The look that confirms lists the connections anew: one that at the first look had left the queue, but
        // was not yet a file of the server's, is one by now.
        if self.connections.is_none() || self.idle_looks == 1 {
            // What cannot be looked at may be busy.
            let Ok(connections) = self.connections(server) else {
                self.idle_looks = 0;
                return Drained::Quiesced;
            };
            self.connections = Some(connections);
        }
        self.idle_looks = if self.is_busy() { 0 } else { self.idle_looks + 1 };
        // One look could fall between an answer and the next question.
        if self.idle_looks > 1 { Drained::Idle } else { Drained::Quiesced }
    }

    /// Whether the server had no connection at the last list of them.
    pub fn has_none(&self) -> bool {
        self.connections.as_ref().is_some_and(Vec::is_empty)
    }

    /// What the kernel says of a connection; `None`: the server has closed it.
    pub fn find(&self, connection: &Connection) -> io::Result<Option<TcpSocket>> {
        connection.find(&self.diag)
    }

    /// The connections of the server, but for those that it opened itself, to a database say.
    pub fn connections(&self, server: &Server) -> io::Result<Vec<Connection>> {
        let inodes = server.socket_inodes().ok_or_else(|| io::Error::other("unable to read /proc"))?;
        let taken = |s: &TcpSocket| self.ports.contains(&s.ends.local.port()) && inodes.contains(&s.inode);
        let all = net::connections()?.into_iter().filter(taken);
        Ok(all.map(|s| Connection { ends: s.ends, inode: s.inode }).collect())
    }

    /// Whether any connection is busy. The first one that is found to be busy is looked at first the next time: as long
    /// as it is busy the others need no look, and there may be ten thousand.
    fn is_busy(&mut self) -> bool {
        let connections = self.connections.get_or_insert_default();
        let mut at = 0;
        while let Some(connection) = connections.get(at) {
            match connection.find(&self.diag) {
                Ok(None) => drop(connections.swap_remove(at)),
                Ok(Some(socket)) if !socket.is_busy(self.rest) => at += 1,
                // What cannot be asked may be busy.
                Ok(Some(_)) | Err(_) => {
                    connections.swap(0, at);
                    return true;
                }
            }
        }
        false
    }

    /// How many connections are busy at this moment, and would be cut. The client needs no answer where it has closed.
    /// `spared`: the inodes of those that are not cut.
    pub fn busy(&self, server: &Server, spared: &BTreeSet<u32>) -> io::Result<usize> {
        let mut busy = 0;
        for connection in self.connections(server)?.into_iter().filter(|c| !spared.contains(&c.inode)) {
            let is_cut = |socket: TcpSocket| socket.is_busy(self.rest) && !socket.is_closed_by_peer();
            busy += usize::from(connection.find(&self.diag)?.is_some_and(is_cut));
        }
        Ok(busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_rests_half_of_the_time_to_drain_and_not_less_than_a_second() {
        let rests =
            [(0, 1000), (200, 1000), (1000, 1000), (2000, 1000), (2002, 1001), (10_000, 5000), (60_000, 30_000)];
        for (drain, expected) in rests {
            assert_eq!(rest(Duration::from_millis(drain)), Duration::from_millis(expected));
        }
    }
}
