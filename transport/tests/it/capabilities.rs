//! Capabilities that a peer piles up, on either side, or takes back in ways of its own.

use std::{cell::RefCell, rc::Rc};

use capnp::capability::Client;
use schemas::{
    ErrorCode, RemoteError,
    objects_capnp::counter,
    vat_capnp::{self, owner, progress},
};
use transport::{SessionEnd, Violation};

use crate::{
    raw::{Answer, COUNTER, RawPeer, VAT},
    scene::attack,
    support::{Counter, counter as counter_client, new_counter},
};

/// Makes a new object for everyone who asks, and remembers how many there are.
#[derive(Default)]
struct Factory(RefCell<Vec<std::rc::Weak<Counter>>>);

impl Factory {
    fn alive(&self) -> usize {
        self.0.borrow().iter().filter(|object| object.strong_count() > 0).count()
    }
}

impl vat_capnp::vat::Server for Factory {
    async fn restore(
        self: Rc<Self>,
        _params: vat_capnp::vat::RestoreParams,
        mut results: vat_capnp::vat::RestoreResults,
    ) -> Result<(), capnp::Error> {
        let object = Rc::new(Counter::default());
        self.0.borrow_mut().push(Rc::downgrade(&object));
        results.get().init_capability().set_as_capability(counter_client(object).hook);
        Ok(())
    }
}

fn factory() -> (Rc<Factory>, Client) {
    let factory = Rc::new(Factory::default());
    let client: vat_capnp::vat::Client = capnp_rpc::new_client_from_rc(factory.clone());
    (factory, client.client)
}

