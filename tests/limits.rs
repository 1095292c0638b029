//! What a kernel, a profile or a limit does not give, and ends that are rare.

mod common;

use common::{Commons, Running, SERVERSWAP, Sandbox, answered_by, get, kill_by, next_line, plain_server, until};
use nix::libc;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// SIGRTMIN+6, for glibc.
const REAL_TIME: i32 = 40;

#[test]
fn a_server_that_a_real_time_signal_ends_ends_its_supervisor() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let (mut running, server) = sandbox.serving(port, &[], &[&format!(":{port}")]);
    kill_by(server, REAL_TIME);
    assert_eq!(running.wait(), 128 + REAL_TIME, "{}", running.log());
    running.says("was ended by SIGRTMIN+6");
    // Before it is up, and by its own hand.
    let (status, log) = sandbox.run(["sh", "-c", &format!("kill -{REAL_TIME} $$")]);
    assert_eq!(status, 128 + REAL_TIME, "{log}");
    sandbox.assert_clean();
}

/// The starter of a daemon is done, and what goes on is a child of the supervisor, its subreaper.
#[test]
fn a_worker_that_a_real_time_signal_ends_is_reaped_and_counted() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let start = format!("{} mute :{port} & exit 0", plain_server().display());
    let mut running = sandbox.serverswap(["sh", "-c", &start]);
    let worker = answered_by(port, 1).pid;
    running.says(&format!("process {worker} goes on as the server"));
    running.says("is up");
    kill_by(worker, REAL_TIME);
    assert_eq!(running.wait(), 128 + REAL_TIME, "{}", running.log());
    running.says(&format!("server {worker} was ended by SIGRTMIN+6"));
    sandbox.assert_clean();
}

fn limit_files(command: &mut Command, soft: u64, hard: u64) {
    // SAFETY: setrlimit is async-signal-safe and gets a pointer to a struct of ours.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0 {
                return Ok(());
            }
            Err(io::Error::last_os_error())
        })
    };
}

#[test]
fn a_keeper_without_close_range_closes_what_is_open_and_not_up_to_the_limit() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let mut command = sandbox.command("strace");
    command.env_remove("LD_LIBRARY_PATH");
    command.args(["-f", "-qq", "-e", "trace=close,close_range", "-e", "inject=close_range:error=ENOSYS", "-o"]);
    command.arg(sandbox.path("trace")).arg(SERVERSWAP).arg(plain_server()).arg(format!(":{port}"));
    limit_files(&mut command, 1024, 1024 * 16);
    let running = sandbox.start(command);
    answered_by(port, 1);
    running.says("is up");
    let trace = fs::read_to_string(sandbox.path("trace")).unwrap();
    let refused = trace.lines().find(|line| line.contains("(INJECTED)")).expect("close_range is called");
    let keeper = refused.split_whitespace().next().unwrap();
    let closes = trace.lines().filter(|line| line.split_whitespace().next() == Some(keeper)).count();
    assert!((4..200).contains(&closes), "{closes} calls");
    // And it holds no lock: a supervisor that is killed looks dead.
    let (status, log) = sandbox.deploy(&[&format!(":{port}")]);
    assert_eq!(status, 0, "{log}");
    sandbox.take_down(&format!(":{port}"));
}

/// An outer filter that answers as Linux 5.9 to 5.18 do: EINVAL for the flag that is not known yet, before the question
/// of privilege. `command` runs as nobody, without having given up setuid.
fn on_an_old_kernel(command: &mut Command) {
    let offset = |argument: u32| 16 + argument * 8 + if cfg!(target_endian = "big") { 4 } else { 0 };
    let load = |k| libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k };
    let jump =
        |kind: u32, k, jt, jf| libc::sock_filter { code: (libc::BPF_JMP | kind | libc::BPF_K) as u16, jt, jf, k };
    let ret = |k| libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k };
    let filter = [
        load(0),
        jump(libc::BPF_JEQ, libc::SYS_seccomp as u32, 0, 3),
        load(offset(1)),
        jump(libc::BPF_JSET, libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32, 0, 1),
        ret(libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
        ret(libc::SECCOMP_RET_ALLOW),
    ];
    let checked = |result: libc::c_long| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: the calls are async-signal-safe, and the program is valid for the call that copies it.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            checked(libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program))?;
            let nobody = Commons::NOBODY;
            checked(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
            checked(libc::syscall(libc::SYS_setresgid, nobody, nobody, nobody))?;
            checked(libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody))
        })
    };
}

#[test]
fn ports_are_shared_without_privilege_on_a_kernel_that_does_not_know_the_last_flag() {
    assert!(nix::unistd::geteuid().is_root(), "it takes root to become another user");
    let commons = Commons::new();
    let (sandbox, port) = (&commons.sandbox, commons.sandbox.port());
    let run_dir = sandbox.path("nobody").join("run");
    let start = |detach: bool| -> Running {
        let mut command = sandbox.command(&commons.serverswap);
        command.env("SERVERSWAP_RUN_DIR", &run_dir).args(detach.then_some("-d"));
        command.arg(&commons.server).args(["mute".into(), format!(":{port}")]);
        on_an_old_kernel(&mut command);
        sandbox.start(command)
    };
    let mut old = start(false);
    old.says("is up");
    let mut new = start(true);
    assert_eq!(new.wait(), 0, "{}", new.log());
    assert_eq!(get(port).map(|answer| answer.generation), Ok(2));
    assert_eq!(old.wait(), 0, "{}", old.log());
    for running in [&old, &new] {
        assert!(!running.log().contains("cannot be shared"), "{}", running.log());
    }
    let words = ["--takedown".to_owned(), format!(":{port}")];
    let words = words.each_ref().map(String::as_str);
    let mut down = sandbox.start(commons.nobody(&commons.serverswap, &run_dir, &words));
    assert_eq!(down.wait(), 0, "{}", down.log());
    until("all has ended", || sandbox.processes().is_empty());
}

