//! The supervisor's end of the filter: taking calls, and answering them.

use super::ledger::{Answer, Ledger, answer};
use super::notification::Notification;
use nix::libc;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The supervisor's end: calls of the server wait here for an answer.
#[derive(Debug)]
pub struct Notifier(OwnedFd);

impl From<OwnedFd> for Notifier {
    fn from(fd: OwnedFd) -> Notifier {
        Notifier(fd)
    }
}

impl Notifier {
    /// Waits for the next call, which then stands in the ledger until it is answered; `None` when nobody under the filter
    /// is left. After an error the next call of this may fail at once, too.
    pub fn next(&self, ledger: &Ledger) -> io::Result<Option<Notification>> {
        loop {
            let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd, and the count says one.
            if unsafe { libc::poll(&raw mut poll, 1, -1) } < 0 {
                match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => continue,
                    e => return Err(e),
                }
            }
            // RECV only after POLLIN: before 6.11 it may never return otherwise.
            if poll.revents & libc::POLLIN != 0 {
                let got = match ledger.receive(self.0.as_raw_fd()) {
                    Ok(got) => got,
                    // The call was interrupted, or its process is gone.
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => continue,
                    Err(e) => return Err(e),
                };
                match Notification::read(&got) {
                    Some(notification) => return Ok(Some(notification)),
                    // Its process is gone, or nobody may look at it.
                    None => self.answer(ledger, got.id, Answer::Runs),
                }
            }
            if poll.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
                return Ok(None);
            }
        }
    }

    /// Answers a call that stands in the ledger.
    pub fn answer(&self, ledger: &Ledger, id: u64, becomes: Answer) {
        answer(self.raw(), id, becomes);
        ledger.clear(id);
    }

    /// Whether the call still waits: whatever was read of its process before belongs to it.
    pub fn waits(&self, id: u64) -> bool {
        let mut id = id;
        // SAFETY: the request goes with a u64.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id) == 0 }
    }

    /// The fd number, for the keeper.
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
