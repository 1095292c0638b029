//! Where the output of a server goes: to the files of serverswap's caller, or to a log. What a server wrote last is read
//! there again when it fails.
//!
//! No process stands between a server and its output, so that no death but its own can end it.

#![forbid(unsafe_code)]

use crate::cli::{Destination, Run};
use crate::error::{Error, Result};
use crate::sys::file::{id, is_regular};
use crate::sys::process;
use crate::sys::user;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Whence, geteuid, lseek};
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How many of the last lines of a server are shown.
const LINES: usize = 20;
/// How much of the log is looked through for them, in bytes.
const READ_MAX: u64 = 64 * 1024;
/// Longest part of a line that is shown, in characters.
const LINE_MAX: usize = 200;
/// Longest name of a log that is made from a command, in bytes.
const NAME_MAX: usize = 200;

/// Where the output of a server goes.
pub struct Output {
    /// What takes the place of the caller's standard output and standard error.
    files: [Option<File>; 2],
    /// The log, if one takes the place of a file of the caller's.
    log: Option<PathBuf>,
    /// What of it can be read again, standard error first.
    written: Vec<Written>,
}

/// A regular file to which a server writes.
struct Written {
    file: File,
    /// The size of the file and the position of its open file description before the server wrote.
    size: u64,
    position: i64,
}

impl Output {
    /// Opens what a server is to write to: the log that was asked for; or the caller's files, if the server is in the
    /// foreground or they are regular files; or else the log that is named after its command.
    pub fn open(run: &Run) -> Result<Output> {
        let is_kept = |file: BorrowedFd<'_>| !run.detach || is_regular(file);
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let callers = [stdout.as_fd(), stderr.as_fd()];
        let (kept, named) = match &run.log {
            Some(Destination::Caller) => ([true; 2], None),
            Some(Destination::File(path)) => ([false; 2], Some(path.clone())),
            None => (callers.map(is_kept), None),
        };
        let mut output = Output { files: callers.map(own_description), log: None, written: Vec::new() };
        if kept != [true; 2] {
            let path = named.map_or_else(|| default_log(run), Ok)?;
            let (path, log) = open_log(&path)?;
            for (file, _) in output.files.iter_mut().zip(kept).filter(|(_, kept)| !kept) {
                *file = Some(log.try_clone().map_err(|e| unable(&path, e))?);
            }
            output.log = Some(path);
        }
        // Both streams to one file: what they write to it has one position.
        if id(callers[0]) == id(callers[1])
            && let [Some(stdout), stderr @ Some(_)] = &mut output.files
        {
            *stderr = stdout.try_clone().ok();
        }
        let [stdout, stderr] = output.files.each_ref().map(|file| file.as_ref().map(AsFd::as_fd));
        let both = [stderr.unwrap_or(callers[1]), stdout.unwrap_or(callers[0])];
        output.written =
            both.into_iter().filter(|file| is_regular(*file)).filter_map(|file| Written::to(file).ok()).collect();
        Ok(output)
    }

    /// The file for standard output (0) or standard error (1) of the server; `None` where it is the caller's.
    pub fn file(&self, stream: usize) -> Option<io::Result<File>> {
        self.files[stream].as_ref().map(File::try_clone)
    }

    /// The log, if there is one; its absolute path.
    pub fn log(&self) -> Option<&Path> {
        self.log.as_deref()
    }

    /// The file that holds the output, or that part of it which was written last: the log, or a regular file of the caller's.
    pub fn shown(&self) -> Option<PathBuf> {
        self.last_written().and_then(|written| written.path().ok()).or_else(|| self.log.clone())
    }

    /// Where the server has written something; of two files, standard error.
    fn last_written(&self) -> Option<&Written> {
        self.written.iter().find(|written| written.has_moved()).or(self.written.first())
    }

    /// Has this process write its own messages to the log from here on, and no more to the files of its caller. What goes
    /// to no log stays where it is.
    pub fn leave_caller(&self) {
        if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
            let _ = process::redirect(null.as_fd(), 0);
        }
        if self.log.is_none() {
            return;
        }
        for (file, number) in self.files.iter().zip(1..) {
            // A description of its own: the position of the server's tells what the server wrote.
            if let Some(own) = file.as_ref().and_then(|file| own_description(file.as_fd()).or(file.try_clone().ok())) {
                let _ = process::redirect(own.as_fd(), number);
            }
        }
    }

    /// The last lines up to the last one of the server, without control characters, if its output can be read again. Other
    /// servers may write to the same file: what they wrote in between is among the lines.
    pub fn last_lines(&self) -> Option<Vec<String>> {
        self.last_written()?.last_lines().ok()
    }

    /// Whether the output is what this process writes its messages to: then there is no need to show it again.
    pub fn is_ours(&self) -> bool {
        self.last_written().is_some_and(|written| id(written.file.as_fd()) == id(io::stderr()))
    }
}

