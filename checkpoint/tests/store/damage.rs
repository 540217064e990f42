//! Files that are not what was written: what is torn is cut, what is damaged is refused, and the two are never
//! taken for each other.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use checkpoint::{Damage, Protection, Store, StoreError, limits::SECTOR_BYTES, simulated::SimulatedDisk};
use schemas::{Coded, ErrorCode};

use crate::harness::*;

const KEYSLOTS: &str = "/store/keyslots";

fn segment(number: u64) -> PathBuf {
    PathBuf::from(format!("/store/journal/{number:016x}.segment"))
}

/// Opens as whichever kind of store it is.
fn open_as(disk: &Arc<SimulatedDisk>, protection: &Protection) -> Result<Store, StoreError> {
    Store::open(disk.clone(), directory(), &VAT, protection, no_folds())
}

/// A store with turns of these sizes, each in a frame of its own; its one segment, and where its frames are.
struct Written {
    disk: Arc<SimulatedDisk>,
    protection: Protection,
    bytes: Vec<u8>,
    /// Where each frame begins and ends. The first one is the genesis, which the base contains already.
    frames: Vec<(usize, usize)>,
    models: Vec<Rows>,
}

fn written(protection: Protection, sizes: &[usize]) -> Written {
    let disk = SimulatedDisk::new();
    let store = Store::create(disk.clone(), directory(), &VAT, &protection, no_folds()).unwrap();
    let mut models = vec![Rows::new()];
    for (n, size) in (1u8..).zip(sizes) {
        let changes = vec![set(0, b"row", &[n]), set(1, &[n], &vec![n; *size])];
        let mut rows = models.last().unwrap().clone();
        apply(&mut rows, &changes);
        models.push(rows);
        durable_turn(&store, changes).unwrap();
    }
    drop(store);
    let bytes = disk.contents(&segment(0)).unwrap();
    let frames = frames_of(&bytes);
    assert_eq!(frames.len(), sizes.len() + 1, "all in one segment");
    Written { disk, protection, bytes, frames, models }
}

fn frames_of(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut frames = Vec::new();
    let mut at = 0;
    while bytes[at..].starts_with(b"vatframe") {
        let extent = u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap()) as usize;
        frames.push((at, at + extent));
        at += extent;
    }
    frames
}

impl Written {
    /// The same store on another disk, its journal changed.
    fn with(&self, change: impl FnOnce(&mut Vec<u8>)) -> Arc<SimulatedDisk> {
        let disk = self.disk.copy();
        let mut bytes = self.bytes.clone();
        change(&mut bytes);
        disk.replace(&segment(0), &bytes);
        disk
    }

    fn open(&self, disk: &Arc<SimulatedDisk>) -> Result<Store, StoreError> {
        open_as(disk, &self.protection)
    }

    fn frame(&self, number: usize) -> &[u8] {
        &self.bytes[self.frames[number].0..self.frames[number].1]
    }

    fn sector(&self, number: usize, sector: usize) -> std::ops::Range<usize> {
        let start = self.frames[number].0 + sector * SECTOR_BYTES;
        start..start + SECTOR_BYTES
    }
}

fn both() -> [Protection; 2] {
    [sealed(), Protection::Plain]
}

/// The damage that an error names, and where.
fn damage(opened: Result<Store, StoreError>) -> (Damage, PathBuf, u64, Option<u64>) {
    match opened.unwrap_err() {
        StoreError::Damaged { path, offset, sequence, damage } => (damage, path, offset, sequence),
        other => panic!("{other}"),
    }
}

