//! Carrying out what the machines say.

#![forbid(unsafe_code)]

use super::threads::GenId;
use super::{Leftover, Live, OWN, Supervisor};
use crate::address::Address;
use crate::error::status;
use crate::protocol::{HolderWord, PeerWord, SupervisorWord};
use crate::swap::{ClaimerId, Effect, Event, Level, OldId, SpeakerId};
use crate::sys::process::Pid;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// How long a claimer's death may take to be seen in the run directory: its sockets close before its locks do.
const REGAIN_FOR: Duration = Duration::from_secs(2);

/// What the machine says of a server that it has killed.
const KILLED: &str = "it is killed";

impl Supervisor {
    pub(super) fn carry_out_now(&mut self, generation: GenId, effect: Effect) {
        self.note(generation, &effect);
        match effect {
            Effect::Say(speaker, word) => self.say(speaker, &word),
            Effect::LookUp(address) => self.look_up(generation, address),
            Effect::Lock(old) => self.lock(generation, old),
            Effect::Unlock(old) => self.unlock(old),
            Effect::Take(_, address) => self.take(generation, address),
            Effect::Hold(address) => self.hold(generation, address),
            Effect::AskTakedown(_, old, address) => {
                self.ask(old, Event::AskedTakedown(ClaimerId(old.0), address.clone()), PeerWord::Takedown(address));
            }
            Effect::AskStop(_, old) => self.ask(old, Event::AskedStop(ClaimerId(old.0)), PeerWord::Stop),
            Effect::AskDrain(_, old) => self.ask(old, Event::AskedDrain(ClaimerId(old.0)), PeerWord::Drain),
            Effect::AskStay(old) => self.ask(old, Event::AskedStay(ClaimerId(old.0)), PeerWord::Stay),
            Effect::Admit(address) => self.admit(generation, &address),
            Effect::Pass(address) => self.pass(generation, &address),
            Effect::Deny(address) => self.deny(generation, &address),
            Effect::Join(address) => self.join(generation, &address),
            Effect::Switch(_) => self.switch(generation),
            Effect::SwitchBack => self.switch_back(generation),
            Effect::Drain => self.drain(generation),
            Effect::CutOff => self.cut_off(generation),
            Effect::Kill => self.kill(generation),
            Effect::Grant(claimer, holds) => self.grant(generation, claimer, holds),
            Effect::TellReleased(claimer, address) => match self.local_claimer(claimer) {
                Some(of) => self.feed(of, Event::OldReleased(OldId(claimer.0), address)),
                None => self.tell_peer(claimer, [HolderWord::Released(address)]),
            },
            Effect::Refuse(claimer, why) => match self.local_claimer(claimer) {
                Some(of) => self.feed(of, Event::OldRefused(OldId(claimer.0), why)),
                None => self.tell_peer(claimer, [HolderWord::Refused(why)]),
            },
            Effect::TellGone(claimer) => self.tell_gone(generation, claimer),
            Effect::Arm(timer, time) => self.agenda.timers.arm(generation, timer, time),
            Effect::Disarm(timer) => self.agenda.timers.disarm(generation, timer),
            Effect::Pause(timer) => self.agenda.timers.pause(generation, timer),
            Effect::Resume(timer) => self.agenda.timers.resume(generation, timer),
            Effect::Report(level, address, text) => self.report(generation, level, address.as_ref(), text),
            Effect::Up => self.up(generation),
            Effect::Done => self.done(),
            Effect::End(status) => self.end(generation, status),
            Effect::Unhold(_)
            | Effect::Settle
            | Effect::StopDrain
            | Effect::Commit
            | Effect::Watch(_)
            | Effect::WatchRelease(_)
            | Effect::Signal => self.note_on_server(generation, effect),
        }
    }

