//! The state in which serverswap is started: whatever its parent left to it, a swap is a swap, and its server starts
//! as it would anywhere.

use super::Case;
use super::common::{Load, MARK, Running, SERVERSWAP, Sandbox, alive, answered_by, plain_server, until};
use super::scene::{CLIENTS, PAUSE, Verdict};
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

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shared in [true, false] {
        let order = if shared { "shared" } else { "plain" };
        for (what, script) in ODDITIES {
            cases.push(Case::new(format!("{order}, started with {what}"), move || odd(shared, script)));
        }
        if Path::new(FAKETIME).exists() {
            cases.push(Case::new(format!("{order}, the clock jumps a year"), move || clock(shared)));
        }
    }
    cases
}

/// Three swaps in a row, every supervisor started like that.
fn odd(shared: bool, script: &str) -> Result<Verdict, String> {
    let sandbox = if shared { Sandbox::shared() } else { Sandbox::new() };
    let port = sandbox.port();
    let words = words(&sandbox, port);
    swaps(&sandbox, port, |sandbox| {
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

fn swaps(sandbox: &Sandbox, port: u16, start: impl Fn(&Sandbox) -> Running) -> Result<Verdict, String> {
    let mut started = vec![start(sandbox)];
    let mut last = answered_by(port, 1).pid;
    let crowd: Vec<Load> = (0..CLIENTS).map(|_| Load::start(port, PAUSE)).collect();
    for generation in 2..=4 {
        started.push(start(sandbox));
        let answer = answered_by(port, generation);
        until("the old one is gone", || !alive(last));
        last = answer.pid;
        crowd.iter().for_each(|load| load.sees(generation));
    }
    let verdict = Verdict::of(crowd);
    sandbox.take_down(&format!(":{port}"));
    for mut one in started {
        one.wait();
    }
    if sandbox.is_shared() && verdict.failed() > 0 { Err(format!("{:?}", verdict.failures)) } else { Ok(verdict) }
}

/// The wall clock of all supervisors and servers jumps a year ahead, and back, in the middle of a swap.
fn clock(shared: bool) -> Result<Verdict, String> {
    let sandbox = if shared { Sandbox::shared() } else { Sandbox::new() };
    let port = sandbox.port();
    let words = words(&sandbox, port);
    let time = sandbox.file("time", "+0d");
    swaps(&sandbox, port, |sandbox| {
        let mut command = sandbox.command(&words[0]);
        command.args(&words[1..]);
        command.env("LD_PRELOAD", FAKETIME).env("FAKETIME_TIMESTAMP_FILE", &time);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let running = sandbox.start(command);
        for jump in ["+365d", "-365d", "+0d"] {
            std::fs::write(&time, jump).unwrap();
        }
        running
    })
}
