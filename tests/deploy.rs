//! What a deploy script, a terminal and a service manager see: output and its log, why a version failed, reloads, waiting,
//! and the places where a user's servers are.

mod common;

use common::{Running, SERVERSWAP, Sandbox, alive, answered_by, get, kill, plain_server, until};
use nix::libc;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A shell command in the sandbox in which `$S` is serverswap and `$P` plain-server; ended by its own end of output, as a
/// caller reads it over a pipe: status, output.
fn piped(sandbox: &Sandbox, script: &str) -> (i32, String) {
    let mut command = sandbox.command("timeout");
    command.args(["50", "sh", "-c", script]).env("S", SERVERSWAP).env("P", plain_server());
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

/// A server that says what its environment and its directory are.
const TELLS: &str = "
import http.server, os, sys
port = int(sys.argv[1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = '%s %s %d' % (os.environ.get('V', '-'), os.getcwd(), os.getpid())
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *rest):
        pass
http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler).serve_forever()
";

fn body(port: u16) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.split("\r\n\r\n").nth(1)?.to_owned())
}

fn lives(running: &mut Running) -> bool {
    !running.ended()
}

// Output.

#[test]
fn a_deploy_lets_go_of_every_file_of_its_caller() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    for (script, says) in [
        ("out=$($S -d --log log $P :PORT 2>&1); echo \"status $?: $out\"", "status 0"),
        ("{ $S -d --log log $P :PORT; echo status $?; } 2>&1 | tee copy", "status 0"),
        ("exec 7>held; flock 7; $S -d --log log $P :PORT; exec 7>&-; flock -n held echo unlocked", "unlocked"),
        ("$S -d --log log --ready-timeout 1 $P hang 2>&1 | cat; echo over", "not up in time"),
    ] {
        let (status, text) = piped(&sandbox, &script.replace("PORT", &port.to_string()));
        assert!(status == 0 && text.contains(says), "{script}: {status} {text}");
    }
    // What the server and its supervisor hold is nobody else's.
    let supervisor: i32 = sandbox.status()[0][3].parse().unwrap();
    let log = sandbox.path("log");
    for pid in [supervisor, get(port).unwrap().pid] {
        for (fd, is_log) in [(0, false), (1, true), (2, true)] {
            let file = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
            assert_eq!(file, if is_log { log.as_path() } else { Path::new("/dev/null") }, "{pid}: {fd}");
        }
    }
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("was replaced by"), "{log}");
    sandbox.take_down(&format!(":{port}"));
}

/// A pipe that its caller asked for stays, and so does a regular file.
#[test]
fn output_goes_where_the_caller_says() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let script = "echo to-output; echo to-error >&2; exec $P";
    let (status, text) = piped(
        &sandbox,
        &format!(
            "$S -d sh -c '{script} :{port}' >out 2>err; cat out err; $S -d --log - sh -c '{script} :{port}' >out2 2>err2; cat err2"
        ),
    );
    assert!(status == 0 && text.contains("to-output") && text.contains("to-error"), "{status} {text}");
    assert!(!text.contains("the output goes to"), "{text}");
    assert_eq!(fs::read_to_string(sandbox.path("out2")).unwrap(), "to-output\n");
    let shown = &sandbox.status()[0][9];
    assert_eq!(Path::new(shown), sandbox.path("err2"));
    sandbox.take_down(&format!(":{port}"));
    // In the foreground too, and with a log that cannot be had nothing starts.
    let mut running = sandbox.plain(&["--log", "log"], &[&format!(":{port}")]);
    answered_by(port, 1);
    running.says("is up");
    running.signal(libc::SIGTERM);
    running.wait();
    for log in ["no/such/log", ".", "fifo"] {
        let _ = nix::unistd::mkfifo(&sandbox.path("fifo"), nix::sys::stat::Mode::S_IRWXU);
        let (status, text) = sandbox.run([Path::new("--log"), &sandbox.path(log), &plain_server()]);
        assert!(
            status == 125 && text.contains("unable to open the log") && text.contains("nothing was started"),
            "{text}"
        );
    }
}

