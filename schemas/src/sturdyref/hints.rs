//! The query of a reference: where a finder without a search path may look (DESIGN §3).

use std::fmt::Write;

use super::SturdyRefError;
use crate::{
    SearchPathEntry, SearchPathError,
    host::{HostPort, parse_host_port},
    limits::MAX_HINTS,
    url::parse_url,
};

/// Where a finder without a search path may look for a vat. Given only on request, and never part of what a
/// reference is: two references that differ in hints only are equal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// `at`: places to dial, as `<host>:<port>`, an IPv6 address in brackets.
    pub addresses: Vec<String>,
    /// `vls`: places to ask.
    pub search_path: Vec<SearchPathEntry>,
    /// `gw`: gateways, as `https` URLs.
    pub gateways: Vec<String>,
}

const ADDRESS: &str = "at";
const SEARCH_PATH: &str = "vls";
const GATEWAY: &str = "gw";
/// Named in errors about a hint that has no key of ours: its own text is never repeated.
const NO_KEY: &str = "?";

impl Hints {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.search_path.is_empty() && self.gateways.is_empty()
    }

    /// `?at=…&vls=…&gw=…`, or nothing.
    pub(super) fn query(&self) -> String {
        let addresses = self.addresses.iter().map(|text| (ADDRESS, text.clone()));
        let search_path = self.search_path.iter().map(|entry| (SEARCH_PATH, entry.to_string()));
        let gateways = self.gateways.iter().map(|text| (GATEWAY, text.clone()));
        let mut query = String::new();
        for (key, value) in addresses.chain(search_path).chain(gateways) {
            query.push(if query.is_empty() { '?' } else { '&' });
            query.push_str(key);
            query.push('=');
            push_encoded(&mut query, &value);
        }
        query
    }

    pub(super) fn parse(query: Option<&str>) -> Result<Self, SturdyRefError> {
        let mut hints = Self::default();
        for (index, pair) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
            if index == MAX_HINTS {
                return Err(SturdyRefError::TooManyHints);
            }
            let (key, value) = pair.split_once('=').ok_or(SturdyRefError::Hint { key: NO_KEY })?;
            hints.add(key, value)?;
        }
        Ok(hints)
    }

    fn add(&mut self, key: &str, value: &str) -> Result<(), SturdyRefError> {
        match key {
            ADDRESS => {
                let malformed = SturdyRefError::Hint { key: ADDRESS };
                let (host, port) = parse_host_port(&decoded(value).ok_or(malformed)?).map_err(|_| malformed)?;
                self.addresses.push(HostPort(&host, port).to_string());
            }
            SEARCH_PATH => {
                let malformed = SturdyRefError::Hint { key: SEARCH_PATH };
                match decoded(value).ok_or(malformed)?.parse() {
                    Ok(entry) => self.search_path.push(entry),
                    Err(SearchPathError::UnknownScheme) => {}
                    Err(_) => return Err(malformed),
                }
            }
            GATEWAY => {
                let malformed = SturdyRefError::Hint { key: GATEWAY };
                self.gateways.push(parse_url(&decoded(value).ok_or(malformed)?).map_err(|_| malformed)?);
            }
            // A later version's.
            _ => {}
        }
        Ok(())
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986 and `:`, `/`, `@`, which a query may
/// contain: also what means something to a shell.
fn push_encoded(output: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/@".contains(&byte) {
            output.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(output, "%{byte:02X}");
        }
    }
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push(u8::try_from(digit(digits[0])? * 16 + digit(digits[1])?).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}
