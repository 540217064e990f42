//! The keys and values of a location record: between [`LocationRecord`] and its TXT strings (DESIGN §4).

use std::{fmt::Display, str::FromStr};

use super::{LocationRecord, RecordError, Timestamp};
use crate::{
    AddressError, SearchPathError,
    identity::zbase32,
    limits::{MAX_ADDRESSES, MAX_CHAIN_HEAD, MAX_COUNTER, MAX_SEARCH_PATH, MAX_UNKNOWN_STRINGS},
};

const VERSION: &str = "v";
const EPOCH: &str = "e";
const TURN: &str = "t";
const CHAIN_HEAD: &str = "h";
pub(super) const STATE: &str = "st";
const EXPIRES: &str = "exp";
const DOCUMENT: &str = "d";
const ADDRESS: &str = "a";
const SEARCH_PATH: &str = "vls";

/// Named in errors about keys that are not ours: their own text is never repeated.
const UNKNOWN: &str = "?";

/// The version of this format.
const CURRENT_VERSION: u64 = 1;

/// The latest expiry, in seconds: later ones would not fit our microseconds.
const MAX_SECONDS: u64 = MAX_COUNTER / 1_000_000;

/// One TXT string: a key of ours, and its value.
pub(super) struct Field {
    pub(super) key: &'static str,
    pub(super) value: String,
}

/// The strings of a record, in their fixed order.
pub(super) fn encode(record: &LocationRecord) -> Vec<Field> {
    let field = |key, value| Field { key, value };
    let mut fields = vec![
        field(VERSION, CURRENT_VERSION.to_string()),
        field(EPOCH, record.epoch.to_string()),
        field(TURN, record.turn.to_string()),
    ];
    fields.extend(record.chain_head.iter().map(|head| field(CHAIN_HEAD, head.clone())));
    fields.push(field(STATE, record.state.to_string()));
    fields.push(field(EXPIRES, record.expires.as_seconds().to_string()));
    fields.extend(record.document.iter().map(|digest| field(DOCUMENT, zbase32().encode(digest))));
    fields.extend(record.addresses.iter().map(|address| field(ADDRESS, address.to_string())));
    fields.extend(record.search_path.iter().map(|entry| field(SEARCH_PATH, entry.to_string())));
    fields
}

/// Reads the strings of a record, as (key, value), in whatever order.
pub(super) fn decode(strings: &[(String, String)]) -> Result<LocationRecord, RecordError> {
    // First of all: another version may give every other key another meaning.
    match number(VERSION, required(strings, VERSION)?)? {
        CURRENT_VERSION => {}
        found => return Err(RecordError::Version { found }),
    }
    check_unknown(strings)?;
    let expires = number(EXPIRES, required(strings, EXPIRES)?)?;
    if expires > MAX_SECONDS {
        return Err(RecordError::Value { key: EXPIRES });
    }
    Ok(LocationRecord {
        epoch: number(EPOCH, required(strings, EPOCH)?)?,
        turn: number(TURN, required(strings, TURN)?)?,
        chain_head: single(strings, CHAIN_HEAD)?.map(chain_head).transpose()?,
        state: required(strings, STATE)?.parse()?,
        expires: Timestamp::from_seconds(expires),
        addresses: repeated(strings, ADDRESS, MAX_ADDRESSES, |error| *error == AddressError::UnknownScheme)?,
        search_path: repeated(strings, SEARCH_PATH, MAX_SEARCH_PATH, |error| *error == SearchPathError::UnknownScheme)?,
        document: single(strings, DOCUMENT)?.map(digest).transpose()?,
    })
}

fn values<'a>(strings: &'a [(String, String)], key: &'static str) -> impl Iterator<Item = &'a str> {
    strings.iter().filter(move |(found, _)| found == key).map(|(_, value)| value.as_str())
}

fn single<'a>(strings: &'a [(String, String)], key: &'static str) -> Result<Option<&'a str>, RecordError> {
    let mut values = values(strings, key);
    let first = values.next();
    if values.next().is_some() { Err(RecordError::Duplicate { key }) } else { Ok(first) }
}

fn required<'a>(strings: &'a [(String, String)], key: &'static str) -> Result<&'a str, RecordError> {
    single(strings, key)?.ok_or(RecordError::Missing { key })
}

/// A number in its one spelling: decimal digits, no sign, no leading zero.
fn number(key: &'static str, text: &str) -> Result<u64, RecordError> {
    let canonical = match text.as_bytes() {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    match text.parse() {
        Ok(number) if canonical && number <= MAX_COUNTER => Ok(number),
        _ => Err(RecordError::Value { key }),
    }
}

fn chain_head(text: &str) -> Result<String, RecordError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if (1..=MAX_CHAIN_HEAD).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(RecordError::Value { key: CHAIN_HEAD })
    }
}

fn digest(text: &str) -> Result<[u8; 32], RecordError> {
    let bytes = zbase32().decode(text.as_bytes()).ok();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(RecordError::Value { key: DOCUMENT })
}

/// The values of a key that may be there several times. Those of an unknown scheme are passed over, and
/// count all the same.
fn repeated<T, E>(
    strings: &[(String, String)],
    key: &'static str,
    limit: usize,
    unknown: impl Fn(&E) -> bool,
) -> Result<Vec<T>, RecordError>
where
    T: FromStr<Err = E> + Display,
    RecordError: From<E>,
{
    let mut parsed = Vec::new();
    for (index, text) in values(strings, key).enumerate() {
        if index == limit {
            return Err(RecordError::TooMany { key, limit });
        }
        match text.parse::<T>() {
            Ok(value) if value.to_string() == text => parsed.push(value),
            Ok(_) => return Err(RecordError::Value { key }),
            Err(error) if unknown(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(parsed)
}

fn check_unknown(strings: &[(String, String)]) -> Result<(), RecordError> {
    let known = [VERSION, EPOCH, TURN, CHAIN_HEAD, STATE, EXPIRES, DOCUMENT, ADDRESS, SEARCH_PATH];
    if strings.iter().filter(|(key, _)| !known.contains(&key.as_str())).count() > MAX_UNKNOWN_STRINGS {
        return Err(RecordError::TooMany { key: UNKNOWN, limit: MAX_UNKNOWN_STRINGS });
    }
    Ok(())
}
