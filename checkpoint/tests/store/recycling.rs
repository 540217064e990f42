//! Segments that are used again: they begin as full of zeros as a new one, and few are kept.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use checkpoint::{
    Disk, DiskFile, FileDisk, Protection, Store, StoreOptions,
    limits::{MIN_SEGMENT_BYTES, SPARE_SEGMENTS},
    simulated::SimulatedDisk,
    wrapped::{Behaviour, Wrapped},
};
use tempfile::TempDir;

use crate::harness::*;

const JOURNAL: &str = "/store/journal";

/// Counts the files that are made in the journal.
#[derive(Debug, Default)]
struct Made(AtomicU64);

impl Behaviour for Made {
    fn create(&self, disk: &dyn Disk, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.0.fetch_add(u64::from(path.starts_with(JOURNAL)), Ordering::SeqCst);
        disk.create(path)
    }
}

/// The files of the journal with this extension, in order of their numbers.
fn files(disk: &SimulatedDisk, extension: &str) -> Vec<PathBuf> {
    let mut files = disk.files();
    files.retain(|path| path.starts_with(JOURNAL) && path.extension().is_some_and(|found| found == extension));
    files
}

/// Fills two segments with noise and folds.
fn fill_and_fold(store: &Store, random: &mut Random) {
    for _ in 0..2 {
        durable_turn(store, vec![set(0, b"name", &random.bytes(2_000))]).unwrap();
    }
    store.fold().unwrap();
}

#[test]
fn segments_that_a_fold_has_freed_are_used_again_and_few_are_kept() {
    let disk = SimulatedDisk::new();
    let counting = Wrapped::new(disk.clone(), Made::default());
    let made = &counting.behaviour().0;
    let mut store = create(&counting, smallest_segments()).unwrap();
    let mut random = Random(1);
    fill_and_fold(&store, &mut random);
    let at_first = made.load(Ordering::SeqCst);
    for round in 0..30 {
        fill_and_fold(&store, &mut random);
        assert!(files(&disk, "spare").len() <= SPARE_SEGMENTS);
        if round % 10 == 9 {
            store.close().unwrap();
            store = open(&counting, smallest_segments()).unwrap();
        }
    }
    store.close().unwrap();
    let newest = files(&disk, "segment").pop().unwrap();
    let switches = u64::from_str_radix(newest.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
    assert!(switches >= 60, "{switches}");
    // Each round needs two, and each fold leaves two; some are needed while the fold is under way.
    let made = made.load(Ordering::SeqCst) - at_first;
    assert!(made < switches / 2, "{made} new files for {switches} segments");
}

#[test]
fn a_segment_that_is_used_again_has_zeros_where_nothing_was_written() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, smallest_segments()).unwrap();
    let mut random = Random(2);
    (0..3).for_each(|_| fill_and_fold(&store, &mut random));
    store.close().unwrap();
    let spare = files(&disk, "spare").pop().expect("a fold leaves some");
    assert!(disk.contents(&spare).unwrap().iter().any(|byte| *byte != 0), "it is filled when it is needed");
    let store = open(&disk, smallest_segments()).unwrap();
    let end = 40;
    for _ in 0..end {
        durable_turn(&store, vec![set(0, b"name", b"short")]).unwrap();
    }
    store.close().unwrap();
    assert!(!files(&disk, "spare").contains(&spare));
    let segments = files(&disk, "segment");
    assert!(segments.len() > 40 * 512 / MIN_SEGMENT_BYTES as usize);
    let last = disk.contents(segments.last().unwrap()).unwrap();
    // Every frame of these turns is one sector, and the last ones may not have filled their segment.
    for sector in last.chunks(512) {
        assert!(sector.starts_with(b"vatframe") || sector.iter().all(|byte| *byte == 0));
    }
    assert_eq!(open(&disk, smallest_segments()).unwrap().position().turn, 6 + end);
}

