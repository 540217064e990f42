//! Cap'n Proto's stream framing, read without trusting who wrote it.
//!
//! A message on a stream is a table (the number of segments less one, then the length of each in words, all
//! 32-bit little-endian, padded to a word) followed by the segments
//! (<https://capnproto.org/encoding.html#serialization-over-a-stream>). The table is a promise of a stranger:
//! eight bytes may announce 34 GB. So the decoder refuses by the table alone, before any memory is taken, and
//! takes memory for what it accepts only as fast as the bytes arrive.
//!
//! The decoder is a pure state machine over bytes; nothing here reads or waits.

use capnp::{Word, message::ReaderSegments};
use schemas::{Coded, ErrorCode};

use crate::limits;

const WORD: usize = 8;

/// What a decoder accepts.
#[derive(Debug, Clone, Copy)]
pub struct FrameLimits {
    /// Longest message in bytes, its table included.
    pub message_bytes: usize,
    /// Most segments.
    pub segments: usize,
}

/// Why a message was refused by its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// It has too many segments.
    #[error("a message of {announced} segments was announced; at most {limit} are accepted")]
    Segments {
        /// How many were announced.
        announced: u64,
        /// How many are accepted.
        limit: usize,
    },
    /// It is too long.
    #[error("a message of {announced} bytes was announced; at most {limit} are accepted")]
    TooLarge {
        /// How many bytes were announced, table included.
        announced: u64,
        /// How many are accepted.
        limit: usize,
    },
}

impl Coded for FrameError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Segments { .. } => ErrorCode::SessionTooManySegments,
            Self::TooLarge { .. } => ErrorCode::SessionMessageTooLarge,
        }
    }
}

/// One complete message: its segments in one aligned allocation.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Frame {
    words: Vec<Word>,
    /// Where each segment ends, in words. Empty for a message of one segment, which almost all are.
    ends: Vec<usize>,
}

impl Frame {
    /// Size of the segments in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.words.len() * WORD
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        Word::words_to_bytes(&self.words)
    }

    pub(crate) fn as_bytes_mut(&mut self) -> &mut [u8] {
        Word::words_to_bytes_mut(&mut self.words)
    }
}

impl ReaderSegments for Frame {
    fn get_segment(&self, index: u32) -> Option<&[u8]> {
        let index = index as usize;
        let words = match (self.ends.as_slice(), index) {
            ([], 0) => self.words.as_slice(),
            ([], _) => return None,
            (ends, 0) => self.words.get(..*ends.first()?)?,
            (ends, _) => self.words.get(*ends.get(index - 1)?..*ends.get(index)?)?,
        };
        Some(Word::words_to_bytes(words))
    }

    fn len(&self) -> usize {
        self.ends.len().max(1)
    }
}

/// Turns bytes into messages, however the bytes are cut.
#[derive(Debug)]
pub struct FrameDecoder {
    limits: FrameLimits,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Within the first word: the number of segments and the length of the first.
    Head { head: [u8; WORD], filled: usize },
    /// Within the rest of the table of a message of several segments. `table` begins with the head.
    Table { table: Vec<u8>, wanted: usize },
    /// Within the segments. `words` grows up to `total` words; `filled` bytes of it have arrived.
    Body { words: Vec<Word>, ends: Vec<usize>, filled: usize, total: usize },
}

const BETWEEN_MESSAGES: State = State::Head { head: [0; WORD], filled: 0 };

impl FrameDecoder {
    /// A decoder at the beginning of a message.
    #[must_use]
    pub fn new(limits: FrameLimits) -> Self {
        Self { limits, state: BETWEEN_MESSAGES }
    }

    /// Whether no message is begun: the only place where a stream may end.
    #[must_use]
    pub fn is_between_messages(&self) -> bool {
        matches!(self.state, State::Head { filled: 0, .. })
    }

    /// How many bytes are certainly still needed: reading no more never takes a byte of what follows the
    /// current message. At least 1.
    #[must_use]
    pub fn needed(&self) -> usize {
        match &self.state {
            State::Head { filled, .. } => WORD - filled,
            State::Table { table, wanted } => wanted - table.len(),
            State::Body { filled, total, .. } => total * WORD - filled,
        }
    }

