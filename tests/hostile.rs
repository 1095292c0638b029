//! Those who mean harm: peers on the control socket, files in the run directory, servers that lie, and
//! another user. Each is tried, and each is refused or contained: what SECURITY in serverswap(1) says.

mod common;

use common::{Commons, Running, Sandbox, alive, answered_by, get, in_both_orders, kill, plain_server, until};
use nix::libc;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Connections to its control sockets that a supervisor takes, and those beyond that it looks at.
const CONNECTIONS_MAX: usize = 1024;
const CONNECTIONS_SPARE: usize = 32;
/// Threads of a supervisor that has none.
const THREADS: usize = 16;
/// Memory of its own that a supervisor takes, in KiB, whatever its peers do.
const MEMORY_MAX: u64 = 32 * 1024;
/// More than anything takes that has to be done, or given up, at once.
const PATIENCE: Duration = Duration::from_secs(20);

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
    fn with_files(sandbox: Sandbox, files: usize) -> Scene {
        let port = sandbox.port();
        let address = format!(":{port}");
        let mut command = sandbox.command("sh");
        command.args(["-c", &format!("ulimit -n {files} && exec \"$@\""), "sh", common::SERVERSWAP]);
        command.args((!sandbox.is_shared()).then_some("--plain")).arg(plain_server()).arg(&address);
        let old = sandbox.start(command);
        let pid = answered_by(port, 1).pid;
        old.says("is up");
        Scene { sandbox, port, address, old, pid, most: CONNECTIONS_MAX.min(files / 2) }
    }

    fn new(sandbox: Sandbox) -> Scene {
        Scene::with_files(sandbox, 256)
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
        common::files_of(self.old.pid())
    }

    /// Resident memory of the supervisor without the pages of files, in KiB.
    fn resident(&self) -> u64 {
        common::memory_of(self.old.pid(), "RssAnon").unwrap()
    }

    /// The bounds that the manual states, at any moment: each connection costs a thread, and each of the `writers`,
    /// to which nobody listens, another one.
    fn is_bounded(&self, writers: usize) {
        let connections = self.most + CONNECTIONS_SPARE;
        let (threads, files, memory) = (self.threads(), self.files(), self.resident());
        let seen = format!("{threads} threads, {files} files, {memory} KiB");
        // A thread that has given its place back may not have ended yet.
        assert!(threads <= connections + writers + 2 * THREADS, "{seen}");
        assert!(files <= connections + 2 * THREADS, "{seen}");
        assert!(memory <= MEMORY_MAX, "{seen}");
    }

    /// The same, when all have been taken in that came before and only `writers` do not read.
    fn bounded(&self, writers: usize) {
        // Whoever only asks may have to make room for those that come later.
        until("somebody is answered", || {
            let mut last = self.connect();
            let asked = last.write_all(b"PEER 1\nSTATUS\n").is_ok();
            asked && BufReader::new(last).lines().map_while(Result::ok).any(|line| line == "END")
        });
        self.is_bounded(self.most + CONNECTIONS_SPARE);
        // A thread that has let go of its connection takes a moment to end.
        let most = self.most + CONNECTIONS_SPARE + writers + THREADS;
        until("its threads are as few as the manual says", || self.threads() <= most);
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

/// Bytes that the other side has not read yet.
fn unread(stream: &UnixStream) -> i32 {
    let mut bytes = 0;
    // SAFETY: the call writes one int to the pointer, which is valid.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(result, 0);
    bytes
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
    in_both_orders(|sandbox| {
        let scene = Scene::with_files(sandbox, 4096);
        assert_eq!(scene.most, CONNECTIONS_MAX);
        let silent: Vec<UnixStream> = (0..scene.most + 500).map(|_| scene.connect()).collect();
        // The oldest have made room for the others.
        until("the oldest are sent away", || silent[..400].iter().all(is_closed));
        scene.bounded(0);
        scene.end();
    });
}

/// Each has said something, and so may be silent for ever.
#[test]
fn peers_that_said_nothing_that_counts_make_room_for_a_swap() {
    in_both_orders(|sandbox| {
        let scene = Scene::new(sandbox);
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
    });
}

/// Every connection took TAKEDOWN, as so many workers would: none may be sent away.
#[test]
fn a_swap_goes_through_while_workers_have_all_connections() {
    in_both_orders(|sandbox| {
        let mut scene = Scene::new(sandbox);
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
    });
}

#[test]
fn a_peer_that_says_a_byte_now_and_then_is_sent_away_like_a_silent_one() {
    in_both_orders(|sandbox| {
        let scene = Scene::new(sandbox);
        let drip = scene.connect();
        let mut bytes = b"READY :1".iter().cycle();
        let mut last = Instant::now();
        until("it is sent away", || {
            // Far more often than a silent one is sent away.
            if last.elapsed().as_millis() > 500 {
                let _ = (&drip).write_all(&[*bytes.next().unwrap()]);
                last = Instant::now();
            }
            is_closed(&drip)
        });
        scene.end();
    });
}

#[test]
fn peers_that_ask_and_do_not_read_cost_little_memory_and_hold_up_nobody() {
    in_both_orders(|sandbox| {
        let scene = Scene::new(sandbox);
        let before = scene.resident();
        let askers: Vec<UnixStream> = (0..scene.most)
            .map(|_| {
                let mut stream = scene.connect();
                stream.write_all(b"PEER 1\n").unwrap();
                pour(&stream, "STATUS\n", 30);
                stream
            })
            .collect();
        until("all that they asked is taken in", || askers.iter().all(|stream| unread(stream) == 0));
        scene.bounded(scene.most);
        assert!(scene.resident() < before + 8 * 1024, "{before} KiB before, {} KiB after", scene.resident());
        scene.end();
        drop(askers);
    });
}

/// Their writers would wait for ever for somebody to read, with a thread and a file each.
#[test]
fn a_peer_that_does_not_read_and_closes_its_half_leaves_no_thread_behind() {
    in_both_orders(|sandbox| {
        let scene = Scene::new(sandbox);
        let (threads, files) = (scene.threads(), scene.files());
        let halves: Vec<UnixStream> = (0..50)
            .map(|_| {
                let mut stream = scene.connect();
                stream.write_all(b"PEER 1\n").unwrap();
                for _ in 0..100 {
                    stream.write_all("STATUS\n".repeat(100).as_bytes()).unwrap();
                }
                stream.shutdown(Shutdown::Write).unwrap();
                stream
            })
            .collect();
        until("their threads are gone", || scene.threads() <= threads && scene.files() <= files);
        drop(halves);
        scene.end();
    });
}

#[test]
fn a_peer_that_asks_for_a_thousand_reloads_is_answered_once_for_each_there_is() {
    in_both_orders(|sandbox| {
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
    });
}

/// Peers that say everything at once, until they are told to stop.
struct Flood {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn start(scene: &Scene) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let peer = |line: &'static str| {
            let (stop, socket) = (stop.clone(), scene.socket());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok(stream) = UnixStream::connect(&socket) else { return };
                    let _ = { &stream }.write_all(if line.len() == 7 { b"PEER 1\n" } else { b"\n" });
                    pour(&stream, line, 1);
                }
            })
        };
        let threads = ["STATUS\n", "RELEASED a.b\n", "nonsense\n", "PEER 1\n", "x"].map(peer).into();
        until("the flood is there", || scene.threads() > scene.most / 2);
        Flood { stop, threads }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// It takes what the manual says while it lasts, and nothing when it is over.
