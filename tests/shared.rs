//! Swaps on a shared port: nobody who connects notices any of them.

#[path = "faults/channels.rs"]
mod channels;
#[allow(dead_code)]
#[path = "relay/client.rs"]
mod client;
mod common;

use client::Client;
use common::{
    Answer, Failure, Load, Running, Sandbox, Seen, alive, answered_by, get, get_from, kill, plain_server, until,
};
use nix::libc;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A file beside this one.
fn server(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(name).to_str().unwrap().to_owned()
}

/// Several clients, each with a new connection per request.
fn crowd(port: u16, clients: usize) -> Vec<Load> {
    (0..clients).map(|_| Load::start(port, Duration::from_millis(1))).collect()
}

fn stop(crowd: Vec<Load>) -> Vec<Seen> {
    crowd.into_iter().map(Load::stop).collect()
}

/// Nobody was refused, reset, cut off or left waiting.
fn assert_unnoticed(crowd: Vec<Load>) {
    for seen in stop(crowd) {
        assert_eq!(seen.failures, [].into(), "{seen:?}");
        assert!(!seen.answers.is_empty());
    }
}

/// `serverswap -d COMMAND` with success.
fn deploy(sandbox: &Sandbox, words: &[&str]) -> String {
    let words: Vec<&str> = ["-d"].iter().chain(words).copied().collect();
    let (status, log) = sandbox.run(&words);
    assert_eq!(status, 0, "{log}");
    log
}

/// Swaps a server so many times under a crowd: every generation answers all of it, and nobody fails.
fn swaps(sandbox: &Sandbox, port: u16, swaps: u64, clients: usize, words: &[&str]) {
    swapped(sandbox, port, swaps, clients, words);
    sandbox.take_down(&format!(":{port}"));
}

/// As `swaps`, and the last server still serves.
fn swapped(sandbox: &Sandbox, port: u16, swaps: u64, clients: usize, words: &[&str]) {
    deploy(sandbox, words);
    answered_by(port, 1);
    let crowd = crowd(port, clients);
    for generation in 2..=swaps + 1 {
        let log = deploy(sandbox, words);
        assert!(!log.contains("warning"), "{log}");
        crowd.iter().for_each(|load| load.sees(generation));
    }
    for seen in stop(crowd) {
        assert_eq!(seen.failures, [].into(), "{seen:?}");
        assert_eq!(*seen.generations.last().unwrap(), swaps + 1, "{seen:?}");
    }
}

/// The servers that know nothing of serverswap, with an address each.
fn unmodified(address: &str) -> Vec<Vec<String>> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    vec![
        words(&[plain_server().to_str().unwrap(), address, "mute"]),
        words(&["node", &server("unmodified.js"), address]),
        words(&["node", &server("unmodified.js"), address, "workers=2"]),
        words(&["python3", &server("unmodified.py"), address]),
    ]
}

#[test]
fn promise_5_on_a_shared_port_no_connection_attempt_is_refused_or_reset_by_a_swap() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    for command in unmodified(&format!("0.0.0.0:{port}")) {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        swaps(&sandbox, port, 10, 4, &words);
    }
    // And on connections that are kept.
    let ids = sandbox.path("ids").to_str().unwrap().to_owned();
    let words = ["node", &server("../relay/server.js"), &port.to_string(), &ids];
    deploy(&sandbox, &words);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients = (0..4).map(|client| {
            let over = &over;
            scope.spawn(move || {
                let mut kept = Client::connect(port);
                for id in 0.. {
                    let answer = kept.post(&format!("{client}-{id}")).expect("an answer");
                    assert_eq!(answer.status, 200);
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    if answer.closes() {
                        kept = Client::connect(port);
                    }
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        (0..3).for_each(|_| drop(deploy(&sandbox, &words)));
        over.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    sandbox.take_down(&port.to_string());
}

#[test]
fn slow_requests_are_finished_by_the_server_that_took_them() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    swaps(&sandbox, port, 5, 8, &["node", &server("unmodified.js"), &address, "slow=200"]);
    swaps(&sandbox, port, 5, 8, &["python3", &server("unmodified.py"), &address, "slow=200"]);
}

#[test]
fn a_server_that_takes_takedown() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    swaps(&sandbox, port, 5, 4, &["node", &server("client.js"), &format!(":{port}"), "takedown"]);
    swaps(&sandbox, port, 5, 4, &[plain_server().to_str().unwrap(), &format!(":{port}"), "takedown"]);
}

#[test]
fn verbose_names_the_steps_of_a_swap() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    let mut old = sandbox.plain(&["-v"], &[&address, "mute"]);
    old.says("is up");
    let mut new = sandbox.plain(&["-v"], &[&address, "mute"]);
    assert_eq!(old.wait(), 0, "{}", old.log());
    for step in ["drains", "is told to stop by SIGTERM"] {
        assert!(old.log().contains(step), "{step}: {}", old.log());
    }
    for step in ["listens beside the old one", "gets the new connections"] {
        assert!(new.log().contains(step), "{step}: {}", new.log());
    }
    sandbox.take_down(&format!(":{port}"));
    assert_eq!(new.wait(), 0);
}

#[test]
fn a_name_beside_a_port_goes_over_in_plain_order() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    for words in [[&address, "a.name"], ["a.name", &address]] {
        for takes in [&["takedown"][..], &[]] {
            swapped(&sandbox, port, 3, 4, &[&[plain_server().to_str().unwrap()], &words[..], takes].concat());
            assert_eq!(sandbox.run(["--takedown", &address, "a.name"]).0, 0);
            sandbox.assert_clean();
        }
    }
}

#[test]
fn a_name_beside_a_port_is_free_when_the_old_server_has_ended() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (gate, ends) = sandbox.gate("before-exit");
    let signals = format!("signals={}", sandbox.path("signals").display());
    let mut old = sandbox.plain(&[], &[&address, "a.name", &ends, &signals]);
    old.says("is up");
    let mut new = sandbox.plain(&["-v"], &[&address, "a.name"]);
    gate.reached();
    // What was to come with the end of the drain has come.
    assert_eq!(sandbox.status().len(), 4);
    assert!(!new.log().contains("is told GO a.name"), "{}", new.log());
    gate.open();
    new.says("is told GO a.name");
    new.says("is up");
    assert_eq!(old.wait(), 0, "{}", old.log());
    assert_eq!(sandbox.run(["--takedown", &address, "a.name"]).0, 0);
    assert_eq!(new.wait(), 0);
}

