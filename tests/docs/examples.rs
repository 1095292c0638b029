//! The examples of both manuals and of the README, run as they stand.

use super::text::{block, chapter, example, fenced, file, literal_blocks, manual};
use super::transcripts::Raw;
use super::{Stage, numbers};
use crate::common::{DEADLINE, alive, kill, until};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

/// The examples that a test here runs. A new one in a manual needs a new test.
const RUN: [(u8, &[&str]); 2] = [
    (
        1,
        &[
            "deploy",
            "status",
            "reload",
            "takedown",
            "log",
            "migrate",
            "ramp",
            "nightly",
            "alert",
            "current",
            "kill",
            "server.js",
            "wrapper",
            "json",
            "check",
            "undo",
            "commit",
        ],
    ),
    (7, &["short.sh", "server.sh", "server.py", "raw.js"]),
];

/// The literal blocks that are no examples to run.
const OTHERS: [(u8, &[&str]); 2] = [
    (1, &["ssh: needs a host", "systemd: needs a service manager", "container: needs Docker"]),
    (
        7,
        &[
            "transcript: the whole",
            "grammar",
            "transcript: a swap",
            "transcript: a swap with --plain",
            "transcript: a failure",
        ],
    ),
];

/// The example of a server stays in the foreground where it is started without `-d`.
const FOREGROUND: &str = "serverswap node server.js a b c";

#[test]
fn every_example_is_run() {
    for ((section, run), (_, others)) in RUN.into_iter().zip(OTHERS) {
        let known: BTreeSet<String> =
            run.iter().map(|name| format!("example: {name}")).chain(others.iter().map(|&o| o.into())).collect();
        let blocks: Vec<String> = literal_blocks(&manual(section)).into_iter().map(|(mark, _)| mark).collect();
        assert_eq!(blocks.len(), known.len(), "serverswap({section}): {blocks:?}");
        assert_eq!(blocks.into_iter().collect::<BTreeSet<_>>(), known, "serverswap({section})");
    }
}

/// What the answers of a server tell beside its generation.
#[derive(Clone, Copy, PartialEq)]
enum Tells {
    /// The pid of its main process.
    Pid,
    /// Nothing: the server only has the file that the test gave it.
    Nothing,
}

/// Three swaps of one command line in the foreground: each generation takes over, the one before ends
/// with 0, and nobody of it is left.
fn three_swaps(files: &[(&str, &str)], command_line: &str, tells: Tells) -> Stage {
    let stage = Stage::new();
    let mut before: Option<(crate::common::Running, i32)> = None;
    for generation in 1..=4 {
        let dir = stage.generation(generation, files);
        let running = stage.start(&dir, command_line);
        let (body, numbers) = stage.answer(generation);
        if let Some((mut before, old)) = before.take() {
            assert_eq!(before.wait(), 0, "{}", before.log());
            until("the old server is gone", || !alive(old));
            assert_ne!(stage.served_pid(), Some(old));
        }
        let pid = stage.served_pid().unwrap_or_else(|| panic!("no pidfile: {}", running.log()));
        if tells == Tells::Pid {
            assert_eq!(numbers, [generation, pid as u64], "{body}");
        }
        running.says(&format!("serverswap: {}: server {pid} is up (generation {generation})", stage.address()));
        before = Some((running, pid));
    }
    let (mut last, _) = before.unwrap();
    stage.end();
    assert_eq!(last.wait(), 0, "{}", last.log());
    stage
}

/// The same file without serverswap: it serves at once, and TERM ends it.
fn alone(name: &str, content: &str, interpreter: &str) {
    let stage = Stage::new();
    let dir = stage.generation(1, &[(name, content)]);
    let mut command = stage.sandbox.command(interpreter);
    command.arg(name);
    let mut running = stage.start_in(&dir, command);
    until("it answers", || {
        let body = super::body(stage.port).unwrap_or_default();
        numbers(&body).last() == Some(&(running.pid() as u64))
    });
    kill(running.pid(), nix::libc::SIGTERM);
    running.wait();
    stage.sandbox.assert_clean();
}

