//! The thread that sees a server's `bind` and `listen`. A `bind` is let through at once, its port made
//! sharable; a `listen` waits for the main thread to answer it.

#![forbid(unsafe_code)]

use super::threads::{Event, Events, GenId, start};
use crate::procfs::{self, MARK, Snapshot};
use crate::server::Watch;
use crate::sys::seccomp::{Call, Notification};
use crate::sys::steer::Socket;
use nix::libc;
use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A call that waits. Dropped without an answer it fails: its server is gone, and what is left of it must be able
/// to hear signals.
pub struct Held {
    watch: Arc<Watch>,
    id: u64,
    errno: i32,
}

impl Held {
    /// Gives the call this result.
    pub fn conclude(mut self, result: io::Result<()>) {
        self.errno = result.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EADDRINUSE));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.watch.conclude(self.id, self.errno);
    }
}

/// A `listen` that waits for an answer.
pub struct Waiting {
    /// The call.
    pub call: Held,
    /// Our handle on the socket.
    pub socket: Socket,
    /// Where it is bound.
    pub address: SocketAddr,
    /// What the server asked for.
    pub backlog: i32,
}

impl Watch {
    /// The next call of the server, in the ledger already: if we die from here on, the keeper answers. `None` when nobody
    /// is left. While the kernel gives none although there is one `failed` hears why.
    fn next(&self, failed: impl Fn(String)) -> Option<Notification> {
        loop {
            match self.notifier.next(&self.ledger) {
                Ok(call) => return call,
                Err(e) => failed(format!("its calls cannot be seen: {}", crate::error::reason(&e))),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Lets a call run as if nobody had looked.
    pub fn proceed(&self, id: u64) {
        self.notifier.proceed(id);
        self.ledger.clear(id);
    }

    /// Gives a call this result instead: 0, or an errno.
    pub fn conclude(&self, id: u64, errno: i32) {
        self.notifier.conclude(id, errno);
        self.ledger.clear(id);
    }
}

/// Sees the calls of a generation until nobody of it is left.
pub fn watch(events: Events, generation: GenId, watch: Arc<Watch>, mark: String) -> io::Result<()> {
    start("watch", move || {
        let (mut bound, mut look_at) = (Vec::new(), BOUND_LOOK);
        let unshared = |why: String| drop(events.send(Event::Unshared(generation, why)));
        while let Some(call) = watch.next(unshared) {
            // The filter also sees what runs under another serverswap inside this server.
            let foreign = call.process().and_then(|pid| procfs::environment(pid, MARK)).is_some_and(|m| m != mark);
            if foreign {
                watch.proceed(call.id);
                continue;
            }
            match call.call {
                Call::Bind => {
                    match see_bind(&watch, &call, &mut bound, &mut look_at) {
                        Ok(true) => drop(events.send(Event::Bound(generation))),
                        Err(e) if is_denied(&e) => {
                            unshared(format!("its sockets cannot be had: {}", crate::error::reason(&e)));
                        }
                        // What could not be found out runs as if nobody had looked.
                        Ok(false) | Err(_) => {}
                    }
                    watch.proceed(call.id);
                }
                Call::Steer => {
                    let tcp = call.socket().is_ok_and(|socket| Socket::new(socket).is_tcp());
                    if tcp && call.process().is_some_and(|pid| !procfs::serverswaps()(pid)) {
                        unshared("the server steers it by a program of its own".into());
                    }
                    watch.proceed(call.id);
                }
                Call::Listen(backlog) => match see_listen(&call, &bound) {
                    Ok(Some((socket, address))) => {
                        let call = Held { watch: watch.clone(), id: call.id, errno: libc::EINTR };
                        if events.send(Event::Called(generation, Waiting { call, socket, address, backlog })).is_err() {
                            return;
                        }
                    }
                    Ok(None) | Err(_) => watch.proceed(call.id),
                },
            }
        }
    })
}

/// So many sockets that were bound are remembered before those that are closed are looked for.
const BOUND_LOOK: usize = 4096;

/// A socket that was bound to a fixed port.
struct Bound {
    cookie: u64,
    inode: u32,
    address: SocketAddr,
}

/// Makes the port sharable, so that the new server can bind while the old one serves; `true` if it is
/// a fixed one. Port 0 never: the kernel could then pick a port that is in use.
fn see_bind(watch: &Watch, call: &Notification, bound: &mut Vec<Bound>, look_at: &mut usize) -> io::Result<bool> {
    let Some(address) = call.address()?.filter(|a| a.port() != 0) else { return Ok(false) };
    let socket = Socket::new(call.socket()?);
    if !(socket.is_tcp() || socket.is_udp()) {
        return Ok(false);
    }
    let (cookie, inode, tcp) = (socket.cookie()?, socket.inode()?, socket.is_tcp());
    // A second socket of this server at the same place gets EADDRINUSE, as ever: only what the server
    // itself made sharable shares with itself.
    let alone = tcp && !socket.shares();
    let mut twice = false;
    // A look at all processes: only where it is needed, and once.
    let in_use = LazyCell::new(sockets_in_use);
    let is_open = |inode| in_use.as_ref().is_none_or(|open| open.contains(&inode));
    bound.retain(|b| {
        let same = alone && b.cookie != cookie && collide(b.address, address);
        // What is closed is forgotten: a server may bind as often as it likes.
        let open = !same || is_open(b.inode);
        twice |= same && open;
        open
    });
    // What was read belongs to this call only if it still waits.
    if !twice && watch.notifier.waits(call.id) {
        socket.share()?;
    }
    if tcp {
        bound.retain(|b| b.cookie != cookie);
        bound.push(Bound { cookie, inode, address });
        if bound.len() >= *look_at {
            bound.retain(|b| is_open(b.inode));
            *look_at = BOUND_LOOK.max(2 * bound.len());
        }
    }
    Ok(true)
}

/// A container profile may have no pidfd_getfd(2), and a process that is not dumpable lets nobody look.
fn is_denied(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
}

/// The socket and its address, if it is one of a fixed port that does not listen yet.
fn see_listen(call: &Notification, bound: &[Bound]) -> io::Result<Option<(Socket, SocketAddr)>> {
    let socket = Socket::new(call.socket()?);
    let (cookie, address) = (socket.cookie()?, socket.address()?);
    // The bind that was seen may have failed, and another one, to any port, have come after it.
    let fixed = bound.iter().any(|b| b.cookie == cookie && b.address.port() == address.port());
    Ok((fixed && !socket.listens()).then_some((socket, address)))
}

fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// Those of everybody but supervisors, which hold them for the time of a swap; `None` where that cannot be seen.
fn sockets_in_use() -> Option<BTreeSet<u32>> {
    let snapshot = Snapshot::take();
    snapshot.complete().ok()?;
    let is_serverswap = procfs::serverswaps();
    let held = snapshot.all().filter_map(|stat| Some((stat.pid, procfs::sockets(stat.pid)?)));
    let others = held.filter(|(pid, held)| !held.is_empty() && !is_serverswap(*pid));
    Some(others.flat_map(|(_, held)| held).collect())
}