/// The new server waits for the name, which the old one has until it has finished a request.
#[test]
fn a_name_beside_a_port_does_not_keep_the_switch_from_being_turned_back() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (gate, held) = sandbox.gate("hold");
    let (mut old, pid) = sandbox.serving(port, &["--drain", "60"], &[&address, "a.name", &held]);
    let mut request = hold(port);
    gate.reached();
    let crowd = crowd(port, 3);
    crowd.iter().for_each(|load| load.sees(1));
    let mut new = sandbox.plain(&["--kill-after", "1000"], &[&address, "a.name", "stubborn"]);
    crowd.iter().for_each(|load| load.sees(2));
    new.signal(libc::SIGTERM);
    crowd.iter().for_each(|load| load.sees_server(pid));
    assert!(!new.ended());
    // Once more: it is killed.
    new.signal(libc::SIGTERM);
    new.wait();
    assert!(!new.log().contains(": nothing serves"), "{}", new.log());
    assert_unnoticed(crowd);
    finish(&gate, &mut request, pid);
    assert_eq!(sandbox.run(["--takedown", &address, "a.name"]).0, 0);
    assert_eq!(old.wait(), 0, "{}", old.log());
}

/// The new server of the reload takes the name and dies then: what counts is how the one that serves ends.
#[test]
fn a_failed_reload_that_took_a_name_leaves_no_status() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (server, fails) = (plain_server(), sandbox.path("fails"));
    let (server, file) = (server.display(), fails.display());
    let script =
        format!("if [ -e {file} ]; then exec {server} a.name die; fi; exec {server} {address} a.name takedown");
    let mut supervisor = sandbox.serverswap(["sh", "-c", &script]);
    supervisor.says("is up");
    let pid = answered_by(port, 1).pid;
    std::fs::write(fails, "").unwrap();
    assert_ne!(sandbox.run(["--reload", &address]).0, 0);
    kill(pid, libc::SIGKILL);
    assert_eq!(supervisor.wait(), 137, "{}", supervisor.log());
}

#[test]
fn servers_with_names_only_share_no_port_and_nobody_is_warned() {
    let sandbox = Sandbox::shared();
    for _ in 0..3 {
        let (status, log) = sandbox.deploy(&["a.name"]);
        assert_eq!((status, log.contains("warning")), (0, false), "{log}");
    }
    sandbox.take_down("a.name");
}

#[test]
fn two_addresses_of_both_families() {
    let sandbox = Sandbox::shared();
    for hosts in [["0.0.0.0", "[::]"], ["127.0.0.1", "[::1]"]] {
        let port = sandbox.port();
        let addresses = hosts.map(|host| format!("{host}:{port}"));
        let words = ["python3", &server("unmodified.py"), &addresses[0], &addresses[1]];
        deploy(&sandbox, &words);
        let crowd = crowd(port, 3);
        let six = format!("[::1]:{port}").parse().unwrap();
        for generation in 2..=5 {
            deploy(&sandbox, &words);
            assert_eq!(get_from(six).map(|answer| answer.generation), Ok(generation));
            crowd.iter().for_each(|load| load.sees(generation));
        }
        assert_unnoticed(crowd);
        assert_eq!(sandbox.run(["--takedown", &addresses[0], &addresses[1]]).0, 0);
        sandbox.assert_clean();
    }
}

/// What was bound and closed again costs the next bind nothing.
#[test]
fn a_server_may_bind_the_same_address_again_and_again() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let program = "import os, socket, sys
for _ in range(200):
    socket.socket().bind(('', int(sys.argv[1])))
os.execvp('python3', ['python3', *sys.argv[2:]])";
    let (number, address) = (port.to_string(), format!("0.0.0.0:{port}"));
    deploy(&sandbox, &["python3", "-c", program, &number, &server("unmodified.py"), &address]);
    answered_by(port, 1);
    sandbox.take_down(&format!(":{port}"));
}

/// A Python server under a crowd.
struct Scene {
    sandbox: Sandbox,
    port: u16,
    address: String,
    crowd: Vec<Load>,
}

impl Scene {
    fn new(words: &[&str]) -> Scene {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let address = format!("0.0.0.0:{port}");
        let mut scene = Scene { sandbox, port, address, crowd: Vec::new() };
        deploy(&scene.sandbox, &scene.words(words));
        answered_by(port, 1);
        scene.crowd = crowd(port, 3);
        scene
    }

    fn words<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        static SERVER: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        let server = SERVER.get_or_init(|| server("unmodified.py"));
        ["python3", server, &self.address].iter().chain(words).copied().collect()
    }

    fn start(&self, options: &[&str], words: &[&str]) -> Running {
        self.sandbox.serverswap(options.iter().copied().chain(self.words(words)))
    }

    /// A last swap, to show that all is well, and the end.
    fn end(self, generation: u64) {
        deploy(&self.sandbox, &self.words(&[]));
        self.crowd.iter().for_each(|load| load.sees(generation));
        assert_unnoticed(self.crowd);
        self.sandbox.take_down(&format!(":{}", self.port));
    }
}

#[test]
fn a_server_that_never_accepts_is_never_switched_to() {
    let scene = Scene::new(&[]);
    let (status, log) = {
        let mut new = scene.start(&["-d", "--ready-timeout", "2"], &["never"]);
        (new.wait(), new.log())
    };
    assert_eq!((status, log.contains("not up in time")), (124, true), "{log}");
    let mut new = scene.start(&["-d"], &["die"]);
    assert_eq!(new.wait(), 7, "{}", new.log());
    assert_eq!(get(scene.port).unwrap().generation, 1);
    scene.end(2);
}

/// As gunicorn does whose application fails: it is ready, its workers crash, it closes its port, and ends a while
/// later.
#[test]
fn a_server_that_closes_its_port_again_is_not_switched_to() {
    let scene = Scene::new(&[]);
    let mut new = scene.start(&["-d", "--ready-timeout", "2"], &["ready", "closes"]);
    assert_eq!((new.wait(), new.log().contains("not up in time")), (124, true), "{}", new.log());
    assert_eq!(get(scene.port).unwrap().generation, 1);
    scene.end(2);
}

