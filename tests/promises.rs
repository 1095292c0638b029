//! One test for each promise of the README, of the same name.

mod common;

use common::{
    Commons, Gate, Load, Running, Sandbox, alive, answered_by, get, in_both_orders, kill, plain_server, until,
};
use nix::libc;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A first server that notes every signal, and a client that counts every failure.
struct Scene {
    sandbox: Sandbox,
    port: u16,
    address: String,
    old: Running,
    server: i32,
    load: Load,
}

impl Scene {
    fn new(sandbox: Sandbox) -> Scene {
        let port = sandbox.port();
        let address = format!(":{port}");
        let signals = format!("signals={}", sandbox.path("signals").display());
        let old = sandbox.plain(&[], &[&address, &signals]);
        let server = answered_by(port, 1).pid;
        old.says("is up");
        let load = Load::start(port, Duration::from_millis(5));
        Scene { sandbox, port, address, old, server, load }
    }

    /// Nobody told the old server anything, and it answers.
    fn old_is_untouched(&mut self) {
        assert_eq!(fs::read_to_string(self.sandbox.path("signals")).unwrap(), "");
        assert_eq!(get(self.port).unwrap().pid, self.server);
        assert_eq!(self.sandbox.pidfile(&self.port.to_string()), Some(self.server));
        assert!(!self.old.ended(), "{}", self.old.log());
    }

    /// A last swap, to show that the old one can still be replaced, and the end.
    fn end(mut self, generation: u64) {
        self.old_is_untouched();
        let seen = self.load.stop();
        assert_eq!(seen.failures, [].into());
        assert_eq!(seen.answers.keys().collect::<Vec<_>>(), [&self.server]);
        let (status, log) = self.sandbox.deploy(&[&self.address, "takedown"]);
        assert_eq!(status, 0, "{log}");
        assert_eq!(get(self.port).unwrap().generation, generation);
        assert_eq!(self.old.wait(), 0);
        self.sandbox.take_down(&self.address);
    }
}

#[test]
fn promise_1_the_old_server_is_untouched_until_the_new_one_is_ready() {
    in_both_orders(the_old_server_is_untouched);
}

fn the_old_server_is_untouched(sandbox: Sandbox) {
    let mut scene = Scene::new(sandbox);
    let (gate, before_ready) = scene.sandbox.gate("before-ready");
    for generation in 2..5 {
        let mut new = scene.sandbox.plain(&[], &[&scene.address, &before_ready]);
        gate.reached();
        scene.old_is_untouched();
        assert_eq!(get(scene.port).unwrap().generation, 1, "not generation {generation}");
        new.signal(libc::SIGTERM);
        assert_eq!(new.wait(), 128 + libc::SIGTERM, "{}", new.log());
        scene.old_is_untouched();
    }
    // Now one that gets ready: only then the old one goes.
    let mut new = scene.sandbox.plain(&[], &[&scene.address, &before_ready]);
    gate.reached();
    scene.old_is_untouched();
    let seen = scene.load.stop();
    assert_eq!(seen.failures, [].into());
    gate.open();
    answered_by(scene.port, 2);
    assert_eq!(scene.old.wait(), 0);
    assert_eq!(fs::read_to_string(scene.sandbox.path("signals")).unwrap(), "SIGTERM\n");
    scene.sandbox.take_down(&scene.address);
    assert_eq!(new.wait(), 0);
}

#[test]
fn promise_2_a_new_server_that_dies_hangs_or_babbles_changes_nothing() {
    in_both_orders(a_bad_new_server_changes_nothing);
}

