//! When to try to have all connections of a server idle or parked. Pure.

#![forbid(unsafe_code)]

use super::parking::Stands;
use crate::sys::clock::Instant;
use std::time::Duration;

/// How long an attempt lasts to have all connections idle or parked.
pub const PARKS_WITHIN: Duration = Duration::from_secs(1);
/// The same for a server that drains itself, since it can answer what is not parked.
pub const PARKS_BRIEFLY: Duration = Duration::from_millis(300);
/// How long after a failed attempt another one begins at the earliest: requests were late by it.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How many attempts may fail before the last one. One at which all connections are idle does not count.
const ATTEMPTS_MAX: u32 = 2;

/// When to try to have all connections idle or parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempts {
    failed: u32,
    not_before: Option<Instant>,
    ends_at: Option<Instant>,
    is_last: Last,
}

/// Whether something follows when the time of an attempt is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Others,
    Nothing,
}

/// The most restless connection of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// Each is idle.
    AllIdle,
    /// Each is idle or parked.
    AllParked,
    /// Some are to send soon.
    SomeFast,
    /// There is a long request, or a stream.
    SomeSlow,
}

impl Sight {
    /// The sight of one connection; of several, the greatest counts.
    pub fn of(stands: Stands) -> Sight {
        match stands {
            Stands::Idle => Sight::AllIdle,
            Stands::Parked => Sight::AllParked,
            Stands::Fast => Sight::SomeFast,
            Stands::Slow => Sight::SomeSlow,
        }
    }
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
        Attempts { failed: 0, not_before: None, ends_at: None, is_last: Last::Others }
    }
}

impl Attempts {
    /// Whether the filters are on.
    pub fn is_under_way(&self) -> bool {
        self.ends_at.is_some()
    }

    /// The server is told after this attempt, whatever comes of it.
    pub fn last(&mut self, now: Instant, within: Duration) {
        (self.is_last, self.ends_at) = (Last::Nothing, Some(now + within));
    }

    /// What to do about what is seen.
    pub fn next(&mut self, sight: Sight, now: Instant) -> Step {
        match (self.ends_at, sight) {
            (Some(_), Sight::AllIdle | Sight::AllParked) => Step::Close,
            (Some(end), _) if now < end => Step::Wait,
            (Some(_), _) if self.is_last == Last::Nothing => Step::Close,
            (Some(_), _) => {
                self.failed += 1;
                (self.ends_at, self.not_before) = (None, Some(now + AGAIN_AFTER));
                Step::GiveUp
            }
            (None, Sight::SomeSlow) => Step::Wait,
            (None, Sight::SomeFast | Sight::AllParked)
                if self.failed >= ATTEMPTS_MAX || self.not_before.is_some_and(|at| now < at) =>
            {
                Step::Wait
            }
            (None, Sight::AllIdle | Sight::AllParked | Sight::SomeFast) => {
                self.ends_at = Some(now + PARKS_WITHIN);
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
        assert_eq!(attempts.next(Sight::SomeSlow, start), Step::Wait);
        let mut now = start;
        for _ in 0..ATTEMPTS_MAX {
            assert_eq!(attempts.next(Sight::SomeFast, now), Step::Begin);
            assert_eq!(attempts.next(Sight::SomeSlow, now + PARKS_WITHIN / 2), Step::Wait);
            assert_eq!(attempts.next(Sight::SomeFast, now + PARKS_WITHIN), Step::GiveUp);
            assert_eq!(attempts.next(Sight::SomeFast, now + PARKS_WITHIN), Step::Wait);
            now += PARKS_WITHIN + AGAIN_AFTER;
        }
        assert_eq!(attempts.next(Sight::SomeFast, now), Step::Wait);
        // Without the relay the drain would be over too.
        assert_eq!(attempts.next(Sight::AllIdle, now), Step::Begin);
        assert_eq!(attempts.next(Sight::AllParked, now), Step::Close);
    }

    #[test]
    fn after_the_last_attempt_the_server_is_told() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        attempts.last(now, PARKS_BRIEFLY);
        assert_eq!(attempts.next(Sight::SomeSlow, now), Step::Wait);
        assert_eq!(attempts.next(Sight::SomeSlow, now + PARKS_BRIEFLY), Step::Close);
    }
}
