//! What a supervisor believes is true: a server is up when it accepts at each of its sockets, gone when nobody holds
//! them, and nothing is switched without that.

mod common;

use common::{Load, Sandbox, answered_by, get, get_from, odd, until};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

fn run(sandbox: &Sandbox, options: &[&str], words: &[String]) -> (i32, String) {
    let options = options.iter().map(|option| (*option).to_owned());
    sandbox.run(options.chain(words.iter().cloned()).collect::<Vec<String>>())
}

#[track_caller]
fn swapped(sandbox: &Sandbox, words: &[String]) {
    let (status, log) = run(sandbox, &["-d", "--ready-timeout", "30"], words);
    assert_eq!(status, 0, "{log}");
}

#[test]
fn a_first_server_that_accepts_nothing_is_not_up() {
    common::in_both_orders(|sandbox| {
        let port = sandbox.port();
        let (status, log) = run(&sandbox, &["-d", "--ready-timeout", "6"], &odd("silent", port, &[]));
        assert_eq!(status, 124, "{log}");
        assert!(log.contains("but accepts nothing") && !log.contains("is up"), "{log}");
        // Nor is one that has ended.
        let (status, log) = run(&sandbox, &["-d"], &odd("silent", port, &["0"]));
        assert!(status == 124 && !log.contains("is up"), "{status}: {log}");
        // In the foreground it may take its time.
        let running = sandbox.serverswap(odd("silent", port, &[]));
        until("it has its pidfile", || sandbox.pidfile(&format!("127.0.0.1:{port}")).is_some());
        assert_eq!(sandbox.status()[0][5], "starting");
        assert!(!running.log().contains("is up"));
        sandbox.take_down(&format!("127.0.0.1:{port}"));
        // And who does not want to know is not told.
        let (status, log) = run(&sandbox, &["-d", "--no-probe"], &odd("silent", port, &[]));
        assert!(status == 0 && log.contains("is up"), "{log}");
        sandbox.take_down(&format!("127.0.0.1:{port}"));
    });
}

#[test]
fn each_socket_of_a_server_has_to_accept() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("127.0.0.1:{port}");
    let bad = [["deaf"], ["close"]];
    for rest in bad {
        let (status, log) = run(&sandbox, &["-d", "--ready-timeout", "6"], &odd("three_sockets", port, &rest));
        assert_eq!(status, 124, "{rest:?}: {log}");
    }
    swapped(&sandbox, &odd("three_sockets", port, &[]));
    let first = answered_by(port, 1);
    for rest in bad {
        let load = Load::start(port, Duration::from_millis(1));
        until("it is asked", || load.is_answered());
        let (status, log) = run(&sandbox, &["-d", "--ready-timeout", "6"], &odd("three_sockets", port, &rest));
        assert_eq!(status, 124, "{rest:?}: {log}");
        let seen = load.stop();
        assert_eq!((seen.failures, seen.answers.keys().copied().collect()), ([].into(), vec![first.pid]), "{rest:?}");
    }
    let load = Load::start(port, Duration::from_millis(1));
    for generation in 2..=4 {
        swapped(&sandbox, &odd("three_sockets", port, &[]));
        // A generation counts from the last one that was tried.
        until("the next one answers", || get(port).is_ok_and(|answer| answer.generation >= generation));
    }
    assert_eq!(load.stop().failures, [].into());
    sandbox.take_down(&address);
}

#[test]
fn a_listener_that_comes_and_goes_in_a_new_server_is_nobodys_address() {
    let hosts = ["127.0.0.1", "0.0.0.0", "::1", "::"];
    let name = |host: &str, port: u16| match host {
        "0.0.0.0" | "::" => format!("{port}"),
        "::1" => format!("[::1]:{port}"),
        host => format!("{host}:{port}"),
    };
    for last in hosts {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let at: SocketAddr = match last {
            "::1" => format!("[::1]:{port}").parse().unwrap(),
            _ => ([127, 0, 0, 1], port).into(),
        };
        let mut before = None;
        for first in hosts {
            let load = before.map(|_| Load::to(at, Duration::from_millis(2)));
            swapped(&sandbox, &odd("free_port", port, &[first, last]));
            let now = get_from(at).unwrap();
            assert_eq!(sandbox.pidfile(&name(last, port)), Some(now.pid), "{first} {last}: {:?}", sandbox.files());
            assert_eq!(sandbox.files().iter().filter(|name| name.ends_with(".pid")).count(), 1, "{first} {last}");
            if let Some(load) = load {
                until("the new one is seen", || get_from(at).is_ok_and(|answer| Some(answer.pid) != before));
                let seen = load.stop();
                let lost = seen.failures.keys().filter(|failure| **failure != common::Failure::Resent).count();
                assert_eq!(lost, 0, "{first} {last}: {seen:?}");
            }
            before = Some(now.pid);
        }
        let (status, log) = sandbox.run(["--takedown", &format!(":{port}")]);
        assert_eq!(status, 0, "{log}");
        sandbox.assert_clean();
    }
}

