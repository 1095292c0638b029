//! Decides how far the swap of a dead supervisor was, from what is left: records, pidfiles and listeners. Pure.

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::place::Place;
use crate::swap::Orphan;
use crate::sys::pid::Pid;
use std::collections::BTreeSet;

/// A server as seen by processes that did not start it.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its main process.
    pub pid: Pid,
    /// When that started (proc_pid_stat(5)).
    pub start: u64,
    /// Its supervisor, alive or not.
    pub supervisor: Pid,
    /// The supervisor that has started it is dead.
    pub ever_orphaned: bool,
    /// The servers that it replaces, by its record: those from which it has got the new connections.
    pub replaced: Vec<Pid>,
    /// Those beside which it is on trial, by its record.
    pub kept: Vec<Pid>,
    /// Where it listens.
    pub places: Vec<Place>,
}

/// A server and all that bears on its swap.
#[derive(Debug)]
pub struct Scene {
    /// The server.
    pub own: Server,
    /// The servers that listen where one could get the other's connections: at places that conflict with its own.
    pub beside: Vec<Server>,
    /// Whom the pidfiles name, and where.
    pub names: Vec<(Pid, Address)>,
}

/// How far the swap of an orphan was, and what it has.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovered {
    /// How far.
    pub orphan: Orphan,
    /// Its addresses: those whose pidfile names it, or a server that it has replaced, or that have no pidfile. If it is
    /// superseded, those that other servers have by now.
    pub addresses: BTreeSet<Address>,
    /// The addresses whose pidfile names it now, without those that other servers have.
    pub held: BTreeSet<Address>,
    /// Addresses whose pidfile names it although it listens elsewhere, and not there.
    pub misnamed: BTreeSet<Address>,
    /// Addresses at which it listens and older servers serve: it did not get to its switch.
    pub unswitched: BTreeSet<Address>,
    /// The supervisor that had its lock, if alive: the new server of that supervisor listens beside this one.
    pub heir: Option<Pid>,
}

/// Who supervises a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervision {
    /// Whoever has started it.
    First,
    /// A caretaker: it was an orphan.
    Later,
    /// Nobody.
    Lost,
}

/// What a new server does about those that have what it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// There are none.
    Free,
    /// It claims them.
    Claim,
    /// They need caretakers first.
    Care,
    /// Somebody else claims servers that were orphans.
    Wait,
}

/// What a new server does about those that have what it wants. Only one process at a time claims servers that were orphans:
/// of two, each could get the lock of one and wait for the other one's for ever.
pub fn way(holders: &[Supervision], may_claim_orphans: impl FnOnce() -> bool) -> Way {
    let any = |what: fn(&Supervision) -> bool| holders.iter().any(what);
    match () {
        () if any(|it| *it != Supervision::First) && !may_claim_orphans() => Way::Wait,
        () if any(|it| *it == Supervision::Lost) => Way::Care,
        () if !holders.is_empty() => Way::Claim,
        () => Way::Free,
    }
}

impl Server {
    /// Whether it has got the new connections of `old`, and is not older.
    fn has_replaced(&self, old: &Server) -> bool {
        self.replaced.contains(&old.pid) && self.start >= old.start
    }

    /// Whether it is on trial beside `old`, which may have been started later, for as long as its supervisor lives.
    fn keeps(&self, old: &Server) -> bool {
        self.kept.contains(&old.pid)
    }

    fn listens_beside(&self, place: &Place) -> bool {
        self.places.iter().any(|own| own.conflicts(place))
    }
}

impl Scene {
    /// Whether a pidfile names a server at an address other than these.
    fn has_name(&self, pid: Pid, but: &BTreeSet<Address>) -> bool {
        self.names.iter().any(|(named, at)| *named == pid && but.iter().all(|but| !but.collides(at)))
    }

