//! Good versions and bad ones: the deploy says which it was, no client fails, and the old server notices nothing.

use crate::common::{Running, alive, get, kill, until};
use crate::{Crowd, HELD, Scene, all_at_once};
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
    let (status, log) = scene.deploy(&["--check", &check, "--canary", "5:0.3,50:0.3", "--hold", "0.3"]);
    assert_eq!(status, 0, "{log}");
    for text in ["gets 5% of", "gets 50% of", "has all new connections; the old one is kept for 0.3 s"] {
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

fn fails_while_it_is_checked(fault: Fault) {
    let scene = Scene::at("0.0.0.0", &["sick"]);
    let first = scene.first();
    let (crowd, command) = (scene.crowd(), scene.check());
    let check = match fault {
        // Of two checks in a row one always fails. Each by itself succeeds now and then.
        Fault::Flaps => ["--check-http", "/health", "--check-http", "/health"],
        Fault::Sick | Fault::Hangs | Fault::Dies => ["--check", "exit 0", "--check", &command],
    };
    let patience = match fault {
        Fault::Dies => {
            scene.set_health("hangs");
            "60"
        }
        Fault::Sick | Fault::Hangs | Fault::Flaps => {
            fault.befalls(&scene);
            "2.5"
        }
    };
    let options = [&["-d", "--ready-timeout", patience, "--canary", "50:600"], &check[..]].concat();
    let mut new = scene.begin(&options);
    if fault == Fault::Dies {
        scene.reaches(2, "checking");
        fault.befalls(&scene);
    }
    assert_eq!(new.wait(), if fault == Fault::Dies { 137 } else { 124 }, "{fault:?}: {}", new.log());
    assert_eq!(crowd.has_lost_nothing().into_keys().collect::<Vec<_>>(), [first.pid], "{fault:?}");
    scene.is_alone(first);
    assert!(scene.signals(1).is_empty());
    scene.end();
}

#[test]
fn a_version_that_fails_while_it_is_checked_gets_nothing() {
    all_at_once(FAULTS, fails_while_it_is_checked);
}

/// It fails while the old server may come back, which then serves alone.
fn fails_on_trial(fault: Fault, begin: impl Fn(&Scene, &str) -> Running) {
    let scene = Scene::new();
    let first = scene.first();
    let (crowd, check) = (scene.crowd(), scene.check());
    let mut new = begin(&scene, &check);
    crowd.see(scene.pids(2).0);
    fault.befalls(&scene);
    assert_eq!(new.wait(), 124, "{fault:?}: {}", new.log());
    assert!(new.log().contains("(all connections go to the old "), "{fault:?}: {}", new.log());
    crowd.see(first.pid);
    scene.is_alone(first);
    fault.assert_lost(crowd);
    assert!(scene.signals(1).is_empty());
    scene.end();
}

#[test]
fn a_version_that_fails_with_its_share_gives_it_back() {
    all_at_once(FAULTS, |fault| fails_on_trial(fault, |scene, check| scene.canary("50", &["--check", check])));
}

#[test]
fn a_version_that_fails_in_the_hold_gives_all_back() {
    all_at_once(FAULTS, |fault| {
        fails_on_trial(fault, |scene, check| {
            let new = scene.begin(&["--check", check, "--hold", "600"]);
            new.says("the old one is kept");
            new
        });
    });
}
