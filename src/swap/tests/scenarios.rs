//! The swaps of the manual, one by one, with every effect in plain sight.

use super::*;
use crate::protocol::Word;
use crate::swap::words::{PARKS, READY_TIMEOUT};

const OLD: OldId = OldId(7);
const CLAIMER: ClaimerId = ClaimerId(5);

fn new(awaited: bool) -> Generation {
    Generation::new(settings(awaited)).0
}

/// A first server that is up with these addresses, after it said `lines`.
fn serving(addresses: &[&str], lines: &[&str]) -> Generation {
    let mut machine = new(false);
    for line in lines {
        says(&mut machine, line);
    }
    for address in addresses {
        says(&mut machine, &format!("READY {address}"));
    }
    for address in addresses {
        machine.step(Event::Vacant(a(address)));
    }
    for address in addresses {
        listens(&mut machine, address);
    }
    assert!(machine.is_free());
    machine
}

/// A new server that said READY for `wanted`, all of them had by one old server, which has `holds`.
fn swapping(wanted: &[&str], holds: &[&str]) -> Generation {
    let mut machine = new(true);
    for address in wanted {
        says(&mut machine, &format!("READY {address}"));
        machine.step(Event::Taken(a(address), vec![OLD]));
    }
    machine.step(Event::Attended(OLD));
    locked(&mut machine, holds);
    machine
}

/// The server listens, and accepts.
fn listens(machine: &mut Generation, address: &str) -> Vec<Effect> {
    let mut effects = machine.step(Event::Listens(a(address)));
    effects.retain(|effect| *effect != Effect::Join(a(address)));
    effects.extend(machine.step(Event::Accepts(a(address))));
    effects
}

fn locked(machine: &mut Generation, holds: &[&str]) -> Vec<Effect> {
    machine.step(Event::Locked(OLD, holds.iter().map(|t| a(t)).collect()))
}

/// A server whose lock is granted.
fn claimed(mut machine: Generation) -> Generation {
    let effects = machine.step(Event::Claim(CLAIMER));
    assert_eq!(effects, [Effect::Grant(CLAIMER, machine.addresses())]);
    machine
}

fn says_on(machine: &mut Generation, speaker: u64, line: &str) -> Vec<Effect> {
    machine.step(Event::Said(SpeakerId(speaker), ServerWord::parse(line).unwrap()))
}

fn says(machine: &mut Generation, line: &str) -> Vec<Effect> {
    says_on(machine, 0, line)
}

fn go_to(speaker: u64, address: &str) -> Effect {
    Effect::Say(SpeakerId(speaker), SupervisorWord::Go(a(address)))
}

fn takedown_to(speaker: u64, address: &str) -> Effect {
    Effect::Say(SpeakerId(speaker), SupervisorWord::Takedown(a(address)))
}

fn stop(machine: &mut Generation) -> Vec<Effect> {
    machine.step(Event::Stop { signalled: false })
}

fn reports(effects: &[Effect]) -> Vec<&str> {
    effects.iter().filter_map(|e| if let Effect::Report(_, _, text) = e { Some(text.as_str()) } else { None }).collect()
}

fn asks_for_harm(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Take(..) | Effect::AskTakedown(..) | Effect::AskStop(..) | Effect::Switch(_) | Effect::AskDrain(..)
    )
}

#[track_caller]
fn assert_has(effects: &[Effect], wanted: &[Effect]) {
    for effect in wanted {
        assert!(effects.contains(effect), "no {effect:?} in {effects:#?}");
    }
}

#[test]
fn a_first_server() {
    let (mut machine, effects) = Generation::new(settings(false));
    assert_eq!(effects, [Effect::Arm(Timer::Quiet, QUIET)]);
    assert_eq!(says(&mut machine, "READY :1"), [Effect::Disarm(Timer::Quiet), Effect::LookUp(a(":1"))]);
    assert_eq!(machine.step(Event::Vacant(a(":1"))), [Effect::Commit, go_to(0, ":1"), Effect::Watch(a(":1"))]);
    assert_eq!(machine.state(), "starting");
    assert_eq!(listens(&mut machine, ":1"), [Effect::Up, Effect::Done]);
    assert_eq!((machine.state(), machine.name()), ("serving", Some(a(":1"))));
    // A worker of it asks, and gets its answer at once.
    assert_eq!(says_on(&mut machine, 1, "READY :1"), [go_to(1, ":1")]);
    assert_eq!(machine.step(Event::Exited(3)), [Effect::End(3)]);
}

#[test]
fn a_swap_by_signal() {
    // The new one.
    let mut machine = new(true);
    says(&mut machine, "READY :1");
    assert_eq!(machine.step(Event::Taken(a(":1"), vec![OLD])), [Effect::Lock(OLD)]);
    assert_eq!(machine.step(Event::Attended(OLD)), [Effect::Pause(Timer::Ready)]);
    let effects = locked(&mut machine, &[":1"]);
    let [Effect::Take(warrant, _), ..] = effects[..] else { panic!("{effects:?}") };
    assert_eq!(
        effects,
        [Effect::Take(warrant, a(":1")), Effect::AskTakedown(warrant, OLD, a(":1")), Effect::AskStop(warrant, OLD),]
    );
    assert_eq!(
        machine.step(Event::OldReleased(OLD, a(":1"))),
        [Effect::Commit, go_to(0, ":1"), Effect::Watch(a(":1")), Effect::Resume(Timer::Ready)]
    );
    assert_eq!(listens(&mut machine, ":1"), [Effect::Up, Effect::Sure, Effect::Disarm(Timer::Ready)]);
    assert!(machine.is_free(), "the old one was told to go");
    assert_eq!(machine.step(Event::OldGone(OLD)), [Effect::Done]);
    assert!(machine.is_free());
    // From here on its end is its own.
    assert_eq!(machine.step(Event::Exited(3)), [Effect::End(3)]);

    // The old one.
    let mut machine = claimed(serving(&[":1"], &[]));
    assert_eq!(
        machine.step(Event::AskedTakedown(CLAIMER, a(":1"))),
        [Effect::Arm(Timer::Kill, Duration::from_secs(10)), Effect::WatchRelease(a(":1")), Effect::Signal,]
    );
    assert_eq!(machine.state(), "draining");
    assert_eq!(machine.step(Event::AskedStop(CLAIMER)), []);
    assert_eq!(machine.step(Event::Free(a(":1"))), [Effect::TellReleased(CLAIMER, a(":1"))]);
    assert_eq!(
        machine.step(Event::Exited(143)),
        [Effect::TellGone(CLAIMER), Effect::Disarm(Timer::Kill), Effect::End(0)]
    );
    assert_eq!(machine.step(Event::Claim(CLAIMER)), []);
}

#[test]
fn the_end_of_a_server_releases_what_was_asked_for() {
    // Seen before anybody saw that the port is free: the claimer knows that it was heard, and need not
    // look again.
    let mut machine = claimed(serving(&[":1"], &[]));
    machine.step(Event::AskedTakedown(CLAIMER, a(":1")));
    assert_eq!(
        machine.step(Event::Exited(143))[..2],
        [Effect::TellReleased(CLAIMER, a(":1")), Effect::TellGone(CLAIMER)]
    );
}

#[test]
fn a_swap_with_takedown() {
    let mut machine = claimed(serving(&[":1"], &["TAKEDOWN :1"]));
    let effects = machine.step(Event::AskedTakedown(CLAIMER, a(":1")));
    assert_has(&effects, &[takedown_to(0, ":1"), Effect::Arm(Timer::Kill, Duration::from_secs(10))]);
    assert!(!effects.contains(&Effect::Signal));
    let effects = says(&mut machine, "RELEASED :1");
    assert_eq!(effects, [Effect::TellReleased(CLAIMER, a(":1"))]);
    // It took TAKEDOWN for all it has, and is expected to exit.
    assert_has(&machine.step(Event::Timer(Timer::Kill)), &[Effect::Kill]);
}

#[test]
fn a_staggered_deploy() {
    let mut old = claimed(serving(&[":1", ":2"], &["TAKEDOWN :1", "TAKEDOWN :2"]));
    let mut machine = swapping(&[":1"], &[":1", ":2"]);
    let effects = old.step(Event::AskedTakedown(CLAIMER, a(":1")));
    assert_eq!(
        effects,
        [takedown_to(0, ":1"), Effect::WatchRelease(a(":1")), Effect::Arm(Timer::Partial, Duration::from_secs(10))]
    );
    assert_has(&says(&mut old, "RELEASED :1"), &[Effect::TellReleased(CLAIMER, a(":1"))]);
    assert_has(&machine.step(Event::OldReleased(OLD, a(":1"))), &[go_to(0, ":1")]);
    // It listens on the first and is not up: it may want the second.
    let effects = listens(&mut machine, ":1");
    assert_eq!(effects, [Effect::Arm(Timer::Quiet, QUIET)]);
    says(&mut machine, "READY :2");
    let effects = machine.step(Event::Taken(a(":2"), vec![OLD]));
    assert_eq!(effects.iter().filter(|e| asks_for_harm(e)).count(), 3, "{effects:?}");
    let effects = old.step(Event::AskedTakedown(CLAIMER, a(":2")));
    assert_has(&effects, &[takedown_to(0, ":2"), Effect::Disarm(Timer::Partial)]);
    assert!(!effects.contains(&Effect::Signal));
    says(&mut old, "RELEASED :2");
    assert_has(&old.step(Event::Exited(0)), &[Effect::End(0)]);
    machine.step(Event::OldReleased(OLD, a(":2")));
    assert_has(&listens(&mut machine, ":2"), &[Effect::Up]);
    assert_eq!(machine.step(Event::OldGone(OLD)), [Effect::Done]);
}

