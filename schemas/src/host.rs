//! Host names and ports as they stand in addresses, search path entries and hints.
//!
//! A host is a DNS name (letters, digits and hyphens; RFC 1123), an IPv4 address, or an IPv6 address, in
//! brackets where a port follows (RFC 3986). Every host has one canonical text: names in lower case without
//! a final dot, IPv4 in four decimal numbers, IPv6 as RFC 5952 writes it. Reading accepts other spellings
//! of the same host; printing gives the canonical one; records accept only that (DESIGN §4).

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::limits::{MAX_HOST, MAX_LABEL};

/// Why some text is not a host, or not a host with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// Neither a DNS name nor an IP address.
    #[error("the host is not a DNS name, an IPv4 address, or an IPv6 address in brackets")]
    Host,
    /// No port, or none between 1 and 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
}

/// Reads `host:port`; gives the canonical host (IPv6 without its brackets) and the port.
pub(crate) fn parse_host_port(text: &str) -> Result<(String, u16), HostError> {
    let (host, port) = text.rsplit_once(':').ok_or(HostError::Port)?;
    Ok((parse_host(host)?, parse_port(port)?))
}

/// Reads a host; an IPv6 address has to stand in brackets. Gives its canonical text, without them.
pub(crate) fn parse_host(text: &str) -> Result<String, HostError> {
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().map(|address| address.to_string()).map_err(|_| HostError::Host);
    }
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(address.to_string());
    }
    parse_name(text)
}

/// Reads a DNS name; gives it in lower case.
pub(crate) fn parse_name(text: &str) -> Result<String, HostError> {
    if text.is_empty() || text.len() > MAX_HOST || !text.split('.').all(is_label) {
        return Err(HostError::Host);
    }
    // A name whose last label is a number would be read as an IPv4 address by inet_aton(3), and so by many
    // resolvers: `127.1` and `0x7f000001` are both 127.0.0.1 to them.
    if text.rsplit('.').next().is_some_and(is_number) {
        return Err(HostError::Host);
    }
    Ok(text.to_ascii_lowercase())
}

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    (1..=MAX_LABEL).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

fn is_number(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// Reads a port in its one spelling: no sign, no leading zero, not 0.
pub(crate) fn parse_port(text: &str) -> Result<u16, HostError> {
    match text.as_bytes() {
        [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => text.parse().map_err(|_| HostError::Port),
        _ => Err(HostError::Port),
    }
}

/// Prints a host and a port, an IPv6 address in brackets.
pub(crate) struct HostPort<'a>(pub(crate) &'a str, pub(crate) u16);

impl fmt::Display for HostPort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(host, port) = self;
        // A colon stands in no name and no IPv4 address.
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}
