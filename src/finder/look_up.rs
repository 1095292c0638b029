//! Looking up the servers that have an address, and giving it to the server that asks if there are none.

use super::{Asker, Found, Holder, May, Missing};
use crate::address::Address;
use crate::place::Place;
use crate::procfs::Snapshot;
use crate::recovery::{self, Supervision, Way};
use crate::rundir::{Bad, CANNOT_BE_READ, Notes, RunDir, pidfile};
use crate::sys::net::{self, TcpSocket};
use crate::sys::pid::Pid;
use std::collections::BTreeSet;

/// How a server stands to one that wants an address of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    /// It has what is wanted, or may have it.
    InTheWay,
    /// Both can listen.
    Beside,
    /// It is in the way, and belongs to another user.
    Foreign,
}

impl RunDir {
    /// Finds the servers that have the address. If there are none, it becomes the asker's in the same moment.
    pub fn look_up(&self, address: &Address, asker: &Asker<'_>, notes: &mut Notes) -> Found {
        let _guard = match self.lock() {
            Ok(guard) => guard,
            Err(denied) => return Found::Blocked(denied.into()),
        };
        self.look_up_locked(address, asker, notes).unwrap_or_else(|found| found)
    }

    /// Of a server that drains behind a newer one at the address, that one: the older serves again only without it.
    fn newest_instead_of(&self, holder: Holder, address: &Address) -> Holder {
        let Address::Tcp(_, port) = *address else { return holder };
        let mut newer = self.servers().unwrap_or_default();
        newer.retain(|server| server.olds.replaced.contains(&holder.pid) && server.start >= holder.start);
        if newer.is_empty() {
            return holder;
        }
        let here: BTreeSet<u32> =
            net::listeners_at(port).iter().flat_map(|all| all.at(address)).map(|socket| socket.inode).collect();
        let snapshot = Snapshot::take();
        let listens = |server: &Holder| server.sockets(&snapshot).is_ok_and(|own| !own.is_disjoint(&here));
        newer.retain(listens);
        newer.into_iter().max_by_key(|server| (server.generation, server.start)).unwrap_or(holder)
    }

    /// As [`RunDir::look_up`], with the lock held. The error is an answer as well: the one that ends the look early.
    fn look_up_locked(&self, address: &Address, asker: &Asker<'_>, notes: &mut Notes) -> Result<Found, Found> {
        let named = self.named_holders(address, asker.me, notes)?;
        let (mut holders, mut beside) = (Vec::new(), Vec::new());
        for holder in named {
            match relation(&holder, asker.places) {
                Relation::InTheWay => holders.push(holder),
                Relation::Beside => beside.push(holder.pid),
                Relation::Foreign => return Err(Found::Foreign),
            }
        }
        if holders.is_empty() {
            match self.port_holder(address, asker)? {
                Some(holder) if relation(&holder, asker.places) == Relation::Foreign => return Err(Found::Foreign),
                found => holders.extend(found.map(|holder| self.newest_instead_of(holder, address))),
            }
        }
        let supervision: Vec<Supervision> = holders.iter().map(Holder::supervision).collect();
        match recovery::way(&supervision, || self.may_claim_orphans()) {
            Way::Wait => return Err(Found::Busy),
            Way::Care => {
                let all = holders.into_iter().zip(supervision);
                let orphans = all.filter(|(_, supervision)| *supervision == Supervision::Lost);
                return Ok(Found::Orphans(orphans.map(|(holder, _)| holder).collect()));
            }
            Way::Claim => return Ok(Found::Taken(holders)),
            Way::Free => {}
        }
        // A server that goes on beside ours keeps its pidfile.
        let is_named = self.read_pid(&pidfile(address)).is_ok_and(|pid| beside.contains(&pid));
        let written = if is_named { Ok(()) } else { self.write_pid(address, asker.me) };
        written.map_err(|why| Found::Blocked(format!("unable to write its pidfile: {why}")))?;
        Ok(Found::Vacant(beside))
    }

