//! Bad input, and what it gets: a clear line, the right status, and nothing lost.

mod common;

use common::{Running, Sandbox, answered_by, get, plain_server, until};
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A server that has nothing to do with the bad input, and must not hear of it.
struct Scene {
    sandbox: Sandbox,
    port: u16,
    address: String,
    old: Running,
    pid: i32,
}

impl Scene {
    fn new() -> Scene {
        let sandbox = Sandbox::new();
        let port = sandbox.port();
        let address = format!(":{port}");
        let old = sandbox.plain(&[], &[&address]);
        let pid = answered_by(port, 1).pid;
        old.says("is up");
        Scene { sandbox, port, address, old, pid }
    }

    fn untouched(&mut self) {
        assert_eq!(get(self.port).map(|answer| answer.pid), Ok(self.pid));
        assert!(!self.old.ended(), "{}", self.old.log());
    }

    /// `serverswap WORDS...` fails with one line that holds the text, and the old server does not notice.
    fn refused<A: AsRef<OsStr> + std::fmt::Debug>(&mut self, words: &[A], status: i32, text: &str) {
        let (code, log) = self.sandbox.run(words);
        assert_eq!(code, status, "{words:?}: {log}");
        one_line(&log, text);
        self.untouched();
    }

    /// The control socket of the old server.
    fn socket(&self) -> PathBuf {
        self.sandbox.run_dir().join(format!("{}-1.sock", self.old.pid()))
    }

    /// The old server can still be replaced, and nothing is left.
    fn end(mut self) {
        let (status, log) = self.sandbox.deploy(&[&self.address, "takedown"]);
        assert_eq!(status, 0, "{log}");
        assert_eq!(get(self.port).unwrap().generation, 2);
        assert_eq!(self.old.wait(), 0);
        self.sandbox.take_down(&self.address);
    }
}

fn one_line(log: &str, text: &str) {
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.starts_with("serverswap: ") && log.ends_with('\n'), "{log}");
    assert!(log.contains(text), "{text:?} is not in: {log}");
    assert!(!log.trim_end().contains(char::is_control), "{log:?}");
}

#[test]
fn bad_calls() {
    let mut scene = Scene::new();
    let server = plain_server();
    let server = server.to_str().unwrap();
    scene.refused::<&str>(&[], 125, "COMMAND is missing");
    scene.refused(&["-d"], 125, "COMMAND is missing");
    scene.refused(&["--", ""], 125, "COMMAND is empty");
    scene.refused(&["--no-such-option", server], 125, "--no-such-option");
    scene.refused(&["-z", server], 125, "-z");
    scene.refused(&["-d\n\x1b[31m", server], 125, "");
    for time in ["-1", "-0.1", "31536001", "1e9", "inf", "NaN", "", "ten", "0x10", "1,5"] {
        scene.refused(&["--kill-after", time, server], 125, "");
        scene.refused(&[&format!("--ready-timeout={time}"), server], 125, "");
    }
    for address in ["0", ":0", ":70000", "70000", "127.0.0.1:0", "[::1]:65536", "a b", ""] {
        scene.refused(&["--takedown", address], 125, "bad address");
        scene.refused(&["--reload", address], 125, "bad address");
        scene.refused(&["--status", address], 125, "bad address");
    }
    for verb in ["--takedown", "--reload", "--status"] {
        scene.refused(&[verb, "No-such-server"], 125, "No-such-server: no server (nothing was done)");
    }
    scene.refused(&["--takedown"], 125, "ADDRESS is missing");
    scene.refused(&["--stop-signal", "HUPP", server], 125, "HUPP");
    scene.refused(&["--client", "perl"], 125, "perl");
    scene.refused(&[OsStr::from_bytes(b"--run-dir="), OsStr::new(server)], 125, "empty");
    scene.refused(&[OsStr::new("--takedown"), OsStr::from_bytes(b"\xff\xfe")], 125, "no server");
    scene.end();
}

