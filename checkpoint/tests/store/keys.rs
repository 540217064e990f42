//! Keys of an existing store: who can be let in, who can be shut out, and that at no moment the owner is.

use std::{path::Path, sync::Arc};

use checkpoint::{
    FileAccess, Holder, Passphrase, Protection, RecipientKey, SlotId, SlotKind, Store, StoreError, StoreKey,
    add_holder, remove_holder, rotate_key_file,
    simulated::{Fault, SimulatedDisk},
    slots,
};
use schemas::{Coded, ErrorCode};

use crate::harness::{self, Random, VAT, directory, durable_turn, get, no_folds, sealed, set};

const KEY: &str = "/key";
const KEYSLOTS: &str = "/store/keyslots";

fn open_as(disk: &Arc<SimulatedDisk>, protection: &Protection) -> Result<Store, StoreError> {
    Store::open(disk.clone(), directory(), &VAT, protection, no_folds())
}

/// A closed store with one row, which the key file opens.
fn store_with_a_row() -> Arc<SimulatedDisk> {
    let disk = SimulatedDisk::new();
    let store = harness::create(&disk, no_folds()).unwrap();
    durable_turn(&store, vec![set(0, b"name", b"value")]).unwrap();
    drop(store);
    disk
}

fn opens(disk: &Arc<SimulatedDisk>, protection: &Protection) -> bool {
    match open_as(disk, protection) {
        Ok(store) => get(&store, 0, b"name") == Some(b"value".to_vec()),
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

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text.to_owned().into()).unwrap()
}

fn credential(name: &str) -> Protection {
    Protection::Credential { directory: "/credentials".into(), name: name.to_owned() }
}

fn ids(disk: &Arc<SimulatedDisk>, protection: &Protection) -> Vec<SlotId> {
    slots(disk.as_ref(), directory(), protection).unwrap().into_iter().map(|slot| slot.id).collect()
}

#[test]
fn a_store_can_be_made_for_any_kind_of_key_and_opens_with_that_one_only() {
    let (recipient, other_recipient) = (RecipientKey::generate().unwrap(), RecipientKey::generate().unwrap());
    let kinds = || {
        [
            (Protection::KeyFile("/one".into()), Protection::KeyFile("/two".into())),
            (credential("one"), credential("two")),
            (Protection::Passphrase(passphrase("one and one")), Protection::Passphrase(passphrase("one and two"))),
            (Protection::Recipient(recipient.clone()), Protection::Recipient(other_recipient.clone())),
            (Protection::Key(StoreKey::new(&[1; 32])), Protection::Key(StoreKey::new(&[2; 32]))),
        ]
    };
    for (index, (right, wrong)) in kinds().into_iter().enumerate() {
        let disk = SimulatedDisk::new();
        checkpoint::Disk::create_directory(disk.as_ref(), Path::new("/credentials")).unwrap();
        for (path, byte) in [("/two", 8), ("/credentials/one", 9), ("/credentials/two", 10)] {
            disk.replace(Path::new(path), &[byte; 32]);
        }
        let store = Store::create(disk.clone(), directory(), &VAT, &right, no_folds()).unwrap();
        durable_turn(&store, vec![set(0, b"name", b"value")]).unwrap();
        drop(store);
        assert!(opens(&disk, &right));
        assert!(!opens(&disk, &wrong), "{wrong:?}");
        assert!(!opens(&disk, &Protection::Plain));
        let mut messages = vec![open_as(&disk, &wrong).unwrap_err().to_string()];
        // The key file is there for this one only.
        for (other, (protection, _)) in kinds().into_iter().enumerate().skip(1) {
            if other != index {
                messages.push(open_as(&disk, &protection).unwrap_err().to_string());
            }
        }
        assert!(messages.iter().all(|message| message.contains("/store")), "{messages:?}");
    }
}

