//! Promises of results that the peer passes on before the results are there.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use capnp::capability::{Client, FromClientHook};
use capnp_rpc::rpc_capnp::{cap_descriptor, message, promised_answer};
use schemas::{
    ErrorCode,
    vat_capnp::{owner, vat},
};
use tokio::sync::{Notify, watch};
use transport::limits;

use crate::{
    pipelines::Waits,
    raw::{Answer, COUNTER, OWNER, RawPeer, VAT, VERIFY, set_capability},
    scene::attack,
};

/// Gives whoever waits what somebody else brings: with the secret `wait` it waits, with any other it is given the
/// object to which things are brought.
#[derive(Default)]
struct Rendezvous {
    brought: RefCell<Option<Client>>,
    came: Notify,
}
impl vat::Server for Rendezvous {
    async fn restore(
        self: Rc<Self>,
        params: vat::RestoreParams,
        mut results: vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        let given = if params.get()?.get_secret()? == b"wait" {
            self.came.notified().await;
            self.brought.borrow_mut().take().unwrap()
        } else {
            capnp_rpc::new_client::<owner::Client, _>(Bring(self.clone())).client
        };
        results.get().init_capability().set_as_capability(given.hook);
        Ok(())
    }
}

struct Bring(Rc<Rendezvous>);
impl owner::Server for Bring {
    async fn verify(
        self: Rc<Self>,
        params: owner::VerifyParams,
        _results: owner::VerifyResults,
    ) -> Result<(), capnp::Error> {
        *self.0.brought.borrow_mut() = Some(params.get()?.get_progress()?.client);
        self.0.came.notify_one();
        Ok(())
    }
}

#[test]
fn a_result_that_is_itself() {
    // With and without a call that waits for the result.
    for waiting in [false, true] {
        a_result_that_is_itself_with(waiting);
    }
}

fn a_result_that_is_itself_with(waiting: bool) {
    attack(async |scene| {
        let object: vat::Client = capnp_rpc::new_client(Rendezvous::default());
        let (mut peer, session) = scene.attack(object.client).await;
        peer.bootstrap(0).await;
        ask_for(&mut peer, 1, b"bring").await;
        ask_for(&mut peer, 2, b"wait").await;
        assert_eq!(peer.answer_to(1).await, Answer::Results(1));
        if waiting {
            peer.call_with(3, 2, COUNTER, 1, |call| in_results_of(2, call.init_target().init_promised_answer())).await;
        }
        // What the result is to be: the result itself.
        pass_on(&mut peer, 4, 1, 2).await;
        assert_eq!(peer.answer_to(2).await, Answer::Results(1));
        scene.honest_peer_is_served().await;
        (peer, session)
    });
}

/// A [`Rendezvous`] that gives what it is brought in a promise of capnp-rpc's, which is kept as soon as anybody looks.
struct Wraps(Rc<Rendezvous>);
impl vat::Server for Wraps {
    async fn restore(
        self: Rc<Self>,
        params: vat::RestoreParams,
        mut results: vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        if params.get()?.get_secret()? != b"wait" {
            return vat::Server::restore(self.0.clone(), params, results).await;
        }
        self.0.came.notified().await;
        let brought = self.0.brought.borrow_mut().take().unwrap();
        let wrapped: Client = capnp_rpc::new_future_client(std::future::ready(Ok(brought)));
        results.get().init_capability().set_as_capability(wrapped.hook);
        Ok(())
    }
}

#[test]
fn a_result_that_is_itself_and_does_not_look_like_it() {
    attack(async |scene| {
        let object: vat::Client = capnp_rpc::new_client(Wraps(Rc::default()));
        let (mut peer, session) = scene.attack(object.client).await;
        peer.bootstrap(0).await;
        ask_for(&mut peer, 1, b"bring").await;
        ask_for(&mut peer, 2, b"wait").await;
        // The promise is called with itself before it is kept, and called again when it is.
        pass_on(&mut peer, 3, 1, 2).await;
        pass_on(&mut peer, 4, 2, 2).await;
        peer.answer_to(2).await;
        pass_on(&mut peer, 5, 2, 2).await;
        assert!(matches!(peer.answer_to(5).await, Answer::Exception(..)));
        scene.honest_peer_is_served().await;
        (peer, session)
    });
}

