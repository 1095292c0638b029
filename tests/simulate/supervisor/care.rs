//! `src/supervisor/care.rs`: a caretaker takes charge of a server that has lost its supervisor.

use super::{Live, Names, Stage, Standing, Supervisor};
use crate::address::Address;
use crate::place::Place;
use crate::recovery::{self, Recovered, Scene};
use crate::server::Server;
use crate::share::{self, Handles, Joined};
use crate::swap::{Checked, ClaimerId, Effect, Event, Generation, Order, Orphan, Settings};
use crate::sys::clock::Instant;
use crate::sys::net::{self, TcpSocket};
use crate::sys::steer::Socket;
use crate::world::dir::Holder;
use crate::world::land::{DRAIN, KILL_AFTER, Land};
use std::collections::BTreeSet;
use std::time::Duration;

/// The product's `STARTS_WITHIN` and `CARES_WITHIN`.
const STARTS_WITHIN: Duration = Duration::from_secs(2);
pub const CARES_WITHIN: Duration = Duration::from_secs(10);

pub fn steer_away(scene: &Scene, orphan: Server, found: &Recovered) {
    let at: Vec<Address> = found.unswitched.iter().cloned().collect();
    let joined = if scene.is_youngest() { Joined::Last } else { Joined::Somewhen };
    if !at.is_empty()
        && let Ok(listeners) = net::listeners()
    {
        let _ = share::steer_away(orphan.listeners(&at), &listeners, joined);
    }
}

impl Supervisor {
    /// `false` if somebody else has it, or it is gone.
    pub fn take_care(&mut self, land: &mut Land, prove: bool) -> bool {
        let Some(holder) = land.dir.holder(self.server.0).filter(|holder| holder.is_orphan) else { return false };
        land.lock(self.server.0, self.pid);
        let Ok(listeners) = net::listeners() else { return false };
        let its = self.server.holds_of(&listeners.all().cloned().collect::<Vec<TcpSocket>>());
        let (scene, beside) = scene(land, holder.party(), &its);
        let handles = self.server.handles(&its.iter().map(|s| s.inode).collect());
        let shares = handles.iter().filter(|s| s.shares()).flat_map(|s| s.address().map(Address::from)).collect();
        let shares: Vec<Address> = shares;
        drop(handles);
        let found = scene.recover(Some(&shares));
        if !scene.is_behind_another() {
            steer_away(&scene, self.server, &found);
        }
        if !found.unswitched.is_empty() {
            land.watch.unswitched(self.server.0);
        }
        land.watch.recovered(self.server.0, found.orphan);
        if strays(&scene) {
            land.watch.strays.insert(self.server.0);
        }
        if land.watch.is_verbose {
            land.watch.said.push(format!("{} takes care of {}: {found:?}", self.pid, self.server.0));
        }
        self.adopt(land, holder, found, prove);
        self.drain_behind(land, &scene);
        beside.iter().filter(|other| other.is_orphan).for_each(|other| self.care(land, other));
        self.poll_soon();
        self.settle(land);
        true
    }

    fn adopt(&mut self, land: &mut Land, holder: Holder, found: Recovered, prove: bool) {
        let Recovered { orphan, addresses, held, misnamed, heir, .. } = found;
        land.doors.insert(self.server.0, self.pid);
        let listening: Vec<Address> = addresses.iter().cloned().collect();
        let unshared = !self.server.listeners(&listening).iter().all(Socket::shares);
        let settings = Settings {
            order: if unshared { Order::Plain } else { Order::Shared },
            checked: Checked::No,
            canary: Vec::new(),
            hold: Duration::ZERO,
            awaited: false,
            ready_timeout: None,
            kill_after: KILL_AFTER,
            drain: DRAIN,
        };
        let (machine, effects) = Generation::adopted(settings, addresses, orphan);
        let names = Names {
            number: holder.generation,
            replaced: holder.replaced,
            kept: holder.kept,
            held: held.clone(),
            ..Names::default()
        };
        let mut live = Live::new(machine, names, prove);
        live.joining.unshared = unshared;
        live.life = Stage { was_up: true, ..Stage::default() };
        self.agenda.pending.extend(heir.map(|_| Event::HeirAwaited));
        let heir = heir.map(|heir| (heir, Instant::now() + CARES_WITHIN));
        live.standing = Standing { succeeded: true, heir, ..Standing::default() };
        self.live = Some(live);
        self.is_done = true;
        land.adopt(self.server.0, self.pid);
        effects.into_iter().for_each(|effect| self.carry_out(land, effect));
        let unnamed = listening.into_iter().filter(|address| orphan != Orphan::Superseded && !held.contains(address));
        let named_anew = unnamed.map(Effect::Hold).chain(misnamed.into_iter().map(Effect::Unhold));
        named_anew.for_each(|effect| self.carry_out(land, effect));
    }

    pub(super) fn claims(&mut self, land: &mut Land, claimer: ClaimerId) {
        let peer = land.streams.get(&claimer.0).and_then(|stream| crate::sys::pid::Pid::new(stream.claimer.into()));
        let heir = self.live.as_mut().and_then(|live| live.standing.heir.take_if(|(heir, _)| Some(*heir) == peer));
        self.feed(if heir.is_some() { Event::HeirClaims(claimer) } else { Event::Claim(claimer) });
    }

    pub(super) fn care(&mut self, land: &mut Land, orphan: &Holder) {
        self.cared_for.retain(|_, since| since.elapsed() < STARTS_WITHIN);
        self.cared_for.entry(orphan.pid.raw()).or_insert_with(|| {
            land.births.push(orphan.pid.raw());
            Instant::now()
        });
    }
}

/// A server, those beside it, and whom the pidfiles name.
pub fn scene(land: &Land, own: recovery::Server, its: &[TcpSocket]) -> (Scene, Vec<Holder>) {
    let sockets: BTreeSet<u32> = its.iter().map(|s| s.inode).collect();
    let beside = land.dir.beside(&sockets, own.pid.raw());
    let parties = beside.iter().map(Holder::party).collect();
    (Scene { own, beside: parties, names: land.dir.names() }, beside)
}

/// Whether a server serves at one address, and at another only listens beside the one that does.
pub fn is_stray(land: &Land, server: i32) -> bool {
    let Some(holder) = land.dir.holder(server) else { return false };
    let Ok(listeners) = net::listeners() else { return false };
    let its = Server(server).holds_of(&listeners.all().cloned().collect::<Vec<TcpSocket>>());
    strays(&scene(land, holder.party(), &its).0)
}

fn strays(scene: &Scene) -> bool {
    let found = scene.recover(None);
    let is_another_s = |place: &Place| !found.addresses.iter().any(|at| at.collides(&place.address.into()));
    found.orphan != Orphan::Superseded && scene.own.places.iter().any(is_another_s)
}
