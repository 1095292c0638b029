//! sd_notify(3), both ways: what the service manager is told, and what a server says in that language.

#![forbid(unsafe_code)]

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// The service manager, if there is one.
pub struct Manager(Option<(UnixDatagram, SocketAddr)>);

impl Manager {
    /// The one that `$NOTIFY_SOCKET` names.
    pub fn from_environment() -> Manager {
        let socket = || {
            let name = std::env::var("NOTIFY_SOCKET").ok()?;
            // In a deploy hook it is that of the server around us, for which we do not speak.
            let around = std::env::var("SERVERSWAP_SOCKET").ok();
            if around.is_some_and(|around| Path::new(&around).with_extension("notify") == Path::new(&name)) {
                return None;
            }
            let address = match name.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name.as_bytes()).ok()?,
                None => SocketAddr::from_pathname(&name).ok()?,
            };
            let socket = UnixDatagram::unbound().ok()?;
            // A manager that does not read must not stop a swap.
            socket.set_nonblocking(true).ok()?;
            Some((socket, address))
        };
        Manager(socket())
    }

    /// Sends one message. Best effort: there is nobody to tell that it failed.
    pub fn tell(&self, message: &str) {
        if let Some((socket, address)) = &self.0 {
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }

    /// A reload begins. `MONOTONIC_USEC` is for `Type=notify-reload`.
    pub fn reloading(&self) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        let usec = now.map_or(0, |t| t.tv_sec() as i128 * 1_000_000 + t.tv_nsec() as i128 / 1000);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }
}

/// What a server said that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// `READY=1`
    Up,
    /// `STOPPING=1`
    Stopping,
    /// `STATUS=`
    Status(String),
    /// `WATCHDOG=1` or `WATCHDOG=trigger`
    Watchdog(&'static str),
}

/// Longest status that is kept.
const STATUS_MAX: usize = 200;

/// Reads a datagram; what is not known is left alone.
pub fn parse(datagram: &[u8]) -> Vec<Notice> {
    let text = String::from_utf8_lossy(datagram);
    text.lines()
        .filter_map(|line| match line.split_once('=')? {
            ("READY", "1") => Some(Notice::Up),
            ("STOPPING", "1") => Some(Notice::Stopping),
            ("WATCHDOG", "1") => Some(Notice::Watchdog("WATCHDOG=1")),
            ("WATCHDOG", "trigger") => Some(Notice::Watchdog("WATCHDOG=trigger")),
            ("STATUS", text) => {
                Some(Notice::Status(text.chars().filter(|c| !c.is_control()).take(STATUS_MAX).collect()))
            }
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_words_are_heard_and_others_left_alone() {
        let notices = parse(
            b"READY=1\nSTATUS=ok \x1b[31m\nMAINPID=1\nnonsense\nWATCHDOG=1\nWATCHDOG=trigger\nSTOPPING=1\nREADY=0",
        );
        let status = Notice::Status("ok [31m".into());
        let (one, two) = (Notice::Watchdog("WATCHDOG=1"), Notice::Watchdog("WATCHDOG=trigger"));
        assert_eq!(notices, [Notice::Up, status, one, two, Notice::Stopping]);
        assert!(parse(&[0xff; 4096]).is_empty());
    }
}
