//! The people outside: clients that count every failure by kind, as they would see it.

use super::connection::{Connection, Failure};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// For a connection, and for each read of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a client behaves.
#[derive(Clone, Copy)]
pub enum Habit {
    /// A new connection for each request.
    Fresh,
    /// Fifty requests over a connection, then a new one: a proxy or a pool, which bounds the requests of a
    /// connection. One that never did would keep the old server busy until the drain time is over, in each swap.
    Pooled,
    /// A page of ten requests, then a look at it, then the next page over the same connection: a browser. It is
    /// who finds the idle connection closed.
    Browsing,
}

/// What the clients of a server saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub requests: usize,
    pub failures: BTreeMap<Failure, usize>,
    /// Requests over a used connection that ended before the first byte of an answer. The server has closed the
    /// connection while it was idle, so every client asks again over a new one, and so do these.
    pub retried: usize,
    pub slowest: Duration,
    /// Who answered: a generation, and the number of the client.
    pub answers: BTreeSet<(u64, usize)>,
    /// The first failures, in words.
    pub notes: Vec<String>,
}

/// Clients at work until they are stopped.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<()>>,
    fresh: usize,
    /// The program that asks, until its standard input ends.
    program: Option<ChildStdin>,
}

impl Crowd {
    /// Some clients of each habit; each takes the addresses in turn.
    pub fn start(addresses: &[SocketAddr], habits: &[(usize, Habit)]) -> Crowd {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let habits = habits.iter().flat_map(|&(count, habit)| std::iter::repeat_n(habit, count));
        let mut crowd = Crowd { stop, seen, threads: Vec::new(), fresh: 0, program: None };
        for (number, habit) in habits.enumerate() {
            crowd.fresh += usize::from(matches!(habit, Habit::Fresh));
            let client = Client {
                number,
                habit,
                addresses: addresses.to_vec(),
                stop: crowd.stop.clone(),
                seen: crowd.seen.clone(),
            };
            crowd.threads.push(std::thread::spawn(move || client.run()));
        }
        crowd
    }

    /// Clients in a program, each with a new connection per request: `ask.py` says how it tells what they saw.
    pub fn program(mut command: Command, clients: usize) -> Crowd {
        command.args([clients.to_string(), "0".to_owned()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (program, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let told = seen.clone();
        let reader = std::thread::spawn(move || {
            for line in output.lines() {
                told.lock().unwrap().note_line(&line.unwrap());
            }
            assert!(child.wait().unwrap().success(), "the program that asks has failed");
        });
        Crowd { stop: Arc::default(), seen, threads: vec![reader], fresh: clients, program }
    }

    /// Whether a generation has answered everybody who asks over new connections.
    pub fn all_saw(&self, generation: u64) -> bool {
        let seen = self.seen.lock().unwrap();
        (0..self.fresh).all(|number| seen.answers.contains(&(generation, number)))
    }

    /// Ends the load and tells what it saw.
    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.program);
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

struct Client {
    number: usize,
    habit: Habit,
    addresses: Vec<SocketAddr>,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
}

impl Client {
    fn run(self) {
        let mut connection: Option<Connection> = None;
        let close = if matches!(self.habit, Habit::Fresh) { "Connection: close\r\n" } else { "" };
        for turn in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let started = Instant::now();
            let mut result = match connection.as_mut() {
                Some(used) => generation(used, ""),
                None => Err(Failure::Empty),
            };
            if matches!(result, Err(Failure::Empty | Failure::Reset)) {
                self.seen.lock().unwrap().retried += usize::from(connection.is_some());
                let address = self.addresses[turn % self.addresses.len()];
                let fresh = Connection::open(address, PATIENCE).map_err(|e| Failure::of(&e));
                (connection, result) = match fresh {
                    Ok(mut fresh) => {
                        let result = generation(&mut fresh, close);
                        (Some(fresh), result)
                    }
                    Err(failure) => (None, Err(failure)),
                };
            }
            self.note(result, started.elapsed());
            connection.take_if(|connection| {
                result.is_err() || connection.closing || matches!(self.habit, Habit::Pooled) && connection.asked == 50
            });
            std::thread::sleep(self.pause(turn));
        }
    }

    fn pause(&self, turn: usize) -> Duration {
        match self.habit {
            // Not all of them at the same time.
            // So long that, with two of them, both rest for the half of `--drain` of the rows at times.
            Habit::Browsing if (turn + self.number).is_multiple_of(10) => Duration::from_secs(4),
            Habit::Browsing | Habit::Pooled | Habit::Fresh => Duration::from_millis(5),
        }
    }

    fn note(&self, result: Result<u64, Failure>, took: Duration) {
        self.seen.lock().unwrap().note(self.number, result, took, "");
    }
}

/// One request, with more lines in its head: the generation that answered.
fn generation(connection: &mut Connection, head: &str) -> Result<u64, Failure> {
    let answer = connection.ask(&format!("GET / HTTP/1.1\r\nHost: x\r\n{head}\r\n"))?;
    answer.split_whitespace().next().and_then(|word| word.parse().ok()).ok_or(Failure::Other)
}

impl Seen {
    fn note(&mut self, client: usize, result: Result<u64, Failure>, took: Duration, why: &str) {
        self.requests += 1;
        self.slowest = self.slowest.max(took);
        match result {
            Ok(generation) => {
                self.answers.insert((generation, client));
            }
            Err(failure) => {
                *self.failures.entry(failure).or_default() += 1;
                if self.notes.len() < 10 {
                    let last = self.answers.last().map_or(0, |&(generation, _)| generation);
                    self.notes.push(format!("{failure:?} after {took:?}, newest generation seen {last} {why}"));
                }
            }
        }
    }

    /// What a program says of a request: the generation or a kind of failure, the client, milliseconds, why.
    fn note_line(&mut self, line: &str) {
        let mut words = line.splitn(4, ' ');
        let mut next = || words.next().unwrap_or_default();
        let result = match next() {
            "refused" => Err(Failure::Refused),
            "reset" => Err(Failure::Reset),
            "empty" => Err(Failure::Empty),
            "timed-out" => Err(Failure::TimedOut),
            word => word.parse().map_err(|_| Failure::Other),
        };
        let (client, took) = (next().parse().unwrap(), Duration::from_millis(next().parse().unwrap()));
        self.note(client, result, took, next());
    }
}
