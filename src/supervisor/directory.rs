//! What a supervisor does in the run directory with its lock held. A stopped process may hold that lock for long. An
//! effect that needs the lock meanwhile waits in a queue, and behind it every effect that other processes must not
//! notice earlier. Nothing else waits: signals, clocks and steering go on.

use super::care::TAKEN_OVER;
use super::state::{Job, Supervisor, Unclear, Wait};
use super::threads;
use crate::address::Address;
use crate::finder::{Asker, CARES_WITHIN, Found, May};
use crate::place::Place;
use crate::rundir::LOCK_PATIENCE;
use crate::swap::{Effect, Event, Level, OldId};
use crate::sys::net::TcpSocket;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

/// How often, and after how long, a socket that nobody seems to hold is looked at again.
const UNCLEAR_LOOKS: u32 = 50;
const UNCLEAR_LOOKS_EVERY: Duration = Duration::from_millis(20);
/// How often an address is looked up again while another process claims orphans.
const TURN_LOOKS: u32 = 1000;
/// How often an address is looked up again while its server gets a caretaker.
const CARE_LOOKS: u32 = CARES_WITHIN.as_millis() as u32 / UNCLEAR_LOOKS_EVERY.as_millis() as u32;
/// How long the removal of an ending server's files waits for the lock. Files that stay are recognised as stale later.
pub(super) const PARTING: Duration = Duration::from_secs(1);
/// When the lock is tried again where no thread could wait for it.
const AGAIN: Duration = Duration::from_millis(20);

/// What an effect has to do with the run directory.
enum Part {
    /// It needs its lock.
    In,
    /// It must not come before an earlier one that does.
    After,
    /// Nothing.
    None,
}

impl Supervisor {
    /// Carries an effect out, now or as soon as the run directory is free.
    pub(super) fn carry_out(&mut self, effect: Effect) {
        let queued = !self.agenda.desk.jobs.is_empty();
        let waits = match self.part(&effect) {
            Part::In => queued || !self.dir.hold(),
            Part::After => queued,
            Part::None => false,
        };
        if waits {
            self.agenda.desk.jobs.push_back(Job { effect, since: Instant::now() });
            return self.wait_for_directory();
        }
        self.carry_out_now(effect);
        self.dir.release();
    }

    fn part(&self, effect: &Effect) -> Part {
        match effect {
            Effect::LookUp(_) | Effect::Take(..) | Effect::Hold(_) | Effect::Unhold(_) => Part::In,
            Effect::TellGone(_) | Effect::End(_) => {
                let registered = self.live.as_ref().is_some_and(|live| !live.names.held.is_empty());
                if registered { Part::In } else { Part::After }
            }
            Effect::Lock(_)
            | Effect::Unlock(_)
            | Effect::AskDrain(..)
            | Effect::AskStay(_)
            | Effect::AskTakedown(..)
            | Effect::AskStop(..)
            | Effect::Grant(..)
            | Effect::TellReleased(..)
            | Effect::Refuse(..)
            | Effect::TellDone(_)
            | Effect::Held
            | Effect::Up
            | Effect::TellWaits(..)
            | Effect::SendOn(_)
            | Effect::Sure
            | Effect::Passed
            | Effect::Hasten
            | Effect::Done => Part::After,
            Effect::Say(..)
            | Effect::Admit(_)
            | Effect::Pass(_)
            | Effect::Deny(_)
            | Effect::Join(_)
            | Effect::Settle
            | Effect::Check
            | Effect::Portion(_)
            | Effect::Switch(_)
            | Effect::SwitchBack
            | Effect::Drain
            | Effect::Park(_)
            | Effect::StopDrain
            | Effect::CutOff
            | Effect::Commit
            | Effect::Watch(_)
            | Effect::WatchRelease(_)
            | Effect::Signal
            | Effect::Kill
            | Effect::Arm(..)
            | Effect::Disarm(_)
            | Effect::Pause(_)
            | Effect::Resume(_)
            | Effect::Report(..) => Part::None,
        }
    }

    /// When [`Supervisor::work_on_directory`] has something to do.
    pub(super) fn directory_at(&self) -> Option<Instant> {
        let late = self.agenda.desk.jobs.iter().map(|job| self.late(job)).min();
        let again = if let Wait::Until(at) = self.agenda.desk.wait { Some(at) } else { None };
        let looks = self.agenda.desk.unclear.values().filter_map(|unclear| unclear.at).min();
        [late, again.filter(|_| late.is_some()), looks].into_iter().flatten().min()
    }

    /// Until when a job waits for the lock. Then it is done without, or refused.
    fn late(&self, job: &Job) -> Instant {
        let parts = |live: &super::Live| live.life.ended.is_some() || live.machine.is_leaving();
        let parts = self.caller.is_stopping() || self.live.as_ref().is_none_or(parts);
        job.since + if parts { PARTING } else { LOCK_PATIENCE }
    }

