//! Kept connections: what waits on them when an old server goes is answered by the new one.
//!
//! While the old server is about to be told to stop, requests on its connections are kept from it for a moment
//! ([`Keeping`]): their clients' kernels send them again. Connections that stand between two requests are held while the
//! server ends ([`Held`]), and what then arrives is carried through the new server, one request a connection
//! ([`waiting`]). It knows of HTTP what it takes to find the end of a request and of its answer, and nothing else.

#![forbid(unsafe_code)]

mod attempts;
mod body;
mod detecting;
mod exchange;
mod grip;
mod head;
mod held;
mod keeping;
mod parking;
mod route;
#[cfg(test)]
mod tests;
pub mod waiting;

pub use held::{Held, Remains};
pub use keeping::{Keeping, Progress};
pub use route::Reach;
pub use waiting::Tally;
