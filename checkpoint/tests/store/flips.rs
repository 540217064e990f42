//! Single changed bits in every file of a store: each one of a small store, a sample of a larger one.
//!
//! A changed bit in the keyslots, the key file, or a frame that is not in the base yet is refused, always. A changed
//! bit of the base is refused or changes nothing that can be read: redb does not look at all of its file. Nothing is
//! ever read differently, also not after a turn and a fold on top of it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use checkpoint::{Position, StoreError, simulated::SimulatedDisk};
use schemas::{Coded, ErrorCode};

use crate::harness::*;

const KEYSLOTS: &str = "/store/keyslots";
const KEY: &str = "/key";
/// Every so many bits of the base in an ordinary run; not a divisor of anything there.
const BASE_STRIDE: usize = 97;

/// A closed store, and what it has.
struct Subject {
    disk: Arc<SimulatedDisk>,
    rows: Rows,
    position: Position,
    /// The last frame that the base contains.
    folded: u64,
}

/// Rows in the base and after it, in one segment that is not full.
fn small() -> Subject {
    let disk = SimulatedDisk::new();
    // redb makes its file as small as it can when it is closed for the second time.
    drop(create(&disk, smallest_segments()).unwrap());
    let store = open(&disk, smallest_segments()).unwrap();
    durable_turn(&store, vec![set(0, b"a", b"1"), set(1, b"b", b"2")]).unwrap();
    store.fold().unwrap();
    let folded = store.durable().sequence;
    durable_turn(&store, vec![set(0, b"a", b"3"), set(2, b"c", &[9; 700])]).unwrap();
    store.begin_epoch(1, [1; 16]).unwrap();
    durable_turn(&store, vec![remove(1, b"b")]).unwrap();
    Subject::of(disk, store, folded)
}

/// Many turns in several segments, after many folds.
fn larger() -> Subject {
    let disk = SimulatedDisk::new();
    let store = create(&disk, smallest_segments()).unwrap();
    let mut random = Random(1);
    for number in 1..=90 {
        durable_turn(&store, random.changes()).unwrap();
        if number % 20 == 0 {
            store.fold().unwrap();
        }
    }
    let folded = store.durable().sequence - 10;
    Subject::of(disk, store, folded)
}

impl Subject {
    fn of(disk: Arc<SimulatedDisk>, store: checkpoint::Store, folded: u64) -> Self {
        let (rows, position) = (contents(&store).unwrap(), store.position());
        store.close().unwrap();
        Self { disk, rows, position, folded }
    }

