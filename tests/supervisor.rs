//! A supervisor among signals, terminals, service managers, and whatever it may find on entry.

mod common;

use common::{
    DEADLINE, Load, Running, SERVERSWAP, Sandbox, alive, answered_by, children, get, kill, plain_server, pty, until,
};
use nix::libc;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A sandbox with a port.
struct Scene {
    sandbox: Sandbox,
    port: u16,
    address: String,
}

impl Scene {
    fn new() -> Scene {
        let sandbox = Sandbox::new();
        let port = sandbox.port();
        Scene { sandbox, port, address: format!(":{port}") }
    }

    /// plain-server in the foreground, up.
    fn up(&self, options: &[&str], flags: &[&str]) -> (Running, i32) {
        let words: Vec<&str> = [&*self.address].iter().chain(flags).copied().collect();
        let running = self.sandbox.plain(options, &words);
        let pid = answered_by(self.port, 1).pid;
        running.says("is up");
        (running, pid)
    }

    /// A server whose command line stays and whose program can be changed.
    fn changing(&self, options: &[&str]) -> Running {
        self.becomes(&[]);
        let program = self.sandbox.path("program");
        let words = options.iter().copied().chain(["sh", program.to_str().unwrap()]);
        let running = self.sandbox.serverswap(words);
        answered_by(self.port, 1);
        running.says("is up");
        running
    }

    fn becomes(&self, flags: &[&str]) {
        let line = format!("exec {} {} {}", plain_server().display(), self.address, flags.join(" "));
        self.becomes_script(&line);
    }

    fn becomes_script(&self, line: &str) {
        self.sandbox.file("program", &format!("echo >>starts\n{line}\n"));
    }

    fn starts(&self) -> usize {
        fs::read_to_string(self.sandbox.path("starts")).unwrap().lines().count()
    }

    fn reload(&self) -> (i32, String) {
        self.sandbox.run(["--reload", &self.address])
    }
}

fn signals_file(sandbox: &Sandbox) -> String {
    format!("signals={}", sandbox.path("signals").display())
}

fn signals(sandbox: &Sandbox) -> String {
    fs::read_to_string(sandbox.path("signals")).unwrap_or_default()
}

#[test]
fn statuses_are_those_of_the_server() {
    let sandbox = Sandbox::new();
    for status in [0, 1, 7, 124, 125, 255] {
        let (code, log) = sandbox.run(["sh", "-c", &format!("exit {status}")]);
        assert_eq!(code, status, "{log}");
        assert!(log.contains(&format!("ended with status {status} before it was up")), "{log}");
    }
    sandbox.assert_clean();
    for signal in [libc::SIGKILL, libc::SIGABRT, libc::SIGTERM, libc::SIGUSR1] {
        let scene = Scene::new();
        let (mut running, pid) = scene.up(&[], &[]);
        kill(pid, signal);
        assert_eq!(running.wait(), 128 + signal);
        assert!(running.log().contains(&format!("server {pid} was ended by SIG")), "{}", running.log());
        scene.sandbox.assert_clean();
    }
}

#[test]
fn term_int_and_quit_stop_the_server() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT] {
        let scene = Scene::new();
        let (mut running, _) = scene.up(&[], &[&signals_file(&scene.sandbox)]);
        running.signal(signal);
        assert_eq!(running.wait(), 128 + libc::SIGTERM);
        assert_eq!(signals(&scene.sandbox), "SIGTERM\n");
        scene.sandbox.assert_clean();

        let scene = Scene::new();
        let (mut running, _) = scene.up(&["--stop-signal", "int"], &[&signals_file(&scene.sandbox)]);
        running.signal(signal);
        assert_eq!(running.wait(), 128 + libc::SIGINT);
        assert_eq!(signals(&scene.sandbox), "SIGINT\n");
        scene.sandbox.assert_clean();

        // It takes TAKEDOWN: no signal.
        let scene = Scene::new();
        let (mut running, _) = scene.up(&[], &["takedown", &signals_file(&scene.sandbox)]);
        running.signal(signal);
        assert_eq!(running.wait(), 0);
        assert_eq!(signals(&scene.sandbox), "");
        scene.sandbox.assert_clean();
    }
}

#[test]
fn a_second_signal_or_the_time_kills_a_server_that_does_not_stop() {
    let scene = Scene::new();
    let (mut running, pid) = scene.up(&[], &["stubborn"]);
    running.signal(libc::SIGTERM);
    until("the supervisor stops it", || scene.sandbox.status().iter().any(|fields| fields[5] == "draining"));
    assert!(alive(pid));
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(), 137);
    scene.sandbox.assert_clean();

    let scene = Scene::new();
    let (mut running, _) = scene.up(&["--kill-after", "0.1"], &["stubborn"]);
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(), 137);
    running.says("did not stop in time (it is killed)");
    scene.sandbox.assert_clean();
}

