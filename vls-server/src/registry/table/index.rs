//! An index from ids to numbers of 26 bits, in about 4.7 bytes each.
//!
//! It holds no ids: who looks something up says of a number whether it is the one. Six bits of the hash stand
//! beside each number, so that hardly any other is asked.
//!
//! The index is cut by the hash into shards of some hundred numbers at most. Each is a table of its own with linear
//! probing, four fifths to nine tenths full, and grows by an eighth. So no operation moves more than one shard,
//! however many there are.

use std::fmt;

/// Bits of a number.
const NUMBER_BITS: u32 = 26;

/// One more than the highest number. The highest itself is not used, so that no slot looks empty.
pub(crate) const NUMBERS: u32 = (1 << NUMBER_BITS) - 1;

/// A slot without a number.
const EMPTY: u32 = u32::MAX;

/// Numbers in a shard when there are as many as expected.
const SHARD_NUMBERS: usize = 256;

const MAX_SHARDS: usize = 1 << 16;

const MIN_SLOTS: usize = 4;

/// The index.
pub(crate) struct Index {
    shards: Box<[Shard]>,
    len: usize,
}

#[derive(Default)]
struct Shard {
    slots: Box<[u32]>,
    used: u32,
}

impl Index {
    /// An index that will have at most about so many numbers.
    pub(crate) fn new(expected: usize) -> Self {
        let shards = (expected / SHARD_NUMBERS).clamp(1, MAX_SHARDS).next_power_of_two();
        Self { shards: (0..shards).map(|_| Shard::default()).collect(), len: 0 }
    }

