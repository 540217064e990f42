//! The reading end of the journal: what is in it after a position, and what a crash has left behind it.
//!
//! The rules are in [the module above](super). Nothing is changed here before everything was read and found
//! good; then [`Replayed::settle`] makes it durable.

use std::{collections::HashMap, sync::Arc};

use super::{Head, Journal, Place, Segment};
use crate::{
    error::{Damage, StoreError},
    frame::{self, FrameTag, Header, HeaderError, Kind, Previous, begins_like_header, has_zero_sector, is_zero},
    keys::Keys,
    limits::SECTOR_BYTES,
    payload::{self, Epoch, Genesis, Turn, Turns},
};

/// Gives the keys of the vat with this tag, and how far it has come at the place where replay begins; `None` if there
/// it did not exist yet.
pub(crate) type FindVat<'a> = dyn FnMut(&[u8; 16]) -> Result<Option<(Arc<Keys>, Head)>, StoreError> + 'a;

/// Is shown the turns of each vat, in order.
pub(crate) type OnTurn<'a> = dyn FnMut(&Keys, &Turn<'_>) + 'a;

/// What was found.
pub(crate) struct Replayed {
    /// Where the journal ends.
    pub(crate) at: Place,
    /// The vats of which there were frames, by their tags, and how far they have come.
    pub(crate) vats: HashMap<[u8; 16], (Arc<Keys>, Head)>,
    /// The segment in which it ends.
    pub(crate) segment: Segment,
    /// How many bytes of frames were read.
    pub(crate) bytes: u64,
    /// How many groups there are in that segment after the place where replay began.
    pub(crate) groups: u64,
    /// Where the last group begins, if one was read.
    last: Option<u64>,
    /// What a torn group left in that segment: up to which offset there is something else than zeros.
    torn: Option<u64>,
    /// Segments after that one: made ahead of need, or holding nothing but a torn group.
    later: Vec<u64>,
}

/// Reads the journal from a place on. `keys` are those of any vat of the store.
pub(crate) fn replay(
    journal: &Journal,
    keys: &Keys,
    from: &Place,
    find: &mut FindVat<'_>,
    on_turn: &mut OnTurn<'_>,
) -> Result<Replayed, StoreError> {
    let mut reader = Reader::new(keys, from, find, on_turn);
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
        finished = read.torn.is_some() || (read.groups == 0 && !first);
        if first || read.groups > 0 {
            ended = Some((segment, read));
        } else {
            later.push(number);
        }
    }
    // Proof: the first number is opened without a condition, and the first segment always sets it.
    let Some((segment, SegmentRead { groups, torn })) = ended else {
        return Err(StoreError::Missing { path: journal.path(from.segment) });
    };
    let Reader { at, vats, bytes, last, .. } = reader;
    Ok(Replayed { at, vats, segment, bytes, groups, last, torn, later })
}

/// The same for the frames of one vat that stand in one file only, after a place in it; `bytes` is the file from there
/// on.
pub(crate) fn replay_file(
    segment: Segment,
    bytes: &mut [u8],
    (keys, head): (&Arc<Keys>, Head),
    from: &Place,
    on_turn: &mut OnTurn<'_>,
) -> Result<Replayed, StoreError> {
    let mut find = |tag: &[u8; 16]| Ok((*tag == keys.vat_tag()).then(|| (Arc::clone(keys), head)));
    let mut reader = Reader::new(keys, from, &mut find, on_turn);
    let SegmentRead { groups, torn } = reader.read_segment(&segment, from.offset, bytes)?;
    let Reader { at, vats, last, bytes, .. } = reader;
    Ok(Replayed { at, vats, segment, bytes, groups, last, torn, later: Vec::new() })
}

impl Replayed {
    /// How far a vat has come that had come as far as `before` where replay began.
    pub(crate) fn head(&self, keys: &Keys, before: Head) -> Head {
        self.vats.get(&keys.vat_tag()).map_or(before, |(_, head)| *head)
    }

