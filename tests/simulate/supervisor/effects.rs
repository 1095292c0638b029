//! `src/supervisor/effects.rs`: what the machine says is done.

use super::care::steer_away;
use super::{Supervisor, switching};
use crate::address::Address;
use crate::protocol::{HolderWord, PeerWord};
use crate::recovery::{Scene, Supervision};
use crate::server::Server;
use crate::swap::{ClaimerId, Effect, Event, OldId, Share};
use crate::sys::clock::Instant;
use crate::sys::pid::Pid;
use crate::world::dir::{Holder, pid};
use crate::world::land::{Land, MAX_DRAINING};
use std::collections::BTreeSet;
use std::time::Duration;

/// The product's `REGAIN_FOR`.
const REGAIN_FOR: Duration = Duration::from_secs(2);

impl Supervisor {
    pub(super) fn carry_out(&mut self, land: &mut Land, effect: Effect) {
        if land.watch.is_verbose && !matches!(effect, Effect::Report(..)) {
            land.watch.said.push(format!("{}: {effect:?}", self.pid));
        }
        match effect {
            Effect::Say(_, word) => land.say(self.server.0, word),
            Effect::LookUp(address) => self.look_up(land, address),
            Effect::Lock(old) => self.lock(old),
            Effect::Unlock(old) => self.unlock(land, old),
            Effect::Take(_, address) => self.take(land, address),
            Effect::Hold(address) => self.hold(land, address),
            Effect::AskTakedown(_, old, address) => self.ask(land, old, PeerWord::Takedown(address)),
            Effect::AskStop(_, old) => self.ask(land, old, PeerWord::Stop),
            Effect::AskDrain(_, old) => self.ask_drain(land, old),
            Effect::AskStay(old) => self.ask(land, old, PeerWord::Stay),
            Effect::Admit(address) => self.admit(land, &address),
            Effect::Pass(address) => self.pass(land, &address),
            Effect::Deny(address) => self.deny(land, &address),
            Effect::Join(address) => self.join(land, &address),
            Effect::Check => self.feed(Event::Checked(Ok(()))),
            Effect::Portion(share) => self.portion(land, share),
            // Only people hear of it.
            Effect::TellDone(_) => {}
            Effect::Held => self.held(land),
            Effect::Switch(_) => self.switch(land),
            Effect::SwitchBack => self.switch_back(land),
            Effect::Drain => self.drain(),
            // No connection is kept there.
            Effect::Park(_) => self.feed(Event::Parked),
            Effect::CutOff => land.watch.cut_off(self.server.0),
            Effect::Kill => land.kill(self.server.0),
            Effect::Grant(claimer, holds) => self.grant(land, claimer, holds),
            Effect::TellReleased(claimer, address) => self.tell(land, claimer, &HolderWord::Released(address)),
            Effect::Refuse(claimer, why) => self.tell(land, claimer, &HolderWord::Refused(why)),
            Effect::TellGone(claimer) => {
                self.retire(land);
                self.tell(land, claimer, &HolderWord::Gone);
            }
            Effect::SendOn(claimer) => self.tell(land, claimer, &HolderWord::Gone),
            Effect::Arm(timer, time) => self.agenda.timers.arm(timer, time),
            Effect::Disarm(timer) => self.agenda.timers.disarm(timer),
            Effect::Pause(timer) => self.agenda.timers.pause(timer),
            Effect::Resume(timer) => self.agenda.timers.resume(timer),
            Effect::Report(level, address, text) => land.watch.hear(self.pid, level, address, text),
            Effect::Up => self.up(land),
            // Only people hear of it.
            Effect::TellWaits(..) => {}
            Effect::Sure => self.limit_draining(land, MAX_DRAINING),
            Effect::Hasten => self.limit_draining(land, 0),
            Effect::Passed => self.is_done = true,
            Effect::Done => {
                self.is_done = true;
                land.watch.done(self.server.0);
            }
            Effect::End(status) => self.end(land, status),
            Effect::Unhold(_)
            | Effect::Settle
            | Effect::StopDrain
            | Effect::Commit
            | Effect::Watch(_)
            | Effect::WatchRelease(_)
            | Effect::Signal => self.note_on_server(land, effect),
        }
    }