/// At another address of the same port nothing has to be steered, and yet it has to accept.
#[test]
fn a_server_at_another_address_has_to_prove_itself_too() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let server = server("unmodified.py");
    let [narrow, wide] = ["127.0.0.1", "0.0.0.0"].map(|host| format!("{host}:{port}"));
    deploy(&sandbox, &["python3", &server, &narrow]);
    answered_by(port, 1);
    let crowd = crowd(port, 3);
    let (status, log) = sandbox.run(["-d", "--ready-timeout", "2", "python3", &server, &wide, "ready", "never"]);
    assert_eq!((status, log.contains("not up in time")), (124, true), "{log}");
    assert_eq!(get(port).unwrap().generation, 1);
    deploy(&sandbox, &["python3", &server, &wide]);
    crowd.iter().for_each(|load| load.sees(2));
    sandbox.take_down(&format!(":{port}"));
    stop(crowd);
}

#[test]
fn a_server_that_accepts_late_is_switched_to_then() {
    let scene = Scene::new(&[]);
    let (gate, accept) = scene.sandbox.gate("accept");
    let mut new = scene.start(&["-d"], &[&accept]);
    gate.reached();
    assert_eq!(get(scene.port).unwrap().generation, 1);
    gate.open();
    assert_eq!(new.wait(), 0, "{}", new.log());
    assert_eq!(get(scene.port).unwrap().generation, 2);
    scene.end(3);
}

#[test]
fn a_server_that_sleeps_between_listen_and_accept_makes_nobody_wait() {
    let scene = Scene::new(&[]);
    let log = deploy(&scene.sandbox, &scene.words(&["late=5000"]));
    assert!(!log.contains("warning"), "{log}");
    scene.crowd.iter().for_each(|load| load.sees(2));
    for seen in stop(scene.crowd) {
        assert_eq!(seen.failures, [].into(), "{seen:?}");
        // Whoever had met the new server before it accepts would have waited for up to five seconds.
        assert!(seen.longest_gap < Duration::from_millis(2500), "{seen:?}");
    }
    scene.sandbox.take_down(&format!(":{}", scene.port));
}

#[test]
fn a_new_server_killed_right_after_listen_loses_nothing() {
    let scene = Scene::new(&[]);
    for _ in 0..10 {
        let (gate, accept) = scene.sandbox.gate("accept");
        let mut new = scene.start(&["-d"], &[&accept]);
        gate.reached();
        let victim = listener(&scene.sandbox, "accept=");
        kill(victim, libc::SIGKILL);
        assert_eq!(new.wait(), 137, "{}", new.log());
        assert_eq!(get(scene.port).unwrap().generation, 1);
    }
    scene.end(2);
}

/// The process of the server whose command line has this text.
fn listener(sandbox: &Sandbox, text: &str) -> i32 {
    let is = |(_, command): &(i32, String)| command.contains(text) && !command.contains("serverswap ");
    sandbox.processes().into_iter().find(is).unwrap().0
}

/// A request that stays busy until the gate is opened.
fn hold(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
    stream.write_all(b"GET /hold HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

/// Lets the first server, which has this pid, finish a request.
fn finish(gate: &common::Gate, request: &mut TcpStream, pid: i32) {
    gate.open();
    let mut answer = String::new();
    request.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(&format!("1 {pid}")), "{answer}");
}

/// A swap in the middle: the new server gets the new connections, and the old one has a request to finish.
struct Draining {
    sandbox: Sandbox,
    port: u16,
    address: String,
    gate: common::Gate,
    request: TcpStream,
    first: Answer,
    second: Answer,
    new: Running,
}

impl Draining {
    fn new(options: &[&str], words: &[&str]) -> Draining {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let (gate, held) = sandbox.gate("hold");
        let (py, address) = (server("unmodified.py"), format!("0.0.0.0:{port}"));
        let words: Vec<&str> = ["python3", &py, &address, &held].iter().chain(words).copied().collect();
        deploy(&sandbox, &words);
        let first = answered_by(port, 1);
        let request = hold(port);
        gate.reached();
        let new = sandbox.serverswap(options.iter().chain(&["--drain", "60"]).chain(&words));
        let second = answered_by(port, 2);
        Draining { sandbox, port, address, gate, request, first, second, new }
    }

    /// The old server finishes the request.
    fn finish(&mut self) {
        finish(&self.gate, &mut self.request, self.first.pid);
    }
}

/// Takes the lock of the first server of a supervisor, and does nothing with it.
fn claim(sandbox: &Sandbox, supervisor: i32) -> UnixStream {
    let claimer = UnixStream::connect(sandbox.run_dir().join(format!("{supervisor}-1.sock"))).unwrap();
    { &claimer }.write_all(b"PEER 1\nCLAIM\n").unwrap();
    let lines = BufReader::new(&claimer).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "LOCKED"));
    claimer
}

/// Whether a call to listen of the process waits: the number of the call that it is in (proc_pid_syscall(5)).
fn is_held(pid: i32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    call.split(' ').next() == Some(&libc::SYS_listen.to_string())
}

/// The process of the sandbox that waits in listen.
fn held(sandbox: &Sandbox) -> i32 {
    let mut held = None;
    until("a call to listen waits", || {
        held = sandbox.processes().into_iter().map(|(pid, _)| pid).find(|pid| is_held(*pid));
        held.is_some()
    });
    held.unwrap()
}

/// Out of reach of the keeper: it has only left its group.
#[test]
fn a_call_to_listen_that_waits_when_its_supervisor_dies_does_not_run() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    let (old, _) = sandbox.serving(port, &[], &[&address, "mute"]);
    let claimer = claim(&sandbox, old.pid());
    let script = format!("setsid python3 {} {address} & wait", server("unmodified.py"));
    let new = sandbox.serverswap(["sh", "-c", &script]);
    let waits = held(&sandbox);
    new.signal(libc::SIGKILL);
    until("the server has ended", || !alive(waits));
    drop(claimer);
    sandbox.take_down(&address);
}

#[test]
fn a_call_to_listen_of_a_server_that_has_died_does_not_wait() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("127.0.0.1:{port}");
    let (old, _) = sandbox.serving(port, &[], &[&address, "mute"]);
    let claimer = claim(&sandbox, old.pid());
    let child = sandbox.file(
        "child.py",
        "import signal, socket, sys\n\
         signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
         socket.create_server(('127.0.0.1', int(sys.argv[1])))\n",
    );
    let go = sandbox.path("go");
    let (child, file) = (child.display(), go.display());
    let script = format!("python3 {child} {port} & until [ -e {file} ]; do sleep 0.01; done; exit 3");
    let mut new = sandbox.serverswap(["--kill-after", "1000", "sh", "-c", &script]);
    held(&sandbox);
    std::fs::write(go, "").unwrap();
    assert_eq!(new.wait(), 3, "{}", new.log());
    drop(claimer);
    sandbox.take_down(&address);
}

