//! References that outlive sessions, against a vat on a real socket.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use futures::{FutureExt, future::LocalBoxFuture};
use schemas::{Coded, ErrorCode, Hints, IdentityKey, Secret, SturdyRef, objects_capnp::counter, vat_capnp::vat};
use tokio::{sync::watch, task::spawn_local};
use transport::{
    Endpoint, EndpointConfig, Greeting, OutputGate, PeerConnection, ResumeToken, Session, SessionEnd, SessionLimits,
    SessionOptions,
};
use vls_client::{
    Attempted, Finder, LiveConfig, LiveError, LiveEvent, LiveNetwork, LiveRef, LiveRefs, ReconnectTiming, Resolver,
    ResolverConfig,
};

use crate::support::{
    net::{finder, run, until},
    records::key,
};

/// A vat with one object, which counts how often it is called and may keep its callers waiting.
struct Home {
    endpoint: Endpoint,
    state: Rc<State>,
}

struct State {
    epoch: Cell<u64>,
    sessions: RefCell<Vec<Rc<Session>>>,
    /// What each greeted with to name the session that it lost.
    resumed: RefCell<Vec<Option<ResumeToken>>>,
    restores: Cell<usize>,
    calls: Cell<u64>,
    denies: Cell<bool>,
    answers: watch::Sender<bool>,
}

fn home(key: &IdentityKey, epoch: u64) -> Home {
    let loopback = "127.0.0.1:0".parse().unwrap();
    let endpoint = Endpoint::bind(key, loopback, EndpointConfig::default()).unwrap();
    let state = Rc::new(State {
        epoch: Cell::new(epoch),
        sessions: RefCell::default(),
        resumed: RefCell::default(),
        restores: Cell::new(0),
        calls: Cell::new(0),
        denies: Cell::new(false),
        answers: watch::Sender::new(true),
    });
    let (listening, serving) = (endpoint.clone(), state.clone());
    spawn_local(async move {
        while let Some(incoming) = listening.accept().await {
            let state = serving.clone();
            spawn_local(async move {
                if let Ok(connection) = incoming.accept().await {
                    state.serve(connection).await;
                }
            });
        }
    });
    Home { endpoint, state }
}

impl Home {
    /// A reference to its object.
    fn reference(&self) -> SturdyRef {
        let hints = Hints { addresses: vec![self.endpoint.local_address().to_string()], ..Hints::default() };
        SturdyRef { id: self.endpoint.id(), secret: Secret::generate().unwrap(), hints }
    }

    fn sessions(&self) -> usize {
        self.state.sessions.borrow().len()
    }

    /// The session that was begun last ends, with this code.
    fn drop_session(&self, code: ErrorCode) {
        self.state.sessions.borrow().last().unwrap().dismiss(code);
    }
}

impl State {
    async fn serve(self: Rc<Self>, connection: PeerConnection) {
        let public: vat::Client = capnp_rpc::new_client(Public(self.clone()));
        let options = SessionOptions { bootstrap: Some(public.client), ..options(self.epoch.get()) };
        if let Ok(session) = Session::accept(connection, options).await {
            self.resumed.borrow_mut().push(session.peer().resumes);
            self.sessions.borrow_mut().push(Rc::new(session));
        }
    }
}

struct Public(Rc<State>);

impl vat::Server for Public {
    async fn restore(self: Rc<Self>, _: vat::RestoreParams, mut results: vat::RestoreResults) -> capnp::Result<()> {
        self.0.restores.set(self.0.restores.get() + 1);
        if self.0.denies.get() {
            return Err(capnp::Error::failed(ErrorCode::RefDenied.to_wire("no such grant")));
        }
        let object: counter::Client = capnp_rpc::new_client(Counter(self.0.clone()));
        results.get().set_interface_id(7);
        results.get().init_capability().set_as_capability(object.client.hook);
        Ok(())
    }
}

struct Counter(Rc<State>);

impl counter::Server for Counter {
    async fn add(self: Rc<Self>, _: counter::AddParams, mut results: counter::AddResults) -> capnp::Result<()> {
        self.0.calls.set(self.0.calls.get() + 1);
        // A test that has ended releases everybody.
        let _ = self.0.answers.subscribe().wait_for(|answers| *answers).await;
        results.get().set_total(self.0.calls.get());
        Ok(())
    }
}

fn options(epoch: u64) -> SessionOptions {
    SessionOptions {
        greeting: Greeting { epoch, incarnation: [1; 16], program: "a test".to_owned() },
        bootstrap: None,
        gate: OutputGate::always_open(),
        limits: SessionLimits::default(),
    }
}

/// Waits are short, and always the longest: no test depends on which.
fn config() -> LiveConfig {
    let mut config = LiveConfig::default();
    let ms = Duration::from_millis;
    config.timing = ReconnectTiming { base: ms(5), cap: ms(20), steady: ms(0), attempt: Duration::from_secs(20) };
    config.randomness = Box::new(|| u64::MAX);
    config
}

