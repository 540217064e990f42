//! Our own connection below capnp-rpc's public traits (DESIGN §6): where the output gate sits and where a
//! hostile peer meets its limits.
//!
//! capnp-rpc trusts its peer and its application: its stock connection allocates what is announced, queues
//! without bound, and writes a message the moment it exists. Nothing of it is forked here: this is another
//! [`capnp_rpc::Connection`], and above it stands our own RPC layer ([`rpc`](crate::rpc)). Where modules below say what
//! capnp-rpc does or does not do, that is why something is settled here that an RPC layer could settle too: no limit
//! depends on what is above. Between it and the stream stands [`Wire`]:
//!
//! * **out**: every message is tagged with the newest turn and waits in the [`Outbox`] until the gate has
//!   released that turn (R3). A message that the peer would refuse is answered here instead of being sent
//!   ([`sending`]);
//! * **in**: bytes become messages under limits ([`FrameDecoder`]), and each message is screened
//!   ([`screen`]) before the RPC layer sees it. While many answers wait for the peer, nothing more is read from it;
//! * **held**: what each side holds of the other is counted as the messages pass: the peer's questions ([`calls`]),
//!   ours and their deadlines ([`questions`]), and the capabilities of both ([`capabilities`]);
//! * **end**: the first reason wins, and everything that waits fails with that reason.
//!
//! Who polls it all is the driver in [`session`](crate::session).

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use capnp::{
    capability::Promise,
    message::{Builder, HeapAllocator, Reader},
};
use capnp_rpc::{
    IncomingMessage, OutgoingMessage,
    rpc_capnp::{exception, message},
};
use schemas::{Coded, ErrorCode};
use tokio::{io::AsyncRead, time::Instant};

use crate::{
    OutputGate, SessionLimits,
    frames::Frame,
    limits,
    session::{SessionEnd, Violation, steps::StepWaker},
};

use inbound::Inbound;
pub(crate) use outbox::Outbox;
pub(crate) use restore::{RESTORE_INTERFACE, RESTORE_METHOD};

mod calls;
mod capabilities;
mod inbound;
mod judge;
mod outbox;
mod questions;
mod restore;
mod screen;
mod sending;

pub use questions::with_call_deadline;

/// How a failed read or write is explained: a QUIC connection knows more than the error says.
pub(crate) type Explain = Box<dyn Fn(std::io::Error) -> SessionEnd>;

/// One session's stream, between the RPC layer and the driver.
pub(crate) struct Wire {
    pub(crate) limits: SessionLimits,
    pub(crate) gate: OutputGate,
    pub(crate) outbox: RefCell<Outbox>,
    inbound: RefCell<Inbound>,
    calls: RefCell<calls::CallLedger>,
    questions: RefCell<questions::Questions>,
    capabilities: RefCell<capabilities::Capabilities>,
    quiet: Cell<Quiet>,
    /// Why the session ended; the first reason stays.
    end: RefCell<Option<SessionEnd>>,
    /// Whether the RPC layer has let go of the connection.
    released_by_rpc: Cell<bool>,
    /// Since when the peer waits for nothing; `None` while it does.
    idle_since: Cell<Option<Instant>>,
    /// Whether we read although too many answers wait, and refuse calls instead.
    reads_on: Cell<bool>,
    /// Bulk transfers to the peer that are under way.
    transfers: Cell<usize>,
    /// Set when no more calls are taken: what their callers are told.
    draining: Cell<Option<ErrorCode>>,
    /// Whether a Bootstrap that names an object is answered with that object ([`restore`]).
    restores_by_id: Cell<bool>,
    /// Woken when `receive` may have something: the RPC layer polls it only then.
    receiver: RefCell<Option<Waker>>,
    /// Woken when there is something to write, or the session ended.
    driver: Arc<StepWaker>,
    explain: Explain,
}

/// Whether anything was said lately.
#[derive(Clone, Copy)]
struct Quiet {
    /// When to ask that again.
    look: Instant,
    /// Whether something was, since it was last asked.
    was_broken: bool,
}

