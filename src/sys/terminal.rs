//! The terminal of a person.

use nix::libc;
use std::os::fd::{AsFd, AsRawFd};

/// How many columns it has; `None` if the file is no terminal, or does not tell (ioctl_tty(2)).
pub fn width(file: &impl AsFd) -> Option<usize> {
    // SAFETY: all-zero is a valid winsize to be written over.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes a winsize to the pointer, which is valid.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    Some(usize::from(size.ws_col)).filter(|columns| result == 0 && *columns > 0)
}