    fn note_on_server(&mut self, land: &mut Land, effect: Effect) {
        let Some(live) = self.live.as_mut() else { return };
        match effect {
            Effect::Unhold(address) => {
                live.names.held.remove(&address);
                live.names.regaining.remove(&address);
                return land.dir.unhold(&address, self.server.0);
            }
            Effect::StopDrain => {
                live.stop_drain();
                if !live.machine.is_leaving() {
                    land.watch.is_widowed(self.server.0, false);
                }
                return;
            }
            Effect::Commit => return land.outlives(self.server.0),
            Effect::Signal => return land.signal(self.server.0),
            Effect::Settle => live.joining.settled = true,
            Effect::Watch(address) => _ = live.looks.watching.insert(address),
            Effect::WatchRelease(address) => _ = live.looks.releasing.insert(address),
            _ => return,
        }
        self.poll_soon();
    }

    fn take(&mut self, land: &mut Land, address: Address) {
        let locked = self.peers.olds.values().filter(|old| old.locked);
        let mut locked: Vec<Pid> = locked.map(|old| old.holder.pid).collect();
        locked.extend(self.live.iter().flat_map(|live| &live.names.replaced));
        if !self.register(land, &address, &locked) {
            self.look_up(land, address);
        }
    }

    pub(super) fn hold(&mut self, land: &mut Land, address: Address) {
        let mut replaced = self.live.as_ref().map_or(Vec::new(), |live| live.names.replaced.clone());
        let own = pid(self.server.0);
        let keeps = |other: &Holder| other.kept.contains(&own) && other.supervision() != Supervision::First;
        replaced.extend(land.dir.servers().into_iter().filter(keeps).map(|other| other.pid));
        if !self.register(land, &address, &replaced)
            && let Some(live) = self.live.as_mut()
        {
            live.names.regaining.insert(address, Instant::now() + REGAIN_FOR);
            self.poll_soon();
        }
    }

    pub(super) fn register(&mut self, land: &mut Land, address: &Address, olds: &[Pid]) -> bool {
        let Some(live) = self.live.as_mut() else { return true };
        let taken = land.dir.take(address, self.server.0, olds);
        if taken {
            live.names.held.insert(address.clone());
        }
        taken
    }

    fn grant(&mut self, land: &mut Land, claimer: ClaimerId, holds: Vec<Address>) {
        self.hand_over(land, claimer, &holds);
        for address in holds {
            self.tell(land, claimer, &HolderWord::Holds(address));
        }
        self.tell(land, claimer, &HolderWord::Locked);
    }

    fn up(&mut self, land: &mut Land) {
        let Some(live) = self.live.as_mut() else { return };
        live.life.was_up = true;
        land.watch.entitle(self.server.0);
        land.dir.claims_no_orphans(self.pid);
        self.tidy_later();
    }

    fn end(&mut self, land: &mut Land, status: u8) {
        self.retire(land);
        if self.live.take().is_none() {
            return;
        }
        self.agenda.timers.forget();
        self.agenda.unclear.clear();
        land.doors.remove(&self.server.0);
        for stream in std::mem::take(&mut self.peers.claimers).into_keys() {
            land.close(stream, self.pid);
        }
        let olds: Vec<u64> = self.peers.olds.keys().copied().collect();
        olds.into_iter().for_each(|id| self.unlock(land, OldId(id)));
        land.dir.claims_no_orphans(self.pid);
        self.status = Some(status);
    }

    /// What its server has in the run directory is removed, with its record.
    pub(super) fn retire(&mut self, land: &mut Land) {
        let Some(live) = self.live.as_mut() else { return };
        for address in std::mem::take(&mut live.names.held) {
            land.dir.unhold(&address, self.server.0);
        }
        live.names.regaining.clear();
        land.dir.records.remove(&self.server.0);
    }

    pub(super) fn switch(&mut self, land: &mut Land) {
        let Some(live) = self.live.as_mut() else { return };
        let server = self.server;
        let (_, result) = live.joining.sharing.switch(&server);
        land.watch.switched(self.server.0, &result);
        self.write_switched(land);
    }

    fn portion(&mut self, land: &mut Land, share: Share) {
        let Some(live) = self.live.as_mut() else { return };
        let server = self.server;
        let _ = live.joining.sharing.portion(share.permille, &server);
        land.watch.entitle(self.server.0);
        self.write_switched(land);
    }

