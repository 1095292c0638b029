//! The server as processes: starting it, signalling it, and knowing what belongs to it.

#![forbid(unsafe_code)]

mod handles;
mod sockets;
mod spawn;
mod watch;

pub use handles::Found;
pub use sockets::Rest;
pub use spawn::Surroundings;
pub use watch::Watch;

use crate::family::{self, Descent, Family, Jobs, Seen};
use crate::finder::Holder;
use crate::procfs::{self, Snapshot, Stat};
use crate::sys::net::{self, TcpSocket};
use crate::sys::oom::OomScore;
use crate::sys::process::{Keeper, Pid, Pidfd};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// The most looks at a server whose processes get their values back. One that forks without end may keep what is left.
const SCORE_LOOKS: usize = 16;

/// One running server.
pub struct Server {
    /// Its main process.
    pub pid: Pid,
    /// Start time of the main process.
    pub start: u64,
    pidfd: Pidfd,
    family: Family,
    seen: Seen,
    /// Inodes of the sockets that listened before it was started.
    before: Option<BTreeSet<u32>>,
    keeper: Option<Keeper>,
    /// The value of its main process, until that has its own value back.
    score: Option<OomScore>,
    /// Where its calls are seen, or why they cannot be.
    pub watch: Option<std::result::Result<Arc<Watch>, String>>,
}

impl Server {
    /// Takes charge of a running server, if its main process is still the one in its record.
    pub fn adopt(holder: &Holder) -> Option<Server> {
        let (pid, start, mark) = (holder.pid, holder.start, holder.socket.to_string_lossy().into_owned());
        let pidfd = Pidfd::open(pid).ok()?;
        let stat = procfs::stat(pid).filter(|s| s.start == start)?;
        let group = Pid::new(stat.group.into()).filter(|g| *g == pid);
        let (session, seen) = (stat.session, Seen::default());
        seen.session(session);
        let family = Family { main: pid, start, group, session, mark, descent: Descent::Lost(holder.session) };
        Some(Server { pid, start, pidfd, family, seen, before: None, keeper: None, score: None, watch: None })
    }

    /// Whether it had another supervisor before.
    pub fn is_adopted(&self) -> bool {
        matches!(self.family.descent, Descent::Lost(_))
    }

    /// The addresses that it has asked to bind, if it is watched.
    pub fn asked(&self) -> BTreeSet<SocketAddr> {
        self.seen.first_asked()
    }

    /// The session of its main process, if its first supervisor was not in it.
    pub fn session(&self) -> Option<i32> {
        let ours = nix::unistd::getsid(None).map_or(0, nix::unistd::Pid::as_raw);
        match self.family.descent {
            Descent::Lost(session) => session,
            Descent::Ours(_) | Descent::From(_) => {
                procfs::stat(self.pid).map(|stat| stat.session).filter(|session| *session != ours)
            }
        }
    }

