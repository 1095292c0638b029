//! The command line: what was typed becomes a [`Request`]. Pure; it touches no file and ends no process.

#![forbid(unsafe_code)]

mod trial;
mod values;

pub use trial::{Check, Trial, Verdict};

use crate::address::Address;
use crate::error::Result;
use crate::protocol::Surroundings;
use crate::record::parse_number;
use crate::relay::Reach;
use crate::sys::pid::Pid;
use lexopt::prelude::*;
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use values::{count, extension, reach, seconds, signal, text, usage, value};

/// What the user wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Start COMMAND and swap it in.
    Run(Run),
    /// `--status`, of all servers if none is named.
    Status(Vec<Target>, Form),
    /// `--reload`.
    Reload(Vec<Target>, Surroundings),
    /// `--takedown`.
    Takedown(Vec<Target>),
    /// `--undo`, `--commit`.
    Decide(Vec<Target>, Verdict),
    /// `--client NAME`: print a client library.
    Client(String),
    /// `--help`.
    Help,
    /// `--version`.
    Version,
}

/// A server that a person names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The one that has this address.
    At(Address),
    /// `@PID`: the one with this supervisor or main process.
    Of(Pid),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::At(address) => address.fmt(f),
            Target::Of(pid) => write!(f, "@{pid}"),
        }
    }
}

/// How the status is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A table.
    Table,
    /// `--json`.
    Json,
}

/// The value of `--log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// `-`: where the output of the caller goes.
    Caller,
    /// The end of this file.
    File(PathBuf),
}

/// When `-d` returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// When the old server is gone.
    Gone,
    /// `--wait up`: when the new server has all new connections.
    Up,
}

/// A server to run, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// COMMAND and its ARGs; never empty.
    pub command: Vec<OsString>,
    /// Stay in the background once the swap is done.
    pub detach: bool,
    /// When that returns.
    pub wait: Wait,
    /// Where its output goes; `None`: the default of its situation.
    pub log: Option<Destination>,
    /// Do not watch or share the port.
    pub plain: bool,
    /// What the new server has to pass.
    pub trial: Trial,
    /// How long the new server may take; `None`: the default of its situation.
    pub ready_timeout: Option<Duration>,
    /// How long this server may finish what it has when it is replaced on a shared port.
    pub drain: Duration,
    /// How many older servers may drain behind this one; of more, the oldest is told to stop.
    pub max_draining: usize,
    /// Whose requests on kept connections are answered by the server that replaces this one.
    pub relay: Reach,
    /// From being told to stop to SIGKILL.
    pub kill_after: Duration,
    /// How this server is told to stop.
    pub stop_signal: Signal,
}

impl Run {
    /// The command for people, its words joined by spaces.
    pub fn line(&self) -> String {
        self.command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

/// Everything the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cli {
    /// What to do.
    pub request: Request,
    /// `--run-dir`.
    pub run_dir: Option<PathBuf>,
    /// -1 for every `-q`, +1 for every `-v`.
    pub verbosity: i32,
}

/// `--help`.
pub const HELP: &str = "\
Usage: serverswap [OPTION]... [--] COMMAND [ARG]...
       serverswap --status [--json] [ADDRESS]...
       serverswap --reload [--fresh] ADDRESS...
       serverswap --undo ADDRESS... | --commit ADDRESS...
       serverswap --takedown ADDRESS...
       serverswap --client node
       serverswap --help | --version

Starts a server. Run again, it starts the new version beside the old one on the
same port, gives it the new connections once it accepts them, and takes the old
one down. A COMMAND that ends in .js, .mjs or .cjs is run by node.

