//! The life that is crashed: everything that a store does, and what it should contain after each turn.

use std::{collections::BTreeMap, fmt, sync::Arc};

use checkpoint::{Disk, Store, StoreError, StoreOptions, simulated::SimulatedDisk};

use crate::harness::*;

/// Lengths of values: most frames take one sector, some a few, and now and then one is longer than a segment.
const LENGTHS: [usize; 3] = [40, 600, 4_500];

/// What a life has left behind.
pub(super) struct Life {
    pub(super) disk: Arc<SimulatedDisk>,
    /// What is in the store after each turn.
    pub(super) models: Vec<Rows>,
    /// Tags of the frames that were known to be durable, by their sequence.
    pub(super) heads: BTreeMap<u64, [u8; 16]>,
    /// How many operations the history has before anything happens: marks of what there is already.
    pub(super) begins: usize,
    /// What it was chosen by.
    pub(super) seed: u64,
}

/// A life that went wrong by itself, before any crash.
#[derive(Debug)]
pub(super) struct Cut(StoreError);

impl From<StoreError> for Cut {
    fn from(error: StoreError) -> Self {
        Self(error)
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store did not even live: {}", self.0)
    }
}

/// Segments are short, so that they change often. In every second life folds happen by themselves, while turns
/// are committed; in all of them also when they are asked for.
fn options(seed: u64) -> StoreOptions {
    let fold_bytes = if seed.is_multiple_of(2) { u64::MAX } else { 6 << 10 };
    StoreOptions { fold_bytes, ..smallest_segments() }
}

/// Creates a store, and lets it live: turns one by one and in bursts, epochs, folds, closing and opening again.
/// `through` is what the store sees of the disk, and may be worse; `created` is called after the creation.
pub(super) fn live<D: Disk + 'static>(
    disk: &Arc<SimulatedDisk>,
    through: &Arc<D>,
    seed: u64,
    steps: u64,
    created: impl FnOnce(),
) -> Result<Life, Cut> {
    let store = create(through, marking(disk, options(seed)))?;
    disk.mark(Mark::Created.number());
    created();
    let life = Life { disk: Arc::clone(disk), models: vec![Rows::new()], heads: BTreeMap::new(), begins: 0, seed };
    life.go_on(store, through, steps)
}

impl Life {
    /// Another life, of the store that a crash of this one has left somewhere in its second half.
    pub(super) fn after_a_crash(&self, steps: u64) -> Result<Self, Cut> {
        let mut random = Random(self.seed);
        let mut history = self.disk.history();
        let half = history.len() as u64 / 2;
        history.advance(usize::try_from(half + random.below(half)).unwrap());
        let disk = history.crash(random.next());
        let found = open(&disk.copy(), smallest_segments())?.position();
        // All of the disk is durable now, so what was found is what there is, and nobody can find anything else.
        for mark in [
            Mark::Created,
            Mark::Submitted(found.turn),
            Mark::Durable(found.turn),
            Mark::EpochRequested(found.epoch),
            Mark::Epoch(found.epoch),
        ] {
            disk.mark(mark.number());
        }
        let models = self.models[..=usize::try_from(found.turn).unwrap()].to_vec();
        let heads = BTreeMap::from([(found.sequence, found.chain_head)]);
        let begins = disk.operations();
        let store = open(&disk, marking(&disk, options(self.seed)))?;
        let through = Arc::clone(&disk);
        Self { disk, models, heads, begins, seed: self.seed + 1 }.go_on(store, &through, steps)
    }

    fn go_on<D: Disk + 'static>(mut self, mut store: Store, through: &Arc<D>, steps: u64) -> Result<Self, Cut> {
        let mut random = Random(self.seed);
        let disk = Arc::clone(&self.disk);
        self.witness(&store);
        for _ in 0..steps {
            match random.below(14) {
                0 => {
                    store.close()?;
                    store = open(through, marking(&disk, options(self.seed)))?;
                }
                1 => {
                    let epoch = store.durable().epoch + 1;
                    disk.mark(Mark::EpochRequested(epoch).number());
                    store.begin_epoch(epoch, [3; 16])?;
                    disk.mark(Mark::Epoch(epoch).number());
                }
                2 | 3 => store.fold()?,
                _ => {
                    for _ in 0..=random.below(3) {
                        let changes = random.changes_of(LENGTHS);
                        let mut rows = self.models.last().unwrap().clone();
                        apply(&mut rows, &changes);
                        self.models.push(rows);
                        disk.mark(Mark::Submitted(self.models.len() as u64 - 1).number());
                        turn(&store, changes)?;
                    }
                    store.wait_durable(store.position().turn)?;
                }
            }
            self.witness(&store);
        }
        store.close()?;
        Ok(self)
    }

    fn witness(&mut self, store: &Store) {
        let durable = store.durable();
        let head = self.heads.entry(durable.sequence).or_insert(durable.chain_head);
        assert_eq!(*head, durable.chain_head, "one frame, one tag");
    }
}
