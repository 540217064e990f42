//! Waiting for whoever has a small store open.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    disk::{Disk, LockAttempt, LockGuard},
    error::StoreError,
    limits::SMALL_LOCK_INTERVAL,
    store::lifecycle::{lock_text, parse_lock_text},
    store_keys::with_suffix,
};

/// For [`SmallStore::open`](super::SmallStore::open): tries again every few milliseconds, for this long from now on.
/// With zero there is one try.
pub fn wait_at_most(time: Duration) -> impl FnMut() -> bool {
    let begun = Instant::now();
    move || {
        let left = time.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return false;
        }
        thread::sleep(left.min(SMALL_LOCK_INTERVAL));
        true
    }
}

/// Locks the store at `path`, or says who has it once `wait` gives up.
pub(super) fn lock(
    disk: &dyn Disk,
    path: &Path,
    wait: &mut dyn FnMut() -> bool,
) -> Result<Box<dyn LockGuard>, StoreError> {
    let (file, text) = (with_suffix(path, ".lock"), lock_text());
    loop {
        match disk.try_lock(&file, &text).map_err(|e| StoreError::disk("lock", &file, e))? {
            LockAttempt::Acquired(lock) => return Ok(lock),
            LockAttempt::Held(text) => {
                if !wait() {
                    return Err(StoreError::Locked { directory: path.to_owned(), holder: parse_lock_text(&text) });
                }
            }
        }
    }
}
