//! A swap touches what it is about, and nothing else: sockets that are no addresses, calls of other namespaces and
//! users, filters and programs of a server's own.

mod common;

use common::{Commons, Sandbox, answered_by, get, get_from, listening, odd, until};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

/// The first of some ports that no other test has: above those of the sandboxes, below those that the kernel gives.
fn range() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    30_000
        + (std::process::id() as u16).wrapping_mul(56).wrapping_add(16 * NEXT.fetch_add(1, Ordering::Relaxed)) % 2_700
}

fn detached(sandbox: &Sandbox, words: &[String]) -> (i32, String) {
    sandbox.run([&["-d".to_owned(), "--ready-timeout".to_owned(), "20".to_owned()], words].concat())
}

#[track_caller]
fn swapped(sandbox: &Sandbox, words: &[String]) -> String {
    let (status, log) = detached(sandbox, words);
    assert_eq!(status, 0, "{log}");
    log
}

/// What a server says in one line that begins so.
fn line<'a>(log: &'a str, start: &str) -> &'a str {
    log.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start:?} in {log}"))
}

#[test]
fn sessions_of_one_server_that_look_for_free_ports_get_one_each() {
    for kind in ["udp", "tcp"] {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let words = odd("sessions", port, &[kind, &range().to_string()]);
        let distinct = |log: &str| {
            let ports: Vec<u16> = line(log, "sessions").split(' ').skip(1).map(|port| port.parse().unwrap()).collect();
            ports.len() == 3 && ports[0] != ports[1] && ports[0] != ports[2] && ports[1] != ports[2]
        };
        let log = swapped(&sandbox, &words);
        assert!(distinct(&log), "{log}");
        // And so does the next version beside it.
        let log = swapped(&sandbox, &words);
        assert!(distinct(&log), "{log}");
        answered_by(port, 2);
        sandbox.take_down(&format!("127.0.0.1:{port}"));
    }
}

#[test]
fn a_udp_port_of_a_stranger_is_never_shared() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    // It shares its port with whoever wants to, as far as the kernel is asked.
    let taken = range();
    let stranger = sharing_socket(taken);
    let log = swapped(&sandbox, &odd("sessions", port, &["udp", &taken.to_string()]));
    assert!(!line(&log, "sessions").split(' ').any(|word| word == taken.to_string()), "{log}");
    drop(stranger);
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

/// A UDP socket with SO_REUSEPORT.
fn sharing_socket(port: u16) -> std::os::fd::OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
    use std::os::fd::AsRawFd;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, sockopt::ReusePort, &true).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).unwrap();
    fd
}

#[test]
fn a_source_port_that_is_in_use_is_not_had_twice() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    let words = [
        vec!["env".to_owned(), format!("FAR={}", far.local_addr().unwrap().port())],
        odd("source_port", port, &[&range().to_string()]),
    ];
    let first = swapped(&sandbox, &words.concat());
    let second = swapped(&sandbox, &words.concat());
    assert_ne!(line(&first, "from"), line(&second, "from"));
    answered_by(port, 2);
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

#[test]
fn a_port_that_a_server_opens_later_is_no_address_before_its_time() {
    let sandbox = Sandbox::shared();
    let (port, other) = (sandbox.port(), sandbox.port());
    let go = sandbox.path("go");
    let words = odd("one_more", port, &[&other.to_string(), go.to_str().unwrap()]);
    let running = sandbox.serverswap(&words);
    running.says("is up");
    fs::write(&go, "").unwrap();
    get(port).unwrap();
    running.says("listens at the other port");
    assert_eq!(sandbox.pidfile(&format!("127.0.0.1:{other}")), None);
    // It shares it with nobody: not with the next version either.
    let taken = TcpListener::bind(("127.0.0.1", other)).unwrap_err();
    assert_eq!(taken.raw_os_error(), Some(nix::libc::EADDRINUSE));
    // What listens for half a minute is one.
    until("it is an address", || sandbox.pidfile(&format!("127.0.0.1:{other}")).is_some());
    let (status, log) = sandbox.run(["--takedown", &format!("127.0.0.1:{port}"), &format!("127.0.0.1:{other}")]);
    assert_eq!(status, 0, "{log}");
    sandbox.assert_clean();
}

