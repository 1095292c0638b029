//! Which connections of a server that drains stand between two requests, by what the kernel says of them. Pure.
//!
//! While the filter is on, the kernel drops a segment that begins like a request, and counts it. That the client has begun a
//! new request proves that it has its answer to the one before, unless it sends several without waiting.

#![forbid(unsafe_code)]

use crate::sys::clock::Instant;
use crate::sys::steer::{Exchanged, Look};
use std::time::Duration;

/// How long a connection stands still after its request was dropped before it counts as parked: by then a server that was
/// asked twice has said more.
const SETTLES: Duration = Duration::from_millis(10);
/// How long ago a client has sent something that will soon send again.
pub const FAST: Duration = Duration::from_secs(1);
/// The state of a connection that nobody has closed (linux/tcp_states.h).
const ESTABLISHED: u8 = 1;

/// What is known of a connection on which we have a handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parking {
    speaks: Speaks,
    filter: Filter,
}

/// What its client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Speaks {
    /// Nobody knows.
    #[default]
    Unknown,
    /// HTTP/1: a request of its was dropped once.
    Http,
    /// It asks again before it has its answer: it is let go.
    Ahead,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    Off,
    /// On, since the connection looked like this; nothing was dropped.
    On(Look),
    /// A request was dropped; how much the server had sent when that was seen.
    Dropped {
        sent: u64,
        seen: Instant,
    },
}

/// How a connection stands at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// Nothing has moved for so long that the server owes nothing.
    Idle,
    /// Its next request waits at its client.
    Parked,
    /// Its client has sent something a moment ago, and will soon send again.
    Fast,
    /// A long request, or a stream.
    Slow,
}

impl Parking {
    /// A connection of which this much is known from an earlier attempt.
    pub fn new(speaks: Speaks) -> Parking {
        Parking { speaks, filter: Filter::Off }
    }

    /// What its client speaks.
    pub fn speaks(&self) -> Speaks {
        self.speaks
    }

    /// Whether a filter may be put on it.
    pub fn may_be_parked(&self) -> bool {
        self.speaks != Speaks::Ahead
    }

    /// The filter was put on between these two looks. What came meanwhile may have come past it.
    pub fn put_on(&mut self, before: Look, after: Look) {
        let unmoved = before.moved.bytes_received == after.moved.bytes_received;
        self.filter = Filter::On(if unmoved { before } else { after });
        self.sees(&after, Instant::now());
    }

    /// Takes a look in.
    pub fn sees(&mut self, look: &Look, now: Instant) {
        match &self.filter {
            Filter::Off => {}
            // It has taken data in: what was counted so far says nothing.
            Filter::On(base) if base.moved.bytes_received != look.moved.bytes_received => {
                self.filter = Filter::On(*look)
            }
            Filter::On(base) if is_dropped(base, look) => {
                self.speaks = Speaks::Http;
                self.filter = Filter::Dropped { sent: look.sent_first, seen: now };
            }
            Filter::On(_) => {}
            Filter::Dropped { sent, .. } if *sent != look.sent_first => {
                (self.speaks, self.filter) = (Speaks::Ahead, Filter::Off);
            }
            Filter::Dropped { .. } => {}
        }
    }

    /// How it stands. `rest`: after which time without a move it is idle.
    pub fn stands(&self, look: &Look, now: Instant, rest: Duration) -> Stands {
        if !look.moved.is_busy(look.state, look.unread, look.unacknowledged, rest) {
            return Stands::Idle;
        }
        match self.filter {
            Filter::Dropped { seen, .. } if is_at_rest(look) && now >= seen + SETTLES => Stands::Parked,
            _ if Duration::from_millis(look.moved.received.into()) < FAST => Stands::Fast,
            Filter::Off | Filter::On(_) | Filter::Dropped { .. } => Stands::Slow,
        }
    }

    /// Whether it may be held while its server ends: its request was dropped, or it speaks HTTP/1 and has its answer.
    pub fn may_be_held(&self, look: &Look) -> bool {
        self.speaks == Speaks::Http && is_at_rest(look)
    }
}

/// Whether the filter has dropped something. The kernel also counts what brings nothing new, and that has come past the
/// filter; what was early waits behind something that was dropped.
fn is_dropped(base: &Look, look: &Look) -> bool {
    let since = |of: fn(&Look) -> u32| of(look).wrapping_sub(of(base));
    since(|l| l.drops) > since(|l| l.segments).saturating_sub(since(|l| l.early))
}

/// Whether nothing waits for the server, and the last byte was its own.
pub fn is_at_rest(look: &Look) -> bool {
    look.state == ESTABLISHED && look.unread == 0 && !look.moved.is_peers_last()
}

