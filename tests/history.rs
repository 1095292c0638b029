//! What the history of an address tells of its swaps, and that it harms none.

mod common;

use common::{Sandbox, alive, answered_by, until};
use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

/// The lines of a history, each as its fields.
fn history(sandbox: &Sandbox, port: u16) -> Vec<Vec<String>> {
    let text = fs::read_to_string(sandbox.run_dir().join(format!("{port}.history"))).unwrap_or_default();
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// Those of one kind.
fn told(sandbox: &Sandbox, port: u16, kind: &str) -> Vec<Vec<String>> {
    history(sandbox, port).into_iter().filter(|fields| fields[0] == kind).collect()
}

fn is_number(text: &str) -> bool {
    text.parse::<u64>().is_ok()
}

#[test]
fn a_history_tells_of_swaps_and_of_failed_deploys() {
    common::in_both_orders(|sandbox| {
        let port = sandbox.port();
        let address = format!(":{port}");
        let mut pids = Vec::new();
        for generation in 1..=4 {
            let (status, log) = sandbox.deploy(&[&address, "takedown"]);
            assert_eq!(status, 0, "{log}");
            pids.push(answered_by(port, generation).pid.to_string());
            // Its line is there when it returns, unless somebody had the directory in that moment.
            until("it is told", || told(&sandbox, port, "swap").len() == generation as usize - 1);
        }
        // One listens, but never accepts. Two of other commands end before they want anything: whom they were to replace
        // is not known.
        let (_gate, never) = sandbox.gate("accept");
        let (exits, hangs, deaf) = (["exit=3"], ["hang"], [&*address, &never]);
        let failing: [(&[&str], i32); 3] = [(&exits, 3), (&hangs, 124), (&deaf, 124)];
        let failed = usize::from(sandbox.is_shared());
        for (words, status) in &failing[..2 + failed] {
            let mut deploy = sandbox.plain(&["-d", "--ready-timeout", "1"], words);
            assert_eq!(deploy.wait(), *status, "{}", deploy.log());
        }
        let count = |kind: &str| told(&sandbox, port, kind).len();
        until("all is told", || (count("swap"), count("drain")) == (3 + failed, 3));
        let swaps = told(&sandbox, port, "swap");
        for (nth, swap) in swaps.iter().enumerate() {
            assert_eq!(swap.len(), 10, "{swap:?}");
            let from = nth.min(3);
            assert_eq!((&swap[2], &swap[3]), (&(from + 1).to_string(), &pids[from]), "{swap:?}");
            assert_eq!(swap[4], (from + 2).to_string(), "{swap:?}");
            if nth < 3 {
                assert_eq!((&swap[5], &*swap[9]), (&pids[nth + 1], "done"));
                assert!(swap[6..9].iter().all(|field| is_number(field)), "{swap:?}");
            } else {
                assert_eq!(swap[6..9], ["-", "-", "-"], "{swap:?}");
            }
        }
        for swap in &swaps[3..] {
            assert!(swap[9].starts_with("failed: the new server was not up in time: it listens on :"), "{swap:?}");
        }
        let mut drains = told(&sandbox, port, "drain");
        drains.sort();
        for (nth, drain) in drains.iter().enumerate() {
            assert_eq!((&drain[2], &drain[3]), (&(nth + 1).to_string(), &pids[nth]));
            assert!(is_number(&drain[4]) && drain[5..] == ["0", "0", "0"], "{drain:?}");
        }
        status_tells_it(&sandbox, port, &swaps);
        sandbox.take_down(&address);
        // It outlives its server, and a takedown is no swap.
        assert_eq!(count("swap"), 3 + failed);
        let (status, text) = sandbox.run(["--status", "-v", &address]);
        assert!(status == 125 && text.contains(&swaps[0].join("\t")), "{text}");
        let (status, text) = sandbox.run(["--status", "-v", "--json", &address]);
        let told = format!("\"from\":1,\"from_pid\":{}", pids[0]);
        assert!(status == 125 && text.contains("\"pid\":null") && text.contains(&told), "{text}");
    });
}

/// `--status` shows the history with `-v` only: below the table, for programs by the address, and as JSON.
fn status_tells_it(sandbox: &Sandbox, port: u16, swaps: &[Vec<String>]) {
    let plain = sandbox.run(["--status"]).1;
    assert_eq!(plain.lines().count(), 1, "{plain}");
    assert!(!sandbox.run(["--status", "--json"]).1.contains("\"history\":"));
    let text = sandbox.run(["--status", "-v"]).1;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0].split('\t').count(), 11, "{text}");
    let own = history(sandbox, port).into_iter().map(|fields| format!(":{port}\t{}", fields.join("\t")));
    assert_eq!(lines[1..], own.collect::<Vec<_>>(), "{text}");
    let json = sandbox.run(["--status", "--json", "-v"]).1;
    let check = "import json, sys; [row] = json.load(sys.stdin); all = row['history']; \
         print([(e['from'], e['from_pid'], e['to'] + 0, e['gone_ms'] is None, e['end']) for e in all if e['kind'] == 'swap'])";
    let mut python = sandbox.command("python3");
    python.args(["-c", check]).stdin(fs::File::open(sandbox.file("json", &json)).unwrap());
    let output = String::from_utf8(python.output().unwrap().stdout).unwrap();
    let tuple = |swap: &Vec<String>| {
        let unknown = if swap[8] == "-" { "True" } else { "False" };
        format!("({}, {}, {}, {unknown}, '{}')", swap[2], swap[3], swap[4], swap[9])
    };
    let expected: Vec<String> = swaps.iter().map(tuple).collect();
    assert_eq!(output.trim(), format!("[{}]", expected.join(", ")), "{json}");
}

