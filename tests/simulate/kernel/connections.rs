//! Connections, from their first packet on.

use super::bpf::Packet;
use super::groups::Filter;
use super::{Kernel, NOBODY};
use std::net::SocketAddr;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The listener has answered the first packet.
    Handshake,
    /// In the queue of the listener.
    Queued,
    /// A file of a server's.
    Accepted,
    /// The server has answered and closed it.
    Answered,
    /// It was reset.
    Reset,
    /// The client has closed it while it was in the queue.
    Left,
}

#[derive(Debug, Clone, Hash)]
pub struct Connection {
    pub state: State,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// Which socket the kernel chose.
    pub listener: u32,
    /// Of its file, once it is one.
    pub inode: u32,
    /// The process that has accepted it.
    pub server: i32,
    /// A probe, and not a client.
    pub is_probe: bool,
    /// Something moved last.
    pub moved: u64,
}

/// What becomes of a first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Nobody listens.
    Refused,
    /// It was dropped: the client sends it again.
    Dropped,
    /// The number of the connection.
    Begun(u32),
}

impl Kernel {
    /// The first packet of a connection arrives. What this machine sends to itself is queued in the same moment.
    pub fn arrive(&mut self, packet: Packet, is_probe: bool) -> Arrival {
        let Some(listener) = self.select(&packet) else { return Arrival::Refused };
        let socket = &self.sockets[&listener];
        if let Some(Filter { except }) = socket.filter
            && except != Some(packet.source)
        {
            return Arrival::Dropped;
        }
        let id = self.inode();
        let state = if is_probe { State::Queued } else { State::Handshake };
        let (local, peer, moved) = (packet.target, packet.source, self.now);
        let connection = Connection { state, peer, local, listener, inode: 0, server: NOBODY, is_probe, moved };
        self.connections.insert(id, connection);
        if is_probe {
            self.sockets.get_mut(&listener).into_iter().for_each(|s| s.queue.push_back(id));
        }
        Arrival::Begun(id)
    }

    /// The handshake is finished, if its listener is still there.
    pub fn finish(&mut self, id: u32) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.moved = self.now;
        match self.sockets.get_mut(&connection.listener) {
            Some(socket) => {
                socket.queue.push_back(id);
                connection.state = State::Queued;
            }
            None => connection.state = State::Reset,
        }
    }

    /// A process accepts what comes next.
    pub fn accept(&mut self, listener: u32) -> Option<u32> {
        let (pid, inode) = (self.me, self.inode());
        let id = self.sockets.get_mut(&listener)?.queue.pop_front()?;
        let connection = self.connections.get_mut(&id)?;
        if connection.state == State::Left {
            self.connections.remove(&id);
            return None;
        }
        (connection.state, connection.inode, connection.server) = (State::Accepted, inode, pid);
        connection.moved = self.now;
        Some(id)
    }

    /// The client of a probe has closed it.
    pub fn leave(&mut self, peer: SocketAddr) {
        let Some((&id, connection)) = self.connections.iter_mut().find(|(_, c)| c.peer == peer) else { return };
        match connection.state {
            State::Queued => connection.state = State::Left,
            _ => drop(self.connections.remove(&id)),
        }
    }

    pub(super) fn close_connections_of(&mut self, pid: i32) {
        for connection in self.connections.values_mut() {
            if connection.server == pid && connection.state == State::Accepted {
                connection.state = State::Reset;
            }
        }
    }
}
