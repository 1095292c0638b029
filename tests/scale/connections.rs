//! An old server with very many idle connections.

use super::common::{Load, Sandbox, answered_by, children, until};
use super::{Figures, end_of, pss, succeed, takedown, timed};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

/// Swaps of which the shortest counts.
const SWAPS: u64 = 2;

pub fn run(count: usize) -> Figures {
    let mut figures = Figures::default();
    let sandbox = Sandbox::in_memory();
    let port = sandbox.port();
    let address = format!("127.0.0.1:{port}");
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/unmodified.js");
    // Half of it is how long an idle connection has to rest.
    let words = ["--drain", "4", "node", server.to_str().unwrap(), &address, "keep"].map(str::to_owned);
    let mut old = sandbox.serverswap(&words);
    answered_by(port, 1);
    old.says("is up");
    for generation in 2..=SWAPS + 1 {
        let idle: Vec<TcpStream> = (0..count).map(|_| keep_alive(port)).collect();
        let crowd: Vec<Load> = (0..2).map(|_| Load::start(port, Duration::from_millis(2))).collect();
        until("the clients are answered", || crowd.iter().all(Load::is_answered));
        let (new, took) = timed(|| {
            let new = sandbox.serverswap(&words);
            answered_by(port, generation);
            new
        });
        figures.time("until the new server answers", took);
        // The old one holds its connections: its supervisor is at its biggest.
        let (pids, mut memory) = (children(old.pid()).into_iter().chain([old.pid()]).collect::<Vec<_>>(), 0);
        let (_, took) = timed(|| {
            while !old.ended() {
                memory = memory.max(pss([old.pid()]));
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        assert!(!pids.is_empty());
        let log = old.log();
        assert_eq!(end_of(old).0, 0, "{log}");
        assert!(!log.contains("busy connections"), "{log}");
        figures.time("from there until the old one is gone", took);
        if generation == 2 {
            figures.memory("memory of the old supervisor while it drains", memory);
        }
        // All of them were open until its end.
        let closed =
            idle.into_iter().filter_map(|mut stream| stream.read(&mut [0; 16]).ok()).filter(|len| *len == 0).count();
        assert_eq!(closed, count, "idle connections that ended otherwise");
        for load in crowd {
            load.sees(generation);
            let seen = load.stop();
            assert_eq!(seen.failures, [].into(), "{seen:?}");
        }
        old = new;
    }
    succeed(&sandbox, &takedown([address]));
    old.wait();
    sandbox.assert_clean();
    figures
}

/// A connection over which one request was answered.
fn keep_alive(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !answer.ends_with(b"\n") || answer.ends_with(b"\r\n") {
        let len = stream.read(&mut buffer).unwrap();
        assert!(len > 0, "it was closed");
        answer.extend_from_slice(&buffer[..len]);
    }
    stream
}
