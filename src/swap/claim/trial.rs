//! What the new server has to pass when it accepts everywhere, before it gets anything of the old one.

use super::{Claim, Trial};
use crate::swap::ours::Ours;
use crate::swap::words::{Checked, Effect};

impl Claim {
    /// Whether nothing is left to pass; what is left begins.
    pub(super) fn has_passed(&mut self, ours: &mut Ours) -> bool {
        if self.trial == Trial::Ahead {
            self.trial = match ours.settings.checked {
                Checked::No => Trial::Passed,
                Checked::Yes => {
                    ours.effects.push(Effect::Check);
                    Trial::Checking(None)
                }
            };
        }
        self.trial == Trial::Passed
    }

    /// The checks have ended once.
    pub fn checked(&mut self, result: Result<(), String>) {
        if let Trial::Checking(_) = self.trial {
            self.trial = result.map_or_else(|why| Trial::Checking(Some(why)), |()| Trial::Passed);
        }
    }

    /// It was up, as it seemed, and is not: what it has passed says nothing.
    pub fn begin_anew(&mut self) {
        self.trial = Trial::Ahead;
    }

    /// What its checks lack, while they are made.
    pub(super) fn unchecked(&self) -> Option<String> {
        let Trial::Checking(failed) = &self.trial else { return None };
        Some(failed.clone().unwrap_or_else(|| "its check has not ended yet".into()))
    }

    /// Whether its checks are made.
    pub fn is_checking(&self) -> bool {
        matches!(self.trial, Trial::Checking(_))
    }
}
