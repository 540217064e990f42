//! Stores that released versions wrote (`tests/compat`).

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use checkpoint::{FileDisk, Protection, Store};

use crate::harness::*;

const VERSION: &str = "1";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/compat").join(VERSION)
}

/// The rows of the golden store: some folded, some in the journal only, and one that a later turn removed.
fn life(store: &Store) -> Rows {
    let (mut random, mut rows) = (Random(1), Rows::new());
    for round in 0..24 {
        if round == 7 {
            store.begin_epoch(1, [0xab; 16]).unwrap();
        }
        let changes = random.changes();
        apply(&mut rows, &changes);
        if !changes.is_empty() {
            durable_turn(store, changes).unwrap();
        }
        if round == 15 {
            store.fold().unwrap();
        }
    }
    rows
}

#[test]
fn the_store_of_the_first_format_is_opened_as_it_was_left_and_goes_on() {
    let copy = tempfile::tempdir().unwrap();
    let store = copy.path().join("store");
    fs::create_dir_all(store.join("journal")).unwrap();
    let copied = |name: &str| fs::copy(folder().join("store").join(name), store.join(name)).unwrap();
    for name in ["keyslots", "base.redb"] {
        copied(name);
    }
    for entry in fs::read_dir(folder().join("store/journal")).unwrap() {
        copied(&format!("journal/{}", entry.unwrap().file_name().to_str().unwrap()));
    }
    let key = copy.path().join("store.key");
    fs::copy(folder().join("store.key"), &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    let disk = simulated_life();
    let opened = Store::open(Arc::new(FileDisk), &store, &VAT, &Protection::KeyFile(key), no_folds()).unwrap();
    assert_eq!(contents(&opened).unwrap(), disk.1);
    assert_eq!((opened.position().turn, opened.position().epoch), (disk.0, 1));
    assert_eq!(opened.incarnation(), [0xab; 16]);
    opened.verify(&mut |_| {}).unwrap();
    durable_turn(&opened, vec![set(0, b"new", b"row")]).unwrap();
    opened.fold().unwrap();
    opened.verify(&mut |_| {}).unwrap();
}

/// The same life again: its last turn and its rows.
fn simulated_life() -> (u64, Rows) {
    let disk = checkpoint::simulated::SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    let rows = life(&store);
    (store.position().turn, rows)
}

#[test]
#[ignore = "writes the store of a new format, once"]
fn write_the_golden_store() {
    let folder = folder();
    assert!(!folder.join("store").exists(), "files of released formats are never written again");
    let protection = Protection::KeyFile(folder.join("store.key"));
    let store = Store::create(Arc::new(FileDisk), &folder.join("store"), &VAT, &protection, no_folds()).unwrap();
    life(&store);
    drop(store);
    fs::remove_file(folder.join("store/lock")).unwrap();
}
