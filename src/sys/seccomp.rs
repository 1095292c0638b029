//! Seeing a server's `bind` and `listen` (seccomp user notification, seccomp(2), seccomp_unotify(2)):
//! the filter that the child puts on itself, and the supervisor's end of it.
//!
//! Linux 5.9 or later (POLLHUP tells that nobody is left under the filter); best from 5.19, where a
//! waiting call is no longer interrupted by signals.

use crate::sys::process::{Pid, Pidfd};
use nix::libc;
use std::cell::UnsafeCell;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// AUDIT_ARCH_* of linux/audit.h, which libc lacks; `None` where this is not supported.
const ARCH: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xC000_003E)
} else if cfg!(target_arch = "aarch64") {
    Some(0xC000_00B7)
} else {
    None
};

/// The filter, built before the fork: nothing after it may allocate.
pub struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// `listen`, those `bind` calls that can be of an IP socket or a long unix one, and a program that the
    /// server puts on its port are told to the supervisor; everything else, netlink and most unix sockets
    /// among it, runs at full speed. `None` on an architecture without support.
    pub fn new() -> Option<Filter> {
        let arch = ARCH?;
        let load = |offset: usize| stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32);
        let equal = |value: u32, yes: u8, no: u8| jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no);
        let (arch_at, nr_at) = (4, 0);
        // Low half of an argument, counted from 0.
        let argument_at = |n: usize| 16 + n * 8 + if cfg!(target_endian = "big") { 4 } else { 0 };
        Some(Filter(vec![
            load(arch_at),
            equal(arch, 0, 14),
            load(nr_at),
            equal(libc::SYS_listen as u32, 11, 0),
            equal(libc::SYS_setsockopt as u32, 5, 0),
            equal(libc::SYS_bind as u32, 0, 10),
            // The length of the address.
            load(argument_at(2)),
            equal(16, 7, 0),
            equal(28, 6, 0),
            jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 110, 5, 6),
            // Level and option.
            load(argument_at(1)),
            equal(libc::SOL_SOCKET as u32, 0, 4),
            load(argument_at(2)),
            equal(libc::SO_ATTACH_REUSEPORT_CBPF as u32, 1, 0),
            equal(libc::SO_ATTACH_REUSEPORT_EBPF as u32, 0, 1),
            stmt(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF),
            stmt(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        ]))
    }

    /// Puts the filter on the calling thread and sends the supervisor its end over `report`, or the
    /// errno. Async-signal-safe; for the child between fork and exec.
    pub fn install(&self, report: RawFd) {
        let program = libc::sock_fprog { len: self.0.len() as u16, filter: self.0.as_ptr().cast_mut() };
        let base = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        let killable = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
        let set = |flags: libc::c_ulong| {
            // SAFETY: the program is valid for the call, and the kernel copies it.
            let fd =
                unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
            // SAFETY: errno of this thread.
            if fd >= 0 { Ok(fd as RawFd) } else { Err(unsafe { *libc::__errno_location() }) }
        };
        // Each may come before the other, and after it.
        let (mut flags, mut privileged) = (base | killable, true);
        let result = loop {
            match set(flags) {
                // Before Linux 5.19.
                Err(libc::EINVAL) if flags != base => flags = base,
                // Without CAP_SYS_ADMIN the filter is only for those who give up setuid for good.
                Err(libc::EACCES) if privileged => {
                    privileged = false;
                    // SAFETY: integers only.
                    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
                }
                result => break result,
            }
        };
        send_result(report, result);
    }
}

