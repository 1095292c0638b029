//! Who listens, and which connections there are.

use super::real::tcp;
use crate::address::Address;
use crate::kernel::{self, Connection, Kernel, Key, State};
use crate::place::{Families, Place};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
pub use tcp::{Ends, TcpSocket};

use tcp::Moved;

/// States of linux/tcp_states.h.
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
const NEW_SYN_RECV: u8 = 12;

#[derive(Debug, Default)]
pub struct Listeners(BTreeMap<u16, Vec<TcpSocket>>);

impl Listeners {
    pub fn at(&self, address: &Address) -> impl Iterator<Item = &TcpSocket> {
        let port = if let Address::Tcp(_, port) = address { *port } else { 0 };
        self.0.get(&port).into_iter().flatten().filter(|s| s.local.collides(address))
    }

    pub fn at_place<'a>(&'a self, place: &'a Place) -> impl Iterator<Item = &'a TcpSocket> {
        self.0.get(&place.address.port()).into_iter().flatten().filter(move |s| s.place() == *place)
    }

    pub fn at_any<'a>(&self, addresses: impl IntoIterator<Item = &'a Address>) -> Vec<TcpSocket> {
        let (mut found, mut known) = (Vec::new(), BTreeSet::new());
        for address in addresses {
            found.extend(self.at(address).filter(|s| known.insert(s.inode)).cloned());
        }
        found
    }

    pub fn all(&self) -> impl Iterator<Item = &TcpSocket> {
        self.0.values().flatten()
    }
}

pub fn listeners() -> io::Result<Listeners> {
    listeners_at(0)
}

pub fn listeners_at(port: u16) -> io::Result<Listeners> {
    let mut by_port = BTreeMap::<u16, Vec<TcpSocket>>::new();
    kernel::with(|k| {
        let meant = |key: &Key| port == 0 || key.address.port() == port;
        for (inode, socket) in k.sockets.iter().filter(|(_, s)| s.listens && meant(&s.key)) {
            let found = listener(*inode, &socket.key, socket.queue.len() as u32);
            by_port.entry(socket.key.address.port()).or_default().push(found);
        }
    });
    Ok(Listeners(by_port))
}

fn listener(inode: u32, key: &Key, queued: u32) -> TcpSocket {
    let unspecified = if key.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    TcpSocket {
        local: key.address.into(),
        ends: Ends { local: key.address, peer: unspecified.parse().unwrap(), interface: key.device },
        inode,
        uid: key.uid,
        state: LISTEN,
        unread: queued,
        unacknowledged: 128,
        families: if key.both { Families::Both } else { Families::Own },
        moved: None,
    }
}

fn connection(k: &Kernel, c: &Connection) -> TcpSocket {
    let ago = ((k.now - c.moved) / 1000) as u32;
    let state = if c.state == State::Handshake { NEW_SYN_RECV } else { ESTABLISHED };
    TcpSocket {
        local: c.local.into(),
        ends: Ends { local: c.local, peer: c.peer, interface: 0 },
        inode: c.inode,
        uid: 0,
        state,
        unread: 0,
        unacknowledged: 0,
        families: Families::Own,
        // The client has asked, and there is no answer yet.
        moved: Some(Moved { sent: ago + 1, received: ago, bytes_sent: 0, bytes_received: u64::from(!c.is_probe) }),
    }
}

fn all(is: impl Fn(&Connection) -> bool) -> Vec<TcpSocket> {
    kernel::with(|k| k.connections.values().filter(|c| is(c)).map(|c| connection(k, c)).collect())
}

pub fn connections() -> io::Result<Vec<TcpSocket>> {
    Ok(all(|c| matches!(c.state, State::Queued | State::Accepted)))
}

pub fn handshakes() -> io::Result<Vec<TcpSocket>> {
    Ok(all(|c| c.state == State::Handshake))
}

pub fn find_in_table(ends: Ends) -> io::Result<Option<TcpSocket>> {
    let is_it = |c: &Connection| c.peer == ends.peer && c.local == ends.local && is_there(c);
    Ok(all(is_it).into_iter().next())
}

fn is_there(c: &Connection) -> bool {
    // One that its client has closed waits in the queue all the same.
    matches!(c.state, State::Handshake | State::Queued | State::Accepted | State::Left)
}

#[derive(Debug)]
pub struct Diag;

impl Diag {
    pub fn open() -> io::Result<Diag> {
        Ok(Diag)
    }

    pub fn find(&self, ends: Ends) -> io::Result<Option<TcpSocket>> {
        find_in_table(ends)
    }
}
