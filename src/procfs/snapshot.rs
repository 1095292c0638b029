//! All processes at one moment.

use super::process::{Stat, find};
use crate::sys::process::Pid;
use nix::libc;
use std::cell::{Cell, OnceCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

/// All processes at one moment.
pub struct Snapshot {
    pub(super) alive: BTreeMap<i32, Stat>,
    /// Processes whose first thread has ended before others, which may still hold files that nobody can see.
    pub(super) ending: Vec<Stat>,
    /// Why processes may be missing (an errno).
    failed: Option<i32>,
    /// The living children of each process, even of processes that are not there.
    children: OnceCell<BTreeMap<i32, Vec<i32>>>,
}

impl Snapshot {
    /// Looks at all of `/proc` once.
    pub fn take() -> Snapshot {
        let failed = Cell::new(None);
        let note = |e: io::Error| {
            // Processes of other users may be hidden (proc(5), hidepid=1).
            if !matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
                failed.set(e.raw_os_error());
            }
        };
        let entries = fs::read_dir("/proc").map_err(note).into_iter().flatten();
        let pids = entries.filter_map(|e| Pid::new(e.map_err(note).ok()?.file_name().to_str()?.parse().ok()?));
        let stats = pids.filter_map(|pid| find(pid).map_err(note).ok()?);
        let (ended, alive): (Vec<Stat>, Vec<Stat>) = stats.partition(|stat| stat.zombie);
        Snapshot {
            alive: alive.into_iter().map(|stat| (stat.pid.raw(), stat)).collect(),
            ending: ended.into_iter().filter(|stat| stat.threads > 1).collect(),
            failed: failed.get(),
            children: OnceCell::new(),
        }
    }

    /// These processes and no others.
    #[cfg(test)]
    pub fn of(stats: impl IntoIterator<Item = Stat>) -> Snapshot {
        let alive = stats.into_iter().map(|stat| (stat.pid.raw(), stat)).collect();
        Snapshot { alive, ending: Vec::new(), failed: None, children: OnceCell::new() }
    }

    /// An error if processes may be missing, for want of memory or fds: then it means nothing that a process is not there.
    pub fn complete(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    /// Every living process.
    pub fn all(&self) -> impl Iterator<Item = &Stat> {
        self.alive.values()
    }

    /// A living process.
    pub fn get(&self, pid: i32) -> Option<&Stat> {
        self.alive.get(&pid)
    }

    /// These processes and their descendants, and the descendants of processes that are not there.
    pub fn below(&self, tops: impl IntoIterator<Item = i32>) -> impl Iterator<Item = &Stat> {
        let children = self.children.get_or_init(|| {
            let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
            self.all().for_each(|stat| children.entry(stat.parent).or_default().push(stat.pid.raw()));
            children
        });
        let missing = children.keys().filter(|pid| **pid != 0 && !self.alive.contains_key(pid));
        let mut left: Vec<i32> = missing.copied().chain(tops).collect();
        let mut below = BTreeSet::new();
        while let Some(pid) = left.pop() {
            // A torn snapshot could hold a circle.
            if below.insert(pid) {
                left.extend(children.get(&pid).into_iter().flatten());
            }
        }
        below.into_iter().filter_map(|pid| self.get(pid))
    }

    /// A process and its ancestors, youngest first.
    pub fn ancestry(&self, pid: i32) -> impl Iterator<Item = &Stat> {
        let mut next = self.alive.get(&pid);
        // A torn snapshot could hold a circle.
        let mut left = self.alive.len();
        std::iter::from_fn(move || {
            let this = next?;
            left = left.checked_sub(1)?;
            next = self.alive.get(&this.parent);
            Some(this)
        })
    }
}
