//! A disk in front of another one that does some things differently: counts, waits, or leaves out what was asked
//! for. For tests and measurements.

use std::{
    fmt::Debug,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::disk::{Disk, DiskFile, FileAccess, LockAttempt};

/// What is done differently; by default nothing. A file goes by the path under which it was opened, also after a
/// change of name.
pub trait Behaviour: Debug + Send + Sync + 'static {
    /// Instead of [`Disk::create`].
    ///
    /// # Errors
    /// As there.
    fn create(&self, disk: &dyn Disk, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        disk.create(path)
    }

    /// Instead of [`DiskFile::write_all_at`].
    ///
    /// # Errors
    /// As there.
    fn write(&self, file: &WrappedFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
        file.inner.write_all_at(offset, bytes)
    }

    /// Instead of [`DiskFile::sync_data`].
    ///
    /// # Errors
    /// As there.
    fn sync(&self, file: &WrappedFile) -> io::Result<()> {
        file.inner.sync_data()
    }

    /// Instead of [`Disk::sync_directory`].
    ///
    /// # Errors
    /// As there.
    fn sync_directory(&self, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        disk.sync_directory(path)
    }
}

/// The disk in front.
#[derive(Debug)]
pub struct Wrapped<B> {
    disk: Arc<dyn Disk>,
    behaviour: Arc<B>,
}

/// A file as a [`Behaviour`] sees it.
#[derive(Debug)]
pub struct WrappedFile {
    /// The path under which it was opened.
    pub path: PathBuf,
    /// The file of the disk behind.
    pub inner: Arc<dyn DiskFile>,
}

#[derive(Debug)]
struct File<B> {
    opened: WrappedFile,
    behaviour: Arc<B>,
}

impl<B: Behaviour> Wrapped<B> {
    /// Stands in front of `disk`.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, behaviour: B) -> Arc<Self> {
        Arc::new(Self { disk, behaviour: Arc::new(behaviour) })
    }

    /// What it does differently.
    #[must_use]
    pub fn behaviour(&self) -> &Arc<B> {
        &self.behaviour
    }

    fn file(&self, path: &Path, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let opened = WrappedFile { path: path.to_owned(), inner };
        Arc::new(File { opened, behaviour: Arc::clone(&self.behaviour) })
    }
}

impl<B: Behaviour> Disk for Wrapped<B> {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, self.behaviour.create(self.disk.as_ref(), path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, self.disk.open(path)?))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open_to_read(path)
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
        self.behaviour.sync_directory(self.disk.as_ref(), path)
    }

    fn try_lock(&self, path: &Path, text: &str) -> io::Result<LockAttempt> {
        self.disk.try_lock(path, text)
    }

    fn try_lock_existing(&self, path: &Path) -> io::Result<LockAttempt> {
        self.disk.try_lock_existing(path)
    }
}

impl<B: Behaviour> DiskFile for File<B> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.opened.inner.read_at(offset, buffer)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.behaviour.write(&self.opened, offset, bytes)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.opened.inner.set_len(length)
    }

    fn len(&self) -> io::Result<u64> {
        self.opened.inner.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.behaviour.sync(&self.opened)
    }

    fn access(&self) -> io::Result<FileAccess> {
        self.opened.inner.access()
    }
}
