//! One run directory that is seen from several network and pid namespaces (namespaces(7)).

mod common;

use common::{SERVERSWAP, Sandbox, alive, children, get, kill, plain_server, until};
use nix::libc;
use std::process::Command;

/// A network namespace with its loopback device up, until this value is dropped.
struct Network(String);

impl Network {
    fn new(name: &str) -> Option<Network> {
        let network = Network(format!("ssw{name}{}", std::process::id()));
        let ip = |words: &[&str]| Command::new("ip").args(words).output().is_ok_and(|output| output.status.success());
        let made = ip(&["netns", "add", &network.0]) && ip(&["-n", &network.0, "link", "set", "lo", "up"]);
        if !made {
            eprintln!("left out: no network namespace may be made here");
        }
        made.then_some(network)
    }

    /// A command in it and in the sandbox.
    fn command(&self, sandbox: &Sandbox, program: &str) -> Command {
        let mut command = sandbox.command("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    /// Runs serverswap in it: status, output.
    fn run(&self, sandbox: &Sandbox, words: &[&str]) -> (i32, String) {
        let mut command = self.command(sandbox, SERVERSWAP);
        command.args(words);
        let mut running = sandbox.start(command);
        (running.wait(), running.log())
    }

    /// The pid that answers there.
    fn get(&self, sandbox: &Sandbox, port: u16) -> Option<i32> {
        let script = format!(
            "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{port}/', timeout=5).read().decode())"
        );
        let output = self.command(sandbox, "python3").args(["-c", &script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1)?.parse().ok()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn deployed(result: (i32, String)) {
    assert_eq!(result.0, 0, "{}", result.1);
}

/// Each has its own `:PORT`, swaps it and takes it down, and touches no other.
#[test]
fn servers_of_two_networks_have_the_same_port_in_one_run_directory() {
    let Some(network) = Network::new("a") else { return };
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let server = plain_server();
    let command = ["-d", server.to_str().unwrap(), &address, "mute"];
    deployed(sandbox.run(command));
    let first = get(port).unwrap().pid;
    let files = sandbox.files();
    for _ in 0..2 {
        let before = network.get(&sandbox, port);
        deployed(network.run(&sandbox, &command));
        let there = network.get(&sandbox, port);
        assert!(there.is_some_and(alive) && there != before, "{there:?}, before {before:?}");
        assert_eq!(get(port).unwrap().pid, first);
        // All that was there still is.
        let now = sandbox.files();
        assert!(files.iter().all(|name| now.contains(name)), "{files:?}, now {now:?}");
        assert_eq!(sandbox.pidfile(&port.to_string()), Some(first));
    }
    let there = network.get(&sandbox, port);
    deployed(sandbox.run(command));
    assert_ne!(get(port).unwrap().pid, first);
    assert_eq!(network.get(&sandbox, port), there);
    // Each sees its own.
    assert_eq!(sandbox.status().len(), 1);
    let (status, text) = network.run(&sandbox, &["--status", &address]);
    assert!(status == 0 && text.contains(&format!("\t{}\t", there.unwrap())), "{text}");
    let (status, log) = sandbox.run(["--takedown", &address]);
    assert_eq!(status, 0, "{log}");
    assert_eq!(network.get(&sandbox, port), there);
    deployed(network.run(&sandbox, &["--takedown", &address]));
    assert!(!there.is_some_and(alive));
    sandbox.assert_clean();
}

/// It lives where nobody here can reach it, and is no orphan of ours.
#[test]
fn a_server_of_another_network_that_has_lost_its_supervisor_is_left_alone() {
    let Some(network) = Network::new("b") else { return };
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let server = plain_server();
    let command = ["-d", server.to_str().unwrap(), &address, "mute"];
    deployed(network.run(&sandbox, &command));
    let there = network.get(&sandbox, port).unwrap();
    let supervisor: i32 = {
        let (_, text) = network.run(&sandbox, &["--status"]);
        text.split('\t').nth(3).unwrap().parse().unwrap()
    };
    kill(supervisor, libc::SIGKILL);
    until("it has no supervisor", || !alive(supervisor));
    deployed(sandbox.run(command));
    assert!(alive(there));
    assert_eq!(network.get(&sandbox, port), Some(there));
    let (status, log) = sandbox.run(["--takedown", &address]);
    assert_eq!(status, 0, "{log}");
    assert!(alive(there));
    // There it is found, and replaced.
    deployed(network.run(&sandbox, &command));
    assert!(!alive(there));
    deployed(network.run(&sandbox, &["--takedown", &address]));
    sandbox.assert_clean();
}

/// A supervisor that is process 1 of its namespace, and the pid of that seen from here.
fn container(sandbox: &Sandbox, port: u16) -> Option<(common::Running, i32)> {
    let permitted = Command::new("unshare").args(["-npf", "--mount-proc", "true"]).output();
    if !permitted.is_ok_and(|output| output.status.success()) {
        eprintln!("left out: no pid namespace may be made here");
        return None;
    }
    let mut command = sandbox.command("unshare");
    let script = "ip link set lo up; exec \"$@\"";
    command.args(["-npf", "--mount-proc", "sh", "-c", script, "sh", SERVERSWAP]).arg(plain_server());
    command.args([&format!(":{port}"), "mute"]);
    let running = sandbox.start(command);
    running.says("is up");
    let supervisor = children(running.pid())[0];
    Some((running, supervisor))
}

/// What loses its parent in a container becomes a child of process 1, whoever started it.
#[test]
fn process_1_does_not_take_what_others_have_started_in_its_container_for_its_servers() {
    let sandbox = Sandbox::shared();
    let (port, other) = (sandbox.port(), sandbox.port());
    let Some((mut running, supervisor)) = container(&sandbox, port) else { return };
    let mut command = sandbox.command("nsenter");
    command.args(["-t", &supervisor.to_string(), "-p", "-m", "-n", "env", "-i", "PATH=/usr/bin:/bin", "setsid", "-f"]);
    command.args(common::odd("silent", other, &[]));
    assert_eq!(sandbox.start(command).wait(), 0);
    let mut stranger = None;
    until("it is a child of process 1", || {
        let command = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let odd = |pid: &i32| command(pid).contains("odd.py");
        stranger = children(supervisor).into_iter().find(odd);
        stranger.is_some()
    });
    for generation in [2, 3] {
        kill(supervisor, libc::SIGHUP);
        running.says(&format!("is up (generation {generation})"));
        until("the old one has ended", || running.log().matches("was replaced by").count() == generation - 1);
    }
    assert!(alive(stranger.unwrap()), "{}", running.log());
    kill(stranger.unwrap(), libc::SIGKILL);
    kill(supervisor, libc::SIGTERM);
    assert_eq!(running.wait(), 143, "{}", running.log());
    sandbox.assert_clean();
}

/// Each supervisor is process 1, and so is that of the other one; their servers have one pid too.
#[test]
fn servers_of_two_pid_namespaces_have_the_same_pids_in_one_run_directory() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let Some((mut one, first)) = container(&sandbox, port) else { return };
    let before = sandbox.files();
    let (mut other, second) = container(&sandbox, port).unwrap();
    let server = plain_server();
    let command = ["-d", server.to_str().unwrap(), &address, "mute"];
    deployed(sandbox.run(command));
    // A look from here sweeps nothing: none of their pids can be seen.
    assert_eq!(sandbox.status().len(), 1);
    let now = sandbox.files();
    assert!(before.iter().all(|name| now.contains(name)), "{before:?}, now {now:?}");
    assert!(alive(first) && alive(second));
    for (supervisor, generation) in [(first, 2), (second, 2), (first, 3), (second, 3)] {
        kill(supervisor, libc::SIGHUP);
        let running = if supervisor == first { &one } else { &other };
        running.says(&format!("is up (generation {generation})"));
    }
    for (running, supervisor) in [(&mut one, first), (&mut other, second)] {
        kill(supervisor, libc::SIGTERM);
        assert_eq!(running.wait(), 143, "{}", running.log());
        assert!(get(port).is_ok());
    }
    let (status, log) = sandbox.run(["--takedown", &address]);
    assert_eq!(status, 0, "{log}");
    sandbox.assert_clean();
}

/// Its supervisor cannot be asked for, and nothing of it is removed.
#[test]
fn what_a_dead_supervisor_of_another_pid_namespace_left_is_not_swept() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let permitted = Command::new("unshare").args(["-pf", "--mount-proc", "true"]).output();
    if !permitted.is_ok_and(|output| output.status.success()) {
        eprintln!("left out: no pid namespace may be made here");
        return;
    }
    // The namespace lives on with its first process.
    let mut command = sandbox.command("unshare");
    let script = "sleep 0; \"$@\"; : >up; sleep 1000";
    command.args(["-pf", "--mount-proc", "sh", "-c", script, "sh", SERVERSWAP, "-d"]).arg(plain_server());
    let mut namespace = sandbox.start({
        command.args([&address, "mute"]);
        command
    });
    let up = sandbox.path("up");
    until("it is up", || up.exists());
    let server = get(port).unwrap().pid;
    let named = |name: &str| sandbox.processes().into_iter().find(|(_, command)| command.contains(name)).unwrap().0;
    let init = children(namespace.pid())[0];
    let supervisor = children(init).into_iter().find(|pid| children(*pid).len() == 2).unwrap();
    kill(supervisor, libc::SIGKILL);
    until("it has no supervisor", || !alive(supervisor));
    let before = sandbox.files();
    assert!(before.contains(&format!("{server}.server")), "{before:?}");
    assert_eq!(sandbox.status(), Vec::<Vec<String>>::new());
    let other = sandbox.port();
    deployed(sandbox.run(["-d", plain_server().to_str().unwrap(), &format!(":{other}"), "mute"]));
    let (status, log) = sandbox.run(["--takedown", &format!(":{other}")]);
    assert_eq!(status, 0, "{log}");
    assert_eq!(sandbox.files(), before);
    assert!(get(port).is_ok());
    kill(named("sleep 1000"), libc::SIGKILL);
    kill(init, libc::SIGKILL);
    namespace.wait();
}