  -d, --detach             stay in the background once the swap is done
      --wait WHEN          with -d: return when the old server is gone [gone], or
                           up: when the new one has all new connections
      --log FILE           append the server's output to FILE; -: where the
                           caller's goes [with -d, unless that is a file:
                           NAME.log below /var/log/serverswap (root) or
                           ~/.local/state/serverswap]
      --plain              do not watch or share the port: only a server that
                           says READY swaps
      --no-probe           do not prove by a connection that the new server accepts
      --check COMMAND      before the switch, COMMAND has to succeed in a shell; only
                           the new server answers at $SERVERSWAP_PREVIEW
      --check-http PATH    the same with GET PATH: a status of 200 to 399
      --canary P:SECS,...  then it gets P per cent of the new connections for SECS,
                           then the next step; if it fails, the old one gets all
      --hold SECS          after the switch, keep the old server for SECS: --undo
                           gives it all connections again [0]
      --ready-timeout SECS the new server must be up within this time, else it is
                           killed and nothing changes; 0 waits for ever [60;
                           a first server in the foreground: none]
      --drain SECS         how long this server, when it is replaced, may finish
                           what it has before it is told to stop [10]
      --max-draining N     when more than N older servers still drain, the oldest
                           is told to stop [8]
      --relay WHOSE        whose requests on kept connections are answered by the
                           new server when this one is replaced: clients' on this
                           machine [local], or all
      --no-relay           nobody's
      --kill-after SECS    from being told to stop to SIGKILL [10]
      --stop-signal SIGNAL how this server is told to stop [TERM]
      --run-dir DIR        where servers find each other, also $SERVERSWAP_RUN_DIR
                           [/run/serverswap (root) or
                           ~/.local/state/serverswap/run]
  -q, --quiet              say less (twice: only errors)
  -v, --verbose            say more
      --status             show the servers
      --json               with --status: as JSON
      --reload             start a fresh copy of the same command and swap it in
      --fresh              with --reload: in the caller's environment and directory
      --undo               during --canary or --hold: back to the old server
      --commit             during these: all to the new server, and the old one goes
      --takedown           stop the servers
      --client NAME        print the client library (NAME: node)
  -h, --help               show this help
  -V, --version            show the version

ADDRESS: 8080, :8080, 127.0.0.1:8080, [::1]:8080, a name, or @PID of a server.

Exit status: the server's own; 0 when it was replaced or taken down on request;
124 it was not up in time, failed its check, or was undone; 125 serverswap
failed; 126 COMMAND cannot be executed; 127 COMMAND not found.

Manual: man serverswap; the control channel: man 7 serverswap.
";

/// Reads the arguments (without the program's name).
pub fn parse<I>(arguments: I) -> Result<Cli>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut cli = Cli { request: Request::Help, run_dir: None, verbosity: 0 };
    let mut run = defaults();
    let mut run_option = None;
    let mut verb: Option<&'static str> = None;
    let mut client = String::new();
    let (mut form, mut surroundings) = (Form::Table, Surroundings::Own);
    while let Some(argument) = parser.next().map_err(|e| usage(e.to_string()))? {
        match argument {
            Short('h') | Long("help") => return Ok(Cli { request: Request::Help, ..cli }),
            Short('V') | Long("version") => return Ok(Cli { request: Request::Version, ..cli }),
            Short('q') | Long("quiet") => cli.verbosity -= 1,
            Short('v') | Long("verbose") => cli.verbosity += 1,
            Long("run-dir") => cli.run_dir = Some(PathBuf::from(value(&mut parser)?)),
            Long("status") => one_verb(&mut verb, "status")?,
            Long("reload") => one_verb(&mut verb, "reload")?,
            Long("undo") => one_verb(&mut verb, "undo")?,
            Long("commit") => one_verb(&mut verb, "commit")?,
            Long("takedown") => one_verb(&mut verb, "takedown")?,
            Long("client") => {
                one_verb(&mut verb, "client")?;
                client = text(&mut parser, "--client")?;
            }
            Long("json") => form = Form::Json,
            Long("fresh") => surroundings = Surroundings::Callers,
            Short('d') => (run.detach, run_option) = (true, Some("--detach")),
            Value(word) => {
                run.command.push(word);
                // With a verb, the operands are addresses and options may still follow.
                if verb.is_none() {
                    run.command.extend(parser.raw_args().map_err(|e| usage(e.to_string()))?);
                }
            }
            Long(name) => {
                let name = name.to_owned();
                run_option = Some(set(&mut run, &name, &mut parser)?);
            }
            Short(_) => return Err(usage(argument.unexpected().to_string())),
        }
    }
    let is_misplaced = [
        (form == Form::Json && verb != Some("status"), "--json", "--status"),
        (surroundings == Surroundings::Callers && verb != Some("reload"), "--fresh", "--reload"),
        (run.wait == Wait::Up && !run.detach, "--wait", "--detach"),
    ];
    if let Some((_, option, with)) = is_misplaced.into_iter().find(|(is_misplaced, ..)| *is_misplaced) {
        return Err(usage(format!("{option} has a meaning with {with} only")));
    }
    if let (Some(verb), Some(option)) = (verb, run_option) {
        return Err(usage(format!("{option} has no meaning with --{verb}")));
    }
    cli.request = request(verb, run, client, (form, surroundings))?;
    Ok(cli)
}