#[test]
fn a_changed_bit_in_any_byte_of_a_written_frame_is_found() {
    for protection in both() {
        let written = written(protection, &[10, 700]);
        let mut random = Random(5);
        for (number, (start, end)) in written.frames.iter().enumerate().skip(1) {
            for byte in *start..*end {
                let disk = written.with(|bytes| bytes[byte] ^= 1 << random.below(8));
                let refused = written.open(&disk).unwrap_err();
                // A changed version or store id reads as what it says; everything else is damage, in its place.
                match refused {
                    StoreError::Damaged { path, offset, sequence, .. } => {
                        assert_eq!((path, offset), (segment(0), *start as u64), "byte {byte}");
                        assert_eq!(sequence, Some(number as u64 + 1));
                    }
                    StoreError::Version { .. } => assert!((8..10).contains(&(byte - start)), "byte {byte}"),
                    StoreError::WrongVat { .. } => assert!((48..64).contains(&(byte - start)), "byte {byte}"),
                    other => panic!("byte {byte}: {other}"),
                }
                assert!(refused_changes_nothing(&written, &disk));
            }
        }
        // The genesis is in the base already: nothing reads it again.
        let disk = written.with(|bytes| bytes[100] ^= 1);
        assert_eq!(&contents(&written.open(&disk).unwrap()).unwrap(), written.models.last().unwrap());
    }
}

/// Whether a second opening is refused as well: the first one has not "repaired" anything.
fn refused_changes_nothing(written: &Written, disk: &Arc<SimulatedDisk>) -> bool {
    written.open(disk).is_err()
}

#[test]
fn the_error_names_the_file_the_offset_and_the_frame() {
    let written = written(sealed(), &[10, 10]);
    let (start, end) = written.frames[2];
    let disk = written.with(|bytes| bytes[end - 1] ^= 1);
    let error = written.open(&disk).unwrap_err();
    assert_eq!(error.code(), ErrorCode::CheckpointDamaged);
    let text = error.to_string();
    assert!(text.contains(segment(0).to_str().unwrap()) && text.contains(&format!("byte {start}")), "{text}");
    assert!(text.contains("frame 3"), "{text}");
}

#[test]
fn a_frame_whose_write_did_not_finish_is_cut() {
    for protection in both() {
        let written = written(protection, &[10, 10, 3000]);
        let sectors = (written.frames[3].1 - written.frames[3].0) / SECTOR_BYTES;
        assert!(sectors >= 6);
        // Every subset of the sectors of the last frame but the whole.
        for kept in 0..(1u32 << sectors) - 1 {
            let disk = written.with(|bytes| {
                for sector in (0..sectors).filter(|sector| kept & 1 << sector == 0) {
                    bytes[written.sector(3, sector)].fill(0);
                }
            });
            let store = written.open(&disk).unwrap();
            assert_eq!(contents(&store).unwrap(), written.models[2], "kept {kept:b}");
            drop(store);
            let bytes = disk.contents(&segment(0)).unwrap();
            assert!(bytes[written.frames[3].0..].iter().all(|byte| *byte == 0), "its traces are gone");
        }
        let store = written.open(&written.disk).unwrap();
        assert_eq!(contents(&store).unwrap(), written.models[3], "the whole is not cut");
    }
}

#[test]
fn a_store_goes_on_after_a_cut() {
    let written = written(sealed(), &[10, 3000]);
    let disk = written.with(|bytes| bytes[written.sector(2, 0)].fill(0));
    let store = written.open(&disk).unwrap();
    durable_turn(&store, vec![set(0, b"row", b"other")]).unwrap();
    drop(store);
    let store = written.open(&disk).unwrap();
    assert_eq!((store.position().turn, get(&store, 0, b"row")), (2, Some(b"other".to_vec())));
}

