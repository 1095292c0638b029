use super::ledger::LEDGER_LEN;
use super::report::send_result;
use super::*;
use nix::libc;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// A child under the filter, whose children make so many calls at once, and where they are seen.
fn calls(count: usize) -> (libc::pid_t, Notifier) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let filter = Filter::new().unwrap();
    let listeners: Vec<_> = (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    // SAFETY: the child makes async-signal-safe calls only, and ends, and so do its children.
    let child = unsafe { libc::fork() };
    if child == 0 {
        filter.install(theirs.as_raw_fd());
        for listener in &listeners {
            // SAFETY: as above.
            unsafe {
                if libc::fork() == 0 {
                    libc::_exit(libc::listen(listener.as_raw_fd(), 1));
                }
            }
        }
        let (mut failed, mut status) = (0, 0);
        // SAFETY: a pointer to an int of ours.
        while unsafe { libc::waitpid(-1, &raw mut status, 0) } > 0 {
            failed |= status;
        }
        // SAFETY: the end of this process.
        unsafe { libc::_exit(i32::from(failed != 0)) };
    }
    drop(theirs);
    let mut poll = libc::pollfd { fd: ours.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd, and the count says one.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 60_000) }, 1);
    (child, receive_result(&ours).unwrap())
}

fn status_of(child: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: a pointer to an int of ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// The supervisor is killed in the moment in which the kernel has given it the call, and it has done nothing yet.
#[test]
fn a_call_that_was_taken_and_not_noted_is_answered_by_the_keeper() {
    let (child, notifier) = calls(1);
    let ledger = Ledger::new().unwrap();
    let mut poll = libc::pollfd { fd: notifier.raw(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd, and the count says one; nobody else has the place.
    unsafe {
        assert_eq!(libc::poll(&raw mut poll, 1, 60_000), 1);
        let place = ledger.page().received.get();
        assert_eq!(libc::ioctl(notifier.raw(), libc::SECCOMP_IOCTL_NOTIF_RECV, place), 0);
    }
    answer_all(notifier.raw(), &ledger, false);
    assert_eq!(status_of(child), 0);
}

#[test]
fn more_calls_than_the_ledger_has_room_for_wait_and_are_answered() {
    let (count, ledger) = (LEDGER_LEN + 20, Ledger::new().unwrap());
    let (child, notifier) = calls(count);
    let mut held = Vec::new();
    for _ in 0..LEDGER_LEN {
        held.push(notifier.next(&ledger).unwrap().unwrap());
    }
    let answer = |call: Notification| notifier.answer(&ledger, call.id, Answer::Runs);
    std::thread::scope(|scope| {
        let rest = scope.spawn(|| {
            let mut taken = 0;
            while let Some(call) = notifier.next(&ledger).unwrap() {
                answer(call);
                taken += 1;
            }
            taken
        });
        held.into_iter().for_each(answer);
        assert_eq!(rest.join().unwrap(), 20);
    });
    assert_eq!(status_of(child), 0);
}

#[test]
fn a_call_that_cannot_be_taken_is_an_error_and_not_taken_again_and_again() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"x").unwrap();
    let failed = Notifier::from(std::os::fd::OwnedFd::from(ours)).next(&Ledger::new().unwrap());
    assert_eq!(failed.map(drop).map_err(|e| e.raw_os_error()), Err(Some(libc::ENOTTY)));
}

/// In a child of its own, which may have no more files than it has.
#[test]
fn a_file_for_which_there_is_no_room_is_no_success() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // SAFETY: a plain call; `send_result` takes the fd.
    send_result(theirs.as_raw_fd(), Ok(unsafe { libc::dup(0) }));
    // SAFETY: the child makes async-signal-safe calls only, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a pointer to a struct of ours.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) };
        let errno = receive_result(&ours).map_or_else(|e| e.raw_os_error().unwrap_or(255), |_| 254);
        // SAFETY: the end of this process.
        unsafe { libc::_exit(errno) };
    }
    let status = status_of(child);
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, libc::EMFILE));
}
