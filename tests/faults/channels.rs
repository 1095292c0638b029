//! The channels between two processes, found from outside.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;

/// Sockets of the first process whose other end the second one holds: fd and inode.
pub fn between(one: i32, other: i32) -> Vec<i32> {
    let (ours, theirs) = (sockets(one), sockets(other));
    let pairs = pairs();
    let joined = |a: u64| theirs.iter().any(|(_, b)| pairs.contains(&(a, *b)) || pairs.contains(&(*b, a)));
    ours.into_iter().filter(|(_, inode)| joined(*inode)).map(|(fd, _)| fd).collect()
}

/// Ends every channel between two processes; how many there were.
pub fn end(one: i32, other: i32) -> usize {
    let fds = between(one, other);
    for &fd in &fds {
        if let Ok(copy) = super::common::copy_fd(one, fd) {
            let _ = nix::sys::socket::shutdown(copy.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
    }
    fds.len()
}

fn sockets(pid: i32) -> Vec<(i32, u64)> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, inode))
        })
        .collect()
}

/// The inodes of all connected unix sockets, both ends of each (ss(8), of iproute2).
fn pairs() -> Vec<(u64, u64)> {
    let output = Command::new("ss").args(["-xanH"]).output().expect("ss, of iproute2");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let pair = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some((fields.get(5)?.parse().ok()?, fields.get(7)?.parse().ok()?))
    };
    text.lines().filter_map(pair).filter(|(_, peer)| *peer != 0).collect()
}