#[test]
fn kill_by_the_pidfile_does_what_everybody_expects() {
    let scene = Scene::new();
    let (mut running, pid) = scene.up(&[], &[]);
    let mut shell = scene.sandbox.command("sh");
    shell.args(["-c", r#"kill "$(cat run/"$1".pid)""#, "sh", &scene.port.to_string()]);
    assert!(shell.status().unwrap().success());
    assert_eq!(running.wait(), 143);
    assert!(!alive(pid));
    scene.sandbox.assert_clean();
}

#[test]
fn usr1_and_usr2_are_passed_on() {
    let scene = Scene::new();
    let (mut running, _) = scene.up(&[], &[&signals_file(&scene.sandbox)]);
    for (signal, seen) in [(libc::SIGUSR1, "SIGUSR1\n"), (libc::SIGUSR2, "SIGUSR1\nSIGUSR2\n")] {
        running.signal(signal);
        until("the server has the signal", || signals(&scene.sandbox) == seen);
    }
    assert!(!running.ended());
    scene.sandbox.take_down(&scene.address);
    assert_eq!(running.wait(), 0);
}

#[test]
fn a_reload_keeps_the_supervisor_and_a_failing_one_the_old_server() {
    for flags in [&[][..], &["takedown"]] {
        let scene = Scene::new();
        let mut running = scene.changing(&["--ready-timeout", "1"]);
        for generation in 2..=4 {
            scene.becomes(flags);
            let (status, log) = scene.reload();
            assert_eq!(status, 0, "{log}");
            let answer = get(scene.port).unwrap();
            assert_eq!(answer.generation, generation);
            assert_eq!(scene.sandbox.pidfile(&scene.port.to_string()), Some(answer.pid));
            let load = Load::start(scene.port, Duration::from_millis(2));
            for (script, expected) in
                [("exit 3", 3), ("exit 0", 124), ("exec /no/such/program", 127), ("kill -9 $$", 137)]
            {
                scene.becomes_script(script);
                let (status, log) = scene.reload();
                assert_eq!(status, expected, "{script}: {log}");
                assert_eq!(get(scene.port), Ok(answer));
            }
            scene.becomes(&["fail"]);
            assert_eq!(scene.reload().0, 124);
            scene.becomes(&["hang"]);
            let hanging = (generation == 4).then(|| scene.reload().0);
            assert!(hanging.is_none_or(|status| status == 124));
            let seen = load.stop();
            assert_eq!((seen.failures, seen.generations), ([].into(), vec![generation]));
            until("no rest of a failed server is left", || scene.sandbox.processes().len() == 3);
        }
        assert!(!running.ended());
        // Its own status is that of the server it switched to last.
        kill(get(scene.port).unwrap().pid, libc::SIGKILL);
        assert_eq!(running.wait(), 137, "{}", running.log());
        scene.sandbox.assert_clean();
    }
}

/// In plain order the old one is gone before the new one binds: that one's status counts.
#[test]
fn a_reload_that_fails_after_the_takedown_ends_the_supervisor_with_the_status_of_the_new_server() {
    for flags in [&[][..], &["takedown"]] {
        let scene = Scene::new();
        let words: Vec<&str> = ["die"].iter().chain(flags).copied().collect();
        let mut running = scene.changing(&[]);
        scene.becomes(&words);
        let (status, log) = scene.reload();
        assert_eq!(status, 9, "{log}");
        assert_eq!(running.wait(), 9, "{}", running.log());
        running.says(&format!("nothing serves {}", scene.address));
        scene.sandbox.assert_clean();
    }
}

#[test]
fn hups_during_a_swap_become_one_more() {
    let scene = Scene::new();
    let mut running = scene.changing(&[]);
    for generation in [2, 3] {
        running.signal(libc::SIGHUP);
        answered_by(scene.port, generation);
        running.says(&format!("is up (generation {generation})"));
    }
    let (gate, before_ready) = scene.sandbox.gate("before-ready");
    scene.becomes(&[&before_ready]);
    running.signal(libc::SIGHUP);
    gate.reached();
    scene.becomes(&[]);
    for _ in 0..5 {
        running.signal(libc::SIGHUP);
        // Each is heard on its own.
        assert!(!scene.sandbox.status().is_empty());
    }
    gate.open();
    answered_by(scene.port, 5);
    running.says("is up (generation 5)");
    assert_eq!(scene.reload().0, 0);
    assert_eq!(get(scene.port).unwrap().generation, 6);
    assert_eq!(scene.starts(), 6);
    assert!(!running.ended());
    scene.sandbox.take_down(&scene.address);
    assert_eq!(running.wait(), 0);
}

#[test]
fn term_in_a_reload_stops_both() {
    let scene = Scene::new();
    let mut running = scene.changing(&[]);
    let (gate, before_ready) = scene.sandbox.gate("before-ready");
    scene.becomes(&[&before_ready]);
    let mut reload = scene.sandbox.serverswap(["--reload", &scene.address]);
    gate.reached();
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(), 143, "{}", running.log());
    assert_ne!(reload.wait(), 0, "{}", reload.log());
    scene.sandbox.assert_clean();
}

#[test]
fn a_reload_takes_over_from_a_server_that_goes_at_the_same_time() {
    let scene = Scene::new();
    let mut running = scene.changing(&[]);
    let (gate, before_ready) = scene.sandbox.gate("before-ready");
    scene.becomes(&[&before_ready]);
    let mut reload = scene.sandbox.serverswap(["--reload", &scene.address]);
    gate.reached();
    // A rival from outside replaces the server meanwhile.
    let rival = scene.sandbox.deploy(&[&scene.address, "takedown"]);
    assert_eq!(rival.0, 0, "{}", rival.1);
    gate.open();
    assert_eq!(reload.wait(), 0, "{}", reload.log());
    until("one server, its supervisor and the front are left", || scene.sandbox.processes().len() == 3);
    assert!(!running.ended(), "{}", running.log());
    scene.sandbox.take_down(&scene.address);
    assert_eq!(running.wait(), 0);
}

#[test]
fn one_of_several_addresses_is_taken_down_only_from_a_server_that_takes_takedown() {
    let scene = Scene::new();
    let second = scene.sandbox.port();
    let also = format!(":{second}");
    let pidfile = |port: u16| scene.sandbox.pidfile(&port.to_string());
    // Without TAKEDOWN: all or nothing.
    let (mut running, pid) = scene.up(&[], &[&also]);
    let (status, log) = scene.sandbox.run(["--takedown", &scene.address]);
    assert_eq!((status, log.lines().count(), log.contains(&also)), (125, 1, true), "{log}");
    assert!([scene.port, second].iter().all(|&port| get(port).unwrap().pid == pid && pidfile(port) == Some(pid)));
    assert_eq!(scene.sandbox.run(["--takedown", &scene.address, &also]).0, 0);
    assert_eq!(running.wait(), 0);
    scene.sandbox.assert_clean();
    // With it: one, then the other.
    let (mut running, pid) = scene.up(&[], &[&also, "takedown"]);
    assert_eq!(scene.sandbox.run(["--takedown", &scene.address]).0, 0);
    assert!(get(scene.port).is_err());
    until("its pidfile is gone", || pidfile(scene.port).is_none());
    assert_eq!((get(second).unwrap().pid, pidfile(second)), (pid, Some(pid)));
    assert!(!running.ended());
    assert_eq!(scene.sandbox.run(["--takedown", &scene.address]).0, 125);
    // What was let go is free for another one.
    let (status, log) = scene.sandbox.deploy(&[&scene.address]);
    assert_eq!(status, 0, "{log}");
    assert_ne!(get(scene.port).unwrap().pid, pid);
    assert_eq!(scene.sandbox.run(["--takedown", &also]).0, 0);
    assert_eq!(running.wait(), 0);
    scene.sandbox.take_down(&scene.address);
}

#[test]
fn a_waiting_detach_is_cancelled_by_term_before_the_switch() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let scene = Scene::new();
        let (mut old, pid) = scene.up(&[], &[]);
        let (gate, before_ready) = scene.sandbox.gate("before-ready");
        let mut new = scene.sandbox.plain(&["-d"], &[&scene.address, &before_ready]);
        gate.reached();
        new.signal(signal);
        assert_eq!(new.wait(), 143, "{}", new.log());
        assert_eq!(get(scene.port).unwrap().pid, pid);
        assert!(!old.ended());
        scene.sandbox.take_down(&scene.address);
        assert_eq!(old.wait(), 0);
    }
}

