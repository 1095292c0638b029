//! A sandbox for tests with real servers: its own run directory, its own ports, no process left behind,
//! and a client that counts every failure by kind.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; no test waits this long when all is well.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The environment variable by which the processes of a sandbox are known.
pub const MARK: &str = "SERVERSWAP_TEST_SANDBOX";

/// The binary under test.
pub const SERVERSWAP: &str = env!("CARGO_BIN_EXE_serverswap");

/// Waits for a condition. The only way in which tests wait.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The small Rust server of `tests/servers/plain.rs`.
pub fn plain_server() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| example("plain-server")).clone()
}

/// Builds an example of `Cargo.toml`: `cargo test --test NAME` builds none.
pub fn example(name: &str) -> PathBuf {
    let target = Path::new(SERVERSWAP).parent().unwrap();
    let profile = if target.ends_with("release") { "release" } else { "dev" };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--example", name]).current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.args(["--profile", profile, "--target-dir"]).arg(target.parent().unwrap());
    assert!(cargo.status().unwrap().success());
    target.join("examples").join(name)
}

/// Runs a test once in plain order and once on a shared port.
pub fn in_both_orders(test: impl Fn(Sandbox)) {
    for sandbox in [Sandbox::new(), Sandbox::shared()] {
        eprintln!("shared: {}", sandbox.is_shared());
        test(sandbox);
    }
}

/// A directory with a run directory in it. Dropping it ends every process that was started in it.
pub struct Sandbox {
    dir: tempfile::TempDir,
    logs: AtomicUsize,
    shared: bool,
}

impl Default for Sandbox {
    fn default() -> Sandbox {
        Sandbox::new()
    }
}

impl Sandbox {
    /// One in which all swaps run in plain order.
    pub fn new() -> Sandbox {
        // For a look at how the other order does in the tests of this one.
        Sandbox::below("/tmp", std::env::var_os("SERVERSWAP_TEST_SHARED").is_some())
    }

    /// One in which ports are shared.
    pub fn shared() -> Sandbox {
        Sandbox::below("/tmp", true)
    }

    /// One in which ports are shared and whose files are in memory, as those in `/run` are: what takes ext4
    /// its time grows with the files that somebody removed there a moment ago.
    pub fn in_memory() -> Sandbox {
        let memory = "/dev/shm";
        let root = if Path::new(memory).is_dir() { memory } else { "/tmp" };
        Sandbox::below(root, true)
    }

    /// In a directory with a short path: those of unix sockets are limited to 107 bytes.
    fn below(root: &str, shared: bool) -> Sandbox {
        let dir = tempfile::Builder::new().prefix("ssw").tempdir_in(root).unwrap();
        Sandbox { dir, logs: AtomicUsize::new(0), shared }
    }

    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// As many processes as one server takes: it, its supervisor and, on a shared port, its keeper.
    pub fn crew(&self) -> usize {
        if self.shared { 3 } else { 2 }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// A port that nobody has, outside the range that the kernel gives to clients. A name in the abstract
    /// namespace reserves it: two test programs that run side by side could else share one.
    pub fn port(&self) -> u16 {
        use nix::sys::socket::{Shutdown, shutdown};
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixListener};
        static NEXT: AtomicU16 = AtomicU16::new(0);
        static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
        loop {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let port = 10_000 + (std::process::id() as u16).wrapping_mul(37).wrapping_add(step) % 20_000;
            let name = SocketAddr::from_abstract_name(format!("serverswap-test-{port}")).unwrap();
            let Ok(reserved) = UnixListener::bind_addr(&name) else { continue };
            RESERVED.lock().unwrap().push(reserved);
            // What another thread forks in this moment holds a copy until it executes its program: that listens no more.
            let unlisten = |own: TcpListener| shutdown(own.as_raw_fd(), Shutdown::Both).is_ok();
            let is_free = |ip: &&str| TcpListener::bind((*ip, port)).is_ok_and(unlisten);
            if ["0.0.0.0", "127.0.0.1", "::"].iter().all(is_free) {
                return port;
            }
        }
    }

