//! Writing to a server or a peer: at once where the kernel takes it, else by a thread of its own, so
//! that the main thread never waits for somebody who does not read.

#![forbid(unsafe_code)]

use super::threads::Link;
use crate::protocol::line_of;
use crate::sys::process::Pid;
use crate::sys::{socket, thread};
use std::fmt::Display;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most that waits for a reader; one that lets more pile up has stopped reading.
const WAITING_MAX: usize = 256 * 1024;
/// Most that waits for all of them: many that do not read cost no more than a few.
const WAITING_MAX_IN_ALL: usize = 4 * 1024 * 1024;
static WAITING_IN_ALL: AtomicUsize = AtomicUsize::new(0);
/// A line that may be lost is dropped while this many bytes are unread at the other side.
const UNREAD_MAX: usize = 4096;

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    writer: bool,
}

impl Drop for Waiting {
    /// Bytes that will never be written no longer count.
    fn drop(&mut self) {
        WAITING_IN_ALL.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// The sending side of a connection.
pub struct Outbox {
    link: Arc<Link>,
    waiting: Arc<Mutex<Waiting>>,
}

impl Outbox {
    /// For a connection whose reading side belongs to a thread.
    pub fn new(link: Arc<Link>) -> Outbox {
        Outbox { link, waiting: Arc::default() }
    }

    /// The process at the other end, which may be gone.
    pub fn peer(&self) -> Option<Pid> {
        socket::peer(&self.link.stream).ok().and_then(|peer| Pid::new(peer.pid().into()))
    }

    /// Sends one line.
    pub fn send(&self, word: &impl Display) {
        self.send_bytes(&line_of(word));
    }

    /// Sends one line, or drops it if too much waits for the other side. A line that is cut off ends the connection.
    pub fn send_or_drop(&self, word: &impl Display) {
        if self.sent_or_kept(&line_of(word)) == Err(Lost::Half) {
            let _ = self.link.stream.shutdown(Shutdown::Both);
        }
    }

    /// Sends several lines.
    pub fn send_all<W: Display>(&self, words: impl IntoIterator<Item = W>) {
        self.send_bytes(&words.into_iter().flat_map(|word| line_of(&word)).collect::<Vec<u8>>());
    }

    /// Sends several lines, or none of them while the other side has not read what it was sent before.
    pub fn send_all_if_read<W: Display>(&self, words: impl IntoIterator<Item = W>) {
        if !lock(&self.waiting).writer {
            self.send_all(words);
        }
    }

    /// Sends one line together with files, both of which are dropped if there is no room for them.
    pub fn send_files(&self, word: &impl Display, files: &[RawFd]) {
        if !lock(&self.waiting).writer {
            let _ = socket::send_files_now(&self.link.stream, &line_of(word), files);
        }
    }

    /// Sends one line that is dropped if the other side does not read.
    pub fn send_if_read(&self, word: &impl Display) {
        if !lock(&self.waiting).writer && socket::unread(&self.link.stream) < UNREAD_MAX {
            let _ = socket::send_now(&self.link.stream, &line_of(word));
        }
    }

    /// Ends the connection, for the thread that reads it too.
    pub fn close(&self) {
        self.link.done.store(true, Ordering::Relaxed);
        let _ = self.link.stream.shutdown(Shutdown::Both);
    }

    fn send_bytes(&self, bytes: &[u8]) {
        if self.sent_or_kept(bytes).is_err() {
            // A word is lost, so nothing may follow it. The thread that reads now reports the end of the connection.
            let _ = self.link.stream.shutdown(Shutdown::Both);
        }
    }

    fn sent_or_kept(&self, bytes: &[u8]) -> Result<(), Lost> {
        let mut waiting = lock(&self.waiting);
        let mut rest = bytes;
        if !waiting.writer {
            match socket::send_now(&self.link.stream, bytes) {
                Ok(sent) => rest = &bytes[sent..],
                Err(_) => return Err(Lost::Half),
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        let lost = if rest.len() == bytes.len() { Lost::Whole } else { Lost::Half };
        if waiting.bytes.len() + rest.len() > WAITING_MAX {
            return Err(lost);
        }
        if WAITING_IN_ALL.fetch_add(rest.len(), Ordering::Relaxed) + rest.len() > WAITING_MAX_IN_ALL {
            WAITING_IN_ALL.fetch_sub(rest.len(), Ordering::Relaxed);
            return Err(lost);
        }
        waiting.bytes.extend_from_slice(rest);
        if !waiting.writer {
            let (link, shared) = (self.link.clone(), self.waiting.clone());
            waiting.writer = thread::start("write", move || write_out(&link.stream, &shared)).is_ok();
        }
        if waiting.writer { Ok(()) } else { Err(Lost::Half) }
    }
}

/// How much of what was to be sent is lost.
#[derive(PartialEq)]
enum Lost {
    /// All of it: the stream is as it was before.
    Whole,
    /// Part of it, or the connection is broken: what comes next would make no sense.
    Half,
}

fn write_out(mut stream: &UnixStream, shared: &Mutex<Waiting>) {
    loop {
        let bytes = {
            let mut waiting = lock(shared);
            waiting.writer = !waiting.bytes.is_empty();
            std::mem::take(&mut waiting.bytes)
        };
        if bytes.is_empty() {
            return;
        }
        let written = stream.write_all(&bytes);
        WAITING_IN_ALL.fetch_sub(bytes.len(), Ordering::Relaxed);
        if written.is_err() {
            // A word is lost, as in `send_bytes`: the thread that reads must not wait for an answer.
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::PeerWord;
    use std::io::Read;
    use std::time::{Duration, Instant};

    /// One at a time: what waits in all is of this whole process.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lines of 1000 bytes, LF included.
    fn long(count: usize) -> Vec<String> {
        vec!["x".repeat(999); count]
    }

    #[test]
    fn a_word_that_cannot_be_sent_ends_the_connection_for_its_reader() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        ours.set_nonblocking(true).unwrap();
        let link = Link::new(ours);
        Outbox::new(link.clone()).send(&PeerWord::Claim);
        let read = (&link.stream).read(&mut [0]).map_err(|e| e.kind());
        assert_eq!(read, Ok(0), "whoever waits for the answer waits in vain");
    }

    /// More than the kernel holds is left to a thread, and then the peer reads no more.
    #[test]
    fn a_word_that_cannot_be_sent_later_ends_the_connection_for_its_reader_too() {
        let _alone = alone();
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let link = Link::new(ours);
        Outbox::new(link.clone()).send_all(long(300));
        theirs.shutdown(Shutdown::Read).unwrap();
        let read = (&link.stream).read(&mut [0]).map_err(|e| e.kind());
        assert_eq!(read, Ok(0), "whoever waits for the answer waits in vain");
    }

    #[test]
    fn many_peers_that_do_not_read_cost_no_more_than_a_few() {
        let _alone = alone();
        let word = &long(1)[0];
        let mut most = 0;
        let mut peers = Vec::new();
        // Each could have WAITING_MAX, twice as much in all as may be.
        for _ in 0..2 * WAITING_MAX_IN_ALL / WAITING_MAX {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let outbox = Outbox::new(Link::new(ours));
            for _ in 0..1000 {
                outbox.send_or_drop(word);
                most = most.max(WAITING_IN_ALL.load(Ordering::Relaxed));
            }
            peers.push((outbox, theirs));
        }
        let room = WAITING_MAX_IN_ALL - 1000..=WAITING_MAX_IN_ALL;
        assert!(room.contains(&most), "{most} bytes wait for peers that do not read, of {room:?}");
        drop(peers);
        let deadline = Instant::now() + Duration::from_secs(60);
        while WAITING_IN_ALL.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < deadline, "what waited for peers that are gone still counts");
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_answer_that_is_cut_off_ends_the_connection() {
        let _alone = alone();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let outbox = Outbox::new(Link::new(ours));
        outbox.send_all(long(600));
        let mut answer = Vec::new();
        let end = theirs.read_to_end(&mut answer).map_err(|e| e.kind());
        assert!(answer.len() < 600_000, "all of it was sent: too short an answer for this test");
        assert_eq!(end, Ok(answer.len()), "what comes next would stand behind {} bytes of a word", answer.len() % 1000);
    }

    #[test]
    fn a_long_answer_comes_whole_to_who_reads() {
        let _alone = alone();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let outbox = Outbox::new(Link::new(ours));
        outbox.send_all(long(300));
        drop(outbox);
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with('\n') && answer.lines().eq(long(300)), "{} bytes", answer.len());
    }
}
