//! Calls of the peer: run, answered, and kept as long as it may use the answer.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
};

use capnp::{
    Error, any_pointer,
    capability::Promise,
    message::{Builder, HeapAllocator},
    private::capability::{ClientHook, ParamsHook, PipelineOp},
    traits::{Imbue, ImbueMut},
};
use capnp_rpc::{
    IncomingMessage, OutgoingMessage,
    rpc_capnp::{call, disembargo, message, return_},
};
use futures::FutureExt;

use hooks::{Params, Results};

use super::{
    passed_on::PassedOn,
    state::{Capabilities, State, Target, broken, broken_because, describe_error},
};

mod hooks;

/// First segment asked for an answer; the connection has its own bounds.
const RETURN_WORDS: u32 = 64;

/// The table.
#[derive(Default)]
pub(super) struct Answers(HashMap<u32, Answer>);

enum Answer {
    Running(Rc<Call>),
    Given(Given),
}

impl Answers {
    /// Stops everything that runs, and forgets everything that was answered.
    pub(super) fn cancel(self) {
        for answer in self.0.into_values() {
            if let Answer::Running(call) = answer {
                call.stop();
            }
        }
    }

    fn remove(&mut self, id: u32) -> Option<Answer> {
        let answer = self.0.remove(&id);
        if self.0.is_empty() {
            // Idle sessions hold no table.
            self.0 = HashMap::new();
        }
        answer
    }
}

/// What a call was answered with. Calls may still be made to what it brought.
struct Given {
    content: Rc<Content>,
    /// What the peer holds because of it.
    exports: Vec<u32>,
}

enum Content {
    /// As it was sent.
    Sent(Rc<Builder<HeapAllocator>>, Capabilities),
    /// As the object left it for calls that were made before the answer.
    Early(Builder<HeapAllocator>, Capabilities),
    Failed(Error),
}

impl Content {
    fn capability(&self, operations: &[PipelineOp]) -> Box<dyn ClientHook> {
        self.find(operations).unwrap_or_else(broken_because)
    }

    fn find(&self, operations: &[PipelineOp]) -> Result<Box<dyn ClientHook>, Error> {
        match self {
            Self::Failed(error) => Err(error.clone()),
            Self::Early(message, capabilities) => {
                let mut content = message.get_root_as_reader::<any_pointer::Reader<'_>>()?;
                content.imbue(capabilities);
                content.get_pipelined_cap(operations)
            }
            Self::Sent(message, capabilities) => {
                let message::Return(answer) = message.get_root_as_reader::<message::Reader<'_>>()?.which()? else {
                    return Err(Error::failed("an answer that is none".to_owned()));
                };
                let return_::Results(payload) = answer?.which()? else {
                    return Err(Error::failed("an answer without results".to_owned()));
                };
                let mut payload = payload?;
                payload.imbue(capabilities);
                payload.get_content().get_pipelined_cap(operations)
            }
        }
    }
}

// ---- one call

/// A call that runs, or that waits for another to bring its target.
pub(super) struct Call {
    state: Rc<State>,
    id: u32,
    /// The object's work; taken while it runs.
    work: Cell<Option<Promise<(), Error>>>,
    outcome: Cell<Option<Result<(), Error>>>,
    /// What the object has written, once it has let go of it.
    written: Cell<Option<Written>>,
    /// What there is of the results before their end, for the calls that wait for them.
    early: RefCell<Option<Rc<Content>>>,
    /// Calls to what this one will bring, in their order.
    waiting: RefCell<Vec<Waits>>,
    /// At so many it is looked whether all of them are still wanted.
    prune_at: Cell<usize>,
    /// How many of them have said since that they wait no more.
    given_up: Cell<usize>,
    /// What this one is to be given to, as long as it waits for another.
    pending: Cell<Option<Pending>>,
    /// The one that it waits for.
    waits_for: RefCell<Weak<Call>>,
    waker: Cell<Option<Waker>>,
    /// The peer is not interested in the answer any more.
    is_finished: Cell<bool>,
    is_over: Cell<bool>,
}

/// A call that waits for another one to bring its target.
struct Pending {
    operations: Vec<PipelineOp>,
    method: Method,
    params: Box<dyn ParamsHook>,
}

/// So many may wait for a call before it is looked whether they still do.
const WAITING_BEFORE_PRUNING: usize = 64;

enum Waits {
    Call(Rc<Call>),
    Capability(Weak<PassedOn>),
}

