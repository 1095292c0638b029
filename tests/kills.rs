//! Whatever is killed at whatever step of a swap on a shared port: the address stays answered, and the next
//! swap works.

mod common;

use common::{Failure, Gate, Load, Running, Sandbox, answered_by, children, kill, plain_server, until};
use nix::libc;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

/// Where the swap stands still.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    /// The new server has not bound yet.
    Starting,
    /// It listens, and has not accepted the probe.
    Proving,
    /// It gets the new connections; the old one has a busy one.
    Draining,
    /// The old server was told, and still listens.
    Told,
    /// The old server has closed its listener, and still lives.
    Closed,
    /// The old server is gone.
    Steady,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    OldServer,
    NewServer,
    OldSupervisor,
    NewSupervisor,
    OldKeeper,
    NewKeeper,
}

const CLIENTS: usize = 3;

/// What a server holds at most when it is killed: a connection of each client, and, since the kernel closes
/// the files of a process from the last to the first, another one in the queue of its listener.
const HELD: usize = 2 * CLIENTS;

/// How many requests of the crowd may fail.
fn bound(step: Step, victim: Victim) -> Option<usize> {
    use Step::*;
    match (victim, step) {
        // Whoever serves is dead: what it held, and whoever comes before the next one, meets nobody.
        (Victim::OldServer, Starting | Proving) | (Victim::NewServer, Told | Closed | Steady) => None,
        (Victim::NewServer, Draining) => Some(HELD),
        _ => Some(0),
    }
}

/// The serverswap of a generation, its server and its keeper.
struct Side {
    running: Running,
    server: i32,
    keeper: i32,
}

impl Side {
    fn start(sandbox: &Sandbox, words: &[&str]) -> Side {
        let running = sandbox.serverswap(["--drain", "60"].iter().chain(words));
        let name = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let (mut server, mut keeper) = (None, None);
        until("there are a server and a keeper", || {
            let (keepers, servers): (Vec<i32>, Vec<i32>) =
                children(running.pid()).into_iter().partition(|pid| name(*pid) == "serverswap\n");
            (server, keeper) = (servers.first().copied(), keepers.first().copied());
            server.is_some() && keeper.is_some()
        });
        Side { running, server: server.unwrap(), keeper: keeper.unwrap() }
    }
}

struct Swap {
    old: Side,
    new: Side,
    crowd: Vec<Load>,
    gates: Vec<Gate>,
    held: Option<TcpStream>,
}

impl Swap {
    /// A swap that stands still at the step, under load.
    fn halted(sandbox: &Sandbox, port: u16, step: Step) -> Swap {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/unmodified.py");
        let (python, rust) = (python.to_str().unwrap().to_owned(), plain_server().to_str().unwrap().to_owned());
        let address = format!("0.0.0.0:{port}");
        let gate_at = |stage: &str| sandbox.gate(stage);
        let (hold, at_hold) = gate_at("hold");
        let (release, at_release) = gate_at("before-release");
        let (exit, at_exit) = gate_at("before-exit");
        let (listen, at_listen) = gate_at("listen");
        let (accept, at_accept) = gate_at("accept");
        let old_words: Vec<&str> = match step {
            Step::Told => vec![&rust, &address, "takedown", &at_release],
            Step::Closed => vec![&rust, &address, "takedown", &at_exit],
            _ => vec!["python3", &python, &address, &at_hold],
        };
        let new_words: Vec<&str> = match step {
            Step::Starting => vec!["python3", &python, &address, &at_listen],
            Step::Proving => vec!["python3", &python, &address, &at_accept],
            _ => vec!["python3", &python, &address],
        };
        let old = Side::start(sandbox, &old_words);
        answered_by(port, 1);
        old.running.says("is up");
        let held = (step == Step::Draining).then(|| {
            let held = request(port);
            hold.reached();
            held
        });
        let crowd: Vec<Load> = (0..CLIENTS).map(|_| Load::start(port, Duration::from_millis(2))).collect();
        let new = Side::start(sandbox, &new_words);
        match step {
            Step::Starting => listen.reached(),
            Step::Proving => accept.reached(),
            Step::Draining => new.running.says("is up"),
            Step::Told => release.reached(),
            Step::Closed => exit.reached(),
            Step::Steady => until("the old one is gone", || !common::alive(old.running.pid())),
        }
        let serves = if matches!(step, Step::Starting | Step::Proving) { old.server } else { new.server };
        crowd.iter().for_each(|load| load.sees_server(serves));
        Swap { old, new, crowd, gates: vec![hold, release, exit, listen, accept], held }
    }
}

