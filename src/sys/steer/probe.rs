//! A private connection to one socket of a group, which shows that the group is steered as intended.

#![forbid(unsafe_code)]

use crate::sys::tcp::{Ends, socket_address};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockname, socket};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// A private connection to one socket of a group. Its source is nobody else's: a loopback address of its own (v4) or the
/// target's address (v6), and a port that is bound here.
#[derive(Debug)]
pub struct Probe {
    stream: OwnedFd,
    source: SocketAddr,
    target: SocketAddr,
}

impl Probe {
    /// Prepares a probe of the listener at `target`; `dual` if that takes v4 as well as v6. Nothing is sent yet.
    pub fn new(target: SocketAddr, dual: bool) -> io::Result<Probe> {
        // 127.77.x.y reaches every local v4 address, and a v6 socket that takes v4 too.
        let v4 = SocketAddr::from((probe_source(), 0));
        // To itself: there may be another server at 127.0.0.1 alone.
        let itself = SocketAddr::from((probe_source(), target.port()));
        // A socket at a mapped address gets v4 packets.
        let target = match target.ip().to_canonical() {
            IpAddr::V4(ip) => SocketAddr::from((ip, target.port())),
            IpAddr::V6(_) => target,
        };
        match target {
            SocketAddr::V4(at) if at.ip().is_unspecified() => Probe::between(v4, itself),
            SocketAddr::V4(_) => Probe::between(v4, target),
            SocketAddr::V6(at) if at.ip().is_unspecified() => {
                let to = SocketAddr::from((Ipv6Addr::LOCALHOST, target.port()));
                let probe = Probe::between(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), to);
                // A container may have v6 sockets and no v6 address.
                probe.or_else(|e| if dual { Probe::between(v4, itself) } else { Err(e) })
            }
            SocketAddr::V6(at) => Probe::between(SocketAddrV6::new(*at.ip(), 0, 0, at.scope_id()).into(), target),
        }
    }

    fn between(source: SocketAddr, target: SocketAddr) -> io::Result<Probe> {
        let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let stream = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        bind(stream.as_raw_fd(), &SockaddrStorage::from(source))?;
        let bound: SockaddrStorage = getsockname(stream.as_raw_fd())?;
        let source = socket_address(&bound)?;
        Ok(Probe { stream, source, target })
    }

    /// Where the connection comes from.
    pub(super) fn source(&self) -> SocketAddr {
        self.source
    }

    /// The ends of the connection as its server has them.
    pub fn ends(&self) -> Ends {
        // A connection to the unspecified address is a connection to this machine (ip(7)).
        Ends { local: self.target, peer: self.source, interface: 0 }
    }

    /// Opens the connection, which the kernel finishes by itself on this machine.
    pub fn connect(&self) -> io::Result<()> {
        match connect(self.stream.as_raw_fd(), &SockaddrStorage::from(self.target)) {
            Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until the connection stands, for as long as one on this machine may take, and gives it away.
    pub fn into_stream(self, within: Duration) -> io::Result<TcpStream> {
        let mut stands = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
        let within = PollTimeout::try_from(within).unwrap_or(PollTimeout::ZERO);
        while poll(&mut stands, within) == Err(nix::errno::Errno::EINTR) {}
        if !self.connected()? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let stream = TcpStream::from(self.stream);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// Whether the connection stands, or has failed.
    pub fn connected(&self) -> io::Result<bool> {
        match nix::sys::socket::getpeername::<SockaddrStorage>(self.stream.as_raw_fd()) {
            Ok(_) => Ok(true),
            Err(nix::errno::Errno::ENOTCONN) => {
                match nix::sys::socket::getsockopt(&self.stream, nix::sys::socket::sockopt::SocketError)? {
                    0 => Ok(false),
                    errno => Err(io::Error::from_raw_os_error(errno)),
                }
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A loopback address that only the probes of this process use.
fn probe_source() -> Ipv4Addr {
    let pid = std::process::id();
    Ipv4Addr::new(127, 77, (pid >> 8) as u8, (pid as u8).max(1))
}
