//! What a new server has to pass before it gets anything of the old one: `--check` and `--check-http`.

mod common;

use common::{Load, Sandbox, alive, get, get_from, plain_server, until};
use nix::libc;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The words of a server in Python, below the directory of the project.
fn python(words: &[&str]) -> Vec<String> {
    let all = ["env", "-C", env!("CARGO_MANIFEST_DIR"), "python3"];
    all.iter().chain(words).map(|word| (*word).to_owned()).collect()
}

/// The words of a server at this address.
fn server(address: &str) -> [String; 2] {
    [plain_server().to_str().unwrap().to_owned(), address.to_owned()]
}

fn words(options: &[&str], server: &[String]) -> Vec<String> {
    ["-d", "--drain", "2"].iter().chain(options).map(|word| (*word).to_owned()).chain(server.iter().cloned()).collect()
}

/// A check that writes where its preview is, and waits for a file before it ends.
fn waits(sandbox: &Sandbox) -> (String, PathBuf, PathBuf) {
    let (begun, goes) = (sandbox.path("begun"), sandbox.path("goes"));
    let command = format!(
        "echo \"$SERVERSWAP_PREVIEW $SERVERSWAP_GENERATION $SERVERSWAP_PID\" >{begun}.new; mv {begun}.new {begun}; \
         until [ -e {goes} ]; do sleep 0.02; done",
        begun = begun.display(),
        goes = goes.display(),
    );
    (command, begun, goes)
}

/// What such a check has written.
fn seen(begun: &PathBuf) -> (SocketAddr, u64, i32) {
    until("the check runs", || begun.exists());
    let text = std::fs::read_to_string(begun).unwrap();
    let mut words = text.split_whitespace();
    let mut next = || words.next().unwrap();
    (next().parse().unwrap(), next().parse().unwrap(), next().parse().unwrap())
}

#[test]
fn only_the_check_gets_to_the_new_server() {
    let sandbox = Sandbox::shared();
    for host in ["0.0.0.0", "127.0.0.1", "[::]", "[::1]"] {
        let port = sandbox.port();
        let address = format!("{host}:{port}");
        let server = python(&["tests/servers/unmodified.py", &address]);
        let (status, log) = sandbox.run(words(&[], &server));
        assert_eq!(status, 0, "{log}");
        let ip: IpAddr = if host.contains(':') { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let at = SocketAddr::new(ip, port);
        let load = Load::to(at, Duration::from_millis(1));
        let old = get_from(at).unwrap();
        let (command, begun, goes) = waits(&sandbox);
        let mut new = sandbox.serverswap(words(&["--check", &command], &server));
        let (preview, generation, pid) = seen(&begun);
        for _ in 0..20 {
            let answer = get_from(preview).unwrap();
            assert_eq!((answer.generation, answer.pid), (2, pid), "{address}");
            assert_eq!(get_from(at).unwrap(), old, "{address}");
        }
        assert_eq!(generation, 2);
        let states: Vec<String> = sandbox.status().into_iter().map(|fields| fields[5].clone()).collect();
        assert!(states.contains(&"checking".to_owned()) && states.contains(&"serving".to_owned()), "{states:?}");
        std::fs::write(&goes, "").unwrap();
        assert_eq!(new.wait(), 0, "{}", new.log());
        load.sees(2);
        assert!(load.stop().failures.is_empty());
        assert!(get_from(preview).is_err(), "there is no preview any more");
        sandbox.take_down(&sandbox.status()[0][0]);
        [begun, goes].iter().for_each(|file| std::fs::remove_file(file).unwrap());
    }
    sandbox.assert_clean();
}

/// Others get no answer, and keep none from anybody.
#[test]
fn a_preview_is_for_its_user_and_root() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: not root");
    }
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let server = server(&format!("0.0.0.0:{port}"));
    assert_eq!(sandbox.run(words(&[], &server)).0, 0);
    let (command, begun, goes) = waits(&sandbox);
    let mut new = sandbox.serverswap(words(&["--check", &command, "--check-http", "/"], &server));
    let (preview, ..) = seen(&begun);
    // More than a preview has room for.
    let asks = format!(
        "import socket, sys\n\
         def ask():\n    s = socket.create_connection(('127.0.0.1', {}))\n    s.settimeout(20)\n    return s\n\
         kept = [ask() for _ in range(80)]\n\
         def got(s):\n    try:\n        s.sendall(b'GET / HTTP/1.1\\r\\n\\r\\n')\n        return s.recv(1)\n    \
         except ConnectionError:\n        return b''\n\
         print(b''.join(map(got, kept)), flush=True)\n\
         kept = [ask() for _ in range(80)]\n\
         sys.stdin.read()\n",
        preview.port()
    );
    let mut others = Command::new("python3");
    others.args(["-c", &asks]).uid(65534).gid(65534).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut others = others.spawn().unwrap();
    let mut got = String::new();
    BufReader::new(others.stdout.take().unwrap()).read_line(&mut got).unwrap();
    assert_eq!(got, "b''\n");
    assert_eq!(get_from(preview).unwrap().generation, 2);
    std::fs::write(goes, "").unwrap();
    assert_eq!(new.wait(), 0, "{}", new.log());
    drop(others.stdin.take());
    others.wait().unwrap();
    sandbox.take_down(&port.to_string());
    sandbox.assert_clean();
}