    /// Cuts what a torn group has left, and makes durable what was found: afterwards a loss of power takes
    /// nothing of it, and the next group is written over zeros.
    ///
    /// The last group is written again, byte for byte, before the sync. All others were synced before the next
    /// one was written. This one may stand in the page cache only, and after a sync that failed the system can
    /// call its pages clean; then a sync alone would succeed and do nothing.
    ///
    /// Segments of `segment_bytes` that hold no group are kept to be used again.
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
                segment = %self.segment.path.display(), offset = self.at.offset, group = self.at.group + 1,
                "the last write did not finish, and nobody was told that it had: its traces are removed"
            );
            self.segment.write_zeros(self.at.offset, end)?;
        }
        if let Some(start) = self.last {
            let group = self.segment.read(start, self.at.offset)?;
            self.segment.write(start, &group)?;
        }
        self.segment.sync()
    }
}

struct Reader<'a> {
    keys: &'a Keys,
    find: &'a mut FindVat<'a>,
    on_turn: &'a mut OnTurn<'a>,
    at: Place,
    vats: HashMap<[u8; 16], (Arc<Keys>, Head)>,
    last: Option<u64>,
    bytes: u64,
}

/// What one segment had.
struct SegmentRead {
    groups: u64,
    torn: Option<u64>,
}

enum GroupRead {
    /// A good group of this many bytes.
    Whole(usize),
    /// A torn group of this many bytes.
    Torn(usize),
}

/// A good frame of a group of which nothing has been shown yet.
struct Opened<'a> {
    tag: [u8; 16],
    keys: Arc<Keys>,
    head: Head,
    turns: Vec<Turn<'a>>,
}

impl<'a> Reader<'a> {
    fn new(keys: &'a Keys, from: &Place, find: &'a mut FindVat<'_>, on_turn: &'a mut OnTurn<'_>) -> Self {
        Self { keys, find, on_turn, at: *from, vats: HashMap::new(), last: None, bytes: 0 }
    }

    /// Reads the groups of one segment, of which `bytes` is the part from `offset` on.
    fn read_segment(&mut self, segment: &Segment, offset: u64, bytes: &mut [u8]) -> Result<SegmentRead, StoreError> {
        let mut groups = 0;
        let mut position = 0;
        loop {
            let place = offset + position as u64;
            let rest = &mut bytes[position..];
            if is_zero(&rest[..rest.len().min(SECTOR_BYTES)]) {
                let torn = self.read_without_beginning(segment, place, rest)?;
                return Ok(SegmentRead { groups, torn: (torn > 0).then(|| place + torn as u64) });
            }
            match self.read_group(segment, place, rest)? {
                GroupRead::Whole(length) => {
                    groups += 1;
                    position += length;
                    self.bytes += length as u64;
                    self.last = Some(place);
                    let (group, chain) = (self.at.group + 1, self.at.chain);
                    self.at = Place { segment: segment.number, offset: place + length as u64, group, chain };
                }
                GroupRead::Torn(length) => {
                    if !is_zero(&rest[length..]) {
                        return Err(self.damaged(segment, place, Damage::Gap));
                    }
                    return Ok(SegmentRead { groups, torn: Some(place + length as u64) });
                }
            }
        }
    }

