//! Keeping a vat registered (DESIGN §5): the shell around [`crate::publish_schedule`].
//!
//! Every registration takes a fresh record from its [`RecordSource`], so a renewal also tells how far the vat
//! has come since: that is what makes the location servers witnesses against rolled-back copies (R7).

mod admitting;

use std::{cell::RefCell, fmt, rc::Rc, time::Duration};

use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use schemas::{ErrorCode, Order, RecordError, SearchPathEntry, SignedPacket, SignedRecord, limits::MAX_CLOCK_AHEAD};
use tokio::{
    sync::{Mutex, Notify},
    time::{Instant, sleep},
};
use transport::{Endpoint, Greeting};

use self::admitting::Pace;
use crate::{
    admission::{Admission, Invites, Worker},
    carriers::{CarrierConfig, Carriers, server},
    clock::{Clock, Randomness, SystemClock, SystemRandomness},
    failure::Failure,
    limits,
    pool::Pool,
    publish_schedule::{PublishEvent, PublishSchedule, PublishTiming},
    record_dates::Reading,
    register::{Expected, Refused, RegisterError, Registered, Reply, interpret},
    report::EntryReport,
    resolver::{self, Resolver, finder_greeting},
    service,
    skew::ClockSkew,
};

/// Signs what the vat says of itself.
pub trait RecordSource {
    /// A record of now, signed at max(now, last + 1) ([`RecordDates`](crate::RecordDates)), that says nothing which is
    /// not durable (R3): its epoch and its turn are those of the durable checkpoint.
    ///
    /// # Errors
    /// When no record can be signed; the publisher tries again later.
    fn current(&self, now: Reading) -> Result<SignedRecord, RecordError>;

    /// Whether this very start of the vat has signed `record`. An epoch belongs to one start, so a record of
    /// our epoch that we did not sign is another copy's; but servers may show us our own at any time.
    fn is_own(&self, record: &SignedRecord) -> bool;

    /// A server has taken `record`: the next one has to be later, whatever the clock says.
    fn accepted(&self, record: &SignedRecord) {
        let _ = record;
    }
}

/// How a publisher goes about it. The default is right for usual networks.
#[non_exhaustive]
pub struct PublisherConfig {
    /// The pace of registrations.
    pub timing: PublishTiming,
    /// How entries are spoken with.
    pub carriers: CarrierConfig,
    /// What location servers are told about this program.
    pub greeting: Greeting,
    /// What is shown to servers that take new vats by invitation only.
    pub invites: Invites,
    /// Where the time comes from.
    pub clock: Rc<dyn Clock>,
    /// Where the jitter comes from.
    pub random: Box<dyn Randomness>,
}

impl Default for PublisherConfig {
    fn default() -> Self {
        Self {
            timing: PublishTiming::default(),
            carriers: CarrierConfig::default(),
            greeting: finder_greeting(),
            invites: Invites::default(),
            clock: Rc::new(SystemClock::default()),
            random: Box::new(SystemRandomness),
        }
    }
}

impl fmt::Debug for PublisherConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublisherConfig")
            .field("timing", &self.timing)
            .field("carriers", &self.carriers)
            .field("greeting", &self.greeting)
            .field("invites", &self.invites)
            .finish_non_exhaustive()
    }
}

/// A location server has proved that another copy of this identity runs: this one must stop.
#[derive(Debug, Clone)]
pub struct Superseded {
    /// Who showed the proof.
    pub entry: SearchPathEntry,
    /// The proof: a record of a later epoch, or of ours by another start; signed by this identity, verified.
    pub record: SignedRecord,
}

/// On what condition a registration is made.
#[derive(Clone, Copy)]
enum Condition {
    /// The caller's.
    Given(Expected),
    /// That the server still has what it last took from us, as far as that is known. Two copies of one epoch
    /// that overwrite each other would never notice; this way the second one does.
    Unchanged,
}

/// Keeps a vat registered with every entry of its search path.
///
/// Clones are handles to the same publisher. All of its methods must run inside a tokio `LocalSet`.
#[derive(Clone)]
pub struct Publisher {
    inner: Rc<Inner>,
}

struct Inner {
    carriers: Carriers,
    entries: Vec<Entry>,
    source: Rc<dyn RecordSource>,
    invites: Invites,
    worker: Worker,
    clock: Rc<dyn Clock>,
    register_deadline: Duration,
    state: RefCell<State>,
    /// The schedule has changed, or a proof has come.
    changed: Notify,
}

