//! What `/proc` tells about processes (proc(5)): who they are, who their parents are, which sockets
//! they hold. Reads only; a process that goes away meanwhile is simply not there.

#![forbid(unsafe_code)]

use crate::sys::net::TcpSocket;
use crate::sys::process::{Pid, Status};
use nix::libc;
use std::cell::{Cell, LazyCell, OnceCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

/// One line of `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The process.
    pub pid: Pid,
    /// Its parent; 0 for the first of a namespace.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// When it started, in clock ticks since boot: with the pid it names one process of this boot.
    pub start: u64,
    /// It has ended and waits to be reaped; or only its first thread has.
    pub zombie: bool,
    /// How many threads it has.
    pub threads: usize,
}

/// The stat of a process.
pub fn stat(pid: Pid) -> Option<Stat> {
    find(pid).ok()?
}

/// As [`stat`], but a process that is gone is told from one that cannot be looked at, for want of fds, say.
pub fn find(pid: Pid) -> io::Result<Option<Stat>> {
    // One read, which has the whole line: a snapshot does this for every process of the machine.
    let mut buffer = [0; 2048];
    let read = fs::File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut buffer));
    match read {
        Ok(len) => Ok(parse_stat(&String::from_utf8_lossy(&buffer[..len]))),
        // ESRCH: it went after it was opened. Who is only hidden (proc(5), hidepid=2) can be signalled, or may not be.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
            match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.raw()), None) {
                Err(nix::errno::Errno::ESRCH) => Ok(None),
                Ok(()) | Err(_) => Err(io::Error::from_raw_os_error(libc::EPERM)),
            }
        }
        Err(e) => Err(e),
    }
}

/// Whether a process has ended for certain.
pub fn has_ended(pid: Pid) -> bool {
    find(pid).is_ok_and(|stat| stat.is_none_or(|s| s.zombie))
}

/// Whether a process is there and nothing of it can be seen (proc(5), hidepid).
pub fn is_hidden(pid: Pid) -> bool {
    find(pid).is_err_and(|e| matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)))
}

fn parse_stat(text: &str) -> Option<Stat> {
    let pid = Pid::new(text.split(' ').next()?.parse().ok()?)?;
    // The name in parentheses may hold anything, parentheses and spaces too.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    Some(Stat {
        pid,
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        threads: fields.get(17)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

/// Which boot of the machine this is: start times count from it.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Seconds that a process has run, and `None` where that cannot be told.
pub fn age(stat: &Stat) -> Option<u64> {
    let uptime: f64 = fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()?? as f64;
    Some((uptime - stat.start as f64 / ticks).max(0.0) as u64)
}

/// The command line of a process for people, its words joined by spaces.
pub fn command_line(pid: Pid) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> =
        bytes.split(|&b| b == 0).filter(|w| !w.is_empty()).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    if words.is_empty() {
        return fs::read_to_string(format!("/proc/{pid}/comm")).map(|c| c.trim().to_owned()).unwrap_or_default();
    }
    words.join(" ")
}

/// A variable in the environment that a process was started with.
pub fn environment(pid: Pid, name: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    bytes.split(|&b| b == 0).find_map(|entry| {
        let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        String::from_utf8(value.to_vec()).ok()
    })
}

/// Whether this user runs a process: its real uid, since whoever starts a set-user-ID program chooses its
/// environment.
pub fn is_of_this_user(pid: Pid) -> bool {
    uid(pid, 0) == Some(nix::unistd::geteuid().as_raw())
}

/// The user as which a process acts: its effective uid.
pub fn user(pid: Pid) -> Option<u32> {
    uid(pid, 1)
}

fn uid(pid: Pid, at: usize) -> Option<u32> {
    Status::read(pid)?.number("Uid:", at)
}

/// Whether `/proc` is there, and shows the processes of our pid namespace.
pub fn is_ours() -> bool {
    fs::read_link("/proc/self").is_ok_and(|own| own.to_str() == Some(&Pid::own().to_string()))
}

