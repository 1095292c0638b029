//! What a person asks of running servers: `--status`, `--takedown`, `--reload`, `--undo`, `--commit`.

#![forbid(unsafe_code)]

mod conversation;
mod reload;
mod servers;
mod status;
mod table;
mod takedown;
mod trial;

pub use reload::reload;
pub use status::show_status;
pub use takedown::takedown;
pub use trial::decide;
