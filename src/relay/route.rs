//! From which address a kept connection is relayed. Pure.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Whose requests are relayed (`--relay`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nobody's.
    None,
    /// Those of clients on this machine.
    Local,
    /// Everybody's.
    All,
}

/// How a request gets to the new server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where the client had connected to.
    pub to: SocketAddr,
    /// From which address: the client's own where that is one of this machine, so that the new server sees the same peer.
    pub from: IpAddr,
}

impl Route {
    /// The route for a connection; `None` if it is not relayed. `own`: the addresses of this machine. Nobody is relayed
    /// from loopback who has not come from there: servers trust those who do.
    pub fn of(local: SocketAddr, peer: SocketAddr, own: &BTreeSet<IpAddr>, reach: Reach) -> Option<Route> {
        let to = canonical(local);
        let client = peer.ip().to_canonical();
        let from = match reach {
            Reach::None => return None,
            Reach::Local | Reach::All if client.is_loopback() || own.contains(&client) => client,
            Reach::All => to.ip(),
            Reach::Local => return None,
        };
        let is_disguise = from.is_loopback() && !client.is_loopback();
        (!is_disguise && from.is_ipv4() == to.is_ipv4()).then_some(Route { to, from })
    }
}

/// The address with a v4 one that is written as a v6 one (`::ffff:1.2.3.4`) as what it is.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(local: &str, peer: &str, reach: Reach) -> Option<String> {
        let own = ["192.0.2.1", "127.0.0.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into();
        let route = Route::of(local.parse().unwrap(), peer.parse().unwrap(), &own, reach)?;
        Some(format!("{} {}", route.from, route.to))
    }

    #[test]
    fn a_client_of_this_machine_is_relayed_from_its_own_address() {
        for reach in [Reach::Local, Reach::All] {
            assert_eq!(from("127.0.0.1:80", "127.0.0.5:4000", reach).unwrap(), "127.0.0.5 127.0.0.1:80");
            assert_eq!(from("192.0.2.1:80", "192.0.2.1:4000", reach).unwrap(), "192.0.2.1 192.0.2.1:80");
            assert_eq!(from("[::ffff:127.0.0.1]:80", "[::ffff:127.0.0.1]:4", reach).unwrap(), "127.0.0.1 127.0.0.1:80");
            assert_eq!(from("[2001:db8::1]:80", "[2001:db8::1]:4", reach).unwrap(), "2001:db8::1 [2001:db8::1]:80");
            assert_eq!(from("[::1]:80", "[::1]:4", reach).unwrap(), "::1 [::1]:80");
        }
    }

    #[test]
    fn a_client_from_outside_is_never_relayed_from_loopback() {
        assert_eq!(from("192.0.2.1:80", "198.51.100.7:4000", Reach::Local), None);
        assert_eq!(from("192.0.2.1:80", "198.51.100.7:4000", Reach::All).unwrap(), "192.0.2.1 192.0.2.1:80");
        // A packet filter may send clients to loopback.
        assert_eq!(from("127.0.0.1:80", "198.51.100.7:4000", Reach::All), None);
        assert_eq!(from("[::1]:80", "[2001:db8::7]:4000", Reach::All), None);
        assert_eq!(from("[::ffff:127.0.0.1]:80", "[::ffff:198.51.100.7]:4000", Reach::All), None);
    }

    #[test]
    fn without_the_relay_nobody_is() {
        assert_eq!(from("127.0.0.1:80", "127.0.0.1:4000", Reach::None), None);
    }
}
