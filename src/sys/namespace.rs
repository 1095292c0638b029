//! The namespaces of this process (namespaces(7)).

use nix::libc;
use std::io;
use std::os::fd::AsRawFd;

/// The namespaces that give a pid and an address their meaning; `None` where that cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespaces {
    /// The pid namespace: the inode of `/proc/self/ns/pid`.
    pub pid: Option<u64>,
    /// The network namespace: its cookie (SO_NETNS_COOKIE, Linux 5.14), or the inode of `/proc/self/ns/net`.
    pub net: Option<u64>,
}

impl Namespaces {
    /// The namespaces of this process.
    pub fn own() -> Namespaces {
        let inode = |kind: &str| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(format!("/proc/self/ns/{kind}")).map(|file| file.ino()).ok()
        };
        Namespaces { pid: inode("pid"), net: cookie().ok().or_else(|| inode("net")) }
    }

    /// Whether both may be the same. What is not known does not tell them apart.
    pub fn may_be(&self, other: &Namespaces) -> bool {
        let same = |one: Option<u64>, other: Option<u64>| one.is_none() || other.is_none() || one == other;
        same(self.pid, other.pid) && same(self.net, other.net)
    }
}

/// Names the network namespace of this process (SO_NETNS_COOKIE, Linux 5.14).
pub fn cookie() -> io::Result<u64> {
    // libc does not have it for every architecture.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    let (fd, to) = (socket.as_raw_fd(), (&raw mut cookie).cast());
    // SAFETY: the kernel writes at most as many bytes as the length says.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, to, &raw mut len) };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
