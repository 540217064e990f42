//! The small profile: one file, one sync for a turn, and the same promises as the large one.

mod crash;
mod holders;
mod real;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use checkpoint::{
    Adoption, Change, Damage, Disk, Holder, ImageReader, Position, Protection, RowKey, SmallStore, Store, StoreError,
    TurnDelta, limits,
    simulated::{Fault, SimulatedDisk},
};
use schemas::{Coded, ErrorCode, Timestamp};

use crate::harness::*;

const SMALL: &str = "/small";
const NOTE: &str = "/small.synced";

fn path() -> &'static Path {
    Path::new(SMALL)
}

fn create_small<D: Disk + 'static>(disk: &Arc<D>) -> Result<SmallStore, StoreError> {
    SmallStore::create(disk.clone(), path(), &VAT, &sealed())
}

fn open_small<D: Disk + 'static>(disk: &Arc<D>) -> Result<SmallStore, StoreError> {
    SmallStore::open(disk.clone(), path(), &VAT, &sealed(), &mut || false)
}

fn commit(store: &mut SmallStore, changes: Vec<Change>) -> Result<u64, StoreError> {
    let turn = store.position().turn + 1;
    store.commit(TurnDelta { turn, changes })?;
    Ok(turn)
}

fn contents_of(store: &SmallStore) -> Result<Rows, StoreError> {
    let mut rows = Rows::new();
    for space in 0..SPACES {
        let found = store.scan(space)?;
        assert!(found.is_sorted_by(|(one, _), (two, _)| one < two), "in order of name");
        for (name, value) in found {
            assert_eq!(store.get(&RowKey { space, name: name.clone() })?.as_ref(), Some(&value));
            rows.insert((space, name), value);
        }
    }
    Ok(rows)
}

fn length(disk: &SimulatedDisk) -> usize {
    disk.contents(path()).unwrap().len()
}

/// Where the frames of a file begin, in order.
fn frames(bytes: &[u8]) -> Vec<usize> {
    (0..bytes.len()).step_by(limits::SECTOR_BYTES).filter(|at| bytes[*at..].starts_with(b"vatframe")).collect()
}

#[test]
fn it_is_what_a_map_is_through_turns_epochs_folds_and_reopenings() {
    for seed in 0..6 {
        let disk = SimulatedDisk::new();
        let (mut store, mut random, mut rows) = (create_small(&disk).unwrap(), Random(seed), Rows::new());
        let (mut turn, mut epoch, mut folds, mut before) = (0, 0, 0, store.position());
        for _ in 0..300 {
            match random.below(12) {
                0 => {
                    drop(store);
                    store = open_small(&disk).unwrap();
                }
                1 => {
                    epoch += 1 + random.below(3);
                    store.begin_epoch(epoch, [epoch as u8; 16]).unwrap();
                }
                _ => {
                    let changes = random.changes();
                    apply(&mut rows, &changes);
                    turn = commit(&mut store, changes).unwrap();
                }
            }
            let position = store.position();
            assert_eq!((position.turn, position.epoch, store.incarnation()), (turn, epoch, [epoch as u8; 16]));
            assert!(position.sequence >= before.sequence, "frames are never numbered again");
            folds += u64::from(position.sequence > before.sequence + 1);
            before = position;
            assert!(contents_of(&store).unwrap() == rows);
        }
        assert!(folds >= 5, "{folds}");
        drop(store);
        assert!(contents_of(&open_small(&disk).unwrap()).unwrap() == rows);
    }
}

#[test]
fn a_commit_is_one_sync_and_opening_after_one_is_none() {
    let disk = SimulatedDisk::new();
    drop(create_small(&disk).unwrap());
    let syncs = || disk.syncs(Path::new("/"));
    let (mut frames, mut folds) = (0, 0);
    for number in 0..200_u8 {
        let before = syncs();
        let mut store = open_small(&disk).unwrap();
        assert_eq!(syncs() - before, 0, "opening after a commit that was noted");
        let sequence = store.position().sequence;
        commit(&mut store, vec![set(0, &[number], &[number; 40])]).unwrap();
        if store.position().sequence == sequence + 1 {
            assert_eq!(syncs() - before, 1, "commit {number}");
            frames += 1;
        } else {
            assert_eq!(syncs() - before, 1, "a fold is one sync of the new file, and one of the folder");
            folds += 1;
        }
    }
    assert_eq!((frames, folds), (197, 3), "one fold after each 64 frames");
}

