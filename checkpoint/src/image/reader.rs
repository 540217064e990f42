//! The reading end of an image: it believes nothing that it has not verified, and nothing is whole before the
//! end.

use std::{
    collections::VecDeque,
    io::Read,
    path::{Path, PathBuf},
};

use schemas::Timestamp;

use super::{Census, HEAD_LENGTH, HeadPayload, IMAGE_VERSION, ImageHead, MAGIC, seen::Seen};
use crate::{
    error::{Damage, StoreError},
    frame::{self, FrameTag, HEADER_LENGTH, Header, HeaderError, Kind, is_zero},
    keys::{Keys, Root},
    keyslots::Keyslots,
    limits::{IMAGE_FRAME_BYTES, MAX_IMAGE_FRAME_BYTES, MAX_KEYSLOTS_BYTES, SECTOR_BYTES},
    payload::{self, Row},
    store::RowKey,
};

/// Reads one image, row by row.
pub struct ImageReader<'a> {
    input: Box<dyn Read + 'a>,
    /// What errors call the input.
    path: PathBuf,
    keys: Keys,
    form: Form,
    head: ImageHead,
    /// Where the next frame begins, in bytes.
    offset: u64,
    sequence: u64,
    chain: FrameTag,
    frame: Vec<u8>,
    rows: VecDeque<(RowKey, Vec<u8>)>,
    seen: Seen,
    census: Census,
    ended: bool,
    on_progress: Option<OnProgress<'a>>,
}

/// What may stand before and after an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Nothing: its frames count from 1, and the input ends with it.
    Alone,
    /// It is the beginning of a small store: its frames count on from those of the file before, and others
    /// follow.
    GoingOn,
}

/// What the frames after an image follow on.
pub(crate) struct Verified {
    pub(crate) keys: Keys,
    pub(crate) head: ImageHead,
    /// Where the frame `end` ends, in bytes.
    pub(crate) offset: u64,
    /// The number of that frame.
    pub(crate) sequence: u64,
    /// Its tag.
    pub(crate) chain: FrameTag,
}

/// Is told how many bytes were read, and how much came out of them.
type OnProgress<'a> = Box<dyn FnMut(u64, Census) + 'a>;

impl<'a> ImageReader<'a> {
    /// Reads the beginning of an image: for whom it is sealed, and what it is a copy of.
    pub(crate) fn begin(
        input: Box<dyn Read + 'a>,
        path: &Path,
        unwrap: impl FnOnce(&Keyslots) -> Result<Root, StoreError>,
    ) -> Result<Self, StoreError> {
        Self::begin_as(Form::Alone, input, path, unwrap)
    }

    /// The same for an image that a small store begins with; see [`ImageReader::verified`].
    pub(crate) fn begin_of_small(
        input: Box<dyn Read + 'a>,
        path: &Path,
        unwrap: impl FnOnce(&Keyslots) -> Result<Root, StoreError>,
    ) -> Result<Self, StoreError> {
        Self::begin_as(Form::GoingOn, input, path, unwrap)
    }

    fn begin_as(
        form: Form,
        mut input: Box<dyn Read + 'a>,
        path: &Path,
        unwrap: impl FnOnce(&Keyslots) -> Result<Root, StoreError>,
    ) -> Result<Self, StoreError> {
        let (keyslots, offset) = read_keyslots(input.as_mut(), path)?;
        let root = unwrap(&keyslots)?;
        let mut reader = Self {
            input,
            path: path.to_owned(),
            // Which vat it is stands in the first frame.
            keys: Keys::new(root, keyslots.store, [0; 32]),
            form,
            head: ImageHead {
                vat: [0; 32],
                turn: 0,
                epoch: 0,
                incarnation: [0; 16],
                created: Timestamp::from_micros(0),
                label: String::new(),
            },
            offset,
            sequence: 0,
            chain: [0; 16],
            frame: Vec::new(),
            rows: VecDeque::new(),
            seen: Seen::default(),
            census: Census::default(),
            ended: false,
            on_progress: None,
        };
        reader.read_head()?;
        Ok(reader)
    }

    /// What the image is a copy of.
    #[must_use]
    pub fn head(&self) -> &ImageHead {
        &self.head
    }

