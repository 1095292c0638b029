//! Every event in every state that is reachable in a few steps, sensible or not: no panic, and what
//! [`Watcher`] knows from the outside holds after each step.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::HashSet;

/// Where the lock of an old server stands, as its supervisor sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Hold {
    Queued,
    Granted,
    /// Granted, and its supervisor is not heard any more: what was begun with it goes on.
    Silent,
}

/// What can be known of a generation from its events and effects alone.
#[derive(Debug, Clone, Default, Hash)]
struct Watcher {
    awaited: bool,
    shared: bool,
    /// Addresses that the server has let us know that it wants.
    ready: BTreeSet<Address>,
    /// Those for which READY was said, without which nobody is replaced in plain order.
    said: BTreeSet<Address>,
    /// READY that GO has to answer, and no more than once.
    owed: BTreeSet<(SpeakerId, Address)>,
    looking: BTreeSet<Address>,
    holds: BTreeMap<OldId, Hold>,
    /// Addresses that may be bound: nobody had them, or all who had them have let go.
    free: BTreeSet<Address>,
    /// Who was asked for an address and has not let go.
    asked: BTreeMap<Address, BTreeSet<OldId>>,
    taken: BTreeMap<Address, BTreeSet<OldId>>,
    harmed: BTreeSet<OldId>,
    /// Old servers whose ports can be shared.
    shares: BTreeSet<OldId>,
    /// Where the server waits in `listen`.
    calling: BTreeSet<Address>,
    /// Where the server listens beside an old one and has not proven that it accepts.
    unproven: BTreeSet<Address>,
    switching: bool,
    drained: BTreeSet<OldId>,
    /// Old servers that were told to stop: at another address that cannot be shared all they have was asked for.
    stopped: BTreeSet<OldId>,
    draining: bool,
    parking: bool,
    /// The claimer for whom the server drains has gone away.
    turned_back: bool,
    claimers: BTreeSet<ClaimerId>,
    holder: Option<ClaimerId>,
    armed: BTreeMap<Timer, bool>,
    /// Whether anything but its own decision told the server to go.
    told: bool,
    requested: bool,
    up: bool,
    presumed: bool,
    sure: bool,
    done: bool,
    ended: bool,
    committed: bool,
    killed: bool,
}

