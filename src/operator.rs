//! What a person asks of running servers: `--status`, `--takedown`, `--reload`.

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::error::{Error, Result, reason, status};
use crate::family::Jobs;
use crate::finder::{Holder, user_name};
use crate::message::Log;
use crate::procfs::{self, Snapshot};
use crate::protocol::{HolderWord, PEER_VERSION, PeerWord, Splitter, Word, line_of};
use crate::rundir::RunDir;
use crate::swap::{ADDRESSES_MAX, Level};
use crate::sys::process::Pid;
use crate::sys::{net, socket};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a supervisor may take to be spoken to, and to say what it is doing.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// How many fields of a later version there may be.
const FIELDS_MAX: usize = 64;
/// How often, and after how long, a server is looked at again whose supervisor seems to end.
const LOOKS: u32 = 100;
const LOOKS_EVERY: Duration = Duration::from_millis(20);

const NOTHING: &str = "nothing was done";

/// A conversation with a supervisor.
struct Supervisor {
    stream: UnixStream,
    splitter: Splitter,
    words: VecDeque<HolderWord>,
    /// When it is heard no more, whatever it says.
    until: Option<Instant>,
}

impl Supervisor {
    fn of(holder: &Holder) -> io::Result<Supervisor> {
        let stream = socket::connect_to_own(&holder.socket, Some(STATUS_PATIENCE))?;
        let supervisor = Supervisor { stream, splitter: Splitter::default(), words: VecDeque::new(), until: None };
        supervisor.say(&PeerWord::Peer(PEER_VERSION))?;
        Ok(supervisor)
    }

    fn say(&self, word: &PeerWord) -> io::Result<()> {
        (&self.stream).write_all(&line_of(word))
    }

    /// The next word; `None` when the supervisor is gone.
    fn hear(&mut self) -> io::Result<Option<HolderWord>> {
        let mut buffer = [0; 1024];
        loop {
            if let Some(word) = self.words.pop_front() {
                return Ok(Some(word));
            }
            if let Some(until) = self.until {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                self.stream.set_read_timeout(Some(left))?;
            }
            let len = match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(len) => len,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            let lines = self.splitter.push(&buffer[..len]).into_iter().flatten();
            self.words.extend(lines.filter_map(|line| HolderWord::parse(&line).ok()));
        }
    }
}

fn find(dir: &RunDir, address: &Address, log: Log) -> Result<Holder> {
    let mut notes = Vec::new();
    let mut holder = dir.serving(address, &mut notes);
    if holder.is_none() {
        // `:8080` is also how a person calls the only server there is on port 8080.
        let mut same = dir.colliding_with(address).map_err(|e| Error::unable("list the run directory", e, NOTHING))?;
        same.retain(|a| a != address);
        if let [only] = &same[..] {
            holder = dir.serving(only, &mut notes);
        }
    }
    for note in notes {
        log.say(Level::Warning, Some(address), &note);
    }
    holder.ok_or_else(|| Error::failed(format!("{address}: no server (nothing was done)")))
}

/// The only server that has an address without a pidfile: that may be on its way back to it, from a successor that
/// was killed, or was removed by somebody.
fn without_pidfile(dir: &RunDir, address: &Address) -> Option<Holder> {
    if !dir.colliding_with(address).is_ok_and(|colliding| colliding.is_empty()) {
        return None;
    }
    let has = |other: &Holder| ask_status(other).1.iter().any(|a| a.collides(address));
    let mut servers = dir.servers().ok()?.into_iter().filter(has);
    servers.next().filter(|_| servers.next().is_none())
}

/// Addresses by the server that has them, in the order asked for.
fn by_server(dir: &RunDir, addresses: &[Address], log: Log) -> Result<Vec<(Holder, Vec<Address>)>> {
    let mut servers: Vec<(Holder, Vec<Address>)> = Vec::new();
    for address in addresses {
        let holder = find(dir, address, log).or_else(|e| without_pidfile(dir, address).ok_or(e))?;
        match servers.iter_mut().find(|(known, _)| known.pid == holder.pid) {
            Some((_, list)) => list.push(address.clone()),
            None => servers.push((holder, vec![address.clone()])),
        }
    }
    Ok(servers)
}

