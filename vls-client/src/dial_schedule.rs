//! Which address to dial when, and which to give up: the pure core of `connect` (DESIGN §5).
//!
//! Dialling does not wait for the lookup to end. Hinted addresses are dialled from the beginning: an address
//! and the id that has to be proved there are enough, even when no location server answers. As soon as the
//! lookup has a verified record, its addresses join the race; a higher record replaces them, and dials to
//! addresses that it no longer names are given up. The first peer that proves the vat's key wins.
//!
//! What is dialled is never believed: the transport accepts only a peer that proves the id, so a wrong address
//! costs one attempt and nothing else.

use std::{net::SocketAddr, time::Duration};

use schemas::{Address, SignedRecord, State};

use crate::{
    attempt::{Attempt, Candidate, Outcome},
    failure::{Carrier, Failure},
    limits, locality,
    wave::Wave,
};

/// The pace of dialling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DialTiming {
    /// Addresses dialled at the same moment.
    pub first_wave: usize,
    /// How long silence lasts before one more is dialled.
    pub hedge: Duration,
    /// The end of one dial, its name lookup included.
    pub dial_deadline: Duration,
    /// The end of lookup and dialling together.
    pub deadline: Duration,
}

impl Default for DialTiming {
    fn default() -> Self {
        Self {
            first_wave: limits::DIAL_WAVE,
            hedge: limits::DIAL_HEDGE,
            dial_deadline: limits::DIAL_DEADLINE,
            deadline: limits::CONNECT_DEADLINE,
        }
    }
}

/// What happened. `slot` is the index of an address.
#[derive(Debug, Clone)]
pub enum DialEvent {
    /// The lookup's record to use has changed ([`crate::schedule::Action::Best`]).
    Best(Option<SignedRecord>),
    /// Nothing more will come from the lookup.
    LookupFinished,
    /// The vat answered and proved its key.
    Connected {
        /// Which address.
        slot: usize,
        /// The socket address behind it.
        address: SocketAddr,
    },
    /// This dial will not succeed.
    Failed {
        /// Which address.
        slot: usize,
        /// Why.
        failure: Failure,
    },
    /// Time has passed: begin, or the moment of [`DialSchedule::wake_at`] has come.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialAction {
    /// Dial [`DialSchedule::target`] of this slot.
    Dial(usize),
    /// Drop the dial of this slot.
    Cancel(usize),
    /// This slot has won. Comes at most once, last.
    Won(usize),
    /// Nobody was reached, and nobody more can be tried. Comes at most once, last.
    Lost,
}

/// A host to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A DNS name or an IP address without brackets.
    pub host: String,
    /// The UDP port.
    pub port: u16,
}

#[derive(Debug)]
struct Slot {
    candidate: Candidate,
    target: Target,
    /// A hint is dialled whatever records say.
    hinted: bool,
    /// Place in the current record; hints that it does not name come behind.
    rank: usize,
    asked: bool,
    done: Option<Duration>,
    outcome: Outcome,
}

/// One race to reach a vat.
#[derive(Debug)]
pub struct DialSchedule {
    timing: DialTiming,
    started: Duration,
    wave: Wave,
    slots: Vec<Slot>,
    lookup_finished: bool,
    finished: bool,
    local_only: bool,
}

/// Behind every place in a record.
const UNNAMED: usize = usize::MAX;

impl DialSchedule {
    /// A race that begins at `now` (monotonic) with the hinted places, `<host>:<port>`. With `local_only` nothing is
    /// dialled that is not on this machine or in its own network.
    pub fn new(hints: &[String], timing: DialTiming, local_only: bool, now: Duration) -> Self {
        let (wave, slots) = (Wave::new(now, timing.first_wave), vec![]);
        let mut schedule =
            Self { timing, started: now, wave, slots, lookup_finished: false, finished: false, local_only };
        for place in hints {
            let candidate = Candidate::HintAddress(place.clone());
            match format!("quic:{place}").parse() {
                Ok(Address::Quic { host, port }) => schedule.add(candidate, Target { host, port }, true, UNNAMED, now),
                _ => schedule.add_failed(candidate, Failure::Place, now),
            }
        }
        schedule
    }

    /// Takes one event, gives what to do about it. `now` is the monotonic time.
    pub fn handle(&mut self, now: Duration, event: DialEvent) -> Vec<DialAction> {
        let mut actions = Vec::new();
        if self.finished {
            return actions;
        }
        match event {
            DialEvent::Best(record) => self.upgrade(record.as_ref(), now, &mut actions),
            DialEvent::LookupFinished => self.lookup_finished = true,
            DialEvent::Connected { slot, address } if self.is_running(slot) => {
                self.end(slot, Outcome::Connected { address }, now);
                self.finished = true;
                actions.push(DialAction::Won(slot));
                return actions;
            }
            DialEvent::Failed { slot, failure } if self.is_running(slot) => {
                self.end(slot, Outcome::Failed(failure), now);
                self.wave.attempt_failed();
            }
            DialEvent::Connected { .. } | DialEvent::Failed { .. } | DialEvent::Tick => {}
        }
        let over = now >= self.end_at();
        if !over {
            self.start(now, &mut actions);
        }
        if over || (self.lookup_finished && self.slots.iter().all(|slot| slot.done.is_some())) {
            self.finished = true;
            actions.push(DialAction::Lost);
        }
        actions
    }