/// Inodes of the sockets that a process holds; `None` if it may not be asked.
pub fn sockets(pid: Pid) -> Option<BTreeSet<u32>> {
    find_held(pid).ok()?
}

/// The sockets that a process holds, by fd number and inode; `None` if it may not be asked.
pub fn socket_fds(pid: Pid) -> Option<Vec<(i32, u32)>> {
    find_sockets(pid).ok()?
}

/// As [`socket_fds`], but one that may not be asked, or is gone, is told from one that cannot be looked at, for want of
/// fds, say.
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
            // To list them takes less than to look at them.
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

/// Inodes of the sockets that a process holds, as far as it may be asked; an error where it cannot be looked at, for want
/// of fds, say.
pub fn find_inodes(pid: Pid) -> io::Result<BTreeSet<u32>> {
    Ok(find_held(pid)?.unwrap_or_default())
}

/// As [`find_inodes`], but `None` if it may not be asked, or is gone.
pub fn find_held(pid: Pid) -> io::Result<Option<BTreeSet<u32>>> {
    Ok(find_sockets(pid)?.map(|fds| fds.into_iter().map(|(_, inode)| inode).collect()))
}

/// Whether a process is in the network namespace of this one; `false` where that cannot be seen.
pub fn shares_network(pid: Pid) -> bool {
    let own = file_id("/proc/self/ns/net");
    own.is_some() && own == file_id(&format!("/proc/{pid}/ns/net"))
}

/// Where a socket is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// In this process.
    pub pid: Pid,
    /// Under this number.
    number: i32,
}

/// Who was found to hold some sockets.
#[derive(Debug, Default)]
pub struct Holders {
    /// Where each is open, in one of the processes that have it.
    pub held: BTreeMap<u32, Held>,
    /// A process that may have one could not be looked at.
    pub may_be_more: bool,
}

impl Held {
    /// Under this number in this process, as far as somebody has seen.
    pub fn at(pid: Pid, number: i32) -> Held {
        Held { pid, number }
    }

    /// Whether it still is: one look, unlike [`holders`].
    pub fn is_still(&self, inode: u32) -> bool {
        let target = fs::read_link(format!("/proc/{}/fd/{}", self.pid, self.number));
        target.is_ok_and(|target| target.as_os_str() == format!("socket:[{inode}]").as_str())
    }
}

/// How many seccomp filters are on a process (proc_pid_status(5), Linux 5.9); `None` where that cannot be seen.
pub fn filters(pid: Pid) -> Option<u32> {
    Status::read(pid)?.number("Seccomp_filters:", 0)
}

/// Whether a process is ending: it shows none of its files any more, and not all of them are closed (PF_EXITING of
/// proc_pid_stat(5)).
pub fn is_ending(pid: Pid) -> bool {
    const PF_EXITING: u32 = 0x4;
    let text = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let fields = text.rsplit(')').next().unwrap_or("");
    let flags = fields.split_whitespace().nth(6).and_then(|flags| flags.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & PF_EXITING != 0) && stat(pid).is_some_and(|stat| !stat.zombie || stat.threads > 1)
}

