//! Whoever talks to this supervisor over a socket: its server, other serverswaps, and the supervisors
//! of old servers.

use super::front::being_stopped;
use super::state::{Conn, Role, Supervisor, Waiter};
use super::threads::{self, Id, Link};
use crate::protocol::{
    CopyWord, FrontWord, HolderWord, PEER_VERSION, PeerWord, ServerWord, SupervisorWord, Surroundings, Word,
};
use crate::swap::{self, ClaimerId, Level, OldId, SpeakerId};
use std::sync::Arc;

impl Supervisor {
    pub(super) fn opened(&mut self, id: Id, link: Arc<Link>) {
        let mut conn = Conn::new(link, Role::New);
        if self.live.is_none() {
            return conn.out.close();
        }
        let is_control = |live: &&super::Live| self.peers.conns.contains_key(&live.sockets.control);
        let controls = self.live.iter().filter(is_control).count();
        let is_limited = |conn: &Conn| conn.role.is_limited();
        let taken = self.peers.conns.values().filter(|conn| is_limited(conn)).count().saturating_sub(controls);
        let most = threads::connections_max();
        if taken >= most {
            // Of the connections without a word that counts, the oldest has had the most time to say one.
            let idle = self.peers.conns.iter().find(|(_, conn)| is_limited(conn) && !conn.counts).map(|(&id, _)| id);
            match idle.and_then(|id| self.peers.conns.remove(&id)) {
                Some(idle) => one_too_many(&idle),
                None if taken >= most + threads::CONNECTIONS_SPARE => return one_too_many(&conn),
                None => conn.spare = true,
            }
        }
        self.peers.conns.insert(id, conn);
    }

    pub(super) fn connected(&mut self, id: Id, link: Arc<Link>) {
        let conn = Conn::ours(link, Role::Holder);
        if self.peers.olds.contains_key(&id) {
            conn.out.send_all([PeerWord::Peer(PEER_VERSION), PeerWord::Claim]);
            self.peers.conns.insert(id, conn);
        } else {
            conn.out.close();
        }
    }

    pub(super) fn closed(&mut self, id: Id) {
        let conn = self.peers.conns.remove(&id);
        if let Some(conn) = &conn {
            // The other end is done. It reads no more, or finds the rest in the kernel: no thread of ours may wait for
            // that.
            conn.out.close();
        }
        self.waits_no_more(id);
        match conn {
            Some(Conn { role: Role::Server, .. }) => {
                let control = self.live.as_ref().map(|live| live.sockets.control);
                // The end of the control fd says nothing: what counts is whether the process lives.
                if control != Some(id) {
                    self.feed(swap::Event::SpeakerGone(SpeakerId(id)));
                }
            }
            Some(Conn { role: Role::Peer(_), .. }) => self.claimer_closed(ClaimerId(id)),
            Some(Conn { role: Role::New, .. }) => {}
            Some(Conn { role: Role::Copy, .. }) => self.copy_is_silent(id),
            Some(Conn { role: Role::Front, .. }) => self.front_is_gone(),
            // A connection that never came to be has no entry.
            Some(Conn { role: Role::Holder, .. }) | None => {
                // An old server that lingers has ended: only a listener of it is still open.
                if self.peers.olds.get(&id).is_none_or(|old| old.lingers.is_some()) {
                    return;
                }
                self.lose_lock(id);
                if self.follow_orphan(id, Some(threads::HANGS_UP)) {
                    self.feed(swap::Event::OldSilent(OldId(id)));
                } else {
                    self.peers.olds.remove(&id);
                    self.feed(swap::Event::OldLost(OldId(id)));
                }
            }
        }
    }

    pub(super) fn line(&mut self, id: Id, line: Result<String, &'static str>) {
        let Some(conn) = self.peers.conns.get_mut(&id) else { return };
        if let Role::New = conn.role {
            let peer = line.as_ref().is_ok_and(|line| line.starts_with("PEER "));
            conn.role = if peer { Role::Peer(Vec::new()) } else { Role::Server };
            if conn.spare && !peer {
                one_too_many(conn);
                self.peers.conns.remove(&id);
                return;
            }
        }
        let error = line.as_ref().is_ok_and(|line| line.starts_with("ERROR"));
        match conn.role {
            Role::New => {}
            Role::Server => match parse::<ServerWord>(line) {
                Ok(word) => {
                    // READY is answered here, and TAKEDOWN told later. The other words need the connection no more.
                    conn.counts |= matches!(word, ServerWord::Ready(_) | ServerWord::Takedown(_));
                    match word {
                        ServerWord::Up => self.said_up(SpeakerId(id)),
                        ServerWord::Released(address) => self.said_released(SpeakerId(id), address),
                        word => self.feed(swap::Event::Said(SpeakerId(id), word)),
                    }
                }
                // An ERROR is no question: to answer it with another could go on for ever.
                Err(_) if error => {}
                Err(why) => conn.out.send_if_read(&SupervisorWord::Error(why)),
            },
            Role::Peer(_) => match parse::<PeerWord>(line) {
                Ok(word) => self.peer_said(id, word),
                Err(why) => conn.out.send_if_read(&HolderWord::Error(why)),
            },
            Role::Copy => {
                if let Ok(word) = parse::<CopyWord>(line) {
                    self.copy_said(id, word);
                }
            }
            Role::Front => {
                if let Ok(word) = parse::<FrontWord>(line) {
                    self.front_said(word);
                }
            }
            // A word of a later version changes nothing.
            Role::Holder => {
                if let Ok(word) = parse::<HolderWord>(line) {
                    self.holder_said(id, word);
                }
            }
        }
    }

