//! What the caller of `-d` waits for, in one line of its terminal that is written again every second.

#![forbid(unsafe_code)]

use super::state::{PROGRESS_EVERY, Supervisor};
use crate::address::Address;
use crate::sys::net;
use std::time::Instant;

impl Supervisor {
    /// When the line is to be written next.
    pub(super) fn progress_at(&self) -> Option<Instant> {
        self.caller.launcher.as_ref().and(self.caller.watcher.as_ref()).map(|watcher| watcher.next)
    }

    pub(super) fn show_progress(&mut self) {
        let now = Instant::now();
        if self.progress_at().is_none_or(|at| at > now) {
            return;
        }
        let text = self.waits_for();
        if let (Some(watcher), Some(text)) = (self.caller.watcher.as_mut(), text) {
            watcher.next = now + PROGRESS_EVERY;
            self.log.say_progress(&format!("{text} ({} s)", (now - watcher.since).as_secs()));
        }
    }

    fn waits_for(&self) -> Option<String> {
        let live = self.live.as_ref()?;
        if let Some(missing) = live.machine.missing() {
            return Some(format!("waits for server {}: {missing}", live.server.pid));
        }
        let addresses = Address::all(&live.machine.addresses());
        let own = live.server.socket_inodes();
        let is_here = |at: &Address| at.among(&addresses).next().is_some();
        let left = net::connections().ok().zip(own).map(|(all, own)| {
            all.iter().filter(|s| is_here(&s.local) && s.inode != 0 && !own.contains(&s.inode)).count()
        });
        let olds: Vec<String> = self.peers.olds.values().map(|old| old.holder.pid.to_string()).collect();
        let left = left.map_or(String::new(), |left| format!(", {left} connections left"));
        (!olds.is_empty()).then(|| format!("waits for the end of server {}{left}", olds.join(", ")))
    }
}
