//! Who can open a small store: changed by itself, at no moment without an owner.

use std::{path::Path, sync::Arc};

use checkpoint::{
    Holder, Passphrase, Protection, RecipientKey, SlotKind, SmallStore, StoreError, StoreKey,
    simulated::{Fault, SimulatedDisk},
};
use schemas::{Coded, ErrorCode};

use super::{commit, contents_of, create_small, open_small, path};
use crate::harness::*;

const KEY: &str = "/key";

fn open_as(disk: &Arc<SimulatedDisk>, protection: &Protection) -> Result<SmallStore, StoreError> {
    SmallStore::open(disk.clone(), path(), &VAT, protection, &mut || false)
}

/// A closed store with one row and one more in its tail, which the key file opens.
fn store_with_rows() -> Arc<SimulatedDisk> {
    let disk = SimulatedDisk::new();
    let mut store = create_small(&disk).unwrap();
    store.begin_epoch(2, [4; 16]).unwrap();
    commit(&mut store, vec![set(0, b"name", b"value")]).unwrap();
    commit(&mut store, vec![set(1, b"other", &[7; 3_000])]).unwrap();
    drop(store);
    disk
}

/// Whether it opens with this, and then that it is what it was.
fn opens(disk: &Arc<SimulatedDisk>, protection: &Protection) -> bool {
    match open_as(disk, protection) {
        Ok(store) => {
            let position = store.position();
            assert_eq!((position.turn, position.epoch, store.incarnation()), (2, 2, [4; 16]));
            assert_eq!(contents_of(&store).unwrap().len(), 2);
            true
        }
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::KeyWrong, "{error}");
            false
        }
    }
}

fn key_of(disk: &Arc<SimulatedDisk>) -> Protection {
    let bytes = disk.contents(Path::new(KEY)).unwrap();
    Protection::Key(StoreKey::new(&bytes.try_into().unwrap()))
}

fn rotate(disk: &Arc<SimulatedDisk>) -> Result<(), StoreError> {
    open_small(disk)?.rotate_key_file(Path::new(KEY)).map(drop)
}

#[test]
fn each_holder_opens_the_store_until_its_slot_is_removed() {
    let disk = store_with_rows();
    let recipient = RecipientKey::generate().unwrap();
    let passphrase = || Passphrase::new("correct horse".to_owned().into()).unwrap();
    let holders = [
        (Holder::KeyFile("/spare".into()), Protection::KeyFile("/spare".into()), SlotKind::Key),
        (Holder::Passphrase(passphrase()), Protection::Passphrase(passphrase()), SlotKind::Passphrase),
        (
            Holder::Recipient(recipient.recipient().unwrap()),
            Protection::Recipient(recipient.clone()),
            SlotKind::Recipient,
        ),
        (Holder::Key(StoreKey::new(&[7; 32])), Protection::Key(StoreKey::new(&[7; 32])), SlotKind::Key),
    ];
    let mut store = open_small(&disk).unwrap();
    let own = store.slots()[0].id;
    let added: Vec<_> = holders.iter().map(|(holder, ..)| store.add_holder(holder).unwrap()).collect();
    let listed = store.slots();
    assert_eq!(listed.iter().map(|slot| slot.id).collect::<Vec<_>>(), [&[own], &added[..]].concat());
    assert!(listed[0].own && listed[1..].iter().all(|slot| !slot.own && !slot.rotating));
    assert_eq!(listed[3].recipient, Some(recipient.recipient().unwrap()));
    let refused = store.remove_holder(own).unwrap_err();
    assert!(matches!(refused, StoreError::SlotInUse { slot } if slot == own), "{refused}");
    drop(store);
    for ((_, protection, kind), (slot, id)) in holders.iter().zip(listed[1..].iter().zip(added)) {
        assert_eq!(slot.kind, *kind);
        assert!(opens(&disk, protection));
        let mut store = open_small(&disk).unwrap();
        store.remove_holder(id).unwrap();
        let refused = store.remove_holder(id).unwrap_err();
        assert!(matches!(refused, StoreError::UnknownSlot { .. }), "{refused}");
        drop(store);
        assert!(!opens(&disk, protection) && opens(&disk, &sealed()));
    }
}

#[test]
fn the_store_goes_on_after_a_change_and_its_tail_is_in_the_new_file() {
    let disk = store_with_rows();
    let mut store = open_small(&disk).unwrap();
    let before = store.position();
    store.add_holder(&Holder::Key(StoreKey::new(&[7; 32]))).unwrap();
    assert_eq!((store.position().turn, store.position().epoch), (before.turn, before.epoch));
    assert!(store.position().sequence > before.sequence, "no number names two frames");
    commit(&mut store, vec![set(2, b"more", b"value")]).unwrap();
    let rows = contents_of(&store).unwrap();
    assert_eq!(rows.len(), 3);
    drop(store);
    assert_eq!(contents_of(&open_as(&disk, &Protection::Key(StoreKey::new(&[7; 32]))).unwrap()).unwrap(), rows);
}

