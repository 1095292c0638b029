//! Clients that make it hard: each posts over a connection that it keeps, never asks again, and does not look whether
//! the server has closed the connection before it writes. Only an answer that says so makes it open a new one.

use super::connection::{Connection, Failure};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Long: 256 clients that never rest make any server late.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is between an answer and the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Nothing: a connection is never idle.
    Closed,
    /// 50 to 500 ms, at random.
    Pauses,
}

/// What they saw.
#[derive(Debug, Default)]
pub struct Posted {
    pub requests: u64,
    pub failures: BTreeMap<Failure, u64>,
    pub slowest: Duration,
    /// The first failures, in words.
    pub notes: Vec<String>,
}

impl Posted {
    pub fn lost(&self) -> u64 {
        self.failures.values().sum()
    }

    fn note(&mut self, id: &str, began: Instant, failure: Option<Failure>) {
        let took = began.elapsed();
        self.requests += 1;
        self.slowest = self.slowest.max(took);
        if let Some(failure) = failure {
            *self.failures.entry(failure).or_default() += 1;
            if self.notes.len() < 10 {
                self.notes.push(format!("request {id}: {failure:?} after {took:?}"));
            }
        }
    }

    fn add(&mut self, other: Posted) {
        self.requests += other.requests;
        self.slowest = self.slowest.max(other.slowest);
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        self.notes.extend(other.notes);
        self.notes.truncate(10);
    }
}

/// Clients at work until they are stopped.
pub struct Posters {
    stop: Arc<AtomicBool>,
    /// The first word of the last answer of each: its generation.
    newest: Arc<Vec<AtomicU64>>,
    threads: Vec<JoinHandle<Posted>>,
}

impl Posters {
    pub fn start(address: SocketAddr, clients: usize, manner: Manner) -> Posters {
        let (stop, newest) = (Arc::new(AtomicBool::new(false)), (0..clients).map(|_| AtomicU64::new(0)).collect());
        let newest: Arc<Vec<AtomicU64>> = Arc::new(newest);
        let start = |number| {
            let (stop, newest) = (stop.clone(), newest.clone());
            let post = move || post(address, number, manner, &stop, &newest[number]);
            std::thread::Builder::new().stack_size(256 * 1024).spawn(post).unwrap()
        };
        let threads = (0..clients).map(start).collect();
        Posters { stop, newest, threads }
    }

    /// Whether each had its last answer of this generation or a later one.
    pub fn all_saw(&self, generation: u64) -> bool {
        self.newest.iter().all(|newest| newest.load(Ordering::Relaxed) >= generation)
    }

    /// Ends the load and tells what it saw.
    pub fn stop(self) -> Posted {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Posted::default();
        self.threads.into_iter().for_each(|thread| sum.add(thread.join().unwrap()));
        sum
    }
}

/// One client.
fn post(address: SocketAddr, number: usize, manner: Manner, stop: &AtomicBool, newest: &AtomicU64) -> Posted {
    let mut posted = Posted::default();
    let mut connection: Option<Connection> = None;
    // xorshift: any number but 0.
    let mut random = number as u64 * 0x9e37_79b9 + 1;
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (id, began) = (format!("{number}.{turn}"), Instant::now());
        match ask(address, &mut connection, &id) {
            Ok(generation) => {
                newest.store(generation, Ordering::Relaxed);
                posted.note(&id, began, None);
            }
            Err(failure) => {
                connection = None;
                posted.note(&id, began, Some(failure));
                // Nobody can work at a port where there is nobody.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        connection.take_if(|connection| connection.closing);
        for shift in [13, -7, 17] {
            random ^= if shift > 0 { random << shift } else { random >> -shift };
        }
        if manner == Manner::Pauses {
            std::thread::sleep(Duration::from_millis(50 + random % 450));
        }
    }
    posted
}

/// One request: the generation that answered. The id stands in the head and in the body, for servers that can only give
/// the one or the other back.
fn ask(address: SocketAddr, connection: &mut Option<Connection>, id: &str) -> Result<u64, Failure> {
    if connection.is_none() {
        *connection = Some(Connection::open(address, PATIENCE).map_err(|e| Failure::of(&e))?);
    }
    let Some(connection) = connection else { return Err(Failure::Other) };
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nX-Id: {id}\r\nContent-Type: text/plain");
    let answer = connection.ask(&format!("{head}\r\nContent-Length: {}\r\n\r\n{id}", id.len()))?;
    let words: Vec<&str> = answer.split_whitespace().collect();
    match words[..] {
        [generation, _, echo] if echo == id => generation.parse().map_err(|_| Failure::Other),
        _ => Err(Failure::Other),
    }
}
