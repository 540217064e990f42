//! Open sessions to location servers, kept warm for the next call (DESIGN §5: warm lookups ride the open
//! session, others are one datagram each way).
//!
//! One session per server. Who asks first opens it; everybody who asks meanwhile waits for the same dial, which
//! goes on even if all of them give up, so that the next one finds it open. A server that was killed does not
//! say goodbye: a session that is silent for unusually long gets a fresh one beside it, and whichever answers
//! first is kept. Both calls of the location service may be repeated without harm, so a broken session costs
//! a new dial and nothing else.

use std::{
    cell::{OnceCell, RefCell},
    collections::{HashMap, VecDeque},
    future::Future,
    rc::Rc,
    time::Duration,
};

use futures::{
    FutureExt,
    channel::oneshot,
    future::{Either, Shared, select},
};
use schemas::{Coded, ErrorCode, RemoteError, VatId, location_capnp::location_service};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep},
};
use transport::{Endpoint, Greeting, OutputGate, Session, SessionEnd, SessionLimits, SessionOptions};

use crate::{
    cold::{ColdLookups, Question},
    dial::dial,
    dial_schedule::Target,
    failure::Failure,
    limits,
    schedule::Answer,
    service,
};

/// A location server: who, and where to dial it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Server {
    pub(crate) id: VatId,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// The sessions of one endpoint. Cloning gives a handle to the same ones.
#[derive(Clone)]
pub(crate) struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    greeting: Greeting,
    dial_deadline: Duration,
    /// Made for the first of them.
    cold: OnceCell<ColdLookups>,
    slots: RefCell<Slots>,
}

#[derive(Default)]
struct Slots {
    by_server: HashMap<Server, Slot>,
    /// Counts uses; orders slots by their last one, and tells sessions apart.
    clock: u64,
}

#[derive(Default)]
struct Slot {
    open: Option<Open>,
    opening: Option<Shared<oneshot::Receiver<Result<Open, Failure>>>>,
    latencies: Latencies,
    /// The last attempt failed.
    failed: bool,
    /// Since when there are calls without an answer.
    silent_since: Option<Instant>,
    last_use: u64,
}

/// A session and what is called on it. The session ends when the last clone is gone.
#[derive(Clone)]
struct Open {
    session: Rc<Session>,
    client: location_service::Client,
    serial: u64,
}

impl Pool {
    pub(crate) fn new(endpoint: Endpoint, greeting: Greeting, dial_deadline: Duration) -> Self {
        let (cold, slots) = (OnceCell::new(), RefCell::default());
        Self { inner: Rc::new(Inner { endpoint, greeting, dial_deadline, cold, slots }) }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// The p95 of this server's answers, without a session or over an open one, if any was measured.
    pub(crate) fn expected(&self, server: &Server) -> Option<Duration> {
        self.inner.slots.borrow().by_server.get(server).and_then(|slot| slot.latencies.p95())
    }

    /// Whether its last attempt failed, or it has been silent for longer than a good answer takes.
    pub(crate) fn is_suspect(&self, server: &Server) -> bool {
        self.inner.slots.borrow().by_server.get(server).is_some_and(|slot| {
            slot.failed || slot.silent_since.is_some_and(|since| since.elapsed() > slot.latencies.patience())
        })
    }

    /// Looks up the record of `id`: over the open session if there is one, else cold, and over a new session only if
    /// that is not answered for `patience`. Has no deadline of its own beyond that of the dial. With the answer comes the
    /// question that was asked cold, if one was: it may be answered again.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn lookup(
        &self,
        server: &Server,
        id: VatId,
        patience: Duration,
    ) -> Result<(Answer, Option<Question>), Failure> {
        let over_session = || self.call(server, |client| service::lookup(client, id));
        let has_session = self.with_slot(server, |slot| {
            slot.silent_since.get_or_insert_with(Instant::now);
            slot.open.is_some() || slot.opening.is_some()
        });
        if has_session {
            return Ok((over_session().await?, None));
        }
        let mut question = self.inner.cold.get_or_init(|| ColdLookups::new(&self.inner.endpoint)).question(id)?;
        let over_new_session = async {
            sleep(patience).await;
            over_session().await
        };
        let (answer, is_of_session) = self.cold_or_over(server, &mut question, over_new_session).await?;
        // Over a session the server alone has spoken: nobody takes its word back in a datagram.
        Ok((answer, (!is_of_session).then_some(question)))
    }

