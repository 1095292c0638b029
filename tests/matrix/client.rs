//! The people outside: clients that count every failure by kind, as they would see it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// For a connection, and for each read of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    Refused,
    Reset,
    /// The connection was closed before the first byte of an answer.
    Empty,
    TimedOut,
    /// An answer that was cut, or is none.
    Other,
}

impl Failure {
    fn of(e: &io::Error) -> Failure {
        match e.kind() {
            io::ErrorKind::ConnectionRefused => Failure::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Reset,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::TimedOut,
            _ => Failure::Other,
        }
    }
}

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
        for turn in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let started = Instant::now();
            let mut result = match connection.as_mut() {
                Some(used) => used.ask(false),
                None => Err(Failure::Empty),
            };
            if matches!(result, Err(Failure::Empty | Failure::Reset)) {
                self.seen.lock().unwrap().retried += usize::from(connection.is_some());
                let address = self.addresses[turn % self.addresses.len()];
                let fresh = Connection::open(address).map_err(|e| Failure::of(&e));
                (connection, result) = match fresh {
                    Ok(mut fresh) => {
                        let result = fresh.ask(matches!(self.habit, Habit::Fresh));
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

struct Connection {
    stream: BufReader<TcpStream>,
    asked: usize,
    /// The server will take no other request.
    closing: bool,
}

impl Connection {
    fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Connection { stream: BufReader::new(stream), asked: 0, closing: false })
    }

    /// One request: the generation that answered. Empty and Reset mean that not a byte of an answer came.
    fn ask(&mut self, last: bool) -> Result<u64, Failure> {
        self.asked += 1;
        self.closing = last;
        let close = if last { "Connection: close\r\n" } else { "" };
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{close}\r\n");
        let stream = self.stream.get_mut();
        let written = stream.write_all(request.as_bytes());
        let started = written.and_then(|()| self.stream.fill_buf());
        if started.map_err(|e| Failure::of(&e))?.is_empty() {
            return Err(Failure::Empty);
        }
        let answer = self.answer().map_err(|e| match Failure::of(&e) {
            Failure::TimedOut => Failure::TimedOut,
            _ => Failure::Other,
        })?;
        answer.split_whitespace().next().and_then(|word| word.parse().ok()).ok_or(Failure::Other)
    }

    /// The body of an answer, which has a length.
    fn answer(&mut self) -> io::Result<String> {
        let (mut length, mut line, mut first) = (None, String::new(), true);
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let lower = line.trim_end().to_ascii_lowercase();
            if first && !(lower.starts_with("http/1.1 200") || lower.starts_with("http/1.0 200")) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.closing |= first && lower.starts_with("http/1.0");
            first = false;
            match lower.split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().ok(),
                Some(("connection", value)) => self.closing |= value.trim() == "close",
                Some(_) | None => {}
            }
            if lower.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length.ok_or(io::ErrorKind::InvalidData)?];
        self.stream.read_exact(&mut body)?;
        String::from_utf8(body).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}
