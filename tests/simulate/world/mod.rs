//! Everything that there is, and what can happen next.

pub mod dir;
pub mod land;
mod processes;
mod rest;
mod state;
pub mod streams;
pub mod watch;

use crate::kernel::{self, Arrival, Key, Packet, State};
use crate::server::{Life, Step};
use crate::supervisor::Supervisor;
use crate::swap::{self, Checked, ClaimerId, Event, Order, Settings};
use crate::sys::clock::Instant;
use land::{DRAIN, KILL_AFTER, Land};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

/// Where clients go.
#[derive(Debug, Clone)]
pub struct Target {
    pub at: SocketAddr,
    pub device: u32,
    /// Who answers there now, as far as clients may expect.
    pub serving: Option<i32>,
}

#[derive(Debug, Clone, Copy, Hash)]
pub struct Client {
    pub target: usize,
    pub source: SocketAddr,
    pub state: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Its first packet goes out then.
    Sends(u64),
    /// A connection, and how it was when it was last looked at.
    Has(u32, State),
}

/// Who says `--undo` and `--commit`. No word goes back.
const OPERATOR: ClaimerId = ClaimerId(u64::MAX);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A server does the next thing.
    Act(i32),
    Read(i32),
    Accept(i32),
    Answer(u32),
    Finish(i32),
    /// A supervisor hears its server, sees that it calls `listen`, or that it has ended.
    Hear(i32),
    Call(i32),
    Reap(i32),
    /// It reads from a connection.
    Line(i32, u64),
    /// One of its threads has waited long enough.
    Wake(i32, usize),
    Ring(i32),
    Poll(i32),
    LookAgain(i32),
    /// A caretaker starts.
    Care(usize),
    /// A client begins, or goes on.
    Come(usize),
    Send(usize),
    Ack(usize),
    /// An operator hears.
    Told(u64),
    /// Accidents.
    Die(i32),
    Kill(i32),
    Stop(i32),
    Takedown(i32),
    /// A worker of a server is replaced.
    Renew(i32),
    /// An operator ends the trial of a server.
    Undo(i32),
    Confirm(i32),
}

pub struct World {
    pub land: Land,
    pub supervisors: BTreeMap<i32, Supervisor>,
    pub targets: Vec<Target>,
    pub clients: Vec<Client>,
    /// `--no-probe` of all of them.
    pub prove: bool,
    /// Every look can happen at every moment, and nothing takes time.
    pub is_timeless: bool,
    /// What the next servers have to pass.
    pub trial: Trial,
}

/// `--canary` and `--hold`.
#[derive(Debug, Clone, Default)]
pub struct Trial {
    pub canary: Vec<swap::Step>,
    pub hold: Duration,
}

impl World {
    pub fn new(seed: u64, targets: Vec<Target>, prove: bool) -> World {
        kernel::reset(seed);
        let (land, supervisors, clients) = Default::default();
        World { land, supervisors, targets, clients, prove, is_timeless: false, trial: Trial::default() }
    }

    /// A supervisor starts a server. The pid of the supervisor.
    pub fn start(&mut self, steps: impl IntoIterator<Item = Step>, stubborn: bool, timeout: u64) -> i32 {
        let pid = self.land.process(true);
        let steps: VecDeque<Step> = steps.into_iter().collect();
        let server = self.land.spawn(pid, steps, stubborn);
        let mut supervisor = Supervisor::new(pid, server);
        let settings = Settings {
            order: Order::Shared,
            checked: Checked::No,
            canary: self.trial.canary.clone(),
            hold: self.trial.hold,
            awaited: true,
            ready_timeout: Some(Duration::from_secs(timeout)),
            kill_after: KILL_AFTER,
            drain: DRAIN,
        };
        supervisor.run(|it| it.begin(&mut self.land, settings, self.prove));
        self.supervisors.insert(pid, supervisor);
        pid
    }

