//! serverswap: restart a server on a Unix machine so that nobody notices.
//!
//! Dependencies run one way: `main` uses `cli` and `supervisor`, those use `swap` (the pure machine), `server`,
//! `finder` and `protocol`, and all of them use `sys`.

mod address;
mod check;
mod cli;
mod detach;
mod drain;
mod error;
mod family;
mod finder;
#[cfg(test)]
#[path = "../tests/fuzz/targets.rs"]
mod fuzz;
mod history;
mod members;
mod message;
mod notify;
mod operator;
mod output;
mod place;
mod procfs;
mod protocol;
mod record;
mod recovery;
mod relay;
mod rundir;
mod server;
mod share;
mod supervisor;
mod swap;
mod sys;

use cli::{Cli, Request};
use error::{Error, Result};
use message::Log;
use output::Output;
use protocol::CopyWord;
use rundir::RunDir;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use supervisor::{Origin, Supervisor};

const NODE_CLIENT: &str = include_str!("client/node/index.js");

fn main() -> ExitCode {
    // By this name other serverswaps recognise us, whichever file we run: a serverswap never belongs to a server.
    let _ = nix::sys::prctl::set_name(procfs::OWN_NAME);
    let result = cli::parse(std::env::args_os().skip(1)).and_then(run);
    let status = result.unwrap_or_else(|error| {
        Log::new(0).say(swap::Level::Error, None, &error.text);
        error.status
    });
    message::flush(message::PATIENCE);
    ExitCode::from(status)
}

fn run(cli: Cli) -> Result<u8> {
    let log = Log::new(cli.verbosity);
    let given = cli.run_dir.or_else(run_dir_of_environment);
    // For a person who asks: the path of the run directory, with the files that living supervisors miss in it.
    let path = || RunDir::path_of(given.as_deref()).inspect(|path| finder::have_written_again(path));
    let dir = || RunDir::open(Some(&path()?), false);
    match cli.request {
        Request::Help => print(cli::HELP),
        Request::Version => print(concat!("serverswap ", env!("CARGO_PKG_VERSION"), "\n")),
        Request::Client(_) => print(NODE_CLIENT),
        Request::Status(targets, form) => {
            let path = path()?;
            let is_there = path.symlink_metadata().is_ok();
            let dir = is_there.then(|| RunDir::open(Some(&path), false)).transpose()?;
            if !is_there {
                let text = format!("the run directory {} does not exist: no server has it", path.display());
                log.say(swap::Level::Notice, None, &text);
            }
            operator::show_status(dir.as_ref(), &targets, form, log)
        }
        Request::Takedown(targets) => {
            let dir = dir()?;
            let result = operator::takedown(&dir, &targets, log);
            dir.leave();
            result
        }
        Request::Decide(targets, verdict) => operator::decide(&dir()?, &targets, verdict, log),
        Request::Reload(targets, surroundings) => operator::reload(&dir()?, &targets, surroundings, log),
        Request::Run(run) => start(run, given.as_deref(), log),
    }
}

/// Starts a server, or takes care of one, and gives the exit status.
fn start(run: cli::Run, given: Option<&Path>, log: Log) -> Result<u8> {
    // The process that a service manager has named may not be the one that runs the server.
    sys::process::passed_sockets();
    let front = sys::process::take_line();
    if let (None, Some(server)) = (&front, sys::process::server_to_care_for()) {
        let failed = |e| Error::unable("be a caretaker", e, "nothing was started");
        let server = server.map_err(failed)?;
        let dir = RunDir::open(run_dir_of_environment().as_deref(), true)?;
        // Where the log cannot be opened the server is cared for all the same.
        let callers = || Output::open(&cli::Run { log: Some(cli::Destination::Caller), ..run.clone() });
        let output = Output::open(&run).or_else(|_| callers())?;
        output.leave_caller();
        return Ok(Supervisor::run(run, output, dir, log, Origin::Orphan(server)));
    }
    if run.detach && front.is_none() {
        sys::process::close_inherited();
    }
    let prepared = prepare(&run, given, front.as_ref().map(|(_, run_dir)| run_dir.as_path()));
    if let (Err(error), Some((line, _))) = (&prepared, &front) {
        // Whoever waits for the reload hears why.
        let _ = (&*line).write_all(&protocol::line_of(&CopyWord::Said(error.text.clone())));
    }
    let (dir, output) = prepared?;
    let origin = match (front, run.detach) {
        (Some((line, _)), _) => Origin::Front(line),
        (None, false) => Origin::Caller(None),
        (None, true) => match detach::fork(log)? {
            detach::Side::Caller(status) => return Ok(status),
            detach::Side::Supervisor(launcher) => Origin::Caller(Some(launcher)),
        },
    };
    Ok(Supervisor::run(run, output, dir, log, origin))
}

/// Opens what a server needs: the run directory, which is that of its front if there is one, and where its output goes.
fn prepare(run: &cli::Run, given: Option<&Path>, fronts: Option<&Path>) -> Result<(RunDir, Output)> {
    let dir = match fronts {
        Some(path) => RunDir::open(Some(path), true)?,
        None => {
            let path = RunDir::path_of(given)?;
            // The lock stays where servers come and go: without it, nobody was here, or somebody has cleared up.
            if !path.join(rundir::LOCK).exists() {
                finder::have_written_again(&path);
            }
            RunDir::open(given, true)?
        }
    };
    Ok((dir, Output::open(run)?))
}

/// The run directory that the environment names.
fn run_dir_of_environment() -> Option<PathBuf> {
    std::env::var_os("SERVERSWAP_RUN_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

fn print(text: &str) -> Result<u8> {
    // Help and version cannot fail: a reader that went away has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(error::status::DONE)
}