    /// When to send [`DialEvent::Tick`], if nothing happens before.
    pub fn wake_at(&self) -> Option<Duration> {
        if self.finished {
            return None;
        }
        let end = self.end_at();
        Some(if self.next_waiting().is_some() { end.min(self.wave.next()) } else { end })
    }

    /// Where to dial for this slot.
    pub fn target(&self, slot: usize) -> &Target {
        &self.slots[slot].target
    }

    /// What came of each address, as it stands at `now`.
    pub fn attempts(&self, now: Duration) -> Vec<Attempt> {
        let attempt = |slot: &Slot| Attempt {
            candidate: slot.candidate.clone(),
            elapsed: slot.done.unwrap_or(now).saturating_sub(self.started),
            outcome: slot.outcome.clone(),
            vouched: false,
        };
        self.slots.iter().map(attempt).collect()
    }

    fn upgrade(&mut self, record: Option<&SignedRecord>, now: Duration, actions: &mut Vec<DialAction>) {
        for slot in &mut self.slots {
            slot.rank = UNNAMED;
        }
        let live = record.filter(|record| record.record().state == State::Live);
        for (rank, address) in live.into_iter().flat_map(|record| record.record().addresses.iter()).enumerate() {
            self.name(address, rank, now);
        }
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.hinted || slot.rank != UNNAMED || slot.done.is_some() {
                continue;
            }
            if slot.asked {
                actions.push(DialAction::Cancel(index));
                self.wave.attempt_failed();
            }
            self.end(index, Outcome::Withdrawn, now);
        }
    }

    /// The current record has this address at this place.
    fn name(&mut self, address: &Address, rank: usize, now: Duration) {
        let candidate = Candidate::Address(address.clone());
        let Address::Quic { host, port } = address else {
            if let Some(carrier) = Carrier::missing_for_address(address)
                && !self.slots.iter().any(|slot| slot.candidate == candidate)
            {
                self.add_failed(candidate, Failure::NoCarrier { carrier }, now);
            }
            return;
        };
        let target = Target { host: host.clone(), port: *port };
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.target == target) else {
            return self.add(candidate, target, false, rank, now);
        };
        slot.rank = rank;
        // Given up for a record that has turned out not to be the highest.
        if matches!(slot.outcome, Outcome::Withdrawn) {
            (slot.asked, slot.done, slot.outcome) = (false, None, Outcome::NotTried);
        }
    }

    fn add(&mut self, candidate: Candidate, target: Target, hinted: bool, rank: usize, now: Duration) {
        let why_not = if self.local_only { locality::why_not_host(&target.host) } else { None };
        let (done, outcome) = match why_not {
            Some(why) => (Some(now), Outcome::Failed(Failure::LeftOut(why))),
            None if self.slots.len() < limits::MAX_DIALS => (None, Outcome::NotTried),
            None => (Some(now), Outcome::TooMany),
        };
        self.slots.push(Slot { candidate, target, hinted, rank, asked: false, done, outcome });
    }

    fn add_failed(&mut self, candidate: Candidate, failure: Failure, now: Duration) {
        let target = Target { host: String::new(), port: 0 };
        let outcome = Outcome::Failed(failure);
        let slot = Slot { candidate, target, hinted: true, rank: UNNAMED, asked: false, done: Some(now), outcome };
        self.slots.push(slot);
    }

    fn start(&mut self, now: Duration, actions: &mut Vec<DialAction>) {
        while let Some(index) = self.next_waiting() {
            if !self.wave.may_start(now, self.timing.hedge) {
                break;
            }
            self.slots[index].asked = true;
            self.slots[index].outcome = Outcome::Waiting;
            actions.push(DialAction::Dial(index));
        }
    }

    fn next_waiting(&self) -> Option<usize> {
        let waiting = self.slots.iter().enumerate().filter(|(_, slot)| !slot.asked && slot.done.is_none());
        waiting.min_by_key(|(index, slot)| (slot.rank, *index)).map(|(index, _)| index)
    }

    fn is_running(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(|slot| slot.asked && slot.done.is_none())
    }

    fn end(&mut self, slot: usize, outcome: Outcome, now: Duration) {
        self.slots[slot].done = Some(now);
        self.slots[slot].outcome = outcome;
    }

    fn end_at(&self) -> Duration {
        self.started.saturating_add(self.timing.deadline)
    }
}
