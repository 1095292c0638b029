//! One supervisor: its main thread owns everything. It takes one event after another from the threads
//! that read, feeds the machine of its server and carries out what that says.

#![forbid(unsafe_code)]

mod care;
mod checks;
mod course;
mod directory;
mod effects;
mod elsewhere;
mod failure;
mod first;
mod front;
mod handover;
mod held;
mod history;
mod kept;
mod left;
mod lent;
mod live;
mod looks;
mod olds;
mod outbox;
mod passed;
mod peers;
mod processes;
mod progress;
mod restore;
mod sharing;
mod signals;
mod sockets;
mod start;
mod state;
mod switching;
mod threads;
mod timers;
mod trial;
mod watching;

pub use state::Supervisor;

use crate::cli::Run;
use crate::detach::Launcher;
use crate::error::{Error, Result, status};
use crate::family::Household;
use crate::message::{self, Log};
use crate::notify::{self, Notice};
use crate::output::Output;
use crate::procfs;
use crate::rundir::RunDir;
use crate::swap::{self, Level, SpeakerId};
use crate::sys::process::Pid;
use crate::sys::{net, process};
use directory::PARTING;
use live::Live;
use nix::sys::signal::Signal;
use state::{Agenda, Caller, Clock, Kin, Peers, Reloads, Sources};
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use threads::Event;

/// After this time without an event, memory that is not needed any more is given back.
const REST_AFTER: Duration = Duration::from_secs(1);

/// Why a supervisor was started.
pub enum Origin {
    /// To run a server; for `-d` with the line to the caller, which waits until the swap is done.
    Caller(Option<Launcher>),
    /// For a reload: the line to its front.
    Front(UnixStream),
    /// To take care of a server that has lost its supervisor.
    Orphan(Pid),
}

impl Supervisor {
    /// Runs a server to its end and gives the exit status.
    pub fn run(run: Run, output: Output, dir: RunDir, log: Log, origin: Origin) -> u8 {
        let (launcher, front, orphan) = match origin {
            Origin::Caller(launcher) => (launcher, None, None),
            Origin::Front(line) => (None, Some(line), None),
            Origin::Orphan(server) => (None, None, Some(server)),
        };
        let caller = Caller::new(launcher, output);
        process::clean_signals();
        process::save_memory();
        process::raise_files();
        let household = match procfs::is_ours() {
            true => Household::found(),
            false => Err(std::io::Error::other("/proc is not mounted, or is that of another pid namespace")),
        };
        let household = match household {
            Ok(household) => household,
            Err(e) => {
                let error = Error::unable("look at processes", e, "nothing was started");
                log.say(Level::Error, None, &error.text);
                if let Some(launcher) = caller.launcher {
                    launcher.tell(error.status);
                }
                return error.status;
            }
        };
        let (events, inbox) = sync_channel(threads::BACKLOG);
        let mut supervisor = Supervisor {
            run,
            dir: dir.with_patience(Duration::ZERO),
            log,
            events,
            inbox,
            live: None,
            kin: Kin {
                household,
                leftovers: Vec::new(),
                cared_for: BTreeMap::new(),
                given: Vec::new(),
                successor: None,
            },
            peers: Peers::default(),
            reloads: Reloads::default(),
            agenda: Agenda::default(),
            clock: Clock::new(),
            caller,
        };
        let awaited = supervisor.caller.launcher.is_some() || front.is_some();
        let begun = supervisor.listen(front).and_then(|sources| match orphan {
            Some(server) => supervisor.take_care(server, sources),
            None => supervisor.start_server(awaited, sources),
        });
        match begun {
            Ok(()) => supervisor.serve(),
            Err(error) => {
                supervisor.say_failure(None, &error.text);
                supervisor.caller.status = error.status;
            }
        }
        supervisor.finish()
    }

