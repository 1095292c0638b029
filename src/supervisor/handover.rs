//! The listeners of an old server come to the supervisor of the new one, which shares its port from then on.

use super::live::Live;
use super::state::Supervisor;
use super::threads::Id;
use crate::address::Address;
use crate::finder::Holder;
use crate::protocol::HolderWord;
use crate::rundir::RunDir;
use crate::server::Server;
use crate::share::{Handed, Whose};
use crate::swap::{self, ClaimerId, OldId};
use crate::sys::socket::FILES_MAX;
use crate::sys::steer::Socket;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// Most listeners that are taken from one supervisor: its server's, and those of servers that drain behind it.
const LISTENERS_MAX: usize = 4 * swap::ADDRESSES_MAX;

impl Supervisor {
    /// Listeners of an old server came from its supervisor.
    pub(super) fn handed_over(&mut self, id: Id, files: Vec<OwnedFd>) {
        if let Some(old) = self.peers.olds.get_mut(&id)
            && old.sockets.len() + files.len() <= LISTENERS_MAX
        {
            old.sockets.extend(files);
        }
    }

    /// The lock of an old server is ours: gets hold of its listeners, so that the port can be shared.
    pub(super) fn locked(&mut self, id: Id, holds: Vec<Address>) {
        let Some(old) = self.peers.olds.get_mut(&id) else { return };
        let sockets = std::mem::take(&mut old.sockets);
        if std::mem::replace(&mut old.locked, true) {
            // We had its lock already: the supervisor has died meanwhile, and this is the caretaker.
            let asked = old.asked.clone();
            asked.iter().for_each(|word| self.tell(id, word));
            return self.feed(swap::Event::Locked(OldId(id), holds));
        }
        if holds.iter().any(Address::is_port) && self.live.as_ref().is_some_and(Live::is_shared) {
            let shared = self.share(id, &holds, sockets);
            self.feed(swap::Event::Shares(OldId(id), shared));
        }
        self.feed(swap::Event::Locked(OldId(id), holds));
    }

    /// Sends a claimer the listeners of our server. We do it because a security module may let nobody else
    /// have them (Yama lets a supervisor reach its descendants only).
    pub(super) fn hand_over(&mut self, claimer: ClaimerId, holds: &[Address]) {
        let (Some(live), Some(conn)) = (self.live.as_mut(), self.peers.conns.get(&claimer.0)) else {
            return;
        };
        live.standing.handed_over = live.is_shared();
        if !live.standing.handed_over {
            return;
        }
        // Without them the claimer says that it swaps in plain order.
        let own = live.server.listeners(holds).unwrap_or_default();
        let listeners = match live.joining.lend(&live.server) {
            Some(lent) => lent.hand_over(own),
            None => {
                let (older, younger) = draining_listeners(&self.dir, live, holds);
                let draining = |socket| Handed::unknown(socket, Whose::Draining);
                let own = own.into_iter().map(|socket| Handed::unknown(socket, Whose::Serving));
                older.into_iter().map(draining).chain(own).chain(younger.into_iter().map(draining)).collect()
            }
        };
        // First how many they are: some may get lost.
        conn.out.send(&HolderWord::Sockets(listeners.len()));
        // What is not said is that they are the server's, in any order.
        let is_said = listeners.iter().any(|it| it.letter() != 's');
        for some in listeners.chunks(FILES_MAX) {
            if is_said {
                conn.out.send(&HolderWord::Order(some.iter().map(Handed::letter).collect()));
            }
            let files: Vec<RawFd> = some.iter().map(|it| it.socket.fd().as_fd().as_raw_fd()).collect();
            conn.out.send_files(&HolderWord::Sockets(files.len()), &files);
        }
    }

    fn share(&mut self, id: Id, holds: &[Address], sockets: Vec<OwnedFd>) -> Result<(), String> {
        let old = self.peers.olds.get(&id).ok_or("it is gone")?;
        // A word of a later version may bring a listener a second time: it counts once.
        let mut inodes = BTreeSet::new();
        let letters = old.order.chars().chain(std::iter::repeat('s'));
        let mut listeners: Vec<Handed> = sockets
            .into_iter()
            .map(Socket::new)
            .zip(letters)
            .map(|(socket, letter)| Handed::new(socket, letter))
            .collect();
        listeners.retain(|it| it.socket.inode().is_ok_and(|inode| inodes.insert(inode)));
        if listeners.len() < old.promised {
            // Where nobody steers, the new server would get connections before its time.
            return Err(format!("only {} of its {} listeners can be had", listeners.len(), old.promised));
        }
        // The servers that still drain are older than `old`, and it is not known how much.
        let since = if listeners.iter().all(|it| it.whose == Whose::Serving) { old.holder.start } else { 0 };
        let held = Address::all(holds);
        let is_held = |at: SocketAddr| Address::from(at).among(&held).next().is_some();
        let fits = |socket: &Socket| socket.listens() && socket.is_tcp() && socket.address().is_ok_and(is_held);
        listeners.retain(|it| fits(&it.socket));
        let live = self.live.as_mut().ok_or("it is gone")?;
        live.joining.sharing.add_old(id, since, listeners)
    }
}

/// The listeners of servers that drain behind ours at these addresses, for a caretaker, which has no handles on them: those
/// of older servers, and those of younger ones, which were undone. In the order in which the servers were started, since that
/// is how their listeners have joined, as a rule.
fn draining_listeners(dir: &RunDir, live: &Live, holds: &[Address]) -> (Vec<Socket>, Vec<Socket>) {
    let mut olds: Vec<Holder> = live.names.replaced.iter().filter_map(|pid| dir.holder(*pid).ok()).collect();
    olds.sort_by_key(|old| (old.generation, old.start));
    let (older, younger): (Vec<Holder>, Vec<Holder>) = olds.into_iter().partition(|old| old.start <= live.server.start);
    let listeners = |old: &Holder| Server::adopt(old)?.listeners(holds).ok();
    let all = |olds: Vec<Holder>| olds.iter().filter_map(listeners).flatten().collect();
    (all(older), all(younger))
}
