//! Seeing a server's `bind` and `listen` (seccomp user notification, seccomp(2), seccomp_unotify(2)):
//! the filter that the child puts on itself, and the supervisor's end of it.
//!
//! Linux 5.9 or later (POLLHUP tells that nobody is left under the filter); best from 5.19, where a
//! waiting call is no longer interrupted by signals.

use crate::sys::process::{Pid, Pidfd, Status};
use crate::sys::steer::OwnProgram;
use nix::libc;
use std::cell::UnsafeCell;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// How a program calls the kernel: AUDIT_ARCH_* of linux/audit.h, which libc lacks, and the numbers of its calls.
struct Abi {
    arch: u32,
    bind: u32,
    listen: u32,
    setsockopt: u32,
    socket: u32,
    /// Of one call for all of the others, whose arguments lie in memory (socketcall(2)).
    socketcall: Option<u32>,
}

/// The ABI of this program, and that of the 32-bit programs which its kernel runs too; none where this is not
/// supported.
const ABIS: &[Abi] = if cfg!(target_arch = "x86_64") {
    &[Abi::native(0xC000_003E), Abi { socketcall: Some(102), ..Abi::compat(0x4000_0003, [361, 363, 366, 359]) }]
} else if cfg!(target_arch = "aarch64") {
    &[Abi::native(0xC000_00B7), Abi::compat(0x4000_0028, [282, 284, 294, 281])]
} else {
    &[]
};

impl Abi {
    const fn native(arch: u32) -> Abi {
        let numbers = [libc::SYS_bind, libc::SYS_listen, libc::SYS_setsockopt, libc::SYS_socket];
        Abi::compat(arch, [numbers[0] as u32, numbers[1] as u32, numbers[2] as u32, numbers[3] as u32])
    }

    const fn compat(arch: u32, [bind, listen, setsockopt, socket]: [u32; 4]) -> Abi {
        Abi { arch, bind, listen, setsockopt, socket, socketcall: None }
    }
}

/// What socketcall(2) does (linux/net.h).
const SYS_BIND: u32 = 2;
const SYS_LISTEN: u32 = 4;
/// The shortest address of an IP socket (`sockaddr_in`); the kernel takes longer ones as well (bind(2)).
const ADDRESS_MIN: u32 = 16;
/// The options that put a program on a port, or take it off (socket(7)).
const STEERING: [i32; 3] =
    [libc::SO_ATTACH_REUSEPORT_CBPF, libc::SO_ATTACH_REUSEPORT_EBPF, libc::SO_DETACH_REUSEPORT_BPF];

/// The filter, built before the fork: nothing after it may allocate.
pub struct Filter(Vec<libc::sock_filter>);

/// One step of a filter: a jump goes to a label further down, or falls through.
enum Step {
    Load(usize),
    IfEqual(u32, Label),
    IfAtLeast(u32, Label),
    Goto(Label),
    Return(u32),
    At(Label),
}

/// A place in a filter; those of an ABI carry its index.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Abi(usize),
    Bind(usize),
    Steer(usize),
    SteerBy(usize),
    Socket(usize),
    SocketCall(usize),
    Notify,
    Allow,
    NoMptcp,
}

/// Turns steps into instructions. Conditional jumps reach 255 instructions: more than all filters of ours have.
fn assemble(steps: &[Step]) -> Vec<libc::sock_filter> {
    let is_label = |step: &Step| matches!(step, Step::At(_));
    let after = |at: usize, label: Label| {
        let target = steps.iter().position(|step| matches!(step, Step::At(at) if *at == label)).unwrap_or(steps.len());
        steps[at + 1..target.max(at + 1)].iter().filter(|step| !is_label(step)).count()
    };
    let test = |kind: u32, value: u32, skip: usize| jump(libc::BPF_JMP | kind | libc::BPF_K, value, skip as u8, 0);
    let mut program = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        program.push(match *step {
            Step::Load(offset) => stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32),
            Step::IfEqual(value, to) => test(libc::BPF_JEQ, value, after(at, to)),
            Step::IfAtLeast(value, to) => test(libc::BPF_JGE, value, after(at, to)),
            Step::Goto(to) => stmt(libc::BPF_JMP | libc::BPF_JA, after(at, to) as u32),
            Step::Return(action) => stmt(libc::BPF_RET | libc::BPF_K, action),
            Step::At(_) => continue,
        });
    }
    program
}

