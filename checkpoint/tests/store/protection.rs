//! Who may open a store, and what others can read of it, on the real file system.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Barrier},
};

use checkpoint::{FileAccess, FileDisk, Protection, RowKey, Store, StoreError, StoreOptions, simulated::SimulatedDisk};
use schemas::{Coded, ErrorCode};
use tempfile::TempDir;

use crate::harness::{self, VAT, durable_turn, get, no_folds, set, turn};

/// A folder for one test, with a place for a store and one for a key.
struct Home {
    home: TempDir,
}

impl Home {
    fn new() -> Self {
        Self { home: TempDir::new().unwrap() }
    }

    fn store(&self) -> PathBuf {
        self.home.path().join("store")
    }

    fn key(&self) -> PathBuf {
        self.home.path().join("key")
    }

    fn sealed(&self) -> Protection {
        Protection::KeyFile(self.key())
    }

    fn create(&self) -> Result<Store, StoreError> {
        Store::create(Arc::new(FileDisk), &self.store(), &VAT, &self.sealed(), no_folds())
    }

    fn open(&self) -> Result<Store, StoreError> {
        Store::open(Arc::new(FileDisk), &self.store(), &VAT, &self.sealed(), no_folds())
    }
}

/// Every file and folder below one.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn a_store_lives_on_real_files() {
    let home = Home::new();
    let store = Store::create(
        Arc::new(FileDisk),
        &home.store(),
        &VAT,
        &home.sealed(),
        StoreOptions { fold_bytes: 20 << 10, ..StoreOptions::default() },
    )
    .unwrap();
    for n in 0..200u8 {
        turn(&store, vec![set(u64::from(n % 3), &[n], &[n; 500])]).unwrap();
    }
    store.begin_epoch(1, [1; 16]).unwrap();
    let position = store.position();
    store.close().unwrap();
    for round in 0..2 {
        let store = home.open().unwrap();
        assert_eq!(store.position(), position);
        assert!((0..200u8).all(|n| get(&store, u64::from(n % 3), &[n]) == Some(vec![n; 500])));
        if round == 0 {
            store.fold().unwrap();
        }
    }
}

#[test]
fn a_second_opener_is_refused_with_the_name_of_the_first() {
    let home = Home::new();
    let store = home.create().unwrap();
    let refused = home.open().unwrap_err();
    assert_eq!(refused.code(), ErrorCode::VatRunning);
    let StoreError::Locked { holder: Some(holder), .. } = &refused else { panic!("{refused}") };
    assert_eq!(holder.process_id, std::process::id());
    let program = std::env::current_exe().unwrap();
    assert!(program.file_name().unwrap().to_str().unwrap().starts_with(&holder.program));
    assert!(holder.since.as_seconds() > 1_700_000_000);
    assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
    assert!(refused.next().unwrap().contains(&std::process::id().to_string()));
    assert_eq!(home.create().unwrap_err().code(), ErrorCode::VatRunning);
    drop(store);
    drop(home.open().unwrap());
}

#[test]
fn a_lock_file_without_a_holder_is_no_obstacle_and_one_that_says_nothing_gives_no_name() {
    let home = Home::new();
    drop(home.create().unwrap());
    let lock = home.store().join("lock");
    // What a process that was killed leaves behind.
    fs::write(&lock, "process 1\nprogram init\nsince 1\n").unwrap();
    let store = home.open().unwrap();
    fs::write(&lock, "proc").unwrap();
    assert!(matches!(home.open(), Err(StoreError::Locked { holder: None, .. })));
    drop(store);
}

#[test]
fn everything_is_for_its_owner_only() {
    let home = Home::new();
    let store = home.create().unwrap();
    for n in 0..20u8 {
        durable_turn(&store, vec![set(0, &[n], &[n; 3000])]).unwrap();
    }
    store.fold().unwrap();
    let mut paths = below(&home.store());
    paths.push(home.key());
    let mut seen = 0;
    for path in paths {
        let metadata = match fs::metadata(&path) {
            // A segment that was just folded is removed in the background.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            metadata => metadata.unwrap(),
        };
        seen += 1;
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(metadata.permissions().mode() & 0o7777, expected, "{}", path.display());
    }
    assert!(seen >= 6, "{seen} files and folders are left after a fold");
    assert_eq!(fs::metadata(home.key()).unwrap().len(), 32);
}

