//! A disk in front of the simulated one that does some things differently: that waits, counts, or leaves out what
//! the engine asked for.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use checkpoint::{Disk, DiskFile, FileAccess, LockAttempt, simulated::SimulatedDisk};

/// What is done differently. A file goes by the path under which it was opened, also after a change of name.
pub(crate) trait Behaviour: Send + Sync + std::fmt::Debug + 'static {
    fn create(&self, disk: &SimulatedDisk, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        disk.create(path)
    }

    fn write(&self, file: &Opened, offset: u64, bytes: &[u8]) -> io::Result<()> {
        file.inner.write_all_at(offset, bytes)
    }

    fn sync(&self, file: &Opened) -> io::Result<()> {
        file.inner.sync_data()
    }

    fn sync_directory(&self, disk: &SimulatedDisk, path: &Path) -> io::Result<()> {
        disk.sync_directory(path)
    }
}

/// The disk.
#[derive(Debug)]
pub(crate) struct Wrapped<B> {
    pub(crate) disk: Arc<SimulatedDisk>,
    pub(crate) behaviour: Arc<B>,
}

/// A file of it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    pub(crate) inner: Arc<dyn DiskFile>,
}

#[derive(Debug)]
struct File<B> {
    opened: Opened,
    behaviour: Arc<B>,
}

impl<B: Behaviour> Wrapped<B> {
    pub(crate) fn new(disk: &Arc<SimulatedDisk>, behaviour: B) -> Arc<Self> {
        Arc::new(Self { disk: Arc::clone(disk), behaviour: Arc::new(behaviour) })
    }

    fn file(&self, path: &Path, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let opened = Opened { path: path.to_owned(), inner };
        Arc::new(File { opened, behaviour: Arc::clone(&self.behaviour) })
    }
}

impl<B: Behaviour> Disk for Wrapped<B> {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, self.behaviour.create(&self.disk, path)?))
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
        self.behaviour.sync_directory(&self.disk, path)
    }

    fn try_lock(&self, path: &Path, text: &str) -> io::Result<LockAttempt> {
        self.disk.try_lock(path, text)
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