    /// How many bytes were read, and how much came out of them so far.
    #[must_use]
    pub fn progress(&self) -> (u64, Census) {
        (self.offset, self.census)
    }

    /// Has `told` called after each frame, with what [`ImageReader::progress`] gives.
    pub fn on_progress(&mut self, told: impl FnMut(u64, Census) + 'a) {
        self.on_progress = Some(Box::new(told));
    }

    /// The next row. `None` says that the image was read to its end and is whole; rows that came before may be
    /// believed only then.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] with the place; what the input says.
    pub fn next_row(&mut self) -> Result<Option<(RowKey, Vec<u8>)>, StoreError> {
        while self.rows.is_empty() && !self.ended {
            self.read_rows()?;
            if let Some(told) = &mut self.on_progress {
                told(self.offset, self.census);
            }
        }
        Ok(self.rows.pop_front())
    }

    /// What frames after the image follow on; `None` before its end was read.
    pub(crate) fn verified(self) -> Option<Verified> {
        let Self { keys, head, offset, sequence, chain, ended, .. } = self;
        ended.then_some(Verified { keys, head, offset, sequence, chain })
    }

    fn read_head(&mut self) -> Result<(), StoreError> {
        let place = self.offset;
        let header = self.read_frame()?;
        let damaged = |this: &Self| this.damaged(place, Damage::Contents);
        if header.kind != Kind::Image {
            return Err(self.damaged(place, Damage::Order));
        }
        let payload: HeadPayload = payload::decode(self.payload()).ok_or_else(|| damaged(self))?;
        self.keys.bind(payload.vat);
        // The tag in the header was not looked at, since only now it is known what it has to be.
        if frame::vat_tag(&self.frame) != self.keys.vat_tag() {
            return Err(damaged(self));
        }
        self.head = ImageHead {
            vat: payload.vat,
            turn: payload.turn,
            epoch: header.epoch,
            incarnation: header.incarnation,
            created: Timestamp::from_micros(payload.created),
            label: payload.label,
        };
        Ok(())
    }

    /// Reads a frame of rows, or the end.
    fn read_rows(&mut self) -> Result<(), StoreError> {
        let place = self.offset;
        let header = self.read_frame()?;
        if (header.epoch, header.incarnation) != (self.head.epoch, self.head.incarnation)
            || frame::vat_tag(&self.frame) != self.keys.vat_tag()
        {
            return Err(self.damaged(place, Damage::Order));
        }
        match header.kind {
            Kind::ImageRows => {
                let rows: Vec<Row<'_>> = payload::decode(&self.frame[HEADER_LENGTH..])
                    .ok_or_else(|| self.damaged(place, Damage::Contents))?;
                for row in rows {
                    let key = RowKey { space: row.space, name: row.name.0.to_vec() };
                    // A small store holds all of its rows, and sees for itself.
                    if self.form == Form::Alone && !self.seen.insert(&key) {
                        return Err(self.damaged(place, Damage::Repeated));
                    }
                    // Only now: who reads on after the error finds that there were more rows than came.
                    self.census.add(row.name.0, row.value.0);
                    self.rows.push_back((key, row.value.0.to_vec()));
                }
                Ok(())
            }
            Kind::ImageEnd => {
                let census: Census =
                    payload::decode(self.payload()).ok_or_else(|| self.damaged(place, Damage::Contents))?;
                if census != self.census {
                    return Err(self.damaged(place, Damage::Order));
                }
                self.frame.clear();
                if self.form == Form::Alone && self.read_up_to(1)? > 0 {
                    return Err(self.damaged(self.offset, Damage::Trailing));
                }
                self.ended = true;
                Ok(())
            }
            Kind::Genesis | Kind::Epoch | Kind::Turns | Kind::Image => Err(self.damaged(place, Damage::Order)),
        }
    }

