//! The files of the journal: how a segment comes to be full of zeros and durable, and what becomes of it when
//! a fold has made it unnecessary (see "Files" in [the module above](super)).

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    disk::{Disk, DiskFile},
    error::{Damage, StoreError},
    limits::{MAX_SEGMENT_BYTES, SECTOR_BYTES, SPARE_SEGMENTS},
};

const SUFFIX: &str = ".segment";
const SPARE_SUFFIX: &str = ".spare";
const DIGITS: usize = 16;

/// How much is written at once while a segment is filled with zeros, in bytes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The folder of the segments.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
}

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    /// In bytes; a multiple of a sector.
    pub(crate) length: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
}

impl Journal {
    pub(crate) fn new(disk: Arc<dyn Disk>, store: &Path) -> Self {
        Self { disk, directory: store.join("journal") }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:0DIGITS$x}{SUFFIX}"))
    }

    fn spare_path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:0DIGITS$x}{SPARE_SUFFIX}"))
    }

    /// The numbers of the segments that there are, in order.
    pub(crate) fn numbers(&self) -> Result<Vec<u64>, StoreError> {
        self.list(SUFFIX)
    }

    /// The numbers that the spares had when they were segments, in order.
    fn spares(&self) -> Result<Vec<u64>, StoreError> {
        self.list(SPARE_SUFFIX)
    }

    /// Whether there is neither a segment nor a spare.
    pub(crate) fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.numbers()?.is_empty() && self.spares()?.is_empty())
    }

    fn list(&self, suffix: &str) -> Result<Vec<u64>, StoreError> {
        let names = self.disk.list(&self.directory).map_err(|e| StoreError::disk("list", &self.directory, e))?;
        let mut numbers: Vec<u64> = names
            .iter()
            .filter_map(|name| name.strip_suffix(suffix))
            .filter(|digits| digits.len() == DIGITS)
            .filter_map(|digits| u64::from_str_radix(digits, 16).ok())
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Makes a segment of at least this many bytes, full of zeros and durable with its name: of a spare if there
    /// is one. Its number must not be taken. Never called by two threads at once.
    pub(crate) fn make(&self, number: u64, length: u64) -> Result<Segment, StoreError> {
        let length = length.next_multiple_of(SECTOR_BYTES as u64);
        for spare in self.spares()? {
            if let Some(segment) = self.reuse(spare, number, length)? {
                return Ok(segment);
            }
        }
        let path = self.path(number);
        let file = self.disk.create(&path).map_err(|e| StoreError::disk("create", &path, e))?;
        let segment = Segment { number, length, path, file };
        segment.fill_with_zeros()?;
        self.sync()?;
        Ok(segment)
    }

    /// Makes a segment of a spare, unless that is longer than it should be; then it is removed.
    ///
    /// The zeros are durable before the name is, so a segment never has what the spare had.
    fn reuse(&self, spare: u64, number: u64, length: u64) -> Result<Option<Segment>, StoreError> {
        let spare_path = self.spare_path(spare);
        let file = self.disk.open(&spare_path).map_err(|e| StoreError::disk("open", &spare_path, e))?;
        if file.len().map_err(|e| StoreError::disk("read", &spare_path, e))? > length {
            self.disk.remove(&spare_path).map_err(|e| StoreError::disk("remove", &spare_path, e))?;
            return Ok(None);
        }
        let mut segment = Segment { number, length, path: spare_path, file };
        segment.fill_with_zeros()?;
        let path = self.path(number);
        // A rename would replace what has the name; a link and a removal, which would not, could leave one file
        // under two names.
        if self.numbers()?.contains(&number) {
            return Err(StoreError::disk("create", &path, io::ErrorKind::AlreadyExists.into()));
        }
        self.disk.rename(&segment.path, &path).map_err(|e| StoreError::disk("rename", &segment.path, e))?;
        segment.path = path;
        self.sync()?;
        Ok(Some(segment))
    }

    pub(crate) fn open(&self, number: u64) -> Result<Segment, StoreError> {
        let path = self.path(number);
        let file = self.disk.open(&path).map_err(|e| StoreError::disk("open", &path, e))?;
        let length = file.len().map_err(|e| StoreError::disk("read", &path, e))?;
        Ok(Segment { number, length, path, file })
    }

    /// Takes segments out of the journal for good: they do not come back after a crash. The first few that are
    /// not longer than `length` become spares.
    pub(crate) fn retire(&self, numbers: &[u64], length: u64) -> Result<(), StoreError> {
        if numbers.is_empty() {
            return Ok(());
        }
        let mut spares = self.spares()?;
        for number in numbers {
            let segment = self.open(*number)?;
            // A spare of that name may be on its way to becoming a segment just now.
            if spares.len() < SPARE_SEGMENTS && !spares.contains(number) && segment.length <= length {
                let spare = self.spare_path(*number);
                self.disk.rename(&segment.path, &spare).map_err(|e| StoreError::disk("rename", &segment.path, e))?;
                spares.push(*number);
            } else {
                self.disk.remove(&segment.path).map_err(|e| StoreError::disk("remove", &segment.path, e))?;
            }
        }
        self.sync()
    }

    /// Removes everything that an unfinished creation has left.
    pub(crate) fn clear(&self) -> Result<(), StoreError> {
        let segments = self.numbers()?.into_iter().map(|number| self.path(number));
        let spares = self.spares()?.into_iter().map(|number| self.spare_path(number));
        for path in segments.chain(spares) {
            self.disk.remove(&path).map_err(|e| StoreError::disk("remove", &path, e))?;
        }
        self.sync()
    }

    /// Lengths of all segments and spares together, in bytes.
    pub(crate) fn bytes(&self) -> Result<u64, StoreError> {
        let segments = self.numbers()?.into_iter().map(|number| self.path(number));
        let spares = self.spares()?.into_iter().map(|number| self.spare_path(number));
        let mut bytes = 0;
        for path in segments.chain(spares) {
            let length = self.disk.open_to_read(&path).and_then(|file| file.len());
            match length {
                Ok(length) => bytes += length,
                // It has just got another name, or was removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::disk("read", &path, error)),
            }
        }
        Ok(bytes)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.disk.sync_directory(&self.directory).map_err(|e| StoreError::disk("sync", &self.directory, e))
    }
}

