//! The documents say what the program does, and nothing else: the examples of both manuals and of the
//! README run, the transcripts are replayed, and options, statuses, variables, files, messages and
//! promises are the same everywhere.

mod common;

#[path = "docs/examples.rs"]
mod examples;
#[path = "docs/reference.rs"]
mod reference;
#[path = "docs/text.rs"]
mod text;
#[path = "docs/transcripts.rs"]
mod transcripts;

use common::{Running, Sandbox, until};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A sandbox in which the commands of the documents run as they stand: `serverswap` is on the PATH, and
/// port 8080 and the run directory of root are the sandbox's own.
struct Stage {
    sandbox: Sandbox,
    port: u16,
}

impl Stage {
    fn new() -> Stage {
        let sandbox = Sandbox::new();
        fs::create_dir(sandbox.path("bin")).unwrap();
        std::os::unix::fs::symlink(common::SERVERSWAP, sandbox.path("bin/serverswap")).unwrap();
        let port = sandbox.port();
        Stage { sandbox, port }
    }

    fn address(&self) -> String {
        format!(":{}", self.port)
    }

    /// A text of the documents for this sandbox.
    fn own(&self, text: &str) -> String {
        text.replace("8080", &self.port.to_string())
            .replace("/run/serverswap", self.sandbox.run_dir().to_str().unwrap())
    }

    /// A directory of its own for a generation, with the Node client installed, an `index.html` that
    /// names the generation, and these files.
    fn generation(&self, generation: u64, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.sandbox.path(&format!("g{generation}"));
        fs::create_dir_all(dir.join("node_modules")).unwrap();
        let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/client/node");
        let _ = std::os::unix::fs::symlink(client, dir.join("node_modules/serverswap"));
        fs::write(dir.join("index.html"), format!("{generation}\n")).unwrap();
        for (name, content) in files {
            fs::write(dir.join(name), self.own(content)).unwrap();
        }
        dir
    }

    /// Starts a command line of the documents.
    fn start(&self, dir: &Path, command_line: &str) -> Running {
        let mut command = self.sandbox.command("sh");
        command.arg("-c").arg(self.own(command_line));
        self.start_in(dir, command)
    }

    fn start_in(&self, dir: &Path, mut command: Command) -> Running {
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.sandbox.path("bin").display()));
        command.env("TMPDIR", self.sandbox.path("")).env_remove("SERVERSWAP_GENERATION").current_dir(dir);
        self.sandbox.start(command)
    }

    /// Runs a command line of the documents to its end: status, output.
    fn run(&self, dir: &Path, command_line: &str) -> (i32, String) {
        let mut running = self.start(dir, command_line);
        let status = running.wait();
        (status, running.log())
    }

    fn served_pid(&self) -> Option<i32> {
        self.sandbox.pidfile(&self.port.to_string())
    }

    /// Waits until this generation answers: the body, and the numbers in it.
    fn answer(&self, generation: u64) -> (String, Vec<u64>) {
        let mut answer = (String::new(), Vec::new());
        until(&format!("generation {generation} answers on :{}", self.port), || {
            let body = body(self.port).unwrap_or_default();
            answer = (body.clone(), numbers(&body));
            answer.1.first() == Some(&generation)
        });
        answer
    }

    /// Takes the server down and checks that nothing is left.
    fn end(&self) {
        let (status, log) = self.sandbox.run(["--takedown", &self.address()]);
        assert_eq!(status, 0, "{log}");
        self.sandbox.assert_clean();
    }
}

/// What a server answers to one request.
fn body(port: u16) -> Option<String> {
    let patience = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.trim().to_owned())
}

fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}
