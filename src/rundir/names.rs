//! The names of the files in the run directory, and the list of them.

use super::RunDir;
use crate::address::Address;
use crate::record::parse_number;
use crate::sys::pid::Pid;
use std::os::fd::AsRawFd;

/// The name of the pidfile of an address.
pub fn pidfile(address: &Address) -> String {
    format!("{}.pid", address.stem())
}

/// The name of the record of a server.
pub fn record_name(pid: Pid) -> String {
    format!("{pid}.server")
}

impl RunDir {
    /// The name of a file that a supervisor of our pid namespace has not finished writing. A supervisor of another
    /// namespace may have the same pid.
    pub fn temporary_name(&self, writer: Pid) -> String {
        format!(".new.{writer}-{:x}", self.namespaces.pid.unwrap_or(0))
    }

    /// The names of all files that end like this.
    pub fn names_that_end(&self, end: &str) -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/self/fd/{}", self.dir.as_raw_fd()))? {
            let name = entry?.file_name();
            if name.as_encoded_bytes().ends_with(end.as_bytes()) {
                names.extend(name.into_string());
            }
        }
        Ok(names)
    }

    /// The main processes that have a record.
    pub fn pids(&self) -> std::io::Result<Vec<Pid>> {
        let names = self.names_that_end(".server")?;
        Ok(names.iter().filter_map(|name| parse_number(name.strip_suffix(".server")?)).collect())
    }

    /// Every address that has a pidfile.
    pub fn addresses(&self) -> std::io::Result<Vec<Address>> {
        self.addresses_that_end(String::new())
    }

    /// The addresses of pidfiles whose name ends like this, before `.pid`. To parse a thousand names takes longer than
    /// to read them.
    pub(super) fn addresses_that_end(&self, end: String) -> std::io::Result<Vec<Address>> {
        let names = self.names_that_end(&(end + ".pid"))?;
        let mut addresses: Vec<Address> =
            names.iter().filter_map(|name| Address::from_stem(name.strip_suffix(".pid")?)).collect();
        addresses.sort();
        Ok(addresses)
    }
}
