//! Kept connections: clients that post over one that is never closed by them, never ask again, and do not look whether
//! the server has closed it. Nothing may be lost, nothing carried out twice, and no swap may wait for the drain time.

use super::common::until;
use super::connection::Failure;
use super::poster::{Manner, Posted, Posters};
use super::servers::{self, Kept};
use super::target::Target;
use super::{Report, Settings, in_lanes};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Clients of a row, how many swaps, and how many rows run at a time: the clients keep the machine busy.
const CROWDS: [(usize, u64, usize); 3] = [(16, 20, 4), (4, 20, 4), (256, 5, 2)];

/// A swap that takes so long has waited for `--drain`, which is 10 s.
const TOO_LONG: Duration = Duration::from_secs(8);

/// A row.
struct Row {
    server: Kept,
    clients: usize,
    manner: Manner,
    swaps: u64,
}

/// What came of it.
#[derive(Default)]
struct Outcome {
    posted: Posted,
    swaps: u64,
    slowest_swap: Duration,
    /// Requests that were carried out more than once; `None` where the server keeps no account.
    twice: Option<usize>,
    faults: Vec<String>,
}

/// Swaps all servers that are asked for.
pub fn run(settings: &Settings) -> Report {
    let rows = |clients, swaps: u64| -> Vec<Row> {
        let swaps = settings.swaps.map_or(swaps, |most| most.min(swaps));
        let of = |manner| {
            let servers = servers::kept().into_iter().filter(|server| settings.wants(server.name));
            servers.map(move |server| Row { server, clients, manner, swaps })
        };
        of(Manner::Closed).chain(of(Manner::Pauses)).collect()
    };
    if rows(1, 1).is_empty() {
        return (0, Vec::new());
    }
    println!("\nkept connections: POST, never tried again, no look at the connection before");
    println!(
        "{:<28} {:>7} {:<6} {:>5} {:>8} {:>7} {:>5} {:>6} {:>9} {:>5} {:>5} {:>14} {:>12}",
        "server",
        "clients",
        "manner",
        "swaps",
        "requests",
        "refused",
        "reset",
        "closed",
        "timed out",
        "wrong",
        "twice",
        "slowest answer",
        "slowest swap"
    );
    let run = |row: &Row| {
        let outcome = row.run(&settings.options);
        println!("{}", row.line(&outcome));
        let name = format!("{}, {} clients, {}", row.server.name, row.clients, manner(row.manner));
        outcome.faults.into_iter().map(|fault| format!("{name}: {fault}")).collect()
    };
    let (mut count, mut faults) = (0, Vec::new());
    for (clients, swaps, lanes) in CROWDS {
        let rows = rows(clients, swaps);
        count += rows.len();
        faults.extend(in_lanes(lanes, &rows, run));
    }
    (count, faults)
}

/// How a manner is called in a table.
pub fn manner(manner: Manner) -> &'static str {
    match manner {
        Manner::Closed => "closed",
        Manner::Pauses => "pauses",
    }
}

impl Row {
    fn run(&self, options: &[String]) -> Outcome {
        let mut outcome = Outcome::default();
        let options = self.server.options.iter().map(|word| (*word).to_owned()).chain(options.iter().cloned());
        let target = Target::new(options, &self.server.command);
        outcome.faults.extend(target.deploy(1));
        if !outcome.faults.is_empty() {
            return outcome;
        }
        let posters = Posters::start((Ipv4Addr::LOCALHOST, target.port).into(), self.clients, self.manner);
        until("all clients are answered", || posters.all_saw(1));
        for generation in 2..=self.swaps + 1 {
            let began = Instant::now();
            outcome.faults.extend(target.deploy(generation));
            outcome.slowest_swap = outcome.slowest_swap.max(began.elapsed());
            if !outcome.faults.is_empty() {
                break;
            }
            outcome.swaps += 1;
            until("all clients see the new generation", || posters.all_saw(generation));
        }
        outcome.posted = posters.stop();
        outcome.faults.extend(target.take_down());
        outcome.faults.extend(target.warnings());
        outcome.twice = std::fs::read_to_string(target.ids()).ok().map(|ids| twice(&ids));
        outcome.judge();
        outcome
    }

    fn line(&self, outcome: &Outcome) -> String {
        let count = |failure| outcome.posted.failures.get(&failure).copied().unwrap_or(0);
        format!(
            "{:<28} {:>7} {:<6} {:>5} {:>8} {:>7} {:>5} {:>6} {:>9} {:>5} {:>5} {:>11} ms {:>9} ms{}",
            self.server.name,
            self.clients,
            manner(self.manner),
            outcome.swaps,
            outcome.posted.requests,
            count(Failure::Refused),
            count(Failure::Reset),
            count(Failure::Empty),
            count(Failure::TimedOut),
            count(Failure::Other),
            outcome.twice.map_or("-".into(), |count| count.to_string()),
            outcome.posted.slowest.as_millis(),
            outcome.slowest_swap.as_millis(),
            if outcome.faults.is_empty() { "" } else { "  NOT ok" },
        )
    }
}

impl Outcome {
    fn judge(&mut self) {
        if self.posted.lost() > 0 {
            self.faults.push(format!("lost {:?}: {:#?}", self.posted.failures, self.posted.notes));
        }
        if let Some(twice) = self.twice.filter(|count| *count > 0) {
            self.faults.push(format!("{twice} requests were carried out twice"));
        }
        if self.slowest_swap > TOO_LONG {
            self.faults.push(format!("a swap took {:?}: it waited for the drain time", self.slowest_swap));
        }
    }
}

/// How many lines there are more than once.
fn twice(ids: &str) -> usize {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    ids.lines().for_each(|id| *counts.entry(id).or_default() += 1);
    counts.values().filter(|count| **count > 1).count()
}
