//! Hostile messages: each test is an attack within a session.

use std::rc::Rc;

use capnp::{capability::Client, traits::ImbueMut};
use capnp_rpc::rpc_capnp::{cap_descriptor, message, return_};
use futures::future::LocalBoxFuture;
use schemas::{Coded, ErrorCode, RemoteError, Secret, objects_capnp::counter, vat_capnp::vat};
use transport::{BulkSource, SessionEnd, Violation, frames::FrameError};

use crate::{
    raw::{RawPeer, VAT, announce, preface},
    scene::{Scene, attack},
    support::{add, new_counter, vat},
};

/// What is sent after the greeting, and what comes of it.
async fn ended_by(scene: &Scene, bytes: &[u8]) -> (SessionEnd, RemoteError) {
    let (mut peer, session) = scene.attack(new_counter()).await;
    peer.write(bytes).await;
    let end = session.closed().await;
    let told = peer.told().await;
    assert_eq!(told.code, end.code());
    (end, told)
}

#[test]
fn a_message_that_announces_64_mebibytes() {
    attack(async |scene| {
        let (end, told) = ended_by(scene, &announce(8 << 20)).await;
        let SessionEnd::Violation(Violation::Frame(FrameError::TooLarge { announced, limit })) = end else {
            panic!("{end}")
        };
        assert_eq!((announced, limit), ((64 << 20) + 8, 8 << 20));
        assert_eq!(told.code, ErrorCode::SessionMessageTooLarge);
    });
}

#[test]
fn a_message_of_four_thousand_million_segments() {
    attack(async |scene| {
        let (end, told) = ended_by(scene, &[0xff; 8]).await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Frame(FrameError::Segments { .. }))), "{end}");
        assert_eq!(told.code, ErrorCode::SessionTooManySegments);
    });
}

#[test]
fn a_message_that_is_empty_or_whose_root_points_nowhere() {
    attack(async |scene| {
        for bytes in [announce(0), [announce(1), vec![0xfc, 0xff, 0xff, 0x7f, 1, 0, 0, 0]].concat()] {
            let (end, _) = ended_by(scene, &bytes).await;
            assert!(matches!(end, SessionEnd::Violation(Violation::Malformed(_))), "{end}");
        }
    });
}

#[test]
fn a_return_to_a_question_that_was_never_asked() {
    attack(async |scene| {
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<message::Builder<'_>>().init_return().set_answer_id(77);
        let (end, told) = ended_by(scene, &capnp::serialize::write_message_to_words(&message)).await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Rpc(_))), "{end}");
        assert_eq!(told.code, ErrorCode::SessionProtocol);
    });
}

#[test]
fn a_release_of_what_was_never_given() {
    attack(async |scene| {
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<message::Builder<'_>>().init_release().set_reference_count(u32::MAX);
        let (end, _) = ended_by(scene, &capnp::serialize::write_message_to_words(&message)).await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Rpc(_))), "{end}");
    });
}

#[test]
fn a_stream_that_ends_within_a_message_and_one_that_ends_after_it() {
    attack(async |scene| {
        for (bytes, truncated) in [(&[0_u8; 3][..], true), (&announce(5)[..], true), (&[][..], false)] {
            let (mut peer, session) = scene.attack(new_counter()).await;
            peer.write(bytes).await;
            peer.output.finish().unwrap();
            let end = session.closed().await;
            assert_eq!(matches!(end, SessionEnd::Violation(Violation::Truncated)), truncated, "{end}");
            assert_eq!(matches!(end, SessionEnd::Peer(_)), !truncated, "{end}");
        }
    });
}

#[test]
fn a_second_stream() {
    attack(async |scene| {
        let (peer, session) = scene.attack(new_counter()).await;
        // Without anything offered QUIC itself allows no other stream.
        session.offer(&Secret::generate().unwrap(), Box::new(Nothing)).unwrap();
        let (mut second, _) = peer.connection.quinn().open_bi().await.unwrap();
        second.write_all(&preface(1, 1)).await.unwrap();
        second.finish().unwrap();
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Violation(Violation::SecondStream)), "{end}");
        assert_eq!(peer.told().await.code, ErrorCode::SessionProtocol);
        (peer, session)
    });
}

