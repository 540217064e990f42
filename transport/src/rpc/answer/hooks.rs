//! What an object sees of a call: its parameters, and the place for its results.

use std::rc::Rc;

use capnp::{
    Error, any_pointer,
    capability::Promise,
    message::{Builder, HeapAllocator},
    private::capability::{ParamsHook, PipelineHook, RequestHook, ResultsHook},
    traits::{Imbue, ImbueMut},
};
use capnp_rpc::{
    IncomingMessage,
    rpc_capnp::{message, return_},
};

use super::{Call, Content, RETURN_WORDS, Written};
use crate::rpc::state::Capabilities;

pub(super) struct Params {
    pub(super) message: Box<dyn IncomingMessage>,
    pub(super) capabilities: Capabilities,
}

impl ParamsHook for Params {
    fn get(&self) -> Result<any_pointer::Reader<'_>, Error> {
        let message::Call(call) = self.message.get_body()?.get_as::<message::Reader<'_>>()?.which()? else {
            return Err(Error::failed("a call that is none".to_owned()));
        };
        let mut content = call?.get_params()?.get_content();
        content.imbue(&self.capabilities);
        Ok(content)
    }
}

pub(super) struct Results {
    pub(super) call: Rc<Call>,
    /// `None` only while it is dropped.
    pub(super) written: Option<Written>,
}

impl Results {
    fn written(&mut self) -> &mut Written {
        self.written.get_or_insert_with(|| Written { message: None, capabilities: Vec::new() })
    }
}

impl ResultsHook for Results {
    fn get(&mut self) -> Result<any_pointer::Builder<'_>, Error> {
        let call = self.call.clone();
        let Written { message, capabilities } = self.written();
        let message = match message {
            Some(message) => message,
            None => message.insert(call.new_return()?),
        };
        let message::Return(answer) = message.get_body()?.get_as::<message::Builder<'_>>()?.which()? else {
            return Err(Error::failed("results that are no answer".to_owned()));
        };
        let return_::Results(payload) = answer?.which()? else {
            return Err(Error::failed("an answer without results".to_owned()));
        };
        let mut content = payload?.get_content();
        content.imbue_mut(capabilities);
        Ok(content)
    }

    fn set_pipeline(&mut self) -> Result<(), Error> {
        if self.call.early.borrow().is_some() {
            return Err(Error::failed("set_pipeline() called twice".to_owned()));
        }
        let written = self.get()?.into_reader();
        // What is there is copied: the object goes on writing.
        let words = u32::try_from(written.target_size()?.word_count + 1).unwrap_or(RETURN_WORDS);
        let mut message = Builder::new(HeapAllocator::new().first_segment_words(words));
        let mut capabilities = Capabilities::new();
        let mut root = message.get_root::<any_pointer::Builder<'_>>()?;
        root.imbue_mut(&mut capabilities);
        root.set_as(written)?;
        let content = Rc::new(Content::Early(message, capabilities));
        *self.call.early.borrow_mut() = Some(content.clone());
        self.call.serve_waiting(&content);
        // The object may be doing this in a task of its own.
        self.call.state.wake();
        Ok(())
    }

    /// Every call can be stopped at any time.
    fn allow_cancellation(&self) {}

    fn tail_call(mut self: Box<Self>, request: Box<dyn RequestHook>) -> Promise<(), Error> {
        let promise = request.send().promise;
        Promise::from_future(async move { self.get()?.set_as(promise.await?.get()?) })
    }

    fn direct_tail_call(self: Box<Self>, request: Box<dyn RequestHook>) -> (Promise<(), Error>, Box<dyn PipelineHook>) {
        let sent = request.send();
        let promise = sent.promise;
        let mut results = self;
        let done = Promise::from_future(async move { results.get()?.set_as(promise.await?.get()?) });
        (done, sent.pipeline.hook)
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        self.call.written.set(self.written.take());
        if let Some(waker) = self.call.waker.take() {
            waker.wake();
        }
    }
}
