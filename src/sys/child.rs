//! The children of this process: how they end.

use super::copy::close_on_exec;
use super::limits::lower_files;
use super::pid::Pid;
use super::spawn::restore_signals;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited with this status.
    Exited(u8),
    /// A signal with this number ended it. nix has no names for real-time signals.
    Signaled(u8),
}

impl End {
    /// The status as a shell gives it: the status of the child, or 128 plus the number of the signal.
    pub fn status(self) -> u8 {
        match self {
            End::Exited(status) => status,
            End::Signaled(signal) => 128 + signal,
        }
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = match *self {
            End::Exited(status) => return write!(f, "exited with status {status}"),
            End::Signaled(number) => i32::from(number),
        };
        let first = libc::SIGRTMIN();
        match Signal::try_from(number) {
            Ok(signal) => write!(f, "was ended by {signal}"),
            Err(_) if number == first => f.write_str("was ended by SIGRTMIN"),
            Err(_) if number > first => write!(f, "was ended by SIGRTMIN+{}", number - first),
            Err(_) => write!(f, "was ended by signal {number}"),
        }
    }
}

/// Reaps one child that has ended; `None` if there is none. (The `waitpid` of nix loses a child that a real-time signal
/// ended: it has reaped it, and then says that there is no such signal.)
pub fn reap() -> Option<(Pid, End)> {
    loop {
        let mut status = 0;
        // SAFETY: the call writes one int to the pointer, which is valid.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match Pid::new(pid.into()) {
            Some(pid) if libc::WIFSIGNALED(status) => return Some((pid, End::Signaled(libc::WTERMSIG(status) as u8))),
            Some(pid) => return Some((pid, End::Exited(libc::WEXITSTATUS(status) as u8))),
            None if pid < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            None => return None,
        }
    }
}

/// Starts a command that leads a process group of its own, inherits its standard files alone and ends with this process
/// (PR_SET_PDEATHSIG, prctl(2)). It is reaped like every child, by [`reap`].
pub fn spawn_check(command: &mut Command) -> io::Result<Pid> {
    command.process_group(0);
    // SAFETY: all of these calls are async-signal-safe: prctl(2), and those that a server is started with.
    unsafe {
        command.pre_exec(|| {
            restore_signals(false);
            lower_files();
            close_on_exec(3..=u32::MAX);
            match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
    let child = command.spawn()?;
    Pid::new(child.id().into()).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// SIGKILL to all of a process group that a child of ours leads, or has led.
pub fn kill_group(leader: Pid) {
    // SAFETY: the call takes integers.
    unsafe { libc::kill(-leader.raw(), libc::SIGKILL) };
}

/// A pipe whose end for us does not block: that end, and the other one.
pub fn pipe() -> io::Result<(File, OwnedFd)> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours.into(), theirs))
}

/// Whether this process has children, living or not yet reaped.
pub fn has_children() -> io::Result<bool> {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
        Err(nix::errno::Errno::ECHILD) => Ok(false),
        // nix cannot tell that a real-time signal ended a child.
        Ok(_) | Err(nix::errno::Errno::EINVAL) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_by_a_signal_is_said_by_its_name() {
        assert_eq!(End::Exited(3).to_string(), "exited with status 3");
        assert_eq!(End::Signaled(15).to_string(), "was ended by SIGTERM");
        assert_eq!(End::Signaled(libc::SIGRTMIN() as u8).to_string(), "was ended by SIGRTMIN");
        assert_eq!(End::Signaled(libc::SIGRTMAX() as u8).to_string(), "was ended by SIGRTMIN+30");
        assert_eq!(End::Signaled(libc::SIGRTMAX() as u8).status(), 128 + 64);
    }
}