impl Filter {
    /// `listen`, those `bind` calls that can be of an IP socket, and a program that the server puts on its port are
    /// told to the supervisor; everything else, netlink among it, runs at full speed. MPTCP sockets, which nobody
    /// can steer, are refused as on a kernel without them: Go and all others that ask for them fall back to TCP.
    /// `None` on an architecture without support.
    pub fn new() -> Option<Filter> {
        use Label::*;
        use Step::*;
        ABIS.first()?;
        let (number_at, arch_at) = (0, 4);
        // Low half of an argument, counted from 0.
        let argument_at = |n: usize| 16 + n * 8 + if cfg!(target_endian = "big") { 4 } else { 0 };
        let mut steps = vec![Load(arch_at)];
        steps.extend(ABIS.iter().enumerate().map(|(i, abi)| IfEqual(abi.arch, Label::Abi(i))));
        steps.push(Goto(Allow));
        for (i, abi) in ABIS.iter().enumerate() {
            steps.extend([At(Label::Abi(i)), Load(number_at), IfEqual(abi.listen, Notify), IfEqual(abi.bind, Bind(i))]);
            steps.extend([IfEqual(abi.setsockopt, Steer(i)), IfEqual(abi.socket, Label::Socket(i))]);
            steps.extend(abi.socketcall.map(|number| IfEqual(number, SocketCall(i))));
            // The length of the address.
            steps.extend([Goto(Allow), At(Bind(i)), Load(argument_at(2)), IfAtLeast(ADDRESS_MIN, Notify), Goto(Allow)]);
            // Level and option.
            steps.extend([At(Steer(i)), Load(argument_at(1)), IfEqual(libc::SOL_SOCKET as u32, Label::SteerBy(i))]);
            steps.extend([Goto(Allow), At(Label::SteerBy(i)), Load(argument_at(2))]);
            steps.extend(STEERING.map(|option| IfEqual(option as u32, Notify)));
            steps.extend([Goto(Allow), At(Label::Socket(i)), Load(argument_at(2))]);
            steps.extend([IfEqual(libc::IPPROTO_MPTCP as u32, NoMptcp), Goto(Allow)]);
            if abi.socketcall.is_some() {
                steps.extend([At(SocketCall(i)), Load(argument_at(0)), IfEqual(SYS_BIND, Notify)]);
                steps.extend([IfEqual(SYS_LISTEN, Notify), Goto(Allow)]);
            }
        }
        steps.extend([At(Notify), Return(libc::SECCOMP_RET_USER_NOTIF), At(Allow), Return(libc::SECCOMP_RET_ALLOW)]);
        steps.extend([At(NoMptcp), Return(libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT as u32)]);
        Some(Filter(assemble(&steps)))
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

/// SECCOMP_IOCTL_NOTIF_SET_FLAGS of linux/seccomp.h, which libc lacks.
const NOTIF_SET_FLAGS: libc::c_ulong = 0x4008_2104;

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
            // SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (Linux 6.6): whoever calls and we take turns, on one processor. A
            // kernel that does not know it does without.
            libc::ioctl(fd, NOTIF_SET_FLAGS, 1u64);
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
    /// One call is taken at a time; whether whoever does it waits for room.
    turn: Mutex<bool>,
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
        let is_full = |waits: &mut bool| {
            *waits = self.page().waiting.iter().all(|entry| entry.load(Ordering::Acquire) != 0);
            *waits
        };
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
            let waits = *self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            if waits {
                self.freed.notify_all();
            }
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
    /// It is of a 32-bit program.
    compat: bool,
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
                match decode(&got.data, got.pid) {
                    Some((call, args)) => {
                        let compat = got.data.arch != ABIS[0].arch;
                        return Ok(Some(Notification { id: got.id, call, thread: got.pid, args, compat }));
                    }
                    // Its process is gone, or nobody may look at it.
                    None => {
                        self.proceed(got.id);
                        ledger.clear(got.id);
                    }
                }
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

/// Which call it is, and its arguments; `None` if they cannot be read.
fn decode(data: &libc::seccomp_data, thread: u32) -> Option<(Call, [u64; 6])> {
    let abi = ABIS.iter().find(|abi| abi.arch == data.arch)?;
    let (number, mut args) = (data.nr as u32, data.args);
    let is = |own: u32, inner: u32| number == own || abi.socketcall == Some(number) && data.args[0] as u32 == inner;
    if abi.socketcall == Some(number) {
        let mut words = [0; 12];
        if read_memory(thread, data.args[1], &mut words).ok()? < words.len() {
            return None;
        }
        for (arg, word) in args.iter_mut().zip(words.chunks_exact(4)) {
            *arg = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]).into();
        }
    }
    let call = match () {
        () if is(abi.bind, SYS_BIND) => Call::Bind,
        () if is(abi.listen, SYS_LISTEN) => Call::Listen(args[1] as i32),
        () => Call::Steer,
    };
    Some((call, args))
}