#[test]
fn several_listeners_are_previewed_in_turn() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let web: Vec<String> = ["env", "-C", env!("CARGO_MANIFEST_DIR"), "node", "tests/servers/unmodified.js"]
        .iter()
        .map(|word| (*word).to_owned())
        .chain([format!("0.0.0.0:{port}"), "workers=2".into()])
        .collect();
    assert_eq!(sandbox.run(words(&[], &web)).0, 0);
    let (command, begun, goes) = waits(&sandbox);
    let mut new = sandbox.serverswap(words(&["--check", &command], &web));
    let (preview, ..) = seen(&begun);
    for _ in 0..30 {
        assert_eq!((get_from(preview).unwrap().generation, get(port).unwrap().generation), (2, 1));
    }
    std::fs::write(goes, "").unwrap();
    assert_eq!(new.wait(), 0, "{}", new.log());
    sandbox.take_down(&port.to_string());
    sandbox.assert_clean();
}

/// Its first address is that of the higher port: an address of all interfaces comes before one of a single interface.
#[test]
fn every_generation_is_checked_at_its_first_address() {
    let sandbox = Sandbox::shared();
    let mut ports = [sandbox.port(), sandbox.port()];
    ports.sort_unstable();
    let [low, high] = [format!("127.0.0.1:{}", ports[0]), format!("0.0.0.0:{}", ports[1])];
    let dir = sandbox.path("");
    // It answers with the number of the listener too.
    let server = python(&["tests/trial/server.py", dir.to_str().unwrap(), &low, &high]);
    let ask = "import os, urllib.request as u; print(u.urlopen('http://' + os.environ['SERVERSWAP_PREVIEW']).read().decode())";
    let check = format!("python3 -c \"{ask}\" | cut -d ' ' -f 1,3 >>answers");
    for _ in 0..2 {
        let (status, log) = sandbox.run(words(&["--check", &check], &server));
        assert_eq!(status, 0, "{log}");
    }
    assert_eq!(std::fs::read_to_string(sandbox.path("answers")).unwrap(), "1 1\n2 1\n");
    assert_eq!(sandbox.run(["--takedown", &low, &high]).0, 0);
    sandbox.assert_clean();
}

