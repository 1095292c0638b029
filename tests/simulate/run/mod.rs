//! What is run, and what is said of it.

mod explore;
mod random;
mod scripts;

use crate::world::watch::Count;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// For `make test`.
const RUNS: u64 = 40;
const SEED: u64 = 1;

/// What was asked for: by arguments and by the environment.
struct Asked {
    seed: Option<u64>,
    runs: Option<u64>,
    seconds: Option<u64>,
    is_verbose: bool,
}

fn asked() -> Asked {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    Asked {
        seed: number("SEED"),
        runs: number("RUNS"),
        seconds: number("SIMULATE"),
        is_verbose: std::env::args().any(|argument| argument == "--verbose"),
    }
}

pub fn main() -> ExitCode {
    let asked = asked();
    let only_random = asked.seed.is_some() || std::env::args().any(|argument| argument == "--random");
    if !only_random && !explore_all(asked.seconds.is_some()) {
        return ExitCode::FAILURE;
    }
    random_runs(&asked)
}

/// Every interleaving of the small scenarios. `deep`: as far as a minute allows.
fn explore_all(deep: bool) -> bool {
    for scenario in explore::scenarios() {
        let begun = Instant::now();
        let found = explore::explore(&scenario, deep);
        let (name, seconds) = (scenario.name, begun.elapsed().as_secs_f32());
        match found {
            Ok(found) => println!(
                "{name}: {} interleaving with at most {} departures from the usual order, {} states, {} steps deep, \
                 {seconds:.1} s",
                if found.is_all { "every" } else { "not yet every" },
                found.departures,
                found.states,
                found.deepest
            ),
            Err(failure) => {
                eprintln!("{name}: {failure}");
                return false;
            }
        }
    }
    true
}

fn random_runs(asked: &Asked) -> ExitCode {
    let begun = Instant::now();
    let first = asked.seed.unwrap_or(SEED);
    println!("random swaps from seed {first} (SEED={first} repeats them)");
    let until = asked.seconds.map(|seconds| begun + Duration::from_secs(seconds));
    let runs = asked.runs.unwrap_or(if until.is_some() {
        u64::MAX
    } else if asked.seed.is_some() {
        1
    } else {
        RUNS
    });
    let (mut sum, mut done) = (Count::default(), 0);
    while done < runs && until.is_none_or(|until| Instant::now() < until) {
        let seed = first.wrapping_add(done);
        let run = std::panic::catch_unwind(|| random::run(seed, asked.is_verbose));
        match run.unwrap_or_else(|_| Err("a panic".into())) {
            Ok(count) => sum = sum + count,
            Err(failure) => {
                eprintln!("{failure}");
                eprintln!("found after {} runs and {} swaps: SEED={seed} RUNS=1 repeats it", done + 1, sum.swaps);
                return ExitCode::FAILURE;
            }
        }
        done += 1;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{done} runs: {} swaps, {} deaths, {} caretakers, {} answers, {} steps, {} swaps in plain order, {} servers that \
         nobody could share with; {:.0} swaps a minute",
        sum.swaps,
        sum.deaths,
        sum.caretakers,
        sum.answers,
        sum.steps,
        sum.plain,
        sum.unsharable,
        sum.swaps as f64 * 60.0 / seconds
    );
    ExitCode::SUCCESS
}

impl std::ops::Add for Count {
    type Output = Count;

    fn add(self, other: Count) -> Count {
        Count {
            steps: self.steps + other.steps,
            swaps: self.swaps + other.swaps,
            deaths: self.deaths + other.deaths,
            caretakers: self.caretakers + other.caretakers,
            answers: self.answers + other.answers,
            plain: self.plain + other.plain,
            unsharable: self.unsharable + other.unsharable,
        }
    }
}
