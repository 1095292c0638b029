//! Swaps of real servers, at least three in a row: who answers, and what is left afterwards.

mod common;

use common::{Answer, Failure, Load, Running, Sandbox, alive, answered_by, get, get_from, plain_server, until};
use std::path::Path;
use std::time::Duration;

/// A file beside this one.
fn server(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(name).to_str().unwrap().to_owned()
}

/// A request to any address.
fn ask(address: &str) -> Result<Answer, Failure> {
    get_from(address.parse().unwrap())
}

/// Swaps a command in the foreground three times under load: each generation takes over, in order, the
/// one before ends with 0 and leaves nothing. `main`: the process that answers is the one that was started.
fn three_swaps(sandbox: &Sandbox, port: u16, main: bool, command: &[&str]) {
    let mut before = sandbox.serverswap(command);
    let mut last = answered_by(port, 1);
    // Whoever comes earlier cannot know which generation it will be.
    before.says("is up");
    let load = Load::start(port, Duration::from_millis(2));
    load.sees(1);
    for generation in 2..=4 {
        let after = sandbox.serverswap(command);
        let answer = answered_by(port, generation);
        assert_ne!(answer.pid, last.pid);
        assert_eq!(before.wait(), 0, "{}", before.log());
        until("the old server is gone", || !alive(last.pid));
        // That of a daemon follows when its starter has ended.
        let pid = || sandbox.pidfile(&port.to_string());
        until("the pidfile names the new server", || pid().is_some_and(alive) && (pid() == Some(answer.pid)) == main);
        load.sees(generation);
        after.says("is up");
        (before, last) = (after, answer);
    }
    let seen = load.stop();
    assert_eq!(seen.generations, [1, 2, 3, 4], "{seen:?}");
    assert!(
        !seen.failures.contains_key(&Failure::TimedOut) && !seen.failures.contains_key(&Failure::Other),
        "{seen:?}"
    );
    sandbox.take_down(&format!(":{port}"));
    assert_eq!(before.wait(), 0, "{}", before.log());
    assert!(!alive(last.pid));
}

/// The same with `--detach`: once it returns, the new server answers and the old one is gone.
fn three_detached_swaps(sandbox: &Sandbox, port: u16, command: &[&str]) {
    let words: Vec<&str> = ["-d"].iter().chain(command).copied().collect();
    let mut last: Option<Answer> = None;
    for generation in 1..=4 {
        let (status, log) = sandbox.run(&words);
        assert_eq!(status, 0, "{log}");
        let answer = get(port).unwrap();
        assert_eq!(answer.generation, generation);
        assert!(last.is_none_or(|last| !alive(last.pid)));
        last = Some(answer);
    }
    sandbox.take_down(&format!(":{port}"));
}

#[test]
fn a_rust_server_with_takedown() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let plain = plain_server();
    let command = [plain.to_str().unwrap(), &format!(":{port}"), "takedown"];
    three_swaps(&sandbox, port, true, &command);
    three_detached_swaps(&sandbox, port, &command);
}

#[test]
fn a_rust_server_that_is_signalled() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let plain = plain_server();
    let command = [plain.to_str().unwrap(), &format!(":{port}")];
    three_swaps(&sandbox, port, true, &command);
    three_detached_swaps(&sandbox, port, &command);
}

#[test]
fn a_rust_server_that_does_not_listen_to_signals() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let server = plain_server();
    let command = ["--kill-after", "0.1", server.to_str().unwrap(), &format!(":{port}"), "stubborn"];
    three_swaps(&sandbox, port, true, &command);
    three_detached_swaps(&sandbox, port, &command);
}

#[test]
fn the_classic_server_in_node() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let command = ["node", &server("client.js"), &format!(":{port}"), "takedown"];
    three_swaps(&sandbox, port, true, &command);
    three_detached_swaps(&sandbox, port, &command);
}

#[test]
fn a_script_without_its_interpreter() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    three_swaps(&sandbox, port, true, &[&server("client.js"), &format!(":{port}"), "takedown"]);
}

#[test]
fn a_node_server_without_takedown() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    three_swaps(&sandbox, port, true, &["node", &server("client.js"), &format!(":{port}")]);
}