#[test]
fn each_holder_opens_the_store_until_its_slot_is_removed() {
    let disk = store_with_a_row();
    let recipient = RecipientKey::generate().unwrap();
    let holders = [
        (Holder::KeyFile("/spare".into()), Protection::KeyFile("/spare".into()), SlotKind::Key),
        (
            Holder::Passphrase(passphrase("correct horse")),
            Protection::Passphrase(passphrase("correct horse")),
            SlotKind::Passphrase,
        ),
        (
            Holder::Recipient(recipient.recipient().unwrap()),
            Protection::Recipient(recipient.clone()),
            SlotKind::Recipient,
        ),
        (Holder::Key(StoreKey::new(&[7; 32])), Protection::Key(StoreKey::new(&[7; 32])), SlotKind::Key),
    ];
    let mut added = Vec::new();
    for (holder, _, _) in &holders {
        added.push(add_holder(disk.as_ref(), directory(), &sealed(), holder).unwrap());
    }
    let listed = slots(disk.as_ref(), directory(), &sealed()).unwrap();
    assert_eq!(listed.len(), 5);
    assert!(listed[0].own && listed[1..].iter().all(|slot| !slot.own));
    assert!(listed.iter().all(|slot| !slot.rotating));
    assert_eq!(listed[3].recipient, Some(recipient.recipient().unwrap()));
    for ((_, protection, kind), (slot, id)) in holders.iter().zip(listed[1..].iter().zip(&added)) {
        assert_eq!((slot.kind, slot.id), (*kind, *id));
        assert!(opens(&disk, protection));
        // Whoever opens it sees the same, and which slot is theirs.
        let seen = slots(disk.as_ref(), directory(), protection).unwrap();
        assert!(seen.iter().all(|slot| slot.own == (slot.id == *id)));
    }
    for ((_, protection, _), id) in holders.iter().zip(&added) {
        remove_holder(disk.as_ref(), directory(), &sealed(), *id).unwrap();
        assert!(!opens(&disk, protection));
        let again = remove_holder(disk.as_ref(), directory(), &sealed(), *id).unwrap_err();
        assert_eq!(again.code(), ErrorCode::KeyUnknownSlot);
    }
    assert!(opens(&disk, &sealed()));
}

#[test]
fn the_slot_that_was_opened_is_never_removed_so_the_last_one_never_is() {
    let disk = store_with_a_row();
    let own = ids(&disk, &sealed())[0];
    let refused = remove_holder(disk.as_ref(), directory(), &sealed(), own).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::KeyInUse);
    assert!(opens(&disk, &sealed()));
    // With another key that works it can be.
    add_holder(disk.as_ref(), directory(), &sealed(), &Holder::Key(StoreKey::new(&[7; 32]))).unwrap();
    let other = Protection::Key(StoreKey::new(&[7; 32]));
    remove_holder(disk.as_ref(), directory(), &other, own).unwrap();
    assert!(!opens(&disk, &sealed()));
    assert!(opens(&disk, &other));
}

#[test]
fn nobody_without_a_key_changes_anything() {
    let disk = store_with_a_row();
    let before = disk.contents(Path::new(KEYSLOTS));
    let wrong = Protection::Key(StoreKey::new(&[7; 32]));
    let own = ids(&disk, &sealed())[0];
    let holder = Holder::Key(StoreKey::new(&[7; 32]));
    let refused = [
        add_holder(disk.as_ref(), directory(), &wrong, &holder).unwrap_err(),
        remove_holder(disk.as_ref(), directory(), &wrong, own).unwrap_err(),
        slots(disk.as_ref(), directory(), &wrong).unwrap_err(),
    ];
    assert!(refused.iter().all(|error| error.code() == ErrorCode::KeyWrong), "{refused:?}");
    disk.replace(Path::new("/other"), &[3; 32]);
    let refused = rotate_key_file(disk.as_ref(), directory(), Path::new("/other")).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::KeyWrong);
    assert_eq!(disk.contents(Path::new("/other")), Some(vec![3; 32]));
    assert_eq!(disk.contents(Path::new(KEYSLOTS)), before);
}

