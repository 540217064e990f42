//! The base: a redb database of sealed rows into which the journal is folded in the background (DESIGN §8).
//!
//! One table. A row's key is derived from vat, space and name ([`Keys::row_key`]), its value is the sealed
//! `{space, name, value}`; so the file shows how many rows there are and roughly how long, and no name. One
//! more row, under [`POSITION_KEY`], says up to where in the journal the rows go. It is written in the same
//! transaction as the rows, so whichever transaction a crash leaves, rows and position fit, and replaying the
//! journal from that position gives the newest state.
//!
//! redb is never on the latency path: only the background thread writes here, and readers share one snapshot
//! that each fold replaces. The snapshot also keeps redb from reusing the pages of the fold before, until the
//! new one was read back.
//!
//! redb trusts its file. Somebody who changes it can make redb return errors or panic; both are caught here
//! and become [`StoreError::Base`] or [`Damage::BasePanicked`]. Without any error it can leave rows out, or find
//! old ones. So a row cannot be forged or moved, because it is sealed to its key, vat and store; and a whole
//! space ([`Snapshot::scan`]) is checked against [tallies](tally) that go back to the position. A single
//! [`Snapshot::get`] is not: a damaged tree can hide the row from it or show an older one. Whoever has to know
//! that nothing is missing reads the space.

mod backend;
mod tally;
mod walk;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{AccessGuard, Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, TableDefinition};
use serde::{Deserialize, Serialize};

use self::tally::{Buckets, Changed, Tallied};
pub(crate) use self::walk::Visit;
use crate::{
    disk::{Disk, DiskFile},
    error::{Damage, StoreError},
    frame,
    journal::Boundary,
    keys::{Keys, POSITION_KEY, ROW_KEY_LENGTH, RowKeyBytes, SALT_LENGTH},
    limits::{BASE_CACHE_BYTES, ROW_PADDING_BYTES},
    overlay::Overlay,
    payload::{self, Bytes, Row},
    random,
    store::ScannedRow,
};

type RowTable = TableDefinition<'static, &'static RowKeyBytes, &'static [u8]>;

const ROWS: RowTable = TableDefinition::new("rows");

/// How much of the journal the rows of a base contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BasePosition {
    /// The vat.
    pub(crate) vat: [u8; 32],
    /// The rows are those after this turn.
    pub(crate) turn: u64,
    /// Where replay begins: before the first frame with a later turn.
    pub(crate) from: Boundary,
}

/// The row under [`POSITION_KEY`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PositionRow {
    position: BasePosition,
    buckets: Buckets,
}

/// The database, for the one thread that writes it.
pub(crate) struct Base {
    database: Option<Database>,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

/// One state of the base, for readers. Cheap to share.
pub(crate) struct Snapshot {
    table: Option<ReadOnlyTable<&'static RowKeyBytes, &'static [u8]>>,
    position: BasePosition,
    buckets: Buckets,
    path: PathBuf,
}

impl Base {
    /// Makes an empty base in a file that must not exist yet.
    pub(crate) fn create(
        disk: &dyn Disk,
        path: &Path,
        keys: &Keys,
        position: &BasePosition,
    ) -> Result<Self, StoreError> {
        let file = disk.create(path).map_err(|e| StoreError::disk("create", path, e))?;
        let base = Self::from_file(path, file)?;
        base.write(keys, &Overlay::default(), position)?;
        Ok(base)
    }

    /// Opens an existing base.
    pub(crate) fn open(disk: &dyn Disk, path: &Path) -> Result<Self, StoreError> {
        let file = disk.open(path).map_err(|e| StoreError::disk("open", path, e))?;
        // redb would make a new database of an empty file.
        if file.is_empty().map_err(|e| StoreError::disk("read", path, e))? {
            return Err(StoreError::damaged(path, Damage::Length { found: 0 }));
        }
        Self::from_file(path, file)
    }

    fn from_file(path: &Path, file: Arc<dyn DiskFile>) -> Result<Self, StoreError> {
        let backend = backend::Backend::new(Arc::clone(&file));
        let database =
            contain(path, || Ok(Database::builder().set_cache_size(BASE_CACHE_BYTES).create_with_backend(backend)?))?;
        Ok(Self { database: Some(database), path: path.to_owned(), file })
    }

