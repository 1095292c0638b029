//! Those who mean harm: peers on the control socket, files in the run directory, servers that lie, and
//! another user. Each is tried, and each is refused or contained: what SECURITY in serverswap(1) says.

mod common;

use common::{Running, Sandbox, answered_by, get, plain_server, until};
use nix::libc;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Connections to its control sockets that a supervisor takes, and those beyond that it looks at.
const CONNECTIONS_MAX: usize = 1024;
const CONNECTIONS_SPARE: usize = 32;
/// Threads of a supervisor that has none.
const THREADS: usize = 16;
/// Memory of its own that a supervisor takes, in KiB, whatever its peers do.
const MEMORY_MAX: usize = 32 * 1024;

/// A server with a supervisor that may have few open files, and so takes few connections.
struct Scene {
    sandbox: Sandbox,
    port: u16,
    address: String,
    old: Running,
    pid: i32,
    /// How many connections its supervisor takes.
    most: usize,
}

impl Scene {
    fn with_files(files: usize, words: &[&str]) -> Scene {
        let sandbox = Sandbox::new();
        let port = sandbox.port();
        let address = format!(":{port}");
        let mut command = sandbox.command("sh");
        command.args(["-c", &format!("ulimit -n {files} && exec \"$@\""), "sh", common::SERVERSWAP, "--plain"]);
        command.arg(plain_server()).arg(&address).args(words);
        let old = sandbox.start(command);
        let pid = answered_by(port, 1).pid;
        old.says("is up");
        Scene { sandbox, port, address, old, pid, most: CONNECTIONS_MAX.min(files / 2) }
    }

    fn new() -> Scene {
        Scene::with_files(256, &[])
    }

    fn socket(&self) -> PathBuf {
        self.sandbox.run_dir().join(format!("{}-1.sock", self.old.pid()))
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
        stream
    }

    fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.old.pid())).unwrap().count()
    }

    fn files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.old.pid())).unwrap().count()
    }

    /// Resident memory of the supervisor without the pages of files, in KiB.
    fn resident(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.old.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The bounds that the manual states, when all have been taken in that came before.
    fn bounded(&self, writers: usize) {
        let mut last = self.connect();
        last.write_all(b"PEER 1\nSTATUS\n").unwrap();
        assert!(BufReader::new(last).lines().map_while(Result::ok).any(|line| line == "END"));
        // A thread that has let go of its connection takes a moment to end.
        let most = self.most + CONNECTIONS_SPARE + writers + THREADS;
        assert!(self.threads() <= 2 * most, "{} threads", self.threads());
        until("its threads are as few as the manual says", || self.threads() <= most);
        assert!(self.files() <= self.most + CONNECTIONS_SPARE + 2 * THREADS, "{} files", self.files());
        assert!(self.resident() <= MEMORY_MAX, "{} KiB", self.resident());
        eprintln!("{} threads, {} files, {} KiB", self.threads(), self.files(), self.resident());
    }

    fn untouched(&mut self) {
        assert_eq!(get(self.port).map(|answer| answer.pid), Ok(self.pid));
        assert!(!self.old.ended(), "{}", self.old.log());
    }

    /// A swap goes through while the peers are there.
    fn swap(&mut self, generation: u64) {
        let (status, log) = self.sandbox.deploy(&[&self.address, "takedown"]);
        assert_eq!(status, 0, "{log}");
        assert_eq!(get(self.port).unwrap().generation, generation);
        assert_eq!(self.old.wait(), 0, "{}", self.old.log());
    }

    fn end(mut self) {
        self.untouched();
        self.swap(2);
        self.sandbox.take_down(&self.address);
    }
}

/// Lets this test have as many open files as it may.
fn more_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the calls read and write one rlimit, which is valid.
    let result = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max.min(16_384);
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    assert_eq!(result, 0);
}

/// Writes as much as the other side takes in, and then no more.
fn pour(stream: &UnixStream, text: &str, times: usize) {
    stream.set_nonblocking(true).unwrap();
    let block = text.repeat(100);
    for _ in 0..times {
        if { stream }.write_all(block.as_bytes()).is_err() {
            break;
        }
    }
    stream.set_nonblocking(false).unwrap();
}

/// Whether the supervisor has let go of a connection.
fn is_closed(stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut buffer = [0; 1024];
    let closed = loop {
        match { stream }.read(&mut buffer) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(e) => break e.kind() != std::io::ErrorKind::WouldBlock,
        }
    };
    stream.set_nonblocking(false).unwrap();
    closed
}

#[test]
fn more_silent_peers_than_there_is_room_for_do_not_hold_up_a_swap() {
    more_files();
    let scene = Scene::with_files(4096, &[]);
    assert_eq!(scene.most, CONNECTIONS_MAX);
    let silent: Vec<UnixStream> = (0..scene.most + 500).map(|_| scene.connect()).collect();
    // The oldest have made room for the others.
    until("the oldest are sent away", || silent[..400].iter().all(is_closed));
    scene.bounded(0);
    scene.end();
}

/// Each has said something, and so may be silent for ever.
#[test]
fn peers_that_said_nothing_that_counts_make_room_for_a_swap() {
    let scene = Scene::new();
    let talkers: Vec<UnixStream> = (0..scene.most + 100)
        .map(|n| {
            let mut stream = scene.connect();
            let said: &[u8] = match n % 4 {
                0 => b"\n",
                1 => b"PEER 1\n",
                2 => b"PEER 1\nSTATUS\nDOWN :1\n",
                _ => b"RELEASED a.name\nnonsense\n",
            };
            // The oldest may be gone by now.
            let _ = stream.write_all(said);
            stream
        })
        .collect();
    scene.bounded(0);
    scene.end();
    drop(talkers);
}