#[test]
fn commands_that_cannot_be_executed() {
    let mut scene = Scene::new();
    let text = scene.sandbox.file("text", "no program");
    let script = scene.sandbox.file("script", "#!/no/such/interpreter\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let (text, script) = (text.to_str().unwrap(), script.to_str().unwrap());
    let cases = [
        ("/no/such/program", 127),
        ("no-such-program", 127),
        (text, 126),
        ("/tmp", 126),
        (script, 127),
        ("/dev/null/x", 126),
    ];
    for (command, status) in cases {
        for detach in [None, Some("-d")] {
            let words: Vec<&str> = detach.into_iter().chain([command]).collect();
            scene.refused(&words, status, &format!("unable to execute {command}: "));
        }
    }
    scene.end();
}

#[test]
fn run_directories_that_cannot_be_used() {
    let mut scene = Scene::new();
    let server = plain_server();
    let server = server.to_str().unwrap();
    let path = |name: &str| scene.sandbox.path(name).to_str().unwrap().to_owned();
    let (file, link, wide, group, foreign) = (path("file"), path("link"), path("wide"), path("group"), path("foreign"));
    fs::write(&file, "").unwrap();
    symlink(scene.sandbox.run_dir(), &link).unwrap();
    for (dir, mode) in [(&wide, 0o777), (&group, 0o770), (&foreign, 0o755)] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    }
    let long = path(&"x".repeat(100));
    let mut cases = vec![
        ("/no/such/parent".to_owned(), "No such file or directory"),
        ("/proc/serverswap".to_owned(), "No such file or directory"),
        (format!("{file}/run"), "Not a directory"),
        (file, "no directory"),
        (link, "no directory"),
        (wide, "others can write to it"),
        (group, "others can write to it"),
        (long, "too long"),
    ];
    if nix::unistd::geteuid().is_root() {
        chown(&foreign, Some(65534), Some(65534)).unwrap();
        cases.push((foreign, "belongs to another user"));
    }
    for (dir, why) in cases {
        let text = format!("unable to use the run directory {dir}: ");
        let operators = [&["--takedown", "80"][..], &["--reload", "80"]];
        // Root may look at the directory of another user, and finds nothing here.
        let operators = operators.into_iter().filter(|_| !dir.ends_with("foreign"));
        for words in [&["-d", server][..], &[server]].into_iter().chain(operators) {
            let words: Vec<&str> = ["--run-dir", &dir].into_iter().chain(words.iter().copied()).collect();
            scene.refused(&words, 125, &text);
            if !words.contains(&"80") {
                scene.refused(&words, 125, why);
            }
        }
    }
    scene.end();
}

