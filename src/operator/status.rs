//! `--status`.

#![forbid(unsafe_code)]

use super::conversation::ask_status;
use super::servers::{NOTHING, with_process};
use super::table::{Layout, Row, for_people, print, print_history};
use crate::address::Address;
use crate::cli::{Form, Target};
use crate::error::{Error, Result, status};
use crate::finder::Holder;
use crate::history::Entry;
use crate::message::Log;
use crate::procfs::{self, Snapshot};
use crate::rundir::{Bad, CANNOT_BE_READ, RunDir};
use crate::swap::Level;
use crate::sys::net::{self, TcpSocket};
use crate::sys::process::Pid;
use crate::sys::user;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt;

/// Shows every server, or the servers that are named; with `-v` the histories of their addresses too.
pub fn show_status(dir: Option<&RunDir>, targets: &[Target], form: Form, log: Log) -> Result<u8> {
    let layout = match form {
        Form::Json => Layout::Json,
        Form::Table if nix::unistd::isatty(io::stdout()).unwrap_or(false) => Layout::People,
        Form::Table => Layout::Tabs,
    };
    let wanted = match dir {
        Some(dir) => targets.iter().map(|target| resolved(dir, target)).collect::<Result<Vec<Wanted>>>()?,
        None => targets.iter().map(|target| Wanted(target.clone(), None)).collect(),
    };
    let mut rows = dir.map_or_else(|| Ok(Vec::new()), |dir| rows(dir, &wanted, layout, log))?;
    let missing = wanted.iter().find(|wanted| !rows.iter().any(|row| wanted.is(row.pid, row.address.as_ref())));
    let missing = missing.map(|Wanted(target, _)| Error::failed(format!("{target}: no server ({NOTHING})")));
    let histories = dir.filter(|_| log.says(Level::Detail)).map(|dir| histories(dir, &wanted, &rows, log));
    for row in &mut rows {
        let history = row.address.as_ref().and_then(|address| histories.as_ref()?.get(address).cloned());
        row.cells.1 = history.or(histories.as_ref().map(|_| Vec::new()));
    }
    let is_gone = |address: &Address| !rows.iter().any(|row| row.address.as_ref() == Some(address));
    let told = histories.iter().flatten().filter(|(address, history)| is_gone(address) && !history.is_empty());
    let gone: Vec<Row> = match layout {
        Layout::Json => told.map(|(address, history)| Row::of_history(address, history)).collect(),
        Layout::People | Layout::Tabs => Vec::new(),
    };
    let rows: Vec<Row> = rows.into_iter().map(|row| row.cells).chain(gone).collect();
    let mut written = print(&rows, layout);
    for (address, history) in histories.iter().flatten() {
        written = written.and_then(|()| print_history(address, history, layout));
    }
    written.map_err(|e| Error::unable("write the status", e, "nothing was changed"))?;
    missing.map_or(Ok(status::DONE), Err)
}

/// The histories of the addresses that are shown, and of those that are named, whose servers may be gone.
fn histories(dir: &RunDir, wanted: &[Wanted], rows: &[About], log: Log) -> BTreeMap<Address, Vec<Entry>> {
    let named =
        wanted.iter().filter_map(|wanted| if let Target::At(address) = &wanted.0 { Some(address) } else { None });
    let all: BTreeSet<&Address> = named.chain(rows.iter().filter_map(|row| row.address.as_ref())).collect();
    let read = |address: &Address| match dir.history(address) {
        Ok(history) => history,
        Err(bad) => {
            let why = if let Bad::Because(why) = bad { why } else { CANNOT_BE_READ };
            log.say(Level::Warning, Some(address), &format!("its history {why} (it is not shown)"));
            Vec::new()
        }
    };
    all.into_iter().map(|address| (address.clone(), read(address))).collect()
}

/// What was asked for, and which server that is if it was named by a process.
struct Wanted(Target, Option<Pid>);

fn resolved(dir: &RunDir, target: &Target) -> Result<Wanted> {
    let pid = match target {
        Target::At(_) => None,
        Target::Of(pid) => Some(with_process(dir, *pid)?.pid),
    };
    Ok(Wanted(target.clone(), pid))
}

impl Wanted {
    fn may_be_at(&self, address: &Address) -> bool {
        matches!(self.0, Target::Of(_)) || matches!(&self.0, Target::At(wanted) if wanted.collides(address))
    }

    fn is(&self, pid: Pid, address: Option<&Address>) -> bool {
        match &self.0 {
            Target::At(wanted) => address.is_some_and(|address| address.collides(wanted)),
            Target::Of(_) => self.1 == Some(pid),
        }
    }
}

/// A row of the table, and which address of which server it is about.
struct About {
    pid: Pid,
    address: Option<Address>,
    cells: Row,
}

