//! What the user reads: `serverswap: ADDRESS: text`, one line each on standard error, no colour, no
//! time.
//!
//! Nobody waits for a reader: unless standard error is a file, a message goes into a buffer, and a thread writes it.
//! Messages that find the buffer full are lost; how many they were is said as soon as half of the buffer is free.

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::swap::Level;
use crate::sys::{file, terminal};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Most that waits to be written.
const WAITING_MAX: usize = 64 * 1024;
/// How many bytes are written at a time: a pipe that poll(2) reports as writable takes so many at once (PIPE_BUF).
const PART: usize = 4096;
/// How long somebody who reads nothing is waited for at the end.
pub const PATIENCE: Duration = Duration::from_millis(250);

/// Writes messages up to the level that the user asked for.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    loudest: Level,
}

impl Log {
    /// `verbosity`: -1 for every `-q`, +1 for every `-v`.
    pub fn new(verbosity: i32) -> Log {
        let loudest = match verbosity {
            ..=-2 => Level::Error,
            -1 => Level::Warning,
            0 => Level::Notice,
            1.. => Level::Detail,
        };
        Log { loudest }
    }

    /// Whether messages of this level are written.
    pub fn says(self, level: Level) -> bool {
        level <= self.loudest
    }

    /// A line of progress, for somebody who waits at a terminal.
    pub fn say_progress(self, text: &str) {
        if self.says(Level::Notice) && nix::unistd::isatty(io::stderr()).is_ok_and(|it| it) {
            progress(text);
        }
    }

    /// One line. That nobody reads it is no reason to fail, nor to wait.
    pub fn say(self, level: Level, address: Option<&Address>, text: &str) {
        if !self.says(level) {
            return;
        }
        let warning = if level == Level::Warning { "warning: " } else { "" };
        let line = match address {
            Some(address) => format!("serverswap: {address}: {warning}{text}"),
            None => format!("serverswap: {warning}{text}"),
        };
        // Addresses and reasons may come from a server: nothing in them may drive a terminal.
        let mut line: String = line.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        line.push('\n');
        if PROGRESS.swap(false, Ordering::Relaxed) {
            line.insert_str(0, CLEAR);
        }
        if journal() {
            line.insert_str(0, priority_of(level));
        }
        OUT.say(line.as_bytes());
    }
}

/// Goes back to the begin of the line and clears it (console_codes(4)).
const CLEAR: &str = "\r\x1b[K";

/// A line of progress stands on the terminal.
static PROGRESS: AtomicBool = AtomicBool::new(false);

/// Writes a line to the terminal that the next one, or the next message, takes the place of.
fn progress(text: &str) {
    PROGRESS.store(true, Ordering::Relaxed);
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let room = terminal::width(&io::stderr()).map_or(79, |width| width - 1);
    let line: String = format!("serverswap: {text}").chars().take(room).collect();
    OUT.say(format!("{CLEAR}{line}").as_bytes());
}

/// Removes the line of progress, if there is one.
pub fn end_progress() {
    if PROGRESS.swap(false, Ordering::Relaxed) {
        OUT.say(CLEAR.as_bytes());
    }
}

/// Whether standard error goes to the journal, which then says so in $JOURNAL_STREAM (systemd.exec(5)).
fn journal() -> bool {
    static STREAM: OnceLock<Option<(u64, u64)>> = OnceLock::new();
    let named = || {
        let value = std::env::var("JOURNAL_STREAM").ok()?;
        let (device, inode) = value.split_once(':')?;
        Some((device.parse().ok()?, inode.parse().ok()?))
    };
    let stream = *STREAM.get_or_init(named);
    stream.is_some() && file::id(io::stderr()) == stream
}

/// The priority of a message, as the journal reads it from the begin of a line (sd-daemon(3)).
fn priority_of(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warning => "<4>",
        Level::Notice => "<6>",
        Level::Detail => "<7>",
    }
}

/// Waits until all messages are written, or none could be for as long as `patience`. `true` if all are written.
pub fn flush(patience: Duration) -> bool {
    OUT.flush(patience)
}

/// The one standard error of this process.
static OUT: Out = Out::new();

struct Out {
    waiting: Mutex<Waiting>,
    /// Something was written.
    written: Condvar,
}

struct Waiting {
    bytes: Vec<u8>,
    /// Messages that found no room, and are not spoken of yet.
    lost: usize,
    /// A thread writes. It ends when there is nothing to write: a supervisor rests for months.
    writer: bool,
    /// Counts what was written.
    parts: u64,
}

impl Waiting {
    /// Says how many messages were lost, once half of the buffer is free.
    fn own_up(&mut self) {
        let text = match self.lost {
            0 => return,
            1 => "serverswap: warning: 1 message was lost: nobody read standard error\n".to_owned(),
            lost => format!("serverswap: warning: {lost} messages were lost: nobody read standard error\n"),
        };
        if self.bytes.len() <= WAITING_MAX / 2 {
            self.bytes.extend_from_slice(text.as_bytes());
            self.lost = 0;
        }
    }

