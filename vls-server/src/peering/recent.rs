//! Which questions were asked a moment ago, in bounded memory.

use std::time::Duration;

use super::{Question, newest::Newest};

/// What was asked, and until when that will do.
#[derive(Debug)]
pub(super) struct Recent(Newest<Asked>);

#[derive(Debug, Clone, Copy)]
struct Asked {
    /// Of the question that went furthest.
    hops: u8,
    until: Duration,
}

impl Recent {
    pub(super) fn new(most: usize) -> Self {
        Self(Newest::new(most))
    }

    /// Notes that nobody needs to ask this again before `until`, nor anything that would not go further.
    pub(super) fn note(&mut self, question: Question, until: Duration) {
        self.0.note(question.id, Asked { hops: question.hops, until });
    }

    /// Whether this was asked a moment ago.
    pub(super) fn covers(&self, question: Question, now: Duration) -> bool {
        self.0.get(&question.id).is_some_and(|asked| asked.hops <= question.hops && now < asked.until)
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
    fn what_was_asked_before_many_others_may_be_asked_again() {
        let mut recent = Recent::new(2);
        let questions = [1, 2, 3].map(|id| Question { id: [id; 32], hops: 0 });
        questions.iter().for_each(|question| recent.note(*question, SECOND));
        assert_eq!(questions.map(|question| recent.covers(question, Duration::ZERO)), [false, true, true]);
    }
}