#[test]
fn an_old_server_without_takedown_is_stopped_when_all_is_asked_for() {
    let mut old = claimed(serving(&[":1", ":2"], &[]));
    assert_eq!(old.step(Event::AskedTakedown(CLAIMER, a(":1"))), []);
    assert_has(&old.step(Event::AskedTakedown(CLAIMER, a(":2"))), &[Effect::Signal]);
}

#[test]
fn an_address_that_the_new_one_does_not_want_is_abandoned_after_quiet() {
    let mut machine = swapping(&[":1"], &[":1", ":2"]);
    let effects = machine.step(Event::Timer(Timer::Quiet));
    assert_eq!(reports(&effects), ["the new server does not take this address over (it is abandoned)"]);
    assert!(effects.iter().any(|e| matches!(e, Effect::AskStop(_, OLD))));
    let mut old = claimed(serving(&[":1", ":2"], &[]));
    old.step(Event::AskedTakedown(CLAIMER, a(":1")));
    assert_has(&old.step(Event::AskedStop(CLAIMER)), &[Effect::Signal]);
}

#[test]
fn up_is_as_good_as_quiet() {
    let mut machine = swapping(&[":1"], &[":1", ":2"]);
    let effects = says(&mut machine, "UP");
    assert!(effects.iter().any(|e| matches!(e, Effect::AskStop(_, OLD))), "{effects:?}");
}

#[test]
fn neither_up_nor_quiet_stops_an_old_server_while_a_ready_is_unfulfilled() {
    for last in ["UP", "READY :3"] {
        let mut machine = swapping(&[":1"], &[":1", ":2"]);
        says(&mut machine, "READY :3");
        let mut effects = says(&mut machine, last);
        effects.extend(machine.step(Event::Timer(Timer::Quiet)));
        effects.extend(machine.step(Event::Taken(a(":3"), vec![OldId(8)])));
        assert!(!effects.iter().any(|e| matches!(e, Effect::AskStop(..))), "{effects:?}");
    }
    // What was said before a READY does not count after it.
    let mut machine = new(true);
    says(&mut machine, "UP");
    says(&mut machine, "READY :1");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    let effects = locked(&mut machine, &[":1", ":2"]);
    assert!(!effects.iter().any(|e| matches!(e, Effect::AskStop(..))), "{effects:?}");
    assert_has(&effects, &[Effect::Arm(Timer::Quiet, QUIET)]);
}

#[test]
fn a_new_server_that_dies_before_the_takedown_changes_nothing() {
    let mut machine = new(true);
    says(&mut machine, "READY :1");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    let effects = machine.step(Event::Exited(0));
    assert_has(&effects, &[Effect::Unlock(OLD), Effect::End(124)]);
    assert_eq!(reports(&effects), ["the new server ended with status 0 before it was up (the old one still serves)"]);
    assert!(!effects.iter().any(asks_for_harm));
}

#[test]
fn a_new_server_that_dies_after_the_takedown_is_reported() {
    let mut machine = swapping(&[":1", ":2"], &[":1", ":2"]);
    machine.step(Event::OldReleased(OLD, a(":1")));
    listens(&mut machine, ":1");
    let effects = machine.step(Event::Exited(9));
    assert!(reports(&effects).contains(&"nothing serves :1, :2"), "{effects:?}");
    let place = |wanted: Effect| effects.iter().position(|e| *e == wanted).unwrap();
    assert!(place(Effect::Unhold(a(":1"))) < place(Effect::Unlock(OLD)), "who goes on registers after that");
    assert_has(&effects, &[Effect::End(9)]);
}

#[test]
fn a_new_server_that_dies_while_the_old_one_drains_is_reported() {
    let mut machine = swapping(&[":1"], &[":1"]);
    machine.step(Event::OldReleased(OLD, a(":1")));
    assert_has(&listens(&mut machine, ":1"), &[Effect::Up]);
    let effects = machine.step(Event::Exited(0));
    assert_eq!(reports(&effects), ["nothing serves :1"]);
    assert_has(&effects, &[Effect::End(124)]);

    // One that was asked to go meanwhile is not: the next server serves.
    let mut machine = swapping(&[":1"], &[":1"]);
    machine.step(Event::OldReleased(OLD, a(":1")));
    assert_has(&listens(&mut machine, ":1"), &[Effect::Up]);
    let mut machine = claimed(machine);
    machine.step(Event::AskedStop(CLAIMER));
    assert_eq!(reports(&machine.step(Event::Exited(0))), [""; 0]);
}

#[test]
fn what_an_old_server_may_not_have_been_told_is_called_doubtful() {
    let mut machine = swapping(&[":1"], &[":1", ":2"]);
    let effects = machine.step(Event::Exited(9));
    assert!(reports(&effects)[1].starts_with("it may be that nothing serves :1 ("), "{effects:?}");
}

#[test]
fn a_new_server_that_is_not_up_in_time_is_killed() {
    let (mut machine, effects) = Generation::new(settings(true));
    assert_eq!(effects, [Effect::Arm(Timer::Ready, READY_TIMEOUT)]);
    let effects = machine.step(Event::Timer(Timer::Ready));
    assert_has(&effects, &[Effect::Kill]);
    assert_eq!(
        reports(&effects),
        [
            "the new server was not up in time: it listens on nothing yet, and has said neither UP nor READY=1 (the new server is killed)"
        ]
    );
    assert_eq!(machine.step(Event::Exited(137)), [Effect::End(124)]);
}

#[test]
fn the_ready_clock_of_a_first_server_in_the_foreground_starts_with_its_claim() {
    let mut machine = new(false);
    assert!(!says(&mut machine, "READY :1").iter().any(|e| matches!(e, Effect::Arm(Timer::Ready, _))));
    let effects = machine.step(Event::Taken(a(":1"), vec![OLD]));
    assert_has(&effects, &[Effect::Arm(Timer::Ready, READY_TIMEOUT), Effect::Lock(OLD)]);
    let forever = Settings { ready_timeout: Some(Duration::ZERO), ..settings(true) };
    let (mut machine, effects) = Generation::new(forever);
    assert_eq!(effects, []);
    says(&mut machine, "READY :1");
    assert_eq!(machine.step(Event::Taken(a(":1"), vec![OLD])), [Effect::Lock(OLD)]);
}

#[test]
fn the_ready_clock_stands_still_while_one_waits() {
    let mut machine = new(true);
    says(&mut machine, "READY :1");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    // Nobody has answered yet: a supervisor that hangs is not waited for.
    assert!(!machine.ours.clocks.get(&Timer::Ready).is_some_and(|gait| *gait == Gait::Stands));
    assert_eq!(machine.step(Event::Attended(OLD)), [Effect::Pause(Timer::Ready)]);
    // A supervisor that cannot be heard any more is not waited for either.
    assert_eq!(machine.clone().step(Event::OldSilent(OLD)), [Effect::Resume(Timer::Ready)]);
    // A clock that was stopped while it rang.
    assert_eq!(machine.step(Event::Timer(Timer::Ready)), []);
    // Somebody waits for us meanwhile, perhaps the one that we wait for.
    assert_eq!(machine.step(Event::Claim(CLAIMER)), [Effect::Resume(Timer::Ready), waits("it is not up yet")]);
    assert_eq!(machine.step(Event::ClaimerGone(CLAIMER)), [Effect::Pause(Timer::Ready)]);
    locked(&mut machine, &[":1"]);
    assert!(machine.ours.clocks.get(&Timer::Ready).is_some_and(|gait| *gait == Gait::Stands));
}

#[test]
fn the_ready_clock_runs_while_one_waits_for_a_second_old_server() {
    let mut machine = swapping(&[":1"], &[":1"]);
    says(&mut machine, "READY :2");
    machine.step(Event::Taken(a(":2"), vec![OldId(8)]));
    machine.step(Event::Attended(OldId(8)));
    assert!(!machine.ours.clocks.get(&Timer::Ready).is_some_and(|gait| *gait == Gait::Stands));
    let effects = machine.step(Event::Timer(Timer::Ready));
    assert_has(&effects, &[Effect::Kill, Effect::Unlock(OldId(8))]);
    assert!(!effects.contains(&Effect::Unlock(OLD)), "it was told to go, and is followed to its end");
}

#[test]
fn fail_before_up_kills_and_after_up_is_an_error() {
    let mut machine = new(true);
    says(&mut machine, "READY :1");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    let effects = says(&mut machine, "FAIL no database");
    assert_has(&effects, &[Effect::Kill, Effect::Unlock(OLD)]);
    assert_eq!(
        reports(&effects),
        ["the new server gave up: \"no database\" (the new server is killed; the old one still serves)"]
    );
    assert_has(&machine.step(Event::Exited(137)), &[Effect::End(124)]);

    let mut machine = serving(&[":1"], &[]);
    let error = SupervisorWord::Error("this server is up; it can only exit".into());
    assert_eq!(says(&mut machine, "FAIL"), [Effect::Say(SpeakerId(0), error)]);
}

#[test]
fn an_address_that_cannot_be_had_ends_a_new_server_and_not_one_that_is_up() {
    let mut machine = new(true);
    says(&mut machine, "READY :1");
    let effects = machine.step(Event::Blocked(a(":1"), "port is held".into()));
    assert_has(&effects, &[Effect::Kill]);
    assert_has(&machine.step(Event::Exited(137)), &[Effect::End(125)]);

    let mut machine = serving(&[":1"], &[]);
    says(&mut machine, "READY :2");
    let effects = machine.step(Event::Blocked(a(":2"), "port is held".into()));
    assert_eq!(reports(&effects), ["port is held (the server goes on without it)"]);
    assert_has(&effects, &[Effect::Say(SpeakerId(0), SupervisorWord::Error(":2: port is held".into()))]);
    assert!(machine.is_free());
}

