//! `--undo` and `--commit`: who says them gets what he asked for, at once, and no client notices.

use crate::client::Client;
use crate::common::{Answer, SERVERSWAP, alive, get, kill, until};
use crate::{Busy, PATIENT, Scene};
use nix::libc;
use std::sync::atomic::{AtomicBool, Ordering};

impl Scene {
    fn ids(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.sandbox.path("ids")).unwrap_or_default();
        let mut ids: Vec<String> = text.lines().map(str::to_owned).collect();
        ids.sort();
        ids
    }
}

#[test]
fn undo_in_a_canary_brings_all_back_at_once() {
    let scene = Scene::new();
    let first = scene.first();
    let crowd = scene.crowd();
    let mut new = scene.canary("50", &[]);
    crowd.see(scene.pids(2).0);
    let (status, log) = scene.say("--undo");
    scene.goes_to(first);
    assert_eq!((status, new.wait()), (0, 124), "{log}{}", new.log());
    scene.is_alone(first);
    crowd.has_lost_nothing();
    assert!(scene.signals(1).is_empty());
    scene.end();
}

/// Neither a new connection nor one that the new server has: a client that keeps it is answered by the old server.
#[test]
fn promise_10_while_a_swap_is_held_one_word_brings_the_old_server_back() {
    let scene = Scene::new();
    let first = scene.first();
    let crowd = scene.crowd();
    let second = scene.hold(&["--drain", "3"]);
    assert_eq!(second.generation, 2);
    scene.goes_to(second);
    let mut kept = Client::connect(scene.port);
    let mut ask = |nth: u32| {
        let answer = kept.post(&format!("{nth}")).unwrap_or_else(|e| panic!("request {nth}: {e}"));
        if answer.closes() {
            kept = Client::connect(scene.port);
        }
        answer.generation()
    };
    assert_eq!(ask(0), 2);
    let (status, log) = scene.say("--undo");
    assert_eq!(status, 0, "{log}");
    scene.goes_to(first);
    let mut asked = 1;
    until("the old server answers", || {
        asked += 1;
        ask(asked - 1) == 1
    });
    scene.is_alone(first);
    assert_eq!(scene.ids().len() as u32, asked, "each request is done once");
    crowd.has_lost_nothing();
    assert!(scene.signals(1).is_empty());
    scene.end();
}

#[test]
fn commit_gives_all_away_at_once() {
    let scene = Scene::new();
    let first = scene.first();
    let crowd = scene.crowd();
    let mut new = scene.canary("50", &["--hold", "600"]);
    let second = Answer { generation: 2, pid: scene.pids(2).0 };
    let (status, log) = scene.say("--commit");
    scene.goes_to(second);
    assert_eq!((status, new.wait()), (0, 0), "{log}{}", new.log());
    until("the old server is gone", || !alive(first.pid));
    scene.is_alone(second);
    let (status, log) = scene.deploy(&["--hold", "600"]);
    assert_eq!(status, 0, "{log}");
    let third = get(scene.port).unwrap();
    assert_eq!(scene.states(), [(2, "held".to_owned()), (3, "serving".to_owned())]);
    assert_eq!(scene.say("--commit").0, 0);
    scene.goes_to(third);
    until("the old server is gone", || !alive(second.pid));
    scene.is_alone(third);
    crowd.has_lost_nothing();
    scene.end();
}

#[test]
fn there_is_nothing_to_decide_where_nobody_is_on_trial() {
    let scene = Scene::new();
    let no_verdict = || {
        for verdict in ["--undo", "--commit"] {
            let (status, log) = scene.say(verdict);
            assert_eq!(status, 125, "{log}");
            assert!(log.contains("no new server is on trial there"), "{log}");
        }
    };
    let first = scene.first();
    no_verdict();
    let mut new = scene.canary("50", &[]);
    assert_eq!(scene.say("--undo").0, 0);
    assert_eq!(new.wait(), 124);
    no_verdict();
    scene.is_alone(first);
    scene.end();
}

#[test]
fn who_waits_for_a_canary_can_stop_it() {
    let scene = Scene::new();
    let first = scene.first();
    let crowd = scene.crowd();
    let mut new = scene.canary("50", &[]);
    crowd.see(scene.pids(2).0);
    new.signal(libc::SIGTERM);
    assert_eq!(new.wait(), 124, "{}", new.log());
    scene.is_alone(first);
    let mut new = scene.begin(&["--canary", "50:600"]);
    new.says("gets 50% of");
    new.signal(libc::SIGTERM);
    assert_eq!(new.wait(), 124, "{}", new.log());
    scene.is_alone(first);
    let mut new = scene.begin(&["--hold", "600"]);
    new.says("the old one is kept");
    new.signal(libc::SIGTERM);
    assert_eq!(new.wait(), 124, "{}", new.log());
    scene.is_alone(first);
    crowd.has_lost_nothing();
    assert!(scene.signals(1).is_empty());
    scene.end();
}

