//! What a supervised server loses in speed.

use super::common::{DEADLINE, SERVERSWAP, Sandbox, answered_by, get};
use super::{median, row};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PAIRS: usize = 12;

/// Requests over connections that stay open, to a server that is started directly and one under serverswap.
/// Both are new in every pair: where a process happens to lie in memory makes a difference of its own.
pub fn requests(server: &Path) {
    let name = "requests per second (wrk), supervised to direct, median";
    if Command::new("wrk").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return row(name, "no wrk", "0.98   (not measured; Debian: wrk)");
    }
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("127.0.0.1:{port}");
    let direct = || {
        let mut command = sandbox.command(server);
        command.arg(&address);
        let mut running = sandbox.start(command);
        let speed = speed(port);
        running.signal(nix::libc::SIGTERM);
        running.wait();
        speed
    };
    let supervised = || {
        let mut running = sandbox.serverswap([server.as_os_str(), address.as_ref()]);
        answered_by(port, 1);
        let speed = speed(port);
        running.signal(nix::libc::SIGTERM);
        running.wait();
        speed
    };
    let (mut directs, mut superviseds, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        // In turn, so that nobody is always the second.
        let (one, other) = if pair % 2 == 0 {
            let one = direct();
            (one, supervised())
        } else {
            let other = supervised();
            (direct(), other)
        };
        directs.push(one);
        superviseds.push(other);
        ratios.push(other * 10_000 / one.max(1));
    }
    row("  direct, requests per second", median(directs), "");
    row("  supervised, requests per second", median(superviseds), "");
    row(name, format!("{:.3}", median(ratios) as f64 / 10_000.0), "0.98");
}

fn speed(port: u16) -> u64 {
    let deadline = Instant::now() + DEADLINE;
    while get(port).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let url = format!("http://127.0.0.1:{port}/");
    let output = Command::new("wrk").args(["-t1", "-c4", "-d1s", &url]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")).unwrap_or_default().trim();
    number.parse::<f64>().unwrap_or(0.0) as u64
}

/// One bind, which the supervisor of a server sees and lets through.
pub fn bind(server: &Path) {
    let sandbox = Sandbox::shared();
    let time = |command: &mut Command| {
        let output = command.arg("bind").stderr(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse::<u64>().unwrap()
    };
    let (mut direct, mut supervised) = (Vec::new(), Vec::new());
    for _ in 0..11 {
        direct.push(time(&mut sandbox.command(server)));
        supervised.push(time(sandbox.command(SERVERSWAP).arg(server)));
    }
    row("bind of a supervised server, median, us", median(supervised) / 1000, "");
    row("  the same without serverswap, us", median(direct) / 1000, "");
}