    /// The servers that pidfiles of colliding addresses name. Stale pidfiles are removed.
    fn named_holders(&self, address: &Address, me: Pid, notes: &mut Notes) -> Result<Vec<Holder>, Found> {
        let mut holders: Vec<Holder> = Vec::new();
        for (own, pid) in self.colliding(address, notes).map_err(Found::Unclear)? {
            if pid == me || holders.iter().any(|h| h.pid == pid) {
                continue;
            }
            match self.holder(pid) {
                Ok(holder) => holders.push(holder),
                Err(Missing::Unclear) => {
                    return Err(Found::Unclear(format!("unable to read the record of server {pid}")));
                }
                // As a rule it has a part of its own in the run directory: it and we came at the same moment.
                Err(Missing::Elsewhere) => {
                    return Err(Found::Blocked("a server of another namespace has its pidfile".into()));
                }
                // Its pidfile does not tell who listens in these namespaces.
                Err(Missing::Unseen) => {}
                Err(Missing::Gone) => {
                    notes.push(format!("the pidfile of {own} is stale (it is removed)"));
                    self.unlink(&pidfile(&own));
                    self.sweep();
                }
            }
        }
        Ok(holders)
    }

    /// Gives the address to `me` unless a living server other than `olds` has it. Tells whether `me` has it now. A server
    /// `beside` it keeps the pidfile.
    pub fn take(&self, address: &Address, me: Pid, olds: &[Pid], beside: &[Pid]) -> Result<bool, String> {
        let _guard = self.lock()?;
        let others = self.colliding(address, &mut Vec::new())?;
        if others.iter().any(|(own, pid)| own == address && beside.contains(pid)) {
            return Ok(true);
        }
        let is_known = |pid: &Pid| *pid == me || olds.contains(pid) || beside.contains(pid);
        let others = others.iter().map(|(_, pid)| *pid).filter(|pid| !is_known(pid));
        let is_there = |pid| !matches!(self.holder(pid), Err(Missing::Gone | Missing::Unseen));
        if others.into_iter().any(is_there) {
            return Ok(false);
        }
        self.write_pid(address, me).map(|()| true)
    }

    /// The server that the pidfile of an address names, if it lives.
    pub fn serving(&self, address: &Address, notes: &mut Notes) -> Option<Holder> {
        match self.read_pid(&pidfile(address)) {
            Ok(pid) => match self.holder(pid) {
                Ok(holder) => Some(holder),
                Err(Missing::Gone | Missing::Elsewhere | Missing::Unseen) => None,
                Err(Missing::Unclear) => {
                    notes.push(format!("unable to read the record of server {pid} (it is left alone)"));
                    None
                }
            },
            Err(Bad::Absent) => None,
            Err(bad) => {
                let why = if let Bad::Because(why) = bad { why } else { CANNOT_BE_READ };
                notes.push(format!("the pidfile of {address} {why} (it is ignored)"));
                None
            }
        }
    }
}

/// How a server stands to one that has sockets at these places.
fn relation(holder: &Holder, places: &[(Place, May)]) -> Relation {
    let Some((first, _)) = places.first() else { return Relation::InTheWay };
    // What cannot be asked may be in the way.
    let Ok(listeners) = net::listeners_at(first.address.port()) else { return Relation::InTheWay };
    let is_replaceable =
        |its: Place| places.iter().any(|(own, may)| its.conflicts(own) && its.uid == own.uid && *may == May::Replace);
    // It does not matter which server has them. To find out would take a look at every process.
    if listeners.all().all(|s| is_replaceable(s.place())) {
        return Relation::InTheWay;
    }
    let Ok(held) = holder.sockets(&Snapshot::take()) else { return Relation::InTheWay };
    let its: Vec<Place> = listeners.all().filter(|s| held.contains(&s.inode)).map(TcpSocket::place).collect();
    // Whether each of those that are in the way belongs to another user, or to one that the caller is no more.
    let in_the_way = places.iter().flat_map(|(own, may)| {
        its.iter().filter(|place| place.conflicts(own)).map(|place| place.uid != own.uid || *may == May::Nothing)
    });
    let in_the_way: Vec<bool> = in_the_way.collect();
    match () {
        // It is about to listen, or has let go of the port.
        () if its.is_empty() => Relation::InTheWay,
        () if in_the_way.is_empty() => Relation::Beside,
        () if in_the_way.iter().all(|is_foreign| *is_foreign) => Relation::Foreign,
        () => Relation::InTheWay,
    }
}
