//! One request of a kept connection, and its answer, carried through the new server.

#![forbid(unsafe_code)]

use super::body::{Body, Malformed};
use super::head::{self, Answer, Asks, Request};
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
/// What the client hears if nobody takes its request.
const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 35\r\n\
    Connection: close\r\n\r\nThe new server cannot be reached.\r\n";

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

/// Reads a request, sends it to the new server and its answer to the client. All of it ends at the deadline.
pub fn relay(mut client: TcpStream, route: Route, deadline: Instant) -> Outcome {
    if client.set_nonblocking(true).is_err() {
        return Outcome::Closed;
    }
    let Some((request, more)) = read_request(&mut client, deadline) else { return Outcome::Closed };
    let outcome = match connected(route, deadline) {
        Ok(server) => Exchange::new(&client, &server, request, &more, deadline).run(),
        Err(_) => {
            // The answer fits into an empty buffer.
            let _ = client.write_all(UNAVAILABLE);
            linger(&mut client);
            return Outcome::Unanswered;
        }
    };
    if outcome == Outcome::Answered {
        linger(&mut client);
    }
    outcome
}

/// Reads the head of a request. Returns what follows it too.
fn read_request(client: &mut TcpStream, deadline: Instant) -> Option<(Request, Vec<u8>)> {
    let (mut bytes, mut part) = (Vec::new(), vec![0; PART]);
    loop {
        if let Some(end) = head::end_of(&bytes).ok()? {
            let request = head::request(&bytes[..end]).ok()?;
            return Some((request, bytes.split_off(end)));
        }
        if !head::may_be_request(&bytes) || !is_ready(client, PollFlags::POLLIN, deadline) {
            return None;
        }
        match client.read(&mut part) {
            Ok(0) => return None,
            Ok(len) => bytes.extend_from_slice(&part[..len]),
            Err(e) if is_not_yet(&e) => {}
            Err(_) => return None,
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
fn linger(client: &mut TcpStream) {
    let (until, mut part) = (Instant::now() + LINGERS, vec![0; PART]);
    if client.shutdown(Shutdown::Write).is_err() {
        return;
    }
    while is_ready(client, PollFlags::POLLIN, until) {
        match client.read(&mut part) {
            Ok(1..) => {}
            Err(e) if is_not_yet(&e) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

/// Where the answer is.
enum Reading {
    Head(Vec<u8>),
    Body(Body),
    Done,
}

/// Whether the server takes the request.
#[derive(PartialEq)]
enum Sending {
    On,
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
        let answer = Reading::Head(Vec::new());
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
            Err(Malformed) => self.sending = Sending::Over,
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

    fn take_answer(&mut self, bytes: &[u8]) -> Option<()> {
        match &mut self.answer {
            Reading::Done => Some(()),
            Reading::Body(body) => {
                let taken = body.take(bytes).ok()?;
                self.down.extend_from_slice(&bytes[..taken]);
                if body.is_done() {
                    self.answer = Reading::Done;
                }
                Some(())
            }
            Reading::Head(head) => {
                head.extend_from_slice(bytes);
                let Some(end) = head::end_of(head).ok()? else { return Some(()) };
                let mut whole = std::mem::take(head);
                let more = whole.split_off(end);
                match head::answer(&whole, self.asks).ok()? {
                    Answer::Interim => self.down.append(&mut whole),
                    Answer::Final(mut head, body) => {
                        self.down.append(&mut head);
                        self.answer = if body.is_done() { Reading::Done } else { Reading::Body(body) };
                    }
                }
                self.take_answer(&more)
            }
        }
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