#[test]
fn a_rotation_replaces_the_key_and_leaves_everybody_else_alone() {
    let disk = store_with_rows();
    let (old, other) = (key_of(&disk), StoreKey::new(&[7; 32]));
    let mut store = open_small(&disk).unwrap();
    let added = store.add_holder(&Holder::Key(other.clone())).unwrap();
    // Also when the old key has a second slot.
    store.add_holder(&Holder::KeyFile(KEY.into())).unwrap();
    let new = store.rotate_key_file(Path::new(KEY)).unwrap();
    let listed = store.slots();
    assert_eq!(listed.iter().map(|slot| slot.id).collect::<Vec<_>>(), [added, new]);
    assert!(listed[1].own && !listed[0].own && listed.iter().all(|slot| !slot.rotating));
    store.rotate_key_file(Path::new(KEY)).unwrap();
    drop(store);
    assert!(opens(&disk, &sealed()) && !opens(&disk, &old));
    // Who came in with another key can replace the key file as well, and no key file that does not open it.
    let mut store = open_as(&disk, &Protection::Key(other)).unwrap();
    let before = key_of(&disk);
    store.rotate_key_file(Path::new(KEY)).unwrap();
    assert!(store.slots().iter().any(|slot| slot.own && slot.id == added));
    disk.replace(Path::new("/stranger"), &[9; 32]);
    let refused = store.rotate_key_file(Path::new("/stranger")).unwrap_err();
    assert!(matches!(refused, StoreError::KeyWrong { .. }), "{refused}");
    drop(store);
    assert!(opens(&disk, &sealed()) && !opens(&disk, &before));
}

#[test]
fn a_plain_store_has_no_holders_and_takes_none() {
    let disk = SimulatedDisk::new();
    let mut store = SmallStore::create(disk, path(), &VAT, &Protection::Plain).unwrap();
    assert!(store.slots().is_empty());
    let refused = store.add_holder(&Holder::Key(StoreKey::new(&[7; 32]))).unwrap_err();
    assert!(matches!(refused, StoreError::Protection { sealed: false, .. }), "{refused}");
    commit(&mut store, vec![set(0, b"name", b"value")]).unwrap();
}

/// What a rotation may leave behind, whatever interrupts it: the store opens with what is at the path, a further
/// rotation leaves exactly one key in force, and neither the key before nor one that never got to its place is it.
fn check_interrupted(image: &Arc<SimulatedDisk>, old: &Protection) -> (bool, bool) {
    assert!(opens(image, &sealed()), "the key in its place opens the store");
    let at_the_path = key_of(image);
    let both = open_small(image).unwrap().slots().iter().any(|slot| slot.rotating);
    let old_opened = opens(image, old);
    rotate(image).unwrap();
    assert!(opens(image, &sealed()));
    assert!(!opens(image, old) && !opens(image, &at_the_path));
    assert_eq!(open_small(image).unwrap().slots().len(), 1, "nothing is left of the interrupted one");
    let files: Vec<_> = image.files().into_iter().filter(|path| path != Path::new(super::NOTE)).collect();
    assert_eq!(files, [Path::new(KEY), path()], "nor any file");
    (both, old_opened)
}

#[test]
fn at_every_crash_of_a_rotation_the_store_opens_with_the_key_in_its_place() {
    let disk = store_with_rows().copy();
    let old = key_of(&disk);
    rotate(&disk).unwrap();
    let mut history = disk.history();
    let mut random = Random(1);
    let (mut images, mut with_both, mut before, mut after) = (0, 0, 0, 0);
    for point in 0..=history.len() {
        history.advance(point);
        let crashes = (0..16).map(|_| history.crash(random.next())).collect::<Vec<_>>();
        for image in crashes.into_iter().chain([history.kill()]) {
            let (both, old_opened) = check_interrupted(&image, &old);
            images += 1;
            with_both += u32::from(both);
            before += u32::from(old_opened && !both);
            after += u32::from(!old_opened);
        }
    }
    assert!(images > 200 && with_both > 20 && before > 20 && after > 10, "{images} {with_both} {before} {after}");
}

