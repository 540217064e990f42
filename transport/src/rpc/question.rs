//! Calls of ours, and their answers.

use std::{
    cell::{Cell, OnceCell, RefCell},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
};

use capnp::{
    Error, any_pointer,
    capability::{Promise, RemotePromise, Request, Response},
    private::capability::{ClientHook, ParamsHook, PipelineHook, PipelineOp, RequestHook, ResponseHook, ResultsHook},
    traits::{Imbue, ImbueMut},
};
use capnp_rpc::{
    IncomingMessage, OutgoingMessage,
    rpc_capnp::{call, message, message_target, promised_answer, return_},
};

use super::{
    import::Import,
    promise::{BrokenPipeline, Pipeline, PipelinedClient},
    state::{Capabilities, State, broken_because, remote_error},
    stream::{Stream, Streamed},
};

/// First segment asked for a call, and for a message of one struct; the connection has its own bounds.
const CALL_WORDS: u32 = 64;

/// The table.
#[derive(Default)]
pub(super) struct Questions {
    slots: Vec<Option<Asked>>,
    free: Vec<u32>,
    /// How many were ever asked.
    asked: u64,
}

/// Dead when nobody waits for the answer any more.
type Asked = Weak<Question>;

impl Questions {
    fn add(&mut self, asked: Asked) -> u32 {
        match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = Some(asked);
                id
            }
            None => {
                self.slots.push(Some(asked));
                // Four thousand million questions do not fit into memory.
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        }
    }

    fn get(&mut self, id: u32) -> Option<&mut Asked> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    fn remove(&mut self, id: u32) {
        self.slots[id as usize] = None;
        self.free.push(id);
        if self.free.len() == self.slots.len() {
            self.free.clear();
            self.slots.clear();
            if self.slots.capacity() > KEPT_QUESTIONS {
                *self = Self { asked: self.asked, ..Self::default() };
            }
        }
    }

    /// All that somebody waits for, oldest first.
    pub(super) fn all(&self) -> Vec<Rc<Question>> {
        let mut all: Vec<_> = self.slots.iter().flatten().filter_map(Weak::upgrade).collect();
        all.sort_unstable_by_key(|question| question.order);
        all
    }
}

/// Room for so many questions stays when none is open: one call at a time does not allocate for its table.
const KEPT_QUESTIONS: usize = 4;

/// One call. When the last handle goes, the peer is told that the answer is of no more use.
pub(super) struct Question {
    pub(super) state: Rc<State>,
    id: u32,
    /// How many were asked before it.
    order: u64,
    pub(super) outcome: OnceCell<Result<Results, Error>>,
    /// The peer has forgotten it with its answer.
    pub(super) forgotten: Cell<bool>,
    /// Who waits for the answer.
    waiting: RefCell<Option<Waker>>,
    others_waiting: RefCell<Vec<Waker>>,
    /// What was promised by it, to be settled by it.
    pub(super) promises: RefCell<Vec<Weak<PipelinedClient>>>,
    /// What counts it, if it is one of a stream.
    streamed: Cell<Option<Box<Streamed>>>,
}

pub(super) struct Results {
    message: Box<dyn IncomingMessage>,
    capabilities: Capabilities,
}

impl Results {
    fn content(&self) -> Result<any_pointer::Reader<'_>, Error> {
        let answer = match self.message.get_body()?.get_as::<message::Reader<'_>>()?.which()? {
            message::Return(answer) => answer?,
            _ => return Err(Error::failed("an answer that is none".to_owned())),
        };
        match answer.which()? {
            return_::Results(payload) => {
                let mut payload = payload?;
                payload.imbue(&self.capabilities);
                Ok(payload.get_content())
            }
            _ => Err(Error::failed("an answer without results".to_owned())),
        }
    }

    pub(super) fn capability(&self, operations: &[PipelineOp]) -> Result<Box<dyn ClientHook>, Error> {
        self.content()?.get_pipelined_cap(operations)
    }
}