#[test]
fn swaps_at_the_same_time_lose_no_line() {
    common::in_both_orders(|sandbox| {
        let port = sandbox.port();
        let address = format!(":{port}");
        let (status, log) = sandbox.deploy(&[&address, "takedown"]);
        assert_eq!(status, 0, "{log}");
        let mut deploys: Vec<_> = (0..3).map(|_| sandbox.plain(&["-d"], &[&address, "takedown"])).collect();
        deploys.iter_mut().for_each(|deploy| assert_eq!(deploy.wait(), 0, "{}", deploy.log()));
        let count = |kind: &str| told(&sandbox, port, kind).len();
        until("all is told", || (count("swap"), count("drain")) == (3, 3));
        let mut swaps = told(&sandbox, port, "swap");
        swaps.sort_by_key(|swap| swap[2].clone());
        // Each one goes on from the one before.
        let ends = |swap: &Vec<String>| (swap[2..4].to_vec(), swap[4..6].to_vec());
        for pair in swaps.windows(2) {
            assert_eq!(ends(&pair[0]).1, ends(&pair[1]).0, "{swaps:?}");
        }
        sandbox.take_down(&address);
    });
}

#[test]
fn a_file_in_place_of_a_history_harms_no_swap() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    let own = sandbox.path(&format!("run/{port}.history"));
    let (mut first, old) = sandbox.serving(port, &["-v"], &[&address]);
    let victim = sandbox.file("victim", "untouched");
    symlink(&victim, &own).unwrap();
    let mut second = sandbox.plain(&["-v", "-d"], &[&address]);
    assert_eq!((second.wait(), first.wait(), alive(old)), (0, 0, false), "{}", second.log());
    let text = format!("unable to write its history: {port}.history is a symlink (nothing else depends on it)");
    second.says(&text);
    first.says(&text);
    let (status, shown) = sandbox.run(["--status", "-v", &address]);
    assert!(status == 0 && shown.contains("its history is a symlink (it is not shown)"), "{shown}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    fs::remove_file(&own).unwrap();
    // Garbage in a file of ours gives way to the next line, and is not shown.
    fs::write(&own, b"swap\t\x1b[2J\n\xff\xff\n").unwrap();
    let (status, shown) = sandbox.run(["--status", "-v", &address]);
    assert!(status == 0 && shown.lines().count() == 1 && !shown.contains('\x1b'), "{shown:?}");
    let (status, log) = sandbox.deploy(&[&address]);
    assert!(status == 0 && !log.contains("its history"), "{log}");
    until("both are told", || history(&sandbox, port).len() == 2);
    sandbox.take_down(&address);
}

#[test]
fn a_history_is_kept_for_a_month_and_as_long_as_its_address_is_served() {
    let sandbox = Sandbox::shared();
    let port = sandbox.port();
    let address = format!(":{port}");
    for _ in 0..2 {
        let (status, log) = sandbox.deploy(&[&address]);
        assert_eq!(status, 0, "{log}");
    }
    let served = sandbox.run_dir().join(format!("{port}.history"));
    let [month, gone] = [30, 32].map(|days| {
        let path = sandbox.run_dir().join(format!("{days}.history"));
        fs::copy(&served, &path).unwrap();
        path
    });
    let long_ago = SystemTime::now() - Duration::from_secs(31 * 24 * 3600);
    for path in [&served, &gone] {
        fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
    }
    let other = format!(":{}", sandbox.port());
    let (status, log) = sandbox.deploy(&[&other]);
    assert_eq!(status, 0, "{log}");
    until("what is old is gone", || !gone.exists());
    assert!(served.exists() && month.exists());
    let (status, log) = sandbox.run(["--takedown", &address, &other]);
    assert_eq!(status, 0, "{log}");
    sandbox.assert_clean();
}