fn a_bad_new_server_changes_nothing(sandbox: Sandbox) {
    let mut scene = Scene::new(sandbox);
    let address = scene.address.clone();
    let hang = ["--ready-timeout", "0.3"];
    let bad: [(&[&str], &[&str], i32, &str); 8] = [
        (&[], &["exit=3"], 3, "ended with status 3 before it was up"),
        (&[], &["exit=0"], 0, "ended with status 0 before it was up"),
        (&[], &["fail"], 124, r#"gave up: "no \"database\"""#),
        (&hang, &["hang"], 124, "not up in time"),
        (&hang, &["hang", "stubborn"], 124, "not up in time"),
        (&hang, &["hang", "babble"], 124, "not up in time"),
        (&[], &["exit=5", "babble"], 5, "ended with status 5 before it was up"),
        if scene.sandbox.is_shared() {
            // It has GO at once, and dies instead of binding.
            (&[], &["die"], 9, "ended with status 9 before it was up")
        } else {
            // It binds without a word: the port is taken.
            (&[], &["mute"], 98, "ended with status 98 before it was up")
        },
    ];
    for (options, flags, status, why) in bad {
        for detach in [false, true] {
            let options: Vec<&str> = options.iter().copied().chain(detach.then_some("-d")).collect();
            let words: Vec<&str> = [&*address].into_iter().chain(flags.iter().copied()).collect();
            let mut new = scene.sandbox.plain(&options, &words);
            // With -d a status of 0 would be taken for a success.
            let expected = if detach && status == 0 { 124 } else { status };
            assert_eq!(new.wait(), expected, "{words:?}: {}", new.log());
            assert_eq!(new.log().matches(why).count(), 1, "{words:?}: {}", new.log());
            scene.old_is_untouched();
        }
    }
    // Killed in the middle.
    let (gate, before_ready) = scene.sandbox.gate("before-ready");
    let mut new = scene.sandbox.plain(&["-d"], &[&address, &before_ready]);
    gate.reached();
    let server = servers(&scene.sandbox).into_iter().find(|pid| *pid != scene.server).unwrap();
    kill(server, libc::SIGKILL);
    assert_eq!(new.wait(), 128 + libc::SIGKILL, "{}", new.log());
    until("no rest of a failed server is left", || scene.sandbox.processes().len() == scene.sandbox.crew());
    scene.end(2);
}

/// Pids of the plain-servers that run in the sandbox.
fn servers(sandbox: &Sandbox) -> Vec<i32> {
    let server = plain_server();
    let is_server = |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == server);
    sandbox.processes().into_iter().map(|(pid, _)| pid).filter(is_server).collect()
}

/// What the loaded machine itself explains: a process in a session of its own gives back lines, and
/// the longest time that [`Echo::HOPS`] of them took in a row, every 20 ms, is measured.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
    child: Child,
}

fn look_through_proc() {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let _ = fs::read(entry.path().join("stat"));
    }
}

impl Echo {
    /// A swap wakes about this many processes and threads one after the other, each way: claim, lock,
    /// TAKEDOWN, release or exit, GO, listen.
    const HOPS: usize = 6;
    /// And it looks through all processes this often: what is left of the old server, who listens now.
    const LOOKS: usize = 2;

    fn start(sandbox: &Sandbox) -> Echo {
        let mut command = sandbox.command(plain_server());
        command.arg("echo").stdin(Stdio::piped()).stdout(Stdio::piped()).env_remove(common::MARK);
        let mut child = command.spawn().unwrap();
        let (mut to, mut from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            let mut line = String::new();
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                for _ in 0..Echo::HOPS {
                    to.write_all(b"x\n").unwrap();
                    from.read_line(&mut line).unwrap();
                }
                for _ in 0..Echo::LOOKS {
                    look_through_proc();
                }
                longest = longest.max(start.elapsed());
                std::thread::sleep(Duration::from_millis(20));
            }
            longest
        });
        Echo { stop, thread, child }
    }

    fn stop(mut self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.thread.join().unwrap();
        self.child.wait().unwrap();
        longest
    }
}

#[test]
fn promise_3_swaps_of_one_address_happen_one_at_a_time() {
    swaps_happen_one_at_a_time(Sandbox::new(), &[]);
    swaps_happen_one_at_a_time(Sandbox::new(), &["takedown"]);
    swaps_happen_one_at_a_time(Sandbox::shared(), &["takedown"]);
}

