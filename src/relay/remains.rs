//! What is left of the connections of a server that was told to stop.

#![forbid(unsafe_code)]

use super::held::Held;
use super::waiting::Tally;

/// What is left of the connections of a server that was told to stop.
#[derive(Debug, Default)]
pub struct Remains {
    /// Those that it may still have.
    pub held: Option<Held>,
    /// How many threads wait for requests on others.
    pub waiting: usize,
    /// What became of the requests so far.
    pub tally: Tally,
}

impl Remains {
    /// Whether nothing waits any more.
    pub fn is_over(&self) -> bool {
        self.held.is_none() && self.waiting == 0
    }
}
