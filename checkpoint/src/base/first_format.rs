//! Bases of the first format, which had one vat: where it had come to and where replay began stood in one row.
//!
//! Opening one writes the same in the present form, in one transaction, and changes nothing else. There is no way back: a
//! program that knows the first form only calls the base damaged then.

use redb::{Durability, ReadableDatabase};
use serde::{Deserialize, Serialize};

use super::{Base, ROWS, VatBase, VatPosition, contain, open_value, tally::Buckets};
use crate::{
    error::{Damage, StoreError},
    frame::FrameTag,
    journal::{Head, Place},
    keys::{Keys, PLACE_KEY, POSITION_KEY},
};

/// The row under [`POSITION_KEY`].
#[derive(Serialize, Deserialize)]
struct PositionRow {
    vat: [u8; 32],
    turn: u64,
    from: Boundary,
    buckets: Buckets,
}

/// A place in the journal of the one vat.
#[derive(Serialize, Deserialize)]
struct Boundary {
    segment: u64,
    offset: u64,
    group: u64,
    sequence: u64,
    chain: FrameTag,
    turn: u64,
    epoch: u64,
    incarnation: [u8; 16],
}

impl Base {
    /// Rewrites the position, if it has the first form.
    pub(super) fn leave_first_format(&self, keys: &Keys) -> Result<(), StoreError> {
        let database = self.database()?;
        let old = contain(self.file().0, || {
            let table = database.begin_read()?.open_table(ROWS)?;
            let present = table.get(&PLACE_KEY)?.is_some();
            Ok(if present { None } else { table.get(&POSITION_KEY)?.map(|row| row.value().to_vec()) })
        })?;
        let Some(old) = old else { return Ok(()) };
        let row: PositionRow = open_value(keys, &POSITION_KEY, &old)
            .ok_or_else(|| StoreError::damaged(self.file().0, Damage::Position))?;
        let Boundary { segment, offset, group, sequence, chain, turn, epoch, incarnation } = row.from;
        let head = Head { sequence, chain, turn, epoch, incarnation };
        let vat = VatBase { position: VatPosition { vat: row.vat, turn: row.turn, head }, buckets: row.buckets };
        let place = Place { segment, offset, group, chain };

        contain(self.file().0, || {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            transaction.set_quick_repair(true);
            {
                let mut table = transaction.open_table(ROWS)?;
                table.remove(&POSITION_KEY)?;
                Self::insert_only_vat(&mut table, &keys.of(row.vat), &vat, place)?;
            }
            Ok(transaction.commit()?)
        })
    }
}
