//! The clocks: the main thread sleeps until the first of them.

use crate::swap::Timer;
use crate::sys::clock::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

enum Clock {
    Runs(Instant),
    Paused(Duration),
    /// It rang. If the machine pauses it before it hears of that, the clock has to ring again once it runs on.
    Rang,
}

/// Clocks that run, and clocks that are held.
#[derive(Default)]
pub struct Timers(BTreeMap<Timer, Clock>);

impl Timers {
    /// Starts a clock anew.
    pub fn arm(&mut self, timer: Timer, time: Duration) {
        self.0.insert(timer, Clock::Runs(Instant::now() + time));
    }

    /// Stops a clock for good.
    pub fn disarm(&mut self, timer: Timer) {
        self.0.remove(&timer);
    }

    /// Stops all clocks.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// Holds a clock: what is left stays.
    pub fn pause(&mut self, timer: Timer) {
        let Some(clock) = self.0.get_mut(&timer) else { return };
        match *clock {
            Clock::Runs(at) => *clock = Clock::Paused(at.saturating_duration_since(Instant::now())),
            Clock::Rang => *clock = Clock::Paused(Duration::ZERO),
            Clock::Paused(_) => {}
        }
    }

    /// Lets a held clock run on.
    pub fn resume(&mut self, timer: Timer) {
        if let Some(clock) = self.0.get_mut(&timer)
            && let Clock::Paused(left) = *clock
        {
            *clock = Clock::Runs(Instant::now() + left);
        }
    }

    /// When the next clock runs out.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|clock| if let Clock::Runs(at) = clock { Some(*at) } else { None }).min()
    }

    /// One clock that has run out and did not ring yet.
    pub fn take_due(&mut self) -> Option<Timer> {
        let now = Instant::now();
        let (key, clock) = self.0.iter_mut().find(|(_, clock)| matches!(clock, Clock::Runs(at) if *at <= now))?;
        *clock = Clock::Rang;
        Some(*key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The main thread takes it for due, and the machine, which has heard something else before, has it held.
    #[test]
    fn a_clock_that_is_held_in_the_turn_in_which_it_rings_rings_again() {
        let mut timers = Timers::default();
        timers.arm(Timer::Ready, Duration::ZERO);
        assert_eq!(timers.take_due(), Some(Timer::Ready));
        assert_eq!((timers.take_due(), timers.next()), (None, None));
        timers.pause(Timer::Ready);
        assert_eq!(timers.take_due(), None);
        timers.resume(Timer::Ready);
        assert_eq!(timers.take_due(), Some(Timer::Ready));
        timers.resume(Timer::Ready);
        assert_eq!((timers.take_due(), timers.next()), (None, None), "it rings once");
    }
}
