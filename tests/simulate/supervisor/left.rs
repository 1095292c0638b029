//! `src/supervisor/left.rs`: a server whose claimer has gone away.

use super::care::{CARES_WITHIN, scene};
use super::{Left, Live, Supervisor, UNCLEAR_FOR};
use crate::server::Server;
use crate::share;
use crate::swap::{ClaimerId, Event, Orphan};
use crate::sys::clock::Instant;
use crate::sys::net::{self, Listeners, TcpSocket};
use crate::world::land::Land;
use std::collections::{BTreeSet, VecDeque};

impl Supervisor {
    pub(super) fn claimer_closed(&mut self, land: &mut Land, claimer: ClaimerId) {
        let server = self.server;
        let Some(live) = self.live.as_mut() else { return };
        if !live.machine.is_locked_by(claimer) {
            return self.feed(Event::ClaimerGone(claimer));
        }
        self.lend_no_more(land, |_| true);
        let Some(live) = self.live.as_mut() else { return };
        live.opening.lent.clear();
        let since = Instant::now();
        live.standing.left_by = Some(Left { claimer, since, until: since + UNCLEAR_FOR });
        if let Ok(listeners) = net::listeners() {
            left_alone(live, server, &listeners, &mut self.agenda.pending);
        }
        self.poll_soon();
    }

    pub(super) fn decide_swap_of_dead(&mut self, land: &mut Land) {
        let Some(live) = self.live.as_ref() else { return };
        let claimer = live.standing.left_by.as_ref().map(|left| left.claimer);
        let Ok(listeners) = net::listeners() else { return };
        let its = self.server.holds_of(&listeners.all().cloned().collect::<Vec<TcpSocket>>());
        let Some(holder) = land.dir.holder(self.server.0) else { return };
        let mut own = holder.party();
        (own.ever_orphaned, own.replaced) = (false, live.names.replaced.clone());
        let (scene, beside) = scene(land, own, &its);
        let is_superseded = || claimer.is_some() || scene.recover(None).orphan == Orphan::Superseded;
        match scene.successor() {
            Some(_) if !live.machine.is_giving_way() && is_superseded() => self.feed(Event::Superseded),
            None if claimer.is_some() => {
                live.listeners(self.server).iter().for_each(|own| drop(own.accept_newcomers()));
            }
            _ => {}
        }
        self.drain_behind(land, &scene);
        let mut waits = false;
        for (holder, party) in beside.iter().zip(&scene.beside).filter(|(_, party)| party.ever_orphaned) {
            let found = scene.of(party).recover(None);
            waits |= !found.unswitched.is_empty() && found.orphan == Orphan::Superseded;
            if holder.is_orphan {
                self.care(land, holder);
            }
        }
        if let Some(left) = self.live.as_mut().and_then(|live| live.standing.left_by.as_mut())
            && waits
            && left.since.elapsed() < CARES_WITHIN
        {
            left.until = Instant::now() + UNCLEAR_FOR;
        }
    }
}

fn is_alone(live: &Live, server: Server, listeners: &Listeners) -> bool {
    let mut here = listeners.at_any(&live.machine.addresses());
    let behind: BTreeSet<u32> = live.joining.lent.iter().flat_map(|lent| lent.kept()).collect();
    here.retain(|socket| !behind.contains(&socket.inode));
    share::is_alone(here, |inode| server.has(inode))
}

pub fn left_alone(live: &mut Live, server: Server, listeners: &Listeners, pending: &mut VecDeque<Event>) -> bool {
    if live.standing.left_by.is_none() && !live.standing.succeeded {
        return false;
    }
    let alone = is_alone(live, server, listeners);
    if let Some((claimer, until)) = live.standing.left_by.as_ref().map(|left| (left.claimer, left.until)) {
        let served = alone && serve_alone(live, server, listeners);
        let waits = alone || !live.machine.is_giving_way() && live.is_shared();
        if !served && waits && until > Instant::now() {
            return true;
        }
        live.standing.left_by = None;
        live.standing.succeeded = !served && live.is_shared();
        pending.push_back(if served { Event::ClaimerGone(claimer) } else { Event::Succeeded(claimer) });
    }
    live.standing.succeeded &= live.machine.is_up();
    let may = live.machine.is_free() || live.machine.is_giving_way();
    if alone && may && live.standing.succeeded && serve_alone(live, server, listeners) {
        live.standing.succeeded = false;
        pending.push_back(Event::Alone);
    }
    live.standing.succeeded
}

fn serve_alone(live: &mut Live, server: Server, listeners: &Listeners) -> bool {
    if let Some(mut lent) = live.joining.lent.take() {
        let own = server.holds_of(&listeners.at_any(&live.machine.addresses()));
        lent.resume(&own, listeners, &server);
        live.joining.sharing = lent;
        return true;
    }
    !live.is_shared() || share::serve_alone(live.listeners(server)).unwrap_or(false)
}
