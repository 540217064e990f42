//! Every message of a peer is looked at before the RPC layer sees it.
//!
//! What capnp-rpc 0.27 does by itself with a few legal messages is not survivable for the side that receives them.
//! Those are turned into legal ones that mean the same to us, and our RPC layer need not know them:
//!
//! * `senderPromise` becomes `senderHosted`, and every `Resolve` is answered with `unimplemented`. The peer
//!   goes on to host what it promised, calls go through it in order, and no chain of promises can be built
//!   here that leads to itself and hangs the thread. Cap'n Proto allows a receiver to know nothing of promises;
//! * `thirdPartyHosted` becomes its vine: the capability that the peer itself hosts as a stand-in;
//! * `Return.canceled`, which would leave the caller waiting for ever, becomes an exception, and so does every
//!   other outcome that capnp-rpc does not have, and results that are no struct, on which it would panic;
//! * `Return.releaseParamCaps`, which it ignores, is followed by the releases that it stands for;
//! * what it does not have (introductions of third parties, tail calls) is refused before it sees it, in the way
//!   that the protocol has for each;
//! * on sessions with foreign clients, a `Bootstrap` that names an object becomes a call that restores it
//!   (`restore`).
//!
//! What a message is, and what must be changed in it, is for [`judge`](super::judge) to say; this module counts, and
//! answers.

use capnp::message::Reader;
use schemas::ErrorCode;
use tokio::time::Instant;

use super::{
    Incoming, KeptAnswer, Wire, failed_return,
    judge::{Found, Outcome, Verdict, judge, overlapping, renumber},
    refusal, release,
};
use crate::{
    frames::Frame,
    limits,
    session::{SessionEnd, Violation},
};

impl Wire {
    /// Judges a message of the peer; returns what the RPC layer shall see of it, if anything.
    pub(super) fn screen(&self, frame: Frame) -> Option<Incoming> {
        self.break_the_quiet();
        let bytes = frame.bytes();
        let (message, verdict, found) = judge(frame, self.limits.capabilities_per_message);
        match verdict {
            Verdict::Deliver => {}
            Verdict::Ask { question, .. } | Verdict::Bootstrap { question } if self.is_own_question(question) => {
                return self.violated(Violation::Rpc(format!("question {question} is none of the peer's")));
            }
            Verdict::Ask { question, on } => self.admit(question, bytes, on, &found)?,
            Verdict::Bootstrap { question } => {
                self.admit(question, bytes, None, &found)?;
                return self.bootstrap(message);
            }
            Verdict::Refuse { question, text } => {
                self.queue(&refusal(question, ErrorCode::SessionUnsupported, text), true);
                return None;
            }
            Verdict::Answered { question, is_releasing, no_finish_needed, outcome } => {
                return self.take_answer(message, question, is_releasing, no_finish_needed, outcome, &found.imports);
            }
            Verdict::Finish { question, is_releasing } => {
                let Ok(lent) = self.calls.borrow_mut().finish(question, Instant::now(), &self.limits) else {
                    let limit = self.limits.calls_given_up;
                    return self.violated(Violation::GivenUp { limit });
                };
                if is_releasing {
                    let mut capabilities = self.capabilities.borrow_mut();
                    lent.iter().for_each(|export| capabilities.take_back(*export, 1));
                }
                self.note_idle();
            }
            Verdict::TakeBack { export, references } => self.capabilities.borrow_mut().take_back(export, references),
            Verdict::Answer(answer) => {
                self.queue(&answer, true);
                return None;
            }
            Verdict::End(end) => {
                self.finish(end);
                return None;
            }
        }
        Some(Incoming::Remote(message))
    }

    fn violated(&self, violation: Violation) -> Option<Incoming> {
        self.finish(SessionEnd::Violation(violation));
        None
    }

