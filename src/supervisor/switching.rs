//! The switch of a shared port, and what follows from it: the drain of the old server, until nobody holds any of its
//! listeners.

use super::care::{TAKEN_OVER, steer_away};
use super::live::Live;
use super::state::{Linger, Supervisor};
use super::threads::{self, Id};
use crate::address::Address;
use crate::drain::Drain;
use crate::finder::Holder;
use crate::procfs::{self, Held};
use crate::protocol::PeerWord;
use crate::record::Olds;
use crate::recovery::Scene;
use crate::relay::{Keeping, Reach};
use crate::server::Server;
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
        self.write_switched();
    }

    /// Writes into the record whose new connections our server has, and whether these are kept.
    pub(super) fn write_switched(&mut self) {
        let locked: Vec<Pid> = self.peers.olds.values().filter(|old| old.locked).map(|old| old.holder.pid).collect();
        // And those that drain behind them.
        let behind =
            locked.iter().filter_map(|pid| self.dir.holder(*pid).ok()).flat_map(|old| old.olds.replaced.clone());
        let mut replaced: Vec<Pid> = behind.filter(|pid| self.dir.holder(*pid).is_ok()).collect();
        let mut kept = Vec::new();
        let is_on_trial = self.live.as_ref().is_some_and(|live| live.machine.keeps_olds());
        if is_on_trial { &mut kept } else { &mut replaced }.extend(locked);
        self.write_olds(Olds { replaced, kept });
    }

    /// Tells the servers that drain behind ours that it has their connections, and that their time is up if more than
    /// `most` drain.
    pub(super) fn limit_draining(&self, most: usize) {
        let Some(live) = self.live.as_ref() else { return };
        let mut behind: Vec<Holder> = live.names.replaced.iter().filter_map(|pid| self.dir.holder(*pid).ok()).collect();
        behind.sort_by_key(|old| std::cmp::Reverse((old.generation, old.start)));
        for (newer, old) in behind.iter().enumerate() {
            let word = PeerWord::Superseded(newer >= most);
            let known = self.peers.olds.iter().find(|(_, known)| known.holder.pid == old.pid);
            match known {
                Some((id, _)) if newer >= most => self.tell(*id, &word),
                Some(_) => {}
                // Whoever has claimed it is gone.
                None => _ = threads::tell(old.socket.clone(), old.owner, word),
            }
        }
    }

    pub(super) fn switch_back(&mut self) {
        if let Some(live) = self.live.as_mut() {
            live.joining.sharing.switch_back(&live.server);
        }
        // Of a server that was on trial the record says so to its end: if we die, it is the one that goes.
        let kept = self.live.as_ref().map_or(Vec::new(), |live| live.names.kept.clone());
        self.write_olds(Olds { replaced: Vec::new(), kept });
    }

    /// Writes into the record which servers ours has replaced. If we die, that tells whether the switch was made.
    pub(super) fn write_olds(&mut self, Olds { replaced, kept }: Olds) {
        if let Some(live) = self.live.as_mut()
            && (live.names.replaced != replaced || live.names.kept != kept)
        {
            (live.names.replaced, live.names.kept) = (replaced, kept);
            self.register_again();
        }
    }

    /// Servers that were on trial beside ours drain behind it, as if it had replaced them. Who claims ours steers all of them:
    /// they have no new connections any more before the record says so. The pidfiles that named them are ours again.
    pub(super) fn drain_behind(&mut self, scene: &Scene) {
        let Some(names) = self.live.as_ref().map(|live| &live.names) else { return };
        let (mut replaced, kept) = (names.replaced.clone(), names.kept.clone());
        for new in scene.undone() {
            if replaced.contains(&new.pid) {
                continue;
            }
            if let Some(server) = self.dir.holder(new.pid).ok().and_then(|holder| Server::adopt(&holder)) {
                let scene = scene.of(new);
                steer_away(&scene, &server, &scene.recover(None));
            }
            replaced.push(new.pid);
        }
        if self.live.as_ref().is_some_and(|live| live.names.replaced != replaced) {
            self.write_olds(Olds { replaced: replaced.clone(), kept });
            self.write_pidfiles(&replaced);
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
        if live.machine.is_turned_back() {
            // It has lost its claim on an old server that lives.
            return std::mem::take(&mut live.joining.sharing).turn_back();
        }
        // What cannot be taken off now is taken off at a later look.
        if live.joining.sharing.finish(&live.server) {
            self.write_olds(Olds::default());
        }
    }

    /// An old server is gone, as its supervisor says. As long as somebody holds a listener of its, connections could go
    /// there: what steers stays, and so does the claim.
    pub(super) fn old_gone(&mut self, id: Id) {
        if !self.peers.olds.contains_key(&id) {
            return;
        }
        let known = self.live.as_ref().map(|live| live.joining.known());
        if let Some(holder) = known.and_then(|known| known.holder_of(id)) {
            let server = self.dir.holder(holder.pid).ok();
            // One that drains behind it, and that ours does not listen beside yet, may serve again: it is looked for anew.
            if server.is_none() || known.is_some_and(|known| known.is_beside(id)) {
                return self.linger(id, holder, server);
            }
        }
        let Some(old) = self.peers.olds.get_mut(&id) else { return };
        if let Some(live) = self.live.as_mut()
            && !live.joining.drop_olds(id, &live.server)
        {
            // Until the kernel has closed the listener, the next claimer would take it for a stranger's.
            old.lingers.get_or_insert(Linger::Since(Instant::now()));
            return self.poll_soon();
        }
        self.peers.olds.remove(&id);
        self.claims_no_orphans();
        self.feed(swap::Event::OldGone(OldId(id)));
    }

    /// Somebody holds a listener of an old server that has ended: `server`, if it is one that drains behind that.
    fn linger(&mut self, id: Id, holder: Held, server: Option<Holder>) {
        let Some(old) = self.peers.olds.get_mut(&id) else { return };
        let linger = *old.lingers.get_or_insert(Linger::Since(Instant::now()));
        if matches!(linger, Linger::Since(since) if since.elapsed() > LINGERS) && server.is_none() {
            old.lingers = Some(Linger::Named);
            let (pid, command) = (holder.pid, procfs::command_line(holder.pid));
            let text =
                format!("the old server has ended, but pid {pid} ({command}) holds its listener (it is waited for)");
            let name = self.live.as_ref().and_then(|live| live.names.name.clone());
            self.log.say(Level::Warning, name.as_ref(), &text);
        }
        // An orphan that drains: its caretaker brings it to an end.
        let behind = self.live.as_ref().map_or(Vec::new(), |live| live.names.replaced.clone());
        let behind = behind.iter().filter_map(|pid| self.dir.holder(*pid).ok()).chain(server);
        for orphan in behind.filter(|old| old.is_orphan).collect::<Vec<Holder>>() {
            self.care(&orphan, TAKEN_OVER);
        }
        self.poll_by(Instant::now() + LINGERS);
    }

    pub(super) fn drain(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        (live.standing.gave_way, live.standing.drains, live.standing.quiesced) = (true, true, false);
        if let Err(e) = start_drain(live, self.run.relay) {
            let text = format!("unable to watch its connections: {} (it is tried again)", crate::error::reason(&e));
            self.log.say(Level::Warning, live.names.name.as_ref(), &text);
        }
        self.poll_soon();
    }

    pub(super) fn cut_off(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        if !live.standing.drains {
            return;
        }
        let held = live.standing.keeping.as_mut().map_or(BTreeSet::new(), Keeping::held);
        let busy = live.standing.drain.as_ref().map(|drain| drain.busy(&live.server, &held));
        self.agenda.course.cut = busy.as_ref().and_then(|busy| busy.as_ref().ok().copied());
        let text = match busy {
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
        live.joining.lent = None;
        std::mem::take(&mut live.joining.sharing).turn_back();
    }
}

impl Live {
    /// Ends the watch on the drain: the server gets new connections again, was told to stop, or is gone.
    pub(super) fn stop_drain(&mut self) {
        (self.standing.drains, self.standing.drain, self.standing.keeping) = (false, None, None);
    }
}

/// Begins to watch what the server still has, and to keep requests from it as far as `relay` goes: both or neither, so that
/// what is tried again is the whole.
pub(super) fn start_drain(live: &mut Live, relay: Reach) -> std::io::Result<()> {
    let time = live.machine.drain_time();
    let drain = Drain::start(live.listeners()?, time)?;
    let keeping = (relay != Reach::None).then(|| Keeping::new(relay, time)).transpose()?;
    (live.standing.drain, live.standing.keeping) = (Some(drain), keeping);
    Ok(())
}
