//! Errors of the disk, at every single call that a store makes (R5): errors of the medium, a full disk, and writes
//! that end halfway, while it is created, works, folds, changes and re-uses segments, begins epochs, closes, and is
//! opened again.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use checkpoint::{
    Durable, Store, StoreError, StoreOptions, TurnDelta,
    simulated::{Fault, SimulatedDisk, UnsyncedChange},
};
use schemas::{Coded, ErrorCode};

use crate::harness::*;

const FAULTS: [Fault; 3] = [Fault::Broken, Fault::Full, Fault::Short];
const ROUNDS: u8 = 10;
const LIVES: u8 = 2;

/// What a run on a failing disk has seen.
#[derive(Default)]
struct Run {
    models: Vec<Rows>,
    created: bool,
    acknowledged: u64,
    epoch: u64,
    error: Option<StoreError>,
    reports: Vec<Durable>,
    poisoned: bool,
}

impl Run {
    /// The last turn of which somebody was told, in any way, that it is durable.
    fn told(&self) -> u64 {
        let reported = self.reports.iter().map(|report| match report {
            Durable::Turn(turn) => *turn,
            Durable::Poisoned => 0,
        });
        reported.fold(self.acknowledged, u64::max)
    }
}

/// A store is created, works, is closed, opened, works, and is closed. Ends at the first error.
fn run(disk: &Arc<SimulatedDisk>) -> Run {
    let mut run = Run { models: vec![Rows::new()], ..Run::default() };
    let reports = Arc::new(Mutex::new(Vec::new()));
    for life in 0..LIVES {
        let sink = Arc::clone(&reports);
        let on_durable = move |report| sink.lock().unwrap().push(report);
        let options = StoreOptions { on_durable: Some(Box::new(on_durable)), ..smallest_segments() };
        match if life == 0 { create(disk, options) } else { open(disk, options) } {
            Ok(store) => {
                run.created = true;
                run.error = work(&store, &mut run).err();
                if run.error.is_some() {
                    assert_stopped(&store, &run);
                }
                run.poisoned = store.poisoned().is_some();
                let closed = store.close();
                assert!(run.error.is_none() || closed.is_err(), "closing a store that has stopped says so");
                run.error = run.error.or(closed.err());
            }
            Err(error) => run.error = Some(error),
        }
        if run.error.is_some() {
            break;
        }
    }
    run.reports = reports.lock().unwrap().clone();
    run
}

fn work(store: &Store, run: &mut Run) -> Result<(), StoreError> {
    let mut random = Random(9);
    for round in 0..ROUNDS {
        // Two of three fill half a segment, the third needs a long one.
        let length = if round % 3 == 2 { 5_000 } else { 1_500 };
        let changes = vec![set(0, &[round % 5], &random.bytes(length)), remove(0, &[(round + 2) % 5])];
        let mut rows = run.models.last().unwrap().clone();
        apply(&mut rows, &changes);
        run.models.push(rows);
        turn(store, changes)?;
        if round % 3 != 1 {
            store.wait_durable(store.position().turn)?;
            run.acknowledged = store.position().turn;
        }
        if round == 4 {
            store.begin_epoch(run.epoch + 1, [1; 16])?;
            run.epoch += 1;
        }
        if round % 4 == 3 {
            store.fold()?;
            // From the base alone.
            assert_eq!(&contents(store)?, run.models.last().unwrap());
        }
    }
    Ok(())
}

fn assert_stopped(store: &Store, run: &Run) {
    let durable = store.durable().turn;
    let stopped = |error: StoreError| assert_eq!(error.code(), ErrorCode::VatPoisoned, "{error}");
    stopped(store.submit(TurnDelta { turn: store.position().turn + 1, changes: vec![] }).unwrap_err());
    stopped(store.begin_epoch(9, [0; 16]).unwrap_err());
    stopped(store.fold().unwrap_err());
    stopped(store.scan(0).unwrap_err());
    if store.position().turn > durable {
        stopped(store.wait_durable(store.position().turn).unwrap_err());
    }
    assert_eq!(store.durable().turn, durable, "for good");
    assert!(durable >= run.acknowledged);
    store.wait_durable(durable).unwrap();
}

/// The store after the process ended, or the machine, has everything that somebody was told and nothing wrong;
/// and so after a loss of power that follows, which takes nothing of what was shown.
fn assert_nothing_lost(disk: &Arc<SimulatedDisk>, run: &Run) {
    let mut oldest = run.told();
    let mut disk = Arc::clone(disk);
    for seed in [None, Some(1)] {
        if let Some(seed) = seed {
            let mut history = disk.history();
            history.advance(history.len());
            disk = history.crash(seed + oldest);
        }
        let store = match open(&disk, smallest_segments()) {
            Ok(store) => store,
            // The call that failed may have been the last one, so that it is there all the same; else it can be
            // made now.
            Err(_) if !run.created && seed.is_none() => create(&disk, smallest_segments()).unwrap(),
            Err(error) => panic!("{error}"),
        };
        let position = store.position();
        assert!(position.turn >= oldest && position.epoch >= run.epoch, "{position:?} has lost turn {oldest}");
        assert_eq!(contents(&store).unwrap(), run.models[usize::try_from(position.turn).unwrap()]);
        oldest = position.turn;
    }
}

