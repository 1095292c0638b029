//! Which connections of a server that drains stand between two requests, by what the kernel says of them. Pure.
//!
//! While the filter is on, the kernel drops a segment that begins like a request, and counts it. As a rule the client then
//! has its answer to the request before. But it may ask ahead, and a body may begin like a request too, after an interim
//! answer for example: where the server has said too little since the client's last data, what was dropped is let through.
//! What it had said before the first look is taken for one answer if nothing else is known.

#![forbid(unsafe_code)]

use crate::sys::clock::Instant;
use crate::sys::steer::{Exchanged, Look};
use std::time::Duration;

/// How long a connection stands still after its request was dropped before it counts as parked: by then a server that was
/// asked twice has said more.
const SETTLES: Duration = Duration::from_millis(10);
/// How many bytes an answer has at least: more than `HTTP/1.1 100 Continue` with its empty line, and less than a status line
/// with one header.
const ANSWER_MIN: u64 = 32;
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
    /// It sends what begins like a request before it has its answer: it is let go.
    Ahead,
    /// No filter can be put on it.
    Unparkable,
}

impl Speaks {
    /// Whether a filter may be put on its connection.
    pub fn may_be_parked(self) -> bool {
        match self {
            Speaks::Unknown | Speaks::Http => true,
            Speaks::Ahead | Speaks::Unparkable => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    Off,
    /// On; nothing was dropped.
    On(Watched),
    /// A request was dropped; how much the server had sent when that was seen.
    Dropped {
        sent: u64,
        seen: Instant,
    },
}

/// What was seen of a connection with the filter on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Watched {
    /// When the filter went on.
    since: Instant,
    /// Bytes of its client's.
    received: u64,
    /// How much the server had sent at the last look at which the client had sent less.
    heard: u64,
    /// How much it had sent at the last look.
    sent: u64,
    /// The least that [`balance`] was since the client's last data.
    least: u32,
}

impl Watched {
    fn begin(look: &Look, heard: u64, since: Instant) -> Watched {
        Watched { since, received: look.moved.bytes_received, heard, sent: look.sent_first, least: balance(look) }
    }

    /// Takes a look in at which nothing was dropped.
    fn after(self, look: &Look) -> Watched {
        if self.received != look.moved.bytes_received {
            // What was counted so far says nothing.
            return Watched::begin(look, self.sent, self.since);
        }
        let least = if is_above(self.least, balance(look)) { balance(look) } else { self.least };
        Watched { sent: look.sent_first, least, ..self }
    }

    /// Whether the filter has dropped something. Whatever comes past the filter counts as a segment, and only some of it as
    /// a drop: a segment that came twice, the probe of a keep-alive.
    fn has_dropped(&self, look: &Look) -> bool {
        self.received == look.moved.bytes_received && is_above(balance(look), self.least)
    }

    /// Whether what the server has said since the client's last data may be an answer.
    fn has_answer(&self, look: &Look) -> bool {
        self.received == 0 || look.sent_first.saturating_sub(self.heard) >= ANSWER_MIN
    }
}

/// Drops less what came past the filter. What was early waits behind something that is missing.
fn balance(look: &Look) -> u32 {
    look.drops.wrapping_sub(look.segments).wrapping_add(look.early)
}

/// Whether a balance is above another one. Both may have passed zero.
fn is_above(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() > 0
}

/// How a connection stands at a moment, from the one that is most at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

    /// The filter was put on between these two looks. What came meanwhile may have come past it.
    pub fn put_on(&mut self, before: Look, after: Look) {
        let unmoved = before.moved.bytes_received == after.moved.bytes_received;
        let now = Instant::now();
        let watched = Watched::begin(&before, 0, now);
        self.filter = Filter::On(if unmoved { watched } else { watched.after(&after) });
        self.sees(&after, now);
    }

