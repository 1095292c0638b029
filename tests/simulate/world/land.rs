//! What lies between supervisors: server processes, the run directory, connections, and the observer.

use super::dir::{Dir, Record};
use super::streams::{Pipe, Stream};
use super::watch::Watch;
use crate::kernel::{self, Process as Entry};
use crate::protocol::{PEER_VERSION, PeerWord, SupervisorWord};
use crate::server::{Call, Life, Process, Server, Step, Will};
use crate::sys::steer::Socket;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Display;
use std::time::Duration;

/// `--drain` and `--kill-after` of all of them.
pub const DRAIN: Duration = Duration::from_secs(2);
pub const KILL_AFTER: Duration = Duration::from_secs(5);
/// `--max-draining` of all of them.
pub const MAX_DRAINING: usize = 2;

#[derive(Default)]
pub struct Land {
    pub dir: Dir,
    pub servers: BTreeMap<i32, Process>,
    pub streams: BTreeMap<u64, Stream>,
    /// Control sockets: of which server, and who listens there.
    pub doors: BTreeMap<i32, i32>,
    /// Servers for which somebody has started a caretaker.
    pub births: Vec<i32>,
    pub watch: Watch,
    ids: u64,
    pids: i32,
}

impl Land {
    pub fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// A new process.
    pub fn process(&mut self, is_serverswap: bool) -> i32 {
        self.pids += 1;
        let pid = 1000 + self.pids;
        kernel::with(|k| k.processes.insert(pid, Entry { is_serverswap, ended: false }));
        pid
    }

    pub fn spawn(&mut self, supervisor: i32, steps: VecDeque<Step>, stubborn: bool) -> i32 {
        let pid = self.process(false);
        let will = Will { accepts: false, stubborn, outlives: false, exits_with: 0 };
        let server = Process {
            pid,
            supervisor,
            steps,
            sockets: Vec::new(),
            call: None,
            met: Vec::new(),
            says: VecDeque::new(),
            reads: VecDeque::new(),
            gone_ahead: BTreeSet::new(),
            stage: Life::Runs,
            will,
        };
        self.servers.insert(pid, server);
        self.doors.insert(pid, supervisor);
        pid
    }

    /// Writes and locks the record of a server.
    pub fn register(&mut self, server: i32, supervisor: i32, generation: u64) -> u64 {
        let lock = Some(supervisor);
        let record = Record { supervisor, first: supervisor, generation, replaced: Vec::new(), kept: Vec::new(), lock };
        self.dir.records.insert(server, record);
        generation
    }

    pub fn lock(&mut self, server: i32, supervisor: i32) {
        self.dir.records.get_mut(&server).into_iter().for_each(|record| record.lock = Some(supervisor));
    }

    pub fn adopt(&mut self, server: i32, supervisor: i32) {
        self.dir.records.get_mut(&server).into_iter().for_each(|record| record.supervisor = supervisor);
    }

    pub fn is_adopted(&self, server: i32) -> bool {
        self.dir.records.get(&server).is_some_and(|record| record.supervisor != record.first)
    }

    /// Whether nobody has the lock of its record.
    pub fn is_released(&self, server: i32) -> bool {
        self.dir.records.get(&server).is_none_or(|record| record.lock.is_none())
    }

    pub fn say(&mut self, server: i32, word: SupervisorWord) {
        if let Some(server) = self.servers.get_mut(&server).filter(|server| server.is_alive()) {
            server.reads.push_back(word);
        }
    }

    pub fn outlives(&mut self, server: i32) {
        self.servers.get_mut(&server).into_iter().for_each(|server| server.will.outlives = true);
    }

    pub fn signal(&mut self, server: i32) {
        if let Some(server) = self.servers.get_mut(&server).filter(|server| server.is_alive()) {
            server.stage = Life::Signalled;
        }
    }

    pub fn kill(&mut self, server: i32) {
        self.end(server, 137);
    }