#[test]
fn a_turn_that_no_reserve_holds_goes_into_a_new_snapshot() {
    let disk = SimulatedDisk::new();
    let mut store = create_small(&disk).unwrap();
    let reserve = usize::try_from(limits::SMALL_MIN_RESERVE_BYTES).unwrap();
    assert!((reserve..2 * reserve).contains(&length(&disk)));
    let large = vec![set(0, b"large", &[7; 1 << 20])];
    commit(&mut store, large).unwrap();
    let reserve = usize::try_from(limits::SMALL_MAX_RESERVE_BYTES).unwrap();
    assert!(length(&disk) > (1 << 20) + reserve && length(&disk) < (1 << 20) + 2 * reserve);
    commit(&mut store, vec![remove(0, b"large"), set(0, b"small", b"1")]).unwrap();
    drop(store);
    assert_eq!(contents_of(&open_small(&disk).unwrap()).unwrap().len(), 1);
}

#[test]
fn what_outgrows_one_file_is_refused_and_the_store_goes_on() {
    let disk = SimulatedDisk::new();
    let mut store = create_small(&disk).unwrap();
    let value = vec![7; (16 << 20) - (64 << 10)];
    for name in 0..3 {
        commit(&mut store, vec![set(0, &[name], &value)]).unwrap();
    }
    let position = store.position();
    let refused = commit(&mut store, vec![set(0, &[3], &value), set(1, &[0], b"1")]).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::CheckpointOutgrown, "{refused}");
    assert_eq!((store.position(), store.get(&RowKey { space: 1, name: vec![0] }).unwrap()), (position, None));
    commit(&mut store, vec![remove(0, &[0]), remove(0, &[1])]).unwrap();
    drop(store);

    let too_long = vec![0; usize::try_from(limits::SMALL_FILE_BYTES).unwrap() + 1];
    disk.replace(path(), &too_long);
    assert_eq!(open_small(&disk).unwrap_err().code(), ErrorCode::CheckpointOutgrown);
}

#[test]
fn turns_and_epochs_out_of_order_change_nothing() {
    let disk = SimulatedDisk::new();
    let mut store = create_small(&disk).unwrap();
    store.begin_epoch(2, [1; 16]).unwrap();
    let position = store.position();
    for turn in [0, 2] {
        let refused = store.commit(TurnDelta { turn, changes: vec![] }).unwrap_err();
        assert!(matches!(refused, StoreError::TurnOrder { expected: 1, .. }), "{refused}");
    }
    for epoch in [0, 2] {
        let refused = store.begin_epoch(epoch, [2; 16]).unwrap_err();
        assert!(matches!(refused, StoreError::EpochOrder { current: 2, .. }), "{refused}");
    }
    let refused = commit(&mut store, vec![set(0, b"n", &vec![1; limits::MAX_TURN_BYTES])]).unwrap_err();
    assert!(matches!(refused, StoreError::TurnTooLarge { .. }), "{refused}");
    assert_eq!(store.position(), position);
    assert!(store.poisoned().is_none());
    commit(&mut store, vec![]).unwrap();
}

#[test]
fn nobody_else_gets_in_before_the_patience_ends() {
    let disk = SimulatedDisk::new();
    let store = create_small(&disk).unwrap();
    let mut tries = 0;
    let mut three_times = || {
        tries += 1;
        tries < 3
    };
    let refused = SmallStore::open(disk.clone(), path(), &VAT, &sealed(), &mut three_times).unwrap_err();
    assert_eq!(tries, 3);
    let StoreError::Locked { holder: Some(holder), .. } = refused else { panic!("{refused}") };
    assert_eq!(holder.process_id, std::process::id());
    let refused = create_small(&disk).unwrap_err();
    assert!(matches!(refused, StoreError::Locked { .. }), "{refused}");

    // Who waits gets in, and sees what the one before did meanwhile, also in another file of that name.
    let mut held = Some(store);
    let mut until_it_is_done = || {
        let mut store = held.take().unwrap();
        for _ in 0..=limits::SMALL_TAIL_FRAMES {
            commit(&mut store, vec![set(0, b"name", b"value")]).unwrap();
        }
        true
    };
    let store = SmallStore::open(disk, path(), &VAT, &sealed(), &mut until_it_is_done).unwrap();
    assert_eq!(store.position().turn, limits::SMALL_TAIL_FRAMES + 1);
}

