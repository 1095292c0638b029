//! Carrying out what the machines say.

use super::live::Leftover;
use super::state::Supervisor;
use crate::address::Address;
use crate::cli::Wait;
use crate::error::status;
use crate::message;
use crate::protocol::{CopyWord, HolderWord, PeerWord, SupervisorWord};
use crate::swap::{ClaimerId, Effect, Event, Level, SpeakerId};
use crate::sys::process::Pid;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// How long a claimer's death may take to be seen in the run directory: its sockets close before its locks do.
const REGAIN_FOR: Duration = Duration::from_secs(2);

/// Of whom the machine says that it is killed.
const KILLED: [&str; 2] = ["the new server", "(it"];
/// What is true of a server of another user.
const LIVES_ON: &str = "runs as another user and cannot be killed: it lives on";

impl Supervisor {
    pub(super) fn carry_out_now(&mut self, effect: Effect) {
        self.note(&effect);
        self.note_history(&effect);
        match effect {
            Effect::Say(speaker, word) => self.say(speaker, &word),
            Effect::LookUp(address) => self.look_up(address),
            Effect::Lock(old) => self.lock(old),
            Effect::Unlock(old) => self.unlock(old),
            Effect::Take(_, address) => self.take(address),
            Effect::Hold(address) => self.hold(address),
            Effect::AskTakedown(_, old, address) => self.ask(old, PeerWord::Takedown(address)),
            Effect::AskStop(_, old) => self.ask(old, PeerWord::Stop),
            Effect::AskDrain(_, old) => self.ask_drain(old),
            Effect::AskStay(old) => self.ask(old, PeerWord::Stay),
            Effect::Admit(address) => self.admit(&address),
            Effect::Pass(address) => self.pass(&address),
            Effect::Deny(address) => self.deny(&address),
            Effect::Join(address) => self.join(&address),
            Effect::Check => self.check(),
            Effect::Portion(share) => self.portion(share),
            Effect::Held => self.held(),
            Effect::Switch(_) => self.switch(),
            Effect::SwitchBack => self.switch_back(),
            Effect::Drain => self.drain(),
            Effect::Park(parting) => self.park(parting),
            Effect::StopDrain => self.stop_draining(),
            Effect::CutOff => self.cut_off(),
            Effect::Kill => self.kill(),
            Effect::Grant(claimer, holds) => self.grant(claimer, holds),
            Effect::TellReleased(claimer, address) => self.tell(claimer.0, &HolderWord::Released(address)),
            Effect::Refuse(claimer, why) => self.tell(claimer.0, &HolderWord::Refused(why)),
            Effect::TellDone(claimer) => self.tell(claimer.0, &HolderWord::Done),
            Effect::TellWaits(claimer, why) => self.tell(claimer.0, &HolderWord::Waits(why)),
            Effect::TellGone(claimer) => {
                // Whoever hears of it may look at the run directory at once.
                self.retire();
                self.tell(claimer.0, &HolderWord::Gone);
            }
            Effect::SendOn(claimer) => self.tell(claimer.0, &HolderWord::Gone),
            Effect::Arm(timer, time) => self.agenda.timers.arm(timer, time),
            Effect::Disarm(timer) => self.agenda.timers.disarm(timer),
            Effect::Pause(timer) => self.agenda.timers.pause(timer),
            Effect::Resume(timer) => self.agenda.timers.resume(timer),
            Effect::Report(level, address, text) => self.report(level, address.as_ref(), text),
            Effect::Up => self.up(),
            Effect::Sure => self.sure(),
            Effect::Passed => self.done(&CopyWord::Passed),
            Effect::Hasten => self.limit_draining(0),
            Effect::Done => self.done(&CopyWord::Done),
            Effect::End(status) => self.end(status),
            Effect::Unhold(_)
            | Effect::Settle
            | Effect::Commit
            | Effect::Watch(_)
            | Effect::WatchRelease(_)
            | Effect::Signal => self.note_on_server(effect),
        }
    }

