//! What a supervisor knows of a server that runs under it.

use super::held::Waiting;
use super::sockets::Sockets;
use super::threads;
use crate::address::Address;
use crate::drain::Drain;
use crate::family::Jobs;
use crate::finder::Registration;
use crate::place::Place;
use crate::relay::Keeping;
use crate::server::{Server, Watch};
use crate::share::Sharing;
use crate::swap::{self, ClaimerId};
use crate::sys::pid::Pid;
use crate::sys::steer::Probe;
use crate::sys::steer::Socket;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a socket that nobody seems to hold may take to close.
pub(super) const UNCLEAR_FOR: Duration = Duration::from_secs(2);

/// The server of this supervisor.
pub(super) struct Live {
    pub(super) machine: swap::Generation,
    pub(super) server: Server,
    pub(super) sockets: Sockets,
    pub(super) names: Names,
    pub(super) looks: Looks,
    pub(super) opening: Opening,
    pub(super) joining: Joining,
    pub(super) standing: Standing,
    pub(super) life: Life,
    /// What it said of itself in sd_notify.
    pub(super) status_text: String,
}

/// What it is called in the run directory.
#[derive(Default)]
pub(super) struct Names {
    /// Which generation it is, counted from the first server of its addresses.
    pub(super) number: u64,
    /// The number is a guess: it is not known yet which server this one replaces.
    pub(super) number_is_guess: bool,
    pub(super) registration: Option<Registration>,
    /// Main processes of the servers in whose place it gets the connections of a shared port.
    pub(super) replaced: Vec<Pid>,
    /// And of those beside which it is on trial.
    pub(super) kept: Vec<Pid>,
    /// Addresses whose pidfile we wrote.
    pub(super) held: BTreeSet<Address>,
    /// Addresses to register again, each with the time until which that is tried.
    pub(super) regaining: BTreeMap<Address, Instant>,
    /// Inodes of the UDP sockets at fixed ports that it had when it came up.
    pub(super) datagrams: Vec<u32>,
    /// Main processes of servers that have an address of the same name beside it.
    pub(super) beside: Vec<Pid>,
    /// The address that messages about it name after it has let go of all of them.
    pub(super) name: Option<Address>,
}

impl Names {
    /// The servers that it has replaced, and those that are kept.
    pub(super) fn olds(&self) -> Vec<Pid> {
        [&*self.replaced, &self.kept].concat()
    }
}

/// What the kernel is asked about it.
#[derive(Default)]
pub(super) struct Looks {
    /// Addresses at which it is to listen.
    pub(super) watching: BTreeSet<Address>,
    /// Addresses at which it is to listen no more.
    pub(super) releasing: BTreeSet<Address>,
    /// Until when its listeners are looked for; `None` once it has said READY.
    pub(super) discover_until: Option<Instant>,
    /// Listeners that were there at the last look.
    pub(super) seen: BTreeSet<u32>,
}

/// What it opens.
#[derive(Default)]
pub(super) struct Opening {
    /// Its calls of `listen` that wait for an answer.
    pub(super) calls: Vec<Waiting>,
    /// And those that the supervisor of a newer server is to answer.
    pub(super) lent: VecDeque<Lent>,
    /// Listeners that it opened when it was up already.
    pub(super) young: Vec<Young>,
    /// Listeners that a service manager has passed on, by their inodes.
    pub(super) passed: BTreeMap<u32, Passed>,
    /// Places that it steers by programs of its own.
    pub(super) programs: BTreeSet<Place>,
    /// Inodes of sockets that had such a program before they were bound.
    pub(super) programmed: BTreeSet<u32>,
}

/// Whether it accepts on a listener that was passed on.
pub(super) enum Passed {
    /// Connections to the listener, of which it has accepted none.
    Probed(Vec<Probe>),
    Accepted,
}

impl Default for Passed {
    fn default() -> Passed {
        Passed::Probed(Vec::new())
    }
}