/// The old supervisor can open nothing for a while.
#[test]
fn a_drain_that_cannot_look_waits() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let (gate, held) = sandbox.gate("hold");
    let (accept, accepts) = sandbox.gate("accept");
    let (py, address) = (server("unmodified.py"), format!("0.0.0.0:{port}"));
    let mut old = sandbox.serverswap(["python3", &py, &address, &held]);
    let first = answered_by(port, 1);
    let mut request = hold(port);
    gate.reached();
    let mut new = sandbox.plain(&[], &[&address, &accepts, "mute"]);
    accept.reached();
    let mut strace = sandbox.blind(old.pid());
    accept.open();
    new.says("is up");
    old.says("unable to watch its connections: Cannot allocate memory");
    strace.signal(libc::SIGTERM);
    strace.wait();
    finish(&gate, &mut request, first.pid);
    assert_eq!(old.wait(), 0, "{}", old.log());
    sandbox.take_down(&address);
    assert_eq!(new.wait(), 0);
}

/// The connection of the supervisors ends before the new server listens. The old one is slow to get hold of its
/// listeners: what it saw before is not true any more when it takes off what the claimer has left on them.
#[test]
fn a_new_server_that_listens_after_its_claim_has_ended_gets_nothing() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let (listen, listens) = sandbox.gate("before-listen");
    let (accept, accepts) = sandbox.gate("accept");
    let address = format!("0.0.0.0:{port}");
    let (old, first) = sandbox.serving(port, &[], &[&address]);
    let mut new = sandbox.plain(&[], &[&address, &listens, &accepts]);
    listen.reached();
    let tracer = sandbox.inject(old.pid(), "pidfd_getfd:delay_enter=500000");
    let crowd = crowd(port, 4);
    channels::end(old.pid(), new.pid());
    tracer.says("pidfd_getfd");
    listen.open();
    accept.reached();
    assert_ne!(new.wait(), 0, "{}", new.log());
    crowd.iter().for_each(|load| load.sees_server(first));
    assert_unnoticed(crowd);
    sandbox.take_down(&address);
}

/// The new server dies after the switch, while the old one drains: the old one has it all again.
#[test]
fn a_new_server_that_dies_after_the_switch_gives_the_port_back() {
    let mut swap = Draining::new(&[], &[]);
    assert!(alive(swap.first.pid));
    kill(swap.second.pid, libc::SIGKILL);
    assert_eq!(swap.new.wait(), 137, "{}", swap.new.log());
    let crowd = crowd(swap.port, 3);
    assert_eq!(get(swap.port), Ok(swap.first));
    swap.finish();
    // And it can be replaced.
    deploy(&swap.sandbox, &["python3", &server("unmodified.py"), &swap.address]);
    crowd.iter().for_each(|load| load.sees(2));
    assert_unnoticed(crowd);
    swap.sandbox.take_down(&swap.address);
}

/// As above, in a reload: who asked for it hears so, and what serves again is this supervisor's server as before.
/// The old one cannot stay any more: nothing serves, and whoever restarts what fails has to hear of it.
#[test]
fn a_reload_whose_new_server_dies_while_the_old_one_goes_has_its_status() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let (gate, before_exit) = sandbox.gate("before-exit");
    let signals = format!("signals={}", sandbox.path("signals").display());
    let (mut front, first) = sandbox.serving(port, &[], &[&format!(":{port}"), &signals, &before_exit]);
    let mut reload = sandbox.serverswap(["--reload", &format!(":{port}")]);
    gate.reached();
    let second = get(port).unwrap().pid;
    assert_ne!(second, first);
    kill(second, libc::SIGKILL);
    front.says("nothing serves");
    assert!(![0, 125].contains(&reload.wait()));
    gate.open();
    assert_eq!(front.wait(), 137, "{}", front.log());
    sandbox.assert_clean();
}

#[test]
fn a_reloaded_server_that_dies_after_the_switch_gives_the_port_back() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let (gate, held) = sandbox.gate("hold");
    let address = format!("0.0.0.0:{port}");
    let mut supervisor = sandbox.serverswap(["--drain", "60", "python3", &server("unmodified.py"), &address, &held]);
    let first = answered_by(port, 1);
    supervisor.says("is up");
    let mut request = hold(port);
    gate.reached();
    let mut reload = sandbox.serverswap(["--reload", &format!(":{port}")]);
    let second = answered_by(port, 2);
    supervisor.says("(generation 2)");
    kill(second.pid, libc::SIGKILL);
    assert_eq!(reload.wait(), 137, "{}", reload.log());
    assert_eq!(get(port), Ok(first));
    gate.open();
    request.read_to_string(&mut String::new()).unwrap();
    let (status, log) = sandbox.run(["--reload", &format!(":{port}")]);
    assert_eq!(status, 0, "{log}");
    assert_ne!(get(port).map(|answer| answer.pid), Ok(first.pid));
    sandbox.take_down(&format!(":{port}"));
    assert_eq!(supervisor.wait(), 0, "{}", supervisor.log());
}

#[test]
fn a_new_supervisor_that_is_stopped_after_the_switch_gives_the_port_back() {
    let mut swap = Draining::new(&[], &[]);
    swap.new.signal(libc::SIGTERM);
    assert_eq!(swap.new.wait(), 143, "{}", swap.new.log());
    assert_eq!(get(swap.port), Ok(swap.first));
    let pidfile = || swap.sandbox.pidfile(&swap.port.to_string());
    until("the address is registered again", || pidfile() == Some(swap.first.pid));
    swap.finish();
    assert_eq!(get(swap.port), Ok(swap.first));
    swap.sandbox.take_down(&swap.address);
}