impl Question {
    /// Takes a number.
    fn new(state: &Rc<State>) -> Rc<Self> {
        let mut questions = state.questions.borrow_mut();
        let id = questions.add(Asked::new());
        questions.asked += 1;
        let question = Rc::new(Self {
            state: state.clone(),
            id,
            order: questions.asked,
            outcome: OnceCell::new(),
            forgotten: Cell::new(false),
            waiting: RefCell::default(),
            others_waiting: RefCell::default(),
            promises: RefCell::default(),
            streamed: Cell::new(None),
        });
        if let Some(asked) = questions.get(id) {
            *asked = Rc::downgrade(&question);
        }
        question
    }

    /// It will not be answered.
    pub(super) fn fail(&self, error: Error) {
        self.settle(Err(error));
    }

    fn settle(&self, outcome: Result<Results, Error>) {
        if self.outcome.set(outcome).is_err() {
            return;
        }
        // Promises before who waits: calls through them and calls after the answer go the same way then.
        let promises = self.promises.take();
        for promise in promises.iter().filter_map(Weak::upgrade) {
            promise.settle();
        }
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
        self.others_waiting.take().into_iter().for_each(Waker::wake);
        if let (Some(streamed), Some(outcome)) = (self.streamed.take(), self.outcome.get()) {
            streamed.answered(outcome.as_ref().map(drop).map_err(Clone::clone));
        }
    }

    /// Nobody waits for the answer: it is counted.
    pub(super) fn is_streamed(&self, streamed: Streamed) {
        self.streamed.set(Some(Box::new(streamed)));
    }