    /// Writes a file and gives its path.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// A command in this sandbox, with no terminal.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("SERVERSWAP_RUN_DIR", self.run_dir()).env(MARK, self.dir.path());
        for name in ["NOTIFY_SOCKET", "SERVERSWAP_FD", "SERVERSWAP_SOCKET", "SERVERSWAP_INODE", "WATCHDOG_USEC"] {
            command.env_remove(name);
        }
        // SAFETY: setsid and sigaction are async-signal-safe. They keep out of the test a terminal of the
        // developer's, that a shell lets what it starts in the background ignore the keyboard, and nohup(1).
        unsafe {
            use nix::sys::signal::{SigHandler, Signal, signal};
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                for inherited in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
                    signal(inherited, SigHandler::SigDfl)?;
                }
                Ok(())
            })
        };
        command
    }

    /// Starts a command whose output goes to a log.
    pub fn start(&self, mut command: Command) -> Running {
        let log = self.path(&format!("log{}", self.logs.fetch_add(1, Ordering::Relaxed)));
        let file = File::create(&log).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let shown = format!("{command:?}");
        let child = command.spawn().unwrap_or_else(|e| panic!("{shown}: {e}"));
        Running { child, log, shown }
    }

    /// Starts `serverswap ARGS...`.
    pub fn serverswap<A: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Running {
        let arguments: Vec<std::ffi::OsString> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let mut command = self.command(SERVERSWAP);
        if !self.shared && runs_a_server(&arguments) {
            command.arg("--plain");
        }
        command.args(arguments);
        self.start(command)
    }

    /// Runs `serverswap ARGS...` to its end: status, output.
    pub fn run<A: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> (i32, String) {
        let mut running = self.serverswap(arguments);
        let status = running.wait();
        (status, running.log())
    }

    /// All that all commands and their servers wrote.
    pub fn said(&self) -> String {
        let logs = 0..self.logs.load(Ordering::Relaxed);
        let text = |log| fs::read(self.path(&format!("log{log}"))).unwrap_or_default();
        logs.map(|log| String::from_utf8_lossy(&text(log)).into_owned()).collect()
    }

    /// The pid in a pidfile.
    pub fn pidfile(&self, name: &str) -> Option<i32> {
        fs::read_to_string(self.run_dir().join(format!("{name}.pid"))).ok()?.trim().parse().ok()
    }

    /// `--status` for programs: fields per line.
    pub fn status(&self) -> Vec<Vec<String>> {
        let mut command = self.command(SERVERSWAP);
        let output = command.arg("--status").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
    }

    /// Names in the run directory, but for its lock and for histories, which outlive their servers.
    pub fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.run_dir())
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|name| name != "lock" && !name.ends_with(".history"))
            .collect();
        names.sort();
        names
    }

    /// Living processes that were started in this sandbox, with their command lines.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let mark = format!("{MARK}={}", self.dir.path().display());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|&b| b == 0).any(|e| e == mark.as_bytes()) {
                let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
            }
        }
        found
    }

    /// Living processes whose directory is that of the sandbox: nginx writes its title over its environment, and
    /// the helpers of a supervisor have none.
    pub fn inhabitants(&self) -> Vec<i32> {
        let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        let here = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == self.dir.path());
        pids.filter(here).collect()
    }

    /// Everything has ended and the run directory is empty.
    pub fn assert_clean(&self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.processes().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.processes(), [], "processes left behind");
        assert_eq!(self.files(), Vec::<String>::new(), "files left behind");
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in 0..self.logs.load(Ordering::Relaxed) {
                let text = fs::read(self.path(&format!("log{log}"))).unwrap_or_default();
                eprintln!("--- log {log}\n{}", String::from_utf8_lossy(&text));
            }
            eprintln!("--- run directory: {:?}\n--- processes: {:?}", self.files(), self.processes());
        }
        // Supervisors may start processes while we look: until there is none.
        for _ in 0..100 {
            let mut processes = self.inhabitants();
            processes.extend(self.processes().into_iter().map(|(pid, _)| pid));
            if processes.is_empty() {
                return;
            }
            for pid in processes {
                kill(pid, nix::libc::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A fifo at which a server waits, see `tests/servers/plain.rs`. Whoever waits goes on when the gate is
/// opened or dropped.
pub struct Gate {
    pub path: PathBuf,
    held: Mutex<Option<File>>,
}

impl Gate {
    /// Waits until somebody waits at the gate.
    pub fn reached(&self) {
        let mut held = self.held.lock().unwrap();
        until(&format!("somebody waits at {}", self.path.display()), || {
            use std::os::unix::fs::OpenOptionsExt;
            // Opens only if there is a reader.
            let opened = File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&self.path);
            // Whoever came before is held meanwhile: a reader that finds no writer left goes on.
            if let Ok(opened) = opened {
                *held = Some(opened);
                return true;
            }
            false
        });
    }

    /// Whether somebody waits at the gate; who does is held.
    pub fn is_reached(&self) -> bool {
        use std::os::unix::fs::OpenOptionsExt;
        let opened = File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&self.path);
        let mut held = self.held.lock().unwrap();
        if let Ok(opened) = opened {
            *held = Some(opened);
        }
        held.is_some()
    }

    /// Lets whoever waits, and has been waited for by [`Gate::reached`], go on.
    pub fn open(&self) {
        *self.held.lock().unwrap() = None;
    }
}

impl Sandbox {
    /// A gate, and the argument that makes plain-server wait there.
    pub fn gate(&self, stage: &str) -> (Gate, String) {
        let path = self.path(&format!("{stage}{}", self.logs.fetch_add(1, Ordering::Relaxed)));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let argument = format!("{stage}={}", path.display());
        (Gate { path, held: Mutex::new(None) }, argument)
    }

    /// From here on the main thread of a process, and no other, can open nothing for want of memory, until the
    /// tracer, whose log says what it tried, is told to end.
    pub fn blind(&self, pid: i32) -> Running {
        self.inject(pid, "openat:error=ENOMEM")
    }

    /// The same for any fault of strace(1).
    pub fn inject(&self, pid: i32, fault: &str) -> Running {
        let mut command = self.command("strace");
        command.args(["-qq", "-e", &format!("inject={fault}"), "-p", &pid.to_string()]);
        let tracer = self.start(command);
        until("it is traced", || is_traced(pid));
        tracer
    }

    /// strace(1), to which the options that say whom are to be added: a kind of call of its meets a fault, and of what it
    /// forks, not of what it executes. The calls are written to "trace".
    pub fn tracer(&self, call: &str, fault: &str) -> Command {
        let mut command = self.command("strace");
        // What cargo sets has the loader look for its libraries in many places.
        command.env_remove("LD_LIBRARY_PATH");
        let (only, inject) = (format!("trace={call}"), format!("inject={call}:{fault}"));
        command.args(["-I2", "-f", "-qq", "-b", "execve", "-e", &only, "-e", &inject, "-o"]).arg(self.path("trace"));
        command
    }

    /// Ends the tracers: whoever lives on is on his own again.
    pub fn end_tracers(&self) {
        let tracers = || self.processes().into_iter().filter(|(_, command)| command.starts_with("strace "));
        let since = Instant::now();
        // A tracer whose process died in the wrong moment may wait for it for ever.
        let patience = Duration::from_secs(5);
        let signal = || if since.elapsed() < patience { nix::libc::SIGTERM } else { nix::libc::SIGKILL };
        until("nobody is traced", || tracers().map(|(pid, _)| kill(pid, signal())).count() == 0);
    }

    /// How the swaps to a server have ended, by the history of an address.
    pub fn swaps_to(&self, port: u16, pid: i32) -> Vec<String> {
        let text = fs::read_to_string(self.run_dir().join(format!("{port}.history"))).unwrap_or_default();
        let lines = text.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        let ends = lines.filter(|fields| fields[0] == "swap" && fields[5] == pid.to_string());
        ends.map(|fields| fields[9].to_owned()).collect()
    }

    /// Starts plain-server under serverswap: options, then the words of the server.
    pub fn plain(&self, options: &[&str], words: &[&str]) -> Running {
        let server = plain_server();
        let words = options.iter().copied().chain([server.to_str().unwrap()]).chain(words.iter().copied());
        self.serverswap(words)
    }

    /// The first plain-server of a port, up; and its pid.
    pub fn serving(&self, port: u16, options: &[&str], words: &[&str]) -> (Running, i32) {
        let running = self.plain(options, words);
        let pid = answered_by(port, 1).pid;
        running.says("is up");
        (running, pid)
    }

    /// `serverswap -d` with plain-server, to its end: status, output.
    pub fn deploy(&self, words: &[&str]) -> (i32, String) {
        let mut running = self.plain(&["-d"], words);
        let status = running.wait();
        (status, running.log())
    }

    /// A connection to the control socket of the only server, and what is answered on it.
    pub fn speaker(&self) -> (UnixStream, BufReader<UnixStream>) {
        let socket = self.files().into_iter().find(|name| name.ends_with(".sock")).unwrap();
        let stream = UnixStream::connect(self.run_dir().join(socket)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        (stream.try_clone().unwrap(), BufReader::new(stream))
    }

    /// Takes an address down and checks that nothing is left.
    pub fn take_down(&self, address: &str) {
        let (status, log) = self.run(["--takedown", address]);
        assert_eq!(status, 0, "{log}");
        self.assert_clean();
    }
}

/// The next line, without its end.
pub fn next_line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// A place that every user can reach, with copies of the programs.
pub struct Commons {
    pub sandbox: Sandbox,
    pub serverswap: PathBuf,
    pub server: PathBuf,
}

impl Commons {
    pub const NOBODY: u32 = 65534;

    pub fn new() -> Commons {
        let sandbox = Sandbox::new();
        fs::set_permissions(sandbox.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        let (serverswap, server) = (sandbox.path("serverswap"), sandbox.path("plain-server"));
        copy_program(Path::new(SERVERSWAP), &serverswap);
        copy_program(&plain_server(), &server);
        let own = sandbox.path("nobody");
        fs::create_dir(&own).unwrap();
        chown(&own, Some(Commons::NOBODY), Some(Commons::NOBODY)).unwrap();
        Commons { sandbox, serverswap, server }
    }

    /// A command of another user, in a run directory.
    pub fn nobody(&self, program: &Path, run_dir: &Path, words: &[&str]) -> Command {
        let mut command = self.sandbox.command(program);
        command.uid(Commons::NOBODY).gid(Commons::NOBODY).env("SERVERSWAP_RUN_DIR", run_dir).args(words);
        command
    }

    pub fn refused(&self, run_dir: &Path, words: &[&str], status: i32, why: &str) {
        let mut running = self.sandbox.start(self.nobody(&self.serverswap, run_dir, words));
        assert_eq!(running.wait(), status, "{words:?}: {}", running.log());
        assert!(running.log().contains(why), "{words:?}: {}", running.log());
    }

    pub fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }
}

/// By another process: what a thread of ours forks meanwhile would have the copy open for writing, and nobody could
/// execute it (ETXTBSY).
pub fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

fn runs_a_server(arguments: &[std::ffi::OsString]) -> bool {
    let other = ["--status", "--takedown", "--reload", "--client", "--help", "--version", "-h", "-V"];
    !arguments.iter().take_while(|a| *a != "--").any(|a| other.contains(&&*a.to_string_lossy()))
}

/// Signals one process.
pub fn kill(pid: i32, signal: i32) {
    assert!(pid > 1);
    let _ =
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::try_from(signal).unwrap());
}

/// The same for signals without a name: the real-time ones.
pub fn kill_by(pid: i32, signal: i32) {
    assert!(pid > 1);
    // SAFETY: two integers.
    assert_eq!(unsafe { nix::libc::kill(pid, signal) }, 0);
}

/// The children of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// How many files a process has open; 0 if it is gone.
pub fn files_of(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |files| files.count())
}

