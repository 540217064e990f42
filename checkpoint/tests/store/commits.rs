//! Commits: groups, syncs, the order of things, limits, and the ends of a store (R2, R4).

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
};

use checkpoint::{
    Durable, Protection, Store, StoreError, StoreOptions, TurnDelta, limits,
    simulated::SimulatedDisk,
    wrapped::{Behaviour, Wrapped, WrappedFile},
};
use schemas::{Coded, ErrorCode};

use crate::harness::*;

const JOURNAL: &str = "/store/journal";

/// Syncs of files of the journal wait while it is closed.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: Mutex<bool>,
    /// How many syncs have come to the gate.
    pub(crate) arrived: AtomicU64,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn set(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut closed = self.closed.lock().unwrap();
        self.arrived.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
        while *closed {
            closed = self.changed.wait(closed).unwrap();
        }
    }

    pub(crate) fn wait_for_arrivals(&self, arrivals: u64) {
        let mut closed = self.closed.lock().unwrap();
        while self.arrived.load(Ordering::SeqCst) < arrivals {
            closed = self.changed.wait(closed).unwrap();
        }
    }
}

impl Behaviour for Gate {
    fn sync(&self, file: &WrappedFile) -> io::Result<()> {
        if file.path.starts_with(JOURNAL) {
            self.pass();
        }
        file.inner.sync_data()
    }
}

/// A store whose committer is stuck in the sync of turn 1, and what it takes to let it go on.
fn stuck_store(options: StoreOptions) -> (Arc<Store>, Arc<SimulatedDisk>, Arc<Gate>) {
    let disk = SimulatedDisk::new();
    let gated = Wrapped::new(disk.clone(), Gate::default());
    let gate = Arc::clone(gated.behaviour());
    let store = create(&gated, options).unwrap();
    let before = gate.arrived.load(Ordering::SeqCst);
    gate.set(true);
    turn(&store, vec![set(0, b"first", b"1")]).unwrap();
    gate.wait_for_arrivals(before + 1);
    (Arc::new(store), disk, gate)
}

/// What a store reports, and the callback that collects it.
type Reports = Arc<Mutex<Vec<Durable>>>;

fn reports() -> (Reports, Box<dyn Fn(Durable) + Send>) {
    let reports = Reports::default();
    let sink = Arc::clone(&reports);
    (reports, Box::new(move |report| sink.lock().unwrap().push(report)))
}

fn journal_syncs(disk: &SimulatedDisk) -> u64 {
    disk.syncs(Path::new(JOURNAL))
}

#[test]
fn a_turn_alone_costs_exactly_one_sync() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, large_segments()).unwrap();
    let before = (journal_syncs(&disk), disk.syncs(Path::new("/")));
    for n in 0..20u8 {
        durable_turn(&store, vec![set(0, &[n], &[n; 100])]).unwrap();
    }
    assert_eq!(journal_syncs(&disk) - before.0, 20);
    assert_eq!(disk.syncs(Path::new("/")) - before.1, 20, "and nothing else is synced");
    store.begin_epoch(1, [1; 16]).unwrap();
    assert_eq!(journal_syncs(&disk) - before.0, 21);
}

#[test]
fn turns_that_come_during_a_sync_share_the_next_one() {
    let (store, disk, gate) = stuck_store(large_segments());
    let before = journal_syncs(&disk);
    for n in 2..=50u8 {
        turn(&store, vec![set(0, &[n], &[n])]).unwrap();
    }
    assert_eq!(store.durable().turn, 0);
    assert_eq!(store.position().turn, 50);
    assert_eq!(get(&store, 0, &[50]), Some(vec![50]), "what is submitted is seen at once");
    assert_eq!(store.scan(0).unwrap().len(), 50);
    let sequence = store.durable().sequence;
    gate.set(false);
    store.wait_durable(50).unwrap();
    assert_eq!(journal_syncs(&disk) - before, 2, "turn 1, and 49 turns together");
    assert_eq!(store.durable().sequence, sequence + 2);
}

#[test]
fn one_sync_per_group_also_when_segments_change_and_folds_run() {
    let disk = SimulatedDisk::new();
    let groups = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&groups);
    let on_durable = move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    };
    let options = StoreOptions { on_durable: Some(Box::new(on_durable)), ..many_folds() };
    let store = create(&disk, options).unwrap();
    let before = journal_syncs(&disk);
    let mut random = Random(1);
    for n in 0..150 {
        let turn = turn(&store, vec![set(0, b"name", &random.bytes(700))]).unwrap();
        if n % 3 == 0 {
            store.wait_durable(turn).unwrap();
        }
    }
    store.close().unwrap();
    let last_segment = disk.files().into_iter().rfind(|path| path.starts_with(JOURNAL)).unwrap();
    let created = u64::from_str_radix(last_segment.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
    assert!(created > 5 && groups.load(Ordering::SeqCst) > 1);
    // Segments are numbered from 0, and the first one was made with the store.
    assert_eq!(journal_syncs(&disk) - before, groups.load(Ordering::SeqCst) + created);
}

