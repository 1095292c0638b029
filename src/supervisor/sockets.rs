//! The sockets of a server in the run directory: for those who want to speak to its supervisor.

use super::threads::{self, Events, Id, NotifySocket};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::stat::{Mode, umask};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The control and the notify socket of a server.
pub(super) struct Sockets {
    /// The connection to the server itself.
    pub(super) control: Id,
    listener: Arc<UnixListener>,
    notify: Arc<NotifySocket>,
    /// Their names in the run directory.
    pub(super) names: [String; 2],
}

impl Sockets {
    /// Opens them by names that begin so. Only this user can connect to them, from the moment they are there.
    pub(super) fn open(dir: &Path, stem: &str) -> io::Result<Sockets> {
        Sockets::bind(dir, ["sock", "notify"].map(|kind| format!("{stem}.{kind}")), threads::next_id())
    }

    /// Opens them by the same names again, which somebody has removed. The server keeps its connection.
    pub(super) fn open_again(&self, dir: &Path) -> io::Result<Sockets> {
        Sockets::bind(dir, self.names.clone(), self.control)
    }

    fn bind(dir: &Path, names: [String; 2], control: Id) -> io::Result<Sockets> {
        let [socket, notify] = names.each_ref().map(|name| dir.join(name));
        let before = umask(Mode::from_bits_truncate(0o177));
        let opened = bind(&socket, UnixListener::bind).and_then(|listener| {
            let datagrams = bind(&notify, UnixDatagram::bind).inspect_err(|_| drop(std::fs::remove_file(&socket)))?;
            Ok((listener, datagrams))
        });
        umask(before);
        let (listener, socket) = opened?;
        let notify = Arc::new(NotifySocket { socket, closed: AtomicBool::new(false) });
        Ok(Sockets { control, listener: Arc::new(listener), notify, names })
    }

    /// Starts the threads that read them.
    pub(super) fn hear(&self, events: &Events) -> io::Result<()> {
        threads::accept(events.clone(), self.listener.clone())?;
        threads::notifications(events.clone(), self.notify.clone())
    }

    /// Ends these threads.
    pub(super) fn close(&self) {
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        self.notify.closed.store(true, Ordering::Release);
        let _ = self.notify.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Removes their names.
    pub(super) fn remove(&self, dir: &Path) {
        for name in &self.names {
            let _ = std::fs::remove_file(dir.join(name));
        }
    }
}

/// Binds a socket. One that a dead supervisor with our pid left is replaced: in a container our pid may always be 1.
fn bind<'a, S>(path: &'a Path, bind: impl Fn(&'a Path) -> io::Result<S>) -> io::Result<S> {
    match bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && is_left_behind(path) => {
            std::fs::remove_file(path)?;
            bind(path)
        }
        bound => bound,
    }
}

/// Whether it is a socket that nobody has. To connect to it by datagrams never waits, whatever its kind.
fn is_left_behind(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let connected = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    is_socket && connected.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}
