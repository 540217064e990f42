//! Reading every row of a base, and knowing that none is missing.

use std::collections::HashMap;

use super::{Failure, Snapshot, VatBase, contain, tally};
use crate::{
    error::{Damage, StoreError},
    keys::Keys,
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

    /// The same for the rows of one space: gives name and value of each to `visit`. What [`Self::scan`] would give is
    /// never in memory at once.
    pub(crate) fn walk_space(
        &self,
        keys: &Keys,
        vat: &VatBase,
        space: u64,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), StoreError> {
        contain(&self.path, || {
            let damaged = || StoreError::damaged(&self.path, Damage::Row);
            let first = keys.first_row_key(space);
            let mut last = first;
            last[32..].fill(0xff);
            let (mut found, mut sealed) = (tally::Sum::default(), Vec::new());
            self.each_row(&first, &last, |key, value| {
                sealed.clear();
                sealed.extend_from_slice(value);
                found.add(&keys.row_digest(key, &sealed));
                let row = self.open(keys, key, &mut sealed)?;
                // That the key is that of the name was seen to when the two were sealed together; to derive it again would
                // take as long as to open the row.
                if row.space != space {
                    return Err(damaged().into());
                }
                visit(row.name.0, row.value.0);
                Ok(())
            })?;
            let tally_key = keys.tally_key(space);
            let (first, last) = tally::bucket_range(&tally_key);
            let tallies = self.range(&first, &last)?;
            let whole = found.is_all_of(keys, &vat.buckets, &tally_key, &tallies);
            if whole { Ok(()) } else { Err(damaged().into()) }
        })
    }

    fn walk_rows(&self, keys: &Keys, vat: &VatBase, visit: &mut Visit<'_>) -> Result<(), Failure> {
        let damaged = || StoreError::damaged(&self.path, Damage::Row);
        let mut found = HashMap::<u64, tally::Sum>::new();
        let (first, last) = keys.row_keys();
        self.each_row(&first, &last, |key, sealed| {
            let (digest, mut sealed) = (keys.row_digest(key, sealed), sealed.to_vec());
            let row = self.open(keys, key, &mut sealed)?;
            if keys.row_key(row.space, row.name.0) != *key {
                return Err(damaged().into());
            }
            found.entry(row.space).or_default().add(&digest);
            visit(row.space, row.name.0, row.value.0)?;
            Ok(())
        })?;
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
