//! The guard: a tiny process that takes the filters off connections when their supervisor dies.

use super::aside::step_aside;
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
                // SAFETY: two integers; the child is not reaped yet.
                unsafe { libc::kill(pid.raw(), libc::SIGKILL) };
                reap(pid);
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
        step_aside(kept);
        let mut byte = 0u8;
        while libc::read(line, (&raw mut byte).cast(), 1) < 0 && *libc::__errno_location() == libc::EINTR {}
        kept.iter().filter(|&&fd| fd != line).for_each(|&fd| unpark_raw(fd));
        libc::_exit(0)
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
