//! `make test-servers`: real servers, swapped under load. Prints a table and fails if any client of any of them
//! noticed. Arguments: names of rows, or parts of them, to run only these; a word that begins with `-` goes to
//! serverswap: with `--plain` no row is spotless.

#[path = "../common/mod.rs"]
mod common;

mod client;
mod servers;

use client::{Crowd, Failure, Habit, Seen};
use common::{Sandbox, answered_by, until};
use servers::{Clients, Server};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A swap waits most of its time for idle connections, so some rows run at the same time; not many, since a
/// machine that is too busy makes clients wait.
const LANES: usize = 4;

/// Of each server.
const SWAPS: u64 = 20;

fn main() {
    let (options, names): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|word| word.starts_with('-'));
    let chosen = |server: &Server| names.is_empty() || names.iter().any(|name| server.name.contains(name.as_str()));
    let servers: Vec<Server> = servers::all().into_iter().filter(chosen).collect();
    let (queue, red) = (Mutex::new(servers.iter()), Mutex::new(Vec::new()));
    let started = Instant::now();
    println!(
        "{:<30} {:>5} {:>8} {:>7} {:>5} {:>5} {:>9} {:>5} {:>7} {:>10} {:>7} {:>7}",
        "server",
        "swaps",
        "requests",
        "refused",
        "reset",
        "empty",
        "timed out",
        "other",
        "retried",
        "slowest",
        "overdue",
        "took"
    );
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(server) = next else { break };
                    let row = Row::run(server, &options);
                    println!("{}", row.line(server));
                    red.lock().unwrap().extend(row.faults.iter().map(|fault| format!("{}: {fault}", server.name)));
                }
            });
        }
    });
    let red = red.into_inner().unwrap();
    red.iter().for_each(|fault| println!("{fault}"));
    println!(
        "{} servers in {} s: {}",
        servers.len(),
        started.elapsed().as_secs(),
        if red.is_empty() { "ok" } else { "NOT ok" }
    );
    std::process::exit(i32::from(!red.is_empty() || servers.is_empty()));
}

/// What came of a server.
#[derive(Default)]
struct Row {
    seen: Seen,
    swaps: u64,
    /// Swaps in which a connection looked busy until the drain time was over. No fault: who has lost something by
    /// it has counted it.
    overdue: usize,
    faults: Vec<String>,
    took: Duration,
}

impl Row {
    /// Swaps a server many times under load. Never panics: the other rows count as well.
    fn run(server: &Server, options: &[String]) -> Row {
        let started = Instant::now();
        let mut row = Row::default();
        // The sandbox says on standard error what it knows, and ends every process of the row.
        let result = std::thread::scope(|scope| scope.spawn(|| row.swap(server, options, SWAPS)).join());
        if result.is_err() {
            row.faults.push("see above".into());
        }
        row.took = started.elapsed();
        row
    }

    fn swap(&mut self, server: &Server, options: &[String], swaps: u64) {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let command = server.command.iter().map(|word| {
            // `PORT=PORT` names the variable too.
            match word.strip_prefix("PORT=") {
                Some(_) => format!("PORT={port}"),
                None => word.replace("PORT", &port.to_string()),
            }
        });
        let options = server.options.iter().map(|word| (*word).to_owned()).chain(options.iter().cloned());
        let mut words: Vec<String> = ["-d".to_owned()].into_iter().chain(options).chain(command).collect();
        let deploy = |words: &[String], generation: u64| match sandbox.run(words) {
            (0, log) if !log.contains("warning") => None,
            (status, log) => Some(format!("generation {generation}: status {status}\n{log}")),
        };
        self.faults.extend(deploy(&words, 1));
        if !self.faults.is_empty() {
            return;
        }
        let mut addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
        if server.both {
            addresses.push(SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
        }
        let habits: &[(usize, Habit)] = if server.slow {
            &[(16, Habit::Fresh)]
        } else {
            &[(4, Habit::Fresh), (2, Habit::Pooled), (2, Habit::Browsing)]
        };
        let crowd = match &server.clients {
            Clients::Http => {
                answered_by(port, 1);
                Crowd::start(&addresses, habits)
            }
            Clients::Program(words, count) => {
                let mut command = sandbox.command(&words[0]);
                command.args(&words[1..]).arg(port.to_string());
                Crowd::program(command, *count)
            }
        };
        until("all clients are answered", || crowd.all_saw(1));
        for generation in 2..=swaps + 1 {
            if let Some(fault) = deploy(&words, generation) {
                self.faults.push(fault);
                break;
            }
            self.swaps += 1;
            until("all clients see the new generation", || crowd.all_saw(generation));
        }
        if let Some(broken) = server.broken {
            words.truncate(words.len() - 1);
            words.push(broken.to_owned());
            let (status, log) = sandbox.run(["--ready-timeout", "5"].iter().map(ToString::to_string).chain(words));
            if status == 0 || sandbox.status().iter().any(|fields| fields[1] != (swaps + 1).to_string()) {
                self.faults.push(format!("a version that does not serve was switched to: status {status}\n{log}"));
            }
        }
        self.seen = crowd.stop();
        for generation in 2..=self.swaps + 1 {
            if !self.seen.answers.iter().any(|&(answered, _)| answered == generation) {
                self.faults.push(format!("generation {generation} never answered"));
            }
        }
        if !self.seen.failures.is_empty() {
            self.faults.push(format!("{:?}: {:#?}", self.seen.failures, self.seen.notes));
        }
        // `[::]` is the address of both families where there is one.
        let down = sandbox.status().into_iter().map(|fields| fields[0].clone());
        let (status, log) = sandbox.run(["--takedown".to_owned()].into_iter().chain(down));
        if status != 0 {
            self.faults.push(format!("--takedown: status {status}\n{log}"));
        }
        sandbox.assert_clean();
        until("nobody is left", || sandbox.inhabitants().is_empty());
        // Also what a supervisor in the background said after its command had returned.
        for line in sandbox.said().lines().filter(|line| line.contains("warning")) {
            if line.contains("the time to drain is up") {
                self.overdue += 1;
            } else {
                self.faults.push(line.to_owned());
            }
        }
    }

    fn line(&self, server: &Server) -> String {
        let count = |failure| self.seen.failures.get(&failure).copied().unwrap_or(0);
        format!(
            "{:<30} {:>5} {:>8} {:>7} {:>5} {:>5} {:>9} {:>5} {:>7} {:>7} ms {:>7} {:>5} s{}",
            server.name,
            self.swaps,
            self.seen.requests,
            count(Failure::Refused),
            count(Failure::Reset),
            count(Failure::Empty),
            count(Failure::TimedOut),
            count(Failure::Other),
            self.seen.retried,
            self.seen.slowest.as_millis(),
            self.overdue,
            self.took.as_secs(),
            if self.faults.is_empty() { "" } else { "  NOT ok" },
        )
    }
}
