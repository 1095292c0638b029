//! Instructions of classic BPF programs (linux/filter.h).

#![forbid(unsafe_code)]

use nix::libc;

/// An instruction that goes on with the next one.
pub fn stmt(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// A test that skips so many instructions if it is true, or if it is not.
pub fn jump(code: u32, k: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: yes, jf: no, k }
}