    /// Asks cold, and meanwhile over a session, which takes its time to begin. Tells whether it is the session that was
    /// answered.
    async fn cold_or_over(
        &self,
        server: &Server,
        question: &mut Question,
        over_new_session: impl Future<Output = Result<Answer, Failure>>,
    ) -> Result<(Answer, bool), Failure> {
        let begun = Instant::now();
        let target = Target { host: server.host.clone(), port: server.port };
        let cold = question.ask(&target, self.inner.dial_deadline);
        futures::pin_mut!(cold, over_new_session);
        let (cold, session) = match select(cold, over_new_session).await {
            Either::Left((Err(Failure::Timeout { .. }), over_new_session)) => {
                return over_new_session.await.map(|answer| (answer, true));
            }
            // An error that is no silence is one of the name: a session would not find it either.
            Either::Left((result, _)) => (result, None),
            // It may have no place for sessions, and answer all the same.
            Either::Right((Err(failure), cold)) if is_no_word_of_it(&failure) => (cold.await, Some(failure)),
            Either::Right((result, _)) => return result.map(|answer| (answer, true)),
        };
        self.with_slot(server, |slot| {
            (slot.failed, slot.silent_since) = (cold.is_err(), None);
            if cold.is_ok() {
                slot.latencies.add(begun.elapsed());
            }
        });
        cold.map(|answer| (answer, false)).map_err(|failure| session.unwrap_or(failure))
    }

    /// Makes a call that may be repeated without harm. Has no deadline of its own beyond that of the dial.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn call<T, F>(
        &self,
        server: &Server,
        request: impl Fn(location_service::Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let result = self.call_warm_or_fresh(server, &request).await;
        self.with_slot(server, |slot| {
            // A refusal is an answer too: the server is there.
            slot.failed = !matches!(result, Ok(_) | Err(Failure::Remote(_)));
            slot.silent_since = None;
        });
        result
    }

    async fn call_warm_or_fresh<T, F>(
        &self,
        server: &Server,
        request: &impl Fn(location_service::Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let (warm, patience) = self.with_slot(server, |slot| {
            slot.silent_since.get_or_insert_with(Instant::now);
            (slot.open.clone(), slot.latencies.patience())
        });
        let Some(warm) = warm else { return self.open(server).await?.call(request).await };
        let begun = Instant::now();
        let on_warm = async {
            let result = warm.call(request).await;
            if result.is_ok() {
                self.with_slot(server, |slot| slot.latencies.add(begun.elapsed()));
            }
            result
        };
        let on_fresh = async {
            sleep(patience).await;
            self.discard(server, warm.serial);
            self.open(server).await?.call(request).await
        };
        futures::pin_mut!(on_warm, on_fresh);
        match select(on_warm, on_fresh).await {
            Either::Left((Err(Failure::Ended(_)), _)) => {
                self.discard(server, warm.serial);
                self.open(server).await?.call(request).await
            }
            Either::Left((result, _)) | Either::Right((result @ Ok(_), _)) => result,
            // The old session may still answer; if it breaks, its reason adds nothing to the fresh one's.
            Either::Right((Err(fresh), on_warm)) => on_warm.await.map_err(|_| fresh),
        }
    }

    /// A session for more than one call; it stays open as long as it is held.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn session(&self, server: &Server) -> Result<(Rc<Session>, location_service::Client), Failure> {
        let open = self.open(server).await?;
        if open.session.end().is_none() {
            return Ok((open.session, open.client));
        }
        self.discard(server, open.serial);
        let open = self.open(server).await?;
        Ok((open.session, open.client))
    }

