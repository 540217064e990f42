//! What the tests share: small stores on simulated disks, random turns, and a model to compare with.

use std::{
    cell::Cell,
    collections::BTreeMap,
    panic,
    path::Path,
    sync::{
        Arc, Once,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use checkpoint::{
    Change, Disk, Durable, Protection, RowKey, Store, StoreError, StoreOptions, TurnDelta, limits::MIN_SEGMENT_BYTES,
    simulated::SimulatedDisk,
};

pub(crate) const VAT: [u8; 32] = [7; 32];
pub(crate) const SPACES: u64 = 3;
pub(crate) const BASE: &str = "/store/base.redb";

/// All rows, by space and name.
pub(crate) type Rows = BTreeMap<(u64, Vec<u8>), Vec<u8>>;

pub(crate) fn directory() -> &'static Path {
    Path::new("/store")
}

pub(crate) fn sealed() -> Protection {
    Protection::KeyFile("/key".into())
}

/// Short segments, and no fold that a test does not ask for.
pub(crate) fn no_folds() -> StoreOptions {
    StoreOptions {
        segment_bytes: 8 << 10,
        fold_bytes: u64::MAX,
        fold_after: Duration::from_secs(1 << 30),
        ..StoreOptions::default()
    }
}

/// The shortest segments that there are, and no fold that a test does not ask for.
pub(crate) fn smallest_segments() -> StoreOptions {
    StoreOptions { segment_bytes: MIN_SEGMENT_BYTES, ..no_folds() }
}

/// Segments that these tests do not fill.
pub(crate) fn large_segments() -> StoreOptions {
    StoreOptions { segment_bytes: 1 << 20, ..no_folds() }
}

/// Folds whenever a few frames have been written.
pub(crate) fn many_folds() -> StoreOptions {
    StoreOptions { fold_bytes: 10 << 10, ..no_folds() }
}

pub(crate) fn create<D: Disk + 'static>(disk: &Arc<D>, options: StoreOptions) -> Result<Store, StoreError> {
    Store::create(disk.clone(), directory(), &VAT, &sealed(), options)
}

pub(crate) fn open<D: Disk + 'static>(disk: &Arc<D>, options: StoreOptions) -> Result<Store, StoreError> {
    Store::open(disk.clone(), directory(), &VAT, &sealed(), options)
}

pub(crate) fn set(space: u64, name: &[u8], value: &[u8]) -> Change {
    Change { key: RowKey { space, name: name.to_vec() }, value: Some(value.to_vec()) }
}

pub(crate) fn remove(space: u64, name: &[u8]) -> Change {
    Change { key: RowKey { space, name: name.to_vec() }, value: None }
}

pub(crate) fn get(store: &Store, space: u64, name: &[u8]) -> Option<Vec<u8>> {
    store.get(&RowKey { space, name: name.to_vec() }).unwrap()
}

/// Submits the next turn, with these changes.
pub(crate) fn turn(store: &Store, changes: Vec<Change>) -> Result<u64, StoreError> {
    let turn = store.position().turn + 1;
    store.submit(TurnDelta { turn, changes })?;
    Ok(turn)
}

/// The same, and waits until it is durable.
pub(crate) fn durable_turn(store: &Store, changes: Vec<Change>) -> Result<u64, StoreError> {
    let turn = turn(store, changes)?;
    store.wait_durable(turn)?;
    Ok(turn)
}

pub(crate) fn apply(rows: &mut Rows, changes: &[Change]) {
    for change in changes {
        let key = (change.key.space, change.key.name.clone());
        match &change.value {
            Some(value) => rows.insert(key, value.clone()),
            None => rows.remove(&key),
        };
    }
}

