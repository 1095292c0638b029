//! The run directory of a user: its files, their names and its lock. Every file is checked before it is believed, since
//! any program of this user may have put it there. [`crate::finder`] finds the servers that the files speak of.
//!
//! - `8080.pid` holds the pid of the server at `:8080`, for people and scripts. A bare number proves nothing.
//! - `PID.server` is the record of that server: its start time (a reused pid has another one), generation and control
//!   socket. Its supervisor holds a flock(2) on it as long as it lives: the lock is the proof of life. A caretaker
//!   that gets the lock while the server lives takes over an orphan.
//! - `8080.history` tells of the last swaps of that address, for people and scripts: nothing is decided by it.
//! - `lock` is held for the moment in which pidfiles are compared and changed, or a history is.

#![forbid(unsafe_code)]

mod files;
mod history;
mod lock;
mod names;
mod part;
mod pidfiles;
#[cfg(test)]
mod tests;

pub use files::{Bad, CANNOT_BE_READ};
pub use lock::{Denied, LOCK};
pub use names::{pidfile, record_name};

use crate::error::{Error, Result, reason};
use crate::sys::namespace::Namespaces;
use crate::sys::process;
use nix::errno::Errno;
use nix::fcntl::{Flock, OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::geteuid;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest path in bytes that a unix socket address holds (unix(7)), without its final NUL.
const SUN_PATH_MAX: usize = 107;
/// How long the lock is waited for. It is held for microseconds; only a stopped process can hold it longer.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The run directory of this user.
pub struct RunDir {
    path: PathBuf,
    /// Shared by all handles, so that all of them see a directory that was opened again.
    dir: Arc<OwnedFd>,
    owner: u32,
    namespaces: Namespaces,
    /// The directory that this one is a part of. The part is for servers of other namespaces.
    whole: Option<Box<RunDir>>,
    /// While a part is locked, nobody removes it.
    kept: Option<Flock<OwnedFd>>,
    /// How long the lock is waited for.
    patience: Duration,
    /// The lock, while it is held for more than one step.
    held: Mutex<Option<Arc<File>>>,
    /// Held while this process may claim orphans.
    turn: Mutex<Option<File>>,
}

/// Sentences for the user about files that are not what they should be.
pub type Notes = Vec<String>;

impl RunDir {
    /// Opens a directory and checks that it is ours alone.
    fn open_whole(given: Option<&Path>, create: bool) -> Result<RunDir> {
        let path = RunDir::path_of(given)?;
        if create {
            let mode = if geteuid().is_root() { 0o755 } else { 0o700 };
            // Only our own directories are made together with those above them.
            let mut builder = DirBuilder::new();
            match builder.recursive(given.is_none()).mode(mode).create(&path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(unusable(&path, reason(&e))),
                Ok(()) | Err(_) => {}
            }
        }
        let (dir, owner) = open_checked(&path, create)?;
        Ok(RunDir::at(path, Arc::new(dir), owner, Namespaces::own(), LOCK_PATIENCE))
    }

    /// The directory that would be used, whether it exists or not.
    pub fn path_of(given: Option<&Path>) -> Result<PathBuf> {
        let path = given.map(Path::to_owned).or_else(default_path).ok_or_else(|| {
            Error::failed("unable to choose a run directory: $HOME is not known (nothing was done; see --run-dir)")
        })?;
        std::path::absolute(&path).map_err(|e| unusable(&path, e))
    }

    /// Opens the directory by its path again, for all handles on it; it was removed, and may have to be made.
    pub fn open_again(&self) -> Result<()> {
        let is_default = RunDir::path_of(None).is_ok_and(|path| path == self.path);
        let new = RunDir::open_whole(Some(&*self.path).filter(|_| !is_default), true)?;
        process::replace(new.dir.as_fd(), self.dir.as_fd()).map_err(|e| unusable(&self.path, e))
    }

    fn at(path: PathBuf, dir: Arc<OwnedFd>, owner: u32, namespaces: Namespaces, patience: Duration) -> RunDir {
        let (held, turn) = Default::default();
        RunDir { path, dir, owner, namespaces, whole: None, kept: None, patience, held, turn }
    }

    /// A second handle on the same directory.
    pub fn try_clone(&self) -> std::io::Result<RunDir> {
        Ok(RunDir::at(self.path.clone(), self.dir.clone(), self.owner, self.namespaces, self.patience))
    }

    /// Whose directory it is: that of this user or, if root looks, any user's.
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// The same directory with another patience for its lock.
    pub fn with_patience(self, patience: Duration) -> RunDir {
        let whole = self.whole.map(|whole| Box::new(whole.with_patience(patience)));
        RunDir { patience, whole, ..self }
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The namespaces in which its pids and addresses have a meaning.
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// When a file was last added or removed; `None` if that cannot be told.
    pub fn changed(&self) -> Option<SystemTime> {
        let stat = fstat(&self.dir).ok()?;
        UNIX_EPOCH.checked_add(Duration::new(stat.st_mtime.try_into().ok()?, stat.st_mtime_nsec.try_into().ok()?))
    }

    /// The path by which another process opens the same run directory: that of the whole, never of a part.
    pub fn given(&self) -> &Path {
        self.whole.as_ref().map_or(&self.path, |whole| &whole.path)
    }

    /// The option by which a person finds it who has not chosen one; nothing if there is no need of one.
    pub fn option(&self) -> String {
        let is_default = RunDir::path_of(None).is_ok_and(|path| path == self.given());
        // As a shell reads it.
        let quoted = self.given().to_string_lossy().replace('\'', r"'\''");
        if is_default { String::new() } else { format!("--run-dir '{quoted}' ") }
    }
}

/// Opens a directory and checks that it is ours alone, or that of one other user if root only looks. Gives its owner too.
fn open_checked(path: &Path, create: bool) -> Result<(OwnedFd, u32)> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = match open(path, flags, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::ENOTDIR | Errno::ELOOP) => return Err(unusable(path, "it is no directory")),
        Err(errno) => return Err(unusable(path, errno.desc())),
    };
    let stat = fstat(&dir).map_err(|e| unusable(path, e.desc()))?;
    let root_looks = geteuid().is_root() && !create;
    if stat.st_uid != geteuid().as_raw() && !root_looks {
        return Err(unusable(path, format!("it belongs to another user (uid {})", stat.st_uid)));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(unusable(path, "others can write to it"));
    }
    if path.as_os_str().len() + "/2147483647-4294967295.notify".len() > SUN_PATH_MAX {
        return Err(unusable(path, "the path is too long for a socket in it"));
    }
    Ok((dir, stat.st_uid))
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::unable(format!("use the run directory {}", path.display()), why, "nothing was done")
}

/// For users other than root it is where it outlives a logout, and where cron and ssh find it too.
fn default_path() -> Option<PathBuf> {
    let name = if geteuid().is_root() { "serverswap" } else { "run" };
    crate::output::state_dir("/run").map(|dir| dir.join(name))
}