/// The number that the next file of a process gets: the lowest that is free.
pub fn next_file_of(pid: i32) -> io::Result<u64> {
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let open: Vec<u64> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    Ok((0..).find(|number| !open.contains(number)).unwrap_or(0))
}

/// Sets a limit of another process; the one that it had (prlimit(2)).
pub fn limit(pid: i32, resource: nix::libc::__rlimit_resource_t, to: u64) -> io::Result<u64> {
    let mut before = nix::libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both structures are valid through the calls.
    let set = unsafe {
        let read = nix::libc::prlimit64(pid, resource, std::ptr::null(), &raw mut before);
        let new = nix::libc::rlimit64 { rlim_cur: to, rlim_max: before.rlim_max };
        read == 0 && nix::libc::prlimit64(pid, resource, &raw const new, std::ptr::null_mut()) == 0
    };
    if set { Ok(before.rlim_cur) } else { Err(io::Error::last_os_error()) }
}

/// KiB of a kind of memory of a process (proc_pid_status(5)), `RssAnon` say; `None` if it is gone.
pub fn memory_of(pid: i32, kind: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Whether somebody traces a thread; a process has the number of its main thread.
pub fn is_traced(tid: i32) -> bool {
    !fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default().contains("TracerPid:\t0\n")
}

/// Whether a process lives.
pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

/// A started command.
pub struct Running {
    pub child: Child,
    log: PathBuf,
    shown: String,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it and its server wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its status as a shell would see it.
    pub fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return code(status);
            }
            assert!(Instant::now() < deadline, "{} does not end; it says:\n{}", self.shown, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until its log holds a text.
    pub fn says(&self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "{} never says {text:?}; it says:\n{}", self.shown, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, signal: i32) {
        kill(self.pid(), signal);
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Who answered: generation and pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    pub generation: u64,
    pub pid: i32,
}

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    Refused,
    Reset,
    Empty,
    /// The answer ended in the middle.
    Cut,
    TimedOut,
    /// The kernel dropped its first SYN: whoever asks waits for a second or more, however fast the machine is.
    Resent,
    Other,
}

/// One request over a new connection.
pub fn get(port: u16) -> Result<Answer, Failure> {
    get_from(SocketAddr::from(([127, 0, 0, 1], port)))
}

pub fn get_from(address: SocketAddr) -> Result<Answer, Failure> {
    let kind = |e: io::Error| match e.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Reset,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::TimedOut,
        _ => Failure::Other,
    };
    let patience = Duration::from_secs(10);
    let asked = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, patience).map_err(kind)?;
    // Where the first SYN meets what is left of an earlier connection, the second follows at once.
    if asked.elapsed() >= SYN_TIMEOUT && resent(&stream).map_err(kind)? > 0 {
        return Err(Failure::Resent);
    }
    stream.set_read_timeout(Some(patience)).map_err(kind)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").map_err(kind)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(kind)?;
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or("").trim().to_owned();
    let mut words = body.split_whitespace().map(str::parse::<i64>);
    match (words.next(), words.next()) {
        (Some(Ok(generation)), Some(Ok(pid))) => Ok(Answer { generation: generation as u64, pid: pid as i32 }),
        _ if answer.is_empty() => Err(Failure::Empty),
        _ if body.is_empty() => Err(Failure::Cut),
        _ => Err(Failure::Other),
    }
}

