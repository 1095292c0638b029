//! What clients put on each server, in turn, and how many rows run at a time.

use super::poster::Manner;
use super::{Report, Settings, in_lanes};

/// Clients, and the swaps under them.
#[derive(Clone, Copy)]
pub struct Load {
    pub clients: usize,
    pub manner: Manner,
    pub swaps: u64,
    /// Rows at a time: a machine that is too busy shows how late servers are, and no more.
    pub lanes: usize,
}

impl Load {
    /// How its manner is called in a table, and by `tests/servers/keep.js`.
    pub fn manner(&self) -> &'static str {
        match self.manner {
            Manner::Closed => "closed",
            Manner::Pauses => "pauses",
        }
    }
}

/// Runs a row for each load and server: `row` prints it, and says what is wrong with it.
pub fn run<S: Sync>(
    settings: &Settings,
    loads: &[Load],
    servers: &[S],
    row: impl Fn(&S, &Load) -> Vec<String> + Sync,
) -> Report {
    let mut faults = Vec::new();
    for load in loads {
        let load = Load { swaps: settings.swaps.map_or(load.swaps, |most| most.min(load.swaps)), ..*load };
        faults.extend(in_lanes(load.lanes, servers, |server| row(server, &load)));
    }
    (loads.len() * servers.len(), faults)
}
