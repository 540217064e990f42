//! The RPC protocol itself: order, numbers, and who holds what, as a peer on the wire and as a program see it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use capnp::capability::{Client, FromClientHook};
use capnp_rpc::rpc_capnp::{disembargo, message, message_target, promised_answer, return_};
use futures::channel::oneshot;
use schemas::{
    objects_capnp::counter,
    vat_capnp::{owner, vat},
};
use transport::Session;

use crate::{
    raw::{Answer, COUNTER, RawPeer, VAT, set_capability},
    scene::Scene,
    support::{self, Counter, add, connect, new_counter, options, restored, run, server, serving, sessions},
};

/// Restores its capability when it is told to.
struct Later {
    capability: Client,
    told: Cell<Option<oneshot::Receiver<()>>>,
}

impl vat::Server for Later {
    async fn restore(
        self: Rc<Self>,
        _params: vat::RestoreParams,
        mut results: vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        self.told.take().unwrap().await.unwrap();
        results.get().init_capability().set_as_capability(self.capability.hook.add_ref());
        Ok(())
    }
}

fn later(capability: Client) -> (Client, oneshot::Sender<()>) {
    let (tell, told) = oneshot::channel();
    let client: vat::Client = capnp_rpc::new_client(Later { capability, told: Cell::new(Some(told)) });
    (client.client, tell)
}

/// Calls `add` of what question `target` is answered with.
async fn add_to(peer: &mut RawPeer, question: u32, target: u32, by: u64) {
    peer.send(|message| {
        let mut call = message.init_call();
        call.set_question_id(question);
        call.set_interface_id(COUNTER);
        let mut target_builder = call.reborrow().init_target().init_promised_answer();
        target_builder.set_question_id(target);
        target_builder.init_transform(1).get(0).set_get_pointer_field(0);
        call.init_params().get_content().init_as::<counter::add_params::Builder<'_>>().set_by(by);
    })
    .await;
}

/// The next answer: to which question, and of what kind.
async fn answer(peer: &mut RawPeer) -> (u32, &'static str) {
    let message = peer.receive().await.expect("an answer");
    let Ok(message::Return(answer)) = message.get_root::<message::Reader<'_>>().unwrap().which() else {
        panic!("no answer")
    };
    let answer = answer.unwrap();
    let kind = match answer.which() {
        Ok(return_::Results(_)) => "results",
        Ok(return_::Exception(_)) => "exception",
        Ok(return_::Canceled(())) => "canceled",
        _ => "something else",
    };
    (answer.get_answer_id(), kind)
}

async fn finish(peer: &mut RawPeer, question: u32) {
    peer.send(|message| {
        let mut finish = message.init_finish();
        finish.set_question_id(question);
        finish.set_release_result_caps(true);
    })
    .await;
}

#[test]
fn calls_to_what_a_running_call_will_bring_wait_for_it_and_keep_their_order() {
    run(async {
        let scene = Scene::new().await;
        let object = Rc::new(Counter::default());
        let (vat, tell) = later(support::counter(object.clone()));
        let (mut peer, _session) = scene.attack(vat).await;
        peer.bootstrap(0).await;
        assert_eq!(answer(&mut peer).await, (0, "results"));
        peer.call(1, 0, VAT, 0).await;
        for by in 1..=5 {
            add_to(&mut peer, 1 + u32::try_from(by).unwrap(), 1, by).await;
        }
        scene.honest_peer_is_served().await;
        assert_eq!(object.seen.borrow().as_slice(), [0_u64; 0]);
        tell.send(()).unwrap();
        for question in 1..=6 {
            assert_eq!(answer(&mut peer).await, (question, "results"));
        }
        assert_eq!(object.seen.borrow().as_slice(), [1, 2, 3, 4, 5]);
    });
}

