//! Handles of our own on the sockets of a server.

use super::Server;
use crate::address::Address;
use crate::procfs::{self, Held, Snapshot, Stat};
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
    pub fn sockets(&self, wanted: BTreeSet<u32>) -> io::Result<Vec<Socket>> {
        let snapshot = Snapshot::take();
        snapshot.complete()?;
        let found = self.found(&snapshot, wanted, |e| match e.raw_os_error() {
            // It was closed since the look, or its process has ended.
            Some(libc::ESRCH | libc::EBADF) => Ok(()),
            _ => Err(e),
        });
        Ok(found?.into_iter().map(|found| found.socket).collect())
    }

    /// Handles of our own on those of these connections that the server holds, as many as can be had.
    pub fn connections(&self, wanted: BTreeSet<u32>) -> Vec<Found> {
        if wanted.is_empty() {
            return Vec::new();
        }
        self.found(&Snapshot::take(), wanted, |_| Ok(())).unwrap_or_default()
    }

    /// Handles on those of these sockets that the server holds. `missed` says whether to go on without one.
    fn found(
        &self,
        snapshot: &Snapshot,
        mut left: BTreeSet<u32>,
        missed: impl Fn(io::Error) -> io::Result<()>,
    ) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for Stat { pid, .. } in self.family.members(snapshot) {
            let held = had(procfs::find_sockets(*pid), &missed)?.flatten().unwrap_or_default();
            let wanted: Vec<(i32, u32)> = held.into_iter().filter(|(_, inode)| left.contains(inode)).collect();
            if wanted.is_empty() {
                continue;
            }
            let Some(process) = had(Pidfd::open(*pid), &missed)? else { continue };
            for (number, inode) in wanted {
                let socket = process.fd(number).map(Socket::new).and_then(|socket| Ok((socket.inode()?, socket)));
                // The number may have become another file since the look.
                if let Some((own, socket)) = had(socket, &missed)?
                    && own == inode
                    && left.remove(&inode)
                {
                    found.push(Found { socket, inode, at: Held::at(*pid, number) });
                }
            }
        }
        Ok(found)
    }

    /// Inodes of all sockets that the server holds; `None` if one of its processes may not be looked at.
    pub fn socket_inodes(&self) -> Option<BTreeSet<u32>> {
        self.family.sockets(&Snapshot::take())
    }
}

/// `None` for what cannot be had and may be missed.
fn had<T>(result: io::Result<T>, missed: impl Fn(io::Error) -> io::Result<()>) -> io::Result<Option<T>> {
    result.map(Some).or_else(|e| missed(e).map(|()| None))
}
