//! The addresses of this machine (getifaddrs(3)).

#![forbid(unsafe_code)]

use nix::ifaddrs::getifaddrs;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

/// All addresses that the interfaces of this network namespace have.
pub fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let all = getifaddrs()?.filter_map(|interface| interface.address);
    let ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        v4.or(address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
    };
    Ok(all.filter_map(ip).collect())
}
