//! What a crashed store may look like, and whether it does.

use std::{ops::RangeInclusive, sync::Arc};

use checkpoint::{Store, StoreError, simulated::SimulatedDisk};

use super::life::Life;
use crate::harness::*;

/// What a crashed store may contain.
#[derive(Debug, Clone)]
pub(super) struct Allowed {
    /// Whether somebody was told that it exists.
    pub(super) created: bool,
    /// From the last turn that was acknowledged to the last one that was submitted.
    pub(super) turns: RangeInclusive<u64>,
    /// The same for epochs.
    epochs: RangeInclusive<u64>,
}

/// A crashed store that was found in order.
pub(super) struct Recovered {
    /// The turn that it has opened with.
    pub(super) turn: u64,
    /// How many operations opening it took.
    pub(super) operations: usize,
}

/// How long a recovered store goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GoOn {
    /// One more turn is made durable.
    Turn,
    /// And is there after closing and opening.
    Reopen,
    /// Enough turns to need more segments, folds, and then closing and opening.
    Long,
}

impl Allowed {
    pub(super) fn after(marks: impl Iterator<Item = u64>) -> Self {
        let (mut created, mut oldest, mut newest, mut epoch, mut requested) = (false, 0, 0, 0, 0);
        for mark in marks {
            match Mark::from_number(mark) {
                Mark::Created => created = true,
                Mark::Durable(turn) => oldest = oldest.max(turn),
                Mark::Submitted(turn) => newest = turn,
                Mark::EpochRequested(epoch) => requested = epoch,
                Mark::Epoch(begun) => epoch = begun,
            }
        }
        Self { created, turns: oldest..=newest, epochs: epoch..=requested }
    }

    /// The same after this turn was shown.
    pub(super) fn shown(&self, turn: u64) -> Self {
        Self { turns: turn..=*self.turns.end(), ..self.clone() }
    }

    /// Opens a crashed store, compares it with what it should be, and has it go on; `None` if it was never
    /// acknowledged to be there, and was not, but could be made.
    pub(super) fn check(
        &self,
        disk: &Arc<SimulatedDisk>,
        life: &Life,
        go_on: GoOn,
    ) -> Result<Option<Recovered>, String> {
        let store = match open(disk, smallest_segments()) {
            Ok(store) => store,
            Err(StoreError::Missing { .. } | StoreError::KeyMissing { .. }) if !self.created => {
                let store = create(disk, smallest_segments()).map_err(|error| format!("does not create: {error}"))?;
                going_on(store, disk, Rows::new(), go_on)?;
                return Ok(None);
            }
            Err(error) => return Err(format!("does not open: {error}")),
        };
        let operations = disk.operations();
        let position = store.position();
        if !self.turns.contains(&position.turn) || !self.epochs.contains(&position.epoch) {
            return Err(format!("is at {position:?}, allowed is {self:?}"));
        }
        if life.heads.get(&position.sequence).is_some_and(|head| *head != position.chain_head) {
            return Err(format!("has another frame {} than before", position.sequence));
        }
        let rows = contents(&store).map_err(|error| format!("does not read: {error}"))?;
        if rows != life.models[usize::try_from(position.turn).unwrap()] {
            return Err(format!("is not the state after turn {}", position.turn));
        }
        going_on(store, disk, rows, go_on)?;
        Ok(Some(Recovered { turn: position.turn, operations }))
    }
}

/// Whether a store that was recovered, and contains `rows`, takes more turns and keeps them.
fn going_on(store: Store, disk: &Arc<SimulatedDisk>, mut rows: Rows, go_on: GoOn) -> Result<(), String> {
    let failed = |error: StoreError| format!("does not go on: {error}");
    let lengths: &[usize] = if go_on == GoOn::Long { &[2_000, 700, 3_000, 5_000, 10, 1_500, 1_500] } else { &[10] };
    for (number, length) in (0u8..).zip(lengths) {
        let changes = vec![set(0, b"again", &vec![number; *length])];
        apply(&mut rows, &changes);
        durable_turn(&store, changes).map_err(failed)?;
        if go_on == GoOn::Long && number % 3 == 0 {
            store.fold().map_err(failed)?;
        }
    }
    if go_on == GoOn::Turn {
        return Ok(());
    }
    let position = store.position();
    store.close().map_err(failed)?;
    let store = open(disk, smallest_segments()).map_err(|error| format!("does not open again: {error}"))?;
    if store.position() != position || contents(&store).map_err(failed)? != rows {
        return Err("has lost a turn after it was recovered".into());
    }
    Ok(())
}
