//! The checks of a new server (`--check`, `--check-http`): made one after the other, and again until all of them succeed, as
//! long as the machine wants them.

#![forbid(unsafe_code)]

use super::state::Supervisor;
use super::threads::Event;
use crate::address::Address;
use crate::check::{self, Checks, Doing, Preview, Running};
use crate::cli::Check;
use crate::error::reason;
use crate::swap;
use crate::sys::net::{self, TcpSocket};
use crate::sys::process::{End, Pid};
use crate::sys::thread::start;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

/// How long after a check has failed all are made again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Longest time of a check. One that hangs is ended, and has failed.
const CHECK_MAX: Duration = Duration::from_secs(30);

impl Supervisor {
    /// Begins with the checks of our server, or makes them once more.
    pub(super) fn check(&mut self) {
        let now = Instant::now();
        match &mut self.agenda.checks {
            Some(Checks { passed, doing: doing @ Doing::Waits(_), .. }) => {
                (*passed, *doing) = (0, Doing::Waits(now + AGAIN_AFTER));
            }
            // They are under way.
            Some(Checks { doing: Doing::Runs(..) | Doing::Asks, .. }) => {}
            Some(Checks { doing: Doing::Over, .. }) | None => {
                let doing = Doing::Waits(now);
                self.agenda.checks = Some(Checks { passed: 0, doing, preview: None, said: Vec::new() });
            }
        }
    }

    /// When [`Supervisor::move_checks`] has something to do.
    pub(super) fn checks_at(&self) -> Option<Instant> {
        match &self.agenda.checks.as_ref()?.doing {
            Doing::Waits(until) => Some(*until),
            // What it writes is to be read.
            Doing::Runs(running, until) => Some((*until).min(running.reads_at())),
            Doing::Asks | Doing::Over => None,
        }
    }

    /// Goes on with the checks, and ends them when nobody wants them any more.
    pub(super) fn move_checks(&mut self) {
        let Some(live) = self.live.as_ref().filter(|live| live.machine.is_checking()) else {
            return self.end_checks();
        };
        let (name, number, pid) = (live.machine.name(), live.names.number, live.server.pid);
        let Some(checks) = self.agenda.checks.as_mut() else { return };
        let now = Instant::now();
        match &mut checks.doing {
            Doing::Waits(until) if now >= *until => checks.said.clear(),
            Doing::Runs(running, until) if now >= *until => {
                running.kill();
                running.read();
                checks.said = running.last_lines();
                let why = format!("it took longer than {} s", CHECK_MAX.as_secs());
                return self.check_ended(Err(why));
            }
            Doing::Runs(running, _) => return running.read(),
            Doing::Waits(_) | Doing::Asks | Doing::Over => return,
        }
        let Some(check) = self.run.trial.checks.get(checks.passed).cloned() else { return };
        let preview = match self.preview_address(name.as_ref()) {
            Ok(preview) => preview,
            Err(e) => return self.check_ended(Err(format!("unable to offer a preview: {}", reason(&e)))),
        };
        let begun = match &check {
            Check::Command(command) => {
                Running::start(command, preview, number, pid).map(|running| Doing::Runs(running, now + CHECK_MAX))
            }
            Check::Http(path) => {
                let (events, path) = (self.events.clone(), path.clone());
                let ask = move || _ = events.send(Event::Asked(check::ask(preview, &path)));
                start("check", ask).map(|()| Doing::Asks)
            }
        };
        match (begun, self.agenda.checks.as_mut()) {
            (Ok(doing), Some(checks)) => checks.doing = doing,
            (Err(e), _) => self.check_ended(Err(format!("unable to start it: {}", reason(&e)))),
            (Ok(_), None) => {}
        }
    }

    /// A child has ended; `true` if it was a check.
    pub(super) fn is_check(&mut self, pid: Pid, end: End) -> bool {
        let Some(checks) = self.agenda.checks.as_mut() else { return false };
        let Doing::Runs(running, _) = &mut checks.doing else { return false };
        if running.pid != pid {
            return false;
        }
        // What it has left behind goes with it.
        running.kill();
        running.read();
        let result = if end == End::Exited(0) { Ok(()) } else { Err(format!("it {end}")) };
        if result.is_err() {
            checks.said = running.last_lines();
        }
        self.check_ended(result);
        true
    }

    /// A thread has asked.
    pub(super) fn asked(&mut self, result: Result<(), String>) {
        if self.agenda.checks.as_ref().is_some_and(|checks| matches!(checks.doing, Doing::Asks)) {
            self.check_ended(result);
        }
    }

    /// A check has ended.
    fn check_ended(&mut self, result: Result<(), String>) {
        let Some(checks) = self.agenda.checks.as_mut() else { return };
        let which = self.run.trial.checks.get(checks.passed).map(Check::to_string).unwrap_or_default();
        let failed = result.map_err(|why| format!("its check failed: {which}: {why}"));
        checks.passed = if failed.is_ok() { checks.passed + 1 } else { 0 };
        checks.doing = Doing::Waits(Instant::now() + if failed.is_ok() { Duration::ZERO } else { AGAIN_AFTER });
        if failed.is_err() || checks.passed == self.run.trial.checks.len() {
            self.feed(swap::Event::Checked(failed));
        }
    }

    /// Where only our server answers: its address if no other server is there.
    fn preview_address(&mut self, name: Option<&Address>) -> io::Result<Option<SocketAddr>> {
        let Some((name, own)) = name.and_then(|name| Some((name, name.reached_at()?))) else { return Ok(None) };
        if self.peers.olds.is_empty() {
            // A socket of a service manager is not among these.
            let listeners = net::listeners_at(own.port())?;
            let held = self.live.as_ref().and_then(|live| live.server.socket_inodes());
            let is_ours = |socket: &&TcpSocket| held.as_ref().is_none_or(|held| held.contains(&socket.inode));
            let places = listeners.at(name).filter(is_ours).map(TcpSocket::place);
            return Ok(Some(places.min_by_key(|place| !place.takes_v4()).map_or(own, |place| place.reached_at())));
        }
        let Some(checks) = self.agenda.checks.as_mut() else { return Ok(None) };
        if checks.preview.is_none() {
            let events = self.events.clone();
            checks.preview = Some(Preview::open(move |answer| events.send(Event::Previewed(answer)).is_ok())?);
        }
        Ok(checks.preview.as_ref().map(|preview| preview.address))
    }

    /// Somebody has connected to the preview: gives a connection to our server.
    pub(super) fn previewed(&mut self, answer: &SyncSender<io::Result<TcpStream>>) {
        let live = self.live.as_mut().filter(|live| live.machine.is_checking());
        let stream = live.and_then(|live| Some(live.joining.sharing.preview(&live.machine.name()?, &live.server)));
        let _ = answer.try_send(stream.unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into())));
    }

    fn end_checks(&mut self) {
        if let Some(checks) = self.agenda.checks.as_mut() {
            if let Doing::Runs(running, _) = &mut checks.doing {
                running.kill();
                running.read();
                checks.said = running.last_lines();
            }
            (checks.doing, checks.preview) = (Doing::Over, None);
        }
    }
}
