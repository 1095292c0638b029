//! Whose a process is: what descends from a server belongs to it, whatever it does to its title or its environment.

mod common;

use common::{SERVERSWAP, Sandbox, alive, answered_by, children, get, kill, plain_server, until};
use nix::libc;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `python3 daemon.py PORT WORDS...`.
fn daemon<'a>(port: &'a str, words: &[&'a str]) -> Vec<&'a str> {
    const DAEMON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/daemon.py");
    ["python3", DAEMON, port].into_iter().chain(words.iter().copied()).collect()
}

/// `serverswap -d COMMAND` with success: what it said, and who answers.
fn deploy(sandbox: &Sandbox, port: u16, command: &[&str]) -> (String, i32) {
    let before = get(port).map(|answer| answer.pid).ok();
    let words: Vec<&str> = ["-d"].iter().chain(command).copied().collect();
    let (status, log) = sandbox.run(&words);
    assert_eq!(status, 0, "{log}");
    let now = get(port).unwrap_or_else(|e| panic!("{e:?}: {log}")).pid;
    assert_ne!(before, Some(now), "{log}");
    // A starter may end at any later moment.
    until("the pidfile names it", || sandbox.pidfile(&port.to_string()) == Some(now));
    (log, now)
}

/// Nothing that was started in the sandbox lives.
fn assert_nobody(sandbox: &Sandbox) {
    until("nothing of it is left", || sandbox.inhabitants().is_empty());
    sandbox.assert_clean();
}

fn take_down(sandbox: &Sandbox, port: u16) {
    let (status, log) = sandbox.run(["--takedown", &format!(":{port}")]);
    assert_eq!(status, 0, "{log}");
    assert!(get(port).is_err());
    assert_nobody(sandbox);
}

/// The pid in a file that a job writes.
fn pid_in(file: &Path) -> i32 {
    let mut pid = None;
    until("the job runs", || {
        pid = std::fs::read_to_string(file).ok().and_then(|text| text.parse().ok());
        pid.is_some()
    });
    pid.unwrap()
}

fn supervisor_of(sandbox: &Sandbox) -> i32 {
    until("there is a server", || !sandbox.status().is_empty());
    sandbox.status()[0][3].parse().unwrap()
}

#[test]
fn a_daemon_that_forks_before_it_listens_is_found_each_time() {
    for late in ["late=0", "late=0.2", "late=4"] {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let number = port.to_string();
        for generation in 1..=3 {
            deploy(&sandbox, port, &daemon(&number, &[late]));
            assert_eq!(get(port).unwrap().generation, generation, "{late}");
        }
        take_down(&sandbox, port);
    }
}

#[test]
fn a_daemon_is_not_called_up_before_it_listens() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let mut running = sandbox.serverswap(daemon(&port.to_string(), &["late=4"]));
    let server = answered_by(port, 1).pid;
    running.says("is up");
    assert!(!running.log().contains("no address so far"), "{}", running.log());
    assert_eq!(running.log().matches("is up").count(), 1, "{}", running.log());
    until("it goes on as the server", || sandbox.pidfile(&port.to_string()) == Some(server));
    take_down(&sandbox, port);
    assert_eq!(running.wait(), 0, "{}", running.log());
}

/// As process 1 it is the parent of everything that loses its own, with or without a subreaper.
#[test]
fn a_daemon_of_process_1_is_found_each_time() {
    if !may("unshare", &["-pf", "--mount-proc", "true"]) {
        return;
    }
    for late in ["late=0", "late=0.2", "late=4"] {
        for wipe in ["wipe", "late=0"] {
            let sandbox = Sandbox::shared();
            let port = sandbox.port();
            let number = port.to_string();
            let mut command = sandbox.command("unshare");
            command.args(["-pf", "--mount-proc", SERVERSWAP]).args(daemon(&number, &[wipe, late]));
            let mut running = sandbox.start(command);
            answered_by(port, 1);
            running.says("is up");
            assert!(!running.log().contains("no address so far"), "{}", running.log());
            let [supervisor] = children(running.pid())[..] else { panic!() };
            for generation in [2, 3] {
                kill(supervisor, libc::SIGHUP);
                answered_by(port, generation);
                running.says(&format!("is up (generation {generation})"));
            }
            kill(supervisor, libc::SIGTERM);
            running.wait();
            assert!(get(port).is_err());
            assert_nobody(&sandbox);
        }
    }
}

#[test]
fn a_daemon_that_writes_over_its_environment_is_swapped_each_time() {
    for words in [["wipe", "late=0"], ["wipe", "first"], ["wipe", "late=0.2"]] {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let number = port.to_string();
        for generation in 1..=4 {
            let (log, _) = deploy(&sandbox, port, &daemon(&number, &words));
            assert!(!log.contains("did not start"), "{log}");
            assert_eq!(get(port).unwrap().generation, generation);
        }
        take_down(&sandbox, port);
    }
}

