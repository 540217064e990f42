//! Loss of power at every point of a store's life, and again while it recovers (R2, R5).

use std::{path::Path, sync::Arc};

use checkpoint::{Store, StoreError, simulated::SimulatedDisk};
use schemas::{Coded, ErrorCode};

use crate::harness::*;

/// How many images each run of a workload is crashed into.
const IMAGES: u64 = 120;

/// What one life of a store has left behind, and what it should contain after each turn.
struct Life {
    disk: Arc<SimulatedDisk>,
    models: Vec<Rows>,
}

/// Creates a store, and lets it live: turns one by one and in bursts, epochs, folds, closing and opening again.
/// After the creation the disk may lie about syncs below a path.
fn live(seed: u64, lies: Option<&str>) -> Life {
    let disk = SimulatedDisk::new();
    let mut random = Random(seed);
    let mut store = create(&disk, marking(&disk, many_folds())).unwrap();
    disk.mark(Mark::Created.number());
    if let Some(path) = lies {
        disk.lie_about_syncs(Path::new(path));
    }
    let mut models = vec![Rows::new()];
    for _ in 0..40 {
        match random.below(20) {
            0 => {
                store.close().unwrap();
                store = open(&disk, marking(&disk, many_folds())).unwrap();
            }
            1 => {
                let epoch = store.durable().epoch + 1;
                store.begin_epoch(epoch, [3; 16]).unwrap();
                disk.mark(Mark::Epoch(epoch).number());
            }
            2 => store.fold().unwrap(),
            _ => {
                for _ in 0..=random.below(4) {
                    let changes = random.changes();
                    let mut rows = models.last().unwrap().clone();
                    apply(&mut rows, &changes);
                    models.push(rows);
                    disk.mark(Mark::Submitted(models.len() as u64 - 1).number());
                    turn(&store, changes).unwrap();
                }
                store.wait_durable(store.position().turn).unwrap();
            }
        }
    }
    store.close().unwrap();
    Life { disk, models }
}

/// What a crashed store may contain.
struct Allowed {
    created: bool,
    oldest: u64,
    newest: u64,
    epoch: u64,
}

impl Allowed {
    fn after(marks: impl Iterator<Item = u64>) -> Self {
        let mut allowed = Self { created: false, oldest: 0, newest: 0, epoch: 0 };
        for mark in marks {
            match Mark::from_number(mark) {
                Mark::Created => allowed.created = true,
                Mark::Durable(turn) => allowed.oldest = allowed.oldest.max(turn),
                Mark::Submitted(turn) => allowed.newest = turn,
                Mark::Epoch(epoch) => allowed.epoch = epoch,
            }
        }
        allowed
    }

    /// Opens a crashed store and compares it with the model; `None` if it was never acknowledged to be there.
    fn check(&self, disk: &Arc<SimulatedDisk>, models: &[Rows]) -> Result<Option<Store>, String> {
        let store = match open(disk, many_folds()) {
            Ok(store) => store,
            Err(StoreError::Missing { .. } | StoreError::KeyMissing { .. }) if !self.created => {
                // Nobody was told that it exists; then it can be made.
                create(disk, many_folds()).map_err(|error| format!("does not create again: {error}"))?;
                return Ok(None);
            }
            Err(error) => return Err(format!("does not open: {error}")),
        };
        let (turn, epoch) = (store.position().turn, store.position().epoch);
        if turn < self.oldest || turn > self.newest || epoch < self.epoch {
            let (oldest, newest) = (self.oldest, self.newest);
            return Err(format!("turn {turn}, allowed {oldest}..={newest}; epoch {epoch}, allowed {}", self.epoch));
        }
        let rows = contents(&store).map_err(|error| format!("does not read: {error}"))?;
        if rows != models[usize::try_from(turn).unwrap()] {
            return Err(format!("is not the state after turn {turn}"));
        }
        Ok(Some(store))
    }
}

