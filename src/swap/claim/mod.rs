//! The new side of a generation: its server takes addresses over from older ones, or has them for the first time.
//!
//! It knows nothing of who wants to replace its server: that is the tenure.

mod olds;
mod takeover;
mod trial;
mod wants;

use super::ours::{Leaving, Ours, Stage, Why};
use super::slots::{Kind, Slot, Slots, list};
use super::warrant::{Lock, Warrant};
use super::words::{ClaimerId, Effect, Level, OldId, SpeakerId};
use crate::address::Address;
use std::collections::{BTreeMap, BTreeSet};

/// What the new side knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Claim {
    pub(super) reach: Reach,
    /// The old servers that have what ours wants, or had it and are not gone.
    pub(super) olds: BTreeMap<OldId, Old>,
    /// What old servers were asked to let go of, as long as the swap is not done.
    pub(super) harmed: BTreeSet<Address>,
    pub(super) wants: Wants,
    pub(super) trial: Trial,
    /// Who has said `--commit`, and is to hear that nobody goes back.
    pub(super) committing: Vec<ClaimerId>,
    /// How much of the end of the swap was reported.
    pub(super) reported: Reported,
}

/// How far the trial of a server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) enum Trial {
    /// It has not begun.
    #[default]
    Ahead,
    /// Its checks are made. Why the last one failed, if one did.
    Checking(Option<String>),
    /// They have succeeded.
    Checked,
    /// It has its share of the new connections: the step.
    Canary(usize, Due),
    /// All that is left is the switch, and the hold.
    Tried,
    /// It has all new connections, and the old servers are kept.
    Held(Due),
    /// Nothing is left to pass.
    Passed,
    /// It did not pass: the old servers have all new connections again.
    TurnedBack(Cause),
}

/// Whether the time of a step is up, and only its checks are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Due {
    Later,
    Now,
}

/// Why a trial has ended badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    /// The supervisor was told to stop.
    Told,
    /// It was undone, or failed a check.
    Failed,
}

/// How much of the end of a swap was reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) enum Reported {
    #[default]
    Nothing,
    /// [`Effect::Sure`]
    Sure,
    /// [`Effect::Passed`]
    Passed,
    /// [`Effect::Done`]
    Done,
}

/// How far the new server is on its way to live without its supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) enum Reach {
    #[default]
    Prepared,
    /// The server lives on without its supervisor.
    Committed,
    /// New connections of a shared port come here.
    Switched,
}

/// An old server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Old {
    pub(super) contact: Contact,
    /// Whether its ports can be shared, or why they cannot, once that is known.
    pub(super) sharing: Option<Result<(), String>>,
    pub(super) demand: Demand,
}

/// How far we are with the supervisor of an old server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Contact {
    Silent,
    /// It is alive and has our claim.
    Attended,
    /// We have its lock.
    Locked(Lock),
}

/// What an old server was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Demand {
    Nothing,
    /// Some of its addresses.
    Addresses(Warrant),
    /// Its new connections: it is kept, to have them again.
    Held(Warrant),
    /// To drain, or to stop.
    Everything,
}

/// What our server has said and does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Wants {
    /// READY that was not answered with GO yet.
    unanswered: Vec<(SpeakerId, Address)>,
    /// Where the server waits in `listen`.
    called: BTreeSet<Address>,
    /// Where the server listens already, although it is not its turn.
    listening: BTreeSet<Address>,
    /// What keeps it from being proven where it listens.
    pub(super) hindrances: BTreeMap<Address, String>,
    /// It has closed what it listened on before it was up: it is no worker.
    has_closed: bool,
    /// UP was said, and no READY since.
    pub(super) said_up: bool,
    /// It has done nothing for a while.
    pub(super) is_quiet: bool,
    /// [`Effect::Settle`] went out, and it has not called `listen` since.
    is_settled: bool,
}

impl Wants {
    /// Whether the server wants no more than it has.
    fn are_met(&self) -> bool {
        self.said_up || self.is_quiet
    }
}

