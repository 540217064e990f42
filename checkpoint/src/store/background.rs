//! The background thread: folds the journal into the base and makes segments ahead of need (DESIGN §8).
//!
//! A fold freezes the changes so far, of all vats that have any, waits until the last turn of each among them is
//! durable, and writes them with the place in the journal in one transaction. It then reads back in a fresh read
//! transaction how far each vat has come, forgets those that sleep, shows
//! the new base to readers, drops the frozen changes, and takes the segments that are wholly contained out of the
//! journal; some of them are used again ([`Journal::make`](crate::journal::Journal::make)). A crash between any two
//! of these steps leaves a base and a journal that fit.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::state::{Mark, Shared, Spare, State, VatTag};
use crate::{
    base::{Base, VatBase, VatFold, VatPosition},
    error::{Damage, StoreError},
    journal::Place,
    keys::Keys,
    overlay::Overlay,
};

enum Task {
    /// Make the segment of this number.
    Prepare(u64),
    /// Fold, and so answer this many requests of callers.
    Fold(u64),
    /// The store is closed or has stopped.
    End,
}

/// What a fold writes, and from where on replay has the rest.
struct Frozen {
    vats: Vec<FrozenVat>,
    place: Place,
    /// How much was written to the journal up to there.
    written: u64,
}

struct FrozenVat {
    tag: VatTag,
    keys: Arc<Keys>,
    rows: Arc<Overlay>,
    position: VatPosition,
}

/// The thread: until the store is closed or poisoned. Gives the base back, to be closed.
pub(super) fn run(shared: &Shared, base: Base) -> Base {
    let work = || loop {
        let done = match shared.next_task() {
            Task::Prepare(number) => prepare(shared, number),
            Task::Fold(ticket) => fold(shared, &base, ticket),
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

fn fold(shared: &Shared, base: &Base, ticket: u64) -> Result<(), StoreError> {
    let started = Instant::now();
    let Some(frozen) = shared.wait_until_durable() else { return Ok(()) };
    let folds: Vec<VatFold<'_>> = frozen.vats.iter().map(FrozenVat::fold).collect();
    let written = base.write(&shared.keys, &folds, &frozen.place)?;
    let snapshot = base.snapshot(&shared.keys)?;
    let mut whole = snapshot.place() == frozen.place;
    for (vat, written) in frozen.vats.iter().zip(&written) {
        whole = whole && snapshot.has(&vat.keys, written)?;
    }
    if !whole {
        return Err(StoreError::damaged(base.file().0, Damage::ReadBack));
    }
    let replaced = {
        let mut state = shared.lock();
        state.fold.mark = None;
        state.take_over(&frozen, written);
        state.fold.last = Some(Instant::now());
        state.fold.completed = state.fold.completed.max(ticket);
        state.fold.first_unfolded = (state.fold.unfolded() > 0).then(Instant::now);
        mem::replace(&mut state.base, Arc::new(snapshot))
    };
    shared.changed.notify_all();
    // Outside of the lock, since it can make redb work.
    drop(replaced);
    retire_folded(shared, frozen.place.segment)?;
    shared.metrics.fold_seconds.observe(started.elapsed().as_secs_f64());
    tracing::debug!(vats = frozen.vats.len(), milliseconds = started.elapsed().as_millis(), "folded");
    if let Some(on_fold) = &shared.on_fold {
        on_fold();
    }
    Ok(())
}

impl FrozenVat {
    fn fold(&self) -> VatFold<'_> {
        VatFold { keys: &self.keys, rows: &self.rows, position: self.position }
    }
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
                Some(Duration::ZERO) => {
                    state.freeze();
                    return Task::Fold(state.fold.requested);
                }
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

    /// Waits until the turns that the fold ends with are durable; gives what to write. `None` if the store has stopped
    /// instead.
    fn wait_until_durable(&self) -> Option<Frozen> {
        let mut state = self.lock();
        loop {
            if state.poison.is_some() {
                return None;
            }
            if let Some(frozen) = state.frozen() {
                return Some(frozen);
            }
            state = self.background.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    /// Sets the changes so far aside.
    fn freeze(&mut self) {
        let mut mark = Mark::default();
        for tag in mem::take(&mut self.touched) {
            let Some(vat) = self.vats.get_mut(&tag) else { continue };
            vat.touched = false;
            vat.frozen = Some(Arc::new(mem::take(&mut vat.upper)));
            mark.waiting += usize::from(vat.durable.turn < vat.submitted);
            mark.vats.insert(tag, VatPosition { vat: vat.keys.vat(), turn: vat.submitted, head: vat.durable });
        }
        if mark.waiting == 0 {
            mark.from = Some((self.at, self.fold.written));
        }
        self.fold.mark = Some(mark);
    }

    /// What a fold writes, once all of it is durable.
    fn frozen(&self) -> Option<Frozen> {
        let mark = self.fold.mark.as_ref().filter(|mark| mark.waiting == 0)?;
        let (place, written) = mark.from?;
        let vat = |(tag, position): (&VatTag, &VatPosition)| {
            // Proof: it has frozen rows, or was touched by its last frame; either keeps it here until the fold is done.
            let vat = self.vats.get(tag)?;
            let rows = vat.frozen.clone().unwrap_or_default();
            Some(FrozenVat { tag: *tag, keys: Arc::clone(&vat.keys), rows, position: *position })
        };
        Some(Frozen { vats: mark.vats.iter().filter_map(vat).collect(), place, written })
    }

    /// Drops what the base has now.
    fn take_over(&mut self, frozen: &Frozen, written: Vec<VatBase>) {
        self.fold.folded = frozen.written;
        for (FrozenVat { tag, position, .. }, base) in frozen.vats.iter().zip(written) {
            let Some(vat) = self.vats.get_mut(tag) else { continue };
            vat.frozen = None;
            vat.base = Some(Arc::new(base));
            // The place of the base may be before its last frame. The next fold moves the place, so it has to move the
            // head as well, whether or not there is a row to fold then.
            if vat.durable.sequence != position.head.sequence {
                self.touch(tag);
            }
            self.forget_if_idle(tag);
        }
    }
}
