//! Finding the process that listens at a port without a pidfile: a server that never said a word, or a stranger.

#![forbid(unsafe_code)]

use super::revive::ask_to_write_again;
use super::{Asker, Found, Holder, Mine};
use crate::address::Address;
use crate::error::reason;
use crate::procfs::{self, MARK, Snapshot};
use crate::rundir::RunDir;
use crate::sys::net::{self, TcpSocket};
use crate::sys::pid::Pid;
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
        let is_clear = !ask_to_write_again(self.path())
            && snapshot.complete().is_ok()
            && (stranger.is_some() || !snapshot.misses_holder_of(&sockets, None));
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

    /// A sentence about the process that listens at an address without being a server of this run directory, if there is
    /// one.
    pub fn stranger_at(&self, address: &Address) -> Option<String> {
        let Address::Tcp(_, port) = *address else { return None };
        let sockets: Vec<TcpSocket> = net::listeners_at(port).ok()?.at_any([address]);
        let mine = Mine { owns: &|_| Ok(false), holds: &|_| Ok(false) };
        let nobody = Asker { me: Pid::own(), mine, places: &[] };
        match self.holder_among(&sockets, &Snapshot::take(), &nobody).ok()? {
            PortHolder::Stranger(pid) => Some(self.stranger(pid)),
            PortHolder::Asker | PortHolder::Server(_) | PortHolder::Unseen => None,
        }
    }

    /// A sentence about a process that holds the port and belongs to no server here, and how to go on.
    fn stranger(&self, pid: Pid) -> String {
        let mark = procfs::environment(pid, MARK);
        let dir = mark.as_ref().and_then(|socket| Path::new(socket).parent());
        let what = match dir {
            Some(dir) if dir == self.path() => "what is left of a server that was killed; stop it".to_owned(),
            Some(dir) => format!("a server of the run directory {dir}; use --run-dir {dir}", dir = dir.display()),
            None => "which serverswap did not start; stop it once, and start the server again".to_owned(),
        };
        format!("the port is held by pid {pid} ({}), {what}", procfs::command_line(pid))
    }
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
