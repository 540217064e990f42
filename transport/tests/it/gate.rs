//! The output gate, seen from the peer: it learns nothing before it is durable.

use std::{cell::Cell, rc::Rc};

use futures::{FutureExt, StreamExt, stream::FuturesOrdered};
use schemas::{ErrorCode, RemoteError, objects_capnp::counter};
use transport::{OutputGate, Session, SessionEnd, SessionOptions};

use crate::support::{Counter, add, counter, options, run, serving, sessions};

/// A session with a counter whose calls are turns of the returned gate.
async fn gated() -> (Session, Session, OutputGate, Rc<Counter>) {
    let gate = OutputGate::new(0);
    let object = Rc::new(Counter { gate: Some(gate.clone()), ..Counter::default() });
    let accepting = SessionOptions { gate: gate.clone(), ..serving(counter(object.clone())) };
    let (dialling, accepting) = sessions(options(), accepting).await;
    (dialling, accepting, gate, object)
}

/// Waits until the object has seen `calls` calls. Each look lets every other task run.
async fn until_seen(object: &Counter, calls: usize) {
    while object.seen.borrow().len() < calls {
        tokio::task::yield_now().await;
    }
}

/// A full round trip through an ungated session beside, and some turns of the loop: whatever was going to leave
/// has left by then.
async fn settle() {
    let (dialling, _accepting) = sessions(options(), serving(crate::support::new_counter())).await;
    for by in 1..20 {
        add(&dialling.bootstrap(), by).await.unwrap();
    }
}

#[test]
fn a_reply_is_not_seen_before_its_turn_is_durable_and_replies_come_in_order() {
    run(async {
        let (dialling, _accepting, gate, object) = gated().await;
        let client: counter::Client = dialling.bootstrap();
        let received = Rc::new(Cell::new(0_u64));
        let replies = {
            let (client, received) = (client.clone(), received.clone());
            tokio::task::spawn_local(async move {
                let mut calls: FuturesOrdered<_> = (1..=6).map(|by| add(&client, by)).collect();
                let mut totals = Vec::new();
                while let Some(total) = calls.next().await {
                    totals.push(total.unwrap());
                    received.set(received.get() + 1);
                }
                totals
            })
        };
        until_seen(&object, 6).await;
        settle().await;
        assert_eq!(received.get(), 0, "turns go on while none is durable, and nothing is said");
        for durable in [1, 2, 4] {
            gate.release(durable);
            while received.get() < durable {
                tokio::task::yield_now().await;
            }
            settle().await;
            assert_eq!(received.get(), durable, "exactly the turns up to {durable} are told");
        }
        gate.release(6);
        assert_eq!(replies.await.unwrap(), [1, 3, 6, 10, 15, 21]);
    });
}

#[test]
fn a_read_waits_for_the_newest_turn_that_it_could_have_read() {
    run(async {
        let (dialling, _accepting, gate, object) = gated().await;
        let client: counter::Client = dialling.bootstrap();
        let writing = tokio::task::spawn_local({
            let client = client.clone();
            async move { add(&client, 5).await }
        });
        until_seen(&object, 1).await;
        let mut reading = tokio::task::spawn_local(client.get_request().send().promise);
        settle().await;
        assert!((&mut reading).now_or_never().is_none(), "it would tell of a turn that is not durable");
        gate.release(1);
        assert_eq!(reading.await.unwrap().unwrap().get().unwrap().get_total(), 5);
        assert_eq!(writing.await.unwrap().unwrap(), 5);
    });
}

#[test]
fn after_poison_nothing_is_said_and_the_session_ends() {
    run(async {
        let (dialling, accepting, gate, object) = gated().await;
        let client: counter::Client = dialling.bootstrap();
        let waiting = tokio::task::spawn_local(async move { add(&client, 5).await });
        until_seen(&object, 1).await;
        gate.poison();
        gate.release(1);
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
        assert_eq!(RemoteError::parse(&error.extra).unwrap().code, ErrorCode::SessionClosed);
        assert!(matches!(accepting.closed().await, SessionEnd::Poisoned));
        assert!(matches!(dialling.closed().await, SessionEnd::Peer(_)));
    });
}

#[test]
fn an_idle_session_ends_at_the_poison_too() {
    run(async {
        let (dialling, accepting, gate, _object) = gated().await;
        gate.poison();
        assert!(matches!(accepting.closed().await, SessionEnd::Poisoned));
        assert!(matches!(dialling.closed().await, SessionEnd::Peer(_)));
    });
}

#[test]
fn closing_delivers_what_was_released_and_never_what_was_not() {
    run(async {
        let (dialling, accepting, gate, object) = gated().await;
        let client: counter::Client = dialling.bootstrap();
        let calls: Vec<_> = (1..=4)
            .map(|by| {
                let client = client.clone();
                tokio::task::spawn_local(async move { add(&client, by).await })
            })
            .collect();
        until_seen(&object, 4).await;
        // Released and closed before the session's task could write anything.
        gate.release(2);
        accepting.close();
        accepting.closed().await;
        gate.release(4);
        let mut outcomes = Vec::new();
        for call in calls {
            outcomes.push(call.await.unwrap().ok());
        }
        assert_eq!(outcomes, [Some(1), Some(3), None, None]);
    });
}

#[test]
fn a_call_of_our_own_waits_for_the_turn_that_made_it() {
    run(async {
        let gate = OutputGate::new(3);
        let object = Rc::new(Counter::default());
        let dialling = SessionOptions { gate: gate.clone(), ..options() };
        let (dialling, _accepting) = sessions(dialling, serving(counter(object.clone()))).await;
        let client: counter::Client = dialling.bootstrap();
        assert_eq!(add(&client, 1).await.unwrap(), 1, "turn 3 is durable");
        gate.produced(4);
        let waiting = tokio::task::spawn_local(async move { add(&client, 1).await });
        settle().await;
        assert_eq!(object.seen.borrow().len(), 1, "the call has not left");
        gate.release(4);
        assert_eq!(waiting.await.unwrap().unwrap(), 2);
    });
}
