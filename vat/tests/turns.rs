//! Turns over a real checkpoint: what an object's author may rely on (R1–R4).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{cell::RefCell, path::Path, rc::Rc, sync::Arc};

use checkpoint::{FileDisk, Protection, Store, StoreOptions};
use proptest::prelude::*;
use schemas::Timestamp;
use vat::{
    ObjectError,
    engine::{Clock, CommitStart, Engine, Outputs},
};

const SPACE: u64 = 16;

fn clock() -> Clock {
    Rc::new(|| Timestamp::from_seconds(1_700_000_000))
}

fn store(folder: &Path, create: bool) -> Store {
    let open = if create { Store::create } else { Store::open };
    open(
        Arc::new(FileDisk),
        &folder.join("store"),
        &[7; 32],
        &Protection::KeyFile(folder.join("key")),
        StoreOptions::default(),
    )
    .unwrap()
}

fn engine(store: Store) -> (Rc<Engine>, Rc<RefCell<Vec<u64>>>) {
    let produced = Rc::new(RefCell::new(Vec::new()));
    (Rc::new(Engine::new(store, clock(), Box::new(Told(produced.clone())))), produced)
}

/// Keeps the numbers that an output gate is told.
struct Told(Rc<RefCell<Vec<u64>>>);

impl Outputs for Told {
    fn produced(&self, turn: u64) -> CommitStart {
        self.0.borrow_mut().push(turn);
        CommitStart::Now
    }
}

fn put(engine: &Engine, name: &[u8], value: &[u8]) {
    engine.turn(|turn| Ok::<_, ObjectError>(turn.put(SPACE, name, value.to_vec())?)).unwrap();
}

#[test]
fn a_turn_that_fails_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, produced) = engine(store(folder.path(), true));
    put(&engine, b"a", b"1");
    let refused: Result<(), ObjectError> = engine.turn(|turn| {
        turn.put(SPACE, b"a", b"2".to_vec())?;
        turn.put(SPACE, b"b", b"3".to_vec())?;
        Err(ObjectError::Refused("changed my mind".to_owned()))
    });
    assert!(matches!(refused, Err(ObjectError::Refused(_))));
    assert_eq!(engine.get(SPACE, b"a").unwrap().unwrap(), b"1");
    assert_eq!(engine.get(SPACE, b"b").unwrap(), None);
    assert_eq!(*produced.borrow(), [1]);
}

#[test]
fn a_turn_that_panics_leaves_nothing_behind_and_the_next_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, _) = engine(store(folder.path(), true));
    let panicked: Result<(), ObjectError> = engine.turn(|turn| {
        turn.put(SPACE, b"a", b"1".to_vec())?;
        panic!("an object's own mistake");
    });
    assert!(matches!(panicked, Err(ObjectError::Panicked)));
    assert_eq!(engine.get(SPACE, b"a").unwrap(), None);
    put(&engine, b"a", b"2");
    assert_eq!(engine.newest_turn(), 1);
}

#[test]
fn a_turn_inside_a_turn_is_refused_and_undoes_both() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, _) = engine(store(folder.path(), true));
    let outer: Result<(), ObjectError> = engine.turn(|turn| {
        turn.put(SPACE, b"outer", b"1".to_vec())?;
        engine.turn(|turn| Ok::<_, ObjectError>(turn.put(SPACE, b"inner", b"1".to_vec())?))
    });
    assert!(matches!(outer, Err(ObjectError::Nested)));
    assert_eq!(engine.newest_turn(), 0);
    put(&engine, b"a", b"1");
}

#[test]
fn what_changes_nothing_takes_no_turn_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, produced) = engine(store(folder.path(), true));
    put(&engine, b"a", b"1");
    let before = engine.store().position();
    engine.turn(|turn| Ok::<_, ObjectError>(turn.get(SPACE, b"a")?)).unwrap();
    put(&engine, b"a", b"1");
    engine
        .turn(|turn| {
            turn.put(SPACE, b"b", b"1".to_vec())?;
            Ok::<_, ObjectError>(turn.remove(SPACE, b"b")?)
        })
        .unwrap();
    assert_eq!(engine.store().position(), before);
    assert_eq!(*produced.borrow(), [1]);
}

#[test]
fn a_turn_reads_what_it_staged() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, _) = engine(store(folder.path(), true));
    engine
        .turn(|turn| {
            turn.put(SPACE, b"a", b"1".to_vec())?;
            assert_eq!(turn.get(SPACE, b"a")?.unwrap(), b"1");
            turn.remove(SPACE, b"a")?;
            assert_eq!(turn.get(SPACE, b"a")?, None);
            Ok::<_, ObjectError>(())
        })
        .unwrap();
}

#[test]
fn the_gate_hears_of_a_turn_before_anyone_hears_its_result() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, produced) = engine(store(folder.path(), true));
    for expected in 1..=5_u64 {
        put(&engine, b"a", &expected.to_be_bytes());
        assert_eq!(produced.borrow().last(), Some(&expected), "told by the time the turn returns");
    }
}

#[test]
fn a_host_that_starts_the_commits_gets_one_frame_for_the_turns_in_between() {
    struct Later;
    impl Outputs for Later {
        fn produced(&self, _turn: u64) -> CommitStart {
            CommitStart::ByHost
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::new(store(folder.path(), true), clock(), Box::new(Later));
    let before = engine.durable().sequence;
    for value in 1..=5_u64 {
        put(&engine, b"a", &value.to_be_bytes());
    }
    engine.start_commit();
    engine.store().wait_durable(5).unwrap();
    assert_eq!(engine.durable().sequence, before + 1);
}

#[derive(Debug, Clone)]
enum Step {
    Turn { changes: Vec<(u8, Option<u8>)>, succeeds: bool },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let changes = proptest::collection::vec((0..6_u8, proptest::option::of(any::<u8>())), 0..6);
    prop_oneof![
        8 => (changes, proptest::bool::weighted(0.8)).prop_map(|(changes, succeeds)| Step::Turn { changes, succeeds }),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever turns succeed, fail, and are interrupted by going to sleep: the rows are those of a plain map.
    #[test]
    fn rows_are_those_of_a_plain_map(steps in proptest::collection::vec(step(), 1..30)) {
        let folder = tempfile::tempdir().unwrap();
        let (mut current, _) = engine(store(folder.path(), true));
        let mut model = std::collections::BTreeMap::<u8, u8>::new();
        for step in steps {
            match step {
                Step::Turn { changes, succeeds } => {
                    let result = current.turn(|turn| {
                        for (name, value) in &changes {
                            match value {
                                Some(value) => turn.put(SPACE, &[*name], vec![*value])?,
                                None => turn.remove(SPACE, &[*name])?,
                            }
                        }
                        if succeeds { Ok(()) } else { Err(ObjectError::Refused("no".to_owned())) }
                    });
                    prop_assert_eq!(result.is_ok(), succeeds);
                    if succeeds {
                        for (name, value) in changes {
                            match value {
                                Some(value) => model.insert(name, value),
                                None => model.remove(&name),
                            };
                        }
                    }
                }
                Step::Reopen => {
                    let turn = current.newest_turn();
                    let closed = Rc::try_unwrap(current).ok().expect("the only owner");
                    closed.close().unwrap();
                    current = engine(store(folder.path(), false)).0;
                    prop_assert_eq!(current.newest_turn(), turn);
                }
            }
            let rows: std::collections::BTreeMap<u8, u8> =
                current.with_rows(SPACE, |rows| rows.iter().map(|(name, value)| (name[0], value[0])).collect()).unwrap();
            prop_assert_eq!(&rows, &model);
        }
    }
}
