//! The pidfiles: which there are, and the pid in each.

use super::{Bad, CANNOT_BE_READ, Notes, RunDir, pidfile};
use crate::address::Address;
use crate::error::reason;
use crate::record::parse_pid;
use crate::sys::pid::Pid;
use std::io::Read;

impl RunDir {
    /// The addresses that have a pidfile and cannot coexist with this one.
    pub fn colliding_with(&self, address: &Address) -> std::io::Result<Vec<Address>> {
        Ok(match address {
            Address::Tcp(None, port) => {
                self.addresses_that_end(port.to_string())?.into_iter().filter(|a| a.collides(address)).collect()
            }
            Address::Tcp(Some(_), port) => [Address::Tcp(None, *port), address.clone()]
                .into_iter()
                .filter(|a| self.read_pid(&pidfile(a)) != Err(Bad::Absent))
                .collect(),
            Address::Name(_) => vec![address.clone()],
        })
    }

    /// The pidfiles of addresses that cannot coexist with this one, with the pid in each. Files that hold no pid are
    /// removed.
    pub fn colliding(&self, address: &Address, notes: &mut Notes) -> Result<Vec<(Address, Pid)>, String> {
        let mut pids = Vec::new();
        let listed = self.colliding_with(address);
        for own in listed.map_err(|e| format!("unable to list the run directory: {}", reason(&e)))? {
            match self.read_pid(&pidfile(&own)) {
                Ok(pid) => pids.push((own, pid)),
                Err(Bad::Absent) => {}
                // It may be the pidfile of a living server.
                Err(Bad::Unreadable) => return Err(format!("unable to read the pidfile of {own}")),
                Err(Bad::Because(why)) => {
                    notes.push(format!("the pidfile of {own} {why} (it is removed)"));
                    self.unlink(&pidfile(&own));
                }
            }
        }
        Ok(pids)
    }

    /// The pids in the pidfiles of addresses that cannot coexist with this one.
    pub fn named(&self, address: &Address) -> std::io::Result<Vec<Pid>> {
        let mut pids = Vec::new();
        for own in self.colliding_with(address)? {
            match self.read_pid(&pidfile(&own)) {
                Ok(pid) => pids.push(pid),
                Err(Bad::Absent | Bad::Because(_)) => {}
                Err(Bad::Unreadable) => {
                    return Err(std::io::Error::other(format!("the pidfile of {own} {CANNOT_BE_READ}")));
                }
            }
        }
        Ok(pids)
    }

    /// Reads a pidfile.
    pub fn read_pid(&self, name: &str) -> Result<Pid, Bad> {
        let mut text = String::new();
        let file = self.open_checked(name, 16)?;
        let garbage = Bad::Because("holds no pid");
        file.take(16).read_to_string(&mut text).map_err(|_| garbage)?;
        parse_pid(&text).ok_or(garbage)
    }

    /// Writes the pidfile of an address.
    pub fn write_pid(&self, address: &Address, pid: Pid) -> Result<(), String> {
        // Anybody may read it, and so lock it: its lock must mean nothing.
        self.write_by_rename(&pidfile(address), format!("{pid}\n").as_bytes(), 0o644, |_| Ok(())).map(drop)
    }

    /// Removes the pidfile of the address if it names `me`.
    pub fn unhold(&self, address: &Address, me: Pid) {
        let Ok(_guard) = self.lock() else { return };
        let name = pidfile(address);
        if self.read_pid(&name) == Ok(me) {
            self.unlink(&name);
        }
    }
}