    fn add(&mut self, line: &[u8]) {
        self.own_up();
        if self.lost == 0 && self.bytes.len() + line.len() <= WAITING_MAX {
            self.bytes.extend_from_slice(line);
        } else {
            self.lost += 1;
        }
    }
}

impl Out {
    const fn new() -> Out {
        let waiting = Waiting { bytes: Vec::new(), lost: 0, writer: false, parts: 0 };
        Out { waiting: Mutex::new(waiting), written: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&'static self, line: &[u8]) {
        let mut waiting = self.lock();
        let idle = !waiting.writer && waiting.bytes.is_empty() && waiting.lost == 0;
        // A regular file takes all.
        if idle && file::is_regular(io::stderr()) {
            let _ = io::stderr().write_all(line);
            return;
        }
        waiting.add(line);
        self.write_on(waiting);
    }

    /// Sees to it that what waits is written.
    fn write_on(&'static self, mut waiting: MutexGuard<'_, Waiting>) {
        if waiting.writer || waiting.bytes.is_empty() {
            return;
        }
        let builder = std::thread::Builder::new().name("stderr".into()).stack_size(64 * 1024);
        waiting.writer = builder.spawn(move || self.write_out()).is_ok();
        // Without a thread: as much as goes now. The rest goes with the next message.
        while !waiting.writer && !waiting.bytes.is_empty() && has_room(PollTimeout::ZERO) {
            let part = part_of(&mut waiting.bytes);
            let _ = io::stderr().write_all(&part);
            waiting.own_up();
        }
    }

    /// The life of the writer.
    fn write_out(&self) {
        loop {
            let part = {
                let mut waiting = self.lock();
                waiting.own_up();
                waiting.writer = !waiting.bytes.is_empty();
                if !waiting.writer {
                    self.written.notify_all();
                    return;
                }
                part_of(&mut waiting.bytes)
            };
            let mut rest = &part[..];
            while !rest.is_empty() {
                match io::stderr().write(rest) {
                    Ok(len) => rest = &rest[len..],
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // Somebody, such as a server, has set O_NONBLOCK, which holds for all who share the file.
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => drop(has_room(PollTimeout::NONE)),
                    // It is closed, or nobody will ever read it.
                    Err(_) => break,
                }
            }
            self.lock().parts += 1;
            self.written.notify_all();
        }
    }

    fn flush(&'static self, patience: Duration) -> bool {
        self.write_on(self.lock());
        let mut waiting = self.lock();
        while waiting.writer {
            let before = waiting.parts;
            let patient = self.written.wait_timeout_while(waiting, patience, |w| w.writer && w.parts == before);
            let timeout;
            (waiting, timeout) = patient.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() {
                return false;
            }
        }
        waiting.bytes.is_empty()
    }
}

/// The lines of the next part, or a piece of one that is longer.
fn part_of(bytes: &mut Vec<u8>) -> Vec<u8> {
    let most = bytes.len().min(PART);
    let end = bytes[..most].iter().rposition(|&byte| byte == b'\n').map_or(most, |at| at + 1);
    bytes.drain(..end).collect()
}

fn has_room(timeout: PollTimeout) -> bool {
    let stderr = io::stderr();
    poll(&mut [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)], timeout).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_counted_and_spoken_of_in_its_place() {
        let mut waiting = Waiting { bytes: Vec::new(), lost: 0, writer: false, parts: 0 };
        let line = [[b'x'; 999].as_slice(), b"\n"].concat();
        for _ in 0..70 {
            waiting.add(&line);
        }
        assert_eq!((waiting.bytes.len(), waiting.lost), (65_000, 5));
        assert_eq!(part_of(&mut waiting.bytes).len(), 4000);
        waiting.add(&line);
        assert_eq!((waiting.bytes.len(), waiting.lost), (61_000, 6));
        while waiting.bytes.len() > WAITING_MAX / 2 {
            part_of(&mut waiting.bytes);
        }
        waiting.add(b"next\n");
        let text = String::from_utf8(waiting.bytes).unwrap();
        let last: Vec<&str> = text.lines().rev().take(2).collect();
        assert_eq!(last, ["next", "serverswap: warning: 6 messages were lost: nobody read standard error"]);
    }

    #[test]
    fn a_part_ends_with_a_line_where_it_can() {
        let mut bytes = [b"one\n".as_slice(), &[b'x'; 5000], b"\nend\n"].concat();
        let mut parts = Vec::new();
        while !bytes.is_empty() {
            parts.push(part_of(&mut bytes).len());
        }
        assert_eq!(parts, [4, 4096, 909]);
    }
}
