//! Port sharing: old and new listen on one port, and one small program per group of sockets says who gets new connections.
//! The new side steers ([`Sharing`]), the old side drains ([`crate::drain`]).

#![forbid(unsafe_code)]

mod alone;
mod closing;
mod group;
mod handed;
mod member;
mod olds;
mod probing;

pub use alone::{Joined, is_alone, serve_alone, steer_away};
pub use group::Handles;
pub use handed::{Handed, Whose};

use crate::address::Address;
use crate::place::Place;
use crate::sys::clock::Instant;
use crate::sys::net::{self, Diag, Listeners, TcpSocket};
use crate::sys::steer::{OwnProgram, Socket};
use group::{Fetch, Group, Stage};
use handed::Order;
use member::{Proof, STEADY};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpStream};

/// The listeners of a new server, and those of old ones beside them, as the new side sees them.
#[derive(Debug, Default)]
pub struct Sharing {
    /// By their ports.
    groups: BTreeMap<u16, Vec<Group>>,
    diag: Option<Diag>,
    /// When the oldest of the old servers started (proc_pid_stat(5)).
    since: u64,
    /// When to look again who holds the sockets of old servers, after a look that could not see all processes.
    blind_until: Option<Instant>,
    /// When it was last looked which sockets the new server still has.
    checked: Option<Instant>,
}

