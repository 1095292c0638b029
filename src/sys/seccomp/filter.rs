//! The filter that a server is started with.

use super::abi::{ABIS, SYS_BIND, SYS_LISTEN};
use super::report::send_result;
use crate::sys::bpf::{jump, stmt};
use nix::libc;
use std::os::fd::RawFd;

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

/// A place in a filter. The places of one ABI carry its index.
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
    /// The supervisor sees `listen`, those `bind` calls that can be of an IP socket, and a program that the server puts on
    /// its port. Everything else, netlink too, runs at full speed. MPTCP sockets cannot be steered and are refused as on a
    /// kernel without them; Go and all others that ask for them fall back to TCP. `None` on an architecture without
    /// support.
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
        // Either fault may come first.
        let (mut flags, mut privileged) = (base | killable, true);
        let result = loop {
            match set(flags) {
                // Before Linux 5.19.
                Err(libc::EINVAL) if flags != base => flags = base,
                // Without CAP_SYS_ADMIN only a process that gives up setuid for good may have a filter.
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
