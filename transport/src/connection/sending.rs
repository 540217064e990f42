//! What the RPC layer sends, looked at before it is queued: what the peer would refuse, or may not have, is answered here
//! instead.

use capnp::message::{Builder, HeapAllocator};
use capnp_rpc::rpc_capnp::{cap_descriptor, finish, message, message_target, payload, promised_answer, return_};
use schemas::ErrorCode;

use super::{Wire, abort, exception_text, failed_return, refusal, release, small_message};
use crate::{
    frames::{self, FrameError},
    session::{SessionEnd, Violation},
};

/// Why a message is not sent: what its sender is told instead.
type Refusal = (ErrorCode, String);

impl Wire {
    /// Queues what the RPC layer sends, or what stands for it.
    pub(super) fn send(&self, message: &mut Builder<HeapAllocator>) {
        let kind = message.get_root_as_reader::<message::Reader<'_>>().map(message::Reader::which);
        match kind {
            Ok(Ok(message::Abort(reason))) => {
                // The RPC layer gave up by itself: the reason is in the message. If we ended the session, what the
                // peer is told comes from us.
                self.finish(SessionEnd::Violation(Violation::Rpc(exception_text(reason))));
                if let Some((code, text)) = self.end().and_then(|end| end.told()) {
                    self.queue(&abort(code, &text), false);
                }
            }
            // The RPC layer sends nothing but the Abort once a connection has ended; this is for ours.
            _ if self.has_ended() => {}
            Ok(Ok(message::Call(Ok(call)))) => {
                let question = call.get_question_id();
                match call.get_params().and_then(lent) {
                    Ok(lent) => self.send_call(message, question, lent),
                    // Of our own making: it can be read.
                    Err(error) => self.finish(SessionEnd::Violation(Violation::Malformed(error))),
                }
            }
            // The answer to a question that only we asked of ourselves.
            Ok(Ok(message::Return(Ok(answer)))) if self.is_own_question(answer.get_answer_id()) => {}
            Ok(Ok(message::Return(Ok(answer)))) => {
                let lent = match answer.which() {
                    Ok(return_::Results(Ok(results))) => lent(results).unwrap_or_default(),
                    _ => Vec::new(),
                };
                let (question, needs_finish) = (answer.get_answer_id(), !answer.get_no_finish_needed());
                self.send_return(message, question, needs_finish, lent);
            }
            Ok(Ok(message::Bootstrap(Ok(bootstrap)))) => {
                let number = bootstrap.get_question_id();
                let sent_as = self.questions.borrow_mut().ask(number, true, Vec::new(), &self.limits);
                if sent_as != number
                    && let Ok(Ok(message::Bootstrap(Ok(mut bootstrap)))) = root(message)
                {
                    bootstrap.set_question_id(sent_as);
                }
                self.queue(message, false);
            }
            Ok(Ok(message::Finish(Ok(finish)))) => {
                let number = finish.get_question_id();
                self.send_finish(message, number);
            }
            Ok(Ok(message::Release(Ok(release)))) => {
                self.capabilities.borrow_mut().let_go(release.get_id());
                self.queue(message, false);
            }
            Ok(Ok(message::Disembargo(_))) => {
                if self.questions.borrow().renames() {
                    self.rename_disembargo(message);
                }
                self.queue(message, true);
            }
            _ => self.queue(message, true),
        }
    }

    pub(super) fn queue(&self, message: &Builder<HeapAllocator>, is_answer: bool) {
        self.break_the_quiet();
        self.outbox.borrow_mut().push(&message.get_segments_for_output(), is_answer);
        self.driver.wake_by_ref();
    }

    /// Something was said.
    pub(super) fn break_the_quiet(&self) {
        let quiet = self.quiet.get();
        self.quiet.set(super::Quiet { was_broken: true, ..quiet });
    }

