//! Starting a server: its control and notify sockets, its record, the thread that sees its calls.

#![forbid(unsafe_code)]

use super::live::{Live, Names};
use super::looks::POLL_SWAP;
use super::sockets::Sockets;
use super::state::{Conn, Role, Sources, Supervisor};
use super::threads::{self, Link};
use super::watching;
use crate::error::{Error, Result};
use crate::family::Jobs;
use crate::finder::{Holder, Registration};
use crate::protocol::CopyWord;
use crate::record::Record;
use crate::server::{Server, Surroundings};
use crate::swap::{self, Checked, Effect, Level, Order, Settings};
use crate::sys::process::Pid;
use nix::sys::signal::Signal;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long the listeners of a server that says nothing are looked for.
const DISCOVER_FOR: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Starts the server. `awaited`: somebody waits for the swap.
    pub(super) fn start_server(&mut self, awaited: bool, sources: Sources) -> Result<()> {
        let command = self.run.line();
        let number = self.dir.next_generation(&command);
        let failed = |e: io::Error| Error::unable("open the control channel", e, "nothing was started");
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let sockets = Sockets::open(self.dir.path(), &self.stem()).map_err(failed)?;
        let [socket, notify] = sockets.names.each_ref().map(|name| self.dir.path().join(name));
        let remove = || sockets.remove(self.dir.path());
        let around = Surroundings {
            control: theirs,
            socket: &socket,
            notify: &notify,
            household: &self.kin.household,
            generation: number,
            on_terminal: self.caller.on_terminal,
            hup_ignored: self.caller.hup_ignored,
            output: &self.caller.output,
            detached: self.run.detach,
            watched: !self.run.plain,
        };
        let server = Server::spawn(&self.run, around).inspect_err(|_| remove())?;
        let registration = self.register_new(&server, number, &sockets.names[0], &command).inspect_err(|_| {
            server.signal_all(Signal::SIGKILL, Jobs::Ended);
            remove();
        })?;
        let watch = match &server.watch {
            Some(Ok(watch)) => Some(watch.clone()),
            Some(Err(why)) => {
                let text = format!("the port cannot be shared: {why} (swaps run in plain order)");
                self.log.say(Level::Warning, None, &text);
                None
            }
            None => None,
        };
        let settings = self.settings(watch.is_some(), awaited);
        let (machine, effects) = swap::Generation::new(settings);
        let ours = Link::new(ours);
        self.peers.conns.insert(sockets.control, Conn::ours(ours.clone(), Role::Server));
        let lines = threads::lines(self.events.clone(), sockets.control, ours);
        let started =
            lines.and_then(|()| self.hear(sources)).and_then(|()| sockets.hear(&self.events)).and_then(|()| {
                let Some(watch) = watch else { return Ok(()) };
                watch.facts.tell(server.pid, false);
                let mark = socket.to_string_lossy().into_owned();
                watching::watch(self.events.clone(), watch, mark, self.dir.try_clone()?)
            });
        self.log.say(Level::Detail, None, &format!("server {} started (generation {number})", server.pid));
        let names_of = Names { number, number_is_guess: true, registration: Some(registration), ..Names::default() };
        let mut live = Live::new(machine, server, names_of, sockets);
        live.looks.discover_until = Some(Instant::now() + DISCOVER_FOR);
        self.live = Some(live);
        self.begin(started, effects);
        Ok(())
    }

    fn settings(&self, is_watched: bool, awaited: bool) -> Settings {
        Settings {
            order: if is_watched { Order::Shared } else { Order::Plain },
            drain: self.run.drain,
            awaited,
            checked: if self.run.trial.checks.is_empty() { Checked::No } else { Checked::Yes },
            canary: self.run.trial.canary.clone(),
            hold: self.run.trial.hold,
            ready_timeout: self.run.ready_timeout,
            kill_after: self.run.kill_after,
        }
    }

    /// Tells the caller of `-d` where the output goes from here on.
    pub(super) fn name_log(&self) {
        if let (Some(_), Some(path)) = (&self.caller.launcher, self.caller.output.log()) {
            self.log.say(Level::Notice, None, &format!("the output goes to {}", path.display()));
        }
    }

    /// What the names of its sockets begin with. A caretaker may use the names of a dead supervisor that had our pid.
    fn stem(&self) -> String {
        let is_free = |stem: &String| {
            let is_its = |other: &Holder| other.socket.file_stem().is_some_and(|other| other == stem.as_str());
            let path = self.dir.path().join(format!("{stem}.sock"));
            !path.exists() || self.dir.servers().is_ok_and(|all| !all.iter().any(is_its))
        };
        (1..u32::MAX).map(|number| format!("{}-{number}", Pid::own())).find(is_free).unwrap_or_default()
    }

    fn register_new(&self, server: &Server, generation: u64, socket: &str, command: &str) -> Result<Registration> {
        let (socket_name, command, session) = (socket.to_owned(), command.to_owned(), server.session());
        let record = Record { session, generation, socket_name, command, ..Record::of(server.pid, server.start) };
        let consequence = "the new server is killed before it ran";
        self.dir.register(record).map_err(|why| Error::unable("write its record", why, consequence))
    }

    /// Begins with a server whose threads have started, or could not.
    fn begin(&mut self, started: io::Result<()>, effects: Vec<Effect>) {
        if let (Some(front), Some(live)) = (self.reloads.front, self.live.as_ref()) {
            self.tell(front, &CopyWord::Server(live.server.pid.raw().unsigned_abs(), live.server.start));
        }
        if let Err(e) = started {
            // Without its threads the server cannot be heard: it goes the way of one that failed.
            self.log.say(Level::Error, None, &format!("unable to start a thread: {e} (the new server is killed)"));
            self.live.iter().for_each(|live| live.server.signal_all(Signal::SIGKILL, Jobs::Ended));
        }
        for effect in effects {
            self.carry_out(effect);
        }
        if self.live.as_ref().is_some_and(|live| live.watch().is_some()) {
            // Its calls tell when it listens: only what it was handed has to be looked for.
            self.clock.poll_every = POLL_SWAP;
            self.poll_by(Instant::now() + POLL_SWAP);
        } else {
            self.poll_soon();
        }
    }
}