/// A plain store with one row, folded, that the medium has changed; the journal is fine.
pub(crate) fn plain_store_with_a_damaged_row() -> Arc<SimulatedDisk> {
    let disk = SimulatedDisk::new();
    let store = Store::create(disk.clone(), directory(), &VAT, &Protection::Plain, no_folds()).unwrap();
    durable_turn(&store, vec![set(0, b"name", b"a value that stands in the base in clear")]).unwrap();
    store.fold().unwrap();
    drop(store);
    let mut base = disk.contents(Path::new(BASE)).unwrap();
    let needle = b"stands in the base";
    let places: Vec<usize> = (0..base.len() - needle.len()).filter(|at| base[*at..].starts_with(needle)).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| base[*at] ^= 1);
    disk.replace(Path::new(BASE), &base);
    disk
}

/// Everything that a store has.
pub(crate) fn contents(store: &Store) -> Result<Rows, StoreError> {
    let mut rows = Rows::new();
    for space in 0..SPACES {
        let found = store.scan(space)?;
        assert!(found.is_sorted_by(|(one, _), (two, _)| one < two), "in order of name");
        let mut visited = Vec::new();
        store.for_each_row(space, |name, value| visited.push((name.to_vec(), value.to_vec())))?;
        visited.sort();
        // Too long to be shown.
        assert!(visited == found, "one by one as all at once");
        rows.extend(found.into_iter().map(|(name, value)| ((space, name), value)));
    }
    Ok(rows)
}

/// Marks in a disk's history: what was begun, and what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Created,
    Submitted(u64),
    Durable(u64),
    EpochRequested(u64),
    Epoch(u64),
}

impl Mark {
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Created => 0,
            Self::Submitted(turn) => turn << 3 | 1,
            Self::Durable(turn) => turn << 3 | 2,
            Self::EpochRequested(epoch) => epoch << 3 | 3,
            Self::Epoch(epoch) => epoch << 3 | 4,
        }
    }

    pub(crate) fn from_number(number: u64) -> Self {
        match number & 7 {
            1 => Self::Submitted(number >> 3),
            2 => Self::Durable(number >> 3),
            3 => Self::EpochRequested(number >> 3),
            4 => Self::Epoch(number >> 3),
            _ => Self::Created,
        }
    }

    /// Whether something was acknowledged, so that less is allowed from here on.
    pub(crate) fn acknowledges(self) -> bool {
        matches!(self, Self::Created | Self::Durable(_) | Self::Epoch(_))
    }
}

/// Options whose callback marks in the disk's history what is reported durable.
pub(crate) fn marking(disk: &Arc<SimulatedDisk>, options: StoreOptions) -> StoreOptions {
    let disk = Arc::clone(disk);
    let on_durable = move |durable| {
        if let Durable::Turn(turn) = durable {
            disk.mark(Mark::Durable(turn).number());
        }
    };
    StoreOptions { on_durable: Some(Box::new(on_durable)), ..options }
}

/// Does `work` for each number below `count`, on two threads.
pub(crate) fn on_two_threads(count: u64, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let all = || {
        loop {
            match next.fetch_add(1, Ordering::SeqCst) {
                number if number < count => work(number),
                _ => return,
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(all);
        all();
    });
}

/// Does something that makes redb panic now and then, which the engine catches, without a report of each panic.
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> T {
    thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            let of_redb = what.location().is_some_and(|location| location.file().contains("redb"));
            if !(of_redb && QUIET.get()) {
                report(what);
            }
        }));
    });
    QUIET.set(true);
    let done = work();
    QUIET.set(false);
    done
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    /// A few changes of few names, so that the same rows change and go often.
    pub(crate) fn changes(&mut self) -> Vec<Change> {
        self.changes_of([40, 2_000, 12_000])
    }

    /// The same with values of these lengths: many, some, and few.
    pub(crate) fn changes_of(&mut self, lengths: [usize; 3]) -> Vec<Change> {
        (0..self.below(5))
            .map(|_| {
                let (space, name) = (self.below(SPACES), vec![b'n'; self.below(9) as usize]);
                let length = match self.below(12) {
                    0 => lengths[2],
                    1..=3 => lengths[1],
                    _ => lengths[0],
                };
                match self.below(4) {
                    0 => remove(space, &name),
                    _ => set(space, &name, &self.bytes(length)),
                }
            })
            .collect()
    }
}