impl Waits {
    fn is_given_up(&self) -> bool {
        match self {
            Self::Call(call) => call.is_over.get(),
            Self::Capability(promise) => promise.strong_count() == 0,
        }
    }
}

#[derive(Clone, Copy)]
struct Method {
    interface_id: u64,
    method_id: u16,
}

/// Results under way.
struct Written {
    message: Option<Box<dyn OutgoingMessage>>,
    capabilities: Capabilities,
}

/// What a message asks for, read.
pub(super) struct Begun {
    id: u32,
    target: Target,
    method: Method,
    capabilities: Capabilities,
}

impl Begun {
    pub(super) fn read(state: &Rc<State>, call: call::Reader<'_>) -> Result<Self, Error> {
        match call.get_send_results_to().which()? {
            call::send_results_to::Caller(()) => {}
            _ => return Err(Error::failed("the peer wants an answer sent elsewhere".to_owned())),
        }
        Ok(Self {
            id: call.get_question_id(),
            target: Target::read(state, call.get_target()?)?,
            method: Method { interface_id: call.get_interface_id(), method_id: call.get_method_id() },
            capabilities: state.receive_capabilities(call.get_params()?.get_cap_table()?)?,
        })
    }

    /// Has it run, or wait for its turn.
    pub(super) fn begin(self, state: &Rc<State>, message: Box<dyn IncomingMessage>) -> Result<(), Error> {
        let call = Rc::new(Call {
            state: state.clone(),
            id: self.id,
            work: Cell::new(None),
            outcome: Cell::new(None),
            written: Cell::new(None),
            early: RefCell::default(),
            waiting: RefCell::default(),
            prune_at: Cell::new(WAITING_BEFORE_PRUNING),
            given_up: Cell::new(0),
            pending: Cell::new(None),
            waits_for: RefCell::default(),
            waker: Cell::new(None),
            is_finished: Cell::new(false),
            is_over: Cell::new(false),
        });
        {
            let answers = &mut state.answers.borrow_mut().0;
            if answers.contains_key(&self.id) {
                return Err(Error::failed(format!("the peer asked question {} twice", self.id)));
            }
            answers.insert(self.id, Answer::Running(call.clone()));
        }
        let params: Box<dyn ParamsHook> = Box::new(Params { message, capabilities: self.capabilities });
        let hook = match self.target {
            Target::Settled(hook) => hook,
            // It would wait for itself.
            Target::Promised { question, .. } if question == self.id => broken(GONE.to_owned()),
            Target::Promised { question, operations } => match Found::at(state, question) {
                Found::Content(content) => content.capability(&operations),
                Found::Nothing => broken(GONE.to_owned()),
                Found::Running(other) => {
                    call.pending.set(Some(Pending { operations, method: self.method, params }));
                    *call.waits_for.borrow_mut() = Rc::downgrade(&other);
                    other.add_waiting(Waits::Call(call));
                    return Ok(());
                }
            },
        };
        call.start(hook.as_ref(), self.method, params);
        Ok(())
    }
}

const GONE: &str = "a call to what an answer brought that brought nothing, or that the peer has let go of";

/// What there is of an answer.
enum Found {
    Content(Rc<Content>),
    Running(Rc<Call>),
    Nothing,
}

impl Found {
    fn at(state: &State, question: u32) -> Self {
        match state.answers.borrow().0.get(&question) {
            None => Self::Nothing,
            Some(Answer::Given(given)) => Self::Content(given.content.clone()),
            Some(Answer::Running(call)) => match &*call.early.borrow() {
                Some(content) => Self::Content(content.clone()),
                None => Self::Running(call.clone()),
            },
        }
    }
}

/// What the answer to a question of the peer brings, or will.
pub(super) fn promised(state: &State, question: u32, operations: Vec<PipelineOp>) -> Box<dyn ClientHook> {
    match Found::at(state, question) {
        Found::Content(content) => content.capability(&operations),
        Found::Nothing => broken(GONE.to_owned()),
        Found::Running(call) => {
            let promise = PassedOn::new(call.clone(), operations);
            call.add_waiting(Waits::Capability(Rc::downgrade(&promise)));
            promise.hook()
        }
    }
}