struct Entry {
    place: SearchPathEntry,
    /// Registering there can succeed.
    possible: bool,
    /// One registration at a time: records must arrive in the order in which they were signed. Holds the order
    /// of the record that the server last took.
    last: Mutex<Option<Order>>,
}

struct State {
    schedule: PublishSchedule,
    random: Box<dyn Randomness>,
    reports: Vec<EntryReport>,
    superseded: Option<Superseded>,
}

impl Publisher {
    /// A publisher of what `source` signs, at every entry of `path`.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        path: Vec<SearchPathEntry>,
        source: Rc<dyn RecordSource>,
        config: PublisherConfig,
    ) -> Self {
        let pool = Pool::new(endpoint, config.greeting.clone(), limits::DIAL_DEADLINE);
        let carriers = Carriers::new(pool, config.carriers.clone());
        Self::start(carriers, path, source, config)
    }

    /// The same over the carriers and the path of a resolver, so that both need only one session per server.
    #[must_use]
    pub fn sharing(resolver: &Resolver, source: Rc<dyn RecordSource>, config: PublisherConfig) -> Self {
        Self::start(resolver.inner().carriers.clone(), resolver.path().to_vec(), source, config)
    }

    fn start(
        carriers: Carriers,
        path: Vec<SearchPathEntry>,
        source: Rc<dyn RecordSource>,
        config: PublisherConfig,
    ) -> Self {
        let PublisherConfig { timing, invites, clock, mut random, .. } = config;
        let now = clock.now();
        let mut schedule = PublishSchedule::new(path.len(), timing, now.elapsed);
        let mut reports: Vec<EntryReport> = path.iter().cloned().map(EntryReport::new).collect();
        for (entry, report) in reports.iter_mut().enumerate() {
            if let Some(failure) = why_never(&report.entry, &carriers) {
                schedule.handle(now.elapsed, PublishEvent::Impossible { entry }, random.as_mut());
                report.outcome = Some(Err(failure.into()));
            }
        }
        let possible = |place: &SearchPathEntry| why_never(place, &carriers).is_none();
        let entry = |place: SearchPathEntry| Entry { possible: possible(&place), place, last: Mutex::new(None) };
        let entries = path.into_iter().map(entry).collect();
        let inner = Inner {
            carriers,
            entries,
            source,
            invites,
            worker: Worker::default(),
            clock,
            register_deadline: timing.register_deadline,
            state: RefCell::new(State { schedule, random, reports, superseded: None }),
            changed: Notify::new(),
        };
        Self { inner: Rc::new(inner) }
    }

    /// Registers with all entries at once, each on the condition `expected`, and gives what came of each
    /// within `deadline`. For moments that somebody waits for: going live, sleep, take-over, departure.
    pub async fn announce(&self, expected: Expected, deadline: Duration) -> Vec<EntryReport> {
        self.register_all(Condition::Given(expected), deadline).await
    }

    /// The same as a renewal: each entry on the condition that it still has what it last took from this
    /// publisher. For changes while the vat is awake, its going to sleep among them.
    pub async fn renew(&self, deadline: Duration) -> Vec<EntryReport> {
        self.register_all(Condition::Unchanged, deadline).await
    }

    async fn register_all(&self, condition: Condition, deadline: Duration) -> Vec<EntryReport> {
        let entries = 0..self.inner.entries.len();
        let pace = Pace::Until(Instant::now() + deadline);
        join_all(entries.map(|entry| self.inner.register(entry, condition, pace))).await;
        self.reports()
    }

    /// Keeps the registrations alive. Ends only when a server proves that another copy of this identity runs.
    ///
    /// Dropping the future loses nothing: a later call goes on.
    pub async fn run(&self) -> Superseded {
        let mut running = FuturesUnordered::new();
        loop {
            if let Some(superseded) = self.superseded() {
                return superseded;
            }
            let now = self.inner.clock.now().elapsed;
            let due = self.inner.state.borrow_mut().schedule.begin_due(now);
            running.extend(due.into_iter().map(|entry| self.inner.register(entry, Condition::Unchanged, Pace::Each)));
            let wake_at = self.inner.state.borrow().schedule.wake_at();
            let wait = wake_at.map(|at| at.saturating_sub(now));
            tokio::select! {
                Some(()) = running.next() => {}
                () = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                () = self.inner.changed.notified() => {}
            }
        }
    }

    /// What is to be published has changed: register everywhere at once. Takes effect while
    /// [`run`](Self::run) runs.
    pub fn nudge(&self) {
        self.inner.handle(PublishEvent::Nudge);
    }

    /// How the registrations stand, in the order of the search path.
    #[must_use]
    pub fn reports(&self) -> Vec<EntryReport> {
        let now = self.inner.clock.now();
        let state = self.inner.state.borrow();
        let wall = |due: Duration| now.wall.saturating_add(due.saturating_sub(now.elapsed));
        let report = |(entry, report): (usize, &EntryReport)| EntryReport {
            next_attempt: state.schedule.due(entry).map(wall),
            ..report.clone()
        };
        state.reports.iter().enumerate().map(report).collect()
    }

    /// Asks the entries for the time: whether several of them agree that this machine's clock is wrong. A vat that signs
    /// ahead of time is refused everywhere.
    pub async fn clock_skew(&self) -> Option<ClockSkew> {
        let path: Vec<SearchPathEntry> = self.inner.entries.iter().map(|entry| entry.place.clone()).collect();
        resolver::clock_skew(&self.inner.carriers, &path, &*self.inner.clock).await
    }

    /// The proof that another copy of this identity runs, if any server has shown one.
    #[must_use]
    pub fn superseded(&self) -> Option<Superseded> {
        self.inner.state.borrow().superseded.clone()
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("reports", &self.reports()).finish_non_exhaustive()
    }
}