    /// How many bytes of the current message have arrived.
    #[must_use]
    pub fn received(&self) -> usize {
        match &self.state {
            State::Head { filled, .. } | State::Body { filled, .. } => *filled,
            State::Table { table, .. } => table.len(),
        }
    }

    /// Memory held for the current message, in bytes.
    #[must_use]
    pub fn held(&self) -> usize {
        match &self.state {
            State::Head { .. } => 0,
            State::Table { table, .. } => table.capacity(),
            State::Body { words, ends, .. } => words.capacity() * WORD + ends.capacity() * size_of::<usize>(),
        }
    }

    /// Takes bytes from the front of `input`, up to the end of one message, which is returned when complete.
    /// When `None` is returned, `input` is empty.
    ///
    /// # Errors
    /// [`FrameError`]. The stream cannot be read any further then.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        while !input.is_empty() {
            let complete = match &mut self.state {
                State::Head { head, filled } => {
                    *filled += take(input, &mut head[*filled..]);
                    if *filled < WORD {
                        return Ok(None);
                    }
                    let head = *head;
                    self.head_complete(head)?
                }
                State::Table { table, wanted } => {
                    let part = (*wanted - table.len()).min(input.len());
                    let (part, rest) = input.split_at(part);
                    table.extend_from_slice(part);
                    *input = rest;
                    if table.len() < *wanted {
                        return Ok(None);
                    }
                    let table = std::mem::take(table);
                    self.table_complete(&table)?
                }
                State::Body { words, filled, total, .. } => {
                    grant(words, *filled, *total);
                    *filled += take(input, &mut Word::words_to_bytes_mut(words)[*filled..]);
                    *filled == *total * WORD
                }
            };
            if complete && let State::Body { words, ends, .. } = std::mem::replace(&mut self.state, BETWEEN_MESSAGES) {
                return Ok(Some(Frame { words, ends }));
            }
        }
        Ok(None)
    }

    /// The first word is there. Returns whether the message is complete, which an empty one is.
    fn head_complete(&mut self, head: [u8; WORD]) -> Result<bool, FrameError> {
        let segments = u64::from(number(&head, 0)) + 1;
        if segments > self.limits.segments as u64 {
            return Err(FrameError::Segments { announced: segments, limit: self.limits.segments });
        }
        if segments == 1 {
            return self.begin_body(u64::from(number(&head, 1)), WORD, Vec::new());
        }
        // Proof of the cast: `segments` was just compared with a usize.
        #[allow(clippy::cast_possible_truncation)]
        let wanted = (4 + 4 * segments as usize).next_multiple_of(WORD);
        let mut table = Vec::with_capacity(wanted);
        table.extend_from_slice(&head);
        self.state = State::Table { table, wanted };
        Ok(false)
    }

    fn table_complete(&mut self, table: &[u8]) -> Result<bool, FrameError> {
        let segments = number(table, 0) as usize + 1;
        let mut total = 0_u64;
        let mut ends = Vec::with_capacity(segments);
        for segment in 1..=segments {
            // At most 512 numbers of 32 bits: no overflow.
            total += u64::from(number(table, segment));
            ends.push(usize::try_from(total).unwrap_or(usize::MAX));
        }
        self.begin_body(total, table.len(), ends)
    }

    fn begin_body(&mut self, words: u64, table: usize, ends: Vec<usize>) -> Result<bool, FrameError> {
        let announced = words * WORD as u64 + table as u64;
        if announced > self.limits.message_bytes as u64 {
            return Err(FrameError::TooLarge { announced, limit: self.limits.message_bytes });
        }
        // Proof of the cast: `announced` was just compared with a usize.
        #[allow(clippy::cast_possible_truncation)]
        let total = words as usize;
        self.state = State::Body { words: Vec::new(), ends, filled: 0, total };
        Ok(total == 0)
    }
}

/// Makes room in `words` for more bytes: [`limits::FIRST_GRANT_BYTES`] first, then twice as much each time the
/// granted room is full, never more than `total` words.
fn grant(words: &mut Vec<Word>, filled: usize, total: usize) {
    if filled == words.len() * WORD && words.len() < total {
        let granted = (words.len() * 2).max(limits::FIRST_GRANT_BYTES / WORD).min(total);
        words.reserve_exact(granted - words.len());
        words.resize(granted, capnp::word(0, 0, 0, 0, 0, 0, 0, 0));
    }
}