impl Watcher {
    fn before(&mut self, event: &Event) {
        if self.ended {
            return;
        }
        match event {
            Event::Said(speaker, ServerWord::Ready(address)) => {
                self.ready.insert(address.clone());
                self.said.insert(address.clone());
                self.owed.insert((*speaker, address.clone()));
            }
            Event::Calls(address, _) => {
                self.ready.insert(address.clone());
                self.calling.insert(address.clone());
            }
            Event::Accepts(address) => self.unproven.retain(|a| !a.collides(address)),
            Event::Shares(old, Ok(())) => drop(self.shares.insert(*old)),
            Event::SpeakerGone(speaker) => self.owed.retain(|(s, _)| s != speaker),
            // As good as READY: it shares the port by an option of its own.
            Event::Listens(address) => drop(self.ready.insert(address.clone())),
            Event::Vacant(address) => {
                let answer = self.looking.remove(address);
                if answer {
                    self.free.insert(address.clone());
                }
            }
            Event::Taken(address, olds) => {
                let late = self.asked.get(address).is_some_and(|asked| !asked.is_empty());
                if self.looking.remove(address) || late {
                    self.asked.remove(address);
                    self.free.remove(address);
                    self.taken.insert(address.clone(), olds.iter().copied().collect());
                }
            }
            Event::Blocked(address, _) | Event::Foreign(address) => {
                self.looking.remove(address);
            }
            Event::Locked(old, _) => {
                if let Some(hold) = self.holds.get_mut(old) {
                    *hold = Hold::Granted;
                }
            }
            // What it was asked for before, it does.
            Event::OldSilent(old) => {
                if let Some(hold) = self.holds.get_mut(old).filter(|hold| **hold == Hold::Granted)
                    && !self.harmed.contains(old)
                {
                    *hold = Hold::Silent;
                }
            }
            Event::OldReleased(old, address) => {
                if let Some(asked) = self.asked.get_mut(address) {
                    asked.remove(old);
                }
            }
            Event::OldGone(old) => {
                self.forget(*old);
                self.forget_joined();
                self.asked.values_mut().for_each(|asked| asked.retain(|o| o != old));
            }
            Event::OldLost(old) => self.forget(*old),
            Event::Claim(claimer) | Event::HeirClaims(claimer) => {
                self.claimers.insert(*claimer);
            }
            Event::Down(claimer, _) => {
                self.claimers.insert(*claimer);
                self.requested = true;
            }
            Event::ClaimerGone(claimer) | Event::Succeeded(claimer) => {
                let turned_back = matches!(event, Event::ClaimerGone(_)) && self.holder == Some(*claimer);
                self.turned_back = turned_back && self.draining;
                self.claimers.remove(claimer);
                self.holder = self.holder.filter(|c| c != claimer);
            }
            // What a drain is there for: before one of these it asks nothing of the server.
            Event::Quiesced | Event::Drained | Event::Parked | Event::TimeIsUp => self.requested |= self.draining,
            Event::AskedTakedown(claimer, _) | Event::AskedStop(claimer) if self.holder == Some(*claimer) => {
                self.requested = true;
            }
            Event::Stop { .. } => self.told = true,
            // Nobody waits any more.
            Event::Exited(_) => self.calling.clear(),
            Event::Timer(timer) if self.armed.get(timer) == Some(&false) => {
                self.requested |= *timer == Timer::Drain;
                self.armed.remove(timer);
            }
            _ => {}
        }
    }

    fn after(&mut self, event: &Event, effects: &[Effect], machine: &Generation) {
        assert!(!self.ended || effects.is_empty(), "an effect after the end");
        for effect in effects {
            self.effect(event, effect);
        }
        let switched = std::mem::take(&mut self.switching);
        let goes = !self.drained.is_empty() || !self.stopped.is_empty();
        assert!(!switched || goes, "a switch, and nobody drains");
        if std::mem::take(&mut self.turned_back) {
            assert!(!self.draining, "it drains for nobody");
            for (address, _) in machine.ours.slots.iter().filter(|(_, slot)| **slot == Slot::Held) {
                let address = address.clone();
                assert!(effects.contains(&Effect::Hold(address)), "not registered again: {effects:?}");
            }
        }
        for call in &self.calling {
            let looking = self.looking.iter().any(|a| a.collides(call));
            let waits = looking || self.olds_of(call).next().is_some();
            assert!(waits && !machine.is_leaving(), "listen on {call} waits for nothing");
        }
        assert!(!machine.is_up() || self.up, "up without saying so");
        if machine.ours.stage == Stage::Starting && self.presumed {
            (self.up, self.done, self.presumed) = (false, false, false);
        }
        assert!(!self.done || self.up, "done and not up");
        let exited = matches!(event, Event::Exited(_));
        assert!(!exited || self.ended, "not ended although the server is gone");
        if machine.ours.stage == Stage::Ended {
            assert!(self.ended && self.armed.is_empty(), "a clock runs after the end: {:?}", self.armed);
            assert!(self.claimers.is_empty(), "claimers that nobody told: {:?}", self.claimers);
            assert!(self.holds.is_empty(), "locks that nobody gave back: {:?}", self.holds);
        }
        if let Stage::Leaving(_) = &machine.ours.stage {
            assert!(self.killed || self.armed.contains_key(&Timer::Kill), "nothing ends it");
        }
        assert!(machine.ours.clocks.keys().eq(self.armed.keys()), "the clocks");
        // The holds that the machine knows are those that its owner knows.
        let olds: BTreeSet<OldId> = machine.claim.olds.keys().copied().collect();
        assert!(self.ended || olds == self.holds.keys().copied().collect(), "{olds:?}, not {:?}", self.holds);
    }

