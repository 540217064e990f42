//! What a vat costs that is asleep in a store of many: file descriptors and memory of the process.

use std::{fs, path::Path, sync::Arc};

use checkpoint::{Change, FileDisk, HostStore, Protection, RowKey, Store, StoreOptions, TurnDelta};

use super::told;
use crate::{
    Failure, Report,
    figure::Unit,
    note,
    rounds::{Comparison, Effort},
};

const SPACE: u64 = 16;
/// Rows of each vat, and bytes of each.
const ROWS: u64 = 4;
const ROW_BYTES: usize = 250;
/// Turns are waited for once so many vats have queued one.
const TOGETHER: u64 = 128;

/// Vats are made, take a turn, and sleep; then all of it is folded. The same once more: what the process takes then
/// for so many vats more is what a vat costs. The baselines are what a store that is open takes, and what a vat takes
/// that stays awake.
pub(super) fn measure(effort: Effort, folder: &Path, report: Report<'_>) -> Result<(), Failure> {
    let vats = effort.sleepers;
    let without = descriptors()?;
    let protection = Protection::KeyFile(folder.join("store.key"));
    let disk = Arc::new(FileDisk);
    let host = HostStore::create(disk, &folder.join("store"), &protection, StoreOptions::default())?;
    let of_store = descriptors()? - without;

    let first = sleepers(&host, 0..vats)?;
    let second = sleepers(&host, vats..2 * vats)?;
    let per_vat = |more: f64| more / vats as f64;
    note(&format!(
        "sleeping_vats_10k: {} KiB with {vats} asleep, {} KiB with twice as many",
        first.0 / 1024,
        second.0 / 1024
    ));

    // What many have needed at a time is not given back to the system, so these come last.
    let mut awake = Vec::new();
    for number in 2 * vats..3 * vats {
        awake.push(vat(&host, number)?);
    }
    awake.iter().try_for_each(|store| store.wait_durable(1))?;
    host.fold()?;
    let of_awake = per_vat(resident()? as f64 - second.0 as f64);
    drop(awake);
    if host.vats()?.len() as u64 != 3 * vats {
        return Err("not all vats are there".into());
    }
    host.close()?;

    let more = per_vat(second.1 as f64 - of_store as f64 - without as f64);
    told("sleeping_vats_10k_fds", Unit::Descriptors, Comparison::of(vec![(more, of_store as f64)]), report)?;
    let more = per_vat((second.0 as f64 - first.0 as f64).max(0.0));
    told("sleeping_vats_10k_bytes", Unit::Bytes, Comparison::of(vec![(more, of_awake)]), report)
}

/// Memory and descriptors of this process once these vats are made, folded and asleep.
fn sleepers(host: &HostStore, numbers: std::ops::Range<u64>) -> Result<(u64, u64), Failure> {
    let mut together = Vec::new();
    for number in numbers {
        together.push(vat(host, number)?);
        if together.len() as u64 == TOGETHER {
            together.drain(..).try_for_each(Store::close)?;
        }
    }
    together.drain(..).try_for_each(Store::close)?;
    host.fold()?;
    Ok((resident()?, descriptors()?))
}

/// Makes a vat, which queues its first turn.
fn vat(host: &HostStore, number: u64) -> Result<Store, Failure> {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    let store = host.create_vat(&id, None)?;
    let change = |row: u64| Change {
        key: RowKey { space: SPACE, name: row.to_le_bytes().to_vec() },
        value: Some(vec![0x5a; ROW_BYTES]),
    };
    store.queue(TurnDelta { turn: 1, changes: (0..ROWS).map(change).collect() })?;
    Ok(store)
}

/// Memory of this process that is its own and not a file's, in bytes.
fn resident() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")).ok_or("no RssAnon in /proc/self/status")?;
    Ok(kibibytes.trim().parse::<u64>()? * 1024)
}

fn descriptors() -> Result<u64, Failure> {
    // One of them reads the folder itself.
    Ok(fs::read_dir("/proc/self/fd")?.count() as u64 - 1)
}
