//! The lane in which something goes wrong in every swap.

use super::common::{Running, SERVERSWAP, Sandbox, children, get, kill, until};
use super::{Random, Stage, is_over, pick, quick, tally};
use nix::libc::{SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillOldServer,
    KillNewServer,
    KillOldSupervisor,
    KillNewSupervisor,
    KillOldKeeper,
    KillNewKeeper,
    StopOldSupervisor,
    StopNewSupervisor,
    StopNewServer,
    CancelTheSwap,
    HupStorm,
    NewServerExits,
}

const ALL: [Fault; 12] = [
    Fault::KillOldServer,
    Fault::KillNewServer,
    Fault::KillOldSupervisor,
    Fault::KillNewSupervisor,
    Fault::KillOldKeeper,
    Fault::KillNewKeeper,
    Fault::StopOldSupervisor,
    Fault::StopNewSupervisor,
    Fault::StopNewServer,
    Fault::CancelTheSwap,
    Fault::HupStorm,
    Fault::NewServerExits,
];

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Fault::KillOldServer => "SIGKILL to the old server",
            Fault::KillNewServer => "SIGKILL to the new server",
            Fault::KillOldSupervisor => "SIGKILL to the old supervisor",
            Fault::KillNewSupervisor => "SIGKILL to the new supervisor",
            Fault::KillOldKeeper => "SIGKILL to the old keeper",
            Fault::KillNewKeeper => "SIGKILL to the new keeper",
            Fault::StopOldSupervisor => "SIGSTOP to the old supervisor",
            Fault::StopNewSupervisor => "SIGSTOP to the new supervisor",
            Fault::StopNewServer => "SIGSTOP to the new server",
            Fault::CancelTheSwap => "SIGTERM to the waiting -d",
            Fault::HupStorm => "ten times SIGHUP to the old one",
            Fault::NewServerExits => "a new server that exits at once",
        }
    }

    /// Whether it harms a server that may serve: then requests fail.
    pub fn harms(self) -> bool {
        matches!(self, Fault::KillOldServer | Fault::KillNewServer | Fault::StopNewServer)
    }
}

/// A supervisor, its server and its keeper, as far as they are there.
#[derive(Default)]
struct Side {
    supervisor: Option<i32>,
    server: Option<i32>,
    keeper: Option<i32>,
}

impl Side {
    fn of(supervisor: Option<i32>) -> Side {
        let Some(pid) = supervisor else { return Side::default() };
        let is_ours =
            |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == Path::new(SERVERSWAP));
        let (keepers, servers): (Vec<i32>, Vec<i32>) = children(pid).into_iter().partition(is_ours);
        Side { supervisor, server: servers.first().copied(), keeper: keepers.first().copied() }
    }

    /// That of the server that has the port.
    fn old(sandbox: &Sandbox) -> Side {
        Side::of(sandbox.status().first().and_then(|row| row[3].parse().ok()))
    }

    /// That of a command which waits for the swap: the supervisor is its child.
    fn new(running: &Running) -> Side {
        Side::of(children(running.pid()).first().copied())
    }
}

/// How long a process is stopped: longer than a swap, shorter than anybody's patience.
const STOPPED: Duration = Duration::from_millis(700);

pub fn lane(mut random: Random) {
    let servers = quick();
    while !is_over() {
        let stage = Stage::new(pick(&mut random, &servers));
        stage.deploy();
        for _ in 0..3 + random.below(5) {
            let fault = ALL[random.below(ALL.len())];
            let moment = Duration::from_millis(random.below(600) as u64);
            suffer(&stage, fault, moment);
            if is_over() {
                break;
            }
        }
        stage.end();
    }
}

/// One fault in a swap, and the swap that follows.
fn suffer(stage: &Stage, fault: Fault, moment: Duration) {
    let sandbox = &stage.sandbox;
    let crowd = stage.crowd();
    until("the port is answered", || get(stage.port).is_ok());
    let old = Side::old(sandbox);
    let mut swap = match fault {
        Fault::NewServerExits => sandbox.serverswap(["-d", "sh", "-c", "exit 3"]),
        _ => sandbox.serverswap(&stage.words),
    };
    // Not a wait for anything: the fault comes at whichever moment this is.
    let started = Instant::now();
    while started.elapsed() < moment && !swap.ended() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let new = Side::new(&swap);
    let hit = |pid: Option<i32>, signal| pid.map(|pid| kill(pid, signal)).is_some();
    let stop = |pid: Option<i32>| {
        hit(pid, SIGSTOP);
        std::thread::sleep(STOPPED);
        hit(pid, SIGCONT)
    };
    let struck = match fault {
        Fault::KillOldServer => hit(old.server, SIGKILL),
        Fault::KillNewServer => hit(new.server, SIGKILL),
        Fault::KillOldSupervisor => hit(old.supervisor, SIGKILL),
        Fault::KillNewSupervisor => hit(new.supervisor, SIGKILL),
        Fault::KillOldKeeper => hit(old.keeper, SIGKILL),
        Fault::KillNewKeeper => hit(new.keeper, SIGKILL),
        Fault::StopOldSupervisor => stop(old.supervisor),
        Fault::StopNewSupervisor => stop(new.supervisor),
        Fault::StopNewServer => stop(new.server),
        Fault::CancelTheSwap if swap.ended() => false,
        Fault::CancelTheSwap => {
            swap.signal(SIGTERM);
            true
        }
        Fault::HupStorm => (0..10).fold(false, |_, _| hit(old.supervisor, SIGHUP)),
        Fault::NewServerExits => true,
    };
    let status = swap.wait();
    if fault == Fault::NewServerExits {
        assert_eq!(status, 3, "{}", swap.log());
    }
    // Whatever has become of it: the next one takes over what is left.
    stage.deploy();
    until("the port is answered", || get(stage.port).is_ok());
    let seen = crowd.stop();
    tally(|t| {
        t.swaps += 2;
        t.requests += seen.requests;
        let suffered = t.faults.entry(fault).or_default();
        *if struck { &mut suffered.struck } else { &mut suffered.missed } += 1;
        for (failure, times) in seen.failures {
            *suffered.failed.entry(failure).or_default() += times;
        }
    });
}