    /// The open session, or the one that is being opened, or a new one.
    async fn open(&self, server: &Server) -> Result<Open, Failure> {
        let opening = self.with_slot(server, |slot| match &slot.open {
            Some(open) => Err(open.clone()),
            None => Ok(slot.opening.get_or_insert_with(|| self.start_opening(server)).clone()),
        });
        let opening = match opening {
            Ok(opening) => opening,
            Err(open) => return Ok(open),
        };
        // The sender is dropped without a result only when the runtime ends.
        opening.await.unwrap_or(Err(Failure::Timeout { after: self.inner.dial_deadline }))
    }

    fn start_opening(&self, server: &Server) -> Shared<oneshot::Receiver<Result<Open, Failure>>> {
        let (sender, receiver) = oneshot::channel();
        let (pool, server) = (self.clone(), server.clone());
        spawn_local(async move {
            let result = pool.dial(&server).await;
            pool.opened(&server, &result);
            // Nobody waits any more: the session is in the pool all the same.
            let _ = sender.send(result);
        });
        receiver.shared()
    }

    /// A session to a server, or that there is none, by the deadline. The greeting has what the dial leaves of it: a server
    /// that dies between the two would keep everybody from the one that starts in its place, because all wait for the
    /// same dial.
    async fn dial(&self, server: &Server) -> Result<Open, Failure> {
        let begun = Instant::now();
        let target = Target { host: server.host.clone(), port: server.port };
        let (connection, _) = dial(&self.inner.endpoint, server.id, &target, self.inner.dial_deadline).await?;
        let mut limits = SessionLimits::default();
        limits.hello_deadline = limits.hello_deadline.min(self.inner.dial_deadline.saturating_sub(begun.elapsed()));
        let options = SessionOptions {
            greeting: self.inner.greeting.clone(),
            bootstrap: None,
            // What goes out here is a request for public records, or a record: its source lets it say only
            // what is durable (R3), so nothing has to be held back.
            gate: OutputGate::always_open(),
            limits,
        };
        let session = Session::open(connection, options).await.map_err(|error| Failure::Session(error.into()))?;
        let client = session.bootstrap();
        let serial = self.tick();
        Ok(Open { session: Rc::new(session), client, serial })
    }

    fn opened(&self, server: &Server, result: &Result<Open, Failure>) {
        self.with_slot(server, |slot| {
            slot.opening = None;
            slot.failed = result.is_err();
            slot.open = result.as_ref().ok().cloned();
        });
    }

    /// Forgets a session that is broken or suspected to be, unless it was replaced already.
    fn discard(&self, server: &Server, serial: u64) {
        if let Some(slot) = self.inner.slots.borrow_mut().by_server.get_mut(server) {
            slot.open.take_if(|open| open.serial == serial);
        }
    }

    fn tick(&self) -> u64 {
        let mut slots = self.inner.slots.borrow_mut();
        slots.clock += 1;
        slots.clock
    }

    /// Uses the slot of a server, which is made if there is none; then the least recently used one makes room.
    fn with_slot<R>(&self, server: &Server, use_slot: impl FnOnce(&mut Slot) -> R) -> R {
        let mut slots = self.inner.slots.borrow_mut();
        slots.clock += 1;
        let now = slots.clock;
        if !slots.by_server.contains_key(server) && slots.by_server.len() >= limits::MAX_POOLED_SESSIONS {
            let oldest = slots.by_server.iter().min_by_key(|(_, slot)| slot.last_use).map(|(server, _)| server.clone());
            oldest.and_then(|oldest| slots.by_server.remove(&oldest));
        }
        let slot = slots.by_server.entry(server.clone()).or_default();
        slot.last_use = now;
        use_slot(slot)
    }
}