#[test]
fn a_call_that_is_given_up_is_answered_so_that_its_number_can_be_used_again() {
    run(async {
        let scene = Scene::new().await;
        let (vat, tell) = later(new_counter());
        let (mut peer, session) = scene.attack(vat).await;
        peer.bootstrap(0).await;
        assert_eq!(answer(&mut peer).await, (0, "results"));
        peer.call(1, 0, VAT, 0).await;
        finish(&mut peer, 1).await;
        assert_eq!(answer(&mut peer).await, (1, "canceled"));
        assert!(tell.is_canceled(), "the object's work is dropped");
        // The object has given its one answer away: that it is asked at all is what counts.
        peer.bootstrap(1).await;
        assert_eq!(answer(&mut peer).await, (1, "results"));
        assert!(session.end().is_none());
    });
}

#[test]
fn a_call_that_others_wait_for_goes_on_when_its_own_answer_is_given_up() {
    run(async {
        let scene = Scene::new().await;
        let object = Rc::new(Counter::default());
        let (vat, tell) = later(support::counter(object.clone()));
        let (mut peer, _session) = scene.attack(vat).await;
        peer.bootstrap(0).await;
        assert_eq!(answer(&mut peer).await, (0, "results"));
        peer.call(1, 0, VAT, 0).await;
        add_to(&mut peer, 2, 1, 7).await;
        finish(&mut peer, 1).await;
        scene.honest_peer_is_served().await;
        tell.send(()).unwrap();
        assert_eq!(answer(&mut peer).await, (1, "canceled"));
        assert_eq!(answer(&mut peer).await, (2, "results"));
        assert_eq!(object.seen.borrow().as_slice(), [7]);
    });
}

#[test]
fn a_call_that_was_given_up_ends_with_the_last_one_that_waited_for_it() {
    run(async {
        let scene = Scene::new().await;
        let (vat, tell) = later(new_counter());
        let (mut peer, _session) = scene.attack(vat).await;
        peer.bootstrap(0).await;
        assert_eq!(answer(&mut peer).await, (0, "results"));
        peer.call(1, 0, VAT, 0).await;
        add_to(&mut peer, 2, 1, 7).await;
        finish(&mut peer, 1).await;
        finish(&mut peer, 2).await;
        assert_eq!(answer(&mut peer).await, (2, "canceled"));
        assert_eq!(answer(&mut peer).await, (1, "canceled"));
        assert!(tell.is_canceled(), "the object's work is dropped");
    });
}

#[test]
fn calls_through_a_promise_that_turns_out_to_be_our_own_object_keep_their_order() {
    run(async {
        let object = Rc::new(Counter::default());
        let (server, client) = (server(), transport::Endpoint::client(&support::key()).unwrap());
        let (dialled, accepted) = connect(&server, &client).await;
        // The server restores what the client has given it: the client's own counter.
        let slot = Rc::new(RefCell::new(None));
        let vat: vat::Client = capnp_rpc::new_client(FromSlot(slot.clone()));
        let accept = Session::accept(accepted, serving(vat.client));
        let open = Session::open(dialled, serving(support::counter(object.clone())));
        let (dialling, accepting) = tokio::try_join!(open, accept).unwrap();
        *slot.borrow_mut() = Some(accepting.bootstrap::<Client>());

        let promise = restored(&dialling.bootstrap());
        let early: Vec<_> = (1..=3).map(|by| tokio::task::spawn_local(call_add(&promise, by))).collect();
        promise.client.when_resolved().await.unwrap();
        let late: Vec<_> = (4..=6).map(|by| tokio::task::spawn_local(call_add(&promise, by))).collect();
        for call in early.into_iter().chain(late) {
            call.await.unwrap().unwrap();
        }
        assert_eq!(object.seen.borrow().as_slice(), [1, 2, 3, 4, 5, 6]);
    });
}

struct FromSlot(Rc<RefCell<Option<Client>>>);

impl vat::Server for FromSlot {
    async fn restore(
        self: Rc<Self>,
        _params: vat::RestoreParams,
        mut results: vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        let hook = self.0.borrow().as_ref().unwrap().hook.add_ref();
        results.get().init_capability().set_as_capability(hook);
        Ok(())
    }
}

