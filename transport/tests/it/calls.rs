//! Honest peers: calls, pipelining, callbacks, many sessions, orderly ends, panics.

use std::{cell::Cell, rc::Rc};

use schemas::{Coded, ErrorCode, RemoteError, objects_capnp::counter, vat_capnp::vat};
use tokio::sync::oneshot;
use transport::{Endpoint, Session, SessionEnd, SessionLimits, SessionOptions};

use crate::support::{
    Counter, add, connect, counter, key, new_counter, options, restored, run, server, serving, sessions, vat,
};

#[test]
fn a_call_is_answered_and_both_sides_know_each_other() {
    run(async {
        let (server_key, client_key) = (key(), key());
        let server = Endpoint::bind(&server_key, crate::support::loopback(), Default::default()).unwrap();
        let client = Endpoint::client(&client_key).unwrap();
        let (dialled, accepted) = connect(&server, &client).await;
        let (open, accept) = (Session::open(dialled, options()), Session::accept(accepted, serving(new_counter())));
        let (dialling, accepting) = tokio::try_join!(open, accept).unwrap();
        assert_eq!(dialling.peer().id, Some(server_key.id()));
        assert_eq!(accepting.peer().id, Some(client_key.id()));
        assert_eq!((dialling.peer().epoch, dialling.peer().incarnation), (1, [7; 16]));
        assert_eq!(dialling.peer().program, "test 1.0");
        let client: counter::Client = dialling.bootstrap();
        assert_eq!(add(&client, 5).await.unwrap(), 5);
        assert_eq!(add(&client, 2).await.unwrap(), 7);
    });
}

#[test]
fn calls_go_on_while_either_side_changes_its_keys() {
    run(async {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let (dialled, accepted) = connect(&server, &client).await;
        let (ours, theirs) = (dialled.clone(), accepted.clone());
        let (open, accept) = (Session::open(dialled, options()), Session::accept(accepted, serving(new_counter())));
        let (dialling, _accepting) = tokio::try_join!(open, accept).unwrap();
        let counter = dialling.bootstrap();
        for round in 0..6_u64 {
            let changing = if round % 2 == 0 { &theirs } else { &ours };
            changing.quinn().force_key_update();
            // Several round trips: both sides have seen the new keys.
            for call in 1..=4 {
                assert_eq!(add(&counter, 1).await.unwrap(), 4 * round + call);
            }
        }
    });
}

#[test]
fn calls_are_pipelined_on_a_capability_that_has_not_arrived() {
    run(async {
        let (dialling, _accepting) = sessions(options(), serving(vat(new_counter()))).await;
        let vat: vat::Client = dialling.bootstrap();
        assert_eq!(add(&restored(&vat), 5).await.unwrap(), 5);
    });
}

#[test]
fn a_thousand_calls_in_flight_arrive_and_return_in_order() {
    run(async {
        let object = Rc::new(Counter::default());
        let (dialling, _accepting) = sessions(options(), serving(counter(object.clone()))).await;
        let client: counter::Client = dialling.bootstrap();
        let calls = (1..=1000).map(|by| add(&client, by));
        let totals = futures::future::try_join_all(calls).await.unwrap();
        assert_eq!(
            totals,
            (1..=1000)
                .scan(0, |sum, by| {
                    *sum += by;
                    Some(*sum)
                })
                .collect::<Vec<u64>>()
        );
        assert_eq!(*object.seen.borrow(), (1..=1000).collect::<Vec<u64>>());
    });
}

#[test]
fn the_accepting_side_calls_the_dialling_one() {
    run(async {
        let (_dialling, accepting) = sessions(serving(new_counter()), options()).await;
        assert_eq!(add(&accepting.bootstrap(), 3).await.unwrap(), 3);
    });
}

#[test]
fn a_side_that_offers_nothing_answers_with_an_error_and_the_session_goes_on() {
    run(async {
        let (dialling, accepting) = sessions(serving(new_counter()), options()).await;
        assert!(add(&dialling.bootstrap(), 1).await.is_err());
        assert_eq!(add(&accepting.bootstrap(), 1).await.unwrap(), 1);
    });
}

#[test]
fn two_endpoints_that_dial_each_other_at_once_have_two_sessions() {
    run(async {
        let (one, other) = (server(), server());
        let (dialled_by_one, accepted_by_other) = connect(&other, &one).await;
        let (dialled_by_other, accepted_by_one) = connect(&one, &other).await;
        assert_eq!(accepted_by_other.peer(), one.id());
        assert_eq!(accepted_by_one.peer(), other.id());
        let sessions = tokio::try_join!(
            Session::open(dialled_by_one, options()),
            Session::accept(accepted_by_other, serving(new_counter())),
            Session::open(dialled_by_other, options()),
            Session::accept(accepted_by_one, serving(new_counter())),
        )
        .unwrap();
        assert_eq!(add(&sessions.0.bootstrap(), 1).await.unwrap(), 1);
        assert_eq!(add(&sessions.2.bootstrap(), 2).await.unwrap(), 2);
    });
}

