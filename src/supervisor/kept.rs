//! Kept connections of a server that is replaced: requests are kept from it until it is told to go, and what waits when it is
//! gone is answered by the new one.

use super::live::Standing;
use super::state::Supervisor;
use super::threads::Event;
use crate::drain::Drained;
use crate::relay::{Held, Keeping, Progress, Tally, waiting};
use crate::server::Server;
use crate::swap::{self, Level, Parting};
use std::collections::BTreeSet;

impl Supervisor {
    /// Parks what can be parked, before the server is told to go.
    pub(super) fn park(&mut self, parting: Parting) {
        let Some(live) = self.live.as_mut() else { return };
        let progress = match (&mut live.standing.keeping, &live.standing.drain) {
            (Some(keeping), Some(drain)) => keeping.last(drain, &live.server, parting),
            (Some(_), None) | (None, _) => Progress::Over,
        };
        if progress == Progress::Over {
            return self.feed(swap::Event::Parked);
        }
        self.poll_soon();
    }

    /// Ends the watch on the drain. If the server leaves, what is parked is held until it is gone.
    pub(super) fn stop_draining(&mut self) {
        let leaves = self.live.as_ref().is_some_and(|live| live.machine.is_leaving());
        if leaves {
            self.hold_kept();
        }
        let Some(live) = self.live.as_mut() else { return };
        live.stop_drain();
        live.standing.gave_way = leaves;
    }

    /// The server is told to go, or is gone. Whoever tells us to stop waits for no request.
    pub(super) fn hold_kept(&mut self) {
        let keeping = self.live.as_mut().and_then(|live| live.standing.keeping.take());
        if let Some(keeping) = keeping.filter(|_| !self.hurries()) {
            self.agenda.kept.held = keeping.hold().or(self.agenda.kept.held.take());
            self.poll_soon();
        }
    }

    /// Whether looks at kept connections have to follow soon.
    pub(super) fn keeps(&self) -> bool {
        let keeping = self.live.iter().flat_map(|live| &live.standing.keeping);
        // A server that keeps its connections after it was told to stop may have hours.
        self.agenda.kept.held.as_ref().is_some_and(Held::keeps) || keeping.into_iter().any(Keeping::is_under_way)
    }

    /// Looks which held connections the server has let go of, and relays what comes on them; `true` if some are left.
    pub(super) fn look_at_held(&mut self) -> bool {
        let Some(held) = self.agenda.kept.held.as_mut() else { return false };
        let servers = || self.live.iter().map(|live| &live.server).chain(self.kin.leftovers.iter().map(|l| &l.server));
        let free = held.look(|| {
            let all: Option<Vec<BTreeSet<u32>>> = servers().map(Server::socket_inodes).collect();
            all.map(|all| all.into_iter().flatten().collect())
        });
        let (patience, is_over) = (held.patience(), held.is_over());
        if is_over {
            self.agenda.kept.held = None;
        }
        if !free.is_empty() {
            let (events, count) = (self.events.clone(), free.len());
            let done = move |tally| _ = events.send(Event::Relayed(tally));
            match waiting::start(free, patience, done) {
                Ok(()) => self.agenda.kept.waiting += 1,
                // They are closed by now.
                Err(_) => self.agenda.kept.tally.unanswered += count,
            }
        }
        self.say_kept();
        !is_over
    }

    /// A thread has nothing to wait for any more.
    pub(super) fn relayed(&mut self, tally: Tally) {
        self.agenda.kept.waiting -= 1;
        self.agenda.kept.tally = self.agenda.kept.tally.and(tally);
        self.say_kept();
    }

    /// Says in the end what became of the requests.
    fn say_kept(&mut self) {
        if !self.agenda.kept.is_over() {
            return;
        }
        let Tally { answered, unanswered } = std::mem::take(&mut self.agenda.kept.tally);
        self.note_kept(answered, unanswered);
        let named = self.live.as_ref().and_then(|live| live.names.name.clone());
        let name = named.or_else(|| self.kin.given.first().cloned());
        if unanswered > 0 {
            let text =
                format!("{unanswered} requests on kept connections got no answer from the new server (they are cut)");
            self.log.say(Level::Warning, name.as_ref(), &text);
        }
        if answered > 0 {
            let text = format!("{answered} requests on kept connections were answered by the new server");
            self.log.say(Level::Detail, name.as_ref(), &text);
        }
    }
}

/// Moves the keeping of requests from a server on. `drained`: how far its drain is.
pub(super) fn look_at_kept(standing: &mut Standing, server: &Server, drained: Drained) -> Option<swap::Event> {
    let progress = match (&mut standing.keeping, &standing.drain) {
        (Some(keeping), Some(drain)) => keeping.look(drain, server, drained),
        (Some(_), None) | (None, _) if drained == Drained::Idle => Progress::Closed,
        (Some(_), None) | (None, _) => Progress::Open,
    };
    match progress {
        Progress::Open => None,
        Progress::Closed => Some(swap::Event::Drained),
        Progress::Over => Some(swap::Event::Parked),
    }
}
