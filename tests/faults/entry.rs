//! The state in which serverswap is started.

use super::Case;
pub fn cases() -> Vec<Case> {
    Vec::new()
}