#[test]
fn a_swap_goes_through_in_the_middle_of_a_flood() {
    in_both_orders(|sandbox| {
        let scene = Scene::new(sandbox);
        let (threads, files) = (scene.threads(), scene.files());
        assert!(threads <= THREADS, "{threads} threads");
        let sample = || {
            for _ in 0..100 {
                scene.is_bounded(0);
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        // The first one makes room for threads and buffers; the next must not need more.
        let flood = Flood::start(&scene);
        sample();
        flood.end();
        until("its threads and files are gone", || scene.threads() <= threads && scene.files() <= files);
        let first = scene.resident();
        let flood = Flood::start(&scene);
        sample();
        let second = scene.resident();
        assert!(second < first + 2048, "{first} KiB after one flood, {second} KiB in another");
        scene.end();
        flood.end();
    });
}

/// Whatever a name in the run directory can stand for but should not.
const PLANTS: [&str; 8] =
    ["a directory", "a fifo", "a symlink", "a hard link", "a socket", "a huge file", "garbage", "nothing"];
const PRECIOUS: &str = "precious\n";

fn plant(path: &Path, what: &str, victim: &Path) {
    match what {
        "a directory" => fs::create_dir(path).unwrap(),
        "a fifo" => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        "a symlink" => symlink(victim, path).unwrap(),
        "a hard link" => fs::hard_link(victim, path).unwrap(),
        "a socket" => drop(UnixListener::bind(path).unwrap()),
        "a huge file" => fs::File::create(path).unwrap().set_len(10 << 30).unwrap(),
        "garbage" => fs::write(path, b"serverswap 1\npid -1\n\xff\0").unwrap(),
        "nothing" => {}
        other => panic!("{other}"),
    }
}

fn clear(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir(path);
}

/// A serving server, one of whose files is something else for a while. `swapped`: with which of them a swap
/// goes through all the same.
fn a_file_that_is_something_else(sandbox: Sandbox, name: impl Fn(&Running, i32, u16) -> String, swapped: &[&str]) {
    let victim = sandbox.file("victim", PRECIOUS);
    let away = sandbox.path("away");
    let port = sandbox.port();
    let address = format!(":{port}");
    for what in PLANTS {
        let (mut old, pid) = sandbox.serving(port, &[], &[&address]);
        let path = sandbox.run_dir().join(name(&old, pid, port));
        fs::rename(&path, &away).unwrap();
        plant(&path, what, &victim);
        let mut new = sandbox.plain(&["-d", "--ready-timeout", "0.7"], &[&address]);
        let status = new.wait();
        let log = new.log();
        assert!(log.len() < 2000 && !log.contains("panicked"), "{what}: {log}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), PRECIOUS, "{what}");
        if swapped.contains(&what) {
            assert_eq!(status, 0, "{what}: {log}");
            assert_eq!(get(port).unwrap().generation, 2, "{what}");
            assert_eq!(old.wait(), 0, "{what}");
            if path.is_dir() {
                // It cannot be replaced, and is not ours to remove.
                clear(&path);
                assert_eq!(sandbox.deploy(&[&address]).0, 0, "{what}");
            }
        } else {
            assert!(status == 124 || status == 125, "{what}: {status} {log}");
            assert_eq!(get(port).map(|answer| answer.pid), Ok(pid), "{what}: {log}");
            assert!(!old.ended(), "{what}: {}", old.log());
        }
        // As it was: everything goes on.
        if !swapped.contains(&what) {
            clear(&path);
            fs::rename(&away, &path).unwrap();
            let (status, log) = sandbox.deploy(&[&address]);
            assert_eq!(status, 0, "{what}: {log}");
            assert_eq!(old.wait(), 0, "{what}");
        }
        assert_eq!(sandbox.run(["--takedown", &address]).0, 0, "{what}");
        clear(&path);
        clear(&away);
        assert_eq!(fs::read_to_string(&victim).unwrap(), PRECIOUS, "{what}");
        sandbox.assert_clean();
    }
}

#[test]
fn a_pidfile_of_a_serving_server_that_is_something_else() {
    a_file_that_is_something_else(Sandbox::shared(), |_, _, port| format!("{port}.pid"), &PLANTS);
}

/// Its lock is still held, but by a file that has lost its name.
#[test]
fn a_record_of_a_serving_server_that_is_something_else() {
    a_file_that_is_something_else(Sandbox::shared(), |_, pid, _| format!("{pid}.server"), &[]);
}

#[test]
fn a_control_socket_of_a_serving_server_that_is_something_else() {
    a_file_that_is_something_else(Sandbox::shared(), |old, _, _| format!("{}-1.sock", old.pid()), &[]);
}

/// Nobody needs it by its name but the server that speaks there.
#[test]
fn a_notify_socket_of_a_serving_server_that_is_something_else() {
    a_file_that_is_something_else(Sandbox::shared(), |old, _, _| format!("{}-1.notify", old.pid()), &PLANTS);
}

/// Nothing is ever read from it or written to it: what can be locked will do.
#[test]
fn a_lock_of_the_run_directory_that_is_something_else() {
    let swapped = ["a fifo", "a hard link", "a huge file", "garbage", "nothing"];
    a_file_that_is_something_else(Sandbox::shared(), |_, _, _| "lock".into(), &swapped);
}

/// What a person asks for while a file of a serving server is something else is done, or is not and said in a line.
fn asked_for_something_else(name: impl Fn(&Running, i32, u16) -> String) {
    let sandbox = Sandbox::shared();
    let victim = sandbox.file("victim", PRECIOUS);
    let away = sandbox.path("away");
    let port = sandbox.port();
    let address = format!(":{port}");
    for what in PLANTS {
        let (old, mut pid) = sandbox.serving(port, &[], &[&address]);
        let path = sandbox.run_dir().join(name(&old, pid, port));
        // What is written and gets its name at once is not there.
        let _ = fs::rename(&path, &away);
        plant(&path, what, &victim);
        let mut down = false;
        for command in ["--status", "--reload", "--takedown"] {
            let asked = Instant::now();
            let (status, log) = sandbox.run([command, &address]);
            let said = format!("{command}, {what}: {status} {log}");
            assert!(asked.elapsed() < PATIENCE, "{said}");
            assert!(status == 0 || status == 125, "{said}");
            let lines = log.lines().filter(|line| line.starts_with("serverswap: ")).count();
            // A warning says what the file is, and what comes of it is another line.
            assert!((status == 0 || lines > 0) && lines <= 2 && !log.contains("panicked"), "{said}");
            assert_eq!(fs::read_to_string(&victim).unwrap(), PRECIOUS, "{said}");
            match (command, get(port)) {
                ("--takedown", Err(_)) if status == 0 => down = true,
                ("--reload", Ok(new)) if status == 0 => {
                    assert_eq!(new.generation, 2, "{said}");
                    // The other file is of a server that is gone.
                    pid = new.pid;
                    clear(&away);
                }
                (_, Ok(same)) if command == "--status" || status != 0 => assert_eq!(same.pid, pid, "{said}"),
                (_, answer) => panic!("{answer:?}: {said}"),
            }
        }
        if !down {
            clear(&path);
            let _ = fs::rename(&away, &path);
            assert_eq!(sandbox.run(["--takedown", &address]).0, 0, "{what}");
        }
        clear(&path);
        clear(&away);
        assert_eq!(fs::read_to_string(&victim).unwrap(), PRECIOUS, "{what}");
        // Who cannot take the lock leaves its pidfile: it is stale.
        clear(&sandbox.run_dir().join(format!("{port}.pid")));
        sandbox.assert_clean();
    }
}

#[test]
fn what_is_asked_while_a_pidfile_is_something_else() {
    asked_for_something_else(|_, _, port| format!("{port}.pid"));
}

#[test]
fn what_is_asked_while_a_record_is_something_else() {
    asked_for_something_else(|_, pid, _| format!("{pid}.server"));
}

#[test]
fn what_is_asked_while_a_control_socket_is_something_else() {
    asked_for_something_else(|old, _, _| format!("{}-1.sock", old.pid()));
}

#[test]
fn what_is_asked_while_a_notify_socket_is_something_else() {
    asked_for_something_else(|old, _, _| format!("{}-1.notify", old.pid()));
}

#[test]
fn what_is_asked_while_something_is_in_the_way_of_what_is_written() {
    asked_for_something_else(|old, _, _| format!(".new.{}", old.pid()));
}

#[test]
fn what_is_asked_while_the_lock_is_something_else() {
    asked_for_something_else(|_, _, _| "lock".into());
}

/// Somebody of the same user listens at the place of the old server's control socket, and says what `say` says to
/// whoever connects: a new server gives up in its time, and the old one serves.
fn somebody_else_at_the_control_socket(say: impl Fn(&mut UnixStream) -> std::io::Result<()> + Copy + Send + 'static) {
    in_both_orders(|sandbox| {
        let port = sandbox.port();
        let address = format!(":{port}");
        let (mut old, pid) = sandbox.serving(port, &[], &[&address]);
        let path = sandbox.run_dir().join(format!("{}-1.sock", old.pid()));
        let away = sandbox.path("away");
        fs::rename(&path, &away).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let heard = Arc::new(AtomicBool::new(false));
        let everybody = heard.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, heard) = (stream.unwrap(), everybody.clone());
                // Until the other side has gone.
                std::thread::spawn(move || {
                    while say(&mut stream).is_ok() {
                        heard.store(true, Ordering::Relaxed);
                    }
                });
            }
        });
        let asked = Instant::now();
        let mut new = sandbox.plain(&["--ready-timeout", "1"], &[&address]);
        until("it gives up", || {
            let memory = common::memory_of(new.pid(), "RssAnon").unwrap_or(0);
            assert!(memory <= MEMORY_MAX, "{memory} KiB");
            new.ended()
        });
        assert_eq!(new.wait(), 124, "{}", new.log());
        assert!(new.log().contains("the old one still serves"), "{}", new.log());
        let rows = sandbox.status();
        assert!(asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
        assert_eq!((rows.len(), rows[0][2].as_str(), rows[0][5].as_str()), (1, &*pid.to_string(), "not answering"));
        assert!(heard.load(Ordering::Relaxed));
        assert_eq!(get(port).map(|answer| answer.pid), Ok(pid));
        assert!(!old.ended(), "{}", old.log());
        fs::rename(&away, &path).unwrap();
        let (status, log) = sandbox.deploy(&[&address]);
        assert_eq!(status, 0, "{log}");
        assert_eq!(old.wait(), 0, "{}", old.log());
        sandbox.take_down(&address);
    });
}