/// What it listens on comes before its UP: else it would be up without an address, like a worker.
#[test]
fn a_server_that_says_up_while_nobody_can_look_is_up_with_its_addresses() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let (gate, before_ready) = sandbox.gate("before-ready");
    let mut running = sandbox.plain(&["--ready-timeout", "50"], &["mute", &format!(":{port}"), &before_ready]);
    gate.reached();
    let tracer = sandbox.inject(running.pid(), "recvfrom:error=ENOMEM");
    gate.open();
    answered_by(port, 1);
    let (mut control, mut answers) = sandbox.speaker();
    control.write_all(b"UP\nPING\n").unwrap();
    assert_eq!(next_line(&mut answers), "ERROR unknown word");
    assert!(!running.log().contains("is up"), "{}", running.log());
    tracer.signal(libc::SIGTERM);
    running.says(&format!(":{port}: server"));
    running.says("is up (generation 1)");
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(), 128 + libc::SIGTERM);
    sandbox.assert_clean();
}

/// In plain order the new server binds when the old one has let go, by the kernel's word.
#[test]
fn an_address_is_not_released_while_the_kernel_cannot_be_asked() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (mut old, pid) = sandbox.serving(port, &["--kill-after", "1"], &[&address, "stubborn"]);
    let (mut control, mut answers) = sandbox.speaker();
    control.write_all(format!("TAKEDOWN {address}\nPING\n").as_bytes()).unwrap();
    assert_eq!(next_line(&mut answers), "ERROR unknown word");
    let tracer = sandbox.inject(old.pid(), "recvfrom:error=ENOMEM");
    let mut new = sandbox.plain(&["-d"], &[&address]);
    assert_eq!(next_line(&mut answers), format!("TAKEDOWN {address}"));
    control.write_all(format!("RELEASED {address}\n").as_bytes()).unwrap();
    assert_eq!(new.wait(), 0, "{}", new.log());
    assert_ne!(get(port).map(|answer| answer.pid), Ok(pid));
    assert_eq!(old.wait(), 0, "{}", old.log());
    sandbox.end_tracers();
    drop(tracer);
    sandbox.take_down(&address);
}

/// A first server has been told to bind, and has its pidfile; nothing but that says so.
#[test]
fn a_run_directory_that_cannot_be_listed_is_not_taken_for_empty() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let (one, all) = (format!("127.0.0.1:{port}"), format!(":{port}"));
    let (listens, before_listen) = sandbox.gate("before-listen");
    let mut old = sandbox.plain(&[], &[&one, &before_listen]);
    listens.reached();
    let (ready, before_ready) = sandbox.gate("before-ready");
    let mut new = sandbox.plain(&["-v"], &[&all, &before_ready]);
    ready.reached();
    let tracer = sandbox.inject(new.pid(), "getdents64:error=ENOMEM:when=1");
    ready.open();
    until("it could not list the directory", || tracer.log().contains("(INJECTED)"));
    listens.open();
    answered_by(port, 2);
    assert_eq!(old.wait(), 0, "{}", old.log());
    new.says("is up");
    sandbox.end_tracers();
    sandbox.take_down(&all);
    assert_eq!(new.wait(), 0, "{}", new.log());
}

/// It wants an address of an orphan and of a server whose supervisor does not answer, and then no more: what was taken
/// over for that is let go.
#[test]
fn an_orphan_that_is_let_go_leaves_no_thread_behind() {
    let sandbox = Sandbox::new();
    let (port, own) = (sandbox.port(), sandbox.port());
    let [one, two] = ["127.0.0.1", "127.0.0.2"].map(|ip| format!("{ip}:{port}"));
    let mut orphaned = sandbox.plain(&[], &[&one]);
    orphaned.says("is up");
    orphaned.signal(libc::SIGKILL);
    orphaned.wait();
    let mut stopped = sandbox.plain(&[], &[&two]);
    stopped.says("is up");
    stopped.signal(libc::SIGSTOP);
    let (mut running, _) = sandbox.serving(own, &[], &[&format!(":{own}")]);
    let threads = || fs::read_dir(format!("/proc/{}/task", running.pid())).unwrap().count();
    let before = threads();
    let socket = sandbox.run_dir().join(format!("{}-1.sock", running.pid()));
    for _ in 1..4 {
        let mut control = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        control.write_all(format!("READY :{port}\n").as_bytes()).unwrap();
        // Two connections, to a caretaker and to one that does not answer, and the one of the READY.
        until("it asks for both", || threads() >= before + 3);
        drop(control);
        until("as many threads as before", || threads() == before);
    }
    assert_eq!(running.log().matches("is taken over").count(), 1);
    stopped.signal(libc::SIGCONT);
    let (status, log) = sandbox.run(["--takedown", &one, &two, &format!(":{own}")]);
    assert_eq!(status, 0, "{log}");
    assert_eq!((stopped.wait(), running.wait()), (0, 0));
    sandbox.assert_clean();
}
