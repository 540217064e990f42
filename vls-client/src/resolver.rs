//! Finding vats (DESIGN §5): the public face of lookups ([`crate::schedule`]) and of dialling
//! ([`crate::dial_schedule`]).

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use futures::future::join_all;
use schemas::{Hints, SearchPathEntry, SignedRecord, State, Timestamp, VatId};
use tokio::time::timeout;
use transport::{Endpoint, Greeting};

use crate::{
    absent::Absent,
    attempt::{Attempt, Lines, Summary},
    cache::RecordCache,
    carriers::{CarrierConfig, Carriers, server},
    clock::{Clock, Randomness, SystemClock, SystemRandomness},
    connect::{Connected, Reach},
    dial::addresses_of,
    dial_schedule::DialTiming,
    error::ResolveError,
    failure::Failure,
    known::KnownRecords,
    limits,
    lookup::{Lookup, Signal, entries},
    pool::{Pool, Server},
    schedule::{Found, Freshness, Goal, LookupTiming},
    scores::{EntryScore, EntryScores},
    service::DialledBack,
    skew::{self, ClockSkew, Reading},
    watching::Watching,
};

/// How a resolver goes about it. The default is right for usual networks.
#[derive(Clone)]
#[non_exhaustive]
pub struct ResolverConfig {
    /// The pace of lookups.
    pub lookup: LookupTiming,
    /// The pace of dialling.
    pub dial: DialTiming,
    /// How entries are spoken with.
    pub carriers: CarrierConfig,
    /// What location servers are told about this program.
    pub greeting: Greeting,
    /// Where the time comes from.
    pub clock: Rc<dyn Clock>,
    /// Where random numbers come from that spread attempts; no secret is made of them.
    pub randomness: Rc<RefCell<dyn Randomness>>,
}

impl Default for ResolverConfig {
    fn default() -> Self {
        Self {
            lookup: LookupTiming::default(),
            dial: DialTiming::default(),
            carriers: CarrierConfig::default(),
            greeting: finder_greeting(),
            clock: Rc::new(SystemClock::default()),
            randomness: Rc::new(RefCell::new(SystemRandomness)),
        }
    }
}

impl fmt::Debug for ResolverConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lookup, dial, carriers, greeting, .. } = self;
        f.debug_struct("ResolverConfig")
            .field("lookup", lookup)
            .field("dial", dial)
            .field("carriers", carriers)
            .field("greeting", greeting)
            .finish_non_exhaustive()
    }
}

/// The greeting of somebody who only finds and registers: not a vat, so of epoch 0.
pub(crate) fn finder_greeting() -> Greeting {
    let mut incarnation = [0; 16];
    // It tells a reconnect from a restart, which means nothing for epoch 0; zeros do as well.
    let _ = getrandom::fill(&mut incarnation);
    Greeting { epoch: 0, incarnation, program: concat!("vls-client ", env!("CARGO_PKG_VERSION")).to_owned() }
}

/// Finds vats through a search path, and dials them.
///
/// Clones share sessions, memory and cache. All of its methods must run inside a tokio `LocalSet`.
#[derive(Clone)]
pub struct Resolver {
    inner: Rc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) carriers: Carriers,
    pub(crate) path: Vec<SearchPathEntry>,
    pub(crate) known: KnownRecords,
    pub(crate) scores: EntryScores,
    absent: Absent,
    pub(crate) lookup_timing: LookupTiming,
    pub(crate) clock: Rc<dyn Clock>,
    pub(crate) randomness: Rc<RefCell<dyn Randomness>>,
    /// Lookups that go on in the background.
    pub(crate) lingering: Cell<usize>,
    pub(crate) dial_timing: DialTiming,
}

/// A vat that was found.
#[derive(Debug, Clone)]
pub struct Resolution {
    /// The highest record that anybody showed: signed by the vat, valid now, and of a vat that is awake.
    pub record: SignedRecord,
    /// Where it came from.
    pub freshness: Freshness,
    /// What came of each candidate.
    pub attempts: Vec<Attempt>,
}

/// How far a vat is known to have come (R7).
#[derive(Debug, Clone)]
pub struct Newest {
    /// The highest record that the vat has ever signed and any server still has; validity does not matter.
    pub record: Option<SignedRecord>,
    /// What came of each entry.
    pub attempts: Vec<Attempt>,
}

impl Inner {
    /// Keeps a verified record. That nobody knew the vat is true no longer.
    pub(crate) fn learn(&self, record: &SignedRecord, now: Timestamp) {
        self.known.learn(record, now);
        self.absent.forget(record.id());
    }

