//! Which process holds a socket.

use super::fds::{Held, find_held, find_sockets};
use super::process::{Stat, has_ended, is_of_this_user};
use super::program::{copies, serverswaps};
use super::snapshot::Snapshot;
use crate::sys::net::TcpSocket;
use crate::sys::process::Pid;
use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

/// The processes that were found to hold some sockets.
#[derive(Debug, Default)]
pub struct Holders {
    /// Where each is open, in one of the processes that have it.
    pub held: BTreeMap<u32, Held>,
    /// A process that may hold one could not be looked at.
    pub may_be_more: bool,
}

/// Where these sockets are open, except in serverswaps; one process for each is enough. `since`: when the server of
/// the sockets started. An older process is not expected to hold any. An error if not all processes could be listed.
pub fn holders(inodes: &BTreeSet<u32>, since: u64) -> io::Result<Holders> {
    let snapshot = Snapshot::take();
    snapshot.complete()?;
    let (is_serverswap, is_this_program, euid) = (serverswaps(), copies(), nix::unistd::geteuid());
    let mut found = Holders::default();
    let mut processes: Vec<&Stat> = snapshot.all().filter(|stat| stat.pid != Pid::own()).collect();
    // As a rule the server itself or one of its workers holds them, and the others need not be asked.
    processes.sort_by_key(|stat| (stat.start < since, stat.start));
    for stat in processes {
        if found.held.len() == inodes.len() {
            break;
        }
        // A supervisor does not count, and may have very many files to list.
        if is_this_program(stat.pid) {
            continue;
        }
        let Ok(Some(fds)) = find_sockets(stat.pid) else {
            found.may_be_more |=
                stat.start >= since && (euid.is_root() || is_of_this_user(stat.pid)) && !has_ended(stat.pid);
            continue;
        };
        let held = fds.into_iter().filter(|(_, inode)| inodes.contains(inode));
        let held: Vec<(i32, u32)> = held.collect();
        if !held.is_empty() && !is_serverswap(stat.pid) {
            found.held.extend(held.into_iter().map(|(number, inode)| (inode, Held::at(stat.pid, number))));
        }
    }
    Ok(found)
}

impl Snapshot {
    /// Whether one of the sockets belongs to this user and none of these processes holds it. Then its holder has been
    /// forked since, or is ending thread by thread and no longer shows what it holds: look again. `group`: the process
    /// group of the server whose sockets they were.
    pub fn misses_holder_of(&self, of: &[TcpSocket], group: Option<Pid>) -> bool {
        let euid = nix::unistd::geteuid();
        let own = of.iter().filter(|s| euid.is_root() || s.uid == euid.as_raw());
        let mut left: BTreeSet<u32> = own.map(|s| s.inode).collect();
        // A process that is ending is no holder: it has lost its memory, and so the mark of its server, before its
        // files. While there is such a process, a socket that a supervisor has a copy of is not that supervisor's alone.
        let is_ending = |stat: &Stat| fs::read_link(format!("/proc/{}/exe", stat.pid)).is_err();
        let is_near = |stat: &&Stat| group.is_none_or(|group| stat.group == group.raw());
        let is_serverswap = serverswaps();
        let somebody_ends = LazyCell::new(|| {
            let mut alive = self.alive.values().filter(is_near);
            // Without a group it could be any process, and kernel threads look like ending processes.
            self.ending.iter().any(|stat| is_near(&stat)) || group.is_some() && alive.any(is_ending)
        });
        let own = Pid::own();
        // The youngest first: as a rule a new server has them, and the files of all the others need not be listed.
        let mut others = self.alive.values().rev().filter(|stat| stat.pid != own);
        while let (false, Some(stat)) = (left.is_empty(), others.next()) {
            let held = find_held(stat.pid).ok().flatten().unwrap_or_default();
            if !(left.is_disjoint(&held) || is_ending(stat) || is_serverswap(stat.pid) && *somebody_ends) {
                left.retain(|inode| !held.contains(inode));
            }
        }
        !left.is_empty()
    }
}