impl Wire {
    pub(crate) fn new(
        input: Box<dyn AsyncRead + Unpin>,
        gate: OutputGate,
        limits: SessionLimits,
        driver: Arc<StepWaker>,
        explain: Explain,
    ) -> Rc<Self> {
        Rc::new(Self {
            outbox: RefCell::new(Outbox::new(gate.clone())),
            inbound: RefCell::new(Inbound::new(input, &limits)),
            calls: RefCell::default(),
            questions: RefCell::default(),
            capabilities: RefCell::default(),
            quiet: Cell::new(Quiet { look: far_in(limits.idle_deadline), was_broken: false }),
            end: RefCell::new(None),
            released_by_rpc: Cell::new(false),
            idle_since: Cell::new(Some(Instant::now())),
            reads_on: Cell::new(false),
            transfers: Cell::new(0),
            draining: Cell::new(None),
            restores_by_id: Cell::new(false),
            receiver: RefCell::new(None),
            limits,
            gate,
            driver,
            explain,
        })
    }

    // ---- the end

    /// Ends the session with `reason`, unless it has ended already.
    pub(crate) fn finish(&self, reason: SessionEnd) {
        {
            let mut end = self.end.borrow_mut();
            if end.is_some() {
                return;
            }
            *end = Some(reason);
        }
        self.wake_receiver();
        self.driver.wake_by_ref();
    }

    pub(crate) fn end(&self) -> Option<SessionEnd> {
        self.end.borrow().clone()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// Whether the RPC layer has failed everything that waited and let go of the connection.
    pub(crate) fn is_released_by_rpc(&self) -> bool {
        self.released_by_rpc.get()
    }

    // ---- calls under way

    /// Since when the peer waits for no answer of ours.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        self.idle_since.get().filter(|_| self.transfers.get() == 0)
    }

    fn note_idle(&self) {
        if self.idle_since.get().is_none() && self.calls.borrow().is_idle() {
            self.idle_since.set(Some(Instant::now()));
        }
    }

    /// Takes no more calls, and ends the session once all that were taken are answered and the answers on their way.
    pub(crate) fn drain(&self, code: ErrorCode) {
        self.draining.set(Some(code));
        self.driver.wake_by_ref();
    }

    /// Ends a session that is drained. Called when everything that could be written was.
    pub(crate) fn end_if_drained(&self) {
        if let Some(code) = self.draining.get()
            && self.calls.borrow().is_idle()
            && self.outbox.borrow().waiting_bytes() == 0
            && self.transfers.get() == 0
        {
            self.finish(SessionEnd::Drained { code });
        }
    }

    /// A bulk transfer to the peer is under way until the guard is dropped.
    pub(crate) fn begin_transfer(self: &Rc<Self>) -> Transfer {
        self.transfers.set(self.transfers.get() + 1);
        Transfer { wire: self.clone() }
    }

    pub(crate) fn explain(&self, error: std::io::Error) -> SessionEnd {
        (self.explain)(error)
    }

    /// How many of the peer's capabilities we keep, if there is nothing else between the two.
    pub(crate) fn imports_if_quiet(&self) -> Option<usize> {
        let is_quiet = self.calls.borrow().is_empty()
            && self.questions.borrow().is_empty()
            && self.outbox.borrow().waiting_bytes() == 0
            && self.transfers.get() == 0;
        if is_quiet { self.capabilities.borrow().imports_if_alone() } else { None }
    }

    // ---- time

    /// When [`pass_deadlines`](Self::pass_deadlines) has something to do.
    pub(crate) fn next_deadline(&self) -> Instant {
        let quiet = self.quiet.get().look;
        let message = self.inbound.borrow().message_deadline(&self.limits).unwrap_or(quiet);
        let answer = self.questions.borrow().next_look().unwrap_or(quiet);
        quiet.min(message).min(answer)
    }

