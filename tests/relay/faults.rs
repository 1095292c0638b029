//! Somebody dies, or goes away, while requests are kept from the old server or relayed.

use crate::common::{DEADLINE, alive, children};
use crate::{Client, Running, Scene, until};
use nix::libc;
use std::time::{Duration, Instant};

/// A client that keeps an attempt from its end: it sends a part of its request now and then.
fn endless(scene: &Scene) -> Client {
    let mut client = scene.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n").unwrap();
    client
}

/// A request that the filter has dropped, while another client keeps the old server from its end.
fn parked(scene: &Scene) -> (Running, Running, Client, Client) {
    let old = scene.start();
    let (mut client, mut other) = (scene.client(), endless(scene));
    client.post("first").unwrap();
    let new = scene.start();
    let deadline = Instant::now() + DEADLINE;
    let mut nth = 0;
    loop {
        assert!(Instant::now() < deadline, "nothing is dropped: {}", old.log());
        other.send("x").unwrap();
        client.send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{nth:05}")).unwrap();
        client.stream.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        let answer = client.answer("POST");
        client.stream.set_read_timeout(Some(DEADLINE)).unwrap();
        match answer {
            Ok(_) => nth += 1,
            Err(_) if client.resent() > 0 => return (old, new, client, other),
            Err(_) => {
                client.answer("POST").unwrap();
                nth += 1;
            }
        }
    }
}

/// Its filters go with it: the old server goes on with its connections.
#[test]
fn a_supervisor_that_is_killed_leaves_no_filter() {
    let scene = Scene::node(&["--drain", "40"]);
    let (old, new, mut client, other) = parked(&scene);
    let server = *children(old.pid()).iter().find(|pid| is_node(**pid)).unwrap();
    // A caretaker would lift them too: there is none without a new supervisor.
    new.signal(libc::SIGKILL);
    old.signal(libc::SIGKILL);
    assert_eq!(client.answer("POST").unwrap().generation(), 1);
    let resent = client.resent();
    for nth in 0..20 {
        assert_eq!(client.post(&format!("n{nth}")).unwrap().generation(), 1);
    }
    assert!(client.resent() <= resent + 1, "requests are still dropped");
    assert!(alive(server));
    drop((client, other));
    scene.sandbox.take_down(&format!("127.0.0.1:{}", scene.port));
    assert!(!alive(server));
}

fn is_node(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("node"))
}

/// An attempt that fails lifts its filters.
#[test]
fn a_request_that_was_kept_back_in_vain_is_answered_by_the_old_server() {
    let scene = Scene::node(&["--drain", "40"]);
    let (mut old, new, mut client, other) = parked(&scene);
    assert_eq!(client.answer("POST").unwrap().generation(), 1);
    drop((client, other));
    assert_eq!(old.wait(), 0, "{}", old.log());
    scene.end(new);
}

#[test]
fn a_client_that_goes_away_is_forgotten() {
    let scene = Scene::node(&["--drain", "40"]);
    let (mut old, new, client, other) = parked(&scene);
    drop((client, other));
    assert_eq!(old.wait(), 0, "{}", old.log());
    assert!(!old.log().contains("warning"), "{}", old.log());
    scene.end(new);
}

#[test]
fn a_new_server_that_dies_of_a_relayed_request_is_told_of_in_one_line() {
    let scene = Scene::node(&["--drain", "40"]);
    let mut old = scene.start();
    let mut client = scene.client();
    client.ask("GET /die", b"").unwrap();
    let mut new = scene.start();
    while client.ask("GET /die", b"").is_ok() {}
    drop(client);
    assert_eq!(new.wait(), 128 + libc::SIGKILL, "{}", new.log());
    assert_eq!(old.wait(), 0, "{}", old.log());
    assert!(old.log().contains("1 requests on kept connections got no answer"), "{}", old.log());
    scene.sandbox.assert_clean();
}

/// It may send for as long as any request may take, and the supervisor of the old server ends then.
#[test]
fn a_client_that_sends_for_ever_is_cut() {
    let scene = Scene::node(&["--drain", "20"]);
    let mut old = scene.start();
    let mut client = scene.client();
    client.post("first").unwrap();
    let new = scene.start();
    let kept_back = |client: &Client| {
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(300) && client.resent() == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        client.resent() > 0
    };
    loop {
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n").unwrap();
        if kept_back(&client) {
            break;
        }
        client.send([b'x'; 500]).unwrap();
        client.answer("POST").unwrap();
    }
    let since = Instant::now();
    until("it is cut", || client.send("x").is_err());
    assert!(since.elapsed() > Duration::from_secs(2), "cut after {:?}", since.elapsed());
    assert_eq!(old.wait(), 0, "{}", old.log());
    scene.end(new);
}