/// Asks for what the other of the two has: with the secret `bring` for the object that is brought things, with `wait` for
/// what it is brought.
async fn ask_for(peer: &mut RawPeer, question: u32, secret: &[u8]) {
    peer.call_with(question, 0, VAT, 0, |call| {
        call.init_params().init_content().init_as::<vat::restore_params::Builder<'_>>().set_secret(secret);
    })
    .await;
}

/// The capability in the results of `question`.
fn in_results_of(question: u32, mut promise: promised_answer::Builder<'_>) {
    promise.set_question_id(question);
    promise.init_transform(1).get(0).set_get_pointer_field(0);
}

/// Calls `verify` of what question `target` brings with what `passed` will bring.
async fn pass_on(peer: &mut RawPeer, question: u32, target: u32, passed: u32) {
    peer.call_with(question, 0, OWNER, VERIFY, |mut call| {
        in_results_of(target, call.reborrow().init_target().init_promised_answer());
        let mut params = call.init_params();
        set_capability(params.reborrow(), 0);
        in_results_of(passed, params.get_cap_table().unwrap().get(0).init_receiver_answer());
    })
    .await;
}

/// With the secret `keep` it gives an object that keeps what it is given until it is told; with any other it never answers,
/// and counts how often that was given up.
struct Keeper {
    told: watch::Receiver<bool>,
    given_up: Rc<Cell<usize>>,
}
impl vat::Server for Keeper {
    async fn restore(
        self: Rc<Self>,
        params: vat::RestoreParams,
        mut results: vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        struct Running(Rc<Cell<usize>>);
        impl Drop for Running {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        if params.get()?.get_secret()? != b"keep" {
            let _running = Running(self.given_up.clone());
            return std::future::pending().await;
        }
        let keeps: owner::Client = capnp_rpc::new_client(Waits(self.told.clone()));
        results.get().init_capability().set_as_capability(keeps.client.hook);
        Ok(())
    }
}

#[test]
fn a_call_that_was_given_up_ends_with_the_last_promise_of_its_result() {
    attack(async |scene| {
        let (tell, told) = watch::channel(false);
        let given_up = Rc::default();
        let object: vat::Client = capnp_rpc::new_client(Keeper { told, given_up: Rc::clone(&given_up) });
        let (mut peer, session) = scene.attack(object.client).await;
        peer.bootstrap(0).await;
        ask_for(&mut peer, 1, b"keep").await;
        ask_for(&mut peer, 2, b"never").await;
        pass_on(&mut peer, 3, 1, 2).await;
        peer.finish(2, true).await;
        assert_eq!(peer.answer_to(1).await, Answer::Results(1));
        scene.honest_peer_is_served().await;
        assert_eq!(given_up.get(), 0, "somebody holds what it is to bring");
        tell.send(true).unwrap();
        assert_eq!(peer.answer_to(2).await, Answer::Canceled);
        assert_eq!(given_up.get(), 1);
        assert!(session.end().is_none());
        (peer, session)
    });
}

/// Keeps what it is brought, with the secret `bring`; with any other it lets go of that when it is told, and answers.
struct LetsGo {
    told: watch::Receiver<bool>,
    kept: Rc<Rendezvous>,
}
impl vat::Server for LetsGo {
    async fn restore(
        self: Rc<Self>,
        params: vat::RestoreParams,
        results: vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        if params.get()?.get_secret()? == b"bring" {
            return vat::Server::restore(self.kept.clone(), params, results).await;
        }
        let _ = self.told.clone().wait_for(|told| *told).await;
        self.kept.brought.borrow_mut().take();
        Ok(())
    }
}

#[test]
fn a_call_that_was_given_up_and_lets_go_of_the_promise_of_its_own_result() {
    attack(async |scene| {
        let (tell, told) = watch::channel(false);
        let object: vat::Client = capnp_rpc::new_client(LetsGo { told, kept: Rc::default() });
        let (mut peer, session) = scene.attack(object.client).await;
        peer.bootstrap(0).await;
        ask_for(&mut peer, 1, b"bring").await;
        ask_for(&mut peer, 2, b"let go").await;
        pass_on(&mut peer, 3, 1, 2).await;
        assert_eq!(peer.answer_to(3).await, Answer::Results(0));
        peer.finish(2, true).await;
        scene.honest_peer_is_served().await;
        tell.send(true).unwrap();
        assert_eq!(peer.answer_to(2).await, Answer::Canceled);
        // Answered once: its number can be used again, and the next answer to it is that of the next question.
        peer.bootstrap(2).await;
        assert_eq!(peer.answer_to(2).await, Answer::Results(1));
        assert!(session.end().is_none());
        (peer, session)
    });
}

/// Calls what it is given with that itself, and answers when that has answered.
struct CallsItWithItself;
impl owner::Server for CallsItWithItself {
    async fn verify(
        self: Rc<Self>,
        params: owner::VerifyParams,
        _results: owner::VerifyResults,
    ) -> Result<(), capnp::Error> {
        let given = params.get()?.get_progress()?.client;
        let mut asked = Vec::new();
        for _ in 0..3 {
            let mut request = given.hook.new_call(OWNER, VERIFY, None);
            let mut params = request.get().init_as::<owner::verify_params::Builder<'_>>();
            params.set_progress(FromClientHook::new(given.hook.add_ref()));
            asked.push(request.send().promise);
        }
        futures::future::try_join_all(asked).await.map(drop)
    }
}

/// A [`Rendezvous`] that gives a [`CallsItWithItself`] to who says `call`.
struct Meeting(Rc<Rendezvous>);
impl vat::Server for Meeting {
    async fn restore(
        self: Rc<Self>,
        params: vat::RestoreParams,
        mut results: vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        if params.get()?.get_secret()? != b"call" {
            return vat::Server::restore(self.0.clone(), params, results).await;
        }
        let calls: owner::Client = capnp_rpc::new_client(CallsItWithItself);
        results.get().init_capability().set_as_capability(calls.client.hook);
        Ok(())
    }
}

#[test]
fn a_promise_that_is_called_with_itself() {
    attack(async |scene| {
        let object: vat::Client = capnp_rpc::new_client(Meeting(Rc::default()));
        let (mut peer, session) = scene.attack(object.client).await;
        peer.bootstrap(0).await;
        for (question, secret) in [(1, &b"call"[..]), (2, b"bring"), (3, b"wait")] {
            ask_for(&mut peer, question, secret).await;
        }
        pass_on(&mut peer, 4, 1, 3).await;
        // What is waited for is the peer's own capability 5.
        peer.call_with(5, 0, OWNER, VERIFY, |mut call| {
            in_results_of(2, call.reborrow().init_target().init_promised_answer());
            let mut params = call.init_params();
            set_capability(params.reborrow(), 0);
            params.get_cap_table().unwrap().get(0).set_sender_hosted(5);
        })
        .await;
        for _ in 0..3 {
            let message = peer.receive_call().await;
            let question = {
                let Ok(message::Call(call)) = message.get_root::<message::Reader<'_>>().unwrap().which() else {
                    panic!("no call")
                };
                let call = call.unwrap();
                let table = call.get_params().unwrap().get_cap_table().unwrap();
                assert!(
                    matches!(table.get(0).which(), Ok(cap_descriptor::ReceiverHosted(5))),
                    "it is what it is called with"
                );
                call.get_question_id()
            };
            peer.answer(question, |answer| {
                answer.init_results().get_content().init_as::<owner::verify_results::Builder<'_>>();
            })
            .await;
        }
        assert!(matches!(peer.answer_to(4).await, Answer::Results(_)));
        assert!(session.end().is_none());
        (peer, session)
    });
}

