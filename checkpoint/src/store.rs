//! The store: what a vat, or a location server, keeps its state in.
//!
//! Three threads meet here. The caller's thread submits turns: it encodes them into the queue of its vat and applies
//! them to the overlay, in memory, so that they can be read at once. The **committer** takes all queues, makes
//! one frame of each, writes and syncs them together, and tells everybody; what is submitted meanwhile is the next group
//! (R4). It has a thread of its own, but a caller who waits anyway does its work. The **background** thread folds the overlay into the base and makes segments ahead of need, so that
//! neither redb nor the filling of files with zeros is ever waited for.
//!
//! The first error of a write, a sync or a read poisons the store for good (R5): every later call fails, and
//! nothing that is not durable is reported as such. Opening the store again is the only way on.

mod background;
mod committer;
mod host;
pub(crate) mod lifecycle;
mod state;
pub(crate) mod transfer;

use std::{
    collections::BTreeMap,
    fmt, mem,
    path::Path,
    sync::{Arc, MutexGuard},
    time::Duration,
};

pub use self::{
    host::HostStore,
    transfer::{Adoption, ReviseRow},
};
use self::{
    host::{Awake, Host},
    state::{Request, Shared, State, VatTag},
};
use crate::{
    base::{Snapshot, VatBase},
    disk::{Disk, LockGuard},
    error::StoreError,
    journal::Head,
    keys::Keys,
    limits,
    metrics::StoreMetrics,
    overlay::{Overlay, Rows},
    payload,
    protection::Protection,
};

/// Names a row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowKey {
    /// The kind of row; a space can be listed.
    pub space: u64,
    /// The name within the space, any bytes.
    pub name: Vec<u8>,
}

/// One row that a turn sets or removes.
#[derive(Clone, PartialEq, Eq)]
pub struct Change {
    /// The row.
    pub key: RowKey,
    /// Its new value; `None` removes it.
    pub value: Option<Vec<u8>>,
}

impl fmt::Debug for Change {
    /// Without the value, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.value.as_ref().map(Vec::len);
        f.debug_struct("Change").field("key", &self.key).field("value_bytes", &length).finish()
    }
}

/// A row of a scan: its name and its value.
pub type ScannedRow = (Vec<u8>, Vec<u8>);

/// Everything that one turn changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnDelta {
    /// The number of the turn: that of the turn before plus 1.
    pub turn: u64,
    /// The changes, in order: a later one of the same row wins.
    pub changes: Vec<Change>,
}

/// How far a store has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The last turn.
    pub turn: u64,
    /// The epoch.
    pub epoch: u64,
    /// The last durable frame of the vat.
    pub sequence: u64,
    /// The tag of that frame, which depends on all frames of the vat before it.
    pub chain_head: [u8; 16],
}

/// Is told how far a vat has come durably; see [`StoreOptions::on_durable`].
pub type OnDurable = Box<dyn Fn(Durable) + Send>;

/// Is told that a fold is done; see [`StoreOptions::on_fold`].
pub type OnFold = Box<dyn Fn() + Send + Sync>;

/// What the committer reports after each group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durable {
    /// Everything up to this turn is durable.
    Turn(u64),
    /// The store has stopped for good; nothing after the last reported turn may be shown. Reported once, and
    /// nothing after it.
    Poisoned,
}

/// How much room a store takes on its disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Lengths of the journal's segments, used or not, and of those that are kept to be used again.
    pub journal_bytes: u64,
    /// Frames in the journal that the base does not contain yet.
    pub unfolded_bytes: u64,
    /// Length of the base.
    pub base_bytes: u64,
}

/// The last fold: what opening the store would not have to replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastFold {
    /// The base has everything up to this turn.
    pub turn: u64,
    /// How long ago that was; `None`: before the store was opened.
    pub ago: Option<Duration>,
}