/// Everything that a pidfile can be but should not.
fn vandalise(pidfile: &Path, how: &str, victim: &Path) {
    let _ = fs::remove_file(pidfile);
    match how {
        "is missing" => {}
        "is a symlink" => symlink(victim, pidfile).unwrap(),
        "has a second name" => fs::hard_link(victim, pidfile).unwrap(),
        "holds no pid: text" => fs::write(pidfile, "serverswap\n").unwrap(),
        "holds no pid: empty" => fs::write(pidfile, "").unwrap(),
        "holds no pid: -1" => fs::write(pidfile, "-1\n").unwrap(),
        "holds no pid: 0" => fs::write(pidfile, "0\n").unwrap(),
        "is too large" => fs::write(pidfile, vec![b'1'; 1 << 20]).unwrap(),
        "is no regular file" => nix::unistd::mkfifo(pidfile, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        "belongs to another user" => {
            fs::write(pidfile, format!("{}\n", std::process::id())).unwrap();
            chown(pidfile, Some(65534), None).unwrap();
        }
        // Pid 1 lives, and so does this test: neither is a server.
        "is stale: 1" => fs::write(pidfile, "1\n").unwrap(),
        "is stale: a reused pid" => fs::write(pidfile, format!("{}\n", std::process::id())).unwrap(),
        "is stale: nobody" => fs::write(pidfile, "4194304\n").unwrap(),
        other => panic!("{other}"),
    }
}

const VANDALISM: [&str; 13] = [
    "is missing",
    "is a symlink",
    "has a second name",
    "holds no pid: text",
    "holds no pid: empty",
    "holds no pid: -1",
    "holds no pid: 0",
    "is too large",
    "is no regular file",
    "is stale: 1",
    "is stale: a reused pid",
    "is stale: nobody",
    "belongs to another user",
];

#[test]
fn a_pidfile_that_is_none() {
    let sandbox = Sandbox::new();
    let victim = sandbox.file("victim", "4194304\n");
    let port = sandbox.port();
    let address = format!(":{port}");
    assert_eq!(sandbox.run(["--run-dir", sandbox.run_dir().to_str().unwrap(), "true"]).0, 0);
    for how in VANDALISM {
        if how.starts_with("belongs") && !nix::unistd::geteuid().is_root() {
            continue;
        }
        let pidfile = sandbox.run_dir().join(format!("{port}.pid"));
        vandalise(&pidfile, how, &victim);
        let (status, log) = sandbox.run(["--status", &address]);
        assert_eq!((status, log.lines().last().unwrap().contains("no server")), (125, true), "{how}: {log}");
        assert_eq!(sandbox.run(["--takedown", &address]).0, 125, "{how}");
        let (status, log) = sandbox.deploy(&[&address]);
        assert_eq!(status, 0, "{how}: {log}");
        let warnings = log.lines().filter(|line| line.contains("warning: ")).count();
        let why = how.split(": ").next().unwrap();
        assert_eq!(
            (warnings, log.contains(why)),
            if how == "is missing" { (0, false) } else { (1, true) },
            "{how}: {log}"
        );
        assert_eq!(sandbox.pidfile(&port.to_string()), get(port).ok().map(|answer| answer.pid));
        assert_eq!(fs::read_to_string(&victim).unwrap(), "4194304\n");
        sandbox.take_down(&address);
    }
    // A directory cannot be replaced by rename, and is not ours to remove.
    let pidfile = sandbox.run_dir().join(format!("{port}.pid"));
    fs::create_dir(&pidfile).unwrap();
    let (status, log) = sandbox.deploy(&[&address]);
    assert_eq!((status, log.contains("unable to write its pidfile")), (125, true), "{log}");
    fs::remove_dir(&pidfile).unwrap();
    sandbox.assert_clean();
}

/// The pidfile is for people: a server whose pidfile was lost or changed is found all the same.
#[test]
fn a_living_server_whose_pidfile_was_lost_is_replaced_as_ever() {
    let sandbox = Sandbox::new();
    let victim = sandbox.file("victim", "4194304\n");
    let port = sandbox.port();
    let address = format!(":{port}");
    assert_eq!(sandbox.deploy(&[&address]).0, 0);
    for (generation, how) in (2..).zip(VANDALISM) {
        if how.starts_with("belongs") && !nix::unistd::geteuid().is_root() {
            continue;
        }
        let old = get(port).unwrap().pid;
        vandalise(&sandbox.run_dir().join(format!("{port}.pid")), how, &victim);
        let (status, log) = sandbox.deploy(&[&address, if generation % 2 == 0 { "takedown" } else { "up" }]);
        assert_eq!(status, 0, "{how}: {log}");
        let answer = get(port).unwrap();
        assert_eq!(answer.generation, generation, "{how}: {log}");
        assert!(answer.pid != old && !common::alive(old));
        assert_eq!(sandbox.pidfile(&port.to_string()), Some(answer.pid), "{how}");
    }
    sandbox.take_down(&address);
}

#[test]
fn a_record_or_socket_that_was_lost_costs_the_swap_and_not_the_server() {
    let mut scene = Scene::new();
    let address = scene.address.clone();
    let hurry = ["--ready-timeout", "0.5", "-d"];
    let server = plain_server();
    let words = [&hurry[..], &[server.to_str().unwrap(), &address]].concat();
    let away = scene.sandbox.path("away");
    let socket = scene.socket();
    fs::rename(&socket, &away).unwrap();
    scene.refused(&words, 124, "the new server was not up in time");
    fs::rename(&away, &socket).unwrap();
    let record = scene.sandbox.run_dir().join(format!("{}.server", scene.pid));
    fs::rename(&record, &away).unwrap();
    let (status, log) = scene.sandbox.run(&words);
    assert_eq!(status, 125, "{log}");
    assert!(log.contains(&format!("the port is held by pid {}", scene.pid)), "{log}");
    scene.untouched();
    fs::rename(&away, &record).unwrap();
    let pidfile = scene.sandbox.run_dir().join(format!("{}.pid", scene.port));
    fs::write(pidfile, format!("{}\n", scene.pid)).unwrap();
    scene.end();
}

/// Who finds a record that he cannot use, and that somebody holds the lock of, leaves it where it is.
#[test]
fn a_record_that_was_spoilt_stays_while_its_supervisor_lives() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let address = format!(":{port}");
    for how in ["a second name", "too large", "empty", "of a later version"] {
        let (mut old, pid) = sandbox.serving(port, &[], &[&address]);
        let (record, second) = (sandbox.run_dir().join(format!("{pid}.server")), sandbox.path("second"));
        let good = fs::read(&record).unwrap();
        // In the same file: that is what the supervisor has locked.
        match how {
            "a second name" => fs::hard_link(&record, &second).unwrap(),
            "too large" => fs::write(&record, [&good[..], &vec![b'x'; 2 << 20]].concat()).unwrap(),
            "empty" => fs::write(&record, "").unwrap(),
            "of a later version" => fs::write(&record, String::from_utf8_lossy(&good).replace('1', "2")).unwrap(),
            other => panic!("{other}"),
        }
        assert_eq!(sandbox.run(["true"]).0, 0, "{how}");
        sandbox.run(["--status"]);
        assert!(record.exists(), "{how}");
        let (status, log) = sandbox.deploy(&[&address]);
        if how == "a second name" {
            assert_eq!((status, get(port).unwrap().generation), (0, 2), "{log}");
            fs::remove_file(second).unwrap();
        } else {
            assert_eq!((status, get(port).unwrap().pid), (125, pid), "{how}: {log}");
            assert!(log.contains(&format!("unable to read the record of server {pid}")), "{how}: {log}");
            let (status, log) = sandbox.run(["--takedown", &address]);
            assert!(status == 125 && log.contains("unable to read the record"), "{how}: {log}");
            assert!(record.exists() && sandbox.pidfile(&port.to_string()) == Some(pid), "{how}");
            fs::write(&record, good).unwrap();
        }
        sandbox.take_down(&address);
        assert_eq!(old.wait(), 0, "{how}");
    }
    sandbox.assert_clean();
}

