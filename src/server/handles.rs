//! Handles of our own on the sockets of a server.

use super::Server;
use crate::address::Address;
use crate::procfs::{self, Held, Snapshot};
use crate::sys::net;
use crate::sys::process::Pidfd;
use crate::sys::steer::Socket;
use nix::libc;
use std::collections::BTreeSet;
use std::io;

/// A handle of our own on a connection.
#[derive(Debug)]
pub struct Found {
    /// The handle.
    pub socket: Socket,
    /// Its inode.
    pub inode: u32,
    /// Where the server has it.
    pub at: Held,
}

impl Server {
    /// Handles of our own on the listeners that the server has at these addresses.
    pub fn listeners(&self, wanted: &[Address]) -> io::Result<Vec<Socket>> {
        self.sockets(net::listeners()?.at_any(wanted).iter().map(|s| s.inode).collect())
    }

    /// Handles of our own on those of these sockets that the server holds.
    pub fn sockets(&self, mut left: BTreeSet<u32>) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        let snapshot = Snapshot::take();
        snapshot.complete()?;
        for stat in self.family.members(&snapshot) {
            for (number, inode) in procfs::find_sockets(stat.pid)?.unwrap_or_default() {
                if left.contains(&inode) {
                    let socket = match Pidfd::open(stat.pid).and_then(|pidfd| pidfd.fd(number)) {
                        Ok(fd) => Socket::new(fd),
                        // It was closed since the look, or its process has ended.
                        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EBADF)) => continue,
                        Err(e) => return Err(e),
                    };
                    // The number may have become another file since the look.
                    if socket.inode()? == inode {
                        left.remove(&inode);
                        found.push(socket);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Handles of our own on those of these connections that the server holds, as many as can be had.
    pub fn connections(&self, mut left: BTreeSet<u32>) -> Vec<Found> {
        let mut found = Vec::new();
        if left.is_empty() {
            return found;
        }
        let snapshot = Snapshot::take();
        for stat in self.family.members(&snapshot) {
            let held = procfs::find_sockets(stat.pid).ok().flatten().unwrap_or_default();
            let wanted: Vec<(i32, u32)> = held.into_iter().filter(|(_, inode)| left.contains(inode)).collect();
            let Some(process) = (!wanted.is_empty()).then(|| Pidfd::open(stat.pid).ok()).flatten() else { continue };
            for (number, inode) in wanted {
                let Ok(socket) = process.fd(number).map(Socket::new) else { continue };
                // The number may have become another file since the look.
                if socket.inode().is_ok_and(|own| own == inode) && left.remove(&inode) {
                    found.push(Found { socket, inode, at: Held::at(stat.pid, number) });
                }
            }
        }
        found
    }

    /// Inodes of all sockets that the server holds; `None` if one of its processes may not be looked at.
    pub fn socket_inodes(&self) -> Option<BTreeSet<u32>> {
        self.family.sockets(&Snapshot::take())
    }
}
