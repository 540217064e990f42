//! The answer to one query, pure (RFC 1034, section 4.3.2; RFC 2308 for what is not there).
//!
//! Below the origin stands what a vat has signed: the records that its packet has at `<id>` and below, with the
//! origin behind their names. So `_vat.<id>.<origin>` has the strings of the record, `_iroh.<id>.<origin>` those that
//! iroh reads if the owner put them there, and whatever else is in the packet is served too.
//!
//! Those strings are not signed any more, so whoever forges DNS can change them. At `_signed.<id>.<origin>` therefore
//! stands the whole signed packet, in one TXT record of strings of 255 bytes (RFC 1035 allows any byte in them): it
//! proves itself, whatever caches it has come through.
//!
//! * a vat that is known exists, and what it has not said about itself is NODATA;
//! * an unknown one, one whose lease has ended, and a name that leads to no id: NXDOMAIN;
//! * outside of the origin, for a transfer of the zone, which would enumerate it, and for ANY, whose answers are what
//!   forgers of addresses like best: REFUSED.
//!
//! The name comes back byte for byte: resolvers put randomness into its capitals and look for it (0x20).

use schemas::VatId;
use simple_dns::{
    CLASS, CharacterString, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
    rdata::{OPT, RData, TXT},
};

use super::{
    wire::{self, NoQuery, Query},
    zone::{Zone, name},
};
use crate::{
    limits::{DNS_NEGATIVE_TTL, DNS_PLAIN_UDP_BYTES, DNS_UDP_BYTES, DNS_ZONE_TTL},
    registry::Id,
};

/// By what the query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One datagram, which must not be too long.
    Datagram,
    /// TCP or HTTPS.
    Stream,
}

/// What is known of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Nothing, or nothing that is still true.
    Nothing,
    /// What is known is not durable yet.
    Early,
    /// Its record.
    Record {
        /// The signed packet.
        packet: Vec<u8>,
        /// For how long it will be answered.
        left: std::time::Duration,
    },
}

/// What to do with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send this.
    Reply {
        /// The message.
        message: Vec<u8>,
        /// For how many seconds it may be cached.
        time_to_live: u32,
    },
    /// Ask again when what is known is durable.
    Later,
    /// Say nothing.
    None,
}

/// The label above an id under which the whole signed packet stands.
const SIGNED: &[u8] = b"_signed";

/// The longest string of a TXT record.
const STRING_BYTES: usize = 255;

const ANY: u16 = 255;
/// Both transfers of a zone, IXFR and AXFR.
const TRANSFERS: [u16; 2] = [251, 252];

/// Answers one query.
pub fn answer(zone: &Zone, query: &[u8], transport: Transport, look: impl FnOnce(&Id) -> Known) -> Answer {
    let read = match Query::read(query) {
        Ok(read) => read,
        Err(reason) => return refuse_to_read(query, reason),
    };
    let Some(content) = content(zone, &read, look) else { return Answer::Later };
    let limit = match (transport, read.edns) {
        (Transport::Stream, _) => usize::from(u16::MAX),
        (Transport::Datagram, None) => DNS_PLAIN_UDP_BYTES,
        (Transport::Datagram, Some(edns)) => usize::from(edns.size).clamp(DNS_PLAIN_UDP_BYTES, DNS_UDP_BYTES),
    };
    let time_to_live = content.time_to_live();
    let whole = write(&read, &content, false).filter(|message| message.len() <= limit);
    // Without its records, an answer is as long as its question and EDNS's eleven bytes, so it fits.
    let message = whole.or_else(|| write(&read, &Content { answers: Vec::new(), ..content }, true));
    message.map_or(Answer::None, |message| Answer::Reply { message, time_to_live })
}

/// Tells who asks too often by datagrams to come by a stream, where nobody can speak in another's name.
pub(super) fn slow_down(query: &[u8]) -> Option<Vec<u8>> {
    let read = Query::read(query).ok()?;
    write(&read, &Content::empty(RCODE::NoError, false), true)
}

fn refuse_to_read(query: &[u8], reason: NoQuery) -> Answer {
    let code = match reason {
        NoQuery::Unanswerable => None,
        NoQuery::NotImplemented => Some(4),
        NoQuery::Malformed => Some(1),
    };
    let message = code.and_then(|code| wire::bare(query, code));
    message.map_or(Answer::None, |message| Answer::Reply { message, time_to_live: 0 })
}

