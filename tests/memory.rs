//! When memory runs out, a new server is the first to go until it is up: its `oom_score_adj`
//! (proc_pid_oom_score_adj(5)).

mod common;

use common::{Commons, Gate, Running, SERVERSWAP, Sandbox, alive, answered_by, kill, plain_server, until};
use nix::libc;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The value of a process of a new server.
const NEW: i32 = 999;

fn score_file(pid: i32) -> PathBuf {
    format!("/proc/{pid}/oom_score_adj").into()
}

fn score(pid: i32) -> i32 {
    fs::read_to_string(score_file(pid)).unwrap_or_else(|e| panic!("{pid}: {e}")).trim().parse().unwrap()
}

fn scores(pids: &[i32]) -> Vec<i32> {
    pids.iter().map(|pid| score(*pid)).collect()
}

/// The words of choom(1) that start a command with a value.
fn with_score(value: i32) -> [String; 3] {
    ["-n".into(), value.to_string(), "--".into()]
}

/// A shell that starts as many children as there are values, with these values or, for `None`, the one that they inherit,
/// and becomes plain-server. Each pid is in a file below `dir`.
fn family(dir: &Path, server: &Path, children: &[Option<i32>], words: &[&str]) -> Vec<String> {
    let child = |(i, value): (usize, &Option<i32>)| {
        let choom = value.map(|value| format!("choom -n {value} -p $! >/dev/null && ")).unwrap_or_default();
        let file = dir.join(format!("child{i}"));
        format!("sleep 600 & {choom}echo $! >{}\n", file.display())
    };
    let script: String = children.iter().enumerate().map(child).collect();
    let exec = format!("{script}exec {} mute {}", server.display(), words.join(" "));
    ["sh".into(), "-c".into(), exec].into()
}

/// The server that waits at a gate, and its children.
fn members(dir: &Path, children: usize) -> Vec<i32> {
    let pid = |i: usize| -> i32 { fs::read_to_string(dir.join(format!("child{i}"))).unwrap().trim().parse().unwrap() };
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid(0))).unwrap();
    let parent = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    [parent].into_iter().chain((0..children).map(pid)).collect()
}

/// Starts `serverswap WORDS...` with a value.
fn start(sandbox: &Sandbox, value: i32, words: &[String]) -> Running {
    let mut command = sandbox.command("choom");
    command.args(with_score(value)).arg(SERVERSWAP).args((!sandbox.is_shared()).then_some("--plain")).args(words);
    sandbox.start(command)
}

fn stop(sandbox: &Sandbox, mut running: Running) {
    running.signal(libc::SIGTERM);
    running.wait();
    sandbox.assert_clean();
}

#[test]
fn a_new_server_is_the_first_to_go_until_it_is_up() {
    for (sandbox, stage) in
        [(Sandbox::shared(), "accept"), (Sandbox::shared(), "before-ready"), (Sandbox::new(), "before-ready")]
    {
        let port = sandbox.port();
        let dir = sandbox.path("");
        let generation = |value: i32| -> (Running, Gate, Vec<i32>) {
            let (gate, waits) = sandbox.gate(stage);
            let words = family(&dir, &plain_server(), &[None, None], &[&format!(":{port}"), &waits]);
            let running = start(&sandbox, value, &words);
            gate.reached();
            let pids = members(&dir, 2);
            (running, gate, pids)
        };
        // The first server.
        let (mut first, gate, old) = generation(500);
        assert_eq!((scores(&old), score(first.pid())), (vec![NEW; 3], 500), "{stage}");
        gate.open();
        first.says("is up");
        assert_eq!(scores(&old), [500; 3], "{stage}");
        if !sandbox.is_shared() {
            stop(&sandbox, first);
            continue;
        }
        // One that replaces it, with a value of its own.
        let (second, gate, new) = generation(100);
        assert_eq!((scores(&new), scores(&old)), (vec![NEW; 3], vec![500; 3]), "{stage}");
        gate.open();
        second.says("is up");
        assert_eq!(scores(&new), [100; 3], "{stage}");
        assert_eq!(first.wait(), 0, "{}", first.log());
        stop(&sandbox, second);
    }
}

