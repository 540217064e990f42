//! Who asks, when a proxy stands between (RFC 7239).
//!
//! Anybody can write any address into a header. What counts is written by the last proxy, so the hops are read from the
//! end, and only as long as the address that wrote them is one of the operator's own proxies. The first address that is
//! not a proxy's is the client. Without proxies named, no header is looked at.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use hyper::header::{FORWARDED, HeaderMap, HeaderName};

use crate::limits;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A network whose forwarding headers are believed, such as `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyNetwork {
    /// The bits behind the prefix are zero.
    bits: u128,
    length: u32,
    ipv4: bool,
}

/// Why a text is not a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyNetworkError {
    /// Not an address, or not one with the length of a prefix behind it.
    #[error("a network is written as 192.0.2.0/24, 2001:db8::/32, or as one address")]
    Text,
    /// More bits than an address of its kind has.
    #[error("the prefix is longer than an address: at most {limit} bits")]
    Length {
        /// How many there are.
        limit: u32,
    },
    /// There are bits behind the prefix, so one of both is a mistake.
    #[error("the address has bits behind its prefix")]
    HostBits,
}

impl ProxyNetwork {
    fn contains(self, address: IpAddr) -> bool {
        let (bits, width, ipv4) = parts(address);
        ipv4 == self.ipv4 && prefix(bits, width, self.length) == self.bits
    }
}

impl FromStr for ProxyNetwork {
    type Err = ProxyNetworkError;

    fn from_str(text: &str) -> Result<Self, ProxyNetworkError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| ProxyNetworkError::Text)?;
        let (bits, width, ipv4) = parts(address);
        let length = match length {
            Some(length) if length.len() <= 3 && length.bytes().all(|digit| digit.is_ascii_digit()) => {
                length.parse().map_err(|_| ProxyNetworkError::Text)?
            }
            Some(_) => return Err(ProxyNetworkError::Text),
            None => width,
        };
        if length > width {
            return Err(ProxyNetworkError::Length { limit: width });
        }
        if prefix(bits, width, length) != bits {
            return Err(ProxyNetworkError::HostBits);
        }
        Ok(Self { bits, length, ipv4 })
    }
}

impl fmt::Display for ProxyNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u32::try_from(self.bits) {
            Ok(bits) if self.ipv4 => write!(f, "{}/{}", std::net::Ipv4Addr::from(bits), self.length),
            _ => write!(f, "{}/{}", std::net::Ipv6Addr::from(self.bits), self.length),
        }
    }
}

/// The bits of an address, how many it has, and whether it is IPv4.
fn parts(address: IpAddr) -> (u128, u32, bool) {
    match address.to_canonical() {
        IpAddr::V4(address) => (u32::from(address).into(), 32, true),
        IpAddr::V6(address) => (address.into(), 128, false),
    }
}

fn prefix(bits: u128, width: u32, length: u32) -> u128 {
    let behind = width - length.min(width);
    bits.checked_shr(behind).and_then(|bits| bits.checked_shl(behind)).unwrap_or(0)
}

/// The operator's own proxies.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct TrustedProxies(Vec<ProxyNetwork>);

impl TrustedProxies {
    pub(in crate::server) fn new(networks: &[ProxyNetwork]) -> Self {
        Self(networks.to_vec())
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// Who asks, when `peer` is at the other end of the connection.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.contains(peer) {
            return peer;
        }
        let forwarded = hops(headers, &FORWARDED, standard);
        let hops = if forwarded.is_empty() { hops(headers, &X_FORWARDED_FOR, bare) } else { forwarded };
        let mut client = peer;
        for hop in hops {
            // A hop that hides, or that is not an address, is as far as can be seen.
            let Some(address) = hop else { break };
            client = address;
            if !self.contains(client) {
                break;
            }
        }
        client
    }
}

/// The hops, the last one first.
fn hops(headers: &HeaderMap, name: &HeaderName, read: fn(&str) -> Option<IpAddr>) -> Vec<Option<IpAddr>> {
    let mut lines: Vec<_> = headers.get_all(name).iter().collect();
    lines.reverse();
    let texts = lines.into_iter().flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
    texts.take(limits::FORWARDED_HOPS).map(|text| read(text.trim())).collect()
}

/// An element of `Forwarded`.
fn standard(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, node) = pairs.find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    bare(node.trim_matches('"'))
}

/// An address with or without brackets and port.
fn bare(text: &str) -> Option<IpAddr> {
    let address = text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn client(proxies: &[&str], peer: &str, lines: &[(&'static str, &'static str)]) -> String {
        let proxies: Vec<_> = proxies.iter().map(|text| text.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        TrustedProxies::new(&proxies).client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn a_header_counts_only_if_a_trusted_proxy_has_written_it() {
        let lie = [("x-forwarded-for", "198.51.100.9")];
        assert_eq!(client(&[], "192.0.2.1", &lie), "192.0.2.1");
        assert_eq!(client(&["10.0.0.0/8"], "192.0.2.1", &lie), "192.0.2.1");
        assert_eq!(client(&["10.0.0.0/8"], "10.1.2.3", &lie), "198.51.100.9");
        assert_eq!(client(&["10.0.0.0/8"], "10.1.2.3", &[]), "10.1.2.3");
    }

    #[test]
    fn hops_are_read_from_the_end_and_no_further_than_trust_goes() {
        let proxies = ["10.0.0.0/8", "2001:db8:1::/48"];
        for (value, found) in [
            ("6.6.6.6, 198.51.100.9", "198.51.100.9"),
            ("6.6.6.6, 198.51.100.9, 10.9.9.9", "198.51.100.9"),
            ("6.6.6.6, [2001:db8:2::1]:443, 2001:db8:1::9", "2001:db8:2::1"),
            ("6.6.6.6, unknown, 10.9.9.9", "10.9.9.9"),
            ("10.7.7.7", "10.7.7.7"),
            ("::ffff:198.51.100.9", "198.51.100.9"),
            ("198.51.100.9:1234", "198.51.100.9"),
            ("", "10.1.2.3"),
        ] {
            assert_eq!(client(&proxies, "10.1.2.3", &[("x-forwarded-for", value)]), found, "{value}");
        }
        let two_lines = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "198.51.100.9")];
        assert_eq!(client(&proxies, "10.1.2.3", &two_lines), "198.51.100.9");
    }

    #[test]
    fn the_standard_header_wins_over_the_older_one() {
        let lines = [
            ("x-forwarded-for", "6.6.6.6"),
            ("forwarded", "for=6.6.6.7;proto=https, proto=http; For=\"[2001:db8:cafe::17]:4711\""),
        ];
        assert_eq!(client(&["127.0.0.1"], "127.0.0.1", &lines), "2001:db8:cafe::17");
        assert_eq!(client(&["127.0.0.1"], "127.0.0.1", &[("forwarded", "for=_hidden")]), "127.0.0.1");
    }

    #[test]
    fn networks_are_read_exactly() {
        for text in ["10.0.0.0/8", "192.0.2.7/32", "0.0.0.0/0", "2001:db8::/32", "::/0", "::1/128"] {
            assert_eq!(text.parse::<ProxyNetwork>().unwrap().to_string(), text);
        }
        let all: ProxyNetwork = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains([192, 0, 2, 1].into()) && !all.contains(std::net::Ipv6Addr::LOCALHOST.into()));
        let read = |text: &str| text.parse::<ProxyNetwork>().unwrap_err();
        assert_eq!(read("10.0.0.1/8"), ProxyNetworkError::HostBits);
        assert_eq!(read("10.0.0.0/33"), ProxyNetworkError::Length { limit: 32 });
        for text in ["", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/8", "example.org", "10.0.0.0/8/8"] {
            assert_eq!(read(text), ProxyNetworkError::Text, "{text:?}");
        }
    }
}