    /// Writes changed rows and the position that they belong to in one durable transaction.
    pub(crate) fn write(&self, keys: &Keys, rows: &Overlay, position: &BasePosition) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        let mut plain = Vec::new();
        for (space, name, value) in rows.rows() {
            let key = keys.row_key(space, name);
            let sealed = match value {
                None => None,
                Some(value) => {
                    plain.clear();
                    payload::append(&mut plain, &Row { space, name: Bytes(name), value: Bytes(value) });
                    Some(seal(keys, &key, &mut plain)?)
                }
            };
            changes.push((key, space, sealed));
        }
        // In the order of the table, which is faster and tells nothing about the order of the changes.
        changes.sort_unstable_by_key(|(key, ..)| *key);

        let database = self.database()?;
        contain(&self.path, || {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            transaction.set_quick_repair(true);
            self.write_rows(keys, &mut transaction.open_table(ROWS)?, &changes, position)?;
            Ok(transaction.commit()?)
        })
    }

    /// Changes rows, the tallies of their spaces, and the position.
    fn write_rows(
        &self,
        keys: &Keys,
        table: &mut Table<'_, &'static RowKeyBytes, &'static [u8]>,
        changes: &[(RowKeyBytes, u64, Option<Vec<u8>>)],
        position: &BasePosition,
    ) -> Result<(), Failure> {
        let damaged = |damage| StoreError::damaged(&self.path, damage);
        let buckets = match table.get(&POSITION_KEY)? {
            Some(row) => open_position(keys, row.value()).ok_or_else(|| damaged(Damage::Position))?.buckets,
            None => Buckets::default(),
        };
        let mut tallied = Tallied::new(keys, buckets);
        for (key, space, sealed) in changes {
            let old = match sealed {
                Some(sealed) => table.insert(key, sealed.as_slice())?,
                None => table.remove(key)?,
            };
            let old = old.as_ref().map(AccessGuard::value);
            tallied.row(*space, &Changed { key, old, new: sealed.as_deref() });
        }
        let mut plain = Vec::new();
        for space in tallied.spaces() {
            let key = keys.tally_key(space);
            let old = table.get(&key)?.map(|row| row.value().to_vec());
            plain.clear();
            let new = match tallied.tally(space, old.as_deref()).ok_or_else(|| damaged(Damage::Row))? {
                Some(tally) => {
                    payload::append(&mut plain, &tally);
                    let sealed = seal(keys, &key, &mut plain)?;
                    table.insert(&key, sealed.as_slice())?;
                    Some(sealed)
                }
                None => {
                    table.remove(&key)?;
                    None
                }
            };
            let changed = Changed { key: &key, old: old.as_deref(), new: new.as_deref() };
            tallied.bucket(&changed).ok_or_else(|| damaged(Damage::Row))?;
        }
        plain.clear();
        payload::append(&mut plain, &PositionRow { position: *position, buckets: tallied.into_buckets() });
        table.insert(&POSITION_KEY, seal(keys, &POSITION_KEY, &mut plain)?.as_slice())?;
        Ok(())
    }

    /// The state of the base now.
    pub(crate) fn snapshot(&self, keys: &Keys) -> Result<Snapshot, StoreError> {
        let database = self.database()?;
        let damaged = || StoreError::damaged(&self.path, Damage::Position);
        let (table, row) = contain(&self.path, || {
            let table = database.begin_read()?.open_table(ROWS)?;
            let row = table.get(&POSITION_KEY)?.ok_or_else(damaged)?;
            let row = open_position(keys, row.value()).ok_or_else(damaged)?;
            Ok((table, row))
        })?;
        let PositionRow { position, buckets } = row;
        let snapshot = Snapshot { table: Some(table), position, buckets, path: self.path.clone() };
        if position.vat == keys.vat() { Ok(snapshot) } else { Err(StoreError::WrongVat { path: self.path.clone() }) }
    }

    /// The file, for its length.
    pub(crate) fn file(&self) -> (&Path, Arc<dyn DiskFile>) {
        (&self.path, Arc::clone(&self.file))
    }

    /// Closes the database. What was written is durable already.
    pub(crate) fn close(mut self) -> Result<(), StoreError> {
        match self.database.take() {
            Some(database) => contain(&self.path, || Ok(database.close()?)),
            None => Ok(()),
        }
    }

    fn database(&self) -> Result<&Database, StoreError> {
        // Only closing and dropping take it away, and nothing comes after them.
        self.database.as_ref().ok_or_else(|| StoreError::damaged(&self.path, Damage::BasePanicked))
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        // Dropping the database makes redb write, and so it can panic over a file that was tampered with.
        if let Some(database) = self.database.take() {
            let _ = contain(&self.path, || {
                drop(database);
                Ok(())
            });
        }
    }
}

