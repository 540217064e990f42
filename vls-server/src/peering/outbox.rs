//! What one peer is to be told: bounded, each id once, the newest first forgotten when there is no room.

use std::collections::{HashSet, VecDeque};

use crate::registry::Id;

/// Ids whose records a peer has not been told yet.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: VecDeque<Id>,
    queued: HashSet<Id>,
    most: usize,
}

impl Outbox {
    /// With room for so many.
    pub(crate) fn new(most: usize) -> Self {
        Self { queue: VecDeque::new(), queued: HashSet::new(), most }
    }

    /// Something was registered for this id; `false` if there is no room to remember it.
    pub(crate) fn note(&mut self, id: &Id) -> bool {
        if self.queued.contains(id) {
            // It is looked up when it is told: the newest record then.
            return true;
        }
        if self.queue.len() >= self.most {
            return false;
        }
        self.queued.insert(*id);
        self.queue.push_back(*id);
        true
    }

    /// Takes those that have waited for longest.
    pub(crate) fn take(&mut self, most: usize) -> Vec<Id> {
        let taken: Vec<Id> = self.queue.drain(..most.min(self.queue.len())).collect();
        for id in &taken {
            self.queued.remove(id);
        }
        taken
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_is_told_once_in_order_and_what_has_no_room_is_forgotten() {
        let mut outbox = Outbox::new(3);
        let noted: Vec<bool> = [1, 2, 1, 3, 4, 2].iter().map(|n| outbox.note(&[*n; 32])).collect();
        assert_eq!(noted, [true, true, true, true, false, true]);
        assert_eq!(outbox.take(2), [[1; 32], [2; 32]]);
        // Registered again since: told again.
        assert!(outbox.note(&[1; 32]));
        assert_eq!(outbox.take(9), [[3; 32], [1; 32]]);
        assert!(outbox.is_empty() && outbox.take(9).is_empty());
    }
}