#[test]
fn an_old_server_that_refuses_ends_the_swap() {
    let mut machine = swapping(&[":1"], &[":1", ":2"]);
    let effects = machine.step(Event::OldRefused(OLD, ":1 was not released in time".into()));
    assert_has(&effects, &[Effect::Kill]);
    assert_has(&machine.step(Event::Exited(137)), &[Effect::Unlock(OLD), Effect::End(124)]);

    // One that is up goes on, and lets others have its lock again.
    let mut machine = serving(&[":1"], &[]);
    says(&mut machine, "READY :2");
    machine.step(Event::Taken(a(":2"), vec![OLD]));
    locked(&mut machine, &[":2", ":3"]);
    let effects = machine.step(Event::OldRefused(OLD, "no".into()));
    assert_has(&effects, &[Effect::Unhold(a(":2")), Effect::Unlock(OLD)]);
    assert!(machine.is_free());
}

#[test]
fn takedown_of_one_of_two_addresses_needs_a_server_that_takes_it() {
    let mut machine = serving(&[":1", ":2"], &[]);
    let why = "the same server also has :2 and does not take TAKEDOWN";
    let effects = machine.step(Event::Down(CLAIMER, vec![a(":1")]));
    assert_eq!(effects, [Effect::Refuse(CLAIMER, why.into())]);
    assert!(machine.is_free());

    let mut machine = serving(&[":1", ":2"], &["TAKEDOWN :1"]);
    let effects = machine.step(Event::Down(CLAIMER, vec![a(":1")]));
    assert_has(&effects, &[takedown_to(0, ":1"), Effect::Arm(Timer::Partial, Duration::from_secs(10))]);
    let effects = says(&mut machine, "RELEASED :1");
    assert_has(&effects, &[Effect::TellReleased(CLAIMER, a(":1"))]);
    machine.step(Event::ClaimerGone(CLAIMER));
    assert!(machine.is_free());
    assert_eq!(machine.addresses(), [a(":2")]);
    assert_has(&machine.step(Event::Exited(3)), &[Effect::End(3)]);
}

#[test]
fn takedown_of_all_addresses_stops_the_server() {
    for (lines, told) in [(&[][..], Effect::Signal), (&["TAKEDOWN :1", "TAKEDOWN :2"], takedown_to(0, ":2"))] {
        let mut machine = serving(&[":1", ":2"], lines);
        assert_has(&machine.step(Event::Down(CLAIMER, vec![a(":1"), a(":2")])), &[told]);
        assert_has(&machine.step(Event::Exited(143)), &[Effect::TellGone(CLAIMER), Effect::End(0)]);
    }
}

#[test]
fn takedown_of_a_server_that_starts() {
    let mut machine = new(true);
    says(&mut machine, "READY :1");
    machine.step(Event::Vacant(a(":1")));
    assert_has(&machine.step(Event::Down(CLAIMER, vec![a(":1")])), &[Effect::Signal]);
    // On request, but whoever waits for it to be up does not get it.
    assert_has(&machine.step(Event::Exited(143)), &[Effect::TellGone(CLAIMER), Effect::End(124)]);

    // It has more: decided once it is up.
    let mut machine = new(false);
    says(&mut machine, "READY :1");
    says(&mut machine, "READY :2");
    machine.step(Event::Vacant(a(":1")));
    machine.step(Event::Vacant(a(":2")));
    assert_eq!(machine.step(Event::Down(CLAIMER, vec![a(":1")])), []);
    listens(&mut machine, ":1");
    let effects = listens(&mut machine, ":2");
    assert!(effects.iter().any(|e| matches!(e, Effect::Refuse(CLAIMER, _))), "{effects:?}");
}

#[test]
fn what_is_not_released_in_time_is_refused() {
    let mut machine = claimed(serving(&[":1", ":2"], &["TAKEDOWN :1"]));
    machine.step(Event::AskedTakedown(CLAIMER, a(":1")));
    let effects = machine.step(Event::Timer(Timer::Partial));
    assert_eq!(effects, [Effect::Refuse(CLAIMER, ":1 was not released in time".into())]);
    machine.step(Event::ClaimerGone(CLAIMER));
    // The next one that asks for it does not wait for ever either.
    let other = ClaimerId(6);
    machine.step(Event::Claim(other));
    let effects = machine.step(Event::AskedTakedown(other, a(":1")));
    assert_eq!(effects, [Effect::Arm(Timer::Partial, Duration::from_secs(10))]);
}

#[test]
fn a_claimer_that_vanishes_before_it_asked_harms_nobody() {
    let mut machine = claimed(serving(&[":1"], &[]));
    machine.step(Event::Claim(ClaimerId(6)));
    assert_eq!(
        machine.step(Event::ClaimerGone(CLAIMER)),
        [Effect::Hold(a(":1")), Effect::Grant(ClaimerId(6), vec![a(":1")])]
    );
}

#[test]
fn a_claimer_that_vanishes_after_it_asked() {
    // The server was not told: nothing has happened.
    let mut machine = claimed(serving(&[":1", ":2"], &[]));
    machine.step(Event::AskedTakedown(CLAIMER, a(":1")));
    assert_eq!(machine.step(Event::ClaimerGone(CLAIMER)), [Effect::Hold(a(":1")), Effect::Hold(a(":2"))]);
    assert!(machine.is_free());
    machine.step(Event::Claim(CLAIMER));
    assert_eq!(machine.step(Event::AskedTakedown(CLAIMER, a(":2"))), []);

    // The server was told about one of two: it lets go of that one and goes on with the other.
    let mut machine = claimed(serving(&[":1", ":2"], &["TAKEDOWN :1"]));
    machine.step(Event::AskedTakedown(CLAIMER, a(":1")));
    assert_has(&machine.step(Event::ClaimerGone(CLAIMER)), &[Effect::Disarm(Timer::Partial)]);
    assert_eq!(says(&mut machine, "RELEASED :1"), [Effect::Unhold(a(":1"))]);
    assert_eq!(machine.addresses(), [a(":2")]);

    // The server was told to stop: it stops.
    let mut machine = claimed(serving(&[":1"], &[]));
    machine.step(Event::AskedStop(CLAIMER));
    assert_eq!(machine.step(Event::ClaimerGone(CLAIMER)), []);
    assert_has(&machine.step(Event::Exited(143)), &[Effect::End(0)]);
}

fn waits(why: &str) -> Effect {
    Effect::TellWaits(CLAIMER, why.into())
}

#[test]
fn a_claim_that_comes_while_the_server_leaves_is_told_of_its_end() {
    let mut machine = serving(&[":1"], &[]);
    stop(&mut machine);
    assert_eq!(machine.step(Event::Claim(CLAIMER)), [waits("it is on its way out")]);
    assert_has(&machine.step(Event::Exited(0)), &[Effect::TellGone(CLAIMER)]);
}

#[test]
fn released_counts_when_all_workers_said_it_or_ended() {
    let mut machine = serving(&[":1"], &[]);
    for worker in 1..=3 {
        assert_eq!(says_on(&mut machine, worker, "TAKEDOWN :1"), []);
    }
    let mut machine = claimed(machine);
    let effects = machine.step(Event::AskedTakedown(CLAIMER, a(":1")));
    assert_has(&effects, &[takedown_to(1, ":1"), takedown_to(2, ":1"), takedown_to(3, ":1")]);
    assert_eq!(says_on(&mut machine, 1, "RELEASED :1"), []);
    assert_eq!(machine.step(Event::SpeakerGone(SpeakerId(2))), []);
    let effects = says_on(&mut machine, 3, "RELEASED :1");
    assert_has(&effects, &[Effect::TellReleased(CLAIMER, a(":1"))]);
}

#[test]
fn a_worker_that_comes_late_is_told_too() {
    let mut machine = claimed(serving(&[":1", ":2"], &["TAKEDOWN :1"]));
    machine.step(Event::AskedTakedown(CLAIMER, a(":1")));
    assert_eq!(says_on(&mut machine, 1, "TAKEDOWN :1"), [takedown_to(1, ":1")]);
}

#[test]
fn a_worker_that_dies_in_ready_harms_nobody() {
    let mut machine = new(true);
    says_on(&mut machine, 1, "READY :1");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    let effects = machine.step(Event::SpeakerGone(SpeakerId(1)));
    assert_has(&effects, &[Effect::Unlock(OLD)]);
    assert_eq!(locked(&mut machine, &[":1"]), [Effect::Unlock(OLD)]);
}

#[test]
fn a_silent_server_replaces_nobody_in_plain_order() {
    let why = "a stranger listens on the same port";
    // It waits in listen: that fails, and what becomes of the server is its own affair.
    let mut machine = Generation::new(Settings { order: Order::Shared, ..settings(true) }).0;
    machine.step(Event::Calls(a(":1"), Meets::Server));
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    machine.step(Event::Shares(OLD, Err(why.into())));
    let effects = locked(&mut machine, &[":1"]);
    assert!(!effects.iter().any(asks_for_harm));
    assert_has(&effects, &[Effect::Deny(a(":1"))]);
    assert_has(&machine.step(Event::Exited(1)), &[Effect::End(1)]);
    // It listens by an option of its own.
    let mut machine = new(true);
    machine.step(Event::Listens(a(":1")));
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    let effects = locked(&mut machine, &[":1"]);
    assert!(!effects.iter().any(asks_for_harm));
    assert_has(&effects, &[Effect::Kill]);
    // READY is a word, and enough.
    let mut machine = Generation::new(Settings { order: Order::Shared, ..settings(true) }).0;
    machine.step(Event::Calls(a(":1"), Meets::Server));
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    says(&mut machine, "READY :1");
    machine.step(Event::Shares(OLD, Err(why.into())));
    let effects = locked(&mut machine, &[":1"]);
    assert_eq!(reports(&effects), [format!("the port cannot be shared: {why} (this swap runs in plain order)")]);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::AskTakedown(..))));
}

