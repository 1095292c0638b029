//! Which sockets the server holds, and what is left of it when its main process has ended.

use super::Server;
use crate::family::Descent;
use crate::procfs::{self, Snapshot, Stat};
use crate::sys::net::TcpSocket;
use crate::sys::process::Pid;
use std::collections::BTreeSet;
use std::io;

/// What is left of a server whose main process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// This process listens.
    Holder(Pid),
    /// Something listens at its addresses. At this moment it cannot be seen whether that belongs to the server.
    Unclear,
    /// Nothing that listens.
    Nobody,
}

impl Server {
    /// Those of the sockets that the server holds; an error if that cannot be seen.
    pub fn holds_of<'a>(&self, sockets: impl IntoIterator<Item = &'a TcpSocket>) -> io::Result<Vec<TcpSocket>> {
        let mut sockets: Vec<TcpSocket> = sockets.into_iter().cloned().collect();
        if sockets.is_empty() {
            return Ok(sockets);
        }
        let snapshot = Snapshot::take();
        snapshot.complete()?;
        let held = self.holders(&snapshot, &sockets)?.into_iter().flat_map(|(_, held)| held);
        let inodes: BTreeSet<u32> = held.map(|socket| socket.inode).collect();
        sockets.retain(|socket| inodes.contains(&socket.inode));
        Ok(sockets)
    }

    /// What is left of a server whose main process has ended: the topmost process that holds one of the sockets. `own`:
    /// the sockets at its addresses.
    pub fn rest(&self, sockets: &[TcpSocket], own: &[TcpSocket]) -> Rest {
        if sockets.is_empty() {
            return Rest::Nobody;
        }
        let snapshot = Snapshot::take();
        let depth = |pid: &Pid| snapshot.ancestry(pid.raw()).count();
        let Ok(holders) = self.holders(&snapshot, sockets) else { return Rest::Unclear };
        let holders = holders.into_iter().map(|(pid, _)| pid);
        match holders.min_by_key(|pid| (depth(pid), *pid)) {
            Some(pid) => Rest::Holder(pid),
            None if snapshot.complete().is_err() => Rest::Unclear,
            None if snapshot.misses_holder_of(own, self.family.group) => Rest::Unclear,
            None => Rest::Nobody,
        }
    }

    /// The processes of the server that hold some of the sockets, and which they hold.
    fn holders<'a>(&self, snapshot: &Snapshot, sockets: &'a [TcpSocket]) -> io::Result<Vec<(Pid, Vec<&'a TcpSocket>)>> {
        let mut holders = Vec::new();
        let mut members = self.family.members(snapshot);
        if !members.iter().any(|stat| stat.pid == self.pid) {
            members.extend(self.heirs(snapshot, sockets, &members)?);
        }
        let family = members.iter().map(|stat| stat.pid).collect();
        let mut hidden = Vec::new();
        // Stands for a main process that has changed its user, where /proc hides those of others (proc(5), hidepid).
        let unseen = Stat {
            pid: self.pid,
            parent: Pid::own().raw(),
            group: self.pid.raw(),
            session: self.family.session,
            start: self.start,
            zombie: false,
            threads: 1,
            exiting: false,
        };
        if members.iter().all(|stat| stat.pid != self.pid) && procfs::is_hidden(self.pid) {
            hidden.push(&unseen);
        }
        for stat in members {
            let Some(inodes) = procfs::find_held(stat.pid)? else {
                if !procfs::has_ended(stat.pid) {
                    hidden.push(stat);
                }
                continue;
            };
            let held: Vec<&TcpSocket> = sockets.iter().filter(|s| inodes.contains(&s.inode)).collect();
            if !held.is_empty() {
                held.iter().for_each(|s| self.seen.listener(s.inode));
                holders.push((stat.pid, held));
            }
        }
        holders.extend(self.holder_among(&hidden, &family, snapshot, sockets)?);
        Ok(holders)
    }

    /// The sockets of processes that may not be looked at because they have changed their user. A socket counts if it was
    /// seen to be the server's, or if it is new, belongs to one of these users, and no other process can hold it.
    fn holder_among<'a>(
        &self,
        hidden: &[&Stat],
        members: &BTreeSet<Pid>,
        snapshot: &Snapshot,
        sockets: &'a [TcpSocket],
    ) -> io::Result<Option<(Pid, Vec<&'a TcpSocket>)>> {
        let Some(holder) = hidden.iter().find(|stat| stat.pid == self.pid).or(hidden.first()) else { return Ok(None) };
        let own = nix::unistd::geteuid().as_raw();
        let mut users: BTreeSet<u32> = hidden.iter().filter_map(|stat| procfs::user(stat.pid)).collect();
        users.insert(own);
        let is_new = |s: &TcpSocket| self.before.as_ref().is_some_and(|before| !before.contains(&s.inode));
        let may = |s: &&TcpSocket| self.seen.had(s.inode) || is_new(s) && users.contains(&s.uid);
        let mut left: Vec<&TcpSocket> = sockets.iter().filter(may).collect();
        let is_serverswap = procfs::serverswaps();
        let mut others = snapshot.all().filter(|stat| !members.contains(&stat.pid));
        while let (false, Some(stat)) = (left.is_empty(), others.next()) {
            match procfs::find_held(stat.pid)? {
                // A supervisor has a copy for the time of a swap.
                Some(held) if left.iter().any(|s| held.contains(&s.inode)) && !is_serverswap(stat.pid) => {
                    left.retain(|s| !held.contains(&s.inode));
                }
                Some(_) => {}
                // It may hold what it made itself, and what it was given before it changed its user.
                None if !procfs::has_ended(stat.pid) => {
                    let user = procfs::user(stat.pid);
                    left.retain(|s| self.seen.had(s.inode) || Some(s.uid) != user && s.uid != own);
                }
                None => {}
            }
        }
        Ok((!left.is_empty()).then_some((holder.pid, left)))
    }

    /// The processes of an orphan's user that have listeners which the orphan had. Descent does not show those
    /// that lost their parent. An older process does not count: it may be the service manager that gave the listeners.
    pub(super) fn heirs<'a>(
        &self,
        snapshot: &'a Snapshot,
        sockets: &[TcpSocket],
        members: &[&Stat],
    ) -> io::Result<Vec<&'a Stat>> {
        let left: BTreeSet<u32> = sockets.iter().map(|s| s.inode).filter(|inode| self.seen.had(*inode)).collect();
        if left.is_empty() || !matches!(self.family.descent, Descent::Lost(_)) {
            return Ok(Vec::new());
        }
        let is_serverswap = procfs::serverswaps();
        let is_other = |stat: &&Stat| stat.start >= self.start && members.iter().all(|member| member.pid != stat.pid);
        let may = |stat: &&Stat| procfs::is_of_this_user(stat.pid) && !is_serverswap(stat.pid);
        let mut heirs = Vec::new();
        for stat in snapshot.all().filter(is_other) {
            if !procfs::find_held(stat.pid)?.unwrap_or_default().is_disjoint(&left) && may(&stat) {
                heirs.push(stat);
            }
        }
        Ok(heirs)
    }
}
