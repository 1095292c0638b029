//! One version of serverswap takes over from another: what an old one said is kept in `tests/peers` and said
//! again, on either side, and a later one may say more.

mod common;

use common::{Sandbox, answered_by, get, kill, plain_server, until};
use nix::libc;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
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
        if *who == side {
            later.push((side, line.replace("PEER 1", "PEER 2 and more of it")));
            later.push((side, "HELLO what is this".to_owned()));
        } else {
            later.push((*who, line.clone()));
        }
    }
    later
}

/// Says the lines of one side, and hears those of the other, in this order. `before` is called before a line is
/// said.
fn replay(stream: UnixStream, lines: &[Line], side: char, mut before: impl FnMut(&str)) {
    stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
    let mut heard = BufReader::new(stream.try_clone().unwrap()).lines();
    for (who, line) in lines {
        if *who == side {
            before(line);
            { &stream }.write_all(format!("{line}\n").as_bytes()).unwrap();
            continue;
        }
        // An unknown word is answered, which changes nothing.
        let answer = heard.by_ref().map(|line| line.unwrap()).find(|line| line != "ERROR unknown word");
        assert_eq!(answer.as_ref(), Some(line));
    }
}

fn an_old_claimer(lines: impl Fn(&str) -> Vec<Line>) {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let address = format!(":{port}");
    let mut old = sandbox.plain(&[], &[&address, "takedown"]);
    answered_by(port, 1);
    old.says("is up");
    let stream = UnixStream::connect(sandbox.run_dir().join(format!("{}-1.sock", old.pid()))).unwrap();
    replay(stream, &lines(&address), '>', |_| {});
    assert_eq!(old.wait(), 0, "{}", old.log());
    assert!(get(port).is_err());
    sandbox.assert_clean();
}

fn an_old_holder(lines: impl Fn(&str) -> Vec<Line>) {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let address = format!(":{port}");
    assert_eq!(sandbox.run(["true"]).0, 0);
    // An old server, and all that its supervisor, which is this test, has in the run directory.
    let mut command = sandbox.command(plain_server());
    let mut server = command.args([&address, "mute"]).env("SERVERSWAP_GENERATION", "1").spawn().unwrap();
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

    let mut new = sandbox.plain(&["-d"], &[&address]);
    let stream = listener.accept().unwrap().0;
    replay(stream, &lines(&address), '<', |line| match line {
        line if line.starts_with("RELEASED") => {
            assert_eq!(get(port).unwrap().pid, pid);
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
}

#[test]
fn a_supervisor_of_0_1_0_takes_over_from_this_one() {
    an_old_claimer(|address| recorded("0.1.0-plain.txt", address));
}

#[test]
fn this_supervisor_takes_over_from_one_of_0_1_0() {
    an_old_holder(|address| recorded("0.1.0-plain.txt", address));
}

#[test]
fn a_later_supervisor_takes_over_from_this_one() {
    an_old_claimer(|address| from_the_future(&recorded("0.1.0-plain.txt", address), '>'));
}

#[test]
fn this_supervisor_takes_over_from_a_later_one() {
    an_old_holder(|address| from_the_future(&recorded("0.1.0-plain.txt", address), '<'));
}
