//! `--detach`: the caller's process waits for the swap while the supervisor runs in the background, in
//! a session of its own.

#![forbid(unsafe_code)]

use crate::error::{Error, Result, reason};
use crate::message::{self, Log};
use crate::output::Output;
use crate::swap::Level;
use crate::sys::process::{self, Forked};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use signal_hook::iterator::Signals;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::Duration;

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
pub fn fork(log: Log) -> Result<Side> {
    let failed = |e: io::Error| Error::unable("go to the background", e, "nothing was started");
    let (mut caller, supervisor) = UnixStream::pair().map_err(failed)?;
    let canceller = caller.try_clone().map_err(failed)?;
    let mut cancels = vec![Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];
    // Signals that nohup(1), or a shell for a background command, made this process ignore stay ignored.
    cancels.retain(|signal| !process::is_ignored(*signal));
    // None of these signals may end the caller alone: they are blocked until handlers are in place.
    let before = SigSet::from_iter(cancels.iter().copied())
        .thread_swap_mask(SigmaskHow::SIG_BLOCK)
        .map_err(|e| failed(e.into()))?;
    let side = process::fork_session().map_err(failed)?;
    let signals = match side {
        Forked::Child => None,
        Forked::Parent => Some(Signals::new(cancels.iter().map(|s| *s as i32))),
    };
    let _ = before.thread_set_mask();
    let Some(signals) = signals else { return Ok(Side::Supervisor(Launcher(supervisor))) };
    drop(supervisor);
    // The swap is under way. It goes on, although no signal can call it off.
    if let Err(e) = signals.and_then(|signals| cancel_on(signals, canceller)) {
        let text = format!("unable to wait for signals: {} (the swap cannot be called off)", reason(&e));
        log.say(Level::Warning, None, &text);
    }
    let mut status = [0];
    match caller.read_exact(&mut status) {
        Ok(()) => Ok(Side::Caller(status[0])),
        Err(_) => {
            Err(Error::failed("the supervisor died before the swap was done (serverswap --status tells what serves)"))
        }
    }
}

/// A signal that would end the caller's wait calls the swap off instead, if it is not past its switch.
fn cancel_on(mut signals: Signals, mut canceller: UnixStream) -> io::Result<()> {
    let cancel = move || {
        for _ in &mut signals {
            let _ = canceller.write_all(b"c");
        }
    };
    std::thread::Builder::new().spawn(cancel).map(drop)
}

impl Launcher {
    /// Starts the thread that hears of a cancelled swap. The death of the caller cancels nothing.
    pub fn watch<E: Send + 'static>(&self, events: SyncSender<E>, cancelled: fn() -> E) -> io::Result<()> {
        let mut caller = self.0.try_clone()?;
        std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            let mut byte = [0];
            while matches!(caller.read(&mut byte), Ok(1)) && events.send(cancelled()).is_ok() {}
        })?;
        Ok(())
    }

    /// Tells the caller its exit status, once the messages so far are written, and lets go of it. If they cannot be
    /// written at once, a thread does that, which is returned.
    pub fn dismiss(self, status: u8, output: &Arc<Output>) -> Option<JoinHandle<()>> {
        let launcher = Arc::new(self);
        let now = launcher.clone();
        if !message::flush(Duration::ZERO) {
            let output = output.clone();
            let later = move || {
                message::flush(message::PATIENCE);
                launcher.let_go(status, &output);
            };
            if let Ok(thread) = std::thread::Builder::new().stack_size(64 * 1024).spawn(later) {
                return Some(thread);
            }
        }
        now.let_go(status, output);
        None
    }

    /// Tells the caller its exit status, before this process ends too.
    pub fn tell(&self, status: u8) {
        message::flush(message::PATIENCE);
        let _ = (&self.0).write_all(&[status]);
    }

    /// Lets go of the caller's files, tells the caller its exit status and closes the line.
    fn let_go(&self, status: u8, output: &Output) {
        output.leave_caller();
        let _ = (&self.0).write_all(&[status]);
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}
