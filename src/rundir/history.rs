//! The histories of addresses. They outlive the servers that they tell of, but not for ever.

use super::{Bad, CANNOT_BE_READ, Denied, RunDir};
use crate::address::Address;
use crate::history::{self, Entry};
use nix::fcntl::AtFlags;
use nix::libc;
use nix::sys::stat::fstatat;
use std::io::Read;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the name of a history ends with.
pub(super) const SUFFIX: &str = ".history";
/// Largest history: a few times as long as the lines that are kept.
const SIZE_MAX: u64 = 64 * 1024;
/// How long a history is kept after its last line.
const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

fn history_file(address: &Address) -> String {
    address.stem() + SUFFIX
}

impl RunDir {
    /// What is known of the last swaps of an address, the oldest one first. Lines that are none are left out.
    pub fn history(&self, address: &Address) -> Result<Vec<Entry>, Bad> {
        let mut bytes = Vec::new();
        let file = match self.open_checked(&history_file(address), SIZE_MAX) {
            Err(Bad::Absent) => return Ok(Vec::new()),
            opened => opened?,
        };
        file.take(SIZE_MAX).read_to_end(&mut bytes).map_err(|_| Bad::Unreadable)?;
        Ok(history::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// Adds a line to the history of an address. A file that is none of ours is left alone.
    pub fn add_to_history(&self, address: &Address, entry: &Entry) -> Result<(), Denied> {
        // Two supervisors may write at once: none reads before the other has written.
        let _guard = self.lock()?;
        let mut entries = self.history(address).map_err(|bad| match bad {
            Bad::Because(why) => Denied::Because(format!("{} {why}", history_file(address))),
            Bad::Absent | Bad::Unreadable => Denied::Because(format!("{} {CANNOT_BE_READ}", history_file(address))),
        })?;
        entries.push(entry.clone());
        let text = history::text(&history::keep(entries));
        self.write_by_rename(&history_file(address), text.as_bytes(), 0o600, |_| Ok(())).map_err(Denied::Because)?;
        Ok(())
    }

    /// Removes the histories among these files in which nothing was written for long, and whose addresses nobody has any
    /// more: ports may be of one use only.
    pub fn forget_histories(&self, names: &[String]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for name in names {
            let Some(pidfile) = name.strip_suffix(SUFFIX).map(|stem| stem.to_owned() + ".pid") else { continue };
            if names.contains(&pidfile) {
                continue;
            }
            let Ok(stat) = fstatat(&self.dir, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            let written = Duration::from_secs(stat.st_mtime.try_into().unwrap_or(0));
            let is_file = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
            if is_file && stat.st_uid == self.owner && written + KEPT_FOR < now {
                self.unlink(name);
            }
        }
    }
}
