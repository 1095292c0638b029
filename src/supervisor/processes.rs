//! The server as processes: that it has ended, what is left of it, and its record.

use super::live::{Ended, Leftover, Live, UNCLEAR_FOR};
use super::looks::POLL_FIRST;
use super::state::Supervisor;
use super::threads::{self, Id};
use crate::error::status;
use crate::family::Jobs;
use crate::finder::Registration;
use crate::procfs;
use crate::protocol::ServerWord;
use crate::record::{Olds, Record};
use crate::rundir::{LOCK_PATIENCE, RunDir, pidfile};
use crate::server::Rest;
use crate::swap::{self, Level};
use crate::sys::net::{self, Listeners, TcpSocket};
use crate::sys::process::{self, Pid};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// For how long what is left of a server is killed again and again.
const KILLED_FOR: Duration = Duration::from_secs(10);
/// A process that forks during a scan of /proc can be missed: only so many empty scans in a row count.
const UNSEEN_LOOKS: u32 = 3;

impl Supervisor {
    /// Reaps every child that has ended: main process and copies, and as a subreaper what servers left behind.
    pub(super) fn reap(&mut self) {
        while let Some((pid, end)) = process::reap() {
            self.successor_ended(pid, Some(end));
            let is_main = self.live.as_ref().is_some_and(|live| live.server.pid == pid);
            if !self.is_check(pid, end) && !self.copy_ended(pid, end) && is_main {
                self.main_ended(end.status(), &end.to_string());
            }
        }
        self.look_at_held();
        if !self.kin.leftovers.is_empty() || self.live.iter().any(|live| live.life.ended.is_some()) {
            self.poll_soon();
        }
    }

    /// The main process has ended.
    pub(super) fn main_ended(&mut self, own: u8, how: &str) {
        let Some(live) = self.live.as_mut() else { return };
        if live.life.ended.is_none() {
            let name = live.name();
            // If it was never up, the machine reports why in one line, unless we were told to stop.
            let failed = !live.life.was_up && !self.caller.is_stopping();
            let unwanted = own != status::DONE && !self.caller.is_stopping() && !live.machine.is_leaving();
            let level = match () {
                () if failed => Level::Detail,
                () if unwanted => Level::Error,
                () => Level::Notice,
            };
            let (pid, leaves) = (live.server.pid, live.life.was_up && live.machine.is_giving_way());
            let reloaded = self.reloads.in_charge.and_then(|line| self.reloads.copies.get(&line)?.server);
            let successor = successor(&self.dir, live).or(reloaded.map(|(pid, _)| pid)).filter(|_| leaves);
            if successor.is_some() {
                // What it has released is no claim any more.
                self.kin.given = live.machine.claims().into_iter().chain(name.clone()).collect();
            }
            let text = match successor {
                _ if live.machine.is_turned_back() => format!("server {pid}, which was undone, {how}"),
                Some(successor) => format!("server {pid} was replaced by {successor}"),
                None if leaves && !self.caller.is_stopping() => format!("server {pid} was taken down"),
                None => format!("server {pid} {how}"),
            };
            self.log.say(level, name.as_ref(), &text);
            live.life.ended = Some(Ended { status: own, seen: Instant::now(), rest_told: false, unseen: 0 });
            if failed && own != status::DONE {
                let is_good = |event: &swap::Event| {
                    matches!(event, swap::Event::Said(_, ServerWord::Up) | swap::Event::Checked(Ok(())))
                };
                self.agenda.pending.retain(|event| !is_good(event));
            }
            self.settle();
            match net::listeners() {
                Ok(sockets) => self.look_for_rest(&sockets),
                Err(_) => self.poll_soon(),
            }
        }
    }

    /// A server whose main process has ended is gone when nothing of it listens. What listens in its
    /// place becomes the main process, or is told to stop if the server was.
    pub(super) fn look_for_rest(&mut self, sockets: &Listeners) {
        // Listeners of old servers that we keep open ourselves say nothing about our server.
        let kept: BTreeSet<u32> = self.live.iter().flat_map(|live| live.joining.sharing.kept()).collect();
        let Some(live) = self.live.as_mut() else { return };
        let Some(ended) = live.life.ended else { return };
        let is_fixed = procfs::fixed();
        let mut at_own = sockets.at_any(&live.machine.claims());
        let fixed = sockets.all().filter(|s| is_fixed(&s.local));
        let candidates: Vec<TcpSocket> = fixed.chain(&at_own).cloned().collect();
        let mut wait = true;
        at_own.retain(|s| !kept.contains(&s.inode));
        match live.server.rest(&candidates, &at_own) {
            Rest::Holder(holder) if !live.machine.is_leaving() => {
                let before = live.server.pid;
                if live.server.promote(holder) {
                    return self.promoted(before);
                }
            }
            Rest::Holder(_) => {
                live.life.ended = Some(Ended { seen: Instant::now(), rest_told: true, ..ended });
                match () {
                    // Who forked in the moment of the kill was not seen.
                    () if live.life.killed => drop(live.server.signal_rest(Signal::SIGKILL, live.jobs())),
                    () if ended.rest_told => {}
                    () => drop(live.server.signal_rest(self.run.stop_signal, live.jobs())),
                }
            }
            Rest::Unclear => wait = ended.seen.elapsed() < UNCLEAR_FOR,
            // A daemon whose starter is done before it listens; slow as it is it may have been taken for a worker.
            Rest::Nobody if ended.status == 0 && !live.has_served() && !live.machine.is_leaving() => {
                let unseen = if live.server.has_rest(Jobs::Ended) { 0 } else { ended.unseen + 1 };
                live.life.ended = Some(Ended { unseen, ..ended });
                wait = unseen < UNSEEN_LOOKS;
            }
            Rest::Nobody => wait = false,
        }
        match wait {
            true => self.poll_soon(),
            false => {
                self.server_is_gone();
                self.feed(swap::Event::Exited(ended.status));
            }
        }
    }

