//! Capabilities that an answer of this side will bring, and that the peer has passed on before it is there: as a parameter of
//! another call, mostly.
//!
//! capnp-rpc has promises for that (`new_future_client`). They are not used, for they know too little and borrow too much:
//! a call that only such a promise waits for must end with the promise ([`Call::lost_interest`]), and a promise may be called
//! with itself as the parameter, which has capnp-rpc borrow it twice and panic. Here nothing is borrowed while anybody is called.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use capnp::{
    Error, MessageSize, any_pointer,
    capability::{Client, Promise, Request},
    private::capability::{ClientHook, ParamsHook, PipelineOp, ResultsHook},
};
use futures::{FutureExt, channel::oneshot};

use super::answer::{Call, OF_THIS_PROCESS};

/// One of them. Calls to it wait until it is settled, and keep their order.
pub(super) struct PassedOn {
    pub(super) operations: Vec<PipelineOp>,
    target: RefCell<Target>,
    queue: RefCell<VecDeque<Queued>>,
    next_ticket: Cell<u64>,
    /// Who wants to know what it turns out to be.
    waiting: RefCell<Vec<Waker>>,
}

enum Target {
    /// To be brought by this call.
    By(Rc<Call>),
    /// It is there, and calls that waited for it are on their way to it: later ones come behind them.
    There(Box<dyn ClientHook>),
    Settled(Box<dyn ClientHook>),
}

/// A call that waits.
struct Queued {
    ticket: u64,
    interface_id: u64,
    method_id: u16,
    params: Box<dyn ParamsHook>,
    results: Box<dyn ResultsHook>,
    begun: oneshot::Sender<Promise<(), Error>>,
}

impl PassedOn {
    /// What `call` will bring. It is to be [settled](Self::settle) with the call.
    pub(super) fn new(call: Rc<Call>, operations: Vec<PipelineOp>) -> Rc<Self> {
        Rc::new(Self {
            operations,
            target: RefCell::new(Target::By(call)),
            queue: RefCell::default(),
            next_ticket: Cell::new(0),
            waiting: RefCell::default(),
        })
    }

    pub(super) fn hook(self: Rc<Self>) -> Box<dyn ClientHook> {
        Box::new(Hook(self))
    }

    /// It is `hook`, whatever becomes of the call. Has those that waited go on. A second time does nothing.
    pub(super) fn settle(&self, hook: Box<dyn ClientHook>) {
        let before = {
            let mut target = self.target.borrow_mut();
            if !matches!(*target, Target::By(_)) {
                return;
            }
            std::mem::replace(&mut *target, Target::There(hook.add_ref()))
        };
        drop(before);
        loop {
            let next = self.queue.borrow_mut().pop_front();
            let Some(Queued { interface_id, method_id, params, results, begun, .. }) = next else { break };
            // Whoever called may have lost interest in what it had begun meanwhile.
            let _ = begun.send(hook.call(interface_id, method_id, params, results));
        }
        let before = self.target.replace(Target::Settled(hook));
        drop(before);
        let waiting = self.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }

    /// What it has turned out to be.
    fn resolved(&self) -> Option<Box<dyn ClientHook>> {
        match &*self.target.borrow() {
            Target::By(_) => None,
            Target::There(hook) | Target::Settled(hook) => Some(hook.add_ref()),
        }
    }

    /// The same, if nothing waits before it.
    fn settled(&self) -> Option<Box<dyn ClientHook>> {
        match &*self.target.borrow() {
            Target::By(_) | Target::There(_) => None,
            Target::Settled(hook) => Some(hook.add_ref()),
        }
    }
}

impl Drop for PassedOn {
    fn drop(&mut self) {
        if let Target::By(call) = self.target.get_mut() {
            call.clone().lost_interest();
        }
    }
}

struct Hook(Rc<PassedOn>);

impl ClientHook for Hook {
    fn add_ref(&self) -> Box<dyn ClientHook> {
        Box::new(Self(self.0.clone()))
    }

    fn new_call(
        &self,
        interface_id: u64,
        method_id: u16,
        size_hint: Option<MessageSize>,
    ) -> Request<any_pointer::Owned, any_pointer::Owned> {
        if let Some(hook) = self.0.settled() {
            return hook.new_call(interface_id, method_id, size_hint);
        }
        // Requests within a process are capnp-rpc's, and this is how to have it make one: a promise that is kept at once, so that
        // it has nothing to wait for and the call comes here.
        let kept = std::future::ready(Ok(Client::new(self.add_ref())));
        let client: Client = capnp_rpc::new_future_client(kept);
        let _ = client.hook.when_more_resolved().map(FutureExt::now_or_never);
        client.hook.new_call(interface_id, method_id, size_hint)
    }

    fn call(
        &self,
        interface_id: u64,
        method_id: u16,
        params: Box<dyn ParamsHook>,
        results: Box<dyn ResultsHook>,
    ) -> Promise<(), Error> {
        if let Some(hook) = self.0.settled() {
            return hook.call(interface_id, method_id, params, results);
        }
        let ticket = self.0.next_ticket.replace(self.0.next_ticket.get() + 1);
        let (begun, receiver) = oneshot::channel();
        self.0.queue.borrow_mut().push_back(Queued { ticket, interface_id, method_id, params, results, begun });
        let place = Place { promise: self.0.clone(), ticket };
        Promise::from_future(async move {
            let work = receiver.await;
            drop(place);
            match work {
                Ok(work) => work.await,
                // Proof: it is settled at the end of its call at the latest, and the place keeps it until then.
                Err(oneshot::Canceled) => Err(Error::failed("a call that was not made".to_owned())),
            }
        })
    }

    fn get_brand(&self) -> usize {
        OF_THIS_PROCESS
    }

    fn get_ptr(&self) -> usize {
        Rc::as_ptr(&self.0).addr()
    }

    fn get_resolved(&self) -> Option<Box<dyn ClientHook>> {
        self.0.resolved()
    }

    fn when_more_resolved(&self) -> Option<Promise<Box<dyn ClientHook>, Error>> {
        Some(match self.0.settled() {
            Some(hook) => Promise::ok(hook),
            None => Promise::from_future(WhenSettled(self.0.clone())),
        })
    }

    fn when_resolved(&self) -> Promise<(), Error> {
        let settled = WhenSettled(self.0.clone());
        Promise::from_future(async move { settled.await?.when_resolved().await })
    }
}

/// The place of a call in the queue. Who gives up the call takes it back.
struct Place {
    promise: Rc<PassedOn>,
    ticket: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let queued = {
            let queue = &mut *self.promise.queue.borrow_mut();
            // Tickets rise along the queue.
            let place = queue.binary_search_by_key(&self.ticket, |queued| queued.ticket);
            place.ok().and_then(|index| queue.remove(index))
        };
        drop(queued);
    }
}

struct WhenSettled(Rc<PassedOn>);

impl Future for WhenSettled {
    type Output = Result<Box<dyn ClientHook>, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0.settled() {
            Some(hook) => Poll::Ready(Ok(hook)),
            None => {
                let mut waiting = self.0.waiting.borrow_mut();
                if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                    waiting.push(context.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}