fn swaps_happen_one_at_a_time(sandbox: Sandbox, flags: &[&str]) {
    const CROWD: usize = 64;
    const LONGEST_GAP: Duration = Duration::from_millis(240);
    let port = sandbox.port();
    let address = format!(":{port}");
    let words: Vec<&str> = [&*address].into_iter().chain(flags.iter().copied()).collect();
    let mut last = sandbox.plain(&[], &words);
    answered_by(port, 1);
    let echo = Echo::start(&sandbox);
    let load = Load::start(port, Duration::from_millis(20));
    for round in 1..=2 {
        let mut crowd: Vec<Running> = (0..CROWD).map(|_| sandbox.plain(&[], &words)).collect();
        crowd.push(last);
        until("all but one have ended", || {
            crowd.iter_mut().map(|running| usize::from(running.ended())).sum::<usize>() == CROWD
        });
        let at = crowd.iter_mut().position(|running| !running.ended()).unwrap();
        last = crowd.swap_remove(at);
        for mut replaced in crowd {
            assert_eq!(replaced.wait(), 0, "{}", replaced.log());
        }
        // In plain order the last old one has ended a moment before the last new one listens.
        until("the last one answers", || get(port).is_ok());
        // One swap after the other: each raised the generation by one.
        let answer = get(port).unwrap();
        let status = sandbox.status();
        assert_eq!(status.len(), 1);
        assert_eq!(
            status[0][1..4],
            [1 + round * CROWD, answer.pid as usize, last.pid() as usize].map(|n| n.to_string())
        );
        assert_eq!(servers(&sandbox), [answer.pid]);
        until("one server and one supervisor are left", || sandbox.processes().len() == sandbox.crew());
        assert_eq!(sandbox.pidfile(&port.to_string()), Some(answer.pid));
    }
    let (seen, explained) = (load.stop(), echo.stop());
    if sandbox.is_shared() {
        assert_eq!(seen.failures, [].into(), "{seen:?}");
    }
    assert!(seen.longest_gap <= LONGEST_GAP + explained, "{seen:?}, explained: {explained:?}");
    sandbox.take_down(&address);
    assert_eq!(last.wait(), 0);
}

#[test]
fn promise_4_detach_returns_0_when_the_new_server_answers_and_the_old_one_is_gone() {
    in_both_orders(detach_returns_0_when_the_swap_is_done);
}

fn detach_returns_0_when_the_swap_is_done(sandbox: Sandbox) {
    let port = sandbox.port();
    let address = format!(":{port}");
    let mut last: Option<i32> = None;
    let last_flags: &[&str] = if sandbox.is_shared() { &["die"] } else { &["mute"] };
    for (generation, flags) in (1..).zip([&["takedown"][..], &[], &["takedown"], last_flags]) {
        let words: Vec<&str> = [&*address].into_iter().chain(flags.iter().copied()).collect();
        if flags != last_flags {
            let (status, log) = sandbox.deploy(&words);
            assert_eq!(status, 0, "{log}");
        } else {
            // What is not 0: the old one still serves.
            let (status, log) = sandbox.deploy(&words);
            assert_eq!(status, if sandbox.is_shared() { 9 } else { 98 }, "{log}");
            assert_eq!(get(port).map(|answer| Some(answer.pid)), Ok(last));
            continue;
        }
        let answer = get(port).unwrap();
        assert_eq!(answer.generation, generation);
        assert!(last.is_none_or(|pid| !alive(pid)));
        until("the supervisor of the old one has ended", || sandbox.processes().len() == sandbox.crew());
        last = Some(answer.pid);
    }
    // An old server that takes its time is waited for.
    let (before_exit, hold) = sandbox.gate("before-exit");
    assert_eq!(sandbox.deploy(&[&address, "takedown", &hold]).0, 0);
    let old = get(port).unwrap().pid;
    let mut new = sandbox.plain(&["-d"], &[&address, "takedown"]);
    before_exit.reached();
    answered_by(port, 5);
    assert!(alive(old) && !new.ended());
    before_exit.open();
    assert_eq!(new.wait(), 0, "{}", new.log());
    assert!(!alive(old));
    // And so is one that has lost its supervisor meanwhile.
    let (before_exit, hold) = sandbox.gate("before-exit");
    assert_eq!(sandbox.deploy(&[&address, "takedown", &hold]).0, 0);
    let old = get(port).unwrap().pid;
    let supervisor = sandbox.status()[0][3].parse().unwrap();
    let mut new = sandbox.plain(&["-d"], &[&address, "takedown"]);
    before_exit.reached();
    answered_by(port, 7);
    kill(supervisor, libc::SIGKILL);
    new.says("has lost its supervisor");
    assert!(alive(old) && !new.ended());
    before_exit.open();
    assert_eq!(new.wait(), 0, "{}", new.log());
    assert!(!alive(old));
    if sandbox.is_shared() {
        return sandbox.take_down(&address);
    }
    // A takedown that had begun: the message says that nothing serves the address.
    let (status, log) = sandbox.deploy(&[&address, "die"]);
    assert_eq!((status, log.matches(&format!("nothing serves {address}")).count()), (9, 1), "{log}");
    assert!(get(port).is_err());
    sandbox.assert_clean();
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    BeforeReady,
    WaitingForTheLock,
    TakedownSent,
    GoSaid,
    OldDrains,
    Steady,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    OldServer,
    NewServer,
    OldSupervisor,
    NewSupervisor,
}