#[test]
fn a_port_that_serverswap_does_not_know() {
    let sandbox = Sandbox::new();
    for ip in ["0.0.0.0", "127.0.0.1", "::"] {
        let port = sandbox.port();
        let stranger = TcpListener::bind((ip, port)).unwrap();
        let own = format!("pid {} (", std::process::id());
        for detach in [&[][..], &["-d"]] {
            let mut new = sandbox.plain(detach, &[&format!(":{port}")]);
            assert_eq!(new.wait(), 125, "{}", new.log());
            let log = new.log();
            let line = log.lines().next().unwrap();
            assert!(line.starts_with(&format!("serverswap: :{port}: ")), "{log}");
            assert!(line.contains(&own) && line.contains("bad_input"), "{log}");
            assert!(line.contains("which serverswap did not start"), "{log}");
        }
        assert!(sandbox.run(["--takedown", &format!(":{port}")]).0 == 125);
        let client = std::net::TcpStream::connect(
            stranger
                .local_addr()
                .map(|mut a| {
                    a.set_ip(if ip == "::" { [0u16, 0, 0, 0, 0, 0, 0, 1].into() } else { [127, 0, 0, 1].into() });
                    a
                })
                .unwrap(),
        );
        assert!(client.is_ok() && stranger.accept().is_ok());
        sandbox.assert_clean();
    }
}

#[test]
fn a_port_of_another_run_directory() {
    let mut scene = Scene::new();
    let other = Sandbox::new();
    for detach in [&[][..], &["-d"]] {
        let mut new = other.plain(detach, &[&scene.address]);
        assert_eq!(new.wait(), 125);
        let log = new.log();
        assert!(log.contains(&format!("the port is held by pid {} (", scene.pid)), "{log}");
        assert!(log.contains(&format!("a server of the run directory {}", scene.sandbox.run_dir().display())), "{log}");
        scene.untouched();
    }
    other.assert_clean();
    scene.end();
}

/// What a server may write to its control channel, and the answer.
#[test]
fn lines_that_are_none() {
    let mut scene = Scene::new();
    let mut stream = UnixStream::connect(scene.socket()).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    let too_long = [vec![b'x'; 5000], b"\n".to_vec()].concat();
    let cases: [(&[u8], &str); 16] = [
        (b"\n", "ERROR empty line"),
        (b"\r\n", "ERROR empty line"),
        (b"HELLO\n", "ERROR unknown word"),
        (b"ready :80\n", "ERROR unknown word"),
        (b" READY :80\n", "ERROR unknown word"),
        (b"GO :80\n", "ERROR unknown word"),
        (b"READY\n", "ERROR an address is missing"),
        (b"READY \n", "ERROR bad address: an address is missing"),
        (b"READY :0\n", "ERROR bad address: "),
        (b"READY :70000\n", "ERROR bad address: "),
        (b"READY a b\n", "ERROR bad address: "),
        (b"TAKEDOWN 127.0.0.1:99999\n", "ERROR bad address: "),
        (b"READY \xff\xfe\n", "ERROR not UTF-8"),
        (b"READY a\0b\n", "ERROR control character in line"),
        (b"FAIL too late\n", "ERROR this server is up"),
        (&too_long, "ERROR line too long"),
    ];
    for (line, answer) in cases {
        stream.write_all(line).unwrap();
        let heard = answers.next().unwrap().unwrap();
        assert!(heard.starts_with(answer), "{:?}: {heard}", String::from_utf8_lossy(line));
    }
    // Byte by byte is as good as at once.
    for byte in format!("READY {}\r\n", scene.address).bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(answers.next().unwrap().unwrap(), format!("GO {}", scene.address));
    scene.untouched();
    scene.end();
}

