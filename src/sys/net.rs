//! TCP sockets of this network namespace, asked from the kernel by `sock_diag` (sock_diag(7)):
//! `/proc/net/tcp` takes seconds where there are many connections.

use crate::address::Address;
use crate::place::{Families, Place};
use crate::sys::table;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its local address, as people name it.
    pub local: Address,
    /// Its local address and port, and its peer's, as the kernel has them.
    pub ends: Ends,
    /// Its inode, by which `/proc/PID/fd` names it; 0 while it waits in an accept queue.
    pub inode: u32,
    /// Who made it.
    pub uid: u32,
    /// Its state (linux/tcp_states.h).
    pub state: u8,
    /// Bytes that its process has not read yet (of a listener: connections to accept).
    pub unread: u32,
    /// Bytes that its peer has not acknowledged yet (of a listener: how many connections may wait).
    pub unacknowledged: u32,
    /// Of a v6 listener: whether it takes v4 packets too.
    pub families: Families,
    /// What moved on it; `None` if the kernel does not tell.
    pub moved: Option<Moved>,
}

/// The two ends of a connection: what an exact query asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Number of the interface that the socket is bound to (SO_BINDTODEVICE), or 0.
    pub interface: u32,
}

/// What moved on a connection, and how long ago (TCP_INFO).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Milliseconds since this end last sent data; since the connection was made, if it never did.
    pub sent: u32,
    /// Milliseconds since it last received some, in the same way.
    pub received: u32,
    /// Bytes that it has sent.
    pub bytes_sent: u64,
    /// Bytes that it has received.
    pub bytes_received: u64,
}

impl Moved {
    /// Whether the last byte was certainly the peer's. The clock of the times ticks every few milliseconds: in a tie the
    /// answer may have come before the question or after it, and counts as the last, but for a peer that was never
    /// sent anything.
    fn is_peers_last(&self) -> bool {
        self.bytes_received > 0 && (self.bytes_sent == 0 || self.received < self.sent)
    }

    /// How long nothing has moved.
    fn rested(&self) -> Duration {
        Duration::from_millis(self.sent.min(self.received).into())
    }
}

impl TcpSocket {
    /// The place of a listener.
    pub fn place(&self) -> Place {
        Place { address: self.ends.local, families: self.families, device: self.ends.interface, uid: self.uid }
    }

    /// Whether the server may owe this connection something: data is under way, or the last byte was the client's, or
    /// something has moved within the time `rest`. What was sent last may be no answer (a TLS ticket, a frame of another
    /// HTTP/2 stream), and an answer that is streamed pauses. In doubt it is busy. A side that the server has
    /// closed needs it no more.
    pub fn is_busy(&self, rest: Duration) -> bool {
        if !self.is_open() {
            return false;
        }
        let Some(moved) = self.moved else { return true };
        // The end of what the client sends counts as a byte.
        let unread = self.unread > u32::from(self.state == TCP_CLOSE_WAIT);
        unread || self.unacknowledged > 0 || moved.is_peers_last() || moved.rested() < rest
    }

    /// Whether the server has not closed it.
    pub fn is_open(&self) -> bool {
        matches!(self.state, TCP_ESTABLISHED | TCP_CLOSE_WAIT)
    }

    /// Whether the client has closed it, for its direction at least.
    pub fn is_closed_by_peer(&self) -> bool {
        self.state == TCP_CLOSE_WAIT
    }

    /// Whether it is a connection that its server has not accepted: it belongs to no file.
    pub fn is_unaccepted(&self) -> bool {
        let waits = matches!(self.state, TCP_ESTABLISHED | TCP_CLOSE_WAIT) && self.inode == 0;
        waits || self.is_handshake()
    }

    /// Whether no connection more fits into the queue of a listener (`sk_acceptq_is_full` of the kernel).
    pub fn is_full(&self) -> bool {
        self.unread > self.unacknowledged
    }

    /// Whether its handshake is not finished.
    pub fn is_handshake(&self) -> bool {
        matches!(self.state, TCP_SYN_RECV | TCP_NEW_SYN_RECV)
    }
}

/// Sockets that listen, by their ports.
#[derive(Debug, Default)]
pub struct Listeners(BTreeMap<u16, Vec<TcpSocket>>);

