//! What is done to a swap, and how it is undone.

use super::channels;
use super::common::{self, alive, get, kill, until};
use super::observer::Verdict;
use super::scene::{CLIENTS, Serving, Side, Step, Swap};
use nix::libc;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// A process of a swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    OldServer,
    NewServer,
    OldSupervisor,
    NewSupervisor,
    OldKeeper,
    NewKeeper,
}

pub const VICTIMS: [Victim; 6] = [
    Victim::OldServer,
    Victim::NewServer,
    Victim::OldSupervisor,
    Victim::NewSupervisor,
    Victim::OldKeeper,
    Victim::NewKeeper,
];

impl Victim {
    fn pid(self, swap: &Swap) -> Option<i32> {
        let pid = match self {
            Victim::OldServer => Some(swap.old.server),
            Victim::NewServer => Some(swap.new.server),
            Victim::OldSupervisor => Some(swap.old.running.pid()),
            Victim::NewSupervisor => Some(swap.new.running.pid()),
            Victim::OldKeeper => swap.old.keeper,
            Victim::NewKeeper => swap.new.keeper,
        };
        pid.filter(|pid| alive(*pid))
    }

    /// Whether it is the server that serves at this step.
    fn serves(self, swap: &Swap) -> bool {
        self.pid(swap).is_some() && self.pid(swap) == swap.serving()
    }
}

/// A channel, by the two who speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    OldControl,
    NewControl,
    OldKeeper,
    NewKeeper,
    /// Between the supervisors.
    Peers,
}

pub const CHANNELS: [Channel; 5] =
    [Channel::OldControl, Channel::NewControl, Channel::OldKeeper, Channel::NewKeeper, Channel::Peers];

impl Channel {
    fn ends(self, swap: &Swap) -> Vec<(i32, i32)> {
        let (old, new) = (swap.old.running.pid(), swap.new.running.pid());
        let keeper = |side: &Side| side.keeper.map(|keeper| (side.running.pid(), keeper));
        match self {
            Channel::OldControl => vec![(old, swap.old.server)],
            Channel::NewControl => vec![(new, swap.new.server)],
            Channel::OldKeeper => keeper(&swap.old).into_iter().collect(),
            Channel::NewKeeper => keeper(&swap.new).into_iter().collect(),
            Channel::Peers => {
                let rest = swap.rest.iter().map(|rest| (new, rest.running.pid()));
                [(new, old)].into_iter().chain(rest).collect()
            }
        }
    }
}

/// What happens to a supervisor that gets no more of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// EMFILE: not one file more.
    Files,
    /// ENOMEM: not one page more.
    Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Killed(Victim),
    /// SIGSTOP for longer than every timeout, then SIGCONT.
    Stopped(Victim),
    Eof(Channel),
    FullDisk,
    /// To everybody in it: not even root may write where it has no right to.
    ReadOnly,
    Wants(Victim, Want),
    /// Two more swaps, a takedown and a reload, all in one moment.
    AtOnce,
}

