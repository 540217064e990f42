//! Entity tags and the conditions that requests put (RFC 9110, section 13), pure.
//!
//! A record's tag is its timestamp and the scalar of its signature, the second half (RFC 8032, section 5.1.6), which is as
//! good as a digest: it is a random number plus the hash of all that is signed, times the key. A packet is stored only if
//! its signature is right, so somebody else's cannot have the same tag, and even the key's owner would find two that do
//! only by chance, among 2¹²⁶ (as he would two with the same SHA-256, more or less). So two records with the same tag
//! are the same bytes, and the tag stands for their full order (epoch, timestamp, bytes).
//!
//! HTTP dates count seconds, and a vat may sign several records in one. So `If-Modified-Since` says that nothing is
//! new only if the record is not later than the very beginning of the second that it names, to the microsecond: an
//! answer too many costs a kilobyte, one too few would hide where a vat is. Swaps go by tags alone; there
//! `If-Match` may also be the bare timestamp that pkarr's relays take.

use std::ops::Range;

use hyper::header::{HeaderMap, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH};
use schemas::{IdText, Timestamp, limits::PACKET_HEADER};

/// Where a packet has the scalar of its signature.
const SCALAR: Range<usize> = 32..64;

/// The tag of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tag {
    timestamp: Timestamp,
    text: String,
}

impl Tag {
    /// Quotes, sixteen digits of a timestamp, a hyphen, and the scalar, spelled as ids are.
    const LENGTH: usize = 2 + 16 + 1 + IdText::LENGTH;

    /// The tag of a packet that is a record.
    pub(super) fn of(packet: &[u8]) -> Self {
        let timestamp = timestamp(packet);
        let mut text = String::with_capacity(Self::LENGTH);
        text.push('"');
        text.push_str(itoa::Buffer::new().format(timestamp.as_micros()));
        text.push('-');
        let scalar = packet.get(SCALAR).and_then(|scalar| scalar.try_into().ok()).unwrap_or(&[0; 32]);
        text.push_str(IdText::of(scalar).as_str());
        text.push('"');
        Self { timestamp, text }
    }

    /// As it stands in a header, with its quotes.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// When a packet was signed.
pub(super) fn timestamp(packet: &[u8]) -> Timestamp {
    let bytes = packet.get(PACKET_HEADER - 8..PACKET_HEADER).and_then(|bytes| bytes.try_into().ok());
    Timestamp::from_micros(bytes.map_or(0, u64::from_be_bytes))
}

/// What a writer demands of the current record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Demand {
    /// Nothing.
    None,
    /// That there is none: `If-None-Match: *`.
    Absent,
    /// That there is one which one of these names: `If-Match`.
    OneOf(Vec<Named>),
}

/// What an element of `If-Match` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    /// Whatever there is: `*`.
    Any,
    /// The record with this tag.
    Tag(String),
    /// The record with this timestamp, as pkarr has it.
    Timestamp(u64),
}

/// A condition that is not understood, and so cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConditionError {
    /// Neither tags nor a timestamp.
    #[error("{0} has to be *, entity tags, or the timestamp of a record in microseconds")]
    Unreadable(&'static str),
    /// Only the absence of everything can be demanded of a write.
    #[error("a write may demand `If-None-Match: *` and no other")]
    NoneOf,
}

impl Demand {
    /// Reads what a PUT demands.
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, ConditionError> {
        let if_match = elements(headers, &IF_MATCH).ok_or(ConditionError::Unreadable("If-Match"))?;
        if !if_match.is_empty() {
            return if_match.into_iter().map(Named::read).collect::<Result<_, _>>().map(Self::OneOf);
        }
        let none_match = elements(headers, &IF_NONE_MATCH).ok_or(ConditionError::Unreadable("If-None-Match"))?;
        match none_match.as_slice() {
            [] => Ok(Self::None),
            ["*"] => Ok(Self::Absent),
            _ => Err(ConditionError::NoneOf),
        }
    }
}

impl Named {
    fn read(element: &str) -> Result<Self, ConditionError> {
        if element == "*" {
            return Ok(Self::Any);
        }
        if element.len() >= 2 && element.starts_with('"') && element.ends_with('"') {
            return Ok(Self::Tag(element.to_owned()));
        }
        // A weak tag never matches here (RFC 9110, section 13.1.1), and ours are not weak.
        let number = element.bytes().all(|byte| byte.is_ascii_digit()).then(|| element.parse().ok()).flatten();
        number.map(Self::Timestamp).ok_or(ConditionError::Unreadable("If-Match"))
    }

    /// Whether it names the record with this tag.
    pub(super) fn names(&self, tag: &Tag) -> bool {
        match self {
            Self::Any => true,
            Self::Tag(text) => *text == tag.text,
            Self::Timestamp(micros) => *micros == tag.timestamp.as_micros(),
        }
    }
}

