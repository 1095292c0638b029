//! The servers of the matrix. None was changed for it.

use super::common::plain_server;
use std::path::{Path, PathBuf};

/// A row.
pub struct Server {
    pub name: &'static str,
    /// Of serverswap.
    pub options: &'static [&'static str],
    pub command: Vec<String>,
    /// It listens on IPv6 as well.
    pub both: bool,
    /// Every answer takes 200 ms.
    pub slow: bool,
    /// Last words of a version that listens and never serves, in place of the last one of the command.
    pub broken: Option<&'static str>,
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
    let row = |name, command: &[&str]| {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        Server { name, options: &[], command, both: false, slow: false, broken: None }
    };
    let (node, app) = (file("unmodified.js"), installed("npm/app.js"));
    let python = installed("venv/bin/python");
    let (nginx, http_server, web) = (file("nginx.sh"), file("http-server.sh"), file(""));
    let any = "0.0.0.0:PORT";
    let quit = |row| Server { options: &["--stop-signal", "QUIT"], ..row };
    let slow = |row| Server { slow: true, ..row };
    let broken = |word, row| Server { broken: Some(word), ..row };
    vec![
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
        quit(row("nginx", &[&nginx, "PORT"])),
        quit(row("nginx, reuseport", &[&nginx, "PORT reuseport"])),
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
    ]
}
