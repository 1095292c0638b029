//! Starting a server: its environment, the filter that shows its calls, and the keeper that ends it with its supervisor.

#![forbid(unsafe_code)]

use super::{Server, Watch};
use crate::cli::Run;
use crate::error::{Error, Result, reason, status};
use crate::family::{Descent, Family, Household, Seen};
use crate::output::Output;
use crate::procfs::{self, MARK};
use crate::sys::net;
use crate::sys::oom::OomScore;
use crate::sys::process::{self, Keeper, Pid, Pidfd};
use crate::sys::seccomp::{Filter, Ledger};
use nix::libc;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// What a server finds around itself.
pub struct Surroundings<'a> {
    /// Its end of the control channel.
    pub control: UnixStream,
    /// Path of the control socket.
    pub socket: &'a Path,
    /// Path of the notify socket.
    pub notify: &'a Path,
    /// The children of this supervisor that do not belong to the server.
    pub household: &'a Arc<Household>,
    /// Its generation.
    pub generation: u64,
    /// Whether it stays in the process group of the terminal.
    pub on_terminal: bool,
    /// Whether SIGHUP stays ignored (nohup).
    pub hup_ignored: bool,
    /// Where its output goes.
    pub output: &'a Output,
    /// Whether it has no standard input.
    pub detached: bool,
    /// Whether its `bind` and `listen` are to be seen.
    pub watched: bool,
}

/// What has been prepared for a server that is about to run.
struct Start<'a> {
    name: &'a OsStr,
    around: &'a Surroundings<'a>,
    /// Inodes of the sockets that listen already.
    before: Option<BTreeSet<u32>>,
    ledger: Arc<Ledger>,
    /// Where the child reports what came of its filter.
    report: UnixStream,
    /// Whether the child has a filter, or why it has none; `None` if none is wanted.
    watched: Option<std::result::Result<(), String>>,
}

impl Server {
    /// Starts the server.
    pub fn spawn(run: &Run, around: Surroundings<'_>) -> Result<Server> {
        let name = run.command[0].as_os_str();
        let number = process::free_fd_number();
        let mut command = command(run, &around, number)?;
        let filter = if around.watched { Some(filter(name)) } else { None };
        let (report, theirs) = UnixStream::pair().map_err(|e| failed("start", name, e))?;
        let (filter, watched) = match filter {
            Some(Ok(filter)) => (Some((filter, theirs.as_fd())), Some(Ok(()))),
            Some(Err(why)) => (None, Some(Err(why))),
            None => (None, None),
        };
        let ledger = Ledger::new().map(Arc::new).map_err(|e| failed("watch", name, e))?;
        let before = net::listeners().ok().map(|listeners| listeners.all().map(|s| s.inode).collect());
        let start = Start { name, around: &around, before, ledger: ledger.clone(), report, watched };
        let mut failure = None;
        // Before the server runs: whenever its supervisor is killed, somebody knows the server.
        let prepare = |pid: Pid, keeper: io::Result<Keeper>| match start.take_charge(pid, keeper) {
            Ok(server) => Some(server),
            Err(error) => {
                failure = Some(error);
                None
            }
        };
        let control = around.control.as_fd();
        let keeper = || Keeper::start(&ledger);
        let spawned = process::spawn(&mut command, control, number, around.hup_ignored, filter, keeper, prepare);
        spawned.map_err(|e| failure.unwrap_or_else(|| not_executed(name, e)))
    }
}

impl Start<'_> {
    /// Takes charge of the server, which is a process now and does not run yet.
    fn take_charge(self, pid: Pid, keeper: io::Result<Keeper>) -> Result<Server> {
        let Start { name, around, before, ledger, report, watched } = self;
        // Without its start time another process that gets the pid would be taken for it.
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let stat = procfs::find(pid).and_then(|stat| stat.ok_or_else(gone)).map_err(|e| failed("watch", name, e))?;
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
        let watch = watched.map(|watched| watched.and_then(|()| Watch::receive(&report, ledger, seen.clone())));
        let notifier = watch.as_ref().and_then(|w| Some(&w.as_ref().ok()?.notifier));
        let pidfd = Pidfd::open(pid).map_err(|e| failed("watch", name, e))?;
        // A new server is the first to go when memory runs out. Where that cannot be had, it runs all the same.
        let score = OomScore::open(pid).and_then(|score| score.raise().map(|()| score)).ok();
        let keep = |keeper: Keeper| keeper.keep((pid, &pidfd), family.group, notifier).map(|()| keeper);
        let keeper = keeper.and_then(keep).map_err(|e| failed("keep", name, e))?;
        Ok(Server { pid, start, pidfd, family, seen, before, keeper: Some(keeper), score, watch })
    }
}

/// The command with its environment and its standard files.
fn command(run: &Run, around: &Surroundings<'_>, number: Option<RawFd>) -> Result<Command> {
    let name = &run.command[0];
    let mut command = Command::new(name);
    command.args(&run.command[1..]);
    let inode = nix::sys::stat::fstat(&around.control).map_err(|e| failed("start", name, e.into()))?.st_ino;
    // Inherited from an outer serverswap, these would name an fd that the server does not have.
    command.env_remove("SERVERSWAP_FD").env_remove("SERVERSWAP_INODE");
    command.env_remove(process::LINE).env_remove(process::CARE);
    if let Some(number) = number {
        command.env("SERVERSWAP_FD", number.to_string()).env("SERVERSWAP_INODE", inode.to_string());
    }
    command.env(MARK, around.socket);
    command.env("SERVERSWAP_GENERATION", around.generation.to_string());
    command.env("NOTIFY_SOCKET", around.notify);
    // It names this supervisor. Without it the watchdog is meant for any process that asks (sd_watchdog_enabled(3)).
    command.env_remove("WATCHDOG_PID");
    if !around.on_terminal {
        command.process_group(0);
    }
    if around.detached {
        command.stdin(Stdio::null());
    }
    let file = |stream| around.output.file(stream).transpose().map_err(|e| failed("start", name, e));
    if let Some(file) = file(0)? {
        command.stdout(file);
    }
    if let Some(file) = file(1)? {
        command.stderr(file);
    }
    Ok(command)
}

/// The filter that shows the calls of the server, or why it cannot have one.
fn filter(name: &OsStr) -> std::result::Result<Filter, String> {
    if let Err(e) = net::can_be_asked() {
        return Err(format!("the kernel may not be asked about sockets: {}", reason(&e)));
    }
    let privileged = nix::unistd::geteuid().is_root();
    if !privileged && path_of(name).is_some_and(|p| process::raises_privileges(&p)) {
        return Err("COMMAND would lose its file capabilities or setuid bit".to_owned());
    }
    Filter::new().ok_or_else(|| "this architecture is not supported".to_owned())
}

/// The file that a command name means, as execvp(3) finds it.
fn path_of(name: &OsStr) -> Option<PathBuf> {
    let path = Path::new(name);
    if path.components().count() > 1 {
        return Some(path.to_owned());
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn failed(what: &str, name: &OsStr, e: io::Error) -> Error {
    Error::unable(format!("{what} {}", name.to_string_lossy()), e, "nothing was started")
}

fn not_executed(name: &OsStr, e: io::Error) -> Error {
    // What the machine lacks is no fault of COMMAND.
    const LACKS: [i32; 5] = [libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::ECANCELED];
    let status = match e.kind() {
        io::ErrorKind::NotFound => status::NOT_FOUND,
        _ if LACKS.contains(&e.raw_os_error().unwrap_or(0)) => status::FAILED,
        _ => status::CANNOT_EXECUTE,
    };
    Error { status, ..failed("execute", name, e) }
}
