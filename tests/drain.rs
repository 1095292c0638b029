//! The drain of an old server on a shared port: which connections are busy, and which are idle.

mod common;

use common::{DEADLINE, Running, SERVERSWAP, Sandbox, answered_by, until};
use nix::libc;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const OVERDUE: &str = "the time to drain is up";

fn server(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(name).to_str().unwrap().to_owned()
}

/// Replaces a server while clients of its own protocol have asked. Nothing moves for longer than the second that was once
/// enough to be idle, and for less than half of the time to drain.
fn swaps_under_requests(command: &[&str], ask: &[&str], swaps: u64, clients: u64) {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("127.0.0.1:{port}");
    let start = || {
        let (gate, held) = sandbox.gate("hold");
        let words: Vec<String> = command.iter().map(|word| word.replace("ADDRESS", &address)).chain([held]).collect();
        let running = sandbox.serverswap(["--drain", "30"].map(str::to_owned).iter().chain(&words));
        running.says("is up");
        (gate, running)
    };
    let (mut gate, mut old) = start();
    until("it listens", || TcpStream::connect(&address).is_ok());
    for generation in 1..=swaps {
        let mut program = sandbox.command(ask[0]);
        program.args(&ask[1..]).args([port.to_string(), clients.to_string(), "1".to_owned()]);
        let mut asking = sandbox.start(program);
        until("all have asked", || connections(port) as u64 == clients);
        gate.reached();
        let (next_gate, new) = start();
        let since = Instant::now();
        until("nothing has moved for a while", || since.elapsed() > Duration::from_millis(2500));
        gate.open();
        assert_eq!(asking.wait(), 0, "{}", asking.log());
        let log = asking.log();
        let answered = log.lines().filter(|line| line.starts_with(&format!("{generation} "))).count();
        assert_eq!((answered as u64, log.lines().count() as u64), (clients, clients), "{log}");
        assert_eq!(old.wait(), 0, "{}", old.log());
        assert!(!old.log().contains("warning"), "{}", old.log());
        (gate, old) = (next_gate, new);
    }
    sandbox.take_down(&address);
    assert_eq!(old.wait(), 0, "{}", old.log());
}

/// How many connections the server at a port has over which it was sent something, and has sent something.
fn connections(port: u16) -> usize {
    let filter = format!("sport = :{port}");
    let output = Command::new("ss").args(["-HtniO", "state", "established", &filter]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| line.contains("bytes_received:") && line.contains("bytes_sent:")).count()
}

/// What the server of TLS 1.3 sends after the request, its tickets, is no answer to it.
#[test]
fn a_request_over_tls_whose_answer_takes_a_while_is_not_cut() {
    let keys = Sandbox::new();
    let (key, cert) = (keys.path("key"), keys.path("cert"));
    let (key, cert) = (key.to_str().unwrap(), cert.to_str().unwrap());
    let words =
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", key, "-out", cert];
    let made = Command::new("openssl").args(words).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let (key, cert) = (format!("KEY={key}"), format!("CERT={cert}"));
    let command = ["env", &key, &cert, "node", &server("web.js"), "ADDRESS", "https"];
    swaps_under_requests(&command, &["python3", &server("ask.py"), "https:/hold"], 2, 10);
}

/// Neither are SETTINGS, the answer to a PING, or that of another stream.
#[test]
fn a_request_over_http_2_whose_answer_takes_a_while_is_not_cut() {
    let command = ["node", &server("web.js"), "ADDRESS", "http2"];
    swaps_under_requests(&command, &["node", &server("ask.js"), "/hold"], 2, 10);
}

/// Connections that were answered at once, as of a proxy on this machine: question, answer and acknowledgement within a
/// tick of the kernel's clock.
struct Kept(Vec<TcpStream>);

impl Kept {
    fn open(port: u16, count: usize) -> Kept {
        let mut kept = Kept((0..count).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect());
        for stream in &mut kept.0 {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let (mut answer, mut buffer) = (Vec::new(), [0; 1024]);
            while !is_whole(&answer) {
                let length = stream.read(&mut buffer).unwrap();
                assert!(length > 0, "it was closed");
                answer.extend_from_slice(&buffer[..length]);
            }
        }
        kept
    }

