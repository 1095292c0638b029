//! The part of the product's `sys` that its core uses, on top of the simulated kernel.

pub mod clock;
pub mod net;
pub mod steer;

#[path = "../../../src/sys"]
mod real {
    pub mod bpf;
    pub mod pid;
    pub mod tcp;
}

pub use real::{bpf, pid};

pub mod process {
    pub use super::pid::Pid;
}

/// For tests of the product that are compiled with it and do not run here.
#[cfg(test)]
pub mod diag {
    pub use super::net::Diag;
}
