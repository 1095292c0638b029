//! The lane in which one supervisor reloads all the time: nothing of it may grow.

use super::client::{Crowd, Habit};
use super::common::{Sandbox, answered_by, memory_of, plain_server, until};
use super::{Random, count, is_over, tally};
use nix::libc::SIGHUP;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

/// After so many the heap has its size.
const WARM_UP: u64 = 30;

/// So many follow before anything is said of growth, however long they take.
const MEASURED: u64 = 10;

/// What there is of it now: files, threads, KiB of memory of its own, files in the run directory, processes.
type Sample = [(&'static str, u64, u64); 5];

pub fn lane(mut random: Random) {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("127.0.0.1:{port}");
    let mut supervisor = sandbox.serverswap(["--drain", "3", plain_server().to_str().unwrap(), &address, "mute"]);
    answered_by(port, 1);
    supervisor.says("is up");
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let crowd = Crowd::start(&[here], &[(2, Habit::Fresh), (1, Habit::Browsing)]);
    let pid = supervisor.pid();
    let mut before = None;
    for generation in 2.. {
        if generation == WARM_UP {
            before = Some(settled(&sandbox, pid));
        }
        if is_over() && generation > WARM_UP + MEASURED {
            break;
        }
        match random.below(2) {
            0 => supervisor.signal(SIGHUP),
            _ => {
                let (status, log) = sandbox.run(["--reload", &address]);
                assert_eq!(status, 0, "{log}");
            }
        }
        until("the new generation has replaced the old one", || {
            let rows = sandbox.status();
            rows.len() == 1 && rows[0][1] == generation.to_string() && rows[0][5] == "serving"
        });
        tally(|t| t.swaps += 1);
    }
    count("the supervisor that reloads", &crowd.stop());
    let before = before.expect("the lane ends after its warm-up");
    let pairs = before.into_iter().zip(settled(&sandbox, pid));
    let grown = pairs.map(|((name, before, more), (_, after, _))| (name, before, after, more));
    tally(|t| t.growth.extend(grown));
    sandbox.take_down(&address);
    assert_eq!(supervisor.wait(), 0);
    until("nobody is left", || sandbox.inhabitants().is_empty());
}

/// Samples it when two samples are the same.
fn settled(sandbox: &Sandbox, pid: i32) -> Sample {
    let mut last = sample(sandbox, pid);
    until("it is as in steady state", || {
        let before = std::mem::replace(&mut last, sample(sandbox, pid));
        // A server that was reloaded, its supervisor, its keeper and the front.
        last == before && sandbox.processes().len() == sandbox.crew() + 1
    });
    last
}

fn sample(sandbox: &Sandbox, pid: i32) -> Sample {
    let entries = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count() as u64;
    [
        ("files", entries("fd"), 0),
        ("threads", entries("task"), 0),
        ("KiB", memory_of(pid, "RssAnon").unwrap(), 256),
        ("names in the directory", sandbox.files().len() as u64, 0),
        ("processes", sandbox.processes().len() as u64, 0),
    ]
}
