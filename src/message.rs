//! What the user reads: `serverswap: ADDRESS: text`, one line each on standard error, no colour, no
//! time.

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::swap::Level;
use std::io::Write;

/// Writes messages up to the level that the user asked for.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    loudest: Level,
}

impl Log {
    /// `verbosity`: -1 for every `-q`, +1 for every `-v`.
    pub fn new(verbosity: i32) -> Log {
        let loudest = match verbosity {
            ..=-2 => Level::Error,
            -1 => Level::Warning,
            0 => Level::Notice,
            1.. => Level::Detail,
        };
        Log { loudest }
    }

    /// One line. That nobody reads it is no reason to fail.
    pub fn say(self, level: Level, address: Option<&Address>, text: &str) {
        if level > self.loudest {
            return;
        }
        let warning = if level == Level::Warning { "warning: " } else { "" };
        let line = match address {
            Some(address) => format!("serverswap: {address}: {warning}{text}"),
            None => format!("serverswap: {warning}{text}"),
        };
        // Addresses and reasons may come from a server: nothing in them may drive a terminal.
        let mut line: String = line.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        line.push('\n');
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}
