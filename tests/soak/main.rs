//! `make soak`: swaps as fast as they go, for SOAK seconds, of random servers of the matrix under constant load; in
//! two lanes nothing goes wrong, in two something goes wrong in every swap, and in one the same supervisor reloads all
//! the time, so often at least that something can be said of its growth. Where no fault was injected no request may
//! fail, after each fault the address has to be served again, and nothing may grow or be left. SEED repeats the
//! choices of an earlier run.

#[path = "../common/mod.rs"]
mod common;

#[allow(dead_code)]
#[path = "../matrix/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../matrix/connection.rs"]
mod connection;
#[path = "../matrix/servers.rs"]
#[allow(dead_code)]
mod servers;

mod faults;
mod growth;

use client::{Crowd, Habit, Seen};
use common::{Sandbox, plain_server, until};
use connection::Failure;
use faults::Fault;
use servers::{Clients, Server};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What all lanes did.
#[derive(Default)]
struct Tally {
    swaps: usize,
    requests: usize,
    /// Requests that failed although nobody did anything to anybody.
    failed: BTreeMap<Failure, usize>,
    faults: BTreeMap<Fault, Suffered>,
    servers: BTreeMap<&'static str, usize>,
    /// What was sampled of the supervisor that reloads: before, after, how much more it may be.
    growth: Vec<(&'static str, u64, u64, u64)>,
    red: Vec<String>,
}

/// What became of the faults of a kind.
#[derive(Default)]
struct Suffered {
    struck: usize,
    /// Whom it was meant for was not there yet, or no more.
    missed: usize,
    /// Requests that failed meanwhile.
    failed: BTreeMap<Failure, usize>,
}

static TALLY: Mutex<Option<Tally>> = Mutex::new(None);
static OVER: AtomicBool = AtomicBool::new(false);

fn tally<T>(note: impl FnOnce(&mut Tally) -> T) -> T {
    note(TALLY.lock().unwrap().get_or_insert_default())
}

fn is_over() -> bool {
    OVER.load(Ordering::Relaxed)
}

/// Random numbers that a seed repeats (xorshift64*).
pub struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One that is less than `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn main() -> ExitCode {
    let time = Duration::from_secs(number("SOAK").unwrap_or(600));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("SEED").unwrap_or(now.as_secs() % 100_000);
    println!("SOAK={} SEED={seed}", time.as_secs());
    // Built first, if it has to be: that takes longer than a short run.
    plain_server();
    let started = Instant::now();
    let lanes: [(&str, fn(Random)); 5] =
        [("calm", calm), ("calm", calm), ("faults", faults::lane), ("faults", faults::lane), ("growth", growth::lane)];
    std::thread::scope(|scope| {
        for (at, (name, lane)) in lanes.into_iter().enumerate() {
            scope.spawn(move || {
                // The sandbox says on standard error what it knows, and ends every process of the lane.
                let result = std::thread::spawn(move || lane(Random::new(seed * 10 + at as u64))).join();
                if result.is_err() {
                    tally(|t| t.red.push(format!("the lane {name} has ended: see above")));
                }
            });
        }
        while started.elapsed() < time && tally(|t| t.red.is_empty()) {
            std::thread::sleep(Duration::from_millis(100));
        }
        OVER.store(true, Ordering::Relaxed);
    });
    tally(|t| report(t, started.elapsed()))
}

fn report(t: &mut Tally, took: Duration) -> ExitCode {
    println!("{:<34} {:>8}", "swaps and reloads", t.swaps);
    println!("{:<34} {:>8}", "requests", t.requests);
    println!("{:<34} {:>8}   {:?}", "failed without a fault", t.failed.values().sum::<usize>(), t.failed);
    println!("{:<34} {:>8}", "faults", t.faults.values().map(|suffered| suffered.struck).sum::<usize>());
    for (fault, Suffered { struck, missed, failed }) in &t.faults {
        println!("  {:<32} {struck:>8}   and {missed} met nobody; failed meanwhile: {failed:?}", fault.name());
        if !fault.harms() && !failed.is_empty() {
            t.red.push(format!("requests failed although {} harms no server", fault.name()));
        }
    }
    println!("{:<34} {:>8}   {:?}", "servers", t.servers.values().sum::<usize>(), t.servers);
    for (name, before, after, more) in &t.growth {
        println!("{:<34} {before:>8} before, {after} after", format!("the supervisor that reloads: {name}"));
        if *after > before + more {
            t.red.push(format!("{name} grew from {before} to {after}"));
        }
    }
    if !t.failed.is_empty() {
        t.red.push("requests failed without a fault".into());
    }
    if t.swaps == 0 || t.faults.is_empty() {
        t.red.push("too little was done to say anything".into());
    }
    t.red.iter().for_each(|fault| println!("{fault}"));
    println!("{} s: {}", took.as_secs(), if t.red.is_empty() { "ok" } else { "NOT ok" });
    ExitCode::from(u8::from(!t.red.is_empty()))
}

/// A server in a sandbox of its own.
struct Stage {
    sandbox: Sandbox,
    port: u16,
    words: Vec<String>,
}

impl Stage {
    fn new(server: &Server) -> Stage {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let command = server.command.iter().map(|word| match word.strip_prefix("PORT=") {
            Some(_) => format!("PORT={port}"),
            None => word.replace("PORT", &port.to_string()),
        });
        let options = server.options.iter().map(|word| (*word).to_owned());
        let words = ["-d".to_owned()].into_iter().chain(options).chain(command).collect();
        tally(|t| *t.servers.entry(server.name).or_default() += 1);
        Stage { sandbox, port, words }
    }

    /// A swap that has to succeed.
    fn deploy(&self) {
        let (status, log) = self.sandbox.run(&self.words);
        assert_eq!(status, 0, "{log}");
    }

    fn crowd(&self) -> Crowd {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        Crowd::start(&[address], &[(2, Habit::Fresh), (1, Habit::Pooled), (1, Habit::Browsing)])
    }

    /// Takes down what there is, and nothing is left: no process, no file, no socket.
    fn end(self) {
        let down = self.sandbox.status().into_iter().map(|fields| fields[0].clone());
        let (status, log) = self.sandbox.run(["--takedown".to_owned()].into_iter().chain(down));
        assert_eq!(status, 0, "{log}");
        self.sandbox.assert_clean();
        until("nobody is left", || self.sandbox.inhabitants().is_empty());
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err(), "somebody listens on");
    }
}

fn pick<'a>(random: &mut Random, servers: &'a [Server]) -> &'a Server {
    &servers[random.below(servers.len())]
}

fn quick() -> Vec<Server> {
    let asked_by_ours = |server: &Server| matches!(server.clients, Clients::Http) && !server.slow && !server.both;
    servers::all().into_iter().filter(asked_by_ours).collect()
}

fn count(name: &str, seen: &Seen) {
    tally(|t| {
        t.requests += seen.requests;
        for (failure, count) in &seen.failures {
            *t.failed.entry(*failure).or_default() += count;
        }
        t.red.extend(seen.notes.iter().map(|note| format!("{name}: {note}")));
    });
}

/// Nothing goes wrong.
fn calm(mut random: Random) {
    let servers = quick();
    while !is_over() {
        let server = pick(&mut random, &servers);
        let stage = Stage::new(server);
        stage.deploy();
        let crowd = stage.crowd();
        until("all clients are answered", || crowd.all_saw(1));
        for generation in 2..4 + random.below(6) as u64 {
            match random.below(3) {
                0 => {
                    let address = stage.sandbox.status()[0][0].clone();
                    let (status, log) = stage.sandbox.run(["--reload".to_owned(), address]);
                    assert_eq!(status, 0, "{log}");
                }
                _ => stage.deploy(),
            }
            tally(|t| t.swaps += 1);
            until("all clients see the new generation", || crowd.all_saw(generation));
            if is_over() {
                break;
            }
        }
        count(server.name, &crowd.stop());
        stage.end();
    }
}
