//! A call that waits for an answer: what it is, who makes it, and what it is about.

use super::abi::{ABIS, SYS_BIND, SYS_LISTEN};
use crate::sys::pid::Pid;
use crate::sys::pidfd::Pidfd;
use crate::sys::status::Status;
use crate::sys::steer::OwnProgram;
use nix::libc;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};

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
    /// It comes from a 32-bit program.
    compat: bool,
}

/// The process whose main thread called last, so that a process that calls again and again is opened once.
#[derive(Default)]
pub struct Last(Option<(u32, Pidfd)>);

/// The process whose thread waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The process.
    pub process: Pid,
    /// The file system user id of the calling thread (`fsuid`, credentials(7)).
    pub uid: u32,
}

impl Notification {
    /// What the kernel tells of a call; `None` if its arguments cannot be read.
    pub(super) fn read(got: &libc::seccomp_notif) -> Option<Notification> {
        let (call, args) = decode(&got.data, got.pid)?;
        Some(Notification { id: got.id, call, thread: got.pid, args, compat: got.data.arch != ABIS[0].arch })
    }

    /// The process that calls (proc_pid_status(5)); `None` if it is gone.
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
        // Most calls are made by the main thread; pidfd_open(2) refuses other threads.
        match Pidfd::open(Pid::new(self.thread.into()).ok_or_else(gone)?) {
            Ok(process) => last.0.insert((self.thread, process)).1.fd(number),
            Err(_) => Pidfd::open(self.caller().ok_or_else(gone)?.process)?.fd(number),
        }
    }

    /// The program that a `setsockopt` puts on a port, read from its process. An error, too, for a 32-bit program, whose
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

    /// The address of a `bind` if its socket is an IP socket.
    pub fn address(&self) -> io::Result<Option<SocketAddr>> {
        let mut bytes = [0u8; 28];
        let len = bytes.len().min(self.args[2] as usize);
        let read = read_memory(self.thread, self.args[1], &mut bytes[..len])?;
        Ok(parse_address(&bytes[..read]))
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

/// Reads memory of the process of a thread (process_vm_readv(2)). Returns how much of it there was.
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