/// Where these sockets are open but in serverswaps: one place for each is enough. Those that are older than the server
/// which opened them, `since` then, have none. An error where not all processes could be listed.
pub fn holders(inodes: &BTreeSet<u32>, since: u64) -> io::Result<Holders> {
    let snapshot = Snapshot::take();
    snapshot.complete()?;
    let (is_serverswap, is_this_program, euid) = (serverswaps(), copies(), nix::unistd::geteuid());
    let mut found = Holders::default();
    let mut processes: Vec<&Stat> = snapshot.all().filter(|stat| stat.pid != Pid::own()).collect();
    // As a rule it is the server itself, or one of its workers, and there is no need to ask all others.
    processes.sort_by_key(|stat| (stat.start < since, stat.start));
    for stat in processes {
        if found.held.len() == inodes.len() {
            break;
        }
        // To list the files of a supervisor would be in vain, and there may be very many.
        if is_this_program(stat.pid) {
            continue;
        }
        let Some(sockets) = socket_fds(stat.pid) else {
            found.may_be_more |=
                stat.start >= since && (euid.is_root() || is_of_this_user(stat.pid)) && !has_ended(stat.pid);
            continue;
        };
        let held = sockets.into_iter().filter(|(_, inode)| inodes.contains(inode));
        let held: Vec<(i32, u32)> = held.collect();
        if !held.is_empty() && !is_serverswap(stat.pid) {
            found.held.extend(held.into_iter().map(|(number, inode)| (inode, Held { pid: stat.pid, number })));
        }
    }
    Ok(found)
}

/// All processes at one moment.
pub struct Snapshot {
    alive: BTreeMap<i32, Stat>,
    /// Those whose first thread has ended before others, which may still hold files that nobody can see.
    ending: Vec<Stat>,
    /// Why processes may be missing: an errno.
    failed: Option<i32>,
    /// The living children of each process, and of those that are not there.
    children: OnceCell<BTreeMap<i32, Vec<i32>>>,
}