    /// Old servers that have the address, or had it when that was asked last, and are not gone for us.
    fn olds_of<'a>(&'a self, address: &'a Address) -> impl Iterator<Item = OldId> + 'a {
        let taken = self.taken.iter().filter(|(a, _)| self.is_part_of(address, a));
        taken.flat_map(|(_, olds)| olds.iter().copied()).filter(|old| self.holds.contains_key(old))
    }

    /// Whether what is known of `own` counts for the address: nothing is known of it by itself. Where nobody had the one,
    /// nobody has the other.
    fn is_part_of(&self, address: &Address, own: &Address) -> bool {
        let asks = self.looking.contains(address) && !self.free.contains(own);
        let is_taken = self.taken.get(address).is_some_and(|olds| !olds.is_empty());
        let known = asks || is_taken || self.free.contains(address);
        own == address || own.collides(address) && !known
    }

    /// Whether the server may listen beside those that have the address.
    fn is_shared(&self, address: &Address) -> bool {
        let joins = |old: &OldId| {
            self.shares.contains(old) && matches!(self.holds.get(old), Some(Hold::Granted | Hold::Silent))
        };
        let mut taken = self.taken.iter().filter(|(a, _)| self.is_part_of(address, a));
        self.shared && taken.any(|(_, olds)| !olds.is_empty() && olds.iter().all(joins))
    }

    /// Whether the address is the server's alone.
    fn is_own(&self, address: &Address) -> bool {
        let asked = |a: &Address| self.asked.get(a).is_some_and(|asked| !asked.is_empty());
        self.free.iter().any(|a| self.is_part_of(address, a) && !asked(a))
    }

    fn forget(&mut self, old: OldId) {
        self.holds.remove(&old);
        self.shares.remove(&old);
        self.drained.remove(&old);
    }

    /// Where no old server is left to listen beside, nothing is to be proven.
    fn forget_joined(&mut self) {
        let unproven = std::mem::take(&mut self.unproven);
        self.unproven = unproven.into_iter().filter(|a| self.olds_of(a).next().is_some()).collect();
    }

    fn warranted(&mut self, old: OldId) {
        assert!(!self.ready.is_empty(), "{old:?} is harmed and nobody said READY");
        let unproven = self.unproven.iter().find(|a| self.olds_of(a).any(|o| o == old));
        assert_eq!(unproven, None, "{old:?} is harmed and the new server may not accept");
        assert_eq!(self.holds.get(&old), Some(&Hold::Granted), "{old:?} is harmed without its lock");
        self.harmed.insert(old);
    }