impl Sharing {
    fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values().flatten()
    }

    fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.values_mut().flatten()
    }

    fn groups_at(&self, port: u16) -> impl Iterator<Item = &Group> {
        self.groups.get(&port).into_iter().flatten()
    }

    /// The groups at places that collide with this address.
    fn near(&self, address: &Address) -> impl Iterator<Item = &Group> {
        let port = if let Address::Tcp(_, port) = *address { port } else { 0 };
        self.groups_at(port).filter(|group| address.collides(&group.place.address.into()))
    }

    /// Forgets the other groups.
    fn keep(&mut self, mut is_kept: impl FnMut(&mut Group) -> bool) {
        self.groups.values_mut().for_each(|groups| groups.retain_mut(&mut is_kept));
        self.groups.retain(|_, groups| !groups.is_empty());
    }

    fn at_port(&mut self, port: u16) -> &mut Vec<Group> {
        self.groups.entry(port).or_default()
    }

    /// The group of a place; if there is none yet, a new one with this old server.
    fn at(&mut self, place: Place, old: Option<u64>) -> &mut Group {
        // A place at which a server listens only after the switch.
        let is_late = self.groups().any(|group| group.stage == Stage::Switched);
        let groups = self.at_port(place.address.port());
        let at = groups.iter().position(|g| g.place == place).unwrap_or_else(|| {
            let stage = if is_late { Stage::Switched } else { Stage::Before };
            groups.push(Group { stage, ..Group::new(old, place) });
            groups.len() - 1
        });
        &mut groups[at]
    }

    /// Groups listeners by place.
    fn of(old: Option<u64>, sockets: Vec<Handed>) -> io::Result<Sharing> {
        let (mut sharing, mut unknown) = (Sharing::default(), BTreeSet::new());
        for Handed { socket, whose, order } in sockets {
            if order == Order::Unknown {
                unknown.insert(socket.inode()?);
            }
            sharing.at(socket.place()?, old).add_old(socket, whose == Whose::Serving)?;
        }
        sharing.groups_mut().for_each(|group| group.members.doubt(|member| unknown.contains(&member.inode)));
        Ok(sharing)
    }

    /// Whether every socket in the groups is known.
    fn is_known(&self) -> io::Result<bool> {
        let listeners = net::listeners()?;
        Ok(self.groups().all(|group| group.strangers(&listeners) == 0))
    }

    /// Whether there is nothing to be proven or steered.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Where an old server listens at another place of the port, from which a socket here would take connections.
    pub fn elsewhere(&self, place: &Place) -> Option<SocketAddr> {
        let is_beside = |group: &&Group| group.has_olds() && group.place != *place && group.place.conflicts(place);
        self.groups_at(place.address.port()).find(is_beside).map(|group| group.place.address)
    }

    /// listen(2) for the new server, while all connections stay where they are.
    pub fn join(&mut self, socket: &Socket, backlog: i32, fetch: Fetch<'_>) -> io::Result<()> {
        let place = socket.place()?;
        let guarded = self.elsewhere(&place).is_some();
        let group = self.at(place, None);
        group.joined = true;
        // A socket of a stranger that came since we got the lock has the index that this one would have.
        if !group.members.is_empty() || group.old.is_some() {
            let listeners = net::listeners_at(place.address.port())?;
            group.catch_up(&listeners, fetch);
            if group.old.is_some() && group.strangers(&listeners) > 0 {
                return Err(io::ErrorKind::AddrInUse.into());
            }
        }
        socket.share()?;
        let steered = group.steer(fetch);
        if group.old.is_some() {
            steered?;
        }
        if guarded && group.stage != Stage::Switched {
            group.guarded |= socket.refuse_newcomers(None)?;
        }
        socket.listen(backlog)?;
        group.add_new(socket.inode()?, if group.stage == Stage::Switched { Proof::Proven } else { Proof::None });
        // What cannot be steered now goes to the old server as before, and is steered when it is probed.
        let _ = group.steer(fetch);
        Ok(())
    }

    /// Listeners of the new server that nobody saw it open.
    pub fn found<'a>(&mut self, listeners: impl IntoIterator<Item = &'a TcpSocket>) {
        for listener in listeners {
            let group = self.at(listener.place(), None);
            if group.add_new(listener.inode, Proof::None) {
                (group.joined, group.in_order) = (true, false);
            }
        }
    }

    /// The new server attaches a program of its own. While old sockets are there, ours stays and that one is kept.
    pub fn steer_by(&mut self, place: &Place, socket: &Socket, program: OwnProgram) -> io::Result<()> {
        let mut here = self.groups.get_mut(&place.address.port()).into_iter().flatten();
        match here.find(|group| group.place == *place) {
            Some(group) if group.has_olds() => {
                Socket::scratch(place)?.steer_by(&program)?;
                group.own = Some(program);
            }
            group => {
                socket.steer_by(&program)?;
                group.into_iter().for_each(|group| (group.steered, group.in_order) = (false, false));
            }
        }
        Ok(())
    }

    /// Follows what the new server has closed, and the old one; moves every probe a step on. `held` gives the
    /// sockets that the new server holds.
    pub fn look(
        &mut self,
        listeners: &Listeners,
        prove: bool,
        held: impl FnOnce() -> Option<BTreeSet<u32>>,
        fetch: Fetch<'_>,
    ) {
        self.groups_mut().for_each(|group| group.reap(listeners, fetch));
        self.follow_olds(listeners, fetch);
        self.follow_news(None, listeners, fetch);
        if self.is_check_due()
            && let Some(held) = held()
        {
            self.checked = Some(Instant::now());
            self.groups_mut().for_each(|group| group.check(&held, fetch));
        }
        self.diag = self.diag.take().or_else(|| Diag::open().ok());
        for group in self.groups.values_mut().flatten() {
            match group.stage {
                Stage::Before | Stage::Portion(_) if prove => _ = group.step(self.diag.as_ref(), listeners, fetch),
                Stage::Before | Stage::Portion(_) => group.trust(),
                Stage::Switched => _ = group.unguard(fetch),
            }
        }
    }

    /// Whether somebody should look which sockets the server still has: once for as many proofs as possible, since a
    /// server may open a thousand one after the other.
    fn is_check_due(&self) -> bool {
        let any = |is: fn(&Proof) -> bool| self.groups().any(|group| group.proofs().any(is));
        let is_late = || self.checked.is_none_or(|at| at.elapsed() > STEADY);
        any(Proof::is_due) && (is_late() || !any(Proof::is_under_way))
    }

    /// Follows what the new server has closed.
    pub fn follow_news(&mut self, port: Option<u16>, listeners: &Listeners, fetch: Fetch<'_>) {
        let ports = port.map_or(0..=u16::MAX, |port| port..=port);
        for group in self.groups.range_mut(ports).flat_map(|(_, groups)| groups).filter(|group| group.has_news()) {
            group.follow(&group.listening(listeners), fetch);
        }
    }

    /// Whether the new server has listened on a port, as far as we know.
    pub fn has_joined_at(&self, port: u16) -> bool {
        self.groups_at(port).any(|group| group.joined)
    }

    /// Whether the new server has listened at this address, as far as we know.
    pub fn has_joined(&self, address: &Address) -> bool {
        self.near(address).any(|group| group.joined)
    }

    /// Whether all places of the address at which the new server has listened are proven. `complete`: only if it has all
    /// places that the old one has.
    pub fn is_proven(&self, address: &Address, complete: bool) -> bool {
        // Where it has closed what it had, it is on its way out, or not done.
        let is_done = |g: &Group| if g.has_news() { g.is_proven() } else { !complete && !g.joined };
        self.near(address).any(Group::has_news) && self.near(address).all(is_done)
    }

    /// A connection to the new server alone, at the first place of this address; at any if it has none there.
    pub fn preview(&mut self, address: &Address, fetch: Fetch<'_>) -> io::Result<TcpStream> {
        let news = self.groups_mut().filter(|group| group.has_news());
        let group = news.min_by_key(|group| !address.collides(&group.place.address.into()));
        group.ok_or(io::ErrorKind::NotConnected)?.preview(fetch)
    }

    /// What keeps the new server from being proven at this address, if it listens there.
    pub fn hindrance(&self, address: &Address) -> Option<String> {
        let mut unproven = self.near(address).filter(|group| group.has_news() && !group.is_proven()).peekable();
        unproven.peek()?;
        Some(match unproven.find_map(|group| group.unreachable.as_ref()) {
            Some(why) => format!("it listens, but {why}; --no-probe does without"),
            None => format!("it listens on {address} but accepts nothing"),
        })
    }

    /// Where the new server has closed all that it had, of one port or of all.
    pub fn closed(&self, port: Option<u16>) -> Vec<Address> {
        let is_meant = |group: &&Group| port.is_none_or(|port| group.place.address.port() == port);
        let closed = self.groups().filter(is_meant).filter(|group| group.joined && !group.has_news());
        closed.map(|group| group.place.address.into()).collect()
    }

    /// Whether the new server has closed all that it had at this address.
    pub fn is_closed(&self, address: &Address) -> bool {
        self.has_joined(address) && !self.near(address).any(Group::has_news)
    }

    /// Forgets what the new server had at this address, where no old one is.
    pub fn forget(&mut self, address: &Address) {
        let Address::Tcp(_, port) = *address else { return };
        self.at_port(port).iter_mut().for_each(|group| group.joined &= group.has_news());
        self.keep(|g| g.old.is_some() || g.has_news() || !address.collides(&g.place.address.into()));
    }

    /// From here the new server gets so many of 1,000 new connections. Returns the places of both where it gets none, and
    /// the first failure.
    pub fn portion(&mut self, permille: u16, fetch: Fetch<'_>) -> (Vec<SocketAddr>, io::Result<()>) {
        let (mut without, mut result) = (Vec::new(), Ok(()));
        for group in self.groups_mut().filter(|group| group.has_news()) {
            group.stage = Stage::Portion(permille);
            result = result.and(group.steer(fetch));
            let is_left_out = (group.has_olds() || group.guarded) && !group.may_be_portioned();
            without.extend(is_left_out.then_some(group.place.address));
        }
        (without, result)
    }

    /// From here new connections go to the new server. Returns the places that it does not take over, which the old one
    /// keeps to its end, and the first failure: if one group fails, the others are switched all the same.
    pub fn switch(&mut self, fetch: Fetch<'_>) -> (Vec<SocketAddr>, io::Result<()>) {
        let (mut abandoned, mut result) = (Vec::new(), Ok(()));
        // A server that is about to end may have closed some. If the kernel cannot be asked, none counts as closed.
        if let Ok(listeners) = net::listeners() {
            self.follow_news(None, &listeners, fetch);
        }
        let taken: Vec<Place> = self.groups().filter(|g| g.has_news()).map(|g| g.place).collect();
        for group in self.groups_mut() {
            if group.has_news() {
                result = result.and(group.switch(fetch));
            } else if taken.iter().any(|new| new.covers(&group.place)) {
                // The new server is at another place of the same port: whoever still comes here tries again, and meets the
                // new one once this socket is closed.
                result = group.olds().map(|old| old.refuse_newcomers(None).map(drop)).fold(result, io::Result::and);
            } else if group.has_olds() {
                abandoned.push(group.place.address);
            }
        }
        (abandoned, result)
    }

    /// From here new connections go to the old servers again. What went to the new one stays there.
    pub fn switch_back(&mut self, fetch: Fetch<'_>) {
        for group in self.groups_mut() {
            group.stage = Stage::Before;
            let _ = group.steer(fetch);
            group.accept_at_olds();
        }
    }

    /// The old servers are gone, and the new one has proven itself. `false` where something is left to be taken off.
    pub fn finish(&mut self, fetch: Fetch<'_>) -> bool {
        let is_touched = |group: &&Group| group.steered || group.guarded;
        let touched: BTreeSet<u32> = self.groups().filter(is_touched).flat_map(Group::inodes_of_news).collect();
        // In one look: a server may have a thousand.
        let own = if touched.is_empty() { Vec::new() } else { fetch.handles(&touched) };
        let own = own.into_iter().filter_map(|socket| Some((socket.inode().ok()?, socket))).collect();
        self.keep(|group| !group.leave_to_new(&own));
        self.groups.is_empty()
    }

    /// The new server is gone, or gives up.
    pub fn turn_back(self) {
        let listeners = net::listeners().ok();
        self.groups.into_values().flatten().for_each(|group| group.leave_to_old(listeners.as_ref()));
    }
}