/// As another user than root: below its home.
#[test]
fn a_server_in_the_background_has_a_log_by_default() {
    let sandbox = Sandbox::shared();
    let (port, home) = (sandbox.port(), sandbox.path("home"));
    fs::create_dir(&home).unwrap();
    let script = sandbox.file("server.sh", &format!("echo begins; exec {} :{port}", plain_server().display()));
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        for path in [&home, &script, &sandbox.path("")] {
            chown(path, Some(65534), Some(65534)).unwrap();
        }
        fs::set_permissions(sandbox.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut state = home.join("state/serverswap");
    for variable in ["XDG_STATE_HOME", "HOME"] {
        let mut command = sandbox.command(SERVERSWAP);
        command.env_remove("SERVERSWAP_RUN_DIR").env_remove("XDG_STATE_HOME").env("HOME", &home);
        if variable == "XDG_STATE_HOME" {
            command.env(variable, home.join("state"));
        } else {
            state = home.join(".local/state/serverswap");
        }
        if is_root {
            command.uid(65534).gid(65534);
        }
        command.args(["-d", "sh"]).arg(&script).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let log = state.join("sh-server.sh.log");
        assert!(output.status.success() && text.contains(&format!("the output goes to {}", log.display())), "{text}");
        assert_eq!(fs::read_to_string(&log).unwrap(), "begins\n");
        let pid = get(port).unwrap().pid;
        assert_eq!(fs::read_to_string(state.join(format!("run/{port}.pid"))).unwrap(), format!("{pid}\n"));
        // Root sees it, and takes it down.
        let mut command = sandbox.command(SERVERSWAP);
        command.arg("--run-dir").arg(state.join("run")).args(["--takedown", &format!("@{pid}")]);
        if is_root {
            let status = sandbox.run([Path::new("--run-dir"), &state.join("run"), Path::new("--status")]);
            assert!(status.0 == 0 && status.1.contains(&pid.to_string()), "{status:?}");
        }
        assert!(command.output().unwrap().status.success());
        until("it is gone", || !alive(pid));
    }
}

// Why a version failed.

#[test]
fn the_last_lines_of_a_server_that_failed_are_shown() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let script = sandbox.file("server.sh", &format!("exec {} :{port}\n", plain_server().display()));
    let path = script.to_str().unwrap();
    let good = fs::read_to_string(&script).unwrap();
    let (status, text) = piped(&sandbox, &format!("$S -d --log log sh {path}"));
    assert_eq!(status, 0, "{text}");
    let first = get(port).unwrap().pid;
    // While somebody else writes to the log too.
    fs::write(&script, "i=0; while [ $i -lt 30 ]; do i=$((i + 1)); echo line $i; done; exit 3\n").unwrap();
    let shown: Vec<String> = (11..=30).map(|i| format!("| line {i}")).collect();
    for command in [format!("$S -d --log log sh {path}"), format!("$S --reload :{port}")] {
        let (status, text) = piped(&sandbox, &command);
        assert_eq!(status, 3, "{text}");
        let lines: Vec<&str> = text.lines().filter_map(|line| line.split("serverswap: ").nth(1)).collect();
        assert!(lines.iter().any(|line| line.contains("ended with status 3 before it was up")), "{text}");
        assert_eq!(
            lines.iter().filter(|line| line.starts_with("| ")).collect::<Vec<_>>(),
            shown.iter().collect::<Vec<_>>()
        );
        assert!(text.contains(&sandbox.path("log").display().to_string()), "{text}");
    }
    // A control character drives no terminal, and what was written before is not of this server.
    fs::write(&script, "printf 'a\\033[2Jb\\n'; exit 4\n").unwrap();
    let (status, text) = piped(&sandbox, &format!("$S -d --log log sh {path}"));
    assert!(status == 4 && text.contains("| a?[2Jb\n") && !text.contains("| line"), "{text}");
    fs::write(&script, "exit 5\n").unwrap();
    let (_, text) = piped(&sandbox, &format!("$S -d --log log sh {path}"));
    assert!(text.contains("wrote nothing") && !text.contains("| "), "{text}");
    // One that is up is not shown.
    fs::write(&script, &good).unwrap();
    let (status, text) = piped(&sandbox, &format!("$S --reload :{port}"));
    assert!(status == 0 && !text.contains("| "), "{text}");
    assert_ne!(get(port).unwrap().pid, first);
    sandbox.take_down(&format!(":{port}"));
}

/// The server that still serves writes to the same log all the time.
#[test]
fn what_another_server_writes_after_it_is_not_taken_for_its_last_lines() {
    let sandbox = Sandbox::shared();
    let chatty = sandbox.serverswap(["--log", "log", "sh", "-c", "while sleep 0.001; do echo chatty; done"]);
    let log = sandbox.path("log");
    until("it writes", || fs::read_to_string(&log).is_ok_and(|text| text.contains("chatty")));
    for _ in 0..5 {
        let script = "echo 'the reason'; sleep 0.2; exit 1";
        let (status, text) = piped(&sandbox, &format!("$S -d --log log sh -c \"{script}\""));
        let last = text.lines().rfind(|line| line.starts_with("serverswap: | "));
        assert!(status == 1 && last == Some("serverswap: | the reason"), "{text}");
    }
    drop(chatty);
}