/// How a store behaves. The defaults are right for a vat; see [`limits`] for the reasons.
pub struct StoreOptions {
    /// Called after each group, on the thread that committed it: the store's own, or one that waits in a method of
    /// the store. It must be quick, must not call the store, and must not wait for anything that a waiting thread
    /// may hold.
    pub on_durable: Option<OnDurable>,
    /// Called after each fold, on the store's background thread: a good moment for work that is done now and then. It
    /// must be quick, and must not call the store.
    pub on_fold: Option<OnFold>,
    /// The most turns in a group, and so in the queues of all vats together; at least 1.
    pub group_turns: usize,
    /// A group, and so the queues, are closed once they have this many bytes; at least 1, at most 32 MiB.
    pub group_bytes: usize,
    /// The most vats in a group; at least 1, at most 8192.
    pub group_vats: usize,
    /// Length of the journal's segments, in bytes; 4 KiB to 64 MiB.
    pub segment_bytes: u64,
    /// Fold once the base lacks this many bytes of frames; at least 1.
    pub fold_bytes: u64,
    /// Fold this long after the first commit that the base lacks.
    pub fold_after: Duration,
    /// Where the store counts what it does.
    pub metrics: StoreMetrics,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            on_durable: None,
            on_fold: None,
            group_turns: limits::GROUP_TURNS,
            group_bytes: limits::GROUP_BYTES,
            group_vats: limits::GROUP_VATS,
            segment_bytes: limits::SEGMENT_BYTES,
            fold_bytes: limits::FOLD_BYTES,
            fold_after: limits::FOLD_AFTER,
            metrics: StoreMetrics::default(),
        }
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("on_durable", &self.on_durable.is_some())
            .field("on_fold", &self.on_fold.is_some())
            .field("group_turns", &self.group_turns)
            .field("group_bytes", &self.group_bytes)
            .field("group_vats", &self.group_vats)
            .field("segment_bytes", &self.segment_bytes)
            .field("fold_bytes", &self.fold_bytes)
            .field("fold_after", &self.fold_after)
            .finish_non_exhaustive()
    }
}

/// One vat of a store, awake and locked against every other opener. Dropping it closes it, as [`Store::close`] does.
///
/// [`Store::create`] and [`Store::open`] are for a store that has one vat; [`HostStore`] is for one that has many.
///
/// All methods can be called from any thread. Those that block say so.
pub struct Store {
    shared: Arc<Shared>,
    keys: Arc<Keys>,
    tag: VatTag,
    awake: Awake,
}

/// The lock of a store that is not open: while it is held nobody can open it. It goes with the folder when that is
/// given another name.
pub struct StoreLock {
    _held: Held,
}

/// What is known of one space.
struct Layers {
    base: Arc<Snapshot>,
    /// What the base has of the vat.
    vat: Option<Arc<VatBase>>,
    frozen: Option<Arc<Overlay>>,
    upper: Rows,
}

enum Held {
    /// The store is closed, and locked as a whole.
    Store(#[allow(dead_code)] Box<dyn LockGuard>),
    /// The store has other vats, and this one is kept awake.
    Vat(#[allow(dead_code)] Awake),
}

impl fmt::Debug for StoreLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreLock").finish_non_exhaustive()
    }
}

impl Store {
    /// Makes a new store, for one vat, in a folder that is empty or does not exist yet (its parent must), and
    /// opens it: epoch 0, turn 0. Blocks on the disk.
    ///
    /// What an earlier `create` left behind that did not finish is removed first.
    ///
    /// # Errors
    /// [`StoreError::Occupied`] if there is anything in the folder; [`StoreError::Locked`]; errors of the key
    /// file (`key.*`), of the disk, and of the random source.
    pub fn create(
        disk: Arc<dyn Disk>,
        directory: &Path,
        vat: &[u8; 32],
        protection: &Protection,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let vat = Some((*vat, Head::default()));
        let creation = lifecycle::Creation::begin(disk, directory, vat, protection, &options)?;
        Self::finish(creation, directory, options)
    }

