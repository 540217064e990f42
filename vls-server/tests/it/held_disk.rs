//! A disk whose syncs a test can hold up: what is written meanwhile is not durable yet.

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex},
};

use checkpoint::{Disk, DiskFile, FileAccess, LockAttempt};

#[derive(Debug, Default)]
struct Switch {
    held: Mutex<bool>,
    changed: Condvar,
}

impl Switch {
    fn pass(&self) {
        let mut held = self.held.lock().unwrap();
        while *held {
            held = self.changed.wait(held).unwrap();
        }
    }
}

/// Holds up the syncs of a disk.
pub(crate) struct Held(Arc<Switch>);

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.held.lock().unwrap() = false;
        self.0.changed.notify_all();
    }
}

#[derive(Debug)]
pub(crate) struct HeldDisk {
    disk: Arc<dyn Disk>,
    switch: Arc<Switch>,
}

impl HeldDisk {
    pub(crate) fn over(disk: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Self { disk, switch: Arc::default() })
    }

    /// No sync returns until the guard is dropped, also by a test that fails: whoever closes a store waits for
    /// its last sync.
    pub(crate) fn hold(&self) -> Held {
        *self.switch.held.lock().unwrap() = true;
        Held(Arc::clone(&self.switch))
    }

    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(HeldFile { file, switch: Arc::clone(&self.switch) })
    }
}

impl Disk for HeldDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.create(path).map(|file| self.wrap(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.open(path).map(|file| self.wrap(file))
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
        self.disk.sync_directory(path)
    }

    fn try_lock(&self, path: &Path, text: &str) -> io::Result<LockAttempt> {
        self.disk.try_lock(path, text)
    }
}

#[derive(Debug)]
struct HeldFile {
    file: Arc<dyn DiskFile>,
    switch: Arc<Switch>,
}

impl DiskFile for HeldFile {
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
        self.switch.pass();
        self.file.sync_data()
    }

    fn access(&self) -> io::Result<FileAccess> {
        self.file.access()
    }
}