impl Inner {
    /// One registration, from begin to report.
    async fn register(&self, index: usize, condition: Condition, pace: Pace) {
        let entry = &self.entries[index];
        if !entry.possible {
            return;
        }
        self.handle(PublishEvent::Begun { entry: index });
        let mut underway = Underway { publisher: self, entry: index, ended: false };
        let result = self.offer_until_admitted(entry, condition, pace).await;
        underway.ended = true;
        self.finish(index, result);
    }

    /// Offers a record of now to a server.
    ///
    /// One that is dated too far ahead of the server's clock is refused, with its time in the answer. Which of the two
    /// clocks is wrong cannot be told here; but the vat can date what it signs for this server by this server's clock,
    /// and does not vanish from it while its own is wrong. That is only ever an earlier date, so a server that lies gets a
    /// record that is lower than the one that it refused; one that is within reach of the time that it names has no reason.
    async fn offer(
        &self,
        place: &SearchPathEntry,
        condition: Condition,
        last: Option<Order>,
        admission: &Admission,
    ) -> Result<Taken, Offered> {
        let offered = self.offer_record(Reading::Own(self.clock.now().wall), place, condition, last, admission).await;
        match &offered {
            Err(Offered {
                sent: Some(sent),
                error:
                    RegisterError::Refused(Refused {
                        code: ErrorCode::RecordFuture, server_time: Some(server_time), ..
                    }),
            }) if sent.timestamp().saturating_since(*server_time) > MAX_CLOCK_AHEAD => {
                self.offer_record(Reading::Server(*server_time), place, condition, last, admission).await
            }
            _ => offered,
        }
    }

    /// Offers a record to a server, dated by this clock.
    async fn offer_record(
        &self,
        reading: Reading,
        place: &SearchPathEntry,
        condition: Condition,
        last: Option<Order>,
        admission: &Admission,
    ) -> Result<Taken, Offered> {
        let record = match self.source.current(reading) {
            Ok(record) => record,
            Err(error) => return Err(Offered { sent: None, error: error.into() }),
        };
        let validity = record.record().expires.saturating_since(reading.time());
        if matches!(condition, Condition::Unchanged)
            && last == Some(record.order())
            && let Some(registered) = self.renew(place, &record).await
        {
            return Ok(Taken { registered, record, validity });
        }
        let mut expected = match condition {
            Condition::Given(expected) => expected,
            Condition::Unchanged => last.map_or(Expected::Anything, Expected::Order),
        };
        let mut result = self.carriers.register(place, &record, expected, admission).await;
        if let Ok(Reply::Unexpected(shown)) = &result
            && let Some(instead) = self.expected_instead(&record, shown, condition)
        {
            expected = instead;
            result = self.carriers.register(place, &record, expected, admission).await;
        }
        match result.map_err(RegisterError::from).and_then(|reply| interpret(&record, &expected, reply)) {
            Ok(registered) => Ok(Taken { registered, record, validity }),
            Err(error) => Err(Offered { sent: Some(record), error }),
        }
    }

