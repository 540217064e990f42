//! What the threads of a store share, behind one lock that nobody holds while the disk works.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{StoreOptions, committer::Committer};
use crate::{
    base::Snapshot,
    error::StoreError,
    journal::{Boundary, Journal, Segment},
    keys::Keys,
    limits,
    metrics::StoreMetrics,
    overlay::Overlay,
};

/// Turns that wait for the committer, encoded one after the other.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) bytes: Vec<u8>,
    pub(super) turns: usize,
}

/// The segment after the current one.
pub(super) enum Spare {
    None,
    /// The background thread is to make it.
    Wanted(u64),
    /// The background thread is making it.
    Preparing,
    Ready(Segment),
}

/// A fold under way: which turn it ends with, and where replay will begin once it is done.
pub(super) struct Mark {
    pub(super) turn: u64,
    /// Before the first frame with a later turn, and how much was written up to there; known once the turn is
    /// durable.
    pub(super) from: Option<(Boundary, u64)>,
}

/// What decides when to fold.
#[derive(Default)]
pub(super) struct Fold {
    /// Folds that callers have asked for, and those that were done.
    pub(super) requested: u64,
    pub(super) completed: u64,
    pub(super) mark: Option<Mark>,
    /// Bytes of frames written since the store was opened and those it was opened with; and how many of them
    /// the base contains.
    pub(super) written: u64,
    pub(super) folded: u64,
    /// When a fold was last done by this process.
    pub(super) last: Option<Instant>,
    /// When the first frame that the base lacks was committed.
    pub(super) first_unfolded: Option<Instant>,
}

impl Fold {
    pub(super) fn unfolded(&self) -> u64 {
        self.written.saturating_sub(self.folded)
    }
}

pub(super) struct State {
    pub(super) queue: Queue,
    /// Not here while somebody commits with it.
    pub(super) committer: Option<Box<Committer>>,
    /// The committer thread was called and has not come yet: to call it once more would be a system call for nothing.
    pub(super) called: bool,
    pub(super) epoch_request: Option<(u64, [u8; 16])>,
    /// The newest turn that was submitted.
    pub(super) submitted: u64,
    /// Changes since the last freeze; those that are being folded; everything older.
    pub(super) upper: Overlay,
    pub(super) frozen: Option<Arc<Overlay>>,
    pub(super) base: Arc<Snapshot>,
    /// Where the last durable frame ends.
    pub(super) durable: Boundary,
    pub(super) poison: Option<Arc<StoreError>>,
    /// Nobody submits any more: the committer ends once the queue is empty.
    pub(super) closing: bool,
    /// The committer has ended, so the background thread can.
    pub(super) committer_ended: bool,
    pub(super) spare: Spare,
    pub(super) fold: Fold,
}

impl State {
    /// Whether the store still works.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.poison.as_ref().map_or(Ok(()), |cause| Err(StoreError::Poisoned { cause: Arc::clone(cause) }))
    }

    pub(super) fn has_room(&self, limits: &Limits) -> bool {
        self.queue.turns < limits.group_turns
            && self.queue.bytes.len() < limits.group_bytes
            && self.epoch_request.is_none()
            && self.fold.unfolded() < limits::MAX_UNFOLDED_BYTES
    }

    /// What a row was changed to since the last fold; `None` if it was not.
    pub(super) fn changed(&self, space: u64, name: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.upper.get(space, name).or_else(|| self.frozen.as_ref()?.get(space, name))
    }
}

/// The numbers of [`StoreOptions`].
pub(super) struct Limits {
    pub(super) group_turns: usize,
    pub(super) group_bytes: usize,
    pub(super) segment_bytes: u64,
    pub(super) fold_bytes: u64,
    pub(super) fold_after: std::time::Duration,
}

impl Limits {
    /// # Errors
    /// [`StoreError::Option`] names the first one that makes no sense.
    pub(super) fn of(options: &StoreOptions) -> Result<Self, StoreError> {
        let segments = limits::MIN_SEGMENT_BYTES..=limits::MAX_SEGMENT_BYTES;
        let checks = [
            ("group_turns", options.group_turns as u64, options.group_turns >= 1),
            ("group_bytes", options.group_bytes as u64, (1..=limits::MAX_GROUP_BYTES).contains(&options.group_bytes)),
            ("segment_bytes", options.segment_bytes, segments.contains(&options.segment_bytes)),
            ("fold_bytes", options.fold_bytes, options.fold_bytes >= 1),
        ];
        match checks.into_iter().find(|(_, _, sensible)| !sensible) {
            Some((option, value, _)) => Err(StoreError::Option { option, value }),
            None => Ok(Self {
                group_turns: options.group_turns,
                group_bytes: options.group_bytes,
                segment_bytes: options.segment_bytes,
                // Where submitting waits for a fold, one must be on its way.
                fold_bytes: options.fold_bytes.min(limits::MAX_UNFOLDED_BYTES / 2),
                fold_after: options.fold_after,
            }),
        }
    }
}

/// Told of folds.
pub(super) type OnFold = Box<dyn Fn(u64) + Send + Sync>;

pub(super) struct Shared {
    pub(super) keys: Arc<Keys>,
    pub(super) journal: Journal,
    pub(super) limits: Limits,
    pub(super) metrics: StoreMetrics,
    /// [`StoreOptions::on_fold`].
    pub(super) on_fold: Option<OnFold>,
    state: Mutex<State>,
    /// Something for the committer thread to do.
    pub(super) work: Condvar,
    /// Something for the background thread to do, or to go on with.
    pub(super) background: Condvar,
    /// Something that a caller or whoever commits may be waiting for.
    pub(super) changed: Condvar,
}

impl Shared {
    pub(super) fn new(
        keys: Arc<Keys>,
        journal: Journal,
        limits: Limits,
        (metrics, on_fold): (StoreMetrics, Option<OnFold>),
        state: State,
    ) -> Self {
        Self {
            keys,
            journal,
            limits,
            metrics,
            on_fold,
            state: Mutex::new(state),
            work: Condvar::new(),
            background: Condvar::new(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panics poisons the store, in a way that callers can read; the state itself is only
        // ever changed in steps that cannot panic halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait_for_change<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the store for good, unless it has stopped already (R5). Gives the error back.
    pub(super) fn poison(&self, error: StoreError) -> StoreError {
        let mut state = self.lock();
        if state.poison.is_none() {
            tracing::error!(%error, "the store stops");
            state.poison = Some(Arc::new(error.clone()));
            self.metrics.poisoned.set(1);
        }
        drop(state);
        self.work.notify_all();
        self.background.notify_all();
        self.changed.notify_all();
        error
    }
}