    /// Counts a call of the peer, or refuses it.
    fn admit(&self, question: u32, bytes: usize, on: Option<u32>, found: &Found) -> Option<()> {
        let mut calls = self.calls.borrow_mut();
        if calls.is_open(question) {
            // A question number that is in use: the RPC layer ends the session over it.
            return Some(());
        }
        if let Some(code) = self.draining.get() {
            self.queue(&refusal(question, code, "not carried out: this side is about to end the session"), true);
            return None;
        }
        if self.reads_on.get() {
            let text = "not carried out: more answers wait for you than are kept; take them first";
            self.queue(&refusal(question, ErrorCode::SessionTooManyBytes, text), true);
            return None;
        }
        let uses = on.into_iter().chain(found.answers.iter().copied());
        // What a promise takes here is many times what it takes in a message.
        let bytes = bytes.saturating_add(found.answers.len().saturating_mul(limits::PROMISE_BYTES));
        let refused = match calls.ask(question, bytes, uses, &self.limits) {
            Ok(()) if self.capabilities.borrow_mut().receive(&found.imports, self.limits.imports) => {
                self.idle_since.set(None);
                return Some(());
            }
            Ok(()) => {
                calls.answer(question, false, Vec::new());
                ErrorCode::SessionTooManyImports
            }
            Err(code) => code,
        };
        drop(calls);
        let text = match refused {
            ErrorCode::SessionTooManyImports => "not carried out: too many capabilities of yours are kept here",
            ErrorCode::SessionTooDeep => "not carried out: it waits for too long a chain of calls",
            ErrorCode::SessionTooManyBytes => "not carried out: your calls under way are too large together",
            ErrorCode::SessionTooManyQuestions => "not carried out: you keep too many answers open",
            _ => "not carried out: too many calls of yours are under way",
        };
        self.queue(&refusal(question, refused, text), true);
        None
    }

    /// An answer to a question of ours: what the RPC layer shall see of it.
    fn take_answer(
        &self,
        message: Reader<Frame>,
        sent_as: u32,
        is_releasing: bool,
        no_finish_needed: bool,
        outcome: Outcome,
        imports: &[u32],
    ) -> Option<Incoming> {
        let Some(question) = self.questions.borrow_mut().answered(sent_as) else {
            return self.violated(Violation::Rpc("an answer to a question that was not asked".to_owned()));
        };
        if is_releasing {
            // The RPC layer knows nothing of this; what it hears instead comes right behind the answer.
            let mut capabilities = self.capabilities.borrow_mut();
            question.lent.iter().for_each(|export| capabilities.take_back(*export, 1));
            question.lent.iter().for_each(|export| self.deliver_locally(release(*export, 1)));
        }
        let give_back = || {
            // If the Finish was sent, what came after it is released by it.
            let kept = if question.is_finished { &[] } else { imports };
            kept.iter().for_each(|import| self.queue(&release(*import, 1), false));
        };
        if question.is_overdue {
            // Whoever asked was answered long ago.
            give_back();
            return None;
        }
        let failed = match outcome {
            Outcome::Exception => None,
            Outcome::Results | Outcome::Other if question.is_finished => None,
            Outcome::Other if !question.is_bootstrap => {
                Some((ErrorCode::SessionProtocol, "the peer's results are none: they are no struct"))
            }
            Outcome::Results | Outcome::Other => {
                let fits = self.capabilities.borrow_mut().receive(imports, self.limits.imports);
                (!fits).then_some((ErrorCode::SessionTooManyImports, "too many capabilities of the peer are kept here"))
            }
            Outcome::Canceled => {
                Some((ErrorCode::SessionClosed, "the peer gave the call up; whether it was carried out is not known"))
            }
            Outcome::Elsewhere => {
                Some((ErrorCode::SessionUnsupported, "the peer answered elsewhere; tail calls are not understood here"))
            }
        };
        if let Some((code, text)) = failed {
            give_back();
            return Some(Incoming::Local(failed_return(question.number, no_finish_needed, code, text)));
        }
        if sent_as == question.number {
            return Some(Incoming::Answer(KeptAnswer::new(message)));
        }
        match renumber(message, question.number, self.limits.capabilities_per_message) {
            Some(message) => Some(Incoming::Answer(KeptAnswer::new(message))),
            None => self.violated(overlapping()),
        }
    }
}
