//! The product's own core against a simulated kernel: several supervisors, caretakers, servers, clients and operators,
//! with a death at any step. `make simulate`; README, "Building".
//!
//! The modules below `product` are the files of the product, unchanged. What they ask of the kernel is answered by
//! `sys` and `procfs` here, which have the same names and functions and stand on [`kernel`]. The order in which a
//! supervisor calls them is that of `src/supervisor`, written anew in [`supervisor`].

// The product uses more of itself than the simulation does.
#![allow(dead_code, unused_imports)]

#[path = "../../src"]
mod product {
    pub mod address;
    pub mod drain;
    pub mod error;
    pub mod members;
    pub mod place;
    pub mod protocol;
    pub mod recovery;
    pub mod share;
    pub mod swap;
}
#[path = "../../src/supervisor/timers.rs"]
mod timers;

mod kernel;
mod procfs;
mod run;
mod server;
mod supervisor;
mod sys;
mod world;

use product::{address, drain, error, members, place, protocol, recovery, share, swap};

fn main() -> std::process::ExitCode {
    run::main()
}
