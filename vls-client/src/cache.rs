//! Verified records kept on disk, so that a dead location server is not a dead system (DESIGN §5).
//!
//! One small file per vat in a folder of its own: the signed packet, verbatim. It is verified again whenever
//! it is read, so it needs no other check: a file that somebody changed, or that a crash cut short, is reported
//! and ignored. The highest packet is kept even after its validity has ended, because it is the high-water mark
//! as well: nothing lower is accepted as long as it is here. Files are replaced by atomic rename without a sync:
//! what a crash loses, the next lookup brings back.
//!
//! The records are public, but whom one talks to is not: the folder has mode 0700. Several processes share it;
//! a lock file keeps one from replacing a higher record of another. Nobody waits for that lock: a record that
//! cannot be kept now is kept at the next lookup.

use std::{
    cell::Cell,
    cmp::Ordering,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use schemas::{
    Coded, ErrorCode, RecordError, SignedRecord, Timestamp, VatId,
    limits::{MAX_ACCEPTED_VALUE, PACKET_HEADER},
};

use crate::limits;

const SUFFIX: &str = "record";
const LOCK: &str = "lock";
/// Longer files are not ours; they are not read.
const MAX_FILE: u64 = (PACKET_HEADER + MAX_ACCEPTED_VALUE) as u64;

/// What is wrong with the cache. Never fatal: a finder works without it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file holds no record that the vat of its name has signed. It is ignored, and replaced by the next.
    #[error("{} is damaged and was ignored: {source}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Another process is changing the cache at this moment.
    #[error("another process is changing {} at this moment", .path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
}

impl Coded for CacheError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Io { .. } | Self::Busy { .. } => ErrorCode::SystemIo,
            Self::Damaged { source, .. } => source.code(),
        }
    }

    fn next(&self) -> Option<String> {
        matches!(self, Self::Busy { .. } | Self::Damaged { .. })
            .then(|| "Nothing to do: the next lookup replaces it.".to_owned())
    }
}

/// The cache folder.
#[derive(Debug)]
pub struct RecordCache {
    directory: PathBuf,
    capacity: usize,
    /// How many files there are, as far as this process knows; counted when first needed.
    count: Cell<Option<usize>>,
}

impl RecordCache {
    /// Opens the cache in `directory`, which is made (mode 0700) if it is missing, for at most `capacity`
    /// vats ([`limits::CACHE_CAPACITY`] is a good number).
    ///
    /// # Errors
    /// [`CacheError::Io`] when the folder cannot be made, or is open to others and cannot be closed to them.
    pub fn open(directory: &Path, capacity: usize) -> Result<Self, CacheError> {
        let io = |action, source| CacheError::Io { action, path: directory.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| io("make", error))?;
        let mode = fs::metadata(directory).map_err(|error| io("look at", error))?.permissions().mode();
        if mode & 0o077 != 0 {
            let closed = fs::Permissions::from_mode(0o700);
            fs::set_permissions(directory, closed).map_err(|error| io("close to others", error))?;
        }
        Ok(Self { directory: directory.to_owned(), capacity: capacity.max(1), count: Cell::new(None) })
    }

    /// The highest record kept of a vat; it may have expired. Counts as a use at `now`.
    ///
    /// # Errors
    /// [`CacheError::Damaged`] and [`CacheError::Io`]; the caller goes on as if nothing were kept.
    pub fn get(&self, id: VatId, now: Timestamp) -> Result<Option<SignedRecord>, CacheError> {
        let path = self.path(id);
        let Some(packet) = read(&path, MAX_FILE)? else { return Ok(None) };
        match SignedRecord::verify(id, &packet) {
            Ok(record) => {
                touch(&path, now);
                Ok(Some(record))
            }
            Err(source) => Err(CacheError::Damaged { path, source }),
        }
    }

    /// Keeps a record, unless the same or a higher one is kept. Gives whether it was written.
    ///
    /// # Errors
    /// [`CacheError::Busy`], [`CacheError::Io`]. A damaged file is replaced without an error.
    pub fn put(&self, record: &SignedRecord, now: Timestamp) -> Result<bool, CacheError> {
        let _lock = self.lock()?;
        let path = self.path(record.id());
        match read(&path, MAX_FILE)? {
            None => self.make_room()?,
            Some(packet) => {
                let kept = SignedRecord::verify(record.id(), &packet);
                if kept.is_ok_and(|kept| record.compare(&kept) != Ordering::Greater) {
                    return Ok(false);
                }
            }
        }
        self.write(&path, record.packet(), now)?;
        Ok(true)
    }

