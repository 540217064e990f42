//! Bulk content: what is offered in a call, and fetched on a stream of its own.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use futures::{FutureExt, future::LocalBoxFuture};
use schemas::{Coded, ErrorCode, Secret};
use tokio::{sync::watch, task::spawn_local};
use transport::{BulkError, BulkReader, BulkSource, Endpoint, OutputGate, Session, SessionEnd, SessionOptions, limits};

use crate::support::{add, connect, key, new_counter, options, run, server, serving, sessions};

/// Bytes that are told apart by their position, given out as far as the test allows.
struct Source {
    length: u64,
    allowed: watch::Receiver<u64>,
    /// The highest offset that was read.
    read_to: Rc<Cell<u64>>,
}

fn byte(position: u64) -> u8 {
    u8::try_from(position.wrapping_mul(2_654_435_761) >> 7 & 0xff).unwrap()
}

fn bytes(from: u64, to: u64) -> Vec<u8> {
    (from..to).map(byte).collect()
}

impl BulkSource for Source {
    fn length(&self) -> u64 {
        self.length
    }

    fn read(&self, offset: u64, count: usize) -> LocalBoxFuture<'_, Result<Vec<u8>, capnp::Error>> {
        async move {
            let mut allowed = self.allowed.clone();
            // A test that has ended allows nothing more.
            let allowed = allowed.wait_for(|allowed| *allowed > offset).await.map(|allowed| *allowed);
            let end = allowed.unwrap_or(0).min(offset + count as u64).min(self.length);
            self.read_to.set(self.read_to.get().max(end));
            Ok(bytes(offset, end))
        }
        .boxed_local()
    }
}

struct Shelf {
    length: u64,
    allow: watch::Sender<u64>,
    read_to: Rc<Cell<u64>>,
}

impl Shelf {
    fn new(length: u64) -> Self {
        Self { length, allow: watch::Sender::new(u64::MAX), read_to: Rc::default() }
    }

    /// Offers the content to the peer of a session, as the answer to a call would.
    fn offer(&self, session: &Session) -> Secret {
        let token = Secret::generate().unwrap();
        let source = Source { length: self.length, allowed: self.allow.subscribe(), read_to: self.read_to.clone() };
        session.offer(&token, Box::new(source)).unwrap();
        token
    }
}

/// Reads until the end, or until it breaks; what came stays in `into`.
async fn read(reader: &mut BulkReader, into: &mut Vec<u8>) -> Result<(), BulkError> {
    while let Some(part) = reader.next().await? {
        into.extend(part);
    }
    Ok(())
}

async fn pair() -> (Session, Session) {
    sessions(options(), serving(new_counter())).await
}

#[test]
fn content_larger_than_every_window_comes_whole_while_calls_go_on() {
    run(async {
        let (fetching, offering) = pair().await;
        let shelf = Shelf::new(5 << 20);
        let mut reader = fetching.fetch(&shelf.offer(&offering), 0).await.unwrap();
        assert_eq!((reader.length(), reader.position()), (5 << 20, 0));
        let (mut got, counter) = (Vec::new(), fetching.bootstrap());
        let calls = async {
            for total in 1..=50 {
                assert_eq!(add(&counter, 1).await.unwrap(), total);
            }
        };
        let (outcome, ()) = tokio::join!(read(&mut reader, &mut got), calls);
        outcome.unwrap();
        assert!(got == bytes(0, 5 << 20));
        assert_eq!(reader.next().await.unwrap(), None, "the end stays the end");
        assert!(fetching.end().is_none() && offering.end().is_none());
    });
}

#[test]
fn either_side_of_a_session_may_offer_and_empty_content_is_content() {
    run(async {
        let (dialled, accepted) = pair().await;
        for (offering, fetching) in [(&dialled, &accepted), (&accepted, &dialled)] {
            for length in [0, 1, 100_000] {
                let shelf = Shelf::new(length);
                let mut got = Vec::new();
                let mut reader = fetching.fetch(&shelf.offer(offering), 0).await.unwrap();
                read(&mut reader, &mut got).await.unwrap();
                assert!(got == bytes(0, length));
            }
        }
    });
}

