//! The one layer that touches what is unsafe or Linux-only: every call is offered as a safe function
//! with types. It decides nothing and prints nothing.

mod below;
pub mod namespace;
pub mod net;
pub mod pid;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod steer;
mod table;
