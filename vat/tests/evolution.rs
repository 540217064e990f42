//! Programs change what they store: old rows are upgraded, one by one or all at once, and newer ones are refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{cell::Cell, path::Path, rc::Rc, sync::Arc};

use capnp::capability::FromClientHook;
use checkpoint::{Change, Protection, RowKey, Store, StoreOptions, TurnDelta, simulated::SimulatedDisk};
use futures::executor::block_on;
use schemas::{
    Coded, ErrorCode, Secret, SturdyRef, Timestamp, VatId,
    objects_capnp::{counter, directory},
};
use serde::{Deserialize, Serialize};
use vat::{
    Handle, Kind, Kinds, ObjectError, Reference, RowProblem, State,
    core::{Vat, VatError},
    engine::NoOutputs,
};

/// What the first version of a program stored.
mod first {
    use super::*;

    #[derive(Clone, Default, Serialize, Deserialize)]
    pub(crate) struct Score(pub(crate) u64, pub(crate) Vec<Reference>);

    impl State for Score {
        const TYPE: &'static str = "test.score";
    }

    #[derive(Clone, Serialize, Deserialize)]
    pub(crate) struct Round(pub(crate) u64);

    impl State for Round {
        const TYPE: &'static str = "test.round";
    }
}

/// What is wrong with the second version.
#[derive(Clone, Copy, PartialEq)]
enum Mistake {
    None,
    Refuses,
    Panics,
}

thread_local! {
    static MISTAKE: Cell<Mistake> = const { Cell::new(Mistake::None) };
}

/// What the second version stores.
mod second {
    use super::*;

    #[derive(Clone, Default, Serialize, Deserialize)]
    pub(crate) struct Score {
        pub(crate) points: u64,
        pub(crate) others: Vec<Reference>,
        pub(crate) note: String,
    }

    impl State for Score {
        const TYPE: &'static str = "test.score";
        const VERSION: u32 = 2;

        fn upgrade(_: u32, body: &[u8]) -> Result<Self, RowProblem> {
            let first::Score(points, others) = postcard::from_bytes(body)?;
            Ok(Self { points, others, note: "from the first version".to_owned() })
        }
    }

    #[derive(Clone, Serialize, Deserialize)]
    pub(crate) struct Round {
        pub(crate) points: u64,
        pub(crate) doubled: bool,
    }

    impl State for Round {
        const TYPE: &'static str = "test.round";
        const VERSION: u32 = 3;

        fn upgrade(version: u32, body: &[u8]) -> Result<Self, RowProblem> {
            match MISTAKE.get() {
                Mistake::None => {}
                Mistake::Refuses => return Err(RowProblem::NoUpgrade { found: version }),
                Mistake::Panics => panic!("a mistake in the program"),
            }
            let first::Round(points) = postcard::from_bytes(body)?;
            Ok(Self { points, doubled: false })
        }
    }
}

struct First(Handle<first::Score>);

impl counter::Server for First {
    /// Adds a round, and makes an object that it keeps.
    async fn add(self: Rc<Self>, params: counter::AddParams, mut results: counter::AddResults) -> capnp::Result<()> {
        let points = params.get()?.get_by();
        let total = self.0.turn(|score, turn| {
            score.0 += points;
            turn.put(&points.to_be_bytes(), &first::Round(points))?;
            score.1.push(turn.create_with("score", &first::Score(1, Vec::new()))?);
            Ok(score.0)
        })?;
        results.get().set_total(total);
        Ok(())
    }
}

struct Second(Handle<second::Score>);

impl counter::Server for Second {
    async fn add(self: Rc<Self>, params: counter::AddParams, mut results: counter::AddResults) -> capnp::Result<()> {
        let points = params.get()?.get_by();
        let total = self.0.turn(|score, turn| {
            score.points += points;
            turn.put(&points.to_be_bytes(), &second::Round { points, doubled: true })?;
            Ok(score.points)
        })?;
        results.get().set_total(total);
        Ok(())
    }

    async fn get(self: Rc<Self>, _: counter::GetParams, mut results: counter::GetResults) -> capnp::Result<()> {
        let total = self.0.read(|score, entries| {
            let (names, _) = entries.names(b"", None, 100)?;
            let rounds =
                names.iter().map(|name| Ok(entries.get::<second::Round>(name)?.map_or(0, |round| round.points)));
            assert_eq!(rounds.sum::<Result<u64, ObjectError>>()?, score.points);
            assert_eq!(score.note, "from the first version");
            Ok(score.points)
        })?;
        results.get().set_total(total);
        Ok(())
    }
}

