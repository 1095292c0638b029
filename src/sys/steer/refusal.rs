//! The filter that keeps new clients away from one socket for a moment.

use super::marked::Mark;
use super::probe::Probe;
use super::program::{equal, load, tests_of};
use super::socket::Socket;
use crate::sys::bpf::stmt;
use nix::libc;
use std::io;

/// By which a refusal of ours is known.
const REFUSAL: Mark = Mark(0x5E12_7E12);

impl Socket {
    /// Drops every new SYN to this socket, except the SYN of a probe. A client that comes meanwhile tries again after a second
    /// and then gets the socket that the group selects. Handshakes that are under way finish. `false` if the server has a
    /// filter of its own, which stays.
    pub fn refuse_newcomers(&self, except: Option<&Probe>) -> io::Result<bool> {
        self.put_filter(REFUSAL, &refusal(except))
    }

    /// Takes the filter of [`Socket::refuse_newcomers`] off again, if it is there.
    pub fn accept_newcomers(&self) -> io::Result<()> {
        self.take_filter(REFUSAL)
    }
}

/// A filter that drops every SYN without ACK, unless it is the SYN of this probe.
fn refusal(except: Option<&Probe>) -> Vec<libc::sock_filter> {
    let mut program = vec![REFUSAL.first()];
    if let Some(probe) = except {
        let (tests, port_at) = tests_of(probe.source().ip());
        let tests = tests.into_iter().chain([(libc::BPF_H, port_at, probe.source().port().into())]);
        let tests: Vec<_> = tests.collect();
        for (i, &(size, at, value)) in tests.iter().enumerate() {
            program.push(load(size, at));
            program.push(equal(value, 0, (2 * (tests.len() - i - 1) + 1) as u8));
        }
        program.push(stmt(libc::BPF_RET | libc::BPF_K, u32::MAX));
    }
    program.extend([
        stmt(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 13),
        stmt(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0x12),
        equal(0x02, 0, 1),
        stmt(libc::BPF_RET | libc::BPF_K, 0),
        stmt(libc::BPF_RET | libc::BPF_K, u32::MAX),
    ]);
    program
}