/// The rows of the table.
fn rows(dir: &RunDir, wanted: &[Wanted], layout: Layout, log: Log) -> Result<Vec<About>> {
    let unlisted = |e| Error::unable("list the run directory", e, NOTHING);
    let all = dir.addresses().map_err(unlisted)?;
    let is_wanted =
        |pid: Pid, address: Option<&Address>| wanted.is_empty() || wanted.iter().any(|wanted| wanted.is(pid, address));
    let mut others = dir.servers().map_err(unlisted)?;
    let mut look = Look::new(layout);
    look.note_kept(&others);
    let mut rows = Vec::new();
    let mut shown = BTreeSet::new();
    let may_be = |address: &Address| wanted.is_empty() || wanted.iter().any(|wanted| wanted.may_be_at(address));
    for address in all.into_iter().filter(may_be) {
        let mut notes = Vec::new();
        let holder = dir.serving(&address, &mut notes);
        if let Some(holder) = holder.filter(|holder| is_wanted(holder.pid, Some(&address))) {
            shown.insert(holder.pid);
            let cells = look.row(Some(&address), &holder);
            rows.push(About { pid: holder.pid, address: Some(address.clone()), cells });
        }
        for note in notes {
            log.say(Level::Warning, Some(&address), &note);
        }
    }
    // Servers whose successor has their pidfiles by now, workers, and servers that have not said yet what they want.
    others.sort_by_key(|other| Reverse((other.generation, other.start)));
    for holder in others.into_iter().filter(|h| !shown.contains(&h.pid)) {
        let holds = look.at(&holder).holds.clone();
        if holds.is_empty() && is_wanted(holder.pid, None) {
            rows.push(About { pid: holder.pid, address: None, cells: look.row(None, &holder) });
        }
        for address in holds.into_iter().filter(|address| is_wanted(holder.pid, Some(address))) {
            let cells = look.row(Some(&address), &holder);
            rows.push(About { pid: holder.pid, address: Some(address), cells });
        }
    }
    Ok(rows)
}

/// What the machine shows at one moment.
struct Look {
    /// By their ports here; `None` if they cannot be listed.
    connections: Option<BTreeMap<u16, Vec<TcpSocket>>>,
    snapshot: Snapshot,
    /// Servers that are kept behind newer ones.
    kept: BTreeSet<Pid>,
    seen: BTreeMap<Pid, Seen>,
    layout: Layout,
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
    fn new(layout: Layout) -> Look {
        let connections = net::connections().ok().map(|all| {
            let mut by_port: BTreeMap<u16, Vec<TcpSocket>> = BTreeMap::new();
            all.into_iter().for_each(|socket| by_port.entry(socket.ends.local.port()).or_default().push(socket));
            by_port
        });
        Look { connections, snapshot: Snapshot::take(), kept: BTreeSet::new(), seen: BTreeMap::new(), layout }
    }

    /// Notes who is kept behind a newer one of these, which has all new connections.
    fn note_kept(&mut self, servers: &[Holder]) {
        for newer in servers.iter().filter(|newer| !newer.is_orphan && !newer.olds.kept.is_empty()) {
            if self.at(newer).fields.get("state").is_some_and(|state| state == "serving") {
                self.kept.extend(&newer.olds.kept);
            }
        }
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
        let port = if let Some(Address::Tcp(_, port)) = address { *port } else { 0 };
        // What cannot be counted is not 0.
        let count = self.connections.as_ref().zip(seen.sockets.as_ref()).map(|(all, own)| {
            let those = all.get(&port).into_iter().flatten().filter(here).filter(|s| own.contains(&s.inode));
            those.count().to_string()
        });
        let uptime = procfs::stat(holder.pid).and_then(|s| procfs::age(&s)).unwrap_or(0);
        let uid = std::fs::metadata(format!("/proc/{}", holder.pid)).map(|m| m.uid());
        let mut command = field("command", &holder.command);
        let text = field("text", "");
        if !text.is_empty() {
            command = format!("{command} ({text})");
        }
        let cells = [
            address.map_or_else(|| "-".into(), Address::to_string),
            field("generation", &holder.generation.to_string()),
            holder.pid.to_string(),
            if holder.is_orphan { "-".into() } else { holder.supervisor.to_string() },
            uid.map_or_else(|_| "-".into(), user::name),
            if self.kept.contains(&holder.pid) { "held".into() } else { field("state", state) },
            field("mode", "-"),
            if self.layout == Layout::People { for_people(uptime) } else { uptime.to_string() },
            count.unwrap_or_else(|| "-".into()),
            visible(&field("log", "-")),
            visible(&command),
        ];
        Row(cells, None)
    }
}

/// A text that comes from a server or a record: nothing in it may drive a terminal, or end a field.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
