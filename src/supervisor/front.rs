//! A reload. The supervisor starts a copy of itself, with its own command line, which replaces the server as any other
//! run would. Then the first is the front of the copy: it keeps its pid, passes signals and messages to the service
//! manager on, and ends with the status of the last one. A copy that is to be reloaded asks its front for another one:
//! there is one front, however many reloads.

#![forbid(unsafe_code)]

use super::state::{Child, Conn, Progress, Role, Supervisor, Waiter, Wanted};
use super::threads::{self, Id, Link};
use crate::error::{Error, Result, reason, status};
use crate::procfs::{self, Start};
use crate::protocol::{CopyWord, FrontWord, HolderWord};
use crate::record::Call;
use crate::swap;
use crate::sys::process::{self, End, Pid};
use nix::sys::signal::{Signal, kill};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long after its last word a copy that should have ended is looked at.
const REAP_AFTER: Duration = Duration::from_millis(100);

impl Supervisor {
    /// Starts a copy as soon as nothing else is under way: reloads that were wanted during a swap become one more
    /// afterwards.
    pub(super) fn reload_if_possible(&mut self) {
        let starts = |copy: &Child| copy.progress == Progress::Starting;
        let swaps = self.reloads.copies.values().any(starts);
        let own_is_free = self.live.as_ref().is_some_and(|live| live.machine.is_free());
        let has_heir = !self.reloads.copies.is_empty();
        if self.caller.is_stopping() || swaps || !(own_is_free || has_heir) {
            return;
        }
        // One that was replaced leaves too.
        let youngest = self.reloads.copies.values().rfind(|copy| copy.is_in_place());
        if youngest.is_some_and(|copy| copy.leaves) {
            return self.refuse_reload();
        }
        if let Some(wanted) = self.reloads.wanted.take() {
            self.caller.manager.reloading();
            let Wanted { waiters, start } = wanted;
            let last = self.reloads.copies.values().rev().find_map(|copy| copy.start.clone());
            let start = start.or(last).or_else(|| self.reloads.start.clone());
            if let Err(error) = self.start_copy(&waiters, start) {
                self.say_failure(None, &error.text);
                self.reload_failed(&waiters, error.status, &error.text);
            }
        }
    }

    /// Somebody wants a reload; with the environment of `caller`, if there is one. A copy asks its front for it.
    pub(super) fn want_reload(&mut self, waiter: Option<Waiter>, caller: Option<Pid>) {
        if let Some(front) = self.reloads.front.and_then(|front| self.peers.conns.get(&front)) {
            let peer = if let Some(Waiter::Peer(id)) = waiter { id } else { 0 };
            self.reloads.asked.extend(waiter.map(|_| peer));
            return front.out.send(&CopyWord::Reload(peer, caller.map_or(0, |caller| caller.raw().unsigned_abs())));
        }
        let start = match caller.map(procfs::start_of).transpose() {
            Ok(start) => start,
            Err(e) => {
                let why = format!("unable to read the environment of its caller: {}", reason(&e));
                return self.tell_waiters(waiter.as_slice(), &HolderWord::Failed(status::FAILED, why));
            }
        };
        let wanted = self.reloads.wanted.get_or_insert_default();
        wanted.start = start.or(wanted.start.take());
        let is_new = |waiter: &Waiter| !wanted.waiters.contains(waiter);
        wanted.waiters.extend(waiter.filter(is_new));
    }

    fn start_copy(&mut self, waiters: &[Waiter], start: Option<Start>) -> Result<()> {
        if let Some(telling) = self.caller.telling.take() {
            // The copy is to have none of the files of a caller that is about to be told.
            let _ = telling.join();
        }
        let failed = |e: std::io::Error| Error::unable("start a copy of serverswap", e, "the server serves on");
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let (line, ours) = (threads::next_id(), Link::new(ours));
        threads::lines(self.events.clone(), line, ours.clone()).map_err(failed)?;
        let dir = start.as_ref().map(|start| start.dir.clone()).or_else(|| Call::own().map(|own| own.dir));
        let pid = process::spawn_copy(
            theirs.as_fd(),
            start.as_ref().map(|start| &start.env[..]),
            dir.as_deref(),
            self.dir.given(),
        )
        .map_err(failed)?;
        self.peers.conns.insert(line, Conn::ours(ours, Role::Copy));
        let waiters = waiters.to_vec();
        self.reloads.copies.insert(
            line,
            Child {
                pid,
                waiters,
                start,
                progress: Progress::Starting,
                server: None,
                leaves: false,
                silent: false,
                end: None,
            },
        );
        Ok(())
    }