/// Both supervisors die in the middle, so both servers are orphans, and both serve. Whoever comes next in plain order
/// has to wait for both of them, at each of its addresses.
#[test]
fn two_servers_without_supervisors_are_waited_for_at_every_address() {
    let sandbox = Sandbox::shared();
    let ports = [sandbox.port(), sandbox.port()];
    let (gate, held) = sandbox.gate("hold");
    let addresses = ports.map(|port| format!(":{port}"));
    let words = [addresses[0].as_str(), &addresses[1], &held, "mute"];
    // It takes its time when it is told to go.
    let slow: Vec<&str> = words.into_iter().chain(["stubborn"]).collect();
    let old = sandbox.plain(&["--drain", "60"], &slow);
    let first = answered_by(ports[0], 1);
    old.says("is up");
    answered_by(ports[1], 1);
    let _request = hold(ports[0]);
    gate.reached();
    let new = sandbox.plain(&["--drain", "60"], &words);
    let second = answered_by(ports[0], 2);
    assert_eq!(answered_by(ports[1], 2), second);
    new.says("is up");
    [&old, &new].into_iter().for_each(|running| running.signal(libc::SIGKILL));
    until("both have lost their supervisors", || !alive(old.pid()) && !alive(new.pid()));
    let server = plain_server();
    let plain = ["--plain", "--kill-after", "1", "-d", server.to_str().unwrap(), &addresses[0], &addresses[1]];
    let (status, log) = sandbox.run(plain);
    assert_eq!(status, 0, "{log}");
    assert!(!alive(first.pid) && !alive(second.pid));
    let third = ports.map(|port| get(port).unwrap().pid);
    assert_eq!(third[0], third[1]);
    assert_eq!(sandbox.run(["--takedown", &addresses[0], &addresses[1]]).0, 0);
}

#[test]
fn the_status_shows_what_an_old_server_still_has_to_do() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let (gate, held) = sandbox.gate("hold");
    let (py, address) = (server("unmodified.py"), format!("0.0.0.0:{port}"));
    let words = ["python3", &py, &address, &held];
    deploy(&sandbox, &words);
    let first = answered_by(port, 1).pid.to_string();
    let mut requests = [hold(port), hold(port)];
    gate.reached();
    let mut new = sandbox.serverswap(["-d", "--drain", "60"].iter().chain(&words));
    let second = answered_by(port, 2).pid.to_string();
    // Others ask meanwhile, and their connections close.
    until("the old server drains with two connections", || {
        let short = |row: Vec<String>| [0, 2, 5, 6, 8].map(|field| row[field].clone());
        let rows: Vec<[String; 5]> = sandbox.status().into_iter().map(short).collect();
        let row =
            |pid: &str, state: &str, count: &str| [&format!(":{port}"), pid, state, "shared", count].map(str::to_owned);
        rows == [row(&second, "serving", "0"), row(&first, "draining", "2")]
    });
    gate.open();
    let mut answer = String::new();
    for request in &mut requests {
        request.read_to_string(&mut answer).unwrap();
    }
    assert_eq!(new.wait(), 0, "{}", new.log());
    assert_eq!(sandbox.status().len(), 1);
    sandbox.take_down(&format!(":{port}"));
}

/// The supervisor of the server is dead: later calls of the server work, and the next swap too.
#[test]
fn a_dead_supervisor_leaves_a_server_that_can_bind_and_be_replaced() {
    let scene = Scene::new(&[]);
    let fifo = scene.sandbox.path("again");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let again = format!("again={}", fifo.display());
    let mut foreground = scene.start(&[], &[&again]);
    answered_by(scene.port, 2);
    foreground.says("is up");
    until("the first generation is gone", || scene.sandbox.status().len() == 1);
    foreground.signal(libc::SIGKILL);
    foreground.wait();
    // Whoever listens later is heard of by nobody but the keeper.
    let later = scene.sandbox.port();
    std::fs::write(&fifo, format!("{later}\n")).unwrap();
    answered_by(later, 2);
    scene.end(3);
}

#[test]
fn a_dead_keeper_changes_nothing() {
    let scene = Scene::new(&[]);
    let mut foreground = scene.start(&[], &[]);
    answered_by(scene.port, 2);
    foreground.says("is up");
    until("the first generation is gone", || scene.sandbox.status().len() == 1);
    let supervisor = foreground.pid();
    let is_keeper = |(pid, command): &(i32, String)| *pid != supervisor && command.contains("serverswap ");
    let keeper = scene.sandbox.processes().into_iter().find(is_keeper).unwrap().0;
    kill(keeper, libc::SIGKILL);
    deploy(&scene.sandbox, &scene.words(&[]));
    assert_eq!(foreground.wait(), 0, "{}", foreground.log());
    scene.crowd.iter().for_each(|load| load.sees(3));
    scene.end(4);
}

/// The new supervisor dies in the middle of the swap: its server ends, the old one has never noticed.
#[test]
fn a_new_supervisor_that_dies_before_the_switch_changes_nothing() {
    let scene = Scene::new(&[]);
    let (gate, accept) = scene.sandbox.gate("accept");
    let mut new = scene.start(&[], &[&accept]);
    gate.reached();
    let victim = listener(&scene.sandbox, "accept=");
    new.signal(libc::SIGKILL);
    new.wait();
    until("its server is gone", || !alive(victim));
    assert_eq!(get(scene.port).unwrap().generation, 1);
    scene.end(2);
}

/// Whoever waits for the lock must not meet what is still left of the server that it waited behind.
#[test]
fn a_new_server_that_ends_slowly_is_no_stranger_to_the_next() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("127.0.0.1:{port}");
    assert_eq!(sandbox.deploy(&[&address]).0, 0);
    answered_by(port, 1);
    // It listens and never accepts, and a process of its own session has its listener for a while longer.
    let text = "import os, socket, sys, time\n\
                listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n\
                if os.fork() == 0:\n    os.setsid(); time.sleep(1); os._exit(0)\n\
                time.sleep(600)";
    let slow = sandbox.serverswap(["python3", "-c", text, &port.to_string()]);
    until("it listens", || common::listening(port) == 2);
    let crowd = crowd(port, 3);
    crowd.iter().for_each(|load| load.sees(1));
    let mut next = sandbox.plain(&["-d"], &[&address, "mute"]);
    // Its call to listen waits. The supervisor of a detached one is a child of the command, the server its grandchild.
    let below = |pid: i32| common::children(pid).into_iter();
    until("the next one waits", || below(next.pid()).flat_map(below).any(is_held));
    slow.signal(libc::SIGKILL);
    assert_eq!(next.wait(), 0, "{}", next.log());
    assert!(!next.log().contains("warning"), "{}", next.log());
    let last = get(port).unwrap().pid;
    crowd.iter().for_each(|load| load.sees_server(last));
    assert_unnoticed(crowd);
    sandbox.take_down(&address);
}

