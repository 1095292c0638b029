//! Process ids. Pure but for [`Pid::own`].

/// A process id that can be signalled. It is never 0 or negative, so that `kill(-1)` cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(i32);

impl Pid {
    /// `None` if it is not the pid of one process.
    pub fn new(raw: i64) -> Option<Pid> {
        i32::try_from(raw).ok().filter(|&pid| pid > 0).map(Pid)
    }

    /// The pid of this process.
    pub fn own() -> Pid {
        Pid(nix::unistd::getpid().as_raw())
    }

    /// The pid of a child that was just spawned.
    #[cfg(test)]
    pub fn of(child: &std::process::Child) -> Pid {
        Pid(child.id() as i32)
    }

    /// For calls that take a number.
    pub fn raw(self) -> i32 {
        self.0
    }
}

impl std::fmt::Display for Pid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
