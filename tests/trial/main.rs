//! A new server on trial (`--canary`, `--hold`): whatever becomes of it, its clients and the old server notice nothing.

#[allow(dead_code)]
#[path = "../relay/client.rs"]
mod client;
#[path = "../common/mod.rs"]
mod common;
mod kills;
mod reloads;
mod shares;
mod swaps;
mod verdicts;
mod versions;

use common::{Answer, Failure, Load, Running, Sandbox, alive, get, until};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

/// An address, and the server that is deployed there again and again.
struct Scene {
    sandbox: Sandbox,
    host: &'static str,
    port: u16,
    server: Vec<String>,
}

fn script(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trial").join(name).to_str().unwrap().to_owned()
}

impl Scene {
    /// One at the wildcard of IPv4.
    fn new() -> Scene {
        Scene::at("0.0.0.0", &[])
    }

    fn at(host: &'static str, words: &[&str]) -> Scene {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let dir = sandbox.path("").to_str().unwrap().to_owned();
        let own = ["python3".to_owned(), script("server.py"), dir, format!("{host}:{port}")];
        let server = own.into_iter().chain(words.iter().map(|word| (*word).to_owned())).collect();
        Scene { sandbox, host, port, server }
    }

    /// Starts `serverswap`, with a short drain, options, and the server.
    fn begin(&self, options: &[&str]) -> Running {
        let options = ["--drain", "0.3"].iter().chain(options).map(|word| (*word).to_owned());
        self.sandbox.serverswap(options.chain(self.server.iter().cloned()))
    }

    /// The same with `-d`, to its end: status, output.
    fn deploy(&self, options: &[&str]) -> (i32, String) {
        let mut running = self.begin(&[&["-d"], options].concat());
        let status = running.wait();
        (status, running.log())
    }

    /// The first server.
    fn first(&self) -> Answer {
        let (status, log) = self.deploy(&[]);
        assert_eq!(status, 0, "{log}");
        get(self.port).unwrap()
    }

    /// A new server gets its share of the connections, and goes on with that.
    fn canary(&self, share: &str, options: &[&str]) -> Running {
        let steps = format!("{share}:600");
        let running = self.begin(&[&["-d", "--canary", &steps], options].concat());
        running.says(&format!("gets {share}% of"));
        self.reaches(2, &format!("canary {share}%"));
        running
    }

    /// A new server gets all connections, and the old one is kept.
    fn hold(&self, options: &[&str]) -> Answer {
        let (status, log) = self.deploy(&[&["--hold", "600"], options].concat());
        assert_eq!(status, 0, "{log}");
        get(self.port).unwrap()
    }

    /// Generation and state of each server.
    fn states(&self) -> Vec<(u64, String)> {
        let of = |fields: Vec<String>| (fields[1].parse().unwrap(), fields[5].clone());
        let mut states: Vec<(u64, String)> = self.sandbox.status().into_iter().map(of).collect();
        states.sort();
        states
    }

    /// Waits until the server of this generation is in this state.
    fn reaches(&self, generation: u64, state: &str) {
        until(&format!("generation {generation} is {state}"), || {
            self.states().contains(&(generation, state.to_owned()))
        });
    }

    /// Server and supervisor of a generation.
    fn pids(&self, generation: u64) -> (i32, i32) {
        let status = self.sandbox.status();
        let its = status.iter().find(|fields| fields[1] == generation.to_string());
        let its = its.unwrap_or_else(|| panic!("no generation {generation} in {status:?}"));
        (its[2].parse().unwrap(), its[3].parse().unwrap())
    }

    /// `serverswap --undo` or `--commit`.
    fn say(&self, verdict: &str) -> (i32, String) {
        self.sandbox.run([verdict, &self.port.to_string()])
    }

    /// Waits until one server is left, which serves. What it was told of its generation may be a guess.
    fn is_alone(&self, server: Answer) {
        // The cheaper look first: a machine that is busy with looks has no time for what they wait for.
        until("nothing else lives", || self.sandbox.inhabitants().len() == self.sandbox.crew());
        until("one server is left", || {
            let status = self.sandbox.status();
            status.len() == 1 && (status[0][2].as_str(), status[0][5].as_str()) == (&server.pid.to_string(), "serving")
        });
        assert_eq!(get(self.port).unwrap(), server);
    }

    /// The next 200 connections all go to this server.
    fn goes_to(&self, server: Answer) {
        for nth in 0..200 {
            assert_eq!(get(self.port).unwrap(), server, "connection {nth}");
        }
    }

    /// Signals that got to a server of this generation.
    fn signals(&self, generation: u64) -> Vec<String> {
        let text = std::fs::read_to_string(self.sandbox.path("signals")).unwrap_or_default();
        let own = format!("{generation} ");
        text.lines().filter_map(|line| line.strip_prefix(&own)).map(str::to_owned).collect()
    }

