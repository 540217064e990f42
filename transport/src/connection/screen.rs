//! Every message of a peer is looked at before capnp-rpc sees it.
//!
//! What capnp-rpc 0.27 does with a few legal messages is not survivable for the side that receives them. Those
//! are turned into legal ones that mean the same to us:
//!
//! * `senderPromise` becomes `senderHosted`, and every `Resolve` is answered with `unimplemented`. The peer
//!   goes on to host what it promised, calls go through it in order, and no chain of promises can be built
//!   here that leads to itself and hangs the thread. Cap'n Proto allows a receiver to know nothing of promises;
//! * `thirdPartyHosted` becomes its vine: the capability that the peer itself hosts as a stand-in;
//! * `Return.canceled`, which would leave the caller waiting for ever, becomes an exception.
//!
//! The two changes of capability descriptors are made in place. A hostile message may have overlapping
//! pointers, so that one change undoes another; therefore the result is looked at again and refused if
//! anything is left to change.

use capnp::message::{Builder, HeapAllocator, Reader, ReaderOptions};
use capnp_rpc::rpc_capnp::{cap_descriptor, message, payload, resolve, return_};
use schemas::ErrorCode;

use super::{Incoming, Wire, exception_text, failed_return, refusal, small_message};
use crate::{
    frames::Frame,
    limits,
    peer_connection::remote_error_text,
    session::{SessionEnd, Violation},
};

/// What to do with a message.
enum Verdict {
    /// Give it to capnp-rpc.
    Deliver,
    /// The same, and count it.
    Ask { question: u32 },
    /// The same, and stop counting it.
    Finish { question: u32 },
    /// Give it to capnp-rpc: a question of ours is answered.
    Answered { question: u32 },
    /// The same, with this message instead.
    Replace { question: u32, message: Builder<HeapAllocator> },
    /// Answer the peer with this one; capnp-rpc does not see it.
    Answer(Builder<HeapAllocator>),
    /// The session ends.
    End(SessionEnd),
}

/// A capability descriptor to change, by the position of its bytes in the frame.
struct Change {
    position: usize,
    /// Set for a third party's capability: the export that stands in for it.
    vine: Option<u32>,
}

/// `CapDescriptor` in `rpc.capnp`: the union's tag is the first 16 bits of the data section, the export id the
/// second 32; `senderHosted` has tag 1.
const SENDER_HOSTED: [u8; 2] = 1_u16.to_le_bytes();
const EXPORT_ID: std::ops::Range<usize> = 4..8;

impl Wire {
    /// Judges a message of the peer; returns what capnp-rpc shall see of it, if anything.
    pub(super) fn screen(&self, frame: Frame) -> Option<Incoming> {
        let bytes = frame.bytes();
        let (message, verdict) = judge(frame, self.limits.capabilities_per_message);
        match verdict {
            Verdict::Deliver => Some(Incoming::Remote(message)),
            Verdict::Ask { question } => {
                if self.calls.borrow_mut().ask(question, bytes, &self.limits) {
                    return Some(Incoming::Remote(message));
                }
                let text = "not carried out: too many questions of yours are open";
                self.queue(&refusal(question, ErrorCode::SessionTooManyCalls, text), true);
                None
            }
            Verdict::Finish { question } => {
                if !self.calls.borrow_mut().finish(question, &self.limits) {
                    let limit = self.limits.calls_given_up;
                    self.finish(SessionEnd::Violation(Violation::GivenUp { limit }));
                    return None;
                }
                Some(Incoming::Remote(message))
            }
            Verdict::Answered { question } => {
                self.questions.borrow_mut().answered(question);
                Some(Incoming::Remote(message))
            }
            Verdict::Replace { question, message } => {
                self.questions.borrow_mut().answered(question);
                Some(Incoming::Local(message))
            }
            Verdict::Answer(answer) => {
                self.queue(&answer, true);
                None
            }
            Verdict::End(end) => {
                self.finish(end);
                None
            }
        }
    }
}

/// Reads a message under its limits, changes what must be changed, and says what to do with it.
fn judge(frame: Frame, capabilities: usize) -> (Reader<Frame>, Verdict) {
    let options = reader_options(frame.bytes());
    let message = Reader::new(frame, options);
    let (verdict, changes) = inspect_or_end(&message, capabilities);
    if changes.is_empty() {
        return (message, verdict);
    }
    let mut frame = message.into_segments();
    let changed = changes.iter().all(|change| change.apply(frame.as_bytes_mut()).is_some());
    let message = Reader::new(frame, options);
    let (verdict, left) = inspect_or_end(&message, capabilities);
    if changed && left.is_empty() {
        return (message, verdict);
    }
    let violation = Violation::Rpc("the capabilities of a message overlap with something else".to_owned());
    (message, Verdict::End(SessionEnd::Violation(violation)))
}

