//! Where a vat can be dialled, as its location record says (DESIGN §4, key `a`).
//!
//! | text | meaning |
//! |---|---|
//! | `quic:<host>:<port>` | QUIC with raw public keys, at a DNS name, an IPv4 address or a bracketed IPv6 address |
//! | `https://<host>[:<port>][/<path>]` | a gateway that takes batches for the vat |
//! | `vls:` | relayed by the location server that gave the record |

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::{
    Coded, ErrorCode,
    host::{HostError, HostPort, parse_host_port},
    url::{self, UrlError, parse_url},
};

/// One way to reach a vat.
///
/// `Display` and `FromStr` are the text form in the record. `FromStr` accepts every spelling of a host and
/// gives the canonical one; a record is refused unless its addresses are canonical.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// A QUIC endpoint.
    Quic {
        /// A DNS name, an IPv4 address, or an IPv6 address without brackets.
        host: String,
        /// The UDP port, not 0.
        port: u16,
    },
    /// A gateway that speaks HTTPS.
    Gateway {
        /// An `https` URL without user, query and fragment.
        url: String,
    },
    /// Through the location server that answered.
    Relayed,
}

/// From how far away an address can be dialled, as far as that can be seen from the address alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reach {
    /// From this machine: loopback addresses, and `localhost` (RFC 6761, section 6.3).
    ThisMachine,
    /// From its own network: link-local and private addresses (RFC 1918, 3927, 4193, 4291).
    ThisNetwork,
    /// From anywhere, if a router lets it through; or it is a name, which may mean anything.
    Anywhere,
}

impl Reach {
    /// Of an address of the Internet Protocol.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        let address = address.to_canonical();
        let is_of_this_network = match address {
            IpAddr::V4(address) => address.is_private() || address.is_link_local(),
            IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
        };
        if address.is_loopback() {
            Self::ThisMachine
        } else if is_of_this_network {
            Self::ThisNetwork
        } else {
            Self::Anywhere
        }
    }

    /// Of a host: a name, or an address without brackets.
    #[must_use]
    pub fn of_host(host: &str) -> Self {
        match host.parse() {
            Ok(address) => Self::of(address),
            Err(_) if is_localhost(host) => Self::ThisMachine,
            Err(_) => Self::Anywhere,
        }
    }
}

/// Whether a name means this machine, whoever is asked: `localhost` and what is below it (RFC 6761, section 6.3).
#[must_use]
pub fn is_localhost(name: &str) -> bool {
    let mut labels = name.strip_suffix('.').unwrap_or(name).rsplit('.');
    labels.next().is_some_and(|last| last.eq_ignore_ascii_case("localhost"))
}

/// What people are told beside an address that is not to be dialled from everywhere.
impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ThisMachine => "from this machine only",
            Self::ThisNetwork => "from its own network only",
            Self::Anywhere => "from anywhere",
        })
    }
}

impl Address {
    /// From how far away it can be dialled, as far as the address says.
    #[must_use]
    pub fn reach(&self) -> Reach {
        match self {
            Self::Quic { host, .. } => Reach::of_host(host),
            Self::Gateway { .. } | Self::Relayed => Reach::Anywhere,
        }
    }

    /// The address as people are shown it: with what is to be known of where it leads.
    #[must_use]
    pub fn described(&self) -> String {
        match self.reach() {
            Reach::Anywhere => self.to_string(),
            reach => format!("{self} ({reach})"),
        }
    }
}

/// Why some text is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It begins with none of `quic:`, `https://` and `vls:`. A later version may define it.
    #[error("an address begins with quic:, https:// or vls:, this does not")]
    UnknownScheme,
    /// The host or the port after `quic:`.
    #[error("after quic: comes <host>:<port>: {0}")]
    Host(#[from] HostError),
    /// The URL of a gateway.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// Something follows `vls:`.
    #[error("nothing follows vls: in an address")]
    Relayed,
}

impl Coded for AddressError {
    fn code(&self) -> ErrorCode {
        ErrorCode::RecordMalformed
    }
}

const QUIC: &str = "quic:";
const RELAYED: &str = "vls:";

impl From<SocketAddr> for Address {
    /// The scope of a link-local IPv6 address is dropped: it means nothing on another machine.
    fn from(address: SocketAddr) -> Self {
        Self::Quic { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quic { host, port } => write!(f, "{QUIC}{}", HostPort(host, *port)),
            Self::Gateway { url } => f.write_str(url),
            Self::Relayed => f.write_str(RELAYED),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(rest) = text.strip_prefix(QUIC) {
            let (host, port) = parse_host_port(rest)?;
            return Ok(Self::Quic { host, port });
        }
        if text.starts_with(url::SCHEME) {
            return Ok(Self::Gateway { url: parse_url(text)? });
        }
        match text.strip_prefix(RELAYED) {
            Some("") => Ok(Self::Relayed),
            Some(_) => Err(AddressError::Relayed),
            None => Err(AddressError::UnknownScheme),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_this_machine_or_its_network_only_is_marked() {
        let described = |text: &str| text.parse::<Address>().unwrap().described();
        for here in ["127.3.2.1", "[::1]", "localhost", "a.localhost"] {
            assert_eq!(described(&format!("quic:{here}:1")), format!("quic:{here}:1 (from this machine only)"));
        }
        for near in ["10.1.2.3", "172.31.0.1", "192.168.1.1", "169.254.3.4", "[fd00::1]", "[fe80::1]"] {
            assert_eq!(described(&format!("quic:{near}:1")), format!("quic:{near}:1 (from its own network only)"));
        }
        for far in
            ["quic:192.0.2.1:1", "quic:172.32.0.1:1", "quic:[2001:db8::1]:1", "quic:localhost.example.org:1", "vls:"]
        {
            assert_eq!(described(far), far);
        }
        assert_eq!(Reach::of("::ffff:10.0.0.1".parse().unwrap()), Reach::ThisNetwork);
    }
}