#[test]
fn a_listener_that_is_closed_before_its_server_is_up_is_no_address() {
    let mut machine = Generation::new(Settings { order: Order::Shared, ..settings(true) }).0;
    machine.step(Event::Calls(a("127.0.0.1:1"), Meets::Nobody));
    machine.step(Event::Vacant(a("127.0.0.1:1")));
    assert_has(&machine.step(Event::Closed(a("127.0.0.1:1"))), &[Effect::Unhold(a("127.0.0.1:1"))]);
    machine.step(Event::Calls(a(":1"), Meets::Nobody));
    machine.step(Event::Vacant(a(":1")));
    assert_has(&machine.step(Event::Accepts(a(":1"))), &[Effect::Up]);
    assert_eq!(machine.addresses(), [a(":1")]);
    // From here on it may replace its listener.
    assert_eq!(machine.step(Event::Closed(a(":1"))), []);
    assert_eq!(machine.step(Event::Calls(a(":1"), Meets::Nobody)), [Effect::Admit(a(":1"))]);
    // And what else it opens may be closed again soon.
    assert_eq!(machine.step(Event::Calls(a(":2"), Meets::Nobody)), [Effect::Pass(a(":2"))]);
}

#[test]
fn what_keeps_a_server_from_being_proven_is_said_when_its_time_is_up() {
    let mut machine = Generation::new(Settings { order: Order::Shared, ..settings(true) }).0;
    machine.step(Event::Calls(a(":1"), Meets::Nobody));
    machine.step(Event::Vacant(a(":1")));
    machine.step(Event::Hindered(a(":1"), "it listens on :1 but accepts nothing".into()));
    let effects = machine.step(Event::Timer(Timer::Ready));
    assert_eq!(
        reports(&effects),
        ["the new server was not up in time: it listens on :1 but accepts nothing (the new server is killed)"]
    );
}

/// A new server with checks, which accepts beside the old one.
fn on_trial() -> (Generation, Vec<Effect>) {
    accepting(Settings { checked: Checked::Yes, ..settings(true) })
}

/// A new server that accepts beside the old one, and what follows from that.
fn accepting(settings: Settings) -> (Generation, Vec<Effect>) {
    let mut machine = Generation::new(Settings { order: Order::Shared, ..settings }).0;
    machine.step(Event::Calls(a(":1"), Meets::Server));
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    machine.step(Event::Shares(OLD, Ok(())));
    assert_has(&locked(&mut machine, &[":1"]), &[Effect::Join(a(":1"))]);
    let effects = machine.step(Event::Accepts(a(":1")));
    (machine, effects)
}

#[test]
fn the_old_server_keeps_its_connections_until_the_checks_of_the_new_one_have_succeeded() {
    let (mut machine, effects) = on_trial();
    assert_has(&effects, &[Effect::Check]);
    assert!(!effects.iter().any(|effect| asks_for_harm(effect) || matches!(effect, Effect::Switch(_))));
    assert!(machine.is_checking());
    assert_eq!(machine.state(), "checking");
    // It is made again.
    let failed = || Event::Checked(Err("its check failed: GET /: status 500".into()));
    assert_eq!(machine.step(failed()), []);
    let effects = machine.clone().step(Event::Timer(Timer::Ready));
    assert!(reports(&effects)[0].contains("its check failed: GET /: status 500"), "{effects:?}");
    assert_has(&effects, &[Effect::Kill]);
    let effects = machine.step(Event::Checked(Ok(())));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Switch(_))));
    assert_has(&effects, &[Effect::Up]);
    assert!(!machine.is_checking());
    // What a check says that had begun before does not matter any more.
    assert_eq!(machine.step(failed()), []);
}

#[test]
fn a_first_server_is_not_up_before_its_checks_have_succeeded() {
    let mut machine = Generation::new(Settings { order: Order::Shared, checked: Checked::Yes, ..settings(false) }).0;
    machine.step(Event::Calls(a(":1"), Meets::Nobody));
    machine.step(Event::Vacant(a(":1")));
    let effects = machine.step(Event::Accepts(a(":1")));
    assert_has(&effects, &[Effect::Check]);
    assert!(!effects.contains(&Effect::Up));
    assert_has(&machine.clone().step(Event::Timer(Timer::Ready)), &[Effect::Kill]);
    assert_has(&machine.step(Event::Checked(Ok(()))), &[Effect::Up]);
}

/// A new server with a canary of two steps and a hold, which accepts beside the old one, and what follows from that.
fn in_canary(checked: Checked) -> (Generation, Vec<Effect>) {
    let step = |permille| Step { share: Share { permille }, time: Duration::from_secs(5) };
    let (canary, hold) = (vec![step(50), step(500)], Duration::from_secs(300));
    let (mut machine, effects) = accepting(Settings { checked, canary, hold, ..settings(true) });
    let more = if checked == Checked::Yes { machine.step(Event::Checked(Ok(()))) } else { Vec::new() };
    (machine, [effects, more].concat())
}

/// After both steps, in its hold.
fn in_hold(checked: Checked) -> (Generation, Vec<Effect>) {
    let (mut machine, _) = in_canary(checked);
    let mut effects = Vec::new();
    for _ in 0..2 {
        effects = machine.step(Event::Timer(Timer::Trial));
        if checked == Checked::Yes {
            effects = machine.step(Event::Checked(Ok(())));
        }
    }
    (machine, effects)
}

fn position(effects: &[Effect], of: impl Fn(&Effect) -> bool) -> usize {
    effects.iter().position(of).unwrap_or_else(|| panic!("{effects:?}"))
}

fn is_ask_drain(effect: &Effect) -> bool {
    matches!(effect, Effect::AskDrain(..))
}

#[test]
fn a_canary_gets_its_shares_one_after_the_other() {
    let (mut machine, effects) = in_canary(Checked::No);
    assert_has(&effects, &[Effect::Commit, Effect::Portion(Share { permille: 50 }), Effect::Up]);
    assert!(!effects.iter().any(asks_for_harm), "{effects:?}");
    assert_eq!((machine.state(), machine.share()), ("canary", Some(Share { permille: 50 })));
    assert!(machine.may_be_cancelled() && !machine.is_free());
    let effects = machine.step(Event::Timer(Timer::Trial));
    assert_has(&effects, &[Effect::Portion(Share { permille: 500 })]);
    assert!(!effects.iter().any(asks_for_harm), "{effects:?}");
    let effects = machine.step(Event::Timer(Timer::Trial));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Switch(_))), "{effects:?}");
    assert_has(&effects, &[Effect::Held, Effect::Arm(Timer::Trial, Duration::from_secs(300))]);
    assert!(!effects.iter().any(is_ask_drain), "{effects:?}");
    assert_eq!((machine.state(), machine.share()), ("serving", None));
    // The time of the hold is up.
    let effects = machine.step(Event::Timer(Timer::Trial));
    assert!(effects.iter().any(is_ask_drain), "{effects:?}");
    assert_has(&effects, &[Effect::Sure]);
    assert_has(&machine.step(Event::OldGone(OLD)), &[Effect::Done]);
}

#[test]
fn without_a_hold_the_old_server_drains_after_the_canary() {
    let canary = vec![Step { share: Share { permille: 1 }, time: Duration::from_secs(5) }];
    let (mut machine, effects) = accepting(Settings { canary, ..settings(true) });
    assert_has(&effects, &[Effect::Portion(Share { permille: 1 })]);
    let effects = machine.step(Event::Timer(Timer::Trial));
    assert!(effects.iter().any(is_ask_drain) && !effects.contains(&Effect::Held), "{effects:?}");
    assert!(!machine.is_on_trial());
}

#[test]
fn checks_are_made_again_and_again_while_the_old_server_may_come_back() {
    let (mut machine, effects) = in_canary(Checked::Yes);
    assert_has(&effects, &[Effect::Portion(Share { permille: 50 }), Effect::Check]);
    assert_eq!(machine.step(Event::Checked(Ok(()))), [Effect::Check]);
    // A step is over when its time is up and the checks have succeeded after that.
    assert_eq!(machine.step(Event::Timer(Timer::Trial)), []);
    assert_has(&machine.step(Event::Checked(Ok(()))), &[Effect::Portion(Share { permille: 500 })]);
    for (machine, is_held) in [(machine, false), (in_hold(Checked::Yes).0, true)] {
        let mut machine = machine;
        let effects = machine.step(Event::Checked(Err("its check failed: GET /: status 500".into())));
        assert_eq!(
            reports(&effects),
            ["its check failed: GET /: status 500 (all connections go to the old server again)"]
        );
        assert_has(&effects, &[Effect::SwitchBack, Effect::Drain]);
        assert_eq!(effects.contains(&Effect::AskStay(OLD)), is_held, "{effects:?}");
        assert_eq!(machine.state(), "draining");
        assert!(machine.step(Event::Drained).contains(&Effect::Signal));
        assert_has(&machine.step(Event::Exited(0)), &[Effect::Unlock(OLD), Effect::End(124)]);
    }
}

