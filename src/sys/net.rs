//! TCP sockets of this network namespace, asked from the kernel by `sock_diag` (sock_diag(7)):
//! `/proc/net/tcp` takes seconds where there are many connections.

use crate::address::Address;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

/// A TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its local address.
    pub local: Address,
    /// Its inode, by which `/proc/PID/fd` names it; 0 while it waits in an accept queue.
    pub inode: u32,
    /// Who made it.
    pub uid: u32,
}

/// Sockets that listen.
pub fn listeners() -> io::Result<Vec<TcpSocket>> {
    dump(1 << TCP_LISTEN)
}

/// Established connections.
pub fn connections() -> io::Result<Vec<TcpSocket>> {
    dump(1 << TCP_ESTABLISHED)
}

/// States of linux/tcp_states.h.
const TCP_ESTABLISHED: u32 = 1;
const TCP_LISTEN: u32 = 10;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// nlmsghdr (16 bytes) and inet_diag_req_v2 (56).
const REQUEST_LEN: usize = 72;
/// The fixed part of inet_diag_msg.
const ANSWER_LEN: usize = 72;

fn dump(states: u32) -> io::Result<Vec<TcpSocket>> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let mut sockets = Vec::new();
    let mut buffer = vec![0; 32 * 1024];
    for family in [nix::libc::AF_INET, nix::libc::AF_INET6] {
        let mut request = [0u8; REQUEST_LEN];
        request[0..4].copy_from_slice(&(REQUEST_LEN as u32).to_ne_bytes());
        request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        let flags = (nix::libc::NLM_F_REQUEST | nix::libc::NLM_F_DUMP) as u16;
        request[6..8].copy_from_slice(&flags.to_ne_bytes());
        request[16] = family as u8;
        request[17] = nix::libc::IPPROTO_TCP as u8;
        request[20..24].copy_from_slice(&states.to_ne_bytes());
        sendto(fd.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        loop {
            let len = receive(fd.as_raw_fd(), &mut buffer)?;
            if read_answers(&buffer[..len], &mut sockets)? {
                break;
            }
        }
    }
    Ok(sockets)
}

fn receive(fd: i32, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(fd, buffer, MsgFlags::empty()) {
            Err(nix::errno::Errno::EINTR) => {}
            received => return Ok(received?),
        }
    }
}

/// Reads the messages of one datagram; `true` at the end of the dump.
fn read_answers(mut data: &[u8], sockets: &mut Vec<TcpSocket>) -> io::Result<bool> {
    while data.len() >= 16 {
        let len = u32_at(data, 0) as usize;
        let kind = u16::from_ne_bytes([data[4], data[5]]);
        if len < 16 || len > data.len() {
            return Err(io::Error::other("sock_diag: a message of impossible length"));
        }
        match i32::from(kind) {
            nix::libc::NLMSG_DONE => return Ok(true),
            nix::libc::NLMSG_ERROR if len >= 20 => {
                let errno = i32::from_ne_bytes([data[16], data[17], data[18], data[19]]);
                // A kernel without IPv6 has no such sockets: that is no failure.
                return if -errno == nix::libc::ENOENT { Ok(true) } else { Err(io::Error::from_raw_os_error(-errno)) };
            }
            _ if len >= 16 + ANSWER_LEN => sockets.extend(socket_of(&data[16..len])),
            _ => {}
        }
        data = &data[data.len().min(len.next_multiple_of(4))..];
    }
    Ok(false)
}

fn socket_of(message: &[u8]) -> Option<TcpSocket> {
    let port = u16::from_be_bytes([message[4], message[5]]);
    let ip = if i32::from(message[0]) == nix::libc::AF_INET {
        IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&message[8..12]).ok()?))
    } else {
        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&message[8..24]).ok()?)).to_canonical()
    };
    let local = Address::Tcp((!ip.is_unspecified()).then_some(ip), port);
    Some(TcpSocket { local, uid: u32_at(message, 64), inode: u32_at(message, 68) })
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
            let seen = || listeners().unwrap().into_iter().filter(|s| s.local == own).count();
            assert_eq!(seen(), 1, "{own}");
            drop(listener);
            assert_eq!(seen(), 0, "{own}");
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