#[test]
fn a_node_server_with_raw_lines() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    three_swaps(&sandbox, port, true, &["node", &server("raw.js"), &format!(":{port}"), "takedown"]);
    three_swaps(&sandbox, port, true, &["node", &server("raw.js"), &format!(":{port}")]);
}

#[test]
fn a_python_server_with_raw_lines() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    three_swaps(&sandbox, port, true, &["python3", &server("raw.py"), &port.to_string(), "takedown"]);
    three_swaps(&sandbox, port, true, &["python3", &server("raw.py"), &port.to_string()]);
}

#[test]
fn a_server_behind_a_shell_script() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let files = sandbox.path("");
    let command = [&*server("wrapper.sh"), &port.to_string(), files.to_str().unwrap()];
    three_swaps(&sandbox, port, true, &command);
    three_detached_swaps(&sandbox, port, &command);
}

#[test]
fn a_server_behind_npm_start() {
    let sandbox = Sandbox::new();
    for flag in ["takedown", ""] {
        let port = sandbox.port();
        let package = format!(r#"{{"scripts": {{"start": "node {} :{port} {flag}"}}}}"#, server("client.js"));
        sandbox.file("package.json", &package);
        three_swaps(&sandbox, port, false, &["npm", "--silent", "start"]);
    }
}

#[test]
fn a_server_behind_a_shell_that_closes_the_channel() {
    let sandbox = Sandbox::new();
    for flag in ["takedown", ""] {
        let port = sandbox.port();
        // `true` keeps the shell from making way for node.
        let line = format!("exec 3>&- 4>&- 5>&- 6>&-; node {} :{port} {flag}; true", server("client.js"));
        three_swaps(&sandbox, port, false, &["sh", "-c", &line]);
    }
}

#[test]
fn a_server_that_becomes_a_daemon() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    three_swaps(&sandbox, port, true, &["python3", &server("raw.py"), &port.to_string(), "daemon", "takedown"]);
    three_swaps(&sandbox, port, true, &["python3", &server("raw.py"), &port.to_string(), "daemon"]);
}

/// A staggered deploy: each address changes hands when the new server is ready for it.
#[test]
fn two_addresses_one_after_the_other() {
    let sandbox = Sandbox::new();
    let [first, second] = [sandbox.port(), sandbox.port()];
    let client = server("client.js");
    let addresses = [first, second].map(|port| format!(":{port}"));
    let mut before: Option<Running> = None;
    for generation in 1..=4 {
        let (gate, at_second) = sandbox.gate("second");
        let after = sandbox.serverswap(["node", &client, &addresses[0], &addresses[1], "takedown", &at_second]);
        let answer = answered_by(first, generation);
        gate.reached();
        match generation {
            1 => assert_eq!(get(second), Err(Failure::Refused)),
            _ => assert_eq!(get(second).map(|answer| answer.generation), Ok(generation - 1)),
        }
        assert!(before.as_mut().is_none_or(|before| !before.ended()));
        gate.open();
        assert_eq!(answered_by(second, generation), answer);
        assert!(before.is_none_or(|mut before| before.wait() == 0));
        for port in [first, second] {
            assert_eq!(sandbox.pidfile(&port.to_string()), Some(answer.pid));
        }
        before = Some(after);
    }
    assert_eq!(sandbox.run(["--takedown", &addresses[0], &addresses[1]]).0, 0);
    sandbox.assert_clean();
}

/// One that takes no TAKEDOWN is told to go when the new one is ready for all of its addresses.
#[test]
fn two_addresses_of_a_server_that_is_signalled() {
    let sandbox = Sandbox::new();
    let [first, second] = [sandbox.port(), sandbox.port()];
    let addresses = [first, second].map(|port| format!(":{port}"));
    let mut old = sandbox.serverswap(["node", &server("client.js"), &addresses[0], &addresses[1]]);
    let mut last = answered_by(first, 1);
    assert_eq!(answered_by(second, 1), last);
    old.says("is up");
    for generation in 2..=4 {
        let (gate, at_second) = sandbox.gate("second");
        let new = sandbox.serverswap(["node", &server("client.js"), &addresses[0], &addresses[1], &at_second]);
        gate.reached();
        // READY for one of two: the old one still has both.
        assert_eq!((get(first), get(second)), (Ok(last), Ok(last)));
        gate.open();
        last = answered_by(first, generation);
        assert_eq!(answered_by(second, generation), last);
        assert_eq!(old.wait(), 0, "{}", old.log());
        old = new;
        old.says("is up");
    }
    assert_eq!(sandbox.run(["--takedown", &addresses[0], &addresses[1]]).0, 0);
    sandbox.assert_clean();
}

