//! Taking down a server without a supervisor: nobody else can tell it to stop.

#![forbid(unsafe_code)]

use super::servers::NOTHING;
use crate::address::Address;
use crate::error::reason;
use crate::family::Jobs;
use crate::finder::Holder;
use crate::message::Log;
use crate::rundir::RunDir;
use crate::server::Server;
use crate::swap::Level;
use crate::sys::process::Pid;
use nix::sys::signal::Signal;
use std::io;
use std::time::Duration;

/// How long to wait if a server cannot be opened: it may be gone, or there may be no fd for it.
const PAUSE: Duration = Duration::from_millis(20);

/// Stops an orphan that has these addresses, unless it has others too that are not among the `named` ones.
pub fn take_down(
    dir: &RunDir,
    holder: &Holder,
    addresses: &[Address],
    named: &[Address],
    log: Log,
) -> Result<(), String> {
    // A supervisor that died during a swap has left two servers.
    let known = std::slice::from_ref(holder);
    let unclear = |e: io::Error| format!("unable to see who else listens: {} ({NOTHING})", reason(&e));
    let mut beside = dir.beside(addresses, Pid::own(), known).map_err(unclear)?;
    beside.retain(|other| other.orphan.is_some());
    let orphans = || [holder].into_iter().chain(&beside);
    let is_other = |a: &Address| !named.iter().any(|named| named.collides(a));
    let has = |a: &Address| dir.serving(a, &mut Vec::new()).is_some_and(|h| orphans().any(|own| own.pid == h.pid));
    let all = dir.addresses().map_err(unclear)?;
    let others: Vec<String> = all.iter().filter(|a| is_other(a) && has(a)).map(Address::to_string).collect();
    if !others.is_empty() {
        let others = others.join(", ");
        return Err(format!("the same server also has {others} and has lost its supervisor ({NOTHING})"));
    }
    orphans().try_for_each(|orphan| stop(dir, orphan, log))
}

/// Stops an orphan and removes what it leaves in the run directory.
fn stop(dir: &RunDir, holder: &Holder, log: Log) -> Result<(), String> {
    let Some(server) = Server::adopt(holder) else {
        std::thread::sleep(PAUSE);
        return Ok(());
    };
    if server.is_out_of_reach() {
        return Err(format!("it runs as another user and cannot be stopped ({NOTHING})"));
    }
    log.say(Level::Notice, None, &format!("server {} has lost its supervisor and is told to stop", holder.pid));
    server.signal(Signal::SIGTERM);
    let ended = server.watch().map_err(|e| e.to_string())?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        ended.wait();
        let _ = sender.send(());
    });
    if receiver.recv_timeout(Duration::from_secs(10)).is_err() {
        server.signal_all(Signal::SIGKILL, Jobs::Ended);
        if receiver.recv_timeout(Duration::from_secs(10)).is_err() {
            return Err(format!("server {} does not end, not even by SIGKILL", holder.pid));
        }
    }
    server.signal_rest(Signal::SIGTERM, Jobs::Ended);
    if dir.hold() {
        dir.addresses().iter().flatten().for_each(|address| dir.unhold(address, holder.pid));
        dir.tidy();
        dir.release();
    } else {
        let text = "unable to lock the run directory: somebody holds its lock and does not let go (its files stay)";
        log.say(Level::Warning, None, text);
    }
    Ok(())
}
