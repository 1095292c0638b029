//! A call of a server that waits for an answer.

use crate::finder::May;
use crate::place::Place;
use crate::server::Watch;
use crate::swap::Meets;
use crate::sys::seccomp::Answer;
use crate::sys::steer::{OwnProgram, Socket};
use nix::libc;
use std::io;
use std::sync::Arc;

/// A call that waits. Dropped without an answer it fails: its server is gone, and what is left of it must be able
/// to hear signals.
pub struct Held {
    watch: Arc<Watch>,
    id: u64,
    becomes: Answer,
}

impl Held {
    /// A call of this number.
    pub fn new(watch: Arc<Watch>, id: u64) -> Held {
        Held { watch, id, becomes: Answer::Returns(libc::EINTR) }
    }

    /// Lets the call run as if nobody had looked.
    pub fn proceed(mut self) {
        self.becomes = Answer::Runs;
    }

    /// Gives the call this result.
    pub fn conclude(mut self, result: io::Result<()>) {
        self.becomes = Answer::Returns(errno_of(result));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.watch.notifier.answer(&self.watch.ledger, self.id, self.becomes);
    }
}

/// 0, or what a call failed with: as a rule somebody else has the address.
pub fn errno_of(result: io::Result<()>) -> i32 {
    result.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EADDRINUSE))
}

/// A `listen` that waits for an answer.
pub struct Waiting {
    /// The call.
    pub call: Held,
    /// Our handle on the socket.
    pub socket: Socket,
    /// Where it is bound.
    pub place: Place,
    /// What the server asked for.
    pub backlog: i32,
    /// Whether the bind met a server that has the address.
    pub meets: Meets,
    /// What the caller may do to such a server.
    pub may: May,
}

/// What a new server wants to steer its port by.
pub struct Steering {
    /// The call.
    pub call: Held,
    /// Our handle on the socket.
    pub socket: Socket,
    /// What is put on the port.
    pub program: OwnProgram,
}
