//! Cap'n Proto's RPC protocol, level 1: what the messages of a session mean (`rpc.capnp`).
//!
//! capnp-rpc brings the traits of a connection, the messages, and the objects and promises of this process. Its own
//! `RpcSystem` is not used: it allocates some ninety times for each call and its answer and makes a task for each message, a
//! peer can have it panic or hang, and it never answers a call that was given up. This module does what that does, over the same [`capnp_rpc::Connection`], with one table for each of the protocol's four:
//!
//! | table | holds | module |
//! |---|---|---|
//! | questions | calls of ours that are not answered, or whose answer is in use | [`question`] |
//! | answers | calls of the peer that run, or whose answer it may still use | [`answer`] |
//! | exports | capabilities of ours that the peer holds | [`state`] |
//! | imports | capabilities of the peer that we hold | [`import`] |
//!
//! What it leaves out on purpose: it never promises the peer that a capability will change (`senderPromise`, `Resolve`), but
//! goes on to host it, which the protocol allows to everybody; and it takes no such promise, since none passes the screen. So
//! there are no embargoes of ours, no cycle of promises can exist, and calls keep their order by travelling one way:
//! what was begun through the peer goes on through the peer.
//!
//! Nothing here waits or has tasks of its own. [`System::poll`] takes messages and runs the calls of the peer; hooks that the
//! program holds send at once. No table is borrowed while code of an object runs or is dropped.

mod answer;
mod import;
mod passed_on;
mod promise;
mod question;
mod state;
mod stream;

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use capnp::{
    Error,
    capability::{Client, Promise},
};
use capnp_rpc::{Connection, IncomingMessage, rpc_capnp::message};
use futures::{StreamExt, stream::FuturesUnordered};

use crate::{connection::OtherEnd, limits};
use answer::{Begun, RunningCall};
use state::State;

type Incoming = Promise<Option<Box<dyn IncomingMessage>>, Error>;

/// One side of one session.
pub(crate) struct System {
    state: Rc<State>,
    /// The next message of the peer; `None` once the session has ended.
    incoming: Option<Incoming>,
    /// Calls of the peer that did not end at once. Idle sessions hold no set.
    running: Option<FuturesUnordered<RunningCall>>,
}

/// Ends a system from outside, whatever has become of it.
pub(crate) struct Disconnector(Rc<State>);

impl Disconnector {
    /// Fails everything that waits for the peer with `error`, and lets go of everything that the peer held. A second
    /// time does nothing.
    pub(crate) fn disconnect(&self, error: Error) {
        self.0.disconnect(error);
    }
}

impl System {
    /// Speaks over `connection`, and gives a peer that asks for it `bootstrap`.
    pub(crate) fn new(mut connection: Box<dyn Connection<OtherEnd>>, bootstrap: Option<Client>) -> Self {
        let incoming = Some(connection.receive_incoming_message());
        let bootstrap = bootstrap.unwrap_or_else(|| {
            capnp_rpc::new_broken_cap(Error::failed("this side offers no bootstrap capability".to_owned()))
        });
        let state = State::new(connection, bootstrap.hook);
        Self { state, incoming, running: None }
    }

    /// Asks the peer for its bootstrap capability.
    pub(crate) fn bootstrap(&self) -> Client {
        Client::new(question::bootstrap(&self.state))
    }

    /// What can end this system.
    pub(crate) fn disconnector(&self) -> Disconnector {
        Disconnector(self.state.clone())
    }

    /// Takes what messages there are, up to a bound, and runs the peer's calls as far as they go.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) {
        let mut more = false;
        for taken in 0.. {
            if taken == limits::MESSAGES_PER_STEP {
                more = true;
                break;
            }
            let Some(incoming) = &mut self.incoming else { break };
            let handled = match Pin::new(incoming).poll(context) {
                Poll::Pending => break,
                Poll::Ready(Ok(Some(message))) => self.take(message, context),
                Poll::Ready(Ok(None)) => Err(Error::disconnected("the peer has ended the stream".to_owned())),
                Poll::Ready(Err(error)) => Err(error),
            };
            self.incoming =
                handled.and_then(|()| self.state.receive()).map_err(|error| self.state.disconnect(error)).ok();
        }
        // An end that others have brought about: what comes is of no interest any more.
        if self.state.has_ended() {
            self.incoming = None;
        }
        self.state.polled_by(context);
        self.run_pending(context);
        self.run_started(context);
        if more {
            context.waker().wake_by_ref();
        }
    }

    /// Runs those that have been woken.
    fn run_pending(&mut self, context: &mut Context<'_>) {
        let Some(running) = &mut self.running else { return };
        while let Poll::Ready(Some(())) = running.poll_next_unpin(context) {}
        if running.is_empty() {
            self.running = None;
        }
    }

    /// Runs what was begun, in its order. Most calls end at once and never become a task.
    fn run_started(&mut self, context: &mut Context<'_>) {
        loop {
            let call = self.state.started.borrow_mut().pop_front();
            let Some(call) = call else { break };
            if call.poll(context).is_pending() {
                self.running.get_or_insert_default().push(RunningCall(call));
                // Its task has not been told yet whom to wake.
                context.waker().wake_by_ref();
            }
        }
    }

    fn take(&mut self, message: Box<dyn IncomingMessage>, context: &mut Context<'_>) -> Result<(), Error> {
        let state = &self.state;
        match message.get_body()?.get_as::<message::Reader<'_>>()?.which() {
            Ok(message::Call(call)) => {
                let begun = Begun::read(state, call?)?;
                begun.begin(state, message)?;
                self.run_started(context);
            }
            Ok(message::Return(answer)) => {
                let id = answer?.get_answer_id();
                question::answered(state, id, message)?;
            }
            Ok(message::Finish(finish)) => {
                let finish = finish?;
                answer::finish(state, finish.get_question_id(), finish.get_release_result_caps())?;
            }
            Ok(message::Release(release)) => {
                let release = release?;
                state.release_export(release.get_id(), release.get_reference_count())?;
            }
            Ok(message::Bootstrap(bootstrap)) => answer::bootstrap(state, bootstrap?.get_question_id())?,
            Ok(message::Disembargo(disembargo)) => answer::disembargo(state, disembargo?)?,
            Ok(message::Unimplemented(_)) => {
                return Err(Error::failed("the peer does not understand what every peer must".to_owned()));
            }
            Ok(message::Abort(reason)) => return Err(state::remote_error(reason?)),
            // Resolve among them, which the screen has answered already.
            _ => state.send_unimplemented(message.as_ref())?,
        }
        Ok(())
    }
}

impl Drop for System {
    /// A task that is dropped in the middle leaves nobody waiting either.
    fn drop(&mut self) {
        self.state.disconnect(Error::disconnected("the session is gone".to_owned()));
    }
}
