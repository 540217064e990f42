//! A disk in memory that fails on command: **for tests**, ours and those of the crates above.
//!
//! [`SimulatedDisk`] behaves like a file system and remembers every operation. From its [`History`] a test
//! builds what a real disk could hold after a loss of power at any point: any seeded subset of the operations
//! that were not synced yet, writes torn at 512-byte sectors, lengths and names lost. It also injects errors
//! at the n-th call, and it can lie: report syncs that never happen.
//!
//! Everything is deterministic: the same operations and the same seed give the same image.
//!
//! ```
//! use std::{path::Path, sync::Arc};
//! use checkpoint::{Protection, Store, StoreOptions, simulated::SimulatedDisk};
//!
//! # fn main() -> Result<(), checkpoint::StoreError> {
//! let disk = SimulatedDisk::new();
//! let (directory, vat) = (Path::new("/store"), [7; 32]);
//! let store = Store::create(disk.clone(), directory, &vat, &Protection::Plain, StoreOptions::default())?;
//!
//! let mut history = disk.history();
//! history.advance(history.len());
//! let after_power_loss = history.crash(1);
//! let again = Store::open(after_power_loss, directory, &vat, &Protection::Plain, StoreOptions::default())?;
//! assert_eq!(again.position(), store.position());
//! # Ok(())
//! # }
//! ```

mod contents;
mod crash;
mod file_system;

use std::{
    collections::BTreeSet,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use self::crash::{History, Unsynced, UnsyncedChange};
use self::{
    contents::Contents,
    file_system::{FileSystem, Inode, Operation},
};
use crate::{
    disk::{Disk, DiskFile, FileAccess, LockAttempt, LockGuard},
    limits::SECTOR_BYTES,
};

/// How a call fails that was chosen to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error of the medium. A sync that fails so may have written anything, and what it has not written is
    /// never written by a later one.
    Broken,
    /// The disk is full.
    Full,
    /// The first half of a write is done, in whole sectors, and the disk is full. For other calls the same as
    /// [`Fault::Full`].
    Short,
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::Broken => io::Error::other("simulated error of the medium"),
            Self::Full | Self::Short => io::Error::new(io::ErrorKind::StorageFull, "simulated full disk"),
        }
    }
}

/// The disk. It has one folder, `/`, to begin with. See [the module](self).
pub struct SimulatedDisk {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    /// What was durable when this disk came to be, and everything that was done since.
    initial: FileSystem,
    log: Vec<Operation>,
    /// What a reader sees.
    live: FileSystem,
    locks: BTreeSet<PathBuf>,
    lock_texts: Vec<(PathBuf, String)>,
    calls: u64,
    fault: Option<(u64, Fault)>,
    lies: Option<PathBuf>,
}