impl Written {
    fn to(file: BorrowedFd<'_>) -> io::Result<Written> {
        let file = File::from(file.try_clone_to_owned()?);
        let position = lseek(&file, 0, Whence::SeekCur)?;
        Ok(Written { size: file.metadata()?.len(), position, file })
    }

    fn path(&self) -> io::Result<PathBuf> {
        std::fs::read_link(self.name())
    }

    fn has_moved(&self) -> bool {
        lseek(&self.file, 0, Whence::SeekCur).is_ok_and(|position| position != self.position)
    }

    fn name(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// A write moves the position of its open file description to its end, with O_APPEND too (write(2)): the last line of
    /// the server ends there, whoever else has written to the file since.
    fn last_lines(&self) -> io::Result<Vec<String>> {
        let end = lseek(&self.file, 0, Whence::SeekCur)?;
        if end == self.position {
            return Ok(Vec::new());
        }
        let end = end.unsigned_abs().min(self.file.metadata()?.len());
        // A log that was truncated since begins anew.
        let start = if self.size <= end { self.size } else { 0 };
        let start = start.max(end.saturating_sub(READ_MAX));
        let mut file = File::open(self.name())?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(end - start).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let visible = |line: &str| -> String {
            line.chars().map(|c| if c.is_control() && c != '\t' { '?' } else { c }).take(LINE_MAX).collect()
        };
        let theirs = |line: &&str| !line.trim().is_empty() && !line.starts_with("serverswap: ");
        let mut lines: Vec<String> = text.lines().rev().filter(theirs).take(LINES).map(visible).collect();
        lines.reverse();
        Ok(lines)
    }
}

/// A second open file description of a regular file that is open for appending, if it can be had.
fn own_description(file: BorrowedFd<'_>) -> Option<File> {
    use std::os::fd::AsRawFd;
    let flags = fcntl(file, FcntlArg::F_GETFL).ok()?;
    if !is_regular(file) || !OFlag::from_bits_truncate(flags).contains(OFlag::O_APPEND) {
        return None;
    }
    File::options().append(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// Opens a log for appending; with its absolute path. A FIFO that nobody reads is an error, and is not waited for.
fn open_log(path: &Path) -> Result<(PathBuf, File)> {
    let path = std::path::absolute(path).map_err(|e| unable(path, e))?;
    let mut options = File::options();
    options.append(true).create(true).mode(0o640).custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
    let file = options.open(&path).map_err(|e| unable(&path, e))?;
    let blocks = fcntl(&file, FcntlArg::F_GETFL).map(|flags| OFlag::from_bits_truncate(flags) - OFlag::O_NONBLOCK);
    blocks.and_then(|flags| fcntl(&file, FcntlArg::F_SETFL(flags))).map_err(|e| unable(&path, e.desc()))?;
    Ok((path, file))
}

fn unable(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::unable(format!("open the log {}", path.display()), why, "nothing was started; see --log")
}

/// The log for a server in the background; its directory is made.
fn default_log(run: &Run) -> Result<PathBuf> {
    let dir = state_dir("/var/log/serverswap").ok_or_else(|| {
        Error::failed("unable to choose a log: $HOME is not known (nothing was started; see --log)".to_owned())
    })?;
    let mode = if geteuid().is_root() { 0o755 } else { 0o700 };
    DirBuilder::new().recursive(true).mode(mode).create(&dir).map_err(|e| unable(&dir, e))?;
    Ok(dir.join(format!("{}.log", name(run))))
}

/// `roots` for root; for others `serverswap` below `$XDG_STATE_HOME`, or below `~/.local/state` (XDG Base Directory
/// Specification). `None` if a user without a home asks.
pub fn state_dir(roots: &str) -> Option<PathBuf> {
    if geteuid().is_root() {
        return Some(roots.into());
    }
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = || variable("HOME").or_else(|| user::home(geteuid()));
    let state = variable("XDG_STATE_HOME").or_else(|| home().map(|home| home.join(".local/state")))?;
    Some(state.join("serverswap"))
}

/// What the log of a command is named after: its file, and the file that its first argument names, such as a script.
fn name(run: &Run) -> String {
    let file_name = |word: &std::ffi::OsString| Path::new(word).file_name().map(|n| n.to_string_lossy().into_owned());
    let mut name = file_name(&run.command[0]).unwrap_or_else(|| "server".into());
    if let Some(script) = run.command.get(1).filter(|word| Path::new(word).is_file()) {
        name = [Some(name), file_name(script)].into_iter().flatten().collect::<Vec<_>>().join("-");
    }
    name = name.chars().map(|c| if c.is_control() || c.is_whitespace() { '_' } else { c }).collect();
    while name.len() > NAME_MAX {
        name.pop();
    }
    name
}