/// The torn frame was the first one of its segment; the next one is short enough for the segment before.
#[test]
fn a_segment_that_held_nothing_but_a_torn_frame_does_not_come_back() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    durable_turn(&store, vec![set(0, b"row", &[1; 6000])]).unwrap();
    durable_turn(&store, vec![set(0, b"row", &[2; 3000])]).unwrap();
    drop(store);
    let mut bytes = disk.contents(&segment(1)).unwrap();
    assert_eq!(frames_of(&bytes).len(), 1);
    bytes[1024..1536].fill(0);
    disk.replace(&segment(1), &bytes);

    let store = open(&disk, marking(&disk, no_folds())).unwrap();
    assert_eq!(store.position().turn, 1);
    durable_turn(&store, vec![set(0, b"row", b"other")]).unwrap();
    drop(store);
    assert_eq!(frames_of(&disk.contents(&segment(0)).unwrap()).len(), 3);
    let mut history = disk.history();
    for point in 0..=history.len() {
        history.advance(point);
        let oldest = 1 + history.marks().count() as u64;
        for seed in 0..8 {
            let store = open(&history.crash(seed), no_folds()).unwrap();
            let turn = store.position().turn;
            assert!((oldest..=2).contains(&turn), "{turn} after operation {point}");
            assert_eq!(get(&store, 0, b"row"), Some(if turn == 1 { vec![1; 6000] } else { b"other".to_vec() }));
        }
    }
}

#[test]
fn a_durable_frame_that_loses_a_sector_is_damage_and_not_a_torn_tail() {
    for protection in both() {
        let written = written(protection, &[3000, 10]);
        for sector in 0..6 {
            let disk = written.with(|bytes| bytes[written.sector(1, sector)].fill(0));
            let (damage, path, offset, sequence) = damage(written.open(&disk));
            assert_eq!(damage, Damage::Gap, "sector {sector}");
            assert_eq!((path, offset, sequence), (segment(0), written.frames[1].0 as u64, Some(2)));
        }
        // Whole frames, and all but the last one.
        let disk = written.with(|bytes| bytes[written.frames[1].0..written.frames[1].1].fill(0));
        assert_eq!(damage(written.open(&disk)).0, Damage::Gap);
    }
}

#[test]
fn the_last_frame_is_never_dropped_for_a_change_that_is_not_a_torn_write() {
    for protection in both() {
        let written = written(protection, &[10, 3000]);
        for (start, end) in [written.frames[2]] {
            for at in (start..end).step_by(97) {
                let disk = written.with(|bytes| bytes[at] = !bytes[at]);
                assert!(written.open(&disk).is_err(), "byte {at}");
            }
            // A sector from elsewhere, or of noise, in the place of one of its own.
            let disk = written.with(|bytes| bytes[start + 512..start + 1024].fill(0xa5));
            assert_eq!(damage(written.open(&disk)).0, Damage::Body);
        }
    }
}

#[test]
fn frames_cannot_be_dropped_repeated_reordered_or_moved() {
    for protection in both() {
        let written = written(protection.clone(), &[10, 10, 10, 10]);
        let [one, two, three] = [1, 2, 3].map(|number| written.frame(number).to_vec());
        let place = |number: usize| written.frames[number].0..written.frames[number].1;
        let sequence = |found| Damage::Sequence { found };

        let dropped = written.with(|bytes| drop(bytes.drain(place(2))));
        assert_eq!(damage(written.open(&dropped)).0, sequence(4));
        let repeated = written.with(|bytes| bytes[place(3)].copy_from_slice(&two));
        assert_eq!(damage(written.open(&repeated)).0, sequence(3));
        let reordered = written.with(|bytes| {
            bytes[place(1)].copy_from_slice(&two);
            bytes[place(2)].copy_from_slice(&one);
        });
        assert_eq!(damage(written.open(&reordered)).0, sequence(3));
        let moved_up = written.with(|bytes| {
            let (at, length) = (place(4).end, three.len());
            bytes[at..at + length].copy_from_slice(&three);
        });
        assert_eq!(damage(written.open(&moved_up)).0, sequence(4));

        // The same frame of another history of the same store: everything but the chain fits.
        let fork = written.disk.copy();
        fork.replace(&segment(0), &{
            let mut bytes = written.bytes.clone();
            bytes[place(2).start..place(4).end].fill(0);
            bytes
        });
        let store = written.open(&fork).unwrap();
        for value in [b"fork 2", b"fork 3", b"fork 4"] {
            durable_turn(&store, vec![set(0, b"row", value)]).unwrap();
        }
        drop(store);
        let forked = fork.contents(&segment(0)).unwrap();
        let spliced = written.with(|bytes| bytes[place(3)].copy_from_slice(&forked[place(3)]));
        assert_eq!(damage(written.open(&spliced)), (Damage::Body, segment(0), place(3).start as u64, Some(4)));

        // Of another store of the same vat, under the same key file.
        let other = SimulatedDisk::new();
        if let Some(key) = written.disk.contents(Path::new("/key")) {
            other.replace(Path::new("/key"), &key);
        }
        let store = Store::create(other.clone(), directory(), &VAT, &protection, no_folds()).unwrap();
        for _ in 0..4 {
            durable_turn(&store, vec![set(0, b"row", b"other")]).unwrap();
        }
        drop(store);
        let foreign = other.contents(&segment(0)).unwrap();
        let moved = written.with(|bytes| bytes[place(3)].copy_from_slice(&foreign[place(3)]));
        assert_eq!(written.open(&moved).unwrap_err().code(), ErrorCode::CheckpointWrongVat);
        for file in [KEYSLOTS, BASE] {
            let mixed = written.disk.copy();
            mixed.replace(Path::new(file), &other.contents(Path::new(file)).unwrap());
            assert!(written.open(&mixed).is_err(), "{file} of another store");
        }
    }
}

