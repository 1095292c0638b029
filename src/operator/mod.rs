//! What a person asks of running servers: `--status`, `--takedown`, `--reload`.

#![forbid(unsafe_code)]

mod conversation;
mod reload;
mod servers;
mod status;
mod table;
mod takedown;

pub use reload::reload;
pub use status::show_status;
pub use takedown::takedown;
