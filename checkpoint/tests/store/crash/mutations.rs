//! The campaign must be able to fail. It does on disks on which one of the things that the engine relies on does
//! not happen: that shows that the engine needs the thing, does it, and would be caught if it did not.

use std::{
    io, mem,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use checkpoint::{
    Disk, DiskFile,
    simulated::SimulatedDisk,
    wrapped::{Behaviour, Wrapped, WrappedFile},
};

use super::{
    ORDINARY,
    campaign::{Effort, crash},
    check::GoOn,
    killed_before_a_sync,
    life::live,
};
use crate::harness::*;

const JOURNAL: &str = "/store/journal";

/// What is wrong with a disk after the store was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutation {
    /// Nothing: the control.
    None,
    /// Segments are never synced.
    NoJournalSync,
    /// The base is never synced.
    NoBaseSync,
    /// A segment is synced after the turns of its frame were acknowledged: before the next thing that happens to
    /// the journal.
    AcknowledgedFirst,
    /// Names in the journal are never synced.
    NoDirectorySync,
    /// A spare is not filled with zeros before it becomes a segment.
    NoZeros,
    /// Only the beginning of a spare is.
    FewZeros,
    /// A spare is filled with zeros, but they are not synced before it gets its new name.
    ZerosNotSynced,
}

#[derive(Debug)]
struct Mutated {
    mutation: Mutation,
    active: AtomicBool,
    /// Files that should have been synced and were not yet.
    owed: Mutex<Vec<Arc<dyn DiskFile>>>,
    /// Spares that were synced once.
    synced: Mutex<Vec<PathBuf>>,
}

impl Mutated {
    fn is(&self, mutation: Mutation) -> bool {
        self.active.load(Ordering::SeqCst) && self.mutation == mutation
    }

    fn pay(&self) -> io::Result<()> {
        mem::take(&mut *self.owed.lock().unwrap()).iter().try_for_each(|file| file.sync_data())
    }
}

impl Behaviour for Mutated {
    fn write(&self, file: &WrappedFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let zeros = is_spare(&file.path) && bytes.iter().all(|byte| *byte == 0);
        if zeros && self.is(Mutation::NoZeros) {
            return Ok(());
        }
        if zeros && self.is(Mutation::FewZeros) {
            return file.inner.write_all_at(offset, &bytes[..512]);
        }
        if file.path.starts_with(JOURNAL) {
            self.pay()?;
        }
        file.inner.write_all_at(offset, bytes)
    }

    fn sync(&self, file: &WrappedFile) -> io::Result<()> {
        let in_journal = file.path.starts_with(JOURNAL);
        if in_journal && self.is(Mutation::NoJournalSync)
            || file.path == Path::new(BASE) && self.is(Mutation::NoBaseSync)
        {
            return Ok(());
        }
        if in_journal && self.is(Mutation::AcknowledgedFirst) {
            self.owed.lock().unwrap().push(Arc::clone(&file.inner));
            return Ok(());
        }
        if is_spare(&file.path) && self.is(Mutation::ZerosNotSynced) {
            let mut synced = self.synced.lock().unwrap();
            if !synced.contains(&file.path) {
                synced.push(file.path.clone());
                return Ok(());
            }
        }
        file.inner.sync_data()
    }

    fn sync_directory(&self, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        if path == Path::new(JOURNAL) {
            self.pay()?;
            if self.is(Mutation::NoDirectorySync) {
                return Ok(());
            }
        }
        disk.sync_directory(path)
    }
}

fn is_spare(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "spare")
}

fn mutated(disk: &Arc<SimulatedDisk>, mutation: Mutation) -> Arc<Wrapped<Mutated>> {
    let (active, owed, synced) = (AtomicBool::new(false), Mutex::default(), Mutex::default());
    Wrapped::new(disk.clone(), Mutated { mutation, active, owed, synced })
}

/// What the campaign says about lives on such a disk: the first thing that it finds wrong.
fn found(mutation: Mutation) -> Option<String> {
    let effort = Effort { second_crash: u64::MAX, ..ORDINARY };
    (1..=4).find_map(|seed| {
        let disk = SimulatedDisk::new();
        let mutated = mutated(&disk, mutation);
        let created = || mutated.behaviour().active.store(true, Ordering::SeqCst);
        match live(&disk, &mutated, seed, effort.steps, created) {
            Ok(life) => quietly(|| crash(&life, effort)).err(),
            Err(cut) => Some(cut.to_string()),
        }
    })
}

#[test]
fn the_campaign_finds_nothing_on_a_disk_without_mutation() {
    assert_eq!(found(Mutation::None), None);
}

macro_rules! found_out {
    ($($test:ident: $mutation:ident,)*) => {$(
        #[test]
        fn $test() {
            let what = found(Mutation::$mutation).expect("the campaign must not hold");
            assert!(!what.contains("does not create"), "{what}");
        }
    )*};
}

found_out! {
    the_campaign_fails_without_the_sync_of_a_frame: NoJournalSync,
    the_campaign_fails_without_the_sync_of_the_base: NoBaseSync,
    the_campaign_fails_if_turns_are_acknowledged_before_the_sync: AcknowledgedFirst,
    the_campaign_fails_without_the_sync_of_the_names_of_segments: NoDirectorySync,
    the_campaign_fails_without_zeros_in_a_segment_that_is_used_again: NoZeros,
    the_campaign_fails_with_zeros_in_only_a_part_of_it: FewZeros,
    the_campaign_fails_if_the_zeros_are_not_durable_before_the_name: ZerosNotSynced,
}

/// Opening syncs what it shows: it may stand in the page cache only.
#[test]
fn a_frame_that_is_shown_after_a_kill_is_lost_without_the_sync_of_the_recovery() {
    let disk = SimulatedDisk::new();
    let life = live(&disk, &disk, 11, 30, || ()).unwrap();
    let lost = |mutation| {
        killed_before_a_sync(&life).iter().any(|(disk, allowed)| {
            let mutated = mutated(disk, mutation);
            mutated.behaviour().active.store(true, Ordering::SeqCst);
            let store = open(&mutated, smallest_segments()).unwrap();
            let shown = store.position().turn;
            drop(store);
            let mut after = disk.history();
            after.advance(after.len());
            allowed.shown(shown).check(&after.crash_keeping(|_, _| false), &life, GoOn::Turn).is_err()
        })
    };
    assert!(lost(Mutation::NoJournalSync) && !lost(Mutation::None));
}
