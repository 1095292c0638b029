//! Addresses as people and servers write them: one canonical form, which of them collide, and the
//! file name of each. Pure.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a server serves: a TCP port on all interfaces or on one, or any other name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A TCP port; `None` is "all interfaces", whichever family it was written in.
    Tcp(Option<IpAddr>, u16),
    /// A name that is no port: swapped in plain order, never looked for in the kernel.
    Name(String),
}

/// Longest file stem of an address: leaves room for a suffix and a temporary name within the 255
/// bytes of NAME_MAX.
const STEM_MAX: usize = 200;

impl Address {
    /// Reads what a person or a server wrote. The error is a clause without the address.
    pub fn parse(text: &str) -> Result<Address, &'static str> {
        if text.is_empty() {
            return Err("an address is missing");
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("an address holds no white space or control characters");
        }
        let address = match text.rsplit_once(':') {
            None if text.bytes().all(|b| b.is_ascii_digit()) => Address::Tcp(None, port(text)?),
            Some((host, digits)) if is_port_like(digits) => match host_of(host) {
                Some(ip) => Address::Tcp(ip, port(digits)?),
                None => Address::Name(text.to_owned()),
            },
            _ => Address::Name(text.to_owned()),
        };
        if address.stem().len() > STEM_MAX {
            return Err("an address this long has no file name");
        }
        Ok(address)
    }

    /// Where this machine reaches it; `None` if it is no port.
    pub fn reached_at(&self) -> Option<SocketAddr> {
        let Address::Tcp(ip, port) = self else { return None };
        Some(SocketAddr::new(ip.unwrap_or(Ipv4Addr::LOCALHOST.into()), *port))
    }

    /// Whether it is a port: the kernel knows who listens there.
    pub fn is_port(&self) -> bool {
        matches!(self, Address::Tcp(..))
    }

    /// Whether the kernel would refuse to let both be listened on (without SO_REUSEPORT): then they
    /// are the same address to a swap.
    pub fn collides(&self, other: &Address) -> bool {
        match (self, other) {
            (Address::Tcp(a, p), Address::Tcp(b, q)) => p == q && (a.is_none() || b.is_none() || a == b),
            _ => self == other,
        }
    }

    /// The ranges, in the order of addresses, that hold every address which collides with this one. A server may have a
    /// thousand addresses: to compare each with each would take too long.
    pub fn neighbours(&self) -> impl Iterator<Item = (Address, Address)> {
        let more = match self {
            Address::Tcp(Some(_), port) => Some((Address::Tcp(None, *port), Address::Tcp(None, *port))),
            Address::Tcp(None, _) => Some((
                Address::Tcp(Some(Ipv4Addr::UNSPECIFIED.into()), 0),
                Address::Tcp(Some(Ipv6Addr::from(u128::MAX).into()), u16::MAX),
            )),
            Address::Name(_) => None,
        };
        [(self.clone(), self.clone())].into_iter().chain(more)
    }

    /// Addresses for [`Address::among`].
    pub fn all(of: &[Address]) -> BTreeMap<Address, ()> {
        let mut all = BTreeMap::new();
        all.extend(of.iter().map(|address| (address.clone(), ())));
        all
    }

    /// The addresses of `all` that collide with this one.
    pub fn among<'a, V>(&self, all: &'a BTreeMap<Address, V>) -> impl Iterator<Item = (&'a Address, &'a V)> {
        let near = self.neighbours().flat_map(|(first, last)| all.range(first..=last));
        near.filter(|(other, _)| self.collides(other))
    }

    /// The unambiguous, readable name of this address in the run directory, without suffix:
    /// `8080` for `:8080`.
    pub fn stem(&self) -> String {
        match self {
            Address::Tcp(None, port) => port.to_string(),
            Address::Tcp(Some(_), _) => self.to_string(),
            Address::Name(name) => {
                let mut stem = String::new();
                for (i, b) in name.bytes().enumerate() {
                    let plain = b.is_ascii_alphanumeric() || b"_:-[]".contains(&b) || (b == b'.' && i > 0);
                    if plain { stem.push(b.into()) } else { stem.push_str(&format!("%{b:02X}")) }
                }
                stem
            }
        }
    }

    /// The address that [`Address::stem`] came from; `None` if it came from none.
    pub fn from_stem(stem: &str) -> Option<Address> {
        let mut bytes = Vec::new();
        let mut rest = stem.as_bytes();
        while let Some((&first, tail)) = rest.split_first() {
            rest = tail;
            if first == b'%' {
                let hex = rest.get(..2).and_then(|h| std::str::from_utf8(h).ok())?;
                bytes.push(u8::from_str_radix(hex, 16).ok()?);
                rest = &rest[2..];
            } else {
                bytes.push(first);
            }
        }
        let address = Address::parse(std::str::from_utf8(&bytes).ok()?).ok()?;
        (address.stem() == stem).then_some(address)
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        let ip = address.ip().to_canonical();
        Address::Tcp((!ip.is_unspecified()).then_some(ip), address.port())
    }
}

