//! Whom to ask when, whom to believe, and when to stop: the resolver's pure core (DESIGN §5).
//!
//! Cache and entries race. The first entries are asked together, the rest one per hedge delay or as soon as
//! one fails; every answer is judged (module `judge`); the highest verified record is kept. The schedule
//! says when a result may be used ([`Action::Settled`]) and when nothing more can come
//! ([`Action::Finished`]); between the two, answers may still improve what is known.
//!
//! When a result stands:
//!
//! * a live record from a server: at once, except that entries which usually answer get a short grace to
//!   show a higher one ([`LookupTiming::live_grace`]). Entries known to be silent get none, so a dead entry
//!   costs nothing;
//! * a record that says "asleep", or the word that there is none: after [`LookupTiming::negative_grace`], in
//!   which anybody may contradict;
//! * a cached record, while servers are silent: after [`LookupTiming::cache_patience`];
//! * whatever there is, when all have answered or at [`LookupTiming::deadline`].
//!
//! Time comes in with every event, so all of this is tested without a socket and without waiting.

mod terms;

use std::{cmp::Ordering, time::Duration};

use schemas::{SearchPathEntry, SignedRecord, State, VatId};

pub use self::terms::{Action, Answer, Entry, Event, Found, Freshness, Goal, LookupTiming};
use crate::{
    attempt::{Attempt, Candidate, Outcome},
    clock::Moment,
    failure::{Carrier, Failure},
    judge::{Verdict, judge},
    limits,
    wave::Wave,
};

#[derive(Debug)]
struct Slot {
    entry: Entry,
    asked: Option<Duration>,
    /// Since when the outcome stands. Before, it is `NotTried` or `Waiting`.
    done: Option<Duration>,
    outcome: Outcome,
    vouched: bool,
}

/// One lookup.
#[derive(Debug)]
pub struct Schedule {
    id: VatId,
    goal: Goal,
    timing: LookupTiming,
    started: Duration,
    wave: Wave,
    slots: Vec<Slot>,
    cache: Option<Outcome>,
    /// The highest record verified so far, whether or not it is of use now.
    known: Option<SignedRecord>,
    best: Option<(SignedRecord, Freshness)>,
    /// When the first server proved, with a lease that runs, that it hears from the vat.
    confirmed: Option<Duration>,
    /// When the first server answered anything that it can have been right to answer.
    answered: Option<Duration>,
    settled: bool,
    finished: bool,
}

impl Schedule {
    /// A lookup of `id` among `entries`, knowing `known` as the highest
    /// record from before. `cache` is what the cache has to report, if there
    /// is one and it gave no record.
    pub fn new(
        id: VatId,
        goal: Goal,
        entries: Vec<Entry>,
        known: Option<SignedRecord>,
        cache: Option<Outcome>,
        timing: LookupTiming,
        now: Moment,
    ) -> Self {
        let first_wave = if goal == Goal::Witness { entries.len() } else { timing.first_wave };
        let slots = entries.into_iter().map(Slot::new).collect();
        let wave = Wave::new(now.elapsed, first_wave);
        Self {
            id,
            goal,
            timing,
            started: now.elapsed,
            wave,
            slots,
            cache,
            known,
            best: None,
            confirmed: None,
            answered: None,
            settled: false,
            finished: false,
        }
    }

    /// Takes one event, gives what to do about it.
    pub fn handle(&mut self, now: Moment, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.finished && !matches!(event, Event::AnsweredAgain { .. }) {
            return actions;
        }
        match event {
            Event::Begin => self.begin(now, &mut actions),
            Event::Answered { slot, answer, vouched } if self.is_asked(slot) => {
                self.slots[slot].vouched = vouched;
                self.answer(slot, answer, now, &mut actions);
            }
            Event::Failed { slot, failure } if self.is_asked(slot) => {
                self.end(slot, Outcome::Failed(failure), now);
                self.wave.attempt_failed();
            }
            Event::AnsweredAgain { slot, answer } => self.amend(slot, answer, now, &mut actions),
            Event::Answered { .. } | Event::Failed { .. } | Event::Tick => {}
        }
        if self.finished {
            return actions;
        }
        self.ask(now, &mut actions);
        if !self.settled && now.elapsed >= self.settle_at() {
            self.settled = true;
            actions.push(Action::Settled);
        }
        if self.all_done() || now.elapsed >= self.end_at() {
            self.finished = true;
            self.give_up(now);
            actions.push(Action::Finished);
        }
        actions
    }