    /// Answers our own calls whose deadlines have passed, and ends a session that nobody needs or that waits for
    /// the end of a message in vain.
    pub(crate) fn pass_deadlines(&self) {
        let now = Instant::now();
        let passed = self.questions.borrow_mut().pass_deadlines(now, &self.limits);
        match passed {
            Ok(questions) => questions.into_iter().for_each(|question| self.answer_overdue(question)),
            Err(()) => {
                let limit = self.limits.unanswered_calls;
                self.finish(SessionEnd::Violation(Violation::Unanswered { limit }));
            }
        }
        if self.inbound.borrow().message_deadline(&self.limits).is_some_and(|deadline| deadline <= now) {
            // The rest of it may have come meanwhile: who reads it decides.
            self.wake_receiver();
        }
        let quiet = self.quiet.get();
        if quiet.look <= now {
            if self.imports_if_quiet() == Some(0) && !quiet.was_broken {
                self.finish(SessionEnd::Idle { after: self.limits.idle_deadline });
            }
            self.quiet.set(Quiet { look: far_in(self.limits.idle_deadline), was_broken: false });
        }
    }

    // ---- in

    /// Whether we have stopped reading until the peer takes more of its answers.
    pub(crate) fn is_reading_paused(&self) -> bool {
        let waiting = self.outbox.borrow().answer_bytes();
        // Refusals wait, too, and a peer that goes on without taking them does not go on for ever.
        let most =
            if self.reads_on.get() { 2 * self.limits.waiting_answer_bytes } else { self.limits.waiting_answer_bytes };
        waiting > most
    }

    /// The peer has taken nothing for a while. If it may not be reading because we are not, we are the one to begin:
    /// it waits for answers that lie behind what we do not read, as we wait for some that lie behind what it does not.
    pub(crate) fn relieve_mutual_stall(&self) {
        if self.is_reading_paused() && !self.reads_on.get() && !self.questions.borrow().is_empty() {
            tracing::debug!("both sides wait for the other to read: reading on, and refusing calls");
            self.reads_on.set(true);
            self.wake_receiver();
        }
    }

    /// The peer has taken something: it may be read from again.
    pub(crate) fn note_written(&self) {
        if self.outbox.borrow().answer_bytes() <= self.limits.waiting_answer_bytes {
            self.reads_on.set(false);
        }
        if !self.is_reading_paused() {
            self.wake_receiver();
        }
    }

    /// Has `receive` look again.
    pub(crate) fn wake_receiver(&self) {
        let waker = self.receiver.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll_receive(&self, context: &mut Context<'_>) -> Poll<capnp::Result<Box<dyn IncomingMessage>>> {
        loop {
            let end = self.end();
            if let Some(end) = &end {
                self.fail_questions(end);
            }
            if let Some(message) = self.inbound.borrow_mut().next_local() {
                return Poll::Ready(Ok(Box::new(Incoming::Local(message))));
            }
            if let Some(end) = end {
                return Poll::Ready(Err(end.to_exception()));
            }
            // Bound to this poll: whoever changes one of the conditions wakes it.
            self.receiver.borrow_mut().replace(context.waker().clone());
            if self.is_reading_paused() {
                self.inbound.borrow_mut().begun = None;
                return Poll::Pending;
            }
            let Poll::Ready(frame) = self.poll_frame(context) else {
                match self.inbound.borrow_mut().slowness(&self.limits) {
                    None => return Poll::Pending,
                    Some(violation) => self.finish(SessionEnd::Violation(violation)),
                }
                continue;
            };
            // Without a frame the stream is over, and so is the session.
            if let Some(message) = frame.and_then(|frame| self.screen(frame)) {
                return Poll::Ready(Ok(Box::new(message)));
            }
        }
    }

    /// Answers every open question of ours with the end of the session, in the order in which they were asked.
    fn fail_questions(&self, end: &SessionEnd) {
        let questions = self.questions.borrow_mut().take();
        let answers = questions.into_iter().map(|question| {
            let mut message = small_message();
            let mut answer = message.init_root::<message::Builder<'_>>().init_return();
            answer.set_answer_id(question);
            answer.set_no_finish_needed(true);
            refuse(answer.init_exception(), exception::Type::Disconnected, end.code(), &end.to_string());
            message
        });
        self.inbound.borrow_mut().local.extend(answers);
    }

    /// The next complete message of the peer; `None` after the last one, which ends the session.
    fn poll_frame(&self, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        let failure = {
            let inbound = &mut *self.inbound.borrow_mut();
            while inbound.frames.is_empty() && inbound.failure.is_none() {
                ready!(inbound.read(context, &self.explain));
            }
            if let Some(frame) = inbound.frames.pop_front() {
                return Poll::Ready(Some(frame));
            }
            inbound.failure.take()
        };
        // Proof of the default: the loop ends only with a frame or a failure.
        let failure = failure.unwrap_or(SessionEnd::Violation(Violation::Truncated));
        self.finish(failure);
        Poll::Ready(None)
    }
}

/// A bulk transfer that is under way.
pub(crate) struct Transfer {
    wire: Rc<Wire>,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.wire.transfers.set(self.wire.transfers.get() - 1);
        // A session that is drained may have waited for this.
        self.wire.driver.wake_by_ref();
    }
}

