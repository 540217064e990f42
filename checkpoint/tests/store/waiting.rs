//! Who commits: a thread that waits in the store, or the store's own (R4).

use std::{
    sync::{atomic::Ordering, mpsc},
    thread::{self, ThreadId},
    time::Duration,
};

use checkpoint::{
    Durable, Store, StoreOptions, TurnDelta,
    simulated::{Fault, SimulatedDisk},
    wrapped::Wrapped,
};

use crate::{
    commits::Gate,
    harness::{VAT, create, directory, no_folds, sealed, set, turn},
};

/// Every report, and the thread that it came on.
fn told() -> (StoreOptions, mpsc::Receiver<(Durable, ThreadId)>) {
    let (reports, told) = mpsc::channel();
    let on_durable = move |report| reports.send((report, thread::current().id())).unwrap();
    (StoreOptions { on_durable: Some(Box::new(on_durable)), ..no_folds() }, told)
}

fn queue(store: &Store, turn: u64) {
    store.queue(TurnDelta { turn, changes: vec![set(0, b"row", &[1])] }).unwrap();
}

#[test]
fn who_waits_for_an_idle_committer_does_its_work_and_who_does_not_wait_never() {
    let (options, told) = told();
    let store = create(&SimulatedDisk::new(), options).unwrap();
    let own = thread::current().id();
    for turn in 1..=3 {
        queue(&store, turn);
        store.wait_durable(turn).unwrap();
        assert_eq!(told.recv().unwrap(), (Durable::Turn(turn), own));
    }
    store.begin_epoch(1, [1; 16]).unwrap();
    assert_eq!(told.recv().unwrap(), (Durable::Turn(3), own));
    for _ in 0..3 {
        let turn = turn(&store, vec![set(0, b"row", &[2])]).unwrap();
        let (report, thread) = told.recv().unwrap();
        assert_eq!(report, Durable::Turn(turn));
        assert_ne!(thread, own);
    }
}

#[test]
fn what_is_queued_while_a_waiting_thread_commits_becomes_durable_though_nobody_asks() {
    for _ in 0..20 {
        let (options, told) = told();
        let disk = Wrapped::new(SimulatedDisk::new(), Gate::default());
        let gate = disk.behaviour().clone();
        let store = Store::create(disk, directory(), &VAT, &sealed(), options).unwrap();
        let before = gate.arrived.load(Ordering::SeqCst);
        gate.set(true);
        queue(&store, 1);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                store.wait_durable(1).unwrap();
                thread::current().id()
            });
            gate.wait_for_arrivals(before + 1);
            queue(&store, 2);
            gate.set(false);
            assert_eq!(told.recv().unwrap(), (Durable::Turn(1), waiting.join().unwrap()));
        });
        // Much longer than it can take, and the test has failed.
        let (report, _) = told.recv_timeout(Duration::from_secs(60)).expect("the next group was forgotten");
        assert_eq!(report, Durable::Turn(2));
    }
}

#[test]
fn an_error_in_the_hands_of_a_waiting_thread_stops_the_store_and_is_reported_once() {
    let (options, told) = told();
    let disk = SimulatedDisk::new();
    let store = create(&disk, options).unwrap();
    queue(&store, 1);
    disk.inject(disk.calls() + 1, Fault::Broken);
    assert!(store.wait_durable(1).is_err());
    assert_eq!(told.recv().unwrap().0, Durable::Poisoned);
    assert!(store.close().is_err());
    assert!(told.recv().is_err(), "nothing comes after it");
}
