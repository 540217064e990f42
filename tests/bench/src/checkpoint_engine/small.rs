//! What one request to a vat on a shared host pays for its state (DESIGN §8, §9): opened, one turn committed, closed.
//!
//! The vat is sealed with a key file, as a vat's is, and has 64 rows of 1 KiB. Every 64th commit or so folds, which is
//! inside the measured times and outside of their median.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use checkpoint::{Change, Disk, FileDisk, Protection, RowKey, SmallStore, TurnDelta, simulated::SimulatedDisk};

use crate::{
    Failure, Report,
    figure::{Figure, Unit},
    note,
    rounds::{Comparison, Effort, median, microseconds},
};

const VAT: [u8; 32] = [7; 32];
const SPACE: u64 = 16;
const ROWS: u8 = 64;
const ROW_BYTES: usize = 1 << 10;
/// What a turn changes: a counter, as the vat that is measured with `main-job` has.
const CHANGED_BYTES: usize = 19;
/// What the baseline writes at once, and where it begins again.
const SECTOR: usize = 512;
const BASELINE_BYTES: usize = 64 << 10;
/// So many requests are counted, which is more than between two folds.
const COUNTED: u64 = 200;

/// Measures both figures.
pub(super) fn measure(effort: Effort, folder: &Path, report: Report<'_>) -> Result<(), Failure> {
    let mut vat = Vat::create(Arc::new(FileDisk), folder)?;
    let mut baseline = Baseline::create(&folder.join("baseline"))?;
    let mut pairs = Vec::with_capacity(effort.rounds);
    // The first round warms caches and is not counted.
    for round in 0..=effort.rounds {
        let value = median_time(effort.samples, || vat.request())?;
        let pair = (value, median_time(effort.samples, || baseline.write())?);
        if round > 0 {
            pairs.push(pair);
        }
    }
    let comparison = Comparison::of(pairs);
    note(&format!("small_write_64k: {comparison}"));
    report(Figure { name: "small_write_64k", unit: Unit::Microseconds, comparison })?;

    let comparison = Comparison::of(vec![(syncs_per_request()?, 1.0)]);
    report(Figure { name: "syncs_per_small_write", unit: Unit::Syncs, comparison })
}

/// A vat in one file, asleep between two requests.
struct Vat {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    protection: Protection,
}

impl Vat {
    fn create(disk: Arc<dyn Disk>, folder: &Path) -> Result<Self, Failure> {
        let (path, protection) = (folder.join("vat"), Protection::KeyFile(folder.join("vat.key")));
        let mut store = SmallStore::create(Arc::clone(&disk), &path, &VAT, &protection)?;
        let changes = (0..ROWS).map(|name| set(name, vec![name; ROW_BYTES])).collect();
        store.commit(TurnDelta { turn: 1, changes })?;
        Ok(Self { disk, path, protection })
    }

    /// The state work of one request; tells how many frames it has written.
    fn request(&mut self) -> Result<u64, Failure> {
        let mut store = SmallStore::open(Arc::clone(&self.disk), &self.path, &VAT, &self.protection, &mut || false)?;
        let before = store.position();
        let turn = before.turn + 1;
        store.commit(TurnDelta { turn, changes: vec![set(ROWS, vec![1; CHANGED_BYTES])] })?;
        Ok(store.position().sequence - before.sequence)
    }
}

fn set(name: u8, value: Vec<u8>) -> Change {
    Change { key: RowKey { space: SPACE, name: vec![name] }, value: Some(value) }
}

/// The least that a durable change can cost here.
struct Baseline {
    file: File,
    at: usize,
}

impl Baseline {
    fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create_new(path)?;
        file.write_all_at(&[0; BASELINE_BYTES], 0)?;
        file.sync_all()?;
        Ok(Self { file, at: 0 })
    }

    fn write(&mut self) -> Result<u64, Failure> {
        self.file.write_all_at(&[7; SECTOR], self.at as u64)?;
        self.file.sync_data()?;
        self.at = (self.at + SECTOR) % BASELINE_BYTES;
        Ok(1)
    }
}

fn median_time(samples: usize, mut operation: impl FnMut() -> Result<u64, Failure>) -> Result<f64, Failure> {
    let mut times = Vec::with_capacity(samples);
    for _ in 0..samples {
        let begun = Instant::now();
        operation()?;
        times.push(microseconds(begun.elapsed()));
    }
    Ok(median(times))
}

/// Counted on a disk that remembers every call, over the requests that do not fold.
fn syncs_per_request() -> Result<f64, Failure> {
    let disk = SimulatedDisk::new();
    let root = Path::new("/");
    let mut vat = Vat::create(disk.clone(), root)?;
    let (mut requests, mut syncs) = (0_u32, 0_u32);
    for _ in 0..COUNTED {
        let before = disk.syncs(root);
        if vat.request()? == 1 {
            requests += 1;
            syncs += u32::try_from(disk.syncs(root) - before)?;
        }
    }
    Ok(f64::from(syncs) / f64::from(requests))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_write_is_one_sync_and_both_figures_come_under_their_stable_names() {
        let mut figures = Vec::new();
        let folder = crate::folder::temporary().unwrap();
        measure(Effort::LEAST, folder.path(), &mut |figure| {
            figures.push(figure);
            Ok(())
        })
        .unwrap();
        let names: Vec<_> = figures.iter().map(|figure| figure.name).collect();
        assert_eq!(names, ["small_write_64k", "syncs_per_small_write"]);
        let Comparison { value, baseline, .. } = figures[0].comparison;
        assert!(value > 0.0 && baseline > 0.0, "{value} {baseline}");
        assert_eq!(figures[1].comparison.value, 1.0);
    }
}
