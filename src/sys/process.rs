//! This process and others: what they are, and what is inherited. The start of a server, its end and its keeper have
//! files of their own, which are re-exported here.

pub use super::child::{End, has_children, kill_group, pipe, reap, spawn_check};
pub use super::copy::{
    CARE, LINE, close_inherited, passed_sockets, server_to_care_for, spawn_caretaker, spawn_copy, take_line,
};
pub use super::keeper::Keeper;
pub use super::limits::{open_files_max, raise_files, save_memory, shed_memory};
pub use super::pid::Pid;
pub use super::pidfd::Pidfd;
pub use super::spawn::{free_fd_number, spawn};
pub use super::status::{Status, read};

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Whether the signal is ignored, as it is if its parent ignored it (nohup(1) ignores SIGHUP).
pub fn is_ignored(signal: Signal) -> bool {
    // SAFETY: all-zero is a valid sigaction to be written over.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no new action is set; the old one is written to a valid place.
    let result = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &raw mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Whether executing this file would give privileges that a watched process cannot get: by the setuid or setgid bit, or by
/// file capabilities.
pub fn raises_privileges(path: &std::path::Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let bits = std::fs::metadata(path).is_ok_and(|m| m.mode() & 0o6000 != 0);
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return bits };
    // SAFETY: two valid C strings; a length of 0 only asks for the size.
    let size = unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    bits || size > 0
}

/// Sets right what may have been inherited: no signal is blocked, and SIGCHLD is not ignored (children of a process that
/// ignores it are reaped behind its back, wait(2)).
pub fn clean_signals() {
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// One of the two processes after [`fork_session`].
pub enum Forked {
    /// The one that called.
    Parent,
    /// The new one, in a session of its own.
    Child,
}

/// Forks this process, which must not have a second thread yet; the child starts a session.
pub fn fork_session() -> io::Result<Forked> {
    // SAFETY: the caller has one thread only, so the child may go on like any process.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { .. } => Ok(Forked::Parent),
        nix::unistd::ForkResult::Child => {
            nix::unistd::setsid()?;
            Ok(Forked::Child)
        }
    }
}

/// Points a standard fd elsewhere.
pub fn redirect(to: BorrowedFd<'_>, standard: RawFd) -> io::Result<()> {
    // SAFETY: dup2 takes two integers; 0, 1 and 2 are owned by nobody.
    if unsafe { libc::dup2(to.as_raw_fd(), standard) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has an fd mean another file from here on, for all who use it (dup3(2)).
pub fn replace(with: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: integers only; the fd stays open throughout, and its owner the same.
    match unsafe { libc::dup3(with.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) } {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