#[test]
fn a_waiting_detach_is_not_cancelled_by_sigkill_nor_after_the_switch() {
    let scene = Scene::new();
    let (mut old, _) = scene.up(&[], &[]);
    let (gate, before_ready) = scene.sandbox.gate("before-ready");
    let mut new = scene.sandbox.plain(&["-d"], &[&scene.address, &before_ready, "takedown"]);
    gate.reached();
    new.signal(libc::SIGKILL);
    assert_eq!(new.wait(), 137);
    gate.open();
    answered_by(scene.port, 2);
    assert_eq!(old.wait(), 0);

    let (before_exit, hold) = scene.sandbox.gate("before-exit");
    assert_eq!(scene.sandbox.deploy(&[&scene.address, "takedown", &hold]).0, 0);
    let mut new = scene.sandbox.plain(&["-d"], &[&scene.address]);
    before_exit.reached();
    new.signal(libc::SIGTERM);
    new.says("cannot be called off");
    before_exit.open();
    assert_eq!(new.wait(), 0, "{}", new.log());
    assert_eq!(get(scene.port).unwrap().generation, 4);
    scene.sandbox.take_down(&scene.address);
}

/// A supervisor in the foreground of a terminal of its own.
struct Terminal {
    running: Running,
    keyboard: Option<File>,
}

impl Terminal {
    fn start(scene: &Scene, words: &[&str]) -> Terminal {
        let (keyboard, screen) = pty();
        let mut command = scene.sandbox.command(SERVERSWAP);
        command.arg(plain_server()).arg(&scene.address).args(words).stdin(Stdio::from(screen));
        common::controls_terminal(&mut command);
        let running = scene.sandbox.start(command);
        running.says("is up");
        Terminal { running, keyboard: Some(keyboard) }
    }

    fn types(&mut self, keys: &[u8]) {
        self.keyboard.as_mut().unwrap().write_all(keys).unwrap();
    }
}

#[test]
fn ctrl_c_reaches_the_server_once() {
    for reloads in 0..3 {
        let scene = Scene::new();
        let (gate, before_exit) = scene.sandbox.gate("before-exit");
        let mut terminal = Terminal::start(&scene, &[&signals_file(&scene.sandbox), &before_exit]);
        for _ in 0..reloads {
            let mut reload = scene.sandbox.serverswap(["--reload", &scene.address]);
            gate.reached();
            gate.open();
            assert_eq!(reload.wait(), 0, "{}", reload.log());
        }
        let before = "SIGTERM\n".repeat(reloads);
        terminal.types(b"\x03");
        gate.reached();
        // The supervisor has had it too, and has done all that it does about it.
        until("the supervisor stops it", || scene.sandbox.status().iter().any(|fields| fields[5] == "draining"));
        assert_eq!(signals(&scene.sandbox), format!("{before}SIGINT\n"));
        gate.open();
        assert_eq!(terminal.running.wait(), 130);
        assert_eq!(signals(&scene.sandbox), format!("{before}SIGINT\n"));
        scene.sandbox.assert_clean();
    }
}

