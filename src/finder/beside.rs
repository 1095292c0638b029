//! Servers that listen at an address although its pidfile does not name them.

use super::Holder;
use crate::address::Address;
use crate::place::Place;
use crate::procfs::Snapshot;
use crate::recovery;
use crate::rundir::RunDir;
use crate::sys::net::{self, TcpSocket};
use crate::sys::pid::Pid;
use std::collections::BTreeSet;

/// A server that listens beside another one.
#[derive(Debug)]
pub struct Beside {
    /// Who it is.
    pub holder: Holder,
    /// What matters of it for a swap.
    pub party: recovery::Server,
}

impl RunDir {
    /// Servers other than `me` whose listeners conflict with these sockets: one could get the other's connections.
    pub fn beside(&self, own: &BTreeSet<u32>, me: Pid) -> std::io::Result<Vec<Beside>> {
        let listeners = net::listeners()?;
        let places: Vec<Place> = listeners.all().filter(|s| own.contains(&s.inode)).map(TcpSocket::place).collect();
        let meets = |s: &&TcpSocket| !own.contains(&s.inode) && places.iter().any(|own| own.conflicts(&s.place()));
        let met: BTreeSet<u32> = listeners.all().filter(meets).map(|s| s.inode).collect();
        if met.is_empty() {
            return Ok(Vec::new());
        }
        let snapshot = Snapshot::take();
        let mut beside = Vec::new();
        for holder in self.servers()?.into_iter().filter(|other| other.pid != me) {
            let held = holder.sockets(&snapshot)?;
            if !held.is_disjoint(&met) {
                let places = listeners.all().filter(|s| held.contains(&s.inode)).map(TcpSocket::place).collect();
                beside.push(Beside { party: holder.party(places), holder });
            }
        }
        Ok(beside)
    }

    /// The living servers that pidfiles name, each with the address of the pidfile.
    pub fn names(&self) -> std::io::Result<Vec<(Pid, Address)>> {
        let name = |address: Address| Some((self.serving(&address, &mut Vec::new())?.pid, address));
        Ok(self.addresses()?.into_iter().filter_map(name).collect())
    }

    /// Servers that listen at an address and that no pidfile names: somebody has removed it.
    pub fn unnamed_at(&self, address: &Address) -> std::io::Result<Vec<Pid>> {
        let (unnamed, listeners) = (self.unnamed(None)?, net::listeners()?);
        let snapshot = Snapshot::take();
        let mut found = Vec::new();
        for holder in unnamed.into_iter().filter_map(|pid| self.holder(pid).ok()) {
            let held = holder.sockets(&snapshot)?;
            if listeners.at(address).any(|socket| held.contains(&socket.inode)) {
                found.push(holder.pid);
            }
        }
        Ok(found)
    }

    /// The main processes of records of others than `me` that no pidfile names. A server may have a thousand pidfiles: one
    /// is enough to name it.
    pub fn unnamed(&self, me: Option<Pid>) -> std::io::Result<BTreeSet<Pid>> {
        let mut left: BTreeSet<Pid> = self.pids()?.into_iter().filter(|pid| Some(*pid) != me).collect();
        if left.is_empty() {
            return Ok(left);
        }
        for name in self.names_that_end(".pid")? {
            if left.is_empty() {
                break;
            }
            if let Ok(pid) = self.read_pid(&name) {
                left.remove(&pid);
            }
        }
        Ok(left)
    }
}