/// A new server that takes fewer addresses says UP: the old one goes, and that is warned of.
#[test]
fn an_abandoned_address_is_warned_of() {
    let sandbox = Sandbox::new();
    let [first, second] = [sandbox.port(), sandbox.port()];
    let addresses = [first, second].map(|port| format!(":{port}"));
    assert_eq!(sandbox.deploy(&[&addresses[0], &addresses[1]]).0, 0);
    let (status, log) = sandbox.deploy(&[&addresses[0], "up"]);
    assert_eq!(status, 0, "{log}");
    assert!(log.contains(&format!("{}: warning: ", addresses[1])) && log.contains("abandoned"), "{log}");
    assert_eq!(get(first).unwrap().generation, 2);
    assert_eq!(get(second), Err(Failure::Refused));
    assert_eq!(sandbox.pidfile(&second.to_string()), None);
    sandbox.take_down(&addresses[0]);
}

#[test]
fn one_interface_and_all_of_them_are_the_same_address_to_a_swap() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let local = format!("127.0.0.1:{port}");
    for (generation, address) in (1..).zip([&local, &format!(":{port}"), &local, &format!("0.0.0.0:{port}")]) {
        let (status, log) = sandbox.deploy(&[address, "takedown"]);
        assert_eq!(status, 0, "{log}");
        assert_eq!(ask(&local).unwrap().generation, generation);
        // That of the old one goes with its supervisor.
        let pidfiles = || sandbox.files().into_iter().filter(|name| name.ends_with(".pid")).count();
        until("there is one pidfile", || pidfiles() == 1);
    }
    // Two interfaces are two addresses.
    sandbox.take_down(&format!(":{port}"));
    let six = format!("[::1]:{port}");
    assert_eq!(sandbox.deploy(&[&local]).0, 0);
    assert_eq!(sandbox.deploy(&[&six]).0, 0);
    assert_ne!(ask(&local).unwrap().pid, ask(&six).unwrap().pid);
    assert_eq!(sandbox.run(["--takedown", &local, &six]).0, 0);
    sandbox.assert_clean();
}

/// In plain order a word is needed, even where old and new can listen together by an option of their own.
#[test]
fn a_server_that_shares_its_port_by_itself_replaces_nobody_without_a_word() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    let words = ["-d", "python3", &server("unmodified.py"), &address, "reuseport"];
    assert_eq!(sandbox.run(words).0, 0);
    let first = answered_by(port, 1);
    let (status, log) = sandbox.run(words);
    assert!(status == 124 && log.contains("did not say READY") && log.contains("the old one still serves"), "{log}");
    assert_eq!(common::get(port), Ok(first));
    let (status, log) = sandbox.deploy(&[&address]);
    assert_eq!(status, 0, "{log}");
    assert!(!alive(first.pid));
    sandbox.take_down(&format!(":{port}"));
}

#[test]
fn a_name_that_is_no_port() {
    let sandbox = Sandbox::new();
    for flag in ["takedown", "up"] {
        let mut last = None;
        for generation in 1..=4 {
            let (status, log) = sandbox.deploy(&["Blue/green", flag]);
            assert_eq!(status, 0, "{log}");
            let pid = sandbox.pidfile("Blue%2Fgreen");
            assert!(pid.is_some_and(alive) && pid != last);
            assert!(last.is_none_or(|last| !alive(last)));
            let status = sandbox.status();
            let fields: Vec<&str> = status[0].iter().map(String::as_str).collect();
            assert_eq!(fields[..3], ["Blue/green", &generation.to_string(), &pid.unwrap().to_string()]);
            last = pid;
        }
        sandbox.take_down("Blue/green");
    }
}

