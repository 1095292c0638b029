//! What was seen of a server: its sockets and its sessions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most sockets of each kind that are remembered of a server: it may bind as often as it likes, and few of them listen.
const REMEMBERED_MAX: usize = 16 * 1024;

/// How many addresses are remembered that a server has asked for.
const ASKED_MAX: usize = 16;

/// What was seen of a server. It shows whether a process that changed its environment is the server's, or only a job.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<Facts>>);

#[derive(Debug, Default)]
struct Facts {
    /// Sockets that listened.
    listeners: Recent<()>,
    /// Sockets that were bound, with the port that was asked for: many more than listen. The `bind` may have failed.
    bound: Recent<u16>,
    /// The first addresses that were asked for.
    asked: BTreeSet<SocketAddr>,
    /// Sessions of its main process and of those that listened.
    sessions: BTreeSet<i32>,
    watched: bool,
}

impl Seen {
    /// The server has this listener.
    pub fn listener(&self, inode: u32) {
        lock(&self.0).listeners.note(inode, ());
    }

    /// The server has asked to bind this socket, which may listen later, to this address.
    pub fn bound(&self, inode: u32, address: SocketAddr) {
        let mut facts = lock(&self.0);
        facts.bound.note(inode, address.port());
        if facts.asked.len() < ASKED_MAX {
            facts.asked.insert(address);
        }
    }

    /// The port that the server last asked for with this socket.
    pub fn asked(&self, inode: u32) -> Option<u16> {
        lock(&self.0).bound.known.get(&inode).copied()
    }

    /// The first addresses that the server has asked for.
    pub fn first_asked(&self) -> BTreeSet<SocketAddr> {
        lock(&self.0).asked.clone()
    }

    /// The server, and all that descends from it, runs under a filter.
    pub fn watched(&self) {
        lock(&self.0).watched = true;
    }

    /// Whether the server runs under a filter.
    pub fn is_watched(&self) -> bool {
        lock(&self.0).watched
    }

    /// All processes in this session are part of the server.
    pub fn session(&self, session: i32) {
        lock(&self.0).sessions.insert(session);
    }

    /// Whether all processes in this session are part of the server.
    pub fn has_session(&self, session: i32) -> bool {
        lock(&self.0).sessions.contains(&session)
    }

    /// Whether the server had this socket, listening or bound.
    pub fn had(&self, inode: u32) -> bool {
        let facts = lock(&self.0);
        facts.listeners.known.contains_key(&inode) || facts.bound.known.contains_key(&inode)
    }
}

/// The last `REMEMBERED_MAX` sockets, in the order in which they came: inode numbers start over one day.
#[derive(Debug, Default)]
struct Recent<T> {
    known: BTreeMap<u32, T>,
    order: VecDeque<u32>,
}

impl<T> Recent<T> {
    fn note(&mut self, inode: u32, what: T) {
        if self.known.insert(inode, what).is_some() {
            return;
        }
        self.order.push_back(inode);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_that_is_forgotten_is_the_oldest_whatever_its_number() {
        let seen = Seen::default();
        let first = u32::MAX - REMEMBERED_MAX as u32 / 2;
        let inodes: Vec<u32> = (0..=REMEMBERED_MAX as u32).map(|nth| first.wrapping_add(nth)).collect();
        let address = "127.0.0.1:80".parse().unwrap();
        inodes.iter().for_each(|inode| seen.bound(*inode, address));
        assert!(!seen.had(first));
        assert!(inodes[1..].iter().all(|inode| seen.asked(*inode) == Some(80)));
    }
}
