//! The zone that a server answers for.

use std::{fmt, str::FromStr};

use schemas::{Coded, ErrorCode};
use simple_dns::{
    CLASS, Label, Name, ResourceRecord,
    rdata::{NS, RData, SOA},
};

use crate::limits::{DNS_NEGATIVE_TTL, DNS_ORIGIN_BYTES, DNS_ZONE_TTL};

/// The name of a zone or a host, in lower case and without the dot of the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainName(String);

/// Why a text is not the name of a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainNameError {
    /// Not labels of letters, digits and hyphens with dots between them.
    #[error(
        "a domain name is made of letters, digits and hyphens, with dots between its labels, as in vls.example.org"
    )]
    Text,
    /// A name that ids do not fit in front of.
    #[error("the name has {found} characters; {limit} leave room for an id in front of it")]
    TooLong {
        /// How many it has.
        found: usize,
        /// How many it may have.
        limit: usize,
    },
}

impl Coded for DomainNameError {
    fn code(&self) -> ErrorCode {
        ErrorCode::CliUsage
    }
}

impl DomainName {
    pub(super) fn labels(&self) -> impl DoubleEndedIterator<Item = &[u8]> + Clone {
        self.0.split('.').map(str::as_bytes)
    }

    fn name(&self) -> Name<'static> {
        name(self.labels())
    }
}

impl FromStr for DomainName {
    type Err = DomainNameError;

    fn from_str(text: &str) -> Result<Self, DomainNameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.len() > DNS_ORIGIN_BYTES {
            return Err(DomainNameError::TooLong { found: text.len(), limit: DNS_ORIGIN_BYTES });
        }
        let is_label = |label: &str| {
            let letters = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
            (1..=63).contains(&label.len()) && letters && !label.starts_with('-') && !label.ends_with('-')
        };
        if !text.split('.').all(is_label) {
            return Err(DomainNameError::Text);
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the server says of its own zone.
#[derive(Debug, Clone)]
pub struct Zone {
    origin: DomainName,
    server: DomainName,
    serial: u32,
}

impl Zone {
    /// The zone below `origin`, served by the host `server`: the name that the zone above delegates to. `serial` is
    /// the zone's version; nobody transfers it, so any will do that does not go back.
    #[must_use]
    pub fn new(origin: DomainName, server: DomainName, serial: u32) -> Self {
        Self { origin, server, serial }
    }

    /// Its name.
    #[must_use]
    pub fn origin(&self) -> &DomainName {
        &self.origin
    }

    /// With the time to live of a negative answer, or of the zone's own data.
    pub(super) fn authority(&self, owner: Name<'static>, negative: bool) -> ResourceRecord<'static> {
        let hostmaster = std::iter::once(&b"hostmaster"[..]).chain(self.origin.labels());
        let soa = SOA {
            mname: self.server.name(),
            rname: name(hostmaster),
            serial: self.serial,
            // For servers that copy a zone, which this one lets nobody do; the usual values.
            refresh: 7_200,
            retry: 3_600,
            expire: 1_209_600,
            minimum: DNS_NEGATIVE_TTL,
        };
        let time_to_live = if negative { DNS_NEGATIVE_TTL } else { DNS_ZONE_TTL };
        ResourceRecord::new(owner, CLASS::IN, time_to_live, RData::SOA(soa))
    }

    pub(super) fn name_server(&self, owner: Name<'static>) -> ResourceRecord<'static> {
        ResourceRecord::new(owner, CLASS::IN, DNS_ZONE_TTL, RData::NS(NS(self.server.name())))
    }
}

/// A name of labels that are known to be at most 63 bytes long.
pub(super) fn name<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Name<'static> {
    let labels: Vec<Label<'static>> = labels.map(|label| Label::new_unchecked(label.to_vec())).collect();
    Name::new_with_labels(&labels)
}
