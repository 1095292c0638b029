//! The pure modules of serverswap, for its fuzz targets: serverswap itself is a program and no library.

// Not all of it is fuzzed.
#![allow(dead_code, unused_imports)]

#[path = "../../src"]
mod src {
    pub mod address;
    pub mod cli;
    pub mod error;
    pub mod notify;
    pub mod protocol;
    pub mod record;
    pub mod relay {
        pub mod route;
        pub use route::Reach;
    }
    pub mod swap {
        pub mod steps;
        pub use steps::{Share, Step};
    }
    pub mod sys {
        pub mod namespace;
        pub mod pid;
    }
}
use src::{address, cli, error, notify, protocol, record, relay, swap, sys};

pub mod targets;
