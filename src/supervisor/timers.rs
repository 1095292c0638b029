//! The clocks of all generations: the main thread sleeps until the first of them.

#![forbid(unsafe_code)]

use super::threads::GenId;
use crate::swap::Timer;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

enum Clock {
    Runs(Instant),
    Paused(Duration),
}

/// Clocks that run, and clocks that are held.
#[derive(Default)]
pub struct Timers(BTreeMap<(GenId, Timer), Clock>);

impl Timers {
    /// Starts a clock anew.
    pub fn arm(&mut self, generation: GenId, timer: Timer, time: Duration) {
        self.0.insert((generation, timer), Clock::Runs(Instant::now() + time));
    }

    /// Stops a clock for good.
    pub fn disarm(&mut self, generation: GenId, timer: Timer) {
        self.0.remove(&(generation, timer));
    }

    /// Stops all clocks of a generation.
    pub fn forget(&mut self, generation: GenId) {
        self.0.retain(|(g, _), _| *g != generation);
    }

    /// Holds a clock: what is left stays.
    pub fn pause(&mut self, generation: GenId, timer: Timer) {
        if let Some(clock) = self.0.get_mut(&(generation, timer))
            && let Clock::Runs(at) = *clock
        {
            *clock = Clock::Paused(at.saturating_duration_since(Instant::now()));
        }
    }

    /// Lets a held clock run on.
    pub fn resume(&mut self, generation: GenId, timer: Timer) {
        if let Some(clock) = self.0.get_mut(&(generation, timer))
            && let Clock::Paused(left) = *clock
        {
            *clock = Clock::Runs(Instant::now() + left);
        }
    }

    /// When the next clock runs out.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|clock| if let Clock::Runs(at) = clock { Some(*at) } else { None }).min()
    }

    /// Takes out one clock that has run out.
    pub fn take_due(&mut self) -> Option<(GenId, Timer)> {
        let now = Instant::now();
        let due =
            self.0.iter().find(|(_, clock)| matches!(clock, Clock::Runs(at) if *at <= now)).map(|(key, _)| *key)?;
        self.0.remove(&due);
        Some(due)
    }
}