impl Snapshot {
    /// Looks at all of `/proc` once.
    pub fn take() -> Snapshot {
        let failed = Cell::new(None);
        let note = |e: io::Error| {
            // Processes of others may be hidden (proc(5), hidepid=1): these are none of ours.
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

    /// An error if processes may be missing, for want of memory or files: then nothing follows from who is not there.
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

    /// These processes and their descendants, and those of processes that are not there.
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

    /// Whether one of the sockets is of this user and held by none of these processes. Its holder has been
    /// forked since, or is ending thread by thread and no longer shows what it holds: look again.
    /// `group`: that of the server whose sockets they were.
    pub fn misses_holder_of(&self, sockets: &[TcpSocket], group: Option<Pid>) -> bool {
        let euid = nix::unistd::geteuid();
        let own = sockets.iter().filter(|s| euid.is_root() || s.uid == euid.as_raw());
        let mut left: BTreeSet<u32> = own.map(|s| s.inode).collect();
        // A process that is ending is no holder: it has lost its memory, and so the mark of its server, before its
        // files. While there is one, what a supervisor holds a copy of is not that supervisor's alone.
        let is_ending = |stat: &Stat| fs::read_link(format!("/proc/{}/exe", stat.pid)).is_err();
        let is_near = |stat: &&Stat| group.is_none_or(|group| stat.group == group.raw());
        let is_serverswap = serverswaps();
        let somebody_ends = LazyCell::new(|| {
            let mut alive = self.alive.values().filter(is_near);
            // Without a group it could be any process, and those of the kernel look like that.
            self.ending.iter().any(|stat| is_near(&stat)) || group.is_some() && alive.any(is_ending)
        });
        let own = Pid::own();
        // The youngest first: as a rule a new server has them, and nobody looks at the files of all the others.
        let mut others = self.alive.values().rev().filter(|stat| stat.pid != own);
        while let (false, Some(stat)) = (left.is_empty(), others.next()) {
            let held = self::sockets(stat.pid).unwrap_or_default();
            if !(left.is_disjoint(&held) || is_ending(stat) || is_serverswap(stat.pid) && *somebody_ends) {
                left.retain(|inode| !held.contains(inode));
            }
        }
        !left.is_empty()
    }
}

/// The name of the main thread of every serverswap (prctl(2), PR_SET_NAME).
pub const OWN_NAME: &std::ffi::CStr = c"serverswap";

/// The environment variable that differs in every server.
pub const MARK: &str = "SERVERSWAP_SOCKET";

/// Tells whether a process runs this program, or another copy of it.
pub fn serverswaps() -> impl Fn(Pid) -> bool {
    let is_this_program = copies();
    move |pid| {
        let is_named_so = || match fs::read(format!("/proc/{pid}/comm")) {
            Ok(name) => name.strip_suffix(b"\n") == Some(OWN_NAME.to_bytes()),
            // What cannot be looked at, for want of fds say, may be one: nobody signals it.
            Err(e) => !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
        };
        is_this_program(pid) || is_named_so()
    }
}

/// Tells whether a process runs this very file.
fn copies() -> impl Fn(Pid) -> bool {
    let own = file_id("/proc/self/exe");
    move |pid| own.is_some() && file_id(&format!("/proc/{pid}/exe")) == own
}

fn file_id(path: &str) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By another process: what a thread of ours forks meanwhile would have the copy open for writing (ETXTBSY).
    fn copy_of_sleep(to: &std::path::Path) {
        assert!(std::process::Command::new("cp").arg("/bin/sleep").arg(to).status().unwrap().success());
    }

    #[test]
    fn a_name_may_hold_parentheses_and_spaces() {
        let rest = "S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 1 2";
        let stat = parse_stat(&format!("12 (a) R (b c)) {rest}")).unwrap();
        assert_eq!((stat.pid.raw(), stat.parent, stat.group, stat.start), (12, 1, 7, 4242));
        for torn in ["", "12", "12 (a", "12 (a) S", "x (a) S 1", "0 (a) S 1 7 7"] {
            assert_eq!(parse_stat(torn), None);
        }
    }

    /// The copy of a supervisor must not hide that the last thread of a server still holds the socket.
    #[test]
    fn a_server_that_ends_thread_by_thread_is_missed_although_a_supervisor_has_its_socket() {
        use std::os::unix::process::CommandExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("serverswap");
        copy_of_sleep(&program);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let local = crate::address::Address::from(listener.local_addr().unwrap());
        let copy = || std::os::fd::OwnedFd::from(listener.try_clone().unwrap());
        let mut supervisor = std::process::Command::new(&program).arg("60").stdin(copy()).spawn().unwrap();
        // exit(2) as a system call ends the calling thread only.
        let text = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); \
                    ctypes.CDLL(None).syscall(60 if __import__('platform').machine() == 'x86_64' else 93, 0)";
        let mut server = std::process::Command::new("python3");
        let mut server = server.args(["-c", text]).process_group(0).stdin(copy()).spawn().unwrap();
        drop(listener);
        let (pid, mut seen) = (Pid::of(&server), false);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !seen && std::time::Instant::now() < deadline {
            seen = stat(pid).is_some_and(|stat| stat.zombie && stat.threads > 1);
            std::thread::yield_now();
        }
        let sockets = crate::sys::net::listeners().unwrap().at_any([&local]);
        let ending = Snapshot::take().misses_holder_of(&sockets, Some(pid));
        server.kill().unwrap();
        server.wait().unwrap();
        let ended = Snapshot::take().misses_holder_of(&sockets, Some(pid));
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
        assert_eq!((seen, sockets.len(), ending, ended), (true, 1, true, false));
    }

    #[test]
    fn a_process_whose_name_is_not_utf8_is_seen() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(std::ffi::OsStr::from_bytes(b"a\xffb"));
        copy_of_sleep(&program);
        let mut child = std::process::Command::new(&program).arg("60").spawn().unwrap();
        let pid = Pid::of(&child);
        let seen = (stat(pid).is_some(), Snapshot::take().all().any(|s| s.pid == pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, (true, true));
    }

    #[test]
    fn this_process_is_found_with_its_ancestors() {
        let snapshot = Snapshot::take();
        let own = snapshot.ancestry(Pid::own().raw()).next().unwrap();
        assert_eq!(own.pid, Pid::own());
        assert!(age(own).unwrap() < 3600);
        assert!(command_line(Pid::own()).contains("serverswap"));
    }
}
