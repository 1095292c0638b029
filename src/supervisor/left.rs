//! The claimer of our server has gone away: here it is decided whether its swap is made, and what it has left on the
//! sockets of our server is taken off.

use super::care::TAKEN_OVER;
use super::live::{Left, Live, UNCLEAR_FOR};
use super::sharing::listen_alone;
use super::state::Supervisor;
use crate::finder::{Beside, CARES_WITHIN};
use crate::share;
use crate::swap::{self, ClaimerId, Level};
use crate::sys::net::{self, Listeners, TcpSocket};
use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

/// What becomes of a new server whose supervisor died too early.
const NOT_SWITCHED: &str = "and is ended: its swap was not complete";

const ELSEWHERE: &str = "before its switch (it serves elsewhere)";

impl Supervisor {
    /// A claimer has gone away: if its server serves in our place, ours still has to go.
    pub(super) fn claimer_closed(&mut self, claimer: ClaimerId) {
        let Some(live) = self.live.as_mut() else { return };
        if !live.machine.is_locked_by(claimer) {
            // A claimer that never had the lock has left nothing on our server's sockets.
            return self.feed(swap::Event::ClaimerGone(claimer));
        }
        for lent in std::mem::take(&mut live.opening.lent) {
            lent.waiting.into_iter().for_each(|waiting| _ = listen_alone(waiting, true));
        }
        let since = Instant::now();
        live.standing.left_by = Some(Left { claimer, since, until: since + UNCLEAR_FOR });
        if let Ok(listeners) = net::listeners() {
            left_alone(live, &listeners, &mut self.agenda.pending);
        }
        self.poll_soon();
    }

    /// A claimer died, perhaps between its commit and DRAIN. If the record of its server says that the switch was made,
    /// our server drains now; otherwise ours takes new connections as before. The claimer's server gets a caretaker,
    /// which decides what becomes of it.
    pub(super) fn decide_swap_of_dead(&mut self) {
        let Some(live) = self.live.as_ref() else { return };
        let claimer = live.standing.left_by.as_ref().map(|left| left.claimer);
        let name = live.machine.name();
        let Ok(its) = net::listeners().and_then(|listeners| live.server.holds_of(listeners.all())) else { return };
        let Ok(holder) = self.dir.holder(live.server.pid) else { return };
        let own = holder.party(its.iter().map(TcpSocket::place).collect());
        let Ok((scene, mut beside)) = self.scene(own, &its) else { return };
        // Servers that never lost a supervisor have no part in this.
        beside.retain(|other| other.party.ever_orphaned);
        let is_superseded = || claimer.is_some() || scene.recover(None).orphan == swap::Orphan::Superseded;
        match scene.successor() {
            Some(party) if !live.machine.is_giving_way() && is_superseded() => {
                let text = format!("server {} has lost its supervisor in its switch (the swap goes on)", party.pid);
                self.log.say(Level::Notice, name.as_ref(), &text);
                self.feed(swap::Event::Superseded);
            }
            None if claimer.is_some() => {
                live.listeners().unwrap_or_default().iter().for_each(|own| drop(own.accept_newcomers()));
            }
            _ => {}
        }
        self.drain_behind(&scene);
        let mut waits = false;
        for Beside { holder, party } in &beside {
            let found = scene.of(party).recover(None);
            let becomes = match () {
                () if found.unswitched.is_empty() => TAKEN_OVER,
                () if found.orphan == swap::Orphan::Superseded => NOT_SWITCHED,
                () => ELSEWHERE,
            };
            waits |= becomes == NOT_SWITCHED;
            if holder.is_orphan {
                self.care(holder, becomes);
            }
        }
        // Until that server is gone, the next holder of the lock would take its listeners for a stranger's.
        if let Some(left) = self.live.as_mut().and_then(|live| live.standing.left_by.as_mut())
            && waits
            && left.since.elapsed() < CARES_WITHIN
        {
            left.until = Instant::now() + UNCLEAR_FOR;
        }
    }
}

/// A server whose claimer has gone away serves as if alone when nobody is left beside it; `true` if that
/// is still to come.
pub(super) fn left_alone(live: &mut Live, listeners: &Listeners, pending: &mut VecDeque<swap::Event>) -> bool {
    if live.standing.left_by.is_none() && !live.standing.succeeded {
        return false;
    }
    let (mut here, own) = (listeners.at_any(&live.machine.addresses()), live.server.socket_inodes());
    // What drains behind our server does not serve.
    let behind: BTreeSet<u32> = live.joining.lent.iter().flat_map(|lent| lent.kept()).collect();
    here.retain(|socket| !behind.contains(&socket.inode));
    let alone = own.is_some_and(|own| share::is_alone(here, |inode| own.contains(&inode)));
    if let Some((claimer, until)) = live.standing.left_by.as_ref().map(|left| (left.claimer, left.until)) {
        // What cannot be taken off now is taken off at a later look.
        let served = alone && serve_alone(live, listeners);
        // Whoever gets the lock next would take what is left of the other server for a stranger's.
        let waits = alone || !live.machine.is_giving_way() && live.is_shared();
        if !served && waits && until > Instant::now() {
            return true;
        }
        live.standing.left_by = None;
        live.standing.succeeded = !served && live.is_shared();
        if served {
            pending.push_back(swap::Event::ClaimerGone(claimer));
        } else {
            // What is steered stays so: a server that has not proven itself gets nothing until it is gone.
            pending.push_back(swap::Event::Succeeded(claimer));
        }
    }
    // Once our server goes, it does not matter who listens beside it.
    live.standing.succeeded &= live.machine.is_up();
    // What a new claimer has put on the sockets is not ours to take off.
    let may = live.machine.is_free() || live.machine.is_giving_way();
    if alone && may && live.standing.succeeded && serve_alone(live, listeners) {
        live.standing.succeeded = false;
        pending.push_back(swap::Event::Alone);
    }
    live.standing.succeeded
}

/// Takes off what a claimer has left on the sockets of a server; `false` if that has to wait.
fn serve_alone(live: &mut Live, listeners: &Listeners) -> bool {
    if let Some(mut lent) = live.joining.lent.take() {
        let own = live.server.holds_of(&listeners.at_any(&live.machine.addresses())).unwrap_or_default();
        lent.resume(&own, listeners, &live.server);
        live.joining.sharing = lent;
        return true;
    }
    !live.is_shared() || live.listeners().and_then(share::serve_alone).unwrap_or(false)
}
