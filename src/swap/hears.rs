//! What a generation hears of its own server.

use super::Generation;
use super::claim::{Cause, Reported};
use super::ours::Stage;
use super::words::SpeakerId;
use crate::address::Address;
use crate::error::status;
use crate::protocol::ServerWord;

impl Generation {
    pub(super) fn said(&mut self, speaker: SpeakerId, word: ServerWord) {
        let Generation { ours, claim, tenure } = self;
        if (ours.is_leaving() || claim.turned_back().is_some()) && !matches!(word, ServerWord::Released(_)) {
            return ours.refuse(speaker, "this server was told to stop");
        }
        match word {
            ServerWord::Released(address) => tenure.let_go(ours, speaker, &address),
            ServerWord::Ready(address) => claim.said_ready(ours, speaker, address),
            ServerWord::Takedown(address) => tenure.takes(ours, speaker, address),
            ServerWord::Up => {
                claim.wants.said_up = true;
                if ours.stage == Stage::Presumed {
                    ours.stage = Stage::Up;
                }
            }
            ServerWord::Fail(text) => {
                self.presume_no_more();
                let Generation { ours, claim, .. } = self;
                if ours.is_starting() {
                    // Quoted, with its control characters escaped.
                    claim.fail(ours, status::NOT_UP, ours.slots.name(), &format!("the new server gave up: {text:?}"));
                } else if claim.is_on_trial() {
                    self.turn_back(Cause::Failed, &format!("the new server gave up: {text:?}"));
                } else {
                    ours.refuse(speaker, "this server is up; it can only exit");
                }
            }
        }
    }

    /// A server that only seemed to be a worker is not up: it was slow.
    pub(super) fn presume_no_more(&mut self) {
        if self.ours.stage == Stage::Presumed {
            self.ours.stage = Stage::Up;
            if self.claimer().is_none() {
                (self.ours.stage, self.claim.reported) = (Stage::Starting, Reported::Nothing);
                self.claim.begin_anew();
            }
        }
    }

    pub(super) fn speaker_gone(&mut self, speaker: SpeakerId) {
        self.claim.speaker_gone(&mut self.ours, speaker);
        self.tenure.speaker_gone(&mut self.ours, speaker);
    }

    /// It has closed all that it had at the address. On trial it is to keep that.
    pub(super) fn closed(&mut self, address: &Address) {
        if self.is_on_trial() && self.ours.slots.contains_key(address) {
            return self.turn_back(Cause::Failed, &format!("the new server does not listen on {address} any more"));
        }
        self.claim.closed(&mut self.ours, address);
    }
}
