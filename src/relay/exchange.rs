//! One request of a kept connection, and its answer, carried through the new server.

#![forbid(unsafe_code)]

use super::body::{Body, Malformed};
use super::head::{self, Answer, Asks, Partial, Request};
use super::route::Route;
use crate::sys::connect::connect_from;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How much is read at a time, and waits to be written in each direction.
const PART: usize = 16 * 1024;
/// How long what the client still sends is read after its answer: to close at once would reset the connection, and the
/// client might lose what it has not read yet.
const LINGERS: Duration = Duration::from_secs(2);
/// How long a connection within this machine may take to stand.
const CONNECTS_WITHIN: Duration = Duration::from_millis(50);
/// How long the head of a request may take from its first byte. Its client has the whole of it to send by then, and others
/// wait for their turn.
const HEAD_WITHIN: Duration = Duration::from_secs(2);
/// What the client hears if nobody takes its request: head and body.
const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 35\r\n\
    Connection: close\r\n\r\n";
const UNAVAILABLE_TEXT: &[u8] = b"The new server cannot be reached.\r\n";

/// What became of a kept connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its request was answered.
    Answered,
    /// Its request got no answer, or not all of it.
    Unanswered,
    /// No request came, or nothing that could be relayed, or the client went away.
    Closed,
}

/// What is left to do on a connection that had its answer.
#[derive(Debug)]
pub enum After {
    /// [`linger`].
    Linger(TcpStream),
    /// Nothing: it is closed.
    Nothing,
}

/// Reads a request, sends it to the new server and its answer to the client. All of it ends `within` this time.
pub fn relay(mut client: TcpStream, route: Route, within: Duration) -> (Outcome, After) {
    let deadline = Instant::now() + within;
    if client.set_nonblocking(true).is_err() {
        return (Outcome::Closed, After::Nothing);
    }
    let (request, more) = match read_request(&mut client, deadline.min(Instant::now() + HEAD_WITHIN)) {
        Ok(read) => read,
        Err(outcome) => return (outcome, After::Nothing),
    };
    let asks = request.asks;
    let outcome = match connected(route, deadline) {
        Ok(server) => Exchange::new(&client, &server, request, &more, deadline).run(),
        Err(_) => {
            let text = match asks {
                Asks::Head => b"",
                Asks::All => UNAVAILABLE_TEXT,
            };
            // The answer fits into an empty buffer.
            let _ = client.write_all(&[UNAVAILABLE, text].concat());
            return (Outcome::Unanswered, After::Linger(client));
        }
    };
    let after = if outcome == Outcome::Answered { After::Linger(client) } else { After::Nothing };
    (outcome, after)
}

/// Reads the head of a request. Returns what follows it too, or what becomes of a connection without one.
fn read_request(client: &mut TcpStream, deadline: Instant) -> Result<(Request, Vec<u8>), Outcome> {
    let (mut head, mut part) = (Partial::default(), vec![0; PART]);
    loop {
        if !head::may_be_request(head.so_far()) {
            return Err(Outcome::Closed);
        }
        if !is_ready(client, PollFlags::POLLIN, deadline) {
            // It has begun a request, or nothing was there to be read after all.
            return Err(if head.so_far().is_empty() { Outcome::Closed } else { Outcome::Unanswered });
        }
        let read = match client.read(&mut part) {
            Ok(0) => return Err(Outcome::Closed),
            Ok(len) => &part[..len],
            Err(e) if is_not_yet(&e) => continue,
            Err(_) => return Err(Outcome::Closed),
        };
        if let (Some(whole), taken) = head.take(read).map_err(|Malformed| Outcome::Closed)? {
            let request = head::request(&whole).map_err(|Malformed| Outcome::Closed)?;
            return Ok((request, read[taken..].to_vec()));
        }
    }
}

