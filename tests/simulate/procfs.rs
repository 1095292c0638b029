//! Who holds which socket.

use crate::kernel;
use crate::sys::pid::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

#[derive(Debug, Default)]
pub struct Holders {
    pub held: BTreeMap<u32, Held>,
    pub may_be_more: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub pid: Pid,
}

impl Held {
    pub fn is_still(&self, inode: u32) -> bool {
        kernel::with(|k| k.sockets.get(&inode).is_some_and(|s| s.count(self.pid.raw()) > 0))
    }
}

pub fn holders(inodes: &BTreeSet<u32>, _since: u64) -> io::Result<Holders> {
    kernel::with(|k| {
        let is_server = |pid: &i32| k.processes.get(pid).is_some_and(|p| !p.is_serverswap && !p.ended);
        let holder = |inode: &u32| k.sockets.get(inode)?.holders().find(is_server);
        let found = |inode: &u32| Some((*inode, Held { pid: Pid::new(holder(inode)?.into())? }));
        Ok(Holders { held: inodes.iter().filter_map(found).collect(), may_be_more: false })
    })
}

pub fn is_ending(_: Pid) -> bool {
    false
}

pub fn has_ended(pid: Pid) -> bool {
    kernel::with(|k| k.has_ended(pid.raw()))
}
