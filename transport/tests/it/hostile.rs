//! Hostile peers: each test is an attack. After each, an honest session of the same thread works.

use std::{cell::Cell, rc::Rc};

use capnp::{capability::Client, traits::ImbueMut};
use capnp_rpc::rpc_capnp::{cap_descriptor, message, return_};
use schemas::{
    Coded, ErrorCode, RemoteError,
    objects_capnp::{counter, notes},
    vat_capnp::vat,
};
use transport::{
    Endpoint, HelloError, Session, SessionEnd, SessionError, SessionLimits, SessionOptions, Violation,
    frames::FrameError,
};

use crate::{
    raw::{RawPeer, SHORT, announce, hello_bytes, preface},
    support::{Counter, add, connect, counter, key, new_counter, options, run, server, serving, vat},
};

const COUNTER: u64 = <counter::Client as capnp::traits::HasTypeId>::TYPE_ID;
const NOTES: u64 = <notes::Client as capnp::traits::HasTypeId>::TYPE_ID;
const VAT: u64 = <vat::Client as capnp::traits::HasTypeId>::TYPE_ID;

/// A server with an honest session beside the attack.
struct Scene {
    server: Endpoint,
    honest: (Session, Session),
    _client: Endpoint,
}

impl Scene {
    async fn new() -> Self {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let (dialled, accepted) = connect(&server, &client).await;
        let accept = Session::accept(accepted, serving(new_counter()));
        let honest = tokio::try_join!(Session::open(dialled, options()), accept).unwrap();
        Self { server, honest, _client: client }
    }

    async fn attack(&self, bootstrap: Client) -> (RawPeer, Session) {
        self.attack_within(bootstrap, |_| {}).await
    }

    async fn attack_within(&self, bootstrap: Client, limit: impl FnOnce(&mut SessionLimits)) -> (RawPeer, Session) {
        let mut limits = SessionLimits::default();
        limit(&mut limits);
        RawPeer::greeted(&self.server, SessionOptions { limits, ..serving(bootstrap) }).await
    }

    async fn honest_peer_is_served(&self) {
        let before = add(&self.honest.0.bootstrap(), 0).await.unwrap();
        assert_eq!(add(&self.honest.0.bootstrap(), 1).await.unwrap(), before + 1);
    }
}

/// What is sent instead of a greeting, and what comes of it.
async fn greeted_with(bytes: &[u8]) -> (SessionError, RemoteError) {
    let scene = Scene::new().await;
    let (mut peer, accepted) = RawPeer::dial(&scene.server).await;
    peer.write(bytes).await;
    let error = Session::accept(accepted, serving(new_counter())).await.unwrap_err();
    let told = peer.told().await;
    assert_eq!(told.code, error.code(), "the peer is told what we saw");
    scene.honest_peer_is_served().await;
    (error, told)
}

#[test]
fn garbage_instead_of_a_preface() {
    run(async {
        let (error, told) = greeted_with(b"GET / HTTP/1.1\r\n\r\n").await;
        assert!(matches!(error, SessionError::Hello(HelloError::NotOurs)), "{error}");
        assert_eq!(told.code, ErrorCode::SessionVersion);
    });
}

#[test]
fn a_stream_of_an_unknown_kind_or_version() {
    run(async {
        for (kind, version) in [(2, 1), (1, 2)] {
            let (error, told) = greeted_with(&preface(kind, version)).await;
            assert!(matches!(error, SessionError::Hello(HelloError::Stream { .. })), "{error}");
            assert!(told.message.contains(&format!("kind {kind}, version {version}")), "{told}");
        }
    });
}

#[test]
fn a_greeting_of_another_version() {
    run(async {
        let (error, told) = greeted_with(&[preface(1, 1), hello_bytes(9, &[0; 16])].concat()).await;
        assert!(matches!(error, SessionError::Hello(HelloError::Version { found: 9 })), "{error}");
        assert!(told.message.contains("version 9"), "{told}");
    });
}

#[test]
fn a_greeting_with_a_wrong_incarnation() {
    run(async {
        let (error, _) = greeted_with(&[preface(1, 1), hello_bytes(1, &[0; 17])].concat()).await;
        assert!(matches!(error, SessionError::Hello(HelloError::Incarnation { found: 17 })), "{error}");
    });
}