impl Old {
    pub fn lock(&self) -> Option<&Lock> {
        if let Contact::Locked(lock) = &self.contact { Some(lock) } else { None }
    }

    fn shares(&self) -> bool {
        self.sharing == Some(Ok(()))
    }

    /// Where our server may listen beside it already, its ports are shared, whatever is said later.
    pub fn can_be_shared(&mut self, can: Result<(), String>) {
        if !self.shares() {
            self.sharing = Some(can);
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.demand == Demand::Everything
    }

    /// Its new connections go elsewhere.
    fn is_replaced(&self) -> bool {
        matches!(self.demand, Demand::Held(_) | Demand::Everything)
    }

    /// Its supervisor is alive and has our claim.
    pub fn attended(&mut self) {
        if self.contact == Contact::Silent {
            self.contact = Contact::Attended;
        }
    }

    /// Its supervisor is not heard any more. What was begun with its lock goes on.
    pub fn silent(&mut self) {
        if matches!(self.demand, Demand::Nothing | Demand::Held(_)) {
            self.contact = Contact::Silent;
        }
    }
}

impl Claim {
    pub fn new(reach: Reach) -> Claim {
        let reported = if reach == Reach::Prepared { Reported::Nothing } else { Reported::Done };
        Claim { reach, reported, ..Claim::default() }
    }

    pub fn is_switched(&self) -> bool {
        self.reach == Reach::Switched
    }

    /// Whether every old server was told to go: the swap is over, but for what these still have to finish.
    pub fn has_replaced_all(&self) -> bool {
        self.olds.values().all(Old::is_stopped)
    }

    /// Whether an old server may listen behind ours.
    pub fn is_followed(&self) -> bool {
        self.olds.values().any(Old::shares)
    }

    /// Whoever has the lock steers, and knows who drains behind ours.
    pub fn gives_nothing_back(&mut self) {
        self.reach = self.reach.min(Reach::Committed);
    }

    /// A newer server has the new connections: what drains behind ours drains behind that one.
    pub fn pass_on(&mut self, ours: &mut Ours) {
        self.gives_nothing_back();
        self.harmed.clear();
        if self.reported == Reported::Sure {
            self.reported = Reported::Passed;
            ours.effects.push(Effect::Passed);
        }
    }

    fn commit(&mut self, ours: &mut Ours, reach: Reach) {
        if self.reach == Reach::Prepared {
            ours.effects.push(Effect::Commit);
        }
        self.reach = self.reach.max(reach);
    }

    /// Locked old servers that were not told to stop, each with those of its addresses that it was not asked for.
    fn uncovered(&self, slots: &Slots) -> impl Iterator<Item = (OldId, Vec<Address>)> {
        self.olds.iter().filter(|(_, old)| !old.is_replaced()).filter_map(|(id, old)| {
            let active = |held: &Address| held.among(slots).any(|(_, slot)| !slot.is_wish());
            let left: Vec<Address> = old.lock()?.holds().iter().filter(|held| !active(held)).cloned().collect();
            (!left.is_empty()).then_some((*id, left))
        })
    }

    /// Whether an old server cannot stay any more. One that shares its port can, if it was only asked for names.
    fn is_told_for_good(&self) -> bool {
        let shares = self.olds.values().any(|old| old.shares());
        self.harmed.iter().any(|address| address.is_port() || !shares)
    }

    /// The new server does not make it: it is killed, and whoever was not asked to go stays.
    pub fn fail(&mut self, ours: &mut Ours, status: u8, address: Option<Address>, why: &str) {
        let consequence = if self.is_told_for_good() {
            "the new server is killed; the old one was already told to go"
        } else if self.olds.is_empty() {
            "the new server is killed"
        } else {
            "the new server is killed; the old one still serves"
        };
        ours.report(Level::Error, address, format!("{why} ({consequence})"));
        let gave_back = self.give_up(ours);
        ours.disarm_all();
        let why = Why::Failed(status);
        ours.stage = Stage::Leaving(Leaving { why, stop_said: false, signal_due: false, gave_back, given: Vec::new() });
        ours.effects.push(Effect::Kill);
    }

