//! System calls that fail in a supervisor while it swaps, or that it does not survive: strace(1) makes the first, the
//! second, ... or every one of a kind return an error, or kills who makes it. A row in which that never happened says so;
//! where the first one is meant, or every one, it is no row.

use super::Case;
use super::common::{Running, SERVERSWAP, Sandbox, alive, answered_by, children, get, is_traced, plain_server, until};
use super::observer::{self, Verdict};
use super::scene::{Serving, crowd};

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

/// Before which calls a supervisor is killed: the first of a thread, and so on up to as many as a swap has of those that
/// others can notice. On a shared port the new one's, the old one's and that of the front of a reload, then in plain order.
const KILLED: [(&str, [usize; 6]); 15] = [
    ("setsockopt", [6, 2, 2, 0, 2, 2]),
    ("renameat", [2, 0, 0, 2, 0, 0]),
    ("sendto", [40, 28, 28, 10, 9, 11]),
    ("write", [3, 1, 1, 2, 1, 1]),
    ("ioctl", [4, 0, 0, 0, 0, 0]),
    ("listen", [2, 0, 0, 1, 0, 0]),
    ("unlinkat", [2, 3, 3, 2, 3, 3]),
    ("flock", [6, 3, 1, 6, 3, 1]),
    ("sendmsg", [1, 1, 1, 1, 0, 0]),
    ("connect", [1, 0, 0, 1, 0, 0]),
    ("clone", [2, 0, 1, 2, 0, 1]),
    ("clone3", [6, 1, 2, 5, 1, 2]),
    ("pidfd_getfd", [2, 2, 2, 0, 0, 0]),
    ("pidfd_send_signal", [0, 1, 1, 0, 1, 1]),
    ("shutdown", [0, 4, 4, 0, 4, 4]),
];

/// Whose calls.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    /// A supervisor in the foreground.
    New,
    Old,
    /// What `-d` starts a supervisor in the background with.
    Launcher,
    /// A supervisor that starts a copy of itself. The copy is a [`Who::New`].
    Reload,
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
            (Who::Reload, _) => &[],
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
                cases.push(Case::new(name, move || inject(shared, who, call, Some(error), when)));
            }
        }
    }
    for (call, counts) in KILLED {
        let whose = [Who::New, Who::Old, Who::Reload];
        let orders = [true, false].into_iter().flat_map(|shared| whose.map(|who| (shared, who)));
        for ((shared, who), most) in orders.zip(counts) {
            let order = if shared { "shared" } else { "plain" };
            for nth in (1..=most).step_by(if all { 1 } else { most.div_ceil(12).max(1) }) {
                let name = format!("{order}, {who:?}, killed at {call} {nth}");
                cases.push(Case::new(name, move || inject(shared, who, call, None, &nth.to_string())));
            }
        }
    }
    cases
}

/// Without an error the call kills.
fn inject(shared: bool, who: Who, call: &str, error: Option<&str>, when: &str) -> Result<Verdict, String> {
    let sandbox = if shared { Sandbox::shared() } else { Sandbox::new() };
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    let what = error.map_or("signal=SIGKILL".to_owned(), |error| format!("error={error}"));
    let tracer = || sandbox.tracer(call, &format!("{what}:when={when}"));
    let mut old = sandbox.plain(&["--ready-timeout", "10"], &[&address]);
    let first = answered_by(port, 1);
    old.says("is up");
    let clients = crowd(port);
    clients.iter().for_each(|load| load.sees_server(first.pid));
    if matches!(who, Who::Old | Who::Reload) {
        let mut command = tracer();
        command.args(["-p", &old.pid().to_string()]);
        sandbox.start(command);
        // It may make the call before.
        until("every thread is traced", || old.ended() || all_traced(old.pid()));
    }
    let mut new: Running = match who {
        Who::Old => sandbox.plain(&["--ready-timeout", "10"], &[&address]),
        Who::Reload => sandbox.serverswap(["--reload", &format!(":{port}")]),
        Who::New | Who::Launcher => {
            // The tracer is nobody's parent.
            let mut command = tracer();
            command.args(["-DDD", SERVERSWAP, "--ready-timeout", "10"]);
            command.args((who == Who::Launcher).then_some("-d")).args((!shared).then_some("--plain"));
            command.arg(plain_server()).arg(&address);
            sandbox.start(command)
        }
    };
    // It may have no file or memory to say it with.
    let serves_now = || get(port).is_ok_and(|answer| answer.pid != first.pid) && !alive(first.pid);
    let in_foreground = matches!(who, Who::New | Who::Old);
    until("the swap is over", || new.ended() || in_foreground && serves_now());
    if who == Who::Reload {
        // It goes on without its front, and nobody waits for it.
        until("the copy is done", || copy_is_done(&sandbox, old.pid()));
    }
    // Nobody is there to end one of two servers.
    let left =
        if who == Who::Reload { get(port).ok().map(|answer| answer.pid) } else { observer::left(&sandbox, port)? };
    let serves = Serving::of(left, |server| server == first.pid);
    if who == Who::Old && serves != Serving::Old {
        until("the old supervisor has done all its calls", || old.ended());
    }
    let mut verdict = Verdict::new(serves, new.ended().then(|| new.wait()));
    verdict.said = sandbox.said();
    sandbox.end_tracers();
    let calls = std::fs::read_to_string(sandbox.path("trace")).unwrap_or_default();
    if !["(INJECTED)", "killed by SIGKILL"].iter().any(|mark| calls.contains(mark)) {
        verdict.note += ", never called";
        // So often it may not be.
        if when == "1" || when.ends_with('+') {
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
    if shared && (error.is_none() || !sandbox.said().contains("cannot be shared")) {
        verdict.is_bounded(Some(0))?;
    } else {
        verdict.is_plain(false)?;
    }
    // What is killed says nothing, and its status goes with nobody.
    if error.is_none() && who != Who::Old {
        return Ok(verdict);
    }
    // Whoever has no memory aborts, and a thread of it may get as far as a panic of the standard library's.
    let aborted = verdict.said.contains("memory allocation of");
    let panicked = verdict.said.contains("thread 'main'");
    let untrue = verdict.said.contains("the supervisor died") && !aborted || panicked;
    if untrue || !verdict.is_consistent() {
        return Err(format!("{}\n{}", verdict.note, sandbox.said()));
    }
    Ok(verdict)
}

/// Whether there is no copy of a supervisor, or it has the only server. The front may be a caretaker: where the supervisor
/// was killed before it heard of the reload.
fn copy_is_done(sandbox: &Sandbox, front: i32) -> bool {
    let all = sandbox.processes().into_iter().filter(|(_, command)| command.starts_with(SERVERSWAP));
    let supervisors: Vec<i32> = all.map(|(pid, _)| pid).filter(|pid| !children(*pid).is_empty()).collect();
    let is_front = |pid: i32| pid == front || children(pid).iter().any(|child| supervisors.contains(child));
    let status = sandbox.status();
    let serves = |pid: i32| status.len() == 1 && status[0][3] == pid.to_string() && status[0][5] == "serving";
    supervisors.iter().all(|pid| is_front(*pid) || serves(*pid))
}

/// Whether a tracer has all threads of a process.
fn all_traced(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut numbers = threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.all(is_traced)
}
