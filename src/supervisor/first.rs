//! The first process of a container. If it ended, the kernel would end the container with all processes in it
//! (pid_namespaces(7)): so it stays while another server in the container serves in place of its own, and stands for that.

#![forbid(unsafe_code)]

use super::state::{Successor, Supervisor};
use super::threads;
use crate::swap::Level;
use crate::sys::process::{End, Pid, Pidfd};
use nix::sys::signal::{Signal, kill};

impl Supervisor {
    /// Whether this process has to stay although its own server is gone.
    pub(super) fn stays(&mut self) -> bool {
        if Pid::own().raw() != 1 {
            return false;
        }
        if self.kin.successor.is_none() {
            self.kin.successor = self.find_successor();
        }
        self.kin.successor.is_some()
    }

    fn find_successor(&self) -> Option<Successor> {
        let find = || {
            let serving = self.kin.given.iter().filter_map(|address| self.dir.serving(address, &mut Vec::new()));
            serving.max_by_key(|server| server.generation)
        };
        let mut server = find()?;
        if server.has_lost_its_supervisor() {
            // Nothing else is to be done here.
            self.dir.with_caretaker(server.pid).ok()?;
            server = find()?;
        }
        let pid = server.supervisor;
        let end = threads::end_of(self.events.clone(), pid, Pidfd::open(pid).ok()?).ok()?;
        let text = format!("process 1 stays for server {}, which supervisor {pid} has", server.pid);
        self.log.say(Level::Notice, None, &text);
        if self.caller.signals > 0 {
            // Who has told process 1 to stop means the container, whichever server it has by now.
            tell(pid, Signal::SIGTERM);
        }
        Some(Successor { pid, end })
    }

    /// A process has ended, as its parent learns or, if `how` is `None`, from its pidfd.
    pub(super) fn successor_ended(&mut self, pid: Pid, how: Option<End>) {
        if self.kin.successor.as_ref().is_some_and(|successor| successor.pid == pid) {
            self.caller.status = how.map_or(self.caller.status, End::status);
            self.kin.successor = None;
        }
    }

    /// Passes a signal on to whoever has the server by now; `false` if nobody has. A signal to stop counts: its receiver may
    /// be one that was just replaced.
    pub(super) fn passed_to_successor(&mut self, signal: Signal) -> bool {
        let Some(successor) = &self.kin.successor else { return false };
        tell(successor.pid, signal);
        let goes_on = matches!(signal, Signal::SIGHUP | Signal::SIGUSR1 | Signal::SIGUSR2);
        self.caller.signals += u32::from(!goes_on);
        true
    }
}

/// A supervisor that ends meanwhile needs no signal.
fn tell(supervisor: Pid, signal: Signal) {
    let _ = kill(nix::unistd::Pid::from_raw(supervisor.raw()), signal);
}
