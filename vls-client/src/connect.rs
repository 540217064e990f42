//! Reaching a vat: lookup and dialling side by side, the shell around [`crate::dial_schedule`] (DESIGN §5).

use std::{net::SocketAddr, rc::Rc, time::Duration};

use futures::{
    FutureExt, StreamExt,
    future::{AbortHandle, Abortable, Aborted, LocalBoxFuture},
    stream::FuturesUnordered,
};
use schemas::{Hints, SignedRecord, State, VatId};
use tokio::time::sleep;
use transport::PeerConnection;

use crate::{
    attempt::Attempt,
    dial::dial,
    dial_schedule::{DialAction, DialEvent, DialSchedule},
    error::ResolveError,
    failure::Failure,
    lookup::{Lookup, Signal},
    resolver::{Inner, not_found},
    schedule::{Found, Freshness, Goal},
};

/// A vat that was reached.
#[derive(Debug)]
pub struct Connected {
    /// The connection. The vat has proven its key on it.
    pub connection: PeerConnection,
    /// Where the vat answered.
    pub address: SocketAddr,
    /// The record that was known when it answered, and where that came from; none if a hinted address was
    /// enough.
    pub record: Option<(SignedRecord, Freshness)>,
    /// What came of each candidate and each address.
    pub attempts: Vec<Attempt>,
}

type Dialled = LocalBoxFuture<'static, Result<DialResult, Aborted>>;

struct DialResult {
    slot: usize,
    result: Result<(PeerConnection, SocketAddr), Failure>,
}

/// Lookup and dialling, side by side.
pub(crate) struct Reach {
    id: VatId,
    resolver: Rc<Inner>,
    lookup: Lookup,
    race: DialSchedule,
    dials: FuturesUnordered<Dialled>,
    aborts: Vec<(usize, AbortHandle)>,
    signals: Vec<Signal>,
    /// When the dial race is told that the lookup will add nothing, although an entry is still silent.
    give_up_lookup_at: Option<Duration>,
}

impl Reach {
    pub(crate) fn begin(resolver: Rc<Inner>, id: VatId, hints: &Hints) -> Self {
        let (lookup, signals) = Lookup::begin(resolver.clone(), id, hints, Goal::Reach);
        let race = DialSchedule::new(
            &hints.addresses,
            resolver.dial_timing,
            resolver.carriers.local_only,
            resolver.clock.now().elapsed,
        );
        let (dials, aborts) = (FuturesUnordered::new(), Vec::new());
        Self { id, resolver, lookup, race, dials, aborts, signals, give_up_lookup_at: None }
    }

    pub(crate) async fn run(mut self) -> Result<Connected, ResolveError> {
        let mut event = DialEvent::Tick;
        let mut connection = None;
        loop {
            for action in self.race.handle(self.now(), event) {
                match action {
                    DialAction::Dial(slot) => self.dial(slot),
                    DialAction::Cancel(slot) => {
                        self.aborts.iter().filter(|(dial, _)| *dial == slot).for_each(|(_, abort)| abort.abort());
                    }
                    DialAction::Won(_) => return self.won(connection),
                    DialAction::Lost => return Err(self.lost()),
                }
            }
            event = self.next(&mut connection).await;
        }
    }

    /// The next event for the dial race: what the lookup has told and was not passed on yet comes first.
    async fn next(&mut self, connection: &mut Option<(PeerConnection, SocketAddr)>) -> DialEvent {
        loop {
            while let Some(signal) = (!self.signals.is_empty()).then(|| self.signals.remove(0)) {
                match signal {
                    Signal::Best(record) => return DialEvent::Best(record),
                    Signal::Finished => return DialEvent::LookupFinished,
                    Signal::Settled => self.give_up_lookup_at = Some(self.when_to_give_up()),
                }
            }
            let wake_at = [self.race.wake_at(), self.give_up_lookup_at].into_iter().flatten().min();
            let wait = wake_at.unwrap_or_default().saturating_sub(self.now());
            tokio::select! {
                // What has been heard by the time that somebody is reached says whether it is who is wanted.
                biased;
                signals = self.lookup.next() => self.signals = signals,
                Some(dialled) = self.dials.next() => match dialled {
                    Ok(DialResult { slot, result: Ok((won, address)) }) => {
                        *connection = Some((won, address));
                        return DialEvent::Connected { slot, address };
                    }
                    Ok(DialResult { slot, result: Err(failure) }) => return DialEvent::Failed { slot, failure },
                    Err(Aborted) => {}
                },
                () = sleep(wait) => {
                    if self.give_up_lookup_at.take_if(|at| *at <= self.resolver.clock.now().elapsed).is_some() {
                        return DialEvent::LookupFinished;
                    }
                    return DialEvent::Tick;
                }
            }
        }
    }

    /// A settled result that says that the vat is not to be reached has been open to contradiction already; a
    /// record that can be dialled stays open to a higher one for as long.
    fn when_to_give_up(&self) -> Duration {
        match self.lookup.verdict() {
            Found::Record(record, _) if record.record().state == State::Live => {
                self.now().saturating_add(self.resolver.lookup_timing.negative_grace)
            }
            _ => self.now(),
        }
    }

    fn dial(&mut self, slot: usize) {
        let (resolver, id, target) = (self.resolver.clone(), self.id, self.race.target(slot).clone());
        let deadline = resolver.dial_timing.dial_deadline;
        let (abort, registration) = AbortHandle::new_pair();
        let dialled = async move {
            DialResult { slot, result: dial(resolver.carriers.pool.endpoint(), id, &target, deadline).await }
        };
        self.dials.push(Abortable::new(dialled, registration).boxed_local());
        self.aborts.retain(|(dial, _)| *dial != slot);
        self.aborts.push((slot, abort));
    }

    fn won(self, connection: Option<(PeerConnection, SocketAddr)>) -> Result<Connected, ResolveError> {
        let attempts = self.attempts();
        // The race is won only by the event that brought the connection.
        let Some((connection, address)) = connection else { return Err(self.lost()) };
        let record = match self.lookup.verdict() {
            Found::Record(record, freshness) => Some((record, freshness)),
            _ => None,
        };
        self.lookup.linger();
        Ok(Connected { connection, address, record, attempts })
    }

    fn lost(&self) -> ResolveError {
        let (id, attempts) = (self.id, self.attempts());
        match self.lookup.verdict() {
            Found::Record(record, _) if record.record().state == State::Live => {
                ResolveError::NoDial { id, record: Some(record), attempts }
            }
            Found::NobodyToAsk if !attempts.is_empty() => ResolveError::NoDial { id, record: None, attempts },
            other => not_found(id, other, attempts),
        }
    }

    fn attempts(&self) -> Vec<Attempt> {
        let mut attempts = self.lookup.attempts();
        attempts.extend(self.race.attempts(self.now()));
        attempts
    }

    fn now(&self) -> Duration {
        self.resolver.clock.now().elapsed
    }
}
