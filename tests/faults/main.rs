//! `make faults`, and part of `make test`: every fault at every step of a swap, in both orders. After each an outside
//! observer looks who answers, how long nobody did, what failed, and what is left of processes, files, sockets and
//! programs. Prints a table; any line that is not ok makes it fail. Arguments: words that a line must hold to be run;
//! `--all`: also the system calls that fail once.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod channels;
mod entry;
mod fault;
mod scene;

use common::Sandbox;
use fault::{CHANNELS, Fault, VICTIMS, Victim, Want};
use nix::libc;
use scene::{CLIENTS, Step, Swap, Verdict};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// See capabilities(7).
const CAP_DAC_OVERRIDE: libc::c_ulong = 1;

/// Most cases wait most of their time; not so many that a machine with two processors has timeouts of its own.
const LANES: usize = 5;

/// A line of the table: what it is called, and how it goes.
pub struct Case {
    name: String,
    run: Box<dyn Fn() -> Result<Verdict, String> + Send + Sync>,
}

impl Case {
    /// One that is run by a function.
    pub fn new(name: String, run: impl Fn() -> Result<Verdict, String> + Send + Sync + 'static) -> Case {
        Case { name, run: Box::new(run) }
    }
}

fn main() {
    // A run directory can be a file system of its own only as root, and in a mount namespace that goes with us.
    // SAFETY: plain system calls on constant strings, before any thread is started.
    let may_mount = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
    };
    // Root may write everywhere. What we start may not: a directory can be read-only to it.
    // SAFETY: a plain system call.
    unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) };
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut cases = halted(may_mount);
    cases.extend(entry::cases());
    cases.extend(calls::cases(std::env::args().any(|word| word == "--all")));
    cases.retain(|case| words.iter().all(|word| case.name.contains(word.as_str())));
    if !may_mount {
        println!("not run: a full run directory (needs root)");
    }
    let (queue, red) = (Mutex::new(cases.iter()), Mutex::new(Vec::new()));
    let started = Instant::now();
    println!("{:<56} {:>8} {:>6}  failed", "order, step, fault", "gap", "took");
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(case) = next else { break };
                    let started = Instant::now();
                    // A case that panics is one that failed: the sandbox says what it knows, and cleans up.
                    let result = std::thread::scope(|scope| scope.spawn(|| (case.run)()).join());
                    let result = result.unwrap_or_else(|_| Err("see above".into()));
                    println!("{}", line(case, &result, started.elapsed()));
                    if let Err(fault) = result {
                        red.lock().unwrap().push(format!("{}: {fault}", case.name));
                    }
                }
            });
        }
    });
    let red = red.into_inner().unwrap();
    red.iter().for_each(|fault| println!("{fault}"));
    let outcome = if red.is_empty() { "ok".to_owned() } else { format!("{} NOT ok", red.len()) };
    println!("{} faults in {} s: {outcome}", cases.len(), started.elapsed().as_secs());
    std::process::exit(i32::from(!red.is_empty() || cases.is_empty()));
}

fn line(case: &Case, result: &Result<Verdict, String>, took: Duration) -> String {
    let (gap, failed) = match result {
        Ok(verdict) if verdict.failures.is_empty() => (verdict.longest_gap.as_millis(), "0".to_owned()),
        Ok(verdict) => (verdict.longest_gap.as_millis(), format!("{:?}", verdict.failures)),
        Err(_) => (0, "NOT ok".to_owned()),
    };
    format!("{:<56} {gap:>5} ms {:>4} s  {failed}", case.name, took.as_secs())
}

/// Every fault at every step.
fn halted(may_mount: bool) -> Vec<Case> {
    let mut faults: Vec<Fault> = Vec::new();
    faults.extend(VICTIMS.map(Fault::Killed));
    faults.extend(VICTIMS.map(Fault::Stopped));
    faults.extend(CHANNELS.map(Fault::Eof));
    for want in [Want::Files, Want::Memory] {
        faults.extend([Victim::OldSupervisor, Victim::NewSupervisor].map(|victim| Fault::Wants(victim, want)));
    }
    faults.extend([Fault::AtOnce, Fault::ReadOnly]);
    if may_mount {
        faults.push(Fault::FullDisk);
    }
    let mut cases = Vec::new();
    for shared in [true, false] {
        for &step in scene::steps(shared) {
            for &fault in faults.iter().filter(|fault| fault.fits(shared, step)) {
                let order = if shared { "shared" } else { "plain" };
                cases.push(Case::new(format!("{order}, {step:?}, {fault:?}"), move || strike(shared, step, fault)));
            }
        }
    }
    cases
}

fn strike(shared: bool, step: Step, fault: Fault) -> Result<Verdict, String> {
    let sandbox = if shared { Sandbox::shared() } else { Sandbox::new() };
    if fault == Fault::FullDisk {
        let run = sandbox.run_dir();
        std::fs::create_dir(&run).map_err(|e| e.to_string())?;
        fault::mount(&["-t", "tmpfs", "-o", "size=64k,mode=755", "none"], &run)?;
    }
    let mut swap = Swap::halted(sandbox, step, fault.options());
    fault.strike(&mut swap)?;
    let verdict = swap.judged()?;
    // A swap in plain order refuses connections by itself: close to zero, not zero. So may one that was to be
    // shared, and says why it is not: without files or memory the listeners of the old server cannot be had.
    let shared =
        shared && !(matches!(fault, Fault::Wants(..)) && verdict.said.contains("this swap runs in plain order"));
    match fault.bound(step, CLIENTS) {
        Some(most) if shared && verdict.failed() > most => {
            Err(format!("{:?}, and {most} may fail\n{}", verdict.failures, verdict.said))
        }
        _ => Ok(verdict),
    }
}
