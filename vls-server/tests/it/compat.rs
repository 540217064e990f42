//! The store of a location server that a released version wrote (`tests/compat`).

use std::{
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use checkpoint::{FileDisk, Protection, Store, StoreOptions, limits::MIN_SEGMENT_BYTES};
use schemas::SignedRecord;
use vls_server::{
    DurableRegistry,
    registry::{Admission, Expected, Outcome, Policy},
};

use crate::{
    local::{HandClock, key, on_one_thread},
    world::Draft,
};

const VERSION: &str = "1";
const STORE: &str = "location-server";
/// How long after the first registration the store was closed.
const AGE: Duration = Duration::from_mins(30);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/compat").join(VERSION).join(STORE)
}

fn open(directory: &Path, clock: Rc<HandClock>) -> DurableRegistry {
    DurableRegistry::open(Arc::new(FileDisk), directory, key(0).id(), Policy::default(), clock).unwrap()
}

async fn register(registry: &DurableRegistry, record: &SignedRecord) -> Outcome {
    registry
        .register(None, record.id().as_bytes(), record.packet(), &Expected::Anything, &Admission::None)
        .await
        .unwrap()
}

/// The record of vat `n`, of this epoch, signed so many seconds after the beginning.
fn draft(n: u32, epoch: u64, signed: i64) -> SignedRecord {
    Draft { epoch, signed, ..Draft::default() }.sign(&key(n))
}

/// Signed at the same moment as that of [`draft`] and not the same.
fn rival(n: u32, epoch: u64, signed: i64) -> SignedRecord {
    Draft { epoch, signed, turn: 8, ..Draft::default() }.sign(&key(n))
}

#[test]
fn the_store_of_the_first_format_is_opened_and_the_records_are_found() {
    let copy = tempfile::tempdir().unwrap();
    let directory = copy.path().join("store");
    fs::create_dir_all(directory.join("journal")).unwrap();
    for place in ["", "journal"] {
        for entry in fs::read_dir(folder().join(place)).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), directory.join(place).join(entry.file_name())).unwrap();
            }
        }
    }
    on_one_thread(async {
        let clock = HandClock::new();
        clock.wait(AGE);
        let registry = open(&directory, clock.in_new_process());
        // Which epoch each of them had reached, and whether the last word came before the fold or after it.
        for (n, epoch) in [(1, 2), (2, 1), (3, 5), (4, 1), (5, 3)] {
            let answer = registry.lookup(key(n).id().as_bytes()).await.unwrap();
            let packet = answer.packet.unwrap_or_else(|| panic!("vat {n}"));
            let record = SignedRecord::verify(key(n).id(), &packet).unwrap();
            assert_eq!(record.record().epoch, epoch, "vat {n}");
            assert!(!answer.expired, "vat {n}");
        }
        assert_eq!(registry.lookup(key(6).id().as_bytes()).await.unwrap().packet, None);
        // What it has learnt is not unlearnt: a stale clone is refused, and so is a second truth about one moment.
        let stale = register(&registry, &draft(1, 1, 1_000)).await;
        assert!(matches!(&stale, Outcome::Stale { .. }), "{stale:?}");
        let current = registry.lookup(key(4).id().as_bytes()).await.unwrap().packet.unwrap();
        let two = [draft(4, 1, 0), rival(4, 1, 0)];
        let other = two.iter().find(|record| record.packet() != &*current).unwrap();
        assert_eq!(register(&registry, other).await, Outcome::Conflict { other: current });
        // And it goes on.
        let stored = register(&registry, &draft(2, 2, 1_200)).await;
        assert!(matches!(&stored, Outcome::Stored { .. }), "{stored:?}");
        registry.close().unwrap();
    });
}

#[test]
#[ignore = "writes the store of a new format, once"]
fn write_the_golden_store() {
    let folder = folder();
    assert!(!folder.exists(), "files of released formats are never written again");
    let (disk, id) = (Arc::new(FileDisk), key(0).id());
    // Short segments, so that the files are: a server makes long ones.
    let options = StoreOptions { segment_bytes: 16 * MIN_SEGMENT_BYTES, ..StoreOptions::default() };
    drop(Store::create(disk.clone(), &folder, id.as_bytes(), &Protection::Plain, options).unwrap());
    let clock = HandClock::new();
    let live = |records: Vec<SignedRecord>| {
        let clock = clock.in_new_process();
        on_one_thread(async {
            let registry = open(&folder, clock);
            for record in &records {
                register(&registry, record).await;
            }
            registry.close().unwrap();
        });
    };
    live(vec![draft(1, 1, 0), draft(2, 1, 0), draft(3, 4, 0), draft(4, 1, 0), rival(4, 1, 0)]);
    let store = Store::open(disk, &folder, id.as_bytes(), &Protection::Plain, StoreOptions::default()).unwrap();
    store.fold().unwrap();
    drop(store);
    clock.wait(AGE);
    live(vec![draft(1, 2, 60), draft(3, 5, 60), draft(5, 3, 60)]);
    fs::remove_file(folder.join("lock")).unwrap();
    for entry in fs::read_dir(folder.join("journal")).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_some_and(|end| end == "spare") {
            fs::remove_file(entry).unwrap();
        }
    }
}