#[test]
fn a_stream_for_content_that_was_never_offered() {
    attack(async |scene| {
        let (peer, session) = scene.attack(new_counter()).await;
        session.offer(&Secret::generate().unwrap(), Box::new(Nothing)).unwrap();
        let (mut second, _) = peer.connection.quinn().open_bi().await.unwrap();
        second.write_all(&[&preface(2, 1)[..], &[7; 32], &[0; 8]].concat()).await.unwrap();
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Violation(Violation::SecondStream)), "{end}");
        assert_eq!(peer.told().await.code, ErrorCode::SessionProtocol);
        (peer, session)
    });
}

struct Nothing;

impl BulkSource for Nothing {
    fn length(&self) -> u64 {
        0
    }

    fn read(&self, _: u64, _: usize) -> LocalBoxFuture<'_, Result<Vec<u8>, capnp::Error>> {
        unreachable!("there is nothing to read")
    }
}

#[test]
fn a_message_with_more_capabilities_than_anyone_needs() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        peer.bootstrap(0).await;
        peer.send(|message| {
            let mut call = message.init_call();
            call.reborrow().init_target().init_promised_answer();
            call.set_question_id(1);
            let mut table = call.init_params().init_cap_table(100_000);
            for index in 0..100_000 {
                table.reborrow().get(index).set_sender_hosted(index);
            }
        })
        .await;
        let end = session.closed().await;
        let SessionEnd::Violation(Violation::Capabilities { found, limit }) = end else { panic!("{end}") };
        assert_eq!((found, limit), (100_000, 256));
        assert_eq!(peer.told().await.code, ErrorCode::SessionTooManyCapabilities);
        (peer, session)
    });
}

