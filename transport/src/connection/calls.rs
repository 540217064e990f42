//! The questions of one peer that this side still keeps something for, counted so that a peer cannot pile them
//! up without bound.
//!
//! capnp-rpc keeps an entry for a question from the call until the answer was given *and* the peer has said
//! that it needs it no more (`Finish`, or not at all if the answer asked for none). While it runs, a call also
//! holds its message and whatever its object does for it.
//!
//! One entry is never freed: capnp-rpc drops a call that is finished before its answer without ever answering,
//! and then waits for that answer itself. Therefore such calls are counted for the life of the session.

use std::collections::HashMap;

use crate::SessionLimits;

/// The open questions of one peer.
#[derive(Debug, Default)]
pub(super) struct CallLedger {
    /// By question: the size of a call that runs, or `None` for one that was answered and not finished.
    open: HashMap<u32, Option<usize>>,
    running: usize,
    running_bytes: usize,
    given_up: usize,
}

impl CallLedger {
    /// Counts a call of `bytes` bytes; `false`, and not counted, if it would be one too many. A single call
    /// always fits, whatever its size: the message limit has judged that.
    pub(super) fn ask(&mut self, question: u32, bytes: usize, limits: &SessionLimits) -> bool {
        if self.open.contains_key(&question) {
            // A question number that is in use: the RPC layer ends the session over it.
            return true;
        }
        let fits = self.running < limits.calls_in_flight
            && self.open.len() < limits.open_questions
            && (self.running == 0 || self.running_bytes.saturating_add(bytes) <= limits.call_bytes_in_flight);
        if fits {
            self.open.insert(question, Some(bytes));
            self.running += 1;
            self.running_bytes += bytes;
        }
        fits
    }

    /// Whether the peer waits for no answer.
    pub(super) fn is_idle(&self) -> bool {
        self.running == 0
    }

    /// Our answer was sent.
    pub(super) fn answer(&mut self, question: u32, needs_finish: bool) {
        if let Some(state) = self.open.get_mut(&question) {
            if let Some(bytes) = state.take() {
                self.running -= 1;
                self.running_bytes -= bytes;
            }
            if !needs_finish {
                self.remove(question);
            }
        }
    }

    /// The peer needs the answer no more. `false` if it has given up more calls than one session may.
    pub(super) fn finish(&mut self, question: u32, limits: &SessionLimits) -> bool {
        if let Some(Some(_)) = self.open.get(&question) {
            self.answer(question, true);
            self.given_up += 1;
        }
        self.remove(question);
        self.given_up <= limits.calls_given_up
    }

    fn remove(&mut self, question: u32) {
        self.open.remove(&question);
        if self.open.is_empty() {
            // Idle sessions hold no table.
            self.open = HashMap::new();
        }
    }
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
            ..SessionLimits::default()
        }
    }

    #[test]
    fn calls_are_admitted_up_to_both_limits_and_again_after_an_answer() {
        let (mut ledger, limits) = (CallLedger::default(), limits());
        assert!(ledger.ask(1, 500, &limits), "one call alone always fits");
        assert!(!ledger.ask(2, 1, &limits));
        ledger.answer(1, false);
        for question in 1..=3 {
            assert!(ledger.ask(question, 10, &limits));
        }
        assert!(!ledger.ask(4, 10, &limits), "the fourth at once");
        ledger.answer(2, false);
        ledger.answer(2, false);
        assert!(!ledger.ask(4, 81, &limits), "too many bytes at once");
        assert!(ledger.ask(4, 80, &limits));
        assert_eq!((ledger.running, ledger.running_bytes), (3, 100));
    }

    #[test]
    fn an_answered_question_counts_until_the_peer_lets_go_of_it() {
        let (mut ledger, limits) = (CallLedger::default(), limits());
        for question in 0..5 {
            assert!(ledger.ask(question, 1, &limits));
            ledger.answer(question, true);
        }
        assert!(!ledger.ask(5, 1, &limits));
        assert!(ledger.finish(3, &limits));
        assert!(ledger.ask(5, 1, &limits));
        assert_eq!(ledger.given_up, 0);
    }

    #[test]
    fn calls_that_are_given_up_are_counted_for_good() {
        let (mut ledger, limits) = (CallLedger::default(), limits());
        for round in 0..3 {
            assert!(ledger.ask(round, 1, &limits));
            assert_eq!(ledger.finish(round, &limits), round < 2);
        }
        assert_eq!((ledger.running, ledger.running_bytes, ledger.open.len()), (0, 0, 0));
        assert!(!ledger.finish(77, &limits), "it stays so");
    }
}