#[test]
fn a_daemon_that_writes_over_its_environment_is_reloaded_each_time() {
    for words in [["wipe", "late=0"], ["wipe", "first"]] {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let mut running = sandbox.serverswap(daemon(&port.to_string(), &words));
        answered_by(port, 1);
        running.says("is up");
        for generation in 2..=4 {
            let (status, log) = sandbox.run(["--reload", &format!(":{port}")]);
            assert_eq!(status, 0, "{log}");
            assert_eq!(get(port).unwrap().generation, generation);
            until("the old one is gone", || sandbox.status().len() == 1);
        }
        take_down(&sandbox, port);
        assert_eq!(running.wait(), 0, "{}", running.log());
    }
}

/// It forks, and nothing of it lives on or answers.
#[test]
fn a_daemon_that_does_not_come_up_is_killed_with_all_of_it() {
    for words in [["wipe", "mute"], ["wipe", "deaf"], ["first", "deaf"]] {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let number = port.to_string();
        let mut old = sandbox.serverswap(daemon(&number, &["foreground"]));
        let first = answered_by(port, 1).pid;
        old.says("is up");
        let before = sandbox.inhabitants().len();
        let command = daemon(&number, &words);
        let words = ["-d", "--ready-timeout", "2"].iter().chain(&command).copied();
        let (status, log) = sandbox.run(words.collect::<Vec<&str>>());
        assert_eq!(status, 124, "{log}");
        until("nothing of the new one is left", || sandbox.inhabitants().len() == before);
        (0..20).for_each(|_| assert_eq!(get(port).unwrap().pid, first));
        // And in a reload, where both have one supervisor.
        assert_eq!(sandbox.status().len(), 1);
        take_down(&sandbox, port);
        assert_eq!(old.wait(), 0, "{}", old.log());
    }
}

#[test]
fn a_daemon_that_writes_over_its_environment_replaces_a_server_in_the_foreground() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let number = port.to_string();
    let mut old = sandbox.serverswap(daemon(&number, &["foreground"]));
    answered_by(port, 1);
    old.says("is up");
    let (_, new) = deploy(&sandbox, port, &daemon(&number, &["wipe", "first"]));
    assert_eq!(old.wait(), 0, "{}", old.log());
    (0..20).for_each(|_| assert_eq!(get(port).unwrap().pid, new));
    take_down(&sandbox, port);
}

/// The supervisor of each is killed, and the next serverswap replaces what it left.
#[test]
fn a_daemon_that_writes_over_its_environment_and_has_lost_its_supervisor_is_replaced() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let number = port.to_string();
    for words in [["wipe", "late=0"], ["wipe", "first"], ["wipe", "late=0"]] {
        let (log, _) = deploy(&sandbox, port, &daemon(&number, &words));
        assert!(!log.contains("did not start"), "{log}");
        let supervisor = supervisor_of(&sandbox);
        kill(supervisor, libc::SIGKILL);
        until("it has no supervisor", || !alive(supervisor));
    }
    let (status, log) = sandbox.run(["--takedown", &format!(":{port}")]);
    assert_eq!(status, 0, "{log}");
    assert_nobody(&sandbox);
}

#[test]
fn a_server_with_an_empty_environment_is_swapped_each_time() {
    let python = which("python3");
    for words in [&["foreground"][..], &["late=0"], &["first"]] {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let number = port.to_string();
        let mut command = daemon(&number, words);
        command[0] = python.to_str().unwrap();
        let command: Vec<&str> = ["env", "-i"].iter().chain(&command).copied().collect();
        for _ in 1..=3 {
            let (log, _) = deploy(&sandbox, port, &command);
            assert!(!log.contains("did not start"), "{log}");
        }
        take_down(&sandbox, port);
    }
}

/// What it started in its own session goes with it; so does either when all is taken down.
#[test]
fn a_job_in_a_session_of_its_own_lives_on_when_its_server_is_replaced() {
    for how in ["foreground", "first", "wipe"] {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let number = port.to_string();
        let file = |name: &str| sandbox.path(name);
        let words = |name: &str| {
            ["session", "helper", "group"].map(|kind| format!("{kind}={}", file(&format!("{kind}{name}")).display()))
        };
        let (one, two) = (words("1"), words("2"));
        deploy(&sandbox, port, &daemon(&number, &[how, &one[0], &one[1], &one[2]]));
        let [job, helper, part] = ["session1", "helper1", "group1"].map(|name| pid_in(&file(name)));
        deploy(&sandbox, port, &daemon(&number, &[how, &two[0], &two[1], &two[2]]));
        until("what belonged to the old one is gone", || !alive(part));
        let pids = ["session2", "helper2", "group2"].map(|name| pid_in(&file(name)));
        assert!(alive(job) && alive(helper), "{how}");
        let (status, log) = sandbox.run(["--takedown", &format!(":{port}")]);
        assert_eq!(status, 0, "{log}");
        until("nothing of the new one is left", || !pids.into_iter().any(alive));
        // Nobody's any more.
        assert!(alive(job) && alive(helper), "{how}");
        [job, helper].into_iter().for_each(|pid| kill(pid, libc::SIGKILL));
        assert_nobody(&sandbox);
    }
}

