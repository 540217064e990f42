//! How long nobody is answered while a server starts.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use checkpoint::{FileDisk, Protection, Store, StoreOptions};
use schemas::{IdentityKey, VatId};
use vls_server::{DurableRegistry, Seen, registry::Policy};

use super::records::{HandClock, SPACE, fill, forged};
use crate::{
    Failure,
    allocations::Counting,
    note,
    program::run as on_this_thread,
    rounds::{Comparison, Effort, compare, microseconds},
};

/// Opens the records of a server that was closed, up to the answer to the first question. The baseline only reads the
/// same rows: the difference is what becomes of them.
pub(super) fn measure(effort: Effort, folder: &Path) -> Result<Comparison, Failure> {
    let directory = folder.join("restart");
    make(&directory, effort.records)?;
    let effort = Effort { rounds: effort.rounds.min(3), ..effort };
    memory(&directory, effort.records)?;
    on_this_thread(compare(
        effort,
        async || {
            let begun = Instant::now();
            let registry = open(&directory, effort.records)?;
            let middle = forged(effort.records / 2);
            let now = registry.clock().now();
            let found = registry.see(
                &middle.id,
                now,
                |seen| matches!(seen, Seen::Record { packet, .. } if packet == middle.bytes),
            );
            let time = microseconds(begun.elapsed());
            if !found {
                return Err("a record is missing".into());
            }
            registry.close()?;
            Ok(time)
        },
        async || {
            let begun = Instant::now();
            let store = Store::open(Arc::new(FileDisk), &directory, id().as_bytes(), &Protection::Plain, options())?;
            let (mut rows, mut bytes) = (0, 0);
            store.for_each_row(SPACE, |name, value| {
                rows += 1;
                bytes += name.len() + value.len();
            })?;
            let time = microseconds(begun.elapsed());
            store.close()?;
            if rows != effort.records || bytes == 0 {
                return Err(format!("{rows} rows of {} are there", effort.records).into());
            }
            Ok(time)
        },
    ))
}

/// Tells how much memory opening takes at most, beside what is held afterwards.
fn memory(directory: &Path, records: u32) -> Result<(), Failure> {
    on_this_thread(async {
        let counting = Counting::start();
        let registry = open(directory, records)?;
        let (held, most) = (counting.held(), counting.most());
        drop(counting);
        registry.close()?;
        note(&format!("restart_1m: {most} bytes while it opens, {held} afterwards, of {records} records"));
        Ok(())
    })
}

fn open(directory: &Path, records: u32) -> Result<DurableRegistry, Failure> {
    let clock = HandClock::new();
    clock.advance(Duration::from_secs(60));
    let policy = Policy { max_records: records as usize, work: None, ..Policy::default() };
    Ok(DurableRegistry::open(Arc::new(FileDisk), directory, id(), policy, clock)?)
}

/// Makes the store of a server that has all records, in good order.
fn make(directory: &Path, records: u32) -> Result<(), Failure> {
    let store = Store::create(Arc::new(FileDisk), directory, id().as_bytes(), &Protection::Plain, options())?;
    fill(&store, records)?;
    Ok(store.close()?)
}

fn id() -> VatId {
    IdentityKey::from_seed(&[0x11; 32]).id()
}

fn options() -> StoreOptions {
    StoreOptions::default()
}
