//! How the child sends its supervisor the notifier of its filter, or the errno.

use super::notifier::Notifier;
use nix::libc;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Space for one control message with one fd, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 32]);

/// Sends the errno (0 for none) as four bytes, with the fd as ancillary data. nix's `sendmsg` allocates, and this must
/// not.
pub(super) fn send_result(report: RawFd, result: Result<RawFd, i32>) {
    let mut errno = result.err().unwrap_or(0);
    let mut control = Control([0; 32]);
    // SAFETY: all pointers are to locals that live through the call; the buffer has room for one header
    // and one fd (CMSG_SPACE(4) is 24).
    unsafe {
        let mut part = libc::iovec { iov_base: (&raw mut errno).cast(), iov_len: size_of::<i32>() };
        let mut message: libc::msghdr = zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        if let Ok(fd) = result {
            message.msg_control = (&raw mut control).cast();
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
pub fn receive_result(report: &std::os::unix::net::UnixStream) -> io::Result<Notifier> {
    let mut errno: i32 = libc::EIO;
    let mut control = Control([0; 32]);
    // SAFETY: all pointers are to locals that live through the call; a received fd is owned at once.
    unsafe {
        let mut part = libc::iovec { iov_base: (&raw mut errno).cast(), iov_len: size_of::<i32>() };
        let mut message: libc::msghdr = zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<Control>() as _;
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        if libc::recvmsg(report.as_raw_fd(), &raw mut message, flags) < 0 {
            return Err(io::Error::last_os_error());
        }
        if message.msg_flags & libc::MSG_CTRUNC != 0 {
            // The only file that comes: there was no room for it.
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if errno == 0 && !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
            let fd = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
            // SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (Linux 6.6): the caller and we take turns on one processor. A kernel
            // that does not know it does without.
            libc::ioctl(fd, NOTIF_SET_FLAGS, 1u64);
            return Ok(Notifier::from(OwnedFd::from_raw_fd(fd)));
        }
    }
    Err(io::Error::from_raw_os_error(errno))
}
