//! What comes to a server on trial: a newer deploy, a takedown, and many changes of mind.

use crate::Scene;
use crate::common::{alive, get, until};

#[test]
fn a_newer_deploy_ends_the_hold_first() {
    let scene = Scene::new();
    let first = scene.first();
    let crowd = scene.crowd();
    let second = scene.hold(&[]);
    let (status, log) = scene.deploy(&[]);
    assert_eq!(status, 0, "{log}");
    let third = get(scene.port).unwrap();
    assert_eq!(third.generation, 3);
    until("the old ones are gone", || !alive(first.pid) && !alive(second.pid));
    scene.is_alone(third);
    assert_eq!(scene.say("--undo").0, 125);
    crowd.has_lost_nothing();
    scene.end();
}

/// A newer deploy waits for a canary: when that is undone, it replaces the old server.
#[test]
fn a_newer_deploy_waits_for_a_canary() {
    let scene = Scene::new();
    let first = scene.first();
    let crowd = scene.crowd();
    for verdict in ["--undo", "--commit"] {
        // What its server was told is a guess, since another one was on trial when it was started.
        let generation = scene.states()[0].0 + 1;
        let mut new = scene.begin(&["-d", "--canary", "50:600"]);
        scene.reaches(generation, "canary 50%");
        let mut newer = scene.begin(&["-d"]);
        newer.says("waits for server");
        scene.reaches(generation, "canary 50%");
        assert_eq!(scene.say(verdict).0, 0);
        assert_eq!(new.wait(), if verdict == "--undo" { 124 } else { 0 }, "{}", new.log());
        assert_eq!(newer.wait(), 0, "{}", newer.log());
        until("one server is left", || scene.states().len() == 1);
    }
    assert!(!alive(first.pid));
    crowd.has_lost_nothing_to_a_third();
    scene.end();
}

#[test]
fn a_takedown_in_the_hold_ends_both() {
    let scene = Scene::new();
    let first = scene.first();
    let second = scene.hold(&[]);
    scene.sandbox.take_down(&scene.port.to_string());
    assert!(!alive(first.pid) && !alive(second.pid));
    assert_eq!((scene.signals(1), scene.signals(2)), (vec!["SIGTERM".to_owned()], vec!["SIGTERM".to_owned()]));
}

/// UNDOS=1000 makes it long.
#[test]
fn who_changes_his_mind_again_and_again_loses_nothing() {
    let count: usize = std::env::var("UNDOS").map_or(3, |text| text.parse().expect("a number"));
    let scene = Scene::new();
    let first = scene.first();
    let crowd = scene.crowd();
    for nth in 0..count {
        let second = scene.hold(&["--drain", "0.2"]);
        crowd.see(second.pid);
        let (status, log) = scene.say("--undo");
        assert_eq!(status, 0, "{nth}: {log}");
        crowd.see(first.pid);
        until("the new server is gone", || !alive(second.pid));
        scene.is_alone(first);
    }
    crowd.has_lost_nothing();
    assert!(alive(first.pid) && scene.signals(1).is_empty());
    scene.end();
}
