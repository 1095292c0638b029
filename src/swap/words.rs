//! What a generation is told and what it answers: events, effects, and the terms of both.

use super::steps::{Share, Step};
use super::warrant::Warrant;
use crate::address::Address;
use crate::protocol::{ServerWord, SupervisorWord};
use std::time::Duration;

/// A connection on which the server speaks: its control fd, or one to its control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpeakerId(pub u64);

/// An older generation that has what this one wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OldId(pub u64);

/// Somebody who wants to replace this generation or to take it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimerId(pub u64);

/// The clocks of a generation. The owner of the machine keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// The new server must be up.
    Ready,
    /// The new server has been quiet: it wants no more addresses.
    Quiet,
    /// The server was told to stop: SIGKILL.
    Kill,
    /// The server was told to let go of some of its addresses.
    Partial,
    /// The server may finish what it has.
    Drain,
    /// A step of its canary, or its hold, lasts.
    Trial,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The server said a word.
    Said(SpeakerId, ServerWord),
    /// A connection of the server's ended.
    SpeakerGone(SpeakerId),
    /// The server listens on the address (asked for by [`Effect::Watch`], or found).
    Listens(Address),
    /// The server wants to listen on the address, and waits for [`Effect::Admit`], [`Effect::Join`],
    /// [`Effect::Pass`] or [`Effect::Deny`]. Whether an older server was met there.
    Calls(Address, Meets),
    /// The server has closed all that it had at the address.
    Closed(Address),
    /// Answer to [`Effect::LookUp`]: whoever has the address is none that the caller of `listen` could replace, and
    /// the kernel decides whether both can listen.
    Foreign(Address),
    /// What keeps a server that listens on the address from being proven.
    Hindered(Address, String),
    /// The server has bound a port: it is not quiet.
    Bound,
    /// The server accepts connections everywhere on the shared address (asked for by [`Effect::Join`]).
    Accepts(Address),
    /// Whether the ports of the old server can be shared, or why not; comes before `Locked`.
    Shares(OldId, Result<(), String>),
    /// The holder of the lock has switched a shared port: finish what you have, then go.
    AskedDrain(ClaimerId),
    /// The record of another server, whose supervisor has died, says that it serves in our place.
    Superseded,
    /// If the server drains, its time for that is up.
    TimeIsUp,
    /// The holder of the lock has our new connections, and keeps our server: whoever waits for it is to look there.
    OldHeld(ClaimerId),
    /// The holder of the lock has turned its switch back.
    AskedStay(ClaimerId),
    /// The holder of the lock has gone away, but its server serves in our place.
    Succeeded(ClaimerId),
    /// Whoever served in our place is gone too: new connections come here again.
    Alone,
    /// Nothing more can be lost by closing the listeners (asked for by [`Effect::Drain`]).
    Quiesced,
    /// No connection of the server's is busy (asked for by [`Effect::Drain`]).
    Drained,
    /// What can be parked is parked, or the time for that is up (asked for by [`Effect::Park`]).
    Parked,
    /// Nobody listens on the address any more (asked for by [`Effect::WatchRelease`]).
    Free(Address),
    /// The server is gone, with this status.
    Exited(u8),
    /// Answer to [`Effect::LookUp`]: nobody had the address, now it is registered as ours.
    Vacant(Address),
    /// Answer to [`Effect::LookUp`], and to [`Effect::Take`] that came too late: these have it.
    Taken(Address, Vec<OldId>),
    /// Answer to [`Effect::LookUp`]: it cannot be had, and why.
    Blocked(Address, String),
    /// The old server's supervisor is alive and has our claim.
    Attended(OldId),
    /// The old server is ours to replace; it has these addresses.
    Locked(OldId, Vec<Address>),
    /// The old server has let go of an address that was asked for, or, on a shared port, was told to go for good.
    OldReleased(OldId, Address),
    /// The old server's supervisor refuses, and why.
    OldRefused(OldId, String),
    /// The old server is gone.
    OldGone(OldId),
    /// The connection to the old server's supervisor has ended. What follows is `Locked`, by a caretaker, or `OldGone`
    /// or `OldLost`. Until then its lock does not count as ours, unless the server was asked for something already.
    OldSilent(OldId),
    /// The old server's supervisor is gone; the server may live.
    OldLost(OldId),
    /// Somebody wants to replace this server.
    Claim(ClaimerId),
    /// Somebody had the lock of this server before it got this supervisor: the heir, whose server listens beside it
    /// already. All others wait for its claim.
    HeirAwaited,
    /// The heir wants to replace this server.
    HeirClaims(ClaimerId),
    /// The heir is dead, or does not come in time.
    HeirGone,
    /// The holder of the lock asks for an address.
    AskedTakedown(ClaimerId, Address),
    /// The holder of the lock asks for the end of the server.
    AskedStop(ClaimerId),
    /// `--takedown` of these addresses.
    Down(ClaimerId, Vec<Address>),
    /// A claimer has gone away.
    ClaimerGone(ClaimerId),
    /// The supervisor is told to stop its server. `signalled`: the terminal told the server already.
    Stop {
        /// The server has had the signal too.
        signalled: bool,
    },
    /// The checks of the server have all succeeded, or why one of them has not (asked for by [`Effect::Check`]).
    Checked(Result<(), String>),
    /// `--undo`: the old server is to have all connections again.
    Undo(ClaimerId),
    /// `--commit`: nobody is to go back to the old server.
    Confirm(ClaimerId),
    /// A clock ran out.
    Timer(Timer),
}

