//! The question for a signed packet and its answer (RFC 1035, section 4; RFC 6891), pure.
//!
//! Of the answer so much is read as is needed: its header, that it repeats the question, and the strings of the first
//! TXT record. Whose name that stands at does not matter, as its content proves whose it is. No pointer is followed, so
//! nothing can lead in circles.

use schemas::{
    VatId,
    dns::Record,
    limits::{MAX_ACCEPTED_VALUE, PACKET_HEADER},
};

/// The label above an id under which a location server has the whole packet.
const LABEL: &str = "_signed";

const HEADER: usize = 12;
const LONGEST_NAME: usize = 255;
const TXT: u16 = 16;
const OPT: u16 = 41;
const INTERNET: u16 = 1;

const RESPONSE: u16 = 1 << 15;
const OPCODE: u16 = 0b1111 << 11;
const TRUNCATED: u16 = 1 << 9;
const RECURSION_DESIRED: u16 = 1 << 8;
const NO_NAME: u8 = 3;

/// Bytes of an answer by datagram that pass nearly everywhere (DNS flag day 2020).
const UDP_BYTES: u16 = 1232;

/// One question.
#[derive(Debug)]
pub(super) struct Question {
    bytes: Vec<u8>,
    /// Where name, type and class end.
    end: usize,
}

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// What may be the packet.
    Packet(Vec<u8>),
    /// There is none.
    Nothing,
    /// There is more than fits into a datagram.
    Truncated,
    /// The server does not answer such questions, or cannot.
    Refused(u8),
    /// It answers this question with what no location server has.
    Malformed,
}

