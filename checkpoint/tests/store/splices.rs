//! Frames that stand where they were not written: every order, every selection and every exchange of the frames of
//! a small journal, and frames and files of another vat.
//!
//! The one thing that is not refused is a journal that lacks its newest frames and nothing else: it is an earlier
//! state of this very store, and the location servers are the witnesses against that (R7).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use checkpoint::{Protection, Store, StoreError, simulated::SimulatedDisk};
use schemas::{Coded, ErrorCode};

use crate::harness::*;

const SEGMENT: &str = "/store/journal/0000000000000000.segment";
const KEYSLOTS: &str = "/store/keyslots";
const OTHER_VAT: [u8; 32] = [8; 32];
/// Frames of one sector after the genesis.
const FRAMES: usize = 5;

/// A store whose journal is the genesis, frames of one sector each with a turn each, and zeros.
struct Subject {
    disk: Arc<SimulatedDisk>,
    vat: [u8; 32],
    protection: Protection,
    models: Vec<Rows>,
}

impl Subject {
    fn new(vat: [u8; 32], protection: &Protection, key: Option<&[u8]>) -> Self {
        let disk = SimulatedDisk::new();
        if let Some(key) = key {
            disk.replace(Path::new("/key"), key);
        }
        let store = Store::create(disk.clone(), directory(), &vat, protection, smallest_segments()).unwrap();
        let mut subject = Self { disk, vat, protection: protection.clone(), models: vec![Rows::new()] };
        (1..=FRAMES).for_each(|number| subject.turn(&store, number as u8));
        drop(store);
        assert!(subject.journal()[(FRAMES + 1) * 512..].iter().all(|byte| *byte == 0), "one sector each");
        subject
    }

    fn turn(&mut self, store: &Store, value: u8) {
        let changes = vec![set(0, b"row", &[value])];
        let mut rows = self.models.last().unwrap().clone();
        apply(&mut rows, &changes);
        self.models.push(rows);
        durable_turn(store, changes).unwrap();
    }

    fn journal(&self) -> Vec<u8> {
        self.disk.contents(Path::new(SEGMENT)).unwrap()
    }

    /// The genesis, and then these sectors; the rest is zeros.
    fn with(&self, sectors: &[&[u8]]) -> Arc<SimulatedDisk> {
        let mut bytes = self.journal();
        bytes[512..].fill(0);
        for (place, sector) in sectors.iter().enumerate() {
            bytes[(place + 1) * 512..][..512].copy_from_slice(sector);
        }
        let disk = self.disk.copy();
        disk.replace(Path::new(SEGMENT), &bytes);
        disk
    }

    fn open(&self, disk: &Arc<SimulatedDisk>) -> Result<Store, StoreError> {
        Store::open(disk.clone(), directory(), &self.vat, &self.protection, smallest_segments())
    }

    /// Opens a journal of these frames, by their numbers from 1; 0 is a sector of zeros. Refused, twice, unless they
    /// are the first few in order.
    fn check(&self, frames: &[usize]) {
        let journal = self.journal();
        let disk = self.with(&frames.iter().map(|frame| sector(&journal, *frame)).collect::<Vec<_>>());
        let present = frames.iter().rposition(|frame| *frame > 0).map_or(0, |last| last + 1);
        if frames[..present].iter().copied().eq(1..=present) {
            let store = self.open(&disk).unwrap();
            assert_eq!(contents(&store).unwrap(), self.models[present], "{frames:?}");
            return;
        }
        for _ in 0..2 {
            let refused = self.open(&disk).expect_err(&format!("{frames:?}"));
            assert_eq!(refused.code(), ErrorCode::CheckpointDamaged, "{frames:?}: {refused}");
        }
    }
}

/// A frame by its number from 1, or zeros.
fn sector(journal: &[u8], frame: usize) -> &[u8] {
    const ZEROS: [u8; 512] = [0; 512];
    if frame == 0 { &ZEROS } else { &journal[frame * 512..][..512] }
}

fn both() -> [Protection; 2] {
    [sealed(), Protection::Plain]
}

