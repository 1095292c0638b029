//! Kept connections that speak TLS, HTTP/2 or WebSocket: the relay does nothing for them, and must do nothing to them. The
//! same clients and swaps with the relay and without it, one after the other: no more may be lost with it.

use super::client::Crowd;
use super::common::until;
use super::poster::Manner;
use super::servers::{self, Spoken};
use super::target::Target;
use super::{Report, Settings, in_lanes, kept};
use std::time::{Duration, Instant};

/// Clients of a row, how many swaps, and how many rows run at a time: the clients keep the machine busy.
const CROWDS: [(usize, u64, usize); 3] = [(16, 10, 4), (4, 10, 4), (256, 3, 2)];

/// Seconds that a swap waits for connections that are never idle.
const DRAIN: &str = "1";

/// A row.
struct Row {
    server: Spoken,
    clients: usize,
    manner: Manner,
    swaps: u64,
}

/// What came of one of the two ways.
#[derive(Default)]
struct Outcome {
    requests: usize,
    lost: usize,
    slowest_swap: Duration,
    faults: Vec<String>,
}

/// Swaps all servers that are asked for.
pub fn run(settings: &Settings) -> Report {
    let rows = |clients, swaps: u64| -> Vec<Row> {
        let swaps = settings.swaps.map_or(swaps, |most| most.min(swaps));
        let of = |manner| {
            let servers = servers::spoken().into_iter().filter(|server| settings.wants(server.name));
            servers.map(move |server| Row { server, clients, manner, swaps })
        };
        of(Manner::Closed).chain(of(Manner::Pauses)).collect()
    };
    if rows(1, 1).is_empty() {
        return (0, Vec::new());
    }
    println!("\nkept connections of other protocols, drained for {DRAIN} s, with --relay local and with --no-relay");
    println!(
        "{:<16} {:>7} {:<6} {:>5}   {:>8} {:>5} {:>12}   {:>8} {:>5} {:>12}",
        "server", "clients", "manner", "swaps", "requests", "lost", "slowest swap", "requests", "lost", "slowest swap"
    );
    let run = |row: &Row| {
        let with = row.run(&["--relay", "local"], &settings.options);
        let without = row.run(&["--no-relay"], &settings.options);
        let mut faults = [with.faults.clone(), without.faults.clone()].concat();
        if with.lost > without.lost + row.chance(&without) {
            faults.push(format!("{} lost with the relay, {} without", with.lost, without.lost));
        }
        println!("{}", row.line(&with, &without, faults.is_empty()));
        let name = format!("{}, {} clients, {}", row.server.name, row.clients, kept::manner(row.manner));
        faults.into_iter().map(|fault| format!("{name}: {fault}")).collect()
    };
    let (mut count, mut faults) = (0, Vec::new());
    for (clients, swaps, lanes) in CROWDS {
        let rows = rows(clients, swaps);
        count += rows.len();
        faults.extend(in_lanes(lanes, &rows, run));
    }
    (count, faults)
}

impl Row {
    fn run(&self, relay: &[&str], options: &[String]) -> Outcome {
        let mut outcome = Outcome::default();
        let options = ["--drain", DRAIN].iter().chain(relay).map(ToString::to_string).chain(options.iter().cloned());
        let target = Target::new(options, &self.server.command);
        outcome.faults.extend(target.deploy(1));
        if !outcome.faults.is_empty() {
            return outcome;
        }
        let mut clients = target.sandbox.command(&self.server.clients[0]);
        clients.args(&self.server.clients[1..]).arg(kept::manner(self.manner)).arg(target.port.to_string());
        let crowd = Crowd::program(clients, self.clients);
        until("all clients are answered", || crowd.all_saw(1));
        for generation in 2..=self.swaps + 1 {
            let began = Instant::now();
            outcome.faults.extend(target.deploy(generation));
            outcome.slowest_swap = outcome.slowest_swap.max(began.elapsed());
            if !outcome.faults.is_empty() {
                break;
            }
            until("all clients see the new generation", || crowd.all_saw(generation));
        }
        let seen = crowd.stop();
        (outcome.requests, outcome.lost) = (seen.requests, seen.failures.values().sum());
        outcome.faults.extend(target.take_down());
        outcome
    }

    /// How many more one of two equal ways may lose by chance. Each connection meets each swap at most once, with about
    /// the same chance: three standard deviations of the difference.
    fn chance(&self, without: &Outcome) -> usize {
        let tries = self.clients as f64 * self.swaps as f64;
        let chance = ((without.lost as f64 + 1.0) / (tries + 1.0)).min(1.0);
        (3.0 * (2.0 * tries * chance * (1.0 - chance)).sqrt()).ceil() as usize
    }

    fn line(&self, with: &Outcome, without: &Outcome, is_green: bool) -> String {
        let [with, without] = [with, without].map(|outcome| {
            let swap = outcome.slowest_swap.as_millis();
            format!("{:>8} {:>5} {swap:>9} ms", outcome.requests, outcome.lost)
        });
        format!(
            "{:<16} {:>7} {:<6} {:>5}   {with}   {without}{}",
            self.server.name,
            self.clients,
            kept::manner(self.manner),
            self.swaps,
            if is_green { "" } else { "  NOT ok" },
        )
    }
}
