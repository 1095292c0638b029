//! The one layer that touches what is unsafe or Linux-only: every call is offered as a safe function
//! with types. It decides nothing and prints nothing.

mod aside;
mod below;
mod bpf;
mod child;
pub mod clock;
pub mod connect;
mod copy;
mod diag;
pub mod file;
pub mod guard;
pub mod interfaces;
mod keeper;
mod limits;
mod listing;
pub mod namespace;
pub mod net;
pub mod oom;
pub mod pid;
mod pidfd;
pub mod process;
pub mod seccomp;
pub mod socket;
mod spawn;
mod status;
pub mod steer;
mod table;
mod tcp;
pub mod terminal;
pub mod thread;
mod unwind;
pub mod user;
