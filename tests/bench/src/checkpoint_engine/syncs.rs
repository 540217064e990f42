//! How many syncs a group costs, counted at the disk.

use std::{ffi::OsStr, path::Path};

use checkpoint::StoreOptions;

use super::{
    counting_disk::{Syncs, counting_disk},
    group_commit::{commit, create_store, group},
    raw_log::RawLog,
    turns::TURN_BYTES,
};
use crate::{
    Failure, note,
    rounds::{Comparison, Effort, rate},
};

const TURNS: u64 = 16;
/// Which file a fold writes. It is the only one that is not waited for.
const BASE: &str = "base.redb";

/// Syncs of any file or folder, but for the base's, for one group; and those of the raw log.
///
/// Half of the groups come before a fold and half after it, so that the base has been written as well.
pub(super) fn count(effort: Effort, folder: &Path) -> Result<Comparison, Failure> {
    let disk = counting_disk();
    let store = create_store(disk.clone(), folder, StoreOptions::default())?;
    let groups = u64::try_from(effort.samples)?;
    let (first, mut submitted) = (store.durable().sequence, 0);
    disk.behaviour().take();
    for part in [groups / 2, groups - groups / 2] {
        for _ in 0..part {
            commit(&store, group(&mut submitted, TURNS))?;
        }
        store.fold()?;
    }
    let of_store = disk.behaviour().take();
    let frames = store.durable().sequence - first;
    if frames != groups {
        return Err(format!("{groups} groups made {frames} frames").into());
    }
    for (path, times) in &of_store {
        let name = path.strip_prefix(folder).unwrap_or(path).display();
        note(&format!("syncs_per_group: {groups} groups and 2 folds synced {name} {times} times"));
    }
    let mut log = RawLog::create(disk.as_ref(), &folder.join("raw.log"))?;
    disk.behaviour().take();
    let bytes = vec![0x5a; usize::try_from(TURNS)? * TURN_BYTES];
    for _ in 0..groups {
        log.append(&bytes)?;
    }
    let of_log = disk.behaviour().take();
    store.close()?;
    Ok(Comparison::of(vec![(per_group(&of_store, groups), per_group(&of_log, groups))]))
}

fn per_group(syncs: &Syncs, groups: u64) -> f64 {
    let not_the_base = syncs.iter().filter(|(path, _)| path.file_name() != Some(OsStr::new(BASE)));
    rate(not_the_base.map(|(_, times)| times).sum(), std::time::Duration::from_secs(groups))
}
