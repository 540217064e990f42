//! Stores that released versions wrote (`tests/compat`).

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use checkpoint::{FileDisk, HostStore, Protection, Store, simulated::SimulatedDisk};

use crate::harness::*;

/// All formats, the newest last.
const FORMATS: [&str; 2] = ["1", "2"];
/// The vats of the golden store of many, since the second format: asleep in the base, and only in the journal.
const FOLDED: [u8; 32] = [1; 32];
const UNFOLDED: [u8; 32] = [2; 32];

fn folder(format: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/compat").join(format)
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

/// Golden files, on a disk that can crash.
fn simulated(format: &str, name: &str) -> Arc<SimulatedDisk> {
    let disk = SimulatedDisk::new();
    let folder = folder(format);
    let put = |from: PathBuf, to: &Path| disk.replace(to, &fs::read(from).unwrap());
    put(folder.join(format!("{name}.key")), Path::new("/key"));
    for file in ["keyslots", "base.redb"] {
        put(folder.join(name).join(file), &directory().join(file));
    }
    for entry in fs::read_dir(folder.join(name).join("journal")).unwrap() {
        let entry = entry.unwrap();
        put(entry.path(), &directory().join("journal").join(entry.file_name()));
    }
    for made in [directory().to_owned(), directory().join("journal")] {
        checkpoint::Disk::create_directory(disk.as_ref(), &made).unwrap();
        checkpoint::Disk::sync_directory(disk.as_ref(), made.parent().unwrap()).unwrap();
    }
    disk
}

fn assert_as_it_was_left(store: &Store) {
    let (turn, rows) = simulated_life();
    assert_eq!(contents(store).unwrap(), rows);
    assert_eq!((store.position().turn, store.position().epoch), (turn, 1));
    assert_eq!(store.incarnation(), [0xab; 16]);
    store.verify(&mut |_| {}).unwrap();
}

#[test]
fn a_store_of_every_format_is_opened_as_it_was_left_and_goes_on() {
    for format in FORMATS {
        let copy = tempfile::tempdir().unwrap();
        let store = copy.path().join("store");
        fs::create_dir_all(store.join("journal")).unwrap();
        let copied = |name: &str| fs::copy(folder(format).join("store").join(name), store.join(name)).unwrap();
        for name in ["keyslots", "base.redb"] {
            copied(name);
        }
        for entry in fs::read_dir(folder(format).join("store/journal")).unwrap() {
            copied(&format!("journal/{}", entry.unwrap().file_name().to_str().unwrap()));
        }
        let key = copy.path().join("store.key");
        fs::copy(folder(format).join("store.key"), &key).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

        let protection = Protection::KeyFile(key);
        let opened = Store::open(Arc::new(FileDisk), &store, &VAT, &protection, no_folds()).unwrap();
        assert_as_it_was_left(&opened);
        durable_turn(&opened, vec![set(0, b"new", b"row")]).unwrap();
        opened.fold().unwrap();
        opened.verify(&mut |_| {}).unwrap();
        opened.close().unwrap();
        let opened = Store::open(Arc::new(FileDisk), &store, &VAT, &protection, no_folds()).unwrap();
        assert_eq!(get(&opened, 0, b"new").unwrap(), b"row");
    }
}

#[test]
fn a_store_of_many_vats_is_opened_as_it_was_left_and_goes_on() {
    let disk = simulated("2", "host");
    let host = HostStore::open(disk, directory(), &sealed(), no_folds()).unwrap();
    for (vat, value) in [(FOLDED, &b"folded"[..]), (UNFOLDED, b"unfolded")] {
        let store = host.open_vat(&vat, None).unwrap();
        assert_eq!(get(&store, 1, b"row").unwrap(), value);
        assert_eq!((store.position().turn, store.position().epoch), (2, 3));
        durable_turn(&store, vec![set(0, b"new", b"row")]).unwrap();
    }
    assert_eq!(host.vats().unwrap().len(), 2);
}

/// Opening a store of the first format rewrites how far its base goes. The power fails at every point of that.
#[test]
fn a_store_of_the_first_format_survives_a_crash_while_it_is_rewritten() {
    let disk = simulated("1", "store");
    let begins = disk.operations();
    assert_as_it_was_left(&open(&disk, no_folds()).unwrap());
    let mut history = disk.history();
    history.advance(begins);
    for point in begins..=history.len() {
        history.advance(point);
        for seed in 0..6 {
            assert_as_it_was_left(&open(&history.crash(seed), no_folds()).unwrap());
        }
    }
    assert!(history.len() > begins + 10, "it was rewritten");
}

/// The same life again: its last turn and its rows.
fn simulated_life() -> (u64, Rows) {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    let rows = life(&store);
    (store.position().turn, rows)
}

#[test]
#[ignore = "writes the stores of a new format, once"]
fn write_the_golden_stores() {
    let folder = folder(FORMATS[FORMATS.len() - 1]);
    assert!(!folder.join("store").exists(), "files of released formats are never written again");
    fs::create_dir_all(&folder).unwrap();
    let protection = Protection::KeyFile(folder.join("store.key"));
    let store = Store::create(Arc::new(FileDisk), &folder.join("store"), &VAT, &protection, no_folds()).unwrap();
    life(&store);
    drop(store);
    fs::remove_file(folder.join("store/lock")).unwrap();

    let protection = Protection::KeyFile(folder.join("host.key"));
    let host = HostStore::create(Arc::new(FileDisk), &folder.join("host"), &protection, no_folds()).unwrap();
    for (vat, value) in [(FOLDED, &b"folded"[..]), (UNFOLDED, b"unfolded")] {
        let store = host.create_vat(&vat, None).unwrap();
        durable_turn(&store, vec![set(1, b"row", b"earlier")]).unwrap();
        store.begin_epoch(3, [3; 16]).unwrap();
        durable_turn(&store, vec![set(1, b"row", value)]).unwrap();
        drop(store);
        if vat == FOLDED {
            host.fold().unwrap();
        }
    }
    host.close().unwrap();
    fs::remove_file(folder.join("host/lock")).unwrap();
}
