//! What was noted last of each id, in bounded memory: a flood of ids pushes out the oldest notes, never the newest.

use std::collections::{HashMap, VecDeque};

use crate::registry::Id;

/// Notes by id; how many notes there were in all tells one note of an id from the next.
#[derive(Debug)]
pub(super) struct Newest<V> {
    values: HashMap<Id, (u64, V)>,
    /// The oldest first, with those of ids that were noted again since.
    order: VecDeque<(Id, u64)>,
    noted: u64,
    most: usize,
}

impl<V> Newest<V> {
    /// Has room for so many notes.
    pub(super) fn new(most: usize) -> Self {
        Self { values: HashMap::new(), order: VecDeque::new(), noted: 0, most }
    }

    /// Notes this of an id, in the place of what was noted before.
    pub(super) fn note(&mut self, id: Id, value: V) {
        while self.order.len() >= self.most
            && let Some((oldest, noted)) = self.order.pop_front()
        {
            // One that was noted again stays, by its later note.
            if self.values.get(&oldest).is_some_and(|(newest, _)| *newest == noted) {
                self.values.remove(&oldest);
            }
        }
        self.noted += 1;
        self.values.insert(id, (self.noted, value));
        self.order.push_back((id, self.noted));
    }

    /// What was noted last of an id, unless that was long ago.
    pub(super) fn get(&self, id: &Id) -> Option<&V> {
        self.values.get(id).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> Id {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        id
    }

    #[test]
    fn a_flood_of_ids_takes_no_more_than_its_memory_and_the_newest_stay() {
        let mut newest = Newest::new(100);
        for n in 0..10_000 {
            newest.note(id(n), n);
            // One that comes again and again does not push itself out.
            newest.note(id(77_777), 7);
        }
        assert!(newest.values.len() <= 100 && newest.order.len() == 100);
        assert_eq!([9_999, 77_777, 5].map(|n| newest.get(&id(n)).copied()), [Some(9_999), Some(7), None]);
    }

    #[test]
    fn what_is_noted_later_replaces_what_was_and_outlives_its_place() {
        let mut newest = Newest::new(3);
        for (n, value) in [(1, 'a'), (2, 'b'), (1, 'a')] {
            newest.note(id(n), value);
        }
        newest.note(id(3), 'c');
        assert_eq!([1, 2, 3].map(|n| newest.get(&id(n)).copied()), [Some('a'), Some('b'), Some('c')]);
        newest.note(id(4), 'd');
        assert_eq!([1, 2, 3, 4].map(|n| newest.get(&id(n)).copied()), [Some('a'), None, Some('c'), Some('d')]);
        newest.note(id(4), 'e');
        assert_eq!([1, 3, 4].map(|n| newest.get(&id(n)).copied()), [None, Some('c'), Some('e')]);
    }
}
