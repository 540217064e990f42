//! The appending end of the journal: one frame, one write, one `fdatasync` (R2).

use std::sync::Arc;

use super::{Boundary, Segment};
use crate::{
    error::StoreError,
    frame::{self, FrameTag, HEADER_LENGTH, Header, Kind},
    keys::Keys,
    random,
};

/// Owned by the committer; nothing else writes to the journal while it lives.
pub(crate) struct Writer {
    keys: Arc<Keys>,
    segment: Segment,
    at: Boundary,
    /// The frame under construction; kept for its memory.
    frame: Vec<u8>,
}

/// What a frame changes besides the chain.
pub(crate) struct Append {
    pub(crate) kind: Kind,
    /// The last turn once the frame is durable.
    pub(crate) turn: u64,
    pub(crate) epoch: u64,
    pub(crate) incarnation: [u8; 16],
}

impl Writer {
    pub(crate) fn new(keys: Arc<Keys>, segment: Segment, at: Boundary) -> Self {
        debug_assert_eq!(segment.number, at.segment);
        Self { keys, segment, at, frame: Vec::new() }
    }

    /// Where the next frame goes.
    pub(crate) fn at(&self) -> Boundary {
        self.at
    }

    /// How much of the current segment is taken, and its length, in bytes.
    pub(crate) fn filled(&self) -> (u64, u64) {
        (self.at.offset, self.segment.length)
    }

    /// Makes one frame durable.
    ///
    /// `payload` appends the payload to the buffer. `next` gives the segment of the given number with at least
    /// the given length, durable, when the frame does not fit this one. After an error the writer must not be
    /// used again.
    pub(crate) fn append(
        &mut self,
        append: &Append,
        payload: impl FnOnce(&mut Vec<u8>),
        next: impl FnOnce(u64, u64) -> Result<Segment, StoreError>,
    ) -> Result<Boundary, StoreError> {
        self.frame.clear();
        self.frame.resize(HEADER_LENGTH, 0);
        payload(&mut self.frame);
        let header = Header {
            kind: append.kind,
            group: self.at.group + 1,
            sequence: self.at.sequence + 1,
            epoch: append.epoch,
            incarnation: append.incarnation,
        };
        let chain: FrameTag = frame::seal(&self.keys, &header, &self.at.chain, &random::salt()?, &mut self.frame);

        let extent = self.frame.len() as u64;
        if self.at.offset + extent > self.segment.length {
            self.segment = next(self.segment.number + 1, extent)?;
            debug_assert!(self.segment.number == self.at.segment + 1 && extent <= self.segment.length);
            (self.at.segment, self.at.offset) = (self.segment.number, 0);
        }
        self.segment.write(self.at.offset, &self.frame)?;
        self.segment.sync()?;
        self.at = Boundary {
            segment: self.at.segment,
            offset: self.at.offset + extent,
            group: header.group,
            sequence: header.sequence,
            chain,
            turn: append.turn,
            epoch: append.epoch,
            incarnation: append.incarnation,
        };
        Ok(self.at)
    }
}