#[test]
fn somebody_silent_at_the_control_socket_of_another() {
    somebody_else_at_the_control_socket(|stream| stream.read_exact(&mut [0]));
}

#[test]
fn somebody_who_says_a_byte_now_and_then_at_the_control_socket_of_another() {
    somebody_else_at_the_control_socket(|stream| {
        std::thread::sleep(Duration::from_secs(1));
        stream.write_all(b"x")
    });
}

#[test]
fn somebody_who_never_stops_at_the_control_socket_of_another() {
    somebody_else_at_the_control_socket(|stream| {
        stream.write_all("HOLDS a.b\nFIELD a b\nSOCKETS 9\nRELOADED\nERROR no\nnonsense\n".repeat(100).as_bytes())
    });
}

/// A new supervisor that finds something where it wants to make a file says so, or makes it all the same: for
/// certain where that is one of `replaced`.
fn something_in_the_way(name: &str, replaced: &[&str]) {
    let sandbox = Sandbox::shared();
    let victim = sandbox.file("victim", PRECIOUS);
    let port = sandbox.port();
    let address = format!(":{port}");
    for what in PLANTS {
        let (mut old, pid) = sandbox.serving(port, &[], &[&address]);
        // The shell waits until its file is there, and becomes the supervisor.
        let gate = sandbox.path("gate");
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut command = sandbox.command("sh");
        command.args(["-c", r#"read -r go <"$0"; exec "$@""#]).arg(&gate).arg(common::SERVERSWAP);
        command.args(["--ready-timeout", "1"]).arg(plain_server()).arg(&address);
        let mut new = sandbox.start(command);
        let path = sandbox.run_dir().join(name.replace("PID", &new.pid().to_string()));
        plant(&path, what, &victim);
        fs::write(&gate, "go\n").unwrap();
        clear(&gate);
        until("it is up or has ended", || new.ended() || new.log().contains("is up"));
        let log = new.log();
        assert!(log.lines().count() < 6 && !log.contains("panicked"), "{what}: {log}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), PRECIOUS, "{what}");
        if new.ended() {
            let status = new.wait();
            assert!(status == 125 && log.starts_with("serverswap: unable to "), "{what}: {status} {log}");
            assert!(!replaced.contains(&what), "{what}: {log}");
            assert!(path.symlink_metadata().is_ok(), "{what} was not made by it, and is gone");
            assert_eq!(get(port).map(|answer| answer.pid), Ok(pid), "{what}: {log}");
            assert!(!old.ended(), "{what}: {}", old.log());
        } else {
            assert_eq!(old.wait(), 0, "{what}: {}", old.log());
        }
        assert_eq!(sandbox.run(["--takedown", &address]).0, 0, "{what}");
        clear(&path);
        assert_eq!(fs::read_to_string(&victim).unwrap(), PRECIOUS, "{what}");
        sandbox.assert_clean();
    }
}

/// A dead supervisor whose pid the new one has leaves one: as process 1 of a container it always has.
#[test]
fn something_in_the_way_of_a_control_socket() {
    something_in_the_way("PID-1.sock", &["a socket", "nothing"]);
}

#[test]
fn something_in_the_way_of_a_notify_socket() {
    something_in_the_way("PID-1.notify", &["a socket", "nothing"]);
}

/// Under this name every file is written before it gets its own.
#[test]
fn something_in_the_way_of_what_is_written() {
    something_in_the_way(".new.PID", &PLANTS[1..]);
}

/// Between every look and every use, the pidfile is exchanged for a link or the like.
#[test]
fn a_race_in_the_run_directory_leads_nowhere() {
    let sandbox = Sandbox::shared();
    let victim = sandbox.file("victim", PRECIOUS);
    let port = sandbox.port();
    let address = format!(":{port}");
    assert_eq!(sandbox.deploy(&[&address]).0, 0);
    let stop = Arc::new(AtomicBool::new(false));
    let racer = {
        let (stop, run, victim) = (stop.clone(), sandbox.run_dir(), victim.clone());
        std::thread::spawn(move || {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                for what in ["a symlink", "a hard link", "a fifo", "a huge file", "garbage"] {
                    let next = run.join("next");
                    plant(&next, what, &victim);
                    let _ = fs::rename(&next, run.join(format!("{port}.pid")));
                    rounds += 1;
                }
            }
            rounds
        })
    };
    for _ in 0..10 {
        let (status, log) = sandbox.run(["-d", "--ready-timeout", "5", plain_server().to_str().unwrap(), &address]);
        assert!([0, 124, 125].contains(&status), "{log}");
        assert!(get(port).is_ok(), "{status}: {log}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), PRECIOUS);
    }
    stop.store(true, Ordering::Relaxed);
    assert!(racer.join().unwrap() > 10);
    let _ = fs::remove_file(sandbox.run_dir().join("next"));
    let (status, log) = sandbox.deploy(&[&address]);
    assert_eq!(status, 0, "{log}");
    let answer = get(port).unwrap();
    assert_eq!(sandbox.pidfile(&port.to_string()), Some(answer.pid));
    assert_eq!(fs::read_to_string(&victim).unwrap(), PRECIOUS);
    sandbox.take_down(&address);
}

/// A record in the right form, of a process that is no server: its start, or its boot, is another.
#[test]
fn a_record_that_names_somebody_else_s_pid() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let address = format!(":{port}");
    assert_eq!(sandbox.run(["true"]).0, 0);
    let mut bystander = sandbox.command("sleep").arg("600").spawn().unwrap();
    let pid = bystander.id();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start: u64 = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boot = boot.trim();
    for (start, boot) in [(start + 1, boot), (start, "another"), (0, boot)] {
        let record = format!(
            "serverswap 1\npid {pid}\nstart {start}\nboot {boot}\nsupervisor 1\ngeneration 1\nsocket 1-1.sock\ncommand x\n"
        );
        fs::write(sandbox.run_dir().join(format!("{pid}.server")), record).unwrap();
        fs::write(sandbox.run_dir().join(format!("{port}.pid")), format!("{pid}\n")).unwrap();
        assert_eq!(sandbox.status(), Vec::<Vec<String>>::new());
        assert_eq!(sandbox.run(["--takedown", &address]).0, 125);
        let (status, log) = sandbox.deploy(&[&address]);
        assert_eq!((status, log.contains("is stale")), (0, true), "{log}");
        assert_eq!(sandbox.run(["--takedown", &address]).0, 0);
        assert!(alive(pid as i32));
    }
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    sandbox.assert_clean();
}

#[test]
fn a_server_that_says_ready_for_the_port_of_another_and_never_binds_it() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (mut old, pid) = sandbox.serving(port, &[], &[&address]);
    let liar = format!(
        "echo READY {address} >&$SERVERSWAP_FD; echo UP >&$SERVERSWAP_FD; read -r x <&$SERVERSWAP_FD; exec sleep 600"
    );
    let (status, log) = sandbox.run(["-d", "--ready-timeout", "1", "sh", "-c", &liar]);
    assert_eq!(status, 124, "{log}");
    assert!(log.contains("the old one still serves"), "{log}");
    // And one that is up, somewhere else.
    let other = sandbox.port();
    let mut second = sandbox.plain(&["--ready-timeout", "1"], &[&format!(":{other}")]);
    until("it answers", || get(other).is_ok());
    second.says("is up");
    let mut stream = UnixStream::connect(sandbox.run_dir().join(format!("{}-1.sock", second.pid()))).unwrap();
    stream.write_all(format!("READY {address}\n").as_bytes()).unwrap();
    stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    assert_eq!(lines.next().unwrap(), format!("GO {address}"));
    second.says(&format!("{address}: the server did not listen on it in time (the server goes on without it)"));
    assert_eq!(get(port).map(|answer| answer.pid), Ok(pid));
    assert!(!old.ended() && !second.ended());
    let (status, log) = sandbox.deploy(&[&address]);
    assert_eq!(status, 0, "{log}");
    assert_eq!(old.wait(), 0);
    assert_eq!(sandbox.run(["--takedown", &format!(":{other}")]).0, 0);
    sandbox.take_down(&address);
}

/// 200 processes that ignore TERM: some have left the process group, some have no parent any more, and some are
/// another process every moment.
#[test]
fn a_server_that_forks_a_bomb_is_taken_down_with_all_of_it() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let bomb = sandbox.file(
        "bomb.py",
        r#"
import os, signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
s = socket.socket()
for n in range(200):
    if os.fork() == 0:
        s.close()
        if n % 3 == 0 and n % 10 != 1:
            os.setsid()
        if n % 3 == 1 and os.fork() != 0:
            os._exit(0)
        # Not for ever, should the test itself be killed.
        moments = 3000 if n % 10 == 1 and sys.argv[2] == "comets" else 0
        for _ in range(moments):
            # Here one moment and there the next.
            time.sleep(0.02)
            if os.fork() != 0:
                os._exit(0)
        time.sleep(600)
        os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("", int(sys.argv[1])))
s.listen()
while True:
    s.accept()[0].close()
"#,
    );
    // Before Linux 6.9 a process group cannot be killed for certain.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let comets = if (numbers.next(), numbers.next()) >= (Some(6), Some(9)) { "comets" } else { "none" };
    let words = ["--kill-after", "0.5", "python3", bomb.to_str().unwrap(), &port.to_string(), comets];
    let mut server = sandbox.serverswap(words);
    // On a busy machine it may be taken for a worker first, which has no address.
    server.says(&format!(":{port}: server"));
    until("the bomb has gone off", || sandbox.processes().len() > 190);
    let (status, log) = sandbox.run(["--takedown", &address]);
    assert_eq!(status, 0, "{log}");
    assert_eq!(server.wait(), 0, "{}", server.log());
    // No more than those that have been killed and are not gone yet.
    sandbox.assert_clean();
}

