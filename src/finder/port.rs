//! Finding the process that listens at a port without a pidfile: a server that never said a word, or a stranger.

use super::revive::ask_to_write_again;
use super::{Asker, Found, Holder};
use crate::address::Address;
use crate::error::reason;
use crate::procfs::{self, MARK, Snapshot};
use crate::rundir::RunDir;
use crate::sys::net::{self, TcpSocket};
use crate::sys::pid::Pid;
use crate::sys::user;
use std::path::Path;

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
        let mut stranger = None;
        for stat in snapshot.all() {
            let held = procfs::find_held(stat.pid).map_err(unclear)?.unwrap_or_default();
            if !sockets.iter().any(|socket| held.contains(&socket.inode)) {
                continue;
            }
            if (asker.owns)(stat.pid).map_err(unclear)? {
                return Ok(None);
            }
            if let Some(holder) = self.server_of(stat.pid, &snapshot).map_err(unclear)? {
                return Ok(Some(holder));
            }
            stranger.get_or_insert(stat.pid);
        }
        // The asker's own process may be one that may not be looked at.
        if stranger.is_none() && (asker.holds)(&sockets).map_err(unclear)? {
            return Ok(None);
        }
        let why = match stranger {
            Some(pid) => self.stranger(pid),
            None => format!("the port is held by a program of the user {}", user::name(sockets[0].uid)),
        };
        let is_clear = !ask_to_write_again(self.path())
            && snapshot.complete().is_ok()
            && (stranger.is_some() || !snapshot.misses_holder_of(&sockets, None));
        Err(if is_clear { Found::Blocked(why) } else { Found::Unclear(why) })
    }

    /// The server of this run directory that a process belongs to, or that has left it behind.
    fn server_of(&self, pid: Pid, snapshot: &Snapshot) -> std::io::Result<Option<Holder>> {
        if let Some(holder) = snapshot.ancestry(pid.raw()).find_map(|ancestor| self.holder(ancestor.pid).ok()) {
            return Ok(Some(holder));
        }
        // What a server left behind is a child of its supervisor.
        let is_above = |above: Pid| snapshot.ancestry(pid.raw()).any(|ancestor| ancestor.pid == above);
        let parents = self.servers()?.into_iter().filter(|other| !other.is_orphan && is_above(other.supervisor));
        Ok(parents.max_by_key(|other| other.generation))
    }

    /// A sentence about the process that listens at an address without being a server of this run directory, if there is
    /// one.
    pub fn stranger_at(&self, address: &Address) -> Option<String> {
        let Address::Tcp(_, port) = *address else { return None };
        let sockets: Vec<TcpSocket> = net::listeners_at(port).ok()?.at_any([address]);
        let snapshot = Snapshot::take();
        let holds = |pid: Pid| {
            let held = procfs::find_held(pid).ok().flatten().unwrap_or_default();
            sockets.iter().any(|socket| held.contains(&socket.inode))
        };
        let stranger = snapshot.all().map(|stat| stat.pid).find(|pid| !sockets.is_empty() && holds(*pid))?;
        self.server_of(stranger, &snapshot).ok()?.is_none().then(|| self.stranger(stranger))
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
