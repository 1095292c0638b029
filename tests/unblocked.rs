//! Nothing that decides may wait for somebody else: for whoever should read standard error, for a lock that a
//! stopped process holds.

mod common;

use common::{SERVERSWAP, Sandbox, answered_by, get, in_both_orders, kill, plain_server, until};
use nix::libc;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};

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
    let socket = fs::read_dir(sandbox.run_dir()).unwrap().flatten().map(|entry| entry.path());
    let socket = socket.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "sock")).unwrap();
    let mut control = std::os::unix::net::UnixStream::connect(socket).unwrap();
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