    /// How many numbers there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The number with this hash of which `is` says that it is the one.
    pub(crate) fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        let shard = &self.shards[self.shard_of(hash)];
        shard.position(hash, is).map(|slot| shard.slots[slot] & NUMBERS)
    }

    /// Reads where the search for this hash begins, and nothing else.
    pub(crate) fn touch(&self, hash: u64) -> u32 {
        let shard = &self.shards[self.shard_of(hash)];
        shard.slots.get(shard.home(hash)).copied().unwrap_or(EMPTY)
    }

    /// How many shards there are; never another number.
    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The numbers of one shard. What has a hash is in the same shard for as long as it is there.
    pub(crate) fn shard(&self, shard: usize) -> impl Iterator<Item = u32> {
        let slots = self.shards.get(shard).map(|shard| &shard.slots[..]).unwrap_or_default();
        slots.iter().filter(|slot| **slot != EMPTY).map(|slot| slot & NUMBERS)
    }

    /// Adds a number that is not there. `hash_of` gives the hash of any that is.
    pub(crate) fn insert(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        debug_assert!(number < NUMBERS, "numbers have 26 bits");
        let shard = self.shard_of(hash);
        self.shards[shard].insert(hash, number, hash_of);
        self.len += 1;
    }

    /// Writes `new` in the place of `old`, which has this hash.
    pub(crate) fn renumber(&mut self, hash: u64, old: u32, new: u32) {
        let shard = self.shard_of(hash);
        let shard = &mut self.shards[shard];
        let slot = shard.position(hash, |number| number == old);
        debug_assert!(slot.is_some(), "what is renumbered is there");
        if let Some(slot) = slot {
            shard.slots[slot] = entry(hash, new);
        }
    }

    /// Takes a number out.
    pub(crate) fn remove(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        let shard = self.shard_of(hash);
        let shard = &mut self.shards[shard];
        let slot = shard.position(hash, |found| found == number);
        debug_assert!(slot.is_some(), "what is removed is there");
        if let Some(slot) = slot {
            shard.remove(slot, hash_of);
            self.len -= 1;
        }
    }

    /// Adds many numbers to an empty index at once, each shard in its final size. `all` gives the same hashes and
    /// numbers twice.
    pub(crate) fn fill<I: Iterator<Item = (u64, u32)>>(&mut self, all: impl Fn() -> I) {
        debug_assert_eq!(self.len, 0, "only an empty index is filled");
        for (hash, _) in all() {
            let shard = self.shard_of(hash);
            self.shards[shard].used += 1;
        }
        for shard in &mut self.shards {
            let used = std::mem::take(&mut shard.used) as usize;
            if used > 0 {
                // Seven eighths full: in the middle of the range.
                shard.slots = empty_slots(used * 8 / 7 + 1);
            }
        }
        for (hash, number) in all() {
            let shard = self.shard_of(hash);
            self.shards[shard].place(hash, number);
            self.len += 1;
        }
    }

    fn shard_of(&self, hash: u64) -> usize {
        // Proof: there are at most 2¹⁶ shards, and the product shifted by 32 is below their number.
        #[allow(clippy::cast_possible_truncation)]
        let shard = (((hash >> 32) * self.shards.len() as u64) >> 32) as usize;
        shard
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Shard {
    /// Where the search for this hash begins. The upper half of the hash has chosen the shard.
    fn home(&self, hash: u64) -> usize {
        // Proof: the product of two 32-bit numbers, shifted by 32, is below the second.
        #[allow(clippy::cast_possible_truncation)]
        let home = (((hash & 0xffff_ffff) * self.slots.len() as u64) >> 32) as usize;
        home
    }

    fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
    }

    fn position(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<usize> {
        if self.used == 0 {
            return None;
        }
        let tag = entry(hash, 0);
        let mut slot = self.home(hash);
        // Some slot is empty, so this ends.
        loop {
            let found = self.slots[slot];
            if found == EMPTY {
                return None;
            }
            if found & !NUMBERS == tag && is(found & NUMBERS) {
                return Some(slot);
            }
            slot = self.after(slot);
        }
    }

    fn insert(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        let slots = self.slots.len();
        if (self.used as usize + 1) * 10 > slots * 9 {
            let old = std::mem::replace(&mut self.slots, empty_slots(slots + (slots / 8).max(MIN_SLOTS)));
            self.used = 0;
            for number in old.iter().filter(|found| **found != EMPTY).map(|found| found & NUMBERS) {
                self.place(hash_of(number), number);
            }
        }
        self.place(hash, number);
    }

    fn place(&mut self, hash: u64, number: u32) {
        let mut slot = self.home(hash);
        while self.slots[slot] != EMPTY {
            slot = self.after(slot);
        }
        self.slots[slot] = entry(hash, number);
        self.used += 1;
    }

    /// Closes the gap (Knuth, volume 3, 6.4, algorithm R), so that no search ends at it too early.
    fn remove(&mut self, mut gap: usize, hash_of: impl Fn(u32) -> u64) {
        let slots = self.slots.len();
        self.used -= 1;
        let mut slot = gap;
        loop {
            self.slots[gap] = EMPTY;
            loop {
                slot = self.after(slot);
                let found = self.slots[slot];
                if found == EMPTY {
                    self.shrink(hash_of);
                    return;
                }
                let home = self.home(hash_of(found & NUMBERS));
                // It may stay where it is if its home lies between the gap and itself, round the end.
                if (slot + slots - home) % slots >= (slot + slots - gap) % slots {
                    break;
                }
            }
            self.slots[gap] = self.slots[slot];
            gap = slot;
        }
    }

    /// Gives memory back once less than half is in use.
    fn shrink(&mut self, hash_of: impl Fn(u32) -> u64) {
        let (used, slots) = (self.used as usize, self.slots.len());
        if used * 2 >= slots || slots <= 4 * MIN_SLOTS {
            return;
        }
        let old = std::mem::replace(&mut self.slots, empty_slots(used * 5 / 4 + MIN_SLOTS));
        self.used = 0;
        for number in old.iter().filter(|found| **found != EMPTY).map(|found| found & NUMBERS) {
            self.place(hash_of(number), number);
        }
    }
}

/// A number with six bits of its hash. They decide neither the shard nor, in one of some hundred slots, the home.
fn entry(hash: u64, number: u32) -> u32 {
    // Proof: masked to the low six bits.
    #[allow(clippy::cast_possible_truncation)]
    let tag = (hash & 0x3f) as u32;
    tag << NUMBER_BITS | number
}

fn empty_slots(slots: usize) -> Box<[u32]> {
    vec![EMPTY; slots].into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn next(random: &mut u64) -> u64 {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*random ^ *random >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    /// Hashes of numbers, many of which are alike in parts or wholly.
    fn hash_of(number: u32) -> u64 {
        let mut random = u64::from(number / 3);
        next(&mut random) ^ u64::from(number % 3) << 20
    }

    #[test]
    fn it_agrees_with_a_map_through_growth_and_decline() {
        let mut index = Index::new(1_024);
        let (mut model, mut random) = (HashMap::new(), 7);
        for round in 0..40_000_u32 {
            let growing = round / 10_000 % 2 == 0;
            let number = u32::try_from(next(&mut random) >> 40).unwrap() % 6_000;
            let known = model.contains_key(&number);
            assert_eq!(index.find(hash_of(number), |found| found == number), known.then_some(number));
            if known && (!growing || round % 4 == 0) {
                index.remove(hash_of(number), number, hash_of);
                model.remove(&number);
            } else if !known && (growing || round % 4 == 0) {
                index.insert(hash_of(number), number, hash_of);
                model.insert(number, ());
            }
            assert_eq!(index.len(), model.len());
        }
        for number in 0..6_000 {
            let found = index.find(hash_of(number), |found| found == number);
            assert_eq!(found.is_some(), model.contains_key(&number));
        }
        for number in model.into_keys() {
            index.remove(hash_of(number), number, hash_of);
        }
        let slots: usize = index.shards.iter().map(|shard| shard.slots.len()).sum();
        assert!(index.len() == 0 && slots <= 4 * 4 * MIN_SLOTS, "{slots} slots for nothing");
    }

    #[test]
    fn filled_at_once_it_finds_the_same_and_goes_on() {
        let mut index = Index::new(100_000);
        index.fill(|| (0..100_000).map(|number| (hash_of(number), number)));
        let slots: usize = index.shards.iter().map(|shard| shard.slots.len()).sum();
        assert!(slots * 4 < 100_000 * 5, "{slots} slots");
        for number in 0..100_000 {
            assert_eq!(index.find(hash_of(number), |found| found == number), Some(number));
        }
        for number in 100_000..101_000 {
            index.insert(hash_of(number), number, hash_of);
            index.remove(hash_of(number - 50_000), number - 50_000, hash_of);
        }
        assert_eq!(index.len(), 100_000);
        assert_eq!(index.find(hash_of(50_500), |found| found == 50_500), None);
        index.renumber(hash_of(7), 7, 1 << 25);
        assert_eq!(index.find(hash_of(7), |found| found != 7), Some(1 << 25));
    }
}
