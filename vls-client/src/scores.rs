//! How good each entry has been, kept beside the cache (DESIGN §5): who is asked first is decided by what was measured,
//! over the runs of a program, and not by luck.
//!
//! Several processes keep them in one file. What each has measured since it last wrote is added to what the file says at
//! that moment, under the lock of the cache, so that none undoes what another has learnt.
//!
//! An entry is never forgotten for being bad: it is asked last, and one that recovers is soon as good as before, because
//! counts are halved as they grow. The order of the search path decides among entries that are about equally good.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    path::Path,
    rc::Rc,
    time::Duration,
};

use schemas::{SearchPathEntry, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    cache::{RecordCache, read},
    limits,
};

const FILE: &str = "entries.json";

/// What was measured of one entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EntryScore {
    /// Questions that it answered; the older they are, the less they count.
    pub answers: u32,
    /// Questions that it did not answer; the same.
    pub failures: u32,
    /// Answers that showed a record older than one that was known; the same.
    pub stale: u32,
    /// When it last answered, in microseconds since 1970.
    pub last_success_us: Option<u64>,
    /// When it last did not.
    pub last_failure_us: Option<u64>,
    /// The last answer times, in microseconds, the newest last.
    latencies_us: Vec<u64>,
}

impl EntryScore {
    /// The median of its last answer times.
    #[must_use]
    pub fn p50(&self) -> Option<Duration> {
        self.percentile(50)
    }

    /// Within this time came 95 of 100 of its last answers.
    #[must_use]
    pub fn p95(&self) -> Option<Duration> {
        self.percentile(95)
    }

    fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.latencies_us.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied().map(Duration::from_micros)
    }

    /// It has answered, and the older record, if any, was the known one.
    fn answered(&mut self, latency: Duration, stale: bool, now: Timestamp) {
        self.fade();
        self.answers += 1;
        self.stale += u32::from(stale);
        self.last_success_us = Some(now.as_micros());
        if self.latencies_us.len() >= limits::LATENCY_SAMPLES {
            self.latencies_us.remove(0);
        }
        self.latencies_us.push(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    fn failed(&mut self, now: Timestamp) {
        self.fade();
        self.failures += 1;
        self.last_failure_us = Some(now.as_micros());
    }

    /// Halves the counts before they grow beyond what is worth remembering.
    fn fade(&mut self) {
        if self.answers.saturating_add(self.failures) >= limits::SCORE_MEMORY {
            (self.answers, self.failures, self.stale) = (self.answers / 2, self.failures / 2, self.stale / 2);
        }
    }

    /// Brings what stands in a file within the bounds of what is measured.
    fn bound(&mut self) {
        let surplus = self.latencies_us.len().saturating_sub(limits::LATENCY_SAMPLES);
        self.latencies_us.drain(..surplus);
        self.answers = self.answers.min(limits::SCORE_MEMORY);
        self.failures = self.failures.min(limits::SCORE_MEMORY);
        self.stale = self.stale.min(self.answers);
    }

    /// Whose turn comes first: the lower. How long a good answer takes to come, failures and stale answers included, to
    /// a factor of two: finer differences are left to the order of the search path.
    #[must_use]
    pub fn rank(&self) -> u32 {
        let usual = self.p50().unwrap_or(limits::HEDGE).max(limits::HEDGE_BOUNDS.0);
        // One answer and no failure is what is expected of an entry of which nothing is known.
        let good = u128::from(self.answers.saturating_sub(self.stale)) + 1;
        let all = u128::from(self.answers.saturating_add(self.failures)) + 1;
        (usual.as_micros().saturating_mul(all) / good / limits::HEDGE_BOUNDS.0.as_micros()).max(1).ilog2()
    }
}

/// What a question to an entry brought, once.
#[derive(Debug)]
struct Measurement {
    entry: String,
    /// How long the answer took, and whether it was stale; `None` without one.
    answer: Option<(Duration, bool)>,
    when: Timestamp,
}

/// The scores of all entries that were asked.
#[derive(Debug)]
pub struct EntryScores {
    cache: Option<Rc<RecordCache>>,
    /// What the file said when it was last read, and what was measured since.
    table: RefCell<Table>,
    /// What was measured since the file was last written; nothing without a file.
    unsaved: RefCell<VecDeque<Measurement>>,
    saved: Cell<Duration>,
}

#[derive(Debug, Default)]
struct Table(BTreeMap<String, EntryScore>);

impl EntryScores {
    /// Those that are kept in this folder, which is that of a [`RecordCache`], as they are now. What cannot be read is as
    /// if it were not there.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        Self::new(None, Table::open(directory))
    }

    /// The same, and what is measured is added to them there.
    pub(crate) fn kept_in(cache: Rc<RecordCache>) -> Self {
        let table = Table::open(cache.directory());
        Self::new(Some(cache), table)
    }

    /// Scores that end with this process.
    pub(crate) fn in_memory() -> Self {
        Self::new(None, Table::default())
    }

    fn new(cache: Option<Rc<RecordCache>>, table: Table) -> Self {
        Self { cache, table: RefCell::new(table), unsaved: RefCell::default(), saved: Cell::default() }
    }

    /// What was measured of an entry; all zero if it was never asked.
    #[must_use]
    pub fn of(&self, entry: &SearchPathEntry) -> EntryScore {
        self.table.borrow().0.get(&entry.to_string()).cloned().unwrap_or_default()
    }

    pub(crate) fn answered(&self, entry: &SearchPathEntry, latency: Duration, stale: bool, now: Timestamp) {
        self.measured(Measurement { entry: entry.to_string(), answer: Some((latency, stale)), when: now });
    }

    pub(crate) fn failed(&self, entry: &SearchPathEntry, now: Timestamp) {
        self.measured(Measurement { entry: entry.to_string(), answer: None, when: now });
    }

    fn measured(&self, measurement: Measurement) {
        self.table.borrow_mut().add(&measurement);
        if self.cache.is_some() {
            let mut unsaved = self.unsaved.borrow_mut();
            if unsaved.len() >= limits::MAX_UNSAVED_SCORES {
                unsaved.pop_front();
            }
            unsaved.push_back(measurement);
        }
    }

    /// Writes them down, if there is something new and they were not just written; `elapsed` is the monotonic time.
    pub(crate) fn save_sometimes(&self, elapsed: Duration) {
        if elapsed.saturating_sub(self.saved.get()) >= limits::SCORE_INTERVAL {
            self.saved.set(elapsed);
            self.save();
        }
    }

    fn save(&self) {
        let mut unsaved = self.unsaved.borrow_mut();
        let (Some(cache), Some(last)) = (&self.cache, unsaved.back()) else { return };
        let mut table = Table::default();
        let saved = cache.update(FILE, limits::MAX_SCORE_FILE, last.when, |bytes| {
            table = Table::read(bytes);
            unsaved.iter().for_each(|measurement| table.add(measurement));
            Ok(serde_json::to_vec(&table.0)?)
        });
        match saved {
            Ok(()) => {
                unsaved.clear();
                self.table.replace(table);
            }
            // Mostly somebody else is writing. The next time, it is all there to be written.
            Err(error) => tracing::debug!(%error, "the scores of entries were not kept"),
        }
    }
}