#[test]
fn a_greeting_that_announces_a_gigabyte() {
    run(async {
        let (error, _) = greeted_with(&[preface(1, 1), announce(1 << 27)].concat()).await;
        assert!(matches!(error, SessionError::Hello(HelloError::Frame(FrameError::TooLarge { .. }))), "{error}");
    });
}

#[test]
fn a_peer_that_never_greets_or_stops_in_the_middle() {
    run(async {
        for bytes in [&[][..], &preface(1, 1)[..5], &preface(1, 1)[..]] {
            let scene = Scene::new().await;
            let (mut peer, accepted) = RawPeer::dial(&scene.server).await;
            peer.write(bytes).await;
            let mut options = serving(new_counter());
            options.limits.hello_deadline = SHORT;
            let error = Session::accept(accepted, options).await.unwrap_err();
            assert!(matches!(error, SessionError::Hello(HelloError::Timeout { after: SHORT })), "{error}");
            assert_eq!(peer.told().await.code, ErrorCode::NetTimeout);
            scene.honest_peer_is_served().await;
        }
    });
}

#[test]
fn an_honest_dialler_learns_why_its_greeting_was_refused() {
    run(async {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let (dialled, accepted) = connect(&server, &client).await;
        let open = tokio::task::spawn_local(Session::open(dialled, options()));
        let _stream = accepted.quinn().accept_bi().await.unwrap();
        accepted.close(ErrorCode::SessionVersion);
        let error = open.await.unwrap().unwrap_err();
        assert!(matches!(&error, SessionError::Ended(SessionEnd::Peer(_))), "{error:?}");
        assert_eq!(error.code(), ErrorCode::SessionVersion);
    });
}

/// What is sent after the greeting, and what comes of it.
async fn ended_by(bytes: &[u8]) -> (SessionEnd, RemoteError) {
    let scene = Scene::new().await;
    let (mut peer, session) = scene.attack(new_counter()).await;
    peer.write(bytes).await;
    let end = session.closed().await;
    let told = peer.told().await;
    assert_eq!(told.code, end.code());
    scene.honest_peer_is_served().await;
    (end, told)
}

#[test]
fn a_message_that_announces_64_mebibytes() {
    run(async {
        let (end, told) = ended_by(&announce(8 << 20)).await;
        let SessionEnd::Violation(Violation::Frame(FrameError::TooLarge { announced, limit })) = end else {
            panic!("{end}")
        };
        assert_eq!((announced, limit), ((64 << 20) + 8, 8 << 20));
        assert_eq!(told.code, ErrorCode::SessionMessageTooLarge);
    });
}

#[test]
fn a_message_of_four_thousand_million_segments() {
    run(async {
        let (end, told) = ended_by(&[0xff; 8]).await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Frame(FrameError::Segments { .. }))), "{end}");
        assert_eq!(told.code, ErrorCode::SessionProtocol);
    });
}

#[test]
fn a_message_that_is_empty_or_whose_root_points_nowhere() {
    run(async {
        for bytes in [announce(0), [announce(1), vec![0xfc, 0xff, 0xff, 0x7f, 1, 0, 0, 0]].concat()] {
            let (end, _) = ended_by(&bytes).await;
            assert!(matches!(end, SessionEnd::Violation(Violation::Malformed(_))), "{end}");
        }
    });
}

#[test]
fn a_return_to_a_question_that_was_never_asked() {
    run(async {
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<message::Builder<'_>>().init_return().set_answer_id(77);
        let (end, told) = ended_by(&capnp::serialize::write_message_to_words(&message)).await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Rpc(_))), "{end}");
        assert_eq!(told.code, ErrorCode::SessionProtocol);
    });
}

#[test]
fn a_release_of_what_was_never_given() {
    run(async {
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<message::Builder<'_>>().init_release().set_reference_count(u32::MAX);
        let (end, _) = ended_by(&capnp::serialize::write_message_to_words(&message)).await;
        assert!(matches!(end, SessionEnd::Violation(Violation::Rpc(_))), "{end}");
    });
}