/// Moves as many bytes as fit; returns how many.
fn take(input: &mut &[u8], space: &mut [u8]) -> usize {
    let length = input.len().min(space.len());
    let (part, rest) = input.split_at(length);
    space[..length].copy_from_slice(part);
    *input = rest;
    length
}

/// The 32-bit number at `index` of a table.
fn number(table: &[u8], index: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&table[4 * index..4 * index + 4]);
    u32::from_le_bytes(bytes)
}

/// Bytes that a message takes on a stream.
pub(crate) fn encoded_len(segments: &[&[u8]]) -> usize {
    (4 + 4 * segments.len()).next_multiple_of(WORD) + segments.iter().map(|segment| segment.len()).sum::<usize>()
}

/// Appends a message of our own to `output`.
pub(crate) fn encode(segments: &[&[u8]], output: &mut Vec<u8>) {
    debug_assert!(!segments.is_empty(), "a message whose root was never set");
    output.reserve(encoded_len(segments));
    // Proof: builders number their segments with 32 bits, and their lengths in words too.
    #[allow(clippy::cast_possible_truncation)]
    {
        output.extend_from_slice(&(segments.len() as u32 - 1).to_le_bytes());
        for segment in segments {
            output.extend_from_slice(&((segment.len() / WORD) as u32).to_le_bytes());
        }
    }
    if segments.len().is_multiple_of(2) {
        output.extend_from_slice(&[0; 4]);
    }
    for segment in segments {
        output.extend_from_slice(segment);
    }
}

#[cfg(test)]
mod tests {
    use capnp::message::{Builder, HeapAllocator, Reader};
    use proptest::prelude::*;

    use super::*;

    const LIMITS: FrameLimits = FrameLimits { message_bytes: 4096, segments: 16 };

    fn decode_all(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = FrameDecoder::new(LIMITS);
        let mut frames = Vec::new();
        let mut positions: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        positions.extend([0, bytes.len()]);
        positions.sort_unstable();
        for pair in positions.windows(2) {
            let mut part = &bytes[pair[0]..pair[1]];
            while !part.is_empty() {
                match decoder.push(&mut part)? {
                    Some(frame) => frames.push(frame),
                    None => assert!(part.is_empty()),
                }
            }
        }
        assert!(decoder.is_between_messages());
        Ok(frames)
    }

