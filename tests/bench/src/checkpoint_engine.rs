//! `checkpoint`: the engine that keeps a vat's state, alone: no network, no objects, no event loop.
//!
//! | figure | what one operation is | baseline |
//! |---|---|---|
//! | `group_commit_1`, `_16`, `_128` | so many turns of 100 bytes become durable | raw log: one write, one `fdatasync` |
//! | `turns_128_vs_redb` | turns per second, 128 waiters | redb, one `Immediate` transaction for each group |
//! | `turns_128_vs_sqlite` | the same | SQLite, WAL, `synchronous=FULL`, likewise |
//! | `syncs_per_group` | syncs of files and folders for one group, counted | the same of the raw log |
//! | `open_after_kill_100m` | `Store::open` after SIGKILL, with a base of 100 MB | opening the base alone |
//! | `small_write_64k`, `syncs_per_small_write` | the state work of one request to a vat in one file | one sector and one `fdatasync` |
//! | `sleeping_vats_10k_fds`, `_bytes` | what one vat more costs that sleeps in a store of many | an open store; a vat that is awake |
//! | `seal_4k` | one frame of 4 KiB is sealed | AES-256-GCM of its body with a key at hand |
//!
//! Times are the median of a round's operations; see [`crate::rounds`] for what becomes of the rounds.

mod counting_disk;
mod databases;
mod group_commit;
mod opening;
mod raw_log;
mod sealing;
mod sleeping;
mod small;
mod syncs;
mod turns;
mod waiters;

use std::path::Path;

pub(crate) use opening::{VICTIM, victim};

use crate::{
    Failure, Report,
    figure::{Figure, Unit},
    folder, note,
    program::run as on_this_thread,
    rounds::{Comparison, Effort},
};

/// Turns in a group, and the figure that they make.
const GROUPS: [(u64, &str); 3] = [(1, "group_commit_1"), (16, "group_commit_16"), (128, "group_commit_128")];

/// Measures all figures.
pub(crate) fn run(effort: Effort, report: Report<'_>) -> Result<(), Failure> {
    let folder = folder::temporary()?;
    let part = |name: &str| -> Result<_, Failure> {
        let path = folder.path().join(name);
        std::fs::create_dir(&path)?;
        Ok(path)
    };
    for (turns, name) in GROUPS {
        let comparison = on_this_thread(group_commit::measure(effort, &part(name)?, turns))?;
        told(name, Unit::Microseconds, comparison, report)?;
    }
    let redb = |folder: &Path| databases::Redb::create(folder);
    let comparison = on_this_thread(waiters::measure(effort, &part("redb")?, redb))?;
    told("turns_128_vs_redb", Unit::TurnsPerSecond, comparison, report)?;
    let sqlite = |folder: &Path| databases::Sqlite::create(folder);
    let comparison = on_this_thread(waiters::measure(effort, &part("sqlite")?, sqlite))?;
    told("turns_128_vs_sqlite", Unit::TurnsPerSecond, comparison, report)?;
    told("syncs_per_group", Unit::Syncs, syncs::count(effort, &part("syncs")?)?, report)?;
    let comparison = on_this_thread(opening::measure(effort, &part("opening")?))?;
    told("open_after_kill_100m", Unit::Microseconds, comparison, report)?;
    small::measure(effort, &part("small")?, report)?;
    sleeping::measure(effort, &part("sleeping")?, report)?;
    told("seal_4k", Unit::Microseconds, on_this_thread(sealing::measure(effort))?, report)
}

fn told(name: &'static str, unit: Unit, comparison: Comparison, report: Report<'_>) -> Result<(), Failure> {
    note(&format!("{name}: {comparison}"));
    report(Figure { name, unit, comparison })
}
