//! A new server on trial: it gets its share of the new connections, or all of them while the old server is kept.

#![forbid(unsafe_code)]

use super::state::Supervisor;
use crate::address::Address;
use crate::error::reason;
use crate::protocol::{CopyWord, PeerWord};
use crate::record::Olds;
use crate::swap::{Level, OldId, Share};

impl Supervisor {
    /// Our server gets this share of the new connections from here on.
    pub(super) fn portion(&mut self, share: Share) {
        let Some(live) = self.live.as_mut() else { return };
        let (without, result) = live.joining.sharing.portion(share.permille, &live.server);
        if let Err(e) = result {
            let text = format!("unable to steer the port: {} (the canary goes on)", reason(&e));
            self.log.say(Level::Warning, None, &text);
        }
        for place in without {
            let text = "connections cannot be shared out here (the new server gets them with the switch)";
            self.log.say(Level::Warning, Some(&place.into()), text);
        }
        let name = live.machine.name();
        let text = format!("server {} gets {share} of the new connections", live.server.pid);
        self.log.say(Level::Notice, name.as_ref(), &text);
        self.write_switched();
    }

    /// Our server has all new connections, and the old one is kept: whoever waits for the swap is told how to go on.
    pub(super) fn held(&mut self) {
        let Some(live) = self.live.as_ref() else { return };
        let (name, pid) = (live.machine.name(), live.server.pid);
        let target = name.as_ref().map_or_else(|| format!("@{pid}"), Address::to_string);
        let time = self.run.trial.hold.as_secs_f64();
        let dir = self.dir.option();
        let text = format!(
            "server {pid} has all new connections; the old one is kept for {time} s (to have it back: serverswap {dir}--undo {target}; to let it go: serverswap {dir}--commit {target})"
        );
        self.log.say(Level::Notice, name.as_ref(), &text);
        let olds = self.peers.olds.iter().filter(|(_, old)| old.locked);
        olds.for_each(|(id, _)| self.tell(*id, &PeerWord::Held));
        self.tell_ready();
        self.dismiss();
        self.tell_front(&CopyWord::Held);
    }

    /// The service manager, or our front, hears once that our server is up: not in its canary, which may fail.
    pub(super) fn tell_ready(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        if live.machine.share().is_none() && !std::mem::replace(&mut live.life.ready_said, true) {
            self.tell_manager("READY=1");
        }
    }

    /// The old server may drain. If it was kept until now, the record says so first.
    pub(super) fn ask_drain(&mut self, old: OldId) {
        if let Some(names) = self.live.as_ref().map(|live| &live.names).filter(|names| !names.kept.is_empty()) {
            self.write_olds(Olds { replaced: names.olds(), kept: Vec::new() });
        }
        self.ask(old, PeerWord::Drain);
    }

    /// Whether nothing is waited for any more that clients could lose.
    pub(super) fn hurries(&self) -> bool {
        self.caller.stops > self.caller.excused
    }
}
