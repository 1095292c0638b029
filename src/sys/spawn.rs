//! Spawning a server that does not run before its supervisor is ready for it.

use super::limits::lower_files;
use super::pid::Pid;
use super::seccomp::Filter;
use nix::libc;
use nix::sys::signal::Signal;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The lowest fd number from 3 to 9 that a child would not inherit: POSIX shells cannot name more.
pub fn free_fd_number() -> Option<RawFd> {
    (3..=9).find(|&number| {
        // SAFETY: F_GETFD only reads a flag, of whatever has this number.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        flags < 0 || flags & libc::FD_CLOEXEC != 0
    })
}

/// Spawns a server: clean signals, its end of the control channel at `number`.
///
/// `keep_hup_ignored`: nohup(1) asked for it. `watch`: the filter that shows its `bind` and `listen`, and where to send
/// our end of it.
///
/// `meanwhile` runs while the server is being started. The server does not run before `prepare` has seen its pid and the
/// result of `meanwhile`. If `prepare` returns `None`, or this process dies meanwhile, it never runs.
pub fn spawn<T, M>(
    command: &mut Command,
    control: BorrowedFd<'_>,
    number: Option<RawFd>,
    keep_hup_ignored: bool,
    watch: Option<(Filter, BorrowedFd<'_>)>,
    meanwhile: impl FnOnce() -> M,
    prepare: impl FnOnce(Pid, M) -> Option<T>,
) -> io::Result<T> {
    let (gate, theirs) = UnixStream::pair()?;
    let (gate, theirs) = (far(gate)?, far(theirs)?);
    let (supervisors, own) = (gate.as_raw_fd(), theirs.as_raw_fd());
    let watch = watch.map(|(filter, report)| (filter, report.as_raw_fd()));
    let control = control.as_raw_fd();
    let setup = move || {
        restore_signals(keep_hup_ignored);
        lower_files();
        if let Some(number) = number {
            hand_down(control, number)?;
        }
        if let Some((filter, report)) = &watch {
            filter.install(*report);
        }
        wait_at_gate(supervisors, own)
    };
    // SAFETY: the closure only makes async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(setup) };
    std::thread::scope(|scope| {
        // Command::spawn() returns only when the server runs, so another thread has to let it run.
        let builder = std::thread::Builder::new().name("spawn".into()).stack_size(256 * 1024);
        let spawner = builder.spawn_scoped(scope, || {
            let spawned = command.spawn();
            // If the other thread still waits for a word of the child, the child is dead.
            let _ = theirs.shutdown(std::net::Shutdown::Both);
            spawned
        })?;
        let made = meanwhile();
        let mut pid = [0; 4];
        let pid = (&gate).read_exact(&mut pid).ok().and_then(|()| Pid::new(i32::from_ne_bytes(pid).into()));
        let prepared = pid.and_then(|pid| prepare(pid, made));
        // Without the byte the child would wait for ever: it gives up when the gate is shut.
        if prepared.is_none() || (&gate).write_all(&[1]).is_err() {
            let _ = gate.shutdown(std::net::Shutdown::Both);
        }
        spawner.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
        prepared.ok_or_else(|| io::ErrorKind::Interrupted.into())
    })
}

/// Moves a stream out of the way of the number that the child gets: any fd that is closed on exec may have it.
fn far(stream: UnixStream) -> io::Result<UnixStream> {
    let fd = nix::fcntl::fcntl(&stream, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(10))?;
    // SAFETY: the fd was just made, and nobody else has it.
    Ok(unsafe { UnixStream::from_raw_fd(fd) })
}

/// Gives every signal its default action. Async-signal-safe.
fn restore_signals(keep_hup_ignored: bool) {
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) || (signal == Signal::SIGHUP && keep_hup_ignored) {
            continue;
        }
        // SAFETY: signal(2) is async-signal-safe; the default action runs no code of ours.
        unsafe { libc::signal(signal as libc::c_int, libc::SIG_DFL) };
    }
}

/// Lets the child inherit the server's end of the control channel. Async-signal-safe.
fn hand_down(control: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: dup2 and fcntl are async-signal-safe and take integers. The copy is meant to be inherited.
    let result =
        unsafe { if control == number { libc::fcntl(number, libc::F_SETFD, 0) } else { libc::dup2(control, number) } };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The child's side of the gate: it says its pid and waits for one byte.
fn wait_at_gate(supervisors: RawFd, own: RawFd) -> io::Result<()> {
    // SAFETY: async-signal-safe calls on fds that the child inherited and on a local.
    unsafe {
        // Otherwise it would hold its own gate open when the supervisor has died.
        libc::close(supervisors);
        let pid = libc::getpid().to_ne_bytes();
        let mut byte = 0u8;
        if libc::write(own, pid.as_ptr().cast(), pid.len()) != 4 {
            // What was not said is not answered.
            return Err(io::Error::last_os_error());
        }
        let read = loop {
            let read = libc::read(own, (&raw mut byte).cast(), 1);
            if read >= 0 || *libc::__errno_location() != libc::EINTR {
                break read;
            }
        };
        if read == 1 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ECANCELED)) }
    }
}
