//! Requests and answers of every kind.

use crate::{Client, Scene, until};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

const SIZE: usize = 3 << 20;

fn node() -> Scene {
    Scene::node(&["--drain", "30"])
}

#[test]
fn an_answer_of_any_kind_comes_whole() {
    for (head, status, len) in [
        ("GET /length?size=3145728", 200, SIZE),
        ("GET /chunks?size=3145728", 200, SIZE),
        ("GET /length?size=0", 200, 0),
        ("HEAD /length?size=1000", 200, 0),
        ("GET /204", 204, 0),
        ("GET /304", 304, 0),
    ] {
        let (answer, _) = node().swap_under(|client| client.ask(head, b""));
        assert_eq!((answer.status, answer.body.len()), (status, len), "{head}");
        assert!(answer.body.iter().all(|&byte| byte == b'x'));
    }
}

#[test]
fn interim_answers_come_before_it() {
    let (answer, _) = node().swap_under(|client| client.ask("GET /hints", b""));
    assert_eq!(answer.interim, [103]);
}

#[test]
fn large_bodies_go_both_ways_at_once() {
    let body: Vec<u8> = (0..SIZE).map(|i| (i * 7 % 251) as u8).collect();
    let (answer, _) = node().swap_under(|client| {
        let mut writer = client.stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = writer
                    .write_all(format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes());
                let _ = writer.write_all(&body);
            });
            client.answer("POST")
        })
    });
    assert!(answer.body == body, "{} bytes came back", answer.body.len());
}

#[test]
fn chunks_come_as_they_were_sent() {
    let (answer, _) = node().swap_under(|client| {
        client.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for part in ["5\r\nhe", "llo\r", "\n6;a=b\r\n world\r\n0", "\r\nA: b\r\n\r\n"] {
            client.send(part)?;
        }
        client.answer("POST")
    });
    assert_eq!(answer.text(), "hello world");
}

#[test]
fn a_client_that_expects_100_waits_for_it() {
    let (answer, _) = node().swap_under(|client| {
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")?;
        assert_eq!(client.take(25)?, b"HTTP/1.1 100 Continue\r\n\r\n");
        client.send("id")?;
        client.answer("POST")
    });
    assert!(answer.text().ends_with(" id"));
}

/// Nobody knows what it speaks until then.
#[test]
fn a_request_on_an_idle_connection_is_relayed_if_its_server_is_still_ending() {
    const ENDS_AFTER: Duration = Duration::from_millis(300);
    loop {
        let scene = Scene::new(&["--drain", "2"], "node", "server.js", &["late"]);
        let mut old = scene.start();
        let mut client = scene.client();
        client.post("first").unwrap();
        let rested = Instant::now();
        until("it is idle", || rested.elapsed() > Duration::from_millis(1100));
        let new = scene.start();
        let told = scene.sandbox.path("ids.told");
        until("it is told", || told.exists());
        let since = std::fs::metadata(&told).unwrap().modified().unwrap();
        let sent = client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nid");
        // On a machine that is too busy it was too late.
        let in_time = since.elapsed().unwrap() < ENDS_AFTER / 2;
        let answer = sent.and_then(|()| client.answer("POST"));
        drop(client);
        assert_eq!(old.wait(), 0, "{}", old.log());
        scene.end(new);
        if in_time {
            let answer = answer.unwrap();
            // By the new server as a rule; a supervisor that was slow has kept nothing from the old one.
            assert!(answer.status == 200 && (answer.generation() == 1 || answer.closes()), "{answer:?}");
            break;
        }
    }
}

#[test]
fn a_request_in_pieces_is_relayed_whole() {
    let (answer, _) = node().swap_under(|client| {
        for piece in ["PO", "ST / HTT", "P/1.1\r\nHost: x\r\nContent-", "Length: 2\r\n\r", "\ni", "d"] {
            client.send(piece)?;
        }
        client.answer("POST")
    });
    assert!(answer.text().ends_with(" id"));
}

