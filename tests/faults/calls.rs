//! System calls that fail in a supervisor while it swaps: strace(1) makes the first, the second, ... or every one of a
//! kind return an error. A row in which that never happened is no row.

use super::Case;
use super::common::{Running, SERVERSWAP, Sandbox, alive, answered_by, get, is_traced, kill, plain_server, until};
use super::observer::{self, Verdict};
use super::scene::{Serving, crowd};
use nix::libc::{SIGKILL, SIGTERM};
use std::time::{Duration, Instant};

/// With a tracer that was told to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can fail for want of files, memory, disk, locks or rights. Not brk, which has no error to return (brk(2)).
const CALLS: [(&str, &str); 29] = [
    ("openat", "EMFILE"),
    ("openat", "ENOMEM"),
    ("socket", "EMFILE"),
    ("socket", "ENOMEM"),
    ("socketpair", "EMFILE"),
    ("accept4", "EMFILE"),
    ("accept4", "ENOMEM"),
    ("pidfd_open", "EMFILE"),
    ("pidfd_open", "ENOMEM"),
    ("pidfd_getfd", "EMFILE"),
    ("fcntl", "EMFILE"),
    ("clone", "ENOMEM"),
    ("clone3", "EAGAIN"),
    ("clone3", "ENOMEM"),
    ("mmap", "ENOMEM"),
    ("mprotect", "ENOMEM"),
    ("connect", "EAGAIN"),
    ("bind", "ENOMEM"),
    ("listen", "ENOMEM"),
    ("setsockopt", "ENOMEM"),
    ("sendmsg", "ENOBUFS"),
    ("sendto", "ENOBUFS"),
    ("recvmsg", "ENOMEM"),
    ("getdents64", "ENOMEM"),
    ("flock", "ENOLCK"),
    ("mkdir", "ENOSPC"),
    ("renameat", "ENOSPC"),
    ("write", "ENOSPC"),
    ("unlinkat", "EROFS"),
];

/// Which of them fail: the nth, or all from the nth on. Each thread counts its own.
const WHEN: [&str; 4] = ["1+", "1", "2", "4"];

/// Past what the loader calls before there is a program: that fails in every program alike.
const LOADED: [(&str, &str); 3] = [("openat", "8+"), ("mmap", "16+"), ("mprotect", "7+")];

/// Whose calls.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    /// A supervisor in the foreground.
    New,
    Old,
    /// What `-d` starts a supervisor in the background with.
    Launcher,
}

impl Who {
    /// What it has no need to call during a swap.
    fn never(self, shared: bool) -> &'static [&'static str] {
        match (self, shared) {
            (Who::New, true) => &[],
            (Who::New, false) => &["pidfd_getfd", "setsockopt"],
            (Who::Old, true) => &["socketpair", "clone", "connect", "listen", "recvmsg", "mkdir", "renameat"],
            (Who::Old, false) => &[
                "socket",
                "socketpair",
                "pidfd_open",
                "pidfd_getfd",
                "clone",
                "connect",
                "bind",
                "listen",
                "sendmsg",
                "recvmsg",
                "mkdir",
                "renameat",
            ],
            (Who::Launcher, _) => &[
                "socket",
                "accept4",
                "pidfd_open",
                "pidfd_getfd",
                "connect",
                "bind",
                "listen",
                "setsockopt",
                "sendmsg",
                "sendto",
                "recvmsg",
                "getdents64",
                "flock",
                "renameat",
                "write",
                "unlinkat",
            ],
        }
    }
}

/// `all`: not only those in which every call of a kind fails.
pub fn cases(all: bool, left_out: &mut Vec<String>) -> Vec<Case> {
    let mut cases = Vec::new();
    for (shared, who) in
        [true, false].into_iter().flat_map(|shared| [Who::New, Who::Old, Who::Launcher].map(|who| (shared, who)))
    {
        let order = if shared { "shared" } else { "plain" };
        if who == Who::Launcher && !shared {
            left_out.push("plain, Launcher: it does the same in both orders".into());
            continue;
        }
        let never = who.never(shared);
        if !never.is_empty() {
            left_out.push(format!("{order}, {who:?}: it never calls {}", never.join(", ")));
        }
        for (call, error) in CALLS.into_iter().filter(|(call, _)| !never.contains(call)) {
            let loaded = LOADED.iter().find(|(loaded, _)| *loaded == call && who == Who::New).map(|(_, when)| *when);
            let times = if shared && all { &WHEN[..] } else { &WHEN[..usize::from(loaded.is_none())] };
            for when in loaded.into_iter().chain(times.iter().copied()) {
                let name = format!("{order}, {who:?}, {call} {error} {when}");
                cases.push(Case::new(name, move || fail(shared, who, call, error, when)));
            }
        }
    }
    cases
}

