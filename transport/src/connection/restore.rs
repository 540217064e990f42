//! `Bootstrap.deprecatedObjectId`, which the RPC layer does not look at: the object that a client names in its first
//! message, instead of asking the bootstrap capability for it.
//!
//! The protocol has deprecated it, and some implementations know nothing else: an OCaml sturdyref
//! (`capnp://sha-256:<key>@<host>:<port>/<id>`) is restored by sending `<id>` in here.
//!
//! Such a message is handed to the RPC layer as three of our own making, which it carries out one after the other
//! before it sees anything else of the peer:
//!
//! 1. `Bootstrap` under a question number of our own, for the capability that can restore;
//! 2. `Call` to it, under the number that the peer used, with the id as its parameter. Its answer is the object
//!    and nothing around it, as in an answer to a `Bootstrap`; so what the peer calls on the promised answer
//!    finds its way through the RPC layer as it would have anyway;
//! 3. `Finish` for our own question, so that nothing is left of it.
//!
//! The answer to our own question is of no use to the peer and is not sent.

use capnp::{
    any_pointer, data,
    message::{Builder, HeapAllocator, Reader},
};
use capnp_rpc::rpc_capnp::{exception, message};
use schemas::ErrorCode;

use super::{Incoming, Wire, refuse, small_message};
use crate::{frames::Frame, limits};

/// The method by which an object is restored from its id. A number as capnp draws them; in no schema, since the
/// parameter and the answer are no structs.
pub(crate) const RESTORE_INTERFACE: u64 = 0xe1b7_4c02_95d8_3af6;
pub(crate) const RESTORE_METHOD: u16 = 0;

/// Our question. Implementations number theirs from 0, and use free numbers again.
const OWN_QUESTION: u32 = u32::MAX;

/// What a Bootstrap asks for.
enum Wanted {
    /// The bootstrap capability.
    Bootstrap,
    /// The object of this id.
    Object { question: u32, id: Vec<u8> },
    /// Something that cannot be read, or is longer than any id.
    Unreadable { question: u32 },
}

impl Wire {
    /// From now on a Bootstrap that names an object is answered with that object.
    pub(crate) fn restore_by_id(&self) {
        self.restores_by_id.set(true);
    }

    /// Whether a question is one that only we ask of ourselves.
    pub(super) fn is_own_question(&self, question: u32) -> bool {
        question == OWN_QUESTION && self.restores_by_id.get()
    }

    /// What the RPC layer shall see of a Bootstrap of the peer.
    pub(super) fn bootstrap(&self, message: Reader<Frame>) -> Option<Incoming> {
        if !self.restores_by_id.get() {
            return Some(Incoming::Remote(message));
        }
        match wanted(&message) {
            Ok(Wanted::Object { question, id }) => {
                let local = &mut self.inbound.borrow_mut().local;
                local.push_back(call(question, &id));
                local.push_back(finish());
                Some(Incoming::Local(bootstrap()))
            }
            Ok(Wanted::Unreadable { question }) => {
                self.calls.borrow_mut().answer(question, false, Vec::new());
                self.queue(&unreadable(question), true);
                None
            }
            // What cannot be read at all is refused by the RPC layer too.
            Ok(Wanted::Bootstrap) | Err(_) => Some(Incoming::Remote(message)),
        }
    }
}

fn wanted(message: &Reader<Frame>) -> capnp::Result<Wanted> {
    let Ok(message::Bootstrap(bootstrap)) = message.get_root::<message::Reader<'_>>()?.which() else {
        return Ok(Wanted::Bootstrap);
    };
    let bootstrap = bootstrap?;
    let question = bootstrap.get_question_id();
    let id: any_pointer::Reader<'_> = bootstrap.get_deprecated_object_id();
    if id.is_null() {
        return Ok(Wanted::Bootstrap);
    }
    // Text is Data with a zero byte at its end, so both are read as Data.
    Ok(match id.get_as::<data::Reader<'_>>() {
        // The name of the main object, where it is named at all.
        Ok([] | [0]) => Wanted::Bootstrap,
        Ok(id) if id.len() <= limits::OBJECT_ID_BYTES => Wanted::Object { question, id: id.to_vec() },
        Ok(_) | Err(_) => Wanted::Unreadable { question },
    })
}

fn bootstrap() -> Builder<HeapAllocator> {
    let mut message = small_message();
    message.init_root::<message::Builder<'_>>().init_bootstrap().set_question_id(OWN_QUESTION);
    message
}

fn call(question: u32, id: &[u8]) -> Builder<HeapAllocator> {
    let mut message = small_message();
    let mut call = message.init_root::<message::Builder<'_>>().init_call();
    call.set_question_id(question);
    call.set_interface_id(RESTORE_INTERFACE);
    call.set_method_id(RESTORE_METHOD);
    call.reborrow().init_target().init_promised_answer().set_question_id(OWN_QUESTION);
    let content: any_pointer::Builder<'_> = call.init_params().get_content();
    // Proof of the cast: an id has at most `OBJECT_ID_BYTES`.
    #[allow(clippy::cast_possible_truncation)]
    content.initn_as::<data::Builder<'_>>(id.len() as u32).copy_from_slice(id);
    message
}

fn finish() -> Builder<HeapAllocator> {
    let mut message = small_message();
    let mut finish = message.init_root::<message::Builder<'_>>().init_finish();
    finish.set_question_id(OWN_QUESTION);
    finish.set_release_result_caps(true);
    message
}

fn unreadable(question: u32) -> Builder<HeapAllocator> {
    let mut message = small_message();
    let mut answer = message.init_root::<message::Builder<'_>>().init_return();
    answer.set_answer_id(question);
    answer.set_no_finish_needed(true);
    let text = "the object id of a Bootstrap is a Text or a Data, no longer than a reference";
    refuse(answer.init_exception(), exception::Type::Failed, ErrorCode::RefMalformed, text);
    message
}
