//! Starting a server: its control and notify sockets, its record, the thread that sees its calls.

#![forbid(unsafe_code)]

use super::live::Names;
use super::looks::POLL_SWAP;
use super::peers::Role;
use super::threads::{self, GenId, Id, Link, NotifySocket};
use super::{Conn, Live, OWN, Sockets, Supervisor, watching};
use crate::error::{Error, Result};
use crate::family::Jobs;
use crate::finder::{Entry, Registration};
use crate::protocol::CopyWord;
use crate::server::{Server, Surroundings};
use crate::swap::{self, Effect, Level, Order, Settings};
use crate::sys::process::Pid;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How long the listeners of a server that says nothing are looked for.
const DISCOVER_FOR: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Starts the server. `awaited`: somebody waits for the swap.
    pub(super) fn start_server(&mut self, awaited: bool) -> Result<()> {
        let id = OWN;
        let command = self.run.line();
        let number = self.dir.next_generation(&command);
        let failed = |e: io::Error| Error::unable("open the control channel", e, "nothing was started");
        let names = ["sock", "notify"].map(|kind| format!("{}-{id}.{kind}", Pid::own()));
        let [socket, notify] = names.clone().map(|name| self.dir.path().join(name));
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let (listener, datagrams) = open_sockets(&socket, &notify).map_err(failed)?;
        let around = Surroundings {
            control: theirs,
            socket: &socket,
            notify: &notify,
            household: &self.kin.household,
            generation: number,
            on_terminal: self.caller.on_terminal,
            hup_ignored: self.caller.hup_ignored,
            detached: self.run.detach,
            watched: !self.run.plain,
        };
        let server = Server::spawn(&self.run, around).inspect_err(|_| remove(&[&socket, &notify]))?;
        let registration = self.register_new(&server, number, &names[0], &command).inspect_err(|_| {
            server.signal_all(Signal::SIGKILL, Jobs::Ended);
            remove(&[&socket, &notify]);
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
        let settings = Settings {
            order: if watch.is_some() { Order::Shared } else { Order::Plain },
            drain: self.run.drain,
            awaited,
            ready_timeout: self.run.ready_timeout,
            kill_after: self.run.kill_after,
        };
        let (machine, effects) = swap::Generation::new(settings);
        let (listener, control, ours) = (Arc::new(listener), threads::next_id(), Link::new(ours));
        let notify = Arc::new(NotifySocket { socket: datagrams, closed: AtomicBool::new(false) });
        self.peers.conns.insert(control, Conn::ours(ours.clone(), Role::Server(id)));
        let started = self.hear_server(id, (control, ours), &listener, &notify).and_then(|()| {
            let Some(watch) = watch else { return Ok(()) };
            watch.facts.tell(server.pid, false);
            let mark = socket.to_string_lossy().into_owned();
            watching::watch(self.events.clone(), id, watch, mark, self.dir.try_clone()?)
        });
        self.log.say(Level::Detail, None, &format!("server {} started (generation {number})", server.pid));
        let names_of = Names { number, number_is_guess: true, registration: Some(registration), ..Names::default() };
        let mut live = Live::new(machine, server, names_of);
        live.sockets = Some(Sockets { control, listener, notify, names });
        live.looks.discover_until = Some(Instant::now() + DISCOVER_FOR);
        self.live.insert(id, live);
        self.begin(started, effects);
        Ok(())
    }

    fn register_new(&self, server: &Server, generation: u64, socket: &str, command: &str) -> Result<Registration> {
        let (pid, start) = (server.pid, server.start);
        let entry = Entry { pid, start, generation, socket, command, replaced: &[], datagrams: &[] };
        let consequence = "the new server is killed; the old one, if any, still serves";
        self.dir.register(&entry).map_err(|why| Error::unable("write its record", why, consequence))
    }

    fn hear_server(
        &self,
        id: GenId,
        (control, link): (Id, Arc<Link>),
        listener: &Arc<UnixListener>,
        notify: &Arc<NotifySocket>,
    ) -> io::Result<()> {
        threads::lines(self.events.clone(), control, link)?;
        threads::accept(self.events.clone(), id, listener.clone())?;
        threads::notifications(self.events.clone(), id, notify.clone())
    }

    /// Its threads have started, or not.
    fn begin(&mut self, started: io::Result<()>, effects: Vec<Effect>) {
        if let (Some(front), Some(live)) = (self.reloads.front, self.live.get(&OWN)) {
            self.tell(front, &CopyWord::Server(live.server.pid.raw().unsigned_abs(), live.server.start));
        }
        if let Err(e) = started {
            // Without its threads the server cannot be heard: it goes the way of one that failed.
            self.log.say(Level::Error, None, &format!("unable to start a thread: {e} (the new server is killed)"));
            self.live[&OWN].server.signal_all(Signal::SIGKILL, Jobs::Ended);
        }
        for effect in effects {
            self.carry_out(OWN, effect);
        }
        if self.live.get(&OWN).is_some_and(|live| live.watch().is_some()) {
            // Its calls tell when it listens: only what it was handed has to be looked for.
            self.clock.poll_every = POLL_SWAP;
            self.poll_by(Instant::now() + POLL_SWAP);
        } else {
            self.poll_soon();
        }
    }
}

fn remove(paths: &[&Path]) {
    for path in paths {
        let _ = std::fs::remove_file(path);
    }
}

/// Sockets that only this user can connect to, from the moment they are there.
fn open_sockets(control: &Path, notify: &Path) -> io::Result<(UnixListener, UnixDatagram)> {
    let before = umask(Mode::from_bits_truncate(0o177));
    let opened = bind(control, UnixListener::bind).and_then(|listener| {
        let datagrams = bind(notify, UnixDatagram::bind).inspect_err(|_| drop(std::fs::remove_file(control)))?;
        Ok((listener, datagrams))
    });
    umask(before);
    opened
}

/// Binds one, in the place of that of a dead supervisor with our pid: process 1 of a container always has it.
fn bind<'a, S>(path: &'a Path, bind: impl Fn(&'a Path) -> io::Result<S>) -> io::Result<S> {
    match bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && is_left_behind(path) => {
            std::fs::remove_file(path)?;
            bind(path)
        }
        bound => bound,
    }
}

/// Whether it is a socket that nobody has. To connect to it by datagrams never waits, whatever its kind.
fn is_left_behind(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let connected = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    is_socket && connected.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}
