//! Where a vat can be dialled, as its location record says (DESIGN §4, key `a`).
//!
//! | text | meaning |
//! |---|---|
//! | `quic:<host>:<port>` | QUIC with raw public keys, at a DNS name, an IPv4 address or a bracketed IPv6 address |
//! | `https://<host>[:<port>][/<path>]` | a gateway that takes batches for the vat |
//! | `vls:` | relayed by the location server that gave the record |

use std::{fmt, net::SocketAddr, str::FromStr};

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