    /// Reads and opens the next frame. Its payload is then what [`Self::payload`] gives.
    fn read_frame(&mut self) -> Result<Header, StoreError> {
        let place = self.offset;
        self.frame.clear();
        if self.read_up_to(SECTOR_BYTES)? < SECTOR_BYTES {
            return Err(self.damaged(place, Damage::CutOff));
        }
        let authentic = frame::parse(&self.keys, &self.frame).map_err(|error| match error {
            HeaderError::NotAuthentic => self.damaged(place, Damage::Header),
            HeaderError::OtherStore => StoreError::WrongVat { path: self.path.clone() },
            HeaderError::Version(found) => {
                StoreError::Version { path: self.path.clone(), found, known: frame::FORMAT_VERSION }
            }
            HeaderError::Kind(kind) => {
                StoreError::Version { path: self.path.clone(), found: u16::from(kind), known: frame::NEWEST_KIND }
            }
        })?;
        let (header, extent) = (authentic.header, authentic.extent);
        // Only the first frame of a small store tells by itself which one it is; half of all numbers leave enough
        // for any frame that follows.
        let first = self.form == Form::GoingOn && self.sequence == 0;
        let in_place = match header.sequence {
            found if first => (1..=u64::MAX / 2).contains(&found),
            found => found == self.sequence + 1,
        };
        if !in_place || header.group != header.sequence || (header.preceding, header.following) != (0, 0) {
            return Err(self.damaged(place, Damage::Sequence { found: header.sequence }));
        }
        if extent > MAX_IMAGE_FRAME_BYTES {
            return Err(self.damaged(place, Damage::Extent));
        }
        if self.read_up_to(extent)? < extent {
            return Err(self.damaged(place, Damage::CutOff));
        }
        let mut whole = std::mem::take(&mut self.frame);
        let Some((length, tag)) = authentic.open(&self.chain.into(), &mut whole).map(|(body, tag)| (body.len(), tag))
        else {
            return Err(self.damaged(place, Damage::Body));
        };
        whole.truncate(HEADER_LENGTH + length);
        self.frame = whole;
        (self.sequence, self.chain) = (header.sequence, tag);
        self.offset = place + extent as u64;
        Ok(header)
    }

    fn payload(&self) -> &[u8] {
        &self.frame[HEADER_LENGTH..]
    }

    /// Reads on until the frame has `length` bytes, or the input ends; gives how many it has. Takes memory only
    /// as the bytes come.
    fn read_up_to(&mut self, length: usize) -> Result<usize, StoreError> {
        read_up_to(self.input.as_mut(), &self.path, &mut self.frame, length)
    }

    fn damaged(&self, offset: u64, damage: Damage) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), offset, sequence: Some(self.sequence + 1), damage }
    }
}

/// The keyslots at the beginning, and where the frames begin.
fn read_keyslots(input: &mut dyn Read, path: &Path) -> Result<(Keyslots, u64), StoreError> {
    let mut bytes = Vec::new();
    let damaged = |damage| StoreError::damaged(path, damage);
    if read_up_to(input, path, &mut bytes, HEAD_LENGTH)? < HEAD_LENGTH || !bytes.starts_with(MAGIC) {
        return Err(StoreError::NotAnImage { path: path.to_owned() });
    }
    let found = u16::from_le_bytes([bytes[8], bytes[9]]);
    if found != IMAGE_VERSION {
        return Err(StoreError::Version { path: path.to_owned(), found, known: IMAGE_VERSION });
    }
    let length = u64::from(u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]));
    if bytes[10..12] != [0; 2] || length > MAX_KEYSLOTS_BYTES {
        return Err(damaged(Damage::Contents));
    }
    // Proof of the cast: it was just compared with a small limit.
    #[allow(clippy::cast_possible_truncation)]
    let slots_end = HEAD_LENGTH + length as usize;
    let end = slots_end.next_multiple_of(SECTOR_BYTES);
    if read_up_to(input, path, &mut bytes, end)? < end {
        return Err(damaged(Damage::CutOff));
    }
    if !is_zero(&bytes[slots_end..]) {
        return Err(damaged(Damage::Contents));
    }
    Ok((Keyslots::decode(path, &bytes[HEAD_LENGTH..slots_end])?, end as u64))
}

fn read_up_to(input: &mut dyn Read, path: &Path, bytes: &mut Vec<u8>, length: usize) -> Result<usize, StoreError> {
    let missing = length.saturating_sub(bytes.len());
    // What a frame of rows usually has, at once.
    bytes.reserve(missing.min(IMAGE_FRAME_BYTES));
    input.take(missing as u64).read_to_end(bytes).map_err(|e| StoreError::disk("read", path, e))?;
    Ok(bytes.len())
}