#[test]
fn an_undone_server_gives_its_addresses_back_before_the_old_one_is_told() {
    let (mut machine, _) = in_hold(Checked::No);
    let effects = machine.step(Event::Undo(CLAIMER));
    let unhold = position(&effects, |effect| *effect == Effect::Unhold(a(":1")));
    assert!(position(&effects, |effect| *effect == Effect::SwitchBack) < unhold);
    assert!(unhold < position(&effects, |effect| *effect == Effect::AskStay(OLD)));
    assert_eq!(effects.last(), Some(&Effect::TellDone(CLAIMER)));
    // Nobody else gets the old one before ours is gone.
    assert!(!effects.contains(&Effect::Unlock(OLD)));
    assert_eq!(machine.step(Event::Undo(CLAIMER)), [Effect::Refuse(CLAIMER, "it was undone already".into())]);
    // It opens nothing more.
    assert_has(&machine.step(Event::Calls(a(":2"), Meets::Nobody)), &[Effect::Deny(a(":2"))]);
    assert_has(&machine.step(Event::TimeIsUp), &[]);
}

#[test]
fn a_kept_server_that_stays_registers_its_addresses_again() {
    let mut old = claimed(serving(&[":1"], &[]));
    assert_eq!(old.step(Event::AskedStay(CLAIMER)), [Effect::Hold(a(":1"))]);
    assert_eq!(old.step(Event::AskedStay(ClaimerId(99))), []);
}

#[test]
fn what_is_committed_cannot_be_undone() {
    for (mut machine, is_switched) in [(in_canary(Checked::No).0, false), (in_hold(Checked::No).0, true)] {
        let effects = machine.step(Event::Confirm(CLAIMER));
        assert_eq!(effects.iter().any(|effect| matches!(effect, Effect::Switch(_))), !is_switched, "{effects:?}");
        assert!(effects.iter().any(is_ask_drain) && !effects.contains(&Effect::Held), "{effects:?}");
        assert_eq!(effects.last(), Some(&Effect::TellDone(CLAIMER)));
        for event in [Event::Undo(CLAIMER), Event::Confirm(CLAIMER)] {
            assert_eq!(machine.step(event), [Effect::Refuse(CLAIMER, "no old server is kept".into())]);
        }
    }
}

/// A server that listens at another address meanwhile, and does not accept there yet.
#[test]
fn a_canary_that_cannot_be_switched_to_yet_is_checked_and_whoever_commits_it_waits() {
    let (mut machine, _) = in_canary(Checked::Yes);
    machine.step(Event::Calls(a(":2"), Meets::Server));
    machine.step(Event::Taken(a(":2"), vec![OLD]));
    for _ in 0..2 {
        machine.step(Event::Timer(Timer::Trial));
        let effects = machine.step(Event::Checked(Ok(())));
        assert_has(&effects, &[Effect::Check]);
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Switch(_))), "{effects:?}");
    }
    assert!(machine.is_on_trial());
    assert_has(&machine.step(Event::Checked(Ok(()))), &[Effect::Check]);
    assert_eq!(machine.step(Event::Confirm(CLAIMER)), []);
    let mut undone = machine.clone();
    let effects = machine.step(Event::Accepts(a(":2")));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Switch(_))), "{effects:?}");
    assert_eq!(effects.last(), Some(&Effect::TellDone(CLAIMER)));
    let other = ClaimerId(99);
    let effects = undone.step(Event::Undo(other));
    assert_has(&effects, &[Effect::TellDone(other), Effect::Refuse(CLAIMER, "it was undone already".into())]);
}

#[test]
fn whoever_ends_on_trial_has_failed() {
    for (mut machine, _) in [in_canary(Checked::No), in_hold(Checked::No)] {
        let mut other = machine.clone();
        let effects = machine.step(Event::Exited(0));
        assert_eq!(reports(&effects), ["the new server ended with status 0 (all connections go to the old one again)"]);
        assert_has(&effects, &[Effect::Unlock(OLD), Effect::End(124)]);
        // Told to stop, it finishes what it has; told again, it stops at once, and then it is killed.
        assert_has(&other.step(Event::Stop { signalled: false }), &[Effect::SwitchBack, Effect::Drain]);
        assert_has(&other.step(Event::Stop { signalled: false }), &[Effect::Signal]);
        assert_has(&other.step(Event::Stop { signalled: false }), &[Effect::Kill]);
        assert_has(&other.step(Event::Exited(0)), &[Effect::End(124)]);
    }
}

#[test]
fn without_the_old_server_the_new_one_serves_whatever_was_decided() {
    for (mut machine, _) in [in_canary(Checked::No), in_hold(Checked::No)] {
        let (mut undone, mut stopped) = (machine.clone(), machine.clone());
        assert_has(&machine.step(Event::OldGone(OLD)), &[Effect::Done]);
        assert!(!machine.is_on_trial() && machine.is_free());
        undone.step(Event::Undo(CLAIMER));
        assert_has(&undone.step(Event::OldGone(OLD)), &[Effect::StopDrain, Effect::Hold(a(":1"))]);
        assert!(!undone.is_turned_back() && undone.state() == "serving");
        stopped.step(Event::Stop { signalled: false });
        assert_has(&stopped.step(Event::OldGone(OLD)), &[Effect::Signal]);
    }
}

#[test]
fn a_newer_swap_ends_a_hold_and_waits_for_a_canary() {
    let (mut held, _) = in_hold(Checked::No);
    let effects = held.step(Event::Claim(CLAIMER));
    assert!(effects.iter().any(is_ask_drain), "{effects:?}");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Grant(..))), "{effects:?}");
    let (mut canary, _) = in_canary(Checked::No);
    assert_eq!(canary.step(Event::Claim(CLAIMER)), [Effect::TellWaits(CLAIMER, "it is on trial (--canary)".into())]);
}

#[test]
fn in_plain_order_a_server_on_trial_replaces_nobody() {
    for (canary, hold, what) in [
        (vec![Step { share: Share { permille: 1 }, time: Duration::from_secs(1) }], 0, "tried by a canary"),
        (Vec::new(), 60, "held"),
    ] {
        let settings = Settings { canary, hold: Duration::from_secs(hold), ..settings(true) };
        let mut machine = Generation::new(settings).0;
        says(&mut machine, "READY :1");
        machine.step(Event::Taken(a(":1"), vec![OLD]));
        let effects = locked(&mut machine, &[":1"]);
        assert!(!effects.iter().any(asks_for_harm));
        assert!(reports(&effects)[0].contains(what), "{effects:?}");
    }
}

/// There is no moment at which both could be asked.
#[test]
fn in_plain_order_a_server_with_checks_replaces_nobody() {
    let mut machine = Generation::new(Settings { checked: Checked::Yes, ..settings(true) }).0;
    says(&mut machine, "READY :1");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    let effects = locked(&mut machine, &[":1"]);
    assert!(!effects.iter().any(asks_for_harm));
    assert!(reports(&effects)[0].contains("cannot be checked while the old one has the address"), "{effects:?}");
    assert_has(&effects, &[Effect::Kill]);
}

#[test]
fn a_first_server_that_never_accepts_does_not_keep_a_rival_for_ever() {
    let mut machine = Generation::new(Settings { order: Order::Shared, ..settings(false) }).0;
    machine.step(Event::Calls(a(":1"), Meets::Nobody));
    machine.step(Event::Vacant(a(":1")));
    assert_has(&machine.step(Event::Claim(CLAIMER)), &[Effect::Arm(Timer::Ready, READY_TIMEOUT)]);
    assert_has(&machine.step(Event::Timer(Timer::Ready)), &[Effect::Kill]);
}

#[test]
fn a_server_without_an_address() {
    let mut machine = new(false);
    assert_eq!(machine.step(Event::Timer(Timer::Quiet)), [Effect::Commit, Effect::Up, Effect::Done]);
    assert_has(&stop(&mut machine), &[Effect::Signal]);
    // With -d it has to say UP.
    let mut machine = new(true);
    assert_eq!(machine.step(Event::Timer(Timer::Quiet)), []);
    assert_has(&says(&mut machine, "UP"), &[Effect::Up, Effect::Done]);
}

#[test]
fn a_server_that_says_nothing_and_listens() {
    let mut machine = new(true);
    assert_eq!(listens(&mut machine, ":1"), [Effect::LookUp(a(":1"))]);
    let effects = machine.step(Event::Vacant(a(":1")));
    assert_eq!(effects, [Effect::Commit, Effect::Join(a(":1"))]);
    assert_eq!(machine.state(), "starting", "to listen proves nothing");
    assert_has(&machine.step(Event::Accepts(a(":1"))), &[Effect::Up, Effect::Done]);
    // READY for all interfaces and a listener on one of them are the same address.
    let mut machine = new(true);
    says(&mut machine, "READY :1");
    machine.step(Event::Vacant(a(":1")));
    assert_has(&listens(&mut machine, "127.0.0.1:1"), &[Effect::Up]);
    assert_eq!(machine.addresses(), [a(":1")]);
}

#[test]
fn an_old_supervisor_is_lost() {
    // While we wait for the lock: look again.
    let mut machine = new(true);
    says(&mut machine, "READY :1");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    assert_eq!(machine.step(Event::OldLost(OLD)), [Effect::LookUp(a(":1"))]);
    // The orphan is ours now.
    assert_eq!(machine.step(Event::Taken(a(":1"), vec![OldId(8)])), [Effect::Lock(OldId(8))]);
    let effects = machine.step(Event::Locked(OldId(8), vec![a(":1")]));
    assert_eq!(effects.iter().filter(|e| asks_for_harm(e)).count(), 3, "{effects:?}");

    // While it lets go: look again, too.
    let mut machine = swapping(&[":1"], &[":1"]);
    let effects = machine.step(Event::OldLost(OLD));
    assert_has(&effects, &[Effect::LookUp(a(":1"))]);
    let mut stopped = machine.clone();
    assert_has(&stop(&mut stopped), &[Effect::Unhold(a(":1"))]);
    assert_has(&machine.step(Event::Vacant(a(":1"))), &[go_to(0, ":1")]);

    // When it has let go: the swap is as done as it will be, and that is said.
    let mut machine = swapping(&[":1"], &[":1"]);
    machine.step(Event::OldReleased(OLD, a(":1")));
    listens(&mut machine, ":1");
    let effects = machine.step(Event::OldLost(OLD));
    assert_eq!(reports(&effects), ["the supervisor of the old server is gone (the old server may live on)"]);
    assert_has(&effects, &[Effect::Done]);
}

