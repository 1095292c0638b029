//! A server of a row, in a sandbox of its own: started, swapped, taken down.

use super::common::{Sandbox, until};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Who is swapped.
pub struct Target {
    pub sandbox: Sandbox,
    pub port: u16,
    /// Of serverswap: options and the command.
    pub words: Vec<String>,
}

impl Target {
    /// PORT in a command is the port, and FILE after `=` the file of [`Target::ids`].
    pub fn new(options: impl IntoIterator<Item = String>, command: &[String]) -> Target {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let ids = sandbox.path("ids").to_string_lossy().into_owned();
        let command = command.iter().map(|word| match word.split_once('=') {
            // `PORT=PORT` names the variable too.
            Some((name, "PORT")) => format!("{name}={port}"),
            Some((name, "FILE")) => format!("{name}={ids}"),
            Some(_) | None => word.replace("PORT", &port.to_string()),
        });
        let words = ["-d".to_owned()].into_iter().chain(options).chain(command).collect();
        Target { sandbox, port, words }
    }

    /// Starts a generation: what is wrong with it.
    pub fn deploy(&self, generation: u64) -> Option<String> {
        self.swap(generation).0
    }

    /// The same, and how long after it was up its command has ended: the time to start is the server's own.
    pub fn swap(&self, generation: u64) -> (Option<String>, Duration) {
        let mut running = self.sandbox.serverswap(&self.words);
        until("it is up, or has failed", || running.ended() || running.log().contains(" is up"));
        let up = Instant::now();
        let (status, took) = (running.wait(), up.elapsed());
        let log = running.log();
        let is_clean = status == 0 && !log.contains("warning");
        ((!is_clean).then(|| format!("generation {generation}: status {status}\n{log}")), took)
    }

    /// Takes it down, and looks that nothing is left: what is wrong.
    pub fn take_down(&self) -> Option<String> {
        // `[::]` is the address of both families where there is one.
        let down = self.sandbox.status().into_iter().map(|fields| fields[0].clone());
        let (status, log) = self.sandbox.run(["--takedown".to_owned()].into_iter().chain(down));
        self.sandbox.assert_clean();
        until("nobody is left", || self.sandbox.inhabitants().is_empty());
        (status != 0).then(|| format!("--takedown: status {status}\n{log}"))
    }

    /// All warnings, also those that a supervisor in the background gave after its command had returned.
    pub fn warnings(&self) -> Vec<String> {
        self.sandbox.said().lines().filter(|line| line.contains("warning")).map(str::to_owned).collect()
    }

    /// The file to which a server appends the id of each request that it carries out.
    pub fn ids(&self) -> PathBuf {
        self.sandbox.path("ids")
    }
}
