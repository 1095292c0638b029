//! The servers that a person names by their addresses.

#![forbid(unsafe_code)]

use super::conversation::ask_status;
use crate::address::Address;
use crate::cli::Target;
use crate::error::{Error, Result, reason};
use crate::finder::Holder;
use crate::message::Log;
use crate::procfs;
use crate::rundir::{RunDir, pidfile};
use crate::swap::Level;
use crate::sys::process::{self, Pid};
use std::io;

/// The consequence of most failures.
pub const NOTHING: &str = "nothing was done";

/// A supervisor that was asked for something does not answer.
pub fn silent(target: &Target, verb: &str, e: &io::Error, consequence: &str) -> Error {
    let why = format!("its supervisor does not answer: {}", reason(e));
    Error::failed(format!("{target}: unable to {verb}: {why} ({consequence})"))
}

/// The server that has an address.
pub fn find(dir: &RunDir, address: &Address, log: Log) -> Result<Holder> {
    let mut notes = Vec::new();
    let mut holder = dir.serving(address, &mut notes);
    if holder.is_none() {
        // `:8080` is also how a person calls the only server there is on port 8080.
        let mut same = dir.colliding_with(address).map_err(|e| Error::unable("list the run directory", e, NOTHING))?;
        same.retain(|a| a != address);
        if let [only] = &same[..] {
            holder = dir.serving(only, &mut notes);
        }
    }
    for note in notes {
        log.say(Level::Warning, Some(address), &note);
    }
    holder.ok_or_else(|| Error::failed(format!("{address}: no server (nothing was done)")))
}

/// The only server that has an address without a pidfile. The pidfile may be on its way back to it from a successor that
/// was killed, or somebody has removed it.
fn without_pidfile(dir: &RunDir, address: &Address) -> Option<Holder> {
    if !dir.colliding_with(address).is_ok_and(|colliding| colliding.is_empty()) {
        return None;
    }
    let has = |other: &Holder| ask_status(other).1.iter().any(|a| a.collides(address));
    let mut servers = dir.servers().ok()?.into_iter().filter(has);
    servers.next().filter(|_| servers.next().is_none())
}

/// The servers that are named, each with its addresses among these, in the order in which they were named. `@PID` names all
/// addresses of its server.
pub fn by_server(dir: &RunDir, targets: &[Target], log: Log) -> Result<Vec<(Holder, Vec<Address>)>> {
    let mut servers: Vec<(Holder, Vec<Address>)> = Vec::new();
    for target in targets {
        let (holder, addresses) = match target {
            Target::At(address) => {
                let holder = find(dir, address, log).or_else(|e| without_pidfile(dir, address).ok_or(e))?;
                (holder, vec![address.clone()])
            }
            Target::Of(pid) => {
                let holder = with_process(dir, *pid)?;
                let mut addresses = ask_status(&holder).1;
                // A server without a supervisor, or with one that does not answer, is known by its pidfiles.
                if addresses.is_empty() {
                    let all = dir.addresses().map_err(|e| Error::unable("list the run directory", e, NOTHING))?;
                    let is_its = |address: &Address| dir.read_pid(&pidfile(address)) == Ok(holder.pid);
                    addresses = all.into_iter().filter(is_its).collect();
                }
                (holder, addresses)
            }
        };
        match servers.iter_mut().find(|(known, _)| known.pid == holder.pid) {
            Some((_, list)) => list.extend(addresses),
            None => servers.push((holder, addresses)),
        }
    }
    Ok(servers)
}

/// The server with this main process or supervisor. The front of a reloaded server counts as its supervisor; of two that
/// have one, the younger server is meant.
pub fn with_process(dir: &RunDir, pid: Pid) -> Result<Holder> {
    // A supervisor may be the parent of others too: process 1 of those that were started with -d, anybody of caretakers.
    let is_front = |of: Pid| {
        procfs::stat(of).is_some_and(|stat| stat.parent == pid.raw())
            && procfs::environment(of, process::LINE).is_some()
    };
    let servers = dir.servers().map_err(|e| Error::unable("list the run directory", e, NOTHING))?;
    let (its, others): (Vec<Holder>, Vec<Holder>) =
        servers.into_iter().partition(|holder| holder.pid == pid || !holder.is_orphan && holder.supervisor == pid);
    let copies = others.into_iter().filter(|holder| !holder.is_orphan && is_front(holder.supervisor));
    let named = copies.chain(its).max_by_key(|holder| holder.generation);
    named.ok_or_else(|| Error::failed(format!("@{pid}: no server of this run directory has this process ({NOTHING})")))
}
