//! Folds that meet groups under way, at the moments that decide where replay begins: each is brought about, not
//! waited for. And what a vat that sleeps leaves in memory.

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use super::*;
use crate::{
    limits::MIN_SEGMENT_BYTES,
    simulated::SimulatedDisk,
    wrapped::{Behaviour, Wrapped, WrappedFile},
};

/// Syncs of the journal wait while it is closed.
#[derive(Debug, Default)]
struct Gate {
    /// Whether it is closed, and how many wait.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, closed: bool) {
        self.state.lock().unwrap().0 = closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |(closed, _)| *closed).unwrap();
        state.1 -= 1;
    }

    fn wait_for_somebody(&self) {
        drop(self.changed.wait_while(self.state.lock().unwrap(), |(_, waiting)| *waiting == 0).unwrap());
    }
}

impl Behaviour for Gate {
    fn sync(&self, file: &WrappedFile) -> io::Result<()> {
        if file.path.extension().is_some_and(|extension| extension == "segment") {
            self.pass();
        }
        file.inner.sync_data()
    }
}

const ONE: [u8; 32] = [1; 32];
const TWO: [u8; 32] = [2; 32];
const THREE: [u8; 32] = [3; 32];

struct Subject {
    disk: Arc<SimulatedDisk>,
    wrapped: Arc<Wrapped<Gate>>,
    host: HostStore,
}

fn options() -> StoreOptions {
    StoreOptions {
        segment_bytes: MIN_SEGMENT_BYTES * 16,
        fold_bytes: u64::MAX,
        fold_after: Duration::from_secs(1 << 30),
        ..StoreOptions::default()
    }
}

impl Subject {
    fn new(options: StoreOptions) -> Self {
        let disk = SimulatedDisk::new();
        let wrapped = Wrapped::new(disk.clone(), Gate::default());
        let host = HostStore::create(wrapped.clone(), Path::new("/store"), &Protection::Plain, options).unwrap();
        Self { disk, wrapped, host }
    }

    fn gate(&self) -> &Gate {
        self.wrapped.behaviour()
    }

    fn shared(&self) -> &Shared {
        &self.host.host.shared
    }

    /// Has a fold begin, and waits until it has set the changes so far aside. Unlike [`HostStore::fold`] this commits
    /// nothing. Gives what to wait for.
    fn freeze(&self) -> u64 {
        let ticket = {
            let mut state = self.shared().lock();
            state.fold.requested += 1;
            state.fold.requested
        };
        self.shared().background.notify_one();
        let begun = |state: &State| state.fold.mark.is_some() || state.fold.completed >= ticket;
        while !begun(&self.shared().lock()) {
            thread::yield_now();
        }
        ticket
    }

    fn wait_for_fold(&self, ticket: u64) {
        let mut state = self.shared().lock();
        while state.fold.completed < ticket {
            state = self.shared().wait_for_change(state);
        }
    }

    /// What another process finds once this one was killed: the value of the row of each vat, if it exists.
    fn after_a_kill(self) -> Vec<Option<u8>> {
        let mut history = self.disk.history();
        history.advance(history.len());
        let host = HostStore::open(history.kill(), Path::new("/store"), &Protection::Plain, options()).unwrap();
        let value = |vat: &[u8; 32]| {
            let store = host.open_vat(vat, None).ok()?;
            let row = store.get(&RowKey { space: 1, name: vec![7] }).unwrap();
            // It goes on from there.
            queue(&store, 100);
            store.wait_durable(store.position().turn).unwrap();
            Some(row.map_or(0, |row| row[0]))
        };
        let found = [ONE, TWO, THREE].iter().map(value).collect();
        host.close().unwrap();
        found
    }
}

/// Queues the next turn, which sets the one row.
fn queue(store: &Store, value: u8) {
    let changes = vec![Change { key: RowKey { space: 1, name: vec![7] }, value: Some(vec![value]) }];
    store.queue(TurnDelta { turn: store.position().turn + 1, changes }).unwrap();
}