    /// From here on the server does not end with this supervisor.
    pub fn outlives_us(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.server_serves();
        }
    }

    /// The server is up: when memory runs out, it is not the first to go any more. A process that has set its value itself
    /// keeps it.
    pub fn goes_first_no_more(&mut self) {
        self.score.take_if(|main| main.give_back().is_ok());
        let give_back = |stat: &&Stat| {
            let score = OomScore::open(stat.pid).ok();
            // The pid may have been reused since the look: the start time of the opened one decides.
            let score = score.filter(|_| procfs::stat(stat.pid).is_some_and(|now| now.start == stat.start));
            score.is_some_and(|score| score.give_back().unwrap_or(false))
        };
        for _ in 0..SCORE_LOOKS {
            let snapshot = Snapshot::take();
            // What one of them forked before it had its own value back inherited the other one: the next look finds it.
            if self.family.members(&snapshot).into_iter().filter(give_back).count() == 0 {
                break;
            }
        }
    }

    /// Signals the main process.
    pub fn signal(&self, signal: Signal) {
        let _ = self.pidfd.signal(signal);
    }

    /// Whether it runs as another user, and we are not root: no signal reaches it.
    pub fn is_out_of_reach(&self) -> bool {
        self.pidfd.is_out_of_reach()
    }

    /// A handle for a thread that waits for the end of the main process.
    pub fn watch(&self) -> io::Result<Pidfd> {
        self.pidfd.try_clone()
    }

    /// Signals all that belongs to the server.
    pub fn signal_all(&self, signal: Signal, jobs: Jobs) {
        let _ = self.pidfd.signal(signal);
        self.signal_rest(signal, jobs);
    }

    /// Signals all that belongs to the server but its main process. Tells whether there was anything, or may be.
    pub fn signal_rest(&self, signal: Signal, jobs: Jobs) -> bool {
        let snapshot = Snapshot::take();
        let mut any = snapshot.complete().is_err();
        if signal == Signal::SIGKILL && self.family.group == Some(self.pid) {
            // A process that forks faster than we look is killed all the same if it has stayed in the group.
            let _ = self.pidfd.signal_group(signal);
        }
        let Ok(rest) = self.others(&snapshot, jobs) else { return true };
        for stat in rest {
            any |= family::signal(stat, signal);
        }
        any
    }

    /// Whether anything but the main process is left of the server, or may be.
    pub fn has_rest(&self, jobs: Jobs) -> bool {
        let snapshot = Snapshot::take();
        snapshot.complete().is_err() || self.others(&snapshot, jobs).map_or(true, |rest| !rest.is_empty())
    }

    /// Its processes but the main one; an error if it cannot be seen which of them are to be spared.
    fn others<'a>(&self, snapshot: &'a Snapshot, jobs: Jobs) -> io::Result<Vec<&'a Stat>> {
        let mut rest = self.family.members(snapshot);
        if let Descent::Lost(_) = self.family.descent {
            let listeners: Vec<TcpSocket> = net::listeners()?.all().cloned().collect();
            rest.extend(self.heirs(snapshot, &listeners, &rest)?);
        }
        rest.retain(|stat| stat.pid != self.pid);
        let own = |stat: &&Stat| stat.group == self.pid.raw() || self.seen.has_session(stat.session);
        if jobs == Jobs::Spared && !rest.iter().all(own) {
            self.note_sessions(&rest)?;
            rest.retain(own);
        }
        Ok(rest)
    }

    /// Notes the sessions of processes that have a listener now: these are no jobs of the server. When they are told to
    /// end, some have no listener any more.
    pub fn tell_jobs(&self) {
        let snapshot = Snapshot::take();
        // A process that cannot be asked now is asked again when it matters.
        let _ = self.note_sessions(&self.family.members(&snapshot));
    }

    fn note_sessions(&self, members: &[&Stat]) -> io::Result<()> {
        let listeners: BTreeSet<u32> = net::listeners()?.all().map(|s| s.inode).collect();
        for stat in members.iter().filter(|stat| !self.seen.has_session(stat.session)) {
            if !procfs::find_held(stat.pid)?.unwrap_or_default().is_disjoint(&listeners) {
                self.seen.session(stat.session);
            }
        }
        Ok(())
    }

    /// Whether the process belongs to the server; an error where that cannot be seen.
    pub fn owns(&self, pid: Pid) -> io::Result<bool> {
        let snapshot = Snapshot::take();
        let owns = self.family.members(&snapshot).iter().any(|s| s.pid == pid);
        if owns { Ok(true) } else { snapshot.complete().map(|()| false) }
    }

    /// Makes another process of the server its main process (a daemon whose starter has exited).
    pub fn promote(&mut self, pid: Pid) -> bool {
        let Some(stat) = procfs::stat(pid) else { return false };
        let Ok(pidfd) = Pidfd::open(pid) else { return false };
        (self.pid, self.start, self.pidfd) = (pid, stat.start, pidfd);
        let family = &mut self.family;
        (family.main, family.start) = (pid, stat.start);
        self.seen.session(stat.session);
        // It may have joined any group of its session, even ours. Only a group that the server has made is the server's.
        let group = family.group.and_then(|own| [own, pid].into_iter().find(|group| group.raw() == stat.group));
        (family.group, family.session) = (group, stat.session);
        true
    }
}
