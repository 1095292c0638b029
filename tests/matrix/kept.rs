//! Kept connections: clients that post over one that is never closed by them, never ask again, and do not look whether
//! the server has closed it. Nothing may be lost, nothing carried out twice, and no swap may wait for the drain time.

use super::common::until;
use super::connection::Failure;
use super::loads::{self, Load};
use super::poster::{Manner, Posted, Posters};
use super::servers::{self, Kept};
use super::target::Target;
use super::{Report, Settings};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Of each server.
const LOADS: [Load; 6] = [
    Load { clients: 16, manner: Manner::Closed, swaps: 20, lanes: 2 },
    Load { clients: 16, manner: Manner::Pauses, swaps: 20, lanes: 8 },
    Load { clients: 4, manner: Manner::Closed, swaps: 20, lanes: 2 },
    Load { clients: 4, manner: Manner::Pauses, swaps: 20, lanes: 8 },
    Load { clients: 256, manner: Manner::Closed, swaps: 20, lanes: 1 },
    Load { clients: 256, manner: Manner::Pauses, swaps: 20, lanes: 3 },
];

/// A swap that takes so much longer than one without connections has waited for `--drain`, which is 10 s.
const TOO_LONG: Duration = Duration::from_secs(8);

/// What came of a row.
#[derive(Default)]
struct Outcome {
    posted: Posted,
    swaps: u64,
    /// From where the new server is up.
    slowest_swap: Duration,
    /// How long one takes while nobody is connected.
    quiet_swap: Duration,
    /// Requests that were carried out more than once; `None` where the server keeps no account.
    twice: Option<usize>,
    faults: Vec<String>,
}

/// Swaps all servers that are asked for.
pub fn run(settings: &Settings) -> Report {
    let servers: Vec<Kept> = servers::kept().into_iter().filter(|server| settings.wants(server.name)).collect();
    if servers.is_empty() {
        return (0, Vec::new());
    }
    println!("\nkept connections: POST, never tried again, no look at the connection before");
    println!(
        "{:<28} {:>7} {:<6} {:>5} {:>8} {:>7} {:>5} {:>6} {:>9} {:>5} {:>5} {:>14} {:>12} {:>10}",
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
        "slowest swap",
        "quiet swap"
    );
    loads::run(settings, &LOADS, &servers, |server, load| {
        let outcome = Outcome::of(server, load, &settings.options);
        println!("{}", outcome.line(server, load));
        let name = format!("{}, {} clients, {}", server.name, load.clients, load.manner());
        outcome.faults.into_iter().map(|fault| format!("{name}: {fault}")).collect()
    })
}

impl Outcome {
    fn of(server: &Kept, load: &Load, options: &[String]) -> Outcome {
        let mut outcome = Outcome::default();
        let options = server.options.iter().map(|word| (*word).to_owned()).chain(options.iter().cloned());
        let target = Target::new(options, &server.command);
        let swap = |faults: &mut Vec<String>, generation| {
            let (fault, took) = target.swap(generation);
            faults.extend(fault);
            took
        };
        swap(&mut outcome.faults, 1);
        outcome.quiet_swap = swap(&mut outcome.faults, 2);
        if !outcome.faults.is_empty() {
            return outcome;
        }
        let posters = Posters::start((Ipv4Addr::LOCALHOST, target.port).into(), load.clients, load.manner);
        until("all clients are answered", || posters.all_saw(2));
        for generation in 3..=load.swaps + 2 {
            let took = swap(&mut outcome.faults, generation);
            outcome.slowest_swap = outcome.slowest_swap.max(took);
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

    fn line(&self, server: &Kept, load: &Load) -> String {
        let count = |failure| self.posted.failures.get(&failure).copied().unwrap_or(0);
        format!(
            "{:<28} {:>7} {:<6} {:>5} {:>8} {:>7} {:>5} {:>6} {:>9} {:>5} {:>5} {:>11} ms {:>9} ms {:>7} ms{}",
            server.name,
            load.clients,
            load.manner(),
            self.swaps,
            self.posted.requests,
            count(Failure::Refused),
            count(Failure::Reset),
            count(Failure::Empty),
            count(Failure::TimedOut),
            count(Failure::Other),
            self.twice.map_or("-".into(), |count| count.to_string()),
            self.posted.slowest.as_millis(),
            self.slowest_swap.as_millis(),
            self.quiet_swap.as_millis(),
            if self.faults.is_empty() { "" } else { "  NOT ok" },
        )
    }

    fn judge(&mut self) {
        if self.posted.lost() > 0 {
            self.faults.push(format!("lost {:?}: {:#?}", self.posted.failures, self.posted.notes));
        }
        if let Some(twice) = self.twice.filter(|count| *count > 0) {
            self.faults.push(format!("{twice} requests were carried out twice"));
        }
        if self.slowest_swap > self.quiet_swap + TOO_LONG {
            let (slowest, quiet) = (self.slowest_swap, self.quiet_swap);
            self.faults.push(format!("a swap took {slowest:?}, one without connections {quiet:?}: it waited to drain"));
        }
    }
}

/// How many lines there are more than once.
fn twice(ids: &str) -> usize {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    ids.lines().for_each(|id| *counts.entry(id).or_default() += 1);
    counts.values().filter(|count| **count > 1).count()
}
