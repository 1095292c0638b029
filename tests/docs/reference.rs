//! What is in the code is in the documents, and what is in the documents is in the code.

use super::Stage;
use super::text::{between, chapter, file, literal_blocks, manual, options_in, plain, section, sources, tags};
use crate::common::{Sandbox, kill, until};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

type Names = BTreeSet<String>;

const BASH: &str = "src/install/completions/serverswap.bash";
const ZSH: &str = "src/install/completions/_serverswap";
const FISH: &str = "src/install/completions/serverswap.fish";

// Options.

/// The options that the parser knows, by its source: `Short('d')`, `Long("status")`, and those of a server to run, which stand
/// by name in a list and in `set`: `"--detach"`.
fn parser_options() -> Names {
    let source = file("src/cli.rs");
    let source = source.split("#[cfg(test)]").next().unwrap();
    let short = between(source, "Short('", "')").map(|c| format!("-{c}"));
    let long = between(source, "Long(\"", "\")").map(|name| format!("--{name}"));
    let set = between(source, "\nfn set(", "\n}\n").next().expect("the options of a server to run");
    let list = between(source, "const WITH_VALUE", "];").next().expect("the options with a value");
    let of_run = [set, list].into_iter().flat_map(|text| between(text, "\"--", "\"")).map(|name| format!("--{name}"));
    short.chain(long).chain(of_run).collect()
}

fn help() -> String {
    let (status, help) = Sandbox::new().run(["--help"]);
    assert_eq!(status, 0);
    help
}

/// The tags of the option lists of serverswap(1), each with what follows the names.
fn manual_options() -> BTreeMap<String, Vec<String>> {
    let manual = manual(1);
    let mut options = BTreeMap::new();
    for tag in tags(section(&manual, "OPTIONS")) {
        let tag: Vec<&str> = tag.into_iter().filter(|word| *word != ",").collect();
        let mut names = Vec::new();
        let mut rest = &tag[..];
        loop {
            match rest {
                ["Fl", "Fl", name, tail @ ..] => {
                    names.push(format!("--{name}"));
                    rest = tail;
                }
                ["Fl", name, tail @ ..] => {
                    names.push(format!("-{name}"));
                    rest = tail;
                }
                _ => break,
            }
        }
        for name in names {
            options.insert(name, rest.iter().map(|&w| w.to_owned()).collect());
        }
    }
    options
}

fn bash_options() -> Names {
    let text = file(BASH);
    let words = between(&text, "compgen -W '", "'").find(|words| words.starts_with('-')).expect("a list of options");
    words.split_whitespace().map(str::to_owned).collect()
}

/// Each option of the zsh completion: `'--drain=[text]...'`, `{-d,--detach}'[text]'`.
fn zsh_options() -> BTreeMap<String, String> {
    let text = file(ZSH);
    let call = text.split("_arguments ").nth(1).expect("a call of _arguments");
    let mut options = BTreeMap::new();
    for line in call.lines().skip(1).filter(|line| line.contains('[')) {
        let (names, rest) = line.split_once('[').unwrap();
        // What is in parentheses is excluded, not offered.
        let names = names.split(')').next_back().unwrap();
        for name in options_in(names) {
            options.insert(name, if names.contains('=') { rest.to_owned() } else { String::new() });
        }
    }
    options
}

/// Each option of the fish completion: `-s d -l detach`, and whether it takes a value.
fn fish_options() -> BTreeMap<String, bool> {
    let text = file(FISH);
    let takes_value = |words: &[&str]| words.contains(&"-x") || words.contains(&"-r");
    let mut options = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("complete -c serverswap ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            match pair {
                ["-s", short] => drop(options.insert(format!("-{short}"), takes_value(&words))),
                ["-l", long] => drop(options.insert(format!("--{long}"), takes_value(&words))),
                _ => {}
            }
        }
    }
    options
}

#[test]
fn options_are_the_same_everywhere() {
    let parser = parser_options();
    assert!(parser.len() > 15, "{parser:?}");
    let keys = |map: BTreeMap<String, Vec<String>>| map.into_keys().collect::<Names>();
    assert_eq!(options_in(&help()), parser, "--help");
    assert_eq!(keys(manual_options()), parser, "serverswap(1)");
    assert_eq!(bash_options(), parser, "bash");
    assert_eq!(zsh_options().into_keys().collect::<Names>(), parser, "zsh");
    assert_eq!(fish_options().into_keys().collect::<Names>(), parser, "fish");
}

