//! The journal: sealed, chained frames in zero-filled segments, and what their bytes mean after a crash
//! (R2, R5, DESIGN §8).
//!
//! # Files
//! `journal/<16 hexadecimal digits>.segment`, numbered from 0 without gaps. A segment is written full of zeros
//! and made durable, its name included, before its first frame; so a commit is one write and one `fdatasync`
//! of bytes that the file system has placed already. The number says nothing about sequences: a segment is
//! made ahead of need, when nobody can know which frame will be its first. A frame that does not fit the rest
//! of a segment goes to the beginning of the next one, and the rest stays zero. A frame longer than a segment
//! gets a segment as long as itself.
//!
//! `journal/<16 hexadecimal digits>.spare`: a segment that is not needed any more, because the base contains all
//! of it or because no frame was ever durable in it, gives up its name for this one, durably. The digits mean
//! nothing. A spare becomes a segment again in three steps: it is filled with zeros *from the first byte to the
//! last*, that is made durable, and only then it gets the name of the segment, which is made durable before a
//! frame is written. At most [`SPARE_SEGMENTS`](crate::limits::SPARE_SEGMENTS) are kept, and opening reads none.
//! So it does not matter what a crash leaves in one: old frames, zeros, or some of both. If the crash takes back
//! the first change of name, what is there is a segment before the position of the base, which opening does not
//! read either, or, while a store is being opened, the unneeded one that was found. If it takes back the second,
//! what is there is a spare.
//!
//! # Torn or damaged
//! Opening must tell three things apart: the end of the journal; a frame whose write did not finish, which
//! nobody was told about and which is cut off; and a frame that was durable and is damaged, which is an error
//! and never silently dropped. The reasoning:
//!
//! 1. A disk replaces each aligned 512-byte sector wholly or not at all, and a write that the system cuts short
//!    ends between two sectors (file systems place and account for blocks). Before a frame is written its sectors
//!    are zero, durably, also in a file that is used again. So a write that did not finish leaves at least one
//!    sector of the frame all zero.
//! 2. A sector of a written frame is never all zero: a sealed body is as good as random, a plain one carries a
//!    stamp in each sector, and a header begins with the magic. So an all-zero sector means *not written*, and
//!    its absence means *written whole*.
//! 3. Only one group is under way at a time: frame n+1 is written after frame n was synced. So when a frame is
//!    torn, nothing follows it.
//!
//! At the place where the next frame must be:
//!
//! * The first sector is all zero, and so is everything after it, also in later segments: the end.
//! * The first sector is not zero and is not an authentic header of the expected frame: damage. (It was
//!   written, for sectors are never torn, and is not what was written.)
//! * The header is authentic and the body opens: the frame, acknowledged or not. (What is complete may be
//!   used: a crash between write and acknowledgement leaves that open.)
//! * The header is authentic and the body does not open: torn if a sector of the extent is all zero and
//!   everything after the extent is zero; otherwise damage.
//! * The first sector is all zero and something follows in the same segment: a torn frame that lost its first
//!   sector, provided that no sector of it begins like a header, for then a later frame was written and this
//!   one acknowledged before. Otherwise damage.
//!
//! So every changed bit of a written frame is found, the last acknowledged frame's included. What cannot be
//! found here is a disk that turns sectors of the *last* frame back into zeros, a segment that is cut off
//! between two frames, or a whole folder that is put back: all are an earlier state of this very store, and
//! the location servers are the witnesses against that (R7).
//!
//! A torn frame is overwritten with zeros and synced before anything is appended. Everything that replay shows
//! is made durable before it is shown: a process that was killed, or was stopped by a sync that failed, may have
//! left its last frame in the page cache only ([`Replayed::settle`]).

mod replay;
mod segment;
mod writer;

pub(crate) use replay::{Replayed, replay, replay_file};
pub(crate) use segment::{Journal, Segment};
pub(crate) use writer::{Append, Writer};

use serde::{Deserialize, Serialize};

use crate::frame::FrameTag;

/// A place between two frames, with what the next frame must follow on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Boundary {
    /// The segment.
    pub(crate) segment: u64,
    /// Where in it, in bytes.
    pub(crate) offset: u64,
    /// The group before this place; 0 before the first one.
    pub(crate) group: u64,
    /// The frame before this place; 0 before the first one.
    pub(crate) sequence: u64,
    /// The tag of that frame; zeros before the first one.
    pub(crate) chain: FrameTag,
    /// The last turn in the frames before this place.
    pub(crate) turn: u64,
    /// The epoch here.
    pub(crate) epoch: u64,
    /// The incarnation here.
    pub(crate) incarnation: [u8; 16],
}

impl Boundary {
    /// Before the first frame of a store.
    pub(crate) const START: Self =
        Self { segment: 0, offset: 0, group: 0, sequence: 0, chain: [0; 16], turn: 0, epoch: 0, incarnation: [0; 16] };
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)]
mod tests;