/// The old supervisor dies in the middle of the swap.
#[test]
fn an_old_supervisor_that_dies_before_the_switch_is_no_hindrance() {
    let scene = Scene::new(&[]);
    let mut old = scene.start(&[], &[]);
    answered_by(scene.port, 2);
    old.says("is up");
    until("the first generation is gone", || scene.sandbox.status().len() == 1);
    let (gate, accept) = scene.sandbox.gate("accept");
    let mut new = scene.start(&["-d"], &[&accept]);
    gate.reached();
    old.signal(libc::SIGKILL);
    old.wait();
    gate.open();
    assert_eq!(new.wait(), 0, "{}", new.log());
    scene.crowd.iter().for_each(|load| load.sees(3));
    scene.end(4);
}

/// Whoever looks at a record has its lock for a moment: that is no supervisor.
#[test]
fn an_orphan_that_is_looked_at_is_taken_over_all_the_same() {
    use std::sync::atomic::{AtomicBool, Ordering};
    for _ in 0..3 {
        let mut swap = Draining::new(&[], &[]);
        swap.new.says("is up");
        let record = swap.sandbox.run_dir().join(format!("{}.server", swap.first.pid));
        let record = std::fs::File::open(record).unwrap();
        let row = swap.sandbox.status().into_iter().find(|row| row[2] == swap.first.pid.to_string()).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let _ = record.try_lock_shared();
                    let _ = record.unlock();
                }
            });
            kill(row[3].parse().unwrap(), libc::SIGKILL);
            swap.new.says("lost its supervisor and is taken over");
            done.store(true, Ordering::Relaxed);
        });
        swap.finish();
        until("the old server is gone", || !common::alive(swap.first.pid));
        swap.sandbox.take_down(&swap.address);
        assert_eq!(swap.new.wait(), 0, "{}", swap.new.log());
    }
}

/// Yama lets a supervisor reach its descendants only: the old server's listeners come from its supervisor. The
/// main thread of this one, which is all that strace follows, may not fetch any itself.
#[test]
fn the_old_supervisor_hands_its_listeners_over() {
    let scene = Scene::new(&[]);
    let mut old = scene.start(&[], &[]);
    answered_by(scene.port, 2);
    old.says("is up");
    until("the first generation is gone", || scene.sandbox.status().len() == 1);
    let mut command = scene.sandbox.command("strace");
    command.args(["-qq", "-o", "/dev/null", "-e", "inject=pidfd_getfd:error=EPERM", common::SERVERSWAP]);
    command.args(scene.words(&[]));
    let new = scene.sandbox.start(command);
    answered_by(scene.port, 3);
    new.says("is up (generation 3)");
    assert!(!new.log().contains("warning"), "{}", new.log());
    assert_eq!(old.wait(), 0, "{}", old.log());
    scene.crowd.iter().for_each(|load| load.sees(3));
    for seen in stop(scene.crowd) {
        // Where the sockets of the server cannot be had, a socket of ours takes the program off the group, and is a member
        // until it is closed right afterwards. strace makes that moment long enough for a client.
        let late = seen.failures.get(&Failure::Resent).copied().unwrap_or_default();
        assert!(late <= 1 && late == seen.failures.values().sum(), "{seen:?}");
    }
    scene.sandbox.take_down(&format!(":{}", scene.port));
}

/// Processes that listen on one socket are one member of the group: while the old server has a request to
/// finish, it gets none of the new ones.
#[test]
fn a_socket_that_several_processes_listen_on_counts_once() {
    let mut swap = Draining::new(&["-d"], &["forks=4"]);
    for _ in 0..100 {
        assert_eq!(get(swap.port).map(|answer| answer.generation), Ok(2));
    }
    swap.gate.open();
    swap.request.read_to_string(&mut String::new()).unwrap();
    assert_eq!(swap.new.wait(), 0, "{}", swap.new.log());
    swap.sandbox.take_down(&swap.address);
}

/// What the server opened itself is no connection that it has to finish.
#[test]
fn a_connection_to_a_database_does_not_keep_the_drain() {
    let database = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let (py, address) = (server("unmodified.py"), format!("0.0.0.0:{port}"));
    let words = ["python3", &py, &address, &format!("database={}", database.local_addr().unwrap().port())];
    for generation in 1..=3 {
        let log = deploy(&sandbox, &words);
        assert!(!log.contains("busy"), "{log}");
        assert_eq!(get(port).map(|answer| answer.generation), Ok(generation));
    }
    sandbox.take_down(&address);
}

#[test]
fn a_server_that_listens_closes_and_listens_again() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    swaps(&sandbox, port, 3, 3, &["python3", &server("unmodified.py"), &format!("0.0.0.0:{port}"), "twice"]);
}

#[test]
fn a_server_that_steers_its_port_itself_keeps_its_program_and_is_replaced_by_who_says_ready() {
    let scene = Scene::new(&["reuseport", "steers"]);
    let steers = scene.words(&["reuseport", "steers"]);
    assert_eq!(scene.sandbox.status()[0][6], "plain");
    assert_eq!(scene.sandbox.run(["-d", "false"]).0, 1);
    assert_eq!(get(scene.port).unwrap().generation, 1);
    // In plain order, and in that a server which says nothing replaces nobody.
    let (status, log) = scene.sandbox.run([&["-d"][..], &steers].concat());
    assert!(status == 1 && log.contains("did not say READY") && log.contains("the old one still serves"), "{log}");
    let first = get(scene.port).unwrap();
    assert_eq!(first.generation, 1);
    let plain = plain_server();
    let address = format!(":{}", scene.port);
    let log = deploy(&scene.sandbox, &[plain.to_str().unwrap(), &address]);
    assert!(log.contains("this swap runs in plain order"), "{log}");
    assert_ne!(get(scene.port).unwrap().pid, first.pid);
    scene.sandbox.take_down(&address);
}

#[test]
fn who_only_looks_takes_no_filter_from_a_socket() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    // SO_ATTACH_FILTER (26) with one instruction that takes the whole packet; SO_GET_FILTER counts them.
    let text = r"
import ctypes, socket, struct, sys
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0xffffffff))
listener.setsockopt(socket.SOL_SOCKET, 26, struct.pack('HP', 1, ctypes.addressof(code)))
while True:
    stream, _ = listener.accept()
    stream.recv(4096)
    count = b'%d' % len(listener.getsockopt(socket.SOL_SOCKET, 26, 64))
    stream.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n' + count)
    stream.close()
