//! Asking the kernel about sockets by `sock_diag` (sock_diag(7)): `/proc/net/tcp` takes seconds if there are many
//! connections.

use super::tcp::{Ends, Moved, TCP_LISTEN, TcpSocket};
use crate::address::Address;
use crate::place::Families;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The older question, about TCP in both families at once (inet_diag_dump_compat() of the kernel, since Linux 2.6.14).
const TCPDIAG_GETSOCK: u16 = 18;
/// The attribute that holds `tcp_info` (linux/inet_diag.h), and the bit that asks for it.
const INET_DIAG_INFO: u16 = 2;
/// The attribute that says IPV6_V6ONLY of a v6 listener.
const INET_DIAG_SKV6ONLY: u16 = 11;
/// nlmsghdr (16 bytes) and inet_diag_req_v2 (56).
const REQUEST_LEN: usize = 72;
/// nlmsghdr (16 bytes) and inet_diag_req (60).
const DUMP_LEN: usize = 76;
/// The fixed part of inet_diag_msg.
const ANSWER_LEN: usize = 72;

/// A netlink socket for questions about sockets.
#[derive(Debug)]
pub struct Diag(OwnedFd);

/// One is kept: a process that has run out of files may have to find out who listens before it can close any.
static KEPT: Mutex<Option<Diag>> = Mutex::new(None);

impl Diag {
    /// The one that is kept, or a new one if another thread has it.
    pub(super) fn kept() -> io::Result<Diag> {
        let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.map_or_else(Diag::open, Ok)
    }

    /// Keeps it, and no other.
    pub(super) fn keep(self) {
        *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(self);
    }

    /// Opens it.
    pub fn open() -> io::Result<Diag> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Diag(fd))
    }

    /// All sockets in some states (bits of 1 << state), on a port of this side if it is not 0. The kernel walks through
    /// all of its sockets for it: once for both families.
    pub(super) fn dump(&self, states: u32, port: u16) -> io::Result<Vec<TcpSocket>> {
        let mut question = [0u8; DUMP_LEN];
        put_header(&mut question, TCPDIAG_GETSOCK, nix::libc::NLM_F_DUMP);
        question[19] = 1 << (INET_DIAG_INFO - 1);
        question[20..22].copy_from_slice(&port.to_be_bytes());
        question[68..72].copy_from_slice(&states.to_ne_bytes());
        let mut sockets = Vec::new();
        self.ask(&question, &mut sockets)?;
        Ok(sockets)
    }

    /// One connection, by a lookup that costs microseconds; `None` if it is gone.
    pub fn find(&self, ends: Ends) -> io::Result<Option<TcpSocket>> {
        let mut question = request(family_of(ends.local), 0, u32::MAX);
        question[24..26].copy_from_slice(&ends.local.port().to_be_bytes());
        question[26..28].copy_from_slice(&ends.peer.port().to_be_bytes());
        put_ip(&mut question, 28, ends.local.ip());
        put_ip(&mut question, 44, ends.peer.ip());
        question[60..64].copy_from_slice(&ends.interface.to_ne_bytes());
        // If there is no such connection, the kernel names the listener that would take it.
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

/// UDP sockets of these families at a port, or at any port if it is 0.
pub(super) fn datagrams(families: &[i32], port: u16) -> io::Result<Vec<TcpSocket>> {
    let (diag, mut sockets) = (Diag::kept()?, Vec::new());
    for &family in families {
        let mut question = request(family, nix::libc::NLM_F_DUMP, u32::MAX);
        question[17] = nix::libc::IPPROTO_UDP as u8;
        question[24..26].copy_from_slice(&port.to_be_bytes());
        match diag.ask(&question, &mut sockets) {
            // A kernel without IPv6.
            Err(e) if family == nix::libc::AF_INET6 && e.raw_os_error() == Some(nix::libc::ENOENT) => {}
            asked => asked?,
        }
    }
    diag.keep();
    Ok(sockets)
}

/// Whether somebody listens who would get a connection to this address. It takes one lookup.
pub fn listens_at(address: SocketAddr) -> io::Result<bool> {
    let diag = Diag::kept()?;
    let mut question = request(family_of(address), 0, 1 << TCP_LISTEN);
    question[24..26].copy_from_slice(&address.port().to_be_bytes());
    put_ip(&mut question, 28, address.ip());
    let found = diag.find_one(&mut question)?;
    diag.keep();
    Ok(found.is_some())
}

fn request(family: i32, flags: i32, states: u32) -> [u8; REQUEST_LEN] {
    let mut request = [0u8; REQUEST_LEN];
    put_header(&mut request, SOCK_DIAG_BY_FAMILY, flags);
    request[16] = family as u8;
    request[17] = nix::libc::IPPROTO_TCP as u8;
    request[18] = 1 << (INET_DIAG_INFO - 1);
    request[20..24].copy_from_slice(&states.to_ne_bytes());
    request
}

/// The nlmsghdr of a question.
fn put_header(question: &mut [u8], kind: u16, flags: i32) {
    let len = question.len() as u32;
    question[0..4].copy_from_slice(&len.to_ne_bytes());
    question[4..6].copy_from_slice(&kind.to_ne_bytes());
    question[6..8].copy_from_slice(&((nix::libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
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
            // A dump may also end with an errno, if the kernel does not know what it was asked for, for example.
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
            // Such an address is complete only with its interface.
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