/// When a client sends its SYN for the second time (RFC 6298, section 2.1).
const SYN_TIMEOUT: Duration = Duration::from_secs(1);

/// How many segments of a connection were sent again (tcp(7), `TCP_INFO`).
fn resent(stream: &TcpStream) -> io::Result<u32> {
    use nix::libc::{IPPROTO_TCP, TCP_INFO, getsockopt, socklen_t, tcp_info};
    // SAFETY: all zero is a valid value, and both pointers are valid through the call.
    let (failed, info) = unsafe {
        let (mut info, mut size) = (std::mem::zeroed::<tcp_info>(), size_of::<tcp_info>() as socklen_t);
        let info_at = (&raw mut info).cast();
        (getsockopt(stream.as_raw_fd(), IPPROTO_TCP, TCP_INFO, info_at, &raw mut size), info)
    };
    if failed == 0 { Ok(info.tcpi_total_retrans) } else { Err(io::Error::last_os_error()) }
}

/// How many sockets listen on a port. By ss(8), of iproute2, since /proc/net/tcp also lists each connection that has
/// ended in the last minute: under load, all that a test does is read it.
pub fn listening(port: u16) -> usize {
    let output = Command::new("ss").args(["-Hltn", &format!("sport = :{port}")]).output().expect("ss, of iproute2");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// Waits until the port is answered by this generation.
pub fn answered_by(port: u16, generation: u64) -> Answer {
    let mut last = None;
    until(&format!("generation {generation} answers on :{port}"), || {
        last = get(port).ok();
        last.is_some_and(|answer| answer.generation == generation)
    });
    last.unwrap()
}

/// What a client saw.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub answers: BTreeMap<i32, usize>,
    pub failures: BTreeMap<Failure, usize>,
    pub longest_gap: Duration,
    /// Who answered last.
    pub last: Option<Answer>,
    /// Generations in the order in which they were first seen to answer, or answered again.
    pub generations: Vec<u64>,
    /// When the first request that a generation answered was begun.
    pub first_asked: BTreeMap<u64, Instant>,
}