/// The options of a server that is to be run which have a value.
const WITH_VALUE: [&str; 12] = [
    "--wait",
    "--log",
    "--check",
    "--check-http",
    "--canary",
    "--hold",
    "--ready-timeout",
    "--drain",
    "--max-draining",
    "--relay",
    "--kill-after",
    "--stop-signal",
];

/// Takes a long option of a server that is to be run, and gives its name.
fn set(run: &mut Run, name: &str, parser: &mut lexopt::Parser) -> Result<&'static str> {
    match name {
        "detach" => {
            run.detach = true;
            return Ok("--detach");
        }
        "plain" => {
            run.plain = true;
            return Ok("--plain");
        }
        "no-probe" => {
            run.trial.probe = false;
            return Ok("--no-probe");
        }
        "no-relay" => {
            run.relay = Reach::None;
            return Ok("--no-relay");
        }
        _ => {}
    }
    let option = WITH_VALUE
        .into_iter()
        .find(|option| &option[2..] == name)
        .ok_or_else(|| usage(Long(name).unexpected().to_string()))?;
    if run.trial.set(option, parser)? {
        return Ok(option);
    }
    match option {
        "--wait" => run.wait = wait(&text(parser, option)?)?,
        "--log" => {
            let file = value(parser)?;
            run.log = Some(if file == "-" { Destination::Caller } else { Destination::File(file.into()) });
        }
        "--ready-timeout" => run.ready_timeout = Some(seconds(parser, option)?),
        "--drain" => run.drain = seconds(parser, option)?,
        "--max-draining" => run.max_draining = count(&text(parser, option)?)?,
        "--relay" => run.relay = reach(&text(parser, option)?)?,
        "--kill-after" => run.kill_after = seconds(parser, option)?,
        _ => run.stop_signal = signal(&text(parser, option)?)?,
    }
    Ok(option)
}

fn defaults() -> Run {
    Run {
        command: Vec::new(),
        detach: false,
        wait: Wait::Gone,
        log: None,
        plain: false,
        trial: Trial::new(),
        ready_timeout: None,
        drain: Duration::from_secs(10),
        max_draining: 8,
        relay: Reach::Local,
        kill_after: Duration::from_secs(10),
        stop_signal: Signal::SIGTERM,
    }
}

/// What is wanted, once all words are known.
fn request(
    verb: Option<&str>,
    mut run: Run,
    client: String,
    (form, surroundings): (Form, Surroundings),
) -> Result<Request> {
    Ok(match verb {
        None if run.command.is_empty() => return Err(usage("a COMMAND is missing")),
        None if run.command[0].is_empty() => return Err(usage("the COMMAND is empty")),
        None => {
            if let Some(".js" | ".mjs" | ".cjs") = extension(&run.command[0]) {
                run.command.insert(0, "node".into());
            }
            Request::Run(run)
        }
        Some("client") if !run.command.is_empty() => return Err(usage("--client takes one NAME")),
        Some("client") if client != "node" => {
            return Err(usage(format!("no client {client:?}, there is: node")));
        }
        Some("client") => Request::Client(client),
        Some("status") => Request::Status(targets(&run.command)?, form),
        Some(_) if run.command.is_empty() => return Err(usage("an ADDRESS is missing")),
        Some("undo") => Request::Decide(targets(&run.command)?, Verdict::Undo),
        Some("commit") => Request::Decide(targets(&run.command)?, Verdict::Commit),
        Some("reload") => Request::Reload(targets(&run.command)?, surroundings),
        Some(_) => Request::Takedown(targets(&run.command)?),
    })
}