#[test]
fn clients_that_say_nothing_or_half_a_line() {
    let mut scene = Scene::new();
    let connect = |scene: &Scene| UnixStream::connect(scene.socket()).unwrap();
    let mut silent = connect(&scene);
    let mut half = connect(&scene);
    half.write_all(b"READY :80").unwrap();
    for said in [
        &b""[..],
        b"TAKE",
        b"PEER",
        b"PEER 1",
        b"PEER 1\n",
        b"PEER 1\nCLAIM\n",
        b"PEER 1\nDOWN :1\n",
        b"\n",
        b"PEER x\n",
    ] {
        let mut gone = connect(&scene);
        gone.write_all(said).unwrap();
    }
    let half_closed = connect(&scene);
    half_closed.shutdown(std::net::Shutdown::Write).unwrap();
    scene.untouched();
    // Whoever has not said a line in ten seconds is sent away; one that has may be silent for ever.
    let mut polite = connect(&scene);
    polite.write_all(b"UP\n").unwrap();
    for stream in [&mut silent, &mut half] {
        stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
        assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0);
    }
    polite.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert_eq!(polite.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    scene.untouched();
    scene.end();
}

/// A claimer that goes away, or never asks for anything, does not stand in the way of the next for
/// longer than it is there.
#[test]
fn a_claimer_that_does_nothing_is_waited_for_until_it_is_gone() {
    let mut scene = Scene::new();
    let mut claimer = UnixStream::connect(scene.socket()).unwrap();
    claimer.write_all(b"PEER 1\nCLAIM\n").unwrap();
    let lines = BufReader::new(claimer.try_clone().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "LOCKED"));
    let said = scene.sandbox.path("said");
    let said_flag = format!("said={}", said.display());
    let mut new = scene.sandbox.plain(&["-d"], &[&scene.address, "takedown", &said_flag]);
    until("READY was said", || said.exists());
    scene.untouched();
    assert!(!new.ended());
    drop(claimer);
    assert_eq!(new.wait(), 0, "{}", new.log());
    assert_eq!(get(scene.port).unwrap().generation, 2);
    assert_eq!(scene.old.wait(), 0);
    scene.sandbox.take_down(&scene.address);
}

/// Whoever has no fd left cannot tell who lives: that is no reason to take them for dead.
#[test]
fn a_serverswap_without_fds_removes_nothing_of_others() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    assert_eq!(sandbox.deploy(&[&address]).0, 0);
    // Of an orphan too.
    let other = sandbox.port();
    let mut orphaned = sandbox.plain(&[], &[&format!(":{other}"), "mute"]);
    orphaned.says("is up");
    orphaned.signal(nix::libc::SIGKILL);
    orphaned.wait();
    let before = sandbox.files();
    for limit in 3..40 {
        let mut command = sandbox.command("prlimit");
        command.arg(format!("--nofile={limit}")).args([common::SERVERSWAP, "true"]);
        sandbox.start(command).wait();
        let left = sandbox.files();
        let lost: Vec<&String> = before.iter().filter(|name| !left.contains(name)).collect();
        // The sockets of a dead supervisor may go.
        let dead = format!("{}-", orphaned.pid());
        assert!(lost.iter().all(|name| name.starts_with(&dead)), "with {limit} fds: {lost:?}");
    }
    assert_eq!(sandbox.run(["--takedown", &address]).0, 0);
    assert_eq!(sandbox.deploy(&[&format!(":{other}"), "takedown"]).0, 0);
    assert_eq!(sandbox.run(["--takedown", &format!(":{other}")]).0, 0);
    sandbox.assert_clean();
}
