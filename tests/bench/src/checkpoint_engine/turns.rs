//! Turns of 100 bytes, the same for all who have to make them durable.

use checkpoint::{Change, RowKey, TurnDelta};

/// What a turn writes: one row, its name included, in bytes.
pub(super) const TURN_BYTES: usize = NAME_BYTES + VALUE_BYTES;
const NAME_BYTES: usize = 8;
const VALUE_BYTES: usize = 92;

/// How many rows there are: a working set that a vat could have, and no turn finds the row of the last one in a cache.
const ROWS: u64 = 10_000;
/// Has no factor in common with [`ROWS`]: so consecutive turns change rows that are far apart, and all rows in the end.
const STRIDE: u64 = 6_151;
const SPACE: u64 = 16;

/// One turn: it sets one of [`ROWS`] rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// Its number, from 1 on.
    pub(super) number: u64,
    /// The name of the row.
    pub(super) name: [u8; NAME_BYTES],
    /// Its new value.
    pub(super) value: [u8; VALUE_BYTES],
}

impl Turn {
    /// The turn of this number.
    pub(super) fn of(number: u64) -> Self {
        let mut value = [0x5a; VALUE_BYTES];
        value[..8].copy_from_slice(&number.to_le_bytes());
        Self { number, name: (number.wrapping_mul(STRIDE) % ROWS).to_be_bytes(), value }
    }

    /// As the store takes it.
    pub(super) fn delta(&self) -> TurnDelta {
        let key = RowKey { space: SPACE, name: self.name.to_vec() };
        TurnDelta { turn: self.number, changes: vec![Change { key, value: Some(self.value.to_vec()) }] }
    }
}
