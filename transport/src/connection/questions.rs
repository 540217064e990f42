//! Our own questions that the peer has not answered, in the order in which they were asked.
//!
//! capnp-rpc gives a question the lowest free number and, when the session ends, fails them in the order of
//! their numbers. A caller would then see a later call fail before an earlier one, on the same capability. So the
//! order is kept here, and those who wait are told in it.

use crate::limits;

/// The open questions of this side.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// By the question's number: when it was asked, counted from 1; 0 when it is not open. As long as there were
    /// ever questions open at once.
    asked: Vec<u64>,
    newest: u64,
    open: usize,
}

impl Questions {
    pub(super) fn ask(&mut self, question: u32) {
        let index = question as usize;
        if index >= self.asked.len() {
            self.asked.resize(index + 1, 0);
        }
        self.newest += 1;
        self.open += usize::from(self.asked[index] == 0);
        self.asked[index] = self.newest;
    }

    /// The peer has answered. What it says may be of no question of ours.
    pub(super) fn answered(&mut self, question: u32) {
        let Some(asked) = self.asked.get_mut(question as usize) else { return };
        self.open -= usize::from(*asked != 0);
        *asked = 0;
        if self.open == 0 && self.asked.capacity() > limits::KEPT_QUESTIONS {
            self.asked = Vec::new();
        }
    }

    /// Those that are open, oldest first. None is open afterwards.
    pub(super) fn take(&mut self) -> Vec<u32> {
        let mut open: Vec<(u64, u32)> =
            (0..).zip(self.asked.drain(..)).filter(|(_, asked)| *asked != 0).map(|(id, asked)| (asked, id)).collect();
        open.sort_unstable();
        self.open = 0;
        open.into_iter().map(|(_, question)| question).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_comes_first_whatever_its_number() {
        let mut questions = Questions::default();
        (0..5).for_each(|question| questions.ask(question));
        questions.answered(1);
        questions.answered(3);
        questions.answered(3);
        questions.answered(77);
        questions.ask(1);
        assert_eq!(questions.take(), [0, 2, 4, 1]);
        assert!(questions.take().is_empty());
    }

    #[test]
    fn a_quiet_session_holds_no_long_table() {
        let mut questions = Questions::default();
        (0..5_000).for_each(|question| questions.ask(question));
        (0..5_000).for_each(|question| questions.answered(question));
        assert!(questions.asked.capacity() <= limits::KEPT_QUESTIONS);
    }
}
