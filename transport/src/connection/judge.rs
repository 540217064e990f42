//! What a message of a peer is, what must be changed in it, and what to do with it: pure.
//!
//! The changes of capability descriptors are made in place. A hostile message may have overlapping pointers, so that
//! one change undoes another; therefore the result is looked at again and refused if anything is left to change.

use capnp::message::{Builder, HeapAllocator, Reader, ReaderOptions};
use capnp_rpc::rpc_capnp::{
    call, cap_descriptor, disembargo, message, message_target, payload, promised_answer, resolve, return_,
};

use super::{exception_text, small_message};
use crate::{
    frames::Frame,
    limits,
    peer_connection::remote_error_text,
    session::{SessionEnd, Violation},
};

/// What to do with a message.
pub(super) enum Verdict {
    /// Give it to the RPC layer.
    Deliver,
    /// The same, and count it. A call may be made on the result of a question.
    Ask { question: u32, on: Option<u32> },
    /// The same for a request for the bootstrap capability, or for the object that it names.
    Bootstrap { question: u32 },
    /// Answer the question with this, and do not carry it out.
    Refuse { question: u32, text: &'static str },
    /// Give it to whoever asked.
    Answered { question: u32, is_releasing: bool, no_finish_needed: bool, outcome: Outcome },
    /// Give it to the RPC layer, and stop counting the question.
    Finish { question: u32, is_releasing: bool },
    /// The same, and stop counting the references to a capability of ours.
    TakeBack { export: u32, references: u32 },
    /// Answer the peer with this one; the RPC layer does not see it.
    Answer(Builder<HeapAllocator>),
    /// The session ends.
    End(SessionEnd),
}

/// How the peer says that a call of ours went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The results are a struct, as those of every method are.
    Results,
    /// They are something else. capnp-rpc panics when somebody pipelines on them later.
    Other,
    Exception,
    Canceled,
    /// In a way that the RPC layer does not have.
    Elsewhere,
}

/// What was found in the capability table of a message.
#[derive(Default)]
pub(super) struct Found {
    /// What must be changed before the RPC layer may see it.
    changes: Vec<Change>,
    /// The peer's own capabilities, once for each reference.
    pub(super) imports: Vec<u32>,
    /// Questions of the peer whose results are passed.
    pub(super) answers: Vec<u32>,
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
/// `Return` in `rpc.capnp`: the number of the question is the first 32 bits.
const ANSWER_ID: std::ops::Range<usize> = 0..4;

pub(super) fn overlapping() -> Violation {
    Violation::Rpc("parts of a message overlap with others".to_owned())
}

/// Reads a message under its limits, changes what must be changed, and says what to do with it.
pub(super) fn judge(frame: Frame, capabilities: usize) -> (Reader<Frame>, Verdict, Found) {
    let options = reader_options(frame.bytes());
    let message = Reader::new(frame, options);
    let (verdict, found) = inspect_or_end(&message, capabilities);
    if found.changes.is_empty() {
        return (message, verdict, found);
    }
    let mut frame = message.into_segments();
    let changed = found.changes.iter().all(|change| change.apply(frame.as_bytes_mut()).is_some());
    let message = Reader::new(frame, options);
    let (verdict, found) = inspect_or_end(&message, capabilities);
    if changed && found.changes.is_empty() {
        return (message, verdict, found);
    }
    (message, Verdict::End(SessionEnd::Violation(overlapping())), Found::default())
}

/// Gives an answer the number that the RPC layer knows the question by; `None` if something else changes with it.
pub(super) fn renumber(message: Reader<Frame>, number: u32, capabilities: usize) -> Option<Reader<Frame>> {
    let position = match message.get_root::<message::Reader<'_>>().ok()?.which() {
        Ok(message::Return(Ok(answer))) => position_in(&message, capnp::raw::get_struct_data_section(answer)),
        _ => return None,
    };
    let mut frame = message.into_segments();
    let bytes = frame.as_bytes_mut().get_mut(position..)?.get_mut(ANSWER_ID)?;
    bytes.copy_from_slice(&number.to_le_bytes());
    let options = reader_options(frame.bytes());
    let message = Reader::new(frame, options);
    let (verdict, found) = inspect_or_end(&message, capabilities);
    let is_renumbered = matches!(verdict, Verdict::Answered { question, .. } if question == number);
    (is_renumbered && found.changes.is_empty()).then_some(message)
}

