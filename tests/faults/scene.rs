//! A swap that stands still at one of its steps, and goes on to its end.

use super::common::{self, Gate, Load, Running, Sandbox, alive, children, get, until};
use super::kept::Kept;
use super::observer::{self, Verdict};
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

/// Where a swap can stand still, in both orders if not said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The new server has not said READY, nor bound.
    Starting,
    /// The new server waits: another swap of the old one is under way, and on a shared port not proven yet.
    Queued,
    /// Shared: it listens, and has not accepted the probe.
    Proving,
    /// Shared: it gets half of the new connections.
    Canary,
    /// Shared: it gets all of them, and the old one is kept.
    Held,
    /// Shared: it gets the new connections; the old one has a busy one.
    Draining,
    /// The old server was told to go, and still listens.
    Told,
    /// Plain: the old server has let go of the port, and the new one has not bound it.
    Released,
    /// The old server has closed its listener, and still lives; the new one serves.
    Closed,
    /// The old server is gone.
    Steady,
}

/// All steps of an order.
pub fn steps(shared: bool) -> &'static [Step] {
    use Step::*;
    match shared {
        true => &[Starting, Queued, Proving, Canary, Held, Draining, Told, Closed, Steady],
        false => &[Starting, Queued, Told, Released, Closed, Steady],
    }
}

/// Who serves while the swap stands still, or when it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    Old,
    /// Each of both.
    Both,
    /// Or whoever came after it.
    New,
    Nobody,
}

impl Serving {
    /// Who the server is that is left, if one is.
    pub fn of(left: Option<i32>, is_old: impl Fn(i32) -> bool) -> Serving {
        match left {
            Some(server) if is_old(server) => Serving::Old,
            Some(_) => Serving::New,
            None => Serving::Nobody,
        }
    }
}

impl Step {
    pub fn serving(self, shared: bool) -> Serving {
        match self {
            Step::Starting | Step::Queued | Step::Proving => Serving::Old,
            Step::Told if !shared => Serving::Old,
            Step::Released => Serving::Nobody,
            Step::Canary => Serving::Both,
            Step::Held | Step::Draining | Step::Told | Step::Closed | Step::Steady => Serving::New,
        }
    }

    /// What the new server has to pass.
    pub fn trial(self) -> &'static [&'static str] {
        match self {
            Step::Canary => &["--canary", "50:3600"],
            Step::Held => &["--hold", "3600"],
            _ => &[],
        }
    }
}

/// The serverswap of a generation, its server and its keeper, if it has one.
pub struct Side {
    pub running: Running,
    pub server: i32,
    pub keeper: Option<i32>,
}

impl Side {
    fn start(sandbox: &Sandbox, options: &[&str], words: &[&str]) -> Side {
        let running = sandbox.plain(options, words);
        // What is gone before it is looked at was no server: in plain order a keeper does not stay.
        let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        let (mut server, mut keeper) = (None, None);
        until("there is a server, and on a shared port a keeper", || {
            let named = children(running.pid()).into_iter().filter_map(|pid| Some((pid, name(&pid)?)));
            let (keepers, servers): (Vec<_>, Vec<_>) = named.partition(|(_, name)| name == "serverswap\n");
            // Until it has closed what it inherited, all channels of its supervisor are its own too.
            let settled = keepers.iter().all(|(pid, _)| matches!(common::files_of(*pid), 1..=3));
            let first = |all: Vec<(i32, String)>| all.first().map(|(pid, _)| *pid);
            (server, keeper) = (first(servers), first(keepers));
            server.is_some() && settled && (keeper.is_some() || !sandbox.is_shared())
        });
        Side { running, server: server.unwrap(), keeper }
    }
}

pub const CLIENTS: usize = 3;
/// Between the requests of a client: often enough to meet whatever is open for long, and not so often that all the
/// machine does is answer.
pub const PAUSE: Duration = Duration::from_millis(10);

