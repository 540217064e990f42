//! One frame: what the journal, and later an image, is made of (R2, DESIGN §8). The format is final.
//!
//! A frame holds one or more consecutive turns of one vat, or marks the genesis of a vat or the beginning
//! of an epoch. It starts at a multiple of [`SECTOR_BYTES`] and is a multiple of it long. Numbers are
//! little-endian.
//!
//! ```text
//!   0   8  magic, `vatframe`                       64  16  vat tag
//!   8   2  version of the format, 1                80  16  incarnation
//!  10   1  kind                                    96  32  salt
//!  11   1  protection: 1 sealed, 2 plain          128  32  commitment
//!  12   4  extent: the whole frame, in bytes      160   …  body
//!  16   8  group                                   -16 16  tag
//!  24   8  sequence
//!  32   8  epoch
//!  40   4  preceding
//!  44   4  following
//!  48  16  store id
//! ```
//!
//! * **kind**: in a journal 1 genesis, 2 epoch, 3 turns; in an [image](crate::image) 4 image, 5 rows, 6 end.
//! * **group**: what is written and made durable at once: one frame for each vat that has something to commit. The
//!   frames of a group stand one after the other; **preceding** and **following** are how many bytes of the group come
//!   before this one and after it.
//! * **sequence**: the number of the frame among those of its vat.
//! * **commitment**: sealed, the second half of HKDF-SHA256(root key, salt, context ‖ header before the
//!   commitment), whose first half is the key of the body; plain, SHA-256(context ‖ the same bytes). Checked
//!   first. A header whose commitment fits was written by this store, whatever became of its body.
//! * **body**: the payload in postcard form and zeros up to the end. Sealed: AES-256-GCM. Plain: readable,
//!   except that each sector after the first begins with one byte [`STAMP`], so that no sector of a written
//!   frame is all zero and none begins like a header.
//! * **tag**: over header ‖ tag of the frame before of the same vat ‖ tag of the frame before in the journal, if that is
//!   another one ‖ body. So a frame opens only after the very frames that it was sealed after: dropped, reordered, repeated and foreign frames are found.
//! * **extent**: as many sectors as are needed; above 8 KiB rounded up to a length with few significant bits
//!   (Padmé: Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs").

use crate::{
    keys::{FrameKey, Keys, SALT_LENGTH, TAG_LENGTH},
    limits::{FINE_PADDING_BYTES, MAX_SEGMENT_BYTES, SECTOR_BYTES},
};

/// Length of the header, in bytes.
pub(crate) const HEADER_LENGTH: usize = 160;
/// The version of the format that this program writes, and the newest that it reads.
pub(crate) const FORMAT_VERSION: u16 = 1;
/// The highest number of a kind that this program knows.
pub(crate) const NEWEST_KIND: u16 = 6;
/// Begins every sector of a plain frame after the first.
pub(crate) const STAMP: u8 = 0xff;

const MAGIC: &[u8; 8] = b"vatframe";
const COMMITMENT_AT: usize = 128;
const SEALED: u8 = 1;
const PLAIN: u8 = 2;

/// The tag of a frame, and what the next one is chained to.
pub(crate) type FrameTag = [u8; TAG_LENGTH];

/// The frames that a frame follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Previous {
    /// The tag of the vat's frame before; zeros before the first one.
    pub(crate) of_vat: FrameTag,
    /// The tag of the frame before in the journal, or in the image; zeros before the first one.
    pub(crate) in_journal: FrameTag,
}

impl From<FrameTag> for Previous {
    /// Where there is one vat only.
    fn from(tag: FrameTag) -> Self {
        Self { of_vat: tag, in_journal: tag }
    }
}

/// What a frame is. The numbers are stable; more will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Genesis,
    Epoch,
    Turns,
    Image,
    ImageRows,
    ImageEnd,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Genesis => 1,
            Self::Epoch => 2,
            Self::Turns => 3,
            Self::Image => 4,
            Self::ImageRows => 5,
            Self::ImageEnd => 6,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        let kinds = [Self::Genesis, Self::Epoch, Self::Turns, Self::Image, Self::ImageRows, Self::ImageEnd];
        kinds.into_iter().find(|kind| kind.number() == number)
    }
}