/// What an answer says.
struct Content<'a> {
    code: RCODE,
    authoritative: bool,
    answers: Vec<ResourceRecord<'a>>,
    authority: Option<ResourceRecord<'static>>,
}

impl Content<'_> {
    fn empty(code: RCODE, authoritative: bool) -> Self {
        Self { code, authoritative, answers: Vec::new(), authority: None }
    }

    /// There is nothing there, and for so long nobody needs to ask again.
    fn nothing(zone: &Zone, code: RCODE) -> Self {
        let origin = name(zone.origin().labels());
        Self { authority: Some(zone.authority(origin, true)), ..Self::empty(code, true) }
    }

    fn of(answers: Vec<ResourceRecord<'_>>) -> Content<'_> {
        Content { answers, ..Content::empty(RCODE::NoError, true) }
    }

    fn time_to_live(&self) -> u32 {
        let least = self.answers.iter().map(|record| record.ttl).min();
        least.unwrap_or(if self.authority.is_some() { DNS_NEGATIVE_TTL } else { 0 })
    }
}

/// `None`: not yet.
fn content(zone: &Zone, query: &Query<'_>, look: impl FnOnce(&Id) -> Known) -> Option<Content<'static>> {
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return Some(Content::empty(RCODE::BADVERS, false));
    }
    let Some(below) = below_origin(zone, &query.labels) else {
        return Some(Content::empty(RCODE::Refused, false));
    };
    if query.class != CLASS::IN as u16 || query.kind == ANY || TRANSFERS.contains(&query.kind) {
        return Some(Content::empty(RCODE::Refused, false));
    }
    let owner = || name(query.labels.iter().copied());
    let Some((last, prefix)) = below.split_last() else {
        return Some(match TYPE::from(query.kind) {
            TYPE::SOA => Content::of(vec![zone.authority(owner(), false)]),
            TYPE::NS => Content::of(vec![zone.name_server(owner())]),
            _ => Content::nothing(zone, RCODE::NoError),
        });
    };
    let Some(id) = id_in(last) else { return Some(Content::nothing(zone, RCODE::NameError)) };
    let (packet, left) = match look(&id) {
        Known::Early => return None,
        Known::Nothing => return Some(Content::nothing(zone, RCODE::NameError)),
        Known::Record { packet, left } => (packet, left),
    };
    let message = packet.get(schemas::limits::PACKET_HEADER..).unwrap_or_default();
    if let [label] = prefix
        && label.eq_ignore_ascii_case(SIGNED)
    {
        if query.kind != u16::from(TYPE::TXT) {
            return Some(Content::nothing(zone, RCODE::NoError));
        }
        let ttl = wire::time_to_live(message).unwrap_or(DNS_ZONE_TTL);
        let ttl = ttl.min(u32::try_from(left.as_secs()).unwrap_or(u32::MAX)).min(DNS_ZONE_TTL);
        let Some(whole) = strings_of(&packet) else { return Some(Content::empty(RCODE::ServerFailure, false)) };
        return Some(Content::of(vec![ResourceRecord::new(owner(), CLASS::IN, ttl, RData::TXT(whole))]));
    }
    // It was read when it was registered, so it can be read.
    let Ok(record) = Packet::parse(message) else { return Some(Content::empty(RCODE::ServerFailure, false)) };
    let left = u32::try_from(left.as_secs()).unwrap_or(u32::MAX);
    Some(match find(&record, prefix, last, query.kind) {
        Found::Records(records) => {
            let served = records.into_iter().map(|record| {
                // No longer than the lease: the vat may have gone when it ends.
                let ttl = record.ttl.min(left).min(DNS_ZONE_TTL);
                ResourceRecord::new(owner(), CLASS::IN, ttl, record.rdata.clone().into_owned())
            });
            Content::of(served.collect())
        }
        Found::NoData => Content::nothing(zone, RCODE::NoError),
        Found::NoName => Content::nothing(zone, RCODE::NameError),
    })
}