impl Drop for EntryScores {
    fn drop(&mut self) {
        self.save();
    }
}

impl Table {
    fn open(directory: &Path) -> Self {
        match read(&directory.join(FILE), limits::MAX_SCORE_FILE) {
            Ok(bytes) => Self::read(&bytes.unwrap_or_default()),
            Err(error) => {
                tracing::debug!(%error, "the scores of entries were ignored");
                Self::default()
            }
        }
    }

    /// From a file that anything may stand in; what cannot be read is begun anew.
    fn read(bytes: &[u8]) -> Self {
        let mut table = match serde_json::from_slice(bytes) {
            Ok(table) => Self(table),
            Err(_) if bytes.is_empty() => Self::default(),
            Err(error) => {
                tracing::debug!(%error, "the scores of entries were ignored");
                Self::default()
            }
        };
        while table.0.len() > limits::MAX_SCORED {
            table.forget_one();
        }
        table.0.values_mut().for_each(EntryScore::bound);
        table
    }

    fn add(&mut self, Measurement { entry, answer, when }: &Measurement) {
        if self.0.len() >= limits::MAX_SCORED && !self.0.contains_key(entry) {
            self.forget_one();
        }
        let score = self.0.entry(entry.clone()).or_default();
        match answer {
            Some((latency, stale)) => score.answered(*latency, *stale, *when),
            None => score.failed(*when),
        }
    }

