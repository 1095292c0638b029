//! Spawning a server that does not run before its supervisor is ready for it.

use super::copy::passed_sockets;
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

/// What the child says at the gate; any other number is an errno.
const AT_GATE: i32 = 0;

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
    // The sockets of a service manager are the server's: it takes them only if it is named (sd_listen_fds(3)).
    let passes_sockets = passed_sockets() > 0;
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
    // Command::spawn() returns only when the server runs: another thread would have to let it run.
    // SAFETY: the child goes on from here and ends in `give_up`, unless it becomes its command. It may allocate: glibc,
    // and musl since 1.2.2, hold the locks of their allocators in fork(2), and no other thread holds what exec needs.
    let pid = match unsafe { libc::fork() } {
        0 => {
            if passes_sockets {
                command.env("LISTEN_PID", std::process::id().to_string());
            }
            give_up(own, &command.exec())
        }
        pid => Pid::new(pid.into()).ok_or_else(io::Error::last_os_error)?,
    };
    drop(theirs);
    let made = meanwhile();
    let started = let_through(&gate, || prepare(pid, made));
    if started.is_err() {
        let _ = gate.shutdown(std::net::Shutdown::Both);
        // It may be stopped.
        // SAFETY: the call takes integers, and the child is ours alone.
        unsafe { libc::kill(pid.raw(), libc::SIGKILL) };
        // SAFETY: the call takes integers; no status is asked for.
        while unsafe { libc::waitpid(pid.raw(), std::ptr::null_mut(), 0) } < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
    started
}

/// The supervisor's side of the gate: the child waits there until `prepare` has made what it is to have.
fn let_through<T>(mut gate: &UnixStream, prepare: impl FnOnce() -> Option<T>) -> io::Result<T> {
    let canceled = || io::Error::from_raw_os_error(libc::ECANCELED);
    let made = hear_child(gate)?.and_then(|()| prepare()).ok_or_else(canceled)?;
    gate.write_all(&[1])?;
    // The end of the child at its exec.
    if hear_child(gate)?.is_some() { Err(canceled()) } else { Ok(made) }
}

/// What the child says: that it is at the gate, or why it cannot be executed. `None` if it runs its command, or is dead.
fn hear_child(mut gate: &UnixStream) -> io::Result<Option<()>> {
    let mut said = [0; 4];
    match gate.read_exact(&mut said).map(|()| i32::from_ne_bytes(said)) {
        Ok(AT_GATE) => Ok(Some(())),
        Ok(errno) => Err(io::Error::from_raw_os_error(errno)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// The child cannot become its command.
fn give_up(gate: RawFd, error: &io::Error) -> ! {
    say(gate, error.raw_os_error().unwrap_or(libc::EINVAL));
    // SAFETY: it ends the child, and runs nothing of ours.
    unsafe { libc::_exit(127) }
}

/// Moves a stream out of the way of the number that the child gets: any fd that is closed on exec may have it.
fn far(stream: UnixStream) -> io::Result<UnixStream> {
    let fd = nix::fcntl::fcntl(&stream, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(10))?;
    // SAFETY: the fd was just made, and nobody else has it.
    Ok(unsafe { UnixStream::from_raw_fd(fd) })
}

/// Gives every signal its default action. Async-signal-safe.
pub(super) fn restore_signals(keep_hup_ignored: bool) {
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

/// The child's side of the gate: it says that it is there and waits for one byte.
fn wait_at_gate(supervisors: RawFd, own: RawFd) -> io::Result<()> {
    // SAFETY: async-signal-safe calls on fds that the child inherited and on a local.
    unsafe {
        // Otherwise the child would hold its own gate open, and not notice that the supervisor has died.
        libc::close(supervisors);
        let mut byte = 0u8;
        if !say(own, AT_GATE) {
            // The supervisor does not answer before it has heard the pid: there is nothing to wait for.
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

/// The child says a number to its supervisor. Async-signal-safe.
fn say(gate: RawFd, number: i32) -> bool {
    let bytes = number.to_ne_bytes();
    // SAFETY: the bytes are valid for their length.
    unsafe { libc::write(gate, bytes.as_ptr().cast(), bytes.len()) == 4 }
}
