//! What a supervisor knows besides its server ([`super::live`]): all of it belongs to the main thread.

use super::course::Course;
use super::live::{Leftover, Live};
use super::outbox::Outbox;
use super::threads::{EndOf, Event, Events, Id, Link, Signals};
use super::timers::Timers;
use crate::address::Address;
use crate::check::Checks;
use crate::cli::Run;
use crate::detach::Launcher;
use crate::error::status;
use crate::family::Household;
use crate::finder::Holder;
use crate::message::Log;
use crate::notify::Manager;
use crate::output::Output;
use crate::procfs::Start;
use crate::protocol::PeerWord;
use crate::relay::Remains;
use crate::rundir::{Notes, RunDir};
use crate::swap::{self, Effect, SpeakerId};
use crate::sys::process::{self, End, Pid};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
/// A supervisor.
pub struct Supervisor {
    pub(super) run: Run,
    pub(super) dir: RunDir,
    pub(super) log: Log,
    /// What the threads that read have to say.
    pub(super) events: Events,
    pub(super) inbox: Receiver<Event>,
    /// Its server, until that has ended.
    pub(super) live: Option<Live>,
    pub(super) kin: Kin,
    pub(super) peers: Peers,
    pub(super) reloads: Reloads,
    pub(super) agenda: Agenda,
    pub(super) clock: Clock,
    pub(super) caller: Caller,
}

/// What its threads are to hear besides its server.
pub(super) struct Sources {
    pub(super) signals: Signals,
    /// The line to its front.
    pub(super) front: Option<(Id, Arc<Link>)>,
}

/// What belongs to its server.
pub(super) struct Kin {
    pub(super) household: Arc<Household>,
    pub(super) leftovers: Vec<Leftover>,
    /// Servers of which a caretaker was started not long ago.
    pub(super) cared_for: BTreeMap<Pid, Instant>,
    /// The addresses of our server, if another one has them now.
    pub(super) given: Vec<Address>,
    /// Whoever has the server in place of this process, if that is the first of a container.
    pub(super) successor: Option<Successor>,
}

/// Whom it speaks to.
#[derive(Default)]
pub(super) struct Peers {
    pub(super) conns: BTreeMap<Id, Conn>,
    pub(super) olds: BTreeMap<Id, Old>,
}

/// What it has to do.
#[derive(Default)]
pub(super) struct Agenda {
    pub(super) timers: Timers,
    pub(super) desk: Desk,
    /// Events of the machine that wait for their turn.
    pub(super) pending: VecDeque<swap::Event>,
    /// Old servers whose locks were ours and that have no supervisor, and since when.
    pub(super) orphaned: BTreeMap<Id, Instant>,
    /// Connections of a server that was told to stop.
    pub(super) kept: Remains,
    /// The checks of our server, if it had any to pass.
    pub(super) checks: Option<Checks>,
    /// What the histories of its addresses are to tell.
    pub(super) course: Course,
}

/// The supervisor of the server for which this process stands.
pub(super) struct Successor {
    pub(super) pid: Pid,
    #[expect(dead_code, reason = "the thread that waits for its end lasts as long")]
    pub(super) end: EndOf,
}

/// Who has started it, and what becomes of it.
pub(super) struct Caller {
    pub(super) on_terminal: bool,
    pub(super) hup_ignored: bool,
    pub(super) launcher: Option<Launcher>,
    /// Who sees meanwhile what it waits for.
    pub(super) watcher: Option<Watcher>,
    /// Where the output of its servers goes.
    pub(super) output: Arc<Output>,
    /// Tells the launcher that the swap is done.
    pub(super) telling: Option<JoinHandle<()>>,
    pub(super) manager: Manager,
    /// How many signals told it to stop. `stops`: how often it was told at all, by signals or by its front.
    pub(super) signals: u32,
    pub(super) stops: u32,
    /// How many of them have only ended the trial of its server, which finishes what it has.
    pub(super) excused: u32,
    /// Its exit status so far.
    pub(super) status: u8,
}

