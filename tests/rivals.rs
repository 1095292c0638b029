//! Two serverswaps that want the same two servers, which have lost their supervisors.

mod common;

use common::{Running, Sandbox, alive, get, until};
use nix::libc;

/// `python3 two.py FIRST SECOND WORDS...`.
fn two(ports: [u16; 2], words: &[&str]) -> Vec<String> {
    const TWO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/two.py");
    let [first, second] = ports.map(|port| port.to_string());
    let command = ["python3", TWO, &first, &second].into_iter().chain(words.iter().copied());
    command.map(str::to_owned).collect()
}

fn start(sandbox: &Sandbox, ports: [u16; 2], words: &[&str]) -> Running {
    let command = two(ports, words);
    sandbox.serverswap(["-d"].into_iter().chain(command.iter().map(String::as_str)))
}

/// Two ports with a server each, whose supervisors were killed.
fn orphans(sandbox: &Sandbox) -> [u16; 2] {
    [sandbox.port(), sandbox.port()].map(|port| {
        let mut running = sandbox.plain(&[], &[&format!("127.0.0.1:{port}"), "mute"]);
        running.says("is up");
        running.signal(libc::SIGKILL);
        running.wait();
        port
    })
}

/// Whether somebody in the sandbox waits in listen (proc_pid_syscall(5)).
fn listens_in_vain(sandbox: &Sandbox) -> bool {
    let call = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let waits = |pid: i32| call(pid).split(' ').next() == Some(&libc::SYS_listen.to_string());
    sandbox.processes().into_iter().any(|(pid, _)| waits(pid))
}

/// One server has both, and nothing of the others is left.
fn assert_one(sandbox: &Sandbox, ports: [u16; 2]) {
    let [one, other] = ports.map(|port| get(port).unwrap());
    assert_eq!(one, other);
    until("the others are gone", || sandbox.processes().len() == sandbox.crew());
    assert!(alive(one.pid));
    let (status, log) =
        sandbox.run(["--takedown", &format!("127.0.0.1:{}", ports[0]), &format!("127.0.0.1:{}", ports[1])]);
    assert_eq!(status, 0, "{log}");
    sandbox.assert_clean();
}

#[test]
fn two_rivals_do_not_wait_for_each_other_with_an_orphan_each() {
    let sandbox = Sandbox::shared();
    let ports = orphans(&sandbox);
    let ((one_gate, one_between), (other_gate, other_between)) = (sandbox.gate("between"), sandbox.gate("between"));
    let mut one = start(&sandbox, ports, &[&one_between]);
    one_gate.reached();
    // It wants the second one first.
    let mut other = start(&sandbox, [ports[1], ports[0]], &[&other_between]);
    until("the other one waits, or has an orphan too", || listens_in_vain(&sandbox) || other_gate.is_reached());
    one_gate.open();
    assert_eq!(one.wait(), 0, "{}", one.log());
    other_gate.reached();
    other_gate.open();
    assert_eq!(other.wait(), 0, "{}", other.log());
    assert_one(&sandbox, ports);
}

/// In whichever order they come.
#[test]
fn two_rivals_that_come_at_once_replace_two_orphans_one_after_the_other() {
    for _ in 0..5 {
        let sandbox = Sandbox::shared();
        let ports = orphans(&sandbox);
        let rivals = [start(&sandbox, ports, &[]), start(&sandbox, [ports[1], ports[0]], &[])];
        for mut rival in rivals {
            assert_eq!(rival.wait(), 0, "{}", sandbox.said());
        }
        assert_one(&sandbox, ports);
    }
}

/// Whoever took it in passing lets go of it once it is up.
#[test]
fn an_orphan_that_a_rival_does_not_want_is_replaced_after_it() {
    let sandbox = Sandbox::shared();
    let [one, other] = orphans(&sandbox);
    let (first, second) = (format!("127.0.0.1:{one}"), format!("127.0.0.1:{other}"));
    let (accepts, accept) = sandbox.gate("accept");
    let mut slow = sandbox.plain(&["-d"], &[&first, "mute", &accept]);
    accepts.reached();
    let mut waits = sandbox.plain(&["-d"], &[&second, "mute"]);
    until("it waits", || listens_in_vain(&sandbox));
    accepts.open();
    for running in [&mut slow, &mut waits] {
        assert_eq!(running.wait(), 0, "{}", running.log());
    }
    let pids = [one, other].map(|port| get(port).unwrap().pid);
    assert_ne!(pids[0], pids[1]);
    let (status, log) = sandbox.run(["--takedown", &first, &second]);
    assert_eq!(status, 0, "{log}");
    sandbox.assert_clean();
}

/// A server that is up looks for another address: the orphan there becomes its own, and no other one.
#[test]
fn an_orphan_that_nobody_wants_is_not_kept_from_whoever_wants_it() {
    let sandbox = Sandbox::shared();
    let (own, ports) = (sandbox.port(), orphans(&sandbox));
    let asks = common::odd("asks", own, &[&ports[0].to_string()]);
    let (status, log) = sandbox.run([&["-d".to_owned()], &asks[..]].concat());
    assert_eq!(status, 0, "{log}");
    let first = get(own).unwrap();
    until("it has the address of the first", || get(ports[0]) == Ok(first));
    let address = format!("127.0.0.1:{}", ports[1]);
    let server = common::plain_server();
    let (status, log) = sandbox.run(["-d", "--ready-timeout", "20", server.to_str().unwrap(), &address, "mute"]);
    assert_eq!(status, 0, "{log}");
    let both = [own, ports[0]].map(|port| format!("127.0.0.1:{port}"));
    let (status, log) = sandbox.run(["--takedown", &both[0], &both[1], &address]);
    assert_eq!(status, 0, "{log}");
    sandbox.assert_clean();
}
