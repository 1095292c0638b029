//! `src/supervisor/directory.rs`: who has an address.

use super::Supervisor;
use super::olds::CARES_WITHIN;
use crate::address::Address;
use crate::swap::{Event, OldId};
use crate::sys::clock::Instant;
use crate::world::dir::Found;
use crate::world::land::Land;
use std::time::Duration;

/// The product's `UNCLEAR_LOOKS_EVERY`.
const LOOKS_EVERY: Duration = Duration::from_millis(20);

impl Supervisor {
    pub(super) fn look_up(&mut self, land: &mut Land, address: Address) {
        let (looks, _) = self.agenda.unclear.remove(&address).unwrap_or((0, Instant::now()));
        let Some(live) = self.live.as_mut() else { return };
        let found = land.dir.look_up(&address, self.server.0, self.pid);
        if live.life.was_up {
            self.tidy_later();
        }
        let most = match &found {
            Found::Orphans(orphans) => {
                orphans.iter().filter(|orphan| orphan.is_orphan).for_each(|orphan| self.care(land, orphan));
                CARES_WITHIN.as_millis() as u32 / LOOKS_EVERY.as_millis() as u32
            }
            Found::Busy => u32::MAX,
            Found::Vacant | Found::Taken(_) => 0,
        };
        if looks < most {
            self.agenda.unclear.insert(address, (looks.saturating_add(1), Instant::now() + LOOKS_EVERY));
            return;
        }
        let Some(live) = self.live.as_mut() else { return };
        let event = match found {
            Found::Vacant => {
                live.names.held.insert(address.clone());
                Event::Vacant(address)
            }
            Found::Busy => Event::Blocked(address, "somebody else replaces servers without supervisors".into()),
            Found::Orphans(_) => Event::Blocked(address, "no caretaker comes up".into()),
            Found::Taken(holders) => {
                let olds = holders.into_iter().map(|holder| OldId(self.old(land, holder))).collect();
                Event::Taken(address, olds)
            }
        };
        self.feed(event);
    }

    /// Looks up again what was not clear.
    pub fn look_again(&mut self, land: &mut Land) {
        let now = Instant::now();
        let due = self.agenda.unclear.iter().filter(|(_, (_, at))| *at <= now).map(|(address, _)| address.clone());
        for address in due.collect::<Vec<Address>>() {
            self.look_up(land, address);
        }
        self.settle(land);
    }
}