    fn segments() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(
            (0_usize..20).prop_flat_map(|words| prop::collection::vec(any::<u8>(), words * 8)),
            1..=16,
        )
    }

    fn encoded(segments: &[Vec<u8>]) -> Vec<u8> {
        let mut output = Vec::new();
        encode(&segments.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut output);
        output
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_however_it_is_cut(
            messages in prop::collection::vec(segments(), 1..4),
            cuts in prop::collection::vec(any::<usize>(), 0..12),
        ) {
            let bytes: Vec<u8> = messages.iter().flat_map(|segments| encoded(segments)).collect();
            let frames = decode_all(&bytes, &cuts).unwrap();
            prop_assert_eq!(frames.len(), messages.len());
            for (frame, message) in frames.iter().zip(&messages) {
                prop_assert_eq!(ReaderSegments::len(frame), message.len());
                for (index, segment) in message.iter().enumerate() {
                    prop_assert_eq!(frame.get_segment(u32::try_from(index).unwrap()).unwrap(), &segment[..]);
                }
                prop_assert!(frame.get_segment(u32::try_from(message.len()).unwrap()).is_none());
            }
        }

        #[test]
        fn the_encoding_is_the_one_of_the_library(words in 1_u32..400, first_segment in 1_u32..40) {
            let mut message = Builder::new(HeapAllocator::new().first_segment_words(first_segment));
            message.initn_root::<capnp::data_list::Builder<'_>>(words).set(0, b"content");
            let theirs = capnp::serialize::write_message_to_words(&message);
            let mut ours = Vec::new();
            encode(&message.get_segments_for_output(), &mut ours);
            prop_assert_eq!(&ours[..], &theirs[..]);
            prop_assert_eq!(ours.len(), encoded_len(&message.get_segments_for_output()));
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_never_hold_more_than_twice_what_came_and_a_grant(
            bytes in prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..3000),
            step in 1_usize..700,
        ) {
            let limits = FrameLimits { message_bytes: 1 << 20, segments: 512 };
            let mut decoder = FrameDecoder::new(limits);
            let mut since_frame = 0;
            'stream: for part in bytes.chunks(step) {
                let mut part = part;
                while !part.is_empty() {
                    let before = part.len();
                    let result = decoder.push(&mut part);
                    since_frame += before - part.len();
                    // The table's numbers are held once more as the ends of the segments, twice as wide.
                    let bound = 4 * since_frame + limits::FIRST_GRANT_BYTES + 16 * limits.segments;
                    prop_assert!(decoder.held() <= bound, "{} held after {} bytes", decoder.held(), since_frame);
                    match result {
                        Ok(Some(frame)) => { prop_assert!(frame.bytes() <= limits.message_bytes); since_frame = 0; }
                        Ok(None) => prop_assert!(part.is_empty()),
                        Err(_) => break 'stream,
                    }
                }
            }
        }

        #[test]
        fn reading_only_what_is_needed_takes_nothing_of_the_next_message(segments in segments()) {
            let bytes = [&encoded(&segments)[..], b"next"].concat();
            let (mut decoder, mut rest) = (FrameDecoder::new(LIMITS), &bytes[..]);
            loop {
                let (mut part, after) = rest.split_at(decoder.needed());
                rest = after;
                let frame = decoder.push(&mut part).unwrap();
                prop_assert!(part.is_empty());
                if frame.is_some() { break }
            }
            prop_assert_eq!(rest, b"next");
        }
    }

    #[test]
    fn a_size_is_refused_by_its_announcement() {
        let announce = |segments: u32, words: u32| [(segments - 1).to_le_bytes(), words.to_le_bytes()].concat();
        let mut decoder = FrameDecoder::new(LIMITS);
        let error = decoder.push(&mut &announce(1, 8 << 20)[..]).unwrap_err();
        assert_eq!(error, FrameError::TooLarge { announced: (64 << 20) + 8, limit: 4096 });
        assert_eq!(error.code(), ErrorCode::SessionMessageTooLarge);
        assert_eq!(decoder.held(), 0);

        let error = FrameDecoder::new(LIMITS).push(&mut &announce(17, 1)[..]).unwrap_err();
        assert_eq!(error, FrameError::Segments { announced: 17, limit: 16 });
        let error = FrameDecoder::new(LIMITS).push(&mut &[0xff; 8][..]).unwrap_err();
        assert_eq!(error, FrameError::Segments { announced: 1 << 32, limit: 16 });

        // Many segments that are each small enough are together too large.
        let table = [15_u32.to_le_bytes().to_vec(), 100_u32.to_le_bytes().repeat(16), vec![0; 4]].concat();
        let error = FrameDecoder::new(LIMITS).push(&mut &table[..]).unwrap_err();
        assert_eq!(error, FrameError::TooLarge { announced: 16 * 800 + 72, limit: 4096 });
    }

    #[test]
    fn the_largest_message_is_accepted_and_one_word_more_is_not() {
        let fits = encoded(&[vec![7; 4096 - 8]]);
        assert_eq!(decode_all(&fits, &[]).unwrap()[0].bytes(), 4096 - 8);
        assert!(decode_all(&encoded(&[vec![7; 4096]]), &[]).is_err());
    }

    #[test]
    fn memory_is_granted_as_bytes_arrive() {
        let limits = FrameLimits { message_bytes: 64 << 20, segments: 1 };
        let mut decoder = FrameDecoder::new(limits);
        let announcement = [0_u32.to_le_bytes(), (1_u32 << 20).to_le_bytes()].concat();
        decoder.push(&mut &announcement[..]).unwrap();
        assert_eq!(decoder.held(), 0, "8 MiB announced, nothing of it sent");
        decoder.push(&mut &[1][..]).unwrap();
        assert_eq!(decoder.held(), limits::FIRST_GRANT_BYTES);
        decoder.push(&mut &vec![1; 100_000][..]).unwrap();
        assert!(decoder.held() <= 200_002, "{}", decoder.held());
    }

    #[test]
    fn an_empty_message_is_a_message_that_has_no_root() {
        let frames = decode_all(&encoded(&[vec![]]), &[]).unwrap();
        assert_eq!(frames, [Frame::default()]);
        let reader = Reader::new(frames[0].clone(), capnp::message::ReaderOptions::new());
        assert!(reader.get_root::<schemas::session_capnp::hello::Reader<'_>>().is_err());
    }
}