    fn effect(&mut self, event: &Event, effect: &Effect) {
        match effect {
            Effect::Admit(address) => {
                assert!(self.calling.remove(address), "{address} is admitted, and nobody calls");
                assert!(self.is_own(address), "{address} is admitted beside an old server");
            }
            Effect::Pass(address) => {
                assert!(self.calling.remove(address), "{address} is passed, and nobody calls");
                assert!(self.up || matches!(event, Event::Foreign(_)), "{address} is passed beside an old server");
            }
            Effect::Deny(address) => assert!(self.calling.remove(address), "{address} is denied, and nobody calls"),
            Effect::Join(address) => {
                let calls = self.calling.remove(address);
                assert!(calls || self.is_own(address), "{address} is joined, and nobody calls");
                if !self.is_own(address) {
                    assert!(self.is_shared(address), "{address} is joined, which cannot be shared");
                    self.unproven.insert(address.clone());
                }
            }
            Effect::Check | Effect::Portion(_) | Effect::Held | Effect::TellDone(_) => panic!("nothing is on trial"),
            Effect::Settle => assert!(!self.unproven.is_empty(), "nothing is to be proven"),
            Effect::Switch(_) => {
                assert!(self.shared && !std::mem::replace(&mut self.switching, true), "switched twice");
                assert!(self.unproven.is_empty(), "switched to {:?}, not proven", self.unproven);
            }
            Effect::AskDrain(_, old) => {
                self.warranted(*old);
                assert!(self.shares.contains(old) && self.drained.insert(*old), "{old:?} drains twice");
                assert!(self.switching, "{old:?} drains before the switch");
            }
            Effect::Drain => {
                let asked =
                    matches!(event, Event::AskedDrain(c) if self.claimers.contains(c)) || *event == Event::Superseded;
                assert!(asked, "it drains for nobody");
                assert!(!std::mem::replace(&mut self.draining, true), "it drains twice");
            }
            Effect::SwitchBack => {
                assert!(!self.drained.is_empty(), "no switch to turn back");
            }
            Effect::AskStay(old) => assert!(self.drained.contains(old), "{old:?} does not drain"),
            Effect::StopDrain => {
                assert!(std::mem::take(&mut self.draining), "it does not drain");
                self.parking = false;
            }
            Effect::Park(_) => {
                let is_time = matches!(event, Event::Timer(Timer::Drain) | Event::Quiesced | Event::TimeIsUp);
                assert!(self.draining && is_time);
                assert!(!std::mem::replace(&mut self.parking, true), "it parks twice");
            }
            Effect::CutOff => {
                // Something may still be on its way to it.
                let is_late = matches!(event, Event::Timer(Timer::Drain) | Event::TimeIsUp);
                let is_parked = *event == Event::Parked && self.parking;
                assert!(self.draining && (is_late || is_parked), "it is cut off before what can be parked is");
            }
            Effect::Say(speaker, SupervisorWord::Go(address)) => {
                let first = self.owed.remove(&(*speaker, address.clone()));
                assert!(first, "GO {address} to {speaker:?}, who is not waiting for it");
                assert!(self.is_own(address) || self.is_shared(address), "GO {address}, which is not free");
            }
            Effect::Say(speaker, SupervisorWord::Error(_)) => {
                if let Event::Said(_, ServerWord::Ready(address)) | Event::Foreign(address) = event {
                    self.owed.remove(&(*speaker, address.clone()));
                }
            }
            Effect::Say(_, SupervisorWord::Takedown(_)) | Effect::Signal => {
                assert!(self.told || self.requested, "{effect:?} and nobody wanted it");
            }
            Effect::LookUp(address) => {
                assert!(self.ready.contains(address));
                self.looking.insert(address.clone());
                self.free.remove(address);
                self.taken.remove(address);
                self.asked.remove(address);
            }
            Effect::Lock(old) => {
                assert_eq!(self.holds.insert(*old, Hold::Queued), None, "locked twice");
            }
            // Giving back what is not had is how a lock that came too late is answered.
            Effect::Unlock(old) => self.forget(*old),
            Effect::Take(_, address) => {
                assert!(self.ready.contains(address), "{address} is taken and nobody said READY");
                for old in self.taken[address].clone() {
                    if self.holds.contains_key(&old) {
                        self.warranted(old);
                    }
                }
                self.asked.insert(address.clone(), BTreeSet::new());
                self.free.insert(address.clone());
            }
            Effect::AskTakedown(_, old, address) => {
                self.warranted(*old);
                assert!(self.said.contains(address), "{old:?} is asked for {address}, and nobody said READY");
                self.asked.entry(address.clone()).or_default().insert(*old);
            }
            Effect::AskStop(_, old) => {
                self.stopped.insert(*old);
                self.warranted(*old);
            }
            Effect::Grant(claimer, _) => {
                assert!(self.claimers.contains(claimer) && self.holder.is_none(), "a lock for two");
                assert!(self.up, "a lock of a server that is not up");
                let goes = |old: &OldId| self.drained.contains(old) || self.stopped.contains(old);
                assert!(self.holds.keys().all(goes) && !self.draining, "a lock in the middle of a swap");
                self.holder = Some(*claimer);
            }
            Effect::Refuse(claimer, why) => {
                assert!(self.claimers.contains(claimer));
                // What was not released in time is refused to a claimer that stays.
                if !why.ends_with("in time") {
                    self.claimers.remove(claimer);
                }
            }
            Effect::TellReleased(claimer, _) => assert!(self.claimers.contains(claimer)),
            Effect::TellGone(claimer) | Effect::SendOn(claimer) => assert!(self.claimers.remove(claimer), "told twice"),
            Effect::Arm(timer, _) => {
                self.armed.insert(*timer, false);
            }
            Effect::Disarm(timer) => assert!(self.armed.remove(timer).is_some(), "{timer:?} was not armed"),
            Effect::Pause(timer) => assert_eq!(self.armed.insert(*timer, true), Some(false)),
            Effect::Resume(timer) => assert_eq!(self.armed.insert(*timer, false), Some(true)),
            Effect::Up => {
                // Up because it was quiet is taken back by a first word.
                let again = std::mem::replace(&mut self.presumed, *event == Event::Timer(Timer::Quiet));
                self.done &= !again;
                self.sure &= !again;
                assert!(!std::mem::replace(&mut self.up, true) || again, "up twice");
                assert!(!self.ended);
            }
            Effect::TellWaits(claimer, _) => assert!(self.claimers.contains(claimer)),
            Effect::Sure => {
                assert!(self.up && !std::mem::replace(&mut self.sure, true), "sure twice, or too early");
            }
            Effect::Passed => {
                assert!(self.sure && !self.holds.is_empty() && !std::mem::replace(&mut self.done, true), "passed");
            }
            Effect::Hasten => assert!(matches!(event, Event::Down(..) | Event::AskedTakedown(..))),
            Effect::Done => {
                assert!(!std::mem::replace(&mut self.done, true), "done twice");
                assert!(self.holds.is_empty(), "done, and an old server lives");
            }
            Effect::Commit => assert!(!std::mem::replace(&mut self.committed, true)),
            Effect::End(status) => {
                assert!(!std::mem::replace(&mut self.ended, true), "two ends");
                let Event::Exited(own) = event else { panic!("ended before the server") };
                if *status == 0 {
                    assert!(self.requested || *own == 0, "success out of nothing");
                    assert!(self.done || !self.awaited, "-d succeeds and the swap is not done");
                }
            }
            Effect::Report(_, _, text) => assert!(!text.contains('\n')),
            Effect::Unhold(address) => {
                self.looking.remove(address);
                self.taken.remove(address);
                self.asked.remove(address);
                self.free.remove(address);
                self.forget_joined();
            }
            // Nobody is left beside it.
            Effect::Hold(address) => drop(self.free.insert(address.clone())),
            Effect::Watch(_) | Effect::WatchRelease(_) => {}
            Effect::Kill => self.killed = true,
        }
    }
}

