//! `--undo` and `--commit`: how the trial of a new server ends.

#![forbid(unsafe_code)]

use super::conversation::{Conversation, ask_status};
use super::servers::{NOTHING, with_process};
use crate::cli::{Target, Verdict};
use crate::error::{Error, Result, reason, status};
use crate::finder::Holder;
use crate::message::Log;
use crate::protocol::{HolderWord, PeerWord};
use crate::rundir::RunDir;
use crate::swap::Level;
use std::io;

/// Ends the trials of the new servers at these addresses. Returns when all connections go where they are to go.
pub fn decide(dir: &RunDir, targets: &[Target], verdict: Verdict, log: Log) -> Result<u8> {
    let (word, verb, done) = match verdict {
        Verdict::Undo => (PeerWord::Undo, "undo", "undone: the old server has all new connections"),
        Verdict::Commit => (PeerWord::Confirm, "commit", "committed: the old server is told to go"),
    };
    for target in targets {
        let failed = |why: &str| Error::failed(format!("{target}: unable to {verb}: {why} ({NOTHING})"));
        let holder = on_trial(dir, target)?.ok_or_else(|| failed("no new server is on trial there"))?;
        match ask(&holder, &word) {
            Ok(Ok(())) => log.say(Level::Notice, None, &format!("{target}: {done}")),
            Ok(Err(why)) => return Err(failed(&why)),
            Err(e) => {
                let why = format!("its supervisor does not answer: {}", reason(&e));
                return Err(Error::failed(format!("{target}: unable to {verb}: {why} (it may be under way)")));
            }
        }
    }
    Ok(status::DONE)
}

/// The new server at this address whose trial is under way.
fn on_trial(dir: &RunDir, target: &Target) -> Result<Option<Holder>> {
    let servers = match target {
        Target::Of(pid) => vec![with_process(dir, *pid)?],
        Target::At(_) => dir.servers().map_err(|e| Error::unable("list the run directory", e, NOTHING))?,
    };
    let is_meant = |holder: &Holder| {
        let (fields, holds) = ask_status(holder);
        let is_here = match target {
            Target::At(address) => holds.iter().any(|at| at.collides(address)),
            Target::Of(_) => true,
        };
        is_here && fields.get("trial").is_some_and(|trial| trial == "1")
    };
    Ok(servers.into_iter().find(is_meant))
}

/// The error is why it is not done.
fn ask(holder: &Holder, word: &PeerWord) -> io::Result<std::result::Result<(), String>> {
    let mut supervisor = Conversation::with(holder)?;
    supervisor.say(word)?;
    while let Some(heard) = supervisor.hear()? {
        match heard {
            HolderWord::Done => return Ok(Ok(())),
            HolderWord::Refused(why) | HolderWord::Error(why) => return Ok(Err(why)),
            _ => {}
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
