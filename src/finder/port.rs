//! Finding the process that listens at a port without a pidfile: a server that never said a word, or a stranger.

#![forbid(unsafe_code)]

use super::{Asker, Found, Holder};
use crate::address::Address;
use crate::error::reason;
use crate::procfs::{self, MARK, Snapshot, Stat};
use crate::rundir::RunDir;
use crate::sys::net::{self, TcpSocket};
use crate::sys::pid::Pid;
use std::collections::BTreeSet;
use std::path::Path;

/// The holder of a port that no pidfile names.
enum PortHolder {
    /// The asking server.
    Asker,
    /// A server of this run directory, or a process that such a server left behind.
    Server(Box<Holder>),
    /// Another process; the first that was found.
    Stranger(Pid),
    /// No process that can be looked at.
    Unseen,
}

impl RunDir {
    /// The server that listens at the address without a pidfile; `None` if it is free, or the asker's own. The error
    /// tells why the address cannot be had.
    pub(super) fn port_holder(&self, address: &Address, asker: &Asker<'_>) -> Result<Option<Holder>, Found> {
        let Address::Tcp(_, port) = *address else { return Ok(None) };
        let unclear = |e: std::io::Error| Found::Unclear(format!("unable to see who listens: {}", reason(&e)));
        let mut sockets: Vec<TcpSocket> = net::listeners_at(port).map_err(unclear)?.at_any([address]);
        let places = asker.places;
        sockets.retain(|s| places.is_empty() || places.iter().any(|(place, _)| place.conflicts(&s.place())));
        if sockets.is_empty() {
            return Ok(None);
        }
        let snapshot = Snapshot::take();
        let stranger = match self.holder_among(&sockets, &snapshot, asker).map_err(unclear)? {
            PortHolder::Asker => return Ok(None),
            PortHolder::Server(holder) => return Ok(Some(*holder)),
            PortHolder::Stranger(pid) => Some(pid),
            // The asker's own process may be one that may not be looked at.
            PortHolder::Unseen if (asker.mine.holds)(&sockets).map_err(unclear)? => return Ok(None),
            PortHolder::Unseen => None,
        };
        let why = match stranger {
            Some(pid) => self.stranger(pid),
            None => format!("the port is held by a program of the user {}", user_name(sockets[0].uid)),
        };
        let is_clear =
            snapshot.complete().is_ok() && (stranger.is_some() || !snapshot.misses_holder_of(&sockets, None));
        Err(if is_clear { Found::Blocked(why) } else { Found::Unclear(why) })
    }

    /// The first process that holds one of the sockets and belongs to a server; if there is none, the first stranger.
    fn holder_among(
        &self,
        sockets: &[TcpSocket],
        snapshot: &Snapshot,
        asker: &Asker<'_>,
    ) -> std::io::Result<PortHolder> {
        let mut stranger = None;
        for stat in snapshot.all() {
            let held = procfs::find_sockets(stat.pid)?.unwrap_or_default();
            if !sockets.iter().any(|s| held.iter().any(|(_, inode)| *inode == s.inode)) {
                continue;
            }
            if (asker.mine.owns)(stat.pid)? {
                return Ok(PortHolder::Asker);
            }
            for ancestor in snapshot.ancestry(stat.pid.raw()) {
                if let Ok(holder) = self.holder(ancestor.pid) {
                    return Ok(PortHolder::Server(Box::new(holder)));
                }
            }
            // What a server left behind is a child of its supervisor.
            let is_above = |pid: Pid| snapshot.ancestry(stat.pid.raw()).any(|ancestor| ancestor.pid == pid);
            let parents = self.servers()?.into_iter().filter(|other| !other.is_orphan && is_above(other.supervisor));
            if let Some(holder) = parents.max_by_key(|other| other.generation) {
                return Ok(PortHolder::Server(Box::new(holder)));
            }
            stranger.get_or_insert(stat.pid);
        }
        Ok(stranger.map_or(PortHolder::Unseen, PortHolder::Stranger))
    }

    /// A sentence about a process that holds the port and belongs to no server here.
    fn stranger(&self, pid: Pid) -> String {
        let mark = procfs::environment(pid, MARK);
        let dir = mark.as_ref().and_then(|socket| Path::new(socket).parent());
        let what = match dir {
            Some(dir) if dir == self.path() => "what is left of a server that was killed".to_owned(),
            Some(dir) => format!("a server of the run directory {}", dir.display()),
            None => "which serverswap did not start".to_owned(),
        };
        format!("the port is held by pid {pid} ({}), {what}", procfs::command_line(pid))
    }
}

/// Whether an orphan has the address that its pidfile names: it or a descendant of it listens there, or nowhere at all.
/// An orphan that listens nowhere was told to bind and has not done so yet, or is leaving. For a name nothing can be
/// asked.
pub(super) fn has(pid: Pid, address: &Address) -> bool {
    if let Address::Name(_) = address {
        return true;
    }
    // What cannot be seen does not speak against the pidfile.
    let Ok(listeners) = net::listeners() else { return true };
    let snapshot = Snapshot::take();
    let mut held = BTreeSet::new();
    let is_its = |stat: &&Stat| snapshot.ancestry(stat.pid.raw()).any(|a| a.pid == pid || a.group == pid.raw());
    for stat in snapshot.all().filter(is_its) {
        match procfs::find_held(stat.pid) {
            Ok(Some(inodes)) => held.extend(inodes),
            Ok(None) if procfs::has_ended(stat.pid) => {}
            Ok(None) | Err(_) => return true,
        }
    }
    let own: Vec<&TcpSocket> = listeners.all().filter(|s| held.contains(&s.inode)).collect();
    snapshot.complete().is_err() || own.is_empty() || own.iter().any(|s| s.local.collides(address))
}

/// The name of a user, or the number if there is no name.
pub fn user_name(uid: u32) -> String {
    let by_libc = || Some(nix::unistd::User::from_uid(uid.into()).ok()??.name);
    let is_user = |line: &&str| line.split(':').nth(2) == Some(&uid.to_string());
    let name_of = |line: &str| line.split(':').next().map(str::to_owned);
    let by_file = || std::fs::read_to_string("/etc/passwd").ok()?.lines().find(is_user).and_then(name_of);
    // A static program would load name services that were built for another libc.
    let name = if cfg!(target_feature = "crt-static") { by_file() } else { by_libc() };
    name.unwrap_or_else(|| uid.to_string())
}