/// The supervisor of a server, as its record names it.
fn supervisor_of(sandbox: &Sandbox, server: i32) -> i32 {
    let record = std::fs::read_to_string(sandbox.run_dir().join(format!("{server}.server"))).unwrap();
    record.lines().find_map(|line| line.strip_prefix("supervisor ")?.parse().ok()).unwrap()
}

/// Kills the supervisor of a reload that is under way and the copy that it has started, which has this server.
fn kill_both(sandbox: &Sandbox, front: &mut Running, server: i32) {
    let copy = supervisor_of(sandbox, server);
    kill(front.pid(), libc::SIGKILL);
    kill(copy, libc::SIGKILL);
    front.wait();
}

/// A request that is answered when its server's "hold" is open.
fn request(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /hold HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

fn is_answered(mut request: TcpStream, server: i32) {
    let mut answer = String::new();
    request.read_to_string(&mut answer).unwrap();
    assert!(answer.trim_end().ends_with(&format!("1 {server}")), "{answer}");
}

/// Every client has come to this server in the end, and none has met a failure.
fn none_failed(crowd: Vec<Load>, server: i32) {
    for load in crowd {
        load.sees_server(server);
        let seen = load.stop();
        assert!(seen.failures.is_empty(), "{seen:?}");
    }
}

fn kill_at(step: Step, victims: &[Victim]) {
    for &victim in victims {
        eprintln!("{step:?}, {victim:?}");
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let swap = Swap::halted(&sandbox, port, step);
        let pid = match victim {
            Victim::OldServer => swap.old.server,
            Victim::NewServer => swap.new.server,
            Victim::OldSupervisor => swap.old.running.pid(),
            Victim::NewSupervisor => swap.new.running.pid(),
            Victim::OldKeeper => swap.old.keeper,
            Victim::NewKeeper => swap.new.keeper,
        };
        kill(pid, libc::SIGKILL);
        let Swap { mut old, mut new, crowd, gates, held } = swap;
        let before_switch = matches!(step, Step::Starting | Step::Proving);
        until("who has to act on it has done so", || match victim {
            Victim::OldServer => old.running.ended(),
            Victim::NewServer => new.running.ended(),
            Victim::NewSupervisor if before_switch => !common::alive(new.server),
            _ => !common::alive(pid),
        });
        // The swap goes on, or has gone back: either way somebody answers.
        gates.iter().for_each(Gate::open);
        drop(held);
        until("the swap is over", || new.running.ended() || new.running.log().contains("is up"));
        let words = [plain_server().to_str().unwrap().to_owned(), format!("0.0.0.0:{port}")];
        let (status, log) = sandbox.run(["-d"].into_iter().chain(words.iter().map(String::as_str)));
        assert_eq!(status, 0, "{step:?}, {victim:?}: {log}");
        let last = common::get(port).unwrap();
        crowd.iter().for_each(|load| load.sees_server(last.pid));
        for load in crowd {
            let seen = load.stop();
            // A third server that replaces two takes another index when the first of them leaves. Whoever comes in this
            // very moment is not lost, but has to ask again.
            let asked_again = seen.failures.get(&Failure::Resent).copied().unwrap_or(0);
            let failed: usize = seen.failures.values().sum::<usize>() - asked_again;
            assert!(asked_again <= usize::from(step == Step::Draining), "{step:?}, {victim:?}: {seen:?}");
            assert!(bound(step, victim).is_none_or(|most| failed <= most), "{step:?}, {victim:?}: {seen:?}");
        }
        until("one server is left", || sandbox.status().len() == 1 && sandbox.processes().len() == sandbox.crew());
        assert_eq!(sandbox.pidfile(&port.to_string()), Some(last.pid));
        sandbox.take_down(&format!(":{port}"));
        old.running.wait();
        new.running.wait();
    }
}

/// New servers come and die; the old one, which has a busy connection, serves on.
#[test]
fn ten_times_turned_back_while_the_old_server_drains() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/unmodified.py");
    let address = format!("0.0.0.0:{port}");
    let (hold, at_hold) = sandbox.gate("hold");
    let words = ["python3", python.to_str().unwrap(), &address, &at_hold];
    let old = Side::start(&sandbox, &words);
    answered_by(port, 1);
    old.running.says("is up");
    let _held = request(port);
    hold.reached();
    for round in 0..10 {
        let crowd: Vec<Load> = (0..CLIENTS).map(|_| Load::start(port, Duration::ZERO)).collect();
        crowd.iter().for_each(|load| load.sees_server(old.server));
        let mut new = Side::start(&sandbox, &words);
        // Right after the switch, or when all have noticed it.
        for load in &crowd[..if round % 2 == 0 { 1 } else { CLIENTS }] {
            load.sees_server(new.server);
        }
        kill(new.server, libc::SIGKILL);
        assert_eq!(new.running.wait(), 137);
        crowd.iter().for_each(|load| load.sees_server(old.server));
        let after: Vec<Load> = (0..CLIENTS).map(|_| Load::start(port, Duration::ZERO)).collect();
        after.iter().for_each(|load| load.sees_server(old.server));
        let failed = |crowd: Vec<Load>| crowd.into_iter().flat_map(|load| load.stop().failures.into_values()).sum();
        let (during, afterwards): (usize, usize) = (failed(crowd), failed(after));
        assert!(during <= HELD, "round {round}: {during} failed");
        assert_eq!(afterwards, 0, "round {round}");
    }
    hold.open();
    sandbox.take_down(&address);
}