impl Fault {
    /// Options of both generations. Where everything has to run out, it does so soon.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            // But no sooner than the scene is set, on a loaded machine.
            Fault::Stopped(_) => &["--ready-timeout", "5", "--drain", "2", "--kill-after", "4"],
            // A server that is not heard any more is never up.
            Fault::Eof(_) => &["--ready-timeout", "20", "--drain", "60"],
            // Nor does one that cannot take a claim keep anybody waiting.
            Fault::Wants(..) => &["--ready-timeout", "10", "--drain", "60"],
            // A server that a reload starts waits at a gate which is open no more, until then.
            Fault::AtOnce => &["--ready-timeout", "10", "--drain", "60"],
            _ => &["--drain", "60"],
        }
    }

    /// How long it lasts where it must outlast every timeout of [`Fault::options`].
    /// Peers give each other 10 s for a first line, and a server that was killed 10 s to be gone.
    const STOPPED: Duration = Duration::from_secs(12);

    /// Why it cannot be done at this step.
    pub fn unfit(self, shared: bool, step: Step) -> Option<&'static str> {
        let gone = (step == Step::Steady).then_some("the old one is gone");
        let no_keeper = (!shared).then_some("in plain order there is no keeper");
        match self {
            Fault::Killed(victim) | Fault::Stopped(victim) | Fault::Wants(victim, _) => match victim {
                Victim::OldServer | Victim::OldSupervisor => gone,
                Victim::OldKeeper => no_keeper.or(gone),
                Victim::NewKeeper => {
                    let early = matches!(step, Step::Starting | Step::Queued | Step::Told);
                    (!shared && !early).then_some("in plain order a keeper goes when somebody was harmed")
                }
                Victim::NewServer | Victim::NewSupervisor => None,
            },
            Fault::Eof(channel) => match channel {
                Channel::OldControl => gone,
                Channel::Peers if step == Step::Starting => Some("they have no word before the new server listens"),
                Channel::Peers => gone,
                Channel::OldKeeper => no_keeper.or(gone),
                Channel::NewKeeper => no_keeper,
                Channel::NewControl => {
                    let deaf = !shared && step == Step::Starting;
                    deaf.then_some("a server that hears no GO never binds: a worker that does nothing")
                }
            },
            Fault::AtOnce if !step.trial().is_empty() => Some("what a reload starts would be on trial too"),
            Fault::FullDisk | Fault::ReadOnly | Fault::AtOnce => None,
        }
    }

    /// Does it, waits until whoever has to act has done so, has the observer look, and undoes it. The error says
    /// what the observer did not like.
    pub fn strike(self, swap: &mut Swap) -> Result<(), String> {
        match self {
            Fault::Killed(victim) => {
                let pid = victim.pid(swap).ok_or("no victim")?;
                let serves = victim.serves(swap);
                kill(pid, libc::SIGKILL);
                let before = matches!(swap.step, Step::Starting | Step::Queued | Step::Proving);
                // Whoever was on trial drains first.
                let before = before || matches!(swap.step, Step::Canary | Step::Held);
                until("who has to act on it has done so", || match victim {
                    Victim::OldServer => swap.old.running.ended(),
                    Victim::NewServer => swap.new.running.ended(),
                    Victim::NewSupervisor if before => !alive(swap.new.server),
                    _ => !alive(pid),
                });
                // An old server that was told and has lost its supervisor is taken over, and told again: by a signal.
                let turns_back = victim == Victim::NewSupervisor && swap.step == Step::Held;
                if !(serves || turns_back || victim == Victim::OldSupervisor && told(swap)) {
                    answers(swap)?;
                }
                swap.go_on();
                Ok(())
            }
            Fault::Stopped(victim) => {
                let pid = victim.pid(swap).ok_or("no victim")?;
                let serves = victim.serves(swap);
                kill(pid, libc::SIGSTOP);
                let since = Instant::now();
                until("every timeout is over", || since.elapsed() > Fault::STOPPED);
                // Whoever waited for something may have it by now, and serve.
                // An old server that was told is gone by now.
                let somebody = !serves && !told(swap) && swap.serving().is_some();
                let seen = match somebody.then(|| get(swap.port)) {
                    Some(Err(failure)) => Err(format!("nobody answers: {failure:?}")),
                    _ => Ok(()),
                };
                kill(pid, libc::SIGCONT);
                swap.go_on();
                seen
            }
            Fault::Eof(channel) => {
                let ended: usize = channel.ends(swap).into_iter().map(|(one, other)| channels::end(one, other)).sum();
                if ended == 0 {
                    return Err("there is no such channel".into());
                }
                answers(swap)?;
                swap.go_on();
                Ok(())
            }
            Fault::FullDisk => {
                let path = swap.sandbox.run_dir().join("filler");
                fs::write(&path, vec![0; 1 << 20]).err().ok_or("the disk is not full")?;
                answers(swap)?;
                swap.go_on();
                fs::remove_file(path).map_err(|e| e.to_string())
            }
            Fault::ReadOnly => {
                let mode = |bits| fs::set_permissions(swap.sandbox.run_dir(), fs::Permissions::from_mode(bits));
                mode(0o555).map_err(|e| e.to_string())?;
                answers(swap)?;
                swap.go_on();
                let mode = |bits| fs::set_permissions(swap.sandbox.run_dir(), fs::Permissions::from_mode(bits));
                mode(0o755).map_err(|e| e.to_string())
            }
            Fault::Wants(victim, want) => {
                let pid = victim.pid(swap).ok_or("no victim")?;
                let before = limit(pid, want, None)?;
                answers(swap)?;
                // Without files and memory nobody can be told how a trial ends: it is asked for, and goes on.
                let is_deaf = victim == Victim::NewSupervisor && !swap.step.trial().is_empty();
                if is_deaf {
                    let (status, said) = swap.sandbox.run(["--undo", &format!(":{}", swap.port)]);
                    if status != 125 {
                        return Err(format!("--undo without {want:?}: {status}, {said}"));
                    }
                    let _ = limit(pid, want, Some(before));
                }
                swap.go_on();
                let _ = limit(pid, want, Some(before));
                Ok(())
            }
            Fault::AtOnce => {
                let address = format!("0.0.0.0:{}", swap.port);
                let port = format!(":{}", swap.port);
                let mut all = vec![
                    swap.sandbox.plain(&["-d"], &[&address]),
                    swap.sandbox.serverswap(["--takedown", &port]),
                    swap.sandbox.serverswap(["--reload", &port]),
                    swap.sandbox.plain(&["-d"], &[&address]),
                ];
                swap.go_on();
                for one in &mut all {
                    one.wait();
                }
                Ok(())
            }
        }
    }

    /// The error says what clients and commands saw that may not come of it.
    pub fn judge(self, shared: bool, step: Step, verdict: &Verdict) -> Result<(), String> {
        // One that was to be shared may run in plain order, and says why: without files or memory the listeners of
        // the old server cannot be had.
        let fallen_back = matches!(self, Fault::Wants(..)) && verdict.said.contains("this swap runs in plain order");
        if shared && !fallen_back {
            verdict.is_bounded(self.bound(step, CLIENTS))?;
        } else {
            let stopped = matches!(self, Fault::Stopped(Victim::OldServer | Victim::NewServer));
            verdict.is_plain(stopped)?;
        }
        // Whoever is struck, or told to go by --takedown, may fail at once.
        let harmed = match self {
            Fault::Killed(victim) => matches!(victim, Victim::OldServer | Victim::OldSupervisor),
            Fault::Stopped(_) | Fault::AtOnce => true,
            _ => false,
        };
        if step.serving(shared) == Serving::Old && !harmed && verdict.halted > 0 {
            return Err(format!("{} failed while the old server served: {:?}", verdict.halted, verdict.failures));
        }
        let has_no_say = match self {
            // Others came after it.
            Fault::AtOnce => true,
            Fault::Killed(Victim::NewSupervisor) => true,
            // It aborts where it can get no memory, and says no more than one that was killed: 128 and SIGABRT.
            Fault::Wants(Victim::NewSupervisor, Want::Memory) => {
                matches!(verdict.outcome, Some((_, Some(status))) if status == 128 + libc::SIGABRT)
            }
            // The end of a server that had nothing to do with a swap any more.
            Fault::Killed(Victim::NewServer) => step == Step::Steady,
            _ => false,
        };
        if has_no_say || verdict.is_consistent() { Ok(()) } else { Err(format!("in the end: {}", verdict.note)) }
    }

    /// How many requests of the crowd may fail on a shared port; `None`: whoever served is dead, and until the
    /// next one is up everybody meets nobody.
    fn bound(self, step: Step, clients: usize) -> Option<usize> {
        let serving = step.serving(true);
        match self {
            // What a server holds when it dies: a connection of each client, and, since the kernel closes the
            // files of a process from the last to the first, another one in the queue of its listener. Then the
            // old one serves.
            Fault::Killed(Victim::NewServer) if matches!(step, Step::Held | Step::Draining) => Some(2 * clients),
            Fault::Killed(Victim::NewServer | Victim::OldServer) if serving == Serving::Both => Some(2 * clients),
            Fault::Killed(Victim::OldServer) if serving == Serving::Old => None,
            Fault::Killed(Victim::NewServer) if serving == Serving::New => None,
            // A server that stands still answers nobody.
            Fault::Stopped(Victim::OldServer) if serving == Serving::Old => None,
            Fault::Stopped(Victim::NewServer) if serving == Serving::New => None,
            Fault::Stopped(Victim::NewServer | Victim::OldServer) if serving == Serving::Both => None,
            // Whoever is told to go by --takedown goes.
            Fault::AtOnce => None,
            _ => Some(0),
        }
    }
}