// ---- capnp-rpc's traits

/// The one peer of a session, as the RPC layer names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OtherEnd;

/// The connection that the RPC layer sees.
pub(crate) struct Connection {
    wire: Rc<Wire>,
}

impl Connection {
    pub(crate) fn new(wire: Rc<Wire>) -> Self {
        Self { wire }
    }
}

impl capnp_rpc::Connection<OtherEnd> for Connection {
    fn get_peer_vat_id(&self) -> OtherEnd {
        OtherEnd
    }

    fn new_outgoing_message(&mut self, first_segment_words: u32) -> Box<dyn OutgoingMessage> {
        let words = first_segment_words.clamp(limits::SMALLEST_SEGMENT_WORDS, limits::FIRST_SEGMENT_WORDS);
        let message = Builder::new(HeapAllocator::new().first_segment_words(words));
        Box::new(Outgoing { message, wire: self.wire.clone() })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn IncomingMessage>>, capnp::Error> {
        let wire = self.wire.clone();
        Promise::from_future(futures::future::poll_fn(move |context| {
            wire.poll_receive(context).map(|received| received.map(Some))
        }))
    }

    /// Never fails: capnp-rpc would print the failure to standard output.
    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), capnp::Error> {
        // No Abort was sent before only if the RPC layer could not form one.
        self.wire.finish(match result {
            Ok(()) => SessionEnd::Local,
            Err(error) => SessionEnd::Violation(Violation::Rpc(error.extra)),
        });
        self.wire.released_by_rpc.set(true);
        self.wire.driver.wake_by_ref();
        Promise::ok(())
    }
}

struct Outgoing {
    message: Builder<HeapAllocator>,
    wire: Rc<Wire>,
}

impl OutgoingMessage for Outgoing {
    fn get_body(&mut self) -> capnp::Result<capnp::any_pointer::Builder<'_>> {
        self.message.get_root()
    }

    fn get_body_as_reader(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.message.get_root_as_reader()
    }

    /// The promise is ready at once: the RPC layer never looks at it, and order is kept by the queue.
    fn send(mut self: Box<Self>) -> (Promise<(), capnp::Error>, Rc<Builder<HeapAllocator>>) {
        self.wire.send(&mut self.message);
        (Promise::ok(()), Rc::new(self.message))
    }

    fn take(self: Box<Self>) -> Builder<HeapAllocator> {
        self.message
    }

    fn size_in_words(&self) -> usize {
        self.message.size_in_words()
    }
}

/// A message for the RPC layer.
enum Incoming {
    /// From the peer.
    Remote(Reader<Frame>),
    /// The peer's answer to a question of ours.
    Answer(KeptAnswer),
    /// Of our own making.
    Local(Builder<HeapAllocator>),
}