    /// Handles signals from here on, and has all that its server leaves behind come to this process.
    fn listen(&mut self, front: Option<UnixStream>) -> Result<Sources> {
        self.name_log();
        let failed = |what: &str, e: std::io::Error| Error::unable(what, e, "nothing was started");
        let mut signals =
            vec![Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCHLD];
        if !self.caller.hup_ignored {
            signals.push(Signal::SIGHUP);
        }
        let numbers = signals.iter().map(|&signal| signal as i32);
        let signals = threads::Signals::new(numbers).map_err(|e| failed("handle signals", e))?;
        nix::sys::prctl::set_child_subreaper(true).map_err(|e| failed("reap its descendants", e.into()))?;
        Ok(Sources { signals, front: front.map(|line| self.meet_front(line)) })
    }

    /// Starts the threads that hear of signals, of its front, and of a caller that calls the swap off. Its server runs by
    /// then: to start a thread takes as long as to start a process.
    fn hear(&self, sources: Sources) -> std::io::Result<()> {
        threads::signals(self.events.clone(), sources.signals)?;
        if let Some((id, link)) = sources.front {
            threads::lines(self.events.clone(), id, link)?;
        }
        let mut launcher = self.caller.launcher.iter();
        launcher.try_for_each(|launcher| launcher.watch(self.events.clone(), || Event::Cancelled))
    }

    /// The main loop: one event, and everything that follows from it.
    fn serve(&mut self) {
        while !self.is_over() || self.stays() {
            let wake_at = [
                self.agenda.timers.next(),
                self.clock.poll_at,
                self.directory_at(),
                self.copies_at(),
                self.progress_at(),
                self.checks_at(),
            ]
            .into_iter()
            .flatten()
            .min();
            let event = match wake_at {
                None => self.inbox.recv_timeout(REST_AFTER).ok().or_else(|| {
                    // Nothing to do and nothing to wait for, and what others did for us is over: this may last for
                    // months.
                    process::shed_memory();
                    self.inbox.recv().ok()
                }),
                Some(at) => self.inbox.recv_timeout(at.saturating_duration_since(Instant::now())).ok(),
            };
            match event {
                Some(event) => {
                    self.handle(event);
                    // A server that has ended is not up, whatever it said before.
                    if self.live.as_ref().is_some_and(|live| live.machine.is_starting()) {
                        self.reap();
                    }
                }
                // A signal handler may have had no memory to tell of SIGCHLD.
                None => self.reap(),
            }
            while let Some(timer) = self.agenda.timers.take_due() {
                // A daemon whose starter is done is no worker, however quiet it is.
                let is_daemon = self.live.as_ref().is_some_and(|live| live.life.ended.is_some());
                match timer {
                    swap::Timer::Quiet if is_daemon => self.agenda.timers.arm(timer, swap::QUIET),
                    _ => self.feed(swap::Event::Timer(timer)),
                }
            }
            self.settle();
            if self.directory_at().is_some_and(|at| at <= Instant::now()) {
                self.work_on_directory();
                self.settle();
            }
            if self.clock.poll_at.is_some_and(|at| at <= Instant::now()) {
                self.poll();
                self.settle();
            }
            self.move_checks();
            self.settle();
            self.reload_if_possible();
            self.show_progress();
        }
        message::end_progress();
    }

    /// Our server is gone, and so is every copy.
    fn is_over(&self) -> bool {
        self.live.is_none()
            && self.kin.leftovers.is_empty()
            && self.reloads.copies.is_empty()
            && self.reloads.asked.is_empty()
            && (self.agenda.kept.is_over() || self.hurries())
    }