/// It closes its listener and opens another one again and again, as one that replaces a worker.
#[test]
fn an_old_server_that_moves_keeps_its_connections_while_a_new_one_hangs() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    swapped(&sandbox, &odd("respawns", port, &[]));
    let first = answered_by(port, 1);
    let load = Load::start(port, Duration::from_millis(2));
    let (status, log) = run(&sandbox, &["-d", "--ready-timeout", "4"], &odd("silent", port, &[]));
    assert_eq!(status, 124, "{log}");
    let seen = load.stop();
    // What waits in the queue of a socket that is closed is lost, with and without a swap. Nobody waits for long.
    let only = [common::Failure::Reset, common::Failure::Refused];
    assert!(seen.failures.keys().all(|failure| only.contains(failure)), "{seen:?}");
    assert!(seen.longest_gap < Duration::from_secs(3), "{seen:?}");
    assert_eq!(seen.answers.keys().copied().collect::<Vec<i32>>(), [first.pid]);
    // It still does, but for the moments in which it has no listener, and is replaced.
    until("it answers still", || get(port) == Ok(first));
    swapped(&sandbox, &odd("respawns", port, &[]));
    until("the new one answers", || get(port).is_ok_and(|answer| answer.pid != first.pid));
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

#[test]
fn a_holder_of_a_listener_that_cannot_be_ended_is_waited_for_and_named() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("left out: only root becomes another user");
    }
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    swapped(&sandbox, &odd("keeps_listener", port, &["sh", "-c", "trap '' TERM; exec \"$@\"", "sh"]));
    let first = answered_by(port, 1);
    let load = Load::start(port, Duration::from_millis(2));
    let mut new = sandbox.serverswap(["-d".to_owned()].into_iter().chain(odd("keeps_listener", port, &[])));
    assert_eq!(new.wait(), 0, "{}", new.log());
    // When that has returned nobody is left who could get a connection.
    assert!(!common::alive(first.pid));
    assert_eq!(common::listening(port), 1);
    load.sees(2);
    assert_eq!(load.stop().failures, [].into());
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

#[test]
fn a_probe_that_cannot_arrive_is_told_from_a_server_that_accepts_nothing() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("left out: only root makes network namespaces");
    }
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let server = common::plain_server();
    // A network in which lo is down.
    let inside = |options: &[&str]| {
        let mut command = sandbox.command("unshare");
        command.args(["-n", common::SERVERSWAP, "-d"]).args(options).arg(&server);
        command.args([format!("0.0.0.0:{port}").as_str(), "mute"]);
        let mut running = sandbox.start(command);
        (running.wait(), running.log())
    };
    let (status, log) = inside(&["--ready-timeout", "6"]);
    assert!(status == 124 && log.contains("a probe cannot get there") && log.contains("--no-probe"), "{log}");
    let (status, log) = inside(&["--no-probe"]);
    assert_eq!(status, 0, "{log}");
}

#[test]
fn a_server_of_two_devices_is_two_places_and_each_is_asked() {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root || Command::new("ip").arg("-V").output().is_err() {
        return eprintln!("left out: only root makes devices, with ip of iproute2");
    }
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let script = "ip link set lo up; ip link add one type veth peer name two; ip link set one up; exec \"$@\"";
    let inside = |options: &[&str], words: &[String]| {
        let mut command = sandbox.command("unshare");
        command.args(["-n", "sh", "-c", script, "sh", common::SERVERSWAP, "-d"]).args(options).args(words);
        let mut running = sandbox.start(command);
        (running.wait(), running.log())
    };
    // A connection of this machine to itself comes by lo, whatever the address.
    let (status, log) = inside(&["--ready-timeout", "6"], &odd("devices", port, &["lo", "one"]));
    assert!(status == 124 && log.contains("no probe of this machine") && log.contains("--no-probe"), "{log}");
    let (status, log) = inside(&["--ready-timeout", "6"], &odd("devices", port, &["lo", "mute"]));
    assert!(status == 124 && log.contains("accepts nothing"), "{log}");
    let (status, log) = inside(&[], &odd("devices", port, &["lo"]));
    assert_eq!(status, 0, "{log}");
}