/// `--takedown`: returns when the addresses are down.
pub fn takedown(dir: &RunDir, addresses: &[Address], log: Log) -> Result<u8> {
    let mut servers: VecDeque<(Holder, Vec<Address>)> = by_server(dir, addresses, log)?.into();
    let mut looks = LOOKS;
    while let Some((holder, list)) = servers.pop_front() {
        let failed = |why: &str| Err(Error::failed(format!("{}: unable to take down: {why}", list[0])));
        let released = match ask_down(dir, &holder, &list, addresses, log) {
            Ok(released) => released,
            Err(why) => return failed(&why),
        };
        // It went away first: whoever has the addresses by now is asked in its place.
        let served = |address: &&Address| !released && find(dir, address, log).is_ok();
        let (left, down): (Vec<&Address>, Vec<&Address>) = list.iter().partition(served);
        for address in down {
            log.say(Level::Notice, Some(address), "taken down");
        }
        let left: Vec<Address> = left.into_iter().cloned().collect();
        for next in by_server(dir, &left, log)? {
            if next.0.pid == holder.pid && next.0.orphan.is_none() {
                // The lock of a supervisor that is ending goes a moment after its sockets.
                if looks == 0 {
                    return failed("its supervisor does not answer (the server still serves)");
                }
                looks -= 1;
                std::thread::sleep(LOOKS_EVERY);
            }
            match servers.iter_mut().find(|(known, _)| known.pid == next.0.pid) {
                Some((_, list)) => list.extend(next.1),
                None => servers.push_back(next),
            }
        }
    }
    Ok(status::DONE)
}

/// `true`: released; `false`: the server or its supervisor went away first. `named`: of other servers too.
fn ask_down(
    dir: &RunDir,
    holder: &Holder,
    addresses: &[Address],
    named: &[Address],
    log: Log,
) -> std::result::Result<bool, String> {
    if holder.orphan.is_some() {
        // A supervisor that died in a swap of its own has left two.
        let known = std::slice::from_ref(holder);
        let unclear = |e: io::Error| format!("unable to see who else listens: {} ({NOTHING})", reason(&e));
        let mut beside = dir.beside(addresses, Pid::own(), known).map_err(unclear)?;
        beside.retain(|other| other.orphan.is_some());
        let orphans = || [holder].into_iter().chain(&beside);
        let is_other = |a: &Address| !named.iter().any(|named| named.collides(a));
        let has = |a: &Address| dir.serving(a, &mut Vec::new()).is_some_and(|h| orphans().any(|own| own.pid == h.pid));
        let others: Vec<String> = dir
            .addresses()
            .map_err(unclear)?
            .iter()
            .filter(|a| is_other(a) && has(a))
            .map(Address::to_string)
            .collect();
        if !others.is_empty() {
            let others = others.join(", ");
            return Err(format!("the same server also has {others} and has lost its supervisor (nothing was done)"));
        }
        return orphans().try_for_each(|orphan| stop_orphan(dir, orphan, log)).map(|()| false);
    }
    let asked = || -> io::Result<(bool, Option<String>)> {
        let mut supervisor = Supervisor::of(holder)?;
        for address in addresses {
            supervisor.say(&PeerWord::Down(address.clone()))?;
        }
        supervisor.say(&PeerWord::Commit)?;
        let mut left: Vec<&Address> = addresses.iter().collect();
        while let Some(word) = supervisor.hear()? {
            match word {
                HolderWord::Released(address) => left.retain(|a| **a != address),
                HolderWord::Gone => return Ok((false, None)),
                HolderWord::Refused(why) => return Ok((false, Some(why))),
                HolderWord::Peer(_)
                | HolderWord::Holds(_)
                | HolderWord::Sockets(_)
                | HolderWord::Locked
                | HolderWord::Joins(_)
                | HolderWord::Reloaded
                | HolderWord::Failed(..)
                | HolderWord::Field(..)
                | HolderWord::End
                | HolderWord::Error(_) => {}
            }
            if left.is_empty() {
                return Ok((true, None));
            }
        }
        Ok((false, None))
    };
    match asked() {
        Ok((_, Some(why))) => Err(format!("{why} (nothing was done)")),
        Ok((done, None)) => Ok(done),
        Err(e) if is_end(&e) => Ok(false),
        Err(e) => Err(format!("its supervisor does not answer: {} (nothing was done)", reason(&e))),
    }
}

/// Whether a supervisor that ends explains the error.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound)
}