    /// A server ends, of itself or by a signal.
    pub fn end(&mut self, server: i32, status: u8) {
        let Some(process) = self.servers.get_mut(&server).filter(|server| server.is_alive()) else { return };
        process.stage = Life::Ended(status);
        if status == 1 {
            // It gave up by itself: what it bound next was taken.
            self.watch.accident(server);
        }
        (process.call, process.will.exits_with) = (None, status);
        process.steps.clear();
        process.sockets.clear();
        kernel::with(|k| k.end(server));
        // Whoever drains for it gets clients again, and may be told to go before its supervisor hears of that.
        self.watch.ended(server).into_iter().for_each(|old| self.watch.is_widowed(old, true));
    }

    /// The `listen` that it waits in, once.
    pub fn call(&mut self, server: i32) -> Option<Call> {
        let call = self.servers.get_mut(&server)?.call.as_mut()?;
        (!std::mem::replace(&mut call.is_seen, true)).then(|| call.clone())
    }

    /// Its call returns.
    pub fn conclude(&mut self, server: i32, succeeds: bool) {
        let Some(process) = self.servers.get_mut(&server) else { return };
        let Some(call) = process.call.take() else { return };
        if succeeds {
            return;
        }
        let has_served = self.watch.of(server).served;
        self.watch.said.push(format!("{server} cannot listen with {}", call.inode));
        kernel::run_as(server, || process.sockets.retain(|s| s.inode().ok() != Some(call.inode)));
        // Before it serves it gives up; later it does without a worker.
        if process.stage == Life::Runs && (process.sockets.is_empty() || !has_served) {
            self.end(server, 1);
        }
    }

    /// Its call runs as if nobody had looked.
    pub fn proceed(&mut self, server: i32) {
        let call = self.servers.get(&server).and_then(|process| process.call.as_ref());
        let Some(inode) = call.map(|call| call.inode) else { return };
        let listens = kernel::with(|k| k.listen(inode)).is_ok();
        self.watch.wild.insert(inode);
        self.conclude(server, listens);
    }

    /// Connects to the supervisor of a server; `None` if nobody listens there.
    pub fn connect(&mut self, claimer: i32, old: u64, server: i32) -> Option<u64> {
        let holder = *self.doors.get(&server)?;
        let id = self.next_id();
        let (forth, back) = (Pipe::default(), Pipe::default());
        self.streams.insert(id, Stream { claimer, old, holder, forth, back });
        Some(id)
    }

    pub fn write(&mut self, stream: u64, writer: i32, word: &impl Display, files: Vec<Socket>) {
        let Some(stream) = self.streams.get_mut(&stream) else { return };
        let pipe = if stream.claimer == writer { &mut stream.forth } else { &mut stream.back };
        pipe.send(word, files);
    }

    /// A word to the supervisor of a server to which there is no connection.
    pub fn say_to_supervisor(&mut self, speaker: i32, server: i32, word: &PeerWord) {
        let Some(stream) = self.connect(speaker, 0, server) else { return };
        self.write(stream, speaker, &PeerWord::Peer(PEER_VERSION), Vec::new());
        self.write(stream, speaker, word, Vec::new());
        self.close(stream, speaker);
    }

    /// One end closes a connection; what it has written arrives.
    pub fn close(&mut self, id: u64, closer: i32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (writes, reads) = match stream.claimer == closer {
            true => (&mut stream.forth, &mut stream.back),
            false => (&mut stream.back, &mut stream.forth),
        };
        writes.shut();
        reads.leave();
        if stream.is_over() {
            self.streams.remove(&id);
        }
    }

    /// A supervisor, or an operator, ends: its locks, its connections, its control socket, its files.
    pub fn process_ends(&mut self, pid: i32) {
        self.streams.values_mut().for_each(|stream| stream.lose(pid));
        self.streams.retain(|_, stream| !stream.is_over());
        self.doors.retain(|_, holder| *holder != pid);
        kernel::with(|k| k.end(pid));
        self.dir.release(pid);
        let orphans = self.servers.values().filter(|server| server.supervisor == pid && server.is_alive());
        for server in orphans.map(|server| (server.pid, server.will.outlives)).collect::<Vec<(i32, bool)>>() {
            match server {
                // The keeper lets its call run.
                (server, true) => self.proceed(server),
                (server, false) => {
                    self.watch.accident(server);
                    self.kill(server);
                }
            }
        }
    }

    /// Handles on what a server has, for those who ask about it.
    pub fn server(&self, pid: i32) -> Server {
        Server(pid)
    }
}