#[test]
fn a_job_in_a_session_of_its_own_lives_on_when_its_server_is_reloaded() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let file = sandbox.path("job");
    let job = format!("helper={}", file.display());
    let mut running = sandbox.serverswap(daemon(&port.to_string(), &["first", "wipe", &job]));
    answered_by(port, 1);
    running.says("is up");
    let first = pid_in(&file);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(sandbox.run(["--reload", &format!(":{port}")]).0, 0);
    let second = pid_in(&file);
    assert!(alive(first));
    let (status, log) = sandbox.run(["--takedown", &format!(":{port}")]);
    assert_eq!(status, 0, "{log}");
    assert_eq!(running.wait(), 0, "{}", running.log());
    until("the job of the second is gone", || !alive(second));
    assert!(alive(first));
    kill(first, libc::SIGKILL);
    assert_nobody(&sandbox);
}

/// It has a session and an environment of its own, and outlives the rest of the server.
#[test]
fn a_holder_of_the_listener_goes_with_its_server() {
    for (how, is_orphan) in [("foreground", false), ("wipe", false), ("foreground", true), ("wipe", true)] {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let number = port.to_string();
        let file = sandbox.path("holder");
        let keeps = format!("keeps={}", file.display());
        deploy(&sandbox, port, &daemon(&number, &[how, &keeps]));
        let holder = pid_in(&file);
        if is_orphan {
            let supervisor = supervisor_of(&sandbox);
            kill(supervisor, libc::SIGKILL);
            until("it has no supervisor", || !alive(supervisor));
        }
        let (log, new) = deploy(&sandbox, port, &daemon(&number, &[how]));
        assert!(!alive(holder), "{how}: {log}");
        (0..20).for_each(|_| assert_eq!(get(port).unwrap().pid, new));
        take_down(&sandbox, port);
    }
}

/// What a shell started before it executed serverswap is a child of the supervisor, and none of the server's.
#[test]
fn a_child_from_before_the_start_gets_no_signal() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let (helper, grandchild) = (sandbox.path("helper"), sandbox.path("grandchild"));
    // The second one is left to the supervisor only when its parent has ended.
    let script = format!(
        "sh -c 'sleep 1000 & echo $! >{}; until [ -e go ]; do sleep 0.01; done' &
         sleep 1000 & echo $! >{}; exec \"$@\"",
        grandchild.display(),
        helper.display()
    );
    let mut command = sandbox.command("sh");
    command.args(["-c", &script, "sh", SERVERSWAP]).args(daemon(&port.to_string(), &["wipe", "first"]));
    let mut running = sandbox.start(command);
    answered_by(port, 1);
    running.says("is up");
    sandbox.file("go", "");
    let number = |file: &PathBuf| std::fs::read_to_string(file).unwrap().trim().parse::<i32>().unwrap();
    let pids = [number(&helper), number(&grandchild)];
    until("both are children of the supervisor", || pids.iter().all(|pid| children(running.pid()).contains(pid)));
    let (status, log) = sandbox.run(["--takedown", &format!(":{port}")]);
    assert_eq!(status, 0, "{log}");
    assert_eq!(running.wait(), 0, "{}", running.log());
    assert!(pids.into_iter().all(alive));
    pids.into_iter().for_each(|pid| kill(pid, libc::SIGKILL));
    assert_nobody(&sandbox);
}

/// serverswap leads the group of the job, in which the others are.
#[test]
fn the_others_of_a_pipeline_on_a_terminal_live_when_a_supervisor_is_killed_before_the_switch() {
    let sandbox = Sandbox::shared();
    let (keyboard, screen) = common::pty();
    let (gate, hold) = sandbox.gate("before-ready");
    let server = format!("{} :{} {hold}", plain_server().display(), sandbox.port());
    let mut command = sandbox.command("sh");
    let line = format!("{SERVERSWAP} sh -c '{server}; true' | sh -c 'echo $$ >consumer; exec sleep 1000'; read line");
    // A shell with job control, as a person has it.
    command.args(["-mc", &line]).stdin(Stdio::from(screen));
    common::controls_terminal(&mut command);
    let mut shell = sandbox.start(command);
    gate.reached();
    let consumer = sandbox.path("consumer");
    until("the consumer runs", || std::fs::read_to_string(&consumer).is_ok_and(|text| text.ends_with('\n')));
    let consumer: i32 = std::fs::read_to_string(&consumer).unwrap().trim().parse().unwrap();
    kill(supervisor_of(&sandbox), libc::SIGKILL);
    until("only the shell and the consumer are left", || sandbox.processes().len() == 2);
    assert!(alive(consumer));
    kill(consumer, libc::SIGKILL);
    drop(keyboard);
    shell.wait();
}

