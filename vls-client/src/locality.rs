//! Local-only mode: what is on this machine or in its own network, and so may be asked and dialled (DESIGN §5).
//!
//! Decided from the text of an entry or an address alone. A name is not resolved to find out, because that is a question
//! to somebody else; the one name that means this machine everywhere is `localhost` (RFC 6761, section 6.3), and nobody is
//! asked for it ([`crate::addresses_of`]).

use std::{fmt, net::IpAddr};

use schemas::{Reach, SearchPathEntry};

/// Why local-only mode leaves something out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeftOut {
    /// An address of the Internet.
    Elsewhere,
    /// A name, which would have to be resolved.
    Name,
    /// DNS and the DHT hand questions on to others.
    HandedOn,
}

impl LeftOut {
    /// Why local-only mode leaves an entry out, if it does.
    #[must_use]
    pub fn of(entry: &SearchPathEntry) -> Option<Self> {
        match entry {
            SearchPathEntry::Vls { host, .. } => why_not_host(host),
            SearchPathEntry::Http { url } => why_not_host(host_of(url)),
            SearchPathEntry::Dns { .. } | SearchPathEntry::Dht => Some(Self::HandedOn),
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Elsewhere => "local-only mode, and this is not an address of this machine or of a private network",
            Self::Name => "local-only mode, and a name would have to be asked for elsewhere",
            Self::HandedOn => "local-only mode, and such questions are handed on to others",
        })
    }
}

/// Why a host is left out, if it is: a name or an address without brackets.
pub(crate) fn why_not_host(host: &str) -> Option<LeftOut> {
    match (Reach::of_host(host), host.parse::<IpAddr>()) {
        (Reach::ThisMachine | Reach::ThisNetwork, _) => None,
        (Reach::Anywhere, Ok(_)) => Some(LeftOut::Elsewhere),
        (Reach::Anywhere, Err(_)) => Some(LeftOut::Name),
    }
}

/// The host of a canonical URL, without brackets and port.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    match authority.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_and_private_networks_are_local() {
        for local in [
            "127.0.0.1",
            "::1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "169.254.3.4",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
            "localhost",
            "a.localhost",
        ] {
            assert_eq!(why_not_host(local), None, "{local}");
        }
        for elsewhere in ["192.0.2.1", "172.32.0.1", "2001:db8::1", "::ffff:192.0.2.1", "0.0.0.0", "::"] {
            assert_eq!(why_not_host(elsewhere), Some(LeftOut::Elsewhere), "{elsewhere}");
        }
        for name in ["example.org", "localhost.example.org", "notlocalhost"] {
            assert_eq!(why_not_host(name), Some(LeftOut::Name), "{name}");
        }
    }

    #[test]
    fn every_form_of_entry_is_decided() {
        let why = |text: &str| LeftOut::of(&text.parse().unwrap());
        let id = schemas::IdentityKey::from_seed(&[1; 32]).id();
        assert_eq!(why(&format!("vls://{id}@[::1]:1")), None);
        assert_eq!(why(&format!("vls://{id}@192.0.2.1:1")), Some(LeftOut::Elsewhere));
        assert_eq!(why("https://localhost:1/a"), None);
        assert_eq!(why("https://[fd00::1]"), None);
        assert_eq!(why("https://[2001:db8::1]:1/a"), Some(LeftOut::Elsewhere));
        assert_eq!(why("https://example.org"), Some(LeftOut::Name));
        assert_eq!(why("dns:example.org"), Some(LeftOut::HandedOn));
        assert_eq!(why("dht:"), Some(LeftOut::HandedOn));
    }
}
