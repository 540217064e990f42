//! All sessions of a process: who is let in, who goes, and how it ends.

use std::{cell::RefCell, rc::Rc, time::Duration};

use capnp::capability::Client;
use futures::FutureExt;
use schemas::{Coded, ErrorCode, objects_capnp::counter};
use tokio::{sync::watch, task::spawn_local};
use transport::{
    AdmitError, Endpoint, Greeting, ResumeToken, Session, SessionEnd, SessionError, SessionOptions, Sessions,
    peers::{Direction, PeerLimits},
};

use crate::support::{PATIENCE, add, key, new_counter, options, run, server, serving};

/// A process that is dialled and keeps its sessions in a table.
struct Process {
    endpoint: Endpoint,
    table: Sessions,
    epoch: u64,
}

impl Process {
    fn new(endpoint: Endpoint, epoch: u64, limits: PeerLimits) -> Rc<Self> {
        let table = Sessions::new(endpoint.id(), limits);
        let process = Rc::new(Self { endpoint, table, epoch });
        let accepting = process.clone();
        spawn_local(async move {
            while let Some(incoming) = accepting.endpoint.accept().await {
                let Some(handshake) = accepting.table.begin(incoming) else { continue };
                let options = accepting.options(Some(new_counter()));
                spawn_local(async move { handshake.finish(|_| options).await.map(drop) });
            }
        });
        process
    }

    fn vat(epoch: u64) -> Rc<Self> {
        Self::new(server(), epoch, PeerLimits::default())
    }

    fn options(&self, bootstrap: Option<Client>) -> SessionOptions {
        let greeting = Greeting { epoch: self.epoch, incarnation: [1; 16], program: "a test".to_owned() };
        SessionOptions { greeting, bootstrap, ..options() }
    }

    async fn try_open(&self, peer: &Self, lost: Option<ResumeToken>) -> Result<Session, SessionError> {
        let (id, address) = (peer.endpoint.id(), peer.endpoint.local_address());
        let connection = self.endpoint.dial(id, address, PATIENCE).await.unwrap();
        Session::open_again(connection, self.options(Some(new_counter())), lost).await
    }

    async fn open(&self, peer: &Self, lost: Option<ResumeToken>) -> Session {
        self.try_open(peer, lost).await.unwrap()
    }

    async fn dial(&self, peer: &Self) -> Result<Rc<Session>, ErrorCode> {
        let session = self.try_open(peer, None).await.map_err(|error| error.code())?;
        self.table.admit(session, Direction::Dialled, peer.endpoint.local_address())
    }

    /// Waits until the table has this many.
    async fn until(&self, count: usize) {
        while self.table.count() != count {
            tokio::task::yield_now().await;
        }
    }
}

/// A client of a process, without a table.
async fn caller(process: &Process, endpoint: &Endpoint) -> Session {
    try_call(process, endpoint, 0).await.unwrap()
}

async fn try_call(process: &Process, endpoint: &Endpoint, epoch: u64) -> Result<Session, SessionError> {
    let (id, address) = (process.endpoint.id(), process.endpoint.local_address());
    let connection = endpoint.dial(id, address, PATIENCE).await.unwrap();
    let greeting = Greeting { epoch, incarnation: [1; 16], program: String::new() };
    Session::open(connection, SessionOptions { greeting, ..options() }).await
}

/// Why a session was refused: told before or after its greeting was read.
async fn refusal(outcome: Result<Session, SessionError>) -> ErrorCode {
    match outcome {
        Ok(session) => session.closed().await.code(),
        Err(error) => error.code(),
    }
}

fn client() -> Endpoint {
    Endpoint::client(&key()).unwrap()
}

#[test]
fn two_vats_that_dial_each_other_at_once_are_left_with_one_session_that_works() {
    run(async {
        for _ in 0..10 {
            let (one, other) = (Process::vat(3), Process::vat(3));
            // Both may find theirs refused, never both ways gone.
            let _ = tokio::join!(one.dial(&other), other.dial(&one));
            one.until(1).await;
            other.until(1).await;
            let here = one.table.with(&other.endpoint.id()).unwrap();
            let there = other.table.with(&one.endpoint.id()).unwrap();
            assert_eq!(here.resume_token(), there.resume_token(), "the same one");
            assert_eq!(add(&here.bootstrap(), 1).await.unwrap(), 1);
            assert_eq!(add(&there.bootstrap(), 1).await.unwrap(), 1);
        }
    });
}

