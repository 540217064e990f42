//! What capnp-rpc does not have, and what it would answer in a way that costs us: refused before it sees it.

use capnp_rpc::rpc_capnp::{exception, message, return_};
use schemas::{ErrorCode, RemoteError, objects_capnp::counter};
use transport::{SessionEnd, Violation};

use crate::{
    raw::{Answer, COUNTER, RawPeer, repeat_first_pointer},
    scene::attack,
    support::new_counter,
};

/// Reads on until something is sent back as `unimplemented`, and says what kind of message that was.
async fn echoed(peer: &mut RawPeer) -> &'static str {
    loop {
        let message = peer.receive().await.expect("an echo");
        if let Ok(message::Unimplemented(echo)) = message.get_root::<message::Reader<'_>>().unwrap().which() {
            return match echo.unwrap().which().unwrap() {
                message::Provide(_) => "provide",
                message::Accept(_) => "accept",
                message::Join(_) => "join",
                message::Disembargo(_) => "disembargo",
                message::ObsoleteSave(_) => "save",
                _ => "another",
            };
        }
    }
}

#[test]
fn introductions_of_third_parties() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        peer.send(|message| message.init_provide().set_question_id(1)).await;
        assert_eq!(echoed(&mut peer).await, "provide");
        peer.send(|message| message.init_accept().set_question_id(2)).await;
        assert_eq!(echoed(&mut peer).await, "accept");
        peer.send(|message| message.init_join().set_question_id(3)).await;
        assert_eq!(echoed(&mut peer).await, "join");
        peer.send(|message| message.init_disembargo().init_context().set_provide(4)).await;
        assert_eq!(echoed(&mut peer).await, "disembargo");
        peer.send(|message| {
            message.init_obsolete_save();
        })
        .await;
        assert_eq!(echoed(&mut peer).await, "save");
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn an_introduction_that_is_larger_when_it_is_sent_back() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        // A struct of a thousand pointers, each to the same 8 kilobytes.
        let allocator = capnp::message::HeapAllocator::new().first_segment_words(4096);
        let mut message = capnp::message::Builder::new(allocator);
        let mut provide = message.init_root::<message::Builder<'_>>().init_provide();
        provide.set_question_id(1);
        let mut recipient = provide.init_recipient().initn_as::<capnp::data_list::Builder<'_>>(1000);
        recipient.set(0, &[7; 8000]);
        let mut bytes = capnp::serialize::write_message_to_words(&message);
        repeat_first_pointer(&mut bytes, 1000);
        peer.write(&bytes).await;
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Unknown)), "{end}");
        assert_eq!(peer.told().await.code, ErrorCode::SessionUnsupported);
    });
}

#[test]
fn a_message_of_a_kind_that_nobody_knows() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<message::Builder<'_>>().init_finish();
        let mut bytes = capnp::serialize::write_message_to_words(&message);
        // The kind is the first number of the root, behind the table and the root's pointer.
        bytes[16..18].copy_from_slice(&999_u16.to_le_bytes());
        peer.write(&bytes).await;
        let echo = peer.receive().await.unwrap();
        let Ok(message::Unimplemented(echo)) = echo.get_root::<message::Reader<'_>>().unwrap().which() else {
            panic!()
        };
        assert!(echo.unwrap().which().is_err(), "it is still of a kind that nobody knows");
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn a_call_whose_results_are_to_stay_here_or_to_go_elsewhere() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        peer.bootstrap(0).await;
        peer.call_with(1, 0, COUNTER, 0, |call| call.get_send_results_to().set_yourself(())).await;
        assert_eq!(peer.answer_to(1).await, Answer::Elsewhere);
        peer.call_with(2, 0, COUNTER, 0, |call| {
            call.get_send_results_to().init_third_party();
        })
        .await;
        let refused = Answer::Exception(exception::Type::Overloaded, ErrorCode::SessionUnsupported);
        assert_eq!(peer.answer_to(2).await, refused);
        // Neither was carried out: the number is free, and the counter has not counted.
        peer.call(1, 0, COUNTER, 1).await;
        assert_eq!(peer.answer_to(1).await, Answer::Results(0));
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn an_answer_that_is_somewhere_else() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        let theirs: counter::Client = session.bootstrap();
        let elsewhere: [fn(return_::Builder<'_>); 3] = [
            |mut answer| answer.set_take_from_other_question(1),
            |mut answer| answer.set_results_sent_elsewhere(()),
            |answer| {
                answer.init_accept_from_third_party();
            },
        ];
        for fill in elsewhere {
            let asked = theirs.get_request().send().promise;
            let question = peer.called().await;
            peer.answer(question, fill).await;
            let error = asked.await.err().unwrap();
            assert_eq!(RemoteError::parse(&error.extra).unwrap().code, ErrorCode::SessionUnsupported);
        }
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn a_request_to_lift_an_embargo_that_was_never_laid() {
    attack(async |scene| {
        for own in [true, false] {
            let (mut peer, session) = scene.attack(new_counter()).await;
            peer.bootstrap(0).await;
            peer.send(|message| {
                let mut disembargo = message.init_disembargo();
                disembargo.reborrow().init_target().init_promised_answer();
                let mut context = disembargo.init_context();
                if own { context.set_sender_loopback(3) } else { context.set_receiver_loopback(3) }
            })
            .await;
            let end = session.closed().await;
            assert!(matches!(end, SessionEnd::Violation(Violation::Rpc(_))), "{end}");
            assert_eq!(peer.told().await.code, ErrorCode::SessionProtocol);
        }
    });
}

#[test]
fn a_peer_that_says_it_has_no_calls() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        peer.send(|message| {
            message.init_unimplemented().init_call();
        })
        .await;
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Rpc(_))), "{end}");
    });
}

#[test]
fn a_call_under_a_number_that_is_in_use() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        peer.bootstrap(0).await;
        peer.call(0, 0, COUNTER, 0).await;
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Rpc(_))), "{end}");
        assert_eq!(peer.told().await.code, ErrorCode::SessionProtocol);
    });
}