fn stmt(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// Space for one control message with one fd, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 32]);

/// The errno (0 for none) as four bytes, with the fd as ancillary data. nix's `sendmsg` allocates.
fn send_result(report: RawFd, result: Result<RawFd, i32>) {
    let mut errno = result.err().unwrap_or(0);
    let mut control = Control([0; 32]);
    // SAFETY: all pointers are to locals that live through the call; the buffer has room for one header
    // and one fd (CMSG_SPACE(4) is 24).
    unsafe {
        let mut part = libc::iovec { iov_base: (&raw mut errno).cast(), iov_len: size_of::<i32>() };
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if let Ok(fd) = result {
            message.msg_control = (&raw mut control).cast();
            message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
        }
        libc::sendmsg(report, &raw const message, libc::MSG_NOSIGNAL);
        if let Ok(fd) = result {
            libc::close(fd);
        }
    }
}

/// Takes what the child sent before its exec.
pub fn receive_result(report: &std::os::unix::net::UnixStream) -> io::Result<Notifier> {
    let mut errno: i32 = libc::EIO;
    let mut control = Control([0; 32]);
    // SAFETY: all pointers are to locals that live through the call; a received fd is owned at once.
    unsafe {
        let mut part = libc::iovec { iov_base: (&raw mut errno).cast(), iov_len: size_of::<i32>() };
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<Control>() as _;
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        if libc::recvmsg(report.as_raw_fd(), &raw mut message, flags) < 0 {
            return Err(io::Error::last_os_error());
        }
        if message.msg_flags & libc::MSG_CTRUNC != 0 {
            // The only file that comes: there was no room for it.
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if errno == 0 && !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
            let fd = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
            return Ok(Notifier(OwnedFd::from_raw_fd(fd)));
        }
    }
    Err(io::Error::from_raw_os_error(errno))
}

/// The calls that were taken from the kernel and not answered yet, in memory that the keeper shares: should this
/// process die, their callers would wait for ever.
#[derive(Debug)]
pub struct Ledger {
    page: NonNull<Page>,
    /// One call is taken at a time.
    turn: Mutex<()>,
    /// An entry has become free.
    freed: Condvar,
}

/// What is shared.
#[repr(C)]
struct Page {
    /// Where the kernel writes a call that is taken: there is no moment in which it is taken and nowhere. An id is
    /// never used twice, so that one that stands here and was answered harms nobody.
    received: UnsafeCell<libc::seccomp_notif>,
    /// Ids of those that wait for an answer, or 0.
    waiting: [AtomicU64; LEDGER_LEN],
}

/// How many calls may wait for an answer at once. The next ones wait in the kernel.
const LEDGER_LEN: usize = 512;

// SAFETY: the entries are only reached through atomics, the place of what is received only with `turn`, or by the keeper
// when all others are gone. The mapping lives as long as this value.
unsafe impl Send for Ledger {}
// SAFETY: as above.
unsafe impl Sync for Ledger {}

impl Ledger {
    /// A new page, all zero.
    pub fn new() -> io::Result<Ledger> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping of that length; zeroes are valid for all that is in it.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Page>(), access, kind, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Ledger { page, turn: Mutex::default(), freed: Condvar::new() })
    }

    fn page(&self) -> &Page {
        // SAFETY: the mapping is valid and aligned, and unmapped only with the last handle.
        unsafe { self.page.as_ref() }
    }

    /// Takes a call from the kernel, and notes it before anything else is done.
    fn receive(&self, notifier: RawFd) -> io::Result<libc::seccomp_notif> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |_: &mut ()| self.page().waiting.iter().all(|entry| entry.load(Ordering::Acquire) != 0);
        let _turn = self.freed.wait_while(turn, is_full).unwrap_or_else(PoisonError::into_inner);
        let place = self.page().received.get();
        // SAFETY: nobody else has the place while we have the turn; the kernel wants it zeroed and fills it.
        unsafe {
            place.write_volatile(zeroed());
            if libc::ioctl(notifier, libc::SECCOMP_IOCTL_NOTIF_RECV, place) != 0 {
                return Err(io::Error::last_os_error());
            }
            let got = place.read_volatile();
            self.replace(0, got.id);
            place.write_volatile(zeroed());
            Ok(got)
        }
    }

    /// The call was answered.
    pub fn clear(&self, id: u64) {
        if self.replace(id, 0) {
            // Not between the look and the wait of whoever waits for room.
            drop(self.turn.lock().unwrap_or_else(PoisonError::into_inner));
            self.freed.notify_all();
        }
    }

    fn replace(&self, old: u64, new: u64) -> bool {
        let swap = |entry: &AtomicU64| entry.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        self.page().waiting.iter().any(swap)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and nobody has a reference to it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), size_of::<Page>()) };
    }
}

