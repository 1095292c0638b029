//! How soon `--undo` and `--commit` take effect.

use super::common::{self, Sandbox, get, until};
use super::{median, monotonic, row};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

/// How many of each.
const TIMES: usize = 31;

/// From the word to the first connection that goes where it is to go; and the whole commands.
pub fn verdicts() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let _first = sandbox.plain(&["--drain", "0.2"], &[&address, "mute"]);
    let mut serving = common::answered_by(port, 1).pid;
    let (mut undone, mut committed, mut commands) = (Vec::new(), Vec::new(), Vec::new());
    for nth in 0..3 * TIMES {
        let commits = nth % 3 == 1;
        let trial: &[&str] = if commits { &["--canary", "0.1:600"] } else { &["--hold", "600"] };
        let new = sandbox.plain(&[&["--drain", "0.2"], trial].concat(), &[&address, "mute"]);
        new.says("is up");
        let server =
            |of: i32| sandbox.status().into_iter().find(|row| row[3] == of.to_string()).map(|row| row[2].parse());
        let pid = server(new.pid()).and_then(Result::ok).expect("its server");
        match nth % 3 {
            0 => {
                undone.push(effect(&sandbox, new.pid(), "UNDO", || get(port).is_ok_and(|answer| answer.pid == serving)))
            }
            1 => {
                let its = || get(port).is_ok_and(|answer| answer.pid == pid);
                committed.push(effect(&sandbox, new.pid(), "CONFIRM", its));
                serving = pid;
            }
            _ => {
                let before = monotonic();
                assert_eq!(sandbox.run(["--undo", &address]).0, 0);
                commands.push((monotonic() - before) / 1000);
            }
        }
        until("one server is left", || sandbox.status().len() == 1);
    }
    row("--undo, from the word until it takes effect, median, us", median(undone), "5000");
    row("--commit in a canary, the same, us", median(committed), "5000");
    row("  the command --undo, us", median(commands), "");
    sandbox.take_down(&address);
}

/// Microseconds from a word to a supervisor until a new connection goes where it is to go.
fn effect(sandbox: &Sandbox, supervisor: i32, word: &str, is_there: impl Fn() -> bool) -> u64 {
    let path = sandbox.run_dir().join(format!("{supervisor}-1.sock"));
    let stream = UnixStream::connect(path).expect("its control socket");
    let mut lines = BufReader::new(stream.try_clone().expect("a handle"));
    (&stream).write_all(b"PEER 1\n").expect("a peer");
    lines.read_line(&mut String::new()).expect("an answer");
    let before = monotonic();
    (&stream).write_all(format!("{word}\n").as_bytes()).expect("a word");
    loop {
        let begun = monotonic();
        if is_there() {
            return begun.saturating_sub(before) / 1000;
        }
    }
}
