//! The newest verified record of each vat that this process has met, in memory and, if there is one, in the
//! disk cache behind it.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use schemas::{SignedRecord, Timestamp, VatId};

use crate::{
    attempt::Outcome,
    cache::{CacheError, RecordCache},
    failure::Failure,
    limits,
};

pub(crate) struct KnownRecords {
    memory: RefCell<Memory>,
    disk: Option<Rc<RecordCache>>,
}

#[derive(Default)]
struct Memory {
    records: HashMap<VatId, Kept>,
    clock: u64,
}

struct Kept {
    record: SignedRecord,
    last_use: u64,
}

impl KnownRecords {
    pub(crate) fn new(disk: Option<Rc<RecordCache>>) -> Self {
        Self { memory: RefCell::default(), disk }
    }

    /// The highest record known, which may have expired; and what was wrong with the cache, if something was.
    pub(crate) fn get(&self, id: VatId, now: Timestamp) -> (Option<SignedRecord>, Option<Outcome>) {
        if let Some(record) = self.memory.borrow_mut().get(id) {
            return (Some(record), None);
        }
        match self.disk.as_ref().map(|disk| disk.get(id, now)) {
            Some(Ok(Some(record))) => {
                self.memory.borrow_mut().put(&record);
                (Some(record), None)
            }
            Some(Err(error)) => {
                tracing::warn!(%id, %error, "a cached record was ignored");
                (None, Some(Outcome::Failed(Failure::Cache(Arc::new(error)))))
            }
            Some(Ok(None)) | None => (None, None),
        }
    }

    /// Keeps a verified record that is higher than the one known.
    pub(crate) fn learn(&self, record: &SignedRecord, now: Timestamp) {
        self.memory.borrow_mut().put(record);
        match self.disk.as_ref().map(|disk| disk.put(record, now)) {
            // Another process keeps a record at this moment, or keeps a higher one. The next lookup tells.
            Some(Err(error @ CacheError::Busy { .. })) => tracing::debug!(%error, "a record was not cached"),
            Some(Err(error)) => tracing::warn!(%error, "a record was not cached"),
            Some(Ok(_)) | None => {}
        }
    }
}

impl Memory {
    fn get(&mut self, id: VatId) -> Option<SignedRecord> {
        self.clock += 1;
        let kept = self.records.get_mut(&id)?;
        kept.last_use = self.clock;
        Some(kept.record.clone())
    }

    fn put(&mut self, record: &SignedRecord) {
        self.clock += 1;
        let id = record.id();
        if self.records.get(&id).is_some_and(|kept| record.compare(&kept.record).is_le()) {
            return;
        }
        if self.records.len() >= limits::MAX_KNOWN && !self.records.contains_key(&id) {
            self.make_room();
        }
        self.records.insert(id, Kept { record: record.clone(), last_use: self.clock });
    }

    /// The least recently used eighth goes, so that a full memory is not searched for every new vat.
    fn make_room(&mut self) {
        let mut uses: Vec<u64> = self.records.values().map(|kept| kept.last_use).collect();
        uses.sort_unstable();
        let Some(newest_to_go) = uses.get(limits::MAX_KNOWN / limits::CACHE_EVICTION_FRACTION) else { return };
        self.records.retain(|_, kept| kept.last_use > *newest_to_go);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use schemas::{IdentityKey, LocationRecord, State};

    use super::*;

    fn record(seed: u64, epoch: u64) -> SignedRecord {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let now = Timestamp::from_seconds(1_800_000_000);
        let record = LocationRecord {
            epoch,
            turn: 0,
            chain_head: None,
            state: State::Live,
            expires: now + Duration::from_secs(60),
            addresses: vec![],
            search_path: vec![],
            document: None,
        };
        SignedRecord::sign(&IdentityKey::from_seed(&bytes), &record, now).unwrap()
    }

    #[test]
    fn an_older_record_does_not_replace_a_higher_one() {
        let mut memory = Memory::default();
        memory.put(&record(1, 5));
        memory.put(&record(1, 4));
        assert_eq!(memory.get(record(1, 5).id()), Some(record(1, 5)));
        memory.put(&record(1, 6));
        assert_eq!(memory.get(record(1, 5).id()), Some(record(1, 6)));
    }

    #[test]
    fn a_full_memory_forgets_those_that_were_used_longest_ago() {
        let mut memory = Memory::default();
        let first = record(0, 1);
        memory.put(&first);
        // Signing thousands of records would take long; one under many ids shows the same.
        for number in 1..limits::MAX_KNOWN {
            let id = IdentityKey::from_seed(&[&[0; 24][..], &number.to_be_bytes()].concat().try_into().unwrap()).id();
            memory.clock += 1;
            memory.records.insert(id, Kept { record: first.clone(), last_use: memory.clock });
        }
        assert!(memory.get(first.id()).is_some(), "used again");
        memory.put(&record(u64::MAX, 1));
        assert!(memory.records.len() <= limits::MAX_KNOWN - limits::MAX_KNOWN / limits::CACHE_EVICTION_FRACTION + 1);
        assert!(memory.get(first.id()).is_some(), "the most recently used one stays");
        assert!(memory.get(record(u64::MAX, 1).id()).is_some());
    }
}