/// What a capability is kept with that was passed on before its answer was there.
///
/// If that is again a promise of this process, it may be this very one: an object can be brought what its own result will
/// be, and give it as its result. Whoever follows such a capability follows it for ever, so it is broken, and with it some that
/// would have been kept later. Promises of a peer's answers look after that themselves when they are settled.
fn brought(mut hook: Box<dyn ClientHook>) -> Box<dyn ClientHook> {
    loop {
        while let Some(resolved) = hook.get_resolved() {
            hook = resolved;
        }
        if hook.get_brand() != OF_THIS_PROCESS {
            return hook;
        }
        match hook.when_more_resolved().map(FutureExt::now_or_never) {
            Some(None) => {
                return broken("it was passed on before it was there, and then there was another promise".to_owned());
            }
            Some(Some(Err(error))) => return broken_because(error),
            // What it is kept with may be a promise again.
            Some(Some(Ok(resolved))) => hook = resolved,
            None => return hook,
        }
    }
}

/// What hooks of capnp-rpc call the objects and promises of this process.
pub(super) const OF_THIS_PROCESS: usize = 0;

impl Call {
    fn start(self: Rc<Self>, hook: &dyn ClientHook, method: Method, params: Box<dyn ParamsHook>) {
        if self.is_over.get() {
            return;
        }
        let results =
            Results { call: self.clone(), written: Some(Written { message: None, capabilities: Vec::new() }) };
        let work = hook.call(method.interface_id, method.method_id, params, Box::new(results));
        self.work.set(Some(work));
        let state = self.state.clone();
        state.started.borrow_mut().push_back(self);
    }

    /// Does what can be done now; ready when it is answered, or nobody wants an answer.
    pub(super) fn poll(self: &Rc<Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.is_over.get() {
            return Poll::Ready(());
        }
        if let Some(mut work) = self.work.take() {
            match Pin::new(&mut work).poll(context) {
                Poll::Ready(outcome) => {
                    drop(work);
                    self.outcome.set(Some(outcome));
                }
                // Given up meanwhile: the work is dropped.
                Poll::Pending if self.is_over.get() => {}
                Poll::Pending => {
                    self.work.set(Some(work));
                    self.waker.set(Some(context.waker().clone()));
                    return Poll::Pending;
                }
            }
        }
        if self.is_over.get() {
            // By what it did, or let go of, at its end.
            return Poll::Ready(());
        }
        match self.outcome.take() {
            Some(Err(error)) => self.answer(Err(error)),
            Some(Ok(())) => match self.written.take() {
                Some(written) => self.answer(Ok(written)),
                None => {
                    // The object has done its work and left its results with a task of its own.
                    self.outcome.set(Some(Ok(())));
                    self.waker.set(Some(context.waker().clone()));
                    return Poll::Pending;
                }
            },
            // Proof: there was work, or an outcome of it.
            None => {}
        }
        Poll::Ready(())
    }

    fn add_waiting(&self, waits: Waits) {
        if self.waiting.borrow().len() >= self.prune_at.get() {
            self.prune();
            self.prune_at.set(WAITING_BEFORE_PRUNING.max(2 * self.waiting.borrow().len()));
        }
        self.waiting.borrow_mut().push(waits);
    }

    /// Lets go of those who do not wait any more.
    fn prune(&self) {
        let (kept, given_up) = self.waiting.take().into_iter().partition(|waits| !waits.is_given_up());
        *self.waiting.borrow_mut() = kept;
        self.given_up.set(0);
        // Dropped with nothing borrowed.
        let _: Vec<Waits> = given_up;
    }

    /// One of those who waited has said that it waits no more: was it the last, and the peer does not want the answer?
    ///
    /// There may be a million, so they are not looked through each time: only when all may be gone, or half of them.
    fn loses_one(&self) -> bool {
        if self.is_over.get() {
            return false;
        }
        self.given_up.set(self.given_up.get() + 1);
        let (given_up, waiting) = (self.given_up.get(), self.waiting.borrow().len());
        if given_up >= waiting || given_up >= WAITING_BEFORE_PRUNING.max(waiting / 2) {
            self.prune();
        }
        self.is_finished.get() && self.waiting.borrow().is_empty()
    }

    /// One of those who waited for what it brings does so no more.
    ///
    /// What ends with this call may have waited for the result of another one, which ends with it, and so on. A peer can make
    /// that as long as it may have calls, whatever [`PIPELINE_DEPTH`](crate::limits::PIPELINE_DEPTH) says of those that
    /// wait openly. So one is given up after the other, and not one within the other.
    pub(super) fn lost_interest(self: Rc<Self>) {
        let state = self.state.clone();
        state.unwanted.borrow_mut().push_back(self);
        let Some(_one) = GivesUp::begin(&state) else { return };
        loop {
            let next = state.unwanted.borrow_mut().pop_front();
            let Some(call) = next else { break };
            if call.loses_one() {
                call.give_up();
            }
        }
    }

