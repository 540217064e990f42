//! The raw log: the least that makes bytes durable.
//!
//! A file that was filled with zeros and synced beforehand, so that the file system has nothing to place. A
//! group is one write behind the one before and one `fdatasync`; no header, no check, no copy, no other thread.
//! At the end of the file it begins again at the front.

use std::{path::Path, sync::Arc};

use checkpoint::{Disk, DiskFile};

use crate::Failure;

/// Long enough that the system never writes a page back which the next group changes.
const LENGTH: u64 = 16 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The log.
pub(super) struct RawLog {
    file: Arc<dyn DiskFile>,
    offset: u64,
}

impl RawLog {
    /// Makes one at `path`.
    pub(super) fn create(disk: &dyn Disk, path: &Path) -> Result<Self, Failure> {
        let file = disk.create(path)?;
        for offset in (0..LENGTH).step_by(ZEROS.len()) {
            file.write_all_at(offset, &ZEROS)?;
        }
        file.sync_data()?;
        Ok(Self { file, offset: 0 })
    }

    /// Makes a group durable.
    pub(super) fn append(&mut self, group: &[u8]) -> Result<(), Failure> {
        let length = group.len() as u64;
        if self.offset + length > LENGTH {
            self.offset = 0;
        }
        self.file.write_all_at(self.offset, group)?;
        self.offset += length;
        Ok(self.file.sync_data()?)
    }
}
