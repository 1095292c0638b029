//! Nothing that decides may wait for somebody else: for whoever should read standard error, for a lock that a
//! stopped process holds.

mod common;

use common::{
    Load, SERVERSWAP, Sandbox, answered_by, children, get, in_both_orders, kill, next_line, plain_server, until,
};
use nix::libc;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

/// A standard error that nobody reads, full to the last byte.
struct Unread(File, OwnedFd);

impl Unread {
    fn new() -> Unread {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let set = |flags| nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
        set(nix::fcntl::OFlag::O_NONBLOCK);
        for part in [4096, 1] {
            while nix::unistd::write(&writer, &vec![b'.'; part]).is_ok() {}
        }
        set(nix::fcntl::OFlag::empty());
        Unread(reader.into(), writer)
    }

    /// `serverswap WORDS...`, whose messages nobody reads. Its server's output goes there too.
    fn start(&self, sandbox: &Sandbox, words: &[&str]) -> Child {
        let mut command = sandbox.command(SERVERSWAP);
        command.args((!sandbox.is_shared()).then_some("--plain")).args(words);
        command.stdout(Stdio::null()).stderr(self.1.try_clone().unwrap());
        command.spawn().unwrap()
    }

    /// All that was written, when everybody else has closed it.
    fn read(self) -> String {
        drop(self.1);
        let mut all = String::new();
        (&self.0).read_to_string(&mut all).unwrap();
        all.trim_start_matches('.').to_owned()
    }
}

