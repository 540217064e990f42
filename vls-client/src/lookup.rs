//! One lookup under way: the schedule's hands. It asks through the pool, sleeps, and keeps what was learned.

use std::{rc::Rc, time::Duration};

use futures::{FutureExt, StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use schemas::{Hints, SearchPathEntry, SignedRecord, VatId};
use tokio::time::{Instant, sleep};

use crate::{
    attempt::{Attempt, Candidate, Outcome},
    carriers::{Said, server},
    clock::Moment,
    cold::Question,
    failure::Failure,
    judge::Refusal,
    limits,
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
    /// Nothing more is waited for.
    Finished,
}

type Asked = LocalBoxFuture<'static, (usize, Duration, Result<Said, Failure>)>;
type AnsweredAgain = LocalBoxFuture<'static, (usize, Question, Option<Answer>)>;

pub(crate) struct Lookup {
    id: VatId,
    resolver: Rc<Inner>,
    schedule: Schedule,
    asked: FuturesUnordered<Asked>,
    /// Those that have answered and may answer again.
    answered: FuturesUnordered<AnsweredAgain>,
    /// Those that were marked for what they said.
    marked: Vec<usize>,
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
        let (asked, answered) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut lookup = Self { id, resolver, schedule, asked, answered, marked: Vec::new() };
        let signals = lookup.feed(now, Event::Begin);
        (lookup, signals)
    }

    /// Waits for something to happen. Losing the wait loses nothing. After [`Signal::Finished`] it returns only when
    /// somebody answers again, and perhaps never.
    pub(crate) async fn next(&mut self) -> Vec<Signal> {
        let wake_at = self.schedule.wake_at();
        let wait = wake_at.unwrap_or_default().saturating_sub(self.resolver.clock.now().elapsed);
        let event = tokio::select! {
            Some((slot, latency, result)) = self.asked.next(), if wake_at.is_some() => {
                return self.hear(slot, latency, result);
            }
            Some((slot, question, answer)) = self.answered.next() => match answer {
                Some(answer) => {
                    self.listen(slot, question);
                    Event::AnsweredAgain { slot, answer }
                }
                None => return Vec::new(),
            },
            () = sleep(wait), if wake_at.is_some() => Event::Tick,
            else => return std::future::pending().await,
        };
        self.feed(self.resolver.clock.now(), event)
    }

    /// Takes what an entry answered, or why it will not, and marks the entry for it.
    fn hear(&mut self, slot: usize, latency: Duration, result: Result<Said, Failure>) -> Vec<Signal> {
        let now = self.resolver.clock.now();
        let event = match result {
            Ok(Said { answer, vouched, question }) => {
                if let Some(question) = question {
                    self.listen(slot, question);
                }
                Event::Answered { slot, answer, vouched }
            }
            Err(failure) => Event::Failed { slot, failure },
        };
        self.marked.push(slot);
        let signals = self.feed(now, event);
        let (scores, entry) = (&self.resolver.scores, self.schedule.entry(slot));
        match self.schedule.outcome(slot) {
            // Whatever it said is nothing that an honest server says.
            outcome if !outcome.is_answer() => scores.failed(entry, now.wall),
            outcome => scores.answered(entry, latency, is_stale(outcome), now.wall),
        }
        scores.save_sometimes(now.elapsed);
        signals
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
                    self.resolver.learn(&record, now.wall);
                }
                Action::Learned(_) => {}
                Action::Best(record) => signals.push(Signal::Best(record)),
                Action::Settled => signals.push(Signal::Settled),
                Action::Finished => {
                    self.mark_the_silent(now);
                    signals.push(Signal::Finished);
                }
            }
        }
        signals
    }

    /// Those that were silent until the end.
    fn mark_the_silent(&self, now: Moment) {
        for slot in 0..self.schedule.len() {
            let timed_out = matches!(self.schedule.outcome(slot), Outcome::Failed(Failure::Timeout { .. }));
            if timed_out && !self.marked.contains(&slot) {
                self.resolver.scores.failed(self.schedule.entry(slot), now.wall);
            }
        }
    }

    /// Goes on hearing an entry that has answered.
    fn listen(&self, slot: usize, mut question: Question) {
        let answered = async move {
            let answer = question.answered_again().await;
            (slot, question, answer)
        };
        self.answered.push(answered.boxed_local());
    }

    fn ask(&self, slot: usize) {
        let (carriers, entry) = (self.resolver.carriers.clone(), self.schedule.entry(slot).clone());
        let (id, goal) = (self.id, self.schedule.goal());
        let patience = self.resolver.lookup_timing.cold_patience;
        let begun = Instant::now();
        let asked = async move {
            let answer = carriers.lookup(&entry, id, goal, patience).await;
            (slot, begun.elapsed(), answer)
        };
        self.asked.push(asked.boxed_local());
    }
}

impl Drop for Lookup {
    /// Nobody listens any more. Whoever is silent for longer than is usual until now counts as silent: a process that ends
    /// with its answer would otherwise never learn which entries are dead, and ask them first for ever.
    fn drop(&mut self) {
        let now = self.resolver.clock.now();
        for slot in self.schedule.overdue(now) {
            self.resolver.scores.failed(self.schedule.entry(slot), now.wall);
        }
    }
}

/// Whether an entry has shown a record that it would not have, if it heard from the vat.
fn is_stale(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(Refusal::Older { .. } | Refusal::LowerEpoch { .. }))
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
        let score = resolver.scores.of(&entry);
        entries.push(Entry {
            candidate: candidate(entry.clone()),
            expected: server.as_ref().and_then(|server| pool.expected(server)).or_else(|| score.p95()),
            suspect: server.is_some_and(|server| pool.is_suspect(&server)),
            rank: score.rank(),
            left_out: resolver.carriers.why_not(&entry),
            entry,
        });
    }
    entries
}