/// A swap that stands still in one of its phases.
struct Swap {
    old: Running,
    old_server: i32,
    new: Running,
    new_server: i32,
    rest: Vec<Running>,
    gates: Vec<Gate>,
}

impl Swap {
    fn halted(sandbox: &Sandbox, port: u16, phase: Phase) -> Swap {
        let address = &*format!(":{port}");
        let (before_ready, at_ready) = sandbox.gate("before-ready");
        let (before_listen, at_listen) = sandbox.gate("before-listen");
        let (before_release, at_release) = sandbox.gate("before-release");
        let (before_exit, at_exit) = sandbox.gate("before-exit");
        let said = sandbox.path("said");
        let said_flag = &*format!("said={}", said.display());
        let old_flags: &[&str] = match phase {
            Phase::BeforeReady | Phase::Steady => &[],
            Phase::WaitingForTheLock | Phase::TakedownSent => &[&at_release],
            Phase::GoSaid | Phase::OldDrains => &[&at_exit],
        };
        let new_flags: &[&str] = match phase {
            Phase::BeforeReady => &[&at_ready],
            Phase::WaitingForTheLock => &[said_flag],
            Phase::GoSaid => &[&at_listen],
            Phase::TakedownSent | Phase::OldDrains | Phase::Steady => &[],
        };
        let with =
            |flags: &[&str]| [address, "takedown"].iter().chain(flags).map(|w| w.to_string()).collect::<Vec<_>>();
        let start = |flags: &[&str]| {
            let words = with(flags);
            let before = servers(sandbox);
            let running = sandbox.plain(&[], &words.iter().map(String::as_str).collect::<Vec<_>>());
            let mut server = None;
            until("the server has started", || {
                server = servers(sandbox).into_iter().find(|pid| !before.contains(pid));
                server.is_some()
            });
            (running, server.unwrap())
        };
        let (old, old_server) = start(old_flags);
        assert_eq!(answered_by(port, 1).pid, old_server);
        old.says("is up");
        let mut rest = Vec::new();
        if phase == Phase::WaitingForTheLock {
            rest.push(start(&[]).0);
            before_release.reached();
        }
        let (mut new, new_server) = start(new_flags);
        match phase {
            Phase::BeforeReady => before_ready.reached(),
            Phase::WaitingForTheLock => until("READY was said", || said.exists()),
            Phase::TakedownSent => before_release.reached(),
            Phase::GoSaid => {
                before_listen.reached();
                before_exit.reached();
            }
            Phase::OldDrains => {
                before_exit.reached();
                assert_eq!(answered_by(port, 2).pid, new_server);
                new.says("is up");
            }
            Phase::Steady => {
                answered_by(port, 2);
                until("the old one is gone", || !alive(old.pid()) || !alive(old_server));
                new.says("is up");
            }
        }
        assert!(!new.ended(), "{}", new.log());
        let gates = vec![before_ready, before_listen, before_release, before_exit];
        Swap { old, old_server, new, new_server, rest, gates }
    }
}

