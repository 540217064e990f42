//! The journal: sealed, chained frames in zero-filled segments, and what their bytes mean after a crash
//! (R2, R5, DESIGN §8).
//!
//! # Groups and frames
//! What becomes durable at once is a *group*: one frame for each vat of the store that has something to commit, one
//! after the other, written with one write and made durable with one `fdatasync`. Groups are numbered without gaps;
//! the frames of one vat are, too, and each is chained to the one before of the same vat, and also to the one before in
//! the journal if that is another one. So a vat's frames are a chain of its own, whoever shares the journal with it; and
//! nobody can put a group in the place of another one that had frames of other vats, although both came after the same.
//! After a crash there is all of a group or nothing.
//!
//! # Files
//! `journal/<16 hexadecimal digits>.segment`, numbered from 0 without gaps. A segment is written full of zeros
//! and made durable, its name included, before its first group; so a commit is one write and one `fdatasync`
//! of bytes that the file system has placed already. The number says nothing about sequences: a segment is
//! made ahead of need, when nobody can know which group will be its first. A group that does not fit the rest
//! of a segment goes to the beginning of the next one, and the rest stays zero. A group longer than a segment
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
//! Opening must tell three things apart: the end of the journal; a group whose write did not finish, which
//! nobody was told about and which is cut off; and a frame that was durable and is damaged, which is an error
//! and never silently dropped. The reasoning:
//!
//! 1. A disk replaces each aligned 512-byte sector wholly or not at all, and a write that the system cuts short
//!    ends between two sectors (file systems place and account for blocks). Before a group is written its sectors
//!    are zero, durably, also in a file that is used again. So a write that did not finish leaves at least one
//!    sector of the group all zero.
//! 2. A sector of a written frame is never all zero: a sealed body is as good as random, a plain one carries a
//!    stamp in each sector, and a header begins with the magic. So an all-zero sector means *not written*, and
//!    its absence means *written whole*.
//! 3. Only one group is under way at a time: group n+1 is written after group n was synced. So when a group is
//!    torn, nothing follows it.
//!
//! At the place where the next group must be:
//!
//! * The first sector is all zero, and so is everything after it, also in later segments: the end.
//! * A sector in which a frame of the group begins is not zero and is not an authentic header of the expected frame:
//!   damage. (It was written, for sectors are never torn, and is not what was written.)
//! * All headers are authentic and all bodies open: the group, acknowledged or not. (What is complete may be
//!   used: a crash between write and acknowledgement leaves that open.)
//! * The first header is authentic, so the length of the group is known, and one of the other headers is missing or
//!   one of the bodies does not open: torn if a sector of the group is all zero and everything after the group is
//!   zero; otherwise damage.
//! * The first sector is all zero and something follows in the same segment: a torn group that lost its first
//!   sector, provided that every sector of it that begins like a header is an authentic one of this very group, and
//!   that everything after the end that these tell is zero; for otherwise a later group was written and this one
//!   acknowledged before. Otherwise damage.
//!
//! So every changed bit of a written frame is found, the last acknowledged frame's included. What cannot be
//! found here is a disk that turns sectors of the *last* group back into zeros, a segment that is cut off
//! between two groups, or a whole folder that is put back: all are an earlier state of this very store, and
//! the location servers are the witnesses against that (R7).
//!
//! A torn group is overwritten with zeros and synced before anything is appended. Everything that replay shows
//! is made durable before it is shown: a process that was killed, or was stopped by a sync that failed, may have
//! left its last group in the page cache only ([`Replayed::settle`]).

mod replay;
mod segment;
mod writer;

pub(crate) use replay::{Replayed, replay, replay_file};
pub(crate) use segment::{Journal, Segment};
pub(crate) use writer::{Append, Writer};

use serde::{Deserialize, Serialize};

use crate::frame::FrameTag;

/// A place between two groups of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The segment.
    pub(crate) segment: u64,
    /// Where in it, in bytes.
    pub(crate) offset: u64,
    /// The group before this place; 0 before the first one.
    pub(crate) group: u64,
    /// The tag of the frame before this place, whosever it is; zeros before the first one.
    pub(crate) chain: FrameTag,
}

/// How far a vat has come: what its next frame must follow on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Its last frame; 0 before the first one.
    pub(crate) sequence: u64,
    /// The tag of that frame; zeros before the first one.
    pub(crate) chain: FrameTag,
    /// Its last turn.
    pub(crate) turn: u64,
    /// Its epoch.
    pub(crate) epoch: u64,
    /// Its incarnation.
    pub(crate) incarnation: [u8; 16],
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)]
mod tests;
