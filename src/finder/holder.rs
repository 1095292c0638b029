//! The server that a record speaks of, if it lives. The lock of a record tells whether its supervisor lives; the start
//! time in it tells whether its server does.

use crate::family::{Descent, Family};
use crate::place::Place;
use crate::procfs::{self, Snapshot};
use crate::record::Record;
use crate::recovery::{self, Supervision};
use crate::rundir::{Bad, CANNOT_BE_READ, RunDir, record_name};
use crate::sys::pid::Pid;
use nix::sys::stat::fstat;
use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::Read;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest record that is read.
const RECORD_MAX: u64 = 1024 * 1024;

/// A living server, as its record describes it.
#[derive(Debug)]
pub struct Holder {
    record: Record,
    /// Its control socket.
    pub socket: PathBuf,
    /// Who owns the run directory, and so is to be at the other end of its control socket.
    pub owner: u32,
    /// Nobody has the lock of its record: it is an orphan.
    pub is_orphan: bool,
}

impl Deref for Holder {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}

/// The record of a running server, locked as long as this value lives.
#[derive(Debug)]
pub struct Registration {
    /// The lock ends with this handle.
    pub(super) lock: File,
    pub(super) pid: Pid,
}

impl Registration {
    /// The record.
    pub fn file(&self) -> &File {
        &self.lock
    }
}

/// Why there is no holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// No such server lives.
    Gone,
    /// It lives in another namespace.
    Elsewhere,
    /// It may live: its supervisor is dead, and its pid belongs to another pid namespace or cannot be looked at.
    Unseen,
    /// It may live: there is no fd or no memory to look, or its record is of another version.
    Unclear,
}

impl Holder {
    /// Whether its supervisor is dead. A caretaker may have its lock already, and not have written its record yet.
    pub fn has_lost_its_supervisor(&self) -> bool {
        self.is_orphan || procfs::has_ended(self.supervisor)
    }

    /// Whether its first supervisor is dead: the names of its sockets begin with the pid of that one.
    pub fn ever_lost_its_supervisor(&self) -> bool {
        let name = self.socket.file_name().unwrap_or_default().to_string_lossy();
        self.has_lost_its_supervisor() || !name.starts_with(&format!("{}-", self.supervisor))
    }

    /// Who supervises it.
    pub fn supervision(&self) -> Supervision {
        match () {
            () if self.has_lost_its_supervisor() => Supervision::Lost,
            () if self.ever_lost_its_supervisor() => Supervision::Later,
            () => Supervision::First,
        }
    }

    /// What matters of it for a swap, with the places where it listens.
    pub fn party(&self, places: Vec<Place>) -> recovery::Server {
        recovery::Server {
            pid: self.pid,
            start: self.start,
            supervisor: self.supervisor,
            ever_orphaned: self.ever_lost_its_supervisor(),
            replaced: self.olds.replaced.clone(),
            kept: self.olds.kept.clone(),
            places,
        }
    }

    /// Inodes of the sockets that the server holds; an error if they cannot be looked at, for want of fds for example.
    pub fn sockets(&self, snapshot: &Snapshot) -> std::io::Result<BTreeSet<u32>> {
        snapshot.complete()?;
        let mark = self.socket.to_string_lossy().into_owned();
        let session = procfs::find(self.pid)?.map_or(0, |stat| stat.session);
        let descent = match self.has_lost_its_supervisor() {
            false => Descent::From(self.supervisor),
            true => Descent::Lost(self.session),
        };
        let family = Family { main: self.pid, start: self.start, group: Some(self.pid), session, mark, descent };
        let mut all = BTreeSet::new();
        for stat in family.members(snapshot) {
            all.extend(procfs::find_held(stat.pid)?.unwrap_or_default());
        }
        Ok(all)
    }
}

impl RunDir {
    /// Every living server, whether it has an address or not.
    pub fn servers(&self) -> std::io::Result<Vec<Holder>> {
        Ok(self.pids()?.into_iter().filter_map(|pid| self.holder(pid).ok()).collect())
    }

    /// Inodes of the UDP sockets that living servers other than `me` had when they came up.
    pub fn datagrams(&self, me: Option<Pid>) -> std::io::Result<BTreeSet<u32>> {
        let others = self.servers()?.into_iter().filter(|holder| Some(holder.pid) != me);
        Ok(others.flat_map(|holder| holder.record.datagrams).collect())
    }

    /// The server with this main process, if it lives.
    pub fn holder(&self, pid: Pid) -> Result<Holder, Missing> {
        // Two that look at the same time must not take each other for the supervisor.
        self.examine(pid, File::try_lock_shared).map(|(holder, _)| holder)
    }

