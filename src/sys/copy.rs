//! A copy of this program, started for a reload, and the line between it and its front.

use super::limits::lower_files;
use super::pid::Pid;
use nix::libc;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The environment variable by which a copy finds its end of the line to its front: the number of the fd and its inode.
pub const LINE: &str = "SERVERSWAP_FRONT";

/// Starts this program once more, as a child, with the same arguments, and leaves it its end of the line to us.
pub fn spawn_copy(line: BorrowedFd<'_>) -> io::Result<Pid> {
    let number = line.as_raw_fd();
    let inode = nix::sys::stat::fstat(line)?.st_ino;
    let mut args = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(own) = args.next() {
        command.arg0(own);
    }
    command.args(args).env(LINE, format!("{number}:{inode}"));
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
    let child = command.spawn()?;
    Pid::new(child.id().into()).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// The line that a front has left for this copy, if it is one.
pub fn take_line() -> Option<UnixStream> {
    let value = std::env::var(LINE).ok()?;
    let (number, inode) = value.split_once(':')?;
    let (number, inode): (RawFd, u64) = (number.parse().ok()?, inode.parse().ok()?);
    // SAFETY: both calls take a number, or write to a struct of ours. The fd was left open for us alone, as its inode
    // tells, and is taken once, at the start.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        let is_it = number > 2 && libc::fstat(number, &raw mut stat) == 0 && stat.st_ino == inode;
        let is_socket = stat.st_mode & libc::S_IFMT == libc::S_IFSOCK;
        if !is_it || !is_socket || libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) != 0 {
            return None;
        }
        Some(UnixStream::from_raw_fd(number))
    }
}
