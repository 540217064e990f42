//! The databases that the store is compared with: one transaction for each group, durable when it returns.

use std::path::Path;

use redb::{Durability, TableDefinition};
use rusqlite::{Connection, params};

use super::{turns::Turn, waiters::Database};
use crate::Failure;

const ROWS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("rows");

/// redb with its own defaults.
pub(super) struct Redb(redb::Database);

impl Redb {
    /// A new one in `folder`.
    pub(super) fn create(folder: &Path) -> Result<Self, Failure> {
        Ok(Self(redb::Database::create(folder.join("rows.redb"))?))
    }
}

impl Database for Redb {
    fn commit(&mut self, group: &[Turn]) -> Result<(), Failure> {
        let mut transaction = self.0.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut rows = transaction.open_table(ROWS)?;
            for turn in group {
                rows.insert(&turn.name[..], &turn.value[..])?;
            }
        }
        Ok(transaction.commit()?)
    }
}

/// SQLite with a write-ahead log, synced at each commit. Everything else as it comes.
pub(super) struct Sqlite(Connection);

impl Sqlite {
    /// A new one in `folder`.
    pub(super) fn create(folder: &Path) -> Result<Self, Failure> {
        let connection = Connection::open(folder.join("rows.sqlite"))?;
        let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(format!("SQLite keeps to journal mode {mode}").into());
        }
        connection.execute_batch(
            "PRAGMA synchronous = FULL;
             CREATE TABLE rows (name BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;",
        )?;
        Ok(Self(connection))
    }
}

impl Database for Sqlite {
    fn commit(&mut self, group: &[Turn]) -> Result<(), Failure> {
        let transaction = self.0.transaction()?;
        {
            let mut set = transaction.prepare_cached("INSERT OR REPLACE INTO rows (name, value) VALUES (?1, ?2)")?;
            for turn in group {
                set.execute(params![&turn.name[..], &turn.value[..]])?;
            }
        }
        Ok(transaction.commit()?)
    }
}
