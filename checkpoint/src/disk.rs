//! The seam between a store and the machine (DESIGN §2, §8).
//!
//! Everything that a store reads or writes, redb and the key file included, goes through [`Disk`] and
//! [`DiskFile`]. So the same code runs on [`FileDisk`] and on the [simulated disk](crate::simulated), which
//! loses power, tears writes, lies and fills up on command.
//!
//! What the engine relies on, and what the simulated disk therefore withdraws at a crash:
//! * bytes are durable once [`DiskFile::sync_data`] has returned, a name once [`Disk::sync_directory`] has;
//! * before that, any subset of the aligned 512-byte sectors of a write may be there, and any subset of new,
//!   changed and removed names;
//! * once a write or a sync has failed, nothing is known about what was written since the last good sync
//!   (a retried `fsync` may succeed without having written anything), so neither is ever retried (R5).

mod file;

use std::{fmt::Debug, io, path::Path, sync::Arc};

pub use file::FileDisk;

/// A place that keeps files. All methods may block.
///
/// Errors are the operating system's. `NotFound` and `AlreadyExists` have the meaning that they have in
/// [`std::fs`]; a full disk is `StorageFull` or `QuotaExceeded`.
pub trait Disk: Send + Sync + Debug {
    /// Makes a file that must not exist yet, for its owner only (mode 0600), to read and write.
    ///
    /// # Errors
    /// `AlreadyExists`; anything else that the system says.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file to read and write.
    ///
    /// # Errors
    /// `NotFound`; anything else that the system says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file to read only.
    ///
    /// # Errors
    /// `NotFound`; anything else that the system says.
    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name in the same folder; a file that has that name already is replaced, at once.
    ///
    /// # Errors
    /// `NotFound`; anything else that the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file another name in the same folder unless a file has that name already. Of several who try
    /// at the same time exactly one succeeds.
    ///
    /// # Errors
    /// `AlreadyExists`, and the file keeps its old name; anything else that the system says.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound`; anything else that the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names in a folder, in no order. Names that are not UTF-8 are left out: the engine has none.
    ///
    /// # Errors
    /// `NotFound`; anything else that the system says.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// Makes one folder, for its owner only (mode 0700).
    ///
    /// # Errors
    /// `AlreadyExists`; anything else that the system says.
    fn create_directory(&self, path: &Path) -> io::Result<()>;

    /// Makes durable which names a folder has.
    ///
    /// # Errors
    /// What the system says.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// Tries once to take the lock file `path`, which is made if it is not there, and writes `text` into it.
    ///
    /// # Errors
    /// What the system says. That somebody else has it is not an error.
    fn try_lock(&self, path: &Path, text: &str) -> io::Result<LockAttempt>;

    /// Tries once to lock a file that is there, and leaves its contents alone. Whoever has it has written nothing for
    /// others.
    ///
    /// # Errors
    /// `NotFound`; anything else that the system says. That somebody else has it is not an error.
    fn try_lock_existing(&self, path: &Path) -> io::Result<LockAttempt>;
}

/// An open file. Offsets and lengths are in bytes.
///
/// A method may be called from several threads at once; the engine never lets two writes overlap.
pub trait DiskFile: Send + Sync + Debug {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; anything else that the system says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`; the file grows as needed.
    ///
    /// # Errors
    /// What the system says. Any part of `bytes` may have been written then.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file, or extends it with zeros.
    ///
    /// # Errors
    /// What the system says.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Length of the file.
    ///
    /// # Errors
    /// What the system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// What the system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Makes everything that was written, and the length, durable (`fdatasync`).
    ///
    /// # Errors
    /// What the system says. Never call it again on this file then.
    fn sync_data(&self) -> io::Result<()>;

    /// Who may use the file.
    ///
    /// # Errors
    /// What the system says.
    fn access(&self) -> io::Result<FileAccess>;
}

/// Who may use a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileAccess {
    /// The nine permission bits and the three special ones.
    pub mode: u32,
    /// The user id of its owner.
    pub owner: u32,
    /// Whether the owner is the user that this process acts as.
    pub own: bool,
}

/// What came of taking a lock.
#[derive(Debug)]
pub enum LockAttempt {
    /// It is ours until the guard is dropped or the process ends, however it ends.
    Acquired(Box<dyn LockGuard>),
    /// Somebody else has it, and wrote this into the file.
    Held(String),
}

/// Holds a lock until it is dropped.
pub trait LockGuard: Send + Sync + Debug {}

/// Reads a small file whole; `None` if it is longer than `limit` bytes.
pub(crate) fn read_small(file: &dyn DiskFile, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let length = file.len()?;
    let Some(length) = (length <= limit).then_some(length).and_then(|length| usize::try_from(length).ok()) else {
        return Ok(None);
    };
    let mut bytes = vec![0; length];
    file.read_at(0, &mut bytes)?;
    Ok(Some(bytes))
}
