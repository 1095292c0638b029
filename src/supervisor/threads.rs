//! The threads that read: each blocks on one source and turns what it reads into events. None of them
//! decides anything.

use super::held::{Steering, Waiting};
use crate::protocol::{PEER_VERSION, PeerWord, Splitter};
use crate::relay::Tally;
use crate::rundir::RunDir;
use crate::sys::process::{self, Pid, Pidfd};
use crate::sys::socket;
use crate::sys::thread::start;
use nix::sys::signal::Signal;
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithRawSiginfo;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Number of a connection, a claim or a lock: one series for all of them.
pub type Id = u64;

/// A connection that the main thread writes to and a thread reads from.
pub struct Link {
    /// The connection.
    pub stream: UnixStream,
    /// The main thread has done with it: nothing that was written to it is read any more.
    pub done: AtomicBool,
    /// That of whoever connected to a control socket. It comes after the stream, which so is closed first.
    _place: Option<Place>,
}

impl Link {
    /// A connection of ours.
    pub fn new(stream: UnixStream) -> Arc<Link> {
        Arc::new(Link { stream, done: AtomicBool::new(false), _place: None })
    }
}

/// What the threads tell the main one.
pub enum Event {
    /// A signal came; `true`: from the terminal, so the server has had it too.
    Signal(Signal, bool),
    /// Somebody connected to the control socket.
    Opened(Id, Arc<Link>),
    /// The connection to an old server's supervisor stands.
    Connected(Id, Arc<Link>),
    /// A line came. An `Err` is the text of the ERROR line that answers a malformed one.
    Line(Id, Result<String, &'static str>),
    /// The supervisor of an old server handed over listeners.
    Files(Id, Vec<OwnedFd>),
    /// A connection ended, or never came to be.
    Closed(Id),
    /// A datagram came to the notify socket.
    Notified(Vec<u8>),
    /// The main process of the server has ended. Sent only if it is no child of ours.
    Ended(Pid),
    /// The server has bound a port that it shares, or is to share, with another server.
    Bound,
    /// Its ports cannot be shared after all, and why.
    Unshared(String),
    /// It wants to listen.
    Called(Waiting),
    /// The lock of the run directory was waited for, and is ours.
    Directory(io::Result<File>),
    /// It attaches a program to a port, or detaches it.
    Steers(Steering),
    /// What became of requests on kept connections.
    Relayed(Tally),
    /// What came of a check over HTTP.
    Asked(Result<(), String>),
    /// Somebody has connected to the preview, and is to be led to our server.
    Previewed(crate::check::Answer),
    /// The supervisor of an old server has closed its connection and lives on.
    HungUp(Id),
    /// The supervisor of an old server is gone: the lock of the server's record is free.
    Orphaned(Id),
    /// Whoever waits for `--detach` no longer wants the swap.
    Cancelled,
}

/// Where events go. The channel is short: a flood waits in the kernel, not in our memory.
pub type Events = SyncSender<Event>;

/// How many events may wait.
pub const BACKLOG: usize = 64;
/// How long a new connection may take to its first line.
const FIRST_LINE: Duration = Duration::from_secs(10);
/// How many connections to its control sockets a supervisor takes, if it may have twice as many open files.
const CONNECTIONS_MAX: usize = 1024;
/// As many more may stand until it is known who they are: another serverswap is heard even if servers have
/// all connections.
pub const CONNECTIONS_SPARE: usize = 32;

static NEXT: AtomicU64 = AtomicU64::new(1);
static PLACES: Mutex<usize> = Mutex::new(0);
static PLACE_FREED: Condvar = Condvar::new();

/// How many connections to its control sockets this supervisor takes: swaps need open files too.
pub fn connections_max() -> usize {
    CONNECTIONS_MAX.min(process::open_files_max() / 2)
}

/// One of the connections to the control sockets.
struct Place;

impl Place {
    /// Waits until there is one, for which the main thread makes room. New connections wait in the kernel meanwhile.
    fn take() -> Place {
        let most = connections_max() + CONNECTIONS_SPARE;
        let taken = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = PLACE_FREED.wait_while(taken, |taken| *taken >= most);
        *taken.unwrap_or_else(PoisonError::into_inner) += 1;
        Place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *PLACES.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        PLACE_FREED.notify_one();
    }
}

/// A number that nothing else in this process has.
pub fn next_id() -> Id {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Signals that have come, or will: they wait until somebody reads them.
pub type Signals = SignalsInfo<WithRawSiginfo>;

/// Reads signals.
pub fn signals(events: Events, mut source: Signals) -> io::Result<()> {
    start("signals", move || {
        for info in source.forever() {
            // si_code SI_KERNEL: the terminal's line discipline sent it, to the whole foreground group.
            let from_terminal = info.si_code == nix::libc::SI_KERNEL;
            let Ok(signal) = Signal::try_from(info.si_signo) else { continue };
            if events.send(Event::Signal(signal, from_terminal)).is_err() {
                return;
            }
        }
    })
}

/// Reads lines from a connection until it ends.
pub fn lines(events: Events, id: Id, link: Arc<Link>) -> io::Result<()> {
    start("lines", move || read_lines(&events, id, &link, Peer::Server))
}

/// Who is at the other end of a connection.
#[derive(PartialEq)]
enum Peer {
    /// Our server.
    Server,
    /// Whoever connected, and has to say something soon.
    Anybody,
    /// The supervisor of an old server: the only one from whom files are taken.
    Holder,
}

fn read_lines(events: &Events, id: Id, link: &Link, peer: Peer) {
    let stream = &link.stream;
    let mut splitter = Splitter::default();
    let mut buffer = [0; 1024];
    // A byte now and then is no line.
    let mut silent_until = (peer == Peer::Anybody).then(|| Instant::now() + FIRST_LINE);
    loop {
        if let Some(until) = silent_until {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
                break;
            }
        }
        let read = match peer {
            Peer::Holder => socket::receive_files(stream, &mut buffer),
            Peer::Server | Peer::Anybody => { stream }.read(&mut buffer).map(|len| (len, Vec::new())),
        };
        match read {
            Ok((0, _)) => break,
            Ok((len, files)) => {
                if !files.is_empty() && events.send(Event::Files(id, files)).is_err() {
                    return;
                }
                if link.done.load(Ordering::Relaxed) {
                    break;
                }
                for line in splitter.push(&buffer[..len]) {
                    if silent_until.take().is_some() {
                        let _ = stream.set_read_timeout(None);
                    }
                    if events.send(Event::Line(id, line)).is_err() {
                        return;
                    }
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = events.send(Event::Closed(id));
}

/// Takes connections to the control socket, from its own user and from root.
pub fn accept(events: Events, listener: Arc<UnixListener>) -> io::Result<()> {
    let own = nix::unistd::geteuid().as_raw();
    start("accept", move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    let trusted = socket::peer(&stream).is_ok_and(|peer| peer.uid() == own || peer.uid() == 0);
                    if !trusted {
                        let _ = socket::send_now(&stream, b"ERROR this control socket is not yours\n");
                    } else {
                        let place = Some(Place::take());
                        serve(&events, Arc::new(Link { stream, done: AtomicBool::new(false), _place: place }));
                    }
                }
                // The main thread has shut the socket down: the server has ended.
                Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Out of fds or memory. accept(2) would fail again at once; nothing tells when it would not.
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    })
}

fn serve(events: &Events, link: Arc<Link>) {
    let id = next_id();
    let events = events.clone();
    // Without a thread the connection ends with the link.
    let _ = start("peer", move || {
        if events.send(Event::Opened(id, link.clone())).is_ok() {
            read_lines(&events, id, &link, Peer::Anybody);
        }
    });
}

/// Connects to the supervisor of an old server and reads what it says. Where nobody answers, waits
/// until the lock of the server's record is free: its supervisor is about to end, or somebody else
/// takes the orphan over.
pub fn connect(events: Events, id: Id, socket: PathBuf, server: Pid, dir: RunDir) -> io::Result<()> {
    start("connect", move || match socket::connect_to(&socket, dir.owner(), None) {
        Ok(stream) => {
            let link = Link::new(stream);
            if events.send(Event::Connected(id, link.clone())).is_ok() {
                read_lines(&events, id, &link, Peer::Holder);
            }
        }
        Err(_) => {
            dir.is_released(server, None);
            let _ = events.send(Event::Closed(id));
        }
    })
}

/// Says one word to the supervisor at a control socket, if it is the one that this user may have there.
pub fn tell(socket: PathBuf, owner: u32, word: PeerWord) -> io::Result<()> {
    start("tell", move || {
        let _ = socket::connect_to(&socket, owner, None)
            .and_then(|mut stream| write!(stream, "{}\n{word}\n", PeerWord::Peer(PEER_VERSION)));
    })
}

/// The notify socket of a server.
pub struct NotifySocket {
    /// The socket.
    pub socket: UnixDatagram,
    /// Set before the socket is shut down, which then reads as an empty datagram, like one that was sent.
    pub closed: AtomicBool,
}

/// How long after its connection the lock of a dying supervisor may be released: the connection closes first.
pub const HANGS_UP: Duration = Duration::from_secs(2);

/// Waits, for `within` at most, until the lock of a server's record is free: sends [`Event::Orphaned`] then, and
/// [`Event::HungUp`] if the supervisor lives on.
pub fn release(events: Events, id: Id, server: Pid, dir: RunDir, within: Option<Duration>) -> io::Result<()> {
    start("release", move || {
        let released = dir.is_released(server, within);
        let _ = events.send(if released { Event::Orphaned(id) } else { Event::HungUp(id) });
    })
}

/// Reads what the server says in the language of sd_notify(3).
pub fn notifications(events: Events, notify: Arc<NotifySocket>) -> io::Result<()> {
    start("notify", move || {
        let mut buffer = [0; 4096];
        loop {
            match notify.socket.recv(&mut buffer) {
                Ok(0) if notify.closed.load(Ordering::Acquire) => return,
                Ok(len) => {
                    if events.send(Event::Notified(buffer[..len].to_vec())).is_err() {
                        return;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })
}

/// Waits for the lock of the run directory.
pub fn directory(events: Events, dir: RunDir) -> io::Result<()> {
    start("directory", move || {
        let _ = events.send(Event::Directory(dir.wait_for_lock()));
    })
}

/// A thread that waits for the end of a process. Dropping this value ends the thread.
pub struct EndOf(#[expect(dead_code, reason = "its end is what counts")] UnixStream);

/// Waits for the end of a process that is no child of ours.
pub fn end_of(events: Events, pid: Pid, pidfd: Pidfd) -> io::Result<EndOf> {
    let (ours, theirs) = UnixStream::pair()?;
    start("end", move || {
        if pidfd.ends_before(theirs.as_fd()) {
            let _ = events.send(Event::Ended(pid));
        }
    })?;
    Ok(EndOf(ours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::mpsc;

    #[test]
    fn nobody_waits_for_the_end_of_a_process_that_nobody_wants_to_hear_of() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (events, heard) = mpsc::sync_channel(BACKLOG);
        let wait = || end_of(events.clone(), Pid::of(&child), Pidfd::open(Pid::of(&child)).unwrap()).unwrap();
        drop(wait());
        let wanted = wait();
        drop(events);
        child.kill().unwrap();
        let ended = heard.recv_timeout(Duration::from_secs(60));
        assert!(matches!(ended, Ok(Event::Ended(pid)) if pid == Pid::of(&child)));
        // The other thread has ended without a word.
        assert!(matches!(heard.recv_timeout(Duration::from_secs(60)), Err(mpsc::RecvTimeoutError::Disconnected)));
        child.wait().unwrap();
        drop(wanted);
    }

    #[test]
    fn what_was_written_to_a_connection_that_is_closed_is_not_read_to_its_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        // Fewer lines than events may wait: nobody takes them while they are read.
        theirs.write_all(&b"PEER 1\n".repeat(BACKLOG - 1)).unwrap();
        drop(theirs);
        let link = Link::new(ours);
        link.done.store(true, Ordering::Relaxed);
        let (events, heard) = mpsc::sync_channel(BACKLOG);
        read_lines(&events, 1, &link, Peer::Anybody);
        let lines = heard.try_iter().take_while(|event| !matches!(event, Event::Closed(1))).count();
        assert_eq!(lines, 0, "lines that nobody wants any more were read");
    }
}