#[test]
fn a_second_socket_at_the_same_place_gets_an_error_as_ever() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    for generation in 1..=2 {
        let log = swapped(&sandbox, &odd("twice", port, &[]));
        assert!(log.contains("the second: Address already in use"), "{generation}: {log}");
        answered_by(port, generation);
    }
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

#[test]
fn a_server_in_another_network_is_no_claim_on_one_here() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("left out: only root makes network namespaces");
    }
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    swapped(&sandbox, &odd("twice", port, &[]));
    let first = answered_by(port, 1);
    let inside = ["sh", "-c", "ip link set lo up; exec \"$@\"", "sh"].map(str::to_owned).to_vec();
    let words = [vec!["unshare".to_owned(), "-n".to_owned()], inside, odd("twice", port, &[])].concat();
    let other = sandbox.serverswap(&words);
    other.says("the second: Address already in use");
    assert_eq!(get(port), Ok(first));
    assert_eq!(sandbox.pidfile(&format!("127.0.0.1:{port}")), Some(first.pid));
    other.signal(nix::libc::SIGTERM);
    // It has no address here: whoever waits for one waits in vain.
    let (status, log) = sandbox.run([&["-d", "--ready-timeout", "4"].map(str::to_owned), &words[..]].concat());
    assert_eq!((status, get(port)), (124, Ok(first)), "{log}");
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

#[test]
fn a_worker_that_has_become_another_user_takes_no_port_of_its_users() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("left out: only root becomes another user");
    }
    for socket in ["own", "made"] {
        let sandbox = Sandbox::shared();
        let (port, own) = (sandbox.port(), sandbox.port());
        swapped(&sandbox, &odd("twice", port, &[]));
        let first = answered_by(port, 1);
        let log = swapped(&sandbox, &odd("thief", own, &[&port.to_string(), socket]));
        until("it has tried", || sandbox.said().contains("it gets: Address already in use"));
        assert_eq!(get(port), Ok(first), "{socket}: {log}");
        assert_eq!(listening(port), 1);
        sandbox.run(["--takedown", &format!("127.0.0.1:{own}")]);
        sandbox.take_down(&format!("127.0.0.1:{port}"));
    }
}

#[test]
fn a_server_that_the_kernel_lets_coexist_with_another_is_no_claim_on_it() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let four = [common::plain_server().display().to_string(), format!("0.0.0.0:{port}"), "mute".to_owned()];
    swapped(&sandbox, &four);
    let first = answered_by(port, 1);
    let six: SocketAddr = format!("[::1]:{port}").parse().unwrap();
    swapped(&sandbox, &odd("only_six", port, &[]));
    let second = get_from(six).unwrap();
    assert_eq!(get(port), Ok(first));
    // Each is replaced by its own.
    swapped(&sandbox, &odd("only_six", port, &[]));
    assert_eq!(get(port), Ok(first));
    assert_ne!(get_from(six).unwrap().pid, second.pid);
    swapped(&sandbox, &four);
    assert_ne!(get(port).unwrap().pid, first.pid);
    assert!(get_from(six).is_ok());
    assert_eq!(listening(port), 2);
}

/// Beside a server that has the pidfile of its address.
#[test]
fn a_daemon_beside_another_server_leaves_that_its_pidfile() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    swapped(&sandbox, &[common::plain_server().display().to_string(), format!("0.0.0.0:{port}"), "mute".to_owned()]);
    let first = answered_by(port, 1);
    swapped(&sandbox, &odd("only_six", port, &["daemon"]));
    until("its starter has ended", || sandbox.said().contains("goes on as the server"));
    let six: SocketAddr = format!("[::1]:{port}").parse().unwrap();
    let second = get_from(six).unwrap();
    assert_eq!(sandbox.pidfile(&port.to_string()), Some(first.pid));
    common::kill(second.pid, nix::libc::SIGTERM);
    until("it is gone", || get_from(six).is_err() && sandbox.status().len() == 1);
    assert_eq!(sandbox.pidfile(&port.to_string()), Some(first.pid));
    sandbox.take_down(&format!(":{port}"));
}

