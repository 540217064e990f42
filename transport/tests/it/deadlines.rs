//! Peers that take their time: with a message, with an answer, or with everything.

use std::time::{Duration, Instant};

use schemas::{Coded, ErrorCode, RemoteError, objects_capnp::counter, vat_capnp};
use transport::{SessionEnd, Violation, with_call_deadline};

use crate::{
    raw::{COUNTER, SHORT, announce},
    scene::{Scene, attack},
    support::{Counter, add, counter as counter_client, new_counter},
};

/// Has an honest peer call until so much time has passed.
async fn pass(scene: &Scene, time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        scene.honest_peer_is_served().await;
    }
}

#[test]
fn a_message_of_which_one_byte_comes_now_and_then() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack_within(new_counter(), |limits| limits.message_deadline = SHORT).await;
        peer.bootstrap(0).await;
        peer.answer_to(0).await;
        let begun = Instant::now();
        peer.write(&announce(100_000)).await;
        let trickle = async {
            while peer.output.write_all(&[0]).await.is_ok() {
                scene.honest_peer_is_served().await;
            }
        };
        let (end, ()) = tokio::join!(session.closed(), trickle);
        let SessionEnd::Violation(Violation::SlowMessage { received, .. }) = end else { panic!("{end}") };
        assert!((1..100_000).contains(&received), "{received}");
        assert!(begun.elapsed() >= SHORT);
        assert_eq!(peer.told().await.code, ErrorCode::SessionSlowMessage);
    });
}

#[test]
fn a_message_that_is_begun_and_left() {
    attack(async |scene| {
        // Within its head, too.
        for bytes in [&[0_u8][..], &announce(1000)] {
            let (mut peer, session) =
                scene.attack_within(new_counter(), |limits| limits.message_deadline = SHORT).await;
            peer.write(bytes).await;
            let end = session.closed().await;
            assert!(matches!(end, SessionEnd::Violation(Violation::SlowMessage { .. })), "{end}");
            assert_eq!(peer.told().await.code, ErrorCode::SessionSlowMessage);
        }
    });
}

#[test]
fn a_quiet_peer_between_messages_is_not_slow() {
    attack(async |scene| {
        let (mut peer, session) =
            scene.attack_within(new_counter(), |limits| limits.message_deadline = SHORT / 10).await;
        peer.bootstrap(0).await;
        pass(scene, SHORT).await;
        peer.call(1, 0, COUNTER, 0).await;
        peer.answer_to(1).await;
        assert!(session.end().is_none());
        (peer, session)
    });
}

fn code_of(error: &capnp::Error) -> ErrorCode {
    RemoteError::parse(&error.extra).unwrap().code
}

#[test]
fn a_call_that_is_never_answered_fails_and_so_does_what_was_made_on_its_result() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack_within(new_counter(), |limits| limits.call_deadline = Some(SHORT)).await;
        let theirs: vat_capnp::vat::Client = session.bootstrap();
        let begun = Instant::now();
        let asked = theirs.restore_request().send();
        let on_result: counter::Client =
            capnp::capability::FromClientHook::new(asked.pipeline.get_capability().as_cap());
        let on_result = tokio::task::spawn_local(async move { add(&on_result, 1).await });
        peer.called().await;
        assert_eq!(code_of(&asked.promise.await.err().unwrap()), ErrorCode::SessionUnanswered);
        assert_eq!(code_of(&on_result.await.unwrap().unwrap_err()), ErrorCode::SessionUnanswered);
        assert!(begun.elapsed() >= SHORT);
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn a_caller_may_choose_how_long_it_waits() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack_within(new_counter(), |limits| limits.call_deadline = Some(SHORT)).await;
        let theirs: counter::Client = session.bootstrap();
        let patient = with_call_deadline(None, || theirs.get_request().send().promise);
        let patient_question = peer.called().await;
        let hasty = with_call_deadline(Some(Duration::ZERO), || theirs.get_request().send().promise);
        assert_eq!(code_of(&hasty.await.err().unwrap()), ErrorCode::SessionUnanswered);
        let usual = theirs.get_request().send().promise;
        assert_eq!(code_of(&usual.await.err().unwrap()), ErrorCode::SessionUnanswered);
        peer.answer(patient_question, |answer| {
            answer.init_results().init_content().init_as::<counter::get_results::Builder<'_>>().set_total(7);
        })
        .await;
        assert_eq!(patient.await.unwrap().get().unwrap().get_total(), 7);
        (peer, session)
    });
}

