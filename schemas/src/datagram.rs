//! A cold lookup: one datagram each way, for who has no session with a location server (DESIGN §5).
//!
//! ```text
//! question:  kind 1 = 0x08 ‖ "vls" ‖ version 1 = 1 ‖ nonce 8 ‖ id 32 ‖ zeros, up to 1100 bytes in all
//! answer:    kind 1 = 0x09 ‖ "vls" ‖ version 1 = 1 ‖ nonce 8 ‖ standing 1 ‖ age 4 ‖ time 8 ‖ packet
//! ```
//!
//! Integers are big-endian, as in the packet. *Standing* is 0 (no record), 1 (live) or 2 (its lease has ended); *age* is
//! in seconds since the vat was last seen, *time* is the server's clock in microseconds since 1970. Without a record
//! there is no packet.
//!
//! It shares the port with QUIC, whose packets have the second highest bit of the first byte set, and is taken for nothing
//! else by those who look at first bytes either (RFC 9443 §3: 4 to 15 are nobody's). A question is never shorter than
//! its answer, so a server that answers forged questions sends no one more than the forger has sent himself. The
//! nonce is the only thing that ties an answer to a question: nobody who does not see the question can guess it, and
//! what else is in the answer is signed by the vat, or costs a finder nothing but to ask on.

use crate::{Timestamp, VatId, limits};

/// The first byte of every question.
pub const QUESTION_KIND: u8 = 0x08;

/// The first byte of every answer.
pub const ANSWER_KIND: u8 = 0x09;

/// Bytes of every question: more than the longest answer, and less than every network carries (RFC 9000 §14).
pub const QUESTION_BYTES: usize = 1100;

/// Bytes at the front of a question that say something.
pub const QUESTION_HEAD_BYTES: usize = HEAD_BYTES + 32;

/// Bytes of the longest answer.
pub const MAX_ANSWER_BYTES: usize = ANSWER_HEAD_BYTES + limits::PACKET_HEADER + limits::MAX_ACCEPTED_VALUE;

const _: () = assert!(MAX_ANSWER_BYTES <= QUESTION_BYTES);

/// Kind, mark, version and nonce.
const HEAD_BYTES: usize = 5 + 8;
const ANSWER_HEAD_BYTES: usize = HEAD_BYTES + 1 + 4 + 8;
const QUESTION: [u8; 5] = [QUESTION_KIND, b'v', b'l', b's', 1];
const ANSWER: [u8; 5] = [ANSWER_KIND, b'v', b'l', b's', 1];

/// What ties an answer to its question.
pub type Nonce = [u8; 8];

/// A question for the record of one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookupQuestion {
    /// Drawn anew for each.
    pub nonce: Nonce,
    /// Whose record. Not known to be a key: only what was registered is.
    pub id: [u8; 32],
}

/// What a server knows of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookupAnswer<'a> {
    /// That of the question.
    pub nonce: Nonce,
    /// What is known.
    pub known: Option<Known<'a>>,
    /// The server's clock, so that a peer with a wrong one can tell.
    pub time: Timestamp,
}

/// A record in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known<'a> {
    /// The signed packet, not verified.
    pub packet: &'a [u8],
    /// Seconds since the vat was last seen.
    pub age: u32,
    /// Its lease has ended.
    pub expired: bool,
}

impl LookupQuestion {
    /// For the vat `id`.
    #[must_use]
    pub fn new(id: VatId, nonce: Nonce) -> Self {
        Self { nonce, id: *id.as_bytes() }
    }

    /// Appends the datagram.
    pub fn write(&self, output: &mut Vec<u8>) {
        let end = output.len() + QUESTION_BYTES;
        output.extend_from_slice(&QUESTION);
        output.extend_from_slice(&self.nonce);
        output.extend_from_slice(&self.id);
        output.resize(end, 0);
    }

    /// Reads the front of a datagram of `length` bytes; `None` if it is no question, or too short to be answered.
    #[must_use]
    pub fn read(front: &[u8], length: usize) -> Option<Self> {
        let (head, rest) = front.split_first_chunk::<{ QUESTION.len() }>()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let id = rest.first_chunk()?;
        (*head == QUESTION && length >= QUESTION_BYTES).then_some(Self { nonce: *nonce, id: *id })
    }
}

