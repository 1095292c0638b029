//! The instructions of classic BPF that the product's programs have.

use nix::libc::{self, sock_filter};
use std::net::{IpAddr, SocketAddr};

/// The first packet of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    pub source: SocketAddr,
    pub target: SocketAddr,
    /// By which interface it came in.
    pub device: u32,
}

/// Offsets that do not count from the begin of the packet (linux/filter.h).
const NETWORK: u32 = -0x10_0000_i32 as u32;
const RANDOM: u32 = (-0x1000_i32 + libc::SKF_AD_RANDOM) as u32;

impl Packet {
    fn byte(&self, at: usize) -> u8 {
        let port = self.source.port().to_be_bytes();
        match (self.source.ip(), at) {
            (IpAddr::V4(_), 0) => 0x45,
            (IpAddr::V4(_), 9) | (IpAddr::V6(_), 6) => libc::IPPROTO_TCP as u8,
            (IpAddr::V4(ip), 12..16) => ip.octets()[at - 12],
            (IpAddr::V4(_), 20 | 21) => port[at - 20],
            (IpAddr::V6(_), 0) => 0x60,
            (IpAddr::V6(ip), 8..24) => ip.octets()[at - 8],
            (IpAddr::V6(_), 40 | 41) => port[at - 40],
            _ => 0,
        }
    }

    fn load(&self, at: u32, size: usize) -> u32 {
        (0..size).fold(0, |value, i| value << 8 | u32::from(self.byte(at as usize + i)))
    }
}

/// What the program returns.
pub fn run(program: &[sock_filter], packet: &Packet, random: u32) -> u32 {
    let (mut at, mut a) = (0, 0u32);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let skip = |is: bool| usize::from(if is { jt } else { jf });
        match u32::from(code) {
            c if c == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS && k == RANDOM => a = random,
            c if c == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => a = packet.load(k.wrapping_sub(NETWORK), 4),
            c if c == libc::BPF_LD | libc::BPF_H | libc::BPF_ABS => a = packet.load(k.wrapping_sub(NETWORK), 2),
            c if c == libc::BPF_LD | libc::BPF_B | libc::BPF_ABS => a = packet.load(k.wrapping_sub(NETWORK), 1),
            c if c == libc::BPF_JMP | libc::BPF_JA => at += k as usize,
            c if c == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => at += skip(a == k),
            c if c == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => at += skip(a >= k),
            c if c == libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K => a %= k,
            c if c == libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K => a = a.wrapping_add(k),
            c if c == libc::BPF_ALU | libc::BPF_SUB | libc::BPF_K => a = a.wrapping_sub(k),
            c if c == libc::BPF_RET | libc::BPF_K => return k,
            c if c == libc::BPF_RET | libc::BPF_A => return a,
            c => panic!("the simulated kernel does not know the instruction {c:#x}"),
        }
    }
}
