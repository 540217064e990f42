//! Tallies: how a scan knows that the base has shown it every row, and none but the newest (see
//! [the base](super)).
//!
//! redb does not check its pages when it reads them; a changed bit in a branch makes it lose rows without an
//! error. So for each space the base keeps a *tally*: how many rows there are, and the XOR of a keyed digest of
//! each. The tallies of all spaces are spread over 256 *buckets* by a byte of their derived keys, and the
//! tallies of the buckets stand in the row of the vat. The rows of all vats are spread over buckets in the same way,
//! whose tallies stand beside the place in the journal. A fold updates them with the rows, in the same
//! transaction. A scan adds up what it was shown and compares: rows with the space's tally, tallies with the
//! bucket's. A fold of a space costs one more row for it, a scan reads one in 256 of the tallies.
//!
//! The digests are pseudo-random to everybody without the root key, and the sums are sealed: nobody else can
//! choose rows whose digests cancel out. In a plain store this finds accidents only, like everything there.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    keys::{Keys, RowKeyBytes},
    payload,
};

/// How many rows there are, and the XOR of their digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Tally {
    rows: u64,
    digest: [u8; 32],
}

/// The tallies of the tallies. A bucket without any is left out.
pub(super) type Buckets = BTreeMap<u8, Tally>;

/// A row of the base before and after a change, as it is stored.
pub(super) struct Changed<'a> {
    pub(super) key: &'a RowKeyBytes,
    pub(super) old: Option<&'a [u8]>,
    pub(super) new: Option<&'a [u8]>,
}

/// What a transaction changes.
#[derive(Clone, Copy, Default)]
struct Difference {
    added: u64,
    removed: u64,
    digest: [u8; 32],
}

impl Difference {
    fn add(&mut self, keys: &Keys, changed: &Changed<'_>) {
        for sealed in [changed.old, changed.new].into_iter().flatten() {
            xor(&mut self.digest, &keys.row_digest(changed.key, sealed));
        }
        self.added += u64::from(changed.new.is_some());
        self.removed += u64::from(changed.old.is_some());
    }

    /// `None` if more rows are gone than there were: the tally is not of these rows.
    fn apply(&self, tally: &Tally) -> Option<Tally> {
        let mut digest = tally.digest;
        xor(&mut digest, &self.digest);
        Some(Tally { rows: tally.rows.checked_add(self.added)?.checked_sub(self.removed)?, digest })
    }
}

/// The tallies while a transaction changes them.
pub(super) struct Tallied<'a> {
    keys: &'a Keys,
    spaces: BTreeMap<u64, Difference>,
    buckets: Buckets,
}

impl<'a> Tallied<'a> {
    pub(super) fn new(keys: &'a Keys, buckets: Buckets) -> Self {
        Self { keys, spaces: BTreeMap::new(), buckets }
    }

    /// Takes note of one changed row of a space.
    pub(super) fn row(&mut self, space: u64, changed: &Changed<'_>) {
        self.spaces.entry(space).or_default().add(self.keys, changed);
    }

    /// The spaces that have changed.
    pub(super) fn spaces(&self) -> BTreeSet<u64> {
        self.spaces.keys().copied().collect()
    }

    /// The new tally of a space, `None` inside if it has no rows any more; `old` is the stored one. `None` if
    /// that one is damaged.
    pub(super) fn tally(&self, space: u64, old: Option<&[u8]>) -> Option<Option<Tally>> {
        let old = match old {
            Some(sealed) => open(self.keys, &self.keys.tally_key(space), sealed)?,
            None => Tally::default(),
        };
        let tally = self.spaces.get(&space)?.apply(&old)?;
        Some((tally.rows > 0).then_some(tally))
    }

    /// Takes note of one changed tally. `None` if the bucket cannot have had the old one.
    pub(super) fn bucket(&mut self, changed: &Changed<'_>) -> Option<()> {
        let bucket = self.buckets.entry(bucket_of(changed.key)).or_default();
        let mut difference = Difference::default();
        difference.add(self.keys, changed);
        *bucket = difference.apply(bucket)?;
        Some(())
    }