    /// Until nothing has moved on any of them for so long.
    fn rest(&self, time: Duration) {
        until("the connections have rested", || self.0.iter().all(|stream| rested(stream) > time));
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    body.len() == length.trim().parse().unwrap()
}

/// How long nothing has moved on a connection (tcp(7), `TCP_INFO`).
fn rested(stream: &TcpStream) -> Duration {
    use libc::{IPPROTO_TCP, TCP_INFO, getsockopt, socklen_t, tcp_info};
    // SAFETY: all zero is a valid value, and both pointers are valid through the call.
    let (failed, info) = unsafe {
        let (mut info, mut size) = (std::mem::zeroed::<tcp_info>(), size_of::<tcp_info>() as socklen_t);
        let info_at = (&raw mut info).cast();
        (getsockopt(stream.as_raw_fd(), IPPROTO_TCP, TCP_INFO, info_at, &raw mut size), info)
    };
    assert_eq!(failed, 0);
    Duration::from_millis(info.tcpi_last_data_sent.min(info.tcpi_last_data_recv).into())
}

/// The old server is told to go as soon as they have rested: not when the time to drain is up.
#[test]
fn silent_kept_connections_do_not_keep_the_old_server() {
    let (plain, node, python) = (common::plain_server(), server("unmodified.js"), server("unmodified.py"));
    let servers: [&[&str]; 3] = [&[plain.to_str().unwrap()], &["node", &node], &["python3", &python]];
    std::thread::scope(|scope| {
        for command in servers {
            scope.spawn(move || swaps_with_kept_connections(command));
        }
    });
}

fn swaps_with_kept_connections(command: &[&str]) {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!("127.0.0.1:{port}");
    let options: &[&str] = if command[0] == "node" { &["keep"] } else { &[] };
    let deploy = || {
        let words: Vec<&str> = [&["-d", "--drain", "6"], command, &[&address], options].concat();
        sandbox.run(words)
    };
    assert_eq!(deploy().0, 0);
    for generation in 1..=2 {
        assert_eq!(answered_by(port, generation).generation, generation);
        let kept = Kept::open(port, 20);
        // For the second one it is the drain that has to wait for it.
        if generation == 1 {
            kept.rest(Duration::from_secs(3));
        }
        let (status, log) = deploy();
        assert_eq!((status, log.contains("warning")), (0, false), "{log}");
    }
    assert!(!sandbox.said().contains(OVERDUE), "{}", sandbox.said());
    sandbox.take_down(&address);
}

/// A swap in its drain: the old server has a request to finish, and its supervisor says what became of that.
struct Draining {
    sandbox: Sandbox,
    gate: common::Gate,
    request: TcpStream,
    old: Running,
    address: String,
}

impl Draining {
    fn new(drain: &str) -> Draining {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let (gate, held) = sandbox.gate("hold");
        let (python, address) = (server("unmodified.py"), format!("127.0.0.1:{port}"));
        let words = ["--drain", drain, "python3", &python, &address, &held];
        let old = sandbox.serverswap(words);
        answered_by(port, 1);
        let own = SocketAddr::from(([127, 0, 0, 1], sandbox.port()));
        let mut request = connect_from(own, SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        request.set_read_timeout(Some(DEADLINE)).unwrap();
        request.write_all(b"GET /hold HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        gate.reached();
        let mut command = sandbox.command(SERVERSWAP);
        command.args(["python3", &python, &address]);
        sandbox.start(command).says("is up");
        answered_by(port, 2);
        Draining { sandbox, gate, request, old, address }
    }

    fn end(mut self) -> String {
        assert_eq!(self.old.wait(), 0, "{}", self.old.log());
        self.sandbox.take_down(&self.address);
        self.old.log()
    }
}

/// It came within the tick in which its connection was made: that nothing was ever sent over it tells.
#[test]
fn the_first_request_of_a_connection_is_not_cut_however_long_nothing_moves() {
    let mut swap = Draining::new("10");
    until("nothing has moved for over half of the time", || rested(&swap.request) > Duration::from_secs(6));
    swap.gate.open();
    let mut answer = String::new();
    swap.request.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\r\n\r\n1 "), "{answer:?}");
    let log = swap.end();
    assert!(!log.contains(OVERDUE), "{log}");
}

/// What was busy at the last look may be closed when the time to drain is up, and its client may have come back with the
/// same port, to the new server.
#[test]
fn a_connection_that_the_server_has_closed_is_not_counted_as_cut() {
    let mut swap = Draining::new("3");
    // It looks many times a second.
    let since = Instant::now();
    until("the supervisor has seen the connection", || since.elapsed() > Duration::from_millis(500));
    swap.old.signal(libc::SIGSTOP);
    swap.gate.open();
    let mut answer = String::new();
    swap.request.read_to_string(&mut answer).unwrap();
    let (own, peer) = (swap.request.local_addr().unwrap(), swap.request.peer_addr().unwrap());
    swap.request = TcpStream::connect(peer).unwrap();
    let mut again = None;
    until("the port is free", || {
        again = connect_from(own, peer).ok();
        again.is_some()
    });
    let mut again = again.unwrap();
    again.write_all(b"GET").unwrap();
    until("the time to drain is over", || rested(&again) > Duration::from_secs(4));
    swap.old.signal(libc::SIGCONT);
    let log = swap.end();
    assert!(!log.contains(OVERDUE), "{log}");
}

/// A connection with a port of its own, which may be had again as soon as that is closed.
fn connect_from(own: SocketAddr, peer: SocketAddr) -> nix::Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    };
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(own))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(peer))?;
    Ok(fd.into())
}

/// A client that has gone away waits for no answer, even if the server does not notice.
#[test]
fn a_connection_that_the_client_has_closed_is_not_counted_as_cut() {
    let swap = Draining::new("2");
    swap.request.shutdown(std::net::Shutdown::Both).unwrap();
    let log = swap.end();
    assert!(!log.contains(OVERDUE), "{log}");
}

/// And who still waits is.
#[test]
fn a_connection_that_waits_for_its_answer_is_counted_as_cut() {
    let mut swap = Draining::new("2");
    let mut answer = String::new();
    let _ = swap.request.read_to_string(&mut answer);
    assert_eq!(answer, "");
    assert_eq!(swap.old.wait(), 0, "{}", swap.old.log());
    let history = swap.sandbox.run_dir().join(format!("{}.history", swap.address));
    let history = std::fs::read_to_string(history).unwrap();
    let its = |line: &&str| line.starts_with("drain\t") && line.ends_with("\t1\t0\t0");
    assert_eq!(history.lines().filter(its).count(), 1, "{history}");
    let log = swap.end();
    assert!(log.contains(&format!("{OVERDUE} with 1 busy connections (they are cut)")), "{log}");
}