/// Supervisor and server of the new side, one after the other: the old one has the port again for good.
#[test]
fn a_successor_that_dies_without_its_supervisor_gives_the_port_back() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let Swap { mut old, mut new, crowd, gates, held } = Swap::halted(&sandbox, port, Step::Draining);
    kill(new.running.pid(), libc::SIGKILL);
    new.running.wait();
    crowd.iter().for_each(|load| load.sees_server(new.server));
    kill(new.server, libc::SIGKILL);
    crowd.iter().for_each(|load| load.sees_server(old.server));
    gates.iter().for_each(Gate::open);
    drop(held);
    until("it serves and does not drain", || sandbox.status().iter().any(|row| row[5] == "serving"));
    assert!(!old.running.ended(), "{}", old.running.log());
    let failed: usize = crowd.into_iter().flat_map(|load| load.stop().failures.into_values()).sum();
    assert!(failed <= HELD, "{failed} failed");
    sandbox.take_down(&format!(":{port}"));
    assert_eq!(old.running.wait(), 0);
}

/// Two ports under load, of one old server or of two; the supervisor of a new one for both is killed before a call of its
/// main thread. What the old ones say, what the new one said, and the servers of the ports before and afterwards. Not one
/// request has failed.
fn killed_before(call: &str, nth: usize, olds: usize) -> ([String; 2], [i32; 2], [i32; 2]) {
    eprintln!("{call} {nth}, {olds}");
    let sandbox = Sandbox::shared();
    let ports = [sandbox.port(), sandbox.port()];
    let addresses = ports.map(|port| format!("0.0.0.0:{port}"));
    let words = ["mute", &addresses[0], &addresses[1]];
    let apart: Vec<Vec<&str>> = words[1..].iter().map(|address| vec!["mute", address]).collect();
    let commands = if olds == 1 { vec![words.to_vec()] } else { apart };
    let olds: Vec<Running> = commands.iter().map(|words| sandbox.plain(&[], words)).collect();
    olds.iter().for_each(|old| old.says("is up"));
    until("both ports are served", || ports.iter().all(|port| common::get(*port).is_ok()));
    let before = ports.map(|port| common::get(port).unwrap().pid);
    let crowd: Vec<Load> = ports.iter().map(|port| Load::start(*port, Duration::from_millis(2))).collect();
    crowd.iter().zip(before).for_each(|(load, server)| load.sees_server(server));
    let mut command = sandbox.tracer(call, &format!("signal=SIGKILL:when={nth}"));
    command.args(["-DDD", common::SERVERSWAP, "-v"]).arg(plain_server()).args(words);
    let mut new = sandbox.start(command);
    until("the new supervisor is killed, or done", || {
        new.ended() || new.log().contains("is up") && !before.into_iter().any(common::alive)
    });
    sandbox.end_tracers();
    let program = plain_server().display().to_string();
    let servers = || sandbox.processes().into_iter().filter(|(_, command)| command.starts_with(&program)).count();
    let mut after = [0; 2];
    until("nobody is left who does not serve, and the pidfiles name who does", || {
        after = ports.map(|port| common::get(port).map_or(0, |answer| answer.pid));
        servers() == BTreeSet::from(after).len()
            && ports.iter().zip(after).all(|(port, server)| sandbox.pidfile(&port.to_string()) == Some(server))
    });
    let (status, log) = sandbox.deploy(&words);
    assert!(status == 0 && !log.contains("plain order"), "{status}: {log}");
    let last = common::get(ports[0]).unwrap().pid;
    none_failed(crowd, last);
    until("nothing else is left", || sandbox.status().len() == 2 && sandbox.processes().len() == sandbox.crew());
    assert_eq!(sandbox.run(["--takedown", &addresses[0], &addresses[1]]).0, 0);
    sandbox.assert_clean();
    ([olds.iter().map(Running::log).collect(), new.log()], before, after)
}

