//! The filter that keeps new clients away from one socket for a moment.

use super::probe::Probe;
use super::program::{equal, load, tests_of};
use super::socket::Socket;
use crate::sys::bpf::stmt;
use nix::libc;
use std::io;

/// Most instructions that a filter of ours has.
pub(super) const FILTER_MAX: usize = 48;
/// An instruction that does nothing, by which a refusal of ours is known.
const OURS: u32 = 0x5E12_7E12;

impl Socket {
    /// Drops every new SYN to this socket, except the SYN of a probe. A client that comes meanwhile tries again after a second
    /// and then gets the socket that the group selects. Handshakes that are under way finish. `false` if the server has a
    /// filter of its own, which stays.
    pub fn refuse_newcomers(&self, except: Option<&Probe>) -> io::Result<bool> {
        let own = self.filter()?;
        if !(own.is_empty() || is_ours(&own)) {
            return Ok(false);
        }
        self.attach(libc::SO_ATTACH_FILTER, &refusal(except)).map(|()| true)
    }

    /// Takes the filter of [`Socket::refuse_newcomers`] off again, if it is there.
    pub fn accept_newcomers(&self) -> io::Result<()> {
        match is_ours(&self.filter()?) {
            true => self.set_option(libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32),
            false => Ok(()),
        }
    }

    /// The filter on the socket (SO_GET_FILTER, Linux 3.8); empty if there is none.
    pub(super) fn filter(&self) -> io::Result<Vec<libc::sock_filter>> {
        // A longer filter is not ours.
        let mut filter = [stmt(0, 0); FILTER_MAX];
        let mut len = 0;
        // SAFETY: a null pointer with a length of 0 asks for the number of instructions. A filter is read only if there
        // is room for all of it.
        unsafe {
            let get = |to: *mut libc::c_void, len: &mut libc::socklen_t| {
                libc::getsockopt(self.raw(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, to, len)
            };
            if get(std::ptr::null_mut(), &mut len) < 0 {
                return match io::Error::last_os_error() {
                    // It was put there in another form (eBPF) and cannot be read.
                    e if e.raw_os_error() == Some(libc::EACCES) => Ok(filter.to_vec()),
                    e => Err(e),
                };
            }
            if len as usize > FILTER_MAX {
                return Ok(filter.to_vec());
            }
            if len > 0 && get(filter.as_mut_ptr().cast(), &mut len) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(filter[..len as usize].to_vec())
    }
}

/// A filter that drops every SYN without ACK, unless it is the SYN of this probe.
fn refusal(except: Option<&Probe>) -> Vec<libc::sock_filter> {
    let mut program = vec![stmt(libc::BPF_LD | libc::BPF_IMM, OURS)];
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

fn is_ours(filter: &[libc::sock_filter]) -> bool {
    filter.first().is_some_and(|first| u32::from(first.code) == libc::BPF_LD | libc::BPF_IMM && first.k == OURS)
}
