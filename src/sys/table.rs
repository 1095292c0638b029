//! Sockets as `/proc/net/tcp` lists them, for systems where netlink is not allowed. Pure but for the reading.

#![forbid(unsafe_code)]

use super::tcp::{Ends, TCP_LISTEN, TcpSocket};
use crate::address::Address;
use crate::place::Families;
use std::fs::File;
use std::io::{self, BufRead};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The tables of both families.
fn tables() -> io::Result<Vec<File>> {
    let mut tables = vec![File::open("/proc/self/net/tcp")?];
    match File::open("/proc/self/net/tcp6") {
        Ok(table) => tables.push(table),
        // A kernel without IPv6.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    Ok(tables)
}

/// All sockets that listen on a port, or on any port if it is 0.
pub fn listeners(port: u16) -> io::Result<Vec<TcpSocket>> {
    let mut found = Vec::new();
    for table in tables()? {
        found.extend(read(table, port)?);
    }
    Ok(found)
}

/// Listeners come first in the table. The connections, of which there may be many thousands, are not read.
fn read(table: impl io::Read, port: u16) -> io::Result<Vec<TcpSocket>> {
    let mut found = Vec::new();
    for line in io::BufReader::new(table).lines().skip(1) {
        match socket_of(&line?) {
            Some(socket) if socket.state != TCP_LISTEN => break,
            Some(socket) if port == 0 || socket.ends.local.port() == port => found.push(socket),
            Some(_) | None => {}
        }
    }
    Ok(found)
}

/// The connection with these ends; `None` if it is gone. The whole table is read, since its order is that of a hash.
pub fn find(ends: Ends) -> io::Result<Option<TcpSocket>> {
    let plain = |end: SocketAddr| (end.ip().to_canonical(), end.port());
    let wanted = (plain(ends.local), plain(ends.peer));
    for table in tables()? {
        for line in io::BufReader::new(table).lines().skip(1) {
            let found = socket_of(&line?).filter(|s| (plain(s.ends.local), plain(s.ends.peer)) == wanted);
            if found.is_some() {
                return Ok(found);
            }
        }
    }
    Ok(None)
}

fn socket_of(line: &str) -> Option<TcpSocket> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let ends = Ends { local: end_of(fields.get(1)?)?, peer: end_of(fields.get(2)?)?, interface: 0 };
    Some(TcpSocket {
        families: Families::Own,
        local: Address::from(ends.local),
        ends,
        state: u8::from_str_radix(fields.get(3)?, 16).ok()?,
        unread: 0,
        unacknowledged: 0,
        uid: fields.get(7)?.parse().ok()?,
        inode: fields.get(9)?.parse().ok()?,
        moved: None,
    })
}

/// Reads `ADDRESS:PORT` in hex. The address is 32-bit words in this machine's byte order; the port is a plain number.
fn end_of(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_connection_that_nobody_has_accepted_is_told_from_one_that_was() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let ends = Ends { local: listener.local_addr().unwrap(), peer: client.local_addr().unwrap(), interface: 0 };
            assert!(find(ends).unwrap().is_some_and(|socket| socket.is_unaccepted()));
            let accepted = listener.accept().unwrap();
            assert!(find(ends).unwrap().is_some_and(|socket| !socket.is_unaccepted()));
            assert!(find(Ends { peer: ends.local, ..ends }).unwrap().is_none());
            drop(accepted);
        }
    }

    #[test]
    fn the_table_has_the_listeners_that_netlink_tells_of() {
        let listeners: Vec<TcpListener> =
            ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"].map(|at| TcpListener::bind(at).unwrap()).into();
        for listener in &listeners {
            let port = listener.local_addr().unwrap().port();
            let inode = nix::sys::stat::fstat(listener).unwrap().st_ino as u32;
            // A stranger may have the same port at another address: only our own is looked at.
            let of = |found: Vec<TcpSocket>| -> Vec<(Address, u32, u32)> {
                found.into_iter().filter(|s| s.inode == inode).map(|s| (s.local, s.inode, s.uid)).collect()
            };
            let asked = of(crate::sys::net::listeners_at(port).unwrap().all().cloned().collect());
            assert_eq!(asked.len(), 1);
            assert_eq!(of(super::listeners(port).unwrap()), asked);
        }
        for torn in ["", "sl", "sl\n 0:", "sl\n 0: 0100007F:1F90 0:0 0A", "sl\n 0: zz:1 zz:1 0A a b c 0 0 7"] {
            assert_eq!(read(torn.as_bytes(), 0).unwrap(), []);
        }
    }
}
