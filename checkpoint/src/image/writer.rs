//! The writing end of an image.

use std::{io::Write, path::Path, sync::Arc};

use super::{Census, HEAD_LENGTH, HeadPayload, IMAGE_VERSION, ImageHead, MAGIC};
use crate::{
    error::StoreError,
    frame::{self, FrameTag, HEADER_LENGTH, Header, Kind},
    keys::Keys,
    keyslots::Keyslots,
    limits::{IMAGE_FRAME_BYTES, SECTOR_BYTES},
    payload::{self, Bytes, Row},
    random,
};

/// Writes one image. It is whole only after [`ImageWriter::finish`].
pub(crate) struct ImageWriter<'a> {
    output: &'a mut dyn Write,
    /// What errors call the output.
    path: &'a Path,
    keys: Arc<Keys>,
    epoch: u64,
    incarnation: [u8; 16],
    sequence: u64,
    chain: FrameTag,
    /// Rows that wait for their frame, encoded, and how many.
    rows: Vec<u8>,
    waiting: usize,
    frame: Vec<u8>,
    census: Census,
}

/// Where an image ends.
pub(crate) struct End {
    pub(crate) census: Census,
    /// The frame `end`.
    pub(crate) sequence: u64,
    /// Its tag.
    pub(crate) chain: FrameTag,
}

impl<'a> ImageWriter<'a> {
    /// Begins an image under the keys of its vat, whose root key `keyslots` wraps, after the frame with the number
    /// `sequence`: 0 for an image that goes to others, and has a root key of its own.
    pub(crate) fn begin(
        output: &'a mut dyn Write,
        path: &'a Path,
        keyslots: &Keyslots,
        keys: Arc<Keys>,
        head: &ImageHead,
        sequence: u64,
    ) -> Result<Self, StoreError> {
        let slots = keyslots.encode();
        let mut bytes = Vec::with_capacity((HEAD_LENGTH + slots.len()).next_multiple_of(SECTOR_BYTES));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&IMAGE_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        // Keyslots are far shorter than 4 GiB: their number has 16 bits, and each is short.
        bytes.extend_from_slice(&u32::try_from(slots.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&slots);
        bytes.resize(bytes.len().next_multiple_of(SECTOR_BYTES), 0);
        output.write_all(&bytes).map_err(|e| StoreError::disk("write", path, e))?;
        let mut writer = Self {
            output,
            path,
            keys,
            epoch: head.epoch,
            incarnation: head.incarnation,
            sequence,
            chain: [0; 16],
            rows: Vec::new(),
            waiting: 0,
            frame: Vec::new(),
            census: Census::default(),
        };
        let payload = HeadPayload {
            vat: head.vat,
            turn: head.turn,
            created: head.created.as_micros(),
            label: head.label.clone(),
        };
        writer.append(Kind::Image, |frame| payload::append(frame, &payload))?;
        Ok(writer)
    }

    /// Adds a row. None may come twice.
    pub(crate) fn row(&mut self, space: u64, name: &[u8], value: &[u8]) -> Result<(), StoreError> {
        payload::append(&mut self.rows, &Row { space, name: Bytes(name), value: Bytes(value) });
        self.waiting += 1;
        self.census.add(name, value);
        if self.rows.len() >= IMAGE_FRAME_BYTES { self.write_rows() } else { Ok(()) }
    }

    /// How much it holds so far.
    pub(crate) fn census(&self) -> Census {
        self.census
    }

    /// Ends the image. Whether it is durable is the caller's business.
    pub(crate) fn finish(self) -> Result<Census, StoreError> {
        let census = self.finish_to_go_on()?.census;
        Ok(census)
    }

    /// The same for who writes frames after the end: what the next one must follow on.
    pub(crate) fn finish_to_go_on(mut self) -> Result<End, StoreError> {
        if self.waiting > 0 {
            self.write_rows()?;
        }
        let census = self.census;
        self.append(Kind::ImageEnd, |frame| payload::append(frame, &census))?;
        self.output.flush().map_err(|e| StoreError::disk("write", self.path, e))?;
        Ok(End { census, sequence: self.sequence, chain: self.chain })
    }

    fn write_rows(&mut self) -> Result<(), StoreError> {
        let (rows, count) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.waiting));
        self.append(Kind::ImageRows, |frame| {
            payload::append(frame, &count);
            frame.extend_from_slice(&rows);
        })?;
        self.rows = rows;
        self.rows.clear();
        Ok(())
    }

    fn append(&mut self, kind: Kind, payload: impl FnOnce(&mut Vec<u8>)) -> Result<(), StoreError> {
        self.sequence += 1;
        self.frame.clear();
        self.frame.resize(HEADER_LENGTH, 0);
        payload(&mut self.frame);
        let header = Header {
            kind,
            group: self.sequence,
            preceding: 0,
            following: 0,
            sequence: self.sequence,
            epoch: self.epoch,
            incarnation: self.incarnation,
        };
        self.chain = frame::seal(&self.keys, &header, &self.chain, &random::salt()?, &mut self.frame);
        self.output.write_all(&self.frame).map_err(|e| StoreError::disk("write", self.path, e))
    }
}
