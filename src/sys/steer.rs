//! Steering a SO_REUSEPORT group: a small classic BPF program on the group says which of its sockets
//! gets a new connection (socket(7), SO_ATTACH_REUSEPORT_CBPF, Linux 4.5). It needs no privilege, is
//! replaced atomically, and outlives the process that attached it.

use nix::libc;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A listening (or bound) TCP socket that we hold beside its server.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// Which sockets of a group get new connections, by their order of joining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first of them.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
}

impl Socket {
    /// Takes charge of a socket.
    pub fn new(fd: OwnedFd) -> Socket {
        Socket(fd)
    }

    /// The fd, to send it to somebody else.
    pub fn fd(&self) -> impl AsFd + '_ {
        &self.0
    }

    /// Whether it is a TCP socket.
    pub fn is_tcp(&self) -> bool {
        let protocol = self.option::<i32>(libc::SOL_SOCKET, libc::SO_PROTOCOL);
        protocol.is_ok_and(|p| p == libc::IPPROTO_TCP)
    }

    /// Whether it is a UDP socket.
    pub fn is_udp(&self) -> bool {
        let protocol = self.option::<i32>(libc::SOL_SOCKET, libc::SO_PROTOCOL);
        protocol.is_ok_and(|p| p == libc::IPPROTO_UDP)
    }

    /// Whether it listens.
    pub fn listens(&self) -> bool {
        self.option::<i32>(libc::SOL_SOCKET, libc::SO_ACCEPTCONN).is_ok_and(|on| on != 0)
    }

    /// Names the socket for as long as the machine runs (SO_COOKIE, Linux 4.6).
    pub fn cookie(&self) -> io::Result<u64> {
        self.option(libc::SOL_SOCKET, libc::SO_COOKIE)
    }

    /// Its inode, by which `/proc/PID/fd` names it.
    pub fn inode(&self) -> io::Result<u32> {
        Ok(nix::sys::stat::fstat(&self.0)?.st_ino as u32)
    }

    /// Whether the port may be shared.
    pub fn shares(&self) -> bool {
        self.option::<i32>(libc::SOL_SOCKET, libc::SO_REUSEPORT).is_ok_and(|on| on != 0)
    }

    /// Lets the port be shared; before `bind`.
    pub fn share(&self) -> io::Result<()> {
        self.set_option(libc::SOL_SOCKET, libc::SO_REUSEPORT, &1i32)
    }

    /// Where it is bound.
    pub fn address(&self) -> io::Result<SocketAddr> {
        let address: nix::sys::socket::SockaddrStorage = nix::sys::socket::getsockname(self.0.as_raw_fd())?;
        socket_address(&address)
    }

    /// Whether a v6 socket takes v4 too (`false` for a v4 one).
    pub fn is_dual(&self) -> bool {
        self.option::<i32>(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).is_ok_and(|only| only == 0)
    }

    /// listen(2) on the server's behalf, so that we know when it is done.
    pub fn listen(&self, backlog: i32) -> io::Result<()> {
        // SAFETY: integers only.
        if unsafe { libc::listen(self.0.as_raw_fd(), backlog) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Connections that wait to be accepted (TCP_INFO of a listener: `tcpi_unacked`).
    pub fn queue(&self) -> io::Result<u32> {
        Ok(self.option::<libc::tcp_info>(libc::IPPROTO_TCP, libc::TCP_INFO)?.tcpi_unacked)
    }

    /// Steers the whole group of this socket, which must listen: through one that is only bound the
    /// program would make a group of its own, and its `listen` would fail.
    pub fn steer(&self, to: Range) -> io::Result<()> {
        self.attach(&choose(to))
    }

    /// Steers as [`Socket::steer`], but the connection of the probe goes to the socket at `index`.
    pub fn steer_with_probe(&self, to: Range, probe: &Probe, index: u32) -> io::Result<()> {
        let load = |size: u32, at: u32| stmt(libc::BPF_LD | size | libc::BPF_ABS, NETWORK + at);
        // Every value of the packet that must match: how wide it is, where it stands, what it is.
        let mut tests = Vec::new();
        match probe.source {
            SocketAddr::V4(source) => {
                // Version and header length: the offsets that follow are of a header of 20 bytes.
                tests.push((libc::BPF_B, 0, 0x45));
                tests.push((libc::BPF_W, 12, u32::from(*source.ip())));
                tests.push((libc::BPF_H, 20, u32::from(source.port())));
            }
            SocketAddr::V6(source) => {
                tests.push((libc::BPF_B, 6, libc::IPPROTO_TCP as u32));
                for (i, part) in source.ip().octets().chunks_exact(4).enumerate() {
                    let part = u32::from_be_bytes([part[0], part[1], part[2], part[3]]);
                    tests.push((libc::BPF_W, 8 + 4 * i as u32, part));
                }
                tests.push((libc::BPF_H, 40, u32::from(source.port())));
            }
        }
        let mut program = Vec::new();
        for (i, &(size, at, value)) in tests.iter().enumerate() {
            // What does not match skips the other tests and the answer.
            let skip = 2 * (tests.len() - i - 1) + 1;
            program.push(load(size, at));
            program.push(jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, skip as u8));
        }
        program.push(stmt(libc::BPF_RET | libc::BPF_K, index));
        program.extend(choose(to));
        self.attach(&program)
    }

    /// Takes the program off the group: the kernel spreads connections over all of it again.
    pub fn release(&self) -> io::Result<()> {
        self.set_option(libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, &0i32)
    }

    /// Drops every new SYN to this socket: whoever comes late tries again after a second and then gets
    /// whom the group selects. Handshakes that are under way finish.
    pub fn refuse_newcomers(&self) -> io::Result<()> {
        let flags = jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0x02, 0, 1);
        self.set_filter(&[
            stmt(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 13),
            stmt(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0x12),
            flags,
            stmt(libc::BPF_RET | libc::BPF_K, 0),
            stmt(libc::BPF_RET | libc::BPF_K, u32::MAX),
        ])
    }

    /// Takes the filter of [`Socket::refuse_newcomers`] off again.
    pub fn accept_newcomers(&self) -> io::Result<()> {
        self.set_option(libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32)
    }

    fn attach(&self, program: &[libc::sock_filter]) -> io::Result<()> {
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        self.set_option(libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
    }

    fn set_filter(&self, program: &[libc::sock_filter]) -> io::Result<()> {
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        self.set_option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    fn set_option<T>(&self, level: i32, name: i32, value: &T) -> io::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        // SAFETY: the value is valid for its own size; a program in it is valid through the call, and
        // the kernel copies it.
        let result =
            unsafe { libc::setsockopt(self.0.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// `T` is plain data for which all zeroes are valid: an integer, or `tcp_info`, of which an older
    /// kernel fills less.
    fn option<T: Copy>(&self, level: i32, name: i32) -> io::Result<T> {
        let mut len = size_of::<T>() as libc::socklen_t;
        // SAFETY: see above; the kernel writes at most `len` bytes.
        unsafe {
            let mut value: T = std::mem::zeroed();
            let result = libc::getsockopt(self.0.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len);
            if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
        }
    }
}

/// Offsets from here on count from the IP header (SKF_NET_OFF of linux/filter.h), wherever the program
/// finds the packet to begin.
const NETWORK: u32 = -0x10_0000_i32 as u32;
/// Ancillary data of a packet (SKF_AD_OFF).
const ANCILLARY: u32 = -0x1000_i32 as u32;

fn choose(to: Range) -> Vec<libc::sock_filter> {
    if to.count <= 1 {
        return vec![stmt(libc::BPF_RET | libc::BPF_K, to.first)];
    }
    vec![
        stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, ANCILLARY + libc::SKF_AD_RANDOM as u32),
        stmt(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, to.count),
        stmt(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, to.first),
        stmt(libc::BPF_RET | libc::BPF_A, 0),
    ]
}

fn stmt(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> OwnedFd {
        socket.0
    }
}

/// A private connection to one socket of a group, from a source that nobody else has: a loopback
/// address of its own (v4), or the target itself (v6), and a port that is bound here.
#[derive(Debug)]
pub struct Probe {
    stream: OwnedFd,
    source: SocketAddr,
    target: SocketAddr,
}

impl Probe {
    /// Prepares a probe of whoever listens at `target`, `dual` if that takes v4 as well as v6; nothing is
    /// sent yet.
    pub fn new(target: SocketAddr, dual: bool) -> io::Result<Probe> {
        // 127.77.x.y reaches every local v4 address, and a v6 socket that takes v4 too.
        let v4 = SocketAddr::from((probe_source(), 0));
        // To itself: at 127.0.0.1 there may be a server of that address only.
        let itself = SocketAddr::from((probe_source(), target.port()));
        // What a socket at a mapped address gets are v4 packets.
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
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockname, socket};
        let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let stream = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        bind(stream.as_raw_fd(), &SockaddrStorage::from(source))?;
        let bound: SockaddrStorage = getsockname(stream.as_raw_fd())?;
        let source = socket_address(&bound)?;
        Ok(Probe { stream, source, target })
    }

    /// Opens the connection, which the kernel finishes by itself on this machine.
    pub fn connect(&self) -> io::Result<()> {
        use nix::sys::socket::{SockaddrStorage, connect};
        match connect(self.stream.as_raw_fd(), &SockaddrStorage::from(self.target)) {
            Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether the connection stands, or has failed.
    pub fn connected(&self) -> io::Result<bool> {
        match nix::sys::socket::getpeername::<nix::sys::socket::SockaddrStorage>(self.stream.as_raw_fd()) {
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

fn socket_address(address: &nix::sys::socket::SockaddrStorage) -> io::Result<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    let v6 = address.as_sockaddr_in6().map(|a| SocketAddrV6::new(a.ip(), a.port(), 0, a.scope_id()).into());
    v4.or(v6).ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::FromRawFd;

    /// A listener that joins the group of its address.
    fn member(port: u16) -> TcpListener {
        // SAFETY: a plain socket call; the fd is owned at once.
        let fd =
            unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)) };
        let socket = Socket::new(fd);
        socket.share().unwrap();
        let address = nix::sys::socket::SockaddrIn::new(127, 0, 0, 1, port);
        nix::sys::socket::bind(socket.0.as_raw_fd(), &address).unwrap();
        socket.listen(16).unwrap();
        assert!(socket.listens() && socket.shares() && socket.is_tcp());
        TcpListener::from(OwnedFd::from(socket))
    }

    fn handle(listener: &TcpListener) -> Socket {
        Socket::new(listener.try_clone().unwrap().into())
    }

    /// Connects, and tells which of the listeners got it.
    fn who(listeners: &[&TcpListener]) -> usize {
        let client = TcpStream::connect(listeners[0].local_addr().unwrap()).unwrap();
        let chosen = listeners.iter().position(|l| handle(l).queue().unwrap() == 1).unwrap();
        let mut accepted = listeners[chosen].accept().unwrap().0;
        drop(client);
        let _ = accepted.read(&mut [0]);
        chosen
    }

    #[test]
    fn one_setsockopt_moves_all_new_connections() {
        let old = member(0);
        let new = member(old.local_addr().unwrap().port());
        for (first, rounds) in [(0, 20), (1, 20), (0, 20)] {
            handle(&old).steer(Range { first, count: 1 }).unwrap();
            for _ in 0..rounds {
                assert_eq!(who(&[&old, &new]), first as usize);
            }
        }
        handle(&old).release().unwrap();
    }

    #[test]
    fn a_probe_reaches_the_new_socket_and_nobody_else_does() {
        let old = member(0);
        let new = member(old.local_addr().unwrap().port());
        let all = Range { first: 0, count: 1 };
        let probe = Probe::new(old.local_addr().unwrap(), false).unwrap();
        handle(&old).steer_with_probe(all, &probe, 1).unwrap();
        assert_eq!(who(&[&old, &new]), 0);
        probe.connect().unwrap();
        while !probe.connected().unwrap() {}
        assert_eq!((handle(&old).queue().unwrap(), handle(&new).queue().unwrap()), (0, 1));
        assert_eq!(who(&[&old, &new]), 0);
        drop(probe);
        assert_eq!(handle(&new).queue().unwrap(), 1);
        drop(new.accept().unwrap());
        assert_eq!(handle(&new).queue().unwrap(), 0);
    }

    #[test]
    fn several_sockets_share_what_is_steered_to_them() {
        let first = member(0);
        let port = first.local_addr().unwrap().port();
        let (second, third) = (member(port), member(port));
        handle(&first).steer(Range { first: 1, count: 2 }).unwrap();
        let mut got = [0; 3];
        for _ in 0..60 {
            got[who(&[&first, &second, &third])] += 1;
        }
        assert!(got[0] == 0 && got[1] > 0 && got[2] > 0, "{got:?}");
    }
}
