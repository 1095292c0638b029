//! Exchanges over real connections, with threads as they are in use.

use super::grip::{Grip, Listing};
use super::parking::Stands;
use super::route::Route;
use super::waiting::{self, Kept, Patience, Tally};
use crate::drain::Drain;
use crate::sys::clock;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

fn patience() -> Patience {
    Patience { silent: PATIENCE, exchange: PATIENCE }
}

/// Connections whose server is gone, as their clients have them.
fn clients(count: usize, to: SocketAddr) -> (Vec<TcpStream>, Vec<Kept>) {
    let old = TcpListener::bind("127.0.0.1:0").unwrap();
    let connection = |_| {
        let client = TcpStream::connect(old.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let route = Route { to, from: Ipv4Addr::LOCALHOST.into() };
        (client, Kept { stream: old.accept().unwrap().0, route })
    };
    (0..count).map(connection).unzip()
}

fn start(kept: Vec<Kept>, patience: Patience) -> Receiver<Tally> {
    let (tells, told) = channel();
    waiting::start(kept, patience, move |tally| tells.send(tally).unwrap()).unwrap();
    told
}

/// Sends a request, and gives what came back of a new server that does this with its connection.
fn answered(request: &[u8], server: impl FnOnce(TcpStream) + Send + 'static) -> (Vec<u8>, Tally) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut clients, kept) = clients(1, listener.local_addr().unwrap());
    let told = start(kept, patience());
    let serves = thread::spawn(move || server(listener.accept().unwrap().0));
    clients[0].write_all(request).unwrap();
    let mut all = Vec::new();
    clients[0].read_to_end(&mut all).unwrap();
    drop(clients);
    serves.join().unwrap();
    (all, told.recv_timeout(PATIENCE).unwrap())
}

/// Reads until the end of a head, and gives what was read.
fn read_head(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        read.push(byte[0]);
    }
    read
}

const ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

#[test]
fn two_thousand_interim_answers_go_on() {
    let interim = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(2000);
    let sent = interim.clone();
    let (all, tally) = answered(b"GET / HTTP/1.1\r\n\r\n", move |mut stream| {
        read_head(&mut stream);
        stream.write_all(&[&sent, ANSWER].concat()).unwrap();
    });
    assert!(all.starts_with(&interim) && all.ends_with(b"Connection: close\r\n\r\n"), "{}", all.len());
    assert_eq!(tally, Tally { answered: 1, unanswered: 0 });
}

#[test]
fn what_is_no_body_ends_the_request_at_the_server() {
    let request = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n";
    let (all, tally) = answered(request, |mut stream| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut read = Vec::new();
        stream.read_to_end(&mut read).unwrap();
        assert!(read.ends_with(b"Connection: close\r\n\r\n"));
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    assert!(all.starts_with(b"HTTP/1.1 400 "));
    assert_eq!(tally, Tally { answered: 1, unanswered: 0 });
}

#[test]
fn a_head_is_all_that_answers_head_when_the_new_server_is_not_there() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (method, len) in [("HEAD", 0), ("GET", 35)] {
        let (mut clients, kept) = clients(1, nobody);
        let told = start(kept, patience());
        clients[0].write_all(format!("{method} / HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        assert!(read_head(&mut clients[0]).starts_with(b"HTTP/1.1 503 "));
        let mut body = Vec::new();
        clients[0].read_to_end(&mut body).unwrap();
        assert_eq!(body.len(), len, "{method}");
        drop(clients);
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Tally { answered: 0, unanswered: 1 });
    }
}

/// They take all turns there are, for two seconds.
#[test]
fn clients_that_stop_in_their_request_keep_nobody_waiting_for_long() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut clients, kept) = clients(257, listener.local_addr().unwrap());
    clients[1..].iter_mut().for_each(|client| client.write_all(b"G").unwrap());
    // Of those that have something at once the first is served last.
    clients[0].write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let told = start(kept, patience());
    let since = Instant::now();
    let serves = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        read_head(&mut stream);
        stream.write_all(ANSWER).unwrap();
    });
    assert!(read_head(&mut clients[0]).starts_with(b"HTTP/1.1 204 "));
    assert!(since.elapsed() < PATIENCE / 2, "{:?}", since.elapsed());
    drop(clients.remove(0));
    serves.join().unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Tally { answered: 1, unanswered: 256 });
}

/// Nobody knows what is under way on connections that could not be listed.
#[test]
fn what_was_not_listed_is_busy() {
    let (drain, now) = (Drain::start(Vec::new(), PATIENCE).unwrap(), clock::Instant::now());
    assert_eq!(Grip::default().look(&drain, now, PATIENCE), (Stands::Slow, 0));
    let mut listed = Grip { listing: Listing::Seen, ..Grip::default() };
    assert_eq!(listed.look(&drain, now, PATIENCE), (Stands::Idle, 0));
}
