//! The drain of the server on the old side: from the switch until it is told to leave, or goes on.

use super::lease::{Drainage, Lease};
use super::ours::Ours;
use super::tenure::{Next, Older, Tenure};
use super::words::{ARRIVALS, ClaimerId, Effect, PARKS, Parting, Timer};

impl Tenure {
    pub fn asked_drain(&mut self, ours: &mut Ours, claimer: ClaimerId) {
        if self.lease == Lease::Lent(claimer) && ours.is_up() {
            self.drain(ours, Some(claimer));
        }
    }

    pub fn superseded(&mut self, ours: &mut Ours) {
        if !self.lease.is_draining() && ours.is_up() {
            self.drain(ours, self.lease.claimer());
        }
    }

    fn drain(&mut self, ours: &mut Ours, claimer: Option<ClaimerId>) {
        self.lease = Lease::Draining(claimer, Drainage::Arriving);
        self.send_on(ours);
        ours.effects.push(Effect::Drain);
        ours.arm(Timer::Drain, ours.settings.drain);
    }

    /// Nobody else listens where it does.
    pub fn is_alone(&mut self, ours: &mut Ours) {
        self.older = Older::Gone;
        if self.lease.is_draining() && self.lease.claimer().is_none() {
            self.resume(ours);
        }
    }

    pub fn drain_no_more(&mut self, ours: &mut Ours) {
        if self.lease.stay().is_draining() {
            ours.disarm(Timer::Drain);
            ours.effects.push(Effect::StopDrain);
        }
    }

    /// Closing the listeners loses nothing now: a server that takes TAKEDOWN for all it has drains itself.
    /// One that would close only some could not go on with all if the switch is turned back.
    pub fn quiesced(&mut self, ours: &mut Ours) -> Next {
        let (Lease::Draining(claimer, how), true) = (self.lease, ours.is_up()) else { return Next::Stays };
        let takes_all = self.takes_all(ours);
        match how {
            Drainage::Overdue => self.park(ours, Parting::IsCutOff),
            Drainage::Arriving | Drainage::Quiesced if takes_all => self.park(ours, Parting::DrainsItself),
            Drainage::Arriving | Drainage::Quiesced => self.lease = Lease::Draining(claimer, Drainage::Quiesced),
            Drainage::Parking(_) => {}
        }
        Next::Stays
    }

    /// Has what can be parked parked, before the server leaves.
    fn park(&mut self, ours: &mut Ours, parting: Parting) {
        let Lease::Draining(claimer, _) = self.lease else { return };
        self.lease = Lease::Draining(claimer, Drainage::Parking(parting));
        ours.effects.push(Effect::Park(parting));
        // Whatever hinders it: the server does not wait for that.
        ours.arm(Timer::Drain, PARKS);
    }

    /// What can be parked is parked.
    pub fn parked(&mut self, ours: &mut Ours) -> Next {
        match self.lease {
            Lease::Draining(_, Drainage::Parking(parting)) if ours.is_up() => match parting {
                Parting::IsCutOff => Next::IsCutOff,
                Parting::DrainsItself => Next::DrainsItself,
            },
            Lease::Free | Lease::Lent(_) | Lease::Draining(..) => Next::Stays,
        }
    }

    /// However short the drain is to be: what is on its way to the server is not lost.
    pub fn drain_time_is_up(&mut self, ours: &mut Ours) -> Next {
        match self.lease {
            Lease::Draining(claimer, Drainage::Arriving) => {
                self.lease = Lease::Draining(claimer, Drainage::Overdue);
                ours.arm(Timer::Drain, ARRIVALS);
                Next::Stays
            }
            Lease::Draining(_, Drainage::Quiesced) => {
                self.park(ours, Parting::IsCutOff);
                Next::Stays
            }
            Lease::Draining(_, Drainage::Parking(_)) => self.parked(ours),
            Lease::Draining(_, Drainage::Overdue) | Lease::Lent(_) | Lease::Free => Next::IsCutOff,
        }
    }

    /// The server leaves, so its drain is over. Returns the lease as it was before.
    pub fn end_drain(&mut self, ours: &mut Ours) -> Lease {
        let before = self.lease.stay();
        if before.is_draining() {
            ours.effects.push(Effect::StopDrain);
        }
        before
    }
}