#[test]
fn a_copy_for_a_reload_is_the_first_to_go_until_it_is_up() {
    let sandbox = Sandbox::shared();
    let (port, program) = (sandbox.port(), sandbox.path("program"));
    let becomes = |more: &str| {
        let server = format!("exec {} mute :{port} {more}", plain_server().display());
        fs::write(&program, format!("sleep 600 & echo $! >child0\n{server}\n")).unwrap();
    };
    becomes("");
    let running = start(&sandbox, 200, &["sh".into(), program.display().to_string()]);
    running.says("is up");
    let (gate, waits) = sandbox.gate("accept");
    becomes(&waits);
    let mut reload = sandbox.serverswap(["--reload", &format!(":{port}")]);
    gate.reached();
    let copy = members(&sandbox.path(""), 1);
    assert_eq!(scores(&copy), [NEW; 2]);
    gate.open();
    assert_eq!(reload.wait(), 0, "{}", reload.log());
    assert_eq!(scores(&copy), [200; 2]);
    stop(&sandbox, running);
}

#[test]
fn a_new_server_of_a_user_who_is_not_root_is_the_first_to_go_until_it_is_up() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("left out: only root starts commands of another user");
    }
    for options in [&[][..], &["--plain"][..]] {
        let commons = Commons::new();
        let (sandbox, dir) = (&commons.sandbox, commons.sandbox.path("nobody"));
        let (gate, waits) = sandbox.gate("before-ready");
        fs::set_permissions(&gate.path, fs::Permissions::from_mode(0o666)).unwrap();
        let mut command = commons.nobody(Path::new("choom"), &dir.join("run"), &[]);
        command.args(with_score(300)).arg(&commons.serverswap).args(options);
        let address = format!(":{}", sandbox.port());
        // One of its children goes below what it has inherited.
        command.args(family(&dir, &commons.server, &[None, Some(400)], &[&address, &waits]));
        let running = sandbox.start(command);
        gate.reached();
        let pids = members(&dir, 2);
        assert_eq!(scores(&pids), [NEW, NEW, 400], "{options:?}");
        gate.open();
        running.says("is up");
        assert_eq!(scores(&pids), [300, 300, 400], "{options:?}");
        stop(sandbox, running);
    }
}

/// Nobody but root can open the value of a process that is not dumpable (PR_SET_DUMPABLE of prctl(2)).
#[test]
fn a_server_that_hides_itself_has_its_own_value_all_the_same() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("left out: only root starts commands of another user");
    }
    let commons = Commons::new();
    let dir = commons.sandbox.path("nobody");
    let hides = "import ctypes, os, time; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
print('it is %d' % os.getpid(), open('/proc/self/oom_score_adj').read(), flush=True)
os.write(int(os.environ['SERVERSWAP_FD']), b'UP\\n'); time.sleep(600)";
    let mut command = commons.nobody(Path::new("choom"), &dir.join("run"), &[]);
    command.args(with_score(300)).arg(&commons.serverswap).args(["--plain", "python3", "-c", hides]);
    let running = commons.sandbox.start(command);
    running.says("is up");
    let log = running.log();
    let mut words = log.lines().find_map(|line| line.strip_prefix("it is ")).unwrap().split(' ');
    assert_eq!(words.next_back(), Some("999"), "{log}");
    assert_eq!(score(words.next().unwrap().parse().unwrap()), 300);
    stop(&commons.sandbox, running);
}

#[test]
fn a_value_that_a_server_has_set_itself_stays() {
    let sandbox = Sandbox::shared();
    let dir = sandbox.path("");
    let (gate, waits) = sandbox.gate("accept");
    let children = [None, Some(150), Some(700), Some(1000)];
    let mut words = family(&dir, &plain_server(), &children, &[&format!(":{}", sandbox.port()), &waits]);
    // And its main process, after its children have inherited the other one.
    words[2] = words[2].replace("exec ", "echo 600 >/proc/$$/oom_score_adj; exec ");
    let running = start(&sandbox, 100, &words);
    gate.reached();
    let pids = members(&dir, children.len());
    assert_eq!(scores(&pids), [600, NEW, 150, 700, 1000]);
    gate.open();
    running.says("is up");
    assert_eq!(scores(&pids), [600, 100, 150, 700, 1000]);
    stop(&sandbox, running);
}

