//! The servers of the matrix. None was changed for it.

use super::common::plain_server;
use std::path::{Path, PathBuf};

/// A row.
pub struct Server {
    pub name: &'static str,
    /// Of serverswap.
    pub options: &'static [&'static str],
    pub command: Vec<String>,
    pub clients: Clients,
    /// It listens on IPv6 as well.
    pub both: bool,
    /// Every answer takes 200 ms.
    pub slow: bool,
    /// Last words of a version that listens and never serves, in place of the last one of the command.
    pub broken: Option<&'static str>,
}

/// Who asks a server.
pub enum Clients {
    /// Those of [`super::client`], by HTTP/1.
    Http,
    /// A program (`tests/servers/ask.py`) and how many clients it is; the port follows.
    Program(Vec<String>, usize),
}

/// Where `tests/servers/install.sh` has put what it installed.
pub fn installed(name: &str) -> String {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("servers");
    root.join(name).to_str().unwrap().to_owned()
}

/// A file of `tests/servers`.
pub fn file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(name).to_str().unwrap().to_owned()
}

/// All of them. PORT in a command is the port.
pub fn all() -> Vec<Server> {
    let row = |name, command: &[&str]| Server {
        name,
        // Half of it is how long a kept connection has to rest.
        options: &["--drain", "3"],
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        clients: Clients::Http,
        both: false,
        slow: false,
        broken: None,
    };
    let (node, app) = (file("unmodified.js"), installed("npm/app.js"));
    let python = installed("venv/bin/python");
    let (start, http_server, web) = (file("start.sh"), file("http-server.sh"), file(""));
    let (any, path) = ("0.0.0.0:PORT", format!("PYTHONPATH={web}"));
    let asked = |protocol: &str, count, row| {
        let program = [&python, &file("ask.py"), protocol].map(str::to_owned).to_vec();
        Server { clients: Clients::Program(program, count), ..row }
    };
    let quit = |row| Server { options: &["--drain", "3", "--stop-signal", "QUIT"], ..row };
    // Half of it is more than the 2.5 s of a request.
    let patient = |row| Server { options: &["--drain", "6"], ..row };
    let slow = |row| Server { slow: true, ..row };
    let broken = |word, row| Server { broken: Some(word), ..row };
    vec![
        // What takes longest comes first.
        patient(asked("grpc:slow", 8, row("gRPC, 2.5 s", &[&python, &file("rpc.py"), "PORT"]))),
        patient(asked(
            "https:/slow",
            8,
            row(
                "Node https, 2.5 s",
                &[
                    "env",
                    &format!("KEY={}", installed("key.pem")),
                    &format!("CERT={}", installed("cert.pem")),
                    "node",
                    &file("web.js"),
                    any,
                    "https",
                ],
            ),
        )),
        patient(Server {
            clients: Clients::Program(["node", &file("ask.js"), "/slow"].map(str::to_owned).to_vec(), 8),
            ..row("Node http2, 2.5 s", &["node", &file("web.js"), any, "http2"])
        }),
        row("Node http", &["node", &node, any]),
        row("Node http, graceful", &["node", &node, any, "graceful"]),
        broken("broken=2", row("Node cluster", &["node", &node, any, "workers=2"])),
        row("Node cluster, graceful", &["node", &node, any, "workers=2", "graceful"]),
        row("npm start", &["env", "PORT=PORT", "npm", "start", "--prefix", &installed("npm")]),
        row("Express", &["env", "PORT=PORT", "node", &app]),
        row("Python http.server", &[&http_server, &python, "PORT"]),
        broken(
            "web:missing",
            row("gunicorn", &[&python, "-m", "gunicorn", "--chdir", &web, "-w", "2", "-b", any, "web:wsgi"]),
        ),
        row(
            "uvicorn",
            &[
                &python,
                "-m",
                "uvicorn",
                "--app-dir",
                &web,
                "--host",
                "0.0.0.0",
                "--port",
                "PORT",
                "--no-access-log",
                "web:asgi",
            ],
        ),
        quit(row("nginx", &[&start, "nginx", "PORT", ""])),
        quit(row("nginx, reuseport", &[&start, "nginx", "PORT", "reuseport"])),
        quit(row("nginx, daemon on", &[&start, "nginx", "PORT", "", "on"])),
        row(
            "haproxy",
            &["env", "PORT=PORT", "PATH=/usr/sbin:/usr/bin:/bin", "haproxy", "-db", "-f", &file("haproxy.cfg")],
        ),
        row("Go net/http, static", &[&installed("web-go"), ":PORT"]),
        row("Java HttpServer", &["java", "-cp", &installed(""), "Web", "PORT"]),
        row("Rust, a thread per connection", &[plain_server().to_str().unwrap(), any, "mute"]),
        Server { both: true, ..row("Node http, IPv4 and IPv6", &["node", &node, any, "[::]:PORT"]) },
        row("Node http, control channel", &["node", &file("client.js"), ":PORT", "takedown"]),
        slow(row("Node http, 200 ms", &["node", &node, any, "slow=200"])),
        slow(row("Python http.server, 200 ms", &[&python, &file("unmodified.py"), any, "slow=200"])),
        slow(row("Go net/http, 200 ms", &[&installed("web-go"), ":PORT", "200"])),
        row("Node cluster, exclusive", &["node", &node, any, "workers=2", "exclusive"]),
        row("Go net/http, MPTCP", &[&installed("web-go-new"), ":PORT"]),
        row("apache, event", &[&start, "apache", "PORT"]),
        row("caddy", &[&start, "caddy", "PORT"]),
        row("lighttpd", &[&start, "lighttpd", "PORT", "-D"]),
        row("php -S", &[&start, "php", "PORT"]),
        row("puma", &[&start, "puma", "PORT"]),
        quit(row("unicorn", &[&start, "unicorn", "PORT"])),
        row("uwsgi", &[&start, "uwsgi", "PORT"]),
        row("hypercorn", &["env", &path, &python, "-m", "hypercorn", "--bind", any, "web:asgi"]),
        row(
            "granian",
            &[
                "env",
                &path,
                &python,
                "-m",
                "granian",
                "--interface",
                "asgi",
                "--host",
                "0.0.0.0",
                "--port",
                "PORT",
                "web:asgi",
            ],
        ),
        asked("fastcgi", 4, row("php-fpm", &[&start, "php-fpm", "PORT", "--nodaemonize"])),
        asked("fastcgi", 4, row("php-fpm, daemon", &[&start, "php-fpm", "PORT", "--daemonize"])),
        asked("redis", 4, row("redis", &[&start, "redis", "PORT"])),
        asked("redis", 4, row("redis, daemon", &[&start, "redis", "PORT", "--daemonize", "yes"])),
        asked("mqtt", 4, row("mosquitto", &[&start, "mosquitto", "PORT"])),
        asked("dns", 4, row("dnsmasq, DNS over TCP", &[&start, "dnsmasq", "PORT"])),
        asked("dns-udp", 4, row("dnsmasq, DNS over UDP", &[&start, "dnsmasq", "PORT"])),
        asked("grpc", 4, row("gRPC", &[&python, &file("rpc.py"), "PORT"])),
    ]
}

