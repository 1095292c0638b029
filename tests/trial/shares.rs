//! A canary gets its share of the new connections: the binomial bound says how near.

use crate::Scene;
use crate::common::{Answer, get_from};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

const CONNECTIONS: usize = 10_000;

/// Opens so many connections, from a few threads. Tells who answered how many.
fn ask(to: &[SocketAddr]) -> BTreeMap<Answer, usize> {
    let left = AtomicUsize::new(CONNECTIONS);
    let take = |left: usize| left.checked_sub(1);
    let client = |address: SocketAddr| {
        let mut answers = BTreeMap::<Answer, usize>::new();
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            *answers.entry(get_from(address).unwrap()).or_default() += 1;
        }
        answers
    };
    let client = &client;
    std::thread::scope(|scope| {
        let threads: Vec<_> = to.iter().map(|&address| scope.spawn(move || client(address))).collect();
        let mut all = BTreeMap::new();
        for (answer, count) in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
            *all.entry(answer).or_default() += count;
        }
        all
    })
}

/// Whether the new server got what three standard deviations of the binomial distribution allow.
fn is_within(got: usize, percent: f64) -> bool {
    let (count, share) = (CONNECTIONS as f64, percent / 100.0);
    (got as f64 - count * share).abs() <= 3.0 * (count * share * (1.0 - share)).sqrt()
}

fn gets_its_share(host: &'static str, words: &[&str], from: &[IpAddr], shares: &[&str]) {
    let scene = Scene::at(host, words);
    let first = scene.first();
    let to: Vec<SocketAddr> = from.iter().map(|&ip| SocketAddr::new(ip, scene.port)).collect();
    for share in shares {
        let mut new = scene.canary(share, &[]);
        let server = scene.pids(2).0;
        let percent = share.parse().unwrap();
        let counted = || {
            let answers = ask(&to);
            let of = |answer: Answer| answers.get(&answer).copied().unwrap_or(0);
            let (old, new) = (of(first), of(Answer { generation: 2, pid: server }));
            assert_eq!(old + new, CONNECTIONS, "{answers:?}");
            new
        };
        // One honest count in 370 is outside, so whoever is outside is counted once more: both are outside once in 137,000.
        let got = counted();
        assert!(is_within(got, percent) || is_within(counted(), percent), "{share}%: {got} of {CONNECTIONS}");
        assert_eq!(scene.say("--undo").0, 0);
        assert_eq!(new.wait(), 124, "{}", new.log());
        scene.is_alone(first);
    }
    assert!(scene.signals(1).is_empty());
    scene.is_unsteered();
    // Nor is it when one has replaced the other.
    let (status, log) = scene.deploy(&["--canary", "50:0.1"]);
    assert_eq!(status, 0, "{log}");
    scene.is_alone(get_from(to[0]).unwrap());
    scene.end();
}

fn v4() -> [IpAddr; 3] {
    [1, 2, 3].map(|nth| Ipv4Addr::new(127, 0, 0, nth).into())
}

#[test]
fn a_canary_gets_its_share() {
    gets_its_share("0.0.0.0", &[], &v4(), &["1", "20", "99"]);
}

#[test]
fn so_it_does_with_two_listeners_on_each_side() {
    gets_its_share("0.0.0.0", &["listeners=2"], &v4(), &["20"]);
}

#[test]
fn so_it_does_at_the_wildcard_of_both_families() {
    let from = [Ipv6Addr::LOCALHOST.into(), v4()[1], v4()[2]];
    gets_its_share("[::]", &["listeners=2"], &from, &["20"]);
}