/// What the run with this fault at this call has done, if it came so far; whether it met the fault.
fn check(fault: Fault, call: u64) -> bool {
    let disk = SimulatedDisk::new();
    disk.inject(call, fault);
    let run = run(&disk);
    let Some(error) = &run.error else {
        assert!(disk.calls() < call, "{fault:?} at call {call} went unnoticed");
        return false;
    };
    let cause = match error {
        StoreError::Poisoned { cause } => cause.code(),
        error => error.code(),
    };
    let expected = if fault == Fault::Broken { ErrorCode::CheckpointDisk } else { ErrorCode::CheckpointDiskFull };
    assert_eq!(cause, expected, "{fault:?} at call {call}: {error}");
    let last = run.reports.iter().position(|report| *report == Durable::Poisoned);
    assert!(last.is_none_or(|at| at + 1 == run.reports.len()), "nothing is reported after the poison");
    // One that comes while the store closes, after the last group, has nobody to be reported to.
    assert!(last.is_some() || !run.poisoned, "{fault:?} at call {call}: {error}");

    let mut history = disk.history();
    history.advance(history.len());
    assert_nothing_lost(&history.kill(), &run);
    assert_nothing_lost(&history.crash(call), &run);
    assert_nothing_lost(&history.crash_keeping(|_, _| false), &run);
    true
}

/// How often a segment was used again, and how many there were.
fn segments(disk: &SimulatedDisk) -> (usize, usize) {
    let mut history = disk.history();
    let (mut again, mut new) = (0, 0);
    for operations in 1..=history.len() {
        history.advance(operations);
        let Some(last) = history.unsynced().pop().filter(|last| last.at + 1 == operations) else { continue };
        let is = |path: &Path, extension| path.extension().is_some_and(|found| found == extension);
        match &last.change {
            UnsyncedChange::Rename(to) if is(to, "segment") => again += 1,
            UnsyncedChange::Create if is(&last.path, "segment") => new += 1,
            _ => {}
        }
    }
    (again, new)
}

#[test]
fn an_error_at_any_call_stops_the_store_and_loses_nothing() {
    let healthy = SimulatedDisk::new();
    let whole = run(&healthy);
    assert!(whole.error.is_none() && !whole.reports.contains(&Durable::Poisoned));
    assert_eq!((whole.acknowledged, whole.epoch), (u64::from(ROUNDS * LIVES), u64::from(LIVES)));
    let (again, new) = segments(&healthy);
    assert!(again > 3 && new > 3, "{again} segments were used again, {new} were new");
    // The threads take turns differently each time, so the number of calls is not quite the same: turns share a frame
    // or do not, and so need a segment more or less.
    let calls = healthy.calls() + 10;
    let reached = AtomicU64::new(0);
    on_two_threads(3 * calls, |number| {
        let fault = FAULTS[usize::try_from(number / calls).unwrap()];
        reached.fetch_add(u64::from(check(fault, number % calls + 1)), Ordering::SeqCst);
    });
    let reached = reached.into_inner();
    assert!(reached > 3 * (calls - calls / 8), "{reached} of {}", 3 * calls);
}

/// A store after a crash that has left work for its opening: a torn frame, an unneeded segment, an open base.
fn crashed() -> (Arc<SimulatedDisk>, Run) {
    let disk = SimulatedDisk::new();
    let mut run = Run { models: vec![Rows::new()], created: true, ..Run::default() };
    let store = create(&disk, smallest_segments()).unwrap();
    work(&store, &mut run).unwrap();
    // More than half a segment, so that the next one is made.
    let changes = vec![set(2, b"filler", &[7; 2_300])];
    let mut rows = run.models.last().unwrap().clone();
    apply(&mut rows, &changes);
    run.models.push(rows);
    run.acknowledged = durable_turn(&store, changes).unwrap();
    store.fold().unwrap();
    let mut rows = run.models.last().unwrap().clone();
    let changes = vec![set(2, b"torn", &[8; 1_000])];
    apply(&mut rows, &changes);
    run.models.push(rows);
    let before = disk.operations();
    durable_turn(&store, changes).unwrap();
    let mut history = disk.history();
    for point in before..=history.len() {
        history.advance(point);
        let unsynced = history.unsynced();
        let frame = unsynced.iter().position(|one| matches!(one.change, UnsyncedChange::Write(_)) && one.parts == 3);
        if let Some(frame) = frame {
            return (history.crash_keeping(|operation, part| operation != frame || part != 1), run);
        }
    }
    panic!("the frame of three sectors was never written");
}

#[test]
fn an_error_while_opening_changes_nothing_and_the_next_opening_works() {
    let whole = {
        let disk = SimulatedDisk::new();
        let whole = run(&disk);
        (disk, whole)
    };
    for (disk, run) in [whole, crashed()] {
        let count = disk.copy();
        drop(open(&count, smallest_segments()).unwrap());
        let mut refused = 0;
        for (fault, call) in FAULTS.into_iter().flat_map(|fault| (1..=count.calls()).map(move |call| (fault, call))) {
            let copy = disk.copy();
            copy.inject(call, fault);
            if let Err(error) = open(&copy, smallest_segments()) {
                let full = [ErrorCode::CheckpointDisk, ErrorCode::CheckpointDiskFull];
                assert_eq!(
                    error.code(),
                    full[usize::from(fault != Fault::Broken)],
                    "{fault:?} at call {call}: {error}"
                );
                refused += 1;
            }
            let mut history = copy.history();
            history.advance(history.len());
            assert_nothing_lost(&history.kill(), &run);
            assert_nothing_lost(&history.crash(call), &run);
            assert_nothing_lost(&copy, &run);
        }
        assert!(refused > 60, "{refused}");
    }
}

#[test]
fn a_disk_that_does_not_say_how_large_a_file_is_stops_nothing() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, smallest_segments()).unwrap();
    let before = disk.calls();
    store.sizes().unwrap();
    for call in 1..=disk.calls() - before {
        disk.inject(disk.calls() + call, Fault::Broken);
        assert_eq!(store.sizes().unwrap_err().code(), ErrorCode::CheckpointDisk);
        durable_turn(&store, vec![set(0, b"name", b"value")]).unwrap();
    }
}
