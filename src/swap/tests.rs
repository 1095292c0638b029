//! Tests of the machine: every pair of state and event, two and three machines wired to each other,
//! and the swaps of the manual in plain sight.

mod pairs;
mod scenarios;
mod world;

use super::claim::Demand;
use super::ours::Gait;
use super::*;
use crate::protocol::{ServerWord, SupervisorWord};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

fn a(text: &str) -> Address {
    Address::parse(text).unwrap()
}

/// As the command line gives them: in the foreground, or with somebody waiting.
fn settings(awaited: bool) -> Settings {
    Settings {
        order: Order::Plain,
        awaited,
        checked: Checked::No,
        canary: Vec::new(),
        hold: Duration::ZERO,
        ready_timeout: None,
        kill_after: Duration::from_secs(10),
        drain: Duration::from_secs(10),
    }
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