fn reader_options(bytes: usize) -> ReaderOptions {
    let words = (bytes / 8 * limits::TRAVERSAL_FACTOR).max(limits::TRAVERSAL_FLOOR_WORDS);
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(words)).nesting_limit(limits::NESTING);
    options
}

fn inspect_or_end(message: &Reader<Frame>, capabilities: usize) -> (Verdict, Vec<Change>) {
    let mut changes = Vec::new();
    let verdict = inspect(message, capabilities, &mut changes)
        .unwrap_or_else(|error| Verdict::End(SessionEnd::Violation(Violation::Malformed(error))));
    (verdict, changes)
}

fn inspect(message: &Reader<Frame>, capabilities: usize, changes: &mut Vec<Change>) -> capnp::Result<Verdict> {
    let mut table = |payload: payload::Reader<'_>| inspect_capabilities(message, payload, capabilities, changes);
    Ok(match message.get_root::<message::Reader<'_>>()?.which() {
        Ok(message::Call(call)) => {
            let call = call?;
            table(call.get_params()?)?.unwrap_or(Verdict::Ask { question: call.get_question_id() })
        }
        Ok(message::Return(answer)) => {
            let answer = answer?;
            let question = answer.get_answer_id();
            match answer.which() {
                Ok(return_::Results(results)) => table(results?)?.unwrap_or(Verdict::Answered { question }),
                Ok(return_::Canceled(())) => {
                    let text = "the peer gave the call up; whether it was carried out is not known";
                    Verdict::Replace { question, message: failed_return(&answer, ErrorCode::SessionClosed, text) }
                }
                _ => Verdict::Answered { question },
            }
        }
        Ok(message::Bootstrap(bootstrap)) => Verdict::Ask { question: bootstrap?.get_question_id() },
        Ok(message::Finish(finish)) => Verdict::Finish { question: finish?.get_question_id() },
        Ok(message::Resolve(resolve)) => Verdict::Answer(unimplemented_resolve(resolve?)?),
        Ok(message::Abort(reason)) => Verdict::End(SessionEnd::Peer(remote_error_text(&exception_text(reason)))),
        _ => Verdict::Deliver,
    })
}

/// Looks through the capability table of a call or of results. A verdict only if the session must end.
fn inspect_capabilities(
    message: &Reader<Frame>,
    payload: payload::Reader<'_>,
    capabilities: usize,
    changes: &mut Vec<Change>,
) -> capnp::Result<Option<Verdict>> {
    let table = payload.get_cap_table()?;
    if table.len() as usize > capabilities {
        let violation = Violation::Capabilities { found: table.len(), limit: capabilities };
        return Ok(Some(Verdict::End(SessionEnd::Violation(violation))));
    }
    for descriptor in table {
        let vine = match descriptor.which() {
            Ok(cap_descriptor::SenderPromise(_)) => None,
            Ok(cap_descriptor::ThirdPartyHosted(third_party)) => Some(third_party?.get_vine_id()),
            _ => continue,
        };
        let position = position_in(message, capnp::raw::get_struct_data_section(descriptor));
        changes.push(Change { position, vine });
    }
    Ok(None)
}

/// Where `part`, which was read from `message`, lies in the bytes of its frame.
fn position_in(message: &Reader<Frame>, part: &[u8]) -> usize {
    // Segment 0 begins where the frame begins; the others follow it in the same allocation.
    let frame = message.get_segments().as_bytes();
    (part.as_ptr() as usize).wrapping_sub(frame.as_ptr() as usize)
}

impl Change {
    /// Makes the change; `None` if the descriptor is too short to be changed.
    fn apply(&self, frame: &mut [u8]) -> Option<()> {
        let descriptor = frame.get_mut(self.position..)?;
        if let Some(vine) = self.vine {
            descriptor.get_mut(EXPORT_ID)?.copy_from_slice(&vine.to_le_bytes());
        }
        descriptor.get_mut(..SENDER_HOSTED.len())?.copy_from_slice(&SENDER_HOSTED);
        Some(())
    }
}