#[test]
fn a_plain_store_has_no_keys_to_change() {
    let disk = SimulatedDisk::new();
    drop(Store::create(disk.clone(), directory(), &VAT, &Protection::Plain, no_folds()).unwrap());
    assert_eq!(slots(disk.as_ref(), directory(), &Protection::Plain).unwrap(), []);
    let holder = Holder::Key(StoreKey::new(&[7; 32]));
    for protection in [Protection::Plain, Protection::Key(StoreKey::new(&[7; 32]))] {
        let refused = add_holder(disk.as_ref(), directory(), &protection, &holder).unwrap_err();
        assert!(matches!(refused, StoreError::Protection { sealed: false, .. }), "{refused}");
    }
}

#[test]
fn keys_are_changed_while_the_store_is_open_and_two_changes_exclude_each_other() {
    let disk = SimulatedDisk::new();
    let store = harness::create(&disk, no_folds()).unwrap();
    durable_turn(&store, vec![set(0, b"name", b"value")]).unwrap();
    let old = key_of(&disk);
    rotate_key_file(disk.as_ref(), directory(), Path::new(KEY)).unwrap();
    durable_turn(&store, vec![set(0, b"other", b"later")]).unwrap();

    let lock = Path::new("/store/keyslots.lock");
    let held = checkpoint::Disk::try_lock(disk.as_ref(), lock, "somebody").unwrap();
    let refused = rotate_key_file(disk.as_ref(), directory(), Path::new(KEY)).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::KeyBusy);
    drop(held);
    rotate_key_file(disk.as_ref(), directory(), Path::new(KEY)).unwrap();
    drop(store);

    let store = open_as(&disk, &sealed()).unwrap();
    assert_eq!(get(&store, 0, b"other"), Some(b"later".to_vec()));
    drop(store);
    assert!(!opens(&disk, &old));
}

#[test]
fn a_rotation_replaces_the_key_and_leaves_everybody_else_alone() {
    let disk = store_with_a_row();
    let other = Protection::Key(StoreKey::new(&[7; 32]));
    add_holder(disk.as_ref(), directory(), &sealed(), &Holder::Key(StoreKey::new(&[7; 32]))).unwrap();
    let (old, before) = (key_of(&disk), ids(&disk, &sealed()));
    // Also when the old key has a second slot.
    add_holder(disk.as_ref(), directory(), &sealed(), &Holder::KeyFile(KEY.into())).unwrap();
    let journal = |disk: &Arc<SimulatedDisk>| -> Vec<_> {
        let files = disk.files().into_iter().filter(|path| path.starts_with("/store/journal"));
        files.map(|path| disk.contents(&path)).collect()
    };
    let frames = journal(&disk);

    let new = rotate_key_file(disk.as_ref(), directory(), Path::new(KEY)).unwrap();
    assert!(opens(&disk, &sealed()) && opens(&disk, &other) && !opens(&disk, &old));
    assert_eq!(ids(&disk, &sealed()), [before[1], new]);
    assert_eq!(journal(&disk), frames, "wrapped anew, not sealed anew");
    let names = disk.files();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains("rotation")), "{names:?}");
    assert!(names.iter().all(|name| !name.to_string_lossy().contains("next")), "{names:?}");
}

/// What a rotation may leave behind, whatever interrupts it: the store opens with what is at the path, a further
/// rotation leaves exactly one key in force, and neither the key before nor one that never got to its place is it.
fn check_interrupted(image: &Arc<SimulatedDisk>, old: &Protection) -> (bool, bool) {
    assert!(opens(image, &sealed()), "the key in its place opens the store");
    let at_the_path = key_of(image);
    let both = slots(image.as_ref(), directory(), &sealed()).unwrap().iter().any(|slot| slot.rotating);
    let old_opened = opens(image, old);
    rotate_key_file(image.as_ref(), directory(), Path::new(KEY)).unwrap();
    assert!(opens(image, &sealed()));
    assert!(!opens(image, old) && !opens(image, &at_the_path));
    assert_eq!(ids(image, &sealed()).len(), 1, "nothing is left of the interrupted one");
    assert_eq!(image.files().len(), store_with_a_row().files().len(), "nor any file");
    (both, old_opened)
}