    /// What concerns nobody but the server.
    fn note_on_server(&mut self, effect: Effect) {
        let Some(live) = self.live.as_mut() else { return };
        match effect {
            Effect::Unhold(address) => {
                live.names.held.remove(&address);
                live.names.regaining.remove(&address);
                return self.dir.unhold(&address, live.server.pid);
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

    fn take(&mut self, address: Address) {
        let locked = self.peers.olds.values().filter(|old| old.locked);
        let mut locked: Vec<Pid> = locked.map(|old| old.holder.pid).collect();
        locked.extend(self.live.iter().flat_map(|live| &live.names.replaced));
        if !self.register(&address, &locked) {
            self.look_up(address);
        }
    }

    fn hold(&mut self, address: Address) {
        // The pidfiles may still name the servers that it has replaced.
        let replaced = self.live.as_ref().map_or(Vec::new(), |live| live.names.replaced.clone());
        if !self.register(&address, &replaced)
            && let Some(live) = self.live.as_mut()
        {
            live.names.regaining.insert(address, Instant::now() + REGAIN_FOR);
            self.poll_soon();
        }
    }

    fn kill(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        live.life.killed = true;
        live.server.signal_all(Signal::SIGKILL, live.jobs());
        if !live.life.was_up && live.server.is_out_of_reach() {
            // It never ends for us, and whoever waits for the swap is told how it went.
            self.server_is_gone();
            self.feed(Event::Exited(status::NOT_UP));
        }
    }

    fn grant(&mut self, claimer: ClaimerId, holds: Vec<Address>) {
        if let Some(live) = self.live.as_mut() {
            live.standing.claimed = Some(claimer);
        }
        self.hand_over(claimer, &holds);
        if let Some(conn) = self.peers.conns.get(&claimer.0) {
            conn.out.send_all(holds.into_iter().map(HolderWord::Holds).chain([HolderWord::Locked]));
        }
        // Done last: meanwhile the claimer gets to work.
        if let Some(live) = self.live.as_ref() {
            live.server.tell_jobs();
        }
    }

    fn report(&mut self, level: Level, address: Option<&Address>, mut text: String) {
        if self.live.as_ref().is_some_and(|live| live.server.is_out_of_reach()) {
            for who in KILLED {
                text = text.replace(&format!("{who} is killed"), &format!("{who} {LIVES_ON}"));
            }
        }
        match level {
            Level::Error => self.say_failure(address, &text),
            Level::Warning | Level::Notice | Level::Detail => self.log.say(level, address, &text),
        }
    }

    /// Writes the pidfile; `false` if a living server that is not one of `olds` has the address.
    pub(super) fn register(&mut self, address: &Address, olds: &[Pid]) -> bool {
        let Some(live) = self.live.as_mut() else { return true };
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
    fn note(&self, effect: &Effect) {
        let Some(live) = self.live.as_ref() else { return };
        let (address, what) = match effect {
            Effect::Say(_, word @ (SupervisorWord::Go(address) | SupervisorWord::Takedown(address))) => {
                (Some(address), format!("is told {word}"))
            }
            Effect::Join(address) => (Some(address), "listens beside the old one".into()),
            Effect::Switch(_) => (None, "gets the new connections".into()),
            Effect::Portion(share) => (None, format!("gets {share} of the new connections")),
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

    fn up(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        live.life.was_up = true;
        // Whoever hears that it is up may count on it.
        live.server.goes_first_no_more();
        // A server with one thread waits for what is said on a probe.
        live.opening.passed.clear();
        // A successor may share the UDP ports that the server has by now, and no later ones.
        if let Some(Ok(datagrams)) = live.watch().map(|watch| watch.facts.datagrams()) {
            live.names.datagrams = datagrams;
        }
        let addresses = live.holds();
        live.names.name = addresses.first().cloned();
        let more = match addresses.len() {
            0 => ", no address so far".into(),
            1 => String::new(),
            len => format!(", also on {} more", len - 1),
        };
        let text = format!("server {} is up (generation {}{more})", live.server.pid, live.names.number);
        self.log.say(Level::Notice, addresses.first(), &text);
        if !live.names.datagrams.is_empty() {
            self.register_again();
        }
        self.name_left_behind();
        self.dir.claims_no_orphans();
        self.tidy_later();
        self.tell_ready();
    }

    fn sure(&mut self) {
        self.tell_ready();
        if self.run.wait == Wait::Up {
            self.dismiss();
        }
        self.limit_draining(self.run.max_draining);
    }

    /// `word`: how our front hears of it.
    fn done(&mut self, word: &CopyWord) {
        self.tell_ready();
        self.dismiss();
        self.tell_front(word);
    }

    /// Whoever waits for the swap waits no longer.
    pub(super) fn dismiss(&mut self) {
        if let Some(launcher) = self.caller.launcher.take() {
            message::end_progress();
            self.caller.telling = launcher.dismiss(status::DONE, &self.caller.output);
        }
    }

    fn end(&mut self, status: u8) {
        let has_failed = |live: &super::Live| !live.life.was_up || live.machine.has_failed();
        if self.live.as_ref().is_some_and(has_failed) && !self.caller.is_stopping() {
            self.show_strangers();
            self.show_check();
            self.show_last_lines();
        }
        let Some(live) = self.clear_away() else { return };
        self.dir.claims_no_orphans();
        if self.reloads.in_charge.is_none() {
            self.caller.status = status;
            self.find_heir(0);
        }
        let jobs = live.jobs();
        if live.server.signal_rest(self.run.stop_signal, jobs) || live.life.killed {
            let patience = if live.life.killed { Duration::ZERO } else { self.run.kill_after };
            let until = Instant::now() + patience;
            self.kin.leftovers.push(Leftover { server: live.server, jobs, until, unseen: 0 });
            self.poll_soon();
        }
    }
}