#[test]
fn a_server_that_asks_for_mptcp_is_swapped_by_tcp() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let words = odd("mptcp", port, &[]);
    let log = swapped(&sandbox, &words);
    assert!(log.contains("protocol 262"), "{log}");
    let load = common::Load::start(port, std::time::Duration::from_millis(1));
    for generation in 2..=4 {
        swapped(&sandbox, &words);
        load.sees(generation);
    }
    let seen = load.stop();
    assert_eq!(seen.failures, [].into(), "{seen:?}");
    sandbox.take_down(&format!("127.0.0.1:{port}"));
    // Without a filter of ours nothing is refused.
    let (status, log) = detached(&sandbox, &[vec!["--plain".to_owned()], words].concat());
    assert!(status == 0 && !log.contains("protocol 262"), "{log}");
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

#[test]
fn a_filter_of_the_servers_own_stays_through_a_swap() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let words = odd("own_filter", port, &[]);
    for generation in 1..=3 {
        swapped(&sandbox, &words);
        // It answers only as long as its filter is there.
        answered_by(port, generation);
    }
    // A swap that is turned back takes it off as little.
    let (status, log) = detached(&sandbox, &odd("own_filter", port, &["die"]));
    assert_eq!(status, 3, "{log}");
    let load = common::Load::start(port, std::time::Duration::from_millis(1));
    until("it is asked", || load.is_answered());
    let seen = load.stop();
    assert_eq!((seen.failures, seen.generations), ([].into(), vec![3]));
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

#[test]
fn a_locked_filter_leaves_the_old_server_alone() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let words = odd("own_filter", port, &["lock"]);
    swapped(&sandbox, &words);
    let first = answered_by(port, 1);
    let (status, log) = detached(&sandbox, &words);
    assert_ne!(status, 0, "{log}");
    assert!(log.contains("cannot be shared") && log.contains("the old one still serves"), "{log}");
    assert_eq!(get(port), Ok(first));
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

#[test]
fn a_program_that_steers_no_address_does_not_make_a_server_plain() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let words = odd("vain_program", port, &[]);
    for generation in 1..=2 {
        let log = swapped(&sandbox, &words);
        assert!(!log.contains("cannot be shared"), "{log}");
        answered_by(port, generation);
        assert_eq!(sandbox.status()[0][6], "shared");
    }
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

#[test]
fn an_address_of_odd_length_is_seen() {
    for length in ["17", "32", "64", "128"] {
        let sandbox = Sandbox::shared();
        let port = sandbox.port();
        let words = odd("odd_length", port, &[length]);
        for generation in 1..=2 {
            swapped(&sandbox, &words);
            answered_by(port, generation);
        }
        assert_eq!(sandbox.status()[0][6], "shared", "{length}");
        sandbox.take_down(&format!("127.0.0.1:{port}"));
    }
}

/// A name that is cut inside a letter is none in UTF-8.
#[test]
fn a_server_whose_name_is_not_utf8_is_seen() {
    use std::os::unix::ffi::OsStrExt;
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    // The kernel keeps 15 bytes: the last letter has two.
    let name = std::ffi::OsStr::from_bytes("plain-server-xé".as_bytes());
    let program: PathBuf = sandbox.path("").join(name);
    common::copy_program(&common::plain_server(), &program);
    let words = [program.as_os_str().to_owned(), format!("127.0.0.1:{port}").into(), "mute".into()];
    for generation in 1..=2 {
        let (status, log) = sandbox.run([&["-d".into()][..], &words].concat());
        assert_eq!(status, 0, "{log}");
        answered_by(port, generation);
    }
    assert_eq!(sandbox.status()[0][6], "shared");
    sandbox.take_down(&format!("127.0.0.1:{port}"));
}

