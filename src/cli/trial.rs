//! What a new server has to pass before it gets the connections of the old one. Pure.

use super::values::{text, usage, value};
use crate::error::Result;
use std::ffi::OsString;

/// What a new server has to pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// It accepts a connection of ours: not with `--no-probe`.
    pub probe: bool,
    /// All of these succeed.
    pub checks: Vec<Check>,
}

/// Something that is done with a new server while everybody else still gets the old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// `--check COMMAND`: `sh -c COMMAND` exits with 0.
    Command(OsString),
    /// `--check-http PATH`: `GET PATH` is answered with a status of 200 to 399.
    Http(String),
}

impl Trial {
    pub(super) fn new() -> Trial {
        Trial { probe: true, checks: Vec::new() }
    }

    /// Takes an option that is about it; `false` if it is another one.
    pub(super) fn set(&mut self, option: &str, parser: &mut lexopt::Parser) -> Result<bool> {
        match option {
            "--check" => self.checks.push(Check::Command(value(parser)?)),
            "--check-http" => self.checks.push(Check::Http(path(text(parser, option)?)?)),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A path as it may stand in the first line of a request (RFC 9112).
fn path(text: String) -> Result<String> {
    if text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(text);
    }
    Err(usage(format!("--check-http: {text:?} is no path of a URL, such as /health")))
}