/// The synopsis has each option in one of its spellings, and no other.
#[test]
fn the_synopsis_names_every_option() {
    let manual = manual(1);
    let mut named = Names::new();
    for line in section(&manual, "SYNOPSIS").lines() {
        let words: Vec<&str> = line.trim_start_matches('.').split_whitespace().collect();
        for (i, word) in words.iter().enumerate().filter(|(_, w)| **w == "Fl") {
            match (&words[i + 1..], i > 0 && words[i - 1] == "Fl") {
                (["Fl", name, ..], _) if *name != "Fl" => drop(named.insert(format!("--{name}"))),
                ([letters, ..], false) if *letters != "Fl" => named.extend(letters.chars().map(|c| format!("-{c}"))),
                _ => assert_eq!(*word, "Fl"),
            }
        }
    }
    let parser = parser_options();
    assert!(named.is_subset(&parser), "{named:?}");
    let spellings: Vec<Vec<String>> = help_lines().into_iter().map(|(names, _)| names).collect();
    for names in spellings {
        assert!(names.iter().any(|name| named.contains(name)), "{names:?} is not in the synopsis");
    }
}

/// `SECS`, `P:SECS,...`
fn is_value(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.bytes().all(|b| b.is_ascii_uppercase() || b":,.".contains(&b))
}

/// The lines of --help that explain an option: its names, and the name of its value.
fn help_lines() -> Vec<(Vec<String>, Option<String>)> {
    let help = help();
    let lines = help.lines().filter(|line| line.trim_start().starts_with('-'));
    lines
        .map(|line| {
            let words = line.split_whitespace();
            let heads: Vec<&str> = words.take_while(|w| w.starts_with('-') || is_value(w)).collect();
            let (names, values): (Vec<&str>, Vec<&str>) = heads.into_iter().partition(|w| w.starts_with('-'));
            let names = names.into_iter().map(|name| name.trim_end_matches(',').to_owned()).collect();
            (names, values.first().map(|&v| v.to_owned()))
        })
        .collect()
}

/// Runs the real parser.
fn try_parser(sandbox: &Sandbox, words: &[&str]) -> (i32, String) {
    let mut command = sandbox.command(crate::common::SERVERSWAP);
    command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// A value that the option takes.
fn value_for(kind: &str) -> &'static str {
    match kind {
        "SECS" => "0.5",
        "SIGNAL" => "QUIT",
        "DIR" => "/nowhere",
        "FILE" => "-",
        "WHEN" => "up",
        "WHOSE" => "all",
        "N" => "3",
        "NAME" => "node",
        "COMMAND" => "true",
        "PATH" => "/",
        "P:SECS,..." => "5:600,50.5:1",
        other => panic!("no value for {other}"),
    }
}

#[test]
fn every_option_is_accepted_with_its_value_and_nothing_else_is() {
    let sandbox = Sandbox::new();
    let mut with_value = Names::new();
    for (names, kind) in help_lines() {
        for name in names {
            let mut words = vec![name.as_str()];
            words.extend(kind.as_deref().map(value_for));
            words.push("--help");
            assert_eq!(try_parser(&sandbox, &words), (0, String::new()), "{words:?}");
            if let (Some(kind), true) = (&kind, name.starts_with("--")) {
                let joined = format!("{name}={}", value_for(kind));
                assert_eq!(try_parser(&sandbox, &[&joined, "--help"]), (0, String::new()), "{joined}");
                with_value.insert(name.clone());
            } else if name.starts_with("--") && !["--help", "--version"].contains(&name.as_str()) {
                let (status, message) = try_parser(&sandbox, &[&format!("{name}=x"), "--help"]);
                assert_eq!(status, 125, "{name} takes no value");
                assert!(message.starts_with("serverswap: ") && message.contains("--help"), "{message}");
            }
        }
    }
    // The others agree on which options take a value.
    let zsh = zsh_options().into_iter().filter(|(_, value)| !value.is_empty()).map(|(name, _)| name);
    assert_eq!(zsh.collect::<Names>(), with_value, "zsh");
    let fish = fish_options().into_iter().filter(|(_, value)| *value).map(|(name, _)| name);
    assert_eq!(fish.collect::<Names>(), with_value, "fish");
    let operands = ["--status", "--reload", "--undo", "--commit", "--takedown"];
    let manual = manual_options().into_iter().filter(|(name, rest)| {
        !operands.contains(&name.as_str()) && rest.first().is_some_and(|w| w == "Ar" || w == "Cm")
    });
    assert_eq!(manual.map(|(name, _)| name).collect::<Names>(), with_value, "serverswap(1)");
    // And those that look for the server's command skip just these.
    let skipped = |file: &str, separator: &str, after: &str| -> Names {
        let line = file.lines().find(|line| line.contains("--drain") && line.contains("--client")).unwrap();
        let words = line.trim().trim_start_matches("case ").split(after).next().unwrap();
        let words = words.split(separator).map(str::trim).filter(|w| !w.is_empty());
        words.map(str::to_owned).chain(["--run-dir".into()]).collect()
    };
    assert_eq!(skipped(&file(BASH), "|", ")"), with_value, "bash skips the values of others");
    assert_eq!(skipped(&file(ZSH), "|", ")"), with_value, "zsh skips the values of others");
    assert_eq!(skipped(&file(FISH), " ", ")"), with_value, "fish skips the values of others");
}

