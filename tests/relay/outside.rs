//! Clients from another machine: a network namespace with a cable to another one.

use crate::client::Client;
use crate::common::{Running, SERVERSWAP, until};
use crate::{Scene, script};
use std::net::SocketAddr;
use std::process::Command;

/// Two network namespaces with a cable between them, until this value is dropped.
struct Cable(String);

/// The addresses at its ends: the server's, the client's.
const ENDS: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

impl Cable {
    fn new(name: &str) -> Option<Cable> {
        let cable = Cable(format!("ssw{name}{}", std::process::id()));
        let ip = |words: &[&str]| Command::new("ip").args(words).output().is_ok_and(|output| output.status.success());
        let [near, far] = cable.names();
        let made = ip(&["netns", "add", &near])
            && ip(&["netns", "add", &far])
            && ip(&["-n", &near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &far])
            && [(&near, ENDS[0]), (&far, ENDS[1])].iter().all(|(name, address)| {
                let address = format!("{address}/24");
                ip(&["-n", name, "addr", "add", &address, "dev", "cable"])
                    && ip(&["-n", name, "link", "set", "cable", "up"])
                    && ip(&["-n", name, "link", "set", "lo", "up"])
            });
        if !made {
            eprintln!("left out: no network namespace may be made here");
        }
        made.then_some(cable)
    }

    fn names(&self) -> [String; 2] {
        [format!("{}a", self.0), format!("{}b", self.0)]
    }

    /// Does something in one of the namespaces, in a thread of its own.
    fn inside<T: Send>(&self, end: usize, act: impl FnOnce() -> T + Send) -> T {
        let name = &self.names()[end];
        let file = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
        std::thread::scope(|scope| {
            let act = scope.spawn(move || {
                // SAFETY: the call takes a file that is open, and changes the namespace of this thread alone (setns(2)).
                let result =
                    unsafe { nix::libc::setns(std::os::fd::AsRawFd::as_raw_fd(&file), nix::libc::CLONE_NEWNET) };
                assert_eq!(result, 0);
                act()
            });
            act.join().unwrap()
        })
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in self.names() {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

/// Starts the server of a scene at the near end.
fn start(scene: &Scene, cable: &Cable) -> Running {
    let mut command = scene.sandbox.command("ip");
    command.args(["netns", "exec", &cable.names()[0], SERVERSWAP]).args(&scene.command).env("HOST", "0.0.0.0");
    let running = scene.sandbox.start(command);
    running.says("is up");
    running
}

/// Whom the new server has for the client of a relayed request from the far end; `None` if the request was lost.
fn peer(cable: &Cable, options: &[&str]) -> Option<String> {
    let scene = Scene::node(options);
    assert!(std::path::Path::new(&script("server.js")).exists());
    let mut old = start(&scene, cable);
    let address: SocketAddr = format!("{}:{}", ENDS[0], scene.port).parse().unwrap();
    let seen = cable.inside(1, || {
        let mut client = Client::to(address);
        assert_eq!(client.ask("GET /peer", b"").unwrap().text(), ENDS[1]);
        let new = start(&scene, cable);
        let seen = loop {
            match client.ask("GET /peer", b"") {
                Ok(answer) if answer.generation() == 2 => break Some(answer.text()),
                Ok(answer) => assert_eq!(answer.text(), ENDS[1]),
                Err(_) => break None,
            }
        };
        (seen, new)
    });
    let (seen, mut new) = seen;
    assert_eq!(old.wait(), 0, "{}", old.log());
    new.signal(nix::libc::SIGTERM);
    until("it ends", || new.ended());
    seen
}

#[test]
fn a_client_from_outside_is_relayed_if_that_is_asked_for_and_never_from_loopback() {
    let Some(cable) = Cable::new("relay") else { return };
    let seen = peer(&cable, &["--drain", "20", "--relay", "all"]);
    assert_eq!(seen.as_deref(), Some(ENDS[0]), "from the address that it has connected to");
    assert_eq!(peer(&cable, &["--drain", "2", "--relay", "local"]), None);
}
