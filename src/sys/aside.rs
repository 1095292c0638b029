//! How a process that a supervisor forks, and that outlives it, holds nothing but what it was forked for.

use super::listing::each_number;
use nix::libc;
use std::os::fd::RawFd;

/// Blocks all signals, begins a session of its own, and closes every fd that is not among these, which are in ascending
/// order: an inherited lock would make a dead supervisor look alive, an inherited pipe would keep its reader waiting.
/// Async-signal-safe.
///
/// # Safety
/// Only in a freshly forked child.
pub unsafe fn step_aside(kept: &[RawFd]) {
    // SAFETY: the calls take integers and pointers to locals.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        libc::setsid();
    }
    let mut from = 0;
    for until in kept.iter().copied().chain([RawFd::MAX]) {
        // SAFETY: integers only. Linux 5.9; a container profile may refuse it.
        if from < until && unsafe { libc::syscall(libc::SYS_close_range, from, until - 1, 0) } != 0 {
            return close_listed(kept);
        }
        from = until.saturating_add(1);
    }
}

/// Closes one by one.
fn close_listed(kept: &[RawFd]) {
    let is_kept = |fd: RawFd| kept.binary_search(&fd).is_ok();
    // SAFETY: the calls take integers and a constant string.
    unsafe {
        // Room for one more.
        (0..).find(|fd| !is_kept(*fd)).into_iter().for_each(|fd| _ = libc::close(fd));
        let listing = libc::open(c"/proc/self/fd".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC);
        each_number(listing, |fd| {
            if fd != listing && !is_kept(fd) {
                libc::close(fd);
            }
        });
        libc::close(listing);
    }
}