    /// One address cannot be had. A server that is up already lives on without it.
    pub fn fail_address(&mut self, ours: &mut Ours, address: Address, status: u8, why: &str) {
        if ours.is_starting() {
            return self.fail(ours, status, Some(address), why);
        }
        self.refuse_ready(ours, &address, why);
        self.admit(ours, &address, Effect::Deny);
        ours.slots.remove(&address);
        self.harmed.remove(&address);
        ours.effects.push(Effect::Unhold(address.clone()));
        ours.report(Level::Error, Some(address), format!("{why} (the server goes on without it)"));
    }

    /// Wants nothing of the old servers any more; tells whether the switch was turned back.
    pub fn give_up(&mut self, ours: &mut Ours) -> bool {
        ours.effects.extend(std::mem::take(&mut self.wants.called).into_iter().map(Effect::Deny));
        // Until the takedown the switch can be turned back: what comes while this server ends is for the old ones.
        let drained = self.olds.iter().filter(|(_, old)| old.shares() && old.is_replaced());
        let drained: Vec<OldId> = drained.map(|(id, _)| *id).collect();
        let gives_back = self.is_switched() && !self.is_told_for_good() && !drained.is_empty();
        if gives_back {
            ours.effects.push(Effect::SwitchBack);
            // Before STAY is said: an old server that stays registers its addresses again.
            ours.effects.extend(ours.slots.keys().cloned().map(Effect::Unhold));
            ours.effects.extend(drained.into_iter().map(Effect::AskStay));
        }
        let listens = ours.slots.any([Kind::Joined, Kind::Proven]);
        ours.withdraw(|_| true);
        // A server that listens beside old ones does so until it is gone: only then are their locks given back.
        if !listens {
            self.unlock_idle(ours);
        }
        gives_back
    }

    /// Gives back the locks of the old servers from which nothing is wanted and nothing was taken.
    fn unlock_idle(&mut self, ours: &mut Ours) {
        // Nobody else is to have them as long as a server of ours may have connections beside them.
        let is_beside = self.turned_back().is_some();
        self.olds.retain(|&id, old| {
            let keep = is_beside || old.demand != Demand::Nothing || ours.slots.values().any(|slot| slot.wants(id));
            if !keep {
                ours.effects.push(Effect::Unlock(id));
            }
            keep
        });
    }

    /// The server is gone: so are the claims on the old ones.
    pub fn end(&mut self, ours: &mut Ours) {
        // Before the locks are given back: an old server that goes on registers its addresses again.
        if !self.olds.is_empty() {
            ours.effects.extend(ours.slots.keys().cloned().map(Effect::Unhold));
        }
        ours.effects.extend(self.olds.keys().copied().map(Effect::Unlock));
    }

    /// What nothing serves any more because the swap did not get to its end.
    pub fn report_harmed(&self, ours: &mut Ours) {
        // An old server that has other addresses and does not take TAKEDOWN was not told yet.
        let untold: BTreeSet<OldId> = self.uncovered(&ours.slots).map(|(id, _)| id).collect();
        // Or it goes on where the switch is turned back.
        let returns = |id: &OldId| self.is_switched() && self.olds.get(id).is_some_and(|old| old.shares());
        let doubt = |slot: &Slot| match slot {
            Slot::Releasing(_, pending) => pending.iter().any(|id| untold.contains(id) || returns(id)),
            _ => matches!(slot.kind(), Kind::Looking | Kind::Waiting),
        };
        let (doubtful, sure): (Vec<&Address>, Vec<&Address>) =
            self.harmed.iter().partition(|address| ours.slots.get(address).is_some_and(doubt));
        if !sure.is_empty() {
            ours.report(Level::Error, None, format!("nothing serves {}", list(sure)));
        }
        if !doubtful.is_empty() {
            let list = list(doubtful);
            let text = format!("it may be that nothing serves {list} (the old server was asked to let go)");
            ours.report(Level::Error, None, text);
        }
    }
}
