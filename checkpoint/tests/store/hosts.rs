//! One store for many vats: that they share a sync and nothing else.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use checkpoint::{
    Durable, HostStore, OnDurable, Protection, Store, StoreError, StoreOptions, TurnDelta,
    simulated::{Fault, SimulatedDisk},
    wrapped::{Behaviour, Wrapped, WrappedFile},
};
use proptest::prelude::*;
use schemas::{Coded, ErrorCode};

use crate::harness::*;

const ONE: [u8; 32] = [1; 32];
const TWO: [u8; 32] = [2; 32];
const THREE: [u8; 32] = [3; 32];
const SEGMENT: &str = "/store/journal/0000000000000000.segment";

fn host(disk: &Arc<SimulatedDisk>, protection: &Protection) -> HostStore {
    HostStore::create(disk.clone(), directory(), protection, large_segments()).unwrap()
}

fn reopened(disk: &Arc<SimulatedDisk>, protection: &Protection) -> Result<HostStore, StoreError> {
    HostStore::open(disk.clone(), directory(), protection, large_segments())
}

fn queue(store: &Store, value: &[u8]) -> u64 {
    let turn = store.position().turn + 1;
    store.queue(TurnDelta { turn, changes: vec![set(0, b"row", value)] }).unwrap();
    turn
}

fn code<T: std::fmt::Debug>(refused: Result<T, StoreError>) -> ErrorCode {
    refused.unwrap_err().code()
}

#[test]
fn each_vat_has_its_own_rows_turns_and_epochs() {
    let disk = SimulatedDisk::new();
    let host = host(&disk, &sealed());
    let (one, two) = (host.create_vat(&ONE, None).unwrap(), host.create_vat(&TWO, None).unwrap());
    durable_turn(&one, vec![set(0, b"row", b"one"), set(1, b"only", b"one")]).unwrap();
    durable_turn(&two, vec![set(0, b"row", b"two")]).unwrap();
    two.begin_epoch(7, [7; 16]).unwrap();
    for folded in [false, true] {
        if folded {
            host.fold().unwrap();
        }
        assert_eq!(get(&one, 0, b"row").unwrap(), b"one");
        assert_eq!(get(&two, 0, b"row").unwrap(), b"two");
        assert_eq!((two.scan(1).unwrap(), one.scan(1).unwrap().len()), (vec![], 1));
        assert_eq!((one.durable().epoch, two.durable().epoch), (0, 7));
        assert_eq!((one.durable().sequence, two.durable().sequence), (2, 3));
    }
    let (turn, census) = two.verify(&mut |_| ()).unwrap();
    assert_eq!((turn, census.rows), (1, 1));
    let mut vats = host.vats().unwrap();
    vats.sort_unstable();
    assert_eq!(vats, [ONE, TWO]);
}

#[test]
fn a_vat_is_made_once_and_awake_once() {
    let disk = SimulatedDisk::new();
    let host = host(&disk, &sealed());
    assert!(matches!(host.open_vat(&ONE, None), Err(StoreError::NoSuchVat { vat: ONE, .. })));
    let one = host.create_vat(&ONE, None).unwrap();
    assert_eq!(code(host.create_vat(&ONE, None)), ErrorCode::VatExists);
    assert_eq!(code(host.open_vat(&ONE, None)), ErrorCode::VatRunning);
    drop(one);
    assert_eq!(code(host.create_vat(&ONE, None)), ErrorCode::VatExists);
    host.fold().unwrap();
    assert_eq!(code(host.create_vat(&ONE, None)), ErrorCode::VatExists, "also one that is in the base only");
    let one = host.open_vat(&ONE, None).unwrap();

    // The store is locked as long as anybody has a vat of it.
    host.close().unwrap();
    assert_eq!(code(reopened(&disk, &sealed())), ErrorCode::VatRunning);
    durable_turn(&one, vec![]).unwrap();
    one.close().unwrap();
    let host = reopened(&disk, &sealed()).unwrap();
    let one = host.open_vat(&ONE, None).unwrap();
    assert_eq!(one.position().turn, 1);
    let lock = one.close_and_keep_locked().unwrap();
    assert_eq!(code(host.open_vat(&ONE, None)), ErrorCode::VatRunning, "kept from everybody");
    drop(lock);
    host.open_vat(&ONE, None).unwrap();
}

