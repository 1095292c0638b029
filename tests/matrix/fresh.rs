//! Each request has a connection of its own, or one that a client finds closed when it was idle: what most clients do.

use super::client::{Crowd, Habit, Seen};
use super::common::{answered_by, until};
use super::connection::Failure;
use super::servers::{self, Clients, Server};
use super::target::Target;
use super::{Report, Settings, in_lanes};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// A swap waits most of its time for idle connections, so some rows run at the same time; not many, since a
/// machine that is too busy makes clients wait.
const LANES: usize = 4;

/// Of each server.
const SWAPS: u64 = 20;

/// Swaps all servers that are asked for.
pub fn run(settings: &Settings) -> Report {
    let servers: Vec<Server> = servers::all().into_iter().filter(|server| settings.wants(server.name)).collect();
    if servers.is_empty() {
        return (0, Vec::new());
    }
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
    let faults = in_lanes(LANES, &servers, |server| {
        let row = Row::run(server, &settings.options);
        println!("{}", row.line(server));
        row.faults.into_iter().map(|fault| format!("{}: {fault}", server.name)).collect()
    });
    (servers.len(), faults)
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
        let options = server.options.iter().map(|word| (*word).to_owned()).chain(options.iter().cloned());
        let mut target = Target::new(options, &server.command);
        let port = target.port;
        self.faults.extend(target.deploy(1));
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
                let mut command = target.sandbox.command(&words[0]);
                command.args(&words[1..]).arg(port.to_string());
                Crowd::program(command, *count)
            }
        };
        until("all clients are answered", || crowd.all_saw(1));
        for generation in 2..=swaps + 1 {
            if let Some(fault) = target.deploy(generation) {
                self.faults.push(fault);
                break;
            }
            self.swaps += 1;
            until("all clients see the new generation", || crowd.all_saw(generation));
        }
        if let Some(broken) = server.broken {
            target.words.truncate(target.words.len() - 1);
            target.words.push(broken.to_owned());
            let patience = ["--ready-timeout", "5"].iter().map(ToString::to_string);
            let (status, log) = target.sandbox.run(patience.chain(target.words.iter().cloned()));
            if status == 0 || target.sandbox.status().iter().any(|fields| fields[1] != (swaps + 1).to_string()) {
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
        self.faults.extend(target.take_down());
        for line in target.warnings() {
            if line.contains("the time to drain is up") {
                self.overdue += 1;
            } else {
                self.faults.push(line);
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