#[derive(Clone)]
struct Subject {
    machine: Generation,
    watcher: Watcher,
    /// How it came here: what a failure prints.
    path: Vec<Event>,
}

impl Hash for Subject {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.machine.hash(state);
        self.watcher.hash(state);
    }
}

/// Says in a failure how it came to it.
struct Path<'a>(&'a [Event]);

impl Drop for Path<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.iter().for_each(|event| eprintln!("  {event:?}"));
        }
    }
}

impl Subject {
    fn step(&mut self, event: &Event) {
        self.path.push(event.clone());
        let _path = Path(&self.path);
        self.watcher.before(event);
        let effects = self.machine.step(event.clone());
        self.watcher.after(event, &effects, &self.machine);
        assert!(!["starting", "serving", "draining"].iter().all(|s| *s != self.machine.state()));
        assert!(!self.machine.is_free() || self.machine.is_up());
    }
}

/// In both orders: a new server in the foreground, one that is waited for, one with `--ready-timeout 0`,
/// an orphan.
fn starts() -> Vec<Subject> {
    [Order::Plain, Order::Shared].into_iter().flat_map(starts_in).collect()
}

/// In the middle of a swap on a shared port: a new server that listens beside the old one, the same
/// after the switch, an old one that drains.
fn middles() -> Vec<Subject> {
    let [.., mut new, _, mut old] = <[Subject; 8]>::try_from(starts()).ok().unwrap();
    for event in
        [Event::Calls(a(":1"), Meets::Server), Event::Taken(a(":1"), vec![OldId(1)]), Event::Shares(OldId(1), Ok(()))]
    {
        new.step(&event);
    }
    new.step(&Event::Locked(OldId(1), vec![a(":1")]));
    let mut switched = new.clone();
    switched.step(&Event::Accepts(a(":1")));
    old.step(&Event::Claim(ClaimerId(1)));
    old.step(&Event::AskedDrain(ClaimerId(1)));
    assert!(
        new.machine.claim.olds[&OldId(1)].demand == Demand::Nothing
            && switched.machine.claim.is_switched()
            && old.machine.is_giving_way()
    );
    vec![new, switched, old]
}

