//! What both directions of a session share: the connection, what the peer holds of ours, and the way of capabilities in and
//! out of messages.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::{Rc, Weak},
    task::{Context, Waker},
};

use capnp::{
    Error, ErrorKind,
    capability::Promise,
    private::capability::{ClientHook, PipelineOp},
    struct_list,
};
use capnp_rpc::{
    Connection, IncomingMessage, OutgoingMessage,
    rpc_capnp::{cap_descriptor, exception, message, message_target, payload, promised_answer},
};

use super::{
    answer::{Answers, Call},
    import::{Import, Imports},
    promise::PipelinedClient,
    question::Questions,
};
use crate::connection::OtherEnd;

/// The capabilities of a message, by their index in it.
pub(super) type Capabilities = Vec<Option<Box<dyn ClientHook>>>;

pub(super) struct State {
    /// What the peer gets when it asks for it.
    pub(super) bootstrap: Box<dyn ClientHook>,
    /// The error with which everything fails once the session has ended.
    connection: RefCell<Result<Box<dyn Connection<OtherEnd>>, Error>>,
    pub(super) questions: RefCell<Questions>,
    pub(super) answers: RefCell<Answers>,
    /// Calls of the peer that were given to their objects and not run yet.
    pub(super) started: RefCell<VecDeque<Rc<Call>>>,
    /// Calls of the peer of which it is to be looked whether anybody wants them, while somebody looks.
    pub(super) unwanted: RefCell<VecDeque<Rc<Call>>>,
    pub(super) is_giving_up: Cell<bool>,
    pub(super) imports: RefCell<Imports>,
    exports: RefCell<Exports>,
    /// Promises of calls that are not answered, by what names them to capnp's traits.
    pub(super) promises: RefCell<HashMap<usize, Weak<PipelinedClient>>>,
    /// Who polls the system.
    waker: Cell<Option<Waker>>,
}

/// Capabilities of ours that the peer holds.
#[derive(Default)]
struct Exports {
    slots: Vec<Option<Export>>,
    free: Vec<u32>,
    /// So that a capability that is sent twice is one export.
    by_pointer: HashMap<usize, u32>,
}

struct Export {
    hook: Box<dyn ClientHook>,
    /// How many times it was sent and not released.
    references: u32,
}

impl State {
    pub(super) fn new(connection: Box<dyn Connection<OtherEnd>>, bootstrap: Box<dyn ClientHook>) -> Rc<Self> {
        Rc::new(Self {
            bootstrap,
            connection: RefCell::new(Ok(connection)),
            questions: RefCell::default(),
            answers: RefCell::default(),
            started: RefCell::default(),
            unwanted: RefCell::default(),
            is_giving_up: Cell::new(false),
            imports: RefCell::default(),
            exports: RefCell::default(),
            promises: RefCell::default(),
            waker: Cell::new(None),
        })
    }

    /// What tells hooks of this session from all others.
    pub(super) fn brand(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    // ---- the connection

    pub(super) fn has_ended(&self) -> bool {
        self.connection.borrow().is_err()
    }

    /// Why the session has ended, if it has.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.connection.borrow().as_ref().map(drop).map_err(Clone::clone)
    }

    pub(super) fn receive(&self) -> Result<Promise<Option<Box<dyn IncomingMessage>>, Error>, Error> {
        match &mut *self.connection.borrow_mut() {
            Ok(connection) => Ok(connection.receive_incoming_message()),
            Err(error) => Err(error.clone()),
        }
    }

    pub(super) fn new_message(&self, words: u32) -> Result<Box<dyn OutgoingMessage>, Error> {
        match &mut *self.connection.borrow_mut() {
            Ok(connection) => Ok(connection.new_outgoing_message(words)),
            Err(error) => Err(error.clone()),
        }
    }