#[test]
fn objects_that_are_asked_for_without_end_and_never_let_go() {
    attack(async |scene| {
        let (factory, client) = factory();
        // One of them is the bootstrap capability.
        let (mut peer, session) = scene.attack_within(client, |limits| limits.exports = 6).await;
        peer.bootstrap(0).await;
        for question in 1..=8 {
            peer.call(question, 0, VAT, 0).await;
            let answer = peer.answer_to(question).await;
            if question <= 5 {
                assert_eq!(answer, Answer::Results(1));
            } else {
                assert_eq!(answer.code(), Some(ErrorCode::SessionTooManyExports));
            }
            // The answer is let go of, what came with it is not.
            peer.finish(question, false).await;
        }
        scene.honest_peer_is_served().await;
        assert_eq!(factory.alive(), 5, "what was refused is not kept either");
        // One is let go of, and there is place for one.
        peer.send(|message| {
            let mut release = message.init_release();
            release.set_id(3);
            release.set_reference_count(1);
        })
        .await;
        for (question, code) in [(9, None), (10, Some(ErrorCode::SessionTooManyExports))] {
            peer.call(question, 0, VAT, 0).await;
            assert_eq!(peer.answer_to(question).await.code(), code);
        }
        assert_eq!(factory.alive(), 5);
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn objects_that_come_with_answers_are_let_go_of_with_them() {
    attack(async |scene| {
        let (factory, client) = factory();
        let (mut peer, session) = scene.attack_within(client, |limits| limits.exports = 2).await;
        peer.bootstrap(0).await;
        for question in 1..=100 {
            peer.call(question, 0, VAT, 0).await;
            assert_eq!(peer.answer_to(question).await, Answer::Results(1));
            peer.finish(question, true).await;
        }
        scene.honest_peer_is_served().await;
        assert_eq!(factory.alive(), 0);
        (peer, session)
    });
}

#[test]
fn an_answer_that_is_refused_leaves_nothing_behind() {
    /// Its answer is larger than is accepted, and has a capability.
    struct Lavish(RefCell<std::rc::Weak<Counter>>);
    impl vat_capnp::vat::Server for Lavish {
        async fn restore(
            self: Rc<Self>,
            _params: vat_capnp::vat::RestoreParams,
            mut results: vat_capnp::vat::RestoreResults,
        ) -> Result<(), capnp::Error> {
            let object = Rc::new(Counter::default());
            *self.0.borrow_mut() = Rc::downgrade(&object);
            // What is replaced still takes its place in the message.
            results.get().init_capability().set_as::<capnp::data::Owned>(&[7_u8; 100_000][..])?;
            results.get().init_capability().set_as_capability(counter_client(object).hook);
            Ok(())
        }
    }
    attack(async |scene| {
        let lavish = Rc::new(Lavish(RefCell::default()));
        let client: vat_capnp::vat::Client = capnp_rpc::new_client_from_rc(lavish.clone());
        let (mut peer, session) = scene.attack_within(client.client, |limits| limits.message_bytes = 50_000).await;
        peer.bootstrap(0).await;
        for question in 1..=3 {
            peer.call(question, 0, VAT, 0).await;
            assert_eq!(peer.answer_to(question).await.code(), Some(ErrorCode::SessionMessageTooLarge));
            scene.honest_peer_is_served().await;
            assert_eq!(lavish.0.borrow().strong_count(), 0);
        }
        // The number can be used again at once: nothing here remembers it.
        peer.call(1, 0, VAT, 0).await;
        assert_eq!(peer.answer_to(1).await.code(), Some(ErrorCode::SessionMessageTooLarge));
        assert!(session.end().is_none());
        (peer, session)
    });
}

/// Keeps every capability that it is given.
#[derive(Default)]
struct Keeps(RefCell<Vec<progress::Client>>);
impl owner::Server for Keeps {
    async fn verify(
        self: Rc<Self>,
        params: owner::VerifyParams,
        _results: owner::VerifyResults,
    ) -> Result<(), capnp::Error> {
        self.0.borrow_mut().push(params.get()?.get_progress()?);
        Ok(())
    }
}

#[test]
fn capabilities_that_an_object_is_made_to_keep() {
    attack(async |scene| {
        let keeps = Rc::new(Keeps::default());
        let client: owner::Client = capnp_rpc::new_client_from_rc(keeps.clone());
        let (mut peer, session) = scene.attack_within(client.client, |limits| limits.imports = 5).await;
        peer.bootstrap(0).await;
        for question in 1..=7 {
            peer.lend(question, 0, 100 + question).await;
            let code = (question > 5).then_some(ErrorCode::SessionTooManyImports);
            assert_eq!(peer.answer_to(question).await.code(), code);
        }
        // What is kept already may come again; and when something is let go of there is place.
        peer.lend(8, 0, 101).await;
        assert_eq!(peer.answer_to(8).await, Answer::Results(0));
        keeps.0.borrow_mut().retain(|_| false);
        peer.lend(9, 0, 200).await;
        peer.answer_to(9).await;
        peer.lend(10, 0, 201).await;
        assert_eq!(peer.answer_to(10).await, Answer::Results(0));
        assert!(session.end().is_none());
        keeps.0.borrow_mut().clear();
        (peer, session)
    });
}

#[test]
fn capabilities_that_answers_would_make_us_keep() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack_within(new_counter(), |limits| limits.imports = 2).await;
        let theirs: vat_capnp::vat::Client = session.bootstrap();
        let asked = theirs.restore_request().send();
        let question = peer.called().await;
        peer.answer(question, |answer| {
            let mut results = answer.init_results();
            crate::raw::set_capability(results.reborrow(), 2);
            let mut table = results.get_cap_table().unwrap();
            (0..3).for_each(|index| table.reborrow().get(index).set_sender_hosted(70 + index));
        })
        .await;
        let error = asked.promise.await.err().unwrap();
        assert_eq!(RemoteError::parse(&error.extra).unwrap().code, ErrorCode::SessionTooManyImports);
        // All three are given back.
        let mut released: Vec<u32> = released(&mut peer, 3).await;
        released.sort_unstable();
        assert_eq!(released, [70, 71, 72]);
        assert!(session.end().is_none());
        (peer, session)
    });
}

