//! A hundred swaps under a client that asks all the time: on a shared port, in plain order, and by a peer.

use super::common::{Load, Sandbox, Seen, answered_by, plain_server, until};
use super::{median, monotonic, row};
use nix::libc::SIGHUP;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SWAPS: u64 = 100;

/// What a client sees in that many swaps, and how long they take.
fn under_load(port: u16, mut swap: impl FnMut(u64, &Load)) -> (Seen, Duration) {
    answered_by(port, 1);
    let load = Load::start(port, Duration::ZERO);
    until("the client is answered", || load.is_answered());
    let started = Instant::now();
    for generation in 2..=SWAPS + 1 {
        swap(generation, &load);
    }
    let took = started.elapsed();
    (load.stop(), took)
}

fn rows(order: &str, (seen, took): &(Seen, Duration), bound: &str) {
    row(&format!("{order}: a swap, ms"), took.as_millis() as u64 / SWAPS, "");
    let failures = seen.failures.values().sum::<usize>();
    let kinds = if failures == 0 { String::new() } else { format!("   {:?}", seen.failures) };
    row(&format!("{order}: failed connections in {SWAPS} swaps"), failures, &format!("{bound}{kinds}"));
    row(&format!("{order}: answers meanwhile"), seen.answers.values().sum::<usize>(), "");
    row(&format!("{order}: longest time without an answer, ms"), seen.longest_gap.as_millis(), "");
}

pub fn shared(server: &Path) {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let command = ["-d".as_ref(), server.as_os_str(), format!("127.0.0.1:{port}").as_ref()].map(|w| w.to_owned());
    assert_eq!(sandbox.run(&command).0, 0);
    let mut listens = Vec::new();
    let result = under_load(port, |generation, load| {
        let (status, log) = sandbox.run(&command);
        assert_eq!(status, 0, "{log}");
        load.sees(generation);
        let listen = log.lines().find_map(|line| line.strip_prefix("listen ")).unwrap();
        listens.push((generation, listen.parse::<u64>().unwrap()));
    });
    rows("shared port", &result, "0");
    let (seen, took) = result;
    let (now, instant) = (monotonic(), Instant::now());
    let delay = |&(generation, listen): &(u64, u64)| {
        let asked = now - instant.duration_since(seen.first_asked[&generation]).as_nanos() as u64;
        asked.saturating_sub(listen) / 1000
    };
    row("shared port: from listen to the switch, median, us", median(listens.iter().map(delay).collect()), "");
    let load = Load::start(port, Duration::ZERO);
    std::thread::sleep(took);
    row("  longest time without an answer without a swap, ms", load.stop().longest_gap.as_millis(), "");
    sandbox.run(["--takedown", &format!("127.0.0.1:{port}")]);
}

/// The gap that plain order has.
pub fn plain() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let command = [plain_server().to_str().unwrap().to_owned(), format!(":{port}"), "takedown".into()];
    let mut running = sandbox.serverswap(&command);
    let result = under_load(port, |generation, _| {
        let next = sandbox.serverswap(&command);
        answered_by(port, generation);
        running.wait();
        running = next;
    });
    rows("plain order", &result, "");
    sandbox.run(["--takedown", &port.to_string()]);
}

/// A superdaemon that keeps the socket, with a server that takes it from there.
pub fn server_starter(server: &Path) {
    let sandbox = Sandbox::shared();
    if Command::new("start_server").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return row("Server::Starter", "no start_server", "(not measured; Debian: libserver-starter-perl)");
    }
    let port = sandbox.port();
    let address = format!("127.0.0.1:{port}");
    let mut command = sandbox.command("start_server");
    command.args(["--port", &address, "--"]).arg(server).arg(&address);
    let mut running = sandbox.start(command);
    let result = under_load(port, |generation, _| {
        running.signal(SIGHUP);
        until("the old server is gone", || running.log().matches("died, status").count() as u64 == generation - 1);
    });
    rows("Server::Starter", &result, "");
    running.signal(nix::libc::SIGTERM);
    running.wait();
}
