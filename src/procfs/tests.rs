use super::process::parse_stat;
use super::*;
use crate::sys::process::Pid;

/// By another process: what a thread of ours forks meanwhile would have the copy open for writing (ETXTBSY).
fn copy_of_sleep(to: &std::path::Path) {
    assert!(std::process::Command::new("cp").arg("/bin/sleep").arg(to).status().unwrap().success());
}

#[test]
fn a_name_may_hold_parentheses_and_spaces() {
    let rest = "S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 1 2";
    let stat = parse_stat(&format!("12 (a) R (b c)) {rest}")).unwrap();
    assert_eq!((stat.pid.raw(), stat.parent, stat.group, stat.start), (12, 1, 7, 4242));
    for torn in ["", "12", "12 (a", "12 (a) S", "x (a) S 1", "0 (a) S 1 7 7"] {
        assert_eq!(parse_stat(torn), None);
    }
}

/// The copy of a supervisor must not hide that the last thread of a server still holds the socket.
#[test]
fn a_server_that_ends_thread_by_thread_is_missed_although_a_supervisor_has_its_socket() {
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("serverswap");
    copy_of_sleep(&program);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let local = crate::address::Address::from(listener.local_addr().unwrap());
    let copy = || std::os::fd::OwnedFd::from(listener.try_clone().unwrap());
    let mut supervisor = std::process::Command::new(&program).arg("60").stdin(copy()).spawn().unwrap();
    // exit(2) as a system call ends the calling thread only.
    let text = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); \
                ctypes.CDLL(None).syscall(60 if __import__('platform').machine() == 'x86_64' else 93, 0)";
    let mut server = std::process::Command::new("python3");
    let mut server = server.args(["-c", text]).process_group(0).stdin(copy()).spawn().unwrap();
    drop(listener);
    let (pid, mut seen) = (Pid::of(&server), false);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !seen && std::time::Instant::now() < deadline {
        seen = stat(pid).is_some_and(|stat| stat.zombie && stat.threads > 1);
        std::thread::yield_now();
    }
    let sockets = crate::sys::net::listeners().unwrap().at_any([&local]);
    let ending = Snapshot::take().misses_holder_of(&sockets, Some(pid));
    server.kill().unwrap();
    server.wait().unwrap();
    let ended = Snapshot::take().misses_holder_of(&sockets, Some(pid));
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    assert_eq!((seen, sockets.len(), ending, ended), (true, 1, true, false));
}

#[test]
fn a_process_whose_name_is_not_utf8_is_seen() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join(std::ffi::OsStr::from_bytes(b"a\xffb"));
    copy_of_sleep(&program);
    let mut child = std::process::Command::new(&program).arg("60").spawn().unwrap();
    let pid = Pid::of(&child);
    let seen = (stat(pid).is_some(), Snapshot::take().all().any(|s| s.pid == pid));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(seen, (true, true));
}

#[test]
fn this_process_is_found_with_its_ancestors() {
    let snapshot = Snapshot::take();
    let own = snapshot.ancestry(Pid::own().raw()).next().unwrap();
    assert_eq!(own.pid, Pid::own());
    assert!(age(own).unwrap() < 3600);
    assert!(command_line(Pid::own()).contains("serverswap"));
}
