//! One version of serverswap takes over from another: what an old one said is kept in `tests/peers` and said
//! again, on either side, and a later one may say more.

mod common;

use common::{Sandbox, answered_by, copy_fd, files_of, get, in_both_orders, kill, plain_server, until};
use nix::libc;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;

/// Who says a line: `>` the new supervisor, `<` that of the old server.
type Line = (char, String);

fn recorded(name: &str, address: &str) -> Vec<Line> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name);
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| (line.chars().next().unwrap(), line[2..].replace("ADDRESS", address))).collect()
}

/// What a later version might say: more behind its version, and words that nobody knows yet.
fn from_the_future(lines: &[Line], side: char) -> Vec<Line> {
    let mut later = Vec::new();
    for (who, line) in lines {
        // Not behind the last one: who has been told all may be gone.
        if *who == side && later.iter().any(|(said, _)| *said == side) {
            later.push((side, "HELLO what is this".to_owned()));
        }
        let line = if *who == side { line.replace("PEER 1", "PEER 2 and more of it") } else { line.clone() };
        later.push((*who, line));
    }
    later
}

/// A stream on which files may come too.
struct Stream<'a>(&'a UnixStream, &'a mut Vec<OwnedFd>);

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut space = nix::cmsg_space!([RawFd; 8]);
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = part {
                // SAFETY: the kernel has just made these fds for us, and nobody else has them.
                self.1.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        Ok(message.bytes)
    }
}

/// Says the lines of one side, with a listener of `server` where one goes with them, and hears those of the other,
/// in this order; what came with these. `before` is called before a line is said.
fn replay(stream: &UnixStream, lines: &[Line], side: char, server: i32, mut before: impl FnMut(&str)) -> Vec<OwnedFd> {
    stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
    let mut files = Vec::new();
    let mut heard = BufReader::new(Stream(stream, &mut files)).lines();
    let mut expected = 0;
    let send = |text: &mut String, fds: &[RawFd]| {
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[] } else { &rights[..] };
        if !text.is_empty() {
            let part = [IoSlice::new(text.as_bytes())];
            sendmsg::<()>(stream.as_raw_fd(), &part, rights, MsgFlags::empty(), None).unwrap();
        }
        text.clear();
    };
    // What is said in one breath goes in one piece: the other side may be gone after half of it.
    let mut said = String::new();
    for (who, line) in lines {
        let (line, file) = line.strip_suffix(" +").map_or((line.as_str(), false), |line| (line, true));
        if *who == side {
            before(line);
            let line = format!("{line}\n");
            if file {
                send(&mut said, &[]);
                send(&mut line.clone(), &[listener_of(server).as_raw_fd()]);
            } else {
                said.push_str(&line);
            }
            continue;
        }
        send(&mut said, &[]);
        expected += usize::from(file);
        // An unknown word is answered, which changes nothing; and where the output goes is another path in each run.
        // And 0.1.0 does not know whether a server is on trial.
        let differs = ["FIELD log ", "FIELD trial "];
        let counts =
            |line: &String| line != "ERROR unknown word" && !differs.iter().any(|field| line.starts_with(field));
        let answer = heard.by_ref().map(|line| line.unwrap()).find(counts);
        assert_eq!(answer.as_deref(), Some(line));
    }
    send(&mut said, &[]);
    drop(heard);
    assert_eq!(files.len(), expected);
    files
}

fn listener_of(pid: i32) -> OwnedFd {
    listeners_of(pid).next().expect("a listener")
}

fn listeners_of(pid: i32) -> impl Iterator<Item = OwnedFd> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let numbers = fds.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let copies = numbers.filter_map(move |fd| copy_fd(pid, fd).ok());
    copies.filter(|copy| getsockopt(copy, sockopt::AcceptConn).unwrap_or(false))
}

fn sandbox(shared: bool) -> Sandbox {
    if shared { Sandbox::shared() } else { Sandbox::new() }
}