    /// Replaces another file of the folder by what `change` makes of its bytes: none if it is missing, and of
    /// a file that is longer than `longest`, only the beginning. Nobody else changes it meanwhile.
    ///
    /// # Errors
    /// [`CacheError::Busy`], [`CacheError::Io`]; the file is then as it was.
    pub(crate) fn update(
        &self,
        name: &str,
        longest: u64,
        now: Timestamp,
        change: impl FnOnce(&[u8]) -> io::Result<Vec<u8>>,
    ) -> Result<(), CacheError> {
        let _lock = self.lock()?;
        let path = self.directory.join(name);
        let bytes = read(&path, longest)?.unwrap_or_default();
        let changed =
            change(&bytes).map_err(|source| CacheError::Io { action: "change", path: path.clone(), source })?;
        self.write(&path, &changed, now)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, id: VatId) -> PathBuf {
        self.directory.join(format!("{id}.{SUFFIX}"))
    }

    fn lock(&self) -> Result<File, CacheError> {
        let path = self.directory.join(LOCK);
        let open = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path);
        let file = open.map_err(|source| CacheError::Io { action: "open", path: path.clone(), source })?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(CacheError::Busy { path: self.directory.clone() }),
            Err(fs::TryLockError::Error(source)) => Err(CacheError::Io { action: "lock", path, source }),
        }
    }

    fn write(&self, path: &Path, bytes: &[u8], now: Timestamp) -> Result<(), CacheError> {
        // The lock is held, so one name for the new file is enough, and none is left over for ever.
        let new = self.directory.join("new");
        let io = |action, path: &Path, source| CacheError::Io { action, path: path.to_owned(), source };
        let open = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new);
        let mut file = open.map_err(|error| io("create", &new, error))?;
        file.write_all(bytes).map_err(|error| io("write", &new, error))?;
        file.set_modified(system_time(now)).map_err(|error| io("date", &new, error))?;
        fs::rename(&new, path).map_err(|error| io("replace", path, error))
    }

    /// Makes room for one file more: when the cache is full, an eighth of it goes, the least recently used
    /// first.
    fn make_room(&self) -> Result<(), CacheError> {
        let count = match self.count.get() {
            // Other processes add files too; being off by a few until the next listing does no harm.
            Some(count) if count < self.capacity => count,
            _ => self.evict()?,
        };
        self.count.set(Some(count + 1));
        Ok(())
    }

    /// Gives how many files stay.
    fn evict(&self) -> Result<usize, CacheError> {
        let io = |action, path: &Path, source| CacheError::Io { action, path: path.to_owned(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(|error| io("list", &self.directory, error))? {
            let path = entry.map_err(|error| io("list", &self.directory, error))?.path();
            if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
                // Without a readable date it counts as the oldest.
                let used = fs::metadata(&path).and_then(|metadata| metadata.modified());
                files.push((used.unwrap_or(SystemTime::UNIX_EPOCH), path));
            }
        }
        if files.len() < self.capacity {
            return Ok(files.len());
        }
        files.sort();
        let kept = self.capacity - (self.capacity / limits::CACHE_EVICTION_FRACTION).max(1);
        let surplus = files.len() - kept;
        for (_, path) in files.drain(..surplus) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("remove", &path, error)),
                _ => {}
            }
        }
        Ok(kept)
    }
}

/// What a file holds; of one that is longer than `longest`, which is not ours, so much that this can be seen.
pub(crate) fn read(path: &Path, longest: u64) -> Result<Option<Vec<u8>>, CacheError> {
    let io = |source| CacheError::Io { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(longest.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    Ok(Some(bytes))
}

/// Dates the file's last use, if that is not recent. Only the order of eviction depends on it, so a failure
/// (a cache on a read-only disk) is no error.
fn touch(path: &Path, now: Timestamp) {
    let now = system_time(now);
    let recent = |used: SystemTime| now.duration_since(used).is_ok_and(|age| age < limits::CACHE_TOUCH_INTERVAL);
    if fs::metadata(path).and_then(|metadata| metadata.modified()).is_ok_and(recent) {
        return;
    }
    if let Err(error) = OpenOptions::new().write(true).open(path).and_then(|file| file.set_modified(now)) {
        tracing::debug!(path = %path.display(), %error, "cannot date the use of a cached record");
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(time.as_micros())).unwrap_or(SystemTime::UNIX_EPOCH)
}
