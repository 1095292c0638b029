//! A check of a new server: a command, or a request over HTTP. Where old and new server share their ports, a preview leads to
//! the new one alone.

#![forbid(unsafe_code)]

use crate::cli::Check;
use crate::error::reason;
use crate::family;
use crate::procfs::{self, MARK, Snapshot, Stat};
use crate::sys::net::{self, Ends};
use crate::sys::process::{self, Pid};
use crate::sys::thread::start;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How much of what a command writes is kept, in bytes.
const KEPT: usize = 8 * 1024;
/// How many of its last lines are shown.
const LINES: usize = 20;
/// How often its output is read, so that it does not wait for that.
const READ_EVERY: Duration = Duration::from_millis(50);
/// How often what it has started is looked for at most, where there is always more of it.
const LOOKS: usize = 16;
/// Longest wait for the whole of an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How much of an answer is read, in bytes.
const ANSWER_MAX: usize = 4096;
/// How much of it, or of a line of a command, is shown, in characters.
const SHOWN: usize = 200;
/// Most clients of a preview at a time.
const CLIENTS_MAX: usize = 64;

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Check::Command(command) => write!(f, "{:?}", command.to_string_lossy()),
            Check::Http(path) => write!(f, "GET {path}"),
        }
    }
}

/// How far the checks of a server are.
pub struct Checks {
    /// How many of them have succeeded in a row.
    pub passed: usize,
    /// And what is done about the next one.
    pub doing: Doing,
    /// Where only our server answers, while others answer at its address.
    pub preview: Option<Preview>,
    /// What the last check wrote, if it was a command and has failed.
    pub said: Vec<String>,
}

/// What is done about them.
pub enum Doing {
    /// Nothing until then.
    Waits(Instant),
    /// A command runs until then at most.
    Runs(Running, Instant),
    /// A thread asks.
    Asks,
    /// Nothing any more.
    Over,
}

/// A command that runs.
pub struct Running {
    /// Its process, which leads a group of its own.
    pub pid: Pid,
    /// When that started: its number may be another's by now.
    start: Option<u64>,
    output: File,
    /// The last that it wrote.
    wrote: Vec<u8>,
    read: Instant,
}

impl Running {
    /// Starts `sh -c COMMAND`. `preview`: where only the server answers, if it listens.
    pub fn start(command: &OsStr, preview: Option<SocketAddr>, generation: u64, server: Pid) -> io::Result<Running> {
        let (output, theirs) = process::pipe()?;
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(command).stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs);
        let own = ["SERVERSWAP_FD", "SERVERSWAP_INODE", "SERVERSWAP_PREVIEW", process::LINE, process::CARE];
        let managers = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"];
        own.iter().chain(&managers).for_each(|name| _ = shell.env_remove(name));
        // What it leaves behind is not taken for the server's.
        shell.env(MARK, "").env("SERVERSWAP_GENERATION", generation.to_string());
        shell.env("SERVERSWAP_PID", server.to_string());
        shell.envs(preview.map(|at| ("SERVERSWAP_PREVIEW", at.to_string())));
        let pid = process::spawn_check(&mut shell)?;
        let start = procfs::stat(pid).map(|stat| stat.start);
        Ok(Running { pid, start, output, wrote: Vec::new(), read: Instant::now() })
    }

    /// When [`Running::read`] is due.
    pub fn reads_at(&self) -> Instant {
        self.read + READ_EVERY
    }

    /// Reads what it has written since.
    pub fn read(&mut self) {
        let mut buffer = [0; 4096];
        // What fits into a pipe (pipe(7)): it may write without end.
        for _ in 0..16 {
            let Ok(len @ 1..) = self.output.read(&mut buffer) else { break };
            self.wrote.extend_from_slice(&buffer[..len]);
        }
        let more = self.wrote.len().saturating_sub(KEPT);
        self.wrote.drain(..more);
        self.read = Instant::now();
    }

    /// Ends it and what it has started, whatever group that is in.
    pub fn kill(&self) {
        let mut snapshot = Snapshot::take();
        process::kill_group(self.pid);
        let mut known = BTreeSet::new();
        // What is forked during one look is found by the next.
        for _ in 0..LOOKS {
            let is_new = |stat: &&Stat| self.has_started(stat, &snapshot) && known.insert((stat.pid, stat.start));
            if snapshot.all().filter(is_new).filter(|stat| family::signal(stat, Signal::SIGKILL)).count() == 0 {
                return;
            }
            snapshot = Snapshot::take();
        }
    }

    /// Whether a process is below the shell, or has left it and is below a child of ours with the mark of a check. A server
    /// that a check has started with another serverswap is not meant.
    fn has_started(&self, stat: &Stat, snapshot: &Snapshot) -> bool {
        let own = Pid::own();
        let below: Vec<&Stat> = snapshot.ancestry(stat.pid.raw()).take_while(|a| a.pid != own).collect();
        let ours = |top: &&&Stat| top.parent == own.raw() && self.start.is_some_and(|start| top.start >= start);
        let Some(top) = below.last().filter(ours) else { return false };
        let is_marked = || procfs::environment(top.pid, MARK).is_some_and(|mark| mark.is_empty());
        let is_shell = top.pid == self.pid && Some(top.start) == self.start;
        let is_serverswap = procfs::serverswaps();
        (is_shell || is_marked() && procfs::is_of_this_user(stat.pid)) && !below.iter().any(|a| is_serverswap(a.pid))
    }

    /// The last lines that it wrote, without control characters.
    pub fn last_lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.wrote);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.iter().skip(lines.len().saturating_sub(LINES));
        last.map(|line| line.chars().filter(|c| !c.is_control()).take(SHOWN).collect()).collect()
    }
}

