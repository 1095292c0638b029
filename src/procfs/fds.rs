//! The sockets that a process holds.

use crate::sys::process::Pid;
use nix::libc;
use std::collections::BTreeSet;
use std::fs;
use std::io;

/// The sockets that a process holds, by fd number and inode; `None` if it may not be asked, or is gone. An error if it
/// cannot be looked at, for want of fds for example.
pub fn find_sockets(pid: Pid) -> io::Result<Option<Vec<(i32, u32)>>> {
    let is_its = |e: &io::Error| {
        matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EACCES | libc::EPERM | libc::ENOTDIR))
    };
    let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Err(e) if is_its(&e) => return Ok(None),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let (entry, target) = match entry.and_then(|entry| Ok((fs::read_link(entry.path())?, entry))) {
            Ok((target, entry)) => (entry, target),
            // A process that may not look at them may still list them.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            // It was closed since it was listed.
            Err(e) if is_its(&e) => continue,
            Err(e) => return Err(e),
        };
        let socket = || {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
            Some((number, inode))
        };
        found.extend(socket());
    }
    Ok(Some(found))
}

/// Like [`find_sockets`], the inodes alone.
pub fn find_held(pid: Pid) -> io::Result<Option<BTreeSet<u32>>> {
    Ok(find_sockets(pid)?.map(|fds| fds.into_iter().map(|(_, inode)| inode).collect()))
}

/// Where a socket is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// In this process.
    pub pid: Pid,
    /// Under this number.
    number: i32,
}

impl Held {
    /// Under this number in this process, where somebody has seen it.
    pub fn at(pid: Pid, number: i32) -> Held {
        Held { pid, number }
    }

    /// Whether it is still there. This takes one look, unlike [`super::holders`].
    pub fn is_still(&self, inode: u32) -> bool {
        let target = fs::read_link(format!("/proc/{}/fd/{}", self.pid, self.number));
        target.is_ok_and(|target| target.as_os_str() == format!("socket:[{inode}]").as_str())
    }
}