#[test]
fn turns_that_are_queued_in_a_row_share_one_frame_and_one_sync() {
    let disk = SimulatedDisk::new();
    let (reports, told) = mpsc::channel();
    let on_durable = move |event| reports.send(event).unwrap();
    let store = create(&disk, StoreOptions { on_durable: Some(Box::new(on_durable)), ..no_folds() }).unwrap();
    let before = (journal_syncs(&disk), store.durable().sequence);
    for turn in 1..=5 {
        store.queue(TurnDelta { turn, changes: vec![set(0, b"name", &[1])] }).unwrap();
    }
    store.start_commit();
    assert_eq!(told.recv().unwrap(), Durable::Turn(5), "the committer was idle, so nobody had been told before");
    assert_eq!((journal_syncs(&disk), store.durable().sequence), (before.0 + 1, before.1 + 1));
}

#[test]
fn each_fold_is_told_once_it_is_done() {
    let (folds, told) = mpsc::channel();
    let on_fold = move || folds.send(()).unwrap();
    let store = create(&SimulatedDisk::new(), StoreOptions { on_fold: Some(Box::new(on_fold)), ..no_folds() }).unwrap();
    for _ in 0..3 {
        turn(&store, vec![set(0, b"name", &[1])]).unwrap();
        let newest = turn(&store, vec![set(0, b"name", &[2])]).unwrap();
        store.fold().unwrap();
        told.recv().unwrap();
        assert_eq!(store.last_fold().turn, newest);
    }
    store.close().unwrap();
    assert!(told.try_recv().is_err(), "and no other");
}

#[test]
fn whoever_waits_for_a_queued_turn_starts_its_commit() {
    let queue = |store: &Store, turn| store.queue(TurnDelta { turn, changes: vec![set(0, b"n", &[1])] }).unwrap();
    let disk = SimulatedDisk::new();
    let store = create(&disk, StoreOptions { group_turns: 2, ..no_folds() }).unwrap();
    queue(&store, 1);
    store.wait_durable(1).unwrap();
    queue(&store, 2);
    store.begin_epoch(1, [1; 16]).unwrap();
    assert_eq!(store.durable().turn, 2);
    queue(&store, 3);
    store.fold().unwrap();
    assert_eq!(store.durable().turn, 3);
    // The queue has room for two.
    (4..=7).for_each(|turn| queue(&store, turn));
    store.close().unwrap();
    assert_eq!(open(&disk, no_folds()).unwrap().durable().turn, 7);
}

#[test]
fn a_full_queue_waits_for_the_disk_and_loses_nothing() {
    let (store, _disk, gate) = stuck_store(StoreOptions { group_turns: 3, ..no_folds() });
    for _ in 0..3 {
        turn(&store, Vec::new()).unwrap();
    }
    let opened = Arc::new(AtomicBool::new(false));
    let waiter = std::thread::spawn({
        let (store, opened) = (store.clone(), opened.clone());
        move || {
            turn(&store, vec![set(0, b"late", b"5")]).unwrap();
            assert!(opened.load(Ordering::SeqCst), "the queue was full until the gate was opened");
        }
    });
    opened.store(true, Ordering::SeqCst);
    gate.set(false);
    waiter.join().unwrap();
    store.wait_durable(5).unwrap();
    assert_eq!(get(&store, 0, b"late"), Some(b"5".to_vec()));
}

#[test]
fn a_fold_in_the_middle_of_a_group_is_opened_again_exactly() {
    let (store, disk, gate) = stuck_store(large_segments());
    turn(&store, vec![set(0, b"row", b"2")]).unwrap();
    let folder = std::thread::spawn({
        let store = store.clone();
        move || store.fold()
    });
    // The fold may freeze before or after turn 3; either way turns 2 and 3 share a frame.
    turn(&store, vec![set(0, b"row", b"3"), remove(0, b"first")]).unwrap();
    gate.set(false);
    folder.join().unwrap().unwrap();
    store.wait_durable(3).unwrap();
    drop(Arc::into_inner(store).unwrap());
    let store = open(&disk, no_folds()).unwrap();
    assert_eq!(contents(&store).unwrap(), Rows::from([((0, b"row".to_vec()), b"3".to_vec())]));
}