    /// What concerns nobody but the server.
    fn note_on_server(&mut self, generation: GenId, effect: Effect) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        match effect {
            Effect::Unhold(address) => {
                live.names.held.remove(&address);
                live.names.regaining.remove(&address);
                return self.dir.unhold(&address, live.server.pid);
            }
            Effect::StopDrain => {
                live.stop_drain();
                live.standing.gave_way = live.machine.is_leaving();
                return;
            }
            Effect::Commit => return live.server.outlives_us(),
            Effect::Signal => {
                live.server.tell_jobs();
                return live.server.signal(self.run.stop_signal);
            }
            Effect::Settle => live.joining.settled = true,
            Effect::Watch(address) => _ = live.looks.watching.insert(address),
            Effect::WatchRelease(address) => _ = live.looks.releasing.insert(address),
            _ => return,
        }
        self.poll_soon();
    }

    fn say(&self, speaker: SpeakerId, word: &SupervisorWord) {
        let Some(conn) = self.peers.conns.get(&speaker.0) else { return };
        match word {
            SupervisorWord::Error(_) => conn.out.send_if_read(word),
            SupervisorWord::Go(_) | SupervisorWord::Takedown(_) => conn.out.send_or_drop(word),
        }
    }

    fn take(&mut self, generation: GenId, address: Address) {
        let locked = self.peers.olds.values().filter(|old| old.of == generation && old.locked);
        let locked: Vec<Pid> = locked.map(|old| old.server.0).collect();
        if !self.register(generation, &address, &locked) {
            self.look_up(generation, address);
        }
    }

    fn hold(&mut self, generation: GenId, address: Address) {
        if !self.register(generation, &address, &[])
            && let Some(live) = self.live.get_mut(&generation)
        {
            live.names.regaining.insert(address, Instant::now() + REGAIN_FOR);
            self.poll_soon();
        }
    }

    fn kill(&mut self, generation: GenId) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        live.life.killed = true;
        live.server.signal_all(Signal::SIGKILL, live.jobs());
        if !live.life.was_up && live.server.is_out_of_reach() {
            // It never ends for us, and whoever waits for the swap is told how it went.
            self.server_is_gone(generation);
            self.feed(generation, Event::Exited(status::NOT_UP));
        }
    }

    fn grant(&mut self, generation: GenId, claimer: ClaimerId, holds: Vec<Address>) {
        if let Some(live) = self.live.get_mut(&generation) {
            live.standing.claimed = Some(claimer);
        }
        match self.local_claimer(claimer) {
            Some(of) => self.locked(of, claimer.0, holds),
            None => {
                self.hand_over(generation, claimer, &holds);
                let words = holds.into_iter().map(HolderWord::Holds).chain([HolderWord::Locked]);
                self.tell_peer(claimer, words);
            }
        }
        // While the claimer gets to work.
        if let Some(live) = self.live.get(&generation) {
            live.server.tell_jobs();
        }
    }

    fn tell_gone(&mut self, generation: GenId, claimer: ClaimerId) {
        // Whoever hears of it may look at the run directory at once.
        self.retire(generation);
        match self.local_claimer(claimer) {
            Some(_) => self.old_gone(claimer.0),
            None => self.tell_peer(claimer, [HolderWord::Gone]),
        }
    }

    fn report(&mut self, generation: GenId, level: Level, address: Option<&Address>, text: String) {
        let is_out_of_reach = |live: &Live| live.server.is_out_of_reach();
        let text = match text.contains(KILLED) && self.live.get(&generation).is_some_and(is_out_of_reach) {
            true => text.replace(KILLED, "it runs as another user and cannot be killed: it lives on"),
            false => text,
        };
        self.log.say(level, address, &text);
    }

    /// Writes the pidfile; `false` if somebody living has the address who is not one of `olds`.
    pub(super) fn register(&mut self, generation: GenId, address: &Address, olds: &[Pid]) -> bool {
        let Some(live) = self.live.get_mut(&generation) else { return true };
        match self.dir.take(address, live.server.pid, olds, &live.names.beside) {
            Ok(false) => return false,
            Ok(true) => {
                live.names.held.insert(address.clone());
            }
            Err(why) => {
                let text = format!("unable to write its pidfile: {why} (the swap goes on)");
                self.log.say(Level::Warning, Some(address), &text);
            }
        }
        true
    }

    /// The steps of a swap, for those who want to watch.
    fn note(&self, generation: GenId, effect: &Effect) {
        let Some(live) = self.live.get(&generation) else { return };
        let (address, what) = match effect {
            Effect::Say(_, word @ (SupervisorWord::Go(address) | SupervisorWord::Takedown(address))) => {
                (Some(address), format!("is told {word}"))
            }
            Effect::Join(address) => (Some(address), "listens beside the old one".into()),
            Effect::Switch(_) => (None, "gets the new connections".into()),
            Effect::SwitchBack => (None, "gets no connections any more: the old one does".into()),
            Effect::AskTakedown(_, _, address) => (Some(address), "needs the address: the old one is to let go".into()),
            Effect::AskStop(..) => (None, "has what it wanted: the old one is to stop".into()),
            Effect::Drain => (None, "drains".into()),
            Effect::Signal => (None, format!("is told to stop by {}", self.run.stop_signal)),
            _ => return,
        };
        let name = live.machine.name();
        let text = format!("server {} {what}", live.server.pid);
        self.log.say(Level::Detail, address.or(name.as_ref()), &text);
    }

    fn up(&mut self, generation: GenId) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        live.life.was_up = true;
        // UDP sockets that it has by now are those that a successor may have beside it.
        if let Some(Ok(datagrams)) = live.watch().map(|watch| watch.facts.datagrams()) {
            live.names.datagrams = datagrams;
        }
        let addresses = live.machine.addresses();
        live.names.name = addresses.first().cloned();
        let more = match addresses.len() {
            0 => ", no address so far".into(),
            1 => String::new(),
            len => format!(", also on {} more", len - 1),
        };
        let text = format!("server {} is up (generation {}{more})", live.server.pid, live.names.number);
        self.log.say(Level::Notice, addresses.first(), &text);
        if !live.names.datagrams.is_empty() {
            self.register_again(generation);
        }
        self.tidy_later();
        self.tell_manager("READY=1");
    }

    fn done(&mut self) {
        if let Some(launcher) = self.caller.launcher.take() {
            self.caller.telling = launcher.dismiss(status::DONE);
        }
        self.tell_front();
    }

    fn end(&mut self, generation: GenId, status: u8) {
        let Some(live) = self.clear_away(generation) else { return };
        if generation == OWN {
            self.dir.release_orphans();
            if self.reloads.in_charge.is_none() {
                self.caller.status = status;
                self.find_heir(0);
            }
        }
        let jobs = live.jobs();
        if live.server.signal_rest(self.run.stop_signal, jobs) || live.life.killed {
            let patience = if live.life.killed { Duration::ZERO } else { self.run.kill_after };
            self.kin.leftovers.push(Leftover::new(live.server, jobs, Instant::now() + patience));
            self.poll_soon();
        }
    }
}
