//! `--reload`.

#![forbid(unsafe_code)]

use super::conversation::Conversation;
use super::servers::{NOTHING, by_server, silent};
use crate::cli::Target;
use crate::error::{Error, Result, status};
use crate::message::Log;
use crate::protocol::{HolderWord, PeerWord, Surroundings};
use crate::rundir::RunDir;
use crate::swap::Level;
use std::io;
use std::time::Instant;

/// Reloads the servers at these addresses. Returns when each new server is up and each old one is gone. If a new server
/// fails, the error has its status.
pub fn reload(dir: &RunDir, targets: &[Target], surroundings: Surroundings, log: Log) -> Result<u8> {
    for (holder, list) in by_server(dir, targets, log)? {
        let target = list.into_iter().next().map_or(Target::Of(holder.pid), Target::At);
        let address = &target;
        if holder.has_lost_its_supervisor() {
            let refused = |why| Error::failed(format!("{address}: unable to reload: {why} (nothing was done)"));
            dir.with_caretaker(holder.pid).map_err(refused)?;
        }
        let since = Instant::now();
        let asked = Conversation::with(&holder).and_then(|supervisor| {
            supervisor.say(&PeerWord::Reload(surroundings))?;
            Ok(supervisor)
        });
        let mut supervisor = asked.map_err(|e| silent(address, "reload", &e, NOTHING))?;
        let mut answer = || -> io::Result<Option<HolderWord>> {
            let progress = || {
                let text = format!("{address}: waits for the new server ({} s)", since.elapsed().as_secs());
                log.say_progress(&text);
            };
            while let Some(word) = supervisor.hear_while(progress)? {
                if let HolderWord::Said(text) = &word {
                    log.say(Level::Error, None, text);
                }
                if let HolderWord::Error(why) = word {
                    // An earlier version, which does not know --fresh.
                    return Ok(Some(HolderWord::Failed(status::FAILED, why)));
                }
                if matches!(word, HolderWord::Reloaded | HolderWord::Failed(..)) {
                    return Ok(Some(word));
                }
            }
            Ok(None)
        };
        match answer() {
            Ok(Some(HolderWord::Failed(status, why))) => {
                return Err(Error { text: format!("{address}: reload failed: {why}"), status });
            }
            Ok(Some(_)) => log.say(Level::Notice, None, &format!("{address}: reloaded")),
            Ok(None) => {
                return Err(Error::failed(format!("{address}: reload failed: the supervisor is gone")));
            }
            Err(e) => return Err(silent(address, "reload", &e, "the reload may be under way")),
        }
    }
    Ok(status::DONE)
}
