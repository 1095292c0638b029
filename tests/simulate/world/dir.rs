//! The run directory: pidfiles, records, and the locks on them, which end with their process. What is done with its
//! lock held is one step here.

use crate::address::Address;
use crate::kernel;
use crate::recovery::{self, Supervision};
use crate::server::Server;
use crate::sys::net;
use crate::sys::pid::Pid;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Hash)]
pub struct Record {
    pub supervisor: i32,
    /// The supervisor that has started it: its sockets bear that pid.
    pub first: i32,
    pub generation: u64,
    pub replaced: Vec<Pid>,
    pub kept: Vec<Pid>,
    /// Who has its lock.
    pub lock: Option<i32>,
}

/// A living server, as its record says.
#[derive(Debug, Clone)]
pub struct Holder {
    pub pid: Pid,
    pub supervisor: Pid,
    pub generation: u64,
    pub replaced: Vec<Pid>,
    pub kept: Vec<Pid>,
    pub is_orphan: bool,
    first: i32,
}

#[derive(Debug)]
pub enum Found {
    Vacant,
    Taken(Vec<Holder>),
    Orphans(Vec<Holder>),
    Busy,
}

#[derive(Debug, Default, Hash)]
pub struct Dir {
    pub pidfiles: BTreeMap<Address, i32>,
    pub records: BTreeMap<i32, Record>,
    /// Who may claim servers that have lost their supervisors.
    pub turn: Option<i32>,
}

pub fn pid(raw: i32) -> Pid {
    Pid::new(raw.into()).expect("a pid")
}

impl Holder {
    pub fn has_lost_its_supervisor(&self) -> bool {
        self.is_orphan || kernel::with(|k| k.has_ended(self.supervisor.raw()))
    }

    pub fn supervision(&self) -> Supervision {
        match () {
            () if self.has_lost_its_supervisor() => Supervision::Lost,
            () if self.first == self.supervisor.raw() => Supervision::First,
            () => Supervision::Later,
        }
    }

    /// As the pure core sees it.
    pub fn party(&self) -> recovery::Server {
        let its = Server(self.pid.raw());
        let key = |(_, s): &(&u32, &kernel::Socket)| s.listens && s.count(its.0) > 0;
        recovery::Server {
            pid: self.pid,
            start: self.pid.raw() as u64,
            supervisor: self.supervisor,
            ever_orphaned: self.supervision() != Supervision::First,
            replaced: self.replaced.clone(),
            kept: self.kept.clone(),
            places: kernel::with(|k| k.sockets.iter().filter(key).map(|(_, s)| s.key.place()).collect()),
        }
    }
}

impl Dir {
    /// `None`: no such server lives.
    pub fn holder(&self, server: i32) -> Option<Holder> {
        let record = self.records.get(&server)?;
        let is_orphan = record.lock.is_none();
        if is_orphan && kernel::with(|k| k.has_ended(server)) {
            return None;
        }
        Some(Holder {
            pid: pid(server),
            supervisor: pid(record.supervisor),
            generation: record.generation,
            replaced: record.replaced.clone(),
            kept: record.kept.clone(),
            is_orphan,
            first: record.first,
        })
    }

    pub fn servers(&self) -> Vec<Holder> {
        self.records.keys().filter_map(|server| self.holder(*server)).collect()
    }

    fn colliding(&self, address: &Address) -> Vec<(Address, i32)> {
        self.pidfiles.iter().filter(|(own, _)| own.collides(address)).map(|(own, pid)| (own.clone(), *pid)).collect()
    }

    pub fn names(&self) -> Vec<(Pid, Address)> {
        let lives = |(_, server): &(&Address, &i32)| self.holder(**server).is_some();
        self.pidfiles.iter().filter(lives).map(|(address, server)| (pid(*server), address.clone())).collect()
    }

    /// Who has the address; if nobody has, `me` gets it.
    pub fn look_up(&mut self, address: &Address, me: i32, asker: i32) -> Found {
        let mut holders: Vec<Holder> = Vec::new();
        for (own, server) in self.colliding(address) {
            if server == me || holders.iter().any(|h| h.pid.raw() == server) {
                continue;
            }
            match self.holder(server) {
                Some(holder) => holders.push(holder),
                None => {
                    self.pidfiles.remove(&own);
                    self.sweep();
                }
            }
        }
        if holders.is_empty() {
            let found = net::listeners().map(|all| all.at_any([address])).unwrap_or_default();
            let own = Server(me);
            if !found.iter().any(|s| own.has(s.inode)) {
                let has_it = |h: &Holder| found.iter().any(|s| Server(h.pid.raw()).has(s.inode));
                holders.extend(self.servers().into_iter().find(has_it));
            }
        }
        let supervision: Vec<Supervision> = holders.iter().map(Holder::supervision).collect();
        let turn = &mut self.turn;
        match recovery::way(&supervision, || *turn.get_or_insert(asker) == asker) {
            recovery::Way::Wait => Found::Busy,
            recovery::Way::Care => Found::Orphans(holders.extract_if(.., |h| h.has_lost_its_supervisor()).collect()),
            recovery::Way::Claim => Found::Taken(holders),
            recovery::Way::Free => {
                self.pidfiles.insert(address.clone(), me);
                Found::Vacant
            }
        }
    }

    /// Gives the address to `me` unless a living server other than these has it.
    pub fn take(&mut self, address: &Address, me: i32, olds: &[Pid]) -> bool {
        let is_known = |other: i32| other == me || olds.contains(&pid(other));
        if self.colliding(address).iter().any(|(_, other)| !is_known(*other) && self.holder(*other).is_some()) {
            return false;
        }
        self.pidfiles.insert(address.clone(), me);
        true
    }

    pub fn unhold(&mut self, address: &Address, me: i32) {
        if self.pidfiles.get(address) == Some(&me) {
            self.pidfiles.remove(address);
        }
    }

    /// Removes what the dead have left.
    pub fn sweep(&mut self) {
        let gone = |server: &i32| self.holder(*server).is_none();
        let gone: Vec<i32> = self.records.keys().copied().filter(gone).collect();
        gone.iter().for_each(|server| drop(self.records.remove(server)));
    }

    pub fn claims_no_orphans(&mut self, who: i32) {
        self.turn.take_if(|turn| *turn == who);
    }

    /// Servers that listen at places of these sockets.
    pub fn beside(&self, own: &BTreeSet<u32>, me: i32) -> Vec<Holder> {
        let Ok(listeners) = net::listeners() else { return Vec::new() };
        let places: Vec<_> = listeners.all().filter(|s| own.contains(&s.inode)).map(|s| s.place()).collect();
        let meets = |s: &&net::TcpSocket| !own.contains(&s.inode) && places.iter().any(|at| at.conflicts(&s.place()));
        let met: Vec<u32> = listeners.all().filter(meets).map(|s| s.inode).collect();
        let has = |h: &Holder| h.pid.raw() != me && met.iter().any(|inode| Server(h.pid.raw()).has(*inode));
        if met.is_empty() { Vec::new() } else { self.servers().into_iter().filter(has).collect() }
    }

    /// The locks of a process end with it.
    pub fn release(&mut self, process: i32) {
        for record in self.records.values_mut() {
            record.lock.take_if(|lock| *lock == process);
        }
        self.claims_no_orphans(process);
    }
}
