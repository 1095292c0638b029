//! `make bench`: what a supervisor costs, and what a swap. Prints a table; fails nothing, since a busy machine would.

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "../matrix/connection.rs"]
mod connection;
mod kept;
mod orders;
#[allow(dead_code)]
#[path = "../matrix/poster.rs"]
mod poster;
mod throughput;
mod undo;

use common::{SERVERSWAP, Sandbox, answered_by, plain_server};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

fn main() {
    // Arguments: "kept" or "undo" for one table only.
    if std::env::args().any(|word| word == "kept") {
        return kept::table();
    }
    if std::env::args().any(|word| word == "undo") {
        return undo::verdicts();
    }
    println!("{:<58} {:>14}   bound", "figure", "measured");
    row("binary, KiB", fs::metadata(SERVERSWAP).map(|m| m.len() / 1024).unwrap_or(0), "1280");
    let delay = start_delay();
    row("start of the server against a direct start, median, us", delay, "2500");
    idle();
    behind_a_front();
    let server = common::example("bench-server");
    throughput::bind(&server);
    throughput::binding_client(&server);
    throughput::requests(&server);
    orders::shared(&server);
    orders::plain();
    orders::server_starter(&server);
    undo::verdicts();
    kept::table();
}

fn row(name: &str, value: impl std::fmt::Display, bound: &str) {
    println!("{name:<58} {value:>14}   {bound}");
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// From the spawn of a command to the first line of its server's `main`, direct and supervised in turn.
fn start_delay() -> u64 {
    let sandbox = Sandbox::new();
    let server = plain_server();
    let time = |command: &mut Command| {
        let before = monotonic();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stamp = String::new();
        child.stdout.take().unwrap().read_to_string(&mut stamp).unwrap();
        child.wait().unwrap();
        (stamp.trim().parse::<u64>().unwrap() - before) / 1000
    };
    let (mut direct, mut supervised) = (Vec::new(), Vec::new());
    for _ in 0..101 {
        direct.push(time(sandbox.command(&server).arg("stamp")));
        supervised.push(time(sandbox.command(SERVERSWAP).arg(&server).arg("stamp")));
    }
    let late = ninth_tenth(supervised.clone()).saturating_sub(median(direct.clone()));
    row("start of the server against a direct start, 90th percentile, us", late, "5000");
    let (direct, supervised) = (median(direct), median(supervised));
    row("  direct start, us", direct, "");
    row("  supervised start, us", supervised, "");
    supervised.saturating_sub(direct)
}

fn ninth_tenth(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() * 9 / 10]
}

/// The supervisors and keepers of a server that has been reloaded.
fn behind_a_front() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let _front = sandbox.serverswap([plain_server().to_str().unwrap(), &address]);
    answered_by(port, 1);
    assert_eq!(sandbox.run(["--reload", &address]).0, 0);
    std::thread::sleep(Duration::from_secs(5));
    row("memory of supervisors and keepers behind a front, PSS, KiB", ours(&sandbox).map(pss).sum::<u64>(), "2048");
    sandbox.take_down(&address);
}

/// The processes of serverswap itself.
fn ours(sandbox: &Sandbox) -> impl Iterator<Item = i32> {
    let is_ours = |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == Path::new(SERVERSWAP));
    sandbox.processes().into_iter().map(|(pid, _)| pid).filter(is_ours)
}

/// A supervisor with one server that has nothing to do, after a swap.
fn idle() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let words = [plain_server().to_str().unwrap().to_owned(), format!(":{port}")];
    let mut old = sandbox.serverswap(&words);
    answered_by(port, 1);
    let running = sandbox.serverswap(&words);
    old.wait();
    // Long enough for everything that follows the swap to be over.
    std::thread::sleep(Duration::from_secs(5));
    let pid = running.pid();
    row("memory of an idle supervisor and its keeper, PSS, KiB", ours(&sandbox).map(pss).sum::<u64>(), "1024");
    row("  of the supervisor alone", pss(pid), "");
    row("threads of an idle supervisor", threads(pid).len(), "");
    let before = switches(pid);
    let strace = Command::new("strace").args(["-f", "-qq", "-p", &pid.to_string()]).stderr(Stdio::piped()).spawn();
    std::thread::sleep(Duration::from_secs(10));
    match strace {
        Ok(mut strace) => {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(strace.id() as i32), nix::sys::signal::SIGINT);
            let mut trace = String::new();
            strace.stderr.take().unwrap().read_to_string(&mut trace).unwrap();
            strace.wait().unwrap();
            // A call that was interrupted by the attaching or detaching itself is no wake-up.
            let calls = trace.lines().filter(|l| l.contains(" = ") || l.contains("resumed>")).count();
            row("system calls in ten idle seconds (strace)", calls, "0");
        }
        Err(_) => {
            row("wake-ups in ten idle seconds (no strace here)", switches(pid) - before, "0");
        }
    }
}

/// KiB.
fn pss(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

fn threads(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|t| fs::read_to_string(t.path().join("status")).ok()).collect()
}

fn switches(pid: i32) -> u64 {
    let of = |status: &String| {
        let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    };
    threads(pid).iter().filter_map(of).sum()
}
