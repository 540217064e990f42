//! The DNS message around the TXT strings of a location record (DESIGN §4, RFC 1035).
//!
//! Reading and writing is simple-dns's, the parser of the pkarr crate, so what we accept, existing pkarr
//! readers can read. In front of it stands a walk over the message ([`check_layout`]) that costs nothing:
//! simple-dns reserves memory for as many records as the header *claims*, and does not look behind the last.

use simple_dns::{
    CLASS, Name, Packet, ResourceRecord,
    rdata::{RData, TXT},
};

use super::{RecordError, fields::Field};
use crate::{VatId, limits::RECORD_TTL};

/// The label in front of the id.
const LABEL: &str = "_vat";

const HEADER: usize = 12;

/// Writes a reply that answers with one TXT record per field, with compressed names.
pub(super) fn build(id: &VatId, fields: &[Field]) -> Result<Vec<u8>, RecordError> {
    let name = format!("{LABEL}.{id}");
    let name = Name::new(&name).map_err(|_| RecordError::Structure)?;
    let mut packet = Packet::new_reply(0);
    for Field { key, value } in fields {
        let string = format!("{key}={value}").try_into().map_err(|_| RecordError::TooLong { key })?;
        let data = RData::TXT(TXT::new().with_char_string(string));
        packet.answers.push(ResourceRecord::new(name.clone(), CLASS::IN, RECORD_TTL, data));
    }
    packet.build_bytes_vec_compressed().map_err(|_| RecordError::Structure)
}

/// Reads the strings under `_vat.<id>` among the answers, as (key, value). `None` if nothing stands under that name,
/// which is not the same as something without strings.
pub(super) fn strings(id: &VatId, value: &[u8]) -> Result<Option<Vec<(String, String)>>, RecordError> {
    check_layout(value).ok_or(RecordError::Structure)?;
    let packet = Packet::parse(value).map_err(|_| RecordError::Structure)?;
    let id = id.to_string();
    let mut strings = None;
    for answer in &packet.answers {
        // Label by label: as text, one label with a dot in it would look like two.
        if !is_name(answer.name.as_bytes(), &id) {
            continue;
        }
        let strings: &mut Vec<_> = strings.get_or_insert_default();
        let RData::TXT(text) = &answer.rdata else { return Err(RecordError::Foreign) };
        // DNS shows who asks for the name what stands under another spelling of it; so nothing may.
        if answer.class != CLASS::IN || answer.cache_flush || !answer.name.as_bytes().eq(own_name(&id)) {
            return Err(RecordError::Foreign);
        }
        for (key, value) in text.iter_raw() {
            let (Ok(key), Some(Ok(value))) = (str::from_utf8(key), value.map(str::from_utf8)) else {
                return Err(RecordError::Foreign);
            };
            strings.push((key.to_owned(), value.to_owned()));
        }
    }
    Ok(strings)
}

/// The labels of `_vat.<id>`.
fn own_name(id: &str) -> [&[u8]; 2] {
    [LABEL.as_bytes(), id.as_bytes()]
}

/// Whether these are the labels of `_vat.<id>`, be it in capitals: to DNS those are the same (RFC 4343).
fn is_name<'a>(mut labels: impl Iterator<Item = &'a [u8]>, id: &str) -> bool {
    let mut is_next = |own: &[u8]| labels.next().is_some_and(|label| label.eq_ignore_ascii_case(own));
    own_name(id).into_iter().all(&mut is_next) && labels.next().is_none()
}

/// Whether the message has exactly the records that its header counts, and ends behind the last.
fn check_layout(message: &[u8]) -> Option<()> {
    let (header, mut rest) = message.split_at_checked(HEADER)?;
    let count = |section: usize| u16::from_be_bytes([header[4 + 2 * section], header[5 + 2 * section]]);
    for _ in 0..count(0) {
        // A question: type and class.
        rest = skip_name(rest)?.get(4..)?;
    }
    let records = (1..4).map(|section| u32::from(count(section))).sum::<u32>();
    for _ in 0..records {
        // Type, class, time to live; then the length of the data.
        rest = skip_name(rest)?.get(8..)?;
        let (length, data) = rest.split_first_chunk()?;
        rest = data.get(usize::from(u16::from_be_bytes(*length))..)?;
    }
    rest.is_empty().then_some(())
}

/// Skips a name as it stands, without following a pointer.
fn skip_name(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        match rest.first()? {
            0 => return rest.get(1..),
            0xC0.. => return rest.get(2..),
            length @ 1..=63 => rest = rest.get(1 + usize::from(*length)..)?,
            64..0xC0 => return None,
        }
    }
}
