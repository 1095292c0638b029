//! Reading the numbers in a directory such as `/proc` or `/proc/self/fd`, for a process that must not allocate: the keeper.

use nix::libc;
use std::os::fd::RawFd;

/// Shows every number that names something in an open directory. Numbers that come or go meanwhile do not hide others: the
/// listing goes on after the last one that it gave. Async-signal-safe.
pub fn each_number(directory: RawFd, mut see: impl FnMut(i32)) {
    let mut entries = [0u64; 512];
    loop {
        // SAFETY: a buffer with its length.
        let len =
            unsafe { libc::syscall(libc::SYS_getdents64, directory, entries.as_mut_ptr(), size_of_val(&entries)) };
        if len <= 0 {
            return;
        }
        // SAFETY: the kernel has filled so many bytes of the buffer.
        let bytes = unsafe { std::slice::from_raw_parts(entries.as_ptr().cast::<u8>(), len as usize) };
        listed(bytes).for_each(&mut see);
    }
}

/// The numbers among the names of what getdents64(2) gave: 8 bytes inode, 8 offset, 2 length of the entry, 1 type, and
/// the name with its NUL.
fn listed(mut entries: &[u8]) -> impl Iterator<Item = RawFd> {
    std::iter::from_fn(move || {
        while let &[_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, low, high, ..] = entries {
            let len = usize::from(u16::from_ne_bytes([low, high]));
            let (entry, rest) = entries.split_at_checked(len.max(19))?;
            entries = rest;
            let name = entry[19..].split(|&byte| byte == 0).next()?;
            if let Some(number) = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok()) {
                return Some(number);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_listing_are_read() {
        let entry = |name: &str| {
            let len = (19 + name.len() + 1).next_multiple_of(8);
            let mut entry = vec![0; 16];
            entry.extend((len as u16).to_ne_bytes());
            entry.push(libc::DT_LNK);
            entry.extend(name.bytes());
            entry.resize(len, 0);
            entry
        };
        let entries: Vec<u8> = [".", "..", "0", "7", "1048575"].into_iter().flat_map(entry).collect();
        assert_eq!(listed(&entries).collect::<Vec<RawFd>>(), [0, 7, 1_048_575]);
        for torn in 0..entries.len() {
            assert!(listed(&entries[..torn]).count() <= 3);
        }
    }
}