/// Three swaps in the background, then the checks of `then`, and the end.
fn deployed(files: &[(&str, &str)], command_line: &str, then: impl FnOnce(&Stage, &Path)) {
    let stage = Stage::new();
    let mut old = None;
    for generation in 1..=4 {
        let dir = stage.generation(generation, files);
        let (status, log) = stage.run(&dir, command_line);
        assert_eq!(status, 0, "{log}");
        // It has returned: the new one answers now, and the old one is gone now.
        assert_eq!(stage.answer(generation).1[0], generation);
        let pid = stage.served_pid().expect("a pidfile");
        assert!(old.is_none_or(|old| old != pid && !alive(old)), "{log}");
        old = Some(pid);
    }
    then(&stage, &stage.sandbox.path("g4"));
    if stage.served_pid().is_some() {
        stage.end();
    }
    stage.sandbox.assert_clean();
}

#[test]
fn manual_1_a_server_in_node_in_the_foreground() {
    three_swaps(&[("server.js", &example(1, "server.js"))], FOREGROUND, Tells::Pid);
}

#[test]
fn manual_1_a_server_in_node_alone() {
    let server = example(1, "server.js");
    let stage = Stage::new();
    let dir = stage.generation(1, &[("server.js", &server)]);
    let mut command = stage.sandbox.command("node");
    command.arg("server.js");
    let mut running = stage.start_in(&dir, command);
    until("it answers", || super::body(stage.port) == Some(format!("undefined {}", running.pid())));
    kill(running.pid(), nix::libc::SIGTERM);
    running.wait();
}

#[test]
fn manual_1_a_deploy_script() {
    let server = example(1, "server.js");
    let deploy = example(1, "deploy");
    deployed(&[("server.js", &server)], &deploy, |stage, _| {
        let pid = stage.served_pid();
        let broken = stage.generation(5, &[("server.js", "throw new Error('no database')")]);
        let (status, log) = stage.run(&broken, &deploy);
        assert_eq!(status, 0, "{log}");
        assert!(log.lines().any(|line| line == "old version still up"), "{log}");
        assert_eq!(stage.answer(4).1[0], 4);
        assert_eq!(stage.served_pid(), pid);
    });
}

#[test]
fn manual_1_a_check() {
    let server =
        example(1, "server.js").replace("response.end(", "response.end(request.url === '/login' ? 'Password' : ");
    let check = example(1, "check");
    deployed(&[("server.js", &server)], &check, |stage, _| {
        let pid = stage.served_pid();
        let broken = stage.generation(5, &[("server.js", &server.replace("Password", "?"))]);
        let (status, log) = stage.run(&broken, &check.replace("-d ", "-d --ready-timeout 3 "));
        assert_eq!(status, 124, "{log}");
        assert_eq!(stage.answer(4).1[0], 4);
        assert_eq!(stage.served_pid(), pid);
    });
}

