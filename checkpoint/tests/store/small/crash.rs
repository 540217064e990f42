//! Loss of power, and of the process, at every point of a small store's life and while it recovers.

use std::{ops::RangeInclusive, path::Path, sync::Arc};

use checkpoint::{
    SmallStore, StoreError,
    simulated::{History, SimulatedDisk},
};

use super::{NOTE, commit, contents_of, create_small, open_small};
use crate::harness::*;

/// What a life has written, and what it was at each turn.
struct Life {
    disk: Arc<SimulatedDisk>,
    models: Vec<Rows>,
    folds: u64,
}

/// Creates a store, commits turns of all sizes, begins epochs, and opens it again now and then. What it is told is
/// marked in the history.
fn live(seed: u64, steps: u64) -> Life {
    let disk = SimulatedDisk::new();
    let mut store = create_small(&disk).unwrap();
    disk.mark(Mark::Created.number());
    let (mut random, mut life) = (Random(seed), Life { disk: disk.clone(), models: vec![Rows::new()], folds: 0 });
    for _ in 0..steps {
        let before = store.position();
        match random.below(8) {
            0 => {
                drop(store);
                store = open_small(&disk).unwrap();
            }
            1 => {
                disk.mark(Mark::EpochRequested(before.epoch + 1).number());
                store.begin_epoch(before.epoch + 1, [1; 16]).unwrap();
                disk.mark(Mark::Epoch(before.epoch + 1).number());
            }
            _ => {
                let changes = random.changes_of([400, 6_000, 20_000]);
                let mut rows = life.models.last().unwrap().clone();
                apply(&mut rows, &changes);
                life.models.push(rows);
                disk.mark(Mark::Submitted(before.turn + 1).number());
                commit(&mut store, changes).unwrap();
                disk.mark(Mark::Durable(before.turn + 1).number());
            }
        }
        life.folds += u64::from(store.position().sequence > before.sequence + 1);
    }
    life
}

/// What a crashed store may be.
#[derive(Debug, Clone)]
struct Allowed {
    created: bool,
    turns: RangeInclusive<u64>,
    epochs: RangeInclusive<u64>,
}

impl Allowed {
    fn after(marks: impl Iterator<Item = u64>) -> Self {
        let (mut created, mut turns, mut epochs) = (false, (0, 0), (0, 0));
        for mark in marks {
            match Mark::from_number(mark) {
                Mark::Created => created = true,
                Mark::Submitted(turn) => turns.1 = turn,
                Mark::Durable(turn) => turns.0 = turn,
                Mark::EpochRequested(epoch) => epochs.1 = epoch,
                Mark::Epoch(epoch) => epochs.0 = epoch,
            }
        }
        Self { created, turns: turns.0..=turns.1, epochs: epochs.0..=epochs.1 }
    }

    /// The same after this was shown.
    fn shown(&self, store: &SmallStore) -> Self {
        let position = store.position();
        Self { created: true, turns: position.turn..=*self.turns.end(), epochs: position.epoch..=*self.epochs.end() }
    }

    /// Opens what a crash has left, which has to be one of the states that there were; `None` if there is no store
    /// and nobody was told of one, and one can be made.
    fn open(&self, disk: &Arc<SimulatedDisk>, life: &Life) -> Option<SmallStore> {
        let store = match open_small(disk) {
            Ok(store) => store,
            Err(StoreError::Missing { .. } | StoreError::KeyMissing { .. }) if !self.created => {
                drop(create_small(disk).unwrap());
                return None;
            }
            Err(error) => panic!("{error}; allowed is {self:?}"),
        };
        let position = store.position();
        assert!(self.turns.contains(&position.turn), "{position:?}, allowed is {self:?}");
        assert!(self.epochs.contains(&position.epoch), "{position:?}, allowed is {self:?}");
        assert!(contents_of(&store).unwrap() == life.models[usize::try_from(position.turn).unwrap()], "{position:?}");
        Some(store)
    }

    /// The same, and one more turn, which is there when it is opened once more.
    fn open_and_go_on(&self, disk: &Arc<SimulatedDisk>, life: &Life) {
        let Some(mut store) = self.open(disk, life) else { return };
        let mut rows = contents_of(&store).unwrap();
        let changes = vec![set(0, b"again", &[9; 1_200])];
        apply(&mut rows, &changes);
        commit(&mut store, changes).unwrap();
        let position = store.position();
        drop(store);
        let store = open_small(disk).unwrap();
        assert_eq!(store.position(), position);
        assert!(contents_of(&store).unwrap() == rows);
    }
}

/// One of the disks that a loss of power may leave. The notes, which nobody ever syncs, are all there in some: there
/// they say the most that they can.
fn crash(history: &History, seed: u64) -> Arc<SimulatedDisk> {
    if seed.is_multiple_of(2) {
        return history.crash(seed);
    }
    let of_note: Vec<bool> = history.unsynced().iter().map(|unsynced| unsynced.path == Path::new(NOTE)).collect();
    let mut random = Random(seed);
    let most = random.below(4);
    history.crash_keeping(|index, _| of_note[index] || random.below(4) < most)
}

const LIVES: u64 = 6;
const STEPS: u64 = 45;
const SEEDS: u64 = 8;