fn ends(child: &mut Child) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let mut ended = None;
    until("it ends", || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    let status = ended.unwrap();
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

fn server() -> String {
    plain_server().to_str().unwrap().to_owned()
}

#[test]
fn a_supervisor_whose_messages_nobody_reads_is_replaced_as_any_other() {
    in_both_orders(|sandbox| {
        let (unread, port) = (Unread::new(), sandbox.port());
        let address = format!(":{port}");
        let mut old = unread.start(&sandbox, &["-vv", &server(), &address]);
        answered_by(port, 1);
        let (status, log) = sandbox.deploy(&[&address]);
        assert_eq!(status, 0, "{log}");
        assert_eq!(get(port).map(|answer| answer.generation), Ok(2));
        assert_eq!(ends(&mut old), 0);
        // And one that replaces.
        let mut new = unread.start(&sandbox, &["-vv", &server(), &address]);
        answered_by(port, 3);
        until("the old one is gone", || sandbox.status().len() == 1);
        sandbox.take_down(&address);
        assert_eq!(ends(&mut new), 0);
        unread.read();
    });
}

#[test]
fn a_detach_whose_messages_nobody_reads_returns() {
    in_both_orders(|sandbox| {
        let (unread, port) = (Unread::new(), sandbox.port());
        let address = format!(":{port}");
        for generation in 1..4 {
            let mut launcher = unread.start(&sandbox, &["-vv", "-d", &server(), &address]);
            assert_eq!(ends(&mut launcher), 0);
            assert_eq!(get(port).map(|answer| answer.generation), Ok(generation));
        }
        let mut failing = unread.start(&sandbox, &["-d", &server(), &address, "exit=7"]);
        assert_eq!(ends(&mut failing), 7);
        sandbox.take_down(&address);
        unread.read();
    });
}

#[test]
fn a_supervisor_whose_messages_nobody_reads_reloads_and_hears_signals() {
    in_both_orders(|sandbox| {
        let (unread, port) = (Unread::new(), sandbox.port());
        let address = format!(":{port}");
        let mut running = unread.start(&sandbox, &["-vv", &server(), &address]);
        for generation in 1..4 {
            answered_by(port, generation);
            let (status, log) = sandbox.run(["--reload", &address]);
            assert_eq!(status, 0, "{log}");
        }
        assert_eq!(get(port).map(|answer| answer.generation), Ok(4));
        kill(running.id() as i32, libc::SIGTERM);
        assert_eq!(ends(&mut running), 128 + libc::SIGTERM);
        sandbox.assert_clean();
        unread.read();
    });
}

#[test]
fn commands_whose_messages_nobody_reads_end() {
    let sandbox = Sandbox::new();
    let (unread, port) = (Unread::new(), sandbox.port());
    let address = format!(":{port}");
    let (mut running, _) = sandbox.serving(port, &[], &[&address]);
    let command = |words: &[&str]| {
        let mut command = sandbox.command(SERVERSWAP);
        ends(&mut command.args(words).stdout(Stdio::null()).stderr(unread.1.try_clone().unwrap()).spawn().unwrap())
    };
    assert_eq!(command(&["--nonsense"]), 125);
    assert_eq!(command(&["--status"]), 0);
    assert_eq!(command(&["--status", ":1"]), 125);
    assert_eq!(command(&["--reload", &address]), 0);
    assert_eq!(command(&["--takedown", &address]), 0);
    assert_eq!(running.wait(), 0, "{}", running.log());
    unread.read();
}

/// More of them than the buffer holds.
#[test]
fn messages_that_nobody_read_are_counted() {
    let sandbox = Sandbox::new();
    let (unread, port) = (Unread::new(), sandbox.port());
    let address = format!(":{port}");
    let mut running = unread.start(&sandbox, &["-vv", &server(), &address]);
    answered_by(port, 1);
    let (mut control, _answers) = sandbox.speaker();
    // Each is said at -v: "server PID is told GO ...".
    for n in 0..2000 {
        control.write_all(format!("READY any-name-with-some-letters-more-{n}\n").as_bytes()).unwrap();
    }
    until("it has them all", || sandbox.files().iter().filter(|name| name.ends_with(".pid")).count() == 2001);
    let reader = unread.0.try_clone().unwrap();
    let mut said = Vec::new();
    let mut buffer = vec![0; 65536];
    until("it says how many were lost", || {
        let len = (&reader).read(&mut buffer).unwrap();
        said.extend_from_slice(&buffer[..len]);
        String::from_utf8_lossy(&said).contains(" messages were lost: nobody read standard error\n")
    });
    // And from then on all is said, in order.
    kill(running.id() as i32, libc::SIGTERM);
    assert_eq!(ends(&mut running), 128 + libc::SIGTERM);
    sandbox.assert_clean();
    let rest = unread.read();
    assert!(rest.ends_with("was ended by SIGTERM\n"), "{rest}");
}

/// A stopped process that holds the lock of the run directory.
struct Stopped(Child);

impl Stopped {
    fn new(sandbox: &Sandbox) -> Stopped {
        let mut command = sandbox.command("flock");
        command.arg(sandbox.run_dir().join("lock")).args(["sh", "-c", "kill -STOP $$"]);
        let holder = Stopped(command.spawn().unwrap());
        until("it holds the lock, and has stopped", || holder.is_stopped());
        holder
    }

    fn stopped(&self) -> Option<i32> {
        children(self.0.id() as i32).into_iter().next()
    }

    fn is_stopped(&self) -> bool {
        let stat = |pid| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        self.stopped().is_some_and(|pid| stat(pid).contains(") T "))
    }

    /// It ends, and the lock is free.
    fn let_go(mut self) {
        kill(self.stopped().unwrap(), libc::SIGKILL);
        self.0.wait().unwrap();
    }
}

const NO_LOCK: &str = "unable to lock the run directory";

/// A file that plain-server makes when its supervisor has taken its READY in.
fn said(sandbox: &Sandbox) -> (PathBuf, String) {
    let path = sandbox.path("said");
    let word = format!("said={}", path.display());
    (path, word)
}

#[test]
fn term_is_heard_while_a_stopped_process_holds_the_run_directory() {
    in_both_orders(|sandbox| {
        // The first makes the directory.
        assert_eq!(sandbox.run(["true"]).0, 0);
        let (holder, (said, word), port) = (Stopped::new(&sandbox), said(&sandbox), sandbox.port());
        let mut running = sandbox.plain(&[], &[&format!(":{port}"), &word]);
        until("READY is taken in", || said.exists());
        running.signal(libc::SIGTERM);
        assert_eq!(running.wait(), 128 + libc::SIGTERM, "{}", running.log());
        assert!(!running.log().contains(NO_LOCK), "{}", running.log());
        assert!(holder.is_stopped());
        holder.let_go();
        sandbox.assert_clean();
    });
}

#[test]
fn a_swap_goes_on_when_the_lock_of_the_run_directory_is_let_go() {
    in_both_orders(|sandbox| {
        let (port, (said, word)) = (sandbox.port(), said(&sandbox));
        let address = format!(":{port}");
        let (mut old, pid) = sandbox.serving(port, &[], &[&address]);
        let load = Load::start(port, Duration::from_millis(5));
        let holder = Stopped::new(&sandbox);
        let mut new = sandbox.plain(&["-d"], &[&address, &word]);
        until("READY is taken in", || said.exists());
        assert_eq!(get(port).map(|answer| answer.pid), Ok(pid));
        holder.let_go();
        assert_eq!(new.wait(), 0, "{}", new.log());
        load.sees(2);
        assert_eq!(old.wait(), 0, "{}", old.log());
        let failed = load.stop().failures;
        assert!(failed.is_empty() || !sandbox.is_shared(), "{failed:?}");
        sandbox.take_down(&address);
    });
}

#[test]
fn a_supervisor_that_waits_for_the_run_directory_answers_and_goes() {
    in_both_orders(|sandbox| {
        let port = sandbox.port();
        let address = format!(":{port}");
        let (mut running, pid) = sandbox.serving(port, &[], &[&address]);
        let holder = Stopped::new(&sandbox);
        let (mut control, mut answers) = sandbox.speaker();
        control.write_all(b"READY another\nPING\n").unwrap();
        assert_eq!(next_line(&mut answers), "ERROR unknown word");
        let status = sandbox.status();
        assert_eq!((&*status[0][2], &*status[0][5]), (&*pid.to_string(), "serving"), "{status:?}");
        // And what waited is done in its turn.
        holder.let_go();
        assert_eq!(next_line(&mut answers), "GO another");
        let holder = Stopped::new(&sandbox);
        let (status, log) = sandbox.run(["--takedown", &address, "another"]);
        assert_eq!(status, 0, "{log}");
        assert_eq!(running.wait(), 0, "{}", running.log());
        assert!(holder.is_stopped());
        holder.let_go();
    });
}

/// Whoever waited in vain for the lock once waits for it again.
#[test]
fn one_long_wait_for_the_run_directory_does_not_refuse_what_comes_later() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (mut running, _) = sandbox.serving(port, &[], &[&address]);
    let holder = Stopped::new(&sandbox);
    let (mut control, mut answers) = sandbox.speaker();
    control.write_all(b"READY one\n").unwrap();
    let refused = next_line(&mut answers);
    assert!(refused.starts_with(&format!("ERROR one: {NO_LOCK}")), "{refused}");
    control.write_all(b"READY two\nPING\n").unwrap();
    assert_eq!(next_line(&mut answers), "ERROR unknown word");
    holder.let_go();
    assert_eq!(next_line(&mut answers), "GO two");
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(), 128 + libc::SIGTERM);
    sandbox.assert_clean();
}