";
    let filters = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.chars().last()
    };
    deploy(&sandbox, &["python3", "-c", text, &port.to_string()]);
    assert_eq!(filters(), Some('1'));
    for _ in 0..20 {
        assert_eq!(sandbox.status().len(), 1);
    }
    assert_eq!(filters(), Some('1'));
}

#[test]
fn plain_on_either_side_is_plain_order() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let (server, address) = (plain_server(), format!(":{port}"));
    let words = [server.to_str().unwrap(), &address, "takedown"];
    for (generation, plain) in (1..).zip([false, true, false, false]) {
        let options: &[&str] = if plain { &["-d", "--plain"] } else { &["-d"] };
        let (status, log) = sandbox.run(options.iter().copied().chain(words));
        assert_eq!(status, 0, "{log}");
        // The old one does not share.
        assert_eq!(log.matches("cannot be shared").count(), usize::from(generation == 3), "{log}");
        assert_eq!(get(port).unwrap().generation, generation);
    }
    sandbox.take_down(&format!(":{port}"));
}

#[test]
fn serverswap_inside_a_server_warns_and_runs_in_plain_order() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let server = plain_server();
    let inner = [common::SERVERSWAP, server.to_str().unwrap(), &address, "takedown"];
    let mut outer = sandbox.serverswap(inner);
    answered_by(port, 1);
    until("it warns", || outer.log().contains("another one watches already"));
    assert_eq!(outer.log().matches("warning").count(), 1, "{}", outer.log());
    outer.signal(libc::SIGTERM);
    outer.wait();
    sandbox.assert_clean();
}

/// After many swaps there is as much of everything as after one.
#[test]
fn three_hundred_reloads_leave_nothing_behind() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let server = plain_server();
    // Each probe is watched for a tenth of a second.
    let mut supervisor = sandbox.serverswap(["--no-probe", server.to_str().unwrap(), &address, "mute"]);
    answered_by(port, 1);
    supervisor.says("is up");
    let crowd = crowd(port, 2);
    let pid = supervisor.pid();
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let look = || (count("fd"), count("task"), sandbox.files().len(), sandbox.processes().len());
    let reload = || {
        let (status, log) = sandbox.run(["--reload", &address]);
        assert_eq!(status, 0, "{log}");
    };
    reload();
    until("it is as in steady state", || sandbox.processes().len() == 4);
    let mut before = look();
    until("it is quiet", || {
        let last = std::mem::replace(&mut before, look());
        last == before
    });
    let memory = || common::memory_of(pid, "RssAnon").unwrap();
    // A second after the last activity it gives back what it can.
    let at_rest = || {
        let mut last = (memory(), Instant::now());
        until("its memory is at rest", || {
            let now = memory();
            if now != last.0 {
                last = (now, Instant::now());
            }
            last.1.elapsed() > Duration::from_secs(2)
        });
        last.0
    };
    // The first ones bring the heap to its size.
    (0..50).for_each(|_| reload());
    let kib = at_rest();
    (0..300).for_each(|_| reload());
    until("nothing is left", || look() <= before && sandbox.processes().len() == 4);
    let more = at_rest().saturating_sub(kib);
    assert!(more <= 128, "{more} KiB more than after 50 reloads");
    assert_unnoticed(crowd);
    sandbox.take_down(&address);
    assert_eq!(supervisor.wait(), 0);
}

/// The 60 seconds that each of these commands may take are the judge: without end, if the time grows with a power of
/// their number.
#[test]
fn a_server_with_a_thousand_addresses_is_swapped() {
    let sandbox = Sandbox::shared();
    let addresses: Vec<String> = (0..1000).map(|_| format!("127.0.0.1:{}", sandbox.port())).collect();
    let words: Vec<&str> = addresses.iter().map(String::as_str).chain(["mute"]).collect();
    for generation in 1..=2 {
        let (status, log) = sandbox.deploy(&words);
        assert_eq!((status, log.contains("warning")), (0, false), "{log}");
        let answers = |at: &String| get_from(at.parse().unwrap()).is_ok_and(|answer| answer.generation == generation);
        until("it answers everywhere", || answers(&addresses[0]) && answers(&addresses[999]));
    }
    let (status, log) = sandbox.run(["--takedown".to_owned()].iter().chain(&addresses));
    assert_eq!(status, 0, "{log}");
    sandbox.assert_clean();
}

#[test]
fn supervisor_and_keeper_give_back_what_a_swap_took() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    sandbox.serving(port, &[], &[&address, "mute"]);
    let mut new = sandbox.plain(&[], &[&address, "mute"]);
    new.says("is up");
    until("the first generation is gone", || sandbox.processes().len() == sandbox.crew());
    // KiB of files, code that is, of which a process that only waits needs little: three times as much in a swap.
    let is_below = |pid: i32, kib: u64| common::memory_of(pid, "RssFile").is_some_and(|file| file < kib);
    let is_ours = |(_, command): &(i32, String)| command.contains("/serverswap ");
    let ours: Vec<i32> = sandbox.processes().into_iter().filter(is_ours).map(|(pid, _)| pid).collect();
    assert_eq!(ours.len(), 2);
    until("the supervisor has given its pages back", || is_below(new.pid(), 3072));
    until("the keeper has", || ours.iter().all(|&pid| pid == new.pid() || is_below(pid, 768)));
    sandbox.take_down(&address);
    assert_eq!(new.wait(), 0);
}

/// `serverswap -d` with a server of these addresses that takes as many files as it may, after `ulimit LIMIT`.
fn limited(sandbox: &Sandbox, limit: &str, addresses: &[String]) -> (i32, String) {
    let mut command = sandbox.command("sh");
    command.args(["-c", &format!("ulimit {limit}; exec \"$@\""), "sh", common::SERVERSWAP, "-d"]);
    command.args(["--ready-timeout", "5", "node"]);
    let mut running = sandbox.start({
        command.arg(server("unmodified.js")).args(addresses);
        command
    });
    (running.wait(), running.log())
}

