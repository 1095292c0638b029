//! What a new server has to pass before it gets the connections of the old one. Pure.

use super::values::{duration, seconds, text, usage, value};
use crate::error::Result;
use crate::swap::{Share, Step};
use std::ffi::OsString;
use std::time::Duration;

/// What a new server has to pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// It accepts a connection of ours: not with `--no-probe`.
    pub probe: bool,
    /// All of these succeed.
    pub checks: Vec<Check>,
    /// It gets these shares of the new connections, one after the other.
    pub canary: Vec<Step>,
    /// How long the old server is kept after the switch.
    pub hold: Duration,
}

/// Something that is done with a new server while everybody else still gets the old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// `--check COMMAND`: `sh -c COMMAND` exits with 0.
    Command(OsString),
    /// `--check-http PATH`: `GET PATH` is answered with a status of 200 to 399.
    Http(String),
}

/// How the trial of a new server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// `--undo`: the old server has all connections again.
    Undo,
    /// `--commit`: the new one has all.
    Commit,
}

impl Trial {
    /// Whether it gets connections of the old server with nothing more to pass than a probe.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty() && self.canary.is_empty() && self.hold.is_zero()
    }

    pub(super) fn new() -> Trial {
        Trial { probe: true, checks: Vec::new(), canary: Vec::new(), hold: Duration::ZERO }
    }

    /// Takes an option that is about it; `false` if it is another one.
    pub(super) fn set(&mut self, option: &str, parser: &mut lexopt::Parser) -> Result<bool> {
        match option {
            "--check" => self.checks.push(Check::Command(value(parser)?)),
            "--check-http" => self.checks.push(Check::Http(path(text(parser, option)?)?)),
            "--canary" => self.canary = steps(&text(parser, option)?)?,
            "--hold" => self.hold = seconds(parser, option)?,
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

/// The steps of a canary, `P:SECS[,P:SECS]...`.
fn steps(text: &str) -> Result<Vec<Step>> {
    let step = |part: &str| {
        let (share, time) = part.split_once(':')?;
        Some(Step { share: percent(share)?, time: duration(time)? })
    };
    let bad = |part: &str| {
        usage(format!(
            "--canary: {part:?} is no P:SECS, with P from 0.1 to 99 per cent and SECS from 0.001 to 31536000"
        ))
    };
    text.split(',').map(|part| step(part).filter(|step| !step.time.is_zero()).ok_or_else(|| bad(part))).collect()
}

/// A number of per cent with at most one digit after the point.
fn percent(text: &str) -> Option<Share> {
    let (whole, tenths) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty();
    if !digits(whole) || !digits(tenths) || tenths.len() > 1 {
        return None;
    }
    let permille = whole.parse::<u16>().ok()?.checked_mul(10)?.checked_add(tenths.parse().ok()?)?;
    (1..=990).contains(&permille).then_some(Share { permille })
}
