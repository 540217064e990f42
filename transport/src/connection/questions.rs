//! Our own questions to the peer, from the call until its answer: their deadlines, the capabilities that were lent
//! with them, and what the peer still owes.
//!
//! The RPC layer waits for an answer for ever. Here a call whose deadline has passed is answered with an exception of
//! our own, so that its caller goes on; calls that were made on its result fail by themselves, as after any other
//! exception. But the *number* of the question stays taken: the peer may still answer, and if that number had been
//! given to another call meanwhile, that call would get the wrong answer. The RPC layer, which believes the question
//! answered, gives it out again as soon as it can. Such a call therefore goes out under [another
//! number](limits::FIRST_OTHER_NUMBER), and what is said about it is renamed in both directions, until the peer has
//! answered what it owes. Nearly always nothing is renamed, and nothing is looked up either.
//!
//! A question that our own side gave up before its deadline (its `Finish` was sent) is left to the peer: nobody waits
//! for it, and the RPC layer keeps its number until the answer. A peer with capnp-rpc never answers such a question, so
//! this is no fault of the peer's; how many of them one session bears is bounded all the same.
//!
//! Deadlines cost a comparison per call: the table is looked through only when the earliest deadline that was known
//! at the last look has passed, which is about once per deadline and not once per call.

use std::{cell::Cell, collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{SessionLimits, limits};

thread_local! {
    /// What [`with_call_deadline`] says: `None` where nobody has said anything.
    static CHOSEN: Cell<Option<Option<Duration>>> = const { Cell::new(None) };
}

/// Does `send`, and has every call of a live capability that is sent meanwhile wait for its answer for `deadline`;
/// `None`: for as long as the session lasts. Otherwise [`SessionLimits::call_deadline`] holds.
///
/// A call is sent when `send` of its request is called, whoever waits for the answer then and however long:
///
/// ```
/// # async fn example(counter: schemas::objects_capnp::counter::Client) -> capnp::Result<u64> {
/// let asked = transport::with_call_deadline(None, || counter.get_request().send());
/// let total = asked.promise.await?.get()?.get_total();
/// # Ok(total)
/// # }
/// ```
///
/// A call on a capability that is a promise of this very process is sent when that is kept, which may be later: then
/// the session's own deadline holds.
pub fn with_call_deadline<T>(deadline: Option<Duration>, send: impl FnOnce() -> T) -> T {
    /// Puts back what was before, after a panic too.
    struct Restore(Option<Option<Duration>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CHOSEN.set(self.0);
        }
    }
    let _restore = Restore(CHOSEN.replace(Some(deadline)));
    send()
}

/// A question that the peer has not answered.
#[derive(Debug, Default)]
pub(super) struct Question {
    /// The number that the RPC layer gave it.
    pub(super) number: u32,
    /// How many were asked before it.
    order: u64,
    /// Its answer is a capability and not a struct.
    pub(super) is_bootstrap: bool,
    /// Ours, lent with the parameters: released if the answer says so.
    pub(super) lent: Vec<u32>,
    deadline: Option<Instant>,
    /// The RPC layer has our own answer already.
    pub(super) is_overdue: bool,
    /// `Finish` was sent: nobody here wants the answer.
    pub(super) is_finished: bool,
}

/// All questions of one session that the peer has not answered.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// By number, for those that have their own.
    own: Vec<Option<Question>>,
    /// Those under another number.
    other: HashMap<u32, Question>,
    /// The number under which a question of the RPC layer's goes out, if that is another one.
    renamed: HashMap<u32, u32>,
    /// How many were ever asked.
    asked: u64,
    open: usize,
    overdue: usize,
    given_up: usize,
    next_other: u32,
    /// No deadline passes before this.
    next_look: Option<Instant>,
}

impl Questions {
    /// A question is sent. Returns the number under which it goes out.
    pub(super) fn ask(&mut self, number: u32, is_bootstrap: bool, lent: Vec<u32>, limits: &SessionLimits) -> u32 {
        let deadline = CHOSEN.get().unwrap_or(limits.call_deadline);
        // A time beyond what the clock can say is never.
        let deadline = deadline.and_then(|after| Instant::now().checked_add(after));
        if let Some(deadline) = deadline
            && self.next_look.is_none_or(|look| deadline < look)
        {
            self.next_look = Some(deadline);
        }
        let question = Question { number, order: self.asked, is_bootstrap, lent, deadline, ..Question::default() };
        self.asked += 1;
        self.open += 1;
        if !self.renamed.is_empty() {
            // Of a question that needed no Finish.
            self.renamed.remove(&number);
        }
        let index = number as usize;
        if self.own.len() <= index {
            self.own.resize_with(index + 1, || None);
        }
        match self.own.get_mut(index) {
            Some(place @ None) => {
                *place = Some(question);
                number
            }
            _ => {
                let other = self.free_number();
                self.renamed.insert(number, other);
                self.other.insert(other, question);
                other
            }
        }
    }

