//! Swaps in a slow network, where at every switch dozens of handshakes are under way: with round trips of
//! 100 ms a connection that reached the old server before the switch is accepted long after it.

mod common;

use common::{Failure, Load, Sandbox, get_from, plain_server, until};
use nix::libc;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Of a packet, one way.
const DELAY: Duration = Duration::from_millis(50);
const CLIENTS: u64 = 64;
/// Stands for the address of a server.
const ADDRESS: &str = "ADDRESS";

/// A network namespace with one end of a cable in it. It is gone with this handle and its last process.
struct Namespace {
    namespace: File,
    cable: File,
}

impl Namespace {
    fn new(address: &str) -> io::Result<Namespace> {
        let enter = || {
            // SAFETY: concerns the calling thread only, which ends here.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
                return Err(io::Error::last_os_error());
            }
            // A TUN device belongs to the namespace in which it was opened.
            let cable = File::options().read(true).write(true).open("/dev/net/tun")?;
            let mut request = [0u8; size_of::<libc::ifreq>()];
            request[..5].copy_from_slice(b"cable");
            request[16..18].copy_from_slice(&((libc::IFF_TUN | libc::IFF_NO_PI) as u16).to_ne_bytes());
            // SAFETY: the request is a whole ifreq (netdevice(7)).
            if unsafe { libc::ioctl(cable.as_raw_fd(), libc::TUNSETIFF as _, request.as_mut_ptr()) } < 0 {
                return Err(io::Error::last_os_error());
            }
            ip(&["link", "set", "lo", "up"])?;
            ip(&["address", "add", address, "dev", "cable"])?;
            ip(&["link", "set", "cable", "up"])?;
            Ok(Namespace { namespace: File::open("/proc/thread-self/ns/net")?, cable })
        };
        std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
    }

    /// Does something in this network; what it starts stays there.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            // SAFETY: concerns the calling thread only, which ends here.
            assert_eq!(unsafe { libc::setns(self.namespace.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    }
}

fn ip(words: &[&str]) -> io::Result<()> {
    let status = Command::new("ip").args(words).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("ip {}: {status}", words.join(" ")))) }
}

/// Two networks, with a cable between them on which every packet takes its time. Not every kernel has
/// the module for that (netem).
struct SlowNetwork {
    servers: Namespace,
    clients: Namespace,
}

impl SlowNetwork {
    const SERVER: [u8; 4] = [10, 77, 0, 1];

    /// `None`, and a line that says why, where there cannot be one.
    fn new() -> Option<SlowNetwork> {
        let build = || {
            let network =
                SlowNetwork { servers: Namespace::new("10.77.0.1/24")?, clients: Namespace::new("10.77.0.2/24")? };
            carry(&network.servers.cable, &network.clients.cable)?;
            carry(&network.clients.cable, &network.servers.cable)?;
            Ok(network)
        };
        let reason = |e: io::Error| {
            // Past the capture of the test harness.
            let _ = writeln!(io::stderr(), "slow_network: skipped: no network namespaces with TUN devices here ({e})");
        };
        build().map_err(reason).ok()
    }
}

impl Drop for SlowNetwork {
    fn drop(&mut self) {
        // Ends the threads that read it.
        for end in [&self.servers, &self.clients] {
            let _ = end.run(|| ip(&["link", "delete", "cable"]));
        }
    }
}

/// Carries packets one way, in order.
fn carry(from: &File, to: &File) -> io::Result<()> {
    let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
    let (sender, under_way) = mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        let mut packet = [0; 2048];
        while let Ok(len) = from.read(&mut packet) {
            let _ = sender.send((Instant::now() + DELAY, packet[..len].to_vec()));
        }
    });
    std::thread::spawn(move || {
        for (due, packet) in under_way {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let _ = to.write(&packet);
        }
    });
    Ok(())
}

/// Swaps `serverswap -d WORDS...` so many times under clients that open a connection per request: how
/// often which failure was met.
fn swaps(network: &SlowNetwork, sandbox: &Sandbox, port: u16, swaps: u64, words: &[&str]) -> BTreeMap<Failure, usize> {
    let deploy = || {
        let (status, log) = network.servers.run(|| sandbox.run(["-d"].iter().chain(words)));
        assert_eq!(status, 0, "{log}");
    };
    let address = SocketAddr::from((SlowNetwork::SERVER, port));
    deploy();
    let crowd: Vec<Load> = network.clients.run(|| {
        let before = Instant::now();
        until("the server answers", || get_from(address).is_ok());
        assert!(before.elapsed() >= 4 * DELAY, "the network is not slow");
        // Not in step: at every moment some are in a handshake.
        (0..CLIENTS).map(|client| Load::to(address, Duration::from_millis(client))).collect()
    });
    for generation in 2..=swaps + 1 {
        deploy();
        crowd.iter().for_each(|load| load.sees(generation));
    }
    let mut failures = BTreeMap::new();
    crowd.iter().for_each(Load::last);
    for seen in crowd.into_iter().map(Load::stop) {
        seen.failures.into_iter().for_each(|(failure, count)| *failures.entry(failure).or_default() += count);
    }
    network.servers.run(|| sandbox.take_down(&format!(":{port}")));
    failures
}

fn server(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(name).to_str().unwrap().to_owned()
}

/// The same with the words of a server: what stands for its address is replaced.
fn swapped(sandbox: &Sandbox, count: u64, words: &[&str]) -> Option<BTreeMap<Failure, usize>> {
    let network = SlowNetwork::new()?;
    let port = sandbox.port();
    let address = format!("0.0.0.0:{port}");
    let words: Vec<&str> = words.iter().map(|word| if *word == ADDRESS { &address } else { *word }).collect();
    Some(swaps(&network, sandbox, port, count, &words))
}

#[test]
fn slow_handshakes_are_finished_by_the_server_that_they_reached_python() {
    let Some(failures) = swapped(&Sandbox::shared(), 20, &["python3", &server("unmodified.py"), ADDRESS]) else {
        return;
    };
    assert_eq!(failures, [].into());
}

#[test]
fn slow_handshakes_are_finished_by_the_server_that_they_reached_node() {
    let Some(failures) = swapped(&Sandbox::shared(), 20, &["node", &server("unmodified.js"), ADDRESS]) else { return };
    assert_eq!(failures, [].into());
}

/// What the tests above could not see would not be there: in plain order the listener closes on handshakes.
#[test]
fn in_this_network_a_listener_that_closes_at_once_resets_handshakes() {
    let server = plain_server();
    let words = [server.to_str().unwrap(), ADDRESS, "takedown"];
    let Some(failures) = swapped(&Sandbox::new(), 3, &words) else { return };
    assert!(failures.contains_key(&Failure::Reset), "{failures:?}");
}
