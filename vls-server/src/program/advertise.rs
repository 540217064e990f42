//! Which host to print: one that others can paste.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use schemas::{Address, AddressError};

/// Reads a host as a search path entry can name it; gives its canonical text. An IPv6 address may stand with or
/// without brackets.
pub(super) fn parse_host(text: &str) -> Result<String, AddressError> {
    let bracketed = text.parse::<Ipv6Addr>().is_ok().then(|| format!("[{text}]"));
    // The part that differs from an entry's, the port, is not what was asked for.
    match format!("quic:{}:1", bracketed.as_deref().unwrap_or(text)).parse()? {
        Address::Quic { host, .. } => Ok(host),
        Address::Gateway { .. } | Address::Relayed => Err(AddressError::UnknownScheme),
    }
}

/// What was asked for; else the address that is listened on; else, when that is any, the address from which this
/// machine would reach the rest of the world; else loopback.
pub(super) fn host(asked: Option<String>, listening: IpAddr) -> String {
    asked.unwrap_or_else(|| {
        let address = if listening.is_unspecified() { primary_address(listening) } else { listening.to_canonical() };
        address.to_string()
    })
}

/// IPv4 comes first where both are served: an IPv6 address is more often a temporary one.
fn primary_address(listening: IpAddr) -> IpAddr {
    // Addresses for documentation (RFC 5737, RFC 3849), which nobody has: only the routing table is asked.
    let v4 = || source_towards(Ipv4Addr::new(192, 0, 2, 1).into());
    let v6 = || source_towards(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    match listening {
        IpAddr::V4(_) => v4().unwrap_or(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => v4().or_else(v6).unwrap_or(Ipv6Addr::LOCALHOST.into()),
    }
}

/// The address that a packet to `destination` would come from. Connecting a UDP socket sends nothing.
fn source_towards(destination: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match destination {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    // The discard port (RFC 863).
    socket.connect(SocketAddr::new(destination, 9)).ok()?;
    let source = socket.local_addr().ok()?.ip();
    (!source.is_unspecified()).then_some(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_search_path_entries_name_them() {
        for (text, host) in [
            ("Example.org", "example.org"),
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:DB8::1]", "2001:db8::1"),
        ] {
            assert_eq!(parse_host(text).unwrap(), host);
        }
        for text in ["", "example.org:4433", "a b", "vls://x", "192.0.2.256", "host/path", "https://example.org"] {
            assert!(parse_host(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_specific_address_is_printed_as_it_is_and_an_unspecified_one_never() {
        assert_eq!(host(None, [127, 0, 0, 1].into()), "127.0.0.1");
        assert_eq!(host(None, Ipv6Addr::LOCALHOST.into()), "::1");
        assert_eq!(host(Some("example.org".to_owned()), [127, 0, 0, 1].into()), "example.org");
        for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            let found: IpAddr = host(None, any).parse().unwrap();
            assert!(!found.is_unspecified());
            assert!(any.is_ipv6() || found.is_ipv4(), "who listens on IPv4 only is not found at {found}");
        }
    }
}