    /// Writes the pidfiles of all addresses again, in place of those of `others`: now, or when the directory can be had.
    pub(super) fn write_pidfiles(&mut self, others: &[Pid]) {
        let Some(live) = self.live.as_mut() else { return };
        if self.dir.hold() {
            for address in &live.names.held {
                // What another server has by now, or has beside this one, stays that one's.
                if let Err(why) = self.dir.take(address, live.server.pid, others, &live.names.beside) {
                    self.log.say(Level::Warning, Some(address), &format!("unable to write its pidfile: {why}"));
                }
            }
            self.dir.release();
        } else {
            let until = Instant::now() + LOCK_PATIENCE;
            live.names.regaining.extend(live.names.held.iter().map(|address| (address.clone(), until)));
            self.clock.poll_at = Some(Instant::now() + POLL_FIRST);
        }
    }

    /// Another process has become the main process; `main` is the one before.
    fn promoted(&mut self, main: Pid) {
        let Some(live) = self.live.as_mut() else { return };
        live.life.ended = None;
        let pid = live.server.pid;
        self.log.say(Level::Notice, live.machine.name().as_ref(), &format!("process {pid} goes on as the server"));
        // The new record first, then the pidfiles, then the old record goes: whoever looks meanwhile finds
        // the server.
        let before = self.register_again();
        self.write_pidfiles(&[main]);
        if let Some(before) = before {
            self.dir.deregister(before, &[]);
        }
        let Some(live) = self.live.as_mut() else { return };
        if let Ok(pidfd) = live.server.watch() {
            live.life.end = threads::end_of(self.events.clone(), pid, pidfd).ok();
        }
    }

    /// Writes the record anew: something in it has changed. Gives what was there before; `None` if it cannot be written.
    pub(super) fn register_again(&mut self) -> Option<Registration> {
        let live = self.live.as_mut()?;
        let record = Record {
            session: live.server.session(),
            generation: live.names.number,
            socket_name: live.sockets.names[0].clone(),
            command: self.run.line(),
            olds: Olds { replaced: live.names.replaced.clone(), kept: live.names.kept.clone() },
            datagrams: live.names.datagrams.clone(),
            ..Record::of(live.server.pid, live.server.start)
        };
        match self.dir.register(record) {
            Ok(new) => live.names.registration.replace(new),
            Err(why) => {
                self.log.say(Level::Warning, None, &format!("unable to write its record: {why}"));
                None
            }
        }
    }

    /// Removes the files of an ended server from the run directory.
    pub(super) fn retire(&mut self) {
        let Some(live) = self.live.as_mut() else { return };
        for address in std::mem::take(&mut live.names.held) {
            self.dir.unhold(&address, live.server.pid);
        }
        if let Some(registration) = live.names.registration.take() {
            self.dir.deregister(registration, &live.sockets.names);
        }
    }

    /// Removes an ended server: its files, clocks, connections and claims. Returns what is left of it.
    pub(super) fn clear_away(&mut self) -> Option<Live> {
        self.retire();
        let live = self.live.take()?;
        self.agenda.timers.forget();
        // Nothing waits any more for a server that is gone.
        self.agenda.desk.jobs.clear();
        self.agenda.desk.unclear.clear();
        live.sockets.close();
        // A peer that waits for a reload has asked us, and hears of it after our server is gone: it stays connected.
        let stay = self.waiting_peers();
        self.peers.conns.retain(|id, conn| {
            let ends = conn.role.is_limited() && !stay.contains(id);
            if ends {
                conn.out.close();
            }
            !ends
        });
        // Old servers that were found after ours had ended: an orphan among them is left as it was found.
        let olds: Vec<Id> = self.peers.olds.keys().copied().collect();
        olds.into_iter().for_each(|id| self.unlock(swap::OldId(id)));
        Some(live)
    }
}

impl Leftover {
    /// `false` if nothing is left of it, or nothing can be done about it.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        let is_late = self.until <= now;
        let seen = match is_late {
            true => self.server.signal_rest(Signal::SIGKILL, self.jobs),
            false => self.server.has_rest(self.jobs),
        };
        self.unseen = if seen { 0 } else { self.unseen + 1 };
        self.unseen < UNSEEN_LOOKS && self.until + KILLED_FOR > now
    }
}

/// The server that has an address of ours now, as its pidfile tells.
fn successor(dir: &RunDir, live: &Live) -> Option<Pid> {
    let named = live.machine.claims().into_iter().chain(live.names.name.clone());
    named.filter_map(|own| dir.read_pid(&pidfile(&own)).ok()).find(|other| *other != live.server.pid)
}