    /// Opens an existing store: locks it, reads and verifies the journal from the last fold on, and removes
    /// the traces of a write that did not finish. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Locked`] with the holder; [`StoreError::Missing`], also for a store whose `create` did not
    /// finish; [`StoreError::Damaged`] and [`StoreError::Base`], with nothing changed; [`StoreError::Version`];
    /// [`StoreError::WrongVat`]; [`StoreError::Protection`]; errors of the key file and of the disk.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        vat: &[u8; 32],
        protection: &Protection,
        mut options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let on_durable = options.on_durable.take();
        let host = lifecycle::open(disk, directory, protection, options)?;
        Self::wake(&host, vat, on_durable).map_err(|error| match error {
            StoreError::NoSuchVat { directory, .. } => StoreError::WrongVat { path: directory },
            other => other,
        })
    }

    /// Opens the one vat of a store that was just made.
    fn finish(creation: lifecycle::Creation, directory: &Path, mut options: StoreOptions) -> Result<Self, StoreError> {
        let (vat, on_durable) = (creation.vat(), options.on_durable.take());
        let host = creation.finish(directory, options)?;
        Self::wake(&host, &vat, on_durable)
    }

    fn wake(host: &Arc<Host>, vat: &[u8; 32], on_durable: Option<OnDurable>) -> Result<Self, StoreError> {
        let keys = Arc::new(host.shared.keys.of(*vat));
        let awake = Awake::wake(host, &keys, on_durable)?;
        Ok(Self { shared: Arc::clone(&host.shared), tag: keys.vat_tag(), keys, awake })
    }

    fn create_in(host: &Arc<Host>, vat: &[u8; 32], on_durable: Option<OnDurable>) -> Result<Self, StoreError> {
        let keys = Arc::new(host.shared.keys.of(*vat));
        let awake = Awake::create(host, &keys, on_durable)?;
        Ok(Self { shared: Arc::clone(&host.shared), tag: keys.vat_tag(), keys, awake })
    }

    /// The newest submitted turn. Epoch, sequence and chain head are those of the last durable frame, since a
    /// turn has none before it is in one.
    #[must_use]
    pub fn position(&self) -> Position {
        let state = self.shared.lock();
        let vat = state.vat(&self.tag);
        Position { turn: vat.submitted, ..position(&vat.durable) }
    }

    /// The newest durable turn.
    #[must_use]
    pub fn durable(&self) -> Position {
        position(&self.shared.lock().vat(&self.tag).durable)
    }

    /// The incarnation that [`Store::begin_epoch`] last made durable; zeros in epoch 0.
    #[must_use]
    pub fn incarnation(&self) -> [u8; 16] {
        self.shared.lock().vat(&self.tag).durable.incarnation
    }

    /// The value of a row after the newest submitted turn, durable or not. Blocks on the disk for a row that is
    /// in the base only.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]; damage or a disk error in the base, which poison the store.
    pub fn get(&self, key: &RowKey) -> Result<Option<Vec<u8>>, StoreError> {
        let base = {
            let state = self.shared.lock();
            state.check()?;
            if let Some(value) = state.vat(&self.tag).changed(key.space, &key.name) {
                return Ok(value.clone());
            }
            Arc::clone(&state.base)
        };
        base.get(&self.keys, key.space, &key.name).map_err(|error| self.shared.poison(error))
    }

    /// All rows of a space after the newest submitted turn, in order of their names. Blocks on the disk.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn scan(&self, space: u64) -> Result<Vec<ScannedRow>, StoreError> {
        let Layers { base, vat, frozen, upper } = self.layers(space)?;
        let rows = match vat {
            Some(vat) => base.scan(&self.keys, &vat, space).map_err(|error| self.shared.poison(error))?,
            None => Vec::new(),
        };
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = rows.into_iter().collect();
        let frozen = frozen.as_ref().and_then(|frozen| frozen.space(space)).into_iter().flatten();
        for (name, value) in frozen.chain(&upper) {
            match value {
                Some(value) => rows.insert(name.to_vec(), value.clone()),
                None => rows.remove(&name[..]),
            };
        }
        Ok(rows.into_iter().collect())
    }

    /// Gives the name and the value of every row of a space after the newest submitted turn to `visit`, in no order that
    /// means anything: what [`Store::scan`] gives, without having all of it in memory. Before this has succeeded,
    /// nothing may be concluded from the rows: some may be missing, or older than the newest. Blocks on the disk.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn for_each_row(&self, space: u64, mut visit: impl FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
        let layers = self.layers(space)?;
        let (upper, frozen) = (&layers.upper, layers.frozen.as_ref().and_then(|frozen| frozen.space(space)));
        if let Some(vat) = &layers.vat {
            let mut unchanged = |name: &[u8], value: &[u8]| {
                if !upper.contains_key(name) && !frozen.is_some_and(|rows| rows.contains_key(name)) {
                    visit(name, value);
                }
            };
            let walked = layers.base.walk_space(&self.keys, vat, space, &mut unchanged);
            walked.map_err(|error| self.shared.poison(error))?;
        }
        let frozen = frozen.into_iter().flatten().filter(|(name, _)| !upper.contains_key(&name[..]));
        for (name, value) in frozen.chain(upper) {
            if let Some(value) = value {
                visit(name, value);
            }
        }
        Ok(())
    }

    /// All that is known of a space at one moment: a fold that ends meanwhile would move rows from one layer to another.
    fn layers(&self, space: u64) -> Result<Layers, StoreError> {
        let state = self.shared.lock();
        state.check()?;
        let vat = state.vat(&self.tag);
        let upper = vat.upper.space(space).cloned().unwrap_or_default();
        Ok(Layers { base: Arc::clone(&state.base), vat: vat.base.clone(), frozen: vat.frozen.clone(), upper })
    }

    /// Queues a turn, has the committer begin, and returns; the turn is durable once
    /// [`StoreOptions::on_durable`] or [`Store::wait_durable`] says so. Reads see it at once.
    ///
    /// The queue holds one group. When it is full, because turns come faster than the disk syncs, this waits
    /// until the committer takes it, which is when the group before is durable; and likewise while an epoch
    /// begins, and while folds are hopelessly behind ([`limits::MAX_UNFOLDED_BYTES`]).
    ///
    /// # Errors
    /// [`StoreError::TurnTooLarge`] and [`StoreError::TurnOrder`], with nothing changed;
    /// [`StoreError::Poisoned`].
    pub fn submit(&self, delta: TurnDelta) -> Result<(), StoreError> {
        let call = self.queue_locked(delta)?.call_committer();
        if call {
            self.shared.work.notify_one();
        }
        Ok(())
    }

    /// Has an idle committer begin with what is queued. Does not wait.
    pub fn start_commit(&self) {
        // Out of the lock first, which whoever is woken needs.
        let call = self.shared.lock().call_committer();
        if call {
            self.shared.work.notify_one();
        }
    }

    /// Like [`Store::submit`], but leaves an idle committer idle until [`Store::start_commit`]: for a host that
    /// runs several turns in a row. Begun with the first, the commit would make that one a group of its own, and
    /// all others would wait for two syncs. A committer that is at work takes the turn with its next group, and
    /// whoever waits (here for room, or in any other method) starts the commit.
    ///
    /// # Errors
    /// As [`Store::submit`].
    pub fn queue(&self, delta: TurnDelta) -> Result<(), StoreError> {
        self.queue_locked(delta).map(drop)
    }

    fn queue_locked(&self, delta: TurnDelta) -> Result<MutexGuard<'_, State>, StoreError> {
        let mut guard = self.shared.lock();
        loop {
            guard.check()?;
            let (full, vat) = (guard.is_full(&self.shared.limits), guard.vat(&self.tag));
            let expected = vat.submitted + 1;
            if delta.turn != expected {
                return Err(StoreError::TurnOrder { expected, found: delta.turn });
            }
            if !full && vat.request.is_none() {
                break;
            }
            // Not done here: the next turns can be encoded as soon as the committer has taken these.
            if guard.call_committer() {
                self.shared.work.notify_one();
            }
            guard = self.shared.wait_for_change(guard);
        }
        let state = &mut *guard;
        // Proof: an open vat is never taken away.
        #[allow(clippy::expect_used)]
        let vat = state.vats.get_mut(&self.tag).expect("an open vat");
        let before = vat.queue.bytes.len();
        payload::append_turn(&mut vat.queue.bytes, &delta).map_err(|bytes| StoreError::TurnTooLarge {
            turn: delta.turn,
            bytes,
            limit: limits::MAX_TURN_BYTES,
        })?;
        state.queued_turns += 1;
        state.queued_bytes += vat.queue.bytes.len() - before;
        vat.queue.turns += 1;
        vat.submitted = delta.turn;
        for change in delta.changes {
            vat.upper.set(change.key.space, change.key.name, change.value);
        }
        if !mem::replace(&mut vat.ready, true) {
            state.ready.push(self.tag);
        }
        if !mem::replace(&mut vat.touched, true) {
            state.touched.push(self.tag);
        }
        Ok(guard)
    }

    /// Waits until a submitted turn is durable. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::NotSubmitted`]; [`StoreError::Poisoned`] if it was not durable before the first error.
    pub fn wait_durable(&self, turn: u64) -> Result<(), StoreError> {
        let mut state = self.shared.lock();
        loop {
            let vat = state.vat(&self.tag);
            if vat.durable.turn >= turn {
                return Ok(());
            }
            state.check()?;
            if turn > vat.submitted {
                return Err(StoreError::NotSubmitted { turn, newest: vat.submitted });
            }
            state = self.shared.commit_or_wait(state);
        }
    }

    /// Begins a higher epoch, as a vat does when it wakes (R7): after all turns that were submitted before, and
    /// durable when this returns. `incarnation` is random. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::EpochOrder`]; [`StoreError::Poisoned`].
    pub fn begin_epoch(&self, epoch: u64, incarnation: [u8; 16]) -> Result<(), StoreError> {
        let mut state = self.shared.lock();
        while state.vat(&self.tag).request.is_some() {
            state.check()?;
            state = self.shared.wait_for_change(state);
        }
        state.check()?;
        let current = state.vat(&self.tag).durable.epoch;
        if epoch <= current {
            return Err(StoreError::EpochOrder { current, requested: epoch });
        }
        state.vat_mut(&self.tag).request = Some(Request::Epoch(epoch, incarnation));
        state.make_ready(&self.tag);
        while state.vat(&self.tag).durable.epoch < epoch {
            state.check()?;
            state = self.shared.commit_or_wait(state);
        }
        Ok(())
    }

    /// Folds everything that is submitted now into the base and waits for it. Nothing needs it: folds happen
    /// by themselves, and opening needs none. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`].
    pub fn fold(&self) -> Result<(), StoreError> {
        self.awake.host.fold()
    }

    /// How much room the store takes.
    ///
    /// # Errors
    /// When the disk does not say.
    pub fn sizes(&self) -> Result<Sizes, StoreError> {
        self.awake.host.sizes()
    }

    /// The last fold.
    #[must_use]
    pub fn last_fold(&self) -> LastFold {
        let state = self.shared.lock();
        let turn = state.vat(&self.tag).base.as_ref().map_or(0, |base| base.position.turn);
        LastFold { turn, ago: state.fold.last.map(|last| last.elapsed()) }
    }

    /// The error that has stopped the store, if one has.
    #[must_use]
    pub fn poisoned(&self) -> Option<Arc<StoreError>> {
        self.shared.lock().poison.clone()
    }

    /// Locks a store without opening it, whatever state it is in.
    ///
    /// # Errors
    /// [`StoreError::Locked`] with the holder; errors of the disk.
    pub fn lock(disk: &dyn Disk, directory: &Path) -> Result<StoreLock, StoreError> {
        Ok(StoreLock { _held: Held::Store(lifecycle::lock(disk, directory)?) })
    }

    /// Like [`Store::close`], but keeps the store locked for as long as the returned lock lives; in a store of many
    /// vats, this vat.
    ///
    /// # Errors
    /// As [`Store::close`]; then nothing is locked any more.
    pub fn close_and_keep_locked(self) -> Result<StoreLock, StoreError> {
        let Self { awake, .. } = self;
        awake.drain()?;
        if Arc::strong_count(&awake.host) > 1 {
            return Ok(StoreLock { _held: Held::Vat(awake) });
        }
        // Nobody else has the host, so nobody else can get it.
        let mut host = awake.sleep().ok_or(StoreError::Panicked { thread: "closing" })?;
        host.shut_down()?;
        let guard = host.lock.take().ok_or(StoreError::Panicked { thread: "closing" })?;
        Ok(StoreLock { _held: Held::Store(guard) })
    }

    /// Makes everything that was submitted durable and puts the vat to sleep; if no other vat of the store is open,
    /// and no [`HostStore`] is, ends the threads and unlocks the store. Does not fold. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]; an error of the base's last writes, which nothing depends on.
    pub fn close(self) -> Result<(), StoreError> {
        let Self { awake, .. } = self;
        let drained = awake.drain();
        match awake.sleep() {
            Some(mut host) => host.shut_down(),
            None => drained,
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("directory", &self.awake.host.directory)
            .field("position", &self.position())
            .finish()
    }
}

fn position(at: &Head) -> Position {
    Position { turn: at.turn, epoch: at.epoch, sequence: at.sequence, chain_head: at.chain }
}

#[cfg(test)]
mod tests;
