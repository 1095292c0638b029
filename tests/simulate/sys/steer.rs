//! Handles on sockets of the simulated kernel. The programs are the product's own.

mod probe;
#[path = "../../../src/sys/steer/program.rs"]
mod program;

pub use probe::Probe;
pub use program::{OwnProgram, Program, Range};

use crate::kernel::{self, Filter, Kernel, Key};
use crate::place::{Families, Place};
use nix::errno::Errno;
use std::io;
use std::net::SocketAddr;

/// A handle of a process on a socket. With the last handle the socket is closed.
#[derive(Debug)]
pub struct Socket {
    inode: u32,
    owner: i32,
}

impl Socket {
    /// A new handle of the process that runs.
    pub fn open(inode: u32) -> Socket {
        let owner = kernel::with(|k| {
            k.take(inode, k.me);
            k.me
        });
        Socket { inode, owner }
    }

    /// bind(2).
    pub fn bind(key: Key, shares: bool) -> io::Result<Socket> {
        let (bound, owner) = kernel::with(|k| (k.bind(key, shares), k.me));
        Ok(Socket { inode: bound?, owner })
    }

    /// The handle that a message carries.
    pub fn send(&self) -> Socket {
        kernel::run_as(kernel::NOBODY, || Socket::open(self.inode))
    }

    fn with<T>(&self, act: impl FnOnce(&kernel::Socket) -> T) -> io::Result<T> {
        kernel::with(|k| k.sockets.get(&self.inode).map(act)).ok_or_else(|| Errno::EBADF.into())
    }

    fn with_mut(&self, act: impl FnOnce(&mut kernel::Socket)) -> io::Result<()> {
        kernel::with(|k| k.sockets.get_mut(&self.inode).map(act)).ok_or_else(|| Errno::EBADF.into())
    }

    pub fn is_tcp(&self) -> bool {
        true
    }

    pub fn listens(&self) -> bool {
        self.with(|s| s.listens).unwrap_or(false)
    }

    pub fn inode(&self) -> io::Result<u32> {
        Ok(self.inode)
    }

    pub fn shares(&self) -> bool {
        self.with(|s| s.shares).unwrap_or(false)
    }

    pub fn share(&self) -> io::Result<()> {
        self.with_mut(|s| s.shares = true)
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.with(|s| s.key.address)
    }

    pub fn place(&self) -> io::Result<Place> {
        self.with(|s| s.key.place())
    }

    pub fn listen(&self, _backlog: i32) -> io::Result<()> {
        Ok(kernel::with(|k| k.listen(self.inode))?)
    }

    pub fn queue(&self) -> io::Result<u32> {
        self.with(|s| s.queue.len() as u32)
    }

    pub fn steer(&self, program: &Program) -> io::Result<()> {
        Ok(kernel::with(|k| k.attach(self.inode, Some(&program.0)))?)
    }

    pub fn release(&self) -> io::Result<()> {
        match kernel::with(|k| k.attach(self.inode, None)) {
            Err(Errno::ENOENT) => Ok(()),
            done => Ok(done?),
        }
    }

    pub fn steer_by(&self, own: &OwnProgram) -> io::Result<()> {
        match own {
            OwnProgram::Classic(program) => Ok(kernel::with(|k| k.attach(self.inode, Some(program)))?),
            OwnProgram::Extended(_) => Err(Errno::EINVAL.into()),
            OwnProgram::None => self.release(),
        }
    }

    pub fn refuse_newcomers(&self, except: Option<&Probe>) -> io::Result<bool> {
        self.with_mut(|s| s.filter = Some(Filter { except: except.map(Probe::source) }))?;
        Ok(true)
    }

    pub fn accept_newcomers(&self) -> io::Result<()> {
        self.with_mut(|s| s.filter = None)
    }

    pub fn try_clone(&self) -> io::Result<Socket> {
        Ok(Socket::open(self.inode))
    }

    pub fn visit(place: &Place, act: impl FnOnce(&Socket) -> io::Result<()>) -> io::Result<()> {
        let key = Key {
            address: place.address,
            both: place.families == Families::Both,
            device: place.device,
            uid: place.uid,
        };
        let visitor = Socket::bind(key, true)?;
        visitor.refuse_newcomers(None)?;
        visitor.listen(0)?;
        act(&visitor)
    }

    pub fn scratch(_: &Place) -> io::Result<Socket> {
        Err(Errno::EINVAL.into())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        kernel::try_with(|k: &mut Kernel| k.close(self.inode, self.owner));
    }
}

/// For tests of the product that are compiled with it and do not run here.
#[cfg(test)]
impl From<Socket> for std::os::fd::OwnedFd {
    fn from(_: Socket) -> std::os::fd::OwnedFd {
        unreachable!("there are no files here")
    }
}