#[test]
fn a_vat_that_lost_its_half_is_let_in_again_at_once_from_either_side() {
    run(async {
        let (one, other) = (Process::vat(3), Process::vat(3));
        // `other` opens a session and forgets all of it without a word: its table never sees it.
        let silent = other.open(&one, None).await;
        one.until(1).await;
        // Another of the same direction needs no token.
        let fresh = other.open(&one, None).await;
        assert_eq!(silent.closed().await.code(), ErrorCode::SessionSuperseded);
        // One of the other direction could have crossed it, but for the token.
        let back = one.open(&other, fresh.resume_token()).await;
        let back = one.table.admit(back, Direction::Dialled, other.endpoint.local_address()).unwrap();
        assert_eq!(fresh.closed().await.code(), ErrorCode::SessionSuperseded);
        other.until(1).await;
        // And back once more, now against the table of `one` that has dialled.
        let fresh = other.open(&one, back.resume_token()).await;
        assert_eq!(back.closed().await.code(), ErrorCode::SessionSuperseded);
        assert_eq!(add(&fresh.bootstrap(), 1).await.unwrap(), 1);
    });
}

#[test]
fn a_token_that_is_unknown_used_or_of_somebody_else_leads_to_a_fresh_session() {
    run(async {
        let process = Process::vat(3);
        let (peer, stranger) = (Process::vat(4), Process::vat(4));
        let theirs = stranger.open(&process, None).await;
        let first = peer.open(&process, None).await;
        let used = first.resume_token();
        let second = peer.open(&process, used).await;
        assert_eq!(first.closed().await.code(), ErrorCode::SessionSuperseded);
        for token in [used, theirs.resume_token(), ResumeToken::from_slice(&[9; 16])] {
            let next = peer.open(&process, token).await;
            assert_eq!(add(&next.bootstrap(), 1).await.unwrap(), 1);
        }
        assert!(second.end().is_some() || second.closed().await.code() == ErrorCode::SessionSuperseded);
        assert!(theirs.end().is_none(), "a token concerns nobody but whose it is");
        assert_eq!(add(&theirs.bootstrap(), 1).await.unwrap(), 1);
    });
}

#[test]
fn an_old_copy_of_a_vat_is_refused_and_told_why() {
    run(async {
        let process = Process::vat(3);
        let identity = key();
        let endpoint = Endpoint::client(&identity).unwrap();
        let newer = try_call(&process, &endpoint, 7).await.unwrap();
        assert_eq!(add(&newer.bootstrap(), 1).await.unwrap(), 1);
        assert_eq!(refusal(try_call(&process, &endpoint, 6).await).await, ErrorCode::SessionSuperseded);
        assert!(newer.end().is_none());
    });
}

#[test]
fn a_full_table_evicts_the_session_that_is_idle_for_the_longest_and_no_busy_one() {
    run(async {
        let mut limits = PeerLimits::default();
        (limits.sessions, limits.evictable_after) = (2, Duration::ZERO);
        let process = Process::new(server(), 1, limits);
        let endpoints = [client(), client(), client(), client()];
        let busy = caller(&process, &endpoints[0]).await;
        let idle = caller(&process, &endpoints[1]).await;
        process.until(2).await;
        assert_eq!(add(&idle.bootstrap(), 1).await.unwrap(), 1);
        assert_eq!(add(&busy.bootstrap(), 1).await.unwrap(), 1);
        let third = caller(&process, &endpoints[2]).await;
        assert_eq!(idle.closed().await.code(), ErrorCode::SessionEvicted);
        assert_eq!(add(&third.bootstrap(), 1).await.unwrap(), 1);
        assert_eq!(add(&busy.bootstrap(), 1).await.unwrap(), 2);
        process.until(2).await;
    });
}

#[test]
fn when_nobody_is_idle_for_long_enough_the_newcomer_is_refused() {
    run(async {
        let mut limits = PeerLimits::default();
        limits.sessions = 1;
        let process = Process::new(server(), 1, limits);
        let endpoints = [client(), client()];
        let first = caller(&process, &endpoints[0]).await;
        assert_eq!(add(&first.bootstrap(), 1).await.unwrap(), 1);
        assert_eq!(refusal(try_call(&process, &endpoints[1], 0).await).await, ErrorCode::SessionLimit);
        assert_eq!(add(&first.bootstrap(), 1).await.unwrap(), 2);
    });
}

#[test]
fn a_handshake_too_many_takes_the_place_of_the_oldest_and_none_from_a_session() {
    run(async {
        let mut limits = PeerLimits::default();
        limits.handshakes = 1;
        let (endpoint, client) = (server(), client());
        let table = Sessions::new(endpoint.id(), limits);
        let (id, address) = (endpoint.id(), endpoint.local_address());
        let dial = || {
            let client = client.clone();
            spawn_local(async move {
                let connection = client.dial(id, address, PATIENCE).await.map_err(|error| error.code())?;
                Session::open(connection, options()).await.map_err(|error| error.code())
            })
        };
        // One that does not go on by itself, and one that has shaken hands and is not greeted.
        let lying = dial();
        let begun = table.begin(endpoint.accept().await.unwrap()).expect("there is always a place");
        let silent = spawn_local({
            let client = client.clone();
            async move { client.dial(id, address, PATIENCE).await }
        });
        let greeting = spawn_local(table.begin(endpoint.accept().await.unwrap()).unwrap().finish(|_| options()));
        let silent = silent.await.unwrap().unwrap();
        let code = |end: Result<Rc<Session>, AdmitError>| end.unwrap_err().code();
        assert_eq!(code(begun.finish(|_| options()).await), ErrorCode::SessionLimit);
        assert!(lying.await.unwrap().is_err());

        let third = dial();
        let begun = table.begin(endpoint.accept().await.unwrap()).unwrap();
        assert_eq!(code(greeting.await.unwrap()), ErrorCode::SessionLimit);
        assert_eq!(silent.closed().await.code(), ErrorCode::SessionLimit, "it was told");
        let (accepted, opened) = tokio::join!(begun.finish(|_| options()), third);
        let (accepted, _opened) = (accepted.unwrap(), opened.unwrap().unwrap());

        let _fourth = dial();
        let _begun = table.begin(endpoint.accept().await.unwrap()).unwrap();
        assert!(accepted.end().is_none() && table.count() == 1);
    });
}