    /// What is to be made of an orphan. `shares`: where it lets others share its port, if that is known and matters.
    pub fn recover(&self, shares: Option<&[Address]>) -> Recovered {
        let own = &self.own;
        let (mut addresses, mut others, mut unnamed) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for place in &own.places {
            let address = Address::from(place.address);
            let has_name = |pid: Pid| self.names.iter().any(|(named, at)| *named == pid && at.collides(&address));
            let meets = |what: &dyn Fn(&Server) -> bool| {
                self.beside.iter().any(|other| other.listens_beside(place) && what(other))
            };
            let is_older = |other: &Server| !own.replaced.contains(&other.pid) && other.start < own.start;
            match () {
                () if meets(&|other| other.has_replaced(own) || own.keeps(other)) => _ = others.insert(address),
                () if has_name(own.pid) => {}
                () if own.replaced.iter().any(|old| has_name(*old)) => _ = addresses.insert(address),
                () if meets(&|other| other.keeps(own)) => _ = addresses.insert(address),
                () if meets(&|other| has_name(other.pid) || is_older(other)) => _ = others.insert(address),
                () => unnamed.push(address),
            }
        }
        let is_its = |(pid, at): &&(Pid, Address)| *pid == own.pid && !others.iter().any(|other| other.collides(at));
        let has = |at: &Address| own.places.iter().any(|place| at.collides(&place.address.into()));
        // One that listens nowhere was told to bind and has not done so yet, or is leaving.
        let may_have = |at: &Address| !at.is_port() || own.places.is_empty() || has(at);
        let its = self.names.iter().filter(is_its).map(|(_, address)| address.clone());
        let (held, misnamed): (BTreeSet<Address>, BTreeSet<Address>) = its.partition(may_have);
        addresses.retain(|own| !held.iter().any(|held| held.collides(own)));
        addresses.extend(held.iter().cloned());
        // What it opened without a supervisor is no address, since nobody made it sharable, unless it has no other one.
        if let Some(shares) = shares.filter(|_| !(addresses.is_empty() && others.is_empty())) {
            unnamed.retain(|address| shares.iter().any(|at| at.collides(address)));
        }
        addresses.extend(unnamed);
        Recovered { misnamed, ..self.decide(addresses, held, others) }
    }

    fn decide(&self, own: BTreeSet<Address>, held: BTreeSet<Address>, others: BTreeSet<Address>) -> Recovered {
        // An old server with an address elsewhere serves on there, until a server that wants the address replaces it.
        let drains = |old: &Server| self.own.replaced.contains(&old.pid) && !self.has_name(old.pid, &own);
        let orphan = match () {
            () if self.own.places.is_empty() && held.is_empty() => Orphan::Told,
            () if own.is_empty() => Orphan::Superseded,
            () if self.beside.iter().any(drains) => Orphan::Follows,
            () => Orphan::Alone,
        };
        // A new server joins only while its supervisor has the lock.
        let is_younger = |new: &Server| new.start >= self.own.start && !self.own.replaced.contains(&new.pid);
        let has_no_name = |new: &Server| !self.has_name(new.pid, &BTreeSet::new());
        let joins = |new: &&Server| !new.ever_orphaned && (new.keeps(&self.own) || is_younger(new) && has_no_name(new));
        let heir = self.beside.iter().find(joins).map(|new| new.supervisor);
        let addresses = if orphan == Orphan::Superseded { others.clone() } else { own };
        let is_superseded = self.beside.iter().any(|other| other.has_replaced(&self.own));
        let is_behind = !is_superseded && self.beside.iter().all(|other| other.start <= self.own.start);
        let is_on_trial = self.beside.iter().any(|other| self.own.keeps(other));
        let unswitched = if is_behind || is_on_trial { others } else { BTreeSet::new() };
        let heir = heir.filter(|_| orphan != Orphan::Superseded);
        Recovered { orphan, addresses, held, misnamed: BTreeSet::new(), unswitched, heir }
    }

    /// The server whose record says that it has got the connections of ours, and whose claim has died: the swap goes on.
    pub fn successor(&self) -> Option<&Server> {
        self.beside.iter().find(|new| new.ever_orphaned && new.has_replaced(&self.own))
    }

    /// Whether nobody beside ours was started after it.
    pub fn is_youngest(&self) -> bool {
        self.beside.iter().all(|other| other.start <= self.own.start)
    }

    /// Servers that were on trial beside ours when their supervisors died: they drain behind it.
    pub fn undone(&self) -> Vec<Pid> {
        self.beside.iter().filter(|new| new.ever_orphaned && new.keeps(&self.own)).map(|new| new.pid).collect()
    }

