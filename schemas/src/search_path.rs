//! Where to ask for a vat: the entries of a search path (DESIGN §5).
//!
//! | text | meaning |
//! |---|---|
//! | `vls://<id>@<host>:<port>` | a location server, by its own id, over QUIC and UDP |
//! | `https://<host>[:<port>][/<path>]` | any server or gateway that speaks the HTTP form; records verify themselves |
//! | `dns:<origin>` | TXT records below a DNS name |
//! | `dht:` | the Mainline DHT |

use std::{fmt, str::FromStr};

use crate::{
    Coded, ErrorCode, IdentityError, VatId,
    host::{HostError, HostPort, parse_host_port, parse_name},
    url::{self, UrlError, parse_url},
};

/// One place that keeps location records.
///
/// `Display` and `FromStr` are its text form, in a record, in a hint and on the command line. `FromStr`
/// accepts every spelling of a host and gives the canonical one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SearchPathEntry {
    /// A location server, which proves `id` when it is dialled.
    Vls {
        /// The server's own identity.
        id: VatId,
        /// A DNS name, an IPv4 address, or an IPv6 address without brackets.
        host: String,
        /// The UDP port, not 0.
        port: u16,
    },
    /// A server of the HTTP form.
    Http {
        /// An `https` URL without user, query and fragment.
        url: String,
    },
    /// TXT records at `_vat.<id>.<origin>`.
    Dns {
        /// A DNS name.
        origin: String,
    },
    /// The Mainline DHT.
    Dht,
}

/// Why some text is not a search path entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SearchPathError {
    /// It begins with none of `vls://`, `https://`, `dns:` and `dht:`. A later version may define it.
    #[error("a search path entry begins with vls://, https://, dns: or dht:, this does not")]
    UnknownScheme,
    /// There is no `@` behind the id of a location server.
    #[error("after vls:// comes <id>@<host>:<port>; there is no @")]
    NoId,
    /// The id of a location server.
    #[error("the id after vls:// is wrong: {0}")]
    Id(#[from] IdentityError),
    /// The host or the port.
    #[error("the place is wrong: {0}")]
    Host(#[from] HostError),
    /// The URL of an HTTP server.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// Something follows `dht:`.
    #[error("nothing follows dht: in a search path entry")]
    Dht,
}

impl Coded for SearchPathError {
    fn code(&self) -> ErrorCode {
        ErrorCode::VlsEntryMalformed
    }
}

const VLS: &str = "vls://";
const DNS: &str = "dns:";
const DHT: &str = "dht:";

impl fmt::Display for SearchPathEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vls { id, host, port } => write!(f, "{VLS}{id}@{}", HostPort(host, *port)),
            Self::Http { url } => f.write_str(url),
            Self::Dns { origin } => write!(f, "{DNS}{origin}"),
            Self::Dht => f.write_str(DHT),
        }
    }
}

impl FromStr for SearchPathEntry {
    type Err = SearchPathError;

    fn from_str(text: &str) -> Result<Self, SearchPathError> {
        if let Some(rest) = text.strip_prefix(VLS) {
            let (id, place) = rest.split_once('@').ok_or(SearchPathError::NoId)?;
            let id = id.parse()?;
            let (host, port) = parse_host_port(place)?;
            return Ok(Self::Vls { id, host, port });
        }
        if text.starts_with(url::SCHEME) {
            return Ok(Self::Http { url: parse_url(text)? });
        }
        if let Some(origin) = text.strip_prefix(DNS) {
            return Ok(Self::Dns { origin: parse_name(origin)? });
        }
        match text.strip_prefix(DHT) {
            Some("") => Ok(Self::Dht),
            Some(_) => Err(SearchPathError::Dht),
            None => Err(SearchPathError::UnknownScheme),
        }
    }
}
