//! Who belongs to a server: its main process and what descends from it, whatever that does to its title or its
//! environment. A supervisor is a child subreaper (prctl(2)): what its server leaves behind becomes its own child. An
//! orphan is known by less: descent ends with the supervisor.

#![forbid(unsafe_code)]

mod seen;

pub use seen::Seen;

use crate::procfs::{self, MARK, Snapshot, Stat};
use crate::sys::process::{self, Pid, Pidfd};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

/// What makes a process belong to a server.
pub struct Family {
    /// The main process.
    pub main: Pid,
    /// When that started: its number may be another's by now.
    pub start: u64,
    /// The process group, where the server has one of its own.
    pub group: Option<Pid>,
    /// The session of that group.
    pub session: i32,
    /// The value of [`MARK`].
    pub mark: String,
    /// How it is known what descends from the server.
    pub descent: Descent,
}

/// How it is known what descends from a server.
pub enum Descent {
    /// This process supervises it.
    Ours(Member),
    /// Another process does.
    From(Pid),
    /// Its supervisor is dead. All of this session is the server's, if it has one of its own.
    Lost(Option<i32>),
}

/// Jobs of a server that have a session of their own and no listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jobs {
    /// They go with the server.
    Ended,
    /// They live on: another server takes the place of theirs.
    Spared,
}

/// Children of this process that are not its server's.
#[derive(Debug)]
pub struct Household {
    /// Those that it had before it started a server: of the shell that executed it, say.
    strangers: Vec<Stat>,
    /// Servers of copies that were started for a reload, by pid and start: our children if their copies are killed.
    of_copies: Mutex<BTreeSet<(Pid, u64)>>,
}

/// A server in its household.
#[derive(Debug)]
pub struct Member {
    household: Arc<Household>,
    started: u64,
    seen: Seen,
}

impl Household {
    /// Notes the children that this process has already. Call it before the server starts.
    pub fn found() -> io::Result<Arc<Household>> {
        let strangers = match process::has_children()? {
            false => Vec::new(),
            true => {
                let snapshot = Snapshot::take();
                snapshot.complete()?;
                snapshot.all().filter(|stat| stat.parent == Pid::own().raw()).cloned().collect()
            }
        };
        Ok(Arc::new(Household { strangers, of_copies: Mutex::default() }))
    }

    /// The server as a member of this household. `started`: its start time.
    pub fn enter(self: &Arc<Household>, started: u64, seen: Seen) -> Member {
        Member { household: self.clone(), started, seen }
    }

    /// A copy has started this server: pid, and start time.
    pub fn has_copy_of(&self, server: (Pid, u64)) {
        seen::lock(&self.of_copies).insert(server);
    }

    /// This server of a copy is gone.
    pub fn forget_copy_of(&self, server: (Pid, u64)) {
        seen::lock(&self.of_copies).remove(&server);
    }
}

impl Member {
    /// Whether the server has left this child of ours behind.
    fn is_heir(&self, child: &Stat, mark: Option<&str>, own_mark: &str) -> bool {
        let own = (child.pid, child.start);
        let strangers = &self.household.strangers;
        match mark {
            _ if strangers.iter().any(|other| (other.pid, other.start) == own) => false,
            _ if seen::lock(&self.household.of_copies).contains(&own) => false,
            Some(mark) => mark == own_mark,
            // Strangers leave children behind too, in the groups that the strangers are in.
            None if child.group == nix::unistd::getpgrp().as_raw() && !strangers.is_empty() => false,
            None if strangers.iter().any(|other| other.group == child.group) => false,
            None => self.has_claim(child),
        }
    }

    fn has_claim(&self, child: &Stat) -> bool {
        let is_old_enough = self.started <= child.start;
        if Pid::own().raw() != 1 {
            return is_old_enough;
        }
        // Process 1 gets what others in its container leave behind too. What our filter is on has one more than we.
        let held = procfs::find_held(child.pid).ok().flatten().unwrap_or_default();
        let foreign = nix::unistd::getsid(None).map_or(0, nix::unistd::Pid::as_raw);
        held.iter().any(|inode| self.seen.had(*inode))
            || child.session != foreign && self.seen.has_session(child.session)
            || is_old_enough && (!self.seen.is_watched() || procfs::filters(child.pid) > procfs::filters(Pid::own()))
    }
}