/// In a swap a supervisor holds the listeners of both servers.
#[test]
fn a_server_with_more_addresses_than_half_its_limit_of_files_is_swapped() {
    let sandbox = Sandbox::shared();
    let addresses: Vec<String> = (0..60).map(|_| format!("127.0.0.1:{}", sandbox.port())).collect();
    for generation in 1..=3 {
        let (status, log) = limited(&sandbox, "-Sn 100", &addresses);
        assert!(status == 0 && !log.contains("warning"), "{log}");
        until("it has all its addresses", || sandbox.status().len() == 60);
        for address in &addresses {
            let answer = get_from(address.parse().unwrap());
            assert!(answer.is_ok_and(|answer| answer.generation == generation), "{answer:?}");
        }
    }
    // The server is none the wiser.
    let mut command = sandbox.command("sh");
    command.args(["-c", "ulimit -Sn 100; exec \"$@\"", "sh", common::SERVERSWAP, "sh", "-c", "ulimit -Sn"]);
    let mut running = sandbox.start(command);
    assert_eq!(running.wait(), 0);
    assert!(running.log().lines().any(|line| line == "100"), "{}", running.log());
    let down: Vec<String> = ["--takedown".to_owned()].into_iter().chain(addresses).collect();
    assert_eq!(sandbox.run(down).0, 0);
    sandbox.assert_clean();
}

/// Pidfiles that could not be read were taken for garbage, and listeners that could not be received for the end of
/// the old supervisor, which was waited for without end.
#[test]
fn a_supervisor_that_wants_for_files_harms_nobody_and_ends() {
    let sandbox = Sandbox::shared();
    let addresses: Vec<String> = (0..60).map(|_| format!("127.0.0.1:{}", sandbox.port())).collect();
    assert_eq!(limited(&sandbox, "-Sn 100", &addresses).0, 0);
    until("it has all its addresses", || sandbox.status().len() == 60);
    for files in [90, 100, 110, 120] {
        // It comes to its end, whichever that is: the old server serves, or the swap ran in plain order.
        let (_, log) = limited(&sandbox, &format!("-n {files}"), &addresses);
        assert!(!log.contains("is removed"), "{files} files: {log}");
        until("one server has all the addresses", || {
            let rows = sandbox.status();
            rows.len() == 60 && rows.iter().all(|row| row[2] == rows[0][2] && row[5] == "serving")
        });
        for address in &addresses {
            assert!(get_from(address.parse().unwrap()).is_ok(), "{files} files: {address}: {log}");
        }
    }
    let down: Vec<String> = ["--takedown".to_owned()].into_iter().chain(addresses).collect();
    assert_eq!(sandbox.run(down).0, 0);
    sandbox.assert_clean();
}

#[test]
fn without_privileges() {
    as_nobody(&[]);
}

/// Each command with a `/proc` that does not show who else runs (proc(5), hidepid=1).
#[test]
fn without_privileges_and_where_processes_of_others_are_hidden() {
    let hides = "mount -t proc -o hidepid=1 proc /proc && exec \"$@\"";
    let hidden = ["unshare", "-m", "sh", "-c", hides, "sh"];
    if std::process::Command::new(hidden[0]).args(&hidden[1..]).arg("true").status().is_ok_and(|s| s.success()) {
        as_nobody(&hidden);
    }
}

/// Three swaps by a user who may do little; `around`: in what their commands run.
fn as_nobody(around: &[&str]) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::shared();
    std::fs::set_permissions(sandbox.path(""), std::fs::Permissions::from_mode(0o777)).unwrap();
    // Where everybody can read it.
    for (from, to) in [(Path::new(common::SERVERSWAP), "serverswap"), (&plain_server(), "server")] {
        common::copy_program(from, &sandbox.path(to));
    }
    let port = sandbox.port();
    let address = format!(":{port}");
    let (serverswap, server) = (sandbox.path("serverswap"), sandbox.path("server"));
    let run = |words: &[&str]| {
        let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
        let words = [around, &nobody, &[serverswap.to_str().unwrap()], words].concat();
        let mut command = sandbox.command(words[0]);
        command.args(&words[1..]);
        let mut running = sandbox.start(command);
        assert_eq!(running.wait(), 0, "{}", running.log());
        running.log()
    };
    let words = ["-d", server.to_str().unwrap(), &address, "mute"];
    run(&words);
    let first: Answer = answered_by(port, 1);
    let crowd = crowd(port, 3);
    for generation in 2..=4 {
        let log = run(&words);
        assert!(!log.contains("warning"), "{log}");
        crowd.iter().for_each(|load| load.sees(generation));
    }
    assert!(!alive(first.pid));
    assert_unnoticed(crowd);
    run(&["--takedown", &address]);
    sandbox.assert_clean();
}

/// What is closed is forgotten, also where nobody else comes to the same place without sharing it.
#[test]
fn a_server_that_binds_ever_new_sockets_costs_its_supervisor_nothing() {
    let sandbox = Sandbox::shared();
    let (port, other) = (sandbox.port(), sandbox.port());
    let script = format!(
        "import socket\n\
         server = socket.create_server(('127.0.0.1', {port}))\n\
         def bind(times):\n\
         \tfor _ in range(times):\n\
         \t\ts = socket.socket()\n\
         \t\ts.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n\
         \t\ts.bind(('127.0.0.9', {other}))\n\
         \t\ts.close()\n\
         for times in 5000, 30000:\n\
         \tbind(times)\n\
         \tserver.accept()"
    );
    // It accepts twice: not a probe.
    let mut running = sandbox.serverswap(["--no-probe", "python3", "-c", &script]);
    running.says("is up");
    let accepted = || TcpStream::connect(("127.0.0.1", port)).unwrap().read(&mut [0]).unwrap();
    accepted();
    let before = common::memory_of(running.pid(), "RssAnon").unwrap();
    accepted();
    let after = common::memory_of(running.pid(), "RssAnon").unwrap();
    assert!(after < before + 512, "{before} KiB before, {after} after");
    assert_eq!(running.wait(), 0, "{}", running.log());
}

/// It wanted a fixed port, did not get it, and takes any.
#[test]
fn a_bind_that_failed_makes_no_address_of_the_next_one() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let other = sandbox.port();
    let _taken = TcpListener::bind(("127.0.0.1", other)).unwrap();
    let script = format!(
        "import socket, time\n\
         server = socket.create_server(('127.0.0.1', {port}))\n\
         any = socket.socket()\n\
         try: any.bind(('127.0.0.1', {other}))\n\
         except OSError: any.bind(('127.0.0.1', 0))\n\
         any.listen()\n\
         print('listens everywhere', flush=True)\n\
         time.sleep(1000)"
    );
    // It accepts nothing.
    let running = sandbox.serverswap(["--no-probe", "python3", "-c", &script]);
    running.says("listens everywhere");
    running.says("is up");
    let rows = sandbox.status();
    assert!(rows.len() == 1 && rows[0][0] == format!("127.0.0.1:{port}"), "{rows:?}");
    sandbox.take_down(&format!(":{port}"));
}