fn an_old_claimer(shared: bool, lines: impl Fn(&str) -> Vec<Line>) {
    let sandbox = sandbox(shared);
    let port = sandbox.port();
    let address = format!(":{port}");
    let (mut old, first) = sandbox.serving(port, &[], &[&address, "takedown"]);
    let stream = UnixStream::connect(sandbox.run_dir().join(format!("{}-1.sock", old.pid()))).unwrap();
    let files = replay(&stream, &lines(&address), '>', first, |_| {});
    for file in files {
        assert_eq!(TcpListener::from(file).local_addr().unwrap().port(), port);
    }
    assert_eq!(old.wait(), 0, "{}", old.log());
    assert!(get(port).is_err());
    sandbox.assert_clean();
}

/// A server, and all that its supervisor, which is this test, has in the run directory.
struct OldServer {
    sandbox: Sandbox,
    port: u16,
    server: Child,
    pid: i32,
    record: PathBuf,
    socket: PathBuf,
    /// The lock of its record ends with it.
    _lock: File,
    listener: UnixListener,
}

impl OldServer {
    fn new(shared: bool) -> OldServer {
        let sandbox = sandbox(shared);
        let port = sandbox.port();
        assert_eq!(sandbox.run(["true"]).0, 0);
        let mut command = sandbox.command(Path::new("python3"));
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/unmodified.py");
        command.arg(python).arg(format!("0.0.0.0:{port}")).args(shared.then_some("reuseport"));
        let server = command.env("SERVERSWAP_GENERATION", "1").spawn().unwrap();
        let (pid, own) = (server.id() as i32, std::process::id());
        answered_by(port, 1);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let start = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/0.1.0-record.txt");
        let text = fs::read_to_string(path).unwrap().replace("START", start).replace("BOOT", boot.trim());
        let text = text.replace("PID", &pid.to_string()).replace("SUPERVISOR", &own.to_string());
        let run = sandbox.run_dir();
        let (record, socket) = (run.join(format!("{pid}.server")), run.join(format!("{own}-1.sock")));
        fs::write(&record, text).unwrap();
        let lock = File::open(&record).unwrap();
        lock.lock().unwrap();
        fs::write(run.join(format!("{port}.pid")), format!("{pid}\n")).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        OldServer { sandbox, port, server, pid, record, socket, _lock: lock, listener }
    }

    fn end(&mut self) {
        kill(self.pid, libc::SIGTERM);
        self.server.wait().unwrap();
    }

    /// What its supervisor removes.
    fn clear(&self) {
        fs::remove_file(&self.record).unwrap();
        fs::remove_file(&self.socket).unwrap();
    }
}

/// The log of a new server that takes over from an old one whose supervisor says these lines, and hangs up the
/// first time if `hangs_up`.
fn an_old_holder(shared: bool, hangs_up: bool, lines: impl Fn(&str) -> Vec<Line>) -> String {
    let mut old = OldServer::new(shared);
    let (port, pid) = (old.port, old.pid);
    let address = format!(":{port}");
    let lines = lines(&address);
    let plain = lines.iter().any(|(_, line)| line.starts_with("TAKEDOWN"));

    let mut new = old.sandbox.plain(&["-d"], &[&address]);
    if hangs_up {
        drop(asked(&old.listener));
    }
    let stream = asked(&old.listener);
    replay(&stream, &lines, '<', pid, |line| match line {
        line if line.starts_with("RELEASED") => {
            // In plain order the old one serves until it is told; on a shared port the new one does by then.
            assert_eq!(get(port).unwrap().pid == pid, plain);
            old.end();
        }
        "GONE" => old.clear(),
        _ => {}
    });
    assert_eq!(new.wait(), 0, "{}", new.log());
    let row = old.sandbox.status().remove(0);
    assert_eq!(row[1], "2");
    until("the pidfile is the new one's", || old.sandbox.pidfile(&port.to_string()) == Some(get(port).unwrap().pid));
    // Whatever files came are closed.
    let is_of_port = |fd: OwnedFd| TcpListener::from(fd).local_addr().is_ok_and(|local| local.port() == port);
    until("its supervisor has no listener", || !listeners_of(row[3].parse().unwrap()).any(is_of_port));
    old.sandbox.take_down(&address);
    new.log()
}