    /// Takes a look in.
    pub fn sees(&mut self, look: &Look, now: Instant) {
        match &self.filter {
            Filter::Off => {}
            Filter::On(watched) if watched.has_dropped(look) && watched.has_answer(look) => {
                self.speaks = Speaks::Http;
                self.filter = Filter::Dropped { sent: look.sent_first, seen: now };
            }
            Filter::On(watched) if watched.has_dropped(look) => {
                (self.speaks, self.filter) = (Speaks::Ahead, Filter::Off)
            }
            Filter::On(watched) => self.filter = Filter::On(watched.after(look)),
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

    /// Whether it stands between two requests: one was dropped, or it speaks HTTP/1 and has its answer.
    pub fn is_between(&self, look: &Look) -> bool {
        self.speaks == Speaks::Http && is_at_rest(look)
    }

    /// Whether to wait for a request on it, or read the one that is there, when its server is gone and it is untouched.
    /// If nobody knows what its client speaks, one is waited for where it was not idle when the filter went on: that client
    /// may ask again once another connection of its has its answer.
    pub fn may_be_relayed(&self, look: &Look, now: Instant, rest: Duration) -> bool {
        match (self.speaks, &self.filter) {
            (Speaks::Http, _) => true,
            (Speaks::Unknown, _) if look.unread > 0 => true,
            (Speaks::Unknown, Filter::On(watched)) => {
                self.stands(look, now, rest + now.saturating_duration_since(watched.since)) != Stands::Idle
            }
            (Speaks::Unknown, Filter::Off | Filter::Dropped { .. }) | (Speaks::Ahead | Speaks::Unparkable, _) => false,
        }
    }

    /// Whether it may be held while its server ends. If nobody knows what its client speaks, what it sends next tells.
    pub fn may_be_held(&self, look: &Look) -> bool {
        match (self.speaks, &self.filter) {
            (Speaks::Http, _) | (Speaks::Unknown, Filter::On(_)) => is_at_rest(look),
            (Speaks::Unknown, Filter::Off | Filter::Dropped { .. }) | (Speaks::Ahead | Speaks::Unparkable, _) => false,
        }
    }
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
        // Its body came behind it.
        assert_eq!(parked(&[Look { drops: 8, segments: 4, early: 2, ..answered() }]).1, Stands::Parked);
        // It came with the acknowledgement of the answer, and was sent again.
        let acknowledged = Look { drops: 8, segments: 4, ..answered() };
        assert_eq!(parked(&[acknowledged, Look { drops: 9, ..acknowledged }]).1, Stands::Parked);
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
        assert!(!parking.speaks().may_be_parked() && !parking.may_be_held(&dropped));
        parking.sees(&Look { drops: 20, ..dropped }, Instant::now());
        assert_eq!(parking.speaks(), Speaks::Ahead);
    }

    /// After an interim answer a body follows, which may begin like a request.
    #[test]
    fn what_follows_less_than_an_answer_is_let_through() {
        let asked = |received, sent| {
            let moved = Moved { bytes_received: received, bytes_sent: sent, ..answered().moved };
            Look { moved, sent_first: sent, segments: 4, ..answered() }
        };
        let (base, interim, whole) = (answered(), asked(90, 125), asked(90, 180));
        let dropped = |look: Look| Look { drops: 8, ..look };
        assert_eq!(parked(&[base, interim, dropped(interim)]).0.speaks(), Speaks::Ahead);
        // It was seen before the interim answer came.
        assert_eq!(parked(&[base, asked(90, 100), interim, interim, dropped(interim)]).0.speaks(), Speaks::Ahead);
        assert_eq!(parked(&[base, whole, dropped(whole)]).1, Stands::Parked);
        assert_eq!(parked(&[base, asked(90, 100), whole, dropped(whole)]).1, Stands::Parked);
        // It is the first that this connection has said.
        let mut first = Parking::new(Speaks::Unknown);
        first.put_on(asked(90, 25), asked(90, 25));
        first.sees(&dropped(asked(90, 25)), Instant::now());
        assert_eq!(first.speaks(), Speaks::Ahead);
        assert!(!first.may_be_held(&asked(90, 25)));
    }

    #[test]
    fn an_idle_connection_of_which_nothing_is_known_may_be_held() {
        let (parking, _) = parked(&[answered()]);
        assert!(parking.may_be_held(&answered()) && !parking.is_between(&answered()));
        assert!(!parking.may_be_held(&Look { unread: 1, ..answered() }));
        assert!(!Parking::new(Speaks::Unknown).may_be_held(&answered()));
        assert!(!Parking::new(Speaks::Unparkable).may_be_held(&answered()));
    }

    #[test]
    fn a_client_that_was_not_idle_when_the_filter_went_on_is_waited_for() {
        let ago = |millis| Look { moved: Moved { sent: millis, received: millis, ..answered().moved }, ..answered() };
        let waits = |on: Look, then: Look, later: Duration| {
            let mut parking = Parking::new(Speaks::Unknown);
            parking.put_on(on, on);
            parking.may_be_relayed(&then, Instant::now() + later, REST)
        };
        assert!(waits(ago(4000), ago(7000), Duration::from_secs(3)));
        assert!(!waits(ago(6000), ago(9000), Duration::from_secs(3)));
        assert!(waits(ago(6000), Look { unread: 10, ..ago(0) }, Duration::from_secs(3)));
    }

    /// Of a keep-alive: it is counted as a segment.
    #[test]
    fn a_probe_does_not_park() {
        let probed = Look { drops: 8, segments: 4, ..answered() };
        assert_eq!(parked(&[probed, Look { drops: 9, segments: 5, ..probed }]).0.speaks(), Speaks::Unknown);
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
}
