//! The run directory: a pidfile per address, a locked record per server, and how a new supervisor
//! finds the old one. Every file in it is hostile until proven otherwise.
//!
//! - `8080.pid` holds the pid of the server that serves `:8080`, for people and scripts. A bare number
//!   proves nothing.
//! - `PID.server` is the record of that server: its start time (a reused pid has another), generation
//!   and control socket. Its supervisor holds a flock(2) on it as long as it lives: the lock is the
//!   proof of life. Whoever gets the lock of a living server whose supervisor is dead owns the orphan.
//! - `lock` is held for the moment in which pidfiles are compared and changed.

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::error::{Error, Result, reason};
use crate::family::{Descent, Family};
use crate::place::Place;
use crate::procfs::{self, MARK, Snapshot, Stat};
use crate::record::{Record, one_line, parse_number, parse_pid};
use crate::sys::namespace::Namespaces;
use crate::sys::net::{self, TcpSocket};
use crate::sys::process::Pid;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest record that is read.
const RECORD_MAX: u64 = 16 * 1024;
/// What the name of a part of it begins with that is another namespace's.
const PART: &str = "ns-";
/// Longest path that a unix socket address holds (unix(7)), with its final NUL.
const SUN_PATH_MAX: usize = 107;
/// The lock is held for microseconds; only a stopped process can hold it longer.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The run directory of this user.
pub struct RunDir {
    path: PathBuf,
    dir: OwnedFd,
    namespaces: Namespaces,
    /// The directory of which this is a part, for servers of other namespaces than those in it.
    whole: Option<Box<RunDir>>,
    /// And nobody may remove that part.
    kept: Option<Flock<OwnedFd>>,
    /// How long its lock is waited for.
    patience: Duration,
    /// Its lock, where it is held for more than one step.
    held: Mutex<Option<Arc<File>>>,
    /// Orphans of which nobody here wants anything yet.
    reserved: Mutex<BTreeMap<Pid, File>>,
}

/// Whoever has an address.
#[derive(Debug)]
pub struct Holder {
    /// Main process of the server.
    pub pid: Pid,
    /// Start time of it.
    pub start: u64,
    /// Its generation.
    pub generation: u64,
    /// Its supervisor, alive or not.
    pub supervisor: Pid,
    /// The session that is the server's alone, if it has one.
    pub session: Option<i32>,
    /// The control socket.
    pub socket: PathBuf,
    /// Its command line.
    pub command: String,
    /// Main processes of the servers in whose place it gets the connections of a shared port.
    pub replaced: Vec<Pid>,
    /// Inodes of the UDP sockets at fixed ports that its server had when it came up.
    pub datagrams: Vec<u32>,
    /// The locked record of a server whose supervisor is dead: it is ours now.
    pub orphan: Option<Registration>,
}

impl Holder {
    /// Whether it is an orphan, or was one before somebody took it over: for another of its addresses, say.
    pub fn has_lost_its_supervisor(&self) -> bool {
        self.orphan.is_some() || procfs::has_ended(self.supervisor)
    }

    /// Inodes of the sockets that its server holds; an error where they cannot be looked at, for want of fds, say.
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
            all.extend(procfs::find_inodes(stat.pid)?);
        }
        Ok(all)
    }
}

/// Who looks an address up.
pub struct Asker<'a> {
    /// Its main process.
    pub me: Pid,
    /// What belongs to it.
    pub mine: Mine<'a>,
    /// Where its sockets are bound that wait to listen, and whether it may replace whom they meet. Without any, what
    /// counts is the name of the address.
    pub places: &'a [(Place, May)],
}

/// What the caller of `listen` may do to a server that it meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    /// The socket is its own.
    Replace,
    /// It has become another user's since it opened the socket.
    Nothing,
}

/// How a server stands to one that wants an address of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    /// It has what is wanted, or may have.
    InTheWay,
    /// Both can listen.
    Beside,
    /// It is in the way, and of another user.
    Foreign,
}

/// What [`RunDir::look_up`] found.
#[derive(Debug)]
pub enum Found {
    /// Nobody had the address; now it is registered. These servers have one of the same name, beside which the kernel
    /// lets ours listen.
    Vacant(Vec<Pid>),
    /// Whoever has the address is none that the caller of `listen` could replace.
    Foreign,
    /// These servers have it.
    Taken(Vec<Holder>),
    /// It cannot be had.
    Blocked(String),
    /// It cannot be had, as it seems: another look may show more. Sockets are there, and nobody seems to hold them.
    Unclear(String),
}

/// The record of a running server, locked as long as this value lives.
#[derive(Debug)]
pub struct Registration {
    /// Its lock ends with this handle.
    lock: File,
    pid: Pid,
}

/// What is to be registered of a server.
pub struct Entry<'a> {
    /// Main process of the server.
    pub pid: Pid,
    /// Start time of it.
    pub start: u64,
    /// Its generation.
    pub generation: u64,
    /// Name of the control socket in the run directory.
    pub socket: &'a str,
    /// Command line for people.
    pub command: &'a str,
    /// Main processes of the servers in whose place it gets the connections of a shared port.
    pub replaced: &'a [Pid],
    /// Inodes of the UDP sockets at fixed ports that it had when it came up.
    pub datagrams: &'a [u32],
}

/// What belongs to the server that asks; errors where that cannot be seen.
pub struct Mine<'a> {
    /// Whether a process does.
    pub owns: &'a dyn Fn(Pid) -> std::io::Result<bool>,
    /// Whether one of these sockets does.
    pub holds: &'a dyn Fn(&[TcpSocket]) -> std::io::Result<bool>,
}

/// Whether the server is to become ours if it is an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    Yes,
    No,
}

/// Lines for the user about files that were not what they should be.
pub type Notes = Vec<String>;

impl RunDir {
    /// Opens the run directory, or the part of it that is for servers of our namespaces; with `create` it is made if it
    /// is not there.
    pub fn open(given: Option<&Path>, create: bool) -> Result<RunDir> {
        RunDir::open_whole(given, create)?.part(create)
    }