#[test]
fn a_lock_of_a_server_that_somebody_else_has_replaced_takes_nothing() {
    let mut machine = swapping(&[":1"], &[":1"]);
    // The answer to Take: it came too late.
    assert_has(&machine.step(Event::Taken(a(":1"), vec![OldId(8)])), &[Effect::Lock(OldId(8))]);
    let effects = machine.step(Event::OldReleased(OLD, a(":1")));
    assert!(!effects.contains(&go_to(0, ":1")), "{effects:?}");
    machine.step(Event::OldGone(OLD));
    machine.step(Event::Locked(OldId(8), vec![a(":1")]));
    assert_has(&machine.step(Event::OldReleased(OldId(8), a(":1"))), &[go_to(0, ":1")]);
}

#[test]
fn stop_while_it_starts() {
    let mut machine = new(false);
    assert_has(&stop(&mut machine), &[Effect::Arm(Timer::Kill, Duration::from_secs(10)), Effect::Signal]);
    assert_has(&machine.step(Event::Exited(143)), &[Effect::Disarm(Timer::Kill), Effect::End(143)]);

    // TAKEDOWN alone may not reach one that has not listened yet.
    let mut machine = new(false);
    says(&mut machine, "TAKEDOWN :1");
    says(&mut machine, "READY :1");
    machine.step(Event::Vacant(a(":1")));
    assert_has(&stop(&mut machine), &[takedown_to(0, ":1"), Effect::Signal]);
}

#[test]
fn stop_during_a_swap_gives_the_old_server_back() {
    let mut machine = new(true);
    says(&mut machine, "TAKEDOWN :1");
    says(&mut machine, "READY :1");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    let effects = stop(&mut machine);
    // It has nothing to take down yet, so the signal is due.
    assert_has(&effects, &[Effect::Unlock(OLD), Effect::Disarm(Timer::Ready), Effect::Signal]);
    assert_eq!(locked(&mut machine, &[":1"]), [Effect::Unlock(OLD)]);
    assert_eq!(machine.step(Event::Vacant(a(":1"))), [Effect::Unhold(a(":1"))]);
    let effects = machine.step(Event::Exited(0));
    assert_eq!(effects, [Effect::Disarm(Timer::Kill), Effect::End(124)]);
}

#[test]
fn stop_after_the_takedown_says_what_nothing_serves() {
    let mut machine = swapping(&[":1"], &[":1"]);
    let effects = stop(&mut machine);
    assert!(!effects.contains(&Effect::Unlock(OLD)));
    let effects = machine.step(Event::Exited(143));
    assert_eq!(reports(&effects), ["nothing serves :1"]);
    assert_has(&effects, &[Effect::Unlock(OLD), Effect::End(143)]);
}

#[test]
fn stop_of_a_server_that_is_up() {
    let mut machine = serving(&[":1"], &[]);
    assert_has(&stop(&mut machine), &[Effect::Signal]);
    assert_eq!(stop(&mut machine), [Effect::Kill]);
    assert_has(&machine.step(Event::Exited(137)), &[Effect::End(137)]);

    // The terminal has told it.
    let mut machine = serving(&[":1"], &[]);
    let effects = machine.step(Event::Stop { signalled: true });
    assert!(!effects.contains(&Effect::Signal));
    assert_eq!(machine.step(Event::Stop { signalled: true }), [Effect::Kill]);

    // It takes one address down itself; the signal comes after that.
    let mut machine = serving(&[":1", ":2"], &["TAKEDOWN :1"]);
    let effects = stop(&mut machine);
    assert_has(&effects, &[takedown_to(0, ":1")]);
    assert!(!effects.contains(&Effect::Signal));
    assert_has(&machine.step(Event::Free(a(":1"))), &[Effect::Signal]);
}

#[test]
fn stop_of_a_server_that_is_replaced_kills_at_the_second() {
    let mut machine = claimed(serving(&[":1"], &[]));
    machine.step(Event::AskedStop(CLAIMER));
    assert_eq!(stop(&mut machine), []);
    assert_eq!(stop(&mut machine), [Effect::Kill]);
    assert_has(&machine.step(Event::Exited(137)), &[Effect::End(0)]);
}

#[test]
fn a_server_that_is_up_wants_one_more() {
    let mut machine = serving(&[":1"], &[]);
    assert_eq!(says(&mut machine, "READY :2"), [Effect::LookUp(a(":2"))]);
    let effects = machine.step(Event::Taken(a(":2"), vec![OLD]));
    assert_has(&effects, &[Effect::Lock(OLD), Effect::Arm(Timer::Ready, READY_TIMEOUT)]);
    assert!(!machine.is_free(), "it waits");
    assert_eq!(machine.step(Event::Claim(CLAIMER)), [waits("it is about to take over another address")]);
    // Perhaps they wait for each other: this bounds it, and the server goes on.
    let effects = machine.step(Event::Timer(Timer::Ready));
    assert_eq!(reports(&effects), ["it was not free in time (the server goes on without it)"]);
    assert_has(&effects, &[Effect::Unlock(OLD), Effect::Grant(CLAIMER, vec![a(":1")])]);

    let mut machine = serving(&[":1"], &[]);
    says(&mut machine, "READY :2");
    machine.step(Event::Taken(a(":2"), vec![OLD]));
    locked(&mut machine, &[":2"]);
    // It ended before it heard us: perhaps it was replaced by somebody else.
    assert_has(&machine.step(Event::OldGone(OLD)), &[Effect::LookUp(a(":2"))]);
    assert_has(&machine.step(Event::Vacant(a(":2"))), &[go_to(0, ":2")]);
    listens(&mut machine, ":2");
    assert!(machine.is_free());
}

#[test]
fn one_more_address_of_a_server_that_is_being_replaced_does_not_keep_it() {
    let mut machine = claimed(serving(&[":1"], &[]));
    says(&mut machine, "READY :2");
    machine.step(Event::Taken(a(":2"), vec![OLD]));
    let effects = machine.step(Event::AskedTakedown(CLAIMER, a(":1")));
    assert_has(&effects, &[Effect::Unlock(OLD), Effect::Signal]);
}

#[test]
fn an_orphan_is_taken_over() {
    let machine = Generation::adopted(settings(false), [a(":1")], Orphan::Alone).0;
    assert!(machine.is_free() && machine.is_up());
    let mut machine = claimed(machine);
    assert_has(&machine.step(Event::AskedStop(CLAIMER)), &[Effect::Signal]);
    assert_has(&machine.step(Event::Timer(Timer::Kill)), &[Effect::Kill]);
    assert_has(&machine.step(Event::Exited(137)), &[Effect::TellGone(CLAIMER), Effect::End(0)]);
}

#[test]
fn a_name_is_swapped_like_an_address() {
    let mut machine = new(true);
    says(&mut machine, "READY blue");
    let effects = machine.step(Event::Vacant(a("blue")));
    assert_has(&effects, &[go_to(0, "blue"), Effect::Up, Effect::Done]);
    let mut machine = claimed(machine);
    let effects = machine.step(Event::AskedTakedown(CLAIMER, a("blue")));
    assert_has(&effects, &[Effect::Signal]);
}

#[test]
fn a_lock_that_does_not_bring_the_address_makes_look_again() {
    let mut machine = new(true);
    says(&mut machine, "READY :1");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    assert_eq!(locked(&mut machine, &[":2"])[..1], [Effect::LookUp(a(":1"))]);
    let effects = machine.step(Event::Taken(a(":1"), vec![OldId(8)]));
    assert_has(&effects, &[Effect::Lock(OldId(8)), Effect::Unlock(OLD)]);
}

#[test]
fn a_quiet_server_that_speaks_after_all_was_slow() {
    let mut machine = new(false);
    assert_has(&machine.step(Event::Timer(Timer::Quiet)), &[Effect::Up, Effect::Done]);
    says(&mut machine, "READY :1");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    assert!(machine.may_be_cancelled());
    let effects = says(&mut machine, "FAIL it is broken");
    assert_has(&effects, &[Effect::Unlock(OLD), Effect::Kill]);
}

/// A new server that calls listen on `address` of an old one that shares it.
fn joining(address: &str) -> Generation {
    let mut machine = Generation::new(Settings { order: Order::Shared, ..settings(true) }).0;
    assert_has(&machine.step(Event::Calls(a(address), Meets::Server)), &[Effect::LookUp(a(address))]);
    assert_has(&machine.step(Event::Taken(a(address), vec![OLD])), &[Effect::Lock(OLD)]);
    machine.step(Event::Shares(OLD, Ok(())));
    assert_has(&locked(&mut machine, &[address]), &[Effect::Join(a(address))]);
    machine
}

/// Another claimer may have the lock from the caretaker before it is ours again.
#[test]
fn who_does_not_listen_yet_when_the_old_supervisor_dies_waits_for_the_lock_anew() {
    let mut machine = Generation::new(Settings { order: Order::Shared, ..settings(true) }).0;
    says(&mut machine, "READY :1");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    machine.step(Event::Shares(OLD, Ok(())));
    assert_has(&locked(&mut machine, &[":1"]), &[go_to(0, ":1")]);
    machine.step(Event::OldSilent(OLD));
    assert_eq!(machine.step(Event::Calls(a(":1"), Meets::Server)), []);
    assert_has(&locked(&mut machine, &[":1"]), &[Effect::Join(a(":1"))]);
}

