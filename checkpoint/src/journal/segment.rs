//! The files of the journal.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    disk::{Disk, DiskFile},
    error::{Damage, StoreError},
    limits::{MAX_SEGMENT_BYTES, SECTOR_BYTES},
};

const SUFFIX: &str = ".segment";
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

    /// The numbers of the segments that there are, in order.
    pub(crate) fn numbers(&self) -> Result<Vec<u64>, StoreError> {
        let names = self.disk.list(&self.directory).map_err(|e| StoreError::disk("list", &self.directory, e))?;
        let mut numbers: Vec<u64> = names
            .iter()
            .filter_map(|name| name.strip_suffix(SUFFIX))
            .filter(|digits| digits.len() == DIGITS)
            .filter_map(|digits| u64::from_str_radix(digits, 16).ok())
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Makes a segment full of zeros, durable with its name. `length` is rounded up to sectors.
    pub(crate) fn create(&self, number: u64, length: u64) -> Result<Segment, StoreError> {
        let path = self.path(number);
        let length = length.next_multiple_of(SECTOR_BYTES as u64);
        let file = self.disk.create(&path).map_err(|e| StoreError::disk("create", &path, e))?;
        let segment = Segment { number, length, path, file };
        segment.write_zeros(0, length)?;
        segment.sync()?;
        self.sync()?;
        Ok(segment)
    }

    pub(crate) fn open(&self, number: u64) -> Result<Segment, StoreError> {
        let path = self.path(number);
        let file = self.disk.open(&path).map_err(|e| StoreError::disk("open", &path, e))?;
        let length = file.len().map_err(|e| StoreError::disk("read", &path, e))?;
        Ok(Segment { number, length, path, file })
    }

    /// Removes segments for good: they do not come back after a crash.
    pub(crate) fn remove(&self, numbers: &[u64]) -> Result<(), StoreError> {
        for number in numbers {
            let path = self.path(*number);
            self.disk.remove(&path).map_err(|e| StoreError::disk("remove", &path, e))?;
        }
        if numbers.is_empty() { Ok(()) } else { self.sync() }
    }

    /// Lengths of all segments together, in bytes.
    pub(crate) fn bytes(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for number in self.numbers()? {
            match self.open(number) {
                Ok(segment) => bytes += segment.length,
                // A fold has just removed it.
                Err(StoreError::Missing { .. }) => {}
                Err(error) => return Err(error),
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

    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|e| StoreError::disk("sync", &self.path, e))
    }
}