async fn released(peer: &mut RawPeer, count: usize) -> Vec<u32> {
    use capnp_rpc::rpc_capnp::message;
    let mut released = Vec::new();
    while released.len() < count {
        let message = peer.receive().await.expect("a release");
        if let Ok(message::Release(release)) = message.get_root::<message::Reader<'_>>().unwrap().which() {
            released.push(release.unwrap().get_id());
        }
    }
    released
}

/// Calls the peer with an object of ours as the parameter; returns that object and the number of the question.
async fn lent_to(
    peer: &mut RawPeer,
    session: &transport::Session,
) -> (std::rc::Weak<Counter>, u32, tokio::task::JoinHandle<Result<(), capnp::Error>>) {
    let theirs: owner::Client = session.bootstrap();
    let object = Rc::new(Counter::default());
    let lent = Rc::downgrade(&object);
    let mut request = theirs.verify_request();
    request.get().set_progress(capnp::capability::FromClientHook::new(counter_client(object).hook));
    let waiting = tokio::task::spawn_local(async move { request.send().promise.await.map(drop) });
    let question = peer.called().await;
    (lent, question, waiting)
}

#[test]
fn what_was_lent_with_a_call_is_released_when_the_answer_says_so() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        for releases in [true, false] {
            let (lent, question, waiting) = lent_to(&mut peer, &session).await;
            peer.answer(question, |mut answer| {
                answer.set_release_param_caps(releases);
                answer.set_no_finish_needed(true);
                answer.init_results();
            })
            .await;
            waiting.await.unwrap().unwrap();
            scene.honest_peer_is_served().await;
            assert_eq!(lent.strong_count() == 0, releases);
        }
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn what_was_lent_with_a_call_is_released_twice() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        let (_, question, waiting) = lent_to(&mut peer, &session).await;
        // The first object that this side has ever lent.
        peer.send(|message| {
            let mut release = message.init_release();
            release.set_id(0);
            release.set_reference_count(1);
        })
        .await;
        peer.answer(question, |mut answer| {
            answer.set_release_param_caps(true);
            answer.init_results();
        })
        .await;
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Rpc(_))), "{end}");
        assert_eq!(peer.told().await.code, ErrorCode::SessionProtocol);
        let _ = waiting.await.unwrap();
    });
}

#[test]
fn a_call_of_ours_that_is_not_sent_leaves_nothing_behind() {
    attack(async |scene| {
        let (peer, session) = scene.attack_within(new_counter(), |limits| limits.exports = 0).await;
        let theirs: owner::Client = session.bootstrap();
        let object = Rc::new(Counter::default());
        let lent = Rc::downgrade(&object);
        let mut request = theirs.verify_request();
        request.get().set_progress(capnp::capability::FromClientHook::new(counter_client(object).hook));
        let error = request.send().promise.await.err().unwrap();
        assert_eq!(RemoteError::parse(&error.extra).unwrap().code, ErrorCode::SessionTooManyExports);
        scene.honest_peer_is_served().await;
        assert_eq!(lent.strong_count(), 0);
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn a_capability_that_names_an_object_which_was_never_given() {
    attack(async |scene| {
        let keeps = Rc::new(Keeps::default());
        let client: owner::Client = capnp_rpc::new_client_from_rc(keeps.clone());
        let (mut peer, session) = scene.attack(client.client).await;
        peer.bootstrap(0).await;
        peer.call_with(1, 0, crate::raw::OWNER, crate::raw::VERIFY, |call| {
            let mut params = call.init_params();
            crate::raw::set_capability(params.reborrow(), 0);
            params.get_cap_table().unwrap().get(0).set_receiver_hosted(4_000_000_000);
        })
        .await;
        assert_eq!(peer.answer_to(1).await, Answer::Results(0));
        let broken: counter::Client =
            capnp::capability::FromClientHook::new(keeps.0.borrow_mut().remove(0).client.hook);
        assert!(crate::support::add(&broken, 1).await.is_err());
        assert!(session.end().is_none());
        let _ = COUNTER;
        (peer, session)
    });
}
