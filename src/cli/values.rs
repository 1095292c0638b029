//! The values of options. Pure.

use crate::error::{Error, Result};
use crate::relay::Reach;
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::time::Duration;

/// The longest time that an option takes, in seconds: a year.
const TIME_MAX: u64 = 31_536_000;

pub(super) fn usage(text: impl Into<String>) -> Error {
    Error::failed(format!("{} (nothing was done; see serverswap --help)", text.into()))
}

pub(super) fn value(parser: &mut lexopt::Parser) -> Result<OsString> {
    let value = parser.value().map_err(|e| usage(e.to_string()))?;
    if value.is_empty() { Err(usage("the value of an option is empty")) } else { Ok(value) }
}

pub(super) fn text(parser: &mut lexopt::Parser, option: &str) -> Result<String> {
    value(parser)?.into_string().map_err(|_| usage(format!("{option}: not UTF-8")))
}

pub(super) fn seconds(parser: &mut lexopt::Parser, option: &str) -> Result<Duration> {
    let text = text(parser, option)?;
    duration(&text).ok_or_else(|| usage(format!("{option}: {text:?} is not a number of seconds from 0 to {TIME_MAX}")))
}

/// A time of a year at most.
pub(super) fn duration(text: &str) -> Option<Duration> {
    decimal(text).filter(|time| *time <= Duration::from_secs(TIME_MAX))
}

/// A plain decimal number of seconds, without sign or exponent. What is less than a nanosecond is dropped.
fn decimal(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_plain =
        !(whole.is_empty() && fraction.is_empty()) && whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit());
    let nanos = format!("{fraction:0<9.9}");
    is_plain.then(|| Some(Duration::new(format!("0{whole}").parse().ok()?, nanos.parse().ok()?)))?
}

pub(super) fn signal(text: &str) -> Result<Signal> {
    let name = text.to_ascii_uppercase();
    let named = || format!("SIG{}", name.strip_prefix("SIG").unwrap_or(&name)).parse::<Signal>();
    let signal = match text.parse::<i32>() {
        Ok(number) => Signal::try_from(number),
        Err(_) => named(),
    };
    match signal {
        // By default these suspend or continue a process, or are ignored: none of them ends a server.
        Ok(
            Signal::SIGSTOP | Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU | Signal::SIGCONT | Signal::SIGCHLD,
        )
        | Err(_) => Err(usage(format!("--stop-signal: {text:?} is no signal that stops a server"))),
        Ok(signal) => Ok(signal),
    }
}

pub(super) fn reach(text: &str) -> Result<Reach> {
    match text {
        "local" => Ok(Reach::Local),
        "all" => Ok(Reach::All),
        _ => Err(usage(format!("--relay: {text:?} is neither local nor all"))),
    }
}

pub(super) fn count(text: &str) -> Result<usize> {
    text.parse().map_err(|_| usage(format!("--max-draining: {text:?} is no number of servers")))
}

/// What a file name ends in, from the point on.
pub(super) fn extension(command: &OsString) -> Option<&str> {
    let text = command.to_str()?;
    text.rfind('.').map(|dot| &text[dot..])
}