    fn finish(mut self) -> u8 {
        // An event that nobody takes any more may hold the lock of the run directory.
        drop(self.inbox);
        // Processes that were killed meanwhile could not remove their files.
        let dir = self.dir.with_patience(PARTING);
        self.agenda.course.write(&dir, self.log);
        dir.tidy();
        if let Some(launcher) = self.caller.launcher.take() {
            // Not told yet: the swap is not done, and the caller must not take it for a success.
            let status = if self.caller.status == status::DONE { status::NOT_UP } else { self.caller.status };
            launcher.tell(status);
        }
        if let Some(telling) = self.caller.telling.take() {
            let _ = telling.join();
        }
        dir.leave();
        self.caller.status
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Signal(Signal::SIGCHLD, _) => {
                self.reap();
                self.restore_files();
            }
            Event::Signal(signal, from_terminal) => self.signalled(signal, from_terminal),
            Event::Opened(id, link) => self.opened(id, link),
            Event::Connected(id, link) => self.connected(id, link),
            Event::Line(id, line) => self.line(id, line),
            Event::Files(id, files) => self.handed_over(id, files),
            Event::Unshared(why) => self.unshared(&why),
            Event::Closed(id) => self.closed(id),
            Event::Notified(datagram) => self.notified(&datagram),
            Event::Ended(pid) => {
                // A daemon has become our child, and then its status is known.
                self.reap();
                self.successor_ended(pid, None);
                if self.live.as_ref().is_some_and(|live| live.server.pid == pid) {
                    self.main_ended(status::DONE, "ended");
                }
            }
            Event::Bound => self.feed(swap::Event::Bound),
            Event::Called(waiting) => {
                // A daemon listens when its starter has ended, as a rule.
                self.reap();
                self.called(waiting);
            }
            Event::Steers(steering) => self.steers(steering),
            Event::Relayed(tally) => self.relayed(tally),
            Event::Asked(result) => self.asked(result),
            Event::Previewed(answer) => self.previewed(&answer),
            Event::Directory(lock) => self.directory_is_ours(lock),
            Event::HungUp(id) => self.hung_up(id),
            Event::Orphaned(id) => self.orphaned(id),
            // Who was told how it went waits for nothing.
            Event::Cancelled if self.caller.launcher.is_none() => {}
            Event::Cancelled => {
                // A server that is being stopped already is killed, as by a second signal.
                let may = |live: &Live| live.machine.may_be_cancelled();
                if self.caller.is_stopping() || self.live.as_ref().is_some_and(may) {
                    self.told_to_stop(false);
                } else {
                    self.log.say(Level::Warning, None, "the swap cannot be called off any more (it goes on)");
                }
            }
        }
    }

    fn notified(&mut self, datagram: &[u8]) {
        for notice in notify::parse(datagram) {
            let Some(live) = self.live.as_mut() else { return };
            match notice {
                Notice::Up => {
                    let speaker = SpeakerId(live.sockets.control);
                    self.said_up(speaker);
                }
                Notice::Stopping => live.status_text = "stopping".into(),
                Notice::Status(text) => {
                    live.status_text.clone_from(&text);
                    if !self.is_replaced(0) {
                        self.tell_manager(&format!("STATUS={text}"));
                    }
                }
                Notice::Watchdog(word) if !self.is_replaced(0) => self.tell_manager(word),
                Notice::Watchdog(_) => {}
            }
        }
    }

    fn feed(&mut self, event: swap::Event) {
        self.agenda.pending.push_back(event);
    }

    /// Lets the machine run until it has nothing left to say.
    fn settle(&mut self) {
        while let Some(event) = self.agenda.pending.pop_front() {
            if let swap::Event::OldGone(_) = event {
                // Before anybody else gets the lock: our handles would be strangers to them.
                self.finish_sharing();
            }
            if let swap::Event::Listens(_) | swap::Event::Accepts(_) = event
                && self.live.as_ref().is_some_and(|live| live.life.ended.is_some())
                && let Ok(sockets) = net::listeners()
            {
                // The starter of a daemon has ended: messages are to name the process that serves in its place.
                self.look_for_rest(&sockets);
            }
            let Some(live) = self.live.as_mut() else { continue };
            for effect in live.machine.step(event) {
                self.carry_out(effect);
            }
            self.tell_front_of_leaving();
            if let Some(live) = self.live.as_mut() {
                // A worker that turned out to be slow.
                live.life.was_up &= !live.machine.is_starting();
                live.life.ready_said &= live.life.was_up;
            }
            if let Some(live) = self.live.as_ref()
                && let Some(watch) = live.watch()
            {
                // While two servers share the port, each may close its listener there and open another one.
                let beside = live.machine.claimer().is_some() || live.joining.sharing.has_olds();
                watch.facts.tell(live.server.pid, beside);
            }
        }
        self.finish_sharing();
    }
}
