//! Requests lost on kept connections, by a swap and by the ways of others: sixteen clients that post, never rest, never
//! ask again and do not look at the connection first.

use super::common::{Running, Sandbox, children, until};
use super::poster::{Manner, Posters};
use nix::libc::{SIGHUP, SIGTERM};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CLIENTS: usize = 16;
const SWAPS: u64 = 5;

/// Prints the table. Each row has a sandbox of its own.
pub fn table() {
    println!("\nrequests lost on kept connections: POST, {CLIENTS} clients that never rest and never ask again");
    println!("{:<44} {:>5} {:>8} {:>5} {:>13} {:>9}", "who", "swaps", "requests", "lost", "lost per swap", "ms a swap");
    let (plain, graceful) = (file("servers/unmodified.js"), file("bench/kept.js"));
    serverswap("serverswap, Node without a handler", &[], &["node", &plain, "ADDRESS"]);
    serverswap("serverswap --no-relay, the same", &["--no-relay"], &["node", &plain, "ADDRESS"]);
    serverswap("serverswap, Node that closes gracefully", &[], &["node", &graceful, "ADDRESS"]);
    serverswap("serverswap --no-relay, the same", &["--no-relay"], &["node", &graceful, "ADDRESS"]);
    server_starter(&graceful);
    pm2(&graceful);
    match gunicorn() {
        Some(words) => {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            serverswap("serverswap, gunicorn gthread", &[], &words);
            gunicorn_reload(&words);
        }
        None => absent("gunicorn, its own reload", "make test-servers installs it"),
    }
    if !has_nginx() {
        return absent("nginx, its own reload", "Debian: nginx");
    }
    let start = file("servers/start.sh");
    serverswap("serverswap, nginx", &["--stop-signal", "QUIT"], &[&start, "nginx", "ADDRESS", ""]);
    nginx_reload();
}