    /// Makes and sends a message, unless the session has ended.
    pub(super) fn tell(&self, fill: impl FnOnce(message::Builder<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let Ok(mut message) = self.new_message(0) else { return Ok(()) };
        fill(message.get_body()?.init_as())?;
        // The connection keeps the order, and its promise is of no use.
        let _ = message.send();
        Ok(())
    }

    pub(super) fn send_unimplemented(&self, message: &dyn IncomingMessage) -> Result<(), Error> {
        self.tell(|root| {
            let mut root = root;
            root.set_unimplemented(message.get_body()?.get_as()?)
        })
    }

    /// The session ends with `error`: tells the peer, fails what waits, and lets go of what the peer held.
    pub(super) fn disconnect(&self, error: Error) {
        if self.has_ended() {
            // The first reason stays.
            return;
        }
        let Ok(mut connection) = self.connection.replace(Err(error.clone())) else { return };
        let questions = self.questions.borrow_mut().all();
        for question in questions {
            question.fail(error.clone());
        }
        // Dropped one after the other, with no table borrowed: objects may do anything at their end.
        let answers = self.answers.take();
        answers.cancel();
        let started = self.started.take();
        drop(started);
        // Left there only by a panic.
        let unwanted = self.unwanted.take();
        drop(unwanted);
        let exports = self.exports.take();
        drop(exports);
        let mut abort = connection.new_outgoing_message(0);
        if let Ok(body) = abort.get_body() {
            describe_error(&error, body.init_as::<message::Builder<'_>>().init_abort());
            let _ = abort.send();
        }
        // Ready at once, and never fails.
        drop(connection.shutdown(Err(error)));
    }

    // ---- the task

    /// Has the system polled.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Who polls the system now.
    pub(super) fn polled_by(&self, context: &Context<'_>) {
        let waker = self.waker.take().filter(|waker| waker.will_wake(context.waker()));
        self.waker.set(Some(waker.unwrap_or_else(|| context.waker().clone())));
    }

    // ---- capabilities, out

    /// Writes down the capabilities of a message. Returns the exports that the peer now holds because of it.
    pub(super) fn describe(
        &self,
        capabilities: &[Option<Box<dyn ClientHook>>],
        payload: payload::Builder<'_>,
    ) -> Result<Vec<u32>, Error> {
        if capabilities.is_empty() {
            return Ok(Vec::new());
        }
        let count = u32::try_from(capabilities.len()).map_err(|_| Error::failed("too many capabilities".to_owned()))?;
        let mut table = payload.init_cap_table(count);
        let mut exports = Vec::new();
        for (index, capability) in (0..count).zip(capabilities) {
            let mut descriptor = table.reborrow().get(index);
            match capability {
                None => descriptor.set_none(()),
                Some(hook) => exports.extend(self.describe_one(hook.add_ref(), descriptor)?),
            }
        }
        Ok(exports)
    }

    fn describe_one(
        &self,
        mut hook: Box<dyn ClientHook>,
        mut descriptor: cap_descriptor::Builder<'_>,
    ) -> Result<Option<u32>, Error> {
        while let Some(resolved) = hook.get_resolved() {
            hook = resolved;
        }
        let pointer = hook.get_ptr();
        if hook.get_brand() == self.brand() {
            if let Some(id) = self.imports.borrow().id_of(pointer) {
                descriptor.set_receiver_hosted(id);
                return Ok(None);
            }
            let promise = self.promises.borrow().get(&pointer).and_then(Weak::upgrade);
            if let Some(promise) = promise {
                promise.name(descriptor.init_receiver_answer());
                return Ok(None);
            }
        }
        self.check()?;
        let id = self.exports.borrow_mut().add(pointer, hook);
        descriptor.set_sender_hosted(id);
        Ok(Some(id))
    }

    /// The peer holds `references` less of an export.
    pub(super) fn release_export(&self, id: u32, references: u32) -> Result<(), Error> {
        let dropped = self.exports.borrow_mut().release(id, references)?;
        drop(dropped);
        Ok(())
    }

    pub(super) fn release_exports(&self, exports: &[u32]) -> Result<(), Error> {
        exports.iter().try_for_each(|&id| self.release_export(id, 1))
    }

    /// A capability of ours that the peer names.
    pub(super) fn exported(&self, id: u32) -> Option<Box<dyn ClientHook>> {
        let exports = self.exports.borrow();
        exports.slots.get(id as usize)?.as_ref().map(|export| export.hook.add_ref())
    }

    // ---- capabilities, in

    /// The capabilities that a message of the peer brings.
    pub(super) fn receive_capabilities(
        self: &Rc<Self>,
        table: struct_list::Reader<'_, cap_descriptor::Owned>,
    ) -> Result<Capabilities, Error> {
        table.iter().map(|descriptor| self.receive_capability(descriptor)).collect()
    }

    fn receive_capability(
        self: &Rc<Self>,
        descriptor: cap_descriptor::Reader<'_>,
    ) -> Result<Option<Box<dyn ClientHook>>, Error> {
        Ok(match descriptor.which()? {
            cap_descriptor::None(()) => None,
            // The screen has made everything else that the peer hosts into this.
            cap_descriptor::SenderHosted(id) => Some(Import::receive(self, id)),
            cap_descriptor::ReceiverHosted(id) => Some(self.exported(id).unwrap_or_else(|| {
                broken("the peer passed on a capability of this side that it does not hold".to_owned())
            })),
            cap_descriptor::ReceiverAnswer(answer) => {
                let answer = answer?;
                Some(super::answer::promised(self, answer.get_question_id(), operations(answer.get_transform()?)?))
            }
            cap_descriptor::SenderPromise(_) | cap_descriptor::ThirdPartyHosted(_) => {
                return Err(Error::unimplemented("a capability of a kind that does not pass the screen".to_owned()));
            }
        })
    }
}

impl Exports {
    fn add(&mut self, pointer: usize, hook: Box<dyn ClientHook>) -> u32 {
        if let Some(&id) = self.by_pointer.get(&pointer)
            && let Some(Some(export)) = self.slots.get_mut(id as usize)
        {
            export.references += 1;
            return id;
        }
        let export = Some(Export { hook, references: 1 });
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = export;
                id
            }
            None => {
                self.slots.push(export);
                // Four thousand million exports do not fit into memory.
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.by_pointer.insert(pointer, id);
        id
    }

    /// Returns what nobody holds any more, to be dropped by whoever called.
    fn release(&mut self, id: u32, references: u32) -> Result<Option<Box<dyn ClientHook>>, Error> {
        let slot = self.slots.get_mut(id as usize);
        let Some((slot, export)) = slot.and_then(|slot| slot.take().map(|export| (slot, export))) else {
            return Err(Error::failed("the peer released a capability that it does not hold".to_owned()));
        };
        if references > export.references {
            *slot = Some(export);
            return Err(Error::failed("the peer released a capability more often than it was given it".to_owned()));
        }
        if references < export.references {
            *slot = Some(Export { references: export.references - references, ..export });
            return Ok(None);
        }
        self.free.push(id);
        self.by_pointer.remove(&export.hook.get_ptr());
        if self.by_pointer.is_empty() {
            // Idle sessions hold no table.
            *self = Self::default();
        }
        Ok(Some(export.hook))
    }
}

/// A capability whose every call fails.
pub(super) fn broken(reason: String) -> Box<dyn ClientHook> {
    broken_because(Error::failed(reason))
}

pub(super) fn broken_because(error: Error) -> Box<dyn ClientHook> {
    capnp_rpc::new_broken_cap(error).hook
}

/// Where in an answer a promised capability lies.
pub(super) fn operations(
    transform: struct_list::Reader<'_, promised_answer::op::Owned>,
) -> Result<Vec<PipelineOp>, Error> {
    transform
        .iter()
        .map(|operation| {
            Ok(match operation.which()? {
                promised_answer::op::Noop(()) => PipelineOp::Noop,
                promised_answer::op::GetPointerField(index) => PipelineOp::GetPointerField(index),
            })
        })
        .collect()
}

pub(super) fn describe_error(error: &Error, mut exception: exception::Builder<'_>) {
    use exception::Type;
    exception.set_type(match error.kind {
        ErrorKind::Overloaded => Type::Overloaded,
        ErrorKind::Disconnected => Type::Disconnected,
        ErrorKind::Unimplemented | ErrorKind::SettingDynamicCapabilitiesIsUnsupported => Type::Unimplemented,
        _ => Type::Failed,
    });
    match error.kind {
        ErrorKind::Failed | ErrorKind::Overloaded | ErrorKind::Disconnected | ErrorKind::Unimplemented => {
            exception.set_reason(&error.extra);
        }
        // The kind says more than `Failed` does.
        _ => exception.set_reason(error.to_string()),
    }
}

/// An exception of the peer, as capnp-rpc words it.
pub(super) fn remote_error(exception: exception::Reader<'_>) -> Error {
    use exception::Type;
    let (kind, reason) = match (exception.get_type(), exception.get_reason()) {
        (Ok(Type::Failed), Ok(reason)) => (ErrorKind::Failed, reason),
        (Ok(Type::Overloaded), Ok(reason)) => (ErrorKind::Overloaded, reason),
        (Ok(Type::Disconnected), Ok(reason)) => (ErrorKind::Disconnected, reason),
        (Ok(Type::Unimplemented), Ok(reason)) => (ErrorKind::Unimplemented, reason),
        _ => (ErrorKind::Failed, "(malformed error)".into()),
    };
    let reason = reason.to_str().unwrap_or("<malformed utf-8 in error reason>");
    Error { kind, extra: format!("remote exception: {reason}") }
}

/// The capability that a peer's message names as the target of a call or of a disembargo, if it is settled.
pub(super) enum Target {
    Settled(Box<dyn ClientHook>),
    /// Of a call of the peer.
    Promised {
        question: u32,
        operations: Vec<PipelineOp>,
    },
}

impl Target {
    pub(super) fn read(state: &State, target: message_target::Reader<'_>) -> Result<Self, Error> {
        match target.which()? {
            message_target::ImportedCap(id) => match state.exported(id) {
                Some(hook) => Ok(Self::Settled(hook)),
                None => Err(Error::failed("the peer called a capability that it does not hold".to_owned())),
            },
            message_target::PromisedAnswer(answer) => {
                let answer = answer?;
                let operations = operations(answer.get_transform()?)?;
                Ok(Self::Promised { question: answer.get_question_id(), operations })
            }
        }
    }
}
