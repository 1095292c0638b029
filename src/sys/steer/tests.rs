use super::*;
use crate::sys::bpf::stmt;
use nix::libc;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

/// A listener that joins the group of its address.
fn member(port: u16) -> TcpListener {
    let socket = Socket::member(([127, 0, 0, 1], port).into());
    assert!(socket.listens() && socket.shares() && socket.is_tcp());
    TcpListener::from(OwnedFd::from(socket))
}

fn handle(listener: &TcpListener) -> Socket {
    Socket::new(listener.try_clone().unwrap().into())
}

/// Connects, and tells which of the listeners got it.
fn who(listeners: &[&TcpListener]) -> usize {
    let client = TcpStream::connect(listeners[0].local_addr().unwrap()).unwrap();
    let chosen = listeners.iter().position(|l| handle(l).queue().unwrap() == 1).unwrap();
    let mut accepted = listeners[chosen].accept().unwrap().0;
    drop(client);
    let _ = accepted.read(&mut [0]);
    chosen
}

#[test]
fn one_setsockopt_moves_all_new_connections() {
    let old = member(0);
    let new = member(old.local_addr().unwrap().port());
    for (first, rounds) in [(0, 20), (1, 20), (0, 20)] {
        handle(&old).steer(&Program::new(&[Range { first, count: 1 }], &[])).unwrap();
        for _ in 0..rounds {
            assert_eq!(who(&[&old, &new]), first as usize);
        }
    }
    handle(&old).release().unwrap();
}

#[test]
fn a_probe_reaches_the_new_socket_and_nobody_else_does() {
    let old = member(0);
    let new = member(old.local_addr().unwrap().port());
    let all = [Range { first: 0, count: 1 }];
    let probe = Probe::new(old.local_addr().unwrap(), false).unwrap();
    handle(&old).steer(&Program::new(&all, &[(&probe, 1)])).unwrap();
    assert_eq!(who(&[&old, &new]), 0);
    probe.connect().unwrap();
    while !probe.connected().unwrap() {}
    assert_eq!((handle(&old).queue().unwrap(), handle(&new).queue().unwrap()), (0, 1));
    assert_eq!(who(&[&old, &new]), 0);
    drop(probe);
    assert_eq!(handle(&new).queue().unwrap(), 1);
    drop(new.accept().unwrap());
    assert_eq!(handle(&new).queue().unwrap(), 0);
}

#[test]
fn several_sockets_share_what_is_steered_to_them() {
    let first = member(0);
    let port = first.local_addr().unwrap().port();
    let others: Vec<TcpListener> = (0..5).map(|_| member(port)).collect();
    let all: Vec<&TcpListener> = std::iter::once(&first).chain(&others).collect();
    let range = |first, count| Range { first, count };
    for chosen in [vec![range(1, 2)], vec![range(0, 1), range(2, 2), range(5, 1)]] {
        handle(&first).steer(&Program::new(&chosen, &[])).unwrap();
        let mut got = [0; 6];
        for _ in 0..120 {
            got[who(&all)] += 1;
        }
        for (index, got) in (0..).zip(got) {
            assert_eq!(got > 0, chosen.iter().any(|r| (r.first..r.first + r.count).contains(&index)), "{got:?}");
        }
    }
}

#[test]
fn each_of_many_probes_reaches_its_own_socket() {
    let first = member(0);
    let port = first.local_addr().unwrap().port();
    let others: Vec<TcpListener> = (0..150).map(|_| member(port)).collect();
    let probes: Vec<Probe> = others.iter().map(|_| Probe::new(first.local_addr().unwrap(), false).unwrap()).collect();
    let own: Vec<(&Probe, u32)> = probes.iter().zip(1..).collect();
    handle(&first).steer(&Program::new(&[Range { first: 0, count: 1 }], &own)).unwrap();
    for (probe, other) in probes.iter().zip(&others) {
        probe.connect().unwrap();
        while !probe.connected().unwrap() {}
        assert_eq!(handle(other).queue().unwrap(), 1);
    }
    assert_eq!(who(&[&first]), 0);
}

#[test]
fn a_filter_of_the_servers_own_is_never_replaced_or_taken_off() {
    let listener = member(0);
    let socket = handle(&listener);
    socket.attach(libc::SO_ATTACH_FILTER, &[stmt(libc::BPF_RET | libc::BPF_K, u32::MAX)]).unwrap();
    assert!(!socket.refuse_newcomers(None).unwrap());
    socket.accept_newcomers().unwrap();
    assert_eq!(socket.filter().unwrap().len(), 1);
    let listener = member(0);
    let socket = handle(&listener);
    assert!(socket.filter().unwrap().is_empty());
    let probe = Probe::new(listener.local_addr().unwrap(), false).unwrap();
    assert!(socket.refuse_newcomers(None).unwrap() && socket.refuse_newcomers(Some(&probe)).unwrap());
    probe.connect().unwrap();
    while !probe.connected().unwrap() {}
    socket.accept_newcomers().unwrap();
    assert!(socket.filter().unwrap().is_empty());
}