impl Listeners {
    /// Those that collide with an address.
    pub fn at(&self, address: &Address) -> impl Iterator<Item = &TcpSocket> {
        let port = if let Address::Tcp(_, port) = address { *port } else { 0 };
        self.0.get(&port).into_iter().flatten().filter(|s| s.local.collides(address))
    }

    /// Those of one place.
    pub fn at_place<'a>(&'a self, place: &'a Place) -> impl Iterator<Item = &'a TcpSocket> {
        self.0.get(&place.address.port()).into_iter().flatten().filter(move |s| s.place() == *place)
    }

    /// Those that collide with any of some addresses.
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

/// Sockets that listen.
pub fn listeners() -> io::Result<Listeners> {
    listeners_at(0)
}

/// Sockets that listen on a port, which costs far less than all of them where there are a thousand.
pub fn listeners_at(port: u16) -> io::Result<Listeners> {
    let found = match Diag::kept() {
        Ok(diag) => {
            let found = diag.dump(1 << TCP_LISTEN, port)?;
            diag.keep();
            found
        }
        Err(e) if is_forbidden(&e) => table::listeners(port)?,
        Err(e) => return Err(e),
    };
    let mut by_port = BTreeMap::<u16, Vec<TcpSocket>>::new();
    for socket in found {
        by_port.entry(socket.ends.local.port()).or_default().push(socket);
    }
    Ok(Listeners(by_port))
}

/// Whether the kernel answers questions about sockets, as a swap on a shared port needs it.
pub fn can_be_asked() -> io::Result<()> {
    match Diag::open() {
        Err(e) if is_forbidden(&e) => Err(e),
        // What is lacking now may be had later.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// A service manager or a container profile may allow no netlink, and a kernel may have none.
fn is_forbidden(e: &io::Error) -> bool {
    use nix::libc::{EACCES, EAFNOSUPPORT, EPERM, EPROTONOSUPPORT};
    matches!(e.raw_os_error(), Some(EACCES | EAFNOSUPPORT | EPERM | EPROTONOSUPPORT))
}

/// One connection, where netlink is not allowed. `None`: it is gone.
pub fn find_in_table(ends: Ends) -> io::Result<Option<TcpSocket>> {
    table::find(ends)
}

/// Connections that a server has: established, or closed by the client only.
pub fn connections() -> io::Result<Vec<TcpSocket>> {
    Diag::open()?.dump(1 << TCP_ESTABLISHED | 1 << TCP_CLOSE_WAIT, 0)
}

/// Inodes of the UDP sockets that are bound where a socket at this address would meet them, and whose they are
/// (udp(7)). `wide`: it takes packets of both families.
pub fn datagrams_at(address: SocketAddr, wide: bool) -> io::Result<Vec<(u32, u32)>> {
    let diag = Diag::kept()?;
    let mut sockets = Vec::new();
    for family in families(if wide || address.is_ipv4() { None } else { Some(false) }) {
        let mut question = request(family, nix::libc::NLM_F_DUMP, u32::MAX);
        question[17] = nix::libc::IPPROTO_UDP as u8;
        question[24..26].copy_from_slice(&address.port().to_be_bytes());
        diag.ask_family(family, &question, &mut sockets)?;
    }
    // Connected ones too, which a lookup would not name: whoever is bound to one address is in the way of all of them.
    let meets = |ip: IpAddr| ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
    sockets.retain(|socket| meets(socket.ends.local.ip()));
    diag.keep();
    Ok(sockets.into_iter().map(|socket| (socket.inode, socket.uid)).collect())
}

/// Whether somebody listens who would get a connection to this address: one lookup.
pub fn listens_at(address: SocketAddr) -> io::Result<bool> {
    let diag = Diag::kept()?;
    let mut question = request(family_of(address), 0, 1 << TCP_LISTEN);
    question[24..26].copy_from_slice(&address.port().to_be_bytes());
    put_ip(&mut question, 28, address.ip());
    let found = diag.find_one(&mut question)?;
    diag.keep();
    Ok(found.is_some())
}

/// Names the network namespace of this process (SO_NETNS_COOKIE, Linux 5.14).
pub fn namespace() -> io::Result<u64> {
    let any = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    super::steer::Socket::new(any).namespace()
}

/// Inodes of all UDP sockets that are bound.
pub fn datagrams() -> io::Result<BTreeSet<u32>> {
    let (diag, mut sockets) = (Diag::kept()?, Vec::new());
    for family in families(None) {
        let mut question = request(family, nix::libc::NLM_F_DUMP, u32::MAX);
        question[17] = nix::libc::IPPROTO_UDP as u8;
        diag.ask_family(family, &question, &mut sockets)?;
    }
    diag.keep();
    Ok(sockets.into_iter().map(|socket| socket.inode).collect())
}

/// Both families, or one.
fn families(is_v4: Option<bool>) -> impl Iterator<Item = i32> {
    let all = [(nix::libc::AF_INET, true), (nix::libc::AF_INET6, false)];
    all.into_iter().filter(move |(_, v4)| is_v4.is_none_or(|wanted| wanted == *v4)).map(|(family, _)| family)
}

/// Handshakes that are under way. A dump costs milliseconds: for once, not for polling.
pub fn handshakes() -> io::Result<Vec<TcpSocket>> {
    Diag::open()?.dump(1 << TCP_SYN_RECV, 0)
}

/// States of linux/tcp_states.h.
const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_RECV: u8 = 3;
const TCP_CLOSE_WAIT: u8 = 8;
pub(super) const TCP_LISTEN: u8 = 10;
const TCP_NEW_SYN_RECV: u8 = 12;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The attribute that holds `tcp_info` (linux/inet_diag.h), and the bit that asks for it.
const INET_DIAG_INFO: u16 = 2;
/// The attribute that says IPV6_V6ONLY of a v6 listener.
const INET_DIAG_SKV6ONLY: u16 = 11;
/// nlmsghdr (16 bytes) and inet_diag_req_v2 (56).
const REQUEST_LEN: usize = 72;
/// The fixed part of inet_diag_msg.
const ANSWER_LEN: usize = 72;

/// A netlink socket for questions about sockets.
#[derive(Debug)]
pub struct Diag(OwnedFd);

/// One is kept: who has run out of files may have to find out who listens before it can let go of any.
static KEPT: Mutex<Option<Diag>> = Mutex::new(None);

impl Diag {
    /// The one that is kept, or, where another thread has it, a new one.
    fn kept() -> io::Result<Diag> {
        let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.map_or_else(Diag::open, Ok)
    }

    /// Keeps it, and no other.
    fn keep(self) {
        *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(self);
    }

    /// Opens it.
    pub fn open() -> io::Result<Diag> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Diag(fd))
    }

    /// All sockets in some states (bits of 1 << state), on a port of this side if it is not 0.
    fn dump(&self, states: u32, port: u16) -> io::Result<Vec<TcpSocket>> {
        let mut sockets = Vec::new();
        for family in families(None) {
            let mut question = request(family, nix::libc::NLM_F_DUMP, states);
            question[24..26].copy_from_slice(&port.to_be_bytes());
            self.ask_family(family, &question, &mut sockets)?;
        }
        Ok(sockets)
    }

    fn ask_family(&self, family: i32, question: &[u8], sockets: &mut Vec<TcpSocket>) -> io::Result<()> {
        match self.ask(question, sockets) {
            // A kernel without IPv6.
            Err(e) if family == nix::libc::AF_INET6 && e.raw_os_error() == Some(nix::libc::ENOENT) => Ok(()),
            asked => asked,
        }
    }

    /// One connection, by a lookup that costs microseconds. `None`: it is gone.
    pub fn find(&self, ends: Ends) -> io::Result<Option<TcpSocket>> {
        let mut question = request(family_of(ends.local), 0, u32::MAX);
        question[24..26].copy_from_slice(&ends.local.port().to_be_bytes());
        question[26..28].copy_from_slice(&ends.peer.port().to_be_bytes());
        put_ip(&mut question, 28, ends.local.ip());
        put_ip(&mut question, 44, ends.peer.ip());
        question[60..64].copy_from_slice(&ends.interface.to_ne_bytes());
        // Where there is no such connection the kernel names the listener that would take it.
        Ok(self.find_one(&mut question)?.filter(|s| s.state != TCP_LISTEN))
    }

    fn find_one(&self, question: &mut [u8; REQUEST_LEN]) -> io::Result<Option<TcpSocket>> {
        // INET_DIAG_NOCOOKIE: whichever socket it is.
        question[64..72].fill(0xff);
        let mut sockets = Vec::new();
        match self.ask(&question[..], &mut sockets) {
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => Ok(None),
            asked => asked.map(|()| sockets.pop()),
        }
    }

    fn ask(&self, question: &[u8], sockets: &mut Vec<TcpSocket>) -> io::Result<()> {
        let fd = self.0.as_raw_fd();
        sendto(fd, question, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut buffer = vec![0; 32 * 1024];
        let dump = question[6..8] != (nix::libc::NLM_F_REQUEST as u16).to_ne_bytes();
        loop {
            let len = receive(fd, &mut buffer)?;
            if read_answers(&buffer[..len], sockets)? || !dump {
                return Ok(());
            }
        }
    }
}

fn request(family: i32, flags: i32, states: u32) -> [u8; REQUEST_LEN] {
    let mut request = [0u8; REQUEST_LEN];
    request[0..4].copy_from_slice(&(REQUEST_LEN as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&((nix::libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    request[16] = family as u8;
    request[17] = nix::libc::IPPROTO_TCP as u8;
    request[18] = 1 << (INET_DIAG_INFO - 1);
    request[20..24].copy_from_slice(&states.to_ne_bytes());
    request
}

fn family_of(address: SocketAddr) -> i32 {
    if address.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 }
}

fn put_ip(question: &mut [u8; REQUEST_LEN], at: usize, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => question[at..at + 4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => question[at..at + 16].copy_from_slice(&ip.octets()),
    }
}

fn receive(fd: i32, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(fd, buffer, MsgFlags::empty()) {
            Err(nix::errno::Errno::EINTR) => {}
            received => return Ok(received?),
        }
    }
}

/// Reads the messages of one datagram; `true` at the end of the answer.
fn read_answers(mut data: &[u8], sockets: &mut Vec<TcpSocket>) -> io::Result<bool> {
    while data.len() >= 16 {
        let len = u32_at(data, 0) as usize;
        let kind = u16::from_ne_bytes([data[4], data[5]]);
        if len < 16 || len > data.len() {
            return Err(io::Error::other("sock_diag: a message of impossible length"));
        }
        match i32::from(kind) {
            // A dump ends with its errno too: that of a kernel which does not know what it was asked for, say.
            nix::libc::NLMSG_DONE | nix::libc::NLMSG_ERROR if len >= 20 => {
                let errno = i32::from_ne_bytes([data[16], data[17], data[18], data[19]]);
                return if errno < 0 { Err(io::Error::from_raw_os_error(-errno)) } else { Ok(true) };
            }
            nix::libc::NLMSG_DONE => return Ok(true),
            _ if len >= 16 + ANSWER_LEN => sockets.push(socket_of(&data[16..len])),
            _ => {}
        }
        data = &data[data.len().min(len.next_multiple_of(4))..];
    }
    Ok(false)
}

fn socket_of(message: &[u8]) -> TcpSocket {
    let interface = u32_at(message, 40);
    let end = |port_at: usize, ip_at: usize| {
        let port = u16::from_be_bytes([message[port_at], message[port_at + 1]]);
        let bytes = &message[ip_at..ip_at + 16];
        let ip = if i32::from(message[0]) == nix::libc::AF_INET {
            IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
        } else {
            IpAddr::V6(Ipv6Addr::from(u128::from_be_bytes(bytes.try_into().unwrap_or_default())))
        };
        match ip {
            // Its name is complete only with the interface.
            IpAddr::V6(ip) if ip.is_unicast_link_local() => SocketAddrV6::new(ip, port, 0, interface).into(),
            ip => SocketAddr::new(ip, port),
        }
    };
    let ends = Ends { local: end(4, 8), peer: end(6, 24), interface };
    let attributes = &message[ANSWER_LEN..];
    let only_v6 = attribute(attributes, INET_DIAG_SKV6ONLY).is_none_or(|only| only.first() != Some(&0));
    TcpSocket {
        local: Address::from(ends.local),
        families: if only_v6 { Families::Own } else { Families::Both },
        ends,
        state: message[1],
        unread: u32_at(message, 56),
        unacknowledged: u32_at(message, 60),
        uid: u32_at(message, 64),
        inode: u32_at(message, 68),
        moved: attribute(attributes, INET_DIAG_INFO).and_then(moved),
    }
}

/// Finds an attribute of a message.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while attributes.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
        let value = attributes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = &attributes[attributes.len().min(len.next_multiple_of(4))..];
    }
    None
}

/// tcpi_last_data_sent, tcpi_last_data_recv, tcpi_bytes_sent and tcpi_bytes_received of a `tcp_info` (linux/tcp.h).
fn moved(info: &[u8]) -> Option<Moved> {
    (info.len() >= 208).then(|| Moved {
        sent: u32_at(info, 44),
        received: u32_at(info, 52),
        bytes_sent: u64_at(info, 200),
        bytes_received: u64_at(info, 128),
    })
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}

fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(std::array::from_fn(|i| data[at + i]))
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
        for seen in [listeners().unwrap(), listeners_at(port).unwrap()] {
            assert_eq!(seen.at(&own(&first)).count(), 1);
            assert_eq!(seen.at(&own(&second)).count(), 1);
            assert_eq!(seen.at(&Address::Tcp(None, port)).count(), 2);
            assert_eq!(seen.at_any([&own(&first), &Address::Tcp(None, port)]).len(), 2);
        }
        assert!(listeners_at(port).unwrap().all().all(|s| s.ends.local.port() == port));
    }