impl IncomingMessage for Incoming {
    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        match self {
            Self::Remote(message) => message.get_root(),
            Self::Answer(answer) => answer.get_body(),
            Self::Local(message) => message.get_root_as_reader(),
        }
    }
}

/// An answer, which its caller may keep and read as often as it likes.
///
/// Of any message only so much may be read, and an answer of which all that was read panics in capnp-rpc when it is
/// looked at again, in whatever task that happens. So from the second look on it is read without that bound; but only
/// if everything in it can be read within the bound once, so that it does not lead to more than it contains.
struct KeptAnswer {
    message: Reader<Frame>,
    looks: Cell<u8>,
    again: OnceCell<capnp::Result<Reader<Frame>>>,
}

impl KeptAnswer {
    /// The RPC layer's own two looks, and the first of the caller.
    const BOUNDED_LOOKS: u8 = 3;

    fn new(message: Reader<Frame>) -> Self {
        Self { message, looks: Cell::new(0), again: OnceCell::new() }
    }

    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        if self.looks.get() < Self::BOUNDED_LOOKS {
            self.looks.set(self.looks.get() + 1);
            return self.message.get_root();
        }
        // Few callers look twice, so the copy costs less than sharing every answer.
        match self.again.get_or_init(|| judge::without_bound(self.message.get_segments().clone())) {
            Ok(message) => message.get_root(),
            Err(error) => Err(error.clone()),
        }
    }
}

// ---- messages of our own

fn small_message() -> Builder<HeapAllocator> {
    Builder::new(HeapAllocator::new().first_segment_words(limits::FIRST_SEGMENT_WORDS))
}

fn abort(code: ErrorCode, text: &str) -> Builder<HeapAllocator> {
    let mut message = small_message();
    let mut reason = message.init_root::<message::Builder<'_>>().init_abort();
    reason.set_type(exception::Type::Disconnected);
    reason.set_reason(code.to_wire(text));
    message
}

/// In `after`, or in a year: a time that the clock can say.
pub(crate) fn far_in(after: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + after.min(YEAR)
}

/// `Release` of `references` references to a capability of its receiver's.
fn release(capability: u32, references: u32) -> Builder<HeapAllocator> {
    let mut message = small_message();
    let mut release = message.init_root::<message::Builder<'_>>().init_release();
    release.set_id(capability);
    release.set_reference_count(references);
    message
}

/// The answer to a call that was not carried out. It asks for no Finish, since there is nothing to forget.
fn refusal(question: u32, code: ErrorCode, text: &str) -> Builder<HeapAllocator> {
    let mut message = small_message();
    let mut answer = message.init_root::<message::Builder<'_>>().init_return();
    answer.set_answer_id(question);
    answer.set_no_finish_needed(true);
    refuse(answer.init_exception(), exception::Type::Overloaded, code, text);
    message
}

fn refuse(mut reason: exception::Builder<'_>, kind: exception::Type, code: ErrorCode, text: &str) {
    reason.set_type(kind);
    reason.set_reason(code.to_wire(text));
}

fn exception_text(exception: capnp::Result<exception::Reader<'_>>) -> String {
    exception
        .and_then(|exception| Ok(String::from_utf8_lossy(exception.get_reason()?.as_bytes()).into_owned()))
        .unwrap_or_default()
}

/// `Return` with nothing but an exception in place of one that the RPC layer must not see, or that never came.
fn failed_return(question: u32, no_finish_needed: bool, code: ErrorCode, text: &str) -> Builder<HeapAllocator> {
    let mut message = small_message();
    let mut answer = message.init_root::<message::Builder<'_>>().init_return();
    answer.set_answer_id(question);
    answer.set_release_param_caps(false);
    answer.set_no_finish_needed(no_finish_needed);
    refuse(answer.init_exception(), exception::Type::Failed, code, text);
    message
}