fn live_refs() -> LiveRefs {
    let resolver = Resolver::new(finder(), Vec::new(), None, ResolverConfig::default());
    LiveRefs::new(Finder::new(resolver, || options(0)), config())
}

async fn add(live: &LiveRef) -> Result<u64, capnp::Error> {
    let held = live.get().await.map_err(|error| capnp::Error::failed(error.to_string()))?;
    Ok(held.capability::<counter::Client>().add_request().send().promise.await?.get()?.get_total())
}

#[test]
fn the_next_call_after_a_break_finds_a_capability_that_works() {
    run(async {
        let home = home(&key(1), 5);
        let live = live_refs().of(&home.reference());
        assert_eq!(home.sessions(), 0, "nothing is dialled for nobody");
        assert_eq!(add(&live).await.unwrap(), 1);
        let held = live.get().await.unwrap();
        assert_eq!((held.generation(), held.epoch(), held.interface_id()), (1, 5, 7));
        home.drop_session(ErrorCode::VatStopping);
        held.session().closed().await;
        assert_eq!(add(&live).await.unwrap(), 2);
        assert_eq!(live.get().await.unwrap().generation(), 2);
        // What was held before stays broken.
        let error = held.capability::<counter::Client>().add_request().send().promise.await.err().unwrap();
        assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
    });
}

#[test]
fn a_call_whose_answer_was_lost_fails_and_is_not_made_again() {
    run(async {
        let home = home(&key(1), 5);
        let live = live_refs().of(&home.reference());
        home.state.answers.send_replace(false);
        let call = spawn_local({
            let live = live.clone();
            async move { add(&live).await }
        });
        until(|| home.state.calls.get() == 1).await;
        home.drop_session(ErrorCode::SessionClosed);
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{error}");
        home.state.answers.send_replace(true);
        assert_eq!(add(&live).await.unwrap(), 2, "the second that arrived, not the third");
    });
}

#[test]
fn who_asks_at_the_same_time_shares_one_session_and_one_restoring() {
    run(async {
        let home = home(&key(1), 5);
        let refs = live_refs();
        let (one, other) = (refs.of(&home.reference()), refs.of(&home.reference()));
        let asked = futures::future::join_all((0..10).map(|_| one.get()));
        let (held, elsewhere) = tokio::join!(asked, other.get());
        assert!(held.iter().all(|held| held.as_ref().is_ok_and(|held| held.generation() == 1)));
        assert!(elsewhere.is_ok());
        assert_eq!((home.sessions(), home.state.restores.get()), (1, 2), "one session, one restoring each");
    });
}

#[test]
fn holders_are_told_of_breaks_and_returns_in_order_and_what_they_held_is_broken_by_then() {
    run(async {
        let home = home(&key(1), 5);
        let live = live_refs().of(&home.reference());
        let mut events = live.events();
        for generation in 1..=3 {
            let event = events.next().await;
            assert!(matches!(event, LiveEvent::Live { generation: g, epoch: 5 } if g == generation), "{event:?}");
            let held = live.get().await.unwrap();
            let mut pending = {
                home.state.answers.send_replace(false);
                held.capability::<counter::Client>().add_request().send().promise.boxed_local()
            };
            assert!(pending.as_mut().now_or_never().is_none());
            home.drop_session(ErrorCode::SessionEvicted);
            let event = events.next().await;
            let LiveEvent::Broken { generation: broken, reason } = event else { panic!("{event:?}") };
            assert_eq!((broken, reason.code()), (generation, ErrorCode::SessionEvicted));
            let answer = pending.now_or_never().expect("broken before anybody was told");
            assert_eq!(answer.err().unwrap().kind, capnp::ErrorKind::Disconnected);
        }
    });
}

#[test]
fn who_is_slow_is_told_less_and_nothing_wrong() {
    run(async {
        let home = home(&key(1), 5);
        let live = live_refs().of(&home.reference());
        let mut events = live.events();
        assert!(matches!(events.next().await, LiveEvent::Live { generation: 1, .. }));
        for sessions in 1..=3 {
            until(|| home.sessions() == sessions).await;
            home.drop_session(ErrorCode::SessionClosed);
        }
        until(|| home.sessions() == 4).await;
        while live.get().await.is_ok_and(|held| held.generation() < 4) {
            tokio::task::yield_now().await;
        }
        assert!(matches!(events.next().await, LiveEvent::Broken { generation: 1, .. }));
        assert!(matches!(events.next().await, LiveEvent::Live { generation: 4, .. }));
    });
}

