//! Which program a process runs, and by what a server and a supervisor are known.

use crate::sys::process::{self, Pid};
use nix::libc;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The name of the main thread of every serverswap (prctl(2), PR_SET_NAME).
pub const OWN_NAME: &std::ffi::CStr = c"serverswap";

/// The environment variable by which a process is known as part of a server: it has another value in each server.
pub const MARK: &str = "SERVERSWAP_SOCKET";

/// Returns a function that tells whether a process runs this program, or another copy of it.
pub fn serverswaps() -> impl Fn(Pid) -> bool {
    let is_this_program = copies();
    move |pid| {
        let is_named_so = || match process::read(format!("/proc/{pid}/comm")) {
            Ok(name) => name.strip_suffix(b"\n") == Some(OWN_NAME.to_bytes()),
            // A process that cannot be looked at, for want of fds for example, may be a serverswap: it is not signalled.
            Err(e) => !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
        };
        is_this_program(pid) || is_named_so()
    }
}

/// Returns a function that tells whether a process runs this very file.
pub(super) fn copies() -> impl Fn(Pid) -> bool {
    let own = file_id("/proc/self/exe");
    move |pid| own.is_some() && file_id(&format!("/proc/{pid}/exe")) == own
}

/// Names a file: its device and inode.
pub(super) fn file_id(path: &str) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}
