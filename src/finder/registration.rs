//! Writing, locking and removing the records of our own servers.

#![forbid(unsafe_code)]

use super::{Missing, Registration};
use crate::procfs;
use crate::record::{Call, Record};
use crate::rundir::{RunDir, record_name};
use crate::sys::pid::Pid;
use std::fs::File;

/// What the record of a server is to say.
pub struct Entry<'a> {
    /// Main process of the server.
    pub pid: Pid,
    /// Start time of the main process.
    pub start: u64,
    /// The session of its main process, if its supervisor is not in it.
    pub session: Option<i32>,
    /// Its generation.
    pub generation: u64,
    /// Name of its control socket in the run directory.
    pub socket: &'a str,
    /// Its command line, for people.
    pub command: &'a str,
    /// Main processes of the servers that it replaces at shared ports.
    pub replaced: &'a [Pid],
    /// Inodes of the UDP sockets at fixed ports that it had when it came up.
    pub datagrams: &'a [u32],
}

impl RunDir {
    /// Writes and locks the record of a server.
    pub fn register(&self, entry: &Entry<'_>) -> Result<Registration, String> {
        let boot = procfs::boot_id();
        if boot.is_empty() {
            // The record would seem to be older than the last start of the machine.
            return Err("unable to read /proc/sys/kernel/random/boot_id".into());
        }
        if self.holder(entry.pid).err() == Some(Missing::Elsewhere) {
            return Err("a server of another namespace has a record of that pid".into());
        }
        let record = Record {
            pid: entry.pid,
            start: entry.start,
            session: entry.session,
            boot: &boot,
            supervisor: Pid::own(),
            namespaces: *self.namespaces(),
            generation: entry.generation,
            socket: entry.socket,
            command: entry.command,
            call: Call::own(),
            replaced: entry.replaced.to_vec(),
            datagrams: entry.datagrams.to_vec(),
        };
        let lock = |file: &File| file.try_lock().map_err(std::io::Error::from);
        let file = self.write_by_rename(&record_name(entry.pid), record.to_string().as_bytes(), 0o600, lock)?;
        Ok(Registration { lock: file, pid: entry.pid })
    }

    /// Removes one of our records, and the sockets of its server.
    pub fn deregister(&self, registration: Registration, sockets: &[String]) {
        for socket in sockets {
            self.unlink(socket);
        }
        self.unlink_record(&registration);
    }

    /// Drops a record because the same server, whose main process is now `pid`, has a newer one.
    pub fn forget(&self, registration: Registration, pid: Pid) {
        if registration.pid != pid {
            self.unlink_record(&registration);
        }
    }

    /// Removes the file, unless another server has got the pid and with it the name.
    fn unlink_record(&self, registration: &Registration) {
        self.unlink_name_of(&registration.lock, &record_name(registration.pid));
    }
}
