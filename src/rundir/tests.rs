use super::*;
use crate::address::Address;
use crate::sys::process::Pid;
use std::os::unix::fs::PermissionsExt;

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