#[test]
fn a_server_that_hangs_is_told_what_it_was_waited_for() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let deaf = common::odd("silent", port, &[]);
    let (gate, hold) = sandbox.gate("before-listen");
    for (words, why) in [
        (vec!["hang"], "it listens on nothing yet".to_owned()),
        (vec![&address, &hold], format!("it does not listen on {address} yet")),
    ] {
        let mut running = sandbox.plain(&["-d", "--ready-timeout", "1"], &words);
        assert!(running.wait() == 124 && running.log().contains(&why), "{}", running.log());
        assert!(!running.log().contains("the old one"), "{}", running.log());
    }
    drop(gate);
    let words: Vec<&str> = ["-d", "--ready-timeout", "6"].into_iter().chain(deaf.iter().map(String::as_str)).collect();
    let (status, log) = sandbox.run(words);
    assert!(status == 124 && log.contains(&format!("it listens on 127.0.0.1:{port} but accepts nothing")), "{log}");
}

#[test]
fn a_stranger_that_has_the_port_is_named() {
    for sandbox in [Sandbox::new(), Sandbox::shared()] {
        let port = sandbox.port();
        let mut stranger = sandbox.command("python3");
        stranger.args([
            "-c",
            "import socket, time; s = socket.create_server(('127.0.0.1', int('PORT'))); time.sleep(1000)"
                .replace("PORT", &port.to_string())
                .as_str(),
        ]);
        let mut stranger = sandbox.start(stranger);
        until("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        let address = format!("127.0.0.1:{port}");
        let named = format!("{address}: the port is held by pid {} (", stranger.pid());
        // Both by itself, where its bind fails, and where it says READY.
        for words in [&[&address, "mute"][..], &[&address]] {
            let mut running = sandbox.plain(&["-d"], words);
            assert_ne!(running.wait(), 0);
            let log = running.log();
            // Without READY and without a watch nobody knows what it wanted.
            let knows = sandbox.is_shared() || words.len() == 1;
            assert_eq!(
                log.contains(&named) && log.contains("which serverswap did not start; stop it once"),
                knows,
                "{log}"
            );
            assert!(!log.contains("the old one still serves"), "{log}");
        }
        assert!(lives(&mut stranger));
        kill(stranger.pid(), libc::SIGKILL);
        stranger.wait();
    }
}

#[test]
fn the_end_of_a_server_says_by_whom_it_was_replaced() {
    common::in_both_orders(|sandbox| {
        let port = sandbox.port();
        let address = format!(":{port}");
        let (mut first, pid) = sandbox.serving(port, &[], &[&address]);
        let (mut second, next) = {
            let running = sandbox.plain(&[], &[&address]);
            running.says("is up");
            (running, answered_by(port, 2).pid)
        };
        assert_eq!(first.wait(), 0);
        assert!(first.log().contains(&format!("server {pid} was replaced by {next}")), "{}", first.log());
        sandbox.take_down(&address);
        assert_eq!(second.wait(), 0);
        assert!(second.log().contains(&format!("server {next} was taken down")), "{}", second.log());
    });
}

/// What it said before it died is not believed.
#[test]
fn a_server_that_has_ended_is_not_up() {
    let sandbox = Sandbox::shared();
    for _ in 0..20 {
        let (status, log) = sandbox.run(["-d", "sh", "-c", "echo UP >&$SERVERSWAP_FD; exit 3"]);
        assert!(status == 3 && !log.contains("is up") && log.contains("before it was up"), "{status} {log}");
    }
}

// Reloads.

#[test]
fn a_server_is_named_by_its_processes() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (mut first, pid) = sandbox.serving(port, &[], &[&address]);
    let front = first.pid();
    // Its main process, its supervisor; after a reload its front too.
    for name in [pid, front] {
        let (status, log) = sandbox.run(["--status", &format!("@{name}")]);
        assert!(status == 0 && log.contains(&format!("\t{pid}\t")), "{log}");
    }
    for generation in 2..5 {
        let (status, log) = sandbox.run(["--reload", &format!("@{front}")]);
        assert_eq!(status, 0, "{log}");
        answered_by(port, generation);
    }
    let (status, log) = sandbox.run(["--reload", &format!("@{pid}")]);
    assert!(status == 125 && log.contains("no server of this run directory has this process"), "{log}");
    let (status, log) = sandbox.run(["--takedown", &format!("@{}", std::process::id())]);
    assert_eq!(status, 125, "{log}");
    let (status, log) = sandbox.run(["--takedown", &format!("@{front}")]);
    assert_eq!((status, first.wait()), (0, 0), "{log}");
    sandbox.assert_clean();
}