    /// The peer does not want the answer, and nobody waits for what it brings: stops it, and what only it waited for.
    fn give_up(self: Rc<Self>) {
        let mut next = Some(self);
        while let Some(call) = next.take() {
            call.stop();
            call.forget();
            call.cancel();
            let waited_for = call.waits_for.take().upgrade();
            next = waited_for.filter(|call| call.loses_one());
        }
    }

    /// Stops it, whatever it does.
    fn stop(&self) {
        self.is_over.set(true);
        let pending = self.pending.take();
        drop(pending);
        let work = self.work.take();
        drop(work);
        for waits in self.waiting.take() {
            if let Waits::Capability(promise) = waits
                && let Some(promise) = promise.upgrade()
            {
                promise.settle(broken(GONE.to_owned()));
            }
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn answer(self: &Rc<Self>, result: Result<Written, Error>) {
        self.is_over.set(true);
        if self.state.has_ended() {
            return;
        }
        let content = match result.and_then(|written| self.give(written)) {
            Ok(content) => content,
            Err(error) => self.refuse(error),
        };
        self.serve_waiting(&content);
    }

    /// Sends the results, unless nobody wants them.
    fn give(&self, mut written: Written) -> Result<Rc<Content>, Error> {
        let mut message = match written.message.take() {
            Some(message) => message,
            None => self.new_return()?,
        };
        let wanted = !self.is_finished.get();
        let forgotten = written.capabilities.is_empty();
        let mut exports = Vec::new();
        if wanted {
            let message::Return(answer) = message.get_body()?.get_as::<message::Builder<'_>>()?.which()? else {
                return Err(Error::failed("results that are no answer".to_owned()));
            };
            let mut answer = answer?;
            // Nothing can be asked of an answer without capabilities.
            answer.set_no_finish_needed(forgotten);
            let return_::Results(payload) = answer.which()? else {
                return Err(Error::failed("an answer without results".to_owned()));
            };
            exports = self.state.describe(&written.capabilities, payload?)?;
        }
        let message = if wanted { message.send().1 } else { Rc::new(message.take()) };
        let content = Rc::new(Content::Sent(message, written.capabilities));
        if wanted && !forgotten {
            let given = Given { content: content.clone(), exports };
            let before = self.state.answers.borrow_mut().0.insert(self.id, Answer::Given(given));
            drop(before);
        } else {
            self.forget();
        }
        if !wanted {
            self.cancel();
        }
        Ok(content)
    }

    /// Sends the error in place of results.
    fn refuse(&self, error: Error) -> Rc<Content> {
        let id = self.id;
        let content = Rc::new(Content::Failed(error.clone()));
        if self.is_finished.get() {
            self.forget();
            self.cancel();
            return content;
        }
        // Cannot fail: the builder grows.
        let _ = self.state.tell(|root| {
            let mut answer = root.init_return();
            answer.set_answer_id(id);
            answer.set_release_param_caps(false);
            describe_error(&error, answer.init_exception());
            Ok(())
        });
        // Kept until the peer has seen it, for the calls that it makes until then.
        let given = Given { content: content.clone(), exports: Vec::new() };
        let before = self.state.answers.borrow_mut().0.insert(id, Answer::Given(given));
        drop(before);
        content
    }

    fn forget(&self) {
        let before = self.state.answers.borrow_mut().remove(self.id);
        drop(before);
    }

    /// Tells the peer that there will be no answer, so that it may use the number again.
    fn cancel(&self) {
        let id = self.id;
        // Cannot fail: the message has room for its root.
        let _ = self.state.tell(|root| {
            let mut answer = root.init_return();
            answer.set_answer_id(id);
            answer.set_release_param_caps(false);
            answer.set_canceled(());
            Ok(())
        });
    }

    /// Calls that waited for the results go on, in their order.
    fn serve_waiting(&self, content: &Content) {
        for waits in self.waiting.take() {
            match waits {
                Waits::Call(call) => {
                    // Nothing is left of it if it was given up.
                    if let Some(Pending { operations, method, params }) = call.pending.take() {
                        call.start(content.capability(&operations).as_ref(), method, params);
                    }
                }
                Waits::Capability(promise) => {
                    // Whoever it was passed on to may have lost interest.
                    if let Some(promise) = promise.upgrade() {
                        promise.settle(content.find(&promise.operations).map_or_else(broken_because, brought));
                    }
                }
            }
        }
    }

    fn new_return(&self) -> Result<Box<dyn OutgoingMessage>, Error> {
        let mut message = self.state.new_message(RETURN_WORDS)?;
        let mut answer = message.get_body()?.init_as::<message::Builder<'_>>().init_return();
        answer.set_answer_id(self.id);
        answer.set_release_param_caps(false);
        answer.init_results();
        Ok(message)
    }
}

/// Somebody gives up calls that nobody wants; others leave theirs to him.
struct GivesUp<'a>(&'a State);

