//! What is said of a server that failed: why, and the last lines that it wrote. Whoever waits for a reload hears it too.

#![forbid(unsafe_code)]

use super::state::Supervisor;
use crate::address::Address;
use crate::protocol::CopyWord;
use crate::swap::Level;
use std::collections::BTreeSet;

impl Supervisor {
    /// One line of a failure.
    pub(super) fn say_failure(&self, address: Option<&Address>, text: &str) {
        self.log.say(Level::Error, address, text);
        self.tell_front_of_failure(address, text);
    }

    /// A copy tells its front, which tells those that wait for the reload.
    fn tell_front_of_failure(&self, address: Option<&Address>, text: &str) {
        if let Some(front) = self.reloads.front {
            let address = address.map_or(String::new(), |address| format!("{address}: "));
            self.tell(front, &CopyWord::Said(format!("{address}{text}")));
        }
    }

    /// Names the strangers that listen where our server wanted to, which was not up before it ended.
    pub(super) fn show_strangers(&self) {
        let Some(live) = self.live.as_ref() else { return };
        let mut wanted: BTreeSet<Address> = live.server.asked().into_iter().map(Address::from).collect();
        wanted.extend(live.machine.name());
        for address in &wanted {
            if let Some(stranger) = self.dir.stranger_at(address) {
                self.say_failure(Some(address), &stranger);
            }
        }
    }

    /// Shows what the last check wrote if it has failed, of a server that was not up before it ended.
    pub(super) fn show_check(&self) {
        let Some(checks) = self.agenda.checks.as_ref().filter(|checks| !checks.said.is_empty()) else { return };
        let name = self.live.as_ref().and_then(|live| live.name());
        let said = checks.said.iter().map(|line| format!("| {line}"));
        for line in ["the last lines of its check:".to_owned()].into_iter().chain(said) {
            self.say_failure(name.as_ref(), &line);
        }
    }

    /// Shows the last lines of our server, which was not up before it ended. They are not shown again where it wrote them.
    pub(super) fn show_last_lines(&self) {
        let Some(live) = self.live.as_ref() else { return };
        let (output, name) = (&self.caller.output, live.name());
        let Some(lines) = output.last_lines() else {
            // A terminal, a pipe or a journal shows them; whoever waits for a reload may look elsewhere.
            let what = format!("what server {} wrote is where the output of its supervisor goes", live.server.pid);
            return self.tell_front_of_failure(name.as_ref(), &what);
        };
        // That a server which was killed wrote nothing explains nothing.
        if lines.is_empty() && live.life.killed {
            return;
        }
        let place = output.shown().map_or(String::new(), |path| format!(" in {}", path.display()));
        let what = match lines.len() {
            0 => format!("server {} wrote nothing{place}", live.server.pid),
            _ => format!("the last lines{place} up to those of server {}:", live.server.pid),
        };
        let lines: Vec<String> = [what].into_iter().chain(lines.iter().map(|line| format!("| {line}"))).collect();
        let is_ours = output.is_ours();
        for line in lines {
            if !is_ours {
                self.log.say(Level::Error, name.as_ref(), &line);
            }
            self.tell_front_of_failure(name.as_ref(), &line);
        }
    }
}