    pub(super) fn copy_said(&mut self, line: Id, word: CopyWord) {
        let is_replaced = self.is_replaced(line);
        let Some(copy) = self.reloads.copies.get_mut(&line) else { return };
        match word {
            CopyWord::Server(pid, start) => {
                copy.server = Pid::new(pid.into()).map(|pid| (pid, start));
                copy.server.into_iter().for_each(|server| self.kin.household.has_copy_of(server));
            }
            // While all are told to stop, it may be only that.
            CopyWord::Leaves => copy.leaves |= !self.caller.is_stopping(),
            CopyWord::Said(text) => {
                let waiters = copy.waiters.clone();
                self.tell_waiters(&waiters, &HolderWord::Said(text));
            }
            CopyWord::Notify(message) => {
                if message == "READY=1" && copy.progress == Progress::Starting {
                    copy.progress = Progress::Up;
                }
                let counts = match message.as_str() {
                    // Not passed on if we have said so ourselves, or the copy was only replaced.
                    "STOPPING=1" => !self.caller.is_stopping() && self.reloads.in_charge == Some(line),
                    _ => copy.is_in_place() && !is_replaced,
                };
                if counts {
                    self.caller.manager.tell(&message);
                }
            }
            CopyWord::Done => {
                (copy.progress, copy.leaves) = (Progress::Done, false);
                let waiters = std::mem::take(&mut copy.waiters);
                self.reloads.start = copy.start.take();
                self.reloads.in_charge = Some(line);
                self.tell_waiters(&waiters, &HolderWord::Reloaded);
                self.supersede(line);
            }
            CopyWord::Held => {
                copy.progress = Progress::Held;
                let waiters = std::mem::take(&mut copy.waiters);
                self.tell_waiters(&waiters, &HolderWord::Reloaded);
            }
            CopyWord::Passed => {
                (copy.progress, copy.start) = (Progress::Done, None);
                let waiters = std::mem::take(&mut copy.waiters);
                self.tell_waiters(&waiters, &HolderWord::Reloaded);
            }
            CopyWord::Reload(peer, caller) => {
                let waiter = Some(Waiter::Of(line, peer)).filter(|_| peer > 0);
                match self.caller.is_stopping() {
                    true => self.tell_waiters(waiter.as_slice(), &being_stopped()),
                    false => self.want_reload(waiter, Pid::new(caller.into())),
                }
            }
        }
    }

    /// Whether a younger server than that of this line (0: our own) is up. Then nobody hears what the older one says.
    pub(super) fn is_replaced(&self, line: Id) -> bool {
        self.reloads.copies.range(line + 1..).any(|(_, copy)| copy.is_in_place())
    }

    /// The copy `by` has taken over: all other servers stop, even those that have no address in common with its server.
    fn supersede(&mut self, by: Id) {
        self.give_up_service();
        for (line, _) in self.reloads.copies.range(..by) {
            self.tell(*line, &FrontWord::Superseded);
        }
    }

    /// The line to a copy has ended.
    pub(super) fn copy_is_silent(&mut self, line: Id) {
        if let Some(copy) = self.reloads.copies.get_mut(&line) {
            copy.silent = true;
        }
        self.reap();
        self.bury_copies();
    }

    /// When to look if a copy that says nothing any more has ended: its SIGCHLD may be lost.
    pub(super) fn copies_at(&self) -> Option<Instant> {
        let is_awaited = |copy: &Child| copy.silent && copy.end.is_none();
        self.reloads.copies.values().any(is_awaited).then(|| Instant::now() + REAP_AFTER)
    }

    /// A child has ended; `true` if it was a copy.
    pub(super) fn copy_ended(&mut self, pid: Pid, end: End) -> bool {
        let Some(copy) = self.reloads.copies.values_mut().find(|copy| copy.pid == pid) else { return false };
        copy.end = Some(end);
        self.bury_copies();
        true
    }

