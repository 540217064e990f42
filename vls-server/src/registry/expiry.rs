//! Which live record ends next, everywhere and per source prefix (rule 6).
//!
//! There are no timers. The index holds the end of each lease as it is now: a renewal moves it, so no older
//! end is left behind that could still fire. Everything here costs O(log n).

use std::collections::{BTreeSet, HashMap};

use super::{Id, quota::SourcePrefix, time::Moment};

/// The ends of all leases.
#[derive(Debug, Default)]
pub(super) struct LeaseEnds {
    by_source: HashMap<SourcePrefix, BTreeSet<(Moment, Id)>>,
    /// The first end of each source.
    first: BTreeSet<(Moment, SourcePrefix)>,
    /// How many leases each source has.
    crowds: BTreeSet<(usize, SourcePrefix)>,
}

impl LeaseEnds {
    pub(super) fn insert(&mut self, source: SourcePrefix, end: Moment, id: Id) {
        self.change(source, |ends| {
            let new = ends.insert((end, id));
            debug_assert!(new, "a record has one lease");
        });
    }

    pub(super) fn remove(&mut self, source: SourcePrefix, end: Moment, id: Id) {
        self.change(source, |ends| {
            let found = ends.remove(&(end, id));
            debug_assert!(found, "the index holds the lease as the record has it");
        });
    }

    /// The lease that ends first.
    pub(super) fn next(&self) -> Option<(Moment, Id)> {
        let (_, source) = self.first.first()?;
        self.by_source.get(source)?.first().copied()
    }

    /// The source with the most leases, and how many.
    pub(super) fn most_crowded(&self) -> Option<(SourcePrefix, usize)> {
        self.crowds.last().map(|(count, source)| (*source, *count))
    }

    /// How many leases a source has.
    pub(super) fn count(&self, source: SourcePrefix) -> usize {
        self.by_source.get(&source).map_or(0, BTreeSet::len)
    }

    /// The lease of `source` that ends first.
    pub(super) fn next_of(&self, source: SourcePrefix) -> Option<Id> {
        self.by_source.get(&source)?.first().map(|(_, id)| *id)
    }

    fn change(&mut self, source: SourcePrefix, change: impl FnOnce(&mut BTreeSet<(Moment, Id)>)) {
        let ends = self.by_source.entry(source).or_default();
        if let Some((end, _)) = ends.first() {
            self.first.remove(&(*end, source));
            self.crowds.remove(&(ends.len(), source));
        }
        change(ends);
        if let Some((end, _)) = ends.first() {
            self.first.insert((*end, source));
            self.crowds.insert((ends.len(), source));
        } else {
            self.by_source.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_agrees_with_a_plain_list_through_many_changes() {
        let sources: Vec<_> = (1..6_u64).map(|n| SourcePrefix::from_bits(n << 8 | 4)).collect();
        let mut index = LeaseEnds::default();
        let mut list: Vec<(SourcePrefix, Moment, Id)> = Vec::new();
        let mut random = 1_u64;
        for step in 0..4_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let draw = usize::try_from(random >> 33).unwrap();
            if draw % 3 == 0 && !list.is_empty() {
                let (source, end, id) = list.swap_remove(draw / 3 % list.len());
                index.remove(source, end, id);
            } else {
                let mut id = [0; 32];
                id[..8].copy_from_slice(&step.to_be_bytes());
                let end = Moment::BEGINNING.after(Duration::from_secs(draw as u64 % 50));
                let source = sources[draw % sources.len()];
                list.push((source, end, id));
                index.insert(source, end, id);
            }
            let end_of_first = list.iter().map(|(_, end, _)| *end).min();
            assert_eq!(index.next().map(|(end, _)| end), end_of_first);
            for source in &sources {
                let mut own: Vec<_> =
                    list.iter().filter(|(of, ..)| of == source).map(|(_, end, id)| (*end, *id)).collect();
                own.sort_unstable();
                assert_eq!(index.count(*source), own.len());
                assert_eq!(index.next_of(*source), own.first().map(|(_, id)| *id));
            }
            let most = sources.iter().map(|source| index.count(*source)).max().filter(|count| *count > 0);
            assert_eq!(index.most_crowded().map(|(_, count)| count), most);
        }
    }
}