impl Segment {
    /// All bytes from `offset` on.
    pub(crate) fn read_from(&self, offset: u64) -> Result<Vec<u8>, StoreError> {
        self.read(offset, self.length)
    }

    /// The bytes from `start` to `end`.
    pub(crate) fn read(&self, start: u64, end: u64) -> Result<Vec<u8>, StoreError> {
        let impossible = || StoreError::damaged(&self.path, Damage::Length { found: self.length });
        if self.length > MAX_SEGMENT_BYTES || end > self.length {
            return Err(impossible());
        }
        let length = end.checked_sub(start).and_then(|length| usize::try_from(length).ok());
        let mut bytes = vec![0; length.ok_or_else(impossible)?];
        self.file.read_at(start, &mut bytes).map_err(|e| StoreError::disk("read", &self.path, e))?;
        Ok(bytes)
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all_at(offset, bytes).map_err(|e| StoreError::disk("write", &self.path, e))
    }

    pub(crate) fn write_zeros(&self, mut offset: u64, end: u64) -> Result<(), StoreError> {
        while offset < end {
            let length = usize::try_from(end - offset).unwrap_or(usize::MAX).min(ZEROS.len());
            self.write(offset, &ZEROS[..length])?;
            offset += length as u64;
        }
        Ok(())
    }

    /// All of it, whatever it held and however long it was, durably.
    fn fill_with_zeros(&self) -> Result<(), StoreError> {
        self.write_zeros(0, self.length)?;
        self.sync()
    }

    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|e| StoreError::disk("sync", &self.path, e))
    }
}