/// A service manager, or a shell, may tell all of a group: the front, and the copy that has the server.
#[test]
fn a_signal_to_the_group_of_a_front_stops_its_server_once() {
    for reloads in [1, 2] {
        let scene = Scene::new();
        let (gate, before_exit) = scene.sandbox.gate("before-exit");
        let mut command = scene.sandbox.command(SERVERSWAP);
        command.arg(plain_server()).args([&scene.address, &signals_file(&scene.sandbox), &before_exit]);
        // In a session of its own, as all of the sandbox.
        let mut running = scene.sandbox.start(command);
        running.says("is up");
        for _ in 0..reloads {
            let mut reload = scene.sandbox.serverswap(["--reload", &scene.address]);
            gate.reached();
            gate.open();
            assert_eq!(reload.wait(), 0, "{}", reload.log());
        }
        let server = get(scene.port).unwrap().pid;
        // To the youngest server alone.
        running.signal(libc::SIGUSR1);
        let before = format!("{}SIGUSR1\n", "SIGTERM\n".repeat(reloads));
        until("the server has had it", || signals(&scene.sandbox) == before);
        let group = nix::unistd::Pid::from_raw(running.pid());
        nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGTERM).unwrap();
        gate.reached();
        // What was told twice would be killed.
        let after = format!("{before}SIGTERM\n");
        until("both have told it", || scene.sandbox.status().iter().any(|fields| fields[5] == "draining"));
        let (status, log) = scene.sandbox.run(["--reload", &scene.address]);
        assert!(status != 0 && log.contains("being stopped"), "{status} {log}");
        assert!(alive(server));
        assert_eq!(signals(&scene.sandbox), after);
        gate.open();
        assert_eq!(running.wait(), 143, "{}", running.log());
        scene.sandbox.assert_clean();
    }
}

#[test]
fn a_terminal_that_goes_away_stops_the_server() {
    let scene = Scene::new();
    // The kernel tells the session's leader alone, and the rest when that has gone: the server is told by
    // its stop signal.
    let mut terminal = Terminal::start(&scene, &[&signals_file(&scene.sandbox)]);
    drop(terminal.keyboard.take());
    assert_eq!(terminal.running.wait(), 128 + libc::SIGTERM, "{}", terminal.running.log());
    assert_eq!(signals(&scene.sandbox), "SIGTERM\n");
    scene.sandbox.assert_clean();
    // By hand too: a terminal is a terminal.
    let scene = Scene::new();
    let mut terminal = Terminal::start(&scene, &[]);
    terminal.running.signal(libc::SIGHUP);
    assert_eq!(terminal.running.wait(), 143);
    scene.sandbox.assert_clean();
}

#[test]
fn detached_from_a_terminal() {
    let scene = Scene::new();
    let (mut keyboard, screen) = pty();
    let mut command = scene.sandbox.command(SERVERSWAP);
    let log = scene.sandbox.path("log");
    command
        .args(["-d", "--log"])
        .arg(&log)
        .arg(plain_server())
        .arg(&scene.address)
        .stdin(Stdio::from(screen.try_clone().unwrap()));
    command.stdout(Stdio::from(screen.try_clone().unwrap())).stderr(Stdio::from(screen));
    assert!(command.status().unwrap().success());
    drop(command);
    // Nobody holds the terminal any more.
    let mut shown = String::new();
    let _ = keyboard.read_to_string(&mut shown);
    assert!(shown.contains("is up (generation 1)"), "{shown}");
    for pid in [scene.sandbox.pidfile(&scene.port.to_string()).unwrap(), supervisor_of(&scene.sandbox)] {
        for number in 0..3 {
            let target = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
            let expected = if number == 0 { Path::new("/dev/null") } else { &log };
            assert_eq!(target, expected, "fd {number} of {pid}");
        }
    }
    scene.sandbox.take_down(&scene.address);
}

/// What a service manager hears.
struct Manager(UnixDatagram);

impl Manager {
    fn hears(&self, expected: &str) {
        let mut buffer = [0; 4096];
        let len = self.0.recv(&mut buffer).unwrap_or_else(|e| panic!("{expected}: {e}"));
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        assert!(
            text == expected || (expected.ends_with('=') && text.starts_with(expected)),
            "{text:?}, not {expected:?}"
        );
    }
}

