//! Listeners that a service manager has passed on, as for a socket unit. All generations of the server have the same ones,
//! and nobody is steered: that they listen proves nothing. A new server is up when it says so, or when it has accepted a
//! probe on each of them. The server before it accepts probes too, so that several are sent.

#![forbid(unsafe_code)]

use super::live::Passed;
use super::state::Supervisor;
use crate::place::Families;
use crate::swap::SpeakerId;
use crate::sys::net::{self, TcpSocket};
use crate::sys::steer::Probe;
use std::io;

/// How many probes wait for somebody to accept them.
const PROBES: usize = 4;

impl Supervisor {
    /// Looks whether a server that is not up has accepted probes on the listeners that were passed on; `true` if that is
    /// still to come.
    pub(super) fn look_at_passed(&mut self) -> bool {
        let probes = self.run.trial.probe;
        let Some(live) = self.live.as_mut().filter(|live| probes && live.machine.is_starting()) else { return false };
        let Ok(listeners) = net::passed_listeners() else { return true };
        if listeners.is_empty() {
            return false;
        }
        let Some(own) = live.server.socket_inodes() else { return true };
        for listener in &listeners {
            let Passed::Probed(probes) = live.opening.passed.entry(listener.inode).or_default() else { continue };
            let acceptor = |probe: &Probe| match net::find(probe.ends()) {
                Ok(Some(socket)) if !socket.is_unaccepted() => Some(socket.inode),
                Ok(_) | Err(_) => None,
            };
            let is_its = |probe: &Probe| acceptor(probe).is_some_and(|inode| own.contains(&inode));
            if probes.iter().any(is_its) {
                live.opening.passed.insert(listener.inode, Passed::Accepted);
                continue;
            }
            // What another server has accepted is closed there again.
            probes.retain(|probe| acceptor(probe).is_none());
            while probes.len() < PROBES
                && let Ok(probe) = send(listener)
            {
                probes.push(probe);
            }
        }
        let is_accepted =
            |listener: &TcpSocket| matches!(live.opening.passed.get(&listener.inode), Some(Passed::Accepted));
        if !listeners.iter().all(is_accepted) {
            return true;
        }
        live.opening.passed.clear();
        let speaker = SpeakerId(live.sockets.control);
        self.said_up(speaker);
        false
    }
}

fn send(listener: &TcpSocket) -> io::Result<Probe> {
    let place = listener.place();
    let probe = Probe::new(place.address, place.families == Families::Both)?;
    probe.connect().map(|()| probe)
}
