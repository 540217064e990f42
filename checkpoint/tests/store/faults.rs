//! Errors of the disk, at every single call that a store makes (R5).

use std::sync::{Arc, Mutex};

use checkpoint::{
    Durable, Store, StoreError, StoreOptions,
    simulated::{Fault, SimulatedDisk},
};
use schemas::{Coded, ErrorCode};

use crate::harness::*;

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

/// A store's life with everything in it. Ends at the first error.
fn run(disk: &Arc<SimulatedDisk>) -> Run {
    let mut run = Run { models: vec![Rows::new()], ..Run::default() };
    let reports = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    let on_durable = move |report| sink.lock().unwrap().push(report);
    let options = StoreOptions { on_durable: Some(Box::new(on_durable)), ..no_folds() };
    match create(disk, options) {
        Ok(store) => {
            run.created = true;
            run.error = work(&store, &mut run).err();
            run.poisoned = store.poisoned().is_some();
            if run.error.is_some() {
                assert_stopped(&store, &run);
            }
            let closed = store.close();
            assert!(run.error.is_none() || closed.is_err(), "closing a store that has stopped says so");
            run.error = run.error.or(closed.err());
        }
        Err(error) => run.error = Some(error),
    }
    run.reports = reports.lock().unwrap().clone();
    run
}

fn work(store: &Store, run: &mut Run) -> Result<(), StoreError> {
    let mut random = Random(9);
    for round in 0..12u8 {
        let changes = vec![set(0, &[round % 5], &random.bytes(1500)), remove(0, &[(round + 2) % 5])];
        let mut rows = run.models.last().unwrap().clone();
        apply(&mut rows, &changes);
        run.models.push(rows);
        turn(store, changes)?;
        if round % 3 != 1 {
            store.wait_durable(store.position().turn)?;
            run.acknowledged = store.position().turn;
        }
        if round == 4 {
            store.begin_epoch(1, [1; 16])?;
            run.epoch = 1;
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
    stopped(store.submit(checkpoint::TurnDelta { turn: store.position().turn + 1, changes: vec![] }).unwrap_err());
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

/// The store after the process ended, or the machine, has everything that was acknowledged and nothing wrong;
/// and so after a loss of power that follows, which takes nothing of what was shown.
fn assert_nothing_lost(disk: &Arc<SimulatedDisk>, run: &Run) {
    let mut oldest = run.acknowledged;
    let mut disk = Arc::clone(disk);
    for seed in [None, Some(1)] {
        if let Some(seed) = seed {
            let mut history = disk.history();
            history.advance(history.len());
            disk = history.crash(seed + oldest);
        }
        let store = match open(&disk, no_folds()) {
            Ok(store) => store,
            // The call that failed may have been the last one, so that it is there all the same; else it can be
            // made now.
            Err(_) if !run.created && seed.is_none() => create(&disk, no_folds()).unwrap(),
            Err(error) => panic!("{error}"),
        };
        let position = store.position();
        assert!(position.turn >= oldest && position.epoch >= run.epoch, "{position:?} has lost turn {oldest}");
        assert_eq!(contents(&store).unwrap(), run.models[usize::try_from(position.turn).unwrap()]);
        oldest = position.turn;
    }
}

#[test]
fn an_error_at_any_call_stops_the_store_and_loses_nothing() {
    let healthy = SimulatedDisk::new();
    let whole = run(&healthy);
    assert!(whole.error.is_none() && whole.acknowledged == 12 && !whole.reports.contains(&Durable::Poisoned));
    // The threads take turns differently each time, so the number of calls is not quite the same.
    let calls = healthy.calls() + 10;
    let mut reached = 0;
    for fault in [Fault::Broken, Fault::Full, Fault::Short] {
        for call in 1..=calls {
            let disk = SimulatedDisk::new();
            disk.inject(call, fault);
            let run = run(&disk);
            let Some(error) = &run.error else { continue };
            reached += 1;
            let cause = match error {
                StoreError::Poisoned { cause } => cause.code(),
                error => error.code(),
            };
            let expected =
                if fault == Fault::Broken { ErrorCode::CheckpointDisk } else { ErrorCode::CheckpointDiskFull };
            assert_eq!(cause, expected, "{fault:?} at call {call}: {error}");
            let last = run.reports.iter().position(|report| *report == Durable::Poisoned);
            assert!(last.is_none_or(|at| at + 1 == run.reports.len()), "nothing is reported after the poison");
            // One that comes while the store closes, after the last group, has nobody to be reported to.
            assert!(last.is_some() || !run.poisoned, "{fault:?} at call {call}: {error}");

            let mut history = disk.history();
            history.advance(history.len());
            assert_nothing_lost(&history.kill(), &run);
            assert_nothing_lost(&history.crash(call), &run);
        }
    }
    assert!(reached > 3 * (calls - 40), "{reached} of {}", 3 * calls);
}

#[test]
fn an_error_while_opening_changes_nothing_and_the_next_opening_works() {
    let disk = SimulatedDisk::new();
    let whole = run(&disk);
    let count = disk.copy();
    drop(open(&count, no_folds()).unwrap());
    for call in 1..=count.calls() {
        let copy = disk.copy();
        copy.inject(call, Fault::Broken);
        if let Err(error) = open(&copy, no_folds()) {
            assert_eq!(error.code(), ErrorCode::CheckpointDisk, "{error}");
        }
        assert_nothing_lost(&copy, &whole);
    }
}