#[test]
fn a_late_answer_is_given_to_nobody_else_and_what_comes_with_it_is_given_back() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack_within(new_counter(), |limits| limits.call_deadline = Some(SHORT)).await;
        let theirs: counter::Client = with_call_deadline(None, || session.bootstrap());
        let first = theirs.get_request().send().promise;
        let late = peer.called().await;
        assert_eq!(code_of(&first.await.err().unwrap()), ErrorCode::SessionUnanswered);

        // The RPC layer gives the number to the next call; the peer must not see it twice.
        let second = with_call_deadline(None, || theirs.get_request().send().promise);
        let in_time = peer.called().await;
        assert_ne!(late, in_time);
        let total = |total| {
            move |answer: capnp_rpc::rpc_capnp::return_::Builder<'_>| {
                let mut results = answer.init_results();
                let mut content = results.reborrow().init_content().init_as::<counter::get_results::Builder<'_>>();
                content.set_total(total);
                results.init_cap_table(1).get(0).set_sender_hosted(55);
            }
        };
        peer.answer(late, total(1)).await;
        peer.answer(in_time, total(2)).await;
        assert_eq!(second.await.unwrap().get().unwrap().get_total(), 2);
        // 55 came twice: what came late was released by the Finish or by itself, the other when the answer was dropped.
        let third = with_call_deadline(None, || theirs.get_request().send().promise);
        let question = peer.called().await;
        assert_eq!(question, late, "what was owed is paid, and the number free again");
        peer.answer(question, total(3)).await;
        assert_eq!(third.await.unwrap().get().unwrap().get_total(), 3);
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn what_was_lent_with_a_call_that_was_not_answered_in_time_is_released_by_the_late_answer() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack_within(new_counter(), |limits| limits.call_deadline = Some(SHORT)).await;
        let theirs: vat_capnp::owner::Client = session.bootstrap();
        let object = std::rc::Rc::new(Counter::default());
        let lent = std::rc::Rc::downgrade(&object);
        let mut request = theirs.verify_request();
        request.get().set_progress(capnp::capability::FromClientHook::new(counter_client(object).hook));
        let asked = request.send().promise;
        let question = peer.called().await;
        assert_eq!(code_of(&asked.await.err().unwrap()), ErrorCode::SessionUnanswered);
        assert_eq!(lent.strong_count(), 1, "the peer may still use it");
        peer.answer(question, |mut answer| {
            answer.set_release_param_caps(true);
            answer.init_exception();
        })
        .await;
        while lent.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn a_peer_that_answers_nothing() {
    attack(async |scene| {
        let (peer, session) = scene
            .attack_within(new_counter(), |limits| {
                (limits.call_deadline, limits.unanswered_calls) = (Some(SHORT), 3);
            })
            .await;
        let theirs: counter::Client = session.bootstrap();
        let calls = (0..10).map(|_| theirs.get_request().send().promise);
        let outcomes = futures::future::join_all(calls).await;
        assert!(outcomes.iter().all(Result::is_err));
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Unanswered { limit: 3 })), "{end}");
        assert_eq!(peer.told().await.code, ErrorCode::SessionUnanswered);
    });
}

#[test]
fn an_answer_that_comes_twice() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        let theirs: counter::Client = session.bootstrap();
        let asked = theirs.get_request().send().promise;
        let question = peer.called().await;
        for _ in 0..2 {
            peer.answer(question, |answer| {
                answer.init_results().init_content().init_as::<counter::get_results::Builder<'_>>();
            })
            .await;
        }
        let _kept = asked.await.unwrap();
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Rpc(_))), "{end}");
        assert_eq!(peer.told().await.code, ErrorCode::SessionProtocol);
    });
}

#[test]
fn a_peer_that_comes_and_says_nothing() {
    attack(async |scene| {
        let (peer, session) = scene.attack_within(new_counter(), |limits| limits.idle_deadline = SHORT).await;
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Idle { after: SHORT }), "{end}");
        assert_eq!(end.code(), ErrorCode::SessionIdle);
        assert_eq!(peer.told().await.code, ErrorCode::SessionIdle);
    });
}

#[test]
fn a_peer_that_holds_something_may_be_quiet() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack_within(new_counter(), |limits| limits.idle_deadline = SHORT / 4).await;
        peer.bootstrap(0).await;
        peer.answer_to(0).await;
        pass(scene, 2 * SHORT).await;
        assert!(session.end().is_none());
        // It lets go of it, and then of nothing.
        peer.finish(0, true).await;
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Idle { .. }), "{end}");
    });
}
