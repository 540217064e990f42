//! What the threads of a store share, behind one lock that nobody holds while the disk works.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{OnDurable, OnFold, StoreOptions, committer::Committer};
use crate::{
    base::{Snapshot, VatBase, VatPosition},
    error::StoreError,
    journal::{Head, Journal, Place, Segment},
    keys::Keys,
    limits,
    metrics::StoreMetrics,
    overlay::Overlay,
};

/// What stands for a vat ([`Keys::vat_tag`]).
pub(super) type VatTag = [u8; 16];

/// Something of each of some vats.
pub(super) type ByVat<T> = HashMap<VatTag, T, BuildHasherDefault<TagHasher>>;

/// Takes a part of the tag as its hash, since every submitted turn is looked up. A tag is pseudo-random, and nobody can
/// choose it who does not know the keys of the store; in a store of public data, its random id.
#[derive(Default)]
pub(super) struct TagHasher(u64);

impl Hasher for TagHasher {
    fn write(&mut self, tag: &[u8]) {
        // The length of the array comes first, as a number of its own.
        self.0 = tag.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte));
    }

    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Turns that wait for the committer, encoded one after the other.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) bytes: Vec<u8>,
    pub(super) turns: usize,
}

impl Queue {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.turns = 0;
    }
}

/// What a vat wants a frame for that is not one of turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// To come into being.
    Genesis,
    /// To begin this epoch, with this incarnation.
    Epoch(u64, [u8; 16]),
}

/// A vat that is awake, or of which the base does not have everything yet. Any other vat takes no memory.
pub(super) struct VatState {
    pub(super) keys: Arc<Keys>,
    /// Somebody has it open.
    pub(super) open: bool,
    /// How often it was opened: which of its openers a callback belongs to.
    pub(super) opening: u64,
    /// Not here while a group of which it is part is being committed.
    pub(super) on_durable: Option<OnDurable>,
    pub(super) queue: Queue,
    pub(super) request: Option<Request>,
    /// It is in the list of those that have something to commit.
    pub(super) ready: bool,
    /// It is in the list of those of which the base does not have everything.
    pub(super) touched: bool,
    /// The newest turn that was submitted.
    pub(super) submitted: u64,
    /// Changes since the last freeze; those that are being folded; everything older, unless there is nothing older.
    pub(super) upper: Overlay,
    pub(super) frozen: Option<Arc<Overlay>>,
    pub(super) base: Option<Arc<VatBase>>,
    /// How far it has come durably.
    pub(super) durable: Head,
}

impl VatState {
    /// A vat that has come this far, of which nothing waits.
    pub(super) fn new(keys: Arc<Keys>, durable: Head, base: Option<VatBase>) -> Self {
        Self {
            keys,
            open: false,
            opening: 0,
            on_durable: None,
            queue: Queue::default(),
            request: None,
            ready: false,
            touched: false,
            submitted: durable.turn,
            upper: Overlay::default(),
            frozen: None,
            base: base.map(Arc::new),
            durable,
        }
    }

    /// What a row was changed to since the last fold; `None` if it was not.
    pub(super) fn changed(&self, space: u64, name: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.upper.get(space, name).or_else(|| self.frozen.as_ref()?.get(space, name))
    }

    /// Whether everything that was asked for is durable.
    pub(super) fn is_settled(&self) -> bool {
        self.durable.turn == self.submitted && self.request.is_none()
    }
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

/// A fold under way: which turns it ends with, and where replay will begin once it is done.
#[derive(Default)]
pub(super) struct Mark {
    /// The vats that it is about, and how far their rows will go.
    pub(super) vats: ByVat<VatPosition>,
    /// How many of these turns are not durable yet.
    pub(super) waiting: usize,
    /// Where replay will begin, and how much was written up to there: no later turn is durable before this place. The
    /// heads of the vats are those at this place.
    pub(super) from: Option<(Place, u64)>,
}

impl Mark {
    /// Takes over how far the vats have come durably.
    pub(super) fn take_heads(&mut self, vats: &ByVat<VatState>) {
        for (tag, position) in &mut self.vats {
            position.head = vats.get(tag).map_or(position.head, |vat| vat.durable);
        }
    }
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
    pub(super) vats: ByVat<VatState>,
    /// Those that have something to commit.
    pub(super) ready: Vec<VatTag>,
    /// Those of which the base does not have everything, and no fold is under way that will change that.
    pub(super) touched: Vec<VatTag>,
    /// What is in all queues together.
    pub(super) queued_turns: usize,
    pub(super) queued_bytes: usize,
    /// Not here while somebody commits with it.
    pub(super) committer: Option<Box<Committer>>,
    /// The committer thread was called and has not come yet: to call it once more would be a system call for nothing.
    pub(super) called: bool,
    pub(super) base: Arc<Snapshot>,
    /// Where the last durable group ends.
    pub(super) at: Place,
    pub(super) poison: Option<Arc<StoreError>>,
    /// Nobody submits any more: the committer ends once the queues are empty.
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

