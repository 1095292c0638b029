//! The calls that were taken from the kernel and not answered yet.

use nix::libc;
use std::cell::UnsafeCell;
use std::io;
use std::mem::zeroed;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// How many calls may wait for an answer at once. The next ones wait in the kernel.
pub(super) const LEDGER_LEN: usize = 512;

/// The calls that wait for an answer, in memory that the keeper shares: if this process died, their callers would
/// otherwise wait for ever.
#[derive(Debug)]
pub struct Ledger {
    page: NonNull<Page>,
    /// One thread at a time takes a call. The value tells whether it waits for room.
    turn: Mutex<bool>,
    /// An entry has become free.
    freed: Condvar,
}

/// The memory that is shared.
#[repr(C)]
pub(super) struct Page {
    /// Where the kernel writes a call that is taken, so that at no moment a call is taken and noted nowhere. An id is never
    /// used twice: if the call that stands here was answered already, a second answer harms nobody.
    pub(super) received: UnsafeCell<libc::seccomp_notif>,
    /// Ids of calls that wait for an answer, or 0.
    waiting: [AtomicU64; LEDGER_LEN],
}

// SAFETY: the entries are only reached through atomics, the place of what is received only with `turn`, or by the keeper
// when all others are gone. The mapping lives as long as this value.
unsafe impl Send for Ledger {}

// SAFETY: as above.
unsafe impl Sync for Ledger {}

impl Ledger {
    /// A new page, all zero.
    pub fn new() -> io::Result<Ledger> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping of that length; zeroes are valid for all that is in it.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Page>(), access, kind, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Ledger { page, turn: Mutex::default(), freed: Condvar::new() })
    }

    pub(super) fn page(&self) -> &Page {
        // SAFETY: the mapping is valid and aligned, and unmapped only with the last handle.
        unsafe { self.page.as_ref() }
    }

    /// Takes a call from the kernel, and notes it before anything else is done.
    pub(super) fn receive(&self, notifier: RawFd) -> io::Result<libc::seccomp_notif> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |waits: &mut bool| {
            *waits = self.page().waiting.iter().all(|entry| entry.load(Ordering::Acquire) != 0);
            *waits
        };
        let _turn = self.freed.wait_while(turn, is_full).unwrap_or_else(PoisonError::into_inner);
        let place = self.page().received.get();
        // SAFETY: nobody else has the place while we have the turn; the kernel wants it zeroed and fills it.
        unsafe {
            place.write_volatile(zeroed());
            if libc::ioctl(notifier, libc::SECCOMP_IOCTL_NOTIF_RECV, place) != 0 {
                return Err(io::Error::last_os_error());
            }
            let got = place.read_volatile();
            self.replace(0, got.id);
            place.write_volatile(zeroed());
            Ok(got)
        }
    }

    /// The call was answered.
    pub(super) fn clear(&self, id: u64) {
        if self.replace(id, 0) {
            // With the turn held: else it could come after a thread has seen that there is no room and before it waits.
            let waits = *self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            if waits {
                self.freed.notify_all();
            }
        }
    }

    fn replace(&self, old: u64, new: u64) -> bool {
        let swap = |entry: &AtomicU64| entry.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        self.page().waiting.iter().any(swap)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and nobody has a reference to it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), size_of::<Page>()) };
    }
}

/// What becomes of a call that waits.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// It runs as if nobody had looked.
    Runs,
    /// It returns this instead of running: 0, or an errno.
    Returns(i32),
}

/// Answers a call. Async-signal-safe.
pub(super) fn answer(notifier: RawFd, id: u64, answer: Answer) {
    let (error, flags) = match answer {
        Answer::Runs => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        Answer::Returns(errno) => (-errno, 0),
    };
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: the request goes with this struct. ENOENT: the call is no longer there to be answered.
    unsafe { libc::ioctl(notifier, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
}

/// What the keeper does once the supervisor is dead, until nobody under the filter is left: it lets every call run as if
/// nobody had looked. The calls of a server that was killed fail: a `listen` that runs while its process dies would take
/// connections with it. Async-signal-safe.
pub fn answer_all(notifier: RawFd, ledger: &Ledger, killed: bool) {
    let becomes = if killed { Answer::Returns(libc::EINTR) } else { Answer::Runs };
    let answer = |id: u64| answer(notifier, id, becomes);
    // SAFETY: the supervisor is gone, and nobody else wrote there.
    answer(unsafe { (*ledger.page().received.get()).id });
    for entry in &ledger.page().waiting {
        match entry.swap(0, Ordering::AcqRel) {
            0 => {}
            id => answer(id),
        }
    }
    loop {
        let mut poll = libc::pollfd { fd: notifier, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, and the count says one.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
        if poll.revents & libc::POLLIN != 0 {
            // SAFETY: the kernel wants it zeroed and fills it; the request goes with this struct.
            unsafe {
                let mut got: libc::seccomp_notif = zeroed();
                if libc::ioctl(notifier, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut got) == 0 {
                    answer(got.id);
                } else if !matches!(*libc::__errno_location(), libc::ENOENT | libc::EINTR) {
                    // The fault may last: not again and again at once.
                    libc::poll(std::ptr::null_mut(), 0, 100);
                }
            }
        } else if poll.revents != 0 {
            return;
        }
    }
}