#[test]
fn every_group_is_reported_in_order_and_poison_never() {
    let disk = SimulatedDisk::new();
    let (reports, sink) = reports();
    let store = create(&disk, StoreOptions { on_durable: Some(sink), ..many_folds() }).unwrap();
    for n in 0..40 {
        turn(&store, vec![set(0, b"row", &[n])]).unwrap();
    }
    store.close().unwrap();
    let turns: Vec<u64> = reports
        .lock()
        .unwrap()
        .iter()
        .map(|report| match report {
            Durable::Turn(turn) => *turn,
            Durable::Poisoned => panic!("nothing went wrong"),
        })
        .collect();
    assert!(turns.is_sorted_by(|one, two| one < two), "{turns:?}");
    assert_eq!(turns.last(), Some(&40), "closing commits everything");
}

#[test]
fn epochs_are_durable_only_rise_and_bind_later_frames() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    assert_eq!((store.position().epoch, store.incarnation()), (0, [0; 16]));
    turn(&store, vec![set(0, b"a", b"b")]).unwrap();
    store.begin_epoch(5, [9; 16]).unwrap();
    assert_eq!((store.durable().turn, store.durable().epoch), (1, 5), "after the turns that were there");
    for requested in [0, 4, 5] {
        let refused = store.begin_epoch(requested, [1; 16]).unwrap_err();
        assert!(matches!(refused, StoreError::EpochOrder { current: 5, .. }), "{refused}");
    }
    durable_turn(&store, vec![set(0, b"c", b"d")]).unwrap();
    let head = store.durable().chain_head;
    drop(store);
    let store = open(&disk, no_folds()).unwrap();
    let found = store.position();
    assert_eq!((found.epoch, found.turn, found.chain_head, store.incarnation()), (5, 2, head, [9; 16]));
    store.fold().unwrap();
    drop(store);
    assert_eq!(open(&disk, no_folds()).unwrap().position(), found, "also from the base alone");
}

#[test]
fn a_turn_out_of_order_changes_nothing() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    for wrong in [0, 2, u64::MAX] {
        let refused = store.submit(TurnDelta { turn: wrong, changes: vec![set(0, b"a", b"b")] }).unwrap_err();
        assert!(matches!(refused, StoreError::TurnOrder { expected: 1, .. }), "{refused}");
    }
    assert!(matches!(store.wait_durable(1), Err(StoreError::NotSubmitted { turn: 1, newest: 0 })));
    assert_eq!((get(&store, 0, b"a"), store.position().turn), (None, 0));
    durable_turn(&store, vec![]).unwrap();
}

#[test]
fn a_turn_that_is_too_large_is_refused_before_anything_is_queued() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    let calls = disk.calls();
    let huge = vec![0; limits::MAX_TURN_BYTES];
    let refused = turn(&store, vec![set(0, b"small", b"x"), set(0, b"huge", &huge)]).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::CheckpointTooLarge);
    assert_eq!((disk.calls(), store.position().turn, get(&store, 0, b"small")), (calls, 0, None));
    durable_turn(&store, vec![set(0, b"small", b"y")]).unwrap();
    assert!(store.poisoned().is_none());
}

#[test]
fn a_turn_longer_than_a_segment_gets_one_of_its_own() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    let mut random = Random(3);
    let values = [random.bytes(100), random.bytes(300_000), random.bytes(100), random.bytes(2_000_000)];
    for (name, value) in (0u8..).zip(&values) {
        durable_turn(&store, vec![set(0, &[name], value)]).unwrap();
    }
    drop(store);
    let store = open(&disk, no_folds()).unwrap();
    for (name, value) in (0u8..).zip(&values) {
        assert!(get(&store, 0, &[name]).as_ref() == Some(value));
    }
}

#[test]
fn a_fold_leaves_only_the_segment_in_use_and_changes_no_row() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    let mut rows = Rows::new();
    let mut random = Random(4);
    for _ in 0..60 {
        let changes = random.changes();
        apply(&mut rows, &changes);
        durable_turn(&store, changes).unwrap();
    }
    let before = store.sizes().unwrap();
    assert!(before.unfolded_bytes > 50_000 && before.journal_bytes >= before.unfolded_bytes, "{before:?}");
    store.fold().unwrap();
    assert_eq!(store.sizes().unwrap().unfolded_bytes, 0);
    assert_eq!(contents(&store).unwrap(), rows);
    store.fold().unwrap();
    store.close().unwrap();
    let [segments, spares] = ["segment", "spare"].map(|extension| {
        let is_one = |path: &PathBuf| path.starts_with(JOURNAL) && path.extension().is_some_and(|e| e == extension);
        disk.files().iter().filter(|path| is_one(path)).count()
    });
    assert!((1..=2).contains(&segments), "the current one, and perhaps the next one: {segments}");
    assert!((1..=limits::SPARE_SEGMENTS).contains(&spares), "{spares}");
    assert_eq!(contents(&open(&disk, no_folds()).unwrap()).unwrap(), rows);
}