/// A row of kept connections.
#[derive(Clone)]
pub struct Kept {
    pub name: &'static str,
    /// Of serverswap.
    pub options: &'static [&'static str],
    pub command: Vec<String>,
}

/// Those that keep connections open and answer POST. PORT in a command is the port; one that says FILE appends the id of
/// each request there.
pub fn kept() -> Vec<Kept> {
    let row = |name, command: &[&str]| Kept {
        name,
        options: &[],
        command: command.iter().map(|word| (*word).to_owned()).collect(),
    };
    let (node, python, web) = (file("unmodified.js"), installed("venv/bin/python"), file(""));
    let (any, path, start) = ("0.0.0.0:PORT", format!("PYTHONPATH={web}"), file("start.sh"));
    let module = |name: &'static str, module: &str, rest: &[&str]| {
        row(name, &[&["env", &path, "IDS=FILE", &python, "-m", module], rest].concat())
    };
    vec![
        row("Node http", &["node", &node, any, "ids=FILE"]),
        row("Node http, graceful", &["node", &node, any, "graceful", "ids=FILE"]),
        row("Node http, onTakedown", &["node", &file("client.js"), ":PORT", "takedown", "ids=FILE"]),
        row("Node cluster", &["node", &node, any, "workers=2", "ids=FILE"]),
        row("Python http.server", &[&python, &file("unmodified.py"), any, "ids=FILE"]),
        module(
            "gunicorn, gthread",
            "gunicorn",
            &["--threads", "8", "-w", "2", "--keep-alive", "30", "-b", any, "--log-level", "error", "web:wsgi"],
        ),
        module("uvicorn", "uvicorn", &["--host", "0.0.0.0", "--port", "PORT", "--no-access-log", "web:asgi"]),
        module("hypercorn", "hypercorn", &["--bind", any, "web:asgi"]),
        // With fewer threads than connections it lets those starve that come later.
        row("puma", &[&start, "puma", "PORT", "--threads", "0:300"]),
        // It keeps no more than 200 idle connections if it is not told so.
        row(
            "Java HttpServer",
            &["java", "-Dsun.net.httpserver.maxIdleConnections=1000", "-cp", &installed(""), "Web", "PORT"],
        ),
        row("Go net/http", &[&installed("web-go"), ":PORT"]),
        Kept { options: &["--stop-signal", "QUIT"], ..row("nginx", &[&start, "nginx", "PORT", ""]) },
    ]
}

/// A server that speaks something else than HTTP/1 over kept connections, and its clients.
pub struct Spoken {
    pub name: &'static str,
    pub command: Vec<String>,
    /// A program as in [`Clients::Program`], without the manner and the port.
    pub clients: Vec<String>,
}

/// Of these nothing is promised for kept connections.
pub fn spoken() -> Vec<Spoken> {
    let (key, cert) = (format!("KEY={}", installed("key.pem")), format!("CERT={}", installed("cert.pem")));
    let web = file("web.js");
    // With a server that ends gracefully nothing much is lost by clients that look, so that any harm would show.
    let row = |name, kind: &str, sight: &str, rest: &[&str]| {
        let command = [&["env", &key, &cert, "node", &web, "0.0.0.0:PORT", kind], rest].concat();
        let clients = ["node", &file("keep.js"), kind, sight].map(str::to_owned).to_vec();
        Spoken { name, command: command.iter().map(|word| (*word).to_owned()).collect(), clients }
    };
    vec![
        row("Node https", "https", "blind", &[]),
        row("Node https, looks", "https", "looks", &["graceful"]),
        row("Node http2", "http2", "blind", &[]),
        row("Node http2, looks", "http2", "looks", &["graceful"]),
        row("Node WebSocket", "websocket", "blind", &[]),
    ]
}