/// Other options, or a turn that had a segment of its own.
#[test]
fn a_spare_of_another_length_becomes_a_segment_of_the_right_one() {
    let disk = SimulatedDisk::new();
    let mut random = Random(3);
    let mut turns = 0;
    for segment_bytes in [4, 32, 8, 4, 16].map(|kibibytes| kibibytes << 10) {
        let options = || StoreOptions { segment_bytes, ..no_folds() };
        let store = if turns == 0 { create(&disk, options()) } else { open(&disk, options()) }.unwrap();
        for length in [2_000, 2_000, 6_000, 40_000, 2_000, 2_000] {
            durable_turn(&store, vec![set(0, b"name", &random.bytes(length))]).unwrap();
            turns += 1;
            store.fold().unwrap();
        }
        store.close().unwrap();
        for path in files(&disk, "spare") {
            assert!(disk.contents(&path).unwrap().len() <= 32 << 10, "only those of a usual length are kept");
        }
        let store = open(&disk, options()).unwrap();
        assert_eq!(store.position().turn, turns);
    }
}

/// A process can be killed, and the power can fail, while a spare is being filled; and if its new name is lost as
/// well, then it has that of a segment which the base contains.
#[test]
fn what_a_spare_or_a_segment_before_the_base_holds_never_matters() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, smallest_segments()).unwrap();
    let mut random = Random(4);
    (0..3).for_each(|_| fill_and_fold(&store, &mut random));
    store.close().unwrap();
    let spares = files(&disk, "spare");
    assert!(!spares.is_empty());
    let old_names: Vec<_> = spares.iter().map(|path| path.with_extension("segment")).collect();
    let segment = disk.contents(&files(&disk, "segment")[0]).unwrap();
    let half_filled = [&[0; 1 << 11], &segment[1 << 11..]].concat();
    let noise = random.bytes(MIN_SEGMENT_BYTES as usize);
    for held in [&segment[..], &half_filled, &noise, &noise[..700], &[]] {
        for paths in [&spares, &old_names] {
            let copy = disk.copy();
            spares.iter().for_each(|path| copy.lose(path));
            paths.iter().for_each(|path| copy.replace(path, held));
            let store = open(&copy, smallest_segments()).unwrap();
            let before = store.position().turn;
            for number in 0..20 {
                durable_turn(&store, vec![set(0, b"name", &random.bytes(900))]).unwrap();
                if number % 8 == 7 {
                    store.fold().unwrap();
                }
            }
            let rows = contents(&store).unwrap();
            store.close().unwrap();
            assert!(old_names.iter().all(|path| !copy.files().contains(path)), "folds take them away");
            let store = open(&copy, smallest_segments()).unwrap();
            assert_eq!((store.position().turn, contents(&store).unwrap()), (before + 20, rows));
        }
    }
}

#[test]
fn real_files_are_used_again_as_well() {
    let home = TempDir::new().unwrap();
    let (path, key) = (home.path().join("store"), Protection::KeyFile(home.path().join("key")));
    let mut store = Store::create(Arc::new(FileDisk), &path, &VAT, &key, smallest_segments()).unwrap();
    let mut random = Random(5);
    let (mut names, mut files, mut held) = (HashSet::new(), HashSet::new(), Vec::new());
    for round in 0..12 {
        fill_and_fold(&store, &mut random);
        if round % 4 == 3 {
            let (position, rows) = (store.position(), contents(&store).unwrap());
            store.close().unwrap();
            store = Store::open(Arc::new(FileDisk), &path, &VAT, &key, smallest_segments()).unwrap();
            assert_eq!((store.position(), contents(&store).unwrap()), (position, rows));
        }
        // One can be removed, or change its name, while they are listed; then it is left out.
        for entry in fs::read_dir(path.join("journal")).unwrap().flatten() {
            if entry.path().extension().and_then(OsStr::to_str) == Some("segment")
                && let Ok(file) = File::open(entry.path())
            {
                names.insert(entry.file_name());
                files.insert(file.metadata().unwrap().ino());
                // So that no other file gets its number.
                held.push(file);
            }
        }
    }
    assert!(names.len() > 12 && files.len() < names.len(), "{} files had {} names", files.len(), names.len());
}
