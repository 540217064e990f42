//! The base: a redb database of sealed rows into which the journal is folded in the background (DESIGN §8).
//!
//! One table, for all vats of the store. A row's key is derived from vat, space and name ([`Keys::row_key`]), its value
//! is the sealed `{space, name, value}`; so the file shows how many rows there are and roughly how long, and no name. For
//! each vat one more row ([`vat_key`]) says how far its rows go; and one for all ([`PLACE_KEY`]) says from which place on
//! the journal has what the rows lack. These are written in the same transaction as the rows, so whichever transaction a
//! crash leaves, rows and place fit, and replaying the journal from there gives the newest state of every vat.
//!
//! A vat of which there is nothing new is not touched by a fold, and needs no memory: its row says all.
//!
//! redb is never on the latency path: only the background thread writes here, and readers share one snapshot
//! that each fold replaces. The snapshot also keeps redb from reusing the pages of the fold before, until the
//! new one was read back.
//!
//! redb trusts its file. Somebody who changes it can make redb return errors or panic; both are caught here
//! and become [`StoreError::Base`] or [`Damage::BasePanicked`]. Without any error it can leave rows out, or find
//! old ones. So a row cannot be forged or moved, because it is sealed to its key, vat and store; and a whole
//! space ([`Snapshot::scan`]) is checked against [tallies](tally) that go back to the row of the vat, and the rows of all
//! vats against those of the place: so no vat can be taken back to an older fold beside the others. A single
//! [`Snapshot::get`] is not: a damaged tree can hide the row from it or show an older one. Whoever has to know
//! that nothing is missing reads the space.

mod backend;
mod first_format;
mod tally;
mod walk;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{AccessGuard, Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, TableDefinition};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::tally::{Buckets, Changed, Tallied};
pub(crate) use self::walk::Visit;
use crate::{
    disk::{Disk, DiskFile},
    error::{Damage, StoreError},
    frame,
    journal::{Head, Place},
    keys::{Keys, PLACE_KEY, ROW_KEY_LENGTH, RowKeyBytes, SALT_LENGTH, vat_key, vat_keys},
    limits::{BASE_CACHE_BYTES, ROW_PADDING_BYTES},
    overlay::Overlay,
    payload::{self, Bytes, Row},
    random,
    store::ScannedRow,
};

type RowTable = TableDefinition<'static, &'static RowKeyBytes, &'static [u8]>;

type RowsToWrite<'a> = Table<'a, &'static RowKeyBytes, &'static [u8]>;

const ROWS: RowTable = TableDefinition::new("rows");

/// How far the rows of one vat go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VatPosition {
    /// The vat.
    pub(crate) vat: [u8; 32],
    /// The rows are those after this turn.
    pub(crate) turn: u64,
    /// What its next frame in the journal, after the place of the base, follows on. That frame may begin with turns
    /// that the rows contain already.
    pub(crate) head: Head,
}

/// What a base has of one vat: the row under [`vat_key`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VatBase {
    pub(crate) position: VatPosition,
    /// Tallies of its tallies.
    buckets: Buckets,
}

/// The row under [`PLACE_KEY`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PlaceRow {
    /// Where replay begins.
    place: Place,
    /// Tallies of the rows under [`vat_key`].
    vats: Buckets,
}

/// What a fold writes of one vat.
pub(crate) struct VatFold<'a> {
    pub(crate) keys: &'a Keys,
    pub(crate) rows: &'a Overlay,
    pub(crate) position: VatPosition,
}

/// One changed row, sealed.
struct SealedChange {
    key: RowKeyBytes,
    space: u64,
    value: Option<Vec<u8>>,
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
    place: PlaceRow,
    path: PathBuf,
}