#[test]
fn at_every_crash_of_a_rotation_the_store_opens_with_the_key_in_its_place() {
    let disk = store_with_a_row().copy();
    let old = key_of(&disk);
    rotate_key_file(disk.as_ref(), directory(), Path::new(KEY)).unwrap();
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
    let first = store_with_a_row().copy();
    let old = key_of(&first);
    rotate_key_file(first.as_ref(), directory(), Path::new(KEY)).unwrap();
    let mut history = first.history();
    let mut random = Random(2);
    let mut images = 0;
    for point in 0..=history.len() {
        history.advance(point);
        // After a loss of power, and after a kill, of which not everything is durable that is seen.
        for interrupted in [history.crash(random.next()), history.kill()] {
            let between = key_of(&interrupted);
            rotate_key_file(interrupted.as_ref(), directory(), Path::new(KEY)).unwrap();
            let mut second = interrupted.history();
            for point in 0..=second.len() {
                second.advance(point);
                let image = second.crash(random.next());
                assert!(opens(&image, &sealed()));
                rotate_key_file(image.as_ref(), directory(), Path::new(KEY)).unwrap();
                assert!(opens(&image, &sealed()) && !opens(&image, &old) && !opens(&image, &between));
                assert_eq!(ids(&image, &sealed()).len(), 1);
                images += 1;
            }
        }
    }
    assert!(images > 100, "{images}");
}