    fn peer_said(&mut self, id: Id, word: PeerWord) {
        let named = |conn: &Conn| if let Role::Peer(downs) = &conn.role { downs.len() } else { 0 };
        let full = matches!(word, PeerWord::Down(_))
            && self.peers.conns.values().map(named).sum::<usize>() >= swap::ADDRESSES_MAX;
        let Some(conn) = self.peers.conns.get_mut(&id) else { return };
        let claimer = ClaimerId(id);
        conn.counts |= matches!(word, PeerWord::Claim | PeerWord::Commit | PeerWord::Reload(_));
        match word {
            PeerWord::Peer(_) => conn.out.send(&HolderWord::Peer(PEER_VERSION)),
            PeerWord::Claim => self.claims(claimer),
            PeerWord::Takedown(address) => self.feed(swap::Event::AskedTakedown(claimer, address)),
            PeerWord::Drain => self.feed(swap::Event::AskedDrain(claimer)),
            PeerWord::Held => self.feed(swap::Event::OldHeld(claimer)),
            PeerWord::Stay => self.feed(swap::Event::AskedStay(claimer)),
            PeerWord::Stop => self.feed(swap::Event::AskedStop(claimer)),
            PeerWord::Joined(errno) => self.joined(claimer, errno),
            PeerWord::Superseded(hurry) => {
                self.feed(swap::Event::Superseded);
                if hurry {
                    self.feed(swap::Event::TimeIsUp);
                }
            }
            PeerWord::Down(_) if full => conn.out.send_if_read(&HolderWord::Error("too many addresses".into())),
            PeerWord::Down(address) => {
                if let Role::Peer(downs) = &mut conn.role {
                    downs.push(address);
                }
            }
            PeerWord::Commit => {
                // The addresses are kept, and count against the limit, as long as the connection lasts.
                if let Role::Peer(downs) = &conn.role {
                    let downs = downs.clone();
                    self.feed(swap::Event::Down(claimer, downs));
                }
            }
            PeerWord::Reload(_) if self.caller.is_stopping() || self.reloads.leave_said => {
                conn.out.send(&being_stopped())
            }
            PeerWord::Reload(surroundings) => {
                let caller = conn.out.peer().filter(|_| surroundings == Surroundings::Callers);
                self.want_reload(Some(Waiter::Peer(id)), caller);
            }
            PeerWord::Undo => self.feed(swap::Event::Undo(claimer)),
            PeerWord::Confirm => self.feed(swap::Event::Confirm(claimer)),
            PeerWord::Status => self.tell_status(id),
        }
    }

    fn tell_status(&self, id: Id) {
        let (Some(conn), Some(live)) = (self.peers.conns.get(&id), self.live.as_ref()) else { return };
        let field = |key: &str, value: String| HolderWord::Field(key.into(), value);
        let command = self.run.line();
        let fields = [
            field("pid", live.server.pid.to_string()),
            field("generation", live.names.number.to_string()),
            field("state", live.state()),
            field("trial", u8::from(live.machine.is_on_trial()).to_string()),
            field("mode", if live.is_shared() { "shared" } else { "plain" }.into()),
            field("text", live.status_text.clone()),
            field("log", self.caller.output.shown().map_or("-".into(), |path| path.to_string_lossy().into_owned())),
            field("command", command),
        ];
        let holds = live.holds().into_iter().map(HolderWord::Holds);
        conn.out.send_all_if_read(fields.into_iter().chain(holds).chain([HolderWord::End]));
    }

    fn holder_said(&mut self, id: Id, word: HolderWord) {
        let Some(old) = self.peers.olds.get_mut(&id) else { return };
        let old_id = OldId(id);
        let event = match word {
            HolderWord::Peer(_) => swap::Event::Attended(old_id),
            HolderWord::Holds(address) => {
                if old.holds.len() < swap::ADDRESSES_MAX {
                    old.holds.push(address);
                }
                return;
            }
            // The files themselves come by another way; first of all how many there are, then each part of them.
            HolderWord::Sockets(count) => {
                old.promised = old.promised.max(count);
                return;
            }
            HolderWord::Locked => {
                let holds = std::mem::take(&mut old.holds);
                return self.locked(id, holds);
            }
            HolderWord::Joins(backlog) => return self.joins(id, backlog),
            HolderWord::Order(letters) => return old.order.push_str(&letters),
            HolderWord::Released(address) => {
                let asked = PeerWord::Takedown(address.clone());
                old.asked.retain(|word| *word != asked);
                swap::Event::OldReleased(old_id, address)
            }
            HolderWord::Refused(why) => swap::Event::OldRefused(old_id, why),
            HolderWord::Gone => return self.old_gone(id),
            HolderWord::Waits(why) => {
                let text = format!("waits for server {}: {why}", old.holder.pid);
                self.log.say(Level::Notice, None, &text);
                return;
            }
            HolderWord::Error(why) => {
                let text = format!("supervisor {} says: {why}", old.holder.supervisor);
                self.log.say(Level::Detail, None, &text);
                return;
            }
            HolderWord::Reloaded
            | HolderWord::Done
            | HolderWord::Said(_)
            | HolderWord::Failed(..)
            | HolderWord::Field(..)
            | HolderWord::End => return,
        };
        self.feed(event);
    }
}

/// Sends a connection away.
fn one_too_many(conn: &Conn) {
    conn.out.send_if_read(&SupervisorWord::Error("too many connections".into()));
    conn.out.close();
}

fn parse<W: Word>(line: Result<String, &'static str>) -> Result<W, String> {
    line.map_err(str::to_owned).and_then(|line| W::parse(&line))
}
