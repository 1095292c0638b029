//! A place: what makes listening sockets one SO_REUSEPORT group of the kernel, and which places cannot coexist.
//! Pure.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One reuseport group of this network namespace. Sockets of other namespaces are never given a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Where the socket is bound.
    pub address: SocketAddr,
    /// Which packets a v6 socket takes.
    pub families: Families,
    /// Number of the interface that it is bound to (SO_BINDTODEVICE), or 0.
    pub device: u32,
    /// Whose socket it is: the kernel lets only sockets of one user share.
    pub uid: u32,
}

/// Which packets reach a socket (ipv6(7), IPV6_V6ONLY).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Families {
    /// Those of its own family.
    Own,
    /// A v6 socket that takes v4 too.
    Both,
}

impl Place {
    /// Whether the kernel refuses to let sockets at both places listen, unless they share (inet_rcv_saddr_equal of
    /// the kernel: whose they are does not matter to that).
    pub fn conflicts(&self, other: &Place) -> bool {
        let (a, b) = (self.address.ip(), other.address.ip());
        let wide = a.is_unspecified() || b.is_unspecified();
        let mixed = |v4: &Place, v6: &Place| {
            let (v4, mapped) = (v4.address.ip(), v6.address.ip().to_canonical());
            let meets = mapped.is_ipv4() && (v4 == mapped || v4.is_unspecified() || mapped.is_unspecified());
            v6.takes_v4() && (v6.address.ip().is_unspecified() || meets)
        };
        let ips = match (a.is_ipv4(), b.is_ipv4()) {
            (true, true) | (false, false) => wide || a == b,
            (true, false) => mixed(self, other),
            (false, true) => mixed(other, self),
        };
        let devices = self.device == 0 || other.device == 0 || self.device == other.device;
        self.address.port() == other.address.port() && devices && ips
    }

    /// Whether a socket here gets the connections to the other place when nobody is there.
    pub fn covers(&self, other: &Place) -> bool {
        let takes = self.address.is_ipv4() == other.address.is_ipv4() || self.takes_v4() && other.address.is_ipv4();
        let devices = self.device == 0 || self.device == other.device;
        takes && devices && self.address.ip().is_unspecified() && self.address.port() == other.address.port()
    }

    /// Where this machine reaches a socket here.
    pub fn reached_at(&self) -> SocketAddr {
        let to = |ip: IpAddr| SocketAddr::new(ip, self.address.port());
        match self.address.ip().to_canonical() {
            ip if !ip.is_unspecified() => {
                if ip.is_ipv4() {
                    to(ip)
                } else {
                    self.address
                }
            }
            _ if self.takes_v4() => to(Ipv4Addr::LOCALHOST.into()),
            _ => to(Ipv6Addr::LOCALHOST.into()),
        }
    }

    /// Whether a v4 packet can reach a socket here.
    pub fn takes_v4(&self) -> bool {
        self.address.is_ipv4() || self.families == Families::Both
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(address: &str, families: Families) -> Place {
        Place { address: address.parse().unwrap(), families, device: 0, uid: 0 }
    }

    #[test]
    fn what_the_kernel_lets_coexist_is_no_conflict() {
        use Families::*;
        let conflicts = |a: &str, fa, b: &str, fb| {
            let (a, b) = (place(a, fa), place(b, fb));
            assert_eq!(a.conflicts(&b), b.conflicts(&a));
            a.conflicts(&b)
        };
        assert!(conflicts("0.0.0.0:80", Own, "127.0.0.1:80", Own));
        assert!(conflicts("[::]:80", Both, "0.0.0.0:80", Own));
        assert!(conflicts("[::]:80", Both, "127.0.0.1:80", Own));
        assert!(conflicts("[::]:80", Own, "[::1]:80", Own));
        assert!(conflicts("[::ffff:127.0.0.1]:80", Both, "127.0.0.1:80", Own));
        assert!(!conflicts("[::]:80", Own, "0.0.0.0:80", Own));
        assert!(!conflicts("[::1]:80", Own, "127.0.0.1:80", Own));
        assert!(!conflicts("[::1]:80", Both, "127.0.0.1:80", Own));
        assert!(!conflicts("127.0.0.2:80", Own, "127.0.0.1:80", Own));
        assert!(!conflicts("127.0.0.1:81", Own, "127.0.0.1:80", Own));
        let at = |device| Place { device, ..place("0.0.0.0:80", Own) };
        assert!(at(1).conflicts(&at(0)) && at(1).conflicts(&at(1)) && !at(1).conflicts(&at(2)));
    }

    #[test]
    fn a_place_is_reached_where_it_takes_packets() {
        use Families::*;
        let reached = |at: &str, families| place(at, families).reached_at().to_string();
        assert_eq!(reached("0.0.0.0:80", Own), "127.0.0.1:80");
        assert_eq!(reached("[::]:80", Both), "127.0.0.1:80");
        assert_eq!(reached("[::]:80", Own), "[::1]:80");
        assert_eq!(reached("127.0.0.2:80", Own), "127.0.0.2:80");
        assert_eq!(reached("[::ffff:127.0.0.2]:80", Both), "127.0.0.2:80");
        assert_eq!(reached("[fe80::1%2]:80", Own), "[fe80::1%2]:80");
    }

    /// The rules above are the kernel's: every pair is tried.
    #[test]
    fn the_kernel_agrees_which_places_conflict() {
        use crate::sys::steer::Socket;
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};
        use std::os::fd::AsRawFd;
        let open = |address: SocketAddr, families: Families| {
            let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            if address.is_ipv6() {
                setsockopt(&fd, sockopt::Ipv6V6Only, &(families == Families::Own)).unwrap();
            }
            bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).ok()?;
            let socket = Socket::new(fd);
            socket.listen(1).ok().map(|()| socket)
        };
        let hosts = ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1"];
        for (a, fa) in hosts.iter().flat_map(|a| [(a, Families::Own), (a, Families::Both)]) {
            for (b, fb) in hosts.iter().flat_map(|b| [(b, Families::Own), (b, Families::Both)]) {
                let agrees = || {
                    let Some(first) = open(SocketAddr::new(a.parse().unwrap(), 0), fa) else { return true };
                    let one = first.place().unwrap();
                    let at = SocketAddr::new(b.parse().unwrap(), one.address.port());
                    let families = if at.is_ipv4() { Families::Own } else { fb };
                    let other = Place { address: at, families, ..one };
                    open(at, fb).is_none() == one.conflicts(&other)
                };
                // Somebody else may have the port at the other address.
                assert!((0..20).any(|_| agrees()), "{a} {fa:?}, {b} {fb:?}");
            }
        }
    }
}