    /// The entries of the path that may be asked.
    fn asked(&self) -> impl Iterator<Item = &SearchPathEntry> {
        self.path.iter().filter(|entry| self.carriers.why_not(entry).is_none())
    }
}

impl Newest {
    /// How many location servers gave their word, be it that they know nothing. With none, there was no witness.
    #[must_use]
    pub fn witnesses(&self) -> usize {
        self.attempts.iter().filter(|attempt| attempt.is_testimony()).count()
    }
}

impl Resolver {
    /// A resolver that dials from `endpoint`, asks the entries of `path`, and remembers in `cache`.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        path: Vec<SearchPathEntry>,
        cache: Option<RecordCache>,
        config: ResolverConfig,
    ) -> Self {
        let ResolverConfig { lookup, dial, carriers, greeting, clock, randomness } = config;
        let carriers = Carriers::new(Pool::new(endpoint, greeting, dial.dial_deadline), carriers);
        let cache = cache.map(Rc::new);
        let scores = cache.clone().map_or_else(EntryScores::in_memory, EntryScores::kept_in);
        let (known, absent) = (KnownRecords::new(cache), Absent::default());
        let lingering = Cell::new(0);
        let (lookup_timing, dial_timing) = (lookup, dial);
        let inner =
            Inner { carriers, path, known, scores, absent, lookup_timing, clock, randomness, lingering, dial_timing };
        Self { inner: Rc::new(inner) }
    }

    /// The search path.
    #[must_use]
    pub fn path(&self) -> &[SearchPathEntry] {
        &self.inner.path
    }

    /// Where the location servers of the search path are that have a session, each name looked up for at most `deadline`.
    /// In local-only mode those that are elsewhere are left out, and nobody is asked for their names.
    pub async fn locate_servers(&self, deadline: Duration) -> Vec<SocketAddr> {
        let lookups = self.inner.asked().filter_map(server).map(|Server { host, port, .. }| async move {
            // One that does not resolve, or is slow, is as good as not there.
            timeout(deadline, addresses_of(&host, port)).await.ok().and_then(Result::ok).unwrap_or_default()
        });
        join_all(lookups).await.into_iter().flatten().collect()
    }

    /// What was measured of an entry, by this process and, with a cache, by those before it.
    #[must_use]
    pub fn score(&self, entry: &SearchPathEntry) -> EntryScore {
        self.inner.scores.of(entry)
    }

    /// Finds the record of a vat. Returns with the first verified record that nobody is likely to improve on
    /// (see [`crate::schedule`]); slower entries are listened to in the background. That all of them have just denied
    /// to know the vat is remembered for a few seconds ([`LookupTiming::absent_memory`]).
    ///
    /// # Errors
    /// [`ResolveError`], with one line of reason per candidate.
    pub async fn resolve(&self, id: VatId, hints: &Hints) -> Result<Resolution, ResolveError> {
        let now = self.inner.clock.now().elapsed;
        let asked = entries(&self.inner, hints).into_iter().map(|entry| entry.entry);
        match self.inner.absent.recall(id, asked, now) {
            Some(attempts) => Err(ResolveError::Unknown { id, attempts }),
            None => self.resolve_anew(id, hints).await,
        }
    }

    /// The same, whatever was answered just before.
    ///
    /// # Errors
    /// [`ResolveError`], with one line of reason per candidate.
    pub async fn resolve_anew(&self, id: VatId, hints: &Hints) -> Result<Resolution, ResolveError> {
        let (mut lookup, mut signals) = Lookup::begin(self.inner.clone(), id, hints, Goal::Reach);
        while !signals.contains(&Signal::Settled) {
            signals = lookup.next().await;
        }
        let (found, attempts) = (lookup.verdict(), lookup.attempts());
        lookup.linger();
        let memory = self.inner.lookup_timing.absent_memory;
        self.inner.absent.learn(id, &attempts, memory, self.inner.clock.now().elapsed);
        match found {
            Found::Record(record, freshness) if record.record().state == State::Live => {
                Ok(Resolution { record, freshness, attempts })
            }
            other => Err(not_found(id, other, attempts)),
        }
    }

    /// Finds a vat and dials it. Only a peer that proves the vat's key is accepted. Asks anew each time: whoever wants a
    /// session again paces its attempts ([`crate::reconnect`]), and must not miss a vat that has just come.
    ///
    /// # Errors
    /// [`ResolveError`], with one line of reason per candidate and per address.
    pub async fn connect(&self, id: VatId, hints: &Hints) -> Result<Connected, ResolveError> {
        Reach::begin(self.inner.clone(), id, hints).run().await
    }

    /// The highest record that a vat ever signed, as far as any entry knows: the witness against rolled-back
    /// and cloned states (R7). Asks every entry and waits for all, at most for [`LookupTiming::deadline`].
    pub async fn newest(&self, id: VatId) -> Newest {
        let (mut lookup, mut signals) = Lookup::begin(self.inner.clone(), id, &Hints::default(), Goal::Witness);
        while !signals.contains(&Signal::Finished) {
            signals = lookup.next().await;
        }
        let record = match lookup.verdict() {
            Found::Record(record, _) => Some(record),
            _ => None,
        };
        Newest { record, attempts: lookup.attempts() }
    }

    /// What time it is at one entry.
    ///
    /// # Errors
    /// [`Failure`], of the code `vls.no_carrier` for an entry that has no clock.
    pub async fn time_at(&self, entry: &SearchPathEntry) -> Result<Timestamp, Failure> {
        let deadline = limits::CLOCK_DEADLINE;
        let asked = timeout(deadline, self.inner.carriers.time(entry)).await;
        asked.unwrap_or(Err(Failure::Timeout { after: deadline }))
    }

    /// Has a location server look whether others can dial this endpoint: where the server sees it, at `port` if that is
    /// another one. Servers do that every ten seconds at most.
    ///
    /// # Errors
    /// [`Failure`] of the asking; that it was not reached is an answer.
    pub async fn dialled_back(&self, entry: &SearchPathEntry, port: Option<u16>) -> Result<DialledBack, Failure> {
        if let Some(left_out) = self.inner.carriers.why_not(entry) {
            return Err(Failure::LeftOut(left_out));
        }
        let deadline = limits::DIAL_BACK_DEADLINE;
        let asked = timeout(deadline, self.inner.carriers.dial_back(entry, port)).await;
        asked.unwrap_or(Err(Failure::Timeout { after: deadline }))
    }

    /// Asks the entries of the path for the time, for [`limits::CLOCK_DEADLINE`] at most: whether several of them agree
    /// that this machine's clock is wrong.
    pub async fn clock_skew(&self) -> Option<ClockSkew> {
        clock_skew(&self.inner.carriers, &self.inner.path, &*self.inner.clock).await
    }

    /// Watches a vat: tells the moment that it comes, moves or goes.
    ///
    /// # Errors
    /// [`ResolveError`] if there is nobody to ask: no search path and no hint, or none that may be asked, with one line of
    /// reason per entry.
    pub fn watch(&self, id: VatId, hints: &Hints) -> Result<Watching, ResolveError> {
        Watching::begin(&self.inner, id, hints)
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }
}

