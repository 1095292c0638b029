//! Machines that do not allow everything: containers, service managers, other users.

mod common;

use common::{Commons, SERVERSWAP, Sandbox, alive, answered_by, get, is_unsteered, kill, plain_server, until};
use nix::libc;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

/// A file beside this one.
fn server(name: &str) -> String {
    format!("{}/tests/servers/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Whether the machine allows this command, with a word where it does not.
fn may(program: &str, arguments: &[&str]) -> bool {
    let allowed = Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success());
    if !allowed {
        eprintln!("left out: {program} {} is not allowed here", arguments.join(" "));
    }
    allowed
}

/// Root of a container, which may not look at processes of other users.
const WITHOUT_PTRACE: [&str; 4] = ["--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace"];

/// Somebody else, if a program without the capability may become that.
fn other_user(uid: u32) -> Option<String> {
    let uid = uid.to_string();
    may("setpriv", &[&WITHOUT_PTRACE[..], &["--reuid", &uid, "true"]].concat()).then_some(uid)
}

#[test]
fn a_server_that_changes_its_user_is_up_and_swapped_without_the_capability_to_look_at_it() {
    // Of others there may be servers on this machine that cannot be looked at either.
    const UID: u32 = 54_321;
    let Some(uid) = other_user(UID) else { return };
    for when in ["before", "between", "after"] {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let mut command = sandbox.command("setpriv");
        command.args(WITHOUT_PTRACE).args([SERVERSWAP, "-d", "--ready-timeout", "20", "python3"]);
        command.args([&server("changes_user.py"), &port.to_string(), &uid, when]);
        let mut running = sandbox.start(command);
        assert_eq!(running.wait(), 0, "{when}: {}", running.log());
        let pid = get(port).unwrap().pid;
        assert_eq!(sandbox.pidfile(&port.to_string()), Some(pid));
        let addresses: Vec<String> = sandbox.status().into_iter().map(|row| row[0].clone()).collect();
        assert_eq!(addresses, [format!(":{port}")]);
        // It is taken down by somebody who may not look at it either.
        let mut command = sandbox.command("setpriv");
        command.args(WITHOUT_PTRACE).args([SERVERSWAP, "--takedown", &format!(":{port}")]);
        let mut running = sandbox.start(command);
        assert_eq!(running.wait(), 0, "{when}: {}", running.log());
        until("it has ended", || !alive(pid));
        sandbox.assert_clean();
    }
}

/// And where /proc does not even show that it is there (proc(5)).
#[test]
fn a_server_that_changes_its_user_and_is_hidden_is_up_and_taken_down() {
    const UID: u32 = 54_323;
    let Some(uid) = other_user(UID) else { return };
    for hides in ["hidepid=1", "hidepid=2"] {
        let mount = format!("mount -t proc -o {hides} proc /proc && exec \"$@\"");
        if !may("unshare", &["-m", "sh", "-c", &mount, "sh", "true"]) {
            return;
        }
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let run = |words: &[&str]| {
            let mut command = sandbox.command("unshare");
            command.args(["-m", "sh", "-c", &mount, "sh", "setpriv"]).args(WITHOUT_PTRACE).arg(SERVERSWAP).args(words);
            let mut running = sandbox.start(command);
            assert_eq!(running.wait(), 0, "{hides}: {}", running.log());
        };
        let python = server("changes_user.py");
        run(&["-d", "--ready-timeout", "10", "python3", &python, &port.to_string(), &uid, "after"]);
        let pid = get(port).unwrap().pid;
        assert_eq!(sandbox.pidfile(&port.to_string()), Some(pid));
        run(&["--takedown", &format!(":{port}")]);
        until("it has ended", || !alive(pid));
        sandbox.assert_clean();
    }
}

#[test]
fn a_server_that_cannot_be_looked_at_any_more_after_the_switch_keeps_no_program() {
    const UID: u32 = 54_322;
    let Some(uid) = other_user(UID) else { return };
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let start = |command: &[&str]| {
        let mut started = sandbox.command("setpriv");
        started.args(WITHOUT_PTRACE).args([SERVERSWAP, "-d", "--drain", "1"]).args(command);
        sandbox.start(started)
    };
    assert_eq!(start(&[&plain_server().to_string_lossy(), &format!("0.0.0.0:{port}")]).wait(), 0);
    let old = answered_by(port, 1).pid;
    // Busy until the time to drain is up: the old server goes after the new one has answered.
    let mut request = TcpStream::connect(("127.0.0.1", port)).unwrap();
    request.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let mut new = start(&["python3", &server("changes_user.py"), &port.to_string(), &uid, "answered"]);
    let mut pid = old;
    until("the new server answers", || {
        pid = get(port).unwrap().pid;
        pid != old
    });
    until("it has another user", || std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|meta| meta.uid() != 0));
    assert_eq!(new.wait(), 0, "{}", new.log());
    until("nothing steers the port", || is_unsteered(port));
    assert_eq!(get(port).unwrap().pid, pid);
    sandbox.take_down(&format!(":{port}"));
}