/// What is left of a server holds its port, ignores TERM, and consists of other processes in other sessions every
/// moment.
#[test]
fn a_server_of_which_comets_are_left_is_taken_down() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let comets = sandbox.file(
        "comets.py",
        r#"
import os, signal, socket, sys, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("", int(sys.argv[1])))
s.listen()
for _ in range(20):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Not for ever, should the test itself be killed.
        for _ in range(5000):
            time.sleep(0.02)
            if os.fork() != 0:
                os._exit(0)
            os.setsid()
        os._exit(0)
signal.pause()
"#,
    );
    // It accepts nothing.
    let words =
        ["--no-probe", "--kill-after", "0.5", "--drain", "0", "python3", comets.to_str().unwrap(), &port.to_string()];
    let mut server = sandbox.serverswap(words);
    server.says("is up");
    let (status, log) = sandbox.run(["--takedown", &format!(":{port}")]);
    assert_eq!(status, 0, "{log}");
    assert_eq!(server.wait(), 0, "{}", server.log());
    sandbox.assert_clean();
}

/// Takes a file of another process over, as every process of a user may do with another of that user.
fn steal(pid: i32, number: i32) -> UnixStream {
    // SAFETY: integers, and fds that the kernel makes for us.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        assert!(pidfd >= 0);
        let pidfd = OwnedFd::from_raw_fd(pidfd as i32);
        let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        UnixStream::from_raw_fd(fd as i32)
    }
}

