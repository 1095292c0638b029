//! This program, started once more: a copy for a reload, with a line between it and its front, or a caretaker.

use super::limits::lower_files;
use super::pid::Pid;
use nix::libc;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The environment variable by which a copy finds its end of the line to its front (the number of the fd and its inode), and
/// the run directory.
pub const LINE: &str = "SERVERSWAP_FRONT";

/// The environment variable that names the server of a caretaker: the pid of its main process, and that of whoever has
/// started the caretaker.
pub const CARE: &str = "SERVERSWAP_CARETAKER";

/// Where Linux cannot mark all fds close-on-exec at once, those below this number are marked one by one.
const FILES_BEFORE_5_11: u32 = 65_536;

/// Environment variables that are meant for our caller alone: a caretaker does not inherit them.
const CALLERS: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    // It names standard error, which the copy has from this process, and a caretaker has not.
    "JOURNAL_STREAM",
];

/// Starts this program once more, as a child, with the same arguments, and leaves it its end of the line to us. It is
/// started in `dir`, and with the variables of `env` if that is given, but for those that concern this process alone.
pub fn spawn_copy(
    line: BorrowedFd<'_>,
    env: Option<&[(OsString, OsString)]>,
    dir: Option<&Path>,
    run_dir: &Path,
) -> io::Result<Pid> {
    let number = line.as_raw_fd();
    let inode = nix::sys::stat::fstat(line)?.st_ino;
    let mut command = program(&std::env::args_os().skip(1).collect::<Vec<_>>());
    if let Some(env) = env {
        let kept = CALLERS.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let foreign = |(name, _): &&(OsString, OsString)| !CALLERS.iter().any(|own| name == own);
        command.env_clear().envs(env.iter().filter(foreign).cloned()).envs(kept);
    }
    command.env_remove(CARE);
    if passed_sockets() > 0 {
        command.env("LISTEN_PID", std::process::id().to_string());
    }
    let mut value = OsString::from(format!("{number}:{inode}:"));
    value.push(run_dir);
    command.env(LINE, value);
    if let Some(dir) = dir {
        command.current_dir(dir).env("PWD", dir);
    }
    let setup = move || {
        lower_files();
        // SAFETY: fcntl is async-signal-safe and takes integers.
        match unsafe { libc::fcntl(number, libc::F_SETFD, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only makes async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(setup) };
    pid_of(command)
}

/// Starts this program as the caretaker of a server, in a session of its own: as the dead supervisor was started, but for
/// the run directory.
pub fn spawn_caretaker(server: Pid, args: &[OsString], dir: &Path, run_dir: &Path) -> io::Result<Pid> {
    let mut command = program(args);
    for name in CALLERS {
        command.env_remove(name);
    }
    command.env_remove(LINE).env(CARE, format!("{server}:{}", Pid::own())).env("SERVERSWAP_RUN_DIR", run_dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let dir = if dir.is_dir() { dir } else { Path::new("/") };
    command.current_dir(dir).env("PWD", dir);
    let setup = || {
        lower_files();
        // What its caller has open is none of its business.
        close_on_exec(3..=u32::MAX);
        nix::unistd::setsid().map(drop).map_err(io::Error::from)
    };
    // SAFETY: the closure only makes async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(setup) };
    pid_of(command)
}

/// Marks all fds of a range close-on-exec. Async-signal-safe.
pub(super) fn close_on_exec(range: RangeInclusive<u32>) {
    // SAFETY: integers only.
    if unsafe { libc::syscall(libc::SYS_close_range, *range.start(), *range.end(), libc::CLOSE_RANGE_CLOEXEC) } != 0 {
        // Before Linux 5.11, or where a profile refuses the call.
        for fd in *range.start()..(*range.end()).min(FILES_BEFORE_5_11) {
            // SAFETY: integers only; an fd that is not open is an error of no account.
            unsafe { libc::fcntl(fd.cast_signed(), libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// Closes what this process inherited besides its standard files and the sockets of a service manager. A lock, or the
/// other end of a pipe, must not be held by a server in the background. To be called before anything else is open.
pub fn close_inherited() {
    let first = 3 + passed_sockets();
    // SAFETY: integers only; nothing of ours is open yet, so that no owner of one of these fds exists.
    if unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } != 0 {
        for fd in first..FILES_BEFORE_5_11 {
            // SAFETY: as above.
            unsafe { libc::close(fd.cast_signed()) };
        }
    }
}

/// How many sockets a service manager has passed to this process, or to its front (sd_listen_fds(3)). Found out once: with
/// -d, by the process that was named.
pub fn passed_sockets() -> u32 {
    static PASSED: OnceLock<u32> = OnceLock::new();
    *PASSED.get_or_init(|| {
        let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
        let front = std::env::var_os(LINE).map(|_| nix::unistd::getppid().as_raw().unsigned_abs());
        let is_ours = number("LISTEN_PID").is_some_and(|pid| pid == std::process::id() || Some(pid) == front);
        number("LISTEN_FDS").filter(|count| is_ours && *count < FILES_BEFORE_5_11).unwrap_or(0)
    })
}

/// This program, under the name by which it was started.
fn program(args: &[OsString]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    if let Some(own) = std::env::args_os().next() {
        command.arg0(own);
    }
    command.args(args);
    command
}

fn pid_of(mut command: Command) -> io::Result<Pid> {
    let child = command.spawn()?;
    Pid::new(child.id().into()).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// The server that this process is to take care of, if it is a caretaker; an error if that is not clear: the variable was
/// handed down, or whoever has started the caretaker is gone.
pub fn server_to_care_for() -> Option<io::Result<Pid>> {
    let value = std::env::var(CARE).ok()?;
    let server = value.split_once(':').and_then(|(server, starter)| {
        let is_ours = starter.parse() == Ok(nix::unistd::getppid().as_raw());
        Pid::new(server.parse().ok()?).filter(|_| is_ours)
    });
    Some(server.ok_or_else(|| io::Error::other(format!("{CARE} is not meant for it"))))
}

/// The line that a front has left for this copy, if it is one, and the run directory of the front.
pub fn take_line() -> Option<(UnixStream, PathBuf)> {
    let value = std::env::var_os(LINE)?;
    let mut parts = value.as_bytes().splitn(3, |byte| *byte == b':');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
    let (number, inode) = (RawFd::try_from(number()?).ok()?, number()?);
    let run_dir = PathBuf::from(OsStr::from_bytes(parts.next()?));
    // SAFETY: both calls take a number, or write to a struct of ours. The fd was left open for us alone, as its inode
    // tells, and is taken once, at the start.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        let is_it = number > 2 && libc::fstat(number, &raw mut stat) == 0 && stat.st_ino == inode;
        let is_socket = stat.st_mode & libc::S_IFMT == libc::S_IFSOCK;
        if !is_it || !is_socket || libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) != 0 {
            return None;
        }
        Some((UnixStream::from_raw_fd(number), run_dir))
    }
}