/// How far the swap of a server was when its supervisor died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Orphan {
    /// There was no swap, or none that concerns the server.
    Alone,
    /// The server has the new connections, and servers that it has replaced are still there.
    Follows,
    /// Another server has the new connections, or keeps them: this one drains and goes.
    Superseded,
    /// It was told to let go of its addresses, and has done so: it only finishes what it has.
    Told,
}

/// How a server that drains leaves when what can be parked is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parting {
    /// The time for its drain is up.
    IsCutOff,
    /// It drains itself.
    DrainsItself,
}

/// How much a report matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is not as asked.
    Warning,
    /// An event that matters.
    Notice,
    /// For those who want to watch.
    Detail,
}

/// What is to be done. Nothing here can harm an old server but those that carry a [`Warrant`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Send the server a word.
    Say(SpeakerId, SupervisorWord),
    /// Find out who has the address, and register it as ours if nobody has.
    LookUp(Address),
    /// Queue for the lock of an old server.
    Lock(OldId),
    /// Give up the lock, or the place in the queue.
    Unlock(OldId),
    /// Register the address as ours in place of the old servers: the switch in the run directory.
    /// Answered by [`Event::Taken`] if somebody else has it by now, which then keeps it.
    Take(Warrant, Address),
    /// Let the server listen on the address as if alone.
    Admit(Address),
    /// Let the server's call to listen run as if nobody had seen it.
    Pass(Address),
    /// Let the server's call to listen on the address fail.
    Deny(Address),
    /// Let the server listen on the address, all connections still going to the old one, if there is one, and
    /// tell when it has proven that it accepts some.
    Join(Address),
    /// The server wants no more sockets: those that it has are to prove themselves.
    Settle,
    /// Check the new server, again and again until all its checks succeed.
    Check,
    /// The new server gets its share of the new connections from here on.
    Portion(Share),
    /// New connections go to the new server from here on.
    Switch(Warrant),
    /// The new server has all new connections, and the old ones are kept for a while.
    Held,
    /// Let the old server finish what it has, and then stop it.
    AskDrain(Warrant, OldId),
    /// New connections go to the old servers again.
    SwitchBack,
    /// The old server is to drain no more.
    AskStay(OldId),
    /// Watch the connections of our server, which gets no new ones.
    Drain,
    /// Keep requests from our server until it is told to go, for a moment.
    Park(Parting),
    /// Watch them no more. If the server leaves, what is parked stays so.
    StopDrain,
    /// The time for the drain is up: say what is still open.
    CutOff,
    /// Ask the old server to let go of the address.
    AskTakedown(Warrant, OldId, Address),
    /// Ask for the end of the old server.
    AskStop(Warrant, OldId),
    /// Register the address as ours again, if nobody else has it.
    Hold(Address),
    /// Remove our registration of the address.
    Unhold(Address),
    /// From here on the new server must not end with its supervisor.
    Commit,
    /// Tell when the server listens on the address.
    Watch(Address),
    /// Tell when nobody listens on the address.
    WatchRelease(Address),
    /// The servers that drain behind ours are to be told that their time is up.
    Hasten,
    /// Send the server its stop signal.
    Signal,
    /// SIGKILL to all of the server.
    Kill,
    /// The claimer has the lock; these are the addresses.
    Grant(ClaimerId, Vec<Address>),
    /// The address is free for the claimer; on a shared port: the server is told to go, and nobody can go
    /// back to it.
    TellReleased(ClaimerId, Address),
    /// The claimer has to wait, and for what.
    TellWaits(ClaimerId, String),
    /// The claimer does not get what it asked for.
    Refuse(ClaimerId, String),
    /// What the claimer asked for is done.
    TellDone(ClaimerId),
    /// The server is gone.
    TellGone(ClaimerId),
    /// A newer server has its place: the claimer has to look again who has the address.
    SendOn(ClaimerId),
    /// Start a clock anew.
    Arm(Timer, Duration),
    /// Stop a clock for good.
    Disarm(Timer),
    /// Stop a clock for a while: what is left stays.
    Pause(Timer),
    /// Let a paused clock run on.
    Resume(Timer),
    /// Tell the user.
    Report(Level, Option<Address>, String),
    /// The server is up.
    Up,
    /// The server has all new connections, and those that had them were told to go.
    Sure,
    /// The server is replaced before those that it has replaced are gone: they are the newer one's to wait for.
    Passed,
    /// The swap is done: the server is up and whom it replaced is gone.
    Done,
    /// The generation has ended, and what is still registered as its is to be removed; the status for
    /// its supervisor to end with.
    End(u8),
}