#[test]
fn promise_6_whatever_is_killed_no_serving_server_dies_of_it_and_the_next_takes_over() {
    let phases = [
        Phase::BeforeReady,
        Phase::WaitingForTheLock,
        Phase::TakedownSent,
        Phase::GoSaid,
        Phase::OldDrains,
        Phase::Steady,
    ];
    let victims = [Victim::OldServer, Victim::NewServer, Victim::OldSupervisor, Victim::NewSupervisor];
    let all = phases.into_iter().flat_map(|phase| victims.map(|victim| (phase, victim)));
    for (phase, victim) in all {
        if phase == Phase::Steady && matches!(victim, Victim::OldServer | Victim::OldSupervisor) {
            continue;
        }
        eprintln!("{phase:?}, {victim:?}");
        let sandbox = Sandbox::new();
        let port = sandbox.port();
        let mut swap = Swap::halted(&sandbox, port, phase);
        let serving = match phase {
            Phase::BeforeReady | Phase::WaitingForTheLock | Phase::TakedownSent => Some(swap.old_server),
            Phase::GoSaid => None,
            Phase::OldDrains | Phase::Steady => Some(swap.new_server),
        };
        let pid = match victim {
            Victim::OldServer => swap.old_server,
            Victim::NewServer => swap.new_server,
            Victim::OldSupervisor => swap.old.pid(),
            Victim::NewSupervisor => swap.new.pid(),
        };
        kill(pid, libc::SIGKILL);
        match victim {
            Victim::OldSupervisor => assert_eq!(swap.old.wait(), 137),
            Victim::NewSupervisor => assert_eq!(swap.new.wait(), 137),
            Victim::OldServer | Victim::NewServer => until("it is dead", || !alive(pid)),
        }
        let waits = !matches!(phase, Phase::BeforeReady | Phase::Steady);
        match serving {
            // A server that is ready takes the orphan over at once: that is the next serverswap.
            Some(_) if victim == Victim::OldSupervisor && waits => {}
            Some(serving) if serving != pid => {
                // Long enough for whoever would kill it to have come to it: they have all been heard.
                until("the dead one's supervisor or keeper has acted", || match victim {
                    Victim::OldServer => swap.old.ended(),
                    Victim::NewServer => swap.new.ended(),
                    Victim::OldSupervisor => true,
                    // The new server ends with it, or is an orphan and serves.
                    Victim::NewSupervisor => serving == swap.new_server || !alive(swap.new_server),
                });
                assert_eq!(get(port).map(|answer| answer.pid), Ok(serving), "{phase:?}, {victim:?}");
            }
            Some(_) | None => {}
        }
        // A new server that was told to bind and has not is left to nobody but the next one.
        let stray = phase == Phase::GoSaid && victim == Victim::NewSupervisor;
        let open = |gates: &[Gate]| gates.iter().for_each(Gate::open);
        if !stray {
            open(&swap.gates);
        }
        let mut next = sandbox.plain(&["-d"], &[&format!(":{port}"), "takedown"]);
        let status = next.wait();
        open(&swap.gates);
        assert_eq!(status, 0, "{phase:?}, {victim:?}: {}", next.log());
        // Who waited for the lock may have come after it.
        until("one server and one supervisor are left", || sandbox.processes().len() == 2);
        until("it answers", || get(port).is_ok());
        let answer = get(port).unwrap();
        assert_eq!(servers(&sandbox), [answer.pid], "{phase:?}, {victim:?}");
        assert_eq!(sandbox.pidfile(&port.to_string()), Some(answer.pid));
        sandbox.take_down(&format!(":{port}"));
        for mut other in [swap.old, swap.new].into_iter().chain(swap.rest) {
            other.wait();
        }
    }
}

/// Not even one that dies between the start of its server and the record of it leaves a server that
/// nobody knows.
#[test]
fn a_supervisor_that_is_killed_while_it_starts_a_server_leaves_none() {
    let sandbox = Sandbox::new();
    for round in 0..200u32 {
        let mut supervisor = sandbox.plain(&[], &["hang"]);
        // From before its first fork to after its last, wherever that is on this machine.
        let moment = Instant::now() + Duration::from_micros(50 * u64::from(round));
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        supervisor.signal(libc::SIGKILL);
        assert_eq!(supervisor.wait(), 137);
    }
    until("nobody is left", || sandbox.processes().is_empty());
    assert_eq!(sandbox.run(["true"]).0, 0);
    sandbox.assert_clean();
}

