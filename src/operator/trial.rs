//! `--undo` and `--commit`: how the trial of a new server ends.

#![forbid(unsafe_code)]

use super::conversation::{Conversation, ask_status};
use super::servers::{NOTHING, silent, with_process};
use crate::cli::{Target, Verdict};
use crate::error::{Error, Result, status};
use crate::finder::Holder;
use crate::message::Log;
use crate::protocol::{HolderWord, PeerWord};
use crate::rundir::RunDir;
use crate::swap::Level;
use std::io;
use std::time::Duration;

/// How long a supervisor may take to answer: what it is asked for is done at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends the trials of the new servers at these addresses. Returns when all connections go where they are to go.
pub fn decide(dir: &RunDir, targets: &[Target], verdict: Verdict, log: Log) -> Result<u8> {
    let (word, verb, done) = match verdict {
        Verdict::Undo => (PeerWord::Undo, "undo", "undone: the old server has all new connections"),
        Verdict::Commit => (PeerWord::Confirm, "commit", "committed: the old server is told to go"),
    };
    let failed = |target: &Target, why: &str| Error::failed(format!("{target}: unable to {verb}: {why} ({NOTHING})"));
    // One server may have several of the addresses: all of them are found before the first is asked.
    let mut asked: Vec<(Holder, &Target)> = Vec::new();
    for target in targets {
        let holder = on_trial(dir, target)?.map_err(|why| failed(target, &why))?;
        if asked.iter().all(|(known, _)| known.pid != holder.pid) {
            asked.push((holder, target));
        }
    }
    for (holder, target) in asked {
        match ask(&holder, &word) {
            Ok(Ok(())) => log.say(Level::Notice, None, &format!("{target}: {done}")),
            Ok(Err(why)) => return Err(failed(target, &why)),
            Err(e) => return Err(silent(target, verb, &e, "it may be under way")),
        }
    }
    Ok(status::DONE)
}

/// The new server at this address whose trial is under way, or why there is none.
fn on_trial(dir: &RunDir, target: &Target) -> Result<std::result::Result<Holder, String>> {
    let servers = match target {
        Target::Of(pid) => vec![with_process(dir, *pid)?],
        Target::At(_) => dir.servers().map_err(|e| Error::unable("list the run directory", e, NOTHING))?,
    };
    let mut why = "no new server is on trial there".to_owned();
    for holder in servers {
        let (fields, holds) = ask_status(&holder);
        let is_here = match target {
            Target::At(address) => holds.iter().any(|at| at.collides(address)),
            Target::Of(_) => true,
        };
        match fields.get("trial") {
            Some(trial) if is_here && trial == "1" => return Ok(Ok(holder)),
            // It may be the one that is meant.
            None if !holder.is_orphan && !holder.olds.kept.is_empty() => {
                why = format!("supervisor {} does not answer", holder.supervisor);
            }
            Some(_) | None => {}
        }
    }
    Ok(Err(why))
}

/// The error is why it is not done.
fn ask(holder: &Holder, word: &PeerWord) -> io::Result<std::result::Result<(), String>> {
    let mut supervisor = Conversation::with(holder)?;
    supervisor.ends_after(PATIENCE);
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
