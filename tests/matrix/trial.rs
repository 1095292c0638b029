//! Versions on trial, under load: one that is good, and those that answer 500, flap, hang or die while they are checked, in a
//! canary, in a hold and after an undo.

use super::client::{Crowd, Habit, Seen};
use super::common::{Running, answered_by, children, get, kill, until};
use super::servers::{self, Clients, Server};
use super::target::Target;
use super::{Report, Settings, in_lanes};
use nix::libc;
use std::net::{Ipv4Addr, SocketAddr};

const LANES: usize = 2;
const CLIENTS: usize = 4;
/// Once there is a file "go": the server has to answer what stands in the file "path".
const CHECK: [&str; 2] = [
    "--check",
    r#"until test -e go; do sleep 0.05; done; exec curl -sf -m 1 -o /dev/null "http://$SERVERSWAP_PREVIEW/$(cat path)""#,
];
/// The same; the server is well and ill in turn.
const FLAPS: [&str; 2] = [
    "--check",
    r#"n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) >n
       test $((n % 2)) = 0 || path=ill
       exec curl -sf -m 1 -o /dev/null "http://$SERVERSWAP_PREVIEW/$path""#,
];
const CANARY: [&str; 2] = ["--canary", "50:60"];
const HOLD: [&str; 2] = ["--hold", "60"];
/// How many connections may be lost with a server that is killed: one that it has and one in its queue, of each client.
const LOST: usize = 2 * CLIENTS;

/// Tries versions of all servers that are asked for.
pub fn run(settings: &Settings) -> Report {
    let is_asked =
        |server: &Server| settings.wants(server.name) && matches!(server.clients, Clients::Http) && !server.slow;
    let servers: Vec<Server> = servers::all().into_iter().filter(is_asked).collect();
    if servers.is_empty() {
        return (0, Vec::new());
    }
    println!("{:<30} {:>8} {:>6} {:>18}", "server, on trial", "requests", "failed", "with those killed");
    let faults = in_lanes(LANES, &servers, |server| {
        let mut faults = Vec::new();
        let (tried, killed) =
            Scene::start(server, &mut faults).map_or_else(Default::default, |scene| scene.run(&mut faults));
        let failed = |seen: &Seen| seen.failures.values().sum::<usize>();
        if failed(&tried) > 0 || failed(&killed) > 6 * LOST {
            faults.push(format!("{:?} {:?}: {:#?} {:#?}", tried.failures, killed.failures, tried.notes, killed.notes));
        }
        let verdict = if faults.is_empty() { "" } else { "  NOT ok" };
        println!("{:<30} {:>8} {:>6} {:>18}{verdict}", server.name, tried.requests, failed(&tried), failed(&killed));
        faults.into_iter().map(|fault| format!("{}: {fault}", server.name)).collect()
    });
    (servers.len(), faults)
}

/// A server that serves, as this generation.
struct Scene {
    target: Target,
    generation: u64,
}

impl Scene {
    fn start(server: &Server, faults: &mut Vec<String>) -> Option<Scene> {
        let target = Target::new(server.options.iter().map(|word| (*word).to_owned()), &server.command);
        let fault = target.deploy(1);
        let serves = fault.is_none();
        faults.extend(fault);
        serves.then(|| answered_by(target.port, 1));
        serves.then_some(Scene { target, generation: 1 })
    }

