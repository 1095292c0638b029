//! A server whose supervisor was killed has a caretaker as soon as somebody wants something of it: a supervisor like any
//! other.

mod common;

use common::{Sandbox, alive, get, until};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

/// A server whose supervisor was killed: its pid.
fn orphan(sandbox: &Sandbox, options: &[&str], words: &[&str]) -> i32 {
    let mut running = sandbox.plain(options, words);
    running.says("is up");
    running.signal(libc::SIGKILL);
    running.wait();
    let rows = sandbox.status();
    assert_eq!(rows[0][3], "-", "{rows:?}");
    rows[0][2].parse().unwrap()
}

/// The supervisor of the only server.
fn supervisor(sandbox: &Sandbox) -> i32 {
    let rows = sandbox.status();
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows[0][3].parse().unwrap()
}

/// A new version that wants the address and does not make it.
fn fails_at(address: &str) -> String {
    format!("printf 'READY {address}\n' >&$SERVERSWAP_FD; sleep 1; exit 3")
}

#[test]
fn a_server_without_supervisor_is_reloaded_as_it_was_started() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    // A word with blanks, and one with nothing.
    let first = orphan(&sandbox, &["--drain", "3"], &["mute", &address, "a  b=c d", ""]);
    let command = |pid: i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let before = command(first);
    for generation in 2..4 {
        let (status, log) = sandbox.run(["--reload", &address]);
        assert_eq!(status, 0, "{log}");
        let answer = get(port).unwrap();
        assert_eq!((answer.generation, command(answer.pid)), (generation, before.clone()));
    }
    assert!(!alive(first));
    sandbox.take_down(&address);
    sandbox.assert_clean();
}

#[test]
fn a_failed_swap_leaves_a_server_with_its_caretaker_and_that_can_die_too() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    let server = orphan(&sandbox, &[], &[&address, "takedown"]);
    let mut killed = 0;
    // TERM is meant for whoever has started it.
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let (status, log) = sandbox.run(["-d", "sh", "-c", &fails_at(&address)]);
        assert_eq!(status, 3, "{log}");
        let caretaker = supervisor(&sandbox);
        assert!(caretaker != killed && alive(caretaker) && get(port).unwrap().pid == server);
        killed = caretaker;
        // What ends a session says HUP as well.
        kill(Pid::from_raw(caretaker), Signal::SIGHUP).unwrap();
        kill(Pid::from_raw(caretaker), signal).unwrap();
        until("it is gone", || sandbox.status()[0][3] == "-");
        assert_eq!(get(port).unwrap().pid, server);
    }
    let (status, log) = sandbox.deploy(&[&address, "takedown"]);
    assert_eq!(status, 0, "{log}");
    assert!(!alive(server) && get(port).unwrap().generation == 2);
    sandbox.take_down(&address);
    sandbox.assert_clean();
}

/// The caretaker is nothing that a pipeline waits for, and has no terminal.
#[test]
fn a_caretaker_has_nothing_of_its_caller() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    let server = orphan(&sandbox, &[], &["mute", &address]);
    let mut command = sandbox.command(common::SERVERSWAP);
    command.args(["-d", "sh", "-c", &fails_at(&address)]);
    command.env("NOTIFY_SOCKET", "/nowhere").env("LISTEN_FDS", "1");
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    // A script may have more open than the three.
    let number = theirs.as_raw_fd();
    // SAFETY: fcntl is async-signal-safe and takes integers.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(number, libc::F_SETFD, 0) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        })
    };
    // It returns at the end of the pipes.
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    drop(theirs);
    ours.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    assert_eq!(ours.read(&mut [0]).unwrap(), 0, "somebody has it still");
    let caretaker = supervisor(&sandbox);
    let session = nix::unistd::getsid(Some(Pid::from_raw(caretaker))).unwrap();
    assert_eq!(session.as_raw(), caretaker);
    for fd in 0..3 {
        assert_eq!(std::fs::read_link(format!("/proc/{caretaker}/fd/{fd}")).unwrap().to_str(), Some("/dev/null"));
    }
    let environment = std::fs::read(format!("/proc/{caretaker}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("NOTIFY_SOCKET") && !environment.contains("LISTEN_"), "{environment}");
    assert_eq!(get(port).unwrap().pid, server);
    sandbox.take_down(&address);
    sandbox.assert_clean();
}

/// Before Linux 5.6, and in some containers.
#[test]
fn a_server_without_supervisor_whose_listeners_cannot_be_had_is_taken_down() {
    let sandbox = Sandbox::shared();
    let address = format!("0.0.0.0:{}", sandbox.port());
    orphan(&sandbox, &[], &["mute", &address]);
    let mut command = sandbox.command("strace");
    command.env_remove("LD_LIBRARY_PATH");
    command.args(["-f", "-qq", "-e", "trace=pidfd_getfd", "-e", "inject=pidfd_getfd:error=ENOSYS", "-o"]);
    command.arg(sandbox.path("trace")).args([common::SERVERSWAP, "--takedown", &address]);
    let mut takedown = sandbox.start(command);
    assert_eq!(takedown.wait(), 0, "{}", takedown.log());
    sandbox.assert_clean();
}

/// Nobody has it in mind who names the other one.
#[test]
fn what_the_kernel_numbered_is_no_address_of_a_server_without_supervisor() {
    let sandbox = Sandbox::new();
    let any = std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().to_string();
    let address = format!("0.0.0.0:{}", sandbox.port());
    orphan(&sandbox, &["--plain"], &["mute", &address, &any]);
    let (status, log) = sandbox.run(["--takedown", &address]);
    assert_eq!(status, 0, "{log}");
    sandbox.assert_clean();
}

#[test]
fn a_variable_that_was_handed_down_makes_nobody_a_caretaker() {
    let sandbox = Sandbox::shared();
    for value in ["1:1", "1", ""] {
        let mut command = sandbox.command(common::SERVERSWAP);
        let output = command.env("SERVERSWAP_CARETAKER", value).args(["-d", "sleep", "100"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains("SERVERSWAP_CARETAKER is not meant for it (nothing was started)"), "{said}");
    }
    sandbox.assert_clean();
}
