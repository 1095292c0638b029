//! A server of the same command that ours does not replace, because it has other addresses: `localhost` may have turned from
//! 127.0.0.1 to ::1 between two versions. Nobody may have meant to leave it.

#![forbid(unsafe_code)]

use super::state::Supervisor;
use crate::address::Address;
use crate::record::{Call, one_line};
use crate::rundir::pidfile;
use crate::swap::Level;
use crate::sys::pid::Pid;
use std::collections::BTreeSet;

/// How many addresses are named.
const NAMED_MAX: usize = 4;

impl Supervisor {
    /// Names the addresses at which other servers of the same command and directory go on.
    pub(super) fn name_left_behind(&self) {
        let Some(live) = self.live.as_ref().filter(|_| self.reloads.front.is_none()) else { return };
        let (command, dir) = (self.run.line(), Call::own().map(|own| own.dir));
        let Ok(servers) = self.dir.servers() else { return };
        let is_left =
            |other: &Pid| *other != live.server.pid && !self.peers.olds.values().any(|old| old.holder.pid == *other);
        let same = servers.into_iter().filter(|other| other.command == one_line(&command));
        let same = same.filter(|other| other.call.as_ref().map(|call| &call.dir) == dir.as_ref());
        let left: BTreeSet<Pid> = same.map(|other| other.pid).filter(is_left).collect();
        if left.is_empty() {
            return;
        }
        let Ok(all) = self.dir.addresses() else { return };
        let is_theirs = |address: &Address| self.dir.read_pid(&pidfile(address)).is_ok_and(|pid| left.contains(&pid));
        let theirs: Vec<Address> = all.into_iter().filter(is_theirs).collect();
        let own = live.machine.addresses();
        let port = |address: &Address| if let Address::Tcp(_, port) = address { Some(*port) } else { None };
        let near = |address: &&Address| port(address).is_some() && own.iter().any(|own| port(own) == port(address));
        // At another port it is meant, as a rule.
        let near: Vec<String> = theirs.iter().filter(near).map(Address::to_string).take(NAMED_MAX).collect();
        if !near.is_empty() {
            let list = near.join(" ");
            let text = format!("an older server of the same command goes on at {list} (--takedown {list} ends it)");
            self.log.say(Level::Warning, own.first(), &text);
        }
    }
}
