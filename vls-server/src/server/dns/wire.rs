//! What is read of a DNS message before a library reads it (RFC 1035, section 4; RFC 6891).
//!
//! simple-dns reserves memory for as many records as a header claims, refuses types that it does not know, and
//! takes a set reserved bit for an error. A query is a header and one name, so that is walked here: within its
//! bytes, without following a pointer, and without allocating more than a name has labels.

use schemas::dns::{Record, skip_name};

use crate::limits;

const HEADER: usize = 12;
const LONGEST_NAME: usize = 255;
const OPT: u16 = 41;

/// Flags of the header.
const RESPONSE: u16 = 1 << 15;
pub(super) const RECURSION_DESIRED: u16 = 1 << 8;
const OPCODE: u16 = 0b1111 << 11;

/// A query that can be answered.
#[derive(Debug)]
pub(super) struct Query<'a> {
    pub(super) id: u16,
    pub(super) flags: u16,
    /// Name, type and class, as they came.
    pub(super) question: &'a [u8],
    /// The labels of the name, the first one first.
    pub(super) labels: Vec<&'a [u8]>,
    pub(super) kind: u16,
    pub(super) class: u16,
    pub(super) edns: Option<Edns>,
}

/// What the asker says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edns {
    /// Bytes that it takes over UDP.
    pub(super) size: u16,
    pub(super) version: u8,
}

/// Why there is no query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoQuery {
    /// Too short to have a header, or an answer itself: to answer that would make two servers talk for ever.
    Unanswerable,
    /// Not a query of names.
    NotImplemented,
    /// Not one question, or not well-formed.
    Malformed,
}

impl<'a> Query<'a> {
    pub(super) fn read(message: &'a [u8]) -> Result<Self, NoQuery> {
        let (header, body) = message.split_at_checked(HEADER).ok_or(NoQuery::Unanswerable)?;
        let field = |index: usize| u16::from_be_bytes([header[2 * index], header[2 * index + 1]]);
        let (id, flags) = (field(0), field(1));
        if flags & RESPONSE != 0 {
            return Err(NoQuery::Unanswerable);
        }
        if flags & OPCODE != 0 {
            return Err(NoQuery::NotImplemented);
        }
        if field(2) != 1 || field(3) != 0 || field(4) != 0 || field(5) > limits::DNS_ADDITIONAL {
            return Err(NoQuery::Malformed);
        }
        let (labels, rest) = plain_name(body).ok_or(NoQuery::Malformed)?;
        let (fixed, rest) = rest.split_first_chunk::<4>().ok_or(NoQuery::Malformed)?;
        let question = &body[..body.len() - rest.len()];
        let [kind, class] = [[fixed[0], fixed[1]], [fixed[2], fixed[3]]].map(u16::from_be_bytes);
        let edns = edns(rest, field(5))?;
        Ok(Self { id, flags, question, labels, kind, class, edns })
    }
}

/// The header alone, with a code of four bits: for who sent nothing that could be repeated.
pub(super) fn bare(message: &[u8], code: u8) -> Option<Vec<u8>> {
    let header = message.get(..4)?;
    let flags = u16::from_be_bytes([header[2], header[3]]);
    let flags = RESPONSE | flags & (OPCODE | RECURSION_DESIRED) | u16::from(code & 0xf);
    let mut reply = vec![0; HEADER];
    reply[..2].copy_from_slice(&header[..2]);
    reply[2..4].copy_from_slice(&flags.to_be_bytes());
    Some(reply)
}

/// The least time to live among the records of a message, in seconds; `None` if it has none or is not well-formed.
pub(in crate::server) fn time_to_live(message: &[u8]) -> Option<u32> {
    let (header, mut rest) = message.split_at_checked(HEADER)?;
    let count = |index: usize| u16::from_be_bytes([header[2 * index], header[2 * index + 1]]);
    for _ in 0..count(2) {
        rest = skip_name(rest)?.get(4..)?;
    }
    let mut least = None;
    for _ in 0..u32::from(count(3)) + u32::from(count(4)) + u32::from(count(5)) {
        let record = Record::read(rest)?;
        rest = record.behind;
        if record.kind != OPT {
            least = Some(least.map_or(record.time_to_live, |least: u32| least.min(record.time_to_live)));
        }
    }
    least
}

fn edns(mut rest: &[u8], records: u16) -> Result<Option<Edns>, NoQuery> {
    let mut found = None;
    for _ in 0..records {
        let record = Record::read(rest).ok_or(NoQuery::Malformed)?;
        rest = record.behind;
        if record.kind != OPT {
            continue;
        }
        let version = record.time_to_live.to_be_bytes()[1];
        let twice = found.replace(Edns { size: record.class, version }).is_some();
        if twice || record.named {
            return Err(NoQuery::Malformed);
        }
    }
    if rest.is_empty() { Ok(found) } else { Err(NoQuery::Malformed) }
}

/// The labels of a name without pointers, and what is behind it.
fn plain_name(mut rest: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let (mut labels, mut length) = (Vec::new(), 1);
    loop {
        let (first, behind) = rest.split_first()?;
        match *first {
            0 => return Some((labels, behind)),
            size @ 1..=63 => {
                let (label, behind) = behind.split_at_checked(size.into())?;
                length += label.len() + 1;
                if length > LONGEST_NAME {
                    return None;
                }
                labels.push(label);
                rest = behind;
            }
            64.. => return None,
        }
    }
}
