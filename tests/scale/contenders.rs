//! Very many deploys of one address at the same moment.

use super::common::{Load, Running, Sandbox, answered_by, plain_server};
use super::{Figures, end_of, ours, pss, settled, succeed, takedown, timed};
use std::time::Duration;

pub fn run(count: usize) -> Figures {
    let mut figures = Figures::default();
    let sandbox = Sandbox::in_memory();
    let port = sandbox.port();
    let address = format!("127.0.0.1:{port}");
    let server = plain_server().to_str().unwrap().to_owned();
    // The probe's time would be that of each, one after the other.
    let words = ["-d".to_owned(), "--no-probe".into(), server, address.clone(), "mute".into()];
    succeed(&sandbox, &words);
    answered_by(port, 1);
    let crowd: Vec<Load> = (0..2).map(|_| Load::start(port, Duration::from_millis(2))).collect();
    let (memory, took) = timed(|| {
        let contenders: Vec<Running> = (0..count).map(|_| sandbox.serverswap(&words)).collect();
        // Nearly all of them wait now.
        let memory = pss(ours(&sandbox));
        for contender in contenders {
            let (status, log) = end_of(contender);
            assert_eq!(status, 0, "{log}");
        }
        memory
    });
    // They have their turn one after the other, while the others wait and are looked at.
    figures.time("each of them", took / count as u32);
    figures.memory("memory of all that wait, and their keepers", memory);
    // One server, its supervisor and its keeper, of all of them: and each has had its turn.
    settled(&sandbox, 2);
    assert_eq!(sandbox.processes().len(), 3);
    let rows = sandbox.status();
    assert!(rows.len() == 1 && rows[0][1] == (count + 1).to_string(), "{rows:?}");
    crowd.iter().for_each(|load| load.sees_server(rows[0][2].parse().unwrap()));
    for load in crowd {
        let seen = load.stop();
        assert_eq!(seen.failures, [].into(), "{seen:?}");
    }
    succeed(&sandbox, &takedown([address]));
    sandbox.assert_clean();
    figures
}
