use super::*;
use crate::sys::diag::Diag;
use std::net::{TcpListener, TcpStream};

#[test]
fn an_exact_query_tells_busy_from_idle() {
    use std::io::{Read, Write};
    let rest = Duration::from_millis(300);
    for bind in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(bind).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, peer) = listener.accept().unwrap();
        let ends = Ends { local: server.local_addr().unwrap(), peer, interface: 0 };
        let diag = Diag::open().unwrap();
        let find = || diag.find(ends).unwrap();
        let moved = || find().unwrap().moved.unwrap();
        let is_busy = |rest| find().unwrap().is_busy(rest);
        // Nothing has ever moved.
        while moved().rested() < rest {}
        assert!(!is_busy(rest) && is_busy(Duration::from_secs(60)));
        client.write_all(b"question").unwrap();
        while find().unwrap().unread != 8 {}
        assert!(is_busy(Duration::ZERO));
        server.read_exact(&mut [0; 8]).unwrap();
        while moved().received < 20 {}
        assert!(is_busy(Duration::ZERO));
        server.write_all(b"answer").unwrap();
        assert!(is_busy(rest));
        let until_idle = || {
            let started = std::time::Instant::now();
            while is_busy(rest) && started.elapsed().as_secs() < 30 {}
            assert!(!is_busy(rest));
        };
        until_idle();
        // Later than the last answer, whatever the clock has ticked meanwhile.
        client.write_all(b"?").unwrap();
        server.read_exact(&mut [0; 1]).unwrap();
        assert!(is_busy(Duration::ZERO));
        server.write_all(b"!").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        while !find().unwrap().is_closed_by_peer() {}
        until_idle();
        drop(server);
        // What another thread of the test forks has a copy until it executes its program.
        let closed = std::time::Instant::now();
        let is_busy = || find().is_some_and(|s| s.is_busy(Duration::from_secs(60)));
        while is_busy() && closed.elapsed().as_secs() < 30 {}
        assert!(!is_busy());
    }
}

/// Question, answer and acknowledgement within one tick, which an exact query cannot tell apart.
#[test]
fn a_connection_that_was_answered_at_once_is_idle_when_it_has_rested() {
    use std::io::{Read, Write};
    let rest = Duration::from_millis(50);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, peer) = listener.accept().unwrap();
    let ends = Ends { local: server.local_addr().unwrap(), peer, interface: 0 };
    let diag = Diag::open().unwrap();
    let find = || diag.find(ends).unwrap().unwrap();
    let mut ties = 0;
    while ties < 3 {
        client.write_all(b"?").unwrap();
        server.read_exact(&mut [0; 1]).unwrap();
        server.write_all(b"!").unwrap();
        client.read_exact(&mut [0; 1]).unwrap();
        let started = std::time::Instant::now();
        while find().is_busy(rest) && started.elapsed().as_secs() < 30 {}
        let moved = find().moved.unwrap();
        assert!(!find().is_busy(rest), "{moved:?}");
        ties += usize::from(moved.sent == moved.received);
    }
}

/// A connection of which the kernel says this: who sent something, and how many milliseconds ago.
fn connection(sent: Option<u32>, received: Option<u32>, age: u32) -> TcpSocket {
    let ends = Ends { local: "127.0.0.1:1".parse().unwrap(), peer: "127.0.0.1:2".parse().unwrap(), interface: 0 };
    let bytes = |at: Option<u32>| u64::from(at.is_some());
    let moved = Moved {
        sent: sent.unwrap_or(age),
        received: received.unwrap_or(age),
        bytes_sent: bytes(sent),
        bytes_received: bytes(received),
    };
    TcpSocket {
        local: Address::from(ends.local),
        ends,
        inode: 1,
        uid: 0,
        state: TCP_ESTABLISHED,
        unread: 0,
        unacknowledged: 0,
        families: Families::Own,
        moved: Some(moved),
    }
}

/// Every order of the last question, the last answer, and the time that a connection has to rest.
#[test]
fn a_connection_is_idle_when_it_has_rested_unless_the_last_byte_was_the_clients_alone() {
    let rest = Duration::from_secs(5);
    // Around the rest, a tick of the clock apart.
    let ages = [0, 4, 996, 1000, 4992, 4996, 5000, 5004, 60_000];
    let moments = || ages.into_iter().map(Some).chain([None]);
    for (sent, received) in moments().flat_map(|sent| moments().map(move |received| (sent, received))) {
        for age in ages.into_iter().filter(|age| sent.max(received).is_none_or(|oldest| *age >= oldest)) {
            let last_is_clients = match (sent, received) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(sent), Some(received)) => received < sent,
            };
            let youngest = sent.into_iter().chain(received).min().unwrap_or(age);
            let busy = last_is_clients || youngest < 5000;
            let socket = connection(sent, received, age);
            assert_eq!(socket.is_busy(rest), busy, "{socket:?}");
        }
    }
}

#[test]
fn data_under_way_is_busy_and_what_the_server_has_closed_is_not() {
    let rest = Duration::from_secs(1);
    let idle = connection(Some(2000), Some(2000), 2000);
    assert!(!idle.is_busy(rest));
    assert!(TcpSocket { unread: 1, ..idle.clone() }.is_busy(rest));
    assert!(TcpSocket { unacknowledged: 1, ..idle.clone() }.is_busy(rest));
    assert!(TcpSocket { moved: None, ..idle.clone() }.is_busy(rest));
    let half = |unread| TcpSocket { state: TCP_CLOSE_WAIT, unread, ..idle.clone() };
    assert!(!half(0).is_busy(rest) && !half(1).is_busy(rest) && half(2).is_busy(rest));
    // The end of what it sends is all that has come.
    let probe = connection(None, Some(0), 0);
    assert!(probe.is_busy(rest) && !TcpSocket { state: TCP_CLOSE_WAIT, unread: 1, ..probe }.is_busy(rest));
    for state in [TCP_SYN_RECV, TCP_LISTEN, TCP_NEW_SYN_RECV, 4, 5, 6, 7, 9, 11] {
        let closed = TcpSocket { state, unread: 1, unacknowledged: 1, moved: None, ..idle.clone() };
        assert!(!closed.is_busy(rest), "{state}");
    }
}