/// Whether a server that is gone has read and said nothing since then, and owed nothing. What waits unread is a new request.
pub fn is_untouched(look: &Look, before: Exchanged) -> bool {
    let owes = look.unread == 0 && look.moved.is_peers_last();
    look.state == ESTABLISHED && look.exchanged() == before && !owes
}

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
    use crate::sys::net::Moved;

    const REST: Duration = Duration::from_secs(5);

    /// A connection that was asked and has answered a moment ago, within one tick of the clock.
    fn answered() -> Look {
        Look {
            state: ESTABLISHED,
            unread: 0,
            unacknowledged: 0,
            moved: Moved { sent: 4, received: 4, bytes_sent: 100, bytes_received: 50 },
            sent_first: 100,
            drops: 7,
            segments: 3,
            early: 1,
        }
    }

    fn parked(seen: &[Look]) -> (Parking, Stands) {
        let (mut parking, now) = (Parking::new(Speaks::Unknown), Instant::now());
        parking.put_on(answered(), answered());
        seen.iter().for_each(|look| parking.sees(look, now));
        let stands = parking.stands(seen.last().unwrap(), now + SETTLES, REST);
        (parking, stands)
    }

    #[test]
    fn a_request_that_was_dropped_parks_its_connection() {
        let dropped = Look { drops: 8, ..answered() };
        let (parking, stands) = parked(&[dropped]);
        assert_eq!((stands, parking.speaks()), (Stands::Parked, Speaks::Http));
        assert!(parking.may_be_held(&dropped));
        // Its body came behind it, and it was sent again.
        assert_eq!(parked(&[dropped, Look { drops: 10, segments: 5, early: 3, ..answered() }]).1, Stands::Parked);
        // What the server said was said again: its acknowledgement was dropped too.
        let again = Moved { bytes_sent: 200, ..answered().moved };
        assert_eq!(parked(&[dropped, Look { moved: again, unacknowledged: 100, ..dropped }]).1, Stands::Parked);
    }

    #[test]
    fn nothing_else_parks_it() {
        assert_eq!(parked(&[answered()]).1, Stands::Fast);
        // A segment that came twice is counted as dropped, and has come past the filter.
        let twice = Look { drops: 8, segments: 4, ..answered() };
        assert_eq!((parked(&[twice]).1, parked(&[twice]).0.speaks()), (Stands::Fast, Speaks::Unknown));
        // Data has come since: the server may be at it.
        let more = Moved { bytes_received: 60, ..answered().moved };
        assert_eq!(parked(&[Look { drops: 8, moved: more, segments: 4, ..answered() }]).1, Stands::Fast);
        let dropped = Look { drops: 8, ..answered() };
        assert_eq!(parked(&[Look { unread: 1, ..dropped }]).1, Stands::Fast);
        let asked = Moved { sent: 8, ..answered().moved };
        assert_eq!(parked(&[Look { moved: asked, ..dropped }]).1, Stands::Fast);
        // Its client has closed it.
        assert_eq!(parked(&[Look { state: 8, ..dropped }]).1, Stands::Fast);
    }

    #[test]
    fn what_a_server_has_read_is_never_relayed() {
        let before = answered().exchanged();
        assert!(is_untouched(&answered(), before));
        let moved = |received, sent| Moved { bytes_received: received, sent, ..answered().moved };
        // A request came and waits unread.
        assert!(is_untouched(&Look { unread: 10, moved: moved(60, 9), ..answered() }, before));
        assert!(!is_untouched(&Look { unread: 0, moved: moved(60, 9), ..answered() }, before));
        assert!(!is_untouched(&Look { unread: 9, moved: moved(60, 9), ..answered() }, before));
        assert!(!is_untouched(&Look { sent_first: 101, ..answered() }, before));
        assert!(!is_untouched(&Look { moved: moved(50, 9), ..answered() }, before));
        assert!(!is_untouched(&Look { state: 8, ..answered() }, before));
    }

    #[test]
    fn a_client_that_asks_ahead_is_let_go() {
        let dropped = Look { drops: 8, ..answered() };
        let (mut parking, stands) = parked(&[dropped, Look { sent_first: 150, ..dropped }]);
        assert_eq!((stands, parking.speaks()), (Stands::Fast, Speaks::Ahead));
        assert!(!parking.may_be_parked() && !parking.may_be_held(&dropped));
        parking.sees(&Look { drops: 20, ..dropped }, Instant::now());
        assert_eq!(parking.speaks(), Speaks::Ahead);
    }

    #[test]
    fn a_dropped_request_settles_first() {
        let (mut parking, now) = (Parking::new(Speaks::Unknown), Instant::now());
        parking.put_on(answered(), answered());
        let dropped = Look { drops: 8, ..answered() };
        parking.sees(&dropped, now);
        assert_eq!(parking.stands(&dropped, now, REST), Stands::Fast);
        assert_eq!(parking.stands(&dropped, now + SETTLES, REST), Stands::Parked);
    }

    #[test]
    fn a_client_is_slow_when_it_has_sent_nothing_for_a_second() {
        let stands =
            |moved: Moved| Parking::new(Speaks::Unknown).stands(&Look { moved, ..answered() }, Instant::now(), REST);
        let moved = answered().moved;
        assert_eq!(stands(Moved { sent: 10, received: 999, ..moved }), Stands::Fast);
        assert_eq!(stands(Moved { sent: 10, received: 1000, ..moved }), Stands::Slow);
        assert_eq!(stands(Moved { sent: 5000, received: 5000, ..moved }), Stands::Idle);
        assert_eq!(stands(Moved { sent: 6000, received: 5000, ..moved }), Stands::Slow);
    }

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
