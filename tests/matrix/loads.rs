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

    /// A session is a group to the scheduler, with a nice value of its own (sched(7), "The autogroup feature"). Clients
    /// that never rest yield to the servers, each of which is in a session too: on Linux 6.18 an old server with two
    /// busy processes was seen not to run for nine seconds between those of the new one and such clients.
    fn sets_priority(&self) {
        let nice = match self.manner {
            Manner::Closed => "19",
            Manner::Pauses => "0",
        };
        // Without autogroups there is nothing to set, and only root gets the priority back.
        let _ = std::fs::write("/proc/self/autogroup", nice);
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
        load.sets_priority();
        faults.extend(in_lanes(load.lanes, servers, |server| row(server, &load)));
    }
    (loads.len() * servers.len(), faults)
}