    /// As [`RunDir::holder`], with its record locked if it is an orphan: it is ours from then on.
    pub fn take_over(&self, pid: Pid) -> Result<(Holder, Option<Registration>), Missing> {
        self.examine(pid, File::try_lock)
    }

    fn examine(
        &self,
        pid: Pid,
        lock: fn(&File) -> Result<(), TryLockError>,
    ) -> Result<(Holder, Option<Registration>), Missing> {
        let (file, text) = self.read_record(pid)?;
        let Some(record) = Record::parse(&text).filter(|record| record.pid == pid) else {
            // Of another version, spoilt, or too large: it counts as long as somebody holds its lock.
            return Err(if is_locked(&file) { Missing::Unclear } else { Missing::Gone });
        };
        if !record.namespaces.may_be(self.namespaces()) {
            return Err(self.missing_elsewhere(&record, &file));
        }
        let is_orphan = match lock(&file) {
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(_)) => return Err(Missing::Unclear),
            // The record was replaced before we had its lock. The new one tells who lives.
            Ok(()) if fstat(&file).is_ok_and(|stat| stat.st_nlink == 0) => return self.examine(pid, lock),
            Ok(()) => {
                let stat = procfs::find(pid).map_err(|_| Missing::Unclear)?;
                let boot = procfs::boot_id();
                if boot.is_empty() {
                    return Err(Missing::Unclear);
                }
                if record.boot != boot || !stat.is_some_and(|s| s.start == record.start && !s.zombie) {
                    return Err(Missing::Gone);
                }
                true
            }
        };
        let (socket, owner) = (self.path().join(&record.socket_name), self.owner());
        let holder = Holder { record, socket, owner, is_orphan };
        Ok((holder, is_orphan.then_some(Registration { lock: file, pid })))
    }

    /// A record as it stands; the text is empty if it is too large, or no text.
    fn read_record(&self, pid: Pid) -> Result<(File, String), Missing> {
        // A second name does not matter: only we can have written the file, and a look does no harm.
        let (file, stat) = self.open_ours(&record_name(pid)).map_err(|why| match why {
            Bad::Unreadable | Bad::Because(CANNOT_BE_READ) => Missing::Unclear,
            Bad::Absent | Bad::Because(_) => Missing::Gone,
        })?;
        let mut text = String::new();
        if stat.st_size as u64 <= RECORD_MAX {
            match (&file).take(RECORD_MAX).read_to_string(&mut text) {
                Err(e) if e.kind() != std::io::ErrorKind::InvalidData => return Err(Missing::Unclear),
                Ok(_) | Err(_) => {}
            }
        }
        Ok((file, text))
    }

    /// What a record of another namespace tells. A pid of another pid namespace says nothing here.
    fn missing_elsewhere(&self, record: &Record, file: &File) -> Missing {
        let boot = procfs::boot_id();
        let is_here = || record.namespaces.pid == self.namespaces().pid;
        match procfs::find(record.pid) {
            _ if is_locked(file) => Missing::Elsewhere,
            _ if !boot.is_empty() && record.boot != boot => Missing::Gone,
            Ok(stat) if is_here() && !stat.as_ref().is_some_and(|s| s.start == record.start && !s.zombie) => {
                Missing::Gone
            }
            Ok(_) if is_here() => Missing::Elsewhere,
            Ok(_) | Err(_) => Missing::Unseen,
        }
    }

    /// What the names of a server's sockets begin with, even if its record is of another namespace.
    pub(super) fn sockets_of(&self, pid: Pid) -> std::io::Result<Option<String>> {
        let stem = |record: Record| record.socket_name.strip_suffix(".sock").map(str::to_owned);
        match self.read_record(pid) {
            Ok((_, text)) if !text.is_empty() => Ok(Record::parse(&text).and_then(stem)),
            Ok(_) | Err(Missing::Unclear) => Err(std::io::Error::other(CANNOT_BE_READ)),
            Err(_) => Ok(None),
        }
    }

    /// Waits until the lock of a server's record is free: its supervisor is gone, and so is every later one. `false` if
    /// that takes longer than `within`.
    pub fn is_released(&self, pid: Pid, within: Option<Duration>) -> bool {
        let Ok((file, _)) = self.open_ours(&record_name(pid)) else { return true };
        // Two that wait must not take each other for the supervisor.
        let Some(time) = within else {
            let _ = file.lock_shared();
            return true;
        };
        let until = Instant::now() + time;
        while file.try_lock_shared().is_err() {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

fn is_locked(file: &File) -> bool {
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}