impl Base {
    /// Makes a base, in a file that must not exist yet, of what its first fold would write.
    pub(crate) fn create(
        disk: &dyn Disk,
        path: &Path,
        keys: &Keys,
        folds: &[VatFold<'_>],
        place: &Place,
    ) -> Result<Self, StoreError> {
        let file = disk.create(path).map_err(|e| StoreError::disk("create", path, e))?;
        let base = Self::from_file(path, file)?;
        base.write_from(keys, folds, place, Some(PlaceRow::default()))?;
        Ok(base)
    }

    /// Opens an existing base.
    pub(crate) fn open(disk: &dyn Disk, path: &Path, keys: &Keys) -> Result<Self, StoreError> {
        let file = disk.open(path).map_err(|e| StoreError::disk("open", path, e))?;
        // redb would make a new database of an empty file.
        if file.is_empty().map_err(|e| StoreError::disk("read", path, e))? {
            return Err(StoreError::damaged(path, Damage::Length { found: 0 }));
        }
        let base = Self::from_file(path, file)?;
        base.leave_first_format(keys)?;
        Ok(base)
    }

    fn from_file(path: &Path, file: Arc<dyn DiskFile>) -> Result<Self, StoreError> {
        let backend = backend::Backend::new(Arc::clone(&file));
        let database =
            contain(path, || Ok(Database::builder().set_cache_size(BASE_CACHE_BYTES).create_with_backend(backend)?))?;
        Ok(Self { database: Some(database), path: path.to_owned(), file })
    }

    /// Writes the changed rows of some vats, how far they go, and the place in the journal from which on all others are
    /// to be found, in one durable transaction. `keys` are those of any vat of the store. Gives what the base has of each
    /// of the vats then.
    pub(crate) fn write(&self, keys: &Keys, folds: &[VatFold<'_>], place: &Place) -> Result<Vec<VatBase>, StoreError> {
        self.write_from(keys, folds, place, None)
    }

    /// The same, onto what the base has, or in a new one onto what is given.
    fn write_from(
        &self,
        keys: &Keys,
        folds: &[VatFold<'_>],
        place: &Place,
        before: Option<PlaceRow>,
    ) -> Result<Vec<VatBase>, StoreError> {
        let changes = folds.iter().map(VatFold::seal_rows).collect::<Result<Vec<_>, _>>()?;
        let database = self.database()?;
        contain(&self.path, move || {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            transaction.set_quick_repair(true);
            let mut written = Vec::with_capacity(folds.len());
            {
                let mut table = transaction.open_table(ROWS)?;
                let before = match (before, table.get(&PLACE_KEY)?) {
                    (Some(before), None) => before,
                    (None, Some(row)) => self.open_place(keys, row.value())?,
                    _ => return Err(StoreError::damaged(&self.path, Damage::Position).into()),
                };
                let mut vats = Tallied::new(keys, before.vats);
                for (fold, changes) in folds.iter().zip(&changes) {
                    written.push(self.write_vat(&mut table, fold, changes, &mut vats)?);
                }
                let row = PlaceRow { place: *place, vats: vats.into_buckets() };
                table.insert(&PLACE_KEY, seal_value(keys, &PLACE_KEY, &row)?.as_slice())?;
            }
            transaction.commit()?;
            Ok(written)
        })
    }

    /// Changes rows of one vat, the tallies of their spaces, and how far they go.
    fn write_vat(
        &self,
        table: &mut RowsToWrite<'_>,
        fold: &VatFold<'_>,
        changes: &[SealedChange],
        vats: &mut Tallied<'_>,
    ) -> Result<VatBase, Failure> {
        let (keys, own_key) = (fold.keys, vat_key(&fold.keys.vat_tag()));
        let damaged = || StoreError::damaged(&self.path, Damage::Row);
        let old = table.get(&own_key)?.map(|row| row.value().to_vec());
        let buckets = match &old {
            Some(old) => self.open_vat(keys, &own_key, old)?.buckets,
            None => Buckets::default(),
        };
        let mut tallied = Tallied::new(keys, buckets);
        for SealedChange { key, space, value } in changes {
            let old = match value {
                Some(sealed) => table.insert(key, sealed.as_slice())?,
                None => table.remove(key)?,
            };
            let old = old.as_ref().map(AccessGuard::value);
            tallied.row(*space, &Changed { key, old, new: value.as_deref() });
        }
        for space in tallied.spaces() {
            let key = keys.tally_key(space);
            let old = table.get(&key)?.map(|row| row.value().to_vec());
            let new = match tallied.tally(space, old.as_deref()).ok_or_else(damaged)? {
                Some(tally) => {
                    let sealed = seal_value(keys, &key, &tally)?;
                    table.insert(&key, sealed.as_slice())?;
                    Some(sealed)
                }
                None => {
                    table.remove(&key)?;
                    None
                }
            };
            let changed = Changed { key: &key, old: old.as_deref(), new: new.as_deref() };
            tallied.bucket(&changed).ok_or_else(damaged)?;
        }
        let row = VatBase { position: fold.position, buckets: tallied.into_buckets() };
        let new = seal_value(keys, &own_key, &row)?;
        table.insert(&own_key, new.as_slice())?;
        let changed = Changed { key: &own_key, old: old.as_deref(), new: Some(&new) };
        vats.bucket(&changed).ok_or_else(damaged)?;
        Ok(row)
    }

    /// Puts down what there is of the first vat of a base.
    fn insert_only_vat(table: &mut RowsToWrite<'_>, keys: &Keys, vat: &VatBase, place: Place) -> Result<(), Failure> {
        let key = vat_key(&keys.vat_tag());
        let sealed = seal_value(keys, &key, vat)?;
        table.insert(&key, sealed.as_slice())?;
        let vats = tally::of_one(keys, &key, &sealed);
        table.insert(&PLACE_KEY, seal_value(keys, &PLACE_KEY, &PlaceRow { place, vats })?.as_slice())?;
        Ok(())
    }

    fn open_place(&self, keys: &Keys, sealed: &[u8]) -> Result<PlaceRow, StoreError> {
        open_value(keys, &PLACE_KEY, sealed).ok_or_else(|| StoreError::damaged(&self.path, Damage::Position))
    }

    fn open_vat(&self, keys: &Keys, key: &RowKeyBytes, sealed: &[u8]) -> Result<VatBase, StoreError> {
        open_value(keys, key, sealed).ok_or_else(|| StoreError::damaged(&self.path, Damage::Position))
    }

    /// The state of the base now. `keys` are those of any vat of the store.
    pub(crate) fn snapshot(&self, keys: &Keys) -> Result<Snapshot, StoreError> {
        let database = self.database()?;
        let (table, place) = contain(&self.path, || {
            let table = database.begin_read()?.open_table(ROWS)?;
            let row = table.get(&PLACE_KEY)?.ok_or_else(|| StoreError::damaged(&self.path, Damage::Position))?;
            let place = self.open_place(keys, row.value())?;
            Ok((table, place))
        })?;
        Ok(Snapshot { table: Some(table), place, path: self.path.clone() })
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

    /// The names and values of all rows of a space, in no order: all that there are, as of the last fold. `vat` is
    /// what this snapshot has of the vat.
    pub(crate) fn scan(&self, keys: &Keys, vat: &VatBase, space: u64) -> Result<Vec<ScannedRow>, StoreError> {
        let damaged = || StoreError::damaged(&self.path, Damage::Row);
        let first = keys.first_row_key(space);
        let mut last = first;
        last[32..].fill(0xff);
        let mut rows = self.range(&first, &last)?;

        let tally_key = keys.tally_key(space);
        let (first, last) = tally::bucket_range(&tally_key);
        let tallies = self.range(&first, &last)?;
        let fits = tally::fits(keys, &vat.buckets, &tally_key, &tallies, &rows);
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

    /// From where on the journal has what the rows lack.
    pub(crate) fn place(&self) -> Place {
        self.place.place
    }

    /// What there is of the vat with this tag; `None` if there is none. `keys` are those of any vat of the store.
    pub(crate) fn vat(&self, keys: &Keys, vat_tag: &[u8; 16]) -> Result<Option<VatBase>, StoreError> {
        let damaged = || StoreError::damaged(&self.path, Damage::Position);
        let key = vat_key(vat_tag);
        let (first, last) = tally::bucket_range(&key);
        let rows = self.range(&first, &last)?;
        if !tally::are_all_of(keys, &self.place.vats, &key, &rows) {
            return Err(damaged());
        }
        let found = rows.iter().find(|(found, _)| *found == key);
        let row = found.map(|(_, sealed)| open_value::<VatBase>(keys, &key, sealed).ok_or_else(damaged)).transpose()?;
        match row {
            Some(row) if keys.of(row.position.vat).vat_tag() != *vat_tag => Err(damaged()),
            row => Ok(row),
        }
    }

    /// Whether this is what there is of a vat.
    pub(crate) fn has(&self, keys: &Keys, vat: &VatBase) -> Result<bool, StoreError> {
        let key = vat_key(&keys.vat_tag());
        let row = self.read(&key)?;
        Ok(row.and_then(|sealed| open_value::<VatBase>(keys, &key, &sealed)).as_ref() == Some(vat))
    }

    /// All vats that there are.
    pub(crate) fn vats(&self, keys: &Keys) -> Result<Vec<[u8; 32]>, StoreError> {
        let damaged = || StoreError::damaged(&self.path, Damage::Position);
        let (first, last) = vat_keys();
        let rows = self.range(&first, &last)?;
        if !tally::add_up(keys, &self.place.vats, &rows) {
            return Err(damaged());
        }
        let vat = |(key, sealed): &(RowKeyBytes, Vec<u8>)| {
            Ok(open_value::<VatBase>(keys, key, sealed).ok_or_else(damaged)?.position.vat)
        };
        rows.iter().map(vat).collect()
    }

    fn read(&self, key: &RowKeyBytes) -> Result<Option<Vec<u8>>, StoreError> {
        contain(&self.path, || Ok(self.table()?.get(key)?.map(|guard| guard.value().to_vec())))
    }

    fn range(&self, first: &RowKeyBytes, last: &RowKeyBytes) -> Result<Vec<(RowKeyBytes, Vec<u8>)>, StoreError> {
        contain(&self.path, || {
            let mut rows = Vec::new();
            self.each_row(first, last, |key, sealed| {
                rows.push((*key, sealed.to_vec()));
                Ok(())
            })?;
            Ok(rows)
        })
    }

    /// Gives every row from `first` to `last` to `visit`, in order.
    ///
    /// redb finds a row by the keys in its branches, but shows rows as they stand in its leaves. Where a branch was changed,
    /// a fold does not find the old row, and puts the new one beside it: both would be counted. So one key twice, or
    /// out of order, is damage.
    fn each_row(
        &self,
        first: &RowKeyBytes,
        last: &RowKeyBytes,
        mut visit: impl FnMut(&RowKeyBytes, &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut before = None;
        for entry in self.table()?.range::<&RowKeyBytes>(first..=last)? {
            let (key, sealed) = entry?;
            let key = *key.value();
            if before.replace(key).is_some_and(|before| before >= key) {
                return Err(StoreError::damaged(&self.path, Damage::Row).into());
            }
            visit(&key, sealed.value())?;
        }
        Ok(())
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

impl VatFold<'_> {
    fn seal_rows(&self) -> Result<Vec<SealedChange>, StoreError> {
        let mut changes = Vec::new();
        let mut plain = Vec::new();
        for (space, name, value) in self.rows.rows() {
            let key = self.keys.row_key(space, name);
            let value = match value {
                None => None,
                Some(value) => {
                    plain.clear();
                    payload::append(&mut plain, &Row { space, name: Bytes(name), value: Bytes(value) });
                    Some(seal(self.keys, &key, &mut plain)?)
                }
            };
            changes.push(SealedChange { key, space, value });
        }
        // In the order of the table, which is faster and tells nothing about the order of the changes.
        changes.sort_unstable_by_key(|change| change.key);
        Ok(changes)
    }
}

/// Pads and seals the plaintext of one row.
fn seal(keys: &Keys, key: &RowKeyBytes, plain: &mut Vec<u8>) -> Result<Vec<u8>, StoreError> {
    plain.resize(frame::pad(plain.len().next_multiple_of(ROW_PADDING_BYTES)), 0);
    let salt: [u8; SALT_LENGTH] = random::salt()?;
    Ok(keys.seal_row(key, &salt, plain))
}

/// Seals one of the base's own rows.
fn seal_value<T: Serialize>(keys: &Keys, key: &RowKeyBytes, value: &T) -> Result<Vec<u8>, StoreError> {
    let mut plain = Vec::new();
    payload::append(&mut plain, value);
    seal(keys, key, &mut plain)
}

fn open_value<T: DeserializeOwned>(keys: &Keys, key: &RowKeyBytes, sealed: &[u8]) -> Option<T> {
    payload::decode(keys.open_row(key, &mut sealed.to_vec())?)
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
