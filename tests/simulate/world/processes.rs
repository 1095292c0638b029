//! What servers do, and what happens to processes from outside.

use super::World;
use crate::address::Address;
use crate::kernel::{self, Key, State};
use crate::protocol::{PEER_VERSION, PeerWord, ServerWord, SupervisorWord};
use crate::server::{Call, Life, Server, Step};
use crate::supervisor::Supervisor;
use crate::swap::{Event, Meets};
use crate::sys::net;
use crate::sys::steer::Socket;
use crate::world::streams::Read;

impl World {
    pub(super) fn act(&mut self, pid: i32) {
        let Some(step) = self.land.servers.get_mut(&pid).and_then(|server| server.steps.pop_front()) else { return };
        match step {
            Step::Bind { key, shares } => self.bind(pid, key, shares),
            Step::Listen => self.listen(pid),
            Step::Reopen(at) => self.reopen(pid, at),
            Step::Close(at) => self.close(pid, at),
            Step::Say(word) => self.land.servers.get_mut(&pid).into_iter().for_each(|s| s.says.push_back(word.clone())),
            Step::AwaitGo(_) => {}
            Step::Accept => self.land.servers.get_mut(&pid).into_iter().for_each(|s| s.will.accepts = true),
        }
    }

    /// Whether a bind of a server meets another that may be replaced, as `src/supervisor/watching.rs` finds it.
    fn meets(&self, pid: i32, key: &Key, shares: bool) -> bool {
        let supervisor = self.land.servers.get(&pid).and_then(|server| self.supervisors.get(&server.supervisor));
        let Some(live) = supervisor.and_then(|supervisor| supervisor.live.as_ref()) else { return false };
        let lent = live.machine.claimer().is_some() || live.joining.sharing.has_olds();
        let address = Address::from(key.address);
        let dir = &self.land.dir;
        let mut named: Vec<i32> = dir.pidfiles.iter().filter(|(a, _)| a.collides(&address)).map(|(_, p)| *p).collect();
        let listeners = net::listeners_at(key.address.port()).unwrap_or_default();
        if named.is_empty() {
            let listens = |other: &i32| listeners.at(&address).any(|s| Server(*other).has(s.inode));
            named = dir.servers().iter().map(|h| h.pid.raw()).filter(listens).collect();
        }
        let others = named.iter().any(|other| *other != pid);
        let has = || {
            let own = Server(pid);
            listeners.all().any(|s| own.has(s.inode) && s.place().conflicts(&key.place()))
        };
        match () {
            () if !(others || lent && !named.is_empty()) => false,
            () if !others => !has() || shares,
            () => listeners.all().any(|s| s.place().conflicts(&key.place())) && (shares || !has()),
        }
    }

    fn bind(&mut self, pid: i32, key: Key, shares: bool) {
        let meets = self.meets(pid, &key, shares);
        let socket = kernel::run_as(pid, || Socket::bind(key, shares || meets));
        let Some(server) = self.land.servers.get_mut(&pid) else { return };
        let Ok(socket) = socket else {
            self.land.watch.said.push(format!("{pid} cannot bind {} ({meets})", key.address));
            return self.land.end(pid, 1);
        };
        let (inode, supervisor) = (socket.inode().unwrap_or(0), server.supervisor);
        self.land.watch.owners.insert(inode, pid);
        if meets {
            server.met.push(inode);
        }
        server.sockets.push(socket);
        if meets {
            self.with(supervisor, |it, land| it.handle(land, Event::Bound));
        }
    }

    fn listen(&mut self, pid: i32) {
        let Some(server) = self.land.servers.get(&pid) else { return };
        let Some(socket) = server.sockets.iter().rfind(|s| !s.listens()) else { return };
        let Ok((inode, place)) = socket.inode().and_then(|inode| Ok((inode, socket.place()?))) else { return };
        let key = kernel::with(|k| k.sockets[&inode].key);
        let is_watched = self.supervisors.contains_key(&server.supervisor);
        if self.land.watch.is_verbose {
            self.land.watch.said.push(format!("{pid} listens at {place:?} with {inode}"));
        }
        let met = server.met.contains(&inode) || self.meets(pid, &key, socket.shares());
        let meets = if met { Meets::Server } else { Meets::Nobody };
        let call = Call { inode, place, meets, is_seen: false };
        self.land.servers.get_mut(&pid).into_iter().for_each(|server| server.call = Some(call.clone()));
        if !is_watched {
            self.land.proceed(pid);
        }
    }

    fn close(&mut self, pid: i32, at: usize) {
        let Some(server) = self.land.servers.get_mut(&pid) else { return };
        if at < server.sockets.len() {
            let socket = kernel::run_as(pid, || server.sockets.remove(at));
            self.land.watch.own_closes.extend(socket.inode());
        }
    }