#[test]
fn what_is_there_is_not_replaced_and_what_is_not_there_leaves_no_lock() {
    let disk = SimulatedDisk::new();
    let refused = open_small(&disk).unwrap_err();
    assert!(matches!(refused, StoreError::Missing { .. }), "{refused}");
    assert!(disk.files().is_empty());
    drop(create_small(&disk).unwrap());
    let refused = create_small(&disk).unwrap_err();
    assert!(matches!(refused, StoreError::Occupied { .. }), "{refused}");
    let refused = SmallStore::open(disk.clone(), path(), &[9; 32], &sealed(), &mut || false).unwrap_err();
    assert!(matches!(refused, StoreError::WrongVat { .. }), "{refused}");
    let refused = SmallStore::open(disk.clone(), path(), &VAT, &Protection::Plain, &mut || false).unwrap_err();
    assert!(matches!(refused, StoreError::Protection { .. }), "{refused}");
    open_small(&disk).unwrap();
}

/// A store with rows in its snapshot and frames of both kinds after it, for the first or a later time in its life.
fn lived_in(folds: u64) -> (Arc<SimulatedDisk>, Rows, Position) {
    let disk = SimulatedDisk::new();
    let mut store = create_small(&disk).unwrap();
    for number in 0..folds * (limits::SMALL_TAIL_FRAMES + 1) {
        commit(&mut store, vec![set(0, &[number as u8 % 3], b"value")]).unwrap();
    }
    commit(&mut store, vec![set(0, b"a", b"1"), set(2, b"c", &[9; 700])]).unwrap();
    store.begin_epoch(1, [1; 16]).unwrap();
    commit(&mut store, vec![remove(0, b"a"), set(1, b"b", b"2")]).unwrap();
    let (rows, position) = (contents_of(&store).unwrap(), store.position());
    (disk, rows, position)
}

