//! Opening the records: the store, and the registry as it was.

use std::{io, path::Path, sync::Arc};

use checkpoint::{Disk, Durable, Protection, Store, StoreError, StoreOptions, TurnDelta};
use schemas::VatId;
use tokio::sync::watch;

use super::{RecordsError, rows};
use crate::{
    limits,
    registry::{Now, Policy, Registry, Seed},
};

/// Opens the store, or makes it if nothing is there or an earlier beginning was not finished.
pub(super) fn open_store(
    disk: &Arc<dyn Disk>,
    directory: &Path,
    id: VatId,
    segment_bytes: u64,
    report: &watch::Sender<Durable>,
) -> Result<Store, RecordsError> {
    let options = || {
        let report = report.clone();
        let on_durable = move |durable| {
            report.send_replace(durable);
        };
        StoreOptions { on_durable: Some(Box::new(on_durable)), segment_bytes, ..StoreOptions::default() }
    };
    let missing = match Store::open(Arc::clone(disk), directory, id.as_bytes(), &Protection::Plain, options()) {
        Err(error @ StoreError::Missing { .. }) => error,
        opened => return Ok(opened?),
    };
    match Store::create(Arc::clone(disk), directory, id.as_bytes(), &Protection::Plain, options()) {
        // Not empty and yet without something that a store needs: that is the thing to say.
        Err(StoreError::Occupied { .. }) => Err(missing.into()),
        created => Ok(created?),
    }
}

/// Reads what the store holds. Rows of an older format are written anew.
pub(super) fn restore(
    store: &Store,
    directory: &Path,
    policy: Policy,
    seed: Seed,
    now: Now,
) -> Result<Registry, RecordsError> {
    let mut turn = store.position().turn;
    let mut restoring = Registry::restoring(policy, seed, now);
    let anew = rows::read(store, &mut restoring)?
        .map_err(|source| RecordsError::Row { directory: directory.to_owned(), source })?;
    for changes in anew.chunks(limits::CHANGES_PER_UPGRADE) {
        turn += 1;
        store.submit(TurnDelta { turn, changes: changes.to_vec() })?;
    }
    store.wait_durable(turn)?;
    Ok(restoring.finish(turn))
}

/// Whether the folder holds anything: then it is not a new server's.
pub(crate) fn holds_records(disk: &dyn Disk, directory: &Path) -> io::Result<bool> {
    match disk.list(directory) {
        Ok(names) => Ok(!names.is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
