//! Where the `bind` and `listen` calls of a server are seen, and what the thread that sees them shares with the others.

use crate::error::reason;
use crate::family::Seen;
use crate::sys::net;
use crate::sys::process::Pid;
use crate::sys::seccomp::{self, Ledger, Notifier};
use std::collections::BTreeSet;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Where the calls of a server are seen.
pub struct Watch {
    /// Where the calls wait.
    pub notifier: Notifier,
    /// The calls that wait.
    pub ledger: Arc<Ledger>,
    /// What the calls tell of their server.
    pub seen: Seen,
    /// What is shared with the thread that sees the calls.
    pub facts: Facts,
}

/// What the main thread and the thread that sees the calls of a server tell each other.
#[derive(Debug, Default)]
pub struct Facts {
    /// The main process, or 0.
    main: AtomicI32,
    /// Whether another server shares the port: one that this server replaces, or one that holds its lock.
    lent: AtomicBool,
    /// Inodes of UDP sockets that were made sharable.
    datagrams: Mutex<BTreeSet<u32>>,
}

impl Facts {
    /// The main process of the server, and whether another one shares its port.
    pub fn read(&self) -> (Option<Pid>, bool) {
        (Pid::new(self.main.load(Ordering::Acquire).into()), self.lent.load(Ordering::Acquire))
    }

    /// Tells what has changed.
    pub fn tell(&self, main: Pid, lent: bool) {
        self.main.store(main.raw(), Ordering::Release);
        self.lent.store(lent, Ordering::Release);
    }

    /// A UDP socket was made sharable.
    pub fn note_datagram(&self, inode: u32) {
        self.datagrams.lock().unwrap_or_else(PoisonError::into_inner).insert(inode);
    }

    /// The UDP sockets that were made sharable and are still bound. The others are forgotten.
    pub fn datagrams(&self) -> io::Result<Vec<u32>> {
        let bound = net::datagrams()?;
        let mut own = self.datagrams.lock().unwrap_or_else(PoisonError::into_inner);
        own.retain(|inode| bound.contains(inode));
        Ok(own.iter().copied().collect())
    }
}

impl Watch {
    /// Takes what the child sent before its exec. The error tells why its calls cannot be seen.
    pub(super) fn receive(report: &UnixStream, ledger: Arc<Ledger>, seen: Seen) -> Result<Arc<Watch>, String> {
        let notifier = seccomp::receive_result(report).map_err(|e| match e.raw_os_error() {
            Some(nix::libc::EBUSY) => "another one watches already (serverswap inside a server?)".to_owned(),
            _ => format!("the kernel or a container profile forbids it: {}", reason(&e)),
        })?;
        seen.watched();
        Ok(Arc::new(Watch { notifier, ledger, seen, facts: Facts::default() }))
    }
}