#[test]
fn a_store_opens_for_its_own_vat_only() {
    for protection in both() {
        let written = written(protection.clone(), &[10]);
        let refused = Store::open(written.disk.clone(), directory(), &[8; 32], &protection, no_folds());
        assert_eq!(refused.unwrap_err().code(), ErrorCode::CheckpointWrongVat);
        drop(written.open(&written.disk).unwrap());
    }
}

#[test]
fn nothing_that_is_missing_goes_unnoticed() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    for n in 0..30 {
        durable_turn(&store, vec![set(0, &[n], &[n; 900])]).unwrap();
    }
    drop(store);
    let segments = disk.files().into_iter().filter(|path| path.starts_with("/store/journal")).count() as u64;
    assert!(segments > 3);
    // The first one, one in the middle, and the one in use.
    for number in [0, 1, 2] {
        let copy = disk.copy();
        copy.lose(&segment(number));
        let refused = open(&copy, no_folds()).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::CheckpointMissing);
        assert!(refused.to_string().contains(segment(number).to_str().unwrap()), "{refused}");
    }
    for file in [BASE, KEYSLOTS, "/key"] {
        let copy = disk.copy();
        copy.lose(Path::new(file));
        let refused = open(&copy, no_folds()).unwrap_err();
        let expected = if file == "/key" { ErrorCode::KeyMissing } else { ErrorCode::CheckpointMissing };
        assert_eq!(refused.code(), expected, "{refused}");
    }
    // Emptied is not the same as missing, and not fine either.
    for file in [BASE, KEYSLOTS] {
        let copy = disk.copy();
        copy.replace(Path::new(file), &[]);
        assert_eq!(open(&copy, no_folds()).unwrap_err().code(), ErrorCode::CheckpointDamaged);
    }
    let copy = disk.copy();
    copy.replace(&segment(1), &[0; 8 << 10]);
    assert_eq!(damage(open(&copy, no_folds())).0, Damage::Gap, "a segment of zeros where frames were");
}

