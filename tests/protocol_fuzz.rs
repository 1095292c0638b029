//! Noise at a real supervisor, on the control fd and on its socket: the server stays up, a swap goes
//! through afterwards, and a flood costs no memory.

mod common;

use common::{Running, Sandbox, answered_by, get, in_both_orders, until};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// A line that is one, or nearly.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let words =
        ["READY", "TAKEDOWN", "RELEASED", "UP", "FAIL", "GO", "ERROR", "PEER", "CLAIM", "STATUS", "HELD", "ready", ""];
    let rests = [
        ":1",
        "127.0.0.1:2",
        "[::1]:3",
        "a.Name",
        "../etc/passwd",
        ".",
        "%00",
        ":0",
        ":99999",
        "::",
        "1",
        "é",
        " ",
        "",
    ];
    // A server that says READY for a port and never binds it is a case of its own, below.
    let ports = [":1", "127.0.0.1:2", "[::1]:3", "1"];
    let nearly = (prop::sample::select(words.to_vec()), prop::sample::select(rests.to_vec()), 0..6u8).prop_map(
        move |(word, rest, ending)| {
            let rest = if word == "READY" && ports.contains(&rest) { "a.Name" } else { rest };
            let mut line = format!("{word} {rest}").into_bytes();
            line.extend_from_slice(match ending {
                0 => b"\r\n",
                1 => b"",
                2 => b"\0\n",
                _ => b"\n",
            });
            line
        },
    );
    prop_oneof![
        4 => nearly,
        2 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (any::<u8>(), 1000..3000usize).prop_map(|(byte, len)| vec![byte; len]),
        1 => Just(b"\n".to_vec()),
    ]
}

/// What is written, and after which of the pieces there is a pause that lets the reader wake up.
fn noise() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(line(), 0..8).prop_map(|lines| lines.concat()), 0..6)
}

struct Scene {
    sandbox: Sandbox,
    port: u16,
    address: String,
    old: Running,
    pid: i32,
    fifo: PathBuf,
}

impl Scene {
    fn new(sandbox: Sandbox) -> Scene {
        let port = sandbox.port();
        let address = format!(":{port}");
        let (gate, pipe) = sandbox.gate("pipe");
        let old = sandbox.plain(&["-qq"], &[&address, &pipe]);
        let pid = answered_by(port, 1).pid;
        // A READY before that would be of a server that starts, which is not up until it has bound the port.
        until("the supervisor has seen it listen", || sandbox.status().iter().any(|row| row[5] == "serving"));
        Scene { sandbox, port, address, old, pid, fifo: gate.path }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.sandbox.run_dir().join(format!("{}-1.sock", self.old.pid()))).unwrap()
    }

    /// Waits until the supervisor has taken in what this connection said, and gives its last answer.
    fn ask(stream: &mut UnixStream) -> String {
        stream.write_all(b"\nWHAT\n").unwrap();
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        while !heard.ends_with(b"ERROR unknown word\n") {
            let len = stream.read(&mut buffer).unwrap();
            assert!(len > 0, "the connection ended");
            heard.extend_from_slice(&buffer[..len]);
        }
        String::from_utf8(heard).unwrap()
    }

    /// Resident memory of the supervisor, in KiB, without the pages of its code: it drops those when it is
    /// idle.
    fn resident(&self) -> u64 {
        common::memory_of(self.old.pid(), "RssAnon").unwrap()
    }

    fn untouched(&mut self) {
        assert_eq!(get(self.port).map(|answer| answer.pid), Ok(self.pid));
        assert!(!self.old.ended(), "{}", self.old.log());
    }

    /// A swap goes through, and nothing is left.
    fn end(mut self) {
        self.untouched();
        let (status, log) = self.sandbox.deploy(&[&self.address, "takedown"]);
        assert_eq!(status, 0, "{log}");
        assert_eq!(get(self.port).unwrap().generation, 2);
        assert_eq!(self.old.wait(), 0, "{}", self.old.log());
        self.sandbox.take_down(&self.address);
    }
}

fn run(cases: u32, strategy: impl Strategy<Value = Vec<Vec<u8>>>, mut case: impl FnMut(Vec<Vec<u8>>)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let case = std::cell::RefCell::new(&mut case);
    TestRunner::new(config)
        .run(&strategy, |noise| {
            (case.borrow_mut())(noise);
            Ok(())
        })
        .unwrap();
}

