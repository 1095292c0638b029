//! Kept connections whose server is gone: each waits for its request, which is then relayed.

#![forbid(unsafe_code)]

use super::exchange::{self, Outcome};
use super::route::Route;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most requests that are relayed at a time. The others wait for their turn.
const EXCHANGES_MAX: usize = 256;

/// A connection whose server is gone.
pub struct Kept {
    /// The connection.
    pub stream: TcpStream,
    /// How its request gets to the new server.
    pub route: Route,
}

/// How long kept connections have.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until their request comes.
    pub silent: Duration,
    /// From there until it is answered.
    pub exchange: Duration,
}

/// What became of kept connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// How many requests were answered by the new server.
    pub answered: usize,
    /// How many got no answer, or not all of it.
    pub unanswered: usize,
}

impl Tally {
    /// Counts one more.
    fn note(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Answered => self.answered += 1,
            Outcome::Unanswered => self.unanswered += 1,
            Outcome::Closed => {}
        }
    }

    /// Both together.
    pub fn and(self, other: Tally) -> Tally {
        Tally { answered: self.answered + other.answered, unanswered: self.unanswered + other.unanswered }
    }
}

/// Starts a thread that relays what comes on these connections, and says in the end what became of them.
pub fn start(kept: Vec<Kept>, patience: Patience, done: impl FnOnce(Tally) + Send + 'static) -> io::Result<()> {
    spawn("relay", move || done(wait(kept, patience))).map(drop)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).stack_size(64 * 1024).spawn(body)
}

fn wait(mut kept: Vec<Kept>, patience: Patience) -> Tally {
    let until = Instant::now() + patience.silent;
    let (told, outcomes) = channel();
    while !kept.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        for at in ready(&kept, left).into_iter().rev() {
            let Kept { stream, route } = kept.swap_remove(at);
            start_exchange(stream, route, Instant::now() + patience.exchange, &told);
        }
    }
    // On those that are left nothing came: they are closed here.
    drop((kept, told));
    sum(&outcomes)
}

/// The places of those on which something has come, or that their clients have closed.
fn ready(kept: &[Kept], within: Duration) -> Vec<usize> {
    let mut polls: Vec<PollFd> = kept.iter().map(|kept| PollFd::new(kept.stream.as_fd(), PollFlags::POLLIN)).collect();
    let within = PollTimeout::try_from(within + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut polls, within) {
        Ok(1..) => {}
        Ok(_) | Err(_) => return Vec::new(),
    }
    let is_ready = |poll: &PollFd| poll.any().unwrap_or(true);
    polls.iter().enumerate().filter(|(_, poll)| is_ready(poll)).map(|(at, _)| at).collect()
}

fn start_exchange(stream: TcpStream, route: Route, deadline: Instant, told: &Sender<Outcome>) {
    EXCHANGES.take();
    let tells = told.clone();
    let run = move || {
        let _ = tells.send(exchange::relay(stream, route, deadline));
        EXCHANGES.free();
    };
    // Without a thread it is closed, and its client learns of it at once.
    if spawn("exchange", run).is_err() {
        let _ = told.send(Outcome::Unanswered);
        EXCHANGES.free();
    }
}

fn sum(outcomes: &Receiver<Outcome>) -> Tally {
    let mut tally = Tally::default();
    outcomes.iter().for_each(|outcome| tally.note(outcome));
    tally
}

static EXCHANGES: Turns = Turns { taken: Mutex::new(0), freed: Condvar::new() };

/// Counts the requests that are relayed now.
struct Turns {
    taken: Mutex<usize>,
    freed: Condvar,
}

impl Turns {
    /// Waits for a turn.
    fn take(&self) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.freed.wait_while(taken, |taken| *taken >= EXCHANGES_MAX);
        *taken.unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn free(&self) {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.freed.notify_one();
    }
}