impl SimulatedDisk {
    /// An empty disk with the folder `/`.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with(FileSystem::default())
    }

    /// A disk with these files, all durable.
    fn with(files: FileSystem) -> Arc<Self> {
        Self::with_cache(files.clone(), Vec::new(), files)
    }

    /// A disk on which `live` is seen, of which `initial` and the syncs in `log` are durable.
    fn with_cache(initial: FileSystem, log: Vec<Operation>, live: FileSystem) -> Arc<Self> {
        let inner = Inner {
            initial,
            log,
            live,
            locks: BTreeSet::new(),
            lock_texts: Vec::new(),
            calls: 0,
            fault: None,
            lies: None,
        };
        Arc::new(Self { inner: Arc::new(Mutex::new(inner)) })
    }

    /// How many calls there were, of any kind. Each can be made to fail.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Makes the `call`-th call from the beginning fail, once; calls count from 1.
    pub fn inject(&self, call: u64, fault: Fault) {
        self.lock().fault = Some((call, fault));
    }

    /// From now on, syncs of files and folders whose path begins with `path` succeed without making anything
    /// durable.
    pub fn lie_about_syncs(&self, path: &Path) {
        self.lock().lies = Some(path.to_owned());
    }

    /// How often files whose path begins with `path` were synced.
    #[must_use]
    pub fn syncs(&self, path: &Path) -> u64 {
        let inner = self.lock();
        let synced = |operation: &&Operation| match operation {
            Operation::Sync { path: synced, .. } => synced.starts_with(path),
            _ => false,
        };
        inner.log.iter().filter(synced).count() as u64
    }

    /// Puts a mark of the caller's into the history, such as "turn 5 was acknowledged".
    pub fn mark(&self, mark: u64) {
        self.lock().log.push(Operation::Mark(mark));
    }

    /// How many operations its history has.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.lock().log.len()
    }

    /// Everything that was done so far.
    #[must_use]
    pub fn history(&self) -> History {
        let inner = self.lock();
        History::new(inner.initial.clone(), inner.log.clone())
    }

    /// Another disk with the same files, all durable: a copy of every folder.
    #[must_use]
    pub fn copy(&self) -> Arc<Self> {
        Self::with(self.lock().live.clone())
    }

    /// The paths of all files, in order.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.lock().live.files().cloned().collect()
    }

    /// The bytes of a file; `None` if it is not there.
    #[must_use]
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        self.lock().live.contents_at(path)
    }

    /// Changes the bytes of a file, or makes it, durably and behind everybody's back: what a failing medium or
    /// an attacker does.
    pub fn replace(&self, path: &Path, contents: &[u8]) {
        let mut inner = self.lock();
        inner.forget_history();
        inner.live.replace(path, contents);
        inner.initial = inner.live.clone();
    }

    /// Changes one bit of a file, durably and behind everybody's back; bits count from the lowest one of the first
    /// byte. Nothing happens if the file is not there or is shorter.
    pub fn flip(&self, path: &Path, bit: usize) {
        let mut inner = self.lock();
        inner.forget_history();
        inner.live.flip(path, bit);
        inner.initial = inner.live.clone();
    }

    /// Removes a file, durably and behind everybody's back.
    pub fn lose(&self, path: &Path) {
        let mut inner = self.lock();
        inner.forget_history();
        inner.live.apply(&Operation::Remove { path: path.to_owned() });
        inner.initial = inner.live.clone();
    }

    /// Changes who may use a file.
    pub fn set_access(&self, path: &Path, access: FileAccess) {
        let mut inner = self.lock();
        inner.live.set_access(path, access);
        inner.initial.set_access(path, access);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn open_existing(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.lock().try_call()?;
        self.open_inode(path)
    }

    fn open_inode(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.lock().live.inode(path)?;
        Ok(Arc::new(SimulatedFile { inner: Arc::clone(&self.inner), inode, path: path.to_owned() }))
    }
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("SimulatedDisk").field("operations", &inner.log.len()).field("calls", &inner.calls).finish()
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// Counts a call, and says whether it is the one that fails.
    fn call(&mut self) -> Option<Fault> {
        self.calls += 1;
        self.fault.take_if(|(call, _)| *call == self.calls).map(|(_, fault)| fault)
    }

    /// Counts a call, and fails if it is the one that does.
    fn try_call(&mut self) -> io::Result<()> {
        self.call().map_or(Ok(()), |fault| Err(fault.error()))
    }

    /// Counts a call and does it, unless it is the one that fails.
    fn try_apply(&mut self, operation: Operation) -> io::Result<()> {
        self.try_call()?;
        self.live.check(&operation)?;
        self.live.apply(&operation);
        self.log.push(operation);
        Ok(())
    }

    fn lies_about(&self, path: &Path) -> bool {
        self.lies.as_ref().is_some_and(|lies| path.starts_with(lies))
    }

    fn forget_history(&mut self) {
        self.log.clear();
    }
}