fn control_fd(pid: i32) -> i32 {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let entry = environment.split(|&b| b == 0).find_map(|e| e.strip_prefix(b"SERVERSWAP_FD=")).unwrap();
    std::str::from_utf8(entry).unwrap().parse().unwrap()
}

/// The thief can say what the server can say, and no more: it costs the server its channel, and nobody the
/// port.
#[test]
fn the_control_fd_of_another_server_is_taken_over() {
    in_both_orders(|sandbox| {
        let port = sandbox.port();
        let address = format!(":{port}");
        let (mut old, pid) = sandbox.serving(port, &["--kill-after", "0.5", "--drain", "0.5"], &[&address, "takedown"]);
        // One that starts, and does not know that somebody speaks for it.
        let (gate, hold) = sandbox.gate("before-ready");
        let mut new = sandbox.plain(&["-d", "--ready-timeout", "1"], &["a.name", &hold]);
        gate.reached();
        let started = sandbox.status().iter().find(|row| row[5] == "starting").unwrap()[2].parse().unwrap();
        let thief = steal(started, control_fd(started));
        thief.set_read_timeout(Some(common::DEADLINE)).unwrap();
        { &thief }.write_all(b"RELEASED :1\nPEER 1\nCLAIM\nnonsense\n").unwrap();
        if sandbox.is_shared() {
            { &thief }.write_all(format!("READY {address}\n").as_bytes()).unwrap();
            assert!(BufReader::new(&thief).lines().map_while(Result::ok).any(|line| line == format!("GO {address}")));
        }
        assert_eq!(new.wait(), 124, "{}", new.log());
        assert_eq!(get(port).map(|answer| answer.pid), Ok(pid));
        drop(gate);
        // One that serves.
        let thief = steal(pid, control_fd(pid));
        let said = format!("FAIL\nRELEASED {address}\nGO {address}\nPEER 1\nCLAIM\nSTOP\n");
        { &thief }.write_all(said.as_bytes()).unwrap();
        thief.shutdown(Shutdown::Both).unwrap();
        assert_eq!(get(port).map(|answer| answer.pid), Ok(pid));
        assert!(!old.ended(), "{}", old.log());
        let (status, log) = sandbox.deploy(&[&address]);
        assert_eq!(status, 0, "{log}");
        assert_eq!(get(port).unwrap().generation, 2);
        assert!(!alive(pid));
        old.wait();
        sandbox.take_down(&address);
    });
}