/// A session whose object answers question 1 of the peer with what question `.1` to the peer promises.
async fn answered_with_a_promise(
    scene: &Scene,
) -> (RawPeer, u32, capnp::capability::RemotePromise<vat::restore_results::Owned>, Session) {
    let slot = Rc::new(RefCell::new(None));
    let from_slot: vat::Client = capnp_rpc::new_client(FromSlot(slot.clone()));
    let (mut peer, session) = scene.attack(from_slot.client).await;
    let asked = session.bootstrap::<vat::Client>().restore_request().send();
    let question = peer.called().await;
    *slot.borrow_mut() = Some(FromClientHook::new(asked.pipeline.get_capability().as_cap()));
    peer.bootstrap(0).await;
    peer.call(1, 0, VAT, 0).await;
    assert_eq!(peer.answer_to(1).await, Answer::Results(1));
    (peer, question, asked, session)
}

/// The promise in the results of question 1.
fn in_answer_1(mut answer: promised_answer::Builder<'_>) {
    answer.set_question_id(1);
    answer.init_transform(1).get(0).set_get_pointer_field(0);
}

#[test]
fn a_promise_that_the_peer_settles_by_itself_is_broken() {
    run(async {
        let scene = Scene::new().await;
        let (mut peer, question, asked, session) = answered_with_a_promise(&scene).await;
        let promise: counter::Client = FromClientHook::new(asked.pipeline.get_capability().as_cap());
        peer.answer(question, |answer| {
            let mut results = answer.init_results();
            set_capability(results.reborrow(), 0);
            in_answer_1(results.get_cap_table().unwrap().get(0).init_receiver_answer());
        })
        .await;
        asked.promise.await.unwrap();
        // Whoever followed it to what it stands for would follow it for ever.
        assert!(add(&promise, 1).await.is_err());
        assert!(session.end().is_none());
        scene.honest_peer_is_served().await;
    });
}

#[test]
fn an_embargo_on_a_promise_of_the_peers_own_answer_is_lifted() {
    run(async {
        let scene = Scene::new().await;
        let (mut peer, question, _asked, _session) = answered_with_a_promise(&scene).await;
        peer.send(|message| {
            let mut disembargo = message.init_disembargo();
            disembargo.reborrow().init_context().set_sender_loopback(7);
            in_answer_1(disembargo.init_target().init_promised_answer());
        })
        .await;
        let message = peer.receive().await.expect("a disembargo");
        let Ok(message::Disembargo(disembargo)) = message.get_root::<message::Reader<'_>>().unwrap().which() else {
            panic!("no disembargo")
        };
        let disembargo = disembargo.unwrap();
        assert!(matches!(disembargo.get_context().which(), Ok(disembargo::context::ReceiverLoopback(7))));
        let Ok(message_target::PromisedAnswer(target)) = disembargo.get_target().unwrap().which() else {
            panic!("no promise")
        };
        assert_eq!(target.unwrap().get_question_id(), question);
    });
}

#[test]
fn a_call_to_what_a_forgotten_answer_did_not_bring_never_goes_to_what_another_brings() {
    run(async {
        let scene = Scene::new().await;
        let (mut peer, session) = scene.attack(new_counter()).await;
        let theirs: vat::Client = session.bootstrap();
        let asked = theirs.restore_request().send();
        let question = peer.called().await;
        let promise: counter::Client = FromClientHook::new(asked.pipeline.get_capability().as_cap());
        // Made for the promise, and not sent.
        let early = promise.add_request();
        peer.answer(question, |mut answer| {
            answer.set_no_finish_needed(true);
            answer.init_results().get_content().init_as::<vat::restore_results::Builder<'_>>();
        })
        .await;
        asked.promise.await.unwrap();
        // The number is free, and is used.
        let _other = theirs.restore_request().send();
        assert_eq!(peer.called().await, question);
        assert!(early.send().promise.await.is_err());
        // Nothing was sent for it: the next call is the next one.
        let _next = theirs.schema_request().send();
        let message = peer.receive().await.expect("a call");
        let Ok(message::Call(call)) = message.get_root::<message::Reader<'_>>().unwrap().which() else {
            panic!("no call")
        };
        assert_eq!(call.unwrap().get_interface_id(), VAT);
    });
}

/// Sends at once; the answer can be waited for elsewhere.
fn call_add(counter: &counter::Client, by: u64) -> impl Future<Output = Result<(), capnp::Error>> + use<> {
    let mut request = counter.add_request();
    request.get().set_by(by);
    let sent = request.send().promise;
    async move { sent.await.map(drop) }
}