/// What the keeper does once the supervisor is dead, until nobody under the filter is left: every call runs as
/// if nobody had looked, or, of a server that was killed, fails: a `listen` that runs while its process dies
/// would take connections with it. Async-signal-safe.
pub fn answer_all(notifier: RawFd, ledger: &Ledger, killed: bool) {
    let answer = |id: u64| {
        let (error, flags) =
            if killed { (-libc::EINTR, 0) } else { (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32) };
        let mut answer = libc::seccomp_notif_resp { id, val: 0, error, flags };
        // SAFETY: the request goes with this struct.
        unsafe { libc::ioctl(notifier, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    };
    // SAFETY: the supervisor is gone, and with it whoever wrote there.
    answer(unsafe { (*ledger.page().received.get()).id });
    for entry in &ledger.page().waiting {
        match entry.swap(0, Ordering::AcqRel) {
            0 => {}
            id => answer(id),
        }
    }
    loop {
        let mut poll = libc::pollfd { fd: notifier, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, and the count says one.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
        if poll.revents & libc::POLLIN != 0 {
            // SAFETY: the kernel wants it zeroed and fills it; the request goes with this struct.
            unsafe {
                let mut got: libc::seccomp_notif = zeroed();
                if libc::ioctl(notifier, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut got) == 0 {
                    answer(got.id);
                } else if !matches!(*libc::__errno_location(), libc::ENOENT | libc::EINTR) {
                    // It may last: not again and again at once.
                    libc::poll(std::ptr::null_mut(), 0, 100);
                }
            }
        } else if poll.revents != 0 {
            return;
        }
    }
}

/// The supervisor's end: calls of the server wait here for an answer.
#[derive(Debug)]
pub struct Notifier(OwnedFd);

/// Which call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// bind(2): the length of the address.
    Bind,
    /// listen(2) with this backlog.
    Listen(i32),
    /// setsockopt(2): a program that steers the port.
    Steer,
}

/// A call that waits. Dropping it without an answer leaves the caller waiting.
#[derive(Debug, Clone, Copy)]
pub struct Notification {
    /// Names the call for the answer.
    pub id: u64,
    /// Which call it is.
    pub call: Call,
    thread: u32,
    args: [u64; 6],
}

impl Notifier {
    /// Waits for the next call, which then stands in the ledger until it is answered; `None` when nobody under the
    /// filter is left. An error may come again at once.
    pub fn next(&self, ledger: &Ledger) -> io::Result<Option<Notification>> {
        loop {
            let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd, and the count says one.
            if unsafe { libc::poll(&raw mut poll, 1, -1) } < 0 {
                match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => continue,
                    e => return Err(e),
                }
            }
            // RECV only after POLLIN: before 6.11 it may never return otherwise.
            if poll.revents & libc::POLLIN != 0 {
                let got = match ledger.receive(self.0.as_raw_fd()) {
                    Ok(got) => got,
                    // The call was interrupted, or its process is gone.
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => continue,
                    Err(e) => return Err(e),
                };
                let call = match i64::from(got.data.nr) {
                    nr if nr == libc::SYS_bind => Call::Bind,
                    nr if nr == libc::SYS_setsockopt => Call::Steer,
                    _ => Call::Listen(got.data.args[1] as i32),
                };
                return Ok(Some(Notification { id: got.id, call, thread: got.pid, args: got.data.args }));
            }
            if poll.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
                return Ok(None);
            }
        }
    }

    /// Lets the call run as if nobody had looked.
    pub fn proceed(&self, id: u64) {
        self.answer(id, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32);
    }

    /// The call returns this instead of running: 0, or an errno.
    pub fn conclude(&self, id: u64, errno: i32) {
        self.answer(id, -errno, 0);
    }

    fn answer(&self, id: u64, error: i32, flags: u32) {
        let mut answer = libc::seccomp_notif_resp { id, val: 0, error, flags };
        // SAFETY: the request goes with this struct. ENOENT: the call is no longer there to be answered.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    }

    /// Whether the call still waits: whatever was read of its process before belongs to it.
    pub fn waits(&self, id: u64) -> bool {
        let mut id = id;
        // SAFETY: the request goes with a u64.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id) == 0 }
    }

    /// The fd number, for the keeper.
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Notification {
    /// The process whose thread waits (`pidfd_open` refuses a thread).
    pub fn process(&self) -> Option<Pid> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.thread)).ok()?;
        Pid::new(status.lines().find_map(|l| l.strip_prefix("Tgid:"))?.trim().parse().ok()?)
    }

    /// A handle on the socket of the call (pidfd_getfd(2), Linux 5.6).
    pub fn socket(&self) -> io::Result<OwnedFd> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        Pidfd::open(self.process().ok_or_else(gone)?)?.fd(self.args[0] as RawFd)
    }

    /// The address of a `bind`, if it is of an IP socket.
    pub fn address(&self) -> io::Result<Option<SocketAddr>> {
        let mut bytes = [0u8; 28];
        let len = bytes.len().min(self.args[2] as usize);
        // SAFETY: the local part is a valid buffer of that length; the remote part is only read, by the
        // kernel, which checks it.
        let read = unsafe {
            let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len };
            let remote = libc::iovec { iov_base: self.args[1] as *mut libc::c_void, iov_len: len };
            libc::process_vm_readv(self.thread as libc::pid_t, &raw const local, 1, &raw const remote, 1, 0)
        };
        if read < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(parse_address(&bytes[..read as usize]))
    }
}