#[test]
fn a_swap_on_a_shared_port() {
    let mut machine = joining(":1");
    let effects = machine.step(Event::Accepts(a(":1")));
    let [Effect::Commit, Effect::Switch(warrant), ..] = effects[..] else { panic!("{effects:?}") };
    assert_has(&effects, &[Effect::Take(warrant, a(":1")), Effect::AskDrain(warrant, OLD), Effect::Up]);
    assert_eq!(machine.step(Event::OldGone(OLD)), [Effect::Done]);

    let mut old = claimed(serving(&[":1"], &[]));
    let drain = [Effect::Drain, Effect::Arm(Timer::Drain, Duration::from_secs(10))];
    assert_eq!(old.step(Event::AskedDrain(CLAIMER)), drain);
    assert_eq!(old.step(Event::Quiesced), []);
    assert_has(&old.step(Event::Drained), &[Effect::StopDrain, Effect::Signal]);
}

#[test]
fn what_can_be_parked_is_parked_before_an_old_server_is_cut_off() {
    let drains = |words: &[&str]| {
        let mut old = claimed(serving(&[":1"], words));
        old.step(Event::AskedDrain(CLAIMER));
        old
    };
    let parks = |parting| [Effect::Park(parting), Effect::Arm(Timer::Drain, PARKS)];
    let mut old = drains(&[]);
    old.step(Event::Quiesced);
    assert_eq!(old.step(Event::Timer(Timer::Drain)), parks(Parting::IsCutOff));
    assert_eq!(old.step(Event::Quiesced), []);
    // Whatever hinders it.
    assert_has(&old.clone().step(Event::Timer(Timer::Drain)), &[Effect::CutOff, Effect::Signal]);
    assert_has(&old.clone().step(Event::Parked), &[Effect::CutOff, Effect::StopDrain, Effect::Signal]);
    assert!(!old.clone().step(Event::Drained).contains(&Effect::CutOff), "nothing is busy any more");
    assert!(old.step(Event::AskedStay(CLAIMER)).contains(&Effect::StopDrain));
    assert_eq!(old.step(Event::Parked), []);

    let mut overdue = drains(&[]);
    overdue.step(Event::Timer(Timer::Drain));
    assert_eq!(overdue.step(Event::Quiesced), parks(Parting::IsCutOff));
    let mut takes = drains(&["TAKEDOWN :1"]);
    assert_eq!(takes.step(Event::Quiesced), parks(Parting::DrainsItself));
    let effects = takes.step(Event::Parked);
    assert!(!effects.contains(&Effect::CutOff));
    assert_has(&effects, &[takedown_to(0, ":1")]);
}

#[test]
fn a_switch_is_turned_back() {
    let mut machine = joining(":1");
    machine.step(Event::Accepts(a(":1")));
    let effects = machine.step(Event::Exited(9));
    let place = |wanted: Effect| effects.iter().position(|e| *e == wanted).unwrap();
    assert!(place(Effect::Unhold(a(":1"))) < place(Effect::Unlock(OLD)), "who goes on registers after that");

    let mut old = claimed(serving(&[":1"], &[]));
    old.step(Event::AskedDrain(CLAIMER));
    assert_eq!(
        old.step(Event::ClaimerGone(CLAIMER)),
        [Effect::Disarm(Timer::Drain), Effect::StopDrain, Effect::Hold(a(":1"))]
    );
    assert!(old.is_free());
}

#[test]
fn a_new_server_that_is_told_to_stop_does_not_begin_to_listen_beside_the_old_one() {
    for called_before in [true, false] {
        let mut machine = Generation::new(Settings { order: Order::Shared, ..settings(true) }).0;
        let mut effects = Vec::new();
        if called_before {
            effects = machine.step(Event::Calls(a(":1"), Meets::Server));
            machine.step(Event::Taken(a(":1"), vec![OLD]));
        }
        effects.extend(stop(&mut machine));
        if !called_before {
            effects.extend(machine.step(Event::Calls(a(":1"), Meets::Server)));
        }
        assert_has(&effects, &[Effect::Deny(a(":1")), Effect::Signal]);
    }
}

#[test]
fn a_listen_on_an_address_that_cannot_be_had_does_not_wait_for_ever() {
    let mut machine = serving(&[":1"], &[]);
    machine.step(Event::Calls(a(":2"), Meets::Server));
    machine.step(Event::Taken(a(":2"), vec![OLD]));
    assert_has(&machine.step(Event::Timer(Timer::Ready)), &[Effect::Deny(a(":2")), Effect::Unlock(OLD)]);
}

#[test]
fn an_old_server_that_is_listened_beside_is_not_taken_down_before_the_new_one_accepts() {
    let mut machine = joining(":1");
    says(&mut machine, "READY 127.0.0.1:1");
    machine.step(Event::Taken(a("127.0.0.1:1"), vec![OLD, OldId(8)]));
    // Its port cannot be shared: in plain order it would go at once, and the first one with it.
    let effects = machine.step(Event::Locked(OldId(8), vec![a("127.0.0.1:1")]));
    assert!(!effects.iter().any(asks_for_harm), "{effects:?}");
    assert!(machine.step(Event::Accepts(a(":1"))).iter().any(asks_for_harm));
}

#[test]
fn a_switch_that_cannot_be_turned_back_any_more_is_reported() {
    // The old one says when it is told to go.
    let mut old = claimed(serving(&[":1"], &[]));
    old.step(Event::AskedDrain(CLAIMER));
    assert_has(&old.step(Event::Drained), &[Effect::TellReleased(CLAIMER, a(":1"))]);

    // The new one dies when it knows that.
    let mut machine = joining(":1");
    machine.step(Event::Accepts(a(":1")));
    machine.step(Event::OldReleased(OLD, a(":1")));
    let mut unharmed = machine.clone();
    assert_eq!(reports(&machine.step(Event::Exited(9))), ["nothing serves :1"]);
    // And when nobody waits for the old one any more.
    unharmed.step(Event::OldGone(OLD));
    assert_eq!(reports(&unharmed.step(Event::Exited(9))), [""; 0]);

    // It dies before it knows that.
    let effects = old.step(Event::ClaimerGone(CLAIMER));
    let why = "the new server has ended, and the old one was already told to go";
    assert_eq!(reports(&effects), [format!("nothing serves :1 ({why})")]);
}

#[test]
fn an_old_server_that_takes_only_some_of_its_addresses_down_is_told_when_its_drain_is_over() {
    let mut machine = claimed(serving(&[":1", ":2"], &["TAKEDOWN :1"]));
    machine.step(Event::AskedDrain(CLAIMER));
    // Until then it can go on with both.
    assert_eq!(machine.step(Event::Quiesced), []);
    let mut turned_back = machine.clone();
    turned_back.step(Event::ClaimerGone(CLAIMER));
    assert!(turned_back.is_free());
    assert_has(&machine.step(Event::Drained), &[takedown_to(0, ":1")]);
}

#[test]
fn an_address_that_comes_after_the_switch_is_switched_too_and_nobody_is_asked_twice() {
    let mut machine = Generation::new(Settings { order: Order::Shared, ..settings(true) }).0;
    machine.step(Event::Calls(a(":1"), Meets::Server));
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    machine.step(Event::Shares(OLD, Ok(())));
    locked(&mut machine, &[":1", ":2", ":3"]);
    says(&mut machine, "UP");
    assert_eq!(reports(&machine.step(Event::Accepts(a(":1")))).len(), 2, "two are abandoned");
    machine.step(Event::Calls(a(":2"), Meets::Server));
    assert_has(&machine.step(Event::Taken(a(":2"), vec![OLD])), &[Effect::Join(a(":2"))]);
    let effects = machine.step(Event::Accepts(a(":2")));
    assert!(effects.iter().any(|e| matches!(e, Effect::Switch(_))), "{effects:?}");
    assert!(!effects.iter().any(|e| matches!(e, Effect::AskDrain(..) | Effect::Report(..))), "{effects:?}");
}

/// A new server that was switched to, and has asked for the name that the old one has beside the port.
fn switched_with_a_name() -> Generation {
    let mut machine = Generation::new(Settings { order: Order::Shared, ..settings(true) }).0;
    machine.step(Event::Calls(a(":1"), Meets::Server));
    says(&mut machine, "READY blue");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    machine.step(Event::Taken(a("blue"), vec![OLD]));
    machine.step(Event::Shares(OLD, Ok(())));
    let effects = locked(&mut machine, &[":1", "blue"]);
    assert!(!effects.iter().any(asks_for_harm), "the port comes first: {effects:?}");
    // Nobody is to come any more: the quiet clock runs although the name waits.
    assert_has(&effects, &[Effect::Join(a(":1")), Effect::Arm(Timer::Quiet, QUIET)]);
    let effects = machine.step(Event::Accepts(a(":1")));
    assert!(effects.iter().any(|e| matches!(e, Effect::AskTakedown(_, OLD, name) if *name == a("blue"))));
    assert!(effects.iter().any(|e| matches!(e, Effect::AskDrain(_, OLD))), "{effects:?}");
    machine
}

#[test]
fn a_name_beside_a_shared_port_does_not_keep_the_switch_from_being_turned_back() {
    let mut machine = switched_with_a_name();
    assert_has(&stop(&mut machine.clone()), &[Effect::SwitchBack, Effect::AskStay(OLD)]);
    let effects = machine.step(Event::Exited(1));
    assert!(reports(&effects).iter().all(|text| !text.starts_with("nothing serves")), "{effects:?}");
}

