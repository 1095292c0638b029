//! System calls that fail in a supervisor while it swaps: strace(1) makes the first, the second, ... or every one of a
//! kind return an error.

use super::Case;
use super::common::{Load, Running, SERVERSWAP, Sandbox, answered_by, get, kill, plain_server, until};
use super::scene::{CLIENTS, PAUSE, Verdict, is_unsteered};
use nix::libc::{SIGKILL, SIGTERM};
use std::time::{Duration, Instant};

/// With a tracer that was told to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can fail for want of files, memory, disk or rights.
const CALLS: [(&str, &str); 24] = [
    ("openat", "EMFILE"),
    ("openat", "ENOMEM"),
    ("socket", "EMFILE"),
    ("socketpair", "EMFILE"),
    ("pipe2", "EMFILE"),
    ("accept4", "EMFILE"),
    ("accept4", "ENOMEM"),
    ("pidfd_open", "EMFILE"),
    ("pidfd_open", "ENOMEM"),
    ("pidfd_getfd", "EMFILE"),
    ("fcntl", "EMFILE"),
    ("clone", "ENOMEM"),
    ("clone3", "EAGAIN"),
    ("mmap", "ENOMEM"),
    ("connect", "EAGAIN"),
    ("bind", "ENOMEM"),
    ("listen", "ENOMEM"),
    ("setsockopt", "ENOMEM"),
    ("sendmsg", "ENOBUFS"),
    ("sendto", "ENOBUFS"),
    ("recvmsg", "ENOMEM"),
    ("renameat", "ENOSPC"),
    ("write", "ENOSPC"),
    ("unlinkat", "EROFS"),
];

/// Which of them fail: the nth, or all from the nth on.
const WHEN: [&str; 4] = ["1+", "1", "2", "4"];

/// Whose calls.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Old,
    New,
}

/// `all`: not only those in which every call of a kind fails.
pub fn cases(all: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for shared in [true, false] {
        let order = if shared { "shared" } else { "plain" };
        for who in [Who::New, Who::Old] {
            for (call, error) in CALLS {
                for when in &WHEN[..if shared && all { WHEN.len() } else { 1 }] {
                    let name = format!("{order}, {who:?} supervisor, {call} {error} {when}");
                    cases.push(Case::new(name, move || fail(shared, who, call, error, when)));
                }
            }
        }
    }
    cases
}

fn fail(shared: bool, who: Who, call: &str, error: &str, when: &str) -> Result<Verdict, String> {
    let sandbox = if shared { Sandbox::shared() } else { Sandbox::new() };
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    let inject = format!("inject={call}:error={error}:when={when}");
    // Servers are let go when they are started: what fails there is their affair. The tracer is nobody's parent.
    let options = ["-DDD", "-I2", "-f", "-qq", "-b", "execve", "-o", "/dev/null", "-e", &inject];
    let plain: &[&str] = if shared { &[] } else { &["--plain"] };
    let old = sandbox.plain(&["--ready-timeout", "10"], &[&address]);
    let first = answered_by(port, 1);
    old.says("is up");
    let crowd: Vec<Load> = (0..CLIENTS).map(|_| Load::start(port, PAUSE)).collect();
    crowd.iter().for_each(|load| load.sees_server(first.pid));
    if who == Who::Old {
        let mut command = sandbox.command("strace");
        command.args(&options[1..]).args(["-p", &old.pid().to_string()]);
        sandbox.start(command);
        until("every thread is traced", || all_traced(old.pid()));
    }
    let mut new: Running = match who {
        Who::Old => sandbox.plain(&["-d", "--ready-timeout", "10"], &[&address]),
        Who::New => {
            let mut command = sandbox.command("strace");
            command.args(options).arg(SERVERSWAP).args(["-d", "--ready-timeout", "10"]).args(plain);
            command.arg(plain_server()).arg(&address);
            sandbox.start(command)
        }
    };
    let status = new.wait();
    // Whatever became of it: somebody answers, and it is the old server if the swap has failed.
    until("somebody answers", || get(port).is_ok());
    let answer = get(port).map_err(|failure| format!("status {status}: {failure:?}"))?;
    if status == 0 && answer.pid == first.pid {
        return Err(format!("status 0, and the old server answers\n{}", new.log()));
    }
    // Who lives on is on his own again.
    let tracers = || sandbox.processes().into_iter().filter(|(_, command)| command.starts_with("strace "));
    let since = Instant::now();
    // A tracer whose process died in the wrong moment may wait for it for ever.
    let signal = || if since.elapsed() < PATIENCE { SIGTERM } else { SIGKILL };
    until("nobody is traced", || tracers().map(|(pid, _)| kill(pid, signal())).count() == 0);
    let (last, log) = sandbox.deploy(&[&address]);
    if last != 0 {
        return Err(format!("status {status}, then the next swap: status {last}\n{log}"));
    }
    let last = get(port).map_err(|failure| format!("after the next swap: {failure:?}"))?;
    crowd.iter().for_each(|load| load.sees_server(last.pid));
    let crew = sandbox.crew();
    until("one server is left", || sandbox.processes().len() == crew && sandbox.status().len() == 1);
    let verdict = Verdict::of(crowd);
    if shared && !is_unsteered(port) {
        return Err("a program is left on the port".into());
    }
    sandbox.take_down(&format!(":{port}"));
    // What it has no file or memory for it does in plain order, and says so.
    let fallen_back = sandbox.said().contains("cannot be shared");
    if shared && verdict.failed() > 0 && !fallen_back {
        return Err(format!("status {status}, {:?}\n{}", verdict.failures, sandbox.said()));
    }
    Ok(verdict)
}

/// Whether a tracer has all threads of a process.
fn all_traced(pid: i32) -> bool {
    let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let is_traced = |entry: std::fs::DirEntry| {
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    };
    threads.all(is_traced)
}
