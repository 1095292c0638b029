//! Which ports the kernel hands out by itself.

use crate::address::Address;
use std::sync::{Mutex, PoisonError};

/// Returns a function that tells whether an address is at a port that the kernel does not pick by itself, for outgoing
/// connections and for a bind of port 0 (ip(7)). A search for the server's listeners leaves the others out.
pub fn fixed() -> impl Fn(&Address) -> bool {
    // Where it cannot be read at the moment: as it was.
    static LAST: Mutex<(u16, u16)> = Mutex::new((32768, 60999));
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().filter_map(|n| n.parse().ok());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(first), Some(end)) = (bounds.next(), bounds.next()) {
        *last = (first, end);
    }
    let picked = last.0..=last.1;
    move |address| matches!(address, Address::Tcp(_, port) if !picked.contains(port))
}
