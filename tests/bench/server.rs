//! The server of `make bench`: answers with its generation and pid over connections that stay open, and on
//! SIGTERM finishes what it has. It takes its socket from Server::Starter if that started it. Arguments: an
//! address; or `bind`: prints how many nanoseconds one bind takes, in the middle; or `ask ADDRESS`: prints how many
//! requests it gets answered in a second, each from a source port that it binds.

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};
use nix::sys::time::TimeVal;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

static REQUESTS: AtomicUsize = AtomicUsize::new(0);
static STOPS: AtomicUsize = AtomicUsize::new(0);

fn main() {
    let word = std::env::args().nth(1).expect("an address, or bind");
    if word == "bind" {
        return println!("{}", time_of_bind());
    }
    if word == "ask" {
        return println!("{}", asked(&std::env::args().nth(2).expect("an address")));
    }
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM]).expect("signals");
    std::thread::spawn(move || signals.forever().for_each(|_| STOPS.store(1, Ordering::SeqCst)));
    let listener = listener(&word);
    // So that it sees a signal: closing a socket that belongs to a successor too would not wake it.
    socket::setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::new(0, 10_000)).expect("a time");
    let generation = ["SERVERSWAP_GENERATION", "SERVER_STARTER_GENERATION"].iter().find_map(|n| std::env::var(n).ok());
    let name = format!("{} {}", generation.unwrap_or("0".into()), std::process::id());
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    while STOPS.load(Ordering::SeqCst) == 0 {
        match listener.accept() {
            Ok((stream, _)) => {
                // It has the listener's.
                stream.set_read_timeout(None).expect("no time");
                let answer = answer.clone();
                REQUESTS.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let _ = serve(stream, &answer);
                    REQUESTS.fetch_sub(1, Ordering::SeqCst);
                });
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => panic!("accept: {e}"),
        }
    }
    let started = Instant::now();
    while REQUESTS.load(Ordering::SeqCst) > 0 && started.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn listener(address: &str) -> TcpListener {
    match std::env::var("SERVER_STARTER_PORT") {
        Ok(ports) => {
            let fd = ports.rsplit('=').next().and_then(|fd| fd.parse().ok()).expect("ADDRESS=FD");
            // SAFETY: it was passed to us, and nobody else in this process uses it.
            unsafe { TcpListener::from_raw_fd(fd) }
        }
        Err(_) => {
            println!("listen {}", monotonic());
            TcpListener::bind(address).expect("the address is free")
        }
    }
}

fn serve(mut stream: TcpStream, answer: &str) -> std::io::Result<()> {
    let mut request = [0; 1024];
    loop {
        let len = stream.read(&mut request)?;
        stream.write_all(if len == 0 { b"" } else { answer.as_bytes() })?;
        if len == 0 || request[..len].windows(17).any(|part| part == b"Connection: close") {
            return Ok(());
        }
    }
}

/// A program that no swap is about: a client that wants to come from a port of its choice.
fn asked(address: &str) -> usize {
    let to: SockaddrIn = address.parse().expect("an address of IPv4");
    let (started, mut answered) = (Instant::now(), 0);
    for port in (20_000..30_000).cycle() {
        if started.elapsed() > Duration::from_secs(1) {
            break;
        }
        let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        socket::setsockopt(&fd, sockopt::ReuseAddr, &true).expect("an option");
        // One that is in use, or was a moment ago, is left out, as by whoever tries port after port.
        let is_bound = socket::bind(fd.as_raw_fd(), &SockaddrIn::new(127, 79, 0, 1, port)).is_ok();
        if is_bound && socket::connect(fd.as_raw_fd(), &to).is_ok() {
            let mut stream = TcpStream::from(fd);
            let (mut answer, question) = (Vec::new(), b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
            answered += usize::from(stream.write_all(question).is_ok() && stream.read_to_end(&mut answer).is_ok());
        }
    }
    answered
}

/// Each at an address of its own.
fn time_of_bind() -> u64 {
    let mut times: Vec<u64> = (1..=101)
        .map(|host| {
            let socket = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
            let socket = socket.expect("a socket");
            let before = monotonic();
            socket::bind(socket.as_raw_fd(), &SockaddrIn::new(127, 78, 0, host, 9)).expect("bind");
            monotonic() - before
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