    /// A pid and an address mean something in their namespaces only. Servers of others than those that are here have a
    /// directory of their own in this one, as long as there are any.
    fn part(self, create: bool) -> Result<RunDir> {
        let Namespaces { pid: Some(pid), net: Some(net) } = self.namespaces else { return Ok(self) };
        let path = self.path.join(format!("{PART}{pid:x}-{net:x}"));
        let is_elsewhere = |pid| self.holder(pid, Claim::No).err() == Some(Missing::Elsewhere);
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

    /// Lets go of it. Who is the last in a part in which there is nothing any more removes that.
    pub fn leave(self) {
        let (Some(whole), Some(kept)) = (self.whole, self.kept) else { return };
        let Ok(_guard) = whole.lock() else { return };
        let is_empty =
            || std::fs::read_dir(&self.path).is_ok_and(|names| names.flatten().all(|e| e.file_name() == "lock"));
        if kept.relock(FlockArg::LockExclusiveNonblock).is_ok()
            && is_empty()
            && let Some(name) = self.path.file_name()
        {
            let _ = unlinkat(&self.dir, "lock", UnlinkatFlags::NoRemoveDir);
            let _ = unlinkat(&whole.dir, name, UnlinkatFlags::RemoveDir);
        }
    }

    fn open_whole(given: Option<&Path>, create: bool) -> Result<RunDir> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => default_path(),
        };
        let path = std::path::absolute(&path).map_err(|e| unusable(&path, e))?;
        if create {
            let mode = if geteuid().is_root() { 0o755 } else { 0o700 };
            match nix::unistd::mkdir(&path, Mode::from_bits_truncate(mode)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(unusable(&path, errno.desc())),
            }
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = match open(&path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Err(unusable(&path, "it is no directory")),
            Err(errno) => return Err(unusable(&path, errno.desc())),
        };
        let stat = fstat(&dir).map_err(|e| unusable(&path, e.desc()))?;
        if stat.st_uid != geteuid().as_raw() {
            return Err(unusable(&path, format!("it belongs to another user (uid {})", stat.st_uid)));
        }
        if stat.st_mode & 0o022 != 0 {
            return Err(unusable(&path, "others can write to it"));
        }
        if path.as_os_str().len() + "/2147483647-4294967295.notify".len() > SUN_PATH_MAX {
            return Err(unusable(&path, "the path is too long for a socket in it"));
        }
        Ok(RunDir::at(path, dir, Namespaces::own(), LOCK_PATIENCE))
    }