    pub(super) fn poll(&self, context: &Context<'_>) -> Poll<Result<&Results, Error>> {
        match self.outcome.get() {
            Some(Ok(results)) => Poll::Ready(Ok(results)),
            Some(Err(error)) => Poll::Ready(Err(error.clone())),
            None => {
                let mut waiting = self.waiting.borrow_mut();
                match &*waiting {
                    Some(waker) if !waker.will_wake(context.waker()) => {
                        let mut others = self.others_waiting.borrow_mut();
                        if !others.iter().any(|other| other.will_wake(context.waker())) {
                            others.push(context.waker().clone());
                        }
                    }
                    Some(_) => {}
                    None => *waiting = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if self.forgotten.get() || self.state.has_ended() {
            return;
        }
        let (id, is_answered) = (self.id, self.outcome.get().is_some());
        // Cannot fail: the message has room for its root.
        let _ = self.state.tell(|root| {
            let mut finish = root.init_finish();
            finish.set_question_id(id);
            // What comes with an answer that nobody takes is not ours.
            finish.set_release_result_caps(!is_answered);
            Ok(())
        });
        if is_answered {
            self.state.questions.borrow_mut().remove(id);
        }
    }
}

/// The peer has answered question `id` with `message`.
pub(super) fn answered(state: &Rc<State>, id: u32, message: Box<dyn IncomingMessage>) -> Result<(), Error> {
    let (outcome, question, is_forgotten) = {
        let answer = match message.get_body()?.get_as::<message::Reader<'_>>()?.which()? {
            message::Return(answer) => answer?,
            _ => return Err(Error::failed("an answer that is none".to_owned())),
        };
        let mut questions = state.questions.borrow_mut();
        let Some(asked) = questions.get(id) else {
            return Err(Error::failed(format!("the peer answered question {id}, which was not asked")));
        };
        let question = asked.upgrade();
        if question.as_ref().is_some_and(|question| question.outcome.get().is_some()) {
            return Err(Error::failed(format!("the peer answered question {id} twice")));
        }
        drop(questions);
        let is_forgotten = answer.get_no_finish_needed();
        let outcome = match &question {
            // Given up, and the peer was told to take back what it gives with the answer.
            None => None,
            Some(question) => match outcome_of(state, answer) {
                Ok(outcome) => Some(outcome),
                Err(error) => {
                    // Nothing else tells whoever waits: there will be no other answer.
                    question.fail(error.clone());
                    return Err(error);
                }
            },
        };
        if is_forgotten || question.is_none() {
            state.questions.borrow_mut().remove(id);
        }
        (outcome, question, is_forgotten)
    };
    if let (Some(question), Some(outcome)) = (question, outcome) {
        question.forgotten.set(is_forgotten);
        question.settle(outcome.map(|capabilities| Results { message, capabilities }));
    }
    Ok(())
}

/// What the peer has answered. The outer error is that of an answer that cannot be read.
fn outcome_of(state: &Rc<State>, answer: return_::Reader<'_>) -> Result<Result<Capabilities, Error>, Error> {
    Ok(match answer.which()? {
        return_::Results(payload) => Ok(state.receive_capabilities(payload?.get_cap_table()?)?),
        return_::Exception(exception) => Err(remote_error(exception?)),
        _ => Err(Error::unimplemented("the peer answered in a way that this side never asks for".to_owned())),
    })
}

/// Asks the peer for its bootstrap capability.
pub(super) fn bootstrap(state: &Rc<State>) -> Box<dyn ClientHook> {
    if let Err(error) = state.check() {
        return broken_because(error);
    }
    let question = Question::new(state);
    let asked = state.tell(|root| {
        root.init_bootstrap().set_question_id(question.id);
        Ok(())
    });
    match asked {
        Ok(()) => PipelinedClient::promised(&question, Vec::new()),
        Err(error) => broken_because(error),
    }
}

// ---- calls

/// Where a call goes.
#[derive(Clone)]
pub(super) enum Route {
    Import(Rc<Import>),
    /// To what an answer will bring, with the question that must not be forgotten meanwhile.
    Promise(Rc<PipelinedClient>, Rc<Question>),
}

impl Route {
    fn state(&self) -> &Rc<State> {
        match self {
            Self::Import(import) => &import.state,
            Self::Promise(_, question) => &question.state,
        }
    }

    fn stream(&self) -> &Stream {
        match self {
            Self::Import(import) => &import.stream,
            Self::Promise(promise, _) => &promise.stream,
        }
    }

    fn write(&self, mut target: message_target::Builder<'_>) {
        match self {
            Self::Import(import) => target.set_imported_cap(import.id),
            Self::Promise(promise, question) => {
                write_promise(question, &promise.operations, target.init_promised_answer())
            }
        }
    }
}

pub(super) fn write_promise(question: &Question, operations: &[PipelineOp], mut target: promised_answer::Builder<'_>) {
    target.set_question_id(question.id);
    // A path through a message has at most as many steps as its reader follows.
    let count = u32::try_from(operations.len()).unwrap_or(u32::MAX);
    let mut transform = target.init_transform(count);
    for (index, operation) in (0..count).zip(operations) {
        if let PipelineOp::GetPointerField(field) = operation {
            transform.reborrow().get(index).set_get_pointer_field(*field);
        }
    }
}

/// A call that is not sent.
struct NewCall {
    route: Route,
    message: Box<dyn OutgoingMessage>,
    capabilities: Capabilities,
}

/// Begins a call.
pub(super) fn new_request(
    route: Route,
    interface_id: u64,
    method_id: u16,
) -> Request<any_pointer::Owned, any_pointer::Owned> {
    let begun = route.state().new_message(CALL_WORDS).and_then(|mut message| {
        let mut call = message.get_body()?.init_as::<message::Builder<'_>>().init_call();
        call.set_interface_id(interface_id);
        call.set_method_id(method_id);
        route.write(call.reborrow().init_target());
        call.init_params();
        Ok(message)
    });
    match begun {
        Ok(message) => Request::new(Box::new(NewCall { route, message, capabilities: Vec::new() })),
        Err(error) => broken_because(error).new_call(interface_id, method_id, None),
    }
}

/// Calls `hook` with parameters that came for another, and answers with its results.
pub(super) fn forward(
    hook: &dyn ClientHook,
    interface_id: u64,
    method_id: u16,
    params: &dyn ParamsHook,
    mut results: Box<dyn ResultsHook>,
) -> Promise<(), Error> {
    let sent = params.get().and_then(|params| {
        let mut request = hook.new_call(interface_id, method_id, None);
        request.get().set_as(params)?;
        Ok(request.send())
    });
    match sent {
        Err(error) => Promise::err(error),
        Ok(RemotePromise { promise, .. }) => Promise::from_future(async move {
            let response = promise.await?;
            results.get()?.set_as(response.get()?)
        }),
    }
}

impl NewCall {
    // Proof: `new_request` has made this message, and it has been in nobody else's hands.
    #[allow(clippy::expect_used)]
    fn call(&mut self) -> call::Builder<'_> {
        let root = self.message.get_body().and_then(|body| body.get_as::<message::Builder<'_>>());
        match root.and_then(|root| Ok(root.which()?)) {
            Ok(message::Call(call)) => call.expect("a call"),
            _ => unreachable!("only calls are made here"),
        }
    }

    /// Numbers the call. It is ready to be sent then. The capabilities are to be kept until it is: what names one of the
    /// peer's must be sent before the release of what was the last handle to it.
    fn ask(&mut self) -> Result<(Rc<Question>, Capabilities), Error> {
        let state = self.route.state().clone();
        state.check()?;
        if let Route::Promise(_, question) = &self.route
            && question.forgotten.get()
        {
            // Its number may be that of another question by now: the call would go to what that one brings.
            return Err(Error::failed("a call to what an answer brought that brought no capabilities".to_owned()));
        }
        let capabilities = std::mem::take(&mut self.capabilities);
        if !capabilities.is_empty() {
            // What is lent with a call comes back by releases: the connection makes them of an answer that says so.
            state.describe(&capabilities, self.call().get_params()?)?;
        }
        let question = Question::new(&state);
        self.call().set_question_id(question.id);
        Ok((question, capabilities))
    }
}

impl RequestHook for NewCall {
    // Proof: as for `call`.
    #[allow(clippy::expect_used)]
    fn get(&mut self) -> any_pointer::Builder<'_> {
        let root = self.message.get_body().and_then(|body| body.get_as::<message::Builder<'_>>());
        let Ok(message::Call(Ok(call))) = root.and_then(|root| Ok(root.which()?)) else {
            unreachable!("only calls are made here")
        };
        let mut content = call.get_params().expect("parameters").get_content();
        content.imbue_mut(&mut self.capabilities);
        content
    }

    fn get_brand(&self) -> usize {
        self.route.state().brand()
    }

    fn send(mut self: Box<Self>) -> RemotePromise<any_pointer::Owned> {
        match self.ask() {
            Ok((question, capabilities)) => {
                // The connection keeps the order, and its promise is of no use.
                let _ = self.message.send();
                drop(capabilities);
                let pipeline = any_pointer::Pipeline::new(Box::new(Pipeline(question.clone())));
                RemotePromise { promise: Promise::from_future(Waiting(question)), pipeline }
            }
            Err(error) => RemotePromise {
                promise: Promise::err(error.clone()),
                pipeline: any_pointer::Pipeline::new(Box::new(BrokenPipeline(error))),
            },
        }
    }

    fn send_streaming(mut self: Box<Self>) -> Promise<(), Error> {
        match self.ask() {
            Ok((question, capabilities)) => {
                let bytes = self.message.size_in_words().saturating_mul(8);
                // The connection keeps the order, and its promise is of no use.
                let _ = self.message.send();
                drop(capabilities);
                self.route.stream().count(&question, bytes)
            }
            Err(error) => Promise::err(error),
        }
    }

    /// Answers always travel the way of the call.
    fn tail_send(self: Box<Self>) -> Option<(u32, Promise<(), Error>, Box<dyn PipelineHook>)> {
        None
    }
}

/// Waits for an answer.
struct Waiting(Rc<Question>);

impl Future for Waiting {
    type Output = Result<Response<any_pointer::Owned>, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answered = self.0.poll(context);
        answered.map_ok(|_| Response::new(Box::new(Answered(self.0.clone()))))
    }
}

/// An answer.
struct Answered(Rc<Question>);

impl ResponseHook for Answered {
    fn get(&self) -> Result<any_pointer::Reader<'_>, Error> {
        match self.0.outcome.get() {
            Some(Ok(results)) => results.content(),
            Some(Err(error)) => Err(error.clone()),
            None => Err(Error::failed("an answer that has not come".to_owned())),
        }
    }
}
