//! The server as processes: spawning it, signalling it, and knowing what belongs to it.

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::cli::Run;
use crate::error::{Error, Result, status};
use crate::family::{Descent, Family, Household, Jobs, Seen};
use crate::finder::Holder;
use crate::procfs::{self, MARK, Snapshot, Stat};
use crate::sys::net::{self, TcpSocket};
use crate::sys::process::{self, Keeper, Pid, Pidfd};
use crate::sys::seccomp::{self, Filter, Ledger, Notifier};
use crate::sys::steer::Socket;
use nix::libc;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// One running server.
pub struct Server {
    /// Its main process.
    pub pid: Pid,
    /// Start time of that.
    pub start: u64,
    pidfd: Pidfd,
    family: Family,
    seen: Seen,
    /// Inodes of those that listened before it was started.
    before: Option<BTreeSet<u32>>,
    keeper: Option<Keeper>,
    /// Where its calls are seen, or why they cannot be.
    pub watch: Option<std::result::Result<Arc<Watch>, String>>,
}

/// Where the calls of a server are seen.
pub struct Watch {
    /// Where they wait.
    pub notifier: Notifier,
    /// Those that wait.
    pub ledger: Arc<Ledger>,
    /// What the calls tell of their server.
    pub seen: Seen,
    /// What the thread that sees them has to know, and what it has seen.
    pub facts: Facts,
}

/// What the main thread and the one that sees the calls of a server tell each other.
#[derive(Debug, Default)]
pub struct Facts {
    /// The main process, or 0; and whether another server shares the port: one that it replaces, or one that has its lock.
    main: AtomicI32,
    lent: AtomicBool,
    /// Inodes of UDP sockets that were made sharable.
    datagrams: Mutex<BTreeSet<u32>>,
}

impl Facts {
    /// The main process of the server, and whether another one shares its port.
    pub fn read(&self) -> (Option<Pid>, bool) {
        (Pid::new(self.main.load(Ordering::Acquire).into()), self.lent.load(Ordering::Acquire))
    }

    /// Tells what has changed.
    pub fn tell(&self, main: Pid, lent: bool) {
        self.main.store(main.raw(), Ordering::Release);
        self.lent.store(lent, Ordering::Release);
    }

    /// A UDP socket was made sharable.
    pub fn note_datagram(&self, inode: u32) {
        self.datagrams.lock().unwrap_or_else(PoisonError::into_inner).insert(inode);
    }

    /// Those that were and are still bound; the others are forgotten.
    pub fn datagrams(&self) -> io::Result<Vec<u32>> {
        let bound = net::datagrams()?;
        let mut own = self.datagrams.lock().unwrap_or_else(PoisonError::into_inner);
        own.retain(|inode| bound.contains(inode));
        Ok(own.iter().copied().collect())
    }
}

/// What is left of a server whose main process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// This process listens.
    Holder(Pid),
    /// Something listens at its addresses, and it cannot be seen at this moment whether it belongs to it.
    Unclear,
    /// Nothing that listens.
    Nobody,
}

/// What a server finds around itself.
pub struct Surroundings<'a> {
    /// Its end of the control channel.
    pub control: UnixStream,
    /// Path of the control socket.
    pub socket: &'a Path,
    /// Path of the notify socket.
    pub notify: &'a Path,
    /// The servers of this supervisor.
    pub household: &'a Arc<Household>,
    /// Its generation.
    pub generation: u64,
    /// Whether it stays in the process group of the terminal.
    pub on_terminal: bool,
    /// Whether SIGHUP stays ignored (nohup).
    pub hup_ignored: bool,
    /// Whether standard fds that are terminals become `/dev/null`.
    pub detached: bool,
    /// Whether its `bind` and `listen` are to be seen.
    pub watched: bool,
}