    fn free_number(&mut self) -> u32 {
        loop {
            let candidate = limits::FIRST_OTHER_NUMBER | self.next_other;
            self.next_other = (self.next_other + 1) % limits::FIRST_OTHER_NUMBER;
            if !self.other.contains_key(&candidate) {
                return candidate;
            }
        }
    }

    /// Whether any number has to be looked up at all.
    pub(super) fn renames(&self) -> bool {
        !self.renamed.is_empty()
    }

    /// The number under which the peer knows a question of the RPC layer's.
    pub(super) fn number_of(&self, number: u32) -> u32 {
        self.renamed.get(&number).copied().unwrap_or(number)
    }

    /// `Finish` is sent. Returns the number under which it goes out, and whether the capabilities of an answer that
    /// is still to come must be released with it: the RPC layer believes that it has had the answer.
    pub(super) fn finish(&mut self, number: u32) -> (u32, bool) {
        let sent_as = self.number_of(number);
        if self.renames() {
            self.renamed.remove(&number);
        }
        let Some(question) = self.get_mut(sent_as) else { return (sent_as, false) };
        let is_overdue = question.is_overdue;
        if !std::mem::replace(&mut question.is_finished, true) && !is_overdue {
            self.given_up += 1;
        }
        (sent_as, is_overdue)
    }

    /// The peer's answer is here; `None` if it owes none.
    pub(super) fn answered(&mut self, sent_as: u32) -> Option<Question> {
        let question = if sent_as < limits::FIRST_OTHER_NUMBER {
            self.own.get_mut(sent_as as usize)?.take()?
        } else {
            self.other.remove(&sent_as)?
        };
        self.open -= 1;
        self.overdue -= usize::from(question.is_overdue);
        self.given_up -= usize::from(question.is_finished && !question.is_overdue);
        if self.open == 0 && self.own.len() > limits::KEPT_QUESTIONS {
            // Idle sessions hold no table.
            self.own = Vec::new();
        }
        Some(question)
    }

    fn get_mut(&mut self, sent_as: u32) -> Option<&mut Question> {
        match self.own.get_mut(sent_as as usize) {
            Some(question) => question.as_mut(),
            None => self.other.get_mut(&sent_as),
        }
    }

    /// When to look for passed deadlines next.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// The session is over: forgets all questions, and gives the numbers of those that somebody here waits for,
    /// oldest first. The RPC layer gives a question the lowest free number and fails what is open in the order of the
    /// numbers; a caller would see a later call fail before an earlier one, on the same capability.
    pub(super) fn take(&mut self) -> Vec<u32> {
        let taken = std::mem::take(self);
        let all = taken.own.into_iter().flatten().chain(taken.other.into_values());
        let mut waiting: Vec<Question> = all.filter(|question| !question.is_overdue && !question.is_finished).collect();
        waiting.sort_unstable_by_key(|question| question.order);
        waiting.into_iter().map(|question| question.number).collect()
    }

    /// How many questions were given up and never answered.
    pub(super) fn given_up(&self) -> usize {
        self.given_up
    }