#[test]
fn a_store_of_one_vat_can_become_one_of_many() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, large_segments()).unwrap();
    durable_turn(&store, vec![set(0, b"row", b"first")]).unwrap();
    store.close().unwrap();
    let host = reopened(&disk, &sealed()).unwrap();
    let (first, second) = (host.open_vat(&VAT, None).unwrap(), host.create_vat(&TWO, None).unwrap());
    durable_turn(&second, vec![set(0, b"row", b"second")]).unwrap();
    assert_eq!(get(&first, 0, b"row").unwrap(), b"first");
    drop((first, second, host));

    // And each of its vats can be opened as if it were the only one.
    let store = open(&disk, large_segments()).unwrap();
    assert_eq!(get(&store, 0, b"row").unwrap(), b"first");
    drop(store);
    let other = |vat: &[u8; 32]| Store::open(disk.clone(), directory(), vat, &sealed(), large_segments());
    assert_eq!(get(&other(&TWO).unwrap(), 0, b"row").unwrap(), b"second");
    assert_eq!(code(other(&THREE)), ErrorCode::CheckpointWrongVat);
}

fn telling(told: &Arc<Mutex<Vec<(u8, Durable)>>>, name: u8) -> Option<OnDurable> {
    let told = Arc::clone(told);
    Some(Box::new(move |durable| told.lock().unwrap().push((name, durable))))
}

#[test]
fn each_vat_is_told_of_its_own_turns_and_all_of_the_end() {
    let (disk, told) = (SimulatedDisk::new(), Arc::default());
    let host = host(&disk, &sealed());
    let (one, two) =
        (host.create_vat(&ONE, telling(&told, 1)).unwrap(), host.create_vat(&TWO, telling(&told, 2)).unwrap());
    let asleep = host.create_vat(&THREE, telling(&told, 3)).unwrap();
    drop(asleep);
    told.lock().unwrap().clear();
    queue(&one, b"1");
    let turn = queue(&two, b"2");
    two.wait_durable(turn).unwrap();
    assert_eq!(*told.lock().unwrap(), [(1, Durable::Turn(1)), (2, Durable::Turn(1))], "one group");
    told.lock().unwrap().clear();

    disk.inject(disk.calls() + 1, Fault::Broken);
    assert_eq!(code(durable_turn(&one, vec![set(0, b"row", b"3")])), ErrorCode::VatPoisoned);
    for stopped in [code(turn_of(&two)), code(host.create_vat(&[9; 32], None)), code(host.open_vat(&THREE, None))] {
        assert_eq!(stopped, ErrorCode::VatPoisoned);
    }
    assert!(one.close().is_err());
    drop(two);
    assert!(host.close().is_err());
    let mut told = told.lock().unwrap().clone();
    told.sort_by_key(|(name, _)| *name);
    assert_eq!(told, [(1, Durable::Poisoned), (2, Durable::Poisoned)]);
    let options = StoreOptions { on_durable: Some(Box::new(|_| ())), ..large_segments() };
    let refused = HostStore::open(disk, directory(), &sealed(), options);
    assert!(matches!(refused, Err(StoreError::Option { option: "on_durable", .. })));
}

fn turn_of(store: &Store) -> Result<u64, StoreError> {
    turn(store, vec![set(0, b"row", b"later")])
}

/// Counts the syncs of segments.
#[derive(Debug, Default)]
struct Counting(AtomicU64);

impl Behaviour for Counting {
    fn sync(&self, file: &WrappedFile) -> io::Result<()> {
        self.0.fetch_add(u64::from(file.path.extension().is_some_and(|name| name == "segment")), Ordering::SeqCst);
        file.inner.sync_data()
    }
}

#[test]
fn many_vats_share_one_sync() {
    let disk = Wrapped::new(SimulatedDisk::new(), Counting::default());
    let host = HostStore::create(disk.clone(), directory(), &sealed(), large_segments()).unwrap();
    let stores: Vec<Store> = (1..=100).map(|vat| host.create_vat(&[vat; 32], None).unwrap()).collect();
    let before = disk.behaviour().0.load(Ordering::SeqCst);
    for store in &stores {
        queue(store, b"value");
    }
    stores[0].wait_durable(1).unwrap();
    assert!(stores.iter().all(|store| store.durable().turn == 1));
    assert_eq!(disk.behaviour().0.load(Ordering::SeqCst), before + 1);
}