fn starts_in(order: Order) -> Vec<Subject> {
    let settings = |awaited| Settings { order, ..settings(awaited) };
    let forever = Settings { ready_timeout: Some(Duration::ZERO), ..settings(true) };
    let mut subjects = Vec::new();
    for settings in [settings(false), settings(true), forever] {
        let mut watcher = Watcher { awaited: settings.awaited, shared: order == Order::Shared, ..Watcher::default() };
        let (machine, effects) = Generation::new(settings);
        for effect in &effects {
            watcher.effect(&Event::Timer(Timer::Ready), effect);
        }
        subjects.push(Subject { machine, watcher, path: Vec::new() });
    }
    let machine = Generation::adopted(settings(false), [a(":1"), a("blue")], Orphan::Alone).0;
    let watcher = Watcher {
        shared: order == Order::Shared,
        up: true,
        done: true,
        committed: true,
        free: [a(":1"), a("blue")].into(),
        ready: [a(":1"), a("blue")].into(),
        ..Watcher::default()
    };
    subjects.push(Subject { machine, watcher, path: Vec::new() });
    subjects
}

/// Two speakers, old servers and claimers; addresses of which the first two collide.
fn vocabulary(addresses: &[&str], two: bool) -> Vec<Event> {
    let ids: &[u64] = if two { &[1, 2] } else { &[1] };
    let olds: Vec<OldId> = ids.iter().map(|i| OldId(*i)).collect();
    let mut events = vec![
        Event::Exited(0),
        Event::Exited(3),
        Event::Stop { signalled: false },
        Event::Stop { signalled: true },
        Event::Timer(Timer::Ready),
        Event::Timer(Timer::Quiet),
        Event::Timer(Timer::Kill),
        Event::Timer(Timer::Partial),
        Event::Timer(Timer::Drain),
        Event::Bound,
        Event::Quiesced,
        Event::Drained,
        Event::Parked,
    ];
    if two {
        events.extend([Event::HeirAwaited, Event::HeirClaims(ClaimerId(1)), Event::HeirGone]);
    }
    let all: Vec<Address> = addresses.iter().map(|t| a(t)).collect();
    for address in &all {
        let address = || address.clone();
        for speaker in ids.iter().map(|i| SpeakerId(*i)) {
            events.push(Event::Said(speaker, ServerWord::Ready(address())));
            events.push(Event::Said(speaker, ServerWord::Takedown(address())));
            events.push(Event::Said(speaker, ServerWord::Released(address())));
        }
        if let Address::Tcp(..) = address() {
            events.push(Event::Calls(address(), Meets::Server));
            events.push(Event::Calls(address(), Meets::Nobody));
            events.push(Event::Closed(address()));
            events.push(Event::Foreign(address()));
            events.push(Event::Hindered(address(), "it listens but accepts nothing".into()));
            events.push(Event::Accepts(address()));
        }
        events.push(Event::Listens(address()));
        events.push(Event::Free(address()));
        events.push(Event::Vacant(address()));
        events.push(Event::Taken(address(), vec![]));
        events.push(Event::Taken(address(), vec![OldId(1)]));
        events.push(Event::Taken(address(), olds.clone()));
        events.push(Event::Blocked(address(), "no".into()));
        for id in ids {
            events.push(Event::OldReleased(OldId(*id), address()));
            events.push(Event::AskedTakedown(ClaimerId(*id), address()));
        }
    }
    for id in ids {
        events.push(Event::SpeakerGone(SpeakerId(*id)));
        events.push(Event::Said(SpeakerId(*id), ServerWord::Up));
        events.push(Event::Said(SpeakerId(*id), ServerWord::Fail("no".into())));
        events.push(Event::Attended(OldId(*id)));
        events.push(Event::Locked(OldId(*id), vec![all[0].clone()]));
        events.push(Event::Locked(OldId(*id), all.clone()));
        events.push(Event::OldRefused(OldId(*id), "no".into()));
        events.push(Event::OldSilent(OldId(*id)));
        events.push(Event::OldGone(OldId(*id)));
        events.push(Event::OldLost(OldId(*id)));
        events.push(Event::Claim(ClaimerId(*id)));
        events.push(Event::AskedStop(ClaimerId(*id)));
        events.push(Event::AskedDrain(ClaimerId(*id)));
        events.push(Event::AskedStay(ClaimerId(*id)));
        events.push(Event::Succeeded(ClaimerId(*id)));
        events.push(Event::Alone);
        events.extend([Event::Superseded, Event::TimeIsUp]);
        events.push(Event::Shares(OldId(*id), Ok(())));
        events.push(Event::Shares(OldId(*id), Err("a stranger listens on the same port".into())));
        events.push(Event::Down(ClaimerId(*id), vec![all[0].clone()]));
        events.push(Event::Down(ClaimerId(*id), all.clone()));
        events.push(Event::ClaimerGone(ClaimerId(*id)));
    }
    events
}