impl Open {
    async fn call<T, F>(&self, request: &impl Fn(location_service::Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let ended = |end: SessionEnd| Failure::Ended(RemoteError { code: end.code(), message: end.to_string() });
        self.session.or_ended(request(self.client.clone())).await.map_err(ended)?
    }
}

/// Whether a session has failed without telling who is there: neither has the server answered, nor somebody else.
fn is_no_word_of_it(failure: &Failure) -> bool {
    let is_of_the_session =
        matches!(failure, Failure::Dial(_) | Failure::Session(_) | Failure::Ended(_) | Failure::Timeout { .. });
    is_of_the_session && failure.code() != ErrorCode::SessionWrongPeer
}

/// The last answer times of one server.
#[derive(Debug, Default)]
struct Latencies(VecDeque<Duration>);

impl Latencies {
    fn add(&mut self, latency: Duration) {
        if self.0.len() == limits::LATENCY_SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(latency);
    }

    fn p95(&self) -> Option<Duration> {
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) * 95 / 100).copied()
    }

    /// After how long a silent session is suspected to be dead.
    fn patience(&self) -> Duration {
        let (least, most) = limits::WARM_PATIENCE_BOUNDS;
        self.p95().map_or(most, |p95| p95.saturating_mul(limits::WARM_PATIENCE_FACTOR).clamp(least, most))
    }
}

#[cfg(test)]
mod tests {
    use transport::EndpointConfig;

    use super::*;

    #[test]
    fn the_p95_forgets_old_samples_and_ignores_one_outlier() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.p95(), None);
        assert_eq!(latencies.patience(), limits::WARM_PATIENCE_BOUNDS.1);
        (0..limits::LATENCY_SAMPLES).for_each(|_| latencies.add(Duration::from_secs(9)));
        (0..limits::LATENCY_SAMPLES - 1).for_each(|_| latencies.add(Duration::from_millis(20)));
        latencies.add(Duration::from_secs(5));
        assert_eq!(latencies.p95(), Some(Duration::from_millis(20)));
        assert_eq!(latencies.patience(), Duration::from_millis(80));
    }

    #[tokio::test]
    async fn a_server_that_never_greets_keeps_nobody_waiting_beyond_the_deadline() {
        let keys = [1, 2].map(|seed| schemas::IdentityKey::from_seed(&[seed; 32]));
        let mute = Endpoint::bind(&keys[1], "127.0.0.1:0".parse().unwrap(), EndpointConfig::default()).unwrap();
        let port = mute.local_address().port();
        let deadline = Duration::from_millis(300);
        let endpoint = Endpoint::client(&keys[0]).unwrap();
        let pool = Pool::new(endpoint, crate::resolver::finder_greeting(), deadline);
        let server = Server { id: keys[1].id(), host: "127.0.0.1".to_owned(), port };
        let local = tokio::task::LocalSet::new();
        let accepting = local.spawn_local(async move { mute.accept().await.unwrap().accept().await.unwrap() });
        let begun = Instant::now();
        let refused = local.run_until(pool.session(&server)).await.map(|_| ()).unwrap_err();
        assert!(matches!(refused, Failure::Session(_)), "{refused:?}");
        assert!((deadline..transport::limits::HELLO_DEADLINE / 2).contains(&begun.elapsed()));
        assert!(accepting.is_finished(), "the handshake was not what took so long");
    }

    #[tokio::test]
    async fn the_least_recently_used_server_makes_room() {
        let key = schemas::IdentityKey::from_seed(&[1; 32]);
        let endpoint = Endpoint::client(&key).unwrap();
        let pool = Pool::new(endpoint, crate::resolver::finder_greeting(), Duration::from_secs(1));
        let server = |port| Server { id: key.id(), host: "127.0.0.1".to_owned(), port };
        let last = u16::try_from(limits::MAX_POOLED_SESSIONS).unwrap() + 5;
        for port in 1..=last {
            pool.with_slot(&server(port), |_| ());
            pool.with_slot(&server(1), |slot| slot.failed = true);
        }
        let slots = pool.inner.slots.borrow();
        assert_eq!(slots.by_server.len(), limits::MAX_POOLED_SESSIONS);
        assert!(slots.by_server.contains_key(&server(1)) && slots.by_server.contains_key(&server(last)));
        assert!(!slots.by_server.contains_key(&server(2)));
    }
}
