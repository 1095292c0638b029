//! Processes: spawning a server, pidfds, and the keeper that ends a new server with its supervisor.

use crate::sys::below;
pub use crate::sys::pid::Pid;
use crate::sys::seccomp::{self, Filter, Ledger, Notifier};
use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{self, IoSlice, Read, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many open files this process may have (RLIMIT_NOFILE, getrlimit(2)).
pub fn open_files_max() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes one rlimit to the pointer, which is valid.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result == 0 { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { 0 }
}

/// What proc_pid_status(5) says of a process, or of a thread. Bytes: its name may be no UTF-8.
pub struct Status(Vec<u8>);

impl Status {
    /// `None` if it is gone, or may not be looked at.
    pub fn read(id: impl std::fmt::Display) -> Option<Status> {
        std::fs::read(format!("/proc/{id}/status")).ok().map(Status)
    }

    /// One of the numbers in the line that begins with this key, counted from 0.
    pub fn number(&self, key: &str, at: usize) -> Option<u32> {
        let line = self.0.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key.as_bytes()))?;
        std::str::from_utf8(line).ok()?.split_whitespace().nth(at)?.parse().ok()
    }
}

/// A process, whatever becomes of its pid (pidfd_open(2), Linux 5.3).
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Opens the process that has this pid now. Check afterwards that it is the one you mean.
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
        let (fd, signal) = (self.0.as_raw_fd(), signal as libc::c_int);
        // SAFETY: integers and a null pointer, which means "no siginfo of our own".
        let result =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<libc::siginfo_t>(), 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether this process may not signal it.
    pub fn is_out_of_reach(&self) -> bool {
        let (fd, info) = (self.0.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: integers and a null pointer; signal 0 only asks.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, 0, info, 0) };
        result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
    }

    /// Signals the process group that this process leads or led, at one moment: nobody forks out of it (Linux
    /// 6.9; an error before that).
    pub fn signal_group(&self, signal: Signal) -> io::Result<()> {
        // PIDFD_SIGNAL_PROCESS_GROUP of linux/pidfd.h, which libc does not have yet.
        const PROCESS_GROUP: u32 = 1 << 2;
        let (fd, signal) = (self.0.as_raw_fd(), signal as libc::c_int);
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: integers and a null pointer, which means "no siginfo of our own".
        let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, PROCESS_GROUP) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until the process has ended (a zombie counts as ended).
    pub fn wait(&self) {
        self.wait_with(-1);
    }

    /// Waits until the process has ended, or the other end of a socket is closed; `true` if it has ended.
    pub fn ends_before(&self, closed: BorrowedFd<'_>) -> bool {
        self.wait_with(closed.as_raw_fd())
    }

    fn wait_with(&self, other: RawFd) -> bool {
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut polls = [poll(self.0.as_raw_fd()), poll(other)];
        loop {
            // SAFETY: two valid pollfds, and the count says two; one with a negative number is left alone.
            let ready = unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) };
            if ready > 0 || (ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted) {
                return polls[1].revents == 0;
            }
        }
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

    /// A second handle on the same process.
    pub fn try_clone(&self) -> io::Result<Pidfd> {
        self.0.try_clone().map(Pidfd)
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited with this status.
    Exited(u8),
    /// A signal ended it: its number, which nix knows no name of where it is a real-time signal.
    Signaled(u8),
}

impl End {
    /// As a shell has it: that of the child, or 128 and the number of the signal.
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

/// Reaps one child that has ended; `None` if there is none. (That of nix has reaped a child that a real-time signal
/// ended, and then says that there is no such signal.)
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

/// Whether the signal was ignored when this process started or later (nohup(1) does so with HUP).
pub fn is_ignored(signal: Signal) -> bool {
    // SAFETY: all-zero is a valid sigaction to be written over.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no new action is set; the old one is written to a valid place.
    let result = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &raw mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Whether executing this file would give privileges that a process without them must give up for good
/// once it is watched: the setuid or setgid bit, or file capabilities.
pub fn raises_privileges(path: &std::path::Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let bits = std::fs::metadata(path).is_ok_and(|m| m.mode() & 0o6000 != 0);
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return bits };
    // SAFETY: two valid C strings; a length of 0 only asks for the size.
    let size = unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    bits || size > 0
}

/// Sets right what may have been inherited: no signal blocked, SIGCHLD not ignored (an ignored one
/// reaps children behind our back, wait(2)).
pub fn clean_signals() {
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// The limit of open files that servers are started with; `u64::MAX`: ours.
static FILES: AtomicU64 = AtomicU64::new(u64::MAX);

/// Raises the limit of open files as far as it goes, for this process and not for its servers: in a swap a
/// supervisor holds the listeners of two of them, each of which may be near the limit.
pub fn raise_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a pointer to a struct of ours.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            let most = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const most) == 0
        }
    };
    if raised {
        FILES.store(limit.rlim_cur, Ordering::Relaxed);
    }
}

