//! Pieces of the engine for a benchmark to measure one by one: **only with the feature `measure`**.
//!
//! Everything else of the engine can be measured through [`Store`](crate::Store), where it is hidden behind the
//! disk. Nothing here reads or writes a file, or gives away the key that it uses.

use std::fmt;

use crate::{
    error::StoreError,
    frame::{self, FrameTag, HEADER_LENGTH, Header, Kind},
    keys::{Keys, Root, SecretBytes},
    random,
};

/// Seals frames as the committer does, each chained to the one before, under a root key that nobody has.
pub struct Sealer {
    keys: Keys,
    header: Header,
    previous: FrameTag,
    frame: Vec<u8>,
    /// Where the payload ends.
    end: usize,
}

impl Sealer {
    /// Frames around `payload_bytes` bytes, with a new random key.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new(payload_bytes: usize) -> Result<Self, StoreError> {
        let mut root = SecretBytes::default();
        random::fill(root.as_mut())?;
        let keys = Keys::new(Root::Sealed(root), [1; 16], [7; 32]);
        let header = Header {
            kind: Kind::Turns,
            group: 1,
            preceding: 0,
            following: 0,
            sequence: 1,
            epoch: 1,
            incarnation: [0; 16],
        };
        let end = HEADER_LENGTH + payload_bytes;
        Ok(Self { keys, header, previous: [0; 16], frame: vec![0; end], end })
    }

    /// Seals the next frame, in place of the one before: random salt, key, padding and encryption. Its payload is
    /// what stands there, which costs as much as any other. Gives the frame.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn seal(&mut self) -> Result<&[u8], StoreError> {
        self.frame.truncate(self.end);
        self.header.group += 1;
        self.header.sequence += 1;
        self.previous = frame::seal(&self.keys, &self.header, &self.previous, &random::salt()?, &mut self.frame);
        Ok(&self.frame)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("sequence", &self.header.sequence).finish_non_exhaustive()
    }
}
