//! Removing what dead supervisors and dead servers left in the run directory.

use super::{Holder, Missing};
use crate::procfs;
use crate::record::{one_line, parse_number};
use crate::rundir::{Denied, RunDir};
use std::collections::BTreeSet;

impl RunDir {
    /// Removes what the dead left behind; `false` if somebody holds the lock.
    pub fn tidy(&self) -> bool {
        match self.lock() {
            Ok(_guard) => drop(self.sweep()),
            Err(Denied::Busy) => return false,
            Err(Denied::Because(_)) => {}
        }
        true
    }

    /// The generation that a new server with this command line most likely becomes, before it has said what it wants:
    /// one more than the server with the same command, or than the only server if it runs the same program.
    pub fn next_generation(&self, command: &str) -> u64 {
        let servers = match self.lock() {
            Ok(_guard) => self.sweep(),
            Err(_) => self.servers().unwrap_or_default(),
        };
        let command = one_line(command);
        let program = |command: &str| command.split(' ').next().map(str::to_owned);
        let same = servers.iter().filter(|h| h.command == command).map(|h| h.generation).max();
        // One that drains is nobody's predecessor any more.
        let is_replaced = |server: &&Holder| servers.iter().any(|newer| newer.olds.replaced.contains(&server.pid));
        let alike = match servers.iter().filter(|server| !is_replaced(server)).collect::<Vec<_>>()[..] {
            [only] if program(&only.command) == program(&command) => Some(only.generation),
            _ => None,
        };
        same.or(alike).unwrap_or(0) + 1
    }

    /// As [`RunDir::tidy`], with the lock held. Returns the servers that live.
    pub(super) fn sweep(&self) -> Vec<Holder> {
        // What cannot be listed stays.
        let Ok(names) = self.names_that_end("") else { return self.servers().unwrap_or_default() };
        let mut servers = Vec::new();
        let mut kept = Some(BTreeSet::new());
        for name in &names {
            let Some(pid) = name.strip_suffix(".server").and_then(parse_number) else { continue };
            match self.holder(pid) {
                Ok(holder) => {
                    // Its sockets bear the pid of its first supervisor, even if a caretaker has them now.
                    let own = holder.socket.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                    kept.iter_mut().for_each(|all: &mut BTreeSet<String>| all.extend(own.clone()));
                    servers.push(holder);
                }
                Err(Missing::Gone) => self.unlink(name),
                Err(Missing::Unclear | Missing::Elsewhere | Missing::Unseen) => match self.sockets_of(pid) {
                    Ok(sockets) => kept.iter_mut().for_each(|all| all.extend(sockets.clone())),
                    Err(_) => kept = None,
                },
            }
        }
        // A server that may live keeps its sockets.
        for name in names.iter().filter(|name| kept.as_ref().is_some_and(|kept| self.is_left(name, kept))) {
            self.unlink(name);
        }
        self.forget_histories(&names);
        servers
    }

    /// Whether this is a socket or an unfinished file of a process that has ended. `kept`: the names, without suffix,
    /// of the sockets of servers that may live.
    fn is_left(&self, name: &str, kept: &BTreeSet<String>) -> bool {
        let pid = |stem: &str| stem.split('-').next().and_then(parse_number);
        if let Some(stem) = name.strip_suffix(".sock").or(name.strip_suffix(".notify")) {
            pid(stem).is_some_and(|supervisor| procfs::has_ended(supervisor) && !kept.contains(stem))
        } else {
            let writer = name.strip_prefix(".new.").and_then(pid);
            writer.is_some_and(|writer| name == self.temporary_name(writer) && procfs::has_ended(writer))
        }
    }
}
