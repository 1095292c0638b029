//! Kept connections: what waits on them when their server goes is answered by the new one.

mod client;
#[path = "../common/mod.rs"]
mod common;
mod faults;
mod kinds;
mod outside;

use client::{Answer, Client};
use common::{Running, Sandbox, until};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What the old server is replaced by.
struct Scene {
    sandbox: Sandbox,
    port: u16,
    command: Vec<String>,
}

fn script(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/relay").join(name).to_str().unwrap().to_owned()
}

impl Scene {
    /// A server of this directory, by its interpreter and the options of serverswap.
    fn new(options: &[&str], interpreter: &str, server: &str, words: &[&str]) -> Scene {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let ids = sandbox.file("ids", "");
        let server = [interpreter.to_owned(), script(server), port.to_string(), ids.to_str().unwrap().to_owned()];
        let options = ["-v"].iter().chain(options).map(|word| (*word).to_owned());
        let command = options.chain(server).chain(words.iter().map(|word| (*word).to_owned())).collect();
        Scene { sandbox, port, command }
    }

    fn node(options: &[&str]) -> Scene {
        Scene::new(options, "node", "server.js", &[])
    }

    /// Starts it, or the next one; it is up.
    fn start(&self) -> Running {
        let running = self.sandbox.serverswap(&self.command);
        running.says("is up");
        running
    }

    fn client(&self) -> Client {
        Client::connect(self.port)
    }

    fn ids(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.sandbox.path("ids")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Swaps while a client asks, until the new server has answered it. Gives that answer.
    fn swap_under(&self, mut ask: impl FnMut(&mut Client) -> std::io::Result<Answer>) -> (Answer, String) {
        let mut old = self.start();
        let mut client = self.client();
        assert_eq!(ask(&mut client).unwrap().generation(), 1);
        let mut command = self.sandbox.command(common::SERVERSWAP);
        command.args(&self.command);
        let new = self.sandbox.start(command);
        let answer = loop {
            let answer = ask(&mut client).unwrap();
            if answer.generation() == 2 {
                break answer;
            }
        };
        assert!(answer.closes(), "{answer:?}");
        drop(client);
        assert_eq!(old.wait(), 0, "{}", old.log());
        assert!(old.log().contains("answered by the new server"), "{}", old.log());
        self.history_ends_with("\t1\t0");
        self.end(new);
        (answer, old.log())
    }

    /// The supervisor of an old server has ended: what the history tells of its requests.
    fn history_ends_with(&self, fields: &str) {
        let file = self.sandbox.run_dir().join(format!("127.0.0.1:{}.history", self.port));
        let text = std::fs::read_to_string(file).unwrap();
        let drains: Vec<&str> = text.lines().filter(|line| line.starts_with("drain\t")).collect();
        assert!(drains.iter().any(|line| line.ends_with(fields)), "{text}");
    }

    fn end(&self, mut last: Running) {
        self.sandbox.take_down(&format!("127.0.0.1:{}", self.port));
        assert_eq!(last.wait(), 0, "{}", last.log());
    }
}

/// Ends the clients, also of a test that fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Swaps while clients ask, each again when it has its answer and a pause is over. Nothing is lost, and nothing done twice.
fn loses_nothing(scene: &Scene, clients: usize, pauses: &[u64], swaps: u64) {
    let mut old = scene.start();
    let stop = AtomicBool::new(false);
    let stops = Stops(&stop);
    let ask = |nth: usize| {
        let (mut asked, mut client) = (Vec::new(), scene.client());
        while !stop.load(Ordering::Relaxed) {
            let id = format!("{nth}.{}", asked.len());
            let since = Instant::now();
            let answer = client.post(&id).unwrap_or_else(|e| panic!("{id} after {:?}: {e}", since.elapsed()));
            assert_eq!(answer.status, 200, "{id}: {answer:?}");
            asked.push(id);
            if answer.closes() {
                client = scene.client();
            }
            std::thread::sleep(Duration::from_millis(pauses[nth % pauses.len()]));
        }
        asked
    };
    let ask = &ask;
    let asked: Vec<Vec<String>> = std::thread::scope(|scope| {
        let stops = stops;
        let threads: Vec<_> = (0..clients).map(|nth| scope.spawn(move || ask(nth))).collect();
        for _ in 0..swaps {
            let new = scene.start();
            let since = Instant::now();
            assert_eq!(old.wait(), 0, "{}", old.log());
            assert!(since.elapsed() < Duration::from_secs(25), "{:?}: {}", since.elapsed(), old.log());
            assert!(!old.log().contains("warning"), "{}", old.log());
            old = new;
        }
        drop(stops);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut asked: Vec<String> = asked.into_iter().flatten().collect();
    let mut done = scene.ids();
    asked.sort();
    done.sort();
    assert_eq!(asked, done, "asked, and done");
    scene.end(old);
}

#[test]
fn clients_that_never_rest_lose_nothing_and_no_time() {
    loses_nothing(&Scene::node(&["--drain", "50"]), 16, &[0], 2);
}

#[test]
fn nor_do_they_with_a_server_that_ends_gracefully() {
    loses_nothing(&Scene::new(&["--drain", "50"], "node", "server.js", &["graceful"]), 16, &[0, 20], 2);
}

#[test]
fn nor_do_they_with_threads() {
    loses_nothing(&Scene::new(&["--drain", "50"], "python3", "server.py", &[]), 8, &[0, 100], 2);
}

#[test]
fn clients_that_pause_lose_nothing() {
    loses_nothing(&Scene::node(&["--drain", "5"]), 8, &[300, 1500, 2000], 2);
}
