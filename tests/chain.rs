//! Older servers that still drain: nobody waits for them, whoever of them ends, and in whatever order.

mod common;

use common::{Answer, Gate, Load, Running, Sandbox, alive, answered_by, get, kill, plain_server, until};
use nix::libc;
use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A request that its server answers when its gate is opened.
struct Held {
    gate: Gate,
    stream: TcpStream,
    server: i32,
}

impl Held {
    /// Asks the server that has the port, and waits until it has taken the request.
    fn by(server: i32, port: u16, gate: Gate) -> Held {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"GET /hold HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        gate.reached();
        Held { gate, stream, server }
    }

    /// Whether it is answered by the server that it went to, once its gate is open.
    fn answers(mut self) -> bool {
        self.gate.open();
        self.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answer = String::new();
        let _ = self.stream.read_to_string(&mut answer);
        answer.contains(&format!(" {}", self.server))
    }

    /// Whether its server has closed the connection without an answer.
    fn closes(mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        !matches!(self.stream.read(&mut [0; 4096]), Ok(1..))
    }
}

/// What a server of these tests is run with.
const OPTIONS: [&str; 8] = ["-d", "--wait", "up", "--drain", "600", "--kill-after", "20", "--ready-timeout"];

/// Deploys the next generation, which has a request from then on that is not answered.
fn deploy(sandbox: &Sandbox, port: u16, generation: u64, options: &[&str]) -> Held {
    let (gate, hold) = sandbox.gate("hold");
    let server = plain_server();
    let own = [server.to_str().unwrap(), &format!("0.0.0.0:{port}"), "mute", &hold];
    let words: Vec<&str> = OPTIONS.iter().copied().chain(["30"]).chain(options.iter().copied()).chain(own).collect();
    let (status, log) = sandbox.run(&words);
    assert_eq!(status, 0, "generation {generation}: {log}");
    let Answer { pid: server, generation: answered, .. } = get(port).unwrap();
    // Whoever comes after one that was killed may not know its number.
    assert!(answered == generation || generation == 0, "{log}");
    Held::by(server, port, gate)
}

/// The supervisor of a server, as `--status` says.
fn supervisor_of(sandbox: &Sandbox, server: i32) -> i32 {
    let status = sandbox.status();
    let its = status.iter().find(|fields| fields[2] == server.to_string());
    its.unwrap_or_else(|| panic!("{server} is not in {status:?}"))[3].parse().unwrap()
}

fn states(sandbox: &Sandbox) -> Vec<String> {
    let mut states: Vec<(u64, String)> =
        sandbox.status().into_iter().map(|fields| (fields[1].parse().unwrap(), fields[5].clone())).collect();
    states.sort();
    states.into_iter().map(|(_, state)| state).collect()
}

/// One server is left, and serves.
fn assert_alone(sandbox: &Sandbox, port: u16, generation: u64) {
    until("one server is left", || states(sandbox) == ["serving"]);
    assert_eq!(get(port).unwrap().generation, generation);
    until("its port is steered no more", || common::is_unsteered(port));
    sandbox.take_down(&port.to_string());
}

fn assert_unnoticed(load: Load) {
    let seen = load.stop();
    assert!(seen.failures.is_empty() && !seen.answers.is_empty(), "{seen:?}");
}

#[test]
fn promise_9_a_deploy_never_waits_for_older_generations_that_drain() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let mut held: BTreeMap<u64, Held> = BTreeMap::from([(1, deploy(&sandbox, port, 1, &[]))]);
    let load = Load::start(port, Duration::from_millis(1));
    for generation in 2..=5 {
        held.insert(generation, deploy(&sandbox, port, generation, &[]));
        load.sees(generation);
    }
    assert_eq!(states(&sandbox), ["draining", "draining", "draining", "draining", "serving"]);
    for generation in [3, 1, 4, 2] {
        let held = held.remove(&generation).unwrap();
        let server = held.server;
        assert!(held.answers(), "generation {generation}");
        until("it is gone", || !alive(server));
        load.is_answered();
    }
    assert!(held.remove(&5).unwrap().answers());
    assert_unnoticed(load);
    assert_alone(&sandbox, port, 5);
}

#[test]
fn of_more_than_may_drain_the_oldest_is_told_to_stop() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let mut held: VecDeque<Held> = VecDeque::new();
    for generation in 1..=4 {
        held.push_back(deploy(&sandbox, port, generation, &["--max-draining", "2"]));
    }
    assert!(held.pop_front().unwrap().closes());
    until("three are left", || states(&sandbox).len() == 3);
    held.push_back(deploy(&sandbox, port, 5, &["--max-draining", "0"]));
    for _ in 2..=4 {
        assert!(held.pop_front().unwrap().closes());
    }
    assert!(held.pop_front().unwrap().answers());
    assert_alone(&sandbox, port, 5);
}