/// Takes every sequence of events up to `depth`, breadth first; sequences that lead to the same state
/// go on as one. Returns how many states there were.
fn explore(subjects: Vec<Subject>, events: &[Event], depth: usize) -> usize {
    let mut seen: HashSet<u64> = subjects.iter().map(hash_of).collect();
    let mut frontier = subjects;
    for _ in 0..depth {
        let mut next = Vec::new();
        for subject in &frontier {
            for event in events {
                let mut subject = subject.clone();
                subject.step(event);
                if seen.insert(hash_of(&subject)) {
                    next.push(subject);
                }
            }
        }
        frontier = next;
    }
    seen.len()
}

#[test]
fn every_sequence_of_three_events_is_answered() {
    let events = vocabulary(&[":1", "127.0.0.1:1", "blue"], true);
    let states = explore(starts(), &events, 3) + explore(middles(), &events, 2);

    assert!(states > 10_000, "{states}");
}

#[test]
fn every_sequence_of_five_events_about_one_address_is_answered() {
    let events = vocabulary(&[":1"], false);
    let states = explore(starts(), &events, 5) + explore(middles(), &events, 4);

    assert!(states > 10_000, "{states}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]
    #[test]
    fn long_sequences_are_answered(start in 0usize..11, picks in prop::collection::vec(any::<prop::sample::Index>(), 0..60)) {
        let mut events = vocabulary(&[":1", "127.0.0.1:1", "blue"], true);
        // A server that has ended answers nothing, which is soon said.
        events.retain(|e| !matches!(e, Event::Exited(_) | Event::Blocked(..) | Event::Stop { .. }));
        let mut subject = [starts(), middles()].concat().remove(start);
        for pick in picks {
            subject.step(pick.get(&events));
        }
        subject.step(&Event::Exited(0));
        for event in &events {
            subject.step(event);
        }
    }
}
