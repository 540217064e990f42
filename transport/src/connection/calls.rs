//! The questions of one peer that this side still keeps something for, counted so that a peer cannot pile them
//! up without bound.
//!
//! The RPC layer keeps an entry for a question from the call until the answer was given *and* the peer has said
//! that it needs it no more (`Finish`, or not at all if the answer asked for none). While it runs, a call also
//! holds its message and whatever its object does for it.
//!
//! Calls that are finished before their answer are counted as well, and forgotten slowly: they cost a peer two small
//! messages, and have an object begin work that nobody wants.

use std::{collections::HashMap, time::Duration};

use schemas::ErrorCode;
use tokio::time::Instant;

use crate::SessionLimits;

/// The open questions of one peer.
#[derive(Debug, Default)]
pub(super) struct CallLedger {
    open: HashMap<u32, Open>,
    running: usize,
    running_bytes: usize,
    /// When the last of the calls that were given up is forgotten: one interval of the limits for each.
    given_up_until: Option<Instant>,
}

/// One question.
#[derive(Debug)]
struct Open {
    /// The size of a call that runs, or `None` for one that was answered and not finished.
    running: Option<usize>,
    /// The peer needs no answer. It counts until one is given all the same, which says that the call has ended.
    is_finished: bool,
    /// How many calls, itself included, are in the longest chain of running calls that it waits for.
    depth: u16,
    /// Capabilities of ours that were lent with the answer: released if the peer's `Finish` says so.
    lent: Vec<u32>,
}

impl CallLedger {
    /// Counts a call of `bytes` bytes that uses results of the questions `uses`; the error, and not counted, if it
    /// would be one too many. A single call always fits, whatever its size: the message limit has judged that.
    pub(super) fn ask(
        &mut self,
        question: u32,
        bytes: usize,
        uses: impl Iterator<Item = u32>,
        limits: &SessionLimits,
    ) -> Result<(), ErrorCode> {
        let below = uses.filter_map(|question| self.open.get(&question)).filter(|open| open.running.is_some());
        let depth = below.map(|open| open.depth).max().unwrap_or(0) + 1;
        if self.running >= limits.calls_in_flight {
            return Err(ErrorCode::SessionTooManyCalls);
        }
        if self.open.len() >= limits.open_questions {
            return Err(ErrorCode::SessionTooManyQuestions);
        }
        if self.running > 0 && self.running_bytes.saturating_add(bytes) > limits.call_bytes_in_flight {
            return Err(ErrorCode::SessionTooManyBytes);
        }
        if depth > limits.pipeline_depth {
            return Err(ErrorCode::SessionTooDeep);
        }
        self.open.insert(question, Open { running: Some(bytes), is_finished: false, depth, lent: Vec::new() });
        self.running += 1;
        self.running_bytes += bytes;
        Ok(())
    }

    /// Whether the peer waits for no answer.
    pub(super) fn is_idle(&self) -> bool {
        self.running == 0
    }

    /// Whether the question has not been answered, or not been finished.
    pub(super) fn is_open(&self, question: u32) -> bool {
        self.open.contains_key(&question)
    }

    /// Our answer was sent, with capabilities of ours.
    pub(super) fn answer(&mut self, question: u32, needs_finish: bool, lent: Vec<u32>) {
        if let Some(open) = self.open.get_mut(&question) {
            if let Some(bytes) = open.running.take() {
                self.running -= 1;
                self.running_bytes -= bytes;
            }
            open.lent = lent;
            if !needs_finish || open.is_finished {
                self.remove(question);
            }
        }
    }

