use super::*;
use crate::address::Address;
use crate::history::{Entry, Who};
use crate::sys::process::Pid;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn run_dir() -> (tempfile::TempDir, RunDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = RunDir::open(Some(&temp.path().join("run")), true).unwrap();
    (temp, dir)
}

fn address() -> Address {
    Address::parse("a-name").unwrap()
}

#[test]
fn who_locks_every_file_that_he_may_read_hinders_nobody() {
    let (_temp, dir) = run_dir();
    let path = dir.path().join(format!(".new.{}", Pid::own()));
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let is_over = || over.load(std::sync::atomic::Ordering::Relaxed);
            while !is_over() {
                let public = |file: &File| file.metadata().is_ok_and(|m| m.permissions().mode() & 0o004 != 0);
                if let Some(file) = File::open(&path).ok().filter(public)
                    && file.try_lock().is_ok()
                {
                    // As long as it takes to be noticed.
                    while !is_over() && path.exists() {}
                }
            }
        });
        let written: Vec<_> = (0..1000).map(|_| dir.write_pid(&address(), Pid::own())).collect();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(written.iter().all(|written| written.is_ok()), "{:?}", written.iter().find(|w| w.is_err()));
    });
}

#[test]
fn a_run_directory_that_cannot_be_trusted_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let open = |path: &Path| RunDir::open(Some(path), true).err().map(|e| e.text).unwrap_or_default();
    let file = temp.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(open(&file).contains("no directory"));
    let wide = temp.path().join("wide");
    std::fs::create_dir(&wide).unwrap();
    std::fs::set_permissions(&wide, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(open(&wide).contains("others can write"));
    let link = temp.path().join("link");
    std::os::unix::fs::symlink(temp.path(), &link).unwrap();
    assert!(open(&link).contains("no directory"));
    assert!(open(&temp.path().join("a/b")).contains("No such file"));
    assert!(open(&temp.path().join("x".repeat(100))).contains("too long"));
    if geteuid().is_root() {
        let foreign = temp.path().join("foreign");
        std::fs::create_dir(&foreign).unwrap();
        std::os::unix::fs::chown(&foreign, Some(65534), None).unwrap();
        assert!(open(&foreign).contains("another user"));
    }
}

fn entry(generation: u64) -> Entry {
    let who = |generation| Who { generation, pid: Pid::own() };
    Entry::swap(who(generation), who(generation + 1), [None; 3], "done")
}

#[test]
fn those_who_write_to_a_history_at_once_lose_no_line() {
    let (_temp, dir) = run_dir();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let own = RunDir::open(Some(dir.path()), false).unwrap();
            scope.spawn(move || {
                for nth in 0..5 {
                    assert!(own.add_to_history(&address(), &entry(writer * 100 + nth)).is_ok());
                }
            });
        }
    });
    assert_eq!(dir.history(&address()).unwrap().len(), 20);
    // Whoever finds the directory busy is told so at once.
    let impatient = RunDir::open(Some(dir.path()), false).unwrap().with_patience(Duration::ZERO);
    let _lock = dir.lock();
    assert!(matches!(impatient.add_to_history(&address(), &entry(1)), Err(Denied::Busy)));
}

#[test]
fn a_file_in_place_of_a_history_is_never_followed_and_left_alone() {
    let (temp, dir) = run_dir();
    let path = dir.path().join("a-name.history");
    let victim = temp.path().join("victim");
    let line = format!("{}\n", entry(1));
    std::fs::write(&victim, &line).unwrap();
    let plant: [(&str, &dyn Fn()); 6] = [
        ("is a symlink", &|| std::os::unix::fs::symlink(&victim, &path).unwrap()),
        ("hard link", &|| std::fs::hard_link(&victim, &path).unwrap()),
        ("too large", &|| std::fs::write(&path, vec![b'x'; 100_000]).unwrap()),
        ("no regular file", &|| nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap()),
        ("another user", &|| {
            std::fs::write(&path, &line).unwrap();
            let _ = std::os::unix::fs::chown(&path, Some(65534), None);
        }),
        ("no regular file", &|| std::fs::create_dir(&path).unwrap()),
    ];
    for (why, plant) in plant {
        plant();
        if why == "another user" && !geteuid().is_root() {
            continue;
        }
        let before = path.symlink_metadata().unwrap();
        let Err(Denied::Because(said)) = dir.add_to_history(&address(), &entry(2)) else { panic!("{why}") };
        assert!(said.contains(why), "{why}: {said}");
        assert!(dir.history(&address()).is_err(), "{why}");
        dir.tidy();
        let after = path.symlink_metadata().unwrap();
        assert_eq!((before.ino(), before.len()), (after.ino(), after.len()), "{why}");
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), line);
        std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path)).unwrap();
    }
    // What is in a file of ours and no line is dropped.
    std::fs::write(&path, [b"garbage\n\xff\0\n".as_slice(), line.as_bytes()].concat()).unwrap();
    assert!(dir.add_to_history(&address(), &entry(2)).is_ok());
    assert_eq!(dir.history(&address()).unwrap().len(), 2);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
}

#[test]
fn a_history_is_forgotten_when_nothing_was_written_for_a_month() {
    let (_temp, dir) = run_dir();
    let path = dir.path().join("a-name.history");
    let age = |days: u64| {
        assert!(dir.add_to_history(&address(), &entry(1)).is_ok());
        let written = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
        File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
        dir.tidy();
        path.exists()
    };
    assert_eq!([29, 31].map(age), [true, false]);
}