#[test]
fn a_key_file_that_others_can_use_is_refused() {
    let home = Home::new();
    drop(home.create().unwrap());
    for mode in [0o640, 0o604, 0o620, 0o601, 0o660, 0o777] {
        fs::set_permissions(home.key(), Permissions::from_mode(mode)).unwrap();
        let refused = home.open().unwrap_err();
        assert_eq!(refused.code(), ErrorCode::KeyMode);
        assert!(refused.to_string().contains(&format!("{mode:04o}")), "{refused}");
        // Nor is a new store sealed with it.
        let other = home.home.path().join("other");
        let refused = Store::create(Arc::new(FileDisk), &other, &VAT, &home.sealed(), no_folds()).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::KeyMode);
    }
    for mode in [0o600, 0o400] {
        fs::set_permissions(home.key(), Permissions::from_mode(mode)).unwrap();
        drop(home.open().unwrap());
    }
}

#[test]
fn a_key_file_of_another_user_is_refused() {
    let disk = SimulatedDisk::new();
    drop(harness::create(&disk, no_folds()).unwrap());
    disk.set_access(Path::new("/key"), FileAccess { mode: 0o600, owner: 33, own: false });
    let refused = harness::open(&disk, no_folds()).unwrap_err();
    assert!(matches!(refused, StoreError::KeyOwner { owner: 33, .. }), "{refused}");
    assert_eq!(refused.code(), ErrorCode::KeyMode);
}

#[test]
fn a_missing_or_wrong_key_is_named_as_such_and_changes_nothing() {
    let (home, other) = (Home::new(), Home::new());
    drop(home.create().unwrap());
    drop(other.create().unwrap());
    let key = fs::read(home.key()).unwrap();

    fs::write(home.key(), fs::read(other.key()).unwrap()).unwrap();
    assert_eq!(home.open().unwrap_err().code(), ErrorCode::KeyWrong);
    for length in [0, 31, 33, 100_000] {
        fs::write(home.key(), vec![1; length]).unwrap();
        let refused = home.open().unwrap_err();
        assert!(matches!(refused, StoreError::KeyLength { found, .. } if found == length as u64), "{refused}");
        assert_eq!(refused.code(), ErrorCode::KeyWrong);
    }
    fs::remove_file(home.key()).unwrap();
    assert_eq!(home.open().unwrap_err().code(), ErrorCode::KeyMissing);
    assert!(!home.key().exists(), "opening makes no key");

    fs::write(home.key(), key).unwrap();
    fs::set_permissions(home.key(), Permissions::from_mode(0o600)).unwrap();
    drop(home.open().unwrap());
}

#[test]
fn a_sealed_store_is_not_taken_for_a_plain_one_nor_the_other_way_round() {
    let home = Home::new();
    drop(home.create().unwrap());
    let plain = home.home.path().join("plain");
    let open = |path: &Path, protection| Store::open(Arc::new(FileDisk), path, &VAT, protection, no_folds());
    drop(Store::create(Arc::new(FileDisk), &plain, &VAT, &Protection::Plain, no_folds()).unwrap());
    let refused = open(&home.store(), &Protection::Plain).unwrap_err();
    assert!(matches!(refused, StoreError::Protection { sealed: true, .. }), "{refused}");
    let refused = open(&plain, &home.sealed()).unwrap_err();
    assert!(matches!(refused, StoreError::Protection { sealed: false, .. }), "{refused}");
}

#[test]
fn a_folder_with_anything_in_it_is_left_alone() {
    let home = Home::new();
    drop(home.create().unwrap());
    assert_eq!(home.create().unwrap_err().code(), ErrorCode::VatExists);
    drop(home.open().unwrap());

    let letters = home.home.path().join("letters");
    fs::create_dir(&letters).unwrap();
    fs::write(letters.join("letter"), "dear").unwrap();
    let refused = Store::create(Arc::new(FileDisk), &letters, &VAT, &home.sealed(), no_folds()).unwrap_err();
    assert!(matches!(&refused, StoreError::Occupied { found, .. } if found == "letter"), "{refused}");

    // Frames without a keyslots file are not the remains of an unfinished creation: it may be restored.
    fs::remove_file(home.store().join("keyslots")).unwrap();
    assert_eq!(home.create().unwrap_err().code(), ErrorCode::VatExists);
    assert_eq!(home.open().unwrap_err().code(), ErrorCode::CheckpointMissing);

    // Opening what is no store leaves nothing behind.
    assert_eq!(fs::read_dir(&letters).unwrap().count(), 2);
    let nothing = home.home.path().join("nothing");
    let refused = Store::open(Arc::new(FileDisk), &nothing, &VAT, &home.sealed(), no_folds()).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::CheckpointMissing);
    assert!(!nothing.exists());
}

