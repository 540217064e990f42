//! The appending end of the journal: one group, one write, one `fdatasync` (R2).

use super::{Head, Place, Segment};
use crate::{
    error::StoreError,
    frame::{self, HEADER_LENGTH, Header, Kind, Previous},
    keys::Keys,
    random,
};

/// Owned by the committer; nothing else writes to the journal while it lives.
pub(crate) struct Writer {
    segment: Segment,
    at: Place,
    /// The group under construction; kept for its memory.
    group: Vec<u8>,
    /// Where its frames begin.
    starts: Vec<usize>,
}

/// One frame of a group.
pub(crate) struct Append<'a> {
    pub(crate) keys: &'a Keys,
    pub(crate) kind: Kind,
    /// What the frame follows on: the vat's last frame.
    pub(crate) before: &'a Head,
    /// The vat's last turn, its epoch and its incarnation once the frame is durable.
    pub(crate) turn: u64,
    pub(crate) epoch: u64,
    pub(crate) incarnation: [u8; 16],
}

impl Writer {
    pub(crate) fn new(segment: Segment, at: Place) -> Self {
        debug_assert_eq!(segment.number, at.segment);
        Self { segment, at, group: Vec::new(), starts: Vec::new() }
    }

    /// Where the next group goes.
    pub(crate) fn at(&self) -> Place {
        self.at
    }

    /// How much of the current segment is taken, and its length, in bytes.
    pub(crate) fn filled(&self) -> (u64, u64) {
        (self.at.offset, self.segment.length)
    }

    /// Makes one group durable. Gives the vats' new heads, in the same order.
    ///
    /// `payload` appends the payload of the frame with that index to the buffer. `next` gives the segment of the
    /// given number with at least the given length, durable, when the group does not fit this one. After an error
    /// the writer must not be used again.
    pub(crate) fn append(
        &mut self,
        frames: &[Append<'_>],
        mut payload: impl FnMut(usize, &mut Vec<u8>),
        next: impl FnOnce(u64, u64) -> Result<Segment, StoreError>,
    ) -> Result<Vec<Head>, StoreError> {
        self.group.clear();
        self.starts.clear();
        for (index, append) in frames.iter().enumerate() {
            let start = self.group.len();
            self.starts.push(start);
            self.group.resize(start + HEADER_LENGTH, 0);
            payload(index, &mut self.group);
            frame::lay_out(append.keys, &mut self.group, start);
        }
        let heads = self.seal(frames)?;

        let extent = self.group.len() as u64;
        if self.at.offset + extent > self.segment.length {
            self.segment = next(self.segment.number + 1, extent)?;
            debug_assert!(self.segment.number == self.at.segment + 1 && extent <= self.segment.length);
            (self.at.segment, self.at.offset) = (self.segment.number, 0);
        }
        self.segment.write(self.at.offset, &self.group)?;
        self.segment.sync()?;
        self.at.offset += extent;
        self.at.group += 1;
        Ok(heads)
    }

    /// Seals the frames, all of which are laid out. Each says how much of the group follows it.
    fn seal(&mut self, frames: &[Append<'_>]) -> Result<Vec<Head>, StoreError> {
        let mut heads = Vec::with_capacity(frames.len());
        let ends = self.starts.iter().skip(1).copied().chain([self.group.len()]);
        for ((append, start), end) in frames.iter().zip(&self.starts).zip(ends) {
            // Proof of the cast: a group fits a segment, which is shorter than 4 GiB.
            #[allow(clippy::cast_possible_truncation)]
            let (preceding, following) = (*start as u32, (self.group.len() - end) as u32);
            let header = Header {
                kind: append.kind,
                group: self.at.group + 1,
                preceding,
                following,
                sequence: append.before.sequence + 1,
                epoch: append.epoch,
                incarnation: append.incarnation,
            };
            let salt = random::salt()?;
            let frame = &mut self.group[*start..end];
            let previous = Previous { of_vat: append.before.chain, in_journal: self.at.chain };
            let chain = frame::seal_laid_out(append.keys, &header, &previous, &salt, frame);
            self.at.chain = chain;
            let Append { turn, epoch, incarnation, .. } = *append;
            heads.push(Head { sequence: header.sequence, chain, turn, epoch, incarnation });
        }
        Ok(heads)
    }
}