/// Claims an interface and implements nothing of it.
struct Hollow;
impl schemas::vat_capnp::owner::Server for Hollow {}

/// Asks for the bootstrap of the session that it is called through, within the call.
struct CallsBack {
    session: Rc<std::cell::RefCell<Option<Session>>>,
}
impl counter::Server for CallsBack {
    async fn get(
        self: Rc<Self>,
        _params: counter::GetParams,
        mut results: counter::GetResults,
    ) -> Result<(), capnp::Error> {
        let caller: counter::Client = self.session.borrow().as_ref().unwrap().bootstrap();
        results.get().set_total(add(&caller, 40).await? + 2);
        Ok(())
    }
}

#[test]
fn an_object_may_call_its_caller_back_from_within_the_call() {
    run(async {
        let slot = Rc::default();
        let object: counter::Client = capnp_rpc::new_client(CallsBack { session: Rc::clone(&slot) });
        let (dialling, accepting) = sessions(serving(new_counter()), serving(object.client)).await;
        *slot.borrow_mut() = Some(accepting);
        let client: counter::Client = dialling.bootstrap();
        let answer = client.get_request().send().promise.await.unwrap();
        assert_eq!(answer.get().unwrap().get_total(), 42);
    });
}

#[test]
fn an_unknown_method_is_an_error_of_the_call_and_not_of_the_session() {
    run(async {
        let hollow: schemas::vat_capnp::owner::Client = capnp_rpc::new_client(Hollow);
        let (dialling, _accepting) = sessions(options(), serving(hollow.client)).await;
        let owner: schemas::vat_capnp::owner::Client = dialling.bootstrap();
        let error = owner.status_request().send().promise.await.err().unwrap();
        assert_eq!(error.kind, capnp::ErrorKind::Unimplemented);
        assert!(dialling.end().is_none());
    });
}

#[test]
fn a_closed_session_tells_the_peer_and_breaks_what_came_through_it() {
    run(async {
        let (dialling, accepting) = sessions(options(), serving(new_counter())).await;
        let client: counter::Client = dialling.bootstrap();
        assert_eq!(add(&client, 1).await.unwrap(), 1);
        accepting.close();
        assert!(matches!(accepting.closed().await, SessionEnd::Local));
        let SessionEnd::Peer(remote) = dialling.closed().await else { panic!("{:?}", dialling.end()) };
        assert_eq!(remote.code, ErrorCode::SessionClosed);
        assert_eq!(remote.message, "the other side closed the session");
        let error = add(&client, 1).await.unwrap_err();
        assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
        assert_eq!(RemoteError::parse(&error.extra).unwrap().code, ErrorCode::SessionClosed);
        assert!(add(&dialling.bootstrap(), 1).await.is_err(), "a bootstrap asked for after the end is broken too");
    });
}

/// Never answers.
struct Silent {
    called: Cell<Option<oneshot::Sender<()>>>,
    dropped: Cell<Option<oneshot::Sender<()>>>,
}
impl counter::Server for Silent {
    async fn get(
        self: Rc<Self>,
        _params: counter::GetParams,
        _results: counter::GetResults,
    ) -> Result<(), capnp::Error> {
        struct OnDrop(Option<oneshot::Sender<()>>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                let _ = self.0.take().unwrap().send(());
            }
        }
        let _guard = OnDrop(self.dropped.take());
        self.called.take().unwrap().send(()).unwrap();
        std::future::pending().await
    }
}

#[test]
fn calls_that_wait_fail_with_the_reason_when_the_session_ends() {
    run(async {
        let ((called, was_called), (dropped, was_dropped)) = (oneshot::channel(), oneshot::channel());
        let silent = Silent { called: Cell::new(Some(called)), dropped: Cell::new(Some(dropped)) };
        let object: counter::Client = capnp_rpc::new_client(silent);
        let (dialling, accepting) = sessions(options(), serving(object.client)).await;
        let client: counter::Client = dialling.bootstrap();
        let waiting = tokio::task::spawn_local(client.get_request().send().promise);
        was_called.await.unwrap();
        dialling.close();
        let error = waiting.await.unwrap().err().unwrap();
        assert_eq!(RemoteError::parse(&error.extra).unwrap().code, ErrorCode::SessionClosed);
        was_dropped.await.expect("the call that nobody waits for any more is dropped");
        assert!(matches!(accepting.closed().await, SessionEnd::Peer(_)));
    });
}

