//! The transcripts of serverswap(7), replayed line for line against real supervisors. The servers are
//! raw clients: this test decides what each says, and hears every line that it gets.

use super::Stage;
use super::text::block;
use crate::common::{DEADLINE, Running, alive, until};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

/// A server whose words are ours, and its serverswap.
pub struct Raw {
    orders: UnixStream,
    heard: Receiver<String>,
    generation: String,
    pid: i32,
    supervisor: Running,
}

impl Raw {
    pub fn start(stage: &Stage, name: &str, options: &str) -> Raw {
        let dir = stage.generation(1, &[]);
        let socket = stage.sandbox.path(name);
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/docs/raw.py");
        let supervisor = stage.start(&dir, &format!("exec serverswap {options} python3 {script} {}", socket.display()));
        let mut accepted = None;
        until("the raw server connects", || {
            accepted = listener.accept().ok();
            accepted.is_some()
        });
        let (orders, _) = accepted.unwrap();
        orders.set_nonblocking(false).unwrap();
        let mut lines = BufReader::new(orders.try_clone().unwrap()).lines().map_while(Result::ok);
        let hello = lines.next().expect("it says who it is");
        let (generation, pid) = hello.split_once(' ').unwrap();
        let (sender, heard) = channel();
        std::thread::spawn(move || lines.try_for_each(|line| sender.send(line)));
        Raw { orders, heard, generation: generation.to_owned(), pid: pid.parse().unwrap(), supervisor }
    }

    pub fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    fn says(&mut self, line: &str) {
        self.order(&format!("say {line}"));
    }

    /// The next line that it gets is this one; `...` in it stands for any text.
    pub fn hears(&self, wanted: &str) {
        let line = self.heard.recv_timeout(DEADLINE).unwrap_or_else(|e| panic!("waiting for {wanted:?}: {e}"));
        let fits = match wanted.split_once("...") {
            Some((begin, end)) => line.starts_with(begin) && line.ends_with(end) && line.len() > wanted.len() - 3,
            None => line == wanted,
        };
        assert!(fits, "it hears {line:?} and not {wanted:?}");
    }

    fn heard_nothing_more(&self) {
        if let Ok(line) = self.heard.try_recv() {
            panic!("it hears {line:?}");
        }
    }

    /// Gets the port, and takes its takedown on itself.
    pub fn serves(&mut self, stage: &Stage) {
        self.says(&format!("READY {}", stage.address()));
        self.hears(&format!("GO {}", stage.address()));
        self.order(&format!("listen {}", stage.port));
        self.says(&format!("TAKEDOWN {}", stage.address()));
        self.supervisor.says("is up");
    }

    /// Lets go of the port.
    pub fn releases(&mut self, stage: &Stage) {
        self.order("close");
        self.says(&format!("RELEASED {}", stage.address()));
    }

    pub fn ends_with(&mut self, status: i32) {
        assert_eq!(self.supervisor.wait(), status, "{}", self.supervisor.log());
        assert!(!alive(self.pid));
    }
}

/// Replays a transcript of the form `TIME WHO > LINE`, with events between the lines. `options` are
/// those of the new server.
struct Replay {
    stage: Stage,
    servers: BTreeMap<&'static str, Raw>,
    options: &'static str,
}

impl Replay {
    fn new(options: &'static str) -> Replay {
        let stage = Stage::new();
        let plain = if options.contains("--plain") { "--plain" } else { "" };
        let old = Raw::start(&stage, "old", plain);
        assert_eq!(old.generation, "1");
        Replay { stage, servers: [("old", old)].into(), options }
    }

    fn run(&mut self, transcript: &str) {
        let mut clock = 0.0;
        for line in transcript.lines() {
            let timed = line.split_once(' ').and_then(|(time, rest)| Some((time.parse::<f64>().ok()?, rest)));
            if let Some((time, _)) = timed {
                assert!(time >= clock, "time runs backwards: {line}");
                clock = time;
            }
            let text = timed.map_or(line, |(_, rest)| rest).trim();
            if let Some((who, said)) = text.split_once(" > ") {
                self.said(who, &self.stage.own(said));
            } else if let Some((who, heard)) = text.split_once(" < ") {
                self.heard(who, &self.stage.own(heard));
            } else {
                self.happened(text);
            }
        }
    }

    fn said(&mut self, who: &str, line: &str) {
        let server = self.servers.get_mut(who).unwrap();
        if line.starts_with("RELEASED ") {
            server.order("close");
        }
        server.says(line);
    }

    fn heard(&mut self, who: &str, line: &str) {
        let server = self.servers.get_mut(who).unwrap();
        server.hears(line);
        // That the old one binds what it may bind, the transcript does not say.
        if who == "old" && line.starts_with("GO ") {
            server.order(&format!("listen {}", self.stage.port));
            server.supervisor.says("is up");
        }
    }

