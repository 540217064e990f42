//! What an export leaves that was killed, and who removes it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use checkpoint::{
    Census, Disk, DiskFile, FileDisk, ImageHead, Protection, Store, StoreError,
    simulated::SimulatedDisk,
    wrapped::{Behaviour, Wrapped},
};
use schemas::Timestamp;

use super::{holder, small};
use crate::harness::*;

fn to_file(
    disk: &dyn Disk,
    store: &Store,
    path: &Path,
    progress: &mut dyn FnMut(Census),
) -> Result<(ImageHead, Census), StoreError> {
    store.export_to_file(disk, path, &[holder()], ("a vat", Timestamp::from_seconds(1_700_000_000)), progress)
}

fn unfinished(disk: &SimulatedDisk) -> Vec<PathBuf> {
    disk.files().into_iter().filter(|path| path.extension().is_some_and(|end| end == "unfinished")).collect()
}

#[test]
fn what_a_killed_export_left_goes_with_the_next_one_of_that_vat() {
    let (store, _) = small(&SimulatedDisk::new());
    let whole = SimulatedDisk::new();
    to_file(whole.as_ref(), &store, Path::new("/one.image"), &mut |_| {}).unwrap();
    let other_vat = create_vat(&SimulatedDisk::new(), &[9; 32]);
    let mut history = whole.history();
    let mut left_over = 0;
    for point in 0..=history.len() {
        history.advance(point);
        for disk in [history.kill(), history.crash(point as u64)] {
            let left = unfinished(&disk);
            // Nearly of that form, and none of our business.
            let kept = left.first().map(|path| {
                let name = path.to_str().unwrap();
                [name.replace(".unfinished", "0.unfinished"), name.replacen("/.", "/", 1), name.replace(".07", ".08")]
            });
            for path in kept.iter().flatten() {
                disk.replace(Path::new(path), b"kept");
            }
            left_over += left.len();
            to_file(disk.as_ref(), &other_vat, Path::new("/other.image"), &mut |_| {}).unwrap();
            assert!(left.iter().all(|path| disk.contents(path).is_some()), "that of another vat is left alone");
            to_file(disk.as_ref(), &store, Path::new("/two.image"), &mut |_| {}).unwrap();
            assert!(left.iter().all(|path| disk.contents(path).is_none()));
            assert!(kept.iter().flatten().all(|path| disk.contents(Path::new(path)).is_some()));
        }
    }
    assert!(left_over > 8, "{left_over}");
}

fn create_vat(disk: &Arc<SimulatedDisk>, vat: &[u8; 32]) -> Store {
    Store::create(disk.clone(), directory(), vat, &Protection::Plain, no_folds()).unwrap()
}

#[test]
fn an_export_that_is_under_way_is_not_taken_for_a_left_over() {
    let (store, _) = small(&SimulatedDisk::new());
    let folder = tempfile::tempdir().unwrap();
    let to_real_file = |path: &Path, progress: &mut dyn FnMut(Census)| {
        let passphrase = checkpoint::Passphrase::new("seven marbles under the stairs".to_owned().into()).unwrap();
        let holders = [checkpoint::Holder::Passphrase(passphrase)];
        store.export_to_file(&FileDisk, path, &holders, ("a vat", Timestamp::from_seconds(1)), progress)
    };
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let mut inner = None;
    to_real_file(&one, &mut |_| {
        inner.get_or_insert_with(|| to_real_file(&two, &mut |_| {}).unwrap());
    })
    .unwrap();
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["one", "two"]);
}

/// Somebody who clears up finds each of the first files in the moment after it was made.
#[derive(Debug, Default)]
struct ClearsUp {
    files: AtomicU32,
}

impl Behaviour for ClearsUp {
    fn create(&self, disk: &dyn Disk, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = disk.create(path)?;
        if path.extension().is_some_and(|end| end == "unfinished") {
            match self.files.fetch_add(1, Ordering::SeqCst) {
                // It is gone before its writer could lock it.
                0 => disk.remove(path)?,
                // It is locked, and will be gone.
                1 => std::mem::forget(disk.try_lock_existing(path)?),
                _ => {}
            }
        }
        Ok(file)
    }
}

#[test]
fn a_file_that_is_taken_for_a_left_over_before_it_is_locked_is_made_again() {
    let (store, _) = small(&SimulatedDisk::new());
    let behind = SimulatedDisk::new();
    let disk = Wrapped::new(behind.clone(), ClearsUp::default());
    to_file(disk.as_ref(), &store, Path::new("/an.image"), &mut |_| {}).unwrap();
    assert_eq!(disk.behaviour().files.load(Ordering::SeqCst), 3);
    assert!(behind.contents(Path::new("/an.image")).is_some());
}
