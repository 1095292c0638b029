//! The one error type: its `Display` is the text that the user reads.

#![forbid(unsafe_code)]

use std::fmt;

/// Exit statuses that serverswap gives itself, of the family of `timeout`, `env` and `nohup`.
/// Every other status is the server's own.
pub mod status {
    /// The server was replaced, or taken down on request.
    pub const DONE: u8 = 0;
    /// The new server was not up in time, or said FAIL.
    pub const NOT_UP: u8 = 124;
    /// serverswap itself failed, or was called wrongly.
    pub const FAILED: u8 = 125;
    /// COMMAND exists but cannot be executed.
    pub const CANNOT_EXECUTE: u8 = 126;
    /// COMMAND was not found.
    pub const NOT_FOUND: u8 = 127;
}

/// A failure that ends this serverswap: one line for the user and the exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The line, without the leading `serverswap: `.
    pub text: String,
    /// The exit status, see [`status`].
    pub status: u8,
}

/// `Result` with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure of serverswap itself (status 125).
    pub fn failed(text: impl Into<String>) -> Error {
        Error { text: text.into(), status: status::FAILED }
    }

    /// `unable to VERB: REASON (CONSEQUENCE)`, status 125.
    pub fn unable(verb: impl fmt::Display, reason: impl fmt::Display, consequence: &str) -> Error {
        Error::failed(format!("unable to {verb}: {} ({consequence})", without_number(&reason.to_string())))
    }
}

/// The system's reason for people: without the number that Rust appends.
pub fn reason(error: &std::io::Error) -> String {
    without_number(&error.to_string()).to_owned()
}

fn without_number(text: &str) -> &str {
    text.find(" (os error").map_or(text, |at| &text[..at])
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}
