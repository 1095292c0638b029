//! The drain of an old server on a shared port: what is on its way to it arrives, then what it has finishes.

#![forbid(unsafe_code)]

use crate::server::Server;
use crate::sys::net::{self, Diag, Ends, TcpSocket};
use crate::sys::steer::Socket;
use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

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

/// The drain of a server that gets no new connections any more.
pub struct Drain {
    diag: Diag,
    listeners: Vec<Socket>,
    ports: BTreeSet<u16>,
    handshakes: Vec<Ends>,
    confirmed: bool,
    until: Instant,
    connections: Option<Vec<Ends>>,
    busy: usize,
    idle_looks: u32,
}

impl Drain {
    /// Begins right after the switch: what is under way now is the old server's.
    pub fn start(listeners: Vec<Socket>) -> io::Result<Drain> {
        let ports: BTreeSet<u16> = listeners.iter().filter_map(|s| Some(s.address().ok()?.port())).collect();
        Ok(Drain {
            diag: Diag::open()?,
            handshakes: handshakes(&ports)?,
            listeners,
            ports,
            confirmed: false,
            until: Instant::now() + HANDSHAKES_MAX,
            connections: None,
            busy: 0,
            idle_looks: 0,
        })
    }

    /// Looks again.
    pub fn look(&mut self, server: &Server) -> Drained {
        let diag = &self.diag;
        if self.connections.is_none() {
            self.handshakes.retain(|ends| diag.find(*ends).map_or(true, |s| s.is_some_and(|s| s.is_handshake())));
            let queued = self.listeners.iter().any(|l| l.queue().is_ok_and(|len| len > 0));
            if queued || (!self.handshakes.is_empty() && Instant::now() < self.until) {
                return Drained::Arriving;
            }
            // One whose listener was chosen before the switch may have come to light after the first list.
            if !self.confirmed {
                if let Ok(all) = handshakes(&self.ports) {
                    (self.handshakes, self.confirmed) = (all, true);
                }
                return Drained::Arriving;
            }
        }
        // The list is made anew for the look that confirms: a connection that had left the queue at the
        // first, but was not yet a file of the server's, is one by now.
        if self.connections.is_none() || self.idle_looks == 1 {
            // What cannot be looked at may be busy.
            let (Some(inodes), Ok(connections)) = (server.socket_inodes(), net::connections()) else {
                self.idle_looks = 0;
                return Drained::Quiesced;
            };
            // Not those that the server opened itself, to a database say.
            let taken = |s: &&TcpSocket| self.ports.contains(&s.ends.local.port()) && inodes.contains(&s.inode);
            self.connections = Some(connections.iter().filter(taken).map(|s| s.ends).collect());
        }
        let mut busy = 0;
        if let Some(connections) = &mut self.connections {
            connections.retain(|ends| match diag.find(*ends) {
                Ok(Some(socket)) => {
                    busy += usize::from(socket.is_busy());
                    true
                }
                Ok(None) => false,
                Err(_) => true,
            });
        }
        self.busy = busy;
        self.idle_looks = if busy == 0 { self.idle_looks + 1 } else { 0 };
        // One look could fall between an answer and the next question.
        if self.idle_looks > 1 { Drained::Idle } else { Drained::Quiesced }
    }

    /// Connections that were busy at the last look.
    pub fn busy(&self) -> usize {
        self.busy
    }
}
