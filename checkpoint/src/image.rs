//! Images: one file that holds one vat's whole checkpoint, sealed for its next host (DESIGN §1, §8). Final.
//!
//! Backup, restore, copy and move all use it. An image is written and read as a stream, from the first byte to
//! the last, and needs room in memory for one frame, and to read it some 40 bytes for each row. Numbers are little-endian.
//!
//! ```text
//!   0   8  magic, `vatimage`
//!   8   2  version, 1
//!  10   2  zero
//!  12   4  length of the keyslots
//!  16   …  keyslots, in the form of a store's keyslots file, with its checksum
//!   …   …  zeros up to a multiple of 512
//!   …   …  frames, one after the other up to the end of the file
//! ```
//!
//! The frames are those of the journal, and so are their seals, their chain and their padding. There is one of
//! kind `image`, which says what this is a copy of; any number of kind `rows`; and one of kind `end`, which says
//! how many rows there were. Sequence and group both count from 1; epoch and incarnation are those of the vat.
//! No row comes twice, which the reader sees to: whoever decides by the first of two and keeps the last would be deceived.
//! Their order says nothing: that of a store is the order of its secret row keys.
//!
//! * **A key of its own.** Each image has a random store id and a random root key, which its keyslots wrap for
//!   whoever shall open it. So who may open a backup cannot open the store, and nothing is ever sealed twice
//!   under one key.
//! * **Whole or not at all.** A changed bit, a frame that is missing, repeated or moved, an image that was cut
//!   off, and anything after its end are errors. [`ImageReader::next_row`] says that there are no more rows only
//!   when it has read the end of the file, and whoever imports keeps nothing before that.
//! * **Proves nothing about its author.** Who knows for whom to seal can make an image. What proves that a state
//!   is the vat's is the identity key inside; that it is the newest, the witnesses (R7).

mod reader;
mod seen;
mod unfinished;
mod writer;

pub use reader::ImageReader;
pub(crate) use reader::Verified;
pub(crate) use unfinished::Unfinished;
pub(crate) use writer::{End, ImageWriter};

use schemas::Timestamp;
use serde::{Deserialize, Serialize};

/// The version of images that this program writes, and the newest that it reads.
pub(crate) const IMAGE_VERSION: u16 = 1;

const MAGIC: &[u8; 8] = b"vatimage";
const HEAD_LENGTH: usize = 16;

/// What an image is a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageHead {
    /// The vat.
    pub vat: [u8; 32],
    /// The turn after which the image shows it.
    pub turn: u64,
    /// The epoch in which it was made.
    pub epoch: u64,
    /// The incarnation in which it was made.
    pub incarnation: [u8; 16],
    /// When it was made, by the clock of its maker.
    pub created: Timestamp,
    /// What its maker calls the vat.
    pub label: String,
}

/// How much an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Census {
    /// Rows.
    pub rows: u64,
    /// Their names and values, in bytes.
    pub bytes: u64,
}

impl Census {
    pub(crate) fn add(&mut self, name: &[u8], value: &[u8]) {
        self.rows += 1;
        self.bytes += (name.len() + value.len()) as u64;
    }
}

/// The payload of the first frame.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HeadPayload {
    vat: [u8; 32],
    turn: u64,
    /// In microseconds since 1970.
    created: u64,
    label: String,
}