    /// What can happen by itself.
    pub fn actions(&self, out: &mut Vec<Action>) {
        out.clear();
        for (&pid, server) in &self.land.servers {
            if server.steps() {
                out.push(Action::Act(pid));
            }
            if !server.reads.is_empty() && server.call.is_none() && server.is_alive() {
                out.push(Action::Read(pid));
            }
            if server.ready().is_some() {
                out.push(Action::Accept(pid));
            }
            if server.finishes() {
                out.push(Action::Finish(pid));
            }
        }
        kernel::with(|k| {
            let accepted = k.connections.iter().filter(|(_, c)| c.state == State::Accepted);
            out.extend(accepted.map(|(id, _)| Action::Answer(*id)));
        });
        let now = Instant::now();
        self.supervisors.values().for_each(|supervisor| self.actions_of(supervisor, now, out));
        for (&id, stream) in &self.land.streams {
            for (reader, pipe) in [(stream.claimer, &stream.back), (stream.holder, &stream.forth)] {
                if pipe.has_more() {
                    let is_ours = self.supervisors.contains_key(&reader);
                    out.push(if is_ours { Action::Line(reader, id) } else { Action::Told(id) });
                }
            }
        }
        out.extend((0..self.land.births.len()).map(Action::Care));
        for (i, client) in self.clients.iter().enumerate() {
            match client.state {
                Stage::Sends(at) if at <= now.0 => out.push(Action::Send(i)),
                Stage::Has(_, State::Handshake) => out.push(Action::Ack(i)),
                Stage::Sends(_) | Stage::Has(..) => {}
            }
        }
    }

    fn actions_of(&self, supervisor: &Supervisor, now: Instant, out: &mut Vec<Action>) {
        let pid = supervisor.pid;
        if let Some(server) = self.land.servers.get(&supervisor.server.0) {
            // A caretaker does not hear the control fd.
            if server.supervisor == pid {
                if !server.says.is_empty() {
                    out.push(Action::Hear(pid));
                }
                if server.call.as_ref().is_some_and(|call| !call.is_seen) {
                    out.push(Action::Call(pid));
                }
            }
            let ended = matches!(server.stage, Life::Ended(_) | Life::Reaped);
            // What it said before is heard first.
            let is_heard = server.says.is_empty() || server.supervisor != pid;
            if ended && is_heard && supervisor.live.as_ref().is_some_and(|live| !live.life.ended) {
                out.push(Action::Reap(pid));
            }
        }
        let threads = supervisor.peers.threads.iter().enumerate();
        out.extend(threads.filter(|(_, it)| supervisor.is_ready(&self.land, it)).map(|(i, _)| Action::Wake(pid, i)));
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(supervisor.agenda.timers.next()) {
            out.push(Action::Ring(pid));
        }
        if is_due(supervisor.clock.poll_at) || self.is_timeless && supervisor.clock.poll_at.is_some() {
            out.push(Action::Poll(pid));
        }
        if is_due(supervisor.agenda.unclear.values().map(|(_, at)| *at).min()) {
            out.push(Action::LookAgain(pid));
        }
    }

    /// When something happens at the latest that only time brings.
    pub fn next_at(&self) -> Option<u64> {
        let supervisors = self.supervisors.values().flat_map(|s| {
            let threads = s.peers.threads.iter().filter_map(|thread| thread.until());
            s.next_at().map(|at| at.0).into_iter().chain(threads.map(|at| at + 1))
        });
        let clients = self.clients.iter().filter_map(|c| if let Stage::Sends(at) = c.state { Some(at) } else { None });
        supervisors.chain(clients).min()
    }

