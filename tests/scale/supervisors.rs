//! Very many servers, each under its own supervisor. Who belongs to a server is found in the list of all processes
//! (proc(5)), so what one swap costs grows with how many servers there are, though very slowly.

use super::common::{Sandbox, get, plain_server, until};
use super::{Figures, PATIENCE, pss, settled, succeed, takedown, timed};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

/// How many are started at the same time.
const LANES: usize = 4;
/// Of those that are swapped one after the other, the first few are measured.
const SAMPLE: usize = 10;

pub fn run(count: usize) -> Figures {
    let mut figures = Figures::default();
    let sandbox = Sandbox::in_memory();
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
    figures.time("start of all, for each", timed(all).1 / count as u32);
    answer(&sandbox, &ports, |_| 1);
    figures.memory("memory of all supervisors and keepers", pss(settled(&sandbox, 2 * count)));
    for _ in 0..3 {
        figures.time("--status", timed(|| sandbox.status()).1);
    }
    for &port in &ports[..SAMPLE] {
        figures.time("swap of one", succeed(&sandbox, &words(port)));
    }
    let swaps = |port: u16| u64::from(ports[..SAMPLE].contains(&port));
    answer(&sandbox, &ports, |port| 1 + swaps(port));
    figures.time("swap of all, for each", timed(all).1 / count as u32);
    answer(&sandbox, &ports, |port| 2 + swaps(port));
    let down = takedown(ports.iter().map(|port| format!("127.0.0.1:{port}")));
    figures.time("--takedown of all, for each", succeed(&sandbox, &down) / count as u32);
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

/// What `--status` says of a server is who answers.
fn answer(sandbox: &Sandbox, ports: &[u16], generation: impl Fn(u16) -> u64) {
    let rows: BTreeMap<String, Vec<String>> = sandbox.status().into_iter().map(|row| (row[0].clone(), row)).collect();
    assert_eq!(rows.len(), ports.len());
    for &port in ports {
        let row = &rows[&format!("127.0.0.1:{port}")];
        assert!(row[1] == generation(port).to_string() && row[5] == "serving", "{row:?}");
        let answer = get(port);
        assert!(answer.is_ok_and(|answer| answer.pid.to_string() == row[2]), "{answer:?}, not {row:?}");
    }
}