/// Every journal of up to as many places as there were frames, each with any of the frames or zeros: so frames are
/// dropped, repeated, exchanged and moved in every way that there is.
#[test]
fn only_the_frames_in_their_order_from_the_first_one_on_are_accepted() {
    for protection in both() {
        let subject = Subject::new(VAT, &protection, None);
        // Four of the five frames would do; the fifth can stand where it never was.
        let (places, frames) = (4, FRAMES + 1);
        on_two_threads(frames.pow(places) as u64, |number| {
            let digit = |place| usize::try_from(number).unwrap() / frames.pow(place) % frames;
            subject.check(&(0..places).map(digit).collect::<Vec<_>>());
        });
    }
}

/// The same store twice, grown apart after some turns. Their frames fit each other in everything but the chain.
#[test]
fn frames_of_a_copy_that_went_its_own_way_are_refused() {
    for protection in both() {
        let subject = Subject::new(VAT, &protection, None);
        let journal = subject.journal();
        for common in 0..FRAMES - 1 {
            let shared: Vec<_> = (1..=common).map(|frame| sector(&journal, frame)).collect();
            let disk = subject.with(&shared);
            let models = subject.models[..=common].to_vec();
            let mut fork = Subject { disk, vat: VAT, protection: protection.clone(), models };
            let store = fork.open(&fork.disk).unwrap();
            (common..FRAMES).for_each(|number| fork.turn(&store, 100 + number as u8));
            drop(store);
            let forked = fork.journal();
            // Each choice of each frame from one of the two.
            for choice in 0..1usize << FRAMES {
                let from_fork = |frame: usize| choice & 1 << (frame - 1) != 0;
                let picked: Vec<_> = (1..=FRAMES)
                    .map(|frame| sector(if from_fork(frame) { &forked } else { &journal }, frame))
                    .collect();
                let opened = subject.open(&subject.with(&picked));
                let differing = || common + 1..=FRAMES;
                if differing().all(from_fork) || !differing().any(from_fork) {
                    let models = if from_fork(FRAMES) { &fork.models } else { &subject.models };
                    assert_eq!(&contents(&opened.unwrap()).unwrap(), models.last().unwrap());
                } else {
                    assert_eq!(opened.unwrap_err().code(), ErrorCode::CheckpointDamaged, "{common} {choice:b}");
                }
            }
        }
    }
}

/// Two vats of one owner, under one key file: nothing of one is taken for a part of the other.
#[test]
fn frames_and_files_of_another_vat_are_refused() {
    for protection in both() {
        let one = Subject::new(VAT, &protection, None);
        let key = one.disk.contents(Path::new("/key"));
        let other = Subject::new(OTHER_VAT, &protection, key.as_deref());
        let (journal, foreign) = (one.journal(), other.journal());
        for place in 1..=FRAMES {
            for frame in 0..=FRAMES {
                let picked: Vec<_> = (1..=FRAMES)
                    .map(
                        |number| {
                            if number == place { &foreign[frame * 512..][..512] } else { sector(&journal, number) }
                        },
                    )
                    .collect();
                let refused = one.open(&one.with(&picked)).unwrap_err();
                assert_eq!(refused.code(), ErrorCode::CheckpointWrongVat, "{frame} at {place}: {refused}");
            }
        }
        // Any files but all of them or none.
        let files: [PathBuf; 3] = [SEGMENT, KEYSLOTS, BASE].map(PathBuf::from);
        for choice in 0..8 {
            let disk = one.disk.copy();
            for file in (0..3).filter(|file| choice & 1 << file != 0).map(|file| &files[file]) {
                disk.replace(file, &other.disk.contents(file).unwrap());
            }
            match one.open(&disk.copy()) {
                Ok(store) if choice == 0 => assert_eq!(&contents(&store).unwrap(), one.models.last().unwrap()),
                opened => assert_eq!(opened.is_ok(), choice == 0, "{choice:b}"),
            }
            match other.open(&disk) {
                Ok(store) if choice == 7 => assert_eq!(&contents(&store).unwrap(), other.models.last().unwrap()),
                opened => assert_eq!(opened.is_ok(), choice == 7, "{choice:b}"),
            }
        }
    }
}
