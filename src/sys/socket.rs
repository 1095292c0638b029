//! Unix sockets: who is at the other end, writes that never wait, and files that are passed (unix(7)).

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, connect, getsockopt, send,
    sendmsg, socket, sockopt,
};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Pid and effective uid of the other end, as the kernel noted them at connect(2) or listen(2) (SO_PEERCRED, unix(7)).
pub fn peer(stream: &UnixStream) -> io::Result<UnixCredentials> {
    Ok(getsockopt(stream, sockopt::PeerCredentials)?)
}

/// Connects to a socket of a user, wherever a link at this path leads. `patience`: how long that may take, and later a
/// write (SO_SNDTIMEO, socket(7)), since the process at the other end may be stopped.
pub fn connect_to(path: &Path, user: u32, patience: Option<Duration>) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(patience)?;
    let address = UnixAddr::new(path)?;
    loop {
        match connect(stream.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
            Err(errno) => return Err(errno.into()),
        }
    }
    match peer(&stream)?.uid() == user {
        true => Ok(stream),
        false => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user")),
    }
}

/// Sends what can be sent without waiting and without SIGPIPE. Returns how many bytes that were.
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

/// Most files in one message (SCM_MAX_FD of the kernel).
pub const FILES_MAX: usize = 253;

/// Sends bytes together with up to [`FILES_MAX`] files, if all of it goes without waiting.
pub fn send_files_now(stream: &UnixStream, bytes: &[u8], files: &[RawFd]) -> io::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let sent =
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &[ControlMessage::ScmRights(files)], flags, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Reads bytes, and the files that come with them: as many as this process may still have.
pub fn receive_files(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space: Vec<u8> = nix::cmsg_space!([RawFd; FILES_MAX]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut files = Vec::new();
    // If some files were cut off, nix returns none and leaves the others open for ever.
    // SAFETY: the message points to buffers that live and are as long as it says; recvmsg fills them with whole
    // headers, and the fds that they name were made for us, and nobody else has them.
    let len = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_control, message.msg_controllen) = (space.as_mut_ptr().cast(), space.capacity() as _);
        let len = libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
        if len < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let count = ((*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                let fds = libc::CMSG_DATA(header).cast::<RawFd>();
                files.extend((0..count).map(|at| OwnedFd::from_raw_fd(fds.add(at).read_unaligned())));
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        len as usize
    };
    Ok((len, files))
}

/// Bytes that the other end has not read yet (SIOCOUTQ, unix(7)).
pub fn unread(stream: &UnixStream) -> usize {
    let mut bytes: nix::libc::c_int = 0;
    // SAFETY: TIOCOUTQ (the same number as SIOCOUTQ) writes one int to the pointer, which is valid.
    let result = unsafe { nix::libc::ioctl(stream.as_raw_fd(), nix::libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}
