//! The background thread: folds the journal into the base and makes segments ahead of need (DESIGN §8).
//!
//! A fold freezes the changes so far, waits until the last turn among them is durable, and writes them with
//! the journal position in one transaction. It then reads the position back in a fresh read transaction, shows
//! the new base to readers, drops the frozen changes, and takes the segments that are wholly contained out of the
//! journal; some of them are used again ([`Journal::make`](crate::journal::Journal::make)). A crash between any two
//! of these steps leaves a base and a journal that fit.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::state::{Mark, Shared, Spare, State};
use crate::{
    base::{Base, BasePosition},
    error::{Damage, StoreError},
    journal::Boundary,
    overlay::Overlay,
};

enum Task {
    /// Make the segment of this number.
    Prepare(u64),
    /// Fold.
    Fold(FoldTask),
    /// The store is closed or has stopped.
    End,
}

struct FoldTask {
    rows: Arc<Overlay>,
    /// The caller's requests that this fold answers.
    ticket: u64,
}

/// The thread: until the store is closed or poisoned. Gives the base back, to be closed.
pub(super) fn run(shared: &Shared, base: Base) -> Base {
    let work = || loop {
        let done = match shared.next_task() {
            Task::Prepare(number) => prepare(shared, number),
            Task::Fold(task) => fold(shared, &base, &task),
            Task::End => return,
        };
        if let Err(error) = done {
            shared.poison(error);
        }
    };
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        shared.poison(StoreError::Panicked { thread: "background" });
    }
    base
}

fn prepare(shared: &Shared, number: u64) -> Result<(), StoreError> {
    let segment = shared.journal.make(number, shared.limits.segment_bytes)?;
    shared.lock().spare = Spare::Ready(segment);
    shared.changed.notify_all();
    Ok(())
}

fn fold(shared: &Shared, base: &Base, task: &FoldTask) -> Result<(), StoreError> {
    let started = Instant::now();
    let Some((turn, from, written)) = shared.wait_until_durable() else { return Ok(()) };
    let position = BasePosition { vat: shared.keys.vat(), turn, from };
    base.write(&shared.keys, &task.rows, &position)?;
    let snapshot = base.snapshot(&shared.keys)?;
    if snapshot.position() != position {
        return Err(StoreError::damaged(base.file().0, Damage::ReadBack));
    }
    let replaced = {
        let mut state = shared.lock();
        state.frozen = None;
        state.fold.mark = None;
        state.fold.folded = written;
        state.fold.last = Some(Instant::now());
        state.fold.completed = state.fold.completed.max(task.ticket);
        state.fold.first_unfolded = (state.fold.unfolded() > 0).then(Instant::now);
        mem::replace(&mut state.base, Arc::new(snapshot))
    };
    shared.changed.notify_all();
    // Outside of the lock, since it can make redb work.
    drop(replaced);
    retire_folded(shared, from.segment)?;
    shared.metrics.fold_seconds.observe(started.elapsed().as_secs_f64());
    tracing::debug!(turn, milliseconds = started.elapsed().as_millis(), "folded");
    if let Some(on_fold) = &shared.on_fold {
        on_fold(turn);
    }
    Ok(())
}

/// Takes the segments before the one in which replay begins out of the journal.
fn retire_folded(shared: &Shared, first_needed: u64) -> Result<(), StoreError> {
    let mut numbers = shared.journal.numbers()?;
    numbers.retain(|number| *number < first_needed);
    shared.journal.retire(&numbers, shared.limits.segment_bytes)
}

impl Shared {
    fn next_task(&self) -> Task {
        let mut state = self.lock();
        loop {
            if state.poison.is_some() || state.committer_ended {
                return Task::End;
            }
            if let Spare::Wanted(number) = state.spare {
                state.spare = Spare::Preparing;
                return Task::Prepare(number);
            }
            let delay = match self.fold_delay(&state) {
                Some(Duration::ZERO) => return Task::Fold(freeze(&mut state)),
                Some(delay) => delay,
                // Long enough to be "until somebody calls".
                None => Duration::from_secs(3600),
            };
            state = self.background.wait_timeout(state, delay).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How long until a fold is due; `None` if there is nothing to fold.
    fn fold_delay(&self, state: &MutexGuard<'_, State>) -> Option<Duration> {
        let fold = &state.fold;
        if fold.requested > fold.completed || fold.unfolded() >= self.limits.fold_bytes {
            return Some(Duration::ZERO);
        }
        Some(self.limits.fold_after.saturating_sub(fold.first_unfolded?.elapsed()))
    }

    /// Waits until the turn that the fold ends with is durable; gives it, and where replay will begin. `None`
    /// if the store has stopped instead.
    fn wait_until_durable(&self) -> Option<(u64, Boundary, u64)> {
        let mut state = self.lock();
        loop {
            if state.poison.is_some() {
                return None;
            }
            if let Some(Mark { turn, from: Some((from, written)) }) = &state.fold.mark {
                return Some((*turn, *from, *written));
            }
            state = self.background.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Sets the changes so far aside.
fn freeze(state: &mut State) -> FoldTask {
    let rows = Arc::new(mem::take(&mut state.upper));
    state.frozen = Some(Arc::clone(&rows));
    let from = (state.durable.turn == state.submitted).then_some((state.durable, state.fold.written));
    state.fold.mark = Some(Mark { turn: state.submitted, from });
    FoldTask { rows, ticket: state.fold.requested }
}
