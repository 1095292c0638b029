//! One server with very many addresses.

use super::common::{Sandbox, get, plain_server, until};
use super::{Figures, pss, settled, succeed, takedown, timed};

/// It just binds and listens.
pub fn found(addresses: usize) -> Figures {
    run(addresses, "mute")
}

/// It says READY for each, and TAKEDOWN.
pub fn said(addresses: usize) -> Figures {
    run(addresses, "takedown")
}

fn run(count: usize, flag: &str) -> Figures {
    let mut figures = Figures::default();
    let sandbox = Sandbox::in_memory();
    let ports: Vec<u16> = (0..count).map(|_| sandbox.port()).collect();
    let addresses: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let server = plain_server().to_str().unwrap().to_owned();
    let words: Vec<String> =
        ["-d".to_owned(), server, flag.to_owned()].into_iter().chain(addresses.iter().cloned()).collect();
    // With its first address it is up.
    let last = || sandbox.pidfile(addresses.last().unwrap()).is_some();
    let (_, took) = timed(|| {
        succeed(&sandbox, &words);
        until("it has all its addresses", last);
    });
    figures.time("start", took);
    answered_by(&ports, 1);
    for generation in 2..=4 {
        figures.time("swap", succeed(&sandbox, &words));
        answered_by(&ports, generation);
    }
    for generation in 5..=6 {
        figures.time("reload", succeed(&sandbox, &["--reload".to_owned(), addresses[0].clone()]));
        answered_by(&ports, generation);
    }
    figures.memory("memory of front, supervisor and keeper", pss(settled(&sandbox, 3)));
    for _ in 0..3 {
        let (rows, took) = timed(|| sandbox.status());
        assert!(rows.len() == count && rows.iter().all(|row| row[1] == "6" && row[5] == "serving"), "{rows:?}");
        figures.time("--status", took);
    }
    figures.time("--takedown", succeed(&sandbox, &takedown(addresses)));
    sandbox.assert_clean();
    figures
}

fn answered_by(ports: &[u16], generation: u64) {
    for &port in ports {
        let answer = get(port);
        assert!(answer.is_ok_and(|answer| answer.generation == generation), "{port}: {answer:?}, not {generation}");
    }
}