fn file(name: &str) -> String {
    format!("{}/tests/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// What `tests/servers/install.sh` has installed.
fn installed(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("servers").join(name)
}

fn absent(name: &str, how: &str) {
    println!("{name:<44} not measured ({how})");
}

/// The clients, and that many swaps: `swap` makes one and waits until it is over.
fn measure(name: &str, port: u16, mut swap: impl FnMut(u64)) {
    until("the server listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let posters = Posters::start(([127, 0, 0, 1], port).into(), CLIENTS, Manner::Closed);
    until("all clients are answered", || posters.all_saw(1));
    let mut took = Duration::ZERO;
    for generation in 2..=SWAPS + 1 {
        let began = Instant::now();
        swap(generation);
        took += began.elapsed();
        until("all clients see the new generation", || posters.all_saw(generation));
    }
    let posted = posters.stop();
    println!(
        "{name:<44} {SWAPS:>5} {:>8} {:>5} {:>13.1} {:>9}",
        posted.requests,
        posted.lost(),
        posted.lost() as f64 / SWAPS as f64,
        took.as_millis() as u64 / SWAPS
    );
}

fn serverswap(name: &str, options: &[&str], command: &[&str]) {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("127.0.0.1:{port}");
    let command = command.iter().map(|word| word.replace("ADDRESS", &address));
    let words: Vec<String> = ["-d"].iter().chain(options).map(ToString::to_string).chain(command).collect();
    let deploy = || {
        let (status, log) = sandbox.run(&words);
        assert_eq!(status, 0, "{log}");
    };
    deploy();
    measure(name, port, |_| deploy());
    sandbox.run(["--takedown", &address]);
}

/// A superdaemon that keeps the socket.
fn server_starter(server: &str) {
    let name = "Server::Starter, Node that closes gracefully";
    if Command::new("start_server").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return absent(name, "Debian: libserver-starter-perl");
    }
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("127.0.0.1:{port}");
    let mut command = sandbox.command("start_server");
    command.args(["--port", &address, "--", "node", server, &address]);
    let running = sandbox.start(command);
    measure(name, port, |generation| {
        running.signal(SIGHUP);
        until("the old server is gone", || running.log().matches("died, status").count() as u64 == generation - 1);
    });
    end(running);
}

/// A process manager that has a way for clusters of Node.
fn pm2(server: &str) {
    let (name, pm2) = ("pm2 reload, cluster of 2, the same", installed("npm/node_modules/.bin/pm2"));
    if !pm2.exists() {
        return absent(name, "make test-servers installs it");
    }
    let sandbox = Sandbox::shared();
    let (port, generation) = (sandbox.port(), sandbox.file("generation", "1"));
    let run = |words: &[&str]| {
        let mut command = sandbox.command(&pm2);
        command.args(words).env("PM2_HOME", sandbox.path("pm2")).env("GENERATION_FILE", &generation);
        command.env("ADDRESS", format!("127.0.0.1:{port}"));
        let mut running = sandbox.start(command);
        assert_eq!(running.wait(), 0, "{}", running.log());
    };
    run(&["start", server, "--name", "kept", "--instances", "2"]);
    measure(name, port, |number| {
        fs::write(&generation, number.to_string()).unwrap();
        run(&["reload", "kept"]);
    });
    run(&["kill"]);
}

/// The command of gunicorn, where it is installed.
fn gunicorn() -> Option<Vec<String>> {
    let python = installed("venv/bin/python");
    let words =
        ["-m", "gunicorn", "--threads", "8", "-w", "2", "--keep-alive", "30", "--log-level", "error", "--chdir"];
    let words = words.iter().map(ToString::to_string);
    let app = [file("servers"), "-b".into(), "ADDRESS".into(), "web:wsgi".into()];
    python.exists().then(|| [python.to_string_lossy().into_owned()].into_iter().chain(words).chain(app).collect())
}

fn gunicorn_reload(words: &[&str]) {
    let sandbox = Sandbox::shared();
    let (port, generation) = (sandbox.port(), sandbox.file("generation", "1"));
    let address = format!("127.0.0.1:{port}");
    let mut command = sandbox.command(words[0]);
    command.args(words[1..].iter().map(|word| word.replace("ADDRESS", &address))).env("GENERATION_FILE", &generation);
    let running = sandbox.start(command);
    measure("gunicorn, its own reload (HUP)", port, |number| {
        fs::write(&generation, number.to_string()).unwrap();
        hang_up(&running);
    });
    end(running);
}

/// Also where Debian has it, and users who are not root do not look.
fn has_nginx() -> bool {
    std::env::var("PATH")
        .unwrap_or_default()
        .split(':')
        .chain(["/usr/sbin"])
        .any(|dir| Path::new(dir).join("nginx").exists())
}

fn nginx_reload() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let config = |number: u64| {
        let text = fs::read_to_string(file("servers/nginx.conf.in")).unwrap();
        let text = text.replace("@LISTEN@", &format!("127.0.0.1:{port}")).replace("@DAEMON@", "off");
        // The name of the pidfile stays.
        let text = text.replace("nginx@GENERATION@.pid", "nginx.pid").replace("@GENERATION@", &number.to_string());
        sandbox.file("nginx.conf", &text)
    };
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = sandbox.command("nginx");
    command.env("PATH", path).arg("-p").arg(sandbox.path("")).arg("-c").arg(config(1)).args(["-e", "stderr"]);
    let running = sandbox.start(command);
    measure("nginx, its own reload (HUP)", port, |number| {
        config(number);
        hang_up(&running);
    });
    end(running);
}

/// Tells a master to put new workers in the place of the old ones, and waits until these are gone.
fn hang_up(master: &Running) {
    let old = children(master.pid());
    assert!(!old.is_empty(), "no workers: {}", master.log());
    master.signal(SIGHUP);
    until("the old workers are gone", || !children(master.pid()).iter().any(|pid| old.contains(pid)));
}

fn end(mut running: Running) {
    running.signal(SIGTERM);
    running.wait();
}