/// By the system calls of a 32-bit program, which a 64-bit one may make too.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_server_by_32_bit_system_calls_is_seen() {
    let sandbox = Sandbox::shared();
    let source = sandbox.file("compat.c", COMPAT);
    let program = sandbox.path("compat");
    let built = Command::new("cc").args(["-O0", "-o"]).arg(&program).arg(&source).status();
    if !built.is_ok_and(|status| status.success()) {
        return eprintln!("left out: no C compiler");
    }
    if Command::new(&program).arg("probe").status().unwrap().code() != Some(0) {
        return eprintln!("left out: this kernel runs no 32-bit system calls");
    }
    for by in ["direct", "socketcall"] {
        let port = sandbox.port();
        let words = [program.display().to_string(), by.to_owned(), port.to_string()];
        for generation in 1..=2 {
            swapped(&sandbox, &words);
            answered_by(port, generation);
        }
        assert_eq!(sandbox.status()[0][6], "shared", "{by}");
        sandbox.take_down(&format!("127.0.0.1:{port}"));
    }
}

/// Binds and listens by int 0x80; its arguments have to lie below 4 GiB.
#[cfg(target_arch = "x86_64")]
const COMPAT: &str = r#"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
static long compat(long nr, long a, long b, long c) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(nr), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
    return (int)result;
}
int main(int argc, char **argv) {
    if (!strcmp(argv[1], "probe")) return compat(20, 0, 0, 0) == getpid() ? 0 : 1;
    unsigned *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in *at = (void *)(low + 16);
    at->sin_family = AF_INET;
    at->sin_port = htons(atoi(argv[2]));
    at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    long bound, listens;
    if (!strcmp(argv[1], "direct")) {
        bound = compat(361, fd, (long)at, sizeof *at);
        listens = compat(363, fd, 64, 0);
    } else {
        low[0] = fd, low[1] = (unsigned)(long)at, low[2] = sizeof *at;
        bound = compat(102, 2, (long)low, 0);
        low[0] = fd, low[1] = 64;
        listens = compat(102, 4, (long)low, 0);
    }
    if (bound || listens) { fprintf(stderr, "bind %ld, listen %ld\n", bound, listens); return 98; }
    for (;;) {
        int client = accept(fd, 0, 0);
        char text[4096], body[64];
        if (client < 0) continue;
        if (read(client, text, sizeof text) > 0) {
            int len = snprintf(body, sizeof body, "%s %d", getenv("SERVERSWAP_GENERATION"), getpid());
            len = snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len, body);
            if (write(client, text, len) < 0) perror("write");
        }
        close(client);
    }
}
"#;

/// Another user's socket and another user's process: neither can claim what is root's.
#[test]
fn another_users_serverswap_meets_a_port_of_root_as_any_program_would() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("left out: only root starts commands of another user");
    }
    let commons = Commons::new();
    let port = commons.sandbox.port();
    let shared = Sandbox::shared();
    swapped(&shared, &odd("twice", port, &[]));
    let first = answered_by(port, 1);
    let script = commons.sandbox.path("odd.py");
    fs::copy(format!("{}/tests/servers/odd.py", env!("CARGO_MANIFEST_DIR")), &script).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
    let run = commons.sandbox.path("nobody/run");
    let words = ["python3", script.to_str().unwrap(), "silent", &port.to_string()];
    let mut command = commons.sandbox.command(&commons.serverswap);
    command.uid(Commons::NOBODY).gid(Commons::NOBODY).env("SERVERSWAP_RUN_DIR", &run).args(words);
    let mut running = commons.sandbox.start(command);
    assert_ne!(running.wait(), 0, "{}", running.log());
    assert!(running.log().contains("Address already in use"), "{}", running.log());
    assert_eq!(get(port), Ok(first));
    shared.take_down(&format!("127.0.0.1:{port}"));
}