impl Server {
    /// Starts the server.
    pub fn spawn(run: &Run, around: Surroundings<'_>) -> Result<Server> {
        let name = &run.command[0];
        let mut command = Command::new(name);
        command.args(&run.command[1..]);
        let failed = |what: &str, e: io::Error| {
            Error::unable(format!("{what} {}", name.to_string_lossy()), e, "the old server, if any, still serves")
        };
        let inode = nix::sys::stat::fstat(&around.control).map_err(|e| failed("start", e.into()))?.st_ino;
        let number = process::free_fd_number();
        // A number of an outer serverswap would name a fd that is not there.
        command.env_remove("SERVERSWAP_FD").env_remove("SERVERSWAP_INODE");
        if let Some(number) = number {
            command.env("SERVERSWAP_FD", number.to_string()).env("SERVERSWAP_INODE", inode.to_string());
        }
        command.env(MARK, around.socket);
        command.env("SERVERSWAP_GENERATION", around.generation.to_string());
        command.env("NOTIFY_SOCKET", around.notify);
        // It names this supervisor; without it the watchdog is meant for whoever reads it
        // (sd_watchdog_enabled(3)).
        command.env_remove("WATCHDOG_PID");
        if !around.on_terminal {
            command.process_group(0);
        }
        if around.detached {
            command.stdin(Stdio::null());
            if nix::unistd::isatty(io::stdout()).unwrap_or(false) {
                command.stdout(Stdio::null());
            }
            if nix::unistd::isatty(io::stderr()).unwrap_or(false) {
                command.stderr(Stdio::null());
            }
        }
        let privileged = nix::unistd::geteuid().is_root();
        let filter = match (around.watched, net::can_be_asked()) {
            (true, Err(e)) => {
                Some(Err(format!("the kernel may not be asked about sockets: {}", crate::error::reason(&e))))
            }
            (true, Ok(())) if !privileged && path_of(name).is_some_and(|p| process::raises_privileges(&p)) => {
                Some(Err("COMMAND would lose its file capabilities or setuid bit".to_owned()))
            }
            (true, Ok(())) => Some(Filter::new().ok_or_else(|| "this architecture is not supported".to_owned())),
            (false, _) => None,
        };
        let (report, theirs) = UnixStream::pair().map_err(|e| failed("start", e))?;
        let (filter, refused) = match filter {
            Some(Ok(filter)) => (Some((filter, theirs.as_fd())), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        let watching = filter.is_some();
        let ledger = Ledger::new().map(Arc::new).map_err(|e| failed("watch", e))?;
        let before = net::listeners().ok().map(|listeners| listeners.all().map(|s| s.inode).collect());
        let mut failure = None;
        // Before the server runs: a supervisor that is killed at any moment leaves none that nobody knows.
        let prepare = |pid: Pid, keeper: io::Result<Keeper>| {
            // Without its start it would be taken for another that has its pid.
            let gone = || io::Error::from_raw_os_error(libc::ESRCH);
            let stat = match procfs::find(pid).and_then(|stat| stat.ok_or_else(gone)) {
                Ok(stat) => stat,
                Err(e) => {
                    failure = Some(failed("watch", e));
                    return None;
                }
            };
            let (start, seen) = (stat.start, Seen::default());
            seen.session(stat.session);
            let family = Family {
                main: pid,
                start,
                group: (!around.on_terminal).then_some(pid),
                session: stat.session,
                mark: around.socket.to_string_lossy().into_owned(),
                descent: Descent::Ours(around.household.enter(start, seen.clone())),
            };
            let watch = match refused {
                Some(why) => Some(Err(why)),
                None if watching => Some(receive_watch(&report, ledger.clone(), seen.clone())),
                None => None,
            };
            let notifier = watch.as_ref().and_then(|w| Some(&w.as_ref().ok()?.notifier));
            let kept = Pidfd::open(pid).map_err(|e| failed("watch", e)).and_then(|pidfd| {
                let keep = |keeper: Keeper| keeper.keep((pid, &pidfd), family.group, notifier).map(|()| keeper);
                let keeper = keeper.and_then(keep).map_err(|e| failed("keep", e))?;
                Ok((pidfd, keeper))
            });
            match kept {
                Ok((pidfd, keeper)) => {
                    Some(Server { pid, start, pidfd, family, seen, before, keeper: Some(keeper), watch })
                }
                Err(error) => {
                    failure = Some(error);
                    None
                }
            }
        };
        let control = around.control.as_fd();
        let keeper = || Keeper::start(&ledger);
        let spawned = process::spawn(&mut command, control, number, around.hup_ignored, filter, keeper, prepare);
        spawned.map_err(|e| {
            failure.unwrap_or_else(|| Error {
                status: match e.kind() {
                    io::ErrorKind::NotFound => status::NOT_FOUND,
                    // What the machine lacks is no fault of COMMAND.
                    _ if [libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::ECANCELED]
                        .contains(&e.raw_os_error().unwrap_or(0)) =>
                    {
                        status::FAILED
                    }
                    _ => status::CANNOT_EXECUTE,
                },
                ..failed("execute", e)
            })
        })
    }

    /// Takes charge of a running server, if its main process is still the one that started then.
    pub fn adopt(holder: &Holder) -> Option<Server> {
        let (pid, start, mark) = (holder.pid, holder.start, holder.socket.to_string_lossy().into_owned());
        let pidfd = Pidfd::open(pid).ok()?;
        let stat = procfs::stat(pid).filter(|s| s.start == start)?;
        let group = Pid::new(stat.group.into()).filter(|g| *g == pid);
        let (session, seen) = (stat.session, Seen::default());
        seen.session(session);
        let family = Family { main: pid, start, group, session, mark, descent: Descent::Lost(holder.session) };
        Some(Server { pid, start, pidfd, family, seen, before: None, keeper: None, watch: None })
    }

    /// From here on the server does not end with this supervisor.
    pub fn outlives_us(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.server_serves();
        }
    }

    /// Signals the main process.
    pub fn signal(&self, signal: Signal) {
        let _ = self.pidfd.signal(signal);
    }

    /// Whether it runs as another user, and we are not root: no signal reaches it.
    pub fn is_out_of_reach(&self) -> bool {
        self.pidfd.is_out_of_reach()
    }

    /// A handle for a thread that waits for the end of the main process.
    pub fn watch(&self) -> io::Result<Pidfd> {
        self.pidfd.try_clone()
    }

    /// Signals all that belongs to the server.
    pub fn signal_all(&self, signal: Signal, jobs: Jobs) {
        let _ = self.pidfd.signal(signal);
        self.signal_rest(signal, jobs);
    }

    /// Signals all that belongs to the server but its main process; `true` if there was anybody, or may be.
    pub fn signal_rest(&self, signal: Signal, jobs: Jobs) -> bool {
        let snapshot = Snapshot::take();
        let mut any = snapshot.complete().is_err();
        if signal == Signal::SIGKILL && self.family.group == Some(self.pid) {
            // Who forks faster than we look is killed all the same if it has stayed in the group.
            let _ = self.pidfd.signal_group(signal);
        }
        let Ok(rest) = self.others(&snapshot, jobs) else { return true };
        for stat in rest {
            // The pid may have been reused since the look: the start time of the opened one decides.
            if let Ok(pidfd) = Pidfd::open(stat.pid)
                && procfs::stat(stat.pid).is_some_and(|now| now.start == stat.start)
            {
                any |= pidfd.signal(signal).is_ok();
            }
        }
        any
    }

    /// Whether anything but the main process is left of the server, or may be.
    pub fn has_rest(&self, jobs: Jobs) -> bool {
        let snapshot = Snapshot::take();
        snapshot.complete().is_err() || self.others(&snapshot, jobs).map_or(true, |rest| !rest.is_empty())
    }

    /// Its processes but the main one; an error where it cannot be seen which of them are to be spared.
    fn others<'a>(&self, snapshot: &'a Snapshot, jobs: Jobs) -> io::Result<Vec<&'a Stat>> {
        let mut rest = self.family.members(snapshot);
        if let Descent::Lost(_) = self.family.descent {
            let listeners: Vec<TcpSocket> = net::listeners()?.all().cloned().collect();
            rest.extend(self.heirs(snapshot, &listeners, &rest)?);
        }
        rest.retain(|stat| stat.pid != self.pid);
        let own = |stat: &&Stat| stat.group == self.pid.raw() || self.seen.has_session(stat.session);
        if jobs == Jobs::Spared && !rest.iter().all(own) {
            self.note_sessions(&rest)?;
            rest.retain(own);
        }
        Ok(rest)
    }

    /// What has a listener now is no job of the server's, and neither is what shares its session: when they are told to
    /// go, some have none any more.
    pub fn tell_jobs(&self) {
        let snapshot = Snapshot::take();
        // Who cannot be asked now is asked again when it matters.
        let _ = self.note_sessions(&self.family.members(&snapshot));
    }

    fn note_sessions(&self, members: &[&Stat]) -> io::Result<()> {
        let listeners: BTreeSet<u32> = net::listeners()?.all().map(|s| s.inode).collect();
        for stat in members.iter().filter(|stat| !self.seen.has_session(stat.session)) {
            if !procfs::find_inodes(stat.pid)?.is_disjoint(&listeners) {
                self.seen.session(stat.session);
            }
        }
        Ok(())
    }

    /// Whether the process belongs to the server; an error where that cannot be seen.
    pub fn owns(&self, pid: Pid) -> io::Result<bool> {
        let snapshot = Snapshot::take();
        let owns = self.family.members(&snapshot).iter().any(|s| s.pid == pid);
        if owns { Ok(true) } else { snapshot.complete().map(|()| false) }
    }

    /// Those of the sockets that the server holds, by their addresses; an error where that cannot be seen.
    pub fn holds(&self, sockets: &[TcpSocket]) -> io::Result<BTreeSet<Address>> {
        Ok(self.holds_of(sockets)?.into_iter().map(|socket| socket.local).collect())
    }

    /// Those of the sockets that the server holds; an error where that cannot be seen.
    pub fn holds_of(&self, sockets: &[TcpSocket]) -> io::Result<Vec<TcpSocket>> {
        if sockets.is_empty() {
            return Ok(Vec::new());
        }
        let snapshot = Snapshot::take();
        snapshot.complete()?;
        let held = self.holders(&snapshot, sockets)?.into_iter().flat_map(|(_, held)| held);
        let inodes: BTreeSet<u32> = held.map(|socket| socket.inode).collect();
        Ok(sockets.iter().filter(|socket| inodes.contains(&socket.inode)).cloned().collect())
    }

    /// What is left of a server whose main process has ended: the topmost process that holds one of the
    /// sockets. `own`: those at its addresses.
    pub fn rest(&self, sockets: &[TcpSocket], own: &[TcpSocket]) -> Rest {
        if sockets.is_empty() {
            return Rest::Nobody;
        }
        let snapshot = Snapshot::take();
        let depth = |pid: &Pid| snapshot.ancestry(pid.raw()).count();
        let Ok(holders) = self.holders(&snapshot, sockets) else { return Rest::Unclear };
        let holders = holders.into_iter().map(|(pid, _)| pid);
        match holders.min_by_key(|pid| (depth(pid), *pid)) {
            Some(pid) => Rest::Holder(pid),
            None if snapshot.complete().is_err() => Rest::Unclear,
            None if snapshot.misses_holder_of(own, self.family.group) => Rest::Unclear,
            None => Rest::Nobody,
        }
    }

    fn holders<'a>(&self, snapshot: &Snapshot, sockets: &'a [TcpSocket]) -> io::Result<Vec<(Pid, Vec<&'a TcpSocket>)>> {
        let mut holders = Vec::new();
        let mut members = self.family.members(snapshot);
        if !members.iter().any(|stat| stat.pid == self.pid) {
            members.extend(self.heirs(snapshot, sockets, &members)?);
        }
        let family = members.iter().map(|stat| stat.pid).collect();
        let mut hidden = Vec::new();
        // It has changed its user, and /proc does not show processes of others (proc(5), hidepid).
        let unseen = Stat {
            pid: self.pid,
            parent: Pid::own().raw(),
            group: self.pid.raw(),
            session: self.family.session,
            start: self.start,
            zombie: false,
            threads: 1,
        };
        if members.iter().all(|stat| stat.pid != self.pid) && procfs::is_hidden(self.pid) {
            hidden.push(&unseen);
        }
        for stat in members {
            let Some(inodes) = procfs::find_held(stat.pid)? else {
                if !procfs::has_ended(stat.pid) {
                    hidden.push(stat);
                }
                continue;
            };
            let held: Vec<&TcpSocket> = sockets.iter().filter(|s| inodes.contains(&s.inode)).collect();
            if !held.is_empty() {
                held.iter().for_each(|s| self.seen.listener(s.inode));
                holders.push((stat.pid, held));
            }
        }
        holders.extend(self.holder_among(&hidden, &family, snapshot, sockets)?);
        Ok(holders)
    }

    /// Of processes that may not be looked at, since they have changed their user: what was seen of the server, and what
    /// has come since it was started, is of one of their users, and can be nobody else's.
    fn holder_among<'a>(
        &self,
        hidden: &[&Stat],
        members: &BTreeSet<Pid>,
        snapshot: &Snapshot,
        sockets: &'a [TcpSocket],
    ) -> io::Result<Option<(Pid, Vec<&'a TcpSocket>)>> {
        let Some(holder) = hidden.iter().find(|stat| stat.pid == self.pid).or(hidden.first()) else { return Ok(None) };
        let own = nix::unistd::geteuid().as_raw();
        let mut users: BTreeSet<u32> = hidden.iter().filter_map(|stat| procfs::user(stat.pid)).collect();
        users.insert(own);
        let is_new = |s: &TcpSocket| self.before.as_ref().is_some_and(|before| !before.contains(&s.inode));
        let may = |s: &&TcpSocket| self.seen.had(s.inode) || is_new(s) && users.contains(&s.uid);
        let mut left: Vec<&TcpSocket> = sockets.iter().filter(may).collect();
        let is_serverswap = procfs::serverswaps();
        let mut others = snapshot.all().filter(|stat| !members.contains(&stat.pid));
        while let (false, Some(stat)) = (left.is_empty(), others.next()) {
            match procfs::find_held(stat.pid)? {
                // A supervisor has a copy for the time of a swap.
                Some(held) if left.iter().any(|s| held.contains(&s.inode)) && !is_serverswap(stat.pid) => {
                    left.retain(|s| !held.contains(&s.inode));
                }
                Some(_) => {}
                // It may have what it made itself, and what it got from before it changed its user.
                None if !procfs::has_ended(stat.pid) => {
                    let user = procfs::user(stat.pid);
                    left.retain(|s| self.seen.had(s.inode) || Some(s.uid) != user && s.uid != own);
                }
                None => {}
            }
        }
        Ok((!left.is_empty()).then_some((holder.pid, left)))
    }

    /// Of an orphan, from which nobody is known to descend: whoever else of its user has listeners that it had. Nobody
    /// that is older, as a service manager is that gave it the listeners.
    fn heirs<'a>(&self, snapshot: &'a Snapshot, sockets: &[TcpSocket], members: &[&Stat]) -> io::Result<Vec<&'a Stat>> {
        let left: BTreeSet<u32> = sockets.iter().map(|s| s.inode).filter(|inode| self.seen.had(*inode)).collect();
        if left.is_empty() || !matches!(self.family.descent, Descent::Lost(_)) {
            return Ok(Vec::new());
        }
        let is_serverswap = procfs::serverswaps();
        let is_other = |stat: &&Stat| stat.start >= self.start && members.iter().all(|member| member.pid != stat.pid);
        let may = |stat: &&Stat| procfs::is_of_this_user(stat.pid) && !is_serverswap(stat.pid);
        let mut heirs = Vec::new();
        for stat in snapshot.all().filter(is_other) {
            if !procfs::find_inodes(stat.pid)?.is_disjoint(&left) && may(&stat) {
                heirs.push(stat);
            }
        }
        Ok(heirs)
    }

    /// The listeners that the server has on these addresses, as handles of our own.
    pub fn listeners(&self, wanted: &[Address]) -> io::Result<Vec<Socket>> {
        self.sockets(net::listeners()?.at_any(wanted).iter().map(|s| s.inode).collect())
    }

    /// Those of these sockets that the server has, as handles of our own.
    pub fn sockets(&self, mut left: BTreeSet<u32>) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        let snapshot = Snapshot::take();
        snapshot.complete()?;
        for stat in self.family.members(&snapshot) {
            for (number, inode) in procfs::find_sockets(stat.pid)?.unwrap_or_default() {
                if left.contains(&inode) {
                    let socket = match Pidfd::open(stat.pid).and_then(|pidfd| pidfd.fd(number)) {
                        Ok(fd) => Socket::new(fd),
                        // It was closed since the look, or its process has ended.
                        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EBADF)) => continue,
                        Err(e) => return Err(e),
                    };
                    // The number may have become another file since the look.
                    if socket.inode()? == inode {
                        left.remove(&inode);
                        found.push(socket);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Inodes of all sockets that the server holds; `None` if one of its processes may not be asked.
    pub fn socket_inodes(&self) -> Option<BTreeSet<u32>> {
        self.family.sockets(&Snapshot::take())
    }

    /// Makes another process of the server its main one (a daemon whose starter has exited).
    pub fn promote(&mut self, pid: Pid) -> bool {
        let Some(stat) = procfs::stat(pid) else { return false };
        let Ok(pidfd) = Pidfd::open(pid) else { return false };
        (self.pid, self.start, self.pidfd) = (pid, stat.start, pidfd);
        let family = &mut self.family;
        (family.main, family.start) = (pid, stat.start);
        self.seen.session(stat.session);
        // It may have joined any group of its session, ours too: only one of the server's own is the server's.
        let group = family.group.and_then(|own| [own, pid].into_iter().find(|group| group.raw() == stat.group));
        (family.group, family.session) = (group, stat.session);
        true
    }
}

fn receive_watch(report: &UnixStream, ledger: Arc<Ledger>, seen: Seen) -> std::result::Result<Arc<Watch>, String> {
    let notifier = seccomp::receive_result(report).map_err(|e| match e.raw_os_error() {
        Some(nix::libc::EBUSY) => "another one watches already (serverswap inside a server?)".to_owned(),
        _ => format!("the kernel or a container profile forbids it: {}", crate::error::reason(&e)),
    })?;
    seen.watched();
    Ok(Arc::new(Watch { notifier, ledger, seen, facts: Facts::default() }))
}

/// The file that a command name means, as execvp(3) finds it.
fn path_of(name: &std::ffi::OsStr) -> Option<std::path::PathBuf> {
    let path = Path::new(name);
    if path.components().count() > 1 {
        return Some(path.to_owned());
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|file| file.is_file())
}
