//! Versions on trial, under load: one that is good, and those that fail in a canary and in a hold.

use super::client::{Crowd, Habit, Seen};
use super::common::{Running, answered_by, children, get, kill, until};
use super::servers::{self, Clients, Server};
use super::target::Target;
use super::{Report, Settings, in_lanes};
use nix::libc;
use std::net::{Ipv4Addr, SocketAddr};

const LANES: usize = 2;
const CLIENTS: usize = 4;
/// It fails while there is a file of that name.
const WELL: [&str; 2] = ["--check", "test ! -e ill"];
/// It succeeds and fails in turn.
const FLAPS: [&str; 2] = ["--check", "n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) >n; test $((n % 2)) = 0"];
/// What hangs fails when its time is up.
const HANGS: [&str; 2] = ["--check", "test ! -e ill || timeout 1 sleep 60"];
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
        if failed(&tried) > 0 || failed(&killed) > 2 * LOST {
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
        let mut good = self.deploy(&[&["--canary", "50:1", "--hold", "1"], &WELL[..]].concat());
        faults.extend((good.wait() != 0).then(|| good.log()));
        self.generation = 2;
        self.is_alone();
        for check in [WELL, HANGS] {
            self.undone(&[&CANARY[..], &check].concat(), |scene, _| scene.is_ill());
            self.undone(&[&HOLD[..], &check].concat(), |scene, _| scene.is_ill());
        }
        self.undone(&[&CANARY[..], &FLAPS].concat(), |_, _| {});
        self.undone(&[&HOLD[..], &FLAPS].concat(), |_, _| {});
        self.undone(&CANARY, |_, deploy| kill(deploy.pid(), libc::SIGTERM));
        for trial in [CANARY, HOLD] {
            self.undone(&trial, |scene, _| {
                let target = format!(":{}", scene.target.port);
                assert_eq!(scene.target.sandbox.run(["--undo", &target]).0, 0);
                let others = (0..50).filter(|_| get(scene.target.port).unwrap().generation != scene.generation).count();
                assert_eq!(others, 0, "after --undo");
            });
        }
        let tried = first.stop();
        let second = crowd();
        for trial in [CANARY, HOLD] {
            self.undone(&trial, |scene, _| {
                let rows = scene.target.sandbox.status();
                let new = rows.iter().find(|row| row[1] == (scene.generation + 1).to_string()).expect("the new server");
                kill_all(new[2].parse().unwrap());
            });
        }
        let killed = second.stop();
        faults.extend(self.target.take_down());
        (tried, killed)
    }

    fn deploy(&self, options: &[&str]) -> Running {
        self.target.sandbox.serverswap(options.iter().copied().chain(self.target.words.iter().map(String::as_str)))
    }

    /// A version that is on trial until something happens: then the old server is alone again.
    fn undone(&self, options: &[&str], happens: impl FnOnce(&Scene, &Running)) {
        let mut deploy = self.deploy(options);
        let is_canary = options.contains(&"--canary");
        deploy.says(if is_canary { "gets 50%" } else { "has all new connections" });
        happens(self, &deploy);
        // In a hold the command has returned.
        assert_eq!(deploy.wait(), if is_canary { 124 } else { 0 }, "{options:?}: {}", deploy.log());
        self.is_alone();
        let _ = std::fs::remove_file(self.target.sandbox.path("ill"));
        let _ = std::fs::remove_file(self.target.sandbox.path("n"));
    }

    fn is_ill(&self) {
        std::fs::write(self.target.sandbox.path("ill"), "").unwrap();
    }

    fn is_alone(&self) {
        until("the server is alone", || {
            let rows = self.target.sandbox.status();
            rows.iter().all(|row| row[1] == self.generation.to_string()) && !rows.is_empty()
        });
        assert_eq!(get(self.target.port).unwrap().generation, self.generation);
    }
}

/// Ends a server as lack of memory does: were its main process killed alone, its workers would go on as the server.
fn kill_all(main: i32) {
    kill(main, libc::SIGSTOP);
    let mut all = vec![main];
    let mut next = 0;
    while let Some(&process) = all.get(next) {
        all.extend(children(process));
        next += 1;
    }
    all.into_iter().rev().for_each(|process| kill(process, libc::SIGKILL));
}