/// Its keeper lets the new server live, and no connection goes there yet.
#[test]
fn a_supervisor_that_dies_just_before_its_switch_takes_its_server_with_it() {
    let undone = (4..20).find(|nth| {
        let ([old, new], before, after) = killed_before("setsockopt", *nth, 1);
        // This it says last, when its keeper has let the server live.
        let is_switch = new.ends_with("gets the new connections\n");
        assert!(!is_switch || after == before && old.contains("its swap was not complete"), "{old}{new}");
        is_switch
    });
    assert!(undone.is_some(), "no call was that of the switch");
}

/// One address has the new pidfile, the other has not, and no old server was told to drain. Two of them agree.
#[test]
fn a_supervisor_that_dies_in_its_switch_has_made_it() {
    for olds in [1, 2] {
        let decided: Vec<usize> = (2..8)
            .map(|nth| {
                let ([old, new], before, after) = killed_before("renameat", nth, olds);
                assert!(
                    after == before || after[0] == after[1] && after[0] != before[0],
                    "{before:?}, {after:?}: {old}{new}"
                );
                old.matches("the swap goes on").count()
            })
            .collect();
        // The records come before the pidfiles, and at the second pidfile all of them have decided.
        assert!(decided.contains(&olds), "{decided:?}");
    }
}