#[test]
fn every_changed_bit_is_refused_where_something_is_written() {
    for folds in 0..2 {
        let (disk, rows, position) = lived_in(folds);
        let bytes = disk.contents(path()).unwrap();
        let reserve = bytes.iter().rposition(|byte| *byte != 0).unwrap() / limits::SECTOR_BYTES + 1;
        let bits = reserve * limits::SECTOR_BYTES * 8;
        assert!(bits > 3_000 * 8, "{bits}");
        on_two_threads(bits as u64, |bit| {
            let disk = disk.copy();
            disk.flip(path(), bit as usize);
            let refused = match open_small(&disk) {
                Ok(_) => panic!("bit {bit} of {bits} went unnoticed"),
                Err(refused) => refused,
            };
            let codes = [
                ErrorCode::CheckpointDamaged,
                ErrorCode::CheckpointVersion,
                ErrorCode::CheckpointWrongVat,
                ErrorCode::ImageInvalid,
            ];
            assert!(codes.contains(&refused.code()), "bit {bit}: {refused}");
        });
        // In the reserve it is refused, or taken for the trace of a write that did not finish, and removed.
        let (mut refused, mut removed) = (0, 0);
        for bit in (bits..bytes.len() * 8).step_by(499) {
            let disk = disk.copy();
            disk.flip(path(), bit);
            match open_small(&disk) {
                Ok(store) => {
                    assert_eq!((store.position(), contents_of(&store).unwrap()), (position, rows.clone()));
                    assert_eq!(disk.contents(path()).unwrap(), bytes);
                    removed += 1;
                }
                Err(error) => {
                    assert_eq!(error.code(), ErrorCode::CheckpointDamaged, "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0 && removed > 0, "{refused} {removed}");
    }
}

#[test]
fn a_file_that_was_cut_or_is_not_one_of_these_is_refused() {
    let (disk, ..) = lived_in(0);
    let bytes = disk.contents(path()).unwrap();
    // After the last frame nothing tells that there was more.
    let last = *frames(&bytes).last().unwrap();
    for length in (0..=last).step_by(37).chain((last + 1..last + 512).step_by(13)) {
        if frames(&bytes).contains(&length) && length > frames(&bytes)[1] {
            continue;
        }
        disk.replace(path(), &bytes[..length]);
        let refused = open_small(&disk).unwrap_err();
        assert!(
            [ErrorCode::CheckpointDamaged, ErrorCode::ImageInvalid].contains(&refused.code()),
            "{length}: {refused}"
        );
    }
}

#[test]
fn frames_of_an_older_file_or_another_place_do_not_open() {
    let disk = SimulatedDisk::new();
    let mut store = create_small(&disk).unwrap();
    let mut files = Vec::new();
    for number in 0..2 * limits::SMALL_TAIL_FRAMES + 5 {
        commit(&mut store, vec![set(0, &[number as u8 % 3], b"value")]).unwrap();
        if number % (limits::SMALL_TAIL_FRAMES + 1) == 3 {
            files.push(disk.contents(path()).unwrap());
        }
    }
    drop(store);
    assert_eq!(files.len(), 2);
    let (old, new) = (&files[0], &files[1]);
    let (old_frames, new_frames) = (frames(old), frames(new));
    for to in 0..new_frames.len() {
        for from in 0..old_frames.len() {
            let mut spliced = new[..new_frames[to]].to_vec();
            spliced.extend_from_slice(&old[old_frames[from]..]);
            if to == 0 && from == 0 {
                continue;
            }
            disk.replace(path(), &spliced);
            let refused = open_small(&disk).unwrap_err();
            assert_eq!(refused.code(), ErrorCode::CheckpointDamaged, "{from} at {to}: {refused}");
        }
        // And frames of its own at another place: dropped, or repeated.
        for from in (0..new_frames.len()).filter(|from| *from != to) {
            let spliced = [&new[..new_frames[to]], &new[new_frames[from]..]].concat();
            disk.replace(path(), &spliced);
            let refused = open_small(&disk).unwrap_err();
            assert_eq!(refused.code(), ErrorCode::CheckpointDamaged, "{from} at {to}: {refused}");
        }
    }
}

fn image_holder() -> Holder {
    Holder::KeyFile("/image.key".into())
}

fn image_reader<'a>(disk: &Arc<SimulatedDisk>, image: &'a [u8]) -> Result<ImageReader<'a>, StoreError> {
    ImageReader::open(
        disk.as_ref(),
        (Box::new(image), Path::new("an.image")),
        &Protection::KeyFile("/image.key".into()),
    )
}

#[test]
fn a_vat_moves_from_a_small_store_to_a_host_and_back() {
    let (disk, mut rows, position) = lived_in(1);
    let small = open_small(&disk).unwrap();
    let label = ("a vat", Timestamp::from_seconds(1_700_000_000));
    let mut image = Vec::new();
    let (head, census) =
        small.export(disk.as_ref(), (&mut image, Path::new("an.image")), &[image_holder()], label).unwrap();
    assert_eq!((head.turn, head.epoch, head.label.as_str()), (position.turn, position.epoch, "a vat"));
    assert_eq!(census.rows, rows.len() as u64);

    let mut reader = image_reader(&disk, &image).unwrap();
    let host =
        Store::import(disk.clone(), directory(), &sealed(), &mut reader, Adoption::Continue, no_folds()).unwrap();
    assert_eq!(contents(&host).unwrap(), rows);
    assert_eq!((host.position().turn, host.position().epoch), (position.turn, position.epoch));
    assert_eq!(host.incarnation(), [1; 16]);
    let changes = vec![set(0, b"on the host", b"1")];
    apply(&mut rows, &changes);
    durable_turn(&host, changes).unwrap();
    let mut image = Vec::new();
    host.export(disk.as_ref(), (&mut image, Path::new("an.image")), &[image_holder()], label, &mut |_| {}).unwrap();

    let there = Path::new("/there");
    let import = |image: &[u8]| {
        SmallStore::import(disk.clone(), there, &sealed(), &mut image_reader(&disk, image)?, Adoption::Continue)
    };
    assert!(import(&image[..image.len() - 512]).is_err());
    assert!(disk.contents(there).is_none(), "only whole images become stores");
    let mut again = import(&image).unwrap();
    assert_eq!(contents_of(&again).unwrap(), rows);
    assert_eq!(again.position().turn, position.turn + 1);
    commit(&mut again, vec![set(0, b"back", b"2")]).unwrap();
    let turn = again.position().turn;
    drop(again);
    let again = SmallStore::open(disk.clone(), there, &VAT, &sealed(), &mut || false).unwrap();
    assert_eq!((again.position().turn, again.incarnation()), (turn, [1; 16]));

    let mut anew = |key: &RowKey, value: Vec<u8>| (key.space == 0).then_some(value);
    let adoption = Adoption::Anew { vat: [8; 32], row: &mut anew };
    let copy = SmallStore::import(
        disk.clone(),
        Path::new("/copy"),
        &sealed(),
        &mut image_reader(&disk, &image).unwrap(),
        adoption,
    );
    let copy = copy.unwrap();
    assert_eq!((copy.position().turn, copy.position().epoch), (0, 0));
    assert!(contents_of(&copy).unwrap().keys().all(|(space, _)| *space == 0));
}

#[test]
fn the_file_itself_is_no_image_to_import() {
    let (disk, ..) = lived_in(0);
    let mut reader = ImageReader::open_file(disk.as_ref(), path(), &sealed()).unwrap();
    let refused = loop {
        match reader.next_row() {
            Ok(row) => assert!(row.is_some(), "an image has nothing after its end"),
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, StoreError::Damaged { damage: Damage::Trailing, .. }), "{refused}");
}

#[test]
fn without_its_note_or_with_a_wrong_one_it_opens_and_syncs() {
    let (disk, rows, position) = lived_in(1);
    for note in [None, Some(&[0; 16][..]), Some(b""), Some(&[1; 17]), Some(&[255; 16])] {
        match note {
            None => disk.lose(&PathBuf::from(NOTE)),
            Some(note) => disk.replace(Path::new(NOTE), note),
        }
        for syncs in [1, 0] {
            let before = disk.syncs(path());
            let store = open_small(&disk).unwrap();
            assert_eq!((store.position(), contents_of(&store).unwrap()), (position, rows.clone()));
            assert_eq!(disk.syncs(path()) - before, syncs, "{note:?}");
        }
    }
}

/// What a run on a failing disk has seen.
struct Run {
    created: bool,
    models: Vec<Rows>,
    acknowledged: u64,
    failed: Option<StoreError>,
}

/// Creates a store, commits, begins an epoch, folds twice, and opens it again in between.
fn run(disk: &Arc<SimulatedDisk>) -> Run {
    let mut run = Run { created: false, models: vec![Rows::new()], acknowledged: 0, failed: None };
    let mut random = Random(4);
    let mut turns = |store: &mut SmallStore, run: &mut Run| -> Result<(), StoreError> {
        for round in 0..9 {
            let changes = vec![set(0, &[round % 4], &random.bytes(15_000))];
            let mut rows = run.models.last().unwrap().clone();
            apply(&mut rows, &changes);
            run.models.push(rows);
            run.acknowledged = commit(store, changes)?;
        }
        store.begin_epoch(store.position().epoch + 1, [1; 16])
    };
    for life in 0..2 {
        let store = if life == 0 { create_small(disk) } else { open_small(disk) };
        let worked = store.and_then(|mut store| {
            run.created = true;
            let worked = turns(&mut store, &mut run);
            if let Err(error) = &worked {
                assert!(store.poisoned().is_some(), "{error}");
                for refused in [
                    commit(&mut store, vec![]).unwrap_err(),
                    store.begin_epoch(99, [0; 16]).unwrap_err(),
                    store.scan(0).unwrap_err(),
                    store.get(&RowKey { space: 0, name: vec![0] }).unwrap_err(),
                ] {
                    assert_eq!(refused.code(), ErrorCode::VatPoisoned, "{refused}");
                }
            }
            worked
        });
        run.failed = worked.err();
        if run.failed.is_some() {
            break;
        }
    }
    run
}

/// An error of any call stops it, and takes nothing that was acknowledged, nor what the next one shows.
#[test]
fn whatever_call_fails_nothing_is_lost_that_somebody_was_told() {
    let whole = SimulatedDisk::new();
    assert!(run(&whole).failed.is_none());
    let calls = whole.calls();
    assert!(calls > 100, "{calls}");
    let mut stopped = 0;
    for call in 1..=calls {
        for fault in [Fault::Broken, Fault::Full, Fault::Short] {
            let disk = SimulatedDisk::new();
            disk.inject(call, fault);
            let run = run(&disk);
            // Nothing is lost with a note but time.
            stopped += u64::from(run.failed.is_some());
            let mut oldest = run.acknowledged;
            let mut disk = disk;
            for seed in [None, Some(call), Some(call + 1)] {
                if let Some(seed) = seed {
                    let mut history = disk.history();
                    history.advance(history.len());
                    disk = history.crash(seed);
                }
                let store = match open_small(&disk) {
                    Ok(store) => store,
                    Err(_) if !run.created && seed.is_none() => create_small(&disk).unwrap(),
                    Err(error) => panic!("{fault:?} in call {call}, {seed:?}: {error}"),
                };
                let turn = store.position().turn;
                assert!(turn >= oldest, "{fault:?} in call {call}: {turn} of {oldest}");
                assert!(contents_of(&store).unwrap() == run.models[usize::try_from(turn).unwrap()]);
                oldest = turn;
            }
        }
    }
    assert!(stopped > 2 * calls, "{stopped} of {calls}");
}