    /// Settles the copies that have ended, once all that they said was heard.
    fn bury_copies(&mut self) {
        let ended: Vec<(Id, Child)> =
            self.reloads.copies.extract_if(.., |_, copy| copy.silent && copy.end.is_some()).collect();
        for (line, copy) in ended {
            // A copy that exited by itself has outlived its server; one that was killed may not have.
            if let (Some(End::Exited(_)), Some(server)) = (copy.end, copy.server) {
                self.kin.household.forget_copy_of(server);
            }
            let end = copy.end.map_or(status::FAILED, |end| end.status());
            match copy.progress {
                Progress::Starting => self.reload_failed(&copy.waiters, end, "the new server did not come up"),
                Progress::Up => {
                    self.reload_failed(&copy.waiters, end, "the new server ended before the old one was gone");
                }
                Progress::Held | Progress::Done => {}
            }
            let own_leaves = self.live.as_ref().is_some_and(|live| live.machine.is_leaving());
            let may = own_leaves && !copy.leaves || self.caller.is_stopping() && copy.is_in_place();
            let succeeds = may && Some(line) > self.reloads.in_charge;
            if succeeds || self.reloads.in_charge == Some(line) {
                (self.caller.status, self.reloads.in_charge) = (end, Some(line));
                self.find_heir(line);
            }
        }
    }

    /// The copy in charge, or our own server, has ended: the youngest copy that came after it is in charge now. While
    /// all are told to stop, only a copy whose server is up counts, even if it has not said DONE yet.
    pub(super) fn find_heir(&mut self, ended: Id) {
        let inherits = |copy: &Child| !self.caller.is_stopping() || copy.is_in_place();
        let mut younger = self.reloads.copies.range(ended..);
        let heir = younger.rfind(|(_, copy)| inherits(copy)).map(|(line, _)| *line);
        self.reloads.in_charge = heir.or(self.reloads.in_charge);
        if self.reloads.copies.is_empty() && self.live.is_none() {
            let waiters = self.reloads.wanted.take().unwrap_or_default().waiters;
            self.tell_waiters(&waiters, &HolderWord::Failed(status::FAILED, "the server is gone".into()));
        }
    }

    /// Tells the copies to stop. A signal to the process group or from the terminal may have reached them too, so we
    /// say how often we were told, and they do not count one signal twice.
    pub(super) fn stop_copies(&self, from_terminal: bool) {
        for line in self.reloads.copies.keys() {
            self.tell(*line, &FrontWord::Stop(self.caller.stops, from_terminal));
        }
    }

    /// A signal that is meant for the server: the youngest that is up.
    pub(super) fn pass_on(&self, signal: Signal) {
        let serves = |copy: &&Child| copy.is_in_place() && copy.end.is_none();
        match (self.reloads.copies.values().rfind(serves), self.live.as_ref()) {
            // Its pid is its own until we have reaped it.
            (Some(copy), _) => drop(kill(nix::unistd::Pid::from_raw(copy.pid.raw()), signal)),
            (None, Some(live)) => live.server.signal(signal),
            (None, None) => {}
        }
    }

    pub(super) fn reload_failed(&mut self, waiters: &[Waiter], status: u8, why: &str) {
        // What served before still does, unless it has gone too.
        let serves = self.live.as_ref().is_some_and(|live| live.machine.is_up())
            || self.reloads.copies.values().any(|copy| copy.progress == Progress::Done);
        if serves && !self.caller.is_stopping() {
            self.tell_manager("READY=1");
        }
        let why = if serves { format!("{why} (the old one still serves)") } else { why.to_owned() };
        let status = if status == status::DONE { status::NOT_UP } else { status };
        self.tell_waiters(waiters, &HolderWord::Failed(status, why));
    }

    fn tell_waiters(&self, waiters: &[Waiter], word: &HolderWord) {
        for waiter in waiters {
            match *waiter {
                Waiter::Peer(id) => self.tell(id, word),
                Waiter::Of(line, peer) => match word {
                    HolderWord::Failed(status, why) => self.tell(line, &FrontWord::Failed(peer, *status, why.clone())),
                    HolderWord::Said(text) => self.tell(line, &FrontWord::Said(peer, text.clone())),
                    _ => self.tell(line, &FrontWord::Reloaded(peer)),
                },
            }
        }
    }

    pub(super) fn tell(&self, id: Id, word: &impl std::fmt::Display) {
        if let Some(conn) = self.peers.conns.get(&id) {
            conn.out.send(word);
        }
    }

    /// This process, or the server in charge, is being stopped: whoever waits for a reload hears that it has failed.
    pub(super) fn refuse_reload(&mut self) {
        let waiters = self.reloads.wanted.take().unwrap_or_default().waiters;
        self.tell_waiters(&waiters, &being_stopped());
    }