#[test]
fn a_base_that_has_more_than_the_journal_is_damage() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    durable_turn(&store, vec![set(0, b"a", b"1")]).unwrap();
    drop(store);
    let before = disk.contents(&segment(0)).unwrap();
    let store = open(&disk, no_folds()).unwrap();
    durable_turn(&store, vec![set(0, b"a", b"2")]).unwrap();
    store.fold().unwrap();
    durable_turn(&store, vec![set(0, b"a", b"3")]).unwrap();
    drop(store);
    // The journal alone is put back to what it was: the frames that the base goes on from are not there.
    disk.replace(&segment(0), &before);
    let store = open(&disk, no_folds()).unwrap();
    assert_eq!(get(&store, 0, b"a"), Some(b"2".to_vec()), "an earlier state of this store, exactly");
    drop(store);
    // A segment that ends before the position of the base is damage.
    disk.replace(&segment(0), &before[..512]);
    let (damage, path, ..) = damage(open(&disk, no_folds()));
    assert_eq!((damage, path), (Damage::Length { found: 512 }, segment(0)));
}

#[test]
fn an_older_base_with_the_journal_since_opens_to_the_newest_state() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, large_segments()).unwrap();
    durable_turn(&store, vec![set(0, b"a", b"1")]).unwrap();
    let older = disk.contents(Path::new(BASE)).unwrap();
    durable_turn(&store, vec![set(0, b"a", b"2"), set(0, b"b", b"2")]).unwrap();
    store.fold().unwrap();
    durable_turn(&store, vec![remove(0, b"b")]).unwrap();
    let newest = contents(&store).unwrap();
    drop(store);
    disk.replace(Path::new(BASE), &older);
    assert_eq!(contents(&open(&disk, no_folds()).unwrap()).unwrap(), newest);
}

#[test]
fn a_base_that_was_tampered_with_is_refused_or_reads_as_it_was_and_never_panics() {
    let disk = SimulatedDisk::new();
    let store = create(&disk, no_folds()).unwrap();
    for n in 0..20 {
        turn(&store, vec![set(0, &[n], &[n; 300]), set(1, &[n], &[1; 2000])]).unwrap();
    }
    store.fold().unwrap();
    let rows = contents(&store).unwrap();
    drop(store);
    let base = disk.contents(Path::new(BASE)).unwrap();
    let used: Vec<usize> = (0..base.len()).filter(|at| base[*at] != 0).collect();
    let mut random = Random(6);
    let (mut refused, mut harmless) = (0, 0);
    for _ in 0..250 {
        let copy = disk.copy();
        let mut changed = base.clone();
        for _ in 0..=random.below(3) {
            changed[used[random.below(used.len() as u64) as usize]] ^= 1 << random.below(8);
        }
        if random.below(5) == 0 {
            changed.truncate(random.below(base.len() as u64) as usize);
        }
        copy.replace(Path::new(BASE), &changed);
        match open(&copy, no_folds()).and_then(|store| contents(&store)) {
            Ok(found) => {
                assert!(found == rows, "rows were forged");
                harmless += 1;
            }
            Err(error) => {
                let code = match &error {
                    StoreError::Poisoned { cause } => cause.code(),
                    error => error.code(),
                };
                // redb reports a read behind the end of a file as an error of the disk.
                let expected = [ErrorCode::CheckpointDamaged, ErrorCode::CheckpointDisk];
                assert!(expected.contains(&code), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 50 && harmless > 0, "{refused} {harmless}");
}

#[test]
fn a_row_that_reads_as_damaged_stops_the_store() {
    let store = open_as(&plain_store_with_a_damaged_row(), &Protection::Plain).unwrap();
    let error = store.scan(0).unwrap_err();
    assert_eq!(error.code(), ErrorCode::CheckpointDamaged, "{error}");
    assert_eq!(store.poisoned().unwrap().code(), ErrorCode::CheckpointDamaged);
    assert_eq!(durable_turn(&store, vec![]).unwrap_err().code(), ErrorCode::VatPoisoned);
}

#[test]
fn a_newer_store_is_refused_by_its_version() {
    let written = written(sealed(), &[10]);
    let disk = written.with(|bytes| bytes[written.frames[1].0 + 8] = 9);
    let refused = written.open(&disk).unwrap_err();
    assert!(matches!(refused, StoreError::Version { found: 9, known: 1, .. }), "{refused}");
    assert_eq!(refused.code(), ErrorCode::CheckpointVersion);
}