    /// The state of a vat that somebody has open.
    pub(super) fn vat(&self, tag: &VatTag) -> &VatState {
        // Proof: an open vat is never taken away.
        #[allow(clippy::expect_used)]
        self.vats.get(tag).expect("an open vat")
    }

    /// The same, to change it.
    pub(super) fn vat_mut(&mut self, tag: &VatTag) -> &mut VatState {
        // Proof: as above.
        #[allow(clippy::expect_used)]
        self.vats.get_mut(tag).expect("an open vat")
    }

    /// Whether nobody can submit anything.
    pub(super) fn is_full(&self, limits: &Limits) -> bool {
        self.queued_turns >= limits.group_turns
            || self.queued_bytes >= limits.group_bytes
            || self.fold.unfolded() >= limits::MAX_UNFOLDED_BYTES
    }

    /// Notes that a vat has something to commit.
    pub(super) fn make_ready(&mut self, tag: &VatTag) {
        if !mem::replace(&mut self.vat_mut(tag).ready, true) {
            self.ready.push(*tag);
        }
    }

    /// Notes that the base does not have everything of a vat.
    pub(super) fn touch(&mut self, tag: &VatTag) {
        let Some(vat) = self.vats.get_mut(tag) else { return };
        if !mem::replace(&mut vat.touched, true) {
            self.touched.push(*tag);
        }
    }

    /// Forgets a vat that is asleep, if the base has everything of it.
    pub(super) fn forget_if_idle(&mut self, tag: &VatTag) {
        let idle = |vat: &VatState| !vat.open && !vat.touched && vat.frozen.is_none() && vat.is_settled();
        if self.vats.get(tag).is_some_and(idle) {
            self.vats.remove(tag);
            // What many vats have needed at a time, few do not need for ever.
            if self.vats.len() < self.vats.capacity() / 4 {
                self.vats.shrink_to_fit();
            }
        }
    }

    /// Takes all callbacks, to tell everybody the last thing that there is to tell.
    pub(super) fn take_callbacks(&mut self) -> Vec<OnDurable> {
        self.vats.values_mut().filter_map(|vat| vat.on_durable.take()).collect()
    }
}

/// The numbers of [`StoreOptions`].
pub(super) struct Limits {
    pub(super) group_turns: usize,
    pub(super) group_bytes: usize,
    pub(super) group_vats: usize,
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
            ("group_vats", options.group_vats as u64, (1..=limits::GROUP_VATS).contains(&options.group_vats)),
            ("segment_bytes", options.segment_bytes, segments.contains(&options.segment_bytes)),
            ("fold_bytes", options.fold_bytes, options.fold_bytes >= 1),
        ];
        match checks.into_iter().find(|(_, _, sensible)| !sensible) {
            Some((option, value, _)) => Err(StoreError::Option { option, value }),
            None => Ok(Self {
                group_turns: options.group_turns,
                group_bytes: options.group_bytes,
                group_vats: options.group_vats,
                segment_bytes: options.segment_bytes,
                // Where submitting waits for a fold, one must be on its way.
                fold_bytes: options.fold_bytes.min(limits::MAX_UNFOLDED_BYTES / 2),
                fold_after: options.fold_after,
            }),
        }
    }
}

pub(super) struct Shared {
    /// Those of no vat: for what belongs to the store, and to make those of each vat of.
    pub(super) keys: Keys,
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
        keys: Keys,
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