    fn segments(&self) -> impl Iterator<Item = PathBuf> {
        self.disk.files().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "segment"))
    }

    /// Which bits of a segment belong to frames that have to be read.
    fn needed(&self, segment: &[u8]) -> Vec<bool> {
        let mut needed = vec![false; segment.len()];
        let mut at = 0;
        while segment[at..].starts_with(b"vatframe") {
            let field = |offset: usize| segment[at + offset..][..8].try_into().unwrap();
            let extent = usize::try_from(u64::from_le_bytes(field(8)) >> 32).unwrap();
            let sequence = u64::from_le_bytes(field(24));
            needed[at..at + extent].fill(sequence > self.folded);
            at += extent;
        }
        needed
    }

    /// What a store says whose file has one changed bit: a code, or nothing if nothing has changed.
    fn flipped(&self, path: &Path, bit: usize, go_on: bool) -> Result<(), ErrorCode> {
        let disk = self.disk.copy();
        disk.flip(path, bit);
        let code = |error: StoreError| match error {
            StoreError::Poisoned { cause } => cause.code(),
            error => error.code(),
        };
        quietly(|| {
            let store = open(&disk, smallest_segments())?;
            let mut rows = contents(&store)?;
            assert!(rows == self.rows, "bit {bit} of {}: other rows", path.display());
            assert_eq!(store.position(), self.position, "bit {bit} of {}", path.display());
            if go_on {
                let changes = vec![set(0, b"a", b"4"), set(1, b"d", &[5; 3_000])];
                apply(&mut rows, &changes);
                durable_turn(&store, changes)?;
                store.fold()?;
                assert!(contents(&store)? == rows, "bit {bit} of {}: other rows after a fold", path.display());
                store.close()?;
                let found = contents(&open(&disk, smallest_segments())?)?;
                assert!(found == rows, "bit {bit} of {}: other rows after opening again", path.display());
            }
            Ok(())
        })
        .map_err(code)
    }

    /// Flips bits of a file, one in each try: every `stride`-th of those that `must_be_refused` has. How many were
    /// refused, and how many changed nothing.
    fn flip(&self, path: &Path, stride: usize, must_be_refused: &[bool], codes: &[ErrorCode]) -> (u64, u64) {
        let (refused, same) = (AtomicU64::new(0), AtomicU64::new(0));
        let bits = must_be_refused.len() * 8;
        on_two_threads((bits / stride) as u64, |number| {
            let bit = usize::try_from(number).unwrap() * stride;
            match self.flipped(path, bit, number % 8 == 0) {
                Ok(()) => {
                    assert!(!must_be_refused[bit / 8], "bit {bit} of {} went unnoticed", path.display());
                    same.fetch_add(1, Ordering::SeqCst);
                }
                Err(code) => {
                    assert!(codes.contains(&code), "bit {bit} of {}: {code:?}", path.display());
                    refused.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        (refused.into_inner(), same.into_inner())
    }

    fn length(&self, path: &str) -> usize {
        self.disk.contents(Path::new(path)).unwrap().len()
    }

    /// Journal, keyslots and key file.
    fn flip_all_but_the_base(&self, stride: usize) {
        // A changed version or store id reads as what it says.
        let codes = [ErrorCode::CheckpointDamaged, ErrorCode::CheckpointVersion, ErrorCode::CheckpointWrongVat];
        for segment in self.segments() {
            let needed = self.needed(&self.disk.contents(&segment).unwrap());
            let least = needed.iter().filter(|needed| **needed).count() * 8 / stride;
            let (refused, _) = self.flip(&segment, stride, &needed, &codes);
            assert!(refused >= least as u64, "{refused} of {least} in {}", segment.display());
        }
        let all = |path| vec![true; self.length(path)];
        let (refused, same) = self.flip(Path::new(KEYSLOTS), 1, &all(KEYSLOTS), &[ErrorCode::CheckpointDamaged]);
        assert_eq!((refused, same), (8 * self.length(KEYSLOTS) as u64, 0));
        let (refused, same) = self.flip(Path::new(KEY), 1, &all(KEY), &[ErrorCode::KeyWrong]);
        assert_eq!((refused, same), (8 * 32, 0));
    }

    fn flip_the_base(&self, stride: usize) {
        // redb reports a read behind the end of a file as an error of the disk.
        let codes = [ErrorCode::CheckpointDamaged, ErrorCode::CheckpointDisk];
        let (refused, same) = self.flip(Path::new(BASE), stride, &vec![false; self.length(BASE)], &codes);
        assert!(refused > 0 && same > 0, "{refused} {same}");
    }
}

#[test]
fn every_changed_bit_of_a_small_store_is_refused_where_it_matters() {
    small().flip_all_but_the_base(1);
}

#[test]
fn a_changed_bit_of_a_small_base_is_refused_or_changes_nothing() {
    small().flip_the_base(BASE_STRIDE);
}

#[test]
#[ignore = "takes some minutes: the base has half a million bits"]
fn every_changed_bit_of_a_small_base_is_refused_or_changes_nothing() {
    small().flip_the_base(1);
}

#[test]
fn changed_bits_of_a_larger_store_are_refused_where_they_matter() {
    let larger = larger();
    assert!(larger.segments().count() > 5 && larger.length(BASE) > 100 << 10);
    larger.flip_all_but_the_base(499);
    larger.flip_the_base(1_999);
}
