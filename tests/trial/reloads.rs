//! Reloads of a server whose command says that each version has to prove itself: its front knows whose word counts.

use crate::common::{Answer, Running, SERVERSWAP, answered_by, get, kill, until};
use crate::{Busy, Scene};
use nix::libc;
use std::os::unix::net::UnixDatagram;

impl Scene {
    /// The first server, in the foreground, with a service manager that hears of it.
    fn is_managed(&self, options: &[&str]) -> (Running, Manager) {
        let path = self.sandbox.path("manager");
        let manager = Manager(UnixDatagram::bind(&path).unwrap());
        manager.0.set_nonblocking(true).unwrap();
        let mut command = self.sandbox.command(SERVERSWAP);
        command.args(["--drain", "0.3"]).args(options).args(&self.server).env("NOTIFY_SOCKET", path);
        let front = self.sandbox.start(command);
        answered_by(self.port, 1);
        manager.hears("READY=1");
        (front, manager)
    }

    fn reload(&self) -> Running {
        self.sandbox.serverswap(["--reload", &self.port.to_string()])
    }

    /// A front whose copy was undone, and still has a client.
    fn has_an_undone_copy(&self) -> Undone {
        let (front, _) = self.is_managed(&["--hold", "600", "--drain", "30"]);
        let first = answered_by(self.port, 1);
        assert_eq!(self.reload().wait(), 0);
        let second = answered_by(self.port, 2);
        self.gets_signal(2, &front);
        let busy = Busy::at(self, second);
        assert_eq!(self.say("--undo").0, 0);
        self.goes_to(first);
        self.reaches(2, "draining");
        Undone { front, first, second, busy }
    }

    fn gets_signal(&self, generation: u64, front: &Running) {
        let before = self.signals(generation).len();
        front.signal(libc::SIGUSR1);
        until(&format!("generation {generation} has the signal"), || self.signals(generation).len() > before);
    }
}

struct Undone {
    front: Running,
    first: Answer,
    second: Answer,
    busy: Busy,
}

/// What a service manager hears.
struct Manager(UnixDatagram);

impl Manager {
    fn next(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        let len = self.0.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
    }

    fn hears(&self, text: &str) {
        until(&format!("the manager hears {text}"), || self.next().is_some_and(|heard| heard == text));
    }
}

#[test]
fn a_front_whose_copy_was_undone_serves_and_reloads_as_before() {
    let scene = Scene::new();
    let Undone { mut front, first, second, busy } = scene.has_an_undone_copy();
    scene.gets_signal(1, &front);
    // The undone server still has a client, and the next one waits until it is gone.
    let mut third = scene.reload();
    until("the next one waits", || third.ended() || scene.sandbox.said().contains("the swap before has not ended"));
    busy.ends();
    assert_eq!(third.wait(), 0, "{}", third.log());
    assert_eq!(scene.say("--commit").0, 0);
    let third = get(scene.port).unwrap();
    assert!(third.pid != first.pid && third.pid != second.pid);
    scene.gets_signal(third.generation, &front);
    front.signal(libc::SIGTERM);
    front.wait();
}

#[test]
fn a_copy_that_was_undone_and_serves_again_can_be_reloaded() {
    let scene = Scene::new();
    let Undone { mut front, first, second, busy } = scene.has_an_undone_copy();
    kill(first.pid, libc::SIGKILL);
    until("the undone server serves again", || get(scene.port).is_ok_and(|answer| answer == second));
    scene.reaches(2, "serving");
    let mut third = scene.reload();
    busy.ends();
    assert_eq!(third.wait(), 0, "{}", third.log());
    assert_eq!(scene.say("--commit").0, 0);
    let third = get(scene.port).unwrap();
    assert!(third.pid != first.pid && third.pid != second.pid);
    front.signal(libc::SIGTERM);
    front.wait();
}

#[test]
fn a_front_that_is_stopped_has_not_the_status_of_its_undone_copy() {
    let scene = Scene::new();
    let Undone { mut front, busy, .. } = scene.has_an_undone_copy();
    front.signal(libc::SIGTERM);
    busy.ends();
    assert_eq!(front.wait(), 0, "{}", front.log());
}

#[test]
fn a_service_manager_hears_that_a_reload_is_done_when_its_canary_is_over() {
    let scene = Scene::new();
    let (mut front, manager) = scene.is_managed(&["--canary", "50:600"]);
    for verdict in ["--undo", "--commit"] {
        let mut reload = scene.reload();
        until("the manager hears of the reload", || {
            manager.next().is_some_and(|heard| heard.starts_with("RELOADING=1"))
        });
        scene.reaches(2, "canary 50%");
        scene.gets_signal(1, &front);
        assert_eq!(manager.next(), None);
        assert_eq!(scene.say(verdict).0, 0);
        manager.hears("READY=1");
        let undone = verdict == "--undo";
        assert_eq!(reload.wait() != 0, undone, "{}", reload.log());
    }
    scene.gets_signal(2, &front);
    front.signal(libc::SIGTERM);
    manager.hears("STOPPING=1");
    front.wait();
}