#[test]
fn a_service_manager_is_told() {
    for abstract_name in [false, true] {
        let scene = Scene::new();
        let path = scene.sandbox.path("manager");
        let (name, address) = if abstract_name {
            let name = format!("serverswap-test-{}-{}", std::process::id(), scene.port);
            (format!("@{name}"), SocketAddr::from_abstract_name(name).unwrap())
        } else {
            (path.display().to_string(), SocketAddr::from_pathname(&path).unwrap())
        };
        let manager = Manager(UnixDatagram::bind_addr(&address).unwrap());
        manager.0.set_read_timeout(Some(DEADLINE)).unwrap();
        scene.becomes(&[]);
        let mut command = scene.sandbox.command(SERVERSWAP);
        command.args(["sh", "program"]).env("NOTIFY_SOCKET", &name).env("WATCHDOG_PID", "1");
        let mut running = scene.sandbox.start(command);
        manager.hears("READY=1");
        for generation in [2, 3, 4] {
            running.signal(libc::SIGHUP);
            manager.hears("RELOADING=1\nMONOTONIC_USEC=");
            manager.hears("READY=1");
            assert_eq!(get(scene.port).unwrap().generation, generation);
            running.says(&format!("is up (generation {generation})"));
        }
        scene.becomes_script("exit 1");
        running.signal(libc::SIGHUP);
        manager.hears("RELOADING=1\nMONOTONIC_USEC=");
        manager.hears("READY=1");
        running.signal(libc::SIGTERM);
        manager.hears("STOPPING=1");
        assert_eq!(running.wait(), 143);
        scene.sandbox.assert_clean();

        // What the server says in this language is heard, and passed on where it is for the manager.
        let notify = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/notify.py");
        let mut command = scene.sandbox.command(SERVERSWAP);
        command.args(["-d", "python3", notify.to_str().unwrap()]).env("NOTIFY_SOCKET", &name);
        command.args(["STATUS=half way", "MAINPID=1", "WATCHDOG=1", "STOPPING=0\nWATCHDOG=trigger", "READY=1"]);
        let mut running = scene.sandbox.start(command);
        assert_eq!(running.wait(), 0, "{}", running.log());
        for expected in ["STATUS=half way", "WATCHDOG=1", "WATCHDOG=trigger", "READY=1"] {
            manager.hears(expected);
        }
        let worker = |(_, command): &(i32, String)| !command.contains("serverswap ");
        let pid = scene.sandbox.processes().into_iter().find(worker).unwrap().0;
        kill(pid, libc::SIGTERM);
        scene.sandbox.assert_clean();
    }
}

/// Runs `serverswap plain-server` by another program: what it finds on entry is that one's doing.
fn by(scene: &Scene, program: &str, arguments: &[&str]) -> Running {
    let mut command = scene.sandbox.command(program);
    command.args(arguments).arg(SERVERSWAP).arg(plain_server()).arg(&scene.address);
    scene.sandbox.start(command)
}

