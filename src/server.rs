//! The server as processes: spawning it, signalling it, and knowing what belongs to it.

#![forbid(unsafe_code)]

use crate::address::Address;
use crate::cli::Run;
use crate::error::{Error, Result, status};
use crate::procfs::{self, Family, MARK, Snapshot};
use crate::registry::Holder;
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
use std::sync::Arc;

/// One running server.
pub struct Server {
    /// Its main process.
    pub pid: Pid,
    /// Start time of that.
    pub start: u64,
    pidfd: Pidfd,
    family: Family,
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
        let filter = match around.watched {
            true if !privileged && path_of(name).is_some_and(|p| process::raises_privileges(&p)) => {
                Some(Err("COMMAND would lose its file capabilities or setuid bit".to_owned()))
            }
            true => Some(Filter::new().ok_or_else(|| "this architecture is not supported".to_owned())),
            false => None,
        };
        let (report, theirs) = UnixStream::pair().map_err(|e| failed("start", e))?;
        let (filter, refused) = match filter {
            Some(Ok(filter)) => (Some((filter, theirs.as_fd())), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        let watching = filter.is_some();
        let ledger = Ledger::new().map(Arc::new).map_err(|e| failed("watch", e))?;
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
            let family = Family {
                main: pid,
                start: stat.start,
                group: (!around.on_terminal).then_some(pid),
                session: stat.session,
                mark: around.socket.to_string_lossy().into_owned(),
            };
            let watch = match refused {
                Some(why) => Some(Err(why)),
                None if watching => Some(receive_watch(&report, ledger.clone())),
                None => None,
            };
            let notifier = watch.as_ref().and_then(|w| Some(&w.as_ref().ok()?.notifier));
            let kept = Pidfd::open(pid).map_err(|e| failed("watch", e)).and_then(|pidfd| {
                // On a terminal a job of its own is ours and the server's alone.
                let group = family.group.or(process::own_job());
                let keeper = keeper.and_then(|keeper| keeper.keep(&pidfd, group, notifier).map(|()| keeper));
                Ok((pidfd, keeper.map_err(|e| failed("keep", e))?))
            });
            match kept {
                Ok((pidfd, keeper)) => {
                    Some(Server { pid, start: stat.start, pidfd, family, keeper: Some(keeper), watch })
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
        let family = Family { main: pid, start, group, session: stat.session, mark };
        Some(Server { pid, start, pidfd, family, keeper: None, watch: None })
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

    /// A handle for a thread that waits for the end of the main process.
    pub fn watch(&self) -> io::Result<Pidfd> {
        self.pidfd.try_clone()
    }

    /// Signals all that belongs to the server.
    pub fn signal_all(&self, signal: Signal) {
        let _ = self.pidfd.signal(signal);
        self.signal_rest(signal);
    }

    /// Signals all that belongs to the server but its main process; `true` if there was anybody, or may be.
    pub fn signal_rest(&self, signal: Signal) -> bool {
        let snapshot = Snapshot::take();
        let mut any = snapshot.complete().is_err();
        if signal == Signal::SIGKILL && self.family.group == Some(self.pid) {
            // Who forks faster than we look is killed all the same if it has stayed in the group.
            let _ = self.pidfd.signal_group(signal);
        }
        for stat in snapshot.family(&self.family) {
            // The pid may have been reused since the look: the start time of the opened one decides.
            if stat.pid != self.pid
                && let Ok(pidfd) = Pidfd::open(stat.pid)
                && procfs::stat(stat.pid).is_some_and(|now| now.start == stat.start)
            {
                any |= pidfd.signal(signal).is_ok();
            }
        }
        any
    }

    /// Whether anything but the main process is left of the server, or may be.
    pub fn has_rest(&self) -> bool {
        let snapshot = Snapshot::take();
        snapshot.complete().is_err() || snapshot.family(&self.family).iter().any(|s| s.pid != self.pid)
    }

    /// Whether the process belongs to the server; an error where that cannot be seen.
    pub fn owns(&self, pid: Pid) -> io::Result<bool> {
        let snapshot = Snapshot::take();
        let owns = snapshot.family(&self.family).iter().any(|s| s.pid == pid);
        if owns { Ok(true) } else { snapshot.complete().map(|()| false) }
    }

    /// Those of the sockets that the server holds; an error where that cannot be seen.
    pub fn holds(&self, sockets: &[TcpSocket]) -> io::Result<BTreeSet<Address>> {
        if sockets.is_empty() {
            return Ok(BTreeSet::new());
        }
        let snapshot = Snapshot::take();
        snapshot.complete()?;
        Ok(self.holders(&snapshot, sockets)?.into_iter().flat_map(|(_, held)| held).collect())
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

    fn holders(&self, snapshot: &Snapshot, sockets: &[TcpSocket]) -> io::Result<Vec<(Pid, Vec<Address>)>> {
        let mut holders = Vec::new();
        for stat in snapshot.family(&self.family) {
            let fds = procfs::find_sockets(stat.pid)?.unwrap_or_default();
            let inodes: BTreeSet<u32> = fds.into_iter().map(|(_, inode)| inode).collect();
            let held: Vec<Address> =
                sockets.iter().filter(|s| inodes.contains(&s.inode)).map(|s| s.local.clone()).collect();
            if !held.is_empty() {
                holders.push((stat.pid, held));
            }
        }
        Ok(holders)
    }

    /// The listeners that the server has on these addresses, as handles of our own.
    pub fn listeners(&self, wanted: &[Address]) -> io::Result<Vec<Socket>> {
        let (mut left, mut found) = (BTreeSet::new(), Vec::new());
        left.extend(net::listeners()?.at_any(wanted).iter().map(|s| s.inode));
        let snapshot = Snapshot::take();
        snapshot.complete()?;
        for stat in snapshot.family(&self.family) {
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
        Snapshot::take().sockets(&self.family)
    }

    /// Makes another process of the server its main one (a daemon whose starter has exited).
    pub fn promote(&mut self, pid: Pid) -> bool {
        let Some(stat) = procfs::stat(pid) else { return false };
        let Ok(pidfd) = Pidfd::open(pid) else { return false };
        (self.pid, self.start, self.pidfd) = (pid, stat.start, pidfd);
        let family = &mut self.family;
        (family.main, family.start) = (pid, stat.start);
        // It may have joined any group of its session, ours too: only one of the server's own is the server's.
        let group = family.group.and_then(|own| [own, pid].into_iter().find(|group| group.raw() == stat.group));
        (family.group, family.session) = (group, stat.session);
        true
    }
}

fn receive_watch(report: &UnixStream, ledger: Arc<Ledger>) -> std::result::Result<Arc<Watch>, String> {
    let notifier = seccomp::receive_result(report).map_err(|e| match e.raw_os_error() {
        Some(nix::libc::EBUSY) => "another one watches already (serverswap inside a server?)".to_owned(),
        _ => format!("the kernel or a container profile forbids it: {}", crate::error::reason(&e)),
    })?;
    Ok(Arc::new(Watch { notifier, ledger }))
}

/// The file that a command name means, as execvp(3) finds it.
fn path_of(name: &std::ffi::OsStr) -> Option<std::path::PathBuf> {
    let path = Path::new(name);
    if path.components().count() > 1 {
        return Some(path.to_owned());
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|file| file.is_file())
}