/// A peer whose own bootstrap capability is asked for by the session, and is answered with `descriptor`. The
/// session's side then gives that capability back as the answer to `restore`.
async fn returned_capability(
    scene: &Scene,
    fill: impl FnOnce(cap_descriptor::Builder<'_>),
    before_use: impl AsyncFnOnce(&mut RawPeer),
) -> u32 {
    let slot: Rc<std::cell::RefCell<Option<Client>>> = Rc::default();
    struct GivesBack(Rc<std::cell::RefCell<Option<Client>>>);
    impl vat::Server for GivesBack {
        async fn restore(
            self: Rc<Self>,
            _params: vat::RestoreParams,
            mut results: vat::RestoreResults,
        ) -> Result<(), capnp::Error> {
            let theirs = self.0.borrow().clone().unwrap();
            results.get().init_capability().set_as_capability(theirs.hook);
            Ok(())
        }
    }
    let gives_back: vat::Client = capnp_rpc::new_client(GivesBack(slot.clone()));
    let (mut peer, session) = scene.attack(gives_back.client).await;

    // Our side restores something from the peer, and so gets its capability in results.
    let theirs: vat::Client = session.bootstrap();
    let restoring = tokio::task::spawn_local(theirs.restore_request().send().promise);
    let asked = peer.receive().await.unwrap();
    assert!(matches!(asked.get_root::<message::Reader<'_>>().unwrap().which(), Ok(message::Bootstrap(_))));
    let called = peer.receive().await.unwrap();
    let Ok(message::Call(call)) = called.get_root::<message::Reader<'_>>().unwrap().which() else { panic!() };
    let question = call.unwrap().get_question_id();
    peer.send(|mut message| {
        let mut stand_ins = Vec::new();
        let mut answer = message.reborrow().init_return();
        answer.set_answer_id(question);
        let mut results = answer.init_results();
        fill(results.reborrow().init_cap_table(1).get(0));
        // Writes a capability pointer to entry 0 of the table; the stand-in itself is not sent.
        let mut content = results.init_content();
        content.imbue_mut(&mut stand_ins);
        let content: vat::restore_results::Builder<'_> = content.init_as();
        let stand_in = capnp_rpc::new_broken_cap(capnp::Error::failed("a stand-in".to_owned()));
        content.init_capability().set_as_capability(stand_in.hook);
    })
    .await;
    let response = restoring.await.unwrap().unwrap();
    let capability: Client = response.get().unwrap().get_capability().get_as_capability().unwrap();
    *slot.borrow_mut() = Some(capability);
    before_use(&mut peer).await;

    // Now the peer asks for it back: our side must send the capability onward.
    peer.bootstrap(10).await;
    peer.call(11, 10, VAT, 0).await;
    loop {
        let message = peer.receive().await.expect("an answer");
        if let Ok(message::Return(answer)) = message.get_root::<message::Reader<'_>>().unwrap().which() {
            let answer = answer.unwrap();
            if answer.get_answer_id() == 11 {
                let Ok(return_::Results(results)) = answer.which() else { panic!("an exception") };
                let table = results.unwrap().get_cap_table().unwrap();
                let Ok(cap_descriptor::ReceiverHosted(id)) = table.get(0).which() else { panic!("not theirs") };
                return id;
            }
        }
    }
}

#[test]
fn a_promise_that_resolves_to_itself() {
    attack(async |scene| {
        let resolve_to_itself = async |peer: &mut RawPeer| {
            peer.send(|message| {
                let mut resolve = message.init_resolve();
                resolve.set_promise_id(5);
                resolve.init_cap().set_sender_promise(5);
            })
            .await;
            loop {
                let message = peer.receive().await.expect("an answer to the Resolve");
                if let Ok(message::Unimplemented(echo)) = message.get_root::<message::Reader<'_>>().unwrap().which() {
                    let Ok(message::Resolve(resolve)) = echo.unwrap().which() else { panic!("another echo") };
                    assert_eq!(resolve.unwrap().get_promise_id(), 5);
                    break;
                }
            }
        };
        let id = returned_capability(scene, |mut descriptor| descriptor.set_sender_promise(5), resolve_to_itself).await;
        assert_eq!(id, 5, "it goes back to where it came from");
    });
}

#[test]
fn a_capability_of_a_third_party_is_used_through_its_vine() {
    attack(async |scene| {
        let fill = |descriptor: cap_descriptor::Builder<'_>| descriptor.init_third_party_hosted().set_vine_id(9);
        let id = returned_capability(scene, fill, async |_: &mut RawPeer| {}).await;
        assert_eq!(id, 9);
    });
}

#[test]
fn a_call_of_ours_that_the_peer_gives_up_fails_instead_of_waiting_for_ever() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        let theirs: counter::Client = session.bootstrap();
        let waiting = tokio::task::spawn_local(async move { add(&theirs, 1).await });
        peer.receive().await.unwrap();
        let called = peer.receive().await.unwrap();
        let Ok(message::Call(call)) = called.get_root::<message::Reader<'_>>().unwrap().which() else { panic!() };
        let question = call.unwrap().get_question_id();
        peer.send(|message| {
            let mut answer = message.init_return();
            answer.set_answer_id(question);
            answer.set_canceled(());
        })
        .await;
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(RemoteError::parse(&error.extra).unwrap().code, ErrorCode::SessionClosed);
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn an_abort_with_control_characters_is_reported_without_them() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        peer.send(|message| message.init_abort().set_reason("object.failed: \u{1b}[31mred\nalert")).await;
        let SessionEnd::Peer(remote) = session.closed().await else { panic!("{:?}", session.end()) };
        assert_eq!((remote.code, &remote.message[..]), (ErrorCode::ObjectFailed, "[31mredalert"));
        (peer, session)
    });
}

#[test]
fn what_an_honest_peer_sends_is_served() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(vat(new_counter())).await;
        peer.bootstrap(0).await;
        peer.call(1, 0, VAT, 0).await;
        for question in [0, 1] {
            let message = peer.receive().await.unwrap();
            let Ok(message::Return(answer)) = message.get_root::<message::Reader<'_>>().unwrap().which() else {
                panic!()
            };
            let answer = answer.unwrap();
            assert_eq!(answer.get_answer_id(), question);
            assert!(matches!(answer.which(), Ok(return_::Results(_))));
        }
        assert!(session.end().is_none());
    });
}