/// Whether who asks has the record with this tag already.
pub(super) fn is_known(headers: &HeaderMap, tag: &Tag) -> bool {
    match elements(headers, &IF_NONE_MATCH) {
        // A proxy that compressed the answer has made the tag weak; the record is the same.
        Some(known) if !known.is_empty() => {
            known.iter().any(|element| *element == "*" || element.strip_prefix("W/").unwrap_or(element) == tag.text)
        }
        // With tags, dates are not looked at (RFC 9110, section 13.1.3); unreadable ones are tags too.
        None => false,
        Some(_) => {
            let date = headers.get(IF_MODIFIED_SINCE).and_then(|value| value.to_str().ok());
            let date = date.and_then(|text| httpdate::parse_http_date(text).ok());
            let since_1970 = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
            since_1970.is_some_and(|known| tag.timestamp <= Timestamp::from_seconds(known.as_secs()))
        }
    }
}

/// The elements of all lines of a list header. Our tags hold no commas, so who sends one with a comma in it sends one
/// that is not ours.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Vec<&'a str>> {
    let mut found = Vec::new();
    for line in headers.get_all(name) {
        found.extend(line.to_str().ok()?.split(',').map(str::trim).filter(|element| !element.is_empty()));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn packet(micros: u64) -> Vec<u8> {
        [&[7; 64][..], &micros.to_be_bytes(), b"value"].concat()
    }

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_tag_tells_apart_every_two_records() {
        let tag = Tag::of(&packet(1_800_000_000_000_007));
        assert!(tag.text.starts_with("\"1800000000000007-"));
        let mut other = packet(1_800_000_000_000_007);
        other[SCALAR.end - 1] ^= 1;
        assert_ne!(Tag::of(&other), tag);
        assert_eq!(Tag::of(&packet(1_800_000_000_000_007)), tag);
    }

    #[test]
    fn dates_never_hide_a_record_of_the_same_second() {
        let date = "Fri, 15 Jan 2027 08:00:00 GMT";
        let ask = |micros| is_known(&headers(&[(IF_MODIFIED_SINCE, date)]), &Tag::of(&packet(micros)));
        assert!(ask(1_799_999_999_999_999));
        assert!(ask(1_800_000_000_000_000));
        assert!(!ask(1_800_000_000_000_001));
        assert!(!is_known(&headers(&[(IF_MODIFIED_SINCE, "yesterday")]), &Tag::of(&packet(1))));
    }

    #[test]
    fn tags_win_over_dates_and_come_in_lists_on_several_lines_and_weakened() {
        let tag = Tag::of(&packet(5));
        let weak = format!("W/{}", tag.text);
        let long_ago_or_not = (IF_MODIFIED_SINCE, "Fri, 15 Jan 2027 08:00:00 GMT");
        for known in [tag.text.as_str(), "*", &format!("\"a\", {weak}"), &format!("\"a\",{} , \"b\"", tag.text)] {
            assert!(is_known(&headers(&[(IF_NONE_MATCH, known)]), &tag), "{known}");
        }
        assert!(is_known(&headers(&[(IF_NONE_MATCH, "\"a\""), (IF_NONE_MATCH, &tag.text)]), &tag));
        assert!(!is_known(&headers(&[(IF_NONE_MATCH, "\"a\""), long_ago_or_not]), &tag));
        assert!(!is_known(&HeaderMap::new(), &tag));
    }

    #[test]
    fn writers_demand_a_tag_pkarrs_timestamp_anything_or_nothing() {
        let tag = Tag::of(&packet(5));
        let read = |name, value: &str| Demand::read(&headers(&[(name, value)]));
        let named = |value: &str| match read(IF_MATCH, value) {
            Ok(Demand::OneOf(named)) => named.iter().any(|named| named.names(&tag)),
            other => panic!("{value}: {other:?}"),
        };
        for yes in [tag.text.as_str(), "5", "*", &format!("\"x\", {}", tag.text)] {
            assert!(named(yes), "{yes}");
        }
        for no in ["\"x\"", "6", "\"5\""] {
            assert!(!named(no), "{no}");
        }
        assert_eq!(Demand::read(&HeaderMap::new()), Ok(Demand::None));
        assert_eq!(read(IF_NONE_MATCH, "*"), Ok(Demand::Absent));
        assert_eq!(read(IF_NONE_MATCH, "\"x\""), Err(ConditionError::NoneOf));
        for unreadable in ["W/\"x\"", "x", "-5", "99999999999999999999", "\""] {
            assert!(read(IF_MATCH, unreadable).is_err(), "{unreadable}");
        }
    }
}