    /// Whether the directory that would be used is there: reading commands need none.
    pub fn exists(given: Option<&Path>) -> bool {
        given.map_or_else(default_path, Path::to_owned).symlink_metadata().is_ok()
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When a file of the directory last came or went; `None` where that cannot be told.
    pub fn changed(&self) -> Option<SystemTime> {
        let stat = fstat(&self.dir).ok()?;
        UNIX_EPOCH.checked_add(Duration::new(stat.st_mtime.try_into().ok()?, stat.st_mtime_nsec.try_into().ok()?))
    }

    /// The pids in the pidfiles of addresses that collide with this one.
    pub fn named(&self, address: &Address) -> std::io::Result<Vec<Pid>> {
        let mut pids = Vec::new();
        for own in self.colliding_with(address)? {
            match self.read_pid(&pidfile(&own)) {
                Ok(pid) => pids.push(pid),
                Err(Bad::Absent | Bad::Because(_)) => {}
                Err(Bad::Unreadable) => {
                    return Err(std::io::Error::other(format!("the pidfile of {own} {CANNOT_BE_READ}")));
                }
            }
        }
        Ok(pids)
    }

    /// The records of others than `me` that no pidfile names. A server may have a thousand pidfiles: one is enough.
    fn unnamed(&self, me: Option<Pid>) -> std::io::Result<BTreeSet<Pid>> {
        let mut left: BTreeSet<Pid> = self.pids()?.into_iter().filter(|pid| Some(*pid) != me).collect();
        if left.is_empty() {
            return Ok(left);
        }
        for name in self.names_that_end(".pid")? {
            if left.is_empty() {
                break;
            }
            if let Ok(pid) = self.read_pid(&name) {
                left.remove(&pid);
            }
        }
        Ok(left)
    }

    /// Whether there are records of others than `me` that no pidfile names.
    pub fn has_unnamed(&self, me: Option<Pid>) -> std::io::Result<bool> {
        Ok(!self.unnamed(me)?.is_empty())
    }

    /// Servers that no pidfile names and that listen at an address: somebody has removed it.
    pub fn unnamed_at(&self, address: &Address) -> std::io::Result<Vec<Pid>> {
        let (unnamed, listeners) = (self.unnamed(None)?, net::listeners()?);
        let snapshot = Snapshot::take();
        let mut found = Vec::new();
        for holder in unnamed.into_iter().filter_map(|pid| self.holder(pid, Claim::No).ok()) {
            let held = holder.sockets(&snapshot)?;
            if listeners.at(address).any(|socket| held.contains(&socket.inode)) {
                found.push(holder.pid);
            }
        }
        Ok(found)
    }

    /// Inodes of the UDP sockets that living servers but `me` had when they came up.
    pub fn datagrams(&self, me: Option<Pid>) -> std::io::Result<BTreeSet<u32>> {
        let others = self.servers()?.into_iter().filter(|holder| Some(holder.pid) != me);
        Ok(others.flat_map(|holder| holder.datagrams).collect())
    }

    /// Every address that has a pidfile.
    pub fn addresses(&self) -> std::io::Result<Vec<Address>> {
        self.addresses_that_end(String::new())
    }

    /// Those whose name ends like this: to understand all of a thousand names takes longer than to read them.
    fn addresses_that_end(&self, end: String) -> std::io::Result<Vec<Address>> {
        let names = self.names_that_end(&(end + ".pid"))?;
        let mut addresses: Vec<Address> =
            names.iter().filter_map(|name| Address::from_stem(name.strip_suffix(".pid")?)).collect();
        addresses.sort();
        Ok(addresses)
    }

    /// Those that have a pidfile and cannot coexist with this one.
    pub fn colliding_with(&self, address: &Address) -> std::io::Result<Vec<Address>> {
        Ok(match address {
            Address::Tcp(None, port) => {
                self.addresses_that_end(port.to_string())?.into_iter().filter(|a| a.collides(address)).collect()
            }
            Address::Tcp(Some(_), port) => [Address::Tcp(None, *port), address.clone()]
                .into_iter()
                .filter(|a| self.read_pid(&pidfile(a)) != Err(Bad::Absent))
                .collect(),
            Address::Name(_) => vec![address.clone()],
        })
    }

    /// The server with this main process, if it lives.
    pub fn find(&self, pid: Pid) -> Option<Holder> {
        self.holder(pid, Claim::Yes).ok()
    }

    /// Every living server, whether it has an address or not.
    pub fn servers(&self) -> std::io::Result<Vec<Holder>> {
        Ok(self.pids()?.into_iter().filter_map(|pid| self.holder(pid, Claim::No).ok()).collect())
    }

    /// The main processes that have a record.
    fn pids(&self) -> std::io::Result<Vec<Pid>> {
        let names = self.names_that_end(".server")?;
        Ok(names.iter().filter_map(|name| parse_number(name.strip_suffix(".server")?)).collect())
    }

    /// Who has the address; if nobody has, it becomes the asker's in the same moment.
    pub fn look_up(&self, address: &Address, asker: &Asker<'_>, notes: &mut Notes) -> Found {
        let me = asker.me;
        let _guard = match self.lock() {
            Ok(guard) => guard,
            Err(denied) => return Found::Blocked(denied.into()),
        };
        let mut holders: Vec<Holder> = Vec::new();
        let colliding = match self.colliding(address, notes) {
            Ok(colliding) => colliding,
            Err(why) => return Found::Unclear(why),
        };
        for (own, pid) in colliding {
            if pid == me || holders.iter().any(|h| h.pid == pid) {
                continue;
            }
            match self.holder(pid, Claim::Yes) {
                Ok(holder) if holder.orphan.is_none() || has(pid, &own) => holders.push(holder),
                Err(Missing::Unclear) => {
                    return Found::Unclear(format!("unable to read the record of server {pid}"));
                }
                // Both have come at the same moment.
                Err(Missing::Elsewhere) => {
                    return Found::Blocked("a server of another namespace has its pidfile".into());
                }
                // What is listened to here, and by whom, is not in that pidfile.
                Err(Missing::Unseen) => {}
                Ok(_) => {
                    let note = format!("pid {pid} has lost its supervisor and listens elsewhere, not on {own}");
                    if !notes.contains(&note) {
                        notes.push(note);
                    }
                }
                Err(Missing::Gone) => {
                    notes.push(format!("the pidfile of {own} is stale (it is removed)"));
                    self.unlink(&pidfile(&own));
                    self.sweep();
                }
            }
        }
        let relations: Vec<Relation> = holders.iter().map(|holder| relation(holder, asker.places)).collect();
        let of = |wanted: Relation| {
            let those = holders.iter().zip(&relations).filter(move |(_, relation)| **relation == wanted);
            those.map(|(holder, _)| holder.pid).collect::<Vec<Pid>>()
        };
        let (beside, foreign) = (of(Relation::Beside), of(Relation::Foreign));
        holders.retain(|holder| !(beside.contains(&holder.pid) || foreign.contains(&holder.pid)));
        if !foreign.is_empty() {
            return Found::Foreign;
        }
        if holders.iter().any(Holder::has_lost_its_supervisor) {
            // The supervisor that died may have left an old server that still drains: it is waited for, since
            // nobody knows how to steer among three. One without a supervisor too is replaced with it.
            let beside = match self.beside(std::slice::from_ref(address), me, &holders) {
                Ok(beside) => beside,
                Err(e) => return Found::Unclear(format!("unable to see who else listens: {}", reason(&e))),
            };
            let (orphans, draining): (Vec<Holder>, Vec<Holder>) =
                beside.into_iter().partition(Holder::has_lost_its_supervisor);
            if !draining.is_empty() {
                return Found::Taken(draining);
            }
            // A look holds the lock that the claim takes.
            let pids: Vec<Pid> = orphans.into_iter().map(|other| other.pid).collect();
            holders.extend(pids.into_iter().filter_map(|pid| self.holder(pid, Claim::Yes).ok()));
        }
        if holders.iter().any(|holder| holder.orphan.is_some())
            && let Err(e) = self.reserve(&holders)
        {
            return Found::Unclear(format!("unable to list the run directory: {}", reason(&e)));
        }
        if holders.is_empty() {
            match self.port_holder(address, asker) {
                Ok(None) => {}
                Ok(Some(holder)) if relation(&holder, asker.places) == Relation::Foreign => {
                    return Found::Foreign;
                }
                Ok(Some(holder)) => holders.push(holder),
                Err((why, true)) => return Found::Blocked(why),
                Err((why, false)) => return Found::Unclear(why),
            }
        }
        if !holders.is_empty() {
            return Found::Taken(holders);
        }
        // The pidfile stays that of who has it.
        let is_named = self.read_pid(&pidfile(address)).is_ok_and(|pid| beside.contains(&pid));
        let written = if is_named { Ok(()) } else { self.write_pid(address, me) };
        match written {
            Ok(()) => Found::Vacant(beside),
            Err(why) => Found::Blocked(format!("unable to write its pidfile: {why}")),
        }
    }

    /// Takes every other orphan too: the asking server may want them next. Of two that want two orphans each could else
    /// have one and wait for the other for ever.
    fn reserve(&self, taken: &[Holder]) -> std::io::Result<()> {
        let others = self.pids()?.into_iter().filter(|pid| taken.iter().all(|holder| holder.pid != *pid));
        for holder in others.filter_map(|pid| self.holder(pid, Claim::Yes).ok()) {
            if let Some(Registration { lock, pid }) = holder.orphan {
                self.reserved().insert(pid, lock);
            }
        }
        Ok(())
    }

    /// Lets go of the orphans that nobody here has wanted.
    pub fn release_orphans(&self) {
        self.reserved().clear();
    }

    fn reserved(&self) -> MutexGuard<'_, BTreeMap<Pid, File>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the address `me`'s unless somebody living has it who is not one of `olds`. Tells whether it
    /// is `me`'s now. The pidfile of a server `beside` it stays.
    pub fn take(&self, address: &Address, me: Pid, olds: &[Pid], beside: &[Pid]) -> std::result::Result<bool, String> {
        let _guard = self.lock()?;
        let others = self.colliding(address, &mut Vec::new())?;
        if others.iter().any(|(own, pid)| own == address && beside.contains(pid)) {
            return Ok(true);
        }
        let is_known = |pid: &Pid| *pid == me || olds.contains(pid) || beside.contains(pid);
        let others = others.iter().map(|(_, pid)| *pid).filter(|pid| !is_known(pid));
        let is_there = |pid| !matches!(self.holder(pid, Claim::No), Err(Missing::Gone | Missing::Unseen));
        if others.into_iter().any(is_there) {
            return Ok(false);
        }
        self.write_pid(address, me).map(|()| true)
    }

    /// Removes the pidfile of the address if it is `me`'s.
    pub fn unhold(&self, address: &Address, me: Pid) {
        let Ok(_guard) = self.lock() else { return };
        let name = pidfile(address);
        if self.read_pid(&name) == Ok(me) {
            self.unlink(&name);
        }
    }

    /// The server that a pidfile names, if it is one and lives.
    pub fn serving(&self, address: &Address, notes: &mut Notes) -> Option<Holder> {
        match self.read_pid(&pidfile(address)) {
            Ok(pid) => match self.holder(pid, Claim::No) {
                Ok(holder) => Some(holder),
                Err(Missing::Gone | Missing::Elsewhere | Missing::Unseen) => None,
                Err(Missing::Unclear) => {
                    notes.push(format!("unable to read the record of server {pid} (it is left alone)"));
                    None
                }
            },
            Err(Bad::Absent) => None,
            Err(bad) => {
                let why = if let Bad::Because(why) = bad { why } else { CANNOT_BE_READ };
                notes.push(format!("the pidfile of {address} {why} (it is ignored)"));
                None
            }
        }
    }

    /// Writes and locks the record of a server.
    pub fn register(&self, entry: &Entry<'_>) -> std::result::Result<Registration, String> {
        let boot = procfs::boot_id();
        if boot.is_empty() {
            // It would be taken for that of a server before the machine was started.
            return Err("unable to read /proc/sys/kernel/random/boot_id".into());
        }
        if self.holder(entry.pid, Claim::No).err() == Some(Missing::Elsewhere) {
            return Err("a server of another namespace has a record of that pid".into());
        }
        let stat = procfs::find(entry.pid).map_err(|e| format!("unable to look at its process: {}", reason(&e)))?;
        let ours = nix::unistd::getsid(None).map_or(0, nix::unistd::Pid::as_raw);
        let record = Record {
            pid: entry.pid,
            start: entry.start,
            session: stat.map(|s| s.session).filter(|session| *session != ours),
            boot: &boot,
            supervisor: Pid::own(),
            namespaces: self.namespaces,
            generation: entry.generation,
            socket: entry.socket,
            command: entry.command,
            replaced: entry.replaced.to_vec(),
            datagrams: entry.datagrams.to_vec(),
        };
        let lock = |file: &File| file.try_lock().map_err(std::io::Error::from);
        let file = self.write_by_rename(&record_name(entry.pid), record.to_string().as_bytes(), 0o600, lock)?;
        Ok(Registration { lock: file, pid: entry.pid })
    }

    /// Removes a record that is ours, with the sockets of its server.
    pub fn deregister(&self, registration: Registration, sockets: &[String]) {
        for socket in sockets {
            self.unlink(socket);
        }
        self.unlink_record(&registration);
    }

    /// The generation that a new server with this command line most likely becomes, before it has said
    /// what it wants: one more than the server with the same command, or than the only one that runs
    /// the same program.
    pub fn next_generation(&self, command: &str) -> u64 {
        let servers = match self.lock() {
            Ok(_guard) => self.sweep(),
            Err(_) => self.servers().unwrap_or_default(),
        };
        let command = one_line(command);
        let program = |command: &str| command.split(' ').next().map(str::to_owned);
        let same = servers.iter().filter(|h| h.command == command).map(|h| h.generation).max();
        let alike = match &servers[..] {
            [only] if program(&only.command) == program(&command) => Some(only.generation),
            _ => None,
        };
        same.or(alike).unwrap_or(0) + 1
    }

    /// Lets go of a record that a newer one of the same server, whose main process is now `pid`, replaces.
    pub fn forget(&self, registration: Registration, pid: Pid) {
        if registration.pid != pid {
            self.unlink_record(&registration);
        }
    }

    /// Unless its name is that of another record by now: of a server that has got the pid.
    fn unlink_record(&self, registration: &Registration) {
        let name = record_name(registration.pid);
        let named = fstatat(&self.dir, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        if let (Ok(named), Ok(ours)) = (named, fstat(&registration.lock))
            && (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)
        {
            self.unlink(&name);
        }
    }

    /// Waits until nobody has the lock of a server's record: its supervisor, or the one that takes an
    /// orphan over, is gone.
    pub fn wait_for_release(&self, pid: Pid) {
        if let Ok((file, _)) = self.open_ours(&record_name(pid)) {
            // Whoever only looks must not look like a supervisor to others who look.
            let _ = file.lock_shared();
        }
    }

    /// [`RunDir::wait_for_release`] for so long at most; whether it is free.
    pub fn is_released_within(&self, pid: Pid, time: Duration) -> bool {
        let Ok((file, _)) = self.open_ours(&record_name(pid)) else { return true };
        let until = Instant::now() + time;
        while file.try_lock_shared().is_err() {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// A second handle on the same directory.
    pub fn try_clone(&self) -> std::io::Result<RunDir> {
        Ok(RunDir::at(self.path.clone(), self.dir.try_clone()?, self.namespaces, self.patience))
    }

    fn at(path: PathBuf, dir: OwnedFd, namespaces: Namespaces, patience: Duration) -> RunDir {
        let (held, reserved) = (Mutex::default(), Mutex::default());
        RunDir { path, dir, namespaces, whole: None, kept: None, patience, held, reserved }
    }

    /// The record of `pid` if that server lives, locked if its supervisor does not.
    fn holder(&self, pid: Pid, claim: Claim) -> std::result::Result<Holder, Missing> {
        // Under however many names: only we can have written it, and a look does no harm.
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
        let Some(record) = Record::parse(&text).filter(|record| record.pid == pid) else {
            // Of another version, spoilt, or too large: it counts as long as somebody has its lock.
            let held = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
            return Err(if held { Missing::Unclear } else { Missing::Gone });
        };
        if !record.namespaces.may_be(&self.namespaces) {
            let held = || matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
            let boot = procfs::boot_id();
            // In another namespace its pid is somebody else's, or nobody's, and says nothing.
            let is_here = || record.namespaces.pid == self.namespaces.pid;
            return Err(match procfs::find(pid) {
                _ if held() => Missing::Elsewhere,
                _ if !boot.is_empty() && record.boot != boot => Missing::Gone,
                Ok(stat) if is_here() && !stat.as_ref().is_some_and(|s| s.start == record.start && !s.zombie) => {
                    Missing::Gone
                }
                Ok(_) if is_here() => Missing::Elsewhere,
                Ok(_) | Err(_) => Missing::Unseen,
            });
        }
        // Who only looks must not look like a supervisor to others who look.
        let locked = match claim {
            Claim::Yes => file.try_lock(),
            Claim::No => file.try_lock_shared(),
        };
        let reserved = match claim {
            Claim::Yes => self.reserved().remove(&pid),
            Claim::No => None,
        };
        let (file, locked) = match (locked, reserved) {
            (Err(TryLockError::WouldBlock), Some(ours)) if is_same(&file, &ours) => (ours, Ok(())),
            (locked, _) => (file, locked),
        };
        let orphan = match locked {
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Error(_)) => return Err(Missing::Unclear),
            // It was written anew before we had the lock: who lives has that of the new one.
            Ok(()) if fstat(&file).is_ok_and(|stat| stat.st_nlink == 0) => return self.holder(pid, claim),
            Ok(()) => {
                let stat = procfs::find(pid).map_err(|_| Missing::Unclear)?;
                let boot = procfs::boot_id();
                if boot.is_empty() {
                    return Err(Missing::Unclear);
                }
                if record.boot != boot || !stat.is_some_and(|s| s.start == record.start && !s.zombie) {
                    return Err(Missing::Gone);
                }
                Some(Registration { lock: file, pid })
            }
        };
        Ok(Holder {
            pid,
            start: record.start,
            generation: record.generation,
            supervisor: record.supervisor,
            session: record.session,
            socket: self.path.join(record.socket),
            command: record.command.to_owned(),
            replaced: record.replaced,
            datagrams: record.datagrams,
            orphan,
        })
    }

    /// Servers that listen there beside those that are known; without a supervisor, and where known ones have none: that
    /// listen at any place of those.
    pub fn beside(&self, addresses: &[Address], me: Pid, known: &[Holder]) -> std::io::Result<Vec<Holder>> {
        let listeners = net::listeners()?;
        let snapshot = Snapshot::take();
        let mut orphaned = BTreeSet::new();
        for orphan in known.iter().filter(|h| h.orphan.is_some()) {
            orphaned.extend(orphan.sockets(&snapshot)?);
        }
        let places = listeners.all().filter(|s| orphaned.contains(&s.inode)).map(|s| &s.local);
        let here = listeners.at_any(addresses);
        let with_orphans = listeners.at_any(places.chain(addresses));
        let mut beside = Vec::new();
        for other in self.servers()? {
            if other.pid == me || known.iter().any(|h| h.pid == other.pid) {
                continue;
            }
            let held = other.sockets(&snapshot)?;
            let sockets = if other.orphan.is_some() { &with_orphans } else { &here };
            if sockets.iter().any(|s| held.contains(&s.inode)) {
                beside.push(other);
            }
        }
        Ok(beside)
    }

    /// Whoever listens there without a pidfile of ours: a server of ours that never said a word, or a
    /// stranger. The error says who, and whether that is clear.
    fn port_holder(&self, address: &Address, asker: &Asker<'_>) -> std::result::Result<Option<Holder>, (String, bool)> {
        let Address::Tcp(_, port) = *address else { return Ok(None) };
        let unclear = |e: std::io::Error| (format!("unable to see who listens: {}", reason(&e)), false);
        let mut sockets: Vec<TcpSocket> = net::listeners_at(port).map_err(unclear)?.at_any([address]);
        let places = asker.places;
        sockets.retain(|s| places.is_empty() || places.iter().any(|(place, _)| place.conflicts(&s.place())));
        if sockets.is_empty() {
            return Ok(None);
        }
        let snapshot = Snapshot::take();
        let mut stranger = None;
        for stat in snapshot.all() {
            let held = procfs::find_sockets(stat.pid).map_err(unclear)?.unwrap_or_default();
            if !sockets.iter().any(|s| held.iter().any(|(_, inode)| *inode == s.inode)) {
                continue;
            }
            if (asker.mine.owns)(stat.pid).map_err(unclear)? {
                return Ok(None);
            }
            for ancestor in snapshot.ancestry(stat.pid.raw()) {
                if let Ok(holder) = self.holder(ancestor.pid, Claim::Yes) {
                    return Ok(Some(holder));
                }
            }
            // What a server left behind is a child of its supervisor.
            let is_above = |pid: Pid| snapshot.ancestry(stat.pid.raw()).any(|ancestor| ancestor.pid == pid);
            let servers = self.servers().map_err(unclear)?;
            let parents = servers.into_iter().filter(|other| other.orphan.is_none() && is_above(other.supervisor));
            if let Some(holder) = parents.max_by_key(|other| other.generation) {
                return Ok(Some(holder));
            }
            stranger.get_or_insert(stat.pid);
        }
        // It may not be looked at.
        if stranger.is_none() && (asker.mine.holds)(&sockets).map_err(unclear)? {
            return Ok(None);
        }
        let is_clear =
            snapshot.complete().is_ok() && (stranger.is_some() || !snapshot.misses_holder_of(&sockets, None));
        let why = match stranger {
            Some(pid) => {
                let elsewhere = procfs::environment(pid, MARK)
                    .and_then(|socket| Some(Path::new(&socket).parent()?.to_owned()))
                    .filter(|dir| *dir != self.path);
                let ours = procfs::environment(pid, MARK)
                    .is_some_and(|socket| Path::new(&socket).parent() == Some(self.path.as_path()));
                let command = procfs::command_line(pid);
                match elsewhere {
                    Some(dir) => format!(
                        "the port is held by pid {pid} ({command}), a server of the run directory {}",
                        dir.display()
                    ),
                    None if ours => {
                        format!("the port is held by pid {pid} ({command}), what is left of a server that was killed")
                    }
                    None => format!("the port is held by pid {pid} ({command}), which serverswap did not start"),
                }
            }
            None => format!("the port is held by a program of the user {}", user_name(sockets[0].uid)),
        };
        Err((why, is_clear))
    }

    /// Pidfiles of addresses that cannot coexist with this one, with the pid in them.
    fn colliding(&self, address: &Address, notes: &mut Notes) -> std::result::Result<Vec<(Address, Pid)>, String> {
        let mut pids = Vec::new();
        let listed = self.colliding_with(address);
        for own in listed.map_err(|e| format!("unable to list the run directory: {}", reason(&e)))? {
            match self.read_pid(&pidfile(&own)) {
                Ok(pid) => pids.push((own, pid)),
                Err(Bad::Absent) => {}
                // It may be that of a living server.
                Err(Bad::Unreadable) => return Err(format!("unable to read the pidfile of {own}")),
                Err(Bad::Because(why)) => {
                    notes.push(format!("the pidfile of {own} {why} (it is removed)"));
                    self.unlink(&pidfile(&own));
                }
            }
        }
        Ok(pids)
    }

    fn read_pid(&self, name: &str) -> std::result::Result<Pid, Bad> {
        let mut text = String::new();
        let file = self.open_checked(name, 16)?;
        let garbage = Bad::Because("holds no pid");
        file.take(16).read_to_string(&mut text).map_err(|_| garbage)?;
        parse_pid(&text).ok_or(garbage)
    }

    /// Opens a file for reading, if it is a regular file of ours under one name and of sensible size.
    fn open_checked(&self, name: &str, size_max: u64) -> std::result::Result<File, Bad> {
        let (file, stat) = self.open_ours(name)?;
        match () {
            () if stat.st_nlink > 1 => Err(Bad::Because("has a second name (a hard link)")),
            () if stat.st_size as u64 > size_max => Err(Bad::Because("is too large")),
            () => Ok(file),
        }
    }

    /// Opens a file for reading, if it is a regular file of ours.
    fn open_ours(&self, name: &str) -> std::result::Result<(File, FileStat), Bad> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        let fd = match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Err(Bad::Absent),
            Err(Errno::ELOOP) => return Err(Bad::Because("is a symlink")),
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => return Err(Bad::Unreadable),
            Err(_) => return Err(Bad::Because(CANNOT_BE_READ)),
        };
        let stat = fstat(&fd).map_err(|_| Bad::Unreadable)?;
        match () {
            () if stat.st_mode & nix::libc::S_IFMT != nix::libc::S_IFREG => Err(Bad::Because("is no regular file")),
            () if stat.st_uid != geteuid().as_raw() => Err(Bad::Because("belongs to another user")),
            () => Ok((File::from(fd), stat)),
        }
    }

    fn write_pid(&self, address: &Address, pid: Pid) -> std::result::Result<(), String> {
        // Anybody may read it, and so lock it: its lock must mean nothing.
        self.write_by_rename(&pidfile(address), format!("{pid}\n").as_bytes(), 0o644, |_| Ok(())).map(drop)
    }

    /// Writes a new file and gives it its name, once `prepare` has had it. What had the name before is not
    /// touched, whatever it was.
    fn write_by_rename(
        &self,
        name: &str,
        content: &[u8],
        mode: u32,
        prepare: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> std::result::Result<File, String> {
        let temporary = self.temporary_name(Pid::own());
        self.unlink(&temporary);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let written = openat(&self.dir, temporary.as_str(), flags, Mode::from_bits_truncate(mode))
            .map(File::from)
            .map_err(std::io::Error::from)
            .and_then(|mut file| {
                file.write_all(content)?;
                prepare(&file)?;
                renameat(&self.dir, temporary.as_str(), &self.dir, name)?;
                Ok(file)
            });
        written.map_err(|e| {
            self.unlink(&temporary);
            reason(&e)
        })
    }

    /// What a supervisor of our pid namespace calls a file that is not whole yet. One of another may have the same pid.
    fn temporary_name(&self, writer: Pid) -> String {
        format!(".new.{writer}-{:x}", self.namespaces.pid.unwrap_or(0))
    }

    fn unlink(&self, name: &str) {
        let _ = unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir);
    }

    fn names_that_end(&self, end: &str) -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/self/fd/{}", self.dir.as_raw_fd()))? {
            let name = entry?.file_name();
            if name.as_encoded_bytes().ends_with(end.as_bytes()) {
                names.extend(name.into_string());
            }
        }
        Ok(names)
    }

    /// Removes what dead supervisors and dead servers left behind; `false` if somebody has the lock.
    pub fn tidy(&self) -> bool {
        match self.lock() {
            Ok(_guard) => drop(self.sweep()),
            Err(Denied::Busy) => return false,
            Err(Denied::Because(_)) => {}
        }
        true
    }

    /// As [`RunDir::tidy`], with the lock held; gives the servers that live.
    fn sweep(&self) -> Vec<Holder> {
        // What cannot be listed stays.
        let Ok(names) = self.names_that_end("") else { return self.servers().unwrap_or_default() };
        let mut servers = Vec::new();
        let mut foreign = Some(BTreeSet::new());
        for name in &names {
            let Some(pid) = name.strip_suffix(".server").and_then(parse_number) else { continue };
            match self.holder(pid, Claim::No) {
                Ok(holder) => servers.push(holder),
                Err(Missing::Gone) => self.unlink(name),
                Err(Missing::Unclear | Missing::Elsewhere | Missing::Unseen) => match self.sockets_of(pid) {
                    Ok(sockets) => foreign.iter_mut().for_each(|all| all.extend(sockets.clone())),
                    Err(_) => foreign = None,
                },
            }
        }
        // The sockets of servers stay of whom it cannot be told whether they live.
        for name in names.iter().filter(|name| foreign.as_ref().is_some_and(|foreign| self.is_left(name, foreign))) {
            self.unlink(name);
        }
        servers
    }

    /// Whether it is a socket or an unfinished file of a process that has ended, and none of `foreign` ones, by what their
    /// names begin with.
    fn is_left(&self, name: &str, foreign: &BTreeSet<String>) -> bool {
        let pid = |stem: &str| stem.split('-').next().and_then(parse_number);
        if let Some(stem) = name.strip_suffix(".sock").or(name.strip_suffix(".notify")) {
            pid(stem).is_some_and(|supervisor| procfs::has_ended(supervisor) && !foreign.contains(stem))
        } else {
            let writer = name.strip_prefix(".new.").and_then(pid);
            writer.is_some_and(|writer| name == self.temporary_name(writer) && procfs::has_ended(writer))
        }
    }

    /// What the names of a server's sockets begin with.
    fn sockets_of(&self, pid: Pid) -> std::io::Result<Option<String>> {
        let file = match self.open_ours(&record_name(pid)) {
            Ok((file, _)) => file,
            Err(Bad::Unreadable) => return Err(std::io::Error::other(CANNOT_BE_READ)),
            Err(Bad::Absent | Bad::Because(_)) => return Ok(None),
        };
        let mut bytes = Vec::new();
        file.take(RECORD_MAX).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(Record::parse(&text).and_then(|record| record.socket.strip_suffix(".sock").map(str::to_owned)))
    }

    /// As the same directory, whose lock is waited for so long.
    pub fn with_patience(self, patience: Duration) -> RunDir {
        let whole = self.whole.map(|whole| Box::new(whole.with_patience(patience)));
        RunDir { patience, whole, ..self }
    }

    /// Takes the lock for several steps, until [`RunDir::release`]; `false` if somebody has it. Where it cannot be had
    /// for another reason each step says why.
    pub fn hold(&self) -> bool {
        match self.lock() {
            Ok(lock) => *self.held() = Some(lock),
            Err(Denied::Busy) => return false,
            Err(Denied::Because(_)) => {}
        }
        true
    }

    /// As [`RunDir::hold`], with the lock that a thread has waited for.
    pub fn keep(&self, lock: File) {
        *self.held() = Some(Arc::new(lock));
    }

    /// Gives the lock back.
    pub fn release(&self) {
        *self.held() = None;
    }

    /// Waits for the lock, however long it takes.
    pub fn wait_for_lock(&self) -> std::io::Result<File> {
        let file = self.open_lock()?;
        file.lock()?;
        Ok(file)
    }

    fn held(&self) -> MutexGuard<'_, Option<Arc<File>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_lock(&self) -> nix::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        openat(&self.dir, "lock", flags, Mode::from_bits_truncate(0o600)).map(File::from)
    }

    fn lock(&self) -> std::result::Result<Arc<File>, Denied> {
        if let Some(held) = &*self.held() {
            return Ok(held.clone());
        }
        let because = |e: &dyn std::fmt::Display| Denied::Because(e.to_string());
        let file = self.open_lock().map_err(|e| because(&e.desc()))?;
        match file.try_lock() {
            Ok(()) => return Ok(Arc::new(file)),
            Err(TryLockError::WouldBlock) if self.patience.is_zero() => return Err(Denied::Busy),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => return Err(because(&e)),
        }
        let waiting = file.try_clone().map_err(|e| because(&e))?;
        let (sender, receiver) = mpsc::channel();
        // The thread outlives an impatient caller; its handle on the lock ends with it.
        let waiter = std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            let _ = sender.send(waiting.lock());
        });
        waiter.map_err(|e| because(&e))?;
        match receiver.recv_timeout(self.patience) {
            Ok(Ok(())) => Ok(Arc::new(file)),
            Ok(Err(e)) => Err(because(&e)),
            Err(_) => Err(Denied::Busy),
        }
    }
}