/// The child's side of [`raise_files`].
fn lower_files() {
    let files = FILES.load(Ordering::Relaxed);
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: async-signal-safe calls with a pointer to a struct of ours.
    unsafe {
        if files != u64::MAX && libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = files.min(limit.rlim_max);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Keeps the memory of a process with many small threads small: one malloc arena for all (glibc).
/// Call it before the first thread starts.
pub fn save_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what was only needed to get here: free heap, and the pages of code and constants,
/// most of which were needed once. What runs again comes back from the page cache.
pub fn shed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only returns free memory.
    unsafe {
        libc::malloc_trim(0);
    }
    drop_pages(&never_written());
}

/// Where code and constants of this program and its libraries lie: every loaded segment that may not be written.
fn never_written() -> Vec<Range<usize>> {
    unsafe extern "C" fn note(object: *mut libc::dl_phdr_info, _: usize, ranges: *mut libc::c_void) -> libc::c_int {
        // SAFETY: dl_iterate_phdr(3) gives an object with as many headers as it says, and what was given to it.
        let (object, headers, ranges) = unsafe {
            let headers = std::slice::from_raw_parts((*object).dlpi_phdr, (*object).dlpi_phnum.into());
            (&*object, headers, &mut *ranges.cast::<Vec<Range<usize>>>())
        };
        // SAFETY: a plain call.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
            let from = (object.dlpi_addr + header.p_vaddr) as usize;
            ranges.push(from & !(page - 1)..from + header.p_memsz as usize);
        }
        0
    }
    let mut ranges: Vec<Range<usize>> = Vec::new();
    // SAFETY: the function is called before this one returns, with the pointer that it expects.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut ranges).cast()) };
    ranges
}