#[test]
fn what_is_no_option_is_refused_in_one_line() {
    let sandbox = Sandbox::new();
    let known = parser_options();
    let letters = ('a'..='z').chain('A'..='Z').chain('0'..='9').map(|c| format!("-{c}"));
    let near = known.iter().filter(|name| name.starts_with("--")).flat_map(|name| {
        [format!("{name}x"), name[..name.len() - 1].to_owned(), name.to_uppercase(), name[1..].to_owned()]
    });
    for word in letters.chain(near).filter(|word| !known.contains(word)) {
        let (status, message) = try_parser(&sandbox, &[&word, "--help"]);
        // "-help" is "-h" with more behind it, and that is the help.
        if word.starts_with("-h") || word.starts_with("-V") {
            continue;
        }
        assert_eq!(status, 125, "{word}: {message}");
        assert!(message.starts_with("serverswap: ") && message.matches('\n').count() == 1, "{word}: {message}");
    }
}

/// The completion itself, where there is a bash.
#[test]
fn bash_offers_every_option() {
    let script = format!(
        ". '{}/{BASH}'; COMP_LINE='serverswap -' COMP_POINT=12 COMP_CWORD=1 COMP_WORDS=(serverswap -)
         _serverswap; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        env!("CARGO_MANIFEST_DIR")
    );
    match Command::new("bash").arg("-c").arg(script).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => eprintln!("there is no bash here"),
        output => {
            let text = String::from_utf8(output.unwrap().stdout).unwrap();
            assert_eq!(text.lines().map(str::to_owned).collect::<Names>(), parser_options());
        }
    }
}

/// What has a pidfile is offered by its address, and every server by its pid.
#[test]
fn bash_offers_addresses_and_servers() {
    let sandbox = Sandbox::new();
    for name in ["8080.pid", "[::1]:8080.pid", "%2Eblue.pid", "17.server", "17-1.sock", "lock"] {
        sandbox.file(name, "");
    }
    let script = format!(". '{}/{BASH}'; _serverswap_addresses .", env!("CARGO_MANIFEST_DIR"));
    let mut command = sandbox.command("bash");
    match command.arg("-c").arg(script).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => eprintln!("there is no bash here"),
        output => {
            let text = String::from_utf8(output.unwrap().stdout).unwrap();
            let wanted = [":8080", "[::1]:8080", ".blue", "@17"].map(str::to_owned);
            assert_eq!(text.lines().map(str::to_owned).collect::<Names>(), wanted.into());
        }
    }
}

// Exit statuses.

#[test]
fn exit_statuses_are_in_the_manual_and_in_the_help() {
    let source = file("src/error.rs");
    let statuses: Names = between(&source, ": u8 = ", ";").map(str::to_owned).collect();
    assert!(statuses.contains("124"), "{statuses:?}");
    let manual = manual(1);
    let tags: Names = tags(section(&manual, "EXIT STATUS")).into_iter().map(|tag| tag.join(" ")).collect();
    let others = ["128+N", "other"].map(str::to_owned);
    assert_eq!(tags, statuses.iter().cloned().chain(others).collect::<Names>());
    let help = help();
    let explained = help.split("Exit status:").nth(1).expect("a word on the exit status");
    for status in statuses {
        assert!(explained.split(|c: char| !c.is_ascii_digit()).any(|n| n == status), "{status} is not in --help");
    }
}

#[test]
fn exit_statuses_are_what_the_manual_says() {
    let sandbox = Sandbox::new();
    let no_server = sandbox.file("data", "no program").display().to_string();
    let fail = "echo FAIL >&$SERVERSWAP_FD; sleep 60";
    let cases: [(i32, &[&str]); 12] = [
        (0, &["true"]),
        (0, &["--status"]),
        (3, &["sh", "-c", "exit 3"]),
        (125, &["sh", "-c", "exit 125"]),
        (124, &["sh", "-c", fail]),
        (124, &["-d", "true"]),
        (124, &["--ready-timeout", "0.1", "sleep", "60"]),
        (125, &["--drain", "-1", "true"]),
        (125, &["--status", ":1"]),
        (126, &[&no_server]),
        (127, &["no-such-program"]),
        (137, &["sh", "-c", "kill -KILL $$"]),
    ];
    for (status, words) in cases {
        let (got, log) = sandbox.run(words);
        assert_eq!(got, status, "{words:?}: {log}");
        assert!(log.is_empty() || log.lines().all(|line| line.starts_with("serverswap: ")), "{words:?}: {log}");
        // Whose status it is.
        assert!(status == 0 || !log.is_empty(), "{words:?} ends with {status} without a word");
    }
    sandbox.assert_clean();
}

// The house.

