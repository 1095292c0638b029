//! The part of the run directory that is for our namespaces. A pid and an address mean something in their namespaces
//! only, so servers of other namespaces than the first ones get a directory of their own within the first.

use super::history::SUFFIX;
use super::{LOCK, RunDir, unusable};
use crate::error::{Result, reason};
use crate::finder::Missing;
use crate::sys::namespace::Namespaces;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::path::Path;

/// What the name of a part begins with.
const PREFIX: &str = "ns-";

impl RunDir {
    /// Opens the run directory, or the part of it that is for our namespaces. With `create` it is made if it is missing.
    pub fn open(given: Option<&Path>, create: bool) -> Result<RunDir> {
        RunDir::open_whole(given, create)?.part(create)
    }

    /// A part is used while it exists, and is made when a server of other namespaces has a record in the whole.
    fn part(self, create: bool) -> Result<RunDir> {
        let Namespaces { pid: Some(pid), net: Some(net) } = self.namespaces else { return Ok(self) };
        let path = self.path.join(format!("{PREFIX}{pid:x}-{net:x}"));
        let is_elsewhere = |pid| self.holder(pid).err() == Some(Missing::Elsewhere);
        if !path.is_dir() {
            let pids = if create { self.pids().map_err(|e| unusable(&self.path, reason(&e)))? } else { Vec::new() };
            if !pids.into_iter().any(is_elsewhere) {
                return Ok(self);
            }
        }
        let guard = self.lock().map_err(|why| unusable(&self.path, String::from(why)))?;
        let mut part = RunDir::open_whole(Some(&path), create)?;
        let kept = part.dir.try_clone().map_err(|e| unusable(&path, e))?;
        part.kept = Flock::lock(kept, FlockArg::LockSharedNonblock).ok();
        drop(guard);
        part.whole = Some(Box::new(self));
        Ok(part)
    }

    /// Closes the directory. The last one to leave a part in which there is nothing but histories removes it.
    pub fn leave(mut self) {
        let (Some(whole), Some(kept)) = (self.whole.take(), self.kept.take()) else { return };
        let Ok(_guard) = whole.lock() else { return };
        let is_left = |name: &String| name == LOCK || name.ends_with(SUFFIX);
        if kept.relock(FlockArg::LockExclusiveNonblock).is_ok()
            && let Ok(names) = self.names_that_end("")
            && names.iter().all(is_left)
            && let Some(name) = self.path.file_name()
        {
            names.iter().for_each(|name| self.unlink(name));
            let _ = unlinkat(&whole.dir, name, UnlinkatFlags::RemoveDir);
        }
    }
}