/// Async-signal-safe.
fn drop_pages(never_written: &[Range<usize>]) {
    for range in never_written {
        // SAFETY: the range is a mapping of a file that may only be read: a dropped page reads the same when it
        // is faulted in again.
        unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) };
    }
}

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
/// `keep_hup_ignored`: nohup(1) asked for it. `watch`: the filter that shows its `bind` and `listen`,
/// and where to send our end of it.
///
/// `meanwhile` runs while the server is being started. The server does not run before `prepare` has seen
/// its pid and what came of that; if it gives `None`, or this process dies meanwhile, it never does.
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
    // Out of the way of `number`, which may be that of any fd that is closed on exec.
    let far = |stream: UnixStream| -> io::Result<UnixStream> {
        let fd = nix::fcntl::fcntl(&stream, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(10))?;
        // SAFETY: the fd was just made, and nobody else has it.
        Ok(unsafe { UnixStream::from_raw_fd(fd) })
    };
    let (gate, theirs) = (far(gate)?, far(theirs)?);
    let (supervisors, own) = (gate.as_raw_fd(), theirs.as_raw_fd());
    let watch = watch.map(|(filter, report)| (filter, report.as_raw_fd()));
    let control = control.as_raw_fd();
    let setup = move || {
        for signal in Signal::iterator() {
            if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) || (signal == Signal::SIGHUP && keep_hup_ignored) {
                continue;
            }
            // SAFETY: signal(2) is async-signal-safe; the default action runs no code of ours.
            unsafe { libc::signal(signal as libc::c_int, libc::SIG_DFL) };
        }
        lower_files();
        if let Some(number) = number {
            // SAFETY: dup2 and fcntl are async-signal-safe and take integers. The copy is meant to be
            // inherited: it is the server's end of the control channel.
            let result = unsafe {
                if control == number { libc::fcntl(number, libc::F_SETFD, 0) } else { libc::dup2(control, number) }
            };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if let Some((filter, report)) = &watch {
            filter.install(*report);
        }
        wait_at_gate(supervisors, own)
    };
    // SAFETY: the closure only makes async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(setup) };
    std::thread::scope(|scope| {
        // Command::spawn() returns when the server runs, so that somebody else has to let it run.
        let builder = std::thread::Builder::new().name("spawn".into()).stack_size(256 * 1024);
        let spawner = builder.spawn_scoped(scope, || {
            let spawned = command.spawn();
            // Whoever still waits for the child to say something waits for a dead one.
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

/// The child's side of the gate: says who it is and waits for one byte.
fn wait_at_gate(supervisors: RawFd, own: RawFd) -> io::Result<()> {
    // SAFETY: async-signal-safe calls on fds that the child inherited and on a local.
    unsafe {
        // Else it would hold its own gate open when the supervisor has died.
        libc::close(supervisors);
        let pid = libc::getpid().to_ne_bytes();
        let mut byte = 0u8;
        if libc::write(own, pid.as_ptr().cast(), pid.len()) != 4 {
            // Nobody would answer what was not said.
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

/// Whether this process has children, living or not yet reaped.
pub fn has_children() -> io::Result<bool> {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
        Err(nix::errno::Errno::ECHILD) => Ok(false),
        // The end of a process by a real-time signal is more than nix can tell.
        Ok(_) | Err(nix::errno::Errno::EINVAL) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// The keeper: a tiny process that outlives this supervisor. Until it is told that the server serves,
/// it kills the server when the supervisor dies. Afterwards it answers the calls of a watched server in
/// the supervisor's stead.
pub struct Keeper(UnixStream);

impl Keeper {
    /// Starts a keeper that has nobody to keep yet. The page is that of the server's calls.
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

    /// Gives it a server, and the process group that is the server's alone. From here the death of this process is
    /// that of the server.
    pub fn keep(
        &self,
        (pid, server): (Pid, &Pidfd),
        group: Option<Pid>,
        notifier: Option<&Notifier>,
    ) -> io::Result<()> {
        let (pid, group) = (pid.raw().to_ne_bytes(), group.map_or(0, Pid::raw).to_ne_bytes());
        let fds: Vec<RawFd> = [server.0.as_raw_fd()].into_iter().chain(notifier.map(Notifier::raw)).collect();
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

    /// The switch is done: from here the server lives on without its supervisor.
    pub fn server_serves(&self) {
        let _ = (&self.0).write(b"x");
    }
}

/// The keeper's life. It holds nothing but its socket and what comes over that: an inherited lock would
/// make a dead supervisor look alive, an inherited pipe would keep its reader waiting.
///
/// # Safety
/// Only in a freshly forked child.
unsafe fn keep(socket: RawFd, ledger: &Ledger, never_written: &[Range<usize>]) -> ! {
    // SAFETY: every call here is async-signal-safe and takes integers or pointers to locals.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        libc::setsid();
        libc::dup2(socket, 0);
        close_from(1);
        // The pid and the group, and with them the fds of the server and of the notifier.
        let mut numbers = [0i32; 2];
        let mut control = [0u64; 8];
        let mut part = libc::iovec { iov_base: (&raw mut numbers).cast(), iov_len: size_of_val(&numbers) };
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control) as _);
        let header = match libc::recvmsg(0, &raw mut message, 0) {
            8 => libc::CMSG_FIRSTHDR(&raw const message),
            // The supervisor has died before its server ran.
            _ => libc::_exit(0),
        };
        if header.is_null() {
            libc::_exit(0);
        }
        let fds: *const RawFd = libc::CMSG_DATA(header).cast();
        let server = fds.read_unaligned();
        let [pid, group] = numbers;
        let watched = (*header).cmsg_len as usize >= libc::CMSG_LEN(2 * size_of::<RawFd>() as u32) as usize;
        let notifier = if watched { fds.add(1).read_unaligned() } else { -1 };
        let mut serves = false;
        // What is left to run fits into few pages. But not while the server starts: that needs the processor.
        let mut patience = 1000;
        let died = loop {
            let mut polls = [
                libc::pollfd { fd: 0, events: libc::POLLIN, revents: 0 },
                // Only that nobody under the filter is left; calls are the supervisor's to take.
                libc::pollfd { fd: notifier, events: 0, revents: 0 },
            ];
            if libc::poll(polls.as_mut_ptr(), 2, patience) == 0 {
                drop_pages(never_written);
                patience = -1;
            }
            let mut byte = 0u8;
            if polls[0].revents != 0 {
                match libc::read(0, (&raw mut byte).cast(), 1) {
                    0 => break true,
                    1.. => serves = true,
                    _ => {}
                }
            } else if polls[1].revents != 0 {
                break false;
            }
            if serves && notifier < 0 {
                break false;
            }
        };
        if died && !serves {
            // While it is stopped its pid stays its own.
            if libc::syscall(libc::SYS_pidfd_send_signal, server, libc::SIGSTOP, 0, 0) == 0 {
                below::kill(pid);
                if group > 1 {
                    libc::kill(-group, libc::SIGKILL);
                }
            }
            libc::syscall(libc::SYS_pidfd_send_signal, server, libc::SIGKILL, 0, 0);
        }
        if died && watched {
            seccomp::answer_all(notifier, ledger, !serves);
        }
        libc::_exit(0)
    }
}

/// Closes every fd from a number on. Async-signal-safe.
fn close_from(first: RawFd) {
    // SAFETY: the calls take integers, a constant string and a buffer of ours as long as they are told.
    unsafe {
        // Linux 5.9; a container profile may refuse it.
        if libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) == 0 {
            return;
        }
        let listing = libc::open(c"/proc/self/fd".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
        if listing < 0 {
            // No /proc: one after the other, of which there may be a million.
            for fd in first..libc::sysconf(libc::_SC_OPEN_MAX) as RawFd {
                libc::close(fd);
            }
            return;
        }
        // The list goes on after the last number that it gave: what is closed meanwhile is not missed.
        let mut entries = [0u64; 128];
        loop {
            let len = libc::syscall(libc::SYS_getdents64, listing, entries.as_mut_ptr(), size_of_val(&entries));
            if len <= 0 {
                break;
            }
            let bytes = std::slice::from_raw_parts(entries.as_ptr().cast::<u8>(), len as usize);
            for fd in listed(bytes) {
                if fd >= first && fd != listing {
                    libc::close(fd);
                }
            }
        }
        libc::close(listing);
    }
}

/// The numbers among the names of what getdents64(2) gave: 8 bytes inode, 8 offset, 2 length of the entry, 1 type, and
/// the name with its NUL.
fn listed(mut entries: &[u8]) -> impl Iterator<Item = RawFd> {
    std::iter::from_fn(move || {
        while let &[_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, low, high, ..] = entries {
            let len = usize::from(u16::from_ne_bytes([low, high]));
            let (entry, rest) = entries.split_at_checked(len.max(19))?;
            entries = rest;
            let digits = || entry[19..].iter().take_while(|&&byte| byte != 0);
            if digits().all(u8::is_ascii_digit) {
                return Some(
                    digits()
                        .fold(0, |number: RawFd, byte| number.wrapping_mul(10).wrapping_add(RawFd::from(byte - b'0'))),
                );
            }
        }
        None
    })
}

/// One of the two processes after [`fork`].
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_listing_are_read() {
        let entry = |name: &str| {
            let len = (19 + name.len() + 1).next_multiple_of(8);
            let mut entry = vec![0; 16];
            entry.extend((len as u16).to_ne_bytes());
            entry.push(libc::DT_LNK);
            entry.extend(name.bytes());
            entry.resize(len, 0);
            entry
        };
        let entries: Vec<u8> = [".", "..", "0", "7", "1048575"].into_iter().flat_map(entry).collect();
        assert_eq!(listed(&entries).collect::<Vec<RawFd>>(), [0, 7, 1_048_575]);
        for torn in 0..entries.len() {
            assert!(listed(&entries[..torn]).count() <= 3);
        }
    }

    #[test]
    fn the_end_by_a_signal_is_said_by_its_name() {
        assert_eq!(End::Exited(3).to_string(), "exited with status 3");
        assert_eq!(End::Signaled(15).to_string(), "was ended by SIGTERM");
        assert_eq!(End::Signaled(libc::SIGRTMIN() as u8).to_string(), "was ended by SIGRTMIN");
        assert_eq!(End::Signaled(libc::SIGRTMAX() as u8).to_string(), "was ended by SIGRTMIN+30");
        assert_eq!(End::Signaled(libc::SIGRTMAX() as u8).status(), 128 + 64);
    }
}