/// Any bytes as the strings of one text record.
fn strings_of(bytes: &[u8]) -> Option<TXT<'static>> {
    let mut text = TXT::new();
    for string in bytes.chunks(STRING_BYTES) {
        // No string is longer than one may be.
        text.add_char_string(CharacterString::new(string).ok()?.into_owned());
    }
    Some(text)
}

/// Whose record a query is about, if it is about any: for who looks many up at once.
pub(super) fn id_asked_for(zone: &Zone, query: &[u8]) -> Option<Id> {
    let read = Query::read(query).ok()?;
    id_in(below_origin(zone, &read.labels)?.last()?)
}

/// Names have no case; ids are written in small letters.
fn id_in(label: &[u8]) -> Option<Id> {
    let mut text = [0; VatId::TEXT_LENGTH];
    text.copy_from_slice(Some(label).filter(|label| label.len() == VatId::TEXT_LENGTH)?);
    text.make_ascii_lowercase();
    VatId::spelled(std::str::from_utf8(&text).ok()?).ok()
}

/// The labels in front of the origin; `None` outside of it.
fn below_origin<'a, 'q>(zone: &Zone, labels: &'a [&'q [u8]]) -> Option<&'a [&'q [u8]]> {
    let origin = zone.origin().labels();
    let (below, end) = labels.split_at_checked(labels.len().checked_sub(origin.clone().count())?)?;
    end.iter().copied().zip(origin).all(|(one, other)| one.eq_ignore_ascii_case(other)).then_some(below)
}

enum Found<'a> {
    Records(Vec<&'a ResourceRecord<'a>>),
    /// The name is there, and has nothing of this type.
    NoData,
    NoName,
}

/// Looks for `prefix.<id>` in the packet of the vat with this id.
fn find<'a>(packet: &'a Packet<'a>, prefix: &[&[u8]], id: &[u8], kind: u16) -> Found<'a> {
    let (mut records, mut aliases, mut exists) = (Vec::new(), Vec::new(), prefix.is_empty());
    for record in &packet.answers {
        let labels: Vec<&[u8]> = record.name.as_bytes().collect();
        let wanted = prefix.iter().copied().chain([id]);
        let Some(more) = labels.len().checked_sub(prefix.len() + 1) else { continue };
        if !labels[more..].iter().copied().zip(wanted).all(|(one, other)| one.eq_ignore_ascii_case(other)) {
            continue;
        }
        // What has something below it is there, even with nothing of its own (RFC 8020).
        exists = true;
        if more > 0 || record.class != CLASS::IN || matches!(record.rdata, RData::OPT(_)) {
            continue;
        }
        match record.rdata.type_code() {
            found if u16::from(found) == kind => records.push(record),
            TYPE::CNAME => aliases.push(record),
            _ => {}
        }
    }
    match (records.is_empty(), aliases.is_empty()) {
        (false, _) => Found::Records(records),
        (true, false) => Found::Records(aliases),
        _ if exists => Found::NoData,
        _ => Found::NoName,
    }
}

fn write(query: &Query<'_>, content: &Content<'_>, truncated: bool) -> Option<Vec<u8>> {
    let mut packet = Packet::new_reply(query.id);
    let mut flags = PacketFlag::empty();
    flags.set(PacketFlag::RECURSION_DESIRED, query.flags & wire::RECURSION_DESIRED != 0);
    flags.set(PacketFlag::AUTHORITATIVE_ANSWER, content.authoritative);
    flags.set(PacketFlag::TRUNCATION, truncated);
    packet.set_flags(flags);
    *packet.rcode_mut() = content.code;
    let asked: Name<'_> = name(query.labels.iter().copied());
    let kind = QTYPE::TYPE(TYPE::from(query.kind));
    packet.questions.push(Question::new(asked, kind, QCLASS::CLASS(CLASS::IN), false));
    packet.answers.clone_from(&content.answers);
    packet.name_servers.extend(content.authority.clone().filter(|_| !truncated));
    if query.edns.is_some() {
        let udp_packet_size = u16::try_from(DNS_UDP_BYTES).unwrap_or(u16::MAX);
        *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size, version: 0 });
    }
    let mut message = packet.build_bytes_vec_compressed().ok()?;
    // As it came, with a type and a class that the library may not know.
    let place = message.get_mut(12..12 + query.question.len())?;
    place.copy_from_slice(query.question);
    Some(message)
}