impl Family {
    /// The living processes of the server. Another serverswap and what is below it never belongs.
    pub fn members<'a>(&self, snapshot: &'a Snapshot) -> Vec<&'a Stat> {
        let (is_serverswap, own) = (procfs::serverswaps(), Pid::own());
        let is_main = |stat: &Stat| stat.pid == self.main && stat.start == self.start;
        let supervisor = match self.descent {
            Descent::Ours(_) => Some(own),
            Descent::From(supervisor) => Some(supervisor),
            Descent::Lost(_) => None,
        };
        // The number of a group or session is its first leader's pid. If another process has that pid, all have left.
        let is_gone = |number: i32| snapshot.get(number).is_none_or(is_main);
        let group = self.group.filter(|group| is_gone(group.raw()));
        let session = match self.descent {
            Descent::Lost(session) => session.filter(|session| is_gone(*session)),
            Descent::Ours(_) | Descent::From(_) => None,
        };
        let is_near = |stat: &&Stat| {
            Some(stat.group) == group.map(Pid::raw) && stat.session == self.session || Some(stat.session) == session
        };
        let belongs = |stat: &&Stat| {
            let top = |a: &&Stat| is_main(a) || Some(a.pid) == supervisor || a.pid == own;
            let below: Vec<&Stat> = snapshot.ancestry(stat.pid.raw()).take_while(|a| !top(a)).collect();
            let Some(highest) = below.last() else { return is_main(stat) };
            // The mark of the process itself, or else of its nearest ancestor that can be read.
            let mark = || below.iter().find_map(|a| procfs::environment(a.pid, MARK));
            let belongs = match snapshot.get(highest.parent) {
                Some(top) if is_main(top) => true,
                _ if below.iter().any(is_near) => true,
                Some(top) if Some(top.pid) == supervisor => match &self.descent {
                    Descent::Ours(member) => member.is_heir(highest, mark().as_deref(), &self.mark),
                    Descent::From(_) | Descent::Lost(_) => mark().is_none_or(|mark| mark == self.mark),
                },
                // Its parent is this process, but another one supervises the server, or none: only the mark tells.
                Some(_) => mark().is_some_and(|mark| mark == self.mark),
                // Its parent ended during the scan, and it has another one by now. Anybody can write a mark, so it
                // counts only in a process of this user.
                None if highest.parent != 0 => {
                    mark().is_some_and(|mark| mark == self.mark) && procfs::is_of_this_user(stat.pid)
                }
                None => false,
            };
            // Asked last: it costs more than all the rest, and most processes are nobody's.
            belongs && !below.iter().any(|a| is_serverswap(a.pid))
        };
        let tops = [Some(self.main), Some(own), supervisor].into_iter().flatten().map(Pid::raw);
        let near = snapshot.all().filter(is_near).map(|stat| stat.pid.raw());
        snapshot.below(tops.chain(near)).filter(belongs).collect()
    }

    /// Inodes of all sockets that the processes of the server hold; `None` if one of them may not be asked.
    pub fn sockets(&self, snapshot: &Snapshot) -> Option<BTreeSet<u32>> {
        snapshot.complete().ok()?;
        let mut all = BTreeSet::new();
        for stat in self.members(snapshot) {
            match procfs::find_held(stat.pid).ok()? {
                Some(held) => all.extend(held),
                None if procfs::has_ended(stat.pid) => {}
                None => return None,
            }
        }
        Some(all)
    }
}