#[test]
fn the_house_of_the_readme_is_that_of_the_code() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let readme = file("README.md");
    let house = between(&readme, "\n## The house\n", "\n## ").next().unwrap();
    let is_file = |name: &&str| name.ends_with(".rs") || name.ends_with('/');
    let named: Vec<&str> = house.split('`').skip(1).step_by(2).filter(is_file).collect();
    for name in &named {
        assert!(src.join(name).exists() || src.join("supervisor").join(name).exists(), "there is no {name}");
    }
    for (room, prefix) in [(src.clone(), ""), (src.join("supervisor"), "supervisor/")] {
        for entry in std::fs::read_dir(room).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            let mut names = ["", "/"].map(|end| format!("{name}{end}")).to_vec();
            names.push(format!("{prefix}{name}"));
            let is_named = |other: &&&str| names.iter().any(|name| other.starts_with(name.as_str()));
            assert!(named.iter().find(is_named).is_some(), "{prefix}{name} is not in the house of the README");
        }
    }
}

// The environment.

/// Names of environment variables in the code.
fn variables() -> Names {
    let text = sources();
    let name = |w: &&str| {
        let known = ["SERVERSWAP_", "XDG_", "WATCHDOG_", "LISTEN_"].iter().any(|prefix| w.starts_with(prefix));
        ["NOTIFY_SOCKET", "JOURNAL_STREAM", "HOME", "PWD"].contains(w) || (known && !w.ends_with('_'))
    };
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(name).map(str::to_owned).collect()
}

#[test]
fn environment_variables_are_in_the_manual() {
    let used = variables();
    assert!(used.len() >= 7, "{used:?}");
    let text = manual(1);
    let environment = section(&text, "ENVIRONMENT");
    let documented: Names = tags(environment)
        .into_iter()
        .flat_map(|tag| tag.into_iter().filter(|w| !["Ev", ","].contains(w)).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert!(used.is_subset(&documented), "used: {used:?}\ndocumented: {documented:?}");
    // The system looks COMMAND up, and the server reads what the service manager said to it.
    let not_ours: Names = ["PATH", "WATCHDOG_USEC"].map(str::to_owned).into();
    assert_eq!(documented, used.union(&not_ours).cloned().collect::<Names>());
    // What the code reads by name is among them.
    let read: Names = between(&sources(), "env::var(\"", "\"")
        .chain(between(&sources(), "env::var_os(\"", "\""))
        .map(str::to_owned)
        .collect();
    // Cargo tells the build script the rest.
    let read: Names = read.into_iter().filter(|name| !name.starts_with("CARGO_")).collect();
    assert!(!read.is_empty() && read.is_subset(&documented), "{read:?}");
    // The four of the control channel are explained in serverswap(7), in its words.
    let text = manual(7);
    let transport: Names = tags(section(&text, "TRANSPORT")).into_iter().map(|tag| tag[1].to_owned()).collect();
    let others =
        ["SERVERSWAP_RUN_DIR", "SERVERSWAP_FRONT", "SERVERSWAP_CARETAKER", "SERVERSWAP_PREVIEW", "SERVERSWAP_PID"];
    let channel: Names =
        used.into_iter().filter(|v| v.starts_with("SERVERSWAP_") && !others.contains(&v.as_str())).collect();
    assert_eq!(transport, channel);
}

#[test]
fn the_server_finds_the_environment_that_the_manual_names() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(crate::common::SERVERSWAP);
    command.arg("env").env("WATCHDOG_PID", "1").env("WATCHDOG_USEC", "5").env("SERVERSWAP_SOCKET", "/of/another");
    let mut running = sandbox.start(command);
    assert_eq!(running.wait(), 0);
    let log = running.log();
    let found: BTreeMap<&str, &str> = log.lines().filter_map(|line| line.split_once('=')).collect();
    let text = manual(1);
    let given = section(&text, "ENVIRONMENT").split("finds in its environment").nth(1).unwrap();
    for name in tags(given).into_iter().flatten().filter(|word| !["Ev", ","].contains(word)) {
        assert!(found.contains_key(name), "{name} is not in\n{log}");
    }
    assert!((3..=9).contains(&found["SERVERSWAP_FD"].parse::<i32>().unwrap()));
    assert_eq!(found["SERVERSWAP_GENERATION"], "1");
    assert!(found["SERVERSWAP_SOCKET"].starts_with(sandbox.run_dir().to_str().unwrap()));
    assert_eq!((found.get("WATCHDOG_PID"), found["WATCHDOG_USEC"]), (None, "5"));
}

// Files.