#[test]
fn a_version_that_fails_its_check_changes_nothing() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let server = server(&format!("0.0.0.0:{port}"));
    assert_eq!(sandbox.run(words(&["--check-http", "/"], &server)).0, 0);
    let load = Load::start(port, Duration::from_millis(1));
    load.is_answered();
    let files = python(&["-m", "http.server", &port.to_string(), "--bind", "0.0.0.0"]);
    let fails = [
        (["--check", "echo 'no table users'; exit 3"], &server[..], "exit 3\": it exited with status 3"),
        (["--check", "sleep 1000 & sleep 1000"], &server[..], "its check has not ended yet"),
        (["--check", "yes"], &server[..], "its check has not ended yet"),
        (["--check-http", "/no/file"], &files[..], "its check failed: GET /no/file: status 404: "),
    ];
    for (check, server, why) in fails {
        let options = ["--ready-timeout", "4"].iter().chain(&["--check", "true"]).chain(&check).copied();
        let (status, log) = sandbox.run(words(&options.collect::<Vec<&str>>(), server));
        assert_eq!(status, 124, "{log}");
        assert!(log.contains(why) && log.contains("the old one still serves"), "{why}: {log}");
        assert_eq!(log.contains("| no table users"), why.contains("exited"), "{log}");
        assert_eq!(get(port).unwrap().generation, 1);
        until("nothing of it is left", || sandbox.inhabitants().len() == sandbox.crew());
    }
    let seen = load.stop();
    assert!(seen.failures.is_empty() && seen.answers.len() == 1, "{seen:?}");
    sandbox.take_down(&port.to_string());
    sandbox.assert_clean();
}

/// It has failed once and succeeds since; the server dies of something else.
#[test]
fn what_an_earlier_check_wrote_is_not_shown_for_another_failure() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let server = server(&format!("0.0.0.0:{port}"));
    assert_eq!(sandbox.run(words(&[], &server)).0, 0);
    let once = format!("mkdir {0} && echo no table && exit 3; true", sandbox.path("tried").display());
    let mut new = sandbox.serverswap(words(&["--canary", "50:600", "--check", &once], &server));
    new.says("gets 50% of");
    let fields = sandbox.status().into_iter().find(|fields| fields[5] == "canary 50%").unwrap();
    common::kill(fields[2].parse().unwrap(), libc::SIGKILL);
    assert_eq!(new.wait(), 124, "{}", new.log());
    assert!(sandbox.path("tried").exists() && !new.log().contains("| no table"), "{}", new.log());
    sandbox.take_down(&port.to_string());
    sandbox.assert_clean();
}

/// In a group of its own, with no environment, or with the shell gone before.
#[test]
fn nothing_that_a_check_has_started_outlives_it() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let server = server(&format!("0.0.0.0:{port}"));
    let checks = [
        ("setsid sh -c 'sleep 1000 & sleep 1000' & true", 0),
        ("setsid sleep 1000 & exit 3", 124),
        ("timeout 1000 sleep 1000", 124),
        ("env -i setsid sleep 1000 & sleep 1000", 124),
    ];
    for (check, expected) in checks {
        let (status, log) = sandbox.run(words(&["--ready-timeout", "3", "--check", check], &server));
        assert_eq!(status, expected, "{log}");
        assert_eq!(get(port).unwrap().generation, 1);
        until(check, || sandbox.inhabitants().len() == sandbox.crew());
    }
    sandbox.take_down(&port.to_string());
    sandbox.assert_clean();
}

#[test]
fn a_check_that_succeeds_later_is_made_again() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let server = server(&format!("0.0.0.0:{port}"));
    let count = sandbox.path("count");
    let check = format!("echo x >>{0}; [ $(wc -l <{0}) -ge 3 ]", count.display());
    let (status, log) = sandbox.run(words(&["--check", &check, "--check-http", "/"], &server));
    assert_eq!(status, 0, "{log}");
    assert_eq!(std::fs::read_to_string(count).unwrap().lines().count(), 3);
    sandbox.take_down(&port.to_string());
    sandbox.assert_clean();
}

