//! serverswap: restart a server on a Unix machine so that nobody notices.
//!
//! Dependencies run one way: `main` uses `cli` and `supervisor`, those use `swap` (the pure machine), `server`,
//! `finder` and `protocol`, and all of them use `sys`.

mod address;
mod cli;
mod detach;
mod drain;
mod error;
mod family;
mod finder;
#[cfg(test)]
#[path = "../tests/fuzz/targets.rs"]
mod fuzz;
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
use rundir::RunDir;
use std::path::PathBuf;
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
    let from_environment = || std::env::var_os("SERVERSWAP_RUN_DIR").filter(|d| !d.is_empty()).map(PathBuf::from);
    let given = cli.run_dir.or_else(from_environment);
    let dir = |create| RunDir::open(given.as_deref(), create);
    match cli.request {
        Request::Help => print(cli::HELP),
        Request::Version => print(concat!("serverswap ", env!("CARGO_PKG_VERSION"), "\n")),
        Request::Client(_) => print(NODE_CLIENT),
        Request::Status(targets, form) => {
            let path = RunDir::path_of(given.as_deref())?;
            finder::have_written_again(&path);
            let dir = if RunDir::exists(given.as_deref()) { Some(dir(false)?) } else { None };
            if dir.is_none() {
                let text = format!("the run directory {} does not exist: no server has it", path.display());
                log.say(swap::Level::Notice, None, &text);
            }
            operator::show_status(dir.as_ref(), &targets, form, log)
        }
        Request::Takedown(targets) => {
            finder::have_written_again(&RunDir::path_of(given.as_deref())?);
            let dir = dir(false)?;
            let result = operator::takedown(&dir, &targets, log);
            dir.leave();
            result
        }
        Request::Reload(targets, surroundings) => {
            finder::have_written_again(&RunDir::path_of(given.as_deref())?);
            operator::reload(&dir(false)?, &targets, surroundings, log)
        }
        Request::Run(run) => {
            let front = sys::process::take_line();
            if let (None, Some(server)) = (&front, sys::process::server_to_care_for()) {
                let failed = |e| Error::unable("be a caretaker", e, "nothing was started");
                let server = server.map_err(failed)?;
                let dir = RunDir::open(from_environment().as_deref(), true)?;
                let output = Output::open(&run)?;
                output.leave_caller();
                return Ok(Supervisor::run(run, output, dir, log, Origin::Orphan(server)));
            }
            if run.detach && front.is_none() {
                sys::process::close_inherited();
            }
            let dir = match &front {
                Some((_, run_dir)) => RunDir::open(Some(run_dir), true)?,
                None => {
                    let path = RunDir::path_of(given.as_deref())?;
                    // The lock stays where servers come and go: without it, nobody was here, or somebody has cleared up.
                    if !path.join(rundir::LOCK).exists() {
                        finder::have_written_again(&path);
                    }
                    dir(true)?
                }
            };
            let output = Output::open(&run)?;
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
    }
}

fn print(text: &str) -> Result<u8> {
    use std::io::Write;
    // Help and version cannot fail: a reader that went away has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(error::status::DONE)
}