/// Every connection took TAKEDOWN, as so many workers would: none may be sent away.
#[test]
fn a_swap_goes_through_while_workers_have_all_connections() {
    let mut scene = Scene::new();
    let take = |n: usize| {
        let mut stream = scene.connect();
        stream.write_all(format!("TAKEDOWN a.{n}\nWHAT\n").as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        (stream, line)
    };
    let workers: Vec<(UnixStream, String)> = (0..scene.most).map(take).collect();
    assert!(workers.iter().all(|(_, answer)| answer == "ERROR unknown word\n"));
    let (_one_more, answer) = take(scene.most);
    assert_eq!(answer, "ERROR too many connections\n");
    scene.bounded(0);
    scene.untouched();
    // Those that say nothing at all as well.
    let silent: Vec<UnixStream> = (0..2 * CONNECTIONS_SPARE).map(|_| scene.connect()).collect();
    scene.swap(2);
    assert!(!is_closed(&workers[0].0) || scene.old.ended());
    drop((workers, silent));
    scene.sandbox.take_down(&scene.address);
}

#[test]
fn a_peer_that_says_a_byte_now_and_then_is_sent_away_like_a_silent_one() {
    let scene = Scene::new();
    let drip = scene.connect();
    let mut bytes = b"READY :1".iter().cycle();
    let mut last = std::time::Instant::now();
    until("it is sent away", || {
        // Far more often than a silent one is sent away.
        if last.elapsed().as_millis() > 500 {
            let _ = (&drip).write_all(&[*bytes.next().unwrap()]);
            last = std::time::Instant::now();
        }
        is_closed(&drip)
    });
    scene.end();
}

#[test]
fn peers_that_ask_and_do_not_read_cost_little_memory_and_hold_up_nobody() {
    let scene = Scene::new();
    let before = scene.resident();
    let askers: Vec<UnixStream> = (0..scene.most)
        .map(|_| {
            let mut stream = scene.connect();
            stream.write_all(b"PEER 1\n").unwrap();
            pour(&stream, "STATUS\n", 100);
            stream
        })
        .collect();
    scene.bounded(scene.most);
    assert!(scene.resident() < before + 8 * 1024, "{before} KiB before, {} KiB after", scene.resident());
    scene.end();
    drop(askers);
}

/// Their writers would wait for ever for somebody to read, with a thread and a file each.
#[test]
fn a_peer_that_does_not_read_and_closes_its_half_leaves_no_thread_behind() {
    let scene = Scene::new();
    let (threads, files) = (scene.threads(), scene.files());
    let halves: Vec<UnixStream> = (0..50)
        .map(|_| {
            let mut stream = scene.connect();
            stream.write_all(b"PEER 1\n").unwrap();
            for _ in 0..200 {
                stream.write_all("STATUS\n".repeat(100).as_bytes()).unwrap();
            }
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        })
        .collect();
    until("their threads are gone", || scene.threads() <= threads && scene.files() <= files);
    drop(halves);
    scene.end();
}

#[test]
fn a_peer_that_asks_for_a_thousand_reloads_is_answered_once_for_each_there_is() {
    let sandbox = Sandbox::new();
    let (gate, hold) = sandbox.gate("before-ready");
    let port = sandbox.port();
    let address = format!(":{port}");
    let old = sandbox.plain(&[], &[&address, &hold]);
    gate.reached();
    gate.open();
    answered_by(port, 1);
    old.says("is up");
    let mut stream = UnixStream::connect(sandbox.run_dir().join(format!("{}-1.sock", old.pid()))).unwrap();
    stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
    stream.write_all(format!("PEER 1\n{}WHAT\n", "RELOAD\n".repeat(1000)).as_bytes()).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    // All have been taken in while the first reload runs.
    assert_eq!(lines.by_ref().find(|line| line.starts_with("ERROR")).unwrap(), "ERROR unknown word");
    for generation in 2..4 {
        gate.reached();
        gate.open();
        answered_by(port, generation);
    }
    until("the last one is done", || sandbox.status().iter().all(|row| row[1] == "3" && row[5] == "serving"));
    stream.write_all(b"WHAT\n").unwrap();
    let rest: Vec<String> = lines.by_ref().take_while(|line| !line.starts_with("ERROR")).collect();
    assert!(rest.len() <= 2 && rest.iter().all(|line| line == "RELOADED"), "{} answers", rest.len());
    sandbox.take_down(&address);
}

/// A flood of everything at once, while a swap runs.
#[test]
fn a_swap_goes_through_in_the_middle_of_a_flood() {
    let scene = Scene::new();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let socket = scene.socket();
    let floods: Vec<_> = ["STATUS\n", "RELEASED a.b\n", "nonsense\n", "PEER 1\n", "x"]
        .into_iter()
        .map(|line| {
            let (stop, socket) = (stop.clone(), socket.clone());
            std::thread::spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let Ok(stream) = UnixStream::connect(&socket) else { return };
                    let _ = { &stream }.write_all(if line.len() == 7 { b"PEER 1\n" } else { b"\n" });
                    pour(&stream, line, 20);
                }
            })
        })
        .collect();
    until("the flood is there", || scene.threads() > 8);
    scene.bounded(CONNECTIONS_MAX);
    scene.end();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for flood in floods {
        flood.join().unwrap();
    }
}