impl Caller {
    pub(super) fn new(launcher: Option<Launcher>, output: Output) -> Caller {
        Caller {
            on_terminal: launcher.is_none() && std::fs::File::open("/dev/tty").is_ok(),
            hup_ignored: process::is_ignored(Signal::SIGHUP),
            watcher: launcher.as_ref().and_then(|_| Watcher::at_terminal()),
            launcher,
            output: Arc::new(output),
            telling: None,
            manager: Manager::from_environment(),
            signals: 0,
            stops: 0,
            excused: 0,
            status: status::FAILED,
        }
    }

    /// Whether it was told to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.stops > 0
    }
}

/// How often a line of progress is written; the first time after as long a wait.
pub(super) const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Somebody who waits at a terminal, where a line tells for what.
pub(super) struct Watcher {
    pub(super) since: Instant,
    /// When it is written next.
    pub(super) next: Instant,
}

impl Watcher {
    /// `None` if standard error is no terminal.
    pub(super) fn at_terminal() -> Option<Watcher> {
        let since = Instant::now();
        nix::unistd::isatty(std::io::stderr())
            .is_ok_and(|it| it)
            .then_some(Watcher { since, next: since + PROGRESS_EVERY })
    }
}

/// A connection.
pub(super) struct Conn {
    pub(super) out: Outbox,
    pub(super) role: Role,
    /// It said something that counts, and is not sent away to make room for another.
    pub(super) counts: bool,
    /// It came when all connections were taken, and is kept only if it turns out to be another serverswap.
    pub(super) spare: bool,
}

impl Conn {
    pub(super) fn new(link: Arc<Link>, role: Role) -> Conn {
        Conn { out: Outbox::new(link), role, counts: false, spare: false }
    }

    /// A connection that does not come from the control socket, such as the control channel: it is never sent away to
    /// make room.
    pub(super) fn ours(link: Arc<Link>, role: Role) -> Conn {
        Conn { counts: true, ..Conn::new(link, role) }
    }
}

/// Who is at the other end.
pub(super) enum Role {
    /// Somebody on the control socket who has not said anything yet.
    New,
    /// Our server.
    Server,
    /// Another serverswap that wants something of our server, and the addresses that its COMMIT is for.
    Peer(Vec<Address>),
    /// The supervisor of an old server; its number is that of the connection.
    Holder,
    /// A copy of this process.
    Copy,
    /// The front whose copy this process is.
    Front,
}

impl Role {
    /// Whether its connection is that of the control fd, or came to the control socket.
    pub(super) fn is_limited(&self) -> bool {
        matches!(self, Role::New | Role::Server | Role::Peer(_))
    }
}

/// An older server that ours wants to replace.
pub(super) struct Old {
    pub(super) holder: Holder,
    pub(super) holds: Vec<Address>,
    /// Its listeners, as its supervisor handed them over.
    pub(super) sockets: Vec<OwnedFd>,
    /// How many listeners its supervisor announced.
    pub(super) promised: usize,
    /// Whose each of them is, and what is known of its order, by a letter.
    pub(super) order: String,
    pub(super) locked: bool,
    /// What it was asked for, without the takedowns that it has released; asked again when a caretaker takes it over.
    pub(super) asked: Vec<PeerWord>,
    /// It was asked for something, even if `asked` is empty again.
    pub(super) told: bool,
    /// It has ended, and since then somebody else holds a listener of its.
    pub(super) lingers: Option<Linger>,
}

/// What is known of somebody who holds a listener of an old server that has ended.
#[derive(Clone, Copy)]
pub(super) enum Linger {
    /// Seen first then: it may be ending too.
    Since(Instant),
    /// And it was named.
    Named,
}