    fn run(mut self, faults: &mut Vec<String>) -> (Seen, Seen) {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.target.port));
        let crowd = || Crowd::start(&[address], &[(CLIENTS, Habit::Fresh)]);
        let first = crowd();
        until("all clients are answered", || first.all_saw(1));
        self.is_well();
        let mut good = self.deploy(&[&["--canary", "50:1", "--hold", "1"], &CHECK[..]].concat());
        faults.extend((good.wait() != 0).then(|| good.log()));
        self.generation = 2;
        self.is_alone();
        // Nobody but its check meets a version that never gets a connection of a client.
        self.undone(&CHECK, |_, _| {});
        self.undone(&[CHECK, FLAPS, FLAPS].concat(), |_, _| {});
        self.undone(&CHECK, |scene, _| signal_all(scene.new_server(), libc::SIGSTOP));
        self.undone(&CHECK, |scene, _| signal_all(scene.new_server(), libc::SIGKILL));
        for trial in [CANARY, HOLD] {
            self.undone(&[trial, CHECK].concat(), |_, _| {});
            self.undone(&[trial, FLAPS].concat(), |_, _| {});
            self.undone(&trial, |scene, _| scene.undo());
        }
        self.undone(&CANARY, |_, deploy| kill(deploy.pid(), libc::SIGTERM));
        let tried = first.stop();
        let second = crowd();
        for trial in [CANARY, HOLD] {
            self.undone(&[trial, CHECK].concat(), |scene, _| signal_all(scene.new_server(), libc::SIGSTOP));
            self.undone(&trial, |scene, _| signal_all(scene.new_server(), libc::SIGKILL));
            self.undone(&trial, |scene, _| {
                let new = scene.new_server();
                scene.undo();
                signal_all(new, libc::SIGKILL);
            });
        }
        let killed = second.stop();
        faults.extend(self.target.take_down());
        (tried, killed)
    }

    fn deploy(&self, options: &[&str]) -> Running {
        self.target.sandbox.serverswap(options.iter().copied().chain(self.target.words.iter().map(String::as_str)))
    }

    /// A version that is on trial until something happens, and it is ill: then the old server is alone again.
    fn undone(&self, options: &[&str], happens: impl FnOnce(&Scene, &Running)) {
        self.is_well();
        let path = |name: &str| self.target.sandbox.path(name);
        let trial = [CANARY[0], HOLD[0]].into_iter().find(|trial| options.contains(trial));
        if trial.is_none() {
            std::fs::remove_file(path("go")).unwrap();
        }
        let _ = std::fs::remove_file(path("n"));
        // Checks that fail before it has a connection are made again until its time is up.
        let mut deploy = self.deploy(&[&["--kill-after", "1", "--ready-timeout", "5"], options].concat());
        match trial {
            Some("--canary") => deploy.says("gets 50%"),
            Some(_) => deploy.says("has all new connections"),
            None => until("its check is made", || self.new_row().is_some_and(|row| row[5] == "checking")),
        }
        happens(self, &deploy);
        std::fs::write(path("path"), "ill").unwrap();
        std::fs::write(path("go"), "").unwrap();
        // In a hold the command has returned.
        assert_eq!(deploy.wait() == 0, trial == Some("--hold"), "{options:?}: {}", deploy.log());
        self.is_alone();
    }

    fn is_well(&self) {
        std::fs::write(self.target.sandbox.path("path"), "").unwrap();
        std::fs::write(self.target.sandbox.path("go"), "").unwrap();
    }

    fn undo(&self) {
        let target = format!(":{}", self.target.port);
        assert_eq!(self.target.sandbox.run(["--undo", &target]).0, 0);
        let others = (0..50).filter(|_| get(self.target.port).unwrap().generation != self.generation).count();
        assert_eq!(others, 0, "after --undo");
    }

    fn new_row(&self) -> Option<Vec<String>> {
        let new = (self.generation + 1).to_string();
        self.target.sandbox.status().into_iter().find(|row| row[1] == new)
    }

    /// The main process of the server that is on trial.
    fn new_server(&self) -> i32 {
        self.new_row().expect("the new server")[2].parse().unwrap()
    }

    fn is_alone(&self) {
        until("the server is alone", || {
            let rows = self.target.sandbox.status();
            rows.iter().all(|row| row[1] == self.generation.to_string()) && !rows.is_empty()
        });
        assert_eq!(get(self.target.port).unwrap().generation, self.generation);
    }
}

/// What hangs or dies is a whole server: were its main process killed alone, its workers would go on as the server.
fn signal_all(main: i32, signal: i32) {
    kill(main, libc::SIGSTOP);
    let mut all = vec![main];
    let mut next = 0;
    while let Some(&process) = all.get(next) {
        all.extend(children(process));
        next += 1;
    }
    all.into_iter().rev().for_each(|process| kill(process, signal));
}