impl Disk for SimulatedDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        {
            let mut inner = self.lock();
            let inode = inner.live.next_inode();
            inner.try_apply(Operation::Create { path: path.to_owned(), inode })?;
        }
        self.open_inode(path)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open_existing(path)
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open_existing(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.lock().try_apply(Operation::Rename { from: from.to_owned(), to: to.to_owned(), replace: true })
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.lock().try_apply(Operation::Rename { from: from.to_owned(), to: to.to_owned(), replace: false })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.lock().try_apply(Operation::Remove { path: path.to_owned() })
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut inner = self.lock();
        inner.try_call()?;
        inner.live.list(directory)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.lock().try_apply(Operation::CreateDirectory { path: path.to_owned() })
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.lies_about(path) {
            return Ok(());
        }
        inner.try_apply(Operation::SyncDirectory { path: path.to_owned() })
    }

    fn try_lock(&self, path: &Path, text: &str) -> io::Result<LockAttempt> {
        let mut inner = self.lock();
        inner.try_call()?;
        if !inner.locks.insert(path.to_owned()) {
            let held = inner.lock_texts.iter().find(|(held, _)| held == path);
            return Ok(LockAttempt::Held(held.map(|(_, text)| text.clone()).unwrap_or_default()));
        }
        inner.lock_texts.push((path.to_owned(), text.to_owned()));
        Ok(LockAttempt::Acquired(Box::new(SimulatedLock { inner: Arc::clone(&self.inner), path: path.to_owned() })))
    }

    fn try_lock_existing(&self, path: &Path) -> io::Result<LockAttempt> {
        let mut inner = self.lock();
        inner.try_call()?;
        inner.live.inode(path)?;
        if !inner.locks.insert(path.to_owned()) {
            return Ok(LockAttempt::Held(String::new()));
        }
        Ok(LockAttempt::Acquired(Box::new(SimulatedLock { inner: Arc::clone(&self.inner), path: path.to_owned() })))
    }
}

struct SimulatedLock {
    inner: Arc<Mutex<Inner>>,
    path: PathBuf,
}

impl LockGuard for SimulatedLock {}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        let mut inner = lock(&self.inner);
        inner.locks.remove(&self.path);
        inner.lock_texts.retain(|(path, _)| *path != self.path);
    }
}

impl fmt::Debug for SimulatedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimulatedLock({})", self.path.display())
    }
}

/// An open file keeps its contents whatever becomes of its name.
struct SimulatedFile {
    inner: Arc<Mutex<Inner>>,
    inode: Inode,
    path: PathBuf,
}

impl fmt::Debug for SimulatedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimulatedFile({})", self.path.display())
    }
}

impl DiskFile for SimulatedFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut inner = lock(&self.inner);
        inner.try_call()?;
        let read =
            inner.live.contents(self.inode).and_then(|contents| contents.read(usize::try_from(offset).ok()?, buffer));
        read.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = lock(&self.inner);
        let fault = inner.call();
        let written = match fault {
            None => bytes,
            Some(Fault::Short) => &bytes[..bytes.len() / 2 / SECTOR_BYTES * SECTOR_BYTES],
            Some(Fault::Broken | Fault::Full) => &[],
        };
        if !written.is_empty() {
            let operation = Operation::Write { inode: self.inode, offset, bytes: written.into() };
            inner.live.apply(&operation);
            inner.log.push(operation);
        }
        fault.map_or(Ok(()), |fault| Err(fault.error()))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        lock(&self.inner).try_apply(Operation::SetLength { inode: self.inode, length })
    }

    fn len(&self) -> io::Result<u64> {
        let mut inner = lock(&self.inner);
        inner.try_call()?;
        Ok(inner.live.contents(self.inode).map_or(0, Contents::len) as u64)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = lock(&self.inner);
        let (inode, path) = (self.inode, self.path.clone());
        if let Some(fault) = inner.call() {
            inner.log.push(Operation::FailedSync { inode });
            return Err(fault.error());
        }
        if !inner.lies_about(&path) {
            inner.log.push(Operation::Sync { inode, path });
        }
        Ok(())
    }

    fn access(&self) -> io::Result<FileAccess> {
        let mut inner = lock(&self.inner);
        inner.try_call()?;
        Ok(inner.live.access(self.inode))
    }
}
