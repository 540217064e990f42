//! How good each entry has been, kept beside the cache (DESIGN §5): who is asked first is decided by what was measured,
//! over the runs of a program, and not by luck.
//!
//! An entry is never forgotten for being bad: it is asked last, and one that recovers is soon as good as before, because
//! counts are halved as they grow. The order of the search path decides among entries that are about equally good.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use schemas::{SearchPathEntry, Timestamp};
use serde::{Deserialize, Serialize};

use crate::limits;

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

/// The scores of all entries that were asked.
#[derive(Debug)]
pub struct EntryScores {
    file: Option<PathBuf>,
    table: RefCell<BTreeMap<String, EntryScore>>,
    changed: Cell<bool>,
    saved: Cell<Duration>,
}

impl EntryScores {
    /// The scores that are kept in this folder, which is that of a [`RecordCache`](crate::RecordCache). What cannot be
    /// read is begun anew.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        let file = directory.join(FILE);
        let table = read(&file).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::debug!(file = %file.display(), %error, "the scores of entries were ignored");
            }
            BTreeMap::new()
        });
        Self { file: Some(file), table: RefCell::new(table), changed: Cell::default(), saved: Cell::default() }
    }

    /// Scores that end with this process.
    pub(crate) fn in_memory() -> Self {
        Self { file: None, table: RefCell::default(), changed: Cell::default(), saved: Cell::default() }
    }

    /// What was measured of an entry; all zero if it was never asked.
    #[must_use]
    pub fn of(&self, entry: &SearchPathEntry) -> EntryScore {
        self.table.borrow().get(&entry.to_string()).cloned().unwrap_or_default()
    }

    pub(crate) fn answered(&self, entry: &SearchPathEntry, latency: Duration, stale: bool, now: Timestamp) {
        self.change(entry, |score| score.answered(latency, stale, now));
    }

    pub(crate) fn failed(&self, entry: &SearchPathEntry, now: Timestamp) {
        self.change(entry, |score| score.failed(now));
    }

    fn change(&self, entry: &SearchPathEntry, change: impl FnOnce(&mut EntryScore)) {
        let (mut table, entry) = (self.table.borrow_mut(), entry.to_string());
        if table.len() >= limits::MAX_SCORED && !table.contains_key(&entry) {
            // Hints bring entries that nobody asks again: the one that was of use longest ago goes.
            let oldest = table.iter().min_by_key(|(_, score)| score.last_success_us.max(score.last_failure_us));
            let oldest = oldest.map(|(entry, _)| entry.clone());
            oldest.and_then(|oldest| table.remove(&oldest));
        }
        change(table.entry(entry).or_default());
        self.changed.set(true);
    }

    /// Writes them down, if they have changed and were not just written; `elapsed` is the monotonic time.
    pub(crate) fn save_sometimes(&self, elapsed: Duration) {
        if elapsed.saturating_sub(self.saved.get()) >= limits::SCORE_INTERVAL {
            self.saved.set(elapsed);
            self.save();
        }
    }

    fn save(&self) {
        let Some(file) = self.file.as_ref().filter(|_| self.changed.replace(false)) else { return };
        if let Err(error) = write(file, &self.table.borrow()) {
            tracing::debug!(file = %file.display(), %error, "the scores of entries were not kept");
        }
    }
}

impl Drop for EntryScores {
    fn drop(&mut self) {
        self.save();
    }
}

fn read(file: &Path) -> io::Result<BTreeMap<String, EntryScore>> {
    let mut text = String::new();
    File::open(file)?.take(limits::MAX_SCORE_FILE).read_to_string(&mut text)?;
    let mut table: BTreeMap<String, EntryScore> = serde_json::from_str(&text)?;
    for score in table.values_mut() {
        score.latencies_us.truncate(limits::LATENCY_SAMPLES);
    }
    Ok(table)
}

/// By rename, so that nobody reads a half; of two processes that write at once the last one wins, and little is lost.
fn write(file: &Path, table: &BTreeMap<String, EntryScore>) -> io::Result<()> {
    let new = file.with_extension(format!("{}.new", std::process::id()));
    let written = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new);
    let written = written.and_then(|mut writer| writer.write_all(serde_json::to_string(table)?.as_bytes()));
    let renamed = written.and_then(|()| fs::rename(&new, file));
    if renamed.is_err() {
        // It may not even be there.
        let _ = fs::remove_file(&new);
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let scores = EntryScores::open(folder.path());
        scores.answered(&entry(1), Duration::from_millis(3), true, NOW);
        scores.failed(&entry(2), NOW);
        drop(scores);
        let scores = EntryScores::open(folder.path());
        assert_eq!(scores.of(&entry(1)), score(&[3], 0, 1));
        assert_eq!((scores.of(&entry(2)).failures, scores.of(&entry(3))), (1, EntryScore::default()));
        fs::write(folder.path().join(FILE), "{\"dns:1.example.org\":[").unwrap();
        let scores = EntryScores::open(folder.path());
        assert_eq!(scores.of(&entry(1)), EntryScore::default());
        drop(scores);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left over");
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