#[test]
fn what_nobody_takes_is_not_read_from_its_source() {
    run(async {
        let (fetching, offering) = pair().await;
        let shelf = Shelf::new(64 << 20);
        let mut reader = fetching.fetch(&shelf.offer(&offering), 0).await.unwrap();
        let mut got = reader.next().await.unwrap().unwrap().len() as u64;
        // Flow control lets so much be on its way: what this side may hold, and what the other keeps until it is known to
        // have arrived.
        let ahead = u64::from(limits::STREAM_WINDOW_BYTES) + limits::SEND_WINDOW_BYTES + limits::BULK_PART_BYTES as u64;
        for _ in 0..1000 {
            add(&fetching.bootstrap(), 0).await.unwrap();
            assert!(shelf.read_to.get() <= got + ahead, "{} read, {got} taken", shelf.read_to.get());
        }
        // Once it is taken, more comes.
        while got < 8 << 20 {
            got += reader.next().await.unwrap().unwrap().len() as u64;
        }
        assert!(shelf.read_to.get() >= 8 << 20);
    });
}

#[test]
fn after_a_broken_connection_it_goes_on_in_a_new_session_where_it_stopped() {
    run(async {
        let (server, client) = (server(), Endpoint::client(&key()).unwrap());
        let shelf = Shelf::new(3 << 20);
        let mut got = Vec::new();
        let mut sessions = 0;
        for stop_at in [1_000_000, 2_500_000, u64::MAX] {
            shelf.allow.send_replace(stop_at);
            let (dialled, accepted) = connect(&server, &client).await;
            let cable = accepted.clone();
            let accept = Session::accept(accepted, serving(new_counter()));
            let (fetching, offering) = tokio::try_join!(Session::open(dialled, options()), accept).unwrap();
            sessions += 1;
            let token = shelf.offer(&offering);
            let mut reader = fetching.fetch(&token, got.len() as u64).await.unwrap();
            assert_eq!(reader.position(), got.len() as u64);
            if stop_at == u64::MAX {
                read(&mut reader, &mut got).await.unwrap();
                continue;
            }
            while (got.len() as u64) < stop_at {
                got.extend(reader.next().await.unwrap().unwrap());
            }
            cable.close(ErrorCode::SessionClosed);
            let error = reader.next().await.unwrap_err();
            assert!(matches!(error, BulkError::Broken { at, .. } if at == stop_at), "{error}");
            assert_eq!(error.code(), ErrorCode::BulkInterrupted);
            // The token was of that session.
            drop(offering);
        }
        assert_eq!(sessions, 3);
        assert!(got == bytes(0, 3 << 20));
    });
}

#[test]
fn a_token_is_good_for_one_stream_and_for_its_own_session() {
    run(async {
        let (fetching, offering) = pair().await;
        let (elsewhere, _other) = {
            let (elsewhere, other) = pair().await;
            // So that QUIC lets it open streams.
            Shelf::new(1).offer(&other);
            (elsewhere, other)
        };
        let shelf = Shelf::new(1000);
        let token = shelf.offer(&offering);
        assert!(elsewhere.fetch(&token, 0).await.is_err(), "another session knows nothing of it");
        assert_eq!(elsewhere.closed().await.code(), ErrorCode::SessionProtocol);
        let mut got = Vec::new();
        read(&mut fetching.fetch(&token, 0).await.unwrap(), &mut got).await.unwrap();
        assert!(got == bytes(0, 1000));
        assert!(fetching.fetch(&token, 0).await.is_err(), "it was used");
        let SessionEnd::Peer(told) = fetching.closed().await else { panic!() };
        assert_eq!(told.code, ErrorCode::SessionProtocol);
    });
}

#[test]
fn what_is_asked_for_from_behind_its_end_or_fails_at_its_source_ends_that_transfer_alone() {
    run(async {
        let (fetching, offering) = pair().await;
        let error = fetching.fetch(&Shelf::new(10).offer(&offering), 11).await.unwrap_err();
        assert!(matches!(error, BulkError::Stopped { at: 11 }), "{error}");
        struct Failing;
        impl BulkSource for Failing {
            fn length(&self) -> u64 {
                100
            }
            fn read(&self, offset: u64, _: usize) -> LocalBoxFuture<'_, Result<Vec<u8>, capnp::Error>> {
                let part = if offset == 0 { Ok(vec![1; 60]) } else { Err(capnp::Error::failed("a disk".to_owned())) };
                futures::future::ready(part).boxed_local()
            }
        }
        let token = Secret::generate().unwrap();
        offering.offer(&token, Box::new(Failing)).unwrap();
        // What was sent before may be lost with the rest.
        let error = match fetching.fetch(&token, 0).await {
            Ok(mut reader) => read(&mut reader, &mut Vec::new()).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, BulkError::Stopped { .. }), "{error}");
        assert_eq!(add(&fetching.bootstrap(), 1).await.unwrap(), 1, "the session goes on");
    });
}

