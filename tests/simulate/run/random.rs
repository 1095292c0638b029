//! Random swaps: rivals, accidents and clients at any moment, and at the end of every round a swap that has to succeed.

use super::scripts::{self, Dice, Ground};
use crate::kernel;
use crate::server::Step;
use crate::world::watch::Count;
use crate::world::{Action, Trial, World};

/// Rounds of one run.
const ROUNDS: usize = 4;
/// Clients at the same time.
const CLIENTS: usize = 3;

/// Makes another seed of one.
const TRIALS: u64 = 0x7269_616c;

struct Run {
    world: World,
    ground: Ground,
    dice: Dice,
    /// For what is on trial: without that a seed says the same as before there were trials.
    trials: Dice,
    path: Vec<Action>,
    actions: Vec<Action>,
}

/// One run. The error says what was not kept, and how it came to it.
pub fn run(seed: u64, is_verbose: bool) -> Result<Count, String> {
    let mut dice = Dice::new(seed);
    let ground = Ground::any(&mut dice);
    let world = World::new(seed, ground.targets(), ground.prove);
    let trials = Dice::new(seed ^ TRIALS);
    let mut run = Run { world, ground, dice, trials, path: Vec::new(), actions: Vec::new() };
    run.world.land.watch.is_verbose = is_verbose;
    if run.ground.addresses().len() > 1 && run.dice.one_in(2) {
        run.rivals_and_orphans()?;
    }
    for _ in 0..ROUNDS {
        run.round()?;
    }
    Ok(run.world.land.watch.count)
}

impl Run {
    fn round(&mut self) -> Result<(), String> {
        let rivals = 1 + self.dice.below(3);
        let mut accidents = if self.dice.one_in(3) { 0 } else { self.dice.below(4) };
        let mut started = 0;
        for _ in 0..60 + self.dice.below(200) {
            if started < rivals && self.dice.one_in(if started == 0 { 4 } else { 25 }) {
                started += 1;
                let is_odd = self.dice.one_in(3);
                let steps = match is_odd {
                    true => scripts::any(&self.ground, &mut self.dice),
                    false => scripts::good(&self.ground, &mut self.dice),
                };
                let stubborn = self.dice.one_in(8);
                let accepts = steps.contains(&Step::Accept);
                self.world.trial = scripts::trial(&mut self.trials);
                let supervisor = self.world.start(steps, stubborn, 20);
                self.world.trial = Trial::default();
                if is_odd {
                    let server = self.world.supervisors[&supervisor].server.0;
                    self.world.land.watch.is_partial(server);
                    if !accepts {
                        self.world.land.watch.accident(server);
                    }
                }
            }
            if accidents > 0 && self.dice.one_in(40) {
                accidents -= usize::from(self.accident());
            }
            if self.world.clients.len() < CLIENTS && self.dice.one_in(6) {
                let target = self.dice.below(self.world.targets.len());
                self.take(Action::Come(target))?;
            }
            self.step()?;
        }
        self.settle()?;
        self.world.end_helpless();
        self.settle()?;
        let steps = scripts::good(&self.ground, &mut self.dice);
        let last = self.world.start(steps, false, 60);
        for _ in 0..40 {
            let target = self.dice.below(self.world.targets.len());
            if self.world.clients.len() < CLIENTS && self.dice.one_in(3) {
                self.take(Action::Come(target))?;
            }
            self.step()?;
        }
        self.settle()?;
        self.world.check_last(last);
        self.verdict()?;
        self.world.tidy();
        self.path.clear();
        Ok(())
    }

    /// Two servers without supervisors at one address each, and rivals that want both: none of them waits for another
    /// until its time is up.
    fn rivals_and_orphans(&mut self) -> Result<(), String> {
        let (both, mut supervisors) = (self.ground.clone(), Vec::new());
        for key in &both.keys {
            let half = Ground { keys: vec![*key], ..both.clone() };
            supervisors.push(self.world.start(scripts::plain(&half), false, 20));
            self.settle()?;
        }
        for supervisor in supervisors {
            self.take(Action::Kill(supervisor))?;
        }
        let turned = Ground { keys: both.keys.iter().rev().copied().collect(), ..both.clone() };
        let rivals = [both, turned].map(|ground| self.world.start(scripts::plain(&ground), false, 60));
        self.settle()?;
        if self.world.land.watch.late.iter().any(|late| rivals.contains(late)) {
            self.world.land.watch.breaks("rivals wait for each other until their time is up".into());
        }
        self.verdict()
    }

    fn step(&mut self) -> Result<(), String> {
        let mut actions = std::mem::take(&mut self.actions);
        self.world.actions(&mut actions);
        let action = if actions.is_empty() { None } else { Some(actions[self.dice.below(actions.len())]) };
        self.actions = actions;
        let pause = match (action, self.world.next_at()) {
            (Some(_), _) => self.dice.below(1500) as u64,
            (None, Some(at)) => (at + 1).saturating_sub(kernel::with(|k| k.now)),
            (None, None) => 1000,
        };
        kernel::with(|k| k.now += pause);
        action.map_or(Ok(()), |action| self.take(action))
    }

    fn take(&mut self, action: Action) -> Result<(), String> {
        self.path.push(action);
        self.world.take(action);
        self.verdict()
    }

    /// Something goes wrong, if there is something that can.
    fn accident(&mut self) -> bool {
        let supervisors: Vec<i32> = self.world.supervisors.keys().copied().collect();
        let servers: Vec<i32> = self.world.land.servers.values().filter(|s| s.is_alive()).map(|s| s.pid).collect();
        if supervisors.is_empty() || servers.is_empty() {
            return false;
        }
        let supervisor = supervisors[self.dice.below(supervisors.len())];
        let server = servers[self.dice.below(servers.len())];
        let is_on_trial = |pid: &&i32| {
            let live = self.world.supervisors.get(*pid).and_then(|supervisor| supervisor.live.as_ref());
            live.is_some_and(|live| live.machine.is_on_trial())
        };
        if let Some(&pid) = supervisors.iter().find(is_on_trial)
            && self.trials.one_in(2)
        {
            let action = if self.trials.one_in(2) { Action::Undo(pid) } else { Action::Confirm(pid) };
            return self.take(action).is_ok();
        }
        let action = match self.dice.below(8) {
            0..4 => Action::Kill(supervisor),
            4 => Action::Die(server),
            5 => Action::Stop(supervisor),
            6 => Action::Takedown(server),
            _ => Action::Renew(server),
        };
        self.take(action).is_ok()
    }

    fn settle(&mut self) -> Result<(), String> {
        let dice = &mut self.dice;
        self.world.settle(|choices| dice.below(choices), &mut self.path);
        self.verdict()?;
        self.world.check_rest();
        self.verdict()
    }

    fn verdict(&mut self) -> Result<(), String> {
        let Some(broken) = self.world.land.watch.broken.take() else { return Ok(()) };
        let said = self.world.land.watch.said.join("\n");
        // A look follows on everything, and often.
        self.path.retain(|action| !matches!(action, Action::Poll(_)));
        Err(format!("{said}\nat {:?}\nafter {:?}\n{broken}", self.ground, self.path))
    }
}
