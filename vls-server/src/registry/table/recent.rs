//! What is kept of the records that were written last, and of no other: the turn that wrote each, and the quota of
//! writes that it has used up. So a record that nobody writes takes no memory for either.
//!
//! Records are named by the keyed hashes of their ids. Two with the same hash, which nobody can prepare, would share
//! an entry: one of them would wait a moment longer than it must.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

use crate::{
    limits::RECENT_TURNS,
    registry::{
        quota::{Bucket, Rate},
        time::Moment,
    },
};

/// Something of each of some records, by keyed hashes.
type ByHash<T> = HashMap<u64, T, BuildHasherDefault<KeyedHash>>;

/// What is a keyed hash already.
#[derive(Default)]
struct KeyedHash(u64);

impl Hasher for KeyedHash {
    fn write(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.is_empty(), "only numbers are hashed");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Which turn wrote a record last.
///
/// The last [`RECENT_TURNS`] are remembered, which are more than can wait for the disk. Of older ones it is known that
/// none is newer than the newest that was forgotten, and nothing is told before that one is durable either.
#[derive(Debug, Default)]
pub(super) struct Turns {
    by_hash: ByHash<u64>,
    in_order: VecDeque<(u64, u64)>,
    forgotten: u64,
}

impl Turns {
    /// The turn to wait for.
    pub(super) fn of(&self, hash: u64) -> u64 {
        self.by_hash.get(&hash).copied().unwrap_or(self.forgotten)
    }

    /// Notes that this turn has written a record.
    pub(super) fn set(&mut self, hash: u64, turn: u64) {
        self.by_hash.insert(hash, turn);
        if self.in_order.capacity() == 0 {
            self.in_order.reserve_exact(RECENT_TURNS + 1);
        }
        self.in_order.push_back((hash, turn));
        while self.in_order.len() > RECENT_TURNS
            && let Some((hash, turn)) = self.in_order.pop_front()
        {
            self.forgotten = turn;
            if self.by_hash.get(&hash) == Some(&turn) {
                self.by_hash.remove(&hash);
            }
        }
    }
}

/// Who has written so lately that not all tokens are there again.
#[derive(Debug, Default)]
pub(super) struct Debts {
    by_hash: ByHash<Bucket>,
    /// Whose bucket is looked at next, to see whether it is full again.
    round: VecDeque<u64>,
}

impl Debts {
    /// The bucket of a record.
    pub(super) fn of(&self, hash: u64) -> Bucket {
        self.by_hash.get(&hash).copied().unwrap_or(Bucket::FULL)
    }

    /// Takes a token, whether there is one or not.
    pub(super) fn take(&mut self, hash: u64, rate: Rate, now: Moment) {
        // Twice as many leave as come.
        for _ in 0..2 {
            self.look_at_one(now);
        }
        let mut bucket = self.of(hash);
        bucket.take(rate, now);
        if self.by_hash.insert(hash, bucket).is_none() {
            self.round.push_back(hash);
        }
    }

    /// Forgets what a record owes.
    pub(super) fn forget(&mut self, hash: u64) {
        if let Some(bucket) = self.by_hash.get_mut(&hash) {
            *bucket = Bucket::FULL;
        }
    }

    fn look_at_one(&mut self, now: Moment) {
        let Some(hash) = self.round.pop_front() else { return };
        if self.of(hash).is_full(now) {
            self.by_hash.remove(&hash);
            // What a storm has needed is not kept for ever.
            if self.by_hash.capacity() > 1_024 && self.by_hash.len() < self.by_hash.capacity() / 8 {
                self.by_hash.shrink_to(self.by_hash.len() * 2);
                self.round.shrink_to(self.round.len() * 2);
            }
        } else {
            self.round.push_back(hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_turn_that_was_forgotten_is_never_thought_older_than_it_was() {
        let mut turns = Turns::default();
        assert_eq!(turns.of(7), 0);
        let last = 3 * RECENT_TURNS as u64;
        for turn in 1..=last {
            turns.set(turn % 5_000, turn);
        }
        for (hash, turn) in (last - 4_999..=last).map(|turn| (turn % 5_000, turn)) {
            assert_eq!(turns.of(hash), turn.max(last - RECENT_TURNS as u64));
        }
        assert_eq!(turns.by_hash.len(), RECENT_TURNS);
    }

    #[test]
    fn debts_are_remembered_until_they_are_paid_and_leave_nothing_behind() {
        let rate = Rate { burst: 2, interval: Duration::from_secs(1) };
        let at = |millis| Moment::BEGINNING.after(Duration::from_millis(millis));
        let mut debts = Debts::default();
        for hash in 0..100_000 {
            debts.take(hash, rate, at(hash / 10));
        }
        assert!(debts.by_hash.len() < 30_000, "{} debts", debts.by_hash.len());
        let now = at(9_999);
        assert_eq!(debts.of(99_999).wait(rate, now), None);
        debts.take(99_999, rate, now);
        assert_eq!(debts.of(99_999).wait(rate, now), Some(Duration::from_secs(1)));
        debts.forget(99_999);
        assert_eq!(debts.of(99_999).wait(rate, now), None);
        for hash in 0..20_000 {
            debts.take(hash % 4, rate, at(50_000 + hash * 2_000));
        }
        assert!(debts.by_hash.len() <= 4 && debts.by_hash.capacity() < 2_048);
    }
}
