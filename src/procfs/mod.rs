//! What `/proc` tells about processes (proc(5)): who they are, who their parents are, which sockets they hold. It is only
//! read; a process that goes away meanwhile is simply not there.

#![forbid(unsafe_code)]

mod fds;
mod holders;
mod ports;
mod process;
mod program;
mod snapshot;
#[cfg(test)]
mod tests;

pub use fds::{Held, find_held, find_sockets};
pub use holders::{Holders, holders};
pub use ports::fixed;
pub use process::{
    Start, Stat, age, boot_id, command_line, environment, filters, find, has_ended, is_ending, is_hidden,
    is_of_this_user, is_ours, shares_network, start_of, stat, user,
};
pub use program::{MARK, OWN_NAME, serverswaps};
pub use snapshot::Snapshot;
