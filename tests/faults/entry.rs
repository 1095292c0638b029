//! The state in which serverswap is started: whatever its parent left to it, a swap is a swap, and its server starts
//! as it would anywhere.

use super::Case;
use super::common::{MARK, Running, SERVERSWAP, Sandbox, alive, answered_by, plain_server, until};
use super::observer::{self, Verdict};
use super::scene::crowd;
use std::path::Path;

/// What is odd, and the program that makes it so and then runs its arguments.
const ODDITIES: [(&str, &str); 6] = [
    ("SIGCHLD ignored", r#"trap '' CHLD; exec "$@""#),
    ("all signals blocked", r#"exec env --block-signal "$@""#),
    ("all signals ignored", r#"exec env --ignore-signal "$@""#),
    ("fds 0 to 2 closed", r#"exec "$@" <&- >&- 2>&-"#),
    ("next to no environment", "exec env -i \"$KEEP\" \"$DIR\" \"$@\""),
    ("a parent that vanishes", r#""$@" & exit 0"#),
];

/// The library by which faketime(1) moves the wall clock under a program.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

pub fn cases(left_out: &mut Vec<String>) -> Vec<Case> {
    let mut cases = Vec::new();
    for shared in [true, false] {
        let order = if shared { "shared" } else { "plain" };
        for (what, script) in ODDITIES {
            cases.push(Case::new(format!("{order}, started with {what}"), move || odd(shared, script)));
        }
        if Path::new(FAKETIME).exists() {
            cases.push(Case::new(format!("{order}, the clock jumps a year"), move || clock(shared)));
        } else {
            left_out.push(format!("{order}, the clock jumps a year (needs faketime)"));
        }
    }
    cases
}

/// Three swaps in a row, every supervisor started like that.
fn odd(shared: bool, script: &str) -> Result<Verdict, String> {
    let sandbox = if shared { Sandbox::shared() } else { Sandbox::new() };
    let port = sandbox.port();
    let words = words(&sandbox, port);
    swaps(&sandbox, port, |_| {
        let mut command = sandbox.command("sh");
        command.args(["-c", script, "sh"]).args(&words);
        command.env("KEEP", format!("{MARK}={}", sandbox.path("").display().to_string().trim_end_matches('/')));
        command.env("DIR", format!("SERVERSWAP_RUN_DIR={}", sandbox.run_dir().display()));
        sandbox.start(command)
    })
}

fn words(sandbox: &Sandbox, port: u16) -> Vec<String> {
    let order = (!sandbox.is_shared()).then(|| "--plain".to_owned());
    let own = [plain_server().to_str().unwrap().to_owned(), format!("0.0.0.0:{port}")];
    [SERVERSWAP.to_owned()].into_iter().chain(order).chain(own).collect()
}

/// Three swaps in a row, each the way from its start until nothing is left of the server before it.
fn swaps(sandbox: &Sandbox, port: u16, mut start: impl FnMut(u64) -> Running) -> Result<Verdict, String> {
    let mut started = vec![start(1)];
    let mut last = answered_by(port, 1).pid;
    let mut verdict = Verdict::default();
    for generation in 2..=4 {
        let crowd = crowd(port);
        crowd.iter().for_each(|load| load.sees_server(last));
        started.push(start(generation));
        let answer = answered_by(port, generation);
        until("the old one is gone", || !alive(last));
        last = answer.pid;
        crowd.iter().for_each(|load| load.sees(generation));
        // Who looks for a program takes connections away from whoever serves.
        verdict.add(crowd);
        observer::is_alone(sandbox, port, last)?;
    }
    observer::take_down(sandbox, port)?;
    for mut one in started {
        one.wait();
    }
    if sandbox.is_shared() {
        verdict.is_bounded(Some(0))?
    } else {
        verdict.is_plain(false)?
    }
    Ok(verdict)
}

/// The wall clock of all supervisors and servers jumps a year ahead, two back, and home again while a swap goes from
/// step to step.
fn clock(shared: bool) -> Result<Verdict, String> {
    let sandbox = if shared { Sandbox::shared() } else { Sandbox::new() };
    let port = sandbox.port();
    let words = words(&sandbox, port);
    let time = sandbox.file("time", "+0d");
    let faked = |program: &str| {
        let mut command = sandbox.command(program);
        command.env("LD_PRELOAD", FAKETIME).env("FAKETIME_TIMESTAMP_FILE", &time);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    };
    let year = || {
        let output = faked("date").arg("+%Y").output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse::<i32>().unwrap()
    };
    let jump = |days: i32| {
        let before = year();
        std::fs::write(&time, format!("{days:+}d")).unwrap();
        until("the clock has jumped", || year() != before);
    };
    swaps(&sandbox, port, |generation| {
        let mut command = faked(&words[0]);
        command.args(&words[1..]);
        if generation == 1 {
            return sandbox.start(command);
        }
        // The old server is told to go, or the new one proven, in a year of its own.
        let (ready, bound) =
            (sandbox.gate("before-ready"), sandbox.gate(if shared { "accept" } else { "before-listen" }));
        let running = sandbox.start({
            command.args([ready.1, bound.1]);
            command
        });
        ready.0.reached();
        jump(400);
        ready.0.open();
        bound.0.reached();
        jump(-400);
        bound.0.open();
        answered_by(port, generation);
        jump(0);
        running
    })
}