    fn reopen(&mut self, pid: i32, at: usize) {
        let Some(server) = self.land.servers.get_mut(&pid) else { return };
        let Some(inode) = server.sockets.get(at).and_then(|s| s.inode().ok()) else { return };
        let key = kernel::with(|k| k.sockets[&inode].key);
        let is_there = |s: &Socket| kernel::with(|k| s.inode().is_ok_and(|inode| k.sockets[&inode].key == key));
        if server.sockets.iter().filter(|s| is_there(s)).count() < 2 {
            // Between the close and the bind nobody would listen there, and that is its own affair.
            return;
        }
        server.steps.push_front(Step::Listen);
        server.steps.push_front(Step::Bind { key, shares: true });
        self.close(pid, at);
    }

    pub(super) fn renew(&mut self, pid: i32) {
        let at = kernel::with(|k| k.draw()) as usize;
        let Some(server) = self.land.servers.get_mut(&pid) else { return };
        if server.sockets.len() > 1 && server.steps.is_empty() && server.stage == Life::Runs {
            server.steps.push_back(Step::Reopen(at % server.sockets.len()));
        }
    }

    pub(super) fn read(&mut self, pid: i32) {
        let Some(server) = self.land.servers.get_mut(&pid) else { return };
        match server.reads.pop_front() {
            Some(SupervisorWord::Go(address)) => _ = server.gone_ahead.insert(address),
            Some(SupervisorWord::Takedown(address)) if !server.will.stubborn => {
                let is_its = |s: &Socket| s.address().is_ok_and(|at| Address::from(at).collides(&address));
                kernel::run_as(pid, || server.sockets.retain(|s| !is_its(s)));
                server.says.push_back(ServerWord::Released(address));
                if server.sockets.is_empty() {
                    server.stage = Life::Finishes;
                }
            }
            Some(SupervisorWord::Takedown(_) | SupervisorWord::Error(_)) | None => {}
        }
    }

    pub(super) fn accept(&mut self, pid: i32) {
        let Some(listener) = self.land.servers.get(&pid).and_then(|server| server.ready()) else { return };
        kernel::run_as(pid, || kernel::with(|k| k.accept(listener)));
    }

    /// A server answers a connection, and closes it.
    pub(super) fn answer(&mut self, id: u32) {
        kernel::with(|k| match k.connections.get_mut(&id) {
            Some(connection) if connection.is_probe => drop(k.connections.remove(&id)),
            Some(connection) => connection.state = State::Answered,
            None => {}
        });
    }

    pub(super) fn care(&mut self, at: usize) {
        let server = self.land.births.remove(at);
        self.land.watch.count.caretakers += 1;
        let pid = self.land.process(true);
        let mut caretaker = Supervisor::new(pid, server);
        let prove = self.prove;
        let has_it = caretaker.run(|it| it.take_care(&mut self.land, prove));
        self.supervisors.insert(pid, caretaker);
        if !has_it || self.supervisors[&pid].is_over() {
            self.supervisor_ends(pid);
        }
    }

    /// A supervisor is told to stop. A caretaker of a server that is up only goes away.
    pub(super) fn stop(&mut self, pid: i32) {
        let Some(supervisor) = self.supervisors.get(&pid) else { return };
        let server = supervisor.server.0;
        let is_up = supervisor.live.as_ref().is_some_and(|live| live.machine.is_up());
        if self.land.is_adopted(server) && is_up {
            return self.supervisor_ends(pid);
        }
        self.land.watch.accident(server);
        self.with(pid, |it, land| it.told_to_stop(land));
    }

    /// `--takedown` of all that a server has.
    pub(super) fn takedown(&mut self, server: i32) {
        let addresses: Vec<Address> =
            self.land.dir.pidfiles.iter().filter(|(_, pid)| **pid == server).map(|(a, _)| a.clone()).collect();
        if addresses.is_empty() {
            return;
        }
        let operator = self.land.process(true);
        let Some(stream) = self.land.connect(operator, 0, server) else { return };
        self.land.watch.accident(server);
        self.land.write(stream, operator, &PeerWord::Peer(PEER_VERSION), Vec::new());
        for address in addresses {
            self.land.write(stream, operator, &PeerWord::Down(address), Vec::new());
        }
        self.land.write(stream, operator, &PeerWord::Commit, Vec::new());
    }

    /// An operator reads to the end, and ends.
    pub(super) fn told(&mut self, stream: u64) {
        let Some(connection) = self.land.streams.get_mut(&stream) else { return };
        let operator = connection.claimer;
        let pipe = if self.supervisors.contains_key(&operator) { &mut connection.forth } else { &mut connection.back };
        // It has what it wants, or is told that it gets nothing.
        let is_last = |line: &Result<String, &str>| {
            line.as_ref().is_ok_and(|line| ["RELEASED", "REFUSED", "GONE"].iter().any(|word| line.starts_with(word)))
        };
        let ends = match pipe.read() {
            Read::End => true,
            Read::Lines(_, lines) => lines.iter().any(is_last),
        };
        if ends {
            self.land.process_ends(operator);
        }
    }
}
