//! The files of our server, written again after somebody has removed them.

#![forbid(unsafe_code)]

use super::state::Supervisor;
use crate::error::{Error, Result};
use crate::rundir::record_name;
use crate::swap::Level;
use std::time::{Duration, Instant};

/// After how long it is tried again where the files could not be written.
const TRIES_AGAIN: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Writes the record, the pidfiles and the sockets of our server again if the record is not there any more.
    pub(super) fn restore_files(&mut self) {
        let Some(live) = self.live.as_ref() else { return };
        let Some(registration) = &live.names.registration else { return };
        let is_there = self.dir.is_name_of(&record_name(live.server.pid), registration.file());
        if is_there || self.clock.restores_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let what = "its files were removed from the run directory";
        let name = live.machine.name();
        match self.write_again() {
            Ok(()) => self.log.say(Level::Warning, name.as_ref(), &format!("{what} (they are written again)")),
            Err(error) => {
                self.clock.restores_at = Some(Instant::now() + TRIES_AGAIN);
                self.log.say(Level::Warning, name.as_ref(), &format!("{what}: {}", error.text));
            }
        }
    }

    fn write_again(&mut self) -> Result<()> {
        self.dir.open_again()?;
        let replaced = self.live.as_ref().map_or(Vec::new(), |live| live.names.olds());
        self.register_again();
        self.write_pidfiles(&replaced);
        let Some(live) = self.live.as_mut() else { return Ok(()) };
        if !live.sockets.are_in(self.dir.path()) {
            let failed = |e| Error::unable("open its sockets", e, "it cannot be asked for anything");
            live.sockets.remove(self.dir.path());
            let again = live.sockets.open_again(self.dir.path()).map_err(failed)?;
            again.hear(&self.events).map_err(failed)?;
            std::mem::replace(&mut live.sockets, again).close();
        }
        Ok(())
    }
}