    /// The scene as it is for one of those that listen beside ours.
    pub fn of(&self, other: &Server) -> Scene {
        let beside = self.beside.iter().filter(|it| it.pid != other.pid).chain([&self.own]);
        Scene { own: other.clone(), beside: beside.cloned().collect(), names: self.names.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Families;

    fn pid(raw: i64) -> Pid {
        Pid::new(raw).unwrap()
    }

    fn at(address: &str, device: u32) -> Place {
        Place { address: address.parse().unwrap(), families: Families::Own, device, uid: 0 }
    }

    /// A server that has lost its supervisor; its pid says when it was started.
    fn server(raw: i64, replaced: &[i64], places: &[Place]) -> Server {
        Server {
            pid: pid(raw),
            start: raw as u64,
            supervisor: pid(raw + 1000),
            ever_orphaned: true,
            replaced: replaced.iter().map(|old| pid(*old)).collect(),
            kept: Vec::new(),
            places: places.to_vec(),
        }
    }

    fn scene(own: Server, beside: Vec<Server>, names: &[(i64, &str)]) -> Scene {
        let name = |(raw, address): &(i64, &str)| (pid(*raw), Address::parse(address).unwrap());
        Scene { own, beside, names: names.iter().map(name).collect() }
    }

    fn addresses(of: &[&str]) -> BTreeSet<Address> {
        of.iter().map(|address| Address::parse(address).unwrap()).collect()
    }

    #[test]
    fn an_orphan_beside_nobody_has_what_it_had() {
        let places = [at("127.0.0.1:80", 0), at("127.0.0.1:81", 0)];
        let found = scene(server(1, &[], &places), vec![], &[(1, "127.0.0.1:80")]).recover(Some(&[]));

        assert_eq!((found.orphan, found.heir), (Orphan::Alone, None));
        assert_eq!(found.addresses, addresses(&["127.0.0.1:80"]));
        assert_eq!(found.held, found.addresses);
        // Nobody made the other one sharable.
        let shares = Address::parse("127.0.0.1:81").unwrap();
        let found = scene(server(1, &[], &places), vec![], &[(1, "127.0.0.1:80")]).recover(Some(&[shares]));
        assert_eq!(found.addresses, addresses(&["127.0.0.1:80", "127.0.0.1:81"]));
        // Without any pidfile all of them are its.
        let found = scene(server(1, &[], &places), vec![], &[]).recover(Some(&[]));
        assert_eq!(found.addresses, addresses(&["127.0.0.1:80", "127.0.0.1:81"]));
    }

    /// Killed before the switch: the record of the new one says nothing of the old one.
    #[test]
    fn before_the_switch_the_new_one_goes() {
        let here = [at("127.0.0.1:80", 0)];
        let (old, new) = (server(1, &[], &here), server(2, &[], &here));
        let names = [(1, "127.0.0.1:80")];
        let found = scene(new.clone(), vec![old.clone()], &names).recover(Some(&[]));
        assert_eq!((found.orphan, found.unswitched.clone()), (Orphan::Superseded, addresses(&["127.0.0.1:80"])));
        let scene = scene(old, vec![new.clone()], &names);
        assert_eq!((scene.recover(Some(&[])).orphan, scene.of(&new).recover(Some(&[]))), (Orphan::Alone, found));
    }

    /// Killed between the switch and the drain, whomever the pidfile names by then.
    #[test]
    fn after_the_switch_the_old_one_goes() {
        let here = [at("127.0.0.1:80", 0)];
        let (old, new) = (server(1, &[], &here), server(2, &[1], &here));
        for names in [vec![(1, "127.0.0.1:80")], vec![(2, "127.0.0.1:80")], vec![]] {
            let found = scene(new.clone(), vec![old.clone()], &names).recover(Some(&[]));
            assert_eq!((found.orphan, found.addresses), (Orphan::Follows, addresses(&["127.0.0.1:80"])), "{names:?}");
            let scene = scene(old.clone(), vec![new.clone()], &names);
            let found = scene.recover(Some(&[]));
            assert_eq!((found.orphan, found.unswitched), (Orphan::Superseded, BTreeSet::new()), "{names:?}");
            assert_eq!(scene.of(&new).recover(None).unswitched, BTreeSet::new());
            assert_eq!(scene.successor().map(|new| new.pid), Some(pid(2)));
        }
    }

    /// Killed in a hold: the old one has its connections again, and the new one goes.
    #[test]
    fn in_a_hold_the_new_one_goes() {
        let here = [at("127.0.0.1:80", 0)];
        let (old, new) = (server(1, &[], &here), Server { kept: vec![pid(1)], ..server(2, &[], &here) });
        for names in [vec![(2, "127.0.0.1:80")], vec![(1, "127.0.0.1:80")], vec![]] {
            let found = scene(new.clone(), vec![old.clone()], &names).recover(Some(&[]));
            assert_eq!(
                (found.orphan, found.unswitched),
                (Orphan::Superseded, addresses(&["127.0.0.1:80"])),
                "{names:?}"
            );
            assert_eq!((found.held, found.misnamed), (BTreeSet::new(), BTreeSet::new()), "{names:?}");
            let scene = scene(old.clone(), vec![new.clone()], &names);
            let found = scene.recover(Some(&[]));
            assert_eq!((found.orphan, found.addresses), (Orphan::Alone, addresses(&["127.0.0.1:80"])), "{names:?}");
            assert_eq!(scene.successor().map(|new| new.pid), None);
        }
        // Its supervisor lives: that one had the lock of the old one.
        let new = Server { ever_orphaned: false, ..new };
        let found = scene(old, vec![new], &[(2, "127.0.0.1:80")]).recover(Some(&[]));
        assert_eq!((found.orphan, found.heir), (Orphan::Alone, Some(pid(1002))));
    }

    /// Its successor does without one of its addresses.
    #[test]
    fn a_server_that_is_replaced_at_one_address_serves_on_at_the_other() {
        let (both, one) = ([at("127.0.0.1:80", 0), at("127.0.0.1:81", 0)], [at("127.0.0.1:80", 0)]);
        let (old, new) = (server(1, &[], &both), server(2, &[1], &one));
        let names = [(2, "127.0.0.1:80"), (1, "127.0.0.1:81")];
        let found = scene(old.clone(), vec![new.clone()], &names).recover(Some(&[]));
        assert_eq!((found.orphan, found.unswitched), (Orphan::Alone, BTreeSet::new()));
        assert_eq!(found.addresses, addresses(&["127.0.0.1:81"]));
        assert_eq!(scene(new, vec![old], &names).recover(Some(&[])).orphan, Orphan::Alone);
    }

    #[test]
    fn an_orphan_that_listens_elsewhere_does_not_have_what_its_pidfiles_say() {
        let names = [(1, "127.0.0.1:80"), (1, "127.0.0.1:81"), (1, "a-name")];
        let found = scene(server(1, &[], &[at("127.0.0.1:81", 0)]), vec![], &names).recover(Some(&[]));
        assert_eq!(
            (found.held, found.misnamed),
            (addresses(&["127.0.0.1:81", "a-name"]), addresses(&["127.0.0.1:80"]))
        );
        let found = scene(server(1, &[], &[]), vec![], &names).recover(Some(&[]));
        assert_eq!((found.held.len(), found.misnamed), (3, BTreeSet::new()));
    }

    #[test]
    fn a_server_without_listeners_and_names_was_told_to_go() {
        assert_eq!(scene(server(1, &[], &[]), vec![], &[]).recover(Some(&[])).orphan, Orphan::Told);
    }

    #[test]
    fn servers_at_two_interfaces_have_nothing_to_do_with_each_other() {
        let (one, two) = (server(1, &[], &[at("127.0.0.1:80", 2)]), server(2, &[], &[at("127.0.0.1:80", 3)]));
        assert_eq!(scene(two, vec![one], &[]).recover(Some(&[])).orphan, Orphan::Alone);
    }

    #[test]
    fn one_process_at_a_time_claims_servers_that_were_orphans() {
        use Supervision::*;
        for (holders, alone, beside) in [
            (vec![], Way::Free, Way::Free),
            (vec![First], Way::Claim, Way::Claim),
            (vec![First, Later], Way::Claim, Way::Wait),
            (vec![First, Lost], Way::Care, Way::Wait),
        ] {
            assert_eq!((way(&holders, || true), way(&holders, || false)), (alone, beside), "{holders:?}");
        }
    }

    #[test]
    fn who_had_the_lock_of_an_orphan_has_it_first() {
        let here = [at("127.0.0.1:80", 0)];
        let new = Server { ever_orphaned: false, ..server(2, &[], &here) };
        let found = scene(server(1, &[], &here), vec![new], &[(1, "127.0.0.1:80")]).recover(Some(&[]));
        assert_eq!((found.orphan, found.heir), (Orphan::Alone, Some(pid(1002))));
        // Whom it has replaced never comes.
        let old = Server { ever_orphaned: false, ..server(1, &[], &here) };
        let found = scene(server(2, &[1], &here), vec![old], &[(2, "127.0.0.1:80")]).recover(Some(&[]));
        assert_eq!((found.orphan, found.heir), (Orphan::Follows, None));
    }
}