/// A journal of six sectors: two vats come into being, and then take two turns each, always together.
struct Pair {
    disk: Arc<SimulatedDisk>,
    protection: Protection,
}

impl Pair {
    fn new(protection: &Protection) -> Self {
        let disk = SimulatedDisk::new();
        let host = host(&disk, protection);
        let (one, two) = (host.create_vat(&ONE, None).unwrap(), host.create_vat(&TWO, None).unwrap());
        for value in [b"1", b"2"] {
            queue(&one, value);
            let turn = queue(&two, value);
            two.wait_durable(turn).unwrap();
        }
        drop((one, two, host));
        Self { disk, protection: protection.clone() }
    }

    fn journal(&self) -> Vec<u8> {
        self.disk.contents(Path::new(SEGMENT)).unwrap()
    }

    /// The turns of the two vats when the journal is this.
    fn turns(&self, journal: &[u8]) -> Result<(u64, u64), StoreError> {
        let disk = self.disk.copy();
        disk.replace(Path::new(SEGMENT), journal);
        let host = reopened(&disk, &self.protection)?;
        let (one, two) = (host.open_vat(&ONE, None)?, host.open_vat(&TWO, None)?);
        for store in [&one, &two] {
            let value = (store.position().turn > 0).then(|| store.position().turn.to_string().into_bytes());
            assert_eq!(get(store, 0, b"row"), value);
        }
        Ok((one.position().turn, two.position().turn))
    }
}

/// Every journal in which the last four sectors are any of these, or zeros.
#[test]
fn frames_of_a_group_stay_together_and_in_order_or_are_refused() {
    for protection in [sealed(), Protection::Plain] {
        let pair = Pair::new(&protection);
        let journal = pair.journal();
        assert!(journal[6 * 512..].iter().all(|byte| *byte == 0));
        on_two_threads(5_u64.pow(4), |number| {
            let picked: Vec<usize> = (0..4).map(|place| (number / 5_u64.pow(place) % 5) as usize).collect();
            let mut changed = journal.clone();
            for (place, sector) in (2..).zip(&picked) {
                let source = if *sector == 0 { vec![0; 512] } else { journal[(sector + 1) * 512..][..512].to_vec() };
                changed[place * 512..][..512].copy_from_slice(&source);
            }
            // What a write that did not finish can leave: of the last group any part.
            let part = |sectors: &[usize], first: usize| {
                sectors.iter().enumerate().all(|(place, sector)| *sector == 0 || *sector == first + place)
            };
            let expected = match picked.as_slice() {
                [1, 2, 3, 4] => Some(2),
                [1, 2, rest @ ..] if part(rest, 3) => Some(1),
                [rest @ .., 0, 0] if part(rest, 1) => Some(0),
                _ => None,
            };
            match (pair.turns(&changed), expected) {
                (Ok(turns), Some(turn)) => assert_eq!(turns, (turn, turn), "{picked:?}"),
                (Err(error), None) => assert_eq!(error.code(), ErrorCode::CheckpointDamaged, "{picked:?}: {error}"),
                (found, expected) => panic!("{picked:?}: {found:?}, expected {expected:?}"),
            }
        });
    }
}

#[test]
fn every_changed_bit_of_groups_of_two_vats_is_found() {
    for protection in [sealed(), Protection::Plain] {
        let pair = Pair::new(&protection);
        let journal = pair.journal();
        on_two_threads(6 * 512, |byte| {
            for bit in 0..8 {
                let mut changed = journal.clone();
                changed[byte as usize] ^= 1 << bit;
                assert!(pair.turns(&changed).is_err(), "bit {bit} of byte {byte}");
            }
        });
    }
}