fn reader_options(bytes: usize) -> ReaderOptions {
    let words = (bytes / 8 * limits::TRAVERSAL_FACTOR).max(limits::TRAVERSAL_FLOOR_WORDS);
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(words)).nesting_limit(limits::NESTING);
    options
}

/// The same message, to be read as often as anyone likes, if reading all of it once stays within the bound.
pub(super) fn without_bound(frame: Frame) -> capnp::Result<Reader<Frame>> {
    let mut options = reader_options(frame.bytes());
    let message = Reader::new(frame, options);
    message.get_root::<capnp::any_pointer::Reader<'_>>()?.target_size()?;
    options.traversal_limit_in_words(None);
    Ok(Reader::new(message.into_segments(), options))
}

fn inspect_or_end(message: &Reader<Frame>, capabilities: usize) -> (Verdict, Found) {
    let mut found = Found::default();
    let verdict = inspect(message, capabilities, &mut found).unwrap_or_else(Verdict::End);
    (verdict, found)
}

impl From<capnp::Error> for SessionEnd {
    fn from(error: capnp::Error) -> Self {
        Self::Violation(Violation::Malformed(error))
    }
}

impl From<capnp::NotInSchema> for SessionEnd {
    fn from(error: capnp::NotInSchema) -> Self {
        capnp::Error::from(error).into()
    }
}

fn inspect(message: &Reader<Frame>, capabilities: usize, found: &mut Found) -> Result<Verdict, SessionEnd> {
    let root: message::Reader<'_> = message.get_root()?;
    let mut table = |payload: payload::Reader<'_>| inspect_capabilities(message, payload, capabilities, found);
    Ok(match root.which() {
        Ok(message::Call(call)) => {
            let call = call?;
            let question = call.get_question_id();
            match call.get_send_results_to().which()? {
                call::send_results_to::Caller(()) => {
                    table(call.get_params()?)?;
                    Verdict::Ask { question, on: target_of(call.get_target()?)? }
                }
                // The peer calls back instead of answering a call of ours, whose caller will be told that this is
                // not understood. An exception would break a rule: the answer to this one must say that it is elsewhere.
                call::send_results_to::Yourself(()) => Verdict::Answer(sent_elsewhere(question)),
                call::send_results_to::ThirdParty(_) => {
                    Verdict::Refuse { question, text: "not carried out: third parties are not known here" }
                }
            }
        }
        Ok(message::Return(answer)) => {
            let answer = answer?;
            let outcome = match answer.which()? {
                return_::Results(results) => {
                    let results = results?;
                    table(results)?;
                    // Any struct type does: what is asked is whether it is one.
                    let is_struct = results.get_content().get_as::<payload::Reader<'_>>().is_ok();
                    if is_struct { Outcome::Results } else { Outcome::Other }
                }
                return_::Exception(_) => Outcome::Exception,
                return_::Canceled(()) => Outcome::Canceled,
                return_::ResultsSentElsewhere(())
                | return_::TakeFromOtherQuestion(_)
                | return_::AcceptFromThirdParty(_) => Outcome::Elsewhere,
            };
            Verdict::Answered {
                question: answer.get_answer_id(),
                is_releasing: answer.get_release_param_caps(),
                no_finish_needed: answer.get_no_finish_needed(),
                outcome,
            }
        }
        Ok(message::Bootstrap(bootstrap)) => Verdict::Bootstrap { question: bootstrap?.get_question_id() },
        Ok(message::Finish(finish)) => {
            let finish = finish?;
            Verdict::Finish { question: finish.get_question_id(), is_releasing: finish.get_release_result_caps() }
        }
        Ok(message::Release(release)) => {
            let release = release?;
            Verdict::TakeBack { export: release.get_id(), references: release.get_reference_count() }
        }
        Ok(message::Resolve(resolve)) => Verdict::Answer(unimplemented_resolve(resolve?)?),
        Ok(message::Abort(reason)) => Verdict::End(SessionEnd::Peer(remote_error_text(&exception_text(reason)))),
        // Of what this side says, everybody knows what it calls for; the RPC layer notes the rest.
        Ok(message::Unimplemented(_)) => Verdict::Deliver,
        Ok(message::Disembargo(disembargo)) => {
            let disembargo = disembargo?;
            match disembargo.get_context().which() {
                Ok(disembargo::context::SenderLoopback(_) | disembargo::context::ReceiverLoopback(_)) => {
                    target_of(disembargo.get_target()?)?;
                    Verdict::Deliver
                }
                _ => echo(root)?,
            }
        }
        _ => echo(root)?,
    })
}