/// Who is killed while two older servers drain.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Server(u64),
    Supervisor(u64),
}

fn one_is_killed(victim: Victim) {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let mut held: BTreeMap<u64, Held> = (1..=3).map(|g| (g, deploy(&sandbox, port, g, &[]))).collect();
    let load = Load::start(port, Duration::from_millis(1));
    load.sees(3);
    let (Victim::Server(whose) | Victim::Supervisor(whose)) = victim;
    let server = held[&whose].server;
    match victim {
        Victim::Server(_) => {
            kill(server, libc::SIGKILL);
            assert!(held.remove(&whose).unwrap().closes(), "{victim:?}");
        }
        Victim::Supervisor(_) => kill(supervisor_of(&sandbox, server), libc::SIGKILL),
    }
    // Where the newest server was killed, an older one serves, until the next.
    until("somebody answers", || get(port).is_ok());
    let next = if matches!(victim, Victim::Server(3)) { 0 } else { 4 };
    held.insert(4, deploy(&sandbox, port, next, &[]));
    let next = get(port).unwrap().generation;
    let generations: Vec<u64> = held.keys().copied().collect();
    for generation in generations {
        assert!(held.remove(&generation).unwrap().answers(), "{victim:?}: generation {generation}");
    }
    if !matches!(victim, Victim::Server(3)) {
        assert_unnoticed(load);
    }
    assert_alone(&sandbox, port, next);
}

#[test]
fn whichever_server_is_killed_the_others_drain_and_the_next_one_comes() {
    (1..=3).for_each(|whose| one_is_killed(Victim::Server(whose)));
}

#[test]
fn whichever_supervisor_is_killed_its_server_drains_and_the_next_one_comes() {
    (1..=3).for_each(|whose| one_is_killed(Victim::Supervisor(whose)));
}

#[test]
fn a_takedown_ends_those_that_drain_too() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let held: Vec<Held> = (1..=3).map(|generation| deploy(&sandbox, port, generation, &[])).collect();
    sandbox.take_down(&port.to_string());
    assert!(held.into_iter().all(Held::closes));
}

/// `-d --wait gone` waits for those that were there before it, unless a newer one comes.
#[test]
fn who_waits_for_those_that_drain_is_let_go_by_the_next_deploy() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let first = deploy(&sandbox, port, 1, &[]);
    let wait = |generation: u64| -> Running {
        let server = plain_server();
        let words = ["-d", "--drain", "600", server.to_str().unwrap(), &format!("0.0.0.0:{port}"), "mute"];
        let running = sandbox.serverswap(words);
        answered_by(port, generation);
        running
    };
    let (mut second, mut third) = (wait(2), wait(3));
    assert_eq!(second.wait(), 0, "{}", second.log());
    until("the second is gone", || states(&sandbox) == ["draining", "serving"]);
    assert!(!third.ended(), "{}", third.log());
    assert!(first.answers());
    assert_eq!(third.wait(), 0, "{}", third.log());
    assert_alone(&sandbox, port, 3);
}

#[test]
fn a_deploy_that_fails_changes_nothing_for_those_that_drain() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let held: Vec<Held> = (1..=2).map(|generation| deploy(&sandbox, port, generation, &[])).collect();
    let load = Load::start(port, Duration::from_millis(1));
    load.sees(2);
    let server = plain_server();
    for word in ["hang", "die", "mute"] {
        let (gate, accept) = sandbox.gate("accept");
        let own = [server.to_str().unwrap(), &format!("0.0.0.0:{port}"), word, &accept];
        let words: Vec<&str> = OPTIONS.iter().copied().chain(["1"]).chain(own).collect();
        let (status, log) = sandbox.run(&words);
        assert_eq!(get(port).unwrap().generation, 2, "{word}: {log}");
        assert_ne!(status, 0, "{word}: {log}");
        drop(gate);
    }
    let last = deploy(&sandbox, port, 3, &[]);
    load.sees(3);
    assert!(held.into_iter().chain([last]).all(Held::answers));
    assert_unnoticed(load);
    assert_alone(&sandbox, port, 3);
}