    #[test]
    fn an_answer_that_ends_with_an_error_is_none() {
        let end = |kind: i32, errno: i32| {
            let mut message = [0u8; 20];
            message[0] = 20;
            message[4] = kind as u8;
            message[16..].copy_from_slice(&errno.to_ne_bytes());
            read_answers(&message, &mut Vec::new()).map_err(|e| e.raw_os_error())
        };
        for kind in [nix::libc::NLMSG_DONE, nix::libc::NLMSG_ERROR] {
            assert_eq!(end(kind, -nix::libc::ENOENT), Err(Some(nix::libc::ENOENT)));
            assert_eq!(end(kind, 0), Ok(true));
        }
    }

    #[test]
    fn a_connection_is_counted_at_its_server() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = Address::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(connections().unwrap().iter().filter(|s| s.local == own).count(), 1);
    }

    #[test]
    fn an_exact_query_tells_busy_from_idle() {
        use std::io::{Read, Write};
        let rest = Duration::from_millis(300);
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(bind).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, peer) = listener.accept().unwrap();
            let ends = Ends { local: server.local_addr().unwrap(), peer, interface: 0 };
            let diag = Diag::open().unwrap();
            let find = || diag.find(ends).unwrap();
            let moved = || find().unwrap().moved.unwrap();
            let is_busy = |rest| find().unwrap().is_busy(rest);
            // Nothing has ever moved.
            while moved().rested() < rest {}
            assert!(!is_busy(rest) && is_busy(Duration::from_secs(60)));
            client.write_all(b"question").unwrap();
            while find().unwrap().unread != 8 {}
            assert!(is_busy(Duration::ZERO));
            server.read_exact(&mut [0; 8]).unwrap();
            while moved().received < 20 {}
            assert!(is_busy(Duration::ZERO));
            server.write_all(b"answer").unwrap();
            assert!(is_busy(rest));
            let until_idle = || {
                let started = std::time::Instant::now();
                while is_busy(rest) && started.elapsed().as_secs() < 30 {}
                assert!(!is_busy(rest));
            };
            until_idle();
            // Later than the last answer, whatever the clock has ticked meanwhile.
            client.write_all(b"?").unwrap();
            server.read_exact(&mut [0; 1]).unwrap();
            assert!(is_busy(Duration::ZERO));
            server.write_all(b"!").unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            while !find().unwrap().is_closed_by_peer() {}
            until_idle();
            drop(server);
            // What another thread of the test forks has a copy until it executes its program.
            let closed = std::time::Instant::now();
            let is_busy = || find().is_some_and(|s| s.is_busy(Duration::from_secs(60)));
            while is_busy() && closed.elapsed().as_secs() < 30 {}
            assert!(!is_busy());
        }
    }

    /// Question, answer and acknowledgement within one tick, which an exact query cannot tell apart.
    #[test]
    fn a_connection_that_was_answered_at_once_is_idle_when_it_has_rested() {
        use std::io::{Read, Write};
        let rest = Duration::from_millis(50);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, peer) = listener.accept().unwrap();
        let ends = Ends { local: server.local_addr().unwrap(), peer, interface: 0 };
        let diag = Diag::open().unwrap();
        let find = || diag.find(ends).unwrap().unwrap();
        let mut ties = 0;
        while ties < 3 {
            client.write_all(b"?").unwrap();
            server.read_exact(&mut [0; 1]).unwrap();
            server.write_all(b"!").unwrap();
            client.read_exact(&mut [0; 1]).unwrap();
            let started = std::time::Instant::now();
            while find().is_busy(rest) && started.elapsed().as_secs() < 30 {}
            let moved = find().moved.unwrap();
            assert!(!find().is_busy(rest), "{moved:?}");
            ties += usize::from(moved.sent == moved.received);
        }
    }

    /// A connection of which the kernel says this: who sent something, and how many milliseconds ago.
    fn connection(sent: Option<u32>, received: Option<u32>, age: u32) -> TcpSocket {
        let ends = Ends { local: "127.0.0.1:1".parse().unwrap(), peer: "127.0.0.1:2".parse().unwrap(), interface: 0 };
        let bytes = |at: Option<u32>| u64::from(at.is_some());
        let moved = Moved {
            sent: sent.unwrap_or(age),
            received: received.unwrap_or(age),
            bytes_sent: bytes(sent),
            bytes_received: bytes(received),
        };
        TcpSocket {
            local: Address::from(ends.local),
            ends,
            inode: 1,
            uid: 0,
            state: TCP_ESTABLISHED,
            unread: 0,
            unacknowledged: 0,
            families: Families::Own,
            moved: Some(moved),
        }
    }

    /// Every order of the last question, the last answer, and the time that a connection has to rest.
    #[test]
    fn a_connection_is_idle_when_it_has_rested_unless_the_last_byte_was_the_clients_alone() {
        let rest = Duration::from_secs(5);
        // Around the rest, a tick of the clock apart.
        let ages = [0, 4, 996, 1000, 4992, 4996, 5000, 5004, 60_000];
        let moments = || ages.into_iter().map(Some).chain([None]);
        for (sent, received) in moments().flat_map(|sent| moments().map(move |received| (sent, received))) {
            for age in ages.into_iter().filter(|age| sent.max(received).is_none_or(|oldest| *age >= oldest)) {
                let last_is_clients = match (sent, received) {
                    (_, None) => false,
                    (None, Some(_)) => true,
                    (Some(sent), Some(received)) => received < sent,
                };
                let youngest = sent.into_iter().chain(received).min().unwrap_or(age);
                let busy = last_is_clients || youngest < 5000;
                let socket = connection(sent, received, age);
                assert_eq!(socket.is_busy(rest), busy, "{socket:?}");
            }
        }
    }

    #[test]
    fn data_under_way_is_busy_and_what_the_server_has_closed_is_not() {
        let rest = Duration::from_secs(1);
        let idle = connection(Some(2000), Some(2000), 2000);
        assert!(!idle.is_busy(rest));
        assert!(TcpSocket { unread: 1, ..idle.clone() }.is_busy(rest));
        assert!(TcpSocket { unacknowledged: 1, ..idle.clone() }.is_busy(rest));
        assert!(TcpSocket { moved: None, ..idle.clone() }.is_busy(rest));
        let half = |unread| TcpSocket { state: TCP_CLOSE_WAIT, unread, ..idle.clone() };
        assert!(!half(0).is_busy(rest) && !half(1).is_busy(rest) && half(2).is_busy(rest));
        for state in [TCP_SYN_RECV, TCP_LISTEN, TCP_NEW_SYN_RECV, 4, 5, 6, 7, 9, 11] {
            let closed = TcpSocket { state, unread: 1, unacknowledged: 1, moved: None, ..idle.clone() };
            assert!(!closed.is_busy(rest), "{state}");
        }
    }

    #[test]
    fn a_torn_answer_is_an_error_and_no_crash() {
        for len in 0..120usize {
            let mut data = vec![0u8; len];
            if len >= 4 {
                data[0] = 200;
            }
            let _ = read_answers(&data, &mut Vec::new());
        }
    }
}
