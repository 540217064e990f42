//! How long a group of turns takes to become durable.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use checkpoint::{Disk, FileDisk, Protection, Store, StoreOptions, TurnDelta};

use super::{raw_log::RawLog, turns::Turn};
use crate::{
    Failure,
    rounds::{Comparison, Effort, compare, median, microseconds},
};

/// Groups of turns from one thread, which submits them and waits, against the raw log with a group of as many bytes.
pub(super) async fn measure(effort: Effort, folder: &Path, turns: u64) -> Result<Comparison, Failure> {
    let disk: Arc<dyn Disk> = Arc::new(FileDisk);
    let mut log = RawLog::create(disk.as_ref(), &folder.join("raw.log"))?;
    let store = create_store(disk, folder, StoreOptions::default())?;
    let (mut submitted, mut logged) = (0, 0);
    // Both make their turns before the clock starts. Otherwise only the store's disk would have a rest between two
    // syncs, and disks answer later after one.
    let comparison = compare(
        effort,
        async || median_within(effort.window, || group(&mut submitted, turns), |group| commit(&store, group)),
        async || median_within(effort.window, || payload(&group(&mut logged, turns)), |bytes| log.append(&bytes)),
    )
    .await?;
    store.close()?;
    Ok(comparison)
}

/// A new sealed store in `folder`.
pub(super) fn create_store(disk: Arc<dyn Disk>, folder: &Path, options: StoreOptions) -> Result<Store, Failure> {
    let protection = Protection::KeyFile(folder.join("store.key"));
    Ok(Store::create(disk, &folder.join("store"), &[7; 32], &protection, options)?)
}

/// The next turns.
pub(super) fn group(submitted: &mut u64, turns: u64) -> Vec<TurnDelta> {
    let first = *submitted + 1;
    *submitted += turns;
    (first..=*submitted).map(|number| Turn::of(number).delta()).collect()
}

/// What they change, and nothing else.
fn payload(group: &[TurnDelta]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for change in group.iter().flat_map(|delta| &delta.changes) {
        bytes.extend_from_slice(&change.key.name);
        bytes.extend_from_slice(change.value.as_deref().unwrap_or_default());
    }
    bytes
}

/// Makes them durable as one group.
pub(super) fn commit(store: &Store, group: Vec<TurnDelta>) -> Result<(), Failure> {
    let Some(last) = group.last().map(|delta| delta.turn) else { return Ok(()) };
    for delta in group {
        store.queue(delta)?;
    }
    Ok(store.wait_durable(last)?)
}

/// The median time of one operation in microseconds, over all that begin within the window. What it works on is
/// made before the clock starts.
fn median_within<T>(
    window: Duration,
    mut input: impl FnMut() -> T,
    mut operation: impl FnMut(T) -> Result<(), Failure>,
) -> Result<f64, Failure> {
    let (mut times, started) = (Vec::new(), Instant::now());
    while started.elapsed() < window {
        let input = input();
        let begun = Instant::now();
        operation(input)?;
        times.push(microseconds(begun.elapsed()));
    }
    Ok(median(times))
}