fn kinds(version: u32) -> Kinds {
    let kind = match version {
        1 => Kind::new("score", "", &[], |handle| -> counter::Client { capnp_rpc::new_client(First(handle)) })
            .with_entry::<first::Round>(),
        _ => Kind::new("score", "", &[], |handle| -> counter::Client { capnp_rpc::new_client(Second(handle)) })
            .with_entry::<second::Round>(),
    };
    Kinds::built_in().with(kind)
}

const FOLDER: &str = "/store";

fn store(disk: &Arc<SimulatedDisk>, id: VatId) -> Store {
    let options = StoreOptions { group_turns: 1, ..StoreOptions::default() };
    Store::open(disk.clone(), Path::new(FOLDER), id.as_bytes(), &Protection::Plain, options).unwrap()
}

fn open(disk: &Arc<SimulatedDisk>, id: VatId, version: u32) -> Result<Vat, VatError> {
    let clock = Rc::new(|| Timestamp::from_seconds(1_700_000_000));
    Vat::open(store(disk, id), id, kinds(version), clock, Box::new(NoOutputs))
}

fn add(vat: &Vat, by: u64) -> u64 {
    let mut request = counter::Client::new(vat.root().unwrap().0).add_request();
    request.get().set_by(by);
    block_on(request.send().promise).unwrap().get().unwrap().get_total()
}

fn total(vat: &Vat) -> Result<u64, capnp::Error> {
    let request = counter::Client::new(vat.root()?.0).get_request();
    block_on(request.send().promise)?.get().map(|results| results.get_total())
}

fn settle(vat: &Vat) {
    vat.engine().store().wait_durable(vat.engine().newest_turn()).unwrap();
}

/// A vat of the first version with two rounds: five rows of it are of older versions than the second knows (the scores of
/// three objects, and two rounds).
fn old_vat() -> (Arc<SimulatedDisk>, VatId) {
    let disk = SimulatedDisk::new();
    let id = Vat::create(disk.clone(), Path::new(FOLDER), &Protection::Plain, &kinds(1), "score").unwrap();
    let vat = open(&disk, id, 1).unwrap();
    assert_eq!((add(&vat, 3), add(&vat, 4)), (3, 7));
    settle(&vat);
    drop(vat);
    (disk, id)
}

const OLD_ROWS: u64 = 5;

#[track_caller]
fn is_refused_as_newer(opened: Result<Vat, VatError>) {
    let Err(refused) = opened else { panic!("it was opened") };
    assert_eq!((refused.code(), refused.code().exit() as u8), (ErrorCode::CheckpointVersion, 11));
    assert!(refused.to_string().contains("test."), "it names what is newer: {refused}");
}

#[test]
fn a_row_is_upgraded_when_it_is_read_and_from_its_next_write_on_the_old_program_is_refused() {
    let (disk, id) = old_vat();
    {
        let vat = open(&disk, id, 2).unwrap();
        assert_eq!(total(&vat).unwrap(), 7);
    }
    drop(open(&disk, id, 1).expect("reading alone changes nothing"));
    {
        let vat = open(&disk, id, 2).unwrap();
        assert_eq!(add(&vat, 5), 12);
        assert_eq!(total(&vat).unwrap(), 12);
        settle(&vat);
    }
    is_refused_as_newer(open(&disk, id, 1));
    let vat = open(&disk, id, 2).unwrap();
    assert_eq!(vat.try_upgrade().unwrap(), OLD_ROWS - 1, "the others are as they were");
    assert_eq!(total(&vat).unwrap(), 12);
}

#[test]
fn an_upgrade_brings_all_rows_of_all_objects_to_the_newest_form_in_one_turn() {
    let (disk, id) = old_vat();
    let vat = open(&disk, id, 2).unwrap();
    let before = vat.engine().newest_turn();
    assert_eq!(vat.try_upgrade().unwrap(), OLD_ROWS);
    assert_eq!(vat.engine().newest_turn(), before, "trying changes nothing");
    assert_eq!(vat.upgrade().unwrap(), OLD_ROWS);
    assert_eq!(vat.engine().newest_turn(), before + 1);
    assert_eq!((vat.upgrade().unwrap(), vat.try_upgrade().unwrap()), (0, 0));
    assert_eq!(vat.engine().newest_turn(), before + 1, "nothing is left to do");
    assert_eq!(total(&vat).unwrap(), 7);
    settle(&vat);
    drop(vat);
    is_refused_as_newer(open(&disk, id, 1));
    let vat = open(&disk, id, 2).unwrap();
    assert_eq!(vat.sweep().unwrap().objects, 0, "what is referred to was not forgotten");
    assert_eq!((vat.object_count().unwrap(), total(&vat).unwrap()), (3, 7));
}