    /// Reads what follows on a sector of zeros where a group would begin: nothing, or the rest of a torn group. How
    /// long that is.
    fn read_without_beginning(&self, segment: &Segment, place: u64, rest: &[u8]) -> Result<usize, StoreError> {
        let gap = || self.damaged(segment, place, Damage::Gap);
        let end = end_of_data(rest);
        let mut told = None;
        for (number, sector) in rest[..end].chunks(SECTOR_BYTES).enumerate() {
            if !begins_like_header(sector) {
                continue;
            }
            let frame = frame::parse(self.keys, sector).map_err(|_| gap())?;
            // All frames of a group tell the same end, and their own place in it; and another group would only have
            // followed on a durable one.
            let place_in_group = number * SECTOR_BYTES;
            let group_end = place_in_group + frame.extent + frame.header.following as usize;
            let fits = frame.header.group == self.at.group + 1
                && frame.header.preceding as usize == place_in_group
                && (end..=rest.len()).contains(&group_end)
                && told.is_none_or(|told| told == group_end);
            if !fits {
                return Err(gap());
            }
            told = Some(group_end);
        }
        Ok(told.unwrap_or(end))
    }

    /// Reads the group at the beginning of `rest`, whose first sector is not all zero.
    fn read_group(&mut self, segment: &Segment, place: u64, rest: &mut [u8]) -> Result<GroupRead, StoreError> {
        let first = self.parse(segment, place, rest)?;
        // In order first: it says more than a length that cannot be.
        let expected = self.expected(segment, place, &first.header, rest)?;
        let Some(whole) = rest.get_mut(..first.extent + first.header.following as usize) else {
            return Err(self.damaged(segment, place, Damage::Extent));
        };
        let (length, unfinished) = (whole.len(), has_zero_sector(whole));
        let mut frames = Vec::new();
        let (mut left, mut header) = (whole, Some((first, expected)));
        let mut chain = self.at.chain;
        while !left.is_empty() {
            let at = place + (length - left.len()) as u64;
            let known = match header.take() {
                Some(known) => known,
                None if is_zero(&left[..left.len().min(SECTOR_BYTES)]) => return Ok(GroupRead::Torn(length)),
                None => {
                    let authentic = self.parse(segment, at, left)?;
                    let expected = self.expected(segment, at, &authentic.header, left)?;
                    (authentic, expected)
                }
            };
            let Some((frame, next)) = self.open_frame(segment, at, known, (left, length), (unfinished, chain))? else {
                return Ok(GroupRead::Torn(length));
            };
            chain = frame.head.chain;
            frames.push(frame);
            left = next;
        }
        self.at.chain = chain;
        for Opened { tag, keys, head, turns } in frames {
            turns.iter().for_each(|turn| (self.on_turn)(&keys, turn));
            self.vats.insert(tag, (keys, head));
        }
        Ok(GroupRead::Whole(length))
    }

    /// Opens the frame at the beginning of `left`, which is what is left of a group of `length` bytes, after the frame
    /// with the tag `chain`. `None` if the group is torn. Otherwise the frame, and what is left after it.
    fn open_frame<'b>(
        &self,
        segment: &Segment,
        place: u64,
        (authentic, (keys, before)): (frame::Authentic, (Option<Arc<Keys>>, Head)),
        (left, length): (&'b mut [u8], usize),
        (unfinished, chain): (bool, FrameTag),
    ) -> Result<Option<(Opened<'b>, &'b mut [u8])>, StoreError> {
        let damaged = |damage| Err(self.damaged(segment, place, damage));
        let (header, tag) = (authentic.header, frame::vat_tag(left));
        let fits = header.preceding as usize == length - left.len()
            && authentic.extent + header.following as usize == left.len();
        if !fits {
            return damaged(Damage::Order);
        }
        let (whole, next) = left.split_at_mut(authentic.extent);
        let previous = Previous { of_vat: before.chain, in_journal: chain };
        let Some((payload, chain)) = authentic.open(&previous, whole) else {
            return if unfinished { Ok(None) } else { damaged(Damage::Body) };
        };
        let Some((keys, turns)) = self.contents(&header, keys, &before, payload, &tag) else {
            return damaged(Damage::Contents);
        };
        let head = Head {
            sequence: header.sequence,
            chain,
            turn: turns.last().map_or(before.turn, |turn| turn.turn),
            epoch: header.epoch,
            incarnation: header.incarnation,
        };
        Ok(Some((Opened { tag, keys, head, turns }, next)))
    }

