//! Filters of ours on a socket. Each is known by a mark in its first instruction; a filter of the server's own stays.

use super::socket::Socket;
use crate::sys::bpf::stmt;
use nix::libc;
use std::io;

/// Most instructions that a filter of ours has.
const FILTER_MAX: usize = 48;

/// What the first instruction of a filter loads, which does nothing else.
#[derive(Clone, Copy)]
pub(super) struct Mark(pub(super) u32);

impl Mark {
    /// That instruction.
    pub(super) fn first(self) -> libc::sock_filter {
        stmt(libc::BPF_LD | libc::BPF_IMM, self.0)
    }

    fn is_on(self, filter: &[libc::sock_filter]) -> bool {
        filter.first().is_some_and(|first| u32::from(first.code) == libc::BPF_LD | libc::BPF_IMM && first.k == self.0)
    }
}

impl Socket {
    /// Puts a filter on, in place of one with the same mark. `false` if there is any other, which stays.
    pub(super) fn put_filter(&self, mark: Mark, filter: &[libc::sock_filter]) -> io::Result<bool> {
        let own = self.filter()?;
        if !(own.is_empty() || mark.is_on(&own)) {
            return Ok(false);
        }
        self.attach(libc::SO_ATTACH_FILTER, filter).map(|()| true)
    }

    /// Takes the filter with this mark off again, if it is there.
    pub(super) fn take_filter(&self, mark: Mark) -> io::Result<()> {
        take_off(self.raw(), mark)
    }

    pub(super) fn filter(&self) -> io::Result<Vec<libc::sock_filter>> {
        read(self.raw(), &mut [stmt(0, 0); FILTER_MAX]).map(<[_]>::to_vec)
    }
}

/// Takes the filter with this mark off, if it is there. Async-signal-safe.
pub(super) fn take_off(fd: libc::c_int, mark: Mark) -> io::Result<()> {
    let mut filter = [stmt(0, 0); FILTER_MAX];
    if !mark.is_on(read(fd, &mut filter)?) {
        return Ok(());
    }
    let (none, len) = (0i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: the pointer is to a local of that length.
    match unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, (&raw const none).cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The filter on a socket (SO_GET_FILTER, Linux 3.8); empty if there is none. Of one that cannot be ours the
/// instructions are not those that it has. Async-signal-safe.
fn read(fd: libc::c_int, filter: &mut [libc::sock_filter; FILTER_MAX]) -> io::Result<&[libc::sock_filter]> {
    let mut len = 0;
    // SAFETY: a null pointer with a length of 0 asks for the number of instructions. A filter is read only if there
    // is room for all of it.
    unsafe {
        let get = |to: *mut libc::c_void, len: &mut libc::socklen_t| {
            libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, to, len)
        };
        if get(std::ptr::null_mut(), &mut len) < 0 {
            return match io::Error::last_os_error() {
                // It was put there in another form (eBPF) and cannot be read.
                e if e.raw_os_error() == Some(libc::EACCES) => Ok(filter),
                e => Err(e),
            };
        }
        // A longer filter is not ours.
        if len as usize > FILTER_MAX {
            return Ok(filter);
        }
        if len > 0 && get(filter.as_mut_ptr().cast(), &mut len) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(&filter[..len as usize])
}