#[test]
fn a_reload_follows_the_link_of_its_directory_and_may_have_fresh_variables() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    for release in ["one", "two", "three"] {
        fs::create_dir(sandbox.path(release)).unwrap();
        fs::write(sandbox.path(release).join("server.py"), TELLS).unwrap();
    }
    let current = sandbox.path("current");
    let link = |release: &str| {
        let _ = fs::remove_file(&current);
        symlink(release, &current).unwrap();
    };
    let told = |variable: &str, release: &str| {
        let text = body(port).unwrap();
        let expected = format!("{variable} {} ", sandbox.path(release).display());
        assert!(text.starts_with(&expected), "{text}, and not {expected}");
    };
    link("one");
    let start = format!("cd current && V=a $S -d --log ../log --run-dir ../run python3 server.py {port}");
    let (status, text) = piped(&sandbox, &start);
    assert_eq!(status, 0, "{text}");
    told("a", "one");
    link("two");
    assert_eq!(piped(&sandbox, &format!("V=ignored $S --reload {port}")).0, 0);
    told("a", "two");
    let fresh = format!("cd three && V=b $S --reload --fresh {port}");
    assert_eq!(piped(&sandbox, &fresh).0, 0);
    told("b", "three");
    // What it was started with last is what it is started with again.
    assert_eq!(piped(&sandbox, &format!("$S --reload {port}")).0, 0);
    told("b", "three");
    // A fresh one that fails changes nothing of that.
    let (status, text) = piped(&sandbox, &format!("cd / && V=c $S --reload --fresh {port}"));
    assert!(status == 2 && text.contains("can't open file") && text.contains("the old one still serves"), "{text}");
    told("b", "three");
    assert_eq!(piped(&sandbox, &format!("V=c $S --reload {port}")).0, 0);
    told("b", "three");
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