/// Clients post on kept connections through a trial that is undone. Nothing is lost, and nothing done twice.
#[test]
fn kept_connections_of_the_new_server_are_answered_by_the_old_one() {
    let scene = Scene::new();
    scene.first();
    let second = scene.hold(&["--drain", "3"]);
    let (stop, connect) = (AtomicBool::new(false), || Client::connect(scene.port));
    let ask = |nth: usize, mut client: Client| {
        let (mut asked, mut moved) = (Vec::new(), false);
        while !stop.load(Ordering::Relaxed) {
            let id = format!("{nth}.{}", asked.len());
            let answer = client.post(&id).unwrap_or_else(|e| panic!("{id}: {e}"));
            assert_eq!(answer.status, 200, "{id}: {answer:?}");
            moved |= answer.generation() == 1;
            assert!(!moved || answer.generation() == 1, "{id}: {answer:?}");
            asked.push(id);
            if answer.closes() {
                client = connect();
            }
        }
        assert!(moved, "client {nth}");
        asked
    };
    let ask = &ask;
    let mut asked: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|nth| (nth, connect())).collect();
        let threads: Vec<_> = threads.into_iter().map(|(nth, c)| scope.spawn(move || ask(nth, c))).collect();
        until("all are busy", || scene.ids().len() > 100);
        let undone = scene.say("--undo");
        until("the new server is gone", || !alive(second.pid));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(undone.0, 0, "{}", undone.1);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    asked.sort();
    assert_eq!(asked, scene.ids(), "asked, and done");
    scene.end();
}

/// The new server drains for as long as a client needs, and the old one has its connections meanwhile.
fn does_not_wait_for_clients(undo: impl Fn(&Scene, Answer)) {
    let scene = Scene::new();
    assert_eq!(scene.deploy(&PATIENT).0, 0);
    let first = get(scene.port).unwrap();
    let second = scene.hold(&PATIENT);
    let busy = Busy::at(&scene, second);
    undo(&scene, first);
    until("the old server answers", || get(scene.port).unwrap() == first);
    scene.goes_to(first);
    busy.ends();
    scene.is_alone(first);
    assert!(scene.signals(1).is_empty());
    scene.end();
}

#[test]
fn undo_does_not_wait_for_the_clients_of_the_new_server() {
    does_not_wait_for_clients(|scene, first| {
        let (status, log) = scene.say("--undo");
        assert_eq!(status, 0, "{log}");
        until("its pidfile is back", || scene.sandbox.pidfile(&scene.port.to_string()) == Some(first.pid));
        assert!(scene.states().contains(&(1, "serving".to_owned())), "{:?}", scene.states());
    });
}

#[test]
fn without_the_new_supervisor_nobody_waits_for_them_either() {
    does_not_wait_for_clients(|scene, _| kill(scene.pids(2).1, libc::SIGKILL));
}

#[test]
fn files_that_are_removed_in_a_hold_are_written_again_and_name_the_new_server() {
    let scene = Scene::new();
    let first = scene.first();
    let second = scene.hold(&[]);
    for name in std::fs::read_dir(scene.sandbox.run_dir()).unwrap().flatten() {
        std::fs::remove_file(name.path()).unwrap();
    }
    let held = [(1, "held".to_owned()), (2, "serving".to_owned())];
    until("both are there again", || scene.states() == held);
    assert_eq!(scene.sandbox.pidfile(&scene.port.to_string()), Some(second.pid));
    // The hold can still be ended by the next deploy.
    let (status, log) = scene.deploy(&[]);
    assert_eq!(status, 0, "{log}");
    let third = get(scene.port).unwrap();
    scene.is_alone(third);
    assert!(!alive(first.pid) && !alive(second.pid));
    scene.end();
}

#[test]
fn a_held_server_lives_on() {
    let scene = Scene::new();
    let first = scene.first();
    let pidfile = || scene.sandbox.pidfile(&scene.port.to_string());
    assert_eq!(pidfile(), Some(first.pid));
    let mut kept = Client::connect(scene.port);
    assert_eq!(kept.post("before").unwrap().generation(), 1);
    let (status, log) = scene.deploy(&["--hold", "300"]);
    assert_eq!(status, 0, "{log}");
    let second = get(scene.port).unwrap();
    assert!(log.contains("the old one is kept for 300 s"), "{log}");
    // As anyone may say it, in whose environment there is nothing of ours.
    let [undo, commit] = ["to have it back: serverswap ", "to let it go: serverswap "].map(|before| {
        let (_, after) = log.split_once(before).unwrap_or_else(|| panic!("{log}"));
        after.split([';', ')']).next().unwrap().to_owned()
    });
    assert_eq!(commit.replace("--commit", "--undo"), undo);
    assert_eq!(scene.states(), [(1, "held".to_owned()), (2, "serving".to_owned())]);
    assert_eq!(pidfile(), Some(second.pid));
    let file = scene.sandbox.path(&format!("ticks.{}", first.pid));
    let ticks = || std::fs::metadata(&file).unwrap().len();
    let before = ticks();
    until("it ticks", || ticks() != before);
    assert_eq!(kept.post("during").unwrap().generation(), 1);
    let mut shell = scene.sandbox.command("sh");
    shell.args(["-c", &format!("{SERVERSWAP} {undo}")]).env_remove("SERVERSWAP_RUN_DIR");
    let mut shell = scene.sandbox.start(shell);
    assert_eq!(shell.wait(), 0, "{}", shell.log());
    until("its pidfile is back", || pidfile() == Some(first.pid));
    assert_eq!(kept.post("after").unwrap().generation(), 1);
    scene.is_alone(first);
    assert!(scene.signals(1).is_empty());
    scene.end();
}