/// A server may open the control socket of another, since both are of one user.
#[test]
fn a_server_that_speaks_for_another_costs_it_no_more_than_its_time() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (mut old, pid) = sandbox.serving(port, &["--kill-after", "0.5", "--drain", "0.5"], &[&address]);
    let socket = sandbox.run_dir().join(format!("{}-1.sock", old.pid()));
    let liar = UnixStream::connect(&socket).unwrap();
    liar.set_read_timeout(Some(common::DEADLINE)).unwrap();
    // It takes what it will never do, gives back what it does not have, and gives up for it.
    let said = format!("TAKEDOWN {address}\nRELEASED :1\nFAIL\nUP\nREADY {address}\n");
    { &liar }.write_all(said.as_bytes()).unwrap();
    let mut lines = BufReader::new(&liar).lines().map_while(Result::ok);
    assert_eq!(lines.find(|line| line.starts_with("GO")).unwrap(), format!("GO {address}"));
    assert_eq!(get(port).map(|answer| answer.pid), Ok(pid));
    assert!(!old.ended(), "{}", old.log());
    let (status, log) = sandbox.deploy(&[&address]);
    assert_eq!(status, 0, "{log}");
    assert_eq!(get(port).unwrap().generation, 2);
    assert!(!alive(pid));
    assert_eq!(old.wait(), 0);
    sandbox.take_down(&address);
}