    /// Does what can be done by now.
    pub(super) fn work_on_directory(&mut self) {
        let now = Instant::now();
        // In their order.
        let mut kept = VecDeque::new();
        for job in std::mem::take(&mut self.agenda.desk.jobs) {
            let needs = matches!(self.part(&job.effect), Part::In);
            if !kept.is_empty() || needs && !self.dir.hold() && self.late(&job) > now {
                kept.push_back(job);
            } else {
                self.carry_out_now(job.effect);
            }
        }
        self.agenda.course.write(&self.dir, self.log);
        self.dir.release();
        self.agenda.desk.jobs = kept;
        if !self.agenda.desk.jobs.is_empty() {
            self.wait_for_directory();
        }
        let mut due = Vec::new();
        for (address, unclear) in &mut self.agenda.desk.unclear {
            if unclear.at.take_if(|at| *at <= now).is_some() {
                due.push(address.clone());
            }
        }
        for address in due {
            self.carry_out(Effect::LookUp(address));
        }
    }

    /// Somebody has waited for the lock, and it is ours.
    pub(super) fn directory_is_ours(&mut self, lock: io::Result<File>) {
        self.agenda.desk.wait = Wait::Nobody;
        match lock {
            Ok(lock) => self.dir.keep(lock),
            Err(_) => self.agenda.desk.wait = Wait::Until(Instant::now() + AGAIN),
        }
        self.work_on_directory();
    }

    pub(super) fn wait_for_directory(&mut self) {
        if let Wait::Thread = self.agenda.desk.wait {
            return;
        }
        let started = self.dir.try_clone().and_then(|dir| threads::directory(self.events.clone(), dir));
        self.agenda.desk.wait = match started {
            Ok(()) => Wait::Thread,
            Err(_) => Wait::Until(Instant::now() + AGAIN),
        };
    }

    pub(super) fn look_up(&mut self, address: Address) {
        let Unclear { mut looks, of, mut notes, .. } = self.agenda.desk.unclear.remove(&address).unwrap_or_default();
        let Some(live) = self.live.as_mut() else { return };
        // It speaks for itself: what it listens on beside its READYs is its own affair.
        live.looks.discover_until = None;
        let (pid, server) = (live.server.pid, &live.server);
        let holds = |sockets: &[TcpSocket]| server.holds_of(sockets).map(|held| !held.is_empty());
        let calls = live.opening.calls.iter().filter(|call| Address::from(call.place.address) == address);
        let places: Vec<(Place, May)> = calls.map(|call| (call.place, call.may)).collect();
        let asker = Asker { me: pid, owns: &|other| server.owns(other), holds: &holds, places: &places };
        let found = self.dir.look_up(&address, &asker, &mut notes);
        if live.life.was_up {
            self.tidy_later();
        }
        let most = self.looks_for(&found);
        if most != of {
            // Something else is waited for than before: the count starts anew.
            looks = 0;
        }
        if looks < most {
            let at = Some(Instant::now() + UNCLEAR_LOOKS_EVERY);
            self.agenda.desk.unclear.insert(address, Unclear { looks: looks + 1, of: most, at, notes });
            return;
        }
        if let Found::Busy = found {
            // Whoever has its turn is stuck, or slow: this one goes on all the same, with a ready clock of its own.
            self.dir.claims_orphans_out_of_turn();
            let at = Some(Instant::now());
            self.agenda.desk.unclear.insert(address, Unclear { at, notes, ..Unclear::default() });
            return;
        }
        let Some(live) = self.live.as_mut() else { return };
        for note in notes {
            self.log.say(Level::Warning, Some(&address), &note);
        }
        let event = match found {
            Found::Foreign => Event::Foreign(address),
            Found::Vacant(beside) => {
                live.names.beside.extend(beside);
                live.names.held.insert(address.clone());
                // Nobody had the address: the server is the first one, whatever was guessed.
                if std::mem::take(&mut live.names.number_is_guess) && live.names.number > 1 {
                    live.names.number = 1;
                    self.register_again();
                }
                Event::Vacant(address)
            }
            Found::Blocked(why) | Found::Unclear(why) => Event::Blocked(address, why),
            Found::Orphans(_) | Found::Busy => {
                Event::Blocked(address, "its server has lost its supervisor, and no caretaker comes up".into())
            }
            Found::Taken(holders) => {
                live.names.beside.retain(|pid| holders.iter().all(|holder| holder.pid != *pid));
                let olds = holders.into_iter().map(|holder| OldId(self.old(holder))).collect();
                Event::Taken(address, olds)
            }
        };
        self.feed(event);
    }

    /// How often an address is looked up again after this answer. Starts caretakers for orphans.
    fn looks_for(&mut self, found: &Found) -> u32 {
        match found {
            // Nothing tells when the last thread of a killed process has let go of its sockets,
            Found::Unclear(_) => UNCLEAR_LOOKS,
            // nor when a caretaker has its lock.
            Found::Orphans(orphans) => {
                orphans.iter().filter(|orphan| orphan.is_orphan).for_each(|orphan| self.care(orphan, TAKEN_OVER));
                CARE_LOOKS
            }
            // The ready clock of the process that has the turn bounds this. If it does not, ours claims out of turn.
            Found::Busy => TURN_LOOKS,
            Found::Vacant(_) | Found::Foreign | Found::Taken(_) | Found::Blocked(_) => 0,
        }
    }
}