/// `serverswap OPTION ADDRESS` asks a supervisor that answers with these lines; its standard output and error.
fn an_old_supervisor_is_asked(option: &str, lines: Vec<Line>) -> String {
    let mut old = OldServer::new(true);
    let address = format!(":{}", old.port);
    let lines = filled_in(lines, &address, old.pid, "shared", "an-old-server");
    let mut asker = old.sandbox.serverswap([option, &address]);
    let stream = asked(&old.listener);
    let pid = old.pid;
    replay(&stream, &lines, '<', pid, |line| {
        if line == "GONE" {
            old.end();
            old.clear();
        }
    });
    assert_eq!(asker.wait(), 0, "{}", asker.log());
    assert_eq!(get(old.port).is_ok(), option != "--takedown");
    let said = asker.log().replace(&address, "ADDRESS").replace(&pid.to_string(), "PID");
    if option != "--takedown" {
        old.end();
        old.clear();
    }
    said
}

/// The lines of who asks, said to this supervisor.
fn an_old_asker(option: &str, lines: impl Fn() -> Vec<Line>) {
    in_both_orders(|sandbox| {
        let port = sandbox.port();
        let address = format!(":{port}");
        let (mut old, pid) = sandbox.serving(port, &[], &[&address, "takedown"]);
        let command = format!("{} {address} takedown", plain_server().display());
        let mode = if sandbox.is_shared() { "shared" } else { "plain" };
        let lines = filled_in(lines(), &address, pid, mode, &command);
        let stream = UnixStream::connect(sandbox.run_dir().join(format!("{}-1.sock", old.pid()))).unwrap();
        replay(&stream, &lines, '>', pid, |_| {});
        match option {
            "--takedown" => {
                assert_eq!(old.wait(), 0, "{}", old.log());
                assert!(get(port).is_err());
                return sandbox.assert_clean();
            }
            "--reload" => assert_eq!(get(port).unwrap().generation, 2),
            _ => assert_eq!(get(port).map(|answer| answer.pid), Ok(pid)),
        }
        sandbox.take_down(&address);
    });
}

fn filled_in(lines: Vec<Line>, address: &str, pid: i32, mode: &str, command: &str) -> Vec<Line> {
    let places = [("ADDRESS", address), ("PID", &pid.to_string()), ("MODE", mode), ("COMMAND", command)];
    let fill = |line: String| places.iter().fold(line, |line, (place, text)| line.replace(place, text));
    lines.into_iter().map(|(who, line)| (who, fill(line))).collect()
}

/// The next connection to the supervisor of an old server.
fn asked(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let mut stream = None;
    until("the new supervisor asks that of the old server", || {
        stream = listener.accept().ok();
        stream.is_some()
    });
    stream.unwrap().0
}

fn assert_no_warning(log: &str) {
    assert!(!log.contains("warning"), "{log}");
}

/// The swaps that were recorded.
const RECORDED: [(bool, &str); 2] = [(false, "0.1.0-plain.txt"), (true, "0.1.0-shared.txt")];

#[test]
fn a_supervisor_of_0_1_0_takes_over_from_this_one() {
    for (shared, name) in RECORDED {
        an_old_claimer(shared, |address| recorded(name, address));
    }
}

#[test]
fn this_supervisor_takes_over_from_one_of_0_1_0() {
    for (shared, name) in RECORDED {
        assert_no_warning(&an_old_holder(shared, false, |address| recorded(name, address)));
    }
}

#[test]
fn a_later_supervisor_takes_over_from_this_one() {
    for (shared, name) in RECORDED {
        an_old_claimer(shared, |address| from_the_future(&recorded(name, address), '>'));
    }
}

