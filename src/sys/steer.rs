//! Steering a SO_REUSEPORT group: a small classic BPF program on the group says which of its sockets
//! gets a new connection (socket(7), SO_ATTACH_REUSEPORT_CBPF, Linux 4.5). It needs no privilege, is
//! replaced atomically, and outlives the process that attached it.

use crate::place::{Families, Place};
use crate::sys::net::Ends;
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
        self.protocol().is_ok_and(|protocol| protocol == libc::IPPROTO_TCP)
    }

    /// Its protocol, by the number that ip(7) uses.
    pub fn protocol(&self) -> io::Result<i32> {
        self.option(libc::SOL_SOCKET, libc::SO_PROTOCOL)
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
    pub fn takes_both_families(&self) -> bool {
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
    pub fn steer(&self, program: &Program) -> io::Result<()> {
        self.attach(&program.0)
    }

    /// Takes the program off the group: the kernel spreads connections over all of it again.
    pub fn release(&self) -> io::Result<()> {
        match self.set_option(libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, &0i32) {
            // There was none.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done,
        }
    }

    /// Drops every new SYN to this socket but that of a probe, if there is one: whoever comes meanwhile tries again
    /// after a second and then gets whom the group selects. Handshakes that are under way finish. `false` where
    /// the server has a filter of its own, which stays.
    pub fn refuse_newcomers(&self, except: Option<&Probe>) -> io::Result<bool> {
        let own = self.filter()?;
        if !(own.is_empty() || is_ours(&own)) {
            return Ok(false);
        }
        self.set_filter(&refusal(except)).map(|()| true)
    }

    /// Takes the filter of [`Socket::refuse_newcomers`] off again, if it is there.
    pub fn accept_newcomers(&self) -> io::Result<()> {
        match is_ours(&self.filter()?) {
            true => self.set_option(libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32),
            false => Ok(()),
        }
    }

    /// The filter that is on the socket (SO_GET_FILTER, Linux 3.8); empty if there is none.
    fn filter(&self) -> io::Result<Vec<libc::sock_filter>> {
        // Longer ones are not ours.
        let mut filter = [stmt(0, 0); REFUSAL_MAX];
        let mut len = 0;
        // SAFETY: a null pointer with a length of 0 asks for the number of instructions, which is then not more
        // than there is room for; a longer one is only counted.
        unsafe {
            let get = |to: *mut libc::c_void, len: &mut libc::socklen_t| {
                libc::getsockopt(self.0.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, to, len)
            };
            if get(std::ptr::null_mut(), &mut len) < 0 {
                return match io::Error::last_os_error() {
                    // The program was put there in another form (an eBPF one): it cannot be read.
                    e if e.raw_os_error() == Some(libc::EACCES) => Ok(filter.to_vec()),
                    e => Err(e),
                };
            }
            if len as usize > REFUSAL_MAX {
                return Ok(filter.to_vec());
            }
            if len > 0 && get(filter.as_mut_ptr().cast(), &mut len) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(filter[..len as usize].to_vec())
    }

    /// Names the network namespace of the socket for as long as the machine runs (SO_NETNS_COOKIE, Linux 5.14).
    pub fn namespace(&self) -> io::Result<u64> {
        const SO_NETNS_COOKIE: i32 = 71;
        self.option(libc::SOL_SOCKET, SO_NETNS_COOKIE)
    }

    /// Number of the interface that the socket is bound to, or 0 (SO_BINDTOIFINDEX, Linux 5.1).
    pub fn device(&self) -> io::Result<u32> {
        self.option(libc::SOL_SOCKET, SO_BINDTOIFINDEX)
    }

    /// Whose socket it is: what counts for the kernel where sockets share.
    pub fn uid(&self) -> io::Result<u32> {
        Ok(nix::sys::stat::fstat(&self.0)?.st_uid)
    }

    /// The place of a socket that is bound.
    pub fn place(&self) -> io::Result<Place> {
        let families = if self.takes_both_families() { Families::Both } else { Families::Own };
        Ok(Place { address: self.address()?, families, device: self.device()?, uid: self.uid()? })
    }

    /// Joins the group of a place for a moment, to do something to it where none of its members can be had. Whoever is
    /// sent there meanwhile tries again after a second.
    pub fn visit(place: &Place, act: impl FnOnce(&Socket) -> io::Result<()>) -> io::Result<()> {
        use nix::sys::socket::{SockaddrStorage, bind, setsockopt, sockopt};
        let socket = Socket::scratch(place)?;
        if place.address.is_ipv6() {
            setsockopt(&socket.0, sockopt::Ipv6V6Only, &(place.families == Families::Own))?;
        }
        if place.device != 0 {
            socket.set_option(libc::SOL_SOCKET, SO_BINDTOIFINDEX, &place.device)?;
        }
        socket.refuse_newcomers(None)?;
        bind(socket.0.as_raw_fd(), &SockaddrStorage::from(place.address))?;
        // Another user's would make a group of its own.
        if socket.place()? != *place {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        socket.listen(0)?;
        act(&socket)
    }

    /// A socket of the same family as those of a place, of which nobody knows: what can be done to it can be done there.
    pub fn scratch(place: &Place) -> io::Result<Socket> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        let family = if place.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = Socket::new(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?);
        socket.share().map(|()| socket)
    }

    /// A second handle on the same socket.
    pub fn try_clone(&self) -> io::Result<Socket> {
        self.0.try_clone().map(Socket)
    }

    /// Carries out what the server wants to steer its port by.
    pub fn steer_by(&self, own: &OwnProgram) -> io::Result<()> {
        match own {
            OwnProgram::Classic(program) => self.attach(program),
            OwnProgram::Extended(program) => {
                self.set_option(libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF, &program.as_raw_fd())
            }
            OwnProgram::None => self.release(),
        }
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

/// Which socket(7) does not name (asm-generic/socket.h).
const SO_BINDTOIFINDEX: i32 = 62;

/// Offsets from here on count from the IP header (SKF_NET_OFF of linux/filter.h), wherever the program
/// finds the packet to begin.
const NETWORK: u32 = -0x10_0000_i32 as u32;
/// Ancillary data of a packet (SKF_AD_OFF).
const ANCILLARY: u32 = -0x1000_i32 as u32;

/// What a server steers its port by itself (socket(7)).
#[derive(Debug)]
pub enum OwnProgram {
    /// SO_ATTACH_REUSEPORT_CBPF.
    Classic(Vec<libc::sock_filter>),
    /// SO_ATTACH_REUSEPORT_EBPF.
    Extended(OwnedFd),
    /// SO_DETACH_REUSEPORT_BPF.
    None,
}

/// What selects a member of a group for a new connection.
#[derive(Debug)]
pub struct Program(Vec<libc::sock_filter>);

impl Program {
    /// Connections go to the members of these ranges, to each as often; those of the probes to the member at the index
    /// beside each. All probes are of this process.
    pub fn new(to: &[Range], probes: &[(&Probe, u32)]) -> Program {
        let mut program = Vec::new();
        for is_v4 in [true, false] {
            let own: Vec<_> = probes.iter().filter(|(probe, _)| probe.source.is_ipv4() == is_v4).collect();
            // Probes of v6 may come from several addresses.
            let sources: std::collections::BTreeSet<IpAddr> = own.iter().map(|(probe, _)| probe.source.ip()).collect();
            for source in sources {
                let of_it = own.iter().filter(|(probe, _)| probe.source.ip() == source);
                let (tests, port_at) = tests_of(source);
                let mut answers = vec![load(libc::BPF_H, port_at)];
                for (probe, index) in of_it {
                    answers.push(equal(probe.source.port().into(), 0, 1));
                    answers.push(stmt(libc::BPF_RET | libc::BPF_K, *index));
                }
                for (i, &(size, at, value)) in tests.iter().enumerate() {
                    // What does not match skips the other tests and the answers.
                    let skip = 3 * (tests.len() - i - 1) + answers.len();
                    program.push(load(size, at));
                    program.push(equal(value, 1, 0));
                    program.push(stmt(libc::BPF_JMP | libc::BPF_JA, skip as u32));
                }
                program.extend(answers);
            }
        }
        program.extend(choose(to));
        Program(program)
    }
}

/// Every value of a packet from this address that must match: how wide it is, where it stands, what it is. And where
/// its source port stands.
fn tests_of(source: IpAddr) -> (Vec<(u32, u32, u32)>, u32) {
    match source {
        // Version and header length: the offset of the port is that of a header of 20 bytes.
        IpAddr::V4(ip) => (vec![(libc::BPF_B, 0, 0x45), (libc::BPF_W, 12, u32::from(ip))], 20),
        IpAddr::V6(ip) => {
            let mut tests = vec![(libc::BPF_B, 6, libc::IPPROTO_TCP as u32)];
            for (i, part) in ip.octets().chunks_exact(4).enumerate() {
                let part = u32::from_be_bytes([part[0], part[1], part[2], part[3]]);
                tests.push((libc::BPF_W, 8 + 4 * i as u32, part));
            }
            (tests, 40)
        }
    }
}

fn load(size: u32, at: u32) -> libc::sock_filter {
    stmt(libc::BPF_LD | size | libc::BPF_ABS, NETWORK.wrapping_add(at))
}

fn equal(value: u32, yes: u8, no: u8) -> libc::sock_filter {
    jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no)
}

fn choose(to: &[Range]) -> Vec<libc::sock_filter> {
    let total = to.iter().map(|range| range.count).sum::<u32>();
    match to {
        [] => return vec![stmt(libc::BPF_RET | libc::BPF_K, 0)],
        [only] if total == 1 => return vec![stmt(libc::BPF_RET | libc::BPF_K, only.first)],
        _ => {}
    }
    let mut program = vec![
        stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, ANCILLARY + libc::SKF_AD_RANDOM as u32),
        stmt(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, total),
    ];
    for (i, range) in to.iter().enumerate() {
        if i + 1 < to.len() {
            program.push(jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, range.count, 2, 0));
        }
        program.push(stmt(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, range.first));
        program.push(stmt(libc::BPF_RET | libc::BPF_A, 0));
        if i + 1 < to.len() {
            program.push(stmt(libc::BPF_ALU | libc::BPF_SUB | libc::BPF_K, range.count));
        }
    }
    program
}

/// Most instructions that a [`refusal`] has.
const REFUSAL_MAX: usize = 24;
/// An instruction that does nothing, by which a refusal of ours is known.
const OURS: u32 = 0x5E12_7E12;

/// Drops a SYN that is no answer to one of ours, unless it is a probe's.
fn refusal(except: Option<&Probe>) -> Vec<libc::sock_filter> {
    let mut program = vec![stmt(libc::BPF_LD | libc::BPF_IMM, OURS)];
    if let Some(probe) = except {
        let (tests, port_at) = tests_of(probe.source.ip());
        let tests = tests.into_iter().chain([(libc::BPF_H, port_at, probe.source.port().into())]);
        let tests: Vec<_> = tests.collect();
        for (i, &(size, at, value)) in tests.iter().enumerate() {
            program.push(load(size, at));
            program.push(equal(value, 0, (2 * (tests.len() - i - 1) + 1) as u8));
        }
        program.push(stmt(libc::BPF_RET | libc::BPF_K, u32::MAX));
    }
    program.extend([
        stmt(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 13),
        stmt(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0x12),
        equal(0x02, 0, 1),
        stmt(libc::BPF_RET | libc::BPF_K, 0),
        stmt(libc::BPF_RET | libc::BPF_K, u32::MAX),
    ]);
    program
}

fn is_ours(filter: &[libc::sock_filter]) -> bool {
    filter.first().is_some_and(|first| u32::from(first.code) == libc::BPF_LD | libc::BPF_IMM && first.k == OURS)
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

#[cfg(test)]
impl Socket {
    /// A listener that joins the group of its address, not to be closed by what another thread forks meanwhile.
    pub fn member(address: SocketAddr) -> Socket {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
        let socket = Socket::new(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap());
        socket.share().unwrap();
        bind(socket.0.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
        socket.listen(16).unwrap();
        socket
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

    /// The ends of the connection as its server has them.
    pub fn ends(&self) -> Ends {
        // A connection to no address is one to this machine (ip(7)).
        Ends { local: self.target, peer: self.source, interface: 0 }
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

    /// A listener that joins the group of its address.
    fn member(port: u16) -> TcpListener {
        let socket = Socket::member(([127, 0, 0, 1], port).into());
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
            handle(&old).steer(&Program::new(&[Range { first, count: 1 }], &[])).unwrap();
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
        let all = [Range { first: 0, count: 1 }];
        let probe = Probe::new(old.local_addr().unwrap(), false).unwrap();
        handle(&old).steer(&Program::new(&all, &[(&probe, 1)])).unwrap();
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
        let others: Vec<TcpListener> = (0..5).map(|_| member(port)).collect();
        let all: Vec<&TcpListener> = std::iter::once(&first).chain(&others).collect();
        let range = |first, count| Range { first, count };
        for chosen in [vec![range(1, 2)], vec![range(0, 1), range(2, 2), range(5, 1)]] {
            handle(&first).steer(&Program::new(&chosen, &[])).unwrap();
            let mut got = [0; 6];
            for _ in 0..120 {
                got[who(&all)] += 1;
            }
            for (index, got) in (0..).zip(got) {
                assert_eq!(got > 0, chosen.iter().any(|r| (r.first..r.first + r.count).contains(&index)), "{got:?}");
            }
        }
    }

    #[test]
    fn each_of_many_probes_reaches_its_own_socket() {
        let first = member(0);
        let port = first.local_addr().unwrap().port();
        let others: Vec<TcpListener> = (0..150).map(|_| member(port)).collect();
        let probes: Vec<Probe> =
            others.iter().map(|_| Probe::new(first.local_addr().unwrap(), false).unwrap()).collect();
        let own: Vec<(&Probe, u32)> = probes.iter().zip(1..).collect();
        handle(&first).steer(&Program::new(&[Range { first: 0, count: 1 }], &own)).unwrap();
        for (probe, other) in probes.iter().zip(&others) {
            probe.connect().unwrap();
            while !probe.connected().unwrap() {}
            assert_eq!(handle(other).queue().unwrap(), 1);
        }
        assert_eq!(who(&[&first]), 0);
    }

    #[test]
    fn a_filter_of_the_servers_own_is_never_replaced_or_taken_off() {
        let listener = member(0);
        let socket = handle(&listener);
        socket.set_filter(&[stmt(libc::BPF_RET | libc::BPF_K, u32::MAX)]).unwrap();
        assert!(!socket.refuse_newcomers(None).unwrap());
        socket.accept_newcomers().unwrap();
        assert_eq!(socket.filter().unwrap().len(), 1);
        let listener = member(0);
        let socket = handle(&listener);
        assert!(socket.filter().unwrap().is_empty());
        let probe = Probe::new(listener.local_addr().unwrap(), false).unwrap();
        assert!(socket.refuse_newcomers(None).unwrap() && socket.refuse_newcomers(Some(&probe)).unwrap());
        probe.connect().unwrap();
        while !probe.connected().unwrap() {}
        socket.accept_newcomers().unwrap();
        assert!(socket.filter().unwrap().is_empty());
    }
}
