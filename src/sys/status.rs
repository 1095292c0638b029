//! Files of `/proc`, and what `/proc/PID/status` says.

#![forbid(unsafe_code)]

use std::io::Read;

/// The whole of a file of `/proc`. Such a file has no length: to read it into a buffer that grows takes many calls.
pub fn read(path: impl AsRef<std::path::Path>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    std::fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What proc_pid_status(5) says of a process or a thread. These are bytes, since its name may be no UTF-8.
pub struct Status(Vec<u8>);

impl Status {
    /// `None` if it is gone, or may not be looked at.
    pub fn read(id: impl std::fmt::Display) -> Option<Status> {
        read(format!("/proc/{id}/status")).ok().map(Status)
    }

    /// One of the numbers in the line that begins with this key, counted from 0.
    pub fn number(&self, key: &str, at: usize) -> Option<u32> {
        let line = self.0.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key.as_bytes()))?;
        std::str::from_utf8(line).ok()?.split_whitespace().nth(at)?.parse().ok()
    }
}
