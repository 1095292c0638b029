//! When two worlds are the same.

use super::World;
use crate::kernel;
use crate::supervisor::Supervisor;
use crate::sys::clock::Instant;
use std::fmt::Write;
use std::hash::{Hash, Hasher};

/// Hashes what is printed.
struct Printed<'a, H>(&'a mut H);

impl<H: Hasher> Write for Printed<'_, H> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        kernel::with(|k| {
            (&k.sockets, &k.groups).hash(state);
            for (id, c) in &k.connections {
                (id, c.state, c.peer, c.local, c.listener, c.inode, c.server, c.is_probe).hash(state);
            }
        });
        let land = &self.land;
        (&land.dir, &land.streams, &land.doors, &land.births).hash(state);
        for server in land.servers.values() {
            let _ = write!(Printed(state), "{server:?}");
        }
        self.supervisors.values().for_each(|supervisor| hash_of(supervisor, state));
        for client in &self.clients {
            let _ = write!(Printed(state), "{:?}", (client.source, client.state));
        }
    }
}

fn hash_of<H: Hasher>(it: &Supervisor, state: &mut H) {
    (it.pid, it.server.0, it.is_done).hash(state);
    let out = &mut Printed(state);
    let _ = write!(out, "{:?} {:?}", it.peers.threads, it.agenda.orphaned);
    for (id, old) in &it.peers.olds {
        let _ = write!(
            out,
            "{id} {:?} {:?} {:?} {} {} {} {:?} {}",
            old.holder,
            old.stream,
            old.holds,
            old.sockets.len(),
            old.promised,
            old.locked,
            old.asked,
            old.lingers.is_some()
        );
    }
    let unclear: Vec<_> = it.agenda.unclear.keys().collect();
    let rings = it.agenda.timers.next().map(|at: Instant| format!("{at:?}"));
    let _ = write!(out, "{unclear:?} {rings:?} {} {:?}", it.clock.poll_at.is_some(), it.clock.tidy_at);
    let Some(live) = &it.live else { return };
    live.machine.hash(out.0);
    let out = &mut Printed(out.0);
    let (names, looks, standing) = (&live.names, &live.looks, &live.standing);
    let _ = write!(out, "{:?} {:?} {:?} {:?}", names.replaced, names.kept, names.held, names.regaining);
    let _ = write!(out, "{:?} {:?} {}", looks.watching, looks.releasing, live.opening.calls.len());
    let _ = write!(out, "{:?} {:?} {}", live.joining.sharing, live.joining.proving, live.joining.settled);
    let _ = write!(out, "{} {} {:?}", standing.handed_over, standing.succeeded, standing.heir);
    let left = standing.left_by.as_ref().map(|left| (left.claimer, left.until));
    let _ = write!(out, "{left:?} {:?} {}", standing.drain, standing.quiesced);
    let _ = write!(out, "{} {}", live.life.was_up, live.life.ended);
}