/// In each place of a pipeline, with and without a terminal: it is taken down, and the others go on.
#[test]
fn the_others_of_a_pipeline_get_no_signal() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let server = daemon(&port.to_string(), &["foreground", "wipe"]).join(" ");
    let (keyboard, screen) = common::pty();
    for job_control in [true, false] {
        let mut command = sandbox.command("sh");
        let line = format!(
            "sh -c 'echo $$ >producer; exec sleep 1000' | {SERVERSWAP} {server} |
             sh -c 'echo $$ >consumer; exec sleep 1000'; read line"
        );
        command.args([if job_control { "-mc" } else { "-c" }, &line]);
        if job_control {
            command.stdin(Stdio::from(screen.try_clone().unwrap()));
            common::controls_terminal(&mut command);
        }
        let mut shell = sandbox.start(command);
        answered_by(port, 1);
        let pids = ["producer", "consumer"].map(|name| {
            let file = sandbox.path(name);
            let mut pid = None;
            until("it runs", || {
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                pid = text.strip_suffix('\n').map(|pid| pid.parse::<i32>().unwrap());
                pid.is_some()
            });
            std::fs::remove_file(&file).unwrap();
            pid.unwrap()
        });
        until("it is up", || sandbox.pidfile(&port.to_string()).is_some());
        let (status, log) = sandbox.run(["--takedown", &format!(":{port}")]);
        assert_eq!(status, 0, "{log}");
        until("only the others are left", || sandbox.processes().len() == 3);
        assert!(pids.into_iter().all(alive));
        pids.into_iter().for_each(|pid| kill(pid, libc::SIGKILL));
        if job_control {
            kill(shell.pid(), libc::SIGKILL);
        }
        shell.wait();
    }
    drop(keyboard);
}

#[test]
fn nginx_with_its_own_daemon_is_swapped_each_time() {
    let Some(nginx) = installed("nginx") else { return };
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let script = format!(
        "config=$PWD/nginx$SERVERSWAP_GENERATION.conf
         sed \"s/@DAEMON@/on/; s/@LISTEN@/{port}/; s/@GENERATION@/$SERVERSWAP_GENERATION/\" {} >$config
         exec {} -p $PWD -c $config -e stderr",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/nginx.conf.in"),
        nginx.display()
    );
    for generation in 1..=3 {
        let (status, log) = sandbox.run(["-d", "--stop-signal", "QUIT", "sh", "-c", &script]);
        assert!(status == 0 && !log.contains("did not start"), "{status}: {log}");
        assert_eq!(get(port).unwrap().generation, generation, "{log}");
    }
    take_down(&sandbox, port);
}

#[test]
fn redis_as_a_daemon_is_swapped_each_time() {
    let Some(redis) = installed("redis-server") else { return };
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let number = port.to_string();
    let mut last = None;
    for _ in 1..=3 {
        let redis = redis.to_str().unwrap();
        let command = [redis, "--port", &number, "--daemonize", "yes", "--save", "", "--bind", "127.0.0.1"];
        let words: Vec<&str> = ["-d"].into_iter().chain(command).collect();
        let (status, log) = sandbox.run(words);
        assert!(status == 0 && !log.contains("did not start"), "{status}: {log}");
        let mut now = None;
        until("the pidfile names it", || {
            now = sandbox.pidfile(&format!("127.0.0.1:{port}"));
            now.is_some_and(alive)
        });
        assert_ne!(now, last, "{log}");
        last = now;
    }
    let (status, log) = sandbox.run(["--takedown", &format!("127.0.0.1:{port}")]);
    assert_eq!(status, 0, "{log}");
    assert_nobody(&sandbox);
}

fn which(program: &str) -> PathBuf {
    installed(program).unwrap_or_else(|| panic!("{program} is needed"))
}

/// Where a program is, also where users who are not root do not look.
fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let found = places.map(|dir| dir.join(program)).find(|file| file.is_file());
    if found.is_none() {
        eprintln!("left out: {program} is not installed");
    }
    found
}

/// Whether the machine allows this command, with a word where it does not.
fn may(program: &str, arguments: &[&str]) -> bool {
    let allowed = Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success());
    if !allowed {
        eprintln!("left out: {program} {} is not allowed here", arguments.join(" "));
    }
    allowed
}