#[test]
fn nothing_of_content_leaves_before_what_it_may_tell_is_durable() {
    run(async {
        let gate = OutputGate::new(0);
        let offers = SessionOptions { gate: gate.clone(), ..serving(new_counter()) };
        let (fetching, offering) = sessions(options(), offers).await;
        let fetching = Rc::new(fetching);
        let shelf = Shelf::new(100);
        gate.produced(1);
        let token = shelf.offer(&offering);
        let came = Rc::new(RefCell::new(None));
        let fetch = spawn_local({
            let (came, fetching) = (came.clone(), fetching.clone());
            async move {
                let mut reader = fetching.fetch(&token, 0).await.unwrap();
                let mut got = Vec::new();
                read(&mut reader, &mut got).await.unwrap();
                came.replace(Some(got));
            }
        });
        // Long enough on a loopback for what were to leak.
        let early = tokio::time::timeout(Duration::from_millis(100), fetching.closed()).await;
        assert!(early.is_err() && came.borrow().is_none() && shelf.read_to.get() == 0);
        gate.release(1);
        fetch.await.unwrap();
        assert_eq!(came.take().unwrap(), bytes(0, 100));
    });
}

#[test]
fn a_drained_session_lets_a_transfer_come_to_its_end() {
    run(async {
        let (fetching, offering) = pair().await;
        let shelf = Shelf::new(2 << 20);
        shelf.allow.send_replace(1 << 20);
        let mut reader = fetching.fetch(&shelf.offer(&offering), 0).await.unwrap();
        let mut got = reader.next().await.unwrap().unwrap();
        assert_eq!(offering.idle_since(), None, "nobody evicts it meanwhile");
        offering.drain(ErrorCode::VatStopping);
        shelf.allow.send_replace(u64::MAX);
        read(&mut reader, &mut got).await.unwrap();
        assert!(got == bytes(0, 2 << 20));
        assert_eq!(offering.closed().await.code(), ErrorCode::VatStopping);
    });
}

#[test]
fn a_session_over_a_local_socket_says_that_it_carries_none() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = transport::LocalListener::bind(&path).unwrap();
        let accept = async { Session::accept_local(listener.accept().await.unwrap(), serving(new_counter())).await };
        let (dialled, accepted) = tokio::join!(Session::open_local(&path, options()), accept);
        let token = Secret::generate().unwrap();
        let source = Source { length: 1, allowed: watch::Sender::new(1).subscribe(), read_to: Rc::default() };
        let error = accepted.unwrap().offer(&token, Box::new(source)).unwrap_err();
        assert!(matches!(error, BulkError::Unavailable));
        assert!(matches!(dialled.unwrap().fetch(&token, 0).await, Err(BulkError::Unavailable)));
    });
}

#[test]
fn a_fetch_that_is_given_up_at_any_moment_leaves_the_session_as_it_is() {
    run(async {
        let (fetching, offering) = pair().await;
        let shelf = Shelf::new(1 << 20);
        // No more than may be offered at once: what is not asked for stays offered.
        for steps in 0..limits::BULK_OFFERS as u64 {
            let token = shelf.offer(&offering);
            let mut fetch = Box::pin(fetching.fetch(&token, 0));
            for _ in 0..steps {
                if let Some(reader) = fetch.as_mut().now_or_never() {
                    drop(reader.unwrap());
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(fetch);
            assert_eq!(add(&fetching.bootstrap(), 1).await.unwrap(), steps + 1);
        }
        assert!(fetching.end().is_none() && offering.end().is_none());
    });
}

#[test]
fn offers_to_one_peer_are_bounded() {
    run(async {
        let (_fetching, offering) = pair().await;
        let shelf = Shelf::new(1);
        for _ in 0..limits::BULK_OFFERS {
            shelf.offer(&offering);
        }
        let source = Source { length: 1, allowed: shelf.allow.subscribe(), read_to: Rc::default() };
        let error = offering.offer(&Secret::generate().unwrap(), Box::new(source)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::SessionTooManyCalls);
    });
}