/// Answers `add` when `by` is even, and never otherwise.
struct HalfSilent;
impl counter::Server for HalfSilent {
    async fn add(
        self: Rc<Self>,
        params: counter::AddParams,
        mut results: counter::AddResults,
    ) -> Result<(), capnp::Error> {
        let by = params.get()?.get_by();
        if !by.is_multiple_of(2) {
            std::future::pending::<()>().await;
        }
        results.get().set_total(by);
        Ok(())
    }
}

/// Answered calls free their numbers for later ones, so the order of numbers is not the order of calls.
#[test]
fn calls_that_wait_fail_in_the_order_in_which_they_were_made() {
    run(async {
        for closed_by_peer in [false, true] {
            let object: counter::Client = capnp_rpc::new_client(HalfSilent);
            let (dialling, accepting) = sessions(options(), serving(object.client)).await;
            let client: counter::Client = dialling.bootstrap();
            let failed: Rc<std::cell::RefCell<Vec<u64>>> = Rc::default();
            let call = |by: u64| {
                let (client, failed) = (client.clone(), failed.clone());
                tokio::task::spawn_local(async move {
                    let outcome = add(&client, by).await;
                    if outcome.is_err() {
                        failed.borrow_mut().push(by);
                    }
                    outcome
                })
            };
            let mut waiting = Vec::new();
            for round in 0..5 {
                let (answered, silent): (Vec<_>, Vec<_>) =
                    (0..10).map(|call| round * 10 + call).partition(|by| by % 2 == 0);
                let answered: Vec<_> = answered.into_iter().map(&call).collect();
                waiting.extend(silent.into_iter().map(&call));
                for answer in answered {
                    answer.await.unwrap().unwrap();
                }
            }
            if closed_by_peer {
                accepting.close()
            } else {
                dialling.close()
            }
            for call in waiting {
                assert_eq!(call.await.unwrap().unwrap_err().kind, capnp::ErrorKind::Disconnected);
            }
            let odd: Vec<u64> = (0..50).filter(|by| by % 2 == 1).collect();
            assert_eq!(*failed.borrow(), odd, "closed by the peer: {closed_by_peer}");
        }
    });
}

