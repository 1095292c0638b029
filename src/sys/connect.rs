//! Connections from a chosen address.

use super::steer::Socket;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

/// Begins to connect to an address from one of this machine's, and does not wait: the stream is writable when it stands, or
/// has failed.
pub fn connect_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let (family, from) = match (from, to) {
        (IpAddr::V4(_), _) => (AddressFamily::Inet, SocketAddr::new(from, 0)),
        // A link-local address is complete only with its interface.
        (IpAddr::V6(ip), SocketAddr::V6(to)) => {
            (AddressFamily::Inet6, SocketAddrV6::new(ip, 0, 0, to.scope_id()).into())
        }
        (IpAddr::V6(_), SocketAddr::V4(_)) => (AddressFamily::Inet6, SocketAddr::new(from, 0)),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = Socket::new(socket(family, SockType::Stream, flags, None)?);
    // Ports are as scarce as for any other client, not as for a server (ip(7), Linux 4.2).
    let _ = socket.set_option(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32);
    let fd = OwnedFd::from(socket);
    bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd.into()),
        Err(errno) => Err(errno.into()),
    }
}
