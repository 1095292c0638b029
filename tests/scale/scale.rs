//! `make scale`: very many of everything. Each scene has to work at its full size, and what it costs may grow no
//! faster than linearly. Prints a table and fails otherwise. Arguments: names of scenes, to run only these, and
//! numbers, to run them at other sizes than theirs.

#[path = "../common/mod.rs"]
mod common;

mod addresses;
mod connections;
mod contenders;
mod supervisors;

use common::{Running, SERVERSWAP, Sandbox, until};
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Something of which there are very many.
struct Scene {
    name: &'static str,
    sizes: &'static [usize],
    /// Panics where something does not work.
    run: fn(usize) -> Figures,
}

const SCENES: [Scene; 5] = [
    Scene { name: "addresses of a server", sizes: &[250, 500, 1000], run: addresses::found },
    Scene { name: "addresses that say READY", sizes: &[250, 500, 1000], run: addresses::said },
    Scene { name: "servers and supervisors", sizes: &[125, 500], run: supervisors::run },
    Scene { name: "contenders for an address", sizes: &[64, 256], run: contenders::run },
    Scene { name: "idle connections", sizes: &[2500, 5000, 10_000], run: connections::run },
];

/// What is measured anew in one run may be that much more than linear.
const TOLERANCE: f64 = 1.6;

/// How long the biggest of them may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a scene costs at one size.
#[derive(Default)]
struct Figures(Vec<Figure>);

struct Figure {
    name: &'static str,
    unit: Unit,
    value: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Unit {
    Ms,
    KiB,
}

impl Figures {
    /// A time that something takes. Of several measurements the shortest counts: the others were disturbed.
    fn time(&mut self, name: &'static str, took: Duration) {
        let value = took.as_secs_f64() * 1000.0;
        match self.0.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.value = figure.value.min(value),
            None => self.0.push(Figure { name, unit: Unit::Ms, value }),
        }
    }

    fn memory(&mut self, name: &'static str, kib: u64) {
        self.0.push(Figure { name, unit: Unit::KiB, value: kib as f64 });
    }
}

impl Figure {
    /// Less than this is as good as nothing, and says nothing about growth.
    fn floor(&self) -> f64 {
        match self.unit {
            Unit::Ms => 40.0,
            Unit::KiB => 512.0,
        }
    }

    fn shown(&self) -> String {
        match self.unit {
            Unit::Ms => format!("{:.0} ms", self.value),
            Unit::KiB => format!("{:.0} KiB", self.value),
        }
    }
}

fn main() -> ExitCode {
    raise_limits();
    let (numbers, names): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).filter(|word| word != "--bench").partition(|word| word.parse::<usize>().is_ok());
    let numbers: Vec<usize> = numbers.iter().map(|word| word.parse().unwrap()).collect();
    let chosen = |scene: &&Scene| names.is_empty() || names.iter().any(|name| scene.name.contains(name.as_str()));
    let (started, mut red) = (Instant::now(), Vec::new());
    for scene in SCENES.iter().filter(chosen) {
        let sizes = if numbers.is_empty() { scene.sizes } else { &numbers[..] };
        show(scene, sizes, &mut red);
    }
    red.iter().for_each(|fault| println!("{fault}"));
    println!("{} s: {}", started.elapsed().as_secs(), if red.is_empty() { "ok" } else { "NOT ok" });
    ExitCode::from(u8::from(!red.is_empty()))
}

/// Runs a scene at each of its sizes and prints its part of the table.
fn show(scene: &Scene, sizes: &[usize], red: &mut Vec<String>) {
    let columns: String = sizes.iter().map(|size| format!("{size:>13}")).collect();
    println!("{:<44}{columns}", scene.name);
    let mut all: Vec<Figures> = Vec::new();
    for &size in sizes {
        // The sandbox says on standard error what it knows, and ends every process of the scene.
        match std::thread::spawn({
            let run = scene.run;
            move || run(size)
        })
        .join()
        {
            Ok(figures) => all.push(figures),
            Err(_) => return red.push(format!("{size} {}: see above", scene.name)),
        }
    }
    for (at, figure) in all[0].0.iter().enumerate() {
        let row: Vec<&Figure> = all.iter().map(|figures| &figures.0[at]).collect();
        let (first, last) = (row[0], row[row.len() - 1]);
        let (times, grew) =
            (sizes[sizes.len() - 1] as f64 / sizes[0] as f64, last.value / first.value.max(figure.floor()));
        let faster = grew > times * TOLERANCE;
        let values: String = row.iter().map(|figure| format!("{:>13}", figure.shown())).collect();
        println!("  {:<42}{values}   x {grew:.1}{}", figure.name, if faster { "  NOT ok" } else { "" });
        if faster {
            red.push(format!("{}: {} grows by {grew:.1} for {times:.1} times as many", scene.name, figure.name));
        }
    }
}

/// As many files as may be had: a client of ten thousand connections is one process.
fn raise_limits() {
    let mut limit = nix::libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one struct of ours.
    unsafe {
        assert_eq!(nix::libc::getrlimit(nix::libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(nix::libc::setrlimit(nix::libc::RLIMIT_NOFILE, &limit), 0);
    }
}

/// How long something takes.
fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    (what(), started.elapsed())
}

/// Waits for the end of a command, which may take its time: status, what it said.
fn end_of(mut running: Running) -> (i32, String) {
    let started = Instant::now();
    while !running.ended() {
        assert!(started.elapsed() < PATIENCE, "it does not end; it says:\n{}", running.log());
        std::thread::sleep(Duration::from_millis(1));
    }
    (running.wait(), running.log())
}

/// Runs a command that has to succeed.
fn succeed(sandbox: &Sandbox, words: &[String]) -> Duration {
    let ((status, log), took) = timed(|| end_of(sandbox.serverswap(words)));
    assert!(status == 0 && !log.contains("warning"), "{status}: {log}");
    took
}

/// The words that take something down.
fn takedown(addresses: impl IntoIterator<Item = String>) -> Vec<String> {
    ["--takedown".to_owned()].into_iter().chain(addresses).collect()
}

/// Supervisors and their keepers in a sandbox.
fn ours(sandbox: &Sandbox) -> Vec<i32> {
    let is_ours = |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == Path::new(SERVERSWAP));
    sandbox.processes().into_iter().map(|(pid, _)| pid).filter(is_ours).collect()
}

/// KiB of memory, shared parts divided among those who share them.
fn pss(pids: impl IntoIterator<Item = i32>) -> u64 {
    let of = |pid| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0)
    };
    pids.into_iter().map(of).sum()
}

/// Waits until so many processes of ours are left, and they have nothing to do.
fn settled(sandbox: &Sandbox, count: usize) -> Vec<i32> {
    until("only those are left that serve", || ours(sandbox).len() == count);
    ours(sandbox)
}