/// Crashes a life at many points, and half of the recoveries again. How many images were opened, or what was
/// wrong with the first bad one.
fn crash(life: &Life, seed: u64, images: u64) -> Result<u64, String> {
    let mut random = Random(seed);
    let mut history = life.disk.history();
    let mut points: Vec<u64> = (0..images).map(|_| random.below(history.len() as u64 + 1)).collect();
    points.sort_unstable();
    let mut opened = 0;
    for point in points {
        history.advance(usize::try_from(point).unwrap());
        let allowed = Allowed::after(history.marks());
        let image_seed = random.next();
        let at = |what: String| format!("crash after operation {point} with seed {image_seed}: {what}");
        let disk = history.crash(image_seed);
        let Some(store) = allowed.check(&disk, &life.models).map_err(at)? else { continue };
        opened += 1;
        let recovered = disk.history().len();
        let shown = store.position().turn;

        if random.below(2) == 0 {
            // It must be able to go on from there: another turn, and it is there after closing and opening.
            let turn = durable_turn(&store, vec![set(0, b"again", b"again")]).map_err(|e| at(e.to_string()))?;
            store.close().map_err(|error| at(error.to_string()))?;
            let store = open(&disk, many_folds()).map_err(|error| at(format!("second opening: {error}")))?;
            if store.position().turn != turn || get(&store, 0, b"again").as_deref() != Some(b"again") {
                return Err(at("a turn after the recovery is lost".into()));
            }
            continue;
        }
        // A second loss of power, during the recovery or right after it.
        drop(store);
        let mut history = disk.history();
        let second = usize::try_from(random.below(recovered as u64 + 1)).unwrap();
        history.advance(second);
        // What the first recovery has shown is shown, even if nobody had acknowledged it before.
        let oldest = if second == recovered { shown } else { allowed.oldest };
        let again = history.crash(random.next());
        let at = |what: String| at(format!("then again after operation {second} of the recovery: {what}"));
        Allowed { oldest, ..allowed }.check(&again, &life.models).map_err(at)?;
        opened += 1;
    }
    Ok(opened)
}

#[test]
fn every_crash_image_opens_to_a_state_not_older_than_what_was_acknowledged() {
    let mut opened = 0;
    for seed in 1..=5 {
        opened += crash(&live(seed, None), seed, IMAGES).unwrap_or_else(|what| panic!("life {seed}: {what}"));
    }
    assert!(opened > 600, "{opened} images say something");
}

/// The check above must be able to fail. It does on a disk that reports syncs and does none: of the journal, so
/// that a commit is not durable; and of the base, so that a fold is not, and has removed the segments that it
/// was made from.
#[test]
fn the_same_check_fails_on_a_disk_that_lies_about_syncs() {
    for path in ["/store/journal", BASE] {
        let found = (1..=3).filter_map(|seed| crash(&live(seed, Some(path)), seed, IMAGES).err()).collect::<Vec<_>>();
        assert!(!found.is_empty(), "a disk that lies about {path} went unnoticed");
        assert!(found.iter().all(|what| !what.contains("create")), "{found:?}");
    }
}

/// What a restarted process shows must survive a loss of power, also what its killed predecessor had written
/// and not synced.
#[test]
fn what_is_shown_after_a_kill_survives_a_loss_of_power() {
    let life = live(11, None);
    let mut random = Random(12);
    // The report comes right after the sync, so one operation before it the frame is written and not synced.
    let mut history = life.disk.history();
    let mut points: Vec<usize> = (0..60).map(|_| random.below(history.len() as u64) as usize).collect();
    for point in 1..=history.len() {
        let before = history.marks().count();
        history.advance(point);
        if history.marks().count() > before
            && matches!(history.marks().last().map(Mark::from_number), Some(Mark::Durable(_)))
        {
            points.push(point - 2);
        }
    }
    points.sort_unstable();
    let mut history = life.disk.history();
    let mut unsynced = 0;
    for point in points {
        history.advance(point);
        let allowed = Allowed::after(history.marks());
        let disk = history.kill();
        let Some(store) = allowed.check(&disk, &life.models).unwrap() else { continue };
        let shown = store.position().turn;
        unsynced += u64::from(shown > allowed.oldest);
        let mut after = disk.history();
        after.advance(after.len());
        let oldest = shown;
        Allowed { oldest, ..allowed }.check(&after.crash(random.next()), &life.models).unwrap();
    }
    assert!(unsynced > 10, "{unsynced} were killed between write and sync");
}

#[test]
fn a_store_that_was_never_finished_is_missing_and_can_be_created() {
    let disk = SimulatedDisk::new();
    drop(create(&disk, no_folds()).unwrap());
    let mut history = disk.history();
    let (mut missing, mut whole) = (0, 0);
    for point in 0..=history.len() {
        history.advance(point);
        let image = history.crash(point as u64);
        match open(&image, no_folds()) {
            Ok(_) => whole += 1,
            Err(error) => {
                assert!([ErrorCode::CheckpointMissing, ErrorCode::KeyMissing].contains(&error.code()), "{error}");
                missing += 1;
                drop(create(&image, no_folds()).unwrap());
                drop(open(&image, no_folds()).unwrap());
            }
        }
    }
    assert!(missing > 10 && whole > 0, "{missing} {whole}");
}
