//! Sockets of this network namespace: who listens, which connections there are, which UDP sockets are bound.

#![forbid(unsafe_code)]

pub use super::diag::{Diag, listens_at};
pub use super::namespace::cookie as namespace;
pub use super::table::find as find_in_table;
pub use super::tcp::{Ends, Moved, TcpSocket};

use super::copy::passed_sockets;
use super::diag;
use super::table;
use super::tcp::{TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV};
use crate::address::Address;
use crate::place::Place;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

const FAMILIES: [i32; 2] = [nix::libc::AF_INET, nix::libc::AF_INET6];

/// Sockets that listen, by their ports.
#[derive(Debug, Default)]
pub struct Listeners(BTreeMap<u16, Vec<TcpSocket>>);

impl Listeners {
    /// The sockets that collide with an address.
    pub fn at(&self, address: &Address) -> impl Iterator<Item = &TcpSocket> {
        let port = if let Address::Tcp(_, port) = address { *port } else { 0 };
        self.0.get(&port).into_iter().flatten().filter(|s| s.local.collides(address))
    }

    /// The sockets of one place.
    pub fn at_place<'a>(&'a self, place: &'a Place) -> impl Iterator<Item = &'a TcpSocket> {
        self.0.get(&place.address.port()).into_iter().flatten().filter(move |s| s.place() == *place)
    }

    /// The sockets that collide with any of these addresses.
    pub fn at_any<'a>(&self, addresses: impl IntoIterator<Item = &'a Address>) -> Vec<TcpSocket> {
        let (mut found, mut known) = (Vec::new(), BTreeSet::new());
        for address in addresses {
            found.extend(self.at(address).filter(|s| known.insert(s.inode)).cloned());
        }
        found
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &TcpSocket> {
        self.0.values().flatten()
    }
}

/// Inodes of the sockets that a service manager has passed to this process. They listen whoever lives, all generations of
/// the server have them, and so they prove nothing of a server and are none of its addresses.
fn passed() -> &'static BTreeSet<u32> {
    static PASSED: OnceLock<BTreeSet<u32>> = OnceLock::new();
    PASSED.get_or_init(|| {
        let inode = |fd: u32| std::fs::metadata(format!("/proc/self/fd/{fd}")).map(|file| file.ino() as u32).ok();
        (3..3 + passed_sockets()).filter_map(inode).collect()
    })
}

fn all_listeners(port: u16) -> io::Result<Vec<TcpSocket>> {
    match Diag::kept() {
        Ok(diag) => {
            let found = diag.dump(1 << TCP_LISTEN, port)?;
            diag.keep();
            Ok(found)
        }
        Err(e) if is_forbidden(&e) => table::listeners(port),
        Err(e) => Err(e),
    }
}

/// The listeners that a service manager has passed to this process.
pub fn passed_listeners() -> io::Result<Vec<TcpSocket>> {
    let passed = passed();
    let all = if passed.is_empty() { Vec::new() } else { all_listeners(0)? };
    Ok(all.into_iter().filter(|socket| passed.contains(&socket.inode)).collect())
}

/// One connection; `None` if it is gone.
pub fn find(ends: Ends) -> io::Result<Option<TcpSocket>> {
    match Diag::kept() {
        Ok(diag) => {
            let found = diag.find(ends);
            diag.keep();
            found
        }
        Err(_) => find_in_table(ends),
    }
}

/// Sockets that listen, but for those that a service manager has passed to this process.
pub fn listeners() -> io::Result<Listeners> {
    listeners_at(0)
}

/// Sockets that listen on a port, or on any port if it is 0. If there are a thousand, one port costs far less than all.
pub fn listeners_at(port: u16) -> io::Result<Listeners> {
    let found = all_listeners(port)?;
    let mut by_port = BTreeMap::<u16, Vec<TcpSocket>>::new();
    let passed = passed();
    for socket in found.into_iter().filter(|socket| !passed.contains(&socket.inode)) {
        by_port.entry(socket.ends.local.port()).or_default().push(socket);
    }
    Ok(Listeners(by_port))
}

