//! Capabilities that an answer will bring, and that can be called before it comes.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use capnp::{
    Error, MessageSize, any_pointer,
    capability::{Promise, Request},
    private::capability::{ClientHook, ParamsHook, PipelineHook, PipelineOp, ResultsHook},
};
use capnp_rpc::rpc_capnp::promised_answer;

use super::{
    question::{Question, Route, forward, new_request, write_promise},
    state::{State, broken_because},
    stream::Stream,
};

/// What a call promises.
pub(super) struct Pipeline(pub(super) Rc<Question>);

impl PipelineHook for Pipeline {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Self(self.0.clone()))
    }

    fn get_pipelined_cap(&self, operations: &[PipelineOp]) -> Box<dyn ClientHook> {
        self.get_pipelined_cap_move(operations.to_vec())
    }

    fn get_pipelined_cap_move(&self, operations: Vec<PipelineOp>) -> Box<dyn ClientHook> {
        match self.0.outcome.get() {
            None => PipelinedClient::promised(&self.0, operations),
            Some(Ok(results)) => results.capability(&operations).unwrap_or_else(broken_because),
            Some(Err(error)) => broken_because(error.clone()),
        }
    }
}

pub(super) struct BrokenPipeline(pub(super) Error);

impl PipelineHook for BrokenPipeline {
    fn add_ref(&self) -> Box<dyn PipelineHook> {
        Box::new(Self(self.0.clone()))
    }

    fn get_pipelined_cap(&self, _: &[PipelineOp]) -> Box<dyn ClientHook> {
        broken_because(self.0.clone())
    }
}

/// A capability that an answer will bring.
///
/// Once it has, this stands for it, with one exception. If it turns out to be one of this side, which the peer only passes
/// on, calls may be on their way through the peer that would be overtaken by calls that go to it directly; so if any was
/// made, all go on through the peer.
pub(super) struct PipelinedClient {
    state: Rc<State>,
    pub(super) operations: Vec<PipelineOp>,
    target: RefCell<Promised>,
    called: Cell<bool>,
    pub(super) stream: Stream,
}

enum Promised {
    By(Rc<Question>),
    Settled(Box<dyn ClientHook>),
}

impl PipelinedClient {
    pub(super) fn promised(question: &Rc<Question>, operations: Vec<PipelineOp>) -> Box<dyn ClientHook> {
        let promise = Rc::new(Self {
            state: question.state.clone(),
            operations,
            target: RefCell::new(Promised::By(question.clone())),
            called: Cell::new(false),
            stream: Stream::default(),
        });
        let pointer = Rc::as_ptr(&promise).addr();
        question.state.promises.borrow_mut().insert(pointer, Rc::downgrade(&promise));
        question.promises.borrow_mut().push(Rc::downgrade(&promise));
        Box::new(PromisedClient(promise))
    }

    pub(super) fn settle(&self) {
        let Some(question) = self.question() else { return };
        let (hook, is_broken) = match question.outcome.get() {
            None => return,
            Some(Err(error)) => (broken_because(error.clone()), true),
            Some(Ok(results)) => match results.capability(&self.operations) {
                Ok(hook) if self.is_behind(hook.as_ref()) => (
                    broken_because(Error::failed("the peer answered with a promise of its own answer".to_owned())),
                    true,
                ),
                Ok(hook) => (hook, false),
                Err(error) => (broken_because(error), true),
            },
        };
        let comes_from_the_peer = hook.get_brand() == self.state.brand();
        if comes_from_the_peer || is_broken || !self.called.get() || question.forgotten.get() {
            let before = self.target.replace(Promised::Settled(hook));
            drop(before);
        }
    }

    /// Whether whoever follows a capability to what it stands for comes to this promise. It must not be settled by that
    /// one: they would be followed for ever.
    fn is_behind(&self, hook: &dyn ClientHook) -> bool {
        let own = (self.state.brand(), std::ptr::from_ref(self).addr());
        let mut hook = hook.add_ref();
        loop {
            if (hook.get_brand(), hook.get_ptr()) == own {
                return true;
            }
            match hook.get_resolved() {
                Some(resolved) => hook = resolved,
                None => return false,
            }
        }
    }

    /// The question, unless it is settled.
    fn question(&self) -> Option<Rc<Question>> {
        match &*self.target.borrow() {
            Promised::By(question) => Some(question.clone()),
            Promised::Settled(_) => None,
        }
    }

    fn settled(&self) -> Option<Box<dyn ClientHook>> {
        match &*self.target.borrow() {
            Promised::By(_) => None,
            Promised::Settled(hook) => Some(hook.add_ref()),
        }
    }

    /// Names it to the peer.
    pub(super) fn name(&self, answer: promised_answer::Builder<'_>) {
        if let Some(question) = self.question() {
            write_promise(&question, &self.operations, answer);
        }
    }
}

impl Drop for PipelinedClient {
    fn drop(&mut self) {
        let mut promises = self.state.promises.borrow_mut();
        promises.remove(&std::ptr::from_ref(self).addr());
        if promises.is_empty() {
            // Idle sessions hold no table.
            *promises = HashMap::default();
        }
    }
}

struct PromisedClient(Rc<PipelinedClient>);

impl ClientHook for PromisedClient {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(Self(self.0.clone()))
    }

    fn new_call(
        &self,
        interface_id: u64,
        method_id: u16,
        size_hint: Option<MessageSize>,
    ) -> Request<any_pointer::Owned, any_pointer::Owned> {
        let question = match &*self.0.target.borrow() {
            Promised::Settled(hook) => return hook.new_call(interface_id, method_id, size_hint),
            Promised::By(question) => question.clone(),
        };
        self.0.called.set(true);
        new_request(Route::Promise(self.0.clone(), question), interface_id, method_id)
    }

    fn call(
        &self,
        interface_id: u64,
        method_id: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), Error> {
        match self.0.settled() {
            Some(hook) => hook.call(interface_id, method_id, params, results),
            None => forward(self, interface_id, method_id, params.as_ref(), results),
        }
    }

    fn get_brand(&self) -> usize {
        self.0.state.brand()
    }

    fn get_ptr(&self) -> usize {
        Rc::as_ptr(&self.0).addr()
    }

    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        self.0.settled()
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        if let Some(hook) = self.0.settled() {
            return Some(Promise::ok(hook));
        }
        let question = self.0.question()?;
        if question.outcome.get().is_some() {
            // It stays as it is.
            return None;
        }
        let promise = self.0.clone();
        Some(Promise::from_future(async move {
            std::future::poll_fn(|context| question.poll(context).map_ok(drop)).await?;
            Ok(promise.settled().unwrap_or_else(|| Box::new(Self(promise))))
        }))
    }

    fn when_resolved(&self) -> Promise<(), Error> {
        match self.when_more_resolved() {
            None => Promise::ok(()),
            Some(more) => Promise::from_future(async move { more.await?.when_resolved().await }),
        }
    }
}
