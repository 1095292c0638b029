//! `src/supervisor/peers.rs`: what other supervisors and operators say.

use super::Supervisor;
use crate::protocol::{HolderWord, PEER_VERSION, PeerWord, Word};
use crate::swap::{ClaimerId, Event, OldId};
use crate::world::land::Land;
use crate::world::streams::Read;

impl Supervisor {
    /// Something came on a connection, or its end.
    pub fn read(&mut self, land: &mut Land, stream: u64) {
        let Some(connection) = land.streams.get_mut(&stream) else { return };
        let (is_ours, old) = (connection.claimer == self.pid, connection.old);
        let pipe = if is_ours { &mut connection.back } else { &mut connection.forth };
        match pipe.read() {
            Read::Lines(files, lines) => {
                if is_ours && let Some(old) = self.peers.olds.get_mut(&old) {
                    old.sockets.extend(files);
                }
                for line in lines.into_iter().flatten() {
                    match is_ours {
                        true => HolderWord::parse(&line).into_iter().for_each(|word| self.holder_said(land, old, word)),
                        false => PeerWord::parse(&line).into_iter().for_each(|word| self.peer_said(land, stream, word)),
                    }
                }
            }
            Read::End => {
                land.close(stream, self.pid);
                if is_ours && self.peers.olds.get(&old).is_some_and(|old| old.stream == Some(stream)) {
                    self.old_closed(old);
                } else if self.peers.claimers.remove(&stream).is_some() {
                    self.claimer_closed(land, ClaimerId(stream));
                }
            }
        }
        self.settle(land);
    }

    pub(super) fn tell(&mut self, land: &mut Land, claimer: ClaimerId, word: &HolderWord) {
        land.write(claimer.0, self.pid, word, Vec::new());
    }

    fn peer_said(&mut self, land: &mut Land, id: u64, word: PeerWord) {
        if self.live.is_none() {
            return;
        }
        let claimer = ClaimerId(id);
        let named = self.peers.claimers.entry(id).or_default();
        match word {
            PeerWord::Peer(_) => self.tell(land, claimer, &HolderWord::Peer(PEER_VERSION)),
            PeerWord::Claim => self.claims(land, claimer),
            PeerWord::Takedown(address) => self.feed(Event::AskedTakedown(claimer, address)),
            PeerWord::Drain => self.feed(Event::AskedDrain(claimer)),
            PeerWord::Held => self.feed(Event::OldHeld(claimer)),
            PeerWord::Stay => self.feed(Event::AskedStay(claimer)),
            PeerWord::Stop => self.feed(Event::AskedStop(claimer)),
            PeerWord::Joined(errno) => self.joined(land, claimer, errno),
            PeerWord::Superseded(hurry) => {
                self.feed(Event::Superseded);
                if hurry {
                    self.feed(Event::TimeIsUp);
                }
            }
            PeerWord::Down(address) => named.push(address),
            PeerWord::Commit => {
                let downs = named.clone();
                self.feed(Event::Down(claimer, downs));
            }
            PeerWord::Undo => self.feed(Event::Undo(claimer)),
            PeerWord::Confirm => self.feed(Event::Confirm(claimer)),
            PeerWord::Reload(_) | PeerWord::Status => {}
        }
    }

    fn holder_said(&mut self, land: &mut Land, id: u64, word: HolderWord) {
        let Some(old) = self.peers.olds.get_mut(&id) else { return };
        let old_id = OldId(id);
        let event = match word {
            HolderWord::Peer(_) => Event::Attended(old_id),
            HolderWord::Holds(address) => return old.holds.push(address),
            HolderWord::Sockets(count) => return old.promised = old.promised.max(count),
            HolderWord::Order(letters) => return old.order.push_str(&letters),
            HolderWord::Locked => {
                let holds = std::mem::take(&mut old.holds);
                return self.locked(land, id, holds);
            }
            HolderWord::Joins(backlog) => return self.joins(land, id, backlog),
            HolderWord::Released(address) => {
                let asked = PeerWord::Takedown(address.clone());
                old.asked.retain(|word| *word != asked);
                Event::OldReleased(old_id, address)
            }
            HolderWord::Refused(why) => Event::OldRefused(old_id, why),
            HolderWord::Gone => return self.old_gone(land, id),
            HolderWord::Waits(_)
            | HolderWord::Said(_)
            | HolderWord::Error(_)
            | HolderWord::Reloaded
            | HolderWord::Done
            | HolderWord::Failed(..)
            | HolderWord::Field(..)
            | HolderWord::End => return,
        };
        self.feed(event);
    }
}