/// The part of a header that the writer chooses; the rest follows from the keys and the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) group: u64,
    /// How many bytes of the group come before this frame, and after it.
    pub(crate) preceding: u32,
    pub(crate) following: u32,
    pub(crate) sequence: u64,
    pub(crate) epoch: u64,
    pub(crate) incarnation: [u8; 16],
}

/// Why a sector that is not all zero is not the first one of a frame of this store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// Not a header at all, or a header of which a bit has changed.
    NotAuthentic,
    /// A frame of another store.
    OtherStore,
    /// Another version of the format.
    Version(u16),
    /// An authentic frame of a kind that this program does not know.
    Kind(u8),
}

/// A header that this store wrote, with what it takes to open the body.
pub(crate) struct Authentic {
    pub(crate) header: Header,
    /// Length of the whole frame, in bytes: a multiple of a sector.
    pub(crate) extent: usize,
    bytes: [u8; HEADER_LENGTH],
    key: FrameKey,
}

/// Seals a frame in place. `frame` holds [`HEADER_LENGTH`] bytes of anything and then the payload; afterwards
/// it is the whole frame. The salt must come from the operating system for this frame alone.
pub(crate) fn seal(
    keys: &Keys,
    header: &Header,
    previous: &FrameTag,
    salt: &[u8; SALT_LENGTH],
    frame: &mut Vec<u8>,
) -> FrameTag {
    lay_out(keys, frame, 0);
    seal_laid_out(keys, header, &(*previous).into(), salt, frame)
}

/// Gives a frame its length, from `start` to the end of `group`: [`HEADER_LENGTH`] bytes of anything and then the
/// payload. The frames of a group are all laid out before the first is sealed, since each says what follows it.
pub(crate) fn lay_out(keys: &Keys, group: &mut Vec<u8>, start: usize) {
    debug_assert!(group.len() >= start + HEADER_LENGTH);
    let extent = extent(group.len() - start - HEADER_LENGTH, keys.is_sealed());
    group.resize(start + extent, 0);
    if !keys.is_sealed() {
        stamp(&mut group[start..]);
    }
}

/// Seals a frame that was [laid out](lay_out).
pub(crate) fn seal_laid_out(
    keys: &Keys,
    header: &Header,
    previous: &Previous,
    salt: &[u8; SALT_LENGTH],
    frame: &mut [u8],
) -> FrameTag {
    let extent = frame.len();
    let mut bytes = encode(keys, header, extent, salt);
    let (key, commitment) = keys.frame_key(&bytes[..COMMITMENT_AT], salt);
    bytes[COMMITMENT_AT..].copy_from_slice(&commitment);
    frame[..HEADER_LENGTH].copy_from_slice(&bytes);
    let (associated, length) = associated(&bytes, previous);
    let tag = key.seal(&associated[..length], &mut frame[HEADER_LENGTH..extent - TAG_LENGTH]);
    frame[extent - TAG_LENGTH..].copy_from_slice(&tag);
    tag
}

/// What stands for the vat in the header of a frame ([`Keys::vat_tag`]).
pub(crate) fn vat_tag(frame: &[u8]) -> [u8; 16] {
    let mut tag = [0; 16];
    tag.copy_from_slice(&frame[64..80]);
    tag
}