    /// When to send [`Event::Tick`], if nothing happens before.
    pub fn wake_at(&self) -> Option<Duration> {
        if self.finished {
            return None;
        }
        let mut at = self.end_at();
        if !self.settled {
            at = at.min(self.settle_at());
        }
        if self.next_waiting().is_some() {
            at = at.min(self.wave.next());
        }
        Some(at)
    }

    /// What the lookup is for.
    pub fn goal(&self) -> Goal {
        self.goal
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is nobody to ask.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The entry behind a slot.
    pub fn entry(&self, slot: usize) -> &SearchPathEntry {
        &self.slots[slot].entry.entry
    }

    /// The result as it stands.
    pub fn verdict(&self) -> Found {
        if let Some((record, freshness)) = &self.best {
            return Found::Record(record.clone(), *freshness);
        }
        if self.slots.is_empty() {
            return Found::NobodyToAsk;
        }
        if self.slots.iter().any(|slot| slot.outcome.is_foreign()) {
            return Found::Foreign;
        }
        if self.slots.iter().any(|slot| matches!(slot.outcome, Outcome::Unknown)) {
            return Found::Unknown;
        }
        Found::NoAnswer
    }

    /// What came of each candidate, as it stands at `now`.
    pub fn attempts(&self, now: Moment) -> Vec<Attempt> {
        let cache = self.cache.clone().map(|outcome| Attempt {
            candidate: Candidate::Cache,
            elapsed: Duration::ZERO,
            outcome,
            vouched: false,
        });
        let slots = self.slots.iter().map(|slot| Attempt {
            candidate: slot.entry.candidate.clone(),
            elapsed: slot.done.unwrap_or(now.elapsed).saturating_sub(self.started),
            outcome: slot.outcome.clone(),
            vouched: slot.vouched,
        });
        cache.into_iter().chain(slots).collect()
    }

    /// What came of an entry so far.
    pub fn outcome(&self, slot: usize) -> &Outcome {
        &self.slots[slot].outcome
    }

    /// Whether somebody is still expected to answer.
    pub fn is_waiting(&self) -> bool {
        self.slots.iter().any(Slot::is_waiting)
    }

    /// Those that are waited for, and at `now` for longer than is usual.
    pub fn overdue(&self, now: Moment) -> impl Iterator<Item = usize> {
        let is_overdue = move |slot: &Slot| {
            let waits_since = slot.asked.filter(|_| slot.is_waiting());
            waits_since.is_some_and(|asked| now.elapsed.saturating_sub(asked) > self.usual_end(slot.entry.expected))
        };
        self.slots.iter().enumerate().filter(move |(_, slot)| is_overdue(slot)).map(|(index, _)| index)
    }

    fn begin(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if let Some(record) = self.known.clone() {
            self.cache = Some(match record.check_time(now.wall) {
                Ok(()) => Outcome::Record { summary: (&record).into(), age: None },
                Err(error) => Outcome::Refused(error.into()),
            });
            if record.check_time(now.wall).is_ok() {
                self.set_best(Some((record, Freshness::Cached)), actions);
            }
        }
        for slot in 0..self.slots.len() {
            if slot >= limits::MAX_CANDIDATES {
                self.end(slot, Outcome::TooMany, now);
            } else if let Some(why) = self.slots[slot].entry.left_out {
                self.end(slot, Outcome::Failed(Failure::LeftOut(why)), now);
            } else if let Some(carrier) = Carrier::missing_for_entry(self.entry(slot)) {
                self.end(slot, Outcome::Failed(Failure::NoCarrier { carrier }), now);
            }
        }
    }

    fn answer(&mut self, slot: usize, answer: Answer, now: Moment, actions: &mut Vec<Action>) {
        let outcome = match answer {
            Answer::Unknown => {
                self.answered.get_or_insert(now.elapsed);
                Outcome::Unknown
            }
            Answer::Packet { packet, age, lapsed } => {
                let verdict = self.judge(&packet, now);
                self.take(verdict, age, lapsed, now, actions)
            }
        };
        if !matches!(outcome, Outcome::Record { .. }) {
            self.wave.attempt_failed();
        }
        self.end(slot, outcome, now);
    }

    /// Of two answers the better one counts, in whatever order they come: they may overtake one another, and the worse one
    /// may be somebody else's. Any answer is better than what no honest server says.
    fn amend(&mut self, slot: usize, answer: Answer, now: Moment, actions: &mut Vec<Action>) {
        let answered = self.slots.get(slot).filter(|slot| slot.asked.is_some() && slot.done.is_some());
        let Some(before) = answered.map(|answered| &answered.outcome) else { return };
        let (was_answer, was_live) = (before.is_answer(), matches!(before, Outcome::Record { .. }));
        let had_record = was_live || matches!(before, Outcome::Lapsed { .. });
        let Answer::Packet { packet, age, lapsed } = answer else {
            if !was_answer {
                self.answered.get_or_insert(now.elapsed);
                self.end(slot, Outcome::Unknown, now);
            }
            return;
        };
        let verdict = self.judge(&packet, now);
        let is_better = match &verdict {
            Verdict::Usable(record) => self.is_higher(record) || !had_record || !(lapsed || was_live),
            Verdict::Expired(record, _) => self.is_higher(record),
            Verdict::Behind(_) | Verdict::Foreign(_) => !was_answer,
            Verdict::Refused(_) => false,
        };
        if is_better {
            let outcome = self.take(verdict, age, lapsed, now, actions);
            self.end(slot, outcome, now);
        }
    }

    fn judge(&self, packet: &[u8], now: Moment) -> Verdict {
        // A witness asks how far the vat has come, not where it is: any time will do.
        let clock = (self.goal == Goal::Reach).then_some(now.wall);
        judge(self.id, packet, self.known.as_ref(), clock)
    }

    /// Uses what an entry shows, if it is of use.
    fn take(
        &mut self,
        verdict: Verdict,
        age: Option<Duration>,
        lapsed: bool,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> Outcome {
        if !matches!(verdict, Verdict::Refused(_)) {
            self.answered.get_or_insert(now.elapsed);
        }
        match verdict {
            Verdict::Usable(record) => {
                let freshness = if lapsed { Freshness::Lapsed } else { self.confirm(now) };
                self.learn(&record, actions);
                self.offer(&record, freshness, actions);
                let summary = (&record).into();
                if lapsed { Outcome::Lapsed { summary, age } } else { Outcome::Record { summary, age } }
            }
            Verdict::Expired(record, error) => {
                self.learn(&record, actions);
                // It proves that anything lower is out of date, although it says nothing of use itself.
                if self.best.is_some() {
                    self.set_best(None, actions);
                }
                Outcome::Refused(error.into())
            }
            Verdict::Behind(refusal) => {
                // It hears from the vat, only less recently than this finder has: another entry's renewal, or
                // the cache, is newer. That is no reason to wait for the silent ones.
                if !lapsed {
                    self.confirm(now);
                }
                Outcome::Refused(refusal)
            }
            Verdict::Foreign(error) => Outcome::Refused(error.into()),
            Verdict::Refused(refusal) => Outcome::Refused(refusal),
        }
    }

    fn confirm(&mut self, now: Moment) -> Freshness {
        self.confirmed.get_or_insert(now.elapsed);
        Freshness::Answered
    }

    fn learn(&mut self, record: &SignedRecord, actions: &mut Vec<Action>) {
        if self.is_higher(record) {
            self.known = Some(record.clone());
            actions.push(Action::Learned(record.clone()));
        }
    }

    fn is_higher(&self, record: &SignedRecord) -> bool {
        self.known.as_ref().is_none_or(|known| record.compare(known) == Ordering::Greater)
    }

    /// `record` is as high as anything known. It is used; if it is used already, the better reason to do so
    /// is kept.
    fn offer(&mut self, record: &SignedRecord, freshness: Freshness, actions: &mut Vec<Action>) {
        match &mut self.best {
            Some((best, known_as)) if best == record => {
                if freshness == Freshness::Answered || *known_as == Freshness::Cached {
                    *known_as = freshness;
                }
            }
            _ => self.set_best(Some((record.clone(), freshness)), actions),
        }
    }

    fn set_best(&mut self, best: Option<(SignedRecord, Freshness)>, actions: &mut Vec<Action>) {
        actions.push(Action::Best(best.as_ref().map(|(record, _)| record.clone())));
        self.best = best;
    }

    fn ask(&mut self, now: Moment, actions: &mut Vec<Action>) {
        while let Some(slot) = self.next_waiting() {
            let hedge = self.hedge(slot);
            if now.elapsed >= self.end_at() || !self.wave.may_start(now.elapsed, hedge) {
                break;
            }
            self.slots[slot].asked = Some(now.elapsed);
            self.slots[slot].outcome = Outcome::Waiting;
            actions.push(Action::Ask(slot));
        }
    }

    /// Entries that failed the last time come last, never not at all; otherwise the best come first.
    fn next_waiting(&self) -> Option<usize> {
        let waiting = self.slots.iter().enumerate().filter(|(_, slot)| slot.asked.is_none() && slot.done.is_none());
        waiting.min_by_key(|(index, slot)| (slot.entry.suspect, slot.entry.rank, *index)).map(|(index, _)| index)
    }

    /// How long to wait after asking `slot`: the largest measured p95 among it and those being waited for. An
    /// answer later than that is unusual.
    fn hedge(&self, slot: usize) -> Duration {
        let waiting = self.slots.iter().filter(|slot| slot.is_waiting()).chain(self.slots.get(slot));
        self.usual_end(waiting.filter_map(|slot| slot.entry.expected).max())
    }

    /// After how long an answer is unusual, of an entry of which this was measured.
    fn usual_end(&self, measured: Option<Duration>) -> Duration {
        let (least, most) = limits::HEDGE_BOUNDS;
        measured.map_or(self.timing.hedge, |p95| p95.clamp(least, most))
    }

    fn settle_at(&self) -> Duration {
        let mut at = self.end_at();
        if self.all_done() {
            return self.started;
        }
        if self.goal == Goal::Witness {
            return at;
        }
        let live = self.best.as_ref().is_some_and(|(best, _)| best.record().state == State::Live);
        match (self.confirmed, self.answered) {
            (Some(confirmed), _) if live => at = at.min(self.grace_end(confirmed)),
            (_, Some(answered)) => at = at.min(answered.saturating_add(self.timing.negative_grace)),
            _ => {}
        }
        if self.best.is_some() {
            at = at.min(self.started.saturating_add(self.timing.cache_patience));
        }
        at
    }

    /// Until when entries that usually answer may improve on a live record: never longer than the first
    /// answer took, nor than they usually take.
    fn grace_end(&self, confirmed: Duration) -> Duration {
        let grace = confirmed.saturating_sub(self.started).min(self.timing.live_grace);
        let end = confirmed.saturating_add(grace);
        let worth_waiting = self.slots.iter().filter(|slot| slot.is_waiting() && !slot.entry.suspect);
        let usual_end = worth_waiting.map(|slot| match (slot.asked, slot.entry.expected) {
            (Some(asked), Some(expected)) => asked.saturating_add(expected).min(end),
            _ => end,
        });
        usual_end.max().unwrap_or(confirmed)
    }

    fn end_at(&self) -> Duration {
        self.started.saturating_add(self.timing.deadline)
    }

    fn give_up(&mut self, now: Moment) {
        for slot in 0..self.slots.len() {
            if let Some(asked) = self.slots[slot].asked.filter(|_| self.is_asked(slot)) {
                let after = self.end_at().saturating_sub(asked);
                self.end(slot, Outcome::Failed(Failure::Timeout { after }), now);
            }
        }
    }

    fn is_asked(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(Slot::is_waiting)
    }

    fn all_done(&self) -> bool {
        self.slots.iter().all(|slot| slot.done.is_some())
    }

    fn end(&mut self, slot: usize, outcome: Outcome, now: Moment) {
        self.slots[slot].done = Some(now.elapsed);
        self.slots[slot].outcome = outcome;
    }
}

impl Slot {
    fn new(entry: Entry) -> Self {
        Self { entry, asked: None, done: None, outcome: Outcome::NotTried, vouched: false }
    }

    fn is_waiting(&self) -> bool {
        self.asked.is_some() && self.done.is_none()
    }
}