#[test]
fn lies_to_the_notify_socket_are_not_believed() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (mut old, pid) = sandbox.serving(port, &[], &[&address]);
    let socket = UnixDatagram::unbound().unwrap();
    let notify = sandbox.run_dir().join(format!("{}-1.notify", old.pid()));
    let long = vec![b'x'; 100_000];
    let lies: [&[u8]; 8] = [
        b"MAINPID=1\nMAINPIDFDID=1",
        b"READY=1\nRELOADING=1\nFDSTORE=1\nERRNO=5\nEXIT_STATUS=3",
        b"STOPPING=1",
        b"WATCHDOG_USEC=1\nWATCHDOG=1",
        b"",
        b"\xff\xfe=\0\0",
        &long,
        b"STATUS=\x1b[2Jserved\tby\rsomebody\x07",
    ];
    for _ in 0..1000 {
        for lie in lies {
            socket.send_to(lie, &notify).unwrap();
        }
    }
    until("the last one is heard", || sandbox.status()[0][10].ends_with(" ([2Jservedbysomebody)"));
    assert_eq!(sandbox.status()[0][2], pid.to_string());
    assert_eq!(sandbox.pidfile(&port.to_string()), Some(pid));
    assert_eq!(get(port).map(|answer| answer.pid), Ok(pid));
    // That it is ready is no proof for one that starts.
    let (gate, hold) = sandbox.gate("before-listen");
    let mut new = sandbox.plain(&["-d", "--ready-timeout", "1"], &[&address, &hold]);
    gate.reached();
    socket
        .send_to(
            b"READY=1\nMAINPID=1",
            sandbox.run_dir().join(format!("{}-1.notify", supervisor_of_the_new(&sandbox, &old))),
        )
        .unwrap();
    assert_eq!(new.wait(), 124, "{}", new.log());
    drop(gate);
    assert_eq!(get(port).map(|answer| answer.pid), Ok(pid));
    let (status, log) = sandbox.deploy(&[&address]);
    assert_eq!(status, 0, "{log}");
    assert_eq!(old.wait(), 0);
    sandbox.take_down(&address);
}