#[test]
fn this_supervisor_takes_over_from_a_later_one() {
    for (shared, name) in RECORDED {
        let log = an_old_holder(shared, false, |address| from_the_future(&recorded(name, address), '<'));
        assert_no_warning(&log);
    }
}

/// What a person asks, what was recorded of it, and what is said when that is answered.
const ASKED: [(&str, &str, &str); 3] = [
    ("--status", "0.1.0-status.txt", "ADDRESS\t1\tPID\t"),
    ("--reload", "0.1.0-reload.txt", "serverswap: ADDRESS: reloaded\n"),
    ("--takedown", "0.1.0-takedown.txt", "serverswap: ADDRESS: taken down\n"),
];

#[test]
fn one_of_0_1_0_and_a_later_one_ask_this_supervisor() {
    for (option, name, _) in ASKED {
        an_old_asker(option, || recorded(name, "ADDRESS"));
        an_old_asker(option, || from_the_future(&recorded(name, "ADDRESS"), '>'));
    }
}

#[test]
fn this_one_asks_a_supervisor_of_0_1_0_and_a_later_one() {
    for (option, name, said) in ASKED {
        for lines in [recorded(name, "ADDRESS"), from_the_future(&recorded(name, "ADDRESS"), '<')] {
            let log = an_old_supervisor_is_asked(option, lines);
            assert!(log.starts_with(said), "{log}");
            assert!(option != "--status" || log.contains("\tserving\tshared\t") && log.ends_with("\tan-old-server\n"));
        }
    }
}

/// What comes with a word that nobody knows is closed, on either side.
#[test]
fn a_file_with_an_unknown_word_is_nobody_s() {
    for (shared, name) in RECORDED {
        let with_file = |address: &str, side| {
            let mut lines = from_the_future(&recorded(name, address), side);
            // A later one might come when there is no listener any more.
            lines.iter_mut().find(|(_, line)| line.starts_with("HELLO")).unwrap().1 += " +";
            lines
        };
        an_old_holder(shared, false, |address| with_file(address, '<'));
        an_old_claimer(shared, |address| with_file(address, '>'));
    }
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let (old, pid) = sandbox.serving(port, &[], &[&format!(":{port}")]);
    let stream = UnixStream::connect(sandbox.run_dir().join(format!("{}-1.sock", old.pid()))).unwrap();
    let said = |lines: &[&str]| lines.iter().map(|line| (line.chars().next().unwrap(), line[2..].to_owned())).collect();
    let ask: Vec<Line> = said(&["> PEER 1", "< PEER 1"]);
    replay(&stream, &ask, '>', pid, |_| {});
    let files = files_of(old.pid());
    let words: Vec<Line> = said(&["> HELLO what is this +", "> PEER 1", "< PEER 1"]);
    for _ in 0..20 {
        replay(&stream, &words, '>', pid, |_| {});
    }
    assert_eq!(files_of(old.pid()), files);
    assert_eq!(get(port).map(|answer| answer.pid), Ok(pid));
    drop(stream);
    sandbox.take_down(&format!(":{port}"));
}

#[test]
fn a_supervisor_that_hangs_up_without_dying_is_asked_again() {
    for (shared, name) in RECORDED {
        assert_no_warning(&an_old_holder(shared, true, |address| recorded(name, address)));
    }
}

#[test]
fn the_listeners_of_an_old_server_come_all_or_none() {
    let log = an_old_holder(true, false, |address| {
        let mut lines = recorded("0.1.0-plain.txt", address);
        let holds = lines.iter().position(|(_, line)| line.starts_with("HOLDS")).unwrap();
        // Two are promised, and one is sent.
        lines.splice(holds..holds, ["SOCKETS 2", "SOCKETS 1 +"].map(|line| ('<', line.to_owned())));
        lines
    });
    assert!(log.contains("only 1 of its 2 listeners can be had"), "{log}");
}