impl LookupAnswer<'_> {
    /// Appends the datagram. A packet that is longer than any may be is left out, and with it what is said of it.
    pub fn write(&self, output: &mut Vec<u8>) {
        let longest = limits::PACKET_HEADER + limits::MAX_ACCEPTED_VALUE;
        let known = self.known.filter(|known| known.packet.len() <= longest);
        output.extend_from_slice(&ANSWER);
        output.extend_from_slice(&self.nonce);
        output.push(match known {
            None => 0,
            Some(Known { expired: false, .. }) => 1,
            Some(Known { expired: true, .. }) => 2,
        });
        output.extend_from_slice(&known.map_or(0, |known| known.age).to_be_bytes());
        output.extend_from_slice(&self.time.as_micros().to_be_bytes());
        output.extend_from_slice(known.map_or(&[], |known| known.packet));
    }
}

impl<'a> LookupAnswer<'a> {
    /// Reads a datagram; `None` if it is no answer.
    #[must_use]
    pub fn read(datagram: &'a [u8]) -> Option<Self> {
        let (head, rest) = datagram.split_first_chunk::<{ ANSWER.len() }>()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (&[standing], rest) = rest.split_first_chunk()?;
        let (age, rest) = rest.split_first_chunk()?;
        let (time, packet) = rest.split_first_chunk()?;
        if *head != ANSWER || datagram.len() > MAX_ANSWER_BYTES {
            return None;
        }
        let known = Known { packet, age: u32::from_be_bytes(*age), expired: standing == 2 };
        let known = match standing {
            0 if packet.is_empty() && known.age == 0 => None,
            1 | 2 if packet.len() > limits::PACKET_HEADER => Some(known),
            _ => return None,
        };
        Some(Self { nonce: *nonce, known, time: Timestamp::from_micros(u64::from_be_bytes(*time)) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(nonce: [u8; 8], id: [u8; 32], time: u64, age: u32, expired: bool, length in 73_usize..1073) {
            let question = LookupQuestion { nonce, id };
            let mut datagram = vec![7];
            question.write(&mut datagram);
            let datagram = &datagram[1..];
            prop_assert_eq!(datagram.len(), QUESTION_BYTES);
            prop_assert_eq!(LookupQuestion::read(&datagram[..QUESTION_HEAD_BYTES], datagram.len()), Some(question));
            prop_assert_eq!(LookupQuestion::read(datagram, QUESTION_BYTES - 1), None, "its answer could be longer");
            prop_assert_eq!(LookupAnswer::read(datagram), None);

            let packet = vec![9; length];
            for known in [None, Some(Known { packet: &packet, age, expired })] {
                let answer = LookupAnswer { nonce, known, time: Timestamp::from_micros(time) };
                let mut datagram = Vec::new();
                answer.write(&mut datagram);
                prop_assert!(datagram.len() <= QUESTION_BYTES);
                prop_assert_eq!(LookupAnswer::read(&datagram), Some(answer));
                prop_assert_eq!(LookupQuestion::read(&datagram, QUESTION_BYTES), None);
                // The bit that QUIC's packets have.
                prop_assert_eq!(datagram[0] & 0x40, 0);
            }
        }

        #[test]
        fn anything_at_all_is_read_or_refused_and_what_is_read_is_written_the_same(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            for front in [&ANSWER[..], &QUESTION, &[]] {
                let datagram = [front, &bytes].concat();
                if let Some(answer) = LookupAnswer::read(&datagram) {
                    let mut again = Vec::new();
                    answer.write(&mut again);
                    prop_assert_eq!(again, datagram);
                } else if let Some(question) = LookupQuestion::read(&datagram, datagram.len()) {
                    let mut again = Vec::new();
                    question.write(&mut again);
                    prop_assert_eq!(&again[..QUESTION_HEAD_BYTES], &datagram[..QUESTION_HEAD_BYTES]);
                }
            }
        }
    }

    #[test]
    fn the_bytes_are_these() {
        let mut question = Vec::new();
        LookupQuestion { nonce: *b"nonce123", id: [0xaa; 32] }.write(&mut question);
        assert_eq!(question[..13], *b"\x08vls\x01nonce123");
        assert_eq!((&question[13..45], question.len()), (&[0xaa; 32][..], 1100));
        assert!(question[45..].iter().all(|byte| *byte == 0));
        let mut answer = Vec::new();
        let known = Known { packet: &[0xbb; 73], age: 258, expired: true };
        let time = Timestamp::from_micros(0x0102_0304_0506_0708);
        LookupAnswer { nonce: *b"nonce123", known: Some(known), time }.write(&mut answer);
        assert_eq!(answer[..26], *b"\x09vls\x01nonce123\x02\x00\x00\x01\x02\x01\x02\x03\x04\x05\x06\x07\x08");
        assert_eq!(answer[26..], [0xbb; 73]);
    }
}
