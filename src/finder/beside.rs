//! Servers that listen at an address although its pidfile does not name them.

#![forbid(unsafe_code)]

use super::{Holder, Purpose};
use crate::address::Address;
use crate::procfs::Snapshot;
use crate::rundir::RunDir;
use crate::sys::net;
use crate::sys::pid::Pid;
use std::collections::BTreeSet;

impl RunDir {
    /// Servers other than `me` and the known ones that listen at these addresses. Where a known server is an orphan, a
    /// server without a supervisor counts if it listens at any place of that orphan.
    pub fn beside(&self, addresses: &[Address], me: Pid, known: &[Holder]) -> std::io::Result<Vec<Holder>> {
        let listeners = net::listeners()?;
        let snapshot = Snapshot::take();
        let mut orphaned = BTreeSet::new();
        for orphan in known.iter().filter(|h| h.orphan.is_some()) {
            orphaned.extend(orphan.sockets(&snapshot)?);
        }
        let places = listeners.all().filter(|s| orphaned.contains(&s.inode)).map(|s| &s.local);
        let here = listeners.at_any(addresses);
        let with_orphans = listeners.at_any(places.chain(addresses));
        let mut beside = Vec::new();
        for other in self.servers()? {
            if other.pid == me || known.iter().any(|h| h.pid == other.pid) {
                continue;
            }
            let held = other.sockets(&snapshot)?;
            let sockets = if other.orphan.is_some() { &with_orphans } else { &here };
            if sockets.iter().any(|s| held.contains(&s.inode)) {
                beside.push(other);
            }
        }
        Ok(beside)
    }

    /// Servers that listen at an address and that no pidfile names: somebody has removed it.
    pub fn unnamed_at(&self, address: &Address) -> std::io::Result<Vec<Pid>> {
        let (unnamed, listeners) = (self.unnamed(None)?, net::listeners()?);
        let snapshot = Snapshot::take();
        let mut found = Vec::new();
        for holder in unnamed.into_iter().filter_map(|pid| self.holder(pid, Purpose::Look).ok()) {
            let held = holder.sockets(&snapshot)?;
            if listeners.at(address).any(|socket| held.contains(&socket.inode)) {
                found.push(holder.pid);
            }
        }
        Ok(found)
    }

    /// Whether there are records of others than `me` that no pidfile names.
    pub fn has_unnamed(&self, me: Option<Pid>) -> std::io::Result<bool> {
        Ok(!self.unnamed(me)?.is_empty())
    }

    /// Those records. A server may have a thousand pidfiles, and one is enough.
    fn unnamed(&self, me: Option<Pid>) -> std::io::Result<BTreeSet<Pid>> {
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