#[test]
fn without_netlink_servers_are_swapped_in_plain_order() {
    if !may("python3", &[&server("without_netlink.py"), "true"]) {
        return;
    }
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    for generation in 1..=3 {
        let mut command = sandbox.command("python3");
        command.args([&server("without_netlink.py"), SERVERSWAP, "-d"]).arg(plain_server()).arg(&address);
        let mut running = sandbox.start(command);
        assert_eq!(running.wait(), 0, "{}", running.log());
        let said = "the port cannot be shared: the kernel may not be asked about sockets";
        assert!(running.log().contains(said), "{}", running.log());
        answered_by(port, generation);
    }
    // One that says nothing is found too.
    let other = sandbox.port();
    let mut command = sandbox.command("python3");
    command.args([&server("without_netlink.py"), SERVERSWAP, "-d"]).arg(plain_server());
    command.args([&format!("127.0.0.1:{other}"), "mute"]);
    let mut running = sandbox.start(command);
    assert_eq!(running.wait(), 0, "{}", running.log());
    assert!(sandbox.pidfile(&format!("127.0.0.1:{other}")).is_some());
    let (status, log) = sandbox.run(["--takedown", &address, &format!("127.0.0.1:{other}")]);
    assert_eq!(status, 0, "{log}");
    sandbox.assert_clean();
}

/// Neither one that is not mounted nor one of other processes tells anything.
#[test]
fn without_proc_nothing_is_started_and_the_message_says_why() {
    if !may("unshare", &["-mpf", "true"]) {
        return;
    }
    let sandbox = Sandbox::shared();
    let started = sandbox.path("started");
    for (flags, before) in [("-m", "mount -t tmpfs none /proc;"), ("-pf", "")] {
        for detach in ["-d", "-q"] {
            let mut command = sandbox.command("unshare");
            let script = format!("{before} exec {SERVERSWAP} {detach} touch {}", started.display());
            command.args([flags, "sh", "-c", &script]);
            let mut running = sandbox.start(command);
            assert_eq!(running.wait(), 125, "{}", running.log());
            let wanted = "serverswap: unable to look at processes: /proc is not mounted, or is that of another pid \
                          namespace (nothing was started)\n";
            assert_eq!(running.log(), wanted);
            assert!(!started.exists());
        }
    }
}

#[test]
fn on_a_read_only_root_a_server_is_swapped_and_a_run_directory_there_is_refused() {
    let read_only = "mount --bind / / && mount -o remount,bind,ro /";
    if !may("unshare", &["-m", "sh", "-c", read_only]) {
        return;
    }
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let start = |run_dir: &str| {
        let mut command = sandbox.command("unshare");
        // Read-only is the mount of the root alone, and that of the run directory stays as it is.
        let run = sandbox.run_dir();
        let mounts = format!("mkdir -p {0} && mount -t tmpfs none {0} && chmod 755 {0}", run.display());
        let words = format!("{SERVERSWAP} --run-dir {run_dir} -d {} {address} mute", plain_server().display());
        let takedown = format!("{SERVERSWAP} --run-dir {run_dir} --takedown {address}");
        let script = format!("{mounts} && {read_only} && {words} && {words} && {takedown}");
        command.args(["-m", "sh", "-c", &script]);
        let mut running = sandbox.start(command);
        (running.wait(), running.log())
    };
    let (status, log) = start(&sandbox.run_dir().display().to_string());
    assert!(status == 0 && log.contains("is up (generation 2)"), "{status}: {log}");
    let (status, log) = start("/none-there");
    assert_eq!(status, 125, "{log}");
    assert_eq!(
        log,
        "serverswap: unable to use the run directory /none-there: Read-only file system (nothing was done)\n"
    );
    until("nothing of it is left", || sandbox.processes().is_empty());
}

/// It has become root, and its supervisor is not.
#[test]
fn a_command_that_may_not_be_signalled_is_not_said_to_be_killed() {
    if !nix::unistd::geteuid().is_root() || !may("setpriv", &["--reuid", "0", "true"]) {
        return;
    }
    let commons = Commons::new();
    let becomes_root = commons.sandbox.path("becomes-root");
    common::copy_program(std::path::Path::new("/usr/bin/setpriv"), &becomes_root);
    std::fs::set_permissions(&becomes_root, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let run_dir = commons.sandbox.path("nobody").join("run");
    let command = [becomes_root.to_str().unwrap(), "--reuid", "0", "--regid", "0", "--clear-groups", "sleep", "1000"];
    let words: Vec<&str> = ["-d", "--ready-timeout", "1"].into_iter().chain(command).collect();
    let mut running = commons.sandbox.start(commons.nobody(&commons.serverswap, &run_dir, &words));
    let status = running.wait();
    let named = || commons.sandbox.processes().into_iter().find(|(_, command)| command.starts_with("sleep 1000"));
    let survivor = named();
    survivor.iter().for_each(|(pid, _)| kill(*pid, libc::SIGKILL));
    if !running.log().contains("not up in time") {
        eprintln!("left out: no program may become root here: {}", running.log());
        return;
    }
    assert_eq!(status, 124, "{}", running.log());
    assert!(survivor.is_some());
    let said = "the new server runs as another user and cannot be killed: it lives on";
    assert!(running.log().contains(said) && !running.log().contains("is killed"), "{}", running.log());
}
