//! Who has an address: the servers that have a record in the run directory, and how a new supervisor finds the old one.

#![forbid(unsafe_code)]

mod beside;
mod caretaker;
mod holder;
mod look_up;
mod port;
mod question;
mod registration;
mod revive;
#[cfg(test)]
mod tests;
mod tidy;

pub use beside::Beside;
pub use caretaker::{CARES_WITHIN, STARTS_WITHIN};
pub use holder::{Holder, Missing, Registration};
pub use question::{Asker, Found, May};
pub use revive::have_written_again;