    /// How the next server answers GET /health.
    fn set_health(&self, health: &str) {
        let (new, file) = (self.sandbox.path("health.new"), self.sandbox.path("health.2"));
        std::fs::write(&new, health).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    /// The option that checks it, with a short patience; it writes its pid to the file "check".
    fn check(&self) -> String {
        format!("exec python3 {} {}", script("check.py"), self.sandbox.path("check").display())
    }

    fn crowd(&self) -> Crowd {
        Crowd::at(self.port)
    }

    /// Waits until its port is steered no more. There are no clients: that is found out with a listener of ours.
    fn is_unsteered(&self) {
        let wildcard = format!("{}:{}", self.host, self.port).parse().unwrap();
        until("its port is steered no more", || common::is_unsteered_at(wildcard));
    }

    /// Takes the last server down, which nobody steers to any more. Nothing is left.
    fn end(&self) {
        self.is_unsteered();
        self.sandbox.take_down(&self.port.to_string());
    }
}

/// Options of a server that may take its time to drain.
const PATIENT: [&str; 2] = ["--drain", "30"];

/// A client in the middle of a request: its server drains until that is answered.
struct Busy {
    stream: TcpStream,
    server: Answer,
}

impl Busy {
    fn at(scene: &Scene, server: Answer) -> Busy {
        loop {
            let mut stream = TcpStream::connect(("127.0.0.1", scene.port)).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let mut answer = [0; 1024];
            let len = stream.read(&mut answer).unwrap();
            if String::from_utf8_lossy(&answer[..len]).contains(&format!(" {} ", server.pid)) {
                let rest = b"POST / HTTP/1.1\r\nContent-Length: 4\r\nConnection: close\r\n\r\nha";
                stream.write_all(rest).unwrap();
                return Busy { stream, server };
            }
        }
    }

    /// The rest of its request is answered by that server.
    fn ends(mut self) {
        assert!(alive(self.server.pid));
        self.stream.write_all(b"lf").unwrap();
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("half") && answer.contains(&format!(" {} ", self.server.pid)), "{answer:?}");
    }
}

/// Each in a thread of its own: most of their time they wait.
fn all_at_once<T: Copy + Send, const N: usize>(of: [T; N], test: impl Fn(T) + Sync) {
    let test = &test;
    std::thread::scope(|scope| of.into_iter().for_each(|one| _ = scope.spawn(move || test(one))));
}

/// How many threads open connections.
const CLIENTS: u8 = 3;

/// How long each of them waits after an answer: the machine has more to do than to answer them.
const PAUSE: Duration = Duration::from_millis(2);

/// What servers that are killed hold at most: a connection of each client, and, since the kernel closes the files of a process
/// from the last to the first, another one in the queue of its listener.
const HELD: usize = 2 * CLIENTS as usize;

/// Clients at an address.
struct Crowd(Vec<Load>);

impl Crowd {
    /// Each has an address of its own, so that there are ports enough.
    fn at(port: u16) -> Crowd {
        let to = |nth| Load::to(SocketAddr::from(([127, 0, 0, nth], port)), PAUSE);
        let crowd = Crowd((1..=CLIENTS).map(to).collect());
        until("all are answered", || crowd.0.iter().all(Load::is_answered));
        crowd
    }

    /// Each has been answered by this server.
    fn see(&self, server: i32) {
        self.0.iter().for_each(|load| load.sees_server(server));
    }

    /// Ends them. Tells who answered how many, and what failed.
    fn stop(self) -> (BTreeMap<i32, usize>, BTreeMap<Failure, usize>) {
        self.0.iter().for_each(Load::last);
        let (mut answers, mut failures) = (BTreeMap::new(), BTreeMap::new());
        for seen in self.0.into_iter().map(Load::stop) {
            seen.answers.into_iter().for_each(|(pid, count)| *answers.entry(pid).or_default() += count);
            seen.failures.into_iter().for_each(|(kind, count)| *failures.entry(kind).or_default() += count);
        }
        (answers, failures)
    }

    /// Ends them. None of them has failed.
    fn has_lost_nothing(self) -> BTreeMap<i32, usize> {
        let (answers, failures) = self.stop();
        assert!(failures.is_empty(), "{failures:?}, answered: {answers:?}");
        answers
    }

    /// The same where a third server replaces two: it takes another index when the first of them leaves. Whoever comes
    /// in this very moment is not lost, but has to ask again.
    fn has_lost_nothing_to_a_third(self) {
        let (answers, failures) = self.stop();
        let asked_again = failures.iter().all(|(failure, times)| (*failure, *times) == (Failure::Resent, 1));
        assert!(asked_again, "{failures:?}, answered: {answers:?}");
    }
}

#[test]
fn a_first_server_has_no_trial() {
    let scene = Scene::new();
    let (status, log) = scene.deploy(&["--canary", "1:600", "--hold", "600"]);
    assert_eq!(status, 0, "{log}");
    scene.is_alone(get(scene.port).unwrap());
    assert!(!log.contains("share") && !log.contains("kept"), "{log}");
    scene.end();
}

/// Only the old server can say that it has let go of its address: there is no way back.
#[test]
fn in_plain_order_nobody_is_on_trial() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    let (mut old, pid) = sandbox.serving(port, &["--plain"], &[&address]);
    let crowd = Crowd::at(port);
    for trial in [["--canary", "1:600"], ["--hold", "600"]] {
        for plain in [&["--plain"][..], &[]] {
            let options = [&["-d"], plain, &trial].concat();
            let mut new = sandbox.plain(&options, &[&address]);
            assert_eq!(new.wait(), 124, "{}", new.log());
            let log = new.log();
            assert!(log.contains("cannot") && log.contains("the old one still serves"), "{log}");
            assert!(alive(pid) && !old.ended());
        }
    }
    assert_eq!(crowd.has_lost_nothing().into_keys().collect::<Vec<_>>(), [pid]);
    sandbox.take_down(&port.to_string());
    assert_eq!(old.wait(), 0);
}