/// Whoever gets the connections in this moment goes on getting them until the next server does, and nobody is cut off.
#[test]
fn a_reload_that_has_lost_its_supervisor_in_the_drain_is_gone_on_with() {
    for takedown in [false, true] {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let (address, (hold, at_hold)) = (format!("0.0.0.0:{port}"), sandbox.gate("hold"));
        let words = ["mute", &address, &at_hold];
        let (mut running, first) = sandbox.serving(port, &["--drain", "60"], &words);
        let held = request(port);
        hold.reached();
        let mut reload = sandbox.serverswap(["--reload", &address]);
        running.says("(generation 2)");
        let second = common::get(port).unwrap().pid;
        kill_both(&sandbox, &mut running, second);
        assert_eq!(reload.wait(), 125);
        assert!(second != first && common::get(port).unwrap().pid == second);
        if takedown {
            // The crowd of a server that is taken down is no crowd.
            hold.open();
            sandbox.take_down(&address);
            continue;
        }
        let crowd: Vec<Load> = (0..CLIENTS).map(|_| Load::start(port, Duration::from_millis(2))).collect();
        crowd.iter().for_each(|load| load.sees_server(second));
        let (accept, at_accept) = sandbox.gate("accept");
        let mut failing = sandbox.plain(&["-d", "--ready-timeout", "4"], &["mute", &address, &at_accept]);
        accept.reached();
        assert_eq!(failing.wait(), 124);
        let mut next = sandbox.plain(&["-d", "--drain", "60"], &["mute", &address]);
        next.says("(generation 3)");
        let third = common::get(port).unwrap().pid;
        crowd.iter().for_each(|load| load.sees_server(third));
        hold.open();
        is_answered(held, first);
        assert_eq!(next.wait(), 0);
        assert!(!next.log().contains("cannot be shared"), "{}", next.log());
        for load in crowd {
            let seen = load.stop();
            assert!(seen.failures.is_empty() && !seen.answers.contains_key(&first), "{seen:?}");
        }
        assert_eq!(sandbox.swaps_to(port, second), ["switched: its supervisor had ended"]);
        sandbox.take_down(&address);
    }
}

/// It has an address of its own already, and has not proven itself at the other.
#[test]
fn a_new_server_that_serves_elsewhere_and_has_lost_its_supervisor_gets_nothing_here() {
    let sandbox = Sandbox::shared();
    let [port, own] = [sandbox.port(), sandbox.port()];
    let [address, elsewhere] = [port, own].map(|port| format!("0.0.0.0:{port}"));
    let (old, first) = sandbox.serving(port, &[], &["mute", &address]);
    let load = Load::start(port, Duration::from_millis(2));
    let (accept, at_accept) = sandbox.gate("accept");
    let mut new = sandbox.plain(&["-v"], &["mute", &elsewhere, &address, &at_accept]);
    accept.reached();
    new.says(&format!(":{port}: server"));
    until("it has an address", || sandbox.pidfile(&own.to_string()).is_some());
    let second = sandbox.pidfile(&own.to_string()).unwrap();
    kill(new.pid(), libc::SIGKILL);
    new.wait();
    old.says(&format!("server {second} has lost its supervisor before its switch (it serves elsewhere)"));
    accept.open();
    until("it answers", || common::get(own).is_ok_and(|answer| answer.pid == second));
    let seen = load.stop();
    assert!(seen.failures.is_empty() && seen.answers.keys().eq([&first]), "{seen:?}");
    // It is a stranger to the next one, which replaces both in plain order if it says READY.
    let (status, log) = sandbox.deploy(&["mute", &elsewhere, &address]);
    assert!(status == 98 && log.contains("did not say READY"), "{log}");
    let (status, log) = sandbox.deploy(&[&elsewhere, &address]);
    assert_eq!(status, 0, "{log}");
    until("nobody else is left", || sandbox.status().len() == 2 && sandbox.processes().len() == sandbox.crew());
    assert_eq!(sandbox.run(["--takedown", &address, &elsewhere]).0, 0);
    sandbox.assert_clean();
}