#[test]
fn reloads_wait_for_nobody_that_drains() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let (gate, hold) = sandbox.gate("hold");
    let words = [&format!("0.0.0.0:{port}"), "mute", &hold];
    let (mut front, server) = sandbox.serving(port, &["--drain", "600"], &words);
    let held = Held::by(server, port, gate);
    let load = Load::start(port, Duration::from_millis(1));
    let mut reloads: Vec<Running> = Vec::new();
    for generation in 2..=4 {
        reloads.push(sandbox.serverswap(["--reload", &port.to_string()]));
        answered_by(port, generation);
    }
    let mut last = reloads.pop().unwrap();
    for mut reload in reloads {
        assert_eq!(reload.wait(), 0, "{}", reload.log());
    }
    assert!(!last.ended(), "it waits for the first server: {}", last.log());
    assert!(held.answers());
    assert_eq!(last.wait(), 0, "{}", last.log());
    assert_unnoticed(load);
    sandbox.take_down(&port.to_string());
    assert_eq!(front.wait(), 0);
}

/// Deploys that come while the second one starts wait for its swap, and not for the end of the first server.
#[test]
fn who_has_waited_for_a_swap_does_not_wait_for_its_drain() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let first = deploy(&sandbox, port, 1, &[]);
    let load = Load::start(port, Duration::from_millis(1));
    let (gate, accept) = sandbox.gate("accept");
    let server = plain_server();
    let own = [server.to_str().unwrap(), &format!("0.0.0.0:{port}"), "mute"];
    let start = |words: &[&str]| -> Running {
        sandbox.serverswap(OPTIONS.iter().chain(&["30"]).chain(&own).chain(words).copied().collect::<Vec<&str>>())
    };
    let second = start(&[&accept]);
    gate.reached();
    let others = [start(&[]), start(&[])];
    others.iter().for_each(|other| other.says("waits for server"));
    gate.open();
    for mut running in [second].into_iter().chain(others) {
        until("it is up", || running.ended());
        assert_eq!(running.wait(), 0, "{}", running.log());
    }
    // They started at the same time, each as the next one of the first.
    let last = get(port).unwrap();
    until("the first is left", || states(&sandbox) == ["draining", "serving"]);
    load.sees_server(last.pid);
    assert!(first.answers());
    assert_unnoticed(load);
    assert_alone(&sandbox, port, last.generation);
}

/// DEPLOYS=1000 makes it long.
#[test]
fn many_deploys_with_ends_in_any_order() {
    let deploys: u64 = std::env::var("DEPLOYS").ok().map_or(25, |text| text.parse().expect("a number"));
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let mut held: Vec<Held> = vec![deploy(&sandbox, port, 1, &[])];
    let crowd: Vec<Load> = (0..2).map(|_| Load::start(port, Duration::from_millis(1))).collect();
    let mut seed = deploys;
    let mut below = |limit: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % limit
    };
    let (mut cut, mut longest) = (0, Duration::ZERO);
    for generation in 2..=deploys {
        let since = std::time::Instant::now();
        held.push(deploy(&sandbox, port, generation, &["--max-draining", "6"]));
        longest = longest.max(since.elapsed());
        // The newest serves: only older ones are ended by force.
        let older = held.len() - 1;
        match below(6) {
            // The one that was just replaced may still be asked.
            0 if older > 1 => {
                let victim = held.remove(below(older - 1));
                kill(victim.server, libc::SIGKILL);
                assert!(victim.closes());
            }
            1 => kill(supervisor_of(&sandbox, held[below(older)].server), libc::SIGKILL),
            _ => {}
        }
        while held.len() > 1 + below(6) {
            let one = held.remove(below(held.len()));
            let server = one.server;
            assert!(one.answers(), "a request of server {server} at generation {generation}");
        }
        cut += usize::from(held.len() > 6);
    }
    assert_eq!(cut, 0, "none had to be told to stop");
    assert!(held.into_iter().all(Held::answers));
    crowd.into_iter().for_each(assert_unnoticed);
    println!("{deploys} deploys, the longest {} ms", longest.as_millis());
    assert_alone(&sandbox, port, deploys);
}

/// In plain order nobody can bind while one that drains listens there.
#[test]
fn a_deploy_in_plain_order_ends_those_that_drain() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let held: Vec<Held> = (1..=2).map(|generation| deploy(&sandbox, port, generation, &[])).collect();
    let server = plain_server();
    let own = ["--plain", "-d", server.to_str().unwrap(), &format!(":{port}")];
    let (status, log) = sandbox.run(own);
    assert_eq!(status, 0, "{log}");
    assert!(held.into_iter().all(Held::closes));
    until("one server is left", || states(&sandbox) == ["serving"]);
    assert_eq!(get(port).unwrap().generation, 3);
    sandbox.take_down(&port.to_string());
}
