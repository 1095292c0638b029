//! The pure modules of serverswap, for its fuzz targets: serverswap itself is a program and no library.

// Not all of it is fuzzed.
#![allow(dead_code)]

#[path = "../../src/address.rs"]
mod address;
#[path = "../../src/cli.rs"]
mod cli;
#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/notify.rs"]
mod notify;
#[path = "../../src/protocol.rs"]
mod protocol;
#[path = "../../src/record.rs"]
mod record;
#[path = "../../src/sys"]
mod sys {
    pub mod namespace;
    pub mod pid;
}
pub mod targets;
