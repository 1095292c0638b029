//! A server whose claimer has gone away: whether the swap of that one is made is decided here, and what it has left on the
//! sockets is taken off.

#![forbid(unsafe_code)]

use super::orphans::Adopted;
use super::processes::UNCLEAR_FOR;
use super::sharing::listen_alone;
use super::threads::{self, GenId};
use super::{Left, Live, Supervisor, Wait};
use crate::address::Address;
use crate::finder::Holder;
use crate::procfs::Snapshot;
use crate::server::Server;
use crate::share;
use crate::swap::{self, ClaimerId, Level};
use crate::sys::net::{self, Listeners};
use crate::sys::process::Pid;
use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

impl Supervisor {
    /// A claimer has gone away: if its server serves in our place, ours still has to go.
    pub(super) fn claimer_closed(&mut self, generation: GenId, claimer: ClaimerId, supervisor: Option<Pid>) {
        let Some(live) = self.live.get_mut(&generation) else { return };
        if !live.machine.is_locked_by(claimer) {
            // Whoever only looked or waited has left nothing on its sockets.
            return self.feed(generation, swap::Event::ClaimerGone(claimer));
        }
        for lent in std::mem::take(&mut live.opening.lent) {
            lent.waiting.into_iter().for_each(|waiting| _ = listen_alone(waiting, true));
        }
        live.standing.left_by = Some(Left { claimer, supervisor, wait: Wait::Until(Instant::now() + UNCLEAR_FOR) });
        if let Ok(listeners) = net::listeners() {
            left_alone(generation, live, &listeners, &mut self.agenda.pending);
        }
        self.poll_soon();
    }

    /// The claimer died after it had let its server live without it, and before it asked for the drain. Where the record
    /// of that server says that it gets our connections the swap is made, and is done to its end here; else it is not,
    /// and the new server goes, unless it serves elsewhere.
    pub(super) fn decide_swap_of_dead(&mut self, generation: GenId, listeners: &Listeners) {
        let Some(live) = self.live.get(&generation) else { return };
        let Some(&Left { claimer, supervisor: Some(dead), wait }) = live.standing.left_by.as_ref() else { return };
        if live.machine.is_giving_way() {
            return;
        }
        if let Wait::EndOf(ends) = wait {
            if !self.live.contains_key(&ends) {
                self.wait_for_left(generation, Wait::Until(Instant::now() + UNCLEAR_FOR));
            }
            return;
        }
        let ours = live.machine.addresses();
        let our = Address::all(&ours);
        let is_ours = |at: &&Address| at.among(&our).next().is_some();
        let Some((is_free, new, beside)) = self.left_beside(dead, &ours, listeners) else { return };
        let our_places: Vec<Address> = beside.iter().filter(is_ours).cloned().collect();
        let is_its = |a: &Address| self.dir.serving(a, &mut Vec::new()).is_some_and(|h| h.pid == new.pid);
        let Ok(addresses) = self.dir.addresses() else { return };
        let its: Vec<Address> = addresses.into_iter().filter(is_its).collect();
        let its = Address::all(&its);
        // A pidfile of a shared port is written after the switch; that of a name may be so before.
        let has_pidfile_here = ours.iter().any(|own| own.is_port() && own.among(&its).next().is_some());
        if new.replaced.contains(&live.server.pid) || has_pidfile_here {
            // Another old supervisor may decide at the same moment: then it is this one's turn at the next look.
            if !self.dir.hold() {
                return;
            }
            for address in our_places.iter().filter(|address| address.among(&its).next().is_none()) {
                // What is not registered is found where it listens.
                let _ = self.dir.take(address, new.pid, &[live.server.pid], &live.names.beside);
            }
            self.dir.release();
            let text = format!("server {} has lost its supervisor in its switch (the swap goes on)", new.pid);
            self.log.say(Level::Notice, ours.first(), &text);
            return self.feed(generation, swap::Event::AskedDrain(claimer));
        }
        live.listeners().unwrap_or_default().iter().for_each(|own| drop(own.accept_newcomers()));
        if its.is_empty() && new.replaced.is_empty() {
            match self.end_unswitched(&new, &beside, listeners) {
                Some(ends) => self.wait_for_left(generation, Wait::EndOf(ends)),
                // Somebody else ends it, whom it was to replace too.
                None if !is_free => {
                    self.wait_for_left(generation, Wait::Until(Instant::now() + UNCLEAR_FOR));
                }
                None => {}
            }
        } else if steer_away(&new, &our_places, listeners).is_some() {
            let text = format!("server {} has lost its supervisor before its switch (it serves elsewhere)", new.pid);
            self.log.say(Level::Warning, ours.first(), &text);
            if let Some(left) = self.live.get_mut(&generation).and_then(|live| live.standing.left_by.as_mut()) {
                left.supervisor = None;
            }
        }
    }