#[test]
fn a_name_beside_a_shared_port_is_free_when_the_old_server_says_so_or_ends() {
    for takes in [&["TAKEDOWN blue"][..], &[]] {
        let mut old = claimed(serving(&[":1", "blue"], takes));
        old.step(Event::AskedTakedown(CLAIMER, a("blue")));
        old.step(Event::AskedDrain(CLAIMER));
        // Its drain takes as long as it may, and longer than one address may take.
        assert_eq!(old.step(Event::Timer(Timer::Partial)), []);
        let effects = old.step(Event::Drained);
        assert_has(&effects, &[Effect::TellReleased(CLAIMER, a(":1"))]);
        assert!(!effects.contains(&Effect::TellReleased(CLAIMER, a("blue"))), "{effects:?}");
        let mut other = old.clone();
        if takes.is_empty() {
            assert_has(&other.step(Event::Exited(0)), &[Effect::TellReleased(CLAIMER, a("blue"))]);
        } else {
            assert_has(&says(&mut other, "RELEASED blue"), &[Effect::TellReleased(CLAIMER, a("blue"))]);
        }
    }
}

#[test]
fn stop_while_the_old_server_drains_gives_it_the_port_back_at_once() {
    let mut machine = joining(":1");
    machine.step(Event::Accepts(a(":1")));
    let mut late = machine.clone();
    let effects = stop(&mut machine);
    let place = |wanted: Effect| effects.iter().position(|e| *e == wanted).unwrap();
    assert!(place(Effect::SwitchBack) < place(Effect::Signal), "it closes its listener then");
    assert_has(&effects, &[Effect::AskStay(OLD)]);
    // The lock comes back when it is gone.
    assert_has(&machine.step(Event::Exited(143)), &[Effect::Unlock(OLD)]);
    // Not to one that was told to go.
    late.step(Event::OldReleased(OLD, a(":1")));
    assert!(!stop(&mut late).contains(&Effect::SwitchBack));

    let mut old = claimed(serving(&[":1"], &[]));
    old.step(Event::AskedDrain(CLAIMER));
    assert_eq!(
        old.step(Event::AskedStay(CLAIMER)),
        [Effect::Disarm(Timer::Drain), Effect::StopDrain, Effect::Hold(a(":1"))]
    );
    assert_eq!(old.step(Event::Drained), []);
    assert_eq!(old.step(Event::ClaimerGone(CLAIMER)), [Effect::Hold(a(":1"))]);
    assert!(old.is_free());
}

/// A server that is up, alone at no address, with a shared port.
fn up_and_shared() -> Generation {
    let mut machine = Generation::new(Settings { order: Order::Shared, ..settings(false) }).0;
    says(&mut machine, "READY :9");
    machine.step(Event::Vacant(a(":9")));
    listens(&mut machine, ":9");
    assert!(machine.is_free());
    machine
}

#[test]
fn a_server_that_has_the_lock_of_another_and_does_not_bind_gives_it_back() {
    let mut machine = up_and_shared();
    says(&mut machine, "READY :1");
    let effects = machine.step(Event::Taken(a(":1"), vec![OLD]));
    assert_has(&effects, &[Effect::Lock(OLD), Effect::Arm(Timer::Ready, READY_TIMEOUT)]);
    machine.step(Event::Attended(OLD));
    machine.step(Event::Shares(OLD, Ok(())));
    let effects = locked(&mut machine, &[":1"]);
    assert_has(&effects, &[go_to(0, ":1")]);
    assert!(!effects.contains(&Effect::Disarm(Timer::Ready)), "{effects:?}");
    let effects = machine.step(Event::Timer(Timer::Ready));
    assert_has(&effects, &[Effect::Unlock(OLD), Effect::Unhold(a(":1"))]);
    assert!(machine.is_free() && machine.addresses() == [a(":9")]);
}

#[test]
fn an_old_server_that_is_lost_is_forgotten_at_all_its_addresses() {
    let mut machine = up_and_shared();
    // Beside the old server at one address, and with a second one to wait for at the other.
    says(&mut machine, "READY :1");
    machine.step(Event::Taken(a(":1"), vec![OLD]));
    machine.step(Event::Shares(OLD, Ok(())));
    locked(&mut machine, &[":1", ":2"]);
    assert_has(&machine.step(Event::Calls(a(":1"), Meets::Server)), &[Effect::Join(a(":1"))]);
    says(&mut machine, "READY :2");
    machine.step(Event::Taken(a(":2"), vec![OLD, OldId(8)]));
    let effects = machine.step(Event::OldLost(OLD));
    assert_has(&effects, &[Effect::Unhold(a(":1")), Effect::LookUp(a(":2"))]);
    machine.step(Event::Locked(OldId(8), vec![a(":2")]));
}

#[test]
fn what_a_claimer_that_has_gone_away_asked_for_is_not_asked_for_by_the_next() {
    let mut machine = claimed(serving(&[":1", "db"], &[]));
    machine.step(Event::AskedDrain(CLAIMER));
    machine.step(Event::AskedTakedown(CLAIMER, a("db")));
    machine.step(Event::Succeeded(CLAIMER));
    machine.step(Event::Alone);
    let next = ClaimerId(6);
    assert_eq!(machine.step(Event::Claim(next)), [Effect::Grant(next, machine.addresses())]);
    machine.step(Event::AskedTakedown(next, a(":1")));
    assert!(!machine.is_leaving() && !machine.is_asked_for(&a("db")));
}

#[test]
fn a_server_that_was_told_to_stop_waits_for_nobody() {
    let mut machine = swapping(&[":1"], &[":1"]);
    machine.step(Event::Stop { signalled: false });
    let other = OldId(8);
    assert_eq!(machine.step(Event::Taken(a(":1"), vec![other])), [Effect::Unlock(other)]);
}

#[test]
fn a_listener_that_was_closed_before_its_turn_is_not_proven() {
    let mut machine = new(false);
    machine.step(Event::Listens(a(":1")));
    machine.step(Event::Closed(a(":1")));
    let effects = machine.step(Event::Vacant(a(":1")));
    assert!(!effects.contains(&Effect::Join(a(":1"))), "{effects:?}");
}

#[test]
fn an_orphan_in_whose_place_another_serves_drains_and_goes_unless_it_is_alone() {
    let (mut machine, effects) = Generation::adopted(settings(true), [a(":1")], Orphan::Superseded);
    assert!(effects.contains(&Effect::Drain) && machine.state() == "draining");
    let waits = Effect::TellWaits(ClaimerId(1), "it is on its way out".into());
    assert_eq!(machine.step(Event::Claim(ClaimerId(1))), [waits]);
    let mut alone = machine.clone();
    assert!(machine.step(Event::Drained).contains(&Effect::Signal));
    assert!(machine.step(Event::Exited(0)).contains(&Effect::TellGone(ClaimerId(1))));
    let effects = alone.step(Event::Alone);
    assert!(effects.contains(&Effect::StopDrain));
    assert!(effects.contains(&Effect::Grant(ClaimerId(1), vec![a(":1")])));
}

#[test]
fn an_orphan_behind_which_older_ones_drain_is_replaced_at_once_and_taken_down_after_them() {
    let orphan = || Generation::adopted(settings(true), [a(":1")], Orphan::Follows).0;
    let (mut machine, mut replaced) = (orphan(), orphan());
    assert_eq!(machine.step(Event::Down(ClaimerId(1), vec![a(":1")])), [Effect::Hasten]);
    assert!(machine.step(Event::Alone).contains(&Effect::Signal));
    let claimer = ClaimerId(1);
    assert_eq!(replaced.step(Event::Claim(claimer)), [Effect::Grant(claimer, vec![a(":1")])]);
    replaced.step(Event::AskedTakedown(claimer, a(":1")));
    // An older one may listen there: it is looked for.
    let effects = replaced.step(Event::Exited(0));
    assert!(!effects.contains(&Effect::TellReleased(claimer, a(":1"))));
    assert!(effects.contains(&Effect::TellGone(claimer)));
}

#[test]
fn who_had_the_lock_of_an_orphan_has_it_again_before_those_that_came_meanwhile() {
    let mut machine = Generation::adopted(settings(true), [a(":1")], Orphan::Alone).0;
    let [heir, other] = [1, 2].map(ClaimerId);
    let grant = |to| [Effect::Grant(to, vec![a(":1")])];
    machine.step(Event::HeirAwaited);
    let waits = Effect::TellWaits(other, "the supervisor that was about to replace it comes first".into());
    assert_eq!(machine.step(Event::Claim(other)), [waits]);
    let mut left = machine.clone();
    assert_eq!(machine.step(Event::HeirClaims(heir)), grant(heir));
    assert_eq!(machine.step(Event::ClaimerGone(heir))[1..], grant(other));
    assert_eq!(left.step(Event::HeirGone), grant(other));
    // A person does not wait for a swap that may never go on.
    left = Generation::adopted(settings(true), [a(":1")], Orphan::Alone).0;
    left.step(Event::HeirAwaited);
    assert!(left.step(Event::Down(other, vec![a(":1")])).contains(&Effect::Signal));
}

#[test]
fn an_orphan_that_was_told_to_go_has_the_time_for_its_drain() {
    let (machine, effects) = Generation::adopted(settings(true), [], Orphan::Told);
    let Settings { drain, kill_after, .. } = settings(true);
    assert_eq!((machine.state(), &effects[..]), ("draining", &[Effect::Arm(Timer::Kill, drain + kill_after)][..]));
}

/// Whoever has its lock by then.
#[test]
fn a_server_in_whose_place_an_orphan_serves_drains() {
    let free = Generation::adopted(settings(true), [a(":1")], Orphan::Alone).0;
    for mut machine in [free.clone(), claimed(free)] {
        assert!(machine.step(Event::Superseded).contains(&Effect::Drain) && machine.state() == "draining");
        assert_eq!(machine.step(Event::Superseded), []);
        assert!(machine.step(Event::Drained).contains(&Effect::Signal));
    }
}