/// Whether several of these entries agree that this machine's clock is wrong.
pub(crate) async fn clock_skew(carriers: &Carriers, path: &[SearchPathEntry], clock: &dyn Clock) -> Option<ClockSkew> {
    let may_ask = |entry: &&SearchPathEntry| carriers.why_not(entry).is_none();
    let readings = path.iter().filter(may_ask).take(limits::MAX_CANDIDATES).map(|entry| async move {
        let before = clock.now();
        let theirs = timeout(limits::CLOCK_DEADLINE, carriers.time(entry)).await.ok()?.ok()?;
        // Half-way between, by the monotonic clock: dialling may have taken a part of it.
        let taken = clock.now().elapsed.saturating_sub(before.elapsed);
        Some(Reading { theirs, ours: before.wall.saturating_add(taken / 2) })
    });
    skew::judge(&join_all(readings).await.into_iter().flatten().collect::<Vec<_>>())
}

pub(crate) fn not_found(id: VatId, found: Found, attempts: Vec<Attempt>) -> ResolveError {
    match found {
        Found::Record(record, _) => ResolveError::Dormant { record, attempts },
        Found::Unknown => ResolveError::Unknown { id, attempts },
        Found::Foreign => ResolveError::NoVat { id, attempts },
        Found::NobodyToAsk if attempts.is_empty() => ResolveError::EmptyPath { id },
        Found::NoAnswer | Found::NobodyToAsk => ResolveError::NoAnswer { id, attempts },
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl fmt::Display for Resolution {
    /// The record and one line per candidate.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = Summary::from(&self.record);
        write!(f, "vat://{}: {summary} ({}){}", self.record.id(), self.freshness.as_str(), Lines(&self.attempts))
    }
}
