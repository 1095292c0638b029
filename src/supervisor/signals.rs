//! Signals: to reload, to stop, and those that are meant for the server.

use super::state::Supervisor;
use crate::error::status;
use crate::swap;
use nix::sys::signal::Signal;
use std::time::Instant;

impl Supervisor {
    pub(super) fn signalled(&mut self, signal: Signal, from_terminal: bool) {
        if self.live.is_none() && self.passed_to_successor(signal) {
            return;
        }
        match signal {
            Signal::SIGHUP if self.is_caretaker() => {}
            Signal::SIGHUP if !self.caller.on_terminal => self.want_reload(None, None),
            Signal::SIGUSR1 | Signal::SIGUSR2 => self.pass_on(signal),
            // The terminal went away. SIGHUP reached the server too, but does not end every server: it is told to stop.
            Signal::SIGHUP => self.told_to_stop(false),
            _ => self.told_to_stop(from_terminal),
        }
    }

    fn is_caretaker(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.server.is_adopted())
    }

    /// Stops the server at a signal. If the front got the signal too and has told us already, it counts once.
    pub(super) fn told_to_stop(&mut self, from_terminal: bool) {
        if self.is_caretaker() && self.reloads.copies.is_empty() {
            // The signal is meant for the session or control group that started this caretaker. Its server lives on.
            self.caller.status = status::DONE;
            return self.live = None;
        }
        self.caller.signals += 1;
        if self.caller.signals > self.caller.stops {
            self.stop(from_terminal);
        }
    }

    pub(super) fn stop(&mut self, signalled: bool) {
        self.caller.stops += 1;
        self.caller.excused += u32::from(self.live.as_ref().is_some_and(|live| live.machine.is_on_trial()));
        self.stop_copies(signalled);
        self.refuse_reload();
        let is_over = self.reloads.copies.is_empty() || self.caller.stops > 1;
        if is_over && self.live.is_none() {
            // What is left of the servers was told to stop when they ended.
            let now = Instant::now();
            self.kin.leftovers.iter_mut().for_each(|left| left.until = now);
            self.poll_soon();
        }
        self.tell_manager("STOPPING=1");
        if self.live.is_some() {
            self.feed(swap::Event::Stop { signalled });
        }
    }
}