    fn send_call(&self, message: &mut Builder<HeapAllocator>, question: u32, lent: Vec<u32>) {
        if let Err((code, text)) = self.check_outgoing_call(message, &lent) {
            self.inbound.borrow_mut().refused.push(question);
            self.deliver_locally(refusal(question, code, &text));
            // The RPC layer has entered what the call would have lent, and does not take it back by itself.
            lent.iter().for_each(|export| self.deliver_locally(release(*export, 1)));
            return;
        }
        let mut questions = self.questions.borrow_mut();
        let sent_as = questions.ask(question, false, lent, &self.limits);
        if questions.renames()
            && let Ok(Ok(message::Call(Ok(mut call)))) = root(message)
        {
            let number_of = |number| questions.number_of(number);
            call.set_question_id(sent_as);
            if let Ok(message_target::PromisedAnswer(Ok(answer))) = call.reborrow().get_target().map(which_target) {
                rename(answer, number_of);
            }
            if let Ok(table) = call.get_params().and_then(payload::Builder::get_cap_table) {
                rename_descriptors(table, number_of);
            }
        }
        drop(questions);
        self.queue(message, false);
    }

    fn send_return(&self, message: &Builder<HeapAllocator>, question: u32, needs_finish: bool, lent: Vec<u32>) {
        let admitted = self.check_size(message).and_then(|()| {
            let limit = self.limits.exports;
            if self.capabilities.borrow_mut().lend(&lent, limit) {
                Ok(())
            } else {
                let text = format!("not given: more than {limit} capabilities of this side are kept already");
                Err((ErrorCode::SessionTooManyExports, text))
            }
        });
        match admitted {
            Ok(()) => {
                self.calls.borrow_mut().answer(question, needs_finish, lent);
                self.queue(message, true);
            }
            Err((code, text)) => {
                self.calls.borrow_mut().answer(question, false, Vec::new());
                self.queue(&refusal(question, code, &text), true);
                if needs_finish {
                    // The peer is told that none is needed; the RPC layer waits for one to forget what it would have lent.
                    self.deliver_locally(local_finish(question));
                }
            }
        }
        self.note_idle();
    }

    fn send_finish(&self, message: &mut Builder<HeapAllocator>, number: u32) {
        let mut questions = self.questions.borrow_mut();
        let (sent_as, is_overdue) = questions.finish(number);
        let given_up = questions.given_up();
        drop(questions);
        if (sent_as != number || is_overdue)
            && let Ok(Ok(message::Finish(Ok(mut finish)))) = root(message)
        {
            finish.set_question_id(sent_as);
            if is_overdue {
                finish.set_release_result_caps(true);
            }
        }
        self.queue(message, false);
        let limit = self.limits.calls_given_up;
        if given_up > limit {
            self.finish(SessionEnd::Violation(Violation::Unanswered { limit }));
        }
    }

    fn rename_disembargo(&self, message: &mut Builder<HeapAllocator>) {
        let questions = self.questions.borrow();
        if let Ok(Ok(message::Disembargo(Ok(disembargo)))) = root(message)
            && let Ok(message_target::PromisedAnswer(Ok(answer))) = disembargo.get_target().map(which_target)
        {
            rename(answer, |number| questions.number_of(number));
        }
    }

    /// Answers a call of ours whose deadline has passed.
    pub(super) fn answer_overdue(&self, question: u32) {
        let text = "no answer came in time; whether the call was carried out is not known";
        self.deliver_locally(failed_return(question, false, ErrorCode::SessionUnanswered, text));
    }

    fn check_size(&self, message: &Builder<HeapAllocator>) -> Result<(), Refusal> {
        let bytes = frames::encoded_len(&message.get_segments_for_output());
        if bytes <= self.limits.message_bytes {
            return Ok(());
        }
        let error = FrameError::TooLarge { announced: bytes as u64, limit: self.limits.message_bytes };
        Err((ErrorCode::SessionMessageTooLarge, format!("not sent: {error}")))
    }

