//! How soon the kernel ends a process when memory runs out: its value in `oom_score_adj` (proc_pid_oom_score_adj(5)). A
//! child inherits it.

use super::pid::Pid;
use nix::libc;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The value of the processes of a new server. Whatever wants to go first by itself takes the highest one, 1000: so this
/// value is ours.
const NEW: i32 = 999;

/// `CAP_SYS_RESOURCE` (capabilities(7)), one of the lower 32.
const SYS_RESOURCE: u32 = 24;

/// The effective, permitted and inheritable capabilities of a thread: the lower 32 of them, and the others (capget(2)).
type Capabilities = [[u32; 3]; 2];

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h, which libc does not have, and the thread that asks.
const THIS_THREAD: [u32; 2] = [0x2008_0522, 0];

/// The value of one process, whatever becomes of its pid.
pub struct OomScore(File);

impl OomScore {
    /// Opens the value of the process that has this pid now. It can be written later, too, if the process has become
    /// another user by then.
    pub fn open(pid: Pid) -> io::Result<OomScore> {
        File::options().read(true).write(true).open(format!("/proc/{pid}/oom_score_adj")).map(OomScore)
    }

    /// Raises the value to that of a new server.
    pub fn raise(&self) -> io::Result<()> {
        if read(&self.0)? < NEW { self.write(NEW) } else { Ok(()) }
    }

    /// Replaces the value of a new server by that of this process, which its child would have had from the start. Tells
    /// whether it was there to be replaced.
    pub fn give_back(&self) -> io::Result<bool> {
        let own = read(&File::open("/proc/self/oom_score_adj")?)?;
        if read(&self.0)? != NEW || own >= NEW {
            return Ok(false);
        }
        self.write(own).map(|()| true)
    }

    /// A process without `CAP_SYS_RESOURCE` may take no value below the last one that was written with it (the kernel's
    /// Documentation/filesystems/proc.rst, 3.1). Written without it, a value limits nobody.
    fn write(&self, value: i32) -> io::Result<()> {
        without(SYS_RESOURCE, || self.0.write_at(value.to_string().as_bytes(), 0).map(drop))
    }
}

fn read(file: &File) -> io::Result<i32> {
    let mut text = [0; 16];
    let len = file.read_at(&mut text, 0)?;
    String::from_utf8_lossy(&text[..len]).trim().parse().map_err(io::Error::other)
}

/// Does something while this thread has a capability not in effect.
fn without<T>(capability: u32, act: impl FnOnce() -> T) -> T {
    let (mut header, mut own) = (THIS_THREAD, Capabilities::default());
    // SAFETY: the pointers are to locals, which have the layout of that version.
    let known = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), own.as_mut_ptr()) } == 0;
    let mut less = own;
    less[0][0] &= !(1 << capability);
    if !known || less == own {
        return act();
    }
    set(&less);
    let result = act();
    set(&own);
    result
}

/// Sets the capabilities of this thread. What is permitted can be put in effect again.
fn set(capabilities: &Capabilities) {
    let mut header = THIS_THREAD;
    // SAFETY: as above; the kernel only reads the second one.
    unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), capabilities.as_ptr()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of those that root has everywhere.
    const CHOWN: u32 = 0;

    #[test]
    fn a_capability_is_in_effect_again_afterwards() {
        let effective = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        for capability in [CHOWN, SYS_RESOURCE] {
            let before = effective();
            let during = without(capability, effective);
            assert_eq!(during, before & !(1 << capability));
            assert_eq!(effective(), before);
        }
        if nix::unistd::geteuid().is_root() {
            assert_ne!(without(CHOWN, effective), effective());
        }
    }
}