/// Answers when it is told to.
struct Slow {
    asked: RefCell<u64>,
    answers: watch::Receiver<bool>,
}

impl counter::Server for Slow {
    async fn add(self: Rc<Self>, _: counter::AddParams, mut results: counter::AddResults) -> capnp::Result<()> {
        *self.asked.borrow_mut() += 1;
        let mut answers = self.answers.clone();
        // A test that has ended releases everybody.
        let _ = answers.wait_for(|answers| *answers).await;
        results.get().set_total(77);
        Ok(())
    }
}

fn slow() -> (Rc<Slow>, Client, watch::Sender<bool>) {
    let (release, answers) = watch::channel(false);
    let object = Rc::new(Slow { asked: RefCell::default(), answers });
    let client: counter::Client = capnp_rpc::new_client_from_rc(object.clone());
    (object, client.client, release)
}

/// A process with one session, in which one call is under way.
async fn busy()
-> (Sessions, Session, counter::Client, impl Future<Output = Result<u64, capnp::Error>>, watch::Sender<bool>) {
    let (endpoint, dialling) = (server(), client());
    let table = Sessions::new(endpoint.id(), PeerLimits::default());
    let (object, bootstrap, release) = slow();
    let accepting = async {
        let handshake = table.begin(endpoint.accept().await.unwrap()).unwrap();
        handshake.finish(|_| serving(bootstrap)).await.unwrap()
    };
    let opening = async {
        let connection = dialling.dial(endpoint.id(), endpoint.local_address(), PATIENCE).await.unwrap();
        Session::open(connection, options()).await.unwrap()
    };
    let (_, session) = tokio::join!(accepting, opening);
    let slow: counter::Client = session.bootstrap();
    let call = {
        let slow = slow.clone();
        spawn_local(async move { add(&slow, 1).await }).map(Result::unwrap)
    };
    while *object.asked.borrow() == 0 {
        tokio::task::yield_now().await;
    }
    (table, session, slow, call, release)
}

#[test]
fn draining_answers_what_runs_refuses_what_comes_and_then_ends_every_session() {
    run(async {
        let (table, session, slow, call, release) = busy().await;
        let draining = spawn_local({
            let table = table.clone();
            async move { table.drain(ErrorCode::VatStopping, PATIENCE, PATIENCE).await }
        });
        let error = loop {
            // Before it has begun to drain, a call would wait with the first.
            match add(&slow, 1).now_or_never() {
                Some(Err(error)) => break error,
                Some(Ok(_)) => panic!("nothing is answered yet"),
                None => {}
            }
            let mut asked = slow.add_request();
            asked.get().set_by(1);
            if let Some(refused) =
                tokio::time::timeout(Duration::from_millis(20), asked.send().promise).await.ok().and_then(Result::err)
            {
                break refused;
            }
        };
        assert!(error.to_string().contains(ErrorCode::VatStopping.as_str()), "{error}");
        assert!(session.end().is_none() && !draining.is_finished());
        release.send(true).unwrap();
        assert_eq!(call.await.unwrap(), 77, "answered before the end");
        draining.await.unwrap();
        let SessionEnd::Peer(told) = session.closed().await else { panic!("{:?}", session.end()) };
        assert_eq!(told.code, ErrorCode::VatStopping);
        assert_eq!(table.count(), 0);
    });
}

#[test]
fn draining_ends_at_its_deadline_whatever_still_runs() {
    run(async {
        let (table, session, _slow, call, _release) = busy().await;
        table.drain(ErrorCode::VatStopping, Duration::from_millis(50), PATIENCE).await;
        assert_eq!(call.await.unwrap_err().kind, capnp::ErrorKind::Disconnected);
        assert!(matches!(session.closed().await, SessionEnd::Peer(_)));
    });
}

#[test]
fn who_comes_while_it_drains_is_refused_at_once() {
    run(async {
        let process = Process::vat(1);
        process.table.drain(ErrorCode::VatStopping, PATIENCE, PATIENCE).await;
        let (id, address) = (process.endpoint.id(), process.endpoint.local_address());
        let error = client().dial(id, address, PATIENCE).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::SessionLimit, "a handshake is not even begun");
    });
}