    /// Whoever has asked for a reload on this connection is gone.
    pub(super) fn waits_no_more(&mut self, id: Id) {
        self.reloads.asked.remove(&id);
        let wanted = self.reloads.wanted.iter_mut();
        wanted.for_each(|wanted| wanted.waiters.retain(|waiter| *waiter != Waiter::Peer(id)));
    }

    /// Connections on which somebody waits for a reload.
    pub(super) fn waiting_peers(&self) -> BTreeSet<Id> {
        let of_copies = self.reloads.copies.values().flat_map(|copy| &copy.waiters);
        let waiters = self.reloads.wanted.iter().flat_map(|wanted| &wanted.waiters).chain(of_copies);
        let peers = waiters.filter_map(|waiter| if let Waiter::Peer(id) = waiter { Some(*id) } else { None });
        peers.chain(self.reloads.asked.iter().copied()).collect()
    }

    /// Takes the line to the front, if this process is a copy.
    pub(super) fn meet_front(&mut self, line: UnixStream) -> (Id, Arc<Link>) {
        let (id, link) = (threads::next_id(), Link::new(line));
        self.peers.conns.insert(id, Conn::ours(link.clone(), Role::Front));
        self.reloads.front = Some(id);
        (id, link)
    }

    pub(super) fn front_said(&mut self, word: FrontWord) {
        match word {
            FrontWord::Said(peer, text) if self.reloads.asked.contains(&peer) => {
                self.tell(peer, &HolderWord::Said(text))
            }
            FrontWord::Said(..) => {}
            FrontWord::Reloaded(peer) => self.front_answers(peer, &HolderWord::Reloaded),
            FrontWord::Failed(peer, status, why) => self.front_answers(peer, &HolderWord::Failed(status, why)),
            FrontWord::Superseded => self.give_up_service(),
            FrontWord::Stop(times, from_terminal) => {
                if times > self.caller.stops {
                    // There is nobody to go back to: the front stops the old server too.
                    self.feed(swap::Event::Confirm(swap::ClaimerId(0)));
                    self.stop(from_terminal);
                }
            }
        }
    }

    fn front_answers(&mut self, peer: Id, word: &HolderWord) {
        if self.reloads.asked.remove(&peer) {
            self.tell(peer, word);
        }
    }

    fn give_up_service(&mut self) {
        if self.live.as_ref().is_some_and(|live| live.machine.is_up()) {
            self.feed(swap::Event::Stop { signalled: false });
        }
    }

    /// The front is gone: from here on this process carries out its reloads itself.
    pub(super) fn front_is_gone(&mut self) {
        self.reloads.front = None;
        let asked = std::mem::take(&mut self.reloads.asked);
        if !asked.is_empty() {
            let waiters = asked.into_iter().map(Waiter::Peer).collect();
            self.reloads.wanted = Some(Wanted { waiters, start: None });
        }
    }

    /// A message for the service manager, which hears a copy only by its front (systemd.service(5), NotifyAccess=main).
    pub(super) fn tell_manager(&self, message: &str) {
        match self.reloads.front {
            Some(front) => self.tell(front, &CopyWord::Notify(message.to_owned())),
            None => self.caller.manager.tell(message),
        }
    }

    /// Tells the front, once, that our server is on its way out. One that was undone may serve again.
    pub(super) fn tell_front_of_leaving(&mut self) {
        let (Some(front), Some(live)) = (self.reloads.front, self.live.as_ref()) else { return };
        let leaves = live.machine.is_leaving() || live.machine.is_turned_back();
        if !std::mem::replace(&mut self.reloads.leave_said, leaves) && leaves {
            self.tell(front, &CopyWord::Leaves);
        }
    }

    /// Tells the front, if there is one, how our swap has gone.
    pub(super) fn tell_front(&self, word: &CopyWord) {
        if let Some(front) = self.reloads.front {
            self.tell(front, word);
        }
    }
}

impl Child {
    /// Whether its server is up, in the place of older ones. One that leaves while an old one is kept was undone.
    fn is_in_place(&self) -> bool {
        match self.progress {
            Progress::Starting => false,
            Progress::Held => !self.leaves,
            Progress::Up | Progress::Done => true,
        }
    }
}

pub(super) fn being_stopped() -> HolderWord {
    HolderWord::Failed(status::FAILED, "the server is being stopped".into())
}