#[test]
fn a_capability_that_is_given_back_with_its_last_handle_is_released_behind_the_call() {
    run(async {
        let scene = Scene::new().await;
        let (mut peer, session) = scene.attack(new_counter()).await;
        let theirs: owner::Client = session.bootstrap();
        let asked = theirs.root_request().send();
        let question = peer.called().await;
        peer.answer(question, |answer| {
            let mut results = answer.init_results();
            set_capability(results.reborrow(), 0);
            results.get_cap_table().unwrap().get(0).set_sender_hosted(5);
        })
        .await;
        let answer = asked.promise.await.unwrap();
        let root = answer.get().unwrap().get_capability().get_as_capability::<Client>().unwrap();
        drop((answer, asked.pipeline));
        let mut request = theirs.share_request();
        request.get().init_object().set_as_capability(root.hook);
        let _asked = request.send();
        let mut sent = Vec::new();
        while sent.len() < 3 {
            let message = peer.receive().await.expect("a message");
            sent.push(match message.get_root::<message::Reader<'_>>().unwrap().which() {
                Ok(message::Call(_)) => "call",
                Ok(message::Finish(_)) => "finish",
                Ok(message::Release(_)) => "release",
                _ => "something else",
            });
        }
        assert_eq!(sent, ["finish", "call", "release"]);
    });
}

#[test]
fn an_object_is_let_go_of_when_the_last_capability_to_it_is_dropped() {
    run(async {
        let object = Rc::new(Counter::default());
        let vat = support::vat(support::counter(object.clone()));
        let (dialling, _accepting) = sessions(options(), serving(vat.clone())).await;
        let held = Rc::strong_count(&object);
        let bootstrap: vat::Client = dialling.bootstrap();
        let (one, other) = (restored(&bootstrap), restored(&bootstrap));
        assert_eq!(add(&one, 1).await.unwrap(), 1);
        assert_eq!(add(&other, 1).await.unwrap(), 2);
        drop(one);
        assert_eq!(add(&other, 1).await.unwrap(), 3, "the other reference still holds it");
        drop(other);
        // One more call behind the release: when it is answered, the release was read.
        restored(&bootstrap).get_request().send().promise.await.unwrap();
        drop((vat, bootstrap));
        dialling.close();
        dialling.closed().await;
        assert!(Rc::strong_count(&object) <= held);
    });
}

#[test]
fn calls_can_be_made_before_the_peer_has_greeted() {
    run(async {
        let (server, client) = (server(), transport::Endpoint::client(&support::key()).unwrap());
        let (dialled, accepted) = connect(&server, &client).await;
        let opening = Session::begin(dialled, options(), None).await.unwrap();
        let counter: counter::Client = opening.bootstrap();
        let call = tokio::task::spawn_local(call_add(&counter, 5));
        let accept = Session::accept(accepted, serving(new_counter()));
        let (session, accepting) = tokio::try_join!(opening.greeted(), accept).unwrap();
        call.await.unwrap().unwrap();
        assert_eq!(session.peer().program, "test 1.0");
        assert_eq!(accepting.peer().epoch, 1);
        assert_eq!(add(&session.bootstrap(), 1).await.unwrap(), 6);
    });
}

#[test]
fn calls_made_before_a_greeting_that_fails_fail_with_its_reason() {
    run(async {
        let (server, client) = (server(), transport::Endpoint::client(&support::key()).unwrap());
        let (dialled, accepted) = connect(&server, &client).await;
        let opening = Session::begin(dialled, options(), None).await.unwrap();
        let counter: counter::Client = opening.bootstrap();
        let call = tokio::task::spawn_local(call_add(&counter, 5));
        let (mut output, _input) = accepted.quinn().accept_bi().await.unwrap();
        output.write_all(&crate::raw::preface(1, 9)).await.unwrap();
        let error = opening.greeted().await.unwrap_err();
        assert_eq!(schemas::Coded::code(&error), schemas::ErrorCode::SessionVersion);
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(schemas::RemoteError::parse(&error.extra).unwrap().code, schemas::ErrorCode::SessionVersion);
    });
}