    fn check_outgoing_call(&self, message: &Builder<HeapAllocator>, lent: &[u32]) -> Result<(), Refusal> {
        if self.gate.is_in_turn() {
            return Err((
                ErrorCode::ObjectCallInTurn,
                "not sent: the turn that makes this call may be undone".to_owned(),
            ));
        }
        let waiting = self.outbox.borrow().waiting_bytes();
        if waiting >= self.limits.waiting_bytes {
            return Err((ErrorCode::SessionTooManyCalls, format!("not sent: {waiting} bytes wait for the peer")));
        }
        if !self.inbound.borrow().refused.is_empty() && self.is_on_refused(message) {
            let text = "not sent: the call whose result it is made on was not sent either";
            return Err((ErrorCode::SessionTooManyCalls, text.to_owned()));
        }
        self.check_size(message)?;
        let limit = self.limits.exports;
        if !self.capabilities.borrow_mut().lend(lent, limit) {
            let text = format!("not sent: the peer keeps {limit} capabilities of this side already");
            return Err((ErrorCode::SessionTooManyExports, text));
        }
        Ok(())
    }

    /// Whether a call is made on the result of one that was not sent, or passes it on: the peer would not know what is
    /// meant.
    fn is_on_refused(&self, message: &Builder<HeapAllocator>) -> bool {
        let inbound = self.inbound.borrow();
        if inbound.refused.is_empty() {
            return false;
        }
        let Ok(Ok(message::Call(Ok(call)))) =
            message.get_root_as_reader::<message::Reader<'_>>().map(message::Reader::which)
        else {
            return false;
        };
        let is_refused = |answer: capnp::Result<promised_answer::Reader<'_>>| {
            answer.is_ok_and(|answer| inbound.refused.contains(&answer.get_question_id()))
        };
        let on = match call.get_target().and_then(|target| Ok(target.which()?)) {
            Ok(message_target::PromisedAnswer(answer)) => is_refused(answer),
            _ => false,
        };
        let table = call.get_params().and_then(|params| params.get_cap_table());
        on || table.is_ok_and(|table| {
            table.iter().any(|descriptor| match descriptor.which() {
                Ok(cap_descriptor::ReceiverAnswer(answer)) => is_refused(answer),
                _ => false,
            })
        })
    }

    /// Has the RPC layer receive a message that no peer sent.
    pub(super) fn deliver_locally(&self, message: Builder<HeapAllocator>) {
        self.inbound.borrow_mut().local.push_back(message);
        self.wake_receiver();
        self.driver.wake_by_ref();
    }
}

type Root<'a> = Result<message::WhichBuilder<'a>, capnp::NotInSchema>;

fn root(message: &mut Builder<HeapAllocator>) -> capnp::Result<Root<'_>> {
    Ok(message.get_root::<message::Builder<'_>>()?.which())
}

fn which_target(target: message_target::Builder<'_>) -> message_target::WhichBuilder<'_> {
    // Of our own making, and there are no others in the schema.
    target.which().unwrap_or(message_target::ImportedCap(0))
}

fn rename(mut answer: promised_answer::Builder<'_>, number_of: impl Fn(u32) -> u32) {
    let number = number_of(answer.reborrow().get_question_id());
    answer.set_question_id(number);
}

fn rename_descriptors(
    mut table: capnp::struct_list::Builder<'_, cap_descriptor::Owned>,
    number_of: impl Fn(u32) -> u32 + Copy,
) {
    for index in 0..table.len() {
        if let Ok(cap_descriptor::ReceiverAnswer(Ok(answer))) = table.reborrow().get(index).which() {
            rename(answer, number_of);
        }
    }
}

/// The capabilities of ours that a message lends to the peer, once for each reference.
fn lent(payload: payload::Reader<'_>) -> capnp::Result<Vec<u32>> {
    // Without capabilities, as nearly always, this takes no memory.
    Ok(payload.get_cap_table()?.iter().filter_map(lent_by).collect())
}

fn lent_by(descriptor: cap_descriptor::Reader<'_>) -> Option<u32> {
    match descriptor.which() {
        Ok(cap_descriptor::SenderHosted(id) | cap_descriptor::SenderPromise(id)) => Some(id),
        _ => None,
    }
}

/// `Finish` for the RPC layer alone.
fn local_finish(question: u32) -> Builder<HeapAllocator> {
    let mut message = small_message();
    let mut finish: finish::Builder<'_> = message.init_root::<message::Builder<'_>>().init_finish();
    finish.set_question_id(question);
    finish.set_release_result_caps(true);
    message
}
