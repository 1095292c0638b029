//! Opening, writing and removing files of the run directory. A file is opened only if it is a regular file of ours, and
//! written under another name first.

use super::RunDir;
use crate::error::reason;
use crate::sys::file;
use crate::sys::pid::Pid;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::fs::File;
use std::io::Write;

/// What is said of a file that may not be opened.
pub const CANNOT_BE_READ: &str = "cannot be read";

/// Why a file is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// There is no such file.
    Absent,
    /// There is no fd or no memory to look at it. This says nothing about the file.
    Unreadable,
    /// The reason, as a clause about the file.
    Because(&'static str),
}

impl RunDir {
    /// Opens a file for reading if it is a regular file of ours, under one name and not larger than this.
    pub fn open_checked(&self, name: &str, size_max: u64) -> Result<File, Bad> {
        let (file, stat) = self.open_ours(name)?;
        match () {
            () if stat.st_nlink > 1 => Err(Bad::Because("has a second name (a hard link)")),
            () if stat.st_size as u64 > size_max => Err(Bad::Because("is too large")),
            () => Ok(file),
        }
    }

    /// Opens a file for reading if it is a regular file of ours.
    pub fn open_ours(&self, name: &str) -> Result<(File, FileStat), Bad> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        let fd = match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Err(Bad::Absent),
            Err(Errno::ELOOP) => return Err(Bad::Because("is a symlink")),
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => return Err(Bad::Unreadable),
            Err(_) => return Err(Bad::Because(CANNOT_BE_READ)),
        };
        let stat = fstat(&fd).map_err(|_| Bad::Unreadable)?;
        match () {
            () if stat.st_mode & nix::libc::S_IFMT != nix::libc::S_IFREG => Err(Bad::Because("is no regular file")),
            () if stat.st_uid != self.owner => Err(Bad::Because("belongs to another user")),
            () => Ok((File::from(fd), stat)),
        }
    }

    /// Writes a new file, lets `prepare` have it, and then gives it its name. A file that had the name before is
    /// replaced and never opened.
    pub fn write_by_rename(
        &self,
        name: &str,
        content: &[u8],
        mode: u32,
        prepare: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> Result<File, String> {
        let temporary = self.temporary_name(Pid::own());
        self.unlink(&temporary);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let written = openat(&self.dir, temporary.as_str(), flags, Mode::from_bits_truncate(mode))
            .map(File::from)
            .map_err(std::io::Error::from)
            .and_then(|mut file| {
                file.write_all(content)?;
                prepare(&file)?;
                renameat(&self.dir, temporary.as_str(), &self.dir, name)?;
                Ok(file)
            });
        written.map_err(|e| {
            self.unlink(&temporary);
            reason(&e)
        })
    }

    /// Removes a name if there is one.
    pub fn unlink(&self, name: &str) {
        let _ = unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir);
    }

    /// Removes a name if it still is the name of this file.
    pub fn unlink_name_of(&self, file: &File, name: &str) {
        if self.is_name_of(name, file) {
            self.unlink(name);
        }
    }

    /// Whether this is the name of a file.
    pub fn is_name_of(&self, name: &str, file: &File) -> bool {
        let named = fstatat(&self.dir, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        named.is_ok_and(|named| Some((named.st_dev, named.st_ino)) == file::id(file))
    }
}
