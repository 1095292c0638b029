//! Steering a SO_REUSEPORT group: a small classic BPF program on the group says which of its sockets gets a new connection
//! (socket(7), SO_ATTACH_REUSEPORT_CBPF, Linux 4.5). It needs no privilege, is replaced atomically, and outlives the
//! process that attached it.

mod marked;
mod parking;
mod probe;
mod program;
mod refusal;
mod socket;
#[cfg(test)]
mod tests;
mod visit;

pub(super) use parking::unpark_raw;
pub use parking::{Exchanged, Look};
pub use probe::Probe;
pub use program::{OwnProgram, Program, Range};
pub use socket::Socket;