/// A client that asks again and again until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// One request every `pause`.
    pub fn start(port: u16, pause: Duration) -> Load {
        Load::to(SocketAddr::from(([127, 0, 0, 1], port)), pause)
    }

    /// As [`Load::start`], in the network of the calling thread.
    pub fn to(address: SocketAddr, pause: Duration) -> Load {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let (stop_too, seen_too) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut last = Instant::now();
            while !stop_too.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let result = get_from(address);
                let mut seen = seen_too.lock().unwrap();
                match result {
                    Ok(answer) => {
                        *seen.answers.entry(answer.pid).or_default() += 1;
                        if seen.generations.last() != Some(&answer.generation) {
                            seen.generations.push(answer.generation);
                            seen.first_asked.entry(answer.generation).or_insert(asked);
                        }
                        seen.last = Some(answer);
                        seen.longest_gap = seen.longest_gap.max(last.elapsed());
                        last = Instant::now();
                    }
                    Err(failure) => {
                        *seen.failures.entry(failure).or_default() += 1;
                        // What the client waited before it asked again is no measure of how long nobody answered.
                        last += if failure == Failure::Resent { SYN_TIMEOUT } else { Duration::ZERO };
                    }
                }
                drop(seen);
                std::thread::sleep(pause);
            }
        });
        Load { stop, seen, thread: Some(thread) }
    }

    /// Waits until this generation has answered it.
    pub fn sees(&self, generation: u64) {
        until("the client sees the new generation", || {
            self.seen.lock().unwrap().generations.last() == Some(&generation)
        });
    }

    /// Whether it has had an answer.
    pub fn is_answered(&self) -> bool {
        !self.seen.lock().unwrap().answers.is_empty()
    }

    /// How many of its requests have failed.
    pub fn failed(&self) -> usize {
        self.seen.lock().unwrap().failures.values().sum()
    }

    /// The request that runs is the last one.
    pub fn last(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until this server has answered it.
    pub fn sees_server(&self, pid: i32) {
        until("the client sees the server", || self.seen.lock().unwrap().last.is_some_and(|answer| answer.pid == pid));
    }

    /// Ends the load and tells what it saw.
    pub fn stop(mut self) -> Seen {
        self.last();
        self.thread.take().unwrap().join().unwrap();
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The file descriptor of another process, as ours (pidfd_getfd(2), Linux 5.6).
pub fn copy_fd(pid: i32, fd: i32) -> std::io::Result<OwnedFd> {
    use nix::libc::{SYS_pidfd_getfd, SYS_pidfd_open, syscall};
    // SAFETY: plain system calls; what they return is owned at once.
    unsafe {
        let pidfd = syscall(SYS_pidfd_open, pid, 0);
        if pidfd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let pidfd = OwnedFd::from_raw_fd(pidfd as i32);
        let copy = syscall(SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0);
        if copy < 0 { Err(std::io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(copy as i32)) }
    }
}

/// A pseudo terminal that no other test inherits: the keyboard, the screen.
pub fn pty() -> (File, File) {
    use nix::fcntl::OFlag;
    use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
    use std::os::fd::IntoRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).and_then(|()| unlockpt(&master)).unwrap();
    let flags = nix::libc::O_NOCTTY;
    let slave = File::options().read(true).write(true).custom_flags(flags).open(ptsname_r(&master).unwrap());
    // SAFETY: the fd was the master's, which gave it up.
    (unsafe { File::from_raw_fd(master.into_raw_fd()) }, slave.unwrap())
}

/// The terminal at its standard input becomes the controlling one of the session that the command starts.
pub fn controls_terminal(command: &mut Command) {
    // SAFETY: ioctl is async-signal-safe, and comes after setsid().
    unsafe {
        command.pre_exec(|| match nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    };
}

/// A steady server runs as if alone: the kernel spreads connections over all who listen, also over us.
pub fn is_unsteered(port: u16) -> bool {
    is_unsteered_at(SocketAddr::from(([0, 0, 0, 0], port)))
}

/// The same at this wildcard; that of IPv6 is of both families.
pub fn is_unsteered_at(wildcard: SocketAddr) -> bool {
    use nix::sys::socket::sockopt::{Ipv6V6Only, ReuseAddr, ReusePort};
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    };
    let family = if wildcard.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let ours = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&ours, ReusePort, &true).unwrap();
    // Whoever binds the port afterwards is not kept out by what is left of our connections.
    setsockopt(&ours, ReuseAddr, &true).unwrap();
    if wildcard.is_ipv6() {
        setsockopt(&ours, Ipv6V6Only, &false).unwrap();
    }
    bind(ours.as_raw_fd(), &SockaddrStorage::from(wildcard)).unwrap();
    listen(&ours, Backlog::new(128).unwrap()).unwrap();
    let listener = TcpListener::from(ours);
    listener.set_nonblocking(true).unwrap();
    // Half of them come to us. Not one of so many, or all: that is no accident. And they fit into the queue of a server
    // that is slow, so that its clients find place.
    let come = |_: &i32| {
        drop(TcpStream::connect(("127.0.0.1", wildcard.port())).unwrap());
        listener.accept().is_ok()
    };
    let found = (1..64).contains(&(0..64).filter(come).count());
    // Closing it is not enough: until it executes its program, what another thread has just forked holds a copy, and
    // takes connections away from whoever serves.
    nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
    found
}

/// The words of a server of `tests/servers/odd.py`.
pub fn odd(what: &str, port: u16, rest: &[&str]) -> Vec<String> {
    let script = format!("{}/tests/servers/odd.py", env!("CARGO_MANIFEST_DIR"));
    let words = ["python3", &script, what, &port.to_string()].map(str::to_owned);
    words.into_iter().chain(rest.iter().map(|word| (*word).to_owned())).collect()
}
