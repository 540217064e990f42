//! Pieces of the engine for a benchmark to measure one by one: **only with the feature `measure`**.
//!
//! Everything else of the engine can be measured through [`Store`](crate::Store), where it is hidden behind the
//! disk. Nothing here reads or writes a file, or gives away the key that it uses.

use std::sync::Arc;

use crate::{
    error::StoreError,
    frame::{self, FrameTag, HEADER_LENGTH, Header, Kind},
    keys::{Keys, Root, SecretBytes},
    random,
};

/// Seals frames as the committer does, each chained to the one before, under a root key that nobody has.
pub struct Sealer {
    keys: Arc<Keys>,
    header: Header,
    previous: FrameTag,
    frame: Vec<u8>,
}

impl Sealer {
    /// With a new random key.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new() -> Result<Self, StoreError> {
        let mut root = SecretBytes::default();
        random::fill(root.as_mut())?;
        let keys = Arc::new(Keys::new(Root::Sealed(root), [1; 16], [7; 32]));
        let header = Header { kind: Kind::Turns, group: 1, sequence: 1, epoch: 1, incarnation: [0; 16] };
        Ok(Self { keys, header, previous: [0; 16], frame: Vec::new() })
    }

    /// Seals one frame around a copy of `payload`: random salt, key, padding and encryption. Gives the frame,
    /// until the next one.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn seal(&mut self, payload: &[u8]) -> Result<&[u8], StoreError> {
        self.frame.clear();
        self.frame.resize(HEADER_LENGTH, 0);
        self.frame.extend_from_slice(payload);
        self.header.group += 1;
        self.header.sequence += 1;
        self.previous = frame::seal(&self.keys, &self.header, &self.previous, &random::salt()?, &mut self.frame);
        Ok(&self.frame)
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("sequence", &self.header.sequence).finish_non_exhaustive()
    }
}
