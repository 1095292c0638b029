//! Writing, locking and removing the records of our own servers.

use super::{Missing, Registration};
use crate::procfs;
use crate::record::{Call, Record};
use crate::rundir::{RunDir, record_name};
use crate::sys::pid::Pid;
use std::fs::File;

impl RunDir {
    /// Writes and locks the record of a server. Who supervises it, and where, stands in it whatever `server` says.
    pub fn register(&self, server: Record) -> Result<Registration, String> {
        let boot = procfs::boot_id();
        if boot.is_empty() {
            // The record would seem to be older than the last start of the machine.
            return Err("unable to read /proc/sys/kernel/random/boot_id".into());
        }
        if self.holder(server.pid).err() == Some(Missing::Elsewhere) {
            return Err("a server of another namespace has a record of that pid".into());
        }
        let namespaces = *self.namespaces();
        let record = Record { boot, supervisor: Pid::own(), namespaces, call: Call::own(), ..server };
        let lock = |file: &File| file.try_lock().map_err(std::io::Error::from);
        let file = self.write_by_rename(&record_name(record.pid), record.to_string().as_bytes(), 0o600, lock)?;
        Ok(Registration { lock: file, pid: record.pid })
    }

    /// Removes one of our records, and the sockets of its server.
    pub fn deregister(&self, registration: Registration, sockets: &[String]) {
        for socket in sockets {
            self.unlink(socket);
        }
        // Unless another server has got the pid and with it the name.
        self.unlink_name_of(&registration.lock, &record_name(registration.pid));
    }
}
