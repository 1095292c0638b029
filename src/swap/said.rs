//! What a generation tells of itself, and what people are told that it waits for.

use super::Generation;
use super::ours::Stage;
use super::steps::Share;
use super::words::ClaimerId;
use crate::address::Address;
use std::time::Duration;

impl Generation {
    /// Whether this claimer has the server's lock.
    pub fn is_locked_by(&self, claimer: ClaimerId) -> bool {
        self.tenure.is_locked_by(claimer)
    }

    /// Whether the server was told to stop.
    pub fn is_leaving(&self) -> bool {
        self.ours.is_leaving()
    }

    /// The addresses that the server has or is about to bind.
    pub fn addresses(&self) -> Vec<Address> {
        self.ours.slots.active().cloned().collect()
    }

    /// All addresses of the server: those that it has, and those that it wants.
    pub fn claims(&self) -> Vec<Address> {
        self.ours.slots.keys().cloned().collect()
    }

    /// `--drain`: how long it may take when a newer server has taken over.
    pub fn drain_time(&self) -> Duration {
        self.ours.settings.drain
    }

    /// Who has the server's lock.
    pub fn claimer(&self) -> Option<ClaimerId> {
        self.tenure.lease.claimer()
    }

    /// The first address: the one that messages about the whole server name.
    pub fn name(&self) -> Option<Address> {
        self.ours.slots.name()
    }

    /// `starting`, `checking`, `canary`, `serving` or `draining`, as `--status` says it.
    pub fn state(&self) -> &'static str {
        match self.ours.stage {
            Stage::Starting if self.claim.is_checking() => "checking",
            Stage::Starting => "starting",
            Stage::Up if self.share().is_some() => "canary",
            Stage::Presumed | Stage::Up if !self.tenure.lease.is_draining() => "serving",
            Stage::Presumed | Stage::Up | Stage::Leaving(_) | Stage::Ended => "draining",
        }
    }

    /// Its share of the new connections, in its canary.
    pub fn share(&self) -> Option<Share> {
        let step = self.claim.step().filter(|_| self.is_on_trial())?;
        let canary = &self.ours.settings.canary;
        canary.get(step).or(canary.last()).map(|step| step.share)
    }

    /// Whether checks of the server are to be made.
    pub fn is_checking(&self) -> bool {
        self.is_starting() && self.claim.is_checking() || self.is_on_trial()
    }

    /// What a server that is not up has not done so far.
    pub fn missing(&self) -> Option<String> {
        self.is_starting().then(|| self.claim.missing(&self.ours).1)
    }

    /// What a claim has to wait for.
    pub(super) fn waits_for(&self) -> &'static str {
        match () {
            () if self.is_starting() => "it is not up yet",
            () if self.is_giving_way() => "it is on its way out",
            () if self.tenure.awaits_heir => "the supervisor that was about to replace it comes first",
            () if self.is_turned_back() => "it was undone and is on its way out",
            () if self.is_on_trial() => "it is on trial (--canary)",
            () if self.claimer().is_some() => "the swap before has not ended",
            () if !self.claim.has_replaced_all() => "it is about to take over another address",
            () => "it is about to let go of an address",
        }
    }
}