/// A swap that stands still at a step, under load.
pub struct Swap {
    pub sandbox: Sandbox,
    pub port: u16,
    pub step: Step,
    pub old: Side,
    pub new: Side,
    /// Who holds the lock of the old one that the new one is queued for.
    pub rest: Option<Side>,
    /// The server that was told to go: whatever happens, it goes.
    leaving: Option<i32>,
    pub crowd: Vec<Load>,
    /// Clients that keep their connections, where the old server has some when it is told to go.
    kept: Vec<Kept>,
    /// How many requests failed while it stood still.
    failed: usize,
    gates: Vec<Gate>,
    held: Option<TcpStream>,
}

impl Swap {
    /// `options` are those of both generations.
    pub fn halted(sandbox: Sandbox, step: Step, options: &[&str]) -> Swap {
        let shared = sandbox.is_shared();
        let port = sandbox.port();
        let address = format!("0.0.0.0:{port}");
        let mut gates = Vec::new();
        let mut gate = |stage: &str| {
            let (gate, argument) = sandbox.gate(stage);
            gates.push(gate);
            argument
        };
        // A server that takes TAKEDOWN can be told, and wait with its release and its end.
        let (mut first, mut between) = (vec![address.clone()], vec![address.clone()]);
        let mut second = between.clone();
        match step {
            Step::Starting => second.push(gate("before-ready")),
            Step::Proving => second.push(gate("accept")),
            Step::Draining => first.push(gate("hold")),
            Step::Queued if shared => between.push(gate("accept")),
            Step::Queued | Step::Told => first.extend(["takedown".into(), gate("before-release")]),
            Step::Released => {
                first.extend(["takedown".into(), gate("before-exit")]);
                second.push(gate("before-listen"));
            }
            Step::Closed => first.extend(["takedown".into(), gate("before-exit")]),
            Step::Canary | Step::Held | Step::Steady => {}
        }
        if shared {
            // They know nothing of serverswap where nothing is asked of them.
            for words in [&mut first, &mut between, &mut second] {
                if !words.contains(&"takedown".to_owned()) {
                    words.push("mute".into());
                }
            }
        }
        let start = |words: &[String], more: &[&str]| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            Side::start(&sandbox, &[options, more].concat(), &words)
        };
        let oldest = start(&first, &[]);
        common::answered_by(port, 1);
        oldest.running.says("is up");
        let held = (step == Step::Draining).then(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            gates[0].reached();
            stream
        });
        let crowd = crowd(port);
        crowd.iter().for_each(|load| load.sees_server(oldest.server));
        let goes = shared && matches!(step, Step::Draining | Step::Told | Step::Closed);
        let kept = (0..if goes { CLIENTS } else { 0 }).map(|_| Kept::start(port)).collect();
        let middle = (step == Step::Queued).then(|| {
            let middle = start(&between, &[]);
            gates[0].reached();
            middle
        });
        let mut new = start(&second, step.trial());
        match step {
            Step::Queued => {
                let others: Vec<&Side> = [&oldest].into_iter().chain(&middle).collect();
                until("the third one waits", || waits_for_lock(&new, &others));
            }
            Step::Canary | Step::Held | Step::Draining => new.running.says("is up"),
            Step::Steady => until("the old one is gone", || !alive(oldest.running.pid())),
            _ => gates.iter().for_each(Gate::reached),
        }
        assert!(!new.running.ended(), "{}", new.running.log());
        let told = matches!(step, Step::Told | Step::Released | Step::Closed) || step == Step::Queued && !shared;
        let leaving = told.then_some(oldest.server);
        let swap =
            Swap { sandbox, port, step, old: oldest, new, rest: middle, leaving, crowd, kept, failed: 0, gates, held };
        if let Some(serving) = swap.serving() {
            swap.crowd.iter().for_each(|load| load.sees_server(serving));
        }
        swap
    }

    /// The server that serves while the swap stands still.
    pub fn serving(&self) -> Option<i32> {
        match self.step.serving(self.sandbox.is_shared()) {
            Serving::Old => Some(self.old.server),
            Serving::New => Some(self.new.server),
            Serving::Both | Serving::Nobody => None,
        }
    }

    /// Lets the swap go on to its end, whatever that is.
    pub fn go_on(&mut self) {
        self.failed = self.crowd.iter().map(Load::failed).sum();
        self.gates.iter().for_each(Gate::open);
        self.held = None;
        if !self.step.trial().is_empty() {
            // It may have been decided already, or there is nobody left to ask.
            let is_on_trial = || {
                let rows = self.sandbox.status();
                rows.iter().any(|row| row[2] == self.new.server.to_string() && row[5].starts_with("canary"))
                    || rows.iter().any(|row| row[5] == "held" || row[5] == "not answering")
            };
            until("its trial is over", || {
                let (status, _) = self.sandbox.run(["--commit", &format!(":{}", self.port)]);
                status == 0 || !is_on_trial()
            });
        }
        let new = &mut self.new.running;
        // One that was silent for its whole time is up with no address so far: its swap is still to come.
        let up = format!(":{}: server {} is up", self.port, self.new.server);
        until("the swap is over", || new.ended() || new.log().contains(&up));
    }

    /// What the observer says of its end, of a last swap that has to work, and of a takedown that has to leave
    /// nothing. The error tells what is wrong.
    pub fn judged(mut self) -> Result<Verdict, String> {
        let (sandbox, port) = (&self.sandbox, self.port);
        let wrong = |what: String| {
            let (said, rows, servers) = (sandbox.said(), sandbox.status(), sandbox.processes());
            format!("{what}\n--- said:\n{said}--- status: {rows:?}\n--- processes: {servers:?}")
        };
        until("who was told to go is gone", || !self.leaving.is_some_and(alive));
        let left = observer::left(sandbox, port).map_err(wrong)?;
        let others = [Some(&self.old), self.rest.as_ref()];
        let is_other = |server| others.iter().flatten().any(|side| side.server == server);
        let serves = Serving::of(left, is_other);
        if serves == Serving::Old && !self.step.trial().is_empty() {
            until("whoever was undone has ended", || self.new.running.ended());
        }
        let status = self.new.running.ended().then(|| self.new.running.wait());
        let mut verdict = Verdict::new(serves, status);
        verdict.said = sandbox.said();
        if let Some(server) = left {
            self.crowd.iter().for_each(|load| load.sees_server(server));
        }
        verdict.halted = self.failed;
        for kept in self.kept {
            kept.stop().map_err(wrong)?;
        }
        // Who looks for a program takes connections away from whoever serves.
        verdict.add(self.crowd);
        // The next swap heals what this one has left.
        if left.is_some_and(|server| observer::is_supervised(sandbox, server)) {
            observer::is_sound(sandbox, port).map_err(|what| wrong(format!("before the next swap: {what}")))?;
        }
        let crowd = left.map_or_else(Vec::new, |_| crowd(port));
        let (status, _) = sandbox.deploy(&[&format!("0.0.0.0:{port}")]);
        if status != 0 {
            return Err(wrong(format!("the next swap: status {status}")));
        }
        let last = get(port).map_err(|failure| wrong(format!("after the next swap: {failure:?}")))?;
        crowd.iter().for_each(|load| load.sees_server(last.pid));
        verdict.add(crowd);
        observer::is_alone(sandbox, port, last.pid).map_err(wrong)?;
        observer::take_down(sandbox, port)?;
        for side in [Some(self.old), Some(self.new), self.rest].into_iter().flatten() {
            let Side { mut running, .. } = side;
            running.wait();
        }
        Ok(verdict)
    }
}

/// Clients that ask all the time.
pub fn crowd(port: u16) -> Vec<Load> {
    (0..CLIENTS).map(|_| Load::start(port, PAUSE)).collect()
}

/// Whether a claim is under way: the new supervisor has a connection to that of another server.
fn waits_for_lock(new: &Side, others: &[&Side]) -> bool {
    others.iter().any(|other| !super::channels::between(new.running.pid(), other.running.pid()).is_empty())
}
