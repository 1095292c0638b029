//! TCP sockets of this network namespace, asked from the kernel by `sock_diag` (sock_diag(7)):
//! `/proc/net/tcp` takes seconds where there are many connections.

use crate::address::Address;
use crate::sys::table;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

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
    /// Bytes that its peer has not acknowledged yet.
    pub unacknowledged: u32,
    /// When it last sent data, received some, and received an acknowledgement.
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

/// How long ago data moved, in milliseconds (TCP_INFO).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Since the last data was sent.
    pub sent: u32,
    /// Since the last data was received.
    pub received: u32,
    /// Since the last acknowledgement was received; data brings one along.
    pub acknowledged: u32,
}

impl TcpSocket {
    /// Whether the server owes this connection something: data is under way, or the last byte was the
    /// client's, or something moved within a second (an answer that is streamed pauses). When in doubt,
    /// busy. A side that the server has closed needs it no more.
    ///
    /// The clock of these times ticks every few milliseconds, so a fast answer is as old as its question,
    /// or as a question that came right after it. Such a question would have been the last to arrive but
    /// for the acknowledgements of keep-alive probes, which take a second to begin. So if a bare
    /// acknowledgement came after that tick and within a second, it is that of the answer. Where the client
    /// is so near that it comes within the tick, the doubt stays.
    pub fn is_busy(&self) -> bool {
        if !matches!(self.state, TCP_ESTABLISHED | TCP_CLOSE_WAIT) {
            return false;
        }
        let Some(moved) = self.moved else { return true };
        let last_is_clients = match moved.received.cmp(&moved.sent) {
            Ordering::Less => true,
            Ordering::Equal => !ANSWER_ACKNOWLEDGED.contains(&moved.received.saturating_sub(moved.acknowledged)),
            Ordering::Greater => false,
        };
        let waits = self.unread > 0 || self.unacknowledged > 0 || last_is_clients;
        waits || moved.sent < 1000
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
    // One is kept: who has run out of files may have to find out who listens before it can let go of any.
    static KEPT: Mutex<Option<Diag>> = Mutex::new(None);
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).take();
    let found = match kept.map_or_else(Diag::open, Ok) {
        Ok(diag) => {
            let found = diag.dump(1 << TCP_LISTEN, port)?;
            *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(diag);
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

/// Connections that a server has: established, or closed by the client only.
pub fn connections() -> io::Result<Vec<TcpSocket>> {
    Diag::open()?.dump(1 << TCP_ESTABLISHED | 1 << TCP_CLOSE_WAIT, 0)
}

/// Handshakes that are under way. A dump costs milliseconds: for once, not for polling.
pub fn handshakes() -> io::Result<Vec<TcpSocket>> {
    Diag::open()?.dump(1 << TCP_SYN_RECV, 0)
}

/// Milliseconds from a question to the acknowledgement of its answer: more than a tick of the slowest clock
/// (100 Hz), less than the shortest time to a keep-alive probe.
const ANSWER_ACKNOWLEDGED: std::ops::Range<u32> = 11..1000;

/// States of linux/tcp_states.h.
const TCP_ESTABLISHED: u8 = 1;
const TCP_SYN_RECV: u8 = 3;
const TCP_CLOSE_WAIT: u8 = 8;
pub(super) const TCP_LISTEN: u8 = 10;
const TCP_NEW_SYN_RECV: u8 = 12;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The attribute that holds `tcp_info` (linux/inet_diag.h), and the bit that asks for it.
const INET_DIAG_INFO: u16 = 2;
/// nlmsghdr (16 bytes) and inet_diag_req_v2 (56).
const REQUEST_LEN: usize = 72;
/// The fixed part of inet_diag_msg.
const ANSWER_LEN: usize = 72;

/// A netlink socket for questions about sockets.
pub struct Diag(OwnedFd);

impl Diag {
    /// Opens it.
    pub fn open() -> io::Result<Diag> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Diag(fd))
    }

    /// All sockets in some states (bits of 1 << state), on a port of this side if it is not 0.
    fn dump(&self, states: u32, port: u16) -> io::Result<Vec<TcpSocket>> {
        let mut sockets = Vec::new();
        for family in [nix::libc::AF_INET, nix::libc::AF_INET6] {
            let mut question = request(family, nix::libc::NLM_F_DUMP, states);
            question[24..26].copy_from_slice(&port.to_be_bytes());
            match self.ask(&question, &mut sockets) {
                // A kernel without IPv6.
                Err(e) if family == nix::libc::AF_INET6 && e.raw_os_error() == Some(nix::libc::ENOENT) => {}
                asked => asked?,
            }
        }
        Ok(sockets)
    }

    /// One connection, by a lookup that costs microseconds. `None`: it is gone.
    pub fn find(&self, ends: Ends) -> io::Result<Option<TcpSocket>> {
        let family = if ends.local.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
        let mut question = request(family, 0, u32::MAX);
        question[24..26].copy_from_slice(&ends.local.port().to_be_bytes());
        question[26..28].copy_from_slice(&ends.peer.port().to_be_bytes());
        for (at, ip) in [(28, ends.local.ip()), (44, ends.peer.ip())] {
            match ip {
                IpAddr::V4(ip) => question[at..at + 4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => question[at..at + 16].copy_from_slice(&ip.octets()),
            }
        }
        question[60..64].copy_from_slice(&ends.interface.to_ne_bytes());
        // INET_DIAG_NOCOOKIE: whichever socket it is.
        question[64..72].fill(0xff);
        let mut sockets = Vec::new();
        match self.ask(&question, &mut sockets) {
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => {}
            asked => asked?,
        }
        // Where there is no such connection the kernel names the listener that would take it.
        Ok(sockets.into_iter().find(|s| s.state != TCP_LISTEN))
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
    TcpSocket {
        local: Address::from(ends.local),
        ends,
        state: message[1],
        unread: u32_at(message, 56),
        unacknowledged: u32_at(message, 60),
        uid: u32_at(message, 64),
        inode: u32_at(message, 68),
        moved: moved(&message[ANSWER_LEN..]),
    }
}

/// Finds `tcp_info` among the attributes of a message.
fn moved(mut attributes: &[u8]) -> Option<Moved> {
    while attributes.len() >= 4 {
        let len = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
        let value = attributes.get(4..len)?;
        if kind == INET_DIAG_INFO {
            // tcpi_last_data_sent, tcpi_last_data_recv and tcpi_last_ack_recv (linux/tcp.h).
            let at = |at| u32_at(value, at);
            return (value.len() >= 60).then(|| Moved { sent: at(44), received: at(52), acknowledged: at(56) });
        }
        attributes = &attributes[attributes.len().min(len.next_multiple_of(4))..];
    }
    None
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
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
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(bind).unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, peer) = listener.accept().unwrap();
            let ends = Ends { local: server.local_addr().unwrap(), peer, interface: 0 };
            let diag = Diag::open().unwrap();
            let find = || diag.find(ends).unwrap();
            client.write_all(b"question").unwrap();
            while find().unwrap().unread != 8 {}
            assert!(find().unwrap().is_busy());
            server.read_exact(&mut [0; 8]).unwrap();
            assert!(find().unwrap().is_busy());
            // An answer within the same tick of the kernel's clock would leave it in doubt.
            while find().unwrap().moved.unwrap().received < 20 {}
            server.write_all(b"answer").unwrap();
            assert!(find().unwrap().is_busy());
            let started = std::time::Instant::now();
            while find().unwrap().is_busy() && started.elapsed().as_secs() < 30 {}
            assert!(!find().unwrap().is_busy());
            drop(server);
            assert!(find().is_none_or(|s| !s.is_busy()));
        }
    }

    #[test]
    fn an_answer_as_old_as_its_question_is_idle_once_it_was_acknowledged() {
        let ends = Ends { local: "127.0.0.1:1".parse().unwrap(), peer: "127.0.0.1:2".parse().unwrap(), interface: 0 };
        let socket = |sent, received, acknowledged| TcpSocket {
            local: Address::from(ends.local),
            ends,
            inode: 1,
            uid: 0,
            state: TCP_ESTABLISHED,
            unread: 0,
            unacknowledged: 0,
            moved: Some(Moved { sent, received, acknowledged }),
        };
        assert!(!socket(2000, 2000, 1960).is_busy());
        for acknowledged in [2000, 2004, 1990, 1000, 0] {
            assert!(socket(2000, 2000, acknowledged).is_busy());
        }
        assert!(socket(2000, 1996, 1996).is_busy());
        assert!(!socket(2000, 2004, 2000).is_busy());
        assert!(socket(900, 900, 860).is_busy());
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
