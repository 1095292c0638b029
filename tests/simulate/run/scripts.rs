//! Servers and places for the runs.

use crate::address::Address;
use crate::kernel::Key;
use crate::protocol::ServerWord;
use crate::server::Step;
use crate::swap::{self, Share};
use crate::world::{Target, Trial};
use std::time::Duration;

/// A source of choices.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        (0..8).for_each(|_| _ = dice.below(2));
        dice
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 33) % end as u64) as usize
    }

    pub fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

/// Where the servers of a run listen.
#[derive(Debug, Clone)]
pub struct Ground {
    pub keys: Vec<Key>,
    pub prove: bool,
}

pub fn key(address: &str, device: u32) -> Key {
    Key { address: address.parse().expect("an address"), both: false, device, uid: 0 }
}

impl Ground {
    pub fn any(dice: &mut Dice) -> Ground {
        let keys = match dice.below(5) {
            0 => vec![key("0.0.0.0:8001", 0)],
            1 => vec![key("0.0.0.0:8001", 0), key("127.0.0.1:8002", 0)],
            2 => vec![Key { both: true, ..key("[::]:8001", 0) }, key("0.0.0.0:8002", 0)],
            3 => vec![key("127.0.0.1:8001", 0), key("127.0.0.2:8001", 0)],
            // Two places of one address: no probe gets there.
            _ => return Ground { keys: vec![key("0.0.0.0:8001", 2), key("0.0.0.0:8001", 3)], prove: false },
        };
        Ground { keys, prove: true }
    }

    /// Where clients go.
    pub fn targets(&self) -> Vec<Target> {
        let target = |key: &Key| {
            let ip = match key.address.ip() {
                ip if !ip.is_unspecified() => ip,
                ip if ip.is_ipv4() => [10, 0, 0, 1].into(),
                _ => [0xfd00, 0, 0, 0, 0, 0, 0, 1].into(),
            };
            Target { at: (ip, key.address.port()).into(), device: key.device.max(2), serving: None }
        };
        self.keys.iter().map(target).collect()
    }

    pub fn addresses(&self) -> Vec<Address> {
        let mut all: Vec<Address> = self.keys.iter().map(|key| key.address.into()).collect();
        all.dedup();
        all
    }
}

/// What a new server has to pass: nothing as a rule.
pub fn trial(dice: &mut Dice) -> Trial {
    let step = swap::Step { share: Share { permille: 500 }, time: Duration::from_secs(5) };
    let canary = if dice.one_in(4) { vec![step; 1 + dice.below(2)] } else { Vec::new() };
    let hold = if dice.one_in(4) { Duration::from_secs(20) } else { Duration::ZERO };
    Trial { canary, hold }
}

/// A server of few steps.
pub fn plain(ground: &Ground) -> Vec<Step> {
    let listens = ground.keys.iter().flat_map(|key| [Step::Bind { key: *key, shares: false }, Step::Listen]);
    [Step::Accept].into_iter().chain(listens).collect()
}

/// A server that does all that it should.
pub fn good(ground: &Ground, dice: &mut Dice) -> Vec<Step> {
    let mut steps = Vec::new();
    if dice.one_in(4) {
        steps.extend(ground.addresses().into_iter().map(|address| Step::Say(ServerWord::Takedown(address))));
    }
    let said = dice.one_in(3);
    if said {
        steps.extend(ground.addresses().into_iter().map(|address| Step::Say(ServerWord::Ready(address))));
        steps.extend(ground.addresses().into_iter().map(Step::AwaitGo));
    }
    let accepts_at_once = dice.one_in(2);
    if accepts_at_once {
        steps.push(Step::Accept);
    }
    let mut keys = ground.keys.clone();
    if dice.one_in(2) {
        keys.reverse();
    }
    for key in keys {
        let workers = if dice.one_in(2) { 1 } else { 1 + dice.below(3) };
        for _ in 0..workers {
            steps.extend([Step::Bind { key, shares: workers > 1 }, Step::Listen]);
        }
        if workers > 1 && dice.one_in(2) {
            // Which of its sockets that is depends on what came before.
            steps.push(Step::Reopen(dice.below(workers)));
        }
    }
    if !accepts_at_once {
        steps.push(Step::Accept);
    }
    if dice.one_in(4) {
        steps.push(Step::Say(ServerWord::Up));
    }
    steps
}

/// One that may be anything.
pub fn any(ground: &Ground, dice: &mut Dice) -> Vec<Step> {
    let mut steps = good(ground, dice);
    match dice.below(6) {
        // It never accepts. Without probes nobody sees that.
        0 if ground.prove => steps.retain(|step| *step != Step::Accept),
        1 => {
            let at = dice.below(steps.len());
            steps.insert(at, Step::Say(ServerWord::Fail("no".into())));
        }
        // It has not all of the addresses.
        2 => {
            let half = Ground { keys: ground.keys[..1].to_vec(), ..ground.clone() };
            steps = good(&half, dice);
        }
        3 => steps.push(Step::Close(0)),
        _ => {}
    }
    steps
}
