//! A supervisor: the product's machine and its sharing, and between them and the kernel the order of calls of
//! `src/supervisor`.

pub mod care;
mod directory;
mod effects;
mod handover;
mod left;
mod looks;
mod olds;
mod peers;
mod switching;

use crate::address::Address;
use crate::drain::Drain;
use crate::kernel;
use crate::server::{Call, Life, Server};
use crate::share::Sharing;
use crate::swap::{ClaimerId, Event, Generation, OldId, Settings, SpeakerId, Timer};
use crate::sys::clock::Instant;
use crate::sys::pid::Pid;
use crate::sys::steer::Socket;
use crate::timers::Timers;
use crate::world::land::Land;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use olds::{Old, Thread};

/// How often the kernel is looked at: `POLL_FIRST`, `POLL_SWAP`, `POLL_STEERS` of the product.
pub const POLL_FIRST: Duration = Duration::from_millis(1);
pub const POLL_SWAP: Duration = Duration::from_millis(20);
pub const POLL_STEERS: Duration = Duration::from_millis(100);
/// The product's `UNCLEAR_FOR`.
pub const UNCLEAR_FOR: Duration = Duration::from_secs(2);

/// A process that supervises one server.
pub struct Supervisor {
    pub pid: i32,
    pub server: Server,
    pub live: Option<Live>,
    pub peers: Peers,
    pub agenda: Agenda,
    pub clock: Clock,
    /// Of caretakers that it has started.
    pub cared_for: BTreeMap<i32, Instant>,
    /// Its machine has said so.
    pub is_done: bool,
    pub status: Option<u8>,
}

/// The product's `Live`.
pub struct Live {
    pub machine: Generation,
    pub names: Names,
    pub looks: Looks,
    pub opening: Opening,
    pub joining: Joining,
    pub standing: Standing,
    pub life: Stage,
}

#[derive(Default)]
pub struct Names {
    pub number: u64,
    pub replaced: Vec<Pid>,
    pub kept: Vec<Pid>,
    pub held: BTreeSet<Address>,
    pub regaining: BTreeMap<Address, Instant>,
}

#[derive(Default)]
pub struct Looks {
    pub watching: BTreeSet<Address>,
    pub releasing: BTreeSet<Address>,
}

#[derive(Default)]
pub struct Opening {
    pub calls: Vec<Waiting>,
    pub lent: VecDeque<Lent>,
}

#[derive(Default)]
pub struct Joining {
    pub sharing: Sharing,
    /// The same while somebody else has the lock, and steers, although older servers still drain.
    pub lent: Option<Sharing>,
    pub unshared: bool,
    pub proving: BTreeSet<Address>,
    pub settled: bool,
    /// `--no-probe`.
    pub prove: bool,
}

#[derive(Default)]
pub struct Standing {
    pub handed_over: bool,
    pub left_by: Option<Left>,
    pub succeeded: bool,
    pub heir: Option<(Pid, Instant)>,
    pub drains: bool,
    pub drain: Option<Drain>,
    pub quiesced: bool,
}

#[derive(Default)]
pub struct Stage {
    pub was_up: bool,
    pub ended: bool,
    /// It was told to stop by a person.
    pub is_stopping: bool,
}

/// A `listen` of its server that waits.
pub struct Waiting {
    pub call: Call,
    pub socket: Socket,
}

pub struct Lent {
    pub waiting: Option<Waiting>,
    pub until: Instant,
}

pub struct Left {
    pub claimer: ClaimerId,
    pub since: Instant,
    pub until: Instant,
}

#[derive(Default)]
pub struct Peers {
    /// Streams whose other end is a claimer or an operator, and what such a one has named.
    pub claimers: BTreeMap<u64, Vec<Address>>,
    pub olds: BTreeMap<u64, Old>,
    pub threads: Vec<Thread>,
}

#[derive(Default)]
pub struct Agenda {
    pub pending: VecDeque<Event>,
    pub timers: Timers,
    pub orphaned: BTreeMap<u64, Instant>,
    /// Addresses to look up again: how often so far, and when.
    pub unclear: BTreeMap<Address, (u32, Instant)>,
}

#[derive(Default)]
pub struct Clock {
    pub poll_at: Option<Instant>,
    pub poll_every: Duration,
    pub poll_since: Option<Instant>,
    pub tidy_at: Option<Instant>,
    pub unreached: Vec<OldId>,
}

/// The number of the control fd.
pub const CONTROL: SpeakerId = SpeakerId(0);

