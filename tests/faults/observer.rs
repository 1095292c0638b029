//! What an outside observer says of a swap: who is left and answers, what the clients saw, and what of files, locks,
//! processes, sockets and programs is there.

use super::common::{self, Load, Running, Sandbox, get, is_unsteered, plain_server};
use super::scene::{PAUSE, Serving};
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// How long what is not as it should be may take to become so, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that nobody swaps, and a client of it: what they wait is what the machine makes everybody wait.
pub struct Baseline {
    client: Load,
    _server: Running,
    _sandbox: Sandbox,
}

impl Baseline {
    pub fn start() -> Baseline {
        let sandbox = Sandbox::new();
        let port = sandbox.port();
        let (server, _) = sandbox.serving(port, &[], &[&format!("0.0.0.0:{port}")]);
        Baseline { client: Load::start(port, PAUSE), _server: server, _sandbox: sandbox }
    }

    /// Ends it: how long a swap may keep clients waiting. On an idle machine little more than these seconds, of which a
    /// swap needs none; on one that is not, a server that has just been started waits for a processor longer than one
    /// that runs.
    pub fn patience(self) -> Duration {
        Duration::from_secs(3) + 10 * self.client.stop().longest_gap
    }
}

/// What clients and commands saw.
#[derive(Default)]
pub struct Verdict {
    pub failures: BTreeMap<common::Failure, usize>,
    /// How many of them while the swap stood still.
    pub halted: usize,
    pub longest_gap: Duration,
    /// Who served when the swap was over, and the status of its command if that had ended.
    pub outcome: Option<(Serving, Option<i32>)>,
    /// A column of the table.
    pub note: String,
    /// What all commands and servers said.
    pub said: String,
}

impl Verdict {
    pub fn new(serves: Serving, status: Option<i32>) -> Verdict {
        let shown = status.map_or("up".to_owned(), |status| format!("status {status}"));
        Verdict { outcome: Some((serves, status)), note: format!("{serves:?}, {shown}"), ..Verdict::default() }
    }

    /// A command that serves, or says 0, goes with its server; another status with the old one, and if nobody
    /// serves, somebody says so.
    pub fn is_consistent(&self) -> bool {
        match self.outcome {
            Some((Serving::New, status)) => status.unwrap_or(0) == 0,
            Some((Serving::Old, status)) => status.is_some_and(|status| status != 0),
            Some((Serving::Both, _)) => false,
            Some((Serving::Nobody, status)) => {
                status.is_some_and(|status| status != 0) && self.said.contains("nothing serves")
            }
            None => true,
        }
    }

    /// Ends a crowd and asks it.
    pub fn add(&mut self, crowd: Vec<Load>) {
        for seen in crowd.into_iter().map(Load::stop) {
            seen.failures.into_iter().for_each(|(f, count)| *self.failures.entry(f).or_default() += count);
            self.longest_gap = self.longest_gap.max(seen.longest_gap);
        }
    }

    /// A swap on a shared port: no more than so many requests fail. `None`: whoever served is dead or stands still.
    pub fn is_bounded(&self, most: Option<usize>) -> Result<(), String> {
        let Some(most) = most else { return Ok(()) };
        if self.failures.values().sum::<usize>() > most {
            return Err(format!("{:?}, and {most} may fail\n{}", self.failures, self.said));
        }
        Ok(())
    }

    /// One in plain order refuses connections by itself, or the kernel drops the SYN that meets a listener as it closes,
    /// and who is ended by a signal drops those that it has: close to zero, not zero. But nobody who is connected is
    /// kept waiting, or gets half an answer.
    pub fn is_plain(&self, stopped: bool) -> Result<(), String> {
        use common::Failure::*;
        let may_fail = |failure: &common::Failure| match failure {
            Refused | Resent | Reset | Empty => true,
            TimedOut => stopped,
            Cut | Other => false,
        };
        if self.failures.keys().all(may_fail) { Ok(()) } else { Err(format!("{:?}\n{}", self.failures, self.said)) }
    }
}

/// Waits until one server is left and answers, or none is left.
pub fn left(sandbox: &Sandbox, port: u16) -> Result<Option<i32>, String> {
    let mut left = None;
    settled(|| {
        let servers = servers(sandbox);
        left = servers.first().copied();
        match (&servers[..], get(port)) {
            ([], _) => Ok(()),
            ([one], Ok(answer)) if answer.pid == *one => Ok(()),
            (_, answer) => Err(format!("servers {servers:?} are left, and {answer:?} answers")),
        }
    })?;
    Ok(left)
}

/// The main processes of all servers that live.
fn servers(sandbox: &Sandbox) -> Vec<i32> {
    let program = plain_server().display().to_string();
    let all = sandbox.processes().into_iter();
    all.filter(|(_, command)| command.starts_with(&program)).map(|(pid, _)| pid).collect()
}

