//! `--status`.

#![forbid(unsafe_code)]

use super::conversation::ask_status;
use super::servers::NOTHING;
use super::table::{Row, for_people, print};
use crate::address::Address;
use crate::error::{Error, Result, status};
use crate::finder::{Holder, user_name};
use crate::message::Log;
use crate::procfs::{self, Snapshot};
use crate::rundir::RunDir;
use crate::swap::Level;
use crate::sys::net::{self, TcpSocket};
use crate::sys::process::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt;

/// Shows every server, or the servers at these addresses.
pub fn show_status(dir: Option<&RunDir>, addresses: &[Address], log: Log) -> Result<u8> {
    let people = nix::unistd::isatty(io::stdout()).unwrap_or(false);
    let rows = dir.map_or_else(|| Ok(Vec::new()), |dir| rows(dir, addresses, people, log))?;
    let missing =
        addresses.iter().find(|wanted| !rows.iter().any(|(a, _)| a.as_ref().is_some_and(|a| a.collides(wanted))));
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    print(&rows, people).map_err(|e| Error::unable("write the status", e, "nothing was changed"))?;
    match missing {
        Some(address) => Err(Error::failed(format!("{address}: no server ({NOTHING})"))),
        None => Ok(status::DONE),
    }
}

/// The rows of the table, with the address of each.
fn rows(dir: &RunDir, addresses: &[Address], people: bool, log: Log) -> Result<Vec<(Option<Address>, Row)>> {
    let unlisted = |e| Error::unable("list the run directory", e, NOTHING);
    let all = dir.addresses().map_err(unlisted)?;
    let is_wanted = |a: &Address| addresses.is_empty() || addresses.iter().any(|wanted| wanted.collides(a));
    let mut look = Look::new(people);
    let mut rows = Vec::new();
    let mut shown = BTreeSet::new();
    for address in all.into_iter().filter(is_wanted) {
        let mut notes = Vec::new();
        if let Some(holder) = dir.serving(&address, &mut notes) {
            shown.insert(holder.pid);
            let row = look.row(Some(&address), &holder);
            rows.push((Some(address.clone()), row));
        }
        for note in notes {
            log.say(Level::Warning, Some(&address), &note);
        }
    }
    // Servers whose successor has their pidfiles by now, workers, and servers that have not said yet what they want.
    for holder in dir.servers().map_err(unlisted)?.into_iter().filter(|h| !shown.contains(&h.pid)) {
        let holds = look.at(&holder).holds.clone();
        if holds.is_empty() && addresses.is_empty() {
            rows.push((None, look.row(None, &holder)));
        }
        for address in holds.into_iter().filter(is_wanted) {
            let row = look.row(Some(&address), &holder);
            rows.push((Some(address), row));
        }
    }
    Ok(rows)
}

/// What the machine shows at one moment.
struct Look {
    /// `None` if they cannot be listed.
    connections: Option<Vec<TcpSocket>>,
    snapshot: Snapshot,
    seen: BTreeMap<Pid, Seen>,
    /// Whether the table is for people.
    people: bool,
}

/// What is asked once of a server, however many addresses it has.
struct Seen {
    /// What its supervisor says.
    fields: BTreeMap<String, String>,
    /// The addresses that it has, even if a successor has the pidfiles.
    holds: Vec<Address>,
    /// Inodes of its sockets; `None` if they cannot be looked at.
    sockets: Option<BTreeSet<u32>>,
}

impl Look {
    fn new(people: bool) -> Look {
        Look { connections: net::connections().ok(), snapshot: Snapshot::take(), seen: BTreeMap::new(), people }
    }

    fn at(&mut self, holder: &Holder) -> &Seen {
        self.seen.entry(holder.pid).or_insert_with(|| {
            let (fields, holds) = ask_status(holder);
            Seen { fields, holds, sockets: holder.sockets(&self.snapshot).ok() }
        })
    }

    fn row(&mut self, address: Option<&Address>, holder: &Holder) -> Row {
        self.at(holder);
        let seen = &self.seen[&holder.pid];
        let field = |key: &str, or: &str| seen.fields.get(key).cloned().unwrap_or_else(|| or.to_owned());
        let state = if holder.is_orphan { "serving" } else { "not answering" };
        let here = |s: &&TcpSocket| address.is_some_and(|a| s.local.collides(a));
        // What cannot be counted is not 0.
        let count = self.connections.as_ref().zip(seen.sockets.as_ref()).map(|(all, own)| {
            let those = all.iter().filter(here).filter(|s| own.contains(&s.inode));
            those.count().to_string()
        });
        let uptime = procfs::stat(holder.pid).and_then(|s| procfs::age(&s)).unwrap_or(0);
        let uid = std::fs::metadata(format!("/proc/{}", holder.pid)).map(|m| m.uid());
        let mut command = field("command", &holder.command);
        let text = field("text", "");
        if !text.is_empty() {
            command = format!("{command} ({text})");
        }
        Row([
            address.map_or_else(|| "-".into(), Address::to_string),
            field("generation", &holder.generation.to_string()),
            holder.pid.to_string(),
            if holder.is_orphan { "-".into() } else { holder.supervisor.to_string() },
            uid.map_or_else(|_| "-".into(), user_name),
            field("state", state),
            field("mode", "-"),
            if self.people { for_people(uptime) } else { uptime.to_string() },
            count.unwrap_or_else(|| "-".into()),
            command.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        ])
    }
}