#[test]
fn dropping_a_store_commits_what_was_submitted_and_unlocks_it() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    for n in 0..30 {
        turn(&store, vec![set(0, &[n], &[n])]).unwrap();
    }
    drop(store);
    assert_eq!(open(&disk, no_folds()).unwrap().position().turn, 30);
}

#[test]
fn many_threads_can_wait_and_read_at_once() {
    fn shared<T: Send + Sync>(value: T) -> Arc<T> {
        Arc::new(value)
    }
    let disk = SimulatedDisk::new();
    let store = shared(create(&disk, many_folds()).unwrap());
    let waiters: Vec<_> = (1..=8u64)
        .map(|thread| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                for n in (1..=100).filter(|n| n % 8 == thread % 8) {
                    // Not submitted yet, or not durable yet, or durable.
                    while let Err(error) = store.wait_durable(n) {
                        assert!(matches!(error, StoreError::NotSubmitted { .. }), "{error}");
                        std::thread::yield_now();
                    }
                    let seen = u64::from_le_bytes(get(&store, 0, b"counter").unwrap().try_into().unwrap());
                    assert!(seen >= n);
                    assert_eq!(store.scan(0).unwrap().len(), 1);
                }
            })
        })
        .collect();
    for n in 1..=100u64 {
        turn(&store, vec![set(0, b"counter", &n.to_le_bytes()), set(1, b"filler", &[1; 900])]).unwrap();
    }
    waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
}

#[test]
fn a_callback_that_panics_stops_the_store_and_hangs_nobody() {
    let disk = SimulatedDisk::new();
    let on_durable = |_| panic!("a defect in the callback");
    let store = create(&disk, StoreOptions { on_durable: Some(Box::new(on_durable)), ..no_folds() }).unwrap();
    turn(&store, vec![]).unwrap();
    turn(&store, vec![]).unwrap();
    let error = store.wait_durable(2).and_then(|()| store.begin_epoch(1, [0; 16])).unwrap_err();
    assert_eq!(error.code(), ErrorCode::VatPoisoned);
    assert!(matches!(*store.poisoned().unwrap(), StoreError::Panicked { .. }));
    drop(store);
    assert!(open(&disk, no_folds()).unwrap().position().turn >= 1);
}

/// What is under way when the store stops may still become durable. It is not reported: whoever heard of the
/// error has stopped showing things.
#[test]
fn nothing_is_reported_after_the_store_has_stopped() {
    let gated = Wrapped::new(plain_store_with_a_damaged_row(), Gate::default());
    let gate = Arc::clone(gated.behaviour());
    let (reports, sink) = reports();
    let options = StoreOptions { on_durable: Some(sink), ..no_folds() };
    let store = Store::open(gated, directory(), &VAT, &Protection::Plain, options).unwrap();
    let before = gate.arrived.load(Ordering::SeqCst);
    gate.set(true);
    turn(&store, vec![set(0, b"a", b"b")]).unwrap();
    gate.wait_for_arrivals(before + 1);
    assert_eq!(store.scan(0).unwrap_err().code(), ErrorCode::CheckpointDamaged);
    assert_eq!(store.for_each_row(0, |_, _| {}).unwrap_err().code(), ErrorCode::VatPoisoned);
    gate.set(false);
    assert_eq!(store.wait_durable(2).unwrap_err().code(), ErrorCode::VatPoisoned);
    assert_eq!(store.close().unwrap_err().code(), ErrorCode::VatPoisoned);
    assert_eq!(*reports.lock().unwrap(), [Durable::Poisoned]);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let options = [
        StoreOptions { group_turns: 0, ..no_folds() },
        StoreOptions { group_bytes: 0, ..no_folds() },
        StoreOptions { group_bytes: usize::MAX, ..no_folds() },
        StoreOptions { segment_bytes: 0, ..no_folds() },
        StoreOptions { segment_bytes: u64::MAX, ..no_folds() },
        StoreOptions { fold_bytes: 0, ..no_folds() },
    ];
    let disk = SimulatedDisk::new();
    for options in options {
        assert!(matches!(create(&disk, options), Err(StoreError::Option { .. })));
    }
    assert!(disk.files().is_empty());
}