/// Digits, or a sign and digits: a port was meant, so a bad one is an error and not a name.
fn is_port_like(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn port(digits: &str) -> Result<u16, &'static str> {
    match digits.parse::<u16>() {
        Ok(port) if port > 0 && digits.as_bytes()[0] != b'+' => Ok(port),
        _ => Err("a port is a number from 1 to 65535"),
    }
}

/// The interface that `host` names: `Some(None)` for all of them, `None` if it is no IP address.
fn host_of(host: &str) -> Option<Option<IpAddr>> {
    if host.is_empty() || host == "*" {
        return Some(None);
    }
    let ip = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => IpAddr::V6(v6.parse::<Ipv6Addr>().ok()?),
        None => IpAddr::V4(host.parse::<Ipv4Addr>().ok()?),
    };
    // As the kernel names what it listens on: `[::ffff:127.0.0.1]` is 127.0.0.1.
    let ip = ip.to_canonical();
    Some((!ip.is_unspecified()).then_some(ip))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(None, port) => write!(f, ":{port}"),
            Address::Tcp(Some(IpAddr::V4(ip)), port) => write!(f, "{ip}:{port}"),
            Address::Tcp(Some(IpAddr::V6(ip)), port) => write!(f, "[{ip}]:{port}"),
            Address::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    #[test]
    fn every_spelling_of_all_interfaces_is_one_address() {
        for text in ["8080", ":8080", "0.0.0.0:8080", "[::]:8080", "*:8080", "[0:0::0]:8080"] {
            assert_eq!(a(text).to_string(), ":8080", "{text}");
            assert_eq!(a(text).stem(), "8080");
        }
        assert_eq!(a("[0:0::1]:80").to_string(), "[::1]:80");
        assert_eq!(a("[::ffff:127.0.0.1]:80"), a("127.0.0.1:80"));
    }

    #[test]
    fn bad_ports_and_names_are_refused() {
        for text in ["", "0", ":0", "70000", ":70000", "127.0.0.1:0", ":-1", "-1:-1 ", "a b", "a\tb", "a\u{7}", ":+80"]
        {
            assert!(Address::parse(text).is_err(), "{text:?}");
        }
        assert!(Address::parse(&"x".repeat(201)).is_err());
        assert!(Address::parse(&"/".repeat(100)).is_err());
    }

    #[test]
    fn names_stay_names() {
        for text in ["blue", "localhost:8080", "/run/x.sock", "...", "::", "300.0.0.1:80", "%41"] {
            assert_eq!(a(text), Address::Name(text.into()), "{text}");
        }
    }

    #[test]
    fn what_collides() {
        assert!(a(":80").collides(&a("127.0.0.1:80")));
        assert!(a("[::1]:80").collides(&a(":80")));
        assert!(!a("[::1]:80").collides(&a("127.0.0.1:80")));
        assert!(!a(":80").collides(&a(":81")));
        assert!(a("x").collides(&a("x")) && !a("x").collides(&a("y")));
    }

    #[test]
    fn no_stem_leaves_the_directory() {
        for text in ["..", ".", "../8080", "/etc/passwd", "a/b"] {
            let stem = a(text).stem();
            assert!(!stem.contains('/') && !stem.starts_with('.'), "{stem}");
        }
    }

    fn any_address() -> impl Strategy<Value = Address> {
        let ip = prop_oneof![
            Just(None),
            Just(Some("0.0.0.1")),
            Just(Some("127.0.0.1")),
            Just(Some("255.255.255.255")),
            Just(Some("::1")),
            Just(Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
        ];
        let ip = ip.prop_map(|ip: Option<&str>| ip.map(|ip| ip.parse().unwrap()));
        let port = prop_oneof![Just(1u16), Just(80), Just(65535)];
        prop_oneof![
            (ip, port).prop_map(|(ip, port)| Address::Tcp(ip, port)),
            "[a-c]".prop_map(|name| Address::parse(&name).unwrap())
        ]
    }

    proptest! {
        #[test]
        fn all_that_collide_are_found_among_others(own in any_address(), others in prop::collection::vec(any_address(), 0..20)) {
            let all = Address::all(&others);
            let expected: Vec<&Address> = all.keys().filter(|other| own.collides(other)).collect();
            let mut found: Vec<&Address> = own.among(&all).map(|(other, ())| other).collect();
            found.sort();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_stem_names_one_address(text in "[^\\s\\p{C}]{1,60}") {
            if let Ok(address) = Address::parse(&text) {
                prop_assert_eq!(Address::from_stem(&address.stem()), Some(address.clone()));
                prop_assert_eq!(Address::parse(&address.to_string()), Ok(address));
            }
        }

        #[test]
        fn any_stem_is_read_without_harm(stem in ".{0,80}") {
            if let Some(address) = Address::from_stem(&stem) {
                prop_assert_eq!(address.stem(), stem);
            }
        }
    }
}
