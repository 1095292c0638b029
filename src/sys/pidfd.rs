//! A process by a handle that stays its own, whatever becomes of its pid.

use super::pid::Pid;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A process, whatever becomes of its pid (pidfd_open(2), Linux 5.3).
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Opens the process that has this pid now. Check afterwards that it is the process you mean.
    pub fn open(pid: Pid) -> io::Result<Pidfd> {
        // SAFETY: the call takes two integers and gives a new fd or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.raw(), 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this fd, close-on-exec, and nobody else has it.
        Ok(Pidfd(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// Signals the process; an error (ESRCH) if it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.send(signal as libc::c_int, 0)
    }

    /// Whether this process may not signal it.
    pub fn is_out_of_reach(&self) -> bool {
        // Signal 0 only asks.
        self.send(0, 0).is_err_and(|e| e.raw_os_error() == Some(libc::EPERM))
    }

    /// Signals the process group that this process leads or led, all at one moment, so that no fork escapes (Linux 6.9; an
    /// error before that).
    pub fn signal_group(&self, signal: Signal) -> io::Result<()> {
        // PIDFD_SIGNAL_PROCESS_GROUP of linux/pidfd.h, which libc does not have yet.
        const PROCESS_GROUP: u32 = 1 << 2;
        self.send(signal as libc::c_int, PROCESS_GROUP)
    }

    fn send(&self, signal: libc::c_int, flags: u32) -> io::Result<()> {
        let (fd, info) = (self.0.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: integers and a null pointer, which means "no siginfo of our own".
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, flags) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until the process has ended (a zombie counts as ended), or the other end of a socket is closed; `true` if it
    /// has ended.
    pub fn ends_before(&self, closed: BorrowedFd<'_>) -> bool {
        let mut polls = [self.0.as_fd(), closed].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        while poll(&mut polls, PollTimeout::NONE) == Err(Errno::EINTR) {}
        polls[1].revents().is_none_or(|events| events.is_empty())
    }

    /// A handle on a file that the process has open under this number (pidfd_getfd(2), Linux 5.6).
    pub fn fd(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: the call takes integers and gives a new close-on-exec fd or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this fd, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }

    /// The number of the handle, to send it to another process.
    pub(super) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// A second handle on the same process.
    pub fn try_clone(&self) -> io::Result<Pidfd> {
        self.0.try_clone().map(Pidfd)
    }
}