    /// What to expect when a record that was not expected is no reason to stop: one of our own, when an answer was lost
    /// on its way; for a renewal also none, or an older epoch's, when a server has lost what it knew; and what another
    /// program has published with the vat's key, in place of exactly which the record is put: of two copies that both
    /// expect that there is no vat, one still loses.
    fn expected_instead(&self, sent: &SignedRecord, shown: &[u8], condition: Condition) -> Option<Expected> {
        let renewal = matches!(condition, Condition::Unchanged);
        let is_older = |shown: &SignedRecord| shown.record().epoch < sent.record().epoch;
        match SignedPacket::verify(sent.id(), shown) {
            Ok(SignedPacket::Foreign(packet)) => Some(Expected::Order(packet.order())),
            Ok(SignedPacket::Record(shown)) if self.source.is_own(&shown) || (renewal && is_older(&shown)) => {
                Some(Expected::Anything)
            }
            Err(_) if renewal && shown.is_empty() => Some(Expected::Anything),
            Ok(_) | Err(_) => None,
        }
    }

    /// Renews a record that the server has, in a few bytes and without a signature to check, where the session proves whose
    /// it is. `None` if it has to be offered: the server has another one, or does not know how.
    async fn renew(&self, place: &SearchPathEntry, record: &SignedRecord) -> Option<Registered> {
        let (pool, server) = (&self.carriers.pool, server(place)?);
        if pool.endpoint().id() != record.id() {
            return None;
        }
        match pool.call(&server, |client| service::renew(client, record.order())).await {
            Ok(Reply::Refreshed { lease }) => Some(Registered::Refreshed { lease }),
            _ => None,
        }
    }

    fn finish(&self, entry: usize, result: Result<Taken, Offered>) {
        let now = self.clock.now();
        let event = {
            let mut state = self.state.borrow_mut();
            let report = &mut state.reports[entry];
            report.last_attempt = Some(now.wall);
            match result {
                Ok(Taken { registered, validity, .. }) => {
                    let lease = registered.lease().min(validity);
                    report.last_success = Some(now.wall);
                    report.leased_until = Some(now.wall.saturating_add(lease));
                    report.outcome = Some(Ok(registered));
                    PublishEvent::Registered { entry, lease }
                }
                Err(Offered { sent, error }) => {
                    tracing::debug!(entry = %report.entry, %error, "a registration failed");
                    let proof = sent.as_ref().and_then(|sent| self.proof_of_another_copy(&error, sent));
                    let retry_after = error.retry_after();
                    report.outcome = Some(Err(error));
                    if let Some(record) = proof {
                        let entry = self.entries[entry].place.clone();
                        state.superseded.get_or_insert(Superseded { entry, record });
                    }
                    PublishEvent::Failed { entry, retry_after }
                }
            }
        };
        self.handle(event);
    }

    /// A record of a later epoch says that this copy was left behind; one of ours that another start signed,
    /// that two copies run, of which this one has not the server's word.
    fn proof_of_another_copy(&self, error: &RegisterError, sent: &SignedRecord) -> Option<SignedRecord> {
        let is_rival =
            |shown: &&SignedRecord| shown.record().epoch >= sent.record().epoch && !self.source.is_own(shown);
        error.shown().filter(is_rival).cloned()
    }

    fn handle(&self, event: PublishEvent) {
        let now = self.clock.now().elapsed;
        let State { schedule, random, .. } = &mut *self.state.borrow_mut();
        schedule.handle(now, event, random.as_mut());
        self.changed.notify_one();
    }
}

/// Why no registration with an entry can ever succeed, if none can.
fn why_never(entry: &SearchPathEntry, carriers: &Carriers) -> Option<Failure> {
    carriers.why_not(entry).map(Failure::LeftOut).or_else(|| Failure::beyond_lookups(entry))
}

/// A registration that was carried out, and for how long the record is valid by the clock that it was dated by: that of
/// this machine may be hours off.
struct Taken {
    registered: Registered,
    record: SignedRecord,
    validity: Duration,
}

/// A registration that was not carried out, and the record that was offered, if it came so far.
struct Offered {
    sent: Option<SignedRecord>,
    error: RegisterError,
}

/// A registration that is dropped half-way counts as failed, so that it is tried again.
struct Underway<'a> {
    publisher: &'a Inner,
    entry: usize,
    ended: bool,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.publisher.handle(PublishEvent::Failed { entry: self.entry, retry_after: None });
        }
    }
}
