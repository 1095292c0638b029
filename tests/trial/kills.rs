//! Whatever is killed during a trial: no client fails but those of a server that is killed, the next deploy works, and nothing
//! stays behind.

use crate::common::{Answer, Running, alive, get, kill, until};
use crate::{Busy, Crowd, HELD, PATIENT, Scene, all_at_once};
use nix::libc;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    OldSupervisor,
    NewSupervisor,
    BothSupervisors,
    OldServer,
    NewServer,
    Check,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Canary,
    Hold,
}

/// What becomes of the trial.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    GoesOn,
    Undone,
    Over,
    /// Nobody is left who could do something: both servers live, and the next swap sees to them.
    Left,
}

/// A server on trial.
struct Trial {
    scene: Scene,
    state: State,
    old: Answer,
    new: Answer,
    running: Running,
    crowd: Crowd,
}

impl Trial {
    fn new(state: State) -> Trial {
        let scene = Scene::new();
        let old = scene.first();
        let crowd = scene.crowd();
        let check = scene.check();
        let trial = if state == State::Canary { ["--canary", "50:600"] } else { ["--hold", "600"] };
        let running = scene.begin(&["--check", &check, trial[0], trial[1]]);
        match state {
            State::Canary => running.says("gets 50% of"),
            State::Hold => running.says("the old one is kept"),
        }
        let new = Answer { generation: 2, pid: scene.pids(2).0 };
        crowd.see(new.pid);
        Trial { scene, state, old, new, running, crowd }
    }

    fn kill(&self, victim: Victim) {
        let victims = match victim {
            Victim::OldSupervisor => vec![self.scene.pids(1).1],
            Victim::NewSupervisor => vec![self.scene.pids(2).1],
            Victim::BothSupervisors => vec![self.scene.pids(1).1, self.scene.pids(2).1],
            Victim::OldServer => vec![self.old.pid],
            Victim::NewServer => vec![self.new.pid],
            Victim::Check => return self.kill_check(),
        };
        victims.into_iter().for_each(|pid| kill(pid, libc::SIGKILL));
    }

    /// Until one is hit: each lives for a moment.
    fn kill_check(&self) {
        let text = || std::fs::read_to_string(self.scene.sandbox.path("check")).unwrap_or_default();
        let last = text();
        until("a check is killed", || {
            let now = text();
            if let Ok(pid) = now.parse::<i32>()
                && now != last
            {
                kill(pid, libc::SIGKILL);
            }
            self.running.log().contains("its check failed")
        });
    }

    /// Waits until the trial is what it has become.
    fn becomes(&mut self, outcome: Outcome) {
        let state = if self.state == State::Canary { "canary 50%" } else { "serving" };
        match outcome {
            Outcome::GoesOn => {
                self.scene.reaches(2, state);
                until("the old server has a supervisor", || {
                    self.scene.states().iter().any(|(generation, _)| *generation == 1) && alive(self.scene.pids(1).1)
                });
                let (status, log) = self.scene.say("--undo");
                assert_eq!(status, 0, "{log}");
                self.scene.is_alone(self.old);
            }
            Outcome::Undone => self.scene.is_alone(self.old),
            Outcome::Over => self.scene.is_alone(self.new),
            Outcome::Left => assert!(alive(self.old.pid) && alive(self.new.pid)),
        }
    }

    /// The next deploy works, and nothing stays behind.
    fn ends(self, lost: usize) {
        let (status, log) = self.scene.deploy(&[]);
        assert_eq!(status, 0, "{log}");
        let last = get(self.scene.port).unwrap();
        self.scene.is_alone(last);
        assert!(!alive(self.old.pid) && !alive(self.new.pid));
        let swaps_to = |pid: i32| self.scene.sandbox.swaps_to(self.scene.port, pid).len();
        until("both swaps are told of", || swaps_to(last.pid) == 1 && swaps_to(self.new.pid) > 0);
        assert_eq!(swaps_to(self.new.pid), 1, "told once");
        self.crowd.see(last.pid);
        let (answers, failures) = self.crowd.stop();
        assert!(failures.values().sum::<usize>() <= lost, "{failures:?}, answered: {answers:?}");
        self.scene.end();
    }
}

fn is_killed(victim: Victim, status: i32, outcome: Outcome, lost: usize) {
    all_at_once([State::Canary, State::Hold], |state| {
        eprintln!("{victim:?} in {state:?}");
        let mut trial = Trial::new(state);
        trial.kill(victim);
        trial.becomes(outcome);
        if outcome != Outcome::Over {
            assert_eq!(trial.running.wait(), status, "{}", trial.running.log());
            assert!(victim == Victim::OldServer || trial.scene.signals(1).is_empty());
        }
        trial.ends(lost);
    });
}

#[test]
fn without_the_old_supervisor_a_trial_goes_on() {
    is_killed(Victim::OldSupervisor, 124, Outcome::GoesOn, 0);
}

#[test]
fn without_the_new_supervisor_it_is_undone() {
    is_killed(Victim::NewSupervisor, 137, Outcome::Undone, 0);
}

#[test]
fn without_both_the_next_swap_sees_to_it() {
    is_killed(Victim::BothSupervisors, 137, Outcome::Left, 0);
}

/// The undone server drains behind the old one, which has all connections while the next one is checked.
#[test]
fn without_both_the_old_server_is_replaced() {
    let scene = Scene::new();
    let first = scene.first();
    let _trial = scene.canary("50", &PATIENT);
    let second = Answer { generation: 2, pid: scene.pids(2).0 };
    let busy = Busy::at(&scene, second);
    [1, 2].map(|generation| scene.pids(generation).1).into_iter().for_each(|pid| kill(pid, libc::SIGKILL));
    let gate = scene.sandbox.path("gate");
    let check = format!("test -e {}", gate.display());
    let mut third = scene.begin(&[&PATIENT, &["-d", "--check", &check][..]].concat());
    until("it is checked", || scene.states().iter().any(|(_, state)| state == "checking"));
    scene.goes_to(first);
    busy.ends();
    std::fs::write(gate, "").unwrap();
    assert_eq!(third.wait(), 0, "{}", third.log());
    scene.is_alone(get(scene.port).unwrap());
    assert!(!alive(first.pid) && !alive(second.pid));
    scene.end();
}

#[test]
fn without_the_old_server_it_is_over() {
    is_killed(Victim::OldServer, 0, Outcome::Over, HELD);
}

#[test]
fn without_the_new_server_it_is_undone() {
    is_killed(Victim::NewServer, 124, Outcome::Undone, HELD);
}

#[test]
fn a_check_that_is_killed_has_failed() {
    is_killed(Victim::Check, 124, Outcome::Undone, 0);
}

/// Whoever asks by the address meets the server that has the connections.
#[test]
fn the_pidfile_names_the_old_server_while_the_undone_one_drains() {
    let scene = Scene::new();
    let first = scene.first();
    let second = scene.hold(&["--drain", "12"]);
    let busy = Busy::at(&scene, second);
    kill(scene.pids(2).1, libc::SIGKILL);
    until("the pidfile names the old server", || scene.sandbox.pidfile(&scene.port.to_string()) == Some(first.pid));
    // It is given up after half of that.
    busy.ends();
    scene.is_alone(first);
    scene.end();
}