fn durable(store: &Store, value: u8) {
    queue(store, value);
    store.wait_durable(store.position().turn).unwrap();
}

/// The last group of a fold has a turn that came after the fold had set its changes aside.
#[test]
fn a_turn_that_shares_a_frame_with_the_last_one_of_a_fold_is_not_forgotten() {
    let subject = Subject::new(options());
    let one = subject.host.create_vat(&ONE, None).unwrap();
    queue(&one, 1);
    let fold = subject.freeze();
    queue(&one, 2);
    one.wait_durable(2).unwrap();
    subject.wait_for_fold(fold);
    assert_eq!(one.last_fold().turn, 1);
    drop(one);
    assert_eq!(subject.after_a_kill(), [Some(2), None, None]);
}

/// The same with a frame of another vat in the last group.
#[test]
fn a_vat_that_shares_a_group_with_the_last_turn_of_a_fold_is_not_forgotten() {
    let subject = Subject::new(options());
    let (one, two) = (subject.host.create_vat(&ONE, None).unwrap(), subject.host.create_vat(&TWO, None).unwrap());
    subject.host.fold().unwrap();
    queue(&one, 1);
    let fold = subject.freeze();
    queue(&two, 2);
    one.wait_durable(1).unwrap();
    subject.wait_for_fold(fold);
    drop((one, two));
    assert_eq!(subject.after_a_kill(), [Some(1), Some(2), None]);
}

/// A fold has left the head of a vat behind its last frame, because replay began before it. What becomes of the vat
/// then: the next fold moves the place, and it takes another turn or none, here or after a kill, awake or asleep.
#[test]
fn a_vat_whose_last_frame_a_fold_could_not_count_goes_on_after_the_next_fold() {
    for (sleeps, folds, goes_on) in (0..8).map(|choice: u8| (choice & 1 != 0, choice & 2 != 0, choice & 4 != 0)) {
        let subject = Subject::new(options());
        let (mut one, two) =
            (subject.host.create_vat(&ONE, None).unwrap(), subject.host.create_vat(&TWO, None).unwrap());
        subject.host.fold().unwrap();
        queue(&one, 1);
        let fold = subject.freeze();
        queue(&two, 2);
        one.wait_durable(1).unwrap();
        subject.wait_for_fold(fold);
        if sleeps {
            drop(one);
            one = subject.host.open_vat(&ONE, None).unwrap();
        }
        if folds {
            subject.host.fold().unwrap();
        }
        if sleeps {
            drop(one);
            one = subject.host.open_vat(&ONE, None).unwrap();
        }
        if goes_on {
            durable(&one, 3);
        }
        drop((one, two));
        let value = if goes_on { 3 } else { 1 };
        assert_eq!(subject.after_a_kill(), [Some(value), Some(2), None], "{sleeps} {folds} {goes_on}");
    }
}

/// Tells what it is told, and first waits until it may.
fn telling(told: &Arc<Mutex<Vec<(u8, Durable)>>>, name: u8, gate: &Arc<Gate>) -> Option<OnDurable> {
    let (told, gate) = (Arc::clone(told), Arc::clone(gate));
    Some(Box::new(move |durable| {
        gate.pass();
        told.lock().unwrap().push((name, durable));
    }))
}

/// A vat is closed and opened again while its last group is still being told of.
#[test]
fn a_callback_is_told_of_the_turns_of_its_own_opener_only() {
    let (subject, told, gate) = (Subject::new(options()), Arc::default(), Arc::<Gate>::default());
    let one = subject.host.create_vat(&ONE, telling(&told, 1, &gate)).unwrap();
    told.lock().unwrap().clear();
    gate.set(true);
    one.submit(TurnDelta { turn: 1, changes: vec![] }).unwrap();
    gate.wait_for_somebody();
    drop(one);
    let again = subject.host.open_vat(&ONE, telling(&told, 2, &gate)).unwrap();
    gate.set(false);
    again.wait_durable(1).unwrap();
    again.submit(TurnDelta { turn: 2, changes: vec![] }).unwrap();
    again.wait_durable(2).unwrap();
    drop((again, subject));
    assert_eq!(*told.lock().unwrap(), [(1, Durable::Turn(1)), (2, Durable::Turn(2))]);
}

