//! The switch of a shared port, and what follows from it: the drain of the old server, until nobody holds any of its
//! listeners.

use super::care::TAKEN_OVER;
use super::live::Live;
use super::state::{Linger, Supervisor};
use super::threads::Id;
use crate::address::Address;
use crate::drain::Drain;
use crate::procfs;
use crate::relay::Keeping;
use crate::swap::{self, Level, OldId};
use crate::sys::process::Pid;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often to look for a holder of an ended old server's listener. One that stays longer than this is named.
pub(super) const LINGERS: Duration = Duration::from_millis(200);

impl Supervisor {
    pub(super) fn switch(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        let (mut abandoned, result) = live.joining.sharing.switch(&live.server);
        // If the new server has nothing at all at an address, the machine reports that.
        let claims = Address::all(&live.machine.claims());
        abandoned.retain(|place| Address::from(*place).among(&claims).next().is_some());
        for place in abandoned {
            let text = format!("the new server does not listen on {place} (it is abandoned)");
            self.log.say(Level::Warning, Some(&place.into()), &text);
        }
        if let Err(e) = result {
            let text = format!("unable to steer the port: {} (the swap goes on)", crate::error::reason(&e));
            self.log.say(Level::Warning, None, &text);
        }
        let replaced = self.peers.olds.values().filter(|old| old.locked);
        self.write_replaced(replaced.map(|old| old.holder.pid).collect());
    }

    pub(super) fn switch_back(&mut self) {
        if let Some(live) = self.live.as_mut() {
            live.joining.sharing.switch_back(&live.server);
        }
        self.write_replaced(Vec::new());
    }

    /// Writes into the record which servers ours has replaced. If we die, that tells whether the switch was made.
    pub(super) fn write_replaced(&mut self, replaced: Vec<Pid>) {
        if let Some(live) = self.live.as_mut()
            && live.names.replaced != replaced
        {
            live.names.replaced = replaced;
            self.register_again();
        }
    }

    /// Lets go of the ports whose old servers are all gone, once the new one has proven itself.
    pub(super) fn finish_sharing(&mut self) {
        let Some(live) = self.live.as_mut().filter(|live| !live.joining.sharing.is_empty()) else { return };
        if !self.peers.olds.is_empty() {
            return;
        }
        if !(live.life.was_up || live.machine.is_leaving()) {
            return live.joining.sharing.forget_olds(&live.server);
        }
        live.joining.proving.clear();
        // What cannot be taken off now is taken off at a later look.
        if live.joining.sharing.finish(&live.server) {
            self.write_replaced(Vec::new());
        }
    }

    /// An old server is gone, as its supervisor says. As long as somebody holds a listener of its, connections could go
    /// there: what steers stays, and so does the claim.
    pub(super) fn old_gone(&mut self, id: Id) {
        let Some(old) = self.peers.olds.get_mut(&id) else { return };
        if let Some(holder) = self.live.as_ref().and_then(|live| live.joining.sharing.holder_of(id)) {
            let linger = *old.lingers.get_or_insert(Linger::Since(Instant::now()));
            if matches!(linger, Linger::Since(since) if since.elapsed() > LINGERS) {
                old.lingers = Some(Linger::Named);
                let (pid, command) = (holder.pid, procfs::command_line(holder.pid));
                let text = format!(
                    "the old server has ended, but pid {pid} ({command}) holds its listener (it is waited for)"
                );
                let name = self.live.as_ref().and_then(|live| live.names.name.clone());
                self.log.say(Level::Warning, name.as_ref(), &text);
            }
            // The holder may be an orphan, such as an older server that drains: its caretaker brings it to an end.
            if let Some(orphan) = self.dir.holder(holder.pid).ok().filter(|holder| holder.is_orphan) {
                self.care(&orphan, TAKEN_OVER);
            }
            return self.poll_by(Instant::now() + LINGERS);
        }
        if let Some(live) = self.live.as_mut()
            && !live.joining.sharing.drop_olds(id, &live.server)
        {
            // Until the kernel has closed the listener, the next claimer would take it for a stranger's.
            old.lingers.get_or_insert(Linger::Since(Instant::now()));
            return self.poll_soon();
        }
        self.peers.olds.remove(&id);
        self.claims_no_orphans();
        self.feed(swap::Event::OldGone(OldId(id)));
    }

    pub(super) fn drain(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        (live.standing.gave_way, live.standing.drains, live.standing.quiesced) = (true, true, false);
        if let Err(e) = start_drain(live) {
            let text = format!("unable to watch its connections: {} (it is tried again)", crate::error::reason(&e));
            self.log.say(Level::Warning, live.names.name.as_ref(), &text);
        }
        self.keep();
        self.poll_soon();
    }

    pub(super) fn cut_off(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        if !live.standing.drains {
            return;
        }
        let held = live.standing.keeping.as_mut().map_or(BTreeSet::new(), Keeping::held);
        let text = match live.standing.drain.as_ref().map(|drain| drain.busy(&live.server, &held)) {
            Some(Ok(0)) => return,
            Some(Ok(busy)) => format!("the time to drain is up with {busy} busy connections (they are cut)"),
            Some(Err(_)) | None => {
                "the time to drain is up, and its connections could not be watched (busy ones are cut)".into()
            }
        };
        self.log.say(Level::Warning, live.names.name.as_ref(), &text);
    }

    /// The server is gone: nobody may wait for it, and no handle of ours may hold a
    /// queue open that nobody reads.
    pub(super) fn server_is_gone(&mut self) {
        self.hold_kept();
        let Some(live) = self.live.as_mut() else { return };
        live.stop_drain();
        live.opening.calls.clear();
        live.opening.lent.clear();
        live.joining.proving.clear();
        std::mem::take(&mut live.joining.sharing).turn_back();
    }
}

impl Live {
    /// Ends the watch on the drain: the server gets new connections again, was told to stop, or is gone.
    pub(super) fn stop_drain(&mut self) {
        (self.standing.drains, self.standing.drain, self.standing.keeping) = (false, None, None);
    }
}

pub(super) fn start_drain(live: &mut Live) -> std::io::Result<()> {
    let time = live.machine.drain_time();
    live.standing.drain = Some(live.listeners().and_then(|listeners| Drain::start(listeners, time))?);
    Ok(())
}