/// A `sockaddr_in` or `sockaddr_in6` (ip(7), ipv6(7)).
fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
    let port = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
    match family {
        libc::AF_INET => Some((<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?, port).into()),
        libc::AF_INET6 => Some((<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?, port).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    /// A child under the filter, whose children make so many calls at once, and where they are seen.
    fn calls(count: usize) -> (libc::pid_t, Notifier) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let filter = Filter::new().unwrap();
        let listeners: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        // SAFETY: the child makes async-signal-safe calls only, and ends, and so do its children.
        let child = unsafe { libc::fork() };
        if child == 0 {
            filter.install(theirs.as_raw_fd());
            for listener in &listeners {
                // SAFETY: as above.
                unsafe {
                    if libc::fork() == 0 {
                        libc::_exit(libc::listen(listener.as_raw_fd(), 1));
                    }
                }
            }
            let (mut failed, mut status) = (0, 0);
            // SAFETY: a pointer to an int of ours.
            while unsafe { libc::waitpid(-1, &raw mut status, 0) } > 0 {
                failed |= status;
            }
            // SAFETY: the end of this process.
            unsafe { libc::_exit(i32::from(failed != 0)) };
        }
        drop(theirs);
        let mut poll = libc::pollfd { fd: ours.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, and the count says one.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 60_000) }, 1);
        (child, receive_result(&ours).unwrap())
    }

    fn status_of(child: libc::pid_t) -> i32 {
        let mut status = 0;
        // SAFETY: a pointer to an int of ours.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        status
    }

    /// The supervisor is killed in the moment in which the kernel has given it the call, and it has done nothing yet.
    #[test]
    fn a_call_that_was_taken_and_not_noted_is_answered_by_the_keeper() {
        let (child, notifier) = calls(1);
        let ledger = Ledger::new().unwrap();
        let mut poll = libc::pollfd { fd: notifier.raw(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, and the count says one; nobody else has the place.
        unsafe {
            assert_eq!(libc::poll(&raw mut poll, 1, 60_000), 1);
            let place = ledger.page().received.get();
            assert_eq!(libc::ioctl(notifier.raw(), libc::SECCOMP_IOCTL_NOTIF_RECV, place), 0);
        }
        answer_all(notifier.raw(), &ledger, false);
        assert_eq!(status_of(child), 0);
    }

    #[test]
    fn more_calls_than_the_ledger_has_room_for_wait_and_are_answered() {
        let (count, ledger) = (LEDGER_LEN + 20, Ledger::new().unwrap());
        let (child, notifier) = calls(count);
        let mut held = Vec::new();
        for _ in 0..LEDGER_LEN {
            held.push(notifier.next(&ledger).unwrap().unwrap());
        }
        let answer = |call: Notification| {
            notifier.proceed(call.id);
            ledger.clear(call.id);
        };
        std::thread::scope(|scope| {
            let rest = scope.spawn(|| {
                let mut taken = 0;
                while let Some(call) = notifier.next(&ledger).unwrap() {
                    answer(call);
                    taken += 1;
                }
                taken
            });
            held.into_iter().for_each(answer);
            assert_eq!(rest.join().unwrap(), 20);
        });
        assert_eq!(status_of(child), 0);
    }

    #[test]
    fn a_call_that_cannot_be_taken_is_an_error_and_not_taken_again_and_again() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"x").unwrap();
        let failed = Notifier(ours.into()).next(&Ledger::new().unwrap());
        assert_eq!(failed.map(drop).map_err(|e| e.raw_os_error()), Err(Some(libc::ENOTTY)));
    }

    /// In a child of its own, which may have no more files than it has.
    #[test]
    fn a_file_for_which_there_is_no_room_is_no_success() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        // SAFETY: a plain call; `send_result` takes the fd.
        send_result(theirs.as_raw_fd(), Ok(unsafe { libc::dup(0) }));
        // SAFETY: the child makes async-signal-safe calls only, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: a pointer to a struct of ours.
            unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) };
            let errno = receive_result(&ours).map_or_else(|e| e.raw_os_error().unwrap_or(255), |_| 254);
            // SAFETY: the end of this process.
            unsafe { libc::_exit(errno) };
        }
        let status = status_of(child);
        assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, libc::EMFILE));
    }
}