    /// Finds the questions whose deadlines have passed at `now`, each once, by the numbers that the RPC layer gave them.
    /// `Err` if the peer owes more answers than one session bears.
    pub(super) fn pass_deadlines(&mut self, now: Instant, limits: &SessionLimits) -> Result<Vec<u32>, ()> {
        if self.next_look.is_none_or(|look| now < look) {
            return Ok(Vec::new());
        }
        let (mut passed, mut next) = (Vec::new(), None::<Instant>);
        let all = self.own.iter_mut().flatten().chain(self.other.values_mut());
        for question in all.filter(|question| !question.is_overdue && !question.is_finished) {
            match question.deadline {
                Some(deadline) if deadline <= now => {
                    question.is_overdue = true;
                    passed.push(question.number);
                }
                Some(deadline) => next = Some(next.map_or(deadline, |next| next.min(deadline))),
                None => {}
            }
        }
        self.next_look = next;
        self.overdue += passed.len();
        if self.overdue > limits.unanswered_calls { Err(()) } else { Ok(passed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits() -> SessionLimits {
        SessionLimits { call_deadline: Some(10 * SECOND), unanswered_calls: 3, ..SessionLimits::default() }
    }

    fn ask(questions: &mut Questions, number: u32) -> u32 {
        questions.ask(number, false, Vec::new(), &limits())
    }

    #[test]
    fn a_deadline_passes_once_and_not_before_its_time() {
        let mut questions = Questions::default();
        ask(&mut questions, 0);
        with_call_deadline(Some(SECOND), || ask(&mut questions, 1));
        with_call_deadline(None, || ask(&mut questions, 2));
        let start = Instant::now();
        let mut passed = |seconds| questions.pass_deadlines(start + seconds * SECOND, &limits()).unwrap();
        assert_eq!(passed(0), [0; 0]);
        assert_eq!(passed(1), [1]);
        assert_eq!(passed(9), [0; 0]);
        assert_eq!(passed(10), [0]);
        assert_eq!(passed(1_000_000), [0; 0], "who waits for ever waits for ever");
        assert_eq!(questions.next_look(), None);
    }

    #[test]
    fn at_the_end_those_who_wait_are_told_in_the_order_in_which_they_asked() {
        let mut questions = Questions::default();
        (0..5).for_each(|number| assert_eq!(ask(&mut questions, number), number));
        assert!(questions.answered(1).is_some());
        assert_eq!(questions.finish(3), (3, false));
        ask(&mut questions, 1);
        assert_eq!(questions.take(), [0, 2, 4, 1]);
        assert!(questions.is_empty() && questions.take().is_empty());
    }

    #[test]
    fn a_number_whose_answer_is_owed_is_not_used_for_another_call() {
        let mut questions = Questions::default();
        assert_eq!(ask(&mut questions, 0), 0);
        let late = Instant::now() + 10 * SECOND;
        assert_eq!(questions.pass_deadlines(late, &limits()), Ok(vec![0]));
        assert_eq!(questions.finish(0), (0, true), "what may still come is released with the Finish");
        let other = ask(&mut questions, 0);
        assert!(other >= limits::FIRST_OTHER_NUMBER);
        assert_eq!(questions.number_of(0), other);
        // The owed answer comes: it belongs to the first.
        let first = questions.answered(0).unwrap();
        assert!(first.is_overdue && first.is_finished);
        let second = questions.answered(other).unwrap();
        assert_eq!((second.number, second.is_overdue), (0, false));
        assert_eq!(questions.finish(0), (other, false));
        assert_eq!(ask(&mut questions, 0), 0, "nothing is owed any more");
        assert!(!questions.renames());
    }

    #[test]
    fn a_question_that_was_given_up_is_never_overdue() {
        let mut questions = Questions::default();
        ask(&mut questions, 0);
        assert_eq!(questions.finish(0), (0, false));
        assert_eq!(questions.given_up(), 1);
        assert_eq!(questions.pass_deadlines(Instant::now() + 10 * SECOND, &limits()), Ok(Vec::new()));
        assert!(questions.answered(0).unwrap().is_finished);
        assert_eq!(questions.given_up(), 0);
    }

    #[test]
    fn what_was_renamed_and_needed_no_finish_is_forgotten_with_the_next_use() {
        let mut questions = Questions::default();
        ask(&mut questions, 0);
        questions.pass_deadlines(Instant::now() + 10 * SECOND, &limits()).unwrap();
        let other = ask(&mut questions, 0);
        assert!(questions.answered(other).is_some());
        assert!(questions.answered(0).is_some());
        assert_eq!(ask(&mut questions, 0), 0);
        assert!(!questions.renames());
    }

    #[test]
    fn answers_that_nobody_asked_for_or_that_come_twice_are_owed_by_nobody() {
        let mut questions = Questions::default();
        assert!(questions.answered(0).is_none());
        assert!(questions.answered(u32::MAX).is_none());
        ask(&mut questions, 5);
        assert!(questions.answered(4).is_none());
        assert!(questions.answered(5).is_some());
        assert!(questions.answered(5).is_none());
        assert!(questions.is_empty());
    }

    #[test]
    fn a_peer_that_owes_too_many_answers_is_found_out() {
        let mut questions = Questions::default();
        for number in 0..4 {
            ask(&mut questions, number);
        }
        assert_eq!(questions.pass_deadlines(Instant::now() + 10 * SECOND, &limits()), Err(()));
    }

    #[test]
    fn a_table_that_has_grown_is_given_back_when_nothing_is_open() {
        let mut questions = Questions::default();
        for number in 0..1000 {
            ask(&mut questions, number);
        }
        for number in 0..1000 {
            assert!(questions.answered(number).is_some());
        }
        assert_eq!(questions.own.capacity(), 0);
    }
}
