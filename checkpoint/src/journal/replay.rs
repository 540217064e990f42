//! The reading end of the journal: what is in it after a position, and what a crash has left behind it.
//!
//! The rules are in [the module above](super). Nothing is changed here before everything was read and found
//! good; then [`Replayed::settle`] makes it durable.

use super::{Boundary, Journal, Segment};
use crate::{
    error::{Damage, StoreError},
    frame::{self, HeaderError, Kind, begins_like_header, has_zero_sector, is_zero},
    keys::Keys,
    limits::SECTOR_BYTES,
    payload::{self, Epoch, Genesis, Turn, Turns},
};

/// What was found.
pub(crate) struct Replayed {
    /// Where the journal ends.
    pub(crate) at: Boundary,
    /// The segment in which it ends.
    pub(crate) segment: Segment,
    /// How many bytes of frames were read.
    pub(crate) bytes: u64,
    /// How many frames there are in that segment after the position.
    pub(crate) frames: u64,
    /// Where the last frame begins, if one was read.
    last: Option<u64>,
    /// What a torn frame left in that segment: up to which offset there is something else than zeros.
    torn: Option<u64>,
    /// Segments after that one: made ahead of need, or holding nothing but a torn frame.
    later: Vec<u64>,
}

/// Reads the journal from a position on and gives every turn, in order, to `on_turn`.
pub(crate) fn replay(
    journal: &Journal,
    keys: &Keys,
    from: &Boundary,
    on_turn: &mut dyn FnMut(&Turn<'_>),
) -> Result<Replayed, StoreError> {
    let mut reader = Reader { keys, at: *from, last: None, bytes: 0, on_turn };
    let mut numbers = journal.numbers()?;
    numbers.retain(|number| *number >= from.segment);
    let mut ended: Option<(Segment, SegmentRead)> = None;
    let mut later = Vec::new();
    // Once this is set, nothing but zeros may follow.
    let mut finished = false;

    for number in from.segment.. {
        if usize::try_from(number - from.segment).is_ok_and(|index| index >= numbers.len()) && number > from.segment {
            break;
        }
        // A gap in the numbers shows here, as a file that is missing.
        let segment = journal.open(number)?;
        let first = ended.is_none();
        let offset = if first { from.offset } else { 0 };
        let mut bytes = segment.read_from(offset)?;
        if finished {
            if !is_zero(&bytes) {
                return Err(reader.damaged(&segment, 0, Damage::Gap));
            }
            later.push(number);
            continue;
        }
        let read = reader.read_segment(&segment, offset, &mut bytes)?;
        finished = read.torn.is_some() || (read.frames == 0 && !first);
        if first || read.frames > 0 {
            ended = Some((segment, read));
        } else {
            later.push(number);
        }
    }
    // Proof: the first number is opened without a condition, and the first segment always sets it.
    let Some((segment, SegmentRead { frames, torn })) = ended else {
        return Err(StoreError::Missing { path: journal.path(from.segment) });
    };
    Ok(Replayed { at: reader.at, segment, bytes: reader.bytes, frames, last: reader.last, torn, later })
}

/// The same for frames that stand in one file only, after a place in it; `bytes` is the file from there on.
pub(crate) fn replay_file(
    segment: Segment,
    bytes: &mut [u8],
    keys: &Keys,
    from: &Boundary,
    on_turn: &mut dyn FnMut(&Turn<'_>),
) -> Result<Replayed, StoreError> {
    let mut reader = Reader { keys, at: *from, last: None, bytes: 0, on_turn };
    let SegmentRead { frames, torn } = reader.read_segment(&segment, from.offset, bytes)?;
    let Reader { at, last, bytes, .. } = reader;
    Ok(Replayed { at, segment, bytes, frames, last, torn, later: Vec::new() })
}

impl Replayed {
    /// Cuts what a torn frame has left, and makes durable what was found: afterwards a loss of power takes
    /// nothing of it, and the next frame is written over zeros.
    ///
    /// The last frame is written again, byte for byte, before the sync. All others were synced before the next
    /// one was written. This one may stand in the page cache only, and after a sync that failed the system can
    /// call its pages clean; then a sync alone would succeed and do nothing.
    ///
    /// Segments of `segment_bytes` that hold no frame are kept to be used again.
    pub(crate) fn settle(&self, journal: &Journal, segment_bytes: u64) -> Result<(), StoreError> {
        self.settle_segment()?;
        journal.retire(&self.later, segment_bytes)
    }

    /// Whether a write that did not finish has left something.
    pub(crate) fn is_torn(&self) -> bool {
        self.torn.is_some()
    }

    /// The same, for the segment alone.
    pub(crate) fn settle_segment(&self) -> Result<(), StoreError> {
        if let Some(end) = self.torn {
            tracing::warn!(
                segment = %self.segment.path.display(), offset = self.at.offset, sequence = self.at.sequence + 1,
                "the last write did not finish, and nobody was told that it had: its traces are removed"
            );
            self.segment.write_zeros(self.at.offset, end)?;
        }
        if let Some(start) = self.last {
            let frame = self.segment.read(start, self.at.offset)?;
            self.segment.write(start, &frame)?;
        }
        self.segment.sync()
    }
}

struct Reader<'a> {
    keys: &'a Keys,
    at: Boundary,
    last: Option<u64>,
    bytes: u64,
    on_turn: &'a mut dyn FnMut(&Turn<'_>),
}

/// What one segment had.
struct SegmentRead {
    frames: u64,
    torn: Option<u64>,
}

