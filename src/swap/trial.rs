//! How the trial of a new server ends: it is undone, or nobody goes back to the old one.

use super::Generation;
use super::claim::Cause;
use super::ours::Why;
use super::tenure::Wish;
use super::words::{ClaimerId, Effect, Event, Level, OldId};

const UNDONE: &str = "it was undone already";

/// How somebody wants a trial to end.
pub(super) struct Verdict {
    who: ClaimerId,
    commits: bool,
    hindrance: Option<&'static str>,
}

impl Generation {
    /// Whether the server has connections that may go back to the old ones.
    pub fn is_on_trial(&self) -> bool {
        self.ours.is_up() && self.claim.is_on_trial()
    }

    /// Whether an old server may have its connections again.
    pub fn keeps_olds(&self) -> bool {
        self.claim.keeps_olds()
    }

    /// Whether the server was up, and its trial has failed.
    pub fn has_failed(&self) -> bool {
        self.claim.is_on_trial() || self.is_turned_back()
    }

    /// Whether the old servers have all connections again, and ours only finishes what it has.
    pub fn is_turned_back(&self) -> bool {
        self.claim.turned_back().is_some()
    }

    /// Who says `--undo` or `--commit` with this event, and what keeps that from being done.
    pub(super) fn verdict(&self, event: &Event) -> Option<Verdict> {
        let (who, commits) = match event {
            Event::Undo(who) => (*who, false),
            Event::Confirm(who) => (*who, true),
            _ => return None,
        };
        let hindrance = match () {
            () if self.is_on_trial() && commits && !self.claim.has_locks() => {
                Some("the supervisor of the old server is not heard")
            }
            () if self.is_on_trial() => None,
            () if self.is_starting() => Some("its new server is not up yet"),
            () if self.is_turned_back() => Some(UNDONE),
            () => Some("no old server is kept"),
        };
        Some(Verdict { who, commits, hindrance })
    }

    /// Tells everyone who wants the trial to end, now or before, when it has. Where a commit is not switched to yet, the
    /// switch has to wait for another address.
    pub(super) fn tell_deciders(&mut self, verdict: Option<Verdict>) {
        let Generation { ours, claim, .. } = self;
        match verdict {
            Some(Verdict { who, hindrance: Some(why), .. }) => ours.effects.push(Effect::Refuse(who, why.to_owned())),
            Some(Verdict { who, commits: true, .. }) => claim.committing.push(who),
            Some(Verdict { who, .. }) => ours.effects.push(Effect::TellDone(who)),
            None => {}
        }
        if !claim.is_on_trial() {
            let is_undone = claim.turned_back().is_some();
            let answer = |who| if is_undone { Effect::Refuse(who, UNDONE.to_owned()) } else { Effect::TellDone(who) };
            ours.effects.extend(claim.committing.drain(..).map(answer));
        }
    }

    /// The old servers have all connections again, and ours finishes what it has.
    pub(super) fn turn_back(&mut self, cause: Cause, why: &str) {
        let Generation { ours, claim, tenure } = self;
        let text = format!("{why} (all connections go to the old server again)");
        ours.report(Level::Error, ours.slots.name(), text);
        claim.turn_back(ours, cause);
        tenure.superseded(ours);
    }

    /// Nobody waits for the end of a hold.
    pub(super) fn wants_are_heard(&mut self) {
        if !self.tenure.queue.is_empty() {
            self.hold_no_more();
        }
    }

    /// Somebody wants the server: nobody goes back to the one that it has replaced.
    pub(super) fn hold_no_more(&mut self) {
        if !(self.is_on_trial() && self.claim.is_switched()) {
            return;
        }
        self.claim.trial_time_is_up();
        self.claim.confirm(&mut self.ours);
        if !self.is_on_trial() {
            let name = self.ours.slots.name();
            self.ours.report(Level::Notice, name, "a newer swap or a takedown has come (the hold ends)");
        }
    }

    /// The checks have all succeeded, or why one of them has not.
    pub(super) fn checked(&mut self, result: Result<(), String>) {
        match result {
            Err(why) if self.is_on_trial() => self.turn_back(Cause::Failed, &why),
            result => self.claim.checked(&mut self.ours, result),
        }
    }

    pub(super) fn undo(&mut self) {
        if self.is_on_trial() {
            self.turn_back(Cause::Failed, "it was undone");
        }
    }

    pub(super) fn claimed(&mut self, claimer: ClaimerId) {
        self.hold_no_more();
        self.tenure.enqueue(claimer, Wish::Replace);
    }

    /// Whoever has lost its claim cannot have the old server drain.
    pub(super) fn old_lost(&mut self, id: OldId) {
        if self.is_on_trial() {
            self.turn_back(Cause::Failed, "the claim on the old server is lost");
        }
        self.claim.old_lost(&mut self.ours, id);
    }

    pub(super) fn old_gone(&mut self, id: OldId) {
        let Generation { ours, claim, tenure } = self;
        let was_known = claim.olds.contains_key(&id);
        claim.old_gone(ours, id);
        if was_known && claim.is_on_trial() && !claim.olds.is_empty() {
            let text = "one of the old servers has ended (the trial ends, and the new one has its place)";
            ours.report(Level::Warning, ours.slots.name(), text);
            return claim.confirm(ours);
        }
        match claim.turned_back() {
            // Nobody else serves.
            Some(Cause::Failed) if claim.olds.is_empty() && ours.is_up() => {
                let text = "the old server has ended (the new one has all connections)";
                ours.report(Level::Warning, ours.slots.name(), text);
                claim.serves_again();
                tenure.is_alone(ours);
            }
            Some(Cause::Told) if claim.olds.is_empty() && ours.is_up() => self.leave(Why::Told { signalled: false }),
            Some(_) | None => {}
        }
    }
}
