//! Very many servers, each under its own supervisor.

use super::common::{Sandbox, get, plain_server, until};
use super::{Figures, PATIENCE, pss, settled, succeed, takedown, timed};
use std::sync::Mutex;
use std::time::Instant;

/// How many are started at the same time.
const LANES: usize = 4;
/// Of those that are swapped one after the other, the first few are measured.
const SAMPLE: usize = 10;

pub fn run(count: usize) -> Figures {
    let mut figures = Figures::default();
    let sandbox = Sandbox::shared();
    let ports: Vec<u16> = (0..count).map(|_| sandbox.port()).collect();
    let all = || {
        let queue = Mutex::new(ports.iter());
        std::thread::scope(|scope| {
            for _ in 0..LANES {
                scope.spawn(|| {
                    while let Some(&port) = { queue.lock().unwrap().next() } {
                        succeed(&sandbox, &words(port));
                    }
                });
            }
        });
    };
    figures.time("start of all", timed(all).1);
    answered_by(&ports, 1);
    figures.memory("memory of all supervisors and keepers", pss(settled(&sandbox, 2 * count)));
    for _ in 0..3 {
        let (rows, took) = timed(|| sandbox.status());
        assert!(rows.len() == count && rows.iter().all(|row| row[5] == "serving"), "{rows:?}");
        figures.time("--status", took);
    }
    for &port in &ports[..SAMPLE] {
        figures.time("swap of one", succeed(&sandbox, &words(port)));
    }
    answered_by(&ports[..SAMPLE], 2);
    answered_by(&ports[SAMPLE..], 1);
    figures.time("swap of all", timed(all).1);
    answered_by(&ports[..SAMPLE], 3);
    answered_by(&ports[SAMPLE..], 2);
    let down = takedown(ports.iter().map(|port| format!("127.0.0.1:{port}")));
    figures.time("--takedown of all", succeed(&sandbox, &down));
    let started = Instant::now();
    until("all processes are gone", || {
        assert!(started.elapsed() < PATIENCE);
        sandbox.processes().is_empty()
    });
    sandbox.assert_clean();
    figures
}

fn words(port: u16) -> Vec<String> {
    vec!["-d".into(), plain_server().to_str().unwrap().into(), format!("127.0.0.1:{port}"), "mute".into()]
}

fn answered_by(ports: &[u16], generation: u64) {
    for &port in ports {
        let answer = get(port);
        assert!(answer.is_ok_and(|answer| answer.generation == generation), "{port}: {answer:?}, not {generation}");
    }
}