/// The server of the manual, with a health that its directory tells, and a log of its requests.
fn healthy() -> String {
    let head = "const fs = require('fs');\n";
    let answer = "const ill = fs.existsSync('ill');
  response.statusCode = ill ? 500 : 200;
  fs.appendFileSync('access.log', `${request.url} ${response.statusCode}\\n`);
  if (request.url === '/login') return response.end(fs.existsSync('login') ? 'Password' : 'nothing');
  response.end(";
    format!("{head}{}", example(1, "server.js").replace("response.end(", answer))
}

/// What an example of the manual takes minutes for takes half a second.
fn faster(example: &str) -> String {
    let times = [(":600", ":0.5"), (":60", ":0.5"), ("--hold 3600", "--hold 1"), ("-d ", "-d --drain 0.5 ")];
    times.into_iter().fold(example.to_owned(), |text, (long, short)| text.replace(long, short))
}

impl Stage {
    /// Runs an example that is a script, with `/srv/shop` in this directory.
    fn run_script(&self, dir: &Path, script: &str) -> (i32, String) {
        let script = script.replace("/srv/shop", dir.to_str().unwrap());
        std::fs::write(dir.join("script"), self.own(&script)).unwrap();
        // The first line says how it is run.
        let line = script.lines().next().unwrap().trim_start_matches("#!/bin/");
        self.run(dir, &format!("{line} ./script"))
    }

    /// Waits until one server is left, which serves, and is of this generation.
    fn is_alone(&self, generation: u64) {
        until(&format!("generation {generation} is alone"), || {
            let all = self.sandbox.status();
            matches!(&all[..], [one] if one[1] == generation.to_string() && one[5] == "serving")
        });
        assert_eq!(self.answer(generation).1[0], generation);
    }
}

#[test]
fn manual_1_a_migration_before_and_a_test_after() {
    let script = example(1, "migrate").replace("-d ", "-d --drain 0.5 ");
    let stage = Stage::new();
    let migrate = ("migrate.js", "console.log('migrated')");
    let server = healthy();
    let dir = stage.generation(1, &[("server.js", &server), migrate]);
    assert_eq!(stage.run(&dir, &example(1, "deploy")).0, 0);
    let good = stage.generation(2, &[("server.js", &server), migrate, ("login", "")]);
    let (status, log) = stage.run_script(&good, &script);
    assert_eq!((status, log.starts_with("migrated\n")), (0, true), "{log}");
    stage.is_alone(2);
    let bad = stage.generation(3, &[("server.js", &server), migrate]);
    let (status, log) = stage.run_script(&bad, &script);
    assert_eq!(status, 1, "{log}");
    stage.is_alone(2);
    let broken = stage.generation(4, &[("server.js", &server), ("migrate.js", "process.exit(3)")]);
    assert_eq!(stage.run_script(&broken, &script), (3, String::new()), "nothing is deployed");
    stage.is_alone(2);
    stage.end();
}

#[test]
fn manual_1_a_ramp() {
    let ramp = faster(&example(1, "ramp"));
    deployed(&[("server.js", &healthy())], &ramp, |stage, _| {
        let ill = stage.generation(5, &[("server.js", &healthy()), ("ill", "")]);
        let (status, log) = stage.run(&ill, &ramp.replace("-d ", "-d --ready-timeout 3 "));
        assert_eq!(status, 124, "{log}");
        // One that falls ill on its way.
        let ill = stage.generation(6, &[("server.js", &healthy())]);
        let mut running = stage.start(&ill, &ramp.replace(",50:0.5", ",50:600"));
        running.says("gets 50% of the new connections");
        std::fs::write(ill.join("ill"), "").unwrap();
        assert_eq!(running.wait(), 124);
        let log = running.log();
        for share in ["1%", "10%", "50%"] {
            assert!(log.contains(&format!(" gets {share} of the new connections")), "{log}");
        }
        stage.is_alone(4);
    });
}

#[test]
fn manual_1_a_canary_at_night() {
    let script = faster(&example(1, "nightly")).replace("git pull -q", "true");
    let stage = Stage::new();
    let dir = stage.generation(1, &[("server.js", &healthy())]);
    assert_eq!(stage.run(&dir, &example(1, "deploy")).0, 0);
    let night = stage.generation(2, &[("server.js", &healthy())]);
    let (status, log) = stage.run_script(&night, &script);
    assert_eq!(status, 0, "{log}");
    assert!(log.contains("gets 5% of the new connections") && log.contains("is kept for 1 s"), "{log}");
    stage.is_alone(2);
    // In the hold it falls ill, and the next morning tells.
    let night = stage.generation(3, &[("server.js", &healthy())]);
    let (status, log) = stage.run_script(&night, &script.replace("--hold 1", "--hold 600"));
    assert_eq!(status, 0, "{log}");
    std::fs::write(night.join("ill"), "").unwrap();
    stage.is_alone(2);
    let (status, log) = stage.run(&night, "serverswap --status -v");
    assert_eq!((status, log.contains("\tundone: its check failed")), (0, true), "{log}");
    stage.end();
}

#[test]
fn manual_1_an_undo_by_an_alert() {
    let script = example(1, "alert");
    let stage = Stage::new();
    let dir = stage.generation(1, &[("server.js", &healthy())]);
    assert_eq!(stage.run(&dir, &example(1, "deploy")).0, 0);
    let new = stage.generation(2, &[("server.js", &healthy())]);
    let (status, log) = stage.run(&new, "serverswap -d --drain 0.5 --hold 600 node server.js");
    assert_eq!(status, 0, "{log}");
    let ask = |count| (0..count).for_each(|_| drop(super::body(stage.port).unwrap()));
    ask(20);
    assert_eq!(stage.run_script(&new, &script), (0, String::new()));
    stage.answer(2);
    std::fs::write(new.join("ill"), "").unwrap();
    ask(11);
    let (status, log) = stage.run_script(&new, &script);
    assert_eq!((status, log.contains("undone: the old server has all new connections")), (0, true), "{log}");
    stage.is_alone(1);
    // The next alert finds nothing to undo.
    assert_eq!(stage.run_script(&new, &script).0, 125);
    stage.end();
}

#[test]
fn manual_1_undo_and_commit() {
    let stage = Stage::new();
    let server = example(1, "server.js");
    let dir = stage.generation(1, &[("server.js", &server)]);
    assert_eq!(stage.run(&dir, &example(1, "deploy")).0, 0);
    for (word, left) in [("undo", 1), ("commit", 2)] {
        let dir = stage.generation(2, &[("server.js", &server)]);
        assert_eq!(stage.run(&dir, "serverswap -d --drain 0.5 --hold 600 node server.js").0, 0);
        stage.answer(2);
        let (status, log) = stage.run(&dir, &example(1, word));
        assert_eq!(status, 0, "{log}");
        stage.is_alone(left);
        assert_eq!(stage.run(&dir, &example(1, word)).0, 125);
    }
    stage.end();
}

#[test]
fn manual_1_a_wrapper() {
    deployed(&[], &example(1, "wrapper"), |stage, _| {
        let command = std::fs::read_to_string(format!("/proc/{}/cmdline", stage.served_pid().unwrap())).unwrap();
        assert!(!command.starts_with("sh\0"), "the wrapper hands over its process: {command}");
    });
}

#[test]
fn manual_1_status() {
    let server = example(1, "server.js");
    deployed(&[("server.js", &server)], &example(1, "deploy"), |stage, dir| {
        let (status, log) = stage.run(dir, &example(1, "status"));
        assert_eq!(status, 0, "{log}");
        let lines: Vec<&str> = log.lines().collect();
        let [whole, cut] = lines[..] else { panic!("{log}") };
        let fields: Vec<&str> = whole.split('\t').collect();
        let pid = stage.served_pid().unwrap().to_string();
        assert_eq!(fields.len(), 11, "{whole}");
        assert_eq!(fields[..3], [stage.address().as_str(), "4", &pid]);
        assert_eq!(fields[5..7], ["serving", "shared"]);
        // The test keeps what the deploy says in a file, and so that is the log.
        assert!(fields[9].starts_with(stage.sandbox.path("log").to_str().unwrap()), "{whole}");
        assert_eq!(fields[10], "node server.js");
        assert_eq!(cut, format!("4\t{pid}"));
    });
}

#[test]
fn manual_1_reload() {
    let server = example(1, "server.js");
    deployed(&[("server.js", &server)], &example(1, "deploy"), |stage, dir| {
        for generation in 5..=7 {
            let old = stage.served_pid().unwrap();
            let (status, log) = stage.run(dir, &example(1, "reload"));
            assert_eq!(status, 0, "{log}");
            assert_eq!(stage.answer(generation).1, [generation, stage.served_pid().unwrap() as u64]);
            assert!(!alive(old));
        }
    });
}

/// The link is changed, and the reload runs what it leads to now.
#[test]
fn manual_1_a_link_to_the_current_release() {
    let stage = Stage::new();
    let srv = stage.sandbox.path("shop");
    let lines = example(1, "current").replace("/srv/shop", srv.to_str().unwrap());
    for release in ["41", "42"] {
        let dir = srv.join("releases").join(release);
        std::fs::create_dir_all(&dir).unwrap();
        let server = format!("require('http').createServer((q, r) => r.end('{release}')).listen({});", stage.port);
        std::fs::write(dir.join("server.js"), server).unwrap();
    }
    std::os::unix::fs::symlink("releases/41", srv.join("current")).unwrap();
    let [start, link, reload] = lines.lines().collect::<Vec<_>>()[..] else { panic!("{lines}") };
    for (line, serves) in [(start, "41"), (link, "41"), (reload, "42")] {
        let (status, log) = stage.run(stage.sandbox.path("").as_path(), line);
        assert_eq!(status, 0, "{log}");
        assert_eq!(super::body(stage.port).as_deref(), Some(serves), "{line}");
    }
    stage.end();
}

#[test]
fn manual_1_json() {
    let server = example(1, "server.js");
    deployed(&[("server.js", &server)], &example(1, "log"), |stage, dir| {
        let (status, log) = stage.run(dir, "serverswap --status --json");
        assert_eq!((status, log.starts_with("[{\"address\":")), (0, true), "{log}");
        let jq = std::process::Command::new("jq").arg("--version").output();
        if jq.is_err() {
            return eprintln!("there is no jq here");
        }
        let (status, log) = stage.run(dir, &example(1, "json"));
        assert_eq!((status, log.trim()), (0, dir.join("server.log").to_str().unwrap()), "{log}");
    });
}

#[test]
fn manual_1_takedown() {
    let server = example(1, "server.js");
    deployed(&[("server.js", &server)], &example(1, "deploy"), |stage, dir| {
        let old = stage.served_pid().unwrap();
        let (status, log) = stage.run(dir, &example(1, "takedown"));
        assert_eq!((status, alive(old)), (0, false), "{log}");
        // Its supervisor clears up when it has said so.
        until("the pidfile is gone", || stage.served_pid().is_none());
    });
}

#[test]
fn manual_1_kill() {
    let server = example(1, "server.js");
    let stage = Stage::new();
    let dir = stage.generation(1, &[("server.js", &server)]);
    let mut running = stage.start(&dir, FOREGROUND);
    stage.answer(1);
    running.says("is up");
    let old = stage.served_pid().unwrap();
    let (status, log) = stage.run(&dir, &example(1, "kill"));
    assert_eq!(status, 0, "{log}");
    assert_eq!(running.wait(), 143, "its serverswap tells its status");
    assert!(!alive(old));
    stage.sandbox.assert_clean();
}

#[test]
fn manual_1_a_log() {
    let server = format!("console.log('begins');\n{}", example(1, "server.js"));
    deployed(&[("server.js", &server)], &example(1, "log"), |_, dir| {
        let log = |dir: &Path| std::fs::read_to_string(dir.join("server.log")).unwrap();
        assert_eq!(log(dir), "begins\n");
        // Once the deploy is over, its serverswap speaks there too.
        let before = log(&dir.with_file_name("g3"));
        assert!(before.starts_with("begins\n") && before.contains(" was replaced by "), "{before}");
    });
}

#[test]
fn manual_1_the_unit_is_the_one_that_is_installed() {
    let text = block(1, "systemd: needs a service manager");
    let unit = file("src/install/systemd/serverswap@.service");
    assert!(text.contains("/etc/serverswap/shop.env") && unit.contains("\nEnvironmentFile=/etc/serverswap/%i.env\n"));
    assert!(text.contains("'COMMAND=") && unit.contains("serverswap $OPTIONS -- $COMMAND\n"));
    assert!(
        text.contains("reload serverswap@shop")
            && unit.contains("\nExecReload=@BINDIR@/serverswap --reload --fresh @${MAINPID}\n")
    );
    let page = manual(1);
    let seconds = unit.lines().find_map(|line| line.strip_prefix("TimeoutStartSec=")).unwrap();
    assert!(page.contains(&format!("{seconds} seconds there")), "{seconds}");
}

#[test]
fn manual_7_a_program_behind_a_shell_script() {
    three_swaps(&[("server.sh", &example(7, "short.sh"))], "serverswap sh server.sh", Tells::Pid);
}

#[test]
fn manual_7_a_program_behind_a_shell_script_alone() {
    alone("server.sh", &example(7, "short.sh"), "sh");
}

#[test]
fn manual_7_shell() {
    three_swaps(&[("server.sh", &example(7, "server.sh"))], "serverswap sh server.sh", Tells::Pid);
}

#[test]
fn manual_7_shell_alone() {
    alone("server.sh", &example(7, "server.sh"), "sh");
}

#[test]
fn manual_7_python() {
    three_swaps(&[("server.py", &example(7, "server.py"))], "serverswap python3 server.py", Tells::Pid);
}

#[test]
fn manual_7_python_alone() {
    alone("server.py", &example(7, "server.py"), "python3");
}

#[test]
fn manual_7_python_behind_a_wrapper_that_closes_descriptors() {
    let wrapper = "import os, sys; os.closerange(3, 256); os.execvp('python3', ['python3', 'server.py'])";
    let files = [("server.py", example(7, "server.py")), ("wrapper.py", wrapper.to_owned())];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    three_swaps(&files, "serverswap python3 wrapper.py", Tells::Pid);
}

#[test]
fn manual_7_node() {
    three_swaps(&[("server.js", &example(7, "raw.js"))], "serverswap server.js", Tells::Pid);
}

#[test]
fn manual_7_node_alone() {
    alone("server.js", &example(7, "raw.js"), "node");
}

/// A request that has begun is finished by the old server, while the new one serves already.
fn finishes_what_it_has(name: &str, content: &str, command_line: &str) {
    let stage = Stage::new();
    let files = [(name, content)];
    let mut old = stage.start(&stage.generation(1, &files), command_line);
    let (_, numbers) = stage.answer(1);
    old.says("is up");
    let mut request = TcpStream::connect(("127.0.0.1", stage.port)).unwrap();
    request.set_read_timeout(Some(DEADLINE)).unwrap();
    request.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap();
    // One after the other is accepted: whoever answers this has the one before.
    assert_eq!(stage.answer(1).1, numbers);
    let mut new = stage.start(&stage.generation(2, &files), command_line);
    stage.answer(2);
    new.says("is up");
    assert!(!old.ended(), "{}", old.log());
    request.write_all(b"Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    request.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(&format!("\r\n\r\n1 {}", numbers[1])), "{answer}");
    assert_eq!(old.wait(), 0, "{}", old.log());
    assert!(!old.log().contains("is killed"), "{}", old.log());
    stage.end();
    assert_eq!(new.wait(), 0, "{}", new.log());
}

#[test]
fn manual_7_python_finishes_what_it_has() {
    finishes_what_it_has("server.py", &example(7, "server.py"), "serverswap --kill-after 60 python3 server.py");
}

#[test]
fn manual_7_node_finishes_what_it_has() {
    finishes_what_it_has("server.js", &example(7, "raw.js"), "serverswap --kill-after 60 node server.js");
}

/// No example binds before its GO: the old server takes a second to let go, and an example that does not
/// wait for it would meet EADDRINUSE.
#[test]
fn examples_wait_for_their_go() {
    let files = [
        ("server.js", example(1, "server.js"), "serverswap node server.js"),
        ("none", String::new(), &*example(1, "wrapper")),
        ("server.sh", example(7, "short.sh"), "serverswap sh server.sh"),
        ("server.sh", example(7, "server.sh"), "serverswap sh server.sh"),
        ("server.py", example(7, "server.py"), "serverswap python3 server.py"),
        ("server.js", example(7, "raw.js"), "serverswap node server.js"),
        ("server.js", readme_server("js"), "serverswap node server.js"),
        ("server.py", readme_server("python"), "serverswap python3 server.py"),
        ("server.sh", readme_server("sh"), "serverswap sh server.sh"),
    ];
    std::thread::scope(|scope| {
        for (name, content, command_line) in &files {
            scope.spawn(move || {
                let stage = Stage::new();
                let mut old = Raw::start(&stage, "old", "--kill-after 60");
                old.serves(&stage);
                let new = stage.start(&stage.generation(2, &[(name, content)]), command_line);
                old.hears(&format!("TAKEDOWN {}", stage.address()));
                // What an old server does that takes its time; nothing waits for this to be over.
                std::thread::sleep(Duration::from_secs(1));
                old.releases(&stage);
                until(&format!("the new one is up: {}", new.log()), || {
                    assert!(!new.log().contains("before it was up"), "{content}\n{}", new.log());
                    new.log().contains("is up (generation")
                });
                old.order("exit");
                old.ends_with(0);
                // Its generation in the environment is a guess here, where the commands differ.
                until("the new one answers", || super::body(stage.port).is_some());
                stage.end();
            });
        }
    });
}

fn readme_server(language: &str) -> String {
    let readme = file("README.md");
    let servers = fenced(chapter(&readme, "Your server in five lines"));
    let (_, server) = servers.into_iter().find(|(l, _)| l == language).expect("a server in this language");
    assert!(server.lines().filter(|line| !line.starts_with("#!")).count() <= 5, "five lines:\n{server}");
    server
}

#[test]
fn readme_an_unmodified_server_and_the_three_terminals() {
    let readme = file("README.md");
    let blocks: Vec<String> = fenced(chapter(&readme, "Three terminals")).into_iter().map(|(_, text)| text).collect();
    let [plain, first, _, third, answers, ..] = &blocks[..] else { panic!("{blocks:?}") };
    let commands: Vec<&str> = [first, third].iter().map(|text| text.lines().next().unwrap()).collect();
    assert_eq!(commands, ["$ serverswap node plain.js"; 2]);
    assert!(!plain.contains("serverswap") && !plain.contains("SERVERSWAP_FD"), "an unmodified server: {plain}");
    three_swaps(&[("plain.js", plain)], commands[0].trim_start_matches("$ "), Tells::Pid);

    let stage = Stage::new();
    // The README with the port and the pids of today says what the terminals say.
    let marked = |text: &String| stage.own(&text.replace("4242", "@1").replace("4311", "@2"));
    let mut shown = [first, third, answers].map(marked);
    let mut answered = Vec::new();
    for generation in [1, 2] {
        let dir = stage.generation(generation, &[("plain.js", plain)]);
        let running = stage.start(&dir, commands[0].trim_start_matches("$ "));
        let (body, numbers) = stage.answer(generation);
        shown = shown.map(|text| text.replace(&format!("@{generation}"), &numbers[1].to_string()));
        let message = shown[generation as usize - 1].lines().nth(1).unwrap();
        assert!(message.starts_with("serverswap: "));
        running.says(&format!("{message}\n"));
        answered.push(body);
    }
    let lines: Vec<&str> = shown[2].lines().collect();
    assert!(answered.iter().all(|body| lines.contains(&body.as_str())), "{answered:?} and {lines:?}");
    assert!(lines.iter().all(|line| answered.iter().any(|body| body == line)), "{answered:?} and {lines:?}");
    stage.end();
}

#[test]
fn readme_a_deploy_that_fails() {
    let readme = file("README.md");
    let shown = fenced(chapter(&readme, "Your deploy")).into_iter().find(|(_, text)| text.starts_with("$ ")).unwrap().1;
    let stage = Stage::new();
    let dir = stage.generation(1, &[("server.js", "throw new Error('no database')\n")]);
    // What the test gives it as its output is a file, and so would be where it writes.
    let log = dir.join("a log");
    let (command, rest) = shown.split_once('\n').unwrap();
    let command = command.trim_start_matches("$ ").replace("-d", "-d --log 'a log'");
    let (status, said) = stage.run(&dir, &command);
    assert_eq!(status, 1, "{said}");
    let pid = said.split(" up to those of server ").nth(1).unwrap().split(':').next().unwrap();
    let rest = rest.replace("4407", pid).replace("/srv/shop", dir.to_str().unwrap());
    let rest = rest.replace("/var/log/serverswap/node-server.js.log", log.to_str().unwrap());
    let lines = rest.lines().filter(|line| *line != "...");
    assert!(lines.eq(said.lines().take(5)), "{rest}\n{said}");
    stage.sandbox.assert_clean();
}

#[test]
fn readme_a_hold_that_is_undone() {
    let readme = file("README.md");
    let blocks = fenced(chapter(&readme, "A few clients first, and a way back"));
    let shown = blocks.into_iter().find(|(_, text)| text.starts_with("$ ")).unwrap().1;
    let stage = Stage::new();
    let dir = stage.generation(1, &[("server.js", &example(1, "server.js"))]);
    assert_eq!(stage.run(&dir, &example(1, "deploy")).0, 0);
    let log = dir.join("a log");
    let mut said = String::new();
    for command in shown.lines().filter_map(|line| line.strip_prefix("$ ")) {
        said += &format!("$ {command}\n");
        let (status, text) = stage.run(&dir, &command.replace("-d", "-d --drain 0.5 --log 'a log'"));
        assert_eq!(status, 0, "{text}");
        said += &text;
    }
    let pid = said.split(" server ").nth(1).unwrap().split(' ').next().unwrap();
    let shown = stage.own(&shown).replace("4311", pid);
    let shown = shown.replace("/var/log/serverswap/node-server.js.log", log.to_str().unwrap());
    // In the run directory of the machine nobody has to say where that is.
    let own = format!("--run-dir '{}' ", stage.sandbox.run_dir().display());
    assert_eq!(stage.own(&said).replace(&own, ""), shown);
    stage.is_alone(1);
    stage.end();
}

#[test]
fn readme_node() {
    three_swaps(&[("server.js", &readme_server("js"))], "serverswap node server.js", Tells::Pid);
}

#[test]
fn readme_an_unmodified_server_in_python() {
    let command_line = "serverswap python3 -m http.server 8080";
    assert!(file("README.md").contains(command_line));
    three_swaps(&[], command_line, Tells::Nothing);
}

#[test]
fn readme_python() {
    three_swaps(&[("server.py", &readme_server("python"))], "serverswap python3 server.py", Tells::Nothing);
}

#[test]
fn readme_shell() {
    three_swaps(&[("server.sh", &readme_server("sh"))], "serverswap sh server.sh", Tells::Nothing);
}

/// The commands of the README are the examples of the manual, and so are run.
#[test]
fn readme_commands_are_those_of_the_manual() {
    let readme = file("README.md");
    let chapters = ["Your deploy", "A few clients first, and a way back"];
    let commands: Vec<String> = chapters
        .into_iter()
        .flat_map(|heading| fenced(chapter(&readme, heading)))
        .filter(|(language, _)| language == "sh")
        .flat_map(|(_, text)| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .map(|line| line.split("    #").next().unwrap().trim().to_owned())
        .collect();
    assert_eq!(commands.len(), 8, "{commands:?}");
    let manual: Vec<String> = literal_blocks(&manual(1))
        .into_iter()
        .flat_map(|(_, t)| t.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    for command in commands {
        assert!(manual.contains(&command), "the manual has no example {command:?}");
    }
}