/// Whether the kernel answers questions about sockets, as a swap on a shared port needs it.
pub fn can_be_asked() -> io::Result<()> {
    match Diag::open() {
        Err(e) if is_forbidden(&e) => Err(e),
        // What is lacking now may be there later.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether netlink is not allowed (by a service manager or a container profile) or not there.
fn is_forbidden(e: &io::Error) -> bool {
    use nix::libc::{EACCES, EAFNOSUPPORT, EPERM, EPROTONOSUPPORT};
    matches!(e.raw_os_error(), Some(EACCES | EAFNOSUPPORT | EPERM | EPROTONOSUPPORT))
}

/// Connections that are established, or that only the client has closed.
pub fn connections() -> io::Result<Vec<TcpSocket>> {
    Diag::open()?.dump(1 << TCP_ESTABLISHED | 1 << TCP_CLOSE_WAIT, 0)
}

/// Handshakes that are under way. A dump costs milliseconds: do not poll with it.
pub fn handshakes() -> io::Result<Vec<TcpSocket>> {
    Diag::open()?.dump(1 << TCP_SYN_RECV, 0)
}

/// Inodes of the UDP sockets that are bound where a socket at this address would meet them, with their users (udp(7)).
/// `wide`: the socket takes packets of both families.
pub fn datagrams_at(address: SocketAddr, wide: bool) -> io::Result<Vec<(u32, u32)>> {
    let families = if wide || address.is_ipv4() { &FAMILIES[..] } else { &FAMILIES[1..] };
    let sockets = diag::datagrams(families, address.port())?;
    // Connected sockets too, which a lookup would not name: a socket that is bound to one address is in the way of all.
    let meets = |ip: IpAddr| ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
    let met = sockets.into_iter().filter(|socket| meets(socket.ends.local.ip()));
    Ok(met.map(|socket| (socket.inode, socket.uid)).collect())
}

/// Inodes of all UDP sockets that are bound.
pub fn datagrams() -> io::Result<BTreeSet<u32>> {
    Ok(diag::datagrams(&FAMILIES, 0)?.into_iter().map(|socket| socket.inode).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_listener_is_seen_until_it_closes() {
        for bind in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0", "[::1]:0"] {
            let listener = TcpListener::bind(bind).unwrap();
            let own = Address::parse(&listener.local_addr().unwrap().to_string()).unwrap();
            let seen = || listeners().unwrap().all().filter(|s| s.local == own).count();
            assert_eq!(seen(), 1, "{own}");
            drop(listener);
            assert_eq!(seen(), 0, "{own}");
        }
    }

    #[test]
    fn the_listeners_of_a_port_are_those_of_all_that_are_there() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let second = TcpListener::bind(("127.0.0.2", port)).unwrap();
        let own = |listener: &TcpListener| Address::from(listener.local_addr().unwrap());
        let inodes = [&first, &second].map(|listener| nix::sys::stat::fstat(listener).unwrap().st_ino as u32);
        // A stranger may have the same port at another address.
        let ours = |s: &&TcpSocket| inodes.contains(&s.inode);
        for seen in [listeners().unwrap(), listeners_at(port).unwrap()] {
            assert_eq!(seen.at(&own(&first)).count(), 1);
            assert_eq!(seen.at(&own(&second)).count(), 1);
            assert_eq!(seen.at(&Address::Tcp(None, port)).filter(ours).count(), 2);
            let any = seen.at_any([&own(&first), &Address::Tcp(None, port)]);
            assert_eq!(any.iter().filter(ours).count(), 2);
        }
        assert!(listeners_at(port).unwrap().all().all(|s| s.ends.local.port() == port));
    }

    #[test]
    fn a_connection_is_counted_at_its_server() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = Address::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(connections().unwrap().iter().filter(|s| s.local == own).count(), 1);
    }
}