/// A server that speaks sd_notify(3): READY=1 is UP.
#[test]
fn a_worker_that_speaks_sd_notify() {
    let sandbox = Sandbox::new();
    let words = ["-d", "python3", &server("notify.py"), "STATUS=at \x1b[31mwork", "READY=1"];
    for _ in 0..3 {
        let (status, log) = sandbox.run(words);
        assert_eq!((status, log.contains(" is up (generation ")), (0, true), "{log}");
    }
    let workers =
        sandbox.processes().into_iter().filter(|(_, command)| !command.contains("serverswap ")).map(|(pid, _)| pid);
    for pid in workers {
        common::kill(pid, nix::libc::SIGTERM);
    }
    sandbox.assert_clean();
}

#[test]
fn a_worker_that_says_nothing_is_not_up_for_who_waits() {
    let sandbox = Sandbox::new();
    let (status, log) = sandbox.run(["-d", "--ready-timeout", "0.2", "sleep", "600"]);
    assert_eq!((status, log.contains("not up in time")), (124, true), "{log}");
    let mut foreground = sandbox.serverswap(["sleep", "600"]);
    foreground.says("is up");
    foreground.signal(nix::libc::SIGTERM);
    assert_eq!(foreground.wait(), 143);
    sandbox.assert_clean();
}

/// The deploy script of the manual.
#[test]
fn a_deploy_script_says_when_the_old_version_is_still_up() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let plain = plain_server();
    let deploy = |words: &str| {
        let line = format!(
            r#""{}" -d {} :{port} {words} || echo "old version still up""#,
            common::SERVERSWAP,
            plain.display()
        );
        let mut command = sandbox.command("sh");
        command.args(["-c", &line]);
        let mut script = sandbox.start(command);
        assert_eq!(script.wait(), 0);
        script.log().contains("old version still up")
    };
    for generation in [1, 2, 3] {
        assert!(!deploy("takedown"));
        assert!(deploy("exit=1") && deploy("fail"));
        assert_eq!(get(port).unwrap().generation, generation);
    }
    sandbox.take_down(&format!(":{port}"));
}

/// For a moment after a successor was killed there is none.
#[test]
fn a_server_whose_pidfile_is_missing_is_reloaded_and_taken_down() {
    common::in_both_orders(|sandbox| {
        let port = sandbox.port();
        let address = format!(":{port}");
        let mut running = sandbox.plain(&[], &[&address, "takedown"]);
        common::answered_by(port, 1);
        running.says("is up");
        for words in [["--reload", &address], ["--takedown", &address]] {
            std::fs::remove_file(sandbox.run_dir().join(format!("{port}.pid"))).unwrap();
            let (status, log) = sandbox.run(words);
            assert_eq!(status, 0, "{log}");
        }
        assert_eq!(running.wait(), 0);
        sandbox.assert_clean();
    });
}

/// Where a port has several servers, it names none of them.
#[test]
fn a_port_with_several_servers_takes_none_of_them_down() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let several = [format!("127.0.0.1:{port}"), format!("127.0.0.2:{port}")];
    for address in &several {
        assert_eq!(sandbox.deploy(&[address]).0, 0);
    }
    for option in ["--takedown", "--reload"] {
        let (status, log) = sandbox.run([option, &format!(":{port}")]);
        assert_eq!(status, 125, "{log}");
        assert!(log.contains("no server"), "{log}");
    }
    assert_eq!(sandbox.status().len(), 2);
    for address in &several {
        assert!(ask(address).is_ok());
    }
    assert_eq!(sandbox.run(["--takedown", &several[0], &several[1]]).0, 0);
}

/// It is told to stop, says that it has let go of the port, and listens on.
#[test]
fn released_by_a_server_that_still_listens_makes_nobody_bind() {
    common::in_both_orders(|sandbox| {
        let port = sandbox.port();
        let address = format!(":{port}");
        let (gate, pipe) = sandbox.gate("pipe");
        let options = ["-v", "--drain", "0", "--kill-after", "2"];
        let (mut old, _) = sandbox.serving(port, &options, &[&address, &pipe, "stubborn"]);
        let load = Load::start(port, Duration::from_millis(2));
        let mut new = sandbox.plain(&["-d"], &[&address]);
        old.says("is told to stop by SIGTERM");
        std::fs::write(&gate.path, format!("RELEASED {address}\n")).unwrap();
        assert_eq!(new.wait(), 0, "{}", new.log());
        old.says("it is killed");
        assert_eq!(old.wait(), 0, "{}", old.log());
        load.sees(2);
        load.stop();
        sandbox.take_down(&address);
    });
}