/// Reads the header at the beginning of `sector`, which has at least [`HEADER_LENGTH`] bytes. Of which vat of the store
/// the frame is, is for the caller to see ([`vat_tag`]).
pub(crate) fn parse(keys: &Keys, sector: &[u8]) -> Result<Authentic, HeaderError> {
    let bytes: [u8; HEADER_LENGTH] =
        sector.get(..HEADER_LENGTH).and_then(|bytes| bytes.try_into().ok()).ok_or(HeaderError::NotAuthentic)?;
    if &bytes[..8] != MAGIC {
        return Err(HeaderError::NotAuthentic);
    }
    let version = u16::from_le_bytes(field(&bytes, 8));
    if version != FORMAT_VERSION {
        return Err(HeaderError::Version(version));
    }
    let (key, commitment) = keys.frame_key(&bytes[..COMMITMENT_AT], &field(&bytes, 96));
    // Both sides stand on the same disk in clear: there is no timing to hide.
    if bytes[COMMITMENT_AT..] != commitment {
        let own = field::<16>(&bytes, 48) == keys.store();
        return Err(if own { HeaderError::NotAuthentic } else { HeaderError::OtherStore });
    }
    // From here on the fields are what this store wrote. In a plain store they could be somebody's forgery,
    // so nothing relies on that for memory safety or termination.
    if field::<16>(&bytes, 48) != keys.store() {
        return Err(HeaderError::OtherStore);
    }
    let kind = Kind::from_number(bytes[10]).ok_or(HeaderError::Kind(bytes[10]))?;
    let extent = usize::try_from(u32::from_le_bytes(field(&bytes, 12))).map_err(|_| HeaderError::NotAuthentic)?;
    let protection = if keys.is_sealed() { SEALED } else { PLAIN };
    if bytes[11] != protection || extent < SECTOR_BYTES || !extent.is_multiple_of(SECTOR_BYTES) {
        return Err(HeaderError::NotAuthentic);
    }
    let header = Header {
        kind,
        group: u64::from_le_bytes(field(&bytes, 16)),
        preceding: u32::from_le_bytes(field(&bytes, 40)),
        following: u32::from_le_bytes(field(&bytes, 44)),
        sequence: u64::from_le_bytes(field(&bytes, 24)),
        epoch: u64::from_le_bytes(field(&bytes, 32)),
        incarnation: field(&bytes, 80),
    };
    Ok(Authentic { header, extent, bytes, key })
}

impl Authentic {
    /// Opens the body of the frame, which is `frame` from its first to its last byte, in place.
    ///
    /// The payload and its padding, and the frame's tag; `None` if the body is not what was sealed after the
    /// frame with the tag `previous`. `frame` is spoiled either way.
    pub(crate) fn open<'a>(self, previous: &Previous, frame: &'a mut [u8]) -> Option<(&'a [u8], FrameTag)> {
        let body_end = self.extent.checked_sub(TAG_LENGTH)?;
        let tag: FrameTag = frame.get(body_end..self.extent)?.try_into().ok()?;
        let sealed = matches!(self.key, FrameKey::Sealed(_));
        let body = &mut frame[HEADER_LENGTH..body_end];
        let (associated, length) = associated(&self.bytes, previous);
        if !self.key.open(&associated[..length], body, &tag) {
            return None;
        }
        let length = if sealed { body_end - HEADER_LENGTH } else { unstamp(&mut frame[..body_end])? };
        Some((&frame[HEADER_LENGTH..HEADER_LENGTH + length], tag))
    }
}

/// Whether a sector begins like a header. No other sector of a written frame does, but for one in 2⁶⁴ sealed ones.
pub(crate) fn begins_like_header(sector: &[u8]) -> bool {
    sector.starts_with(MAGIC)
}

/// Whether a sector of these bytes was never written: what tells a torn write from a damaged one.
pub(crate) fn has_zero_sector(bytes: &[u8]) -> bool {
    bytes.chunks(SECTOR_BYTES).any(is_zero)
}

/// Whether all of these bytes are zero. Opening a store asks it of whole segments, so it compares memory in
/// blocks.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|block| *block == ZEROS[..block.len()])
}

/// Length of the frame that carries `payload` bytes.
pub(crate) fn extent(payload: usize, sealed: bool) -> usize {
    let sectors = if sealed {
        (HEADER_LENGTH + payload + TAG_LENGTH).div_ceil(SECTOR_BYTES)
    } else {
        // One byte of each sector but the first is the stamp.
        (HEADER_LENGTH + payload + TAG_LENGTH - 1).div_ceil(SECTOR_BYTES - 1)
    };
    let extent = pad(sectors * SECTOR_BYTES);
    debug_assert!(extent as u64 <= MAX_SEGMENT_BYTES);
    extent
}

