//! `--takedown`.

#![forbid(unsafe_code)]

use super::conversation::Conversation;
use super::servers::{NOTHING, by_server, find};
use crate::address::Address;
use crate::cli::Target;
use crate::error::{Error, Result, reason, status};
use crate::finder::Holder;
use crate::message::Log;
use crate::protocol::{HolderWord, PeerWord};
use crate::rundir::RunDir;
use crate::swap::Level;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// How often, and after how long, a server is asked again if its supervisor seems to end.
const LOOKS: u32 = 100;
const LOOKS_EVERY: Duration = Duration::from_millis(20);

/// What came of asking a supervisor.
enum Answer {
    /// It has let go of all the addresses.
    Released,
    /// The server or its supervisor went away first.
    Gone,
    /// It does not do it, for this reason.
    Refused(String),
}

/// Takes addresses down, and returns when they are down.
pub fn takedown(dir: &RunDir, targets: &[Target], log: Log) -> Result<u8> {
    let mut servers: VecDeque<(Holder, Vec<Address>)> = by_server(dir, targets, log)?.into();
    let mut looks = LOOKS;
    while let Some((holder, list)) = servers.pop_front() {
        if list.is_empty() {
            return Err(Error::failed(format!("@{}: the server has no address ({NOTHING})", holder.pid)));
        }
        let failed = |why: &str| Err(Error::failed(format!("{}: unable to take down: {why}", list[0])));
        let released = match ask_down(dir, &holder, &list) {
            Ok(released) => released,
            Err(why) => return failed(&why),
        };
        // If it went away first, the server that has the addresses by now is asked in its place.
        let served = |address: &&Address| !released && find(dir, address, log).is_ok();
        let (left, down): (Vec<&Address>, Vec<&Address>) = list.iter().partition(served);
        for address in down {
            log.say(Level::Notice, Some(address), "taken down");
        }
        let left: Vec<Target> = left.into_iter().cloned().map(Target::At).collect();
        for next in by_server(dir, &left, log)? {
            if next.0.pid == holder.pid && !holder.has_lost_its_supervisor() && !next.0.has_lost_its_supervisor() {
                // The lock of a supervisor that is ending goes a moment after its sockets.
                if looks == 0 {
                    return failed("its supervisor does not answer (the server may still serve)");
                }
                looks -= 1;
                std::thread::sleep(LOOKS_EVERY);
            }
            match servers.iter_mut().find(|(known, _)| known.pid == next.0.pid) {
                Some((_, list)) => list.extend(next.1),
                None => servers.push_back(next),
            }
        }
    }
    Ok(status::DONE)
}

/// Takes addresses of one server down. `false` if the server or its supervisor went away first.
fn ask_down(dir: &RunDir, holder: &Holder, addresses: &[Address]) -> std::result::Result<bool, String> {
    if holder.has_lost_its_supervisor() {
        // It is asked again in a moment.
        return dir.with_caretaker(holder.pid).map(|()| false).map_err(|why| format!("{why} ({NOTHING})"));
    }
    match ask(holder, addresses) {
        Ok(Answer::Refused(why)) => Err(format!("{why} ({NOTHING})")),
        Ok(Answer::Released) => Ok(true),
        Ok(Answer::Gone) => Ok(false),
        Err(e) if is_end(&e) => Ok(false),
        Err(e) => Err(format!("its supervisor does not answer: {} ({NOTHING})", reason(&e))),
    }
}

fn ask(holder: &Holder, addresses: &[Address]) -> io::Result<Answer> {
    let mut supervisor = Conversation::with(holder)?;
    for address in addresses {
        supervisor.say(&PeerWord::Down(address.clone()))?;
    }
    supervisor.say(&PeerWord::Commit)?;
    let mut left: Vec<&Address> = addresses.iter().collect();
    while let Some(word) = supervisor.hear()? {
        match word {
            HolderWord::Released(address) => left.retain(|a| **a != address),
            HolderWord::Gone => return Ok(Answer::Gone),
            HolderWord::Refused(why) => return Ok(Answer::Refused(why)),
            HolderWord::Peer(_)
            | HolderWord::Holds(_)
            | HolderWord::Sockets(_)
            | HolderWord::Order(_)
            | HolderWord::Locked
            | HolderWord::Joins(_)
            | HolderWord::Reloaded
            | HolderWord::Done
            | HolderWord::Said(_)
            | HolderWord::Waits(_)
            | HolderWord::Failed(..)
            | HolderWord::Field(..)
            | HolderWord::End
            | HolderWord::Error(_) => {}
        }
        if left.is_empty() {
            return Ok(Answer::Released);
        }
    }
    Ok(Answer::Gone)
}

/// Whether the error can mean that the supervisor has ended.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound)
}
