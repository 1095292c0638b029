//! One version of serverswap takes over from another: what an old one said is kept in `tests/peers` and said
//! again, on either side, and a later one may say more.

mod common;

use common::{Sandbox, answered_by, copy_fd, get, kill, until};
use nix::libc;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

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
        // An unknown word is answered, which changes nothing.
        let answer = heard.by_ref().map(|line| line.unwrap()).find(|line| line != "ERROR unknown word");
        assert_eq!(answer.as_deref(), Some(line));
    }
    send(&mut said, &[]);
    drop(heard);
    assert_eq!(files.len(), expected);
    files
}

fn listener_of(pid: i32) -> OwnedFd {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let numbers = fds.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let copies = numbers.filter_map(|fd| copy_fd(pid, fd).ok());
    copies.into_iter().find(|copy| getsockopt(copy, sockopt::AcceptConn).unwrap_or(false)).expect("a listener")
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

/// The log of a new server that takes over from an old one whose supervisor says these lines, and hangs up the
/// first time if `hangs_up`.
fn an_old_holder(shared: bool, hangs_up: bool, lines: impl Fn(&str) -> Vec<Line>) -> String {
    let sandbox = sandbox(shared);
    let port = sandbox.port();
    let address = format!(":{port}");
    assert_eq!(sandbox.run(["true"]).0, 0);
    // An old server, and all that its supervisor, which is this test, has in the run directory.
    let mut command = sandbox.command(Path::new("python3"));
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/unmodified.py");
    command.arg(python).arg(format!("0.0.0.0:{port}")).args(shared.then_some("reuseport"));
    let mut server = command.env("SERVERSWAP_GENERATION", "1").spawn().unwrap();
    let (pid, own) = (server.id() as i32, std::process::id());
    answered_by(port, 1);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/0.1.0-record.txt");
    let record = fs::read_to_string(path).unwrap().replace("START", start).replace("BOOT", boot.trim());
    let record = record.replace("PID", &pid.to_string()).replace("SUPERVISOR", &own.to_string());
    let run = sandbox.run_dir();
    let (record_path, socket) = (run.join(format!("{pid}.server")), run.join(format!("{own}-1.sock")));
    fs::write(&record_path, record).unwrap();
    let lock = File::open(&record_path).unwrap();
    lock.lock().unwrap();
    fs::write(run.join(format!("{port}.pid")), format!("{pid}\n")).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let lines = lines(&address);
    let plain = lines.iter().any(|(_, line)| line.starts_with("TAKEDOWN"));

    let mut new = sandbox.plain(&["-d"], &[&address]);
    if hangs_up {
        drop(asked(&listener));
    }
    let stream = asked(&listener);
    replay(&stream, &lines, '<', pid, |line| match line {
        line if line.starts_with("RELEASED") => {
            // In plain order the old one serves until it is told; on a shared port the new one does by then.
            assert_eq!(get(port).unwrap().pid == pid, plain);
            kill(pid, libc::SIGTERM);
            server.wait().unwrap();
        }
        "GONE" => {
            fs::remove_file(&record_path).unwrap();
            fs::remove_file(&socket).unwrap();
        }
        _ => {}
    });
    assert_eq!(new.wait(), 0, "{}", new.log());
    assert_eq!(sandbox.status()[0][1], "2");
    until("the pidfile is the new one's", || sandbox.pidfile(&port.to_string()) == Some(get(port).unwrap().pid));
    drop(lock);
    sandbox.take_down(&address);
    new.log()
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