/// Its listeners on the way to be proven.
#[derive(Default)]
pub(super) struct Joining {
    /// Its listeners, and those of old servers until those servers are gone.
    pub(super) sharing: Sharing,
    /// The same while somebody else has the lock, and steers, although older servers still drain.
    pub(super) lent: Option<Sharing>,
    /// It turned out that its ports cannot be shared.
    pub(super) unshared: bool,
    /// Shared addresses that it has not proven yet; `settled`: it wants no more sockets.
    pub(super) proving: BTreeSet<Address>,
    pub(super) settled: bool,
    /// What keeps it from being proven at an address, as the machine was last told.
    pub(super) hindrances: BTreeMap<Address, String>,
}

/// How it stands to a newer server.
#[derive(Default)]
pub(super) struct Standing {
    /// The claimer that was last granted the lock; `gave_way`: it drains, or was told to stop after its drain.
    pub(super) claimed: Option<ClaimerId>,
    pub(super) gave_way: bool,
    /// The listeners were handed to the holder of the lock, which steers the ports.
    pub(super) handed_over: bool,
    /// The claimer that went away with the lock. The lock stays taken until its server is gone too and what it left on
    /// the sockets is taken off, but no longer than [`Left::until`].
    pub(super) left_by: Option<Left>,
    /// Another server may listen beside it, since a claimer went away or from before a caretaker came.
    pub(super) succeeded: bool,
    /// The supervisor that had the lock before this caretaker came, and until when its claim is waited for.
    pub(super) heir: Option<(Pid, Instant)>,
    /// New connections go to a newer server; `drain` watches those that it still has, `None` while that is impossible.
    pub(super) drains: bool,
    pub(super) drain: Option<Drain>,
    pub(super) quiesced: bool,
    /// Requests are kept from it before it is told to stop; `None` if they are not, or all that is left is its end.
    pub(super) keeping: Option<Keeping>,
}

/// Whether it lives.
#[derive(Default)]
pub(super) struct Life {
    /// It was up once.
    pub(super) was_up: bool,
    /// The service manager knows that.
    pub(super) ready_said: bool,
    /// All of it was killed, and so is what turns up of it.
    pub(super) killed: bool,
    /// The thread that waits for its end, where it is no child of ours.
    pub(super) end: Option<threads::EndOf>,
    /// Its main process has ended, and it is not known yet whether something of it still listens.
    pub(super) ended: Option<Ended>,
}

/// The end of a main process.
#[derive(Clone, Copy)]
pub(super) struct Ended {
    pub(super) status: u8,
    /// When something of the server was seen last.
    pub(super) seen: Instant,
    /// What was left of the server was told to stop.
    pub(super) rest_told: bool,
    /// How many looks in a row saw nobody of a daemon that does not listen yet.
    pub(super) unseen: u32,
}

/// A claimer that has gone away with the lock.
pub(super) struct Left {
    pub(super) claimer: ClaimerId,
    pub(super) since: Instant,
    /// Until when we wait for what the claimer left behind, such as its server's listeners, to go away.
    pub(super) until: Instant,
}

/// Processes that an ended server left: they were told to stop, and are killed from `until` on.
pub(super) struct Leftover {
    pub(super) server: Server,
    pub(super) jobs: Jobs,
    pub(super) until: Instant,
    pub(super) unseen: u32,
}

/// A listener that its server opened when it was up already.
pub(super) struct Young {
    pub(super) inode: u32,
    pub(super) address: Address,
    pub(super) until: Instant,
}

/// How long the supervisor of a new server may take to let a listener of the old one join.
pub(super) const JOINS_WITHIN: Duration = Duration::from_secs(1);

/// A `listen` of a server that is being replaced, which the supervisor of the new one carries out: whoever steers has to
/// know the order of all members.
pub(super) struct Lent {
    /// `None` once it was let listen without waiting any longer: the answer is still to come.
    pub(super) waiting: Option<Waiting>,
    pub(super) until: Instant,
}