/// Whether the old server was told to go while it still serves.
fn told(swap: &Swap) -> bool {
    !swap.sandbox.is_shared() && matches!(swap.step, Step::Queued | Step::Told)
}

/// Whoever serves while the swap stands still still does.
fn answers(swap: &Swap) -> Result<(), String> {
    let Some(serving) = swap.serving() else { return Ok(()) };
    match get(swap.port) {
        Ok(answer) if answer.pid == serving => Ok(()),
        other => Err(format!("server {serving} does not answer: {other:?}")),
    }
}

/// A file system of its own for the run directory, small enough to be filled, in the mount namespace of this program.
/// Goes with the sandbox around it, which cannot be removed before.
pub struct Mounted(PathBuf);

pub fn small_disk(at: PathBuf) -> Result<Mounted, String> {
    fs::create_dir(&at).map_err(|e| e.to_string())?;
    let options = ["-t", "tmpfs", "-o", "size=64k,mode=755", "none"];
    let output = Command::new("mount").args(options).arg(&at).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(Mounted(at)) } else { Err(text) }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = self.0.parent().map(fs::remove_dir_all);
    }
}

/// Sets a limit of another process so that it gets no more, or back; the one that it had.
fn limit(pid: i32, want: Want, to: Option<u64>) -> Result<u64, String> {
    let used = || match want {
        Want::Files => common::next_file_of(pid),
        Want::Memory => {
            let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
            Ok(statm.split(' ').next().and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096)
        }
    };
    let resource = match want {
        Want::Files => libc::RLIMIT_NOFILE,
        Want::Memory => libc::RLIMIT_AS,
    };
    let set = to.map_or_else(used, Ok).and_then(|to| common::limit(pid, resource, to));
    set.map_err(|e| e.to_string())
}