/// Reads memory of the process of a thread (process_vm_readv(2)); gives how much of it there was.
fn read_memory(thread: u32, from: u64, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the local part is a valid buffer of that length; the remote part is only read, by the kernel, which
    // checks it.
    let read = unsafe {
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let remote = libc::iovec { iov_base: from as *mut libc::c_void, iov_len: buffer.len() };
        libc::process_vm_readv(thread as libc::pid_t, &raw const local, 1, &raw const remote, 1, 0)
    };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(read as usize) }
}

/// The process whose main thread called last: one that calls again and again is opened once.
#[derive(Default)]
pub struct Last(Option<(u32, Pidfd)>);

/// The process whose thread waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The process.
    pub process: Pid,
    /// Whose files it may open (`fsuid`, credentials(7)).
    pub uid: u32,
}

impl Notification {
    /// Who calls (proc_pid_status(5)); `None` if it is gone.
    pub fn caller(&self) -> Option<Caller> {
        let status = Status::read(self.thread)?;
        Some(Caller { process: Pid::new(status.number("Tgid:", 0)?.into())?, uid: status.number("Uid:", 3)? })
    }

    /// A handle on the socket of the call (pidfd_getfd(2), Linux 5.6).
    pub fn socket(&self, last: &mut Last) -> io::Result<OwnedFd> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let number = self.args[0] as RawFd;
        if let Some((main, process)) = &last.0
            && *main == self.thread
        {
            match process.fd(number) {
                // Another process has its pid.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                got => return got,
            }
        }
        // Most calls are of the main thread; pidfd_open(2) refuses the others.
        match Pidfd::open(Pid::new(self.thread.into()).ok_or_else(gone)?) {
            Ok(process) => last.0.insert((self.thread, process)).1.fd(number),
            Err(_) => Pidfd::open(self.caller().ok_or_else(gone)?.process)?.fd(number),
        }
    }

    /// What a `setsockopt` puts on a port, read from its process. An error, too, where it is of a 32-bit program, whose
    /// memory has another layout.
    pub fn program(&self) -> io::Result<OwnProgram> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let (option, len) = (self.args[2] as i32, self.args[4] as usize);
        let read = |from: u64, buffer: &mut [u8]| {
            let read = read_memory(self.thread, from, buffer)?;
            if read == buffer.len() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EFAULT)) }
        };
        match option {
            libc::SO_DETACH_REUSEPORT_BPF => Ok(OwnProgram::None),
            libc::SO_ATTACH_REUSEPORT_EBPF => {
                let mut number = [0; size_of::<RawFd>()];
                read(self.args[3], &mut number)?;
                let process = self.caller().ok_or_else(invalid)?.process;
                Pidfd::open(process)?.fd(RawFd::from_ne_bytes(number)).map(OwnProgram::Extended)
            }
            _ if self.compat => Err(io::Error::from_raw_os_error(libc::EACCES)),
            _ if len != size_of::<libc::sock_fprog>() => Err(invalid()),
            _ => {
                let mut program = [0; size_of::<libc::sock_fprog>()];
                read(self.args[3], &mut program)?;
                let len = usize::from(u16::from_ne_bytes([program[0], program[1]]));
                let mut from = [0; 8];
                from.copy_from_slice(&program[8..16]);
                let mut bytes = vec![0; len * size_of::<libc::sock_filter>()];
                read(u64::from_ne_bytes(from), &mut bytes)?;
                let instruction = |b: &[u8]| libc::sock_filter {
                    code: u16::from_ne_bytes([b[0], b[1]]),
                    jt: b[2],
                    jf: b[3],
                    k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
                };
                Ok(OwnProgram::Classic(bytes.chunks_exact(8).map(instruction).collect()))
            }
        }
    }

    /// The number of the socket in its process.
    pub fn number(&self) -> RawFd {
        self.args[0] as RawFd
    }

    /// The address of a `bind`, if it is of an IP socket.
    pub fn address(&self) -> io::Result<Option<SocketAddr>> {
        let mut bytes = [0u8; 28];
        let len = bytes.len().min(self.args[2] as usize);
        let read = read_memory(self.thread, self.args[1], &mut bytes[..len])?;
        Ok(parse_address(&bytes[..read]))
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
