use super::*;
use crate::address::Address;
use crate::procfs;
use crate::record::Record;
use crate::rundir::{Notes, RunDir, record_name};
use crate::sys::pid::Pid;
use nix::sys::stat::Mode;
use std::fs::File;

fn run_dir() -> (tempfile::TempDir, RunDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = RunDir::open(Some(&temp.path().join("run")), true).unwrap();
    (temp, dir)
}

fn record(pid: Pid, socket: &str, command: &str) -> Record {
    let start = procfs::stat(pid).unwrap().start;
    Record { generation: 1, socket_name: socket.into(), command: command.into(), ..Record::of(pid, start) }
}

fn address() -> Address {
    Address::parse("a-name").unwrap()
}

fn asker(me: Pid) -> Asker<'static> {
    Asker { me, owns: &|_| Ok(false), holds: &|_| Ok(false), places: &[] }
}

fn claim(dir: &RunDir, pid: Pid) -> (Found, Notes) {
    let mut notes = Notes::new();
    let found = dir.look_up(&address(), &asker(pid), &mut notes);
    (found, notes)
}

#[test]
fn a_vacant_address_is_claimed_and_only_its_owner_lets_go() {
    let (_temp, dir) = run_dir();
    let (me, other) = (Pid::own(), Pid::new(1).unwrap());
    assert!(matches!(claim(&dir, me).0, Found::Vacant(_)));
    assert_eq!(std::fs::read_to_string(dir.path().join("a-name.pid")).unwrap(), format!("{me}\n"));
    dir.unhold(&address(), other);
    assert_eq!(dir.addresses().unwrap(), [address()]);
    dir.unhold(&address(), me);
    assert_eq!(dir.addresses().unwrap(), []);
}

#[test]
fn a_registered_server_is_found_and_a_dead_one_is_stale() {
    let (_temp, dir) = run_dir();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = Pid::of(&child);
    let registration = dir.register(Record { generation: 7, ..record(pid, "1-1.sock", "sleep\n60") }).unwrap();
    assert!(matches!(claim(&dir, pid).0, Found::Vacant(_)));
    let Found::Taken(holders) = claim(&dir, Pid::own()).0 else { panic!() };
    assert_eq!((holders[0].pid, holders[0].generation), (pid, 7));
    assert!(!holders[0].is_orphan && holders[0].command == "sleep 60");
    drop(registration);
    let Found::Orphans(holders) = claim(&dir, Pid::own()).0 else { panic!() };
    assert!(holders[0].is_orphan);
    drop(holders);
    child.kill().unwrap();
    child.wait().unwrap();
    let (found, notes) = claim(&dir, Pid::own());
    assert!(matches!(found, Found::Vacant(_)) && notes.len() == 1, "{notes:?}");
    assert!(!dir.path().join(format!("{pid}.server")).exists());
}

#[test]
fn a_record_that_took_the_name_of_another_is_left_alone() {
    let (_temp, dir) = run_dir();
    let me = Pid::own();
    let old = dir.register(record(me, "old.sock", "x")).unwrap();
    let new = dir.register(record(me, "new.sock", "x")).unwrap();
    dir.deregister(old, &[]);
    assert!(dir.path().join(record_name(me)).exists());
    dir.deregister(new, &[]);
    assert!(!dir.path().join(record_name(me)).exists());
}

#[test]
fn an_address_is_not_taken_from_a_third_server() {
    let (_temp, dir) = run_dir();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let (pid, me) = (Pid::of(&child), Pid::own());
    let third = dir.register(record(pid, "1-1.sock", "sleep 60")).unwrap();
    assert!(matches!(claim(&dir, pid).0, Found::Vacant(_)));
    assert_eq!(dir.take(&address(), me, &[], &[]), Ok(false));
    assert_eq!(dir.take(&address(), me, &[pid], &[]), Ok(true));
    assert!(dir.take(&address(), pid, &[], &[]).unwrap());
    drop(third);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(dir.take(&address(), me, &[], &[]), Ok(true));
}

