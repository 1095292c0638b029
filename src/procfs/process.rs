//! One process.

use super::program::file_id;
use crate::record::logical;
use crate::sys::process::{self, Pid, Status};
use nix::libc;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

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
    /// It has ended and waits to be reaped, or only its first thread has ended.
    pub zombie: bool,
    /// How many threads it has.
    pub threads: usize,
    /// It no longer shows its files, and not all of them may be closed (PF_EXITING).
    pub exiting: bool,
}

/// The stat of a process.
pub fn stat(pid: Pid) -> Option<Stat> {
    find(pid).ok()?
}

/// Like [`stat`], but an error if the process cannot be looked at, for want of fds for example: it may live.
pub fn find(pid: Pid) -> io::Result<Option<Stat>> {
    // One read gets the whole line. A snapshot does this for every process of the machine.
    let mut buffer = [0; 2048];
    let read = fs::File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut buffer));
    match read {
        Ok(len) => Ok(parse_stat(&String::from_utf8_lossy(&buffer[..len]))),
        // ESRCH: it ended after it was opened. A process that is only hidden (proc(5), hidepid=2) can be signalled, or
        // may not be signalled, but it is there.
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

pub(super) fn parse_stat(text: &str) -> Option<Stat> {
    const PF_EXITING: u32 = 0x4;
    let pid = Pid::new(text.split(' ').next()?.parse().ok()?)?;
    // The name in parentheses may hold anything, parentheses and spaces too.
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    Some(Stat {
        pid,
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        exiting: fields.get(6)?.parse::<u32>().ok()? & PF_EXITING != 0,
        threads: fields.get(17)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

/// Which boot of the machine this is: start times count from it.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Seconds that a process has run; `None` if that cannot be told.
pub fn age(stat: &Stat) -> Option<u64> {
    // In hundredths (proc_uptime(5)).
    let uptime = fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.replace('.', "").parse::<u64>().ok()?;
    let ticks = u64::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(uptime.saturating_sub(stat.start * 100 / ticks) / 100)
}

/// The command line of a process for people, its words joined by spaces.
pub fn command_line(pid: Pid) -> String {
    let bytes = process::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> =
        bytes.split(|&b| b == 0).filter(|w| !w.is_empty()).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    if words.is_empty() {
        return fs::read_to_string(format!("/proc/{pid}/comm")).map(|c| c.trim().to_owned()).unwrap_or_default();
    }
    words.join(" ")
}

/// A variable in the environment that a process was started with.
pub fn environment(pid: Pid, name: &str) -> Option<String> {
    let bytes = process::read(format!("/proc/{pid}/environ")).ok()?;
    bytes.split(|&b| b == 0).find_map(|entry| {
        let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        String::from_utf8(value.to_vec()).ok()
    })
}

/// With what a process was started.
#[derive(Debug, Clone)]
pub struct Start {
    /// Its environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory now, by its logical path.
    pub dir: PathBuf,
}

/// With what a process was started, if we may look.
pub fn start_of(pid: Pid) -> io::Result<Start> {
    let dir = std::fs::read_link(format!("/proc/{pid}/cwd"))?;
    let bytes = process::read(format!("/proc/{pid}/environ"))?;
    let variable = |entry: &[u8]| {
        let at = entry.iter().position(|&b| b == b'=').filter(|at| *at > 0)?;
        Some((OsString::from_vec(entry[..at].to_vec()), OsString::from_vec(entry[at + 1..].to_vec())))
    };
    let env: Vec<(OsString, OsString)> = bytes.split(|&b| b == 0).filter_map(variable).collect();
    let pwd = env.iter().find(|(name, _)| name == "PWD").map(|(_, value)| value.clone());
    Ok(Start { dir: logical(dir, pwd), env })
}

/// Whether this user runs a process. The real uid counts, since the environment of a set-user-ID program comes from the
/// user who starts it.
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

/// Whether a process is in our network namespace; `false` if that cannot be seen.
pub fn shares_network(pid: Pid) -> bool {
    let own = file_id("/proc/self/ns/net");
    own.is_some() && own == file_id(&format!("/proc/{pid}/ns/net"))
}

/// How many seccomp filters are on a process (proc_pid_status(5), Linux 5.9); `None` if that cannot be seen.
pub fn filters(pid: Pid) -> Option<u32> {
    Status::read(pid)?.number("Seccomp_filters:", 0)
}

/// Whether a process is ending: it no longer shows its files, and not all of them are closed.
pub fn is_ending(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| stat.exiting && (!stat.zombie || stat.threads > 1))
}