#[test]
fn files_of_the_run_directory_are_in_the_manual() {
    let text = manual(1);
    let files = section(&text, "FILES");
    // PID and N stand for numbers, and 8080.pid for every pidfile.
    let shape = |name: &str| {
        let digits = name.replace("PID", "1").replace('N', "1").replace("8080", "1").replace("name.pid", "1.pid");
        let mut shape = String::new();
        for c in digits.chars() {
            if !(c.is_ascii_digit() && shape.ends_with('#')) {
                shape.push(if c.is_ascii_digit() { '#' } else { c });
            }
        }
        shape
    };
    let documented: Names = tags(files).iter().filter(|tag| !tag[1].contains('/')).map(|tag| shape(tag[1])).collect();
    let stage = Stage::new();
    let server = crate::common::plain_server();
    let address = stage.address();
    let (status, log) = stage.sandbox.run(["-d", server.to_str().unwrap(), &address]);
    assert_eq!(status, 0, "{log}");
    let mut found: Names = stage.sandbox.files().iter().map(|name| shape(name)).collect();
    assert!(stage.sandbox.run_dir().join("lock").exists());
    found.insert("lock".into());
    // The temporary file is there for a moment only.
    assert!(sources().contains("\".new.{}\""));
    found.insert(".new.#".into());
    // And a history as soon as there was a swap: tests/history.rs.
    assert!(sources().contains("\".history\""));
    found.insert("#.history".into());
    assert_eq!(found, documented);
    stage.end();
}

#[test]
fn pidfiles_are_named_as_the_manual_says() {
    let text = manual(1);
    let names: Names =
        section(&text, "FILES").split_whitespace().filter(|name| name.ends_with(".pid")).map(str::to_owned).collect();
    let stage = Stage::new();
    let wanted = ["8080.pid", "127.0.0.1:8080.pid", "[::1]:8080.pid", "name.pid"].map(str::to_owned);
    assert_eq!(names, wanted.into());
    let ready = "for a in name 127.0.0.1:8080 [::1]:8080 .a%/b; do echo \"READY $a\" >&$SERVERSWAP_FD; done; sleep 60";
    let mut running = stage.sandbox.serverswap(["sh", "-c", &stage.own(ready)]);
    let own = |name: &str| stage.own(name);
    for name in [own("127.0.0.1:8080.pid"), own("[::1]:8080.pid"), "name.pid".into(), "%2Ea%25%2Fb.pid".into()] {
        until(&format!("{name} is there"), || stage.sandbox.files().contains(&name));
    }
    kill(running.pid(), nix::libc::SIGTERM);
    assert_eq!(running.wait(), 143, "{}", running.log());
    stage.sandbox.assert_clean();
}

#[test]
fn installed_files_of_the_manual_are_those_of_make_install() {
    let text = manual(1);
    let makefile = file("Makefile");
    let variables: BTreeMap<&str, &str> =
        makefile.lines().filter_map(|line| line.split_once(" = ")).map(|(k, v)| (k.trim(), v.trim())).collect();
    let installed: Vec<String> = between(&makefile, "'$(DESTDIR)", "'\n")
        .map(|path| variables.iter().fold(path.to_owned(), |p, (k, v)| p.replace(&format!("$({k})"), v)))
        .map(|path| path.replace(variables["PREFIX"], "$(PREFIX)"))
        .collect();
    for tag in tags(section(&text, "FILES")) {
        if let Some(path) = tag[1].strip_prefix("PREFIX") {
            assert!(installed.contains(&format!("$(PREFIX){path}")), "{path} is not in {installed:?}");
        }
    }
}

// Messages.

/// Whether a message has a text in it; words in upper case, and those in brackets, stand for any.
fn matches(message: &str, text: &str) -> bool {
    let any = |word: &str| {
        let core = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        !core.is_empty() && core.bytes().all(|b| b.is_ascii_uppercase())
    };
    // `serverswap: ` and the address before, and at the end of a word with a stop what the stop is.
    let words: Vec<&str> = text.split(' ').collect();
    let message: Vec<&str> = message.split(' ').collect();
    fn fits(words: &[&str], message: &[&str], any: &dyn Fn(&str) -> bool) -> bool {
        match (words, message) {
            ([], _) => true,
            ([word, rest @ ..], [first, others @ ..]) if any(word) => {
                // A command is several words.
                let _ = first;
                fits(rest, others, any) || fits(words, others, any)
            }
            ([word, rest @ ..], [first, others @ ..]) => word == first && fits(rest, others, any),
            (_, []) => false,
        }
    }
    (0..message.len()).any(|begin| fits(&words, &message[begin..], &any))
}

