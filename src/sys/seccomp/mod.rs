//! Seeing a server's `bind` and `listen` (seccomp user notification, seccomp(2), seccomp_unotify(2)): the filter that the
//! child puts on itself, and the supervisor's end of it.
//!
//! Linux 5.9 or later is needed (POLLHUP tells that nobody is left under the filter). Linux 5.19 or later is best: before
//! that, signals interrupt a waiting call.

mod abi;
mod filter;
mod ledger;
mod notification;
mod notifier;
mod report;
#[cfg(test)]
mod tests;

pub use filter::Filter;
pub use ledger::{Answer, Ledger, answer_all};
pub use notification::{Call, Last, Notification};
pub use notifier::Notifier;
pub use report::receive_result;
