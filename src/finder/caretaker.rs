//! A server that has lost its supervisor gets a caretaker: another serverswap, which takes the lock of its record.

use super::{Holder, Missing};
use crate::error::reason;
use crate::rundir::RunDir;
use crate::sys::pid::Pid;
use crate::sys::process;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a caretaker may take to get the lock of its server.
pub const CARES_WITHIN: Duration = Duration::from_secs(10);

/// How long it is given before another one is started.
pub const STARTS_WITHIN: Duration = Duration::from_secs(2);

/// How often it is looked for meanwhile.
const LOOKS_EVERY: Duration = Duration::from_millis(5);

impl RunDir {
    /// Starts a caretaker as a child of this process. Of several caretakers the first to get the lock stays.
    pub fn start_caretaker(&self, orphan: &Holder) -> io::Result<Pid> {
        match &orphan.call {
            Some(call) => process::spawn_caretaker(orphan.pid, &call.args, &call.dir, self.given()),
            None => {
                let words = ["--", &orphan.command].map(OsString::from);
                process::spawn_caretaker(orphan.pid, &words, Path::new("/"), self.given())
            }
        }
    }

    /// Waits until a server has a supervisor: a caretaker, which is started if need be. The error tells why it has none.
    pub fn with_caretaker(&self, server: Pid) -> Result<(), String> {
        if self.owner() != nix::unistd::geteuid().as_raw() {
            return Err(format!("server {server} has lost its supervisor, and only its user can give it another one"));
        }
        let until = Instant::now() + CARES_WITHIN;
        let mut again = Instant::now();
        loop {
            let holder = match self.holder(server) {
                Ok(holder) => holder,
                Err(Missing::Gone) => return Ok(()),
                Err(_) => return Err(format!("the record of server {server} cannot be read")),
            };
            if !holder.has_lost_its_supervisor() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("server {server} has lost its supervisor, and no caretaker comes up"));
            }
            if holder.is_orphan && again <= Instant::now() {
                again = Instant::now() + STARTS_WITHIN;
                self.start_caretaker(&holder).map_err(|e| format!("unable to start a caretaker: {}", reason(&e)))?;
            }
            std::thread::sleep(LOOKS_EVERY);
        }
    }
}
