//! `--detach`: the caller's process waits for the swap while the supervisor runs in the background, in
//! a session of its own.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::sys::process::{self, Forked};
use nix::sys::signal::Signal;
use signal_hook::iterator::Signals;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::SyncSender;

/// The supervisor's line to the process that waits for the swap.
pub struct Launcher(UnixStream);

/// Who this process is after [`fork`].
pub enum Side {
    /// The caller's process: its exit status.
    Caller(u8),
    /// The supervisor.
    Supervisor(Launcher),
}

/// Splits in two. The caller's side returns when the swap is done or has failed.
pub fn fork() -> Result<Side> {
    let failed = |e: io::Error| Error::unable("go to the background", e, "nothing was started");
    let (caller, supervisor) = UnixStream::pair().map_err(failed)?;
    match process::fork_session().map_err(failed)? {
        Forked::Child => Ok(Side::Supervisor(Launcher(supervisor))),
        Forked::Parent => {
            drop(supervisor);
            wait(caller).map(Side::Caller).map_err(failed)
        }
    }
}

/// Waits for the status. A signal that would end the wait calls the swap off instead, if it is not
/// past its switch.
fn wait(mut supervisor: UnixStream) -> io::Result<u8> {
    let mut signals =
        Signals::new([Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP].map(|s| s as i32))?;
    let mut canceller = supervisor.try_clone()?;
    std::thread::spawn(move || {
        for _ in &mut signals {
            let _ = canceller.write_all(b"c");
        }
    });
    let mut status = [0];
    match supervisor.read_exact(&mut status) {
        Ok(()) => Ok(status[0]),
        Err(_) => Err(io::Error::other("the supervisor died before the swap was done")),
    }
}

impl Launcher {
    /// Starts the thread that hears of a cancelled swap. That the caller died says nothing.
    pub fn watch<E: Send + 'static>(&self, events: SyncSender<E>, cancelled: fn() -> E) -> io::Result<()> {
        let mut caller = self.0.try_clone()?;
        std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            let mut byte = [0];
            while matches!(caller.read(&mut byte), Ok(1)) && events.send(cancelled()).is_ok() {}
        })?;
        Ok(())
    }

    /// Tells the caller its exit status.
    pub fn tell(&self, status: u8) {
        let _ = (&self.0).write_all(&[status]);
    }

    /// Lets go of the caller: a terminal becomes `/dev/null`, everything else stays.
    pub fn detach(self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
        let Ok(null) = File::options().read(true).write(true).open("/dev/null") else { return };
        let is_terminal =
            [nix::unistd::isatty(io::stdin()), nix::unistd::isatty(io::stdout()), nix::unistd::isatty(io::stderr())];
        for (number, is_terminal) in (0..).zip(is_terminal) {
            if is_terminal == Ok(true) {
                let _ = process::redirect(null.as_fd(), number);
            }
        }
    }
}
