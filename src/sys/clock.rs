//! The time by which the code waits that is tested against a simulated kernel too.

#![forbid(unsafe_code)]

pub use std::time::Instant;
