//! The disk cache: what it keeps, what it refuses, and that nothing in it is fatal.
use std::{
    cmp::Ordering,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::support::records::{HOUR, altered, draft, foreign, key, noon, vat};
use proptest::prelude::*;
use schemas::{Coded, ErrorCode, SignedRecord, VatId};
use tempfile::TempDir;
use vls_client::{CacheError, RecordCache};

const SECOND: Duration = Duration::from_secs(1);

fn cache(capacity: usize) -> (TempDir, RecordCache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = RecordCache::open(&folder.path().join("records"), capacity).unwrap();
    (folder, cache)
}

fn file(folder: &TempDir, id: VatId) -> PathBuf {
    folder.path().join("records").join(format!("{id}.record"))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn kept(cache: &RecordCache, record: &SignedRecord) -> bool {
    cache.get(record.id(), noon()).unwrap().as_ref() == Some(record)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_sequence_of_records_the_highest_is_kept_and_survives_reopening(
        orders in proptest::collection::vec((1_u64..4, 0_u32..5, 0_u32..2), 1..12),
    ) {
        let (folder, cache) = cache(10);
        let mut highest: Option<SignedRecord> = None;
        for (epoch, minutes, more) in orders {
            // `more` makes different bytes of the same order.
            let record = draft(epoch, noon() + SECOND * 60 * minutes).valid_for(HOUR + SECOND * more).sign();
            let higher = highest.as_ref().is_none_or(|highest| record.compare(highest) == Ordering::Greater);
            prop_assert_eq!(cache.put(&record, noon()).unwrap(), higher);
            if higher {
                highest = Some(record);
            }
        }
        let reopened = RecordCache::open(&folder.path().join("records"), 10).unwrap();
        prop_assert_eq!(reopened.get(vat(), noon()).unwrap(), highest);
    }

    #[test]
    fn a_file_changed_in_any_way_is_reported_and_ignored_and_replaced(
        cut in any::<prop::sample::Index>(),
        bit in 0_u32..8,
        shorten in any::<bool>(),
    ) {
        let (folder, cache) = cache(10);
        let record = draft(3, noon()).sign();
        cache.put(&record, noon()).unwrap();
        let path = file(&folder, vat());
        let mut bytes = fs::read(&path).unwrap();
        let position = cut.index(bytes.len());
        if shorten { bytes.truncate(position) } else { bytes[position] ^= 1 << bit }
        fs::write(&path, bytes).unwrap();

        let error = cache.get(vat(), noon()).unwrap_err();
        prop_assert!(matches!(error, CacheError::Damaged { .. }), "{error}");
        prop_assert!(error.to_string().contains(&vat().to_string()), "names the file");
        let lower = draft(2, noon()).sign();
        prop_assert!(cache.put(&lower, noon()).unwrap());
        prop_assert!(kept(&cache, &lower));
    }
}

#[test]
fn a_forged_file_has_the_code_of_a_forged_record() {
    let (folder, cache) = cache(10);
    fs::write(file(&folder, vat()), altered(&draft(3, noon()).sign())).unwrap();
    assert_eq!(cache.get(vat(), noon()).unwrap_err().code(), ErrorCode::RecordForged);
    // A record under the name of another vat is that other vat's, not this one's.
    fs::write(file(&folder, key(2).id()), draft(3, noon()).sign().packet()).unwrap();
    assert_eq!(cache.get(key(2).id(), noon()).unwrap_err().code(), ErrorCode::RecordForged);
    // What another program has signed with the key is no record, and never kept as one.
    fs::write(file(&folder, vat()), foreign(noon())).unwrap();
    assert_eq!(cache.get(vat(), noon()).unwrap_err().code(), ErrorCode::RecordNoVat);
    assert!(cache.put(&draft(1, noon() - HOUR).sign(), noon()).unwrap(), "it gives way to any record");
}

#[test]
fn a_huge_file_is_not_read() {
    let (folder, cache) = cache(10);
    fs::File::create(file(&folder, vat())).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(cache.get(vat(), noon()).unwrap_err().code(), ErrorCode::RecordTooLarge);
}

#[test]
fn expired_records_are_kept_because_they_are_the_high_water_mark() {
    let (_folder, cache) = cache(10);
    let expired = draft(5, noon() - HOUR).valid_for(SECOND).sign();
    cache.put(&expired, noon()).unwrap();
    assert!(!cache.put(&draft(4, noon()).sign(), noon()).unwrap());
    assert!(kept(&cache, &expired));
}

#[test]
fn nobody_else_can_read_whom_one_looks_for() {
    let (folder, cache) = cache(10);
    let record = draft(1, noon()).sign();
    cache.put(&record, noon()).unwrap();
    let records = folder.path().join("records");
    assert_eq!((mode(&records), mode(&file(&folder, vat()))), (0o700, 0o600));
    // Also a folder that was made by something else.
    fs::set_permissions(&records, fs::Permissions::from_mode(0o755)).unwrap();
    RecordCache::open(&records, 10).unwrap();
    assert_eq!(mode(&records), 0o700);
}

#[test]
fn the_least_recently_used_are_evicted_and_the_count_is_bounded() {
    let (folder, cache) = cache(8);
    let records: Vec<SignedRecord> = (1..30).map(|seed| draft(1, noon()).by(seed).sign()).collect();
    // One hour apart, so that every use is dated.
    let at = |index: usize| noon() + HOUR * u32::try_from(index + 1).unwrap();
    for (index, record) in records.iter().enumerate() {
        cache.put(record, at(index)).unwrap();
        // The first one is used all the time.
        assert_eq!(cache.get(records[0].id(), at(index)).unwrap().as_ref(), Some(&records[0]));
        let files = fs::read_dir(folder.path().join("records")).unwrap();
        let files = files.filter(|file| file.as_ref().unwrap().path().extension().is_some()).count();
        assert!(files <= 8, "{files} files");
    }
    let last = records.len() - 1;
    assert_eq!(cache.get(records[last].id(), at(last)).unwrap().as_ref(), Some(&records[last]));
    assert_eq!(cache.get(records[1].id(), at(last)).unwrap(), None);
}

#[test]
fn a_process_that_holds_the_lock_delays_nobody() {
    let (folder, cache) = cache(10);
    let first = draft(1, noon()).sign();
    cache.put(&first, noon()).unwrap();
    let lock = fs::File::open(folder.path().join("records").join("lock")).unwrap();
    lock.lock().unwrap();
    let second = draft(2, noon()).sign();
    assert!(matches!(cache.put(&second, noon()), Err(CacheError::Busy { .. })));
    assert!(kept(&cache, &first), "reading needs no lock");
    lock.unlock().unwrap();
    assert!(cache.put(&second, noon()).unwrap());
}

#[test]
fn of_two_processes_the_one_with_the_lower_record_does_not_win() {
    let (folder, one) = cache(10);
    let other = RecordCache::open(&folder.path().join("records"), 10).unwrap();
    let (lower, higher) = (draft(1, noon()).sign(), draft(2, noon()).sign());
    assert!(other.put(&higher, noon()).unwrap());
    assert!(!one.put(&lower, noon()).unwrap());
    assert!(kept(&one, &higher));
}

#[test]
fn a_cache_that_cannot_be_written_says_so_with_its_path() {
    let (folder, cache) = cache(10);
    let records = folder.path().join("records");
    fs::remove_dir(&records).unwrap();
    let error = cache.put(&draft(1, noon()).sign(), noon()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::SystemIo);
    assert!(error.to_string().contains(records.to_str().unwrap()));
    // A file where the folder should be.
    fs::write(&records, b"").unwrap();
    assert!(RecordCache::open(&records, 10).is_err());
}

#[test]
fn reading_often_does_not_write_often() {
    let (folder, cache) = cache(10);
    let record = draft(1, noon()).sign();
    cache.put(&record, noon()).unwrap();
    let path = file(&folder, vat());
    let before = fs::metadata(&path).unwrap();
    cache.get(vat(), noon() + SECOND * 60).unwrap();
    let soon = fs::metadata(&path).unwrap();
    assert_eq!((before.mtime(), before.ctime_nsec()), (soon.mtime(), soon.ctime_nsec()));
    cache.get(vat(), noon() + HOUR * 2).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mtime(), before.mtime() + 7200);
}