    fn parse(&self, segment: &Segment, place: u64, frame: &[u8]) -> Result<frame::Authentic, StoreError> {
        let path = &segment.path;
        frame::parse(self.keys, frame).map_err(|error| match error {
            HeaderError::NotAuthentic => self.damaged(segment, place, Damage::Header),
            HeaderError::OtherStore => StoreError::WrongVat { path: path.clone() },
            HeaderError::Version(found) => {
                StoreError::Version { path: path.clone(), found, known: frame::FORMAT_VERSION }
            }
            HeaderError::Kind(kind) => {
                StoreError::Version { path: path.clone(), found: u16::from(kind), known: frame::NEWEST_KIND }
            }
        })
    }

    /// The vat whose frame this is, if it exists already, and the head that the frame has to follow on.
    fn expected(
        &mut self,
        segment: &Segment,
        place: u64,
        header: &Header,
        frame: &[u8],
    ) -> Result<(Option<Arc<Keys>>, Head), StoreError> {
        let tag = frame::vat_tag(frame);
        let known = match self.vats.get(&tag) {
            Some((keys, head)) => Some((Arc::clone(keys), *head)),
            None => (self.find)(&tag)?,
        };
        let (keys, before) = match known {
            Some((keys, head)) => (Some(keys), head),
            None => (None, Head::default()),
        };
        if header.sequence != before.sequence + 1 {
            return Err(self.damaged(segment, place, Damage::Sequence { found: header.sequence }));
        }
        let in_order = header.group == self.at.group + 1
            && (header.kind == Kind::Genesis) == (before.sequence == 0)
            && match header.kind {
                Kind::Epoch => header.epoch > before.epoch,
                Kind::Genesis | Kind::Turns => header.epoch == before.epoch && header.incarnation == before.incarnation,
                Kind::Image | Kind::ImageRows | Kind::ImageEnd => false,
            };
        if !in_order {
            return Err(self.damaged(segment, place, Damage::Order));
        }
        Ok((keys, before))
    }

    /// What the payload of a frame says: whose it is, and the turns. `None` if it contradicts what there is.
    fn contents<'b>(
        &self,
        header: &Header,
        keys: Option<Arc<Keys>>,
        before: &Head,
        payload: &'b [u8],
        tag: &[u8; 16],
    ) -> Option<(Arc<Keys>, Vec<Turn<'b>>)> {
        match header.kind {
            Kind::Genesis => {
                let keys = Arc::new(self.keys.of(payload::decode::<Genesis>(payload)?.vat));
                (keys.vat_tag() == *tag).then_some((keys, Vec::new()))
            }
            Kind::Epoch => {
                let epoch = payload::decode::<Epoch>(payload)?;
                let fits = epoch.previous == before.epoch && epoch.turn == before.turn;
                fits.then_some((keys?, Vec::new()))
            }
            Kind::Turns => {
                let turns = payload::decode::<Turns<'_>>(payload)?.turns;
                let numbers = turns.iter().map(|turn| turn.turn);
                let fits = !turns.is_empty() && numbers.zip(before.turn + 1..).all(|(found, next)| found == next);
                fits.then_some((keys?, turns))
            }
            // Refused before.
            Kind::Image | Kind::ImageRows | Kind::ImageEnd => None,
        }
    }

    fn damaged(&self, segment: &Segment, offset: u64, damage: Damage) -> StoreError {
        let group = Some(self.at.group + 1);
        StoreError::Damaged { path: segment.path.clone(), offset, sequence: group, damage }
    }
}

/// Where the sectors of zeros at the end of these bytes begin.
fn end_of_data(bytes: &[u8]) -> usize {
    let last = bytes.chunks(SECTOR_BYTES).rposition(|sector| !is_zero(sector));
    last.map_or(0, |last| bytes.len().min((last + 1) * SECTOR_BYTES))
}
