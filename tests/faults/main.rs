//! `make faults`, and part of `make test`: every fault at every step of a swap, in both orders. After each an outside
//! observer looks who answers, how long nobody did, what failed, and what is left of processes, files, sockets and
//! programs. Prints a table; any line that is not ok makes it fail. Arguments: words that a line must hold to be run;
//! `--all`: also the system calls that fail once.

#[path = "../common/mod.rs"]
mod common;

#[allow(dead_code)]
#[path = "../relay/client.rs"]
mod client;

mod calls;
mod channels;
mod entry;
mod fault;
mod kept;
mod observer;
mod scene;

use common::Sandbox;
use fault::{CHANNELS, Fault, VICTIMS, Victim, Want};
use nix::libc;
use observer::Verdict;
use scene::{Step, Swap};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// See capabilities(7).
const CAP_DAC_OVERRIDE: libc::c_ulong = 1;

/// So many cases run at a time that a machine with two processors has no timeouts of its own.
const LANES: usize = 4;
/// Beside them, of those in which somebody stands still: nearly all of their time is that.
const STILL_LANES: usize = 6;

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
    let mut left_out = Vec::new();
    let mut cases = halted(may_mount, &mut left_out);
    cases.extend(entry::cases(&mut left_out));
    cases.extend(calls::cases(std::env::args().any(|word| word == "--all"), &mut left_out));
    cases.retain(|case| words.iter().all(|word| case.name.contains(word.as_str())));
    if words.is_empty() {
        left_out.iter().for_each(|what| println!("not run: {what}"));
    }
    let (still, others): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| case.name.contains("Stopped"));
    let queues = [(STILL_LANES, Mutex::new(still.iter())), (LANES, Mutex::new(others.iter()))];
    let (red, quiet) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let baseline = observer::Baseline::start();
    let started = Instant::now();
    println!("{:<56} {:<20} {:>8} {:>6}  failed", "order, step, fault", "serves, status", "gap", "took");
    std::thread::scope(|scope| {
        for queue in queues.iter().flat_map(|(lanes, queue)| std::iter::repeat_n(queue, *lanes)) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some(case) = next else { break };
                    let started = Instant::now();
                    // A case that panics is one that failed: the sandbox says what it knows, and cleans up.
                    let result = std::thread::scope(|scope| scope.spawn(|| (case.run)()).join());
                    let result = result.unwrap_or_else(|_| Err("see above".into()));
                    println!("{}", line(case, &result, started.elapsed()));
                    match result {
                        // Where requests fail clients wait too: for a port that is free, or a server that is dead.
                        Ok(verdict) if !verdict.failures.is_empty() => {}
                        Ok(verdict) => quiet.lock().unwrap().push((&case.name, verdict.longest_gap)),
                        Err(fault) => red.lock().unwrap().push(format!("{}: {fault}", case.name)),
                    }
                }
            });
        }
    });
    let (mut red, patience) = (red.into_inner().unwrap(), baseline.patience());
    let waited = quiet.into_inner().unwrap().into_iter().filter(|(_, gap)| *gap > patience);
    red.extend(waited.map(|(name, gap)| format!("{name}: nobody answered for {gap:?}, more than {patience:?}")));
    red.iter().for_each(|fault| println!("{fault}"));
    let outcome = if red.is_empty() { "ok".to_owned() } else { format!("{} NOT ok", red.len()) };
    println!("{} faults in {} s: {outcome}", cases.len(), started.elapsed().as_secs());
    std::process::exit(i32::from(!red.is_empty() || cases.is_empty()));
}

fn line(case: &Case, result: &Result<Verdict, String>, took: Duration) -> String {
    let (note, gap, failed) = match result {
        Ok(verdict) if verdict.failures.is_empty() => (&*verdict.note, verdict.longest_gap, "0".to_owned()),
        Ok(verdict) => (&*verdict.note, verdict.longest_gap, format!("{:?}", verdict.failures)),
        Err(_) => ("", Duration::ZERO, "NOT ok".to_owned()),
    };
    format!("{:<56} {note:<20} {:>5} ms {:>4} s  {failed}", case.name, gap.as_millis(), took.as_secs())
}

/// Every fault at every step, and what cannot be done there.
fn halted(may_mount: bool, left_out: &mut Vec<String>) -> Vec<Case> {
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
    } else {
        left_out.push("a full run directory (needs root)".into());
    }
    let mut cases = vec![Case::new("shared, Draining, no fault: a program is seen".into(), negative_control)];
    for shared in [true, false] {
        let order = if shared { "shared" } else { "plain" };
        for &fault in &faults {
            let mut unfit = BTreeMap::new();
            for &step in scene::steps(shared) {
                match fault.unfit(shared, step) {
                    Some(reason) => unfit.entry(reason).or_insert_with(Vec::new).push(step),
                    None => cases
                        .push(Case::new(format!("{order}, {step:?}, {fault:?}"), move || strike(shared, step, fault))),
                }
            }
            left_out.extend(unfit.iter().map(|(reason, steps)| format!("{order}, {steps:?}, {fault:?}: {reason}")));
        }
    }
    cases
}

fn strike(shared: bool, step: Step, fault: Fault) -> Result<Verdict, String> {
    let sandbox = if shared { Sandbox::shared() } else { Sandbox::new() };
    let _mounted = (fault == Fault::FullDisk).then(|| fault::small_disk(sandbox.run_dir())).transpose()?;
    let mut swap = Swap::halted(sandbox, step, fault.options());
    fault.strike(&mut swap)?;
    let verdict = swap.judged()?;
    fault.judge(shared, step, &verdict)?;
    Ok(verdict)
}

/// What the observer looks for is there, and found, while a swap on a shared port stands still.
fn negative_control() -> Result<Verdict, String> {
    let mut swap = Swap::halted(Sandbox::shared(), Step::Draining, &["--drain", "60"]);
    if common::is_unsteered(swap.port) {
        return Err("the observer sees no program".into());
    }
    swap.go_on();
    let verdict = swap.judged()?;
    verdict.is_bounded(Some(0))?;
    Ok(verdict)
}
