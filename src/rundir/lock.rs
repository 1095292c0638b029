//! The lock of the run directory. It is held while pidfiles are compared and changed. A stopped process may hold it, so
//! every wait for it has an end.

use super::RunDir;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::sys::stat::Mode;
use std::fs::{File, TryLockError};
use std::sync::{Arc, MutexGuard, PoisonError, mpsc};

/// The name of the lock.
pub const LOCK: &str = "lock";

/// Why the lock could not be taken.
pub enum Denied {
    /// Somebody else holds it.
    Busy,
    /// It cannot be taken at all.
    Because(String),
}

impl From<Denied> for String {
    fn from(denied: Denied) -> String {
        let why = match denied {
            Denied::Busy => "somebody holds its lock and does not let go".into(),
            Denied::Because(why) => why,
        };
        format!("unable to lock the run directory: {why}")
    }
}

impl RunDir {
    /// Takes the lock for several steps, until [`RunDir::release`]; `false` if somebody else holds it. If it cannot be
    /// taken for another reason, each step says why.
    pub fn hold(&self) -> bool {
        match self.lock() {
            Ok(lock) => *self.held() = Some(lock),
            Err(Denied::Busy) => return false,
            Err(Denied::Because(_)) => {}
        }
        true
    }

    /// Like [`RunDir::hold`], with a lock that a thread has waited for.
    pub fn keep(&self, lock: File) {
        *self.held() = Some(Arc::new(lock));
    }

    /// Gives the lock back.
    pub fn release(&self) {
        *self.held() = None;
    }

    /// Waits for the lock, however long it takes.
    pub fn wait_for_lock(&self) -> std::io::Result<File> {
        let file = self.open_lock()?;
        file.lock()?;
        Ok(file)
    }

    /// Takes the lock for as long as the result lives, or shares the lock that is held already.
    pub fn lock(&self) -> Result<Arc<File>, Denied> {
        if let Some(held) = &*self.held() {
            return Ok(held.clone());
        }
        let because = |e: &dyn std::fmt::Display| Denied::Because(e.to_string());
        let file = self.open_lock().map_err(|e| because(&e.desc()))?;
        match file.try_lock() {
            Ok(()) => return Ok(Arc::new(file)),
            Err(TryLockError::WouldBlock) if self.patience.is_zero() => return Err(Denied::Busy),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => return Err(because(&e)),
        }
        let waiting = file.try_clone().map_err(|e| because(&e))?;
        let (sender, receiver) = mpsc::channel();
        // The thread outlives an impatient caller; its handle on the lock ends with it.
        let waiter = std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            let _ = sender.send(waiting.lock());
        });
        waiter.map_err(|e| because(&e))?;
        match receiver.recv_timeout(self.patience) {
            Ok(Ok(())) => Ok(Arc::new(file)),
            Ok(Err(e)) => Err(because(&e)),
            Err(_) => Err(Denied::Busy),
        }
    }

    /// Whether this process may claim orphans. One process at a time may, until it has what it wants, or others have
    /// waited long enough: two that claimed the same two orphans could each get one and wait for the other for ever.
    /// (An open file description lock, fcntl(2): it has nothing to do with the flock(2) on the same file.)
    pub fn may_claim_orphans(&self) -> bool {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if turn.is_none() {
            let whole = nix::libc::flock {
                l_type: nix::libc::F_WRLCK as _,
                l_whence: nix::libc::SEEK_SET as _,
                l_start: 0,
                l_len: 0,
                l_pid: 0,
            };
            *turn = self.open_lock().ok().filter(|file| match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
                Err(Errno::EAGAIN | Errno::EACCES) => false,
                // Where there are no such locks everybody may.
                Ok(_) | Err(_) => true,
            });
        }
        turn.is_some()
    }

    /// From here on this process may claim orphans, even if another one does.
    pub fn claims_orphans_out_of_turn(&self) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = self.open_lock().ok();
    }

    /// From here on this process claims no orphans, and another one may.
    pub fn claims_no_orphans(&self) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn held(&self) -> MutexGuard<'_, Option<Arc<File>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_lock(&self) -> nix::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        openat(&self.dir, LOCK, flags, Mode::from_bits_truncate(0o600)).map(File::from)
    }
}