/// A field of `/proc/PID/status`, as a number in base 16.
fn mask(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

#[test]
fn oddities_on_entry_are_set_right() {
    let block = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); os.execvp(sys.argv[1], sys.argv[1:])";
    let ignore = "import os, signal, sys; [signal.signal(s, signal.SIG_IGN) for s in range(1, 32) if s not in (1, 9, 19)]; os.execvp(sys.argv[1], sys.argv[1:])";
    let cases: [(&str, &str, &[&str]); 6] = [
        ("standard fds closed", "sh", &["-c", r#"exec "$@" <&- >&- 2>&-"#, "sh"]),
        ("SIGCHLD ignored", "sh", &["-c", r#"trap '' CHLD; exec "$@""#, "sh"]),
        ("all signals blocked", "python3", &["-c", block]),
        ("all signals ignored", "python3", &["-c", ignore]),
        ("fds 3 to 9 taken", "sh", &["-c", r#"exec 3</dev/null 4<&3 5<&3 6<&3 7<&3 8<&3 9<&3; exec "$@""#, "sh"]),
        ("a tight umask", "sh", &["-c", r#"umask 0777; exec "$@""#, "sh"]),
    ];
    for (what, program, arguments) in cases {
        let scene = Scene::new();
        if what.starts_with("a tight") {
            // A run directory that nobody could enter is refused to others than root.
            assert_eq!(scene.sandbox.run(["true"]).0, 0);
        }
        let mut before = by(&scene, program, arguments);
        let mut last = answered_by(scene.port, 1).pid;
        // Not a look: the C library blocks all signals while it starts a thread.
        until("no signal is blocked", || mask(last, "SigBlk") == 0);
        // A Rust program ignores SIGPIPE itself; beyond 31 are those of the C library and real time.
        let ignored = mask(last, "SigIgn") & 0x7fff_ffff;
        assert_eq!(ignored & !(1 << (libc::SIGPIPE - 1)), 0, "{what}");
        for generation in 2..=4 {
            let after = by(&scene, program, arguments);
            let answer = answered_by(scene.port, generation);
            assert_eq!(before.wait(), 0, "{what}: {}", before.log());
            assert!(!alive(last), "{what}");
            (before, last) = (after, answer.pid);
        }
        kill(last, libc::SIGKILL);
        assert_eq!(before.wait(), 137, "{what}: {}", before.log());
        scene.sandbox.assert_clean();
    }
}

#[test]
fn nohup_stays() {
    let scene = Scene::new();
    let mut running = by(&scene, "nohup", &[]);
    let server = answered_by(scene.port, 1).pid;
    running.says("is up");
    for pid in [running.pid(), server] {
        assert_eq!(mask(pid, "SigIgn") & 1, 1, "HUP is ignored by {pid}");
    }
    running.signal(libc::SIGHUP);
    kill(server, libc::SIGHUP);
    // Its order would come after that of the signal.
    assert_eq!(scene.reload().0, 0);
    assert_eq!(get(scene.port).unwrap().generation, 2);
    assert_eq!(mask(get(scene.port).unwrap().pid, "SigIgn") & 1, 1);
    assert!(!running.ended());
    scene.sandbox.take_down(&scene.address);
    assert_eq!(running.wait(), 0);
}

#[test]
fn process_1_of_a_container() {
    let permitted = Command::new("unshare").args(["-pf", "--mount-proc", "true"]).output();
    if !permitted.is_ok_and(|output| output.status.success()) {
        eprintln!("left out: no pid namespace may be made here");
        return;
    }
    let scene = Scene::new();
    // It leaves children behind that only process 1 can reap.
    scene.becomes_script(&format!(
        "(sleep 0 & sleep 0 &)\n(exec setsid sh -c 'sleep 0 & sleep 0 &')\nexec {} {}",
        plain_server().display(),
        scene.address
    ));
    let mut command = scene.sandbox.command("unshare");
    command.args(["-pf", "--mount-proc", SERVERSWAP, "sh", "program"]);
    let mut running = scene.sandbox.start(command);
    answered_by(scene.port, 1);
    running.says("is up");
    let [supervisor] = children(running.pid())[..] else { panic!() };
    for generation in [2, 3, 4] {
        kill(supervisor, libc::SIGHUP);
        answered_by(scene.port, generation);
        running.says(&format!("is up (generation {generation})"));
    }
    until("all but the server and its keeper are reaped", || children(supervisor).len() == 2);
    kill(supervisor, libc::SIGTERM);
    assert_eq!(running.wait(), 143, "{}", running.log());
    scene.sandbox.assert_clean();
}

/// What a server left running, and did not tell anybody of, does not outlive it.
#[test]
fn what_is_left_of_a_server_is_told_to_stop() {
    let scene = Scene::new();
    scene.becomes_script(&format!(
        "sleep 600 &\n(setsid sleep 600 &)\nexec {} {} takedown",
        plain_server().display(),
        scene.address
    ));
    let mut running = scene.sandbox.serverswap(["sh", "program"]);
    answered_by(scene.port, 1);
    running.says("is up");
    scene.sandbox.take_down(&scene.address);
    assert_eq!(running.wait(), 0);
}

#[test]
fn the_control_channel_is_inherited_by_the_server_alone() {
    let scene = Scene::new();
    let (mut running, server) = scene.up(&[], &[]);
    let inode = |pid: i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let text = String::from_utf8_lossy(&environ).into_owned();
        let value = text.split('\0').find_map(|entry| entry.strip_prefix("SERVERSWAP_INODE=")).unwrap().to_owned();
        format!("socket:[{value}]")
    };
    let wanted = inode(server);
    let holds = |pid: &i32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target.to_str() == Some(&wanted))
    };
    let holders = || scene.sandbox.processes().into_iter().map(|(pid, _)| pid).filter(holds).collect::<Vec<i32>>();
    // The keeper closes everything first of all, but may have to wait for its turn.
    until("the keeper has gone", || holders().len() == 1);
    assert_eq!(holders(), [server]);
    scene.sandbox.take_down(&scene.address);
    assert_eq!(running.wait(), 0);
}

#[test]
fn a_reload_replaces_a_worker_too() {
    let sandbox = Sandbox::new();
    let mut running = sandbox.serverswap(["sh", "-c", "echo UP >&$SERVERSWAP_FD; exec sleep 1000"]);
    running.says("(generation 1");
    running.signal(libc::SIGHUP);
    running.says("(generation 2");
    until("the first one is gone", || sandbox.processes().len() == 3);
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(), 143);
    sandbox.assert_clean();
}

#[test]
fn ready_of_sd_notify_comes_after_the_listeners_of_a_server() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let script = format!(
        "import os, socket\n\
         s = socket.create_server(('127.0.0.1', {port}))\n\
         socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\n\
         while True: s.accept()"
    );
    let (status, log) = sandbox.run(["-d", "python3", "-c", &script]);
    assert!(status == 0 && log.contains(&format!("127.0.0.1:{port}: server")), "{log}");
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

/// Its supervisor can look at no process in the moment in which it listens.
#[test]
fn a_server_that_could_not_be_looked_at_is_looked_at_again() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let (gate, ready) = sandbox.gate("before-ready");
    let address = format!("127.0.0.1:{port}");
    let mut running = sandbox.plain(&[], &[&address, &ready, "mute"]);
    gate.reached();
    let mut strace = sandbox.blind(running.pid());
    gate.open();
    answered_by(port, 1);
    let looks = || strace.log().matches("\"/proc\"").count();
    let before = looks();
    until("it was looked at", || looks() > before);
    strace.signal(libc::SIGTERM);
    strace.wait();
    running.says(&format!("{address}: server"));
    sandbox.take_down(&address);
    assert_eq!(running.wait(), 0);
}

/// What becomes the main process has joined the group of the supervisor, that of a script say.
#[test]
fn a_server_in_the_group_of_its_supervisor_takes_nobody_of_it_along() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let daemon = format!(
        "import os, signal, socket\n\
         s = socket.create_server(('127.0.0.1', {port}))\n\
         group = os.getpgid(os.getppid())\n\
         if os.fork(): os._exit(0)\n\
         signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
         os.setpgid(0, group)\n\
         while True: signal.pause()"
    );
    let script = "sleep 1000 & \"$0\" --kill-after 0.5 python3 -c \"$1\"; exit $?";
    let mut command = sandbox.command("sh");
    command.args(["-c", script, SERVERSWAP, &daemon]);
    let mut running = sandbox.start(command);
    running.says("goes on as the server");
    let named = || sandbox.processes().into_iter().find(|(_, command)| command.starts_with("sleep 1000"));
    let (bystander, _) = named().unwrap();
    kill(supervisor_of(&sandbox), libc::SIGTERM);
    running.says("it is killed");
    assert_eq!(running.wait(), 137, "{}", running.log());
    assert!(alive(bystander));
    kill(bystander, libc::SIGKILL);
    sandbox.assert_clean();
}

/// Each of its addresses has a pidfile to be removed, and somebody who stands still has the lock for that.
#[test]
fn a_lock_of_the_run_directory_that_is_held_is_waited_for_once() {
    let sandbox = Sandbox::new();
    let addresses: Vec<String> = (0..20).map(|_| format!("127.0.0.1:{}", sandbox.port())).collect();
    let words: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mut running = sandbox.plain(&[], &words);
    let is_registered = |address: &String| sandbox.pidfile(address).is_some();
    until("it has all its addresses", || addresses.iter().all(is_registered));
    let lock = File::open(sandbox.run_dir().join("lock")).unwrap();
    lock.lock().unwrap();
    running.signal(libc::SIGTERM);
    // Within less than twenty times the patience that somebody has for it.
    assert_eq!(running.wait(), 128 + libc::SIGTERM, "{}", running.log());
    drop(lock);
    assert_eq!(sandbox.run(["true"]).0, 0);
}

/// The supervisor of the only server, as `serverswap --status` says it.
fn supervisor_of(sandbox: &Sandbox) -> i32 {
    until("there is a server", || !sandbox.status().is_empty());
    sandbox.status()[0][3].parse().unwrap()
}

#[test]
fn another_copy_of_serverswap_is_no_part_of_the_server_that_started_it() {
    let sandbox = Sandbox::new();
    let (port, copy) = (sandbox.port(), sandbox.path("copy"));
    common::copy_program(std::path::Path::new(SERVERSWAP), &copy);
    let (server, address) = (plain_server().display().to_string(), format!(":{port}"));
    let hook = format!(
        "(until [ -e go ]; do sleep 0.01; done; exec {} -d {server} {address} takedown >hook 2>&1) &
         exec {server} {address} takedown",
        copy.display()
    );
    let mut old = sandbox.serverswap(["sh", "-c", &hook]);
    let first = answered_by(port, 1).pid;
    sandbox.file("go", "");
    until("the new server answers", || get(port).is_ok_and(|answer| answer.pid != first));
    assert_eq!(old.wait(), 0, "{}", old.log());
    until("only the new server, its supervisor and its keeper are left", || sandbox.processes().len() == 3);
    assert!(get(port).is_ok());
    sandbox.take_down(&address);
}

#[test]
fn an_address_is_taken_down_from_whoever_has_it_by_then() {
    let sandbox = Sandbox::new();
    let script = "echo 'READY x' >&$SERVERSWAP_FD; until [ -e go ]; do sleep 0.01; done; \
                  echo 'READY y' >&$SERVERSWAP_FD; exec sleep 1000";
    sandbox.file("go", "");
    let mut old = sandbox.serverswap(["sh", "-c", script]);
    old.says("is up");
    until("it has both", || sandbox.pidfile("y").is_some());
    fs::remove_file(sandbox.path("go")).unwrap();
    // Staggered: the new one has asked for x and not yet for y, which the old one is asked to take down.
    let mut new = sandbox.serverswap(["sh", "-c", script]);
    until("the new one takes x", || sandbox.pidfile("x") != sandbox.pidfile("y"));
    let mut down = sandbox.serverswap(["--takedown", "y", "x"]);
    let sockets = format!("/proc/{}/fd", down.pid());
    let is_socket =
        |fd: fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    until("it asks", || fs::read_dir(&sockets).unwrap().flatten().any(is_socket));
    sandbox.file("go", "");
    assert_eq!((down.wait(), down.log().matches("taken down").count()), (0, 2), "{}", down.log());
    assert_eq!((old.wait(), new.wait()), (0, 0));
    sandbox.assert_clean();
}

#[test]
fn a_takedown_that_loses_its_supervisor_goes_on() {
    let sandbox = Sandbox::new();
    let address = format!(":{}", sandbox.port());
    let (gate, hold) = sandbox.gate("before-release");
    assert_eq!(sandbox.deploy(&[&address, "takedown", &hold]).0, 0);
    let (server, supervisor) = (sandbox.status()[0][2].parse().unwrap(), supervisor_of(&sandbox));
    let mut down = sandbox.serverswap(["--takedown", &address]);
    gate.reached();
    kill(supervisor, libc::SIGKILL);
    assert_eq!(down.wait(), 0, "{}", down.log());
    assert!(!alive(server));
    sandbox.assert_clean();
}

#[test]
fn one_of_several_addresses_of_an_orphan_is_refused() {
    let sandbox = Sandbox::new();
    let (ports, flag) = ([sandbox.port(), sandbox.port()], "takedown");
    let [first, second] = ports.map(|port| format!(":{port}"));
    assert_eq!(sandbox.deploy(&[&first, &second, flag]).0, 0);
    let supervisor = supervisor_of(&sandbox);
    kill(supervisor, libc::SIGKILL);
    until("the supervisor is gone", || !alive(supervisor));
    let (status, log) = sandbox.run(["--takedown", &first]);
    assert!(status == 125 && log.contains(&format!("also has {second}")), "{log}");
    assert!(ports.iter().all(|port| get(*port).is_ok()));
    let (status, log) = sandbox.run(["--takedown", &first, &second]);
    assert_eq!((status, log.matches("taken down").count()), (0, 2), "{log}");
    sandbox.assert_clean();
}

#[test]
fn a_waiting_detach_leaves_an_ignored_hup_alone() {
    let sandbox = Sandbox::new();
    let address = format!(":{}", sandbox.port());
    let (gate, hold) = sandbox.gate("before-ready");
    let script = format!("trap '' HUP; exec {SERVERSWAP} -d {} {address} takedown {hold}", plain_server().display());
    let mut command = sandbox.command("sh");
    command.args(["-c", &script]);
    let mut waiting = sandbox.start(command);
    gate.reached();
    waiting.signal(libc::SIGHUP);
    gate.open();
    assert_eq!(waiting.wait(), 0, "{}", waiting.log());
    sandbox.take_down(&address);
}

#[test]
fn a_second_term_to_a_waiting_detach_kills() {
    let sandbox = Sandbox::new();
    let address = format!(":{}", sandbox.port());
    let (gate, hold) = sandbox.gate("before-ready");
    let mut waiting = sandbox.plain(&["-d", "--kill-after", "1000"], &[&address, "stubborn", &hold]);
    gate.reached();
    waiting.signal(libc::SIGTERM);
    until("it was told to stop", || sandbox.status().iter().any(|row| row[5] == "draining"));
    waiting.signal(libc::SIGTERM);
    assert_eq!(waiting.wait(), 137, "{}", waiting.log());
    assert!(!waiting.log().contains("cannot be called off"), "{}", waiting.log());
    gate.open();
    sandbox.assert_clean();
}

#[test]
fn a_detach_that_loses_its_supervisor_says_where_to_look() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (gate, hold) = sandbox.gate("before-exit");
    assert_eq!(sandbox.deploy(&[&address, "takedown", &hold]).0, 0);
    let mut waiting = sandbox.plain(&["-d"], &[&address, "takedown"]);
    gate.reached();
    let server = answered_by(port, 2).pid.to_string();
    let rows = sandbox.status();
    let supervisor = rows.iter().find(|row| row[2] == server).unwrap()[3].parse().unwrap();
    waiting.says("is up");
    kill(supervisor, libc::SIGKILL);
    assert_eq!(waiting.wait(), 125);
    assert!(waiting.log().contains("--status tells") && !waiting.log().contains("nothing was"), "{}", waiting.log());
    gate.open();
    until("the old one is gone", || sandbox.status().len() == 1);
    sandbox.take_down(&address);
}

#[test]
fn a_signal_kills_what_is_left_of_a_server() {
    let sandbox = Sandbox::new();
    let script = "(trap '' TERM; : >left; exec sleep 1000) & until [ -e left ]; do sleep 0.01; done; exit 3";
    let mut running = sandbox.serverswap(["--kill-after", "1000", "sh", "-c", script]);
    until("the main process has ended", || {
        sandbox.path("left").exists() && !sandbox.processes().iter().any(|(_, command)| command.starts_with("sh "))
    });
    running.signal(libc::SIGTERM);
    until("it has ended", || {
        running.signal(libc::SIGTERM);
        running.ended()
    });
    assert_eq!(running.wait(), 3, "{}", running.log());
    sandbox.assert_clean();
}

#[test]
fn a_reloaded_server_in_the_background_has_no_standard_input_either() {
    let sandbox = Sandbox::new();
    let script = "readlink /proc/$$/fd/0 >>inputs; echo 'READY x' >&$SERVERSWAP_FD; \
                  read -r go <&$SERVERSWAP_FD; exec sleep 1000";
    let mut command = sandbox.command(SERVERSWAP);
    command.args(["--plain", "-d", "sh", "-c", script]).stdin(File::open("/proc/self/status").unwrap());
    assert_eq!(sandbox.start(command).wait(), 0);
    assert_eq!(sandbox.run(["--reload", "x"]).0, 0);
    assert_eq!(fs::read_to_string(sandbox.path("inputs")).unwrap(), "/dev/null\n/dev/null\n");
    sandbox.take_down("x");
}

#[test]
fn a_wrapped_server_on_a_terminal_ends_with_its_supervisor_before_it_serves() {
    let sandbox = Sandbox::new();
    let (keyboard, screen) = pty();
    let (gate, hold) = sandbox.gate("before-ready");
    let wrapped = format!("{} :{} {hold}; true", plain_server().display(), sandbox.port());
    let mut command = sandbox.command("sh");
    // A shell with job control, as a person has it.
    command.args(["-mc", &format!("{SERVERSWAP} sh -c '{wrapped}'; read line")]).stdin(Stdio::from(screen));
    common::controls_terminal(&mut command);
    let mut shell = sandbox.start(command);
    gate.reached();
    kill(supervisor_of(&sandbox), libc::SIGKILL);
    until("only the shell is left", || sandbox.processes().len() == 1);
    drop(keyboard);
    shell.wait();
}

#[test]
fn a_deploy_hook_does_not_speak_for_the_server_around_it() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let hook = format!("{SERVERSWAP} --plain -d {} :{port} >hook 2>&1; exec sleep 1000", plain_server().display());
    let (status, log) = sandbox.run(["-d", "--ready-timeout", "2", "sh", "-c", &hook]);
    assert_eq!(status, 124, "{log}");
    // What the hook started is a server of its own.
    answered_by(port, 1);
    sandbox.take_down(&format!(":{port}"));
}
