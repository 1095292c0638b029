//! How programs call the kernel: the numbers of the calls that are seen.

#![forbid(unsafe_code)]

use nix::libc;

/// How one kind of program calls the kernel.
pub struct Abi {
    /// AUDIT_ARCH_* of linux/audit.h, which libc lacks.
    pub arch: u32,
    /// Number of bind(2).
    pub bind: u32,
    /// Number of listen(2).
    pub listen: u32,
    /// Number of setsockopt(2).
    pub setsockopt: u32,
    /// Number of socket(2).
    pub socket: u32,
    /// Number of socketcall(2), which stands for all of the others; its arguments lie in memory.
    pub socketcall: Option<u32>,
}

/// The ABI of this program, and the ABI of the 32-bit programs that its kernel runs too. There are none on an
/// architecture that is not supported.
pub const ABIS: &[Abi] = if cfg!(target_arch = "x86_64") {
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

/// bind(2) as socketcall(2) numbers it (linux/net.h).
pub const SYS_BIND: u32 = 2;
/// listen(2) as socketcall(2) numbers it.
pub const SYS_LISTEN: u32 = 4;