impl Question {
    /// The question for the packet of `id` below `origin`; `None` if that is too long for a name.
    pub(super) fn new(id: VatId, origin: &str, number: u16) -> Option<Self> {
        let mut bytes = Vec::with_capacity(HEADER + LONGEST_NAME);
        // One question, one additional record.
        for field in [number, RECURSION_DESIRED, 1, 0, 0, 1] {
            bytes.extend(field.to_be_bytes());
        }
        for label in [LABEL, &id.to_string()].into_iter().chain(origin.split('.')) {
            bytes.push(u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?);
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
        if bytes.len() - HEADER > LONGEST_NAME {
            return None;
        }
        bytes.extend([TXT, INTERNET].map(u16::to_be_bytes).as_flattened());
        let end = bytes.len();
        bytes.push(0);
        bytes.extend([OPT, UDP_BYTES, 0, 0, 0].map(u16::to_be_bytes).as_flattened());
        Some(Self { bytes, end })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads an answer; `None` if it is none to this question.
    pub(super) fn read(&self, message: &[u8]) -> Option<Read> {
        let field = |index: usize| Some(u16::from_be_bytes([*message.get(2 * index)?, *message.get(2 * index + 1)?]));
        let asked = self.bytes.get(HEADER..self.end)?;
        let flags = field(1)?;
        let repeats = message.get(HEADER..self.end).is_some_and(|question| question.eq_ignore_ascii_case(asked));
        if message.get(..2) != self.bytes.get(..2)
            || flags & (RESPONSE | OPCODE) != RESPONSE
            || field(2)? != 1
            || !repeats
        {
            return None;
        }
        if flags & TRUNCATED != 0 {
            return Some(Read::Truncated);
        }
        match flags.to_be_bytes()[1] & 0b1111 {
            0 => {}
            NO_NAME => return Some(Read::Nothing),
            code => return Some(Read::Refused(code)),
        }
        Some(first_text(message.get(self.end..)?, field(3)?))
    }
}

/// The first TXT record of so many that begin here.
fn first_text(mut rest: &[u8], count: u16) -> Read {
    for _ in 0..count {
        let Some(Record { kind, class, data, behind, .. }) = Record::read(rest) else { return Read::Malformed };
        if (kind, class) == (TXT, INTERNET) {
            return strings(data).map_or(Read::Malformed, Read::Packet);
        }
        rest = behind;
    }
    Read::Nothing
}

/// The strings of a TXT record, one behind the other; `None` if they are more than a packet.
fn strings(mut data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some((length, rest)) = data.split_first() {
        let (string, rest) = rest.split_at_checked((*length).into())?;
        bytes.extend(string);
        data = rest;
    }
    (bytes.len() <= PACKET_HEADER + MAX_ACCEPTED_VALUE).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> VatId {
        schemas::IdentityKey::from_seed(&[1; 32]).id()
    }

    fn question() -> Question {
        Question::new(id(), "vls.example.org", 0x1234).unwrap()
    }

    /// An answer with these flags and records.
    fn reply(question: &Question, flags: u16, records: &[&[u8]]) -> Vec<u8> {
        let mut bytes = question.bytes()[..question.end].to_vec();
        bytes[2..4].copy_from_slice(&(RESPONSE | flags).to_be_bytes());
        bytes[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
        bytes[10..12].fill(0);
        [&[bytes], &records.iter().map(|record| record.to_vec()).collect::<Vec<_>>()[..]].concat().concat()
    }

    fn txt(kind: u16, strings: &[&[u8]]) -> Vec<u8> {
        let one = |string: &&[u8]| [&[u8::try_from(string.len()).unwrap()], *string].concat();
        let data: Vec<u8> = strings.iter().flat_map(one).collect();
        let length = u16::try_from(data.len()).unwrap();
        let fixed = [0xC00C, kind, INTERNET, 0, 30, length].map(u16::to_be_bytes);
        [fixed.as_flattened(), &data].concat()
    }

    #[test]
    fn the_strings_of_the_first_text_are_the_packet() {
        let question = question();
        let alias = txt(5, &[b"elsewhere"]);
        let read = |flags, records: &[&[u8]]| question.read(&reply(&question, flags, records)).unwrap();
        let text = txt(TXT, &[&[7; 255], b"", b"\0\xff"]);
        assert_eq!(read(0, &[&alias, &text]), Read::Packet([&[7; 255][..], b"\0\xff"].concat()));
        assert_eq!(read(0, &[&alias]), Read::Nothing);
        assert_eq!(read(3, &[]), Read::Nothing);
        assert_eq!(read(TRUNCATED, &[]), Read::Truncated);
        assert_eq!(read(5, &[]), Read::Refused(5));
        // The bits that tell of DNSSEC are the resolver's own business.
        assert_eq!(read(1 << 5 | 1 << 4 | 1 << 7, &[&txt(TXT, &[b"x"])]), Read::Packet(b"x".to_vec()));
    }

    #[test]
    fn what_answers_another_question_is_no_answer() {
        let question = question();
        let right = reply(&question, 0, &[&txt(TXT, &[b"x"])]);
        assert!(question.read(&right).is_some());
        let mut capitals = right.clone();
        capitals[HEADER..question.end - 4].make_ascii_uppercase();
        assert!(question.read(&capitals).is_some(), "names have no case");
        for place in [0, 1, 2, 5, HEADER + 3, question.end - 3] {
            let mut wrong = right.clone();
            wrong[place] ^= if place == 2 { 0x80 } else { 1 };
            assert_eq!(question.read(&wrong), None, "{place}");
        }
        assert!(Question::new(id(), &"a.".repeat(120), 1).is_none());
    }

    #[test]
    fn what_answers_this_question_with_no_packet_is_not_waited_beyond() {
        let question = question();
        let too_long: Vec<&[u8]> = vec![&[0; 255]; 5];
        let text = txt(TXT, &[b"x"]);
        for record in [&txt(TXT, &too_long), &text[..text.len() - 1], &[][..]] {
            assert_eq!(question.read(&reply(&question, 0, &[record])), Some(Read::Malformed));
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_not_and_never_more_than_a_packet(
            flags in any::<u16>(), count in any::<u16>(), rest in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let question = question();
            let mut message = reply(&question, flags, &[]);
            message[6..8].copy_from_slice(&count.to_be_bytes());
            message.extend(rest);
            if let Some(Read::Packet(packet)) = question.read(&message) {
                prop_assert!(packet.len() <= PACKET_HEADER + MAX_ACCEPTED_VALUE);
            }
        }
    }
}
