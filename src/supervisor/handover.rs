//! The listeners of an old server come to the supervisor of the new one, which shares its port from then on.

#![forbid(unsafe_code)]

use super::threads::{GenId, Id};
use super::{Live, Old, OldTo, Supervisor};
use crate::address::Address;
use crate::protocol::HolderWord;
use crate::share::Block;
use crate::swap::{self, ClaimerId, OldId};
use crate::sys::socket::FILES_MAX;
use crate::sys::steer::Socket;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

impl Supervisor {
    /// Listeners of an old server came from its supervisor.
    pub(super) fn handed_over(&mut self, id: Id, files: Vec<OwnedFd>) {
        if let Some(old) = self.peers.olds.get_mut(&id)
            && old.sockets.len() + files.len() <= swap::ADDRESSES_MAX
        {
            old.sockets.extend(files);
        }
    }

    /// The lock of an old server is ours: gets hold of its listeners, so that the port can be shared.
    pub(super) fn locked(&mut self, of: GenId, id: Id, holds: Vec<Address>) {
        let Some(old) = self.peers.olds.get_mut(&id) else { return };
        let sockets = std::mem::take(&mut old.sockets);
        if std::mem::replace(&mut old.locked, true) {
            // It has lost its supervisor meanwhile, and here is the new one.
            if let OldTo::Local(generation) = old.to {
                let waits = |event: &swap::Event| matches!(event, swap::Event::AskedTakedown(..));
                if holds.is_empty() && !old.asked.is_empty() && !old.asked.iter().any(waits) {
                    // It has let go of all: it was told, and a signal would cut short what that began.
                    self.feed(generation, swap::Event::Stop { signalled: true });
                } else {
                    self.agenda.pending.extend(old.asked.iter().cloned().map(|event| (generation, event)));
                }
            }
            return self.feed(of, swap::Event::Locked(OldId(id), holds));
        }
        if holds.iter().any(Address::is_port) && self.live.get(&of).is_some_and(Live::is_shared) {
            match self.share(of, id, &holds, sockets) {
                Ok(()) => self.feed(of, swap::Event::Shares(OldId(id))),
                Err(why) => self.feed(of, swap::Event::Unshared(OldId(id), why)),
            }
        }
        self.feed(of, swap::Event::Locked(OldId(id), holds));
    }

    /// Sends a claimer the listeners of our server. We do it because a security module may let nobody else
    /// have them (Yama lets a supervisor reach its descendants only).
    pub(super) fn hand_over(&mut self, generation: GenId, claimer: ClaimerId, holds: &[Address]) {
        let (Some(live), Some(conn)) = (self.live.get_mut(&generation), self.peers.conns.get(&claimer.0)) else {
            return;
        };
        live.standing.handed_over = live.is_shared();
        if !live.standing.handed_over {
            return;
        }
        // Without them the claimer says that it swaps in plain order.
        let listeners = live.server.listeners(holds).unwrap_or_default();
        // How many they are: some may get lost.
        conn.out.send(&HolderWord::Sockets(listeners.len()));
        for some in listeners.chunks(FILES_MAX) {
            let files: Vec<RawFd> = some.iter().map(|socket| socket.fd().as_fd().as_raw_fd()).collect();
            conn.out.send_files(&HolderWord::Sockets(files.len()), &files);
        }
    }

    fn share(&mut self, of: GenId, id: Id, holds: &[Address], sockets: Vec<OwnedFd>) -> Result<(), String> {
        let old = self.peers.olds.get(&id).ok_or("it is gone")?;
        let (held, mut since) = (Address::all(holds), old.server.1);
        let wanted = |a: &Address| a.among(&held).next().is_some();
        let failed = |e: std::io::Error| format!("its listeners cannot be had: {}", crate::error::reason(&e));
        let blocks = match &old.to {
            OldTo::Local(generation) => {
                let live = self.live.get(generation).ok_or("it is gone")?;
                let own = live.server.listeners(holds).map_err(failed)?;
                let orphans = if live.is_orphan() { self.orphans_beside(of, live) } else { Vec::new() };
                if orphans.len() < 2 {
                    vec![Block { sockets: own, serves: true }]
                } else if self.live.get(&of).is_some_and(|l| l.joining.sharing.has(&own)) {
                    return Ok(());
                } else {
                    since = orphans.iter().map(|orphan| orphan.server.start).fold(since, u64::min);
                    beside_each_other(&orphans).map_err(failed)?
                }
            }
            OldTo::Remote(_) => {
                // What comes with a word of a later version may be one of them once more, which counts once.
                let mut inodes = BTreeSet::new();
                let mut sockets: Vec<Socket> = sockets.into_iter().map(Socket::new).collect();
                sockets.retain(|socket| socket.inode().is_ok_and(|inode| inodes.insert(inode)));
                if sockets.len() < old.promised {
                    // Where nobody steers, the new server would get connections before its time.
                    return Err(format!("only {} of its {} listeners can be had", sockets.len(), old.promised));
                }
                let fits = |s: &Socket| s.listens() && s.is_tcp() && s.address().is_ok_and(|at| wanted(&at.into()));
                vec![Block { sockets: sockets.into_iter().filter(fits).collect(), serves: true }]
            }
        };
        if let OldTo::Local(generation) = old.to
            && let Some(live) = self.live.get_mut(&generation)
        {
            live.standing.handed_over = true;
        }
        let live = self.live.get_mut(&of).ok_or("it is gone")?;
        live.joining.sharing.add_old(id, since, blocks)
    }

    /// The orphans that a generation wants to replace and that share a port with one of them, or with one that does, the
    /// oldest first: a supervisor that died in a swap of its own has left two.
    fn orphans_beside<'a>(&'a self, of: GenId, one: &'a Live) -> Vec<&'a Live> {
        let local =
            |old: &'a Old| if let OldTo::Local(generation) = old.to { self.live.get(&generation) } else { None };
        let olds = self.peers.olds.values().filter(|old| old.of == of);
        let mut others: Vec<&Live> = olds.filter_map(local).filter(|live| live.is_orphan()).collect();
        others.retain(|other| other.server.pid != one.server.pid);
        let mut beside = vec![one];
        let mut next = 0;
        while let Some(known) = beside.get(next) {
            let places = Address::all(&known.machine.addresses());
            let shares = |other: &mut &Live| {
                other.machine.addresses().iter().any(|at| at.is_port() && at.among(&places).next().is_some())
            };
            beside.extend(others.extract_if(.., shares));
            next += 1;
        }
        beside.sort_by_key(|live| (live.names.number, live.server.start));
        beside
    }
}

/// The listeners of orphans, the oldest first, at the addresses of all of them. Those of the last one that was switched to
/// get the connections, and until there was a switch those of the first.
fn beside_each_other(orphans: &[&Live]) -> std::io::Result<Vec<Block>> {
    let addresses: Vec<Address> = orphans.iter().flat_map(|orphan| orphan.machine.addresses()).collect();
    let took = |new: &Live, old: &Live| {
        let olds = Address::all(&old.machine.addresses());
        // An older serverswap writes its pidfiles only.
        new.names.replaced.contains(&old.server.pid)
            || new.names.held.iter().any(|own| own.is_port() && own.among(&olds).next().is_some())
    };
    let switched = |at: &usize| orphans[..*at].iter().any(|old| took(orphans[*at], old));
    let serving = (0..orphans.len()).rev().find(switched).unwrap_or(0);
    let block = |(at, orphan): (usize, &&Live)| {
        Ok(Block { sockets: orphan.server.listeners(&addresses)?, serves: at == serving })
    };
    orphans.iter().enumerate().map(block).collect()
}
