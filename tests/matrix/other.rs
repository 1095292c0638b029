//! Kept connections that speak TLS, HTTP/2 or WebSocket: the relay does nothing for them, and must do nothing to them. The
//! same clients and swaps with the relay and without it, one after the other: no more may be lost with it.

use super::client::Crowd;
use super::common::until;
use super::loads::{self, Load};
use super::poster::Manner;
use super::servers::{self, Spoken};
use super::target::Target;
use super::{Report, Settings};
use std::time::{Duration, Instant};

/// Of each server, and of each way.
const LOADS: [Load; 6] = [
    Load { clients: 16, manner: Manner::Closed, swaps: 5, lanes: 4 },
    Load { clients: 16, manner: Manner::Pauses, swaps: 5, lanes: 8 },
    Load { clients: 4, manner: Manner::Closed, swaps: 5, lanes: 4 },
    Load { clients: 4, manner: Manner::Pauses, swaps: 5, lanes: 8 },
    Load { clients: 256, manner: Manner::Closed, swaps: 2, lanes: 2 },
    Load { clients: 256, manner: Manner::Pauses, swaps: 2, lanes: 3 },
];

/// Seconds that a swap waits for connections that are never idle.
const DRAIN: &str = "1";

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
    let servers: Vec<Spoken> = servers::spoken().into_iter().filter(|server| settings.wants(server.name)).collect();
    if servers.is_empty() {
        return (0, Vec::new());
    }
    println!(
        "\nother protocols, drained for {DRAIN} s, with --relay local and with --no-relay; \"looks\": a server that ends gracefully"
    );
    println!(
        "{:<22} {:>7} {:<6} {:>5}   {:>8} {:>5} {:>12}   {:>8} {:>5} {:>12}",
        "server", "clients", "manner", "swaps", "requests", "lost", "slowest swap", "requests", "lost", "slowest swap"
    );
    loads::run(settings, &LOADS, &servers, |server, load| {
        let way = |relay: &[&str]| {
            let relay = relay.iter().map(ToString::to_string).chain(settings.options.iter().cloned());
            Outcome::of(server, load, relay)
        };
        let (with, without) = (way(&["--relay", "local"]), way(&["--no-relay"]));
        let mut faults = [with.faults.clone(), without.faults.clone()].concat();
        if with.lost > without.lost + chance(load) {
            faults.push(format!("{} lost with the relay, {} without", with.lost, without.lost));
        }
        let (with, without, verdict) =
            (with.columns(), without.columns(), if faults.is_empty() { "" } else { "  NOT ok" });
        let head = format!("{:<22} {:>7} {:<6} {:>5}", server.name, load.clients, load.manner(), load.swaps);
        println!("{head}   {with}   {without}{verdict}");
        let name = format!("{}, {} clients, {}", server.name, load.clients, load.manner());
        faults.into_iter().map(|fault| format!("{name}: {fault}")).collect()
    })
}

impl Outcome {
    fn of(server: &Spoken, load: &Load, options: impl Iterator<Item = String>) -> Outcome {
        let mut outcome = Outcome::default();
        let options = ["--drain", DRAIN].iter().map(ToString::to_string).chain(options);
        let target = Target::new(options, &server.command);
        outcome.faults.extend(target.deploy(1));
        if !outcome.faults.is_empty() {
            return outcome;
        }
        let mut clients = target.sandbox.command(&server.clients[0]);
        clients.args(&server.clients[1..]).arg(load.manner()).arg(target.port.to_string());
        let crowd = Crowd::program(clients, load.clients);
        until("all clients are answered", || crowd.all_saw(1));
        for generation in 2..=load.swaps + 1 {
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

    fn columns(&self) -> String {
        format!("{:>8} {:>5} {:>9} ms", self.requests, self.lost, self.slowest_swap.as_millis())
    }
}

/// How many more one of two equal ways may lose by chance. All clients meet a swap at the same moment and are one program,
/// so that a swap rather than a request is what varies: from none of them to all, about evenly. Three standard deviations
/// of the difference.
fn chance(load: &Load) -> usize {
    (load.clients as f64 * 3.0 * (load.swaps as f64 * 2.0 / 12.0).sqrt()).ceil() as usize
}