#[test]
fn promise_7_nobody_but_the_owner_or_root_can_take_a_server_down_or_take_its_port() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("left out: only root can be two users");
        return;
    }
    let commons = Commons::new();
    let (sandbox, server) = (&commons.sandbox, commons.server.to_str().unwrap());
    let port = sandbox.port();
    let address = &*format!(":{port}");
    let run = sandbox.run_dir();
    // With the most careless umask there is.
    let mut command = sandbox.command("sh");
    command.args(["-c", "umask 0; exec \"$@\"", "sh", common::SERVERSWAP, server, address, "takedown"]);
    let mut owned = sandbox.start(command);
    let pid = answered_by(port, 1).pid;
    owned.says("is up");
    let control = run.join(format!("{}-1.sock", owned.pid()));
    assert_eq!(Commons::mode(&run), 0o755);
    assert_eq!(Commons::mode(&control), 0o600);
    assert_eq!(Commons::mode(&run.join(format!("{}-1.notify", owned.pid()))), 0o600);
    assert_eq!(Commons::mode(&run.join(format!("{pid}.server"))), 0o600);
    assert_eq!(Commons::mode(&run.join(format!("{port}.pid"))), 0o644);

    // The owner's run directory is closed to others, and their own leads nowhere.
    let other = sandbox.path("nobody/run");
    for words in
        [&["--takedown", address][..], &["--reload", address], &["-d", server, address], &["--status", address]]
    {
        commons.refused(&run, words, 125, "belongs to another user");
    }
    commons.refused(&other, &["-d", server, address], 125, "is held by");
    for words in [&["--takedown", address][..], &["--reload", address], &["--status", address]] {
        commons.refused(&other, words, 125, "no server");
    }
    commons.refused(&other, &[server, address], 125, "is held by");
    commons.refused(&other, &["-d", server, address, "mute"], 98, "");

    // The control socket is for its user, whatever its mode.
    let talk = format!("talk={}", control.display());
    let say = || {
        let mut command = commons.nobody(&commons.server, &other, &[&talk]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stop = format!("PEER 1\nCLAIM\nSTOP\nDOWN {address}\nCOMMIT\n");
        let _ = child.stdin.take().unwrap().write_all(stop.as_bytes());
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    assert!(say().contains("Permission denied"));
    fs::set_permissions(&control, fs::Permissions::from_mode(0o666)).unwrap();
    let answer = say();
    assert!(answer.is_empty() || answer == "ERROR this control socket is not yours\n", "{answer}");
    assert_eq!(get(port).map(|answer| answer.pid), Ok(pid));
    assert!(!owned.ended(), "{}", owned.log());
    sandbox.take_down(address);
    assert_eq!(owned.wait(), 0);

    // The other way round: root's serverswap takes nothing of another user's, but is heard by it.
    let mut theirs = sandbox.start(commons.nobody(&commons.serverswap, &other, &[server, address]));
    let pid = answered_by(port, 1).pid;
    theirs.says("is up");
    assert_eq!(Commons::mode(&other), 0o700);
    let (status, log) = sandbox.run(["-d", server, address]);
    assert_eq!(status, 125, "{log}");
    assert!(log.contains(&format!("is held by pid {pid}")) && log.contains(other.to_str().unwrap()), "{log}");
    let mut root = UnixStream::connect(other.join(format!("{}-1.sock", theirs.pid()))).unwrap();
    root.write_all(b"PEER 1\nSTATUS\n").unwrap();
    let mut heard = String::new();
    BufReader::new(&root).take(1000).read_line(&mut heard).unwrap();
    assert_eq!(heard, "PEER 1\n");
    assert_eq!(get(port).map(|answer| answer.pid), Ok(pid));
    theirs.signal(libc::SIGTERM);
    assert_eq!(theirs.wait(), 143);
    assert_eq!(fs::read_dir(&other).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>(), ["lock"]);
}

#[test]
fn promise_8_a_process_that_no_swap_is_about_notices_nothing() {
    let sandbox = Sandbox::shared();
    let (port, later) = (sandbox.port(), sandbox.port().to_string());
    for generation in 1..=2 {
        let source = sandbox.port().to_string();
        let notices = common::odd("notices", port, &[&source, &later]);
        let (status, log) = sandbox.run([&["-d".to_owned()], &notices[..]].concat());
        assert_eq!(status, 0, "{log}");
        answered_by(port, generation);
        let said = "answered 1, shares [0, 0], filter 1";
        until("it has noticed nothing", || sandbox.said().matches(said).count() as u64 == generation);
    }
    let addresses: Vec<String> = sandbox.status().into_iter().map(|row| row[0].clone()).collect();
    assert_eq!(addresses, [format!("127.0.0.1:{port}")]);
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}