#[test]
fn a_stream_that_ends_within_a_message_and_one_that_ends_after_it() {
    run(async {
        for (bytes, truncated) in [(&[0_u8; 3][..], true), (&announce(5)[..], true), (&[][..], false)] {
            let scene = Scene::new().await;
            let (mut peer, session) = scene.attack(new_counter()).await;
            peer.write(bytes).await;
            peer.output.finish().unwrap();
            let end = session.closed().await;
            assert_eq!(matches!(end, SessionEnd::Violation(Violation::Truncated)), truncated, "{end}");
            assert_eq!(matches!(end, SessionEnd::Peer(_)), !truncated, "{end}");
            scene.honest_peer_is_served().await;
        }
    });
}

#[test]
fn a_second_stream() {
    run(async {
        let scene = Scene::new().await;
        let (peer, session) = scene.attack(new_counter()).await;
        let (mut second, _) = peer.connection.quinn().open_bi().await.unwrap();
        second.write_all(&preface(1, 1)).await.unwrap();
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Violation(Violation::SecondStream)), "{end}");
        assert_eq!(peer.told().await.code, ErrorCode::SessionProtocol);
        scene.honest_peer_is_served().await;
    });
}

#[test]
fn a_message_with_more_capabilities_than_anyone_needs() {
    run(async {
        let scene = Scene::new().await;
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
        assert_eq!(peer.told().await.code, ErrorCode::SessionMessageTooLarge);
        scene.honest_peer_is_served().await;
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
    run(async {
        let scene = Scene::new().await;
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
        let id =
            returned_capability(&scene, |mut descriptor| descriptor.set_sender_promise(5), resolve_to_itself).await;
        assert_eq!(id, 5, "it goes back to where it came from");
        scene.honest_peer_is_served().await;
    });
}

#[test]
fn a_capability_of_a_third_party_is_used_through_its_vine() {
    run(async {
        let scene = Scene::new().await;
        let fill = |descriptor: cap_descriptor::Builder<'_>| descriptor.init_third_party_hosted().set_vine_id(9);
        let id = returned_capability(&scene, fill, async |_: &mut RawPeer| {}).await;
        assert_eq!(id, 9);
        scene.honest_peer_is_served().await;
    });
}

#[test]
fn a_call_of_ours_that_the_peer_gives_up_fails_instead_of_waiting_for_ever() {
    run(async {
        let scene = Scene::new().await;
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
        scene.honest_peer_is_served().await;
    });
}

/// Counts calls and answers none.
#[derive(Default)]
struct Hoard(Cell<usize>);
impl counter::Server for Hoard {
    async fn get(
        self: Rc<Self>,
        _params: counter::GetParams,
        _results: counter::GetResults,
    ) -> Result<(), capnp::Error> {
        self.0.set(self.0.get() + 1);
        std::future::pending().await
    }
}

#[test]
fn calls_without_end_are_refused_beyond_the_limit_and_accepted_again_when_others_are_given_up() {
    run(async {
        let scene = Scene::new().await;
        let hoard = Rc::new(Hoard::default());
        let object: counter::Client = capnp_rpc::new_client_from_rc(hoard.clone());
        let (mut peer, session) = scene.attack_within(object.client, |limits| limits.calls_in_flight = 3).await;
        peer.bootstrap(0).await;
        peer.receive().await.unwrap();
        let refused = async |peer: &mut RawPeer| {
            let message = peer.receive().await.unwrap();
            let Ok(message::Return(answer)) = message.get_root::<message::Reader<'_>>().unwrap().which() else {
                panic!()
            };
            let answer = answer.unwrap();
            let Ok(return_::Exception(error)) = answer.which() else { panic!() };
            let reason = error.unwrap().get_reason().unwrap().to_string().unwrap();
            assert_eq!(RemoteError::parse(&reason).unwrap().code, ErrorCode::SessionTooManyCalls);
            answer.get_answer_id()
        };
        for question in 1..=5 {
            peer.call(question, 0, COUNTER, 1).await;
        }
        assert_eq!((refused(&mut peer).await, refused(&mut peer).await), (4, 5));
        assert_eq!(hoard.0.get(), 3);
        // The number of a refused call is free again; the place of one that was given up is, too.
        peer.call(4, 0, COUNTER, 1).await;
        assert_eq!(refused(&mut peer).await, 4);
        peer.send(|message| message.init_finish().set_question_id(2)).await;
        peer.call(6, 0, COUNTER, 1).await;
        while hoard.0.get() < 4 {
            tokio::task::yield_now().await;
        }
        assert!(session.end().is_none());
        scene.honest_peer_is_served().await;
    });
}

#[test]
fn questions_that_are_never_let_go_of_are_refused_beyond_the_limit() {
    run(async {
        let scene = Scene::new().await;
        let (mut peer, session) = scene.attack_within(new_counter(), |limits| limits.open_questions = 10).await;
        for question in 0..12 {
            peer.bootstrap(question).await;
        }
        for question in 0..12 {
            let message = peer.receive().await.unwrap();
            let Ok(message::Return(answer)) = message.get_root::<message::Reader<'_>>().unwrap().which() else {
                panic!()
            };
            let answer = answer.unwrap();
            let answered = matches!(answer.which(), Ok(return_::Results(_)));
            assert_eq!((answer.get_answer_id(), answered), (question, question < 10));
        }
        assert!(session.end().is_none());
        scene.honest_peer_is_served().await;
    });
}