/// `GET PATH`: why it did not succeed.
pub fn ask(at: Option<SocketAddr>, path: &str) -> Result<(), String> {
    let at = at.ok_or("the server listens on no port")?;
    let answer = answer(at, path).map_err(|e| format!("no answer: {}", reason(&e)))?;
    let text = String::from_utf8_lossy(&answer);
    let (_, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    let shown = |text: &str| text.chars().filter(|c| !c.is_control()).take(SHOWN).collect::<String>();
    match status_of(&answer) {
        _ if is_success(&answer) => Ok(()),
        Some(status) => Err(format!("status {status}: {:?}", shown(body))),
        None => Err(format!("no answer over HTTP/1: {:?}", shown(&text))),
    }
}

/// The status of an answer (RFC 9112).
fn status_of(answer: &[u8]) -> Option<u16> {
    let code = answer.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(code).ok()?.parse().ok()
}

fn is_success(answer: &[u8]) -> bool {
    status_of(answer).is_some_and(|status| (200..=399).contains(&status))
}

fn has_head(answer: &[u8]) -> bool {
    answer.windows(4).any(|four| four == b"\r\n\r\n")
}

fn answer(at: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let until = Instant::now() + ANSWER_WITHIN;
    let left = || match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&at, left()?)?;
    stream.set_write_timeout(Some(left()?))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\nUser-Agent: serverswap\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    while answer.len() < ANSWER_MAX && !(has_head(&answer) && is_success(&answer)) {
        stream.set_read_timeout(Some(left()?))?;
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => answer.extend_from_slice(&buffer[..len]),
            // What is there says enough.
            Err(_) if has_head(&answer) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(answer)
}

/// Whoever connects to it is led to the new server.
pub struct Preview {
    listener: TcpListener,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Where the connection to the new server comes from.
pub type Answer = SyncSender<io::Result<TcpStream>>;

impl Preview {
    /// Opens one on this machine. `reach` asks for a connection to the new server; `false` if there is none any more.
    pub fn open(reach: impl Fn(Answer) -> bool + Send + Sync + Clone + 'static) -> io::Result<Preview> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (address, accepts) = (listener.local_addr()?, listener.try_clone()?);
        let led = Arc::new(());
        start("preview", move || {
            for client in accepts.incoming() {
                let client = match client {
                    Ok(client) => client,
                    // It was shut down.
                    Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => break,
                    Err(_) => {
                        std::thread::sleep(Duration::from_millis(100));
                        continue;
                    }
                };
                // As many as there may be; another one is closed, and so is everybody else's.
                if !is_own(&client, address) || Arc::strong_count(&led) > CLIENTS_MAX {
                    continue;
                }
                let (answer, server) = sync_channel(1);
                if !reach(answer) {
                    break;
                }
                let one = led.clone();
                let lead = move || {
                    let _one = one;
                    if let Ok(Ok(server)) = server.recv_timeout(ANSWER_WITHIN) {
                        let _ = carry(&client, &server);
                    }
                };
                let _ = start("preview", lead);
            }
        })?;
        Ok(Preview { listener, address })
    }
}

impl Drop for Preview {
    fn drop(&mut self) {
        // Its thread waits in accept(2).
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

/// Whether this user, or root, is the client of a connection to this address of ours.
fn is_own(client: &TcpStream, address: SocketAddr) -> bool {
    let Ok(local) = client.peer_addr() else { return false };
    // It may be bound to lo, which has this number everywhere.
    let found = net::find(Ends { local, peer: address, interface: 1 });
    let users = [0, nix::unistd::geteuid().as_raw()];
    // A socket without an inode was closed, and has no user any more: the kernel says 0.
    found.is_ok_and(|found| found.is_some_and(|socket| socket.inode != 0 && users.contains(&socket.uid)))
}

/// Carries what each says to the other, until both have said all.
fn carry(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    let one_way = |from: &TcpStream, to: &TcpStream| -> io::Result<()> {
        let copied = io::copy(&mut { from }, &mut { to });
        let _ = to.shutdown(Shutdown::Write);
        copied.map(drop)
    };
    std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(64 * 1024).spawn_scoped(scope, || one_way(server, client))?;
        one_way(client, server)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_has_closed_its_socket_is_nobodys() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let accepted = listener.accept().unwrap().0;
        assert!(is_own(&accepted, address));
        drop(client);
        assert!(!is_own(&accepted, address));
    }
}
