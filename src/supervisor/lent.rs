//! Listeners that an old server opens while it is being replaced: the supervisor of the new server lets them join, since
//! whoever steers has to know the order of all members.

use super::held::{Waiting, errno_of};
use super::live::Live;
use super::state::Supervisor;
use super::threads::Id;
use crate::protocol::PeerWord;
use crate::swap::ClaimerId;
use crate::sys::steer::Socket;
use nix::errno::Errno;
use std::time::Instant;

impl Live {
    /// When a listener that waits for the supervisor of a new server is let listen all the same.
    pub(super) fn lent_until(&self) -> Option<Instant> {
        self.opening.lent.iter().find(|lent| lent.waiting.is_some()).map(|lent| lent.until)
    }
}

impl Supervisor {
    /// A listener of an old server joins.
    fn join_old(&mut self, id: Id, socket: &Socket, backlog: i32) -> std::io::Result<()> {
        let live = self.live.as_mut().ok_or(Errno::ESRCH)?;
        if live.joining.lent.is_some() {
            // Somebody else steers, and does not know of it.
            return Err(Errno::EADDRINUSE.into());
        }
        live.joining.sharing.join_old(id, socket.try_clone()?, backlog, &live.server)
    }

    /// The supervisor of an old server asks us to let a listener of that join.
    pub(super) fn joins(&mut self, id: Id, backlog: i32) {
        let Some(old) = self.peers.olds.get_mut(&id) else { return };
        let socket = old.sockets.pop().map(Socket::new);
        let result = match socket {
            Some(socket) if socket.is_tcp() => self.join_old(id, &socket, backlog),
            _ => Err(Errno::EBADF.into()),
        };
        self.tell(id, &PeerWord::Joined(errno_of(result)));
    }

    /// The supervisor of the new server has let the oldest listener that we sent it join.
    pub(super) fn joined(&mut self, claimer: ClaimerId, errno: i32) {
        let Some(live) = self.live.as_mut() else { return };
        if live.machine.is_locked_by(claimer)
            && let Some(lent) = live.opening.lent.pop_front()
        {
            let Some(Waiting { call, socket, .. }) = lent.waiting else { return };
            drop(socket);
            call.conclude(if errno == 0 { Ok(()) } else { Err(Errno::from_raw(errno).into()) });
        }
    }
}