/// Pid of the supervisor of the only other server.
fn supervisor_of_the_new(sandbox: &Sandbox, old: &Running) -> i32 {
    let pids = sandbox.files().into_iter().filter_map(|name| name.strip_suffix("-1.notify")?.parse().ok());
    pids.into_iter().find(|pid| *pid != old.pid()).unwrap()
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("left out: only root can be two users");
    }
    root
}

/// A link in the place of a control socket leads to somebody who says what the new server wants to hear.
#[test]
fn a_control_socket_of_another_user_is_not_spoken_to() {
    if !is_root() {
        return;
    }
    let commons = Commons::new();
    let sandbox = &commons.sandbox;
    let port = sandbox.port();
    let address = format!(":{port}");
    let (old, pid) = sandbox.serving(port, &[], &[&address]);
    let theirs = sandbox.path("nobody/sock");
    let liar = format!(
        r#"
import os, socket
s = socket.socket(socket.AF_UNIX)
s.bind("{0}")
s.listen()
while True:
    c = s.accept()[0]
    try:
        said = c.sendall(b"PEER 1\nHOLDS {address}\nLOCKED\nRELEASED {address}\nGONE\nFIELD command lies\nEND\n") or c.recv(1000)
    except OSError:
        continue
    with open("{0}.heard", "ab") as heard:
        heard.write(said)
"#,
        theirs.display()
    );
    let mut command = commons.nobody(Path::new("python3"), &sandbox.path("nobody/run"), &["-c", &liar]);
    let mut liar = command.spawn().unwrap();
    until("it listens", || UnixStream::connect(&theirs).is_ok());
    let heard = || fs::read_to_string(format!("{}.heard", theirs.display())).unwrap_or_default();
    let socket = sandbox.run_dir().join(format!("{}-1.sock", old.pid()));
    let away = sandbox.path("away");
    fs::rename(&socket, &away).unwrap();
    symlink(&theirs, &socket).unwrap();
    let (status, log) = sandbox.run(["-d", "--ready-timeout", "1", plain_server().to_str().unwrap(), &address]);
    assert_eq!(status, 124, "{log}");
    let (status, log) = sandbox.run(["--takedown", &address]);
    assert_eq!(status, 125, "{log}");
    assert!(log.contains("belongs to another user"), "{log}");
    assert!(sandbox.status().iter().all(|row| row[5] == "not answering" && !row[9].contains("lies")));
    assert_eq!(get(port).map(|answer| answer.pid), Ok(pid));
    assert_eq!(heard(), "");
    fs::remove_file(&socket).unwrap();
    fs::rename(&away, &socket).unwrap();
    kill(liar.id() as i32, libc::SIGKILL);
    liar.wait().unwrap();
    let _ = fs::remove_file(&theirs);
    sandbox.take_down(&address);
}

/// The run directory of root can be looked at by everybody, and its pidfiles opened: to lock them, too.
#[test]
fn locks_of_another_user_on_what_it_can_read_hold_up_nobody() {
    if !is_root() {
        return;
    }
    let commons = Commons::new();
    let sandbox = &commons.sandbox;
    let port = sandbox.port();
    let address = format!(":{port}");
    let mut old = sandbox.plain(&[], &[&address]);
    answered_by(port, 1);
    old.says("is up");
    let locker = r#"
import fcntl, os, sys
run = sys.argv[1]
for name in [run] + [os.path.join(run, name) for name in os.listdir(run)]:
    try:
        fcntl.flock(os.open(name, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("locked", flush=True)
    except OSError:
        pass
print("done", flush=True)
sys.stdin.read()
"#;
    let run = sandbox.run_dir();
    let mut command =
        commons.nobody(Path::new("python3"), &sandbox.path("nobody/run"), &["-c", locker, run.to_str().unwrap()]);
    let mut locker = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(locker.stdout.take().unwrap()).lines().map_while(Result::ok);
    let locked = lines.take_while(|line| line != "done").count();
    // The directory and the pidfile, and not the lock or the record.
    assert_eq!(locked, 2);
    let (status, log) = sandbox.deploy(&[&address]);
    assert_eq!(status, 0, "{log}");
    assert_eq!(old.wait(), 0);
    drop(locker.stdin.take());
    locker.wait().unwrap();
    sandbox.take_down(&address);
}
