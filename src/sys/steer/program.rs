//! The program that selects a member of a group for each new connection. Pure.

#![forbid(unsafe_code)]

use super::probe::Probe;
use crate::sys::bpf::{jump, stmt};
use nix::libc;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

/// Offsets from here on count from the IP header (SKF_NET_OFF of linux/filter.h), wherever the program
/// finds the packet to begin.
const NETWORK: u32 = -0x10_0000_i32 as u32;
/// Ancillary data of a packet (SKF_AD_OFF).
const ANCILLARY: u32 = -0x1000_i32 as u32;

/// Which sockets of a group get new connections, by their order of joining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first of them.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
}

/// What a server steers its own port by (socket(7)).
#[derive(Debug)]
pub enum OwnProgram {
    /// SO_ATTACH_REUSEPORT_CBPF.
    Classic(Vec<libc::sock_filter>),
    /// SO_ATTACH_REUSEPORT_EBPF.
    Extended(OwnedFd),
    /// SO_DETACH_REUSEPORT_BPF.
    None,
}

/// What selects a member of a group for a new connection.
#[derive(Debug)]
pub struct Program(pub(super) Vec<libc::sock_filter>);

impl Program {
    /// Connections go to the members of these ranges, to each equally often. The connection of a probe goes to the member
    /// at the index beside it. All probes are of this process.
    pub fn new(to: &[Range], probes: &[(&Probe, u32)]) -> Program {
        Program::with(choose(to), probes)
    }

    /// The same, but of 1,000 connections so many go to the members of `some`, at random.
    pub fn mixed(to: &[Range], some: &[Range], permille: u16, probes: &[(&Probe, u32)]) -> Program {
        let first = choose(some);
        let mut program = vec![
            load_random(),
            stmt(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 1000),
            jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, permille.into(), 0, 1),
            stmt(libc::BPF_JMP | libc::BPF_JA, first.len() as u32),
        ];
        program.extend(first);
        program.extend(choose(to));
        Program::with(program, probes)
    }

    fn with(others: Vec<libc::sock_filter>, probes: &[(&Probe, u32)]) -> Program {
        let mut program = Vec::new();
        // v6 probes may come from several addresses.
        let sources: BTreeSet<IpAddr> = probes.iter().map(|(probe, _)| probe.source().ip()).collect();
        for source in sources {
            let (tests, port_at) = tests_of(source);
            let mut answers = vec![load(libc::BPF_H, port_at)];
            for (probe, index) in probes.iter().filter(|(probe, _)| probe.source().ip() == source) {
                answers.push(equal(probe.source().port().into(), 0, 1));
                answers.push(stmt(libc::BPF_RET | libc::BPF_K, *index));
            }
            for (i, &(size, at, value)) in tests.iter().enumerate() {
                // A packet that does not match skips the other tests and the answers.
                let skip = 3 * (tests.len() - i - 1) + answers.len();
                program.push(load(size, at));
                program.push(equal(value, 1, 0));
                program.push(stmt(libc::BPF_JMP | libc::BPF_JA, skip as u32));
            }
            program.extend(answers);
        }
        program.extend(others);
        Program(program)
    }
}

/// The values that a packet from this address has: how wide each is, where it stands, what it is. And where the source
/// port stands.
pub(super) fn tests_of(source: IpAddr) -> (Vec<(u32, u32, u32)>, u32) {
    match source {
        // Version and header length: the offset of the port holds for a header of 20 bytes.
        IpAddr::V4(ip) => (vec![(libc::BPF_B, 0, 0x45), (libc::BPF_W, 12, u32::from(ip))], 20),
        IpAddr::V6(ip) => {
            let mut tests = vec![(libc::BPF_B, 6, libc::IPPROTO_TCP as u32)];
            for (i, part) in ip.octets().chunks_exact(4).enumerate() {
                let part = u32::from_be_bytes([part[0], part[1], part[2], part[3]]);
                tests.push((libc::BPF_W, 8 + 4 * i as u32, part));
            }
            (tests, 40)
        }
    }
}

pub(super) fn load(size: u32, at: u32) -> libc::sock_filter {
    stmt(libc::BPF_LD | size | libc::BPF_ABS, NETWORK.wrapping_add(at))
}

pub(super) fn equal(value: u32, yes: u8, no: u8) -> libc::sock_filter {
    jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no)
}

/// A random number (SKF_AD_RANDOM of linux/filter.h).
fn load_random() -> libc::sock_filter {
    stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, ANCILLARY + libc::SKF_AD_RANDOM as u32)
}

/// Selects a member of these ranges at random.
fn choose(to: &[Range]) -> Vec<libc::sock_filter> {
    let total = to.iter().map(|range| range.count).sum::<u32>();
    match to {
        [] => return vec![stmt(libc::BPF_RET | libc::BPF_K, 0)],
        [only] if total == 1 => return vec![stmt(libc::BPF_RET | libc::BPF_K, only.first)],
        _ => {}
    }
    let mut program = vec![load_random(), stmt(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, total)];
    for (i, range) in to.iter().enumerate() {
        if i + 1 < to.len() {
            program.push(jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, range.count, 2, 0));
        }
        program.push(stmt(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, range.first));
        program.push(stmt(libc::BPF_RET | libc::BPF_A, 0));
        if i + 1 < to.len() {
            program.push(stmt(libc::BPF_ALU | libc::BPF_SUB | libc::BPF_K, range.count));
        }
    }
    program
}