/// While a fold waits for its last group, the one before it is still under way: with an epoch of a vat that has
/// nothing to fold, and with a vat that comes into being.
#[test]
fn what_the_group_before_the_last_one_of_a_fold_did_is_not_forgotten() {
    let subject = Subject::new(options());
    let (one, two) = (subject.host.create_vat(&ONE, None).unwrap(), subject.host.create_vat(&TWO, None).unwrap());
    durable(&two, 2);
    subject.host.fold().unwrap();
    subject.gate().set(true);
    thread::scope(|scope| {
        scope.spawn(|| two.begin_epoch(5, [5; 16]).unwrap());
        subject.gate().wait_for_somebody();
        queue(&one, 1);
        let fold = subject.freeze();
        subject.gate().set(false);
        one.wait_durable(1).unwrap();
        subject.wait_for_fold(fold);
    });
    subject.gate().set(true);
    thread::scope(|scope| {
        scope.spawn(|| subject.host.create_vat(&THREE, None).unwrap());
        subject.gate().wait_for_somebody();
        queue(&one, 3);
        let fold = subject.freeze();
        subject.gate().set(false);
        one.wait_durable(2).unwrap();
        subject.wait_for_fold(fold);
    });
    assert_eq!(two.durable().epoch, 5);
    drop((one, two));
    assert_eq!(subject.after_a_kill(), [Some(3), Some(2), Some(0)]);
}

/// More vats than a group takes: a fold ends with several groups, and an early one has a later turn.
#[test]
fn a_fold_over_several_groups_forgets_no_later_turn_of_any() {
    let subject = Subject::new(StoreOptions { group_vats: 1, ..options() });
    let stores = [ONE, TWO, THREE].map(|vat| subject.host.create_vat(&vat, None).unwrap());
    subject.host.fold().unwrap();
    for round in 0..3_u8 {
        for (store, value) in stores.iter().zip(1..) {
            queue(store, 10 * round + value);
        }
        let fold = subject.freeze();
        // In the first group, of which the fold wants the first turn only.
        queue(&stores[0], 10 * round + 9);
        stores[2].wait_durable(u64::from(round) + 1).unwrap();
        subject.wait_for_fold(fold);
    }
    let [one, two, three] = stores;
    drop((one, two, three));
    assert_eq!(subject.after_a_kill(), [Some(29), Some(22), Some(23)]);
}

#[test]
fn a_vat_that_sleeps_leaves_nothing_in_memory_once_it_is_folded() {
    let subject = Subject::new(options());
    let vats = |subject: &Subject| subject.shared().lock().vats.len();
    let one = subject.host.create_vat(&ONE, None).unwrap();
    durable(&one, 1);
    one.close().unwrap();
    assert_eq!(vats(&subject), 1, "its changes are only in the journal and here");
    subject.host.fold().unwrap();
    assert_eq!(vats(&subject), 0);

    // Waking and sleeping again leaves nothing either, and needs no fold.
    let one = subject.host.open_vat(&ONE, None).unwrap();
    assert_eq!((one.position().turn, vats(&subject)), (1, 1));
    drop(one);
    assert_eq!(vats(&subject), 0);

    // Nor does sleeping while it is folded.
    let one = subject.host.open_vat(&ONE, None).unwrap();
    queue(&one, 2);
    let fold = subject.freeze();
    drop(one);
    subject.wait_for_fold(fold);
    assert_eq!((vats(&subject), subject.host.vats().unwrap()), (0, vec![ONE]));
    assert_eq!(subject.after_a_kill(), [Some(2), None, None]);
}