impl Joining {
    /// Whoever gets the lock steers from here on, if older servers still drain.
    pub(super) fn lend(&mut self, server: &Server) -> Option<&Sharing> {
        if self.lent.is_none() && !self.sharing.is_empty() {
            self.sharing.look_once_more(server);
            // What is steered for nobody any more is taken off.
            if self.sharing.has_olds() || !self.sharing.finish(server) {
                self.lent = Some(std::mem::take(&mut self.sharing));
            }
        }
        self.lent.as_ref()
    }

    /// What is known of the ports, whoever steers.
    pub(super) fn known(&self) -> &Sharing {
        self.lent.as_ref().unwrap_or(&self.sharing)
    }

    /// An old server is gone: lets go of its listeners. Whether the kernel has closed them.
    pub(super) fn drop_olds(&mut self, old: threads::Id, server: &Server) -> bool {
        match &mut self.lent {
            Some(lent) => {
                lent.forget_handles(old);
                true
            }
            None => self.sharing.drop_olds(old, server),
        }
    }
}

impl Live {
    pub(super) fn new(machine: swap::Generation, server: Server, names: Names, sockets: Sockets) -> Live {
        Live {
            machine,
            server,
            sockets,
            names,
            looks: Looks::default(),
            opening: Opening::default(),
            joining: Joining::default(),
            standing: Standing::default(),
            life: Life::default(),
            status_text: String::new(),
        }
    }

    /// What messages name it by: also after it has let go of all of its addresses.
    pub(super) fn name(&self) -> Option<Address> {
        self.machine.name().or_else(|| self.names.name.clone())
    }

    /// The addresses that it has; in its canary nothing is its own yet.
    pub(super) fn holds(&self) -> Vec<Address> {
        if self.machine.is_on_trial() { self.machine.claims() } else { self.machine.addresses() }
    }

    /// How it stands, as `--status` says it.
    pub(super) fn state(&self) -> String {
        match self.machine.share() {
            Some(share) => format!("{} {share}", self.machine.state()),
            None => self.machine.state().to_owned(),
        }
    }

    /// Whether it was up, and either has an address or is no longer searched for listeners.
    pub(super) fn has_served(&self) -> bool {
        self.life.was_up && (self.looks.discover_until.is_none() || !self.machine.claims().is_empty())
    }

    /// What becomes of its jobs when it ends.
    pub(super) fn jobs(&self) -> Jobs {
        let is_replaced =
            self.standing.gave_way || self.standing.claimed.is_some_and(|claimer| self.machine.is_locked_by(claimer));
        if self.life.was_up && is_replaced { Jobs::Spared } else { Jobs::Ended }
    }

    pub(super) fn watch(&self) -> Option<&Arc<Watch>> {
        self.server.watch.as_ref()?.as_ref().ok()
    }

    /// Whether its ports can be shared with a newer server.
    pub(super) fn is_shared(&self) -> bool {
        let may = self.watch().is_some() || self.server.is_adopted();
        may && !self.joining.unshared && self.steers_itself().is_none()
    }

    /// When a listener that it opened becomes an address.
    pub(super) fn young_until(&self) -> Option<Instant> {
        self.opening.young.iter().map(|young| young.until).min()
    }

    /// An address of its that it steers by a program of its own.
    pub(super) fn steers_itself(&self) -> Option<&Place> {
        if self.opening.programs.is_empty() {
            return None;
        }
        let own = Address::all(&self.machine.addresses());
        self.opening.programs.iter().find(|place| Address::from(place.address).among(&own).next().is_some())
    }

    /// The listeners that it has at its addresses.
    pub(super) fn listeners(&self) -> std::io::Result<Vec<Socket>> {
        self.server.listeners(&self.machine.addresses())
    }
}