/// sd_listen_fds(3): in the server that was started first, and in that of a reload.
#[test]
fn sockets_of_a_service_manager_are_the_servers() {
    let sandbox = Sandbox::shared();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let fd = listener.as_raw_fd();
    let script = "import os, sys, time
print('fds', os.environ['LISTEN_FDS'], os.environ['LISTEN_PID'] == str(os.getpid()), os.fstat(3).st_ino, flush=True)
print('UP', file=open(int(os.environ['SERVERSWAP_FD']), 'w'), flush=True)
time.sleep(1000)";
    let mut command = sandbox.command("sh");
    command.args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"", "sh", SERVERSWAP, "python3", "-c", script]);
    // SAFETY: dup2 is async-signal-safe.
    unsafe {
        command.pre_exec(move || match libc::dup2(fd, 3) {
            3 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut running = sandbox.start(command);
    running.says("is up");
    running.says("fds 1 True");
    let count = |log: &str| log.matches("fds 1 True").count();
    assert_eq!(count(&running.log()), 1, "{}", running.log());
    let (status, log) = sandbox.run(["--reload", &format!("@{}", running.pid())]);
    assert_eq!(status, 0, "{log}");
    assert_eq!(count(&running.log()), 2, "{}", running.log());
    running.signal(libc::SIGTERM);
    running.wait();
    sandbox.assert_clean();
}

#[test]
fn messages_to_the_journal_carry_their_priority() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let script = format!(
        "export JOURNAL_STREAM=$(stat -L -c %d:%i /dev/stderr)
         {SERVERSWAP} -d {} :{port}; {SERVERSWAP} --takedown :{port}; {SERVERSWAP} -d sh -c 'exit 3'; true",
        plain_server().display()
    );
    let mut command = sandbox.command("sh");
    command.args(["-c", &script]);
    let mut running = sandbox.start(command);
    running.wait();
    let log = running.log();
    for line in
        ["<6>serverswap: :PORT: server ", "<6>serverswap: :PORT: taken down", "<3>serverswap: the new server ended"]
    {
        assert!(log.lines().any(|said| said.starts_with(&line.replace("PORT", &port.to_string()))), "{log}");
    }
    sandbox.assert_clean();
}

// Waiting.

/// The old server takes a while to go, once nobody can bring it back.
#[test]
fn who_waits_for_the_new_server_only_does_not_wait_for_the_end_of_the_old_one() {
    common::in_both_orders(|sandbox| {
        let port = sandbox.port();
        let address = format!(":{port}");
        let (gate, hold) = sandbox.gate("before-exit");
        let (mut first, pid) = sandbox.serving(port, &[], &[&address, "takedown", &hold]);
        let mut deploy = sandbox.plain(&["-d", "--wait", "up"], &[&address]);
        assert_eq!(deploy.wait(), 0, "{}", deploy.log());
        let next = get(port).unwrap();
        assert_eq!(next.generation, 2);
        assert!(alive(pid) && lives(&mut first));
        // Nor does the next one.
        let mut third = sandbox.plain(&["-d"], &[&address]);
        answered_by(port, 3);
        assert!(alive(pid) && lives(&mut first));
        gate.reached();
        gate.open();
        assert_eq!((first.wait(), third.wait()), (0, 0));
        sandbox.take_down(&address);
    });
}

#[test]
fn a_terminal_shows_what_is_waited_for() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let (gate, hold) = sandbox.gate("before-listen");
    let deploy = format!("{SERVERSWAP} -d --log log {} :{port} {hold}", plain_server().display());
    let mut command = sandbox.command("script");
    command.args(["-qec", &deploy, "typescript"]);
    let mut running = sandbox.start(command);
    gate.reached();
    running.says(&format!(
        "\r\x1b[Kserverswap: waits for server {}: it does not listen on :{port} yet (",
        sandbox.status()[0][2]
    ));
    gate.open();
    assert_eq!(running.wait(), 0);
    let log = running.log();
    assert!(log.contains(&format!("\r\x1b[Kserverswap: :{port}: server ")), "{log:?}");
    assert!(!log.trim_end().ends_with(" s)"), "{log:?}");
    sandbox.take_down(&format!(":{port}"));
}

#[test]
fn the_status_is_a_table_or_fields_or_json() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let (status, text) = piped(&sandbox, &format!("$S -d --log log $P :{port} 'with \"quotes\"'"));
    assert_eq!(status, 0, "{text}");
    let (_, json) = sandbox.run(["--status", "--json"]);
    let check = "import json, sys; [row] = json.load(sys.stdin); print(row['address'], row['generation'] + 0, row['pid'] + 0, \
         row['supervisor'] + 0, row['state'], row['mode'], row['connections'] + 0, row['log'], row['command'].count('\"'))";
    let mut python = sandbox.command("python3");
    python.args(["-c", check]).stdin(fs::File::open(sandbox.file("json", &json)).unwrap());
    let output = String::from_utf8(python.output().unwrap().stdout).unwrap();
    let fields = &sandbox.status()[0];
    assert_eq!(fields.len(), 11);
    let log = sandbox.path("log").display().to_string();
    assert_eq!(output.trim(), format!(":{port} 1 {} {} serving shared 0 {log} 2", fields[2], fields[3]), "{json}");
    let mut command = sandbox.command("script");
    command.args(["-qec", &format!("stty cols 80; {SERVERSWAP} --status"), "typescript"]);
    let mut running = sandbox.start(command);
    assert_eq!(running.wait(), 0);
    let table = running.log();
    assert!(table.contains("ADDRESS") && table.lines().all(|line| line.trim_end().chars().count() <= 80), "{table}");
    sandbox.take_down(&format!(":{port}"));
}

#[test]
fn the_same_command_that_goes_on_at_another_address_of_the_port_is_named() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let script = sandbox.file("server.sh", &format!("exec {} $HOST:{port}", plain_server().display()));
    let deploy = |host: &str| piped(&sandbox, &format!("HOST={host} $S -d --log log sh {}", script.display()));
    assert_eq!(deploy("127.0.0.1").0, 0);
    let (status, text) = deploy("127.0.0.2");
    let warning =
        format!("127.0.0.2:{port}: warning: an older server of the same command goes on at 127.0.0.1:{port} ");
    assert!(status == 0 && text.contains(&warning), "{text}");
    // Not where it was replaced.
    let (status, text) = piped(
        &sandbox,
        &format!("$S --takedown 127.0.0.2:{port} && HOST=127.0.0.1 $S -d --log log sh {}", script.display()),
    );
    assert!(status == 0 && !text.contains("warning"), "{text}");
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