/// Whether its supervisor lives.
pub fn is_supervised(sandbox: &Sandbox, server: i32) -> bool {
    let parent = field(&server.to_string(), 1).and_then(|parent| parent.parse().ok());
    sandbox.processes().iter().any(|(pid, _)| Some(*pid) == parent)
}

/// Whether nothing but this one server and what belongs to it is there. The error says what is wrong.
pub fn is_alone(sandbox: &Sandbox, port: u16, server: i32) -> Result<(), String> {
    settled(|| {
        let (processes, rows) = (sandbox.processes(), sandbox.status());
        if processes.len() != sandbox.crew() || rows.len() != 1 {
            return Err(format!("more or less than one server is left: {processes:?}, {rows:?}"));
        }
        let named = sandbox.pidfile(&port.to_string());
        if named != Some(server) || rows[0][2] != server.to_string() {
            return Err(format!("{server} answers, the pidfile names {named:?}, the status is {rows:?}"));
        }
        let files = sandbox.files();
        // A supervisor counts its servers: those of reloads too.
        let own = format!("{}-", rows[0][3]);
        let nth = files.iter().find_map(|name| name.strip_prefix(&own)?.strip_suffix(".sock")).unwrap_or("1");
        let mut wanted = [format!("{port}.pid"), format!("{server}.server")].to_vec();
        wanted.extend(["notify", "sock"].map(|kind| format!("{own}{nth}.{kind}")));
        wanted.sort();
        if files != wanted {
            return Err(format!("the run directory holds {files:?}, not {wanted:?}"));
        }
        Ok(())
    })?;
    is_sound(sandbox, port)
}

/// Whether a server runs as if alone, whatever files those before it have left. The error says what is wrong.
pub fn is_sound(sandbox: &Sandbox, port: u16) -> Result<(), String> {
    settled(|| {
        let locks = locks(sandbox);
        if locks.iter().any(|(name, count)| name == "lock" || *count > 1) {
            return Err(format!("locks: {locks:?}"));
        }
        match common::listening(port) {
            1 => no_zombies(sandbox)?,
            sockets => return Err(format!("{sockets} sockets listen")),
        }
        // It is taken off at a look that finds nobody else, and here we are: not only once.
        if sandbox.is_shared() && !is_unsteered(port) { Err("a program is left on the port".into()) } else { Ok(()) }
    })
}

/// Takes the last server down: the observer finds nothing.
pub fn take_down(sandbox: &Sandbox, port: u16) -> Result<(), String> {
    sandbox.take_down(&format!(":{port}"));
    settled(|| {
        let (locks, sockets) = (locks(sandbox), common::listening(port));
        let free = TcpListener::bind(("0.0.0.0", port)).is_ok();
        if locks.is_empty() && sockets == 0 && free {
            Ok(())
        } else {
            Err(format!("left: {locks:?}, {sockets} sockets"))
        }
    })
}

/// Looks until nothing is wrong any more; else what was wrong in the end.
fn settled(mut look: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            result => return result,
        }
    }
}

/// How many locks there are on each file of the run directory that has any (proc_locks(5)).
fn locks(sandbox: &Sandbox) -> BTreeMap<String, usize> {
    let table = fs::read_to_string("/proc/locks").unwrap();
    let mut locks = BTreeMap::new();
    for name in sandbox.files().into_iter().chain(["lock".into()]) {
        let Ok(file) = fs::symlink_metadata(sandbox.run_dir().join(&name)) else { continue };
        let (major, minor) = (nix::sys::stat::major(file.dev()), nix::sys::stat::minor(file.dev()));
        let id = format!("{major:02x}:{minor:02x}:{}", file.ino());
        // Who waits for a lock has "->" as its second word.
        let held = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&id.as_str())
        };
        let count = table.lines().filter(held).count();
        if count > 0 {
            locks.insert(name, count);
        }
    }
    locks
}

/// Whether all who have ended were waited for by the processes of a sandbox.
fn no_zombies(sandbox: &Sandbox) -> Result<(), String> {
    let ours: Vec<String> = sandbox.processes().iter().map(|(pid, _)| pid.to_string()).collect();
    let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let is_left = |pid: &String| {
        field(pid, 0).as_deref() == Some("Z") && field(pid, 1).is_some_and(|parent| ours.contains(&parent))
    };
    let zombies: Vec<String> = all.filter(is_left).collect();
    if zombies.is_empty() { Ok(()) } else { Err(format!("zombies: {zombies:?}")) }
}

/// A field of /proc/PID/stat after the name: its state, its parent, ...
fn field(pid: &str, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(number).map(str::to_owned)
}
