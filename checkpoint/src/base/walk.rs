//! Reading every row of a base, and knowing that none is missing.

use std::collections::HashMap;

use super::{Failure, Snapshot, VatBase, contain, tally};
use crate::{
    error::{Damage, StoreError},
    keys::{Keys, RowKeyBytes},
};

/// Is shown a row: its space, its name, its value.
pub(crate) type Visit<'a> = dyn FnMut(u64, &[u8], &[u8]) -> Result<(), StoreError> + 'a;

impl Snapshot {
    /// Gives every row (space, name, value) to `visit`, in no order that means anything. When this succeeds,
    /// these were all rows of the vat as of the last fold, each what was written: they add up to the
    /// [tallies](tally), and the tallies to the position. Before that, nothing may be concluded from the rows.
    pub(crate) fn walk(&self, keys: &Keys, vat: &VatBase, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        contain(&self.path, || self.walk_rows(keys, vat, visit))
    }

    fn walk_rows(&self, keys: &Keys, vat: &VatBase, visit: &mut Visit<'_>) -> Result<(), Failure> {
        let damaged = || StoreError::damaged(&self.path, Damage::Row);
        let mut found = HashMap::<u64, tally::Sum>::new();
        let (first, last) = keys.row_keys();
        for entry in self.table()?.range::<&RowKeyBytes>(&first..=&last)? {
            let (key, sealed) = entry?;
            let (key, mut sealed) = (*key.value(), sealed.value().to_vec());
            let digest = keys.row_digest(&key, &sealed);
            let row = self.open(keys, &key, &mut sealed)?;
            if keys.row_key(row.space, row.name.0) != key {
                return Err(damaged().into());
            }
            found.entry(row.space).or_default().add(&digest);
            visit(row.space, row.name.0, row.value.0)?;
        }
        let (first, last) = keys.tally_keys();
        let tallies = self.range(&first, &last)?;
        let whole = found.len() == tallies.len()
            && tally::add_up(keys, &vat.buckets, &tallies)
            && found.iter().all(|(space, sum)| {
                let key = keys.tally_key(*space);
                // In the order of the table.
                let tally = tallies.binary_search_by_key(&key, |(key, _)| *key);
                tally.is_ok_and(|index| sum.is(keys, &key, &tallies[index].1))
            });
        if whole { Ok(()) } else { Err(damaged().into()) }
    }
}
