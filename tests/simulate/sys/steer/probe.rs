//! A probe connection. It goes where the product's would go.

use crate::kernel::{self, Arrival, Packet, State};
use crate::sys::net::Ends;
use nix::errno::Errno;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

const LOOPBACK: u32 = 1;

#[derive(Debug)]
pub struct Probe {
    source: SocketAddr,
    target: SocketAddr,
}

impl Probe {
    pub fn new(target: SocketAddr, _dual: bool) -> io::Result<Probe> {
        let (own, port) = kernel::with(|k| (k.me, k.port()));
        let v4 = Ipv4Addr::new(127, 77, (own >> 8) as u8, (own as u8).max(1));
        let (source, to) = match target {
            SocketAddr::V4(at) if at.ip().is_unspecified() => (v4.into(), v4.into()),
            SocketAddr::V4(at) => (v4.into(), (*at.ip()).into()),
            SocketAddr::V6(at) if at.ip().is_unspecified() => (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
            SocketAddr::V6(at) => ((*at.ip()).into(), (*at.ip()).into()),
        };
        Ok(Probe { source: SocketAddr::new(source, port), target: SocketAddr::new(to, target.port()) })
    }

    pub(super) fn source(&self) -> SocketAddr {
        self.source
    }

    pub fn ends(&self) -> Ends {
        Ends { local: self.target, peer: self.source, interface: 0 }
    }

    pub fn connect(&self) -> io::Result<()> {
        let packet = Packet { source: self.source, target: self.target, device: LOOPBACK };
        match kernel::with(|k| k.arrive(packet, true)) {
            Arrival::Refused => Err(Errno::ECONNREFUSED.into()),
            Arrival::Dropped | Arrival::Begun(_) => Ok(()),
        }
    }

    pub fn connected(&self) -> io::Result<bool> {
        kernel::with(|k| match k.connections.values().find(|c| c.peer == self.source) {
            Some(c) if c.state == State::Reset => Err(Errno::ECONNRESET.into()),
            Some(_) => Ok(true),
            None => Ok(false),
        })
    }
}

impl Probe {
    /// Nobody previews anything there.
    pub fn into_stream(self, _within: Duration) -> io::Result<TcpStream> {
        Err(Errno::EOPNOTSUPP.into())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        kernel::try_with(|k| k.leave(self.source));
    }
}