#[test]
fn a_peer_that_was_lost_is_told_which_session_it_may_forget() {
    run(async {
        let home = home(&key(1), 5);
        let live = live_refs().of(&home.reference());
        let first = live.get().await.unwrap().session().resume_token();
        assert!(first.is_some());
        home.drop_session(ErrorCode::SessionClosed);
        until(|| home.state.sessions.borrow()[0].end().is_some()).await;
        let mut events = live.events();
        while !matches!(events.next().await, LiveEvent::Live { generation: 2, .. }) {}
        until(|| home.sessions() == 2).await;
        assert_eq!(*home.state.resumed.borrow(), [None, first]);
        let second = live.get().await.unwrap().session().resume_token();
        assert_eq!(second, home.state.sessions.borrow()[1].resume_token(), "both ends have the same");
        assert_ne!(second, first);
    });
}

#[test]
fn a_newer_copy_takes_over_and_an_old_one_is_not_believed_any_more() {
    run(async {
        let home = home(&key(1), 5);
        let refs = live_refs();
        let live = refs.of(&home.reference());
        let mut events = live.events();
        assert!(matches!(events.next().await, LiveEvent::Live { generation: 1, epoch: 5 }));
        refs.saw_epoch(live.id(), 6);
        let event = events.next().await;
        let LiveEvent::Broken { reason, .. } = event else { panic!("{event:?}") };
        assert!(matches!(reason, SessionEnd::Dismissed { code: ErrorCode::SessionSuperseded }), "{reason}");
        let event = events.next().await;
        let LiveEvent::Failed(LiveError::Stale { found: 5, known: 6, .. }) = event else { panic!("{event:?}") };
        assert_eq!(live.get().await.unwrap_err().code(), ErrorCode::SessionSuperseded);
        home.state.epoch.set(6);
        loop {
            match events.next().await {
                LiveEvent::Failed(LiveError::Stale { .. }) => {}
                LiveEvent::Live { generation: 2, epoch: 6 } => break,
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_reference_that_is_refused_is_told_once_and_asked_again_only_on_request() {
    run(async {
        let home = home(&key(1), 5);
        home.state.denies.set(true);
        let live = live_refs().of(&home.reference());
        let mut events = live.events();
        let event = events.next().await;
        let LiveEvent::Refused { generation: 1, error } = event else { panic!("{event:?}") };
        assert_eq!(error.code(), ErrorCode::RefDenied);
        assert!(events.next().now_or_never().is_none());
        assert_eq!(home.state.restores.get(), 1);
        assert_eq!(live.get().await.unwrap_err().code(), ErrorCode::RefDenied);
        home.state.denies.set(false);
        assert!(live.get().await.is_ok());
        assert_eq!((home.sessions(), home.state.restores.get()), (1, 3));
    });
}

/// Fails as often as it is told, then goes the usual way.
struct Flaky {
    inner: Finder,
    failures: Cell<u64>,
    attempts: Rc<Cell<u64>>,
}

impl LiveNetwork for Flaky {
    fn connect(&self, attempt: Attempted) -> LocalBoxFuture<'static, Result<Rc<Session>, LiveError>> {
        self.attempts.set(self.attempts.get() + 1);
        if self.attempts.get() <= self.failures.get() {
            return futures::future::ready(Err(LiveError::Ended(SessionEnd::Local))).boxed_local();
        }
        self.inner.connect(attempt)
    }
}

#[test]
fn an_attempt_that_fails_is_told_to_all_who_wait_and_who_watches_sees_the_vat_come_back() {
    run(async {
        let home = home(&key(1), 5);
        let resolver = Resolver::new(finder(), Vec::new(), None, ResolverConfig::default());
        let attempts = Rc::new(Cell::new(0));
        let inner = Finder::new(resolver, || options(0));
        let flaky = Flaky { inner, failures: Cell::new(3), attempts: attempts.clone() };
        let live = LiveRefs::new(flaky, config()).of(&home.reference());
        let (one, other) = tokio::join!(live.get(), live.get());
        assert!(matches!((one, other), (Err(LiveError::Ended(_)), Err(LiveError::Ended(_)))));
        assert_eq!(attempts.get(), 1, "they shared it, and nobody has asked since");
        let mut events = live.events();
        while !matches!(events.next().await, LiveEvent::Live { generation: 1, .. }) {}
        assert_eq!(attempts.get(), 4);
    });
}

#[test]
fn when_nobody_holds_anything_of_it_the_session_is_closed() {
    run(async {
        let home = home(&key(1), 5);
        let live = live_refs().of(&home.reference());
        let held = live.get().await.unwrap();
        until(|| home.sessions() == 1).await;
        let session = home.state.sessions.borrow()[0].clone();
        drop(live);
        assert!(held.capability::<counter::Client>().add_request().send().promise.await.is_ok(), "still held");
        drop(held);
        let end = session.closed().await;
        assert_eq!(end.code(), ErrorCode::SessionClosed);
        assert!(matches!(end, SessionEnd::Peer(_)), "{end}");
    });
}