#[test]
fn those_who_wait_for_the_end_are_told_in_the_order_in_which_they_began_to() {
    run(async {
        let (dialling, accepting) = sessions(options(), serving(new_counter())).await;
        let dialling = Rc::new(dialling);
        let told: Rc<std::cell::RefCell<Vec<u32>>> = Rc::default();
        let holders: Vec<_> = (0..40)
            .map(|number| {
                let (session, told) = (dialling.clone(), told.clone());
                tokio::task::spawn_local(async move {
                    session.closed().await;
                    told.borrow_mut().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        accepting.close();
        for holder in holders {
            holder.await.unwrap();
        }
        assert_eq!(*told.borrow(), (0..40).collect::<Vec<_>>());
    });
}

#[test]
fn dropping_a_session_closes_it() {
    run(async {
        let (dialling, accepting) = sessions(options(), serving(new_counter())).await;
        drop(dialling);
        assert!(matches!(accepting.closed().await, SessionEnd::Peer(_)));
    });
}

#[test]
fn two_hundred_connections_one_after_the_other_leave_nothing_behind() {
    run(async {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let object = Rc::new(Counter::default());
        let bootstrap = counter(object.clone());
        let references = Rc::strong_count(&object);
        for number in 1..=200 {
            let (dialled, accepted) = connect(&server, &client).await;
            let accept = Session::accept(accepted, serving(bootstrap.clone()));
            let (dialling, accepting) = tokio::try_join!(Session::open(dialled, options()), accept).unwrap();
            assert_eq!(add(&dialling.bootstrap(), 1).await.unwrap(), number);
            dialling.close();
            dialling.closed().await;
            accepting.closed().await;
        }
        assert_eq!(Rc::strong_count(&object), references, "no session holds the object any more");
        tokio::join!(client.close(), server.close());
        // QUIC remembers a closed connection for three probe times, to answer what is still under way.
        while (server.open_connections(), client.open_connections()) != (0, 0) {
            tokio::task::yield_now().await;
        }
    });
}

/// Panics when asked for its total.
struct Fragile;
impl counter::Server for Fragile {
    async fn get(
        self: Rc<Self>,
        _params: counter::GetParams,
        _results: counter::GetResults,
    ) -> Result<(), capnp::Error> {
        panic!("this object is fragile")
    }
}

#[test]
fn a_panic_in_an_object_ends_its_session_and_no_other() {
    run(async {
        let (fragile, sturdy): (counter::Client, _) = (capnp_rpc::new_client(Fragile), new_counter());
        let (victim, broken) = sessions(options(), serving(fragile.client)).await;
        let (other, _healthy) = sessions(options(), serving(sturdy)).await;
        let client: counter::Client = victim.bootstrap();
        let error = client.get_request().send().promise.await.err().unwrap();
        assert_eq!(RemoteError::parse(&error.extra).unwrap().code, ErrorCode::Internal);
        assert!(!error.extra.contains("fragile"), "the peer does not see the inside: {error}");
        let SessionEnd::Panicked { message } = broken.closed().await else { panic!("{:?}", broken.end()) };
        assert_eq!(message, "this object is fragile");
        assert_eq!(add(&other.bootstrap(), 9).await.unwrap(), 9);
    });
}

#[test]
fn after_a_panic_calls_of_ours_that_wait_for_the_peer_fail() {
    run(async {
        let fragile: counter::Client = capnp_rpc::new_client(Fragile);
        let ((called, was_called), (dropped, _)) = (oneshot::channel(), oneshot::channel());
        let silent = Silent { called: Cell::new(Some(called)), dropped: Cell::new(Some(dropped)) };
        let silent: counter::Client = capnp_rpc::new_client(silent);
        let (dialling, accepting) = sessions(serving(silent.client), serving(fragile.client)).await;
        let ours: counter::Client = accepting.bootstrap();
        let waiting = async { ours.get_request().send().promise.await.err().unwrap() };
        let breaking = async {
            was_called.await.unwrap();
            let fragile: counter::Client = dialling.bootstrap();
            fragile.get_request().send().promise.await.err().unwrap()
        };
        let (waited, _) = tokio::join!(waiting, breaking);
        assert_eq!(RemoteError::parse(&waited.extra).unwrap().code, ErrorCode::Internal);
        assert!(matches!(accepting.closed().await, SessionEnd::Panicked { .. }));
    });
}

#[test]
fn an_answer_larger_than_the_peer_accepts_fails_that_call_alone() {
    run(async {
        struct Verbose;
        impl schemas::objects_capnp::notes::Server for Verbose {
            async fn get(
                self: Rc<Self>,
                params: schemas::objects_capnp::notes::GetParams,
                mut results: schemas::objects_capnp::notes::GetResults,
            ) -> Result<(), capnp::Error> {
                let length = params.get()?.get_name()?.to_str()?.parse().unwrap();
                results.get().set_text("x".repeat(length));
                Ok(())
            }
        }
        let limits = SessionLimits::default();
        let small = || {
            let mut small = limits.clone();
            small.message_bytes = 10_000;
            small
        };
        let notes: schemas::objects_capnp::notes::Client = capnp_rpc::new_client(Verbose);
        let accepting = SessionOptions { limits: small(), ..serving(notes.client) };
        let (dialling, _accepting) = sessions(SessionOptions { limits: small(), ..options() }, accepting).await;
        let notes: schemas::objects_capnp::notes::Client = dialling.bootstrap();
        let get = |length: usize| {
            let mut request = notes.get_request();
            request.get().set_name(length.to_string());
            request.send().promise
        };
        let error = get(20_000).await.err().unwrap();
        assert_eq!(RemoteError::parse(&error.extra).unwrap().code(), ErrorCode::SessionMessageTooLarge);
        assert_eq!(get(5_000).await.unwrap().get().unwrap().get_text().unwrap().len(), 5_000);

        // A call that is too large is not sent at all.
        let mut request = notes.put_request();
        request.get().set_text("x".repeat(20_000));
        let error = request.send().promise.await.err().unwrap();
        assert_eq!(RemoteError::parse(&error.extra).unwrap().code(), ErrorCode::SessionMessageTooLarge);
        assert_eq!(get(5_000).await.unwrap().get().unwrap().get_text().unwrap().len(), 5_000);
    });
}

#[test]
fn a_connection_has_one_session() {
    run(async {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let (dialled, accepted) = connect(&server, &client).await;
        let accept = Session::accept(accepted, serving(new_counter()));
        let (dialling, _accepting) = tokio::try_join!(Session::open(dialled.clone(), options()), accept).unwrap();
        let error = Session::open(dialled, options()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::SessionProtocol);
        assert_eq!(add(&dialling.bootstrap(), 1).await.unwrap(), 1);
    });
}