/// The second one never reached anybody: HTTP says that the client sends it again.
#[test]
fn of_requests_ahead_the_first_is_answered() {
    let scene = node();
    let (mut seen, mut nth) = (0, 0);
    scene.swap_under(|client| {
        nth += 1;
        let request = |which| format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n{which}{nth:05}");
        client.send(request('a') + &request('b'))?;
        let first = client.answer("POST")?;
        assert!(first.text().ends_with(&format!("a{nth:05}")), "{}", first.text());
        seen += 1;
        if !first.closes() {
            let second = client.answer("POST")?;
            assert!(second.text().ends_with(&format!("b{nth:05}")), "{}", second.text());
            seen += 1;
        }
        Ok(first)
    });
    let mut ids = scene.ids();
    assert_eq!(ids.len(), seen);
    ids.dedup();
    assert_eq!(ids.len(), seen);
}

/// It is never at rest between two parts for as long as counts, and is no request that ends soon.
#[test]
fn a_stream_that_pauses_is_not_cut_and_not_relayed() {
    let scene = node();
    let mut old = scene.start();
    let (mut stream, mut busy) = (scene.client(), scene.client());
    stream.send("GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    busy.post("first").unwrap();
    let new = scene.start();
    // A client that never rests beside it.
    let reader = std::thread::spawn(move || stream.answer("GET").unwrap());
    let mut nth = 0;
    while !reader.is_finished() {
        nth += 1;
        let answer = busy.post(&nth.to_string()).unwrap();
        if answer.closes() {
            busy = scene.client();
        }
    }
    let answer = reader.join().unwrap();
    assert_eq!((answer.generation(), answer.closes()), (1, false));
    assert!(answer.text().ends_with("1\nend\n"), "{}", answer.text());
    drop(busy);
    assert_eq!(old.wait(), 0, "{}", old.log());
    scene.end(new);
}

/// What does not begin like a request passes the filter: nothing of it is ever sent a second time.
#[test]
fn other_protocols_are_not_delayed() {
    let scene = Scene::new(&["--drain", "3"], "python3", "echo.py", &[]);
    let mut old = scene.start();
    let parts: [&[u8]; 4] = [b"\x16\x03\x01\x02\x00", b"\x81\x85abcdefghi", b"\0\0\x08\x06\0\0\0\0\0", b"hello\r\n"];
    let mut clients: Vec<Client> = parts.iter().map(|_| scene.client()).collect();
    let mut ask = || {
        for (client, part) in clients.iter_mut().zip(parts) {
            if client.send(part).is_err() || client.take(part.len()).is_err() {
                return false;
            }
            assert_eq!(client.resent(), 0, "{part:?}");
        }
        true
    };
    assert!(ask());
    let new = scene.start();
    // Until they are cut, as without the relay.
    let since = Instant::now();
    until("they are cut", || !ask());
    assert!(since.elapsed() > Duration::from_secs(2), "cut after {:?}", since.elapsed());
    assert_eq!(old.wait(), 0, "{}", old.log());
    assert!(old.log().contains("with 4 busy connections (they are cut)"), "{}", old.log());
    scene.end(new);
}

#[test]
fn without_the_relay_nothing_is_kept_from_the_server() {
    let scene = Scene::node(&["--drain", "2", "--no-relay"]);
    let mut old = scene.start();
    let mut client = scene.client();
    client.post("first").unwrap();
    let new = scene.start();
    let mut nth = 0;
    while client.post(&format!("n{nth}")).is_ok_and(|answer| answer.generation() == 1) {
        assert_eq!(client.resent(), 0);
        nth += 1;
    }
    assert!(client.stream.read(&mut [0]).is_ok_and(|len| len == 0) || client.send("x").is_err());
    assert_eq!(old.wait(), 0, "{}", old.log());
    assert!(!old.log().contains("answered by the new server"), "{}", old.log());
    scene.end(new);
}
