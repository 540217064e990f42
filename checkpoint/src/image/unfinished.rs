//! A file that gets its name only once it is whole.
//!
//! Until then it is called `.<beginning of the vat's id>.<random>.unfinished`. Its writer holds a lock on it, which ends
//! with the process at the latest, and not before it is done. So who finds a file of this form and can lock it has found
//! what a crash left, however the machine has counted its processes since, and removes it.

use std::{
    fmt::Write,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::io::Errno;

use crate::{
    disk::{Disk, DiskFile, LockAttempt, LockGuard},
    error::StoreError,
    key_file,
    limits::UNFINISHED_TRIES,
    random,
};

const SUFFIX: &str = ".unfinished";
/// How much of a vat's id stands in the name, in bytes: enough that no other vat is meant.
const ID_BYTES: usize = 8;
const RANDOM_BYTES: usize = 4;

/// A file that is being written. Removed when dropped before [`Unfinished::finish`].
pub(crate) struct Unfinished<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// For as long as somebody may take the file for a left-over.
    _lock: Option<Box<dyn LockGuard>>,
    finished: bool,
}

impl<'a> Unfinished<'a> {
    /// Makes one in the folder of `path`, and removes first what others of this vat have left there.
    pub(crate) fn begin(disk: &'a dyn Disk, path: &Path, vat: &[u8; 32]) -> Result<Self, StoreError> {
        let (folder, prefix) = (key_file::parent(path), prefix(vat));
        remove_left_over(disk, folder, &prefix);
        for _ in 0..UNFINISHED_TRIES {
            let mut random = [0; RANDOM_BYTES];
            random::fill(&mut random)?;
            let path = path.with_file_name(format!("{prefix}{}{SUFFIX}", hexadecimal(&random)));
            let failed = |error: io::Error| match error.kind() {
                // The file is new, so what is missing is its folder.
                io::ErrorKind::NotFound => StoreError::Missing { path: folder.to_owned() },
                _ => StoreError::disk("create", &path, error),
            };
            let file = match disk.create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                created => created.map_err(failed)?,
            };
            // Between the two, somebody may have taken it for a left-over: then it is gone, or about to go. Once it is
            // locked and there, it stays.
            let lock = match disk.try_lock_existing(&path) {
                Ok(LockAttempt::Acquired(lock)) => Some(lock),
                Ok(LockAttempt::Held(_)) => continue,
                // Then nobody can lock anything there, and so nobody removes it.
                Err(error) if has_no_locks(&error) => None,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    let _ = disk.remove(&path);
                    return Err(StoreError::disk("lock", &path, error));
                }
            };
            match disk.open_to_read(&path) {
                Ok(_) => return Ok(Self { disk, path, file, _lock: lock, finished: false }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let _ = disk.remove(&path);
                    return Err(StoreError::disk("open", &path, error));
                }
            }
        }
        let error = io::Error::new(io::ErrorKind::AlreadyExists, "every name that was tried is taken");
        Err(StoreError::disk("create", path, error))
    }

    /// Where it is meanwhile.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }

    /// Makes it durable, and gives it its name. A file that has the name already is left alone.
    pub(crate) fn finish(mut self, path: &Path) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|e| StoreError::disk("sync", &self.path, e))?;
        self.disk.rename_new(&self.path, path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => StoreError::ImageExists { path: path.to_owned() },
            _ => StoreError::disk("rename", &self.path, error),
        })?;
        self.finished = true;
        let folder = key_file::parent(path);
        self.disk.sync_directory(folder).map_err(|e| StoreError::disk("sync", folder, e))
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // The reason is reported; what may be left, the next one removes.
            let _ = self.disk.remove(&self.path);
        }
    }
}

/// Removes files of this form that nobody is writing. What cannot be removed is left for the next time: it takes room,
/// and keeps nobody from anything.
fn remove_left_over(disk: &dyn Disk, folder: &Path, prefix: &str) {
    let Ok(names) = disk.list(folder) else { return };
    for name in names.iter().filter(|name| is_left_over(prefix, name)) {
        let path = folder.join(name);
        // The lock is held until the name is gone: whoever has just made the file finds it locked or gone.
        let removed = match disk.try_lock_existing(&path) {
            Ok(LockAttempt::Acquired(lock)) => disk.remove(&path).map(|()| drop(lock)),
            Ok(LockAttempt::Held(_)) => continue,
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => tracing::info!(path = %path.display(), "removed what an interrupted export had left"),
            Err(error) => tracing::debug!(path = %path.display(), %error, "a left-over was not removed"),
        }
    }
}

fn is_left_over(prefix: &str, name: &str) -> bool {
    let random = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(SUFFIX));
    random.is_some_and(|random| random.len() == 2 * RANDOM_BYTES && random.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether a file system, some of those on other machines, knows no locks at all.
fn has_no_locks(error: &io::Error) -> bool {
    let known = [Errno::NOLCK, Errno::NOSYS, Errno::OPNOTSUPP];
    error.raw_os_error().is_some_and(|code| known.iter().any(|errno| errno.raw_os_error() == code))
}

fn prefix(vat: &[u8; 32]) -> String {
    format!(".{}.", hexadecimal(&vat[..ID_BYTES]))
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Proof: writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
