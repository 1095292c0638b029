//! What the histories of the addresses tell is gathered from the effects of a swap.

#![forbid(unsafe_code)]

use super::course::{DONE, Gone};
use super::state::Supervisor;
use crate::address::Address;
use crate::finder::{Beside, Holder};
use crate::history::{Entry, Who};
use crate::protocol::SupervisorWord;
use crate::record::one_line;
use crate::rundir::pidfile;
use crate::swap::{Effect, Level, Orphan};
use std::time::Instant;

impl Supervisor {
    /// Takes down what an effect means for the history, before it is carried out.
    pub(super) fn note_history(&mut self, effect: &Effect) {
        let now = Instant::now();
        let course = &mut self.agenda.course;
        match effect {
            Effect::Grant(_, holds) => course.grant(holds),
            Effect::Drain => course.leaves = Some(now),
            Effect::Signal | Effect::Say(_, SupervisorWord::Takedown(_)) => _ = course.leaves.get_or_insert(now),
            Effect::LookUp(address) => course.want(address),
            Effect::Take(_, address) => {
                course.switched.get_or_insert(now);
                if !course.from.contains_key(address) {
                    self.meet();
                }
            }
            Effect::Switch(_) => {
                course.switched = Some(now);
                self.meet();
            }
            Effect::SwitchBack => course.switched = None,
            Effect::Check | Effect::Portion(_) | Effect::Unlock(_) => self.meet(),
            Effect::Report(Level::Error, _, text) => {
                course.failure.get_or_insert_with(|| text.clone());
                self.meet();
            }
            // What went wrong before has not kept it from that.
            Effect::Up => (course.up, course.failure) = (Some(now), None),
            Effect::Done => self.end_swap(DONE),
            Effect::Passed => self.end_swap("replaced"),
            Effect::End(status) => {
                self.end_swap_of_failed(*status);
                self.note_gone();
            }
            _ => {}
        }
    }

    fn who(&self) -> Option<Who> {
        self.live.as_ref().map(|live| Who { generation: live.names.number, pid: live.server.pid })
    }

    /// Takes down which server has what ours wants.
    fn meet(&mut self) {
        for old in self.peers.olds.values() {
            let who = Who { generation: old.holder.generation, pid: old.holder.pid };
            self.agenda.course.meet(&old.holds, who);
        }
    }

    fn end_swap(&mut self, end: &str) {
        let Some(who) = self.who() else { return };
        self.agenda.course.end(who, end);
        self.write_history();
    }

    fn write_history(&mut self) {
        if !self.agenda.course.write(&self.dir, self.log) {
            // Somebody has the directory: as soon as it is free, or else when it is tidied, or at our end.
            self.tidy_later();
            self.wait_for_directory();
        }
    }

    /// Our server has ended, and its swap with it if that was not over.
    fn end_swap_of_failed(&mut self, status: u8) {
        let Some(live) = self.live.as_ref() else { return };
        let word = if live.machine.is_turned_back() { "undone" } else { "failed" };
        let why = match &self.agenda.course.failure {
            _ if self.caller.is_stopping() => "it was told to stop".to_owned(),
            Some(why) => why.clone(),
            None => format!("the new server ended with status {status}"),
        };
        if self.agenda.course.from.is_empty() && !live.life.was_up && !self.caller.is_stopping() {
            self.guess_from();
        }
        self.end_swap(&format!("{word}: {why}"));
    }

    /// Our server is an orphan: if its supervisor was in a swap, nobody has told of that.
    pub(super) fn end_swap_of_orphan(&mut self, orphan: Orphan, beside: &[Beside]) {
        let (Some(live), Some(who)) = (self.live.as_ref(), self.who()) else { return };
        let end = match orphan {
            Orphan::Superseded if !live.names.kept.is_empty() => "undone: its supervisor had ended",
            Orphan::Follows => "switched: its supervisor had ended",
            _ => return,
        };
        let is_told = |entry: &Entry| entry.is_of(who);
        let untold = |at: &Address| !self.dir.history(at).is_ok_and(|all| all.iter().any(is_told));
        let course = &mut self.agenda.course;
        course.wanted = live.machine.addresses().into_iter().filter(untold).collect();
        for old in beside.iter().filter(|old| live.names.olds().contains(&old.holder.pid)) {
            let at: Vec<Address> = old.party.places.iter().map(|place| place.address.into()).collect();
            course.meet(&at, Who { generation: old.holder.generation, pid: old.holder.pid });
        }
        self.end_swap(end);
    }

    /// A new server that ended before it wanted anything: most likely it was to replace the server of the same command.
    fn guess_from(&mut self) {
        let Some(live) = self.live.as_ref().filter(|live| live.names.number_is_guess) else { return };
        let (own, command) = (live.server.pid, one_line(&self.run.line()));
        let servers = self.dir.servers().unwrap_or_default();
        let is_replaced = |pid| servers.iter().any(|newer| newer.olds.replaced.contains(&pid));
        let is_same = |old: &&Holder| old.pid != own && !is_replaced(old.pid) && old.command == command;
        let same: Vec<&Holder> = servers.iter().filter(is_same).collect();
        let [old] = same[..] else { return };
        let all = self.dir.addresses().unwrap_or_default().into_iter();
        let its = all.filter(|address| self.dir.read_pid(&pidfile(address)) == Ok(old.pid));
        let who = Who { generation: old.generation, pid: old.pid };
        self.agenda.course.from.extend(its.map(|address| (address, who)));
    }

    /// Our server is gone; if it was replaced, its history tells how it went.
    fn note_gone(&mut self) {
        let Some(who) = self.who() else { return };
        let undone = self.live.as_ref().is_some_and(|live| live.machine.is_turned_back());
        let course = &mut self.agenda.course;
        if !(undone || course.granted.is_empty() || self.kin.given.is_empty()) {
            let took = course.leaves.map(|since| since.elapsed());
            course.gone = Some(Gone { who, took, cut: course.cut });
            if self.agenda.kept.is_over() {
                self.note_kept(0, 0);
            }
        }
    }

    /// It is known by now what became of the kept connections of our server.
    pub(super) fn note_kept(&mut self, answered: usize, unanswered: usize) {
        let course = &mut self.agenda.course;
        course.kept = (course.kept.0 + answered, course.kept.1 + unanswered);
        let Some(Gone { who, took, cut }) = course.gone.take() else { return };
        let (answered, unanswered) = course.kept;
        for address in std::mem::take(&mut course.granted) {
            let entry = Entry::drain(who, took, [cut, Some(answered), Some(unanswered)]);
            course.lines.push_back((address, entry));
        }
        self.write_history();
    }
}
