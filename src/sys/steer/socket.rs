//! A TCP socket that we hold beside its server: what it is, and the options that are set on it.

use super::program::{OwnProgram, Program};
use crate::place::{Families, Place};
use crate::sys::tcp::socket_address;
use nix::libc;
use nix::sys::socket::SockaddrStorage;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// An option that socket(7) does not name (asm-generic/socket.h).
const SO_BINDTOIFINDEX: i32 = 62;

/// A listening (or bound) TCP socket that we hold beside its server.
#[derive(Debug)]
pub struct Socket(OwnedFd);

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
        let address: SockaddrStorage = nix::sys::socket::getsockname(self.0.as_raw_fd())?;
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

    /// Steers the whole group of this socket, which must listen. Through a socket that is only bound, the program would
    /// make a group of its own, and its `listen` would fail.
    pub fn steer(&self, program: &Program) -> io::Result<()> {
        self.attach(libc::SO_ATTACH_REUSEPORT_CBPF, &program.0)
    }

    /// Takes the program off the group: the kernel spreads connections over all of it again.
    pub fn release(&self) -> io::Result<()> {
        match self.set_option(libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, &0i32) {
            // There was none.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done,
        }
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

    /// Binds the socket to an interface.
    pub(super) fn bind_to_device(&self, number: u32) -> io::Result<()> {
        self.set_option(libc::SOL_SOCKET, SO_BINDTOIFINDEX, &number)
    }

    /// The user whose socket it is. Only sockets of one user can share a port.
    pub fn uid(&self) -> io::Result<u32> {
        Ok(nix::sys::stat::fstat(&self.0)?.st_uid)
    }

    /// The place of a bound socket.
    pub fn place(&self) -> io::Result<Place> {
        let families = if self.takes_both_families() { Families::Both } else { Families::Own };
        Ok(Place { address: self.address()?, families, device: self.device()?, uid: self.uid()? })
    }

    /// A second handle on the same socket.
    pub fn try_clone(&self) -> io::Result<Socket> {
        self.0.try_clone().map(Socket)
    }

    /// Attaches the program that the server steers its own port by.
    pub fn steer_by(&self, own: &OwnProgram) -> io::Result<()> {
        match own {
            OwnProgram::Classic(program) => self.attach(libc::SO_ATTACH_REUSEPORT_CBPF, program),
            OwnProgram::Extended(program) => {
                self.set_option(libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF, &program.as_raw_fd())
            }
            OwnProgram::None => self.release(),
        }
    }

    pub(super) fn attach(&self, option: i32, program: &[libc::sock_filter]) -> io::Result<()> {
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        self.set_option(libc::SOL_SOCKET, option, &program)
    }

    pub(in crate::sys) fn set_option<T>(&self, level: i32, name: i32, value: &T) -> io::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        // SAFETY: the value is valid for its own size; a program in it is valid through the call, and
        // the kernel copies it.
        let result =
            unsafe { libc::setsockopt(self.0.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Reads an option. `T` is plain data for which all zeroes are valid: an integer, or `tcp_info`, of which an older
    /// kernel fills less.
    pub(super) fn option<T: Copy>(&self, level: i32, name: i32) -> io::Result<T> {
        let mut len = size_of::<T>() as libc::socklen_t;
        // SAFETY: see above; the kernel writes at most `len` bytes.
        unsafe {
            let mut value: T = std::mem::zeroed();
            let result = libc::getsockopt(self.0.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len);
            if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
        }
    }

    pub(super) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
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
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, bind, socket};
        let socket = Socket::new(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap());
        socket.share().unwrap();
        bind(socket.0.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
        socket.listen(16).unwrap();
        socket
    }
}