impl<'a> GivesUp<'a> {
    fn begin(state: &'a State) -> Option<Self> {
        (!state.is_giving_up.replace(true)).then_some(Self(state))
    }
}

impl Drop for GivesUp<'_> {
    fn drop(&mut self) {
        self.0.is_giving_up.set(false);
    }
}

/// A call that did not end at once.
pub(super) struct RunningCall(pub(super) Rc<Call>);

impl Future for RunningCall {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.poll(context)
    }
}

/// The peer lets go of the answer to its question `id`, or is not interested in it any more.
pub(super) fn finish(state: &Rc<State>, id: u32, release: bool) -> Result<(), Error> {
    let running = match state.answers.borrow().0.get(&id) {
        Some(Answer::Running(call)) => Some(call.clone()),
        Some(Answer::Given(_)) => None,
        // An answer that needed none.
        None => return Ok(()),
    };
    let Some(call) = running else {
        let removed = state.answers.borrow_mut().remove(id);
        if let Some(Answer::Given(given)) = &removed
            && release
        {
            state.release_exports(&given.exports)?;
        }
        return Ok(());
    };
    if call.is_finished.replace(true) {
        // Whoever waits says so when it waits no more.
        return Ok(());
    }
    // What waits for its results still wants them.
    if call.waiting.borrow().iter().all(Waits::is_given_up) {
        call.give_up();
    }
    Ok(())
}

/// Gives the peer what it gets first.
pub(super) fn bootstrap(state: &Rc<State>, id: u32) -> Result<(), Error> {
    if state.answers.borrow().0.contains_key(&id) {
        return Err(Error::failed(format!("the peer asked question {id} twice")));
    }
    let mut message = state.new_message(RETURN_WORDS)?;
    let mut capabilities = Capabilities::new();
    let mut answer = message.get_body()?.init_as::<message::Builder<'_>>().init_return();
    answer.set_answer_id(id);
    answer.set_release_param_caps(false);
    let mut payload = answer.init_results();
    let mut content = payload.reborrow().get_content();
    content.imbue_mut(&mut capabilities);
    content.set_as_capability(state.bootstrap.add_ref());
    let exports = state.describe(&capabilities, payload)?;
    let content = Rc::new(Content::Sent(message.send().1, capabilities));
    state.answers.borrow_mut().0.insert(id, Answer::Given(Given { content, exports }));
    Ok(())
}

/// The peer wants to know that what it sent to one of its own capabilities through us has come back to it.
pub(super) fn disembargo(state: &Rc<State>, disembargo: disembargo::Reader<'_>) -> Result<(), Error> {
    let disembargo::context::SenderLoopback(embargo) = disembargo.get_context().which()? else {
        return Err(Error::failed("the peer lifts an embargo that this side has not laid".to_owned()));
    };
    let mut target = match Target::read(state, disembargo.get_target()?)? {
        Target::Settled(hook) => hook,
        Target::Promised { question, operations } => match Found::at(state, question) {
            Found::Content(content) => content.capability(&operations),
            Found::Running(_) | Found::Nothing => broken(GONE.to_owned()),
        },
    };
    while let Some(resolved) = target.get_resolved() {
        target = resolved;
    }
    let pointer = target.get_ptr();
    let is_own = target.get_brand() == state.brand();
    let import = state.imports.borrow().id_of(pointer).filter(|_| is_own);
    let promise = state.promises.borrow().get(&pointer).and_then(Weak::upgrade).filter(|_| is_own);
    if import.is_none() && promise.is_none() {
        return Err(Error::failed("the peer lifts an embargo on something that is not its own".to_owned()));
    }
    // What was sent to it before has left already: calls are forwarded at once.
    state.tell(|root| {
        let mut answer = root.init_disembargo();
        answer.reborrow().init_context().set_receiver_loopback(embargo);
        let mut target = answer.init_target();
        match (import, promise) {
            (Some(import), _) => target.set_imported_cap(import),
            (None, Some(promise)) => promise.name(target.init_promised_answer()),
            (None, None) => {}
        }
        Ok(())
    })
}
