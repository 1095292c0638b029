//! Whether the new server accepts what comes to its sockets of one place: probes are sent there, and followed.

use super::group::{Fetch, Group};
use super::member::{Member, Proof};
use crate::place::{Families, Place};
use crate::sys::clock::Instant;
use crate::sys::net::{self, Diag, Ends, Listeners};
use crate::sys::steer::Probe;
use std::collections::BTreeSet;
use std::io;
use std::net::TcpStream;
use std::time::Duration;

/// The same for a connection of a preview: all else waits for it.
const PREVIEW_ARRIVES: Duration = Duration::from_millis(50);

/// The number of lo in every network namespace (LOOPBACK_IFINDEX of the kernel).
const LOOPBACK: u32 = 1;
/// How long a probe takes to connect on this machine at most, unless something keeps it away.
const PROBE_ARRIVES: Duration = Duration::from_millis(500);

impl Group {
    /// Moves the probes of the new sockets on, as far as they get now.
    pub(super) fn step(&mut self, diag: Option<&Diag>, listeners: &Listeners, fetch: Fetch<'_>) -> io::Result<()> {
        let is_connected = |p: &Proof| matches!(p, Proof::Probing(probe, _) if probe.connected().is_ok_and(|is| is));
        // A probe could get to an old server.
        if self.members.mixes(Member::is_new) {
            self.unreachable = Some("sockets come and go too fast to be followed".into());
            return Ok(());
        }
        // A probe of this machine connects at once, and moves on once more.
        for _ in 0..2 {
            let has_ended = self.follow_probes(diag, listeners);
            let is_begun = self.proofs().any(|proof| matches!(proof, Proof::Begun(_)));
            if has_ended || is_begun {
                self.steer(fetch).inspect_err(|e| self.unreachable = Some(unreachable(e)))?;
            }
            if is_begun {
                self.send_probes(fetch);
            }
            if !self.proofs().any(is_connected) {
                break;
            }
        }
        Ok(())
    }

    /// A connection to one of the new sockets, whoever gets the others.
    pub(super) fn preview(&mut self, fetch: Fetch<'_>) -> io::Result<TcpStream> {
        // It must not get to an old server.
        if self.members.mixes(Member::is_new) || self.has_olds() && !self.in_order {
            return Err(io::Error::other("sockets come and go too fast to be followed"));
        }
        let news: Vec<usize> = (0..self.members.len()).filter(|at| self.members[*at].is_new()).collect();
        // Each in its turn.
        self.previewed = self.previewed.wrapping_add(1);
        let at = news.get(self.previewed % news.len().max(1)).ok_or(io::ErrorKind::NotConnected)?;
        let inode = self.members[*at].inode;
        let preview = probe(&self.place).map_err(io::Error::other)?;
        let program = self.program_with(Some((&preview, *at as u32)));
        self.put(&program, fetch)?;
        let guard = if self.guarded { fetch.handles(&[inode].into()).pop() } else { None };
        let admitted = guard.map_or(Ok(true), |guard| guard.refuse_newcomers(Some(&preview)));
        let stream = admitted.and_then(|_| preview.connect()).and_then(|()| preview.into_stream(PREVIEW_ARRIVES));
        let _ = self.steer(fetch);
        stream
    }