/// Connects to the new server, which is on this machine. Where its accept queue is full, as when many requests come at
/// once, the kernel drops the SYN, and would send it again after a second: a new attempt is made sooner.
fn connected(route: Route, deadline: Instant) -> io::Result<TcpStream> {
    loop {
        let server = connect_from(route.from, route.to)?;
        if is_ready(&server, PollFlags::POLLOUT, deadline.min(Instant::now() + CONNECTS_WITHIN)) {
            return server.take_error()?.map_or(Ok(server), Err);
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// The client is told that nothing follows; what it still sends is read.
pub fn linger(mut client: TcpStream) {
    let (until, mut part) = (Instant::now() + LINGERS, vec![0; PART]);
    if client.shutdown(Shutdown::Write).is_err() {
        return;
    }
    while is_ready(&client, PollFlags::POLLIN, until) {
        match client.read(&mut part) {
            Ok(1..) => {}
            Err(e) if is_not_yet(&e) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// Where the answer is.
enum Reading {
    Head(Partial),
    Body(Body),
    Done,
}

/// Whether the server takes the request.
#[derive(PartialEq)]
enum Sending {
    On,
    /// What the client sends is no request any more: nothing follows what is there.
    Ending,
    /// It reads no more. It may answer all the same.
    Over,
}

struct Exchange<'a> {
    client: &'a TcpStream,
    server: &'a TcpStream,
    /// What waits to be written to each.
    up: Vec<u8>,
    down: Vec<u8>,
    request: Body,
    sending: Sending,
    asks: Asks,
    answer: Reading,
    deadline: Instant,
}

impl<'a> Exchange<'a> {
    /// `more`: what was read behind the head of the request.
    fn new(
        client: &'a TcpStream,
        server: &'a TcpStream,
        request: Request,
        more: &[u8],
        deadline: Instant,
    ) -> Exchange<'a> {
        let Request { head, body, asks } = request;
        let answer = Reading::Head(Partial::default());
        let mut exchange = Exchange {
            client,
            server,
            up: head,
            down: Vec::new(),
            request: body,
            sending: Sending::On,
            asks,
            answer,
            deadline,
        };
        exchange.take_request(more);
        exchange
    }

    fn run(mut self) -> Outcome {
        let mut part = vec![0; PART];
        loop {
            if matches!(self.answer, Reading::Done) && self.down.is_empty() {
                return Outcome::Answered;
            }
            self.end_sending();
            let Some((client, server)) = self.wait() else { return Outcome::Unanswered };
            if client.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
                return Outcome::Closed;
            }
            let moved = self.read_client(client, &mut part).and_then(|()| self.write_client(client));
            if moved.is_err() {
                return Outcome::Closed;
            }
            self.write_server(server);
            if self.read_server(server, &mut part).is_none() {
                // What has come of the answer is the client's, and its end tells that something is missing.
                let _ = (&mut &*self.client).write_all(&self.down);
                return Outcome::Unanswered;
            }
        }
    }

    /// Waits until something moves; `None` at the deadline.
    fn wait(&self) -> Option<(PollFlags, PollFlags)> {
        let if_so = |is: bool, flags: PollFlags| if is { flags } else { PollFlags::empty() };
        let reads_request = self.sending == Sending::On && !self.request.is_done() && self.up.len() < PART;
        let client = if_so(reads_request, PollFlags::POLLIN) | if_so(!self.down.is_empty(), PollFlags::POLLOUT);
        let reads_answer = self.down.len() < PART && !matches!(self.answer, Reading::Done);
        let server = if_so(reads_answer, PollFlags::POLLIN) | if_so(!self.up.is_empty(), PollFlags::POLLOUT);
        let mut polls = vec![PollFd::new(self.client.as_fd(), client)];
        // A server that has closed would be ready all the time.
        polls.extend((!server.is_empty()).then(|| PollFd::new(self.server.as_fd(), server)));
        if !wait_for(&mut polls, self.deadline) {
            return None;
        }
        let events = |at: usize| polls.get(at).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        Some((events(0), events(1)))
    }

    /// Takes what belongs to the request. What follows it is another one, which nobody answers.
    fn take_request(&mut self, bytes: &[u8]) {
        match self.request.take(bytes) {
            Ok(taken) => self.up.extend_from_slice(&bytes[..taken]),
            // The server has had the begin, and says what it thinks of it.
            Err(Malformed) => self.sending = Sending::Ending,
        }
    }

    fn read_client(&mut self, ready: PollFlags, part: &mut [u8]) -> io::Result<()> {
        if !ready.contains(PollFlags::POLLIN) {
            return Ok(());
        }
        match (&mut &*self.client).read(part) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                self.take_request(&part[..len]);
                Ok(())
            }
            Err(e) if is_not_yet(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn write_client(&mut self, ready: PollFlags) -> io::Result<()> {
        if !ready.contains(PollFlags::POLLOUT) {
            return Ok(());
        }
        match (&mut &*self.client).write(&self.down) {
            Ok(len) => {
                self.down.drain(..len);
                Ok(())
            }
            Err(e) if is_not_yet(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Tells the server that nothing follows, once it has what was sound: it would wait for the rest.
    fn end_sending(&mut self) {
        if self.sending == Sending::Ending && self.up.is_empty() {
            // If it fails the server has gone, which shows when its answer is read.
            let _ = self.server.shutdown(Shutdown::Write);
            self.sending = Sending::Over;
        }
    }

    fn write_server(&mut self, ready: PollFlags) {
        if self.up.is_empty() || !ready.intersects(PollFlags::POLLOUT | PollFlags::POLLERR | PollFlags::POLLHUP) {
            return;
        }
        match (&mut &*self.server).write(&self.up) {
            Ok(len) => drop(self.up.drain(..len)),
            Err(e) if is_not_yet(&e) => {}
            Err(_) => (self.sending, self.up) = (Sending::Over, Vec::new()),
        }
    }

    /// Reads of the answer; `None` if it ends too early, or is none.
    fn read_server(&mut self, ready: PollFlags, part: &mut [u8]) -> Option<()> {
        if !ready.intersects(PollFlags::POLLIN | PollFlags::POLLERR | PollFlags::POLLHUP) || self.down.len() >= PART {
            return Some(());
        }
        match (&mut &*self.server).read(part) {
            Ok(0) => {
                let is_whole = matches!(self.answer, Reading::Body(Body::UntilEnd) | Reading::Done);
                self.answer = Reading::Done;
                is_whole.then_some(())
            }
            Ok(len) => self.take_answer(&part[..len]),
            Err(e) if is_not_yet(&e) => Some(()),
            Err(_) => None,
        }
    }

    /// Takes heads, of which there may be thousands in one part, and of the body.
    fn take_answer(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            match &mut self.answer {
                Reading::Done => return Some(()),
                Reading::Body(body) => {
                    let taken = body.take(bytes).ok()?;
                    self.down.extend_from_slice(&bytes[..taken]);
                    if body.is_done() {
                        self.answer = Reading::Done;
                    }
                    return Some(());
                }
                Reading::Head(head) => {
                    let (whole, taken) = head.take(bytes).ok()?;
                    bytes = &bytes[taken..];
                    let Some(mut whole) = whole else { return Some(()) };
                    match head::answer(&whole, self.asks).ok()? {
                        Answer::Interim => self.down.append(&mut whole),
                        Answer::Final(mut head, body) => {
                            self.down.append(&mut head);
                            self.answer = if body.is_done() { Reading::Done } else { Reading::Body(body) };
                        }
                    }
                }
            }
        }
        Some(())
    }
}

/// Whether a stream is ready before the deadline.
fn is_ready(stream: &TcpStream, events: PollFlags, deadline: Instant) -> bool {
    wait_for(&mut [PollFd::new(stream.as_fd(), events)], deadline)
}

fn wait_for(polls: &mut [PollFd<'_>], deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: what is left of the last millisecond would be waited for without rest.
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(polls, left) {
            Err(nix::errno::Errno::EINTR) => {}
            Ok(1..) => return Instant::now() < deadline,
            Ok(_) if Instant::now() < deadline => {}
            Ok(_) | Err(_) => return false,
        }
    }
}

fn is_not_yet(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