/// A listener that is on its way from one process to another is nobody's, and nobody knows for how long.
#[test]
fn a_supervisor_hears_while_it_looks_for_whoever_holds_a_port() {
    in_both_orders(|sandbox| {
        let (port, (said, word)) = (sandbox.port(), said(&sandbox));
        let listener = std::net::TcpListener::bind(("0.0.0.0", port)).unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let fds = [std::os::fd::AsRawFd::as_raw_fd(&listener)];
        let rights = [nix::sys::socket::ControlMessage::ScmRights(&fds)];
        let (bytes, none) = ([std::io::IoSlice::new(b"x")], nix::sys::socket::MsgFlags::empty());
        let fd = std::os::fd::AsRawFd::as_raw_fd(&ours);
        nix::sys::socket::sendmsg::<()>(fd, &bytes, &rights, none, None).unwrap();
        drop(listener);
        let mut running = sandbox.plain(&[], &[&format!(":{port}"), &word]);
        until("READY is taken in", || said.exists());
        running.signal(libc::SIGTERM);
        assert_eq!(running.wait(), 128 + libc::SIGTERM, "{}", running.log());
        assert!(!running.log().contains("is held by"), "{}", running.log());
        sandbox.assert_clean();
    });
}

/// And has no room left for another connection.
#[test]
fn a_stopped_supervisor_is_not_waited_for_by_status() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (mut running, pid) = sandbox.serving(port, &[], &[&address]);
    running.signal(libc::SIGSTOP);
    let name = sandbox.files().into_iter().find(|name| name.ends_with(".sock")).unwrap();
    let at = UnixAddr::new(&sandbox.run_dir().join(name)).unwrap();
    let mut crowd = Vec::new();
    loop {
        let one = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
        match connect(std::os::fd::AsRawFd::as_raw_fd(&one), &at) {
            // Nobody else finds room.
            Err(nix::errno::Errno::EAGAIN) => break,
            connected => connected.unwrap(),
        }
        crowd.push(one);
    }
    let rows = sandbox.status();
    assert_eq!((&*rows[0][2], &*rows[0][5]), (&*pid.to_string(), "not answering"), "{rows:?}");
    let (status, log) = sandbox.run(["--takedown", &address]);
    assert_eq!(status, 125, "{log}");
    assert!(log.contains("its supervisor does not answer: Connection timed out (nothing was done)"), "{log}");
    drop(crowd);
    running.signal(libc::SIGCONT);
    sandbox.take_down(&address);
    assert_eq!(running.wait(), 0, "{}", running.log());
}
