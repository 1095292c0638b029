//! When to try to have all connections of a server idle or parked. Pure.

#![forbid(unsafe_code)]

use super::parking::Stands;
use crate::sys::clock::Instant;
use std::time::Duration;

/// How long an attempt lasts after it has got another connection idle or parked.
pub const PARKS_WITHIN: Duration = Duration::from_secs(1);
/// The same for a server that drains itself, since it can answer what is not parked.
pub const PARKS_BRIEFLY: Duration = Duration::from_millis(300);
/// Longest time of an attempt: on a busy machine servers answer late.
const PARKS_MAX: Duration = Duration::from_secs(3);
/// How long after a failed attempt another one begins at the earliest: requests were late by it.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How many attempts may fail before the last one. One at which all connections are idle does not count.
const ATTEMPTS_MAX: u32 = 2;

/// When to try to have all connections idle or parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempts {
    failed: u32,
    not_before: Option<Instant>,
    now: Option<Attempt>,
    is_last: Last,
}

/// One that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attempt {
    began: Instant,
    within: Duration,
    /// When it ends if nothing more comes to rest.
    ends: Instant,
    /// The most connections that were idle or parked.
    at_rest: usize,
}

impl Attempt {
    fn new(now: Instant, within: Duration) -> Attempt {
        Attempt { began: now, within, ends: now + within, at_rest: 0 }
    }

    fn sees(&mut self, at_rest: usize, now: Instant) {
        if at_rest > self.at_rest {
            (self.at_rest, self.ends) = (at_rest, (now + self.within).min(self.began + PARKS_MAX));
        }
    }
}

/// Whether something follows when the time of an attempt is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Others,
    Nothing,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// The filters go on.
    Begin,
    /// The filters come off.
    GiveUp,
    /// What can be parked is parked: the server may be told.
    Close,
}

impl Default for Attempts {
    fn default() -> Attempts {
        Attempts { failed: 0, not_before: None, now: None, is_last: Last::Others }
    }
}

impl Attempts {
    /// Whether the filters are on.
    pub fn is_under_way(&self) -> bool {
        self.now.is_some()
    }

    /// The server is told after this attempt, whatever comes of it.
    pub fn last(&mut self, now: Instant, within: Duration) {
        (self.is_last, self.now) = (Last::Nothing, Some(Attempt::new(now, within)));
    }

    /// What to do about what is seen: how the most restless connection stands, and how many are idle or parked.
    pub fn next(&mut self, worst: Stands, at_rest: usize, now: Instant) -> Step {
        self.now.iter_mut().for_each(|attempt| attempt.sees(at_rest, now));
        match (&self.now, worst) {
            (Some(_), Stands::Idle | Stands::Parked) => Step::Close,
            (Some(attempt), _) if now < attempt.ends => Step::Wait,
            (Some(_), _) if self.is_last == Last::Nothing => Step::Close,
            (Some(_), _) => {
                self.failed += 1;
                (self.now, self.not_before) = (None, Some(now + AGAIN_AFTER));
                Step::GiveUp
            }
            (None, Stands::Slow) => Step::Wait,
            (None, Stands::Fast | Stands::Parked)
                if self.failed >= ATTEMPTS_MAX || self.not_before.is_some_and(|at| now < at) =>
            {
                Step::Wait
            }
            (None, Stands::Idle | Stands::Parked | Stands::Fast) => {
                self.now = Some(Attempt::new(now, PARKS_WITHIN));
                Step::Begin
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_end_and_are_few() {
        let (mut attempts, start) = (Attempts::default(), Instant::now());
        assert_eq!(attempts.next(Stands::Slow, 0, start), Step::Wait);
        let mut now = start;
        for _ in 0..ATTEMPTS_MAX {
            assert_eq!(attempts.next(Stands::Fast, 0, now), Step::Begin);
            assert_eq!(attempts.next(Stands::Slow, 0, now + PARKS_WITHIN / 2), Step::Wait);
            assert_eq!(attempts.next(Stands::Fast, 0, now + PARKS_WITHIN), Step::GiveUp);
            assert_eq!(attempts.next(Stands::Fast, 0, now + PARKS_WITHIN), Step::Wait);
            now += PARKS_WITHIN + AGAIN_AFTER;
        }
        assert_eq!(attempts.next(Stands::Fast, 0, now), Step::Wait);
        // Without the relay the drain would be over too.
        assert_eq!(attempts.next(Stands::Idle, 0, now), Step::Begin);
        assert_eq!(attempts.next(Stands::Parked, 0, now), Step::Close);
    }

    #[test]
    fn after_the_last_attempt_the_server_is_told() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        attempts.last(now, PARKS_BRIEFLY);
        assert_eq!(attempts.next(Stands::Slow, 0, now), Step::Wait);
        assert_eq!(attempts.next(Stands::Slow, 0, now + PARKS_BRIEFLY), Step::Close);
    }

    #[test]
    fn an_attempt_that_gets_on_is_given_time() {
        let (mut attempts, start) = (Attempts::default(), Instant::now());
        assert_eq!(attempts.next(Stands::Fast, 0, start), Step::Begin);
        let (mut now, mut at_rest) = (start, 0);
        while now + PARKS_WITHIN / 2 < start + PARKS_MAX {
            (now, at_rest) = (now + PARKS_WITHIN / 2, at_rest + 1);
            assert_eq!(attempts.next(Stands::Fast, at_rest, now), Step::Wait);
        }
        assert_eq!(attempts.next(Stands::Fast, at_rest + 1, start + PARKS_MAX), Step::GiveUp);
    }
}