#[test]
fn messages_of_the_manual_are_those_of_the_program() {
    let stage = Stage::new();
    let server = crate::common::plain_server();
    let server = server.to_str().unwrap();
    let address = stage.address();
    let mut logs = String::new();
    // A server that serves, and three that fail beside it.
    let mut old = stage.sandbox.serverswap([server, &address, "takedown"]);
    old.says("is up");
    let hang = "echo \"READY $1\" >&$SERVERSWAP_FD; read -r go <&$SERVERSWAP_FD; exit 1";
    logs += &stage.sandbox.run(["--ready-timeout", "0.2", server, &address, "hang"]).1;
    logs += &stage.sandbox.run(["--status", ":1"]).1;
    let (status, log) = stage.sandbox.run(["-d", "sh", "-c", hang, "sh", &address]);
    assert_ne!(status, 0);
    logs += &log;
    assert_eq!(old.wait(), 0);
    logs += &old.log();
    logs += &stage.sandbox.run(["sh", "-c", "echo FAIL no database >&$SERVERSWAP_FD; sleep 60"]).1;
    // One that is told to stop and does not, and one whose supervisor is killed, with more addresses
    // than its successor.
    let names = "trap '' TERM; for a; do echo READY $a; done >&$SERVERSWAP_FD; echo UP >&$SERVERSWAP_FD; sleep 60";
    let mut deaf = stage.sandbox.serverswap(["--kill-after", "0.1", "sh", "-c", names, "sh", "deaf"]);
    deaf.says("is up");
    deaf.signal(nix::libc::SIGTERM);
    assert_eq!(deaf.wait(), 137);
    logs += &deaf.log();
    let mut orphaned = stage.sandbox.serverswap(["sh", "-c", names, "sh", "blue", "green"]);
    until("it has both names", || {
        ["blue.pid", "green.pid"].iter().all(|f| stage.sandbox.files().contains(&(*f).into()))
    });
    orphaned.says("is up");
    orphaned.signal(nix::libc::SIGKILL);
    orphaned.wait();
    let (status, log) = stage.sandbox.run(["-d", "--kill-after", "0.1", "sh", "-c", names, "sh", "blue"]);
    assert_eq!(status, 0, "{log}");
    logs += &log;
    assert_eq!(stage.sandbox.run(["--takedown", "blue"]).0, 0);
    // One that does not share, and one that may not; then one that is not done when its time is up.
    let dir = stage.generation(1, &[]);
    let mut plain = stage.sandbox.serverswap([server, &address, "takedown"]);
    plain.says("is up");
    let (status, log) = stage.run(&dir, &format!("serverswap -d {server} {address}"));
    assert_eq!((status, plain.wait()), (0, 0), "{log}");
    logs += &log;
    assert_eq!(stage.sandbox.run(["--takedown", &address]).0, 0);
    logs += &stage.run(&dir, "serverswap serverswap true").1;
    let silent = "import socket; s = socket.create_server((\"\", 8080)); c = []\nwhile True: c.append(s.accept())";
    let silent = format!("exec serverswap --drain 0.2 python3 -c '{silent}'");
    let mut busy = stage.start(&dir, &silent);
    busy.says("is up");
    let mut request = TcpStream::connect(("127.0.0.1", stage.port)).unwrap();
    request.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let (status, log) = stage.run(&dir, &silent.replace("serverswap", "serverswap -d"));
    assert_eq!((status, busy.wait()), (0, 0), "{log}{}", busy.log());
    logs += &busy.log();
    assert_eq!(stage.sandbox.run(["--takedown", &address]).0, 0);
    // One that dies of a request that waited on a kept connection.
    let deadly =
        format!("exec serverswap --drain 20 node {}/tests/relay/server.js 8080 ids", env!("CARGO_MANIFEST_DIR"));
    let mut old = stage.start(&dir, &deadly);
    old.says("is up");
    let mut kept = TcpStream::connect(("127.0.0.1", stage.port)).unwrap();
    let mut asks = || {
        kept.write_all(b"GET /die HTTP/1.1\r\nHost: x\r\n\r\n").is_ok()
            && kept.read(&mut [0; 1024]).is_ok_and(|len| len > 0)
    };
    assert!(asks());
    let mut new = stage.start(&dir, &deadly);
    new.says("is up");
    while asks() {}
    assert_eq!((old.wait(), new.wait()), (0, 137), "{}", old.log());
    logs += &old.log();
    // New servers on trial: one falls ill, one is undone, and some cannot be tried.
    let (status, log) = stage.run(&dir, &format!("serverswap -d --drain 0.2 {server} {address}"));
    assert_eq!(status, 0, "{log}");
    let trial = format!("exec serverswap --drain 0.2 --check 'test ! -e ill' --canary 50:600 {server} {address}");
    for verdict in [&*format!("serverswap --undo {address}"), "touch ill"] {
        let mut new = stage.start(&dir, &trial);
        new.says("is up");
        logs += &stage.run(&dir, verdict).1;
        assert_eq!(new.wait(), 124, "{}", new.log());
        logs += &new.log();
    }
    logs += &stage.run(&dir, &format!("serverswap --undo {address}")).1;
    assert_eq!(stage.sandbox.run(["--takedown", &address]).0, 0);
    let mut plain = stage.sandbox.serverswap([server, &address]);
    plain.says("is up");
    for option in ["--hold 9", "--canary 9:9"] {
        let (status, log) = stage.run(&dir, &format!("serverswap {option} {server} {address}"));
        assert_eq!(status, 124, "{log}");
        logs += &log;
    }
    assert_eq!((stage.sandbox.run(["--takedown", &address]).0, plain.wait()), (0, 0));
    for (host, options, expected) in [("::", "-d", 0), ("0.0.0.0", "-d --canary 50:0.1", 1)] {
        let script = format!("require('http').createServer().listen(8080, '{host}')");
        let dir = stage.generation(2, &[("server.js", &script)]);
        let (status, log) = stage.run(&dir, &format!("serverswap {options} node server.js"));
        assert_eq!(status, expected, "{log}");
        logs += &log;
    }
    assert_eq!(stage.sandbox.run(["--takedown", &address]).0, 0);
    // One place of two.
    let python = format!("python3 {}/tests/servers/unmodified.py 0.0.0.0:8080", env!("CARGO_MANIFEST_DIR"));
    assert_eq!(stage.run(&dir, &format!("serverswap -d {python} [::]:8080")).0, 0);
    logs += &stage.run(&dir, &format!("serverswap -d {python}")).1;
    assert_eq!(stage.sandbox.run(["--takedown", &address]).0, 0);
    // A port that a stranger has.
    let mut stranger = stage.sandbox.command("python3");
    stranger.args(["-m", "http.server", &stage.port.to_string()]);
    let stranger = stage.sandbox.start(stranger);
    until("the stranger listens", || super::body(stage.port).is_some());
    logs += &stage.sandbox.run([server, &address]).1;
    kill(stranger.pid(), nix::libc::SIGKILL);
    until("the stranger is gone", || super::body(stage.port).is_none());
    // A swap that waits for another one.
    let deploy = format!("serverswap -d {server} {address}");
    assert_eq!(stage.run(&dir, &deploy).0, 0);
    let deaf = "import socket, time; s = socket.create_server((\"\", 8080)); time.sleep(60)";
    let mut deaf = stage.start(&dir, &format!("exec serverswap -v --ready-timeout 3 python3 -c '{deaf}'"));
    deaf.says("listens beside the old one");
    let (status, log) = stage.run(&dir, &deploy);
    assert_eq!((status, deaf.wait()), (0, 124), "{log}");
    logs += &log;
    assert_eq!(stage.sandbox.run(["--takedown", &address]).0, 0);
    // One that ends by itself when it is told to.
    let mut polite = stage.sandbox.serverswap([server, &address, "takedown"]);
    polite.says("is up");
    polite.signal(nix::libc::SIGTERM);
    assert_eq!(polite.wait(), 0, "{}", polite.log());
    // The same command at another address.
    let python = "serverswap -d sh -c 'exec python3 -m http.server --bind $IP 8080'";
    for ip in ["127.0.0.1", "::1"] {
        let (status, log) = stage.run(&dir, &format!("IP={ip} {python}"));
        assert_eq!(status, 0, "{log}");
        logs += &log;
    }
    let own = stage.sandbox.serverswap(["--takedown", &format!("127.0.0.1{address}"), &format!("[::1]{address}")]);
    assert_eq!({ own }.wait(), 0);
    logs += &stage.sandbox.said();

    let text = manual(1);
    let texts: Vec<String> =
        tags(section(&text, "IT DID NOT WORK")).into_iter().map(|tag| tag[1..].join(" ")).collect();
    assert!(texts.len() >= 7);
    for text in texts {
        assert!(logs.lines().any(|line| matches(line, &text)), "nothing says {text:?}:\n{logs}");
    }
    until("nothing is left", || stage.sandbox.processes().is_empty());
}

