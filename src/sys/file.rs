//! What an open file is.

use nix::libc;
use nix::sys::stat::fstat;
use std::os::fd::AsFd;

/// Its device and inode, by which two fds are known to mean one file; `None` if it cannot be asked.
pub fn id(file: impl AsFd) -> Option<(u64, u64)> {
    fstat(file).map(|stat| (stat.st_dev, stat.st_ino)).ok()
}

/// Whether it is a regular file: that takes what is written whoever reads it, and can be read again.
pub fn is_regular(file: impl AsFd) -> bool {
    fstat(file).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG)
}