/// In the foreground too: a check that never succeeds is a failure.
#[test]
fn a_first_server_is_up_when_its_check_has_succeeded() {
    common::in_both_orders(|sandbox| {
        let port = sandbox.port();
        let server = server(&format!("127.0.0.1:{port}"));
        let (command, begun, goes) = waits(&sandbox);
        let mut first = sandbox.serverswap(words(&["--check", &command], &server));
        let (preview, ..) = seen(&begun);
        assert_eq!(preview, SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(get(port).unwrap().generation, 1);
        assert!(!first.log().contains("is up") && !first.ended());
        std::fs::write(goes, "").unwrap();
        assert_eq!(first.wait(), 0, "{}", first.log());
        sandbox.take_down(&format!("127.0.0.1:{port}"));
        let options = ["--ready-timeout", "2", "--check", "false"].map(str::to_owned);
        let mut running = sandbox.serverswap(options.into_iter().chain(server));
        assert_eq!(running.wait(), 124, "{}", running.log());
        sandbox.assert_clean();
    });
}

#[test]
fn a_first_server_that_takes_no_v4_packets_is_checked_at_its_v6_address() {
    common::in_both_orders(|sandbox| {
        let port = sandbox.port();
        // One of IPV6_V6ONLY.
        let server = python(&["tests/servers/unmodified.py", &format!("[::]:{port}")]);
        let seen = "[ $SERVERSWAP_PREVIEW = \"[::1]:$PORT\" ]".replace("$PORT", &port.to_string());
        let checks = ["--ready-timeout", "20", "--check", &seen, "--check-http", "/"];
        let (status, log) = sandbox.run(words(&checks, &server));
        assert_eq!(status, 0, "{log}");
        sandbox.take_down(&port.to_string());
        sandbox.assert_clean();
    });
}

#[test]
fn in_plain_order_a_server_with_checks_replaces_nobody() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    let (mut old, pid) = sandbox.serving(port, &["--plain"], &[&format!("0.0.0.0:{port}")]);
    let (status, log) = sandbox.run(words(&["--check", "true"], &server(&format!("0.0.0.0:{port}"))));
    assert_eq!(status, 124, "{log}");
    assert!(log.contains("cannot be checked while the old one has the address"), "{log}");
    assert!(alive(pid) && get(port).is_ok());
    sandbox.take_down(&port.to_string());
    assert_eq!(old.wait(), 0);
}

/// Whoever is killed while the check runs: the old server serves on, and nothing of the new one is left.
#[test]
fn a_death_while_the_check_runs_changes_nothing() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let server = server(&format!("0.0.0.0:{port}"));
    assert_eq!(sandbox.run(words(&[], &server)).0, 0);
    let load = Load::start(port, Duration::from_millis(1));
    for victim in ["server", "supervisor", "check"] {
        let (command, begun, goes) = waits(&sandbox);
        let check = format!("echo $$ >{}; {command}", sandbox.path("shell").display());
        let options = ["--ready-timeout", "5", "--check", &check];
        let mut new = sandbox.serverswap(words(&options, &server));
        let (preview, _, pid) = seen(&begun);
        let shell: i32 = std::fs::read_to_string(sandbox.path("shell")).unwrap().trim().parse().unwrap();
        let supervisor =
            sandbox.status().into_iter().find(|fields| fields[2] == pid.to_string()).unwrap()[3].parse().unwrap();
        let killed = match victim {
            "server" => pid,
            "supervisor" => supervisor,
            _ => shell,
        };
        common::kill(killed, libc::SIGKILL);
        std::fs::remove_file(&begun).unwrap();
        if victim == "check" {
            // It is made again.
            until("it is made again", || begun.exists());
            std::fs::write(&goes, "").unwrap();
            assert_eq!(new.wait(), 0, "{}", new.log());
            load.sees(2);
        } else {
            assert_ne!(new.wait(), 0, "{victim}: {}", new.log());
            until("nothing of it is left", || !alive(shell) && !alive(pid) && !alive(supervisor));
            assert_eq!(get(port).unwrap().generation, 1, "{victim}");
        }
        assert!(get_from(preview).is_err());
    }
    assert!(load.stop().failures.is_empty());
    sandbox.take_down(&port.to_string());
    sandbox.assert_clean();
}