/// They have nothing to do with each other.
#[test]
fn two_servers_that_have_lost_their_supervisors_are_replaced_by_one() {
    let sandbox = Sandbox::shared();
    let ports = [sandbox.port(), sandbox.port()];
    let addresses = ports.map(|port| format!("0.0.0.0:{port}"));
    for address in &addresses {
        let mut old = sandbox.plain(&[], &["mute", address]);
        old.says("is up");
        kill(old.pid(), libc::SIGKILL);
        old.wait();
    }
    let crowd: Vec<Load> = ports.iter().map(|port| Load::start(*port, Duration::from_millis(2))).collect();
    crowd.iter().for_each(|load| until("it is answered", || load.is_answered()));
    let (status, log) = sandbox.deploy(&["mute", &addresses[0], &addresses[1]]);
    assert!(status == 0 && !log.contains("cannot be shared"), "{status}: {log}");
    let last = common::get(ports[0]).unwrap().pid;
    none_failed(crowd, last);
    assert_eq!(sandbox.run(["--takedown", &addresses[0], &addresses[1]]).0, 0);
    sandbox.assert_clean();
}

/// The old one has two addresses, the new one the first of them.
#[test]
fn a_reload_that_has_lost_its_supervisor_and_an_address_is_gone_on_with() {
    let orders = [[0, 1], [1, 0]];
    for (takedown, order) in [false, true].into_iter().flat_map(|takedown| orders.map(|order| (takedown, order))) {
        let sandbox = Sandbox::shared();
        let ports = [sandbox.port(), sandbox.port()];
        let addresses = ports.map(|port| format!("0.0.0.0:{port}"));
        let (hold, at_hold) = sandbox.gate("hold");
        let words = sandbox.file("words", &format!("{} {} {at_hold}", addresses[0], addresses[1]));
        let (program, script) = (plain_server(), "exec \"$0\" mute $(cat \"$1\")");
        let command = ["--drain", "60", "sh", "-c", script, program.to_str().unwrap(), words.to_str().unwrap()];
        let mut running = sandbox.serverswap(command);
        let first = answered_by(ports[0], 1).pid;
        answered_by(ports[1], 1);
        until("both are registered", || ports.iter().all(|port| sandbox.pidfile(&port.to_string()) == Some(first)));
        let held = request(ports[1]);
        hold.reached();
        std::fs::write(&words, &addresses[0]).unwrap();
        let mut reload = sandbox.serverswap(["--reload", &addresses[0]]);
        running.says("(generation 2)");
        let second = common::get(ports[0]).unwrap().pid;
        kill_both(&sandbox, &mut running, second);
        assert_eq!(reload.wait(), 125);
        assert!(second != first && common::get(ports[1]).unwrap().pid == first);
        let named = order.map(|at| addresses[at].as_str());
        if takedown {
            hold.open();
            let (status, log) = sandbox.run(["--takedown"].into_iter().chain(named));
            assert_eq!(status, 0, "{log}");
            sandbox.assert_clean();
            continue;
        }
        let crowd: Vec<Load> = ports.iter().map(|port| Load::start(*port, Duration::from_millis(2))).collect();
        crowd.iter().zip([second, first]).for_each(|(load, server)| load.sees_server(server));
        let mut next = sandbox.plain(&["-d", "--drain", "60"], &["mute", named[0], named[1]]);
        next.says("is up");
        let third = common::get(ports[0]).unwrap().pid;
        crowd.iter().for_each(|load| load.sees_server(third));
        hold.open();
        is_answered(held, first);
        assert_eq!(next.wait(), 0);
        assert!(!next.log().contains("cannot be shared"), "{}", next.log());
        for (load, not) in crowd.into_iter().zip([first, second]) {
            let seen = load.stop();
            assert!(seen.failures.is_empty() && !seen.answers.contains_key(&not), "{seen:?}");
        }
        assert_eq!(sandbox.run(["--takedown", &addresses[0], &addresses[1]]).0, 0);
        sandbox.assert_clean();
    }
}

/// Which processes of a reload are killed: the one that was there before, the copy that it has started, or both.
#[derive(Debug, Clone, Copy, PartialEq)]
enum OfReload {
    Front,
    Copy,
    Both,
}

