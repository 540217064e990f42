//! A disk that counts syncs, and is otherwise the real one.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use checkpoint::{
    Disk, FileDisk,
    wrapped::{Behaviour, Wrapped, WrappedFile},
};

/// How often each file and folder was synced.
pub(super) type Syncs = BTreeMap<PathBuf, u64>;

/// Counts.
#[derive(Debug, Default)]
pub(super) struct Counting(Mutex<Syncs>);

/// The disk.
pub(super) type CountingDisk = Wrapped<Counting>;

pub(super) fn counting_disk() -> Arc<CountingDisk> {
    Wrapped::new(Arc::new(FileDisk), Counting::default())
}

impl Counting {
    /// All that was counted since the last time.
    pub(super) fn take(&self) -> Syncs {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn count(&self, path: &Path) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(path.to_owned()).or_default() += 1;
    }
}

impl Behaviour for Counting {
    fn sync(&self, file: &WrappedFile) -> io::Result<()> {
        self.count(&file.path);
        file.inner.sync_data()
    }

    fn sync_directory(&self, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        self.count(path);
        disk.sync_directory(path)
    }
}