/// A server without a supervisor: nobody else can tell it to stop.
fn stop_orphan(dir: &RunDir, holder: &Holder, log: Log) -> std::result::Result<(), String> {
    let Some(server) = crate::server::Server::adopt(holder) else {
        // It may be gone, or there may be no fd for it: time will tell.
        std::thread::sleep(LOOKS_EVERY);
        return Ok(());
    };
    if server.is_out_of_reach() {
        return Err(format!("it runs as another user and cannot be stopped ({NOTHING})"));
    }
    log.say(Level::Notice, None, &format!("server {} has lost its supervisor and is told to stop", holder.pid));
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let ended = server.watch().map_err(|e| e.to_string())?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        ended.wait();
        let _ = sender.send(());
    });
    if receiver.recv_timeout(Duration::from_secs(10)).is_err() {
        server.signal_all(nix::sys::signal::Signal::SIGKILL, Jobs::Ended);
        if receiver.recv_timeout(Duration::from_secs(10)).is_err() {
            return Err(format!("server {} does not end, not even by SIGKILL", holder.pid));
        }
    }
    server.signal_rest(nix::sys::signal::Signal::SIGTERM, Jobs::Ended);
    if dir.hold() {
        dir.addresses().iter().flatten().for_each(|address| dir.unhold(address, holder.pid));
        dir.tidy();
        dir.release();
    } else {
        let text = "unable to lock the run directory: somebody holds its lock and does not let go (its files stay)";
        log.say(Level::Warning, None, text);
    }
    Ok(())
}

/// `--reload`: returns the status of the new server, 0 when it is up and the old one is gone.
pub fn reload(dir: &RunDir, addresses: &[Address], log: Log) -> Result<u8> {
    for (holder, list) in by_server(dir, addresses, log)? {
        let address = &list[0];
        if holder.orphan.is_some() {
            return Err(Error::failed(format!(
                "{address}: unable to reload: server {} has lost its supervisor (start its command again to replace it)",
                holder.pid
            )));
        }
        let answer = || -> io::Result<Option<HolderWord>> {
            let mut supervisor = Supervisor::of(&holder)?;
            supervisor.say(&PeerWord::Reload)?;
            while let Some(word) = supervisor.hear()? {
                if matches!(word, HolderWord::Reloaded | HolderWord::Failed(..)) {
                    return Ok(Some(word));
                }
            }
            Ok(None)
        };
        match answer() {
            Ok(Some(HolderWord::Failed(status, why))) => {
                return Err(Error { text: format!("{address}: reload failed: {why}"), status });
            }
            Ok(Some(_)) => log.say(Level::Notice, Some(address), "reloaded"),
            Ok(None) => {
                return Err(Error::failed(format!("{address}: reload failed: the supervisor is gone")));
            }
            Err(e) => {
                return Err(Error::failed(format!(
                    "{address}: unable to reload: its supervisor does not answer: {e} (nothing was done)"
                )));
            }
        }
    }
    Ok(status::DONE)
}

/// A line of the table.
struct Row([String; 10]);

const HEADER: [&str; 10] =
    ["ADDRESS", "GENERATION", "PID", "SUPERVISOR", "USER", "STATE", "MODE", "UPTIME", "CONNECTIONS", "COMMAND"];

/// `--status`: every server, or those of the addresses.
pub fn show_status(dir: Option<&RunDir>, addresses: &[Address], log: Log) -> Result<u8> {
    let mut rows = Vec::new();
    let people = nix::unistd::isatty(io::stdout()).unwrap_or(false);
    if let Some(dir) = dir {
        let unlisted = |e| Error::unable("list the run directory", e, NOTHING);
        let all = dir.addresses().map_err(unlisted)?;
        let asked: Vec<Address> = match addresses {
            [] => all,
            list => all.into_iter().filter(|a| list.iter().any(|wanted| wanted.collides(a))).collect(),
        };
        let connections = net::connections().ok();
        let snapshot = Snapshot::take();
        let mut seen = BTreeMap::new();
        let mut shown = BTreeSet::new();
        for address in asked {
            let mut notes = Vec::new();
            if let Some(holder) = dir.serving(&address, &mut notes) {
                let row = row(Some(&address), &holder, connections.as_deref(), &snapshot, &mut seen, people);
                shown.insert(holder.pid);
                rows.push((Some(address.clone()), row));
            }
            for note in notes {
                log.say(Level::Warning, Some(&address), &note);
            }
        }
        // Servers whose successor has their pidfiles by now, workers, and those that have not said yet what
        // they want.
        for holder in dir.servers().map_err(unlisted)?.into_iter().filter(|h| !shown.contains(&h.pid)) {
            let holds = seen.entry(holder.pid).or_insert_with(|| Seen::of(&holder, &snapshot)).holds.clone();
            if holds.is_empty() && addresses.is_empty() {
                rows.push((None, row(None, &holder, connections.as_deref(), &snapshot, &mut seen, people)));
            }
            for address in holds {
                if addresses.is_empty() || addresses.iter().any(|wanted| wanted.collides(&address)) {
                    let row = row(Some(&address), &holder, connections.as_deref(), &snapshot, &mut seen, people);
                    rows.push((Some(address), row));
                }
            }
        }
    }
    let missing =
        addresses.iter().find(|wanted| !rows.iter().any(|(a, _)| a.as_ref().is_some_and(|a| a.collides(wanted))));
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    print(&rows, people).map_err(|e| Error::unable("write the status", e, "nothing was changed"))?;
    match missing {
        Some(address) => Err(Error::failed(format!("{address}: no server (nothing was done)"))),
        None => Ok(status::DONE),
    }
}