#[test]
fn a_server_that_would_be_the_first_to_go_anyway_keeps_its_value() {
    for value in [NEW, 1000] {
        let sandbox = Sandbox::shared();
        let dir = sandbox.path("");
        let (gate, waits) = sandbox.gate("accept");
        let words = family(&dir, &plain_server(), &[None, Some(NEW)], &[&format!(":{}", sandbox.port()), &waits]);
        let running = start(&sandbox, value, &words);
        gate.reached();
        let pids = members(&dir, 2);
        assert_eq!(scores(&pids), [value, value, NEW]);
        gate.open();
        running.says("is up");
        assert_eq!(scores(&pids), [value, value, NEW]);
        stop(&sandbox, running);
    }
}

/// What could not be looked at when it came up is looked at again.
#[test]
fn a_process_that_was_missed_has_its_own_value_soon() {
    let sandbox = Sandbox::shared();
    let dir = sandbox.path("");
    let words = family(&dir, &plain_server(), &[None, None], &[&format!(":{}", sandbox.port())]);
    let running = start(&sandbox, 100, &words);
    running.says("is up");
    let pids = members(&dir, 2);
    fs::write(score_file(pids[1]), NEW.to_string()).unwrap();
    until("it has its own value", || scores(&pids) == [100; 3]);
    stop(&sandbox, running);
}

#[test]
fn a_server_whose_value_cannot_be_written_comes_up_all_the_same() {
    let read_only = "mount -o remount,bind,ro /proc && exec \"$@\"";
    let inside = ["-m", "sh", "-c", read_only, "sh"];
    if !Command::new("unshare").args(inside).arg("true").output().is_ok_and(|output| output.status.success()) {
        return eprintln!("left out: /proc cannot be made read-only here");
    }
    let sandbox = Sandbox::shared();
    let dir = sandbox.path("");
    let (gate, waits) = sandbox.gate("accept");
    let mut command = sandbox.command("choom");
    command.args(with_score(100)).arg("unshare").args(inside).arg(SERVERSWAP);
    command.args(family(&dir, &plain_server(), &[None], &[&format!(":{}", sandbox.port()), &waits]));
    let running = sandbox.start(command);
    gate.reached();
    let pids = members(&dir, 1);
    assert_eq!(scores(&pids), [100; 2]);
    gate.open();
    running.says("is up");
    assert_eq!(scores(&pids), [100; 2]);
    assert_eq!(running.log().lines().count(), 1, "{}", running.log());
    stop(&sandbox, running);
}

/// It lives on from its first `listen`, before it is up: whoever takes care of it gives it the value back.
#[test]
fn a_server_that_loses_its_supervisor_before_it_is_up_is_not_the_first_to_go_for_ever() {
    let sandbox = Sandbox::shared();
    let (port, dir) = (sandbox.port(), sandbox.path(""));
    let (gate, waits) = sandbox.gate("accept");
    let words = family(&dir, &plain_server(), &[None, Some(700)], &[&format!(":{port}"), &waits]);
    let mut running = start(&sandbox, 100, &words);
    gate.reached();
    let pids = members(&dir, 2);
    assert_eq!(scores(&pids), [NEW, NEW, 700]);
    running.signal(libc::SIGKILL);
    running.wait();
    gate.open();
    answered_by(port, 1);
    // A version that wants the address and does not make it: the server gets a caretaker.
    let fails = format!("printf 'READY :{port}\n' >&$SERVERSWAP_FD; sleep 1; exit 3");
    let fails = ["-d", "sh", "-c", &fails].map(str::to_owned);
    let caretaker = || -> i32 { sandbox.status()[0][3].parse().unwrap_or(0) };
    assert_eq!(start(&sandbox, 200, &fails).wait(), 3);
    assert_eq!((scores(&pids), score(caretaker())), (vec![200, 200, 700], 200));
    // Another one changes nothing any more.
    let first = caretaker();
    kill(first, libc::SIGKILL);
    until("it is gone", || !alive(first));
    assert_eq!(start(&sandbox, 300, &fails).wait(), 3);
    assert_eq!((scores(&pids), score(caretaker())), (vec![200, 200, 700], 300));
    sandbox.take_down(&format!(":{port}"));
}