/// Rounds up so that the result has few significant bits, from [`FINE_PADDING_BYTES`] on.
pub(crate) fn pad(length: usize) -> usize {
    if length <= FINE_PADDING_BYTES {
        return length;
    }
    let exponent = length.ilog2();
    let significant = exponent.ilog2() + 1;
    length.next_multiple_of(1 << (exponent - significant))
}

/// Moves the payload of a plain frame apart, so that every sector but the first begins with a stamp.
fn stamp(frame: &mut [u8]) {
    let end = frame.len() - TAG_LENGTH;
    for sector in (1..frame.len() / SECTOR_BYTES).rev() {
        // Backwards: the bytes only ever move up, over places that have been emptied already.
        let to = sector * SECTOR_BYTES;
        let length = (SECTOR_BYTES - 1).min(end - to - 1);
        let from = to + 1 - sector;
        frame.copy_within(from..from + length, to + 1);
        frame[to] = STAMP;
    }
}

/// The opposite of [`stamp`], for a frame without its tag. Length of the payload with its padding.
fn unstamp(frame: &mut [u8]) -> Option<usize> {
    let mut end = frame.len().min(SECTOR_BYTES);
    let mut at = SECTOR_BYTES;
    while at < frame.len() {
        let sector_end = frame.len().min(at + SECTOR_BYTES);
        if frame[at] != STAMP {
            return None;
        }
        frame.copy_within(at + 1..sector_end, end);
        end += sector_end - at - 1;
        at = sector_end;
    }
    Some(end - HEADER_LENGTH)
}

fn encode(keys: &Keys, header: &Header, extent: usize, salt: &[u8; SALT_LENGTH]) -> [u8; HEADER_LENGTH] {
    let mut bytes = [0; HEADER_LENGTH];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[10] = header.kind.number();
    bytes[11] = if keys.is_sealed() { SEALED } else { PLAIN };
    // No frame is longer than a segment can be, which is far below 4 GiB.
    bytes[12..16].copy_from_slice(&u32::try_from(extent).unwrap_or(u32::MAX).to_le_bytes());
    bytes[16..24].copy_from_slice(&header.group.to_le_bytes());
    bytes[24..32].copy_from_slice(&header.sequence.to_le_bytes());
    bytes[32..40].copy_from_slice(&header.epoch.to_le_bytes());
    bytes[40..44].copy_from_slice(&header.preceding.to_le_bytes());
    bytes[44..48].copy_from_slice(&header.following.to_le_bytes());
    bytes[48..64].copy_from_slice(&keys.store());
    bytes[64..80].copy_from_slice(&keys.vat_tag());
    bytes[80..96].copy_from_slice(&header.incarnation);
    bytes[96..128].copy_from_slice(salt);
    bytes
}

/// What a tag covers besides the body, and how long that is. In a journal of one vat the two tags before are the same.
fn associated(header: &[u8; HEADER_LENGTH], previous: &Previous) -> ([u8; HEADER_LENGTH + 2 * TAG_LENGTH], usize) {
    let mut bytes = [0; HEADER_LENGTH + 2 * TAG_LENGTH];
    bytes[..HEADER_LENGTH].copy_from_slice(header);
    bytes[HEADER_LENGTH..][..TAG_LENGTH].copy_from_slice(&previous.of_vat);
    bytes[HEADER_LENGTH + TAG_LENGTH..].copy_from_slice(&previous.in_journal);
    let of_one = previous.of_vat == previous.in_journal;
    (bytes, if of_one { HEADER_LENGTH + TAG_LENGTH } else { HEADER_LENGTH + 2 * TAG_LENGTH })
}

fn field<const N: usize>(bytes: &[u8; HEADER_LENGTH], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests;