/// What waits for the run directory.
#[derive(Default)]
pub(super) struct Desk {
    /// In their order.
    pub(super) jobs: VecDeque<Job>,
    /// Addresses to be looked up again.
    pub(super) unclear: BTreeMap<Address, Unclear>,
    pub(super) wait: Wait,
}

pub(super) struct Job {
    pub(super) effect: Effect,
    pub(super) since: Instant,
}

/// An address to look up again: its holder cannot be seen yet, gets a caretaker, or others claim orphans right now.
#[derive(Default)]
pub(super) struct Unclear {
    pub(super) looks: u32,
    /// Of how many.
    pub(super) of: u32,
    /// When it is looked up again; `None`: that is under way.
    pub(super) at: Option<Instant>,
    /// To be said when it is clear.
    pub(super) notes: Notes,
}

/// Who waits for the lock.
#[derive(Default)]
pub(super) enum Wait {
    #[default]
    Nobody,
    /// A thread, which sends an event.
    Thread,
    /// Nobody could: it is tried again then.
    Until(Instant),
}

/// Who hears how a reload went.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiter {
    /// Another serverswap, on this connection.
    Peer(Id),
    /// A waiter of a copy: the line to the copy, and the number by which the copy knows the waiter.
    Of(Id, Id),
}

/// A reload that has not begun.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) waiters: Vec<Waiter>,
    /// What the new server is to be started with; `None`: with what the old one was.
    pub(super) start: Option<Start>,
}

/// A copy of this process.
pub(super) struct Child {
    pub(super) pid: Pid,
    pub(super) waiters: Vec<Waiter>,
    pub(super) start: Option<Start>,
    pub(super) progress: Progress,
    /// Its server.
    pub(super) server: Option<(Pid, u64)>,
    /// Its server is on its way out.
    pub(super) leaves: bool,
    /// The line to it has ended: it says nothing any more.
    pub(super) silent: bool,
    /// How it has ended.
    pub(super) end: Option<End>,
}

/// The reloads of a server.
#[derive(Default)]
pub(super) struct Reloads {
    /// The line to our front, if this process is a copy that was started for a reload.
    pub(super) front: Option<Id>,
    /// Copies of ours, by their lines.
    pub(super) copies: BTreeMap<Id, Child>,
    /// The copy that has replaced our server; its status is this process's.
    pub(super) in_charge: Option<Id>,
    /// The one that is wanted.
    pub(super) wanted: Option<Wanted>,
    /// What the server in charge was started with, if it is not what this process has.
    pub(super) start: Option<Start>,
    /// Who waits for one that our front was asked for.
    pub(super) asked: BTreeSet<Id>,
    /// The front knows that our server leaves.
    pub(super) leave_said: bool,
}

/// How far the swap of a copy is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The new server is not up, or in its canary.
    Starting,
    /// It has all new connections, and old ones may still drain.
    Up,
    /// The old one is kept.
    Held,
    Done,
}

/// When to look, and for what besides.
pub(super) struct Clock {
    /// Old servers that could not even be spoken to: for want of memory, say. They are looked for again.
    pub(super) unreached: Vec<swap::OldId>,
    /// Who has said UP, and could not be looked at since.
    pub(super) ups: Vec<SpeakerId>,
    /// When the run directory is tidied.
    pub(super) tidy_at: Option<Instant>,
    /// When files that somebody removed are written again at the earliest.
    pub(super) restores_at: Option<Instant>,
    pub(super) poll_at: Option<Instant>,
    pub(super) poll_every: Duration,
    pub(super) poll_took: Duration,
    pub(super) poll_since: Instant,
}

impl Clock {
    pub(super) fn new() -> Clock {
        Clock {
            unreached: Vec::new(),
            ups: Vec::new(),
            tidy_at: None,
            restores_at: None,
            poll_at: None,
            poll_every: Duration::ZERO,
            poll_took: Duration::ZERO,
            poll_since: Instant::now(),
        }
    }
}
