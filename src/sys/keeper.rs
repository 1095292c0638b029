//! The keeper: a tiny process that ends a new server with its supervisor, and later answers for a dead supervisor.

use super::aside::step_aside;
use super::below;
use super::limits::{drop_pages, never_written};
use super::pid::Pid;
use super::pidfd::Pidfd;
use super::seccomp::{self, Ledger, Notifier};
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{self, IoSlice, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

/// The supervisor's end of its keeper: a process that outlives the supervisor. Until it is told that the server serves,
/// it kills the server when the supervisor dies. Afterwards it answers the calls of a watched server in the dead
/// supervisor's place.
pub struct Keeper(UnixStream);

impl Keeper {
    /// Starts a keeper that has no server yet. The calls of the server will be noted in the ledger.
    pub fn start(ledger: &Ledger) -> io::Result<Keeper> {
        let (ours, theirs) = UnixStream::pair()?;
        let never_written = never_written();
        // SAFETY: the child makes async-signal-safe calls only, and never returns from `keep`.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: this is the freshly forked child.
            0 => unsafe { keep(theirs.as_raw_fd(), ledger, &never_written) },
            _ => Ok(Keeper(ours)),
        }
    }

    /// Gives it a server, and the process group that is the server's alone. From here on the server dies with this
    /// process.
    pub fn keep(
        &self,
        (pid, server): (Pid, &Pidfd),
        group: Option<Pid>,
        notifier: Option<&Notifier>,
    ) -> io::Result<()> {
        let (pid, group) = (pid.raw().to_ne_bytes(), group.map_or(0, Pid::raw).to_ne_bytes());
        let fds: Vec<RawFd> = [server.raw()].into_iter().chain(notifier.map(Notifier::raw)).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(&pid), IoSlice::new(&group)],
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// Tells it that from here on the server lives on without its supervisor.
    pub fn server_serves(&self) {
        let _ = (&self.0).write(b"x");
    }
}

/// The server that a keeper was given.
struct Kept {
    pid: i32,
    /// The process group that is the server's alone, or 0.
    group: i32,
    /// A pidfd of its main process.
    server: RawFd,
    /// Where its calls wait, if they are seen.
    notifier: Option<RawFd>,
}

/// How a keeper's wait ended.
enum Outcome {
    /// Nobody under the filter is left, or there is nothing more to do.
    Needless,
    /// The supervisor died before its server served.
    DiedEarly,
    /// The supervisor died later.
    Died,
}

/// The keeper's life. It holds nothing but its socket and what comes over that socket: an inherited lock would make a
/// dead supervisor look alive, an inherited pipe would keep its reader waiting.
///
/// # Safety
/// Only in a freshly forked child.
unsafe fn keep(socket: RawFd, ledger: &Ledger, never_written: &[Range<usize>]) -> ! {
    // SAFETY: every call here is async-signal-safe and takes integers or pointers to locals.
    unsafe {
        libc::dup2(socket, 0);
        step_aside(&[0]);
        // Without a server, the supervisor died before its server ran.
        let Some(kept) = receive() else { libc::_exit(0) };
        let outcome = wait(kept.notifier, never_written);
        let died_early = matches!(outcome, Outcome::DiedEarly);
        if died_early {
            end(&kept);
        }
        if let (Some(notifier), Outcome::DiedEarly | Outcome::Died) = (kept.notifier, outcome) {
            seccomp::answer_all(notifier, ledger, died_early);
        }
        libc::_exit(0)
    }
}

/// Waits for a server to keep: its pid and its group, and with them the fds of the server and of the notifier.
/// Async-signal-safe.
fn receive() -> Option<Kept> {
    let mut numbers = [0i32; 2];
    let mut control = [0u64; 8];
    // SAFETY: the message points to locals that are as long as it says, and the kernel fills them with whole headers.
    unsafe {
        let mut part = libc::iovec { iov_base: (&raw mut numbers).cast(), iov_len: size_of_val(&numbers) };
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control) as _);
        if libc::recvmsg(0, &raw mut message, 0) != 8 {
            return None;
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() {
            return None;
        }
        let fds: *const RawFd = libc::CMSG_DATA(header).cast();
        let watched = (*header).cmsg_len as usize >= libc::CMSG_LEN(2 * size_of::<RawFd>() as u32) as usize;
        let notifier = if watched { Some(fds.add(1).read_unaligned()) } else { None };
        let [pid, group] = numbers;
        Some(Kept { pid, group, server: fds.read_unaligned(), notifier })
    }
}

/// Waits until the supervisor dies or nothing is left to do. Async-signal-safe.
fn wait(notifier: Option<RawFd>, never_written: &[Range<usize>]) -> Outcome {
    let mut serves = false;
    // What is left to run fits into few pages. The others are dropped a second later: a start needs the processor.
    let mut patience = 1000;
    loop {
        let mut polls = [
            libc::pollfd { fd: 0, events: libc::POLLIN, revents: 0 },
            // Only to see that nobody under the filter is left. The calls are the supervisor's to take.
            libc::pollfd { fd: notifier.unwrap_or(-1), events: 0, revents: 0 },
        ];
        // SAFETY: two valid pollfds, and the count says two. A negative number is skipped.
        if unsafe { libc::poll(polls.as_mut_ptr(), 2, patience) } == 0 {
            drop_pages(never_written);
            patience = -1;
        }
        let mut byte = 0u8;
        if polls[0].revents != 0 {
            // SAFETY: a buffer of one byte.
            match unsafe { libc::read(0, (&raw mut byte).cast(), 1) } {
                0 => return if serves { Outcome::Died } else { Outcome::DiedEarly },
                1.. => serves = true,
                _ => {}
            }
        } else if polls[1].revents != 0 {
            return Outcome::Needless;
        }
        if serves && notifier.is_none() {
            return Outcome::Needless;
        }
    }
}

/// Kills the server, all that descends from it, and its group. Async-signal-safe.
fn end(kept: &Kept) {
    // SAFETY: integers only.
    unsafe {
        // While it is stopped its pid stays its own.
        if libc::syscall(libc::SYS_pidfd_send_signal, kept.server, libc::SIGSTOP, 0, 0) == 0 {
            below::kill(kept.pid);
            if kept.group > 1 {
                libc::kill(-kept.group, libc::SIGKILL);
            }
        }
        libc::syscall(libc::SYS_pidfd_send_signal, kept.server, libc::SIGKILL, 0, 0);
    }
}