#[test]
fn what_the_dead_leave_behind_is_cleaned_up() {
    let (_temp, dir) = run_dir();
    let (dead, me) = (Pid::new(4_194_304).unwrap(), Pid::own());
    let namespace = dir.namespaces().pid.unwrap_or(0);
    let names = |pid: Pid| [format!(".new.{pid}-{namespace:x}"), format!("{pid}-1.sock"), format!("{pid}-1.notify")];
    for name in names(dead).into_iter().chain(names(me)).chain([record_name(dead), "other".into()]) {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    dir.tidy();
    let mut left = dir.names_that_end("").unwrap();
    left.retain(|name| name != "lock");
    left.sort();
    let mut expected = names(me).to_vec();
    expected.push("other".into());
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn a_reused_pid_is_no_server() {
    let (_temp, dir) = run_dir();
    let other = std::process::id();
    let text = format!(
        "serverswap 1\npid {other}\nstart 1\nboot {}\nsupervisor 1\ngeneration 1\nsocket x.sock\n",
        procfs::boot_id()
    );
    std::fs::write(dir.path().join(format!("{other}.server")), text).unwrap();
    std::fs::write(dir.path().join("a-name.pid"), format!("{other}\n")).unwrap();
    let (found, notes) = claim(&dir, Pid::new(1).unwrap());
    assert!(matches!(found, Found::Vacant(_)) && notes.len() == 1);
}

#[test]
fn a_record_of_a_later_version_is_left_alone_while_its_supervisor_lives() {
    let (_temp, dir) = run_dir();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = Pid::of(&child);
    let record = dir.path().join(record_name(pid));
    std::fs::write(&record, format!("serverswap 2\npid {pid}\n")).unwrap();
    let lock = File::open(&record).unwrap();
    lock.lock().unwrap();
    std::fs::write(dir.path().join("a-name.pid"), format!("{pid}\n")).unwrap();
    let Found::Unclear(why) = claim(&dir, Pid::own()).0 else { panic!() };
    assert_eq!(why, format!("unable to read the record of server {pid}"));
    dir.tidy();
    assert!(record.exists() && dir.path().join("a-name.pid").exists());
    drop(lock);
    assert!(matches!(claim(&dir, Pid::own()).0, Found::Vacant(_)));
    assert!(!record.exists());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn hostile_pidfiles_are_recognised_and_never_followed() {
    let (temp, dir) = run_dir();
    let pidfile = dir.path().join("a-name.pid");
    let victim = temp.path().join("victim");
    std::fs::write(&victim, "1\n").unwrap();
    let plant: [(&str, &dyn Fn()); 6] = [
        ("is a symlink", &|| std::os::unix::fs::symlink(&victim, &pidfile).unwrap()),
        ("hard link", &|| std::fs::hard_link(&victim, &pidfile).unwrap()),
        ("holds no pid", &|| std::fs::write(&pidfile, "-1\n").unwrap()),
        ("holds no pid", &|| std::fs::write(&pidfile, "\u{ff}").unwrap()),
        ("too large", &|| std::fs::write(&pidfile, [b'1'; 100_000]).unwrap()),
        ("no regular file", &|| nix::unistd::mkfifo(&pidfile, Mode::S_IRWXU).unwrap()),
    ];
    for (why, plant) in plant {
        plant();
        let (found, notes) = claim(&dir, Pid::own());
        assert!(matches!(found, Found::Vacant(_)), "{why}");
        assert!(notes.len() == 1 && notes[0].contains(why), "{why}: {notes:?}");
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "1\n");
        std::fs::remove_file(&pidfile).unwrap();
    }
    std::fs::create_dir(&pidfile).unwrap();
    assert!(matches!(claim(&dir, Pid::own()).0, Found::Blocked(_)));
}