/// A rotation is killed, and what it renamed is seen but not durable yet. Whoever then tidies up by hand must not
/// be shut out by the power cut that undoes the rename.
#[test]
fn removing_what_an_interrupted_rotation_left_shuts_nobody_out() {
    let disk = store_with_a_row().copy();
    rotate_key_file(disk.as_ref(), directory(), Path::new(KEY)).unwrap();
    let mut history = disk.history();
    let mut random = Random(4);
    let (mut tidied, mut images) = (0, 0);
    for point in 0..=history.len() {
        history.advance(point);
        let killed = history.kill();
        let found = slots(killed.as_ref(), directory(), &sealed()).unwrap();
        let Some(left) = found.iter().find(|slot| slot.rotating && !slot.own) else { continue };
        remove_holder(killed.as_ref(), directory(), &sealed(), left.id).unwrap();
        assert!(slots(killed.as_ref(), directory(), &sealed()).unwrap().iter().all(|slot| !slot.rotating));
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

/// Mutation check of the crash test: on a disk whose syncs do nothing it finds images that do not open.
#[test]
fn the_crash_test_finds_a_rotation_that_does_not_sync() {
    let disk = store_with_a_row().copy();
    disk.lie_about_syncs(Path::new("/"));
    rotate_key_file(disk.as_ref(), directory(), Path::new(KEY)).unwrap();
    let mut history = disk.history();
    let mut random = Random(3);
    let mut shut_out = 0;
    for point in 0..=history.len() {
        history.advance(point);
        for _ in 0..40 {
            shut_out += u32::from(open_as(&history.crash(random.next()), &sealed()).is_err());
        }
    }
    assert!(shut_out > 10, "{shut_out}");
}

type Change<'a> = dyn Fn(&Arc<SimulatedDisk>) -> Result<(), StoreError> + 'a;

#[test]
fn a_change_that_fails_at_any_call_leaves_a_store_that_opens() {
    let whole = store_with_a_row();
    let (old, seven) = (key_of(&whole), StoreKey::new(&[7; 32]));
    let rotate = |disk: &Arc<SimulatedDisk>| rotate_key_file(disk.as_ref(), directory(), Path::new(KEY)).map(|_| ());
    let add = |disk: &Arc<SimulatedDisk>| {
        add_holder(disk.as_ref(), directory(), &sealed(), &Holder::Key(seven.clone())).map(|_| ())
    };
    let changes: [&Change; 2] = [&rotate, &add];
    for change in changes {
        let counted = whole.copy();
        change(&counted).unwrap();
        let calls = counted.calls();
        assert!(calls > 5, "{calls}");
        for call in 1..=calls {
            for fault in [Fault::Broken, Fault::Full, Fault::Short] {
                let disk = whole.copy();
                disk.inject(call, fault);
                assert!(change(&disk).is_err(), "call {call} {fault:?}");
                // Whether it was done before it failed or not at all.
                let found = slots(disk.as_ref(), directory(), &sealed()).unwrap();
                if let Some(added) = found.iter().find(|slot| !slot.own && !slot.rotating) {
                    remove_holder(disk.as_ref(), directory(), &sealed(), added.id).unwrap();
                }
                check_interrupted(&disk, &old);
            }
        }
    }
}

/// A store that is opened while its key file is replaced: whichever of the two is read first, the pair may not
/// fit, and that is not a wrong key.
#[test]
fn opening_during_rotations_never_finds_a_wrong_key() {
    let home = tempfile::TempDir::new().unwrap();
    let (directory, key) = (home.path().join("store"), home.path().join("key"));
    let disk: Arc<dyn checkpoint::Disk> = Arc::new(checkpoint::FileDisk);
    let protection = Protection::KeyFile(key.clone());
    drop(Store::create(Arc::clone(&disk), &directory, &VAT, &protection, no_folds()).unwrap());
    std::thread::scope(|scope| {
        let rotations = scope.spawn(|| {
            (0..40).for_each(|_| {
                rotate_key_file(&checkpoint::FileDisk, &directory, &key).unwrap();
            })
        });
        let mut reads = 0_u32;
        while !rotations.is_finished() {
            let found = slots(disk.as_ref(), &directory, &protection).unwrap();
            assert!(matches!(found.iter().filter(|slot| slot.own).count(), 1), "{found:?}");
            reads += 1;
        }
        rotations.join().unwrap();
        assert!(reads > 0);
    });
}

#[test]
fn a_credential_may_belong_to_root_and_not_be_writable_by_others() {
    let disk = SimulatedDisk::new();
    checkpoint::Disk::create_directory(disk.as_ref(), Path::new("/credentials")).unwrap();
    let path = Path::new("/credentials/vat");
    disk.replace(path, &[5; 32]);
    drop(Store::create(disk.clone(), directory(), &VAT, &credential("vat"), no_folds()).unwrap());
    let access = |mode, owner, own| FileAccess { mode, owner, own };
    for good in [access(0o400, 0, false), access(0o440, 0, false), access(0o400, 1000, true), access(0o600, 0, true)] {
        disk.set_access(path, good);
        drop(open_as(&disk, &credential("vat")).unwrap());
    }
    for bad in [access(0o444, 0, false), access(0o460, 0, false), access(0o400, 33, false), access(0o604, 1000, true)] {
        disk.set_access(path, bad);
        let refused = open_as(&disk, &credential("vat")).unwrap_err();
        assert!(matches!(refused, StoreError::CredentialAccess { .. }), "{refused}");
        assert_eq!(refused.code(), ErrorCode::KeyMode);
    }
    let refused = open_as(&disk, &credential("absent")).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::KeyMissing);
    assert!(refused.next().unwrap().contains("LoadCredential=absent:"));
    for name in ["", ".", "..", "../key", "a/b", "/key", "vat/", "./vat", "vat\0"] {
        let refused = open_as(&disk, &credential(name)).unwrap_err();
        assert!(matches!(refused, StoreError::CredentialName { .. }), "{name:?}: {refused}");
    }
}