/// The answers to lines that are none, and the words of both sides.
#[test]
fn words_of_the_control_channel_are_those_of_the_code() {
    let text = manual(7);
    let source = ["src/protocol.rs", "src/protocol/lines.rs"].map(file).concat();
    let words = |table: &str| -> Names {
        let body = between(&source, table, "\n    }\n").next().unwrap();
        body.split('"')
            .skip(1)
            .step_by(2)
            .filter_map(|w| w.split(' ').next())
            .filter(|w| w.bytes().all(|b| b.is_ascii_uppercase()))
            .filter(|w| !w.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let documented = |heading: &str| -> Names {
        tags(section(&text, heading)).into_iter().filter(|tag| tag[0] == "Ic").map(|tag| tag[1].to_owned()).collect()
    };
    assert_eq!(documented("WHAT THE SERVER SAYS"), words("pub enum ServerWord {"));
    assert_eq!(documented("WHAT THE SUPERVISOR SAYS"), words("pub enum SupervisorWord {"));
    for quoted in ["unknown word", "line too long", "bad address: "] {
        assert!(text.contains(quoted) && source.contains(quoted), "{quoted}");
    }
    for (limit, value) in [("LINE_MAX: usize = ", "1024"), ("ADDRESSES_MAX: usize = ", "4096")] {
        let code = sources();
        assert!(between(&code, limit, ";").any(|found| found == value), "{limit}{value}");
        assert!(text.contains(value), "{value} is not in serverswap(7)");
    }
}

// Promises.

/// The promises. They stand in these words in the README and in serverswap(1).
const PROMISES: [&str; 10] = [
    "The old server is untouched until the new one is ready.",
    "A new server that dies, hangs or babbles changes nothing.",
    "Swaps of one address happen one at a time; many at once end with exactly one server, and on a shared port the \
     address is answered throughout.",
    "When serverswap --detach returns 0, the new server answers and the old one is gone. When it returns anything else, \
     the old one still serves, or, where its takedown had already begun, the message says that nothing serves the address. \
     This holds for a first server too: 0 means that it has accepted a connection at each of its addresses.",
    "On a shared port no connection attempt is refused or reset by a swap, and a request running on the old server \
     finishes if it ends within the drain time (an answer that pauses for over half of it looks finished, and so may a \
     request over TLS or HTTP/2, or one right behind the answer before it). A request that \
     arrives on a kept HTTP/1 connection of a client on this machine while the old server goes is \
     answered by the new one.",
    "Whatever is killed with SIGKILL at whatever moment (a server, a supervisor), no serving server dies of it, and the \
     next serverswap takes over what is left.",
    "Nobody but the owner of a server, or root, can take it down or take its port.",
    "A process that no swap is about notices nothing: sockets outside the supervisor's network namespace, outgoing \
     connections, sockets of short life, and filters and programs of servers are left as they are.",
    "A deploy never waits for older generations that drain.",
    "While a swap is held, one word brings the old server back, and nothing is lost.",
];

/// The promises of the README: text, and what stands in parentheses behind it.
fn readme_promises() -> Vec<(String, String)> {
    let readme = file("README.md");
    let mut promises: Vec<String> = Vec::new();
    for line in chapter(&readme, "Promises").lines().skip(1).map(str::trim) {
        match line.split_once(". ") {
            Some((number, text)) if number.parse() == Ok(promises.len() + 1) => promises.push(text.to_owned()),
            _ => {
                if let Some(last) = promises.last_mut() {
                    *last = format!("{last} {line}").trim().to_owned();
                }
            }
        }
    }
    let cut = |promise: String| {
        let (text, proof) = promise.rsplit_once(" (").expect("a test in parentheses");
        (text.replace('`', ""), proof.trim_end_matches(')').to_owned())
    };
    promises.into_iter().map(cut).collect()
}

#[test]
fn promises_stand_in_the_same_words_in_the_readme_and_the_manual() {
    let readme: Vec<String> = readme_promises().into_iter().map(|(text, _)| text).collect();
    assert_eq!(readme, PROMISES);
    let text = manual(1);
    let list = section(&text, "PROMISES").split(".El").next().unwrap();
    let promises: Vec<String> = list
        .split("\n.It\n")
        .skip(1)
        .map(|item| item.lines().map(plain).collect::<Vec<_>>().join(" ").trim().to_owned())
        .collect();
    assert_eq!(promises, PROMISES);
}

#[test]
fn promises_are_proven_by_the_tests_that_the_readme_names() {
    let sources: Vec<String> = ["tests/promises.rs", "tests/shared.rs", "tests/chain.rs", "tests/trial/verdicts.rs"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok())
        .collect();
    let source = sources.concat();
    let tests: Names = between(&source, "\nfn promise_", "(").map(|name| format!("promise_{name}")).collect();
    let mut named = Names::new();
    for (number, (_, proof)) in (1..).zip(readme_promises()) {
        let test = proof.trim_matches('`').to_owned();
        assert!(test.starts_with(&format!("promise_{number}_")), "promise {number} names {test}");
        // The tests of the shared port may not be part of this tree yet.
        if number == 5 && !tests.contains(&test) && sources.len() == 1 {
            continue;
        }
        assert!(tests.contains(&test), "there is no test {test}, but {tests:?}");
        named.insert(test);
    }
    assert_eq!(tests, named, "there are more than the README names");
    for test in &tests {
        let before = source.split(&format!("\nfn {test}(")).next().unwrap();
        let attributes = before.lines().rev().take_while(|line| line.starts_with("#["));
        assert!(attributes.eq(["#[test]"]), "{test} is not run by every cargo test");
    }
}

// The page itself.

#[test]
fn manuals_are_clean_under_mandoc() {
    let mut command = Command::new("mandoc");
    command.args(["-T", "lint", "-W", "warning", "man/serverswap.1", "man/serverswap.7"]);
    match command.current_dir(env!("CARGO_MANIFEST_DIR")).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => eprintln!("there is no mandoc here"),
        output => {
            let output = output.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }
}

/// What one manual says of a section of itself or of the other is there.
#[test]
fn references_within_the_manuals_lead_somewhere() {
    for number in [1, 7] {
        let text = manual(number);
        let headings: Names =
            between(&text, "\n.Sh ", "\n").chain(between(&text, "\n.Ss ", "\n")).map(str::to_owned).collect();
        for reference in between(&text, ".Sx ", "\n") {
            let name = reference.trim_end_matches([' ', '.', ',', ';']);
            assert!(headings.contains(name), "serverswap({number}) has no section {name:?}");
        }
        assert!(literal_blocks(&text).len() > 4);
    }
}