/// Brought something, it gives that back to who says `give`; with any other secret but `bring` it never answers.
#[derive(Default)]
struct GivesBack(Rc<Rendezvous>);
impl vat::Server for GivesBack {
    async fn restore(
        self: Rc<Self>,
        params: vat::RestoreParams,
        mut results: vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        match params.get()?.get_secret()? {
            b"bring" => vat::Server::restore(self.0.clone(), params, results).await,
            b"give" => {
                let given = self.0.brought.borrow().as_ref().unwrap().hook.add_ref();
                results.get().init_capability().set_as_capability(given);
                Ok(())
            }
            _ => std::future::pending().await,
        }
    }
}

/// More calls than overflow a stack of 2 MiB when the end of each ends the one before.
const LONG: u32 = 2_000;

#[test]
fn a_chain_of_calls_that_is_hidden_behind_objects() {
    attack(async |scene| {
        let object: vat::Client = capnp_rpc::new_client(GivesBack::default());
        let (mut peer, session) = scene.attack(object.client).await;
        peer.bootstrap(0).await;
        ask_for(&mut peer, 1, b"bring").await;
        ask_for(&mut peer, 2, b"never").await;
        let mut last = 2;
        for step in 1..LONG {
            let [bring, give, next] = [0, 1, 2].map(|place| 3 * step + place);
            pass_on(&mut peer, bring, 1, last).await;
            ask_for(&mut peer, give, b"give").await;
            assert_eq!(peer.answer_to(give).await, Answer::Results(1));
            // What is called is there, as far as can be seen from outside, and so the call waits for nothing.
            peer.call_with(next, 0, VAT, 0, |call| in_results_of(give, call.init_target().init_promised_answer()))
                .await;
            peer.finish(bring, true).await;
            peer.finish(give, true).await;
            peer.finish(last, true).await;
            last = next;
        }
        peer.finish(last, true).await;
        scene.honest_peer_is_served().await;
        assert!(session.end().is_none());
        // The last promise is replaced, and with it ends the call that waits for it, and so on.
        pass_on(&mut peer, 3 * LONG, 1, 0).await;
        assert_eq!(peer.answer_to(2).await, Answer::Canceled);
        scene.honest_peer_is_served().await;
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn a_multitude_of_promises_that_is_given_up_one_by_one() {
    const CALLS: u32 = 1_500;
    attack(async |scene| {
        let object: vat::Client = capnp_rpc::new_client(GivesBack::default());
        let (mut peer, session) = scene.attack(object.client).await;
        peer.bootstrap(0).await;
        ask_for(&mut peer, 1, b"never").await;
        for question in 2..2 + CALLS {
            // It waits for the first one, and is passed what that will bring many times.
            peer.call_with(question, 0, OWNER, VERIFY, |mut call| {
                in_results_of(1, call.reborrow().init_target().init_promised_answer());
                let mut params = call.init_params();
                let last = u32::try_from(limits::CAPABILITIES_PER_MESSAGE).unwrap() - 1;
                set_capability(params.reborrow(), last);
                let mut table = params.get_cap_table().unwrap();
                (0..=last).for_each(|index| table.reborrow().get(index).init_receiver_answer().set_question_id(1));
            })
            .await;
        }
        // They count as what they take, not as what a message takes that has them.
        scene.honest_peer_is_served().await;
        assert_eq!(peer.answer_to(1 + CALLS).await.code(), Some(ErrorCode::SessionTooManyBytes));
        peer.finish(1, true).await;
        for question in 2..2 + CALLS {
            peer.finish(question, true).await;
        }
        assert_eq!(peer.answer_to(1).await, Answer::Canceled);
        assert!(session.end().is_none());
        (peer, session)
    });
}