    /// Begins probes, and looks how far the sent ones are. `true` if one has ended for which the port is still steered.
    fn follow_probes(&mut self, diag: Option<&Diag>, listeners: &Listeners) -> bool {
        let mut has_ended = false;
        let (place, most) = (self.place, self.probed());
        let is_full = listeners.at_place(&place).any(|s| s.is_full());
        for proof in self.members.iter_mut().filter_map(Member::proof_mut).take(most) {
            match proof {
                Proof::None => match probe(&place) {
                    Ok(probe) => *proof = Proof::Begun(probe),
                    Err(why) => self.unreachable = Some(why),
                },
                Proof::Probing(probe, since) => match probe.connected() {
                    Ok(false) if since.elapsed() > PROBE_ARRIVES => {
                        self.unreachable = (!is_full).then(|| "a probe gets no answer".into());
                    }
                    Ok(false) => {}
                    Ok(true) => {
                        let ends = Ends { interface: place.device, ..probe.ends() };
                        *proof = Proof::Queued(ends, Instant::now());
                        (has_ended, self.unreachable) = (true, None);
                    }
                    Err(e) => {
                        *proof = Proof::None;
                        (has_ended, self.unreachable) = (true, Some(unreachable(&e)));
                    }
                },
                Proof::Queued(ends, _) => {
                    let found = diag.map_or_else(|| net::find_in_table(*ends), |diag| diag.find(*ends));
                    // What cannot be asked now is asked at the next look.
                    if found.is_ok_and(|found| !found.is_some_and(|socket| socket.is_unaccepted())) {
                        *proof = Proof::Accepted(Instant::now());
                    }
                }
                Proof::Begun(_) | Proof::Accepted(_) | Proof::Proven => {}
            }
        }
        has_ended
    }

    /// Sends the probes for which the port is steered now.
    fn send_probes(&mut self, fetch: Fetch<'_>) {
        let own = if self.guarded { fetch.handles(&self.inodes_of_news()) } else { Vec::new() };
        for member in self.members.iter_mut() {
            let guard = own.iter().find(|socket| socket.inode().is_ok_and(|inode| inode == member.inode));
            // A probe that could not get there waits for the next look.
            if let Some(proof @ Proof::Begun(_)) = member.proof_mut()
                && (guard.is_some() || !self.guarded)
                && let Proof::Begun(probe) = std::mem::replace(proof, Proof::None)
            {
                let admitted = guard.map_or(Ok(true), |guard| guard.refuse_newcomers(Some(&probe)));
                match admitted.and_then(|_| probe.connect()) {
                    Ok(()) => *proof = Proof::Probing(probe, Instant::now()),
                    Err(e) => self.unreachable = Some(unreachable(&e)),
                }
            }
        }
    }

    /// Goes on with those new sockets that the server still holds. They are proven if these are all, and all have accepted.
    pub(super) fn check(&mut self, held: &BTreeSet<u32>, fetch: Fetch<'_>) {
        let is_steady = |p: &Proof| matches!(p, Proof::Proven) || matches!(p, Proof::Accepted(_)) && p.is_due();
        if !self.inodes_of_news().is_subset(held) {
            self.follow(held, fetch);
        } else if self.proofs().take(self.probed()).all(is_steady) {
            self.trust();
        }
    }

    /// How many of the new sockets are probed. If their order is unknown, no probe can be aimed: one has to do.
    fn probed(&self) -> usize {
        if self.in_order { usize::MAX } else { 1 }
    }

    /// Takes the new sockets for proven: they are, or no proof is wanted.
    pub(super) fn trust(&mut self) {
        self.members.iter_mut().filter_map(Member::proof_mut).for_each(|proof| *proof = Proof::Proven);
    }

    pub(super) fn is_proven(&self) -> bool {
        self.proofs().all(|proof| matches!(proof, Proof::Proven))
    }
}

/// A probe of a listener at this place, or why none gets there.
fn probe(place: &Place) -> Result<Probe, String> {
    let ip = place.address.ip();
    // What this machine sends to another address of its own comes in by lo in IPv4 alone.
    if place.device > LOOPBACK && (ip.is_ipv4() || ip.is_unspecified() || ip.is_loopback()) {
        return Err("no probe of this machine gets to the interface it is bound to".into());
    }
    Probe::new(place.address, place.families == Families::Both).map_err(|e| unreachable(&e))
}

/// Why a probe did not get to a server that listens: nothing that the server has done.
fn unreachable(e: &io::Error) -> String {
    format!("a probe cannot get there: {}", crate::error::reason(e))
}
