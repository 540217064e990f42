//! What a vat costs that is asleep in a store of many: file descriptors, and memory that the program holds.

use std::{fs, path::Path, sync::Arc};

use checkpoint::{Change, FileDisk, HostStore, Protection, RowKey, Store, StoreOptions, TurnDelta};

use super::told;
use crate::{
    Failure, Report,
    allocations::Counting,
    figure::Unit,
    note,
    rounds::{Comparison, Effort},
};

const SPACE: u64 = 16;
/// Rows of each vat, and bytes of each.
const ROWS: u64 = 4;
const ROW_BYTES: usize = 250;
/// Turns are waited for once so many vats have queued one.
const TOGETHER: usize = 128;

/// What the program holds for an open store in which so many vats sleep, and for one with twice as many: the difference
/// is what a vat costs. The baselines are what the store takes, and what a vat takes that is awake.
///
/// The store is opened anew before each look: otherwise the base's cache, which has a limit and no relation to the
/// number of vats, would have held this or that.
pub(super) fn measure(effort: Effort, folder: &Path, report: Report<'_>) -> Result<(), Failure> {
    let vats = effort.sleepers;
    let protection = Protection::KeyFile(folder.join("store.key"));
    let path = folder.join("store");
    let open = || HostStore::open(Arc::new(FileDisk), &path, &protection, StoreOptions::default());
    HostStore::create(Arc::new(FileDisk), &path, &protection, StoreOptions::default())?.close()?;

    let memory = Counting::start();
    let look = || Ok::<_, Failure>((memory.held(), descriptors()?));
    let without = look()?;
    let mut looks = Vec::new();
    for numbers in [0..vats, vats..2 * vats] {
        let host = open()?;
        sleepers(&host, numbers)?;
        host.close()?;
        let host = open()?;
        looks.push(look()?);
        host.close()?;
    }
    let host = open()?;
    let awake = (0..vats).map(|number| host.open_vat(&id(number), None)).collect::<Result<Vec<_>, _>>()?;
    let third = look()?;
    if host.vats()?.len() as u64 != 2 * vats || awake.iter().any(|store| store.durable().turn != 1) {
        return Err("not all vats are there".into());
    }
    drop((awake, host));

    let [first, second] = looks.as_slice() else { return Err("two looks".into()) };
    note(&format!("sleeping_vats_10k: {} bytes with {vats} asleep, {} with twice as many", first.0, second.0));
    let per_vat = |more: i64| more as f64 / vats as f64;
    let comparison = Comparison::of(vec![(per_vat(second.1 - first.1), (first.1 - without.1) as f64)]);
    told("sleeping_vats_10k_fds", Unit::Descriptors, comparison, report)?;
    let comparison = Comparison::of(vec![(per_vat(second.0 - first.0), per_vat(third.0 - second.0))]);
    told("sleeping_vats_10k_bytes", Unit::Bytes, comparison, report)
}

/// Makes these vats, and leaves them folded and asleep.
fn sleepers(host: &HostStore, numbers: std::ops::Range<u64>) -> Result<(), Failure> {
    let mut together = Vec::new();
    for number in numbers {
        together.push(vat(host, number)?);
        if together.len() == TOGETHER {
            together.drain(..).try_for_each(Store::close)?;
        }
    }
    together.drain(..).try_for_each(Store::close)?;
    Ok(host.fold()?)
}

fn id(number: u64) -> [u8; 32] {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    id
}

/// Makes a vat, which queues its first turn.
fn vat(host: &HostStore, number: u64) -> Result<Store, Failure> {
    let store = host.create_vat(&id(number), None)?;
    let change = |row: u64| Change {
        key: RowKey { space: SPACE, name: row.to_le_bytes().to_vec() },
        value: Some(vec![0x5a; ROW_BYTES]),
    };
    store.queue(TurnDelta { turn: 1, changes: (0..ROWS).map(change).collect() })?;
    Ok(store)
}

/// The file descriptors of this process.
fn descriptors() -> Result<i64, Failure> {
    // One of them reads the folder itself.
    Ok(fs::read_dir("/proc/self/fd")?.count() as i64 - 1)
}