/// Why the lock of the directory was not had.
enum Denied {
    /// Somebody has it.
    Busy,
    /// It cannot be taken at all.
    Because(String),
}

impl From<Denied> for String {
    fn from(denied: Denied) -> String {
        let why = match denied {
            Denied::Busy => "somebody holds its lock and does not let go".into(),
            Denied::Because(why) => why,
        };
        format!("unable to lock the run directory: {why}")
    }
}

/// How a server stands to one that has sockets at these places.
fn relation(holder: &Holder, places: &[(Place, May)]) -> Relation {
    let Some((first, _)) = places.first() else { return Relation::InTheWay };
    // What cannot be asked may be in the way.
    let Ok(listeners) = net::listeners_at(first.address.port()) else { return Relation::InTheWay };
    let is_replaceable =
        |its: Place| places.iter().any(|(own, may)| its.conflicts(own) && its.uid == own.uid && *may == May::Replace);
    // Whichever of them are its: to see whose they are takes a look at every process.
    if listeners.all().all(|s| is_replaceable(s.place())) {
        return Relation::InTheWay;
    }
    let Ok(held) = holder.sockets(&Snapshot::take()) else { return Relation::InTheWay };
    let its: Vec<Place> = listeners.all().filter(|s| held.contains(&s.inode)).map(TcpSocket::place).collect();
    let mut in_the_way = places.iter().flat_map(|(own, may)| {
        its.iter().filter(|place| place.conflicts(own)).map(|place| (place.uid == own.uid, *may))
    });
    let is_foreign = |(is_own_user, may): &(bool, May)| !is_own_user || *may == May::Nothing;
    match in_the_way.next() {
        // It is about to listen, or has let go of the port.
        None if its.is_empty() => Relation::InTheWay,
        None => Relation::Beside,
        Some(first) if [first].into_iter().chain(in_the_way).all(|one| is_foreign(&one)) => Relation::Foreign,
        Some(_) => Relation::InTheWay,
    }
}

