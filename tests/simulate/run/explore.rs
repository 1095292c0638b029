//! Every interleaving of a few small scenarios that departs from the usual order a few times at most, with a death at
//! every step. A path is taken again from its begin for each of its branches, and left
//! where it comes to a state that another has come to.

use super::scripts::{self, Ground, key};
use crate::kernel;
use crate::world::{Action, World};
use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// Microseconds that pass where nothing else can happen.
const TICK: u64 = 120_000;
/// States after which a scenario is left, for "make test" and for "make simulate".
const STATES_MAX: [usize; 2] = [800, 60_000];
/// Steps after which a path is given up.
const STEPS_MAX: usize = 2000;

pub struct Scenario {
    pub name: &'static str,
    /// New servers, at the same time.
    rivals: usize,
    /// Supervisors that may be killed.
    kills: usize,
    /// Servers that may be.
    deaths: usize,
    clients: usize,
    /// How often a path may depart from the usual order, for "make test" and for "make simulate".
    departures: [usize; 2],
}

pub struct Found {
    pub states: usize,
    pub deepest: usize,
    pub departures: usize,
    pub is_all: bool,
}

pub fn scenarios() -> Vec<Scenario> {
    let none = Scenario { name: "", rivals: 1, kills: 0, deaths: 0, clients: 0, departures: [0, 1] };
    vec![
        Scenario { name: "a swap", clients: 1, ..none },
        Scenario { name: "a swap in which a supervisor dies", kills: 1, ..none },
        Scenario { name: "a swap in which a server dies", deaths: 1, clients: 1, departures: [0, 0], ..none },
        Scenario { name: "two rivals", rivals: 2, departures: [0, 0], ..none },
        Scenario { name: "two rivals of which a supervisor dies", rivals: 2, kills: 1, departures: [0, 0], ..none },
    ]
}

/// What can happen at a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    Action(Action),
    /// Not what comes next as a rule.
    Departure(Action),
    Tick,
}

/// One path, up to where it ends.
struct Path<'a> {
    scenario: &'a Scenario,
    world: World,
    kills: usize,
    deaths: usize,
    clients: usize,
    departures: usize,
    path: Vec<Branch>,
}

pub fn explore(scenario: &Scenario, deep: bool) -> Result<Found, String> {
    let asked = std::env::var("DEPARTURES").ok().and_then(|text| text.parse().ok());
    let departures = asked.unwrap_or(scenario.departures[usize::from(deep)]);
    let (mut seen, mut deepest) = (HashSet::new(), 0);
    // Of each branch: which one is taken, and how many there are.
    let mut choices: Vec<(usize, usize)> = Vec::new();
    loop {
        let mut path = Path::begin(scenario, departures);
        for (taken, _) in &choices {
            let branches = path.branches();
            path.take(branches[*taken])?;
        }
        // On from there, as long as nobody was there before.
        while seen.insert(path.hash()) {
            let branches = path.branches();
            if branches.is_empty() {
                path.end()?;
                break;
            }
            if choices.len() > STEPS_MAX {
                return Err("a path does not end".into());
            }
            choices.push((0, branches.len()));
            deepest = deepest.max(choices.len());
            path.take(branches[0])?;
        }
        // The next branch that was not taken yet.
        while choices.last().is_some_and(|(taken, all)| taken + 1 == *all) {
            choices.pop();
        }
        match choices.last_mut() {
            Some((taken, _)) if asked.is_some() || seen.len() < STATES_MAX[usize::from(deep)] => *taken += 1,
            last => return Ok(Found { states: seen.len(), deepest, departures, is_all: last.is_none() }),
        }
    }
}

impl Path<'_> {
    fn begin(scenario: &Scenario, departures: usize) -> Path<'_> {
        let ground = Ground { keys: vec![key("0.0.0.0:8001", 0)], prove: true };
        let mut world = World::new(1, ground.targets(), true);
        let steps = || scripts::plain(&ground);
        world.start(steps(), false, 60);
        world.settle(|_| 0, &mut Vec::new());
        world.is_timeless = true;
        for _ in 0..scenario.rivals {
            world.start(steps(), false, 60);
        }
        let Scenario { kills, deaths, clients, .. } = *scenario;
        Path { scenario, world, kills, deaths, clients, departures, path: Vec::new() }
    }

    fn branches(&self) -> Vec<Branch> {
        let mut actions = Vec::new();
        self.world.actions(&mut actions);
        let is_look = |action: &Action| matches!(action, Action::Poll(_));
        let mut branches: Vec<Branch> = match actions.iter().all(is_look) {
            true if self.world.next_at().is_some() => {
                actions.into_iter().map(Branch::Action).chain([Branch::Tick]).collect()
            }
            true => return Vec::new(),
            false => {
                actions.sort_by_key(is_look);
                let (first, others) = actions.split_at(1);
                let others = if self.departures > 0 { others } else { &[] };
                let others = others.iter().copied().map(Branch::Departure);
                first.iter().copied().map(Branch::Action).chain(others).collect()
            }
        };
        if self.kills > 0 {
            branches.extend(self.world.supervisors.keys().map(|pid| Branch::Action(Action::Kill(*pid))));
        }
        if self.deaths > 0 {
            let alive = self.world.land.servers.values().filter(|server| server.is_alive());
            branches.extend(alive.map(|server| Branch::Action(Action::Die(server.pid))));
        }
        if self.clients > 0 {
            branches.push(Branch::Action(Action::Come(0)));
        }
        branches
    }

    fn take(&mut self, branch: Branch) -> Result<(), String> {
        self.path.push(branch);
        match branch {
            Branch::Tick => {
                let next = self.world.next_at().unwrap_or(0);
                kernel::with(|k| k.now = (k.now + TICK).max(next));
            }
            Branch::Departure(action) => {
                self.departures -= 1;
                self.world.take(action);
            }
            Branch::Action(action) => {
                match action {
                    Action::Kill(_) => self.kills -= 1,
                    Action::Die(_) => self.deaths -= 1,
                    Action::Come(_) => self.clients -= 1,
                    _ => {}
                }
                self.world.take(action);
            }
        }
        self.verdict()
    }

    /// Nothing can happen any more.
    fn end(&mut self) -> Result<(), String> {
        self.world.check_rest();
        self.verdict()?;
        self.world.is_timeless = false;
        self.world.end_helpless();
        let ground = Ground { keys: vec![key("0.0.0.0:8001", 0)], prove: true };
        let last = self.world.start(scripts::plain(&ground), false, 60);
        self.world.settle(|_| 0, &mut Vec::new());
        self.world.check_last(last);
        self.verdict()
    }

    fn verdict(&mut self) -> Result<(), String> {
        let said = || format!("{}\nafter {:?}", self.world.land.watch.said.join("\n"), self.path);
        self.world.land.watch.broken.as_ref().map_or(Ok(()), |broken| {
            Err(format!("{}\nin every interleaving of {}: {broken}", said(), self.scenario.name))
        })
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.world.hash(&mut hasher);
        (self.kills, self.deaths, self.clients, self.departures).hash(&mut hasher);
        hasher.finish()
    }
}
