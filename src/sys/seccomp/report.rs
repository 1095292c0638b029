//! How the child sends its supervisor the notifier of its filter, or the errno.

use super::notifier::Notifier;
use crate::sys::socket::receive_files;
use nix::libc;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

/// Sends the errno (0 for none) as four bytes, with the fd as ancillary data. nix's `sendmsg` allocates, and this must
/// not.
pub(super) fn send_result(report: RawFd, result: Result<RawFd, i32>) {
    let mut errno = result.err().unwrap_or(0);
    let mut control = [0u64; 4];
    // SAFETY: all pointers are to locals that live through the call; the buffer has room for one header
    // and one fd (CMSG_SPACE(4) is 24).
    unsafe {
        let mut part = libc::iovec { iov_base: (&raw mut errno).cast(), iov_len: size_of::<i32>() };
        let mut message: libc::msghdr = zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        if let Ok(fd) = result {
            message.msg_control = control.as_mut_ptr().cast();
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
pub fn receive_result(report: &UnixStream) -> io::Result<Notifier> {
    report.set_nonblocking(true)?;
    let mut errno = libc::EIO.to_ne_bytes();
    let mut files = receive_files(report, &mut errno)?.1;
    match (i32::from_ne_bytes(errno), files.pop()) {
        (0, Some(fd)) => {
            // SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (Linux 6.6): the caller and we take turns on one processor. A kernel
            // that does not know it does without.
            // SAFETY: the request goes with an integer.
            unsafe { libc::ioctl(fd.as_raw_fd(), NOTIF_SET_FLAGS, 1u64) };
            Ok(Notifier::from(fd))
        }
        // The only file that comes: there was no room for it.
        (0, None) => Err(io::Error::from_raw_os_error(libc::EMFILE)),
        (errno, _) => Err(io::Error::from_raw_os_error(errno)),
    }
}
