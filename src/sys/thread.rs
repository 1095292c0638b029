//! Threads.

use std::io;

/// Starts a thread with a small stack: none of ours goes deep.
pub fn start(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).stack_size(64 * 1024).spawn(body).map(drop)
}