#[test]
fn calls_that_are_given_up_over_and_over() {
    run(async {
        let scene = Scene::new().await;
        let object: counter::Client = capnp_rpc::new_client(Hoard::default());
        let (mut peer, session) = scene.attack_within(object.client, |limits| limits.calls_given_up = 5).await;
        peer.bootstrap(0).await;
        for question in 1..=6 {
            peer.call(question, 0, COUNTER, 1).await;
            peer.send(|message| message.init_finish().set_question_id(question)).await;
        }
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Violation(Violation::GivenUp { limit: 5 })), "{end}");
        assert_eq!(peer.told().await.code, ErrorCode::SessionTooManyCalls);
        scene.honest_peer_is_served().await;
    });
}

/// Answers every call with ten kilobytes.
#[derive(Default)]
struct Verbose(Cell<usize>);
impl notes::Server for Verbose {
    async fn get(
        self: Rc<Self>,
        _params: notes::GetParams,
        mut results: notes::GetResults,
    ) -> Result<(), capnp::Error> {
        self.0.set(self.0.get() + 1);
        results.get().set_text("x".repeat(10_000));
        Ok(())
    }
}

/// More than the windows of QUIC and our own queue hold together.
const MANY: u32 = 2_000;

/// Sends [`MANY`] calls whose answers nobody reads.
async fn call_without_reading(peer: &mut RawPeer) {
    peer.bootstrap(0).await;
    peer.receive().await.unwrap();
    for question in 1..=MANY {
        peer.call(question, 0, NOTES, 1).await;
    }
}

#[test]
fn a_peer_that_calls_and_never_reads_is_not_read_from_until_it_does() {
    run(async {
        let scene = Scene::new().await;
        let verbose = Rc::new(Verbose::default());
        let object: notes::Client = capnp_rpc::new_client_from_rc(verbose.clone());
        let (mut peer, session) = scene.attack(object.client).await;
        call_without_reading(&mut peer).await;
        // All calls are on their way; the honest peer's calls take longer than what is left of the hostile one's.
        let mut last = 0;
        while verbose.0.get() == 0 || verbose.0.get() != last {
            last = verbose.0.get();
            for _ in 0..20 {
                scene.honest_peer_is_served().await;
            }
        }
        let windows = (transport::limits::STREAM_WINDOW_BYTES as usize
            + transport::limits::WAITING_ANSWER_BYTES
            + transport::limits::READ_AHEAD_BYTES)
            / 10_000;
        assert!(last <= windows, "{last} calls were carried out, whose answers nobody took; at most {windows} fit");
        // It reads, and is served again.
        for question in 1..=MANY {
            let message = peer.receive().await.unwrap();
            let Ok(message::Return(answer)) = message.get_root::<message::Reader<'_>>().unwrap().which() else {
                panic!()
            };
            assert_eq!(answer.unwrap().get_answer_id(), question);
        }
        assert!(session.end().is_none());
        scene.honest_peer_is_served().await;
    });
}

