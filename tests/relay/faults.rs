//! Somebody dies, or goes away, while requests are kept from the old server or relayed.

use crate::common::{DEADLINE, alive, children, limit, next_file_of};
use crate::{Client, Running, Scene, until};
use nix::libc;
use std::collections::BTreeSet;
use std::io::Read;
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
    scene.history_ends_with("\t0\t1");
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

/// Where no handle and no guard can be had, all goes as without the relay.
#[test]
fn a_supervisor_without_files_parks_nothing_and_ends() {
    let scene = Scene::node(&["--drain", "3"]);
    let mut old = scene.start();
    let mut clients: Vec<Client> = (0..4).map(|_| scene.client()).collect();
    let mut answered = Vec::new();
    let mut new = None;
    for nth in 0.. {
        if clients.is_empty() {
            break;
        }
        if nth == 1 {
            new = Some(scene.start());
            limit(old.pid(), libc::RLIMIT_NOFILE, next_file_of(old.pid()).unwrap()).unwrap();
        }
        let mut client = 0;
        clients.retain_mut(|kept| {
            client += 1;
            let id = format!("{client}.{nth}");
            // Closed by the end of its server, or answered by the new one.
            let answer = kept.post(&id).ok();
            answered.extend(answer.as_ref().map(|_| id));
            answer.is_some_and(|answer| !answer.closes())
        });
    }
    assert_eq!(old.wait(), 0, "{}", old.log());
    let done = scene.ids();
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), done.len(), "something was done twice");
    assert!(answered.iter().all(|id| done.contains(id)));
    scene.end(new.unwrap());
}

/// Of each ten connections one has something waiting. CONNECTIONS=10000 makes it large.
#[test]
fn of_many_connections_those_with_something_waiting_are_answered_and_the_others_closed() {
    let count = std::env::var("CONNECTIONS").map_or(500, |text| text.parse().expect("a number"));
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, most) = nix::sys::resource::getrlimit(limit).unwrap();
    nix::sys::resource::setrlimit(limit, most, most).unwrap();
    let scene = Scene::node(&["--drain", "4"]);
    let mut old = scene.start();
    let mut asked: Vec<String> = (0..count).map(|nth| format!("0.{nth}")).collect();
    let keep = |id: &String| {
        let mut client = scene.client();
        assert_eq!(client.post(id).unwrap().generation(), 1);
        client
    };
    let mut idle: Vec<Client> = asked.iter().map(keep).collect();
    let mut busy = idle.split_off(count - count / 10);
    let new = scene.start();
    for round in 1.. {
        if busy.is_empty() {
            break;
        }
        for (nth, client) in busy.iter_mut().enumerate() {
            asked.push(format!("{round}.{nth}"));
            let id = asked.last().unwrap();
            client.send(format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{id}", id.len())).unwrap();
        }
        busy.retain_mut(|client| client.answer("POST").unwrap().generation() == 1);
    }
    for mut client in idle {
        assert_eq!(client.stream.read(&mut [0; 16]).unwrap(), 0, "an idle connection that is not closed");
    }
    assert_eq!(old.wait(), 0, "{}", old.log());
    assert!(!old.log().contains("warning"), "{}", old.log());
    let mut done = scene.ids();
    asked.sort();
    done.sort();
    assert_eq!(asked, done, "asked, and done");
    scene.end(new);
}
