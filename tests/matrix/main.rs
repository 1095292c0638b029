//! `make test-servers`: real servers, swapped under load. Prints tables and fails if any client of any of them noticed.
//!
//! Arguments: names of rows, or parts of them, to run only these; `part=new`, `part=kept`, `part=other` or
//! `part=trial`: one table only; `swaps=N`: so many swaps in the rows of kept connections; a word that begins with `-`
//! goes to serverswap: with `--plain` or `--no-relay` no table is spotless.

#[path = "../common/mod.rs"]
mod common;

mod client;
mod connection;
mod fresh;
mod kept;
mod loads;
mod other;
mod poster;
mod servers;
mod target;
mod trial;

use nix::libc::{PR_SET_PDEATHSIG, SIGTERM, prctl};
use nix::unistd::{getpid, getsid, setsid};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

/// What was asked for.
pub struct Settings {
    /// Of serverswap.
    options: Vec<String>,
    names: Vec<String>,
    /// Of the rows of kept connections, if they are not to have as many as they should.
    swaps: Option<u64>,
}

impl Settings {
    fn wants(&self, row: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| row.contains(name.as_str()))
    }
}

/// How many rows were run, and what is wrong.
type Report = (usize, Vec<String>);

/// A table.
type Part = fn(&Settings) -> Report;

fn main() {
    if getsid(None) != Ok(getpid()) {
        std::process::exit(in_a_session_of_its_own());
    }
    let mut settings = Settings { options: Vec::new(), names: Vec::new(), swaps: None };
    let mut part = None;
    for word in std::env::args().skip(1) {
        match word.split_once('=') {
            _ if word.starts_with('-') => settings.options.push(word),
            Some(("part", name)) => part = Some(name.to_owned()),
            Some(("swaps", count)) => settings.swaps = Some(count.parse().expect("swaps=N")),
            Some(_) | None => settings.names.push(word),
        }
    }
    let started = Instant::now();
    let parts: [(&str, Part); 4] =
        [("new", fresh::run), ("kept", kept::run), ("other", other::run), ("trial", trial::run)];
    let (mut rows, mut red) = (0, Vec::new());
    for (name, run) in parts {
        if part.as_ref().is_none_or(|part| part == name) {
            let (count, faults) = run(&settings);
            rows += count;
            red.extend(faults);
        }
    }
    let verdict = if red.is_empty() && rows > 0 { "ok" } else { "NOT ok" };
    println!("{rows} rows in {} s: {verdict}", started.elapsed().as_secs());
    std::process::exit(i32::from(verdict != "ok"));
}

/// Runs this program again, for its status: the nice value of a session is that of its own clients alone.
fn in_a_session_of_its_own() -> i32 {
    let mut again = Command::new("/proc/self/exe");
    again.args(std::env::args_os().skip(1));
    let lead = || {
        setsid()?;
        // It does not outlive this one. SAFETY: no pointer is passed.
        unsafe { prctl(PR_SET_PDEATHSIG, SIGTERM) };
        Ok(())
    };
    // SAFETY: it makes nothing but system calls.
    unsafe { again.pre_exec(lead) };
    again.status().expect("the matrix runs again").code().unwrap_or(1)
}

/// Runs rows, so many at a time: what is wrong with them. A row never panics: the others count as well.
fn in_lanes<T: Sync>(lanes: usize, rows: &[T], run: impl Fn(&T) -> Vec<String> + Sync) -> Vec<String> {
    let (queue, red) = (Mutex::new(rows.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(row) = next else { break };
                    // The sandbox says on standard error what it knows, and ends every process of the row.
                    let result = std::thread::scope(|scope| scope.spawn(|| run(row)).join());
                    let faults = result.unwrap_or_else(|_| vec!["a row failed, see above".into()]);
                    // At once: whoever ends a long run has seen why.
                    faults.iter().for_each(|fault| eprintln!("{fault}"));
                    red.lock().unwrap().extend(faults);
                }
            });
        }
    });
    red.into_inner().unwrap()
}