#[test]
fn a_peer_that_never_reads_is_given_up() {
    run(async {
        let scene = Scene::new().await;
        let object: notes::Client = capnp_rpc::new_client(Verbose::default());
        let (mut peer, session) = scene.attack_within(object.client, |limits| limits.write_stall = SHORT).await;
        call_without_reading(&mut peer).await;
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Stalled { after: SHORT }), "{end}");
        assert_eq!(peer.told().await.code, ErrorCode::SessionStalled);
        scene.honest_peer_is_served().await;
    });
}

#[test]
fn a_peer_that_takes_nothing_cannot_make_our_own_calls_pile_up() {
    run(async {
        let scene = Scene::new().await;
        let (_peer, session) = scene.attack_within(new_counter(), |limits| limits.waiting_bytes = 100_000).await;
        let theirs: notes::Client = session.bootstrap();
        let call = || {
            let mut request = theirs.put_request();
            request.get().set_text("x".repeat(10_000));
            Box::pin(request.send().promise)
        };
        // QUIC's window takes some; then the queue fills; then a call fails at once.
        let mut waiting = Vec::new();
        let error = loop {
            let mut call = call();
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            match futures::FutureExt::now_or_never(&mut call) {
                Some(outcome) => break outcome.err().unwrap(),
                None => waiting.push(call),
            }
            assert!(waiting.len() < 1_000, "nothing stops the queue from growing");
        };
        assert_eq!(RemoteError::parse(&error.extra).unwrap().code, ErrorCode::SessionTooManyCalls);
        assert!(session.end().is_none());
        scene.honest_peer_is_served().await;
    });
}

#[test]
fn an_abort_with_control_characters_is_reported_without_them() {
    run(async {
        let scene = Scene::new().await;
        let (mut peer, session) = scene.attack(new_counter()).await;
        peer.send(|message| message.init_abort().set_reason("object.failed: \u{1b}[31mred\nalert")).await;
        let SessionEnd::Peer(remote) = session.closed().await else { panic!("{:?}", session.end()) };
        assert_eq!((remote.code, &remote.message[..]), (ErrorCode::ObjectFailed, "[31mredalert"));
        scene.honest_peer_is_served().await;
    });
}

#[test]
fn a_flood_of_small_calls_does_not_keep_an_honest_peer_waiting() {
    run(async {
        let scene = Scene::new().await;
        let object = Rc::new(Counter::default());
        let (mut peer, session) = scene.attack(counter(object.clone())).await;
        peer.bootstrap(0).await;
        let mut flood = Vec::new();
        for question in 1..=3_000 {
            let mut message = capnp::message::Builder::new_default();
            let mut call = message.init_root::<message::Builder<'_>>().init_call();
            call.set_question_id(question);
            call.set_interface_id(COUNTER);
            call.set_method_id(1);
            call.init_target().init_promised_answer();
            flood.extend(capnp::serialize::write_message_to_words(&message));
        }
        let (_, ()) = tokio::join!(async { peer.output.write_all(&flood).await.unwrap() }, async {
            for _ in 0..50 {
                scene.honest_peer_is_served().await;
            }
        });
        assert!(session.end().is_none());
    });
}

#[test]
fn the_whole_vat_of_a_stranger_is_still_reachable_after_everything() {
    run(async {
        let scene = Scene::new().await;
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

/// capnp-rpc prints some errors with `println!`, which would destroy the answer of a CGI program. The attacks
/// above and the honest tests are run once more, with their standard output caught.
#[test]
fn nothing_of_the_rpc_layer_reaches_standard_output() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["hostile::", "calls::", "gate::", "--nocapture", "--skip", "standard_output"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let foreign: Vec<&str> = text
        .lines()
        .filter(|line| !(line.is_empty() || line.starts_with("test ") || line.starts_with("running ")))
        .collect();
    assert_eq!(foreign, [""; 0]);
}
