//! The guard: a tiny process that takes the filters off connections when their supervisor dies.

use super::listing::each_number;
use super::pid::Pid;
use super::pidfd::Pidfd;
use super::steer::{Socket, unpark_raw};
use nix::libc;
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

/// A process that holds the same connections. When this process dies it takes the filters of [`Socket::park`] off them
/// and ends. Dropping this value ends it, and its hold on the connections, and leaves the filters where they are.
#[derive(Debug)]
pub struct Guard {
    pid: Pid,
    process: Pidfd,
    #[expect(dead_code, reason = "its end is what counts")]
    line: UnixStream,
}

impl Guard {
    /// Starts a guard of these connections. Call it in the main thread, by whose name a serverswap is known: the guard is
    /// no part of a server.
    pub fn start<'a>(connections: impl IntoIterator<Item = &'a Socket>) -> io::Result<Guard> {
        let (line, theirs) = UnixStream::pair()?;
        let mut kept: Vec<RawFd> = connections.into_iter().map(|socket| socket.fd().as_fd().as_raw_fd()).collect();
        let line_at = theirs.as_raw_fd();
        kept.push(line_at);
        kept.sort_unstable();
        // SAFETY: the child makes async-signal-safe calls only, and never returns from `watch`.
        let pid = match unsafe { libc::fork() } {
            // SAFETY: this is the freshly forked child.
            0 => unsafe { watch(line_at, &kept) },
            pid => Pid::new(pid.into()).ok_or_else(io::Error::last_os_error)?,
        };
        match Pidfd::open(pid) {
            Ok(process) => Ok(Guard { pid, process, line }),
            Err(e) => {
                // Nobody else reaps it: it is our child, and this is the thread that reaps.
                end(pid);
                Err(e)
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have been killed by somebody else and reaped: then its number may be another's.
        if self.process.signal(Signal::SIGKILL).is_ok() {
            reap(self.pid);
        }
    }
}

fn end(pid: Pid) {
    // SAFETY: two integers; the child is not reaped yet.
    unsafe { libc::kill(pid.raw(), libc::SIGKILL) };
    reap(pid);
}

/// Waits for the end of a child that was killed.
fn reap(pid: Pid) {
    // SAFETY: the call takes integers; no status is asked for.
    while unsafe { libc::waitpid(pid.raw(), std::ptr::null_mut(), 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

/// The guard's life. `kept`: the numbers of the connections and of the line, in ascending order.
///
/// # Safety
/// Only in a freshly forked child.
unsafe fn watch(line: RawFd, kept: &[RawFd]) -> ! {
    // SAFETY: every call here is async-signal-safe and takes integers or pointers to locals.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        libc::setsid();
        // An inherited lock would make a dead supervisor look alive, an inherited pipe would keep its reader waiting.
        close_others(kept);
        let mut byte = 0u8;
        while libc::read(line, (&raw mut byte).cast(), 1) < 0 && *libc::__errno_location() == libc::EINTR {}
        kept.iter().filter(|&&fd| fd != line).for_each(|&fd| unpark_raw(fd));
        libc::_exit(0)
    }
}

/// Closes every fd that is not among these. Async-signal-safe.
fn close_others(kept: &[RawFd]) {
    let mut from = 0;
    for until in kept.iter().copied().chain([RawFd::MAX]) {
        if from < until {
            // SAFETY: integers only. Linux 5.9; a container profile may refuse it.
            if unsafe { libc::syscall(libc::SYS_close_range, from, until - 1, 0) } != 0 {
                return close_listed(kept);
            }
        }
        from = until.saturating_add(1);
    }
}

fn close_listed(kept: &[RawFd]) {
    // SAFETY: the calls take integers and a constant string.
    unsafe {
        let mut listing = libc::open(c"/proc/self/fd".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
        if listing < 0 {
            // Room for one more: the standard error is not the guard's.
            libc::close(2);
            listing = libc::open(c"/proc/self/fd".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
        }
        each_number(listing, |fd| {
            if fd != listing && kept.binary_search(&fd).is_err() {
                libc::close(fd);
            }
        });
        libc::close(listing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;

    #[test]
    fn a_guard_that_is_ended_holds_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let handle = Socket::new(OwnedFd::from(server));
        let guard = Guard::start([&handle]).unwrap();
        let pid = guard.pid;
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        drop(handle);
        drop(guard);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(std::io::Read::read(&mut client, &mut [0]).unwrap(), 0, "somebody holds it open");
    }
}