    /// The peer needs the answer no more. Returns what was lent with it. `Err` if the peer has given up more calls
    /// in a row than it may.
    pub(super) fn finish(&mut self, question: u32, now: Instant, limits: &SessionLimits) -> Result<Vec<u32>, ()> {
        let Some(open) = self.open.get_mut(&question).filter(|open| open.running.is_some()) else {
            return Ok(self.remove(question));
        };
        if !std::mem::replace(&mut open.is_finished, true) {
            let until = self.given_up_until.map_or(now, |until| until.max(now)) + limits.given_up_interval;
            self.given_up_until = Some(until);
            if until - now > most_given_up(limits) {
                return Err(());
            }
        }
        Ok(Vec::new())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn remove(&mut self, question: u32) -> Vec<u32> {
        let lent = self.open.remove(&question).map(|open| open.lent).unwrap_or_default();
        if self.open.is_empty() {
            // Idle sessions hold no table.
            self.open = HashMap::new();
        }
        lent
    }
}

/// The calls that may be given up in a row, as the time after which all of them are forgotten.
fn most_given_up(limits: &SessionLimits) -> Duration {
    limits.given_up_interval.saturating_mul(u32::try_from(limits.calls_given_up).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> SessionLimits {
        SessionLimits {
            calls_in_flight: 3,
            call_bytes_in_flight: 100,
            open_questions: 5,
            calls_given_up: 2,
            pipeline_depth: 3,
            ..SessionLimits::default()
        }
    }

    fn ask(ledger: &mut CallLedger, question: u32, bytes: usize) -> Result<(), ErrorCode> {
        ledger.ask(question, bytes, std::iter::empty(), &limits())
    }

    #[test]
    fn calls_are_admitted_up_to_both_limits_and_again_after_an_answer() {
        let mut ledger = CallLedger::default();
        assert_eq!(ask(&mut ledger, 1, 500), Ok(()), "one call alone always fits");
        assert_eq!(ask(&mut ledger, 2, 1), Err(ErrorCode::SessionTooManyBytes));
        ledger.answer(1, false, Vec::new());
        for question in 1..=3 {
            assert_eq!(ask(&mut ledger, question, 10), Ok(()));
        }
        assert_eq!(ask(&mut ledger, 4, 10), Err(ErrorCode::SessionTooManyCalls), "the fourth at once");
        ledger.answer(2, false, Vec::new());
        ledger.answer(2, false, Vec::new());
        assert_eq!(ask(&mut ledger, 4, 81), Err(ErrorCode::SessionTooManyBytes));
        assert_eq!(ask(&mut ledger, 4, 80), Ok(()));
        assert_eq!((ledger.running, ledger.running_bytes), (3, 100));
    }

    #[test]
    fn an_answered_question_counts_until_the_peer_lets_go_of_it_and_what_was_lent_with_it() {
        let mut ledger = CallLedger::default();
        for question in 0..5 {
            assert_eq!(ask(&mut ledger, question, 1), Ok(()));
            ledger.answer(question, true, vec![question, 9]);
        }
        assert_eq!(ask(&mut ledger, 5, 1), Err(ErrorCode::SessionTooManyQuestions));
        assert_eq!(ledger.finish(3, Instant::now(), &limits()), Ok(vec![3, 9]));
        assert_eq!(ask(&mut ledger, 5, 1), Ok(()));
        assert_eq!(ledger.given_up_until, None);
    }

    #[test]
    fn calls_that_are_given_up_are_counted_and_forgotten_one_after_another() {
        let mut ledger = CallLedger::default();
        let (start, limits) = (Instant::now(), limits());
        let mut give_up = |question, at: u32| {
            assert_eq!(ask(&mut ledger, question, 1), Ok(()));
            let outcome = ledger.finish(question, start + limits.given_up_interval * at, &limits);
            assert!(ledger.is_open(question), "it runs until it is answered");
            ledger.answer(question, true, Vec::new());
            outcome.is_ok()
        };
        assert!(give_up(1, 0) && give_up(2, 0), "two in a row");
        assert!(give_up(3, 1), "one is forgotten");
        assert!(give_up(4, 3) && give_up(5, 3), "both are");
        assert!(!give_up(6, 3));
        assert_eq!((ledger.running, ledger.running_bytes, ledger.open.len()), (0, 0, 0));
    }

    #[test]
    fn a_chain_of_unanswered_calls_is_followed_so_far_and_no_further() {
        let mut ledger = CallLedger::default();
        let limits = SessionLimits { calls_in_flight: 100, open_questions: 100, ..limits() };
        let ask =
            |ledger: &mut CallLedger, question, uses: &[u32]| ledger.ask(question, 1, uses.iter().copied(), &limits);
        assert_eq!(ask(&mut ledger, 1, &[77]), Ok(()), "nothing is known of 77, so nothing waits for it");
        assert_eq!(ask(&mut ledger, 2, &[1]), Ok(()));
        assert_eq!(ask(&mut ledger, 3, &[1, 2]), Ok(()));
        assert_eq!(ask(&mut ledger, 4, &[3]), Err(ErrorCode::SessionTooDeep));
        assert_eq!(ask(&mut ledger, 4, &[1]), Ok(()), "broad is not deep");
        ledger.answer(3, true, Vec::new());
        assert_eq!(ask(&mut ledger, 5, &[3]), Ok(()), "what is answered waits for nothing");
    }
}
