//! What a supervised server loses in speed.

use super::common::{SERVERSWAP, Sandbox, answered_by, get, until};
use super::{median, row};
use std::path::Path;
use std::process::{Command, Stdio};

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
    let (mut directs, mut superviseds) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        // In turn, so that nobody is always the second.
        if pair % 2 == 0 {
            directs.push(direct());
            superviseds.push(supervised());
        } else {
            superviseds.push(supervised());
            directs.push(direct());
        }
    }
    let of = |all: &[Speed], what: fn(&Speed) -> f64| median(all.iter().map(|s| what(s) as u64).collect());
    row("  direct, requests per second", of(&directs, |s| s.per_second), "");
    row("  supervised, requests per second", of(&superviseds, |s| s.per_second), "");
    let ratio = |what: fn(&Speed) -> f64| {
        let pairs = directs.iter().zip(&superviseds);
        let ratio = median(pairs.map(|(direct, supervised)| (what(supervised) / what(direct) * 1e4) as u64).collect());
        format!("{:.3}", ratio as f64 / 1e4)
    };
    row(name, ratio(|s| s.per_second), "0.98");
    // Does not depend on what else the machine does.
    row("processor time per request, supervised to direct, median", ratio(|s| s.processor), "");
}

struct Speed {
    per_second: f64,
    /// Clock ticks of the server per request.
    processor: f64,
}

fn speed(port: u16) -> Speed {
    let mut pid = None;
    until("the server answers", || {
        pid = get(port).ok().map(|answer| answer.pid);
        pid.is_some()
    });
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.unwrap())).unwrap();
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>()
    };
    let before = ticks();
    let url = format!("http://127.0.0.1:{port}/");
    let output = Command::new("wrk").args(["-t1", "-c4", "-d1s", &url]).output().unwrap();
    let processor = ticks() - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let per_second = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse::<f64>().ok());
    match (per_second, requests) {
        (Some(per_second), Some(requests)) => Speed { per_second, processor: processor / requests },
        _ => panic!("wrk says:\n{text}"),
    }
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
    row("bind of a supervised server that meets nothing, median, us", median(supervised) / 1000, "60");
    row("  the same without serverswap, us", median(direct) / 1000, "");
    let sleepers: Vec<_> = (0..300).map(|_| sandbox.command("sleep").arg("600").spawn().unwrap()).collect();
    let crowded = (0..11).map(|_| time(sandbox.command(SERVERSWAP).arg(server))).collect();
    for mut sleeper in sleepers {
        sleeper.kill().and_then(|()| sleeper.wait()).unwrap();
    }
    row("  supervised, beside 300 more processes, us", median(crowded) / 1000, "60");
}

/// Clients that bind a source port for each request, which no swap is about: one as many are written, and one that does
/// nothing else.
pub fn binding_client(server: &Path) {
    const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let sandbox = Sandbox::shared();
    let ratio = |server: &[&str], client: &[&str]| {
        let address = format!("127.0.0.1:{}", sandbox.port());
        let mut command = sandbox.command(server[0]);
        command.args(&server[1..]).arg(&address).env("SERVERSWAP_GENERATION", "1");
        let mut running = sandbox.start(command);
        until("the server answers", || std::net::TcpStream::connect(&address).is_ok());
        let ratio = binding_ratio(&sandbox, &[client, &[&*address]].concat());
        running.signal(nix::libc::SIGTERM);
        running.wait();
        ratio
    };
    let file = |name: &str| format!("{TESTS}/{name}");
    let python = ratio(&["python3", &file("servers/unmodified.py")], &["python3", &file("bench/binding.py")]);
    row("requests of a client that binds for each, supervised to direct", python, "0.95");
    let server = server.to_string_lossy();
    row("  of one that does nothing else", ratio(&[&*server], &[&*server, "ask"]), "");
}

fn binding_ratio(sandbox: &Sandbox, client: &[&str]) -> String {
    let ask = |command: &mut Command| {
        let output = command.stderr(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse::<u64>().unwrap()
    };
    let direct = || ask(sandbox.command(client[0]).args(&client[1..]));
    let supervised = || ask(sandbox.command(SERVERSWAP).args(client));
    let ratios = (0..31).map(|pair| {
        // In turn, so that nobody is always the second.
        let (direct, supervised) = match pair % 2 {
            0 => (direct(), supervised()),
            _ => {
                let supervised = supervised();
                (direct(), supervised)
            }
        };
        supervised * 10_000 / direct.max(1)
    });
    format!("{:.3}", median(ratios.collect()) as f64 / 1e4)
}