#[test]
fn an_upgrade_that_fails_or_panics_for_one_row_leaves_all_as_they_were() {
    let (disk, id) = old_vat();
    let vat = open(&disk, id, 2).unwrap();
    let before = vat.engine().newest_turn();
    MISTAKE.set(Mistake::Refuses);
    for outcome in [vat.upgrade(), vat.try_upgrade()] {
        let refused = outcome.unwrap_err();
        assert!(matches!(&refused, VatError::Object(ObjectError::Row { what: "test.round", .. })), "{refused}");
    }
    MISTAKE.set(Mistake::Panics);
    assert!(matches!(vat.upgrade(), Err(VatError::Object(ObjectError::Panicked))));
    MISTAKE.set(Mistake::None);
    assert_eq!(vat.engine().newest_turn(), before);
    drop(vat);
    drop(open(&disk, id, 1).expect("the old program still reads it"));
    assert_eq!(open(&disk, id, 2).unwrap().try_upgrade().unwrap(), OLD_ROWS);
}

#[test]
fn after_a_crash_in_the_middle_of_an_upgrade_all_rows_are_old_or_all_are_new() {
    let (disk, id) = old_vat();
    let vat = open(&disk, id, 2).unwrap();
    let before = disk.operations();
    vat.upgrade().unwrap();
    settle(&vat);
    let (mut old, mut new) = (0, 0);
    for stop in before..=disk.operations() {
        for seed in 0..4 {
            let mut history = disk.history();
            history.advance(stop);
            let crashed = history.crash(seed);
            let found = open(&crashed, id, 2).unwrap();
            assert_eq!(total(&found).unwrap(), 7);
            let rows = found.try_upgrade().unwrap();
            drop(found);
            match rows {
                OLD_ROWS => old += usize::from(open(&crashed, id, 1).is_ok()),
                0 => {
                    is_refused_as_newer(open(&crashed, id, 1));
                    new += 1;
                }
                some => panic!("{some} of {OLD_ROWS} rows are old"),
            }
        }
    }
    assert!(old > 0 && new > 0, "{old} before, {new} after");
}

#[test]
fn a_directory_of_the_first_version_keeps_its_sturdyrefs() {
    let disk = SimulatedDisk::new();
    let id = Vat::create(disk.clone(), Path::new(FOLDER), &Protection::Plain, &kinds(2), "directory").unwrap();
    let reference = SturdyRef { id, secret: Secret::generate().unwrap(), hints: Default::default() }.expose();
    {
        // {type, version, body}, as the first version wrote it.
        let body = postcard::to_stdvec(reference.as_str()).unwrap();
        let value = Some(postcard::to_stdvec(&("directory.binding", 1_u32, body)).unwrap());
        let key = RowKey { space: 16, name: b"\x01friend".to_vec() };
        let store = store(&disk, id);
        store.submit(TurnDelta { turn: 2, changes: vec![Change { key, value }] }).unwrap();
        store.wait_durable(2).unwrap();
    }
    let vat = open(&disk, id, 2).unwrap();
    let lookup = || {
        let mut request = directory::Client::new(vat.root().unwrap().0).lookup_request();
        request.get().set_name("friend");
        let response = block_on(request.send().promise).unwrap();
        response.get().unwrap().get_ref().unwrap().to_string().unwrap()
    };
    assert_eq!(lookup(), *reference);
    assert_eq!(vat.upgrade().unwrap(), 1);
    assert_eq!(lookup(), *reference);
}

#[test]
fn an_upgrade_that_does_not_fit_one_turn_is_refused_alike_when_it_is_tried_and_when_it_is_meant() {
    let disk = SimulatedDisk::new();
    let id = Vat::create(disk.clone(), Path::new(FOLDER), &Protection::Plain, &kinds(2), "directory").unwrap();
    let body = postcard::to_stdvec(&"x".repeat(1 << 20)).unwrap();
    let value = postcard::to_stdvec(&("directory.binding", 1_u32, body)).unwrap();
    let put = |turns: std::ops::Range<u64>| {
        let store = store(&disk, id);
        for turn in turns.clone() {
            let key = RowKey { space: 16, name: [&[1], &turn.to_be_bytes()[..]].concat() };
            store.submit(TurnDelta { turn, changes: vec![Change { key, value: Some(value.clone()) }] }).unwrap();
        }
        store.wait_durable(turns.end - 1).unwrap();
    };
    put(2..17);
    assert_eq!(open(&disk, id, 2).unwrap().try_upgrade().unwrap(), 15, "what fits");
    put(17..18);
    let vat = open(&disk, id, 2).unwrap();
    for refused in [vat.try_upgrade(), vat.upgrade()] {
        assert_eq!(refused.unwrap_err().code(), ErrorCode::CheckpointTooLarge);
    }
    assert_eq!(vat.engine().newest_turn(), 17);
}