impl Snapshot {
    /// The value of a row.
    pub(crate) fn get(&self, keys: &Keys, space: u64, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let key = keys.row_key(space, name);
        let Some(mut sealed) = self.read(&key)? else { return Ok(None) };
        let row = self.open(keys, &key, &mut sealed)?;
        if row.space != space || row.name != Bytes(name) {
            return Err(StoreError::damaged(&self.path, Damage::Row));
        }
        Ok(Some(row.value.0.to_vec()))
    }

    /// The names and values of all rows of a space, in no order: all that there are, as of the last fold.
    pub(crate) fn scan(&self, keys: &Keys, space: u64) -> Result<Vec<ScannedRow>, StoreError> {
        let damaged = || StoreError::damaged(&self.path, Damage::Row);
        let first = keys.first_row_key(space);
        let mut last = first;
        last[32..].fill(0xff);
        let mut rows = self.range(&first, &last)?;

        let tally_key = keys.tally_key(space);
        let (first, last) = tally::bucket_range(&tally_key);
        let tallies = self.range(&first, &last)?;
        let fits = tally::fits(keys, &self.buckets, &tally_key, &tallies, &rows);
        if !fits {
            return Err(damaged());
        }
        let open = |(key, sealed): &mut (RowKeyBytes, Vec<u8>)| {
            let row = self.open(keys, key, sealed)?;
            if row.space == space && keys.row_key(space, row.name.0) == *key {
                Ok((row.name.0.to_vec(), row.value.0.to_vec()))
            } else {
                Err(damaged())
            }
        };
        rows.iter_mut().map(open).collect()
    }

    /// How much of the journal the rows contain.
    pub(crate) fn position(&self) -> BasePosition {
        self.position
    }

    fn read(&self, key: &RowKeyBytes) -> Result<Option<Vec<u8>>, StoreError> {
        contain(&self.path, || Ok(self.table()?.get(key)?.map(|guard| guard.value().to_vec())))
    }

    fn range(&self, first: &RowKeyBytes, last: &RowKeyBytes) -> Result<Vec<(RowKeyBytes, Vec<u8>)>, StoreError> {
        contain(&self.path, || {
            let mut rows = Vec::new();
            for entry in self.table()?.range::<&RowKeyBytes>(first..=last)? {
                let (key, value) = entry?;
                rows.push((*key.value(), value.value().to_vec()));
            }
            Ok(rows)
        })
    }

    fn open<'a>(&self, keys: &Keys, key: &RowKeyBytes, sealed: &'a mut [u8]) -> Result<Row<'a>, StoreError> {
        let row = keys.open_row(key, sealed).and_then(payload::decode::<Row<'_>>);
        row.ok_or_else(|| StoreError::damaged(&self.path, Damage::Row))
    }

    fn table(&self) -> Result<&ReadOnlyTable<&'static RowKeyBytes, &'static [u8]>, Failure> {
        // Only dropping takes it away.
        self.table.as_ref().ok_or(Failure::Redb(redb::Error::DatabaseClosed))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Some(table) = self.table.take() {
            let _ = contain(&self.path, || {
                drop(table);
                Ok(())
            });
        }
    }
}

/// Pads and seals the plaintext of one row.
fn seal(keys: &Keys, key: &RowKeyBytes, plain: &mut Vec<u8>) -> Result<Vec<u8>, StoreError> {
    plain.resize(frame::pad(plain.len().next_multiple_of(ROW_PADDING_BYTES)), 0);
    let salt: [u8; SALT_LENGTH] = random::salt()?;
    Ok(keys.seal_row(key, &salt, plain))
}

fn open_position(keys: &Keys, sealed: &[u8]) -> Option<PositionRow> {
    payload::decode(keys.open_row(&POSITION_KEY, &mut sealed.to_vec())?)
}

/// What can go wrong in a piece of redb: redb's own errors, and ours in between.
enum Failure {
    Redb(redb::Error),
    Store(StoreError),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Runs a piece of redb: its errors become ours, and so do its panics.
fn contain<T>(path: &Path, action: impl FnOnce() -> Result<T, Failure>) -> Result<T, StoreError> {
    // Whatever a panic leaves behind is behind redb's own locks, which refuse afterwards; the store is
    // poisoned, and nothing of it is used again.
    match catch_unwind(AssertUnwindSafe(action)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Failure::Store(error))) => Err(error),
        Ok(Err(Failure::Redb(redb::Error::Io(error)))) => Err(StoreError::disk("use", path, error)),
        Ok(Err(Failure::Redb(error))) => Err(StoreError::Base { path: path.to_owned(), source: Arc::new(error) }),
        Err(_) => Err(StoreError::damaged(path, Damage::BasePanicked)),
    }
}

const _: () = assert!(ROW_KEY_LENGTH == 3 * 16);

#[cfg(test)]
mod tests;