    /// Hints bring entries that nobody asks again: the one that was of use longest ago goes.
    fn forget_one(&mut self) {
        let oldest = self.0.iter().min_by_key(|(_, score)| score.last_success_us.max(score.last_failure_us));
        let oldest = oldest.map(|(entry, _)| entry.clone());
        oldest.and_then(|oldest| self.0.remove(&oldest));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn kept_in(folder: &tempfile::TempDir) -> EntryScores {
        EntryScores::kept_in(Rc::new(RecordCache::open(folder.path(), 10).unwrap()))
    }

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn entry(number: usize) -> SearchPathEntry {
        format!("dns:{number}.example.org").parse().unwrap()
    }

    fn score(answers: &[u64], failures: usize, stale: usize) -> EntryScore {
        let mut score = EntryScore::default();
        for (index, milliseconds) in answers.iter().enumerate() {
            score.answered(Duration::from_millis(*milliseconds), index < stale, NOW);
        }
        (0..failures).for_each(|_| score.failed(NOW));
        score
    }

    #[test]
    fn a_fast_and_honest_entry_comes_before_one_that_is_slow_or_stale_or_fails() {
        let good = score(&[20; 10], 0, 0);
        for worse in [score(&[200; 10], 0, 0), score(&[20; 10], 0, 10), score(&[20; 10], 20, 0), score(&[], 0, 0)] {
            assert!(good.rank() < worse.rank(), "{worse:?}");
        }
        assert!(score(&[], 0, 0).rank() < score(&[], 5, 0).rank(), "nothing known is better than nothing good");
        assert_eq!(score(&[20; 10], 0, 0).rank(), score(&[25; 10], 0, 0).rank(), "left to the order of the path");
    }

    #[test]
    fn a_bad_past_is_soon_forgotten() {
        let mut bad = score(&[20], 1000, 0);
        let before = bad.rank();
        (0..limits::SCORE_MEMORY).for_each(|_| bad.answered(Duration::from_millis(20), false, NOW));
        assert!(bad.rank() + 3 < before && bad.rank() <= score(&[20], 0, 0).rank() + 1, "{bad:?}");
        assert_eq!(bad.p95(), Some(Duration::from_millis(20)));
    }

    #[test]
    fn scores_outlive_the_process_and_damage_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let scores = kept_in(&folder);
        scores.answered(&entry(1), Duration::from_millis(3), true, NOW);
        scores.failed(&entry(2), NOW);
        drop(scores);
        let scores = EntryScores::open(folder.path());
        assert_eq!(scores.of(&entry(1)), score(&[3], 0, 1));
        assert_eq!((scores.of(&entry(2)).failures, scores.of(&entry(3))), (1, EntryScore::default()));
        fs::write(folder.path().join(FILE), "{\"dns:1.example.org\":[").unwrap();
        let scores = kept_in(&folder);
        assert_eq!(scores.of(&entry(1)), EntryScore::default());
        scores.failed(&entry(1), NOW);
        drop(scores);
        assert_eq!(EntryScores::open(folder.path()).of(&entry(1)), score(&[], 1, 0));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left over but the lock of the cache");
    }

    #[test]
    fn what_several_processes_measure_is_added_up_whenever_each_of_them_began() {
        let folder = tempfile::tempdir().unwrap();
        let (long, short) = (kept_in(&folder), kept_in(&folder));
        long.answered(&entry(1), Duration::from_millis(3), false, NOW);
        short.answered(&entry(1), Duration::from_millis(5), false, NOW);
        short.failed(&entry(2), NOW);
        drop(short);
        long.save_sometimes(limits::SCORE_INTERVAL);
        for scores in [&long, &EntryScores::open(folder.path())] {
            assert_eq!(scores.of(&entry(1)), score(&[5, 3], 0, 0));
            assert_eq!(scores.of(&entry(2)), score(&[], 1, 0));
        }
        drop(long);
        assert_eq!(EntryScores::open(folder.path()).of(&entry(1)).answers, 2, "nothing is written twice");
    }

    #[test]
    fn what_cannot_be_written_now_is_written_later_as_far_as_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let scores = kept_in(&folder);
        let lock = fs::File::create(folder.path().join("lock")).unwrap();
        lock.try_lock().unwrap();
        scores.failed(&entry(1), NOW);
        scores.save_sometimes(limits::SCORE_INTERVAL);
        (0..limits::MAX_UNSAVED_SCORES).for_each(|_| scores.failed(&entry(2), NOW));
        assert_eq!(EntryScores::open(folder.path()).of(&entry(2)), EntryScore::default());
        drop(lock);
        scores.save_sometimes(limits::SCORE_INTERVAL * 2);
        let kept = EntryScores::open(folder.path());
        assert_eq!(kept.of(&entry(2)), scores.of(&entry(2)));
        assert_eq!(kept.of(&entry(1)).failures, 0, "the oldest was forgotten");
    }

    #[test]
    fn a_file_in_which_anything_stands_is_brought_within_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let samples: Vec<u64> = (1..=100).map(|number| number * 1000).collect();
        let most = u32::MAX;
        let entries: Vec<String> = (0..200)
            .map(|number| {
                format!(
                    "\"{}\": {{\"answers\": {most}, \"failures\": {most}, \"stale\": {most}, \
                     \"last_success_us\": {number}, \"latencies_us\": {samples:?}}}",
                    entry(number)
                )
            })
            .collect();
        fs::write(folder.path().join(FILE), format!("{{{}}}", entries.join(","))).unwrap();
        let scores = EntryScores::open(folder.path());
        let last = scores.of(&entry(199));
        assert!(last.answers.checked_add(last.failures).is_some() && last.stale <= last.answers, "{last:?}");
        assert_eq!(last.latencies_us, samples[100 - limits::LATENCY_SAMPLES..], "the newest are kept");
        assert_eq!(scores.table.borrow().0.len(), limits::MAX_SCORED);
        assert_eq!(scores.of(&entry(0)), EntryScore::default());
    }

    #[test]
    fn of_too_many_entries_the_one_of_use_longest_ago_goes() {
        let scores = EntryScores::in_memory();
        for number in 0..=limits::MAX_SCORED {
            let when = NOW + Duration::from_secs(u64::try_from(number).unwrap());
            scores.answered(&entry(number), Duration::from_millis(3), false, when);
        }
        assert_eq!(scores.of(&entry(0)), EntryScore::default());
        assert_eq!((scores.of(&entry(1)).answers, scores.of(&entry(limits::MAX_SCORED)).answers), (1, 1));
    }
}