    /// The server that a dead supervisor has left where ours listens, whether it is free, and where it listens beside
    /// somebody. What cannot be looked at now is looked at again.
    fn left_beside(&self, dead: Pid, ours: &[Address], listeners: &Listeners) -> Option<(bool, Holder, Vec<Address>)> {
        let our = Address::all(ours);
        let beside = |new: &Holder| {
            let held = new.sockets(&Snapshot::take()).ok()?;
            let own = listeners.all().filter(|s| held.contains(&s.inode)).map(|s| &s.local);
            let is_shared = |at: &&Address| listeners.at(at).any(|s| !held.contains(&s.inode));
            let beside: BTreeSet<Address> = own.filter(is_shared).cloned().collect();
            beside.iter().any(|at| at.among(&our).next().is_some()).then(|| beside.into_iter().collect())
        };
        // A look holds a lock that nobody may meet for long.
        let unlocked = |mut new: Holder| (new.orphan.take().is_some(), new);
        let left = self.dir.servers().ok()?.into_iter();
        let left = left.filter(|h| h.supervisor == dead && h.has_lost_its_supervisor()).map(unlocked);
        let left: Vec<(bool, Holder)> = left.collect();
        left.into_iter().find_map(|(is_free, new)| beside(&new).map(|at| (is_free, new, at)))
    }

    /// Ends a new server that has lost its supervisor, like an old one: it may have got connections.
    fn end_unswitched(&mut self, new: &Holder, beside: &[Address], listeners: &Listeners) -> Option<GenId> {
        let lock = self.dir.find(new.pid)?.orphan?;
        steer_away(new, beside, listeners)?;
        let ends = self.adopt(new, lock, beside, Adopted::ToBeEnded)?;
        let claimer = ClaimerId(threads::next_id());
        self.feed(ends, swap::Event::Claim(claimer));
        self.feed(ends, swap::Event::AskedDrain(claimer));
        Some(ends)
    }

    fn wait_for_left(&mut self, generation: GenId, wait: Wait) {
        if let Some(left) = self.live.get_mut(&generation).and_then(|live| live.standing.left_by.as_mut()) {
            left.wait = wait;
        }
    }
}

/// Steers away from a server that nobody here has taken over, at these addresses of its.
fn steer_away(new: &Holder, addresses: &[Address], listeners: &Listeners) -> Option<()> {
    let sockets = Server::adopt(new)?.listeners(addresses).ok()?;
    share::steer_away(sockets, listeners).ok()
}

/// Whether nobody else listens at the addresses of a server.
fn is_alone(live: &Live, listeners: &Listeners) -> bool {
    let here = listeners.at_any(&live.machine.addresses());
    live.server.socket_inodes().is_some_and(|inodes| here.iter().all(|s| inodes.contains(&s.inode)))
}

/// A server whose claimer has gone away serves as if alone when nobody is left beside it; `true` if that
/// is still to come.
pub(super) fn left_alone(
    generation: GenId,
    live: &mut Live,
    listeners: &Listeners,
    pending: &mut VecDeque<(GenId, swap::Event)>,
) -> bool {
    if live.standing.left_by.is_none() && !live.standing.succeeded {
        return false;
    }
    let alone = is_alone(live, listeners);
    if let Some(left) = &live.standing.left_by {
        let claimer = left.claimer;
        // What cannot be taken off now is taken off at a later look.
        let served = alone && serve_alone(live);
        // Whoever gets the lock next would take what is left of the other server for a stranger's.
        let waits = alone || !live.machine.is_giving_way() && live.is_shared();
        if !served && waits && !left.is_over(Instant::now()) {
            return true;
        }
        live.standing.left_by = None;
        live.standing.succeeded = !served && live.is_shared();
        if served {
            pending.push_back((generation, swap::Event::ClaimerGone(claimer)));
        } else {
            // What is steered stays so: a server that has not proven itself gets nothing until it is gone.
            pending.push_back((generation, swap::Event::Succeeded(claimer)));
        }
    }
    // Or the server goes.
    live.standing.succeeded &= live.machine.is_up();
    // What a new claimer has put on the sockets is not ours to take off.
    let may = live.machine.is_free() || live.machine.is_giving_way();
    if alone && may && live.standing.succeeded && serve_alone(live) {
        live.standing.succeeded = false;
        pending.push_back((generation, swap::Event::Alone));
    }
    live.standing.succeeded
}

/// Takes off what a claimer has left on the sockets of a server; `false` if that has to wait.
fn serve_alone(live: &Live) -> bool {
    !live.is_shared() || live.listeners().and_then(share::serve_alone).unwrap_or(false)
}