/// What is found out once about a server, however many addresses it has.
struct Seen {
    /// What its supervisor says.
    fields: BTreeMap<String, String>,
    /// The addresses that it has, even if a successor has the pidfiles.
    holds: Vec<Address>,
    /// Inodes of its sockets; `None` where they cannot be looked at.
    sockets: Option<BTreeSet<u32>>,
}

impl Seen {
    fn of(holder: &Holder, snapshot: &Snapshot) -> Seen {
        let (fields, holds) = ask_status(holder);
        Seen { fields, holds, sockets: holder.sockets(snapshot).ok() }
    }
}

fn row(
    address: Option<&Address>,
    holder: &Holder,
    connections: Option<&[net::TcpSocket]>,
    snapshot: &Snapshot,
    seen: &mut BTreeMap<Pid, Seen>,
    people: bool,
) -> Row {
    let seen = seen.entry(holder.pid).or_insert_with(|| Seen::of(holder, snapshot));
    let field = |key: &str, or: &str| seen.fields.get(key).cloned().unwrap_or_else(|| or.to_owned());
    let state = if holder.orphan.is_some() { "serving" } else { "not answering" };
    let here = |s: &&net::TcpSocket| address.is_some_and(|a| s.local.collides(a));
    // What could not be asked is not 0.
    let count = connections.zip(seen.sockets.as_ref()).map(|(all, own)| {
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
        if holder.orphan.is_some() { "-".into() } else { holder.supervisor.to_string() },
        uid.map_or_else(|_| "-".into(), user_name),
        field("state", state),
        field("mode", "-"),
        if people { for_people(uptime) } else { uptime.to_string() },
        count.unwrap_or_else(|| "-".into()),
        command.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
    ])
}

fn ask_status(holder: &Holder) -> (BTreeMap<String, String>, Vec<Address>) {
    let (mut fields, mut holds) = (BTreeMap::new(), Vec::new());
    let mut ask = || -> io::Result<()> {
        let mut supervisor = Supervisor::of(holder)?;
        supervisor.until = Some(Instant::now() + STATUS_PATIENCE);
        supervisor.say(&PeerWord::Status)?;
        while let Some(word) = supervisor.hear()? {
            match word {
                HolderWord::Field(key, value) if fields.len() < FIELDS_MAX => drop(fields.insert(key, value)),
                HolderWord::End => break,
                HolderWord::Holds(address) if holds.len() < ADDRESSES_MAX => holds.push(address),
                HolderWord::Peer(_)
                | HolderWord::Field(..)
                | HolderWord::Holds(_)
                | HolderWord::Sockets(_)
                | HolderWord::Locked
                | HolderWord::Joins(_)
                | HolderWord::Released(_)
                | HolderWord::Refused(_)
                | HolderWord::Gone
                | HolderWord::Reloaded
                | HolderWord::Failed(..)
                | HolderWord::Error(_) => {}
            }
        }
        Ok(())
    };
    if holder.orphan.is_none() {
        // What could not be asked shows in the table.
        let _ = ask();
    }
    (fields, holds)
}

fn for_people(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

fn print(rows: &[Row], people: bool) -> io::Result<()> {
    let mut out = String::new();
    if people {
        let header = HEADER.map(str::to_owned);
        let table: Vec<&[String; 10]> = std::iter::once(&header).chain(rows.iter().map(|r| &r.0)).collect();
        let widths: Vec<usize> =
            (0..10).map(|i| table.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
        for row in table {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            out.push_str(cells.join("  ").trim_end());
            out.push('\n');
        }
    } else {
        for Row(cells) in rows {
            out.push_str(&cells.join("\t"));
            out.push('\n');
        }
    }
    io::stdout().write_all(out.as_bytes())
}