#[test]
fn two_stores_that_are_created_at_once_share_one_key_file() {
    for _ in 0..10 {
        let home = Arc::new(Home::new());
        let barrier = Arc::new(Barrier::new(2));
        let threads = ["one", "two"].map(|name| {
            let (home, barrier) = (Arc::clone(&home), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                let path = home.home.path().join(name);
                drop(Store::create(Arc::new(FileDisk), &path, &VAT, &home.sealed(), no_folds()).unwrap());
                path
            })
        });
        for thread in threads {
            let path = thread.join().unwrap();
            drop(Store::open(Arc::new(FileDisk), &path, &VAT, &home.sealed(), no_folds()).unwrap());
        }
        let left = fs::read_dir(home.home.path()).unwrap().count();
        assert_eq!(left, 3, "two stores, one key, and nothing temporary");
    }
}

#[test]
fn no_value_name_or_space_of_a_sealed_store_is_in_any_file() {
    let (name, value) = (&b"marked name, 0123456789"[..], &b"marked value, 0123456789"[..]);
    let space = 0x5a5b_5c5d_5e5f_6061_u64;
    let mut space_varint = Vec::new();
    let mut rest = space;
    while rest >= 0x80 {
        space_varint.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    space_varint.push(rest as u8);
    let marks = [name, value, &space.to_le_bytes(), &space.to_be_bytes(), &space_varint, &VAT];

    let found = |protection: &Protection, directory: &Path| {
        let store = Store::create(Arc::new(FileDisk), directory, &VAT, protection, no_folds()).unwrap();
        durable_turn(&store, vec![set(space, name, value)]).unwrap();
        store.fold().unwrap();
        let both = [value, value, name].concat();
        durable_turn(&store, vec![set(space, name, &both), set(1, &both, &[1])]).unwrap();
        let key = RowKey { space, name: name.to_vec() };
        assert_eq!(store.get(&key).unwrap(), Some(both));
        drop(store);
        let files = below(directory).into_iter().filter(|path| path.is_file());
        let bytes: Vec<Vec<u8>> = files.map(|path| fs::read(path).unwrap()).collect();
        assert!(bytes.len() >= 4);
        marks.map(|mark| bytes.iter().any(|bytes| contains(bytes, mark)))
    };
    let home = Home::new();
    assert_eq!(found(&home.sealed(), &home.store()), [false; 6]);
    // The search finds what is there: a plain store has names and values in clear.
    assert_eq!(found(&Protection::Plain, &home.home.path().join("plain"))[..2], [true, true]);
    let key = fs::read(home.key()).unwrap();
    let files = below(&home.store()).into_iter().filter(|path| path.is_file());
    assert!(files.into_iter().all(|path| !contains(&fs::read(path).unwrap(), &key)), "nor is the key");
}

#[test]
fn nothing_that_is_printed_shows_a_value() {
    let change = set(3, b"name", b"a secret value");
    let home = Home::new();
    let store = home.create().unwrap();
    durable_turn(&store, vec![change.clone()]).unwrap();
    let printed = format!("{change:?} {store:?} {:?} {:?}", StoreOptions::default(), home.sealed());
    assert!(!printed.contains("secret") && !printed.contains(&format!("{:?}", b"a secret value")), "{printed}");
}

/// A copy that goes on by itself must not seal anything else under a key that the original uses: that is what
/// a nonce counter in the store would do.
#[test]
fn copies_of_one_store_never_use_a_key_twice() {
    let disk = SimulatedDisk::new();
    let store = harness::create(&disk, no_folds()).unwrap();
    durable_turn(&store, vec![set(0, b"row", b"before")]).unwrap();
    drop(store);
    let segment = Path::new("/store/journal/0000000000000000.segment");
    let shared = disk.contents(segment).unwrap();
    let mut seen = std::collections::HashSet::new();
    let mut frames = 0;
    for copy in 0..20 {
        let copied = if copy % 2 == 0 { disk.copy() } else { disk.copy().copy() };
        let store = harness::open(&copied, no_folds()).unwrap();
        for _ in 0..3 {
            durable_turn(&store, vec![set(0, b"row", b"the same in all of them")]).unwrap();
        }
        drop(store);
        for frame in copied.contents(segment).unwrap().chunks(512).filter(|sector| sector.starts_with(b"vatframe")) {
            if !contains(&shared, frame) {
                frames += 1;
                // The salt makes the key, and the commitment is one to the key.
                assert!(seen.insert(frame[96..128].to_vec()) && seen.insert(frame[128..160].to_vec()));
            }
        }
    }
    assert_eq!(frames, 60);
}