/// Why there is no holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// No such server lives.
    Gone,
    /// It lives in another namespace.
    Elsewhere,
    /// It was started where other pids are seen, and has lost its supervisor: it may live.
    Unseen,
    /// It may live: there is no fd or no memory to look, or its record is of another version.
    Unclear,
}

const CANNOT_BE_READ: &str = "cannot be read";

/// Why a file is not what it should be: a clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bad {
    Absent,
    /// No fd, no memory: it says nothing about the file.
    Unreadable,
    Because(&'static str),
}

fn pidfile(address: &Address) -> String {
    format!("{}.pid", address.stem())
}

fn record_name(pid: Pid) -> String {
    format!("{pid}.server")
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::unable(format!("use the run directory {}", path.display()), why, "nothing was done")
}

fn default_path() -> PathBuf {
    let uid = geteuid();
    if uid.is_root() {
        return "/run/serverswap".into();
    }
    let user = PathBuf::from(format!("/run/user/{uid}"));
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() => dir.join("serverswap"),
        _ if user.is_dir() => user.join("serverswap"),
        _ => format!("/tmp/serverswap-{uid}").into(),
    }
}

/// Whether an orphan has the address that its pidfile names: it or a descendant of it listens there, or
/// nowhere at all. One that listens nowhere was told to bind and has not done it yet, or is leaving. For
/// a name nothing can be asked.
fn has(pid: Pid, address: &Address) -> bool {
    if let Address::Name(_) = address {
        return true;
    }
    // What cannot be seen does not speak against the pidfile.
    let Ok(listeners) = net::listeners() else { return true };
    let snapshot = Snapshot::take();
    let mut held = BTreeSet::new();
    let is_its = |stat: &&Stat| snapshot.ancestry(stat.pid.raw()).any(|a| a.pid == pid || a.group == pid.raw());
    for stat in snapshot.all().filter(is_its) {
        match procfs::find_held(stat.pid) {
            Ok(Some(inodes)) => held.extend(inodes),
            Ok(None) if procfs::has_ended(stat.pid) => {}
            Ok(None) | Err(_) => return true,
        }
    }
    let own: Vec<&TcpSocket> = listeners.all().filter(|s| held.contains(&s.inode)).collect();
    snapshot.complete().is_err() || own.is_empty() || own.iter().any(|s| s.local.collides(address))
}

