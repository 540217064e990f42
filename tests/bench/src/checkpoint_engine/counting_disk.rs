//! A disk that counts syncs, and is otherwise the real one.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use checkpoint::{Disk, DiskFile, FileAccess, FileDisk, LockAttempt};

/// How often each file and folder was synced.
pub(super) type Syncs = BTreeMap<PathBuf, u64>;

/// The disk. Clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct CountingDisk {
    disk: FileDisk,
    syncs: Arc<Mutex<Syncs>>,
}

impl CountingDisk {
    /// All that was counted since the last time.
    pub(super) fn take(&self) -> Syncs {
        std::mem::take(&mut *self.syncs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn count(&self, path: &Path) {
        *self.syncs.lock().unwrap_or_else(PoisonError::into_inner).entry(path.to_owned()).or_default() += 1;
    }

    fn counted(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(CountingFile { file, path: path.to_owned(), disk: self.clone() })
    }
}

impl Disk for CountingDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.counted(path, self.disk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.counted(path, self.disk.open(path)?))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.counted(path, self.disk.open_to_read(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename_new(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.disk.list(directory)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.disk.create_directory(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.count(path);
        self.disk.sync_directory(path)
    }

    fn try_lock(&self, path: &Path, text: &str) -> io::Result<LockAttempt> {
        self.disk.try_lock(path, text)
    }
}

#[derive(Debug)]
struct CountingFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    disk: CountingDisk,
}

impl DiskFile for CountingFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(offset, bytes)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.count(&self.path);
        self.file.sync_data()
    }

    fn access(&self) -> io::Result<FileAccess> {
        self.file.access()
    }
}
