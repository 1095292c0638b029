//! Killing what descends from a process, by a process that must not allocate: the keeper.

use super::listing::each_number;
use nix::libc;
use std::io::Write;

/// The most processes that are killed.
const MOST: usize = 1024;
/// The most looks at all processes. A process that is forked during one look is found by the next.
const LOOKS: usize = 16;
/// The most ancestors that are followed: a torn look could find a circle.
const DEPTH_MAX: usize = 64;
/// The name of a serverswap. The server of another serverswap is no part of this one.
const OTHER: &[u8] = b"serverswap";

/// Kills all that descends from a process, which must be stopped, and nothing else. Without `/proc` it kills nothing.
/// Async-signal-safe.
pub fn kill(root: i32) {
    let mut found = [0i32; MOST];
    let mut count = 0;
    for _ in 0..LOOKS {
        let before = count;
        each_process(|pid| {
            if count < MOST && !found[..count].contains(&pid) && descends(pid, root) {
                // SAFETY: two integers. A stopped process forks no more, and no parent ends before all are found.
                unsafe { libc::kill(pid, libc::SIGSTOP) };
                found[count] = pid;
                count += 1;
            }
        });
        if count == before {
            break;
        }
    }
    for &pid in &found[..count] {
        // SAFETY: two integers.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

fn descends(pid: i32, root: i32) -> bool {
    let mut next = pid;
    for _ in 0..DEPTH_MAX {
        match parent(next) {
            Some(parent) if parent == root => return true,
            Some(parent) if parent > 1 => next = parent,
            Some(_) | None => return false,
        }
    }
    false
}

/// The parent of a process that is no serverswap.
fn parent(pid: i32) -> Option<i32> {
    let mut path = [0u8; 32];
    // This allocates nothing, and what it leaves over is the NUL.
    write!(&mut path[..], "/proc/{pid}/stat").ok()?;
    let mut text = [0u8; 512];
    // SAFETY: a path that ends with a NUL, and a buffer with its length.
    let read = unsafe {
        let fd = libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        let read = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        libc::close(fd);
        read
    };
    let text = &text[..usize::try_from(read).ok()?];
    let open = text.iter().position(|&b| b == b'(')?;
    let close = text.iter().rposition(|&b| b == b')')?;
    if text.get(open + 1..close)? == OTHER {
        return None;
    }
    // A space, the state, a space.
    number(text.get(close + 4..)?)
}

fn number(text: &[u8]) -> Option<i32> {
    let len = text.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&text[..len]).ok()?.parse().ok()
}

fn each_process(see: impl FnMut(i32)) {
    // SAFETY: a path that ends with a NUL.
    let proc = unsafe { libc::open(c"/proc".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) };
    each_number(proc, see);
    // SAFETY: the fd is ours, or -1.
    unsafe { libc::close(proc) };
}
