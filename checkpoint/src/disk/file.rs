//! The real [`Disk`]: files of the operating system, private to their owner.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use super::{Disk, DiskFile, FileAccess, LockAttempt, LockGuard};
use crate::limits::MAX_LOCK_TEXT_BYTES;

const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIRECTORY: u32 = 0o700;

/// The file system of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileDisk;

impl Disk for FileDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(PRIVATE_FILE).open(path)?;
        Ok(Arc::new(OpenFile { file, for_writing: true }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(OpenFile { file, for_writing: true }))
    }

    fn open_to_read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OpenFile { file: File::open(path)?, for_writing: false }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        // A link, unlike a rename, refuses to replace, on every file system and in one step.
        fs::hard_link(from, to)?;
        fs::remove_file(from)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(PRIVATE_DIRECTORY).create(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn try_lock(&self, path: &Path, text: &str) -> io::Result<LockAttempt> {
        // Not truncated on opening: the text in it may be that of a holder.
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(PRIVATE_FILE).open(path)?;
        match file.try_lock() {
            Ok(()) => {
                // Written over, and cut only if there is more: to give back the one block that it has, and to take
                // another, costs a file system as much as a sync.
                file.write_all(text.as_bytes())?;
                if length(&file)? > text.len() as u64 {
                    file.set_len(text.len() as u64)?;
                }
                Ok(LockAttempt::Acquired(Box::new(LockedFile { _file: file })))
            }
            Err(TryLockError::WouldBlock) => {
                let mut found = Vec::new();
                file.take(MAX_LOCK_TEXT_BYTES).read_to_end(&mut found)?;
                Ok(LockAttempt::Held(String::from_utf8_lossy(&found).into_owned()))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn try_lock_existing(&self, path: &Path) -> io::Result<LockAttempt> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(LockAttempt::Acquired(Box::new(LockedFile { _file: file }))),
            Err(TryLockError::WouldBlock) => Ok(LockAttempt::Held(String::new())),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The lock belongs to the open file: it ends when this is dropped, and with the process at the latest.
#[derive(Debug)]
struct LockedFile {
    _file: File,
}

impl LockGuard for LockedFile {}

#[derive(Debug)]
struct OpenFile {
    file: File,
    /// So it is a regular file. One that is only read may be anything, such as a folder in the place of a key file.
    for_writing: bool,
}

impl DiskFile for OpenFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn len(&self) -> io::Result<u64> {
        if self.for_writing { length(&self.file) } else { Ok(self.file.metadata()?.len()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn access(&self) -> io::Result<FileAccess> {
        let metadata = self.file.metadata()?;
        let owner = metadata.uid();
        Ok(FileAccess { mode: metadata.mode() & 0o7777, owner, own: owner == rustix::process::geteuid().as_raw() })
    }
}

/// Length of a regular file, by seeking to its end, where nobody reads or writes from.
///
/// Not by asking for its metadata: that shows somebody the time of the last write, and then Linux (from 6.13 on) gives
/// the next write a time of its own instead of that of the last tick. An `fdatasync` of this file, and of others whose
/// inodes stand in the same block, may have to write that block too, which takes as long as the data itself.
fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}