/// Whether a `listen` claims an address of an older server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Meets {
    /// An older server was there when the socket was bound, or when it called `listen`.
    Server,
    /// No older server was there.
    Nobody,
}

/// The order in which a swap runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// Close, then bind: no two servers on one port.
    Plain,
    /// Old and new share the port.
    Shared,
}

/// Whether a server has checks to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Checked {
    /// It accepts, and that is enough.
    #[default]
    No,
    /// By `--check` or `--check-http`.
    Yes,
}

/// Settings of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Plain order, or the shared port.
    pub order: Order,
    /// Somebody waits for the swap (`--detach`, `--reload`): the server has to be up to count.
    pub awaited: bool,
    /// It is not up before its checks have succeeded.
    pub checked: Checked,
    /// The shares of the new connections that it gets one after the other, before it gets all.
    pub canary: Vec<Step>,
    /// How long the old server is kept after the switch; zero: it is not.
    pub hold: Duration,
    /// `--ready-timeout`; zero: for ever; `None`: the default of the situation.
    pub ready_timeout: Option<Duration>,
    /// `--kill-after`.
    pub kill_after: Duration,
    /// `--drain`.
    pub drain: Duration,
}

impl Settings {
    /// What is to be done with the new server beside the old one, if anything.
    pub(super) fn trial(&self) -> Option<&'static str> {
        match () {
            () if self.checked == Checked::Yes => Some("checked"),
            () if !self.canary.is_empty() => Some("tried by a canary"),
            () if !self.hold.is_zero() => Some("held"),
            () => None,
        }
    }

    /// How long a server may take that claims nothing yet; `None`: for ever.
    pub(super) fn ready_time(&self) -> Option<Duration> {
        // A check that never succeeds is to fail some time.
        let is_bounded = self.awaited || self.checked == Checked::Yes;
        self.ready_timeout.or(is_bounded.then_some(READY_TIMEOUT)).filter(|time| !time.is_zero())
    }
}

/// Default of `--ready-timeout`.
pub const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// No READY and no bind for this long: the server wants no more addresses.
pub const QUIET: Duration = Duration::from_secs(3);
/// How long what is on its way to a server may take to arrive after the time for its drain.
pub const ARRIVALS: Duration = Duration::from_secs(3);
/// How long it may take to park what can be parked; the glue is done earlier.
pub const PARKS: Duration = Duration::from_secs(4);
/// Most addresses of one server: a server that asks for more babbles.
pub const ADDRESSES_MAX: usize = 4096;