/// Signals a process that was seen; `false` if it is gone.
pub fn signal(stat: &Stat, signal: Signal) -> bool {
    // The pid may have been reused since the look: the start time of the opened one decides.
    Pidfd::open(stat.pid).is_ok_and(|pidfd| {
        procfs::stat(stat.pid).is_some_and(|now| now.start == stat.start) && pidfd.signal(signal).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parent of a process may have ended while we looked, and so may that of another user's process.
    #[test]
    fn a_mark_in_the_environment_of_another_user_makes_nothing_ours() {
        use std::os::unix::process::CommandExt;
        let mark = "/run/serverswap/1-1.sock";
        let main = Pid::new(4_194_304).unwrap();
        let family =
            Family { main, start: 0, group: None, session: 0, mark: mark.into(), descent: Descent::Lost(None) };
        let root = nix::unistd::geteuid().is_root();
        for uid in [None, root.then_some(65534)] {
            let mut command = std::process::Command::new("sleep");
            command.arg("60").env(MARK, mark).current_dir("/");
            if let Some(uid) = uid {
                command.uid(uid);
            }
            let mut child = command.spawn().unwrap();
            let pid = Pid::of(&child);
            // It may still be in the middle of execve(2).
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            while procfs::environment(pid, MARK).is_none() {
                assert!(std::time::Instant::now() < deadline, "it has no environment");
                std::thread::yield_now();
            }
            let torn = Snapshot::of(Snapshot::take().all().filter(|stat| stat.pid == pid).cloned());
            let belongs = family.members(&torn).iter().any(|stat| stat.pid == pid);
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(belongs, uid.is_none());
        }
    }

    /// The number of a main process that has ended is given to somebody else, and so is that of its group.
    #[test]
    fn a_pid_or_a_group_that_was_reused_makes_nothing_ours() {
        // No process has these: they are above the highest pid (proc(5), pid_max).
        let [main, child, worker] = [4_194_301, 4_194_302, 4_194_303].map(|pid| Pid::new(pid).unwrap());
        let of = |pid, parent: i32, session, start| Stat {
            pid,
            parent,
            group: main.raw(),
            session,
            start,
            zombie: false,
            threads: 1,
            exiting: false,
        };
        let family = Family {
            main,
            start: 5,
            group: Some(main),
            session: 7,
            mark: "/none".into(),
            descent: Descent::Lost(None),
        };
        let found = |stats: &[Stat]| {
            let snapshot = Snapshot::of(stats.iter().cloned());
            family.members(&snapshot).iter().map(|stat| stat.pid).collect::<Vec<Pid>>()
        };
        assert_eq!(found(&[of(main, 1, 7, 5), of(child, main.raw(), 7, 6)]), [main, child]);
        assert_eq!(found(&[of(worker, 1, 7, 6)]), [worker]);
        assert_eq!(found(&[of(main, 1, main.raw(), 9), of(child, main.raw(), main.raw(), 9)]), []);
        assert_eq!(found(&[of(main, 1, 7, 9), of(child, main.raw(), 7, 9)]), []);
        // And its leader has ended since.
        assert_eq!(found(&[of(child, 1, main.raw(), 9)]), []);
    }

    /// All of a session that an orphan alone has is the orphan's, and nobody of one whose number was given away again.
    #[test]
    fn an_orphan_is_known_by_a_session_of_its_own() {
        let [main, other] = [4_194_302, 4_194_303].map(|pid| Pid::new(pid).unwrap());
        let of = |pid: Pid, session, start| Stat {
            pid,
            parent: 1,
            group: pid.raw(),
            session,
            start,
            zombie: false,
            threads: 1,
            exiting: false,
        };
        let mark = "/none".to_owned();
        let descent = Descent::Lost(Some(4_194_301));
        let family = Family { main, start: 5, group: None, session: 4_194_301, mark, descent };
        let found = |stats: &[Stat]| {
            let snapshot = Snapshot::of(stats.iter().cloned());
            family.members(&snapshot).iter().map(|stat| stat.pid).collect::<Vec<Pid>>()
        };
        assert_eq!(found(&[of(main, 4_194_301, 5), of(other, 4_194_301, 6)]), [main, other]);
        assert_eq!(found(&[of(main, 4_194_301, 5), of(other, 7, 6)]), [main]);
        let leader = Pid::new(4_194_301).unwrap();
        assert_eq!(found(&[of(leader, 4_194_301, 9), of(other, 4_194_301, 9)]), []);
    }

    fn child(pid: i64, start: u64) -> Stat {
        let pid = Pid::new(pid).unwrap();
        Stat {
            pid,
            parent: Pid::own().raw(),
            group: pid.raw(),
            session: pid.raw(),
            start,
            zombie: false,
            threads: 1,
            exiting: false,
        }
    }

    #[test]
    fn a_child_without_a_mark_is_the_servers_unless_it_is_older_or_a_strangers() {
        let household = Arc::new(Household { strangers: vec![child(4_194_300, 1)], of_copies: Mutex::default() });
        let server = household.enter(10, Seen::default());
        let is = |pid, start| server.is_heir(&child(pid, start), None, "own");
        assert!(is(4_194_301, 10) && !is(4_194_301, 9) && !is(4_194_300, 1));
        // The server of a copy that was killed.
        household.has_copy_of((Pid::new(4_194_301).unwrap(), 30));
        assert!(!is(4_194_301, 30) && is(4_194_301, 31));
        // A mark says it all.
        let marked = |mark| server.is_heir(&child(4_194_302, 5), Some(mark), "own");
        assert!(marked("own") && !marked("other"));
    }
}