fn fail(shared: bool, who: Who, call: &str, error: &str, when: &str) -> Result<Verdict, String> {
    let sandbox = if shared { Sandbox::shared() } else { Sandbox::new() };
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    let trace = sandbox.path("trace");
    let (only, inject) = (format!("trace={call}"), format!("inject={call}:error={error}:when={when}"));
    let strace = |options: &[&str]| {
        let mut command = sandbox.command("strace");
        // What cargo sets has the loader look for its libraries in many places.
        command.env_remove("LD_LIBRARY_PATH");
        // Servers are let go when they are started: what fails there is their affair.
        command.args(options).args(["-I2", "-f", "-qq", "-b", "execve", "-e", &only, "-e", &inject, "-o"]).arg(&trace);
        command
    };
    let mut old = sandbox.plain(&["--ready-timeout", "10"], &[&address]);
    let first = answered_by(port, 1);
    old.says("is up");
    let clients = crowd(port);
    clients.iter().for_each(|load| load.sees_server(first.pid));
    if who == Who::Old {
        sandbox.start(strace(&["-p", &old.pid().to_string()]));
        until("every thread is traced", || all_traced(old.pid()));
    }
    let mut new: Running = match who {
        Who::Old => sandbox.plain(&["--ready-timeout", "10"], &[&address]),
        Who::New | Who::Launcher => {
            // The tracer is nobody's parent.
            let mut command = strace(&["-DDD"]);
            command.arg(SERVERSWAP).args(["--ready-timeout", "10"]);
            command.args((who == Who::Launcher).then_some("-d")).args((!shared).then_some("--plain"));
            command.arg(plain_server()).arg(&address);
            sandbox.start(command)
        }
    };
    // It may have no file or memory to say it with.
    let serves_now = || get(port).is_ok_and(|answer| answer.pid != first.pid) && !alive(first.pid);
    until("the swap is over", || new.ended() || who != Who::Launcher && serves_now());
    let left = observer::left(&sandbox, port)?;
    let serves = Serving::of(left, |server| server == first.pid);
    if who == Who::Old && serves != Serving::Old {
        until("the old supervisor has done all its calls", || old.ended());
    }
    let mut verdict = Verdict::new(serves, new.ended().then(|| new.wait()));
    verdict.said = sandbox.said();
    // Who lives on is on his own again.
    let tracers = || sandbox.processes().into_iter().filter(|(_, command)| command.starts_with("strace "));
    let since = Instant::now();
    // A tracer whose process died in the wrong moment may wait for it for ever.
    let signal = || if since.elapsed() < PATIENCE { SIGTERM } else { SIGKILL };
    until("nobody is traced", || tracers().map(|(pid, _)| kill(pid, signal())).count() == 0);
    let calls = std::fs::read_to_string(&trace).unwrap_or_default();
    if !calls.contains("(INJECTED)") {
        verdict.note += ", never called";
        // So often it may not be.
        if !["2", "4"].contains(&when) {
            return Err(format!("{call} was never called:\n{calls}"));
        }
    }
    let (status, log) = sandbox.deploy(&[&address]);
    if status != 0 {
        return Err(format!("{}, then the next swap: status {status}\n{log}", verdict.note));
    }
    let last = get(port).map_err(|failure| format!("{}, then the next swap: {failure:?}", verdict.note))?;
    clients.iter().for_each(|load| load.sees_server(last.pid));
    verdict.add(clients);
    observer::is_alone(&sandbox, port, last.pid).map_err(|what| format!("{what}\n{}", sandbox.said()))?;
    observer::take_down(&sandbox, port)?;
    // What it has no file or memory for it does in plain order, and says so.
    if shared && !sandbox.said().contains("cannot be shared") {
        verdict.is_bounded(Some(0))?;
    } else {
        verdict.is_plain(false)?;
    }
    // Whoever has no memory aborts.
    let aborted = verdict.said.contains("memory allocation of");
    let untrue = verdict.said.contains("the supervisor died") && !aborted || verdict.said.contains("panicked");
    if untrue || !verdict.is_consistent() {
        return Err(format!("{}\n{}", verdict.note, sandbox.said()));
    }
    Ok(verdict)
}

/// Whether a tracer has all threads of a process.
fn all_traced(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut numbers = threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.all(is_traced)
}
