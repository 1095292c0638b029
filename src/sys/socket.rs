//! Unix sockets: who is at the other end, and writes that never wait.

use nix::sys::socket::{MsgFlags, getsockopt, send, sockopt};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Effective uid of whoever connected, as the kernel noted it then (SO_PEERCRED, unix(7)).
pub fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(getsockopt(stream, sockopt::PeerCredentials)?.uid())
}

/// Sends what can be sent without waiting and without SIGPIPE, and gives how many bytes that were.
pub fn send_now(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match send(stream.as_raw_fd(), bytes, flags) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::EAGAIN) => return Ok(0),
            sent => return Ok(sent?),
        }
    }
}

/// Bytes that the other end has not read yet (SIOCOUTQ, unix(7)).
pub fn unread(stream: &UnixStream) -> usize {
    let mut bytes: nix::libc::c_int = 0;
    // SAFETY: TIOCOUTQ (the same number as SIOCOUTQ) writes one int to the pointer, which is valid.
    let result = unsafe { nix::libc::ioctl(stream.as_raw_fd(), nix::libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}