enum FrameRead {
    /// A good frame of this many bytes.
    Whole(usize),
    /// A torn frame of this many bytes.
    Torn(usize),
}

impl Reader<'_> {
    /// Reads the frames of one segment, of which `bytes` is the part from `offset` on.
    fn read_segment(&mut self, segment: &Segment, offset: u64, bytes: &mut [u8]) -> Result<SegmentRead, StoreError> {
        let mut frames = 0;
        let mut position = 0;
        loop {
            let place = offset + position as u64;
            let rest = &mut bytes[position..];
            let first_sector = &rest[..rest.len().min(SECTOR_BYTES)];
            if is_zero(first_sector) {
                let torn = end_of_data(rest);
                if torn > 0 && rest.chunks(SECTOR_BYTES).any(begins_like_header) {
                    return Err(self.damaged(segment, place, Damage::Gap));
                }
                return Ok(SegmentRead { frames, torn: (torn > 0).then(|| place + torn as u64) });
            }
            match self.read_frame(segment, place, rest)? {
                FrameRead::Whole(extent) => {
                    frames += 1;
                    position += extent;
                    self.bytes += extent as u64;
                    self.last = Some(place);
                    (self.at.segment, self.at.offset) = (segment.number, place + extent as u64);
                }
                FrameRead::Torn(extent) => {
                    if !is_zero(&rest[extent..]) {
                        return Err(self.damaged(segment, place, Damage::Gap));
                    }
                    return Ok(SegmentRead { frames, torn: Some(place + extent as u64) });
                }
            }
        }
    }

    /// Reads the frame at the beginning of `rest`, whose first sector is not all zero.
    fn read_frame(&mut self, segment: &Segment, place: u64, rest: &mut [u8]) -> Result<FrameRead, StoreError> {
        let path = &segment.path;
        let authentic = frame::parse(self.keys, rest).map_err(|error| match error {
            HeaderError::NotAuthentic => self.damaged(segment, place, Damage::Header),
            HeaderError::OtherStore | HeaderError::OtherVat => StoreError::WrongVat { path: path.clone() },
            HeaderError::Version(found) => {
                StoreError::Version { path: path.clone(), found, known: frame::FORMAT_VERSION }
            }
            HeaderError::Kind(kind) => {
                StoreError::Version { path: path.clone(), found: u16::from(kind), known: frame::NEWEST_KIND }
            }
        })?;
        let (header, extent) = (authentic.header, authentic.extent);
        if header.sequence != self.at.sequence + 1 {
            return Err(self.damaged(segment, place, Damage::Sequence { found: header.sequence }));
        }
        let in_order = header.group == self.at.group + 1
            && (header.kind == Kind::Genesis) == (self.at.sequence == 0)
            && match header.kind {
                Kind::Epoch => header.epoch > self.at.epoch,
                Kind::Genesis | Kind::Turns => {
                    header.epoch == self.at.epoch && header.incarnation == self.at.incarnation
                }
                Kind::Image | Kind::ImageRows | Kind::ImageEnd => false,
            };
        if !in_order {
            return Err(self.damaged(segment, place, Damage::Order));
        }
        let Some(whole) = rest.get_mut(..extent) else {
            return Err(self.damaged(segment, place, Damage::Extent));
        };
        let unfinished = has_zero_sector(whole);
        let Some((payload, tag)) = authentic.open(&self.at.chain, whole) else {
            if unfinished {
                return Ok(FrameRead::Torn(extent));
            }
            return Err(self.damaged(segment, place, Damage::Body));
        };
        let turn = match header.kind {
            Kind::Genesis => payload::decode::<Genesis>(payload)
                .filter(|genesis| genesis.vat == self.keys.vat())
                .map(|_| self.at.turn),
            Kind::Epoch => payload::decode::<Epoch>(payload)
                .filter(|epoch| epoch.previous == self.at.epoch && epoch.turn == self.at.turn)
                .map(|_| self.at.turn),
            Kind::Turns => self.read_turns(payload),
            // Refused above.
            Kind::Image | Kind::ImageRows | Kind::ImageEnd => None,
        };
        let turn = turn.ok_or_else(|| self.damaged(segment, place, Damage::Contents))?;
        self.at = Boundary {
            group: header.group,
            sequence: header.sequence,
            chain: tag,
            turn,
            epoch: header.epoch,
            incarnation: header.incarnation,
            ..self.at
        };
        Ok(FrameRead::Whole(extent))
    }

    /// The last turn of a frame of turns.
    fn read_turns(&mut self, payload: &[u8]) -> Option<u64> {
        let turns = payload::decode::<Turns<'_>>(payload)?.turns;
        let mut newest = self.at.turn;
        for turn in &turns {
            if turn.turn != newest + 1 {
                return None;
            }
            newest = turn.turn;
        }
        turns.iter().for_each(|turn| (self.on_turn)(turn));
        (!turns.is_empty()).then_some(newest)
    }

    fn damaged(&self, segment: &Segment, offset: u64, damage: Damage) -> StoreError {
        let sequence = Some(self.at.sequence + 1);
        StoreError::Damaged { path: segment.path.clone(), offset, sequence, damage }
    }
}

/// Where the sectors of zeros at the end of these bytes begin.
fn end_of_data(bytes: &[u8]) -> usize {
    let last = bytes.chunks(SECTOR_BYTES).rposition(|sector| !is_zero(sector));
    last.map_or(0, |last| bytes.len().min((last + 1) * SECTOR_BYTES))
}
