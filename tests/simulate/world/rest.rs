//! When nothing happens any more: what is left.

use super::{Action, World};
use crate::kernel;
use crate::supervisor::care;

/// Steps, and microseconds, after which nobody may wait any more.
const STEPS_MAX: usize = 20_000;
const TIME_MAX: u64 = 600_000_000;
/// How long nothing but looks may happen.
const REST: u64 = 100_000_000;

impl World {
    /// Goes on without accidents until nothing happens any more.
    pub fn settle(&mut self, mut choose: impl FnMut(usize) -> usize, path: &mut Vec<Action>) {
        let mut actions = Vec::new();
        let begun = kernel::with(|k| k.now);
        let mut stirred = begun;
        for _ in 0..STEPS_MAX {
            let now = kernel::with(|k| k.now);
            if now > begun + TIME_MAX {
                break;
            }
            // Some look for ever, and ever more rarely: whether somebody else has gone who stays.
            if now > stirred + REST {
                return;
            }
            if self.land.watch.broken.is_some() {
                return;
            }
            self.actions(&mut actions);
            if actions.is_empty() {
                match self.next_at() {
                    Some(at) => kernel::with(|k| k.now = k.now.max(at)),
                    None => return,
                }
                continue;
            }
            let action = actions[choose(actions.len())];
            if !matches!(action, Action::Poll(_)) {
                stirred = now;
            }
            path.push(action);
            self.take(action);
            kernel::with(|k| k.now += 100);
        }
        let restless = self.supervisors.values().filter(|it| it.next_at().is_some());
        let restless: Vec<i32> = restless.map(|it| it.pid).collect();
        let sockets = kernel::with(|k| format!("{:?} {:?}", k.sockets, k.groups));
        self.land.watch.said.push(sockets);
        self.land.watch.breaks(format!("supervisors {restless:?} never come to rest"));
    }

    /// At rest nobody waits, and the dead have nothing.
    pub fn check_rest(&mut self) {
        let mut broken: Option<String> = None;
        for supervisor in self.supervisors.values() {
            let Some(live) = &supervisor.live else { continue };
            let (pid, server) = (supervisor.pid, supervisor.server.0);
            if !(live.machine.is_free() && supervisor.is_done) {
                let state = live.machine.state();
                broken.get_or_insert(format!("supervisor {pid} of server {server} waits for ever ({state})"));
            } else if live.standing.drains {
                broken.get_or_insert(format!("the drain of server {server} is not finished"));
            }
        }
        let is_dead = |pid: i32| kernel::with(|k| k.has_ended(pid));
        for record in self.land.dir.records.values() {
            if let Some(dead) = record.lock.filter(|lock| is_dead(*lock)) {
                broken.get_or_insert(format!("{dead} is dead and has a lock"));
            }
        }
        if let Some(turn) = self.land.dir.turn {
            broken.get_or_insert(format!("{turn} goes on claiming orphans"));
        }
        if !self.clients.is_empty() && self.is_served() {
            broken.get_or_insert(format!("a client waits for ever: {:?}", self.clients[0]));
        }
        broken.into_iter().for_each(|broken| self.land.watch.breaks(broken));
    }

    /// Whether every server accepts.
    fn is_served(&self) -> bool {
        self.land.servers.values().all(|server| server.will.accepts || !server.is_alive())
    }

    /// What a server opens in the moment in which it has no supervisor nobody makes sharable, and no other server can
    /// have it: a person has to stop that one.
    pub fn end_helpless(&mut self) {
        let unsharable = |s: &&kernel::Socket| s.listens && !s.shares;
        let mut holders: Vec<i32> = kernel::with(|k| {
            k.sockets.values().filter(unsharable).flat_map(|s| s.holders().collect::<Vec<i32>>()).collect()
        });
        // One that serves elsewhere and has joined another before both lost their supervisors is a stranger there.
        holders.extend(self.land.servers.keys().copied().filter(|server| care::is_stray(&self.land, *server)));
        holders.extend(std::mem::take(&mut self.land.watch.strays));
        // And one that has closed all that it had is met by nobody.
        holders.extend(self.land.servers.values().filter(|s| s.is_alive() && s.sockets.is_empty()).map(|s| s.pid));
        for server in holders {
            self.land.watch.count.unsharable +=
                u64::from(self.land.servers.get(&server).is_some_and(|s| !s.sockets.is_empty()));
            self.land.watch.accident(server);
            self.land.kill(server);
        }
        self.look_at_clients();
    }

    /// After a last swap of all addresses one server is left, and nothing else.
    pub fn check_last(&mut self, last: i32) {
        let own = self.supervisors.get(&last).map(|supervisor| supervisor.server.0);
        let alive: Vec<i32> = self.land.servers.values().filter(|s| s.is_alive()).map(|s| s.pid).collect();
        let broken = match own {
            None => Some("the last server was not to be had".into()),
            Some(own) if alive != [own] => Some(format!("servers {alive:?} are left, and not {own} alone")),
            Some(own) => self.left_over(own),
        };
        broken.into_iter().for_each(|broken| self.land.watch.breaks(broken));
    }

    fn left_over(&self, own: i32) -> Option<String> {
        let dir = &self.land.dir;
        if dir.pidfiles.values().any(|pid| *pid != own) {
            return Some(format!("pidfiles of others than {own} are left: {:?}", dir.pidfiles));
        }
        if dir.records.keys().any(|pid| *pid != own) || dir.records.is_empty() {
            return Some(format!("records of others than {own} are left: {:?}", dir.records));
        }
        if self.supervisors.len() > 1 {
            return Some(format!("supervisors {:?} are left", self.supervisors.keys()));
        }
        kernel::with(|k| {
            if k.groups.values().any(|group| group.program.is_some()) {
                return Some("a program is left on a group".into());
            }
            if let Some(socket) = k.sockets.values().find(|s| s.filter.is_some() || s.holders().any(|pid| pid != own)) {
                return Some(format!("something is left on a socket: {socket:?}"));
            }
            k.connections.values().find(|c| c.is_probe).map(|probe| format!("a probe is left: {probe:?}"))
        })
    }

    /// Forgets what has ended, so that a run can be long.
    pub fn tidy(&mut self) {
        self.land.servers.retain(|_, server| server.is_alive());
        let servers = &self.land.servers;
        self.land.watch.standings.retain(|pid, _| servers.contains_key(pid));
        self.land.watch.owners.retain(|_, pid| servers.contains_key(pid));
        self.land.watch.own_closes.clear();
        self.land.watch.strayed.clear();
        self.land.watch.late.clear();
        kernel::with(|k| k.processes.retain(|_, process| !process.ended));
    }
}
