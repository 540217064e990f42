//! Which questions were asked a moment ago, in bounded memory.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::Question;
use crate::registry::Id;

/// What was asked, and until when that will do.
#[derive(Debug)]
pub(super) struct Recent {
    asked: HashMap<Id, Asked>,
    /// The oldest first, with those that were asked again since.
    order: VecDeque<(Id, Duration)>,
    most: usize,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    /// Of the question that went furthest.
    hops: u8,
    until: Duration,
}

impl Recent {
    pub(super) fn new(most: usize) -> Self {
        Self { asked: HashMap::new(), order: VecDeque::new(), most }
    }

    /// Notes that nobody needs to ask this again before `until`, nor anything that would not go further.
    pub(super) fn note(&mut self, question: Question, until: Duration) {
        while self.order.len() >= self.most
            && let Some((id, until)) = self.order.pop_front()
        {
            if self.asked.get(&id).is_some_and(|asked| asked.until == until) {
                self.asked.remove(&id);
            }
        }
        self.asked.insert(question.id, Asked { hops: question.hops, until });
        self.order.push_back((question.id, until));
    }

    /// Whether this was asked a moment ago.
    pub(super) fn covers(&self, question: Question, now: Duration) -> bool {
        self.asked.get(&question.id).is_some_and(|asked| asked.hops <= question.hops && now < asked.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_was_asked_covers_what_would_not_go_further_for_a_while() {
        let mut recent = Recent::new(9);
        let [near, far] = [1, 0].map(|hops| Question { id: [7; 32], hops });
        recent.note(near, 3 * SECOND);
        assert!(recent.covers(near, 2 * SECOND) && !recent.covers(far, 2 * SECOND));
        recent.note(far, 3 * SECOND);
        assert!(recent.covers(near, 2 * SECOND) && recent.covers(far, 2 * SECOND));
        assert!(!recent.covers(near, 3 * SECOND) && !recent.covers(far, 3 * SECOND));
    }

    #[test]
    fn a_flood_of_ids_takes_no_more_than_its_memory_and_the_newest_stay() {
        let mut recent = Recent::new(100);
        let question = |n: u32| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            Question { id, hops: 0 }
        };
        for n in 0..10_000 {
            recent.note(question(n), SECOND);
            // One that comes again and again does not push itself out.
            recent.note(question(77_777), SECOND * (n + 2));
        }
        assert!(recent.asked.len() <= 100 && recent.order.len() <= 100);
        assert!(recent.covers(question(9_999), Duration::ZERO));
        assert!(recent.covers(question(77_777), Duration::ZERO));
        assert!(!recent.covers(question(5), Duration::ZERO));
    }
}