/// `unimplemented` for a `Resolve`, with as much of it as the peer needs to take its capability back.
fn unimplemented_resolve(resolve: resolve::Reader<'_>) -> capnp::Result<Builder<HeapAllocator>> {
    let mut message = small_message();
    let mut echo = message.init_root::<message::Builder<'_>>().init_unimplemented().init_resolve();
    echo.set_promise_id(resolve.get_promise_id());
    match resolve.which() {
        Ok(resolve::Cap(descriptor)) => {
            let mut echo = echo.init_cap();
            match descriptor?.which() {
                Ok(cap_descriptor::SenderHosted(id)) => echo.set_sender_hosted(id),
                Ok(cap_descriptor::SenderPromise(id)) => echo.set_sender_promise(id),
                Ok(cap_descriptor::ReceiverHosted(id)) => echo.set_receiver_hosted(id),
                Ok(cap_descriptor::ThirdPartyHosted(third_party)) => {
                    echo.init_third_party_hosted().set_vine_id(third_party?.get_vine_id());
                }
                _ => echo.set_none(()),
            }
        }
        _ => {
            echo.init_exception();
        }
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frames::{self, FrameDecoder, FrameLimits};

    const CAPABILITIES: usize = 16;

    /// One message for each kind of descriptor and of message that is changed, in a number of segments that
    /// depends on the size of the first.
    fn message(kinds: &[u8], is_return: bool, first_segment: u32) -> Vec<u8> {
        let mut message = Builder::new(HeapAllocator::new().first_segment_words(first_segment));
        let root: message::Builder<'_> = message.init_root();
        let payload = if is_return {
            root.init_return().init_results()
        } else {
            let mut call = root.init_call();
            call.set_question_id(9);
            call.reborrow().init_target().set_imported_cap(1);
            call.init_params()
        };
        // Proof: a test with a handful of kinds.
        let mut table = payload.init_cap_table(u32::try_from(kinds.len()).unwrap());
        for (index, kind) in (0_u32..).zip(kinds) {
            let mut descriptor = table.reborrow().get(index);
            match kind {
                0 => descriptor.set_none(()),
                1 => descriptor.set_sender_hosted(100 + index),
                2 => descriptor.set_sender_promise(100 + index),
                3 => descriptor.set_receiver_hosted(100 + index),
                _ => descriptor.init_third_party_hosted().set_vine_id(100 + index),
            }
        }
        let mut bytes = Vec::new();
        frames::encode(&message.get_segments_for_output(), &mut bytes);
        bytes
    }

    fn frame(mut bytes: &[u8]) -> Option<Frame> {
        let limits = FrameLimits { message_bytes: 1 << 16, segments: 64 };
        FrameDecoder::new(limits).push(&mut bytes).ok().flatten()
    }

    fn descriptors(message: &Reader<Frame>) -> Vec<(u8, u32)> {
        let payload = match message.get_root::<message::Reader<'_>>().unwrap().which() {
            Ok(message::Call(call)) => call.unwrap().get_params(),
            Ok(message::Return(answer)) => match answer.unwrap().which() {
                Ok(return_::Results(results)) => results,
                _ => panic!("no results"),
            },
            _ => panic!("neither a call nor a return"),
        };
        let table = payload.unwrap().get_cap_table().unwrap();
        table
            .iter()
            .map(|descriptor| match descriptor.which() {
                Ok(cap_descriptor::None(())) => (0, 0),
                Ok(cap_descriptor::SenderHosted(id)) => (1, id),
                Ok(cap_descriptor::SenderPromise(id)) => (2, id),
                Ok(cap_descriptor::ReceiverHosted(id)) => (3, id),
                _ => (4, 0),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn promises_and_third_parties_become_what_the_peer_hosts_and_all_else_stays(
            kinds in prop::collection::vec(0_u8..5, 0..CAPABILITIES),
            is_return in any::<bool>(),
            first_segment in 1_u32..60,
        ) {
            let bytes = message(&kinds, is_return, first_segment);
            let (message, verdict) = judge(frame(&bytes).unwrap(), CAPABILITIES);
            match verdict {
                Verdict::Ask { question: 9 } => prop_assert!(!is_return),
                Verdict::Answered { question: 0 } => prop_assert!(is_return),
                _ => prop_assert!(false, "another verdict"),
            }
            let expected: Vec<(u8, u32)> = (100..)
                .zip(&kinds)
                .map(|(id, kind)| match kind { 0 => (0, 0), 3 => (3, id), _ => (1, id) })
                .collect();
            prop_assert_eq!(descriptors(&message), expected);
        }

        /// Whatever a peer makes of a message, what passes has nothing in it that must not pass.
        #[test]
        fn an_altered_message_is_refused_or_has_no_promise_in_it(
            kinds in prop::collection::vec(0_u8..5, 1..CAPABILITIES),
            is_return in any::<bool>(),
            first_segment in 1_u32..60,
            alterations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut bytes = message(&kinds, is_return, first_segment);
            let table = 8;
            for (position, value) in alterations {
                let position = table + position.index(bytes.len() - table);
                bytes[position] = value;
            }
            let Some(frame) = frame(&bytes) else { return Ok(()) };
            let (message, verdict) = judge(frame, CAPABILITIES);
            if !matches!(verdict, Verdict::End(_) | Verdict::Answer(_) | Verdict::Replace { .. }) {
                let (_, left) = inspect_or_end(&message, CAPABILITIES);
                prop_assert!(left.is_empty());
            }
        }
    }
}