/// The second crash: of the rotation that cleans up after the first.
#[test]
fn a_rotation_that_cleans_up_can_be_interrupted_as_well() {
    let first = store_with_rows().copy();
    let old = key_of(&first);
    rotate(&first).unwrap();
    let mut history = first.history();
    let mut random = Random(2);
    let mut images = 0;
    for point in 0..=history.len() {
        history.advance(point);
        for interrupted in [history.crash(random.next()), history.kill()] {
            let between = key_of(&interrupted);
            rotate(&interrupted).unwrap();
            let mut second = interrupted.history();
            for point in 0..=second.len() {
                second.advance(point);
                let image = second.crash(random.next());
                assert!(opens(&image, &sealed()));
                rotate(&image).unwrap();
                assert!(opens(&image, &sealed()) && !opens(&image, &old) && !opens(&image, &between));
                assert_eq!(open_small(&image).unwrap().slots().len(), 1);
                images += 1;
            }
        }
    }
    assert!(images > 100, "{images}");
}

/// A rotation is killed, and what it renamed is seen but not durable yet. Whoever then tidies up by hand must not be
/// shut out by the power cut that undoes the rename.
#[test]
fn removing_what_an_interrupted_rotation_left_shuts_nobody_out() {
    let disk = store_with_rows().copy();
    rotate(&disk).unwrap();
    let mut history = disk.history();
    let mut random = Random(4);
    let (mut tidied, mut images) = (0, 0);
    for point in 0..=history.len() {
        history.advance(point);
        let killed = history.kill();
        let mut store = open_small(&killed).unwrap();
        let Some(left) = store.slots().into_iter().find(|slot| slot.rotating && !slot.own) else { continue };
        store.remove_holder(left.id).unwrap();
        assert!(store.slots().iter().all(|slot| !slot.rotating));
        drop(store);
        tidied += 1;
        let mut after = killed.history();
        for point in 0..=after.len() {
            after.advance(point);
            for _ in 0..8 {
                assert!(opens(&after.crash(random.next()), &sealed()));
                images += 1;
            }
        }
    }
    assert!(tidied >= 4 && images > 100, "{tidied} {images}");
}

/// Mutation check of the crash tests: on a disk whose syncs do nothing they find stores that do not open.
#[test]
fn the_crash_test_finds_a_rotation_that_does_not_sync() {
    let disk = store_with_rows().copy();
    disk.lie_about_syncs(Path::new("/"));
    rotate(&disk).unwrap();
    let mut history = disk.history();
    let mut random = Random(3);
    let mut shut_out = 0;
    for point in 0..=history.len() {
        history.advance(point);
        for _ in 0..40 {
            shut_out += u32::from(open_small(&history.crash(random.next())).is_err());
        }
    }
    assert!(shut_out > 10, "{shut_out}");
}

type Change<'a> = dyn Fn(&Arc<SimulatedDisk>) -> Result<(), StoreError> + 'a;

#[test]
fn a_change_that_fails_at_any_call_leaves_a_store_that_opens() {
    let whole = store_with_rows();
    let (old, seven) = (key_of(&whole), Holder::Key(StoreKey::new(&[7; 32])));
    let add = |disk: &Arc<SimulatedDisk>| open_small(disk)?.add_holder(&seven).map(drop);
    let changes: [&Change<'_>; 2] = [&rotate, &add];
    for change in changes {
        let counted = whole.copy();
        change(&counted).unwrap();
        let calls = counted.calls();
        assert!(calls > 5, "{calls}");
        let mut failed = 0;
        for call in 1..=calls {
            for fault in [Fault::Broken, Fault::Full, Fault::Short] {
                let disk = whole.copy();
                disk.inject(call, fault);
                // But for the note of what is durable, whose loss costs a sync.
                failed += u64::from(change(&disk).is_err());
                let mut store = open_small(&disk).unwrap();
                // Whether it was done before it failed or not at all.
                if let Some(added) = store.slots().iter().find(|slot| !slot.own && !slot.rotating) {
                    store.remove_holder(added.id).unwrap();
                }
                drop(store);
                check_interrupted(&disk, &old);
            }
        }
        assert!(failed > 2 * calls, "{failed} of {}", 3 * calls);
    }
}

#[test]
fn a_store_whose_file_failed_while_it_was_changed_is_poisoned() {
    let disk = store_with_rows();
    let mut store = open_small(&disk).unwrap();
    // The file that is to take the place of the one before.
    disk.inject(disk.calls() + 3, Fault::Full);
    let failed = store.add_holder(&Holder::Key(StoreKey::new(&[7; 32]))).unwrap_err();
    assert!(matches!(failed, StoreError::DiskFull { .. }), "{failed}");
    assert_eq!(store.slots().len(), 1, "it was not added");
    let poisoned = commit(&mut store, vec![set(0, b"name", b"again")]).unwrap_err();
    assert!(matches!(poisoned, StoreError::Poisoned { .. }), "{poisoned}");
    drop(store);
    assert!(opens(&disk, &sealed()));
}