/// The same store twice, which went on with a turn of one vat here and with one of another there. What came after that
/// fits both by its vat and by the number of its group.
#[test]
fn a_group_cannot_take_the_place_of_another_one_of_other_vats() {
    for protection in [sealed(), Protection::Plain] {
        let pair = Pair::new(&protection);
        let grown = |first: &[u8; 32]| {
            let disk = pair.disk.copy();
            let host = reopened(&disk, &protection).unwrap();
            let first = host.open_vat(first, None).unwrap();
            durable_turn(&first, vec![set(0, b"row", b"3")]).unwrap();
            let third = host.create_vat(&THREE, None).unwrap();
            drop((first, third, host));
            disk.contents(Path::new(SEGMENT)).unwrap()
        };
        let (mut one, two) = (grown(&ONE), grown(&TWO));
        assert_eq!((pair.turns(&one).unwrap(), pair.turns(&two).unwrap()), ((3, 2), (2, 3)));
        one[6 * 512..7 * 512].copy_from_slice(&two[6 * 512..7 * 512]);
        assert_eq!(code(pair.turns(&one)), ErrorCode::CheckpointDamaged);
    }
}

/// Under one key file, but each store has a root key of its own.
#[test]
fn a_file_of_another_store_is_refused() {
    let disk = SimulatedDisk::new();
    let pair = Pair::new(&sealed());
    disk.replace(Path::new("/key"), &pair.disk.contents(Path::new("/key")).unwrap());
    drop(host(&disk, &sealed()));
    for file in [SEGMENT, BASE] {
        let mixed = disk.copy();
        mixed.replace(Path::new(file), &pair.disk.contents(Path::new(file)).unwrap());
        let opened = reopened(&mixed, &sealed()).and_then(|host| host.open_vat(&ONE, None));
        assert!(opened.is_err(), "{file}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Turn(u8, Vec<u8>),
    Epoch(u8),
    Sleep(u8),
    Fold,
    Reopen,
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let vat = || 0..4_u8;
    let step = prop_oneof![
        12 => (vat(), prop::collection::vec(any::<u8>(), 0..900)).prop_map(|(vat, value)| Step::Turn(vat, value)),
        1 => vat().prop_map(Step::Epoch),
        4 => vat().prop_map(Step::Sleep),
        2 => Just(Step::Fold),
        1 => Just(Step::Reopen),
        2 => Just(Step::Kill),
    ];
    prop::collection::vec(step, 1..60)
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct VatModel {
    turn: u64,
    epoch: u64,
    value: Vec<u8>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Turns are durable before the next step, so what is there is known at any time, also after a kill.
    #[test]
    fn a_host_is_a_map_of_vats_that_never_forget(steps in steps(), folds in any::<bool>()) {
        let options = || if folds { many_folds() } else { no_folds() };
        let mut disk = SimulatedDisk::new();
        let mut host = HostStore::create(disk.clone(), directory(), &sealed(), options()).unwrap();
        let (mut models, mut awake) = (BTreeMap::<u8, VatModel>::new(), BTreeMap::<u8, Store>::new());
        for step in steps {
            match step {
                Step::Turn(vat, value) => {
                    let id = [vat + 1; 32];
                    let store = awake.entry(vat).or_insert_with(|| match models.get(&vat) {
                        Some(_) => host.open_vat(&id, None).unwrap(),
                        None => host.create_vat(&id, None).unwrap(),
                    });
                    let model = models.entry(vat).or_default();
                    prop_assert_eq!(store.position().turn, model.turn);
                    prop_assert_eq!(store.durable().epoch, model.epoch);
                    prop_assert_eq!(get(store, 0, b"row").unwrap_or_default(), model.value.clone());
                    model.turn = durable_turn(store, vec![set(0, b"row", &value)]).unwrap();
                    model.value = value;
                }
                Step::Epoch(vat) => {
                    if let (Some(store), Some(model)) = (awake.get(&vat), models.get_mut(&vat)) {
                        model.epoch += 1;
                        store.begin_epoch(model.epoch, [1; 16]).unwrap();
                    }
                }
                Step::Sleep(vat) => drop(awake.remove(&vat)),
                Step::Fold => host.fold().unwrap(),
                Step::Reopen | Step::Kill => {
                    let kill = matches!(step, Step::Kill);
                    let mut history = disk.history();
                    history.advance(history.len());
                    let killed = history.kill();
                    awake.clear();
                    host.close().unwrap();
                    disk = if kill { killed } else { disk };
                    host = HostStore::open(disk.clone(), directory(), &sealed(), options()).unwrap();
                    prop_assert_eq!(host.vats().unwrap().len(), models.len());
                }
            }
        }
    }
}
