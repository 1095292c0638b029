//! A run directory that somebody emptied, or removed, under living supervisors: they are asked to write their files again.

#![forbid(unsafe_code)]

use crate::procfs::{self, Snapshot};
use crate::sys::pid::Pid;
use nix::sys::signal::{Signal, kill};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the supervisors may take.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked meanwhile whether they have.
const LOOKS_EVERY: Duration = Duration::from_millis(5);

/// Asks the supervisors whose records in this directory were removed to write them again. SIGCHLD has a supervisor look,
/// and means nothing to any other process. `true` if there were such supervisors.
pub fn ask_to_write_again(dir: &Path) -> bool {
    let without: Vec<Pid> = without_record(dir).collect();
    for pid in &without {
        // One that has ended meanwhile needs no files.
        let _ = kill(nix::unistd::Pid::from_raw(pid.raw()), Signal::SIGCHLD);
    }
    !without.is_empty()
}

/// The same, and waits until they have.
pub fn have_written_again(dir: &Path) {
    let until = Instant::now() + WRITTEN_WITHIN;
    while ask_to_write_again(dir) && Instant::now() < until {
        std::thread::sleep(LOOKS_EVERY);
    }
}

/// Serverswaps of this user that hold a record of this directory open which has no name any more.
fn without_record(dir: &Path) -> impl Iterator<Item = Pid> {
    // The links in /proc are without symlinks; the directory itself may be gone.
    let real = |dir: &Path| Some(fs::canonicalize(dir.parent()?).ok()?.join(dir.file_name()?));
    let dir = fs::canonicalize(dir).ok().or_else(|| real(dir)).unwrap_or_else(|| dir.to_owned());
    let is_serverswap = procfs::serverswaps();
    let is_record = move |link: &Path| {
        let name = link.file_name().unwrap_or_default().as_encoded_bytes();
        link.parent() == Some(&dir) && name.ends_with(b".server (deleted)")
    };
    let has = move |pid: Pid| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"));
        fds.is_ok_and(|fds| fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|link| is_record(&link))))
    };
    let all = Snapshot::take().all().map(|stat| stat.pid).collect::<Vec<Pid>>().into_iter();
    all.filter(move |pid| *pid != Pid::own() && procfs::is_of_this_user(*pid) && is_serverswap(*pid) && has(*pid))
}