// Where servers are.

#[test]
fn a_run_directory_that_was_emptied_is_written_again() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (mut first, mut pid) = sandbox.serving(port, &[], &[&address]);
    let empty = || {
        for name in fs::read_dir(sandbox.run_dir()).unwrap().flatten() {
            fs::remove_file(name.path()).unwrap();
        }
    };
    let remove = || fs::remove_dir_all(sandbox.run_dir()).unwrap();
    // Of the record alone too: then the sockets still have their names.
    let records = || fs::remove_file(sandbox.run_dir().join(format!("{pid}.server"))).unwrap();
    for clear in [&empty as &dyn Fn(), &remove, &records] {
        clear();
        assert_eq!(sandbox.status()[0][..3], [address.clone(), "1".into(), pid.to_string()]);
        assert_eq!(sandbox.pidfile(&port.to_string()), Some(pid));
    }
    first.says("its files were removed from the run directory (they are written again)");
    // A start takes it over, and asks nobody for READY.
    for (generation, clear) in [(2, &empty as &dyn Fn()), (3, &remove)] {
        clear();
        let (status, log) = sandbox.deploy(&[&address, "mute"]);
        assert_eq!(status, 0, "{log}");
        assert!(!alive(pid));
        pid = answered_by(port, generation).pid;
    }
    assert_eq!(first.wait(), 0);
    for verb in ["--reload", "--takedown"] {
        remove();
        let (status, log) = sandbox.run([verb, &address]);
        assert_eq!(status, 0, "{log}");
    }
    sandbox.assert_clean();
    fs::remove_dir_all(sandbox.run_dir()).unwrap();
    let (status, log) = sandbox.run(["--status"]);
    assert!(status == 0 && log.contains("does not exist: no server has it"), "{log}");
}

fn pid_namespaces_are_permitted() -> bool {
    let tried = Command::new("unshare").args(["-pf", "--mount-proc", "true"]).output();
    let permitted = tried.is_ok_and(|output| output.status.success());
    if !permitted {
        eprintln!("left out: no pid namespace may be made here");
    }
    permitted
}

/// A pid namespace in which serverswap with plain-server is the first process; and its pid outside.
fn container(sandbox: &Sandbox, port: u16, words: &[&str]) -> (Running, i32) {
    let mut command = sandbox.command("unshare");
    command.args(["-pf", "--mount-proc", SERVERSWAP]).arg(plain_server()).args(words);
    let container = sandbox.start(command);
    answered_by(port, 1);
    container.says("is up");
    let first = common::children(container.pid())[0];
    (container, first)
}

fn deploy_in_container(sandbox: &Sandbox, first: i32, address: &str) -> Running {
    let mut command = sandbox.command("nsenter");
    command.args(["-t", &first.to_string(), "-p", "-m", "--wd=."]);
    command.args([SERVERSWAP, "-d", "--log"]).arg(sandbox.path("log"));
    command.arg(plain_server()).args([address, "takedown"]);
    sandbox.start(command)
}

#[test]
fn the_first_process_of_a_container_stays_for_its_successor() {
    if !pid_namespaces_are_permitted() {
        return;
    }
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (mut container, first) = container(&sandbox, port, &[&address, "takedown"]);
    // A server that tells what it does, and releases its address before it ends, is a good neighbour.
    for generation in 2..5 {
        let mut deploy = deploy_in_container(&sandbox, first, &address);
        assert_eq!(deploy.wait(), 0, "{}", deploy.log());
        answered_by(port, generation);
        container.says("process 1 stays for server");
        assert!(lives(&mut container));
    }
    // It passes signals on, and ends with the status of the last server.
    kill(first, libc::SIGTERM);
    assert_eq!(container.wait(), 0, "{}", container.log());
    assert!(get(port).is_err());
}

#[test]
fn a_container_that_is_stopped_between_two_servers_ends() {
    if !pid_namespaces_are_permitted() {
        return;
    }
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let (gate, before_exit) = sandbox.gate("before-exit");
    let (mut container, first) = container(&sandbox, port, &[&address, "takedown", &before_exit]);
    let mut deploy = deploy_in_container(&sandbox, first, &address);
    gate.reached();
    // The server of process 1 is replaced, and has not ended: the signal means its successor too.
    kill(first, libc::SIGTERM);
    gate.open();
    container.wait();
    deploy.wait();
    assert!(get(port).is_err());
}
