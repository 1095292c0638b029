//! The files of our server, written again after somebody has removed them.

#![forbid(unsafe_code)]

use super::state::Supervisor;
use crate::error::Result;
use crate::rundir::record_name;
use crate::swap::Level;

impl Supervisor {
    /// Writes the record, the pidfiles and the sockets of our server again if the record is not there any more.
    pub(super) fn restore_files(&mut self) {
        let Some(live) = self.live.as_ref() else { return };
        let Some(registration) = &live.names.registration else { return };
        if self.dir.is_name_of(&record_name(live.server.pid), registration.file()) {
            return;
        }
        let what = "its files were removed from the run directory";
        let name = live.machine.name();
        match self.write_again() {
            Ok(()) => self.log.say(Level::Warning, name.as_ref(), &format!("{what} (they are written again)")),
            Err(error) => self.log.say(Level::Warning, name.as_ref(), &format!("{what}: {}", error.text)),
        }
    }

    fn write_again(&mut self) -> Result<()> {
        self.dir.open_again()?;
        if let Some(live) = self.live.as_mut() {
            let failed = |e| crate::error::Error::unable("open its sockets", e, "it cannot be asked for anything");
            let again = live.sockets.open_again(self.dir.path()).map_err(failed)?;
            again.hear(&self.events).map_err(failed)?;
            std::mem::replace(&mut live.sockets, again).close();
        }
        self.register_again();
        let Some(live) = self.live.as_mut() else { return Ok(()) };
        for address in &live.names.held {
            if let Err(why) = self.dir.take(address, live.server.pid, &live.names.replaced, &live.names.beside) {
                self.log.say(Level::Warning, Some(address), &format!("unable to write its pidfile: {why}"));
            }
        }
        Ok(())
    }
}