/// Whoever is left goes on with it or back, and none of the clients notices.
#[test]
fn a_reload_whose_front_or_copy_is_killed() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/unmodified.py");
    let steps = [Step::Starting, Step::Proving, Step::Draining];
    let victims = [OfReload::Front, OfReload::Copy, OfReload::Both];
    for (step, victim) in steps.into_iter().flat_map(|step| victims.map(|victim| (step, victim))) {
        eprintln!("{step:?}, {victim:?}");
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let address = format!("0.0.0.0:{port}");
        let (hold, at_hold) = sandbox.gate("hold");
        let (listen, at_listen) = sandbox.gate("listen");
        let (accept, at_accept) = sandbox.gate("accept");
        let words = sandbox.file("words", &format!("{address} {at_hold}"));
        let script = "exec python3 \"$0\" $(cat \"$1\")";
        let command = ["--drain", "60", "sh", "-c", script, python.to_str().unwrap(), words.to_str().unwrap()];
        let mut front = sandbox.serverswap(command);
        let first = answered_by(port, 1).pid;
        front.says("is up");
        let held = (step == Step::Draining).then(|| {
            let held = request(port);
            hold.reached();
            held
        });
        let crowd: Vec<Load> = (0..CLIENTS).map(|_| Load::start(port, Duration::from_millis(2))).collect();
        let gate = match step {
            Step::Starting => &at_listen,
            Step::Proving => &at_accept,
            _ => &at_hold,
        };
        std::fs::write(&words, format!("{address} {gate}")).unwrap();
        let mut reload = sandbox.serverswap(["--reload", &address]);
        match step {
            Step::Starting => listen.reached(),
            Step::Proving => accept.reached(),
            _ => front.says("(generation 2)"),
        }
        let is_copy = |pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command == std::fs::read(format!("/proc/{}/cmdline", front.pid())).unwrap() && *pid != front.pid()
        };
        // Its keeper has its name too.
        let copies: Vec<i32> = children(front.pid()).into_iter().filter(is_copy).collect();
        let copy = copies.into_iter().find(|pid| !children(*pid).is_empty()).expect("there is a copy");
        for (pid, is_victim) in [(front.pid(), victim != OfReload::Copy), (copy, victim != OfReload::Front)] {
            if is_victim {
                kill(pid, libc::SIGKILL);
            }
        }
        let status = reload.wait();
        assert!(if victim == OfReload::Copy { status > 0 } else { status == 125 }, "{status}: {}", reload.log());
        // The request that is held is answered before its connection is cut.
        [&hold, &listen, &accept].into_iter().for_each(Gate::open);
        held.into_iter().for_each(|held| is_answered(held, first));
        let words = [plain_server().to_str().unwrap().to_owned(), address];
        let (status, log) = sandbox.run(["-d"].into_iter().chain(words.iter().map(String::as_str)));
        assert_eq!(status, 0, "{step:?}, {victim:?}: {log}");
        none_failed(crowd, common::get(port).unwrap().pid);
        until("one server is left", || sandbox.status().len() == 1 && sandbox.processes().len() == sandbox.crew());
        sandbox.take_down(&format!(":{port}"));
        front.wait();
    }
}

const ALL: [Victim; 6] = [
    Victim::OldServer,
    Victim::NewServer,
    Victim::OldSupervisor,
    Victim::NewSupervisor,
    Victim::OldKeeper,
    Victim::NewKeeper,
];

#[test]
fn killed_while_the_new_server_starts() {
    kill_at(Step::Starting, &ALL);
}

#[test]
fn killed_while_the_new_server_is_proven() {
    kill_at(Step::Proving, &ALL);
}

#[test]
fn killed_while_the_old_server_drains() {
    kill_at(Step::Draining, &ALL);
}

#[test]
fn killed_when_the_old_server_was_told() {
    kill_at(Step::Told, &ALL);
}

#[test]
fn killed_when_the_old_server_has_closed_its_listener() {
    kill_at(Step::Closed, &ALL);
}

#[test]
fn killed_in_steady_state() {
    kill_at(Step::Steady, &[Victim::NewServer, Victim::NewSupervisor, Victim::NewKeeper]);
}
