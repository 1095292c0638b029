//! Which ports the kernel hands out by itself.

use crate::address::Address;
use std::sync::{Mutex, PoisonError};

/// Ports that the kernel picks for outgoing connections and for a bind of port 0 (ip(7)). A search for the server's
/// listeners leaves them out.
pub fn ephemeral_ports() -> std::ops::RangeInclusive<u16> {
    // Where it cannot be read at the moment: as it was.
    static LAST: Mutex<(u16, u16)> = Mutex::new((32768, 60999));
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().filter_map(|n| n.parse().ok());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(first), Some(end)) = (bounds.next(), bounds.next()) {
        *last = (first, end);
    }
    last.0..=last.1
}

/// Whether an address is at another port than those.
pub fn is_fixed(address: &Address, ephemeral: &std::ops::RangeInclusive<u16>) -> bool {
    matches!(address, Address::Tcp(_, port) if !ephemeral.contains(port))
}
