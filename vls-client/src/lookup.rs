//! One lookup under way: the schedule's hands. It asks through the pool, sleeps, and keeps what was learned.

use std::rc::Rc;

use futures::{FutureExt, StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use schemas::{Hints, SearchPathEntry, SignedRecord, VatId};
use tokio::time::sleep;

use crate::{
    attempt::{Attempt, Candidate},
    carriers::server,
    clock::Moment,
    failure::Failure,
    limits, locality,
    resolver::Inner,
    schedule::{Action, Answer, Entry, Event, Found, Goal, Schedule},
};

/// What a lookup has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The record to use has changed.
    Best(Option<SignedRecord>),
    /// A result may be used.
    Settled,
    /// Nothing more will come.
    Finished,
}

type Asked = LocalBoxFuture<'static, (usize, Result<Answer, Failure>)>;

pub(crate) struct Lookup {
    id: VatId,
    resolver: Rc<Inner>,
    schedule: Schedule,
    asked: FuturesUnordered<Asked>,
}

impl Lookup {
    /// Begins; the signals of the beginning come with it.
    pub(crate) fn begin(resolver: Rc<Inner>, id: VatId, hints: &Hints, goal: Goal) -> (Self, Vec<Signal>) {
        let now = resolver.clock.now();
        let entries = entries(&resolver, hints);
        let (known, cache) = match goal {
            Goal::Reach => resolver.known.get(id, now.wall),
            Goal::Witness => (None, None),
        };
        let schedule = Schedule::new(id, goal, entries, known, cache, resolver.lookup_timing, now);
        let mut lookup = Self { id, resolver, schedule, asked: FuturesUnordered::new() };
        let signals = lookup.feed(now, Event::Begin);
        (lookup, signals)
    }

    /// Waits for something to happen. Losing the wait loses nothing. After [`Signal::Finished`] it never
    /// returns.
    pub(crate) async fn next(&mut self) -> Vec<Signal> {
        let Some(wake_at) = self.schedule.wake_at() else { return std::future::pending().await };
        let wait = wake_at.saturating_sub(self.resolver.clock.now().elapsed);
        let event = tokio::select! {
            Some((slot, result)) = self.asked.next() => match result {
                Ok(answer) => Event::Answered { slot, answer },
                Err(failure) => Event::Failed { slot, failure },
            },
            () = sleep(wait) => Event::Tick,
        };
        self.feed(self.resolver.clock.now(), event)
    }

    pub(crate) fn verdict(&self) -> Found {
        self.schedule.verdict()
    }

    pub(crate) fn attempts(&self) -> Vec<Attempt> {
        self.schedule.attempts(self.resolver.clock.now())
    }

    /// Goes on in the background, so that what the slower entries say is known the next time.
    pub(crate) fn linger(mut self) {
        let count = self.resolver.lingering.get();
        if !self.schedule.is_waiting() || count >= limits::MAX_LINGERING_LOOKUPS {
            return;
        }
        self.resolver.lingering.set(count + 1);
        tokio::task::spawn_local(async move {
            while self.schedule.is_waiting() && !self.next().await.contains(&Signal::Finished) {}
            self.resolver.lingering.set(self.resolver.lingering.get() - 1);
        });
    }

    fn feed(&mut self, now: Moment, event: Event) -> Vec<Signal> {
        let mut signals = Vec::new();
        for action in self.schedule.handle(now, event) {
            match action {
                Action::Ask(slot) => self.ask(slot),
                Action::Learned(record) if self.schedule.goal() == Goal::Reach => {
                    self.resolver.known.learn(&record, now.wall);
                }
                Action::Learned(_) => {}
                Action::Best(record) => signals.push(Signal::Best(record)),
                Action::Settled => signals.push(Signal::Settled),
                Action::Finished => signals.push(Signal::Finished),
            }
        }
        signals
    }

    fn ask(&self, slot: usize) {
        let (carriers, entry) = (self.resolver.carriers.clone(), self.schedule.entry(slot).clone());
        let (id, goal) = (self.id, self.schedule.goal());
        let patience = self.resolver.lookup_timing.cold_patience;
        let asked = async move { (slot, carriers.lookup(&entry, id, goal, patience).await) };
        self.asked.push(asked.boxed_local());
    }
}

/// The finder's own path, then the hints that it does not have already.
pub(crate) fn entries(resolver: &Inner, hints: &Hints) -> Vec<Entry> {
    let gateways = hints.gateways.iter().map(|url| SearchPathEntry::Http { url: url.clone() });
    let hinted = hints.search_path.iter().cloned().chain(gateways).map(|entry| (Candidate::HintEntry, entry));
    let own = resolver.path.iter().cloned().map(|entry| (Candidate::Entry as fn(_) -> _, entry));
    let mut entries: Vec<Entry> = Vec::new();
    for (candidate, entry) in own.chain(hinted.map(|(candidate, entry)| (candidate as fn(_) -> _, entry))) {
        if entries.iter().any(|known| known.entry == entry) {
            continue;
        }
        let (server, pool) = (server(&entry), &resolver.carriers.pool);
        entries.push(Entry {
            candidate: candidate(entry.clone()),
            expected: server.as_ref().and_then(|server| pool.expected(server)),
            suspect: server.is_some_and(|server| pool.is_suspect(&server)),
            rank: 0,
            left_out: if resolver.carriers.local_only { locality::why_not_entry(&entry) } else { None },
            entry,
        });
    }
    entries
}
