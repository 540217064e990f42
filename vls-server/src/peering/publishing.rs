//! What is to be put into the DHT, and when: what is registered soon, all that is held again and again.
//!
//! What was put is remembered in bounded memory, by its time: a vat that renews its lease every half hour has nothing new
//! to put, one that moves has. What is forgotten is put again when the table is gone through.

use std::{collections::HashMap, time::Duration};

use schemas::Timestamp;

use super::{Outbox, newest::Newest};
use crate::{limits, registry::Id};

/// What is to be put, and what was.
#[derive(Debug)]
pub(crate) struct Publishing {
    registered: Outbox,
    swept: Outbox,
    /// Those that are being put, and whether they are to be looked at again then.
    under_way: HashMap<Id, bool>,
    put: Newest<Put>,
}

#[derive(Debug, Clone, Copy)]
struct Put {
    /// Of the packet.
    timestamp: Timestamp,
    /// When that one is to be put again.
    again: Duration,
}

impl Publishing {
    /// Remembers so many puts.
    pub(crate) fn new(most: usize) -> Self {
        let [registered, swept] = [(); 2].map(|()| Outbox::new(limits::DHT_UNPUBLISHED));
        Self { registered, swept, under_way: HashMap::new(), put: Newest::new(most) }
    }

    /// Something was registered; what has no room is found when the table is gone through.
    pub(crate) fn registered(&mut self, id: &Id) {
        self.registered.note(id);
    }

    /// Something is held, as the table shows; `false` if there is no room for more of that.
    pub(crate) fn held(&mut self, now: Duration, id: &Id) -> bool {
        let is_put = self.put.get(id).is_some_and(|put| now < put.again);
        is_put || self.swept.note(id)
    }

    /// What to put next.
    pub(crate) fn next(&mut self) -> Option<Id> {
        self.registered.take(1).pop().or_else(|| self.swept.take(1).pop())
    }

    /// Begins to put it; `false` if that is being done. It is looked at again then.
    pub(crate) fn begin(&mut self, id: &Id) -> bool {
        match self.under_way.get_mut(id) {
            Some(again) => *again = true,
            None => drop(self.under_way.insert(*id, false)),
        }
        self.under_way.get(id) == Some(&false)
    }

    /// It is not being put any more.
    pub(crate) fn end(&mut self, id: &Id) {
        if self.under_way.remove(id) == Some(true) {
            self.registered.note(id);
        }
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.registered.len() + self.swept.len()
    }

    /// Whether a packet of this time needs to be put.
    pub(crate) fn is_due(&self, now: Duration, id: &Id, timestamp: Timestamp) -> bool {
        self.put.get(id).is_none_or(|put| put.timestamp != timestamp || put.again <= now)
    }

    /// A packet was put, or could not be, and is to be put again at `again`.
    pub(crate) fn note(&mut self, id: &Id, timestamp: Timestamp, again: Duration) {
        self.put.note(*id, Put { timestamp, again });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const NOW: Duration = Duration::from_secs(1_000);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn what_is_registered_comes_before_what_is_held_and_each_once() {
        let mut publishing = Publishing::new(9);
        assert!(publishing.held(NOW, &[1; 32]) && publishing.held(NOW, &[1; 32]));
        publishing.registered(&[2; 32]);
        publishing.registered(&[2; 32]);
        assert_eq!(publishing.waiting(), 2);
        assert_eq!([(); 3].map(|()| publishing.next()), [Some([2; 32]), Some([1; 32]), None]);
    }

    #[test]
    fn the_same_packet_is_due_after_its_time_and_another_one_at_once() {
        let mut publishing = Publishing::new(9);
        let id = [1; 32];
        assert!(publishing.is_due(NOW, &id, at(5)));
        publishing.note(&id, at(5), NOW + HOUR);
        assert!(!publishing.is_due(NOW, &id, at(5)) && publishing.is_due(NOW, &id, at(6)));
        assert!(publishing.held(NOW, &id) && publishing.next().is_none(), "nothing is to be done");
        assert!(publishing.is_due(NOW + HOUR, &id, at(5)));
        assert!(publishing.held(NOW + HOUR, &id) && publishing.next() == Some(id));
    }

    #[test]
    fn nothing_is_put_twice_at_once_and_what_comes_meanwhile_is_looked_at_afterwards() {
        let mut publishing = Publishing::new(9);
        let id = [1; 32];
        assert!(publishing.begin(&id) && !publishing.begin(&id) && publishing.begin(&[2; 32]));
        publishing.end(&[2; 32]);
        assert_eq!(publishing.next(), None);
        publishing.end(&id);
        assert_eq!(publishing.next(), Some(id));
        assert!(publishing.begin(&id));
    }

    #[test]
    fn a_table_of_any_size_takes_no_more_than_its_memory() {
        let mut publishing = Publishing::new(100);
        let id = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            id
        };
        for n in 0..10_000 {
            publishing.note(&id(n), at(5), NOW + HOUR);
        }
        assert!(!publishing.is_due(NOW, &id(9_999), at(5)) && publishing.is_due(NOW, &id(5), at(5)));
        let held = (0..10_000).filter(|n| publishing.held(NOW, &id(*n))).count();
        assert_eq!(held, limits::DHT_UNPUBLISHED + 100, "the rest another time");
    }
}