impl Live {
    pub fn new(machine: Generation, names: Names, prove: bool) -> Live {
        Live {
            machine,
            names,
            looks: Looks::default(),
            opening: Opening::default(),
            joining: Joining { prove, ..Joining::default() },
            standing: Standing::default(),
            life: Stage::default(),
        }
    }

    pub fn listeners(&self, server: Server) -> Vec<Socket> {
        server.listeners(&self.machine.addresses())
    }

    pub fn stop_drain(&mut self) {
        (self.standing.drains, self.standing.drain) = (false, None);
    }
}

impl Supervisor {
    pub fn new(pid: i32, server: i32) -> Supervisor {
        Supervisor {
            pid,
            server: Server(server),
            live: None,
            peers: Peers::default(),
            agenda: Agenda::default(),
            clock: Clock::default(),
            cared_for: BTreeMap::new(),
            is_done: false,
            status: None,
        }
    }

    /// Starts a server.
    pub fn begin(&mut self, land: &mut Land, settings: Settings, prove: bool) {
        let (machine, effects) = Generation::new(settings);
        let number = land.register(self.server.0, self.pid, 1);
        self.live = Some(Live::new(machine, Names { number, ..Names::default() }, prove));
        effects.into_iter().for_each(|effect| self.carry_out(land, effect));
        self.poll_soon();
        self.settle(land);
    }

    /// Everything that follows from an event.
    pub fn handle(&mut self, land: &mut Land, event: Event) {
        self.feed(event);
        self.settle(land);
    }

    pub(super) fn feed(&mut self, event: Event) {
        self.agenda.pending.push_back(event);
    }

    pub fn settle(&mut self, land: &mut Land) {
        while let Some(event) = self.agenda.pending.pop_front() {
            if let Event::OldGone(_) = event {
                self.finish_sharing(land);
            }
            if let Event::Listens(_) | Event::Accepts(_) = event
                && self.live.as_ref().is_some_and(|live| live.life.ended)
            {
                self.look_for_rest();
            }
            let Some(live) = self.live.as_mut() else { continue };
            for effect in live.machine.step(event) {
                self.carry_out(land, effect);
            }
            if let Some(live) = self.live.as_mut() {
                live.life.was_up &= !live.machine.is_starting();
            }
        }
        self.finish_sharing(land);
    }

    /// A clock that has run out.
    pub fn ring(&mut self, land: &mut Land) {
        while let Some(timer) = self.agenda.timers.take_due() {
            if timer == Timer::Ready {
                land.watch.late(self.pid);
            }
            self.feed(Event::Timer(timer));
        }
        self.settle(land);
    }

    /// Its server said a word.
    pub fn hear(&mut self, land: &mut Land) {
        use crate::protocol::ServerWord;
        let Some(word) = land.servers.get_mut(&self.server.0).and_then(|server| server.says.pop_front()) else {
            return;
        };
        if let ServerWord::Released(address) = &word {
            let is_asked_for = self.live.as_ref().is_some_and(|live| live.machine.is_asked_for(address));
            let listens = crate::sys::net::listeners().is_ok_and(|all| all.at(address).next().is_some());
            if is_asked_for && listens {
                return self.poll_soon();
            }
        }
        self.handle(land, Event::Said(CONTROL, word));
    }

    /// The main process of its server has ended.
    pub fn reap(&mut self, land: &mut Land) {
        let Some(server) = land.servers.get_mut(&self.server.0) else { return };
        if let Life::Ended(_) = server.stage {
            server.stage = Life::Reaped;
        }
        let Some(live) = self.live.as_mut().filter(|live| !live.life.ended) else { return };
        live.life.ended = true;
        self.settle(land);
        self.look_for_rest();
        self.settle(land);
    }

    /// Nothing of the server is left when its main process has ended: the servers here have one process each.
    fn look_for_rest(&mut self) {
        if self.live.as_ref().is_some_and(|live| live.life.ended) {
            self.server_is_gone();
            self.feed(Event::Exited(1));
        }
    }

    /// Whether it has nothing left to do.
    pub fn is_over(&self) -> bool {
        self.live.is_none()
    }

    /// When it does something by itself next.
    pub fn next_at(&self) -> Option<Instant> {
        let looks = self.agenda.unclear.values().map(|(_, at)| *at).min();
        [self.agenda.timers.next(), self.clock.poll_at, looks].into_iter().flatten().min()
    }

    /// It is a process: what it opens is its own.
    pub fn run<T>(&mut self, act: impl FnOnce(&mut Supervisor) -> T) -> T {
        kernel::run_as(self.pid, || act(self))
    }
}
