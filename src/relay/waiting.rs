//! Kept connections whose server is gone: each waits for its request, which is then relayed.

#![forbid(unsafe_code)]

use super::exchange::{self, After, Outcome};
use super::route::Route;
use crate::sys::thread;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Most requests that are relayed at a time. The others wait for their turn.
const EXCHANGES_MAX: usize = 256;
/// Most answered connections at a time on which what the client still sends is read.
const LINGERING_MAX: usize = 256;
/// How often is asked for a turn while some wait for one.
const TURN_LOOKS: Duration = Duration::from_millis(10);
/// The pause if the kernel has no memory for a look.
const LOOKS_AGAIN: Duration = Duration::from_millis(10);

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
    /// From there until its turn comes, and from then on until it is answered.
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
    thread::start("relay", move || done(wait(kept, patience)))
}

/// A connection on which something has come, and since when it waits for its turn.
struct Due {
    kept: Kept,
    since: Instant,
}

fn wait(mut kept: Vec<Kept>, patience: Patience) -> Tally {
    let until = Instant::now() + patience.silent;
    let (told, outcomes) = channel();
    let mut due = VecDeque::new();
    loop {
        serve(&mut due, patience, &told);
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // On these nothing came: they are closed.
            kept.clear();
        }
        if kept.is_empty() && due.is_empty() {
            break;
        }
        let within = if due.is_empty() { left } else { TURN_LOOKS };
        let since = Instant::now();
        let ready = ready(&kept, within).into_iter().rev();
        due.extend(ready.map(|at| Due { kept: kept.swap_remove(at), since }));
    }
    drop(told);
    sum(&outcomes)
}

/// Starts as many exchanges as may be, those first that have waited longest. Who has waited too long gets no answer.
fn serve(due: &mut VecDeque<Due>, patience: Patience, told: &Sender<Outcome>) {
    while due.front().is_some_and(|due| due.since.elapsed() > patience.exchange) {
        due.pop_front();
        let _ = told.send(Outcome::Unanswered);
    }
    while !due.is_empty() && EXCHANGES.take() {
        let Some(Due { kept: Kept { stream, route }, .. }) = due.pop_front() else { return EXCHANGES.free() };
        start_exchange(stream, route, patience.exchange, told);
    }
}

/// The places of those on which something has come, or that their clients have closed.
fn ready(kept: &[Kept], within: Duration) -> Vec<usize> {
    let mut polls: Vec<PollFd> = kept.iter().map(|kept| PollFd::new(kept.stream.as_fd(), PollFlags::POLLIN)).collect();
    let within = PollTimeout::try_from(within + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut polls, within) {
        Ok(1..) => {}
        Ok(_) | Err(Errno::EINTR) => return Vec::new(),
        Err(_) => {
            std::thread::sleep(LOOKS_AGAIN);
            return Vec::new();
        }
    }
    let is_ready = |poll: &PollFd| poll.any().unwrap_or(true);
    polls.iter().enumerate().filter(|(_, poll)| is_ready(poll)).map(|(at, _)| at).collect()
}

/// Its turn has come.
fn start_exchange(stream: TcpStream, route: Route, within: Duration, told: &Sender<Outcome>) {
    let tells = told.clone();
    let run = move || {
        let (outcome, after) = exchange::relay(stream, route, within);
        // Who only lingers keeps nobody waiting for a turn.
        EXCHANGES.free();
        match after {
            After::Linger(stream) if LINGERING.take() => {
                exchange::linger(stream);
                LINGERING.free();
            }
            After::Linger(_) | After::Nothing => {}
        }
        let _ = tells.send(outcome);
    };
    // Without a thread it is closed, and its client learns of it at once.
    if thread::start("exchange", run).is_err() {
        let _ = told.send(Outcome::Unanswered);
        EXCHANGES.free();
    }
}

fn sum(outcomes: &Receiver<Outcome>) -> Tally {
    let mut tally = Tally::default();
    outcomes.iter().for_each(|outcome| tally.note(outcome));
    tally
}

static EXCHANGES: Turns = Turns { taken: AtomicUsize::new(0), most: EXCHANGES_MAX };
static LINGERING: Turns = Turns { taken: AtomicUsize::new(0), most: LINGERING_MAX };

/// Counts what is done at a time.
struct Turns {
    taken: AtomicUsize,
    most: usize,
}

impl Turns {
    /// Takes a turn; `false` if there is none now.
    fn take(&self) -> bool {
        let more = |taken| (taken < self.most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn free(&self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}