fn one_verb(verb: &mut Option<&'static str>, new: &'static str) -> Result<()> {
    match verb.replace(new) {
        Some(old) if old != new => Err(usage(format!("--{old} and --{new} exclude each other"))),
        _ => Ok(()),
    }
}

fn targets(words: &[OsString]) -> Result<Vec<Target>> {
    let target = |word: &OsString| {
        let text = word.to_string_lossy();
        match text.strip_prefix('@') {
            Some(pid) => parse_number(pid).map(Target::Of).ok_or_else(|| usage(format!("{text:?} names no process"))),
            None => Address::parse(&text).map(Target::At).map_err(|why| usage(format!("bad address {text:?}: {why}"))),
        }
    };
    words.iter().map(target).collect()
}

fn wait(text: &str) -> Result<Wait> {
    match text {
        "up" => Ok(Wait::Up),
        "gone" => Ok(Wait::Gone),
        _ => Err(usage(format!("--wait: {text:?} is neither up nor gone"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swap::{Share, Step};

    fn run(words: &[&str]) -> Run {
        match parse(words).unwrap().request {
            Request::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    fn refused(words: &[&str]) -> String {
        let error = parse(words).unwrap_err();
        assert_eq!(error.status, 125);
        assert!(!error.text.contains('\n'), "{error}");
        error.text
    }

    #[test]
    fn options_end_at_the_command() {
        let run = run(&["-d", "server", "-d", "--plain", "--", "x"]);
        assert!(run.detach && !run.plain);
        assert_eq!(run.command, ["server", "-d", "--plain", "--", "x"]);
        assert_eq!(self::run(&["--", "-server"]).command, ["-server"]);
    }

    #[test]
    fn javascript_is_run_by_node() {
        for name in ["server.js", "a/server.mjs", "s.cjs"] {
            assert_eq!(run(&[name, "a"]).command, ["node", name, "a"]);
        }
        assert_eq!(run(&["node", "server.js"]).command, ["node", "server.js"]);
        assert_eq!(run(&["serverjs"]).command, ["serverjs"]);
    }

    #[test]
    fn every_run_option_is_accepted() {
        let r = run(&[
            "--ready-timeout=0",
            "--drain",
            "0.5",
            "--kill-after",
            "3",
            "--stop-signal",
            "sigquit",
            "--no-probe",
            "--plain",
            "--detach",
            "--log=a/b",
            "x",
        ]);
        assert_eq!(r.log, Some(Destination::File("a/b".into())));
        assert_eq!(run(&["--log", "-", "x"]).log, Some(Destination::Caller));
        assert_eq!(r.ready_timeout, Some(Duration::ZERO));
        assert_eq!((r.drain, r.kill_after), (Duration::from_millis(500), Duration::from_secs(3)));
        assert_eq!(r.stop_signal, Signal::SIGQUIT);
        assert!(!r.trial.probe && r.plain && r.detach);
        for name in ["QUIT", "SIGQUIT", "3"] {
            assert_eq!(run(&["--stop-signal", name, "x"]).stop_signal, Signal::SIGQUIT);
        }
    }

    #[test]
    fn steps_have_a_share_and_a_time() {
        let step = |permille, millis| Step { share: Share { permille }, time: Duration::from_millis(millis) };
        let trial = run(&["--canary", "0.1:60,5:0.5,99:1", "--hold", "300", "x"]).trial;
        assert_eq!(trial.canary, [step(1, 60_000), step(50, 500), step(990, 1000)]);
        assert_eq!(trial.hold, Duration::from_secs(300));
        assert_eq!(trial.canary.iter().map(|step| step.share.to_string()).collect::<Vec<_>>(), ["0.1%", "5%", "99%"]);
    }

    #[test]
    fn times_are_plain_decimal_numbers() {
        for (text, nanos) in
            [(".5", 500_000_000), ("0.0000000019", 1), ("1.", 1_000_000_000), ("31536000.0", 31_536_000_000_000_000)]
        {
            assert_eq!(run(&["--drain", text, "x"]).drain, Duration::from_nanos(nanos), "{text}");
        }
        refused(&["--drain", "31536000.000000001", "x"]);
        refused(&["--drain", "1.2.3", "x"]);
    }

    #[test]
    fn verbs_take_addresses_and_common_options() {
        let cli = parse(["--status", "8080", "-v", "127.0.0.1:1", "--run-dir", "/x"]).unwrap();
        let at = |text| Target::At(Address::parse(text).unwrap());
        assert_eq!(cli.request, Request::Status(vec![at("8080"), at("127.0.0.1:1")], Form::Table));
        let of = |pid| Target::Of(Pid::new(pid).unwrap());
        let reload = parse(["--reload", "--fresh", "@17", ":1"]).unwrap();
        assert_eq!(reload.request, Request::Reload(vec![of(17), at(":1")], Surroundings::Callers));
        assert_eq!(parse(["--status", "--json"]).unwrap().request, Request::Status(vec![], Form::Json));
        assert_eq!((cli.run_dir, cli.verbosity), (Some("/x".into()), 1));
        assert_eq!(parse(["--status"]).unwrap().request, Request::Status(vec![], Form::Table));
        assert_eq!(parse(["--client", "node"]).unwrap().request, Request::Client("node".into()));
        assert_eq!(parse(["-qq", "x"]).unwrap().verbosity, -2);
    }

    #[test]
    fn bad_calls_are_refused_in_one_line() {
        assert!(refused(&[]).contains("COMMAND is missing"));
        assert!(refused(&[""]).contains("empty"));
        assert!(refused(&["--nonsense", "x"]).contains("--nonsense"));
        assert!(refused(&["-x"]).contains("-x"));
        for time in ["-1", "inf", "nan", "", "1e3", "31536001", "x", ".", "1s", "99999999999999999999999"] {
            refused(&["--drain", time, "x"]);
            refused(&[&format!("--drain={time}"), "x"]);
        }
        for signal in ["FOO", "0", "-1", "65", "STOP", "CONT", ""] {
            refused(&["--stop-signal", signal, "x"]);
        }
        for address in ["0", ":70000", "a b", ""] {
            refused(&["--takedown", address]);
        }
        refused(&["--reload"]);
        refused(&["--takedown"]);
        refused(&["--takedown", "--reload", "80"]);
        refused(&["--plain", "--status"]);
        for pid in ["@", "@0", "@-1", "@x", "@99999999999"] {
            refused(&["--reload", pid]);
        }
        for misplaced in ["--json", "--fresh"] {
            refused(&[misplaced, "x"]);
            refused(&["--takedown", misplaced, "80"]);
        }
        for steps in ["5", "5:", ":5", "0:5", "0.05:5", "99.1:5", "100:5", "5:0", "5:10,", "5:10;20:10", "-1:5", "5.:5"]
        {
            refused(&["--canary", steps, "x"]);
        }
        refused(&["--undo"]);
        refused(&["--undo", "--commit", "80"]);
        refused(&["--wait", "up", "x"]);
        refused(&["-d", "--wait", "down", "x"]);
        refused(&["--client", "perl"]);
        refused(&["--client", "node", "x"]);
        refused(&["--detach=yes", "x"]);
        refused(&["--run-dir"]);
    }

    /// Every sequence up to length 3 over a small vocabulary gives a request or one line.
    #[test]
    fn all_short_command_lines() {
        let vocabulary =
            ["-d", "--plain", "--drain", "5", "--drain=", "--status", "--", "x.js", "-qv", "-", "--client", "node", ""];
        for a in vocabulary {
            for b in vocabulary {
                for c in vocabulary {
                    if let Err(error) = parse([a, b, c]) {
                        assert!(error.status == 125 && !error.text.contains('\n'));
                    }
                }
            }
        }
    }
}
