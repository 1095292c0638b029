//! Good versions and bad ones: the deploy says which it was, no client fails, and the old server notices nothing.

use crate::common::{alive, get, kill, until};
use crate::{Crowd, HELD, Scene};
use nix::libc;

/// How a version fails.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// Its health is bad from some moment on.
    Sick,
    /// It does not answer when it is asked how it is.
    Hangs,
    /// It is bad each second time.
    Flaps,
    Dies,
}

const FAULTS: [Fault; 4] = [Fault::Sick, Fault::Hangs, Fault::Flaps, Fault::Dies];

impl Fault {
    fn befalls(self, scene: &Scene) {
        match self {
            Fault::Sick => scene.set_health("500"),
            Fault::Hangs => scene.set_health("hangs"),
            Fault::Flaps => scene.set_health("flaps"),
            Fault::Dies => kill(scene.pids(2).0, libc::SIGKILL),
        }
    }

    fn assert_lost(self, crowd: Crowd) {
        let (answers, failures) = crowd.stop();
        let allowed = if self == Fault::Dies { HELD } else { 0 };
        assert!(failures.values().sum::<usize>() <= allowed, "{self:?}: {failures:?}, answered: {answers:?}");
    }
}

#[test]
fn a_good_version_replaces_the_old_one() {
    let scene = Scene::new();
    let first = scene.first();
    let crowd = scene.crowd();
    let check = scene.check();
    let (status, log) = scene.deploy(&["--check", &check, "--canary", "5:0.5,50:0.5", "--hold", "0.5"]);
    assert_eq!(status, 0, "{log}");
    for text in ["gets 5% of", "gets 50% of", "has all new connections; the old one is kept for 0.5 s"] {
        assert!(log.contains(text), "{text}: {log}");
    }
    until("the old server is gone", || !alive(first.pid));
    let new = get(scene.port).unwrap();
    assert_eq!(new.generation, 2);
    crowd.see(new.pid);
    scene.is_alone(new);
    assert_eq!(crowd.has_lost_nothing().len(), 2);
    scene.end();
}

#[test]
fn a_version_that_fails_while_it_is_checked_gets_nothing() {
    let scene = Scene::at("0.0.0.0", &["sick"]);
    let first = scene.first();
    let check = scene.check();
    for fault in [Fault::Sick, Fault::Hangs, Fault::Dies] {
        let crowd = scene.crowd();
        scene.set_health(if fault == Fault::Dies { "hangs" } else { "500" });
        if fault != Fault::Dies {
            fault.befalls(&scene);
        }
        let mut new = scene.begin(&["-d", "--ready-timeout", "2", "--check", &check, "--canary", "50:600"]);
        if fault == Fault::Dies {
            scene.reaches(2, "checking");
            fault.befalls(&scene);
        }
        let status = new.wait();
        assert_eq!(status, if fault == Fault::Dies { 137 } else { 124 }, "{}", new.log());
        assert_eq!(crowd.has_lost_nothing().into_keys().collect::<Vec<_>>(), [first.pid], "{fault:?}");
        scene.is_alone(first);
    }
    assert!(scene.signals(1).is_empty());
    scene.end();
}

#[test]
fn a_version_that_fails_with_its_share_gives_it_back() {
    let scene = Scene::new();
    let first = scene.first();
    let check = scene.check();
    for fault in FAULTS {
        let crowd = scene.crowd();
        scene.set_health("200");
        let mut new = scene.canary("50", &["--check", &check]);
        crowd.see(scene.pids(2).0);
        fault.befalls(&scene);
        assert_eq!(new.wait(), 124, "{fault:?}: {}", new.log());
        assert!(new.log().contains("(all connections go to the old "), "{fault:?}: {}", new.log());
        crowd.see(first.pid);
        scene.is_alone(first);
        fault.assert_lost(crowd);
    }
    assert!(scene.signals(1).is_empty());
    scene.end();
}

#[test]
fn a_version_that_fails_in_the_hold_gives_all_back() {
    let scene = Scene::new();
    let first = scene.first();
    let check = scene.check();
    for fault in FAULTS {
        let crowd = scene.crowd();
        scene.set_health("200");
        let mut new = scene.begin(&["--check", &check, "--hold", "600"]);
        scene.reaches(1, "held");
        crowd.see(scene.pids(2).0);
        fault.befalls(&scene);
        assert_eq!(new.wait(), 124, "{fault:?}: {}", new.log());
        crowd.see(first.pid);
        scene.is_alone(first);
        fault.assert_lost(crowd);
    }
    assert!(scene.signals(1).is_empty());
    scene.end();
}