fn is_same(one: &File, other: &File) -> bool {
    let id = |file: &File| fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
    id(one).is_ok_and(|one| id(other) == Ok(one))
}

/// The name of a user, or the number where there is none.
pub fn user_name(uid: u32) -> String {
    match nix::unistd::User::from_uid(uid.into()) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn run_dir() -> (tempfile::TempDir, RunDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = RunDir::open(Some(&temp.path().join("run")), true).unwrap();
        (temp, dir)
    }

    fn start(pid: Pid) -> u64 {
        procfs::stat(pid).unwrap().start
    }

    fn address() -> Address {
        Address::parse("a-name").unwrap()
    }

    fn asker(me: Pid) -> Asker<'static> {
        Asker { me, mine: Mine { owns: &|_| Ok(false), holds: &|_| Ok(false) }, places: &[] }
    }

    fn claim(dir: &RunDir, pid: Pid) -> (Found, Notes) {
        let mut notes = Notes::new();
        let found = dir.look_up(&address(), &asker(pid), &mut notes);
        (found, notes)
    }

    #[test]
    fn who_locks_every_file_that_he_may_read_hinders_nobody() {
        let (_temp, dir) = run_dir();
        let path = dir.path().join(format!(".new.{}", Pid::own()));
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let is_over = || over.load(std::sync::atomic::Ordering::Relaxed);
                while !is_over() {
                    let public = |file: &File| file.metadata().is_ok_and(|m| m.permissions().mode() & 0o004 != 0);
                    if let Some(file) = File::open(&path).ok().filter(public)
                        && file.try_lock().is_ok()
                    {
                        // As long as it takes to be noticed.
                        while !is_over() && path.exists() {}
                    }
                }
            });
            let written: Vec<_> = (0..1000).map(|_| dir.write_pid(&address(), Pid::own())).collect();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(written.iter().all(|written| written.is_ok()), "{:?}", written.iter().find(|w| w.is_err()));
        });
    }

    #[test]
    fn a_vacant_address_is_claimed_and_only_its_owner_lets_go() {
        let (_temp, dir) = run_dir();
        let (me, other) = (Pid::own(), Pid::new(1).unwrap());
        assert!(matches!(claim(&dir, me).0, Found::Vacant(_)));
        assert_eq!(std::fs::read_to_string(dir.path().join("a-name.pid")).unwrap(), format!("{me}\n"));
        dir.unhold(&address(), other);
        assert_eq!(dir.addresses().unwrap(), [address()]);
        dir.unhold(&address(), me);
        assert_eq!(dir.addresses().unwrap(), []);
    }

    #[test]
    fn a_registered_server_is_found_and_a_dead_one_is_stale() {
        let (_temp, dir) = run_dir();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::of(&child);
        let record = Entry {
            pid,
            start: start(pid),
            generation: 7,
            socket: "1-1.sock",
            command: "sleep\n60",
            replaced: &[],
            datagrams: &[],
        };
        let registration = dir.register(&record).unwrap();
        assert!(matches!(claim(&dir, pid).0, Found::Vacant(_)));
        let Found::Taken(holders) = claim(&dir, Pid::own()).0 else { panic!() };
        assert_eq!((holders[0].pid, holders[0].generation), (pid, 7));
        assert!(holders[0].orphan.is_none() && holders[0].command == "sleep 60");
        drop(registration);
        let Found::Taken(holders) = claim(&dir, Pid::own()).0 else { panic!() };
        assert!(holders[0].orphan.is_some());
        drop(holders);
        child.kill().unwrap();
        child.wait().unwrap();
        let (found, notes) = claim(&dir, Pid::own());
        assert!(matches!(found, Found::Vacant(_)) && notes.len() == 1, "{notes:?}");
        assert!(!dir.path().join(format!("{pid}.server")).exists());
    }

    #[test]
    fn a_record_that_took_the_name_of_another_is_left_alone() {
        let (_temp, dir) = run_dir();
        let me = Pid::own();
        let entry = |socket| Entry {
            pid: me,
            start: start(me),
            generation: 1,
            socket,
            command: "x",
            replaced: &[],
            datagrams: &[],
        };
        let old = dir.register(&entry("old.sock")).unwrap();
        let new = dir.register(&entry("new.sock")).unwrap();
        dir.deregister(old, &[]);
        assert!(dir.path().join(record_name(me)).exists());
        dir.deregister(new, &[]);
        assert!(!dir.path().join(record_name(me)).exists());
    }

    #[test]
    fn an_address_is_not_taken_from_a_third_server() {
        let (_temp, dir) = run_dir();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (pid, me) = (Pid::of(&child), Pid::own());
        let third = dir
            .register(&Entry {
                pid,
                start: start(pid),
                generation: 1,
                socket: "1-1.sock",
                command: "sleep 60",
                replaced: &[],
                datagrams: &[],
            })
            .unwrap();
        assert!(matches!(claim(&dir, pid).0, Found::Vacant(_)));
        assert_eq!(dir.take(&address(), me, &[], &[]), Ok(false));
        assert_eq!(dir.take(&address(), me, &[pid], &[]), Ok(true));
        assert!(dir.take(&address(), pid, &[], &[]).unwrap());
        drop(third);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(dir.take(&address(), me, &[], &[]), Ok(true));
    }

    #[test]
    fn what_the_dead_leave_behind_is_cleaned_up() {
        let (_temp, dir) = run_dir();
        let (dead, me) = (Pid::new(4_194_304).unwrap(), Pid::own());
        let namespace = dir.namespaces.pid.unwrap_or(0);
        let names =
            |pid: Pid| [format!(".new.{pid}-{namespace:x}"), format!("{pid}-1.sock"), format!("{pid}-1.notify")];
        for name in names(dead).into_iter().chain(names(me)).chain([record_name(dead), "other".into()]) {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        dir.tidy();
        let mut left = dir.names_that_end("").unwrap();
        left.retain(|name| name != "lock");
        left.sort();
        let mut expected = names(me).to_vec();
        expected.push("other".into());
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn a_reused_pid_is_no_server() {
        let (_temp, dir) = run_dir();
        let other = std::process::id();
        let text = format!(
            "serverswap 1\npid {other}\nstart 1\nboot {}\nsupervisor 1\ngeneration 1\nsocket x.sock\n",
            procfs::boot_id()
        );
        std::fs::write(dir.path().join(format!("{other}.server")), text).unwrap();
        std::fs::write(dir.path().join("a-name.pid"), format!("{other}\n")).unwrap();
        let (found, notes) = claim(&dir, Pid::new(1).unwrap());
        assert!(matches!(found, Found::Vacant(_)) && notes.len() == 1);
    }

    #[test]
    fn a_record_of_a_later_version_is_left_alone_while_its_supervisor_lives() {
        let (_temp, dir) = run_dir();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::of(&child);
        let record = dir.path().join(record_name(pid));
        std::fs::write(&record, format!("serverswap 2\npid {pid}\n")).unwrap();
        let lock = File::open(&record).unwrap();
        lock.lock().unwrap();
        std::fs::write(dir.path().join("a-name.pid"), format!("{pid}\n")).unwrap();
        let Found::Unclear(why) = claim(&dir, Pid::own()).0 else { panic!() };
        assert_eq!(why, format!("unable to read the record of server {pid}"));
        dir.tidy();
        assert!(record.exists() && dir.path().join("a-name.pid").exists());
        drop(lock);
        assert!(matches!(claim(&dir, Pid::own()).0, Found::Vacant(_)));
        assert!(!record.exists());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn hostile_pidfiles_are_recognised_and_never_followed() {
        let (temp, dir) = run_dir();
        let pidfile = dir.path().join("a-name.pid");
        let victim = temp.path().join("victim");
        std::fs::write(&victim, "1\n").unwrap();
        let plant: [(&str, &dyn Fn()); 6] = [
            ("is a symlink", &|| std::os::unix::fs::symlink(&victim, &pidfile).unwrap()),
            ("hard link", &|| std::fs::hard_link(&victim, &pidfile).unwrap()),
            ("holds no pid", &|| std::fs::write(&pidfile, "-1\n").unwrap()),
            ("holds no pid", &|| std::fs::write(&pidfile, "\u{ff}").unwrap()),
            ("too large", &|| std::fs::write(&pidfile, [b'1'; 100_000]).unwrap()),
            ("no regular file", &|| nix::unistd::mkfifo(&pidfile, Mode::S_IRWXU).unwrap()),
        ];
        for (why, plant) in plant {
            plant();
            let (found, notes) = claim(&dir, Pid::own());
            assert!(matches!(found, Found::Vacant(_)), "{why}");
            assert!(notes.len() == 1 && notes[0].contains(why), "{why}: {notes:?}");
            assert_eq!(std::fs::read_to_string(&victim).unwrap(), "1\n");
            std::fs::remove_file(&pidfile).unwrap();
        }
        std::fs::create_dir(&pidfile).unwrap();
        assert!(matches!(claim(&dir, Pid::own()).0, Found::Blocked(_)));
    }

    #[test]
    fn a_run_directory_that_cannot_be_trusted_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let open = |path: &Path| RunDir::open(Some(path), true).err().map(|e| e.text).unwrap_or_default();
        let file = temp.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(open(&file).contains("no directory"));
        let wide = temp.path().join("wide");
        std::fs::create_dir(&wide).unwrap();
        std::fs::set_permissions(&wide, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(open(&wide).contains("others can write"));
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(temp.path(), &link).unwrap();
        assert!(open(&link).contains("no directory"));
        assert!(open(&temp.path().join("a/b")).contains("No such file"));
        assert!(open(&temp.path().join("x".repeat(100))).contains("too long"));
        if geteuid().is_root() {
            let foreign = temp.path().join("foreign");
            std::fs::create_dir(&foreign).unwrap();
            std::os::unix::fs::chown(&foreign, Some(65534), None).unwrap();
            assert!(open(&foreign).contains("another user"));
        }
    }
}