#[test]
fn noise_on_the_socket() {
    in_both_orders(|sandbox| {
        let mut scene = Scene::new(sandbox);
        run(200, noise(), |noise| {
            let mut stream = scene.connect();
            for piece in &noise {
                let _ = stream.write_all(piece);
                std::thread::yield_now();
            }
            // Half of them leave in the middle, the others wait for an answer.
            if noise.len() % 2 == 0 {
                let _ = stream.shutdown(Shutdown::Both);
            }
            scene.untouched();
        });
        // What was said on connections that have ended holds nobody up.
        let mut stream = scene.connect();
        Scene::ask(&mut stream);
        scene.end();
    });
}

#[test]
fn noise_on_the_control_fd() {
    in_both_orders(|sandbox| {
        let mut scene = Scene::new(sandbox);
        let mut pipe = fs::File::options().write(true).open(&scene.fifo).unwrap();
        // FAIL and TAKEDOWN are the server's own affair: they are words, and do what they say.
        run(200, noise(), |noise| {
            for piece in noise.iter().filter(|piece| !piece.windows(8).any(|w| w == b"TAKEDOWN")) {
                pipe.write_all(piece).unwrap();
            }
            scene.untouched();
        });
        scene.end();
    });
}

#[test]
fn a_million_lines_cost_no_memory() {
    in_both_orders(|sandbox| {
        let mut scene = Scene::new(sandbox);
        let floods: [&dyn Fn(usize) -> String; 5] = [
            &|_| format!("READY {}\n", scene.address),
            &|n| format!("nonsense {n}\n"),
            &|_| "\n".into(),
            &|n| format!("RELEASED a.{n}\n"),
            &|n| format!("TAKEDOWN a.{n}\n"),
        ];
        let pour = |stream: &mut UnixStream, flood: &dyn Fn(usize) -> String, blocks: usize| {
            let block: String = (0..10_000).map(flood).collect();
            for _ in 0..blocks {
                stream.write_all(block.as_bytes()).unwrap();
            }
        };
        // The first part makes room for threads and buffers; the rest must not need more. Nobody reads the
        // answers.
        let mut streams: Vec<UnixStream> = floods.iter().map(|_| scene.connect()).collect();
        // One that stays silent for ten seconds is closed.
        for stream in &mut streams {
            stream.write_all(b"\n").unwrap();
        }
        for (flood, stream) in floods[..4].iter().zip(&mut streams) {
            pour(stream, flood, 2);
        }
        let _ = Scene::ask(&mut scene.connect());
        let before = scene.resident();
        for (flood, stream) in floods.iter().zip(&mut streams) {
            pour(stream, flood, 18);
        }
        let _ = Scene::ask(&mut scene.connect());
        let after = scene.resident();
        assert!(after < before + 2048, "{before} KiB before, {after} KiB after a million lines");
        drop(streams);
        scene.untouched();
        scene.end();
    });
}

#[test]
fn a_server_that_says_ready_for_a_thousand_addresses() {
    in_both_orders(|sandbox| {
        let mut scene = Scene::new(sandbox);
        let mut stream = scene.connect();
        let lines: String = (0..1000).map(|n| format!("READY Name.{n}\n")).collect();
        let mut writer = stream.try_clone().unwrap();
        let thread = std::thread::spawn(move || writer.write_all(lines.as_bytes()).unwrap());
        let mut heard = String::new();
        while heard.matches('\n').count() < 1000 {
            let mut buffer = [0; 4096];
            let len = stream.read(&mut buffer).unwrap();
            heard.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
        }
        thread.join().unwrap();
        assert!(heard.starts_with("GO Name.0\nGO Name.1\n"), "{heard}");
        scene.untouched();
        // Its successor takes the port and leaves the names.
        let (status, log) = scene.sandbox.deploy(&[&scene.address, "takedown", "up"]);
        assert_eq!(status, 0, "{log}");
        assert_eq!(scene.old.wait(), 0);
        scene.sandbox.take_down(&scene.address);
    });
}

#[test]
fn a_server_that_says_ready_and_never_binds_is_replaced_as_ever() {
    in_both_orders(|sandbox| {
        let scene = Scene::new(sandbox);
        let mut stream = scene.connect();
        let port = scene.sandbox.port();
        stream.write_all(format!("READY :{port}\n").as_bytes()).unwrap();
        let heard = Scene::ask(&mut stream);
        assert!(heard.starts_with(&format!("GO :{port}\n")), "{heard}");
        scene.end();
    });
}