    /// These drain behind its server.
    pub(super) fn drain_behind(&mut self, land: &mut Land, scene: &Scene) {
        let Some(names) = self.live.as_ref().map(|live| &live.names) else { return };
        let (mut replaced, kept) = (names.replaced.clone(), names.kept.clone());
        for new in scene.undone() {
            if !replaced.contains(&new.pid) {
                let scene = scene.of(new);
                steer_away(&scene, Server(new.pid.raw()), &scene.recover(None));
                replaced.push(new.pid);
            }
        }
        self.write_olds(land, replaced, kept);
    }

    fn held(&mut self, land: &mut Land) {
        let olds: Vec<u64> = self.peers.olds.iter().filter(|(_, old)| old.locked).map(|(id, _)| *id).collect();
        olds.into_iter().for_each(|id| self.tell_old(land, id, &PeerWord::Held));
    }

    fn ask_drain(&mut self, land: &mut Land, old: OldId) {
        if let Some(names) = self.live.as_ref().map(|live| &live.names).filter(|names| !names.kept.is_empty()) {
            let replaced = names.replaced.iter().chain(&names.kept).copied().collect();
            self.write_olds(land, replaced, Vec::new());
        }
        self.ask(land, old, PeerWord::Drain);
    }

    fn write_switched(&mut self, land: &mut Land) {
        let locked: Vec<Pid> = self.peers.olds.values().filter(|old| old.locked).map(|old| old.holder.pid).collect();
        let then = self.peers.olds.values().filter(|old| old.locked).flat_map(|old| old.holder.replaced.clone());
        let now = locked.iter().filter_map(|pid| land.dir.holder(pid.raw())).flat_map(|old| old.replaced);
        let behind: BTreeSet<Pid> = then.chain(now).collect();
        let mut replaced: Vec<Pid> = behind.into_iter().filter(|pid| land.dir.holder(pid.raw()).is_some()).collect();
        let mut kept = Vec::new();
        let is_on_trial = self.live.as_ref().is_some_and(|live| live.machine.keeps_olds());
        if is_on_trial { &mut kept } else { &mut replaced }.extend(locked);
        self.write_olds(land, replaced, kept);
    }

    fn limit_draining(&mut self, land: &mut Land, most: usize) {
        let Some(live) = self.live.as_ref() else { return };
        let mut behind: Vec<_> = live.names.replaced.iter().filter_map(|pid| land.dir.holder(pid.raw())).collect();
        behind.sort_by_key(|old| std::cmp::Reverse((old.generation, old.pid)));
        for (newer, old) in behind.iter().enumerate() {
            let word = PeerWord::Superseded(newer >= most);
            let known = self.peers.olds.iter().find(|(_, known)| known.holder.pid == old.pid).map(|(id, _)| *id);
            match known {
                Some(id) if newer >= most => self.tell_old(land, id, &word),
                Some(_) => {}
                None => land.say_to_supervisor(self.pid, old.pid.raw(), &word),
            }
        }
    }

    pub(super) fn switch_back(&mut self, land: &mut Land) {
        if let Some(live) = self.live.as_mut() {
            let server = self.server;
            live.joining.sharing.switch_back(&server);
        }
        land.watch.unswitched(self.server.0);
        let kept = self.live.as_ref().map_or(Vec::new(), |live| live.names.kept.clone());
        self.write_olds(land, Vec::new(), kept);
    }

    pub(super) fn write_olds(&mut self, land: &mut Land, replaced: Vec<Pid>, kept: Vec<Pid>) {
        if let Some(live) = self.live.as_mut()
            && (live.names.replaced != replaced || live.names.kept != kept)
            && let Some(record) = land.dir.records.get_mut(&self.server.0)
        {
            record.replaced.clone_from(&replaced);
            record.kept.clone_from(&kept);
            (live.names.replaced, live.names.kept) = (replaced, kept);
        }
    }

    pub(super) fn drain(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        (live.standing.drains, live.standing.quiesced) = (true, false);
        switching::start_drain(live, self.server);
        self.poll_soon();
    }

    /// An operator ends the trial of its server, if it is on trial.
    pub fn decide(&mut self, land: &mut Land, event: Event) {
        if self.live.as_ref().is_some_and(|live| live.machine.is_on_trial()) {
            self.handle(land, event);
        }
    }

    pub fn told_to_stop(&mut self, land: &mut Land) {
        if let Some(live) = self.live.as_mut() {
            live.life.is_stopping = true;
            self.handle(land, Event::Stop { signalled: false });
        }
    }
}