#[test]
fn every_crash_leaves_one_of_the_states_that_there_were() {
    let (mut images, mut folds) = (0, 0);
    for life in (1..=LIVES).map(|seed| live(seed, STEPS)) {
        folds += life.folds;
        let mut history = life.disk.history();
        for point in 0..=history.len() {
            history.advance(point);
            let allowed = Allowed::after(history.marks());
            for seed in 0..SEEDS {
                allowed.open_and_go_on(&crash(&history, seed + SEEDS * point as u64), &life);
                images += 1;
            }
        }
    }
    assert!(images > 5_000 && folds > 10, "{images} images, {folds} folds");
}

#[test]
fn a_crash_while_it_recovers_takes_nothing_more() {
    let life = live(21, STEPS);
    let mut history = life.disk.history();
    let (mut images, mut recoveries) = (0, 0);
    for point in 0..=history.len() {
        history.advance(point);
        let allowed = Allowed::after(history.marks());
        for seed in 0..3 {
            let disk = crash(&history, seed + 3 * point as u64);
            let Some(store) = allowed.open(&disk, &life) else { continue };
            let shown = allowed.shown(&store);
            drop(store);
            let mut recovery = disk.history();
            recoveries += u64::from(!recovery.is_empty());
            for point in 0..=recovery.len() {
                recovery.advance(point);
                let allowed = if point == recovery.len() { &shown } else { &allowed };
                for seed in 0..3 {
                    allowed.open_and_go_on(&crash(&recovery, seed), &life);
                    images += 1;
                }
            }
        }
    }
    assert!(images > 2_000 && recoveries > 200, "{images} images, {recoveries} recoveries");
}

/// What is on the disk of a frame that was torn, while the zeros that a recovery wrote over it are in the page cache
/// only: whoever goes on from there must know, or a shorter frame would get the rest of the torn one behind it.
#[test]
fn a_torn_frame_that_a_killed_recovery_wrote_over_never_comes_back() {
    let disk = SimulatedDisk::new();
    let mut store = create_small(&disk).unwrap();
    let mut models = vec![Rows::new()];
    let turn = |store: &mut SmallStore, models: &mut Vec<Rows>, length: usize| {
        let changes = vec![set(0, &models.len().to_le_bytes(), &vec![7; length])];
        let mut rows = models.last().unwrap().clone();
        apply(&mut rows, &changes);
        models.push(rows);
        commit(store, changes).unwrap();
    };
    turn(&mut store, &mut models, 10);
    let noted = disk.operations();
    turn(&mut store, &mut models, 1_500);
    drop(store);
    let is_allowed = |disk: &Arc<SimulatedDisk>, models: &[Rows]| {
        let found = open_small(disk).unwrap_or_else(|error| panic!("{error}"));
        let turn = usize::try_from(found.position().turn).unwrap();
        turn > 0 && contents_of(&found).unwrap() == models[turn]
    };
    // The second turn is written, and not synced; the note of the first one is there.
    let mut history = disk.history();
    history.advance(noted + 1);
    let unsynced = history.unsynced();
    let (last, sectors) = (unsynced.len() - 1, unsynced.last().unwrap().parts);
    assert!(sectors > 2, "{unsynced:?}");
    let (mut recoveries, mut images) = (0, 0);
    for kept in 1..(1_u32 << sectors) - 1 {
        let torn = history.crash_keeping(|index, part| index != last || kept & (1 << part) != 0);
        let before = torn.operations();
        drop(open_small(&torn).unwrap());
        let mut recovery = torn.history();
        for point in before..=recovery.len() {
            recovery.advance(point);
            let killed = recovery.kill();
            let mut store = open_small(&killed).unwrap();
            let mut models = models[..2].to_vec();
            let before = killed.operations();
            turn(&mut store, &mut models, 10);
            drop(store);
            recoveries += 1;
            let mut going_on = killed.history();
            for point in before..=going_on.len() {
                going_on.advance(point);
                let found = going_on.unsynced();
                for number in 0..8 {
                    // Of the second write everything and of the first nothing, or any.
                    let mut random = Random(number);
                    let last = found.len().saturating_sub(1);
                    let image = going_on.crash_keeping(|index, _| match number {
                        0 => index == last,
                        1 => index != last,
                        _ => random.below(2) == 0,
                    });
                    assert!(is_allowed(&image, &models), "kept {kept:b}");
                    images += 1;
                }
            }
        }
    }
    assert!(recoveries > 20 && images > 500, "{recoveries} {images}");
}

/// What the page cache had of a killed process is shown only once it is durable.
#[test]
fn what_is_shown_after_a_kill_survives_a_loss_of_power() {
    let mut unsynced = 0;
    for life in (31..34).map(|seed| live(seed, STEPS)) {
        let mut history = life.disk.history();
        for point in 0..=history.len() {
            history.advance(point);
            let allowed = Allowed::after(history.marks());
            let disk = history.kill();
            let Some(store) = allowed.open(&disk, &life) else { continue };
            let shown = allowed.shown(&store);
            unsynced += u64::from(shown.turns.start() > allowed.turns.start());
            drop(store);
            let mut after = disk.history();
            after.advance(after.len());
            for seed in 0..4 {
                shown.open_and_go_on(&crash(&after, seed), &life);
            }
        }
    }
    assert!(unsynced > 50, "{unsynced}");
}
