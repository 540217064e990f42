//! The note about what is durable: why opening a small store needs no sync (see [the module above](super)).

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    disk::{Disk, DiskFile},
    error::StoreError,
    frame::FrameTag,
    store_keys::with_suffix,
};

/// What stands in a note that names no frame. No tag is all zero, but for one in 2¹²⁸.
const CLEARED: FrameTag = [0; 16];

/// `<path>.synced`. Never synced itself.
pub(super) struct Note {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Option<Arc<dyn DiskFile>>,
}

impl Note {
    /// The note that belongs to the store at `store`, which is locked.
    pub(super) fn new(disk: Arc<dyn Disk>, store: &Path) -> Self {
        Self { disk, path: with_suffix(store, ".synced"), file: None }
    }

    /// Whether the frame with this tag, and everything before it, is known to be durable.
    pub(super) fn names(&mut self, tag: &FrameTag) -> Result<bool, StoreError> {
        let file = match self.disk.open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(StoreError::disk("open", &self.path, error)),
        };
        let mut noted = CLEARED;
        let read = file.read_at(0, &mut noted);
        self.file = Some(file);
        match read {
            Ok(()) => Ok(noted == *tag),
            // Made, and not written.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(StoreError::disk("read", &self.path, error)),
        }
    }

    /// Has it name no frame, before something is written after the one that it names. Follows
    /// [`names`](Self::names).
    pub(super) fn clear(&mut self) -> Result<(), StoreError> {
        let Some(file) = &self.file else { return Ok(()) };
        file.write_all_at(0, &CLEARED).map_err(|e| StoreError::disk("write", &self.path, e))
    }

    /// Notes that the frame with this tag is durable. Follows the sync.
    pub(super) fn record(&mut self, tag: &FrameTag) {
        let file = match self.file.take() {
            Some(file) => Ok(file),
            None => match self.disk.create(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.disk.open(&self.path),
                created => created,
            },
        };
        match file.and_then(|file| file.write_all_at(0, tag).map(|()| file)) {
            Ok(file) => self.file = Some(file),
            // The turn is durable all the same. What is lost is that the next one to open knows it, who will sync.
            Err(error) => tracing::debug!(path = %self.path.display(), %error, "not noted what is durable"),
        }
    }
}