    pub(super) fn into_buckets(mut self) -> Buckets {
        self.buckets.retain(|_, tally| tally.rows > 0);
        self.buckets
    }
}

/// Whether these are all rows of a space, and these all tallies of its bucket.
pub(super) fn fits(
    keys: &Keys,
    buckets: &Buckets,
    tally_key: &RowKeyBytes,
    tallies: &[(RowKeyBytes, Vec<u8>)],
    rows: &[(RowKeyBytes, Vec<u8>)],
) -> bool {
    Sum(sum(keys, rows)).is_all_of(keys, buckets, tally_key, tallies)
}

/// Whether these are all rows of the bucket that this key belongs to.
pub(super) fn are_all_of(keys: &Keys, buckets: &Buckets, key: &RowKeyBytes, rows: &[(RowKeyBytes, Vec<u8>)]) -> bool {
    sum(keys, rows) == buckets.get(&bucket_of(key)).copied().unwrap_or_default()
}

/// The buckets when there is one row only.
pub(super) fn of_one(keys: &Keys, key: &RowKeyBytes, sealed: &[u8]) -> Buckets {
    Buckets::from([(bucket_of(key), sum(keys, &[(*key, sealed.to_vec())]))])
}

/// The rows of one space, added up one by one.
#[derive(Default)]
pub(super) struct Sum(Tally);

impl Sum {
    /// Adds a row, by its digest.
    pub(super) fn add(&mut self, digest: &[u8; 32]) {
        self.0.rows += 1;
        xor(&mut self.0.digest, digest);
    }

    /// Whether these are all rows of a space, and `tallies` all tallies of its bucket.
    pub(super) fn is_all_of(
        &self,
        keys: &Keys,
        buckets: &Buckets,
        tally_key: &RowKeyBytes,
        tallies: &[(RowKeyBytes, Vec<u8>)],
    ) -> bool {
        let tally = match tallies.iter().find(|(key, _)| key == tally_key) {
            Some((key, sealed)) => open(keys, key, sealed),
            None => Some(Tally::default()),
        };
        tally == Some(self.0) && are_all_of(keys, buckets, tally_key, tallies)
    }

    /// Whether these are the rows that a stored tally tells of.
    pub(super) fn is(&self, keys: &Keys, key: &RowKeyBytes, sealed: &[u8]) -> bool {
        open(keys, key, sealed) == Some(self.0)
    }
}

/// Whether these are all tallies that there are.
pub(super) fn add_up(keys: &Keys, buckets: &Buckets, tallies: &[(RowKeyBytes, Vec<u8>)]) -> bool {
    let mut sums = Buckets::new();
    for (key, sealed) in tallies {
        let sum = sums.entry(bucket_of(key)).or_default();
        sum.rows += 1;
        xor(&mut sum.digest, &keys.row_digest(key, sealed));
    }
    sums == *buckets
}

/// The first and the last key in the bucket of this one.
pub(super) fn bucket_range(key: &RowKeyBytes) -> (RowKeyBytes, RowKeyBytes) {
    let (mut first, mut last) = (*key, *key);
    first[17..].fill(0);
    last[17..].fill(0xff);
    (first, last)
}

fn bucket_of(key: &RowKeyBytes) -> u8 {
    key[16]
}

fn open(keys: &Keys, key: &RowKeyBytes, sealed: &[u8]) -> Option<Tally> {
    payload::decode(keys.open_row(key, &mut sealed.to_vec())?)
}

fn sum(keys: &Keys, rows: &[(RowKeyBytes, Vec<u8>)]) -> Tally {
    let mut digest = [0; 32];
    for (key, sealed) in rows {
        xor(&mut digest, &keys.row_digest(key, sealed));
    }
    Tally { rows: rows.len() as u64, digest }
}

fn xor(sum: &mut [u8; 32], digest: &[u8; 32]) {
    sum.iter_mut().zip(digest).for_each(|(sum, digest)| *sum ^= digest);
}