    /// The events of the transcripts. One that is not here has to be shown here.
    fn happened(&mut self, text: &str) {
        match text {
            "(two days)" => {}
            "pid 200 is started with SERVERSWAP_GENERATION=2" => {
                self.start();
                assert_eq!(self.servers["new"].generation, "2");
            }
            "pid 200 is started" => self.start(),
            "the supervisor of 200 locks 100 and asks its supervisor" => self.servers["new"].heard_nothing_more(),
            // The servers of this test accept all the while.
            "pid 200 listens: it is up" | "pid 200 listens and accepts the probe: the switch; it is up" => {
                let port = self.stage.port;
                let new = self.servers.get_mut("new").unwrap();
                new.order(&format!("listen {port}"));
                new.supervisor.says(&format!("server {} is up (generation 2)", new.pid));
                assert_eq!(self.stage.answer(2).1, [2, self.servers["new"].pid as u64]);
            }
            "pid 100 has finished its last answer and exits" => {
                for server in self.servers.values_mut() {
                    assert!(!server.supervisor.ended(), "{}", server.supervisor.log());
                }
                self.servers.get_mut("old").unwrap().order("exit");
            }
            "serverswap of 100 ends with 0; serverswap -d of 200 returns 0" => {
                self.servers.get_mut("old").unwrap().ends_with(0);
                assert_eq!(self.servers.get_mut("new").unwrap().supervisor.wait(), 0);
            }
            "pid 200 is killed" => {
                let pid = self.servers["new"].pid;
                until("it is killed", || !alive(pid));
            }
            "serverswap of 200 says why and ends with 124" => {
                let new = self.servers.get_mut("new").unwrap();
                new.ends_with(124);
                assert!(new.supervisor.log().contains("no database"), "{}", new.supervisor.log());
            }
            other => panic!("the transcript says {other:?}, which this test does not know"),
        }
    }

    fn start(&mut self) {
        let new = Raw::start(&self.stage, "new", self.options);
        self.servers.insert("new", new);
    }

    /// The old one has heard nothing, and serves.
    fn old_never_learns_of_it(&mut self) {
        let old = self.servers.get_mut("old").unwrap();
        assert_eq!(old.heard.try_recv(), Err(TryRecvError::Empty));
        assert!(!old.supervisor.ended());
        let pid = old.pid as u64;
        assert_eq!(self.stage.answer(1).1, [1, pid]);
    }
}

#[test]
fn transcript_of_a_swap() {
    let mut replay = Replay::new("-d");
    replay.run(&block(7, "transcript: a swap"));
    replay.servers["new"].heard_nothing_more();
}

#[test]
fn transcript_of_a_swap_in_plain_order() {
    let mut replay = Replay::new("--plain -d");
    replay.run(&block(7, "transcript: a swap with --plain"));
    replay.servers["new"].heard_nothing_more();
}

#[test]
fn transcript_of_a_failure() {
    let mut replay = Replay::new("");
    replay.run(&block(7, "transcript: a failure"));
    replay.old_never_learns_of_it();
}

/// "Had it said nothing more after 0.20, ... with the same result."
#[test]
fn transcript_of_a_failure_that_says_nothing_more() {
    let mut replay = Replay::new("--ready-timeout 2.6");
    let transcript = block(7, "transcript: a failure");
    let until_then: String = transcript.lines().filter(|l| !l.starts_with("0.80")).map(|l| format!("{l}\n")).collect();
    assert!(until_then.lines().last().unwrap().starts_with("0.20"));
    replay.run(&until_then);
    let new = replay.servers.get_mut("new").unwrap();
    new.ends_with(124);
    let text = "it listens on nothing yet, and has said neither UP nor READY=1 (the new server is killed";
    assert!(new.supervisor.log().contains(text), "{}", new.supervisor.log());
    replay.old_never_learns_of_it();
}

/// The short one at the top of the page: `S: LINE   what it means`.
#[test]
fn transcript_of_the_whole() {
    let stage = Stage::new();
    let mut server = Raw::start(&stage, "server", "");
    let mut successor = None;
    for line in block(7, "transcript: the whole").lines() {
        let line = stage.own(line);
        let text = line.split("  ").next().unwrap();
        if let Some(said) = text.strip_prefix("S: ") {
            if said.starts_with("RELEASED") {
                server.order("close");
            }
            server.says(said);
        } else if let Some(heard) = text.strip_prefix("V: ") {
            server.hears(heard);
            if heard.starts_with("GO ") {
                server.order(&format!("listen {}", stage.port));
                server.supervisor.says("is up");
            }
        } else if line.contains("(hours pass; a successor listens") {
            let mut new = Raw::start(&stage, "successor", "");
            new.says(&format!("READY {}", stage.address()));
            new.hears(&format!("GO {}", stage.address()));
            new.order(&format!("listen {}", stage.port));
            successor = Some(new);
        } else if line.contains("the server exits)") {
            assert!(successor.is_some());
            stage.answer(2);
            server.order("exit");
            server.ends_with(0);
        } else {
            panic!("the transcript says {line:?}, which this test does not know");
        }
    }
    server.heard_nothing_more();
}
