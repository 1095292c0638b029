//! Swaps of real servers, at least three in a row: who answers, and what is left afterwards.

mod common;

use common::{Sandbox, alive, answered_by, plain_server, until};

/// Swaps a command in the foreground three times and checks that each generation takes over and the
/// one before ends with 0.
fn three_swaps(sandbox: &Sandbox, port: u16, command: &[&str]) {
    let mut before = sandbox.serverswap(command);
    let mut last = answered_by(port, 1);
    for generation in 2..=4 {
        let after = sandbox.serverswap(command);
        let answer = answered_by(port, generation);
        assert_ne!(answer.pid, last.pid);
        assert_eq!(before.wait(), 0, "{}", before.log());
        until("the old server is gone", || !alive(last.pid));
        assert_eq!(sandbox.pidfile(&port.to_string()), Some(answer.pid), "{}", after.log());
        (before, last) = (after, answer);
    }
    assert_eq!(sandbox.run(["--takedown", &format!(":{port}")]).0, 0);
    assert_eq!(before.wait(), 0, "{}", before.log());
    sandbox.assert_clean();
}

#[test]
fn a_rust_server_with_takedown() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    three_swaps(&sandbox, port, &[plain_server().to_str().unwrap(), &format!(":{port}"), "takedown"]);
}

#[test]
fn a_rust_server_that_is_signalled() {
    let sandbox = Sandbox::new();
    let port = sandbox.port();
    three_swaps(&sandbox, port, &[plain_server().to_str().unwrap(), &format!(":{port}")]);
}
