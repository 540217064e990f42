//! Peers that pile up work, memory or time here.

use std::{cell::Cell, rc::Rc};

use capnp_rpc::rpc_capnp::{message, return_};
use schemas::{
    ErrorCode, RemoteError,
    objects_capnp::{counter, notes},
};
use transport::{Endpoint, Session, SessionEnd, SessionOptions, Violation, limits};

use crate::{
    migration::Router,
    raw::{Answer, COUNTER, NOTES, RawPeer, SHORT, repeat_first_pointer},
    scene::attack,
    support::{Counter, PATIENCE, counter, key, new_counter, options, run, server, serving, sessions},
};

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
    attack(async |scene| {
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
        (peer, session)
    });
}

#[test]
fn questions_that_are_never_let_go_of_are_refused_beyond_the_limit() {
    attack(async |scene| {
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
        (peer, session)
    });
}

#[test]
fn calls_that_are_given_up_over_and_over() {
    attack(async |scene| {
        let object: counter::Client = capnp_rpc::new_client(Hoard::default());
        let (mut peer, session) = scene
            .attack_within(object.client, |limits| {
                // Forgotten no sooner than the busiest machine says them.
                (limits.calls_given_up, limits.given_up_interval) = (5, limits::IDLE_DEADLINE);
            })
            .await;
        peer.bootstrap(0).await;
        for question in 1..=6 {
            peer.call(question, 0, COUNTER, 1).await;
            peer.send(|message| message.init_finish().set_question_id(question)).await;
        }
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Violation(Violation::GivenUp { limit: 5 })), "{end}");
        assert_eq!(peer.told().await.code, ErrorCode::SessionTooManyGivenUp);
        (peer, session)
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

/// Sends [`MANY`] calls whose answers nobody reads, as far as they are taken.
async fn call_without_reading(peer: &mut RawPeer) -> Result<(), quinn::WriteError> {
    peer.bootstrap(0).await;
    peer.receive().await.unwrap();
    for question in 1..=MANY {
        let mut message = capnp::message::Builder::new_default();
        let mut call = message.init_root::<message::Builder<'_>>().init_call();
        call.set_question_id(question);
        call.set_interface_id(NOTES);
        call.set_method_id(1);
        call.init_target().init_promised_answer();
        peer.output.write_all(&capnp::serialize::write_message_to_words(&message)).await?;
    }
    Ok(())
}

#[test]
fn a_peer_that_calls_and_never_reads_is_not_read_from_until_it_does() {
    attack(async |scene| {
        let verbose = Rc::new(Verbose::default());
        let object: notes::Client = capnp_rpc::new_client_from_rc(verbose.clone());
        let (mut peer, session) = scene.attack(object.client).await;
        call_without_reading(&mut peer).await.unwrap();
        // All calls are on their way; the honest peer's calls take longer than what is left of the hostile one's.
        let mut last = 0;
        while verbose.0.get() == 0 || verbose.0.get() != last {
            last = verbose.0.get();
            for _ in 0..20 {
                scene.honest_peer_is_served().await;
            }
        }
        let windows =
            (limits::STREAM_WINDOW_BYTES as usize + limits::WAITING_ANSWER_BYTES + limits::READ_AHEAD_BYTES) / 10_000;
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
        (peer, session)
    });
}

#[test]
fn a_peer_that_never_reads_is_given_up() {
    attack(async |scene| {
        let object: notes::Client = capnp_rpc::new_client(Verbose::default());
        let (mut peer, session) = scene.attack_within(object.client, |limits| limits.write_stall = SHORT).await;
        // It may be given up before it has said all.
        let _ = call_without_reading(&mut peer).await;
        let end = session.closed().await;
        assert!(matches!(end, SessionEnd::Stalled { after: SHORT }), "{end}");
        assert_eq!(peer.told().await.code, ErrorCode::SessionStalled);
        (peer, session)
    });
}

#[test]
fn a_peer_that_takes_nothing_cannot_make_our_own_calls_pile_up() {
    attack(async |scene| {
        let (peer, session) = scene.attack_within(new_counter(), |limits| limits.waiting_bytes = 100_000).await;
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
        (peer, session)
    });
}

#[test]
fn a_flood_of_small_calls_does_not_keep_an_honest_peer_waiting() {
    attack(async |scene| {
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
        (peer, session)
    });
}

#[test]
fn calls_that_are_too_large_together() {
    attack(async |scene| {
        let object: counter::Client = capnp_rpc::new_client(Hoard::default());
        let limit = |limits: &mut transport::SessionLimits| limits.call_bytes_in_flight = 100_000;
        let (mut peer, session) = scene.attack_within(object.client, limit).await;
        peer.bootstrap(0).await;
        for question in 1..=3 {
            peer.call_with(question, 0, COUNTER, 1, |call| {
                call.init_params().init_content().set_as::<capnp::data::Owned>(&[7; 40_000][..]).unwrap();
            })
            .await;
        }
        assert_eq!(peer.answer_to(3).await.code(), Some(ErrorCode::SessionTooManyBytes));
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn a_flood_of_messages_that_mean_nothing() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        let mut flood = Vec::new();
        for question in 0..50_000 {
            let mut message = capnp::message::Builder::new_default();
            message.init_root::<message::Builder<'_>>().init_finish().set_question_id(1_000 + question);
            flood.extend(capnp::serialize::write_message_to_words(&message));
        }
        let (_, ()) = tokio::join!(async { peer.output.write_all(&flood).await.unwrap() }, async {
            for _ in 0..50 {
                scene.honest_peer_is_served().await;
            }
        });
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn a_capability_that_is_asked_for_over_and_over() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        for _ in 0..3_000 {
            peer.bootstrap(0).await;
            // The answer is let go of, and the reference that came with it is not.
            peer.finish(0, false).await;
        }
        peer.bootstrap(1).await;
        assert_eq!(peer.answer_to(1).await, Answer::Results(1));
        assert!(session.end().is_none());
        (peer, session)
    });
}

/// Reads its parameters as whoever copies or stores them would: to the last word.
struct ReadsAll;
impl counter::Server for ReadsAll {
    async fn get(
        self: Rc<Self>,
        params: counter::GetParams,
        _results: counter::GetResults,
    ) -> Result<(), capnp::Error> {
        params.get()?.total_size().map(drop)
    }
}

#[test]
fn a_message_that_nests_deeper_than_a_stack() {
    attack(async |scene| {
        let object: counter::Client = capnp_rpc::new_client(ReadsAll);
        let (mut peer, session) = scene.attack(object.client).await;
        peer.bootstrap(0).await;
        peer.call_with(1, 0, COUNTER, 1, |call| {
            // A struct with one pointer, to a struct with one pointer, and so on.
            let mut inner = call.init_params().init_content();
            for _ in 0..10_000 {
                inner = inner.init_as::<schemas::vat_capnp::vat::restore_results::Builder<'_>>().init_capability();
            }
        })
        .await;
        assert!(peer.answer_to(1).await.code().is_some());
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn an_answer_that_is_read_over_and_over() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        let theirs: counter::Client = session.bootstrap();
        let asked = theirs.get_request().send().promise;
        let question = peer.called().await;
        peer.answer(question, |answer| {
            answer.init_results().init_content().init_as::<counter::get_results::Builder<'_>>().set_total(7);
        })
        .await;
        let answer = asked.await.unwrap();
        // What may be read of a message is bounded, but not how often: here in sum to many times the bound.
        for look in 0..limits::TRAVERSAL_FLOOR_WORDS / 4 {
            assert_eq!(answer.get().unwrap().get_total(), 7);
            if look % 1000 == 0 {
                tokio::task::yield_now().await;
            }
        }
        assert!(session.end().is_none());
        (peer, session)
    });
}

#[test]
fn an_answer_that_leads_to_more_than_it_contains() {
    attack(async |scene| {
        let (mut peer, session) = scene.attack(new_counter()).await;
        let theirs: schemas::vat_capnp::vat::Client = session.bootstrap();
        let asked = theirs.restore_request().send().promise;
        let question = peer.called().await;
        // A list of two thousand pointers, each to the same eight kilobytes: twice as much as may be read.
        let allocator = capnp::message::HeapAllocator::new().first_segment_words(8192);
        let mut message = capnp::message::Builder::new(allocator);
        let mut answer = message.init_root::<message::Builder<'_>>().init_return();
        answer.set_answer_id(question);
        let results = answer.init_results().init_content();
        let results = results.init_as::<schemas::vat_capnp::vat::restore_results::Builder<'_>>();
        let mut list = results.init_capability().initn_as::<capnp::data_list::Builder<'_>>(2000);
        list.set(0, &[7; 8000]);
        let mut bytes = capnp::serialize::write_message_to_words(&message);
        repeat_first_pointer(&mut bytes, 2000);
        peer.write(&bytes).await;
        let answer = asked.await.unwrap();
        // capnp-rpc would panic at the second look.
        for _ in 0..2 {
            let looked = answer.get().and_then(|results| results.get_capability().target_size());
            assert!(looked.is_err(), "{looked:?}");
        }
        assert!(session.end().is_none());
        (peer, session)
    });
}

/// Answers with twenty kilobytes, and takes them.
struct Talkative;
impl notes::Server for Talkative {
    async fn get(
        self: Rc<Self>,
        _params: notes::GetParams,
        mut results: notes::GetResults,
    ) -> Result<(), capnp::Error> {
        results.get().set_text("x".repeat(20_000));
        Ok(())
    }

    async fn put(self: Rc<Self>, _params: notes::PutParams, _results: notes::PutResults) -> Result<(), capnp::Error> {
        Ok(())
    }
}

/// Each stops reading when the other owes it too much, and what the other owes lies behind calls that are not read.
#[test]
fn two_honest_sides_that_owe_each_other_more_than_is_kept_read_on_and_lose_nothing_but_calls() {
    run(async {
        let side = || {
            let object: notes::Client = capnp_rpc::new_client(Talkative);
            let mut options = serving(object.client);
            options.limits.mutual_stall = SHORT;
            options.limits.waiting_answer_bytes = 200_000;
            options
        };
        let (one, other) = sessions(side(), side()).await;
        let talk = async |session: &Session| {
            let theirs: notes::Client = session.bootstrap();
            let calls = (0..200).map(|_| {
                let mut put = theirs.put_request();
                put.get().set_text("x".repeat(20_000));
                (put.send().promise, theirs.get_request().send().promise)
            });
            let (mut answered, mut refused) = (0, 0);
            let mut count = |outcome: Result<(), capnp::Error>| match outcome {
                Ok(()) => answered += 1,
                Err(error) => {
                    let remote = RemoteError::parse(&error.extra).expect("a code");
                    assert_eq!(remote.code, ErrorCode::SessionTooManyBytes, "{remote:?}");
                    refused += 1;
                }
            };
            for (put, get) in calls.collect::<Vec<_>>() {
                count(put.await.map(|_| ()));
                count(get.await.map(|_| ()));
            }
            // It is over: whoever calls now is served.
            theirs.get_request().send().promise.await.unwrap();
            (answered, refused)
        };
        let (by_one, by_other) = tokio::join!(talk(&one), talk(&other));
        assert!(by_one.0 > 0 && by_other.0 > 0, "{by_one:?} {by_other:?}");
        assert!(by_one.1 + by_other.1 > 0, "neither waited for the other: the test shows nothing");
    });
}

#[test]
fn who_is_waited_for_later_than_it_waits_is_read_from_as_well() {
    attack(async |scene| {
        let object: notes::Client = capnp_rpc::new_client(Talkative);
        let (mut peer, session) = scene
            .attack_within(object.client, |limits| {
                (limits.mutual_stall, limits.waiting_answer_bytes) = (SHORT, 2_000_000);
            })
            .await;
        let theirs: counter::Client = session.bootstrap();
        let asked = theirs.get_request().send().promise;
        let question = peer.called().await;
        peer.bootstrap(0).await;
        // It takes nothing, and is owed less than is kept.
        for question in 1..=50 {
            peer.call(question, 0, NOTES, 1).await;
        }
        // The first looks at the stall find nothing to do.
        let stalled = std::time::Instant::now();
        while stalled.elapsed() < 3 * SHORT {
            scene.honest_peer_is_served().await;
        }
        // Now it is owed more, and what we wait for lies behind what is not read.
        for question in 51..=200 {
            peer.call(question, 0, NOTES, 1).await;
        }
        peer.answer(question, |answer| {
            answer.init_results().init_content().init_as::<counter::get_results::Builder<'_>>().set_total(7);
        })
        .await;
        let answer = tokio::time::timeout(PATIENCE / 3, asked).await.expect("an answer").unwrap();
        assert_eq!(answer.get().unwrap().get_total(), 7);
        assert!(session.end().is_none());
        (peer, session)
    });
}

/// What a cut path and two sides that wait for each other have in common: too many answers wait, one's own question is
/// open, and nothing is taken.
#[test]
fn calls_that_come_over_a_path_that_is_cut_the_other_way_are_answered_when_it_is_whole() {
    run(async {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let router = Router::before(server.local_address()).await;
        let object: notes::Client = capnp_rpc::new_client(Talkative);
        let mut serving = serving(object.client);
        (serving.limits.mutual_stall, serving.limits.waiting_answer_bytes) = (SHORT, 50_000);
        let accept = async { server.accept().await.unwrap().accept().await.unwrap() };
        let dial = async { client.dial(server.id(), router.inside, PATIENCE).await.unwrap() };
        let (dialled, accepted) = tokio::join!(dial, accept);
        let hoard: counter::Client = capnp_rpc::new_client(Hoard::default());
        let asking = SessionOptions { bootstrap: Some(hoard.client), ..options() };
        let (asking, served) =
            tokio::try_join!(Session::open(dialled, asking), Session::accept(accepted, serving)).unwrap();
        let theirs: notes::Client = asking.bootstrap();
        theirs.get_request().send().promise.await.unwrap();
        let asked = tokio::task::spawn_local(served.bootstrap::<counter::Client>().get_request().send().promise);
        tokio::task::yield_now().await;
        router.is_cut.set(true);
        let calls: Vec<_> = (0..100).map(|_| theirs.get_request().send().promise).collect();
        let cut = std::time::Instant::now();
        while cut.elapsed() < 8 * SHORT {
            tokio::task::yield_now().await;
        }
        router.is_cut.set(false);
        for call in calls {
            call.await.expect("nobody waited for anybody to read");
        }
        assert!(!asked.is_finished());
    });
}