/// The question whose result a call is made on, if any.
fn target_of(target: message_target::Reader<'_>) -> Result<Option<u32>, SessionEnd> {
    match target.which()? {
        message_target::ImportedCap(_) => Ok(None),
        message_target::PromisedAnswer(answer) => {
            let answer = answer?;
            check_steps(answer)?;
            Ok(Some(answer.get_question_id()))
        }
    }
}

fn check_steps(answer: promised_answer::Reader<'_>) -> Result<(), SessionEnd> {
    let found = answer.get_transform()?.len();
    let limit = limits::PIPELINE_STEPS;
    if found > limit { Err(SessionEnd::Violation(Violation::Steps { found, limit })) } else { Ok(()) }
}

/// Looks through the capability table of a call or of results.
fn inspect_capabilities(
    message: &Reader<Frame>,
    payload: payload::Reader<'_>,
    capabilities: usize,
    found: &mut Found,
) -> Result<(), SessionEnd> {
    let table = payload.get_cap_table()?;
    if table.len() as usize > capabilities {
        let violation = Violation::Capabilities { found: table.len(), limit: capabilities };
        return Err(SessionEnd::Violation(violation));
    }
    for descriptor in table {
        let vine = match descriptor.which() {
            Ok(cap_descriptor::SenderPromise(_)) => None,
            Ok(cap_descriptor::ThirdPartyHosted(third_party)) => Some(third_party?.get_vine_id()),
            Ok(cap_descriptor::SenderHosted(id)) => {
                found.imports.push(id);
                continue;
            }
            Ok(cap_descriptor::ReceiverAnswer(answer)) => {
                let answer = answer?;
                check_steps(answer)?;
                found.answers.push(answer.get_question_id());
                continue;
            }
            _ => continue,
        };
        let position = position_in(message, capnp::raw::get_struct_data_section(descriptor));
        found.changes.push(Change { position, vine });
    }
    Ok(())
}

/// Sends back, as the protocol asks, a message of a kind that this side does not have.
fn echo(root: message::Reader<'_>) -> Result<Verdict, SessionEnd> {
    if root.total_size()?.word_count > limits::ECHO_WORDS {
        return Err(SessionEnd::Violation(Violation::Unknown));
    }
    let mut message = small_message();
    message.init_root::<message::Builder<'_>>().set_unimplemented(root)?;
    Ok(Verdict::Answer(message))
}

/// `resultsSentElsewhere`: the only answer to a call whose caller wants to take the results from somewhere else.
fn sent_elsewhere(question: u32) -> Builder<HeapAllocator> {
    let mut message = small_message();
    let mut answer = message.init_root::<message::Builder<'_>>().init_return();
    answer.set_answer_id(question);
    answer.set_no_finish_needed(true);
    answer.set_results_sent_elsewhere(());
    message
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
            let (message, verdict, found) = judge(frame(&bytes).unwrap(), CAPABILITIES);
            let hosted = (100..).zip(&kinds).filter(|(_, kind)| !matches!(kind, 0 | 3)).map(|(id, _)| id);
            prop_assert_eq!(found.imports, hosted.collect::<Vec<u32>>());
            match verdict {
                Verdict::Ask { question: 9, on: None } => prop_assert!(!is_return),
                Verdict::Answered { question: 0, .. } => prop_assert!(is_return),
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
            let (message, verdict, _) = judge(frame, CAPABILITIES);
            if !matches!(verdict, Verdict::End(_)) {
                let (_, found) = inspect_or_end(&message, CAPABILITIES);
                prop_assert!(found.changes.is_empty());
            }
        }
    }
}