    pub fn take(&mut self, action: Action) {
        self.land.watch.count.steps += 1;
        if self.land.watch.is_verbose && !matches!(action, Action::Poll(_)) {
            let now = kernel::with(|k| k.now) / 1000 % 1_000_000;
            self.land.watch.said.push(format!("{now:6} ms  {action:?}"));
        }
        match action {
            Action::Act(pid) => self.act(pid),
            Action::Read(pid) => self.read(pid),
            Action::Accept(pid) => self.accept(pid),
            Action::Answer(id) => self.answer(id),
            Action::Finish(pid) => self.land.end(pid, 0),
            Action::Hear(pid) => self.with(pid, |it, land| it.hear(land)),
            Action::Call(pid) => self.with(pid, |it, land| it.called(land)),
            Action::Reap(pid) => self.with(pid, |it, land| it.reap(land)),
            Action::Line(pid, stream) => self.with(pid, |it, land| it.read(land, stream)),
            Action::Wake(pid, thread) => self.with(pid, |it, land| it.wake(land, thread)),
            Action::Ring(pid) => self.with(pid, |it, land| it.ring(land)),
            Action::Poll(pid) => self.with(pid, |it, land| it.poll(land)),
            Action::LookAgain(pid) => self.with(pid, |it, land| it.look_again(land)),
            Action::Care(at) => self.care(at),
            Action::Come(target) => self.come(target),
            Action::Send(client) => self.send(client),
            Action::Ack(client) => {
                if let Stage::Has(id, _) = self.clients[client].state {
                    kernel::with(|k| k.finish(id));
                }
            }
            Action::Told(stream) => self.told(stream),
            Action::Die(pid) => {
                self.land.watch.count.deaths += 1;
                self.land.watch.accident(pid);
                self.land.kill(pid);
            }
            Action::Kill(pid) => {
                self.land.watch.count.deaths += 1;
                self.supervisor_ends(pid);
            }
            Action::Stop(pid) => self.stop(pid),
            Action::Takedown(pid) => self.takedown(pid),
            Action::Renew(pid) => self.renew(pid),
            Action::Undo(pid) => self.with(pid, |it, land| it.decide(land, Event::Undo(OPERATOR))),
            Action::Confirm(pid) => self.with(pid, |it, land| it.decide(land, Event::Confirm(OPERATOR))),
        }
        self.look_at_clients();
    }

    /// A supervisor does something, and ends if that was the last.
    fn with(&mut self, pid: i32, act: impl FnOnce(&mut Supervisor, &mut Land)) {
        let Some(supervisor) = self.supervisors.get_mut(&pid) else { return };
        supervisor.run(|it| act(it, &mut self.land));
        if supervisor.is_over() {
            self.supervisor_ends(pid);
        }
    }

    fn supervisor_ends(&mut self, pid: i32) {
        self.land.process_ends(pid);
        // What it had open is closed already.
        kernel::run_as(pid, || drop(self.supervisors.remove(&pid)));
    }

    fn come(&mut self, target: usize) {
        let at = self.targets[target].at;
        let source = match at {
            SocketAddr::V4(_) => SocketAddr::from(([10, 0, 0, 7], kernel::with(|k| k.port()))),
            SocketAddr::V6(_) => SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 7], kernel::with(|k| k.port()))),
        };
        self.clients.push(Client { target, source, state: Stage::Sends(Instant::now().0) });
    }

    fn send(&mut self, client: usize) {
        let Client { target, source, .. } = self.clients[client];
        let Target { at, device, serving } = self.targets[target];
        let arrival = kernel::with(|k| k.arrive(Packet { source, target: at, device }, false));
        match arrival {
            Arrival::Refused => {
                self.land.watch.refused(&at.to_string(), serving);
                self.clients.remove(client);
            }
            Arrival::Dropped => self.clients[client].state = Stage::Sends(Instant::now().0 + 1_000_000),
            Arrival::Begun(id) => {
                let listener = kernel::with(|k| k.connections[&id].listener);
                self.land.watch.chosen(listener, id);
                self.clients[client].state = Stage::Has(id, State::Handshake);
            }
        }
    }

    /// Sees what has become of every connection, and who answers where.
    fn look_at_clients(&mut self) {
        let watch = &mut self.land.watch;
        self.clients.retain_mut(|client| {
            let Stage::Has(id, was) = client.state else { return true };
            let connection = kernel::with(|k| k.connections.get(&id).cloned());
            let Some(connection) = connection else { return false };
            match connection.state {
                State::Answered => watch.count.answers += 1,
                State::Reset => watch.reset(id, &connection, was),
                now => {
                    client.state = Stage::Has(id, now);
                    return true;
                }
            }
            kernel::with(|k| k.connections.remove(&id));
            false
        });
        for target in &mut self.targets {
            let key = |key: &Key| {
                key.address.port() == target.at.port()
                    && (key.address.ip() == target.at.ip() || key.address.ip().is_unspecified())
                    && key.address.is_ipv4() == target.at.is_ipv4()
                    && (key.device == 0 || key.device == target.device)
            };
            let serves = |server: &i32| {
                watch.of(*server).serves
                    && !watch.superseded.contains_key(server)
                    && watch::keys_of(*server).iter().any(key)
            };
            if !target.serving.is_some_and(|server| serves(&server))
                && let Some(server) = self.land.servers.keys().copied().find(serves)
            {
                target.serving = Some(server);
            }
        }
    }
}
